//! The epoll driver: for hosts that forbid io_uring, and as fast as readiness allows.
//!
//! Streams are watched edge-triggered. A receive that did not fill its room has taken everything,
//! and the next byte is a new edge: so a message costs one receive and one send, pausing costs no
//! call at all, and the kernel need not look at a descriptor again that had been ready before.
//! What that asks for in return is kept here: an edge that comes while a stream is paused is
//! remembered, and a stream that was not read to its end is read on in the next turn.
//! Room to send is watched only for what has once been refused it. Datagrams go in batches.

mod inbox;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use self::inbox::{Inbox, Received};
use super::{
    Address, BoundDatagramSocket, BoundListener, Close, Connect, Driver, Event, Held, Open, Tables,
    Wait, segments_that_fit, streams_as_files,
};
use crate::datagram::{Transmit, segments};
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::mailbox::Waker;
use crate::stream::State;
use crate::sys::batch::{Outgoing, ReceiveBatch, SEND_BATCH, SendBatch};
use crate::sys::buffer::Pool;
use crate::sys::eventfd::EventFdWaker;
use crate::sys::io as calls;
use crate::sys::poll::Poller;
use crate::sys::socket::{self, Share};
use crate::time::monotonic_now;
use crate::{BufferMut, Limits, Nanos};

/// One buffer that a protocol fills.
const FILL_BUFFER_LEN: usize = 64 << 10;
/// Bytes taken from one stream before the others have their turn.
const STREAM_TURN_BYTES: usize = 64 << 10;
/// Batches taken from one datagram socket before the others have their turn.
const SOCKET_TURN_BATCHES: usize = 4;
/// Connections taken from one listener before the streams have their turn.
const ACCEPTS_PER_TURN: usize = 256;
/// Pieces of one stream's queue in one send: what the kernel takes at most (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const RDHUP: u32 = libc::EPOLLRDHUP as u32;
const HUP: u32 = libc::EPOLLHUP as u32;
const ERR: u32 = libc::EPOLLERR as u32;
const EDGE: u32 = libc::EPOLLET as u32;

/// Bits of the driver byte of streams and sockets.
mod bit {
    /// In the interest list.
    pub(super) const WATCHED: u8 = 1;
    /// Watched for room to send, too.
    pub(super) const WATCHED_OUT: u8 = 2;
    /// Something may wait to be received.
    pub(super) const READABLE: u8 = 4;
    /// In the list of what is received from in the next turn.
    pub(super) const LISTED: u8 = 8;
    /// The peer's end has been reported.
    pub(super) const ENDED: u8 = 16;
    /// The failure has been reported.
    pub(super) const FAILED: u8 = 32;
    /// A Unix socket: it reports room after every message that its peer takes, so room is
    /// watched only while something waits for it.
    pub(super) const UNIX: u8 = 64;
    /// Its last edge (an end or an error) has come: only reading to the end tells it all.
    pub(super) const LAST_EDGE: u8 = 128;
}

/// What a descriptor was registered for: in the top byte of its word.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Stream,
    Socket,
    Listener,
    Wake,
}

/// A registration's word: 8 bits kind, 24 bits generation, 32 bits index. The generation keeps
/// what was reported for a closed stream away from the next one in its place.
#[inline]
fn word(kind: Kind, generation: u32, index: u32) -> u64 {
    (kind as u64) << 56 | u64::from(generation & 0xff_ffff) << 32 | u64::from(index)
}

struct Listener {
    id: ListenerId,
    fd: OwnedFd,
    wants_peer: bool,
    unix: bool,
    watched: bool,
}

/// See the module documentation.
pub(crate) struct Epoll {
    poller: Poller,
    inbox: Inbox,
    fill: Pool,
    datagrams: Option<Datagrams>,
    datagram_buffers: u32,
    datagram_socket_buffer_bytes: usize,
    listeners: Vec<Listener>,
    accepting: bool,
    /// The files of streams and of datagram sockets, by index.
    stream_files: Vec<Option<OwnedFd>>,
    socket_files: Vec<Option<OwnedFd>>,
    descriptors: usize,
    /// What is received from in the next turn without another edge.
    readable: Vec<StreamId>,
    readable_sockets: Vec<SocketId>,
    /// Outcomes of calls that were made between two waits.
    pending: Vec<Event>,
    /// Streams closed since the last wait. Their entries are freed in the next one, so that the
    /// protocol is told of the close while the id still means them.
    closed: Vec<u32>,
    waker: Option<Arc<EventFdWaker>>,
    capacity: usize,
}

