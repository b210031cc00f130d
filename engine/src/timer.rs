//! The timer wheel of a shard: many coarse timers (retransmissions, idle sweeps, timeouts of
//! requests), most of which are cancelled before they fire.
//!
//! Insert and cancel take constant time; once the wheel has held its largest number of
//! timers, nothing allocates. It never reads the clock (the shard's loop hands the time
//! down, real or simulated) and never fires early.
//!
//! # How it works
//!
//! Time is cut into ticks of 2¹⁶ ns. Eight levels of 64 slots cover the 48 bits of a tick's
//! number, hence every `u64` deadline: there is no overflow to treat apart. A timer lies on
//! the level of the highest group of six bits in which its tick differs from the present
//! one, so all timers of a level are due before those of the next, a level never wraps, and
//! the next slot is found by counting zeros in two words. When the time reaches a slot, its
//! timers move down a level, at most seven times in the life of a timer. Those of the
//! present tick lie in a heap, which puts them in the exact order of their deadlines.
//!
//! # Granularity
//!
//! The tick decides only how timers are grouped, not when they fire: a timer fires in the
//! first call whose `now` has reached its deadline, to the nanosecond, in the order of
//! deadlines and, for equal ones, of insertion. What is late is the operating system's
//! wake-up (timer slack and scheduling, tens of microseconds).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::time::Nanos;

/// 2¹⁶ ns = 65.5 µs a tick: about what the kernel's wake-up is late anyway, so the timers
/// that one wake-up finds due share a tick or two, and few enough share one that its heap
/// stays small. And 48 bits remain for the tick's number, exactly eight levels.
const TICK_BITS: u32 = 16;
/// 64 slots a level: one machine word tells which are occupied.
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_MASK: u64 = SLOTS as u64 - 1;
/// As many levels as it takes for every `u64`; the first four span 18 minutes.
const LEVELS: usize = ((u64::BITS - TICK_BITS) / SLOT_BITS) as usize;
const _: () = assert!(TICK_BITS + SLOT_BITS * LEVELS as u32 == u64::BITS);

/// No entry: the end of a list. Also one more than the largest index of an entry.
const NONE: u32 = u32::MAX;
/// Cancelled timers may stay in the heap until they are as many as the live ones and this:
/// below that, clearing them out is not worth the walk.
const STALE_SLACK: usize = 64;

/// Names one timer, for [`TimerWheel::cancel`]. Never given out twice by one wheel, so that
/// the name of a timer that has fired cancels nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: u32,
    sequence: u64,
}

/// A timer that has fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired<T> {
    /// The name that [`TimerWheel::insert`] gave it; it is no longer valid.
    pub id: TimerId,
    /// When it was to fire; `now` less this is how late it is.
    pub deadline: Nanos,
    /// What was inserted.
    pub payload: T,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the list of free entries.
    Free,
    /// In the heap of the present tick.
    Due,
    /// In a slot's list.
    Slot { level: u8, slot: u8 },
}

#[derive(Debug)]
struct Entry<T> {
    deadline: Nanos,
    sequence: u64,
    payload: T,
    /// Neighbours in a slot's list; `next` also links the free entries.
    previous: u32,
    next: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    first: u32,
    /// No timer of the slot is due before this. Exact until the earliest is cancelled.
    earliest: Nanos,
}

const EMPTY: Slot = Slot {
    first: NONE,
    earliest: Nanos::MAX,
};

#[derive(Debug)]
struct Level {
    /// Bit n: slot n is not empty.
    occupied: u64,
    slots: [Slot; SLOTS],
}

/// A timer that is due in the present tick or before. Ordered as it will fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    deadline: Nanos,
    sequence: u64,
    index: u32,
}

/// See the [module's page](self). `T` is what comes back when a timer fires: a small value
/// such as (service, token).
#[derive(Debug)]
pub struct TimerWheel<T> {
    /// All timers up to this tick are in `due`, all later ones in `levels`.
    tick: u64,
    levels: Box<[Level; LEVELS]>,
    /// Bit n: level n has an occupied slot.
    occupied: u8,
    /// The first is never a cancelled one, others may be.
    due: BinaryHeap<Reverse<Due>>,
    /// How many in `due` are not cancelled.
    due_live: usize,
    entries: Vec<Entry<T>>,
    free: u32,
    live: usize,
    next_sequence: u64,
}

