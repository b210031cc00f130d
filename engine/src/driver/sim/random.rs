//! The simulator's only source of chance: the same seed gives the same numbers on every machine
//! and with every version of every crate, so that a seed written in a bug report stays good.

use std::ops::Range;

use crate::impairment::{mix, unit};

/// A splitmix64 sequence.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, or 0 when the bound is.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of the range; its start when it is empty.
    pub(crate) fn within(&mut self, range: &Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// True with a probability. Draws nothing when it is zero, so that a knob that is off changes
    /// nothing else in a run.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && unit(self.next()) < probability
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
