//! The other end: `ringmill serve echo` beside tcpscaler's tcpserver under the same load, tcpscaler's
//! own client and ours.

use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::dns_programs::{Client, Conditions, Server, clients, commands, highest};

/// Of the search; a search has many runs in it.
const ROUNDS: u32 = 2;
/// Of the runs at a fixed rate.
const ROUNDS_FIXED: u32 = 5;
const SECONDS: f64 = 4.0;
const CONNECTIONS: [usize; 2] = [5, 2_000];
/// Below what each pair of programs reaches.
const FIXED_RATE: f64 = 100_000.0;
const RATE_RATIO_MIN: f64 = 1.3;
const CPU_RATIO_MAX: f64 = 0.7;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let mut cells = Vec::new();
    for client in clients(setup).into_iter().rev() {
        for connections in CONNECTIONS {
            let connections = if setup.quick {
                connections.min(100)
            } else {
                connections
            };
            let who = match client {
                Client::Peer => "tcpscaler's tcpclient",
                Client::Ringmill(_) => "ringmill load dns",
            };
            for fixed in [true, false] {
                cells.extend(cell(setup, client, who, connections, fixed));
            }
        }
    }
    Ok(Outcome {
        scenario: "dns-server",
        about: "Two echo servers of one thread under the same open-loop load of one thread: the highest rate \
                that the pair reaches, and the server's CPU per query at a rate below.",
        columns: vec![
            column("honest_per_s", "highest honest rate, queries/s", 1.0, 0).with_ratio(),
            column("answered_per_s", "answers/s", 1.0, 0),
            column("cpu_ns", "server CPU, ns/query", 1.0, 0).with_ratio(),
            column("server_busy", "server CPU", 1.0, 2),
            column("load_busy", "client CPU", 1.0, 2),
        ],
        best_by: ("server_busy", false),
        cells,
        notes: vec![
            "a goal is reached when either of the two ratios is: 1.3 × the rate, or 0.7 × the CPU per query".into(),
            "where the client is busy and the server is not, the client is the limit of the highest rate".into(),
            "both servers are counted on the client's sockets by the kernel (`ss`)".into(),
        ],
    })
}

fn cell(setup: &Setup, client: Client, who: &str, connections: usize, fixed: bool) -> Option<Cell> {
    let rate = if setup.quick { 5_000.0 } else { FIXED_RATE };
    let what = if fixed {
        format!("{rate} queries/s")
    } else {
        "highest honest rate".into()
    };
    let title = format!("{who}, {connections} connections, {what}");
    if !setup.wants_cell(&title) {
        return None;
    }
    eprintln!("dns-server: {title}");
    let peer = setup.tcpscaler.as_ref().map(|_| Server::Peer);
    let candidates: Vec<Candidate<'_>> = [Server::Ringmill]
        .into_iter()
        .chain(peer)
        .map(|server| {
            let conditions = Conditions {
                client,
                server,
                connections,
                rate,
                seconds: setup.seconds(SECONDS),
            };
            Candidate {
                name: server.name().into(),
                peer: server == Server::Peer,
                commands: commands(setup, conditions),
                run: Box::new(move || match fixed {
                    true => at_fixed_rate(setup, conditions),
                    false => Ok(highest(setup, conditions)?.into_run([], serde_json::Value::Null)),
                }),
            }
        })
        .collect();
    let rounds = if fixed { ROUNDS_FIXED } else { ROUNDS };
    let series = interleave(setup, setup.rounds(rounds), &candidates);
    let ours = named(&series, Server::Ringmill.name());
    let theirs = named(&series, Server::Peer.name());
    let goals = match fixed {
        true => vec![Goal::at_most(
            "CPU per query to tcpserver's",
            ratio(ours, theirs, "cpu_ns"),
            CPU_RATIO_MAX,
        )],
        false => vec![Goal::at_least(
            "queries/s to tcpserver's",
            ratio(ours, theirs, "honest_per_s"),
            RATE_RATIO_MIN,
        )],
    };
    Some(Cell {
        title,
        series,
        goals,
    })
}

fn at_fixed_rate(setup: &Setup, conditions: Conditions) -> anyhow::Result<Run> {
    let probe = conditions.probe(setup)?;
    anyhow::ensure!(
        probe.is_honest(conditions.rate),
        "only {:.0} of {:.0} queries/s were answered: no rate to compare CPU at",
        probe.answered_per_s,
        conditions.rate
    );
    Ok(Run {
        values: std::collections::BTreeMap::from([
            ("answered_per_s", probe.answered_per_s),
            ("cpu_ns", probe.server_busy / probe.answered_per_s * 1e9),
            ("server_busy", probe.server_busy),
            ("load_busy", probe.load_busy),
        ]),
        noise: probe.noise,
        detail: probe.report,
    })
}
