//! What descriptors are watched for: the kernel's flags, the word that a registration carries, and
//! the bits that streams and sockets carry between two edges.

pub(super) const IN: u32 = libc::EPOLLIN as u32;

pub(super) const OUT: u32 = libc::EPOLLOUT as u32;

pub(super) const RDHUP: u32 = libc::EPOLLRDHUP as u32;

pub(super) const HUP: u32 = libc::EPOLLHUP as u32;

pub(super) const ERR: u32 = libc::EPOLLERR as u32;

pub(super) const EDGE: u32 = libc::EPOLLET as u32;

/// Bits of the driver byte of streams and sockets.
pub(super) mod bit {
    /// In the interest list.
    pub(crate) const WATCHED: u8 = 1;
    /// Watched for room to send, too.
    pub(crate) const WATCHED_OUT: u8 = 2;
    /// Something may wait to be received.
    pub(crate) const READABLE: u8 = 4;
    /// In the list of what is received from in the next turn.
    pub(crate) const LISTED: u8 = 8;
    /// The peer's end has been reported.
    pub(crate) const ENDED: u8 = 16;
    /// The failure has been reported.
    pub(crate) const FAILED: u8 = 32;
    /// A Unix socket: it reports room after every message that its peer takes, so room is
    /// watched only while something waits for it.
    pub(crate) const UNIX: u8 = 64;
    /// Its last edge (an end or an error) has come: only reading to the end tells it all.
    pub(crate) const LAST_EDGE: u8 = 128;
}

/// What a descriptor was registered for: in the top byte of its word.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Stream,
    Socket,
    Listener,
    Wake,
}

/// A registration's word: 8 bits kind, 24 bits generation, 32 bits index. The generation keeps
/// what was reported for a closed stream away from the next one in its place.
#[inline]
pub(super) fn word(kind: Kind, generation: u32, index: u32) -> u64 {
    (kind as u64) << 56 | u64::from(generation & 0xff_ffff) << 32 | u64::from(index)
}
