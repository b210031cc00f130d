//! One shard: the loop that carries bytes socket → driver → protocol → driver → socket.
//!
//! A turn is: send what is queued and wait, in one system call; take all events; give them to the
//! protocols; take messages; fire timers. A shard owns everything it touches. It never blocks
//! except in the driver's wait, and never lets one event run a second turn inside the first.

mod dispatch;
mod hosted;
mod lifecycle;
mod stop;
mod timers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use rand::SeedableRng;
use rand::rngs::SmallRng;

pub(crate) use self::hosted::Guest;
use self::hosted::{Hosted, MESSAGES_PER_TURN_MAX};
use self::lifecycle::Held;
use crate::control::{ControlState, Stop};
use crate::driver::{
    BoundDatagramSocket, BoundListener, Driver, Event, STREAMS_PER_FLUSH_MAX, Tables, Wait,
};
use crate::ids::{ServiceId, ShardId, StreamId};
use crate::limits::Limits;
use crate::mailbox::ShardBell;
use crate::protocol::Closed;
use crate::stream::ACTIVITY_TICK;
use crate::time::from_duration;
use crate::timer::TimerWheel;
use crate::{Datagram, Nanos};

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
    sweep_armed: bool,
    accept_paused: bool,
    /// Until when a protocol wants the shard not to sleep.
    pub(crate) awake_until: Nanos,
    /// What arrived for streams that were paused in the same breath.
    held: HashMap<u32, Held>,
    /// Streams that were resumed while something is held for them.
    resumed: Vec<StreamId>,
}

impl Core {
    pub(crate) fn stop_begun(&self) -> bool {
        self.stop != Stop::Run
    }

    pub(crate) fn request_stop(&self) {
        self.control.request(Stop::Drain);
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
    /// Until when more datagrams may gather before the next turn; 0 while none come.
    gather_until: Nanos,
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
                sweep_armed: false,
                accept_paused: false,
                awake_until: 0,
                held: HashMap::new(),
                resumed: Vec::new(),
            },
            services,
            bells: parts.bells,
            loads: parts.loads,
            events: Vec::with_capacity(1024),
            batch: Vec::new(),
            quiet_since: now,
            gather_until: 0,
            work_left: true,
            ended: false,
        };
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

    /// Whether a protocol wants it not to sleep at that time.
    pub(crate) fn stays_awake(&self, at: Nanos) -> bool {
        let until = self.core.awake_until;
        until > 0 && at <= until
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

    /// Payloads in the send queues of streams, for leak checks.
    pub(crate) fn queued_messages(&self) -> usize {
        self.core.tables.streams.queued_messages
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
        let gather = from_duration(core.tables.limits.gather);
        let datagrams = |event: &Event| matches!(event, Event::Datagram { .. });
        self.gather_until = match gather > 0 && self.events.iter().any(datagrams) {
            true => core.now + gather,
            false => 0,
        };
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
        self.arm_sweep();
        self.follow_control();
        let rung = self.services.iter().map(|service| service.ring()).sum();
        self.core.tables.metrics.shard.doorbells.set(rung);
        Ok(())
    }

    fn bell(&self) -> &ShardBell {
        &self.bells[usize::from(self.core.tables.shard)]
    }

    fn wait(&mut self) -> io::Result<()> {
        let busy_poll = from_duration(self.core.tables.limits.busy_poll);
        let spinning = busy_poll > 0 && self.core.now.saturating_sub(self.quiet_since) < busy_poll;
        let flush_left = self.core.tables.streams.dirty.len() > STREAMS_PER_FLUSH_MAX;
        let awake = self.stays_awake(self.core.now);
        if self.work_left || flush_left || spinning || awake {
            return self.poll();
        }
        self.bell().prepare_sleep();
        let messages = self.services.iter().any(|service| service.has_messages());
        if messages || self.core.control.stop() != self.core.stop {
            self.bell().stay_awake();
            return self.poll();
        }
        let deadline = self.next_deadline();
        let wait = match self.gather_until {
            0 => deadline.map_or(Wait::Forever, Wait::Until),
            until => Wait::Gather(deadline.map_or(until, |deadline| deadline.min(until))),
        };
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
}
