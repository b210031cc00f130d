//! Rate plans: the rate of an open loop as a function of time, in steps and slopes.
//!
//! A plan is a list of pieces on each of which the rate is a straight line. It is only a function:
//! how many messages are meant to have left by some moment, and when the n-th is meant to. So the
//! rate that is asked for is the rate that is scheduled, at every moment, whoever sends by it
//! ([`Instants`](super::Instants)). It must never know a clock or what was really sent.
//!
//! The two text formats are those of tcpscaler's `--stdin` and `--stdin-rateslope`: a first line
//! with the number of lines, then as many lines of `<duration_ms> <rate>` or `<duration_ms>
//! <slope>`. Any white space separates, and `#` begins a comment.
//!
//! ```
//! use ringmill_protocols::load::RatePlan;
//!
//! let plan = RatePlan::parse_steps("2\n1000 100\n500 40")?;
//! assert_eq!(plan.rate_at(0), 100.0);
//! assert_eq!(plan.rate_at(1_200_000_000), 40.0);
//! assert_eq!(plan.length(), Some(1_500_000_000));
//! assert_eq!(plan.messages_until(1_500_000_000), 120.0);
//! # Ok::<(), ringmill_protocols::load::PlanError>(())
//! ```

use ringmill_engine::Nanos;
use ringmill_engine::pacer::RATE_PER_S_MAX;

/// Lines that a plan may have: one a second for eighteen hours. The original takes 256.
pub const PLAN_LINES_MAX: usize = 65_536;

const NANOS_PER_S: f64 = 1e9;
const NANOS_PER_MS: Nanos = 1_000_000;

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The first line is not a number of lines.
    #[error(
        "a rate plan begins with the number of its lines, from 1 to {PLAN_LINES_MAX}; found {0:?}"
    )]
    Count(String),
    /// Fewer or more lines than the first one says.
    #[error("the rate plan says that it has {said} lines, and has {found}")]
    Lines {
        /// As the first line says.
        said: usize,
        /// That were found.
        found: usize,
    },
    /// A line that is not two numbers.
    #[error("line {line} of the rate plan: {text:?} is not '<duration_ms> <{what}>'")]
    Line {
        /// From 1, the one with the number of lines not counted.
        line: usize,
        /// As it is written.
        text: String,
        /// What the second number is.
        what: &'static str,
    },
    /// A rate that cannot be sent.
    #[error("the rate plan comes to {0} messages a second; the most is {RATE_PER_S_MAX:e}")]
    Rate(f64),
    /// It lasts no time at all, or longer than can be counted.
    #[error("the rate plan lasts no time, or more than 100 years; give its lines a duration")]
    Length,
}

/// A part of a plan on which the rate is a straight line.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Piece {
    /// When it begins, from the beginning of the plan.
    begin: Nanos,
    /// Messages meant to have left before it.
    before: f64,
    /// Messages per second at its beginning.
    rate: f64,
    /// Change of that, messages per second in a second.
    slope: f64,
}

impl Piece {
    /// Messages in its first so many nanoseconds.
    fn messages(&self, elapsed: Nanos) -> f64 {
        let seconds = elapsed as f64 / NANOS_PER_S;
        (self.rate + self.slope * seconds / 2.0) * seconds
    }

    fn rate_after(&self, elapsed: Nanos) -> f64 {
        (self.rate + self.slope * (elapsed as f64 / NANOS_PER_S)).max(0.0)
    }

    /// When so many messages are meant to have left, in ns from its beginning; infinite when that
    /// is never. This form of the root loses no digits for a small slope.
    fn time_of(&self, messages: f64) -> f64 {
        if messages <= 0.0 {
            return 0.0;
        }
        let root = (self.rate * self.rate + 2.0 * self.slope * messages).max(0.0);
        2.0 * messages / (self.rate + root.sqrt()) * NANOS_PER_S
    }
}

/// See the [module's page](self).
#[derive(Debug, Clone, PartialEq)]
pub struct RatePlan {
    /// At least one, in order of time.
    pieces: Vec<Piece>,
    /// When it ends; never, if none.
    length: Option<Nanos>,
}

/// The longest plan, ns.
const LENGTH_MAX: Nanos = 100 * 365 * 86_400 * 1_000_000_000;

impl RatePlan {
    /// One rate, messages per second, for ever.
    ///
    /// # Errors
    /// [`PlanError::Rate`] for a rate that cannot be sent.
    pub fn constant(rate: f64) -> Result<Self, PlanError> {
        let mut plan = Self::empty();
        plan.push(0, rate, 0.0)?;
        Ok(plan)
    }

