//! `ringmill topology`: the machine and the plan, as a picture or as JSON.

use anyhow::{Context as _, Result};
use clap::Args;
use ringmill_engine::topology;

use crate::args::EngineArgs;
use crate::exit::Exit;
use crate::launch;

/// Flags of `ringmill topology`.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    /// The plan is made for these.
    pub engine: EngineArgs,
}

/// Prints the plan.
///
/// # Errors
/// When the CPUs or cards that were asked for are not there.
pub fn run(args: &TopologyArgs) -> Result<Exit> {
    let placement = launch::place(&args.engine, None, true)?;
    if args.json {
        let object = serde_json::json!({ "topology": *placement.topology, "plan": placement.plan });
        println!(
            "{}",
            serde_json::to_string(&object).context("cannot write JSON")?
        );
    } else {
        print!("{}", topology::render(&placement.topology, &placement.plan));
    }
    Ok(Exit::Ok)
}
