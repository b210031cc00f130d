//! What a DNS load counts beside what every load counts ([`Published`](crate::load::Published)):
//! kinds of answers, and how late queries left.

use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;
use ringmill_engine::Nanos;

use super::message::Header;

/// Response codes that fit a header.
const RESPONSE_CODES: usize = 16;
/// The longest lateness that is told apart, ns: a minute.
const LATENESS_MAX_NS: u64 = 60_000_000_000;

/// Counts of one shard, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsCounts {
    /// Answers in the measured time by response code.
    pub response_codes: [u64; RESPONSE_CODES],
    /// Of the answers, those that are the query itself: from an echo server.
    pub echoed: u64,
    /// Of the answers, those that were cut for the transport.
    pub truncated: u64,
    /// What arrived and is no answer to its query: no header, or another question.
    pub malformed: u64,
    /// Records of queries and answers that were not written because the writer was behind.
    pub records_dropped: u64,
}

/// Counts and lateness of one shard, or of all.
#[derive(Debug, Clone)]
pub struct DnsFigures {
    /// Counts.
    pub counts: DnsCounts,
    /// How long after its intended time each query left, ns.
    pub lateness: Histogram<u64>,
}

impl DnsCounts {
    /// Adds those of another shard.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.response_codes.iter_mut().zip(other.response_codes) {
            *mine += theirs;
        }
        self.echoed += other.echoed;
        self.truncated += other.truncated;
        self.malformed += other.malformed;
        self.records_dropped += other.records_dropped;
    }

    /// Notes an answer.
    #[inline]
    pub(super) fn answer(&mut self, header: &Header) {
        if header.is_answer() {
            self.response_codes[usize::from(header.response_code())] += 1;
            self.truncated += u64::from(header.is_truncated());
        } else {
            self.echoed += 1;
        }
    }
}

impl DnsFigures {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            counts: DnsCounts::default(),
            lateness: Histogram::new_with_bounds(1, LATENESS_MAX_NS, 3)
                .expect("constant bounds are valid"),
        }
    }

    /// Adds those of another shard.
    pub fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        // Equal bounds: cannot be out of range.
        let _ = self.lateness.add(&other.lateness);
    }

    /// Notes a query that left so much after its intended time.
    #[inline]
    pub(super) fn late_by(&mut self, lateness: Nanos) {
        self.lateness.saturating_record(lateness);
    }
}

impl Default for DnsFigures {
    fn default() -> Self {
        Self::new()
    }
}

/// The figures of one shard as the control thread reads them.
#[derive(Debug)]
pub struct DnsShared(Mutex<DnsFigures>);

impl DnsShared {
    /// One for each shard.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(DnsFigures::new())))
    }

    /// What the shard has published so far.
    #[must_use]
    pub fn read(&self) -> DnsFigures {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Adds what the shard has counted since the last time, and begins anew.
    pub(super) fn publish(&self, figures: &mut DnsFigures) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        published.add(figures);
        drop(published);
        figures.lateness.reset();
        figures.counts = DnsCounts::default();
    }
}
