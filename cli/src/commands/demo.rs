//! `ringmill demo`: an echo server and a load client on this machine, over loopback.
//!
//! The server is a process of its own, so that the CPU time of each side is told apart. It ends
//! when this process does, however that ends: its standard input is a pipe from here.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser as _};
use ringmill_engine::topology::{CpuList, Topology};
use serde::Deserialize;

use super::{Cli, Command, load};
use crate::args::DriverArg;
use crate::endpoint::{Endpoint, Scheme};
use crate::exit::Exit;
use crate::signals::EndRequests;
use crate::units;

/// A server that is not up by then will not be.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// A server that has not drained by then is ended by force.
const END_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

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

/// Which CPUs each side has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Split {
    server: CpuList,
    client: CpuList,
    shared: bool,
}

/// Halves the CPUs that we may use: by cores, or by the threads of the only core.
fn split(topology: &Topology) -> Split {
    let allowed = topology.cpus.iter().filter(|cpu| cpu.allowed);
    let mut cpus: Vec<(usize, usize)> = allowed.map(|cpu| (cpu.core, cpu.id)).collect();
    cpus.sort_unstable();
    let mut cores: Vec<usize> = cpus.iter().map(|(core, _)| *core).collect();
    cores.dedup();
    let of = |cpus: &[(usize, usize)]| cpus.iter().map(|(_, id)| *id).collect::<CpuList>();
    if cpus.len() < 2 {
        return Split {
            server: of(&cpus),
            client: of(&cpus),
            shared: true,
        };
    }
    let middle = if cores.len() < 2 {
        cpus.len() / 2
    } else {
        let first_of_client = cores[cores.len() / 2];
        cpus.partition_point(|(core, _)| *core < first_of_client)
    };
    Split {
        server: of(&cpus[..middle]),
        client: of(&cpus[middle..]),
        shared: false,
    }
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
    let server = Server::start(&split, args.driver)?;
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
        let driver = driver_name(args.driver);
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
    server.stop()?;
    say(
        "\nThe same by hand: `ringmill serve echo tcp://:7000` and `ringmill load echo tcp://:7000`.",
    );
    Ok(Exit::Ok)
}

fn driver_name(driver: DriverArg) -> &'static str {
    match driver {
        DriverArg::Auto => "auto",
        DriverArg::Uring => "uring",
        DriverArg::Epoll => "epoll",
    }
}

/// The server process. It is gone when this is dropped.
struct Server {
    process: Child,
    /// Its end is what the server waits for.
    input: Option<ChildStdin>,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Listening {
    #[serde(rename = "type")]
    kind: String,
    endpoint: Option<Endpoint>,
}

impl Server {
    fn start(split: &Split, driver: DriverArg) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let wanted = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let mut process = Process::new(program)
            .args(["serve", "echo"])
            .args(wanted)
            .args(["--cpus", &split.server.to_string()])
            .args(["--driver", driver_name(driver)])
            .args(["--json", "--console"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for us; we end the server when we are done with it.
            .process_group(0)
            .spawn()
            .context("cannot start the server process")?;
        let input = process.stdin.take();
        let output = process.stdout.take();
        let mut server = Self {
            process,
            input,
            endpoints: Vec::new(),
        };
        let (sender, said) = mpsc::channel();
        // Reads on to the end, so that the server never waits for a reader.
        std::thread::Builder::new()
            .name("server-output".into())
            .spawn(move || {
                let lines = output
                    .into_iter()
                    .flat_map(|out| BufReader::new(out).lines());
                for line in lines.map_while(std::result::Result::ok) {
                    let event: Option<Listening> = serde_json::from_str(&line).ok();
                    let listening = event.filter(|event| event.kind == "listening");
                    if let Some(endpoint) = listening.and_then(|event| event.endpoint) {
                        let _ = sender.send(endpoint);
                    }
                }
            })?;
        while server.endpoints.len() < wanted.len() {
            match said.recv_timeout(START_PATIENCE) {
                Ok(endpoint) => server.endpoints.push(endpoint),
                Err(RecvTimeoutError::Timeout) => bail!("the server process does not start"),
                // It has said why on standard error.
                Err(RecvTimeoutError::Disconnected) => bail!("the server process ended at once"),
            }
        }
        Ok(server)
    }

    fn endpoint(&self, scheme: Scheme) -> Result<String> {
        let mut endpoints = self.endpoints.iter();
        let found = endpoints.find(|endpoint| endpoint.scheme() == scheme);
        Ok(found.context("the server lacks an endpoint")?.to_string())
    }

    /// Ends the server as an operator would.
    fn stop(mut self) -> Result<()> {
        drop(self.input.take());
        let patience = Instant::now() + END_PATIENCE;
        while Instant::now() < patience {
            if let Some(status) = self.process.try_wait()? {
                if !status.success() {
                    bail!("the server process ended with {status}");
                }
                return Ok(());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        bail!("the server process did not end in time")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmill_engine::topology::{Cpu, NumaNode, Source};

    fn machine(cpus: &[(usize, usize, bool)]) -> Topology {
        let cpus = cpus.iter().map(|&(id, core, allowed)| Cpu {
            id,
            core,
            package: 0,
            node: None,
            smt: 0,
            allowed,
        });
        Topology {
            source: Source::Sysfs,
            cpus: cpus.collect(),
            nodes: Vec::<NumaNode>::new(),
            caches: Vec::new(),
            interfaces: Vec::new(),
            limits: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn each_side_has_cores_of_its_own_where_there_are_two() {
        let cases = [
            (vec![(0, 0, true)], "0", "0", true),
            (vec![(0, 0, true), (1, 1, false)], "0", "0", true),
            (vec![(0, 0, true), (1, 1, true)], "0", "1", false),
            (vec![(0, 0, true), (1, 0, true)], "0", "1", false),
            (
                vec![(0, 0, true), (1, 1, true), (2, 0, true), (3, 1, true)],
                "0,2",
                "1,3",
                false,
            ),
            (
                vec![(0, 0, true), (1, 1, true), (2, 2, true)],
                "0",
                "1-2",
                false,
            ),
        ];
        for (cpus, server, client, shared) in cases {
            let found = split(&machine(&cpus));
            let words = (
                found.server.to_string(),
                found.client.to_string(),
                found.shared,
            );
            assert_eq!(
                words,
                (server.to_owned(), client.to_owned(), shared),
                "{cpus:?}"
            );
        }
    }
}
