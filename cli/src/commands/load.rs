//! `ringmill load`: clients that measure a server.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ringmill_engine::time::{from_duration, monotonic_now};
use ringmill_engine::{Address, Controller, Engine, Limits, Nanos, Service};
use ringmill_protocols::load::{
    Arrivals, Command, Config, DatagramLoad, Flood, FloodConfig, MESSAGE_LEN_MAX, Phase, Published,
    Shared, StreamLoad, Tally, Unsent,
};
use serde_json::json;

use crate::args::{EngineArgs, parse_connections};
use crate::endpoint::{Endpoint, Transport};
use crate::exit::{Exit, UsageError};
use crate::fail_if::FailIf;
use crate::launch::{self, Placement};
use crate::metrics::{MetricsServer, Watched};
use crate::report::hlog::{LatencyKind, LogWriter};
use crate::report::seed_style::{Labels, SeedRun, TotalMessages};
use crate::report::steal::{MachineTimes, ProcessTimes, Usage};
use crate::report::{
    Connections, Cpu, CpuUse, Datagrams, Interval, Latency, Report, environment::Environment,
    human, json::JsonLines, seed_style,
};
use crate::signals::EndRequests;
use crate::units;

/// The largest UDP payload over IPv4.
const DATAGRAM_LEN_MAX: u64 = 65_507;
/// Between the command to begin and the first message: every shard hears of it in time.
const HEAD_START: Duration = Duration::from_millis(50);
/// A shard that does not end so long after the last answer may come is stuck: the run is reported
/// as failed.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How long a shard may take to say what it has after it was told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// A client whose shards are busier than this may be what limits the rate.
const BUSY_PERCENT: f64 = 90.0;

/// Flags of `ringmill load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// What to load.
    #[command(subcommand)]
    pub workload: Workload,
}

/// What can be loaded.
#[derive(Debug, Subcommand)]
pub enum Workload {
    /// Send messages to an echo server and expect them back.
    Echo(EchoArgs),
    /// Send datagrams one way, as fast as the host can or at a set rate.
    Flood(FloodArgs),
}

/// Flags of `ringmill load echo`.
#[derive(Debug, Args)]
pub struct EchoArgs {
    /// The server: tcp://HOST:PORT, udp://HOST:PORT or unix:/path.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// Connections (UDP: flows, each with a socket of its own).
    #[arg(long, short = 'c', value_name = "N", value_parser = parse_connections, default_value = "100")]
    pub connections: usize,

    /// Bytes in each message.
    #[arg(long, short = 's', value_name = "SIZE", value_parser = units::parse_size, default_value = "32")]
    pub size: u64,

    /// Messages outstanding on each connection; with --rate the most that may be (default 1024).
    #[arg(long, value_name = "N", value_parser = parse_connections)]
    pub depth: Option<usize>,

    /// Open loop: messages per second over all connections, sent on schedule whether or not
    /// answers come. 0 only holds the connections.
    #[arg(long, value_name = "RATE", value_parser = units::parse_rate)]
    pub rate: Option<f64>,

    /// Random (exponential) gaps between the messages of an open loop instead of equal ones.
    #[arg(long, requires = "rate")]
    pub poisson: bool,

    /// Local addresses to connect from, in turn; may be repeated.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub sources: Vec<IpAddr>,

    /// Do not compare the echoed bytes.
    #[arg(long)]
    pub no_verify: bool,

    /// Send exactly this many messages (those of the warm-up not counted) and end when they are
    /// answered, or when --duration is over.
    #[arg(long, short = 'm', value_name = "N", value_parser = units::parse_count)]
    pub messages: Option<u64>,

    /// A datagram without an answer for this long is lost.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "1s")]
    pub timeout: Duration,

    /// Seed of the random gaps.
    #[arg(long, value_name = "N", default_value = "42")]
    pub seed: u64,

    /// End the connections by RST, which leaves no TIME_WAIT behind.
    #[arg(long)]
    pub reset: bool,

    /// Also print the summary in the terms of the classic echo benchmarks.
    #[arg(long, value_name = "LABELS", value_enum)]
    pub classic: Option<ClassicLabels>,

