//! The intervals of many hosts, aligned by the wall clock.
//!
//! Hosts begin their seconds at different moments, so what one counted in an interval is divided over
//! the seconds of the whole in proportion to time; the parts are whole numbers and their sum is what was
//! counted. A histogram cannot be divided: it counts where the middle of its interval lies.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::shape::{self, Joiner};
use super::{Host, Run, read};
use crate::report::Latency;
use crate::report::hlog::{self, LatencyKind};

/// Seconds of the whole that one interval of a host may cover: those of a day. Beyond it, its clock or
/// its file is not to be believed, and all of it counts where it begins.
const COVERED_MAX: u64 = 86_400;
/// A last second of which less than this was measured belongs to the one before: what is in it is how
/// much the hosts' clocks differ.
const TAIL_S: f64 = 0.25;
/// Of a host without a new line for so long nothing is live any more.
const STALE_S: f64 = 2.5;
/// Counts that are divided over time.
const COUNTS: [&str; 5] = ["messages", "bytes", "errors", "lost", "wrong_bytes"];
/// What is so at a moment, not counted over time.
const GAUGES: [&str; 2] = ["live", "opening"];

/// Figures by name.
type Figures = Map<String, Value>;

/// One second of all hosts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MergedInterval {
    /// Start, in seconds since the first host's measured part began.
    pub start_s: f64,
    /// Length in seconds.
    pub duration_s: f64,
    /// Hosts that ran in most of it.
    pub hosts: u64,
    /// The joined figures, with the names of the hosts' intervals.
    #[serde(flatten)]
    pub figures: Map<String, Value>,
}

/// Aligns what all hosts wrote.
pub(super) fn align(hosts: &[Host], epoch: Timestamp) -> Vec<MergedInterval> {
    let is_snapshots = hosts
        .iter()
        .flat_map(|host| &host.run.intervals)
        .any(|interval| interval.contains_key("at_s"));
    if is_snapshots {
        snapshots(hosts, epoch)
    } else {
        counted(hosts, epoch)
    }
}

fn seconds(interval: &Map<String, Value>, name: &str) -> f64 {
    let value = interval.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    if value.is_finite() {
        value.max(0.0)
    } else {
        0.0
    }
}

/// One second while it is filled.
#[derive(Debug, Default)]
struct Second {
    counts: BTreeMap<&'static str, u64>,
    /// Of each host the last that was told.
    connections: BTreeMap<usize, u64>,
    /// Time that each host measured of it.
    covered_s: BTreeMap<usize, f64>,
    /// Latencies as the hosts' intervals tell them, and which hosts these are.
    told: BTreeMap<LatencyKind, Vec<(usize, Figures)>>,
    /// Histograms, by host and number in its log.
    logged: Vec<(usize, usize)>,
}

fn counted(hosts: &[Host], epoch: Timestamp) -> Vec<MergedInterval> {
    let mut seconds_of: BTreeMap<u64, Second> = BTreeMap::new();
    let mut end_s = 0.0_f64;
    for (index, host) in hosts.iter().enumerate() {
        let Some(offset) = host.start_s(epoch) else {
            continue;
        };
        for interval in &host.run.intervals {
            let begin = offset + seconds(interval, "start_s");
            let end = begin + seconds(interval, "duration_s");
            end_s = end_s.max(end);
            divide(&mut seconds_of, index, interval, begin, end);
            let middle = f64::midpoint(begin, end) as u64;
            for kind in LatencyKind::ALL {
                let latency = interval.get(&format!("{}_time", kind.tag()));
                if let Some(Value::Object(latency)) = latency {
                    let second = seconds_of.entry(middle).or_default();
                    second
                        .told
                        .entry(kind)
                        .or_default()
                        .push((index, latency.clone()));
                }
            }
        }
        for (number, logged) in host
            .log
            .iter()
            .flat_map(|log| log.intervals.iter().enumerate())
        {
            let middle = offset + (logged.start + logged.length / 2).as_secs_f64();
            // What came after the end of the measured part is in the totals only.
            if let Some(second) = seconds_of.get_mut(&(middle as u64)) {
                second.logged.push((index, number));
            }
        }
    }
    fold_tail(&mut seconds_of, end_s);
    let last = seconds_of.keys().next_back().copied();
    seconds_of
        .into_iter()
        .map(|(number, second)| {
            let end = if Some(number) == last {
                end_s
            } else {
                number as f64 + 1.0
            };
            finished(hosts, second, number as f64, end - number as f64)
        })
        .collect()
}

