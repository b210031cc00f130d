//! What a soak came to: the report, the conditions that can be set on it, and its verdict.
//!
//! The JSON layout is documented in `docs/soak.md`. What was not measured is null, never zero.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::kernel::Finding;
use super::memory::Cost;
use crate::fail_if::{Measured, Metric, Unit};
use crate::report::{Environment, Latency};

/// Version of the JSON layout: it changes when a field is renamed, removed or means something else.
pub(super) const SCHEMA_VERSION: u32 = 1;

/// The report of a soak.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SoakReport {
    pub(super) schema: u32,
    pub(super) version: String,
    pub(super) command: Vec<String>,
    pub(super) workload: &'static str,
    pub(super) endpoints: Vec<String>,
    pub(super) settings: BTreeMap<String, Value>,
    pub(super) environment: Environment,
    /// Wall clock before the first connect, RFC 3339 in UTC.
    pub(super) started_at: String,
    /// Which of many hosts this is.
    pub(super) host_index: Option<u32>,
    /// How many hosts there are.
    pub(super) hosts: Option<u32>,
    pub(super) opening: Opening,
    pub(super) hold: Hold,
    pub(super) connections: Connections,
    pub(super) memory: Memory,
    pub(super) server: Option<Server>,
    /// What the kernel of this host counted meanwhile that explains failures.
    pub(super) kernel: Vec<Finding>,
    /// Why the soak has not passed; empty when it has.
    pub(super) failures: Vec<String>,
}

/// How the connections were opened.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Opening {
    /// Connections asked for.
    pub(super) wanted: u64,
    /// Live when the opening was over.
    pub(super) live: u64,
    /// From the first connect to the last success, or to the end of patience, seconds.
    pub(super) duration_s: f64,
    /// The same until the server of `--self` had accepted all, by its counters of each second.
    pub(super) server_duration_s: Option<f64>,
    /// Opened per second of `duration_s`.
    pub(super) per_s: f64,
    /// From the begin of a connect to its success, of all connects.
    pub(super) connect_time: Option<Latency>,
}

/// The time in which they were held.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Hold {
    pub(super) duration_s: f64,
    /// The fewest and the most that were live at once, of one look a second; fewer by those that
    /// churn was replacing at that moment.
    pub(super) live_min: u64,
    pub(super) live_max: u64,
    /// Connections that were neither live nor on their way at its end.
    pub(super) missing_at_end: u64,
    pub(super) messages_sent: u64,
    pub(super) messages: u64,
    pub(super) messages_per_s: f64,
    /// Messages whose connection was closed before they came back.
    pub(super) unanswered: u64,
    /// Messages that were due and not sent, by cause.
    pub(super) unsent: BTreeMap<&'static str, u64>,
    pub(super) lateness_max_ns: u64,
    pub(super) wrong_bytes: u64,
    /// From the moment at which a message was meant to leave to its answer.
    pub(super) response_time: Option<Latency>,
    /// From the moment at which it left.
    pub(super) service_time: Option<Latency>,
}

/// What became of all connections.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Connections {
    /// Opened, those that were opened again included.
    pub(super) opened: u64,
    /// Connects that failed.
    pub(super) failed: u64,
    /// The same by cause.
    pub(super) failed_by: BTreeMap<&'static str, u64>,
    /// Closed by churn.
    pub(super) churned: u64,
    /// Due to be churned and not, because each had a message on its way.
    pub(super) churn_missed: u64,
    /// Ended against our will.
    pub(super) lost: u64,
    /// The same by cause.
    pub(super) lost_by: BTreeMap<&'static str, u64>,
    /// In this host's TIME_WAIT at the end of the hold.
    pub(super) time_wait: Option<u64>,
}

/// What they cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Memory {
    /// This process.
    pub(super) client: Option<Cost>,
    /// The server, when it is on this host.
    pub(super) server: Option<Cost>,
    /// The kernel of this host.
    pub(super) kernel: Option<Cost>,
    /// Whether both ends are on this host, so that the kernel's figures are those of both.
    pub(super) kernel_has_both_ends: bool,
    /// Where the kernel's figures come from.
    pub(super) kernel_source: &'static str,
}

/// The server of `--self`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Server {
    /// Its rings.
    pub(super) shards: u64,
    /// Connections that it still had when this end had closed all.
    pub(super) left_open: u64,
    /// Its counters when it ended.
    pub(super) counters: Value,
}

macro_rules! time {
    ($name:literal, $words:literal, $part:ident.$of:ident, $field:ident, $missing:literal) => {
        Metric {
            name: $name,
            words: $words,
            unit: Unit::Time,
            measure: |report| report.$part.$of.as_ref().map(|time| time.$field as f64),
            missing: $missing,
        }
    };
}

