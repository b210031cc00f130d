//! Counters of the kernel that tell why connections or datagrams were lost, and what to do about each.
//!
//! Read before and after a run, the difference names the cause. They count for the whole network
//! namespace, so on a busy host others are in them, too.

use ringmill_engine::host::Root;
use serde::Serialize;

/// A counter: file, prefix of its lines, name, what it means, and what helps.
type Known = (Source, &'static str, &'static str, &'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// `/proc/net/netstat`, lines `TcpExt:`.
    TcpExt,
    /// `/proc/net/snmp`, lines `Udp:`.
    Udp,
    /// `/proc/net/snmp`, lines `Ip:`.
    Ip,
    /// `/proc/net/snmp6`, one name and value a line.
    Six,
    /// `/proc/net/softnet_stat`, a column of hexadecimal numbers.
    Softnet(usize),
    /// `/proc/net/stat/nf_conntrack`, a column of hexadecimal numbers with names.
    Conntrack,
}

const KNOWN: [Known; 19] = [
    (
        Source::TcpExt,
        "SyncookiesSent",
        "half-open connections overflowed, SYN cookies were sent",
        "net.ipv4.tcp_max_syn_backlog, net.core.somaxconn",
    ),
    (
        Source::TcpExt,
        "TCPReqQFullDrop",
        "half-open connections overflowed and were dropped",
        "net.ipv4.tcp_max_syn_backlog, net.core.somaxconn",
    ),
    (
        Source::TcpExt,
        "ListenOverflows",
        "the accept queue was full",
        "net.core.somaxconn, or more shards",
    ),
    (
        Source::TcpExt,
        "ListenDrops",
        "connections were dropped at a listening socket",
        "net.core.somaxconn, net.ipv4.tcp_mem",
    ),
    (
        Source::TcpExt,
        "TCPTimeWaitOverflow",
        "TIME_WAIT was cut short",
        "net.ipv4.tcp_max_tw_buckets, or let the other end close",
    ),
    (
        Source::TcpExt,
        "TCPMemoryPressures",
        "TCP's memory ran short",
        "net.ipv4.tcp_mem",
    ),
    (
        Source::TcpExt,
        "TCPAbortOnMemory",
        "connections were cut for want of memory",
        "net.ipv4.tcp_mem",
    ),
    (
        Source::TcpExt,
        "TCPBacklogDrop",
        "segments were dropped at a busy socket",
        "net.ipv4.tcp_rmem",
    ),
    (
        Source::Udp,
        "RcvbufErrors",
        "receive buffers of datagrams were full",
        "net.core.rmem_max, or more shards",
    ),
    (
        Source::Udp,
        "SndbufErrors",
        "send buffers of datagrams were full",
        "net.core.wmem_max",
    ),
    (
        Source::Six,
        "Udp6RcvbufErrors",
        "receive buffers of datagrams were full (IPv6)",
        "net.core.rmem_max, or more shards",
    ),
    (
        Source::Six,
        "Udp6SndbufErrors",
        "send buffers of datagrams were full (IPv6)",
        "net.core.wmem_max",
    ),
    (
        Source::Ip,
        "ReasmFails",
        "datagrams stayed incomplete",
        "net.ipv4.ipfrag_high_thresh, or no fragments",
    ),
    (
        Source::Six,
        "Ip6ReasmFails",
        "datagrams stayed incomplete (IPv6)",
        "net.ipv6.ip6frag_high_thresh, or no fragments",
    ),
    (
        Source::Softnet(1),
        "softnet dropped",
        "packets did not fit the queue of a CPU",
        "net.core.netdev_max_backlog",
    ),
    (
        Source::Softnet(2),
        "softnet time_squeeze",
        "a CPU had more packets than one round takes",
        "net.core.netdev_budget, or more queues",
    ),
    (
        Source::Conntrack,
        "insert_failed",
        "connections could not be tracked",
        "net.netfilter.nf_conntrack_max, or the bypass",
    ),
    (
        Source::Conntrack,
        "drop",
        "packets were dropped because connections could not be tracked",
        "net.netfilter.nf_conntrack_max, or the bypass",
    ),
    (
        Source::Conntrack,
        "early_drop",
        "tracked connections were forgotten early to make room",
        "net.netfilter.nf_conntrack_max",
    ),
];

/// A counter that moved, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kernel's name of the counter.
    pub name: &'static str,
    /// How often.
    pub count: u64,
    /// What happened.
    pub cause: &'static str,
    /// Which setting helps.
    pub helps: &'static str,
}

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Connections in TIME_WAIT now.
    pub time_wait: Option<u64>,
    /// Connections that the firewall tracks now.
    pub conntrack: Option<u64>,
    /// Values in the order of [`KNOWN`].
    #[serde(skip)]
    values: Vec<Option<u64>>,
}

