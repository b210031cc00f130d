//! One destination: its address, whether it may be used, and what passed to and from it.
//!
//! A destination is shared by all shards and the control thread, because whether it answers is seen
//! by whichever shard its answer reaches. Each shard writes only its own [`Traffic`]; the state is one
//! atomic byte that changes a few times a minute. Nothing here decides when it changes: that is
//! [`health`](super::health).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use ringmill_engine::Nanos;
use ringmill_engine::metrics::Counter;
use serde::Serialize;

/// Whether a destination gets datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum State {
    /// In use.
    Active = 0,
    /// It got a datagram and answered nothing for the destination timeout: not in use.
    Stale = 1,
    /// Stale for one more timeout: the next entry that needs a destination tries it.
    Probing = 2,
    /// One entry tries it.
    Pending = 3,
}

impl State {
    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Active,
            1 => Self::Stale,
            2 => Self::Probing,
            _ => Self::Pending,
        }
    }

    /// Whether an entry may go on using it.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Active | Self::Pending)
    }
}

/// What one shard has seen of one destination. Its own cache lines: written with each batch.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Traffic {
    /// Entries of this shard that use it.
    pub entries: Counter,
    /// Datagrams sent to it.
    pub forward_datagrams: Counter,
    /// Bytes sent to it.
    pub forward_bytes: Counter,
    /// Datagrams from it that were passed back.
    pub backward_datagrams: Counter,
    /// Bytes from it that were passed back.
    pub backward_bytes: Counter,
    /// When it last got a datagram; 0 never.
    last_sent: Counter,
    /// When it last answered; 0 never.
    last_answer: Counter,
    /// When it got the first datagram since its last answer to this shard; 0 none.
    unanswered_since: Counter,
}

impl Traffic {
    /// Notes datagrams sent to the destination.
    pub(crate) fn forwarded(&self, now: Nanos, datagrams: usize, bytes: usize) {
        self.forward_datagrams.add(datagrams as u64);
        self.forward_bytes.add(bytes as u64);
        self.last_sent.set(now);
        if self.unanswered_since.get() == 0 {
            self.unanswered_since.set(now);
        }
    }

    /// Notes that the destination has answered.
    pub(crate) fn answered(&self, now: Nanos) {
        self.last_answer.set(now);
        self.unanswered_since.set(0);
    }

    /// Notes datagrams passed back.
    pub(crate) fn returned(&self, datagrams: usize, bytes: usize) {
        self.backward_datagrams.add(datagrams as u64);
        self.backward_bytes.add(bytes as u64);
    }
}

/// A destination.
#[derive(Debug)]
pub struct Destination {
    /// As the user wrote it.
    pub name: String,
    /// Where datagrams go.
    pub address: SocketAddr,
    state: AtomicU8,
    removed: AtomicBool,
    /// When the state was entered; [`SINCE_NEXT_LOOK`] when the next look is to say.
    since: AtomicU64,
    traffic: Box<[Traffic]>,
}

/// The state was changed by a thread that has no clock of the shards.
const SINCE_NEXT_LOOK: Nanos = Nanos::MAX;

impl Destination {
    /// An active destination for an engine of so many shards.
    #[must_use]
    pub fn new(name: impl Into<String>, address: SocketAddr, shards: u16) -> Self {
        Self {
            name: name.into(),
            address,
            state: AtomicU8::new(State::Active as u8),
            removed: AtomicBool::new(false),
            since: AtomicU64::new(SINCE_NEXT_LOOK),
            traffic: (0..shards).map(|_| Traffic::default()).collect(),
        }
    }

    /// What one shard has seen of it.
    #[must_use]
    pub fn traffic(&self, shard: u16) -> &Traffic {
        &self.traffic[usize::from(shard)]
    }

    /// Its state now.
    #[must_use]
    pub fn state(&self) -> State {
        State::from_code(self.state.load(Relaxed))
    }

    /// Whether an entry may go on using it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state().is_usable() && !self.is_removed()
    }

    /// Whether the user took it away.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Relaxed);
    }

    /// Goes from one state to another; `false` when it was in neither any more.
    pub(crate) fn change(&self, from: State, to: State, now: Nanos) -> bool {
        let changed = self
            .state
            .compare_exchange(from as u8, to as u8, Relaxed, Relaxed)
            .is_ok();
        if changed {
            self.since.store(now, Relaxed);
        }
        changed
    }

    /// Takes a destination back whatever it is, as if it had just been added.
    pub(crate) fn reinstate(&self) {
        self.state.store(State::Active as u8, Relaxed);
        self.since.store(SINCE_NEXT_LOOK, Relaxed);
    }

    /// When the present state was entered. A state set from outside begins with the first look.
    pub(crate) fn since(&self, now: Nanos) -> Nanos {
        match self
            .since
            .compare_exchange(SINCE_NEXT_LOOK, now, Relaxed, Relaxed)
        {
            Ok(_) => now,
            Err(since) => since,
        }
    }

    /// When it last got a datagram or answered; 0 never.
    #[must_use]
    pub fn last_used(&self) -> Nanos {
        let times = self.traffic.iter();
        times
            .map(|traffic| traffic.last_sent.get().max(traffic.last_answer.get()))
            .max()
            .unwrap_or(0)
    }

    /// Since when it owes an answer: the first datagram after its last answer to any shard and
    /// after `since`. `None` when it owes none.
    pub(crate) fn unanswered_since(&self, since: Nanos) -> Option<Nanos> {
        let answers = self.traffic.iter().map(|traffic| traffic.last_answer.get());
        let answered = answers.max().unwrap_or(0).max(since);
        let owed = self.traffic.iter().filter_map(|traffic| {
            let began = traffic.unanswered_since.get();
            // A shard that was not answered itself knows only its first datagram; what counts is
            // the time since the answer that another shard got.
            (began > 0 && traffic.last_sent.get() > answered).then(|| began.max(answered))
        });
        owed.min()
    }

    /// Sums over the shards.
    #[must_use]
    pub fn totals(&self) -> DestinationTotals {
        let sum = |of: fn(&Traffic) -> &Counter| {
            self.traffic.iter().map(|traffic| of(traffic).get()).sum()
        };
        DestinationTotals {
            entries: sum(|traffic| &traffic.entries),
            forward_datagrams: sum(|traffic| &traffic.forward_datagrams),
            forward_bytes: sum(|traffic| &traffic.forward_bytes),
            backward_datagrams: sum(|traffic| &traffic.backward_datagrams),
            backward_bytes: sum(|traffic| &traffic.backward_bytes),
        }
    }
}

/// What passed to and from a destination, all shards together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DestinationTotals {
    /// Entries that use it now.
    pub entries: u64,
    /// Datagrams sent to it.
    pub forward_datagrams: u64,
    /// Bytes sent to it.
    pub forward_bytes: u64,
    /// Datagrams from it that were passed back.
    pub backward_datagrams: u64,
    /// Bytes from it that were passed back.
    pub backward_bytes: u64,
}
