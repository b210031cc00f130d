//! A server process from start to end: services on one engine, what it says of itself, its console,
//! its signals. `ringmill serve` and `ringmill run` differ only in where the services come from.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use ringmill_engine::{
    Address, BoundAddress, Builder, Engine, Notice, Service, ServiceSnapshot, StartError,
    error_name,
};
use ringmill_protocols::control::{ServerStats, Stats};
use ringmill_protocols::guard::OwnPorts;
use serde_json::{Value, json};

use crate::chat::EventsArg;
use crate::config::{Configuration, STATS_SERVICE};
use crate::console::{self, Input, Line};
use crate::endpoint::Scheme;
use crate::exit::Exit;
use crate::launch::{self, Placement};
use crate::metrics::{MetricsServer, Watched};
use crate::printer;
use crate::report::steal::ProcessTimes;
use crate::service::{self, Counts, Module};
use crate::signals::EndRequests;

/// At most one line about paused accepts in this time.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);
/// Between two `interval` events.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// How soon the end of a shard is seen; signals and console words are seen at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The kernel closes the files of a ring a while after the ring itself, so that for a moment our own
/// old sockets hold the ports that a restart needs.
const RESTART_PATIENCE: Duration = Duration::from_secs(5);
const RESTART_INTERVAL: Duration = Duration::from_millis(10);

/// Whether a server listens to its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args, Default)]
#[command(next_help_heading = "Console")]
pub struct ConsoleArgs {
    /// Listen to standard input whatever it is: an empty line or its end stops the server, '!'
    /// restarts it. Without this flag, only to a terminal or an open pipe, and not with --json.
    #[arg(long, overrides_with = "no_console")]
    pub console: bool,

    /// Never listen to standard input.
    #[arg(long, overrides_with = "console")]
    pub no_console: bool,
}

impl ConsoleArgs {
    /// Programs that read events end a server by signal, and may leave its input to chance.
    pub(crate) fn is_on(self, json: bool) -> bool {
        !self.no_console && (self.console || (!json && console::input() != Input::Nobody))
    }
}

/// Looks at the configuration again and says in one line what it found.
pub type Reload<'a> = &'a dyn Fn() -> Result<String>;

/// Serves until a signal or a word ends it. SIGHUP calls `reload` if there is one.
///
/// # Errors
/// When an endpoint cannot be bound or a shard fails.
pub fn run(
    configuration: &Configuration,
    console: ConsoleArgs,
    reload: Option<Reload<'_>>,
) -> Result<Exit> {
    let control = std::thread::current();
    let signals = match reload {
        Some(_) => EndRequests::watch_with_hangups(control.clone())?,
        None => EndRequests::watch(control.clone())?,
    };
    let placement = place(configuration)?;
    let metrics = configuration.engine.metrics.map(MetricsServer::start);
    let mut server = Server {
        configuration,
        placement,
        own_ports: service::own_ports(),
        signals,
        console: None,
        reload,
        metrics: metrics.transpose()?,
        before: None,
    };
    let mut running = server.start()?;
    if console.is_on(configuration.json) {
        server.console = Some(console::lines(control)?);
    }
    server.announce(&running);
    loop {
        match server.watch(&mut running)? {
            Next::Restart => {
                server.before = Some(running.engine.addresses().to_vec());
                drop(running);
                running = server.start_again()?;
                server.say(&json!({ "type": "restarted" }), "Done!");
            }
            Next::Exit(exit) => return Ok(exit),
        }
    }
}

/// Plans where the shards of a configuration run.
///
/// # Errors
/// When the CPUs or cards that it names are not there.
pub fn place(configuration: &Configuration) -> Result<Placement> {
    let connections = configuration.limits.max_connections;
    launch::place(&configuration.engine, connections, true)
}

/// What comes after a server has stopped.
enum Next {
    Restart,
    Exit(Exit),
}

struct Server<'a> {
    configuration: &'a Configuration,
    placement: Placement,
    own_ports: Arc<OwnPorts>,
    signals: EndRequests,
    console: Option<Receiver<Line>>,
    reload: Option<Reload<'a>>,
    metrics: Option<MetricsServer>,
    /// Where the services listened before a restart.
    before: Option<Vec<BoundAddress>>,
}