    /// Rates one after the other, each for a time: (ns, messages per second).
    ///
    /// # Errors
    /// For a rate that cannot be sent, or a plan of no length.
    pub fn steps(steps: &[(Nanos, f64)]) -> Result<Self, PlanError> {
        let mut plan = Self::empty();
        let mut at = 0;
        for &(length, rate) in steps {
            plan.push(at, rate, 0.0)?;
            at = later(at, length)?;
        }
        plan.ended(at)
    }

    /// From a rate, slopes one after the other, each for a time: (ns, messages per second in a
    /// second). The rate never falls below 0, and rises from there when a slope says so.
    ///
    /// # Errors
    /// For a rate that cannot be sent, or a plan of no length.
    pub fn slopes(initial: f64, slopes: &[(Nanos, f64)]) -> Result<Self, PlanError> {
        let mut plan = Self::empty();
        let (mut at, mut rate) = (0, initial);
        for &(length, slope) in slopes {
            let end = later(at, length)?;
            plan.push(at, rate, slope)?;
            let last = rate + slope * (length as f64 / NANOS_PER_S);
            if last < 0.0 {
                let empty = at + (rate / -slope * NANOS_PER_S).ceil() as Nanos;
                if empty < end {
                    plan.push(empty, 0.0, 0.0)?;
                }
            }
            rate = last.max(0.0);
            check(rate)?;
            at = end;
        }
        plan.ended(at)
    }

    /// Reads `<duration_ms> <rate>` lines.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub fn parse_steps(text: &str) -> Result<Self, PlanError> {
        let lines = parse(text, "rate", |word| {
            word.parse().ok().filter(|rate: &f64| *rate >= 0.0)
        })?;
        Self::steps(&lines)
    }

    /// Reads `<duration_ms> <slope>` lines that begin at a rate.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub fn parse_slopes(initial: f64, text: &str) -> Result<Self, PlanError> {
        let lines = parse(text, "slope", |word| {
            word.parse().ok().filter(|slope: &f64| slope.is_finite())
        })?;
        Self::slopes(initial, &lines)
    }

    /// The same plan after so much time at its first rate: a warm-up.
    #[must_use]
    pub fn after(mut self, warm_up: Nanos) -> Self {
        let rate = self.pieces[0].rate;
        let before = rate * (warm_up as f64 / NANOS_PER_S);
        for piece in &mut self.pieces {
            piece.begin = piece.begin.saturating_add(warm_up);
            piece.before += before;
        }
        self.length = self.length.map(|length| length.saturating_add(warm_up));
        let first = Piece {
            begin: 0,
            before: 0.0,
            rate,
            slope: 0.0,
        };
        self.pieces.insert(0, first);
        self
    }

    /// How long it is, ns; none for one that never ends.
    #[must_use]
    pub fn length(&self) -> Option<Nanos> {
        self.length
    }

    /// Messages per second that are meant to leave at a moment; 0 after the end.
    #[must_use]
    pub fn rate_at(&self, elapsed: Nanos) -> f64 {
        if self.length.is_some_and(|length| elapsed >= length) {
            return 0.0;
        }
        let piece = self.piece_at(elapsed);
        piece.rate_after(elapsed - piece.begin)
    }

    /// The highest rate of all, messages per second.
    #[must_use]
    pub fn rate_max(&self) -> f64 {
        let ends = self.pieces.iter().enumerate().map(|(at, piece)| {
            let end = self.pieces.get(at + 1).map(|next| next.begin);
            let end = end.or(self.length).unwrap_or(piece.begin);
            piece.rate.max(piece.rate_after(end - piece.begin))
        });
        ends.fold(0.0, f64::max)
    }

    /// Messages that are meant to have left before a moment.
    #[must_use]
    pub fn messages_until(&self, elapsed: Nanos) -> f64 {
        let elapsed = self.length.map_or(elapsed, |length| elapsed.min(length));
        let piece = self.piece_at(elapsed);
        piece.before + piece.messages(elapsed - piece.begin)
    }

    /// When so many messages are meant to have left; `None` when the plan never comes to so many.
    /// `from` is where the search begins and is moved on: start with 0 and ask for ever more
    /// messages, and it costs a few comparisons.
    #[inline]
    #[must_use]
    pub fn time_of(&self, messages: f64, from: &mut usize) -> Option<Nanos> {
        while let Some(next) = self.pieces.get(*from + 1) {
            if messages < next.before {
                break;
            }
            *from += 1;
        }
        let piece = &self.pieces[*from];
        let elapsed = piece.time_of(messages - piece.before);
        if !elapsed.is_finite() || elapsed >= LENGTH_MAX as f64 {
            return None;
        }
        let at = piece.begin.saturating_add(elapsed as Nanos);
        self.length.is_none_or(|length| at < length).then_some(at)
    }

    fn empty() -> Self {
        Self {
            pieces: Vec::new(),
            length: None,
        }
    }

    fn push(&mut self, begin: Nanos, rate: f64, slope: f64) -> Result<(), PlanError> {
        check(rate)?;
        let before = self
            .pieces
            .last()
            .map_or(0.0, |last| last.before + last.messages(begin - last.begin));
        self.pieces.push(Piece {
            begin,
            before,
            rate,
            slope,
        });
        Ok(())
    }

    fn ended(mut self, at: Nanos) -> Result<Self, PlanError> {
        if at == 0 {
            return Err(PlanError::Length);
        }
        self.length = Some(at);
        Ok(self)
    }

    fn piece_at(&self, elapsed: Nanos) -> &Piece {
        let after = self.pieces.partition_point(|piece| piece.begin <= elapsed);
        &self.pieces[after.max(1) - 1]
    }
}

