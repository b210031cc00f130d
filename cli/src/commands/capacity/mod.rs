//! `ringmill capacity`: the UDP speed test of TR-471 with the protocol of RFC 9946.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::exit::Exit;

pub mod server;

/// Flags of `ringmill capacity`.
#[derive(Debug, Args)]
pub struct CapacityArgs {
    /// Which part to take.
    #[command(subcommand)]
    pub command: CapacityCommand,
}

/// Which part to take in the test.
#[derive(Debug, Subcommand)]
pub enum CapacityCommand {
    /// Serve tests of any number of clients on every core.
    Server(Box<server::ServerArgs>),
}

/// Runs it.
///
/// # Errors
/// Those of the part that was taken.
pub fn run(args: &CapacityArgs) -> Result<Exit> {
    match &args.command {
        CapacityCommand::Server(args) => server::run(args),
    }
}
