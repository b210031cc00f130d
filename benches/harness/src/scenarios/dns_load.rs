//! Open-loop DNS load over TCP, ringmill's beside tcpscaler's, against the same echo server: the highest
//! rate that each really reaches, what happens when more is asked for, how exactly a rate is kept, and
//! what latency each measures.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::drive::{TimedWindow, start_server};
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::dns_programs::{
    Client, Conditions, PEER, QUERY_BYTES, Server, clients, commands, final_report, highest,
};
use super::serve;

const ROUNDS: u32 = 3;
const SECONDS: f64 = 4.0;
const CONNECTIONS: [usize; 2] = [5, 2_000];
const RATIO_MIN: f64 = 2.0;
/// More than the maximum is asked for, so much more.
const BEYOND: f64 = 1.5;
/// Past the maximum, of the maximum: it does not collapse.
const BEYOND_RATIO_MIN: f64 = 0.9;
/// Shares of the maximum at which a rate must be kept exactly.
const SHARES_PERCENT: [u32; 5] = [10, 20, 40, 60, 80];
const DEVIATION_PERCENT_MAX: f64 = 0.1;
/// The random part of a Poisson count over this long is small.
const ACCURACY_SECONDS: f64 = 20.0;
const LATENCY_RATE: f64 = 100_000.0;
const LATENCY_CONNECTIONS: usize = 2_000;
const LATENCY_SECONDS: f64 = 10.0;
const P99_MS_MAX: f64 = 1.0;
/// Slow enough that the clients' lateness does not shape the gaps, and that recording costs nothing.
const GAPS_RATE: f64 = 1_000.0;
const GAPS_SECONDS: f64 = 10.0;
/// Kolmogorov and Smirnov's statistic times the root of the number of gaps, at a level of 1 %.
const GAPS_STATISTIC_MAX: f64 = 1.63;
/// A CPU that sleeps between two queries wakes up too late for those that follow another closely: one
/// that spins does not.
const SPINNING: Client = Client::Ringmill("poisson --busy-poll 10ms");
const SPINNING_NAME: &str = "ringmill --busy-poll 10ms";
/// Before it sends, tcpscaler pauses for 8 s and more; opening comes on top.
const PEER_PAUSE: Duration = Duration::from_secs(12);
const GRACE: Duration = Duration::from_secs(60);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let mut cells = Vec::new();
    for connections in CONNECTIONS {
        let connections = scaled(setup, connections);
        let title = format!("highest honest rate, {connections} connections");
        let mut maxima: Vec<(Client, f64)> = Vec::new();
        if setup.wants_cell(&title) {
            let cell = highest_cell(setup, title, connections);
            for client in clients(setup) {
                let found = named(&cell.series, &client.name());
                let rate = found.and_then(|found| found.median("honest_per_s"));
                maxima.extend(rate.map(|rate| (client, rate)));
            }
            cells.push(cell);
        }
        let title = format!("accuracy, {connections} connections");
        if setup.wants_cell(&title) {
            cells.push(accuracy_cell(setup, title, connections, &maxima)?);
        }
    }
    let connections = scaled(setup, LATENCY_CONNECTIONS);
    let rate = if setup.quick { 5_000.0 } else { LATENCY_RATE };
    let title = format!("latency, {connections} connections, {rate} queries/s");
    if setup.wants_cell(&title) {
        cells.push(latency_cell(setup, title, connections, rate));
    }
    let title = format!("gaps between queries, 5 connections, {GAPS_RATE} queries/s");
    if setup.wants_cell(&title) {
        cells.push(gaps_cell(setup, title));
    }
    Ok(Outcome {
        scenario: "dns-load",
        about: "DNS queries over TCP at a set rate, whether or not answers come, from one thread to one \
                echo server. A rate is honest when queries that reached the server and answers that the \
                client has read are within 1 % of what was asked for, and nothing is lost.",
        columns: vec![
            column("honest_per_s", "highest honest rate, queries/s", 1.0, 0).with_ratio(),
            column("beyond_asked", "asked beyond it", 1.0, 0),
            column("beyond_per_s", "answers/s then", 1.0, 0).with_spread(),
            column("asked_per_s", "asked, queries/s", 1.0, 0),
            column("achieved_per_s", "achieved", 1.0, 0),
            column("deviation_percent", "deviation, %", 1.0, 3).with_spread(),
            column("chance_percent", "of which chance explains, % (3 σ)", 1.0, 3),
            column("unsent", "not sent", 1.0, 0),
            column("p50_ns", "p50, ms", 1e6, 3),
            column("p99_ns", "p99, ms", 1e6, 3).with_spread(),
            column("p99_9_ns", "p99.9, ms", 1e6, 3),
            column("gaps_statistic", "D·√n of the gaps", 1.0, 2).with_spread(),
            column("server_busy", "server CPU", 1.0, 2),
            column("load_busy", "client CPU", 1.0, 2),
        ],
        best_by: ("honest_per_s", true),
        cells,
        notes: vec![
            format!("the server is {} on one thread", echo(setup).name()),
            "highest rates: both clients are counted by the kernel on their sockets (`ss`), after a second, \
             over the window: bytes that the server's kernel has confirmed, and bytes that the client has \
             read. tcpscaler reports nothing itself, and its -R would slow it down"
                .into(),
            "the search doubles the rate until one is missed twice, then halves the ratio between reached \
             and missed until it is 3 %"
                .into(),
            "accuracy: all queries that the server received from beginning to end, divided by the seconds \
             that the client was told; a Poisson count has a random part of its own, so the constant \
             arrivals show what the client adds"
                .into(),
            "latency: ringmill's is from the instant at which a query was meant to leave; tcpscaler's is \
             its own (-R, written to memory) from the moment at which it handed a query to its library, \
             without the first second"
                .into(),
            "gaps: the records of all (`--record`, -R), compared with the exponential distribution of the \
             asked rate by Kolmogorov and Smirnov's test. Of two queries within the time that a sleeping CPU \
             takes to wake up, some 50 µs in this virtual machine, both leave at once; a spinning one keeps \
             the schedule"
                .into(),
        ],
    })
}

