//! The seeded simulator: protocols on a network that exists only in memory, with a virtual clock.
//!
//! A [`World`] runs any number of engines, each with any number of shards, on one thread. The
//! shards are the real ones: the same loop, tables, queues and timers as on a kernel; only the
//! driver is another. What a network and a kernel can do wrong, it does on request and by a seed:
//! the same seed, configuration and program give the same run, event for event.
//!
//! ```
//! use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig};
//! use ringmill_engine::{Address, Buffer, Connect, Context, Protocol, Service, StreamId};
//! use std::net::SocketAddr;
//! use std::sync::{Arc, Mutex};
//!
//! struct Echo;
//! impl Protocol for Echo {
//!     type Message = ();
//!     fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
//!         let _ = ctx.send(stream, data);
//!     }
//! }
//!
//! struct Greeter { server: SocketAddr, heard: Arc<Mutex<Vec<u8>>> }
//! impl Protocol for Greeter {
//!     type Message = ();
//!     fn start(&mut self, ctx: &mut Context<'_, ()>) {
//!         let _ = ctx.connect(&Connect { to: self.server.into(), from: None });
//!     }
//!     fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
//!         let _ = ctx.send(stream, b"hello" as &'static [u8]);
//!     }
//!     fn received(&mut self, _: &mut Context<'_, ()>, _: StreamId, data: Buffer) {
//!         self.heard.lock().unwrap().extend_from_slice(&data);
//!     }
//! }
//!
//! let mut world = World::new(42, WorldConfig::default());
//! let server: SocketAddr = "10.0.0.1:7".parse()?;
//! let heard = Arc::new(Mutex::new(Vec::new()));
//! world.engine(EngineSpec::new(2).host("10.0.0.1").service(Service::new("echo", |_| Echo).listen(server)))?;
//! let ears = Arc::clone(&heard);
//! let greeter = Service::new("greeter", move |_| Greeter { server, heard: Arc::clone(&ears) });
//! world.engine(EngineSpec::new(1).host("10.0.0.2").service(greeter))?;
//!
//! world.run_until(|_| heard.lock().unwrap().len() == 5, 1_000_000_000)?;
//! assert_eq!(*heard.lock().unwrap(), b"hello");
//! world.stop_all()?;
//! world.leaks().assert_none();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod network;
mod random;
mod world;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

pub use self::config::{FaultCounts, Faults, Partition, PathCounts, StreamConfig, WorldConfig};
use self::network::{
    CLIENT, ConnectionId, Fin, Network, Owner, Packet, PortId, Released, SERVER, SimSocketId,
};
pub use self::world::{EngineId, EngineSpec, Leaks, ShardLeaks, Stuck, World, seeds};
use super::{
    BoundDatagramSocket, BoundListener, Close, Connect, Driver, Event, Held, Open, Tables, Wait,
    segments_that_fit,
};
use crate::datagram::Transmit;
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::mailbox::Waker;
use crate::stream::State;
use crate::sys::buffer::Pool;
use crate::sys::socket::UDP_PAYLOAD_MAX;
use crate::{BufferMut, Datagram, Limits, Nanos};

/// As the other drivers have it.
const STREAM_BUFFER_LEN: usize = 4096;
/// Room for the most that one receive coalesces.
const DATAGRAM_BUFFER_LEN: usize = 64 << 10;
const FILL_BUFFER_LEN: usize = 64 << 10;
/// Receives of one stream, or datagram buffers of one socket, in one round.
const RECEIVES_PER_ROUND_MAX: u64 = 4;
/// Rounds over all streams in one wait: together as many receives as a kernel may have completed.
const ROUNDS_PER_WAIT_MAX: u64 = 4;
/// Segments of one GSO send (UDP_MAX_SEGMENTS of older kernels).
const SEGMENTS_MAX: usize = 64;
/// What accepting can fail with.
const ACCEPT_ERRORS: [i32; 3] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
const OPEN_ERRORS: [i32; 2] = [libc::EMFILE, libc::ENOMEM];

