//! Where copies of what passes go, for who wants to look at it with a network analyser.

use std::net::SocketAddr;

use ringmill_engine::{Ecn, Nanos};

/// A datagram as it came in or went out.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// When, by the clock of the shards.
    pub at: Nanos,
    /// Who sent it. The address of one of our own sockets is unspecified where the kernel chooses it.
    pub source: SocketAddr,
    /// Where it went.
    pub destination: SocketAddr,
    /// ECN bits of its IP header.
    pub ecn: Ecn,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Takes copies. Called on the shards: must neither block nor fail.
pub trait Tap: Send + Sync {
    /// Takes one.
    fn take(&self, seen: Seen<'_>);
}
