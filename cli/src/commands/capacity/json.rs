//! A capacity test for programs: one JSON object a line (NDJSON), the last one the report.

use ringmill_protocols::capacity::client::Happened;
use serde_json::{Value, json};

use super::figures::{IntervalFigures, TestFigures, way};
use super::options::late_timers;
use crate::capacity::{FrontEnd, Said, TestPlan};

/// Writes to standard output, each line at once.
pub(super) struct Json<'a> {
    plans: &'a [TestPlan],
}

impl<'a> Json<'a> {
    pub(super) fn new(plans: &'a [TestPlan]) -> Self {
        Self { plans }
    }

    fn direction(&self, test: usize) -> &'static str {
        way(self.plans[test].settings.parameters.direction)
    }
}

/// Writes a line. Who does not read any more is told nothing.
pub(super) fn line(value: &Value) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

/// The report of one run; `started_at` is the wall clock before its set-up.
pub(super) fn report(figures: &[TestFigures], started_at: &str) -> Value {
    json!({ "type": "report", "started_at": started_at, "tests": figures })
}

impl FrontEnd for Json<'_> {
    fn said(&mut self, said: &Said<'_>) {
        match said {
            Said::Note(words) => eprintln!("ringmill: {words}"),
            Said::Interval {
                test,
                interval,
                at,
                network,
            } => {
                let mut value = json!(IntervalFigures::new(interval));
                value["network"] = json!(network);
                value["type"] = json!("interval");
                value["direction"] = json!(self.direction(*test));
                value["unix_s"] = json!(at.unix_nanos() as f64 / 1e9);
                line(&value);
            }
            Said::HostLoses { test, losses } => line(&json!({
                "type": "host_losses",
                "direction": self.direction(*test),
                "network": losses,
                "words": losses.words().join("; "),
            })),
            Said::TooFew { test, active } => line(&json!({
                "type": "too_few_connections",
                "direction": self.direction(*test),
                "connections": active,
                "wanted": self.plans[*test].connections_min,
            })),
            Said::Event { test, event } => {
                let (kind, words, code) = match &event.happened {
                    Happened::Activated(activated) => {
                        let parameters = &activated.parameters;
                        line(&json!({
                            "type": "activated",
                            "direction": self.direction(*test),
                            "connection": event.connection,
                            "id": self.plans[*test].settings.ident,
                            "local": activated.local.to_string(),
                            "peer": activated.peer.to_string(),
                            "protocol_version": activated.wire_version,
                            "clock_offset_s": activated.clock_offset_s,
                            "time_s": parameters.test_time_s,
                            "sub_interval_ms": parameters.sub_int_ms,
                            "trial_interval_ms": parameters.trial_int_ms,
                            "extended_rows": parameters.extended_rows,
                        }));
                        return;
                    }
                    Happened::Warning(warning) => {
                        ("warning", warning.to_string(), Some(warning.code()))
                    }
                    Happened::Failed(failure) => {
                        ("failed", failure.to_string(), Some(failure.status()))
                    }
                    Happened::FellBack { server } => (
                        "note",
                        format!("the server speaks version {server} only"),
                        None,
                    ),
                    Happened::GsoRefused => ("warning", super::GSO_REFUSED.into(), None),
                    Happened::BusyPacing { late } => ("warning", late_timers(*late), None),
                    Happened::SocketError { errno } => {
                        ("note", ringmill_engine::error_name(*errno).into(), None)
                    }
                    _ => return,
                };
                line(&json!({
                    "type": kind,
                    "direction": self.direction(*test),
                    "connection": event.connection,
                    "words": words,
                    "code": code,
                }));
            }
        }
    }
}
