//! One shard: the loop that carries bytes socket → driver → protocol → driver → socket.
//!
//! A turn is: send what is queued and wait, in one system call; take all events; give them to the
//! protocols; take messages; fire timers. A shard owns everything it touches. It never blocks
//! except in the driver's wait, and never lets one event run a second turn inside the first.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::control::{ControlState, Notice, Stop};
use crate::driver::{
    ACCEPT_PAUSE, BoundDatagramSocket, BoundListener, Close, Driver, Event, Tables, Wait,
};
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::limits::Limits;
use crate::mailbox::{Mailbox, ShardBell};
use crate::protocol::Closed;
use crate::stream::{ACTIVITY_TICK, State};
use crate::time::from_duration;
use crate::timer::TimerWheel;
use crate::{Buffer, Context, Datagram, Nanos, Protocol};

/// Messages taken from one mailbox in one turn, so that a busy neighbour cannot starve sockets.
const MESSAGES_PER_TURN_MAX: usize = 1024;
/// Table entries looked at in one sweep step.
const SWEEP_STEP: u32 = 4096;
/// Between two sweep steps.
const SWEEP_INTERVAL: Nanos = 100_000_000;
/// The engine's own timers.
const ENGINE: ServiceId = ServiceId::MAX;
const RESUME_ACCEPT: u64 = 0;
const SWEEP: u64 = 1;
const DRAIN_DEADLINE: u64 = 2;

/// What a shard is and what its protocols act on.
pub(crate) struct Core {
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) tables: Tables,
    pub(crate) timers: TimerWheel<(ServiceId, u64)>,
    pub(crate) now: Nanos,
    pub(crate) shards: u16,
    started: Nanos,
    /// Streams to be reported closed when the current handler has returned.
    closing: Vec<(StreamId, ServiceId, Closed)>,
    control: Arc<ControlState>,
    stop: Stop,
    random: SmallRng,
    sweep_at: u32,
    accept_paused: bool,
    /// What arrived for streams that were paused in the same breath.
    held: HashMap<u32, Held>,
    /// Streams that were resumed while something is held for them.
    resumed: Vec<StreamId>,
}

/// Data that had left the kernel before a pause took effect. Copied out of the receive buffers, so
/// that many paused streams cannot starve the others; bounded by what one receive request had
/// completed before it was cancelled.
#[derive(Default)]
struct Held {
    data: VecDeque<Buffer>,
    ended: bool,
}

impl Core {
    pub(crate) fn stop_begun(&self) -> bool {
        self.stop != Stop::Run
    }

    pub(crate) fn request_stop(&self) {
        self.control.request(Stop::Drain);
    }

