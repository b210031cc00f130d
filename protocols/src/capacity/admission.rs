//! Bandwidth admission: what a server has promised in each direction, against what it has.
//!
//! One budget is shared by all shards through atomics; a listener may have its own below the total
//! of the server. A booking gives back exactly what was booked, in the direction in which it was
//! booked, whatever the test did since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::parameters::Direction;

/// Bandwidth that can be booked. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// Every budget that a booking must fit into.
    budgets: Arc<[Arc<Budget>]>,
}

#[derive(Debug)]
struct Budget {
    /// In each direction, in Mbit/s.
    limit_mbps: u32,
    upstream_mbps: AtomicU32,
    downstream_mbps: AtomicU32,
}

impl Budget {
    fn booked(&self, direction: Direction) -> &AtomicU32 {
        match direction {
            Direction::Upstream => &self.upstream_mbps,
            Direction::Downstream => &self.downstream_mbps,
        }
    }

    fn take(&self, direction: Direction, mbps: u32) -> bool {
        let fits = |booked: u32| {
            let sum = booked.checked_add(mbps)?;
            (sum <= self.limit_mbps).then_some(sum)
        };
        // Nothing else is published by the sums, so no order is needed between them and the rest.
        self.booked(direction)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }

    fn give_back(&self, direction: Direction, mbps: u32) {
        let before = self.booked(direction).fetch_sub(mbps, Ordering::Relaxed);
        assert!(before >= mbps, "gave back {mbps} of {before} Mbit/s booked");
    }
}

impl Admission {
    /// No limit: everything fits, and nothing need be asked for.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// A limit in each direction, in Mbit/s. 0 stands for none, as in the options.
    #[must_use]
    pub fn limited(limit_mbps: u32) -> Self {
        Self::unlimited().within(limit_mbps)
    }

    /// A limit below this one, as of a listener: what is booked there counts in both.
    #[must_use]
    pub fn within(&self, limit_mbps: u32) -> Self {
        if limit_mbps == 0 {
            return self.clone();
        }
        let own = Arc::new(Budget {
            limit_mbps,
            upstream_mbps: AtomicU32::new(0),
            downstream_mbps: AtomicU32::new(0),
        });
        let budgets = self.budgets.iter().cloned().chain([own]);
        Self {
            budgets: budgets.collect(),
        }
    }

    /// Whether there is a limit, so that a test must say what it needs.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        !self.budgets.is_empty()
    }

    /// What is booked in a direction, in Mbit/s, in the innermost budget.
    #[must_use]
    pub fn booked_mbps(&self, direction: Direction) -> u32 {
        let innermost = self.budgets.last();
        innermost.map_or(0, |budget| budget.booked(direction).load(Ordering::Relaxed))
    }

    /// Books bandwidth until the booking is dropped; `None` when it does not fit.
    #[must_use]
    pub fn book(&self, direction: Direction, mbps: u16) -> Option<Booking> {
        let mbps = u32::from(mbps);
        for (index, budget) in self.budgets.iter().enumerate() {
            if !budget.take(direction, mbps) {
                for taken in &self.budgets[..index] {
                    taken.give_back(direction, mbps);
                }
                return None;
            }
        }
        Some(Booking {
            budgets: self.budgets.clone(),
            direction,
            mbps,
        })
    }
}

/// Booked bandwidth. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "what is dropped is no longer booked"]
pub struct Booking {
    budgets: Arc<[Arc<Budget>]>,
    direction: Direction,
    mbps: u32,
}

impl Booking {
    /// The direction in which it was booked.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// How much, in Mbit/s.
    #[must_use]
    pub fn mbps(&self) -> u32 {
        self.mbps
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        for budget in &*self.budgets {
            budget.give_back(self.direction, self.mbps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Downstream, Upstream};

    #[test]
    fn directions_have_budgets_of_their_own() {
        let admission = Admission::limited(1000);
        let down = admission.book(Downstream, 400).expect("fits");
        assert!(admission.book(Downstream, 601).is_none());
        let up = admission.book(Upstream, 700).expect("the other direction");
        let full = admission.book(Downstream, 600).expect("exactly full");
        assert!(admission.book(Downstream, 1).is_none());
        assert_eq!((down.direction(), down.mbps()), (Downstream, 400));
        drop(down);
        assert_eq!(admission.booked_mbps(Downstream), 600);
        drop((up, full));
        assert_eq!(admission.booked_mbps(Downstream), 0);
        assert_eq!(admission.booked_mbps(Upstream), 0);
    }

    #[test]
    fn a_listener_is_bound_by_its_own_limit_and_by_the_total() {
        let total = Admission::limited(1000);
        let (one, two) = (total.within(800), total.within(800));
        let booking = one.book(Upstream, 700).expect("fits in both");
        assert!(one.book(Upstream, 200).is_none(), "over its own");
        assert!(two.book(Upstream, 400).is_none(), "over the total");
        assert_eq!(two.booked_mbps(Upstream), 0, "and nothing is left behind");
        assert_eq!(total.booked_mbps(Upstream), 700, "nor in the total");
        drop(booking);
        assert!(two.book(Upstream, 800).is_some());
    }

    #[test]
    fn without_a_limit_everything_fits() {
        for admission in [Admission::unlimited(), Admission::limited(0)] {
            assert!(!admission.is_limited());
            let bookings: Vec<_> = (0..1000)
                .map(|_| admission.book(Downstream, u16::MAX))
                .collect();
            assert!(bookings.iter().all(Option::is_some));
        }
    }

    #[test]
    fn threads_never_book_more_than_there_is() {
        let admission = Admission::limited(100);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let booking = admission.book(Upstream, 30);
                        assert!(admission.booked_mbps(Upstream) <= 100);
                        drop(booking);
                    }
                });
            }
        });
        assert_eq!(admission.booked_mbps(Upstream), 0);
    }
}
