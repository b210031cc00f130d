//! unbound, a real DNS server, under `ringmill load dns` with many TCP connections: every answer must
//! match its query.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::drive::TimedWindow;
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::dns_programs::{final_report, with_libraries};
use super::udp_oneway::free_port;

const SECONDS: f64 = 60.0;
const CONNECTIONS: u64 = 1_000;
/// unbound on one CPU takes more; this is a run of correctness, not of its limit.
const RATE: u64 = 20_000;
/// What users begin with, and the name it answers.
const CONFIGURATION: &str = include_str!("../../../../tuning/unbound-many-tcp.conf");
const NAME: &str = "example.com";
/// unbound cuts its patience with idle connections when half of what it may hold is taken.
const ROOM: u64 = 4;
/// What CONFIGURATION has room for.
const SLOTS: u64 = 4_000;
const START_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS);
    let quick = setup.quick;
    let connections = setup
        .connections
        .unwrap_or(if quick { 50 } else { CONNECTIONS });
    let rate = setup.rate.unwrap_or(if quick { 1_000 } else { RATE });
    let title = format!("{connections} TCP connections, {rate} queries/s, {seconds} s");
    eprintln!("dns-unbound: {title}");
    let load = load_line(setup, "PORT", connections, rate, seconds);
    let shown = ["unbound -d -c tuning/unbound-many-tcp.conf".to_owned()]
        .into_iter()
        .chain(load.ok().map(|line| line.shown()));
    let candidates = [Candidate {
        name: "unbound".into(),
        peer: false,
        commands: shown.collect(),
        run: Box::new(move || measure(setup, connections, rate, seconds)),
    }];
    let series = interleave(setup, setup.rounds(1), &candidates);
    let figure = |key: &str| series[0].median(key);
    let goals = vec![
        Goal::at_least(
            "queries answered and matched, of those sent",
            figure("matched_share"),
            1.0,
        ),
        Goal::at_most(
            "answers late, duplicated, unknown or malformed",
            figure("strange"),
            0.0,
        ),
        Goal::at_most("answers that are no NOERROR", figure("other_codes"), 0.0),
        Goal::at_most(
            "connections lost or failed",
            figure("connection_errors"),
            0.0,
        ),
        Goal::at_least("seconds", figure("seconds"), seconds),
    ];
    Ok(Outcome {
        scenario: "dns-unbound",
        about: "unbound answers one name from its local data on one CPU; `ringmill load dns` asks over many \
                TCP connections on the other, at a rate that unbound can take.",
        columns: vec![
            column("sent", "queries sent", 1.0, 0),
            column("lost", "without an answer", 1.0, 0),
            column("strange", "late, duplicated, unknown, malformed", 1.0, 0),
            column("unsent", "not sent", 1.0, 0),
            column("p50_ns", "p50, ms", 1e6, 3),
            column("p99_ns", "p99, ms", 1e6, 3),
            column("max_ns", "longest, ms", 1e6, 3),
            column("server_busy", "unbound's CPU", 1.0, 2),
        ],
        best_by: ("p99_ns", false),
        cells: vec![Cell {
            title,
            series,
            goals,
        }],
        notes: vec![
            "its configuration is tuning/unbound-many-tcp.conf, at a port of its own".into(),
            "each query is matched with its answer or, after 5 s or when its connection ends, lost: the load \
             waits for the last ones"
                .into(),
            "latency is from the instant at which a query was meant to leave".into(),
        ],
    })
}

fn load_line(
    setup: &Setup,
    port: &str,
    connections: u64,
    rate: u64,
    seconds: f64,
) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args(&format!(
        "load dns tcp://127.0.0.1:{port} --name {NAME} --connections {connections} --rate {rate} --warmup 0 \
         --duration {seconds}s --reset --shards 1 --cpus {} --json",
        setup.load_cpu
    )))
}

