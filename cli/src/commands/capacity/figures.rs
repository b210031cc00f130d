//! The figures of a capacity test for programs and for conditions: plain numbers with their unit in
//! the name, Mbit/s (10^6 bit/s) and milliseconds as TR-471 has them.

use ringmill_protocols::capacity::intervals::{Delivery, InterfaceRate, Interval, Rates, Spread};
use ringmill_protocols::capacity::parameters::Direction;
use ringmill_protocols::capacity::starved::Starved;
use ringmill_protocols::capacity::summary::Summary;
use serde::Serialize;

use crate::capacity::network::NetworkLosses;
use crate::capacity::{TestOutcome, TestPlan, Verdict};
use crate::fail_if::{Measured, Metric, Unit};

/// A trial more of which this share had too slow a sender makes a test that its sender limited.
const LIMITED_SHARE: f64 = 0.1;

/// The name of a direction.
pub(super) const fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Upstream => "up",
        Direction::Downstream => "down",
    }
}

/// Rates by what is counted around the UDP payload.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RateFigures {
    pub(super) ip_mbps: f64,
    pub(super) ethernet_mbps: f64,
    pub(super) ethernet_fcs_mbps: f64,
    pub(super) ethernet_fcs_vlan_mbps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interface_mbps: Option<f64>,
}

impl RateFigures {
    fn new(rates: &Rates, interface: Option<InterfaceRate>) -> Self {
        Self {
            ip_mbps: rates.ip,
            ethernet_mbps: rates.ethernet,
            ethernet_fcs_mbps: rates.ethernet_fcs,
            ethernet_fcs_vlan_mbps: rates.ethernet_fcs_vlan,
            interface_mbps: interface.map(|rate| rate.test_mbps),
        }
    }
}

/// Datagrams and their ratios.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DeliveryFigures {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
    pub(super) reordered: u64,
    pub(super) duplicated: u64,
    pub(super) congestion_marked: u64,
    pub(super) delivered_percent: f64,
    pub(super) loss_ratio: f64,
    pub(super) reordered_ratio: f64,
    pub(super) duplicated_ratio: f64,
}

impl DeliveryFigures {
    fn new(delivery: &Delivery) -> Self {
        Self {
            datagrams: delivery.datagrams,
            bytes: delivery.bytes,
            lost: delivery.lost,
            reordered: delivery.reordered,
            duplicated: delivery.replicated,
            congestion_marked: delivery.ce,
            delivered_percent: delivery.delivered_percent(),
            loss_ratio: delivery.loss_ratio(),
            reordered_ratio: delivery.reordered_ratio(),
            duplicated_ratio: delivery.replicated_ratio(),
        }
    }
}

/// A time's least, average and largest.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SpreadFigures {
    pub(super) min_ms: u32,
    pub(super) avg_ms: u32,
    pub(super) max_ms: u32,
}

impl SpreadFigures {
    fn new(spread: &Spread) -> Self {
        Self {
            min_ms: spread.min_ms,
            avg_ms: spread.avg_ms,
            max_ms: spread.max_ms,
        }
    }
}

/// A sub-interval.
#[derive(Debug, Clone, Serialize)]
pub(super) struct IntervalFigures {
    pub(super) number: u32,
    pub(super) end_s: f64,
    pub(super) connections: u32,
    #[serde(flatten)]
    pub(super) rates: RateFigures,
    #[serde(flatten)]
    pub(super) delivery: DeliveryFigures,
    pub(super) one_way_variation: SpreadFigures,
    pub(super) round_trip_variation: SpreadFigures,
    /// Differs from the true delay by the difference of the clocks.
    pub(super) one_way_min_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) round_trip_min_ms: Option<u32>,
}