    /// Send the rest, then take the stream down.
    pub(crate) fn close(&mut self, id: StreamId, reason: Closed) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        match stream.state {
            State::Open if stream.queue.is_some() => {
                stream.state = State::Draining;
                self.driver.read(&mut self.tables, id.index, false);
            }
            State::Open | State::Connecting => self.take_down(id, Close::Graceful, reason),
            State::Draining | State::Closing | State::Free => {}
        }
    }

    /// Reads a paused stream again: first what is held for it.
    pub(crate) fn resume(&mut self, id: StreamId) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        if stream.state != State::Open || !stream.paused {
            return;
        }
        stream.paused = false;
        if stream.holding {
            self.resumed.push(id);
        } else {
            self.driver.read(&mut self.tables, id.index, true);
        }
    }

    pub(crate) fn pause(&mut self, id: StreamId) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        // One that is read only to its end must not be stopped from it.
        if stream.state == State::Open && !stream.paused && !stream.discarding {
            stream.paused = true;
            self.driver.read(&mut self.tables, id.index, false);
        }
    }

    /// Reads a stream that its protocol has paused to its end, and throws away what comes. For a
    /// stop: nothing that it brings can be answered, and unread it would keep the peer from ending
    /// and turn our own end into a reset.
    fn discard(&mut self, id: StreamId) {
        let stream = self.tables.streams.at(id.index);
        stream.paused = false;
        stream.discarding = true;
        // From here on `holding` only keeps what arrives away from the protocol.
        stream.holding = true;
        self.held.remove(&id.index);
        self.driver.read(&mut self.tables, id.index, true);
    }

    pub(crate) fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        if stream.state == State::Open && !stream.finishing {
            stream.finishing = true;
            if stream.queue.is_none() {
                self.driver.finish(&mut self.tables, id.index);
            }
        }
    }

    /// Take the stream down now and remember to tell its protocol.
    pub(crate) fn take_down(&mut self, id: StreamId, how: Close, reason: Closed) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        if matches!(stream.state, State::Closing | State::Free) {
            return;
        }
        let announced = stream.announced || stream.state == State::Connecting;
        let service = stream.service;
        stream.state = State::Closing;
        if std::mem::take(&mut stream.holding) {
            self.held.remove(&id.index);
        }
        if announced {
            self.closing.push((id, service, reason));
        }
        let counters = &self.tables.metrics.services[usize::from(service)];
        if stream.announced {
            counters.closed.add(1);
            counters.open.set(counters.open.get().saturating_sub(1));
        } else if announced {
            counters.connect_failed.add(1);
        }
        match reason {
            Closed::Error(_) => counters.failed.add(1),
            Closed::Idle => counters.idle_closed.add(1),
            Closed::Stalled => counters.stalled_closed.add(1),
            Closed::Normally | Closed::Stopping => {}
        }
        if stream.accepted {
            self.control.connections.fetch_sub(1, Ordering::Relaxed);
        }
        self.driver.close(&mut self.tables, id.index, how);
    }
}

/// A protocol with its mailbox, behind one vtable: the shard does not know its message type.
trait Hosted {
    fn start(&mut self, core: &mut Core);
    fn accepted(
        &mut self,
        core: &mut Core,
        stream: StreamId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
    );
    fn connected(&mut self, core: &mut Core, stream: StreamId);
    fn received(&mut self, core: &mut Core, stream: StreamId, data: Buffer);
    fn ended(&mut self, core: &mut Core, stream: StreamId);
    fn drained(&mut self, core: &mut Core, stream: StreamId);
    fn closed(&mut self, core: &mut Core, stream: StreamId, reason: Closed);
    fn datagrams(&mut self, core: &mut Core, socket: SocketId, batch: &mut Vec<Datagram>);
    fn socket_drained(&mut self, core: &mut Core, socket: SocketId);
    fn socket_error(&mut self, core: &mut Core, socket: SocketId, errno: i32);
    fn timer(&mut self, core: &mut Core, token: u64);
    /// Takes waiting messages; returns how many.
    fn messages(&mut self, core: &mut Core) -> usize;
    fn has_messages(&self) -> bool;
    fn stopping(&mut self, core: &mut Core);
    fn stopped(&mut self);
    /// Wakes the shards that were posted to.
    fn ring(&self);
    fn doorbells(&self) -> u64;
}

struct Host<P: Protocol> {
    protocol: P,
    service: ServiceId,
    mailbox: Mailbox<P::Message>,
}

