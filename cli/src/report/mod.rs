//! The report of a load run: one data model, and one module per way of showing it.
//!
//! [`Report`] is filled once, when the run is over, and never changed after; the renderers
//! ([`human`], [`json`], [`seed_style`]) only read it. What was not measured is `None` and is
//! shown as such, never as zero. Every field and its unit is in `docs/report.md`; the names
//! here are the names there.

mod dns;
pub mod environment;
pub mod hlog;
pub mod human;
pub mod json;
pub mod merge;
pub mod seed_style;
pub mod server;
pub mod steal;

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

pub use dns::Dns;
pub use environment::Environment;

/// Version of the JSON layout. It changes when a field is renamed, removed or means something
/// else; a new field does not change it.
pub const SCHEMA_VERSION: u32 = 1;

/// The workload in which receivers count what a server sends of its own accord: `datagrams` is then
/// about messages, over streams too.
pub const MULTICAST: &str = "multicast";

/// Everything that a load run measured and how it was run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Layout of this object: [`SCHEMA_VERSION`].
    pub schema: u32,
    /// Version of ringmill, for example `0.1.0`.
    pub version: String,
    /// The command line as typed, program name first.
    pub command: Vec<String>,
    /// What was loaded, for example `echo`.
    pub workload: String,
    /// The endpoint that was loaded, as `Display` of [`crate::endpoint::Endpoint`] prints it.
    pub endpoint: String,
    /// Settings in force after defaults, files and flags.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// The machine and the build.
    pub environment: Environment,
    /// Wall clock at the start of the measured part, RFC 3339 in UTC; `None` when nobody noted it.
    pub started_at: Option<String>,
    /// Which of many hosts this was (`--host-index`).
    pub host_index: Option<u32>,
    /// How many hosts there were (`--hosts`).
    pub hosts: Option<u32>,
    /// Length of the measured part, in seconds, without warm-up and drain.
    pub duration_s: f64,
    /// Length of the warm-up that was not measured, in seconds.
    pub warmup_s: f64,
    /// Connections (UDP: flows).
    pub connections: Connections,
    /// Messages sent in the measured part.
    pub messages_sent: u64,
    /// Messages answered in the measured part; rates and latencies count these.
    pub messages: u64,
    /// Payload bytes received with them.
    pub bytes: u64,
    /// `messages` / `duration_s`.
    pub messages_per_s: f64,
    /// `bytes` / `duration_s`.
    pub bytes_per_s: f64,
    /// Errors by kind, for example `connection reset`; a connection that failed to open is
    /// counted here as well, under its reason.
    pub errors: BTreeMap<String, u64>,
    /// Payload bytes that came back different; `None` when they were not compared.
    pub wrong_bytes: Option<u64>,
    /// Fate of the datagrams; `None` on streams, which lose nothing or fail.
    pub datagrams: Option<Datagrams>,
    /// What a DNS run reports beside; left out of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Time from the instant at which a message was *meant* to leave to its answer; waiting
    /// behind a slow server counts. `None` when no message was answered.
    pub response_time: Option<Latency>,
    /// Time from the actual send to the answer. `None` when no message was answered.
    pub service_time: Option<Latency>,
    /// The distributions behind these two, so that those of several hosts can be joined.
    pub histograms: Histograms,
    /// CPU time of both sides.
    pub cpu: Cpu,
    /// What else may have held the figures back.
    pub limits: Limits,
    /// One entry per interval. Not in the final JSON object: each was a line of its own.
    #[serde(skip)]
    pub intervals: Vec<Interval>,
}

/// How connections came and went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Opened, re-opened ones counted again.
    pub opened: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Closed before the run was over, by cause, for example `peer closed` or `idle timeout`.
    pub closed: BTreeMap<String, u64>,
}

/// What became of the datagrams of a UDP run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Datagrams {
    /// Sent in the measured part.
    pub sent: u64,
    /// Answers received, duplicates included.
    pub received: u64,
    /// Sent and not answered when the drain was over.
    pub lost: u64,
    /// Answers beyond the first to the same datagram.
    pub duplicated: u64,
    /// Answers that came after the answer to a later datagram of their flow.
    pub reordered: u64,
    /// Answers that came after the time limit; they are counted as lost too.
    pub late: u64,
    /// `lost` / `sent`, 0 to 1; `None` when nothing was sent.
    pub loss_ratio: Option<f64>,
}

impl Datagrams {
    /// Sets `loss_ratio` from `lost` and `sent`.
    pub fn with_loss_ratio(mut self) -> Self {
        self.loss_ratio = ratio(self.lost as f64, self.sent as f64);
        self
    }
}

/// A latency distribution in nanoseconds.
///
/// Percentiles are the highest value equivalent to the recorded one in the histogram, so they
/// are never too low; with three significant digits they are at most 0.1 % too high. `max` is
/// cut to the same precision.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Messages measured.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    #[serde(rename = "p99.9_ns")]
    pub p99_9_ns: u64,
    /// 99.99th percentile.
    #[serde(rename = "p99.99_ns")]
    pub p99_99_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

