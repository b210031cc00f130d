//! What the shards of a server tell each other: a test to be opened, and the answer for who waits.
//!
//! Two messages a test, and nothing of a test after them.

use std::net::{IpAddr, SocketAddr};

use ringmill_engine::{ShardId, SocketId};

use super::answers::AnswerId;
use super::sources::Hold;
use crate::capacity::pdu::Setup;
use crate::capacity::setup::Examined;

/// What the shards of a server tell each other.
#[derive(Debug)]
pub struct Message(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    Open(Box<Opening>),
    Opened(Box<Opened>),
}

/// A test to be opened on the shard that takes it.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) examined: Examined,
    pub(super) peer: SocketAddr,
    /// The address that was asked.
    pub(super) local: IpAddr,
    pub(super) listener: u16,
    pub(super) hold: Hold,
    pub(super) waiting: Waiting,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) shard: ShardId,
    pub(super) socket: SocketId,
    pub(super) answer: AnswerId,
    pub(super) peer: SocketAddr,
    /// From where to answer, on a socket of all addresses.
    pub(super) source: Option<IpAddr>,
    pub(super) request: [u8; Setup::LEN],
}

/// The answer to it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) waiting: Waiting,
    pub(super) response: [u8; Setup::LEN],
}
