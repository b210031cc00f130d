//! Sequence numbers of load PDUs: lost, late or twice (RFC 9097 sections 6.4 and 8.1; the
//! history of 32 as in OB-UDPST).
//!
//! A number is a duplicate only while it is among the last 32 that were accepted: an older one counts
//! as late. What was counted is returned, not kept, as trials and sub-intervals count apart. Only
//! the sums of the whole test are kept here. Numbers do not wrap: no row of the original's table comes
//! to 2^32 datagrams within the longest test, an hour. The last rows of our extension can, after some
//! 36 minutes; what comes after the last number counts as late or as a duplicate.

/// Accepted numbers that are remembered to recognise duplicates.
pub const HISTORY: usize = 32;

/// What one number meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// Newer than all before; so many numbers between were skipped.
    Newest {
        /// Numbers not seen so far.
        lost: u32,
    },
    /// Late: one that was counted as lost.
    OutOfOrder,
    /// Seen before.
    Duplicate,
}

/// Counts of sequence errors over some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SequenceErrors {
    /// Lost so far; a late one takes one off again.
    pub loss: u32,
    /// Late.
    pub out_of_order: u32,
    /// Came again.
    pub duplicates: u32,
}

impl SequenceErrors {
    /// Counts an arrival. A late one whose loss was counted at another time is not taken off here.
    #[inline]
    pub fn count(&mut self, arrival: Arrival) {
        self.count_loss(arrival);
        match arrival {
            Arrival::Newest { .. } => {}
            Arrival::OutOfOrder => self.out_of_order = self.out_of_order.saturating_add(1),
            Arrival::Duplicate => self.duplicates = self.duplicates.saturating_add(1),
        }
    }

    /// The same, but for the loss alone.
    #[inline]
    pub fn count_loss(&mut self, arrival: Arrival) {
        match arrival {
            // The numbers are the peer's: it can claim to have sent 2^32 more than once.
            Arrival::Newest { lost } => self.loss = self.loss.saturating_add(lost),
            Arrival::OutOfOrder => self.loss = self.loss.saturating_sub(1),
            Arrival::Duplicate => {}
        }
    }
}

/// What has arrived on one connection.
#[derive(Debug, Clone)]
pub struct Sequence {
    last: u32,
    /// The numbers accepted last, the oldest at `oldest`. Zeros at first, so that 0 is a duplicate.
    history: [u32; HISTORY],
    oldest: usize,
    totals: SequenceErrors,
}

impl Default for Sequence {
    fn default() -> Self {
        Self::new()
    }
}

impl Sequence {
    /// Before the first.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            last: 0,
            history: [0; HISTORY],
            oldest: 0,
            totals: SequenceErrors {
                loss: 0,
                out_of_order: 0,
                duplicates: 0,
            },
        }
    }

    /// The highest number so far, 0 before the first.
    #[inline]
    #[must_use]
    pub const fn last(&self) -> u32 {
        self.last
    }

    /// Sequence errors of the whole test.
    #[must_use]
    pub const fn totals(&self) -> SequenceErrors {
        self.totals
    }

    /// Takes the next number that arrived.
    #[inline]
    pub fn arrived(&mut self, number: u32) -> Arrival {
        if number > self.last {
            let lost = number - self.last - 1;
            self.last = number;
            self.accept(number);
            self.totals.loss = self.totals.loss.saturating_add(lost);
            return Arrival::Newest { lost };
        }
        let arrival = if self.history.contains(&number) {
            Arrival::Duplicate
        } else {
            self.accept(number);
            Arrival::OutOfOrder
        };
        self.totals.count(arrival);
        arrival
    }

    /// Takes `count` numbers that follow the last one without a gap.
    #[inline]
    pub fn arrived_in_order(&mut self, count: u32) {
        let end = self.last.saturating_add(count);
        // Only the last 32 can be remembered.
        let mut number = self.last.max(end.saturating_sub(HISTORY as u32));
        while number < end {
            number += 1;
            self.accept(number);
        }
        self.last = end;
    }

    #[inline]
    fn accept(&mut self, number: u32) {
        self.history[self.oldest] = number;
        self.oldest = (self.oldest + 1) % HISTORY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rules word for word, slow and plain.
    #[derive(Default)]
    struct Naive {
        last: u32,
        accepted: Vec<u32>,
    }

    impl Naive {
        fn arrived(&mut self, number: u32) -> Arrival {
            // The history begins as 32 zeros.
            let from = self.accepted.len().saturating_sub(32);
            let known =
                self.accepted[from..].contains(&number) || number == 0 && self.accepted.len() < 32;
            if number <= self.last && known {
                return Arrival::Duplicate;
            }
            self.accepted.push(number);
            if number <= self.last {
                return Arrival::OutOfOrder;
            }
            let lost = number - self.last - 1;
            self.last = number;
            Arrival::Newest { lost }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_model(
            numbers in prop::collection::vec(
                prop_oneof![8 => 0_u32..120, 1 => any::<u32>(), 1 => u32::MAX - 3..=u32::MAX],
                0..400,
            ),
        ) {
            let (mut sequence, mut naive) = (Sequence::new(), Naive::default());
            let mut errors = SequenceErrors::default();
            for number in numbers {
                let arrival = sequence.arrived(number);
                prop_assert_eq!(arrival, naive.arrived(number));
                prop_assert_eq!(sequence.last(), naive.last);
                errors.count(arrival);
            }
            prop_assert_eq!(sequence.totals(), errors);
        }

        /// Runs in order, with jumps, repeats and steps back between them.
        #[test]
        fn many_at_once_are_as_many_one_by_one(
            runs in prop::collection::vec((0_u32..80, -40_i64..40), 0..40),
        ) {
            let (mut one_by_one, mut at_once) = (Sequence::new(), Sequence::new());
            for (run, jump) in runs {
                for _ in 0..run {
                    one_by_one.arrived(one_by_one.last() + 1);
                }
                at_once.arrived_in_order(run);
                let number = (i64::from(at_once.last()) + jump).max(0) as u32;
                prop_assert_eq!(one_by_one.arrived(number), at_once.arrived(number));
                prop_assert_eq!(one_by_one.last(), at_once.last());
                prop_assert_eq!(one_by_one.totals(), at_once.totals());
            }
        }

        /// Each number once, none displaced by more than the history: nothing is lost in the end.
        #[test]
        fn shuffled_arrivals_lose_nothing(seed in prop::collection::vec(0_usize..16, 1..300)) {
            let mut numbers: Vec<u32> = (1..=seed.len() as u32).collect();
            for (at, by) in seed.iter().enumerate() {
                let other = (at + by).min(numbers.len() - 1);
                numbers.swap(at, other);
            }
            let mut sequence = Sequence::new();
            let mut newest = 0;
            for number in &numbers {
                if let Arrival::Newest { .. } = sequence.arrived(*number) {
                    newest += 1;
                }
            }
            let totals = sequence.totals();
            prop_assert_eq!(totals.loss, 0);
            prop_assert_eq!(totals.duplicates, 0);
            prop_assert_eq!(totals.out_of_order + newest, numbers.len() as u32);
        }
    }

    #[test]
    fn the_end_of_the_numbers_is_no_panic() {
        let mut sequence = Sequence::new();
        sequence.arrived(u32::MAX - 1);
        sequence.arrived_in_order(5);
        assert_eq!(sequence.last(), u32::MAX);
        assert_eq!(sequence.arrived(u32::MAX), Arrival::Duplicate);
        assert_eq!(sequence.arrived(u32::MAX - 9), Arrival::OutOfOrder);
    }
}
