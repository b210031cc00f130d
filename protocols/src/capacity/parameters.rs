//! What a test is to do: everything that activation carries, typed, and what a server makes of it.
//!
//! A server never refuses parameters: where one is illegal it puts the default in its place, where
//! one is above its own limits it lowers it, and the client takes every one from the response. A
//! client trusts that response no further than what it asked for.

use super::pdu::{Activation, RateStructure, Version};
use super::rates::{EXTENDED_ROW_LAST, EXTENSION_ROWS, ROW_LAST};

/// Legal thresholds of delay variation, in ms.
pub const THRESHOLD_MS: std::ops::RangeInclusive<u16> = 1..=10_000;
/// Legal trial intervals, in ms.
pub const TRIAL_INTERVAL_MS: std::ops::RangeInclusive<u16> = 5..=250;
/// Legal durations of a test, in s.
pub const TEST_TIME_S: std::ops::RangeInclusive<u16> = 5..=3600;
/// Legal sub-intervals, in ms; in version 11 whole seconds.
pub const SUB_INTERVAL_MS: std::ops::RangeInclusive<u16> = 100..=10_000;
/// Legal sub-intervals of version 11, in s.
const SUB_INTERVAL_V11_S: std::ops::RangeInclusive<u16> = 1..=10;

/// Low threshold of delay variation when none is given, in ms.
pub const LOW_THRESH_MS_DEFAULT: u16 = 30;
/// Upper threshold of delay variation when none is given, in ms.
pub const UPPER_THRESH_MS_DEFAULT: u16 = 90;
/// Trial interval when none is given, in ms.
pub const TRIAL_INTERVAL_MS_DEFAULT: u16 = 50;
/// Duration of a test when none is given, in s.
pub const TEST_TIME_S_DEFAULT: u16 = 10;
/// Sub-interval when none is given, in ms.
pub const SUB_INTERVAL_MS_DEFAULT: u16 = 1000;
/// Rows of a fast step when none are given.
pub const HIGH_SPEED_DELTA_DEFAULT: u8 = 10;
/// Congestion count that ends the fast steps when none is given.
pub const SLOW_ADJ_THRESH_DEFAULT: u16 = 3;
/// Sequence errors tolerated in a trial when none are given.
pub const SEQ_ERR_THRESH_DEFAULT: u16 = 10;

/// The bits of the TOS octet that are ECN.
const ECN_BITS: u8 = 0b11;

/// Which way load goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From client to server.
    Upstream,
    /// From server to client.
    Downstream,
}

/// By which rows a test sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rate {
    /// The rate is searched for.
    Search {
        /// The row to start at.
        start: u16,
    },
    /// One row for the whole test.
    Fixed(u16),
}

impl Rate {
    /// The row that is asked for: to start at, or for the whole test.
    #[must_use]
    pub const fn row(self) -> u16 {
        match self {
            Self::Search { start: row } | Self::Fixed(row) => row,
        }
    }

    /// The row with which load begins. With sub-intervals without adjustment a fixed row is not
    /// sent at once, but row 0.
    #[must_use]
    pub const fn first_row(self, sr_adj_supp_count: u16) -> u16 {
        match self {
            Self::Search { start } => start,
            Self::Fixed(_) if sr_adj_supp_count > 0 => 0,
            Self::Fixed(row) => row,
        }
    }
}

/// How the rate is adjusted (TR-471: Type B and Type C).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Type B.
    #[default]
    B,
    /// Type C, multiplicative growth.
    C,
}

