//! From counts to figures: a sub-interval of one connection, and of all connections together (rates:
//! RFC 9097 section 5.3; ratios: Y.1540 (2019) clauses 6.4, 6.6 and 6.9).
//!
//! Plain numbers only: how they are printed is not decided here. Averages of times are rounded as
//! the original rounds them, all rates are unrounded Mbit/s (10^6 bit/s).

use super::adjust::average_ms;
use super::pdu::{Status, SubIntervalStats};

/// What one sub-interval of one connection came to, at the receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubInterval {
    /// 1, 2, 3, ...
    pub number: u32,
    /// The counts as they are on the wire.
    pub stats: SubIntervalStats,
    /// Datagrams with ECN CE.
    pub ce: u32,
    /// Sum of the round-trip variations in ms that this end saw.
    pub rtt_var_sum_ms: u64,
    /// How many make that sum.
    pub rtt_var_count: u32,
    /// Least difference of arrival and sending time since the test began, in ms, by two clocks.
    pub clock_delta_min_ms: i64,
    /// Least round-trip time since the test began, in ms, if there was one.
    pub rtt_min_ms: Option<u32>,
}

impl SubInterval {
    /// The sub-interval saved in a status PDU, with the round-trip variations that were in those
    /// since the one before.
    #[must_use]
    pub fn of_status(status: &Status, rtt_var_sum_ms: u64, rtt_var_count: u32) -> Self {
        Self {
            number: status.sub_int_seq_no,
            stats: status.sub_interval,
            ce: status.sis_sav_ce_count,
            rtt_var_sum_ms,
            rtt_var_count,
            clock_delta_min_ms: status.clock_delta_min.into(),
            rtt_min_ms: (status.rtt_minimum != Status::NONE).then_some(status.rtt_minimum),
        }
    }
}

/// Mbit/s, by what is counted around the UDP payload of each datagram.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// With UDP and IP headers: the IP-layer capacity.
    pub ip: f64,
    /// With the Ethernet header too.
    pub ethernet: f64,
    /// With its frame check sequence too.
    pub ethernet_fcs: f64,
    /// With a VLAN tag too.
    pub ethernet_fcs_vlan: f64,
}

/// UDP and IPv4 header in bytes; an IPv6 header is longer by [`IPV6_EXTRA`].
const IPV4_UDP: u64 = 28;
/// What an IPv6 header has more than one of IPv4, in bytes.
const IPV6_EXTRA: u64 = 20;
/// Ethernet header in bytes.
const ETHERNET: u64 = 14;
/// Frame check sequence in bytes.
const FCS: u64 = 4;
/// VLAN tag in bytes.
const VLAN: u64 = 4;

impl Rates {
    /// Of one sub-interval.
    #[must_use]
    pub fn of(stats: &SubIntervalStats, ipv6: bool) -> Self {
        let ip = IPV4_UDP + if ipv6 { IPV6_EXTRA } else { 0 };
        let rate = |overhead: u64| {
            if stats.delta_time == 0 {
                return 0.0;
            }
            let bytes = (u64::from(stats.rx_datagrams) * overhead).saturating_add(stats.rx_bytes);
            bytes as f64 * 8.0 / f64::from(stats.delta_time)
        };
        Self {
            ip: rate(ip),
            ethernet: rate(ip + ETHERNET),
            ethernet_fcs: rate(ip + ETHERNET + FCS),
            ethernet_fcs_vlan: rate(ip + ETHERNET + FCS + VLAN),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.ip += other.ip;
        self.ethernet += other.ethernet;
        self.ethernet_fcs += other.ethernet_fcs;
        self.ethernet_fcs_vlan += other.ethernet_fcs_vlan;
    }

    pub(super) fn divided(self, by: f64) -> Self {
        Self {
            ip: self.ip / by,
            ethernet: self.ethernet / by,
            ethernet_fcs: self.ethernet_fcs / by,
            ethernet_fcs_vlan: self.ethernet_fcs_vlan / by,
        }
    }
}

/// What a network interface moved, in Mbit/s.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct InterfaceRate {
    /// In the direction of the test.
    pub test_mbps: f64,
    /// In the other direction.
    pub other_mbps: f64,
}

/// The rate of an interface's byte counter in Mbit/s. A counter that went back has wrapped: at 32
/// bits if it was within them, else at 64.
#[must_use]
pub fn interface_mbps(before_bytes: u64, after_bytes: u64, elapsed_us: u64) -> f64 {
    let moved = if after_bytes < before_bytes && before_bytes <= u64::from(u32::MAX) {
        after_bytes + (1 << 32) - before_bytes
    } else {
        after_bytes.wrapping_sub(before_bytes)
    };
    if elapsed_us == 0 {
        0.0
    } else {
        moved as f64 * 8.0 / elapsed_us as f64
    }
}

/// Least, average and largest of a time in ms; zeros without samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// Least.
    pub min_ms: u32,
    /// Average, rounded.
    pub avg_ms: u32,
    /// Largest.
    pub max_ms: u32,
}

impl Spread {
    /// Largest less least.
    #[must_use]
    pub fn range_ms(&self) -> u32 {
        self.max_ms.saturating_sub(self.min_ms)
    }
}

/// Samples of a time in ms, summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Least, [`Status::NONE`] without samples.
    pub min_ms: u32,
    /// Largest.
    pub max_ms: u32,
    /// Sum of all.
    pub sum_ms: u64,
    /// How many.
    pub count: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            min_ms: Status::NONE,
            max_ms: 0,
            sum_ms: 0,
            count: 0,
        }
    }
}

