//! `ringmill serve`: one protocol on any number of endpoints.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use ringmill_engine::{Engine, Notice, Service, error_name};
use ringmill_protocols::echo::Echo;
use serde_json::json;

use crate::args::{EngineArgs, LimitArgs};
use crate::endpoint::Endpoint;
use crate::exit::Exit;
use crate::launch;
use crate::signals::EndRequests;

/// At most one line about paused accepts in this time.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Flags of `ringmill serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The protocol.
    #[command(subcommand)]
    pub protocol: ServeProtocol,
}

/// What can be served.
#[derive(Debug, Subcommand)]
pub enum ServeProtocol {
    /// Send back everything that arrives.
    Echo(ServerArgs),
}

/// Flags of every server.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Where to serve: tcp://:7000, udp://*:7000, unix:/path. ':PORT' is loopback only,
    /// '*:PORT' every address.
    #[arg(required = true, value_name = "ENDPOINT")]
    pub endpoints: Vec<Endpoint>,

    /// Print events as NDJSON: listening, intervals, notices, stopped.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    /// How the engine runs.
    pub engine: EngineArgs,

    #[command(flatten)]
    /// Bounds.
    pub limits: LimitArgs,
}

/// Serves until a signal.
///
/// # Errors
/// When an endpoint cannot be bound or a shard fails.
pub fn run(args: &ServeArgs) -> Result<Exit> {
    match &args.protocol {
        ServeProtocol::Echo(server) => serve(server, Service::new("echo", |_| Echo::default())),
    }
}

fn serve<P: ringmill_engine::Protocol>(args: &ServerArgs, service: Service<P>) -> Result<Exit> {
    let signals = EndRequests::watch(std::thread::current())?;
    let placement = launch::place(&args.engine, args.limits.max_connections.unwrap_or(1), true)?;
    let mut service = service;
    for endpoint in &args.endpoints {
        service = launch::listen(service, endpoint)?;
    }
    let mut engine = launch::builder(
        &args.engine,
        launch::limits(&args.limits, &placement),
        &placement,
    )
    .share_port(args.limits.share_port)
    .service(service)
    .start()?;
    announce(args, &engine);
    watch(args, &mut engine, &signals)
}

fn announce(args: &ServerArgs, engine: &Engine) {
    if let Some(note) = engine.driver_note() {
        eprintln!("ringmill: {note}");
    }
    for bound in engine.addresses() {
        if args.json {
            let line = json!({
                "type": "listening",
                "service": bound.service,
                "endpoint": bound.to_string(),
                "shards": engine.shards(),
                "driver": engine.driver(),
                "pid": std::process::id(),
            });
            println!("{line}");
        } else {
            println!(
                "{} at {bound}, {} shards, {}",
                bound.service,
                engine.shards(),
                engine.driver()
            );
        }
    }
    let _ = std::io::stdout().flush();
}

fn watch(args: &ServerArgs, engine: &mut Engine, signals: &EndRequests) -> Result<Exit> {
    let mut told: Option<Instant> = None;
    let mut unsaid = 0;
    let mut failed = None;
    let mut before = engine.service_totals(0);
    let mut interval = Instant::now();
    let mut asked = 0;
    while !engine.has_ended() {
        std::thread::park_timeout(Duration::from_millis(100));
        let count = signals.count();
        if count > asked {
            asked = count;
            if count == 1 {
                engine.stop();
            } else {
                engine.stop_now();
            }
        }
        while let Some(notice) = engine.take_notice() {
            match notice {
                Notice::AcceptFailed { errno, .. } => {
                    if told.is_none_or(|told| told.elapsed() >= NOTICE_INTERVAL) {
                        let more = if unsaid > 0 {
                            format!(" ({unsaid} more since)")
                        } else {
                            String::new()
                        };
                        eprintln!(
                            "ringmill: accepting pauses for up to 2 s: {}{more}; `ringmill doctor` shows the limit",
                            error_name(errno)
                        );
                        told = Some(Instant::now());
                        unsaid = 0;
                    } else {
                        unsaid += 1;
                    }
                }
                Notice::ShardFailed { shard, error } => {
                    failed = Some(format!("shard {shard} failed: {error}"))
                }
            }
        }
        if args.json && interval.elapsed() >= Duration::from_secs(1) {
            let seconds = interval.elapsed().as_secs_f64();
            interval = Instant::now();
            let now = engine.service_totals(0);
            let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
            let line = json!({
                "type": "interval",
                "connections": engine.connections(),
                "bytes_per_s": rate(
                    now.received_bytes + now.received_datagram_bytes,
                    before.received_bytes + before.received_datagram_bytes),
                "datagrams_per_s": rate(now.received_datagrams, before.received_datagrams),
                "counters": now,
            });
            println!("{line}");
            before = now;
        }
    }
    let result = engine.join();
    if args.json {
        println!(
            "{}",
            json!({ "type": "stopped", "counters": engine.service_totals(0) })
        );
    }
    if let Some(failed) = failed {
        bail!(failed);
    }
    result?;
    Ok(if asked > 1 {
        Exit::Interrupted
    } else {
        Exit::Ok
    })
}
