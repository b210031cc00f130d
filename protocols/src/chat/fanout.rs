//! From one message to the send queues of all sessions of this shard, and what happens to those
//! who read too slowly.
//!
//! A slow reader delays nobody: its queue has bounds, and what is past them is dropped, or it is
//! disconnected. Nor can many of them take the memory of the others: see
//! [`Context::send_within`].

use ringmill_engine::{Context, Fanned, QueueBounds, Sent, StreamId};

use super::counters::ChatCounters;
use super::gathering::Message;

/// What happens when the queue of a session is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlowReader {
    /// Its oldest waiting messages are dropped: when it reads again it is soon up to date.
    #[default]
    DropOldest,
    /// The new message is dropped: when it reads again it begins with what it missed first.
    DropNewest,
    /// It is disconnected by a reset.
    Disconnect,
}

/// The sessions of one shard that take part.
#[derive(Debug, Default)]
pub(super) struct Members {
    streams: Vec<StreamId>,
    /// Position of each in `streams`, by [`StreamId::index`]; [`NOWHERE`] for others.
    positions: Vec<u32>,
    /// Found too slow in the delivery that goes on.
    too_slow: Vec<StreamId>,
}

const NOWHERE: u32 = u32::MAX;

impl Members {
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn add(&mut self, stream: StreamId) {
        let index = stream.index();
        if self.positions.len() <= index {
            self.positions.resize(index + 1, NOWHERE);
        }
        debug_assert_eq!(self.positions[index], NOWHERE, "nobody joins twice");
        self.positions[index] = self.streams.len() as u32;
        self.streams.push(stream);
    }

    /// `false` when it took no part.
    pub(super) fn remove(&mut self, stream: StreamId) -> bool {
        let Some(position) = self.positions.get_mut(stream.index()) else {
            return false;
        };
        let at = std::mem::replace(position, NOWHERE);
        if at == NOWHERE {
            return false;
        }
        debug_assert_eq!(self.streams[at as usize], stream);
        self.streams.swap_remove(at as usize);
        if let Some(moved) = self.streams.get(at as usize) {
            self.positions[moved.index()] = at;
        }
        true
    }

    /// Queues a message for every session. Gives back those that are to be disconnected; the caller
    /// empties the list.
    pub(super) fn deliver(
        &mut self,
        ctx: &mut Context<'_, Message>,
        message: Message,
        bounds: QueueBounds,
        policy: SlowReader,
        counters: &ChatCounters,
    ) -> &mut Vec<StreamId> {
        let messages = u64::from(message.messages);
        let len = message.bytes.len();
        let message = Fanned::carrying(message.bytes, message.messages);
        let mut queued = 0;
        for &to in &self.streams {
            match ctx.send_within(to, message.clone(), bounds) {
                Sent::Queued => queued += messages,
                // The engine stops, or tells in a moment that the stream is gone.
                Sent::Closed => {}
                Sent::Full => match policy {
                    SlowReader::DropOldest => {
                        let dropped = ctx.drop_oldest(to, len, bounds);
                        counters.dropped_oldest.add(dropped.carried as u64);
                        if ctx.send_within(to, message.clone(), bounds).is_queued() {
                            queued += messages;
                        } else {
                            counters.dropped_newest.add(messages);
                        }
                    }
                    SlowReader::Disconnect if ctx.queued_messages(to) > 0 => {
                        self.too_slow.push(to);
                    }
                    // Or nothing waits for it and the shard is full: that is not its fault.
                    SlowReader::DropNewest | SlowReader::Disconnect => {
                        let yielded = ctx.yield_share(to);
                        counters.withdrawn.add(yielded.carried as u64);
                        counters.dropped_newest.add(messages);
                    }
                },
            }
        }
        counters.deliveries.add(queued);
        &mut self.too_slow
    }
}
