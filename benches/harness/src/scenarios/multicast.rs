//! Multicast as fast as possible: over streams against a tokio server, in a UDP group against a plain
//! pair of sendto and recvfrom. All messages have 32 bytes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::drive::{run_load, start_server};
use crate::host::NoiseGauge;
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::udp_oneway::free_port;
use super::{DRIVERS, duration};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 3.0;
const RECEIVERS: [usize; 2] = [1, 100];
const GROUP: &str = "239.255.0.7";
/// Against tokio: ahead.
const STREAM_RATIO_MIN: f64 = 1.0;
/// Against sendto and recvfrom.
const GROUP_RATIO_MIN: f64 = 1.3;
/// Beyond a program's own seconds.
const GRACE: Duration = Duration::from_secs(30);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS);
    let mut cells = Vec::new();
    for (place, peer, limit) in [
        ("stream", "tokio", STREAM_RATIO_MIN),
        ("group", "sendto and recvfrom", GROUP_RATIO_MIN),
    ] {
        for receivers in RECEIVERS {
            let title = format!("{place}, {receivers} receivers");
            if !setup.wants_cell(&title) {
                continue;
            }
            eprintln!("multicast: {title}");
            let mut candidates: Vec<_> = DRIVERS
                .map(|driver| match place {
                    "stream" => stream(setup, Some(driver), receivers, seconds),
                    _ => group(setup, driver, receivers, seconds),
                })
                .into();
            candidates.push(match place {
                "stream" => stream(setup, None, receivers, seconds),
                _ => plain(setup, receivers, seconds),
            });
            let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
            let goals = DRIVERS.iter().map(|driver| {
                let ours = named(&series, &format!("ringmill {driver}"));
                let found = ratio(ours, named(&series, peer), "messages_per_s");
                Goal::at_least(format!("{driver}, messages/s to {peer}"), found, limit)
            });
            let goals = goals.collect();
            cells.push(Cell {
                title,
                series,
                goals,
            });
        }
    }
    Ok(Outcome {
        scenario: "multicast",
        about: "32-byte messages from one CPU to receivers on another, as fast as possible. Only \
                what arrived counts, summed over the receivers. In every run of ringmill's receiver \
                sent = received + lost is checked, by number and for each receiver.",
        columns: vec![
            column("messages_per_s", "messages/s received", 1.0, 0).with_ratio(),
            column("cpu_ns", "sender CPU, ns/message", 1.0, 1).with_ratio(),
            column("server_busy", "sender busy, %", 0.01, 0),
            column("load_busy", "receiver busy, %", 0.01, 0),
            column("lost_share", "lost, %", 0.01, 2),
        ],
        best_by: ("messages_per_s", true),
        cells,
        notes: vec![
            "tokio: one task writes blocks of 64 KiB, shared by a task and a bounded channel for each \
             connection; it waits for the slowest, so it loses nothing. ringmill's receiver measures \
             both servers"
                .into(),
            "sendto and recvfrom: a thread for each side, one datagram per system call, epoll over \
             the sockets"
                .into(),
            "in a group nothing holds a sender up: what is beyond the receivers is lost and counted"
                .into(),
        ],
    })
}

fn receive(setup: &Setup, endpoint: &str, receivers: usize, seconds: f64) -> anyhow::Result<Line> {
    let interface = if endpoint.starts_with("udp:") {
        "--interface lo "
    } else {
        ""
    };
    Ok(setup.ringmill()?.args(&format!(
        "load multicast {endpoint} {interface}-c {receivers} --duration {} --warmup {} --shards 1 \
         --cpus {} --json",
        duration(seconds),
        duration(setup.warmup_seconds()),
        setup.load_cpu
    )))
}

/// A report whose numbers do not add up is no result.
fn checked(run: Run) -> anyhow::Result<Run> {
    let counts = &run.detail["datagrams"];
    let count = |key: &str| counts[key].as_u64().with_context(|| format!("no {key}"));
    let (sent, received, lost) = (count("sent")?, count("received")?, count("lost")?);
    ensure!(
        sent + count("duplicated")? + count("late")? == received + lost,
        "the counts do not add up: {counts}"
    );
    Ok(run)
}

