//! What a protocol module is: a struct with handlers that its shard calls with a context.

use std::net::SocketAddr;

use crate::ids::{ListenerId, ShardId, SocketId, StreamId};
use crate::{Buffer, Context, Datagram};

/// A protocol on one shard. Every shard has its own instance; nothing in it is shared or locked.
///
/// Handlers get bytes and time and give back sends and timers through the [`Context`]. They must
/// not block, and must not read a clock of their own: then the same code runs on io_uring, on
/// epoll and in the simulator.
///
/// Every handler has a default that does the least: ignore what arrived, close what ended.
#[allow(
    unused_variables,
    reason = "a default handler ignores what it is told, but its parameters have names to read"
)]
pub trait Protocol: 'static {
    /// What instances on different shards, and the control thread, send each other.
    type Message: Send + 'static;

    /// The shard runs; sockets may be opened and timers set.
    fn start(&mut self, ctx: &mut Context<'_, Self::Message>) {}

    /// A stream was accepted. `peer` is known for TCP when the service asked for it.
    fn accepted(
        &mut self,
        ctx: &mut Context<'_, Self::Message>,
        stream: StreamId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
    ) {
    }

    /// A connect that this protocol started has succeeded.
    fn connected(&mut self, ctx: &mut Context<'_, Self::Message>, stream: StreamId) {}

    /// Bytes arrived on a stream, in order. The handle may be read, kept or sent on.
    fn received(&mut self, ctx: &mut Context<'_, Self::Message>, stream: StreamId, data: Buffer) {}

    /// The peer will send no more (FIN). By default the stream is closed once its queue is sent.
    fn ended(&mut self, ctx: &mut Context<'_, Self::Message>, stream: StreamId) {
        ctx.close(stream);
    }

    /// A send was refused as full before, or the protocol asked by
    /// [`Context::notify_when_drained`]; now half of the queue is free.
    fn drained(&mut self, ctx: &mut Context<'_, Self::Message>, stream: StreamId) {}

    /// The stream is gone; its id is invalid after this call. Told once for every stream that was
    /// accepted, connected, or whose connect failed.
    fn closed(&mut self, ctx: &mut Context<'_, Self::Message>, stream: StreamId, reason: Closed) {}

    /// Datagrams arrived on one socket: take what you need, what is left is dropped.
    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, Self::Message>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
    }

    /// A datagram send was refused as full before; now half of the queue is free.
    fn socket_drained(&mut self, ctx: &mut Context<'_, Self::Message>, socket: SocketId) {}

    /// A datagram socket reported an error (`errno`), such as a refused port. It goes on.
    fn socket_error(&mut self, ctx: &mut Context<'_, Self::Message>, socket: SocketId, errno: i32) {
    }

    /// A timer fired: never early. `token` is what [`Context::set_timer`] was given.
    fn timer(&mut self, ctx: &mut Context<'_, Self::Message>, token: u64) {}

    /// A message from another shard; [`CONTROL`] when it comes from the control thread.
    fn message(
        &mut self,
        ctx: &mut Context<'_, Self::Message>,
        from: ShardId,
        message: Self::Message,
    ) {
    }

    /// A graceful stop began: nothing more is accepted, and what is queued is still sent. Streams
    /// end by themselves after this call. One that is still paused then is given nothing more:
    /// resume here what is to be read to its end.
    fn stopping(&mut self, ctx: &mut Context<'_, Self::Message>) {}

    /// The last call. Every stream and socket is closed.
    fn stopped(&mut self) {}
}

/// The sender of a message that comes from no shard.
pub const CONTROL: ShardId = ShardId::MAX;

/// Why a stream is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The protocol closed it, or the peer's end was answered with a close.
    Normally,
    /// The kernel reported this error number: a reset, a timeout, a refused connect.
    Error(i32),
    /// Nothing came or went for the idle timeout.
    Idle,
    /// The peer took nothing for the write-stall timeout.
    Stalled,
    /// The engine is stopping.
    Stopping,
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Normally => f.write_str("closed"),
            Self::Error(errno) => f.write_str(error_name(*errno)),
            Self::Idle => f.write_str("idle for too long"),
            Self::Stalled => f.write_str("peer stopped reading"),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}

/// The usual short words for an error number, for counters and reports.
#[must_use]
pub fn error_name(errno: i32) -> &'static str {
    match errno {
        libc::ECONNREFUSED => "connection refused",
        libc::ECONNRESET => "connection reset",
        libc::ECONNABORTED => "connection aborted",
        libc::EPIPE => "broken pipe",
        libc::ETIMEDOUT => "timed out",
        libc::EHOSTUNREACH => "no route to host",
        libc::ENETUNREACH => "network unreachable",
        libc::EADDRNOTAVAIL => "no free local port or address",
        libc::EADDRINUSE => "address in use",
        libc::EMFILE => "too many open files (process)",
        libc::ENFILE => "too many open files",
        libc::ENOBUFS => "no buffer space",
        libc::ENOMEM => "out of memory",
        libc::ECANCELED => "cancelled",
        libc::EMSGSIZE => "message too long",
        libc::EACCES => "permission denied",
        libc::EPERM => "operation not permitted",
        libc::EINVAL => "invalid argument",
        libc::ENOENT => "no such file",
        libc::EIO => "input/output error",
        libc::EAGAIN => "try again",
        _ => "other error",
    }
}

/// The answer to a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a full queue needs a policy: pause, drop or close"]
pub enum Sent {
    /// Queued: it goes out at the end of this turn.
    Queued,
    /// A bound was hit and nothing was queued; `drained` will tell when there is room.
    Full,
    /// The stream or socket is closed.
    Closed,
}

impl Sent {
    /// Whether the send was queued.
    #[must_use]
    pub fn is_queued(self) -> bool {
        self == Self::Queued
    }

    /// Whether a bound was hit.
    #[must_use]
    pub fn is_full(self) -> bool {
        self == Self::Full
    }
}