impl Latency {
    /// Summarises a histogram of nanoseconds; `None` when it is empty, for then there is no
    /// percentile that could be told.
    pub fn from_histogram(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        Some(Latency {
            count: histogram.len(),
            mean_ns: histogram.mean(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p99_9_ns: histogram.value_at_quantile(0.999),
            p99_99_ns: histogram.value_at_quantile(0.9999),
            max_ns: histogram.max(),
        })
    }
}

/// Whole latency distributions: HdrHistograms in the V2 compressed format, base64, as
/// [`hlog::encode`] writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Histograms {
    /// Behind [`Report::response_time`]; `None` when it is empty.
    pub response: Option<String>,
    /// Behind [`Report::service_time`]; `None` when it is empty.
    pub service: Option<String>,
}

/// CPU time of both sides in the measured part.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// The load client.
    pub client: CpuUse,
    /// The server, when it is ours and told us; else `None`.
    pub server: Option<CpuUse>,
}

/// CPU time of one process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpuUse {
    /// Seconds in user space.
    pub user_s: f64,
    /// Seconds in the kernel on behalf of the process.
    pub system_s: f64,
    /// CPUs that its shards may use.
    pub cpus: u32,
    /// CPU seconds per second: 1.5 is one and a half CPUs.
    pub cpus_busy: f64,
    /// `cpus_busy` / `cpus` × 100; control threads can bring it above 100.
    pub share_percent: Option<f64>,
    /// CPU nanoseconds per answered message.
    pub per_message_ns: Option<f64>,
}

impl CpuUse {
    /// Derives the shares from the times. `cpus` is the number of CPUs that the process may use.
    pub fn new(user: Duration, system: Duration, elapsed_s: f64, cpus: u32, messages: u64) -> Self {
        let total_s = (user + system).as_secs_f64();
        let cpus_busy = ratio(total_s, elapsed_s).unwrap_or(0.0);
        CpuUse {
            user_s: user.as_secs_f64(),
            system_s: system.as_secs_f64(),
            cpus,
            cpus_busy,
            share_percent: ratio(cpus_busy * 100.0, f64::from(cpus)),
            per_message_ns: ratio(total_s * 1e9, messages as f64),
        }
    }
}

/// What else may have held the figures back.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Why the client and not the server set the pace; `None` when it did not.
    pub client_limited: Option<String>,
    /// Share of the machine's CPU time that the hypervisor gave to others, in percent; `None`
    /// when the kernel does not tell.
    pub steal_percent: Option<f64>,
    /// Share that other processes used, at least, in percent (see [`steal::Usage`]).
    pub other_busy_percent: Option<f64>,
}

/// What one interval measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Interval {
    /// Start, in seconds since the measured part began.
    pub start_s: f64,
    /// Length in seconds.
    pub duration_s: f64,
    /// Messages answered in it.
    pub messages: u64,
    /// Payload bytes received in it.
    pub bytes: u64,
    /// `messages` / `duration_s`.
    pub messages_per_s: f64,
    /// `bytes` / `duration_s`.
    pub bytes_per_s: f64,
    /// Connections open at its end.
    pub connections: u64,
    /// Errors in it, all kinds.
    pub errors: u64,
    /// Datagrams given up as lost in it; `None` on streams.
    pub lost: Option<u64>,
    /// Wrong bytes in it; `None` when they were not compared.
    pub wrong_bytes: Option<u64>,
    /// Response times of the messages answered in it.
    pub response_time: Option<Latency>,
    /// Service times of the messages answered in it.
    pub service_time: Option<Latency>,
}

impl Interval {
    /// Sets both rates from the counts and the length.
    pub fn with_rates(mut self) -> Self {
        self.messages_per_s = ratio(self.messages as f64, self.duration_s).unwrap_or(0.0);
        self.bytes_per_s = ratio(self.bytes as f64, self.duration_s).unwrap_or(0.0);
        self
    }
}

impl Report {
    /// A report of this version and layout with nothing measured yet.
    pub fn new() -> Self {
        Report {
            schema: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Report::default()
        }
    }

    /// Sets both rates from the counts and the duration.
    pub fn with_rates(mut self) -> Self {
        self.messages_per_s = ratio(self.messages as f64, self.duration_s).unwrap_or(0.0);
        self.bytes_per_s = ratio(self.bytes as f64, self.duration_s).unwrap_or(0.0);
        self
    }

    /// Errors of all kinds.
    pub fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// A quotient that is `None` rather than infinite or not a number, which JSON cannot carry.
fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0 && part.is_finite()).then(|| part / whole)
}

#[cfg(test)]
pub(crate) mod testing {
    //! Made-up reports for the tests of the renderers; the figures are consistent, not measured.

    use super::*;

    pub(crate) fn latency(scale: u64) -> Latency {
        Latency {
            count: 3_412_345,
            mean_ns: 13_456.7 * scale as f64,
            p50_ns: 12_345 * scale,
            p90_ns: 20_000 * scale,
            p99_ns: 45_600 * scale,
            p99_9_ns: 512_000 * scale,
            p99_99_ns: 1_234_567 * scale,
            max_ns: 5_432_100 * scale,
        }
    }

