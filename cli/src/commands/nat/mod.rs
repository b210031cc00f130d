//! `ringmill nat`: a UDP NAT, load balancer and impairment simulator with a console, a control socket
//! and counters. `ringmill cf-nat` is the same with another command line.

use std::fmt::Display;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use ringmill_engine::impairment::{Impairment, Phase, Rebinding, Scenario};
use ringmill_engine::time::{from_duration, monotonic_now};
use ringmill_engine::{Engine, Limits, Notice};
use ringmill_protocols::nat::{
    Balancing, Event, FlowNumbers, Info, Nat, PortReuse, Settings, State, WhenFull,
};
use serde_json::{Value, json};

use crate::args::{DriverArg, EngineArgs, ShardsArg, parse_connections};
use crate::console::{self, Line};
use crate::endpoint::{Endpoint, Scheme};
use crate::exit::{Exit, UsageError};
use crate::launch::{self, Placement};
use crate::metrics::{MetricsServer, Watched};
use crate::printer::say;
use crate::server::ConsoleArgs;
use crate::signals::EndRequests;
use crate::units::{parse_duration, parse_size};

pub mod cf;
pub mod pcap;
pub mod socket;
pub mod spec;
pub mod steer;

use pcap::{Capture, Captured};
use socket::ControlSocket;

/// Between two log lines of the same kind.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Between two `interval` events.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// How soon events and the end of a shard are seen; signals and words are seen at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Receive buffers of each shard: a datagram of each of so many clients in one turn. With fewer, the
/// receives of the others end for want of a buffer and are armed again one by one.
const DATAGRAM_BUFFERS: u32 = 2048;
/// Files that the process needs beside one socket for each entry, without io_uring.
const FILES_RESERVED: usize = 256;

/// Ports of one range to listen at: each is a socket on every shard.
const LISTEN_PORTS_MAX: usize = 1_000;

/// How destinations are chosen, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BalanceArg {
    /// Evenly at random, by seed and flow.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
    /// The one that the fewest entries use.
    LeastUsed,
    /// By the client's address and port.
    Hash,
}

/// What happens to new clients when the table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum WhenFullArg {
    /// Their datagrams are dropped.
    #[default]
    Refuse,
    /// They take the place of the entry that was used longest ago.
    EvictOldest,
}

/// Which port is reused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PortReuseArg {
    /// The one that was free longest.
    #[default]
    Oldest,
    /// The one that became free last: what is on its way to the old client reaches the new one.
    Newest,
}

/// How flows are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FlowsArg {
    /// By the client's address and port.
    #[default]
    Client,
    /// By the order in which clients come.
    Arrival,
}

