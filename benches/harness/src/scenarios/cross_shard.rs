//! A message between two threads: ringmill's mailbox against an eventfd each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::host::NoiseGauge;
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

const ROUNDS: u32 = 5;
const AWAKE_NS_MAX: f64 = 50.0;
/// Wakes that a receiver which never sleeps may cost the sender, per message.
const BELLS_AWAKE_MAX: f64 = 0.0;
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let title = "one sender, one receiver, a CPU each".to_owned();
    eprintln!("cross-shard: {title}");
    let candidates = [
        candidate(setup, "mailbox", false, "ringmill-bench-bell"),
        candidate(setup, "eventfd per message", true, "peer-bell"),
    ];
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let ours = named(&series, "mailbox");
    let median = |key| ours.and_then(|ours| ours.median(key));
    let goals = vec![
        Goal::at_most("ns per message, awake", median("awake_ns"), AWAKE_NS_MAX),
        Goal::at_most(
            "wakes per message, awake",
            median("bells_awake"),
            BELLS_AWAKE_MAX,
        ),
    ];
    Ok(Outcome {
        scenario: "cross-shard",
        about: "Awake: the receiver polls without sleeping, time per message over a long run. \
                Sleeping: the receiver blocks in the kernel, time from before the message is posted \
                until the receiver runs, one message at a time; and what the post itself cost the \
                sender.",
        columns: vec![
            column("awake_ns", "awake, ns/message", 1.0, 1).with_ratio(),
            column("wake_p50_ns", "sleeping, until it runs, p50 µs", 1e3, 1).with_ratio(),
            column("wake_p99_ns", "p99 µs", 1e3, 1),
            column("send_p50_ns", "sender's part, p50 µs", 1e3, 2),
            column("bells_awake", "wakes per message, awake", 1.0, 6),
            column("bells_sleeping", "wakes per message, sleeping", 1.0, 3),
        ],
        best_by: ("awake_ns", false),
        cells: vec![Cell {
            title,
            series,
            goals,
        }],
        notes: Vec::new(),
    })
}

fn candidate<'a>(setup: &'a Setup, name: &str, peer: bool, program: &'static str) -> Candidate<'a> {
    let line = move || -> anyhow::Result<Line> {
        let counts = if setup.quick {
            "--messages 200000 --wakes 300"
        } else {
            ""
        };
        Ok(setup.peer(program)?.args(&format!(
            "--receiver-cpu {} --sender-cpu {} {counts}",
            setup.server_cpu, setup.load_cpu
        )))
    };
    Candidate {
        name: name.into(),
        peer,
        commands: line().ok().iter().map(Line::shown).collect(),
        run: Box::new(move || {
            // It pins its own two threads, so where it is started is no matter.
            let running = Running::start(&line()?, setup.load_cpu)?;
            let gauge = NoiseGauge::start(setup.cpus(), &[running.pid()]);
            let output = running.finish(Instant::now() + TIMEOUT)?.join("\n");
            let noise = gauge.finish();
            let report: Value = serde_json::from_str(&output).context("its report is no JSON")?;
            Ok(Run {
                values: figures(&report)?,
                noise,
                detail: report,
            })
        }),
    }
}

fn figures(report: &Value) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let mut values = BTreeMap::new();
    for (key, path) in [
        ("awake_ns", "/awake_ns_per_message"),
        ("wake_p50_ns", "/sleeping_wake_ns/p50"),
        ("wake_p99_ns", "/sleeping_wake_ns/p99"),
        ("send_p50_ns", "/sleeping_send_ns/p50"),
        ("bells_awake", "/bells_per_message/awake"),
        ("bells_sleeping", "/bells_per_message/sleeping"),
    ] {
        let value = report.pointer(path).and_then(Value::as_f64);
        values.insert(
            key,
            value.with_context(|| format!("the report has no {path}"))?,
        );
    }
    Ok(values)
}
