//! What a bad network does to datagrams: one plain description per direction, and the engine that
//! turns it into decisions.
//!
//! The simulator and every tool that impairs real traffic use this same description. Whether a
//! datagram is lost, doubled, corrupted, held back or by how much it is delayed is a function of
//! (seed, flow number, direction, index within the flow) and of nothing else: neither the number
//! of shards nor the order in which flows are served can change it. Only what depends on time by
//! its nature (rate limit, blackout) looks at the clock that the caller gives. Nothing here reads
//! a clock, a socket or a random source.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::Nanos;

/// Jitter, loss and all else for one direction. The default passes everything unchanged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Impairment {
    /// Which datagrams are lost.
    pub loss: Loss,
    /// Time that every datagram takes, microseconds.
    pub delay_us: u64,
    /// Spread of the delay, microseconds: the largest deviation (uniform) or one standard
    /// deviation (normal). A delay is never negative.
    pub jitter_us: u64,
    /// How delays spread.
    pub jitter_distribution: Distribution,
    /// Jitter never lets a datagram overtake an earlier one of its flow.
    pub keep_order: bool,
    /// Probability that a datagram arrives twice.
    pub duplication: f64,
    /// Which datagrams are held back behind later ones.
    pub reordering: Reordering,
    /// Which datagrams are damaged.
    pub corruption: Corruption,
    /// A bottleneck with a queue before it.
    pub rate: Option<Rate>,
    /// Longer datagrams are dropped, never cut. Bytes of payload.
    pub datagram_bytes_max: Option<usize>,
    /// When nothing passes at all.
    pub blackouts: Vec<Blackout>,
}

/// A model of loss.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case", deny_unknown_fields)]
pub enum Loss {
    /// Nothing is lost.
    #[default]
    None,
    /// Each datagram for itself.
    Uniform {
        /// Probability of loss.
        probability: f64,
    },
    /// Bursts: a chain with a good and a bad state (Gilbert 1960, Elliott 1963), one step for
    /// each datagram of the flow.
    GilbertElliott {
        /// Probability of going from good to bad.
        good_to_bad: f64,
        /// Probability of going from bad to good; a burst lasts 1/this datagrams on average.
        bad_to_good: f64,
        /// Probability of loss in the good state.
        loss_good: f64,
        /// Probability of loss in the bad state.
        loss_bad: f64,
    },
}

/// How delays spread around their mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// Evenly within ± jitter.
    #[default]
    Uniform,
    /// Normal (the sum of twelve uniform draws, so within ± 6 standard deviations): the same
    /// figures on every machine, because no libm function is involved.
    Normal,
}

/// Holding datagrams back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reordering {
    /// Probability that a datagram is held back.
    pub probability: f64,
    /// How many later datagrams of the same flow go first.
    pub gap: u32,
    /// A held datagram goes after this time even if no later ones came, microseconds.
    pub hold_us_max: u64,
}

impl Default for Reordering {
    fn default() -> Self {
        Self {
            probability: 0.0,
            gap: 1,
            hold_us_max: 50_000,
        }
    }
}

/// Damaging datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Corruption {
    /// Probability that a datagram is damaged.
    pub probability: f64,
    /// How many different bits of it are flipped.
    pub bits: u32,
}

impl Default for Corruption {
    fn default() -> Self {
        Self {
            probability: 0.0,
            bits: 1,
        }
    }
}

/// A bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Payload bits per second that get through.
    pub bits_per_second: u64,
    /// Bytes that may wait; a datagram that does not fit any more is dropped (tail drop).
    pub queue_bytes_max: u64,
}

/// A time in which nothing passes, counted from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    /// When it begins, microseconds.
    pub from_us: u64,
    /// When it is over, microseconds.
    pub until_us: u64,
    /// Repeat with this period, microseconds.
    #[serde(default)]
    pub every_us: Option<u64>,
}