fn scaled(setup: &Setup, connections: usize) -> usize {
    if setup.quick {
        connections.min(100)
    } else {
        connections
    }
}

fn echo(setup: &Setup) -> Server {
    match setup.echo_server.as_str() {
        "tcpscaler" => Server::Peer,
        _ => Server::Ringmill,
    }
}

fn highest_cell(setup: &Setup, title: String, connections: usize) -> Cell {
    eprintln!("dns-load: {title}");
    let candidates: Vec<Candidate<'_>> = clients(setup)
        .into_iter()
        .map(|client| {
            let conditions = Conditions {
                client,
                server: echo(setup),
                connections,
                rate: 100_000.0,
                seconds: setup.seconds(SECONDS),
            };
            Candidate {
                name: client.name(),
                peer: client == Client::Peer,
                commands: commands(setup, conditions),
                run: Box::new(move || {
                    let found = highest(setup, conditions)?;
                    let asked = (found.rate * BEYOND).round();
                    let beyond = Conditions {
                        rate: asked,
                        ..conditions
                    }
                    .probe(setup);
                    let mut more = vec![("beyond_asked", asked)];
                    let said = match beyond {
                        Ok(beyond) => {
                            more.extend([
                                ("beyond_per_s", beyond.answered_per_s),
                                ("beyond_ratio", beyond.answered_per_s / found.rate),
                                ("said_so", f64::from(u8::from(beyond.said_so()))),
                            ]);
                            beyond.report
                        }
                        // What breaks past its maximum has still reached it.
                        Err(error) => json!({ "failed": format!("{error:#}") }),
                    };
                    Ok(found.into_run(more, said))
                }),
            }
        })
        .collect();
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let ours = named(&series, "ringmill");
    let goals = vec![
        Goal::at_least(
            "highest honest rate to tcpscaler's",
            ratio(ours, named(&series, PEER), "honest_per_s"),
            RATIO_MIN,
        ),
        Goal::at_least(
            format!("answers/s when {BEYOND} times the maximum is asked for, of the maximum"),
            ours.and_then(|ours| ours.median("beyond_ratio")),
            BEYOND_RATIO_MIN,
        ),
        Goal::at_least(
            "it says then that it is the limit (1: yes)",
            ours.and_then(|ours| ours.median("said_so")),
            1.0,
        ),
    ];
    Cell {
        title,
        series,
        goals,
    }
}

/// A rate of the accuracy table.
struct Row {
    client: Client,
    percent: u32,
    rate: f64,
}

impl Row {
    fn name(&self) -> String {
        match self.client {
            Client::Ringmill(arrivals) => format!("ringmill, {arrivals}, {} %", self.percent),
            Client::Peer => format!("{PEER}, {} %", self.percent),
        }
    }
}

