//! `ringmill capacity up|down|both`: the flags of a run, its tests, and how it is reported.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use ringmill_protocols::capacity::parameters::Direction;
use serde_json::json;

use super::figures::TestFigures;
use super::human::{self, Human};
use super::json::{self, Json};
use super::options::OptionArgs;
use crate::args::EngineArgs;
use crate::capacity::{FrontEnd, TestPlan, session};
use crate::exit::Exit;
use crate::fail_if::FailIf;
use crate::signals::EndRequests;
use crate::start::{StartArgs, rfc3339};

/// Which ways load goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ways {
    /// To the servers.
    Up,
    /// From the servers.
    Down,
    /// Both at once: two tests.
    Both,
}

impl Ways {
    fn directions(self) -> &'static [Direction] {
        match self {
            Self::Up => &[Direction::Upstream],
            Self::Down => &[Direction::Downstream],
            Self::Both => &[Direction::Upstream, Direction::Downstream],
        }
    }
}

/// Flags of `ringmill capacity up|down|both`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The servers: HOST, HOST:PORT or [IPV6]:PORT; up to 24.
    #[arg(required = true, value_name = "SERVER")]
    pub servers: Vec<String>,

    /// What is measured.
    #[command(flatten)]
    pub options: OptionArgs,

    /// How it is reported.
    #[command(flatten)]
    pub output: OutputArgs,

    /// When it begins.
    #[command(flatten)]
    pub start: StartArgs,

    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// How a run is reported.
#[derive(Debug, Args)]
#[command(next_help_heading = "Report")]
pub struct OutputArgs {
    /// Test so many times, one after the other, and show median, least and largest capacity.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,

    /// Print NDJSON: one object for each sub-interval, then the report.
    #[arg(long)]
    pub json: bool,

    /// Exit with 3 when this holds, such as 'capacity<900Mbit', 'loss>0.1%'; may be repeated.
    #[arg(long, value_name = "CONDITION")]
    pub fail_if: Vec<FailIf<TestFigures>>,
}

/// Runs it.
///
/// # Errors
/// Flags that contradict each other, servers that are not known, an engine that does not start.
pub(super) fn run(args: &TestArgs, ways: Ways) -> Result<Exit> {
    let signals = EndRequests::watch(std::thread::current())?;
    if !args.start.wait(Duration::ZERO, &signals)? {
        eprintln!("ringmill: interrupted before the test began");
        return Ok(match signals.count() {
            1 => Exit::Failed,
            _ => Exit::Interrupted,
        });
    }
    let plan = || -> Result<Vec<TestPlan>> {
        let directions = ways.directions().iter();
        directions
            .map(|direction| args.options.plan(&args.servers, *direction))
            .collect()
    };
    let (exit, _) = run_plans(&plan, &args.output, &args.engine, &signals)?;
    Ok(exit)
}

/// Runs the tests that `plan` makes, as often as wanted. Returns the figures of the last ones.
///
/// # Errors
/// Those of the plan and of the engine.
pub(super) fn run_plans(
    plan: &dyn Fn() -> Result<Vec<TestPlan>>,
    output: &OutputArgs,
    engine: &EngineArgs,
    signals: &EndRequests,
) -> Result<(Exit, Vec<TestFigures>)> {
    let mut exit = Exit::Ok;
    let mut last = Vec::new();
    let mut capacities: Vec<(&'static str, Vec<f64>)> = Vec::new();
    for round in 1..=output.repeat {
        let plans = plan()?;
        if output.repeat > 1 && !output.json {
            println!("Test {round} of {}", output.repeat);
        }
        let figures = run_once(&plans, output, engine, signals)?;
        for test in &figures {
            if let Some(mbps) = test.capacity_mbps {
                match capacities
                    .iter_mut()
                    .find(|(way, _)| *way == test.direction)
                {
                    Some((_, all)) => all.push(mbps),
                    None => capacities.push((test.direction, vec![mbps])),
                }
            }
        }
        exit = worse(exit, verdict(&figures, output, signals));
        last = figures;
        if signals.count() > 0 {
            break;
        }
    }
    if output.repeat > 1 {
        for (way, all) in &mut capacities {
            summary_of_repeats(way, all, output.json);
        }
    }
    Ok((exit, last))
}

fn run_once(
    plans: &[TestPlan],
    output: &OutputArgs,
    engine: &EngineArgs,
    signals: &EndRequests,
) -> Result<Vec<TestFigures>> {
    let mut human = Human::new(plans);
    let mut json = Json::new(plans);
    let front: &mut dyn FrontEnd = match output.json {
        true => &mut json,
        false => &mut human,
    };
    let started_at = rfc3339(SystemTime::now());
    let outcome = session::run(plans, engine, &|| signals.count() > 0, front)?;
    let figures: Vec<_> = plans
        .iter()
        .zip(&outcome.tests)
        .map(|(plan, outcome)| TestFigures::new(plan, outcome))
        .collect();
    if output.json {
        json::line(&json::report(&figures, &started_at));
    } else {
        for test in &figures {
            if test.verdict != "too few connections" || !test.modes.is_empty() {
                print!("{}", human::report(test, figures.len() > 1));
            }
        }
    }
    Ok(figures)
}

fn verdict(figures: &[TestFigures], output: &OutputArgs, signals: &EndRequests) -> Exit {
    if signals.count() > 1 {
        return Exit::Interrupted;
    }
    let mut exit = Exit::Ok;
    if signals.count() == 0 && figures.iter().any(|test| test.verdict != "complete") {
        exit = Exit::Failed;
    }
    for condition in &output.fail_if {
        for test in figures {
            let verdict = condition.evaluate(test);
            if verdict.is_failure() {
                let way = match figures.len() {
                    1 => String::new(),
                    _ => format!("{}: ", test.direction),
                };
                eprintln!("ringmill: {way}{}", verdict.words());
                exit = worse(exit, Exit::Condition);
            }
        }
    }
    exit
}

/// A failure outweighs a condition, and that outweighs success.
fn worse(one: Exit, other: Exit) -> Exit {
    let rank = |exit: Exit| match exit {
        Exit::Ok => 0,
        Exit::Condition => 1,
        _ => 2,
    };
    if rank(other) > rank(one) { other } else { one }
}

fn summary_of_repeats(way: &str, all: &mut [f64], as_json: bool) {
    all.sort_by(f64::total_cmp);
    let [least, .., largest] = all else {
        return;
    };
    let (least, largest) = (*least, *largest);
    let middle = all.len() / 2;
    let median = match all.len() % 2 {
        1 => all[middle],
        _ => f64::midpoint(all[middle - 1], all[middle]),
    };
    if as_json {
        json::line(&json!({
            "type": "repeats",
            "direction": way,
            "tests": all.len(),
            "capacity_mbps": { "median": median, "min": least, "max": largest },
        }));
    } else {
        println!(
            "\n{} tests {way}: capacity median {median:.2}, least {least:.2}, largest {largest:.2} \
             Mbit/s",
            all.len()
        );
    }
}
