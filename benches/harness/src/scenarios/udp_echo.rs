//! Datagram echo against tokio, and beside sockperf where that is fair.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::drive::TimedWindow;
use crate::process::{Line, Running, version};
use crate::report::{Cell, Goal, Outcome, best_peer, column, named, ratio};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::{DRIVERS, EchoLoad, duration, echo_candidate, peer_echo, serve};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 4.0;
/// With several outstanding our load sends by GSO, so batches arrive.
const RATIO_MIN_BATCHED: f64 = 4.0;
const RATIO_MIN_SINGLE: f64 = 0.97;
/// sockperf has no way to say that it is ready; binding takes it well less.
const SOCKPERF_START: Duration = Duration::from_millis(500);
/// Its client calibrates its clock for two seconds before it says this.
const SOCKPERF_BEGINS: &str = "Starting test";
const SOCKPERF_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS);
    let mut cells = Vec::new();
    for (size, flows, depth) in [
        (32, 1, 1),
        (32, 100, 1),
        (32, 1, 64),
        (32, 1, 256),
        (32, 100, 64),
        (1222, 1, 1),
        (1222, 100, 1),
        (1222, 1, 64),
        (1222, 1, 256),
        (1222, 100, 64),
    ] {
        let title = format!("{size} B, {flows} flows × depth {depth}");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("udp-echo: {title}");
        let load = EchoLoad {
            scheme: "udp",
            connections: flows,
            size,
            depth,
            seconds,
            extra: "--no-verify",
        };
        let mut candidates = Vec::new();
        for driver in DRIVERS {
            let server = serve(setup, "echo", "udp", driver);
            candidates.push(echo_candidate(
                setup,
                &format!("ringmill {driver}"),
                false,
                server,
                load,
            ));
        }
        let tokio = peer_echo(setup, "peer-echo-tokio", true);
        candidates.push(echo_candidate(setup, "tokio", true, tokio, load));
        if flows == 1 && depth == 1 {
            candidates.push(sockperf(setup, size, seconds));
        }
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let limit = if depth == 1 {
            RATIO_MIN_SINGLE
        } else {
            RATIO_MIN_BATCHED
        };
        let best = best_peer(&series, "messages_per_s", true);
        let goals = DRIVERS
            .iter()
            .map(|driver| {
                let ours = named(&series, &format!("ringmill {driver}"));
                let text = format!("{driver}, messages/s to the best peer");
                Goal::at_least(text, ratio(ours, best, "messages_per_s"), limit)
            })
            .collect();
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "udp-echo",
        about: "Datagrams echoed over loopback. Only answers that came back count. With 64 \
                outstanding our load sends by GSO; a server gets the batch only if it asks for GRO.",
        columns: vec![
            column("messages_per_s", "answers/s", 1.0, 0).with_ratio(),
            column("cpu_ns", "server CPU, ns/message", 1.0, 0).with_ratio(),
            column("lost_share", "lost, %", 0.01, 2),
            column("p50_ns", "p50, µs", 1e3, 1),
            column("p99_ns", "p99, µs", 1e3, 1),
            column("server_busy", "server busy, %", 0.01, 0),
            column("load_busy", "load busy, %", 0.01, 0),
        ],
        best_by: ("messages_per_s", true),
        cells,
        notes: vec![
            format!("sockperf: {}", version("sockperf")),
            "sockperf's server answers only its own protocol, so its row is its own client's, one \
             message at a time: comparable as a round trip, not as the same load, and left out of \
             the ratios"
                .into(),
        ],
    })
}

/// sockperf against itself, one flow, one message at a time.
fn sockperf(setup: &Setup, size: usize, seconds: f64) -> Candidate<'_> {
    // Whole seconds are all that it takes.
    let whole = seconds.ceil().max(1.0);
    let lines = move |port: &str| {
        let server = Line::new("sockperf").args(&format!("server -i 127.0.0.1 -p {port}"));
        // A line at a time, so that the start of its test is seen when it is.
        let client = Line::new("stdbuf").args(&format!(
            "-oL sockperf ping-pong -i 127.0.0.1 -p {port} -m {size} -t {whole} --full-rtt"
        ));
        (server, client)
    };
    let (server, client) = lines("PORT");
    Candidate {
        name: "sockperf, own client".into(),
        // Another client: no baseline for a ratio.
        peer: false,
        commands: vec![server.shown(), client.shown()],
        run: Box::new(move || {
            let port = super::udp_oneway::free_port()?.to_string();
            let (server, client) = lines(&port);
            let server = Running::start(&server, setup.server_cpu)?;
            std::thread::sleep(SOCKPERF_START);
            let client = Running::start(&client, setup.load_cpu)?;
            let deadline = Instant::now() + SOCKPERF_TIMEOUT + Duration::from_secs_f64(whole);
            loop {
                match client.next_line(deadline)? {
                    Some(line) if line.contains(SOCKPERF_BEGINS) => break,
                    Some(_) => {}
                    None => anyhow::bail!("sockperf did not begin{}", client.complaint()),
                }
            }
            let window = TimedWindow::start(setup, &server, &client)?;
            std::thread::sleep(Duration::from_secs_f64(whole * 0.8));
            let window = window.finish()?;
            let said = client
                .finish(Instant::now() + Duration::from_secs(30))?
                .join("\n");
            Ok::<Run, anyhow::Error>(window.into_run(sockperf_figures(&said).with_context(
                || {
                    format!(
                        "sockperf said nothing known in {} of output",
                        duration(whole)
                    )
                },
            )?))
        }),
    }
}

/// Round trips per second and percentiles from sockperf's text.
fn sockperf_figures(text: &str) -> Option<BTreeMap<&'static str, f64>> {
    let number_after = |line: &str, label: &str| -> Option<f64> {
        let rest = line.split_once(label)?.1.trim_start_matches([' ', '=']);
        rest.split(|c: char| !(c.is_ascii_digit() || c == '.'))
            .next()?
            .parse()
            .ok()
    };
    let valid = text
        .lines()
        .find(|line| line.contains("[Valid Duration]"))?;
    let received = number_after(valid, "ReceivedMessages=")?;
    let seconds = number_after(valid, "RunTime=")?;
    let percentile = |label: &str| {
        text.lines()
            .find_map(|line| Some(number_after(line, label)? * 1e3))
    };
    Some(BTreeMap::from([
        ("messages_per_s", received / seconds),
        ("p50_ns", percentile("percentile 50.000")?),
        ("p99_ns", percentile("percentile 99.000")?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockperf_text() {
        let text = "sockperf: [Total Run] RunTime=1.000 sec; ReceivedMessages=214675\n\
            sockperf: [Valid Duration] RunTime=0.500 sec; SentMessages=1000; ReceivedMessages=1000\n\
            sockperf: ---> percentile 99.000 =    4.743\n\
            sockperf: ---> percentile 50.000 =    4.147\n";
        let figures = sockperf_figures(text).expect("complete");
        assert_eq!(figures["messages_per_s"], 2000.0);
        assert_eq!(figures["p50_ns"], 4147.0);
        assert_eq!(figures["p99_ns"], 4743.0);
        assert!(sockperf_figures("nothing").is_none());
    }
}
