//! `ringmill load`: clients that measure a server. Here are the flags that all its workloads have.

mod classic;
mod control;
mod dns;
mod echo;
mod figures;
mod flood;
mod multicast;
mod progress;
mod recording;

pub use self::dns::{ArrivalsArg, DnsArgs};
pub(crate) use self::dns::{Job as DnsJob, load as load_dns, parse_names, plan_on_stdin};
pub use self::echo::{ClassicLabels, EchoArgs};
pub use self::flood::FloodArgs;
pub use self::multicast::MulticastArgs;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::commands::tune::{LoadOnHost, TuneFlag};
use crate::exit::{Exit, UsageError};
use crate::fail_if::FailIf;
use crate::many_hosts::HostArgs;
use crate::signals::EndRequests;
use crate::start::StartArgs;
use crate::units;

/// Flags of `ringmill load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// What to load.
    #[command(subcommand)]
    pub workload: Workload,

    /// The host.
    #[command(flatten)]
    pub tune: TuneFlag,
}

impl LoadArgs {
    /// What the host is asked to carry.
    pub(super) fn load_on_host(&self) -> LoadOnHost {
        let of = LoadOnHost::of_client;
        match &self.workload {
            Workload::Echo(args) => of(
                &args.endpoint,
                args.connections,
                args.sources.len(),
                &args.engine,
            ),
            Workload::Dns(args) => of(
                &args.endpoint,
                args.connections,
                args.sources.len(),
                &args.engine,
            ),
            Workload::Flood(args) => of(&args.endpoint, 1, 0, &args.engine),
            Workload::Multicast(args) => of(&args.endpoint, args.connections, 0, &args.engine),
        }
    }
}

/// What can be loaded.
#[derive(Debug, Subcommand)]
pub enum Workload {
    /// Send messages to an echo server and expect them back.
    Echo(EchoArgs),
    /// Send DNS queries at a rate, over any number of connections, and match the answers.
    Dns(DnsArgs),
    /// Send datagrams one way, as fast as the host can or at a set rate.
    Flood(FloodArgs),
    /// Receive what a multicast server sends, over streams or from a group, and count by number.
    Multicast(MulticastArgs),
}

/// Flags of every load run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Length of the measured part.
    #[arg(long, short = 'd', visible_short_alias = 't', value_name = "TIME", value_parser = units::parse_duration, default_value = "10s")]
    pub duration: Duration,

    /// Run this long before measuring.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "1s")]
    pub warmup: Duration,

    /// Print NDJSON: one object for each second, then the report.
    #[arg(long)]
    pub json: bool,

    /// Write the latencies of each second to an HdrHistogram log.
    #[arg(long, value_name = "FILE")]
    pub histogram: Option<std::path::PathBuf>,

    /// Exit with 3 when this holds, such as 'p99>5ms', 'loss>0.1%', 'rate<100k'; may be repeated.
    #[arg(long, value_name = "CONDITION")]
    pub fail_if: Vec<FailIf>,

    /// Ask a ringmill server at this address (its --stats) for its CPU time.
    #[arg(long, value_name = "ADDR", value_parser = crate::args::parse_loopback_address)]
    pub server_stats: Option<std::net::SocketAddr>,

    /// When it begins.
    #[command(flatten)]
    pub start: StartArgs,

    /// Which of many hosts this is.
    #[command(flatten)]
    pub host: HostArgs,
}

/// Runs the load.
///
/// # Errors
/// When no connection can be made, or the flags contradict each other.
pub fn run(args: &LoadArgs) -> Result<Exit> {
    let run = args.workload.run_args();
    run.host.check()?;
    let signals = EndRequests::watch(std::thread::current())?;
    if !run.start.wait(OPENING_LEAD, &signals)? {
        return Ok(interrupted(&signals, ""));
    }
    match &args.workload {
        Workload::Echo(args) => echo::run(args),
        Workload::Dns(args) => dns::run(args),
        Workload::Flood(args) => flood::run(args),
        Workload::Multicast(args) => multicast::run(args),
    }
}

impl Workload {
    /// The flags that every workload has.
    fn run_args(&self) -> &RunArgs {
        match self {
            Self::Echo(args) => &args.run,
            Self::Dns(args) => &args.run,
            Self::Flood(args) => &args.run,
            Self::Multicast(args) => &args.run,
        }
    }
}

/// With `--start-at`, connections are opened so long before: tens of thousands take seconds, and a
/// server need not hold them for hours.
const OPENING_LEAD: Duration = Duration::from_secs(30);

/// The user ended it before the first message; `state` says how far it had come.
fn interrupted(signals: &EndRequests, state: &str) -> Exit {
    eprintln!("ringmill: interrupted before the run began{state}");
    if signals.count() > 1 {
        Exit::Interrupted
    } else {
        Exit::Failed
    }
}

/// The largest UDP payload over IPv4.
const DATAGRAM_LEN_MAX: u64 = 65_507;

/// The answer to `--histogram` where there is nothing to write to it.
fn no_latencies(why: &str) -> anyhow::Error {
    UsageError(format!(
        "--histogram: {why}, so there are no latencies to write; leave it away, or measure with \
         `ringmill load echo`"
    ))
    .into()
}
