//! The io_uring driver: the default, and the fastest way through the kernel.
//!
//! One ring serves one shard. Accepts and receives are multishot; what arrives is in buffers that
//! the kernel picked. Sends are *tried in their submission* (MSG_DONTWAIT, no completion on
//! success): when the submitting call has returned, a send that reported nothing is done and its
//! buffer is free. Only what did not fit into the socket is sent again as a request that waits.
//! So the common path costs one submission entry and no completion.

mod features;
mod ring;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use io_uring::{cqueue, opcode, squeue, types};

use self::ring::{BufferRing, Ring};
use super::{
    BoundDatagramSocket, BoundListener, Close, Connect, Driver, Event, Held, Open, Tables, Wait,
    segments_that_fit, streams_as_files,
};
use crate::datagram::{Transmit, segments};
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::mailbox::Waker;
use crate::stream::{SendQueue, State};
use crate::sys::buffer::Pool;
use crate::sys::eventfd::EventFdWaker;
use crate::sys::message::{self, CONTROL_LEN, Control, NAME_LEN, Name};
use crate::sys::socket::{self, Share};
use crate::time::monotonic_now;
use crate::{BufferMut, Datagram, Limits, Nanos, Payload};

pub use self::features::{Feature, Features, Unavailable};

const STREAM_GROUP: u16 = 0;
const DATAGRAM_GROUP: u16 = 1;
/// One stream receive buffer. Large enough for a deep pipeline of small messages in one receive.
const STREAM_BUFFER_LEN: usize = 4096;
/// With incremental buffers a receive takes only what it fills, so they can be larger.
const INCREMENTAL_BUFFER_LEN: usize = 64 << 10;
/// One datagram buffer: header, address, control messages and the most that the kernel coalesces.
const DATAGRAM_BUFFER_LEN: usize = 64 * 1024 + 256;
/// One buffer that a protocol fills.
const FILL_BUFFER_LEN: usize = 64 << 10;
/// Slots that the kernel does not choose from, for what we open ourselves beside a listener.
const OWN_SLOTS_WITH_LISTENERS: usize = 1024;
/// Accepts that may be on their way while the table is declared full.
const SLOT_SLACK: usize = 512;
/// Bytes in one send of one piece: its length travels in 32 bits.
const SEND_LEN_MAX: usize = 1 << 30;
/// Pieces of one stream's queue in one send.
const VECTORS_MAX: usize = 64;

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

/// How many streams one ring holds under a limit of open files, which is also that of its table.
/// Without direct descriptors the limit is that of all rings together: see
/// [`Features::streams_held`].
#[must_use]
pub fn streams_per_ring(files: usize, listens: bool) -> usize {
    Table {
        len: files,
        listens,
    }
    .streams()
    .max(1)
}

/// How many rings hold `connections` streams under a limit of open files, which is also that of
/// a ring's table. Without direct descriptors see [`Features::rings_for`].
#[must_use]
pub fn rings_for(connections: usize, files: usize, listens: bool) -> usize {
    connections.div_ceil(streams_per_ring(files, listens))
}

impl Features {
    /// How many streams so many rings of one process hold together under a limit of open files.
    /// With direct descriptors the limit is that of each ring's table; without them every stream
    /// is a file of the process, and more rings hold no more.
    #[must_use]
    pub fn streams_held(self, rings: usize, files: usize, listens: bool) -> usize {
        if self.has(Feature::DirectDescriptors) {
            rings * streams_per_ring(files, listens)
        } else {
            streams_as_files(files)
        }
    }

    /// How many rings hold `connections` streams under a limit of open files, or as many of them
    /// as the limit allows: see [`Features::streams_held`].
    #[must_use]
    pub fn rings_for(self, connections: usize, files: usize, listens: bool) -> usize {
        if self.has(Feature::DirectDescriptors) {
            rings_for(connections, files, listens)
        } else {
            1
        }
    }
}

/// How a ring's table of direct descriptors is divided.
#[derive(Debug, Clone, Copy)]
struct Table {
    len: usize,
    listens: bool,
}

impl Table {
    /// Slots for what we open ourselves: all of them, unless the kernel chooses slots for what it
    /// accepts.
    fn own(self) -> usize {
        if self.listens {
            OWN_SLOTS_WITH_LISTENERS.min(self.len / 16)
        } else {
            self.len
        }
    }

    /// Accepts that may be on their way while the table is declared full.
    fn slack(self) -> usize {
        SLOT_SLACK.min(self.len / 16)
    }

    /// Streams that fit: shards do not fill evenly under a hash, so a part stays free.
    fn streams(self) -> usize {
        if self.listens {
            self.len - self.own() - self.slack()
        } else {
            self.len - self.slack()
        }
    }

    /// A table for so many streams, as large as the limit of files allows.
    fn for_streams(streams: usize, files: usize, listens: bool) -> Self {
        let wanted = streams + streams / 4 + OWN_SLOTS_WITH_LISTENERS + SLOT_SLACK;
        Self {
            len: wanted.max(4096).min(files),
            listens,
        }
    }
}

