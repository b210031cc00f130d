//! The kernel interface of a shard: three drivers behind one trait.
//!
//! A driver turns the shard's wishes (listen, connect, read, send, close, wait) into system calls
//! and the kernel's answers into events. It keeps its per-stream state in the shard's tables.
//! It never calls a protocol, never decides a policy and never blocks except in its wait.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::datagram::Sockets;
use crate::ids::{ListenerId, ServiceId, ShardId};
use crate::mailbox::Waker;
use crate::metrics::ShardMetrics;
use crate::stream::{State, Streams};
use crate::sys::socket::UDP_PAYLOAD_MAX;
use crate::{Buffer, BufferMut, Datagram, Limits, Nanos, SocketId, StreamId};

pub mod epoll;
pub mod sim;
pub mod uring;

/// Which driver a shard uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// io_uring.
    Uring,
    /// epoll, with recvmmsg and sendmmsg.
    Epoll,
    /// The seeded simulator.
    Sim,
}

impl std::fmt::Display for DriverKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
            Self::Sim => "sim",
        })
    }
}

/// A stream address: internet or Unix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Ip(SocketAddr),
    /// A Unix stream socket's path.
    Unix(PathBuf),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A socket that was bound before the shards started, or one that the simulator makes itself.
#[derive(Debug)]
pub(crate) enum BoundSocket {
    Os(OwnedFd),
    Simulated,
}

impl BoundSocket {
    /// The descriptor, for a driver that is one of the kernel's.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Os(fd) => Ok(fd),
            Self::Simulated => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A listening socket of one shard.
#[derive(Debug)]
pub(crate) struct BoundListener {
    pub(crate) id: ListenerId,
    pub(crate) address: Address,
    pub(crate) socket: BoundSocket,
    /// Whether the protocol wants to know the address of each peer (costs a system call each).
    pub(crate) wants_peer: bool,
}

/// A datagram socket of one shard.
#[derive(Debug)]
pub(crate) struct BoundDatagramSocket {
    pub(crate) service: ServiceId,
    /// `None` for a socket opened by the protocol at run time.
    pub(crate) endpoint: Option<u16>,
    pub(crate) local: SocketAddr,
    pub(crate) socket: BoundSocket,
}

/// A stream to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Where to.
    pub to: Address,
    /// The local address to connect from; port 0 lets the kernel choose late
    /// (IP_BIND_ADDRESS_NO_PORT), so that a port may serve several destinations.
    pub from: Option<SocketAddr>,
}

/// A datagram socket to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The local address; port 0 for any.
    pub local: SocketAddr,
    /// Connect to this peer: only its datagrams arrive, and its ICMP errors are reported.
    pub peer: Option<SocketAddr>,
}

/// What makes a datagram socket one that sends to a multicast group, or receives from one.
///
/// A receiver binds to the group's own address and port (`Open::local`) and joins it; any number of
/// sockets may do so, and each is given every datagram. A sender binds to any port and connects to
/// the group (`Open::peer`), so that the kernel looks for the way once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Multicast {
    /// Index of the interface to send and join on; 0 lets the kernel choose by its routes.
    pub interface: u32,
    /// The group to join.
    pub join: Option<IpAddr>,
    /// How many routers a datagram may pass, and one more: IPv4's TTL, IPv6's hop limit. 1 stays on
    /// the link.
    pub hops: u8,
    /// Whether receivers on this host get what is sent.
    pub to_own_host: bool,
}

impl Default for Multicast {
    fn default() -> Self {
        Self {
            interface: 0,
            join: None,
            hops: 1,
            to_own_host: true,
        }
    }
}

impl Multicast {
    /// Opens such a socket and closes it again: whether the interface takes part in multicast, the
    /// group can be joined, and there is a way to it.
    ///
    /// # Errors
    /// The error of the system call that failed: ENODEV for an interface that is not there or takes
    /// no part, ENETUNREACH where no route leads to the group, ENOBUFS past
    /// `net.ipv4.igmp_max_memberships` groups of one socket.
    pub fn probe(&self, open: &Open) -> io::Result<()> {
        let buffers = Limits::default().datagram_socket_buffers;
        crate::sys::socket::open_datagram(
            open,
            Some(self),
            crate::sys::socket::Share::Alone,
            buffers,
        )
        .map(drop)
    }
}

/// How a stream is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Send what is queued, then FIN.
    Graceful,
    /// Drop what is queued and reset the connection.
    Reset,
}

