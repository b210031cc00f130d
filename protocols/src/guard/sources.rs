//! The rate of each source: a bounded table of token buckets.
//!
//! It must never grow with the number of sources, nor let whoever forges them choose their places.

use std::net::IpAddr;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_engine::Nanos;

/// A bucket holds a tenth of a second: a loop at `x` times the rate is down to the rate after
/// `0.1 / (x − 1)` seconds, so any loop faster than 1.1 times the rate is within one second.
const BURST_PARTS_PER_SECOND: u64 = 10;
/// But a bucket of a low rate holds what one received buffer usually holds at most (64 coalesced
/// datagrams), or one second's worth when that is less.
const BURST_MIN: u64 = 64;
/// Sources remembered in each shard: 256 KiB, allocated when the first limited source comes.
///
/// A source that sends little is forgotten as soon as its bucket is full again, which takes
/// `1 / rate` seconds per datagram: to keep this table full at the default rate takes 164 million
/// datagrams per second.
pub const SOURCES_MAX: usize = SETS * WAYS;
const SETS: usize = 4096;
/// Four entries of 16 bytes are one cache line.
const WAYS: usize = 4;
pub(super) const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What counts as one source: an IPv4 address, or the /64 that one IPv6 host may fill as it likes.
#[inline]
pub(super) fn source_key(address: IpAddr) -> u64 {
    /// Where no IPv6 source can be: ffff:ffff::/32 is multicast.
    const IPV4: u64 = 0xffff_ffff_0000_0000;
    match address.to_canonical() {
        IpAddr::V4(address) => IPV4 | u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// A source and the moment at which its bucket will be full again (the theoretical arrival time of
/// the generic cell rate algorithm, ITU-T I.371). When that moment is past, the entry says nothing
/// that a new one would not, and is free.
#[derive(Debug, Clone, Copy, Default)]
struct Source {
    key: u64,
    full_at: Nanos,
}

type Set = [Source; WAYS];

/// A token bucket for each of a bounded number of sources.
///
/// A source has four possible places. When all are taken, the one whose bucket is nearest to full
/// is forgotten. That source loses nothing: it is given a fresh bucket. Sources that are being
/// limited have the emptiest buckets and are forgotten last, so a flood of forged sources, of which
/// each sends little, neither lifts a limit nor stops anyone from being answered.
#[derive(Debug)]
pub(super) struct Sources {
    /// Time that one datagram takes from a bucket.
    interval: Nanos,
    /// Time that a full bucket holds.
    capacity: Nanos,
    keys: [u64; 2],
    sets: Vec<Set>,
}

impl Sources {
    pub(super) fn new(rate: u32, seed: u64) -> Self {
        let rate = u64::from(rate.max(1));
        let interval = (NANOS_PER_SECOND + rate / 2) / rate;
        let burst = (rate / BURST_PARTS_PER_SECOND).max(rate.min(BURST_MIN));
        let mut random = SmallRng::seed_from_u64(seed);
        Self {
            interval: interval.max(1),
            capacity: burst * interval.max(1),
            keys: [random.random(), random.random()],
            sets: Vec::new(),
        }
    }

    /// Places for sources that take memory now.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// Takes up to `count` datagrams from a source's bucket. Returns how many it held, and whether
    /// another source was forgotten for it.
    #[inline]
    pub(super) fn take(&mut self, now: Nanos, key: u64, count: u64) -> (u64, bool) {
        if self.sets.is_empty() {
            self.sets = vec![Set::default(); SETS];
        }
        // Both halves of a 128-bit product with secret factors: enough to keep places secret.
        let product = u128::from(key ^ self.keys[0]) * u128::from(self.keys[1] | 1);
        let place = (product as u64 ^ (product >> 64) as u64) as usize % SETS;
        let set = &mut self.sets[place];
        let (way, evicted) = match set.iter().position(|source| source.key == key) {
            Some(way) => (way, false),
            None => {
                let fullest = (0..WAYS)
                    .min_by_key(|way| set[*way].full_at)
                    .expect("a set has ways");
                let evicted = set[fullest].full_at > now;
                set[fullest] = Source { key, full_at: now };
                (fullest, evicted)
            }
        };
        let source = &mut set[way];
        let full_at = source.full_at.max(now);
        // What the bucket holds, as time. `now` may lag what another turn has seen, never by much.
        let held = (now + self.capacity).saturating_sub(full_at);
        let wanted = count.saturating_mul(self.interval);
        let admitted = if wanted <= held {
            count
        } else {
            held / self.interval
        };
        source.full_at = full_at + admitted * self.interval;
        (admitted, evicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_one_source() {
        let cases = [
            (
                "198.51.100.1:1000",
                "198.51.100.1:2000",
                true,
                "ports of one address",
            ),
            (
                "198.51.100.1:1000",
                "198.51.100.2:1000",
                false,
                "two addresses",
            ),
            (
                "[2001:db8:0:1::1]:1000",
                "[2001:db8:0:1:ffff::2]:1000",
                true,
                "one /64",
            ),
            (
                "[2001:db8:0:1::1]:1000",
                "[2001:db8:0:2::1]:1000",
                false,
                "two /64s",
            ),
            (
                "198.51.100.1:1000",
                "[::ffff:198.51.100.1]:1000",
                true,
                "mapped and not",
            ),
            ("0.0.0.1:1000", "[::1]:1000", false, "families do not mix"),
        ];
        for (first, second, same, what) in cases {
            let keys = [first, second]
                .map(|text| source_key(text.parse::<std::net::SocketAddr>().unwrap().ip()));
            assert_eq!(keys[0] == keys[1], same, "{what}");
        }
    }
}
