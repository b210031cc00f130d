//! The report for people: one screen of aligned text at the end of a run.
//!
//! What would mislead is said in words (the client was the limit, the machine was stolen from,
//! nothing was compared, a debug build). Rounded figures: programs read [`super::json`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{
    Cpu, CpuUse, Datagrams, Dns, Environment, Interval, Latency, Limits, MULTICAST, Report,
};
use crate::units::{
    format_byte_rate, format_bytes, format_count, format_duration, format_latency_ns,
    format_percent, format_rate,
};

/// Width of the column of labels.
const LABEL_WIDTH: usize = 15;
/// Width of one latency: `1234.5 ms` and a blank.
const LATENCY_WIDTH: usize = 10;
/// Stolen or foreign CPU time below this is noise of the sampling (1 tick in 1000).
const NOISE_PERCENT: f64 = 0.1;
/// More kinds of errors than this do not fit on one screen.
const KINDS_MAX: usize = 6;

/// The whole report; ends with a line end.
pub fn render(report: &Report) -> String {
    let mut screen = Screen {
        text: String::new(),
    };
    screen.raw(&headline(report));
    screen.raw("");
    totals(&mut screen, report);
    if let Some(datagrams) = &report.datagrams {
        let label = if report.workload == MULTICAST {
            "deliveries"
        } else {
            "datagrams"
        };
        screen.line(label, &datagrams_words(datagrams));
    }
    screen.line("connections", &connections_words(report));
    screen.line("errors", &kinds_words(&report.errors));
    match &report.dns {
        None => screen.line("content", &content_words(report)),
        Some(dns) => queries(&mut screen, report, dns),
    }
    screen.raw("");
    latencies(&mut screen, report);
    screen.raw("");
    cpu(&mut screen, &report.cpu);
    screen.raw("");
    for words in limits_words(&report.limits) {
        screen.line("limits", &words);
    }
    screen.line("machine", &machine_words(&report.environment));
    screen.line("system", &system_words(&report.environment));
    screen.line("build", &build_words(&report.environment));
    if !report.settings.is_empty() {
        screen.line("settings", &settings_words(report));
    }
    screen.text
}

struct Screen {
    text: String,
}

