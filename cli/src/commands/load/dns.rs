//! `ringmill load dns`: its flags, and the clients that they ask for.

use std::collections::BTreeMap;
use std::io::{BufRead, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use ringmill_engine::time::{from_duration, to_duration};
use ringmill_engine::{Address, Limits, Service};
use ringmill_protocols::dns::message::{Name, parse_type};
use ringmill_protocols::dns::{
    DnsConfig, DnsFigures, DnsLoad, DnsShared, NAMES_MAX, Queries, Records,
};
use ringmill_protocols::load::{Published, RatePlan, Unsent};
use serde_json::json;

use crate::args::{EngineArgs, parse_connections};
use crate::endpoint::{Endpoint, Scheme};
use crate::exit::{Exit, UsageError};
use crate::launch;
use crate::metrics::MetricsServer;
use crate::report::{Dns, Latency, Report};
use crate::units;

use super::RunArgs;
use super::control::{Run, shared};
use super::recording::Recording;

/// A larger file of names or of a plan is a mistake.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Connections per second: whoever opens slower means something else.
const OPEN_RATE_MIN: f64 = 0.001;

/// Flags of `ringmill load dns`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DnsArgs {
    /// The server: tcp://HOST:PORT or udp://HOST:PORT. An echo server will do: a query that comes
    /// back is taken as its answer, and counted as echoed.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// The name to ask for.
    #[arg(long, value_name = "NAME", default_value = "example.com")]
    pub name: String,

    /// Names to ask for in turn, one in a line, or `NAME TYPE`; '-' is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub names: Option<PathBuf>,

    /// Type of the records to ask for, where the file of names says nothing else.
    #[arg(long = "type", value_name = "TYPE", default_value = "A", value_parser = parse_kind)]
    pub kind: u16,

    /// Connections (UDP: sockets).
    #[arg(long, short = 'c', value_name = "N", value_parser = parse_connections, default_value = "100")]
    pub connections: usize,

    /// Connections opened per second [default: as fast as 256 connects in flight on each shard go].
    #[arg(long, value_name = "RATE", value_parser = parse_open_rate)]
    pub open_rate: Option<f64>,

    /// Open a connection again when it is lost.
    #[arg(long)]
    pub reopen: bool,

    /// Queries per second over all connections, sent on schedule whether or not answers come.
    #[arg(long, short = 'r', value_name = "RATE", value_parser = units::parse_rate, required_unless_present = "plan")]
    pub rate: Option<f64>,

    /// How queries are spaced.
    #[arg(long, value_enum, value_name = "SPACING", default_value_t)]
    pub arrivals: ArrivalsArg,

    /// Rates in steps: the number of lines, then lines of `<duration_ms> <rate>`; '-' is standard
    /// input. The run lasts as long as the plan.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "slopes", "duration"])]
    pub plan: Option<PathBuf>,

    /// Slopes from --rate on: the number of lines, then lines of `<duration_ms> <slope>`, in queries
    /// per second in a second; '-' is standard input. The run lasts as long as the slopes.
    #[arg(
        long,
        value_name = "FILE",
        requires = "rate",
        conflicts_with = "duration"
    )]
    pub slopes: Option<PathBuf>,

    /// Seed of the random instants and of the choice of connections.
    #[arg(long, value_name = "N", default_value = "42")]
    pub seed: u64,

    /// A query without an answer for this long is lost.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "5s")]
    pub timeout: Duration,

    /// Write every query and answer to a file as CSV; '-' is standard output (the report is then on
    /// standard error).
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Local addresses to connect from, in turn; may be repeated.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub sources: Vec<IpAddr>,

    /// End the connections by RST, which leaves no TIME_WAIT behind.
    #[arg(long)]
    pub reset: bool,

    /// When and how it is reported.
    #[command(flatten)]
    pub run: RunArgs,

    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  ringmill load dns udp://127.0.0.1:53 --rate 50k -c 5
  ringmill load dns tcp://[2001:db8::53]:53 -c 10k --open-rate 2k --rate 100k --name www.example.org
  printf '2\\n5000 1000\\n5000 20000\\n' | ringmill load dns tcp://:5353 --plan -
  ringmill load dns tcp://:5353 --rate 1k -d 5s --record - >queries.csv

