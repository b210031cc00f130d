//! `ringmill capacity server`: all tests of a host behind one control port, on every core.

use std::fmt::Display;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ringmill_engine::time::monotonic_now;
use ringmill_engine::{Address, Engine, Limits, Notice};
use ringmill_protocols::capacity::CONTROL_PORT;
use ringmill_protocols::capacity::admission::Admission;
use ringmill_protocols::capacity::keys::{KeyFile, KeyRing, SharedKey};
use ringmill_protocols::capacity::parameters::{Direction, ServerLimits, TEST_TIME_S};
use ringmill_protocols::capacity::rates::{EXTENDED_ROW_LAST, ROW_LAST};
use ringmill_protocols::capacity::server::{
    About, CapacityServer, Listener, Outlets, ServerEvent, ServerSnapshot, Settings, Totals,
    WallClock,
};
use ringmill_protocols::capacity::setup::ServerSettings;
use serde_json::{Value, json};

use super::options::{PacingArg, late_timers};
use crate::args::EngineArgs;
use crate::capacity::network::{LossWarnings, NetworkLosses, NetworkWatch};
use crate::endpoint::{Endpoint, Scheme};
use crate::exit::{Exit, UsageError};
use crate::launch::{self, Placement};
use crate::metrics::{MetricsServer, Watched};
use crate::printer::say;
use crate::signals::EndRequests;

/// How soon events are told and a step of the host's clock is followed.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Between two `interval` events, and between two looks at what the host loses.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// Events that wait to be told; a flood of requests drops what is beyond, and counts it.
const EVENTS_MAX: usize = 16_384;

/// Flags of `ringmill capacity server`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServerArgs {
    /// Take setup requests here; may be repeated, one for each card or address. A bare address has
    /// port 24601; ':PORT' is this machine only, '*:PORT' every address. ',bandwidth=MBPS' bounds
    /// what is booked there.
    #[arg(
        long,
        value_name = "ADDR[:PORT][,bandwidth=MBPS]",
        default_value = "*:24601"
    )]
    pub listen: Vec<Listen>,

    /// Clients must authenticate with this key (up to 64 characters).
    #[arg(long, value_name = "KEY", help_heading = "Authentication")]
    pub key: Option<String>,

    /// Clients must authenticate with a key of this file: lines of 'id,key'.
    #[arg(long, value_name = "FILE", help_heading = "Authentication")]
    pub key_file: Option<PathBuf>,

    /// Serve clients without authentication too.
    #[arg(long, help_heading = "Authentication")]
    pub auth_optional: bool,

    /// Give fixed and starting rows at once also to clients that did not authenticate. Without this
    /// they get the lowest row until they have answered it.
    #[arg(long, help_heading = "Authentication")]
    pub allow_unauthenticated_start: bool,

    /// Mbit/s that can be booked in each direction, over all listeners; clients must say what they
    /// need.
    #[arg(long, value_name = "MBPS", help_heading = "Admission")]
    pub bandwidth: Option<u32>,

    /// Hold each test below the bandwidth that it booked.
    #[arg(long, help_heading = "Admission")]
    pub rate_limit: bool,

    /// Most tests at a time, those that wait for their activation included.
    #[arg(
        long,
        value_name = "N",
        help_heading = "Admission",
        default_value_t = 12_000
    )]
    pub tests: u32,

    /// Most tests of one address that may wait for their activation.
    #[arg(
        long,
        value_name = "N",
        help_heading = "Admission",
        default_value_t = 256
    )]
    pub pending_per_source: u32,

    /// Ports for the tests' own sockets, where a firewall has few open.
    #[arg(long, value_name = "LO-HI", value_parser = parse_ports, help_heading = "Admission")]
    pub test_ports: Option<RangeInclusive<u16>>,

    /// No datagrams above the default size; clients must say the same.
    #[arg(long, short = 'j', help_heading = "Load")]
    pub no_jumbo: bool,

    /// Packets that fill an MTU of 1500; clients must say the same.
    #[arg(long, short = 'T', help_heading = "Load")]
    pub traditional: bool,

    /// The highest row that a client may ask for [default: the last one].
    #[arg(long, value_name = "ROW", help_heading = "Load")]
    pub max_row: Option<u16>,

    /// Grant rows past the table's end (1152) to ringmill clients that ask for them.
    #[arg(long, help_heading = "Load")]
    pub extended_rows: bool,

    /// The longest test, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = *TEST_TIME_S.end(), help_heading = "Load")]
    pub max_time: u16,

    /// The largest TOS or traffic class octet.
    #[arg(long, value_name = "OCTET", value_parser = parse_octet, default_value = "255", help_heading = "Load")]
    pub max_tos: u8,

    /// Grant random payload to clients that ask for it.
    #[arg(long, help_heading = "Load")]
    pub random_payload: bool,

    /// Fill the header checksum of all PDUs.
    #[arg(long, help_heading = "Load")]
    pub checksums: bool,

    /// Send each datagram by itself.
    #[arg(long, help_heading = "Load")]
    pub no_gso: bool,

    /// How this end is woken while it sends.
    #[arg(long, value_enum, default_value_t, help_heading = "Load")]
    pub pacing: PacingArg,

    /// End when the first test has ended.
    #[arg(long)]
    pub once: bool,

    /// Print events as NDJSON.
    #[arg(long)]
    pub json: bool,

    /// Tell each trial and each sub-interval.
    #[arg(short, long)]
    pub verbose: bool,

    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  ringmill capacity server                                     every address, port 24601
  ringmill capacity server --key secret --bandwidth 10000      who knows the key, up to 10 Gbit/s
  ringmill capacity server --listen 10.0.0.1,bandwidth=1000 --listen '[2001:db8::1]:25000'
  ringmill capacity server --test-ports 40000-40999            for a firewall with few open ports

