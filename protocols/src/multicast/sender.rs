//! The sender: evenly paced messages to every session of its shard, and to multicast groups.
//!
//! Every shard paces for itself, from its first session on, and numbers its own messages, so nothing
//! crosses between shards. What is due in one turn is written once, as one block, and shared by the
//! send queues of all sessions. Groups belong to the first shard: a group is one sequence.
//!
//! At a set rate nobody waits for anybody: a session whose queue is full misses the block, which is
//! counted, or is closed. As fast as possible means as fast as the sessions that read: a full queue
//! holds the others up for [`PATIENCE`] at most, and is then left behind in the same way.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ringmill_engine::pacer::Pacer;
use ringmill_engine::{
    Buffer, Closed, Context, Fanned, ListenerId, Multicast, Nanos, Open, Payload, Protocol, Sent,
    ShardId, SocketId, StreamId, Transmit,
};

use super::wire::{HEADER_LEN, Header};

/// Bytes written and shared at once: large enough that a queue entry and a system call cost little
/// per message, small enough that a queue of 1 MiB holds many.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Blocks kept for reuse: a session's queue holds so many.
const BLOCKS_SPARE_MAX: usize = 32;
/// Blocks written in one turn as fast as possible, before the kernel is asked again.
const BLOCKS_PER_TURN: usize = 4;
/// How long a full queue may hold up the others, as fast as possible. A reader that is merely slower,
/// or was not scheduled for a while, frees half of its queue in that time at 5 MB/s.
pub const PATIENCE: Nanos = 100_000_000;

const GO_ON: u64 = 0;
const LEAVE_BEHIND: u64 = 1;

/// How fast messages are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Messages per second, evenly spaced.
    PerSecond(f64),
    /// As fast as the receivers take them (streams) or the kernel does (groups).
    Max,
}

/// What happens to a session that does not read as fast as messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlowReaders {
    /// It misses what does not fit into its queue.
    #[default]
    DropNewest,
    /// It is closed.
    Disconnect,
}

/// A multicast group to send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Group and port; the scope of an IPv6 group that needs one.
    pub to: SocketAddr,
    /// Interface and hops.
    pub multicast: Multicast,
}

impl Group {
    /// The socket that sends to it.
    #[must_use]
    pub fn open(&self) -> Open {
        let any: IpAddr = match self.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Open {
            local: SocketAddr::new(any, 0),
            peer: Some(self.to),
        }
    }
}

/// What a sender does, the same on every shard.
#[derive(Debug, Clone, PartialEq)]
pub struct SenderConfig {
    /// Bytes in each message: [`HEADER_LEN`] to [`super::wire::MESSAGE_LEN_MAX`], for groups
    /// [`super::wire::DATAGRAM_LEN_MAX`].
    pub message_len: usize,
    /// How fast.
    pub rate: Rate,
    /// The policy for slow readers.
    pub slow_readers: SlowReaders,
    /// Groups, beside the sessions.
    pub groups: Vec<Group>,
    /// Names the clock of this host: see [`super::wire`].
    pub clock: u32,
    /// Sources are numbered from here, one for each shard and group.
    pub source: u32,
}

ringmill_engine::counters! {
    /// What a sender has done on one shard. `deliveries` is `queued + dropped` at any moment.
    SenderCounters,
    /// [`SenderCounters`] at one moment.
    SenderSnapshot {
        /// Messages written, whoever was there to get them.
        messages: counter,
        /// Messages of the schedule that were given up, because the shard was that far behind.
        unsent: counter,
        /// Messages times sessions (or groups) that should have got them.
        deliveries: counter,
        /// Deliveries that were queued.
        queued: counter,
        /// Deliveries dropped because a queue was full.
        dropped: counter,
        /// Deliveries that were queued and then dropped, because the queues of many who do not read
        /// had the memory of the shard.
        withdrawn: counter,
        /// Sessions closed because their queue was full.
        disconnected: counter,
        /// Group sockets that could not be opened.
        open_failed: counter,
        /// Errors that group sockets have reported.
        socket_errors: counter,
    }
}

/// The counters of a sender on all shards.
#[derive(Debug)]
pub struct Senders {
    counters: Vec<Arc<SenderCounters>>,
}

impl Senders {
    /// Zeros for so many shards.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        Self {
            counters: (0..shards).map(|_| Arc::default()).collect(),
        }
    }

    /// Those of one shard.
    #[must_use]
    pub fn of_shard(&self, shard: ShardId) -> Arc<SenderCounters> {
        Arc::clone(&self.counters[usize::from(shard)])
    }

    /// The counters, by shard.
    pub fn counters(&self) -> impl Iterator<Item = &SenderCounters> {
        self.counters.iter().map(|counters| &**counters)
    }

    /// The sum over all shards.
    #[must_use]
    pub fn totals(&self) -> SenderSnapshot {
        let zero = SenderSnapshot::default();
        self.counters()
            .fold(zero, |sum, next| sum.plus(&next.snapshot()))
    }
}

