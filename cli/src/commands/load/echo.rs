//! `ringmill load echo`: its flags, and the clients that they ask for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use ringmill_engine::time::from_duration;
use ringmill_engine::{Limits, Service};
use ringmill_protocols::load::{Arrivals, Config, DatagramLoad, MESSAGE_LEN_MAX, StreamLoad};
use serde_json::json;

use crate::args::{EngineArgs, parse_connections};
use crate::endpoint::{Endpoint, Transport};
use crate::exit::{Exit, UsageError};
use crate::launch::{self};
use crate::metrics::MetricsServer;
use crate::units;

use super::classic::Classic;
use super::control::{Run, shared};
use super::{DATAGRAM_LEN_MAX, RunArgs, no_latencies};

/// Flags of `ringmill load echo`.
#[derive(Debug, Args)]
pub struct EchoArgs {
    /// The server: tcp://HOST:PORT, udp://HOST:PORT or unix:/path.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// Connections (UDP: flows, each with a socket of its own).
    #[arg(long, short = 'c', value_name = "N", value_parser = parse_connections, default_value = "100")]
    pub connections: usize,

    /// Bytes in each message.
    #[arg(long, short = 's', value_name = "SIZE", value_parser = units::parse_size, default_value = "32")]
    pub size: u64,

    /// Messages outstanding on each connection; with --rate the most that may be (default 1024).
    #[arg(long, value_name = "N", value_parser = parse_connections)]
    pub depth: Option<usize>,

    /// Open loop: messages per second over all connections, sent on schedule whether or not
    /// answers come. 0 only holds the connections.
    #[arg(long, value_name = "RATE", value_parser = units::parse_rate)]
    pub rate: Option<f64>,

    /// Random (exponential) gaps between the messages of an open loop instead of equal ones.
    #[arg(long, requires = "rate")]
    pub poisson: bool,

    /// Local addresses to connect from, in turn; may be repeated.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub sources: Vec<IpAddr>,

    /// Do not compare the echoed bytes.
    #[arg(long)]
    pub no_verify: bool,

    /// Send exactly this many messages (those of the warm-up not counted) and end when they are
    /// answered, or when --duration is over.
    #[arg(long, short = 'm', value_name = "N", value_parser = units::parse_count)]
    pub messages: Option<u64>,

    /// A datagram without an answer for this long is lost.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "1s")]
    pub timeout: Duration,

    /// Seed of the random gaps.
    #[arg(long, value_name = "N", default_value = "42")]
    pub seed: u64,

    /// End the connections by RST, which leaves no TIME_WAIT behind.
    #[arg(long)]
    pub reset: bool,

    /// Also print the summary in the terms of the classic echo benchmarks.
    #[arg(long, value_name = "LABELS", value_enum)]
    pub classic: Option<ClassicLabels>,

    #[command(flatten)]
    /// When and how it is reported.
    pub run: RunArgs,

    #[command(flatten)]
    /// How the engine runs.
    pub engine: EngineArgs,
}

/// Which labels the classic summary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ClassicLabels {
    /// Those of the first release.
    Seed,
    /// Those of today.
    Newest,
}

/// Runs it.
///
/// # Errors
/// When no connection can be made, or the flags contradict each other.
pub(super) fn run(args: &EchoArgs) -> Result<Exit> {
    let target = launch::target(&args.endpoint)?;
    let datagrams = matches!(
        args.endpoint,
        Endpoint::Inet {
            transport: Transport::Udp,
            ..
        }
    );
    let len_max = if datagrams {
        DATAGRAM_LEN_MAX
    } else {
        MESSAGE_LEN_MAX as u64
    };
    if args.size == 0 || args.size > len_max {
        bail!(UsageError(format!(
            "--size {}: from 1 to {len_max} bytes here",
            args.size
        )));
    }
    let arrivals = match args.rate {
        None => Arrivals::Closed,
        Some(rate) if rate <= 0.0 => Arrivals::Idle,
        Some(rate) if args.poisson => Arrivals::Poisson(rate),
        Some(rate) => Arrivals::Constant(rate),
    };
    if arrivals == Arrivals::Idle && args.run.histogram.is_some() {
        return Err(no_latencies("--rate 0 sends nothing"));
    }
    let depth = args
        .depth
        .unwrap_or(if args.rate.is_some() { 1024 } else { 1 });
    let host = &args.run.host;
    let part = host.part(args.sources.len() as u64)?;
    // No more than the list is long.
    let sources = args.sources[part.start as usize..part.end as usize].to_vec();
    let config = Arc::new(Config {
        target,
        connections: args.connections,
        message_len: args.size as usize,
        depth,
        arrivals,
        verify: !args.no_verify,
        sources,
        datagram_timeout: from_duration(args.timeout),
        messages: args.messages,
        seed: host.seed(args.seed),
        reset_on_close: args.reset,
    });
    let placement = launch::place(&args.engine, Some(args.connections), false)?;
    let metrics = args.engine.metrics.map(MetricsServer::start).transpose()?;
    let limits = Limits {
        max_connections: args.connections,
        // A load client's own queue is bounded by its depth.
        stream_queue_bytes_max: (depth * args.size as usize).max(1 << 20).saturating_mul(2),
        // What waits is slices of one constant pattern: a bound would only leave connections idle.
        shard_queue_bytes_max: usize::MAX / 2,
        ..Limits::default()
    };
    let shared = shared(&placement);
    let builder = launch::builder(&args.engine, limits, &placement);
    let (of_shard, for_shards) = (Arc::clone(&shared), Arc::clone(&config));
    let (engine, controller) = if datagrams {
        let service = Service::new("load", move |shard| {
            DatagramLoad::new(
                Arc::clone(&for_shards),
                Arc::clone(&of_shard[usize::from(shard)]),
            )
        });
        let controller = service.controller();
        (builder.service(service).start()?, controller)
    } else {
        let service = Service::new("load", move |shard| {
            StreamLoad::new(
                Arc::clone(&for_shards),
                Arc::clone(&of_shard[usize::from(shard)]),
            )
        });
        let controller = service.controller();
        (builder.service(service).start()?, controller)
    };
    let mut settings = BTreeMap::from([
        ("connections".to_owned(), json!(args.connections)),
        ("size".to_owned(), json!(args.size)),
        ("depth".to_owned(), json!(depth)),
        ("rate".to_owned(), json!(args.rate)),
        (
            "arrivals".to_owned(),
            json!(match arrivals {
                Arrivals::Closed => "closed loop",
                Arrivals::Constant(_) => "constant",
                Arrivals::Poisson(_) => "poisson",
                Arrivals::Idle => "idle",
            }),
        ),
        ("verify".to_owned(), json!(config.verify)),
        ("sources".to_owned(), json!(args.sources)),
        ("seed".to_owned(), json!(args.seed)),
    ]);
    settings.extend(host.seed_setting(args.seed));
    if let Some(messages) = args.messages {
        settings.insert("messages".to_owned(), json!(messages));
    }
    let run = Run {
        args: &args.run,
        workload: "echo",
        endpoint: &args.endpoint,
        settings,
        placement: &placement,
        metrics,
        engine,
        controller,
        shared,
        datagrams,
        verify: config.verify,
        answers: arrivals != Arrivals::Idle,
        answer_time: if datagrams {
            args.timeout
        } else {
            Duration::ZERO
        },
        connections: args.connections as u64,
        messages: args.messages,
        classic: args.classic.map(|labels| Classic {
            labels,
            messages: Some(args.messages.unwrap_or(depth as u64)),
            size: Some(args.size),
        }),
        dns: None,
        report_on_stderr: false,
    };
    run.go()
}