/// Which kind of thing goes into the trace of a run.
mod traced {
    pub(super) const ACCEPTED: u64 = 1;
    pub(super) const RECEIVED: u64 = 2;
    pub(super) const ENDED: u64 = 3;
    pub(super) const FAILED: u64 = 4;
    pub(super) const DATAGRAM: u64 = 5;
    pub(super) const CONNECTED: u64 = 6;
    pub(super) const SENT: u64 = 7;
    pub(super) const TRANSMITTED: u64 = 8;
    pub(super) const OTHER: u64 = 9;
    pub(super) const TURN: u64 = 10;
}

/// The driver of one simulated shard.
pub(crate) struct SimDriver {
    network: Rc<RefCell<Network>>,
    port: PortId,
    /// The ports of all shards of this engine, by shard.
    siblings: Rc<RefCell<Vec<PortId>>>,
    streams: Pool,
    datagrams: Pool,
    fill: Pool,
    /// The connection and end of each stream, by its position in the table.
    connections: Vec<Option<(ConnectionId, usize)>>,
    sockets: Vec<Option<SimSocketId>>,
    descriptors: usize,
}

/// No simulated shard sleeps while another runs: the world looks at all of them itself.
struct NoWaker;

impl Waker for NoWaker {
    fn wake(&self) {}
}

impl SimDriver {
    fn new(
        network: &Rc<RefCell<Network>>,
        host: network::HostId,
        siblings: &Rc<RefCell<Vec<PortId>>>,
        limits: &Limits,
    ) -> io::Result<Self> {
        let count = (limits.stream_pool_bytes / STREAM_BUFFER_LEN).clamp(16, 1 << 15) as u32;
        let streams = Pool::new(count, STREAM_BUFFER_LEN)?;
        let datagrams = Pool::new(limits.datagram_buffers.max(1), DATAGRAM_BUFFER_LEN)?;
        let fill = Pool::new(limits.fill_buffers, FILL_BUFFER_LEN)?;
        let port =
            network
                .borrow_mut()
                .open_port(host, streams.clone(), datagrams.clone(), fill.clone());
        siblings.borrow_mut().push(port);
        Ok(Self {
            network: Rc::clone(network),
            port,
            siblings: Rc::clone(siblings),
            streams,
            datagrams,
            fill,
            connections: Vec::new(),
            sockets: Vec::new(),
            descriptors: 0,
        })
    }

    fn port(&self) -> PortId {
        self.port
    }

    fn adopt(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        id: ConnectionId,
        end: usize,
        state: State,
    ) -> StreamId {
        self.descriptors += 1;
        let stream = tables.streams.insert(service, 0, state, tables.active);
        self.map(stream.index, id, end);
        stream
    }

    fn map(&mut self, index: u32, id: ConnectionId, end: usize) {
        let at = index as usize;
        if self.connections.len() <= at {
            self.connections.resize(at + 1, None);
        }
        self.connections[at] = Some((id, end));
    }

    fn connection(&self, index: u32) -> Option<(ConnectionId, usize)> {
        self.connections.get(index as usize).copied().flatten()
    }

    fn socket(&self, index: u32) -> Option<SimSocketId> {
        self.sockets.get(index as usize).copied().flatten()
    }

    // ---- sending ---------------------------------------------------------------------------

    fn try_send(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        events: &mut Vec<Event>,
    ) {
        let Some((id, end)) = self.connection(index) else {
            return;
        };
        let Some(queue) = &tables.streams.at(index).queue else {
            return;
        };
        if queue.in_flight || queue.bytes == 0 {
            return;
        }
        let room = match network.send_room(id, end) {
            Ok(room) => room,
            Err(errno) => return Self::fail(network, tables, index, id, end, errno, events),
        };
        let mut taken = room.min(queue.bytes);
        let mut short = false;
        if taken > 0 && network.random.happens(network.config.faults.short_send) {
            let less = network.random.below(taken as u64) as usize;
            network.faults.short_send += 1;
            taken = less;
            short = true;
        }
        let mut left = taken;
        for chunk in &queue.chunks {
            let part = left.min(chunk.len());
            network.send(id, end, &chunk.bytes()[..part]);
            left -= part;
        }
        if taken > 0 {
            network.note(traced::SENT, id << 32 | taken as u64);
            tables.stream_sent(index, taken, events);
            network.pump(id, end);
        }
        if let Some(queue) = &mut tables.streams.at(index).queue {
            queue.unpin();
            queue.in_flight = true;
            if let Some(connection) = network.connections.get_mut(&id) {
                connection.ends[end].blocked = true;
            }
            if short {
                network.ready_later(id, end);
            }
        }
    }

