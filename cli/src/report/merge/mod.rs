//! Many hosts, one report: joins what they wrote while they loaded the same server at the same time.
//!
//! Counts are summed. Intervals are aligned by the wall clock, not by when they arrived. Percentiles
//! are computed anew from the joined histograms and never averaged: where a host's histogram is
//! missing there are none, and that is said. Hosts that ran other settings or versions, or at another
//! time, are joined all the same and named in [`Merged::warnings`]. See `docs/many-hosts.md`.

pub mod human;
mod intervals;
mod read;
mod shape;

pub use self::intervals::MergedInterval;
pub use self::read::{Content, Input, NamedLog, ReadError, Run, read};

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::shape::Joiner;
use super::hlog::{self, LatencyKind};
use super::{Latency, SCHEMA_VERSION};
use crate::many_hosts::SEED_OF_HOST;

/// Hosts ran together when all of them ran for this part of the longest run.
const TOGETHER_RATIO_MIN: f64 = 0.9;
/// A start that differs from the others' by less is the noise of connecting: no word about it.
const START_TOLERANCE_S: f64 = 1.0;
/// A log belongs to the run that began within so long of it: both have the same moment in
/// milliseconds.
const SAME_START_MS: i128 = 2;
/// Of each kind of remark, so many are told one by one.
const REMARKS_MAX: usize = 20;

/// Settings that are no choice of the user: results, and what is different on each host by intent.
const OWN_SETTINGS: [&str; 8] = [
    SEED_OF_HOST,
    "start_at",
    "cpus",
    "lateness_max_ns",
    "unsent",
    "unsent_causes",
    "unanswered_at_interrupt",
    "pairs_of_addresses",
];
/// Fields of a report that are told in another way than by joining them.
const NOT_JOINED: [&str; 12] = [
    "schema",
    "version",
    "command",
    "workload",
    "endpoint",
    "endpoints",
    "settings",
    "environment",
    "started_at",
    "host_index",
    "hosts",
    "histograms",
];

/// The report of many hosts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Merged {
    /// Layout of this object: [`SCHEMA_VERSION`].
    pub schema: u32,
    /// Version of ringmill that merged.
    pub version: String,
    /// What was loaded; several where hosts differ.
    pub workloads: Vec<String>,
    /// Where; several where hosts differ.
    pub endpoints: Vec<String>,
    /// One row for each host.
    pub hosts: Vec<HostRow>,
    /// Start of the first measured part, RFC 3339 in UTC; `None` when a host did not note its own.
    pub started_at: Option<String>,
    /// From the first start to the last end, in seconds.
    pub span_s: Option<f64>,
    /// How long all hosts ran at once, in seconds.
    pub common_s: Option<f64>,
    /// Whether they ran together, so that their rates add up; `None` when a host's time is not known.
    pub together: Option<bool>,
    /// Settings that are the same on all hosts.
    pub settings: Map<String, Value>,
    /// Why there are no percentiles; `None` when there are.
    pub no_percentiles: Option<String>,
    /// What the reader must know before believing the figures.
    pub warnings: Vec<String>,
    /// The joined figures, with the names and in the shape of the hosts' reports.
    #[serde(flatten)]
    pub figures: Map<String, Value>,
    /// In the order of time. Not in the JSON object: each is a line of its own.
    #[serde(skip)]
    pub intervals: Vec<MergedInterval>,
}

/// One host.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HostRow {
    /// Its name: that of its file.
    pub name: String,
    /// Its `--host-index`.
    pub host_index: Option<u64>,
    /// Its version of ringmill.
    pub version: Option<String>,
    /// Whether it came to its end and reported.
    pub complete: bool,
    /// Start of its measured part.
    pub started_at: Option<String>,
    /// After the first host of all, in seconds.
    pub offset_s: Option<f64>,
    /// Length of its measured part, in seconds.
    pub duration_s: f64,
    /// Messages answered.
    pub messages: Option<u64>,
    /// The same per second of its own measured part.
    pub messages_per_s: Option<f64>,
    /// Errors of all kinds; of a soak, failed and lost connections.
    pub errors: Option<u64>,
    /// Datagrams or queries lost.
    pub lost: Option<u64>,
    /// Wrong bytes.
    pub wrong_bytes: Option<u64>,
    /// Its own response times.
    pub response_time: Value,
    /// Why it set the pace and not the server.
    pub client_limited: Option<String>,
}