/// An engine with what the command line knows of its services.
struct Running {
    engine: Engine,
    /// What each service counts for itself.
    counts: Vec<Counts>,
}

impl Running {
    /// Counters of each service of the user.
    fn totals(&self) -> Vec<ServiceSnapshot> {
        let services = 0..self.counts.len();
        services.map(|n| self.engine.service_totals(n)).collect()
    }
}

fn sum(totals: &[ServiceSnapshot]) -> ServiceSnapshot {
    let zero = ServiceSnapshot::default();
    totals.iter().fold(zero, |sum, next| sum.plus(next))
}

/// A line of the console that is no word of its own goes to every chat.
fn tell_everyone(running: &Running, line: &[u8]) {
    for chat in running
        .counts
        .iter()
        .filter_map(|counts| counts.chat.as_ref())
    {
        if !chat.say(line) {
            eprintln!("ringmill: not sent: the server takes no messages now");
        }
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(StartError::Bind { error, .. }) => error.kind() == std::io::ErrorKind::AddrInUse,
        _ => false,
    }
}

impl Server<'_> {
    fn start(&self) -> Result<Running> {
        let Configuration { engine, limits, .. } = self.configuration;
        let shards = self.placement.plan.shards.len() as u16;
        let bounds = launch::limits(limits, &self.placement);
        let mut builder =
            launch::builder(engine, bounds, &self.placement).share_port(limits.share_port);
        if limits.steer_by_cpu {
            let shards = &self.placement.plan.shards;
            builder = builder.steer_by_cpu(shards.iter().map(|shard| shard.cpu).collect());
        }
        let mut counts = Vec::new();
        for definition in &self.configuration.services {
            let before = self.before.as_deref();
            let (next, count) = definition.add_to(builder, shards, &self.own_ports, before)?;
            builder = next;
            counts.push(count);
        }
        let driver = Arc::new(OnceLock::new());
        builder = self.add_stats(builder, shards, &driver);
        let engine = builder.start()?;
        let _ = driver.set(engine.driver().to_string());
        if let Some(metrics) = &self.metrics {
            metrics.watch(Watched {
                services: engine.services().to_vec(),
                shards: engine.metrics().to_vec(),
                driver: engine.driver().to_string(),
                guards: counts.iter().map(|count| count.guards.clone()).collect(),
                senders: counts.iter().map(|count| count.senders.clone()).collect(),
                chats: counts
                    .iter()
                    .map(|count| count.chat.as_ref().map(|chat| Arc::clone(&chat.room)))
                    .collect(),
                ..Watched::default()
            });
        }
        Ok(Running { engine, counts })
    }

    /// Starts at the addresses of before, once they are free.
    fn start_again(&self) -> Result<Running> {
        let patience = Instant::now() + RESTART_PATIENCE;
        loop {
            let result = self.start();
            let in_use = result.as_ref().err().is_some_and(is_in_use);
            if !in_use || Instant::now() > patience || self.signals.count() > 0 {
                return result;
            }
            std::thread::sleep(RESTART_INTERVAL);
        }
    }

    /// The control query of load clients, as a last service.
    fn add_stats(&self, builder: Builder, shards: u16, driver: &Arc<OnceLock<String>>) -> Builder {
        let Some(wanted) = self.configuration.stats else {
            return builder;
        };
        let before = self.before.iter().flatten();
        let mut before = before.filter(|bound| bound.service == STATS_SERVICE);
        let address = match before.next() {
            Some(bound) => bound.address.clone(),
            None => Address::Ip(wanted),
        };
        let driver = Arc::clone(driver);
        let snapshot: ringmill_protocols::control::Snapshot = Arc::new(move || {
            let times = ProcessTimes::own();
            let stats = ServerStats {
                pid: std::process::id(),
                user_s: times.user.as_secs_f64(),
                system_s: times.system.as_secs_f64(),
                shards,
                driver: driver.get().cloned().unwrap_or_default(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            serde_json::to_string(&stats).unwrap_or_default()
        });
        let service = Service::new(STATS_SERVICE, move |_| Stats::new(Arc::clone(&snapshot)));
        builder.service(service.listen(address))
    }

    /// One event: a line of JSON, or words for a person.
    fn say(&self, event: &Value, words: &str) {
        if self.configuration.json {
            printer::print(true, format!("{event}\n"));
        } else if !words.is_empty() {
            printer::print(false, format!("{words}\n"));
        }
    }

    fn announce(&self, running: &Running) {
        let engine = &running.engine;
        let notes = self.placement.note.iter().map(String::as_str);
        for note in notes.chain(engine.driver_note()) {
            eprintln!("ringmill: {note}");
        }
        for bound in engine.addresses() {
            let event = json!({
                "type": "listening",
                "service": bound.service,
                "endpoint": bound.to_string(),
                "shards": engine.shards(),
                "driver": engine.driver(),
                "pid": std::process::id(),
            });
            let (name, shards, driver) = (&bound.service, engine.shards(), engine.driver());
            let plural = if shards == 1 { "" } else { "s" };
            self.say(
                &event,
                &format!("{name} at {bound}, {shards} shard{plural}, {driver}"),
            );
        }
        self.announce_groups();
        if let Some(metrics) = &self.metrics {
            let url = metrics.url();
            let event = json!({ "type": "metrics", "url": url });
            self.say(&event, &format!("metrics at {url}"));
        }
        if self.console.is_some() {
            let others = if running.counts.iter().any(|counts| counts.chat.is_some()) {
                ", any other line goes to everyone"
            } else {
                ""
            };
            let words = format!(
                "An empty line or the end of input stops the server, '!' restarts it{others}."
            );
            self.say(&json!({ "type": "console" }), &words);
        }
    }

    /// Groups are sent to and not listened on, so the engine does not know of them as addresses.
    fn announce_groups(&self) {
        for definition in &self.configuration.services {
            let Module::Multicast(settings) = &definition.module else {
                continue;
            };
            let groups = definition.endpoints.iter();
            for group in groups.filter(|endpoint| endpoint.scheme() == Scheme::Udp) {
                let event = json!({
                    "type": "sending",
                    "service": definition.name,
                    "endpoint": group,
                    "interface": settings.interface,
                    "ttl": settings.ttl,
                });
                let place = settings.interface.as_ref();
                let place = place.map_or(String::new(), |name| format!(" on {name}"));
                let name = &definition.name;
                self.say(&event, &format!("{name} sends to {group}{place}"));
            }
        }
    }

    /// Watches over a running engine until it has ended, and says why.
    fn watch(&mut self, running: &mut Running) -> Result<Next> {
        let mut notices = Notices::default();
        let mut before = running.totals();
        let mut interval = Instant::now();
        let mut asked = 0;
        let mut restart = false;
        let mut stopping = false;
        while !running.engine.has_ended() {
            std::thread::park_timeout(LOOK_INTERVAL);
            let count = self.signals.count();
            if count > asked {
                asked = count;
                restart = false;
                if count == 1 {
                    running.engine.stop();
                } else {
                    running.engine.stop_now();
                }
            }
            // Words that come after a stop wait for the next start.
            while !stopping && asked == 0 {
                let Some(line) = self
                    .console
                    .as_ref()
                    .and_then(|lines| lines.try_recv().ok())
                else {
                    break;
                };
                let words = match line {
                    Line::End => "Server stopping...",
                    Line::Text(text) if text.is_empty() => "Server stopping...",
                    Line::Text(text) if text == b"!" => {
                        restart = true;
                        "Server restarting..."
                    }
                    Line::Text(text) => {
                        tell_everyone(running, &text);
                        continue;
                    }
                };
                if !self.configuration.json {
                    printer::print(false, words.into());
                }
                stopping = true;
                running.engine.stop();
            }
            self.tell_events(running);
            if self.signals.take_hangup() {
                self.look_again();
            }
            while let Some(notice) = running.engine.take_notice() {
                // A stop ends the listening; a shard may see that before it hears of the stop.
                let expected =
                    (stopping || asked > 0) && matches!(notice, Notice::AcceptFailed { .. });
                if !expected {
                    notices.hear(notice);
                }
            }
            if self.configuration.json && interval.elapsed() >= EVENT_INTERVAL {
                let seconds = interval.elapsed().as_secs_f64();
                interval = Instant::now();
                let now = running.totals();
                self.say(&self.interval(running, &before, &now, seconds), "");
                before = now;
            }
        }
        let result = running.engine.join();
        self.tell_events(running);
        if let Some(failed) = notices.failed {
            bail!(failed);
        }
        result?;
        if restart {
            return Ok(Next::Restart);
        }
        if self.configuration.json {
            let totals = running.totals();
            let services = self.configuration.services.iter().zip(&totals);
            let services: Vec<_> = services
                .zip(&running.counts)
                .map(|((definition, counters), counts)| {
                    json!({
                        "name": definition.name,
                        "counters": counters,
                        "guard": counts.guards.as_ref().map(|guards| guards.totals()),
                        "multicast": counts.senders.as_ref().map(|senders| senders.totals()),
                        "chat": counts.chat.as_ref().map(|chat| chat.room.totals()),
                    })
                })
                .collect();
            let event =
                json!({ "type": "stopped", "counters": sum(&totals), "services": services });
            self.say(&event, "");
        } else if stopping {
            printer::print(false, "Done!\n".into());
        }
        Ok(Next::Exit(if asked > 1 {
            Exit::Interrupted
        } else {
            Exit::Ok
        }))
    }

    /// Prints what the sessions of chats did.
    fn tell_events(&self, running: &mut Running) {
        let Running { engine, counts } = running;
        let mut text = String::new();
        for (n, counts) in counts.iter_mut().enumerate() {
            let Some(chat) = &mut counts.chat else {
                continue;
            };
            for told in chat.happened(engine.service_totals(n).refused) {
                if self.configuration.json || told.format == EventsArg::Json {
                    text += &told.json.to_string();
                } else {
                    text += &told.words;
                }
                text.push('\n');
            }
        }
        if !text.is_empty() {
            printer::print(self.configuration.json, text);
        }
    }

    /// The event of one interval: all services together, then each.
    fn interval(
        &self,
        running: &Running,
        before: &[ServiceSnapshot],
        now: &[ServiceSnapshot],
        seconds: f64,
    ) -> Value {
        let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
        let bytes = |c: &ServiceSnapshot| c.received_bytes + c.received_datagram_bytes;
        let (all_before, all) = (sum(before), sum(now));
        let mut services = Vec::with_capacity(now.len());
        for (n, definition) in self.configuration.services.iter().enumerate() {
            services.push(json!({
                "name": definition.name,
                "connections": now[n].open,
                "bytes_per_s": rate(bytes(&now[n]), bytes(&before[n])),
                "datagrams_per_s":
                    rate(now[n].received_datagrams, before[n].received_datagrams),
                "counters": now[n],
                "guard": running.counts[n].guards.as_ref().map(|guards| guards.totals()),
                "multicast": running.counts[n].senders.as_ref().map(|senders| senders.totals()),
                "chat": running.counts[n].chat.as_ref().map(|chat| chat.room.totals()),
            }));
        }
        json!({
            "type": "interval",
            "connections": running.engine.connections(),
            "bytes_per_s": rate(bytes(&all), bytes(&all_before)),
            "datagrams_per_s": rate(all.received_datagrams, all_before.received_datagrams),
            "counters": all,
            "services": services,
        })
    }

    fn look_again(&self) {
        let Some(reload) = self.reload else { return };
        let found = reload();
        let words = match &found {
            Ok(words) => words.clone(),
            Err(error) => format!("{error:#}"),
        };
        if self.configuration.json {
            let event = json!({ "type": "configuration", "valid": found.is_ok(), "words": words });
            printer::print(true, format!("{event}\n"));
        } else {
            eprintln!("ringmill: {words}");
        }
    }
}

/// What the engine reported, told without flooding the log.
#[derive(Default)]
struct Notices {
    told: Option<Instant>,
    unsaid: u64,
    failed: Option<String>,
}

impl Notices {
    fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::AcceptFailed { errno, .. } => {
                if self
                    .told
                    .is_some_and(|told| told.elapsed() < NOTICE_INTERVAL)
                {
                    self.unsaid += 1;
                    return;
                }
                let more = if self.unsaid > 0 {
                    format!(" ({} more since)", self.unsaid)
                } else {
                    String::new()
                };
                eprintln!(
                    "ringmill: accepting pauses for up to 2 s: {}{more}; `ringmill doctor` shows \
                     the limit",
                    error_name(errno)
                );
                self.told = Some(Instant::now());
                self.unsaid = 0;
            }
            Notice::ShardFailed { shard, error } => {
                self.failed = Some(format!("shard {shard} failed: {error}"));
            }
        }
    }
}
