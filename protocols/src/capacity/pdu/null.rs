//! The null request of version 20: 48 bytes from the server's test port that open its firewall.
//!
//! Only its sending matters. A client ignores it at any time, recognising it by the id alone, and
//! never answers it.

use super::{Authentication, DecodeError, Pdu, check_id, check_len, checksum, format, put, u16_at};

const AUTH_AT: usize = 7;
/// Where the checksum is.
const CHECK_SUM_AT: usize = 46;

/// A null request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Null {
    /// As in the setup request.
    pub protocol_ver: u16,
    /// [`Null::REQUEST`].
    pub cmd_request: u8,
    /// 0.
    pub cmd_response: u8,
    /// Reserved, 0.
    pub reserved1: u8,
    /// Authentication, with the server's key.
    pub auth: Authentication,
    /// The checksum as it was on the wire, 0 for not used.
    pub check_sum: u16,
}

impl Null {
    /// Bytes of the PDU.
    pub const LEN: usize = 48;
    /// `cmd_request`, always.
    pub const REQUEST: u8 = 1;

    /// Reads a null request. A client needs this only to look into one: [`Pdu::of`] recognises it.
    ///
    /// # Errors
    /// The datagram is no null request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let pdu = Pdu::Null;
        check_len(pdu, bytes, Self::LEN)?;
        check_id(pdu, bytes)?;
        if bytes[4] != Self::REQUEST {
            return Err(format(pdu, "cmdRequest", bytes[4]));
        }
        checksum::verify(pdu, bytes, CHECK_SUM_AT)?;
        Ok(Self {
            protocol_ver: u16_at(bytes, 2),
            cmd_request: bytes[4],
            cmd_response: bytes[5],
            reserved1: bytes[6],
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
        put(bytes, 0, Pdu::Null.id().to_be_bytes());
        put(bytes, 2, self.protocol_ver.to_be_bytes());
        bytes[4] = self.cmd_request;
        bytes[5] = self.cmd_response;
        bytes[6] = self.reserved1;
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
