//! `ringmill demo`: an echo server and a load client on this machine, over loopback.
//!
//! The server is a process of its own, so that the CPU time of each side is told apart.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser as _};
use ringmill_engine::topology::Topology;

use super::{Cli, Command, load};
use crate::args::DriverArg;
use crate::endpoint::Scheme;
use crate::exit::Exit;
use crate::server_process::{ServerProcess, split};
use crate::signals::EndRequests;
use crate::units;

/// A server that has not drained by then is ended by force.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Flags of `ringmill demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Length of each of the two runs, TCP and UDP.
    #[arg(long, short = 'd', value_name = "TIME", value_parser = units::parse_duration, default_value = "4s")]
    pub duration: Duration,

    /// Print NDJSON, as `ringmill load --json` does: intervals and a report for each run.
    #[arg(long)]
    pub json: bool,

    /// How to talk to the kernel, on both sides.
    #[arg(long, value_enum, default_value_t)]
    pub driver: DriverArg,
}

/// Runs the demonstration.
///
/// # Errors
/// When the server does not start or a load run fails.
pub fn run(args: &DemoArgs) -> Result<Exit> {
    let signals = EndRequests::watch(std::thread::current())?;
    let topology = Topology::read().context("cannot read the machine's CPUs")?;
    let split = split(&topology);
    let say = |text: &str| {
        if args.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    };
    if split.shared {
        say("There is one CPU, which server and client share: neither shows what it can do.");
    } else {
        say(&format!(
            "Server on CPU {}, client on CPU {}, over loopback.",
            split.server, split.client
        ));
    }
    let flags = [
        "--cpus",
        &split.server.to_string(),
        "--driver",
        args.driver.name(),
    ];
    let mut server = ServerProcess::echo(
        &["tcp://127.0.0.1:0", "udp://127.0.0.1:0"],
        &flags.map(str::to_owned),
    )?;
    let runs = [
        (
            Scheme::Tcp,
            "100 connections, messages of 32 bytes",
            ["100", "32", "1"],
        ),
        (
            Scheme::Udp,
            "10 flows, datagrams of 1222 bytes",
            ["10", "1222", "16"],
        ),
    ];
    for (scheme, what, [connections, size, depth]) in runs {
        let endpoint = server.endpoint(scheme)?;
        say(&format!("\n{}: {what}", scheme.as_str().to_uppercase()));
        let client = split.client.to_string();
        let duration = format!("{}ns", args.duration.as_nanos());
        let driver = args.driver.name();
        let mut words = vec![
            "ringmill",
            "load",
            "echo",
            &endpoint,
            "--cpus",
            &client,
            "--driver",
            driver,
            "--connections",
            connections,
            "--size",
            size,
            "--depth",
            depth,
            "--duration",
            &duration,
        ];
        if args.json {
            words.push("--json");
        }
        let Command::Load(load) = Cli::try_parse_from(words)?.command else {
            bail!("the load client has no such flags");
        };
        let exit = load::run(&load)?;
        if signals.count() > 0 || exit != Exit::Ok {
            return Ok(exit);
        }
    }
    server.stop(END_PATIENCE)?;
    say(
        "\nThe same by hand: `ringmill serve echo tcp://:7000` and `ringmill load echo tcp://:7000`.",
    );
    Ok(Exit::Ok)
}
