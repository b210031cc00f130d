//! The schedule of an open loop: when each message is meant to leave, what is due and waits for a
//! connection with room, and what of it was never sent.
//!
//! It must never let a late client pass for a punctual one: an intended time is kept until its
//! message leaves, and what is given up is counted.

use std::collections::VecDeque;

use ringmill_engine::Nanos;
use ringmill_engine::pacer::Pacer;

use super::shared::{Recorder, Unsent};
use super::{Arrivals, Config};

/// Messages that may wait for a connection with room on one shard. Past it the server (or the
/// client) is so far behind that the rest is counted as not sent.
const BACKLOG_MAX: usize = 1 << 20;

/// The schedule of one shard. A closed loop has an empty one.
pub(super) struct Schedule {
    pacer: Option<Pacer>,
    /// Intended times that are due and wait, oldest first.
    backlog: VecDeque<Nanos>,
    backlog_max: usize,
    /// Why the oldest of them could not leave when it was last tried.
    held_by: Unsent,
    /// Of the ticks that the pacer gave up, those that have been looked at.
    skipped: u64,
}

impl Schedule {
    /// Nothing is due, ever.
    pub(super) fn new() -> Self {
        Self {
            pacer: None,
            backlog: VecDeque::new(),
            backlog_max: BACKLOG_MAX,
            held_by: Unsent::NoConnection,
            skipped: 0,
        }
    }

    /// The schedule of a shard begins at `now`. Its part of the rate is that of the connections
    /// that it has `open`.
    pub(super) fn begin(
        &mut self,
        config: &Config,
        open: usize,
        shard: u16,
        shards: u16,
        now: Nanos,
    ) {
        let part = open as f64 / config.connections.max(1) as f64;
        self.pacer = match config.arrivals {
            Arrivals::Constant(rate) if rate * part > 0.0 => {
                // Shards start evenly spaced within one interval, not all at once.
                let offset = f64::from(shard) / f64::from(shards) * 1e9 / rate;
                Pacer::constant(rate * part, now + offset as Nanos).ok()
            }
            Arrivals::Poisson(rate) if rate * part > 0.0 => {
                Pacer::poisson(rate * part, now, config.seed ^ u64::from(shard)).ok()
            }
            _ => None,
        };
    }

    /// Moves what is due by `now` to the backlog. When to look again; never without a schedule.
    pub(super) fn advance(&mut self, now: Nanos, recorder: &mut Recorder) -> Option<Nanos> {
        let pacer = self.pacer.as_mut()?;
        let mut overflow = 0;
        while let Some(intended) = pacer.pop_due(now) {
            if self.backlog.len() < self.backlog_max {
                self.backlog.push_back(intended);
            } else {
                overflow += 1;
            }
        }
        recorder.unsent(self.held_by, overflow);
        recorder.unsent(Unsent::Late, pacer.ticks_skipped() - self.skipped);
        self.skipped = pacer.ticks_skipped();
        Some(pacer.next_intended())
    }

    /// When the message that has waited longest was meant to leave.
    #[inline]
    pub(super) fn oldest(&self) -> Option<Nanos> {
        self.backlog.front().copied()
    }

    /// The oldest message could not leave. It stays, and is counted under this cause if it never
    /// does.
    #[inline]
    pub(super) fn hold(&mut self, cause: Unsent) {
        self.held_by = cause;
    }

    /// The oldest message left at `now`.
    #[inline]
    pub(super) fn sent(&mut self, now: Nanos, recorder: &mut Recorder) {
        if let Some(intended) = self.backlog.pop_front() {
            recorder.late_by(now.saturating_sub(intended));
        }
    }

    /// Nothing more is to be sent. What waits is counted as not sent, for what held it last.
    pub(super) fn end(&mut self, recorder: &mut Recorder) {
        recorder.unsent(self.held_by, self.backlog.len() as u64);
        self.drop_rest();
    }

