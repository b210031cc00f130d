//! What spinning instead of sleeping does for one message at a time.

use crate::process::Line;
use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::interleave;
use crate::setup::Setup;

use super::{DRIVERS, EchoLoad, echo_candidate, serve};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 3.0;
/// Longer than a round trip between two spinning ends, by far.
const SPIN: &str = "--busy-poll 50us";
const P50_RATIO_MAX: f64 = 0.25;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let mut cells = Vec::new();
    for driver in DRIVERS {
        let title = format!("1 connection × depth 1, 32 B, {driver}");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("latency-busy-poll: {title}");
        let load = |extra| EchoLoad {
            scheme: "tcp",
            connections: 1,
            size: 32,
            depth: 1,
            seconds: setup.seconds(SECONDS),
            extra,
        };
        let server = || serve(setup, "echo", "tcp", driver);
        let spinning = server().map(|line: Line| line.args(SPIN));
        let candidates = [
            // The baseline of the ratios, so it stands in the peer's place.
            echo_candidate(setup, "sleeping", true, server(), load("--no-verify")),
            echo_candidate(
                setup,
                "spinning",
                false,
                spinning,
                load("--no-verify --busy-poll 50us"),
            ),
        ];
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let goals = vec![Goal::at_most(
            "p50 spinning to sleeping",
            ratio(
                named(&series, "spinning"),
                named(&series, "sleeping"),
                "p50_ns",
            ),
            P50_RATIO_MAX,
        )];
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "latency-busy-poll",
        about: "Round-trip time of one message at a time over one loopback connection, with both \
                ends sleeping between messages and with both ends spinning for up to 50 µs first.",
        columns: vec![
            column("p50_ns", "p50, µs", 1e3, 2).with_ratio(),
            column("p99_ns", "p99, µs", 1e3, 2).with_ratio(),
            column("messages_per_s", "messages/s", 1.0, 0),
            column("server_busy", "server busy, %", 0.01, 0),
        ],
        best_by: ("p50_ns", false),
        cells,
        notes: vec!["the load runs on its default driver in both".into()],
    })
}
