//! What a protocol may do: the handle that every handler is given.

use std::io;
use std::net::SocketAddr;

use crate::driver::{Close, Connect, Multicast, Open};
use crate::ids::{ServiceId, ShardId, SocketId, StreamId};
use crate::limits::{Dropped, QueueBounds};
use crate::mailbox::Mailbox;
use crate::protocol::Sent;
use crate::shard::Core;
use crate::stream::State;
use crate::timer::TimerId;
use crate::{BufferMut, Closed, Limits, Nanos, Payload, Transmit};

/// Sends that may wait on one datagram socket, whatever their length: empty datagrams have none.
const SOCKET_QUEUE_SENDS_MAX: usize = 65_536;

/// A shard as one of its protocols sees it, for the length of one call.
pub struct Context<'a, M> {
    pub(crate) core: &'a mut Core,
    pub(crate) mailbox: &'a mut Mailbox<M>,
    pub(crate) service: ServiceId,
}

impl<M: Send + 'static> Context<'_, M> {
    /// Monotonic time in nanoseconds, read once when the shard woke up.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.core.now
    }

    /// Monotonic time read at this moment: for protocols that measure. Costs a clock read.
    #[must_use]
    pub fn clock(&mut self) -> Nanos {
        self.core.driver.now()
    }

    /// This shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.core.tables.shard
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.core.shards
    }

    /// The bounds that this shard keeps.
    #[inline]
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.core.tables.limits
    }

    // ---- streams -------------------------------------------------------------------------

    /// Starts a connect; `connected` or `closed` follows. Fails at once when no socket can be
    /// opened.
    ///
    /// # Errors
    /// The error of the system call that failed, such as EMFILE or EADDRNOTAVAIL.
    pub fn connect(&mut self, connect: &Connect) -> io::Result<StreamId> {
        if self.core.stop_begun() {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        self.core
            .driver
            .connect(&mut self.core.tables, self.service, connect)
    }

    /// Queues bytes on a stream; they go out, in order, at the end of this turn. After
    /// [`Context::finish`] the answer is [`Sent::Closed`].
    #[inline]
    pub fn send(&mut self, stream: StreamId, payload: impl Into<Payload>) -> Sent {
        let bounds = self.core.tables.limits.stream_queue();
        self.enqueue(stream, payload.into(), bounds)
    }

    /// [`Context::send`] within bounds of the protocol's own, where they are narrower than the
    /// shard's limits, and within a fair share: a queue may grow only as long as it is shorter than
    /// what is free of the shard's bounds. So some of that always stays free for streams whose
    /// peers do read, however many do not (the dynamic threshold of Choudhury and Hahne, 1998).
    #[inline]
    pub fn send_within(
        &mut self,
        stream: StreamId,
        payload: impl Into<Payload>,
        bounds: QueueBounds,
    ) -> Sent {
        let bounds = self.fair(bounds);
        self.enqueue(stream, payload.into(), bounds)
    }

    /// Drops the oldest payloads of a stream until a [`send_within`](Context::send_within) of
    /// `len` bytes and these bounds is accepted, or no more can be dropped. Never touched is a
    /// payload of which the peer has a part, or that the kernel may be sending: what arrives is
    /// always made of whole payloads. Received buffers and bytes of one send alone may be merged
    /// behind a slow peer's, and then go together: where boundaries matter, send shared bytes.
    ///
    /// A stream that finishes or closes loses nothing. If half of the stream's queue is free after
    /// this, `drained` is not called for sends that were refused before.
    pub fn drop_oldest(&mut self, stream: StreamId, len: usize, bounds: QueueBounds) -> Dropped {
        let bounds = self.fair(bounds);
        let tables = &mut self.core.tables;
        match tables.streams.get(stream) {
            Some(entry) if entry.state == State::Open && !entry.finishing => {}
            _ => return Dropped::default(),
        }
        tables
            .streams
            .drop_oldest(stream.index, len, bounds, &tables.limits)
    }

    /// Drops the newest payloads of a stream whose queue is longer than what is free of the shard's
    /// bounds, until both are the same; one payload always stays. For a protocol whose
    /// [`send_within`](Context::send_within) was refused and that keeps the oldest: the fair share
    /// alone does not shrink queues that became long while there was room, and each that comes
    /// later may take half of what is left, until there is nothing for those who do read.
    ///
    /// A stream that finishes or closes loses nothing.
    pub fn yield_share(&mut self, stream: StreamId) -> Dropped {
        let tables = &mut self.core.tables;
        match tables.streams.get(stream) {
            Some(entry) if entry.state == State::Open && !entry.finishing => {}
            _ => return Dropped::default(),
        }
        tables.streams.yield_share(stream.index, &tables.limits)
    }

    /// Bytes that a [`send_within`](Context::send_within) these bounds would accept now, beside what
    /// waits already: for a protocol that holds on before anything is refused. A message larger
    /// than that still goes when nothing waits before it and the shard has room.
    #[inline]
    #[must_use]
    pub fn room_within(&mut self, stream: StreamId, bounds: QueueBounds) -> usize {
        let bounds = self.fair(bounds);
        if self.queued_messages(stream) >= bounds.messages_max {
            return 0;
        }
        bounds.bytes_max.saturating_sub(self.queued_bytes(stream))
    }

    /// These bounds, the shard's limits for one stream and what is free in the shard, whichever is
    /// least.
    #[inline]
    fn fair(&self, bounds: QueueBounds) -> QueueBounds {
        let tables = &self.core.tables;
        let room = tables.streams.room(&tables.limits);
        let bytes_max = bounds.bytes_max.min(tables.limits.stream_queue_bytes_max);
        QueueBounds {
            bytes_max: bytes_max.min(room.bytes_max),
            messages_max: bounds.messages_max.min(room.messages_max),
        }
    }

    #[inline]
    fn enqueue(&mut self, stream: StreamId, payload: Payload, bounds: QueueBounds) -> Sent {
        let tables = &mut self.core.tables;
        match tables.streams.get(stream) {
            Some(entry) if entry.state == State::Open && !entry.finishing => {}
            _ => return Sent::Closed,
        }
        if payload.is_empty() {
            return Sent::Queued;
        }
        let (limits, active) = (&tables.limits, tables.active);
        if tables
            .streams
            .enqueue(stream.index, payload, limits, bounds, active)
        {
            Sent::Queued
        } else {
            tables.metrics.services[usize::from(self.service)]
                .send_full
                .add(1);
            Sent::Full
        }
    }

    /// Bytes that wait to be sent on a stream.
    #[inline]
    #[must_use]
    pub fn queued_bytes(&mut self, stream: StreamId) -> usize {
        let entry = self.core.tables.streams.get(stream);
        entry
            .and_then(|entry| entry.queue.as_ref())
            .map_or(0, |queue| queue.bytes)
    }

    /// Payloads that wait to be sent on a stream, one of which a part was sent included.
    #[inline]
    #[must_use]
    pub fn queued_messages(&mut self, stream: StreamId) -> usize {
        let entry = self.core.tables.streams.get(stream);
        entry
            .and_then(|entry| entry.queue.as_ref())
            .map_or(0, |queue| queue.chunks.len())
    }

    /// Asks for `drained` once half of the stream's queue is free, as if a send had been refused:
    /// for a protocol that pauses before the bound is hit. `false` when nothing is queued, and
    /// then `drained` is not called.
    pub fn notify_when_drained(&mut self, stream: StreamId) -> bool {
        let entry = self.core.tables.streams.get(stream);
        let Some(queue) = entry.and_then(|entry| entry.queue.as_mut()) else {
            return false;
        };
        queue.was_full = true;
        true
    }

    /// Stops reading a stream: the peer's sends fill its TCP window and then wait. Nothing more is
    /// given to `received` until [`Context::resume`]. A stop reads what is paused when it begins to
    /// its end, and throws that away.
    pub fn pause(&mut self, stream: StreamId) {
        self.core.pause(stream);
    }

    /// Reads a paused stream again.
    pub fn resume(&mut self, stream: StreamId) {
        self.core.resume(stream);
    }

    /// Sends what is queued, then FIN, and keeps reading until the peer ends too. A send after
    /// this is answered [`Sent::Closed`].
    pub fn finish(&mut self, stream: StreamId) {
        self.core.finish(stream);
    }

    /// Sends what is queued and closes. Nothing more is received; `closed` follows.
    ///
    /// If the peer is still sending, its unread bytes make the kernel answer with a reset, which
    /// may overtake the last bytes that we sent (RFC 1122 §4.2.2.13). A protocol that has the last
    /// word uses [`Context::finish`] and closes when the peer ends.
    pub fn close(&mut self, stream: StreamId) {
        self.core.close(stream, Closed::Normally);
    }

    /// Drops what is queued and resets the connection. `closed` follows.
    pub fn reset(&mut self, stream: StreamId) {
        self.core.take_down(stream, Close::Reset, Closed::Normally);
    }

    /// A word of the protocol's own, kept with the stream at no extra memory.
    #[must_use]
    pub fn tag(&mut self, stream: StreamId) -> u64 {
        self.core
            .tables
            .streams
            .get(stream)
            .map_or(0, |entry| entry.tag)
    }

    /// Sets the stream's word.
    pub fn set_tag(&mut self, stream: StreamId, tag: u64) {
        if let Some(entry) = self.core.tables.streams.get(stream) {
            entry.tag = tag;
        }
    }

    // ---- datagrams -----------------------------------------------------------------------

    /// Opens a datagram socket. Refused (ESHUTDOWN) once a stop has begun.
    ///
    /// # Errors
    /// The error of the system call that failed.
    pub fn open(&mut self, open: &Open) -> io::Result<SocketId> {
        if self.core.stop_begun() {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        self.core
            .driver
            .open_socket(&mut self.core.tables, self.service, open, None)
    }

    /// Opens a datagram socket that sends to a multicast group or receives from one. Closing it
    /// leaves the group. Refused (ESHUTDOWN) once a stop has begun.
    ///
    /// # Errors
    /// The error of the system call that failed; see [`Multicast::probe`].
    pub fn open_multicast(&mut self, open: &Open, multicast: &Multicast) -> io::Result<SocketId> {
        if self.core.stop_begun() {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        let core = &mut *self.core;
        core.driver
            .open_socket(&mut core.tables, self.service, open, Some(multicast))
    }

    /// The datagram sockets that the engine bound for this service on this shard, as
    /// (endpoint, socket).
    pub fn bound_sockets(&mut self) -> Vec<(u16, SocketId)> {
        let service = self.service;
        let sockets = &mut self.core.tables.sockets;
        (0..sockets.len())
            .filter_map(|index| {
                let id = sockets.id(index);
                let entry = sockets.get(id)?;
                (entry.service == service).then_some(())?;
                Some((entry.endpoint?, id))
            })
            .collect()
    }

    /// The local address of a socket.
    #[must_use]
    pub fn local_address(&mut self, socket: SocketId) -> Option<std::net::SocketAddr> {
        self.core
            .tables
            .sockets
            .get(socket)
            .map(|entry| entry.local)
    }

    /// Queues datagrams; they go out at the end of this turn, equal ones to one peer as one send.
    #[inline]
    pub fn send_datagrams(&mut self, socket: SocketId, transmit: Transmit) -> Sent {
        let tables = &mut self.core.tables;
        let len = transmit.data.len();
        let queued_bytes = tables.streams.queued_bytes;
        let Some(entry) = tables.sockets.get(socket) else {
            return Sent::Closed;
        };
        let limits = &tables.limits;
        let full = entry.queue_bytes > 0 && entry.queue_bytes + len > limits.socket_queue_bytes_max
            || queued_bytes > 0 && queued_bytes + len > limits.shard_queue_bytes_max
            || entry.queue.len() >= SOCKET_QUEUE_SENDS_MAX;
        if full {
            if !entry.queue.is_empty() {
                entry.was_full = true;
            } else if !std::mem::replace(&mut entry.waiting, true) {
                tables.sockets.waiting.push(socket);
            }
            tables.metrics.services[usize::from(self.service)]
                .send_full
                .add(1);
            return Sent::Full;
        }
        tables.sockets.enqueue(socket.index, transmit);
        tables.streams.queued_bytes += len;
        Sent::Queued
    }

    /// Sets the differentiated services code point (0 to 63, RFC 2474) of all that a socket sends;
    /// the ECN bits beside it are each [`Transmit`]'s own.
    pub fn set_socket_dscp(&mut self, socket: SocketId, dscp: u8) {
        if let Some(entry) = self.core.tables.sockets.get(socket) {
            entry.dscp = dscp & 0x3f;
        }
    }

    /// Whether equal datagrams leave a socket as one send. `false` once its path has refused that,
    /// as when a datagram is larger than the path's MTU: each is then sent by itself, and may be
    /// fragmented.
    #[must_use]
    pub fn is_segmented(&mut self, socket: SocketId) -> bool {
        let entry = self.core.tables.sockets.get(socket);
        entry.is_some_and(|entry| !entry.no_gso)
    }

    /// Has each datagram of a socket sent by itself, or equal ones as one send again.
    pub fn set_segmented(&mut self, socket: SocketId, on: bool) {
        if let Some(entry) = self.core.tables.sockets.get(socket) {
            entry.no_gso = !on;
        }
    }

    /// Stops or starts receiving on a datagram socket.
    pub fn set_socket_reading(&mut self, socket: SocketId, on: bool) {
        let Some(entry) = self.core.tables.sockets.get(socket) else {
            return;
        };
        if entry.paused == on {
            entry.paused = !on;
            self.core
                .driver
                .read_socket(&mut self.core.tables, socket.index, on);
        }
    }

    /// Fixes the peer of a datagram socket (connect(2)): the kernel then looks for the way once and
    /// not for each datagram, drops what others send, and tells errors of the path by
    /// [`Protocol::socket_error`](crate::Protocol::socket_error). Sends may name the peer or not.
    ///
    /// It only makes sends cheaper: a socket that cannot be connected stays as it is.
    pub fn connect_socket(&mut self, socket: SocketId, peer: SocketAddr) {
        let socket_of = self.core.tables.sockets.get(socket);
        if socket_of.is_some_and(|entry| entry.ipv6 == peer.is_ipv6()) {
            self.core
                .driver
                .connect_socket(&mut self.core.tables, socket.index, peer);
        }
    }

    /// Closes a datagram socket. What waits in its queue is dropped.
    pub fn close_socket(&mut self, socket: SocketId) {
        if self.core.tables.sockets.get(socket).is_some() {
            self.core
                .driver
                .close_socket(&mut self.core.tables, socket.index);
        }
    }

    /// A word of the protocol's own, kept with the socket.
    #[must_use]
    pub fn socket_tag(&mut self, socket: SocketId) -> u64 {
        self.core
            .tables
            .sockets
            .get(socket)
            .map_or(0, |entry| entry.tag)
    }

    /// Sets the socket's word.
    pub fn set_socket_tag(&mut self, socket: SocketId, tag: u64) {
        if let Some(entry) = self.core.tables.sockets.get(socket) {
            entry.tag = tag;
        }
    }

    /// How many datagrams of `stride` bytes one send may carry on this host.
    #[must_use]
    pub fn segments_max(&self, stride: usize) -> usize {
        self.core.driver.segments_max(stride)
    }

    /// A pooled buffer of 64 KiB to fill in place and send, or `None` while all are in use. It has
    /// the bytes of its last use; see [`BufferMut::mark`].
    #[must_use]
    pub fn fill(&mut self) -> Option<BufferMut> {
        let mut buffer = self.core.driver.fill()?;
        buffer.claim(self.service);
        Some(buffer)
    }

    // ---- time ----------------------------------------------------------------------------

    /// Calls `timer(token)` at `deadline`: never early, late by what the kernel takes to wake the
    /// shard. Precise enough to pace by.
    pub fn set_timer(&mut self, deadline: Nanos, token: u64) -> TimerId {
        self.core.timers.insert(deadline, (self.service, token))
    }

    /// Cancels a timer; `false` when it has fired.
    pub fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.core.timers.cancel(timer)
    }

    /// Keeps the shard from sleeping until a time, at the cost of its CPU: timers that are due until
    /// then fire at once, where the kernel would wake it late. What was asked for before holds too.
    pub fn stay_awake_until(&mut self, until: Nanos) {
        self.core.awake_until = self.core.awake_until.max(until);
    }

    // ---- other shards --------------------------------------------------------------------

    /// Posts a message to this service on another shard (or on this one), which is woken at the end
    /// of this turn if it sleeps.
    ///
    /// # Errors
    /// Gives the message back when the receiver's mailbox is full.
    pub fn post(&mut self, to: ShardId, message: M) -> Result<(), M> {
        let counters = &self.core.tables.metrics.services[usize::from(self.service)];
        self.mailbox.post_unrung(to, message).map_err(|full| {
            counters.messages_refused.add(1);
            full.message
        })
    }

    /// Whether a graceful stop has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.core.stop_begun()
    }

    /// Asks the whole engine to stop gracefully: a load run that has finished, say.
    pub fn stop_engine(&mut self) {
        self.core.request_stop();
    }
}