/// Flags of `ringmill nat`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub struct NatArgs {
    /// Where clients send to: ':PORT' is this machine only, '*:PORT' every address; ':FROM-TO' a range.
    #[arg(value_name = "LISTEN")]
    pub listen: String,

    /// Where their datagrams go: HOST:PORT, one or more.
    #[arg(required = true, value_name = "DESTINATION")]
    pub destinations: Vec<String>,

    /// Listen here too; may be repeated.
    #[arg(long = "listen", value_name = "LISTEN")]
    pub more_listens: Vec<String>,

    /// Send on to the port at which a datagram came, whatever the destination's is: for servers that name
    /// further ports.
    #[arg(long)]
    pub keep_port: bool,

    /// Send from these local addresses in turn: one address has some 28,000 ports.
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',')]
    pub sources: Vec<IpAddr>,

    /// Send from these local ports instead of the kernel's choice.
    #[arg(long, value_name = "FROM-TO", value_parser = parse_ports)]
    pub ports: Option<RangeInclusive<u16>>,

    /// Which of --ports is reused first.
    #[arg(long, value_enum, default_value_t, requires = "ports")]
    pub port_reuse: PortReuseArg,

    /// How a client's destination is chosen.
    #[arg(long, value_enum, default_value_t)]
    pub balance: BalanceArg,

    /// Most clients at a time.
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_connections, default_value = "10000")]
    pub entries: usize,

    /// What happens to new clients when there are as many.
    #[arg(long, value_enum, default_value_t)]
    pub when_full: WhenFullArg,

    /// Forget a client on which nothing passed for this long; 0 never.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub entry_timeout: Duration,

    /// Leave out a destination that answers nothing for this long; 0 never.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15s")]
    pub destination_timeout: Duration,

    /// An answer from another destination of the list moves the client there.
    #[arg(short = 'r', long)]
    pub reverse: bool,

    /// Drop what does not begin like a DTLS record.
    #[arg(short = 'x', long)]
    pub dtls_only: bool,

    /// Where all random decisions come from [default: chosen and printed].
    #[arg(long, value_name = "N", help_heading = "Impairment")]
    pub seed: Option<u64>,

    /// How flows are numbered, on which decisions depend.
    #[arg(long, value_enum, default_value_t, help_heading = "Impairment")]
    pub flows: FlowsArg,

    /// What happens to datagrams both ways, such as loss=1%,delay=20ms; see --help.
    #[arg(long, value_name = "SPEC", help_heading = "Impairment")]
    pub impair: Option<String>,

    /// What else happens on the way to destinations.
    #[arg(long, value_name = "SPEC", help_heading = "Impairment")]
    pub forward: Option<String>,

    /// What else happens on the way back.
    #[arg(long, value_name = "SPEC", help_heading = "Impairment")]
    pub backward: Option<String>,

    /// Move each client to another local port (or '/address') as often as this.
    #[arg(long, value_name = "TIME[/address]", value_parser = spec::parse_rebinding, help_heading = "Impairment")]
    pub rebind: Option<Rebinding>,

    /// A TOML file of phases instead: what happens when.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["impair", "forward", "backward", "rebind"],
        help_heading = "Impairment"
    )]
    pub scenario: Option<PathBuf>,

    /// Bytes that each shard may hold back for delays and queues; more is dropped and counted.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64MiB", help_heading = "Impairment")]
    pub hold: u64,

    /// Take commands at this Unix socket and answer with JSON.
    #[arg(long, value_name = "unix:PATH", value_parser = parse_control)]
    pub control: Option<PathBuf>,

    /// Write what comes in and goes out to this file, for network analysers.
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,

    /// Print events as NDJSON: listening, interval (each second), nat, stopped. No console then.
    #[arg(long)]
    pub json: bool,

    /// What standard input means.
    #[command(flatten)]
    pub console: ConsoleArgs,

    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  ringmill nat :5784 10.0.0.1:5684 10.0.0.2:5684             balance over two servers
  ringmill nat :5784 localhost:5684 --impair loss=5%,delay=50ms,jitter=10ms --seed 1
  ringmill nat :5784 localhost:5684 --rebind 30s             what connection ids are for
  ringmill nat :5784 localhost:5684 --control unix:/run/nat.sock
  ringmill nat 10.0.0.9:24601 10.0.0.1:24601 --listen 10.0.0.9:40000-40009 --keep-port
  echo info | nc -U /run/nat.sock

Type 'help' at its console for the commands; --help explains the impairments.";

fn long_help() -> String {
    [EXAMPLES, spec::HELP, SCENARIO].join("\n\n")
}