    pub(crate) fn tcp() -> Report {
        let interval = |start_s: f64, messages| {
            Interval {
                start_s,
                duration_s: 1.0,
                messages,
                ..Interval::default()
            }
            .with_rates()
        };
        Report {
            version: "0.1.0".into(),
            command: ["ringmill", "load", "echo", "tcp://:7000", "--depth", "4"]
                .map(str::to_owned)
                .into(),
            workload: "echo".into(),
            endpoint: "tcp://:7000".into(),
            settings: BTreeMap::from([
                ("connections".into(), 100.into()),
                ("depth".into(), 4.into()),
                ("size".into(), "32 B".into()),
            ]),
            environment: Environment {
                cpu_model: Some("Example CPU 9000 @ 3.00GHz".into()),
                cores: Some(1),
                threads: Some(2),
                threads_usable: Some(2),
                memory_bytes: Some(4 << 30),
                kernel: Some("6.12.1".into()),
                distribution: Some("Debian GNU/Linux 12 (bookworm)".into()),
                architecture: "x86_64".into(),
                virtualisation: Some("kvm".into()),
                container: None,
                build: environment::Build {
                    version: "0.1.0".into(),
                    profile: "release".into(),
                    rustc: Some("rustc 1.88.0".into()),
                    target: Some("x86_64-unknown-linux-gnu".into()),
                },
            },
            duration_s: 10.0,
            warmup_s: 1.0,
            connections: Connections {
                opened: 100,
                failed: 2,
                closed: BTreeMap::from([("peer closed".into(), 3)]),
            },
            messages_sent: 3_412_400,
            messages: 3_412_345,
            bytes: 109_195_040,
            errors: BTreeMap::from([("connection refused".into(), 2)]),
            wrong_bytes: Some(0),
            response_time: Some(latency(2)),
            service_time: Some(latency(1)),
            cpu: Cpu {
                client: CpuUse::new(
                    Duration::from_millis(1_500),
                    Duration::from_millis(8_400),
                    10.0,
                    1,
                    3_412_345,
                ),
                server: Some(CpuUse::new(
                    Duration::from_millis(200),
                    Duration::from_millis(7_800),
                    10.0,
                    1,
                    3_412_345,
                )),
            },
            limits: Limits {
                client_limited: Some("its CPU was 99 % busy".into()),
                steal_percent: Some(3.2),
                other_busy_percent: Some(0.4),
            },
            intervals: vec![interval(0.0, 330_100), interval(1.0, 352_900)],
            ..Report::new()
        }
        .with_rates()
    }

    pub(crate) fn udp() -> Report {
        Report {
            endpoint: "udp://:7000".into(),
            datagrams: Some(
                Datagrams {
                    sent: 1_000_000,
                    received: 999_880,
                    lost: 123,
                    duplicated: 3,
                    reordered: 7,
                    late: 1,
                    loss_ratio: None,
                }
                .with_loss_ratio(),
            ),
            wrong_bytes: None,
            errors: BTreeMap::new(),
            connections: Connections {
                opened: 100,
                ..Connections::default()
            },
            limits: Limits::default(),
            cpu: Cpu {
                server: None,
                ..tcp().cpu
            },
            ..tcp()
        }
    }

    /// A run in which nothing was answered.
    pub(crate) fn silent() -> Report {
        Report {
            duration_s: 1.0,
            ..Report::new()
        }
        .with_rates()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_becomes_percentiles() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        assert_eq!(Latency::from_histogram(&histogram), None);
        for value in 1..=1000 {
            histogram.record(value).unwrap();
        }
        let latency = Latency::from_histogram(&histogram).unwrap();
        assert_eq!(latency.count, 1000);
        assert_eq!(latency.mean_ns, 500.5);
        assert_eq!(
            [
                latency.p50_ns,
                latency.p90_ns,
                latency.p99_ns,
                latency.p99_9_ns,
                latency.max_ns
            ],
            [500, 900, 990, 999, 1000]
        );
    }

    #[test]
    fn shares_come_from_times() {
        let cpu = CpuUse::new(Duration::from_secs(1), Duration::from_secs(3), 2.0, 4, 1000);
        assert_eq!((cpu.cpus_busy, cpu.share_percent), (2.0, Some(50.0)));
        assert_eq!(cpu.per_message_ns, Some(4e6));
        let idle = CpuUse::new(Duration::ZERO, Duration::ZERO, 0.0, 0, 0);
        assert_eq!(
            (idle.cpus_busy, idle.share_percent, idle.per_message_ns),
            (0.0, None, None)
        );
    }

    #[test]
    fn rates_and_ratios_never_divide_by_zero() {
        assert_eq!(Report::new().with_rates().messages_per_s, 0.0);
        assert_eq!(Datagrams::default().with_loss_ratio().loss_ratio, None);
        let datagrams = Datagrams {
            sent: 1000,
            lost: 1,
            ..Datagrams::default()
        };
        assert_eq!(datagrams.with_loss_ratio().loss_ratio, Some(0.001));
        let interval = Interval {
            messages: 5,
            duration_s: 0.5,
            ..Interval::default()
        };
        assert_eq!(interval.with_rates().messages_per_s, 10.0);
    }
}