macro_rules! count {
    ($name:literal, $words:literal, $measure:expr, $missing:literal) => {
        Metric {
            name: $name,
            words: $words,
            unit: Unit::Count,
            measure: $measure,
            missing: $missing,
        }
    };
}

/// A connect that failed is tried again within this.
const REOPEN_S: f64 = 1.0;
/// Of so many that are due at random instants, that none is sent has a chance of one in 10^8.
const MESSAGES_DUE_MIN: f64 = 20.0;

const NO_ANSWER: &str = "no message was answered";
const TOO_FEW: &str = "too few connections, or the memory of that process cannot be read";
const TOO_SHORT: &str =
    "the hold was too short to tell, or the memory of that process cannot be read";

macro_rules! memory {
    ($name:literal, $words:literal, $of:ident, $field:ident, $missing:ident) => {
        Metric {
            name: $name,
            words: $words,
            unit: Unit::Count,
            measure: |report| {
                let cost = report.memory.$of?;
                // Less than nothing passes whatever nothing passes.
                Some(cost.$field?.max(0.0))
            },
            missing: $missing,
        }
    };
}

impl Measured for SoakReport {
    const METRICS: &'static [Metric<Self>] = &[
        count!(
            "live",
            "the fewest live connections of the hold",
            |report| Some(report.hold.live_min as f64),
            ""
        ),
        count!(
            "opened",
            "the number of connections opened",
            |report| Some(report.connections.opened as f64),
            ""
        ),
        count!(
            "failed",
            "the number of failed connects",
            |report| Some(report.connections.failed as f64),
            ""
        ),
        count!(
            "lost",
            "the number of connections that ended against our will",
            |report| Some(report.connections.lost as f64),
            ""
        ),
        count!(
            "wrong",
            "the number of wrong bytes",
            |report| Some(report.hold.wrong_bytes as f64),
            ""
        ),
        count!(
            "unanswered",
            "the number of messages without an answer",
            |report| Some(report.hold.unanswered as f64),
            ""
        ),
        count!(
            "unsent",
            "the number of messages that were due and not sent",
            |report| Some(report.hold.unsent.values().sum::<u64>() as f64),
            ""
        ),
        count!(
            "churn_missed",
            "the number of churns that were due and not done",
            |report| Some(report.connections.churn_missed as f64),
            ""
        ),
        Metric {
            name: "rate",
            words: "the rate of messages",
            unit: Unit::Rate,
            measure: |report| Some(report.hold.messages_per_s),
            missing: "",
        },
        Metric {
            name: "open_rate",
            words: "the rate of opening",
            unit: Unit::Rate,
            measure: |report| Some(report.opening.per_s),
            missing: "",
        },
        time!(
            "connect_p50",
            "the connect time's median",
            opening.connect_time,
            p50_ns,
            "no connection was opened"
        ),
        time!(
            "connect_p99",
            "the connect time's p99",
            opening.connect_time,
            p99_ns,
            "no connection was opened"
        ),
        time!(
            "connect_max",
            "the longest connect time",
            opening.connect_time,
            max_ns,
            "no connection was opened"
        ),
        time!(
            "p50",
            "the response time's median",
            hold.response_time,
            p50_ns,
            "no message was answered"
        ),
        time!(
            "p99",
            "the response time's p99",
            hold.response_time,
            p99_ns,
            "no message was answered"
        ),
        time!(
            "p99.9",
            "the response time's p99.9",
            hold.response_time,
            p99_9_ns,
            "no message was answered"
        ),
        Metric {
            name: "max",
            words: "the longest response time",
            unit: Unit::Time,
            measure: |report| Some(report.hold.response_time.as_ref()?.max_ns as f64),
            missing: NO_ANSWER,
        },
        memory!(
            "client_bytes",
            "this end's memory per connection in bytes",
            client,
            per_connection_bytes,
            TOO_FEW
        ),
        memory!(
            "server_bytes",
            "the server's memory per connection in bytes",
            server,
            per_connection_bytes,
            TOO_FEW
        ),
        memory!(
            "kernel_bytes",
            "the kernel's memory per connection in bytes",
            kernel,
            per_connection_bytes,
            TOO_FEW
        ),
        memory!(
            "client_growth",
            "the growth of this end's memory in bytes per hour",
            client,
            growth_bytes_per_hour,
            TOO_SHORT
        ),
        memory!(
            "server_growth",
            "the growth of the server's memory in bytes per hour",
            server,
            growth_bytes_per_hour,
            TOO_SHORT
        ),
        memory!(
            "kernel_growth",
            "the growth of the kernel's memory in bytes per hour",
            kernel,
            growth_bytes_per_hour,
            TOO_SHORT
        ),
    ];
}