impl<P: Protocol> Host<P> {
    #[inline]
    fn call<R>(
        &mut self,
        core: &mut Core,
        handler: impl FnOnce(&mut P, &mut Context<'_, P::Message>) -> R,
    ) -> R {
        let mut ctx = Context {
            core,
            mailbox: &mut self.mailbox,
            service: self.service,
        };
        handler(&mut self.protocol, &mut ctx)
    }
}

impl<P: Protocol> Hosted for Host<P> {
    fn start(&mut self, core: &mut Core) {
        self.call(core, |p, ctx| p.start(ctx));
    }
    fn accepted(
        &mut self,
        core: &mut Core,
        stream: StreamId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
    ) {
        self.call(core, |p, ctx| p.accepted(ctx, stream, listener, peer));
    }
    fn connected(&mut self, core: &mut Core, stream: StreamId) {
        self.call(core, |p, ctx| p.connected(ctx, stream));
    }
    fn received(&mut self, core: &mut Core, stream: StreamId, data: Buffer) {
        self.call(core, |p, ctx| p.received(ctx, stream, data));
    }
    fn ended(&mut self, core: &mut Core, stream: StreamId) {
        self.call(core, |p, ctx| p.ended(ctx, stream));
    }
    fn drained(&mut self, core: &mut Core, stream: StreamId) {
        self.call(core, |p, ctx| p.drained(ctx, stream));
    }
    fn closed(&mut self, core: &mut Core, stream: StreamId, reason: Closed) {
        self.call(core, |p, ctx| p.closed(ctx, stream, reason));
    }
    fn datagrams(&mut self, core: &mut Core, socket: SocketId, batch: &mut Vec<Datagram>) {
        self.call(core, |p, ctx| p.datagrams(ctx, socket, batch));
    }
    fn socket_drained(&mut self, core: &mut Core, socket: SocketId) {
        self.call(core, |p, ctx| p.socket_drained(ctx, socket));
    }
    fn socket_error(&mut self, core: &mut Core, socket: SocketId, errno: i32) {
        self.call(core, |p, ctx| p.socket_error(ctx, socket, errno));
    }
    fn timer(&mut self, core: &mut Core, token: u64) {
        self.call(core, |p, ctx| p.timer(ctx, token));
    }
    fn messages(&mut self, core: &mut Core) -> usize {
        let mut taken = 0;
        while taken < MESSAGES_PER_TURN_MAX {
            let Some((from, message)) = self.mailbox.try_receive() else {
                break;
            };
            taken += 1;
            self.call(core, |p, ctx| p.message(ctx, from, message));
        }
        if taken > 0 {
            core.tables.metrics.services[usize::from(self.service)]
                .messages
                .add(taken as u64);
        }
        taken
    }
    fn has_messages(&self) -> bool {
        !self.mailbox.is_empty()
    }
    fn stopping(&mut self, core: &mut Core) {
        self.call(core, |p, ctx| p.stopping(ctx));
    }
    fn stopped(&mut self) {
        self.protocol.stopped();
    }
    fn ring(&self) {
        self.mailbox.ring();
    }
    fn doorbells(&self) -> u64 {
        self.mailbox.counters().doorbells_rung
    }
}

/// A service on its way into a shard: made on the control thread, opened on the shard's own.
pub(crate) struct Guest(Box<dyn FnOnce() -> Box<dyn Hosted> + Send>);

impl Guest {
    pub(crate) fn new<P: Protocol>(
        service: ServiceId,
        mailbox: Mailbox<P::Message>,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Self {
        Self(Box::new(move || {
            Box::new(Host {
                protocol: make(),
                service,
                mailbox,
            })
        }))
    }
}

/// Everything a shard is made of.
pub(crate) struct Parts {
    pub(crate) id: ShardId,
    pub(crate) shards: u16,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<crate::ShardMetrics>,
    pub(crate) control: Arc<ControlState>,
    pub(crate) bells: Arc<[ShardBell]>,
    pub(crate) guests: Vec<Guest>,
    pub(crate) listeners: Vec<BoundListener>,
    pub(crate) sockets: Vec<BoundDatagramSocket>,
    /// Live streams of every shard, so that a full one can hand on.
    pub(crate) loads: Arc<[AtomicUsize]>,
}

/// One shard. Stays on the thread that made it.
pub(crate) struct Shard {
    core: Core,
    services: Vec<Box<dyn Hosted>>,
    bells: Arc<[ShardBell]>,
    loads: Arc<[AtomicUsize]>,
    events: Vec<Event>,
    batch: Vec<Datagram>,
    /// Since when nothing has happened, for busy polling.
    quiet_since: Nanos,
    /// The handler of a message, timer or start may have queued sends or closed streams.
    work_left: bool,
    ended: bool,
}

impl Shard {
    /// Opens a shard on a driver: takes its sockets and starts its protocols.
    pub(crate) fn open(mut driver: Box<dyn Driver>, parts: Parts) -> io::Result<Self> {
        parts.bells[usize::from(parts.id)].register(driver.waker()?);
        let mut tables = Tables::new(parts.id, parts.limits, parts.metrics);
        let now = driver.now();
        for socket in parts.sockets {
            let endpoint = socket.endpoint;
            let id = driver.add_socket(&mut tables, socket)?;
            tables.sockets.at(id.index).endpoint = endpoint;
        }
        for listener in parts.listeners {
            driver.listen(&mut tables, listener)?;
        }
        let services: Vec<_> = parts.guests.into_iter().map(|guest| (guest.0)()).collect();
        let mut shard = Self {
            core: Core {
                driver,
                tables,
                timers: TimerWheel::new(now),
                now,
                shards: parts.shards,
                started: now,
                closing: Vec::new(),
                control: parts.control,
                stop: Stop::Run,
                random: SmallRng::seed_from_u64(u64::from(parts.id) + 1),
                sweep_at: 0,
                accept_paused: false,
                held: HashMap::new(),
                resumed: Vec::new(),
            },
            services,
            bells: parts.bells,
            loads: parts.loads,
            events: Vec::with_capacity(1024),
            batch: Vec::new(),
            quiet_since: now,
            work_left: true,
            ended: false,
        };
        let limits = &shard.core.tables.limits;
        if limits.idle_timeout.is_some() || limits.write_stall_timeout.is_some() {
            shard
                .core
                .timers
                .insert(now + SWEEP_INTERVAL, (ENGINE, SWEEP));
        }
        for service in &mut shard.services {
            service.start(&mut shard.core);
        }
        shard.tell_closed();
        for service in &shard.services {
            service.ring();
        }
        Ok(shard)
    }