impl Counters {
    /// Reads them. What the kernel does not show is left out.
    #[must_use]
    pub fn read(root: &Root) -> Self {
        let text = |file: &str| root.text(file).value.unwrap_or_default();
        let (netstat, snmp, snmp6) = (
            text("/proc/net/netstat"),
            text("/proc/net/snmp"),
            text("/proc/net/snmp6"),
        );
        let (softnet, conntrack) = (
            text("/proc/net/softnet_stat"),
            text("/proc/net/stat/nf_conntrack"),
        );
        let value = |(source, name, ..): &Known| match source {
            Source::TcpExt => in_pairs(&netstat, "TcpExt:", name),
            Source::Udp => in_pairs(&snmp, "Udp:", name),
            Source::Ip => in_pairs(&snmp, "Ip:", name),
            Source::Six => snmp6.lines().find_map(|line| {
                let (key, value) = line.split_once(char::is_whitespace)?;
                if key == *name {
                    value.trim().parse().ok()
                } else {
                    None
                }
            }),
            Source::Softnet(column) => sum_of_column(softnet.lines(), *column),
            Source::Conntrack => {
                let mut lines = conntrack.lines();
                let column = lines
                    .next()?
                    .split_whitespace()
                    .position(|key| key == *name)?;
                sum_of_column(lines, column)
            }
        };
        let tcp = root
            .labelled("/proc/net/sockstat", "TCP:")
            .value
            .unwrap_or_default();
        let mut words = tcp.split_whitespace();
        Self {
            time_wait: words
                .find(|word| *word == "tw")
                .and_then(|_| words.next()?.parse().ok()),
            conntrack: root.sysctl("net.netfilter.nf_conntrack_count").value,
            values: KNOWN.iter().map(value).collect(),
        }
    }

    /// What counted since `before`; with none, since the namespace was made.
    #[must_use]
    pub fn findings(&self, before: Option<&Self>) -> Vec<Finding> {
        let old = |index: usize| {
            before
                .and_then(|before| *before.values.get(index)?)
                .unwrap_or(0)
        };
        let known = KNOWN.iter().zip(&self.values).enumerate();
        known
            .filter_map(|(index, ((_, name, cause, helps), value))| {
                let count = value.as_ref()?.saturating_sub(old(index));
                (count > 0).then_some(Finding {
                    name,
                    count,
                    cause,
                    helps,
                })
            })
            .collect()
    }
}

/// The value below a name in a pair of lines with the same prefix: names, then values.
fn in_pairs(text: &str, prefix: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|key| key == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

/// One line for each CPU, numbers in hexadecimal.
fn sum_of_column<'a>(lines: impl Iterator<Item = &'a str>, column: usize) -> Option<u64> {
    let values: Option<Vec<u64>> = lines
        .map(|line| u64::from_str_radix(line.split_whitespace().nth(column)?, 16).ok())
        .collect();
    values
        .filter(|values| !values.is_empty())
        .map(|values| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::FakeHost;

    #[test]
    fn what_counted_in_between_is_named_with_its_cause() {
        let fake = FakeHost::with_cpus(1);
        let write = |overflows: u64, dropped: &str, failed: &str| {
            let tcp = format!(
                "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 7 {overflows}\nIpExt: A\nIpExt: 1"
            );
            fake.set("proc/net/netstat", &tcp);
            fake.set(
                "proc/net/snmp",
                "Ip: ReasmFails\nIp: 0\nUdp: InDatagrams RcvbufErrors\nUdp: 5 0",
            );
            fake.set(
                "proc/net/snmp6",
                "Ip6ReasmFails                   0\nUdp6RcvbufErrors  0",
            );
            fake.set(
                "proc/net/softnet_stat",
                &format!("00000010 {dropped} 00000000\n00000010 0000000f 00000000"),
            );
            fake.set(
                "proc/net/stat/nf_conntrack",
                &format!("entries  insert insert_failed drop early_drop\n00000001 00000000 {failed} 00000000 00000000"),
            );
            fake.set(
                "proc/net/sockstat",
                "sockets: used 21\nTCP: inuse 3 orphan 0 tw 17 alloc 3 mem 0",
            );
            Counters::read(fake.host().root())
        };
        let before = write(3, "00000001", "00000000");
        let after = write(5, "00000002", "0000000a");
        assert_eq!(after.time_wait, Some(17));
        let found: Vec<_> = after
            .findings(Some(&before))
            .iter()
            .map(|f| (f.name, f.count))
            .collect();
        assert_eq!(
            found,
            [
                ("ListenOverflows", 2),
                ("softnet dropped", 1),
                ("insert_failed", 10)
            ]
        );
        let ever: Vec<_> = before
            .findings(None)
            .iter()
            .map(|f| (f.name, f.count))
            .collect();
        assert_eq!(
            ever,
            [
                ("SyncookiesSent", 7),
                ("ListenOverflows", 3),
                ("softnet dropped", 16)
            ]
        );
    }

    #[test]
    fn a_host_that_shows_nothing_says_nothing() {
        let fake = FakeHost::with_cpus(1);
        assert_eq!(Counters::read(fake.host().root()).findings(None), []);
    }

    #[test]
    fn this_kernel_has_the_counters_under_these_names() {
        let here = Counters::read(&Root::default());
        for ((source, name, ..), value) in KNOWN.iter().zip(&here.values) {
            if *source == Source::TcpExt {
                assert!(value.is_some(), "{name}");
            }
        }
    }
}
