//! Names of things inside one engine: shards, services, listeners, streams, datagram sockets.

use std::fmt;

/// The number of a shard, from 0, in the order of the placement plan.
pub type ShardId = u16;

/// The number of a service, from 0, in the order in which services were added.
pub type ServiceId = u16;

/// A listening endpoint of one service: its position in that service's list of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenerId {
    /// The service that listens.
    pub service: ServiceId,
    /// Which of the service's endpoints, in the order in which they were added.
    pub endpoint: u16,
}

macro_rules! table_id {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            pub(crate) index: u32,
            pub(crate) generation: u32,
        }

        impl $name {
            /// Position in the shard's table: small and dense, so a protocol may keep its own
            /// state in a `Vec` by this number. It is used again after the id has closed.
            #[must_use]
            pub fn index(self) -> usize {
                self.index as usize
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}.{}"), self.index, self.generation)
            }
        }
    };
}

table_id!(
    /// One stream (a TCP or Unix connection) of this shard. An id that outlived its stream is
    /// recognised by its generation and answered with "closed", never with another's stream.
    StreamId,
    "stream"
);
table_id!(
    /// One datagram socket of this shard.
    SocketId,
    "socket"
);
