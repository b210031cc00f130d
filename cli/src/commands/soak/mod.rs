//! `ringmill soak`: very many connections, kept for a long time, with traffic that is checked. Here
//! are its flags and what they ask for; `run` is the course of a soak.

mod human;
mod kernel;
mod memory;
mod report;
mod run;
mod sources;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use ringmill_engine::time::from_duration;
use ringmill_engine::topology::CpuList;
use ringmill_engine::{Address, DriverChoice, uring};
use ringmill_protocols::soak::{Addresses, ChurnClose, Config, MESSAGE_LEN_MAX, Sources};

use self::memory::Reading;
pub use self::report::SoakReport;
use self::run::Run;
use crate::args::{DriverArg, EngineArgs, parse_connections, parse_loopback_address};
use crate::commands::capacity::server::parse_ports;
use crate::commands::tune::{LoadOnHost, TuneFlag};
use crate::endpoint::{Endpoint, Scheme};
use crate::exit::{Exit, UsageError};
use crate::fail_if::FailIf;
use crate::launch::{self, Placement};
use crate::many_hosts::HostArgs;
use crate::report::server::Server;
use crate::server_process::ServerProcess;
use crate::signals::EndRequests;
use crate::start::StartArgs;
use crate::units;

/// Source addresses of `--self`, so that ports never run out: every address of 127.0.0.0/8 is this
/// host's, and the server listens on none of these.
const OWN_SOURCES: &str = "127.1.0.0/16";
/// Files that this process needs beside its connections where each of those is one.
const FILES_RESERVED: usize = 512;
/// Connections above those asked for that the server of `--self` holds: those that churn has closed
/// here may still be open there.
const SERVER_ROOM: usize = 1000;

/// Flags of `ringmill soak`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SoakArgs {
    /// The echo server: tcp://HOST:PORT or unix:/path. More of them share the connections evenly:
    /// each port of a server is as many more for every local address.
    #[arg(value_name = "ENDPOINT", required_unless_present = "own_server")]
    pub endpoints: Vec<Endpoint>,

    /// Start the server here, too, as a process of its own.
    #[arg(long = "self", conflicts_with = "endpoints")]
    pub own_server: bool,

    /// Ports of the server of --self.
    #[arg(long, value_name = "N", requires = "own_server", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub ports: u16,

    /// CPUs of the server of --self; without, those of this end.
    #[arg(long, value_name = "LIST", requires = "own_server")]
    pub server_cpus: Option<CpuList>,

    /// Connections to hold.
    #[arg(long, short = 'c', value_name = "N", value_parser = parse_connections, default_value = "10k")]
    pub connections: usize,

    /// Connections to open per second, many of them on their way at once; 'max' opens as fast as
    /// they are answered.
    #[arg(long, value_name = "RATE", value_parser = parse_open_rate, default_value = "10k")]
    pub open_rate: OpenRate,

    /// Local addresses to connect from, in turn: 10.0.0.7 or 127.1.0.0/16; may be repeated. They
    /// must be this host's.
    #[arg(long, value_name = "ADDR|NET", value_delimiter = ',')]
    pub sources: Vec<Sources>,

    /// Local ports to connect from, in turn. Without, the kernel chooses when it connects.
    #[arg(long, value_name = "LO-HI", value_parser = parse_ports, requires = "sources")]
    pub source_ports: Option<RangeInclusive<u16>>,

    /// Hold them for this long once all are open.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "60s")]
    pub hold: Duration,

    /// Messages per second over all connections, at random instants (Poisson) on connections drawn
    /// at random; every byte that comes back is compared. 0 sends none.
    #[arg(long, value_name = "RATE", value_parser = units::parse_rate, default_value = "1k")]
    pub rate: f64,

    /// Bytes in each message.
    #[arg(long, short = 's', value_name = "SIZE", value_parser = units::parse_size, default_value = "32")]
    pub size: u64,

    /// Connections to close and open again per second while they are held, such as 100/s.
    #[arg(long, value_name = "RATE", value_parser = parse_churn, default_value = "0")]
    pub churn: f64,

    /// How those are closed, always by this end.
    #[arg(long, value_enum, default_value_t)]
    pub churn_close: CloseArg,

    /// A connection that is not established in this time has failed, and is tried again.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "10s")]
    pub connect_timeout: Duration,

    /// A connection whose message is not answered in this time is reset and opened again.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "10s")]
    pub answer_timeout: Duration,

    /// Hold what is open after so long, even if some are missing [default: three times what
    /// --open-rate needs, and at least 30s].
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub open_timeout: Option<Duration>,

    /// Seed of the instants and of the choice of connections.
    #[arg(long, value_name = "N", default_value = "42")]
    pub seed: u64,

    /// Print NDJSON: one object for each second, then the report.
    #[arg(long)]
    pub json: bool,

    /// Exit with 3 when this holds, such as 'lost>0', 'p99>50ms', 'server_bytes>128'; may be
    /// repeated. docs/soak.md lists all.
    #[arg(long, value_name = "CONDITION")]
    pub fail_if: Vec<FailIf<SoakReport>>,

    /// Ask a ringmill server at this address (its --stats) for its process, if that is on this host.
    #[arg(long, value_name = "ADDR", value_parser = parse_loopback_address, hide = true)]
    pub server_stats: Option<SocketAddr>,

    /// Not there yet: connections without TLS only.
    #[arg(long)]
    pub tls: bool,

    /// When it begins.
    #[command(flatten)]
    pub start: StartArgs,

    /// Which of many hosts this is.
    #[command(flatten)]
    pub host: HostArgs,

    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,

    /// The host.
    #[command(flatten)]
    pub tune: TuneFlag,
}