const SCENARIO: &str = "\
Scenario (--scenario): the same in a file, over time
  seed = 7
  repeat_ms = 60000
  [[phase]]
  name = \"good\"
  [[phase]]
  name = \"train in a tunnel\"
  from_ms = 20000
  rebinding = { every_ms = 5000, changes = \"port\" }
  [phase.forward]
  loss = { model = \"uniform\", probability = 0.3 }
  delay_us = 80000
  [phase.backward]
  rate = { bits_per_second = 1000000, queue_bytes_max = 50000, queue = { policy = \"codel\" } }";

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let parse = |port: &str| port.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match text
        .split_once('-')
        .map(|(from, to)| (parse(from), parse(to)))
    {
        Some((Some(from), Some(to))) if from <= to => Ok(from..=to),
        _ => Err(format!("'{text}' is no range of ports: write 40000-49999")),
    }
}

fn parse_control(text: &str) -> Result<PathBuf, String> {
    match Endpoint::parse_with(text, None) {
        Ok(Endpoint::Unix(path)) => Ok(path),
        Ok(_) | Err(_) => Err(format!("'{text}' is no Unix socket: write unix:/path")),
    }
}

/// Where clients send to.
#[derive(Debug, Clone, PartialEq)]
struct Listen {
    /// As it is shown.
    shown: String,
    endpoint: Endpoint,
}

impl Listen {
    fn parse(text: &str) -> Result<Self, String> {
        let endpoint =
            Endpoint::parse_with(text, Some(Scheme::Udp)).map_err(|error| error.to_string())?;
        if endpoint.scheme() != Scheme::Udp {
            return Err(format!(
                "'{text}' is no UDP endpoint: write :PORT or HOST:PORT"
            ));
        }
        Ok(Self {
            shown: text.to_owned(),
            endpoint,
        })
    }

    /// The same for `HOST:FROM-TO` too: one for each port.
    fn parse_range(text: &str) -> Result<Vec<Self>, String> {
        let range = text
            .rsplit_once(':')
            .filter(|(_, ports)| ports.contains('-') && !ports.contains(char::is_alphabetic));
        let Some((host, ports)) = range else {
            return Self::parse(text).map(|listen| vec![listen]);
        };
        let ports = parse_ports(ports)?;
        if ports.len() > LISTEN_PORTS_MAX {
            return Err(format!(
                "'{text}' are {} ports: {LISTEN_PORTS_MAX} at most",
                ports.len()
            ));
        }
        ports
            .map(|port| Self::parse(&format!("{host}:{port}")))
            .collect()
    }
}

impl NatArgs {
    fn scenario(&self) -> Result<Scenario> {
        if let Some(path) = &self.scenario {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let wrong = |error: &dyn Display| UsageError(format!("{}: {error}", path.display()));
            let scenario: Scenario = toml::from_str(&text).map_err(|error| wrong(&error))?;
            scenario.validate().map_err(|error| wrong(&error))?;
            return Ok(scenario);
        }
        let mut both = Impairment::default();
        let apply = |model: &mut Impairment, flag: &str, text: &Option<String>| match text {
            Some(text) => spec::apply(model, text)
                .map_err(|error| UsageError(format!("--{flag} '{text}': {error}"))),
            None => Ok(()),
        };
        apply(&mut both, "impair", &self.impair)?;
        let (mut forward, mut backward) = (both.clone(), both);
        apply(&mut forward, "forward", &self.forward)?;
        apply(&mut backward, "backward", &self.backward)?;
        Ok(Scenario::of(Phase {
            name: String::new(),
            from_ms: 0,
            forward,
            backward,
            rebinding: self.rebind,
        }))
    }

    fn settings(&self) -> Result<Settings> {
        let destinations = self.destinations.iter();
        let destinations: Result<Vec<_>, _> = destinations
            .map(|text| steer::destination(text).map_err(UsageError))
            .collect();
        let scenario = self.scenario()?;
        let optional = |time: Duration| (!time.is_zero()).then(|| from_duration(time));
        Ok(Settings {
            destinations: destinations?,
            sources: self.sources.clone(),
            ports: self.ports.clone(),
            port_reuse: match self.port_reuse {
                PortReuseArg::Oldest => PortReuse::Oldest,
                PortReuseArg::Newest => PortReuse::Newest,
            },
            balancing: match self.balance {
                BalanceArg::Random => Balancing::Random,
                BalanceArg::RoundRobin => Balancing::RoundRobin,
                BalanceArg::LeastUsed => Balancing::LeastUsed,
                BalanceArg::Hash => Balancing::Hash,
            },
            entries_max: self.entries,
            when_full: match self.when_full {
                WhenFullArg::Refuse => WhenFull::Refuse,
                WhenFullArg::EvictOldest => WhenFull::EvictOldest,
            },
            entry_timeout: optional(self.entry_timeout),
            destination_timeout: optional(self.destination_timeout),
            keep_port: self.keep_port,
            reverse_update: self.reverse,
            dtls_only: self.dtls_only,
            flow_numbers: match self.flows {
                FlowsArg::Client => FlowNumbers::Client,
                FlowsArg::Arrival => FlowNumbers::Arrival,
            },
            seed: self.seed.or(scenario.seed).unwrap_or_else(any_seed),
            scenario,
            held_bytes_max: usize::try_from(self.hold).unwrap_or(usize::MAX),
        })
    }
}

/// A seed that nobody chose, short enough to be typed again.
fn any_seed() -> u64 {
    RandomState::new().hash_one(0) % 1_000_000_000
}

/// Runs the NAT until `exit` or a signal.
///
/// # Errors
/// When a flag makes no sense, a name has no address or a port is in use.
pub fn run(args: &NatArgs) -> Result<Exit> {
    let texts = std::iter::once(&args.listen).chain(&args.more_listens);
    let listens: Result<Vec<_>, _> = texts.map(|text| Listen::parse_range(text)).collect();
    Nating {
        listens: listens.map_err(UsageError)?.concat(),
        settings: args.settings()?,
        json: args.json,
        console: args.console,
        control: args.control.clone(),
        pcap: args.pcap.clone(),
        engine: args.engine.clone(),
    }
    .run()
}

/// A NAT process from start to end.
struct Nating {
    listens: Vec<Listen>,
    settings: Settings,
    json: bool,
    console: ConsoleArgs,
    control: Option<PathBuf>,
    pcap: Option<PathBuf>,
    engine: EngineArgs,
}

impl Nating {
    fn run(self) -> Result<Exit> {
        let control = std::thread::current();
        let signals = EndRequests::watch(control.clone())?;
        let placement = self.place()?;
        self.check_sources()?;
        let shards = placement.plan.shards.len() as u16;
        let capture = match &self.pcap {
            Some(path) => Some(
                Capture::start(path).with_context(|| format!("cannot write {}", path.display()))?,
            ),
            None => None,
        };
        let tap = capture.as_ref().map(Capture::tap);
        let nat = Arc::new(Nat::with_tap(self.settings.clone(), shards, tap));
        let mut service = nat.service("nat");
        for listen in &self.listens {
            service = launch::listen(service, &listen.endpoint)?;
        }
        let limits = Limits {
            max_connections: placement.connections_max,
            datagram_buffers: DATAGRAM_BUFFERS,
            ..Limits::default()
        };
        let engine = launch::builder(&self.engine, limits, &placement)
            .service(service)
            .start()?;
        let bound = engine.addresses().iter();
        let own: Vec<SocketAddr> = bound
            .filter_map(|bound| match bound.address {
                ringmill_engine::Address::Ip(local) => Some(local),
                ringmill_engine::Address::Unix(_) => None,
            })
            .collect();
        self.check_loops(&own)?;
        let metrics = self.engine.metrics.map(MetricsServer::start).transpose()?;
        if let Some(metrics) = &metrics {
            metrics.watch(Watched {
                services: engine.services().to_vec(),
                shards: engine.metrics().to_vec(),
                driver: engine.driver().to_string(),
                nat: Some(Arc::clone(&nat)),
                ..Watched::default()
            });
        }
        let socket = match &self.control {
            Some(path) => {
                let (steered, ends) = (Arc::clone(&nat), signals.clone());
                let own = own.clone();
                let obey = move |line: &str| {
                    let answer = steer::obey(&steered, &own, line);
                    if answer.exit {
                        ends.request();
                        control.unpark();
                    }
                    answer
                };
                let socket = ControlSocket::start(path, Arc::new(obey))
                    .with_context(|| format!("cannot take commands at {}", path.display()))?;
                Some(socket)
            }
            None => None,
        };
        let lines = if self.console.is_on(self.json) {
            Some(console::lines(std::thread::current())?)
        } else {
            None
        };
        self.announce(&engine, &placement, metrics.as_ref());
        let running = Running {
            nat,
            own,
            engine,
            signals,
            lines,
            json: self.json,
            log: Log::default(),
            _socket: socket,
        };
        let exit = running.watch()?;
        if let Some(capture) = capture {
            let Captured { written, lost } =
                capture.finish().context("the capture is not whole")?;
            let event = json!({ "type": "pcap", "written": written, "lost": lost });
            say(
                self.json,
                &event,
                format_args!("{written} datagrams captured, {lost} left out"),
            );
        }
        Ok(exit)
    }

    /// Plans the shards: as many rings as the entries need, and a single one where all flows meet.
    fn place(&self) -> Result<Placement> {
        let phases = self.settings.scenario.phases.iter();
        let meets = |model: &Impairment| model.rate.is_some_and(|rate| !rate.per_flow);
        let one = phases
            .clone()
            .any(|phase| meets(&phase.forward) || meets(&phase.backward));
        let mut engine = self.engine.clone();
        if one {
            match engine.shards {
                ShardsArg::Count(1) | ShardsArg::Auto => engine.shards = ShardsArg::Count(1),
                ShardsArg::Count(count) => bail!(UsageError(format!(
                    "--shards {count}: a rate that all flows share is one queue on one shard; \
                     leave --shards out, or give each flow its own with 'per-flow'"
                ))),
            }
        }
        let sockets = self.settings.entries_max + 2 * self.listens.len();
        let placement = launch::place(&engine, Some(sockets), false)?;
        if one && placement.plan.shards.len() > 1 {
            bail!(UsageError(format!(
                "{} entries need {} rings under the limit of open files, but a rate that all \
                 flows share is one queue on one: lower -n, raise the limit (ulimit -n), or give \
                 each flow its own rate with 'per-flow'",
                self.settings.entries_max,
                placement.plan.shards.len()
            )));
        }
        Ok(placement)
    }

    /// An address that is not ours would only show when the first client comes.
    fn check_sources(&self) -> Result<()> {
        for source in &self.settings.sources {
            std::net::UdpSocket::bind(SocketAddr::new(*source, 0)).map_err(|error| {
                UsageError(format!("--sources {source}: cannot send from it: {error}"))
            })?;
        }
        for (name, address) in &self.settings.destinations {
            let sources = &self.settings.sources;
            let reaches = |source: &IpAddr| source.is_ipv6() == address.is_ipv6();
            if !sources.is_empty() && !sources.iter().any(reaches) {
                bail!(UsageError(format!(
                    "{name} is {address}, but no address of --sources has its IP version"
                )));
            }
        }
        Ok(())
    }

    fn check_loops(&self, own: &[SocketAddr]) -> Result<()> {
        for (name, address) in &self.settings.destinations {
            let keeps_port = self.settings.keep_port;
            steer::refuse_loop(own, name, *address, keeps_port).map_err(UsageError)?;
        }
        Ok(())
    }

    fn announce(&self, engine: &Engine, placement: &Placement, metrics: Option<&MetricsServer>) {
        let notes = placement.note.iter().map(String::as_str);
        for note in notes.chain(engine.driver_note()) {
            eprintln!("ringmill: {note}");
        }
        let files = ringmill_engine::sys::socket::raise_file_limit();
        let epoll = engine.driver() == ringmill_engine::DriverKind::Epoll;
        if epoll && self.settings.entries_max > files.saturating_sub(FILES_RESERVED) {
            eprintln!(
                "ringmill: without io_uring each entry needs an open file, of which this process \
                 may have {files}: further clients are refused (ulimit -n raises it)"
            );
        }
        if self.engine.driver == DriverArg::Auto && epoll {
            eprintln!("ringmill: io_uring is not available here; `ringmill doctor` says why");
        }
        for bound in engine.addresses() {
            let (shards, driver) = (engine.shards(), engine.driver());
            let event = json!({
                "type": "listening",
                "endpoint": bound.to_string(),
                "destinations": self.settings.destinations.iter().map(|(name, _)| name).collect::<Vec<_>>(),
                "shards": shards,
                "driver": driver,
                "seed": self.settings.seed,
                "pid": std::process::id(),
            });
            let plural = if shards == 1 { "" } else { "s" };
            say(
                self.json,
                &event,
                format_args!("nat at {bound}, {shards} shard{plural}, {driver}"),
            );
        }
        if !self.settings.scenario.is_clean() {
            let seed = self.settings.seed;
            say(self.json, &Value::Null, format_args!("seed {seed}"));
        }
        if let Some(metrics) = metrics {
            let url = metrics.url();
            let event = json!({ "type": "metrics", "url": url });
            say(self.json, &event, format_args!("metrics at {url}"));
        }
        if let Some(path) = &self.control {
            let path = path.display();
            let event = json!({ "type": "control", "path": path.to_string() });
            say(self.json, &event, format_args!("commands at unix:{path}"));
        }
    }
}

/// A NAT that runs.
struct Running {
    nat: Arc<Nat>,
    /// Where it listens.
    own: Vec<SocketAddr>,
    engine: Engine,
    signals: EndRequests,
    lines: Option<Receiver<Line>>,
    json: bool,
    log: Log,
    _socket: Option<ControlSocket>,
}

impl Running {
    fn watch(mut self) -> Result<Exit> {
        let mut asked = 0;
        let mut failed = None;
        let mut interval = Instant::now();
        let mut before = self.nat.info(monotonic_now());
        while !self.engine.has_ended() {
            std::thread::park_timeout(LOOK_INTERVAL);
            let count = self.signals.count();
            if count > asked {
                asked = count;
                match count {
                    1 => self.engine.stop(),
                    _ => self.engine.stop_now(),
                }
            }
            self.take_lines(asked > 0);
            self.tell_events();
            while let Some(notice) = self.engine.take_notice() {
                if let Notice::ShardFailed { shard, error } = notice {
                    failed = Some(format!("shard {shard} failed: {error}"));
                }
            }
            if self.json && interval.elapsed() >= EVENT_INTERVAL {
                let seconds = interval.elapsed().as_secs_f64();
                interval = Instant::now();
                let now = self.nat.info(monotonic_now());
                say(true, &interval_event(&before, &now, seconds), "");
                before = now;
            }
            if !self.json {
                self.log.look(&self.nat);
            }
        }
        self.tell_events();
        let info = self.nat.info(monotonic_now());
        let result = self.engine.join();
        if let Some(failed) = failed {
            bail!(failed);
        }
        result?;
        let mut event = json!({ "type": "stopped" });
        if let (Value::Object(event), Value::Object(info)) = (&mut event, json!(info)) {
            event.extend(info);
        }
        let own: Vec<_> = self.own.iter().map(SocketAddr::to_string).collect();
        say(
            self.json,
            &event,
            format_args!(
                "NAT {} stopped. {} forwarded messages, {} backwarded",
                own.join(" "),
                info.counters.forward_sent_datagrams,
                info.counters.backward_sent_datagrams
            ),
        );
        Ok(if asked > 1 {
            Exit::Interrupted
        } else {
            Exit::Ok
        })
    }

    /// Obeys what was typed. The end of the input ends nothing: it may be a script's.
    fn take_lines(&self, stopping: bool) {
        let lines = self.lines.iter().flat_map(Receiver::try_iter);
        for line in lines {
            let Line::Text(text) = line else { continue };
            if stopping {
                continue;
            }
            let answer = steer::obey(&self.nat, &self.own, String::from_utf8_lossy(&text).trim());
            if self.json {
                say(true, &answer.json, "");
            } else if !answer.text.is_empty() {
                say(false, &Value::Null, &answer.text);
            }
            if answer.exit {
                self.signals.request();
                std::thread::current().unpark();
            }
        }
    }

    fn tell_events(&self) {
        while let Some(event) = self.nat.take_event() {
            if self.json {
                let mut line = json!({ "type": "nat" });
                if let (Value::Object(line), Value::Object(event)) = (&mut line, json!(event)) {
                    line.extend(event);
                }
                say(true, &line, "");
                continue;
            }
            match event {
                Event::Destination {
                    destination,
                    state,
                    revived,
                } => match state {
                    State::Active if revived => eprintln!("revived {destination}"),
                    State::Active => {}
                    State::Stale => eprintln!("expires {destination}"),
                    State::Probing | State::Pending => eprintln!("revive {destination}"),
                },
                Event::Phase { phase } => eprintln!("phase {phase}"),
                Event::TimedOut { client, port } => {
                    eprintln!("expired listen on {port} for incoming {client}");
                }
            }
        }
    }
}

fn interval_event(before: &Info, now: &Info, seconds: f64) -> Value {
    let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
    let (b, n) = (&before.counters, &now.counters);
    json!({
        "type": "interval",
        "seconds": seconds,
        "entries": now.entries,
        "forward_datagrams_per_s": rate(n.forward_sent_datagrams, b.forward_sent_datagrams),
        "forward_bytes_per_s": rate(n.forward_sent_bytes, b.forward_sent_bytes),
        "backward_datagrams_per_s": rate(n.backward_sent_datagrams, b.backward_sent_datagrams),
        "backward_bytes_per_s": rate(n.backward_sent_bytes, b.backward_sent_bytes),
        "counters": now.counters,
        "forward": now.forward,
        "backward": now.backward,
        "destinations": now.destinations,
    })
}

/// The lines that the log gets every ten seconds when something has changed.
#[derive(Default)]
struct Log {
    looked: Option<Instant>,
    before: Option<Info>,
}

impl Log {
    fn look(&mut self, nat: &Nat) {
        if self
            .looked
            .is_some_and(|looked| looked.elapsed() < LOG_INTERVAL)
        {
            return;
        }
        self.looked = Some(Instant::now());
        let now = nat.info(monotonic_now());
        if let Some(before) = self.before.replace(now) {
            let now = self.before.as_ref().unwrap_or(&before);
            for line in log_lines(&before, now) {
                eprintln!("{line}");
            }
        }
    }
}

fn log_lines(before: &Info, now: &Info) -> Vec<String> {
    let mut lines = Vec::new();
    for (what, before, now) in [
        ("forward", &before.forward, &now.forward),
        ("backward", &before.backward, &now.backward),
    ] {
        let dropped = now.dropped() - before.dropped();
        let offered = now.offered - before.offered;
        if dropped > 0 {
            lines.push(format!(
                "manipulated {what} {dropped}/{}%, sent {what} {}.",
                dropped * 100 / offered.max(1),
                now.passed - before.passed
            ));
        }
    }
    for (what, before, now) in [
        (
            "wrong routed messages",
            before.counters.dropped_wrong_routed,
            now.counters.dropped_wrong_routed,
        ),
        (
            "timed out NAT entries",
            before.counters.entries_timed_out,
            now.counters.entries_timed_out,
        ),
    ] {
        if now > before {
            lines.push(format!("{what} {} (overall {now}).", now - before));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_an_endpoint_for_each_port() {
        let shown = |text| {
            Listen::parse_range(text)
                .map(|all| all.into_iter().map(|next| next.shown).collect::<Vec<_>>())
        };
        let strings = |all: &[&str]| Ok(all.iter().map(|next| (*next).to_owned()).collect());
        for (text, expected) in [
            (":5784", strings(&[":5784"])),
            ("my-host:5784", strings(&["my-host:5784"])),
            (":7-9", strings(&[":7", ":8", ":9"])),
            ("[::1]:7-8", strings(&["[::1]:7", "[::1]:8"])),
            (
                "*:9-7",
                Err("'9-7' is no range of ports: write 40000-49999".to_owned()),
            ),
            (
                ":1-1001",
                Err("':1-1001' are 1001 ports: 1000 at most".to_owned()),
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
