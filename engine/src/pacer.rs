//! The precise pacer: *when* a sender means to send, for the few that need an exact rate.
//!
//! Each intended time follows from the one before and never from "now", so a late tick is
//! caught up and the long-run rate is exact. Only so many overdue ticks are caught up at
//! once: those beyond are given up, oldest first, and counted, so the shortfall is known.
//! A load generator measures latency from the intended time, which no stall can move.
//!
//! It never reads the clock and never waits; set a timer to
//! [`next_intended`](Pacer::next_intended), then take what is due:
//!
//! ```
//! # use ringmill_engine::pacer::Pacer;
//! let start = 1_000_000;
//! let mut pacer = Pacer::constant(3.0, start)?; // three a second: 333,333,333.3… ns
//! let now = start + 700_000_000;
//! let mut sent = Vec::new();
//! while let Some(intended) = pacer.pop_due(now) {
//!     sent.push(intended - start);
//! }
//! assert_eq!(sent, [0, 333_333_333, 666_666_666]);
//! assert_eq!(pacer.next_intended() - start, 1_000_000_000);
//! # Ok::<(), ringmill_engine::pacer::PacerError>(())
//! ```

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::time::{NANOS_PER_SECOND, Nanos};

/// The fastest rate. Fourteen times the most datagrams a second that one CPU has received
/// here (7 million); drawing a Poisson gap takes about 10 ns, so faster it could not follow.
pub const RATE_PER_S_MAX: f64 = 1e8;

/// The slowest rate: one in 30 years. Below it the exact fraction would not fit 128 bits.
pub const RATE_PER_S_MIN: f64 = 1e-9;

/// How many overdue ticks are caught up at once unless the caller says otherwise: a stall of
/// 16 ms at a million a second, or of 1.6 s at ten thousand.
pub const CATCH_UP_TICKS_MAX_DEFAULT: u32 = 16_384;

/// Where sums saturate is "never", so no tick is due later than this.
const LAST: Nanos = Nanos::MAX - 1;

/// A rate that cannot be paced.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum PacerError {
    /// Not a number, or outside of what the pacer can do.
    #[error(
        "cannot pace {rate_per_s} ticks a second: choose a rate from {RATE_PER_S_MIN:e} to \
         {RATE_PER_S_MAX:e}"
    )]
    Rate {
        /// What was asked for.
        rate_per_s: f64,
    },
}

/// See the [module's page](self).
#[derive(Debug, Clone)]
pub struct Pacer {
    arrivals: Arrivals,
    catch_up_max: u32,
    ticks_taken: u64,
    ticks_skipped: u64,
}

#[derive(Debug, Clone)]
enum Arrivals {
    Constant(Constant),
    Poisson(Poisson),
}

impl Pacer {
    /// Ticks at equal intervals, the first at `start`. The rate is taken as the exact binary
    /// fraction that the `f64` is, and there is no drift from it, ever.
    ///
    /// # Errors
    /// [`PacerError::Rate`] outside of [`RATE_PER_S_MIN`] to [`RATE_PER_S_MAX`].
    pub fn constant(rate_per_s: f64, start: Nanos) -> Result<Self, PacerError> {
        check(rate_per_s)?;
        // rate = mantissa × 2^exponent exactly, so `mantissa` ticks take 10⁹ × 2^-exponent ns.
        let bits = rate_per_s.to_bits();
        let mantissa = (bits & ((1 << 52) - 1)) | 1 << 52;
        let exponent = (bits >> 52) as i32 - 1075;
        // The least rate gives 2^-82, the greatest 2^-26: always a whole number below 2^112.
        let per = u128::from(NANOS_PER_SECOND) << exponent.unsigned_abs();
        Ok(Self::new(Arrivals::Constant(Constant::new(
            mantissa, per, start,
        ))))
    }

    /// `ticks` ticks in every `per` nanoseconds, at equal intervals, the first at `start`:
    /// for rates that no `f64` is, such as one in three seconds.
    ///
    /// # Errors
    /// [`PacerError::Rate`] outside of [`RATE_PER_S_MIN`] to [`RATE_PER_S_MAX`].
    pub fn constant_ratio(ticks: u32, per: Nanos, start: Nanos) -> Result<Self, PacerError> {
        check(f64::from(ticks) / per as f64 * NANOS_PER_SECOND as f64)?;
        Ok(Self::new(Arrivals::Constant(Constant::new(
            u64::from(ticks),
            u128::from(per),
            start,
        ))))
    }

