//! Signed setup requests that were taken lately, so that a recording of one opens nothing.
//!
//! Only requests whose signature was right come here, so their digests cannot be chosen by anybody
//! without the key. Constant memory, shared by all shards: a place holds part of a digest and the
//! time until which it counts. Where all places of a digest are taken, the oldest gives way.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::capacity::pdu::Authentication;

/// Places of one digest.
const WAYS: usize = 8;
/// Groups of places: 65,536 requests, as many as 300 s at 200 a second.
const GROUPS: usize = 8_192;
/// Bits of a place that hold its time, in s. The rest holds part of the digest.
const TIME_BITS: u32 = 24;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// See the [module's page](self).
#[derive(Debug)]
pub(super) struct ReplayCache {
    places: Box<[AtomicU64]>,
}

impl ReplayCache {
    pub(super) fn new() -> Self {
        Self {
            places: (0..WAYS * GROUPS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Takes note of a signature that counts until `valid_until_s`, Unix time. `false` when it was
    /// noted before and the time is not over.
    pub(super) fn insert(
        &self,
        digest: &[u8; Authentication::DIGEST_LEN],
        now_s: u32,
        valid_until_s: u32,
    ) -> bool {
        let word = |at: usize| {
            let bytes = digest[at..at + 8].try_into().expect("8 bytes");
            u64::from_be_bytes(bytes)
        };
        let group = (word(0) % GROUPS as u64) as usize * WAYS;
        let group = &self.places[group..group + WAYS];
        // 0 is a free place: the times of this century are none.
        let mark = word(8) & !TIME_MASK;
        let entry = mark | (u64::from(valid_until_s) & TIME_MASK);
        loop {
            let mut oldest: Option<(i32, &AtomicU64, u64)> = None;
            for place in group {
                let found = place.load(Ordering::Relaxed);
                let left_s = match found {
                    0 => i32::MIN,
                    _ => left_s(found, now_s),
                };
                if found != 0 && found & !TIME_MASK == mark && left_s >= 0 {
                    return false;
                }
                if oldest.is_none_or(|(least, ..)| left_s < least) {
                    oldest = Some((left_s, place, found));
                }
            }
            let Some((_, place, found)) = oldest else {
                return true;
            };
            let taken = place.compare_exchange(found, entry, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_ok() {
                return true;
            }
            // Another shard was there first, perhaps with the same request: look again.
        }
    }
}

/// Seconds until a place's time, by the low bits of both.
fn left_s(place: u64, now_s: u32) -> i32 {
    let difference = (place as u32).wrapping_sub(now_s) << (32 - TIME_BITS);
    (difference as i32) >> (32 - TIME_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> [u8; 32] {
        let mut digest = [0; 32];
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = (ringmill_engine::impairment::mix(number + (at as u64 / 8) * 7919)
                >> (8 * (at % 8))) as u8;
        }
        digest
    }

    #[test]
    fn a_signature_opens_once_while_its_time_lasts() {
        let cache = ReplayCache::new();
        let now = 1_800_000_000;
        for (name, at, until, fresh) in [
            ("the first time", now, now + 5, true),
            ("at once again", now, now + 5, false),
            ("at its last second", now + 5, now + 5, false),
            ("when its time is over", now + 6, now + 11, true),
            ("and again", now + 6, now + 11, false),
        ] {
            assert_eq!(cache.insert(&digest(1), at, until), fresh, "{name}");
        }
        assert!(cache.insert(&digest(2), now, now + 5));
    }

    #[test]
    fn many_are_remembered_and_memory_stays() {
        let cache = ReplayCache::new();
        let now = 1_800_000_000;
        for number in 0..10_000 {
            assert!(cache.insert(&digest(number), now, now + 5), "{number}");
        }
        let again = (0..10_000).filter(|number| cache.insert(&digest(*number), now, now + 5));
        // A full group has forgotten its oldest: of so few requests, next to none.
        assert!(again.count() < 10);
    }
}