fn accuracy_cell(
    setup: &Setup,
    title: String,
    connections: usize,
    maxima: &[(Client, f64)],
) -> anyhow::Result<Cell> {
    eprintln!("dns-load: {title}");
    let seconds = setup.seconds(ACCURACY_SECONDS).ceil();
    let maximum = |client: Client| -> anyhow::Result<f64> {
        if let Some((_, rate)) = maxima.iter().find(|(found, _)| *found == client) {
            return Ok(*rate);
        }
        eprint!("  {} first finds its maximum:", client.name());
        let conditions = Conditions {
            client,
            server: Server::Ringmill,
            connections,
            rate: 0.0,
            seconds: setup.seconds(SECONDS),
        };
        let found = highest(setup, conditions)?.rate;
        eprintln!();
        Ok(found)
    };
    let mut rows = Vec::new();
    for client in clients(setup) {
        let kinds = match client {
            Client::Ringmill(_) => vec![Client::Ringmill("constant"), client],
            Client::Peer => vec![client],
        };
        if !kinds.iter().any(|kind| setup.wants_candidate(&kind.name())) {
            continue;
        }
        let maximum = maximum(client)?;
        for percent in SHARES_PERCENT {
            rows.extend(kinds.iter().map(|kind| Row {
                client: *kind,
                percent,
                rate: (maximum * f64::from(percent) / 100.0).round(),
            }));
        }
    }
    let candidates: Vec<Candidate<'_>> = rows
        .iter()
        .map(|row| {
            let conditions = Conditions {
                client: row.client,
                server: Server::Ringmill,
                connections,
                rate: row.rate,
                seconds,
            };
            Candidate {
                name: row.name(),
                peer: row.client == Client::Peer,
                commands: commands(setup, conditions),
                run: Box::new(move || accuracy(setup, conditions)),
            }
        })
        .collect();
    let series = interleave(setup, setup.rounds(1), &candidates);
    let goals = rows
        .iter()
        .filter(|row| matches!(row.client, Client::Ringmill(_)))
        .filter_map(|row| {
            let found = named(&series, &row.name())?;
            let deviation = found.median("deviation_percent").map(f64::abs);
            let chance = match row.client {
                Client::Ringmill("poisson") => found.median("chance_percent").unwrap_or(0.0),
                _ => 0.0,
            };
            let text = format!("{}: deviation of the achieved rate, %", row.name());
            Some(Goal::at_most(
                text,
                deviation,
                ((DEVIATION_PERCENT_MAX + chance) * 1e3).round() / 1e3,
            ))
        });
    let goals = goals.collect();
    Ok(Cell {
        title,
        series,
        goals,
    })
}

/// One whole load, counted by the server from beginning to end.
fn accuracy(setup: &Setup, conditions: Conditions) -> anyhow::Result<Run> {
    let (server, address) = start_server(
        &serve(setup, "echo", "tcp", "uring")?,
        "tcp",
        setup.server_cpu,
    )?;
    let port = address.rsplit(':').next().context("no port")?;
    let Conditions {
        client,
        connections,
        rate,
        seconds,
        ..
    } = conditions;
    let (line, _) = client.line(setup, port, connections, rate, seconds)?;
    let load = Running::start(&line, setup.load_cpu)?;
    let window = TimedWindow::start(setup, &server, &load)?;
    let report = match client {
        Client::Ringmill(_) => final_report(&load, Duration::from_secs_f64(seconds))?,
        Client::Peer => {
            let deadline = Instant::now() + Duration::from_secs_f64(seconds) + PEER_PAUSE + GRACE;
            while load.next_line(deadline)?.is_some() {}
            Value::Null
        }
    };
    let noise = window.finish()?.noise;
    drop(load);
    let received = stopped_counter(server, "received_bytes")? / QUERY_BYTES;
    let achieved = received / seconds;
    let values = [
        ("asked_per_s", rate),
        ("achieved_per_s", achieved),
        ("deviation_percent", (achieved / rate - 1.0) * 100.0),
        ("chance_percent", 300.0 / (rate * seconds).sqrt()),
        (
            "unsent",
            report["dns"]["unsent"].as_f64().unwrap_or(f64::NAN),
        ),
    ];
    let known = values.into_iter().filter(|(_, value)| !value.is_nan());
    Ok(Run {
        values: known.collect(),
        noise,
        detail: json!({"received": received, "report": report}),
    })
}

/// One of the counters that a server prints at its end.
///
/// # Errors
/// It does not.
pub(super) fn stopped_counter(server: Running, name: &str) -> anyhow::Result<f64> {
    let shown = server.name().to_owned();
    server
        .stop()
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|event| event["type"] == "stopped")
        .and_then(|event| event["counters"][name].as_f64())
        .with_context(|| format!("`{shown}` did not say its {name} at its end"))
}