OB-UDPST clients from 8.2 on are served as well as ours.";

/// Where setup requests are taken.
#[derive(Debug, Clone)]
pub struct Listen {
    /// As it is shown.
    shown: String,
    endpoint: Endpoint,
    bandwidth_mbps: u32,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bandwidth_mbps) = match text.split_once(',') {
            None => (text, 0),
            Some((address, option)) => {
                let mbps = option.strip_prefix("bandwidth=");
                let mbps = mbps.and_then(|mbps| mbps.parse().ok().filter(|mbps| *mbps > 0));
                let wrong = || format!("'{option}' is no option of an address: bandwidth=MBPS is");
                (address, mbps.ok_or_else(wrong)?)
            }
        };
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        let with_port = match bare.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, CONTROL_PORT).to_string(),
            Err(_) if !address.contains(':') => format!("{address}:{CONTROL_PORT}"),
            Err(_) => address.to_owned(),
        };
        let endpoint = Endpoint::parse_with(&with_port, Some(Scheme::Udp));
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        if endpoint.scheme() != Scheme::Udp {
            return Err(format!("'{text}' is no UDP endpoint: write ADDR[:PORT]"));
        }
        Ok(Self {
            shown: with_port,
            endpoint,
            bandwidth_mbps,
        })
    }
}

/// A range of ports, such as 40000-40999.
pub(crate) fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let parse = |port: &str| port.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let ends = text.split_once('-');
    match ends.map(|(from, to)| (parse(from), parse(to))) {
        Some((Some(from), Some(to))) if from <= to => Ok(from..=to),
        _ => Err(format!("'{text}' is no range of ports: write 40000-40999")),
    }
}

fn parse_octet(text: &str) -> Result<u8, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is no octet: write 0 to 255 or 0x00 to 0xff"))
}

impl ServerArgs {
    fn keys(&self) -> Result<KeyRing> {
        let command_line = match &self.key {
            None => None,
            Some(key) => {
                let key = SharedKey::new(key.as_bytes());
                Some(key.map_err(|error| UsageError(format!("--key: {error}")))?)
            }
        };
        let file = match &self.key_file {
            None => None,
            Some(path) => {
                let shown = path.display();
                let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
                let file = KeyFile::parse(&bytes);
                Some(file.map_err(|error| UsageError(format!("{shown}: {error}")))?)
            }
        };
        Ok(KeyRing { command_line, file })
    }

    fn limits(&self) -> Result<ServerLimits> {
        if !TEST_TIME_S.contains(&self.max_time) {
            let (least, most) = (TEST_TIME_S.start(), TEST_TIME_S.end());
            bail!(UsageError(format!(
                "--max-time {}: a test takes {least} to {most} seconds",
                self.max_time
            )));
        }
        let row_last = match self.extended_rows {
            true => EXTENDED_ROW_LAST,
            false => ROW_LAST,
        };
        let row_max = self.max_row.unwrap_or(row_last);
        if row_max > row_last {
            bail!(UsageError(format!(
                "--max-row {row_max}: the table has rows 0 to {row_last}"
            )));
        }
        Ok(ServerLimits {
            test_time_max_s: self.max_time,
            dscp_ecn_max: self.max_tos,
            row_max,
            random_payload: self.random_payload,
            extended_rows: self.extended_rows,
        })
    }
}

