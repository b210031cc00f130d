//! Single exchanges, step by step; both ends together are in the simulation.

use std::sync::Arc;

use super::*;
use crate::capacity::burst::Burst;
use crate::capacity::parameters::{Direction, Rate, TestParameters};
use crate::capacity::pdu::{Load, StatusChecksum, Version};
use crate::capacity::rates::{RateTable, Variant};
use crate::capacity::sender::SenderSettings;

const MS: Nanos = 1_000_000;
const START: Instants = Instants {
    now: 50 * NANOS_PER_SECOND,
    wall: WallTime {
        sec: 1_800_000_000,
        nsec: 0,
    },
};

#[derive(Default)]
struct Out {
    bursts: Vec<Burst>,
    pdus: Vec<Vec<u8>>,
    events: Vec<Event>,
    full: bool,
}

impl Sink for Out {
    fn burst(&mut self, burst: &Burst) -> u32 {
        self.bursts.push(*burst);
        if self.full { 0 } else { burst.count() }
    }

    fn pdu(&mut self, bytes: &[u8]) {
        self.pdus.push(bytes.to_vec());
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}

impl Out {
    fn end(&self) -> Option<End> {
        self.events.iter().find_map(|event| match event {
            Event::Ended(end) => Some(*end),
            _ => None,
        })
    }

    fn warnings(&self) -> Vec<u8> {
        let code = |event: &Event| match event {
            Event::Warning(warning) => Some(warning.code()),
            _ => None,
        };
        self.events.iter().filter_map(code).collect()
    }