    #[command(flatten)]
    /// When and how it is reported.
    pub run: RunArgs,

    #[command(flatten)]
    /// How the engine runs.
    pub engine: EngineArgs,
}

/// Which labels the classic summary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ClassicLabels {
    /// Those of the first release.
    Seed,
    /// Those of today.
    Newest,
}

/// Flags of `ringmill load flood`.
#[derive(Debug, Args)]
pub struct FloodArgs {
    /// The receiver: udp://HOST:PORT.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// Flows on each shard.
    #[arg(long, value_name = "N", value_parser = parse_connections, default_value = "1")]
    pub flows: usize,

    /// Bytes in each datagram.
    #[arg(long, short = 's', value_name = "SIZE", value_parser = units::parse_size, default_value = "1222")]
    pub size: u64,

    /// Datagrams per second over all shards.
    #[arg(long, value_name = "RATE", value_parser = units::parse_rate)]
    pub rate: Option<f64>,

    #[command(flatten)]
    /// When and how it is reported.
    pub run: RunArgs,

    #[command(flatten)]
    /// How the engine runs.
    pub engine: EngineArgs,
}

/// Flags of every load run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Length of the measured part.
    #[arg(long, short = 'd', value_name = "TIME", value_parser = units::parse_duration, default_value = "10s")]
    pub duration: Duration,

    /// Run this long before measuring.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "1s")]
    pub warmup: Duration,

    /// Print NDJSON: one object for each second, then the report.
    #[arg(long)]
    pub json: bool,

    /// Write the latencies of each second to an HdrHistogram log.
    #[arg(long, value_name = "FILE")]
    pub histogram: Option<std::path::PathBuf>,

    /// Exit with 3 when this holds, such as 'p99>5ms', 'loss>0.1%', 'rate<100k'; may be repeated.
    #[arg(long, value_name = "CONDITION")]
    pub fail_if: Vec<FailIf>,

    /// Ask a ringmill server at this address (its --stats) for its CPU time.
    #[arg(long, value_name = "ADDR", value_parser = crate::args::parse_loopback_address)]
    pub server_stats: Option<std::net::SocketAddr>,
}

/// Runs the load.
///
/// # Errors
/// When no connection can be made, or the flags contradict each other.
pub fn run(args: &LoadArgs) -> Result<Exit> {
    match &args.workload {
        Workload::Echo(args) => echo(args),
        Workload::Flood(args) => flood(args),
    }
}

