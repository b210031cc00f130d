//! `ringmill doctor`: what this host allows, what ringmill will use, what to change and how.
//!
//! Renders [`Host`] and its advice for people or as JSON. It decides nothing: readings and judgement
//! come from the engine, so that a server's log and this page never disagree, and the rules for a
//! firewall from [`Firewall`].

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

use ringmill_engine::host::{Advice, Host, Limit, Reading, RingAccess, Severity, Topic, advice};
use serde::Serialize;

use crate::firewall::Firewall;

/// Something a driver can do here or not, and what it does instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Name in the driver's words, for example `multishot receive`.
    pub name: String,
    /// Whether it works here.
    pub available: bool,
    /// What is done where it does not work.
    pub otherwise: String,
}

/// Prints the whole story of this host to standard output.
///
/// `features` are those that the driver itself probed; they are shown after the operations of the
/// ring; `firewall` is shown where it is wanted. Exits 0 whatever was found: the advice is the result.
///
/// # Errors
/// Standard output cannot be written; a reader that went away is none.
pub fn run(
    json: bool,
    features: &[Feature],
    firewall: Option<&Firewall>,
) -> anyhow::Result<ExitCode> {
    let host = Host::read();
    let findings = advice(&host);
    let text = if json {
        let document = Document {
            host: &host,
            driver: driver(&host),
            features,
            advice: &findings,
            firewall,
        };
        serde_json::to_string_pretty(&document)? + "\n"
    } else {
        let style = Style::of_stdout();
        let page = render(&host, &findings, features, style);
        page + &firewall.map_or_else(String::new, |firewall| render_firewall(firewall, style))
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    host: &'a Host,
    driver: &'static str,
    features: &'a [Feature],
    advice: &'a [Advice],
    #[serde(skip_serializing_if = "Option::is_none")]
    firewall: Option<&'a Firewall>,
}

/// The driver that `--driver auto` takes here.
fn driver(host: &Host) -> &'static str {
    if host.allows_rings() {
        "uring"
    } else {
        "epoll"
    }
}

/// How marks look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Coloured signs, for a terminal.
    Terminal,
    /// Nothing but ASCII, for files, pipes and whoever set NO_COLOR.
    Plain,
}

impl Style {
    /// By the kind of standard output and by NO_COLOR (no-color.org: set and not empty).
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !refused {
            Self::Terminal
        } else {
            Self::Plain
        }
    }

    fn mark(self, mark: Mark) -> &'static str {
        match (self, mark) {
            (_, Mark::None) => " ",
            (Self::Terminal, Mark::Good) => "\x1b[32m✓\x1b[0m",
            (Self::Terminal, Mark::Limits) => "\x1b[33m!\x1b[0m",
            (Self::Terminal, Mark::Serious) => "\x1b[31m✗\x1b[0m",
            (Self::Plain, Mark::Good) => "+",
            (Self::Plain, Mark::Limits) => "!",
            (Self::Plain, Mark::Serious) => "x",
        }
    }

    fn heading(self, title: &str) -> String {
        match self {
            Self::Terminal => format!("\x1b[1m{title}\x1b[0m"),
            Self::Plain => title.to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// A fact, neither good nor bad.
    None,
    Good,
    Limits,
    Serious,
}

impl From<Severity> for Mark {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Note | Severity::Warning => Self::Limits,
            Severity::Serious => Self::Serious,
        }
    }
}

/// Columns of the names; the longest is a sysctl.
const NAME_COLUMNS: usize = 30;

/// The page as text.
pub fn render(host: &Host, findings: &[Advice], features: &[Feature], style: Style) -> String {
    let mut page = Page {
        text: String::new(),
        style,
        findings,
    };
    page.machine(host);
    page.rings(host, features);
    page.limits(host);
    page.network(host);
    page.summary(host);
    page.advice();
    match style {
        Style::Terminal => page.text,
        Style::Plain => page.text.replace('µ', "u").replace('…', "..."),
    }
}

/// What a firewall must let through to a capacity server, as a section of its own.
pub fn render_firewall(firewall: &Firewall, style: Style) -> String {
    let mut page = Page {
        text: "\n".to_owned(),
        style,
        findings: &[],
    };
    page.firewall(firewall);
    page.text
}

struct Page<'a> {
    text: String,
    style: Style,
    findings: &'a [Advice],
}