/// What receiving and sending datagrams needs; made for the first socket.
struct Datagrams {
    receive: ReceiveBatch,
    send: SendBatch,
    parts: Vec<Part>,
}

/// One message of a send: a part of a transmit at a position of the queue.
struct Part {
    transmit: usize,
    start: usize,
    len: usize,
    datagrams: usize,
}

impl Epoll {
    /// A driver for the current thread.
    pub(crate) fn new(limits: &Limits) -> io::Result<Self> {
        let files = socket::raise_file_limit();
        Ok(Self {
            poller: Poller::new()?,
            inbox: Inbox::new(limits.stream_pool_bytes)?,
            fill: Pool::new(limits.fill_buffers, FILL_BUFFER_LEN)?,
            datagrams: None,
            datagram_buffers: limits.datagram_buffers,
            datagram_socket_buffer_bytes: limits.datagram_socket_buffer_bytes,
            listeners: Vec::new(),
            accepting: true,
            stream_files: Vec::new(),
            socket_files: Vec::new(),
            descriptors: 0,
            readable: Vec::new(),
            readable_sockets: Vec::new(),
            pending: Vec::new(),
            closed: Vec::new(),
            waker: None,
            capacity: streams_as_files(files),
        })
    }

    // ---- accept ----------------------------------------------------------------------------

    fn watch_listener(&mut self, at: usize) -> io::Result<()> {
        let listener = &mut self.listeners[at];
        if !listener.watched {
            // Level-triggered, so that what one turn leaves is reported again; exclusive, so that
            // of several shards on one Unix socket not all wake up for one connection.
            let interest = IN | libc::EPOLLEXCLUSIVE as u32;
            self.poller.add(
                listener.fd.as_raw_fd(),
                interest,
                word(Kind::Listener, 0, at as u32),
            )?;
            listener.watched = true;
        }
        Ok(())
    }

    fn unwatch_listener(&mut self, at: usize) {
        let listener = &mut self.listeners[at];
        if std::mem::take(&mut listener.watched) {
            // It was added, so it can be removed.
            let _ = self.poller.remove(listener.fd.as_raw_fd());
        }
    }