/// Why nothing can be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Only histograms.
    #[error(
        "there is no run among the files, only histograms: give what the hosts wrote with --json, too"
    )]
    NoRun,
    /// Two reports under one name are probably one report twice.
    #[error(
        "{first} and {second} are the same run: same start, same host index, same figures; give each host once"
    )]
    Twice {
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
}

/// One host's run with what was computed for it.
struct Host {
    run: Run,
    /// Its figures: those of its report, or what its intervals add up to.
    figures: Map<String, Value>,
    start: Option<Timestamp>,
    duration_s: f64,
    log: Option<NamedLog>,
}

impl Host {
    fn name(&self) -> &str {
        &self.run.name
    }

    fn end_s(&self, epoch: Timestamp) -> Option<f64> {
        Some(self.start_s(epoch)? + self.duration_s)
    }

    /// After a moment, in seconds.
    fn start_s(&self, epoch: Timestamp) -> Option<f64> {
        Some(self.start?.duration_since(epoch).as_secs_f64())
    }

    /// A number of its figures by a dotted path.
    fn number(&self, path: &str) -> Option<&Value> {
        let mut parts = path.split('.');
        let mut value = self.figures.get(parts.next()?)?;
        for part in parts {
            value = value.get(part)?;
        }
        Some(value).filter(|value| !value.is_null())
    }

    fn count(&self, paths: &[&str]) -> Option<u64> {
        paths.iter().find_map(|path| self.number(path)?.as_u64())
    }

    /// Its whole distribution of one kind.
    fn histogram(&self, kind: LatencyKind) -> Option<Histogram<u64>> {
        let own = self.run.report.as_ref().and_then(|report| {
            let text = report.get("histograms")?.get(kind.tag())?.as_str()?;
            hlog::decode(text).ok()
        });
        own.or_else(|| self.log.as_ref()?.total(kind).cloned())
    }

    /// Latencies of one kind that it measured, by its own word.
    fn measured(&self, kind: LatencyKind) -> u64 {
        let name = format!("{}_time.count", kind.tag());
        self.count(&[&name, &format!("hold.{name}")]).unwrap_or(0)
    }
}

