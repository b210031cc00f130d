//! Runs ringmill and its peers side by side, round by round, and writes what
//! came out with the machine and the commands that made it.
//!
//! It must never decide anything from a run on a busy machine, and a goal that
//! is missed is a result, not an error: the exit code is 0 then, too. It is 1
//! when a scenario could not be run or its results not be written, 2 for wrong
//! flags.

mod drive;
mod host;
mod namespace;
mod process;
mod report;
mod rounds;
mod scenarios;
mod setup;
mod stats;
mod tcp_info;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::setup::Setup;

fn main() -> ExitCode {
    let list: String = scenarios::ALL
        .iter()
        .map(|(name, help, _)| format!("\n  {name:<18} {help}"))
        .collect();
    let matches = Setup::command()
        .after_help(format!("Scenarios:{list}"))
        .get_matches();
    let setup = match Setup::from_arg_matches(&matches) {
        Ok(setup) => setup,
        Err(error) => error.exit(),
    };
    for wanted in &setup.scenarios {
        if !scenarios::ALL.iter().any(|(name, ..)| name == wanted) {
            eprintln!("there is no scenario {wanted}; scenarios:{list}");
            return ExitCode::from(2);
        }
    }
    let machine = machine(&setup);
    if setup.server_cpu == setup.load_cpu {
        eprintln!(
            "note: server and load share CPU {}; only the mechanics can be tried so",
            setup.load_cpu
        );
    }
    let mut complete = true;
    for (name, _, run) in scenarios::ALL {
        if !setup.scenarios.is_empty() && !setup.scenarios.iter().any(|wanted| wanted == name) {
            continue;
        }
        let outcome = run(&setup).and_then(|outcome| report::write(&setup, &machine, &outcome));
        if let Err(error) = outcome {
            eprintln!("{name}: {error:#}");
            complete = false;
        }
    }
    println!("results are in {}", setup.results().display());
    if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The machine, its file limit and the ringmill that is measured.
fn machine(setup: &Setup) -> serde_json::Value {
    let mut machine = host::machine();
    let (soft, hard) = host::file_limit();
    machine["file_limit"] = format!("{soft} soft, {hard} hard").into();
    machine["ringmill"] = match setup.ringmill() {
        Ok(line) => process::version(line.program()).into(),
        Err(error) => format!("{error:#}").into(),
    };
    machine
}
