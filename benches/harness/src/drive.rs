//! Drives one server with one load and reads the server's CPU time over the
//! measured window.
//!
//! Every server, ours or not, is driven by the same `ringmill load`. The load
//! prints a JSON object per line: `measuring` when the measured window begins,
//! `interval` while it lasts, `report` at its end. The CPU is read when
//! `measuring` and each `interval` arrive; CPU per message is CPU per second
//! between the first and the last of them, divided by messages per second, so
//! that connecting, warming up and closing are in neither.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::host::{CpuTime, NoiseGauge, cpu_time};
use crate::process::{Line, Running};
use crate::rounds::Run;
use crate::setup::Setup;

/// A server announces itself within this, or it is broken.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Beyond the load's own seconds: 10,000 connections and their end.
const LOAD_GRACE: Duration = Duration::from_secs(60);

/// Starts a server and waits until it listens; the address, `host:port`.
///
/// # Errors
/// It does not start, or never says where it listens.
pub(crate) fn start_server(
    line: &Line,
    scheme: &str,
    cpu: usize,
) -> anyhow::Result<(Running, String)> {
    let (server, mut addresses) = start_servers(line, scheme, 1, cpu)?;
    Ok((server, addresses.remove(0)))
}

/// The same for a server with several endpoints of one scheme.
///
/// # Errors
/// As [`start_server`].
pub(crate) fn start_servers(
    line: &Line,
    scheme: &str,
    endpoints: usize,
    cpu: usize,
) -> anyhow::Result<(Running, Vec<String>)> {
    let server = Running::start(line, cpu)?;
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut addresses = Vec::new();
    while addresses.len() < endpoints {
        let Some(said) = server.next_line(deadline)? else {
            bail!(
                "`{}` ended before it listened{}",
                line.shown(),
                server.complaint()
            );
        };
        addresses.extend(listening_address(&said, scheme));
    }
    Ok((server, addresses))
}

/// The address in a line such as `listening on 127.0.0.1:7000` (peers) or
/// `{"type":"listening","endpoint":"tcp://127.0.0.1:7000"}` (ringmill).
fn listening_address(line: &str, scheme: &str) -> Option<String> {
    if let Some(address) = line.strip_prefix("listening on ") {
        return Some(address.trim().to_owned());
    }
    let event: Value = serde_json::from_str(line).ok()?;
    if event["type"] != "listening" {
        return None;
    }
    let address = event["endpoint"]
        .as_str()?
        .strip_prefix(scheme)?
        .strip_prefix("://")?;
    Some(address.to_owned())
}

/// What was seen of the server and the load at one moment.
struct Moment {
    at: Instant,
    server: CpuTime,
    load: CpuTime,
}

/// Runs the load against the server; figures, noise and the load's report. Processes `beside` them
/// are no noise.
///
/// # Errors
/// Either of them fails, the load reports no figures, or an echo was wrong.
pub(crate) fn run_load(
    setup: &Setup,
    server: &Running,
    beside: &[u32],
    load: &Line,
    seconds: f64,
) -> anyhow::Result<Run> {
    let running = Running::start(load, setup.load_cpu)?;
    let mut own = vec![server.pid(), running.pid()];
    own.extend(beside);
    let deadline =
        Instant::now() + Duration::from_secs_f64(setup.warmup_seconds() + seconds) + LOAD_GRACE;
    let moment = || -> anyhow::Result<Moment> {
        Ok(Moment {
            at: Instant::now(),
            server: cpu_time(own[0]).context("the server died under load")?,
            load: cpu_time(own[1]).unwrap_or_default(),
        })
    };
    let (mut gauge, mut first, mut last) = (None, None, None);
    let (report, noise) = loop {
        let Some(said) = running.next_line(deadline)? else {
            bail!(
                "`{}` ended without a report{}",
                load.shown(),
                running.complaint()
            );
        };
        let Ok(event) = serde_json::from_str::<Value>(&said) else {
            continue;
        };
        match event["type"].as_str() {
            Some("measuring") => {
                gauge = Some(NoiseGauge::start(setup.cpus(), &own));
                first = Some(moment()?);
            }
            Some("interval") if first.is_some() => last = Some(moment()?),
            Some("report") => {
                let gauge: NoiseGauge = gauge.context("a report without `measuring` before it")?;
                break (event, gauge.finish());
            }
            _ => {}
        }
    };
    let (first, last) = first
        .zip(last)
        .context("the load printed no interval, so there is no window to measure CPU in")?;
    drop(running.finish(deadline)?);

    let mut values = figures(&report)?;
    cpu_figures(&mut values, &first, &last);
    Ok(Run {
        values,
        noise,
        detail: report,
    })
}

/// The figures that every scenario may show, from a load's report.
fn figures(report: &Value) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let rate = report["messages_per_s"]
        .as_f64()
        .context("the report has no messages_per_s")?;
    ensure!(rate > 0.0, "not one message came back: {report}");
    let wrong = report["wrong_bytes"].as_f64().unwrap_or(0.0);
    ensure!(wrong == 0.0, "{wrong} bytes came back wrong");
    let errors = report["errors"]
        .as_object()
        .map_or(0.0, |kinds| kinds.values().filter_map(Value::as_f64).sum());
    let mut values = BTreeMap::from([("messages_per_s", rate), ("errors", errors)]);
    let mut add = |key, value: &Value| {
        if let Some(value) = value.as_f64() {
            values.insert(key, value);
        }
    };
    add("bytes_per_s", &report["bytes_per_s"]);
    add("p50_ns", &report["response_time"]["p50_ns"]);
    add("p99_ns", &report["response_time"]["p99_ns"]);
    let udp = &report["datagrams"];
    if let (Some(lost), Some(sent)) = (udp["lost"].as_f64(), udp["sent"].as_f64())
        && sent > 0.0
    {
        values.insert("lost_share", lost / sent);
    }
    Ok(values)
}

