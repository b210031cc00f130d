//! The PDUs of the capacity test: one file each, and what they share (RFC 9946 sections 6 to 8; RFC 9097 and the
//! format of OB-UDPST 8.2.0 for version 11).
//!
//! A PDU is a struct with the fields of the wire. `decode` accepts exactly what a careful receiver
//! may accept and says why not otherwise; `encode` writes into the caller's buffer and allocates
//! nothing. The checksum field is carried as it is: `fill_check_sum` fills it over the encoded
//! bytes, after the signature.

mod activation;
mod checksum;
mod load;
mod notice;
mod null;
mod rate;
mod setup;
mod status;

pub use activation::Activation;
pub use load::Load;
pub use notice::SenderNotice;
pub use null::Null;
pub use rate::RateStructure;
pub use setup::{Setup, SetupCode};
pub use status::{Status, StatusChecksum, SubIntervalStats};

/// How a PDU is laid out. What the wire says in `protocolVer` may be another number, see
/// [`Version::of`], and is kept where a response must repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// OB-UDPST 8.2.0: activation of 60 bytes, status of 168, no null request.
    V11,
    /// RFC 9946, OB-UDPST 9.0.0.
    V20,
}

impl Version {
    /// Least `protocolVer` that a server takes.
    pub const WIRE_MIN: u16 = 11;
    /// Highest `protocolVer`, which a rejection names.
    pub const WIRE_MAX: u16 = 20;

    /// The layout for a `protocolVer`: 11 to 19 as 11, 20 as 20, nothing else.
    #[must_use]
    pub const fn of(wire: u16) -> Option<Self> {
        match wire {
            Self::WIRE_MAX => Some(Self::V20),
            Self::WIRE_MIN..Self::WIRE_MAX => Some(Self::V11),
            _ => None,
        }
    }

    /// The `protocolVer` to send when nothing says otherwise.
    #[must_use]
    pub const fn wire(self) -> u16 {
        match self {
            Self::V11 => 11,
            Self::V20 => 20,
        }
    }
}

/// Which PDU, by the id in its first two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pdu {
    /// Setup request or response, id 0xACE1.
    Setup,
    /// Null request, id 0xDEAD.
    Null,
    /// Test activation request or response, id 0xACE2.
    Activation,
    /// Load, id 0xBEEF.
    Load,
    /// Status, id 0xFEED.
    Status,
}

impl Pdu {
    /// The id on the wire.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Setup => 0xACE1,
            Self::Null => 0xDEAD,
            Self::Activation => 0xACE2,
            Self::Load => 0xBEEF,
            Self::Status => 0xFEED,
        }
    }

    /// Recognises a datagram by its first two bytes alone.
    #[must_use]
    pub const fn of(bytes: &[u8]) -> Option<Self> {
        let [first, second, ..] = *bytes else {
            return None;
        };
        Some(match u16::from_be_bytes([first, second]) {
            0xACE1 => Self::Setup,
            0xDEAD => Self::Null,
            0xACE2 => Self::Activation,
            0xBEEF => Self::Load,
            0xFEED => Self::Status,
            _ => return None,
        })
    }

    /// The name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Null => "null request",
            Self::Activation => "test activation",
            Self::Load => "load",
            Self::Status => "status",
        }
    }
}

impl std::fmt::Display for Pdu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a datagram is not the PDU that was expected. The three kinds are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Of another size than the PDU has.
    #[error("{len} bytes is no size of a {pdu} PDU")]
    Size {
        /// What was expected.
        pdu: Pdu,
        /// Bytes of the datagram.
        len: usize,
    },
    /// A field has a value that no such PDU has.
    #[error("{field} of a {pdu} PDU cannot be {value}")]
    Format {
        /// What was expected.
        pdu: Pdu,
        /// Name of the field on the wire.
        field: &'static str,
        /// What it says.
        value: u32,
    },
    /// The checksum is used and wrong.
    #[error("the checksum of a {pdu} PDU is wrong")]
    Checksum {
        /// What was expected.
        pdu: Pdu,
    },
}

