//! Time inside a shard: monotonic nanoseconds in one integer. Never the wall clock, which
//! may jump; that is for wire formats that want it.
//!
//! Only the loop of a shard reads the clock (once a turn) and hands the result down; a
//! protocol that reads it by itself could not be run by the simulator.

use std::time::Duration;

/// A point in monotonic time, or a length of it, in nanoseconds. Points of different
/// machines or boots cannot be compared. 64 bits last 584 years.
pub type Nanos = u64;

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: Nanos = 1_000_000_000;

/// Reads CLOCK_MONOTONIC. A vDSO call, no system call, some 20 to 40 ns.
#[inline]
#[must_use]
pub fn monotonic_now() -> Nanos {
    let time = crate::sys::clock::monotonic();
    // The monotonic clock starts at or after zero, so neither part is ever negative.
    time.tv_sec as u64 * NANOS_PER_SECOND + time.tv_nsec as u64
}

/// A length of time as nanoseconds; more than 584 years become `Nanos::MAX`.
#[inline]
#[must_use]
pub const fn from_duration(duration: Duration) -> Nanos {
    let nanos = duration.as_nanos();
    if nanos > Nanos::MAX as u128 {
        Nanos::MAX
    } else {
        nanos as Nanos
    }
}

/// A length of time in nanoseconds as a `Duration`. Exact.
#[inline]
#[must_use]
pub const fn to_duration(nanos: Nanos) -> Duration {
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back() {
        let mut last = monotonic_now();
        assert!(last > 0);
        for _ in 0..10_000 {
            let now = monotonic_now();
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
    }

    #[test]
    fn durations_convert() {
        for (duration, nanos) in [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_millis(3), 3_000_000),
            (Duration::from_nanos(u64::MAX), u64::MAX),
        ] {
            assert_eq!(from_duration(duration), nanos);
            assert_eq!(to_duration(nanos), duration);
        }
        assert_eq!(from_duration(Duration::MAX), Nanos::MAX, "saturates");
    }
}
