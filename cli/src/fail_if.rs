//! `--fail-if 'p99>5ms'`: a condition on the finished report that makes the run fail.
//!
//! A metric that was not measured fails its condition: a run without a single answer must never
//! pass `p99>5ms`. The table of metrics below is the only place that knows them; help, errors and
//! `docs/report.md` follow it.

use std::fmt;
use std::str::FromStr;

use crate::report::{Latency, Report};
use crate::units::{
    UnitError, format_bit_rate, format_byte_rate, format_count, format_latency_ns, format_percent,
    format_rate, parse_bit_rate, parse_byte_rate, parse_count, parse_duration, parse_percent,
    parse_rate,
};

/// A condition under which the run counts as failed.
///
/// ```
/// use ringmill_cli::fail_if::FailIf;
///
/// let condition: FailIf = "p99 > 5ms".parse().unwrap();
/// assert_eq!(condition.to_string(), "p99>5ms");
/// ```
pub struct FailIf<R: Measured = Report> {
    metric: &'static Metric<R>,
    operator: Operator,
    /// In the metric's base unit.
    limit: f64,
    /// The limit as it was typed, for messages.
    limit_text: String,
}

impl<R: Measured> Clone for FailIf<R> {
    fn clone(&self) -> Self {
        Self {
            limit_text: self.limit_text.clone(),
            ..*self
        }
    }
}

impl<R: Measured> PartialEq for FailIf<R> {
    fn eq(&self, other: &Self) -> bool {
        (self.metric.name, self.operator, self.limit)
            == (other.metric.name, other.operator, other.limit)
    }
}

impl<R: Measured> fmt::Debug for FailIf<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FailIf({self})")
    }
}

/// What conditions can be set on: a finished report that knows its metrics.
pub trait Measured: 'static {
    /// All of them, in the order in which help texts name them.
    const METRICS: &'static [Metric<Self>];
}

impl Measured for Report {
    const METRICS: &'static [Metric<Self>] = METRICS;
}

/// Outcome of one condition, with the words for the person who set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The condition does not hold.
    Passed(String),
    /// The condition holds.
    Failed(String),
    /// There is nothing to compare; this counts as failed.
    NotMeasured(String),
}

impl Verdict {
    /// Whether the run has to count as failed.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Verdict::Passed(_))
    }

    /// What was measured and what was asked.
    pub fn words(&self) -> &str {
        match self {
            Verdict::Passed(words) | Verdict::Failed(words) | Verdict::NotMeasured(words) => words,
        }
    }
}

/// Why a text is not a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailIfError {
    /// No comparison in it.
    #[error(
        "'{text}' compares nothing: write METRIC OP VALUE, as in p99>5ms; OP is >, >=, <, <=, == or !="
    )]
    NoOperator {
        /// What was given.
        text: String,
    },
    /// A metric that nobody measures.
    #[error("'{metric}' is not a metric; known are {known}")]
    UnknownMetric {
        /// The part before the operator.
        metric: String,
        /// Those that are.
        known: String,
    },
    /// The value does not fit the metric.
    #[error("{metric}: {source}")]
    BadValue {
        /// The metric.
        metric: &'static str,
        /// What is wrong with the value.
        source: UnitError,
    },
    /// A bare number where seconds, milliseconds and microseconds are all likely.
    #[error("{metric}: '{value}' has no unit: write {value}us, {value}ms or {value}s")]
    NoTimeUnit {
        /// The metric.
        metric: &'static str,
        /// The number.
        value: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Above,
    AtLeast,
    Below,
    AtMost,
    Equal,
    NotEqual,
}

impl Operator {
    /// Longer ones first, so that `>=` is not read as `>` and `=…`.
    const ALL: [(&'static str, Operator); 7] = [
        (">=", Operator::AtLeast),
        ("<=", Operator::AtMost),
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        (">", Operator::Above),
        ("<", Operator::Below),
        ("=", Operator::Equal),
    ];

    fn as_str(self) -> &'static str {
        match self {
            Operator::Above => ">",
            Operator::AtLeast => ">=",
            Operator::Below => "<",
            Operator::AtMost => "<=",
            Operator::Equal => "==",
            Operator::NotEqual => "!=",
        }
    }

