//! Values that depend on what is planned: how many connections, which rate, how much memory.
//!
//! Each formula has a name that profiles use, and a reason of its own. They are few and plain on
//! purpose: a profile is data, not a program.

use serde::Deserialize;

/// What a host is tuned for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// Connections, sessions or flows at once.
    pub connections: u64,
    /// Bits per second over the card, where a rate was given.
    pub bits_per_s: Option<f64>,
    /// New connections per second, where that was given.
    pub opens_per_s: Option<f64>,
    /// Memory of the host in bytes.
    pub memory_bytes: u64,
}

/// Files beside the connections: listeners, rings, logs, metrics.
const FILES_BESIDE: u64 = 4096;
/// `ulimit -n` of the reference.
const FILES_MIN: u64 = 1_048_576;
/// `fs.file-max` of the reference.
const FILE_MAX_MIN: u64 = 12_582_912;
/// `net.core.somaxconn` of the reference.
const BACKLOG_MIN: u64 = 8192;
/// What a listener's backlog is kept in was 16 bits long before Linux 5.4.
const BACKLOG_MAX: u64 = 65_535;
/// How long an accept loop may be away before connections are refused.
pub(super) const ACCEPT_PAUSE_S: f64 = 0.1;
/// How long a reader of datagrams may be away before the socket overflows.
pub(super) const READ_PAUSE_S: f64 = 0.01;
/// `net.core.rmem_max` of the reference.
const SOCKET_BUFFER_MIN: u64 = 16_777_216;
/// `net.netfilter.nf_conntrack_max` of the reference.
const CONNTRACK_MIN: u64 = 1_000_000;
/// A chain of the connection table is four entries long when it is full, as the kernel's own
/// default was until 5.15.
const CONNTRACK_CHAIN: u64 = 4;
/// Memory that a connection's queues may take while data are under way, on average: a page each way.
pub(super) const QUEUED_BYTES: u64 = 8192;
/// Linux holds a closed connection for this long (TCP_TIMEWAIT_LEN).
pub(super) const TIME_WAIT_S: f64 = 60.0;
/// The kernel's page on every machine that we run on but 64 KiB kernels of ARM, where tcp_mem is then
/// sixteen times as much memory: more than asked for, never less.
pub(super) const PAGE_BYTES: u64 = 4096;
/// A datagram on an Ethernet that is not jumbo.
const PACKET_BITS: f64 = 1250.0 * 8.0;
/// Packets that the backlog of a CPU shall hold when no rate is given.
const PACKET_QUEUE_MIN: u64 = 10_000;
/// More only adds delay.
const PACKET_QUEUE_MAX: u64 = 250_000;

/// A named formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Formula {
    /// The connections and what a process has open beside them, at least 1,048,576.
    Files,
    /// Open files of the whole machine: both ends of each connection, at least 12,582,912.
    FileMax,
    /// The connections that arrive while the accept loop is away, at least 8192.
    Backlog,
    /// A minimum, a pressure mark and a maximum in pages: 8 KiB for each connection, at most half the
    /// memory, in the kernel's own proportions.
    TcpMem,
    /// What arrives while a reader of datagrams is away for 10 ms, at least 16 MiB.
    SocketBuffer,
    /// Entries of the connection table: a quarter more than the connections, at least 1,000,000.
    Conntrack,
    /// Hash chains for them: a quarter of the entries.
    ConntrackHash,
    /// Connections in TIME_WAIT: all of them at once, or those that close in a minute.
    TimeWait,
    /// Packets that wait for a CPU: those of 10 ms at the rate, at least 10,000.
    PacketQueue,
}

impl Formula {
    /// The value, or the values of a setting that has several.
    #[must_use]
    pub fn values(self, goal: &Goal) -> Vec<u64> {
        let connections = goal.connections;
        let opened = |seconds: f64| {
            goal.opens_per_s
                .map_or(0, |rate| (rate * seconds).ceil() as u64)
        };
        let sent = |seconds: f64| goal.bits_per_s.map_or(0.0, |rate| rate * seconds);
        vec![match self {
            Self::Files => (connections + FILES_BESIDE)
                .next_multiple_of(1024)
                .max(FILES_MIN),
            Self::FileMax => (2 * connections + FILES_MIN).max(FILE_MAX_MIN),
            Self::Backlog => opened(ACCEPT_PAUSE_S)
                .next_power_of_two()
                .clamp(BACKLOG_MIN, BACKLOG_MAX),
            Self::TcpMem => return tcp_mem(goal),
            Self::SocketBuffer => ((sent(READ_PAUSE_S) / 8.0).ceil() as u64).max(SOCKET_BUFFER_MIN),
            Self::Conntrack => conntrack(connections),
            Self::ConntrackHash => conntrack(connections) / CONNTRACK_CHAIN,
            Self::TimeWait => connections.max(opened(TIME_WAIT_S)),
            Self::PacketQueue => ((sent(READ_PAUSE_S) / PACKET_BITS).ceil() as u64)
                .clamp(PACKET_QUEUE_MIN, PACKET_QUEUE_MAX),
        }]
    }
}

fn conntrack(connections: u64) -> u64 {
    (connections + connections / 4).max(CONNTRACK_MIN)
}

/// The kernel's own choice is 4.7, 6.2 and 9.4 percent of the memory (tcp_init in net/ipv4/tcp.c).
fn tcp_mem(goal: &Goal) -> Vec<u64> {
    let half = goal.memory_bytes / 2;
    let bytes = (goal.connections * QUEUED_BYTES).min(half);
    let most = bytes / PAGE_BYTES;
    vec![most / 2, most * 2 / 3, most]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn goal(connections: u64) -> Goal {
        Goal {
            connections,
            bits_per_s: None,
            opens_per_s: None,
            memory_bytes: 24 * GIB,
        }
    }

    #[test]
    fn formulas_start_at_the_values_of_the_reference() {
        for (formula, values) in [
            (Formula::Files, vec![1_048_576]),
            (Formula::FileMax, vec![12_582_912]),
            (Formula::Backlog, vec![8192]),
            (Formula::SocketBuffer, vec![16_777_216]),
            (Formula::Conntrack, vec![1_000_000]),
            (Formula::ConntrackHash, vec![250_000]),
            (Formula::TimeWait, vec![10_000]),
            (Formula::PacketQueue, vec![10_000]),
            (Formula::TcpMem, vec![10_000, 13_333, 20_000]),
        ] {
            assert_eq!(formula.values(&goal(10_000)), values, "{formula:?}");
        }
    }

    #[test]
    fn formulas_follow_what_is_planned() {
        let million = goal(1_000_000);
        let fast = Goal {
            bits_per_s: Some(100e9),
            opens_per_s: Some(200_000.0),
            ..million
        };
        for (formula, goal, values) in [
            (Formula::Files, million, vec![1_004_544.max(FILES_MIN)]),
            (Formula::Files, goal(2_000_000), vec![2_004_992]),
            (Formula::Conntrack, million, vec![1_250_000]),
            (Formula::Backlog, fast, vec![32_768]),
            (Formula::SocketBuffer, fast, vec![125_000_000]),
            (Formula::PacketQueue, fast, vec![100_000]),
            (Formula::TimeWait, fast, vec![12_000_000]),
        ] {
            assert_eq!(formula.values(&goal), values, "{formula:?}");
        }
        // Never more than half the memory, whatever is planned.
        let small = Goal {
            memory_bytes: GIB,
            ..million
        };
        assert_eq!(Formula::TcpMem.values(&small)[2], GIB / 2 / PAGE_BYTES);
    }
}