/// What a completion answers: in the top byte of its user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Op {
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

const OPS: [Op; 15] = [
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
    Op::Wake,
    Op::Adopt,
    Op::HandOn,
    Op::Shutdown,
    Op::Ignore,
];

/// User data: 8 bits operation, 24 bits generation (or other detail), 32 bits index.
#[inline]
fn tag(op: Op, detail: u32, index: u32) -> u64 {
    (op as u64) << 56 | u64::from(detail & 0xff_ffff) << 32 | u64::from(index)
}

/// Bits of a stream's driver byte.
mod bit {
    /// A receive is armed.
    pub(super) const ARMED: u8 = 1;
    /// A cancel of the receive is under way.
    pub(super) const CANCELLING: u8 = 2;
    /// The slot is a file of the process, not a direct descriptor.
    pub(super) const FILE: u8 = 4;
    /// Receives fill several buffers.
    pub(super) const BUNDLE: u8 = 8;
    /// The peer has sent FIN, or receiving has failed: do not arm again.
    pub(super) const ENDED: u8 = 16;
    /// The failure has been reported.
    pub(super) const FAILED: u8 = 32;
    /// The slot was chosen by us and returns to our list.
    pub(super) const OWN: u8 = 64;
    /// A shutdown is under way. The kernel runs it on a worker that looks the slot up only then:
    /// the slot must not be closed before, or the next stream in it would be shut down.
    pub(super) const SHUTTING: u8 = 128;
}

struct Listener {
    id: ListenerId,
    fd: OwnedFd,
    wants_peer: bool,
    armed: bool,
}

/// A send handed to the kernel in this turn.
struct Tried {
    index: u32,
    bytes: usize,
}

/// A datagram send handed to the kernel in this turn.
struct TriedMessage {
    index: u32,
    datagrams: usize,
    /// Which transmit of `transmits`, and the part of it.
    transmit: usize,
    start: usize,
    len: usize,
    segmented: bool,
    result: i32,
}

/// Memory that the kernel reads while it takes a datagram send.
#[derive(Clone)]
struct MessageMemory {
    header: libc::msghdr,
    vector: libc::iovec,
    name: Name,
    control: Control,
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
    datagram_socket_buffer_bytes: usize,
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
    /// Headers of stream sends with several pieces.
    headers: Box<[libc::msghdr]>,
    headers_used: usize,
    /// What a multishot recvmsg is to deliver beside the data.
    receive_header: Box<libc::msghdr>,
    /// Receives that found no buffer, to be armed again when there is one.
    starved: VecDeque<Starved>,
    connecting: HashMap<u32, Box<socket2::SockAddr>>,
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

enum Starved {
    Stream(u32, u32),
    Socket(u32, u32),
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
            datagram_socket_buffer_bytes: limits.datagram_socket_buffer_bytes,
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
            // SAFETY: as above.
            headers: vec![unsafe { std::mem::zeroed() }; submissions].into(),
            headers_used: 0,
            receive_header,
            starved: VecDeque::new(),
            connecting: HashMap::new(),
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

    // ---- accept ----------------------------------------------------------------------------

    fn arm_accept(&mut self, at: usize) {
        let listener = &mut self.listeners[at];
        if listener.armed {
            return;
        }
        listener.armed = true;
        let direct = self.features.has(Feature::DirectDescriptors) && !listener.wants_peer;
        let entry = opcode::AcceptMulti::new(types::Fd(listener.fd.as_raw_fd()))
            .allocate_file_index(direct)
            .flags(if direct {
                0
            } else {
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK
            })
            .build()
            .user_data(tag(Op::Accept, 0, at as u32));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }

    fn accepted(
        &mut self,
        tables: &mut Tables,
        at: usize,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let result = completion.result();
        let listener = &mut self.listeners[at];
        if !cqueue::more(completion.flags()) {
            listener.armed = false;
        }
        let (id, wants_peer) = (listener.id, listener.wants_peer);
        if result >= 0 {
            let direct = self.features.has(Feature::DirectDescriptors) && !wants_peer;
            let peer = wants_peer.then(|| {
                // SAFETY: the kernel has just given us this descriptor; it stays ours, the
                // borrow ends here.
                socket::peer_address(&unsafe { std::os::fd::BorrowedFd::borrow_raw(result) })
            });
            let stream = self.adopt_slot(
                tables,
                id.service,
                result,
                if direct { 0 } else { bit::FILE },
            );
            events.push(Event::Accepted {
                listener: id,
                stream,
                peer: peer.flatten(),
            });
        } else {
            match -result {
                libc::ECANCELED
                | libc::ECONNABORTED
                | libc::EINTR
                | libc::EAGAIN
                | libc::EPROTO => {}
                errno => {
                    events.push(Event::AcceptFailed {
                        listener: id,
                        errno,
                    });
                    return;
                }
            }
        }
        if self.accepting && !self.listeners[at].armed {
            self.arm_accept(at);
        }
    }

