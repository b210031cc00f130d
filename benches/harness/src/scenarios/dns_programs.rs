//! The programs of the DNS scenarios, ringmill's and tcpscaler's, and one measured moment of a load
//! against a server: what left and what came back, counted by the kernel for both alike.
//!
//! tcpscaler's clients report nothing of what they reached, and its `-R` slows them down, so both kinds
//! of client are counted on their sockets (`ss`): bytes that the server's kernel has confirmed, and bytes
//! that the client has read. It must never count by different means what is compared.

use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::drive::start_server;
use crate::host::{Noise, NoiseGauge, cpu_time};
use crate::process::{Line, Running};
use crate::rounds::Run;
use crate::setup::Setup;
use crate::tcp_info::Look;

use super::serve;
use super::udp_oneway::free_port;

/// A query of tcpscaler over TCP, and one of ringmill for the same name; an echo has as many.
pub(super) const QUERY_BYTES: f64 = 31.0;
/// The name of tcpscaler in the tables.
pub(super) const PEER: &str = "tcpscaler";
/// A rate is reached when it is missed by no more.
const HONEST_SHARE: f64 = 0.01;
/// tcpscaler's `-n`: it opens one by one, so it is never as fast.
const PEER_OPEN_RATE: u32 = 20_000;
/// tcpscaler's pauses before it sends: 3 s, 1 s for each 5,000 connections, and 5 s; the rest is for
/// opening.
const FIRST_QUERY_TIMEOUT: Duration = Duration::from_secs(40);
/// From the first query until the window begins.
const LEAD: Duration = Duration::from_secs(1);
/// The load goes on for so long beyond the window: two looks take time on busy CPUs.
const TAIL_S: f64 = 2.0;
/// Beyond its own seconds, a load waits for answers and closes.
const GRACE: Duration = Duration::from_secs(30);
/// A server that is not up by then will not be.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// `ringmill load dns` with these `--arrivals` and what more flags follow them.
    Ringmill(&'static str),
    /// `tcpclient`; its arrivals are Poisson.
    Peer,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// `ringmill serve echo`.
    Ringmill,
    /// `tcpserver`.
    Peer,
}

/// One of tcpscaler's programs: as it is started, and as it is shown.
///
/// # Errors
/// There is no such program.
pub(super) fn peer(setup: &Setup, name: &str) -> anyhow::Result<(Line, Line)> {
    let folder = setup
        .tcpscaler
        .as_ref()
        .context("no --tcpscaler was given")?;
    let program = folder.join(name);
    if !program.is_file() {
        bail!("no {} there", program.display());
    }
    let line = with_libraries(&folder.join("root"), &Line::new(&program));
    Ok((line, Line::new(name)))
}

