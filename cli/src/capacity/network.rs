//! What the host's network stack could not hold while a test ran: fragments that were not put
//! together again, and datagrams that found a socket's buffer full.
//!
//! The kernel counts both for the whole network namespace (`/proc/net/snmp`, `/proc/net/snmp6`), so
//! what grows may be another program's. A test that loses datagrams here and not on the path has
//! found the limit of this host. Nothing here fails: what cannot be read is not known.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How often a server that loses datagrams says so: often enough to see it with the test that meets
/// it, too seldom to fill a log.
pub const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// Growth since a reading, IPv4 and IPv6 together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct NetworkLosses {
    /// Times that fragments were not put together again: one was missing for too long, or there was
    /// no memory for them (IpReasmFails, Ip6ReasmFails).
    pub reassembly_failures: u64,
    /// Datagrams that found the receive buffer of their socket full (UdpRcvbufErrors,
    /// Udp6RcvbufErrors).
    pub receive_buffer_errors: u64,
}

impl NetworkLosses {
    /// Nothing was lost.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The sum of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            reassembly_failures: self.reassembly_failures + other.reassembly_failures,
            receive_buffer_errors: self.receive_buffer_errors + other.receive_buffer_errors,
        }
    }

    /// A sentence for each kind that there is, with what to do.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.reassembly_failures > 0 {
            words.push(format!(
                "this host could not put fragments together {} times (IpReasmFails, \
                 Ip6ReasmFails): each is a lost datagram. --no-jumbo at both ends avoids fragments; \
                 else give them more memory: net.ipv4.ipfrag_high_thresh, \
                 net.ipv6.ip6frag_high_thresh",
                self.reassembly_failures
            ));
        }
        if self.receive_buffer_errors > 0 {
            words.push(format!(
                "{} datagrams found a full socket buffer on this host (UdpRcvbufErrors, of all \
                 programs): those of the test count as lost although the path carried them. More \
                 connections or CPUs help, and net.core.rmem_max",
                self.receive_buffer_errors
            ));
        }
        words
    }

    fn read(root: &Path) -> io::Result<Self> {
        let snmp = std::fs::read_to_string(root.join("proc/net/snmp"))?;
        // Not there without IPv6.
        let snmp6 = std::fs::read_to_string(root.join("proc/net/snmp6")).unwrap_or_default();
        Ok(Self {
            reassembly_failures: in_table(&snmp, "Ip:", "ReasmFails")
                + in_list(&snmp6, "Ip6ReasmFails"),
            receive_buffer_errors: in_table(&snmp, "Udp:", "RcvbufErrors")
                + in_list(&snmp6, "Udp6RcvbufErrors"),
        })
    }

    fn since(self, before: Self) -> Self {
        let grown = |now: u64, before: u64| now.saturating_sub(before);
        Self {
            reassembly_failures: grown(self.reassembly_failures, before.reassembly_failures),
            receive_buffer_errors: grown(self.receive_buffer_errors, before.receive_buffer_errors),
        }
    }
}

/// `/proc/net/snmp` has two lines for each protocol: names, then values.
fn in_table(text: &str, protocol: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return 0;
    };
    let mut columns = names.split_whitespace().zip(values.split_whitespace());
    let value = columns.find(|(column, _)| *column == name);
    value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// `/proc/net/snmp6` has a name and a value in each line.
fn in_list(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    });
    lines.next().unwrap_or(0)
}

/// Watches the counters from reading to reading.
#[derive(Debug)]
pub struct NetworkWatch {
    root: PathBuf,
    last: Option<NetworkLosses>,
}

impl Default for NetworkWatch {
    fn default() -> Self {
        Self::below("/")
    }
}

impl NetworkWatch {
    /// Watches the files below another root, from now on.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let last = NetworkLosses::read(&root).ok();
        Self { root, last }
    }

    /// What has grown since this was last asked; `None` where it cannot be read.
    pub fn losses(&mut self) -> Option<NetworkLosses> {
        let now = NetworkLosses::read(&self.root).ok();
        let before = std::mem::replace(&mut self.last, now);
        Some(now?.since(before?))
    }
}

/// Gathers losses until it is time to tell them: the first at once, then once in
/// [`WARNING_INTERVAL`].
#[derive(Debug, Default)]
pub struct LossWarnings {
    untold: NetworkLosses,
    told: Option<Instant>,
}

