//! What a NAT forwards: one flow in bulk against a minimal relay, and small datagrams of many flows
//! against a careful one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::drive::{TimedWindow, run_load, start_server};
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::{DRIVERS, EchoLoad, duration};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 4.0;
const BULK_SIZE: usize = 1222;
const BULK_GBIT_MIN: f64 = 4.0;
/// Against recvfrom and sendto.
const BULK_RATIO_MIN: f64 = 3.0;
const FLOWS: usize = 1000;
const FLOWS_SIZE: usize = 64;
/// Against recvmmsg and one send for each datagram.
const FLOWS_RATIO_MIN: f64 = 1.1;
/// Beyond a program's own seconds.
const GRACE: Duration = Duration::from_secs(30);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS);
    let mut cells = Vec::new();
    let title = format!("{BULK_SIZE} B, one flow in bulk");
    if setup.wants_cell(&title) {
        eprintln!("nat-forward: {title}");
        let mut candidates: Vec<_> = DRIVERS
            .map(|driver| bulk(setup, Relay::Nat(driver), seconds))
            .into();
        candidates.push(bulk(setup, Relay::Peer("simple"), seconds));
        candidates.push(bulk(setup, Relay::Peer("epoll"), seconds));
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let goals = DRIVERS.iter().flat_map(|driver| {
            let ours = named(&series, &format!("nat {driver}"));
            let text = |what| format!("{driver}, {what}");
            let simple = named(&series, "relay simple");
            [
                Goal::at_least(
                    text("Gbit/s"),
                    ours.and_then(|ours| ours.median("gbit_per_s")),
                    BULK_GBIT_MIN,
                ),
                Goal::at_least(
                    text("Gbit/s to the minimal relay"),
                    ratio(ours, simple, "gbit_per_s"),
                    BULK_RATIO_MIN,
                ),
            ]
        });
        let goals = goals.collect();
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    for depth in [1, 8] {
        let title = format!("{FLOWS_SIZE} B, {FLOWS} flows × depth {depth}, echoed");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("nat-forward: {title}");
        let load = EchoLoad {
            scheme: "udp",
            connections: FLOWS,
            size: FLOWS_SIZE,
            depth,
            seconds,
            extra: "--no-verify",
        };
        let mut candidates: Vec<_> = DRIVERS
            .map(|driver| flows(setup, Relay::Nat(driver), load))
            .into();
        candidates.push(flows(setup, Relay::Peer("epoll"), load));
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let goals = DRIVERS.iter().map(|driver| {
            let ours = named(&series, &format!("nat {driver}"));
            let other = named(&series, "relay epoll");
            Goal::at_least(
                format!("{driver}, echoes/s to the relay"),
                ratio(ours, other, "messages_per_s"),
                FLOWS_RATIO_MIN,
            )
        });
        let goals = goals.collect();
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "nat-forward",
        about: "Datagrams through a NAT on one CPU; source and destination share the other. In bulk, \
                only what arrived at the destination counts. Echoed, each message passes the NAT \
                twice. Client and server are ringmill's for every candidate.",
        columns: vec![
            column("gbit_per_s", "Gbit/s arrived", 1.0, 2).with_ratio(),
            column("messages_per_s", "messages/s", 1.0, 0).with_ratio(),
            column("cpu_ns", "relay CPU, ns/message", 1.0, 0).with_ratio(),
            column("server_busy", "relay busy, %", 0.01, 0),
            column("lost_share", "lost, %", 0.01, 2),
        ],
        best_by: ("messages_per_s", true),
        cells,
        notes: vec![
            "relay simple: one client, a thread for each direction, recvfrom and sendto. relay epoll: \
             one thread, recvmmsg of 64 from each readable socket, one sendto for each datagram"
                .into(),
            "the relays here and there ask for the same socket buffers".into(),
        ],
    })
}