    /// Ticks of a Poisson process: independent, exponentially distributed gaps, also before
    /// the first. The same seed gives the same times from the same build.
    ///
    /// # Errors
    /// [`PacerError::Rate`] outside of [`RATE_PER_S_MIN`] to [`RATE_PER_S_MAX`].
    pub fn poisson(rate_per_s: f64, start: Nanos, seed: u64) -> Result<Self, PacerError> {
        check(rate_per_s)?;
        let first = Draw::new(rate_per_s, start, seed);
        Ok(Self::new(Arrivals::Poisson(Poisson {
            beyond: first.clone(),
            first,
            due: 0,
        })))
    }

    fn new(arrivals: Arrivals) -> Self {
        Self {
            arrivals,
            catch_up_max: CATCH_UP_TICKS_MAX_DEFAULT,
            ticks_taken: 0,
            ticks_skipped: 0,
        }
    }

    /// How many ticks may be due at once, at least one; the older ones beyond are skipped.
    /// The default is [`CATCH_UP_TICKS_MAX_DEFAULT`].
    #[must_use]
    pub fn with_catch_up_max(mut self, ticks: u32) -> Self {
        self.catch_up_max = ticks.max(1);
        self
    }

    /// When the next tick is meant to be: due already, or the time to wake up for. After a
    /// stall, ask [`due`](Self::due) first, which gives up what is beyond the bound.
    #[inline]
    #[must_use]
    pub fn next_intended(&self) -> Nanos {
        match &self.arrivals {
            Arrivals::Constant(constant) => constant.next,
            Arrivals::Poisson(poisson) => poisson.first.next,
        }
    }

    /// How many ticks are due at `now`, at most the bound; what is beyond it is skipped and
    /// counted now. [`pop_due`](Self::pop_due) gives them one at a time.
    ///
    /// After a stall, Poisson ticks cost a draw (about 10 ns) each, also the skipped ones;
    /// constant ones cost two divisions, however many.
    pub fn due(&mut self, now: Nanos) -> u32 {
        let now = now.min(LAST);
        if self.next_intended() > now {
            return 0;
        }
        let (due, skipped) = match &mut self.arrivals {
            Arrivals::Constant(constant) => constant.due(now, self.catch_up_max),
            Arrivals::Poisson(poisson) => poisson.due(now, self.catch_up_max),
        };
        self.ticks_skipped += skipped;
        due
    }

    /// Takes the oldest tick that is due at `now` and within the bound, and says when it was
    /// meant to be; `None` if none is due.
    #[inline]
    pub fn pop_due(&mut self, now: Nanos) -> Option<Nanos> {
        let now = now.min(LAST);
        if self.next_intended() > now {
            return None;
        }
        self.ticks_skipped += match &mut self.arrivals {
            Arrivals::Constant(constant) => constant.skip(now, self.catch_up_max),
            Arrivals::Poisson(poisson) => poisson.due(now, self.catch_up_max).1,
        };
        let intended = self.next_intended();
        match &mut self.arrivals {
            Arrivals::Constant(constant) => constant.step(),
            Arrivals::Poisson(poisson) => poisson.step(),
        }
        self.ticks_taken += 1;
        Some(intended)
    }

    /// How many ticks were taken.
    #[must_use]
    pub fn ticks_taken(&self) -> u64 {
        self.ticks_taken
    }

    /// How many ticks were given up because more than the bound were due: the shortfall
    /// from the rate that was asked for.
    #[must_use]
    pub fn ticks_skipped(&self) -> u64 {
        self.ticks_skipped
    }
}

fn check(rate_per_s: f64) -> Result<(), PacerError> {
    if (RATE_PER_S_MIN..=RATE_PER_S_MAX).contains(&rate_per_s) {
        Ok(())
    } else {
        Err(PacerError::Rate { rate_per_s })
    }
}

/// `ticks` equal intervals in `per` nanoseconds. The next tick is at `next` and
/// `fraction / ticks` nanoseconds: whole numbers only, so nothing is ever rounded away.
#[derive(Debug, Clone)]
struct Constant {
    ticks: u128,
    per: u128,
    interval: Nanos,
    interval_fraction: u128,
    next: Nanos,
    fraction: u128,
}

impl Constant {
    fn new(ticks: u64, per: u128, start: Nanos) -> Self {
        let ticks = u128::from(ticks);
        Self {
            ticks,
            per,
            // At most 10¹⁸, the interval of the slowest rate, or a little more.
            interval: (per / ticks) as Nanos,
            interval_fraction: per % ticks,
            next: start,
            fraction: 0,
        }
    }