    fn adopt_slot(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        slot: i32,
        bits: u8,
    ) -> StreamId {
        self.descriptors += 1;
        let stream = tables
            .streams
            .insert(service, slot, State::Open, tables.active);
        tables.streams.at(stream.index).driver = bits;
        stream
    }

    // ---- streams ---------------------------------------------------------------------------

    fn arm_receive(&mut self, tables: &mut Tables, index: u32) {
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        if stream.driver & (bit::ARMED | bit::ENDED) != 0 || stream.paused {
            return;
        }
        stream.driver |= bit::ARMED;
        stream.outstanding += 1;
        let group = self.streams.group();
        let fd = types::Fd(stream.slot);
        let entry = if stream.driver & bit::BUNDLE != 0 {
            opcode::RecvMultiBundle::new(fd, group).build()
        } else {
            opcode::RecvMulti::new(fd, group).build()
        };
        let entry = entry.flags(slot_flags(stream.driver)).user_data(tag(
            Op::Receive,
            id.generation,
            index,
        ));
        // SAFETY: the buffers are those of the registered group.
        unsafe { self.push(&entry) };
    }

    fn cancel_receive(&mut self, tables: &mut Tables, index: u32) {
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        if stream.driver & bit::ARMED != 0 && stream.driver & bit::CANCELLING == 0 {
            stream.driver |= bit::CANCELLING;
            self.cancel(tag(Op::Receive, id.generation, index));
        }
    }

    #[inline]
    fn received(
        &mut self,
        tables: &mut Tables,
        index: u32,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let (result, flags) = (completion.result(), completion.flags());
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        let more = cqueue::more(flags);
        if !more {
            stream.driver &= !(bit::ARMED | bit::CANCELLING);
            stream.outstanding -= 1;
        }
        if result > 0 {
            let bid = cqueue::buffer_select(flags).expect("a receive with data names its buffer");
            let len = result as usize;
            let wanted = stream.state == State::Open;
            self.streams
                .received(bid, len, cqueue::buffer_more(flags), |data| {
                    if wanted {
                        events.push(Event::Received { stream: id, data });
                    }
                });
            // A full buffer means that more was waiting: let one receive take several from now on.
            if len >= STREAM_BUFFER_LEN
                && stream.driver & bit::BUNDLE == 0
                && self.features.has(Feature::Bundles)
                && !self.streams_incremental()
            {
                tables.streams.at(index).driver |= bit::BUNDLE;
                self.cancel_receive(tables, index);
            }
        } else {
            match without_data(&mut self.streams, tables, completion) {
                WithoutData::End => {
                    let stream = tables.streams.at(index);
                    stream.driver |= bit::ENDED;
                    if stream.state == State::Open {
                        events.push(Event::Ended { stream: id });
                    }
                }
                WithoutData::Nothing => {}
                WithoutData::NoBuffer => {
                    self.starved
                        .push_back(Starved::Stream(index, id.generation));
                    self.release_if_done(tables, index);
                    return;
                }
                WithoutData::Failed(errno) => {
                    tables.streams.at(index).driver |= bit::ENDED;
                    tables.stream_failed(index, bit::FAILED, errno, events);
                }
            }
        }
        if !more {
            if tables.streams.at(index).state == State::Open {
                self.arm_receive(tables, index);
            } else {
                self.release_if_done(tables, index);
            }
        }
    }

    fn streams_incremental(&self) -> bool {
        self.streams.pool.buffer_len() == INCREMENTAL_BUFFER_LEN
    }

    /// Frees the entry of a closed stream once the kernel holds no request for it.
    fn release_if_done(&mut self, tables: &mut Tables, index: u32) {
        let stream = tables.streams.at(index);
        if stream.state == State::Closing && stream.outstanding == 0 {
            tables.streams.remove(index);
        }
    }

    #[inline]
    fn try_send(&mut self, tables: &mut Tables, index: u32) {
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
        if self.headers_used == self.headers.len() || self.ring.is_full() {
            self.submit_tried();
        }
        let generation = tables.streams.id(index).generation;
        let stream = tables.streams.at(index);
        let Some(queue) = &mut stream.queue else {
            return;
        };
        if queue.in_flight || queue.bytes == 0 {
            return;
        }
        let fd = types::Fd(stream.slot);
        let (entry, bytes) = if queue.chunks.len() == 1 {
            let chunk = queue.chunks[0].bytes();
            let chunk = &chunk[..chunk.len().min(SEND_LEN_MAX)];
            (
                opcode::Send::new(fd, chunk.as_ptr(), chunk.len() as u32)
                    .flags(FLAGS)
                    .build(),
                chunk.len(),
            )
        } else {
            let bytes = gather(queue);
            let header = &mut self.headers[self.headers_used];
            self.headers_used += 1;
            header.msg_iov = queue.vectors.as_mut_ptr();
            header.msg_iovlen = queue.vectors.len();
            (
                opcode::SendMsg::new(fd, header).flags(FLAGS as u32).build(),
                bytes,
            )
        };
        // A send that succeeds gives no completion, which would end the wait.
        let rest = bytes < queue.bytes;
        let closing = stream.state == State::Draining || stream.finishing;
        self.outcome_awaited |= queue.was_full || rest || closing;
        let entry = entry
            .flags(slot_flags(stream.driver) | squeue::Flags::SKIP_SUCCESS)
            .user_data(tag(Op::Send, generation, index));
        // SAFETY: MSG_DONTWAIT makes the kernel finish with the chunks, the vectors and the header
        // within the submission. All three stay in place until `settle_tried`, which runs after
        // the submission: the queue is boxed, and nothing is removed from it before.
        unsafe { self.push(&entry) };
        self.tried.push(Tried { index, bytes });
    }