/// What stands between client and server.
#[derive(Debug, Clone, Copy)]
enum Relay {
    /// `ringmill nat` on this driver.
    Nat(&'static str),
    /// The peer in this mode.
    Peer(&'static str),
}

impl Relay {
    fn name(self) -> String {
        match self {
            Self::Nat(driver) => format!("nat {driver}"),
            Self::Peer(mode) => format!("relay {mode}"),
        }
    }

    fn line(self, setup: &Setup, to: &str) -> anyhow::Result<Line> {
        let cpu = setup.server_cpu;
        Ok(match self {
            Self::Nat(driver) => setup.ringmill()?.args(&format!(
                "nat 127.0.0.1:0 {to} --shards 1 --cpus {cpu} --driver {driver} --json"
            )),
            Self::Peer(mode) => setup.peer("peer-udp-relay")?.args(&format!(
                "--listen 127.0.0.1:0 --to {to} --mode {mode} --cpu {cpu}"
            )),
        })
    }
}

/// The far end: on the CPU of the load, so that the relay has its own.
fn sink(setup: &Setup, module: &str) -> anyhow::Result<Line> {
    let guard = match module {
        "echo" => "--per-source-rate 0",
        _ => "",
    };
    Ok(setup.ringmill()?.args(&format!(
        "serve {module} udp://127.0.0.1:0 --shards 1 --cpus {} --json {guard}",
        setup.load_cpu
    )))
}

fn flood(setup: &Setup, address: &str, seconds: f64) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args(&format!(
        "load flood udp://{address} --size {BULK_SIZE} --duration {} --warmup {} --shards 1 --cpus {} \
         --json",
        duration(seconds),
        duration(setup.warmup_seconds()),
        setup.load_cpu
    )))
}

fn bulk(setup: &Setup, relay: Relay, seconds: f64) -> Candidate<'_> {
    let shown = [
        sink(setup, "discard").ok(),
        relay.line(setup, "127.0.0.1:PORT").ok(),
        flood(setup, "127.0.0.1:PORT", seconds).ok(),
    ];
    Candidate {
        name: relay.name(),
        peer: matches!(relay, Relay::Peer(_)),
        commands: shown.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || {
            let (sink, to) = start_server(&sink(setup, "discard")?, "udp", setup.load_cpu)?;
            let (relay, address) = start_server(&relay.line(setup, &to)?, "udp", setup.server_cpu)?;
            let load = Running::start(&flood(setup, &address, seconds)?, setup.load_cpu)?;
            let deadline =
                Instant::now() + Duration::from_secs_f64(seconds + setup.warmup_seconds()) + GRACE;
            let mut begun = None;
            let report = loop {
                let said = load.next_line(deadline)?.with_context(|| {
                    format!("the flood ended without a report{}", load.complaint())
                })?;
                let event: Value = serde_json::from_str(&said).unwrap_or_default();
                match event["type"].as_str() {
                    Some("measuring") => {
                        sink.pending_lines().for_each(drop);
                        let own = [&sink, &load].map(Running::pid);
                        begun = Some(TimedWindow::beside(setup, &relay, &own)?);
                    }
                    Some("report") => break event,
                    _ => {}
                }
            };
            let window = begun
                .context("the flood never began to measure")?
                .finish()?;
            let values = super::udp_oneway::discard_figures(sink.pending_lines())
                .context("the discard server printed no interval while measured")?;
            let sent = report["messages_per_s"].as_f64().unwrap_or(0.0);
            let mut values: BTreeMap<_, _> = values;
            if sent > 0.0 {
                values.insert(
                    "lost_share",
                    (1.0 - values["messages_per_s"] / sent).max(0.0),
                );
            }
            drop(load.finish(deadline)?);
            Ok(window.into_run(values))
        }),
    }
}

fn flows(setup: &Setup, relay: Relay, load: EchoLoad) -> Candidate<'_> {
    let shown = [
        sink(setup, "echo").ok(),
        relay.line(setup, "127.0.0.1:PORT").ok(),
        load.line(setup, "127.0.0.1:PORT").ok(),
    ];
    Candidate {
        name: relay.name(),
        peer: matches!(relay, Relay::Peer(_)),
        commands: shown.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || -> anyhow::Result<Run> {
            let (sink, to) = start_server(&sink(setup, "echo")?, "udp", setup.load_cpu)?;
            let (relay, address) = start_server(&relay.line(setup, &to)?, "udp", setup.server_cpu)?;
            let line = load.line(setup, &address)?;
            run_load(setup, &relay, &[sink.pid()], &line, load.seconds)
        }),
    }
}