impl IntervalFigures {
    pub(super) fn new(interval: &Interval) -> Self {
        Self {
            number: interval.number,
            end_s: f64::from(interval.accumulated_ms) / 1000.0,
            connections: interval.active_connections,
            rates: RateFigures::new(&interval.rates, interval.interface),
            delivery: DeliveryFigures::new(&interval.delivery),
            one_way_variation: SpreadFigures::new(&interval.delay_var.spread()),
            round_trip_variation: SpreadFigures::new(&interval.rtt_var.spread()),
            one_way_min_ms: interval.one_way_min_ms(),
            round_trip_min_ms: interval.rtt_min_ms,
        }
    }
}

/// A mode of a test: the whole test, unless it is bimodal.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ModeFigures {
    pub(super) first: u32,
    pub(super) last: u32,
    /// Means of the sub-intervals.
    #[serde(flatten)]
    pub(super) mean: RateFigures,
    #[serde(flatten)]
    pub(super) delivery: DeliveryFigures,
    pub(super) one_way_variation: SpreadFigures,
    pub(super) round_trip_variation: SpreadFigures,
    pub(super) one_way_min_ms: i64,
    pub(super) round_trip_min_ms: u32,
    /// The sub-interval with the highest rate: the capacity.
    pub(super) maximum: IntervalFigures,
}

impl ModeFigures {
    fn new(summary: &Summary) -> Self {
        Self {
            first: summary.first,
            last: summary.last,
            mean: RateFigures::new(&summary.rates, summary.interface),
            delivery: DeliveryFigures::new(&summary.delivery),
            one_way_variation: SpreadFigures::new(&summary.delay_var),
            round_trip_variation: SpreadFigures::new(&summary.rtt_var),
            one_way_min_ms: summary.one_way_min_ms,
            round_trip_min_ms: summary.rtt_min_ms,
            maximum: IntervalFigures::new(&summary.maximum),
        }
    }
}

/// What became of a connection.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ConnectionFigures {
    pub(super) index: usize,
    pub(super) server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) local: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) protocol_version: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock_offset_s: Option<i64>,
    pub(super) outcome: String,
    pub(super) complete: bool,
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
}

/// A connection that got far less than its siblings.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StarvedFigures {
    pub(super) index: u8,
    pub(super) sub_intervals: u32,
    pub(super) ip_mbps: f64,
    /// Of all connections in the same sub-intervals.
    pub(super) median_ip_mbps: f64,
}

impl StarvedFigures {
    fn new(starved: &Starved) -> Self {
        Self {
            index: starved.connection,
            sub_intervals: starved.intervals,
            ip_mbps: starved.mbps,
            median_ip_mbps: starved.median_mbps,
        }
    }
}

/// A whole test.
#[derive(Debug, Clone, Serialize)]
pub struct TestFigures {
    pub(super) direction: &'static str,
    pub(super) verdict: &'static str,
    pub(super) capacity_mbps: Option<f64>,
    /// The sender could not send what the rows wanted: the capacity may be higher. Of a server's it
    /// is known when that is ours.
    pub(super) sender_limited: bool,
    pub(super) datagrams_not_sent: u64,
    pub(super) records_dropped: u64,
    pub(super) starved: Vec<StarvedFigures>,
    /// What this host lost, if that is known.
    pub(super) network: Option<NetworkLosses>,
    pub(super) modes: Vec<ModeFigures>,
    pub(super) connections: Vec<ConnectionFigures>,
    #[serde(skip)]
    pub(super) whole: Option<ModeFigures>,
}

