//! The course of a soak, seen from the control thread: open, hold, close, report.
//!
//! It must never touch what a shard counts, nor hold one up, and it goes on whatever fails.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use ringmill_engine::time::{from_duration, monotonic_now};
use ringmill_engine::{Controller, Engine, Limits, Service};
use ringmill_protocols::soak::{Command, Config, Phase, Published, Shared, Soak};
use serde_json::{Value, json};

use super::SoakArgs;
use super::human::{self, Progress, Row};
use super::kernel::{Counters, remedy};
use super::memory::{KERNEL_SOURCE, Reading, Readings};
use super::report::{Connections, Hold, Memory, Opening, SCHEMA_VERSION, Server, SoakReport};
use crate::args::EngineArgs;
use crate::endpoint::Endpoint;
use crate::exit::Exit;
use crate::launch::{self, Placement};
use crate::metrics::{MetricsServer, Watched};
use crate::report::json::{JsonLines, Measuring};
use crate::report::{Environment, Latency};
use crate::server_process::ServerProcess;
use crate::signals::EndRequests;
use crate::start::rfc3339;
use crate::units::format_duration;

/// Between two looks while connections are opened.
const OPENING_LOOK: Duration = Duration::from_millis(100);
/// Between two rows or lines.
const SECOND: Duration = Duration::from_secs(1);
/// The table for people has about so many rows of the hold.
const ROWS: u32 = 60;
/// When nothing could be opened in this time, nothing will be.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// How long opening may take at least.
const OPEN_PATIENCE_MIN: Duration = Duration::from_secs(30);
/// What was opened last is accepted and settled before memory is read.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the server may take to accept what waits in its queues.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(60);
/// So long before the end the connections are looked at once more.
const LAST_LOOK: Duration = Duration::from_millis(10);
/// Between the command to hold and the first message: every shard hears of it in time.
const HEAD_START: Duration = Duration::from_millis(50);
/// A shard that has not closed everything so long after the last answer may come is stuck.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// The server prints its counters each second: after so long it has seen that all are closed.
const SERVER_PATIENCE: Duration = Duration::from_secs(15);

/// One soak.
pub(super) struct Run<'a> {
    pub(super) args: &'a SoakArgs,
    pub(super) engine_args: &'a EngineArgs,
    pub(super) endpoints: &'a [Endpoint],
    pub(super) placement: &'a Placement,
    pub(super) config: Arc<Config>,
    /// The server of `--self`.
    pub(super) server: Option<ServerProcess>,
    /// The server's process, when it is on this host.
    pub(super) server_pid: Option<u32>,
    pub(super) notes: Vec<String>,
    /// The kernel's memory before anything was started.
    pub(super) kernel_before: Option<i64>,
    /// What went wrong with the server of `--self`, in sentences of the report.
    pub(super) troubles: Vec<String>,
}

/// The client while it runs.
struct Client {
    engine: Engine,
    controller: Controller<Command>,
    shared: Arc<[Arc<Shared>]>,
}

impl Client {
    fn start(run: &Run<'_>) -> Result<Self> {
        let placement = run.placement;
        let limits = Limits {
            max_connections: run.args.connections,
            stream_pool_bytes: launch::stream_pool_bytes(placement),
            ..Limits::default()
        };
        let shards = placement.plan.shards.iter();
        let shared: Arc<[_]> = shards.map(|_| Shared::new()).collect();
        let (of_shard, config) = (Arc::clone(&shared), Arc::clone(&run.config));
        let service = Service::new("soak", move |shard| {
            Soak::new(
                Arc::clone(&config),
                Arc::clone(&of_shard[usize::from(shard)]),
            )
        });
        let controller = service.controller();
        let builder = launch::builder(run.engine_args, limits, placement);
        Ok(Self {
            engine: builder.service(service).start()?,
            controller,
            shared,
        })
    }

    fn read(&self) -> Published {
        let mut sum = Published::new();
        for shared in self.shared.iter() {
            shared.add_to(&mut sum);
        }
        sum
    }

    fn are(&self, phase: Phase) -> bool {
        self.shared.iter().all(|shared| shared.phase() >= phase)
    }

    fn tell(&self, command: Command) {
        for shard in 0..self.shared.len() {
            // A full mailbox is not possible: only these few messages are ever sent.
            let _ = self.controller.post(shard as u16, command);
        }
    }
}