A query is late when the client comes to it after its instant, and is given up after a second: what was
not sent is told with its cause. See docs/dns.md.

Scripts for tcpscaler run with `ringmill tcpclient`, `ringmill udpclient` and `ringmill tcpserver`.";

/// How queries are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum ArrivalsArg {
    /// Independent of each other: exponential gaps.
    #[default]
    Poisson,
    /// Equal gaps.
    Constant,
}

fn parse_kind(text: &str) -> Result<u16, String> {
    parse_type(text).ok_or_else(|| format!("{text:?} is no record type; A, AAAA, TXT, TYPE65, …"))
}

fn parse_open_rate(text: &str) -> Result<f64, String> {
    let rate = units::parse_rate(text).map_err(|error| error.to_string())?;
    if rate < OPEN_RATE_MIN {
        return Err("a rate of at least one in 1,000 s, or the run never begins".to_owned());
    }
    Ok(rate)
}

/// Runs it.
///
/// # Errors
/// When no connection can be made, a file is wrong, or the flags contradict each other.
pub(super) fn run(args: &DnsArgs) -> Result<Exit> {
    let questions = questions(args)?;
    let plan = plan(args)?;
    let on_stdout = args.record.as_deref() == Some(Path::new("-"));
    if on_stdout && args.run.json {
        return usage("--record - and --json both want standard output; record to a file");
    }
    let part = args.run.host.part(args.sources.len() as u64)?;
    // A range within the list.
    let sources = &args.sources[part.start as usize..part.end as usize];
    let mut run_args = args.run.clone();
    if let Some(length) = plan.length() {
        run_args.duration = to_duration(length);
    }
    let mut settings = BTreeMap::from([
        ("name".to_owned(), json!(args.name)),
        ("names".to_owned(), json!(questions.len())),
        (
            "plan".to_owned(),
            json!(args.plan.as_ref().or(args.slopes.as_ref())),
        ),
    ]);
    if args.names.is_some() {
        settings.remove("name");
    }
    load(&Job {
        endpoint: &args.endpoint,
        questions,
        connections: args.connections,
        open_rate: args.open_rate,
        reopen: args.reopen,
        rate: args.rate,
        plan,
        poisson: args.arrivals == ArrivalsArg::Poisson,
        seed: args.seed,
        timeout: args.timeout,
        record: args.record.as_deref(),
        sources,
        reset: args.reset,
        run: &run_args,
        engine: &args.engine,
        report_on_stderr: on_stdout,
        settings,
    })
}

/// A DNS load, whatever command line asked for it.
pub(crate) struct Job<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) questions: Vec<(Name, u16)>,
    pub(crate) connections: usize,
    pub(crate) open_rate: Option<f64>,
    pub(crate) reopen: bool,
    pub(crate) rate: Option<f64>,
    pub(crate) plan: RatePlan,
    pub(crate) poisson: bool,
    pub(crate) seed: u64,
    pub(crate) timeout: Duration,
    pub(crate) record: Option<&'a Path>,
    pub(crate) sources: &'a [IpAddr],
    pub(crate) reset: bool,
    pub(crate) run: &'a RunArgs,
    pub(crate) engine: &'a EngineArgs,
    pub(crate) report_on_stderr: bool,
    pub(crate) settings: BTreeMap<String, serde_json::Value>,
}

