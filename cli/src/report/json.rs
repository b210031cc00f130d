//! The report for programs: one JSON object per line (NDJSON).
//!
//! While the run lasts, one `{"type":"interval",…}` per interval; at the end one
//! `{"type":"report",…}`. The layout is in `docs/report.md`; a test holds the two together.
//! Every line is flushed, so that a reader behind a pipe sees it at once.

use std::io::{self, Write};

use serde::Serialize;

use super::{Interval, Report};

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Measuring(&'a Measuring<'a>),
    Interval(&'a Interval),
    Report(&'a Report),
}

/// The end of the warm-up, and what is needed to read the lines after it should the report never come.
#[derive(Debug, Serialize)]
pub struct Measuring<'a> {
    /// Version of ringmill.
    pub version: &'a str,
    /// What is loaded.
    pub workload: &'a str,
    /// Where.
    pub endpoint: &'a str,
    /// Wall clock at the start of the measured part, RFC 3339 in UTC.
    pub started_at: &'a str,
    /// Which of many hosts this is.
    pub host_index: Option<u32>,
    /// How many hosts there are.
    pub hosts: Option<u32>,
}

/// Writes the lines of one run.
#[derive(Debug)]
pub struct JsonLines<W: Write> {
    out: W,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`, which need not buffer: a line is one write.
    pub fn new(out: W) -> Self {
        JsonLines { out }
    }

    /// Writes the line that says that the warm-up is over.
    ///
    /// # Errors
    /// What `out` says, for example that the reader has gone.
    pub fn measuring(&mut self, measuring: &Measuring<'_>) -> io::Result<()> {
        self.line(&Line::Measuring(measuring))
    }

    /// Writes the line of an interval.
    ///
    /// # Errors
    /// What `out` says, for example that the reader has gone.
    pub fn interval(&mut self, interval: &Interval) -> io::Result<()> {
        self.line(&Line::Interval(interval))
    }

    /// Writes the last line.
    ///
    /// # Errors
    /// What `out` says, for example that the reader has gone.
    pub fn report(&mut self, report: &Report) -> io::Result<()> {
        self.line(&Line::Report(report))
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
        text.push(b'\n');
        self.out.write_all(&text)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::testing;
    use super::*;

    fn lines(report: &Report) -> Vec<Value> {
        let mut buffer = Vec::new();
        let mut json = JsonLines::new(&mut buffer);
        for interval in &report.intervals {
            json.interval(interval).unwrap();
        }
        json.report(report).unwrap();
        let text = String::from_utf8(buffer).unwrap();
        assert!(text.ends_with('\n'));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn intervals_come_first_and_the_report_last() {
        let lines = lines(&testing::tcp());
        let types: Vec<_> = lines
            .iter()
            .map(|line| line["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["interval", "interval", "report"]);
        assert_eq!(lines[1]["messages"], 352_900);
        assert_eq!(lines[1]["messages_per_s"], 352_900.0);
        let report = &lines[2];
        assert_eq!(report["schema"], super::super::SCHEMA_VERSION);
        assert_eq!(report["messages_per_s"], 341_234.5);
        assert_eq!(report["service_time"]["p99.9_ns"], 512_000);
        assert_eq!(report["settings"]["depth"], 4);
        assert_eq!(report["connections"]["closed"]["peer closed"], 3);
        assert_eq!(report["environment"]["build"]["profile"], "release");
        assert_eq!(report["datagrams"], Value::Null);
        assert_eq!(report.get("intervals"), None);
    }

    #[test]
    fn what_was_not_measured_is_null_and_never_zero() {
        let report = &lines(&testing::silent())[0];
        for field in ["response_time", "service_time", "datagrams", "wrong_bytes"] {
            assert_eq!(report[field], Value::Null, "{field}");
        }
        assert_eq!(report["cpu"]["server"], Value::Null);
        assert_eq!(report["limits"]["steal_percent"], Value::Null);
        assert_eq!(
            lines(&testing::udp()).last().unwrap()["datagrams"]["loss_ratio"],
            0.000_123
        );
    }

    /// Dotted paths of all fields. Maps with keys of the user's choice count as one field.
    fn paths(value: &Value, prefix: &str, into: &mut BTreeSet<String>) {
        const FREE_MAPS: [&str; 5] = [
            "settings",
            "errors",
            "connections.closed",
            "dns.unsent_causes",
            "dns.response_codes",
        ];
        match value {
            Value::Object(map) if !FREE_MAPS.contains(&prefix) => {
                for (key, value) in map {
                    let path = if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    };
                    paths(value, &path, into);
                }
            }
            _ => {
                into.insert(prefix.to_owned());
            }
        }
    }

    /// Fields that the first column of the tables under a heading of `docs/report.md` names.
    fn documented(heading: &str) -> BTreeSet<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report.md");
        let text = std::fs::read_to_string(path).unwrap();
        let section = text
            .split("\n## ")
            .find(|part| part.starts_with(heading))
            .unwrap();
        section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(field, _)| field.to_owned())
            .collect()
    }

    /// Replaces what is one object of a documented kind by the name of the kind.
    fn fold(fields: BTreeSet<String>, objects: &[&str]) -> BTreeSet<String> {
        fields
            .into_iter()
            .map(|field| {
                let object = objects
                    .iter()
                    .find(|name| field.starts_with(&format!("{name}.")));
                object.map_or(field.clone(), |name| (*name).to_owned())
            })
            .collect()
    }

    #[test]
    fn the_document_names_every_field() {
        let full = Report {
            datagrams: testing::udp().datagrams,
            ..testing::tcp()
        };
        let interval = Interval {
            response_time: Some(testing::latency(1)),
            service_time: Some(testing::latency(1)),
            ..full.intervals[0].clone()
        };
        let all = lines(&Report {
            intervals: vec![interval],
            ..full
        });
        let fields = |line: &Value| {
            let mut set = BTreeSet::new();
            paths(line, "", &mut set);
            fold(
                set,
                &["response_time", "service_time", "cpu.client", "cpu.server"],
            )
        };
        let measuring = Line::Measuring(&Measuring {
            version: "0.1.0",
            workload: "echo",
            endpoint: "tcp://:7000",
            started_at: "2026-01-31T18:00:00.000Z",
            host_index: None,
            hosts: None,
        });
        let measuring = serde_json::to_value(measuring).unwrap();
        assert_eq!(fields(&measuring), documented("Measuring"));
        assert_eq!(fields(&all[0]), documented("Interval"));
        assert_eq!(fields(&all[1]), documented("Report"));

        let dns = &lines(&Report {
            dns: Some(crate::report::Dns::default()),
            intervals: Vec::new(),
            ..testing::tcp()
        })[0];
        let of_dns = fields(dns).into_iter();
        let of_dns: BTreeSet<_> = of_dns.filter(|name| name.starts_with("dns.")).collect();
        assert_eq!(of_dns, documented("DNS"));

        let keys = |value: &Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(&all[1]["service_time"]), documented("Latency"));
        assert_eq!(keys(&all[1]["cpu"]["client"]), documented("CPU use"));
    }
}