fn check(rate: f64) -> Result<(), PlanError> {
    if (0.0..=RATE_PER_S_MAX).contains(&rate) {
        Ok(())
    } else {
        Err(PlanError::Rate(rate))
    }
}

fn later(at: Nanos, length: Nanos) -> Result<Nanos, PlanError> {
    let sum = at.checked_add(length).filter(|sum| *sum <= LENGTH_MAX);
    sum.ok_or(PlanError::Length)
}

fn parse(
    text: &str,
    what: &'static str,
    value: impl Fn(&str) -> Option<f64>,
) -> Result<Vec<(Nanos, f64)>, PlanError> {
    let without_comments = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or(""));
    let mut words = without_comments.flat_map(str::split_whitespace);
    let first = words.next().unwrap_or("");
    let said = first.parse().ok();
    let said: usize = said
        .filter(|count| (1..=PLAN_LINES_MAX).contains(count))
        .ok_or_else(|| PlanError::Count(first.to_owned()))?;
    let mut lines = Vec::with_capacity(said);
    while let Some(length) = words.next() {
        if lines.len() == said {
            let found = said + 1 + words.count() / 2;
            return Err(PlanError::Lines { said, found });
        }
        let second = words.next().unwrap_or("");
        let wrong = || PlanError::Line {
            line: lines.len() + 1,
            text: format!("{length} {second}").trim_end().to_owned(),
            what,
        };
        let length_ms: Nanos = length.parse().map_err(|_| wrong())?;
        let length = length_ms.checked_mul(NANOS_PER_MS);
        let length = length.ok_or(PlanError::Length)?;
        let value = value(second).ok_or_else(wrong)?;
        lines.push((length, value));
    }
    if lines.len() < said {
        let found = lines.len();
        return Err(PlanError::Lines { said, found });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn both_formats_give_the_rate_that_they_say_at_every_moment() {
        let steps = RatePlan::parse_steps("3\n2000 100\n 500 0 \n1000 1e3 # a comment").unwrap();
        let slopes = RatePlan::parse_slopes(10.0, "4 1000 100 1000 0 1000 -200 1000 50").unwrap();
        for (plan, at_ms, rate, messages) in [
            (&steps, 0, 100.0, 0.0),
            (&steps, 1_999, 100.0, 199.9),
            (&steps, 2_000, 0.0, 200.0),
            (&steps, 2_400, 0.0, 200.0),
            (&steps, 2_500, 1_000.0, 200.0),
            (&steps, 3_000, 1_000.0, 700.0),
            (&steps, 3_500, 0.0, 1_200.0),
            (&steps, 99_000, 0.0, 1_200.0),
            (&slopes, 0, 10.0, 0.0),
            (&slopes, 500, 60.0, 17.5),
            (&slopes, 1_000, 110.0, 60.0),
            (&slopes, 1_900, 110.0, 159.0),
            (&slopes, 2_500, 10.0, 200.0),
            // The rate ends at 0, not below, after 550 ms of that slope.
            (&slopes, 2_700, 0.0, 200.25),
            (&slopes, 3_000, 0.0, 200.25),
            (&slopes, 3_500, 25.0, 206.5),
            (&slopes, 4_000, 0.0, 225.25),
        ] {
            let at = at_ms * NANOS_PER_MS;
            let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
            assert!(
                close(plan.rate_at(at), rate),
                "rate at {at_ms} ms: {}",
                plan.rate_at(at)
            );
            let until = plan.messages_until(at);
            assert!(close(until, messages), "messages until {at_ms} ms: {until}");
        }
        assert_eq!(steps.length(), Some(3_500 * NANOS_PER_MS));
        assert_eq!(steps.rate_max(), 1_000.0);
        assert!((slopes.rate_max() - 110.0).abs() < 1e-9);
    }

    #[test]
    fn the_time_of_a_message_is_the_inverse_of_their_number() {
        let plans = [
            RatePlan::constant(1e5).unwrap(),
            RatePlan::constant(0.1).unwrap(),
            RatePlan::parse_steps("3 1000 100 500 0 1000 7").unwrap(),
            RatePlan::parse_slopes(0.0, "2 1000 1000 5000 -200").unwrap(),
            RatePlan::parse_slopes(1e6, "1 1000 1e-9").unwrap(),
            RatePlan::parse_slopes(100.0, "3 3000 -100 1000 0 1000 30").unwrap(),
        ];
        for plan in plans {
            let total = plan.messages_until(plan.length().unwrap_or(100 * SECOND));
            let mut from = 0;
            let mut last = 0;
            for n in 0..1_000 {
                let messages = total * f64::from(n) / 1_000.0;
                let at = plan.time_of(messages, &mut from).unwrap();
                assert!(at >= last);
                last = at;
                // A nanosecond is the resolution.
                let off = (plan.messages_until(at) - messages).abs();
                assert!(
                    off <= plan.rate_max() * 2e-9 + 1e-9 * total,
                    "{n}: off by {off}"
                );
            }
            if plan.length().is_some() {
                assert_eq!(plan.time_of(total + 1.0, &mut from), None, "after the end");
            }
        }
        let nothing = RatePlan::constant(0.0).unwrap();
        assert_eq!(nothing.time_of(0.5, &mut 0), None);
    }

    #[test]
    fn a_warm_up_runs_at_the_first_rate() {
        let plan = RatePlan::parse_slopes(50.0, "1 1000 100")
            .unwrap()
            .after(2 * SECOND);
        for (at_ms, rate, messages) in [
            (0, 50.0, 0.0),
            (1_999, 50.0, 99.95),
            (2_500, 100.0, 137.5),
            (2_999, 149.9, 199.85005),
        ] {
            let at = at_ms * NANOS_PER_MS;
            assert!((plan.rate_at(at) - rate).abs() < 1e-6, "at {at_ms} ms");
            assert!(
                (plan.messages_until(at) - messages).abs() < 1e-6,
                "at {at_ms} ms"
            );
        }
        assert_eq!(plan.length(), Some(3 * SECOND));
    }

    #[test]
    fn what_is_no_plan_is_refused_with_the_line() {
        for (text, words) in [
            ("", "begins with the number of its lines"),
            ("x", "found \"x\""),
            ("0", "from 1 to 65536"),
            ("65537", "from 1 to 65536"),
            ("2\n1000 5", "says that it has 2 lines, and has 1"),
            ("1\n1000 5\n1000 6", "says that it has 1 lines, and has 2"),
            (
                "1\n1000",
                "line 1 of the rate plan: \"1000\" is not '<duration_ms> <rate>'",
            ),
            ("2\n1000 5\n-3 5", "line 2 of the rate plan"),
            ("1\n1000 -5", "line 1 of the rate plan"),
            ("1\n1000 nan", "line 1 of the rate plan"),
            ("1\n1000 1e9", "comes to 1000000000 messages a second"),
            ("1\n0 5", "lasts no time"),
            ("1\n99999999999999999 5", "more than 100 years"),
        ] {
            let error = RatePlan::parse_steps(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        for (text, words) in [
            ("1\n1000 x", "<slope>"),
            ("1\n1000 inf", "<slope>"),
            ("1\n1000000 1e6", "the most is 1e8"),
        ] {
            let error = RatePlan::parse_slopes(1.0, text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        assert!(RatePlan::constant(f64::NAN).is_err());
        assert!(RatePlan::constant(-1.0).is_err());
    }
}