impl Times {
    pub(super) fn add(&mut self, other: &Self) {
        self.min_ms = self.min_ms.min(other.min_ms);
        self.max_ms = self.max_ms.max(other.max_ms);
        self.sum_ms = self.sum_ms.saturating_add(other.sum_ms);
        self.count = self.count.saturating_add(other.count);
    }

    /// What they come to.
    #[must_use]
    pub fn spread(&self) -> Spread {
        Spread {
            min_ms: if self.min_ms == Status::NONE {
                0
            } else {
                self.min_ms
            },
            avg_ms: average_ms(self.sum_ms, self.count),
            max_ms: self.max_ms,
        }
    }
}

/// Counts of datagrams, and the ratios made of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Datagrams that arrived, late ones and duplicates included.
    pub datagrams: u64,
    /// Their UDP payload in bytes.
    pub bytes: u64,
    /// Lost.
    pub lost: u64,
    /// Out of order.
    pub reordered: u64,
    /// Came again.
    pub replicated: u64,
    /// With ECN CE.
    pub ce: u64,
}

impl Delivery {
    pub(super) fn add(&mut self, other: &Self) {
        self.datagrams = self.datagrams.saturating_add(other.datagrams);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.lost = self.lost.saturating_add(other.lost);
        self.reordered = self.reordered.saturating_add(other.reordered);
        self.replicated = self.replicated.saturating_add(other.replicated);
        self.ce = self.ce.saturating_add(other.ce);
    }

    /// Datagrams that were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.datagrams.saturating_add(self.lost)
    }

    fn of_sent(&self, count: u64) -> f64 {
        match self.sent() {
            0 => 0.0,
            sent => count as f64 / sent as f64,
        }
    }

    /// Arrived of sent, in percent.
    #[must_use]
    pub fn delivered_percent(&self) -> f64 {
        match self.sent() {
            0 => 0.0,
            sent => self.datagrams as f64 * 100.0 / sent as f64,
        }
    }

    /// Lost of sent.
    #[must_use]
    pub fn loss_ratio(&self) -> f64 {
        self.of_sent(self.lost)
    }

    /// Out of order of sent.
    #[must_use]
    pub fn reordered_ratio(&self) -> f64 {
        self.of_sent(self.reordered)
    }

    /// Came again of sent.
    #[must_use]
    pub fn replicated_ratio(&self) -> f64 {
        self.of_sent(self.replicated)
    }

    /// With ECN CE of arrived, in percent.
    #[must_use]
    pub fn ce_percent(&self) -> f64 {
        match self.datagrams {
            0 => 0.0,
            datagrams => self.ce as f64 * 100.0 / datagrams as f64,
        }
    }
}

/// One sub-interval of all connections together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Interval {
    /// 1, 2, 3, ...
    pub number: u32,
    /// Connections that are in it.
    pub reported: u32,
    /// Connections that were active when it was closed.
    pub active_connections: u32,
    /// From the first status PDU to its end in ms, at the connection that was added last.
    pub accumulated_ms: u32,
    /// Sums of the rates of the connections, each over its own time.
    pub rates: Rates,
    /// Of the interface, where that is watched; the caller fills it in.
    pub interface: Option<InterfaceRate>,
    /// Datagrams.
    pub delivery: Delivery,
    /// One-way delay variation.
    pub delay_var: Times,
    /// Round-trip delay variation.
    pub rtt_var: Times,
    /// Least difference of arrival and sending time since the test began in ms, by two clocks.
    pub clock_delta_min_ms: i64,
    /// Least round-trip time since the test began in ms, if there was one.
    pub rtt_min_ms: Option<u32>,
}

impl Interval {
    /// Adds what one connection had.
    pub fn add(&mut self, part: &SubInterval, ipv6: bool) {
        let stats = &part.stats;
        self.clock_delta_min_ms = if self.reported == 0 {
            part.clock_delta_min_ms
        } else {
            self.clock_delta_min_ms.min(part.clock_delta_min_ms)
        };
        self.rtt_min_ms = least(self.rtt_min_ms, part.rtt_min_ms);
        self.number = part.number;
        self.reported += 1;
        self.accumulated_ms = stats.accum_time;
        self.rates.add(&Rates::of(stats, ipv6));
        self.delivery.add(&Delivery {
            datagrams: stats.rx_datagrams.into(),
            bytes: stats.rx_bytes,
            lost: stats.seq_err_loss.into(),
            reordered: stats.seq_err_ooo.into(),
            replicated: stats.seq_err_dup.into(),
            ce: part.ce.into(),
        });
        self.delay_var.add(&Times {
            min_ms: stats.delay_var_min,
            max_ms: stats.delay_var_max,
            sum_ms: stats.delay_var_sum.into(),
            count: stats.delay_var_cnt.into(),
        });
        self.rtt_var.add(&Times {
            min_ms: stats.rtt_var_minimum,
            max_ms: stats.rtt_var_maximum,
            sum_ms: part.rtt_var_sum_ms,
            count: part.rtt_var_count.into(),
        });
    }

    /// Least one-way delay in it in ms, the difference of the clocks included.
    #[must_use]
    pub fn one_way_min_ms(&self) -> i64 {
        self.clock_delta_min_ms
            .saturating_add(self.delay_var.spread().min_ms.into())
    }
}

pub(super) fn least(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
