//! `ringmill load multicast`: its flags, and the receivers that they ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ringmill_engine::{Address, Limits, Service};
use ringmill_protocols::multicast::{ReceiveConfig, Receivers, TalkRole};
use serde_json::json;

use crate::args::{EngineArgs, parse_connections};
use crate::endpoint::{Endpoint, Scheme};
use crate::exit::Exit;
use crate::launch;
use crate::metrics::MetricsServer;
use crate::multicast::{self, take_interface};
use crate::report::MULTICAST;

use super::RunArgs;
use super::classic::Classic;
use super::control::{Run, shared};
use super::echo::ClassicLabels;

/// Flags of `ringmill load multicast`.
#[derive(Debug, Args)]
pub struct MulticastArgs {
    /// The server: tcp://HOST:PORT or unix:/path; or the group to join: udp://239.255.0.1:3334, with
    /// --interface where the kernel's routes do not say.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// Receivers: each a connection, or a socket of its own in the group.
    #[arg(long, short = 'c', value_name = "N", value_parser = parse_connections, default_value = "1")]
    pub connections: usize,

    /// Also print the summary in the terms of the classic multicast benchmarks.
    #[arg(long, value_name = "LABELS", value_enum)]
    pub classic: Option<ClassicLabels>,

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
/// When no connection can be made or no group joined, or the flags contradict each other.
pub(super) fn run(args: &MulticastArgs) -> Result<Exit> {
    let mut engine_args = args.engine.clone();
    let (target, multicast) = if args.endpoint.scheme() == Scheme::Udp {
        let interface = take_interface(&mut engine_args)?;
        let interface = interface.as_deref();
        // Who only listens does no harm by listening to any group.
        let group = multicast::group(&args.endpoint, interface, 1, true)?;
        multicast::try_group(TalkRole::Receive, &args.endpoint, &group, interface)?;
        (Address::Ip(group.to), Some(group.multicast))
    } else {
        (launch::target(&args.endpoint)?, None)
    };
    let placement = launch::place(&engine_args, Some(args.connections), false)?;
    let metrics = args.engine.metrics.map(MetricsServer::start).transpose()?;
    let config = Arc::new(ReceiveConfig {
        target,
        multicast,
        receivers: args.connections,
        clock: multicast::clock(),
    });
    let shared = shared(&placement);
    let of_shard = Arc::clone(&shared);
    let service = Service::new("multicast", move |shard| {
        Receivers::new(
            Arc::clone(&config),
            Arc::clone(&of_shard[usize::from(shard)]),
        )
    });
    let controller = service.controller();
    let limits = Limits {
        max_connections: args.connections,
        ..Limits::default()
    };
    let engine = launch::builder(&engine_args, limits, &placement)
        .service(service)
        .start()?;
    let settings = BTreeMap::from([("receivers".to_owned(), json!(args.connections))]);
    let run = Run {
        args: &args.run,
        workload: MULTICAST,
        endpoint: &args.endpoint,
        settings,
        placement: &placement,
        metrics,
        engine,
        controller,
        shared,
        // Numbers tell what is lost on streams too: a slow reader's messages are dropped.
        datagrams: true,
        verify: false,
        answers: true,
        answer_time: Duration::ZERO,
        connections: args.connections as u64,
        messages: None,
        classic: args.classic.map(|labels| Classic {
            labels,
            messages: None,
            size: None,
        }),
        dns: None,
        report_on_stderr: false,
    };
    run.go()
}
