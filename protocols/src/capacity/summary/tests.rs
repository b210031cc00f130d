//! Figures by hand: one connection, several, two modes.

use super::*;
use crate::capacity::intervals::interface_mbps;
use crate::capacity::pdu::{Status, SubIntervalStats};

/// A second with so many datagrams of 1222 bytes, some lost, and these delays.
fn second(
    number: u32,
    datagrams: u32,
    lost: u32,
    (min, max, sum, count): (u32, u32, u32, u32),
) -> SubInterval {
    SubInterval {
        number,
        stats: SubIntervalStats {
            rx_datagrams: datagrams,
            rx_bytes: u64::from(datagrams) * 1222,
            delta_time: 1_000_000,
            seq_err_loss: lost,
            seq_err_ooo: 2,
            seq_err_dup: 1,
            delay_var_min: min,
            delay_var_max: max,
            delay_var_sum: sum,
            delay_var_cnt: count,
            rtt_var_minimum: min,
            rtt_var_maximum: max,
            accum_time: number * 1000,
        },
        ce: datagrams / 10,
        rtt_var_sum_ms: sum.into(),
        rtt_var_count: count,
        clock_delta_min_ms: -i64::from(number),
        rtt_min_ms: Some(100 - number),
    }
}

const NO_DELAY: (u32, u32, u32, u32) = (Status::NONE, 0, 0, 0);

fn close(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-9, "{got}, not {want}");
}

#[test]
fn rates_by_what_is_around_the_payload() {
    let stats = second(1, 1000, 0, NO_DELAY).stats;
    for (ipv6, ip, ethernet, fcs, vlan) in [
        (false, 1250.0, 1264.0, 1268.0, 1272.0),
        (true, 1270.0, 1284.0, 1288.0, 1292.0),
    ] {
        let rates = Rates::of(&stats, ipv6);
        close(rates.ip, ip * 0.008);
        close(rates.ethernet, ethernet * 0.008);
        close(rates.ethernet_fcs, fcs * 0.008);
        close(rates.ethernet_fcs_vlan, vlan * 0.008);
    }
    assert_eq!(
        Rates::of(&SubIntervalStats::default(), false),
        Rates::default()
    );
}

#[test]
fn interface_counters_wrap() {
    for (before, after, want) in [
        (0, 125_000, 1.0),
        (u64::from(u32::MAX) - 124_999, 0, 1.0),
        (u64::MAX - 124_999, 0, 1.0),
    ] {
        close(interface_mbps(before, after, 1_000_000), want);
    }
    close(interface_mbps(0, 1, 0), 0.0);
}

#[test]
fn connections_add_up() {
    let mut gatherer = Gatherer::default();
    assert_eq!(
        gatherer.add(&second(1, 900, 100, (2, 9, 25, 10)), false, 3),
        None
    );
    assert_eq!(gatherer.check(3), None);
    assert_eq!(gatherer.add(&second(1, 1000, 0, NO_DELAY), false, 3), None);
    // The third starts the next before it has told of this one.
    let first = gatherer
        .add(&second(2, 1, 0, NO_DELAY), false, 3)
        .expect("closed");
    assert_eq!(gatherer.add(&second(1, 1, 0, NO_DELAY), false, 3), None);
    assert_eq!(gatherer.late(), 1);
    assert_eq!(
        (first.number, first.reported, first.active_connections),
        (1, 2, 3)
    );
    close(first.rates.ip, 19.0);
    let delivery = &first.delivery;
    assert_eq!(
        (delivery.datagrams, delivery.lost, delivery.sent()),
        (1900, 100, 2000)
    );
    close(delivery.delivered_percent(), 95.0);
    close(delivery.loss_ratio(), 0.05);
    close(delivery.reordered_ratio(), 0.002);
    close(delivery.replicated_ratio(), 0.001);
    close(delivery.ce_percent(), 10.0);
    let want = Spread {
        min_ms: 2,
        avg_ms: 3,
        max_ms: 9,
    };
    assert_eq!(
        (first.delay_var.spread(), first.rtt_var.spread()),
        (want, want)
    );
    assert_eq!((first.one_way_min_ms(), first.rtt_min_ms), (1, Some(99)));
    // One connection is gone: the two that are left close the second.
    gatherer.add(&second(2, 1, 0, NO_DELAY), false, 2);
    let active = gatherer
        .check(2)
        .map(|interval| (interval.number, interval.active_connections));
    assert_eq!(active, Some((2, 2)));
    assert_eq!(gatherer.close(0), None);
    assert_eq!(Interval::default().delivery.delivered_percent(), 0.0);
}