impl TestFigures {
    pub(super) fn new(plan: &TestPlan, outcome: &TestOutcome) -> Self {
        let modes: Vec<_> = outcome
            .results
            .modes()
            .map(|mode| ModeFigures::new(&mode))
            .collect();
        let whole = outcome.results.whole();
        let whole = (whole.intervals > 0).then(|| ModeFigures::new(&whole));
        let ended = || outcome.connections.iter().filter_map(|one| one.ended);
        let (limited, trials) = ended().fold((0, 0), |(limited, trials), ended| {
            (limited + ended.limited_trials, trials + ended.trials)
        });
        let connections = outcome.connections.iter().enumerate();
        Self {
            direction: way(plan.settings.parameters.direction),
            verdict: match outcome.verdict {
                Verdict::Complete => "complete",
                Verdict::Interrupted => "interrupted",
                Verdict::TooFewConnections => "too few connections",
            },
            capacity_mbps: whole.as_ref().map(|mode| mode.maximum.rates.ip_mbps),
            sender_limited: f64::from(limited) > LIMITED_SHARE * f64::from(trials),
            datagrams_not_sent: ended().map(|ended| ended.missed).sum(),
            records_dropped: outcome.records_dropped,
            starved: outcome.starved.iter().map(StarvedFigures::new).collect(),
            network: outcome.network,
            modes,
            connections: connections
                .map(|(index, one)| {
                    let activated = one.activated.as_ref();
                    ConnectionFigures {
                        index,
                        server: plan.servers[one.server].name.clone(),
                        local: activated.map(|activated| activated.local.to_string()),
                        peer: activated.map(|activated| activated.peer.to_string()),
                        protocol_version: activated.map(|activated| activated.wire_version),
                        clock_offset_s: activated.and_then(|activated| activated.clock_offset_s),
                        outcome: match (one.failure, one.ended) {
                            (Some(failure), _) => failure.to_string(),
                            (_, Some(ended)) => ended.end.to_string(),
                            (None, None) => "did not end in time".into(),
                        },
                        complete: one.ended.is_some_and(|ended| ended.end.is_complete()),
                        datagrams: one.ended.map_or(0, |ended| ended.datagrams),
                        bytes: one.ended.map_or(0, |ended| ended.bytes),
                    }
                })
                .collect(),
            whole,
        }
    }
}

const NOTHING: &str = "no sub-interval was completed";

macro_rules! figure {
    ($name:literal, $words:literal, $unit:ident, $figure:expr) => {
        Metric {
            name: $name,
            words: $words,
            unit: Unit::$unit,
            measure: |test: &TestFigures| test.whole.as_ref().map($figure),
            missing: NOTHING,
        }
    };
}

const NANOS_PER_MS: f64 = 1e6;
const BITS_PER_MBIT: f64 = 1e6;

impl Measured for TestFigures {
    const METRICS: &'static [Metric<Self>] = &[
        figure!("capacity", "the capacity", BitRate, |mode| {
            mode.maximum.rates.ip_mbps * BITS_PER_MBIT
        }),
        figure!("mean", "the mean rate", BitRate, |mode| {
            mode.mean.ip_mbps * BITS_PER_MBIT
        }),
        figure!("loss", "the loss of datagrams", Ratio, |mode| {
            mode.delivery.loss_ratio
        }),
        figure!("reordering", "the share of late datagrams", Ratio, |mode| {
            mode.delivery.reordered_ratio
        }),
        figure!("duplication", "the share of duplicates", Ratio, |mode| {
            mode.delivery.duplicated_ratio
        }),
        figure!("rtt", "the least round-trip time", Time, |mode| {
            f64::from(mode.round_trip_min_ms) * NANOS_PER_MS
        }),
        figure!(
            "rtt_variation",
            "the largest round-trip variation",
            Time,
            |mode| f64::from(mode.round_trip_variation.max_ms) * NANOS_PER_MS
        ),
        figure!(
            "delay_variation",
            "the largest one-way delay variation",
            Time,
            |mode| f64::from(mode.one_way_variation.max_ms) * NANOS_PER_MS
        ),
        Metric {
            name: "connections",
            words: "the number of complete connections",
            unit: Unit::Count,
            measure: |test| {
                let complete = test.connections.iter().filter(|one| one.complete);
                Some(complete.count() as f64)
            },
            missing: "",
        },
    ];
}

