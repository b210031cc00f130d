//! DNS queries over UDP from 5 sockets: how many get no answer, counted exactly.
//!
//! A datagram on loopback is lost only where a socket's receive queue is full, and the kernel counts each.
//! Each run has a network namespace of its own, so that nobody else's datagrams are in those counts.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::drive::{TimedWindow, start_server};
use crate::namespace::Namespace;
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::dns_load::stopped_counter;
use super::dns_programs::{Client, clients, final_report, peer};
use super::serve;

const ROUNDS: u32 = 3;
const SECONDS: f64 = 10.0;
const SOCKETS: usize = 5;
const RATES: [f64; 2] = [100_000.0, 200_000.0];
const LOSS_PERCENT_MAX: f64 = 0.01;
/// tcpscaler sends nothing for 5 s.
const PEER_PAUSE: Duration = Duration::from_secs(6);
const GRACE: Duration = Duration::from_secs(60);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS).ceil();
    let mut cells = Vec::new();
    for rate in RATES {
        let rate = if setup.quick { rate / 50.0 } else { rate };
        let title = format!("{SOCKETS} sockets, {rate} queries/s");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("dns-udp: {title}");
        let candidates: Vec<Candidate<'_>> = clients(setup)
            .into_iter()
            .map(|client| candidate(setup, client, rate, seconds))
            .collect();
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let ours = named(&series, "ringmill");
        let figure = |key: &str| ours.and_then(|ours| ours.median(key));
        let goals = vec![
            Goal::at_most(
                "queries without an answer, %",
                figure("loss_percent"),
                LOSS_PERCENT_MAX,
            ),
            Goal::at_most("queries not sent", figure("unsent"), 0.0),
        ];
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "dns-udp",
        about: "DNS queries over UDP at a set rate from one thread to `ringmill serve echo` on one thread, \
                in a network namespace of their own.",
        columns: vec![
            column("sent_per_s", "queries sent/s", 1.0, 0),
            column("sent", "queries sent", 1.0, 0),
            column("lost", "without an answer", 1.0, 0),
            column("loss_percent", "loss, %", 1.0, 4).with_spread(),
            column("drops", "dropped by sockets (kernel)", 1.0, 0),
            column("server_drops", "of these by the server's", 1.0, 0),
            column("unsent", "not sent", 1.0, 0),
            column("after_end", "answers after the client's end", 1.0, 0),
            column("p99_ns", "p99, ms", 1e6, 3),
        ],
        best_by: ("loss_percent", false),
        cells,
        notes: vec![
            "ringmill matches every answer to its query; its own account is in the table, the kernel's beside \
             it"
                .into(),
            "tcpscaler has no account: queries sent are those that the server received and those that the \
             server's socket dropped; without an answer are all datagrams that the kernel dropped because a \
             socket's queue was full (RcvbufErrors). Answers that came when it had ended are not counted as \
             lost"
                .into(),
        ],
    })
}

/// As it is started, and as it is shown.
fn client_line(
    setup: &Setup,
    client: Client,
    address: &str,
    rate: f64,
    seconds: f64,
) -> anyhow::Result<(Line, Line)> {
    if let Client::Ringmill(arrivals) = client {
        let line = setup.ringmill()?.args(&format!(
            "load dns udp://{address} --connections {SOCKETS} --rate {rate} --arrivals {arrivals} --warmup 0 \
             --duration {seconds}s --shards 1 --cpus {} --json",
            setup.load_cpu
        ));
        return Ok((line.clone(), line));
    }
    let port = address.rsplit(':').next().unwrap_or_default();
    let flags = format!("-p {port} -c {SOCKETS} -r {rate} -t {seconds} 127.0.0.1");
    let (line, shown) = peer(setup, "udpclient")?;
    Ok((line.args(&flags), shown.args(&flags)))
}

