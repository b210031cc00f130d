//! Reads what each host wrote: NDJSON of `ringmill load` or `soak`, and histogram logs.
//!
//! A host may have been killed: a last line that was cut off is left out and named. Anything else
//! that is not as written is an error that says where, for a figure must not be missing unseen.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::report::hlog::{self, HlogError, LatencyKind};

/// Longest part of a strange line that is shown.
const SHOWN_CHARS_MAX: usize = 40;

/// What one host ran.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Its name: that of the file.
    pub name: String,
    /// The line `measuring`, which begins it; empty in what older versions wrote.
    pub head: Map<String, Value>,
    /// The intervals as written.
    pub intervals: Vec<Map<String, Value>>,
    /// The report; none from a host that did not come to its end.
    pub report: Option<Map<String, Value>>,
}

impl Run {
    /// A field of the report, or of the head where there is no report.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Value> {
        let report = self.report.as_ref().and_then(|report| report.get(name));
        report
            .or_else(|| self.head.get(name))
            .filter(|value| !value.is_null())
    }

    /// The same as text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.field(name)?.as_str()
    }

    /// When its measured part began.
    #[must_use]
    pub fn started_at(&self) -> Option<Timestamp> {
        self.text("started_at")?.parse().ok()
    }
}

/// A histogram log. Of its intervals only the text is kept: decoded, those of an hour would fill the
/// memory.
#[derive(Debug, Clone, Default)]
pub struct NamedLog {
    /// The name of its file, without the ending.
    pub name: String,
    /// Wall clock at the start of the measured part, since 1970.
    pub start_time: Option<Duration>,
    /// All intervals of each kind together.
    totals: BTreeMap<LatencyKind, Histogram<u64>>,
    /// In the order of the file.
    pub intervals: Vec<EncodedInterval>,
}

/// One line of a histogram log.
#[derive(Debug, Clone)]
pub struct EncodedInterval {
    /// Which latency.
    pub kind: LatencyKind,
    /// Since the start of the measured part.
    pub start: Duration,
    /// Length.
    pub length: Duration,
    /// For [`hlog::decode`].
    pub encoded: String,
}

impl NamedLog {
    /// All intervals of one kind together; none where there were none.
    #[must_use]
    pub fn total(&self, kind: LatencyKind) -> Option<&Histogram<u64>> {
        self.totals.get(&kind)
    }
}

/// What a file holds.
#[derive(Debug)]
pub enum Content {
    /// NDJSON: one run, or more where files were put together.
    Runs(Vec<Run>),
    /// A histogram log.
    Log(Box<NamedLog>),
}

/// A file that was read, and what is to be said about it.
#[derive(Debug)]
pub struct Input {
    /// What it holds.
    pub content: Content,
    /// What was left out.
    pub warnings: Vec<String>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is nothing in it.
    #[error("{name}: nothing is in it; did the run write its output there (--json)?")]
    Empty {
        /// Which file.
        name: String,
    },
    /// It is of another kind.
    #[error(
        "{name}: line {line} is neither NDJSON of ringmill (--json) nor a histogram log: '{shown}'"
    )]
    Strange {
        /// Which file.
        name: String,
        /// Counted from 1.
        line: usize,
        /// How it begins.
        shown: String,
    },
    /// A line in the middle is damaged.
    #[error("{name}: line {line} is damaged, and more follows: {problem}")]
    Damaged {
        /// Which file.
        name: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// It is of a command that is not merged.
    #[error(
        "{name}: line {line} is of no `ringmill load` or `ringmill soak`, whose reports are merged"
    )]
    OtherCommand {
        /// Which file.
        name: String,
        /// Counted from 1.
        line: usize,
    },
    /// There is no run in it.
    #[error("{name}: neither an interval nor a report is in it: the run ended before it measured")]
    NoRun {
        /// Which file.
        name: String,
    },
    /// The histogram log is damaged.
    #[error("{name}: {source}")]
    Log {
        /// Which file.
        name: String,
        /// What is wrong.
        source: HlogError,
    },
}

/// Reads one file.
///
/// # Errors
/// [`ReadError`] names the file and the line.
pub fn read(name: &str, bytes: &[u8]) -> Result<Input, ReadError> {
    let text = String::from_utf8_lossy(bytes);
    match text.trim_start().chars().next() {
        None => Err(ReadError::Empty { name: name.into() }),
        Some('#' | '"' | 'T') => read_log(name, &text),
        Some(_) => read_runs(name, &text),
    }
}