/// Joins the runs and histogram logs of many hosts.
///
/// # Errors
/// When there is no run, or one twice.
pub fn merge(inputs: Vec<Input>) -> Result<Merged, MergeError> {
    let mut warnings = Vec::new();
    let (mut runs, mut logs) = (Vec::new(), Vec::new());
    for input in inputs {
        warnings.extend(input.warnings);
        match input.content {
            Content::Runs(more) => runs.extend(more),
            Content::Log(log) => logs.push(*log),
        }
    }
    if runs.is_empty() {
        return Err(MergeError::NoRun);
    }
    refuse_twins(&runs)?;
    let mut hosts: Vec<Host> = runs.into_iter().map(host).collect();
    hosts.sort_by_key(|host| host.run.field("host_index").and_then(Value::as_u64));
    for log in logs {
        give_log(&mut hosts, log, &mut warnings);
    }

    let times = times(&hosts, &mut warnings);
    compare(&hosts, &mut warnings);
    let mut joiner = Joiner {
        together: times.together == Some(true),
        partial: Vec::new(),
    };
    let objects: Vec<_> = hosts
        .iter()
        .map(|host| (host.name(), &host.figures))
        .collect();
    let mut figures = match joiner.objects("", &objects) {
        Value::Object(figures) => figures,
        _ => Map::new(),
    };
    warnings.extend(joiner.partial.into_iter().map(|field| {
        format!("{field} was not measured by all: what is told is of those that did")
    }));
    let no_percentiles = percentiles(&hosts, &mut figures);
    derive(&mut figures, times.span_s);
    let unique = |name: &str| -> Vec<String> {
        let mut all = Vec::new();
        for host in &hosts {
            let found = match host.run.field(name) {
                Some(Value::String(text)) => vec![text.clone()],
                Some(Value::Array(list)) => list
                    .iter()
                    .filter_map(|entry| entry.as_str().map(str::to_owned))
                    .collect(),
                _ => Vec::new(),
            };
            for text in found {
                if !all.contains(&text) {
                    all.push(text);
                }
            }
        }
        all
    };
    let mut endpoints = unique("endpoint");
    endpoints.extend(unique("endpoints"));
    let epoch = times.epoch;
    Ok(Merged {
        schema: SCHEMA_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        workloads: unique("workload"),
        endpoints,
        started_at: epoch.map(|epoch| format!("{epoch:.3}")),
        span_s: times.span_s,
        common_s: times.common_s,
        together: times.together,
        settings: common_settings(&hosts),
        no_percentiles,
        warnings,
        figures,
        intervals: epoch.map_or_else(Vec::new, |epoch| intervals::align(&hosts, epoch)),
        hosts: hosts.iter().map(|host| row(host, epoch)).collect(),
    })
}

fn refuse_twins(runs: &[Run]) -> Result<(), MergeError> {
    let mut seen: BTreeMap<String, &Run> = BTreeMap::new();
    for run in runs {
        let Some(started) = run.text("started_at") else {
            continue;
        };
        let mark = |name: &str| run.field(name).map(Value::to_string).unwrap_or_default();
        let identity = format!(
            "{started} {} {} {}",
            mark("host_index"),
            mark("messages"),
            mark("response_time")
        );
        // Two silent hosts may well look alike.
        if run.field("response_time").is_none() {
            continue;
        }
        if let Some(first) = seen.insert(identity, run) {
            return Err(MergeError::Twice {
                first: first.name.clone(),
                second: run.name.clone(),
            });
        }
    }
    Ok(())
}

fn host(run: Run) -> Host {
    let mut figures = match &run.report {
        Some(report) => report.clone(),
        None => intervals::summed(&run),
    };
    let duration_s = ["duration_s", "span_s"]
        .iter()
        .find_map(|name| figures.get(*name)?.as_f64())
        .or_else(|| {
            // A soak tells its two parts.
            let part = |name: &str| figures.get(name)?.get("duration_s")?.as_f64();
            Some(part("opening")? + part("hold")?)
        })
        .unwrap_or(0.0);
    figures.remove("span_s");
    figures.retain(|name, _| !NOT_JOINED.contains(&name.as_str()));
    Host {
        start: run.started_at(),
        figures,
        duration_s,
        log: None,
        run,
    }
}

/// Finds the host of a log: the one with its name, else the only one that began when it did.
fn give_log(hosts: &mut [Host], log: NamedLog, warnings: &mut Vec<String>) {
    if LatencyKind::ALL
        .iter()
        .all(|kind| log.total(*kind).is_none())
    {
        warnings.push(format!(
            "{}: the histogram log holds nothing tagged response or service; it is left out",
            log.name
        ));
        return;
    }
    let free: Vec<usize> = (0..hosts.len())
        .filter(|index| hosts[*index].log.is_none())
        .collect();
    let named = free.iter().find(|index| hosts[**index].name() == log.name);
    let started_ms = log
        .start_time
        .and_then(|start| i128::try_from(start.as_millis()).ok());
    let began_then: Vec<&usize> = free
        .iter()
        .filter(|index| {
            let start = hosts[**index].start.map(Timestamp::as_millisecond);
            match (start, started_ms) {
                (Some(start), Some(log)) => (i128::from(start) - log).abs() <= SAME_START_MS,
                _ => false,
            }
        })
        .collect();
    let found = match (named, began_then.as_slice()) {
        (Some(index), _) => Some(*index),
        (None, [index]) => Some(**index),
        _ => None,
    };
    match found {
        Some(index) => hosts[index].log = Some(log),
        None => warnings.push(format!(
            "{}: it cannot be told which host this histogram log is of, so it is left out; give it the name of \
             the host's file",
            log.name
        )),
    }
}