    /// Runs until the stop is complete.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        while !self.ended {
            self.turn()?;
        }
        Ok(())
    }

    /// Whether the stop is complete.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// When the next timer is due.
    pub(crate) fn next_deadline(&mut self) -> Option<Nanos> {
        self.core.timers.next_deadline()
    }

    /// Whether something waits that needs no event to be worked on.
    pub(crate) fn has_work(&self) -> bool {
        self.work_left
            || !self.core.tables.streams.dirty.is_empty()
            || !self.core.tables.sockets.dirty.is_empty()
            || self.services.iter().any(|service| service.has_messages())
            || self.core.control.stop() != self.core.stop
    }

    /// What the driver still holds, for leak checks.
    pub(crate) fn held(&self) -> crate::driver::Held {
        self.core.driver.held()
    }

    /// Streams and sockets in the tables, and bytes queued, for leak checks.
    pub(crate) fn table_counts(&self) -> (usize, usize, usize) {
        let tables = &self.core.tables;
        (
            tables.streams.live(),
            tables.sockets.live(),
            tables.streams.queued_bytes,
        )
    }

    /// One turn: send and wait, events, messages, timers.
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        self.wait()?;
        let core = &mut self.core;
        core.now = core.driver.now();
        core.tables.active = ((core.now - core.started) / ACTIVITY_TICK) as u32;
        let counters = &core.tables.metrics.shard;
        counters.turns.add(1);
        counters.events.add(self.events.len() as u64);
        counters
            .queued_bytes
            .set(core.tables.streams.queued_bytes as u64);
        if !self.events.is_empty() {
            self.quiet_since = self.core.now;
            self.dispatch();
        }
        self.work_left = false;
        for service in &mut self.services {
            // A full budget may have left messages behind.
            self.work_left |= service.messages(&mut self.core) == MESSAGES_PER_TURN_MAX;
        }
        self.fire_timers();
        self.deliver_held();
        self.tell_of_room();
        self.tell_closed();
        self.follow_control();
        for service in &self.services {
            service.ring();
        }
        Ok(())
    }

    /// Tells those that the shard's bound refused, once half of it is free.
    fn tell_of_room(&mut self) {
        let tables = &mut self.core.tables;
        let waiting = !tables.streams.waiting.is_empty() || !tables.sockets.waiting.is_empty();
        if !waiting || tables.streams.queued_bytes > tables.limits.shard_queue_bytes_max / 2 {
            return;
        }
        // They may be refused again, and then wait for the next time.
        let streams = std::mem::take(&mut tables.streams.waiting);
        let sockets = std::mem::take(&mut tables.sockets.waiting);
        for id in streams {
            let core = &mut self.core;
            let Some(stream) = core.tables.streams.get(id) else {
                continue;
            };
            stream.waiting = false;
            if stream.state == State::Open && !stream.finishing {
                let service = usize::from(stream.service);
                self.services[service].drained(core, id);
            }
        }
        for id in sockets {
            let core = &mut self.core;
            let Some(socket) = core.tables.sockets.get(id) else {
                continue;
            };
            socket.waiting = false;
            let service = usize::from(socket.service);
            self.services[service].socket_drained(core, id);
        }
    }

    /// Gives resumed streams what was held for them, before anything that arrives from now on.
    fn deliver_held(&mut self) {
        while let Some(id) = self.core.resumed.pop() {
            loop {
                let core = &mut self.core;
                let Some(stream) = core.tables.streams.get(id) else {
                    break;
                };
                let service = usize::from(stream.service);
                // Closed meanwhile, with something left to send: nothing more is received.
                if stream.state != State::Open || stream.paused || !stream.holding {
                    break;
                }
                let Some(held) = core.held.get_mut(&id.index) else {
                    break;
                };
                if let Some(data) = held.data.pop_front() {
                    self.services[service].received(core, id, data);
                    continue;
                }
                stream.holding = false;
                let ended = held.ended;
                core.held.remove(&id.index);
                core.driver.read(&mut core.tables, id.index, true);
                if ended {
                    self.peer_ended(id);
                }
            }
        }
    }

    fn bell(&self) -> &ShardBell {
        &self.bells[usize::from(self.core.tables.shard)]
    }

    fn wait(&mut self) -> io::Result<()> {
        let busy_poll = from_duration(self.core.tables.limits.busy_poll);
        let spinning = busy_poll > 0 && self.core.now.saturating_sub(self.quiet_since) < busy_poll;
        if self.work_left || spinning {
            return self.poll();
        }
        self.bell().prepare_sleep();
        let messages = self.services.iter().any(|service| service.has_messages());
        if messages || self.core.control.stop() != self.core.stop {
            self.bell().stay_awake();
            return self.poll();
        }
        let wait = self.next_deadline().map_or(Wait::Forever, Wait::Until);
        let core = &mut self.core;
        let result = core.driver.wait(&mut core.tables, wait, &mut self.events);
        self.bell().woke();
        result
    }

    fn poll(&mut self) -> io::Result<()> {
        let core = &mut self.core;
        core.driver
            .wait(&mut core.tables, Wait::Poll, &mut self.events)
    }

    fn dispatch(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        let mut drain = events.drain(..).peekable();
        while let Some(event) = drain.next() {
            match event {
                Event::Received { stream, data } => self.received(stream, data),
                Event::Datagram { socket, datagram } => {
                    self.batch.push(datagram);
                    while let Some(Event::Datagram { datagram, .. }) = drain
                        .next_if(|next| matches!(next, Event::Datagram { socket: other, .. } if *other == socket))
                    {
                        self.batch.push(datagram);
                    }
                    self.datagrams(socket);
                }
                other => self.rare(other),
            }
            if !self.core.closing.is_empty() {
                self.tell_closed();
            }
        }
        drop(drain);
        self.events = events;
    }

    #[inline]
    fn received(&mut self, id: StreamId, data: Buffer) {
        let core = &mut self.core;
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        stream.active = core.tables.active;
        if stream.state != State::Open {
            return;
        }
        let service = usize::from(stream.service);
        core.tables.metrics.services[service]
            .received_bytes
            .add(data.len() as u64);
        if stream.paused || stream.holding {
            if stream.discarding {
                return;
            }
            stream.holding = true;
            core.held
                .entry(id.index)
                .or_default()
                .data
                .push_back(Buffer::copied(&data));
            return;
        }
        self.services[service].received(core, id, data);
    }

    fn datagrams(&mut self, id: SocketId) {
        let core = &mut self.core;
        if let Some(socket) = core.tables.sockets.get(id) {
            let service = usize::from(socket.service);
            let counters = &core.tables.metrics.services[service];
            let (mut count, mut bytes) = (0, 0);
            for datagram in &self.batch {
                count += datagram.count() as u64;
                bytes += datagram.data.len() as u64;
            }
            counters.received_datagrams.add(count);
            counters.received_datagram_bytes.add(bytes);
            self.services[service].datagrams(core, id, &mut self.batch);
        }
        self.batch.clear();
    }

    #[cold]
    fn rare(&mut self, event: Event) {
        let core = &mut self.core;
        match event {
            Event::Accepted {
                listener,
                stream,
                peer,
            } => self.accepted(listener, stream, peer),
            Event::AcceptFailed { listener, errno } => self.accept_failed(listener, errno),
            Event::Connected { stream: id } => {
                let Some(stream) = core.tables.streams.get(id) else {
                    return;
                };
                let state = stream.state;
                let service = usize::from(stream.service);
                let counters = &core.tables.metrics.services[service];
                if state == State::Closing {
                    // Its protocol closed it after the driver had seen it open, but before it
                    // was told: it still hears once that it is gone.
                    counters.connect_failed.add(1);
                    core.closing
                        .push((id, service as ServiceId, Closed::Normally));
                    return;
                }
                stream.announced = true;
                stream.active = core.tables.active;
                counters.connected.add(1);
                counters.open.add(1);
                if state == State::Open {
                    self.services[service].connected(core, id);
                }
            }
            Event::Ended { stream: id } => {
                let Some(stream) = core.tables.streams.get(id) else {
                    return;
                };
                stream.ended = true;
                if stream.holding && !stream.discarding {
                    core.held.entry(id.index).or_default().ended = true;
                } else {
                    self.peer_ended(id);
                }
            }
            Event::Drained { stream: id } => {
                let Some(stream) = core.tables.streams.get(id) else {
                    return;
                };
                if stream.state == State::Open {
                    let service = usize::from(stream.service);
                    self.services[service].drained(core, id);
                }
            }
            Event::Flushed { stream: id } => self.flushed(id),
            Event::Failed { stream, errno } => {
                core.take_down(stream, Close::Reset, Closed::Error(errno));
            }
            Event::SocketDrained { socket: id } => {
                let Some(socket) = core.tables.sockets.get(id) else {
                    return;
                };
                let service = usize::from(socket.service);
                self.services[service].socket_drained(core, id);
            }
            Event::SocketError { socket: id, errno } => {
                let Some(socket) = core.tables.sockets.get(id) else {
                    return;
                };
                let service = usize::from(socket.service);
                self.services[service].socket_error(core, id, errno);
            }
            Event::Received { .. } | Event::Datagram { .. } => unreachable!("handled by dispatch"),
        }
    }

    /// The peer has ended, and all that it sent was given to the protocol.
    fn peer_ended(&mut self, id: StreamId) {
        let core = &mut self.core;
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        if stream.state != State::Open {
            return;
        }
        if core.stop != Stop::Run && stream.finishing {
            // Nothing is left for its protocol to do: what is queued goes, then it closes.
            core.close(id, Closed::Stopping);
        } else {
            let service = usize::from(stream.service);
            self.services[service].ended(core, id);
        }
    }

    /// The queue of a draining or finishing stream is empty.
    fn flushed(&mut self, id: StreamId) {
        let core = &mut self.core;
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        match stream.state {
            State::Draining => core.take_down(id, Close::Graceful, Closed::Normally),
            State::Open if stream.finishing => core.driver.finish(&mut core.tables, id.index),
            _ => {}
        }
    }

    fn accepted(&mut self, listener: ListenerId, id: StreamId, peer: Option<SocketAddr>) {
        let core = &mut self.core;
        let live = core.tables.streams.live();
        self.loads[usize::from(core.tables.shard)].store(live, Ordering::Relaxed);
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        let service = usize::from(listener.service);
        let total = core.control.connections.fetch_add(1, Ordering::Relaxed) + 1;
        stream.accepted = true;
        stream.active = core.tables.active;
        if total > core.tables.limits.max_connections || core.stop != Stop::Run {
            core.tables.metrics.services[service].refused.add(1);
            core.take_down(id, Close::Reset, Closed::Normally);
            return;
        }
        if live > core.driver.capacity() {
            let room = self
                .loads
                .iter()
                .map(|load| load.load(Ordering::Relaxed))
                .enumerate();
            let (least, load) = room
                .min_by_key(|(_, load)| *load)
                .expect("there is a shard");
            let full = load >= core.driver.capacity();
            core.control.connections.fetch_sub(1, Ordering::Relaxed);
            core.tables.streams.at(id.index).accepted = false;
            if !full
                && core
                    .driver
                    .hand_on(&mut core.tables, id.index, listener, least as ShardId)
            {
                core.tables.metrics.shard.handed_on.add(1);
                return;
            }
            core.tables.metrics.services[service].refused.add(1);
            core.take_down(id, Close::Reset, Closed::Normally);
            return;
        }
        let stream = core.tables.streams.at(id.index);
        stream.announced = true;
        let counters = &core.tables.metrics.services[service];
        counters.accepted.add(1);
        counters.open.add(1);
        core.driver.read(&mut core.tables, id.index, true);
        self.services[service].accepted(core, id, listener, peer);
    }

    fn accept_failed(&mut self, listener: ListenerId, errno: i32) {
        let core = &mut self.core;
        if core.control.stop() != Stop::Run {
            // Its listener was shut by the stop, of which this shard may not know yet.
            return;
        }
        core.control.notify(Notice::AcceptFailed {
            shard: core.tables.shard,
            listener,
            errno,
        });
        if core.accept_paused {
            return;
        }
        core.accept_paused = true;
        core.tables.metrics.shard.accept_pauses.add(1);
        core.driver.accept(&mut core.tables, false);
        let pause = core
            .random
            .random_range(ACCEPT_PAUSE.start.as_nanos()..ACCEPT_PAUSE.end.as_nanos());
        core.timers
            .insert(core.now + pause as Nanos, (ENGINE, RESUME_ACCEPT));
    }

    fn fire_timers(&mut self) {
        while let Some(expired) = self.core.timers.pop_expired(self.core.now) {
            let (service, token) = expired.payload;
            if service == ENGINE {
                self.engine_timer(token);
            } else {
                self.core.tables.metrics.services[usize::from(service)]
                    .timers
                    .add(1);
                self.services[usize::from(service)].timer(&mut self.core, token);
            }
        }
    }

    fn engine_timer(&mut self, token: u64) {
        let core = &mut self.core;
        match token {
            RESUME_ACCEPT => {
                core.accept_paused = false;
                if core.stop == Stop::Run {
                    core.driver.accept(&mut core.tables, true);
                }
            }
            SWEEP => {
                self.sweep();
                let core = &mut self.core;
                core.timers
                    .insert(core.now + SWEEP_INTERVAL, (ENGINE, SWEEP));
            }
            DRAIN_DEADLINE => self.close_everything(),
            _ => {}
        }
    }

    /// Looks at the next part of the table for streams that are idle or stalled.
    fn sweep(&mut self) {
        let core = &mut self.core;
        let ticks = |timeout: Option<Duration>| {
            timeout.map(|timeout| {
                u32::try_from(from_duration(timeout).div_ceil(ACTIVITY_TICK)).unwrap_or(u32::MAX)
            })
        };
        let idle = ticks(core.tables.limits.idle_timeout);
        let stall = ticks(core.tables.limits.write_stall_timeout);
        let now = core.tables.active;
        let (from, len) = (core.sweep_at, core.tables.streams.len());
        core.sweep_at = if from + SWEEP_STEP >= len {
            0
        } else {
            from + SWEEP_STEP
        };
        let overdue: Vec<_> = core
            .tables
            .streams
            .live_in(from..from + SWEEP_STEP)
            .filter_map(|(index, stream)| {
                let stalled = stream.queue.as_ref().is_some_and(|queue| {
                    stall.is_some_and(|stall| now.wrapping_sub(queue.progress) > stall)
                });
                let idle = idle.is_some_and(|idle| now.wrapping_sub(stream.active) > idle);
                let due =
                    matches!(stream.state, State::Open | State::Draining) && (stalled || idle);
                due.then_some((
                    index,
                    if stalled {
                        Closed::Stalled
                    } else {
                        Closed::Idle
                    },
                ))
            })
            .collect();
        for (index, reason) in overdue {
            let id = core.tables.streams.id(index);
            core.take_down(id, Close::Reset, reason);
        }
    }

    fn tell_closed(&mut self) {
        // A handler may close more streams, so take one at a time.
        while let Some((id, service, reason)) = self.core.closing.pop() {
            self.services[usize::from(service)].closed(&mut self.core, id, reason);
        }
        let live = self.core.tables.streams.live();
        self.loads[usize::from(self.core.tables.shard)].store(live, Ordering::Relaxed);
    }

    fn follow_control(&mut self) {
        let wanted = self.core.control.stop();
        if wanted != self.core.stop {
            let first = self.core.stop == Stop::Run;
            self.core.stop = wanted;
            if first {
                self.begin_drain();
            }
            if wanted == Stop::Now {
                self.close_everything();
            }
        }
        if self.core.stop != Stop::Run {
            if self.core.tables.sockets.live() > 0 {
                self.close_sockets(false);
                // A send that succeeds ends no wait, and the socket is closed when it is known.
                self.work_left |= !self.core.tables.sockets.dirty.is_empty();
            }
            let idle = self.core.tables.streams.live() == 0 && self.core.tables.sockets.live() == 0;
            if idle && !self.ended {
                self.ended = true;
                for service in &mut self.services {
                    service.stopped();
                }
            }
        }
    }

    fn begin_drain(&mut self) {
        let core = &mut self.core;
        core.driver.accept(&mut core.tables, false);
        for service in &mut self.services {
            service.stopping(&mut self.core);
        }
        // What a protocol has resumed just now it still gets.
        self.deliver_held();
        let core = &mut self.core;
        let deadline = core
            .now
            .saturating_add(from_duration(core.tables.limits.drain_timeout));
        core.timers.insert(deadline, (ENGINE, DRAIN_DEADLINE));
        let streams: Vec<u32> = core
            .tables
            .streams
            .live_in(0..u32::MAX)
            .map(|(index, _)| index)
            .collect();
        for index in streams {
            let id = core.tables.streams.id(index);
            let stream = core.tables.streams.at(index);
            match stream.state {
                // The peer has ended, and its protocol knows or does not want to: nothing can be
                // lost by closing.
                State::Open if stream.ended => core.close(id, Closed::Stopping),
                State::Open => {
                    let paused = stream.paused;
                    core.finish(id);
                    if paused {
                        core.discard(id);
                    }
                }
                State::Connecting => core.take_down(id, Close::Reset, Closed::Stopping),
                _ => {}
            }
        }
        self.close_sockets(false);
        self.tell_closed();
        self.work_left = true;
    }

    /// Closes the datagram sockets that have nothing left to send, or all.
    fn close_sockets(&mut self, all: bool) {
        let core = &mut self.core;
        for index in 0..core.tables.sockets.len() {
            let id = core.tables.sockets.id(index);
            if core
                .tables
                .sockets
                .get(id)
                .is_some_and(|socket| all || socket.queue.is_empty())
            {
                core.driver.close_socket(&mut core.tables, index);
            }
        }
    }

    fn close_everything(&mut self) {
        self.close_sockets(true);
        let core = &mut self.core;
        let streams: Vec<u32> = core
            .tables
            .streams
            .live_in(0..u32::MAX)
            .map(|(index, _)| index)
            .collect();
        for index in streams {
            let id = core.tables.streams.id(index);
            core.take_down(id, Close::Reset, Closed::Stopping);
        }
        self.tell_closed();
        self.work_left = true;
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        let rung = self
            .services
            .iter()
            .map(|service| service.doorbells())
            .sum();
        self.core.tables.metrics.shard.doorbells.set(rung);
    }
}