/// A session with a stream.
struct Session {
    stream: StreamId,
    /// Since when its queue has been full, while it may still hold up the others.
    full_since: Option<Nanos>,
    /// It is left behind: it gets what fits.
    behind: bool,
}

/// One numbered sequence of messages.
struct Source {
    number: u32,
    sequence: u64,
}

/// The sender of one shard.
pub struct Sender {
    config: Arc<SenderConfig>,
    counters: Arc<SenderCounters>,
    sessions: Vec<Session>,
    /// Where a stream's session is in `sessions`.
    places: HashMap<StreamId, usize>,
    /// Sessions with `full_since`.
    holding_up: usize,
    to_sessions: Source,
    groups: Vec<(SocketId, Source)>,
    pacer: Option<Pacer>,
    armed: bool,
    watching: bool,
    stopping: bool,
    spare: Vec<Arc<[u8]>>,
    intended: Vec<Nanos>,
}

impl Sender {
    /// The sender of one shard; it counts into `counters`.
    ///
    /// # Panics
    /// When a message is to be shorter than its header.
    #[must_use]
    pub fn new(config: Arc<SenderConfig>, counters: Arc<SenderCounters>) -> Self {
        assert!(config.message_len >= HEADER_LEN, "a message has a header");
        Self {
            config,
            counters,
            sessions: Vec::new(),
            places: HashMap::new(),
            holding_up: 0,
            to_sessions: Source {
                number: 0,
                sequence: 0,
            },
            groups: Vec::new(),
            pacer: None,
            armed: false,
            watching: false,
            stopping: false,
            spare: Vec::new(),
            intended: Vec::new(),
        }
    }

    fn nobody(&self) -> bool {
        self.sessions.is_empty() && self.groups.is_empty()
    }

    /// Messages that fit into one block.
    fn block_messages(&self) -> usize {
        (BLOCK_BYTES_MAX / self.config.message_len).max(1)
    }

    fn arm(&mut self, ctx: &mut Context<'_, ()>, at: Nanos) {
        if !std::mem::replace(&mut self.armed, true) {
            ctx.set_timer(at, GO_ON);
        }
    }

    /// Sends what is due, and comes back for the next.
    fn go_on(&mut self, ctx: &mut Context<'_, ()>) {
        if self.stopping {
            return;
        }
        match self.config.rate {
            Rate::PerSecond(_) => self.go_on_paced(ctx),
            Rate::Max => self.go_on_at_once(ctx),
        }
    }

    fn go_on_paced(&mut self, ctx: &mut Context<'_, ()>) {
        let now = ctx.now();
        let at_once = self.block_messages();
        let Some(pacer) = &mut self.pacer else { return };
        // What is beyond the pacer's bound is given up, and counted.
        let skipped = pacer.ticks_skipped();
        pacer.due(now);
        self.counters.unsent.add(pacer.ticks_skipped() - skipped);
        loop {
            let mut intended = std::mem::take(&mut self.intended);
            intended.clear();
            let Some(pacer) = &mut self.pacer else { return };
            while intended.len() < at_once {
                match pacer.pop_due(now) {
                    Some(tick) => intended.push(tick),
                    None => break,
                }
            }
            let done = intended.len() < at_once;
            if !intended.is_empty() {
                self.counters.messages.add(intended.len() as u64);
                self.give_all_sessions(ctx, &intended);
                for group in 0..self.groups.len() {
                    self.give_group(ctx, group, &intended, true);
                }
            }
            self.intended = intended;
            if done {
                break;
            }
        }
        if let Some(pacer) = &self.pacer {
            let next = pacer.next_intended();
            self.arm(ctx, next);
        }
    }

    fn go_on_at_once(&mut self, ctx: &mut Context<'_, ()>) {
        let mut intended = std::mem::take(&mut self.intended);
        let mut sent_any = false;
        for _ in 0..BLOCKS_PER_TURN {
            // Meant to be sent now: a clock read for each block.
            let now = ctx.clock();
            intended.clear();
            intended.resize(self.block_messages(), now);
            let mut sent = 0;
            if self.holding_up == 0 && self.sessions.iter().any(|session| !session.behind) {
                self.give_all_sessions(ctx, &intended);
                sent = intended.len() as u64;
            }
            for group in 0..self.groups.len() {
                sent = sent.max(self.give_group(ctx, group, &intended, false));
            }
            if sent == 0 {
                break;
            }
            sent_any = true;
            self.counters.messages.add(sent);
        }
        self.intended = intended;
        if sent_any {
            let now = ctx.now();
            self.arm(ctx, now);
        }
        // Else `drained` and `socket_drained` call.
    }