impl SoakArgs {
    /// What the host is asked to carry.
    pub(super) fn load_on_host(&self) -> LoadOnHost {
        let destinations = match self.own_server {
            true => usize::from(self.ports),
            false => self.endpoints.len(),
        };
        let sources = match self.source_ports {
            // The kernel does not choose ports then, so its range of them limits nothing.
            Some(_) => u64::MAX,
            // A part that cannot be told is refused when the soak begins.
            None => self
                .sources_of_host()
                .unwrap_or_else(|_| self.sources())
                .iter()
                .map(Sources::count)
                .sum(),
        };
        LoadOnHost::of_soak(
            self.connections,
            sources,
            destinations,
            self.own_server,
            &self.engine,
        )
    }

    /// Where connections come from: as told, or of `--self` from where ports never run out.
    fn sources(&self) -> Vec<Sources> {
        match self.sources.as_slice() {
            [] if self.own_server => vec![OWN_SOURCES.parse().expect("a constant network")],
            chosen => chosen.to_vec(),
        }
    }

    /// Of those the part of this host, where there are many.
    ///
    /// # Errors
    /// When there are fewer than hosts, or the host's index is wrong.
    fn sources_of_host(&self) -> Result<Vec<Sources>, UsageError> {
        let all = self.sources();
        let part = self.host.part(all.iter().map(Sources::count).sum())?;
        let mut before = 0;
        let mut chosen = Vec::new();
        for sources in all {
            let end = before + sources.count();
            let (low, high) = (part.start.max(before), part.end.min(end));
            if low < high {
                chosen.push(sources.part(low - before..high - before));
            }
            before = end;
        }
        Ok(chosen)
    }
}

const EXAMPLES: &str = "\
Examples:
  ringmill soak --self -c 10k --churn 100/s      both ends on this host, for a minute
  ringmill soak --self -c 1M --open-rate 30k --rate 20k --hold 10m
  ringmill soak tcp://10.0.0.1:7000 -c 200k --sources 10.0.1.0/28 --hold 24h --fail-if 'lost>0'

A server elsewhere: ringmill serve echo 'tcp://*:7000' --max-connections 1M. See docs/soak.md.";

/// How connections are closed by churn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum CloseArg {
    /// FIN from this end, whose TIME_WAIT the connection then fills for a minute.
    Fin,
    /// RST from this end: nothing stays on either.
    #[default]
    Rst,
}

/// The rate of opening; none is as fast as possible.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenRate(pub Option<f64>);

