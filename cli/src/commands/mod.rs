//! The commands: one file each. This one knows their names and turns errors into exit codes.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{self, Exit};

pub mod echo;
pub mod load;
pub mod run;
pub mod serve;
pub mod topology;

/// High-rate servers and network tests on every core.
#[derive(Debug, Parser)]
#[command(
    name = "ringmill",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a protocol on every core.
    Serve(serve::ServeArgs),
    /// Run any number of services from a file on one set of shards.
    Run(run::RunArgs),
    /// Load a server and report what it did.
    Load(load::LoadArgs),
    /// Talk to a server by hand: typed lines go out, answers are printed.
    Echo(echo::EchoArgs),
    /// Show the machine and where shards would run.
    Topology(topology::TopologyArgs),
    /// Show what this host allows, what ringmill will use, and what to change.
    Doctor {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Echo(args) => echo::run(&args),
        Command::Topology(args) => topology::run(&args),
        Command::Doctor { json } => return doctor(json),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("ringmill: {error:#}");
            exit::of(&error).into()
        }
    }
}

fn doctor(json: bool) -> ExitCode {
    use ringmill_engine::uring::{self, Feature};
    let found = uring::probe(&uring::Options::default()).ok();
    let features: Vec<_> = Feature::ALL
        .into_iter()
        .map(|feature| {
            let (since, otherwise) = feature.about();
            crate::doctor::Feature {
                name: format!("{feature} (Linux {since})"),
                available: found.is_some_and(|found| found.has(feature)),
                otherwise: otherwise.into(),
            }
        })
        .collect();
    match crate::doctor::run(json, &features) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("ringmill: {error:#}");
            Exit::Failed.into()
        }
    }
}
