//! The optional header checksum: the Internet checksum of RFC 1071, zero for "not used".
//!
//! It is filled last, over the bytes as they go out, and checked first. What it covers is the whole
//! PDU, and of a load PDU the header only.

use super::{DecodeError, Pdu};

/// The one's complement sum of big-endian words; an odd last byte counts as the high half of one.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// Fills the checksum at `at`, over all of `bytes`. It comes out as 0xFFFF rather than as 0 where
/// the two mean the same sum, as 0 would say "not used".
pub(super) fn fill(bytes: &mut [u8], at: usize) {
    super::put(bytes, at, [0, 0]);
    let check_sum = match !sum(bytes) {
        0 => 0xFFFF,
        other => other,
    };
    super::put(bytes, at, check_sum.to_be_bytes());
}

/// Checks the checksum at `at` over all of `bytes`, unless it is 0.
pub(super) fn verify(pdu: Pdu, bytes: &[u8], at: usize) -> Result<(), DecodeError> {
    if super::u16_at(bytes, at) == 0 || sum(bytes) == 0xFFFF {
        Ok(())
    } else {
        Err(DecodeError::Checksum { pdu })
    }
}