    /// Submits what was tried so far: its memory can be used again.
    fn submit_tried(&mut self) {
        if let Err(error) = self.ring.submit() {
            panic!("io_uring refused a submission: {error}");
        }
        self.headers_used = 0;
        self.message_memory_used = 0;
    }

    /// After the submission, when all its completions are known: what did not fail was sent.
    fn settle_tried(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        self.headers_used = 0;
        self.message_memory_used = 0;
        let mut tried = std::mem::take(&mut self.tried);
        for Tried { index, bytes } in tried.drain(..) {
            if self.failed.is_empty() {
                if !tables.stream_sent(index, bytes, events) {
                    self.again.push(index);
                }
                continue;
            }
            let result = self.failed.get(&index).copied();
            self.settle_one(tables, index, bytes, result, events);
        }
        self.tried = tried;
        self.failed.clear();
        // More than fits one send was queued: the rest goes next turn.
        while let Some(index) = self.again.pop() {
            tables.streams.mark_dirty(index);
        }
    }

    #[cold]
    fn settle_one(
        &mut self,
        tables: &mut Tables,
        index: u32,
        bytes: usize,
        result: Option<i32>,
        events: &mut Vec<Event>,
    ) {
        let sent = match result {
            None => bytes,
            Some(result) if result >= 0 => result as usize,
            Some(errno)
                if errno == -libc::EAGAIN || errno == -libc::EINTR || errno == -libc::ENOBUFS =>
            {
                0
            }
            Some(errno) => {
                tables.stream_failed(index, bit::FAILED, -errno, events);
                return;
            }
        };
        let empty = tables.stream_sent(index, sent, events);
        if !empty && sent == bytes {
            self.again.push(index);
        } else if !empty {
            self.slow_send(tables, index);
        }
    }

    /// Sends the queue by a request that waits for room.
    fn slow_send(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.streams.id(index).generation;
        let stream = tables.streams.at(index);
        let Some(queue) = &mut stream.queue else {
            return;
        };
        // The peer is slow: what it waits for must not hold receive buffers of others.
        queue.unpin();
        queue.in_flight = true;
        stream.outstanding += 1;
        let chunk = queue
            .chunks
            .front()
            .expect("the queue is not empty")
            .bytes();
        let chunk = &chunk[..chunk.len().min(SEND_LEN_MAX)];
        let entry = opcode::Send::new(types::Fd(stream.slot), chunk.as_ptr(), chunk.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .flags(slot_flags(stream.driver))
            .user_data(tag(Op::SlowSend, generation, index));
        // SAFETY: while `in_flight` is set nothing is removed from the front of the queue, a
        // chunk's bytes never move, and the entry (and with it the queue) is freed only when
        // `outstanding` is zero.
        unsafe { self.push(&entry) };
    }

    fn slow_sent(&mut self, tables: &mut Tables, index: u32, result: i32, events: &mut Vec<Event>) {
        let stream = tables.streams.at(index);
        stream.outstanding -= 1;
        if let Some(queue) = &mut stream.queue {
            queue.in_flight = false;
        }
        if stream.state == State::Closing {
            self.release_if_done(tables, index);
            return;
        }
        match result {
            sent if sent >= 0 => {
                if !tables.stream_sent(index, sent as usize, events) {
                    self.again.push(index);
                }
            }
            errno if errno == -libc::EAGAIN || errno == -libc::EINTR => self.again.push(index),
            errno => tables.stream_failed(index, bit::FAILED, -errno, events),
        }
    }

    fn connected(&mut self, tables: &mut Tables, index: u32, result: i32, events: &mut Vec<Event>) {
        self.connecting.remove(&index);
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        stream.outstanding -= 1;
        if stream.state == State::Closing {
            self.release_if_done(tables, index);
        } else if result == 0 {
            stream.state = State::Open;
            events.push(Event::Connected { stream: id });
            self.arm_receive(tables, index);
        } else {
            tables.stream_failed(index, bit::FAILED, -result, events);
        }
    }

    /// Puts a file that we opened into the table where there is one, and returns its slot.
    fn take_slot(&mut self, fd: OwnedFd) -> io::Result<(i32, u8)> {
        if !self.features.has(Feature::DirectDescriptors) {
            return Ok((fd.into_raw_fd(), bit::FILE));
        }
        let slot = self
            .own_slots
            .pop()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
        if let Err(error) = self
            .ring
            .raw()
            .submitter()
            .register_files_update(slot, &[fd.as_raw_fd()])
        {
            self.own_slots.push(slot);
            return Err(error);
        }
        Ok((slot as i32, bit::OWN))
    }

    fn close_slot(&mut self, slot: i32, bits: u8, user_data: u64) {
        let entry = if bits & bit::FILE != 0 {
            opcode::Close::new(types::Fd(slot)).build()
        } else {
            opcode::Close::new(types::Fixed(slot as u32)).build()
        };
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry.user_data(user_data)) };
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