impl Page<'_> {
    fn section(&mut self, title: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let title = self.style.heading(title);
        self.line(format_args!("{title}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn row(&mut self, mark: Mark, name: &str, value: impl Display) {
        let mark = self.style.mark(mark);
        self.line(format_args!("  {mark} {name:<NAME_COLUMNS$}{value}"));
    }

    /// A fact without judgement.
    fn fact(&mut self, name: &str, value: impl Display) {
        self.row(Mark::None, name, value);
    }

    /// A reading that is good unless there is advice about it.
    fn judged<T>(&mut self, topic: Topic, name: &str, reading: &Reading<T>, value: impl Display) {
        let mark = match self.findings.iter().find(|finding| finding.topic == topic) {
            Some(finding) => finding.severity.into(),
            None if reading.value.is_some() => Mark::Good,
            None => Mark::None,
        };
        self.row(mark, name, value);
    }

    fn judged_plainly<T: Display>(&mut self, topic: Topic, name: &str, reading: &Reading<T>) {
        self.judged(topic, name, reading, reading);
    }

    fn machine(&mut self, host: &Host) {
        let machine = &host.machine;
        self.section("Machine");
        self.judged_plainly(Topic::Kernel, "kernel", &machine.kernel);
        self.fact("CPU", &machine.cpu_model);
        self.fact(
            "CPUs",
            shown(&machine.cpus_allowed, |allowed| {
                format!("{allowed} for this process, {} online", machine.cpus_online)
            }),
        );
        self.judged(
            Topic::CpuQuota,
            "CPU quota",
            &host.control_group.cpu_milli,
            shown(&host.control_group.cpu_milli, |limit| match limit {
                Limit::At(milli) => format!("{}.{:03} CPUs", milli / 1000, milli % 1000),
                Limit::Unlimited => "none".to_owned(),
            }),
        );
        self.judged(
            Topic::Governor,
            "frequency governor",
            &machine.governors,
            shown(&machine.governors, |names| names.join(", ")),
        );
        self.fact("memory", shown(&machine.memory_bytes, |bytes| size(*bytes)));
        self.judged(
            Topic::MemoryLimit,
            "memory limit",
            &host.control_group.memory_bytes,
            shown(&host.control_group.memory_bytes, size_limit),
        );
        self.fact("virtualisation", &machine.virtualisation);
        self.judged(
            Topic::StolenTime,
            "stolen CPU time since boot",
            &machine.steal_percent,
            shown(&machine.steal_percent, |percent| format!("{percent:.2} %")),
        );
        self.fact(
            "timer slack",
            shown(&machine.timer_slack_ns, |slack_ns| {
                format!("{} µs; ringmill sets its own", slack_ns / 1000)
            }),
        );
    }

    fn rings(&mut self, host: &Host, features: &[Feature]) {
        let rings = &host.rings;
        self.section("io_uring");
        match &rings.access {
            RingAccess::Allowed => self.row(Mark::Good, "io_uring_setup", "works"),
            RingAccess::Refused { error, .. } => self.row(Mark::Serious, "io_uring_setup", error),
        }
        self.fact("kernel.io_uring_disabled", &rings.disabled);
        self.fact("kernel.io_uring_group", &rings.group);
        self.fact("seccomp", shown(&host.privileges.seccomp, word));
        self.fact(
            "container",
            host.privileges
                .container
                .map_or_else(|| "no sign of one".to_owned(), |container| word(&container)),
        );
        self.fact(
            "SINGLE_ISSUER DEFER_TASKRUN",
            shown(&rings.defer_taskrun, |works| yes(*works).to_owned()),
        );
        if let Some(operations) = &rings.operations.value {
            let missing: Vec<_> = operations
                .iter()
                .filter(|operation| !operation.supported)
                .map(|operation| operation.name)
                .collect();
            if missing.is_empty() {
                self.row(
                    Mark::Good,
                    "operations",
                    format_args!("all {} that ringmill may use", operations.len()),
                );
            } else {
                self.row(
                    Mark::Limits,
                    "operations",
                    format_args!("without {}", missing.join(", ")),
                );
            }
        }
        for feature in features {
            if feature.available {
                self.row(Mark::Good, &feature.name, "yes");
            } else {
                self.row(
                    Mark::Limits,
                    &feature.name,
                    format_args!("no; {}", feature.otherwise),
                );
            }
        }
    }

    fn limits(&mut self, host: &Host) {
        let files = &host.files;
        self.section("Limits of the process");
        self.judged_plainly(Topic::Files, "open files", &files.soft);
        self.fact("  may be raised to", &files.hard);
        self.fact("fs.nr_open", &files.nr_open);
        self.fact("fs.file-max", &files.file_max);
        self.judged(
            Topic::LockedMemory,
            "locked memory",
            &files.memlock_bytes,
            shown(&files.memlock_bytes, size_limit),
        );
        self.fact(
            "capabilities",
            shown(&host.privileges.capabilities, |names| notable(names)),
        );
    }

    fn network(&mut self, host: &Host) {
        let buffers = &host.socket_buffers;
        let network = &host.network;
        self.section("Network");
        self.judged(
            Topic::Gso,
            "UDP GSO",
            &host.datagrams.gso_segments_max,
            shown(&host.datagrams.gso_segments_max, |segments| {
                format!("up to {segments} segments a send")
            }),
        );
        self.judged(
            Topic::Gro,
            "UDP GRO",
            &host.datagrams.gro_segments,
            shown(&host.datagrams.gro_segments, |segments| {
                format!("{segments} segments in one receive on loopback")
            }),
        );
        for (topic, name, ceiling, granted) in [
            (
                Topic::ReceiveBuffer,
                "net.core.rmem_max",
                &buffers.rmem_max_bytes,
                &buffers.receive_granted_bytes,
            ),
            (
                Topic::SendBuffer,
                "net.core.wmem_max",
                &buffers.wmem_max_bytes,
                &buffers.send_granted_bytes,
            ),
        ] {
            let asked = size(buffers.asked_bytes);
            let granted = shown(granted, |bytes| size(*bytes));
            self.judged(
                topic,
                name,
                ceiling,
                format_args!(
                    "{}; asked for {asked}, granted {granted}",
                    shown(ceiling, |bytes| size(*bytes))
                ),
            );
        }
        self.judged(
            Topic::Ports,
            "ports for clients",
            &network.local_ports,
            shown(&network.local_ports, |ports| {
                format!("{} ({}-{})", ports.usable, ports.first, ports.last)
            }),
        );
        self.judged_plainly(Topic::AcceptQueue, "net.core.somaxconn", &network.somaxconn);
        self.judged_plainly(
            Topic::SynQueue,
            "net.ipv4.tcp_max_syn_backlog",
            &network.syn_backlog,
        );
        self.judged(
            Topic::Conntrack,
            "tracked connections",
            &network.conntrack_max,
            shown(&network.conntrack_max, |max| {
                format!("{} of at most {max}", network.conntrack_count)
            }),
        );
    }

    fn summary(&mut self, host: &Host) {
        self.section("What ringmill will use");
        self.fact("driver", driver(host));
        self.fact(
            "UDP sends",
            match host.datagrams.gso_segments_max.value {
                Some(segments) => format!("up to {segments} datagrams at once (GSO)"),
                None => "one datagram at a time, many a system call (sendmmsg)".to_owned(),
            },
        );
        self.fact(
            "UDP receives",
            match host.datagrams.gro_segments.value {
                Some(_) => "as the kernel coalesces them (GRO)",
                None => "one datagram a buffer",
            },
        );
        if let Some(soft) = host.files.soft.value {
            self.fact(
                "connections",
                if host.allows_rings() {
                    format!("fewer than {soft} a ring, with more rings for more")
                } else {
                    format!("fewer than {soft} a process")
                },
            );
        }
    }

    fn firewall(&mut self, firewall: &Firewall) {
        let title = self.style.heading("Firewall of a capacity server");
        self.line(format_args!("{title}"));
        let control: Vec<_> = firewall.control_ports.iter().map(u16::to_string).collect();
        self.fact("control port", control.join(", "));
        let ports = |(first, last): (u16, u16)| format!("{first}-{last}");
        let tests = firewall.test_ports.map_or_else(|| "unknown".into(), ports);
        let mark = match (firewall.given_by_kernel, firewall.overlap) {
            (true, _) => Mark::None,
            (false, None) => Mark::Good,
            (false, Some(_)) => Mark::Limits,
        };
        self.row(mark, "test ports", tests);
        for note in &firewall.notes {
            self.line(format_args!("      {note}"));
        }
        for (about, rules) in [
            ("accept what comes to it", &firewall.accept),
            (
                "where connection tracking costs too much or its table fills",
                &firewall.notrack,
            ),
        ] {
            self.line(format_args!("      {about}:"));
            for rule in rules {
                self.line(format_args!("      > {rule}"));
            }
        }
    }

    fn advice(&mut self) {
        let findings = self.findings;
        if findings.is_empty() {
            self.section("Nothing on this host limits ringmill");
            return;
        }
        self.section("What to change");
        for finding in findings {
            let mark = self.style.mark(finding.severity.into());
            self.line(format_args!("  {mark} {}", finding.finding));
            self.line(format_args!("      {}", finding.consequence));
            for line in finding.remedy.lines() {
                self.line(format_args!("      > {line}"));
            }
        }
    }
}

/// A reading in words of its own, or the reason why there is none.
fn shown<T>(reading: &Reading<T>, words: impl FnOnce(&T) -> String) -> String {
    match (&reading.value, &reading.reason) {
        (Some(value), _) => words(value),
        (None, Some(reason)) => format!("unknown ({reason})"),
        (None, None) => "unknown".to_owned(),
    }
}

fn yes(works: bool) -> &'static str {
    if works { "yes" } else { "no" }
}