    fn reports(&self) -> Vec<TrialReport> {
        let report = |event: &Event| match event {
            Event::Trial(report) => Some(*report),
            _ => None,
        };
        self.events.iter().filter_map(report).collect()
    }
}

fn connection(server: bool, direction: Direction, rate: Rate) -> Connection {
    let rows = Arc::new(RateTable::new(Variant::default()));
    let parameters = TestParameters {
        rate,
        test_time_s: 5,
        ..TestParameters::new(direction)
    };
    let role = if server {
        Role::Server {
            rows,
            row_max: None,
            hold_until_answered: true,
            infer_peer_limit: true,
        }
    } else {
        Role::Client {
            first_row: rows.row(parameters.first_row()).rate,
        }
    };
    let settings = ConnectionSettings {
        role,
        parameters,
        version: Version::V20,
        auth_mode: 0,
        status_checksum: StatusChecksum::Lenient,
        sender: SenderSettings {
            ipv6: false,
            keep_numbers: false,
            check_sum: false,
            tick: 0,
            seed: 1,
        },
    };
    Connection::new(settings, START)
}

/// Fires timers until a time after the start.
fn run(connection: &mut Connection, until: Nanos, out: &mut Out) {
    while let Some(deadline) = connection.next_deadline()
        && deadline <= START.now + until
    {
        connection.timer(deadline, out);
    }
}

fn status(number: u32, change: impl Fn(&mut Status)) -> Vec<u8> {
    let mut status = Status {
        spdu_seq_no: number,
        rtt_var_sample: 0,
        rtt_minimum: 1,
        ti_delta_time: 50_000,
        ..Status::default()
    };
    change(&mut status);
    let mut bytes = vec![0; Status::LEN_MAX];
    status.encode(Version::V20, &mut bytes);
    bytes
}

fn load(number: u32, now: Nanos, action: TestAction) -> Vec<u8> {
    let mut bytes = vec![0; 1222];
    let load = Load {
        test_action: action,
        lpdu_seq_no: number,
        udp_payload: 1222,
        lpdu_time: WallTime::from_unix_nanos(START.wall.unix_nanos() + now),
        ..Load::default()
    };
    load.encode(&mut bytes);
    bytes
}

fn give(connection: &mut Connection, bytes: &[u8], now: Nanos, out: &mut Out) {
    let taken = connection.datagram(bytes, bytes.len() as u16, 0, START.now + now, out);
    assert_eq!(taken, Taken::Data);
}

#[test]
fn nobody_who_has_not_answered_gets_more_than_row_0() {
    for rate in [Rate::Fixed(500), Rate::Search { start: 500 }] {
        let mut connection = connection(true, Direction::Downstream, rate);
        let mut out = Out::default();
        run(&mut connection, 2_900 * MS, &mut out);
        let datagrams: u32 = out.bursts.iter().map(Burst::count).sum();
        assert!((50..60).contains(&datagrams), "{rate:?}: {datagrams}");
        out.bursts.clear();
        give(&mut connection, &status(1, |_| ()), 2_900 * MS, &mut out);
        run(&mut connection, 3_000 * MS, &mut out);
        let datagrams: u32 = out.bursts.iter().map(Burst::count).sum();
        assert!(datagrams >= 4_900, "{rate:?}: {datagrams}");
        assert_eq!(out.warnings(), [4], "{rate:?}");
    }
}

#[test]
fn the_search_stops_climbing_when_the_sender_is_the_limit() {
    let mut connection = connection(true, Direction::Downstream, Rate::Search { start: 0 });
    let mut out = Out::default();
    let mut rows = Vec::new();
    for number in 1..=50 {
        let now = Nanos::from(number) * 50 * MS;
        out.full = (10..40).contains(&number);
        run(&mut connection, now, &mut out);
        give(&mut connection, &status(number, |_| ()), now, &mut out);
        rows.push(
            out.reports()
                .last()
                .and_then(|report| report.row)
                .expect("a row"),
        );
    }
    assert_eq!(rows[8], 90);
    // From the tenth trial in a row in which nothing was taken, until something is again.
    let held = rows[17];
    assert!(held > 90, "{rows:?}");
    assert!(rows[18..39].iter().all(|row| *row == held), "{rows:?}");
    assert!(rows[49] > held, "{rows:?}");
    assert!(connection.limited_trials() >= 30);
    assert!(
        out.reports()
            .iter()
            .any(|report| report.limit == Limit::Sender)
    );
}

#[test]
fn a_slow_sender_of_the_peer_is_inferred() {
    let mut connection = connection(true, Direction::Upstream, Rate::Search { start: 900 });
    let mut out = Out::default();
    let mut sent = 0;
    // About 20 Mbit/s, and each status PDU is echoed a millisecond later.
    for ms in 1..2_000 {
        for _ in 0..2 {
            sent += 1;
            let mut bytes = load(sent, ms * MS, TestAction::Test);
            if let Some(status) = out.pdus.last() {
                bytes[12..20].copy_from_slice(&status[152..160]);
            }
            give(&mut connection, &bytes, ms * MS, &mut out);
        }
        run(&mut connection, ms * MS, &mut out);
    }
    let reports = out.reports();
    let rows: Vec<u16> = reports.iter().filter_map(|report| report.row).collect();
    assert_eq!(reports[30].limit, Limit::Peer, "{rows:?}");
    assert_eq!(rows.last(), rows.get(20), "{rows:?}");
}

#[test]
fn a_stale_status_changes_nothing_but_is_echoed() {
    let mut connection = connection(true, Direction::Downstream, Rate::Search { start: 0 });
    let mut out = Out::default();
    for (number, row) in [
        (1, 10),
        (2, 20),
        (1, 20),
        (2, 20),
        (4, 30),
        (3, 30),
        (5, 40),
    ] {
        give(&mut connection, &status(number, |_| ()), 60 * MS, &mut out);
        let last = out.reports().last().and_then(|report| report.row);
        assert_eq!(last, Some(row), "status {number}");
    }
    assert_eq!(out.warnings(), [2, 2, 2, 2]);
    // Far ahead is nonsense: the next real one is still taken.
    give(
        &mut connection,
        &status(u32::MAX, |_| ()),
        60 * MS,
        &mut out,
    );
    give(&mut connection, &status(6, |_| ()), 60 * MS, &mut out);
    assert_eq!(out.reports().last().and_then(|report| report.row), Some(50));
    assert_eq!(connection.refused().format, 1);
}

#[test]
fn a_server_repeats_its_stop_until_it_is_confirmed() {
    for (direction, confirmed) in [
        (Direction::Upstream, true),
        (Direction::Upstream, false),
        (Direction::Downstream, true),
        (Direction::Downstream, false),
    ] {
        let mut connection = connection(true, direction, Rate::Fixed(1));
        let mut out = Out::default();
        for number in 1..=112 {
            let now = Nanos::from(number) * 50 * MS;
            run(&mut connection, now, &mut out);
            let bytes = match direction {
                Direction::Upstream => load(number, now, TestAction::Test),
                Direction::Downstream => status(number, |_| ()),
            };
            give(&mut connection, &bytes, now, &mut out);
        }
        run(&mut connection, 6_000 * MS, &mut out);
        let stops = out.pdus.iter().filter(|bytes| bytes[2] == 2).count();
        let want = match direction {
            Direction::Upstream => 10..=12,
            Direction::Downstream => 48..=52,
        };
        assert!(want.contains(&stops), "{direction:?}: {stops}");
        assert_eq!(out.end(), None);
        if confirmed {
            let bytes = match direction {
                Direction::Upstream => load(200, 6_000 * MS, TestAction::Stop),
                Direction::Downstream => status(200, |s| s.test_action = TestAction::Stop),
            };
            give(&mut connection, &bytes, 6_000 * MS, &mut out);
            assert_eq!(out.end(), Some(End::Complete), "{direction:?}");
        } else {
            run(&mut connection, 9_000 * MS, &mut out);
            assert_eq!(out.end(), Some(End::Unconfirmed), "{direction:?}");
        }
        assert_eq!(connection.next_deadline(), None);
    }
}

#[test]
fn a_client_ends_however_the_server_does() {
    // How long the server is heard in ms, whether its stop comes, how it ends, and when in ms.
    for direction in [Direction::Upstream, Direction::Downstream] {
        for (heard, stop, end, when) in [
            (5_500, true, End::Complete, 5_550),
            (5_500, false, End::StopMissing, 6_500),
            (5_000, false, End::StopMissing, 6_000),
            (60_000, false, End::StopMissing, 8_500),
            (4_000, false, End::StopMissing, 5_500),
            (3_950, false, End::NoTraffic, 5_500),
            (1_900, false, End::NoTraffic, 4_900),
            (0, false, End::NoTraffic, 3_000),
        ] {
            let mut connection = connection(false, direction, Rate::Fixed(1));
            let mut out = Out::default();
            let mut number = 0;
            let mut ended = None;
            for ms in (50..10_000).step_by(50) {
                let now = ms * MS;
                run(&mut connection, now, &mut out);
                if ended.is_none() && out.end().is_some() {
                    ended = Some(ms);
                }
                let stops = stop && ms > heard;
                if ms <= heard || stops {
                    number += 1;
                    let action = if stops {
                        TestAction::Stop
                    } else {
                        TestAction::Test
                    };
                    let bytes = match direction {
                        Direction::Upstream => status(number, |status| {
                            status.test_action = action;
                            status.rate = RateTable::new(Variant::default()).row(1).rate;
                        }),
                        Direction::Downstream => load(number, now, action),
                    };
                    give(&mut connection, &bytes, now, &mut out);
                    if ended.is_none() && out.end().is_some() {
                        ended = Some(ms);
                    }
                }
            }
            let what = format!("{direction:?}, heard {heard} ms");
            assert_eq!(out.end(), Some(end), "{what}");
            assert_eq!(ended, Some(when), "{what}");
            // It tells the server once; a server that repeats its stop is told again, not for ever.
            let stops = out.pdus.iter().filter(|bytes| bytes[2] == 2).count();
            let want = match end {
                End::Complete => 1 + CONFIRMATIONS_MAX as usize,
                End::StopMissing => 1,
                _ => 0,
            };
            assert_eq!(stops, want, "{what}");
        }
    }
}

#[test]
fn either_end_may_stop_early() {
    let mut client = connection(false, Direction::Upstream, Rate::Fixed(1));
    let mut server = connection(true, Direction::Upstream, Rate::Fixed(1));
    let (mut out, mut other) = (Out::default(), Out::default());
    client.stop(START.now + 100 * MS, &mut out);
    assert_eq!(out.end(), Some(End::Stopped));
    give(&mut server, &out.pdus[0], 101 * MS, &mut other);
    assert_eq!(other.end(), Some(End::PeerStopped));

    let mut client = connection(false, Direction::Downstream, Rate::Fixed(1));
    let mut server = connection(true, Direction::Downstream, Rate::Fixed(1));
    let (mut out, mut other) = (Out::default(), Out::default());
    server.stop(START.now + 100 * MS, &mut out);
    run(&mut server, 100 * MS, &mut out);
    give(&mut client, &out.pdus[0], 101 * MS, &mut other);
    assert_eq!(other.end(), Some(End::Complete));
    give(&mut server, &other.pdus[0], 102 * MS, &mut out);
    assert_eq!(out.end(), Some(End::Complete));
}

#[test]
fn control_pdus_and_rubbish_are_no_data() {
    let mut connection = connection(true, Direction::Upstream, Rate::Fixed(1));
    let mut out = Out::default();
    for id in [[0xAC, 0xE1], [0xAC, 0xE2], [0xDE, 0xAD]] {
        let taken = connection.datagram(&id, 2, 0, START.now, &mut out);
        assert_eq!(taken, Taken::Control);
    }
    for _ in 0..50 {
        give(&mut connection, &[1; 40], MS, &mut out);
        give(&mut connection, &status(1, |_| ()), MS, &mut out);
    }
    assert_eq!(out.warnings(), [6; WARNINGS_PER_CONNECTION_MAX as usize]);
    assert_eq!(connection.refused().sum(), 100);
    // None of it counts as a sign of life.
    run(&mut connection, 3_000 * MS, &mut out);
    assert_eq!(out.end(), Some(End::NoTraffic));
}

#[test]
fn silence_is_told_and_taken_back() {
    let mut connection = connection(false, Direction::Downstream, Rate::Fixed(1));
    let mut out = Out::default();
    let stopped = |out: &Out| out.pdus.last().map(|bytes| bytes[3]);
    give(
        &mut connection,
        &load(1, 10 * MS, TestAction::Test),
        10 * MS,
        &mut out,
    );
    run(&mut connection, 1_000 * MS, &mut out);
    assert_eq!(stopped(&out), Some(0));
    run(&mut connection, 2_000 * MS, &mut out);
    assert_eq!(stopped(&out), Some(1));
    give(
        &mut connection,
        &load(2, 2_010 * MS, TestAction::Test),
        2_010 * MS,
        &mut out,
    );
    run(&mut connection, 2_100 * MS, &mut out);
    assert_eq!(stopped(&out), Some(0));
    assert_eq!(out.warnings(), [4]);
}
