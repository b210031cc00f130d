//! The status PDU: what the receiver of load measured, and from a server the row to send by from now
//! on (204 bytes in version 20, 168 in version 11).
//!
//! OB-UDPST 9.0.0 leaves old memory in the last bytes of version 20, the checksum field among them,
//! so that field says nothing; see [`StatusChecksum`].

use super::{
    DecodeError, Pdu, RateStructure, TestAction, Version, check_id, checksum, put, read_flag,
    u16_at, u32_at, u64_at,
};
use crate::capacity::time::WallTime;

/// Length in version 11.
const LEN_V11: usize = 168;
/// Length in version 20.
const LEN_V20: usize = 204;

/// What a sub-interval has come to, as saved by the receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SubIntervalStats {
    /// Datagrams that arrived.
    pub rx_datagrams: u32,
    /// Their UDP payload in bytes.
    pub rx_bytes: u64,
    /// The measured length in µs.
    pub delta_time: u32,
    /// Datagrams lost.
    pub seq_err_loss: u32,
    /// Datagrams out of order.
    pub seq_err_ooo: u32,
    /// Datagrams that came again.
    pub seq_err_dup: u32,
    /// Least delay variation in ms, or [`Status::NONE`].
    pub delay_var_min: u32,
    /// Largest delay variation in ms.
    pub delay_var_max: u32,
    /// Sum of the delay variations in ms.
    pub delay_var_sum: u32,
    /// How many make that sum.
    pub delay_var_cnt: u32,
    /// Least round-trip variation in ms, or [`Status::NONE`].
    pub rtt_var_minimum: u32,
    /// Largest round-trip variation in ms.
    pub rtt_var_maximum: u32,
    /// From the first status PDU to the end of the sub-interval, in ms.
    pub accum_time: u32,
}

/// A status PDU. Fields that a version does not have read as 0 and are not written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status {
    /// Whether the receiver tests or stops.
    pub test_action: TestAction,
    /// The receiver hears no load since a second or more.
    pub rx_stopped: bool,
    /// 1, 2, 3, ... in each connection.
    pub spdu_seq_no: u32,
    /// From a server the row to send by, from a client zeros.
    pub rate: RateStructure,
    /// Number of the saved sub-interval, 0 for none yet.
    pub sub_int_seq_no: u32,
    /// The saved sub-interval.
    pub sub_interval: SubIntervalStats,
    /// Datagrams lost in this trial, since the status PDU before.
    pub seq_err_loss: u32,
    /// Datagrams out of order in this trial.
    pub seq_err_ooo: u32,
    /// Datagrams that came again in this trial.
    pub seq_err_dup: u32,
    /// Least difference of arrival and sending time so far, in ms; the clocks need not agree.
    pub clock_delta_min: i32,
    /// Least delay variation of this trial in ms, or [`Status::NONE`].
    pub delay_var_min: u32,
    /// Largest delay variation of this trial in ms.
    pub delay_var_max: u32,
    /// Sum of the delay variations of this trial in ms.
    pub delay_var_sum: u32,
    /// How many make that sum.
    pub delay_var_cnt: u32,
    /// Least round-trip time of the whole test in ms, or [`Status::NONE`].
    pub rtt_minimum: u32,
    /// Last round-trip time of this trial above the minimum in ms, or [`Status::NONE`].
    pub rtt_var_sample: u32,
    /// `clock_delta_min` or `rtt_minimum` changed in this trial. Any octet but 0 reads as true.
    pub delay_min_upd: bool,
    /// Length of this trial in µs.
    pub ti_delta_time: u32,
    /// Datagrams that arrived in this trial.
    pub ti_rx_datagrams: u32,
    /// Their UDP payload in bytes.
    pub ti_rx_bytes: u32,
    /// When this was sent.
    pub spdu_time: WallTime,
    /// Version 20: the connection's authentication mode. Nothing is signed.
    pub auth_mode: u8,
    /// Version 20: datagrams of this trial with ECN CE.
    pub ti_rx_ce_count: u32,
    /// Version 20: the same in the saved sub-interval.
    pub sis_sav_ce_count: u32,
    /// Version 20: see [`Status::ECN_BLEACHED`].
    pub modifier_bitmap: u8,
    /// The checksum as it was on the wire, 0 for not used.
    pub check_sum: u16,
}