impl SoakReport {
    /// What speaks against it whatever the user's own conditions are: each in one sentence.
    pub(super) fn judge(&mut self, interrupted: bool) {
        let mut failures = Vec::new();
        let (opening, hold) = (&self.opening, &self.hold);
        if opening.live < opening.wanted && !interrupted {
            failures.push(format!(
                "only {} of {} connections were live at once",
                opening.live, opening.wanted
            ));
        }
        if self.connections.lost > 0 {
            failures.push(format!(
                "{} connections ended against our will",
                self.connections.lost
            ));
        }
        if hold.wrong_bytes > 0 {
            failures.push(format!("{} wrong bytes came back", hold.wrong_bytes));
        }
        if let Some(server) = &self.server
            && server.left_open > 0
        {
            failures.push(format!(
                "the server still had {} connections when all were closed here",
                server.left_open
            ));
        }
        let setting = |name| self.settings.get(name).and_then(Value::as_f64);
        // What churn closes is opened again a moment later, and after a failed connect in a second.
        let replaced = setting("churn").unwrap_or(0.0) * REOPEN_S;
        if opening.live >= opening.wanted && hold.missing_at_end as f64 > replaced {
            failures.push(format!(
                "{} connections were missing at the end of the hold: they could not be opened again",
                hold.missing_at_end
            ));
        }
        if hold.unanswered > 0 {
            failures.push(format!("{} messages did not come back", hold.unanswered));
        }
        let due = setting("rate").unwrap_or(0.0) * hold.duration_s;
        if hold.messages == 0 && (hold.messages_sent > 0 || due > MESSAGES_DUE_MIN) {
            failures.push("no message was answered".to_owned());
        }
        self.failures = failures;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fail_if::FailIf;

    fn good() -> SoakReport {
        SoakReport {
            settings: BTreeMap::from([
                ("rate".to_owned(), 10.0.into()),
                ("churn".to_owned(), 2.0.into()),
            ]),
            opening: Opening {
                wanted: 100,
                live: 100,
                per_s: 5000.0,
                ..Opening::default()
            },
            hold: Hold {
                duration_s: 5.0,
                live_min: 98,
                missing_at_end: 2,
                messages_sent: 50,
                messages: 50,
                ..Hold::default()
            },
            memory: Memory {
                server: Some(Cost {
                    per_connection_bytes: Some(90.0),
                    growth_bytes_per_hour: Some(-5.0),
                    ..Cost::default()
                }),
                ..Memory::default()
            },
            ..SoakReport::default()
        }
    }

    #[test]
    fn what_speaks_against_a_soak() {
        type Spoil = fn(&mut SoakReport);
        let cases: [(Spoil, &str); 11] = [
            (|_| {}, ""),
            (
                |r| r.hold.missing_at_end = 3,
                "3 connections were missing at the end of the hold: they could not be opened again",
            ),
            (|r| r.hold.unanswered = 1, "1 messages did not come back"),
            // Too short for a message, and long enough for one.
            (
                |r| {
                    r.hold = Hold {
                        duration_s: 1.0,
                        ..Hold::default()
                    };
                },
                "",
            ),
            (
                |r| {
                    r.hold = Hold {
                        duration_s: 3.0,
                        ..Hold::default()
                    };
                },
                "no message was answered",
            ),
            // That is said once.
            (
                |r| {
                    r.opening.live = 90;
                    r.hold.missing_at_end = 10;
                },
                "only 90 of 100 connections were live at once",
            ),
            (
                |r| r.opening.live = 99,
                "only 99 of 100 connections were live at once",
            ),
            (
                |r| r.connections.lost = 2,
                "2 connections ended against our will",
            ),
            (|r| r.hold.wrong_bytes = 3, "3 wrong bytes came back"),
            (|r| r.hold.messages = 0, "no message was answered"),
            (
                |r| {
                    r.server = Some(Server {
                        left_open: 1,
                        ..Server::default()
                    });
                },
                "the server still had 1 connections when all were closed here",
            ),
        ];
        for (spoil, words) in cases {
            let mut report = good();
            spoil(&mut report);
            report.judge(false);
            assert_eq!(report.failures.join(";"), words);
        }
    }

    #[test]
    fn conditions_on_it() {
        for (condition, fails) in [
            ("live<98", false),
            ("live<99", true),
            ("server_bytes>128", false),
            ("server_bytes>=90", true),
            ("server_growth>0", false),
            ("open_rate<5k", false),
            ("open_rate<6k", true),
            // Not measured.
            ("client_bytes>128", true),
            ("connect_p99>1s", true),
        ] {
            let condition: FailIf<SoakReport> = condition.parse().unwrap();
            let verdict = condition.evaluate(&good());
            assert_eq!(verdict.is_failure(), fails, "{}", verdict.words());
        }
    }
}
