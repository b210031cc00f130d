//! Datagrams one way: against bare loops, which are the ceiling, and iperf3.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::drive::{TimedWindow, start_server};
use crate::host::NoiseGauge;
use crate::process::{Line, Running, version};
use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::{DRIVERS, duration, serve};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 4.0;
/// Of the bare loop with offload on both sides.
const BARE_RATIO_MIN: f64 = 0.9;
/// Datagram sizes, and the goal against iperf3 at each.
const SIZES: [(usize, f64); 2] = [(1222, 5.0), (8972, 2.5)];
/// iperf3 binds before this; it has no line that a program could wait for.
const IPERF_START: Duration = Duration::from_millis(500);
/// Beyond a program's own seconds.
const GRACE: Duration = Duration::from_secs(30);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS);
    let mut cells = Vec::new();
    for (size, iperf_ratio_min) in SIZES {
        let title = format!("{size} B");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("udp-oneway: {title}");
        let mut candidates: Vec<Candidate<'_>> = DRIVERS
            .map(|driver| ringmill(setup, driver, size, seconds))
            .into();
        candidates.push(bare(setup, "gso", size, seconds));
        candidates.push(bare(setup, "plain", size, seconds));
        candidates.push(iperf3(setup, size, seconds));
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let mut goals = Vec::new();
        for driver in DRIVERS {
            let ours = named(&series, &format!("ringmill {driver}"));
            for (other, limit) in [
                ("bare GSO+GRO", BARE_RATIO_MIN),
                ("iperf3", iperf_ratio_min),
            ] {
                let found = ratio(ours, named(&series, other), "gbit_per_s");
                goals.push(Goal::at_least(
                    format!("{driver}, Gbit/s to {other}"),
                    found,
                    limit,
                ));
            }
        }
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "udp-oneway",
        about: "Datagrams sent as fast as one CPU can and received on another. Only payload that \
                arrived counts; the rest was dropped at the receiver's full socket.",
        columns: vec![
            column("gbit_per_s", "Gbit/s received", 1.0, 2).with_ratio(),
            column("messages_per_s", "datagrams/s", 1.0, 0).with_ratio(),
            column("cpu_ns", "receiver CPU, ns/datagram", 1.0, 0),
            column("server_busy", "receiver busy, %", 0.01, 0),
        ],
        best_by: ("gbit_per_s", true),
        cells,
        notes: vec![
            format!("iperf3: {}", version("iperf3")),
            "iperf3's rate is from the bytes its server received; its loss figures are wrong with \
             --omit. It sends and receives one datagram per system call"
                .into(),
            "the bare loops send and receive in two threads of one process, so they have no CPU \
             column"
                .into(),
        ],
    })
}

/// `ringmill load flood` into `ringmill serve discard`: the server's own count
/// of what arrived, averaged over its intervals within the measured window.
fn ringmill<'a>(setup: &'a Setup, driver: &'a str, size: usize, seconds: f64) -> Candidate<'a> {
    let flood = move |address: &str| -> anyhow::Result<Line> {
        Ok(setup.ringmill()?.args(&format!(
            "load flood udp://{address} --size {size} --duration {} --warmup {} --shards 1 \
             --cpus {} --driver {driver} --json",
            duration(seconds),
            duration(setup.warmup_seconds()),
            setup.load_cpu
        )))
    };
    let lines = [
        serve(setup, "discard", "udp", driver).ok(),
        flood("127.0.0.1:PORT").ok(),
    ];
    Candidate {
        name: format!("ringmill {driver}"),
        peer: false,
        commands: lines.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || {
            let line = serve(setup, "discard", "udp", driver)?;
            let (server, address) = start_server(&line, "udp", setup.server_cpu)?;
            let load = Running::start(&flood(&address)?, setup.load_cpu)?;
            let deadline =
                Instant::now() + Duration::from_secs_f64(seconds + setup.warmup_seconds()) + GRACE;
            let mut begun = None;
            loop {
                let said = load.next_line(deadline)?.with_context(|| {
                    format!("the flood ended without a report{}", load.complaint())
                })?;
                let event: Value = serde_json::from_str(&said).unwrap_or_default();
                match event["type"].as_str() {
                    Some("measuring") => {
                        // Intervals so far belong to the warm-up.
                        server.pending_lines().for_each(drop);
                        begun = Some(TimedWindow::start(setup, &server, &load)?);
                    }
                    Some("report") => break,
                    _ => {}
                }
            }
            let window = begun
                .context("the flood never began to measure")?
                .finish()?;
            // Now, not later: an interval that ends after the flood is no measure.
            let values = discard_figures(server.pending_lines())
                .context("the discard server printed no interval while measured")?;
            drop(load.finish(deadline)?);
            Ok(window.into_run(values))
        }),
    }
}