/// What happened since the last wait.
#[derive(Debug)]
pub(crate) enum Event {
    /// A stream was accepted (state `Open`, already in the table). It is not read before
    /// [`Driver::read`] says so.
    Accepted {
        listener: ListenerId,
        stream: StreamId,
        peer: Option<SocketAddr>,
    },
    /// Accepting failed with this error number and has stopped until [`Driver::accept`].
    AcceptFailed { listener: ListenerId, errno: i32 },
    /// A connect succeeded; the stream is open and reading.
    Connected { stream: StreamId },
    /// Bytes arrived.
    Received { stream: StreamId, data: Buffer },
    /// The peer will send no more.
    Ended { stream: StreamId },
    /// A queue that was full has room again.
    Drained { stream: StreamId },
    /// The queue of a draining or finishing stream is empty: it can be closed, or ended by FIN.
    Flushed { stream: StreamId },
    /// The stream (or its connect) failed; the driver awaits [`Driver::close`].
    Failed { stream: StreamId, errno: i32 },
    /// Datagrams arrived.
    Datagram {
        socket: SocketId,
        datagram: Datagram,
    },
    /// A socket whose queue was full has room again.
    SocketDrained { socket: SocketId },
    /// The socket reported an error, such as a refused datagram; it goes on.
    SocketError { socket: SocketId, errno: i32 },
}

/// What shard and driver share: the tables, the bounds and the counters.
pub(crate) struct Tables {
    pub(crate) shard: ShardId,
    pub(crate) streams: Streams,
    pub(crate) sockets: Sockets,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<ShardMetrics>,
    /// Now, in activity ticks (see [`crate::stream::ACTIVITY_TICK`]).
    pub(crate) active: u32,
}

impl Tables {
    pub(crate) fn new(shard: ShardId, limits: Limits, metrics: Arc<ShardMetrics>) -> Self {
        Self {
            shard,
            streams: Streams::new(),
            sockets: Sockets::default(),
            limits,
            metrics,
            active: 0,
        }
    }

    /// Notes bytes that the kernel took from a stream's queue, and tells the shard what follows.
    #[inline]
    pub(crate) fn stream_sent(
        &mut self,
        index: u32,
        count: usize,
        events: &mut Vec<Event>,
    ) -> bool {
        let active = self.active;
        let stream = self.streams.at(index);
        stream.active = active;
        if let Some(queue) = &mut stream.queue {
            queue.progress = active;
        }
        let (state, service, finishing) = (stream.state, stream.service, stream.finishing);
        self.metrics.services[usize::from(service)]
            .sent_bytes
            .add(count as u64);
        let progress = self.streams.sent(index, count, &self.limits);
        if progress.room && state == State::Open {
            events.push(Event::Drained {
                stream: self.streams.id(index),
            });
        }
        if progress.empty && (state == State::Draining || finishing) {
            events.push(Event::Flushed {
                stream: self.streams.id(index),
            });
        }
        progress.empty
    }

    /// Calls `send` for streams that have something to send, in the order in which they got it, but
    /// for at most [`STREAMS_PER_FLUSH_MAX`].
    #[inline]
    pub(crate) fn flush_streams(&mut self, mut send: impl FnMut(&mut Self, u32)) {
        let count = self.streams.dirty.len().min(STREAMS_PER_FLUSH_MAX);
        for _ in 0..count {
            let Some(index) = self.streams.dirty.pop_front() else {
                return;
            };
            let stream = self.streams.at(index);
            stream.dirty = false;
            if matches!(stream.state, State::Open | State::Draining) {
                send(self, index);
            }
        }
    }

    /// Calls `send` for every datagram socket that has something to send and is not waiting for
    /// room.
    #[inline]
    pub(crate) fn flush_sockets(&mut self, mut send: impl FnMut(&mut Self, u32)) {
        let mut dirty = std::mem::take(&mut self.sockets.dirty);
        for index in dirty.drain(..) {
            let socket = self.sockets.at(index);
            socket.dirty = false;
            if socket.open && !socket.blocked {
                send(self, index);
                self.sockets.rest(index);
            }
        }
        debug_assert!(self.sockets.dirty.is_empty(), "a send queues nothing");
        self.sockets.dirty = dirty;
    }

    /// Reports that a stream has failed: once, for which `failed` is its bit in the driver's byte.
    #[cold]
    pub(crate) fn stream_failed(
        &mut self,
        index: u32,
        failed: u8,
        errno: i32,
        events: &mut Vec<Event>,
    ) {
        let id = self.streams.id(index);
        let stream = self.streams.at(index);
        let live = !matches!(stream.state, State::Closing | State::Free);
        if live && stream.driver & failed == 0 {
            stream.driver |= failed;
            events.push(Event::Failed { stream: id, errno });
        }
    }