    fn fail(
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: ConnectionId,
        end: usize,
        errno: i32,
        events: &mut Vec<Event>,
    ) {
        let connection = network.connections.get_mut(&id);
        if connection
            .is_some_and(|connection| std::mem::replace(&mut connection.ends[end].failed, true))
        {
            return;
        }
        network.note(traced::FAILED, id << 32 | errno as u64);
        events.push(Event::Failed {
            stream: tables.streams.id(index),
            errno,
        });
    }

    fn flush_socket(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        events: &mut Vec<Event>,
    ) {
        let Some(id) = self.socket(index) else {
            return;
        };
        while let Some(transmit) = tables.sockets.at(index).queue.pop_front() {
            if network
                .random
                .happens(network.config.faults.datagram_send_blocked)
            {
                network.faults.datagram_send_blocked += 1;
                let socket = tables.sockets.at(index);
                socket.queue.push_front(transmit.unpinned());
                socket.blocked = true;
                network.writable_later(self.port, id);
                break;
            }
            self.transmit(network, tables, index, id, &transmit, events);
        }
    }

    fn transmit(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: SimSocketId,
        transmit: &Transmit,
        events: &mut Vec<Event>,
    ) {
        let bytes = transmit.data.bytes();
        let count = transmit.count();
        let socket = tables.sockets.at(index);
        if count > 1
            && !socket.no_gso
            && network
                .random
                .happens(network.config.faults.segmentation_refused)
        {
            // As on a path without the offload: from now on one by one.
            network.faults.segmentation_refused += 1;
            socket.no_gso = true;
        }
        let connected = network.sockets.get(&id).and_then(|socket| socket.peer);
        let errno = match transmit.peer.or(connected) {
            None => Err(libc::EDESTADDRREQ),
            Some(_)
                if usize::from(transmit.stride) > UDP_PAYLOAD_MAX
                    || bytes.len() > UDP_PAYLOAD_MAX =>
            {
                Err(libc::EMSGSIZE)
            }
            Some(to) if to.is_ipv6() != socket.ipv6 && !socket.ipv6 => Err(libc::EAFNOSUPPORT),
            Some(to) => Ok(to),
        };
        match errno {
            Ok(to) => {
                let stride = usize::from(transmit.stride).max(1);
                for at in 0..count {
                    let start = (at * stride).min(bytes.len());
                    let one = &bytes[start..(start + stride).min(bytes.len())];
                    network.transmit(id, to, transmit.source, transmit.ecn, one);
                }
                network.note(traced::TRANSMITTED, id << 32 | bytes.len() as u64);
                tables.transmit_done(index, count, bytes.len(), true);
            }
            Err(errno) => {
                tables.transmit_done(index, count, bytes.len(), false);
                events.push(Event::SocketError {
                    socket: tables.sockets.id(index),
                    errno,
                });
            }
        }
        tables.socket_room(index, bytes.len(), events);
    }

    // ---- receiving -------------------------------------------------------------------------

