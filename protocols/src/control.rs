//! The control query: tells a load client how much CPU time the server has used, as one line.
//!
//! An endpoint of its own, opened only when the operator asks, so that the measured path carries
//! nothing but the measured protocol. Whoever connects is given one line and the end of the stream.
//! No input is ever looked at, so there is nothing to get wrong by sending any.

use std::collections::VecDeque;
use std::sync::Arc;

use ringmill_engine::{Closed, Context, ListenerId, Nanos, Protocol, StreamId};
use serde::{Deserialize, Serialize};

/// Connections that one shard answers at a time; more are reset. A load client needs one.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a connection may stay after its answer was queued.
pub const LINGER: Nanos = 5_000_000_000;
/// A client need not read more than this.
pub const ANSWER_BYTES_MAX: usize = 4096;

/// The answer: one JSON object on one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerStats {
    /// Process id of the server.
    pub pid: u32,
    /// CPU time spent in user mode since the process began, in seconds.
    pub user_s: f64,
    /// CPU time spent in the kernel since the process began, in seconds.
    pub system_s: f64,
    /// Shards of the engine.
    pub shards: u16,
    /// The driver that runs: `uring` or `epoll`.
    pub driver: String,
    /// Version of the server.
    pub version: String,
}

/// Makes the answer, without its line end. Called on the shard for every query: must not block.
pub type Snapshot = Arc<dyn Fn() -> String + Send + Sync>;

/// The control query service on one shard.
pub struct Stats {
    snapshot: Snapshot,
    /// Answered connections that the peer has not closed yet, oldest first.
    open: VecDeque<(StreamId, Nanos)>,
    /// A timer will look at the oldest.
    armed: bool,
}

impl Stats {
    /// A service that answers every connection with what `snapshot` gives.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            open: VecDeque::new(),
            armed: false,
        }
    }

    fn arm(&mut self, ctx: &mut Context<'_, ()>) {
        if let Some((_, deadline)) = self.open.front().filter(|_| !self.armed) {
            ctx.set_timer(*deadline, 0);
            self.armed = true;
        }
    }
}

impl Protocol for Stats {
    type Message = ();

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _listener: ListenerId,
        _peer: Option<std::net::SocketAddr>,
    ) {
        if self.open.len() >= CONNECTIONS_MAX {
            ctx.reset(stream);
            return;
        }
        let mut answer = (self.snapshot)();
        answer.push('\n');
        if !ctx.send(stream, answer.into_bytes()).is_queued() {
            ctx.reset(stream);
            return;
        }
        // Closing here would reset the connection of a peer that has sent something, and take the
        // answer from it: say that nothing follows, and let the peer close.
        ctx.finish(stream);
        let deadline = ctx.now() + LINGER;
        self.open.push_back((stream, deadline));
        self.arm(ctx);
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, _token: u64) {
        self.armed = false;
        let now = ctx.now();
        let overdue = self
            .open
            .iter()
            .take_while(|(_, deadline)| *deadline <= now)
            .count();
        for (stream, _) in self.open.iter().take(overdue) {
            ctx.reset(*stream);
        }
        self.open.drain(..overdue);
        self.arm(ctx);
    }

    fn closed(&mut self, _ctx: &mut Context<'_, ()>, stream: StreamId, _reason: Closed) {
        self.open.retain(|(open, _)| *open != stream);
    }
}
