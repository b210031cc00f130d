//! The queries in flight on one connection, by their 16-bit id: which answer belongs to which
//! query, exactly.
//!
//! Ids go up by one with each query, so those in flight are a window of numbers, and the place of
//! an answer's query in it is a subtraction. Answered, overdue and forgotten queries stay told
//! apart: a duplicate, a late and an unknown answer never pass for one another, nor for the answer
//! to a newer query with the same id, as long as the window holds ([`IN_FLIGHT_MAX`]).

use std::collections::VecDeque;

use ringmill_engine::Nanos;

/// Queries in flight on one connection, answered ones behind an open one included: half of the
/// ids, so that an answer to one that is overdue does not pass for one to a newer query at once.
pub const IN_FLIGHT_MAX: usize = 1 << 15;
/// A query that so many answers have overtaken is given up when its connection has no room: one
/// lost datagram must not stop a connection that sends thousands a second until it is overdue.
pub const OVERTAKEN_BY: usize = IN_FLIGHT_MAX / 2;

/// A query in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    /// When it was meant to leave.
    pub intended: Nanos,
    /// When it left.
    pub sent: Nanos,
}

/// Marks a query that was answered while an older one was not.
const ANSWERED: Nanos = Nanos::MAX;

/// What an id of an answer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A query that is in flight: its number.
    InFlight(u64),
    /// One that was answered before.
    Duplicate,
    /// One that was given up as lost; its number.
    Late(u64),
    /// None that was sent.
    Unknown,
}

/// See the [module's page](self).
#[derive(Debug, Default)]
pub struct Ids {
    /// Number of the first query ever.
    begin: u64,
    /// Number of the first query of the window.
    first: u64,
    window: VecDeque<Flight>,
    /// Numbers of queries that were given up, oldest first, as long as their id is not used again.
    lost: VecDeque<u64>,
    open: usize,
    /// Above the highest number that was answered.
    highest: u64,
}

impl Ids {
    /// None in flight; the first query will be number `begin`.
    #[must_use]
    pub fn new(begin: u64) -> Self {
        Self {
            begin,
            first: begin,
            highest: begin,
            ..Self::default()
        }
    }

    /// The number of the next query.
    #[inline]
    #[must_use]
    pub fn next(&self) -> u64 {
        self.first + self.window.len() as u64
    }

    /// Whether one more may be in flight.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.window.len() < IN_FLIGHT_MAX
    }

    /// Queries that wait for their answer.
    #[inline]
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// Notes a query as sent.
    #[inline]
    pub fn push(&mut self, flight: Flight) {
        let number = self.next();
        // Its id now stands for it alone.
        while self
            .lost
            .front()
            .is_some_and(|lost| lost + (1 << 16) <= number)
        {
            self.lost.pop_front();
        }
        self.window.push_back(flight);
        self.open += 1;
    }

    /// Takes back the newest queries: they were not sent after all.
    pub fn unpush(&mut self, count: usize) {
        self.window.truncate(self.window.len() - count);
        self.open -= count;
    }

    /// The newest queries, oldest of them first.
    pub fn newest(&self, count: usize) -> impl Iterator<Item = &Flight> {
        self.window.range(self.window.len() - count..)
    }

    /// When there is no room: gives up the oldest query if at least [`OVERTAKEN_BY`] newer ones
    /// have their answers. Its own is then told as late.
    #[inline]
    pub fn give_up_overtaken(&mut self) -> Option<Flight> {
        if self.has_room() || self.window.len() - self.open < OVERTAKEN_BY {
            return None;
        }
        self.give_up_oldest()
    }

    /// What an id stands for.
    #[inline]
    #[must_use]
    pub fn find(&self, id: u16) -> Found {
        // The newest number with this id that was used, or would be.
        let back = (self.next() as u16).wrapping_sub(1).wrapping_sub(id);
        let Some(number) = self.next().checked_sub(1 + u64::from(back)) else {
            return Found::Unknown;
        };
        if number < self.begin {
            return Found::Unknown;
        }
        if number >= self.first {
            let flight = self.window[(number - self.first) as usize];
            return if flight.sent == ANSWERED {
                Found::Duplicate
            } else {
                Found::InFlight(number)
            };
        }
        match self.lost.binary_search(&number) {
            Ok(_) => Found::Late(number),
            Err(_) => Found::Duplicate,
        }
    }

    /// A query that is in flight was answered. Also whether the answer overtook none: it belongs to
    /// a newer query than all answers before.
    ///
    /// # Panics
    /// When it is not in flight.
    #[inline]
    pub fn answered(&mut self, number: u64) -> (Flight, bool) {
        let at = (number - self.first) as usize;
        let flight = self.window[at];
        assert_ne!(flight.sent, ANSWERED, "an answered query is not in flight");
        self.open -= 1;
        if at == 0 {
            self.window.pop_front();
            self.first += 1;
            self.skip_answered();
        } else {
            self.window[at].sent = ANSWERED;
        }
        let in_order = number >= self.highest;
        self.highest = self.highest.max(number + 1);
        (flight, in_order)
    }

    /// The answer to a query that was given up has come: the next one is a duplicate.
    pub fn came_late(&mut self, number: u64) {
        if let Ok(at) = self.lost.binary_search(&number) {
            self.lost.remove(at);
        }
    }

    /// Gives up what was sent before `due` and tells it, oldest first.
    #[inline]
    pub fn expire(&mut self, due: Nanos, mut lost: impl FnMut(Flight)) {
        while self.window.front().is_some_and(|flight| flight.sent < due)
            && let Some(flight) = self.give_up_oldest()
        {
            lost(flight);
        }
        if self.window.is_empty() && self.window.capacity() > KEPT_CAPACITY {
            // A burst does not cost memory for ever.
            self.window.shrink_to(KEPT_CAPACITY);
        }
    }

    /// What is in flight and will not be answered any more.
    pub fn drain(&mut self) -> impl Iterator<Item = Flight> {
        self.first = self.next();
        self.open = 0;
        let window = std::mem::take(&mut self.window);
        window.into_iter().filter(|flight| flight.sent != ANSWERED)
    }

    /// The oldest is never an answered one.
    fn give_up_oldest(&mut self) -> Option<Flight> {
        let flight = self.window.pop_front()?;
        self.lost.push_back(self.first);
        self.first += 1;
        self.open -= 1;
        self.skip_answered();
        Some(flight)
    }

    #[inline]
    fn skip_answered(&mut self) {
        while self
            .window
            .front()
            .is_some_and(|flight| flight.sent == ANSWERED)
        {
            self.window.pop_front();
            self.first += 1;
        }
    }
}