    fn gather(&mut self, network: &mut Network, tables: &mut Tables, events: &mut Vec<Event>) {
        let port = self.port;
        if network.now < network.ports[port].hidden_until {
            return;
        }
        if network.ports[port].has_events(network.now)
            && network
                .random
                .happens(network.config.faults.completion_overflow)
        {
            network.faults.completion_overflow += 1;
            tables.metrics.shard.completion_overflows.add(1);
            network.hide(port);
            return;
        }
        for released in std::mem::take(&mut network.ports[port].released) {
            self.released(network, tables, released);
        }
        while let Some((id, listener)) = network.ports[port].adopted.pop_front() {
            self.accepted(network, tables, id, listener, None, events);
        }
        self.gather_accepts(network, tables, events);
        self.gather_starved(network);
        // Completions of different streams come interleaved.
        for _ in 0..=network.random.below(ROUNDS_PER_WAIT_MAX) {
            let mut ready = std::mem::take(&mut network.ports[port].ready);
            network.random.shuffle(&mut ready);
            for (id, end) in ready {
                if let Some(owner) = network.take_ready(id, end, port) {
                    self.stream_ready(network, tables, owner.index, id, end, events);
                }
            }
        }
        let mut ready = std::mem::take(&mut network.ports[port].ready_sockets);
        network.random.shuffle(&mut ready);
        for id in ready {
            self.socket_ready(network, tables, id, events);
        }
    }

    fn released(&mut self, network: &mut Network, tables: &mut Tables, released: Released) {
        match released {
            Released::Stream(index) => {
                self.descriptors -= 1;
                tables.streams.remove(index);
            }
            Released::Socket(index) => {
                self.descriptors -= 1;
                tables.sockets.remove(index);
            }
            Released::Writable(id) => {
                let Some(socket) = network.sockets.get(&id) else {
                    return;
                };
                tables.unblock_socket(socket.index);
            }
        }
    }

    fn gather_accepts(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        events: &mut Vec<Event>,
    ) {
        let port = self.port;
        for at in 0..network.ports[port].listeners.len() {
            while network.ports[port].listeners[at].armed
                && !network.ports[port].listeners[at].backlog.is_empty()
            {
                let listener = network.ports[port].listeners[at].id;
                if network.random.happens(network.config.faults.accept_failed) {
                    network.faults.accept_failed += 1;
                    let errno =
                        ACCEPT_ERRORS[network.random.below(ACCEPT_ERRORS.len() as u64) as usize];
                    network.ports[port].listeners[at].armed = false;
                    events.push(Event::AcceptFailed { listener, errno });
                    network.note(traced::OTHER, errno as u64);
                    break;
                }
                let waiting = &mut network.ports[port].listeners[at];
                let id = waiting.backlog.pop_front().expect("seen above");
                let wants_peer = waiting.wants_peer;
                let peer = network
                    .connections
                    .get(&id)
                    .and_then(|connection| connection.client);
                self.accepted(
                    network,
                    tables,
                    id,
                    listener,
                    peer.filter(|_| wants_peer),
                    events,
                );
            }
        }
    }

    fn accepted(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        id: ConnectionId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
        events: &mut Vec<Event>,
    ) {
        let stream = self.adopt(tables, listener.service, id, SERVER, State::Open);
        network.accepted(
            id,
            Owner {
                port: self.port,
                index: stream.index,
            },
        );
        network.note(traced::ACCEPTED, id);
        events.push(Event::Accepted {
            listener,
            stream,
            peer,
        });
    }

    /// What waited for a free buffer tries again when there is one.
    fn gather_starved(&mut self, network: &mut Network) {
        let port = self.port;
        if self.streams.available() > 0 {
            for (id, end) in std::mem::take(&mut network.ports[port].starved) {
                network.ready_again(id, end);
            }
        }
        if self.datagrams.available() > 0 {
            for id in std::mem::take(&mut network.ports[port].starved_sockets) {
                network.socket_ready_again(id);
            }
        }
    }

    fn stream_ready(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: ConnectionId,
        end: usize,
        events: &mut Vec<Event>,
    ) {
        let stream = tables.streams.id(index);
        let Some(connection) = network.connections.get_mut(&id) else {
            return;
        };
        let this = &mut connection.ends[end];
        if let Some(outcome) = this.outcome.take() {
            this.connecting = false;
            match outcome {
                Ok(()) => {
                    tables.streams.at(index).state = State::Open;
                    this.reading = true;
                    network.note(traced::CONNECTED, id);
                    events.push(Event::Connected { stream });
                }
                Err(errno) => return Self::fail(network, tables, index, id, end, errno, events),
            }
        }
        self.unblock(network, tables, index, id, end, events);
        if tables.streams.at(index).state == State::Open {
            self.receive(network, tables, stream, id, end, events);
        }
    }