/// Divides what an interval counted over the seconds in which it lies.
fn divide(
    seconds_of: &mut BTreeMap<u64, Second>,
    host: usize,
    interval: &Map<String, Value>,
    begin: f64,
    end: f64,
) {
    let first = begin as u64;
    // An end on the edge is of the second before it.
    let mut last = (end.ceil() as u64).saturating_sub(1).max(first);
    if last - first > COVERED_MAX {
        last = first;
    }
    let length = end - begin;
    // The share of the interval that is over at the end of a second.
    let share = |number: u64| {
        if number >= last || length <= 0.0 {
            return 1.0;
        }
        ((number as f64 + 1.0 - begin) / length).clamp(0.0, 1.0)
    };
    for name in COUNTS {
        let Some(count) = interval.get(name).and_then(Value::as_u64) else {
            continue;
        };
        let mut over = 0;
        for number in first..=last {
            // The last share is exactly one, so nothing is lost to rounding.
            let until = match share(number) {
                1.0 => count,
                share => ((count as f64 * share).round() as u64).clamp(over, count),
            };
            let second = seconds_of.entry(number).or_default();
            *second.counts.entry(name).or_default() += until - over;
            over = until;
        }
    }
    for number in first..=last {
        let second = seconds_of.entry(number).or_default();
        let covered = end.min(number as f64 + 1.0) - begin.max(number as f64);
        *second.covered_s.entry(host).or_default() += covered.max(0.0);
        if let Some(connections) = interval.get("connections").and_then(Value::as_u64) {
            second.connections.insert(host, connections);
        }
    }
}

/// Puts a last second that is hardly begun into the one before.
fn fold_tail(seconds_of: &mut BTreeMap<u64, Second>, end_s: f64) {
    let Some((&last, _)) = seconds_of.last_key_value() else {
        return;
    };
    if last == 0 || end_s - last as f64 >= TAIL_S || !seconds_of.contains_key(&(last - 1)) {
        return;
    }
    let tail = seconds_of.remove(&last).unwrap_or_default();
    let Some(before) = seconds_of.get_mut(&(last - 1)) else {
        return;
    };
    for (name, count) in tail.counts {
        *before.counts.entry(name).or_default() += count;
    }
    for (host, covered) in tail.covered_s {
        *before.covered_s.entry(host).or_default() += covered;
    }
    before.connections.extend(tail.connections);
    for (kind, told) in tail.told {
        before.told.entry(kind).or_default().extend(told);
    }
    before.logged.extend(tail.logged);
}

fn finished(hosts: &[Host], second: Second, start_s: f64, duration_s: f64) -> MergedInterval {
    let mut figures = Map::new();
    for name in COUNTS {
        figures.insert(name.into(), json!(second.counts.get(name)));
    }
    for (name, of) in [("messages_per_s", "messages"), ("bytes_per_s", "bytes")] {
        let count = second.counts.get(of).copied().unwrap_or(0) as f64;
        let rate = (duration_s > 0.0).then(|| count / duration_s);
        figures.insert(name.into(), json!(rate));
    }
    let connections: u64 = second.connections.values().sum();
    figures.insert("connections".into(), json!(connections));
    for kind in LatencyKind::ALL {
        let latency = latency(hosts, &second, kind);
        figures.insert(format!("{}_time", kind.tag()), latency);
    }
    let ran = second
        .covered_s
        .values()
        .filter(|covered| **covered * 2.0 >= duration_s);
    MergedInterval {
        start_s,
        duration_s,
        hosts: ran.count() as u64,
        figures,
    }
}

/// From the histograms, where each host that measured has one; else what can be said without.
fn latency(hosts: &[Host], second: &Second, kind: LatencyKind) -> Value {
    let Some(told) = second.told.get(&kind) else {
        return Value::Null;
    };
    let mut joined = read::empty();
    let mut have: BTreeSet<usize> = BTreeSet::new();
    for (host, number) in &second.logged {
        let logged = hosts[*host].log.as_ref().map(|log| &log.intervals[*number]);
        if let Some(logged) = logged.filter(|logged| logged.kind == kind)
            && let Ok(histogram) = hlog::decode(&logged.encoded)
        {
            read::join(&mut joined, &histogram);
            have.insert(*host);
        }
    }
    if told.iter().all(|(host, _)| have.contains(host)) {
        return json!(Latency::from_histogram(&joined));
    }
    let told: Vec<_> = told
        .iter()
        .map(|(host, latency)| (hosts[*host].name(), latency))
        .collect();
    shape::latency(&told)
}

