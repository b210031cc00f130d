//! Counts over a trial or a sub-interval, and how numbers fit into the fields of the wire: they
//! saturate, they never wrap.

use ringmill_engine::time::Nanos;

use crate::capacity::pdu::{Status, SubIntervalStats};
use crate::capacity::sequence::SequenceErrors;

/// Counts over a trial or a sub-interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) datagrams: u32,
    pub(super) bytes: u64,
    pub(super) ce: u32,
    pub(super) errors: SequenceErrors,
    pub(super) delay_min: u32,
    pub(super) delay_max: u32,
    pub(super) delay_sum: u64,
    pub(super) delay_count: u32,
}

impl Counts {
    pub(super) const NONE: Self = Self {
        datagrams: 0,
        bytes: 0,
        ce: 0,
        errors: SequenceErrors {
            loss: 0,
            out_of_order: 0,
            duplicates: 0,
        },
        delay_min: Status::NONE,
        delay_max: 0,
        delay_sum: 0,
        delay_count: 0,
    };

    /// Adds a trial, but for the loss, which a sub-interval counts by itself: there a late datagram
    /// also takes off what an earlier trial had reported.
    pub(super) fn add_trial(&mut self, trial: &Self) {
        self.datagrams = self.datagrams.saturating_add(trial.datagrams);
        self.bytes += trial.bytes;
        self.ce = self.ce.saturating_add(trial.ce);
        let errors = &mut self.errors;
        errors.out_of_order = errors
            .out_of_order
            .saturating_add(trial.errors.out_of_order);
        errors.duplicates = errors.duplicates.saturating_add(trial.errors.duplicates);
        self.delay_min = self.delay_min.min(trial.delay_min);
        self.delay_max = self.delay_max.max(trial.delay_max);
        self.delay_sum += trial.delay_sum;
        self.delay_count = self.delay_count.saturating_add(trial.delay_count);
    }

    /// Adds a delay variation in ms, so many times.
    #[inline]
    pub(super) fn add_delay(&mut self, variation: u32, count: u32) {
        self.delay_min = self.delay_min.min(variation);
        self.delay_max = self.delay_max.max(variation);
        self.delay_sum += u64::from(variation) * u64::from(count);
        self.delay_count = self.delay_count.saturating_add(count);
    }

    /// As they are on the wire, with times and round trips left out.
    pub(super) fn stats(&self) -> SubIntervalStats {
        SubIntervalStats {
            rx_datagrams: self.datagrams,
            rx_bytes: self.bytes,
            seq_err_loss: self.errors.loss,
            seq_err_ooo: self.errors.out_of_order,
            seq_err_dup: self.errors.duplicates,
            delay_var_min: self.delay_min,
            delay_var_max: self.delay_max,
            delay_var_sum: sum_on_wire(self.delay_sum),
            delay_var_cnt: self.delay_count,
            ..SubIntervalStats::default()
        }
    }
}

/// A length of time in ms for the wire: never negative, and never the mark for "none".
#[inline]
pub(super) fn ms_on_wire(ms: i64) -> u32 {
    ms.clamp(0, i64::from(Status::NONE - 1)) as u32
}

/// A clock difference in ms for the wire; clocks that are further apart show the most there is.
pub(super) fn clock_on_wire(ms: i64) -> i32 {
    ms.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

/// A length of time in µs for the wire.
pub(super) fn us_on_wire(nanos: Nanos) -> u32 {
    u32::try_from(nanos / 1_000).unwrap_or(u32::MAX)
}

/// A sum for a field of 32 bits.
pub(super) fn sum_on_wire(sum: u64) -> u32 {
    u32::try_from(sum).unwrap_or(u32::MAX)
}
