//! The receiving half of a test: what load PDUs show, trial by trial and sub-interval by sub-interval
//! (RFC 9097 section 8.1, RFC 9946 section 8).
//!
//! [`batch`](super::batch) takes receive buffers apart for it. Nothing is allocated, no clock is read,
//! and stop, watchdog and timers are the [connection](super::connection)'s.

use ringmill_engine::time::Nanos;

use super::adjust::Trial;
use super::intervals::{Spread, SubInterval, Times};
use super::pdu::{Load, Status, SubIntervalStats};
use super::sequence::{Arrival, Sequence, SequenceErrors};
use super::time::{Instants, WallTime, nanos_to_ms};

mod counts;

use counts::{Counts, clock_on_wire, ms_on_wire, sum_on_wire, us_on_wire};

/// ECN bits of a packet that is not capable of it (RFC 3168).
const ECN_NOT_ECT: u8 = 0b00;
/// ECN bits of a packet that met congestion.
const ECN_CE: u8 = 0b11;

/// What the receiver needs to know of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiverSettings {
    /// Between two status PDUs, in ms.
    pub trial_interval_ms: u32,
    /// Length of a sub-interval, in ms.
    pub sub_interval_ms: u32,
    /// Load is to come with an ECN marking: congestion marks are counted, and its absence is noted.
    pub ecn_expected: bool,
}

/// The receiver of one connection.
#[derive(Debug, Clone)]
pub struct Receiver {
    settings: ReceiverSettings,
    sequence: Sequence,
    trial: Counts,
    trial_start: Nanos,
    sub_interval: Counts,
    /// Begins with the first status PDU.
    sub_interval_start: Option<Nanos>,
    saved: SubIntervalStats,
    saved_ce: u32,
    saved_number: u32,
    accumulated_ms: u64,
    clock_delta_min_ms: Option<i64>,
    rtt_min_ms: u32,
    rtt_var_ms: u32,
    rtt_var_min_ms: u32,
    rtt_var_max_ms: u32,
    rtt_var_sum_ms: u64,
    rtt_var_count: u32,
    delay_min_updated: bool,
    status_time: WallTime,
    ecn_bleached: bool,
    seen: bool,
    total_datagrams: u64,
    total_bytes: u64,
}

impl Receiver {
    /// A receiver of a connection that is activated now.
    #[must_use]
    pub fn new(settings: ReceiverSettings, now: Nanos) -> Self {
        Self {
            settings,
            sequence: Sequence::new(),
            trial: Counts::NONE,
            trial_start: now,
            sub_interval: Counts::NONE,
            sub_interval_start: None,
            saved: SubIntervalStats::default(),
            saved_ce: 0,
            saved_number: 0,
            accumulated_ms: 0,
            clock_delta_min_ms: None,
            rtt_min_ms: Status::NONE,
            rtt_var_ms: Status::NONE,
            rtt_var_min_ms: Status::NONE,
            rtt_var_max_ms: 0,
            rtt_var_sum_ms: 0,
            rtt_var_count: 0,
            delay_min_updated: false,
            status_time: WallTime::NONE,
            ecn_bleached: false,
            seen: false,
            total_datagrams: 0,
            total_bytes: 0,
        }
    }

    /// Takes one load PDU of a peer that tests. `real_len` is the length of its datagram, which may
    /// have been read cut to the header. Prefer [`batch`](Self::batch).
    #[inline]
    pub fn load(&mut self, load: &Load, ecn: u8, real_len: usize, at: Instants) -> Sample {
        self.count(1, counted_bytes(load, real_len), ecn);
        let first = self.sequence.last() == 0;
        let arrival = self.sequence.arrived(load.lpdu_seq_no);
        self.trial.errors.count(arrival);
        self.sub_interval.errors.count_loss(arrival);
        let Arrival::Newest { .. } = arrival else {
            return Sample::default();
        };
        let one_way_ms = at.wall.ms_since(load.lpdu_time);
        let mut sample = Sample {
            one_way_ms: Some(one_way_ms),
            ..Sample::default()
        };
        if load.spdu_time != self.status_time {
            self.status_time = load.spdu_time;
            sample.status_errors = load.spdu_seq_err;
            sample.rtt_ms = self.round_trip(load, at.wall);
        }
        match self.clock_delta_min_ms {
            Some(least) if !first => {
                if one_way_ms < least {
                    self.clock_delta_min_ms = Some(one_way_ms);
                    self.delay_min_updated = true;
                }
                self.add_delay(one_way_ms, 1);
            }
            _ => {
                self.clock_delta_min_ms = Some(one_way_ms);
                self.delay_min_updated = true;
            }
        }
        sample
    }

