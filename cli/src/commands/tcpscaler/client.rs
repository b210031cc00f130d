//! A run of tcpclient or udpclient: its options as a job of `ringmill load dns`.
//!
//! The pauses of the original before it sends (3 s and more, then 5 s) are not taken: they gave the
//! connections time to stand, and here the sending begins when they do.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ringmill_engine::time::to_duration;
use ringmill_protocols::dns::message::{Name, TYPE_A};
use ringmill_protocols::load::RatePlan;

use crate::args::{EngineArgs, PlacementArgs};
use crate::commands::load::{DnsJob, RunArgs, load_dns, plan_on_stdin};
use crate::endpoint::{Endpoint, Host, Transport};
use crate::exit::{Exit, UsageError};
use crate::many_hosts::HostArgs;
use crate::start::StartArgs;

use super::Program;
use super::options::{Options, RateSource};

/// What the original asks for.
const NAME: &str = "example.com";
/// The original never gives a query up. Here the end waits for answers this long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long `-t 0` is.
const FOR_EVER: Duration = Duration::from_secs(50 * 365 * 86_400);
/// How long one address may take to accept the connection that chooses among several.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

/// Runs it.
///
/// # Errors
/// When no address of the host accepts a connection, or the load fails.
pub(super) fn run(options: &Options) -> Result<Exit> {
    let plan = plan(options)?;
    let address = choose(options)?;
    let tell = |words: String| {
        if options.verbose > 0 {
            eprintln!("{words}");
        }
    };
    let udp = options.program == Program::UdpClient;
    let (count, rate) = (options.connections, options.open_rate);
    tell(format!("Opening {count} connections to {address}..."));
    if !udp {
        tell(format!("{rate} new connections per second"));
    }
    let endpoint = endpoint(udp, address);
    let length = match options.duration_s {
        0 => FOR_EVER,
        seconds => Duration::from_secs(seconds.into()),
    };
    let run = RunArgs {
        duration: plan.length().map_or(length, to_duration),
        warmup: Duration::ZERO,
        json: false,
        histogram: None,
        fail_if: Vec::new(),
        server_stats: None,
        start: StartArgs::default(),
        host: HostArgs::default(),
    };
    let engine = EngineArgs {
        placement: PlacementArgs {
            shards: options.shards,
            ..PlacementArgs::default()
        },
        driver: options.driver,
        ..EngineArgs::default()
    };
    load_dns(&DnsJob {
        endpoint: &endpoint,
        questions: vec![(Name::parse(NAME)?, TYPE_A)],
        connections: count as usize,
        open_rate: (!udp).then_some(f64::from(rate)),
        reopen: false,
        rate: (options.rate > 0).then_some(f64::from(options.rate)),
        plan,
        poisson: true,
        seed: options.seed,
        timeout: TIMEOUT,
        record: options.print_rtt.then_some(Path::new("-")),
        sources: &[],
        reset: false,
        run: &run,
        engine: &engine,
        report_on_stderr: true,
        settings: BTreeMap::new(),
    })
}

fn plan(options: &Options) -> Result<RatePlan> {
    let rate = f64::from(options.rate);
    let plan = match options.rate_source {
        RateSource::Constant => RatePlan::constant(rate),
        RateSource::Steps => RatePlan::parse_steps(&plan_on_stdin()?),
        RateSource::Slopes => RatePlan::parse_slopes(rate, &plan_on_stdin()?),
    };
    plan.map_err(|error| UsageError(error.to_string()).into())
}

/// The first address of the host that accepts a connection, as the original chooses it.
fn choose(options: &Options) -> Result<SocketAddr> {
    let port = port(&options.port)?;
    let addresses = (options.host.as_str(), port).to_socket_addrs();
    let addresses = addresses.with_context(|| format!("cannot resolve {}", options.host))?;
    let mut causes = Vec::new();
    for address in addresses {
        if options.program == Program::UdpClient {
            // Nothing is sent, so that no address can refuse.
            return Ok(address);
        }
        match TcpStream::connect_timeout(&address, PROBE_PATIENCE) {
            Ok(_) => return Ok(address),
            Err(error) => causes.push(format!("{address}: {error}")),
        }
    }
    bail!("Could not connect to host: {}", causes.join(", "));
}

/// A number, or a name of `/etc/services`.
fn port(text: &str) -> Result<u16> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let services = std::fs::read_to_string("/etc/services").unwrap_or_default();
    named_port(&services, text)
        .ok_or_else(|| UsageError(format!("-p: there is no port {text:?}")).into())
}

fn named_port(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (first, place) = (words.next()?, words.next()?);
        let is_it = first == name || words.any(|alias| alias == name);
        let (port, _) = place.split_once('/')?;
        is_it.then(|| port.parse().ok())?
    })
}

fn endpoint(udp: bool, address: SocketAddr) -> Endpoint {
    let zone = match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => Some(address.scope_id().to_string()),
        _ => None,
    };
    Endpoint::Inet {
        transport: if udp { Transport::Udp } else { Transport::Tcp },
        host: Host::Addr(address.ip(), zone),
        port: address.port(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_names() {
        let services = "# all\ndomain 53/tcp # DNS\ndomain\t53/udp\nwww 80/tcp http\n";
        for (name, port) in [("domain", Some(53)), ("http", Some(80)), ("dns", None)] {
            assert_eq!(named_port(services, name), port, "{name}");
        }
        assert_eq!(port("4242").unwrap(), 4242);
        assert!(port("no such port").is_err());
    }
}