    // ---- datagrams -------------------------------------------------------------------------

    fn open_datagram_buffers(&mut self) -> io::Result<()> {
        if self.datagrams.is_none() {
            let count = self.datagram_buffers.clamp(8, 1 << 14).next_power_of_two() as u16;
            self.datagrams = Some(BufferRing::new(
                &self.ring,
                DATAGRAM_GROUP,
                count,
                DATAGRAM_BUFFER_LEN,
                false,
            )?);
            let memory = MessageMemory {
                // SAFETY: an all-zero msghdr is a valid one.
                header: unsafe { std::mem::zeroed() },
                vector: libc::iovec {
                    iov_base: std::ptr::null_mut(),
                    iov_len: 0,
                },
                name: Name::new(),
                control: Control::new(),
            };
            self.message_memory = vec![memory; self.ring.submission_capacity()].into();
        }
        Ok(())
    }

    fn insert_socket(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        fd: OwnedFd,
        local: SocketAddr,
    ) -> io::Result<SocketId> {
        self.open_datagram_buffers()?;
        let (slot, bits) = self.take_slot(fd)?;
        self.descriptors += 1;
        let id = tables.sockets.insert(service, slot, local);
        tables.sockets.at(id.index).driver = bits;
        self.arm_receive_message(tables, id.index);
        Ok(id)
    }

    fn arm_receive_message(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.sockets.id(index).generation;
        let socket = tables.sockets.at(index);
        if socket.driver & bit::ARMED != 0 || socket.paused || !socket.open {
            return;
        }
        socket.driver |= bit::ARMED;
        socket.outstanding += 1;
        let header: *const libc::msghdr = &raw const *self.receive_header;
        let entry = opcode::RecvMsgMulti::new(types::Fd(socket.slot), header, DATAGRAM_GROUP)
            .build()
            .flags(slot_flags(socket.driver))
            .user_data(tag(Op::ReceiveMessage, generation, index));
        // SAFETY: the header is boxed, never written again and outlives the ring's requests; the
        // buffers are those of the registered group.
        unsafe { self.push(&entry) };
    }

    fn received_message(
        &mut self,
        tables: &mut Tables,
        index: u32,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let (result, flags) = (completion.result(), completion.flags());
        let id = tables.sockets.id(index);
        let socket = tables.sockets.at(index);
        let more = cqueue::more(flags);
        if !more {
            socket.driver &= !(bit::ARMED | bit::CANCELLING);
            socket.outstanding -= 1;
        }
        let open = socket.open;
        let buffers = self.datagrams.as_mut().expect("a socket was opened");
        if result >= 0 {
            if let Some(bid) = cqueue::buffer_select(flags) {
                buffers.received(bid, result as usize, false, |mut data| {
                    let header = *self.receive_header;
                    let Ok(parsed) = types::RecvMsgOut::parse(&data, &header) else {
                        return;
                    };
                    let Some(peer) = message::parse_name(parsed.name_data()) else {
                        return;
                    };
                    let control = message::parse_control(parsed.control_data());
                    let payload = parsed.payload_data().len();
                    // The payload is what follows the fixed-size head.
                    let head = data.len() - payload;
                    data.advance(head);
                    if open {
                        let stride = control
                            .stride
                            .unwrap_or(u16::try_from(payload).unwrap_or(u16::MAX));
                        let datagram = Datagram {
                            peer,
                            local: control.local,
                            ecn: control.ecn,
                            stride,
                            data,
                        };
                        events.push(Event::Datagram {
                            socket: id,
                            datagram,
                        });
                    }
                });
            }
        } else {
            match without_data(buffers, tables, completion) {
                WithoutData::NoBuffer => {
                    self.starved
                        .push_back(Starved::Socket(index, id.generation));
                    self.release_socket_if_done(tables, index);
                    return;
                }
                WithoutData::Failed(errno) if open => {
                    events.push(Event::SocketError { socket: id, errno });
                }
                WithoutData::Failed(_) | WithoutData::Nothing | WithoutData::End => {}
            }
        }
        if !more {
            if tables.sockets.at(index).open {
                self.arm_receive_message(tables, index);
            } else {
                self.release_socket_if_done(tables, index);
            }
        }
    }

    fn release_socket_if_done(&mut self, tables: &mut Tables, index: u32) {
        let socket = tables.sockets.at(index);
        if !socket.open && socket.outstanding == 0 && socket.slot >= 0 {
            tables.sockets.remove(index);
        }
    }