    /// Writes a block of messages, one for each time of `intended`.
    fn block(
        spare: &mut Vec<Arc<[u8]>>,
        config: &SenderConfig,
        source: &Source,
        intended: &[Nanos],
    ) -> Arc<[u8]> {
        let len = intended.len() * config.message_len;
        // A block that nobody holds any more; the oldest is the likeliest.
        let free = spare
            .iter_mut()
            .position(|block| block.len() == len && Arc::get_mut(block).is_some());
        let mut block = match free {
            Some(at) => spare.remove(at),
            None => Arc::from(vec![0; len]),
        };
        let bytes = Arc::get_mut(&mut block).expect("nobody else has it");
        for ((message, intended), nth) in bytes
            .chunks_exact_mut(config.message_len)
            .zip(intended)
            .zip(0..)
        {
            let header = Header {
                len: config.message_len as u32,
                sequence: source.sequence + nth,
                intended: *intended,
                clock: config.clock,
                source: source.number,
            };
            let head = message.first_chunk_mut().expect("a message has a header");
            header.write(head);
        }
        if spare.len() >= BLOCKS_SPARE_MAX {
            spare.remove(0);
        }
        spare.push(Arc::clone(&block));
        block
    }

    /// Gives a block to every session: one queue entry each, no copy.
    fn give_all_sessions(&mut self, ctx: &mut Context<'_, ()>, intended: &[Nanos]) {
        let count = intended.len() as u64;
        if self.sessions.is_empty() {
            return;
        }
        let block = Self::block(&mut self.spare, &self.config, &self.to_sessions, intended);
        self.to_sessions.sequence += count;
        let wait = self.config.rate == Rate::Max;
        let now = ctx.now();
        // Within a fair share: the queues of many who do not read must leave room for who does.
        let bounds = ctx.limits().stream_queue();
        let shared = Fanned::carrying(Arc::clone(&block), count as u32);
        let (mut queued, mut dropped) = (0, 0);
        let mut late = Vec::new();
        for session in &mut self.sessions {
            match ctx.send_within(session.stream, shared.clone(), bounds) {
                Sent::Queued => {
                    queued += count;
                    // Another block may not fit: hold on before it is lost.
                    if wait
                        && !session.behind
                        && session.full_since.is_none()
                        && ctx.room_within(session.stream, bounds) < block.len()
                        && ctx.notify_when_drained(session.stream)
                    {
                        session.full_since = Some(now);
                        self.holding_up += 1;
                    }
                }
                Sent::Full => {
                    dropped += count;
                    // When nothing waits for it, the shard is full: that is not its fault.
                    let slow = ctx.queued_bytes(session.stream) > 0;
                    if slow && self.config.slow_readers == SlowReaders::Disconnect {
                        late.push(session.stream);
                        continue;
                    }
                    let yielded = ctx.yield_share(session.stream);
                    self.counters.withdrawn.add(yielded.carried as u64);
                    if wait {
                        // The shard's bound: `drained` will tell.
                        session.behind = true;
                    }
                }
                // `closed` follows.
                Sent::Closed => {}
            }
        }
        self.counters.deliveries.add(queued + dropped);
        self.counters.queued.add(queued);
        self.counters.dropped.add(dropped);
        for stream in late {
            self.disconnect(ctx, stream);
        }
        if self.holding_up > 0 && !std::mem::replace(&mut self.watching, true) {
            ctx.set_timer(now + PATIENCE, LEAVE_BEHIND);
        }
    }

    fn disconnect(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        self.counters.disconnected.add(1);
        ctx.reset(stream);
    }

    /// Gives a block to a group, as few sends as the kernel allows, and says how many messages of it.
    /// At a set rate (`due`) what does not fit is dropped, else it is not written.
    fn give_group(
        &mut self,
        ctx: &mut Context<'_, ()>,
        group: usize,
        intended: &[Nanos],
        due: bool,
    ) -> u64 {
        let len = self.config.message_len;
        let at_once = ctx.segments_max(len).max(1);
        let (socket, source) = &mut self.groups[group];
        let mut sent = 0;
        for part in intended.chunks(at_once) {
            let block = Self::block(&mut self.spare, &self.config, source, part);
            let count = part.len() as u64;
            let transmit = Transmit {
                peer: None,
                source: None,
                ecn: 0,
                stride: len as u16,
                data: Payload::from(block),
            };
            let queued = ctx.send_datagrams(*socket, transmit).is_queued();
            if !queued && !due {
                return sent;
            }
            // Numbers go on past what was dropped: receivers see the gap.
            source.sequence += count;
            sent += count;
            self.counters.deliveries.add(count);
            if queued {
                self.counters.queued.add(count);
            } else {
                self.counters.dropped.add(count);
            }
        }
        sent
    }

