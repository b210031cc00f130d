//! `ringmill load flood`: its flags, and the senders that they ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use ringmill_engine::{Address, Limits, Service};
use ringmill_protocols::load::{Flood, FloodConfig};
use serde_json::json;

use crate::args::{EngineArgs, parse_connections};
use crate::endpoint::{Endpoint, Transport};
use crate::exit::{Exit, UsageError};
use crate::launch::{self};
use crate::metrics::MetricsServer;
use crate::units;

use super::control::{Run, shared};
use super::{DATAGRAM_LEN_MAX, RunArgs, no_latencies};

/// Flags of `ringmill load flood`.
#[derive(Debug, Args)]
pub struct FloodArgs {
    /// The receiver: udp://HOST:PORT.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// Flows on each shard.
    #[arg(long, value_name = "N", value_parser = parse_connections, default_value = "1")]
    pub flows: usize,

    /// Bytes in each datagram.
    #[arg(long, short = 's', value_name = "SIZE", value_parser = units::parse_size, default_value = "1222")]
    pub size: u64,

    /// Datagrams per second over all shards.
    #[arg(long, value_name = "RATE", value_parser = units::parse_rate)]
    pub rate: Option<f64>,

    #[command(flatten)]
    /// When and how it is reported.
    pub run: RunArgs,

    #[command(flatten)]
    /// How the engine runs.
    pub engine: EngineArgs,
}

/// Runs it.
///
/// # Errors
/// When no socket can be opened, or the flags contradict each other.
pub(super) fn run(args: &FloodArgs) -> Result<Exit> {
    let Address::Ip(target) = launch::target(&args.endpoint)? else {
        bail!(UsageError("a flood goes to a udp:// endpoint".into()));
    };
    if !matches!(
        args.endpoint,
        Endpoint::Inet {
            transport: Transport::Udp,
            ..
        }
    ) {
        bail!(UsageError("a flood goes to a udp:// endpoint".into()));
    }
    if args.size == 0 || args.size > DATAGRAM_LEN_MAX {
        bail!(UsageError(format!(
            "--size {}: from 1 to {DATAGRAM_LEN_MAX} bytes",
            args.size
        )));
    }
    if args.run.histogram.is_some() {
        return Err(no_latencies("a flood is never answered"));
    }
    let placement = launch::place(&args.engine, None, false)?;
    let metrics = args.engine.metrics.map(MetricsServer::start).transpose()?;
    let shards = placement.plan.shards.len();
    let config = Arc::new(FloodConfig {
        target,
        flows: args.flows,
        datagram_len: args.size as usize,
        rate: args.rate.map(|rate| rate / shards as f64),
    });
    let shared = shared(&placement);
    let of_shard = Arc::clone(&shared);
    let service = Service::new("flood", move |shard| {
        Flood::new(
            Arc::clone(&config),
            Arc::clone(&of_shard[usize::from(shard)]),
        )
    });
    let controller = service.controller();
    let engine = launch::builder(&args.engine, Limits::default(), &placement)
        .service(service)
        .start()?;
    let settings = BTreeMap::from([
        ("flows".to_owned(), json!(args.flows * shards)),
        ("size".to_owned(), json!(args.size)),
        ("rate".to_owned(), json!(args.rate)),
    ]);
    let run = Run {
        args: &args.run,
        workload: "flood",
        endpoint: &args.endpoint,
        settings,
        placement: &placement,
        metrics,
        engine,
        controller,
        shared,
        datagrams: true,
        verify: false,
        answers: false,
        answer_time: Duration::ZERO,
        connections: (args.flows * shards) as u64,
        messages: None,
        classic: None,
        dns: None,
        report_on_stderr: false,
    };
    run.go()
}
