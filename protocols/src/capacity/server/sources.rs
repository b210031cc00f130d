//! How many pending tests one source may have: counted for all shards in constant memory.
//!
//! Addresses share counters by a keyed hash, so a source may find less than its bound, never more,
//! and nobody can choose whom to share with. IPv6 hosts own their whole /64 and count as one.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counters: a few times as many as tests that can be pending.
const COUNTERS: u64 = 16_384;

/// See the [module's page](self).
#[derive(Debug)]
pub(super) struct Sources {
    counters: Arc<[AtomicU32]>,
    max: u32,
    key: RandomState,
}

/// A pending test of a source, until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    counters: Arc<[AtomicU32]>,
    place: usize,
}

impl Sources {
    pub(super) fn new(max: u32) -> Self {
        Self {
            counters: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect(),
            max,
            key: RandomState::new(),
        }
    }

    /// Counts a pending test of a source; `None` when it has as many as it may.
    pub(super) fn take(&self, source: IpAddr) -> Option<Hold> {
        let place = (self.key.hash_one(owner(source)) % COUNTERS) as usize;
        let more = |count: u32| (count < self.max).then_some(count + 1);
        let counter = &self.counters[place];
        counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Hold {
            counters: Arc::clone(&self.counters),
            place,
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.counters[self.place].fetch_sub(1, Ordering::Relaxed);
    }
}

/// What of an address belongs to one host.
fn owner(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_gets_so_many_and_gives_them_back() {
        let sources = Sources::new(2);
        let address = |text: &str| text.parse().expect("an address");
        let one = sources.take(address("192.0.2.1"));
        let two = sources.take(address("192.0.2.1"));
        assert!(one.is_some() && two.is_some());
        assert!(sources.take(address("192.0.2.1")).is_none());
        drop(one);
        assert!(sources.take(address("192.0.2.1")).is_some());
        // A /64 is one source.
        let _first = sources.take(address("2001:db8::1"));
        let _second = sources.take(address("2001:db8::2"));
        assert!(sources.take(address("2001:db8::3")).is_none());
        assert!(sources.take(address("2001:db8:0:1::3")).is_some());
    }
}