fn echo(args: &EchoArgs) -> Result<Exit> {
    let target = launch::target(&args.endpoint)?;
    let datagrams = matches!(
        args.endpoint,
        Endpoint::Inet {
            transport: Transport::Udp,
            ..
        }
    );
    let len_max = if datagrams {
        DATAGRAM_LEN_MAX
    } else {
        MESSAGE_LEN_MAX as u64
    };
    if args.size == 0 || args.size > len_max {
        bail!(UsageError(format!(
            "--size {}: from 1 to {len_max} bytes here",
            args.size
        )));
    }
    let arrivals = match args.rate {
        None => Arrivals::Closed,
        Some(rate) if rate <= 0.0 => Arrivals::Idle,
        Some(rate) if args.poisson => Arrivals::Poisson(rate),
        Some(rate) => Arrivals::Constant(rate),
    };
    if arrivals == Arrivals::Idle && args.run.histogram.is_some() {
        return Err(no_latencies("--rate 0 sends nothing"));
    }
    let depth = args
        .depth
        .unwrap_or(if args.rate.is_some() { 1024 } else { 1 });
    let config = Arc::new(Config {
        target,
        connections: args.connections,
        message_len: args.size as usize,
        depth,
        arrivals,
        verify: !args.no_verify,
        sources: args.sources.clone(),
        datagram_timeout: from_duration(args.timeout),
        messages: args.messages,
        seed: args.seed,
        reset_on_close: args.reset,
    });
    let placement = launch::place(&args.engine, Some(args.connections), false)?;
    let metrics = args.engine.metrics.map(MetricsServer::start).transpose()?;
    let limits = Limits {
        max_connections: args.connections,
        // A load client's own queue is bounded by its depth.
        stream_queue_bytes_max: (depth * args.size as usize).max(1 << 20).saturating_mul(2),
        // What waits is slices of one constant pattern: a bound would only leave connections idle.
        shard_queue_bytes_max: usize::MAX / 2,
        ..Limits::default()
    };
    let shared: Arc<[Arc<Shared>]> = placement
        .plan
        .shards
        .iter()
        .map(|_| Shared::new())
        .collect();
    let builder = launch::builder(&args.engine, limits, &placement);
    let (of_shard, for_shards) = (Arc::clone(&shared), Arc::clone(&config));
    let (engine, controller) = if datagrams {
        let service = Service::new("load", move |shard| {
            DatagramLoad::new(
                Arc::clone(&for_shards),
                Arc::clone(&of_shard[usize::from(shard)]),
            )
        });
        let controller = service.controller();
        (builder.service(service).start()?, controller)
    } else {
        let service = Service::new("load", move |shard| {
            StreamLoad::new(
                Arc::clone(&for_shards),
                Arc::clone(&of_shard[usize::from(shard)]),
            )
        });
        let controller = service.controller();
        (builder.service(service).start()?, controller)
    };
    let mut settings = BTreeMap::from([
        ("connections".to_owned(), json!(args.connections)),
        ("size".to_owned(), json!(args.size)),
        ("depth".to_owned(), json!(depth)),
        ("rate".to_owned(), json!(args.rate)),
        (
            "arrivals".to_owned(),
            json!(match arrivals {
                Arrivals::Closed => "closed loop",
                Arrivals::Constant(_) => "constant",
                Arrivals::Poisson(_) => "poisson",
                Arrivals::Idle => "idle",
            }),
        ),
        ("verify".to_owned(), json!(config.verify)),
        ("sources".to_owned(), json!(args.sources)),
        ("seed".to_owned(), json!(args.seed)),
    ]);
    if let Some(messages) = args.messages {
        settings.insert("messages".to_owned(), json!(messages));
    }
    let run = Run {
        args: &args.run,
        workload: "echo",
        endpoint: &args.endpoint,
        settings,
        placement: &placement,
        metrics,
        engine,
        controller,
        shared,
        datagrams,
        verify: config.verify,
        answers: arrivals != Arrivals::Idle,
        answer_time: if datagrams {
            args.timeout
        } else {
            Duration::ZERO
        },
        connections: args.connections as u64,
        messages: args.messages,
        classic: args.classic.map(|labels| Classic { labels, args }),
    };
    run.go()
}

/// The answer to `--histogram` where there is nothing to write to it.
fn no_latencies(why: &str) -> anyhow::Error {
    UsageError(format!(
        "--histogram: {why}, so there are no latencies to write; leave it away, or measure with \
         `ringmill load echo`"
    ))
    .into()
}

fn flood(args: &FloodArgs) -> Result<Exit> {
    let Address::Ip(target) = launch::target(&args.endpoint)? else {
        bail!(UsageError("a flood goes to a udp:// endpoint".into()));
    };
    if !matches!(
        args.endpoint,
        Endpoint::Inet {
            transport: Transport::Udp,
            ..
        }
    ) {
        bail!(UsageError("a flood goes to a udp:// endpoint".into()));
    }
    if args.size == 0 || args.size > DATAGRAM_LEN_MAX {
        bail!(UsageError(format!(
            "--size {}: from 1 to {DATAGRAM_LEN_MAX} bytes",
            args.size
        )));
    }
    if args.run.histogram.is_some() {
        return Err(no_latencies("a flood is never answered"));
    }
    let placement = launch::place(&args.engine, None, false)?;
    let metrics = args.engine.metrics.map(MetricsServer::start).transpose()?;
    let shards = placement.plan.shards.len();
    let config = Arc::new(FloodConfig {
        target,
        flows: args.flows,
        datagram_len: args.size as usize,
        rate: args.rate.map(|rate| rate / shards as f64),
    });
    let shared: Arc<[Arc<Shared>]> = placement
        .plan
        .shards
        .iter()
        .map(|_| Shared::new())
        .collect();
    let of_shard = Arc::clone(&shared);
    let service = Service::new("flood", move |shard| {
        Flood::new(
            Arc::clone(&config),
            Arc::clone(&of_shard[usize::from(shard)]),
        )
    });
    let controller = service.controller();
    let engine = launch::builder(&args.engine, Limits::default(), &placement)
        .service(service)
        .start()?;
    let settings = BTreeMap::from([
        ("flows".to_owned(), json!(args.flows * shards)),
        ("size".to_owned(), json!(args.size)),
        ("rate".to_owned(), json!(args.rate)),
    ]);
    let run = Run {
        args: &args.run,
        workload: "flood",
        endpoint: &args.endpoint,
        settings,
        placement: &placement,
        metrics,
        engine,
        controller,
        shared,
        datagrams: true,
        verify: false,
        answers: false,
        answer_time: Duration::ZERO,
        connections: (args.flows * shards) as u64,
        messages: None,
        classic: None,
    };
    run.go()
}