    #[inline]
    fn step(&mut self) {
        self.next = self.next.saturating_add(self.interval);
        self.fraction += self.interval_fraction;
        if self.fraction >= self.ticks {
            self.fraction -= self.ticks;
            self.next = self.next.saturating_add(1);
        }
    }

    /// The time from the next tick to the end of the nanosecond `now`, in units of
    /// 1 / `ticks` ns. A tick is due if it lies before that end.
    fn lateness(&self, now: Nanos) -> u128 {
        (u128::from(now - self.next) + 1) * self.ticks - self.fraction
    }

    /// Gives up what is due beyond `max`, oldest first, and says how many that were. Only
    /// a stall costs the division.
    #[inline]
    fn skip(&mut self, now: Nanos, max: u32) -> u64 {
        if self.lateness(now) <= self.per.saturating_mul(u128::from(max)) {
            return 0;
        }
        self.due(now, max).1
    }

    fn due(&mut self, now: Nanos, max: u32) -> (u32, u64) {
        let due = self.lateness(now).div_ceil(self.per);
        let Some(skipped) = due.checked_sub(u128::from(max)).filter(|&n| n > 0) else {
            return (due as u32, 0);
        };
        // No overflow: so many intervals are less than the lateness.
        let passed = self.fraction + skipped * self.per;
        self.next += (passed / self.ticks) as Nanos;
        self.fraction = passed % self.ticks;
        (max, skipped as u64)
    }
}

/// A Poisson process seen from two places: `due` ticks lie between `first` and `beyond`.
/// Drawing each gap twice costs less than keeping a list of them.
#[derive(Debug, Clone)]
struct Poisson {
    /// At the oldest tick that was not taken.
    first: Draw,
    /// At the first tick that was not due when last asked.
    beyond: Draw,
    due: u32,
}

impl Poisson {
    fn step(&mut self) {
        self.first.step();
        self.due -= 1;
    }

    fn due(&mut self, now: Nanos, max: u32) -> (u32, u64) {
        let mut skipped = 0;
        while self.beyond.next <= now {
            self.beyond.step();
            if self.due < max {
                self.due += 1;
            } else {
                self.first.step();
                skipped += 1;
            }
        }
        (self.due, skipped)
    }
}

/// A walk along the instants of one Poisson process.
#[derive(Debug, Clone)]
struct Draw {
    random: SmallRng,
    gap_mean: f64,
    next: Nanos,
    /// Of a nanosecond, carried on so that fast rates are not rounded up.
    fraction: f64,
}

impl Draw {
    fn new(rate_per_s: f64, start: Nanos, seed: u64) -> Self {
        let mut draw = Self {
            random: SmallRng::seed_from_u64(seed),
            gap_mean: NANOS_PER_SECOND as f64 / rate_per_s,
            next: start,
            fraction: 0.0,
        };
        draw.step();
        draw
    }

