//! What the control thread and the shards share: the stop request, the connection count, notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::ids::{ListenerId, ShardId};
use crate::mailbox::ShardBell;

/// Notices that wait for the control thread; past it they are dropped, because a flood of the same
/// line helps nobody.
const NOTICES_MAX: usize = 256;

/// How far a stop has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    Run,
    Drain,
    Now,
}

/// Something that an operator should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Accepting failed (`errno`) and pauses for 0.5–2 s on this shard.
    AcceptFailed {
        /// Where.
        shard: ShardId,
        /// On which listener.
        listener: ListenerId,
        /// Why.
        errno: i32,
    },
    /// A shard ended with an error.
    ShardFailed {
        /// Which one.
        shard: ShardId,
        /// Why.
        error: String,
    },
}

/// Shared by all shards of an engine and its handle.
#[derive(Debug)]
pub(crate) struct ControlState {
    stop: AtomicU8,
    /// Accepted streams over all shards.
    pub(crate) connections: AtomicUsize,
    notices: ArrayQueue<Notice>,
    bells: Arc<[ShardBell]>,
}

impl ControlState {
    pub(crate) fn new(bells: Arc<[ShardBell]>) -> Self {
        Self {
            stop: AtomicU8::new(Stop::Run as u8),
            connections: AtomicUsize::new(0),
            notices: ArrayQueue::new(NOTICES_MAX),
            bells,
        }
    }

    #[inline]
    pub(crate) fn stop(&self) -> Stop {
        match self.stop.load(Ordering::Relaxed) {
            0 => Stop::Run,
            1 => Stop::Drain,
            _ => Stop::Now,
        }
    }

    /// Asks every shard to stop; a stop never becomes less urgent.
    pub(crate) fn request(&self, stop: Stop) {
        self.stop.fetch_max(stop as u8, Ordering::SeqCst);
        for bell in self.bells.iter() {
            bell.nudge();
        }
    }

    pub(crate) fn notify(&self, notice: Notice) {
        // Dropped when full: see NOTICES_MAX.
        let _ = self.notices.push(notice);
    }

    pub(crate) fn take_notice(&self) -> Option<Notice> {
        self.notices.pop()
    }
}
