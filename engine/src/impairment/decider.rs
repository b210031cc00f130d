//! What happens to each datagram, as a pure function of its place. No time, no state.

use serde::{Deserialize, Serialize};

use super::NANOS_PER_MICRO;
use super::model::{Distribution, Impairment, Loss};
use crate::Nanos;

/// Which way a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the end that began the flow.
    Forward,
    /// To the end that began the flow.
    Backward,
}

/// Scrambles 64 bits so that each input bit changes about half of the output bits: the finaliser
/// of splitmix64 (Steele, Lea and Flood 2014).
#[inline]
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The odd constant of splitmix64 (2^64 / golden ratio): neighbouring counters become distant.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64 random bits as a number in 0 ≤ x < 1.
#[inline]
#[must_use]
pub const fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// What a draw is for: two questions about one datagram have independent answers.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
enum Purpose {
    Loss = 1,
    Burst,
    Jitter,
    Duplicate,
    DuplicateJitter,
    Reorder,
    Corrupt,
    Bits,
    Oversize,
    Bleach,
    Late,
    Red,
}

/// The source of all decisions about one direction of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decider {
    key: u64,
}

/// What is to happen to one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// It is lost.
    pub lost: bool,
    /// Its bits are flipped ([`Decider::corrupt`]).
    pub corrupted: bool,
    /// It arrives twice.
    pub duplicated: bool,
    /// Its ECN field is cleared.
    pub bleached: bool,
    /// It is dropped if it is longer than what passes.
    pub lost_if_oversize: bool,
    /// It goes after this many later ones of its flow; 0 in order.
    pub behind: u32,
    /// It is held back, behind others or for a time.
    pub held: bool,
    /// How long it takes.
    pub delay: Nanos,
    /// How long its duplicate takes.
    pub duplicate_delay: Nanos,
}

impl Decider {
    /// The decider of one direction of one flow. The caller numbers its flows so that the same
    /// flow has the same number in every run.
    #[must_use]
    pub const fn new(seed: u64, flow: u64, direction: Direction) -> Self {
        let key = mix(seed.wrapping_add(GOLDEN));
        let key = mix(key ^ flow.wrapping_mul(GOLDEN));
        Self {
            key: mix(key.wrapping_add(direction as u64 + 1)),
        }
    }

    const fn draw(self, index: u64, purpose: Purpose, part: u64) -> u64 {
        let value = mix(self.key.wrapping_add(index.wrapping_mul(GOLDEN)));
        mix(value ^ mix((purpose as u64) << 32 | part))
    }

    fn happens(self, index: u64, purpose: Purpose, probability: f64) -> bool {
        probability > 0.0 && unit(self.draw(index, purpose, 0)) < probability
    }

    /// Decides about datagram number `index` of the flow.
    #[must_use]
    pub fn decide(self, index: u64, model: &Impairment) -> Decision {
        let burst = match model.loss {
            Loss::GilbertElliott {
                good_to_bad,
                bad_to_good,
                ..
            } => self.burst(index, good_to_bad, bad_to_good),
            _ => false,
        };
        self.decide_in(index, model, burst)
    }

    /// The same, when the state of the burst chain is known.
    pub(super) fn decide_in(self, index: u64, model: &Impairment, burst: bool) -> Decision {
        let loss = match model.loss {
            Loss::None => 0.0,
            Loss::Uniform { probability } => probability,
            Loss::GilbertElliott { loss_bad, .. } if burst => loss_bad,
            Loss::GilbertElliott { loss_good, .. } => loss_good,
        };
        let held = self.happens(index, Purpose::Reorder, model.reordering.probability);
        Decision {
            lost: self.happens(index, Purpose::Loss, loss),
            corrupted: self.happens(index, Purpose::Corrupt, model.corruption.probability),
            duplicated: self.happens(index, Purpose::Duplicate, model.duplication),
            bleached: self.happens(index, Purpose::Bleach, model.ecn_bleaching),
            lost_if_oversize: self.happens(index, Purpose::Oversize, model.oversize_loss),
            behind: if held && model.reordering.late_us.is_none() {
                model.reordering.gap
            } else {
                0
            },
            held,
            delay: self.delay(index, Purpose::Jitter, model) + self.lateness(index, held, model),
            duplicate_delay: self.delay(index, Purpose::DuplicateJitter, model),
        }
    }

