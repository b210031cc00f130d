//! Members of a chat who never read: what the others lose by them, and what memory they hold.

use crate::process::Line;
use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::{Candidate, interleave};
use crate::setup::Setup;

use super::DRIVERS;
use super::chat_run::{ChatLoad, MEMBERS, measure, serve_chat};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 4.0;
/// To each member before the warm-up: more than the kernel's largest send buffer (4 MiB, by the
/// usual `net.ipv4.tcp_wmem`) and the queue of a session (1 MiB) hold.
const FILL_BYTES: u64 = 8 << 20;
const DEAF_PERCENT: usize = 10;
/// Senders and messages under way.
const LOADS: [(usize, u64); 2] = [(1, 64), (100, 1)];
/// What the others keep of their rate.
const KEPT_MIN: f64 = 0.95;
/// What a session's queue of 32-byte messages may cost beside the messages, which all share: 4096
/// entries of 32 bytes, by `ringmill serve chat`'s default.
const QUEUE_KB_MAX: f64 = 128.0;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let mut cells = Vec::new();
    for (senders, window) in LOADS {
        let all = ChatLoad {
            members: MEMBERS,
            senders,
            window,
            deaf_percent: 0,
            fill_bytes: FILL_BYTES,
            warmup: setup.warmup_seconds(),
            seconds: setup.seconds(SECONDS),
        };
        let title = all.title();
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("chat-slow-readers: {title}");
        let deaf = ChatLoad {
            deaf_percent: DEAF_PERCENT,
            ..all
        };
        let without = ChatLoad {
            members: MEMBERS - MEMBERS * DEAF_PERCENT / 100,
            ..all
        };
        let mut candidates = Vec::new();
        for driver in DRIVERS {
            for (who, load) in [
                ("all read", all),
                ("10 % deaf", deaf),
                ("900 alone", without),
            ] {
                candidates.push(candidate(setup, driver, who, load));
            }
        }
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let goals = DRIVERS.iter().flat_map(|driver| {
            let of = |who: &str| named(&series, &format!("{driver}, {who}"));
            let deaf = of("10 % deaf");
            let beside = ratio(deaf, of("900 alone"), "member_mean")
                .map_or(String::new(), |ratio| format!(" ({ratio:.3} of 900 alone)"));
            let median = |key| deaf.and_then(|deaf| deaf.median(key));
            [
                Goal::at_least(
                    format!("{driver}, rate of a member who reads to the run where all do{beside}"),
                    ratio(deaf, of("all read"), "member_mean"),
                    KEPT_MIN,
                ),
                Goal::at_least(
                    format!("{driver}, slowest to mean of those who read"),
                    median("member_min")
                        .zip(median("member_mean"))
                        .map(|(min, mean)| min / mean),
                    KEPT_MIN,
                ),
                Goal::at_most(
                    format!("{driver}, memory grown, kB, to members × bound"),
                    median("grown_kb"),
                    MEMBERS as f64 * QUEUE_KB_MAX,
                ),
                // Else the queues were never full, and nothing is shown.
                Goal::at_least(
                    format!("{driver}, messages dropped"),
                    median("dropped"),
                    1.0,
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
    Ok(Outcome {
        scenario: "chat-slow-readers",
        about: "The chat with a tenth of its members never reading, against the chat where all read, \
                and against one where the others are alone. The pace is the chat's own (each sender \
                waits for its messages to come back), so that the server is busy all the time and \
                all that it does for those who do not read is taken from the others; at a fixed \
                rate that it can hold, nothing would show. Slow readers have their oldest messages \
                dropped.",
        columns: vec![
            column("member_mean", "messages/s to a member who reads", 1.0, 0).with_spread(),
            column("member_min", "to the slowest of them", 1.0, 0),
            column("cpu_ns", "server CPU, µs/delivery", 1e3, 4),
            column("server_busy", "server busy, %", 0.01, 0),
            column("load_busy", "load busy, %", 0.01, 0),
            column("grown_kb", "memory grown, kB (RssAnon)", 1.0, 0).with_spread(),
            column("dropped", "dropped for slow readers", 1.0, 0),
            column("missed", "missed by those who verify", 1.0, 0),
        ],
        best_by: ("member_mean", true),
        cells,
        notes: vec![
            format!(
                "before it warms up, the load sends {} MiB to everyone, so that the queues of those \
                 who do not read are full; their sockets have the smallest receive buffers",
                FILL_BYTES >> 20
            ),
            format!(
                "bound: {QUEUE_KB_MAX} kB for each of {MEMBERS} members, from 4096 messages of 32 \
                 bytes beside their own, which all share"
            ),
        ],
    })
}

fn candidate<'a>(setup: &'a Setup, driver: &str, who: &str, load: ChatLoad) -> Candidate<'a> {
    let server = serve_chat(setup, driver);
    let commands = [
        server.as_ref().ok().cloned(),
        load.line(setup, "127.0.0.1:PORT").ok(),
    ];
    Candidate {
        name: format!("{driver}, {who}"),
        peer: false,
        commands: commands.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || match &server {
            Ok(server) => {
                let mut measured = measure(setup, server, load)?;
                if let Some(metrics) = &measured.metrics {
                    let dropped = ["oldest", "newest"]
                        .map(|which| metrics.sum(&format!("chat_dropped_{which}_total")));
                    let values = &mut measured.run.values;
                    values.insert("dropped", dropped.iter().sum());
                }
                Ok(measured.run)
            }
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        }),
    }
}