/// Everything that client and server agree on at activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestParameters {
    /// Which way load goes.
    pub direction: Direction,
    /// Low threshold of delay variation, in ms.
    pub low_thresh_ms: u16,
    /// Upper threshold of delay variation, in ms; never below the low one.
    pub upper_thresh_ms: u16,
    /// Status and trial interval, in ms.
    pub trial_int_ms: u16,
    /// Duration, in s.
    pub test_time_s: u16,
    /// Sub-interval, in ms; never longer than the test.
    pub sub_int_ms: u16,
    /// The whole TOS or traffic class octet of the test's packets.
    pub dscp_ecn: u8,
    /// By which rows to send.
    pub rate: Rate,
    /// Adjust by one-way delay variation instead of round-trip variation.
    pub use_ow_del_var: bool,
    /// Rows of a fast step.
    pub high_speed_delta: u8,
    /// Congestion count that ends the fast steps.
    pub slow_adj_thresh: u16,
    /// Sequence errors tolerated in a trial.
    pub seq_err_thresh: u16,
    /// Only loss is an error, reordering and duplicates are not.
    pub ignore_ooo_dup: bool,
    /// Load carries pseudo-random bytes instead of zeros.
    pub random_payload: bool,
    /// How the rate is adjusted.
    pub algorithm: Algorithm,
    /// Threshold of ECN CE marks, 0 for off. Version 20 only.
    pub ecn_ce_thresh: u8,
    /// Initial sub-intervals without rate adjustment. Version 20 only.
    pub sr_adj_supp_count: u16,
    /// Rows past the table of OB-UDPST may be used: between two ends of ours, version 20 only.
    pub extended_rows: bool,
}

impl TestParameters {
    /// What a test is when nothing is asked for.
    #[must_use]
    pub const fn new(direction: Direction) -> Self {
        Self {
            direction,
            low_thresh_ms: LOW_THRESH_MS_DEFAULT,
            upper_thresh_ms: UPPER_THRESH_MS_DEFAULT,
            trial_int_ms: TRIAL_INTERVAL_MS_DEFAULT,
            test_time_s: TEST_TIME_S_DEFAULT,
            sub_int_ms: SUB_INTERVAL_MS_DEFAULT,
            dscp_ecn: 0,
            rate: Rate::Search { start: 0 },
            use_ow_del_var: false,
            high_speed_delta: HIGH_SPEED_DELTA_DEFAULT,
            slow_adj_thresh: SLOW_ADJ_THRESH_DEFAULT,
            seq_err_thresh: SEQ_ERR_THRESH_DEFAULT,
            ignore_ooo_dup: true,
            random_payload: false,
            algorithm: Algorithm::B,
            ecn_ce_thresh: 0,
            sr_adj_supp_count: 0,
            extended_rows: false,
        }
    }

    /// How many sub-intervals the test has.
    #[must_use]
    pub const fn sub_intervals(&self) -> u32 {
        sub_intervals(self.test_time_s, self.sub_int_ms)
    }

    /// The row with which load begins.
    #[must_use]
    pub const fn first_row(&self) -> u16 {
        self.rate.first_row(self.sr_adj_supp_count)
    }

    /// The activation request that asks for this, with nothing yet of authentication and checksum.
    ///
    /// Version 11 has whole seconds of sub-interval, so that is rounded up; it has neither ECN
    /// threshold nor suppression. A row past the table goes as its last row and the number of rows
    /// beyond it: a server that does not know them must never see such an index, which crashes
    /// OB-UDPST 9.0.0.
    #[must_use]
    pub const fn request(&self, version: Version, protocol_ver: u16) -> Activation {
        let (sr_index_conf, start_bit) = match self.rate {
            Rate::Search { start: 0 } => (Activation::AUTOMATIC, 0),
            Rate::Search { start } => (in_table(start), Activation::START_ROW),
            Rate::Fixed(row) => (in_table(row), 0),
        };
        let random_bit = match self.random_payload {
            true => Activation::RANDOM_PAYLOAD,
            false => 0,
        };
        let mut activation = Activation {
            protocol_ver,
            cmd_request: match self.direction {
                Direction::Upstream => Activation::UPSTREAM,
                Direction::Downstream => Activation::DOWNSTREAM,
            },
            cmd_response: 0,
            low_thresh: self.low_thresh_ms,
            upper_thresh: self.upper_thresh_ms,
            trial_int: self.trial_int_ms,
            test_int_time: self.test_time_s,
            sub_int_sec_v11: 0,
            dscp_ecn: self.dscp_ecn,
            sr_index_conf,
            use_ow_del_var: self.use_ow_del_var as u8,
            high_speed_delta: self.high_speed_delta,
            slow_adj_thresh: self.slow_adj_thresh,
            seq_err_thresh: self.seq_err_thresh,
            ignore_ooo_dup: self.ignore_ooo_dup as u8,
            modifier_bitmap: start_bit | random_bit,
            rate_adj_algo: match self.algorithm {
                Algorithm::B => 0,
                Algorithm::C => 1,
            },
            ecn_ce_thresh: 0,
            rate: NO_RATE,
            sub_int_period: 0,
            reserved3: 0,
            sr_adj_supp_count: 0,
            reserved5: 0,
            auth: NO_AUTHENTICATION,
            check_sum: 0,
        };
        match version {
            Version::V11 => activation.sub_int_sec_v11 = self.sub_int_ms.div_ceil(1000) as u8,
            Version::V20 => {
                activation.ecn_ce_thresh = self.ecn_ce_thresh;
                activation.sub_int_period = self.sub_int_ms;
                activation.sr_adj_supp_count = self.sr_adj_supp_count;
                if self.extended_rows {
                    activation.reserved5 = Activation::ROWS_ASKED;
                    activation.reserved3 = self.rate.row().saturating_sub(ROW_LAST);
                }
            }
        }
        activation
    }

