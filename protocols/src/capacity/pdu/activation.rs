//! The test activation PDU: the parameters of a test, asked for by the client and corrected by the
//! server; 104 bytes in version 20, 60 in version 11.
//!
//! The numbers are as the wire has them. What they mean and which are legal is the business of
//! [`parameters`](crate::capacity::parameters).

use super::{
    Authentication, DecodeError, Pdu, RateStructure, Version, check_id, check_len, checksum,
    format, put, u16_at,
};

/// Length in version 11.
const LEN_V11: usize = 60;
/// Length in version 20.
const LEN_V20: usize = 104;
const AUTH_AT: usize = 63;

/// A test activation request or response. Fields that a version does not have read as 0 and are not
/// written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Activation {
    /// Version as the wire has it; nobody checks it here.
    pub protocol_ver: u16,
    /// [`Activation::UPSTREAM`] or [`Activation::DOWNSTREAM`].
    pub cmd_request: u8,
    /// 0 in a request, [`Activation::ACCEPTED`] or [`Activation::REJECTED`] in a response.
    pub cmd_response: u8,
    /// Low threshold of delay variation, in ms.
    pub low_thresh: u16,
    /// Upper threshold of delay variation, in ms.
    pub upper_thresh: u16,
    /// Status and trial interval, in ms.
    pub trial_int: u16,
    /// Duration of the test, in s.
    pub test_int_time: u16,
    /// Version 11: the sub-interval in s. Version 20: reserved.
    pub sub_int_sec_v11: u8,
    /// The whole TOS or traffic class octet of the test's packets.
    pub dscp_ecn: u8,
    /// Row to send by, or [`Activation::AUTOMATIC`].
    pub sr_index_conf: u16,
    /// 1: adjust by one-way delay variation, 0: by round-trip variation.
    pub use_ow_del_var: u8,
    /// Rows of a fast step.
    pub high_speed_delta: u8,
    /// Congestion count that ends the fast steps.
    pub slow_adj_thresh: u16,
    /// Sequence errors tolerated in a trial.
    pub seq_err_thresh: u16,
    /// 1: only loss is an error.
    pub ignore_ooo_dup: u8,
    /// [`Activation::START_ROW`] and [`Activation::RANDOM_PAYLOAD`]; other bits are repeated.
    pub modifier_bitmap: u8,
    /// 0 for algorithm B, 1 for C.
    pub rate_adj_algo: u8,
    /// Version 20: threshold of ECN CE marks, 0 for off. Version 11: reserved.
    pub ecn_ce_thresh: u8,
    /// In the response of an upstream test the first row for the client, else zeros.
    pub rate: RateStructure,
    /// Version 20: the sub-interval in ms.
    pub sub_int_period: u16,
    /// Reserved: behind the sub-interval in version 20, before the checksum in version 11. Where rows
    /// past the table are asked for or granted, how many rows past its end `sr_index_conf` means.
    pub reserved3: u16,
    /// Version 20: initial sub-intervals without rate adjustment.
    pub sr_adj_supp_count: u16,
    /// Version 20: reserved; [`Activation::ROWS_ASKED`] and [`Activation::ROWS_GRANTED`] are ours.
    pub reserved5: u8,
    /// Version 20: authentication.
    pub auth: Authentication,
    /// The checksum as it was on the wire, 0 for not used.
    pub check_sum: u16,
}

impl Activation {
    /// The longest activation PDU in bytes.
    pub const LEN_MAX: usize = LEN_V20;
    /// `cmd_request` of an upstream test.
    pub const UPSTREAM: u8 = 1;
    /// `cmd_request` of a downstream test.
    pub const DOWNSTREAM: u8 = 2;
    /// `cmd_response`: accepted, with the parameters of the response.
    pub const ACCEPTED: u8 = 1;
    /// `cmd_response`: the parameters are rejected. OB-UDPST never sends it.
    pub const REJECTED: u8 = 2;
    /// `sr_index_conf` of a search from row 0.
    pub const AUTOMATIC: u16 = 0xFFFF;
    /// In `modifier_bitmap`: `sr_index_conf` is where a search starts.
    pub const START_ROW: u8 = 0x01;
    /// In `modifier_bitmap`: the payload of load PDUs is to be pseudo-random.
    pub const RANDOM_PAYLOAD: u8 = 0x02;
    /// In `reserved5` of a request: the client knows rows past the table's end. A server that knows
    /// nothing of it returns the byte as it came (OB-UDPST 9.0.0) or as zero, and so never the grant.
    pub const ROWS_ASKED: u8 = 0xA5;
    /// In `reserved5` of a response: they may be used.
    pub const ROWS_GRANTED: u8 = 0x5A;

    /// Bytes of an activation PDU.
    #[must_use]
    pub const fn len(version: Version) -> usize {
        match version {
            Version::V11 => LEN_V11,
            Version::V20 => LEN_V20,
        }
    }