/// Runs a job.
///
/// # Errors
/// When no connection can be made, or the record cannot be written.
pub(crate) fn load(job: &Job<'_>) -> Result<Exit> {
    let target = launch::target(job.endpoint)?;
    if let Address::Ip(server) = &target
        && let Some(source) = job
            .sources
            .iter()
            .find(|source| source.is_ipv4() != server.is_ipv4())
    {
        bail!(UsageError(format!(
            "--sources {source}: the server is {server}, of the other IP version"
        )));
    }
    let datagrams = job.endpoint.scheme() == Scheme::Udp;
    let plan = Arc::new(job.plan.clone().after(from_duration(job.run.warmup)));
    let config = Arc::new(DnsConfig {
        target,
        datagrams,
        connections: job.connections,
        open_rate: job.open_rate,
        reopen: job.reopen,
        plan: Arc::clone(&plan),
        poisson: job.poisson,
        seed: job.run.host.seed(job.seed),
        queries: Arc::new(Queries::new(&job.questions, !datagrams)),
        timeout: from_duration(job.timeout),
        sources: job.sources.to_vec(),
        reset_on_close: job.reset,
    });
    let placement = launch::place(job.engine, Some(job.connections), false)?;
    let metrics = job.engine.metrics.map(MetricsServer::start).transpose()?;
    let limits = Limits {
        max_connections: job.connections,
        ..Limits::default()
    };
    let shared = shared(&placement);
    let dns_shared: Arc<[_]> = shared.iter().map(|_| DnsShared::new()).collect();
    let records: Vec<_> = match job.record {
        Some(_) => shared.iter().map(|_| Records::new()).collect(),
        None => Vec::new(),
    };
    let recording = match job.record {
        Some(path) => Some(Recording::begin(path, records.clone())?),
        None => None,
    };
    let builder = launch::builder(job.engine, limits, &placement);
    let service = Service::new("load", {
        let (config, shared, dns) = (config, Arc::clone(&shared), Arc::clone(&dns_shared));
        move |shard| {
            let shard = usize::from(shard);
            DnsLoad::new(
                Arc::clone(&config),
                Arc::clone(&shared[shard]),
                Arc::clone(&dns[shard]),
                records.get(shard).cloned(),
            )
        }
    });
    let controller = service.controller();
    let began = Instant::now();
    let engine = builder.service(service).start()?;
    let mut settings = job.settings.clone();
    settings.extend([
        ("connections".to_owned(), json!(job.connections)),
        ("open_rate".to_owned(), json!(job.open_rate)),
        ("rate".to_owned(), json!(job.rate)),
        (
            "arrivals".to_owned(),
            json!(if job.poisson { "poisson" } else { "constant" }),
        ),
        ("seed".to_owned(), json!(job.seed)),
        ("timeout_s".to_owned(), json!(job.timeout.as_secs_f64())),
        ("sources".to_owned(), json!(job.sources)),
    ]);
    settings.extend(job.run.host.seed_setting(job.seed));
    settings.retain(|_, value| !value.is_null());
    let run = Run {
        args: job.run,
        workload: "dns",
        endpoint: job.endpoint,
        settings,
        placement: &placement,
        metrics,
        engine,
        controller,
        shared,
        datagrams,
        verify: false,
        answers: true,
        answer_time: job.timeout,
        connections: job.connections as u64,
        messages: None,
        classic: None,
        dns: Some(DnsRun {
            shared: dns_shared,
            plan: job.plan.clone(),
            length: job.run.duration,
            recording,
            began,
            opening: Duration::ZERO,
            opened: 0,
            recorded: None,
        }),
        report_on_stderr: job.report_on_stderr,
    };
    run.go()
}

/// What a DNS run has beside what every run does.
pub(super) struct DnsRun {
    shared: Arc<[Arc<DnsShared>]>,
    /// Without the warm-up.
    plan: RatePlan,
    /// Of the measured part, as it was asked for.
    length: Duration,
    recording: Option<Recording>,
    began: Instant,
    opening: Duration,
    /// By the time at which the run began: not those that were opened again later.
    opened: u64,
    recorded: Option<u64>,
}