/// The `testAction` of load and status PDUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TestAction {
    /// Testing.
    #[default]
    Test,
    /// The stop timer has passed and no stop was sent yet; seldom on the wire, and taken as a stop.
    StopPending,
    /// Stop.
    Stop,
}

impl TestAction {
    /// The octet on the wire.
    #[must_use]
    pub const fn wire(self) -> u8 {
        match self {
            Self::Test => 0,
            Self::StopPending => 1,
            Self::Stop => 2,
        }
    }

    fn read(pdu: Pdu, value: u8) -> Result<Self, DecodeError> {
        match value {
            0 => Ok(Self::Test),
            1 => Ok(Self::StopPending),
            2 => Ok(Self::Stop),
            _ => Err(format(pdu, "testAction", value)),
        }
    }
}

/// The authentication fields, which every signed PDU has in the same order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Authentication {
    /// 0 for none, 1 for signed control PDUs; 2 is defined and spoken by nobody.
    pub auth_mode: u8,
    /// Unix time of the signature, in seconds.
    pub auth_unix_time: u32,
    /// HMAC-SHA-256 over the PDU, zeros with mode 0.
    pub auth_digest: [u8; Self::DIGEST_LEN],
    /// Which key.
    pub key_id: u8,
    /// Reserved, 0; kept because a setup response repeats it.
    pub reserved_auth1: u8,
}

impl Authentication {
    /// `auth_mode` of a test without authentication.
    pub const MODE_NONE: u8 = 0;
    /// `auth_mode` of a test whose control PDUs are signed.
    pub const MODE_CONTROL: u8 = 1;
    /// Bytes of a digest.
    pub const DIGEST_LEN: usize = 32;

    /// Reads the fields, which lie without a gap from the mode on.
    fn read(bytes: &[u8], at: usize) -> Self {
        let digest_at = at + 5;
        let mut auth_digest = [0; Self::DIGEST_LEN];
        auth_digest.copy_from_slice(&bytes[digest_at..digest_at + Self::DIGEST_LEN]);
        Self {
            auth_mode: bytes[at],
            auth_unix_time: u32_at(bytes, at + 1),
            auth_digest,
            key_id: bytes[digest_at + Self::DIGEST_LEN],
            reserved_auth1: bytes[digest_at + Self::DIGEST_LEN + 1],
        }
    }

    fn write(&self, bytes: &mut [u8], at: usize) {
        let digest_at = at + 5;
        bytes[at] = self.auth_mode;
        put(bytes, at + 1, self.auth_unix_time.to_be_bytes());
        put(bytes, digest_at, self.auth_digest);
        bytes[digest_at + Self::DIGEST_LEN] = self.key_id;
        bytes[digest_at + Self::DIGEST_LEN + 1] = self.reserved_auth1;
    }
}

/// The datagram must have exactly the size of `pdu`.
fn check_len(pdu: Pdu, bytes: &[u8], len: usize) -> Result<(), DecodeError> {
    if bytes.len() == len {
        Ok(())
    } else {
        Err(DecodeError::Size {
            pdu,
            len: bytes.len(),
        })
    }
}

fn format(pdu: Pdu, field: &'static str, value: impl Into<u32>) -> DecodeError {
    DecodeError::Format {
        pdu,
        field,
        value: value.into(),
    }
}

/// The id must be that of `pdu`. The caller has checked the size.
fn check_id(pdu: Pdu, bytes: &[u8]) -> Result<(), DecodeError> {
    let id = u16_at(bytes, 0);
    if id == pdu.id() {
        Ok(())
    } else {
        Err(format(pdu, "pduId", id))
    }
}

fn read_flag(pdu: Pdu, field: &'static str, value: u8) -> Result<bool, DecodeError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(format(pdu, field, value)),
    }
}

// Offsets below are constants of a layout whose size the caller has checked.

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}
