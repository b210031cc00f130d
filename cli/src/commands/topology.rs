//! `ringmill topology`: the machine and the plan, as a picture or as JSON.

use anyhow::{Context as _, Result};
use clap::Args;
use ringmill_engine::topology;

use crate::args::{EngineArgs, PlacementArgs};
use crate::exit::Exit;
use crate::launch;

/// Flags of `ringmill topology`.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,

    /// The plan is made for these; nothing else changes it.
    #[command(flatten)]
    pub placement: PlacementArgs,
}

/// Prints the plan.
///
/// # Errors
/// When the CPUs or cards that were asked for are not there.
pub fn run(args: &TopologyArgs) -> Result<Exit> {
    let engine = EngineArgs {
        placement: args.placement.clone(),
        ..EngineArgs::default()
    };
    let placement = launch::place(&engine, None, true)?;
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