    fn accept_ready(&mut self, tables: &mut Tables, at: usize, events: &mut Vec<Event>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let listener = &self.listeners[at];
            let (id, unix) = (listener.id, listener.unix);
            match calls::accept(listener.fd.as_raw_fd(), listener.wants_peer) {
                Ok((fd, peer)) => {
                    let bits = if unix { bit::UNIX } else { 0 };
                    let stream = self.insert_stream(tables, id.service, fd, State::Open, bits);
                    events.push(Event::Accepted {
                        listener: id,
                        stream,
                        peer,
                    });
                }
                Err(libc::EAGAIN) => return,
                // That connection has failed before we took it, the next may be well.
                Err(
                    libc::ECONNABORTED
                    | libc::EPROTO
                    | libc::EPERM
                    | libc::ENETDOWN
                    | libc::ENOPROTOOPT
                    | libc::EHOSTDOWN
                    | libc::ENONET
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH,
                ) => {}
                Err(errno) => {
                    self.unwatch_listener(at);
                    events.push(Event::AcceptFailed {
                        listener: id,
                        errno,
                    });
                    return;
                }
            }
        }
    }

    fn insert_stream(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        fd: OwnedFd,
        state: State,
        bits: u8,
    ) -> StreamId {
        let id = tables
            .streams
            .insert(service, fd.as_raw_fd(), state, tables.active);
        tables.streams.at(id.index).driver = bits;
        keep(&mut self.stream_files, id.index, fd);
        self.descriptors += 1;
        id
    }

    // ---- streams ---------------------------------------------------------------------------

    /// Adds a stream to the interest list.
    fn watch(&mut self, tables: &mut Tables, id: StreamId, out: bool) -> io::Result<()> {
        let stream = tables.streams.at(id.index);
        let interest = IN | RDHUP | EDGE | if out { OUT } else { 0 };
        self.poller.add(
            stream.slot,
            interest,
            word(Kind::Stream, id.generation, id.index),
        )?;
        stream.driver |= bit::WATCHED | if out { bit::WATCHED_OUT } else { 0 };
        Ok(())
    }

    /// Has a stream received from in the next turn.
    fn list(&mut self, tables: &mut Tables, id: StreamId) {
        let stream = tables.streams.at(id.index);
        if stream.driver & bit::LISTED == 0 {
            stream.driver |= bit::LISTED;
            self.readable.push(id);
        }
    }

    #[inline]
    fn stream_ready(
        &mut self,
        tables: &mut Tables,
        id: StreamId,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        let Some(stream) = tables.streams.get(id) else {
            return;
        };
        if stream.driver & bit::FAILED != 0 {
            return;
        }
        match stream.state {
            State::Open | State::Draining => {}
            State::Connecting => return self.connect_ready(tables, id, flags, events),
            State::Closing | State::Free => return,
        }
        if flags & (IN | RDHUP | HUP | ERR) != 0 {
            stream.driver |= bit::READABLE;
            if flags & (RDHUP | HUP | ERR) != 0 {
                stream.driver |= bit::LAST_EDGE;
            }
            if can_receive(stream) {
                self.receive(tables, id, events);
            } else if flags & ERR != 0 {
                // Nobody reads, so nobody else would notice.
                let errno = self.take_error(id.index);
                if errno != 0 {
                    tables.stream_failed(id.index, bit::FAILED, errno, events);
                }
            }
        }
        if flags & (OUT | HUP | ERR) != 0 {
            self.writable(tables, id, events);
        }
    }

    /// Receives until everything is taken, or the stream has had its turn.
    #[inline]
    fn receive(&mut self, tables: &mut Tables, id: StreamId, events: &mut Vec<Event>) {
        let stream = tables.streams.at(id.index);
        let fd = stream.slot;
        let mut bytes = 0;
        loop {
            match self.inbox.receive(fd) {
                Received::Data { data, filled } => {
                    bytes += data.len();
                    events.push(Event::Received { stream: id, data });
                    if !filled && stream.driver & bit::LAST_EDGE == 0 {
                        break;
                    }
                    if bytes >= STREAM_TURN_BYTES {
                        self.list(tables, id);
                        return;
                    }
                }
                Received::Nothing => break,
                Received::End => {
                    stream.driver |= bit::ENDED;
                    events.push(Event::Ended { stream: id });
                    break;
                }
                Received::Later => {
                    self.list(tables, id);
                    return;
                }
                Received::Failed(errno) => {
                    tables.stream_failed(id.index, bit::FAILED, errno, events);
                    return;
                }
            }
        }
        stream.driver &= !bit::READABLE;
    }

    fn take_error(&self, index: u32) -> i32 {
        self.stream_files[index as usize]
            .as_ref()
            .map_or(0, socket::take_error)
    }

    fn connect_ready(
        &mut self,
        tables: &mut Tables,
        id: StreamId,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        match self.take_error(id.index) {
            0 => self.connected(tables, id, events),
            errno => return tables.stream_failed(id.index, bit::FAILED, errno, events),
        }
        // The same edge may have told of the first bytes.
        self.stream_ready(tables, id, flags & !OUT, events);
    }

    fn connected(&mut self, tables: &mut Tables, id: StreamId, events: &mut Vec<Event>) {
        tables.streams.at(id.index).state = State::Open;
        events.push(Event::Connected { stream: id });
    }

    /// Sends the queue as far as there is room.
    #[inline]
    fn send(&mut self, tables: &mut Tables, index: u32, events: &mut Vec<Event>) {
        loop {
            let stream = tables.streams.at(index);
            let Some(queue) = &stream.queue else { return };
            if queue.in_flight || stream.driver & bit::FAILED != 0 {
                return;
            }
            let (result, bytes) = if queue.chunks.len() == 1 {
                let chunk = queue.chunks[0].bytes();
                (calls::send(stream.slot, chunk), chunk.len())
            } else {
                send_pieces(stream.slot, &queue.chunks)
            };
            match result {
                Ok(sent) => {
                    if tables.stream_sent(index, sent, events) {
                        return;
                    }
                    if sent < bytes {
                        return self.wait_for_room(tables, index, false, events);
                    }
                }
                Err(libc::EAGAIN) => return self.wait_for_room(tables, index, false, events),
                // Memory is short: no edge is promised, so ask for a new one.
                Err(libc::ENOBUFS | libc::ENOMEM) => {
                    return self.wait_for_room(tables, index, true, events);
                }
                Err(errno) => return tables.stream_failed(index, bit::FAILED, errno, events),
            }
        }
    }

    /// The peer is slow: what it waits for must not hold receive buffers of others, and goes on
    /// with the next edge.
    #[cold]
    fn wait_for_room(
        &mut self,
        tables: &mut Tables,
        index: u32,
        ask_again: bool,
        events: &mut Vec<Event>,
    ) {
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        let queue = stream.queue.as_mut().expect("something is left to be sent");
        queue.unpin();
        queue.in_flight = true;
        let result = if stream.driver & bit::WATCHED == 0 {
            self.watch(tables, id, true)
        } else if stream.driver & bit::WATCHED_OUT == 0 || ask_again {
            self.watch_room(tables, id, true)
        } else {
            Ok(())
        };
        if let Err(error) = result {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            tables.stream_failed(index, bit::FAILED, errno, events);
        }
    }

    /// Watches for room to send, or no more.
    fn watch_room(&mut self, tables: &mut Tables, id: StreamId, on: bool) -> io::Result<()> {
        let stream = tables.streams.at(id.index);
        let interest = IN | RDHUP | EDGE | if on { OUT } else { 0 };
        self.poller.modify(
            stream.slot,
            interest,
            word(Kind::Stream, id.generation, id.index),
        )?;
        if on {
            stream.driver |= bit::WATCHED_OUT;
        } else {
            stream.driver &= !bit::WATCHED_OUT;
        }
        Ok(())
    }

    /// There is room again (or an error, which the send will tell).
    fn writable(&mut self, tables: &mut Tables, id: StreamId, events: &mut Vec<Event>) {
        let stream = tables.streams.at(id.index);
        if let Some(queue) = &mut stream.queue
            && std::mem::take(&mut queue.in_flight)
        {
            self.send(tables, id.index, events);
        }
        let stream = tables.streams.at(id.index);
        let both = bit::UNIX | bit::WATCHED_OUT;
        if stream.driver & both == both && stream.queue.is_none() {
            // Left as it is it would only wake us more often.
            let _ = self.watch_room(tables, id, false);
        }
    }

    // ---- datagrams -------------------------------------------------------------------------

    fn insert_socket(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        fd: OwnedFd,
        local: std::net::SocketAddr,
    ) -> io::Result<SocketId> {
        if self.datagrams.is_none() {
            self.datagrams = Some(Datagrams {
                receive: ReceiveBatch::new(self.datagram_buffers.clamp(8, 1 << 14))?,
                send: SendBatch::new(),
                parts: Vec::with_capacity(SEND_BATCH),
            });
        }
        let raw = fd.as_raw_fd();
        let id = tables.sockets.insert(service, raw, local);
        if let Err(error) =
            self.poller
                .add(raw, IN | EDGE, word(Kind::Socket, id.generation, id.index))
        {
            tables.sockets.remove(id.index);
            return Err(error);
        }
        keep(&mut self.socket_files, id.index, fd);
        self.descriptors += 1;
        Ok(id)
    }

    fn list_socket(&mut self, tables: &mut Tables, id: SocketId) {
        let socket = tables.sockets.at(id.index);
        if socket.driver & bit::LISTED == 0 {
            socket.driver |= bit::LISTED;
            self.readable_sockets.push(id);
        }
    }

    fn socket_ready(
        &mut self,
        tables: &mut Tables,
        id: SocketId,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        let Some(socket) = tables.sockets.get(id) else {
            return;
        };
        if flags & OUT != 0 && socket.blocked {
            socket.blocked = false;
            let fd = socket.slot;
            // Room is reported with every datagram that leaves: watch it only while blocked.
            let word = word(Kind::Socket, id.generation, id.index);
            let _ = self.poller.modify(fd, IN | EDGE, word);
            // At once, so that a shard which stops sees the queue empty in this turn.
            self.transmit(tables, id.index, events);
        }
        if flags & (IN | ERR | HUP) != 0 {
            let socket = tables.sockets.at(id.index);
            socket.driver |= bit::READABLE;
            if !socket.paused {
                self.receive_datagrams(tables, id, flags & ERR != 0, events);
            }
        }
    }

    /// Receives until everything is taken, or the socket has had its turn. `exhaust` when an
    /// error waits somewhere among the datagrams.
    fn receive_datagrams(
        &mut self,
        tables: &mut Tables,
        id: SocketId,
        exhaust: bool,
        events: &mut Vec<Event>,
    ) {
        let datagrams = self.datagrams.as_mut().expect("a socket was opened");
        let fd = tables.sockets.at(id.index).slot;
        for _ in 0..SOCKET_TURN_BATCHES {
            let lent = datagrams.receive.lend();
            if lent == 0 {
                tables.metrics.shard.buffers_exhausted.add(1);
                if events
                    .iter()
                    .any(|event| matches!(event, Event::Datagram { .. }))
                {
                    // Those of this turn are about to come back.
                    break;
                }
            }
            let each = |datagram| {
                events.push(Event::Datagram {
                    socket: id,
                    datagram,
                })
            };
            let result = match lent {
                0 => datagrams.receive.receive_copied(fd, each).map(|()| true),
                _ => datagrams.receive.receive(fd, each).map(|(_, more)| more),
            };
            match result {
                Ok(more) if more || exhaust => {}
                Ok(_) | Err(libc::EAGAIN) => {
                    tables.sockets.at(id.index).driver &= !bit::READABLE;
                    return;
                }
                // Taken by asking; what else waits comes after it.
                Err(errno) => events.push(Event::SocketError { socket: id, errno }),
            }
        }
        self.list_socket(tables, id);
    }

    /// Sends the queue of a socket: batches of GSO sends, or of single datagrams where the path
    /// has refused those.
    fn transmit(&mut self, tables: &mut Tables, index: u32, events: &mut Vec<Event>) {
        loop {
            self.plan(tables, index);
            let datagrams = self.datagrams.as_mut().expect("a socket was opened");
            let socket = tables.sockets.at(index);
            if datagrams.parts.is_empty() {
                return;
            }
            let queue = &socket.queue;
            let messages = datagrams.parts.iter().map(|part| {
                let transmit = &queue[part.transmit];
                Outgoing {
                    peer: transmit.peer,
                    source: transmit.source,
                    ecn: transmit.ecn,
                    segment: (part.datagrams > 1).then_some(transmit.stride),
                    bytes: &transmit.data.bytes()[part.start..part.start + part.len],
                }
            });
            match datagrams.send.send(socket.slot, socket.ipv6, messages) {
                Ok(sent) => self.leave(tables, index, sent, true, events),
                Err(libc::EAGAIN) => return self.wait_for_socket_room(tables, index, events),
                // No segmentation offload on this path, or the datagram is larger than its MTU.
                Err(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
                    if datagrams.parts[0].datagrams > 1 =>
                {
                    socket.no_gso = true;
                }
                Err(errno) => {
                    self.leave(tables, index, 1, false, events);
                    events.push(Event::SocketError {
                        socket: tables.sockets.id(index),
                        errno,
                    });
                }
            }
        }
    }

    /// Cuts the front of a socket's queue into the messages of one batch.
    fn plan(&mut self, tables: &mut Tables, index: u32) {
        let Some(datagrams) = &mut self.datagrams else {
            return;
        };
        let parts = &mut datagrams.parts;
        parts.clear();
        let socket = tables.sockets.at(index);
        'queue: for (transmit, data) in socket.queue.iter().enumerate() {
            let (len, stride) = (data.data.len(), usize::from(data.stride).max(1));
            let step = stride
                * if socket.no_gso {
                    1
                } else {
                    segments_that_fit(stride, socket::gso_segments_max())
                };
            let mut start = 0;
            loop {
                if parts.len() == SEND_BATCH {
                    break 'queue;
                }
                let len_of_part = step.min(len - start);
                let datagrams = segments(len_of_part, data.stride);
                parts.push(Part {
                    transmit,
                    start,
                    len: len_of_part,
                    datagrams,
                });
                start += len_of_part;
                if start == len {
                    break;
                }
            }
        }
    }

    /// Takes the first messages of the plan out of the queue: sent, or given up.
    fn leave(
        &mut self,
        tables: &mut Tables,
        index: u32,
        count: usize,
        sent: bool,
        events: &mut Vec<Event>,
    ) {
        let Some(datagrams) = &mut self.datagrams else {
            return;
        };
        for part in &datagrams.parts[..count] {
            let queue = &mut tables.sockets.at(index).queue;
            let front = queue.front_mut().expect("the plan was made from the queue");
            if front.data.len() == part.len {
                queue.pop_front();
            } else {
                front.data.advance(part.len);
            }
            tables.transmit_done(index, part.datagrams, part.len, sent);
            tables.socket_room(index, part.len, events);
        }
    }

    #[cold]
    fn wait_for_socket_room(&mut self, tables: &mut Tables, index: u32, events: &mut Vec<Event>) {
        let id = tables.sockets.id(index);
        let socket = tables.sockets.at(index);
        let queue = std::mem::take(&mut socket.queue);
        socket.queue = queue.into_iter().map(Transmit::unpinned).collect();
        socket.blocked = true;
        let interest = IN | OUT | EDGE;
        if let Err(error) = self.poller.modify(
            socket.slot,
            interest,
            word(Kind::Socket, id.generation, id.index),
        ) {
            socket.blocked = false;
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            events.push(Event::SocketError { socket: id, errno });
        }
    }

    // ---- the turn --------------------------------------------------------------------------

    /// Ends the entries of closed streams; whether there were any.
    fn free_closed(&mut self, tables: &mut Tables) -> bool {
        let any = !self.closed.is_empty();
        for index in self.closed.drain(..) {
            tables.streams.remove(index);
        }
        any
    }

    /// Reports what became of calls between the waits, unless the stream is closed by now.
    fn take_pending(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        for event in std::mem::take(&mut self.pending) {
            match event {
                Event::Connected { stream } if tables.streams.get(stream).is_some() => {
                    self.connected(tables, stream, events);
                }
                Event::Failed { stream, errno } if tables.streams.get(stream).is_some() => {
                    tables.stream_failed(stream.index, bit::FAILED, errno, events);
                }
                Event::AcceptFailed { .. } => events.push(event),
                _ => {}
            }
        }
    }

    /// Receives from what was not read to its end, before anything newer gets the buffers.
    fn receive_listed(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        if !self.readable.is_empty() {
            for id in std::mem::take(&mut self.readable) {
                let Some(stream) = tables.streams.get(id) else {
                    continue;
                };
                stream.driver &= !bit::LISTED;
                if can_receive(stream) && stream.driver & bit::READABLE != 0 {
                    self.receive(tables, id, events);
                }
            }
        }
        if !self.readable_sockets.is_empty() {
            for id in std::mem::take(&mut self.readable_sockets) {
                let Some(socket) = tables.sockets.get(id) else {
                    continue;
                };
                socket.driver &= !bit::LISTED;
                if !socket.paused && socket.driver & bit::READABLE != 0 {
                    self.receive_datagrams(tables, id, true, events);
                }
            }
        }
    }

    fn has_listed(&self) -> bool {
        !self.readable.is_empty() || !self.readable_sockets.is_empty()
    }
}