/// The difference of two readings of a histogram that only grows.
fn difference(after: &Histogram<u64>, before: &Histogram<u64>) -> Option<Latency> {
    let mut histogram = after.clone();
    // The later one counts everything that the earlier one did.
    let _ = histogram.subtract(before);
    Latency::from_histogram(&histogram)
}

/// What is shown and written while it runs.
struct Watch {
    progress: Progress,
    json: bool,
    began: Instant,
    last: Published,
    last_at: Instant,
    server_pid: Option<u32>,
    kernel_before: Option<i64>,
}

impl Watch {
    /// Memory now; the kernel's since before anything was started.
    fn reading(&self) -> Reading {
        Reading::take(self.server_pid).kernel_since(self.kernel_before)
    }

    /// One second (or so) is over: a line of JSON, and a row for people if `shown`.
    fn tell(&mut self, now: Published, reading: Reading, phase: &str, left: Duration, shown: bool) {
        let seconds = self.last_at.elapsed().as_secs_f64().max(1e-3);
        let (a, b) = (&now.tally, &self.last.tally);
        let rate = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
        let row = Row {
            at: self.began.elapsed(),
            doing: format!("{phase}, {} left", format_duration(left)),
            live: a.live,
            opening: a.opening,
            opened_per_s: rate(a.opened, b.opened),
            failed: a.failed,
            lost: a.lost_total(),
            churned: a.churned,
            messages_per_s: rate(a.answered, b.answered),
            response: difference(&now.response, &self.last.response),
            client_bytes: reading.client,
            server_bytes: reading.server,
            kernel_bytes: reading.kernel,
        };
        if self.json {
            let line = json!({
                "type": "interval",
                "phase": phase,
                "at_s": row.at.as_secs_f64(),
                "left_s": left.as_secs_f64(),
                "live": a.live,
                "opening": a.opening,
                "opened": a.opened,
                "opened_per_s": row.opened_per_s,
                "failed": a.failed,
                "failed_by": a.failed_by,
                "lost": row.lost,
                "lost_by": a.lost,
                "churned": a.churned,
                "messages_sent": a.sent,
                "messages": a.answered,
                "messages_per_s": row.messages_per_s,
                "wrong_bytes": a.wrong_bytes,
                "response_time": row.response,
                "client_bytes": reading.client,
                "server_bytes": reading.server,
                "kernel_bytes": reading.kernel,
            });
            print_line(&line);
        } else if shown {
            self.progress.row(&row);
        }
        self.last = now;
        self.last_at = Instant::now();
    }
}

