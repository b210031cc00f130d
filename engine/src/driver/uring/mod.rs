//! The io_uring driver: the default, and the fastest way through the kernel.
//!
//! One ring serves one shard. Accepts and receives are multishot; what arrives is in buffers that
//! the kernel picked. Sends are *tried in their submission* (MSG_DONTWAIT, no completion on
//! success): when the submitting call has returned, a send that reported nothing is done and its
//! buffer is free. Only what did not fit into the socket is sent again as a request that waits.
//! So the common path costs one submission entry and no completion.

mod accept;
mod datagrams;
mod features;
mod requests;
mod ring;
mod slots;
mod streams;
mod turn;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use io_uring::{opcode, squeue, types};

use self::accept::Listener;
use self::datagrams::{MessageMemory, TriedMessage};
use self::requests::{Op, bit, slot_flags, tag};
use self::ring::{BufferRing, Ring};
use self::slots::Table;
use self::streams::Tried;
use self::turn::Starved;
use super::{
    BoundDatagramSocket, BoundListener, Close, Connect, Driver, Event, Held, Multicast, Open,
    Tables, Wait, segments_that_fit, streams_as_files,
};
use crate::datagram::Transmit;
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::mailbox::Waker;
use crate::stream::State;
use crate::sys::buffer::Pool;
use crate::sys::eventfd::EventFdWaker;
use crate::sys::message::{CONTROL_LEN, NAME_LEN};
use crate::sys::socket::{self, Share};
use crate::time::monotonic_now;
use crate::{BufferMut, Limits, Nanos, SocketBufferSizes};

pub use self::features::{Feature, Features, Unavailable};
pub use self::slots::streams_per_ring;

const STREAM_GROUP: u16 = 0;
/// One stream receive buffer. Large enough for a deep pipeline of small messages in one receive.
const STREAM_BUFFER_LEN: usize = 4096;
/// With incremental buffers a receive takes only what it fills, so they can be larger.
const INCREMENTAL_BUFFER_LEN: usize = 64 << 10;
/// One buffer that a protocol fills.
const FILL_BUFFER_LEN: usize = 64 << 10;

/// The longest sleep on sends whose outcome is not yet taken: they end within the call that sleeps and
/// say so only when they fail, but their counters and their buffers wait for the next turn.
const UNSETTLED_MAX: Nanos = 100_000_000;

/// What the driver is allowed to use.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Features to do without, as if the kernel were older.
    pub refuse: Vec<Feature>,
}

/// What this host's io_uring offers, less what is refused.
///
/// # Errors
/// Why io_uring cannot be used.
pub fn probe(options: &Options) -> Result<Features, Unavailable> {
    Ok(features::find()?.without(options.refuse.iter().copied().collect()))
}

/// Everything a driver is made from.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    /// The limit of open files, which is also that of a ring's table.
    pub(crate) files: usize,
    /// Streams that this shard is expected to hold.
    pub(crate) streams: usize,
    /// Whether it accepts streams.
    pub(crate) listens: bool,
    pub(crate) directory: Arc<Directory>,
}

/// The rings of all shards, so that a full one can hand a stream on.
pub(crate) struct Directory(Box<[AtomicI32]>);

impl Directory {
    pub(crate) fn new(shards: u16) -> Arc<Self> {
        Arc::new(Self((0..shards).map(|_| AtomicI32::new(-1)).collect()))
    }
}

