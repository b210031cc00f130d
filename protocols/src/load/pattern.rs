//! The bytes that load clients send and expect back: one long constant that every message is a
//! window of.
//!
//! The period is prime, so windows at multiples of a message size differ, and a byte lost, doubled
//! or moved shows as a mismatch at once. Sending is a slice of a constant: no copy, no allocation.

use std::sync::OnceLock;

/// After this many bytes the pattern repeats. Prime.
pub(crate) const PERIOD: usize = 65_521;
/// The longest window: the largest message, and the most that is sent in one piece.
pub(super) const WINDOW_MAX: usize = 1 << 20;

/// The pattern, long enough that a window may start anywhere in the first period.
pub(super) fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        // xorshift64*: any generator without a short period will do.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut period = Vec::with_capacity(PERIOD + WINDOW_MAX);
        while period.len() < PERIOD {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            period.push((state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8);
        }
        while period.len() < PERIOD + WINDOW_MAX {
            let more = (PERIOD + WINDOW_MAX - period.len()).min(PERIOD);
            period.extend_from_within(..more);
        }
        period
    })
}

/// The window of `len` bytes at a stream offset, as long as [`WINDOW_MAX`] allows.
pub(crate) fn window(offset: u64, len: usize) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    &pattern()[start..start + len.min(WINDOW_MAX)]
}

/// Counts the bytes of `data` that differ from the pattern at `offset`.
#[inline]
pub(crate) fn wrong_bytes(data: &[u8], offset: u64) -> u64 {
    let mut wrong = 0;
    let mut at = offset;
    for chunk in data.chunks(WINDOW_MAX) {
        let expected = window(at, chunk.len());
        if chunk != expected {
            wrong += chunk
                .iter()
                .zip(expected)
                .filter(|(got, want)| got != want)
                .count() as u64;
        }
        at += chunk.len() as u64;
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_repeats_after_a_period_and_not_before() {
        assert_eq!(window(0, 1000), window(PERIOD as u64, 1000));
        assert_ne!(window(0, 32), window(32, 32));
        assert_eq!(window(7, WINDOW_MAX + 5).len(), WINDOW_MAX);
    }

    #[test]
    fn a_lost_a_doubled_and_a_changed_byte_are_seen() {
        let sent = window(100, 64).to_vec();
        assert_eq!(wrong_bytes(&sent, 100), 0);
        assert!(wrong_bytes(&sent[1..], 100) > 32);
        let mut changed = sent.clone();
        changed[10] ^= 1;
        assert_eq!(wrong_bytes(&changed, 100), 1);
        assert!(wrong_bytes(&sent, 99) > 32);
    }
}