impl LossWarnings {
    /// Adds what was lost; what is to be told now.
    pub fn add(&mut self, losses: NetworkLosses, now: Instant) -> Option<NetworkLosses> {
        self.untold = self.untold.and(losses);
        let early = self
            .told
            .is_some_and(|told| now.saturating_duration_since(told) < WARNING_INTERVAL);
        if early || self.untold.is_none() {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes the kernel's files as they are, with these values.
    pub(crate) fn write(root: &Path, v4: (u64, u64), v6: Option<(u64, u64)>) {
        let folder = root.join("proc/net");
        std::fs::create_dir_all(&folder).expect("a folder");
        let snmp = format!(
            "Ip: Forwarding DefaultTTL ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs\n\
             Ip: 1 64 3 90 80 {} 7\n\
             Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\n\
             Udp: 1000 2 3 4 {} 99\n\
             UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\n\
             UdpLite: 0 0 0 0 55 0\n",
            v4.0, v4.1
        );
        std::fs::write(folder.join("snmp"), snmp).expect("a file");
        if let Some((reassembly, buffers)) = v6 {
            let snmp6 = format!(
                "Ip6ReasmOKs                     \t12\n\
                 Ip6ReasmFails                   \t{reassembly}\n\
                 Udp6RcvbufErrors                \t{buffers}\n\
                 UdpLite6RcvbufErrors            \t77\n"
            );
            std::fs::write(folder.join("snmp6"), snmp6).expect("a file");
        }
    }

    fn losses(reassembly_failures: u64, receive_buffer_errors: u64) -> NetworkLosses {
        NetworkLosses {
            reassembly_failures,
            receive_buffer_errors,
        }
    }

    #[test]
    fn what_grows_is_told_once() {
        let root = tempfile::tempdir().expect("a folder");
        write(root.path(), (5, 7), Some((10, 20)));
        let mut watch = NetworkWatch::below(root.path());
        for (v4, v6, want) in [
            ((5, 7), Some((10, 20)), losses(0, 0)),
            ((6, 7), Some((12, 20)), losses(3, 0)),
            ((6, 8), Some((12, 21)), losses(0, 2)),
            // A counter never falls, unless the process changed its namespace.
            ((0, 0), Some((0, 0)), losses(0, 0)),
            ((1, 1), None, losses(1, 1)),
        ] {
            write(root.path(), v4, v6);
            assert_eq!(watch.losses(), Some(want), "{v4:?} {v6:?}");
        }
        std::fs::remove_file(root.path().join("proc/net/snmp")).expect("it was there");
        assert_eq!(watch.losses(), None);
        write(root.path(), (100, 100), None);
        assert_eq!(watch.losses(), None, "nothing to compare with");
        assert_eq!(watch.losses(), Some(losses(0, 0)));
    }

    #[test]
    fn warnings_are_rare_and_leave_nothing_out() {
        let mut warnings = LossWarnings::default();
        let begin = Instant::now();
        for (second, lost, told) in [
            (0, 0, None),
            (1, 3, Some(3)),
            (2, 4, None),
            (3, 5, None),
            (11, 0, Some(9)),
            (21, 0, None),
            (22, 1, Some(1)),
        ] {
            let now = begin + Duration::from_secs(second);
            let found = warnings.add(losses(lost, 0), now);
            let found = found.map(|losses| losses.reassembly_failures);
            assert_eq!(found, told, "second {second}");
        }
    }

    #[test]
    fn hosts_without_ipv6_and_without_proc() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(NetworkWatch::below(root.path()).losses(), None);
        write(root.path(), (1, 2), None);
        let mut watch = NetworkWatch::below(root.path());
        write(root.path(), (4, 4), None);
        assert_eq!(watch.losses(), Some(losses(3, 2)));
    }

    #[test]
    fn this_host_can_be_read() {
        assert!(NetworkWatch::default().losses().is_some());
    }

    #[test]
    fn words_say_what_to_do() {
        assert!(losses(0, 0).words().is_empty());
        let both = losses(3, 4).words();
        assert_eq!(both.len(), 2);
        for (words, parts) in [
            (
                &both[0],
                ["3 times", "--no-jumbo at both ends", "ipfrag_high_thresh"],
            ),
            (&both[1], ["4 datagrams", "UdpRcvbufErrors", "rmem_max"]),
        ] {
            for part in parts {
                assert!(words.contains(part), "{part} in {words}");
            }
        }
    }
}
