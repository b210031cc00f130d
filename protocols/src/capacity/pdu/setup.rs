//! The setup PDU: request to the control port and its response, 56 bytes in both versions.
//!
//! Every byte is a field here, also what is reserved or unknown, because the response is the request
//! with a few fields changed. A response is never taken for a request: two servers could be made to
//! answer each other for ever.

use super::{Authentication, DecodeError, Pdu, check_id, check_len, checksum, format, put, u16_at};

const AUTH_AT: usize = 15;
/// Where the checksum is.
const CHECK_SUM_AT: usize = 54;

/// A setup request or response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Version as the wire has it, see [`Version::of`](super::Version::of).
    pub protocol_ver: u16,
    /// Index of this connection within the test.
    pub mc_index: u8,
    /// Connections that the test attempts.
    pub mc_count: u8,
    /// Random identity of the test, the same in all of its connections.
    pub mc_ident: u16,
    /// [`Setup::REQUEST`] or [`Setup::RESPONSE`].
    pub cmd_request: u8,
    /// 0 in a request; in a response see [`SetupCode`].
    pub cmd_response: u8,
    /// What the connection may need in Mbit/s, 0 for not given, with [`Setup::UPSTREAM`].
    pub max_bandwidth: u16,
    /// 0 in a request; in a positive response the UDP port of the test.
    pub test_port: u16,
    /// [`Setup::JUMBO`] and [`Setup::TRADITIONAL`]; other bits are ignored and repeated.
    pub modifier_bitmap: u8,
    /// Authentication.
    pub auth: Authentication,
    /// The checksum as it was on the wire, 0 for not used.
    pub check_sum: u16,
}

impl Setup {
    /// Bytes of the PDU.
    pub const LEN: usize = 56;
    /// `cmd_request` of a request.
    pub const REQUEST: u8 = 1;
    /// `cmd_request` of a response.
    pub const RESPONSE: u8 = 2;
    /// In `max_bandwidth`: the test is upstream.
    pub const UPSTREAM: u16 = 0x8000;
    /// Largest bandwidth that `max_bandwidth` can give, in Mbit/s.
    pub const BANDWIDTH_MAX_MBPS: u16 = 0x7FFF;
    /// In `modifier_bitmap`: jumbo datagrams are allowed.
    pub const JUMBO: u8 = 0x01;
    /// In `modifier_bitmap`: datagrams fill an MTU of 1500.
    pub const TRADITIONAL: u8 = 0x02;

    /// The bandwidth that may be needed, in Mbit/s; 0 for not given.
    #[must_use]
    pub const fn bandwidth_mbps(&self) -> u16 {
        self.max_bandwidth & Self::BANDWIDTH_MAX_MBPS
    }

    /// Whether the bandwidth is for an upstream test.
    #[must_use]
    pub const fn upstream(&self) -> bool {
        self.max_bandwidth & Self::UPSTREAM != 0
    }

    /// Reads a request.
    ///
    /// # Errors
    /// The datagram is no setup request; a setup response is none, nor is a request that already
    /// carries a response code.
    pub fn decode_request(bytes: &[u8]) -> Result<Self, DecodeError> {
        let setup = Self::decode_as(bytes, Self::REQUEST)?;
        if setup.cmd_response == 0 {
            Ok(setup)
        } else {
            Err(format(Pdu::Setup, "cmdResponse", setup.cmd_response))
        }
    }

    /// Reads a response.
    ///
    /// # Errors
    /// The datagram is no setup response.
    pub fn decode_response(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_as(bytes, Self::RESPONSE)
    }

    fn decode_as(bytes: &[u8], cmd_request: u8) -> Result<Self, DecodeError> {
        let pdu = Pdu::Setup;
        check_len(pdu, bytes, Self::LEN)?;
        check_id(pdu, bytes)?;
        if bytes[8] != cmd_request {
            return Err(format(pdu, "cmdRequest", bytes[8]));
        }
        checksum::verify(pdu, bytes, CHECK_SUM_AT)?;
        Ok(Self {
            protocol_ver: u16_at(bytes, 2),
            mc_index: bytes[4],
            mc_count: bytes[5],
            mc_ident: u16_at(bytes, 6),
            cmd_request,
            cmd_response: bytes[9],
            max_bandwidth: u16_at(bytes, 10),
            test_port: u16_at(bytes, 12),
            modifier_bitmap: bytes[14],
            auth: Authentication::read(bytes, AUTH_AT),
            check_sum: u16_at(bytes, CHECK_SUM_AT),
        })
    }