/// A histogram that takes every value.
pub(super) fn empty() -> Histogram<u64> {
    // Three significant digits, as all of ours.
    Histogram::new(3).expect("three digits are allowed")
}

/// Adds one histogram to another that takes every value.
pub(super) fn join(sum: &mut Histogram<u64>, more: &Histogram<u64>) {
    sum.add(more)
        .expect("a histogram that grows refuses no value");
}

fn read_log(name: &str, text: &str) -> Result<Input, ReadError> {
    let mut warnings = Vec::new();
    let whole = match text.rfind('\n') {
        Some(end) if end + 1 < text.len() => {
            warnings.push(format!("{name}: the last line was cut off and is left out"));
            &text[..=end]
        }
        _ => text,
    };
    let mut log = NamedLog {
        name: stem(name).to_owned(),
        ..NamedLog::default()
    };
    let NamedLog {
        totals, intervals, ..
    } = &mut log;
    let times = hlog::scan(whole.as_bytes(), |line, histogram| {
        let kind = LatencyKind::ALL
            .into_iter()
            .find(|kind| line.tag == Some(kind.tag()));
        let Some(kind) = kind else {
            return;
        };
        join(totals.entry(kind).or_insert_with(empty), &histogram);
        intervals.push(EncodedInterval {
            kind,
            start: line.start,
            length: line.length,
            encoded: line.encoded.to_owned(),
        });
    });
    let (start_time, _) = times.map_err(|source| ReadError::Log {
        name: name.into(),
        source,
    })?;
    log.start_time = start_time;
    Ok(Input {
        content: Content::Log(Box::new(log)),
        warnings,
    })
}

fn read_runs(name: &str, text: &str) -> Result<Input, ReadError> {
    let mut warnings = Vec::new();
    let mut runs: Vec<Run> = Vec::new();
    // Whether the last run of them still takes lines.
    let mut is_open = false;
    let mut strange = 0_usize;
    let mut known = 0_usize;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let line_number = index + 1;
        let is_cut = lines.peek().is_none() && !text.ends_with('\n');
        if line.trim().is_empty() {
            continue;
        }
        if !line.starts_with('{') {
            // The log of a container has what went to standard error between.
            if known == 0 && !line.starts_with("ringmill: ") {
                return Err(ReadError::Strange {
                    name: name.into(),
                    line: line_number,
                    shown: line.chars().take(SHOWN_CHARS_MAX).collect(),
                });
            }
            strange += 1;
            continue;
        }
        let mut object: Map<String, Value> = match serde_json::from_str(line) {
            Ok(object) => object,
            Err(_) if is_cut => {
                warnings.push(format!(
                    "{name}: line {line_number}, the last, was cut off and is left out"
                ));
                break;
            }
            Err(error) => {
                return Err(ReadError::Damaged {
                    name: name.into(),
                    line: line_number,
                    problem: error.to_string(),
                });
            }
        };
        known += 1;
        let other = || ReadError::OtherCommand {
            name: name.into(),
            line: line_number,
        };
        let kind = object.get("type").and_then(Value::as_str).unwrap_or("");
        match kind {
            "measuring" => {
                object.remove("type");
                runs.push(Run {
                    head: object,
                    ..Run::default()
                });
                is_open = true;
            }
            "interval" | "report" => {
                let is_report = kind == "report";
                let fits = if is_report {
                    object.contains_key("workload") && object.contains_key("connections")
                } else {
                    object.contains_key("start_s") || object.contains_key("at_s")
                };
                // A capacity test has intervals and reports of its own.
                if !fits || object.contains_key("tests") || object.contains_key("direction") {
                    return Err(other());
                }
                if !is_open {
                    runs.push(Run::default());
                    is_open = true;
                }
                let run = runs.last_mut().expect("one was opened");
                object.remove("type");
                if is_report {
                    run.report = Some(object);
                    is_open = false;
                } else {
                    run.intervals.push(object);
                }
            }
            // Lines that only accompany a run.
            _ => {}
        }
    }
    if strange > 0 {
        warnings.push(format!(
            "{name}: {strange} lines that are no JSON were skipped"
        ));
    }
    runs.retain(|run| run.report.is_some() || !run.intervals.is_empty());
    if runs.is_empty() {
        return Err(ReadError::NoRun { name: name.into() });
    }
    let several = runs.len() > 1;
    for (index, run) in runs.iter_mut().enumerate() {
        run.name = stem(name).to_owned();
        if several {
            run.name += &format!("#{}", index + 1);
        }
        if run.report.is_none() {
            warnings.push(format!(
                "{}: the run has no report: the host was lost, and what its intervals counted is all that \
                 is known of it",
                run.name
            ));
        }
    }
    Ok(Input {
        content: Content::Runs(runs),
        warnings,
    })
}