    fn holds(self, measured: f64, limit: f64) -> bool {
        match self {
            Operator::Above => measured > limit,
            Operator::AtLeast => measured >= limit,
            Operator::Below => measured < limit,
            Operator::AtMost => measured <= limit,
            Operator::Equal => measured == limit,
            Operator::NotEqual => measured != limit,
        }
    }
}

/// What a metric counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds; typed with a unit of time.
    Time,
    /// Per second.
    Rate,
    /// Bytes per second.
    ByteRate,
    /// Bits per second.
    BitRate,
    /// A ratio; typed in percent.
    Ratio,
    /// A number of something.
    Count,
}

/// Something that is measured, of which a condition can be made.
pub struct Metric<R: ?Sized> {
    /// As it is typed.
    pub name: &'static str,
    /// What it is, in a sentence "… was 5 ms".
    pub words: &'static str,
    /// What it counts in.
    pub unit: Unit,
    /// The figure in the unit's base, if there is one.
    pub measure: fn(&R) -> Option<f64>,
    /// Why there may be no figure.
    pub missing: &'static str,
}

const NO_ANSWER: &str = "no message was answered";

macro_rules! latency {
    ($name:literal, $words:literal, $of:ident, $field:ident) => {
        Metric {
            name: $name,
            words: $words,
            unit: Unit::Time,
            measure: |report| {
                report
                    .$of
                    .as_ref()
                    .map(|latency: &Latency| latency.$field as f64)
            },
            missing: NO_ANSWER,
        }
    };
}

const METRICS: &[Metric<Report>] = &[
    latency!("p50", "the response time's median", response_time, p50_ns),
    latency!("p90", "the response time's p90", response_time, p90_ns),
    latency!("p99", "the response time's p99", response_time, p99_ns),
    latency!(
        "p99.9",
        "the response time's p99.9",
        response_time,
        p99_9_ns
    ),
    latency!(
        "p99.99",
        "the response time's p99.99",
        response_time,
        p99_99_ns
    ),
    latency!("max", "the longest response time", response_time, max_ns),
    latency!("mean", "the mean response time", response_time, mean_ns),
    latency!(
        "service_p50",
        "the service time's median",
        service_time,
        p50_ns
    ),
    latency!(
        "service_p90",
        "the service time's p90",
        service_time,
        p90_ns
    ),
    latency!(
        "service_p99",
        "the service time's p99",
        service_time,
        p99_ns
    ),
    latency!(
        "service_p99.9",
        "the service time's p99.9",
        service_time,
        p99_9_ns
    ),
    latency!(
        "service_p99.99",
        "the service time's p99.99",
        service_time,
        p99_99_ns
    ),
    latency!(
        "service_max",
        "the longest service time",
        service_time,
        max_ns
    ),
    latency!(
        "service_mean",
        "the mean service time",
        service_time,
        mean_ns
    ),
    Metric {
        name: "rate",
        words: "the rate of messages",
        unit: Unit::Rate,
        measure: |report| Some(report.messages_per_s),
        missing: "",
    },
    Metric {
        name: "bytes_rate",
        words: "the rate of data",
        unit: Unit::ByteRate,
        measure: |report| Some(report.bytes_per_s),
        missing: "",
    },
    Metric {
        name: "loss",
        words: "the loss of datagrams",
        unit: Unit::Ratio,
        measure: |report| {
            let datagrams = report.datagrams.as_ref();
            let dns = report.dns.as_ref();
            datagrams
                .and_then(|datagrams| datagrams.loss_ratio)
                .or_else(|| dns.and_then(|dns| dns.loss_ratio))
        },
        missing: "loss is known for UDP and DNS only, and only when something was sent",
    },
    Metric {
        name: "errors",
        words: "the number of errors",
        unit: Unit::Count,
        measure: |report| Some(report.errors_total() as f64),
        missing: "",
    },
    Metric {
        name: "wrong",
        words: "the number of wrong bytes",
        unit: Unit::Count,
        measure: |report| report.wrong_bytes.map(|wrong| wrong as f64),
        missing: "the bytes were not compared",
    },
    Metric {
        name: "connections",
        words: "the number of connections opened",
        unit: Unit::Count,
        measure: |report| Some(report.connections.opened as f64),
        missing: "",
    },
];