    /// A datagram socket closes: what waits in its queue is dropped, and counted as dropped.
    pub(crate) fn close_socket(&mut self, index: u32) {
        let socket = self.sockets.at(index);
        socket.open = false;
        let (mut datagrams, mut bytes) = (0, 0);
        for transmit in socket.queue.drain(..) {
            datagrams += transmit.count();
            bytes += transmit.data.len();
        }
        debug_assert_eq!(
            bytes, socket.queue_bytes,
            "nothing is sent between two waits"
        );
        socket.queue_bytes = 0;
        self.streams.queued_bytes -= bytes;
        self.transmit_done(index, datagrams, bytes, false);
    }

    /// A socket has room again.
    pub(crate) fn unblock_socket(&mut self, index: u32) {
        let socket = self.sockets.at(index);
        socket.blocked = false;
        if !socket.queue.is_empty() {
            self.sockets.mark_dirty(index);
        }
    }

    /// Notes a transmit that left a socket's queue: sent, or dropped with an error.
    pub(crate) fn transmit_done(&mut self, index: u32, datagrams: usize, bytes: usize, sent: bool) {
        let service = usize::from(self.sockets.at(index).service);
        let counters = &self.metrics.services[service];
        if sent {
            counters.sent_datagrams.add(datagrams as u64);
            counters.sent_datagram_bytes.add(bytes as u64);
        } else {
            counters.dropped_datagrams.add(datagrams as u64);
        }
    }

    /// Takes bytes that left a socket's queue out of the account; tells the shard when a queue
    /// that was full has room.
    pub(crate) fn socket_room(&mut self, index: u32, bytes: usize, events: &mut Vec<Event>) {
        self.streams.queued_bytes -= bytes;
        let low_mark = self.limits.socket_queue_bytes_max / 2;
        let socket = self.sockets.at(index);
        socket.queue_bytes -= bytes;
        if socket.was_full && socket.queue_bytes <= low_mark {
            socket.was_full = false;
            events.push(Event::SocketDrained {
                socket: self.sockets.id(index),
            });
        }
    }
}

/// How many datagrams of a size one send may carry: what the kernel cuts at most, and what fits.
#[inline]
pub(crate) fn segments_that_fit(stride: usize, kernel_max: usize) -> usize {
    (UDP_PAYLOAD_MAX / stride.max(1)).clamp(1, kernel_max)
}

/// Files that are left for everything that is not a stream: listeners, rings, logs, metrics.
const FILES_SLACK: usize = 512;
/// However low the file limit, a shard tries to serve this many.
const FILE_STREAMS_MIN: usize = 64;

/// Streams that a process holds where each of them is one of its files. Under a low limit only a
/// quarter of the files is left for the rest, so that most of them still serve.
pub(crate) fn streams_as_files(files: usize) -> usize {
    (files - FILES_SLACK.min(files / 4)).max(FILE_STREAMS_MIN)
}

/// How long [`Driver::wait`] may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Take what is there and return.
    Poll,
    /// Until something happens or this moment comes.
    Until(Nanos),
    /// Until this moment, or until much has happened.
    Gather(Nanos),
    /// Until something happens.
    Forever,
}

impl Wait {
    /// The same wait, ended by that moment.
    pub(crate) fn not_past(self, end: Nanos) -> Self {
        match self {
            Self::Poll => Self::Poll,
            Self::Until(deadline) => Self::Until(deadline.min(end)),
            Self::Gather(deadline) => Self::Gather(deadline.min(end)),
            Self::Forever => Self::Until(end),
        }
    }
}

/// Streams sent to before the driver looks for events again. What arrives while many are sent to, as in
/// a chat, joins what has not left yet, and nobody waits for a thousand sends; far fewer would make the
/// system calls cost.
pub(crate) const STREAMS_PER_FLUSH_MAX: usize = 128;

/// One shard's kernel. All calls come from the shard's own thread.
///
/// Contract:
/// - Streams are created in the table by the driver (accept, adopt) or by [`Driver::connect`], and
///   removed from it by the driver when the last request of a closed stream has ended.
/// - `tables.streams.dirty` and `tables.sockets.dirty` list what has something to send; `wait`
///   sends it first, to so many streams as [`Tables::flush_streams`] says: the shard does not let
///   it sleep while there are more. For each, clear the `dirty` flag and the list. Every byte accepted by the
///   kernel goes through [`Tables::stream_sent`]. What the kernel did not take stays queued,
///   unpinned ([`crate::stream::Streams::unpin`]), and goes on when there is room, in order.
/// - A stream that fails is reported once by [`Event::Failed`]; nothing is reported for a stream
///   after [`Driver::close`].
/// - After `accept` failed, the driver waits for [`Driver::accept`] to start again.
pub(crate) trait Driver {
    /// Monotonic time, ns; the simulator's is virtual.
    fn now(&self) -> Nanos;