/// The same program, finding what lies in the unpacked packages below `root`, if there is any.
pub(super) fn with_libraries(root: &std::path::Path, line: &Line) -> Line {
    let folders: Vec<String> = ["usr/lib", "lib"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(root.join(folder)).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .map(|path: PathBuf| path.to_string_lossy().into_owned())
        .collect();
    if folders.is_empty() {
        return line.clone();
    }
    Line::new("env")
        .joined(&Line::new(format!("LD_LIBRARY_PATH={}", folders.join(":"))))
        .joined(line)
}

impl Client {
    /// Its name in the tables.
    pub(super) fn name(self) -> String {
        match self {
            Client::Ringmill(_) => "ringmill".into(),
            Client::Peer => PEER.into(),
        }
    }

    /// As it is started, and as it is shown.
    ///
    /// # Errors
    /// The program is missing.
    pub(super) fn line(
        self,
        setup: &Setup,
        port: &str,
        connections: usize,
        rate: f64,
        seconds: f64,
    ) -> anyhow::Result<(Line, Line)> {
        match self {
            Client::Ringmill(arrivals) => {
                let line = setup.ringmill()?.args(&format!(
                    "load dns tcp://127.0.0.1:{port} --connections {connections} --rate {rate:.0} \
                     --arrivals {arrivals} --warmup 0 --duration {seconds}s --reset --shards 1 --cpus {} \
                     --json",
                    setup.load_cpu
                ));
                Ok((line.clone(), line))
            }
            Client::Peer => {
                let flags = format!(
                    "-p {port} -c {connections} -r {rate:.0} -n {PEER_OPEN_RATE} -t {seconds:.0} 127.0.0.1"
                );
                let (line, shown) = peer(setup, "tcpclient")?;
                Ok((line.args(&flags), shown.args(&flags)))
            }
        }
    }
}

impl Server {
    /// Its name in the tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Server::Ringmill => "ringmill serve echo",
            Server::Peer => "tcpscaler tcpserver",
        }
    }

    /// As it is started, and as it is shown.
    ///
    /// # Errors
    /// The program is missing.
    pub(super) fn line(self, setup: &Setup, port: &str) -> anyhow::Result<(Line, Line)> {
        match self {
            Server::Ringmill => {
                let line = serve(setup, "echo", "tcp", "uring")?;
                Ok((line.clone(), line))
            }
            Server::Peer => {
                let (line, shown) = peer(setup, "tcpserver")?;
                let line = line.args(port);
                let is_root = std::fs::metadata("/proc/self")?.uid() == 0;
                // As root it would raise this host's fs.nr_open: not in a benchmark.
                let line = match is_root {
                    true => Line::new("setpriv")
                        .args("--inh-caps=-sys_resource --bounding-set=-sys_resource")
                        .joined(&line),
                    false => line,
                };
                Ok((line, shown.args(port)))
            }
        }
    }

    /// Starts it; its port.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn start(self, setup: &Setup) -> anyhow::Result<(Running, u16)> {
        if self == Server::Ringmill {
            let (running, address) =
                start_server(&self.line(setup, "0")?.0, "tcp", setup.server_cpu)?;
            let port = address
                .rsplit(':')
                .next()
                .and_then(|port| port.parse().ok());
            return Ok((running, port.context("an address without a port")?));
        }
        let port = free_port()?;
        let running = Running::start(&self.line(setup, &port.to_string())?.0, setup.server_cpu)?;
        // What it says when it listens stays in its buffer.
        let deadline = Instant::now() + SERVER_TIMEOUT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                bail!(
                    "`{}` does not listen{}",
                    running.name(),
                    running.complaint()
                );
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok((running, port))
    }
}

/// A load against a server at one rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    pub(super) client: Client,
    pub(super) server: Server,
    pub(super) connections: usize,
    /// Queries per second asked for.
    pub(super) rate: f64,
    /// Of the window.
    pub(super) seconds: f64,
}

/// What was seen in the window.
#[derive(Debug)]
pub(super) struct Probe {
    /// Queries per second that reached the server's host.
    pub(super) sent_per_s: f64,
    /// Answers per second that the client has read.
    pub(super) answered_per_s: f64,
    /// CPU seconds of the server per second.
    pub(super) server_busy: f64,
    /// The same of the client.
    pub(super) load_busy: f64,
    pub(super) noise: Noise,
    window_s: f64,
    /// ringmill's own report; null for tcpscaler, which has none.
    pub(super) report: Value,
}