/// All metrics, as `p50, p90, …`; for help texts.
pub fn known_metrics<R: Measured>() -> String {
    R::METRICS
        .iter()
        .map(|metric| metric.name)
        .collect::<Vec<_>>()
        .join(", ")
}

impl<R: Measured> FailIf<R> {
    /// Compares the condition with what was measured.
    pub fn evaluate(&self, report: &R) -> Verdict {
        let Some(measured) = (self.metric.measure)(report) else {
            let reason = self.metric.missing;
            return Verdict::NotMeasured(format!("--fail-if '{self}': not measured: {reason}"));
        };
        let figure = self.metric.unit.format(measured);
        let words = self.metric.words;
        if self.operator.holds(measured, self.limit) {
            Verdict::Failed(format!("--fail-if '{self}': failed: {words} was {figure}"))
        } else {
            Verdict::Passed(format!("--fail-if '{self}': passed: {words} was {figure}"))
        }
    }
}

impl Unit {
    fn format(self, value: f64) -> String {
        match self {
            Unit::Time => format_latency_ns(value),
            Unit::Rate => format_rate(value),
            Unit::ByteRate => format_byte_rate(value),
            Unit::BitRate => format_bit_rate(value),
            Unit::Ratio => format_percent(value * 100.0),
            Unit::Count => format_count(value as u64),
        }
    }

    fn parse(self, metric: &'static str, text: &str) -> Result<f64, FailIfError> {
        let value = match self {
            Unit::Time => {
                let bare = text
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'.');
                if bare && text.bytes().any(|byte| (b'1'..=b'9').contains(&byte)) {
                    return Err(FailIfError::NoTimeUnit {
                        metric,
                        value: text.to_owned(),
                    });
                }
                parse_duration(text).map(|duration| duration.as_nanos() as f64)
            }
            Unit::Rate => parse_rate(text),
            Unit::ByteRate => parse_byte_rate(text),
            Unit::BitRate => parse_bit_rate(text),
            Unit::Ratio => parse_percent(text),
            Unit::Count => parse_count(text).map(|count| count as f64),
        };
        value.map_err(|source| FailIfError::BadValue { metric, source })
    }
}

impl<R: Measured> FromStr for FailIf<R> {
    type Err = FailIfError;

    fn from_str(text: &str) -> Result<Self, FailIfError> {
        let no_operator = || FailIfError::NoOperator {
            text: text.to_owned(),
        };
        let at = text.find(['>', '<', '=', '!']).ok_or_else(no_operator)?;
        let (name, rest) = text.split_at(at);
        let (sign, operator) = Operator::ALL
            .into_iter()
            .find(|(sign, _)| rest.starts_with(sign))
            .ok_or_else(no_operator)?;
        let name = name.trim();
        let metric = R::METRICS
            .iter()
            .find(|metric| metric.name == name)
            .ok_or_else(|| FailIfError::UnknownMetric {
                metric: name.to_owned(),
                known: known_metrics::<R>(),
            })?;
        let limit_text = rest[sign.len()..].trim().to_owned();
        let limit = metric.unit.parse(metric.name, &limit_text)?;
        Ok(FailIf {
            metric,
            operator,
            limit,
            limit_text,
        })
    }
}