    /// What a server makes of a request: the parameters of the test, and the response that says so,
    /// accepted, to be completed by the first row in an upstream test, authentication and checksum.
    /// Bytes that mean nothing come back as they were.
    #[must_use]
    pub fn corrected(
        request: &Activation,
        version: Version,
        limits: &ServerLimits,
    ) -> (Self, Activation) {
        let mut response = *request;
        response.cmd_response = Activation::ACCEPTED;
        response.rate = NO_RATE;
        let parameters = correct(&mut response, version, limits);
        (parameters, response)
    }

    /// What a client makes of a response that accepts: nothing but legal numbers, in the direction
    /// that was asked for, and no longer, better marked or more random than that.
    ///
    /// # Errors
    /// The first field that breaks this.
    pub fn accepted(
        response: &Activation,
        version: Version,
        asked: &Self,
    ) -> Result<Self, ParameterError> {
        let granted = asked.extended_rows
            && version == Version::V20
            && response.reserved5 == Activation::ROWS_GRANTED;
        let limits = ServerLimits {
            // A server that must shorten the test below its sub-interval sets both to the default.
            test_time_max_s: asked.test_time_s.max(TEST_TIME_S_DEFAULT),
            dscp_ecn_max: u8::MAX,
            row_max: EXTENDED_ROW_LAST,
            random_payload: asked.random_payload,
            extended_rows: granted,
        };
        let mut legal = *response;
        if granted {
            legal.reserved5 = Activation::ROWS_ASKED;
        }
        let parameters = correct(&mut legal, version, &limits);
        for (field, said, legal) in [
            ("lowThresh", response.low_thresh, legal.low_thresh),
            ("upperThresh", response.upper_thresh, legal.upper_thresh),
            ("trialInt", response.trial_int, legal.trial_int),
            ("testIntTime", response.test_int_time, legal.test_int_time),
            (
                "subIntPeriod",
                response.sub_int_sec_v11.into(),
                legal.sub_int_sec_v11.into(),
            ),
            (
                "subIntPeriod",
                response.sub_int_period,
                legal.sub_int_period,
            ),
            (
                "dscpEcn",
                response.dscp_ecn.into(),
                response.dscp_ecn.min(asked.dscp_ecn).into(),
            ),
            ("srIndexConf", response.sr_index_conf, legal.sr_index_conf),
            ("reserved3", response.reserved3, legal.reserved3),
            (
                "useOwDelVar",
                response.use_ow_del_var.into(),
                legal.use_ow_del_var.into(),
            ),
            (
                "highSpeedDelta",
                response.high_speed_delta.into(),
                legal.high_speed_delta.into(),
            ),
            (
                "slowAdjThresh",
                response.slow_adj_thresh,
                legal.slow_adj_thresh,
            ),
            (
                "ignoreOooDup",
                response.ignore_ooo_dup.into(),
                legal.ignore_ooo_dup.into(),
            ),
            (
                "modifierBitmap",
                response.modifier_bitmap.into(),
                legal.modifier_bitmap.into(),
            ),
            (
                "rateAdjAlgo",
                response.rate_adj_algo.into(),
                legal.rate_adj_algo.into(),
            ),
            (
                "ecnCEThresh",
                response.ecn_ce_thresh.into(),
                legal.ecn_ce_thresh.into(),
            ),
            (
                "srAdjSuppCount",
                response.sr_adj_supp_count,
                legal.sr_adj_supp_count,
            ),
        ] {
            if said != legal {
                return Err(ParameterError::Value { field, value: said });
            }
        }
        if parameters.direction == asked.direction {
            Ok(parameters)
        } else {
            Err(ParameterError::Direction)
        }
    }
}