struct Classic<'a> {
    labels: ClassicLabels,
    args: &'a EchoArgs,
}

/// One run, from connecting to the report.
struct Run<'a> {
    args: &'a RunArgs,
    workload: &'static str,
    endpoint: &'a Endpoint,
    settings: BTreeMap<String, serde_json::Value>,
    placement: &'a Placement,
    metrics: Option<MetricsServer>,
    engine: Engine,
    controller: Controller<Command>,
    shared: Arc<[Arc<Shared>]>,
    datagrams: bool,
    verify: bool,
    /// Whether answers are expected.
    answers: bool,
    /// How long after the end an answer may still come.
    answer_time: Duration,
    connections: u64,
    messages: Option<u64>,
    classic: Option<Classic<'a>>,
}

/// CPU times at one moment.
struct Sample {
    at: Instant,
    machine: Option<MachineTimes>,
    own: ProcessTimes,
    server: Option<ProcessTimes>,
}

impl Run<'_> {
    fn go(mut self) -> Result<Exit> {
        let signals = EndRequests::watch(std::thread::current())?;
        let began = Instant::now();
        let progress = Progress::new(self.args.json);
        if let Some(note) = self.engine.driver_note() {
            progress.note(&format!("ringmill: {note}"));
        }
        if let Some(metrics) = &self.metrics {
            metrics.watch(Watched {
                services: self.engine.services().to_vec(),
                shards: self.engine.metrics().to_vec(),
                driver: self.engine.driver().to_string(),
                load: Some(Arc::clone(&self.shared)),
                ..Watched::default()
            });
            progress.note(&format!("metrics at {}", metrics.url()));
        }
        if let Some(note) = &self.placement.note {
            progress.note(&format!("ringmill: {note}"));
        }
        if !self.connect(&signals, &progress)? {
            return self.interrupted(&signals);
        }
        let server = crate::report::server::Server::find(self.endpoint, self.args.server_stats);

        let clock = (Instant::now(), monotonic_now());
        // A moment on the shards' clock, from now on.
        let instant =
            |moment: Nanos| clock.0 + Duration::from_nanos(moment.saturating_sub(clock.1));
        let start = clock.1 + from_duration(HEAD_START);
        let measure = start + from_duration(self.args.warmup);
        let end = measure + from_duration(self.args.duration);
        self.tell(Command::Begin {
            start,
            measure,
            end,
        });
        let mut log = self.open_log()?;
        let mut lines = JsonLines::new(std::io::stdout());

        let measure_begin = instant(measure);
        self.sleep_until(measure_begin, &signals);
        let before = Sample::take(server.as_ref());
        if self.args.json {
            println!("{}", json!({ "type": "measuring" }));
        }
        let mut intervals = Vec::new();
        // A short run may be over by now: what is counted only from `measure` on counts from zero.
        let mut last = Published::new();
        last.failures = self.read().failures;
        let mut last_at = measure_begin;
        let measure_end = instant(end);
        loop {
            self.sleep_until(measure_end.min(last_at + Duration::from_secs(1)), &signals);
            // Looked at before reading: nothing is published after it.
            let done = self.all(Phase::Done);
            let now = self.read();
            let now_at = match instant(now.tally.measured_until) {
                until if done && until > last_at => until,
                _ => Instant::now().max(last_at),
            };
            let interval = self.interval(&last, &now, last_at - measure_begin, now_at - last_at);
            if let Some(log) = &mut log {
                let (start, length) = (last_at - measure_begin, now_at - last_at);
                log_interval(log, (&last, &now), start, length)?;
            }
            progress.interval(&interval, self.datagrams);
            if self.args.json {
                lines.interval(&interval)?;
            }
            intervals.push(interval);
            (last, last_at) = (now, now_at);
            if done || last_at >= measure_end || signals.count() > 0 {
                break;
            }
        }
        let after = Sample::take(server.as_ref());
        if signals.count() > 0 {
            self.tell(Command::End);
        }
        self.wait_done(self.answer_time + END_PATIENCE, || signals.count() > 1);
        let stuck = !self.all(Phase::Done);
        self.engine.stop();
        // A stop makes shards that still wait for answers publish what they have.
        self.wait_done(STOP_PATIENCE, || false);
        let published = self.read();
        self.engine.stop_now();
        let ended = self.engine.join();
        if let Some(mut log) = log {
            // Answers that came after the end: a server that stalled then is seen by them only.
            log_interval(
                &mut log,
                (&last, &published),
                last_at - measure_begin,
                Instant::now() - last_at,
            )?;
            log.finish()?;
        }
        progress.clear();

        let measured = match instant(published.tally.measured_until) {
            until if until > measure_begin => until - measure_begin,
            _ => after.at - before.at,
        };
        for words in unsent_words(&published.tally, |_| true) {
            eprintln!("ringmill: {words}");
        }
        if published.tally.interrupted > 0 {
            eprintln!(
                "ringmill: {} messages were still unanswered at the interrupt",
                published.tally.interrupted
            );
        }
        let report = self.report(&published, intervals, measured, &before, &after);
        if self.args.json {
            lines.report(&report)?;
        } else {
            print!("{}", human::render(&report));
        }
        if let Some(classic) = &self.classic {
            let text = self.classic(classic, &report, &published, began.elapsed());
            if self.args.json {
                eprint!("{text}")
            } else {
                print!("\n{text}")
            }
        }
        std::io::stdout().flush()?;
        ended?;
        if stuck && signals.count() < 2 {
            bail!("a shard of the client did not end in time");
        }
        self.verdict(&report, &signals)
    }

    fn verdict(&self, report: &Report, signals: &EndRequests) -> Result<Exit> {
        if signals.count() > 1 {
            return Ok(Exit::Interrupted);
        }
        let mut exit = Exit::Ok;
        for condition in &self.args.fail_if {
            let verdict = condition.evaluate(report);
            if verdict.is_failure() {
                eprintln!("ringmill: --fail-if {condition}: {}", verdict.words());
                exit = Exit::Condition;
            }
        }
        if let Some(wanted) = self.messages
            && report.messages_sent < wanted
            && signals.count() == 0
        {
            let why = if report.duration_s >= self.args.duration.as_secs_f64() {
                "the time was over; a longer --duration lets the others through"
            } else {
                "no connection was left for the others"
            };
            eprintln!(
                "ringmill: only {} of {wanted} messages were sent: {why}",
                report.messages_sent
            );
        }
        let wrong = report.wrong_bytes.unwrap_or(0);
        if wrong > 0 {
            eprintln!("ringmill: {wrong} bytes came back different from what was sent");
            return Ok(Exit::Wrong);
        }
        if exit == Exit::Ok && self.answers && report.messages == 0 && signals.count() == 0 {
            eprintln!("ringmill: nothing was answered");
            return Ok(Exit::Failed);
        }
        Ok(exit)
    }

    /// Waits until every shard is connected; `false` when the user ended it.
    fn connect(&mut self, signals: &EndRequests, progress: &Progress) -> Result<bool> {
        while !self.all(Phase::Ready) {
            if signals.count() > 0 {
                return Ok(false);
            }
            if self.engine.has_ended() {
                self.engine.join()?;
                bail!("the engine ended before the run began");
            }
            std::thread::park_timeout(Duration::from_millis(20));
            let settled: u64 = self.shared.iter().map(|shared| shared.settled()).sum();
            progress.connecting(settled, self.connections);
        }
        let published = self.read();
        if published.tally.opened == 0 {
            let causes: Vec<_> = published.failures.keys().map(|(_, words)| *words).collect();
            let remedy = match causes.first().copied() {
                Some("connection refused") => "; is the server running there?",
                Some("no free local port or address") => "; more local addresses help: --sources",
                Some("too many open files" | "too many open files (process)") => {
                    "; see `ringmill doctor`"
                }
                _ => "",
            };
            bail!(
                "cannot connect to {}: {}{remedy}",
                self.endpoint,
                causes.join(", ")
            );
        }
        Ok(true)
    }

    fn interrupted(mut self, signals: &EndRequests) -> Result<Exit> {
        self.engine.stop_now();
        self.engine.join()?;
        eprintln!("ringmill: interrupted before the run began");
        Ok(if signals.count() > 1 {
            Exit::Interrupted
        } else {
            Exit::Failed
        })
    }

    fn tell(&self, command: Command) {
        for shard in 0..self.shared.len() {
            // A full mailbox is not possible: only these few messages are ever sent.
            let _ = self.controller.post(shard as u16, command);
        }
    }

    fn all(&self, phase: Phase) -> bool {
        self.shared.iter().all(|shared| shared.phase() >= phase)
    }

    /// Waits until every shard is done, the user is `tired`, or for so long.
    fn wait_done(&self, patience: Duration, tired: impl Fn() -> bool) {
        let until = Instant::now() + patience;
        while !self.all(Phase::Done) && Instant::now() < until && !tired() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn read(&self) -> Published {
        let mut sum = Published::new();
        for shared in self.shared.iter() {
            sum.add(&shared.read());
        }
        sum
    }

    fn sleep_until(&self, moment: Instant, signals: &EndRequests) {
        while signals.count() == 0 && !self.all(Phase::Done) {
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            // The end of a number of messages has no event: how often it is looked for is how
            // exact the length of such a run is.
            let look = if self.messages.is_some() { 2 } else { 50 };
            std::thread::park_timeout(left.min(Duration::from_millis(look)));
        }
    }

    fn open_log(&self) -> Result<Option<LogWriter<File>>> {
        let Some(path) = &self.args.histogram else {
            return Ok(None);
        };
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(LogWriter::begin(
            file,
            SystemTime::now(),
            &[&self.endpoint.to_string()],
        )?))
    }

    fn interval(
        &self,
        before: &Published,
        now: &Published,
        start: Duration,
        length: Duration,
    ) -> Interval {
        let difference = |after: &hdrhistogram::Histogram<u64>,
                          before: &hdrhistogram::Histogram<u64>| {
            let mut histogram = after.clone();
            // The later one counts everything that the earlier one did.
            let _ = histogram.subtract(before);
            Latency::from_histogram(&histogram)
        };
        let (a, b) = (&now.tally, &before.tally);
        let flood = !self.answers && self.datagrams;
        Interval {
            start_s: start.as_secs_f64(),
            duration_s: length.as_secs_f64(),
            messages: if flood {
                a.sent - b.sent
            } else {
                a.answered - b.answered
            },
            bytes: a.bytes - b.bytes,
            connections: a.opened.saturating_sub(a.closed_early),
            errors: now.failures.values().sum::<u64>() - before.failures.values().sum::<u64>(),
            lost: self.datagrams.then(|| a.lost - b.lost),
            wrong_bytes: self.verify.then(|| a.wrong_bytes - b.wrong_bytes),
            response_time: difference(&now.response, &before.response),
            service_time: difference(&now.service, &before.service),
            ..Interval::default()
        }
        .with_rates()
    }

    fn report(
        &self,
        published: &Published,
        intervals: Vec<Interval>,
        measured: Duration,
        before: &Sample,
        after: &Sample,
    ) -> Report {
        let tally = &published.tally;
        let elapsed = (after.at - before.at).as_secs_f64();
        let of_kind = |wanted: &str| -> BTreeMap<String, u64> {
            let some = published
                .failures
                .iter()
                .filter(|((kind, _), _)| *kind == wanted);
            some.map(|((_, words), count)| ((*words).to_owned(), *count))
                .collect()
        };
        let client = after.own.since(&before.own);
        let shards = self.placement.plan.shards.len();
        let mut cpus: Vec<usize> = self
            .placement
            .plan
            .shards
            .iter()
            .map(|shard| shard.cpu)
            .collect();
        cpus.sort_unstable();
        cpus.dedup();
        let messages = if self.answers {
            tally.answered
        } else {
            tally.sent
        };
        let use_of = |times: ProcessTimes, cpus: usize| {
            CpuUse::new(times.user, times.system, elapsed, cpus as u32, messages)
        };
        let client_cpu = use_of(client, cpus.len());
        let server = match (&before.server, &after.server) {
            (Some(before), Some(after)) => {
                let spent = after.since(before);
                Some(use_of(spent, self.placement.topology.cpus.len()))
            }
            _ => None,
        };
        let usage = match (&before.machine, &after.machine) {
            (Some(before), Some(after)) => {
                let theirs = server
                    .as_ref()
                    .map_or(0.0, |server| server.user_s + server.system_s);
                Usage::between(
                    before,
                    after,
                    client.total() + Duration::from_secs_f64(theirs),
                )
            }
            _ => None,
        };
        let mut settings = self.settings.clone();
        settings.insert("shards".into(), json!(shards));
        settings.insert("cpus".into(), json!(cpus));
        settings.insert("driver".into(), json!(self.engine.driver()));
        if tally.unsent > 0 || tally.lateness_max_ns > 0 {
            settings.insert("lateness_max_ns".into(), json!(tally.lateness_max_ns));
            settings.insert("unsent".into(), json!(tally.unsent));
        }
        if tally.unsent > 0 {
            let causes = tally.unsent_by.iter();
            let causes: BTreeMap<_, _> = causes
                .map(|(cause, count)| (cause.words(), count))
                .collect();
            settings.insert("unsent_causes".into(), json!(causes));
        }
        if tally.interrupted > 0 {
            let count = json!(tally.interrupted);
            settings.insert("unanswered_at_interrupt".into(), count);
        }
        let mut errors = BTreeMap::new();
        for ((kind, words), count) in &published.failures {
            *errors.entry(format!("{kind}: {words}")).or_default() += count;
        }
        if !self.datagrams && tally.lost > 0 {
            errors.insert("messages without an answer".into(), tally.lost);
        }
        if tally.unknown > 0 {
            errors.insert("answers that match nothing sent".into(), tally.unknown);
        }
        let share = client_cpu.share_percent.unwrap_or(0.0);
        let server_busy = server.as_ref().map_or(0.0, |server| server.cpus_busy);
        let by_client: Vec<_> = unsent_words(tally, Unsent::is_of_client);
        let client_limited = if !by_client.is_empty() {
            Some(by_client.join(", "))
        } else if share >= BUSY_PERCENT && server_busy < cpus.len() as f64 * 0.9 {
            Some(format!(
                "its shards used {share:.0} % of their {} CPUs",
                cpus.len()
            ))
        } else {
            None
        };
        let datagrams = self.datagrams.then(|| {
            Datagrams {
                sent: tally.sent,
                received: tally.answered + tally.late + tally.duplicated,
                lost: if self.answers { tally.lost } else { 0 },
                duplicated: tally.duplicated,
                reordered: tally.reordered,
                late: tally.late,
                ..Datagrams::default()
            }
            .with_loss_ratio()
        });
        Report {
            command: std::env::args().collect(),
            workload: self.workload.into(),
            endpoint: self.endpoint.to_string(),
            settings,
            environment: Environment::collect(),
            duration_s: measured.as_secs_f64(),
            warmup_s: self.args.warmup.as_secs_f64(),
            connections: Connections {
                opened: tally.opened,
                failed: tally.open_failed,
                closed: of_kind("connection"),
            },
            messages_sent: tally.sent,
            messages,
            bytes: tally.bytes,
            errors,
            wrong_bytes: self.verify.then_some(tally.wrong_bytes),
            datagrams,
            response_time: Latency::from_histogram(&published.response),
            service_time: Latency::from_histogram(&published.service),
            cpu: Cpu {
                client: client_cpu,
                server,
            },
            limits: crate::report::Limits {
                client_limited,
                steal_percent: usage.as_ref().map(|usage| usage.steal_percent),
                other_busy_percent: usage.as_ref().map(|usage| usage.others_percent),
            },
            intervals,
            ..Report::new()
        }
        .with_rates()
    }

    fn classic(
        &self,
        classic: &Classic<'_>,
        report: &Report,
        published: &Published,
        total: Duration,
    ) -> String {
        let run = SeedRun {
            labels: match classic.labels {
                ClassicLabels::Seed => Labels::Seed,
                ClassicLabels::Newest => Labels::Newest,
            },
            address: self
                .endpoint
                .host()
                .map_or_else(|| self.endpoint.to_string(), ToString::to_string),
            port: self.endpoint.port().unwrap_or(0),
            clients: self.connections,
            messages: classic
                .args
                .messages
                .unwrap_or(classic.args.depth.unwrap_or(1) as u64),
            size_bytes: classic.args.size,
            seconds: self.args.duration.as_secs(),
            errors: report.errors_total(),
            total_time: total,
            total_bytes: published.tally.bytes,
            total_messages: if self.datagrams {
                TotalMessages::Counted(published.tally.answered)
            } else {
                TotalMessages::FromBytes
            },
        };
        format!(
            "{}\n{}",
            seed_style::parameters(&run),
            seed_style::results(&run)
        )
    }
}

