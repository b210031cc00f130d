//! Why connections fail although nobody refuses them: counters of this host's kernel, read before and
//! after. They count for the whole network namespace, so on a busy host others are in them, too.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// A counter of `/proc/net/netstat` (TcpExt), what it means and what helps.
const COUNTERS: [(&str, &str, &str); 7] = [
    (
        "SyncookiesSent",
        "half-open connections overflowed and SYN cookies were sent",
        "raise net.ipv4.tcp_max_syn_backlog and net.core.somaxconn on the server",
    ),
    (
        "TCPReqQFullDrop",
        "half-open connections overflowed and were dropped",
        "raise net.ipv4.tcp_max_syn_backlog and net.core.somaxconn on the server",
    ),
    (
        "ListenOverflows",
        "the server's queue of new connections was full",
        "raise net.core.somaxconn on the server, or open more slowly: --open-rate",
    ),
    (
        "ListenDrops",
        "new connections were dropped at the listening socket",
        "raise net.core.somaxconn and net.ipv4.tcp_mem on the server",
    ),
    (
        "TCPTimeWaitOverflow",
        "the TIME_WAIT table was full and old connections were forgotten early",
        "raise net.ipv4.tcp_max_tw_buckets, or close by RST: --churn-close rst",
    ),
    (
        "TCPMemoryPressures",
        "TCP ran short of memory",
        "raise net.ipv4.tcp_mem",
    ),
    (
        "TCPAbortOnMemory",
        "connections were cut because TCP had no memory",
        "raise net.ipv4.tcp_mem",
    ),
];

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counters {
    values: [Option<u64>; COUNTERS.len()],
    /// Connections in TIME_WAIT now.
    pub(super) time_wait: Option<u64>,
    /// Connections that the firewall tracks now, and how many it can.
    pub(super) tracked: Option<(u64, u64)>,
}

/// Something that happened meanwhile and explains failures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The kernel's name for it.
    pub(super) name: &'static str,
    /// How often, or how many.
    pub(super) count: u64,
    /// What happened.
    pub(super) cause: String,
    /// What to do.
    pub(super) helps: &'static str,
}

impl Counters {
    /// Reads them below this root, which is `/` but in tests.
    pub(super) fn read(root: &Path) -> Self {
        let text = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
        let number = |file: &str| text(file).trim().parse::<u64>().ok();
        let netstat = text("proc/net/netstat");
        let sockstat = text("proc/net/sockstat");
        let tracked = number("proc/sys/net/netfilter/nf_conntrack_count");
        let tracked_max = number("proc/sys/net/netfilter/nf_conntrack_max");
        Self {
            values: COUNTERS.map(|(name, ..)| in_pairs(&netstat, "TcpExt:", name)),
            time_wait: time_wait(&sockstat),
            tracked: tracked.zip(tracked_max),
        }
    }

    /// What happened since `before`.
    pub(super) fn findings(&self, before: &Self) -> Vec<Finding> {
        let pairs = self.values.iter().zip(&before.values);
        let counted = COUNTERS.iter().zip(pairs);
        let mut findings: Vec<Finding> = counted
            .filter_map(|((name, cause, helps), (now, before))| {
                let count = now.as_ref()?.saturating_sub(before.unwrap_or(0));
                (count > 0).then(|| Finding {
                    name,
                    count,
                    cause: (*cause).to_owned(),
                    helps,
                })
            })
            .collect();
        if let Some((count, max)) = self.tracked
            && count >= max
        {
            findings.push(Finding {
                name: "nf_conntrack_count",
                count,
                cause: format!("the firewall tracks {count} connections and cannot track more"),
                helps: "raise net.netfilter.nf_conntrack_max, or do not track these ports",
            });
        }
        findings
    }
}

/// The value below a name in a pair of lines with the same prefix: names, then values.
fn in_pairs(text: &str, prefix: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|key| key == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

fn time_wait(sockstat: &str) -> Option<u64> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

/// The ports that the kernel chooses from: first and last.
pub(super) fn port_range() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// What to do about a connect that failed for this reason, where there is something to do here.
pub(super) fn remedy(cause: &str) -> Option<&'static str> {
    Some(match cause {
        "connection refused" => "is the server running there?",
        "no free local port or address" => {
            "each pair of a local and a remote address has only as many connections as \
             net.ipv4.ip_local_port_range has ports: more of them by --sources 127.1.0.0/16, or \
             more endpoints; addresses must exist on this host"
        }
        "too many open files" | "too many open files (process)" => "see `ringmill doctor`",
        "no answer to the connect in time" | "timed out" => {
            "the server, or a firewall between, drops new connections"
        }
        "no buffer space" | "out of memory" => "raise net.ipv4.tcp_mem; see `free -m`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, overflows: u64, tracked: u64) {
        for folder in ["proc/net", "proc/sys/net/netfilter"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let netstat = format!(
            "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 7 {overflows}\nIpExt: A\nIpExt: 1\n"
        );
        let tracked = tracked.to_string();
        for (file, text) in [
            ("proc/net/netstat", netstat.as_str()),
            (
                "proc/net/sockstat",
                "sockets: used 21\nTCP: inuse 3 orphan 0 tw 17 alloc 3 mem 0\n",
            ),
            ("proc/sys/net/netfilter/nf_conntrack_count", &tracked),
            ("proc/sys/net/netfilter/nf_conntrack_max", "100"),
        ] {
            fs::write(root.join(file), text).unwrap();
        }
    }

    #[test]
    fn what_counted_meanwhile_is_named_with_its_cause() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 3, 99);
        let before = Counters::read(folder.path());
        assert_eq!(before.time_wait, Some(17));
        assert_eq!(before.findings(&before), []);
        write(folder.path(), 5, 100);
        let found = Counters::read(folder.path()).findings(&before);
        let found: Vec<_> = found.iter().map(|f| (f.name, f.count)).collect();
        assert_eq!(found, [("ListenOverflows", 2), ("nf_conntrack_count", 100)]);
    }

    #[test]
    fn a_host_that_shows_nothing_says_nothing() {
        let nothing = Counters::read(Path::new("/proc/self/nowhere"));
        assert_eq!(nothing, Counters::default());
        assert_eq!(nothing.findings(&nothing), []);
    }

    #[test]
    fn this_kernel_has_the_counters_under_these_names() {
        let here = Counters::read(Path::new("/"));
        for ((name, ..), value) in COUNTERS.iter().zip(here.values) {
            assert!(value.is_some(), "{name}");
        }
        assert!(here.time_wait.is_some());
        assert!(port_range().is_some_and(|(low, high)| low < high));
    }
}