    /// Tries the whole queue of a socket.
    fn flush_socket(&mut self, tables: &mut Tables, index: u32) {
        self.outcome_awaited |= tables.sockets.at(index).was_full;
        while let Some(transmit) = tables.sockets.at(index).queue.pop_front() {
            self.try_transmit(tables, index, transmit);
        }
    }

    /// Hands one transmit to the kernel: as one GSO send, or datagram by datagram.
    fn try_transmit(&mut self, tables: &mut Tables, index: u32, transmit: Transmit) {
        let no_gso = tables.sockets.at(index).no_gso;
        let (len, stride) = (transmit.data.len(), transmit.stride);
        let at = self.transmits.len();
        let whole = segments(len, stride);
        let at_once = if no_gso {
            1
        } else {
            self.segments_max(usize::from(stride))
        };
        self.transmits.push(transmit);
        if whole <= at_once {
            self.try_message(tables, index, at, 0, len, whole);
            return;
        }
        let step = usize::from(stride).max(1) * at_once;
        let mut start = 0;
        while start < len {
            let part = step.min(len - start);
            self.try_message(tables, index, at, start, part, segments(part, stride));
            start += part;
        }
    }

    fn try_message(
        &mut self,
        tables: &mut Tables,
        index: u32,
        at: usize,
        start: usize,
        len: usize,
        count: usize,
    ) {
        if self.message_memory_used == self.message_memory.len() || self.ring.is_full() {
            self.submit_tried();
        }
        let socket = tables.sockets.at(index);
        let transmit = &self.transmits[at];
        let memory = &mut self.message_memory[self.message_memory_used];
        self.message_memory_used += 1;
        let bytes = &transmit.data.bytes()[start..start + len];
        memory.vector = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: len,
        };
        memory.header.msg_iov = &raw mut memory.vector;
        memory.header.msg_iovlen = 1;
        match transmit.peer {
            Some(peer) => {
                memory.name.set(peer, socket.ipv6);
                memory.header.msg_name = memory.name.as_slice().as_ptr().cast_mut().cast();
                memory.header.msg_namelen = memory.name.as_slice().len() as u32;
            }
            None => {
                memory.header.msg_name = std::ptr::null_mut();
                memory.header.msg_namelen = 0;
            }
        }
        self.outcome_awaited |= socket.was_full;
        let segmented = count > 1;
        memory.control.set(
            segmented.then_some(transmit.stride),
            transmit.source,
            transmit.ecn,
            socket.ipv6,
        );
        let control = memory.control.as_slice();
        memory.header.msg_controllen = control.len();
        memory.header.msg_control = if control.is_empty() {
            std::ptr::null_mut()
        } else {
            control.as_ptr().cast_mut().cast()
        };
        let entry = opcode::SendMsg::new(types::Fd(socket.slot), &raw const memory.header)
            .flags((libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u32)
            .build()
            .flags(slot_flags(socket.driver) | squeue::Flags::SKIP_SUCCESS)
            .user_data(tag(Op::SendMessage, 0, self.tried_messages.len() as u32));
        // SAFETY: MSG_DONTWAIT makes the kernel finish with the header, the name, the control
        // messages and the bytes within the submission; they stay in place until `settle_messages`
        // (the arena is reused only after a submit, the transmits are kept, their bytes never move).
        unsafe { self.push(&entry) };
        self.tried_messages.push(TriedMessage {
            index,
            datagrams: count,
            transmit: at,
            start,
            len,
            segmented,
            result: 0,
        });
    }

    /// As `settle_tried`, for datagrams.
    fn settle_messages(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        let mut again: Vec<(u32, Transmit)> = Vec::new();
        for tried in std::mem::take(&mut self.tried_messages) {
            let id = tables.sockets.id(tried.index);
            debug_assert!(
                tables.sockets.at(tried.index).open,
                "sockets close between waits, when every send is settled"
            );
            let errno = -tried.result;
            let retry = match errno {
                0 => {
                    tables.transmit_done(tried.index, tried.datagrams, tried.len, true);
                    false
                }
                // The socket's send buffer is full: wait for room.
                libc::EAGAIN => true,
                // No segmentation offload on this path, or the datagram is larger than its MTU.
                libc::EIO | libc::EINVAL | libc::EMSGSIZE if tried.segmented => {
                    tables.sockets.at(tried.index).no_gso = true;
                    true
                }
                errno => {
                    tables.transmit_done(tried.index, tried.datagrams, tried.len, false);
                    events.push(Event::SocketError { socket: id, errno });
                    false
                }
            };
            if retry {
                again.push((tried.index, self.untried(&tried)));
                let socket = tables.sockets.at(tried.index);
                if errno == libc::EAGAIN && !socket.blocked {
                    socket.blocked = true;
                    self.arm_writable(tables, tried.index);
                }
            } else {
                tables.socket_room(tried.index, tried.len, events);
            }
        }
        self.transmits.clear();
        // Back to the front, in their order.
        for (index, transmit) in again.into_iter().rev() {
            let socket = tables.sockets.at(index);
            socket.queue.push_front(transmit);
            if !socket.blocked {
                tables.sockets.mark_dirty(index);
            }
        }
    }

