//! One load run, seen from the control thread: connect, start together, read once a second, end.
//!
//! It must never touch what a shard counts, nor hold one up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use ringmill_engine::time::{from_duration, monotonic_now};
use ringmill_engine::{Controller, Engine, Nanos};
use ringmill_protocols::load::{Command, Phase, Published, Shared};

use crate::endpoint::Endpoint;
use crate::exit::Exit;
use crate::launch::Placement;
use crate::metrics::{MetricsServer, Watched};
use crate::report::hlog::{LatencyKind, LogWriter};
use crate::report::json::{JsonLines, Measuring};
use crate::report::{MULTICAST, Report, human};
use crate::signals::EndRequests;
use crate::start::rfc3339;

use super::RunArgs;
use super::classic::Classic;
use super::dns::DnsRun;
use super::figures::Sample;
use super::progress::Progress;

/// Between the command to begin and the first message: every shard hears of it in time.
const HEAD_START: Duration = Duration::from_millis(50);
/// A shard that does not end so long after the last answer may come is stuck: the run is reported
/// as failed.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Intervals of which the report tells the extremes: those of a day.
const INTERVALS_MAX: usize = 86_400;
/// How long a shard may take to say what it has after it was told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// How long the last interval waits for what shards have counted and not published yet: on a busy host
/// it would tell less than the report.
const LAST_INTERVAL_PATIENCE: Duration = Duration::from_millis(200);

/// One run, from connecting to the report.
pub(super) struct Run<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) workload: &'static str,
    pub(super) endpoint: &'a Endpoint,
    pub(super) settings: BTreeMap<String, serde_json::Value>,
    pub(super) placement: &'a Placement,
    pub(super) metrics: Option<MetricsServer>,
    pub(super) engine: Engine,
    pub(super) controller: Controller<Command>,
    pub(super) shared: Arc<[Arc<Shared>]>,
    pub(super) datagrams: bool,
    pub(super) verify: bool,
    /// Whether answers are expected.
    pub(super) answers: bool,
    /// How long after the end an answer may still come.
    pub(super) answer_time: Duration,
    pub(super) connections: u64,
    pub(super) messages: Option<u64>,
    pub(super) classic: Option<Classic>,
    /// What it has beside, if it is one of DNS.
    pub(super) dns: Option<DnsRun>,
    /// Standard output has something else to carry.
    pub(super) report_on_stderr: bool,
}

/// What the shards show while they run: a place for each shard of a placement.
pub(super) fn shared(placement: &Placement) -> Arc<[Arc<Shared>]> {
    let shards = placement.plan.shards.iter();
    shards.map(|_| Shared::new()).collect()
}

impl Run<'_> {
    /// Connects, runs, reports.
    ///
    /// # Errors
    /// When no connection can be made, or a shard fails.
    pub(super) fn go(mut self) -> Result<Exit> {
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
        let opened = self.read().tally.opened;
        if let Some(dns) = &mut self.dns {
            dns.opened(opened);
        }
        if let (Some(moment), Some(_)) = (self.args.start.in_words(), self.args.start.left()) {
            progress.note(&format!("ringmill: connected, waiting until {moment}"));
        }
        let start = &self.args.start;
        if !start.hold(HEAD_START, &signals, |left| progress.waiting(left)) {
            return self.interrupted(&signals);
        }
        let server = crate::report::server::Server::find(self.endpoint, self.args.server_stats);

        let clock = (Instant::now(), monotonic_now());
        // A moment on the shards' clock, from now on.
        let instant =
            |moment: Nanos| clock.0 + Duration::from_nanos(moment.saturating_sub(clock.1));
        let head_start = self.args.start.left().unwrap_or_default().max(HEAD_START);
        let start = clock.1 + from_duration(head_start);
        let measure = start + from_duration(self.args.warmup);
        let end = measure + from_duration(self.args.duration);
        self.tell(Command::Begin {
            start,
            measure,
            end,
        });
        let started =
            SystemTime::now() + instant(measure).saturating_duration_since(Instant::now());
        let mut log = self.open_log(started)?;
        let mut lines = JsonLines::new(std::io::stdout());

        let measure_begin = instant(measure);
        self.sleep_until(measure_begin, &signals);
        let before = Sample::take(server.as_ref());
        if self.args.json {
            lines.measuring(&Measuring {
                version: env!("CARGO_PKG_VERSION"),
                workload: self.workload,
                endpoint: &self.endpoint.to_string(),
                started_at: &rfc3339(started),
                host_index: self.args.host.host_index,
                hosts: self.args.host.hosts,
            })?;
        }
        let mut intervals = Vec::new();
        // A short run may be over by now: what is counted only from `measure` on counts from zero.
        let mut last = Published::new();
        last.failures = self.read().failures;
        let mut last_at = measure_begin;
        let measure_end = instant(end);
        loop {
            self.sleep_until(measure_end.min(last_at + Duration::from_secs(1)), &signals);
            if Instant::now() >= measure_end {
                self.wait_done(LAST_INTERVAL_PATIENCE, || signals.count() > 0);
            }
            // Looked at before reading: nothing is published after it.
            let done = self.all(Phase::Done);
            let now = self.read();
            let now_at = match instant(now.tally.measured_until) {
                until if done && until > last_at => until,
                _ => Instant::now().min(measure_end).max(last_at),
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
            if intervals.len() < INTERVALS_MAX {
                intervals.push(interval);
            }
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
        let recorded = self.dns.as_mut().map_or(Ok(()), DnsRun::finish_recording);
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
        for words in self.unsent_words(&published.tally, |_| true) {
            eprintln!("ringmill: {words}");
        }
        if published.tally.interrupted > 0 {
            eprintln!(
                "ringmill: {} messages were still unanswered at the interrupt",
                published.tally.interrupted
            );
        }
        let report = Report {
            started_at: Some(rfc3339(started)),
            ..self.report(&published, intervals, measured, &before, &after)
        };
        if self.args.json {
            lines.report(&report)?;
        } else if self.report_on_stderr {
            eprint!("{}", human::render(&report));
        } else {
            print!("{}", human::render(&report));
        }
        if let Some(classic) = &self.classic {
            let text = classic.summary(&self, &report, &published, began.elapsed());
            if self.args.json {
                eprint!("{text}")
            } else {
                print!("\n{text}")
            }
        }
        std::io::stdout().flush()?;
        ended?;
        // A full disk does not cost the figures of the run.
        recorded?;
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
            let what = match self.workload {
                MULTICAST => "received",
                _ => "answered",
            };
            eprintln!("ringmill: nothing was {what}");
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
        let opened = self.read().tally.opened;
        self.engine.stop_now();
        self.engine.join()?;
        let state = format!(": {opened} of {} connections were open", self.connections);
        Ok(super::interrupted(signals, &state))
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

    fn open_log(&self, started: SystemTime) -> Result<Option<LogWriter<File>>> {
        let Some(path) = &self.args.histogram else {
            return Ok(None);
        };
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(LogWriter::begin(
            file,
            started,
            &[&self.endpoint.to_string()],
        )?))
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