    /// Nothing more is wanted: what waits is no loss.
    pub(super) fn drop_rest(&mut self) {
        self.pacer = None;
        self.backlog = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use ringmill_engine::Address;
    use ringmill_engine::pacer::CATCH_UP_TICKS_MAX_DEFAULT;

    use super::super::shared::Shared;
    use super::*;

    const SECOND: Nanos = 1_000_000_000;
    const START: Nanos = 5 * SECOND;

    fn config(arrivals: Arrivals) -> Config {
        Config {
            target: Address::Ip(SocketAddr::from(([127, 0, 0, 1], 7))),
            connections: 4,
            message_len: 1,
            depth: 1,
            arrivals,
            verify: true,
            sources: Vec::new(),
            datagram_timeout: 1,
            messages: None,
            seed: 1,
            reset_on_close: false,
        }
    }

    fn begun(arrivals: Arrivals, open: usize, shard: u16) -> (Schedule, Recorder) {
        let mut schedule = Schedule::new();
        schedule.begin(&config(arrivals), open, shard, 2, START);
        let mut recorder = Recorder::new(Shared::new(), false);
        recorder.begin_measuring(START);
        (schedule, recorder)
    }

    fn take_all(schedule: &mut Schedule, now: Nanos, recorder: &mut Recorder) -> Vec<Nanos> {
        std::iter::from_fn(|| {
            let intended = schedule.oldest()?;
            schedule.sent(now, recorder);
            Some(intended)
        })
        .collect()
    }

    #[test]
    fn a_shard_has_the_part_of_the_rate_that_its_connections_are() {
        for (arrivals, open, shard, due) in [
            (Arrivals::Constant(100.0), 2, 0, 50),
            (Arrivals::Constant(100.0), 4, 1, 100),
            (Arrivals::Constant(100.0), 1, 1, 25),
            (Arrivals::Constant(100.0), 0, 0, 0),
            (Arrivals::Closed, 4, 0, 0),
            (Arrivals::Idle, 4, 0, 0),
        ] {
            let (mut schedule, mut recorder) = begun(arrivals, open, shard);
            let next = schedule.advance(START + SECOND - 1, &mut recorder);
            assert_eq!(next.is_some(), due > 0, "{arrivals:?}");
            let taken = take_all(&mut schedule, START + SECOND, &mut recorder);
            assert_eq!(taken.len(), due, "{arrivals:?} with {open} open");
        }
        let first = |shard| {
            let (mut schedule, mut recorder) = begun(Arrivals::Constant(100.0), 2, shard);
            schedule.advance(START + SECOND, &mut recorder);
            schedule.oldest()
        };
        assert_eq!(first(0), Some(START));
        assert_eq!(
            first(1),
            Some(START + SECOND / 200),
            "half an interval later"
        );
    }

    #[test]
    fn what_waits_keeps_its_time() {
        let (mut schedule, mut recorder) = begun(Arrivals::Constant(10.0), 4, 0);
        let now = START + SECOND / 4;
        let next = schedule.advance(now, &mut recorder);
        assert_eq!(next, Some(START + 3 * SECOND / 10));
        assert_eq!(schedule.oldest(), Some(START));
        let taken = take_all(&mut schedule, now, &mut recorder);
        assert_eq!(taken, [0, 1, 2].map(|tick| START + tick * SECOND / 10));
        assert_eq!(recorder.tally.lateness_max_ns, SECOND / 4);
        assert_eq!(recorder.tally.unsent, 0);
    }

    #[test]
    fn what_is_never_sent_is_counted_in_the_measured_time_only() {
        for measuring in [true, false] {
            let (mut schedule, mut recorder) = begun(Arrivals::Constant(10.0), 4, 0);
            recorder.measuring = measuring;
            schedule.backlog_max = 2;
            schedule.hold(Unsent::NoRoom);
            schedule.advance(START + SECOND - 1, &mut recorder);
            assert_eq!(recorder.tally.unsent, 8 * u64::from(measuring), "no room");
            schedule.hold(Unsent::QueueFull);
            schedule.end(&mut recorder);
            assert_eq!(recorder.tally.unsent, 10 * u64::from(measuring), "the end");
            let by = [(Unsent::NoRoom, 8), (Unsent::QueueFull, 2)];
            let expected = by.into_iter().filter(|_| measuring).collect();
            assert_eq!(recorder.tally.unsent_by, expected);
            assert_eq!(schedule.oldest(), None);
            assert_eq!(schedule.advance(START + 2 * SECOND, &mut recorder), None);
        }
        // A client that wakes up too late.
        let (mut schedule, mut recorder) = begun(Arrivals::Constant(1e5), 4, 0);
        schedule.advance(START + SECOND - 1, &mut recorder);
        let caught_up = u64::from(CATCH_UP_TICKS_MAX_DEFAULT);
        assert_eq!(recorder.tally.unsent, 100_000 - caught_up);
        schedule.drop_rest();
        assert_eq!(recorder.tally.unsent, 100_000 - caught_up, "not wanted");
        let expected = [(Unsent::Late, 100_000 - caught_up)].into();
        assert_eq!(recorder.tally.unsent_by, expected);
    }
}