/// The mean of the intervals, without the first, which began in the warm-up.
pub(super) fn discard_figures(
    lines: impl Iterator<Item = String>,
) -> Option<BTreeMap<&'static str, f64>> {
    let intervals: Vec<(f64, f64)> = lines
        .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
        .filter(|event| event["type"] == "interval")
        .filter_map(|event| {
            Some((
                event["datagrams_per_s"].as_f64()?,
                event["bytes_per_s"].as_f64()?,
            ))
        })
        .collect();
    let whole = if intervals.len() > 1 {
        &intervals[1..]
    } else {
        &intervals[..]
    };
    let count = whole.len() as f64;
    let sum = whole
        .iter()
        .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    (count > 0.0 && sum.0 > 0.0).then(|| {
        BTreeMap::from([
            ("messages_per_s", sum.0 / count),
            ("gbit_per_s", sum.1 / count * 8.0 / 1e9),
        ])
    })
}

fn bare<'a>(setup: &'a Setup, mode: &'a str, size: usize, seconds: f64) -> Candidate<'a> {
    let line = move || -> anyhow::Result<Line> {
        Ok(setup.peer("peer-udp-bare")?.args(&format!(
            "--mode {mode} --size {size} --seconds {seconds} --warmup {} --receiver-cpu {} \
             --sender-cpu {}",
            setup.warmup_seconds(),
            setup.server_cpu,
            setup.load_cpu
        )))
    };
    Candidate {
        name: if mode == "gso" {
            "bare GSO+GRO".into()
        } else {
            "bare without".into()
        },
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
            let values = BTreeMap::from([
                ("messages_per_s", figure("datagrams_per_s")?),
                ("gbit_per_s", figure("gbit_per_s")?),
            ]);
            Ok(Run {
                values,
                noise,
                detail: report,
            })
        }),
    }
}

fn iperf3(setup: &Setup, size: usize, seconds: f64) -> Candidate<'_> {
    // Whole seconds are all that it takes.
    let whole = seconds.ceil().max(1.0);
    let lines = move |port: &str| {
        let server = Line::new("iperf3").args(&format!("-s -1 -p {port}"));
        let client = Line::new("iperf3").args(&format!(
            "-c 127.0.0.1 -p {port} -u -b 0 -l {size} -t {whole} -O 1 -J"
        ));
        (server, client)
    };
    let (server, client) = lines("PORT");
    Candidate {
        name: "iperf3".into(),
        peer: true,
        commands: vec![server.shown(), client.shown()],
        run: Box::new(move || {
            let (server, client) = lines(&free_port()?.to_string());
            let server = Running::start(&server, setup.server_cpu)?;
            std::thread::sleep(IPERF_START);
            let client = Running::start(&client, setup.load_cpu)?;
            // One second is omitted by its own flag.
            std::thread::sleep(Duration::from_secs(1));
            let window = TimedWindow::start(setup, &server, &client)?;
            std::thread::sleep(Duration::from_secs_f64(whole * 0.8));
            let window = window.finish()?;
            let output = client.finish(Instant::now() + GRACE)?.join("\n");
            Ok(window.into_run(iperf3_figures(&output, size)?))
        }),
    }
}

/// What iperf3's server received, from the client's JSON.
fn iperf3_figures(output: &str, size: usize) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let report: Value = serde_json::from_str(output).context("iperf3's report is no JSON")?;
    let received = &report["end"]["sum_received"];
    let bits_per_s = received["bits_per_second"]
        .as_f64()
        .context("iperf3 has no sum_received")?;
    ensure!(bits_per_s > 0.0, "iperf3 received nothing");
    Ok(BTreeMap::from([
        ("messages_per_s", bits_per_s / 8.0 / size as f64),
        ("gbit_per_s", bits_per_s / 1e9),
    ]))
}

/// A port that is free for TCP and UDP now; for programs that must be told.
pub(super) fn free_port() -> anyhow::Result<u16> {
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free for both TCP and UDP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_without_the_first() {
        let interval = |rate: f64| {
            format!(
                r#"{{"type":"interval","datagrams_per_s":{rate},"bytes_per_s":{}}}"#,
                rate * 1e9
            )
        };
        let of = |rates: &[f64]| {
            let lines: Vec<String> = rates.iter().map(|rate| interval(*rate)).collect();
            discard_figures(lines.into_iter()).map(|figures| figures["gbit_per_s"])
        };
        for (rates, expected) in [
            (&[][..], None),
            (&[3.0], Some(24.0)),
            (&[1.0, 3.0, 5.0], Some(32.0)),
            (&[0.0], None),
        ] {
            assert_eq!(of(rates), expected, "{rates:?}");
        }
    }

    #[test]
    fn iperf3_counts_what_arrived() {
        let text = r#"{"end":{"sum":{"bytes":99},"sum_received":{"bits_per_second":9776000000}}}"#;
        let figures = iperf3_figures(text, 1222).expect("complete");
        assert_eq!(figures["messages_per_s"], 1e6);
        assert!(iperf3_figures("{}", 1222).is_err());
        assert!(iperf3_figures("iperf3: error", 1222).is_err());
    }
}