fn cpu_figures(values: &mut BTreeMap<&'static str, f64>, first: &Moment, last: &Moment) {
    let wall_s = (last.at - first.at).as_secs_f64();
    let used = |now: fn(&CpuTime) -> f64| now(&last.server) - now(&first.server);
    let (total_s, user_s, system_s) = (
        used(|t| t.total_s),
        used(|t| t.user_s),
        used(|t| t.system_s),
    );
    let per_message_ns = total_s / wall_s / values["messages_per_s"] * 1e9;
    // The kernel's split is sampled in ticks; its proportions apply to the sum.
    let user_share = if user_s + system_s > 0.0 {
        user_s / (user_s + system_s)
    } else {
        0.0
    };
    values.extend([
        ("cpu_ns", per_message_ns),
        ("user_ns", per_message_ns * user_share),
        ("system_ns", per_message_ns * (1.0 - user_share)),
        ("user_s", user_s),
        ("system_s", system_s),
        ("server_busy", total_s / wall_s),
        (
            "load_busy",
            (last.load.total_s - first.load.total_s) / wall_s,
        ),
    ]);
}

/// CPU and noise over a fixed time, for programs that announce no window.
pub(crate) struct TimedWindow<'a> {
    server: &'a Running,
    gauge: NoiseGauge,
    start: Instant,
    before: CpuTime,
}

impl<'a> TimedWindow<'a> {
    /// Begins now.
    ///
    /// # Errors
    /// The server is gone.
    pub(crate) fn start(
        setup: &Setup,
        server: &'a Running,
        load: &Running,
    ) -> anyhow::Result<Self> {
        Self::beside(setup, server, &[load.pid()])
    }

    /// The same with several processes beside the server that are no noise.
    ///
    /// # Errors
    /// The server is gone.
    pub(crate) fn beside(
        setup: &Setup,
        server: &'a Running,
        beside: &[u32],
    ) -> anyhow::Result<Self> {
        let own: Vec<u32> = beside.iter().copied().chain([server.pid()]).collect();
        Ok(TimedWindow {
            server,
            gauge: NoiseGauge::start(setup.cpus(), &own),
            start: Instant::now(),
            before: cpu_time(server.pid())?,
        })
    }

    /// Ends now: CPU per message at this rate, and the noise.
    ///
    /// # Errors
    /// The server is gone.
    pub(crate) fn finish(self) -> anyhow::Result<Window> {
        let after = cpu_time(self.server.pid())?;
        Ok(Window {
            server_busy: (after.total_s - self.before.total_s) / self.start.elapsed().as_secs_f64(),
            noise: self.gauge.finish(),
        })
    }
}

/// What a [`TimedWindow`] saw.
pub(crate) struct Window {
    /// CPU seconds of the server per second.
    pub(crate) server_busy: f64,
    /// As for every run.
    pub(crate) noise: crate::host::Noise,
}

impl Window {
    /// A run of a program that reports nothing but its rate.
    pub(crate) fn into_run(self, mut values: BTreeMap<&'static str, f64>) -> Run {
        values.insert("server_busy", self.server_busy);
        if let Some(rate) = values
            .get("messages_per_s")
            .copied()
            .filter(|rate| *rate > 0.0)
        {
            values.insert("cpu_ns", self.server_busy / rate * 1e9);
        }
        Run {
            detail: json!(values),
            values,
            noise: self.noise,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_lines() {
        let cases = [
            ("listening on 127.0.0.1:7000", "tcp", Some("127.0.0.1:7000")),
            (
                r#"{"type":"listening","endpoint":"tcp://[::1]:7000","shard":0}"#,
                "tcp",
                Some("[::1]:7000"),
            ),
            (
                r#"{"type":"listening","endpoint":"udp://127.0.0.1:7000"}"#,
                "tcp",
                None,
            ),
            (r#"{"type":"started"}"#, "tcp", None),
            ("hello", "tcp", None),
        ];
        for (line, scheme, expected) in cases {
            assert_eq!(
                listening_address(line, scheme).as_deref(),
                expected,
                "{line}"
            );
        }
    }

    #[test]
    fn reports() {
        let good = json!({
            "messages_per_s": 1000.0, "wrong_bytes": 0, "errors": {"reset": 2, "refused": 1},
            "response_time": {"p50_ns": 5, "p99_ns": 9}, "datagrams": {"sent": 8, "lost": 2},
        });
        let values = figures(&good).expect("complete");
        for (key, expected) in [("errors", 3.0), ("p50_ns", 5.0), ("lost_share", 0.25)] {
            assert_eq!(values[key], expected, "{key}");
        }
        for bad in [
            json!({}),
            json!({"messages_per_s": 0.0}),
            json!({"messages_per_s": 5.0, "wrong_bytes": 1}),
        ] {
            assert!(figures(&bad).is_err(), "{bad}");
        }
    }
}
