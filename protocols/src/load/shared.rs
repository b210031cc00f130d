//! What a shard of a load run publishes, and where the control thread reads it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;
use ringmill_engine::Nanos;

/// The longest latency that is told apart, ns: two minutes.
const LATENCY_MAX_NS: u64 = 120_000_000_000;
/// Significant digits of the histograms.
const DIGITS: u8 = 3;

/// How far a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Connections are being opened.
    Connecting,
    /// All that can be opened are open.
    Ready,
    /// Messages flow.
    Running,
    /// Nothing more is sent; answers are awaited.
    Ending,
    /// The shard has published its last figures.
    Done,
}

/// Why a message that was due was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unsent {
    /// The client came to its schedule so late that it gave the oldest up.
    Late,
    /// Every connection had as many messages outstanding as it may have.
    NoRoom,
    /// The send queue of a connection that had room was full.
    QueueFull,
    /// No connection was open.
    NoConnection,
}

impl Unsent {
    /// What was measured, for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Late => "the client came too late to its schedule",
            Self::NoRoom => "every connection had its whole depth outstanding",
            Self::QueueFull => "a send queue was full",
            Self::NoConnection => "no connection was open",
        }
    }

    /// Whether it is the client that was too slow, whatever the server did.
    #[must_use]
    pub fn is_of_client(self) -> bool {
        matches!(self, Self::Late | Self::QueueFull)
    }
}

/// Counts that a shard has made in the measured time (connections: from the beginning).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections opened.
    pub opened: u64,
    /// Connects that failed.
    pub open_failed: u64,
    /// Connections that ended before the run did.
    pub closed_early: u64,
    /// Messages (or datagrams) sent.
    pub sent: u64,
    /// Messages answered.
    pub answered: u64,
    /// Bytes of answers.
    pub bytes: u64,
    /// Bytes that were not those that were sent.
    pub wrong_bytes: u64,
    /// Datagrams without an answer in time; messages without an answer when it was over.
    pub lost: u64,
    /// Messages whose answer was still awaited when the run was interrupted: not lost, not answered.
    pub interrupted: u64,
    /// Answers that came after their datagram had been counted as lost.
    pub late: u64,
    /// Answers that came twice.
    pub duplicated: u64,
    /// Answers that overtook an earlier one.
    pub reordered: u64,
    /// Answers that match nothing that was sent.
    pub unknown: u64,
    /// Messages of the schedule that were due and never sent.
    pub unsent: u64,
    /// The same by cause.
    pub unsent_by: BTreeMap<Unsent, u64>,
    /// Largest delay of a send behind its schedule, ns.
    pub lateness_max_ns: u64,
    /// When counting ended, on the monotonic clock; 0 before.
    pub measured_until: Nanos,
}

impl Tally {
    /// Adds the counts of another shard.
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.open_failed += other.open_failed;
        self.closed_early += other.closed_early;
        self.sent += other.sent;
        self.answered += other.answered;
        self.bytes += other.bytes;
        self.wrong_bytes += other.wrong_bytes;
        self.lost += other.lost;
        self.interrupted += other.interrupted;
        self.late += other.late;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.unknown += other.unknown;
        self.unsent += other.unsent;
        for (cause, count) in &other.unsent_by {
            *self.unsent_by.entry(*cause).or_default() += count;
        }
        self.lateness_max_ns = self.lateness_max_ns.max(other.lateness_max_ns);
        self.measured_until = self.measured_until.max(other.measured_until);
    }
}

/// Something that went wrong, by kind: `("connect", "connection refused")`.
pub type Failure = (&'static str, &'static str);

/// All that a shard has published.
#[derive(Debug, Clone)]
pub struct Published {
    /// Counts up to now.
    pub tally: Tally,
    /// Errors by kind.
    pub failures: BTreeMap<Failure, u64>,
    /// Latency from the intended start, ns.
    pub response: Histogram<u64>,
    /// Latency from the actual send, ns.
    pub service: Histogram<u64>,
}

impl Published {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tally: Tally::default(),
            failures: BTreeMap::new(),
            response: histogram(),
            service: histogram(),
        }
    }

    /// Adds what another shard has published.
    pub fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
        // Both have the same bounds and digits, so nothing can be out of range.
        let _ = self.response.add(&other.response);
        let _ = self.service.add(&other.service);
    }
}

impl Default for Published {
    fn default() -> Self {
        Self::new()
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, DIGITS).expect("constant bounds are valid")
}

/// Shared by one shard (which writes) and the control thread (which reads).
#[derive(Debug)]
pub struct Shared {
    phase: AtomicU8,
    /// Connections opened or failed so far, for progress.
    settled: AtomicU64,
    published: Mutex<Published>,
}