    fn begin(&mut self, ctx: &mut Context<'_, ()>) {
        if let Rate::PerSecond(rate) = self.config.rate
            && self.pacer.is_none()
        {
            // The rate was checked when the flags were read.
            self.pacer = Pacer::constant(rate, ctx.now()).ok();
        }
        if !self.armed {
            let now = ctx.now();
            let next = self.pacer.as_ref().map_or(now, Pacer::next_intended);
            self.arm(ctx, next);
        }
    }
}

impl Protocol for Sender {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let shard = u32::from(ctx.shard());
        self.to_sessions.number = self.config.source.wrapping_add(shard);
        if shard == 0 {
            let after_shards = self.config.source.wrapping_add(u32::from(ctx.shards()));
            for (group, number) in self.config.groups.iter().zip(after_shards..) {
                match ctx.open_multicast(&group.open(), &group.multicast) {
                    Ok(socket) => {
                        // Answers to a group's port would be someone else's business.
                        ctx.set_socket_reading(socket, false);
                        let source = Source {
                            number,
                            sequence: 0,
                        };
                        self.groups.push((socket, source));
                    }
                    Err(_) => self.counters.open_failed.add(1),
                }
            }
        }
        if !self.nobody() {
            self.begin(ctx);
        }
    }

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _listener: ListenerId,
        _peer: Option<SocketAddr>,
    ) {
        self.places.insert(stream, self.sessions.len());
        self.sessions.push(Session {
            stream,
            full_since: None,
            behind: false,
        });
        self.begin(ctx);
    }

    fn received(&mut self, _ctx: &mut Context<'_, ()>, _stream: StreamId, _data: Buffer) {
        // Receivers have nothing to say.
    }

    fn drained(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        let Some(place) = self.places.get(&stream) else {
            return;
        };
        let session = &mut self.sessions[*place];
        session.behind = false;
        if session.full_since.take().is_some() {
            self.holding_up -= 1;
        }
        if self.config.rate == Rate::Max && self.holding_up == 0 && !self.armed {
            // Not in this call: other queues of this turn have drained too.
            let now = ctx.now();
            self.arm(ctx, now);
        }
    }

    fn socket_drained(&mut self, ctx: &mut Context<'_, ()>, _socket: SocketId) {
        if self.config.rate == Rate::Max && !self.armed {
            let now = ctx.now();
            self.arm(ctx, now);
        }
    }

    fn socket_error(&mut self, _ctx: &mut Context<'_, ()>, _socket: SocketId, _errno: i32) {
        self.counters.socket_errors.add(1);
    }

    fn closed(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, _reason: Closed) {
        let Some(place) = self.places.remove(&stream) else {
            return;
        };
        let session = self.sessions.swap_remove(place);
        if let Some(moved) = self.sessions.get(place) {
            self.places.insert(moved.stream, place);
        }
        if session.full_since.is_some() {
            self.holding_up -= 1;
            if self.holding_up == 0 && !self.armed && !self.nobody() {
                let now = ctx.now();
                self.arm(ctx, now);
            }
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, token: u64) {
        match token {
            GO_ON => {
                self.armed = false;
                if self.nobody() {
                    // The schedule rests while nobody is there; it begins anew with the next.
                    self.pacer = None;
                } else {
                    self.go_on(ctx);
                }
            }
            LEAVE_BEHIND => {
                self.watching = false;
                self.leave_behind(ctx);
            }
            _ => {}
        }
    }

    fn stopping(&mut self, _ctx: &mut Context<'_, ()>) {
        // What is queued still goes out, in whole messages.
        self.stopping = true;
    }
}

impl Sender {
    /// Sessions whose queues have been full for too long hold nobody up any more.
    fn leave_behind(&mut self, ctx: &mut Context<'_, ()>) {
        let now = ctx.now();
        let mut next = None;
        let mut late = Vec::new();
        for session in &mut self.sessions {
            let Some(since) = session.full_since else {
                continue;
            };
            let deadline = since + PATIENCE;
            if deadline > now {
                next = Some(next.map_or(deadline, |next: Nanos| next.min(deadline)));
                continue;
            }
            session.full_since = None;
            session.behind = true;
            self.holding_up -= 1;
            if self.config.slow_readers == SlowReaders::Disconnect {
                late.push(session.stream);
            }
        }
        for stream in late {
            self.disconnect(ctx, stream);
        }
        if let Some(next) = next {
            self.watching = true;
            ctx.set_timer(next, LEAVE_BEHIND);
        }
        if self.holding_up == 0 && !self.armed && !self.nobody() {
            self.arm(ctx, now);
        }
    }
}