/// What to make of the checksum of a version 20 status PDU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum StatusChecksum {
    /// Ignored. OB-UDPST 9.0.0 may send part of an old load header in its place, and on a busy
    /// server of another client's.
    #[default]
    Lenient,
    /// Checked when it is not 0: for peers that are known to fill it.
    Strict,
}

impl Status {
    /// The longest status PDU in bytes.
    pub const LEN_MAX: usize = LEN_V20;
    /// No such time was measured.
    pub const NONE: u32 = u32::MAX;
    /// In `modifier_bitmap`: load came without the ECN marking that was agreed.
    pub const ECN_BLEACHED: u8 = 0x01;

    /// Bytes of a status PDU.
    #[must_use]
    pub const fn len(version: Version) -> usize {
        match version {
            Version::V11 => LEN_V11,
            Version::V20 => LEN_V20,
        }
    }

    /// Reads the status PDU of a connection of that version. What is reserved is not looked at.
    ///
    /// # Errors
    /// The datagram is no such PDU.
    pub fn decode(
        bytes: &[u8],
        version: Version,
        rule: StatusChecksum,
    ) -> Result<Self, DecodeError> {
        let pdu = Pdu::Status;
        if bytes.len() != Self::len(version) {
            return Err(DecodeError::Size {
                pdu,
                len: bytes.len(),
            });
        }
        check_id(pdu, bytes)?;
        let test_action = TestAction::read(pdu, bytes[2])?;
        let rx_stopped = read_flag(pdu, "rxStopped", bytes[3])?;
        if version == Version::V11 || rule == StatusChecksum::Strict {
            checksum::verify(pdu, bytes, check_sum_at(version))?;
        }
        // Version 11 pads 64-bit numbers to their alignment: before and behind the sub-interval.
        let (saved, trial) = match version {
            Version::V11 => (48, 104),
            Version::V20 => (44, 96),
        };
        let mut status = Self {
            test_action,
            rx_stopped,
            spdu_seq_no: u32_at(bytes, 4),
            rate: RateStructure::read(bytes, 8),
            sub_int_seq_no: u32_at(bytes, 36),
            sub_interval: SubIntervalStats {
                rx_datagrams: u32_at(bytes, 40),
                rx_bytes: u64_at(bytes, saved),
                delta_time: u32_at(bytes, saved + 8),
                seq_err_loss: u32_at(bytes, saved + 12),
                seq_err_ooo: u32_at(bytes, saved + 16),
                seq_err_dup: u32_at(bytes, saved + 20),
                delay_var_min: u32_at(bytes, saved + 24),
                delay_var_max: u32_at(bytes, saved + 28),
                delay_var_sum: u32_at(bytes, saved + 32),
                delay_var_cnt: u32_at(bytes, saved + 36),
                rtt_var_minimum: u32_at(bytes, saved + 40),
                rtt_var_maximum: u32_at(bytes, saved + 44),
                accum_time: u32_at(bytes, saved + 48),
            },
            seq_err_loss: u32_at(bytes, trial),
            seq_err_ooo: u32_at(bytes, trial + 4),
            seq_err_dup: u32_at(bytes, trial + 8),
            clock_delta_min: u32_at(bytes, trial + 12).cast_signed(),
            delay_var_min: u32_at(bytes, trial + 16),
            delay_var_max: u32_at(bytes, trial + 20),
            delay_var_sum: u32_at(bytes, trial + 24),
            delay_var_cnt: u32_at(bytes, trial + 28),
            rtt_minimum: u32_at(bytes, trial + 32),
            rtt_var_sample: u32_at(bytes, trial + 36),
            delay_min_upd: bytes[trial + 40] != 0,
            ti_delta_time: u32_at(bytes, trial + 44),
            ti_rx_datagrams: u32_at(bytes, trial + 48),
            ti_rx_bytes: u32_at(bytes, trial + 52),
            spdu_time: WallTime {
                sec: u32_at(bytes, trial + 56),
                nsec: u32_at(bytes, trial + 60),
            },
            check_sum: u16_at(bytes, check_sum_at(version)),
            ..Self::default()
        };
        if version == Version::V20 {
            status.auth_mode = bytes[163];
            status.ti_rx_ce_count = u32_at(bytes, 176);
            status.sis_sav_ce_count = u32_at(bytes, 180);
            status.modifier_bitmap = bytes[185];
        }
        Ok(status)
    }