/// When the hosts ran.
struct Times {
    epoch: Option<Timestamp>,
    span_s: Option<f64>,
    common_s: Option<f64>,
    together: Option<bool>,
}

fn times(hosts: &[Host], warnings: &mut Vec<String>) -> Times {
    let unknown: Vec<&str> = hosts
        .iter()
        .filter(|host| host.start.is_none())
        .map(Host::name)
        .collect();
    if !unknown.is_empty() && hosts.len() > 1 {
        warnings.push(format!(
            "{}: no started_at in the report (an older version?): it cannot be told whether the hosts ran \
             together, so rates are not summed",
            listed(&unknown)
        ));
    }
    let epoch = hosts.iter().filter_map(|host| host.start).min();
    let Some(epoch) = epoch.filter(|_| unknown.is_empty()) else {
        return Times {
            epoch,
            span_s: None,
            common_s: None,
            together: (hosts.len() == 1).then_some(true),
        };
    };
    let starts: Vec<f64> = hosts
        .iter()
        .filter_map(|host| host.start_s(epoch))
        .collect();
    let ends: Vec<f64> = hosts.iter().filter_map(|host| host.end_s(epoch)).collect();
    let last_start = starts.iter().copied().fold(0.0, f64::max);
    let first_end = ends.iter().copied().fold(f64::INFINITY, f64::min);
    let span_s = ends.iter().copied().fold(0.0, f64::max);
    let common_s = (first_end - last_start).max(0.0);
    let longest = hosts.iter().map(|host| host.duration_s).fold(0.0, f64::max);
    let together = common_s >= longest * TOGETHER_RATIO_MIN;
    let (start, end) = (median(&starts), median(&ends));
    let mut remarks = Vec::new();
    for host in hosts {
        let (Some(began), Some(ended)) = (host.start_s(epoch), host.end_s(epoch)) else {
            continue;
        };
        let off = |what: &str, difference: f64| {
            let word = if difference > 0.0 { "later" } else { "earlier" };
            (difference.abs() > START_TOLERANCE_S).then(|| {
                format!(
                    "{}: {what} {:.1} s {word} than the hosts' median",
                    host.name(),
                    difference.abs()
                )
            })
        };
        remarks.extend(off("began", began - start).or_else(|| off("ended", ended - end)));
    }
    shorten(remarks, warnings);
    if !together {
        warnings.push(format!(
            "the hosts ran together for {common_s:.1} s of {span_s:.1} s only: their rates are not summed \
             (messages_per_s is null); messages_per_s_of_span is of the whole time"
        ));
    }
    Times {
        epoch: Some(epoch),
        span_s: Some(span_s),
        common_s: Some(common_s),
        together: Some(together),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The lower one of two in the middle: one of two hosts is then late, not both odd.
    sorted
        .get(sorted.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0.0)
}

/// Names the hosts that differ from what most have in a version, an endpoint or a setting.
fn compare(hosts: &[Host], warnings: &mut Vec<String>) {
    let mut remarks = Vec::new();
    let mut odd = |what: &str, value_of: &dyn Fn(&Host) -> Option<String>| {
        let mut holders: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for host in hosts {
            if let Some(value) = value_of(host) {
                holders.entry(value).or_default().push(host.name());
            }
        }
        let Some(most) = holders.values().map(Vec::len).max() else {
            return;
        };
        let usual = holders
            .iter()
            .find(|(_, names)| names.len() == most)
            .map(|(value, _)| value.clone())
            .unwrap_or_default();
        for (value, names) in &holders {
            if *value != usual {
                remarks.push(format!("{}: {what} {value}, not {usual}", listed(names)));
            }
        }
    };
    let field =
        |name: &'static str| move |host: &Host| host.run.field(name).map(|value| value.to_string());
    odd("version", &field("version"));
    odd("workload", &field("workload"));
    odd("endpoint", &field("endpoint"));
    odd("endpoints", &field("endpoints"));
    odd("--hosts", &field("hosts"));
    let build = |host: &Host| {
        let build = host.run.field("environment")?.get("build")?;
        Some(build.get("profile")?.to_string())
    };
    odd("build", &build);
    let mut names: Vec<String> = Vec::new();
    for host in hosts {
        let settings = host.run.field("settings").and_then(Value::as_object);
        for name in settings.into_iter().flat_map(Map::keys) {
            if !OWN_SETTINGS.contains(&name.as_str()) && !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    for name in &names {
        odd(&format!("setting {name}"), &|host| {
            let settings = host.run.field("settings")?;
            Some(settings.get(name).unwrap_or(&Value::Null).to_string())
        });
    }
    shorten(remarks, warnings);

    let mut indices: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for host in hosts {
        if let Some(index) = host.run.field("host_index").and_then(Value::as_u64) {
            indices.entry(index).or_default().push(host.name());
        }
    }
    for (index, names) in &indices {
        if names.len() > 1 {
            warnings.push(format!(
                "{}: all of them are host {index}: they drew the same random numbers",
                listed(names)
            ));
        }
    }
    let wanted = hosts
        .iter()
        .filter_map(|host| host.run.field("hosts")?.as_u64())
        .max();
    if let Some(wanted) = wanted {
        let missing: Vec<String> = (0..wanted)
            .filter(|index| !indices.contains_key(index))
            .map(|index| index.to_string())
            .collect();
        if !missing.is_empty() {
            let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
            warnings.push(format!(
                "of {wanted} hosts these are missing: {}",
                listed(&missing)
            ));
        }
    }
    let seeds: Vec<&str> = hosts
        .iter()
        .filter(|host| host.run.report.is_some() && host.run.field("host_index").is_none())
        .map(Host::name)
        .collect();
    if seeds.len() > 1 {
        warnings.push(format!(
            "{} have no --host-index: with one --seed they drew the same random numbers",
            listed(&seeds)
        ));
    }
}

/// Some names in words; of very many only the first.
fn listed(names: &[&str]) -> String {
    let shown = names.len().min(REMARKS_MAX);
    let mut words = names[..shown].join(", ");
    if shown < names.len() {
        words += &format!(" and {} more", names.len() - shown);
    }
    words
}

fn shorten(mut remarks: Vec<String>, warnings: &mut Vec<String>) {
    let more = remarks.len().saturating_sub(REMARKS_MAX);
    remarks.truncate(REMARKS_MAX);
    warnings.append(&mut remarks);
    if more > 0 {
        warnings.push(format!("and {more} more of that kind"));
    }
}

fn common_settings(hosts: &[Host]) -> Map<String, Value> {
    let mut all = hosts
        .iter()
        .filter_map(|host| host.run.field("settings")?.as_object());
    let Some(first) = all.next() else {
        return Map::new();
    };
    let mut common = first.clone();
    common.retain(|name, _| !OWN_SETTINGS.contains(&name.as_str()));
    for settings in all {
        common.retain(|name, value| settings.get(name) == Some(value));
    }
    common
}

/// Puts the percentiles of the joined histograms in, or says why there are none.
fn percentiles(hosts: &[Host], figures: &mut Map<String, Value>) -> Option<String> {
    let mut why = None;
    for kind in LatencyKind::ALL {
        let field = format!("{}_time", kind.tag());
        let place = match figures.get_mut("hold") {
            Some(hold) => hold.get_mut(&field),
            None => figures.get_mut(&field),
        };
        let Some(place) = place else {
            continue;
        };
        let mut joined = read::empty();
        let mut missing = Vec::new();
        for host in hosts {
            let measured = host.measured(kind);
            let histogram = host.histogram(kind);
            match histogram {
                Some(histogram) if histogram.len() >= measured => {
                    read::join(&mut joined, &histogram);
                }
                _ if measured > 0 => missing.push(host.name()),
                _ => {}
            }
        }
        if missing.is_empty() {
            if let Some(latency) = Latency::from_histogram(&joined) {
                *place = json!(latency);
            }
        } else {
            why = Some(format!(
                "percentiles cannot be joined without the histograms of {}: only counts, the mean and the \
                 largest are told",
                listed(&missing)
            ));
        }
    }
    why
}

/// What is computed from joined figures rather than joined.
fn derive(figures: &mut Map<String, Value>, span_s: Option<f64>) {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    let messages = number(figures.get("messages"));
    let sent = number(figures.get("messages_sent"));
    for (name, whole) in [("datagrams", None), ("dns", sent)] {
        if let Some(Value::Object(part)) = figures.get_mut(name) {
            let whole = whole.or_else(|| number(part.get("sent")));
            let lost = number(part.get("lost"));
            let ratio = match (lost, whole) {
                (Some(lost), Some(whole)) if whole > 0.0 => json!(lost / whole),
                _ => Value::Null,
            };
            part.insert("loss_ratio".into(), ratio);
        }
    }
    if let Some(Value::Object(cpu)) = figures.get_mut("cpu") {
        for side in ["client", "server"] {
            let Some(Value::Object(side)) = cpu.get_mut(side) else {
                continue;
            };
            let get = |name: &str| number(side.get(name));
            let total = get("user_s")
                .zip(get("system_s"))
                .map(|(user, system)| user + system);
            let per_message = total
                .zip(messages.filter(|messages| *messages > 0.0))
                .map(|(total, messages)| total * 1e9 / messages);
            let share = get("cpus_busy")
                .zip(get("cpus").filter(|cpus| *cpus > 0.0))
                .map(|(busy, cpus)| busy / cpus * 100.0);
            side.insert("per_message_ns".into(), json!(per_message));
            side.insert("share_percent".into(), json!(share));
        }
    }
    if let (Some(messages), Some(span)) = (messages, span_s.filter(|span| *span > 0.0)) {
        figures.insert("messages_per_s_of_span".into(), json!(messages / span));
    }
}

fn row(host: &Host, epoch: Option<Timestamp>) -> HostRow {
    let errors = match host.number("errors") {
        Some(Value::Object(kinds)) => Some(kinds.values().filter_map(Value::as_u64).sum()),
        _ => {
            let failed = host.count(&["connections.failed"]);
            failed.map(|failed| failed + host.count(&["connections.lost"]).unwrap_or(0))
        }
    };
    let messages = host.count(&["messages", "hold.messages"]);
    let rate = ["messages_per_s", "hold.messages_per_s"]
        .iter()
        .find_map(|path| host.number(path)?.as_f64());
    let response = ["response_time", "hold.response_time"]
        .iter()
        .find_map(|path| host.number(path).cloned());
    HostRow {
        name: host.name().to_owned(),
        host_index: host.run.field("host_index").and_then(Value::as_u64),
        version: host.run.text("version").map(str::to_owned),
        complete: host.run.report.is_some(),
        started_at: host.run.text("started_at").map(str::to_owned),
        offset_s: epoch.and_then(|epoch| host.start_s(epoch)),
        duration_s: host.duration_s,
        messages,
        messages_per_s: rate,
        errors,
        lost: host.count(&["datagrams.lost", "dns.lost", "lost"]),
        wrong_bytes: host.count(&["wrong_bytes", "hold.wrong_bytes"]),
        response_time: response.unwrap_or(Value::Null),
        client_limited: host
            .number("limits.client_limited")
            .and_then(Value::as_str)
            .map(str::to_owned),
    }
}

#[cfg(test)]
mod tests;
