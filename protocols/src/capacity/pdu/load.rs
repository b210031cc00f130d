//! The load PDU: a header of 32 bytes, then payload that nobody reads.
//!
//! Only the header is ever looked at, so a receiver may read datagrams cut to 32 bytes; it then says
//! how long the datagram really was.

use super::{DecodeError, Pdu, TestAction, check_id, checksum, put, read_flag, u16_at, u32_at};
use crate::capacity::time::WallTime;

/// Where the checksum is.
const CHECK_SUM_AT: usize = 30;

/// The header of a load PDU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Load {
    /// Whether the sender tests or stops.
    pub test_action: TestAction,
    /// The sender hears no status PDUs since a second or more.
    pub rx_stopped: bool,
    /// 1, 2, 3, ... in each connection.
    pub lpdu_seq_no: u32,
    /// Length of this datagram's UDP payload in bytes, header included.
    pub udp_payload: u16,
    /// Status PDUs lost just before the last one that came; [`Load::STATUS_LATE`] if that was late
    /// or a duplicate.
    pub spdu_seq_err: u16,
    /// Copied from the last status PDU that came; zero before the first.
    pub spdu_time: WallTime,
    /// When this was sent. All datagrams of a burst say the same.
    pub lpdu_time: WallTime,
    /// From the arrival of that status PDU to this sending, in ms rounded half up.
    pub rtt_resp_delay: u16,
    /// The checksum over the header as it was on the wire, 0 for not used.
    pub check_sum: u16,
}

impl Load {
    /// Bytes of the header.
    pub const HEADER_LEN: usize = 32;
    /// `spdu_seq_err` of a status PDU that was late or came twice.
    pub const STATUS_LATE: u16 = u16::MAX;

    /// Reads a header. `bytes` is what was read of the datagram, `real_len` its full length.
    ///
    /// # Errors
    /// The datagram is no load PDU.
    pub fn decode(bytes: &[u8], real_len: usize) -> Result<Self, DecodeError> {
        let pdu = Pdu::Load;
        let size = DecodeError::Size { pdu, len: real_len };
        let header = bytes.get(..Self::HEADER_LEN).ok_or(size)?;
        if real_len < Self::HEADER_LEN {
            return Err(size);
        }
        check_id(pdu, header)?;
        let test_action = TestAction::read(pdu, header[2])?;
        let rx_stopped = read_flag(pdu, "rxStopped", header[3])?;
        checksum::verify(pdu, header, CHECK_SUM_AT)?;
        Ok(Self {
            test_action,
            rx_stopped,
            lpdu_seq_no: u32_at(header, 4),
            udp_payload: u16_at(header, 8),
            spdu_seq_err: u16_at(header, 10),
            spdu_time: WallTime {
                sec: u32_at(header, 12),
                nsec: u32_at(header, 16),
            },
            lpdu_time: WallTime {
                sec: u32_at(header, 20),
                nsec: u32_at(header, 24),
            },
            rtt_resp_delay: u16_at(header, 28),
            check_sum: u16_at(header, CHECK_SUM_AT),
        })
    }

    /// Writes the header in place at the front of a datagram and returns its length. The rest of
    /// the datagram is left as it is.
    ///
    /// # Panics
    /// The buffer is shorter than [`Self::HEADER_LEN`].
    pub fn encode(&self, bytes: &mut [u8]) -> usize {
        let header = &mut bytes[..Self::HEADER_LEN];
        put(header, 0, Pdu::Load.id().to_be_bytes());
        header[2] = self.test_action.wire();
        header[3] = u8::from(self.rx_stopped);
        put(header, 4, self.lpdu_seq_no.to_be_bytes());
        put(header, 8, self.udp_payload.to_be_bytes());
        put(header, 10, self.spdu_seq_err.to_be_bytes());
        put(header, 12, self.spdu_time.sec.to_be_bytes());
        put(header, 16, self.spdu_time.nsec.to_be_bytes());
        put(header, 20, self.lpdu_time.sec.to_be_bytes());
        put(header, 24, self.lpdu_time.nsec.to_be_bytes());
        put(header, 28, self.rtt_resp_delay.to_be_bytes());
        put(header, CHECK_SUM_AT, self.check_sum.to_be_bytes());
        Self::HEADER_LEN
    }

    /// Fills the checksum of an encoded header; the payload behind it is not covered.
    ///
    /// # Panics
    /// The buffer is shorter than [`Self::HEADER_LEN`].
    pub fn fill_check_sum(bytes: &mut [u8]) {
        checksum::fill(&mut bytes[..Self::HEADER_LEN], CHECK_SUM_AT);
    }
}