    /// A send that waited for room goes on, or fails.
    fn unblock(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: ConnectionId,
        end: usize,
        events: &mut Vec<Event>,
    ) {
        let Some(connection) = network.connections.get_mut(&id) else {
            return;
        };
        if !connection.ends[end].blocked {
            return;
        }
        if let Some(errno) = connection.ends[end].error {
            return Self::fail(network, tables, index, id, end, errno, events);
        }
        if connection.pipes[end].room() == 0 {
            return;
        }
        connection.ends[end].blocked = false;
        if let Some(queue) = &mut tables.streams.at(index).queue {
            queue.in_flight = false;
            tables.streams.mark_dirty(index);
        }
    }

    fn receive(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        stream: StreamId,
        id: ConnectionId,
        end: usize,
        events: &mut Vec<Event>,
    ) {
        let mut receives = 1 + network.random.below(RECEIVES_PER_ROUND_MAX);
        loop {
            let Some(connection) = network.connections.get_mut(&id) else {
                return;
            };
            let pipe = &connection.pipes[1 - end];
            let (waiting, fin) = (pipe.received.len(), pipe.fin);
            let this = &mut connection.ends[end];
            if !this.reading || this.failed {
                return;
            }
            if waiting == 0 {
                if let Some(errno) = this.error {
                    return Self::fail(network, tables, stream.index, id, end, errno, events);
                }
                if fin == Fin::Arrived && !this.ended {
                    this.ended = true;
                    this.reading = false;
                    network.note(traced::ENDED, id);
                    events.push(Event::Ended { stream });
                }
                return;
            }
            if receives == 0 {
                return network.ready_again(id, end);
            }
            receives -= 1;
            if network
                .random
                .happens(network.config.faults.receive_buffers_exhausted)
            {
                network.faults.receive_buffers_exhausted += 1;
                tables.metrics.shard.buffers_exhausted.add(1);
                return network.ready_later(id, end);
            }
            let Some(mut buffer) = self.streams.fill() else {
                tables.metrics.shard.buffers_exhausted.add(1);
                network.ports[self.port].starved.push((id, end));
                return;
            };
            let most = network
                .random
                .within(&network.config.streams.receive_bytes)
                .max(1) as usize;
            let most = most.min(buffer.len());
            let len = network.receive(id, end, &mut buffer[..most]);
            network.note(traced::RECEIVED, id << 32 | len as u64);
            events.push(Event::Received {
                stream,
                data: buffer.freeze(len),
            });
            if network.random.happens(network.config.faults.receive_ended) {
                network.faults.receive_ended += 1;
                return network.ready_later(id, end);
            }
        }
    }

    fn socket_ready(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        id: SimSocketId,
        events: &mut Vec<Event>,
    ) {
        let mut receives = 1 + network.random.below(RECEIVES_PER_ROUND_MAX);
        loop {
            let faults = network.config.faults;
            let exhausted = network.random.happens(faults.receive_buffers_exhausted);
            let Some(socket) = network.take_socket_ready(id) else {
                return;
            };
            let index = socket.index;
            if let Some(errno) = socket.error.take() {
                events.push(Event::SocketError {
                    socket: tables.sockets.id(index),
                    errno,
                });
                network.note(traced::OTHER, errno as u64);
                continue;
            }
            if !socket.reading || socket.received.is_empty() {
                return;
            }
            if receives == 0 {
                return network.socket_ready_again(id);
            }
            receives -= 1;
            if exhausted {
                network.faults.receive_buffers_exhausted += 1;
                tables.metrics.shard.buffers_exhausted.add(1);
                return network.socket_ready_later(id);
            }
            let Some(buffer) = self.datagrams.fill() else {
                tables.metrics.shard.buffers_exhausted.add(1);
                network.ports[self.port].starved_sockets.push(id);
                return;
            };
            let datagram = Self::coalesce(network, id, buffer);
            network.note(traced::DATAGRAM, id << 32 | datagram.data.len() as u64);
            events.push(Event::Datagram {
                socket: tables.sockets.id(index),
                datagram,
            });
            if network.random.happens(faults.receive_ended) {
                network.faults.receive_ended += 1;
                return network.socket_ready_later(id);
            }
        }
    }