impl DnsRun {
    /// All connections are open, or have failed.
    pub(super) fn opened(&mut self, count: u64) {
        self.opened = count;
        self.opening = self.began.elapsed();
    }

    /// No shard records any more.
    ///
    /// # Errors
    /// When not all could be written.
    pub(super) fn finish_recording(&mut self) -> Result<()> {
        if let Some(recording) = self.recording.take() {
            self.recorded = Some(recording.finish()?);
        }
        Ok(())
    }

    /// Its part of the report.
    pub(super) fn report(
        &self,
        published: &Published,
        report: &Report,
        cause_words: impl Fn(Unsent) -> &'static str,
    ) -> Dns {
        let mut figures = DnsFigures::new();
        for shared in self.shared.iter() {
            figures.add(&shared.read());
        }
        let (tally, counts) = (&published.tally, &figures.counts);
        // The turn that ends a run comes a moment late, and offers nothing beyond the end.
        let measured = Duration::from_secs_f64(report.duration_s.max(0.0)).min(self.length);
        let offered = self.plan.messages_until(from_duration(measured));
        let per_s = |count: f64, seconds: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let codes = counts.response_codes.iter().enumerate();
        let mut response_codes = BTreeMap::new();
        for (code, count) in codes.filter(|(_, count)| **count > 0) {
            let name = ringmill_protocols::dns::message::response_code_name(code as u8);
            *response_codes.entry(name.to_owned()).or_default() += count;
        }
        let causes = tally.unsent_by.iter();
        Dns {
            offered: offered.round() as u64,
            offered_per_s: per_s(offered, report.duration_s),
            sent_per_s: per_s(tally.sent as f64, report.duration_s),
            unsent: tally.unsent,
            unsent_causes: causes
                .map(|(cause, count)| (cause_words(*cause).to_owned(), *count))
                .collect(),
            lateness: Latency::from_histogram(&figures.lateness),
            lost: tally.lost,
            loss_ratio: (tally.sent > 0).then(|| tally.lost as f64 / tally.sent as f64),
            late: tally.late,
            duplicated: tally.duplicated,
            unknown: tally.unknown,
            malformed: counts.malformed,
            response_codes,
            echoed: counts.echoed,
            truncated: counts.truncated,
            opening_s: self.opening.as_secs_f64(),
            opened: self.opened,
            opened_per_s: per_s(self.opened as f64, self.opening.as_secs_f64()),
            recorded: self.recorded,
            records_dropped: self.recorded.map(|_| counts.records_dropped),
        }
    }
}

fn usage<T>(words: &str) -> Result<T> {
    Err(UsageError(words.to_owned()).into())
}

/// The text of a file or of standard input.
fn read(path: &Path) -> Result<String> {
    let wrong = |what: &str| UsageError(format!("{}: {what}", path.display()));
    let mut text = String::new();
    let mut read = |from: &mut dyn std::io::Read| {
        let mut from = from.take(FILE_BYTES_MAX + 1);
        from.read_to_string(&mut text)
    };
    let result = if path == Path::new("-") {
        read(&mut std::io::stdin().lock())
    } else {
        std::fs::File::open(path).and_then(|mut file| read(&mut file))
    };
    let len = result.map_err(|error| wrong(&error.to_string()))?;
    if len as u64 > FILE_BYTES_MAX {
        return Err(wrong("larger than 64 MiB: is this the right file?").into());
    }
    Ok(text)
}

fn read_plan(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        plan_on_stdin()
    } else {
        read(path)
    }
}

/// A rate plan on standard input, read as far as its first line says and no further: whoever writes
/// it may keep the pipe open.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn plan_on_stdin() -> Result<String> {
    let input = std::io::stdin().lock().take(FILE_BYTES_MAX);
    plan_lines(input).context("cannot read the rates from standard input")
}