fn parse_open_rate(text: &str) -> Result<OpenRate, String> {
    if text == "max" {
        return Ok(OpenRate(None));
    }
    match units::parse_rate(text) {
        Ok(rate) if rate > 0.0 => Ok(OpenRate(Some(rate))),
        Ok(_) => Err("more than 0, or 'max', is needed".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_churn(text: &str) -> Result<f64, String> {
    units::parse_rate(text).map_err(|error| error.to_string())
}

/// Runs a soak.
///
/// # Errors
/// When the flags contradict each other, or no connection can be made.
pub fn run(args: &SoakArgs) -> Result<Exit> {
    if args.tls {
        bail!(UsageError(
            "--tls: soaks with TLS are not there yet; leave it away".into()
        ));
    }
    if args.size == 0 || args.size > MESSAGE_LEN_MAX as u64 {
        bail!(UsageError(format!(
            "--size {}: from 1 to {MESSAGE_LEN_MAX} bytes here",
            args.size
        )));
    }
    if let Some(open_rate) = args.open_rate.0
        && args.churn > open_rate
    {
        bail!(UsageError(format!(
            "--churn {0}: what is closed is opened again at --open-rate, which is {open_rate}; raise it above \
             {0} or say 'max'",
            args.churn
        )));
    }
    for endpoint in &args.endpoints {
        if endpoint.scheme() == Scheme::Udp {
            bail!(UsageError(format!(
                "{endpoint}: a soak holds connections; for datagrams there is `ringmill load echo`"
            )));
        }
        if endpoint.scheme() == Scheme::Unix && !args.sources.is_empty() {
            bail!(UsageError(format!("{endpoint} has no --sources")));
        }
    }
    let sources = args.sources_of_host()?;
    let signals = EndRequests::watch(std::thread::current())?;
    if !args.start.wait(Duration::ZERO, &signals)? {
        eprintln!("ringmill: interrupted before the soak began");
        return Ok(if signals.count() > 1 {
            Exit::Interrupted
        } else {
            Exit::Failed
        });
    }
    let kernel_before = Reading::take(None).kernel;
    let engine = &args.engine;
    let mut server = None;
    sources::check(&sources, sources::is_here)?;
    let endpoints = if args.own_server {
        let started = start_server(args)?;
        let endpoints = started.endpoints().to_vec();
        server = Some(started);
        endpoints
    } else {
        args.endpoints.clone()
    };
    let targets = targets(&endpoints, &sources)?;
    let placement = launch::place(engine, Some(args.connections), false)?;
    let notes = notes(args, engine, &placement, &targets, &sources)?;
    let config = Arc::new(Config {
        addresses: Addresses::new(targets, sources, args.source_ports.clone()),
        connections: args.connections,
        open_rate: args.open_rate.0,
        rate: args.rate,
        message_len: args.size as usize,
        churn_rate: args.churn,
        churn_close: match args.churn_close {
            CloseArg::Fin => ChurnClose::Fin,
            CloseArg::Rst => ChurnClose::Reset,
        },
        connect_timeout: from_duration(args.connect_timeout),
        answer_timeout: from_duration(args.answer_timeout),
        seed: args.host.seed(args.seed),
    });
    let server_pid = match &server {
        Some(server) => Some(server.pid()),
        None => match Server::find(&endpoints[0], args.server_stats) {
            Some(Server::Local(pid)) => Some(pid),
            _ => None,
        },
    };
    Run {
        args,
        engine_args: engine,
        endpoints: &endpoints,
        placement: &placement,
        config,
        server,
        server_pid,
        notes,
        kernel_before,
        troubles: Vec::new(),
    }
    .go()
}

/// The server shares the CPUs of this end if it has none of its own: over loopback the end that connects
/// does the kernel's work of both, and on separate CPUs the server's would be idle meanwhile.
fn start_server(args: &SoakArgs) -> Result<ServerProcess> {
    let room = args.connections / 32 + SERVER_ROOM;
    let connections = (args.connections + room).to_string();
    let driver = args.engine.driver.name();
    let mut flags = ["--driver", driver, "--max-connections", &connections]
        .map(str::to_owned)
        .to_vec();
    if let Some(cpus) = args.server_cpus.as_ref().or(args.engine.cpus.as_ref()) {
        flags.extend(["--cpus".to_owned(), cpus.to_string()]);
    }
    let endpoints = vec!["tcp://127.0.0.1:0"; usize::from(args.ports)];
    ServerProcess::echo(&endpoints, &flags)
}

/// The addresses behind the endpoints, of the IP version of the sources.
fn targets(endpoints: &[Endpoint], sources: &[Sources]) -> Result<Vec<Address>> {
    let mut targets = Vec::new();
    for endpoint in endpoints {
        let target = launch::target(endpoint)?;
        let wrong = sources.iter().find(|source| match &target {
            Address::Ip(ip) => ip.is_ipv6() != source.address(0).is_ipv6(),
            Address::Unix(_) => false,
        });
        if let Some(source) = wrong {
            bail!(UsageError(format!(
                "--sources {}: {target} is of the other IP version",
                source.address(0)
            )));
        }
        targets.push(target);
    }
    Ok(targets)
}

/// What the user should know before it begins.
///
/// # Errors
/// When this process cannot hold so many connections whatever happens.
fn notes(
    args: &SoakArgs,
    engine: &EngineArgs,
    placement: &Placement,
    targets: &[Address],
    sources: &[Sources],
) -> Result<Vec<String>> {
    let mut notes: Vec<String> = placement.note.iter().cloned().collect();
    let files = ringmill_engine::sys::socket::raise_file_limit();
    let shards = placement.plan.shards.len();
    let features = match DriverChoice::from(engine.driver) {
        DriverChoice::Epoll => None,
        _ => uring::probe(&uring::Options {
            refuse: engine.uring_without.clone(),
        })
        .ok(),
    };
    let held = match features {
        Some(features) => features.streams_held(shards, files, false),
        None => files.saturating_sub(FILES_RESERVED),
    };
    if held < args.connections {
        let helps = match (engine.driver, features) {
            (DriverArg::Epoll, _) => "; --driver uring needs no file for a connection",
            (_, None) => "; io_uring would need no file for a connection, see `ringmill doctor`",
            _ => "",
        };
        bail!(UsageError(format!(
            "--connections {}: this process holds {held} under its limit of {files} open files; \
             raise it (`ulimit -n {}`){helps}",
            args.connections,
            args.connections + FILES_RESERVED
        )));
    }
    let mut cpus: Vec<usize> = placement
        .plan
        .shards
        .iter()
        .map(|shard| shard.cpu)
        .collect();
    cpus.sort_unstable();
    cpus.dedup();
    if shards > cpus.len() && placement.note.is_none() {
        notes.push(format!(
            "{shards} rings on {} CPU{}: under the limit of {files} open files a ring holds {} \
             connections",
            cpus.len(),
            if cpus.len() == 1 { "" } else { "s" },
            uring::streams_per_ring(files, false),
        ));
    }
    if let Some(features) = features
        && !features.has(uring::Feature::SocketCommands)
    {
        notes.push(
            "this kernel resets no connection of a ring (needs Linux 6.7): what should end by RST \
             ends by FIN, and fills TIME_WAIT; --driver epoll resets"
                .to_owned(),
        );
    }
    let range = match &args.source_ports {
        Some(ports) => Some((*ports.start(), *ports.end())),
        None => kernel::port_range(),
    };
    let addresses: u64 = sources.iter().map(Sources::count).sum::<u64>().max(1);
    if let Some((low, high)) = range
        && targets
            .iter()
            .all(|target| matches!(target, Address::Ip(_)))
    {
        let ports = u64::from(high) - u64::from(low) + 1;
        let room = ports * addresses * targets.len() as u64;
        if room < args.connections as u64 {
            notes.push(format!(
                "{addresses} local and {} remote addresses with {ports} ports ({low}-{high}) make \
                 {room} connections, not {}: give more --sources or endpoints",
                targets.len(),
                args.connections
            ));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_opening() {
        assert_eq!(parse_open_rate("max"), Ok(OpenRate(None)));
        assert_eq!(parse_open_rate("30k"), Ok(OpenRate(Some(30_000.0))));
        for text in ["0", "-1", "fast"] {
            assert!(parse_open_rate(text).is_err(), "{text}");
        }
        assert_eq!(parse_churn("100/s"), Ok(100.0));
    }

    #[test]
    fn sources_and_endpoints_are_of_one_ip_version() {
        let endpoints: Vec<Endpoint> = vec!["tcp://127.0.0.1:7".parse().unwrap()];
        let of = |text: &str| vec![text.parse::<Sources>().unwrap()];
        assert!(targets(&endpoints, &of("127.1.0.0/16")).is_ok());
        let error = targets(&endpoints, &of("::1")).unwrap_err();
        assert!(error.to_string().contains("other IP version"), "{error}");
    }
}