/// Serves until a signal, or until the first test has ended.
///
/// # Errors
/// When a flag makes no sense, a key file cannot be read or an address cannot be bound.
pub fn run(args: &ServerArgs) -> Result<Exit> {
    let signals = EndRequests::watch(std::thread::current())?;
    let placement = launch::place(&args.engine, Some(args.tests as usize), false)?;
    let shards = placement.plan.shards.len() as u16;
    let (outlet, events) = sync_channel(EVENTS_MAX);
    let clock = Arc::new(WallClock::default());
    set(&clock);

    let keys = args.keys()?;
    let total = Admission::limited(args.bandwidth.unwrap_or(0));
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for listen in &args.listen {
        let setup = ServerSettings {
            keys: keys.clone(),
            auth_optional: args.auth_optional,
            jumbo: !args.no_jumbo,
            traditional: args.traditional,
            admission: total.within(listen.bandwidth_mbps),
            fill_check_sum: args.checksums,
            ..ServerSettings::default()
        };
        for address in launch::listen_addresses(&listen.endpoint)? {
            addresses.push(address);
            listeners.push(Listener {
                setup: setup.clone(),
            });
        }
        if addresses.is_empty() {
            bail!(UsageError(format!(
                "--listen {}: this host has no such address",
                listen.shown
            )));
        }
    }
    let outlets = Outlets {
        events: outlet,
        records: None,
    };
    let settings = Settings {
        limits: args.limits()?,
        test_ports: args.test_ports.clone(),
        rate_limit: args.rate_limit,
        allow_unauthenticated_start: args.allow_unauthenticated_start,
        without_gso: args.no_gso,
        pacing: args.pacing.into(),
        tests_max: args.tests,
        pending_per_source_max: args.pending_per_source,
        trial_events: args.verbose,
        ..Settings::new(listeners, Arc::clone(&clock), outlets)
    };
    let server = CapacityServer::new(settings, shards);
    let service = addresses
        .into_iter()
        .fold(server.service("capacity"), |service, address| {
            service.bind(address)
        });
    let limits = CapacityServer::limits(Limits {
        max_connections: placement.connections_max,
        ..Limits::default()
    });
    let engine = launch::builder(&args.engine, limits, &placement)
        .service(service)
        .start()?;
    let metrics = args.engine.metrics.map(MetricsServer::start).transpose()?;
    if let Some(metrics) = &metrics {
        metrics.watch(Watched {
            services: engine.services().to_vec(),
            shards: engine.metrics().to_vec(),
            driver: engine.driver().to_string(),
            capacity: Some(server.clone()),
            ..Watched::default()
        });
    }
    let running = Running {
        args,
        engine,
        server,
        clock,
        events,
        signals,
    };
    running.announce(&placement, metrics.as_ref());
    running.watch()
}

fn set(clock: &WallClock) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    clock.set(monotonic_now(), u64::try_from(nanos).unwrap_or(u64::MAX));
}

/// A server that runs.
struct Running<'a> {
    args: &'a ServerArgs,
    engine: Engine,
    server: CapacityServer,
    clock: Arc<WallClock>,
    events: Receiver<ServerEvent>,
    signals: EndRequests,
}