impl Conditions {
    /// Starts both, looks twice, ends both.
    ///
    /// # Errors
    /// One of them fails, or no query ever leaves.
    pub(super) fn probe(&self, setup: &Setup) -> anyhow::Result<Probe> {
        let (server, port) = self.server.start(setup)?;
        let lead = if setup.quick { LEAD / 4 } else { LEAD };
        let whole_s = (self.seconds + lead.as_secs_f64() + TAIL_S).ceil();
        let (line, _) = self.client.line(
            setup,
            &port.to_string(),
            self.connections,
            self.rate,
            whole_s,
        )?;
        let load = Running::start(&line, setup.load_cpu)?;
        let deadline = Instant::now() + FIRST_QUERY_TIMEOUT;
        while Look::take(port)?.read == 0 {
            if Instant::now() > deadline || cpu_time(load.pid()).is_err() {
                bail!("no answer to `{}`{}", line.shown(), load.complaint());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        std::thread::sleep(lead);
        let gauge = NoiseGauge::start(setup.cpus(), &[server.pid(), load.pid()]);
        let moment = || -> anyhow::Result<(Instant, f64, f64, Look)> {
            let busy = |pid| Ok::<f64, anyhow::Error>(cpu_time(pid)?.total_s);
            let at = Instant::now();
            Ok((
                at,
                busy(server.pid())?,
                busy(load.pid())?,
                Look::take(port)?,
            ))
        };
        let first = moment()?;
        let complete = |moment: &(Instant, f64, f64, Look)| {
            let found = moment.3.connections;
            // tcpscaler goes on with what it has when a connect fails.
            ensure!(
                found >= self.connections as u64,
                "`{}` has {found} of {} connections in its window{}",
                line.shown(),
                self.connections,
                load.complaint()
            );
            Ok(())
        };
        complete(&first)?;
        std::thread::sleep(Duration::from_secs_f64(self.seconds));
        let last = moment().context("a program ended before the window did")?;
        complete(&last)?;
        let noise = gauge.finish();
        let (sent, answered) = first.3.rates_until(&last.3);
        let wall_s = (last.0 - first.0).as_secs_f64();
        let report = match self.client {
            Client::Ringmill(_) => final_report(&load, Duration::from_secs_f64(whole_s))?,
            Client::Peer => Value::Null,
        };
        // Past its maximum tcpscaler does not end in time: what it does after the window counts nowhere.
        drop(load);
        Ok(Probe {
            sent_per_s: sent / QUERY_BYTES,
            answered_per_s: answered / QUERY_BYTES,
            server_busy: (last.1 - first.1) / wall_s,
            load_busy: (last.2 - first.2) / wall_s,
            noise,
            window_s: wall_s,
            report,
        })
    }
}

/// The report that a ringmill load prints at its end.
///
/// # Errors
/// It ends without.
pub(super) fn final_report(load: &Running, seconds: Duration) -> anyhow::Result<Value> {
    let deadline = Instant::now() + seconds + GRACE;
    while let Some(line) = load.next_line(deadline)? {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if event["type"] == "report" {
            return Ok(event);
        }
    }
    bail!(
        "`{}` ended without a report{}",
        load.name(),
        load.complaint()
    )
}

impl Probe {
    /// Queries lost or not sent by ringmill's own account; 0 for tcpscaler, which has none.
    pub(super) fn missing(&self) -> f64 {
        ["lost", "unsent"]
            .iter()
            .filter_map(|key| self.report["dns"][key].as_f64())
            .sum()
    }

    /// The asked rate was reached there and back, and nothing was lost.
    pub(super) fn is_honest(&self, asked: f64) -> bool {
        // A Poisson count has a random part: three standard deviations of it where that is more.
        let chance = 3.0 / (asked * self.window_s).sqrt();
        let near = |rate: f64| (rate / asked - 1.0).abs() <= HONEST_SHARE.max(chance);
        near(self.sent_per_s) && near(self.answered_per_s) && self.missing() == 0.0
    }

    /// ringmill said that it was the limit.
    pub(super) fn said_so(&self) -> bool {
        self.report["limits"]["client_limited"].is_string()
    }

    fn to_json(&self, asked: f64) -> Value {
        json!({
            "asked_per_s": asked, "sent_per_s": self.sent_per_s,
            "answered_per_s": self.answered_per_s, "missing": self.missing(),
            "server_busy": self.server_busy, "load_busy": self.load_busy,
            "honest": self.is_honest(asked), "steal": self.noise.steal, "others": self.noise.others,
        })
    }
}

/// Where a search for the highest rate begins and ends.
struct Bounds {
    start: f64,
    max: f64,
    /// The step at which it ends, as a factor.
    resolution: f64,
}

impl Bounds {
    fn of(setup: &Setup) -> Bounds {
        if setup.quick {
            Bounds {
                start: 5_000.0,
                max: 10_000.0,
                resolution: 1.5,
            }
        } else {
            Bounds {
                start: 100_000.0,
                max: 12_800_000.0,
                resolution: 1.03,
            }
        }
    }
}

/// The highest honest rate.
pub(super) struct Highest {
    /// Queries per second asked for and reached.
    pub(super) rate: f64,
    /// Of that rate.
    pub(super) probe: Probe,
    tries: Vec<Value>,
    noise: Vec<Noise>,
}

/// Looks for the highest honest rate: doubles until one is missed, then halves the ratio between the
/// highest reached and the lowest missed. A rate counts as missed when it is missed twice.
///
/// # Errors
/// A program fails, or not even a hundredth of the first rate is reached.
pub(super) fn highest(setup: &Setup, conditions: Conditions) -> anyhow::Result<Highest> {
    let bounds = Bounds::of(setup);
    let (mut tries, mut noise) = (Vec::new(), Vec::new());
    let mut reached: Option<(f64, Probe)> = None;
    let mut missed: Option<f64> = None;
    let mut asked = bounds.start;
    loop {
        let mut honest = None;
        for _ in 0..2 {
            let probe = Conditions {
                rate: asked,
                ..conditions
            }
            .probe(setup);
            let probe = match probe {
                Ok(probe) => probe,
                // What breaks at a rate has not reached it; at the first one, nothing works.
                Err(error) if reached.is_some() => {
                    eprint!(" {:.0}k failed,", asked / 1e3);
                    tries.push(json!({"asked_per_s": asked, "failed": format!("{error:#}")}));
                    continue;
                }
                Err(error) => return Err(error),
            };
            tries.push(probe.to_json(asked));
            noise.push(probe.noise);
            let reached = probe.is_honest(asked);
            eprint!(
                " {:.0}{}",
                asked / 1e3,
                if reached { "k" } else { "k missed," }
            );
            if reached {
                honest = Some(probe);
                break;
            }
        }
        match honest {
            Some(probe) => reached = Some((asked, probe)),
            None => missed = Some(asked),
        }
        let low = reached.as_ref().map(|(rate, _)| *rate);
        asked = match (low, missed) {
            (Some(low), Some(high)) if high / low <= bounds.resolution => break,
            (Some(low), Some(high)) => (low * high).sqrt().round(),
            (Some(low), None) if low >= bounds.max => break,
            (Some(low), None) => low * 2.0,
            (None, _) if asked < bounds.start / 100.0 => {
                bail!("not even {asked:.0} queries/s are reached")
            }
            (None, _) => (asked / 2.0).round(),
        };
    }
    let (rate, probe) = reached.context("no rate was reached")?;
    Ok(Highest {
        rate,
        probe,
        tries,
        noise,
    })
}

impl Highest {
    /// A run of it, with further figures; a search is as noisy as its tries are on average.
    pub(super) fn into_run(
        self,
        more: impl IntoIterator<Item = (&'static str, f64)>,
        beyond: Value,
    ) -> Run {
        let mean = |of: fn(&Noise) -> f64| {
            self.noise.iter().map(of).sum::<f64>() / self.noise.len().max(1) as f64
        };
        let mut values = std::collections::BTreeMap::from([
            ("honest_per_s", self.rate),
            ("answered_per_s", self.probe.answered_per_s),
            ("server_busy", self.probe.server_busy),
            ("load_busy", self.probe.load_busy),
        ]);
        values.extend(more);
        Run {
            values,
            noise: Noise {
                steal: mean(|noise| noise.steal),
                others: mean(|noise| noise.others),
            },
            detail: json!({"tries": self.tries, "beyond": beyond}),
        }
    }
}

/// The programs, server first, as a reader would type them.
pub(super) fn commands(setup: &Setup, conditions: Conditions) -> Vec<String> {
    let Conditions {
        client,
        server,
        connections,
        rate,
        seconds,
    } = conditions;
    let lines = [
        server.line(setup, "PORT"),
        client.line(setup, "PORT", connections, rate, seconds),
    ];
    lines
        .iter()
        .flatten()
        .map(|(_, shown)| shown.shown())
        .collect()
}

/// Both clients, tcpscaler only where it is named.
pub(super) fn clients(setup: &Setup) -> Vec<Client> {
    let peer = setup.tcpscaler.as_ref().map(|_| Client::Peer);
    [Client::Ringmill("poisson")]
        .into_iter()
        .chain(peer)
        .collect()
}