    /// The highest sequence number so far.
    #[inline]
    pub(super) fn last_sequence(&self) -> u32 {
        self.sequence.last()
    }

    /// Takes `count` datagrams that follow in order and are like one that gave `one_way_ms`.
    #[inline]
    pub(super) fn add_run(&mut self, count: u32, bytes: u16, one_way_ms: i64, ecn: u8) {
        self.count(count, bytes, ecn);
        self.sequence.arrived_in_order(count);
        self.add_delay(one_way_ms, count);
    }

    #[inline]
    fn count(&mut self, datagrams: u32, bytes: u16, ecn: u8) {
        self.seen = true;
        self.trial.datagrams = self.trial.datagrams.saturating_add(datagrams);
        self.trial.bytes += u64::from(datagrams) * u64::from(bytes);
        if self.settings.ecn_expected {
            match ecn & 0b11 {
                ECN_NOT_ECT => self.ecn_bleached = true,
                ECN_CE => self.trial.ce = self.trial.ce.saturating_add(datagrams),
                _ => {}
            }
        }
    }

    /// Adds the variation above the least delay, `count` times.
    #[inline]
    fn add_delay(&mut self, one_way_ms: i64, count: u32) {
        let least = self.clock_delta_min_ms.unwrap_or(one_way_ms);
        let variation = ms_on_wire(one_way_ms.saturating_sub(least));
        self.trial.add_delay(variation, count);
    }

    /// The round-trip time that a newly echoed status time gives. A time of the future gives none.
    fn round_trip(&mut self, load: &Load, now: WallTime) -> Option<u32> {
        let elapsed = u64::try_from(now.ms_since(load.spdu_time)).ok()?;
        let response = u64::from(load.rtt_resp_delay);
        let rtt = if response <= elapsed {
            elapsed - response
        } else if response == elapsed + 1 {
            // Both were rounded.
            0
        } else {
            elapsed
        };
        let rtt = ms_on_wire(i64::try_from(rtt).unwrap_or(i64::MAX));
        if rtt < self.rtt_min_ms {
            self.rtt_min_ms = rtt;
            self.delay_min_updated = true;
        }
        let variation = rtt - self.rtt_min_ms;
        self.rtt_var_ms = variation;
        self.rtt_var_min_ms = self.rtt_var_min_ms.min(variation);
        self.rtt_var_max_ms = self.rtt_var_max_ms.max(variation);
        self.rtt_var_sum_ms += u64::from(variation);
        self.rtt_var_count += 1;
        Some(rtt)
    }

    /// Whether any load has come: before, no status PDU is due.
    #[must_use]
    pub fn seen(&self) -> bool {
        self.seen
    }

    /// Whether load came without the ECN marking that was agreed.
    #[must_use]
    pub fn ecn_bleached(&self) -> bool {
        self.ecn_bleached
    }

