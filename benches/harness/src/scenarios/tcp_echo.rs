//! TCP echo of 32 bytes against servers on four async runtimes.

use crate::report::{Cell, Goal, Outcome, best_peer, column, named, ratio};
use crate::rounds::interleave;
use crate::setup::Setup;

use super::{DRIVERS, EchoLoad, duration, echo_candidate, peer_echo, serve};

const ROUNDS: u32 = 7;
const SECONDS: f64 = 5.0;
const SIZE: usize = 32;
const PEERS: [&str; 4] = ["tokio", "monoio", "compio", "glommio"];

/// At many connections: messages/s against the best peer, and CPU per message.
const RATE_RATIO_MIN: f64 = 1.05;
const CPU_RATIO_MAX: f64 = 0.94;
/// With one connection the wake-up of a CPU is all there is to measure.
const RATE_RATIO_MIN_SINGLE: f64 = 0.97;
/// The rest of the server's CPU is the kernel's. Ticks are coarse, so only a
/// window of 30 s in sum can show it.
const USER_SHARE_MAX: f64 = 0.03;
const USER_SHARE_SECONDS: f64 = 30.0;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let rounds = setup.rounds(ROUNDS);
    let seconds = setup.seconds(SECONDS);
    let many = if setup.quick { 1000 } else { 10_000 };
    let mut cells = Vec::new();
    for (connections, depth) in [(1, 1), (100, 1), (many, 1), (1, 64), (100, 64), (many, 64)] {
        let title = format!("{connections} connections × depth {depth}, {SIZE} B");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("tcp-echo: {title}");
        let load = EchoLoad {
            scheme: "tcp",
            connections,
            size: SIZE,
            depth,
            seconds,
            extra: "--no-verify",
        };
        let mut candidates = Vec::new();
        for driver in DRIVERS {
            let server = serve(setup, "echo", "tcp", driver);
            candidates.push(echo_candidate(
                setup,
                &format!("ringmill {driver}"),
                false,
                server,
                load,
            ));
        }
        for peer in PEERS {
            let server = peer_echo(setup, &format!("peer-echo-{peer}"), false);
            candidates.push(echo_candidate(setup, peer, true, server, load));
        }
        let series = interleave(setup, rounds, &candidates);

        let ours = named(&series, "ringmill uring");
        let best = best_peer(&series, "messages_per_s", true);
        let least_cpu = best_peer(&series, "cpu_ns", false);
        let mut goals = Vec::new();
        let rate = ratio(ours, best, "messages_per_s");
        if connections == 1 {
            goals.push(Goal::at_least(
                "uring, messages/s to the best peer",
                rate,
                RATE_RATIO_MIN_SINGLE,
            ));
        } else {
            goals.push(Goal::at_least(
                "uring, messages/s to the best peer",
                rate,
                RATE_RATIO_MIN,
            ));
            let cpu = ratio(ours, best, "cpu_ns");
            let least = ratio(ours, least_cpu, "cpu_ns")
                .zip(least_cpu)
                .map_or(String::new(), |(ratio, peer)| {
                    format!(" ({ratio:.3} of {}'s, the lowest)", peer.name)
                });
            goals.push(Goal::at_most(
                format!("uring, CPU per message to that peer's{least}"),
                cpu,
                CPU_RATIO_MAX,
            ));
        }
        goals.push(Goal::at_least(
            "epoll, messages/s to tokio",
            ratio(
                named(&series, "ringmill epoll"),
                named(&series, "tokio"),
                "messages_per_s",
            ),
            1.0,
        ));
        if depth == 1 {
            let share = ours.and_then(|ours| {
                let (user, system) = (ours.sum("user_s")?, ours.sum("system_s")?);
                (user + system > 0.0).then(|| user / (user + system))
            });
            let window = f64::from(rounds) * seconds;
            let short = if window < USER_SHARE_SECONDS {
                ", too short to judge"
            } else {
                ""
            };
            goals.push(Goal::at_most(
                format!(
                    "uring, user share of the server's CPU over {}{short}",
                    duration(window)
                ),
                share,
                USER_SHARE_MAX,
            ));
        }
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "tcp-echo",
        about: "Messages of 32 bytes, echoed over loopback TCP. Every server runs one thread on one \
                CPU and is driven by the same `ringmill load` on another. CPU per message is the \
                server's, user and system; it is steadier than the rate, which also depends on how \
                fast the load can go.",
        columns: vec![
            column("messages_per_s", "messages/s", 1.0, 0).with_ratio(),
            column("cpu_ns", "server CPU, ns/message", 1.0, 0).with_ratio(),
            column("user_ns", "user ns", 1.0, 0),
            column("system_ns", "system ns", 1.0, 0),
            column("server_busy", "server busy, %", 0.01, 0),
            column("load_busy", "load busy, %", 0.01, 0),
            column("p50_ns", "p50, µs", 1e3, 1),
            column("p99_ns", "p99, µs", 1e3, 1),
        ],
        best_by: ("messages_per_s", true),
        cells,
        notes: vec![
            "the load does not compare the bytes here, so that it is not the limit; verify-soak does"
                .into(),
            "where the load is busier than the server, the rate is the load's and CPU per message \
             is the server's figure"
                .into(),
        ],
    })
}