fn latency_cell(setup: &Setup, title: String, connections: usize, rate: f64) -> Cell {
    eprintln!("dns-load: {title}");
    let seconds = setup.seconds(LATENCY_SECONDS).ceil();
    let recorded = setup.tcpscaler.is_some();
    let candidates: Vec<Candidate<'_>> = [Client::Ringmill("poisson"), Client::Peer]
        .into_iter()
        .filter(|client| *client != Client::Peer || recorded)
        .map(|client| {
            let conditions = Conditions {
                client,
                server: Server::Ringmill,
                connections,
                rate,
                seconds,
            };
            Candidate {
                name: client.name(),
                peer: client == Client::Peer,
                commands: commands(setup, conditions),
                run: Box::new(move || latency(setup, conditions)),
            }
        })
        .collect();
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let ours = named(&series, "ringmill");
    let goals = vec![Goal::at_most(
        "p99, ms",
        ours.and_then(|ours| ours.median("p99_ns"))
            .map(|ns| ns / 1e6),
        P99_MS_MAX,
    )];
    Cell {
        title,
        series,
        goals,
    }
}

fn latency(setup: &Setup, conditions: Conditions) -> anyhow::Result<Run> {
    if conditions.client == Client::Peer {
        let (record, run) = recorded(setup, conditions)?;
        let mut rtt_us = record.rtt_us;
        ensure!(!rtt_us.is_empty(), "no answer in the record");
        rtt_us.sort_unstable();
        let at = |share: f64| {
            let last = rtt_us.len() - 1;
            rtt_us[(last as f64 * share).round() as usize] as f64 * 1e3
        };
        let mut run = run;
        run.values.extend([
            ("asked_per_s", conditions.rate),
            ("p50_ns", at(0.5)),
            ("p99_ns", at(0.99)),
            ("p99_9_ns", at(0.999)),
        ]);
        return Ok(run);
    }
    let probe = conditions.probe(setup)?;
    let time = &probe.report["response_time"];
    let mut values = std::collections::BTreeMap::from([
        ("asked_per_s", conditions.rate),
        ("achieved_per_s", probe.answered_per_s),
        ("server_busy", probe.server_busy),
        ("load_busy", probe.load_busy),
        ("unsent", probe.missing()),
    ]);
    for (key, field) in [
        ("p50_ns", "p50_ns"),
        ("p99_ns", "p99_ns"),
        ("p99_9_ns", "p99.9_ns"),
    ] {
        let found = time[field].as_f64();
        values.insert(key, found.with_context(|| format!("no {field}"))?);
    }
    Ok(Run {
        values,
        noise: probe.noise,
        detail: probe.report,
    })
}

fn gaps_cell(setup: &Setup, title: String) -> Cell {
    eprintln!("dns-load: {title}");
    let named_clients = clients(setup)
        .into_iter()
        .map(|client| (client.name(), client))
        .chain([(SPINNING_NAME.to_owned(), SPINNING)]);
    let candidates: Vec<Candidate<'_>> = named_clients
        .map(|(name, client)| {
            let conditions = Conditions {
                client,
                server: Server::Ringmill,
                connections: 5,
                rate: GAPS_RATE,
                seconds: setup.seconds(GAPS_SECONDS).ceil(),
            };
            Candidate {
                name,
                peer: client == Client::Peer,
                commands: commands(setup, conditions),
                run: Box::new(move || {
                    let (record, mut run) = recorded(setup, conditions)?;
                    let gaps: Vec<f64> = record
                        .sent_s
                        .windows(2)
                        .map(|pair| pair[1] - pair[0])
                        .collect();
                    ensure!(!gaps.is_empty(), "no query in the record");
                    run.values.extend([
                        ("asked_per_s", conditions.rate),
                        (
                            "gaps_statistic",
                            exponential_statistic(gaps, conditions.rate),
                        ),
                    ]);
                    Ok(run)
                }),
            }
        })
        .collect();
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let goals = ["ringmill", SPINNING_NAME].map(|name| {
        Goal::at_most(
            format!("{name}: D·√n against exponential gaps, level 1 %"),
            named(&series, name).and_then(|ours| ours.median("gaps_statistic")),
            GAPS_STATISTIC_MAX,
        )
    });
    Cell {
        title,
        series,
        goals: goals.into(),
    }
}

