//! The merged report for people: the joined figures, a row for each host, and what to know before
//! believing them. Rounded; programs read the JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{HostRow, Merged};
use crate::units::{
    format_byte_rate, format_bytes, format_count, format_duration, format_latency_ns,
    format_percent, format_rate,
};

/// Width of the column of labels.
const LABEL_WIDTH: usize = 26;
/// Width of one latency: `1234.5 ms` and a blank.
const LATENCY_WIDTH: usize = 10;
/// Longest name of a host that is shown whole.
const NAME_CHARS_MAX: usize = 24;
/// Figures of the machine, of each host's own: no line for them here.
const NOT_SHOWN: [&str; 2] = ["kernel", "warmup_s"];

/// The whole report; ends with a line end.
#[must_use]
pub fn render(merged: &Merged) -> String {
    let mut text = headline(merged);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n");
    let mut latencies = Vec::new();
    lines(&mut text, "", &merged.figures, &mut latencies);
    latency_table(&mut text, &latencies, merged.no_percentiles.as_deref());
    rates_of_intervals(&mut text, merged);
    hosts_table(&mut text, &merged.hosts);
    for host in &merged.hosts {
        if let Some(reason) = &host.client_limited {
            let _ = writeln!(text, "  {}: the client was the limit: {reason}", host.name);
        }
    }
    if !merged.warnings.is_empty() {
        let _ = writeln!(text, "\n  Before you believe it:");
    }
    for warning in &merged.warnings {
        let _ = writeln!(text, "  ! {warning}");
    }
    text
}

fn headline(merged: &Merged) -> String {
    let hosts = match merged.hosts.len() {
        1 => "1 host".to_owned(),
        count => format!("{count} hosts"),
    };
    let mut text = format!(
        "ringmill {}: {} on {}, {hosts} merged",
        merged.version,
        merged.workloads.join(", "),
        merged.endpoints.join(", ")
    );
    if let (Some(start), Some(span), Some(common)) =
        (&merged.started_at, merged.span_s, merged.common_s)
    {
        let words = |seconds: f64| format_duration(Duration::from_secs_f64(seconds.max(0.0)));
        let _ = write!(text, ", {} from {start}", words(span));
        if merged.hosts.len() > 1 {
            let _ = write!(text, ", {} of it all at once", words(common));
        }
    }
    text
}

/// A figure with its name and unit, or the figures of an object; latencies go into a table.
fn lines<'a>(
    text: &mut String,
    prefix: &str,
    figures: &'a Map<String, Value>,
    latencies: &mut Vec<(String, &'a Map<String, Value>)>,
) {
    for (name, value) in figures {
        if prefix.is_empty() && NOT_SHOWN.contains(&name.as_str()) {
            continue;
        }
        let path = format!("{prefix}{name}");
        match value {
            Value::Object(object) if object.contains_key("p50_ns") => {
                latencies.push((path, object))
            }
            Value::Object(object) if is_kinds(object) => {
                let mut kinds: Vec<String> = object
                    .iter()
                    .filter(|(_, count)| count.as_u64() > Some(0))
                    .map(|(kind, count)| format!("{} {kind}", shown("", count)))
                    .collect();
                if kinds.is_empty() {
                    kinds.push("none".into());
                }
                line(text, &path, &kinds.join(", "));
            }
            Value::Object(object) => lines(text, &format!("{path}."), object, latencies),
            Value::Array(list) if list.is_empty() => {}
            Value::Null => {}
            other => line(text, &path, &shown(name, other)),
        }
    }
}

/// Counts by kind, whose names are words of their own and no fields.
fn is_kinds(object: &Map<String, Value>) -> bool {
    object.is_empty()
        || object.values().all(Value::is_u64)
            && object
                .keys()
                .any(|name| name.contains([' ', ':']) || name.chars().any(char::is_uppercase))
}

fn line(text: &mut String, label: &str, words: &str) {
    let _ = writeln!(text, "  {label:<LABEL_WIDTH$} {words}");
}