#[cfg(test)]
mod tests {
    use ringmill_protocols::capacity::intervals::SubInterval;
    use ringmill_protocols::capacity::pdu::SubIntervalStats;
    use ringmill_protocols::capacity::summary::Results;

    use super::*;
    use crate::fail_if::FailIf;

    /// Two seconds of 500 and 900 Mbit/s in packets of 1250 bytes, with one loss in ten thousand.
    fn figures() -> TestFigures {
        let mut results = Results::new(0, false);
        for (number, datagrams) in [(1, 50_000), (2, 90_000)] {
            let mut interval = Interval::default();
            let part = SubInterval {
                number,
                stats: SubIntervalStats {
                    rx_datagrams: datagrams,
                    rx_bytes: u64::from(datagrams) * 1222,
                    delta_time: 1_000_000,
                    seq_err_loss: datagrams / 10_000,
                    delay_var_max: 7,
                    ..SubIntervalStats::default()
                },
                rtt_min_ms: Some(20),
                ..SubInterval::default()
            };
            interval.add(&part, false);
            results.add(&interval);
        }
        let whole = ModeFigures::new(&results.whole());
        TestFigures {
            direction: "down",
            verdict: "complete",
            capacity_mbps: Some(whole.maximum.rates.ip_mbps),
            sender_limited: false,
            datagrams_not_sent: 0,
            records_dropped: 0,
            starved: Vec::new(),
            network: None,
            modes: vec![whole.clone()],
            connections: Vec::new(),
            whole: Some(whole),
        }
    }

    #[test]
    fn what_limits_a_test_is_said() {
        let plain = figures();
        let starved = TestFigures {
            starved: vec![StarvedFigures {
                index: 2,
                sub_intervals: 3,
                ip_mbps: 10.0,
                median_ip_mbps: 100.0,
            }],
            ..plain.clone()
        };
        let limited = |direction| TestFigures {
            direction,
            sender_limited: true,
            datagrams_not_sent: 7,
            ..plain.clone()
        };
        for (test, words) in [
            (&starved, "connection 2 starved: 10.00 Mbit/s"),
            (&starved, "had 100.00 or more, in 3 sub-intervals"),
            (&starved, "(XPS)"),
            (&limited("up"), "this host sent 7 datagrams less"),
            (&limited("down"), "the server sent 7 datagrams less"),
        ] {
            let said = |test| super::super::human::report(test, false).contains(words);
            assert!(said(test), "{words}");
            assert!(!said(&plain), "{words}");
        }
        let json = super::super::json::report(&[starved], "2026-01-31T18:00:00.000Z");
        assert_eq!(json["tests"][0]["starved"][0]["index"], 2);
        assert_eq!(json["tests"][0]["starved"][0]["median_ip_mbps"], 100.0);
    }

    #[test]
    fn conditions_on_a_test() {
        let measured = figures();
        let nothing = TestFigures {
            whole: None,
            ..measured.clone()
        };
        for (condition, fails) in [
            ("capacity<900Mbit", false),
            ("capacity<0.9Gbit/s", false),
            ("capacity<=900Mbit", true),
            ("capacity<901Mbit", true),
            ("mean<700Mbit", false),
            ("mean<701Mbit", true),
            ("loss>0.1%", false),
            ("loss>0.005%", true),
            ("rtt>20ms", false),
            ("rtt>=20ms", true),
            ("delay_variation>6ms", true),
            ("connections<1", true),
        ] {
            let condition: FailIf<TestFigures> = condition.parse().expect(condition);
            assert_eq!(
                condition.evaluate(&measured).is_failure(),
                fails,
                "{condition}"
            );
            // What was not measured never passes.
            assert!(condition.evaluate(&nothing).is_failure(), "{condition}");
        }
        for wrong in ["p99>5ms", "capacity<900", "capacity", "loss>1"] {
            assert!(wrong.parse::<FailIf<TestFigures>>().is_err(), "{wrong}");
        }
    }
}