impl Blackout {
    /// Whether the blackout is on at `elapsed` since the start of the run.
    #[must_use]
    pub fn covers(&self, elapsed: Nanos) -> bool {
        let at = elapsed / NANOS_PER_MICRO;
        if at < self.from_us {
            return false;
        }
        let within = match self.every_us {
            Some(every) if every > 0 => (at - self.from_us) % every,
            _ => at - self.from_us,
        };
        within < self.until_us.saturating_sub(self.from_us)
    }
}

/// A description that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidImpairment {
    /// Not a probability.
    #[error("{name} is {value}, but a probability lies between 0 and 1")]
    Probability {
        /// Which field.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// A rate at which nothing would ever pass.
    #[error("rate.bits_per_second is 0: use a blackout to let nothing pass")]
    NoRate,
    /// A gap of nothing.
    #[error("reordering.gap is 0: a datagram is held back behind at least one other")]
    NoGap,
    /// A blackout that ends before it begins.
    #[error("a blackout from {from_us} µs until {until_us} µs ends before it begins")]
    Backwards {
        /// Its start.
        from_us: u64,
        /// Its end.
        until_us: u64,
    },
}

impl Impairment {
    /// Whether every field makes sense.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn validate(&self) -> Result<(), InvalidImpairment> {
        let mut probabilities = vec![
            ("duplication", self.duplication),
            ("reordering.probability", self.reordering.probability),
            ("corruption.probability", self.corruption.probability),
        ];
        match self.loss {
            Loss::None => {}
            Loss::Uniform { probability } => probabilities.push(("loss.probability", probability)),
            Loss::GilbertElliott {
                good_to_bad,
                bad_to_good,
                loss_good,
                loss_bad,
            } => {
                probabilities.extend([
                    ("loss.good_to_bad", good_to_bad),
                    ("loss.bad_to_good", bad_to_good),
                    ("loss.loss_good", loss_good),
                    ("loss.loss_bad", loss_bad),
                ]);
            }
        }
        for (name, value) in probabilities {
            if !(0.0..=1.0).contains(&value) {
                return Err(InvalidImpairment::Probability { name, value });
            }
        }
        if self.rate.is_some_and(|rate| rate.bits_per_second == 0) {
            return Err(InvalidImpairment::NoRate);
        }
        if self.reordering.probability > 0.0 && self.reordering.gap == 0 {
            return Err(InvalidImpairment::NoGap);
        }
        for &Blackout {
            from_us, until_us, ..
        } in &self.blackouts
        {
            if until_us < from_us {
                return Err(InvalidImpairment::Backwards { from_us, until_us });
            }
        }
        Ok(())
    }
}