/// Lines that say how it stands at a moment, with counts since the begin: the last line of each host
/// counts until its next.
fn snapshots(hosts: &[Host], epoch: Timestamp) -> Vec<MergedInterval> {
    let mut lines: BTreeMap<u64, Vec<(usize, f64, &Figures)>> = BTreeMap::new();
    for (index, host) in hosts.iter().enumerate() {
        let Some(offset) = host.start_s(epoch) else {
            continue;
        };
        for line in &host.run.intervals {
            let at = offset + seconds(line, "at_s");
            lines
                .entry(at.round() as u64)
                .or_default()
                .push((index, at, line));
        }
    }
    let mut latest: BTreeMap<usize, (f64, &Map<String, Value>)> = BTreeMap::new();
    let mut merged = Vec::new();
    for (number, new) in lines {
        for (index, at, line) in new {
            latest.insert(index, (at, line));
        }
        let mut fresh = 0;
        let of_hosts: Vec<(usize, Map<String, Value>)> = latest
            .iter()
            .map(|(index, (at, line))| {
                let mut line = (*line).clone();
                if number as f64 - at > STALE_S {
                    line.retain(|name, _| {
                        !GAUGES.contains(&name.as_str()) && !name.ends_with("_per_s")
                    });
                } else {
                    fresh += 1;
                }
                line.remove("at_s");
                (*index, line)
            })
            .collect();
        let objects: Vec<_> = of_hosts
            .iter()
            .map(|(index, line)| (hosts[*index].name(), line))
            .collect();
        let mut joiner = Joiner {
            together: true,
            partial: Vec::new(),
        };
        if let Value::Object(figures) = joiner.objects("", &objects) {
            let before = number.saturating_sub(1) as f64;
            merged.push(MergedInterval {
                start_s: before,
                duration_s: number as f64 - before,
                hosts: fresh,
                figures,
            });
        }
    }
    merged
}

/// What is known of a host that was lost: what its intervals counted.
pub(super) fn summed(run: &Run) -> Map<String, Value> {
    let intervals = &run.intervals;
    let mut figures = Map::new();
    let Some(last) = intervals.last() else {
        return figures;
    };
    if last.contains_key("at_s") {
        // Counts since the begin: the last line has all.
        let at_s = seconds(last, "at_s");
        let get = |name: &str| last.get(name).cloned().unwrap_or(Value::Null);
        figures.insert("span_s".into(), json!(at_s));
        figures.insert(
            "connections".into(),
            json!({ "opened": get("opened"), "failed": get("failed"), "churned": get("churned") }),
        );
        figures.insert(
            "hold".into(),
            json!({
                "messages_sent": get("messages_sent"),
                "messages": get("messages"),
                "wrong_bytes": get("wrong_bytes"),
            }),
        );
        return figures;
    }
    for name in COUNTS {
        let mut counts = intervals
            .iter()
            .filter_map(|interval| interval.get(name)?.as_u64());
        if let Some(first) = counts.next() {
            let sum = counts.fold(first, u64::saturating_add);
            figures.insert(name.into(), json!(sum));
        }
    }
    let errors = figures.remove("errors").and_then(|errors| errors.as_u64());
    let kinds = match errors {
        Some(errors) if errors > 0 => json!({ "of unknown kind, on a lost host": errors }),
        _ => json!({}),
    };
    figures.insert("errors".into(), kinds);
    // The same count has another place in a report.
    if let Some(lost) = figures.remove("lost") {
        let part = match run.text("workload") {
            Some("dns") => "dns",
            _ => "datagrams",
        };
        figures.insert(part.into(), json!({ "lost": lost }));
    }
    let duration_s = seconds(last, "start_s") + seconds(last, "duration_s");
    figures.insert("duration_s".into(), json!(duration_s));
    for (name, of) in [("messages_per_s", "messages"), ("bytes_per_s", "bytes")] {
        let count = figures.get(of).and_then(Value::as_f64);
        let rate = count
            .filter(|_| duration_s > 0.0)
            .map(|count| count / duration_s);
        figures.insert(name.into(), json!(rate));
    }
    for kind in LatencyKind::ALL {
        let name = format!("{}_time", kind.tag());
        let told: Vec<_> = intervals
            .iter()
            .filter_map(|interval| Some(("", interval.get(&name)?.as_object()?)))
            .collect();
        if !told.is_empty() {
            figures.insert(name, shape::latency(&told));
        }
    }
    figures
}