/// Queries for which an idle connection keeps memory (16 bytes each).
const KEPT_CAPACITY: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flight(at: Nanos) -> Flight {
        Flight {
            intended: at,
            sent: at,
        }
    }

    /// Queries 0 to `count` - 1 sent at times 0 to `count` - 1 after `begin`.
    fn sent(begin: u64, count: u64) -> Ids {
        let mut ids = Ids::new(begin);
        for at in 0..count {
            ids.push(flight(at));
        }
        ids
    }

    #[test]
    fn answers_in_any_order_find_their_query() {
        for begin in [0, 5, 65_530, 1 << 40] {
            let mut ids = sent(begin, 10);
            for (offset, in_order) in [(3, true), (0, false), (9, true), (4, false), (1, false)] {
                let number = begin + offset;
                assert_eq!(ids.find(number as u16), Found::InFlight(number), "{offset}");
                assert_eq!(ids.answered(number), (flight(offset), in_order), "{offset}");
                assert_eq!(ids.find(number as u16), Found::Duplicate, "{offset} again");
            }
            assert_eq!(ids.open(), 5);
            assert_eq!(ids.next(), begin + 10);
        }
    }

    #[test]
    fn what_was_never_sent_is_unknown() {
        let ids = sent(5, 3);
        for (id, found) in [
            (4, Found::Unknown),
            (5, Found::InFlight(5)),
            (7, Found::InFlight(7)),
            (8, Found::Unknown),
            (65_535, Found::Unknown),
        ] {
            assert_eq!(ids.find(id), found, "{id}");
        }
        assert_eq!(Ids::new(0).find(0), Found::Unknown);
    }

    #[test]
    fn the_overdue_are_lost_and_their_answers_late_once() {
        let mut ids = sent(0, 10);
        ids.answered(2);
        let mut lost = Vec::new();
        ids.expire(5, |flight| lost.push(flight.sent));
        assert_eq!(lost, [0, 1, 3, 4]);
        assert_eq!(ids.open(), 5);
        assert_eq!(ids.find(2), Found::Duplicate);
        assert_eq!(ids.find(3), Found::Late(3));
        ids.came_late(3);
        assert_eq!(ids.find(3), Found::Duplicate);
        assert_eq!(ids.find(4), Found::Late(4));
        // A new query with the same id is the one that is meant from then on.
        for at in 10..65_540 {
            ids.push(flight(at));
            let number = ids.next() - 1;
            ids.answered(number);
        }
        assert_eq!(ids.find(3), Found::Duplicate);
        assert_eq!(ids.find(4), Found::Late(4));
        ids.push(flight(65_540));
        assert_eq!(ids.find(4), Found::InFlight(65_540));
    }

    #[test]
    fn the_window_is_bounded_and_what_was_not_sent_can_be_taken_back() {
        let mut ids = sent(0, IN_FLIGHT_MAX as u64 - 1);
        assert!(ids.has_room());
        ids.push(flight(0));
        assert!(!ids.has_room());
        ids.unpush(2);
        assert!(ids.has_room());
        assert_eq!(ids.open(), IN_FLIGHT_MAX - 2);
        assert_eq!(ids.find(IN_FLIGHT_MAX as u16 - 1), Found::Unknown);
        assert_eq!(
            ids.newest(2).map(|flight| flight.sent).collect::<Vec<_>>(),
            [IN_FLIGHT_MAX as u64 - 4, IN_FLIGHT_MAX as u64 - 3,]
        );
        ids.answered(1);
        assert_eq!(ids.drain().count(), IN_FLIGHT_MAX - 3);
        assert_eq!(ids.open(), 0);
    }

    #[test]
    fn a_query_that_thousands_of_answers_have_overtaken_makes_room() {
        let full = IN_FLIGHT_MAX as u64;
        for (answered, given_up) in [
            (0, None),
            (OVERTAKEN_BY as u64 - 1, None),
            (OVERTAKEN_BY as u64, Some(flight(0))),
            (full - 1, Some(flight(0))),
        ] {
            let mut ids = sent(0, full);
            for number in 1..=answered {
                ids.answered(number);
            }
            assert_eq!(ids.give_up_overtaken(), given_up, "{answered} answered");
            assert_eq!(ids.has_room(), given_up.is_some(), "{answered} answered");
            if given_up.is_some() {
                assert_eq!(ids.open(), (full - 1 - answered) as usize);
                assert_eq!(ids.find(0), Found::Late(0));
                assert_eq!(ids.next(), full);
            }
        }
        let mut room = sent(0, full - 1);
        for number in 1..full - 1 {
            room.answered(number);
        }
        assert_eq!(room.give_up_overtaken(), None, "there is room for one more");
    }

    proptest! {
        /// The oracle: a map from every number to its fate.
        #[test]
        fn every_answer_is_what_a_map_says(
            begin in prop_oneof![Just(0_u64), Just(65_500), 0..200_000_u64],
            steps in prop::collection::vec((0..4_u8, any::<u16>()), 1..400),
        ) {
            #[derive(Clone, Copy, PartialEq)]
            enum Fate { Open(Nanos), Answered, Lost }
            let mut ids = Ids::new(begin);
            let mut fates: Vec<Fate> = Vec::new();
            let mut now = 0;
            for (what, value) in steps {
                now += 1;
                match what {
                    0 | 1 => {
                        for _ in 0..value % 300 {
                            ids.push(flight(now));
                            fates.push(Fate::Open(now));
                        }
                    }
                    2 => {
                        let due = now.saturating_sub(u64::from(value % 20));
                        let mut told = 0;
                        ids.expire(due, |_| told += 1);
                        let mut expected = 0;
                        for fate in &mut fates {
                            if matches!(fate, Fate::Open(sent) if *sent < due) {
                                *fate = Fate::Lost;
                                expected += 1;
                            }
                        }
                        prop_assert_eq!(told, expected);
                    }
                    _ => {
                        // Near the newest, so that it is often one that exists.
                        let id = (ids.next() as u16).wrapping_sub(value % 400);
                        let candidates = (0..fates.len()).rev();
                        let found = candidates
                            .map(|at| (begin + at as u64, fates[at]))
                            .find(|(number, _)| *number as u16 == id);
                        let expected = match found {
                            None => Found::Unknown,
                            Some((number, Fate::Open(_))) => Found::InFlight(number),
                            Some((number, Fate::Lost)) => Found::Late(number),
                            Some((_, Fate::Answered)) => Found::Duplicate,
                        };
                        prop_assert_eq!(ids.find(id), expected);
                        match expected {
                            Found::InFlight(number) => { ids.answered(number); }
                            Found::Late(number) => ids.came_late(number),
                            _ => continue,
                        }
                        let (number, _) = found.expect("it exists");
                        fates[(number - begin) as usize] = Fate::Answered;
                    }
                }
                let open = fates.iter().filter(|fate| matches!(fate, Fate::Open(_))).count();
                prop_assert_eq!(ids.open(), open);
            }
        }
    }
}