fn candidate(setup: &Setup, client: Client, rate: f64, seconds: f64) -> Candidate<'_> {
    let lines = [
        serve(setup, "echo", "udp", "uring"),
        client_line(setup, client, "127.0.0.1:PORT", rate, seconds).map(|(_, shown)| shown),
    ];
    Candidate {
        name: client.name(),
        peer: client == Client::Peer,
        commands: lines.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || measure(setup, client, rate, seconds)),
    }
}

fn measure(setup: &Setup, client: Client, rate: f64, seconds: f64) -> anyhow::Result<Run> {
    let namespace = Namespace::with_loopback("udp")?;
    let (server, address) = start_server(
        &namespace.inside(&serve(setup, "echo", "udp", "uring")?),
        "udp",
        setup.server_cpu,
    )?;
    let (line, _) = client_line(setup, client, &address, rate, seconds)?;
    let load = namespace.start(&line, setup.load_cpu)?;
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
    let counts = UdpCounts::read(&server)?;
    let received = stopped_counter(server, "received_datagrams")?;
    let (sent, lost) = match client {
        Client::Ringmill(_) => {
            let figure = |value: &Value, name: &str| {
                value
                    .as_f64()
                    .with_context(|| format!("a report without {name}"))
            };
            (
                figure(&report["messages_sent"], "messages_sent")?,
                figure(&report["dns"]["lost"], "lost")?,
            )
        }
        Client::Peer => (received + counts.server_drops, counts.drops),
    };
    anyhow::ensure!(sent > 0.0, "no query was sent");
    let mut values = BTreeMap::from([
        ("sent", sent),
        ("sent_per_s", sent / seconds),
        ("lost", lost),
        ("loss_percent", lost / sent * 100.0),
        ("drops", counts.drops),
        ("server_drops", counts.server_drops),
        ("after_end", counts.after_end),
    ]);
    let own = [
        ("unsent", &report["dns"]["unsent"]),
        ("p99_ns", &report["response_time"]["p99_ns"]),
    ];
    values.extend(
        own.into_iter()
            .filter_map(|(key, value)| Some((key, value.as_f64()?))),
    );
    Ok(Run {
        detail: json!({"server_received": received, "report": report}),
        values,
        noise,
    })
}

/// What the kernel counted in the namespace of a process.
#[derive(Debug, PartialEq)]
struct UdpCounts {
    /// Datagrams that found the queue of their socket full, on either side.
    drops: f64,
    /// Of these the sockets that are still there: the server's.
    server_drops: f64,
    /// Datagrams for no socket any more.
    after_end: f64,
}

impl UdpCounts {
    fn read(server: &Running) -> anyhow::Result<UdpCounts> {
        let text = |file: &str| fs::read_to_string(format!("/proc/{}/net/{file}", server.pid()));
        Self::parse(&text("snmp")?, &text("udp")?)
    }

    fn parse(snmp: &str, sockets: &str) -> anyhow::Result<UdpCounts> {
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = lines
            .next()
            .zip(lines.next())
            .context("/proc/net/snmp has no Udp lines")?;
        let named = |name: &str| -> anyhow::Result<f64> {
            let place = names.split(' ').position(|found| found == name);
            place
                .and_then(|place| values.split(' ').nth(place)?.parse().ok())
                .with_context(|| format!("/proc/net/snmp has no {name}"))
        };
        let drops_of = |line: &str| line.split_whitespace().last()?.parse::<f64>().ok();
        Ok(UdpCounts {
            drops: named("RcvbufErrors")?,
            server_drops: sockets.lines().skip(1).filter_map(drops_of).sum(),
            after_end: named("NoPorts")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_the_kernel() {
        let snmp = "Ip: A\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\n\
                    Udp: 50 3 7 60 7\nUdpLite: InDatagrams\nUdpLite: 0\n";
        let sockets =
            "  sl  local_address rem_address drops\n 5: 0100007F:9E5E 00000000:0000 07 2\n";
        let expected = UdpCounts {
            drops: 7.0,
            server_drops: 2.0,
            after_end: 3.0,
        };
        assert_eq!(UdpCounts::parse(snmp, sockets).expect("complete"), expected);
        assert!(UdpCounts::parse("Ip: A\n", sockets).is_err());
    }
}