/// Whether a stream is read now.
#[inline]
fn can_receive(stream: &crate::stream::Stream) -> bool {
    stream.state == State::Open && !stream.paused && stream.driver & (bit::ENDED | bit::FAILED) == 0
}

/// Sends several pieces as one; the answer, and how many bytes were offered.
fn send_pieces(
    fd: RawFd,
    chunks: &std::collections::VecDeque<crate::Payload>,
) -> (Result<usize, i32>, usize) {
    /// Most queues have few pieces: those need no memory of their own.
    const FEW: usize = 64;
    let gather = |pieces: &mut [io::IoSlice<'_>]| {
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        (calls::send_pieces(fd, pieces), bytes)
    };
    let count = chunks.len().min(PIECES_MAX);
    if count <= FEW {
        let mut pieces = [io::IoSlice::new(&[]); FEW];
        for (piece, chunk) in pieces.iter_mut().zip(chunks) {
            *piece = io::IoSlice::new(chunk.bytes());
        }
        gather(&mut pieces[..count])
    } else {
        let mut pieces: Vec<_> = chunks
            .iter()
            .take(count)
            .map(|chunk| io::IoSlice::new(chunk.bytes()))
            .collect();
        gather(&mut pieces)
    }
}

fn keep(files: &mut Vec<Option<OwnedFd>>, index: u32, fd: OwnedFd) {
    let index = index as usize;
    if files.len() <= index {
        files.resize_with(index + 1, || None);
    }
    files[index] = Some(fd);
}