/// The example for users at a port of its own, with slots for as many connections.
fn configuration(port: u16, connections: u64) -> String {
    let slots = SLOTS.max(connections * ROOM);
    CONFIGURATION.replace("@5353", &format!("@{port}")).replace(
        &format!("incoming-num-tcp: {SLOTS}"),
        &format!("incoming-num-tcp: {slots}"),
    )
}

/// A folder for the configuration, gone when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A leftover in the folder for temporary files harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The folder above `usr/sbin/unbound` of an unpacked package: its libraries are there.
fn package_root(program: &Path) -> Option<&Path> {
    program.ancestors().nth(3)
}

fn start_unbound(setup: &Setup, folder: &Path, connections: u64) -> anyhow::Result<(Running, u16)> {
    let program = setup
        .unbound
        .as_ref()
        .context("no --unbound PATH was given")?;
    let port = free_port()?;
    let file = folder.join("unbound.conf");
    fs::write(&file, configuration(port, connections))?;
    let line = Line::new(program).args("-d -c").joined(&Line::new(&file));
    let line = match package_root(program) {
        Some(root) if root != Path::new("/") => with_libraries(root, &line),
        _ => line,
    };
    let running = Running::start(&line, setup.server_cpu)?;
    let deadline = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            bail!("unbound does not listen{}", running.complaint());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((running, port))
}

fn measure(setup: &Setup, connections: u64, rate: u64, seconds: f64) -> anyhow::Result<Run> {
    let folder =
        Folder(std::env::temp_dir().join(format!("ringmill-bench-unbound-{}", std::process::id())));
    fs::create_dir_all(&folder.0)?;
    let (unbound, port) = start_unbound(setup, &folder.0, connections)?;
    let line = load_line(setup, &port.to_string(), connections, rate, seconds)?;
    let load = Running::start(&line, setup.load_cpu)?;
    let window = TimedWindow::start(setup, &unbound, &load)?;
    let report = final_report(&load, Duration::from_secs_f64(seconds))?;
    let window = window.finish()?;
    unbound.stop();
    let figure = |value: &Value, name: &str| {
        value
            .as_f64()
            .with_context(|| format!("a report without {name}"))
    };
    let dns = &report["dns"];
    let sent = figure(&report["messages_sent"], "messages_sent")?;
    let lost = figure(&dns["lost"], "lost")?;
    let all = |value: &Value| -> f64 {
        let values = value.as_object().into_iter().flat_map(|map| map.values());
        values.filter_map(Value::as_f64).sum()
    };
    let mut strange = 0.0;
    for key in ["late", "duplicated", "unknown", "malformed"] {
        strange += figure(&dns[key], key)?;
    }
    let no_error = dns["response_codes"]["NOERROR"].as_f64().unwrap_or(0.0);
    let time = &report["response_time"];
    let values = BTreeMap::from([
        ("sent", sent),
        ("matched_share", (sent - lost) / sent.max(1.0)),
        ("lost", lost),
        ("unsent", figure(&dns["unsent"], "unsent")?),
        ("strange", strange),
        ("other_codes", all(&dns["response_codes"]) - no_error),
        (
            "connection_errors",
            figure(&report["connections"]["failed"], "failed")?
                + all(&report["connections"]["closed"]),
        ),
        ("seconds", figure(&report["duration_s"], "duration_s")?),
        ("p50_ns", figure(&time["p50_ns"], "p50_ns")?),
        ("p99_ns", figure(&time["p99_ns"], "p99_ns")?),
        ("max_ns", figure(&time["max_ns"], "max_ns")?),
        ("server_busy", window.server_busy),
    ]);
    Ok(Run {
        values,
        noise: window.noise,
        detail: report,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_changed_in_its_port_and_slots() {
        let text = configuration(1234, 100);
        assert!(text.contains("\n    interface: 127.0.0.1@1234\n"), "{text}");
        assert!(text.contains("\n    incoming-num-tcp: 4000\n"), "{text}");
        let text = configuration(1234, 2_000);
        assert!(text.contains("\n    incoming-num-tcp: 8000\n"), "{text}");
    }
}