    /// One receive: the first waiting datagram and, as GRO has it, those of equal size from the
    /// same peer that follow it; the last may be shorter.
    fn coalesce(network: &mut Network, id: SimSocketId, mut buffer: BufferMut) -> Datagram {
        let coalescing = network.config.coalescing;
        let socket = network
            .sockets
            .get_mut(&id)
            .expect("the caller has seen it");
        let first = socket
            .received
            .pop_front()
            .expect("the caller has seen one");
        let stride = first.bytes.len();
        let mut len = 0;
        let put = |buffer: &mut BufferMut, len: &mut usize, packet: &Packet| {
            buffer[*len..*len + packet.bytes.len()].copy_from_slice(&packet.bytes);
            *len += packet.bytes.len();
        };
        put(&mut buffer, &mut len, &first);
        let mut freed = stride;
        let mut joined = 0;
        while let Some(next) = socket.received.front() {
            let size = next.bytes.len();
            let fits = next.from == first.from
                && next.to == first.to
                && next.ecn == first.ecn
                && (1..=stride).contains(&size)
                && len + size <= UDP_PAYLOAD_MAX;
            if !fits || !network.random.happens(coalescing) {
                break;
            }
            let next = socket.received.pop_front().expect("seen above");
            put(&mut buffer, &mut len, &next);
            freed += size;
            joined += 1;
            if size < stride {
                break;
            }
        }
        socket.received_bytes -= freed;
        network.path.coalesced += joined;
        Datagram {
            peer: first.from,
            local: Some(first.to.ip()),
            ecn: first.ecn,
            stride: stride as u16,
            data: buffer.freeze(len),
        }
    }
}

impl Driver for SimDriver {
    fn now(&self) -> Nanos {
        self.network.borrow().now
    }

    fn waker(&mut self) -> io::Result<Arc<dyn Waker>> {
        Ok(Arc::new(NoWaker))
    }

    fn capacity(&self) -> usize {
        self.network.borrow().config.streams_per_shard_max
    }

    fn listen(&mut self, _tables: &mut Tables, listener: BoundListener) -> io::Result<()> {
        let BoundListener {
            id,
            address,
            wants_peer,
            ..
        } = listener;
        self.network
            .borrow_mut()
            .listen(self.port, address, id, wants_peer);
        Ok(())
    }

    fn accept(&mut self, _tables: &mut Tables, on: bool) {
        for listener in &mut self.network.borrow_mut().ports[self.port].listeners {
            listener.armed = on;
        }
    }

    fn add_socket(
        &mut self,
        tables: &mut Tables,
        socket: BoundDatagramSocket,
    ) -> io::Result<SocketId> {
        let id = tables.sockets.insert(socket.service, 0, socket.local);
        let (socket, _) =
            self.network
                .borrow_mut()
                .bind(self.port, id.index, socket.local, None, true)?;
        self.map_socket(id.index, socket);
        Ok(id)
    }

    fn open_socket(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        open: &Open,
    ) -> io::Result<SocketId> {
        let network = Rc::clone(&self.network);
        let network = &mut *network.borrow_mut();
        if network.random.happens(network.config.faults.open_failed) {
            network.faults.open_failed += 1;
            let errno = OPEN_ERRORS[network.random.below(OPEN_ERRORS.len() as u64) as usize];
            return Err(io::Error::from_raw_os_error(errno));
        }
        // The position is known only once the entry exists; a bind that fails must leave none.
        let (socket, local) = network.bind(self.port, u32::MAX, open.local, open.peer, false)?;
        let id = tables.sockets.insert(service, 0, local);
        network.sockets.get_mut(&socket).expect("just bound").index = id.index;
        self.map_socket(id.index, socket);
        Ok(id)
    }

    fn close_socket(&mut self, tables: &mut Tables, index: u32) {
        tables.close_socket(index);
        let mut network = self.network.borrow_mut();
        if let Some(id) = self.sockets.get_mut(index as usize).and_then(Option::take) {
            network.close_socket(id);
        }
        network.release_later(self.port, Released::Socket(index));
    }