/// See the module documentation.
pub(crate) struct Uring {
    shard: ShardId,
    // Dropped first, so that the kernel lets go of all memory below.
    ring: Ring,
    features: Features,
    streams: BufferRing,
    datagrams: Option<BufferRing>,
    datagram_buffers: u32,
    datagram_socket_buffers: SocketBufferSizes,
    fill: Pool,
    listeners: Vec<Listener>,
    accepting: bool,
    /// Slots of our own that are free; empty without direct descriptors.
    own_slots: Vec<u32>,
    tried: Vec<Tried>,
    /// Sends of this turn that were not done whole, by stream.
    failed: HashMap<u32, i32>,
    tried_messages: Vec<TriedMessage>,
    transmits: Vec<Transmit>,
    message_memory: Box<[MessageMemory]>,
    message_memory_used: usize,
    message_vectors: Box<[libc::iovec]>,
    message_vectors_used: usize,
    /// Headers of stream sends with several pieces.
    headers: Box<[libc::msghdr]>,
    headers_used: usize,
    /// What a multishot recvmsg is to deliver beside the data.
    receive_header: Box<libc::msghdr>,
    /// Receives that found no buffer, to be armed again when there is one.
    starved: VecDeque<Starved>,
    connecting: HashMap<u32, Box<socket2::SockAddr>>,
    /// The same of datagram sockets.
    connecting_sockets: HashMap<u32, Box<socket2::SockAddr>>,
    capacity: usize,
    descriptors: usize,
    eventfd: Option<Arc<EventFdWaker>>,
    eventfd_armed: bool,
    directory: Arc<Directory>,
    /// Kept open so that the port has a visible holder.
    bound: Vec<OwnedFd>,
    again: Vec<u32>,
    /// Someone waits to hear how a send of this turn ended: do not sleep on it.
    outcome_awaited: bool,
}

impl Uring {
    /// A driver for the current thread.
    pub(crate) fn new(shard: ShardId, limits: &Limits, settings: &Settings) -> io::Result<Self> {
        let features = probe(&settings.options).map_err(io::Error::other)?;
        let ring = Ring::new(features)?;
        let incremental = features.has(Feature::IncrementalBuffers);
        let buffer_len = if incremental {
            INCREMENTAL_BUFFER_LEN
        } else {
            STREAM_BUFFER_LEN
        };
        let count = (limits.stream_pool_bytes / buffer_len)
            .clamp(16, 1 << 15)
            .next_power_of_two();
        let streams = BufferRing::new(
            &ring,
            STREAM_GROUP,
            count.min(1 << 15) as u16,
            buffer_len,
            incremental,
        )?;

        let direct = features.has(Feature::DirectDescriptors);
        let table = Table::for_streams(settings.streams, settings.files, settings.listens);
        let capacity = if direct {
            table.streams()
        } else {
            streams_as_files(settings.files)
        };
        let table_len = if direct { table.len as u32 } else { 0 };
        let own = if direct { table.own() as u32 } else { 0 };
        if direct {
            ring.raw().submitter().register_files_sparse(table_len)?;
            if settings.listens {
                ring.reserve_slots(own, table_len - own)?;
            }
        }
        settings.directory.0[usize::from(shard)].store(ring.raw().as_raw_fd(), Ordering::Release);
        // SAFETY: an all-zero msghdr is a valid one: null pointers and zero lengths.
        let mut receive_header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive_header.msg_namelen = NAME_LEN as u32;
        receive_header.msg_controllen = CONTROL_LEN;
        let submissions = ring.submission_capacity();
        Ok(Self {
            shard,
            ring,
            features,
            streams,
            datagrams: None,
            datagram_buffers: limits.datagram_buffers,
            datagram_socket_buffers: limits.datagram_socket_buffers,
            fill: Pool::new(limits.fill_buffers, FILL_BUFFER_LEN)?,
            listeners: Vec::new(),
            accepting: true,
            own_slots: (0..own).rev().collect(),
            tried: Vec::new(),
            failed: HashMap::new(),
            tried_messages: Vec::new(),
            transmits: Vec::new(),
            message_memory: Box::new([]),
            message_memory_used: 0,
            message_vectors: Box::new([]),
            message_vectors_used: 0,
            // SAFETY: as above.
            headers: vec![unsafe { std::mem::zeroed() }; submissions].into(),
            headers_used: 0,
            receive_header,
            starved: VecDeque::new(),
            connecting: HashMap::new(),
            connecting_sockets: HashMap::new(),
            capacity,
            descriptors: 0,
            eventfd: None,
            eventfd_armed: false,
            directory: Arc::clone(&settings.directory),
            bound: Vec::new(),
            again: Vec::new(),
            outcome_awaited: false,
        })
    }