    /// The part of a transmit that the kernel did not take, holding no receive buffer.
    fn untried(&self, tried: &TriedMessage) -> Transmit {
        let transmit = &self.transmits[tried.transmit];
        let bytes = transmit.data.bytes();
        if tried.len == bytes.len() {
            return transmit.clone().unpinned();
        }
        let data = Payload::from(bytes[tried.start..tried.start + tried.len].to_vec());
        Transmit {
            data,
            ..transmit.clone()
        }
    }

    fn arm_writable(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.sockets.id(index).generation;
        let socket = tables.sockets.at(index);
        socket.outstanding += 1;
        let entry = opcode::PollAdd::new(types::Fd(socket.slot), libc::POLLOUT as u32)
            .build()
            .flags(slot_flags(socket.driver))
            .user_data(tag(Op::Writable, generation, index));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }

    fn writable(&mut self, tables: &mut Tables, index: u32) {
        let socket = tables.sockets.at(index);
        socket.outstanding -= 1;
        // Someone may wait for the queue to empty: a stop, or a protocol that was told "full".
        self.outcome_awaited = true;
        tables.unblock_socket(index);
        self.release_socket_if_done(tables, index);
    }

    // ---- the turn --------------------------------------------------------------------------

    fn arm_eventfd(&mut self) {
        let Some(eventfd) = &self.eventfd else { return };
        if self.eventfd_armed {
            return;
        }
        self.eventfd_armed = true;
        let entry = opcode::PollAdd::new(types::Fd(eventfd.as_raw_fd()), libc::POLLIN as u32)
            .build()
            .user_data(tag(Op::Wake, 1, 0));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }

    /// Gives free buffers to the kernel and arms the receives that waited for one.
    fn replenish(&mut self, tables: &mut Tables) {
        self.streams.lend();
        if let Some(datagrams) = &mut self.datagrams {
            datagrams.lend();
        }
        for _ in 0..self.starved.len() {
            let Some(starved) = self.starved.pop_front() else {
                return;
            };
            match starved {
                Starved::Stream(index, generation) if self.streams.lent() > 0 => {
                    let id = StreamId { index, generation };
                    if tables
                        .streams
                        .get(id)
                        .is_some_and(|stream| stream.state == State::Open)
                    {
                        self.arm_receive(tables, index);
                    }
                }
                Starved::Socket(index, generation)
                    if self
                        .datagrams
                        .as_ref()
                        .is_some_and(|buffers| buffers.lent() > 0) =>
                {
                    if tables.sockets.get(SocketId { index, generation }).is_some() {
                        self.arm_receive_message(tables, index);
                    }
                }
                still => self.starved.push_back(still),
            }
        }
    }

    fn take_completions(&mut self, tables: &mut Tables, events: &mut Vec<Event>) -> io::Result<()> {
        /// Completions copied out of the queue at a time, so that handling them may submit.
        const CHUNK: usize = 64;
        loop {
            while let Some(completion) = self.ring.stashed() {
                self.complete(tables, &completion, events);
            }
            let mut taken: [std::mem::MaybeUninit<cqueue::Entry>; CHUNK] =
                [const { std::mem::MaybeUninit::uninit() }; CHUNK];
            let mut queue = self.ring.completions();
            let chunk = queue.fill(&mut taken);
            drop(queue);
            for completion in chunk.iter() {
                self.complete(tables, completion, events);
            }
            if !chunk.is_empty() {
                continue;
            }
            if !self.ring.overflowed() {
                return Ok(());
            }
            tables.metrics.shard.completion_overflows.add(1);
            self.ring.flush_overflow()?;
        }
    }

