//! The instants of a rate plan: when each message of an open loop is meant to leave, evenly or as a
//! Poisson process, however the rate changes.
//!
//! A message leaves when the plan's number of messages passes the next tick of a process of rate 1:
//! whole numbers for even spacing, sums of exponential gaps for Poisson (the time change of an
//! inhomogeneous Poisson process). So a change of rate takes effect at its very moment, no instant
//! depends on when the one before was really sent, and the long-run rate is exact.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_engine::Nanos;

use super::RatePlan;

/// How the messages of a plan are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly, the first one after this part of an interval, in 65,536ths: shards that share a plan
    /// take turns instead of sending all at once.
    Even {
        /// Part of an interval.
        offset: u16,
    },
    /// Independent, exponentially distributed gaps.
    Poisson {
        /// Of the random numbers; the same gives the same instants.
        seed: u64,
    },
}

/// See the [module's page](self).
#[derive(Debug, Clone)]
pub struct Instants {
    plan: Arc<RatePlan>,
    start: Nanos,
    /// The part of the plan's rate that is sent here.
    part: f64,
    /// Of a process of rate 1: where the next tick is.
    tick: f64,
    /// None for even spacing.
    random: Option<SmallRng>,
    /// Where in the plan the last search ended.
    from: usize,
    next: Option<Nanos>,
}

impl Instants {
    /// The part of a plan (more than 0, at most 1) that a sender has, from a moment on.
    #[must_use]
    pub fn new(plan: Arc<RatePlan>, part: f64, spacing: Spacing, start: Nanos) -> Self {
        let mut instants = Self {
            plan,
            start,
            part,
            tick: 0.0,
            random: None,
            from: 0,
            next: None,
        };
        match spacing {
            Spacing::Even { offset } => instants.tick = f64::from(offset) / 65_536.0,
            Spacing::Poisson { seed } => {
                instants.random = Some(SmallRng::seed_from_u64(seed));
                instants.tick = instants.gap();
            }
        }
        instants.look();
        instants
    }

    /// When the next message is meant to leave; `None` when the plan has no more.
    #[inline]
    #[must_use]
    pub fn next_intended(&self) -> Option<Nanos> {
        self.next
    }

    /// Takes the oldest instant that is due.
    #[inline]
    pub fn pop_due(&mut self, now: Nanos) -> Option<Nanos> {
        let due = self.next.filter(|next| *next <= now)?;
        self.tick += self.gap();
        self.look();
        Some(due)
    }

    #[inline]
    fn gap(&mut self) -> f64 {
        self.random.as_mut().map_or(1.0, |random| {
            // Inverse of the exponential distribution; 1 - u is never zero.
            let u: f64 = random.random();
            -(1.0 - u).ln()
        })
    }

    #[inline]
    fn look(&mut self) {
        let elapsed = self.plan.time_of(self.tick / self.part, &mut self.from);
        self.next = elapsed.map(|elapsed| self.start.saturating_add(elapsed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;
    const START: Nanos = 77;

    fn all(plan: &RatePlan, part: f64, spacing: Spacing) -> Vec<Nanos> {
        let mut instants = Instants::new(Arc::new(plan.clone()), part, spacing, START);
        std::iter::from_fn(|| instants.pop_due(Nanos::MAX)).collect()
    }

    /// Over steps and slopes the counts in every window are Poisson with the plan's mean, and the
    /// gaps, stretched by the plan's rate, are exponential.
    #[test]
    fn poisson_instants_follow_the_plan() {
        let plans = [
            (
                "steps",
                RatePlan::parse_steps("3 20000 1000 20000 200 20000 3000").unwrap(),
            ),
            (
                "slopes",
                RatePlan::parse_slopes(0.0, "3 20000 100 20000 -90 20000 50").unwrap(),
            ),
        ];
        for (name, plan) in plans {
            for (part, seed) in [(1.0, 1), (0.25, 2)] {
                let taken = all(&plan, part, Spacing::Poisson { seed });
                let ticks = taken
                    .iter()
                    .map(|at| part * plan.messages_until(at - START));
                let ticks: Vec<f64> = ticks.collect();
                // Kolmogorov-Smirnov: the gaps of rate 1 are exponential.
                let gaps = ticks.windows(2).map(|pair| pair[1] - pair[0]);
                let mut gaps: Vec<f64> = gaps.collect();
                gaps.sort_unstable_by(f64::total_cmp);
                let n = gaps.len() as f64;
                let distance = gaps.iter().enumerate().fold(0.0_f64, |worst, (i, gap)| {
                    let (cdf, i) = (1.0 - (-gap).exp(), i as f64);
                    worst
                        .max((cdf - i / n).abs())
                        .max((cdf - (i + 1.0) / n).abs())
                });
                // The 1 % point of the Kolmogorov distribution; the seeds are fixed.
                let limit = 1.628 / n.sqrt();
                assert!(
                    distance < limit,
                    "{name}, part {part}: D = {distance}, limit {limit}"
                );
                // Each piece by itself has its number of messages, within four standard errors.
                for piece in 0..3 {
                    let (from, to) = (piece * 20 * SECOND, (piece + 1) * 20 * SECOND);
                    let inside = |at: &&Nanos| (from..to).contains(&(**at - START));
                    let found = taken.iter().filter(inside).count() as f64;
                    let wanted = part * (plan.messages_until(to) - plan.messages_until(from));
                    let off = (found - wanted).abs();
                    assert!(
                        off < 4.0 * wanted.sqrt(),
                        "{name}, piece {piece}: {found} of {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn even_instants_are_those_of_the_plan() {
        let plan = RatePlan::parse_steps("3 1000 10 1000 0 1000 4").unwrap();
        let taken = all(&plan, 1.0, Spacing::Even { offset: 0 });
        let tenths = (0..10).map(|n| START + n * SECOND / 10);
        let quarters = (0..4).map(|n| START + 2 * SECOND + n * SECOND / 4);
        assert_eq!(taken, tenths.chain(quarters).collect::<Vec<_>>());
        // Two shards with half of it each, the second half an interval later, fill it together.
        let halves = [0, 0x8000].map(|offset| all(&plan, 0.5, Spacing::Even { offset }));
        let mut both = halves.concat();
        both.sort_unstable();
        assert_eq!(both, taken);
    }

    #[test]
    fn a_late_sender_does_not_move_later_instants() {
        let plan = Arc::new(RatePlan::constant(10.0).unwrap());
        let mut instants = Instants::new(plan, 1.0, Spacing::Even { offset: 0 }, START);
        assert_eq!(instants.next_intended(), Some(START));
        assert_eq!(instants.pop_due(START - 1), None);
        let late = START + 25 * SECOND / 100;
        let due: Vec<_> = std::iter::from_fn(|| instants.pop_due(late)).collect();
        assert_eq!(due, [0, 1, 2].map(|n| START + n * SECOND / 10));
        assert_eq!(instants.next_intended(), Some(START + 3 * SECOND / 10));
    }

    #[test]
    fn a_seed_repeats_its_instants_and_another_does_not() {
        let plan = RatePlan::parse_slopes(100.0, "1 1000 100").unwrap();
        let times = |seed| all(&plan, 1.0, Spacing::Poisson { seed });
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
        assert!(
            all(
                &RatePlan::constant(0.0).unwrap(),
                1.0,
                Spacing::Even { offset: 9 }
            )
            .is_empty()
        );
    }
}