    /// Writes the PDU and returns its length. What is reserved becomes zero.
    ///
    /// # Panics
    /// The buffer is shorter than the PDU.
    pub fn encode(&self, version: Version, bytes: &mut [u8]) -> usize {
        let len = Self::len(version);
        let bytes = &mut bytes[..len];
        bytes.fill(0);
        let (saved, trial) = match version {
            Version::V11 => (48, 104),
            Version::V20 => (44, 96),
        };
        put(bytes, 0, Pdu::Status.id().to_be_bytes());
        bytes[2] = self.test_action.wire();
        bytes[3] = u8::from(self.rx_stopped);
        put(bytes, 4, self.spdu_seq_no.to_be_bytes());
        self.rate.write(bytes, 8);
        put(bytes, 36, self.sub_int_seq_no.to_be_bytes());
        let sis = &self.sub_interval;
        put(bytes, 40, sis.rx_datagrams.to_be_bytes());
        put(bytes, saved, sis.rx_bytes.to_be_bytes());
        put(bytes, saved + 8, sis.delta_time.to_be_bytes());
        put(bytes, saved + 12, sis.seq_err_loss.to_be_bytes());
        put(bytes, saved + 16, sis.seq_err_ooo.to_be_bytes());
        put(bytes, saved + 20, sis.seq_err_dup.to_be_bytes());
        put(bytes, saved + 24, sis.delay_var_min.to_be_bytes());
        put(bytes, saved + 28, sis.delay_var_max.to_be_bytes());
        put(bytes, saved + 32, sis.delay_var_sum.to_be_bytes());
        put(bytes, saved + 36, sis.delay_var_cnt.to_be_bytes());
        put(bytes, saved + 40, sis.rtt_var_minimum.to_be_bytes());
        put(bytes, saved + 44, sis.rtt_var_maximum.to_be_bytes());
        put(bytes, saved + 48, sis.accum_time.to_be_bytes());
        put(bytes, trial, self.seq_err_loss.to_be_bytes());
        put(bytes, trial + 4, self.seq_err_ooo.to_be_bytes());
        put(bytes, trial + 8, self.seq_err_dup.to_be_bytes());
        put(bytes, trial + 12, self.clock_delta_min.to_be_bytes());
        put(bytes, trial + 16, self.delay_var_min.to_be_bytes());
        put(bytes, trial + 20, self.delay_var_max.to_be_bytes());
        put(bytes, trial + 24, self.delay_var_sum.to_be_bytes());
        put(bytes, trial + 28, self.delay_var_cnt.to_be_bytes());
        put(bytes, trial + 32, self.rtt_minimum.to_be_bytes());
        put(bytes, trial + 36, self.rtt_var_sample.to_be_bytes());
        bytes[trial + 40] = u8::from(self.delay_min_upd);
        put(bytes, trial + 44, self.ti_delta_time.to_be_bytes());
        put(bytes, trial + 48, self.ti_rx_datagrams.to_be_bytes());
        put(bytes, trial + 52, self.ti_rx_bytes.to_be_bytes());
        put(bytes, trial + 56, self.spdu_time.sec.to_be_bytes());
        put(bytes, trial + 60, self.spdu_time.nsec.to_be_bytes());
        if version == Version::V20 {
            bytes[163] = self.auth_mode;
            put(bytes, 176, self.ti_rx_ce_count.to_be_bytes());
            put(bytes, 180, self.sis_sav_ce_count.to_be_bytes());
            bytes[185] = self.modifier_bitmap;
        }
        put(bytes, check_sum_at(version), self.check_sum.to_be_bytes());
        len
    }

    /// Fills the checksum of an encoded PDU.
    ///
    /// # Panics
    /// The buffer is shorter than the PDU.
    pub fn fill_check_sum(version: Version, bytes: &mut [u8]) {
        checksum::fill(&mut bytes[..Self::len(version)], check_sum_at(version));
    }
}

/// Where the checksum is.
const fn check_sum_at(version: Version) -> usize {
    match version {
        Version::V11 => 146,
        Version::V20 => 202,
    }
}