const NO_RATE: RateStructure = RateStructure {
    tx_interval1: 0,
    udp_payload1: 0,
    burst_size1: 0,
    tx_interval2: 0,
    udp_payload2: 0,
    burst_size2: 0,
    udp_addon2: 0,
};

const NO_AUTHENTICATION: super::pdu::Authentication = super::pdu::Authentication {
    auth_mode: 0,
    auth_unix_time: 0,
    auth_digest: [0; super::pdu::Authentication::DIGEST_LEN],
    key_id: 0,
    reserved_auth1: 0,
};

const fn in_table(row: u16) -> u16 {
    if row > ROW_LAST { ROW_LAST } else { row }
}

const fn sub_intervals(test_time_s: u16, sub_int_ms: u16) -> u32 {
    match sub_int_ms {
        0 => 0,
        _ => test_time_s as u32 * 1000 / sub_int_ms as u32,
    }
}

/// Puts legal numbers in the place of others and reads them.
fn correct(activation: &mut Activation, version: Version, limits: &ServerLimits) -> TestParameters {
    fn legal<T: PartialOrd>(value: &mut T, range: &std::ops::RangeInclusive<T>, default: T) {
        if !range.contains(value) {
            *value = default;
        }
    }
    let a = activation;
    legal(&mut a.low_thresh, &THRESHOLD_MS, LOW_THRESH_MS_DEFAULT);
    legal(&mut a.upper_thresh, &THRESHOLD_MS, UPPER_THRESH_MS_DEFAULT);
    if a.low_thresh > a.upper_thresh {
        a.low_thresh = LOW_THRESH_MS_DEFAULT;
        a.upper_thresh = UPPER_THRESH_MS_DEFAULT;
    }
    legal(
        &mut a.trial_int,
        &TRIAL_INTERVAL_MS,
        TRIAL_INTERVAL_MS_DEFAULT,
    );

    legal(&mut a.test_int_time, &TEST_TIME_S, TEST_TIME_S_DEFAULT);
    a.test_int_time = a.test_int_time.min(limits.test_time_max_s);
    let mut sub_int_ms = match version {
        Version::V11 => {
            let mut seconds = u16::from(a.sub_int_sec_v11);
            legal(&mut seconds, &SUB_INTERVAL_V11_S, 1);
            seconds * 1000
        }
        Version::V20 => {
            let mut ms = a.sub_int_period;
            legal(&mut ms, &SUB_INTERVAL_MS, SUB_INTERVAL_MS_DEFAULT);
            ms
        }
    };
    if u32::from(sub_int_ms) > u32::from(a.test_int_time) * 1000 {
        // The default may be above the server's own limit, which holds.
        a.test_int_time = TEST_TIME_S_DEFAULT.min(limits.test_time_max_s);
        sub_int_ms = SUB_INTERVAL_MS_DEFAULT;
    }
    match version {
        Version::V11 => a.sub_int_sec_v11 = (sub_int_ms / 1000) as u8,
        Version::V20 => a.sub_int_period = sub_int_ms,
    }

    a.dscp_ecn = a.dscp_ecn.min(limits.dscp_ecn_max);
    let extended_rows =
        limits.extended_rows && version == Version::V20 && a.reserved5 == Activation::ROWS_ASKED;
    let mut past_end = 0;
    let rate = if a.sr_index_conf > ROW_LAST {
        // No row, so no row to start at either.
        a.sr_index_conf = Activation::AUTOMATIC;
        a.modifier_bitmap &= !Activation::START_ROW;
        Rate::Search { start: 0 }
    } else {
        let mut row = a.sr_index_conf;
        if extended_rows && row == ROW_LAST {
            row += a.reserved3.min(EXTENSION_ROWS);
        }
        row = row.min(limits.row_max);
        a.sr_index_conf = in_table(row);
        past_end = row.saturating_sub(ROW_LAST);
        match a.modifier_bitmap & Activation::START_ROW {
            0 => Rate::Fixed(row),
            _ => Rate::Search { start: row },
        }
    };
    // Otherwise these bytes mean nothing and come back as they were.
    if extended_rows {
        a.reserved5 = Activation::ROWS_GRANTED;
        a.reserved3 = past_end;
    }
    legal(&mut a.use_ow_del_var, &(0..=1), 0);
    legal(
        &mut a.high_speed_delta,
        &(1..=u8::MAX),
        HIGH_SPEED_DELTA_DEFAULT,
    );
    legal(
        &mut a.slow_adj_thresh,
        &(1..=u16::MAX),
        SLOW_ADJ_THRESH_DEFAULT,
    );
    legal(&mut a.ignore_ooo_dup, &(0..=1), 1);
    if !limits.random_payload {
        a.modifier_bitmap &= !Activation::RANDOM_PAYLOAD;
    }
    legal(&mut a.rate_adj_algo, &(0..=1), 0);

    // In version 11 these bytes are reserved and come back as they were.
    let (mut ecn_ce_thresh, mut sr_adj_supp_count) = (0, 0);
    if version == Version::V20 {
        if !matches!(a.dscp_ecn & ECN_BITS, 0b01 | 0b10) {
            a.ecn_ce_thresh = 0;
        }
        if u32::from(a.sr_adj_supp_count) >= sub_intervals(a.test_int_time, sub_int_ms) {
            a.sr_adj_supp_count = 0;
        }
        (ecn_ce_thresh, sr_adj_supp_count) = (a.ecn_ce_thresh, a.sr_adj_supp_count);
    }

    TestParameters {
        direction: match a.cmd_request {
            Activation::UPSTREAM => Direction::Upstream,
            _ => Direction::Downstream,
        },
        low_thresh_ms: a.low_thresh,
        upper_thresh_ms: a.upper_thresh,
        trial_int_ms: a.trial_int,
        test_time_s: a.test_int_time,
        sub_int_ms,
        dscp_ecn: a.dscp_ecn,
        rate,
        use_ow_del_var: a.use_ow_del_var == 1,
        high_speed_delta: a.high_speed_delta,
        slow_adj_thresh: a.slow_adj_thresh,
        seq_err_thresh: a.seq_err_thresh,
        ignore_ooo_dup: a.ignore_ooo_dup == 1,
        random_payload: a.modifier_bitmap & Activation::RANDOM_PAYLOAD != 0,
        algorithm: match a.rate_adj_algo {
            1 => Algorithm::C,
            _ => Algorithm::B,
        },
        ecn_ce_thresh,
        sr_adj_supp_count,
        extended_rows,
    }
}

/// Above what a server lowers the parameters of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Longest test, in s; at least the shortest legal one.
    pub test_time_max_s: u16,
    /// Largest TOS or traffic class octet.
    pub dscp_ecn_max: u8,
    /// Highest row.
    pub row_max: u16,
    /// Random payload is granted.
    pub random_payload: bool,
    /// Rows past the table of OB-UDPST are granted to clients that ask for them.
    pub extended_rows: bool,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            test_time_max_s: *TEST_TIME_S.end(),
            dscp_ecn_max: u8::MAX,
            row_max: ROW_LAST,
            random_payload: false,
            extended_rows: false,
        }
    }
}

/// Why a client does not take over the parameters of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A number that is not legal, or beyond what was asked for.
    #[error("the server answered with {field} {value}, which was not asked for or is not legal")]
    Value {
        /// Name of the field on the wire.
        field: &'static str,
        /// What it says.
        value: u16,
    },
    /// The other direction.
    #[error("the server answered for a test in the other direction")]
    Direction,
}