impl Shared {
    /// One for each shard.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Connecting as u8),
            settled: AtomicU64::new(0),
            published: Mutex::new(Published::new()),
        })
    }

    /// How far the shard is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Connecting,
            1 => Phase::Ready,
            2 => Phase::Running,
            3 => Phase::Ending,
            _ => Phase::Done,
        }
    }

    /// Connections that are open or have failed.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    /// What the shard has published so far.
    #[must_use]
    pub fn read(&self) -> Published {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A shard's own side: counts without locks, published now and then.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    pub(crate) tally: Tally,
    failures: BTreeMap<Failure, u64>,
    response: Histogram<u64>,
    service: Histogram<u64>,
    /// Counting has begun (and not ended).
    pub(crate) measuring: bool,
    /// When counting began; never, until then.
    pub(crate) measured_from: Nanos,
    /// The measured time is over: answers no longer count towards the rate, but how long they took
    /// does, or a server that stalls at the end would hide it.
    trailing: bool,
    /// Response and service time are the same: one histogram is kept.
    closed_loop: bool,
    /// Messages that may still be sent in the measured time; any number without.
    budget: Option<u64>,
}

impl Recorder {
    pub(crate) fn new(shared: Arc<Shared>, closed_loop: bool) -> Self {
        Self {
            shared,
            tally: Tally::default(),
            failures: BTreeMap::new(),
            response: histogram(),
            service: histogram(),
            measuring: false,
            measured_from: Nanos::MAX,
            trailing: false,
            closed_loop,
            budget: None,
        }
    }

    /// No more than so many messages are to be sent in the measured time.
    pub(super) fn set_budget(&mut self, messages: Option<u64>) {
        self.budget = messages;
    }

    /// How many of `wanted` messages may be sent now. A warm-up uses nothing of the budget.
    #[inline]
    pub(super) fn allowance(&self, wanted: usize) -> usize {
        match self.budget {
            Some(left) if self.measuring => wanted.min(usize::try_from(left).unwrap_or(wanted)),
            _ => wanted,
        }
    }

    /// Whether the last message of the budget has been sent.
    #[inline]
    pub(super) fn is_spent(&self) -> bool {
        self.measuring && self.budget == Some(0)
    }

    /// Whether there is a budget at all.
    pub(super) fn has_budget(&self) -> bool {
        self.budget.is_some()
    }

    /// What is noted as the time of a send at `now`. Messages of the warm-up stay told apart also
    /// when they leave in the very turn in which counting begins.
    #[inline]
    pub(crate) fn stamp(&self, now: Nanos) -> Nanos {
        now.saturating_sub(Nanos::from(!self.measuring))
    }

    /// Counting begins.
    pub(crate) fn begin_measuring(&mut self, now: Nanos) {
        self.measuring = true;
        self.measured_from = now;
    }

    /// Counting ends.
    pub(crate) fn end_measuring(&mut self, now: Nanos) {
        if std::mem::take(&mut self.measuring) {
            self.tally.measured_until = now;
            self.trailing = true;
        }
    }

    /// Notes messages of the schedule that will never be sent.
    pub(crate) fn unsent(&mut self, cause: Unsent, count: u64) {
        if self.measuring && count > 0 {
            self.tally.unsent += count;
            *self.tally.unsent_by.entry(cause).or_default() += count;
        }
    }

    /// Notes that a message left so much behind its schedule.
    #[inline]
    pub(crate) fn late_by(&mut self, lateness: Nanos) {
        if self.measuring {
            self.tally.lateness_max_ns = self.tally.lateness_max_ns.max(lateness);
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::Release);
    }

    pub(crate) fn set_settled(&self, settled: usize) {
        self.shared.settled.store(settled as u64, Ordering::Relaxed);
    }

    /// Notes an answered message.
    #[inline]
    pub(crate) fn answered(&mut self, now: Nanos, intended: Nanos, sent: Nanos, bytes: usize) {
        if self.measuring {
            // Of so many messages there are as many answers: those to the warm-up are none of them.
            if self.budget.is_some() && sent < self.measured_from {
                return;
            }
            self.tally.answered += 1;
            self.tally.bytes += bytes as u64;
        } else if !self.trailing {
            return;
        }
        self.service.saturating_record(now.saturating_sub(sent));
        if !self.closed_loop {
            self.response
                .saturating_record(now.saturating_sub(intended));
        }
    }

    /// Notes a message that came from a sender of its own accord; `latency` where both ends have one
    /// clock.
    #[inline]
    pub(crate) fn delivered(&mut self, latency: Option<Nanos>) {
        if let Some(latency) = latency {
            self.response.saturating_record(latency);
        }
    }

    /// Notes messages that were sent.
    #[inline]
    pub(crate) fn sent(&mut self, count: u64) {
        if self.measuring {
            self.tally.sent += count;
            if let Some(left) = &mut self.budget {
                *left = left.saturating_sub(count);
            }
        }
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    /// Hands what has been counted to the control thread.
    pub(crate) fn publish(&mut self) {
        let mut published = self
            .shared
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        published.tally = self.tally.clone();
        published.failures.clone_from(&self.failures);
        // Equal bounds: cannot be out of range.
        let _ = published.service.add(&self.service);
        let response = if self.closed_loop {
            &self.service
        } else {
            &self.response
        };
        let _ = published.response.add(response);
        drop(published);
        self.service.reset();
        self.response.reset();
    }
}