fn intervals(parts: &[SubInterval]) -> Vec<Interval> {
    let mut gatherer = Gatherer::default();
    let mut intervals = Vec::new();
    for part in parts {
        intervals.extend(gatherer.add(part, false, 1));
        intervals.extend(gatherer.check(1));
    }
    intervals
}

#[test]
fn sub_intervals_sum_up() {
    let mut results = Results::new(0, false);
    assert_eq!(results.modes().count(), 0);
    for interval in intervals(&[
        second(1, 1000, 0, (1, 4, 20, 10)),
        second(2, 3000, 10, (2, 9, 50, 10)),
        second(3, 3000, 0, NO_DELAY),
        second(4, 1000, 0, (3, 3, 30, 10)),
    ]) {
        results.add(&interval);
    }
    let modes: Vec<Summary> = results.modes().collect();
    assert_eq!(modes, [results.whole()]);
    let summary = &modes[0];
    assert_eq!((summary.first, summary.last, summary.intervals), (1, 4, 4));
    close(summary.rates.ip, 20.0);
    assert_eq!(
        (summary.delivery.datagrams, summary.delivery.lost),
        (8000, 10)
    );
    // Averages 2, 5, 0 and 3 by sub-interval; 100 of 30 over all.
    assert_eq!(
        summary.delay_var,
        Spread {
            min_ms: 1,
            avg_ms: 3,
            max_ms: 9
        }
    );
    assert_eq!(
        summary.rtt_var,
        Spread {
            min_ms: 1,
            avg_ms: 3,
            max_ms: 9
        }
    );
    assert_eq!((summary.one_way_min_ms, summary.rtt_min_ms), (-4, 96));
    assert_eq!(summary.maximum.number, 2, "the first of equals");
    assert_eq!(summary.interface, None);
}

#[test]
fn two_modes_and_the_interface_as_the_judge() {
    let mut results = Results::new(2, true);
    let parts: Vec<SubInterval> = (1..=5).map(|n| second(n, n * 100, 0, NO_DELAY)).collect();
    for mut interval in intervals(&parts) {
        interval.interface = Some(InterfaceRate {
            test_mbps: f64::from(10 - interval.number),
            other_mbps: 1.0,
        });
        results.add(&interval);
    }
    let modes: Vec<(u32, u32, u32)> = results
        .modes()
        .map(|mode| (mode.first, mode.last, mode.maximum.number))
        .collect();
    assert_eq!(modes, [(1, 2, 1), (3, 5, 3)]);
    let rate = results
        .modes()
        .last()
        .and_then(|mode| mode.interface)
        .expect("a rate");
    close(rate.test_mbps, 6.0);
    close(rate.other_mbps, 1.0);
}

#[test]
fn sub_intervals_come_out_of_a_status() {
    let status = Status {
        sub_int_seq_no: 3,
        sub_interval: second(3, 10, 0, NO_DELAY).stats,
        sis_sav_ce_count: 1,
        clock_delta_min: -3,
        rtt_minimum: Status::NONE,
        ..Status::default()
    };
    let got = SubInterval::of_status(&status, 7, 2);
    let want = SubInterval {
        rtt_var_sum_ms: 7,
        rtt_var_count: 2,
        rtt_min_ms: None,
        ..second(3, 10, 0, NO_DELAY)
    };
    assert_eq!(got, want);
}