/// The name of a file without folders and ending.
fn stem(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    match file.split_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"type":"measuring","workload":"echo","started_at":"2026-01-31T18:00:00.250Z","host_index":3}"#;
    const INTERVAL: &str = r#"{"type":"interval","start_s":0.0,"duration_s":1.0,"messages":5}"#;
    const REPORT: &str = r#"{"type":"report","workload":"echo","connections":{},"messages":5}"#;

    fn runs(text: &str) -> (Vec<Run>, Vec<String>) {
        let input = read("results/host-3.ndjson", text.as_bytes()).unwrap();
        match input.content {
            Content::Runs(runs) => (runs, input.warnings),
            Content::Log(_) => panic!("no log"),
        }
    }

    #[test]
    fn a_whole_run() {
        let (runs, warnings) = runs(&format!("{HEAD}\n{INTERVAL}\n{REPORT}\n"));
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!((runs.len(), runs[0].intervals.len()), (1, 1));
        assert_eq!(runs[0].name, "host-3");
        assert_eq!(runs[0].field("host_index"), Some(&3.into()));
        assert_eq!(
            runs[0].started_at(),
            "2026-01-31T18:00:00.250Z".parse().ok()
        );
    }

    #[test]
    fn what_a_killed_host_left() {
        // Cut in the middle of a line, or between two.
        for (end, cut) in [(&INTERVAL[..20], true), ("", false)] {
            let (runs, warnings) = runs(&format!("{HEAD}\n{INTERVAL}\n{end}"));
            assert!(runs[0].report.is_none());
            assert_eq!(runs[0].intervals.len(), 1);
            let words = warnings.join("; ");
            assert_eq!(
                words.contains("line 3, the last, was cut off"),
                cut,
                "{words}"
            );
            assert!(words.contains("the host was lost"), "{words}");
        }
    }

    #[test]
    fn runs_put_together_are_told_apart() {
        let one = format!("{HEAD}\n{INTERVAL}\n");
        let (runs, _) = runs(&format!("{one}{REPORT}\n{one}{one}{REPORT}\n"));
        let names: Vec<_> = runs
            .iter()
            .map(|run| (run.name.as_str(), run.report.is_some()))
            .collect();
        assert_eq!(
            names,
            [("host-3#1", true), ("host-3#2", false), ("host-3#3", true)]
        );
    }

    #[test]
    fn the_log_of_a_container_has_words_between() {
        let text = format!("ringmill: waiting\n{HEAD}\n{INTERVAL}\nringmill: words\n{REPORT}\n");
        let (runs, warnings) = runs(&text);
        assert!(runs[0].report.is_some());
        assert!(
            warnings[0].contains("2 lines that are no JSON"),
            "{warnings:?}"
        );
    }

    #[test]
    fn other_files_are_refused_in_words() {
        for (text, words) in [
            (String::new(), "nothing is in it"),
            ("hello\n".to_owned(), "line 1 is neither NDJSON"),
            (format!("{HEAD}\n"), "neither an interval nor a report"),
            (
                format!("{HEAD}\n{}\n{REPORT}\n", &INTERVAL[..20]),
                "line 2 is damaged, and more follows",
            ),
            (
                "{\"type\":\"report\",\"tests\":[]}\n".to_owned(),
                "line 1 is of no `ringmill load`",
            ),
            ("#[StartTime: x]\nhello\n".to_owned(), "not an HdrHistogram"),
        ] {
            let error = read("x.ndjson", text.as_bytes()).unwrap_err().to_string();
            assert!(
                error.starts_with("x.ndjson: ") && error.contains(words),
                "{text:?}: {error}"
            );
        }
    }
}