/// Writes the latencies between two readings, if there are any.
fn log_interval(
    log: &mut LogWriter<File>,
    (earlier, later): (&Published, &Published),
    start: Duration,
    length: Duration,
) -> Result<()> {
    for (kind, after, before) in [
        (LatencyKind::Response, &later.response, &earlier.response),
        (LatencyKind::Service, &later.service, &earlier.service),
    ] {
        let mut histogram = after.clone();
        histogram.subtract(before).context("histograms only grow")?;
        if !histogram.is_empty() {
            log.interval(kind, start, length, &histogram)?;
        }
    }
    Ok(())
}

/// One sentence for each of the wanted causes for which messages were not sent.
fn unsent_words(tally: &Tally, wanted: impl Fn(Unsent) -> bool) -> Vec<String> {
    let of_cause = tally.unsent_by.iter().filter(|(cause, _)| wanted(**cause));
    of_cause
        .map(|(cause, count)| {
            format!(
                "{count} messages of the schedule were not sent: {}",
                cause.words()
            )
        })
        .collect()
}

impl Sample {
    fn take(server: Option<&crate::report::server::Server>) -> Self {
        Self {
            at: Instant::now(),
            machine: MachineTimes::read().ok(),
            own: ProcessTimes::own(),
            server: server.and_then(|server| server.times()),
        }
    }
}

/// What a person sees while it runs; nothing when the output is not a terminal or is JSON.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(json: bool) -> Self {
        if json || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}").expect("a constant template"),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Some(bar))
    }

    fn note(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn connecting(&self, settled: u64, wanted: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("connecting {settled} of {wanted}"));
        }
    }

    fn interval(&self, interval: &Interval, datagrams: bool) {
        let Some(bar) = &self.0 else { return };
        let p99 = interval
            .response_time
            .as_ref()
            .map_or_else(String::new, |latency| {
                format!(
                    ", p50 {}, p99 {}",
                    units::format_latency_ns(latency.p50_ns as f64),
                    units::format_latency_ns(latency.p99_ns as f64)
                )
            });
        let lost = match interval.lost {
            Some(lost) if datagrams => format!(", {lost} lost"),
            _ => String::new(),
        };
        bar.println(format!(
            "{:>5.0} s  {}, {}{p99}{lost}, {} errors",
            interval.start_s + interval.duration_s,
            units::format_rate(interval.messages_per_s),
            units::format_byte_rate(interval.bytes_per_s),
            interval.errors
        ));
        bar.set_message(format!("{} connections", interval.connections));
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
