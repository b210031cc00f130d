//! What has been received for a person and not been shown yet: when it is too much, nothing more is
//! read from the network, so that a terminal that was stopped, or a pipe that nobody empties, does
//! not fill the memory. Shared by the shard, which adds, and by who shows, which takes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringmill_engine::Nanos;

/// Bytes that may wait to be shown: far more than fits a screen.
pub const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// What each message costs beside its bytes, about, so that tiny ones count too.
const MESSAGE_COST: usize = 64;
/// How soon a shard that reads no more looks whether there is room again.
pub(crate) const LOOK_INTERVAL: Nanos = 20_000_000;

/// See the [module's page](self).
#[derive(Debug, Default)]
pub struct Backlog(AtomicUsize);

impl Backlog {
    /// Nothing waits.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A message of so many bytes waits now.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes + MESSAGE_COST, Ordering::Relaxed);
    }

    /// A message of so many bytes has been shown.
    pub fn shown(&self, bytes: usize) {
        self.0.fetch_sub(bytes + MESSAGE_COST, Ordering::Relaxed);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= BACKLOG_BYTES_MAX
    }
}
