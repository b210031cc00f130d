//! When a destination that answers nothing is taken out of use, and how it comes back.
//!
//! A destination that got a datagram and answered nothing for the timeout becomes stale; at least one
//! always stays. After one more timeout it is probing: the next entry that needs a destination tries
//! it. An answer makes it active again, silence for a timeout stale again. One shard looks at all
//! destinations, four times in each timeout; no clock and no socket here.

use std::sync::Arc;

use ringmill_engine::Nanos;

use super::destination::{Destination, State};

/// Looks in one timeout.
pub(crate) const LOOKS_PER_TIMEOUT: Nanos = 4;

/// Looks at all destinations; gives those that changed with their new state.
pub(crate) fn look(
    destinations: &[Arc<Destination>],
    now: Nanos,
    timeout: Nanos,
) -> Vec<(Arc<Destination>, State)> {
    let mut changed = Vec::new();
    let listed = || destinations.iter().filter(|next| !next.is_removed());
    let mut active = listed()
        .filter(|next| next.state() == State::Active)
        .count();
    for destination in listed() {
        let state = destination.state();
        let since = destination.since(now);
        let elapsed = now.saturating_sub(since);
        let next = match state {
            State::Active => {
                let silent = destination
                    .unanswered_since(since)
                    .is_some_and(|owed| now.saturating_sub(owed) >= timeout);
                (silent && active > 1).then_some(State::Stale)
            }
            State::Stale => (elapsed >= timeout).then_some(State::Probing),
            State::Probing => None,
            // Its one entry may have sent nothing at all: then the next one is to try.
            State::Pending => (elapsed >= timeout).then_some(State::Stale),
        };
        if let Some(next) = next.filter(|next| destination.change(state, *next, now)) {
            active -= usize::from(state == State::Active);
            changed.push((Arc::clone(destination), next));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;
    const TIMEOUT: Nanos = 15 * SECOND;

    fn destinations(count: u16) -> Vec<Arc<Destination>> {
        (0..count)
            .map(|n| {
                let address = ([127, 0, 0, 1], 1000 + n).into();
                Arc::new(Destination::new(format!("d{n}"), address, 2))
            })
            .collect()
    }

    fn states(destinations: &[Arc<Destination>]) -> Vec<State> {
        destinations.iter().map(|next| next.state()).collect()
    }

    #[test]
    fn silence_makes_stale_then_probing_and_an_answer_revives() {
        let two = destinations(2);
        let look = |at: Nanos| look(&two, at * SECOND, TIMEOUT).len();
        assert_eq!(look(1), 0);
        two[0].traffic(0).forwarded(2 * SECOND, 1, 10);
        assert_eq!(look(16), 0, "14 s of silence");
        assert_eq!(look(17), 1);
        assert_eq!(states(&two), [State::Stale, State::Active]);
        assert!(!two[0].is_usable());
        assert_eq!(look(31), 0);
        assert_eq!(look(32), 1);
        assert_eq!(two[0].state(), State::Probing);
        assert!(two[0].change(State::Probing, State::Pending, 33 * SECOND));
        assert!(
            !two[0].change(State::Probing, State::Pending, 33 * SECOND),
            "one entry tries"
        );
        assert_eq!(look(48), 1, "no answer");
        assert_eq!(two[0].state(), State::Stale);
        assert_eq!(look(63), 1);
        assert!(two[0].change(State::Probing, State::Pending, 64 * SECOND));
        two[0].traffic(1).answered(65 * SECOND);
        assert!(two[0].change(State::Pending, State::Active, 65 * SECOND));
        assert_eq!(look(90), 0, "it owes nothing since it came back");
    }

    #[test]
    fn an_answer_to_any_shard_counts() {
        let two = destinations(2);
        look(&two, SECOND, TIMEOUT);
        two[0].traffic(0).forwarded(2 * SECOND, 1, 10);
        two[0].traffic(1).forwarded(9 * SECOND, 1, 10);
        two[0].traffic(1).answered(10 * SECOND);
        assert!(
            look(&two, 20 * SECOND, TIMEOUT).is_empty(),
            "answered at 10 s, nothing sent since"
        );
        two[0].traffic(0).forwarded(21 * SECOND, 1, 10);
        assert!(
            look(&two, 24 * SECOND, TIMEOUT).is_empty(),
            "silent since 10 s at the earliest"
        );
        assert_eq!(look(&two, 25 * SECOND, TIMEOUT).len(), 1);
    }

    #[test]
    fn the_last_one_stays() {
        let all = destinations(3);
        look(&all, SECOND, TIMEOUT);
        for destination in &all {
            destination.traffic(0).forwarded(2 * SECOND, 1, 1);
        }
        assert_eq!(look(&all, 60 * SECOND, TIMEOUT).len(), 2);
        assert_eq!(all[2].state(), State::Active);
        all[0].remove();
        all[1].reinstate();
        assert!(
            look(&all, 61 * SECOND, TIMEOUT)
                .iter()
                .all(|(next, _)| next.name == "d2")
        );
        assert_eq!(all[1].state(), State::Active);
    }
}