    fn read_socket(&mut self, _tables: &mut Tables, index: u32, on: bool) {
        if let Some(id) = self.socket(index) {
            self.network.borrow_mut().set_socket_reading(id, on);
        }
    }

    fn connect(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        connect: &Connect,
    ) -> io::Result<StreamId> {
        let network = Rc::clone(&self.network);
        let network = &mut *network.borrow_mut();
        if network.random.happens(network.config.faults.connect_failed) {
            network.faults.connect_failed += 1;
            let errno = OPEN_ERRORS[network.random.below(OPEN_ERRORS.len() as u64) as usize];
            return Err(io::Error::from_raw_os_error(errno));
        }
        let owner = Owner {
            port: self.port,
            index: u32::MAX,
        };
        let id = network.connect(owner, &connect.to, connect.from)?;
        let stream = self.adopt(tables, service, id, CLIENT, State::Connecting);
        let connection = network.connections.get_mut(&id).expect("just made");
        connection.ends[CLIENT].owner = Some(Owner {
            port: self.port,
            index: stream.index,
        });
        Ok(stream)
    }

    fn read(&mut self, _tables: &mut Tables, index: u32, on: bool) {
        if let Some((id, end)) = self.connection(index) {
            self.network.borrow_mut().set_reading(id, end, on);
        }
    }

    fn finish(&mut self, _tables: &mut Tables, index: u32) {
        if let Some((id, end)) = self.connection(index) {
            self.network.borrow_mut().finish(id, end);
        }
    }

    fn close(&mut self, _tables: &mut Tables, index: u32, how: Close) {
        let mut network = self.network.borrow_mut();
        if let Some((id, end)) = self.connections[index as usize].take() {
            network.let_go(id, end, how == Close::Reset);
        }
        network.release_later(self.port, Released::Stream(index));
    }

    fn hand_on(
        &mut self,
        tables: &mut Tables,
        index: u32,
        listener: ListenerId,
        to: ShardId,
    ) -> bool {
        let to = self.siblings.borrow()[usize::from(to)];
        let Some((id, _)) = self.connection(index) else {
            return false;
        };
        let mut network = self.network.borrow_mut();
        if to == self.port || !network.hand_on(id, listener, to) {
            return false;
        }
        tables.streams.at(index).state = State::Closing;
        self.connections[index as usize] = None;
        network.release_later(self.port, Released::Stream(index));
        true
    }

    fn fill(&mut self) -> Option<BufferMut> {
        let network = &mut *self.network.borrow_mut();
        if network.random.happens(network.config.faults.fill_exhausted) {
            network.faults.fill_exhausted += 1;
            return None;
        }
        self.fill.fill()
    }

    fn segments_max(&self, stride: usize) -> usize {
        segments_that_fit(stride, SEGMENTS_MAX)
    }

    /// Never waits: the world calls a turn when there is something to do, or at times for nothing.
    fn wait(
        &mut self,
        tables: &mut Tables,
        _wait: Wait,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let network = Rc::clone(&self.network);
        let mut network = network.borrow_mut();
        network.note(traced::TURN, self.port as u64);
        self.gather_starved(&mut network);
        tables.flush_sockets(|tables, index| {
            self.flush_socket(&mut network, tables, index, events);
        });
        tables.flush_streams(|tables, index| {
            self.try_send(&mut network, tables, index, events);
        });
        self.gather(&mut network, tables, events);
        Ok(())
    }

    fn held(&self) -> Held {
        let of = |pool: &Pool| pool.capacity() - pool.available();
        Held {
            buffers: of(&self.streams) + of(&self.datagrams) + of(&self.fill),
            descriptors: self.descriptors,
        }
    }
}

impl SimDriver {
    fn map_socket(&mut self, index: u32, id: SimSocketId) {
        let at = index as usize;
        if self.sockets.len() <= at {
            self.sockets.resize(at + 1, None);
        }
        self.sockets[at] = Some(id);
        self.descriptors += 1;
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        self.network.borrow_mut().close_port(self.port);
    }
}