impl Running<'_> {
    fn announce(&self, placement: &Placement, metrics: Option<&MetricsServer>) {
        let notes = placement.note.iter().map(String::as_str);
        for note in notes.chain(self.engine.driver_note()) {
            eprintln!("ringmill: {note}");
        }
        let (shards, driver) = (self.engine.shards(), self.engine.driver());
        let plural = if shards == 1 { "" } else { "s" };
        for bound in self.engine.addresses() {
            let Address::Ip(address) = bound.address else {
                continue;
            };
            let event = json!({
                "type": "listening",
                "address": address.to_string(),
                "shards": shards,
                "driver": driver,
                "pid": std::process::id(),
            });
            let words =
                format_args!("capacity server at {address}, {shards} shard{plural}, {driver}");
            say(self.args.json, &event, words);
        }
        if let Some(metrics) = metrics {
            let url = metrics.url();
            let event = json!({ "type": "metrics", "url": url });
            say(self.args.json, &event, format_args!("metrics at {url}"));
        }
    }

    fn watch(mut self) -> Result<Exit> {
        let mut asked = 0;
        let mut failed = None;
        let mut interval = Instant::now();
        let mut before = self.server.counters();
        let mut network = NetworkWatch::default();
        let mut warnings = LossWarnings::default();
        while !self.engine.has_ended() {
            std::thread::park_timeout(LOOK_INTERVAL);
            set(&self.clock);
            let count = self.signals.count();
            if count > asked {
                asked = count;
                match count {
                    1 => self.engine.stop(),
                    _ => self.engine.stop_now(),
                }
            }
            if self.tell_events() && self.args.once {
                self.engine.stop();
            }
            while let Some(notice) = self.engine.take_notice() {
                if let Notice::ShardFailed { shard, error } = notice {
                    failed = Some(format!("shard {shard} failed: {error}"));
                }
            }
            if interval.elapsed() >= EVENT_INTERVAL {
                let seconds = interval.elapsed().as_secs_f64();
                interval = Instant::now();
                let now = self.server.counters();
                let losses = network.losses();
                if self.args.json {
                    say(true, &interval_event(&before, &now, losses, seconds), "");
                }
                // What other programs lose while nobody tests is their business.
                let tested = before.running + now.running > 0;
                if let Some(losses) = losses.filter(|_| tested)
                    && let Some(losses) = warnings.add(losses, interval)
                {
                    self.warn(&losses);
                }
                before = now;
            }
        }
        self.tell_events();
        let counters = self.server.counters();
        let result = self.engine.join();
        if let Some(failed) = failed {
            bail!(failed);
        }
        result?;
        let mut event = json!({ "type": "stopped" });
        if let (Value::Object(event), Value::Object(counters)) = (&mut event, json!(counters)) {
            event.extend(counters);
        }
        let words = format_args!(
            "capacity server stopped: {} tests, {} of them complete",
            counters.tests_ended, counters.tests_complete
        );
        say(self.args.json, &event, words);
        Ok(if asked > 1 {
            Exit::Interrupted
        } else {
            Exit::Ok
        })
    }

    fn warn(&self, losses: &NetworkLosses) {
        let text = losses.words().join("; ");
        let event = json!({ "type": "host_losses", "network": losses, "text": text });
        say(self.args.json, &event, format_args!("warning: {text}"));
    }

    /// Tells what happened; whether a test ended.
    fn tell_events(&self) -> bool {
        let mut ended = false;
        for event in self.events.try_iter() {
            ended |= matches!(event, ServerEvent::Ended { .. });
            self.tell(&event);
        }
        ended
    }

    fn tell(&self, event: &ServerEvent) {
        let (json, verbose) = (self.args.json, self.args.verbose);
        match event {
            ServerEvent::Rejected {
                peer,
                request,
                code,
                auth_error,
            } => {
                let why = auth_error.map(|error| format!(": {error}"));
                let why = why.unwrap_or_default();
                let event = json!({
                    "type": "rejected",
                    "peer": peer.to_string(),
                    "code": code.wire(),
                    "reason": format!("{code}{why}"),
                    "version": request.protocol_ver,
                });
                say(json, &event, format_args!("{peer} rejected: {code}{why}"));
            }
            ServerEvent::Accepted(about) => {
                let event = about_event("accepted", about);
                let words = format_args!("{} accepted, port {}", name(about), about.local.port());
                say_if(verbose || json, json, &event, words);
            }
            ServerEvent::ActivationRefused { about, peer, error } => {
                let why = match error {
                    Some(error) => error.to_string(),
                    None => "it comes from another host than the setup request".to_owned(),
                };
                let mut event = about_event("activation_refused", about);
                event["from"] = json!(peer.to_string());
                event["reason"] = json!(why);
                let words = format_args!("{} activation from {peer} refused: {why}", name(about));
                say(json, &event, words);
            }
            ServerEvent::Activated {
                about,
                peer,
                parameters,
            } => {
                let mut event = about_event("activated", about);
                event["peer"] = json!(peer.to_string());
                event["direction"] = json!(direction(parameters.direction));
                event["seconds"] = json!(parameters.test_time_s);
                let words = format_args!(
                    "{} {} test of {} s with {peer}",
                    name(about),
                    direction(parameters.direction),
                    parameters.test_time_s
                );
                say(json, &event, words);
            }
            ServerEvent::NotActivated { about, evicted } => {
                let why = if *evicted {
                    "made room for another"
                } else {
                    "was not activated in time"
                };
                let mut event = about_event("not_activated", about);
                event["evicted"] = json!(evicted);
                let words = format_args!("{} {why}", name(about));
                say_if(verbose || json || !evicted, json, &event, words);
            }
            ServerEvent::Warning { about, warning } => {
                let mut event = about_event("warning", about);
                event["code"] = json!(warning.code());
                event["text"] = json!(warning.to_string());
                say(json, &event, format_args!("{} {warning}", name(about)));
            }
            ServerEvent::NotSegmented { about } => {
                let text = super::GSO_REFUSED;
                let mut event = about_event("not_segmented", about);
                event["text"] = json!(text);
                say(json, &event, format_args!("{} {text}", name(about)));
            }
            ServerEvent::BusyPacing { shard, late } => {
                let text = late_timers(*late);
                let event = json!({
                    "type": "busy_pacing",
                    "shard": shard,
                    "late_us": late / 1000,
                    "text": text,
                });
                say(json, &event, format_args!("shard {shard}: {text}"));
            }
            ServerEvent::Trial { about, report } => {
                let mut event = about_event("trial", about);
                event["row"] = json!(report.row);
                event["bytes"] = json!(report.bytes);
                event["delta_us"] = json!(report.delta_us);
                event["loss"] = json!(report.trial.loss);
                event["limit"] = json!(format!("{:?}", report.limit).to_lowercase());
                let words = format_args!(
                    "{} row {}: {} bytes in {} µs, {} lost, limit {:?}",
                    name(about),
                    report.row.unwrap_or(0),
                    report.bytes,
                    report.delta_us,
                    report.trial.loss,
                    report.limit
                );
                say(json, &event, words);
            }
            ServerEvent::SubInterval {
                about,
                sub_interval,
            } => {
                let stats = &sub_interval.stats;
                let mut event = about_event("sub_interval", about);
                event["number"] = json!(sub_interval.number);
                event["datagrams"] = json!(stats.rx_datagrams);
                event["bytes"] = json!(stats.rx_bytes);
                event["delta_us"] = json!(stats.delta_time);
                event["loss"] = json!(stats.seq_err_loss);
                let words = format_args!(
                    "{} sub-interval {}: {} datagrams, {} lost",
                    name(about),
                    sub_interval.number,
                    stats.rx_datagrams,
                    stats.seq_err_loss
                );
                say_if(verbose, json, &event, words);
            }
            ServerEvent::Ended {
                about,
                direction: way,
                end,
                totals,
            } => {
                let event = ended_event(about, *way, &end.to_string(), totals);
                let words = format_args!(
                    "{} {} ended: {end}; {} datagrams, {} bytes",
                    name(about),
                    direction(*way),
                    totals.datagrams,
                    totals.bytes
                );
                say(json, &event, words);
            }
        }
    }
}