impl Driver for Epoll {
    fn now(&self) -> Nanos {
        monotonic_now()
    }

    fn waker(&mut self) -> io::Result<Arc<dyn Waker>> {
        let waker = Arc::new(EventFdWaker::new()?);
        // Every ring is an edge, so it need never be drained.
        self.poller
            .add(waker.as_raw_fd(), IN | EDGE, word(Kind::Wake, 0, 0))?;
        self.waker = Some(Arc::clone(&waker));
        Ok(waker)
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn listen(&mut self, _tables: &mut Tables, listener: BoundListener) -> io::Result<()> {
        self.listeners.push(Listener {
            id: listener.id,
            fd: listener.socket.into_fd()?,
            wants_peer: listener.wants_peer,
            unix: matches!(listener.address, Address::Unix(_)),
            watched: false,
        });
        if self.accepting {
            self.watch_listener(self.listeners.len() - 1)
        } else {
            Ok(())
        }
    }

    fn accept(&mut self, tables: &mut Tables, on: bool) {
        self.accepting = on;
        for at in 0..self.listeners.len() {
            if !on {
                self.unwatch_listener(at);
            } else if self.watch_listener(at).is_err() {
                // No memory for it. The shard would not come back to it by itself, so tell it.
                tables.metrics.shard.driver_errors.add(1);
                let listener = self.listeners[at].id;
                self.pending.push(Event::AcceptFailed {
                    listener,
                    errno: libc::ENOMEM,
                });
            }
        }
    }

    fn add_socket(
        &mut self,
        tables: &mut Tables,
        socket: BoundDatagramSocket,
    ) -> io::Result<SocketId> {
        let fd = socket.socket.into_fd()?;
        self.insert_socket(tables, socket.service, fd, socket.local)
    }

    fn open_socket(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        open: &Open,
    ) -> io::Result<SocketId> {
        let fd = socket::open_datagram(open, Share::Alone, self.datagram_socket_buffer_bytes)?;
        let local = socket::local_address(&fd)?;
        self.insert_socket(tables, service, fd, local)
    }

    fn close_socket(&mut self, tables: &mut Tables, index: u32) {
        tables.close_socket(index);
        tables.sockets.remove(index);
        self.socket_files[index as usize] = None;
        self.descriptors -= 1;
    }

    fn read_socket(&mut self, tables: &mut Tables, index: u32, on: bool) {
        let id = tables.sockets.id(index);
        if on && tables.sockets.at(index).driver & bit::READABLE != 0 {
            self.list_socket(tables, id);
        }
    }

    fn connect(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        connect: &Connect,
    ) -> io::Result<StreamId> {
        let address = socket::socket_address(&connect.to)?;
        let fd = socket::open_stream(connect)?;
        let result = calls::connect(&fd, &address);
        let bits = if matches!(connect.to, Address::Unix(_)) {
            bit::UNIX
        } else {
            0
        };
        let id = self.insert_stream(tables, service, fd, State::Connecting, bits);
        match result {
            Ok(()) => self.pending.push(Event::Connected { stream: id }),
            Err(libc::EINPROGRESS | libc::EINTR) => {}
            Err(errno) => {
                self.pending.push(Event::Failed { stream: id, errno });
                return Ok(id);
            }
        }
        // A stream that connects is watched for room: that is how success is told. When it is
        // connected already it need not be.
        if let Err(error) = self.watch(tables, id, result.is_err()) {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.pending.push(Event::Failed { stream: id, errno });
        }
        Ok(id)
    }

    fn read(&mut self, tables: &mut Tables, index: u32, on: bool) {
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        if !on {
            // Edges that come now are only remembered.
            return;
        }
        if stream.driver & bit::READABLE != 0 {
            self.list(tables, id);
        } else if stream.driver & bit::WATCHED == 0
            && let Err(error) = self.watch(tables, id, false)
        {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.pending.push(Event::Failed { stream: id, errno });
        }
    }

    fn finish(&mut self, tables: &mut Tables, index: u32) {
        // Fails only when the peer has gone, which is told by other means.
        let _ = calls::shutdown_write(tables.streams.at(index).slot);
    }

    fn close(&mut self, tables: &mut Tables, index: u32, how: Close) {
        let stream = tables.streams.at(index);
        stream.state = State::Closing;
        stream.slot = -1;
        let file = self.stream_files[index as usize].take();
        if how == Close::Reset
            && stream.driver & bit::UNIX == 0
            && let Some(file) = &file
        {
            // Fails for no healthy socket; then the close is a plain one.
            let _ = socket2::SockRef::from(file).set_linger(Some(Duration::ZERO));
        }
        drop(file);
        self.descriptors -= 1;
        self.closed.push(index);
    }

    fn hand_on(
        &mut self,
        _tables: &mut Tables,
        _index: u32,
        _listener: ListenerId,
        _to: ShardId,
    ) -> bool {
        // The limit of files is the process's: where one shard has no room no other has.
        false
    }

    fn fill(&mut self) -> Option<BufferMut> {
        self.fill.fill()
    }

    fn segments_max(&self, stride: usize) -> usize {
        segments_that_fit(stride, socket::gso_segments_max())
    }

    fn wait(&mut self, tables: &mut Tables, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        let freed = self.free_closed(tables);
        self.take_pending(tables, events);
        tables.flush_sockets(|tables, index| self.transmit(tables, index, events));
        tables.flush_streams(|tables, index| self.send(tables, index, events));
        self.inbox.begin_turn();
        // What is known already must not wait. Nor may the news that a stream is gone: a shard
        // that stops waits for the last one.
        let poll = freed || !events.is_empty() || self.has_listed() || wait == Wait::Poll;
        let timeout = match wait {
            _ if poll => Some(Duration::ZERO),
            Wait::Until(deadline) => Some(Duration::from_nanos(
                deadline.saturating_sub(monotonic_now()),
            )),
            _ => None,
        };
        let ready = self.poller.wait(timeout)?;
        self.receive_listed(tables, events);
        for at in 0..ready {
            let (flags, word) = self.poller.ready(at);
            let generation = (word >> 32) as u32 & 0xff_ffff;
            let index = word as u32;
            match (word >> 56) as u8 {
                kind if kind == Kind::Stream as u8 => {
                    self.stream_ready(tables, StreamId { index, generation }, flags, events);
                }
                kind if kind == Kind::Socket as u8 => {
                    self.socket_ready(tables, SocketId { index, generation }, flags, events);
                }
                kind if kind == Kind::Listener as u8 => {
                    self.accept_ready(tables, index as usize, events);
                }
                _ => {}
            }
        }
        let exhausted = self.inbox.take_exhausted();
        if exhausted > 0 {
            tables.metrics.shard.buffers_exhausted.add(exhausted);
        }
        Ok(())
    }

    fn held(&self) -> Held {
        let datagrams = self
            .datagrams
            .as_ref()
            .map_or(0, |datagrams| datagrams.receive.held());
        let filled = self.fill.capacity() - self.fill.available();
        Held {
            buffers: self.inbox.held() + datagrams + filled,
            descriptors: self.descriptors,
        }
    }
}
