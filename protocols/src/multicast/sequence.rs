//! What became of numbered messages: received, lost, duplicated, reordered, each known exactly.
//!
//! One [`Sequence`] follows one source at one receiver. What is counted lies between the first
//! number that was received since counting began and the highest one, so that at any moment
//! `expected = received + lost`. A bitmap of the last [`WINDOW`] numbers tells an old message from a
//! repeated one.

/// How far behind the highest number a message may come and still be told from a repeated one.
/// 65,536 numbers are 8 KiB for each receiver that needs them.
pub const WINDOW: u64 = 65_536;

/// How far ahead of the highest number a message may be: what a sender of ten million messages a
/// second sends in a day. Who wants more is no sender of ours (anyone may send to a group), and one
/// such datagram must not make the counts useless.
pub const AHEAD_MAX: u64 = 1 << 40;

const WORD_BITS: u64 = u64::BITS as u64;
const WORDS: usize = (WINDOW / WORD_BITS) as usize;

/// Counts of one receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Different messages.
    pub received: u64,
    /// Numbers that were passed over and have not come (yet).
    pub lost: u64,
    /// Messages that had come before.
    pub duplicated: u64,
    /// Messages that came after one with a higher number.
    pub reordered: u64,
    /// Messages so old that nobody knows whether they had come; counted nowhere else.
    pub stale: u64,
}

/// What one message was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// New.
    Fresh,
    /// It had come before.
    Duplicate,
    /// Older than what is counted, or than what is known.
    Ignored,
    /// Further ahead than [`AHEAD_MAX`]: no message of this sequence.
    Foreign,
}

/// See the [module's page](self).
#[derive(Debug, Clone)]
pub struct Sequence {
    counts: Counts,
    /// The first number that counts; none before the first message.
    from: Option<u64>,
    /// One past the highest number received.
    next: u64,
    /// Which of the last numbers have come. Allocated when a message is missing for the first time:
    /// an ordered sequence needs none. Bits of numbers in order are all set until then.
    seen: Option<Box<[u64; WORDS]>>,
    /// The first number of all that was received.
    first: u64,
}

