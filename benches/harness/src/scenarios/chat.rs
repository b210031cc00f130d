//! A chat: what a message to everyone costs, against chats on two runtimes, and what it costs to
//! cross between shards.

use std::collections::BTreeMap;

use crate::process::Line;
use crate::report::{Cell, Column, Goal, Outcome, best_peer, column, named, ratio};
use crate::rounds::{Candidate, Series, interleave};
use crate::setup::Setup;

use super::DRIVERS;
use super::chat_run::{ChatLoad, MEMBERS, Metrics, SHARDS, measure, serve_chat};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 4.0;
/// Senders, and messages that each may have under way. With one message of one sender there is
/// nothing to gather: each delivery is a send.
const LOADS: [(usize, u64); 4] = [(1, 1), (1, 64), (100, 1), (100, 16)];
const PEERS: [&str; 2] = ["tokio", "monoio"];

/// Server CPU per delivery, to the peer that needs least.
const CPU_RATIO_MAX: f64 = 0.5;
/// Deliveries/s, to the fastest peer.
const RATE_RATIO_MIN: f64 = 2.0;
/// A load that is busier than this is the limit of the rate.
const LOAD_BUSY_LIMIT: f64 = 0.95;
/// Per message and other shard.
const QUEUE_OPERATIONS: f64 = 1.0;
/// Bytes stored per byte received: once, whatever the number of shards and members.
const COPIES_MAX: f64 = 1.0;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let mut cells = Vec::new();
    for (senders, window) in LOADS {
        let load = ChatLoad {
            members: MEMBERS,
            senders,
            window,
            deaf_percent: 0,
            fill_bytes: 0,
            warmup: setup.warmup_seconds(),
            seconds: setup.seconds(SECONDS),
        };
        let title = load.title();
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("chat: {title}");
        let ours = DRIVERS.map(|driver| {
            let name = format!("ringmill {driver}");
            candidate(setup, name, false, serve_chat(setup, driver), load)
        });
        let peers = PEERS.map(|peer| {
            let server = peer_chat(setup, &format!("peer-chat-{peer}"));
            candidate(setup, peer.into(), true, server, load)
        });
        let candidates: Vec<_> = ours.into_iter().chain(peers).collect();
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let goals = DRIVERS.iter().flat_map(|driver| goals(&series, driver));
        let goals = goals.collect();
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "chat",
        about: "What one member of a chat sends is delivered to all, the sender too. Messages of 32 \
                bytes, TCP over loopback. A sender sends its next message when one of its own has \
                come back, with so many under way. A delivery is one message arrived at one member. \
                Each message is one write, but what arrives together is passed on together, by all \
                chats here.",
        columns: columns(),
        best_by: ("messages_per_s", true),
        cells,
        notes: vec![
            format!(
                "ringmill runs {SHARDS} shards, which share the servers' CPU here; the peers run one \
                 thread, as many as there are CPUs for them"
            ),
            "senders and ten more members verify order and that nothing comes twice; a fault fails \
             the run"
                .into(),
            "a load busy for 95 % and more was the limit of the rate; then CPU per delivery is the \
             server's figure, and it flatters no one who gathers more for a slow client"
                .into(),
            "per message means per receive that was passed on. A queue operation is a message put \
             into the mailbox of another shard, a doorbell a system call to wake one that slept. \
             Stored is the bytes copied into shared memory for each byte received; no shard and no \
             member copies them again"
                .into(),
        ],
    })
}

fn columns() -> Vec<Column> {
    vec![
        column("messages_per_s", "deliveries/s", 1.0, 0).with_ratio(),
        column("cpu_ns", "server CPU, µs/delivery", 1e3, 4).with_ratio(),
        column("user_ns", "user µs", 1e3, 4),
        column("server_busy", "server busy, %", 0.01, 0),
        column("load_busy", "load busy, %", 0.01, 0),
        column("missed", "missed by those who verify", 1.0, 0),
        column("messages_per_receive", "messages per receive", 1.0, 2),
        column(
            "queue_operations",
            "queue operations/message and shard",
            1.0,
            3,
        ),
        column("stored", "stored, bytes/byte", 1.0, 3),
        column("doorbells", "doorbells/message", 1.0, 4),
        column("delayed", "crossings that waited", 1.0, 0),
    ]
}