/// The word that the JSON has for a value of an enum.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

/// Bytes in the largest binary unit that leaves no more than one decimal.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn size_limit(limit: &Limit) -> String {
    match limit {
        Limit::At(bytes) => size(*bytes),
        Limit::Unlimited => "unlimited".to_owned(),
    }
}

/// The capabilities that any part of ringmill can make use of; of the others only how many.
fn notable(names: &[String]) -> String {
    const NOTABLE: [&str; 7] = [
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "IPC_LOCK",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_ADMIN",
    ];
    let mut shown: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| NOTABLE.contains(name))
        .collect();
    let others = names.len() - shown.len();
    let others = format!("{others} others");
    if names.is_empty() {
        return "none (serve and load need none)".to_owned();
    }
    if shown.len() < names.len() {
        shown.push(&others);
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmill_engine::host::Blocked;

    fn page(host: &Host, style: Style) -> String {
        render(host, &advice(host), &[], style)
    }

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (212_992, "208 KiB"),
            (1_500_000, "1.4 MiB"),
            (16 << 20, "16 MiB"),
            (1 << 50, "1024 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_plain_page_is_ascii() {
        let mut host = Host::read();
        // The host's own words may be anything.
        host.machine.cpu_model = Reading::known("CPU".to_owned());
        host.machine.virtualisation = Reading::unknown("no sign");
        let page = page(&host, Style::Plain);
        assert!(page.is_ascii() && !page.contains('\x1b'), "{page}");
        for title in ["Machine", "io_uring", "Network", "What ringmill will use"] {
            assert!(page.lines().any(|line| line == title), "{title}");
        }
    }

    #[test]
    fn a_refused_ring_is_told_with_its_remedy() {
        let mut host = Host::read();
        host.rings.access = RingAccess::Refused {
            errno: libc::EPERM,
            error: "Operation not permitted (os error 1)".to_owned(),
            by: Blocked::Sysctl,
        };
        let page = page(&host, Style::Plain);
        for expected in [
            "  x io_uring_setup                Operation not permitted",
            "    driver                        epoll",
            "      > sysctl -w kernel.io_uring_disabled=0",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
    }

    #[test]
    fn features_of_the_driver_are_listed_with_what_happens_instead() {
        let host = Host::read();
        let features = [
            Feature {
                name: "multishot receive".to_owned(),
                available: true,
                otherwise: "one receive at a time".to_owned(),
            },
            Feature {
                name: "bundles".to_owned(),
                available: false,
                otherwise: "one buffer a completion".to_owned(),
            },
        ];
        let page = render(&host, &[], &features, Style::Plain);
        assert!(
            page.contains("  + multishot receive             yes"),
            "{page}"
        );
        assert!(
            page.contains("  ! bundles                       no; one buffer a completion"),
            "{page}"
        );
        assert!(
            page.contains("Nothing on this host limits ringmill"),
            "{page}"
        );
    }

    #[test]
    fn capabilities_that_matter_are_named() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        for (given, text) in [
            (names(&[]), "none (serve and load need none)"),
            (names(&["NET_ADMIN"]), "NET_ADMIN"),
            (names(&["CHOWN", "NET_RAW", "KILL"]), "NET_RAW, 2 others"),
        ] {
            assert_eq!(notable(&given), text);
        }
    }
}