impl Sequence {
    /// Nothing was received.
    #[must_use]
    pub fn new() -> Self {
        Self {
            counts: Counts::default(),
            from: None,
            next: 0,
            seen: None,
            first: 0,
        }
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Counts from here on: what was sent before the highest message so far is not looked at again.
    pub fn restart(&mut self) {
        self.counts = Counts::default();
        if self.from.is_some() {
            self.from = Some(self.next);
        }
    }

    /// Notes a message.
    #[inline]
    pub fn note(&mut self, number: u64) -> Arrival {
        if number == self.next && self.from.is_some() {
            if let Some(seen) = &mut self.seen {
                set(seen, number, true);
            }
            self.next = number.saturating_add(1);
            self.counts.received += 1;
            return Arrival::Fresh;
        }
        self.note_other(number)
    }

    #[cold]
    fn note_other(&mut self, number: u64) -> Arrival {
        let Some(from) = self.from else {
            self.from = Some(number);
            self.first = number;
            self.next = number.saturating_add(1);
            self.counts.received = 1;
            return Arrival::Fresh;
        };
        if number >= self.next {
            let missing = number - self.next;
            if missing > AHEAD_MAX {
                return Arrival::Foreign;
            }
            let (next, first) = (self.next, self.first);
            let seen = self.seen.get_or_insert_with(|| all_since(first, next));
            for number in self.next.max(number.saturating_sub(WINDOW))..number {
                set(seen, number, false);
            }
            set(seen, number, true);
            self.next = number.saturating_add(1);
            self.counts.lost += missing;
            self.counts.received += 1;
            return Arrival::Fresh;
        }
        if number < from {
            // Sent before what is counted.
            return Arrival::Ignored;
        }
        if self.next - number > WINDOW {
            self.counts.stale += 1;
            return Arrival::Ignored;
        }
        let had_come = self.seen.as_ref().is_none_or(|seen| get(seen, number));
        if had_come {
            self.counts.duplicated += 1;
            return Arrival::Duplicate;
        }
        if let Some(seen) = &mut self.seen {
            set(seen, number, true);
        }
        self.counts.lost -= 1;
        self.counts.received += 1;
        self.counts.reordered += 1;
        Arrival::Fresh
    }
}

impl Default for Sequence {
    fn default() -> Self {
        Self::new()
    }
}

fn place(number: u64) -> (usize, u64) {
    let bit = number % WINDOW;
    ((bit / WORD_BITS) as usize, 1 << (bit % WORD_BITS))
}

fn set(seen: &mut [u64; WORDS], number: u64, came: bool) {
    let (word, bit) = place(number);
    if came {
        seen[word] |= bit;
    } else {
        seen[word] &= !bit;
    }
}

fn get(seen: &[u64; WORDS], number: u64) -> bool {
    let (word, bit) = place(number);
    seen[word] & bit != 0
}

/// All numbers from `first` up to `next` have come.
fn all_since(first: u64, next: u64) -> Box<[u64; WORDS]> {
    let mut seen = Box::new([0; WORDS]);
    for number in first.max(next.saturating_sub(WINDOW))..next {
        set(&mut seen, number, true);
    }
    seen
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn counts(numbers: &[u64]) -> [u64; 5] {
        let mut sequence = Sequence::new();
        for number in numbers {
            sequence.note(*number);
        }
        let counts = sequence.counts();
        [
            counts.received,
            counts.lost,
            counts.duplicated,
            counts.reordered,
            counts.stale,
        ]
    }

    #[test]
    fn what_became_of_each() {
        // (numbers as they came, [received, lost, duplicated, reordered, stale])
        for (numbers, expected) in [
            (&[][..], [0; 5]),
            (&[5], [1, 0, 0, 0, 0]),
            (&[5, 6, 7], [3, 0, 0, 0, 0]),
            (&[0, 1, 4], [3, 2, 0, 0, 0]),
            (&[0, 2, 1], [3, 0, 0, 1, 0]),
            (&[0, 2, 2, 1, 1], [3, 0, 2, 1, 0]),
            (&[0, 1, 1], [2, 0, 1, 0, 0]),
            // Sent before the first that came: not counted.
            (&[5, 4, 6], [2, 0, 0, 0, 0]),
            (&[0, WINDOW, 1], [3, WINDOW - 2, 0, 1, 0]),
            (&[0, WINDOW + 1, 1], [2, WINDOW, 0, 0, 1]),
            (
                &[0, 10 * WINDOW, 10 * WINDOW - 1],
                [3, 10 * WINDOW - 2, 0, 1, 0],
            ),
            (&[u64::MAX - 1, u64::MAX], [2, 0, 0, 0, 0]),
        ] {
            let got = counts(numbers);
            assert_eq!(got, expected, "{numbers:?}");
        }
    }

    #[test]
    fn a_restart_counts_from_the_next_on() {
        let mut sequence = Sequence::new();
        for number in [0, 1, 3] {
            sequence.note(number);
        }
        sequence.restart();
        // 2 was missed before; 5 is missed now.
        for (number, arrival) in [
            (2, Arrival::Ignored),
            (4, Arrival::Fresh),
            (6, Arrival::Fresh),
            (6, Arrival::Duplicate),
        ] {
            assert_eq!(sequence.note(number), arrival, "{number}");
        }
        let expected = Counts {
            received: 2,
            lost: 1,
            duplicated: 1,
            ..Counts::default()
        };
        assert_eq!(sequence.counts(), expected);
    }

    /// One forged datagram must not take the counts with it.
    #[test]
    fn what_is_too_far_ahead_is_not_of_this_sequence() {
        let mut sequence = Sequence::new();
        for (number, arrival) in [
            (0, Arrival::Fresh),
            (u64::MAX, Arrival::Foreign),
            (2 + AHEAD_MAX, Arrival::Foreign),
            (1, Arrival::Fresh),
            (2 + AHEAD_MAX, Arrival::Fresh),
        ] {
            assert_eq!(sequence.note(number), arrival, "{number}");
        }
        let counts = sequence.counts();
        assert_eq!((counts.received, counts.lost), (3, AHEAD_MAX));
    }

    proptest! {
        /// The oracle: a set of everything that came.
        #[test]
        fn counts_are_those_of_a_set(
            steps in prop::collection::vec((0_u64..20, any::<bool>()), 1..400),
        ) {
            let mut sequence = Sequence::new();
            let mut seen = HashSet::new();
            let (mut duplicated, mut highest) = (0, 100);
            sequence.note(100);
            seen.insert(100);
            for (step, forward) in steps {
                let number = if forward { highest + step } else { highest.saturating_sub(step) };
                sequence.note(number);
                if number >= 100 && !seen.insert(number) {
                    duplicated += 1;
                }
                highest = highest.max(number);
            }
            let counts = sequence.counts();
            prop_assert_eq!(counts.received, seen.len() as u64);
            prop_assert_eq!(counts.duplicated, duplicated);
            prop_assert_eq!(counts.received + counts.lost, highest - 99);
        }
    }
}