    /// Writes the PDU and returns its length.
    ///
    /// # Panics
    /// The buffer is shorter than [`Self::LEN`].
    pub fn encode(&self, bytes: &mut [u8]) -> usize {
        let bytes = &mut bytes[..Self::LEN];
        put(bytes, 0, Pdu::Setup.id().to_be_bytes());
        put(bytes, 2, self.protocol_ver.to_be_bytes());
        bytes[4] = self.mc_index;
        bytes[5] = self.mc_count;
        put(bytes, 6, self.mc_ident.to_be_bytes());
        bytes[8] = self.cmd_request;
        bytes[9] = self.cmd_response;
        put(bytes, 10, self.max_bandwidth.to_be_bytes());
        put(bytes, 12, self.test_port.to_be_bytes());
        bytes[14] = self.modifier_bitmap;
        self.auth.write(bytes, AUTH_AT);
        put(bytes, CHECK_SUM_AT, self.check_sum.to_be_bytes());
        Self::LEN
    }

    /// Fills the checksum of an encoded PDU, after the signature.
    ///
    /// # Panics
    /// The buffer is shorter than [`Self::LEN`].
    pub fn fill_check_sum(bytes: &mut [u8]) {
        checksum::fill(&mut bytes[..Self::LEN], CHECK_SUM_AT);
    }
}

/// The answer to a setup request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SetupCode {
    /// Accepted.
    Accepted = 1,
    /// The protocol version is not supported; the response carries the server's.
    Version = 2,
    /// The jumbo setting differs.
    Jumbo = 3,
    /// Authentication came and the server has no key.
    AuthenticationNotConfigured = 4,
    /// Authentication is required.
    AuthenticationRequired = 5,
    /// The authentication mode is not supported.
    AuthenticationMode = 6,
    /// The digest is wrong.
    AuthenticationFailed = 7,
    /// The time of the signature is outside the window.
    AuthenticationTime = 8,
    /// The server wants to be told a bandwidth.
    BandwidthMissing = 9,
    /// The bandwidth is not to be had now.
    BandwidthUnavailable = 10,
    /// The traditional MTU setting differs.
    Traditional = 11,
    /// Index or number of connections is impossible.
    Connections = 12,
    /// The server could not open another connection.
    NoConnection = 13,
}

impl SetupCode {
    /// Every code, in their order on the wire.
    pub const ALL: [Self; 13] = [
        Self::Accepted,
        Self::Version,
        Self::Jumbo,
        Self::AuthenticationNotConfigured,
        Self::AuthenticationRequired,
        Self::AuthenticationMode,
        Self::AuthenticationFailed,
        Self::AuthenticationTime,
        Self::BandwidthMissing,
        Self::BandwidthUnavailable,
        Self::Traditional,
        Self::Connections,
        Self::NoConnection,
    ];

    /// The code of a response, if it is known.
    #[must_use]
    pub fn of(wire: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.wire() == wire)
    }

    /// The code on the wire.
    #[must_use]
    pub const fn wire(self) -> u8 {
        self as u8
    }
}

impl std::fmt::Display for SetupCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Accepted => "accepted",
            Self::Version => "the server does not speak this version of the protocol",
            Self::Jumbo => {
                "the server's setting for jumbo datagrams differs; set it alike on both ends"
            }
            Self::AuthenticationNotConfigured => {
                "the server has no key; test without one, or give the server the key"
            }
            Self::AuthenticationRequired => "the server requires a key",
            Self::AuthenticationMode => "the server does not support this authentication mode",
            Self::AuthenticationFailed => "the keys of client and server differ",
            Self::AuthenticationTime => {
                "the clocks of client and server are too far apart for authentication"
            }
            Self::BandwidthMissing => {
                "the server wants to know the bandwidth that the test may need; tell it by --bandwidth"
            }
            Self::BandwidthUnavailable => {
                "the server has not enough bandwidth left now; try later or ask for less"
            }
            Self::Traditional => {
                "the server's setting for 1500-byte packets differs; set it alike on both ends"
            }
            Self::Connections => "the server refuses this number of connections",
            Self::NoConnection => "the server cannot open another connection now; try later",
        })
    }
}
