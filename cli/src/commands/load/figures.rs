//! The figures of a load run: from what the shards published to intervals and the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringmill_protocols::load::{Published, Tally, Unsent};
use serde_json::json;

use crate::report::environment::Environment;
use crate::report::steal::{MachineTimes, ProcessTimes, Usage};
use crate::report::{
    Connections, Cpu, CpuUse, Datagrams, Histograms, Interval, Latency, MULTICAST, Report, hlog,
};

use super::control::Run;

/// A client whose shards are busier than this may be what limits the rate.
const BUSY_PERCENT: f64 = 90.0;

/// CPU times at one moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    machine: Option<MachineTimes>,
    own: ProcessTimes,
    server: Option<ProcessTimes>,
}

impl Sample {
    /// Now, of this process and of the server.
    pub(super) fn take(server: Option<&crate::report::server::Server>) -> Self {
        Self {
            at: Instant::now(),
            machine: MachineTimes::read().ok(),
            own: ProcessTimes::own(),
            server: server.and_then(|server| server.times()),
        }
    }
}

impl Run<'_> {
    /// What happened between two readings.
    pub(super) fn interval(
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
            // A number that was missing may come late, and is then not lost any more.
            lost: (self.datagrams || self.dns.is_some()).then(|| a.lost.saturating_sub(b.lost)),
            wrong_bytes: self.verify.then(|| a.wrong_bytes - b.wrong_bytes),
            response_time: difference(&now.response, &before.response),
            service_time: difference(&now.service, &before.service),
            ..Interval::default()
        }
        .with_rates()
    }

    /// What the whole run came to.
    pub(super) fn report(
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
        if let Some(moment) = self.args.start.in_words() {
            settings.insert("start_at".into(), json!(moment));
        }
        // Of DNS it is told in a part of its own.
        if self.dns.is_none() && (tally.unsent > 0 || tally.lateness_max_ns > 0) {
            settings.insert("lateness_max_ns".into(), json!(tally.lateness_max_ns));
            settings.insert("unsent".into(), json!(tally.unsent));
        }
        if self.dns.is_none() && tally.unsent > 0 {
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
        if !self.datagrams && self.dns.is_none() && tally.lost > 0 {
            errors.insert("messages without an answer".into(), tally.lost);
        }
        if tally.unknown > 0 {
            let words = match self.workload {
                MULTICAST => "datagrams that are no multicast messages of ringmill",
                _ => "answers that match nothing sent",
            };
            errors.insert(words.into(), tally.unknown);
        }
        let share = client_cpu.share_percent.unwrap_or(0.0);
        let server_busy = server.as_ref().map_or(0.0, |server| server.cpus_busy);
        let by_client = self.unsent_words(tally, |cause| self.is_of_client(cause));
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
        let mut report = Report {
            command: std::env::args().collect(),
            workload: self.workload.into(),
            endpoint: self.endpoint.to_string(),
            settings,
            environment: Environment::collect(),
            host_index: self.args.host.host_index,
            hosts: self.args.host.hosts,
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
            histograms: Histograms {
                response: hlog::encode(&published.response).ok().flatten(),
                service: hlog::encode(&published.service).ok().flatten(),
            },
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
        .with_rates();
        report.dns = self.dns.as_ref().map(|dns| {
            let words = |cause| self.cause_words(cause);
            dns.report(published, &report, words)
        });
        report
    }

    /// What a cause is here, for people.
    pub(super) fn cause_words(&self, cause: Unsent) -> &'static str {
        match cause {
            Unsent::NoRoom if self.dns.is_some() => {
                "too many queries were in flight on their connection"
            }
            _ => cause.words(),
        }
    }

    /// Whether it is the client that was too slow, whatever the server did.
    fn is_of_client(&self, cause: Unsent) -> bool {
        // A stream's queue is full because its peer does not read: with a closed loop that cannot
        // be, and an open one goes on.
        let full_stream = self.dns.is_some() && !self.datagrams && cause == Unsent::QueueFull;
        cause.is_of_client() && !full_stream
    }

    /// One sentence for each of the wanted causes for which messages were not sent.
    pub(super) fn unsent_words(
        &self,
        tally: &Tally,
        wanted: impl Fn(Unsent) -> bool,
    ) -> Vec<String> {
        let of_cause = tally.unsent_by.iter().filter(|(cause, _)| wanted(**cause));
        of_cause
            .map(|(cause, count)| {
                let words = self.cause_words(*cause);
                format!("{count} messages of the schedule were not sent: {words}")
            })
            .collect()
    }
}