const NANOS_PER_MICRO: Nanos = 1_000;

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
    /// It goes after this many later ones of its flow; 0 in order.
    pub behind: u32,
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
    fn decide_in(self, index: u64, model: &Impairment, burst: bool) -> Decision {
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
            behind: if held { model.reordering.gap } else { 0 },
            delay: self.delay(index, Purpose::Jitter, model),
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

    /// The state of the burst chain at `index` (true: bad) without walking from the start: back
    /// only to the last draw that leads to the same state from either one, 1/(p + r) steps on
    /// average.
    fn burst(self, index: u64, good_to_bad: f64, bad_to_good: f64) -> bool {
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

    fn next_burst(self, index: u64, bad: bool, good_to_bad: f64, bad_to_good: f64) -> bool {
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

/// Why a datagram does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dropped {
    /// By the loss model.
    Lost,
    /// The queue of the bottleneck was full.
    QueueFull,
    /// It was longer than the largest that passes.
    TooLong,
    /// In a blackout.
    Blackout,
}

/// What became of a datagram offered to a [`Link`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Why nothing of it arrives; `None` when it does.
    pub dropped: Option<Dropped>,
    /// It arrives twice.
    pub duplicated: bool,
    /// It arrives damaged.
    pub corrupted: bool,
    /// It is held back behind later ones.
    pub held: bool,
}

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure<T> {
    /// When it leaves the impaired path.
    pub at: Nanos,
    /// Its number in the flow.
    pub index: u64,
    /// Whether [`Decider::corrupt`] is to be applied.
    pub corrupted: bool,
    /// What the caller gave.
    pub item: T,
}

#[derive(Debug)]
struct Held<T> {
    /// Goes after the datagram with this number.
    after: u64,
    /// Or at this time.
    expires: Nanos,
    delay: Nanos,
    departure: Departure<T>,
}

/// One direction of one flow: counts its datagrams and keeps what the impairment must remember.
#[derive(Debug)]
pub struct Link<T> {
    decider: Decider,
    next: u64,
    /// The state of the burst chain at `next - 1`, for the probabilities given here.
    burst: Option<(bool, f64, f64)>,
    /// When the bottleneck has sent all that it has taken.
    busy_until: Nanos,
    last_departure: Nanos,
    held: VecDeque<Held<T>>,
}

impl<T: Clone> Link<T> {
    /// A link on which nothing has passed.
    #[must_use]
    pub fn new(decider: Decider) -> Self {
        Self {
            decider,
            next: 0,
            burst: None,
            busy_until: 0,
            last_departure: 0,
            held: VecDeque::new(),
        }
    }

    /// Where its decisions come from.
    #[must_use]
    pub fn decider(&self) -> Decider {
        self.decider
    }

    /// Takes the next datagram of the flow, `bytes` long, `now` after the start of the run; adds
    /// what leaves by this to `out`: the datagram, its duplicate, and those held back behind it.
    pub fn offer(
        &mut self,
        now: Nanos,
        bytes: usize,
        item: T,
        model: &Impairment,
        out: &mut Vec<Departure<T>>,
    ) -> Outcome {
        let index = self.next;
        self.next += 1;
        let burst = self.burst(index, model);
        let decision = self.decider.decide_in(index, model, burst);
        let mut outcome = Outcome::default();
        let mut last = now;
        outcome.dropped = self.refuse(now, bytes, &decision, model);
        if outcome.dropped.is_none() {
            outcome.corrupted = decision.corrupted;
            outcome.duplicated = decision.duplicated;
            let base = self.departs(now, bytes, model);
            let departure = |at, item| Departure {
                at,
                index,
                corrupted: decision.corrupted,
                item,
            };
            if decision.duplicated {
                // The duplicate is made behind the bottleneck.
                out.push(departure(base + decision.duplicate_delay, item.clone()));
            }
            if decision.behind > 0 {
                outcome.held = true;
                self.held.push_back(Held {
                    after: index + u64::from(decision.behind),
                    expires: now + model.reordering.hold_us_max * NANOS_PER_MICRO,
                    delay: decision.delay,
                    departure: departure(base, item),
                });
            } else {
                let mut at = base + decision.delay;
                if model.keep_order {
                    at = at.max(self.last_departure);
                }
                self.last_departure = self.last_departure.max(at);
                last = at;
                out.push(departure(at, item));
            }
        }
        self.release(|held| held.after <= index, last, out);
        outcome
    }

    /// Lets go of what was held back for long enough.
    pub fn expire(&mut self, now: Nanos, out: &mut Vec<Departure<T>>) {
        self.release(|held| held.expires <= now, now, out);
    }

    /// When [`Link::expire`] is to be called next.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Nanos> {
        self.held.iter().map(|held| held.expires).min()
    }

    fn release(
        &mut self,
        due: impl Fn(&Held<T>) -> bool,
        earliest: Nanos,
        out: &mut Vec<Departure<T>>,
    ) {
        if self.held.is_empty() {
            return;
        }
        let (released, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|held| due(held));
        self.held = kept;
        for held in released {
            let mut departure = held.departure;
            // Not before the one that it was held back for.
            departure.at = (departure.at + held.delay).max(earliest);
            out.push(departure);
        }
    }

    fn burst(&mut self, index: u64, model: &Impairment) -> bool {
        let Loss::GilbertElliott {
            good_to_bad,
            bad_to_good,
            ..
        } = model.loss
        else {
            self.burst = None;
            return false;
        };
        let bad = match self.burst {
            Some((bad, p, r)) if p == good_to_bad && r == bad_to_good => {
                self.decider
                    .next_burst(index, bad, good_to_bad, bad_to_good)
            }
            _ => self.decider.burst(index, good_to_bad, bad_to_good),
        };
        self.burst = Some((bad, good_to_bad, bad_to_good));
        bad
    }

    fn refuse(
        &self,
        now: Nanos,
        bytes: usize,
        decision: &Decision,
        model: &Impairment,
    ) -> Option<Dropped> {
        if model.datagram_bytes_max.is_some_and(|max| bytes > max) {
            return Some(Dropped::TooLong);
        }
        if model.blackouts.iter().any(|blackout| blackout.covers(now)) {
            return Some(Dropped::Blackout);
        }
        if decision.lost {
            return Some(Dropped::Lost);
        }
        let rate = model.rate?;
        let waiting = self.busy_until.saturating_sub(now);
        let queued = u128::from(waiting) * u128::from(rate.bits_per_second) / 8 / 1_000_000_000;
        let fits = queued + bytes as u128 <= u128::from(rate.queue_bytes_max) || queued == 0;
        (!fits).then_some(Dropped::QueueFull)
    }

    /// When the datagram has left the bottleneck.
    fn departs(&mut self, now: Nanos, bytes: usize, model: &Impairment) -> Nanos {
        let Some(rate) = model.rate else { return now };
        let takes = bytes as u128 * 8 * 1_000_000_000 / u128::from(rate.bits_per_second.max(1));
        self.busy_until = self.busy_until.max(now) + takes as Nanos;
        self.busy_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u64 = 100_000;

    fn decider(flow: u64) -> Decider {
        Decider::new(7, flow, Direction::Forward)
    }

    fn assert_within(name: &str, got: u64, count: u64, probability: f64, sigmas: f64) {
        let mean = count as f64 * probability;
        let sigma = (mean * (1.0 - probability)).sqrt();
        assert!(
            (got as f64 - mean).abs() <= sigmas * sigma + 1.0,
            "{name}: {got}, wanted {mean} ± {sigma}"
        );
    }

    #[test]
    fn frequencies_are_as_set() {
        for probability in [0.0, 0.001, 0.1, 0.5, 1.0] {
            let model = Impairment {
                loss: Loss::Uniform { probability },
                duplication: probability,
                reordering: Reordering {
                    probability,
                    gap: 3,
                    ..Reordering::default()
                },
                corruption: Corruption {
                    probability,
                    bits: 1,
                },
                ..Impairment::default()
            };
            let mut counts = [0; 4];
            for index in 0..COUNT {
                let decision = decider(1).decide(index, &model);
                counts[0] += u64::from(decision.lost);
                counts[1] += u64::from(decision.duplicated);
                counts[2] += u64::from(decision.behind == 3);
                counts[3] += u64::from(decision.corrupted);
            }
            for (name, got) in ["loss", "duplication", "reordering", "corruption"]
                .into_iter()
                .zip(counts)
            {
                assert_within(name, got, COUNT, probability, 3.0);
            }
        }
    }

    #[test]
    fn a_decision_depends_on_nothing_but_its_place() {
        let model = Impairment {
            loss: Loss::GilbertElliott {
                good_to_bad: 0.02,
                bad_to_good: 0.3,
                loss_good: 0.01,
                loss_bad: 0.9,
            },
            delay_us: 1000,
            jitter_us: 300,
            jitter_distribution: Distribution::Normal,
            duplication: 0.1,
            ..Impairment::default()
        };
        let forward: Vec<_> = (0..5000)
            .map(|index| decider(3).decide(index, &model))
            .collect();
        let mut backward: Vec<_> = (0..5000)
            .rev()
            .map(|index| decider(3).decide(index, &model))
            .collect();
        backward.reverse();
        assert_eq!(forward, backward, "the order of asking");
        for (name, other) in [
            ("flow", decider(4)),
            ("direction", Decider::new(7, 3, Direction::Backward)),
            ("seed", Decider::new(8, 3, Direction::Forward)),
        ] {
            let other: Vec<_> = (0..5000).map(|index| other.decide(index, &model)).collect();
            assert_ne!(forward, other, "{name}");
        }
    }

    #[test]
    fn bursts_are_as_long_and_as_frequent_as_set() {
        for (good_to_bad, bad_to_good) in [(0.01, 0.25), (0.5, 0.5), (0.9, 0.8), (0.005, 0.1)] {
            let model = Impairment {
                loss: Loss::GilbertElliott {
                    good_to_bad,
                    bad_to_good,
                    loss_good: 0.0,
                    loss_bad: 1.0,
                },
                ..Impairment::default()
            };
            let lost: Vec<bool> = (0..COUNT)
                .map(|index| decider(5).decide(index, &model).lost)
                .collect();
            let total = lost.iter().filter(|lost| **lost).count() as f64;
            let bursts = lost
                .windows(2)
                .filter(|pair| !pair[0] && pair[1])
                .count()
                .max(1) as f64;
            let (share, length) = (total / COUNT as f64, total / bursts);
            let wanted = good_to_bad / (good_to_bad + bad_to_good);
            assert!(
                (share / wanted - 1.0).abs() < 0.2,
                "share {share}, wanted {wanted}"
            );
            assert!(
                (length * bad_to_good - 1.0).abs() < 0.2,
                "length {length}, wanted {}",
                1.0 / bad_to_good
            );

            // A link that walks the chain step by step finds the same.
            let mut link = Link::new(decider(5));
            let mut out = Vec::new();
            let walked: Vec<bool> = (0..COUNT)
                .map(|_| link.offer(0, 1, (), &model, &mut out).dropped == Some(Dropped::Lost))
                .collect();
            assert_eq!(walked, lost);
        }
    }

    #[test]
    fn delays_spread_as_set() {
        for (distribution, deviation) in [
            (Distribution::Uniform, 200.0 / 3_f64.sqrt()),
            (Distribution::Normal, 200.0),
        ] {
            let model = Impairment {
                delay_us: 2000,
                jitter_us: 200,
                jitter_distribution: distribution,
                ..Impairment::default()
            };
            let delays: Vec<f64> = (0..COUNT)
                .map(|index| decider(6).decide(index, &model).delay as f64 / 1000.0)
                .collect();
            let mean = delays.iter().sum::<f64>() / COUNT as f64;
            let variance = delays
                .iter()
                .map(|delay| (delay - mean).powi(2))
                .sum::<f64>()
                / COUNT as f64;
            assert!((mean - 2000.0).abs() < 3.0, "{distribution:?}: mean {mean}");
            assert!(
                (variance.sqrt() / deviation - 1.0).abs() < 0.02,
                "{distribution:?}: {}",
                variance.sqrt()
            );
        }
    }

    #[test]
    fn a_held_datagram_goes_behind_the_gap() {
        let model = Impairment {
            reordering: Reordering {
                probability: 0.2,
                gap: 2,
                hold_us_max: 1000,
            },
            ..Impairment::default()
        };
        let mut link = Link::new(decider(8));
        let mut out = Vec::new();
        let mut held = Vec::new();
        for index in 0..1000_u64 {
            if link.offer(index, 1, index, &model, &mut out).held {
                held.push(index);
            }
        }
        link.expire(u64::MAX, &mut out);
        let order: Vec<u64> = out.iter().map(|departure| departure.item).collect();
        assert!(!held.is_empty());
        let position = |index: u64| order.iter().position(|item| *item == index).unwrap();
        for &index in held.iter().filter(|index| **index < 990) {
            for later in index + 1..=index + 2 {
                let overtakes = held.contains(&later) || position(later) < position(index);
                assert!(overtakes, "{later} goes before {index}");
            }
            if !held.contains(&(index + 3)) {
                assert!(
                    position(index + 3) > position(index),
                    "{index} goes before {}",
                    index + 3
                );
            }
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>(), "none is lost");
    }

    #[test]
    fn a_held_datagram_goes_when_no_other_comes() {
        let model = Impairment {
            reordering: Reordering {
                probability: 1.0,
                gap: 5,
                hold_us_max: 10,
            },
            ..Impairment::default()
        };
        let mut link = Link::new(decider(9));
        let mut out = Vec::new();
        assert!(link.offer(1000, 1, "only", &model, &mut out).held);
        assert_eq!(link.next_expiry(), Some(11_000));
        link.expire(10_999, &mut out);
        assert!(out.is_empty());
        link.expire(11_000, &mut out);
        assert_eq!((out[0].item, out[0].at), ("only", 11_000));
        assert_eq!(link.next_expiry(), None);
    }

    #[test]
    fn a_bottleneck_sends_at_its_rate_and_drops_at_its_tail() {
        // 1000 bytes each, 1 ms each at 8 Mbit/s; five wait.
        let model = Impairment {
            rate: Some(Rate {
                bits_per_second: 8_000_000,
                queue_bytes_max: 5_000,
            }),
            ..Impairment::default()
        };
        let mut link = Link::new(decider(10));
        let mut out = Vec::new();
        let outcomes: Vec<_> = (0..8)
            .map(|_| link.offer(0, 1000, (), &model, &mut out).dropped)
            .collect();
        let full = Some(Dropped::QueueFull);
        assert_eq!(outcomes, [None, None, None, None, None, full, full, full]);
        let times: Vec<_> = out
            .iter()
            .map(|departure| departure.at / 1_000_000)
            .collect();
        assert_eq!(times, [1, 2, 3, 4, 5]);
        assert_eq!(
            link.offer(3_000_000, 1000, (), &model, &mut out).dropped,
            None
        );
        assert_eq!(out.last().unwrap().at, 6_000_000);
    }

    #[test]
    fn size_and_blackouts() {
        let model = Impairment {
            datagram_bytes_max: Some(1200),
            blackouts: vec![
                Blackout {
                    from_us: 10,
                    until_us: 20,
                    every_us: None,
                },
                Blackout {
                    from_us: 1000,
                    until_us: 1100,
                    every_us: Some(500),
                },
            ],
            ..Impairment::default()
        };
        for (at_us, bytes, want) in [
            (0, 1200, None),
            (0, 1201, Some(Dropped::TooLong)),
            (9, 1, None),
            (10, 1, Some(Dropped::Blackout)),
            (19, 1, Some(Dropped::Blackout)),
            (20, 1, None),
            (600, 1, None),
            (1099, 1, Some(Dropped::Blackout)),
            (1100, 1, None),
            (1500, 1, Some(Dropped::Blackout)),
            (1600, 1, None),
        ] {
            let mut link = Link::new(decider(11));
            let outcome = link.offer(at_us * 1000, bytes, (), &model, &mut Vec::new());
            assert_eq!(outcome.dropped, want, "{bytes} bytes at {at_us} µs");
        }
    }

    #[test]
    fn corruption_flips_as_many_bits_as_set() {
        for (bits, len, want) in [(1, 10, 1), (5, 100, 5), (20, 2, 16), (3, 0, 0)] {
            for index in 0..50 {
                let mut bytes = vec![0; len];
                decider(12).corrupt(index, bits, &mut bytes);
                assert_eq!(
                    bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(),
                    want
                );
            }
        }
    }

    #[test]
    fn jitter_overtakes_unless_order_is_kept() {
        for keep_order in [false, true] {
            let model = Impairment {
                delay_us: 500,
                jitter_us: 500,
                keep_order,
                ..Impairment::default()
            };
            let mut link = Link::new(decider(13));
            let mut out = Vec::new();
            for index in 0..100 {
                link.offer(index * 1000, 1, index, &model, &mut out);
            }
            assert_eq!(out.is_sorted_by_key(|departure| departure.at), keep_order);
        }
    }
}
