//! The wall clock as the shards see it: an offset to the monotonic one, kept by the control thread.
//!
//! A shard reads no clock of its own. Signatures are judged by this one, so that a step of the
//! host's clock reaches them; running tests keep the clock of their activation.

use std::sync::atomic::{AtomicU64, Ordering};

use ringmill_engine::time::Nanos;

use crate::capacity::time::WallTime;

/// Shared by the shards and who sets it.
#[derive(Debug, Default)]
pub struct WallClock {
    /// Unix time in ns when the monotonic clock was at 0.
    offset: AtomicU64,
}

impl WallClock {
    /// A clock that shows `unix_nanos` at the monotonic time `now`.
    #[must_use]
    pub fn new(now: Nanos, unix_nanos: u64) -> Self {
        let clock = Self::default();
        clock.set(now, unix_nanos);
        clock
    }

    /// Sets it: call this a few times a second, so that a step of the host's clock is followed.
    pub fn set(&self, now: Nanos, unix_nanos: u64) {
        // A single word that nothing else depends on.
        self.offset
            .store(unix_nanos.wrapping_sub(now), Ordering::Relaxed);
    }

    /// What it shows.
    #[must_use]
    pub fn at(&self, now: Nanos) -> WallTime {
        WallTime::from_unix_nanos(self.offset.load(Ordering::Relaxed).wrapping_add(now))
    }
}
