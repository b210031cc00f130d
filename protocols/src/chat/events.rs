//! What a chat tells of its sessions, for who wants to watch them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ringmill_engine::Closed;

/// The number of a session: unique while the server runs, and small enough to be typed.
pub type SessionId = u64;

/// What a session came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// A Unix socket.
    Unix,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Unix => "Unix",
        })
    }
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It sent '!'.
    Left,
    /// Its peer ended the connection.
    ClosedByPeer,
    /// It read too slowly, and that is the policy.
    TooSlow,
    /// The engine's own reason.
    Engine(Closed),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("left"),
            Self::ClosedByPeer => f.write_str("closed by peer"),
            Self::TooSlow => f.write_str("read too slowly"),
            Self::Engine(reason) => reason.fmt(f),
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session has joined.
    Connected {
        /// Which.
        session: SessionId,
        /// How.
        transport: Transport,
        /// From where, for TCP, if the service knows the addresses of its peers.
        peer: Option<SocketAddr>,
    },
    /// A session is over.
    Disconnected {
        /// Which.
        session: SessionId,
        /// Why.
        reason: Reason,
    },
}

/// Hears of every event, on the shard: must not block.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;
