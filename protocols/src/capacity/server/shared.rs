//! What the shards of a server and its control thread share: settings, counters, the board of loads
//! and bounds that hold for all shards. Atomics only; nothing here is ever waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ringmill_engine::{Limits, Service, ShardId};

use super::board::Board;
use super::control::Server;
use super::counters::{Peaks, PeaksSnapshot, ServerCounters, ServerSnapshot};
use super::replay::ReplayCache;
use super::settings::Settings;
use super::sources::Sources;
use crate::capacity::transmit::engine_limits;

/// See the [module's page](self).
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) shards: Box<[ShardShared]>,
    pub(super) board: Board,
    pub(super) replays: ReplayCache,
    pub(super) sources: Sources,
    pub(super) tests: AtomicU32,
    next_test: AtomicU64,
}

/// What one shard writes and others read.
#[derive(Debug, Default)]
pub(super) struct ShardShared {
    pub(super) counters: ServerCounters,
    pub(super) peaks: Peaks,
}

impl Shared {
    /// A number for a new test.
    pub(super) fn next_test(&self) -> u64 {
        self.next_test.fetch_add(1, Ordering::Relaxed)
    }
}

/// A capacity server, as the control thread holds it.
#[derive(Debug, Clone)]
pub struct CapacityServer(Arc<Shared>);

impl CapacityServer {
    /// A server on an engine of so many shards.
    #[must_use]
    pub fn new(settings: Settings, shards: u16) -> Self {
        let ports = settings.test_ports.clone();
        Self(Arc::new(Shared {
            board: Board::new(shards, ports.as_ref()),
            replays: ReplayCache::new(),
            sources: Sources::new(settings.pending_per_source_max),
            tests: AtomicU32::new(0),
            next_test: AtomicU64::new(1),
            shards: (0..shards).map(|_| ShardShared::default()).collect(),
            settings,
        }))
    }

    /// The service for an engine's builder. Bind the control addresses to it in the order of
    /// [`Settings::listeners`].
    #[must_use]
    pub fn service(&self, name: &str) -> Service<Server> {
        let shared = Arc::clone(&self.0);
        Service::new(name, move |shard| Server::new(Arc::clone(&shared), shard))
    }

    /// The bounds that an engine should keep for it, from those that it has otherwise.
    #[must_use]
    pub fn limits(limits: Limits) -> Limits {
        engine_limits(limits)
    }

    /// What it goes by.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The counters of one shard.
    ///
    /// # Panics
    /// There is no such shard.
    #[must_use]
    pub fn shard_counters(&self, shard: ShardId) -> ServerSnapshot {
        self.0.shards[usize::from(shard)].counters.snapshot()
    }

    /// The counters of all shards.
    #[must_use]
    pub fn counters(&self) -> ServerSnapshot {
        let shards = self.0.shards.iter();
        shards.fold(ServerSnapshot::default(), |sum, shard| {
            sum.plus(&shard.counters.snapshot())
        })
    }

    /// The largest values since this was last called.
    #[must_use]
    pub fn take_peaks(&self) -> PeaksSnapshot {
        let shards = self.0.shards.iter();
        shards.fold(PeaksSnapshot::default(), |most, shard| {
            most.max(&shard.peaks.take())
        })
    }
}
