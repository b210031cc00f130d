//! Full load with every byte compared, and nothing left over afterwards.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::drive::{run_load, start_server};
use crate::host::{keyed_kb, open_descriptors};
use crate::report::{Cell, Goal, Outcome, column};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::{DRIVERS, EchoLoad, serve};

const ROUNDS: u32 = 1;
const SECONDS: f64 = 60.0;
/// A server closes what its clients closed well before this.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a first connection to make what later ones share.
const PRIMING_SECONDS: f64 = 1.0;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS);
    let mut cells = Vec::new();
    for (scheme, connections, size, depth) in [
        ("tcp", 100, 32, 1),
        ("tcp", 1000, 32, 64),
        ("tcp", 100, 20_000, 4),
        ("udp", 100, 1222, 8),
    ] {
        let title = format!("{scheme}, {connections} connections × depth {depth}, {size} B");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("verify-soak: {title}");
        let load = EchoLoad {
            scheme,
            connections,
            size,
            depth,
            seconds,
            extra: "",
        };
        let candidates = DRIVERS.map(|driver| Candidate {
            name: format!("ringmill {driver}"),
            peer: false,
            commands: [
                serve(setup, "echo", scheme, driver).ok(),
                load.line(setup, "127.0.0.1:PORT").ok(),
            ]
            .iter()
            .flatten()
            .map(crate::process::Line::shown)
            .collect(),
            run: Box::new(move || soak(setup, driver, load)),
        });
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let mut goals = Vec::new();
        for series in &series {
            // A wrong byte or a report without figures fails the run itself.
            for (key, text) in [
                ("wrong_bytes", "wrong bytes"),
                ("lost", "lost over TCP, or errors"),
                ("leaked_descriptors", "descriptors left"),
                ("leaked_buffers", "buffers left"),
            ] {
                let worst = series.spread(key).map(|spread| spread.max);
                if key != "leaked_buffers" || worst.is_some() {
                    goals.push(Goal::at_most(
                        format!("{}: {text}", series.name),
                        worst,
                        0.0,
                    ));
                }
            }
        }
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "verify-soak",
        about: "Echo at full load with every byte compared. Afterwards, with all clients gone, the \
                server must hold as many descriptors (files, and slots in the tables of its rings) \
                as before.",
        columns: vec![
            column("messages_per_s", "messages/s", 1.0, 0),
            column("wrong_bytes", "wrong bytes", 1.0, 0),
            column("lost", "errors", 1.0, 0),
            column("lost_share", "lost datagrams, %", 0.01, 3),
            column("leaked_descriptors", "descriptors left", 1.0, 0),
            column("leaked_buffers", "buffers left", 1.0, 0),
            column("grown_kb", "anonymous memory grown, kB", 1.0, 0),
        ],
        best_by: ("messages_per_s", true),
        cells,
        notes: vec![
            "datagrams may be lost when a socket is full; wrong ones may not come".into(),
            "buffers left are the server's own count when it stops (`buffers_outstanding`), if it \
             gives one"
                .into(),
        ],
    })
}

fn soak(setup: &Setup, driver: &str, load: EchoLoad) -> anyhow::Result<Run> {
    let line = serve(setup, "echo", load.scheme, driver)?;
    let (server, address) = start_server(&line, load.scheme, setup.server_cpu)?;
    // What a first load makes, pools and pages, stays for the next: no leak.
    let priming = EchoLoad {
        seconds: setup.seconds(PRIMING_SECONDS).min(PRIMING_SECONDS),
        ..load
    };
    run_load(
        setup,
        &server,
        &[],
        &priming.line(setup, &address)?,
        priming.seconds,
    )?;
    let before = settled(server.pid(), None)?;
    let memory =
        || keyed_kb(format!("/proc/{}/status", server.pid()), "RssAnon").unwrap_or(0) as f64;
    let memory_before = memory();

    let mut run = run_load(
        setup,
        &server,
        &[],
        &load.line(setup, &address)?,
        load.seconds,
    )?;
    let after = settled(server.pid(), Some(before))?;
    let grown_kb = memory() - memory_before;
    let last_words = server.stop();

    let leaked = (after.0 + after.1) as f64 - (before.0 + before.1) as f64;
    run.values.extend([
        (
            "wrong_bytes",
            run.detail["wrong_bytes"].as_f64().unwrap_or(f64::NAN),
        ),
        ("lost", run.values["errors"]),
        ("leaked_descriptors", leaked),
        ("grown_kb", grown_kb),
    ]);
    let stopped: Vec<Value> = last_words
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let outstanding = stopped
        .iter()
        .rev()
        .find_map(|event| event["buffers_outstanding"].as_f64());
    if let Some(outstanding) = outstanding {
        run.values.insert("leaked_buffers", outstanding);
    }
    run.detail = json!({
        "load": run.detail,
        "descriptors_before": {"files": before.0, "direct": before.1},
        "descriptors_after": {"files": after.0, "direct": after.1},
        "server_stopped": stopped.last(),
    });
    Ok(run)
}

/// Descriptors once the clients' closing has been seen: when they are back to
/// `target`, or else have not changed for a while.
fn settled(server: u32, target: Option<(usize, usize)>) -> anyhow::Result<(usize, usize)> {
    const STEADY_READINGS: u32 = 10;
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    let mut last = open_descriptors(server)?;
    let mut same = 0;
    while Instant::now() < deadline && Some(last) != target {
        std::thread::sleep(Duration::from_millis(100));
        let now = open_descriptors(server)?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        if target.is_none() && same >= STEADY_READINGS {
            break;
        }
    }
    Ok(last)
}