fn print_line(line: &Value) {
    let mut out = std::io::stdout().lock();
    // A reader that has gone is no reason to end a soak.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

impl Run<'_> {
    /// Opens, holds, closes, reports.
    pub(super) fn go(mut self) -> Result<Exit> {
        let signals = EndRequests::watch(std::thread::current())?;
        let progress = Progress::new(self.args.json);
        for note in &self.notes {
            progress.note(&format!("ringmill: {note}"));
        }
        let metrics = self.engine_args.metrics.map(MetricsServer::start);
        let metrics = metrics.transpose()?;
        let counters = Counters::read(Path::new("/"));
        let mut client = Client::start(&self)?;
        if let Some(note) = client.engine.driver_note() {
            progress.note(&format!("ringmill: {note}"));
        }
        if let Some(metrics) = &metrics {
            metrics.watch(Watched {
                services: client.engine.services().to_vec(),
                shards: client.engine.metrics().to_vec(),
                driver: client.engine.driver().to_string(),
                ..Watched::default()
            });
            progress.note(&format!("metrics at {}", metrics.url()));
        }
        let mut watch = Watch {
            progress,
            json: self.args.json,
            began: Instant::now(),
            last: Published::new(),
            last_at: Instant::now(),
            server_pid: self.server_pid,
            kernel_before: self.kernel_before,
        };
        let mut readings = Readings::default();
        let started_at = rfc3339(SystemTime::now());
        if self.args.json {
            JsonLines::new(std::io::stdout()).measuring(&Measuring {
                version: env!("CARGO_PKG_VERSION"),
                workload: "soak",
                endpoint: &self.endpoints[0].to_string(),
                started_at: &started_at,
                host_index: self.args.host.host_index,
                hosts: self.args.host.hosts,
            })?;
        }
        let mut report = self.blank(&client, started_at);

        let opened = self.open(&mut client, &signals, &mut watch, &mut readings);
        if opened.is_err() {
            watch.progress.clear();
            for finding in Counters::read(Path::new("/")).findings(&counters) {
                eprintln!(
                    "ringmill: {} {}: {}; {}",
                    finding.name, finding.count, finding.cause, finding.helps
                );
            }
        }
        let opened = opened?;
        let wanted = self.args.connections as u64;
        report.opening = opening(&client.read(), wanted, client.are(Phase::Full));
        report.opening.server_duration_s = opened.map(|duration| duration.as_secs_f64());
        report.hold = self.hold(&client, &signals, &mut watch, &mut readings);
        let after = Counters::read(Path::new("/"));

        client.tell(Command::End);
        let patience = Instant::now() + self.args.answer_timeout + END_PATIENCE;
        while !client.are(Phase::Done) && Instant::now() < patience && signals.count() < 2 {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let stuck = !client.are(Phase::Done);
        let published = client.read();
        client.engine.stop_now();
        let ended = client.engine.join();
        report.server = self.end_server(signals.count() > 1);
        watch.progress.clear();

        let tally = &published.tally;
        report.hold.wrong_bytes = tally.wrong_bytes;
        report.hold.unanswered = tally.unanswered;
        report.hold.unsent = tally.unsent.clone();
        report.hold.messages_sent = tally.sent;
        report.hold.messages = tally.answered;
        // Nothing is sent before or after the hold; its last answers come a moment later.
        report.hold.messages_per_s = tally.answered as f64 / report.hold.duration_s.max(1e-3);
        report.hold.lateness_max_ns = tally.lateness_max_ns;
        report.hold.response_time = Latency::from_histogram(&published.response);
        report.hold.service_time = Latency::from_histogram(&published.service);
        report.opening.connect_time = Latency::from_histogram(&published.connect);
        report.connections = Connections {
            opened: tally.opened,
            failed: tally.failed,
            failed_by: tally.failed_by.clone(),
            churned: tally.churned,
            churn_missed: tally.churn_missed,
            lost: tally.lost_total(),
            lost_by: tally.lost.clone(),
            time_wait: after.time_wait,
        };
        report.memory = Memory {
            client: readings.cost(|reading| reading.client),
            server: readings.cost(|reading| reading.server),
            kernel: readings.cost(|reading| reading.kernel),
            kernel_has_both_ends: self.server_pid.is_some(),
            kernel_source: KERNEL_SOURCE,
        };
        report.kernel = after.findings(&counters);
        report.judge(signals.count() > 0);
        report.failures.append(&mut self.troubles);
        self.tell_end(&report);
        ended?;
        if stuck && signals.count() < 2 {
            bail!("a shard of the client did not end in time");
        }
        Ok(self.verdict(&report, &signals))
    }

    /// Waits until all are live, or for as long as it may take, and how long until the server of
    /// `--self` had accepted them. Fails when none can be opened.
    fn open(
        &mut self,
        client: &mut Client,
        signals: &EndRequests,
        watch: &mut Watch,
        readings: &mut Readings,
    ) -> Result<Option<Duration>> {
        let wanted = self.args.connections as u64;
        let needed = match self.config.open_rate {
            Some(rate) => {
                Duration::try_from_secs_f64(wanted as f64 / rate).unwrap_or(Duration::MAX)
            }
            None => Duration::ZERO,
        };
        let patience = self
            .args
            .open_timeout
            .unwrap_or_else(|| needed.saturating_mul(3).max(OPEN_PATIENCE_MIN));
        let began = watch.began;
        loop {
            let now = client.read();
            let full = client.are(Phase::Full);
            if full || signals.count() > 0 || began.elapsed() >= patience {
                break;
            }
            if client.engine.has_ended() {
                client.engine.join()?;
                bail!("the engine ended while connections were opened");
            }
            if self.server_is_gone() {
                break;
            }
            let tally = &now.tally;
            if tally.opened == 0 && tally.failed > 0 && began.elapsed() >= FIRST_PATIENCE {
                bail!("cannot connect to {}: {}", self.endpoints[0], words(&now));
            }
            readings.opening(tally.live, wanted, || watch.reading());
            let left = wanted.saturating_sub(tally.live) as f64;
            let spent = began.elapsed().as_secs_f64();
            let rate = tally.live as f64 / spent.max(0.1);
            let left = Duration::try_from_secs_f64(left / rate).unwrap_or(patience);
            if watch.last_at.elapsed() >= SECOND {
                let reading = watch.reading();
                watch.tell(now, reading, "opening", left.min(patience), true);
            } else {
                watch
                    .progress
                    .now(&format!("{} of {wanted} are open", tally.live));
            }
            std::thread::park_timeout(OPENING_LOOK);
        }
        // What was opened last may not have been published, nor accepted by the server: a connection
        // is open here as soon as its kernel has queued it.
        self.sleep(SETTLE, client, signals);
        let now = client.read();
        if now.tally.opened == 0 && self.server_is_gone() {
            bail!("the server process ended before anything could connect to it");
        }
        let accepted = self.wait_for_server(now.tally.live, client, signals, began);
        let reading = watch.reading();
        readings.full(now.tally.live, reading);
        if now.tally.opened == 0 && signals.count() == 0 {
            bail!("cannot connect to {}: {}", self.endpoints[0], words(&now));
        }
        if now.tally.live < wanted && signals.count() == 0 {
            watch.progress.note(&format!(
                "ringmill: {} of {wanted} connections are open: {}",
                now.tally.live,
                words(&now)
            ));
        }
        watch.tell(now, reading, "opened", Duration::ZERO, true);
        Ok(accepted)
    }

    /// Waits until the server of `--self` counts so many connections; how long that was after
    /// `began`.
    fn wait_for_server(
        &mut self,
        live: u64,
        client: &Client,
        signals: &EndRequests,
        began: Instant,
    ) -> Option<Duration> {
        let deadline = Instant::now() + ACCEPT_PATIENCE;
        let mut open = None;
        while signals.count() == 0 && Instant::now() < deadline && !self.server_is_gone() {
            open = self.server.as_ref()?.open();
            if open >= Some(live) {
                return Some(began.elapsed());
            }
            self.sleep(OPENING_LOOK, client, signals);
        }
        if Instant::now() >= deadline {
            self.troubles.push(format!(
                "the server had accepted {} of {live} connections {} after they were open here",
                open.unwrap_or(0),
                format_duration(ACCEPT_PATIENCE)
            ));
        }
        None
    }

    /// Whether the server of `--self` has ended by itself.
    fn server_is_gone(&mut self) -> bool {
        self.server.as_mut().is_some_and(ServerProcess::has_ended)
    }

    /// Holds the connections for their time, or until the user ends it, or the server of `--self` is
    /// gone, which nobody would start again.
    fn hold(
        &mut self,
        client: &Client,
        signals: &EndRequests,
        watch: &mut Watch,
        readings: &mut Readings,
    ) -> Hold {
        let start = monotonic_now() + from_duration(HEAD_START);
        let end = start.saturating_add(from_duration(self.args.hold));
        if signals.count() == 0 && !self.server_is_gone() {
            client.tell(Command::Hold { start, end });
        }
        let began = Instant::now() + HEAD_START;
        let wanted = self.args.connections as u64;
        let live = client.read().tally.live;
        let (mut live_min, mut live_max) = (live, live);
        let row_every = (self.args.hold / ROWS).max(SECOND);
        let mut row_at = began + row_every;
        // The last look is at connections that are still open.
        let end = began + self.args.hold.saturating_sub(LAST_LOOK);
        let (duration, missing) = loop {
            // No row of a part of a second at the end.
            let look = match watch.last_at + SECOND {
                look if look + SECOND / 2 < end => look,
                _ => end,
            };
            let wait = look.saturating_duration_since(Instant::now());
            self.sleep(wait, client, signals);
            let cut = signals.count() > 0 || client.engine.has_ended() || self.server_is_gone();
            let over = cut || Instant::now() >= end;
            let now = client.read();
            if began.elapsed() < self.args.hold {
                live_min = live_min.min(now.tally.live);
                live_max = live_max.max(now.tally.live);
            }
            let reading = watch.reading();
            readings.held(began.elapsed(), reading);
            let left = self.args.hold.saturating_sub(began.elapsed());
            let shown = over || Instant::now() >= row_at;
            if shown {
                row_at += row_every;
            }
            let there = now.tally.live + now.tally.opening + now.tally.closing;
            watch.tell(now, reading, "held", left, shown);
            if over {
                let duration = match cut {
                    true => began.elapsed().min(self.args.hold),
                    false => self.args.hold,
                };
                break (duration, wanted.saturating_sub(there));
            }
        };
        Hold {
            duration_s: duration.as_secs_f64(),
            missing_at_end: missing,
            live_min,
            live_max,
            ..Hold::default()
        }
    }

    /// Sleeps so long, or until a signal comes or the engine ends.
    fn sleep(&self, time: Duration, client: &Client, signals: &EndRequests) {
        let until = Instant::now() + time;
        while signals.count() == 0 && !client.engine.has_ended() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left.min(OPENING_LOOK));
        }
    }

    /// Ends the server of `--self`, once it has seen that all connections are closed.
    fn end_server(&mut self, at_once: bool) -> Option<Server> {
        let mut server = self.server.take()?;
        if at_once {
            return None;
        }
        let gone = server.has_ended();
        if !gone {
            // Counters of a second ago may already say 0 from before the first connection: what
            // counts is that they say so after a whole interval.
            std::thread::sleep(SECOND);
            let patience = Instant::now() + SERVER_PATIENCE;
            while server.open() != Some(0) && Instant::now() < patience && !server.has_ended() {
                std::thread::park_timeout(OPENING_LOOK);
            }
        }
        // Those of one that is gone went with it.
        let left_open = if gone { 0 } else { server.open().unwrap_or(0) };
        match server.stop(END_PATIENCE) {
            Err(error) => self.troubles.push(error.to_string()),
            Ok(()) if gone => self
                .troubles
                .push("the server process ended by itself".to_owned()),
            Ok(()) => {}
        }
        Some(Server {
            shards: server.shards(),
            left_open,
            counters: server.counters().unwrap_or(Value::Null),
        })
    }

    fn blank(&self, client: &Client, started_at: String) -> SoakReport {
        let args = self.args;
        let close = match args.churn_close {
            super::CloseArg::Fin => "FIN of this end",
            super::CloseArg::Rst => "RST of this end",
        };
        let mut settings = BTreeMap::from(
            [
                ("connections", json!(args.connections)),
                ("open_rate", json!(args.open_rate.0)),
                ("pairs_of_addresses", json!(self.config.addresses.pairs())),
                ("hold_s", json!(args.hold.as_secs_f64())),
                ("rate", json!(args.rate)),
                ("size", json!(args.size)),
                ("churn", json!(args.churn)),
                ("churn_close", json!(close)),
                ("seed", json!(args.seed)),
                ("driver", json!(client.engine.driver())),
                ("shards", json!(client.engine.shards())),
                ("self", json!(args.own_server)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        settings.extend(args.host.seed_setting(args.seed));
        if let Some(moment) = args.start.in_words() {
            settings.insert("start_at".to_owned(), json!(moment));
        }
        SoakReport {
            schema: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::env::args().collect(),
            workload: "soak",
            endpoints: self.endpoints.iter().map(ToString::to_string).collect(),
            settings,
            environment: Environment::collect(),
            started_at,
            host_index: args.host.host_index,
            hosts: args.host.hosts,
            ..SoakReport::default()
        }
    }

    fn tell_end(&self, report: &SoakReport) {
        if self.args.json {
            let mut line = serde_json::to_value(report).unwrap_or_default();
            line["type"] = json!("report");
            print_line(&line);
        } else {
            human::write_line(human::render(report).trim_end());
        }
    }

    fn verdict(&self, report: &SoakReport, signals: &EndRequests) -> Exit {
        if signals.count() > 1 {
            return Exit::Interrupted;
        }
        for failure in &report.failures {
            eprintln!("ringmill: {failure}");
        }
        if report.hold.wrong_bytes > 0 {
            return Exit::Wrong;
        }
        let mut exit = match report.failures.is_empty() {
            true => Exit::Ok,
            false => Exit::Failed,
        };
        for condition in &self.args.fail_if {
            let verdict = condition.evaluate(report);
            if verdict.is_failure() {
                eprintln!("ringmill: {}", verdict.words());
                exit = Exit::Condition;
            }
        }
        exit
    }
}

fn opening(published: &Published, wanted: u64, full: bool) -> Opening {
    let tally = &published.tally;
    let until = if full { tally.full_at } else { monotonic_now() };
    let duration_s = match tally.began_at {
        0 => 0.0,
        began => until.saturating_sub(began) as f64 / 1e9,
    };
    Opening {
        wanted,
        live: tally.live,
        duration_s,
        per_s: tally.opened as f64 / duration_s.max(1e-9),
        ..Opening::default()
    }
}

/// Why connects failed, the most frequent first, with what helps.
fn words(published: &Published) -> String {
    let mut causes: Vec<_> = published.tally.failed_by.iter().collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words: Vec<_> = causes
        .into_iter()
        .map(|(cause, count)| match remedy(cause) {
            Some(remedy) => format!("{cause} ({count}; {remedy})"),
            None => format!("{cause} ({count})"),
        })
        .collect();
    match words.is_empty() {
        true => "no answer yet".to_owned(),
        false => words.join(", "),
    }
}