/// ringmill's server, or tokio's, to ringmill's receiver.
fn stream<'a>(
    setup: &'a Setup,
    driver: Option<&'a str>,
    receivers: usize,
    seconds: f64,
) -> Candidate<'a> {
    let server = move || -> anyhow::Result<Line> {
        Ok(match driver {
            Some(driver) => setup.ringmill()?.args(&format!(
                "serve multicast tcp://127.0.0.1:0 --rate max --shards 1 --cpus {} --driver \
                 {driver} --no-console --json",
                setup.server_cpu
            )),
            None => setup
                .peer("peer-multicast-tokio")?
                .args(&format!("--listen 127.0.0.1:0 --cpu {}", setup.server_cpu)),
        })
    };
    let lines = [
        server().ok(),
        receive(setup, "tcp://127.0.0.1:PORT", receivers, seconds).ok(),
    ];
    Candidate {
        name: driver.map_or("tokio".into(), |driver| format!("ringmill {driver}")),
        peer: driver.is_none(),
        commands: lines.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || {
            let (server, address) = start_server(&server()?, "tcp", setup.server_cpu)?;
            let load = receive(setup, &format!("tcp://{address}"), receivers, seconds)?;
            checked(run_load(setup, &server, &[], &load, seconds)?)
        }),
    }
}

/// ringmill's sender and receiver.
fn group<'a>(setup: &'a Setup, driver: &'a str, receivers: usize, seconds: f64) -> Candidate<'a> {
    let lines = move |port: &str| -> anyhow::Result<(Line, Line)> {
        let endpoint = format!("udp://{GROUP}:{port}");
        let server = setup.ringmill()?.args(&format!(
            "serve multicast {endpoint} --interface lo --rate max --no-rate-cap --shards 1 --cpus {} \
             --driver {driver} --no-console --json",
            setup.server_cpu
        ));
        let load =
            receive(setup, &endpoint, receivers, seconds)?.args(&format!("--driver {driver}"));
        Ok((server, load))
    };
    Candidate {
        name: format!("ringmill {driver}"),
        peer: false,
        commands: lines("PORT")
            .map(|(server, load)| vec![server.shown(), load.shown()])
            .unwrap_or_default(),
        run: Box::new(move || {
            let (server, load) = lines(&free_port()?.to_string())?;
            // It sends into the void until somebody joins.
            let server = Running::start(&server, setup.server_cpu)?;
            checked(run_load(setup, &server, &[], &load, seconds)?)
        }),
    }
}

fn plain(setup: &Setup, receivers: usize, seconds: f64) -> Candidate<'_> {
    let line = move || -> anyhow::Result<Line> {
        Ok(setup.peer("peer-udp-multicast")?.args(&format!(
            "--receivers {receivers} --seconds {seconds} --warmup {} --receiver-cpu {} --sender-cpu \
             {}",
            setup.warmup_seconds(),
            setup.load_cpu,
            setup.server_cpu
        )))
    };
    Candidate {
        name: "sendto and recvfrom".into(),
        peer: true,
        commands: line().ok().iter().map(Line::shown).collect(),
        run: Box::new(move || {
            // It pins its own two threads, so where it is started is no matter.
            let running = Running::start(&line()?, setup.load_cpu)?;
            let gauge = NoiseGauge::start(setup.cpus(), &[running.pid()]);
            let deadline =
                Instant::now() + Duration::from_secs_f64(seconds + setup.warmup_seconds()) + GRACE;
            let output = running.finish(deadline)?.join("\n");
            let noise = gauge.finish();
            let report: Value = serde_json::from_str(&output).context("its report is no JSON")?;
            let figure = |key: &str| report[key].as_f64().with_context(|| format!("no {key}"));
            let (received, lost) = (figure("received")?, figure("lost")?);
            let values = BTreeMap::from([
                ("messages_per_s", figure("messages_per_s")?),
                ("lost_share", lost / (received + lost).max(1.0)),
            ]);
            Ok(Run {
                values,
                noise,
                detail: report,
            })
        }),
    }
}
