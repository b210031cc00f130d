//! Wall-clock time as the wire has it: Unix seconds and nanoseconds, 32 bits each.
//!
//! Differences are rounded here to the milliseconds of TR-471 so that every place rounds alike. The
//! numbers may come from a peer: nothing here overflows or panics for any value. No timer is ever
//! set by wall time.

use ringmill_engine::time::Nanos;

/// Nanoseconds in a millisecond.
const NANOS_PER_MS: i64 = 1_000_000;

/// A point of Unix time. From a peer `nsec` may be anything; it then counts as so many nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct WallTime {
    /// Whole seconds since 1970. Wraps in 2106 with the wire format.
    pub sec: u32,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

impl WallTime {
    /// Zero on the wire: no such time yet.
    pub const NONE: Self = Self { sec: 0, nsec: 0 };

    /// From nanoseconds since 1970, as a system clock gives them. Seconds past 32 bits wrap.
    #[must_use]
    pub const fn from_unix_nanos(nanos: u64) -> Self {
        Self {
            sec: (nanos / 1_000_000_000) as u32,
            nsec: (nanos % 1_000_000_000) as u32,
        }
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub const fn unix_nanos(self) -> u64 {
        self.sec as u64 * 1_000_000_000 + self.nsec as u64
    }

    /// Nanoseconds from `earlier` to this; negative when it was later.
    #[must_use]
    pub const fn nanos_since(self, earlier: Self) -> i64 {
        // Both are below 2^32 * 10^9 + 2^32 < 2^62.
        self.unix_nanos() as i64 - earlier.unix_nanos() as i64
    }

    /// Milliseconds from `earlier` to this, rounded half up; negative when it was later.
    #[must_use]
    pub const fn ms_since(self, earlier: Self) -> i64 {
        (self.nanos_since(earlier) + NANOS_PER_MS / 2).div_euclid(NANOS_PER_MS)
    }

    /// Microseconds from `earlier` to this, rounded down; negative when it was later.
    #[must_use]
    pub const fn us_since(self, earlier: Self) -> i64 {
        self.nanos_since(earlier).div_euclid(1_000)
    }
}

/// A length of monotonic time in milliseconds, rounded half up.
#[must_use]
pub const fn nanos_to_ms(nanos: Nanos) -> u64 {
    nanos.saturating_add(500_000) / 1_000_000
}

/// One moment on both clocks, read together by the caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Instants {
    /// The monotonic clock: every timer and duration.
    pub now: Nanos,
    /// The wall clock: only for the wire, the KDF and records.
    pub wall: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(sec: u32, nsec: u32) -> WallTime {
        WallTime { sec, nsec }
    }

    #[test]
    fn differences_round_half_up() {
        for (later, earlier, ms) in [
            (at(10, 0), at(10, 0), 0),
            (at(10, 499_999), at(10, 0), 0),
            (at(10, 500_000), at(10, 0), 1),
            (at(10, 1_500_000), at(10, 0), 2),
            (at(10, 0), at(10, 499_999), 0),
            (at(10, 0), at(10, 500_000), 0),
            (at(10, 0), at(10, 500_001), -1),
            (at(10, 0), at(10, 1_500_000), -1),
            (at(10, 0), at(9, 999_000_000), 1),
            (at(9, 999_000_000), at(10, 0), -1),
            (at(u32::MAX, u32::MAX), at(0, 0), 4_294_967_299_295),
            (at(0, 0), at(u32::MAX, u32::MAX), -4_294_967_299_295),
        ] {
            assert_eq!(later.ms_since(earlier), ms, "{later:?} - {earlier:?}");
        }
    }

    #[test]
    fn lengths_round_half_up() {
        for (nanos, ms) in [(0, 0), (499_999, 0), (500_000, 1), (2_499_999, 2)] {
            assert_eq!(nanos_to_ms(nanos), ms);
        }
        assert_eq!(nanos_to_ms(Nanos::MAX), Nanos::MAX / 1_000_000, "saturates");
    }

    #[test]
    fn unix_nanoseconds_convert_both_ways() {
        for nanos in [0, 1, 999_999_999, 1_000_000_000, 1_795_210_039_939_949_981] {
            assert_eq!(WallTime::from_unix_nanos(nanos).unix_nanos(), nanos);
        }
        assert_eq!(
            WallTime::from_unix_nanos(1_795_210_039_939_949_981),
            at(1_795_210_039, 939_949_981)
        );
    }
}
