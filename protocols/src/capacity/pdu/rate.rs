//! The sending rate structure: 28 bytes that say what the two transmitters of a sender do.
//!
//! Sizes are for IPv4; a sender on IPv6 takes 20 bytes off by itself. The numbers are carried as
//! they came: whoever sends by them bounds them first.

use super::{put, u32_at};

/// What a sender's two transmitters do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RateStructure {
    /// Interval of transmitter 1 in µs, 0 for off.
    pub tx_interval1: u32,
    /// UDP payload of its datagrams in bytes, with [`RateStructure::RANDOM`].
    pub udp_payload1: u32,
    /// Datagrams in each of its bursts.
    pub burst_size1: u32,
    /// Interval of transmitter 2 in µs, 0 for off.
    pub tx_interval2: u32,
    /// UDP payload of its datagrams in bytes, with [`RateStructure::RANDOM`].
    pub udp_payload2: u32,
    /// Datagrams in each of its bursts.
    pub burst_size2: u32,
    /// UDP payload in bytes of one datagram after each of its bursts, 0 for none, with
    /// [`RateStructure::RANDOM`].
    pub udp_addon2: u32,
}

impl RateStructure {
    /// Bytes on the wire.
    pub const LEN: usize = 28;
    /// Set in a payload or add-on: the other bits are the largest size, and each datagram's is drawn
    /// anew.
    pub const RANDOM: u32 = 1 << 31;

    pub(super) fn read(bytes: &[u8], at: usize) -> Self {
        Self {
            tx_interval1: u32_at(bytes, at),
            udp_payload1: u32_at(bytes, at + 4),
            burst_size1: u32_at(bytes, at + 8),
            tx_interval2: u32_at(bytes, at + 12),
            udp_payload2: u32_at(bytes, at + 16),
            burst_size2: u32_at(bytes, at + 20),
            udp_addon2: u32_at(bytes, at + 24),
        }
    }

    pub(super) fn write(&self, bytes: &mut [u8], at: usize) {
        for (index, value) in [
            self.tx_interval1,
            self.udp_payload1,
            self.burst_size1,
            self.tx_interval2,
            self.udp_payload2,
            self.burst_size2,
            self.udp_addon2,
        ]
        .into_iter()
        .enumerate()
        {
            put(bytes, at + 4 * index, value.to_be_bytes());
        }
    }
}