/// The largest distance between the gaps' distribution and the exponential one of this rate, times the
/// root of their number.
fn exponential_statistic(mut gaps: Vec<f64>, rate: f64) -> f64 {
    gaps.sort_unstable_by(f64::total_cmp);
    let count = gaps.len() as f64;
    let distance = gaps.iter().enumerate().map(|(index, gap)| {
        let expected = 1.0 - (-gap * rate).exp();
        let below = index as f64 / count;
        (expected - below)
            .abs()
            .max((below + 1.0 / count - expected).abs())
    });
    distance.fold(0.0, f64::max) * count.sqrt()
}

/// What a record of queries and answers says, without its first second.
#[derive(Debug, Default, PartialEq)]
struct Record {
    /// When queries left, seconds.
    sent_s: Vec<f64>,
    /// Of the answers.
    rtt_us: Vec<u64>,
}

impl Record {
    /// Reads tcpscaler's columns: type, timestamp, connection, query, Poisson process, interval, RTT.
    fn parse(text: &str) -> Record {
        let mut record = Record::default();
        let mut first = None;
        for line in text.lines() {
            let fields: Vec<&str> = line.split(',').collect();
            let Some(at) = fields.get(1).and_then(|at| at.parse::<f64>().ok()) else {
                continue;
            };
            if at < *first.get_or_insert(at) + 1.0 {
                continue;
            }
            match fields[0] {
                "Q" => record.sent_s.push(at),
                "A" => record
                    .rtt_us
                    .extend(fields.get(6).and_then(|rtt| rtt.parse::<u64>().ok())),
                _ => {}
            }
        }
        record
    }
}

/// A file in memory for a record, gone when dropped.
struct RecordFile(PathBuf);

impl RecordFile {
    fn new() -> RecordFile {
        let memory = PathBuf::from("/dev/shm");
        let folder = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        RecordFile(folder.join(format!("ringmill-bench-{}.csv", std::process::id())))
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_file(&self.0);
    }
}

/// A load that writes its record, against ringmill's server.
fn recorded(setup: &Setup, conditions: Conditions) -> anyhow::Result<(Record, Run)> {
    let file = RecordFile::new();
    let (server, port) = Server::Ringmill.start(setup)?;
    let Conditions {
        client,
        connections,
        rate,
        seconds,
        ..
    } = conditions;
    // One second is left out.
    let (line, _) = client.line(setup, &port.to_string(), connections, rate, seconds + 1.0)?;
    let path = file.0.display();
    let line = match client {
        Client::Ringmill(_) => line.args(&format!("--record {path}")),
        Client::Peer => Line::new("sh")
            .args("-c")
            // The pipe to here stays open, so that its end is the program's.
            .joined(&Line::new(format!("exec \"$0\" \"$@\" -R 3>&1 >{path}")))
            .joined(&line),
    };
    let load = Running::start(&line, setup.load_cpu)?;
    let window = TimedWindow::start(setup, &server, &load)?;
    let deadline = Instant::now() + Duration::from_secs_f64(seconds) + PEER_PAUSE + GRACE;
    while load.next_line(deadline)?.is_some() {}
    let noise = window.finish()?.noise;
    drop(load);
    let text = fs::read_to_string(&file.0).context("there is no record")?;
    let record = Record::parse(&text);
    let values = std::collections::BTreeMap::from([(
        "achieved_per_s",
        record.sent_s.len() as f64 / seconds,
    )]);
    Ok((
        record,
        Run {
            detail: json!(values),
            values,
            noise,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_without_their_first_second() {
        let text = "type,timestamp,connection_id,query_id,poisson_id,poisson_interval_us,rtt_us\n\
                    Q,100.000000000,0,0,7,,\nA,100.900000000,0,0,,,9\n\
                    Q,101.500000000,1,1,7,,\nA,101.600000000,1,1,,,120\nA,101.7,1,1,,,\nQ,bad\n";
        let expected = Record {
            sent_s: vec![101.5],
            rtt_us: vec![120],
        };
        assert_eq!(Record::parse(text), expected);
    }

    #[test]
    fn exponential_gaps_are_told_from_others() {
        const COUNT: u32 = 10_000;
        let steps = (0..COUNT).map(|step| (f64::from(step) + 0.5) / f64::from(COUNT));
        let exponential: Vec<f64> = steps.clone().map(|u| -(1.0 - u).ln() / 50.0).collect();
        let even: Vec<f64> = steps.map(|u| u / 25.0).collect();
        assert!(exponential_statistic(exponential.clone(), 50.0) < 0.1);
        assert!(exponential_statistic(exponential, 55.0) > GAPS_STATISTIC_MAX);
        assert!(exponential_statistic(even, 50.0) > GAPS_STATISTIC_MAX);
    }
}
