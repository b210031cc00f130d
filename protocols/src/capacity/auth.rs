//! Signatures of control PDUs: HMAC-SHA-256, with keys derived by the KDF of NIST SP 800-108 in
//! version 20 and with the shared key itself in version 11 (RFC 9946 sections 5.3 and 5.4).
//!
//! A PDU is signed and verified in place in its encoded bytes, as it goes over the wire. Digests are
//! compared in constant time; keys are wiped when dropped and never shown.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::keys::SharedKey;
use super::pdu::{Activation, Authentication, Null, Setup, Version};
use super::time::WallTime;

/// Bytes of a derived key.
pub const KEY_LEN: usize = 32;
/// The label of the key derivation.
const LABEL: &[u8; 6] = b"UDPSTP";
/// Bits that are derived: two keys.
const DERIVED_BITS: u32 = 8 * 2 * KEY_LEN as u32;

/// The keys of one connection with version 20: each end signs with its own.
#[derive(Clone)]
pub struct Keys {
    client: Zeroizing<[u8; KEY_LEN]>,
    server: Zeroizing<[u8; KEY_LEN]>,
}

impl Keys {
    /// Derives both from the shared key and the `authUnixTime` of the connection's **setup
    /// request** (NIST SP 800-108, counter mode).
    #[must_use]
    pub fn derive(key: &SharedKey, setup_auth_unix_time: u32) -> Self {
        let mut decimal = [0; 10];
        let context = decimal_ascii(setup_auth_unix_time, &mut decimal);
        let block = |counter: u32| -> Zeroizing<[u8; KEY_LEN]> {
            let mut mac = hmac(key.bytes());
            mac.update(&counter.to_be_bytes());
            mac.update(LABEL);
            mac.update(&[0]);
            mac.update(context);
            mac.update(&DERIVED_BITS.to_be_bytes());
            Zeroizing::new(mac.finalize().into_bytes().into())
        };
        Self {
            client: block(1),
            server: block(2),
        }
    }

    /// Signs setup and activation requests.
    #[must_use]
    pub fn client(&self) -> &[u8; KEY_LEN] {
        &self.client
    }

    /// Signs setup responses, null requests and activation responses.
    #[must_use]
    pub fn server(&self) -> &[u8; KEY_LEN] {
        &self.server
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// `number` in decimal without leading zeros.
fn decimal_ascii(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[first..];
        }
    }
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// The PDUs that can be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// Setup request or response.
    Setup,
    /// Null request.
    Null,
    /// Activation request or response of version 20; version 11 signs none.
    Activation,
}

impl Signed {
    /// Bytes of the PDU.
    #[must_use]
    pub const fn pdu_len(self) -> usize {
        match self {
            Self::Setup => Setup::LEN,
            Self::Null => Null::LEN,
            Self::Activation => Activation::len(Version::V20),
        }
    }

    /// Where the digest is: behind it key id, a reserved byte and the checksum end the PDU.
    const fn digest_at(self) -> usize {
        self.pdu_len() - 4 - Authentication::DIGEST_LEN
    }

    /// The digest of an encoded PDU, digest and checksum taken as zeros.
    fn digest(self, key: &[u8], bytes: &[u8]) -> [u8; Authentication::DIGEST_LEN] {
        let digest_at = self.digest_at();
        let digest_end = digest_at + Authentication::DIGEST_LEN;
        let mut mac = hmac(key);
        mac.update(&bytes[..digest_at]);
        mac.update(&[0; Authentication::DIGEST_LEN]);
        mac.update(&bytes[digest_end..self.pdu_len() - 2]);
        mac.update(&[0; 2]);
        mac.finalize().into_bytes().into()
    }

    /// Signs an encoded PDU in place. Mode, time and key id are in it already; the checksum, which
    /// comes last, is zeroed.
    ///
    /// # Panics
    /// The buffer is shorter than the PDU.
    pub fn sign(self, key: &[u8], bytes: &mut [u8]) {
        let bytes = &mut bytes[..self.pdu_len()];
        let digest = self.digest(key, bytes);
        let digest_at = self.digest_at();
        bytes[digest_at..digest_at + Authentication::DIGEST_LEN].copy_from_slice(&digest);
        bytes[self.pdu_len() - 2..].fill(0);
    }

