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
mod receiving;
mod sending;
mod world;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

pub use self::config::{FaultCounts, Faults, Partition, PathCounts, StreamConfig, WorldConfig};
use self::network::{CLIENT, ConnectionId, Network, Owner, PortId, Released, SimSocketId};
pub use self::world::{EngineId, EngineSpec, Leaks, ShardLeaks, Stuck, World, seeds};
use super::{
    BoundDatagramSocket, BoundListener, Close, Connect, Driver, Event, Held, Multicast, Open,
    Tables, Wait, segments_that_fit,
};
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::mailbox::Waker;
use crate::stream::State;
use crate::sys::buffer::Pool;
use crate::{BufferMut, Limits, Nanos};

/// As the other drivers have it.
const STREAM_BUFFER_LEN: usize = 4096;
/// Room for the most that one receive coalesces.
const DATAGRAM_BUFFER_LEN: usize = 64 << 10;
const FILL_BUFFER_LEN: usize = 64 << 10;
/// Segments of one GSO send (UDP_MAX_SEGMENTS of older kernels).
const SEGMENTS_MAX: usize = 64;
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
        multicast: Option<&Multicast>,
    ) -> io::Result<SocketId> {
        let network = Rc::clone(&self.network);
        let network = &mut *network.borrow_mut();
        if network.random.happens(network.config.faults.open_failed) {
            network.faults.open_failed += 1;
            let errno = OPEN_ERRORS[network.random.below(OPEN_ERRORS.len() as u64) as usize];
            return Err(io::Error::from_raw_os_error(errno));
        }
        // The position is known only once the entry exists; a bind that fails must leave none.
        let (socket, local) = match multicast.and_then(|multicast| multicast.join) {
            Some(group) => network.join(self.port, u32::MAX, open.local, group)?,
            None => network.bind(self.port, u32::MAX, open.local, open.peer, false)?,
        };
        let id = tables.sockets.insert(service, 0, local);
        network.sockets.get_mut(&socket).expect("just bound").index = id.index;
        self.map_socket(id.index, socket);
        Ok(id)
    }

    fn connect_socket(&mut self, tables: &mut Tables, index: u32, peer: SocketAddr) {
        tables.sockets.at(index).connected = Some(peer);
        let socket = self.socket(index);
        let mut network = self.network.borrow_mut();
        if let Some(socket) = socket.and_then(|id| network.sockets.get_mut(&id)) {
            socket.peer = Some(peer);
        }
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
