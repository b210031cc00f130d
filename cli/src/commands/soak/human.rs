//! A soak for people: a table that grows by a row now and then, and the report at its end.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::memory::Cost;
use super::report::SoakReport;
use crate::report::Latency;
use crate::units::{format_bytes, format_count, format_duration, format_latency_ns};

/// The names of the columns come again after so many rows.
const ROWS_PER_HEAD: usize = 20;

/// One look at a running soak.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// Since the begin of the opening.
    pub(super) at: Duration,
    /// What it does and for how long yet.
    pub(super) doing: String,
    pub(super) live: u64,
    pub(super) opening: u64,
    pub(super) opened_per_s: f64,
    pub(super) failed: u64,
    pub(super) lost: u64,
    pub(super) churned: u64,
    pub(super) messages_per_s: f64,
    pub(super) response: Option<Latency>,
    pub(super) client_bytes: Option<i64>,
    pub(super) server_bytes: Option<i64>,
    pub(super) kernel_bytes: Option<i64>,
}

const HEAD: &str = "    time       live opening  opened/s  failed    lost  churned      msg/s       p50       p99  this end    server    kernel  ";

impl Row {
    fn line(&self) -> String {
        let bytes = |bytes: Option<i64>| bytes.map_or_else(|| "-".into(), format_growth);
        let time = |of: fn(&Latency) -> u64| {
            let response = self.response.as_ref();
            response.map_or_else(|| "-".into(), |r| format_latency_ns(of(r) as f64))
        };
        format!(
            "{:>6.0} s {:>10} {:>7} {:>9.0} {:>7} {:>7} {:>8} {:>10.0} {:>9} {:>9} {:>9} {:>9} {:>9}  {}",
            self.at.as_secs_f64(),
            self.live,
            self.opening,
            self.opened_per_s,
            self.failed,
            self.lost,
            self.churned,
            self.messages_per_s,
            time(|r| r.p50_ns),
            time(|r| r.p99_ns),
            bytes(self.client_bytes),
            bytes(self.server_bytes),
            bytes(self.kernel_bytes),
            self.doing,
        )
    }
}

/// What is shown while it runs; nothing but notes when the output is JSON.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    json: bool,
    rows: usize,
}

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg}");
            bar.set_style(style.expect("a constant template"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, json, rows: 0 }
    }

    /// A line that stays.
    pub(super) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Something to see in a hurry; shown on a terminal only.
    pub(super) fn now(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// One more row of the table.
    pub(super) fn row(&mut self, row: &Row) {
        if self.json {
            return;
        }
        if self.rows.is_multiple_of(ROWS_PER_HEAD) {
            self.print(HEAD);
        }
        self.rows += 1;
        self.print(&row.line());
    }

    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| write_line(line)),
            None => write_line(line),
        }
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A reader that has gone is no reason to end a soak.
pub(super) fn write_line(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn times(name: &str, time: Option<&Latency>) -> String {
    let Some(time) = time else {
        return format!("  {name}: none\n");
    };
    let ns = |ns: u64| format_latency_ns(ns as f64);
    format!(
        "  {name}: p50 {}, p90 {}, p99 {}, p99.9 {}, max {}\n",
        ns(time.p50_ns),
        ns(time.p90_ns),
        ns(time.p99_ns),
        ns(time.p99_9_ns),
        ns(time.max_ns)
    )
}

fn causes<'a>(by: impl IntoIterator<Item = (&'a &'static str, &'a u64)>) -> String {
    let words: Vec<_> = by
        .into_iter()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    if words.is_empty() {
        String::new()
    } else {
        format!(" ({})", words.join(", "))
    }
}

/// Bytes that may have become fewer.
fn format_growth(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", format_bytes(bytes.unsigned_abs()))
}

fn cost(name: &str, cost: Option<&Cost>) -> String {
    let Some(cost) = cost else {
        return format!("  {name}: not known\n");
    };
    let mut text = match (cost.per_connection_bytes, cost.fixed_bytes) {
        (Some(each), Some(fixed)) => format!(
            "  {name}: {each:.0} bytes per connection and {} fixed",
            format_growth(fixed as i64)
        ),
        _ => format!("  {name}: {}", format_growth(cost.full_bytes)),
    };
    if let Some(growth) = cost.growth_bytes_per_hour {
        let sign = if growth < 0.0 { "" } else { "+" };
        let _ = write!(text, ", {sign}{} per hour", format_growth(growth as i64));
    }
    text.push('\n');
    text
}

/// The report as text.
pub(super) fn render(report: &SoakReport) -> String {
    let (opening, hold, connections) = (&report.opening, &report.hold, &report.connections);
    let mut text = format!(
        "\nOpening: {} of {} connections in {:.1} s, {} a second\n",
        format_count(opening.live),
        format_count(opening.wanted),
        opening.duration_s,
        format_count(opening.per_s as u64),
    );
    if let Some(seconds) = opening.server_duration_s {
        let _ = writeln!(text, "  the server had accepted all after {seconds:.0} s");
    }
    text += &times("connect time", opening.connect_time.as_ref());
    let missing = match hold.missing_at_end {
        0 => String::new(),
        count => format!(", {} missing at its end", format_count(count)),
    };
    let _ = writeln!(
        text,
        "Hold: {}, {} to {} live at once{missing}",
        format_duration(Duration::from_secs_f64(hold.duration_s.round())),
        format_count(hold.live_min),
        format_count(hold.live_max),
    );
    let _ = writeln!(
        text,
        "  messages: {} sent, {} came back right, {:.0}/s; {} wrong bytes, {} unanswered, {} not sent{}",
        hold.messages_sent,
        hold.messages,
        hold.messages_per_s,
        hold.wrong_bytes,
        hold.unanswered,
        hold.unsent.values().sum::<u64>(),
        causes(&hold.unsent),
    );
    text += &times("response time", hold.response_time.as_ref());
    let _ = writeln!(
        text,
        "Connections: {} opened, {} failed{}, {} lost{}, {} churned by this end, {} churns missed",
        connections.opened,
        connections.failed,
        causes(&connections.failed_by),
        connections.lost,
        causes(&connections.lost_by),
        connections.churned,
        connections.churn_missed,
    );
    if let Some(time_wait) = connections.time_wait {
        let _ = writeln!(
            text,
            "  in TIME_WAIT on this host at the end of the hold: {time_wait}"
        );
    }
    let memory = &report.memory;
    text += "Memory:\n";
    text += &cost("this end", memory.client.as_ref());
    text += &cost("server", memory.server.as_ref());
    let ends = match memory.kernel_has_both_ends {
        true => "kernel, both ends",
        false => "kernel, this end",
    };
    text += &cost(ends, memory.kernel.as_ref());
    let _ = writeln!(text, "    ({})", memory.kernel_source);
    for finding in &report.kernel {
        let _ = writeln!(
            text,
            "Kernel: {} {}: {}; {}",
            finding.name, finding.count, finding.cause, finding.helps
        );
    }
    if report.failures.is_empty() {
        text += "Passed.\n";
    } else {
        let _ = writeln!(text, "Failed: {}.", report.failures.join("; "));
    }
    text
}