fn say_if(wanted: bool, json: bool, event: &Value, words: impl Display) {
    if wanted {
        say(json, event, words);
    }
}

/// As it is called in the log.
fn name(about: &About) -> String {
    let request = &about.request;
    let (index, ident) = (request.mc_index, request.mc_ident);
    format!("[{} {}.{index}.{ident}]", about.test, about.peer.ip())
}

const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Upstream => "upstream",
        Direction::Downstream => "downstream",
    }
}

fn about_event(kind: &str, about: &About) -> Value {
    let request = &about.request;
    json!({
        "type": kind,
        "test": about.test.0,
        "client": about.peer.to_string(),
        "local": about.local.to_string(),
        "shard": about.shard,
        "connection": request.mc_index,
        "ident": request.mc_ident,
        "version": request.protocol_ver,
        "bandwidth_mbps": request.bandwidth_mbps(),
        "authenticated": about.authenticated,
    })
}

fn ended_event(about: &About, way: Direction, end: &str, totals: &Totals) -> Value {
    let mut event = about_event("ended", about);
    event["direction"] = json!(direction(way));
    event["end"] = json!(end);
    event["datagrams"] = json!(totals.datagrams);
    event["bytes"] = json!(totals.bytes);
    event["lost"] = json!(totals.errors.loss);
    event["out_of_order"] = json!(totals.errors.out_of_order);
    event["duplicates"] = json!(totals.errors.duplicates);
    event["missed"] = json!(totals.missed);
    event["limited_trials"] = json!(totals.limited_trials);
    event
}

fn interval_event(
    before: &ServerSnapshot,
    now: &ServerSnapshot,
    network: Option<NetworkLosses>,
    seconds: f64,
) -> Value {
    let mbps = |after: u64, before: u64| after.wrapping_sub(before) as f64 * 8.0 / seconds / 1e6;
    json!({
        "type": "interval",
        "seconds": seconds,
        "running": now.running,
        "pending": now.pending,
        "tx_ip_mbps": mbps(now.tx_ip_bytes, before.tx_ip_bytes),
        "rx_ip_mbps": mbps(now.rx_ip_bytes, before.rx_ip_bytes),
        "network": network,
    })
}
