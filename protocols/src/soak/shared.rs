//! What a shard of a soak counts, and how the control thread gets to see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;
use ringmill_engine::Nanos;

/// The longest time that is told apart, ns: two minutes.
const TIME_MAX_NS: u64 = 120_000_000_000;
/// Significant digits. A million connections need dozens of shards, and a third digit would make
/// each of their histograms eight times as large (a quarter of a megabyte).
const DIGITS: u8 = 2;

/// How far a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Connections are being opened for the first time.
    Opening,
    /// All were live at once.
    Full,
    /// The last figures are published, and all connections are closed.
    Done,
}

/// Counts of a shard from its beginning. Three sums always hold:
///
/// - `begun` = `opening` + `opened` + `failed` + `cancelled`
/// - `opened` = `live` + `closing` + `churned` + `over` + the sum of `lost`
/// - `sent` = `answered` + `on_the_way` + `unanswered`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connects begun.
    pub begun: u64,
    /// Connects on their way now.
    pub opening: u64,
    /// Connections opened, those that were opened again included.
    pub opened: u64,
    /// Connects that failed.
    pub failed: u64,
    /// The same by cause.
    pub failed_by: BTreeMap<&'static str, u64>,
    /// Connects that were on their way when the soak was over.
    pub cancelled: u64,
    /// Connections that are open now.
    pub live: u64,
    /// Connections that this end is closing now.
    pub closing: u64,
    /// Connections closed by churn.
    pub churned: u64,
    /// Connections that were due to be churned and were not, because each had a message on its way
    /// or none was live.
    pub churn_missed: u64,
    /// Connections closed because the soak was over.
    pub over: u64,
    /// Connections that ended against our will, by cause.
    pub lost: BTreeMap<&'static str, u64>,
    /// Messages sent.
    pub sent: u64,
    /// Messages that came back whole.
    pub answered: u64,
    /// Messages that have not come back yet.
    pub on_the_way: u64,
    /// Messages that did not come back before their connection was closed.
    pub unanswered: u64,
    /// Bytes that came back.
    pub bytes: u64,
    /// Bytes that were not those that were sent, or more than were.
    pub wrong_bytes: u64,
    /// Messages that were due and not sent, by cause.
    pub unsent: BTreeMap<&'static str, u64>,
    /// Largest delay of a message behind its schedule, ns.
    pub lateness_max_ns: u64,
    /// When the first connect began, on the monotonic clock; 0 before.
    pub began_at: Nanos,
    /// When all were live for the first time; 0 before.
    pub full_at: Nanos,
}

impl Tally {
    /// Connections that ended against our will.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Messages that were due and not sent.
    #[must_use]
    pub fn unsent_total(&self) -> u64 {
        self.unsent.values().sum()
    }

    /// Adds the counts of another shard. All were live when the last shard's were.
    pub fn add(&mut self, other: &Self) {
        let by_cause = |sum: &mut BTreeMap<&'static str, u64>, more: &BTreeMap<_, u64>| {
            for (cause, count) in more {
                *sum.entry(*cause).or_default() += count;
            }
        };
        self.begun += other.begun;
        self.opening += other.opening;
        self.opened += other.opened;
        self.failed += other.failed;
        by_cause(&mut self.failed_by, &other.failed_by);
        self.cancelled += other.cancelled;
        self.live += other.live;
        self.closing += other.closing;
        self.churned += other.churned;
        self.churn_missed += other.churn_missed;
        self.over += other.over;
        by_cause(&mut self.lost, &other.lost);
        self.sent += other.sent;
        self.answered += other.answered;
        self.on_the_way += other.on_the_way;
        self.unanswered += other.unanswered;
        self.bytes += other.bytes;
        self.wrong_bytes += other.wrong_bytes;
        by_cause(&mut self.unsent, &other.unsent);
        self.lateness_max_ns = self.lateness_max_ns.max(other.lateness_max_ns);
        self.began_at = match (self.began_at, other.began_at) {
            (0, began) | (began, 0) => began,
            (mine, theirs) => mine.min(theirs),
        };
        self.full_at = self.full_at.max(other.full_at);
    }
}

/// All that a shard has published.
#[derive(Debug, Clone)]
pub struct Published {
    /// Counts.
    pub tally: Tally,
    /// From the begin of a connect to its success, ns.
    pub connect: Histogram<u64>,
    /// From the moment at which a message was meant to leave to its answer, ns.
    pub response: Histogram<u64>,
    /// From the moment at which it left, ns.
    pub service: Histogram<u64>,
}

impl Published {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tally: Tally::default(),
            connect: histogram(),
            response: histogram(),
            service: histogram(),
        }
    }

    /// Adds what another shard has published.
    pub fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        // All have the same bounds and digits, so nothing can be out of range.
        let _ = self.connect.add(&other.connect);
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
    Histogram::new_with_bounds(1, TIME_MAX_NS, DIGITS).expect("constant bounds are valid")
}

/// Shared by one shard (which writes) and the control thread (which reads).
#[derive(Debug)]
pub struct Shared {
    phase: AtomicU8,
    published: Mutex<Published>,
}

impl Shared {
    /// One for each shard.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Opening as u8),
            published: Mutex::new(Published::new()),
        })
    }

    /// How far the shard is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Opening,
            1 => Phase::Full,
            _ => Phase::Done,
        }
    }

    /// Adds what the shard has published so far to a sum.
    pub fn add_to(&self, sum: &mut Published) {
        let published = self.published.lock();
        sum.add(&published.unwrap_or_else(PoisonError::into_inner));
    }
}

/// A shard's own side: counts without locks, published now and then.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    pub(super) tally: Tally,
    connect: Histogram<u64>,
    response: Histogram<u64>,
    service: Histogram<u64>,
}

impl Recorder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            tally: Tally::default(),
            connect: histogram(),
            response: histogram(),
            service: histogram(),
        }
    }

    pub(super) fn connected(&mut self, took: Nanos) {
        self.tally.opened += 1;
        self.connect.saturating_record(took);
    }

    pub(super) fn connect_failed(&mut self, cause: &'static str) {
        self.tally.failed += 1;
        *self.tally.failed_by.entry(cause).or_default() += 1;
    }

    pub(super) fn lost(&mut self, cause: &'static str) {
        *self.tally.lost.entry(cause).or_default() += 1;
    }

    pub(super) fn unsent(&mut self, cause: &'static str, count: u64) {
        if count > 0 {
            *self.tally.unsent.entry(cause).or_default() += count;
        }
    }

    pub(super) fn answered(&mut self, now: Nanos, intended: Nanos, sent: Nanos) {
        self.tally.answered += 1;
        self.tally.on_the_way -= 1;
        self.response
            .saturating_record(now.saturating_sub(intended));
        self.service.saturating_record(now.saturating_sub(sent));
    }

    /// Hands what has been counted to the control thread.
    pub(super) fn publish(&mut self) {
        let published = self.shared.published.lock();
        let published = &mut *published.unwrap_or_else(PoisonError::into_inner);
        published.tally.clone_from(&self.tally);
        let pairs = [
            (&mut published.connect, &mut self.connect),
            (&mut published.response, &mut self.response),
            (&mut published.service, &mut self.service),
        ];
        for (sum, more) in pairs {
            if !more.is_empty() {
                // Equal bounds: cannot be out of range.
                let _ = sum.add(&*more);
                more.reset();
            }
        }
    }

    /// After the figures that belong to it were published.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::Release);
    }
}
