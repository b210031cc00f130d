//! What the sessions of a shard say in one turn, put together as it was received and copied once,
//! into memory that all shards and sessions share.
//!
//! A busy chat receives many small messages in a turn. Queued one by one, each would take a place in
//! the queue of every session and a vector in every send; together they take one.

use std::sync::Arc;

use ringmill_engine::{Payload, StreamId};

/// What is gathered before it is passed on, unless one message alone is more: enough for hundreds
/// of short messages, and little beside the queue of a session, which drops it as a whole.
pub(super) const GATHERED_BYTES_MAX: usize = 16 << 10;

/// One or more messages that are passed on as one.
#[derive(Debug, Clone)]
pub struct Message {
    /// All of them, one behind the other.
    pub(super) bytes: Arc<[u8]>,
    /// How many.
    pub(super) messages: u32,
}

impl Message {
    pub(super) fn one(bytes: Arc<[u8]>) -> Self {
        Self { bytes, messages: 1 }
    }
}

/// The messages of this turn so far.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    parts: Vec<Payload>,
    bytes: usize,
    /// Who said each.
    senders: Vec<StreamId>,
}

impl Gathering {
    /// Whether so many bytes more can be added to what there is.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.parts.is_empty() || self.bytes + bytes <= GATHERED_BYTES_MAX
    }

    pub(super) fn add(&mut self, sender: StreamId, message: Payload) {
        self.bytes += message.len();
        self.parts.push(message);
        self.senders.push(sender);
    }

    /// All of it and who said it; `None` when there is nothing.
    pub(super) fn take(&mut self) -> Option<(Message, Vec<StreamId>)> {
        if self.parts.is_empty() {
            return None;
        }
        let messages = self.parts.len() as u32;
        // Shared memory is made once, at its full length, so that each byte is copied only once.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, self.bytes).collect();
        let mut rest = Arc::get_mut(&mut bytes).expect("nobody else has it yet");
        for part in self.parts.drain(..) {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part.bytes());
            rest = behind;
        }
        self.bytes = 0;
        Some((
            Message { bytes, messages },
            std::mem::take(&mut self.senders),
        ))
    }
}
