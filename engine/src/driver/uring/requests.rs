//! What the ring is asked and how its answers are told apart: the words in the user data of
//! requests, and the bits that streams and sockets carry between a request and its completion.

use io_uring::squeue;

/// What a completion answers: in the top byte of its user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Accept,
    Receive,
    /// A send tried in its submission: completes only when it could not be done whole.
    Send,
    /// A send that waits for room.
    SlowSend,
    Connect,
    Close,
    /// A datagram send tried in its submission.
    SendMessage,
    ReceiveMessage,
    /// A datagram socket has room again.
    Writable,
    CloseSocket,
    /// A datagram socket's peer is fixed.
    ConnectSocket,
    Wake,
    /// A stream came from another shard.
    Adopt,
    /// A stream was passed to another shard.
    HandOn,
    /// FIN was sent.
    Shutdown,
    /// Nothing to do whatever the answer.
    Ignore,
}

pub(super) const OPS: [Op; 16] = [
    Op::Accept,
    Op::Receive,
    Op::Send,
    Op::SlowSend,
    Op::Connect,
    Op::Close,
    Op::SendMessage,
    Op::ReceiveMessage,
    Op::Writable,
    Op::CloseSocket,
    Op::ConnectSocket,
    Op::Wake,
    Op::Adopt,
    Op::HandOn,
    Op::Shutdown,
    Op::Ignore,
];

/// User data: 8 bits operation, 24 bits generation (or other detail), 32 bits index.
#[inline]
pub(super) fn tag(op: Op, detail: u32, index: u32) -> u64 {
    (op as u64) << 56 | u64::from(detail & 0xff_ffff) << 32 | u64::from(index)
}

/// Bits of a stream's driver byte.
pub(super) mod bit {
    /// A receive is armed.
    pub(crate) const ARMED: u8 = 1;
    /// A cancel of the receive is under way.
    pub(crate) const CANCELLING: u8 = 2;
    /// The slot is a file of the process, not a direct descriptor.
    pub(crate) const FILE: u8 = 4;
    /// Receives fill several buffers.
    pub(crate) const BUNDLE: u8 = 8;
    /// The peer has sent FIN, or receiving has failed: do not arm again.
    pub(crate) const ENDED: u8 = 16;
    /// The failure has been reported.
    pub(crate) const FAILED: u8 = 32;
    /// The slot was chosen by us and returns to our list.
    pub(crate) const OWN: u8 = 64;
    /// A shutdown is under way. The kernel runs it on a worker that looks the slot up only then:
    /// the slot must not be closed before, or the next stream in it would be shut down.
    pub(crate) const SHUTTING: u8 = 128;
}

#[inline]
pub(super) fn slot_flags(bits: u8) -> squeue::Flags {
    if bits & bit::FILE != 0 {
        squeue::Flags::empty()
    } else {
        squeue::Flags::FIXED_FILE
    }
}