impl<T: Copy> TimerWheel<T> {
    /// An empty wheel at the time `now`.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self::with_capacity(now, 0)
    }

    /// An empty wheel that does not allocate until it holds more than `timers` timers.
    #[must_use]
    pub fn with_capacity(now: Nanos, timers: usize) -> Self {
        let empty = || Level {
            occupied: 0,
            slots: [EMPTY; SLOTS],
        };
        Self {
            tick: now >> TICK_BITS,
            levels: Box::new(std::array::from_fn(|_| empty())),
            occupied: 0,
            due: BinaryHeap::with_capacity(timers),
            due_live: 0,
            entries: Vec::with_capacity(timers),
            free: NONE,
            live: 0,
            next_sequence: 0,
        }
    }

    /// How many timers wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether no timer waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Sets a timer. A deadline that has passed is allowed: it fires in the next call.
    /// Constant time; logarithmic in the number of timers of the present tick for one that
    /// is due within it.
    ///
    /// # Panics
    /// At 2³² − 1 timers; whoever sets them has bounds far below that.
    pub fn insert(&mut self, deadline: Nanos, payload: T) -> TimerId {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let entry = Entry {
            deadline,
            sequence,
            payload,
            previous: NONE,
            next: NONE,
            place: Place::Free,
        };
        let index = if self.free == NONE {
            assert!(self.entries.len() < NONE as usize, "too many timers");
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        } else {
            let index = self.free;
            let freed = &mut self.entries[index as usize];
            self.free = freed.next;
            *freed = entry;
            index
        };
        self.live += 1;
        self.place(index);
        TimerId { index, sequence }
    }

    /// Takes a timer back. `false` if it has fired or was cancelled before. Constant time,
    /// amortised for a timer of the present tick.
    pub fn cancel(&mut self, id: TimerId) -> bool {
        let Some(entry) = self.entries.get(id.index as usize) else {
            return false;
        };
        if entry.sequence != id.sequence {
            return false;
        }
        match entry.place {
            Place::Free => return false,
            Place::Slot { level, slot } => {
                self.unlink(id.index, usize::from(level), usize::from(slot));
                self.release(id.index);
            }
            Place::Due => {
                self.release(id.index);
                self.due_live -= 1;
                self.drop_stale();
            }
        }
        true
    }

    /// When to call [`pop_expired`](Self::pop_expired) next, or `None` if no timer waits.
    /// Constant time. Never later than the earliest deadline, and exactly that unless the
    /// earliest timer of its slot has been cancelled; then it may be early by up to the
    /// width of the slot, which costs one idle wake-up, not one for each cancelled timer.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        if let Some(Reverse(due)) = self.due.peek() {
            return Some(due.deadline);
        }
        self.first_slot()
            .map(|(level, slot)| self.levels[level].slots[slot].earliest)
    }

    /// Takes the earliest timer whose deadline is `now` or before. To be called until it
    /// gives `None`; timers that are set in between count as well, so whoever answers a
    /// timer by another one that is due at once never comes to an end. A `now` before that
    /// of an earlier call fires nothing early.
    pub fn pop_expired(&mut self, now: Nanos) -> Option<Expired<T>> {
        let tick = now >> TICK_BITS;
        if tick > self.tick {
            self.advance(tick);
        }
        let first = self.due.peek()?.0;
        if first.deadline > now {
            return None;
        }
        self.due.pop();
        self.due_live -= 1;
        let expired = Expired {
            id: TimerId {
                index: first.index,
                sequence: first.sequence,
            },
            deadline: first.deadline,
            payload: self.entries[first.index as usize].payload,
        };
        self.release(first.index);
        self.drop_stale();
        Some(expired)
    }

    /// Hands every timer whose deadline is `now` or before to `fire`, earliest first, and
    /// says how many they were.
    pub fn expire(&mut self, now: Nanos, mut fire: impl FnMut(Expired<T>)) -> usize {
        let mut fired = 0;
        while let Some(expired) = self.pop_expired(now) {
            fire(expired);
            fired += 1;
        }
        fired
    }

    /// Puts an entry where its deadline belongs as seen from the present tick.
    fn place(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let deadline = entry.deadline;
        let tick = deadline >> TICK_BITS;
        if tick <= self.tick {
            entry.place = Place::Due;
            self.due_live += 1;
            self.due.push(Reverse(Due {
                deadline,
                sequence: entry.sequence,
                index,
            }));
            return;
        }
        let highest_difference = u64::BITS - 1 - (tick ^ self.tick).leading_zeros();
        let level = (highest_difference / SLOT_BITS) as usize;
        let slot = ((tick >> (SLOT_BITS * level as u32)) & SLOT_MASK) as usize;
        let head = &mut self.levels[level].slots[slot];
        entry.place = Place::Slot {
            level: level as u8,
            slot: slot as u8,
        };
        entry.previous = NONE;
        entry.next = head.first;
        let next = head.first;
        head.first = index;
        head.earliest = head.earliest.min(deadline);
        if next != NONE {
            self.entries[next as usize].previous = index;
        }
        self.levels[level].occupied |= 1 << slot;
        self.occupied |= 1 << level;
    }

    fn unlink(&mut self, index: u32, level: usize, slot: usize) {
        let Entry { previous, next, .. } = self.entries[index as usize];
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.levels[level].slots[slot].first = next;
            if next == NONE {
                self.clear_slot(level, slot);
            }
        }
    }

    fn clear_slot(&mut self, level: usize, slot: usize) {
        let words = &mut self.levels[level];
        words.slots[slot] = EMPTY;
        words.occupied &= !(1 << slot);
        if words.occupied == 0 {
            self.occupied &= !(1 << level);
        }
    }

    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.place = Place::Free;
        entry.next = self.free;
        self.free = index;
        self.live -= 1;
    }

    /// Keeps the first of the heap a live one, and the cancelled ones bounded.
    fn drop_stale(&mut self) {
        let entries = &self.entries;
        let is_live = |due: &Due| {
            let entry = &entries[due.index as usize];
            entry.place == Place::Due && entry.sequence == due.sequence
        };
        if self.due.len() > 2 * self.due_live + STALE_SLACK {
            self.due.retain(|Reverse(due)| is_live(due));
        }
        while self.due.peek().is_some_and(|Reverse(due)| !is_live(due)) {
            self.due.pop();
        }
    }

    /// The slot whose timers come first of all in the levels.
    fn first_slot(&self) -> Option<(usize, usize)> {
        if self.occupied == 0 {
            return None;
        }
        let level = self.occupied.trailing_zeros() as usize;
        let slot = self.levels[level].occupied.trailing_zeros() as usize;
        Some((level, slot))
    }

    /// Goes forward to `tick`: empties every slot on the way, in order, into lower ones or
    /// the heap. Slots with nothing in them cost nothing, however long the way.
    fn advance(&mut self, tick: u64) {
        while let Some((level, slot)) = self.first_slot() {
            let shift = SLOT_BITS * level as u32;
            // A slot shares with the present tick all bits above its level's group.
            let above = self.tick >> shift >> SLOT_BITS << SLOT_BITS;
            let start = (above | slot as u64) << shift;
            debug_assert!(start > self.tick, "a slot of the past is never occupied");
            if start > tick {
                break;
            }
            self.tick = start;
            let mut index = self.levels[level].slots[slot].first;
            self.clear_slot(level, slot);
            while index != NONE {
                let next = self.entries[index as usize].next;
                self.place(index);
                index = next;
            }
        }
        self.tick = tick;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const TICK: Nanos = 1 << TICK_BITS;
    const DAY: Nanos = 24 * 3600 * crate::time::NANOS_PER_SECOND;

    fn fired(wheel: &mut TimerWheel<u64>, now: Nanos) -> Vec<u64> {
        let mut payloads = Vec::new();
        wheel.expire(now, |expired| {
            assert!(expired.deadline <= now, "fired early");
            payloads.push(expired.payload);
        });
        payloads
    }

    #[test]
    fn fires_at_its_deadline_and_not_a_nanosecond_before() {
        for start in [0, 1, TICK - 1, 63 * TICK + 5, 10 * DAY + 12_345] {
            for delay in [
                0,
                1,
                TICK - 1,
                TICK,
                63 * TICK,
                64 * TICK,
                64 * TICK + 1,
                4096 * TICK - 1,
                DAY,
                53 * DAY,
                400 * 365 * DAY,
            ] {
                let case = format!("start {start}, delay {delay}");
                let mut wheel = TimerWheel::new(start);
                let deadline = start + delay;
                wheel.insert(deadline, 7);
                assert_eq!(wheel.next_deadline(), Some(deadline), "{case}");
                if delay > 0 {
                    assert!(fired(&mut wheel, deadline - 1).is_empty(), "{case}");
                    assert_eq!(wheel.next_deadline(), Some(deadline), "{case}");
                }
                assert_eq!(fired(&mut wheel, deadline), [7], "{case}");
                assert_eq!(wheel.next_deadline(), None, "{case}");
                assert!(wheel.is_empty(), "{case}");
            }
        }
    }

    #[test]
    fn the_ends_of_time_are_ordinary_deadlines() {
        let mut wheel = TimerWheel::new(0);
        wheel.insert(Nanos::MAX, 2);
        wheel.insert(0, 0);
        wheel.insert(Nanos::MAX - 1, 1);
        assert_eq!(fired(&mut wheel, Nanos::MAX - 1), [0, 1]);
        assert_eq!(wheel.next_deadline(), Some(Nanos::MAX));
        assert_eq!(fired(&mut wheel, Nanos::MAX), [2]);
        wheel.insert(5, 3);
        assert_eq!(fired(&mut wheel, Nanos::MAX), [3], "a deadline long past");
    }

    #[test]
    fn a_clock_that_steps_back_fires_nothing_early() {
        let mut wheel = TimerWheel::new(100 * TICK);
        wheel.insert(50 * TICK, 1);
        assert!(fired(&mut wheel, 49 * TICK).is_empty());
        assert_eq!(fired(&mut wheel, 50 * TICK), [1]);
    }

    #[test]
    fn equal_deadlines_fire_in_the_order_of_insertion() {
        for deadline in [0, 10 * TICK, 5_000 * TICK, DAY] {
            let mut wheel = TimerWheel::new(0);
            for number in 0..100 {
                wheel.insert(deadline, number);
            }
            assert_eq!(fired(&mut wheel, DAY), Vec::from_iter(0..100));
        }
    }

    #[test]
    fn a_name_is_good_for_one_timer_only() {
        for deadline in [0, 10 * TICK, DAY] {
            let mut wheel = TimerWheel::new(0);
            let first = wheel.insert(deadline, 1);
            assert!(wheel.cancel(first));
            assert!(!wheel.cancel(first), "cancelled already");
            let second = wheel.insert(deadline, 2);
            assert_eq!(second.index, first.index, "the entry is used again");
            assert!(!wheel.cancel(first), "the name is not");
            assert_eq!(fired(&mut wheel, deadline), [2]);
            assert!(!wheel.cancel(second), "fired already");
        }
    }

    #[test]
    fn handlers_may_set_and_cancel_while_it_fires() {
        let mut wheel = TimerWheel::new(0);
        let doomed = wheel.insert(30, 3);
        wheel.insert(10, 1);
        wheel.insert(20, 2);
        let mut order = Vec::new();
        while let Some(expired) = wheel.pop_expired(100) {
            order.push(expired.payload);
            if expired.payload == 1 {
                assert!(wheel.cancel(doomed));
                wheel.insert(15, 4);
                wheel.insert(101, 5);
            }
        }
        assert_eq!(order, [1, 4, 2]);
        assert_eq!(wheel.next_deadline(), Some(101));
    }

    /// The pattern of request timeouts: set, answered, cancelled, for ever.
    #[test]
    fn setting_and_cancelling_takes_no_memory_once_warm() {
        for delay in [0, 10, 1_000 * TICK] {
            let mut wheel = TimerWheel::with_capacity(0, 2 * STALE_SLACK);
            let heap = wheel.due.capacity();
            for number in 0..10_000 {
                let id = wheel.insert(delay, number);
                wheel.insert(delay, number);
                assert!(wheel.cancel(id));
                assert_eq!(wheel.expire(delay, |_| {}), 1);
            }
            // Also where nothing ever fires.
            wheel.insert(delay + 1, 0);
            for number in 0..10_000 {
                let id = wheel.insert(delay + 2, number);
                assert!(wheel.cancel(id));
            }
            assert_eq!((wheel.len(), wheel.entries.len()), (1, 2), "delay {delay}");
            assert_eq!(wheel.due.capacity(), heap, "delay {delay}");
        }
    }

    #[test]
    fn a_hundred_thousand_timers() {
        const TIMERS: u64 = 100_000;
        let start = 3 * DAY + 777;
        let mut random = SmallRng::seed_from_u64(1);
        let mut wheel = TimerWheel::new(start);
        let mut ids = Vec::new();
        for number in 0..TIMERS {
            // From a nanosecond to ten days, every order of magnitude alike.
            let deadline = start + 10_f64.powf(random.random_range(0.0..15.0)) as u64;
            ids.push((wheel.insert(deadline, number), deadline));
        }
        let mut kept = Vec::new();
        for (number, &(id, deadline)) in ids.iter().enumerate() {
            if number % 3 == 0 {
                assert!(wheel.cancel(id));
            } else {
                kept.push((deadline, number as u64));
            }
        }
        kept.sort_unstable();
        assert_eq!(wheel.len(), kept.len());

        // Sleep until the deadline that the wheel names, as a driver would.
        let mut order = Vec::new();
        let mut wake_ups = 0;
        while let Some(now) = wheel.next_deadline() {
            wake_ups += 1;
            wheel.expire(now, |expired| {
                assert_eq!(expired.deadline, now, "late");
                order.push((expired.deadline, expired.payload));
            });
        }
        assert_eq!(order, kept);
        let idle = wake_ups - kept.len().min(wake_ups);
        assert!(idle < LEVELS * SLOTS, "{idle} wake-ups found nothing due");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Nanos),
        Cancel(prop::sample::Index),
        Pass(Nanos),
        PassToNext,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Lengths of every order of magnitude, so that all levels are met.
        let length =
            || (0_u32..52, any::<u64>()).prop_map(|(bits, noise)| noise & ((1 << bits) - 1));
        let step = prop_oneof![
            4 => length().prop_map(Step::Insert),
            2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
            1 => length().prop_map(Step::Pass),
            2 => Just(Step::PassToNext),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// The oracle: an ordered map of (deadline, order of insertion).
        #[test]
        fn behaves_like_an_ordered_map(start in any::<u32>(), steps in steps()) {
            let mut now = u64::from(start);
            let mut wheel = TimerWheel::new(now);
            let mut oracle = BTreeMap::new();
            let mut ids = Vec::new();
            let mut cancelled = false;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(delay) => {
                        // Some in the past.
                        let deadline = (now + delay).saturating_sub(TICK);
                        ids.push((wheel.insert(deadline, number), (deadline, number)));
                        oracle.insert((deadline, number), ());
                    }
                    Step::Cancel(which) => {
                        if !ids.is_empty() {
                            let (id, key) = *which.get(&ids);
                            let waited = oracle.remove(&key).is_some();
                            cancelled |= waited;
                            prop_assert_eq!(wheel.cancel(id), waited);
                        }
                    }
                    Step::Pass(_) | Step::PassToNext => {
                        now = match step {
                            Step::Pass(length) => now + length,
                            _ => wheel.next_deadline().unwrap_or(now).max(now),
                        };
                        while let Some(expired) = wheel.pop_expired(now) {
                            let (&key, ()) = oracle.first_key_value().expect("fired twice");
                            prop_assert_eq!((expired.deadline, expired.payload), key);
                            prop_assert!(expired.deadline <= now, "fired early");
                            oracle.pop_first();
                        }
                        let next = oracle.first_key_value().map(|(&(deadline, _), ())| deadline);
                        prop_assert!(next.is_none_or(|next| next > now), "fired late");
                        let named = wheel.next_deadline();
                        prop_assert!(named.is_none_or(|named| named > now), "would spin");
                    }
                }
                prop_assert_eq!(wheel.len(), oracle.len());
                let exact = oracle.first_key_value().map(|(&(deadline, _), ())| deadline);
                let named = wheel.next_deadline();
                prop_assert_eq!(named.is_some(), exact.is_some());
                if cancelled {
                    prop_assert!(named <= exact, "{named:?} is later than {exact:?}");
                } else {
                    prop_assert_eq!(named, exact);
                }
            }
        }
    }
}