    /// Datagrams of the whole test, late ones and duplicates included, and their UDP payload in
    /// bytes. Those of the running trial are in.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (
            self.total_datagrams + u64::from(self.trial.datagrams),
            self.total_bytes + self.trial.bytes,
        )
    }

    /// Sequence errors of the whole test.
    #[must_use]
    pub fn total_errors(&self) -> SequenceErrors {
        self.sequence.totals()
    }

    /// The least difference of arrival and sending time in ms, by two clocks.
    #[must_use]
    pub fn clock_delta_min_ms(&self) -> Option<i64> {
        self.clock_delta_min_ms
    }

    /// UDP payload in bytes of the running trial, and its length so far.
    #[must_use]
    pub fn trial_bytes(&self, now: Nanos) -> (u64, Nanos) {
        (self.trial.bytes, now.saturating_sub(self.trial_start))
    }

    /// The running trial, for the rate adjustment of a server.
    #[must_use]
    pub fn trial(&self) -> Trial {
        Trial {
            loss: self.trial.errors.loss,
            out_of_order: self.trial.errors.out_of_order,
            duplicates: self.trial.errors.duplicates,
            delay_var_sum_ms: sum_on_wire(self.trial.delay_sum),
            delay_var_count: self.trial.delay_count,
            rtt_var_ms: (self.rtt_var_ms != Status::NONE).then_some(self.rtt_var_ms),
            datagrams: self.trial.datagrams,
            ce: self.trial.ce,
            sub_interval: self.saved_number,
        }
    }

    /// One-way delay variation of the trial so far.
    #[must_use]
    pub fn trial_delay_var(&self) -> Spread {
        let times = Times {
            min_ms: self.trial.delay_min,
            max_ms: self.trial.delay_max,
            sum_ms: self.trial.delay_sum,
            count: self.trial.delay_count.into(),
        };
        times.spread()
    }

    /// Ends the trial: the status PDU that reports it. Action, number, row and times are the
    /// connection's to fill in.
    pub fn status(&mut self, now: Nanos) -> Status {
        let trial = self.trial;
        let status = Status {
            sub_int_seq_no: self.saved_number,
            sub_interval: self.saved,
            sis_sav_ce_count: self.saved_ce,
            seq_err_loss: trial.errors.loss,
            seq_err_ooo: trial.errors.out_of_order,
            seq_err_dup: trial.errors.duplicates,
            clock_delta_min: clock_on_wire(self.clock_delta_min_ms.unwrap_or(0)),
            delay_var_min: trial.delay_min,
            delay_var_max: trial.delay_max,
            delay_var_sum: sum_on_wire(trial.delay_sum),
            delay_var_cnt: trial.delay_count,
            rtt_minimum: self.rtt_min_ms,
            rtt_var_sample: self.rtt_var_ms,
            delay_min_upd: self.delay_min_updated,
            ti_delta_time: us_on_wire(now.saturating_sub(self.trial_start)),
            ti_rx_datagrams: trial.datagrams,
            ti_rx_bytes: u32::try_from(trial.bytes).unwrap_or(u32::MAX),
            ti_rx_ce_count: trial.ce,
            modifier_bitmap: if self.ecn_bleached {
                Status::ECN_BLEACHED
            } else {
                0
            },
            ..Status::default()
        };
        self.sub_interval.add_trial(&trial);
        self.total_datagrams += u64::from(trial.datagrams);
        self.total_bytes += trial.bytes;
        self.trial = Counts::NONE;
        self.trial_start = now;
        self.rtt_var_ms = Status::NONE;
        self.delay_min_updated = false;
        status
    }

    /// Advances the clock of sub-intervals, after a status PDU was sent. Returns the one that ended.
    pub fn status_sent(&mut self, now: Nanos) -> Option<SubInterval> {
        let Some(start) = self.sub_interval_start else {
            // What came before the first status PDU is in no sub-interval.
            self.begin_sub_interval(now);
            return None;
        };
        let elapsed = now.saturating_sub(start);
        let elapsed_ms = nanos_to_ms(elapsed);
        let due_ms = self
            .settings
            .sub_interval_ms
            .saturating_sub(self.settings.trial_interval_ms / 2);
        if elapsed_ms <= u64::from(due_ms) {
            return None;
        }
        self.accumulated_ms += elapsed_ms;
        self.saved_number += 1;
        let counts = self.sub_interval;
        self.saved_ce = counts.ce;
        self.saved = SubIntervalStats {
            delta_time: us_on_wire(elapsed),
            rtt_var_minimum: self.rtt_var_min_ms,
            rtt_var_maximum: self.rtt_var_max_ms,
            accum_time: sum_on_wire(self.accumulated_ms),
            ..counts.stats()
        };
        let ended = SubInterval {
            number: self.saved_number,
            stats: self.saved,
            ce: self.saved_ce,
            rtt_var_sum_ms: self.rtt_var_sum_ms,
            rtt_var_count: self.rtt_var_count,
            clock_delta_min_ms: self.clock_delta_min_ms.unwrap_or(0),
            rtt_min_ms: (self.rtt_min_ms != Status::NONE).then_some(self.rtt_min_ms),
        };
        self.begin_sub_interval(now);
        Some(ended)
    }

    fn begin_sub_interval(&mut self, now: Nanos) {
        self.sub_interval_start = Some(now);
        self.sub_interval = Counts::NONE;
        self.rtt_var_min_ms = Status::NONE;
        self.rtt_var_max_ms = 0;
        self.rtt_var_sum_ms = 0;
        self.rtt_var_count = 0;
    }
}

/// What one load PDU measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Arrival less sending time in ms; `None` for a late one or a duplicate.
    pub one_way_ms: Option<i64>,
    /// Round-trip time in ms, if it echoed another status PDU than the one before.
    pub rtt_ms: Option<u32>,
    /// Then also the status PDUs that the peer says it lost.
    pub status_errors: u16,
}

/// Bytes that a load PDU counts for: what it says, but no more than came.
#[inline]
pub(super) fn counted_bytes(load: &Load, real_len: usize) -> u16 {
    load.udp_payload
        .min(u16::try_from(real_len).unwrap_or(u16::MAX))
}