    /// Whether the digest of a PDU is right, in constant time. Bytes of another length are wrong.
    #[must_use]
    pub fn verify(self, key: &[u8], bytes: &[u8]) -> bool {
        if bytes.len() != self.pdu_len() {
            return false;
        }
        let mut digest = self.digest(key, bytes);
        let digest_at = self.digest_at();
        let right = digest.ct_eq(&bytes[digest_at..digest_at + Authentication::DIGEST_LEN]);
        digest.zeroize();
        right.into()
    }

    /// Whether a signed PDU is right, first its digest, then its time.
    ///
    /// # Errors
    /// Which of the two is not.
    pub fn check(
        self,
        key: &[u8],
        bytes: &[u8],
        wall: WallTime,
        window_s: u32,
    ) -> Result<(), AuthError> {
        if !self.verify(key, bytes) {
            return Err(AuthError::Digest);
        }
        let time_at = self.digest_at() - 4;
        let time: [u8; 4] = std::array::from_fn(|index| bytes[time_at + index]);
        check_time(u32::from_be_bytes(time), wall, window_s)
    }
}

/// Whether the time of a signature is near enough to now, both in whole seconds.
///
/// # Errors
/// How far it is away.
pub fn check_time(auth_unix_time: u32, wall: WallTime, window_s: u32) -> Result<(), AuthError> {
    if auth_unix_time.abs_diff(wall.sec) <= window_s {
        Ok(())
    } else {
        Err(AuthError::Time {
            offset_s: i64::from(auth_unix_time) - i64::from(wall.sec),
        })
    }
}

/// Why a signed PDU is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The digest is wrong.
    #[error("the signature is wrong: the keys of client and server differ")]
    Digest,
    /// The time of the signature is outside the window.
    #[error(
        "the peer's clock differs from ours by {offset_s} s, too much for authentication; \
         set both clocks by NTP"
    )]
    Time {
        /// The peer's clock minus ours, in seconds.
        offset_s: i64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_decimal() {
        for number in [0, 7, 10, 1_795_210_193, u32::MAX] {
            let mut digits = [0; 10];
            assert_eq!(
                decimal_ascii(number, &mut digits),
                number.to_string().as_bytes()
            );
        }
    }

    #[test]
    fn the_window_is_closed_at_both_ends() {
        let wall = WallTime {
            sec: 1_000_000,
            nsec: 999_999_999,
        };
        for (time, window, offset) in [
            (1_000_000, 5, None),
            (1_000_005, 5, None),
            (999_995, 5, None),
            (1_000_006, 5, Some(6)),
            (999_994, 5, Some(-6)),
            (999_850, 150, None),
            (999_849, 150, Some(-151)),
            (u32::MAX, 5, Some(4_293_967_295)),
            (0, 150, Some(-1_000_000)),
        ] {
            let expected = offset.map_or(Ok(()), |offset_s| Err(AuthError::Time { offset_s }));
            assert_eq!(
                check_time(time, wall, window),
                expected,
                "{time} ± {window}"
            );
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let key = [7; KEY_LEN];
        for signed in [Signed::Setup, Signed::Null, Signed::Activation] {
            let mut bytes = [0xA5; Activation::LEN_MAX];
            let bytes = &mut bytes[..signed.pdu_len()];
            signed.sign(&key, bytes);
            assert!(signed.verify(&key, bytes));
            assert!(!signed.verify(&[8; KEY_LEN], bytes));
            assert!(!signed.verify(&key, &bytes[1..]), "another length");
            // The checksum is filled after the signature and is not part of it.
            for at in 0..signed.pdu_len() - 2 {
                bytes[at] ^= 1;
                assert!(!signed.verify(&key, bytes), "{signed:?}: byte {at} changed");
                bytes[at] ^= 1;
            }
        }
    }
}