    /// A handle with which any thread ends this driver's wait. Called once.
    fn waker(&mut self) -> io::Result<Arc<dyn Waker>>;

    /// Streams that this driver can hold at once.
    fn capacity(&self) -> usize;

    /// Takes a listening socket and starts accepting.
    fn listen(&mut self, tables: &mut Tables, listener: BoundListener) -> io::Result<()>;

    /// Starts (again) or stops accepting on every listener of a service, or of all.
    fn accept(&mut self, tables: &mut Tables, on: bool);

    /// Takes a bound datagram socket and starts receiving.
    fn add_socket(
        &mut self,
        tables: &mut Tables,
        socket: BoundDatagramSocket,
    ) -> io::Result<SocketId>;

    /// Opens a datagram socket at run time and starts receiving.
    fn open_socket(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        open: &Open,
        multicast: Option<&Multicast>,
    ) -> io::Result<SocketId>;

    /// Fixes the peer of a datagram socket; one that cannot be connected stays as it is.
    fn connect_socket(&mut self, tables: &mut Tables, index: u32, peer: SocketAddr);

    /// Closes a datagram socket: what waits in its queue is dropped and counted, by
    /// [`Tables::close_socket`]. The entry leaves the table
    /// when the kernel has let go of it.
    fn close_socket(&mut self, tables: &mut Tables, index: u32);

    /// Starts or stops receiving on a datagram socket.
    fn read_socket(&mut self, tables: &mut Tables, index: u32, on: bool);

    /// Starts a connect. The stream is in the table in state `Connecting`.
    fn connect(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        connect: &Connect,
    ) -> io::Result<StreamId>;

    /// Starts or stops reading a stream.
    fn read(&mut self, tables: &mut Tables, index: u32, on: bool);

    /// Tells the peer that nothing more will come (FIN) and goes on reading.
    fn finish(&mut self, tables: &mut Tables, index: u32);

    /// Takes a stream down; its state is `Closing`. Unsent bytes are dropped. Nothing more is
    /// reported for it.
    fn close(&mut self, tables: &mut Tables, index: u32, how: Close);

    /// Passes a stream that was just accepted, and is not read yet, on to another shard: there it
    /// appears as accepted. `false` when it cannot, and then nothing has changed.
    fn hand_on(
        &mut self,
        tables: &mut Tables,
        index: u32,
        listener: ListenerId,
        to: ShardId,
    ) -> bool;

    /// A pooled buffer for a protocol to fill, if one is free.
    fn fill(&mut self) -> Option<BufferMut>;

    /// How many datagrams of a size one send may carry at most.
    fn segments_max(&self, stride: usize) -> usize;

    /// Sends what is dirty, then waits; appends to `events`.
    fn wait(&mut self, tables: &mut Tables, wait: Wait, events: &mut Vec<Event>) -> io::Result<()>;

    /// Requests, buffers and descriptors still held: for leak checks at the end of tests.
    fn held(&self) -> Held;
}

/// What a driver still holds; all zero when everything was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Buffers that are neither free nor lent to the kernel.
    pub buffers: usize,
    /// Sockets other than listeners.
    pub descriptors: usize,
}

/// How long to wait before accepting again after files or memory ran out: the mean of the random
/// 0.5–2 s that keeps many shards from trying at the same moment.
pub(crate) const ACCEPT_PAUSE: std::ops::Range<Duration> =
    Duration::from_millis(500)..Duration::from_millis(2000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_under_a_limit_of_files() {
        for (files, streams) in [
            (0, 64),
            (60, 64),
            (256, 192),
            (512, 384),
            (1024, 768),
            (2048, 1536),
            (20_000, 19_488),
        ] {
            assert_eq!(streams_as_files(files), streams, "{files} files");
        }
    }

    #[test]
    fn a_flush_ends_before_a_fan_out_does_and_loses_nobody() {
        let limits = Limits::default();
        let bounds = limits.stream_queue();
        let mut tables = Tables::new(0, limits.clone(), Arc::new(ShardMetrics::new(1)));
        let streams = STREAMS_PER_FLUSH_MAX * 2 + 7;
        for slot in 0..streams {
            let id = tables.streams.insert(0, slot as i32, State::Open, 0);
            let queued = vec![0; 1].into();
            assert!(tables.streams.enqueue(id.index, queued, &limits, bounds, 0));
        }
        let mut sent = Vec::new();
        for expected in [STREAMS_PER_FLUSH_MAX, STREAMS_PER_FLUSH_MAX, 7, 0] {
            let before = sent.len();
            tables.flush_streams(|_, index| sent.push(index));
            assert_eq!(sent.len() - before, expected);
        }
        assert!(sent.is_sorted(), "in the order in which they got something");
        assert_eq!(sent.len(), streams);
    }
}
