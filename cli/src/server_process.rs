//! A server of our own in a process of its own, so that CPU time, files and memory of each side are
//! told apart. It ends when this process does, however that ends: its standard input is a pipe from
//! here.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ringmill_engine::topology::{CpuList, Topology};
use serde_json::Value;

use crate::endpoint::{Endpoint, Scheme};

/// A server that is not up by then will not be.
const START_PATIENCE: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Which CPUs each side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) server: CpuList,
    pub(crate) client: CpuList,
    /// There is one CPU only, and both sides have it.
    pub(crate) shared: bool,
}

/// Halves the CPUs that we may use: by cores, or by the threads of the only core.
pub(crate) fn split(topology: &Topology) -> Split {
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

/// The server process. It is gone when this is dropped.
pub(crate) struct ServerProcess {
    process: Child,
    /// Its end is what the server waits for.
    input: Option<ChildStdin>,
    endpoints: Vec<Endpoint>,
    shards: u64,
    /// The last event with counters that it has printed.
    counters: Arc<Mutex<Option<Value>>>,
}

impl ServerProcess {
    /// Starts `ringmill serve echo` at these endpoints, each of one address, and waits until it
    /// serves.
    ///
    /// # Errors
    /// When it does not; it has said why on standard error.
    pub(crate) fn echo(endpoints: &[&str], flags: &[String]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut process = Command::new(program)
            .args(["serve", "echo"])
            .args(endpoints)
            .args(flags)
            // Whoever starts it has looked at the host for both ends.
            .args(["--json", "--console", "--tune", "off"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for us; we end the server when we are done with it.
            .process_group(0)
            .spawn()
            .context("cannot start the server process")?;
        let input = process.stdin.take();
        let output = process.stdout.take();
        let counters = Arc::default();
        let mut server = Self {
            process,
            input,
            endpoints: Vec::new(),
            shards: 0,
            counters: Arc::clone(&counters),
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
                    let event: Value = serde_json::from_str(&line).unwrap_or_default();
                    if event["counters"].is_object() {
                        *counters.lock().unwrap_or_else(PoisonError::into_inner) = Some(event);
                    } else if event["type"] == "listening" {
                        let _ = sender.send(event);
                    }
                }
            })?;
        while server.endpoints.len() < endpoints.len() {
            match said.recv_timeout(START_PATIENCE) {
                Ok(event) => {
                    let endpoint = event["endpoint"].as_str().unwrap_or_default();
                    server.endpoints.push(endpoint.parse()?);
                    server.shards = event["shards"].as_u64().unwrap_or(0);
                }
                Err(RecvTimeoutError::Timeout) => bail!("the server process does not start"),
                // It has said why on standard error.
                Err(RecvTimeoutError::Disconnected) => bail!("the server process ended at once"),
            }
        }
        Ok(server)
    }

    /// Where it serves, in the order of what was asked for.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The first endpoint of a scheme.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn endpoint(&self, scheme: Scheme) -> Result<String> {
        let mut endpoints = self.endpoints.iter();
        let found = endpoints.find(|endpoint| endpoint.scheme() == scheme);
        Ok(found.context("the server lacks an endpoint")?.to_string())
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How many shards it has.
    pub(crate) fn shards(&self) -> u64 {
        self.shards
    }

    /// What it counted, as of its last event: one each second, and a last one at its end.
    pub(crate) fn counters(&self) -> Option<Value> {
        let last = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().map(|event| event["counters"].clone())
    }

    /// Connections that it holds, as of its last event.
    pub(crate) fn open(&self) -> Option<u64> {
        self.counters()?["open"].as_u64()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Ends the server as an operator would.
    ///
    /// # Errors
    /// When it fails, or has not drained within `patience`.
    pub(crate) fn stop(&mut self, patience: Duration) -> Result<()> {
        drop(self.input.take());
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
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

impl Drop for ServerProcess {
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
