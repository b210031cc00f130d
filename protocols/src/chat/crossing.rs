//! From one shard to all the others: each message is posted once to each, in order, and none is
//! lost.
//!
//! What a shard has no room for waits in an outbox of its own, and everything later to that shard
//! behind it, so that order holds. Who sent it is paused until all outboxes are empty; so there is
//! at most what one turn received of each session in them.
//!
//! A mailbox counts messages; here bytes count too. Each receiver publishes how many bytes it has
//! taken from each sender, in counters that it alone writes. A sender looks at them only when what
//! it has posted since its last look might be too much.

use std::collections::VecDeque;
use std::sync::Arc;

use ringmill_engine::metrics::Counter;
use ringmill_engine::{Context, Nanos, ShardId};

use super::counters::ChatCounters;
use super::gathering::Message;

/// Bytes on their way from one shard to another: enough for both to work in batches, and with a
/// full mailbox of large messages still little beside the send queues.
pub(super) const CROSSING_BYTES_MAX: u64 = 8 << 20;
/// How soon a shard that had no room is tried again: a few of its turns.
pub(super) const RETRY_INTERVAL: Nanos = 200_000;

/// Bytes that each shard has taken from each other one.
#[derive(Debug)]
pub(super) struct Taken {
    /// By receiver and sender; the row of a receiver is followed by a gap of a cache line, so that
    /// no two of them write to the same.
    counters: Box<[Counter]>,
    row: usize,
}

/// Counters in a cache line.
const LINE: usize = 8;

impl Taken {
    pub(super) fn new(shards: u16) -> Self {
        let row = usize::from(shards) + LINE;
        Self {
            counters: (0..row * usize::from(shards))
                .map(|_| Counter::default())
                .collect(),
            row,
        }
    }

    fn of(&self, receiver: ShardId, sender: ShardId) -> &Counter {
        &self.counters[usize::from(receiver) * self.row + usize::from(sender)]
    }

    /// Called by the receiver only.
    #[inline]
    pub(super) fn add(&self, receiver: ShardId, sender: ShardId, bytes: usize) {
        self.of(receiver, sender).add(bytes as u64);
    }

    fn get(&self, receiver: ShardId, sender: ShardId) -> u64 {
        self.of(receiver, sender).get()
    }
}

/// The way from this shard to another.
#[derive(Debug, Default)]
struct Lane {
    outbox: VecDeque<Message>,
    posted_bytes: u64,
    /// As last looked at.
    taken_bytes: u64,
}

/// The ways from this shard to all the others.
#[derive(Debug)]
pub(super) struct Crossing {
    own: ShardId,
    taken: Arc<Taken>,
    lanes: Box<[Lane]>,
    /// Messages in all outboxes.
    waiting: usize,
}

impl Crossing {
    pub(super) fn new(own: ShardId, shards: u16, taken: Arc<Taken>) -> Self {
        Self {
            own,
            taken,
            lanes: (0..shards).map(|_| Lane::default()).collect(),
            waiting: 0,
        }
    }

    /// Messages that wait for room.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Gives a message to every other shard, now or when there is room.
    pub(super) fn send(
        &mut self,
        ctx: &mut Context<'_, Message>,
        message: &Message,
        counters: &ChatCounters,
    ) {
        let messages = u64::from(message.messages);
        for to in (0..self.lanes.len() as ShardId).filter(|to| *to != self.own) {
            let lane = &mut self.lanes[usize::from(to)];
            let result = if lane.outbox.is_empty() {
                lane.post(ctx, &self.taken, (self.own, to), message.clone())
            } else {
                Err(message.clone())
            };
            match result {
                Ok(()) => counters.crossed.add(messages),
                Err(message) => {
                    lane.outbox.push_back(message);
                    self.waiting += messages as usize;
                    counters.crossings_delayed.add(messages);
                }
            }
        }
    }

    /// Tries again; `true` when nothing waits any more.
    pub(super) fn retry(
        &mut self,
        ctx: &mut Context<'_, Message>,
        counters: &ChatCounters,
    ) -> bool {
        for (to, lane) in self.lanes.iter_mut().enumerate() {
            while let Some(message) = lane.outbox.pop_front() {
                let pair = (self.own, to as ShardId);
                let messages = message.messages;
                if let Err(message) = lane.post(ctx, &self.taken, pair, message) {
                    lane.outbox.push_front(message);
                    break;
                }
                self.waiting -= messages as usize;
                counters.crossed.add(u64::from(messages));
            }
        }
        self.waiting == 0
    }
}

impl Lane {
    #[inline]
    fn post(
        &mut self,
        ctx: &mut Context<'_, Message>,
        taken: &Taken,
        (from, to): (ShardId, ShardId),
        message: Message,
    ) -> Result<(), Message> {
        let len = message.bytes.len() as u64;
        if self.posted_bytes - self.taken_bytes + len > CROSSING_BYTES_MAX {
            self.taken_bytes = taken.get(to, from);
            let under_way = self.posted_bytes - self.taken_bytes;
            // A message larger than the bound goes alone.
            if under_way > 0 && under_way + len > CROSSING_BYTES_MAX {
                return Err(message);
            }
        }
        ctx.post(to, message)?;
        self.posted_bytes += len;
        Ok(())
    }
}
