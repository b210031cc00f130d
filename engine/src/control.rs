//! What the control thread and the shards share: the stop request, the connection count, notices.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::ids::{ListenerId, ShardId};
use crate::mailbox::ShardBell;
use crate::sys::socket;

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
    /// A handle of every listener.
    listening: Box<[OwnedFd]>,
}

impl ControlState {
    pub(crate) fn new(bells: Arc<[ShardBell]>, listening: Vec<OwnedFd>) -> Self {
        Self {
            stop: AtomicU8::new(Stop::Run as u8),
            connections: AtomicUsize::new(0),
            notices: ArrayQueue::new(NOTICES_MAX),
            bells,
            listening: listening.into(),
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

    /// Asks every shard to stop, whoever wants it: the user, a protocol, or a shard that failed.
    /// A stop never becomes less urgent.
    ///
    /// Whoever connects from now on is refused, or reaches the next process on the port, instead of
    /// waiting in the queue of a listener that accepts nothing more. A close alone would not do: a
    /// ring holds on to its files for some time, even after the end of the process.
    pub(crate) fn request(&self, stop: Stop) {
        self.stop.fetch_max(stop as u8, Ordering::SeqCst);
        for bell in self.bells.iter() {
            bell.nudge();
        }
        for listener in &self.listening {
            socket::stop_listening(listener);
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