    fn step(&mut self) {
        // Inverse of the exponential distribution; 1 - u is never zero.
        let u: f64 = self.random.random();
        let gap = -(1.0 - u).ln() * self.gap_mean + self.fraction;
        let whole = gap.floor();
        self.fraction = gap - whole;
        // The conversion saturates, and so does the sum: 584 years from now is "never".
        self.next = self.next.saturating_add(whole as Nanos);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Nanos = NANOS_PER_SECOND;
    const START: Nanos = 123_456_789;

    fn take_all(pacer: &mut Pacer, now: Nanos) -> u64 {
        let mut taken = 0;
        while let Some(intended) = pacer.pop_due(now) {
            assert!(intended <= now, "early");
            taken += 1;
        }
        taken
    }

    #[test]
    fn counts_exactly_over_a_long_time() {
        // (ticks, per, seconds to run, ticks at start + seconds, the one at the end included)
        for (ticks, per, seconds, expected) in [
            (1, SECOND, 3_600, 3_601),
            (3, SECOND, 10_000, 30_001),
            (7, SECOND, 100_000, 700_001),
            (1, 3 * SECOND, 300_000, 100_001),
            (44_100, SECOND, 20, 882_001),
            (999_983, SECOND, 3, 2_999_950),
            (1_000_000, SECOND, 3, 3_000_001),
            (7, 11 * SECOND, 1_100_000, 700_001),
        ] {
            let mut pacer = Pacer::constant_ratio(ticks, per, START).unwrap();
            let end = START + seconds * SECOND;
            let mut taken = 0;
            let mut last = None;
            while pacer.next_intended() <= end {
                // As a driver would: wake for each tick.
                last = pacer.pop_due(pacer.next_intended());
                taken += 1;
            }
            assert_eq!(taken, expected, "{ticks} in {per} ns");
            assert_eq!(last, Some(end), "{ticks} in {per} ns: drift");
            assert_eq!(pacer.ticks_taken(), expected);
            assert_eq!(pacer.ticks_skipped(), 0);
        }
    }

    #[test]
    fn a_float_rate_does_not_drift_in_a_hundred_days() {
        let seconds = 100 * 24 * 3600;
        for rate in [
            1e-6,
            0.1,
            1.0,
            1.0 / 3.0,
            59.94,
            1e3,
            123_456.789,
            1e6,
            1e7,
            1e8,
        ] {
            let mut pacer = Pacer::constant(rate, START).unwrap().with_catch_up_max(1);
            // One jump to the end: the skipping is exact too.
            let end = START + seconds * SECOND;
            assert_eq!(pacer.due(end), 1);
            let ticks = pacer.ticks_skipped() + 1;
            let exact = rate * seconds as f64;
            let off = ticks as f64 - (exact.floor() + 1.0);
            assert!(off.abs() <= 1.0, "{rate}/s: {ticks} ticks for {exact}");
            assert!(pacer.pop_due(end).unwrap() <= end);
            assert!(pacer.next_intended() > end);
        }
    }

    #[test]
    fn lateness_does_not_move_later_ticks() {
        let mut pacer = Pacer::constant(1_000.0, 0).unwrap();
        // Always 300 µs late, and once three ticks at a time.
        for (now, expected) in [
            (300_000, vec![0]),
            (1_300_000, vec![1_000_000]),
            (4_300_000, vec![2_000_000, 3_000_000, 4_000_000]),
            (4_999_999, vec![]),
            (5_000_000, vec![5_000_000]),
        ] {
            assert_eq!(pacer.due(now) as usize, expected.len(), "at {now}");
            let taken: Vec<_> = std::iter::from_fn(|| pacer.pop_due(now)).collect();
            assert_eq!(taken, expected, "at {now}");
        }
    }

    #[test]
    fn beyond_the_bound_the_oldest_are_skipped_and_counted() {
        let poisson = Pacer::poisson(1e6, 0, 5).unwrap();
        let constant = Pacer::constant(1e6, 0).unwrap();
        for (pacer, name) in [(constant, "constant"), (poisson, "poisson")] {
            // All ticks up to a second, as they would be without a bound.
            let mut unbounded = pacer.clone().with_catch_up_max(u32::MAX);
            let all: Vec<_> = std::iter::from_fn(|| unbounded.pop_due(SECOND)).collect();
            assert_eq!(unbounded.ticks_skipped(), 0, "{name}");
            for max in [1_u32, 2, 100, 10_000] {
                let mut by_pop = pacer.clone().with_catch_up_max(max);
                let mut by_due = by_pop.clone();
                assert_eq!(by_due.due(SECOND), max, "{name}, at most {max}");
                assert_eq!(by_due.due(SECOND), max, "{name}: asking changes nothing");
                let taken: Vec<_> = std::iter::from_fn(|| by_pop.pop_due(SECOND)).collect();
                let again: Vec<_> = std::iter::from_fn(|| by_due.pop_due(SECOND)).collect();
                assert_eq!(
                    taken,
                    all[all.len() - max as usize..],
                    "{name}, at most {max}"
                );
                assert_eq!(again, taken, "{name}");
                for pacer in [by_pop, by_due] {
                    let sum = pacer.ticks_taken() + pacer.ticks_skipped();
                    assert_eq!(sum, all.len() as u64, "{name}: none is lost unseen");
                    assert_eq!(pacer.next_intended(), unbounded.next_intended(), "{name}");
                }
            }
        }
        assert_eq!(
            Pacer::constant(1e6, 0)
                .unwrap()
                .with_catch_up_max(0)
                .due(SECOND),
            1,
            "a bound of nothing would never send"
        );
    }

    #[test]
    fn poisson_has_the_right_count_and_independent_counts() {
        // Fixed seeds, so this passes always or never. Counts in 10,000 windows with a mean
        // of 10 each: mean and variance are both 10 for a Poisson process; their standard
        // errors are 0.032 and 0.145, and four of them are allowed.
        for (rate, seed) in [(100.0, 1), (12_345.6, 2), (1e6, 3), (1e8, 4)] {
            let mut pacer = Pacer::poisson(rate, START, seed).unwrap();
            let window = 10.0 * SECOND as f64 / rate;
            let counts: Vec<f64> = (1..=10_000)
                .map(|n| take_all(&mut pacer, START + (window * f64::from(n)) as Nanos) as f64)
                .collect();
            let mean = counts.iter().sum::<f64>() / 1e4;
            let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 1e4;
            assert!((mean - 10.0).abs() < 0.13, "{rate}/s: mean {mean}");
            assert!(
                (variance - 10.0).abs() < 0.6,
                "{rate}/s: variance {variance}"
            );
        }
    }

    #[test]
    fn poisson_gaps_pass_kolmogorov_smirnov() {
        const GAPS: usize = 100_000;
        for (rate, seed) in [(10.0, 1), (1e3, 2), (250_000.0, 3)] {
            let mut pacer = Pacer::poisson(rate, START, seed).unwrap();
            let mut last = START;
            let mut gaps: Vec<f64> = (0..GAPS)
                .map(|_| {
                    let intended = pacer.pop_due(pacer.next_intended()).unwrap();
                    let gap = (intended - last) as f64 / SECOND as f64;
                    last = intended;
                    gap
                })
                .collect();
            gaps.sort_unstable_by(f64::total_cmp);
            let n = GAPS as f64;
            let distance = gaps.iter().enumerate().fold(0.0_f64, |worst, (i, gap)| {
                let cdf = 1.0 - (-gap * rate).exp();
                let i = i as f64;
                worst
                    .max((cdf - i / n).abs())
                    .max((cdf - (i + 1.0) / n).abs())
            });
            // The 1 % point of the Kolmogorov distribution.
            let limit = 1.628 / n.sqrt();
            assert!(distance < limit, "{rate}/s: D = {distance}, limit {limit}");
        }
    }

    #[test]
    fn a_seed_repeats_its_times_and_another_does_not() {
        let times = |seed| {
            let mut pacer = Pacer::poisson(1e3, 0, seed).unwrap();
            Vec::from_iter(std::iter::from_fn(|| pacer.pop_due(SECOND)))
        };
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
    }

    #[test]
    fn impossible_rates_are_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-10, 1.1e8] {
            for answer in [Pacer::constant(rate, 0), Pacer::poisson(rate, 0, 0)] {
                let error = answer.unwrap_err().to_string();
                assert!(error.contains("choose a rate from 1e-9 to 1e8"), "{error}");
            }
        }
        assert!(Pacer::constant_ratio(0, SECOND, 0).is_err());
        assert!(Pacer::constant_ratio(1, 0, 0).is_err());
        for rate in [RATE_PER_S_MIN, RATE_PER_S_MAX] {
            let mut pacer = Pacer::constant(rate, 0).unwrap();
            assert_eq!(pacer.pop_due(0), Some(0));
            let interval = (SECOND as f64 / rate) as Nanos;
            assert!(pacer.next_intended().abs_diff(interval) <= interval / 1_000_000);
            assert!(pacer.due(Nanos::MAX) > 0, "the end of time is no overflow");
            let taken = take_all(&mut pacer, Nanos::MAX);
            assert!(taken <= u64::from(CATCH_UP_TICKS_MAX_DEFAULT), "and ends");
        }
    }

    proptest! {
        /// The oracle: tick k is at ⌊k × per / ticks⌋, whenever it is asked for.
        #[test]
        fn constant_ticks_are_where_the_formula_says(
            ticks in 1_u32..1_000_000,
            per in SECOND / 10..100 * SECOND,
            max in 1_u32..50,
            pauses in prop::collection::vec(0.0_f64..100.0, 1..50),
        ) {
            let mut pacer = Pacer::constant_ratio(ticks, per, START).unwrap()
                .with_catch_up_max(max);
            let intended = |k: u64| {
                START + (u128::from(k) * u128::from(per) / u128::from(ticks)) as Nanos
            };
            let mut now = START;
            let mut k = 0;
            for pause in pauses {
                now += (pause * per as f64 / f64::from(ticks)) as Nanos;
                let mut passed = 0;
                while intended(k + passed) <= now {
                    passed += 1;
                }
                let skipped = passed.saturating_sub(u64::from(max));
                for k in k + skipped..k + passed {
                    prop_assert_eq!(pacer.pop_due(now), Some(intended(k)));
                }
                prop_assert_eq!(pacer.pop_due(now), None);
                k += passed;
                prop_assert_eq!(pacer.ticks_taken() + pacer.ticks_skipped(), k);
                prop_assert_eq!(pacer.next_intended(), intended(k));
            }
        }
    }
}
