//! How exactly a NAT delays: the added response time against the delay that was set.

use anyhow::Context;

use crate::drive::{run_load, start_server};
use crate::process::Line;
use crate::report::{Cell, Goal, Outcome, column, named};
use crate::rounds::{Candidate, interleave};
use crate::setup::Setup;

use super::{DRIVERS, duration};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 5.0;
const DELAY_MS: f64 = 20.0;
/// On an idle host, at the median.
const ERROR_MS_MAX: f64 = 0.2;
/// So slow that each message finds everybody asleep: the wake-ups are in the figure.
const RATE: &str = "2000/s";

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS);
    let title = format!("{DELAY_MS} ms on the way there");
    eprintln!("nat-delay: {title}");
    let mut candidates = Vec::new();
    for driver in DRIVERS {
        for (name, delay) in [("without", ""), ("with", "--forward delay=20ms")] {
            candidates.push(candidate(
                setup,
                format!("{driver} {name}"),
                driver,
                delay,
                seconds,
            ));
        }
    }
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let goals = DRIVERS.iter().map(|driver| {
        let p50_ns = |name: &str| named(&series, &format!("{driver} {name}"))?.median("p50_ns");
        let added = p50_ns("with").zip(p50_ns("without"));
        let error = added.map(|(with, without)| ((with - without) / 1e6 - DELAY_MS).abs());
        Goal::at_most(
            format!("{driver}, error of the added p50, ms"),
            error,
            ERROR_MS_MAX,
        )
    });
    let goals = goals.collect();
    Ok(Outcome {
        scenario: "nat-delay",
        about: "Echo through a NAT, open loop at 2,000 messages/s over 10 flows, without and with a delay \
                in one direction: what the median response time grows by.",
        columns: vec![
            column("p50_ns", "p50, ms", 1e6, 3).with_spread(),
            column("p99_ns", "p99, ms", 1e6, 3),
            column("cpu_ns", "NAT CPU, ns/message", 1.0, 0),
        ],
        best_by: ("p50_ns", false),
        cells: vec![Cell {
            title,
            series,
            goals,
        }],
        notes: Vec::new(),
    })
}

fn candidate<'a>(
    setup: &'a Setup,
    name: String,
    driver: &'a str,
    delay: &'a str,
    seconds: f64,
) -> Candidate<'a> {
    let echo = move || -> anyhow::Result<Line> {
        Ok(setup.ringmill()?.args(&format!(
            "serve echo udp://127.0.0.1:0 --shards 1 --cpus {} --json",
            setup.load_cpu
        )))
    };
    let nat = move |to: &str| -> anyhow::Result<Line> {
        Ok(setup.ringmill()?.args(&format!(
            "nat 127.0.0.1:0 {to} --shards 1 --cpus {} --driver {driver} --json {delay}",
            setup.server_cpu
        )))
    };
    let load = move |address: &str| -> anyhow::Result<Line> {
        Ok(setup.ringmill()?.args(&format!(
            "load echo udp://{address} --connections 10 --rate {RATE} --duration {} --warmup {} --shards \
             1 --cpus {} --json",
            duration(seconds),
            duration(setup.warmup_seconds()),
            setup.load_cpu
        )))
    };
    let shown = [echo(), nat("127.0.0.1:PORT"), load("127.0.0.1:PORT")];
    Candidate {
        name,
        peer: false,
        commands: shown.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || {
            let (echo, to) = start_server(&echo()?, "udp", setup.load_cpu)?;
            let (nat, address) = start_server(&nat(&to)?, "udp", setup.server_cpu)
                .context("the NAT does not start")?;
            run_load(setup, &nat, &[echo.pid()], &load(&address)?, seconds)
        }),
    }
}
