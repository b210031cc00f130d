//! What a protocol sends: received buffers, shared bytes, constants or bytes of its own.

use std::rc::Rc;
use std::sync::Arc;

use crate::Buffer;

/// Bytes handed to a send. All variants but [`Payload::Owned`] are sent without a copy.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A received or filled buffer of this shard's pool: returns there once sent.
    Buffer(Buffer),
    /// Bytes shared by many sends, also across shards: `bytes[start..]`.
    Shared {
        /// The whole shared allocation.
        bytes: Arc<[u8]>,
        /// Where the unsent part begins.
        start: u32,
    },
    /// The same, shared within this shard by a count that is no atomic: for one message to very
    /// many streams. `bytes[start..]`.
    Fanned {
        /// This shard's hold of the shared allocation.
        bytes: Fanned,
        /// Where the unsent part begins.
        start: u32,
    },
    /// Bytes that live as long as the program.
    Static(&'static [u8]),
    /// Bytes that belong to this send alone: `bytes[start..]`.
    Owned {
        /// The whole allocation.
        bytes: Vec<u8>,
        /// Where the unsent part begins.
        start: u32,
    },
}

/// Bytes that came from anywhere and go to many streams of one shard. A clone counts within the
/// shard, so that a thousand sends on two shards do not pass one cache line to and fro.
#[derive(Debug, Clone)]
pub struct Fanned(Rc<Held>);

#[derive(Debug)]
struct Held {
    bytes: Arc<[u8]>,
    carried: u32,
}

impl Fanned {
    /// Holds the bytes once for all sends of this shard.
    #[must_use]
    pub fn new(bytes: Arc<[u8]>) -> Self {
        Self::carrying(bytes, 1)
    }

    /// The same of a protocol that has put several messages of its own together: how many,
    /// [`Dropped`](crate::Dropped) tells when it is dropped.
    #[must_use]
    pub fn carrying(bytes: Arc<[u8]>, messages: u32) -> Self {
        Self(Rc::new(Held {
            bytes,
            carried: messages,
        }))
    }
}

impl std::ops::Deref for Fanned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Payload {
    /// The bytes still to be sent.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer) => buffer,
            Self::Shared { bytes, start } => &bytes[*start as usize..],
            Self::Fanned { bytes, start } => &bytes[*start as usize..],
            Self::Static(bytes) => bytes,
            Self::Owned { bytes, start } => &bytes[*start as usize..],
        }
    }

    /// Bytes still to be sent.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether nothing is left to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages of the protocol in here.
    pub(crate) fn carried(&self) -> usize {
        match self {
            Self::Fanned { bytes, .. } => bytes.0.carried as usize,
            _ => 1,
        }
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advance past the end");
        match self {
            Self::Buffer(buffer) => buffer.advance(count),
            Self::Shared { start, .. } | Self::Fanned { start, .. } | Self::Owned { start, .. } => {
                *start += count as u32;
            }
            Self::Static(bytes) => *bytes = &bytes[count..],
        }
    }

    /// Whether others hold the same bytes, so that a copy of them would be memory lost.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::Shared { .. } | Self::Fanned { .. } | Self::Static(_)
        )
    }

    /// The same bytes without holding a receive buffer: a slow peer's share is copied out, so
    /// that it cannot starve the pool it shares with everyone else.
    #[must_use]
    pub(crate) fn unpinned(self) -> Self {
        match self {
            Self::Buffer(buffer) => Self::Owned {
                bytes: buffer.to_vec(),
                start: 0,
            },
            other => other,
        }
    }
}

impl From<Buffer> for Payload {
    fn from(buffer: Buffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl From<Arc<[u8]>> for Payload {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::Shared { bytes, start: 0 }
    }
}

impl From<Fanned> for Payload {
    fn from(bytes: Fanned) -> Self {
        Self::Fanned { bytes, start: 0 }
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Self {
        Self::Static(bytes)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned { bytes, start: 0 }
    }
}
