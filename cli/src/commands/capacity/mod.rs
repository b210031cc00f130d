//! `ringmill capacity`: the UDP speed test of TR-471 with the protocol of RFC 9946.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::commands::tune::{LoadOnHost, TuneFlag};
use crate::exit::Exit;

mod figures;
mod human;
mod json;
mod options;
mod rates;
mod run;
mod selftest;
pub mod server;

/// What either end says when the kernel refused a segmented send.
const GSO_REFUSED: &str = "the path does not take datagrams of this size by segmentation offload: \
                           each is sent by itself. --no-jumbo on both ends fits an MTU of 1500";

const EXAMPLES: &str = "\
Examples:
  ringmill capacity selftest                            what this host can send to itself
  ringmill capacity down test.example.net               the capacity from a server to here
  ringmill capacity up test.example.net -c 4            to a server, over four connections
  ringmill capacity down test.example.net --verify 500Mbit --fail-if 'loss>0.1%'
  ringmill capacity down test.example.net --monitor -t 60s
  ringmill capacity rates | less

Servers and clients of OB-UDPST from 8.2 on take part as well as ours.";

/// Flags of `ringmill capacity`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CapacityArgs {
    /// Which part to take.
    #[command(subcommand)]
    pub command: CapacityCommand,

    /// The host.
    #[command(flatten)]
    pub tune: TuneFlag,
}

impl CapacityArgs {
    /// What the host is asked to carry: the first row above 1 Gbit/s, where untuned buffers lose.
    pub(super) fn load_on_host(&self) -> LoadOnHost {
        let engine = match &self.command {
            CapacityCommand::Server(args) => &args.engine,
            CapacityCommand::Up(args)
            | CapacityCommand::Down(args)
            | CapacityCommand::Both(args) => &args.engine,
            CapacityCommand::Selftest(args) => &args.engine,
            CapacityCommand::Rates(_) => return LoadOnHost::nothing(),
        };
        LoadOnHost::of_datagrams(engine)
    }
}

/// Which part to take in the test.
#[derive(Debug, Subcommand)]
pub enum CapacityCommand {
    /// Serve tests of any number of clients on every core.
    Server(Box<server::ServerArgs>),
    /// Measure from here to a server.
    Up(Box<run::TestArgs>),
    /// Measure from a server to here.
    Down(Box<run::TestArgs>),
    /// Measure both ways at once.
    Both(Box<run::TestArgs>),
    /// Print the sending rate table.
    Rates(rates::RatesArgs),
    /// Test this host with itself: server and client on loopback, up and then down.
    Selftest(Box<selftest::SelftestArgs>),
}

/// Runs it.
///
/// # Errors
/// Those of the part that was taken.
pub fn run(args: &CapacityArgs) -> Result<Exit> {
    use run::Ways;
    match &args.command {
        CapacityCommand::Server(args) => server::run(args),
        CapacityCommand::Up(args) => run::run(args, Ways::Up),
        CapacityCommand::Down(args) => run::run(args, Ways::Down),
        CapacityCommand::Both(args) => run::run(args, Ways::Both),
        CapacityCommand::Rates(args) => rates::run(args),
        CapacityCommand::Selftest(args) => selftest::run(args),
    }
}