    fn delay(self, index: u64, purpose: Purpose, model: &Impairment) -> Nanos {
        let mean = model.delay_us * NANOS_PER_MICRO;
        if model.jitter_us == 0 {
            return mean;
        }
        let spread = match model.jitter_distribution {
            Distribution::Uniform => unit(self.draw(index, purpose, 0)) * 2.0 - 1.0,
            // The sum of twelve has mean 6 and variance 1.
            Distribution::Normal => {
                (0..12)
                    .map(|part| unit(self.draw(index, purpose, part)))
                    .sum::<f64>()
                    - 6.0
            }
        };
        let delay = mean as f64 + spread * (model.jitter_us * NANOS_PER_MICRO) as f64;
        delay.max(0.0) as Nanos
    }

    /// How much later a datagram is that is held back for a time.
    fn lateness(self, index: u64, held: bool, model: &Impairment) -> Nanos {
        let Some(late_us) = model.reordering.late_us.filter(|_| held) else {
            return 0;
        };
        let more =
            unit(self.draw(index, Purpose::Late, 0)) * model.reordering.late_random_us as f64;
        (late_us + more as u64) * NANOS_PER_MICRO
    }

    /// The draw that RED compares with its probability.
    pub(super) fn red(self, index: u64) -> f64 {
        unit(self.draw(index, Purpose::Red, 0))
    }

    /// The state of the burst chain at `index` (true: bad) without walking from the start: back
    /// only to the last draw that leads to the same state from either one, 1/(p + r) steps on
    /// average.
    pub(super) fn burst(self, index: u64, good_to_bad: f64, bad_to_good: f64) -> bool {
        let stays_bad = 1.0 - bad_to_good;
        let swaps = good_to_bad > stays_bad;
        let (low, high) = if swaps {
            (stays_bad, good_to_bad)
        } else {
            (good_to_bad, stays_bad)
        };
        let mut swapped = false;
        let mut at = index;
        loop {
            let draw = unit(self.draw(at, Purpose::Burst, 0));
            if at == 0 {
                return self.first_burst(good_to_bad, bad_to_good) != swapped;
            }
            if draw < low {
                return !swapped;
            }
            if draw >= high {
                return swapped;
            }
            swapped ^= swaps;
            at -= 1;
        }
    }

    /// A flow begins in either state with the probability that the chain has in the long run.
    fn first_burst(self, good_to_bad: f64, bad_to_good: f64) -> bool {
        let sum = good_to_bad + bad_to_good;
        sum > 0.0 && unit(self.draw(0, Purpose::Burst, 0)) < good_to_bad / sum
    }

    pub(super) fn next_burst(
        self,
        index: u64,
        bad: bool,
        good_to_bad: f64,
        bad_to_good: f64,
    ) -> bool {
        let probability = if bad { 1.0 - bad_to_good } else { good_to_bad };
        unit(self.draw(index, Purpose::Burst, 0)) < probability
    }

    /// Flips `bits` different bits of datagram number `index` (all of them if it has fewer).
    pub fn corrupt(self, index: u64, bits: u32, bytes: &mut [u8]) {
        let count = bytes.len() as u64 * 8;
        let mut flipped: Vec<u64> = Vec::new();
        for part in 0..u64::from(bits).min(count) {
            let mut bit = self.draw(index, Purpose::Bits, part) % count;
            while flipped.contains(&bit) {
                bit = (bit + 1) % count;
            }
            flipped.push(bit);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
    }
}