/// A value in the unit that its name ends in.
fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::String(words) => return words.clone(),
        Value::Bool(true) => return "yes".into(),
        Value::Bool(false) => return "no".into(),
        Value::Array(list) => {
            let words = list.iter().map(|entry| shown(name, entry));
            return words.collect::<Vec<_>>().join("; ");
        }
        Value::Number(_) => {}
        Value::Null | Value::Object(_) => return value.to_string(),
    }
    let number = value.as_f64().unwrap_or(0.0);
    if name.ends_with("bytes_per_s") {
        format_byte_rate(number)
    } else if name.ends_with("per_s") || name.ends_with("_per_s_of_span") {
        format_rate(number)
    } else if name.ends_with("_ns") {
        format_latency_ns(number)
    } else if name.ends_with("_percent") {
        format_percent(number)
    } else if name.ends_with("_ratio") {
        format_percent(number * 100.0)
    } else if name.ends_with("_s") {
        format!("{number:.2} s")
    } else {
        match value.as_u64() {
            Some(bytes) if name == "bytes" => format_bytes(bytes),
            Some(count) => format_count(count),
            None => format!("{number:.2}"),
        }
    }
}

fn latency_table(
    text: &mut String,
    latencies: &[(String, &Map<String, Value>)],
    no_percentiles: Option<&str>,
) {
    const COLUMNS: [(&str, &str); 7] = [
        ("p50", "p50_ns"),
        ("p90", "p90_ns"),
        ("p99", "p99_ns"),
        ("p99.9", "p99.9_ns"),
        ("p99.99", "p99.99_ns"),
        ("max", "max_ns"),
        ("mean", "mean_ns"),
    ];
    if latencies.is_empty() {
        return;
    }
    let _ = write!(text, "\n  {:<LABEL_WIDTH$}", "latency");
    for (head, _) in COLUMNS {
        let _ = write!(text, "{head:>LATENCY_WIDTH$}");
    }
    text.push('\n');
    for (path, latency) in latencies {
        let _ = write!(text, "  {path:<LABEL_WIDTH$}");
        for (_, field) in COLUMNS {
            let value = latency.get(field).and_then(Value::as_f64);
            let cell = value.map_or("-".to_owned(), format_latency_ns);
            let _ = write!(text, "{cell:>LATENCY_WIDTH$}");
        }
        text.push('\n');
    }
    if let Some(why) = no_percentiles {
        let _ = writeln!(text, "  {why}");
    }
}

fn rates_of_intervals(text: &mut String, merged: &Merged) {
    // Seconds in which all hosts ran: the others are slow because hosts are missing.
    let rates = || {
        merged
            .intervals
            .iter()
            .filter(|interval| interval.hosts as usize == merged.hosts.len())
            .filter_map(|interval| interval.figures.get("messages_per_s")?.as_f64())
    };
    if rates().count() > 1 {
        let (slowest, fastest) = (
            rates().fold(f64::INFINITY, f64::min),
            rates().fold(0.0, f64::max),
        );
        let words = format!("{} to {}", format_rate(slowest), format_rate(fastest));
        text.push('\n');
        line(text, "seconds with all hosts", &words);
    }
}

fn hosts_table(text: &mut String, hosts: &[HostRow]) {
    let name_width = hosts
        .iter()
        .map(|host| host.name.chars().count().min(NAME_CHARS_MAX))
        .max()
        .unwrap_or(0)
        .max("host".len());
    let _ = writeln!(
        text,
        "\n  {:<name_width$} {:>5} {:>9} {:>9} {:>14} {:>11} {:>9} {:>9} {:>10} {:>10}",
        "host", "index", "began", "ran", "messages", "rate", "errors", "lost", "p99", "max"
    );
    let count = |count: Option<u64>| count.map_or("-".to_owned(), format_count);
    for host in hosts {
        let name: String = host.name.chars().take(NAME_CHARS_MAX).collect();
        let latency = |field: &str| {
            let value = host.response_time.get(field).and_then(Value::as_f64);
            value.map_or("-".to_owned(), format_latency_ns)
        };
        let lost = if host.complete {
            ""
        } else {
            "   LOST: cut off"
        };
        let _ = writeln!(
            text,
            "  {name:<name_width$} {:>5} {:>9} {:>9} {:>14} {:>11} {:>9} {:>9} {:>10} {:>10}{lost}",
            host.host_index
                .map_or("-".to_owned(), |index| index.to_string()),
            host.offset_s
                .map_or("-".to_owned(), |offset| format!("+{offset:.2} s")),
            format!("{:.1} s", host.duration_s),
            count(host.messages),
            host.messages_per_s.map_or("-".to_owned(), format_rate),
            count(host.errors),
            count(host.lost),
            latency("p99_ns"),
            latency("max_ns"),
        );
    }
}
