//! One shard of the server: what it owns, and where what happens goes.
//!
//! The shard where a setup request arrives examines it and answers (`request`); the shard that takes
//! the test has everything else of it (`pending`, `activation`, `running`).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use ringmill_engine::impairment::mix;
use ringmill_engine::{Context, Datagram, Nanos, Payload, Protocol, ShardId, SocketId, Transmit};

use super::answers::Answers;
use super::counters::ServerCounters;
use super::event::ServerEvent;
use super::handover::{Kind, Message};
use super::output::say;
use super::ports::Ports;
use super::settings::Settings;
use super::shared::{ShardShared, Shared};
use super::slab::{Place, Slab};
use super::test::Tables;
use crate::capacity::pacing::{Pacer, Step};
use crate::capacity::time::WallTime;
use crate::capacity::transmit::Filler;

/// Tags of control sockets have this bit, and the listener below it; others are places of tests.
const CONTROL: u64 = 1 << 63;
/// The timer of the shard itself; no test has this word.
pub(super) const HOUSEKEEPING: u64 = u64::MAX;
/// The timer by which the shard measures its timers.
const MEASURING: u64 = u64::MAX - 1;
/// Between two looks at what the shard does, while it has tests.
pub(super) const HOUSEKEEPING_INTERVAL: Nanos = 250_000_000;

pub(super) type Ctx<'a> = Context<'a, Message>;

/// The capacity server on one shard.
pub struct Server {
    pub(super) shared: Arc<Shared>,
    pub(super) shard: ShardId,
    pub(super) tables: Tables,
    pub(super) answers: Answers,
    pub(super) ports: Ports,
    pub(super) tests: Slab,
    /// The control sockets of this shard, by listener.
    pub(super) controls: Vec<SocketId>,
    /// Pending tests, of whom those without authentication in the order of their coming.
    pub(super) pending: u32,
    pub(super) pending_max: u32,
    pub(super) oldest: VecDeque<Place>,
    pub(super) running: u32,
    pub(super) booked_mbps: [u64; 2],
    pub(super) rng: SmallRng,
    pub(super) filler: Filler,
    pub(super) housekeeping: bool,
    pub(super) pacer: Pacer,
    /// Bytes sent and received when they were last looked at, and when that was.
    pub(super) seen: (u64, Nanos),
    /// Sockets that had something in this turn, and which turn that is.
    pub(super) ready: (u64, Nanos),
    /// The last turn that came late.
    pub(super) late_turn: Nanos,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, shard: ShardId) -> Self {
        let settings = &shared.settings;
        let shards = shared.shards.len() as u16;
        Self {
            tables: Tables::new(settings),
            answers: Answers::default(),
            ports: Ports::new(settings.test_ports.as_ref(), shard, shards),
            tests: Slab::default(),
            controls: Vec::new(),
            pending: 0,
            pending_max: (settings.pending_max / u32::from(shards.max(1))).max(1),
            oldest: VecDeque::new(),
            running: 0,
            booked_mbps: [0; 2],
            rng: SmallRng::seed_from_u64(mix(settings.seed ^ u64::from(shard))),
            filler: Filler::default(),
            housekeeping: false,
            pacer: Pacer::new(settings.pacing),
            seen: (0, 0),
            ready: (0, 0),
            late_turn: 0,
            shard,
            shared,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(super) fn shown(&self) -> &ShardShared {
        &self.shared.shards[usize::from(self.shard)]
    }

    pub(super) fn counters(&self) -> &ServerCounters {
        &self.shown().counters
    }

    pub(super) fn say(&self, event: ServerEvent) {
        say(self.settings(), self.shown(), event);
    }

    /// A timer of the measurement has fired.
    fn measure(&mut self, ctx: &mut Ctx<'_>) {
        match self.pacer.fired(ctx.now()) {
            Step::Wait(deadline) => {
                ctx.set_timer(deadline, MEASURING);
            }
            Step::Found(timers) if timers.poor => self.say(ServerEvent::BusyPacing {
                shard: self.shard,
                late: timers.late,
            }),
            Step::Found(_) => {}
        }
    }

    pub(super) fn wall(&self, ctx: &Ctx<'_>) -> WallTime {
        self.settings().clock.at(ctx.now())
    }
}

impl Protocol for Server {
    type Message = Message;

    fn start(&mut self, ctx: &mut Ctx<'_>) {
        let mut bound = ctx.bound_sockets();
        bound.sort_unstable_by_key(|(endpoint, _)| *endpoint);
        for (endpoint, socket) in bound {
            ctx.set_socket_tag(socket, CONTROL | u64::from(endpoint));
            self.controls.push(socket);
        }
        if let Some(deadline) = self.pacer.begin(ctx.now()) {
            ctx.set_timer(deadline, MEASURING);
        }
    }

    fn datagrams(&mut self, ctx: &mut Ctx<'_>, socket: SocketId, batch: &mut Vec<Datagram>) {
        self.count_ready(ctx.now());
        let tag = ctx.socket_tag(socket);
        if tag & CONTROL == 0 {
            return self.arrived(ctx, Place::of(tag), batch);
        }
        if ctx.is_stopping() {
            return;
        }
        let listener = (tag & !CONTROL) as u16;
        for datagram in batch.drain(..) {
            for bytes in datagram.iter() {
                self.setup(ctx, socket, listener, &datagram, bytes);
            }
        }
    }

    fn timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        if token == HOUSEKEEPING {
            return self.keep_house(ctx);
        }
        if token == MEASURING {
            return self.measure(ctx);
        }
        self.test_timer(ctx, Place::of(token));
    }

    fn message(&mut self, ctx: &mut Ctx<'_>, _from: ShardId, message: Message) {
        match message.0 {
            Kind::Open(opening) => self.open(ctx, *opening),
            Kind::Opened(opened) => self.opened(ctx, *opened),
        }
    }

    fn stopping(&mut self, ctx: &mut Ctx<'_>) {
        // The engine sends what is queued and closes.
        self.end_all(ctx);
    }
}

/// Sends one control PDU. A full queue loses it, as the network may.
pub(super) fn answer(
    ctx: &mut Ctx<'_>,
    socket: SocketId,
    peer: SocketAddr,
    source: Option<IpAddr>,
    bytes: &[u8],
) {
    send(ctx, socket, peer, source, 0, bytes);
}

pub(super) fn send(
    ctx: &mut Ctx<'_>,
    socket: SocketId,
    peer: SocketAddr,
    source: Option<IpAddr>,
    ecn: u8,
    bytes: &[u8],
) {
    let transmit = Transmit {
        source,
        ecn,
        ..Transmit::one(Some(peer), Payload::from(bytes.to_vec()))
    };
    let _ = ctx.send_datagrams(socket, transmit);
}