    #[inline]
    fn complete(
        &mut self,
        tables: &mut Tables,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let user_data = completion.user_data();
        let op = OPS[(user_data >> 56) as usize];
        let detail = (user_data >> 32) as u32 & 0xff_ffff;
        let index = user_data as u32;
        match op {
            Op::Receive => self.received(tables, index, completion, events),
            Op::Send => {
                self.failed.insert(index, completion.result());
            }
            Op::SendMessage => self.tried_messages[index as usize].result = completion.result(),
            Op::ReceiveMessage => self.received_message(tables, index, completion, events),
            Op::SlowSend => self.slow_sent(tables, index, completion.result(), events),
            Op::Accept => self.accepted(tables, index as usize, completion, events),
            Op::Connect => self.connected(tables, index, completion.result(), events),
            Op::Close => {
                self.descriptors -= 1;
                let stream = tables.streams.at(index);
                stream.outstanding -= 1;
                if stream.driver & bit::OWN != 0 {
                    self.own_slots.push(stream.slot as u32);
                }
                self.release_if_done(tables, index);
            }
            Op::CloseSocket => {
                self.descriptors -= 1;
                let socket = tables.sockets.at(index);
                socket.outstanding -= 1;
                if socket.driver & bit::OWN != 0 {
                    self.own_slots.push(socket.slot as u32);
                }
                self.release_socket_if_done(tables, index);
            }
            Op::Writable => self.writable(tables, index),
            Op::Wake if detail == 1 => {
                self.eventfd_armed = false;
                if let Some(eventfd) = &self.eventfd {
                    // It was readable; an error would only mean another wake-up.
                    let _ = eventfd.drain();
                }
                self.arm_eventfd();
            }
            Op::Adopt if completion.result() >= 0 => {
                // `detail` is the service, `index` the endpoint; the result is the new slot.
                let listener = ListenerId {
                    service: detail as ServiceId,
                    endpoint: index as u16,
                };
                let stream = self.adopt_slot(tables, listener.service, completion.result(), 0);
                events.push(Event::Accepted {
                    listener,
                    stream,
                    peer: None,
                });
            }
            Op::HandOn => {
                let stream = tables.streams.at(index);
                stream.outstanding -= 1;
                if completion.result() < 0 {
                    tables.metrics.shard.driver_errors.add(1);
                }
                let (slot, bits) = (stream.slot, stream.driver);
                stream.outstanding += 1;
                let generation = tables.streams.id(index).generation;
                self.close_slot(slot, bits, tag(Op::Close, generation, index));
            }
            Op::Shutdown => {
                let generation = tables.streams.id(index).generation;
                let stream = tables.streams.at(index);
                stream.outstanding -= 1;
                stream.driver &= !bit::SHUTTING;
                if stream.state == State::Closing {
                    // The close that waited, already counted.
                    let (slot, bits) = (stream.slot, stream.driver);
                    self.close_slot(slot, bits, tag(Op::Close, generation, index));
                }
            }
            Op::Wake | Op::Adopt | Op::Ignore => {}
        }
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
    ) -> io::Result<SocketId> {
        let fd = socket::open_datagram(open, Share::Alone, self.datagram_socket_buffer_bytes)?;
        let local = socket::local_address(&fd)?;
        self.insert_socket(tables, service, fd, local)
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
        let wait = if std::mem::take(&mut self.outcome_awaited) {
            Wait::Poll
        } else {
            wait
        };
        let now = if matches!(wait, Wait::Until(_)) {
            monotonic_now()
        } else {
            0
        };
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

/// What a receive that brought no data means.
enum WithoutData {
    /// It was cancelled or interrupted.
    Nothing,
    /// The peer sends no more.
    End,
    /// No buffer was free.
    NoBuffer,
    Failed(i32),
}

/// Takes back the buffer of a receive without data, if it names one, and says what it means.
fn without_data(
    buffers: &mut BufferRing,
    tables: &mut Tables,
    completion: &cqueue::Entry,
) -> WithoutData {
    let flags = completion.flags();
    if let Some(bid) = cqueue::buffer_select(flags) {
        buffers.returned(bid, cqueue::buffer_more(flags));
    }
    match -completion.result() {
        0 => WithoutData::End,
        libc::ECANCELED | libc::EINTR | libc::EAGAIN => WithoutData::Nothing,
        libc::ENOBUFS => {
            tables.metrics.shard.buffers_exhausted.add(1);
            buffers.exhausted();
            WithoutData::NoBuffer
        }
        errno => WithoutData::Failed(errno),
    }
}

#[inline]
fn slot_flags(bits: u8) -> squeue::Flags {
    if bits & bit::FILE != 0 {
        squeue::Flags::empty()
    } else {
        squeue::Flags::FIXED_FILE
    }
}

/// Fills the queue's vectors with its first pieces; returns their bytes.
fn gather(queue: &mut SendQueue) -> usize {
    queue.vectors.clear();
    let mut bytes = 0;
    for chunk in queue.chunks.iter().take(VECTORS_MAX) {
        let chunk = chunk.bytes();
        queue.vectors.push(libc::iovec {
            iov_base: chunk.as_ptr().cast_mut().cast(),
            iov_len: chunk.len(),
        });
        bytes += chunk.len();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_direct_descriptors_make_more_rings_hold_more() {
        let direct = Features::default().with(Feature::DirectDescriptors);
        let files = Features::default();
        for (limit, connections, rings, held_by_files) in [
            (512, 1_000, 3, 384),
            (2_000, 10_000, 6, 1_500),
            (20_000, 10_000, 1, 19_488),
            (20_000, 200_000, 11, 19_488),
        ] {
            assert_eq!(direct.rings_for(connections, limit, true), rings, "{limit}");
            assert!(direct.streams_held(rings, limit, true) >= connections);
            assert!(direct.streams_held(rings - 1, limit, true) < connections);
            assert_eq!(files.rings_for(connections, limit, true), 1);
            assert_eq!(files.streams_held(1, limit, true), held_by_files);
            assert_eq!(files.streams_held(rings, limit, true), held_by_files);
        }
    }
}
