//! `ringmill capacity selftest`: server and client in one process on loopback, up and then down.
//!
//! It says whether this host can test at all, and how much: no network is asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use anyhow::{Context as _, Result};
use clap::Args;
use ringmill_engine::{Address, Engine, Limits};
use ringmill_protocols::capacity::parameters::{Direction, ServerLimits};
use ringmill_protocols::capacity::rates::EXTENDED_ROW_LAST;
use ringmill_protocols::capacity::server::{
    CapacityServer, Listener, Outlets, ServerEvent, Settings, WallClock,
};
use ringmill_protocols::capacity::setup::ServerSettings;
use serde_json::json;

use super::figures::TestFigures;
use super::json;
use super::options::OptionArgs;
use super::run::{OutputArgs, run_plans};
use crate::args::EngineArgs;
use crate::capacity::session::instants_now;
use crate::exit::Exit;
use crate::launch;
use crate::signals::EndRequests;

/// Events of the server that wait; nobody reads them, and what is beyond is dropped.
const EVENTS_MAX: usize = 1;

/// Flags of `ringmill capacity selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// What is measured.
    #[command(flatten)]
    pub options: OptionArgs,

    /// How it is reported.
    #[command(flatten)]
    pub output: OutputArgs,

    /// How the engines of both ends run.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Runs it.
///
/// # Errors
/// The server cannot start, or flags contradict each other.
pub(super) fn run(args: &SelftestArgs) -> Result<Exit> {
    let signals = EndRequests::watch(std::thread::current())?;
    let (mut engine, address) = serve(args)?;
    let mut worst = Exit::Ok;
    let mut words = Vec::new();
    for direction in [Direction::Upstream, Direction::Downstream] {
        let plan = || Ok(vec![args.options.plan(&[address.to_string()], direction)?]);
        let (exit, figures) = run_plans(&plan, &args.output, &args.engine, &signals)?;
        words.extend(figures.iter().map(said));
        if exit != Exit::Ok {
            worst = exit;
        }
        if signals.count() > 0 {
            break;
        }
    }
    engine.stop();
    engine.join()?;
    let passed = worst == Exit::Ok && signals.count() == 0;
    if args.output.json {
        json::line(&json!({ "type": "selftest", "passed": passed }));
    } else {
        let verdict = if passed { "passed" } else { "failed" };
        println!("\nSelf-test {verdict}: {}", words.join(", "));
    }
    Ok(worst)
}

fn said(figures: &TestFigures) -> String {
    match figures.capacity_mbps {
        Some(mbps) => format!("{} {mbps:.2} Mbit/s", figures.direction),
        None => format!("{} nothing measured", figures.direction),
    }
}

/// A server on loopback that takes what the client asks for.
fn serve(args: &SelftestArgs) -> Result<(Engine, SocketAddr)> {
    let placement = launch::place(&args.engine, None, false)?;
    let loopback: IpAddr = match args.options.ipv6 {
        true => Ipv6Addr::LOCALHOST.into(),
        false => Ipv4Addr::LOCALHOST.into(),
    };
    let packets = &args.options.packets;
    let setup = ServerSettings {
        keys: args.options.keys.ring()?,
        jumbo: !packets.no_jumbo,
        traditional: packets.traditional,
        fill_check_sum: packets.checksums,
        ..ServerSettings::default()
    };
    let now = instants_now();
    let clock = Arc::new(WallClock::new(now.now, now.wall.unix_nanos()));
    let (events, _unread) = sync_channel::<ServerEvent>(EVENTS_MAX);
    let outlets = Outlets {
        events,
        records: None,
    };
    let settings = Settings {
        limits: ServerLimits {
            random_payload: true,
            extended_rows: args.options.rate.extended_rows,
            row_max: EXTENDED_ROW_LAST,
            ..ServerLimits::default()
        },
        allow_unauthenticated_start: true,
        without_gso: packets.no_gso,
        pacing: packets.pacing.into(),
        ..Settings::new(vec![Listener { setup }], clock, outlets)
    };
    let server = CapacityServer::new(settings, placement.plan.shards.len() as u16);
    // Each round has an engine of its own; metrics of the server's are nobody's wish.
    let engine_args = EngineArgs {
        metrics: None,
        ..args.engine.clone()
    };
    let limits = CapacityServer::limits(Limits::default());
    let engine = launch::builder(&engine_args, limits, &placement)
        .service(
            server
                .service("capacity")
                .bind(SocketAddr::new(loopback, 0)),
        )
        .start()
        .context("cannot start the server")?;
    let bound = engine
        .addresses()
        .iter()
        .find_map(|bound| match bound.address {
            Address::Ip(address) => Some(address),
            Address::Unix(_) => None,
        });
    let address = bound.context("the server has no address")?;
    Ok((engine, address))
}