impl<R: Measured> fmt::Display for FailIf<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}{}",
            self.metric.name,
            self.operator.as_str(),
            self.limit_text
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::testing;

    fn check(condition: &str, report: &Report) -> Verdict {
        condition.parse::<FailIf>().unwrap().evaluate(report)
    }

    #[test]
    fn conditions_on_a_tcp_run() {
        // Response p99 91.2 µs, service p99 45.6 µs, 341,234.5 messages/s, 10.4 MiB/s, 2 errors,
        // 0 wrong bytes, 100 connections.
        let report = testing::tcp();
        for (condition, fails) in [
            ("p99>5ms", false),
            ("p99>91us", true),
            ("p99 > 0", true),
            ("service_p99>91us", false),
            ("p50<24690ns", false),
            ("p50<=24690ns", true),
            ("p99.9>1ms", true),
            ("p99.99>1s", false),
            ("max>10ms", true),
            ("mean>20us", true),
            ("service_mean>20us", false),
            ("rate<100k", false),
            ("rate<1M/s", true),
            ("bytes_rate<10MiB/s", false),
            ("bytes_rate<1Gbit/s", true),
            ("errors>0", true),
            ("errors>2", false),
            ("errors>=2", true),
            ("errors==2", true),
            ("errors=2", true),
            ("errors!=2", false),
            ("wrong>0", false),
            ("connections<100", false),
            ("connections<10k", true),
        ] {
            assert_eq!(check(condition, &report).is_failure(), fails, "{condition}");
        }
    }

    #[test]
    fn what_was_not_measured_fails() {
        for (condition, report, reason) in [
            ("p99>5ms", testing::silent(), "no message was answered"),
            (
                "service_max<1s",
                testing::silent(),
                "no message was answered",
            ),
            ("loss>0.1%", testing::tcp(), "UDP and DNS only"),
            ("wrong>0", testing::udp(), "not compared"),
        ] {
            let verdict = check(condition, &report);
            assert!(
                matches!(verdict, Verdict::NotMeasured(_)),
                "{condition}: {verdict:?}"
            );
            assert!(verdict.is_failure());
            assert!(verdict.words().contains(reason), "{}", verdict.words());
        }
        assert!(
            !check("rate>0", &testing::silent()).is_failure(),
            "no answers are a rate of 0"
        );
    }

    #[test]
    fn words_tell_what_was_measured() {
        for (condition, report, words) in [
            (
                "p99>91us",
                testing::tcp(),
                "'p99>91us': failed: the response time's p99 was 91.2 µs",
            ),
            (
                "loss > 0.1%",
                testing::udp(),
                "'loss>0.1%': passed: the loss of datagrams was 0.012 %",
            ),
            (
                "rate<1M",
                testing::tcp(),
                "failed: the rate of messages was 341.2 k/s",
            ),
            (
                "errors>0",
                testing::tcp(),
                "failed: the number of errors was 2",
            ),
        ] {
            let verdict = check(condition, &report);
            assert!(verdict.words().contains(words), "{}", verdict.words());
        }
    }

    #[test]
    fn errors_help() {
        for (text, words) in [
            ("", "write METRIC OP VALUE"),
            ("p99", "write METRIC OP VALUE"),
            ("p99!5ms", "write METRIC OP VALUE"),
            (
                "p95>5ms",
                "'p95' is not a metric; known are p50, p90, p99, p99.9,",
            ),
            ("P99>5ms", "service_p99.99"),
            (">5ms", "'' is not a metric"),
            ("p99>5", "write 5us, 5ms or 5s"),
            ("p99>", "p99: '' is not a duration"),
            ("p99>5%", "'%'"),
            ("p99=>5ms", "'>5ms' is not a duration"),
            ("loss>0.1", "write 0.1% or 5%"),
            ("rate<fast", "rate: 'fast' is not a rate"),
            ("errors>0.5", "whole number"),
        ] {
            let error = text.parse::<FailIf>().unwrap_err().to_string();
            assert!(error.contains(words), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn the_document_lists_every_metric() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report.md");
        let text = std::fs::read_to_string(path).unwrap();
        let table = text
            .split("\n## ")
            .find(|part| part.starts_with("Conditions"))
            .unwrap();
        // The service times are given as a range, for they mirror the response times.
        let service = |name: &str| name.starts_with("service_");
        let plain = METRICS
            .iter()
            .map(|metric| metric.name)
            .filter(|name| !service(name));
        for name in plain.chain(["service_p50", "service_mean"]) {
            assert!(
                table.contains(&format!("`{name}`")),
                "{name} is not in docs/report.md"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            metric in 0..METRICS.len(),
            operator in 0..Operator::ALL.len(),
            value in 1_u32..1000,
        ) {
            let metric = &METRICS[metric];
            let unit = match metric.unit {
                Unit::Time => "us",
                Unit::Rate => "k/s",
                Unit::ByteRate => "MiB/s",
                Unit::BitRate => "Mbit/s",
                Unit::Ratio => "%",
                Unit::Count => "k",
            };
            let text = format!(" {} {} {value}{unit} ", metric.name, Operator::ALL[operator].0);
            let condition: FailIf = text.parse().unwrap();
            prop_assert_eq!(condition.to_string().parse::<FailIf>(), Ok(condition));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<FailIf>();
        }
    }
}