    /// Reads the request of a connection of that version.
    ///
    /// # Errors
    /// The datagram is no such request; what carries a response code is none.
    pub fn decode_request(bytes: &[u8], version: Version) -> Result<Self, DecodeError> {
        let activation = Self::decode(bytes, version)?;
        if activation.cmd_response == 0 {
            Ok(activation)
        } else {
            Err(format(
                Pdu::Activation,
                "cmdResponse",
                activation.cmd_response,
            ))
        }
    }

    /// Reads the response of a connection of that version.
    ///
    /// # Errors
    /// The datagram is no such response; what carries no response code is none.
    pub fn decode_response(bytes: &[u8], version: Version) -> Result<Self, DecodeError> {
        let activation = Self::decode(bytes, version)?;
        if activation.cmd_response != 0 {
            Ok(activation)
        } else {
            Err(format(Pdu::Activation, "cmdResponse", 0_u8))
        }
    }

    fn decode(bytes: &[u8], version: Version) -> Result<Self, DecodeError> {
        let pdu = Pdu::Activation;
        check_len(pdu, bytes, Self::len(version))?;
        check_id(pdu, bytes)?;
        let cmd_request = bytes[4];
        if !(Self::UPSTREAM..=Self::DOWNSTREAM).contains(&cmd_request) {
            return Err(format(pdu, "cmdRequest", cmd_request));
        }
        checksum::verify(pdu, bytes, check_sum_at(version))?;
        let mut activation = Self {
            protocol_ver: u16_at(bytes, 2),
            cmd_request,
            cmd_response: bytes[5],
            low_thresh: u16_at(bytes, 6),
            upper_thresh: u16_at(bytes, 8),
            trial_int: u16_at(bytes, 10),
            test_int_time: u16_at(bytes, 12),
            sub_int_sec_v11: bytes[14],
            dscp_ecn: bytes[15],
            sr_index_conf: u16_at(bytes, 16),
            use_ow_del_var: bytes[18],
            high_speed_delta: bytes[19],
            slow_adj_thresh: u16_at(bytes, 20),
            seq_err_thresh: u16_at(bytes, 22),
            ignore_ooo_dup: bytes[24],
            modifier_bitmap: bytes[25],
            rate_adj_algo: bytes[26],
            ecn_ce_thresh: bytes[27],
            rate: RateStructure::read(bytes, 28),
            check_sum: u16_at(bytes, check_sum_at(version)),
            ..Self::default()
        };
        match version {
            Version::V11 => activation.reserved3 = u16_at(bytes, 56),
            Version::V20 => {
                activation.sub_int_period = u16_at(bytes, 56);
                activation.reserved3 = u16_at(bytes, 58);
                activation.sr_adj_supp_count = u16_at(bytes, 60);
                activation.reserved5 = bytes[62];
                activation.auth = Authentication::read(bytes, AUTH_AT);
            }
        }
        Ok(activation)
    }

    /// Writes the PDU and returns its length.
    ///
    /// # Panics
    /// The buffer is shorter than the PDU.
    pub fn encode(&self, version: Version, bytes: &mut [u8]) -> usize {
        let len = Self::len(version);
        let bytes = &mut bytes[..len];
        put(bytes, 0, Pdu::Activation.id().to_be_bytes());
        put(bytes, 2, self.protocol_ver.to_be_bytes());
        bytes[4] = self.cmd_request;
        bytes[5] = self.cmd_response;
        put(bytes, 6, self.low_thresh.to_be_bytes());
        put(bytes, 8, self.upper_thresh.to_be_bytes());
        put(bytes, 10, self.trial_int.to_be_bytes());
        put(bytes, 12, self.test_int_time.to_be_bytes());
        bytes[14] = self.sub_int_sec_v11;
        bytes[15] = self.dscp_ecn;
        put(bytes, 16, self.sr_index_conf.to_be_bytes());
        bytes[18] = self.use_ow_del_var;
        bytes[19] = self.high_speed_delta;
        put(bytes, 20, self.slow_adj_thresh.to_be_bytes());
        put(bytes, 22, self.seq_err_thresh.to_be_bytes());
        bytes[24] = self.ignore_ooo_dup;
        bytes[25] = self.modifier_bitmap;
        bytes[26] = self.rate_adj_algo;
        bytes[27] = self.ecn_ce_thresh;
        self.rate.write(bytes, 28);
        match version {
            Version::V11 => put(bytes, 56, self.reserved3.to_be_bytes()),
            Version::V20 => {
                put(bytes, 56, self.sub_int_period.to_be_bytes());
                put(bytes, 58, self.reserved3.to_be_bytes());
                put(bytes, 60, self.sr_adj_supp_count.to_be_bytes());
                bytes[62] = self.reserved5;
                self.auth.write(bytes, AUTH_AT);
            }
        }
        put(bytes, check_sum_at(version), self.check_sum.to_be_bytes());
        len
    }

    /// Fills the checksum of an encoded PDU, after the signature.
    ///
    /// # Panics
    /// The buffer is shorter than the PDU.
    pub fn fill_check_sum(version: Version, bytes: &mut [u8]) {
        checksum::fill(&mut bytes[..Self::len(version)], check_sum_at(version));
    }
}

/// Where the checksum is: the last two bytes.
const fn check_sum_at(version: Version) -> usize {
    Activation::len(version) - 2
}