impl Screen {
    fn raw(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn line(&mut self, label: &str, words: &str) {
        self.raw(&format!("  {label:<LABEL_WIDTH$} {words}"));
    }
}

fn headline(report: &Report) -> String {
    let duration = format_duration(Duration::from_secs_f64(report.duration_s.max(0.0)));
    let mut text = format!("ringmill {}: ", report.version);
    if !report.workload.is_empty() {
        let _ = write!(text, "{} on {}, ", report.workload, report.endpoint);
    }
    let _ = write!(text, "{duration} measured");
    if report.warmup_s > 0.0 {
        let warmup = format_duration(Duration::from_secs_f64(report.warmup_s));
        let _ = write!(text, " after {warmup} of warm-up");
    }
    text
}

fn totals(screen: &mut Screen, report: &Report) {
    let messages = format_count(report.messages);
    let bytes = format_bytes(report.bytes);
    let width = messages.len().max(bytes.len());
    let mut rate = format_rate(report.messages_per_s);
    if let Some((slowest, fastest)) = extremes(&report.intervals) {
        let _ = write!(
            rate,
            "   (intervals: {} to {})",
            format_rate(slowest),
            format_rate(fastest)
        );
    }
    screen.line("messages", &format!("{messages:>width$}   {rate}"));
    let rate = format_byte_rate(report.bytes_per_s);
    screen.line("received", &format!("{bytes:>width$}   {rate}"));
    if report.messages_sent > report.messages && report.workload != MULTICAST {
        let unanswered = report.messages_sent - report.messages;
        screen.line(
            "unanswered",
            &format!("{:>width$}", format_count(unanswered)),
        );
    }
}

/// Slowest and fastest interval; with one interval there is nothing to compare.
fn extremes(intervals: &[Interval]) -> Option<(f64, f64)> {
    if intervals.len() < 2 {
        return None;
    }
    let rates = intervals.iter().map(|interval| interval.messages_per_s);
    Some((
        rates.clone().fold(f64::INFINITY, f64::min),
        rates.fold(0.0, f64::max),
    ))
}

fn datagrams_words(datagrams: &Datagrams) -> String {
    let share = match datagrams.loss_ratio {
        Some(ratio) => format!(" ({})", format_percent(ratio * 100.0)),
        None => String::new(),
    };
    format!(
        "{} sent, {} received, {} lost{share}, {} duplicated, {} reordered, {} late",
        format_count(datagrams.sent),
        format_count(datagrams.received),
        format_count(datagrams.lost),
        format_count(datagrams.duplicated),
        format_count(datagrams.reordered),
        format_count(datagrams.late),
    )
}

/// What a DNS run adds.
fn queries(screen: &mut Screen, report: &Report, dns: &Dns) {
    let count = format_count;
    let rates = format!(
        "{} offered ({}), {} sent ({}), {} not sent",
        count(dns.offered),
        format_rate(dns.offered_per_s),
        count(report.messages_sent),
        format_rate(dns.sent_per_s),
        count(dns.unsent),
    );
    screen.line("queries", &rates);
    let mut answers: Vec<_> = dns.response_codes.iter().collect();
    answers.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut kinds: Vec<_> = answers
        .iter()
        .map(|(code, number)| format!("{} {code}", count(**number)))
        .collect();
    if dns.echoed > 0 {
        kinds.push(format!(
            "{} queries echoed, taken as answers",
            count(dns.echoed)
        ));
    }
    if dns.truncated > 0 {
        kinds.push(format!("{} of them truncated", count(dns.truncated)));
    }
    if kinds.is_empty() {
        kinds.push("none".to_owned());
    }
    screen.line("answers", &kinds.join(", "));
    let share = match dns.loss_ratio {
        Some(ratio) => format!(" ({})", format_percent(ratio * 100.0)),
        None => String::new(),
    };
    let matching = format!(
        "{} lost{share}, {} late, {} duplicated, {} unknown, {} malformed",
        count(dns.lost),
        count(dns.late),
        count(dns.duplicated),
        count(dns.unknown),
        count(dns.malformed),
    );
    screen.line("matching", &matching);
    let opening = Duration::from_secs_f64(dns.opening_s.max(0.0));
    let opened = format!(
        "{} in {} ({})",
        count(dns.opened),
        format_duration(opening),
        format_rate(dns.opened_per_s)
    );
    screen.line("opening", &opened);
    if let (Some(recorded), Some(dropped)) = (dns.recorded, dns.records_dropped) {
        let lines = format!("{} lines, {} dropped", count(recorded), count(dropped));
        screen.line("record", &lines);
    }
}

fn connections_words(report: &Report) -> String {
    let connections = &report.connections;
    let mut words = format!(
        "{} opened, {} failed",
        format_count(connections.opened),
        format_count(connections.failed)
    );
    if !connections.closed.is_empty() {
        let _ = write!(
            words,
            "; closed early: {}",
            kinds_words(&connections.closed)
        );
    }
    words
}

/// Counts by kind, largest first.
fn kinds_words(kinds: &BTreeMap<String, u64>) -> String {
    let mut kinds: Vec<_> = kinds.iter().filter(|(_, count)| **count > 0).collect();
    if kinds.is_empty() {
        return "none".to_owned();
    }
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let rest: u64 = kinds.iter().skip(KINDS_MAX).map(|(_, count)| **count).sum();
    let mut words: Vec<_> = kinds
        .iter()
        .take(KINDS_MAX)
        .map(|(kind, count)| format!("{} {kind}", format_count(**count)))
        .collect();
    if rest > 0 {
        words.push(format!("{} of other kinds", format_count(rest)));
    }
    words.join(", ")
}

fn content_words(report: &Report) -> String {
    match report.wrong_bytes {
        None => "not compared".to_owned(),
        Some(0) if report.bytes == 0 => "nothing came to compare".to_owned(),
        Some(0) => "every byte compared, none wrong".to_owned(),
        Some(wrong) => format!("{} WRONG BYTES", format_count(wrong)),
    }
}

fn latencies(screen: &mut Screen, report: &Report) {
    let cells = |cells: [String; 7]| {
        cells
            .iter()
            .map(|cell| format!("{cell:>LATENCY_WIDTH$}"))
            .collect::<String>()
    };
    if report.response_time.is_none() && report.service_time.is_none() {
        let why = match report.workload == MULTICAST && report.messages > 0 {
            true => "the sender has another clock",
            false => "no message was answered",
        };
        screen.line("latency", &format!("not measured: {why}"));
        return;
    }
    let heads = ["p50", "p90", "p99", "p99.9", "p99.99", "max", "mean"];
    screen.line("latency", &cells(heads.map(str::to_owned)));
    let mut row = |label, latency: &Option<Latency>| match latency {
        None => screen.line(label, "not measured"),
        Some(l) => {
            let values = [
                l.p50_ns,
                l.p90_ns,
                l.p99_ns,
                l.p99_9_ns,
                l.p99_99_ns,
                l.max_ns,
            ];
            let [p50, p90, p99, p99_9, p99_99, max] = values.map(|ns| format_latency_ns(ns as f64));
            let mean = format_latency_ns(l.mean_ns);
            screen.line(label, &cells([p50, p90, p99, p99_9, p99_99, max, mean]));
        }
    };
    row("response time", &report.response_time);
    row("service time", &report.service_time);
    if let Some(dns) = &report.dns {
        row("send lateness", &dns.lateness);
    }
}

fn cpu(screen: &mut Screen, cpu: &Cpu) {
    screen.line(
        "CPU",
        "      user    system      busy of CPUs   per message",
    );
    let mut row = |label, cpu: &CpuUse| {
        let per_message = cpu.per_message_ns.map_or("-".to_owned(), format_latency_ns);
        let share = cpu
            .share_percent
            .map_or(String::new(), |share| format!("{share:.0} %"));
        screen.line(
            label,
            &format!(
                "{:>8.2} s{:>8.2} s{:>10.2} of {:<4}{per_message:>14}   {share}",
                cpu.user_s, cpu.system_s, cpu.cpus_busy, cpu.cpus
            ),
        );
    };
    row("client", &cpu.client);
    match &cpu.server {
        Some(server) => row("server", server),
        None => screen.line(
            "server",
            "not known: it is not ours, or did not answer the query",
        ),
    }
}

fn limits_words(limits: &Limits) -> Vec<String> {
    let mut words = vec![match &limits.client_limited {
        Some(reason) => format!("the client was the limit: {reason}"),
        None => "the client was not the limit".to_owned(),
    }];
    let shares: Vec<_> = [
        (limits.steal_percent, "stolen by the hypervisor"),
        (limits.other_busy_percent, "used by other processes"),
    ]
    .into_iter()
    .filter_map(|(percent, what)| {
        percent
            .filter(|&p| p >= NOISE_PERCENT)
            .map(|p| format!("{} {what}", format_percent(p)))
    })
    .collect();
    words.push(
        match (
            shares.is_empty(),
            limits.steal_percent,
            limits.other_busy_percent,
        ) {
            (false, ..) => format!("machine: {}", shares.join(", ")),
            (true, Some(_), Some(_)) => "machine: quiet, nothing stolen".to_owned(),
            (true, ..) => "machine: not known whether others used it".to_owned(),
        },
    );
    words
}

fn machine_words(environment: &Environment) -> String {
    let count = |count: Option<u32>, one: &str| match count {
        Some(1) => Some(format!("1 {one}")),
        Some(count) => Some(format!("{count} {one}s")),
        None => None,
    };
    let usable = environment
        .threads_usable
        .filter(|usable| environment.threads != Some(*usable))
        .map(|usable| format!("{usable} usable"));
    joined(&[
        environment.cpu_model.clone(),
        count(environment.cores, "core"),
        count(environment.threads, "thread"),
        usable,
        environment.memory_bytes.map(format_bytes),
        environment
            .virtualisation
            .as_deref()
            .map(|name| match name {
                "yes" => "virtual".to_owned(),
                name => format!("virtual ({name})"),
            }),
    ])
}

fn system_words(environment: &Environment) -> String {
    let in_words = |name| format!("in a container ({name})");
    joined(&[
        environment
            .kernel
            .as_deref()
            .map(|kernel| format!("Linux {kernel}")),
        environment.distribution.clone(),
        environment.container.as_deref().map(in_words),
    ])
}

fn joined(parts: &[Option<String>]) -> String {
    let words: Vec<_> = parts.iter().flatten().map(String::as_str).collect();
    if words.is_empty() {
        "not known".to_owned()
    } else {
        words.join(", ")
    }
}

fn build_words(environment: &Environment) -> String {
    let build = &environment.build;
    let mut words = format!("ringmill {}, {}", build.version, build.profile);
    if let Some(rustc) = &build.rustc {
        let _ = write!(words, ", {rustc}");
    }
    if build.profile == "debug" {
        words.push_str(": a debug build, its figures mean nothing");
    }
    words
}

fn settings_words(report: &Report) -> String {
    let plain = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let pairs = report
        .settings
        .iter()
        .map(|(name, value)| format!("{name} {}", plain(value)));
    pairs.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn squeeze(line: &str) -> String {
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_tcp_run_on_one_screen() {
        let text = render(&testing::tcp());
        let expected = "\
ringmill 0.1.0: echo on tcp://:7000, 10.0 s measured after 1.00 s of warm-up

  messages        3,412,345   341.2 k/s   (intervals: 330.1 k/s to 352.9 k/s)
  received        104.1 MiB   10.4 MiB/s
  unanswered             55
  connections     100 opened, 2 failed; closed early: 3 peer closed
  errors          2 connection refused
  content         every byte compared, none wrong

  latency                p50       p90       p99     p99.9    p99.99       max      mean
  response time      24.7 µs   40.0 µs   91.2 µs   1.02 ms   2.47 ms   10.9 ms   26.9 µs
  service time       12.3 µs   20.0 µs   45.6 µs  512.0 µs   1.23 ms   5.43 ms   13.5 µs

  CPU                   user    system      busy of CPUs   per message
  client              1.50 s    8.40 s      0.99 of 1          2.90 µs   99 %
  server              0.20 s    7.80 s      0.80 of 1          2.34 µs   80 %

  limits          the client was the limit: its CPU was 99 % busy
  limits          machine: 3.20 % stolen by the hypervisor, 0.400 % used by other processes
  machine         Example CPU 9000 @ 3.00GHz, 1 core, 2 threads, 4.00 GiB, virtual (kvm)
  system          Linux 6.12.1, Debian GNU/Linux 12 (bookworm)
  build           ringmill 0.1.0, release, rustc 1.88.0
  settings        connections 100, depth 4, size 32 B
";
        assert_eq!(text, expected, "\n{text}");
        assert!(text.lines().count() <= 24, "one screen is 24 lines");
    }

    #[test]
    fn a_dns_run_tells_what_was_asked_and_what_came_back() {
        let dns = Dns {
            offered: 1_000_000,
            offered_per_s: 100_000.0,
            sent_per_s: 90_000.0,
            unsent: 100,
            lateness: Some(testing::latency(1)),
            lost: 12,
            loss_ratio: Some(0.000_012),
            response_codes: [("NOERROR".to_owned(), 900), ("NXDOMAIN".to_owned(), 1_000)].into(),
            echoed: 7,
            opening_s: 0.5,
            opened: 100,
            opened_per_s: 200.0,
            recorded: Some(2_000),
            records_dropped: Some(3),
            ..Dns::default()
        };
        let text = render(&Report {
            dns: Some(dns),
            ..testing::tcp()
        });
        for words in [
            "queries 1,000,000 offered (100.0 k/s), 3,412,400 sent (90.0 k/s), 100 not sent",
            "answers 1,000 NXDOMAIN, 900 NOERROR, 7 queries echoed, taken as answers",
            "matching 12 lost (0.0012 %), 0 late, 0 duplicated, 0 unknown, 0 malformed",
            "opening 100 in 500.0 ms (200.0 /s)",
            "record 2,000 lines, 3 dropped",
            "send lateness 12.3 µs",
        ] {
            let found = text.lines().any(|line| squeeze(line).starts_with(words));
            assert!(found, "no line {words:?} in\n{text}");
        }
        assert!(
            !text.contains("content"),
            "nothing is compared byte by byte"
        );
    }

    #[test]
    fn honest_words() {
        let udp = render(&testing::udp());
        let silent = render(&testing::silent());
        let quiet = Report {
            limits: Limits {
                client_limited: None,
                steal_percent: Some(0.0),
                other_busy_percent: Some(0.02),
            },
            wrong_bytes: Some(12),
            ..testing::tcp()
        };
        let mut debug = testing::tcp();
        debug.environment.build.profile = "debug".into();
        for (text, words) in [
            (
                &udp,
                "1,000,000 sent, 999,880 received, 123 lost (0.012 %), 3 duplicated, 7 reordered, 1 late",
            ),
            (&udp, "content not compared"),
            (&udp, "errors none"),
            (&udp, "server not known"),
            (&udp, "not known whether others used it"),
            (&silent, "latency not measured: no message was answered"),
            (&silent, "0 0.00 /s"),
            (&render(&quiet), "12 WRONG BYTES"),
            (&render(&quiet), "machine: quiet, nothing stolen"),
            (&render(&quiet), "the client was not the limit"),
            (&render(&debug), "its figures mean nothing"),
        ] {
            assert!(squeeze(text).contains(words), "{words:?} is not in\n{text}");
        }
    }

    #[test]
    fn many_kinds_of_errors_stay_short() {
        let kinds = (0..10)
            .map(|kind| (format!("kind{kind}"), 10 - kind))
            .collect();
        let words = kinds_words(&kinds);
        assert!(words.starts_with("10 kind0, 9 kind1"), "{words}");
        assert!(words.ends_with("10 of other kinds"), "{words}");
    }
}