fn peer_chat(setup: &Setup, name: &str) -> anyhow::Result<Line> {
    Ok(setup
        .peer(name)?
        .args(&format!("--listen 127.0.0.1:0 --cpus {}", setup.server_cpu)))
}

fn candidate<'a>(
    setup: &'a Setup,
    name: String,
    peer: bool,
    server: anyhow::Result<Line>,
    load: ChatLoad,
) -> Candidate<'a> {
    let commands = [
        server.as_ref().ok().cloned(),
        load.line(setup, "127.0.0.1:PORT").ok(),
    ];
    Candidate {
        name,
        peer,
        commands: commands.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || match &server {
            Ok(server) => {
                let mut measured = measure(setup, server, load)?;
                let metrics = std::mem::take(&mut measured.metrics);
                if let Some(metrics) = metrics {
                    measured.run.values.extend(crossing_figures(&metrics));
                }
                Ok(measured.run)
            }
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        }),
    }
}

/// From the counters of the server over its whole life. None of its members says anything but what
/// the load sends.
fn crossing_figures(metrics: &Metrics) -> BTreeMap<&'static str, f64> {
    let sum = |name: &str| metrics.sum(name);
    let messages = sum("chat_messages_total");
    let message_bytes = sum("chat_message_bytes_total");
    let per_message = |count: f64| count / messages.max(1.0);
    BTreeMap::from([
        (
            "queue_operations",
            per_message(sum("service_messages_total")) / (SHARDS - 1) as f64,
        ),
        ("doorbells", per_message(sum("shard_doorbells_total"))),
        ("delayed", sum("chat_crossings_delayed_total")),
        (
            "stored",
            sum("chat_stored_bytes_total") / sum("service_received_bytes_total").max(1.0),
        ),
        (
            "messages_per_receive",
            per_message(message_bytes / super::chat_run::MESSAGE_BYTES as f64),
        ),
    ])
}

fn goals(series: &[Series], driver: &str) -> Vec<Goal> {
    let ours = named(series, &format!("ringmill {driver}"));
    let median = |key| ours.and_then(|ours| ours.median(key));
    let least_cpu = best_peer(series, "cpu_ns", false);
    let fastest = best_peer(series, "messages_per_s", true);
    let of = |peer: Option<&Series>| peer.map_or("no peer".into(), |peer| peer.name.clone());
    let load_busy = median("load_busy");
    let percent = load_busy.unwrap_or(0.0) * 100.0;
    let rate = ratio(ours, fastest, "messages_per_s");
    let rate_text = format!("{driver}, deliveries/s to {}'s", of(fastest));
    let is_limited = load_busy.is_some_and(|busy| busy >= LOAD_BUSY_LIMIT);
    let rate_goal = if is_limited {
        let found = rate.map_or("–".into(), |rate| format!("{rate:.3}"));
        let text = format!(
            "{rate_text} ({found}, not judged: the load was the limit, busy for {percent:.0} %)"
        );
        Goal::at_least(text, None, RATE_RATIO_MIN)
    } else {
        let text = format!("{rate_text} (load busy for {percent:.0} %)");
        Goal::at_least(text, rate, RATE_RATIO_MIN)
    };
    vec![
        Goal::at_most(
            format!(
                "{driver}, CPU per delivery to {}'s, the least",
                of(least_cpu)
            ),
            ratio(ours, least_cpu, "cpu_ns"),
            CPU_RATIO_MAX,
        ),
        rate_goal,
        Goal::at_most(
            format!("{driver}, queue operations per message and other shard"),
            median("queue_operations"),
            QUEUE_OPERATIONS,
        ),
        Goal::at_most(
            format!("{driver}, bytes stored per byte received"),
            median("stored"),
            COPIES_MAX,
        ),
    ]
}