    /// # Safety
    /// As [`Ring::push`].
    #[inline]
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: passed on.
        if let Err(error) = unsafe { self.ring.push(entry) } {
            // Only a broken ring refuses a submission (EBADF, EFAULT): there is no way on.
            panic!("io_uring refused a submission: {error}");
        }
    }

    /// Cancels one request. By its user data, which the kernel hashes: a cancel by descriptor
    /// would look at every request of the ring, and closing 20,000 connections took 10 s so.
    fn cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data)
            .build()
            .user_data(tag(Op::Ignore, 0, 0));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }
}

impl Driver for Uring {
    fn now(&self) -> Nanos {
        monotonic_now()
    }

    fn waker(&mut self) -> io::Result<Arc<dyn Waker>> {
        if self.features.has(Feature::RingMessages) {
            return Ok(Arc::new(self.ring.message_waker(tag(Op::Wake, 0, 0))?));
        }
        let eventfd = Arc::new(EventFdWaker::new()?);
        self.eventfd = Some(Arc::clone(&eventfd));
        self.arm_eventfd();
        Ok(eventfd)
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn listen(&mut self, _tables: &mut Tables, listener: BoundListener) -> io::Result<()> {
        self.listeners.push(Listener {
            id: listener.id,
            fd: listener.socket.into_fd()?,
            wants_peer: listener.wants_peer,
            armed: false,
        });
        self.arm_accept(self.listeners.len() - 1);
        Ok(())
    }

    fn accept(&mut self, _tables: &mut Tables, on: bool) {
        self.accepting = on;
        for at in 0..self.listeners.len() {
            if on {
                self.arm_accept(at);
            } else if self.listeners[at].armed {
                self.cancel(tag(Op::Accept, 0, at as u32));
            }
        }
    }

    fn add_socket(
        &mut self,
        tables: &mut Tables,
        socket: BoundDatagramSocket,
    ) -> io::Result<SocketId> {
        let fd = socket.socket.into_fd()?;
        // A direct descriptor is in nobody's list of files: keep one that says who holds the port.
        self.bound.push(fd.try_clone()?);
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
        self.connect_datagrams(tables, index, peer);
    }

    fn close_socket(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.sockets.id(index).generation;
        tables.close_socket(index);
        let socket = tables.sockets.at(index);
        socket.outstanding += 1;
        let (slot, bits, blocked) = (socket.slot, socket.driver, socket.blocked);
        if bits & bit::ARMED != 0 {
            self.cancel(tag(Op::ReceiveMessage, generation, index));
        }
        if blocked {
            self.cancel(tag(Op::Writable, generation, index));
        }
        self.close_slot(slot, bits, tag(Op::CloseSocket, generation, index));
    }

    fn read_socket(&mut self, tables: &mut Tables, index: u32, on: bool) {
        let generation = tables.sockets.id(index).generation;
        if on {
            self.arm_receive_message(tables, index);
        } else if tables.sockets.at(index).driver & bit::ARMED != 0 {
            self.cancel(tag(Op::ReceiveMessage, generation, index));
        }
    }

    fn connect(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        connect: &Connect,
    ) -> io::Result<StreamId> {
        let address = Box::new(socket::socket_address(&connect.to)?);
        let (slot, bits) = self.take_slot(socket::open_stream(connect)?)?;
        self.descriptors += 1;
        let id = tables
            .streams
            .insert(service, slot, State::Connecting, tables.active);
        let stream = tables.streams.at(id.index);
        stream.driver = bits;
        stream.outstanding = 1;
        let entry = opcode::Connect::new(types::Fd(slot), address.as_ptr().cast(), address.len())
            .build()
            .flags(slot_flags(bits))
            .user_data(tag(Op::Connect, id.generation, id.index));
        self.connecting.insert(id.index, address);
        // SAFETY: the address is boxed and kept in `connecting` until the request has completed.
        unsafe { self.push(&entry) };
        Ok(id)
    }

    fn read(&mut self, tables: &mut Tables, index: u32, on: bool) {
        if on {
            self.arm_receive(tables, index);
        } else {
            self.cancel_receive(tables, index);
        }
    }

    fn finish(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.streams.id(index).generation;
        let stream = tables.streams.at(index);
        if stream.driver & bit::SHUTTING != 0 {
            return;
        }
        stream.driver |= bit::SHUTTING;
        stream.outstanding += 1;
        let entry = opcode::Shutdown::new(types::Fd(stream.slot), libc::SHUT_WR)
            .build()
            .flags(slot_flags(stream.driver))
            .user_data(tag(Op::Shutdown, generation, index));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }

    fn close(&mut self, tables: &mut Tables, index: u32, how: Close) {
        let generation = tables.streams.id(index).generation;
        let stream = tables.streams.at(index);
        let (slot, bits) = (stream.slot, stream.driver);
        let sending = stream.queue.as_ref().is_some_and(|queue| queue.in_flight);
        stream.outstanding += 1;
        self.cancel_receive(tables, index);
        if sending {
            self.cancel(tag(Op::SlowSend, generation, index));
        }
        if self.connecting.contains_key(&index) {
            self.cancel(tag(Op::Connect, generation, index));
        }
        if how == Close::Reset && self.features.has(Feature::SocketCommands) {
            let entry = ring::linger_reset(types::Fd(slot))
                .flags(slot_flags(bits))
                .user_data(tag(Op::Ignore, 0, 0));
            // SAFETY: the option's value is static.
            unsafe { self.push(&entry) };
        }
        // Else it follows when the shutdown has ended.
        if bits & bit::SHUTTING == 0 {
            self.close_slot(slot, bits, tag(Op::Close, generation, index));
        }
    }

    fn hand_on(
        &mut self,
        tables: &mut Tables,
        index: u32,
        listener: ListenerId,
        to: ShardId,
    ) -> bool {
        let ring = self.directory.0[usize::from(to)].load(Ordering::Acquire);
        let stream = tables.streams.at(index);
        if ring < 0 || to == self.shard || stream.driver & bit::FILE != 0 {
            return false;
        }
        stream.state = State::Closing;
        stream.outstanding += 1;
        let slot = stream.slot;
        let adopt = tag(
            Op::Adopt,
            u32::from(listener.service),
            u32::from(listener.endpoint),
        );
        let entry = opcode::MsgRingSendFd::new(
            types::Fd(ring),
            types::Fixed(slot as u32),
            types::DestinationSlot::auto_target(),
            adopt,
        )
        .build()
        .user_data(tag(Op::HandOn, 0, index));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
        true
    }

    fn fill(&mut self) -> Option<BufferMut> {
        self.fill.fill()
    }

    fn segments_max(&self, stride: usize) -> usize {
        segments_that_fit(stride, socket::gso_segments_max())
    }

    fn wait(&mut self, tables: &mut Tables, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        self.replenish(tables);
        tables.flush_sockets(|tables, index| self.flush_socket(tables, index));
        tables.flush_streams(|tables, index| self.try_send(tables, index));
        // Receives that wait for a buffer may get one that is being sent from.
        let sending = !self.tried.is_empty() || !self.tried_messages.is_empty();
        self.outcome_awaited |= sending && !self.starved.is_empty();
        let mut wait = if std::mem::take(&mut self.outcome_awaited) {
            Wait::Poll
        } else {
            wait
        };
        let now = match wait {
            Wait::Poll => 0,
            Wait::Forever if !sending => 0,
            _ => monotonic_now(),
        };
        if sending {
            wait = wait.not_past(now + UNSETTLED_MAX);
        }
        self.ring.submit_and_wait(wait, now)?;
        self.take_completions(tables, events)?;
        if !self.tried.is_empty() || !self.again.is_empty() {
            self.settle_tried(tables, events);
        }
        if !self.tried_messages.is_empty() {
            self.settle_messages(tables, events);
        }
        Ok(())
    }

    fn held(&self) -> Held {
        let of = |buffers: &BufferRing| {
            buffers.pool.capacity() - buffers.pool.available() - buffers.lent()
        };
        Held {
            buffers: of(&self.streams)
                + self.datagrams.as_ref().map_or(0, of)
                + (self.fill.capacity() - self.fill.available()),
            descriptors: self.descriptors,
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.directory.0[usize::from(self.shard)].store(-1, Ordering::Release);
        // A waker may keep the ring itself open: end what it holds.
        self.ring.cancel_all();
        let _ = self.ring.raw().submitter().unregister_files();
        for listener in &mut self.listeners {
            if let Ok(replacement) = std::fs::File::open("/dev/null") {
                listener.fd = replacement.into();
            }
        }
    }
}
