//! The epoll driver: for hosts that forbid io_uring, and as fast as readiness allows.
//!
//! Streams are watched edge-triggered. A receive that did not fill its room has taken everything,
//! and the next byte is a new edge: so a message costs one receive and one send, pausing costs no
//! call at all, and the kernel need not look at a descriptor again that had been ready before.
//! What that asks for in return is kept here: an edge that comes while a stream is paused is
//! remembered, and a stream that was not read to its end is read on in the next turn.
//! Room to send is watched only for what has once been refused it. Datagrams go in batches.

mod accept;
mod datagrams;
mod inbox;
mod interest;
mod streams;
mod turn;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use self::accept::Listener;
use self::datagrams::Datagrams;
use self::inbox::Inbox;
use self::interest::{EDGE, IN, Kind, bit, word};
use super::{
    Address, BoundDatagramSocket, BoundListener, Close, Connect, Driver, Event, Held, Multicast,
    Open, Tables, Wait, segments_that_fit, streams_as_files,
};
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::mailbox::Waker;
use crate::stream::State;
use crate::sys::buffer::Pool;
use crate::sys::eventfd::EventFdWaker;
use crate::sys::io as calls;
use crate::sys::poll::Poller;
use crate::sys::socket::{self, Share};
use crate::time::monotonic_now;
use crate::{BufferMut, Limits, Nanos, SocketBufferSizes};

/// One buffer that a protocol fills.
const FILL_BUFFER_LEN: usize = 64 << 10;

/// See the module documentation.
pub(crate) struct Epoll {
    poller: Poller,
    inbox: Inbox,
    fill: Pool,
    datagrams: Option<Datagrams>,
    datagram_buffers: u32,
    datagram_socket_buffers: SocketBufferSizes,
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
            datagram_socket_buffers: limits.datagram_socket_buffers,
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
        multicast: Option<&Multicast>,
    ) -> io::Result<SocketId> {
        let buffers = self.datagram_socket_buffers;
        let fd = socket::open_datagram(open, multicast, Share::Alone, buffers)?;
        let local = socket::local_address(&fd)?;
        let id = self.insert_socket(tables, service, fd, local)?;
        tables.sockets.at(id.index).connected = open.peer;
        Ok(id)
    }

    fn connect_socket(&mut self, tables: &mut Tables, index: u32, peer: SocketAddr) {
        let file = self.socket_files[index as usize].as_ref();
        let connected = file.is_some_and(|file| socket::connect_datagram(file, peer).is_ok());
        if connected {
            tables.sockets.at(index).connected = Some(peer);
        }
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
            Wait::Gather(until) => {
                // A wait that many events end is not there: sleep, then take what has come.
                let left = until.saturating_sub(monotonic_now());
                std::thread::sleep(Duration::from_nanos(left));
                Some(Duration::ZERO)
            }
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