fn plan_lines(mut input: impl BufRead) -> std::io::Result<String> {
    let mut text = String::new();
    // Words so far, and how many there are in all, as soon as the first one says so.
    let (mut words, mut wanted) = (0, 1);
    while words < wanted {
        let begin = text.len();
        if input.read_line(&mut text)? == 0 {
            break;
        }
        let line = text[begin..].split('#').next().unwrap_or("");
        for word in line.split_whitespace() {
            if words == 0 {
                // What is no number is told by who reads the text.
                let lines = word.parse().unwrap_or(0_usize);
                wanted = lines.saturating_mul(2).saturating_add(1);
            }
            words += 1;
        }
    }
    Ok(text)
}

fn plan(args: &DnsArgs) -> Result<RatePlan> {
    let rate = args.rate.unwrap_or(0.0);
    let plan = match (&args.plan, &args.slopes) {
        (Some(path), _) => RatePlan::parse_steps(&read_plan(path)?),
        (None, Some(path)) => RatePlan::parse_slopes(rate, &read_plan(path)?),
        (None, None) => RatePlan::constant(rate),
    };
    plan.map_err(|error| UsageError(error.to_string()).into())
}

fn questions(args: &DnsArgs) -> Result<Vec<(Name, u16)>> {
    let Some(path) = &args.names else {
        let name = Name::parse(&args.name).map_err(|error| UsageError(error.to_string()))?;
        return Ok(vec![(name, args.kind)]);
    };
    let text = read(path)?;
    parse_names(&text, args.kind).with_context(|| path.display().to_string())
}

/// Reads lines of names, each with a type or without; empty ones and comments (`#`, `;`) are passed
/// over.
pub(crate) fn parse_names(text: &str, kind: u16) -> Result<Vec<(Name, u16)>> {
    let mut questions = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: String| UsageError(format!("line {}: {what}", number + 1));
        let mut words = line
            .split(['#', ';'])
            .next()
            .unwrap_or("")
            .split_whitespace();
        let Some(name) = words.next() else { continue };
        let name = Name::parse(name).map_err(|error| wrong(error.to_string()))?;
        let kind = match words.next() {
            None => kind,
            Some(word) => parse_kind(word).map_err(wrong)?,
        };
        if let Some(more) = words.next() {
            return Err(wrong(format!("{more:?} is too much: NAME or NAME TYPE")).into());
        }
        if questions.len() == NAMES_MAX {
            return Err(wrong(format!("more than {NAMES_MAX} names")).into());
        }
        questions.push((name, kind));
    }
    if questions.is_empty() {
        return usage("no name in it; write one in each line");
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_far_as_it_says() {
        for (text, read) in [
            ("1\n1000 5\n1000 6\n", "1\n1000 5\n"),
            (
                "# two\n\n2 # lines\n1 2\n\n3 4\nmore",
                "# two\n\n2 # lines\n1 2\n\n3 4\n",
            ),
            ("1 1000 5\nmore", "1 1000 5\n"),
            ("2\n1000 5\n", "2\n1000 5\n"),
            ("x\nmore", "x\n"),
            ("", ""),
        ] {
            assert_eq!(plan_lines(text.as_bytes()).unwrap(), read, "{text:?}");
        }
    }

    #[test]
    fn names_have_a_line_each() {
        let text = "example.com\n\n# all of it\nexample.org AAAA ; here\nexample.net TYPE65\n";
        let questions = parse_names(text, 1).unwrap();
        let expected = [("example.com", 1), ("example.org", 28), ("example.net", 65)];
        let expected = expected.map(|(name, kind)| (Name::parse(name).unwrap(), kind));
        assert_eq!(questions, expected);
        for (text, words) in [
            ("", "no name in it"),
            ("a\nb..c", "line 2: the name \"b..c\" has an empty label"),
            ("a B", "line 1: \"B\" is no record type"),
            ("a A IN", "line 1: \"IN\" is too much"),
        ] {
            let error = format!("{:#}", parse_names(text, 1).unwrap_err());
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
