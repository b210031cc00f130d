//! The client of the capacity test: a protocol on shards that sets its connections up, activates
//! them and runs them (RFC 9946, RFC 9097).
//!
//! A connection stays on the shard that it was dealt to, with a socket of its own. What happens goes
//! to the control thread by a bounded queue of [`ClientEvent`]s, what arrives goes to a recorder by
//! another; neither can hold a shard up. The control thread decides when a test with too few
//! connections ends, and says so by [`Command::End`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use ringmill_engine::timer::TimerId;
use ringmill_engine::{
    Context, Datagram, Nanos, Open, Payload, Protocol, ShardId, SocketId, Transmit,
};

use super::pacing::{Pacer, Step};
use super::parameters::Direction;
use super::time::Instants;
use super::transmit::{Filler, Route};

mod events;
mod settings;
mod setup;
mod test;

pub use events::{
    Activated, ClientEvent, Ended, Failure, Happened, Outlet, RECORDS_PER_BATCH, RecordBatch,
};
pub use settings::{ClientSettings, DatagramSizes, Recording};
pub use setup::REPEAT_INTERVAL;
use setup::{Agreed, Control, Progress};
use test::{Around, Running};

/// The bits of the TOS octet that are ECN.
const ECN_BITS: u8 = 0b11;

/// The timer by which a shard measures its timers; no connection has this token.
const MEASURING: u64 = u64::MAX;

/// What the control thread tells a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// End all connections now: running ones tell their server, the others are given up.
    End,
}

/// The client of one shard.
pub struct Client {
    settings: Arc<ClientSettings>,
    outlet: Arc<Outlet>,
    slots: Vec<Slot>,
    pacer: Pacer,
    /// Makes random payload, where that was agreed.
    random: SmallRng,
    filler: Filler,
}

/// One connection.
struct Slot {
    index: u8,
    socket: Option<SocketId>,
    state: State,
    timer: Option<(Nanos, TimerId)>,
}

enum State {
    Control(Box<Control>),
    Running(Box<Running>),
    Over,
}

impl Client {
    /// The instance of one shard with the `connections` that were dealt to it.
    #[must_use]
    pub fn new(
        settings: Arc<ClientSettings>,
        connections: impl IntoIterator<Item = u8>,
        outlet: Arc<Outlet>,
    ) -> Self {
        let slots = connections.into_iter().map(|index| Slot {
            index,
            socket: None,
            state: State::Over,
            timer: None,
        });
        Self {
            slots: slots.collect(),
            filler: Filler::default(),
            pacer: Pacer::new(settings.pacing),
            random: SmallRng::seed_from_u64(settings.seed),
            settings,
            outlet,
        }
    }

    /// The connections of a shard when all are dealt in rotation.
    pub fn dealt(connections: u8, shard: ShardId, shards: u16) -> impl Iterator<Item = u8> {
        (0..connections).filter(move |index| u16::from(*index) % shards.max(1) == shard)
    }

    fn begin(&mut self, ctx: &mut Context<'_, Command>, place: usize) {
        let at = self.settings.instants(ctx.now());
        let index = self.slots[place].index;
        let any: IpAddr = match self.settings.server(index) {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let open = Open {
            local: SocketAddr::new(self.settings.local.unwrap_or(any), 0),
            peer: None,
        };
        match ctx.open(&open) {
            Ok(socket) => {
                ctx.set_socket_tag(socket, place as u64);
                let slot = &mut self.slots[place];
                slot.socket = Some(socket);
                let control = Control::new(&self.settings, index, at);
                slot.state = State::Control(Box::new(control));
                self.request(ctx, place, at);
                self.arm(ctx, place);
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                self.tell(index, at, Happened::Failed(Failure::Socket { errno }));
            }
        }
    }

    /// Sends the current request of a connection in its control phase.
    fn request(&self, ctx: &mut Context<'_, Command>, place: usize, at: Instants) {
        let slot = &self.slots[place];
        let (State::Control(control), Some(socket)) = (&slot.state, slot.socket) else {
            return;
        };
        let (bytes, to) = control.request();
        let transmit = Transmit::one(Some(to), Payload::from(bytes.to_vec()));
        // One that is not taken is repeated like one that is lost.
        let _ = ctx.send_datagrams(socket, transmit);
        let repeats = control.repeats();
        let happened = if control.is_set_up() {
            Happened::ActivationSent { repeats }
        } else {
            Happened::SetupSent { repeats }
        };
        self.tell(slot.index, at, happened);
    }

    fn tell(&self, connection: u8, at: Instants, happened: Happened) {
        self.outlet.tell(ClientEvent {
            connection,
            at,
            happened,
        });
    }

    fn fail(&mut self, place: usize, at: Instants, failure: Failure) {
        self.slots[place].state = State::Over;
        self.tell(self.slots[place].index, at, Happened::Failed(failure));
    }

    fn progress(
        &mut self,
        ctx: &mut Context<'_, Command>,
        place: usize,
        (progress, local): (Progress, Option<IpAddr>),
        at: Instants,
    ) {
        let index = self.slots[place].index;
        match progress {
            Progress::None => {}
            Progress::FellBack { server } => {
                self.tell(index, at, Happened::FellBack { server });
                self.request(ctx, place, at);
            }
            Progress::SetUp { test } => {
                self.tell(index, at, Happened::SetUp { test });
                self.request(ctx, place, at);
            }
            Progress::Activated(agreed) => self.run(ctx, place, (&agreed, local), at),
            Progress::Failed(failure) => self.fail(place, at, failure),
        }
    }

    fn run(
        &mut self,
        ctx: &mut Context<'_, Command>,
        place: usize,
        (agreed, local): (&Agreed, Option<IpAddr>),
        at: Instants,
    ) {
        let slot = &mut self.slots[place];
        let Some(socket) = slot.socket else { return };
        let class = agreed.parameters.dscp_ecn;
        let route = Route {
            socket,
            peer: agreed.peer,
            ecn: class & ECN_BITS,
        };
        ctx.connect_socket(socket, agreed.peer);
        ctx.set_socket_dscp(socket, class >> ECN_BITS.count_ones());
        if !self.settings.gso {
            ctx.set_segmented(socket, false);
        }
        let running = Running::new(&self.settings, slot.index, agreed, route, at);
        slot.state = State::Running(Box::new(running));
        let mut address = ctx.local_address(socket).unwrap_or(agreed.peer);
        if let Some(local) = local {
            address.set_ip(local);
        }
        let activated = Activated {
            local: address,
            peer: agreed.peer,
            parameters: agreed.parameters,
            version: agreed.version,
            wire_version: agreed.wire_version,
            clock_offset_s: agreed.clock_offset_s,
        };
        let index = slot.index;
        self.tell(index, at, Happened::Activated(Box::new(activated)));
    }

    /// A connection in its running state, with what is around it.
    fn running<'a, 'b>(
        &'a mut self,
        ctx: &'a mut Context<'b, Command>,
        place: usize,
        at: Instants,
    ) -> Option<(&'a mut Running, Around<'a, 'b>)> {
        let slot = self.slots.get_mut(place)?;
        let State::Running(running) = &mut slot.state else {
            return None;
        };
        let around = Around {
            ctx,
            filler: &mut self.filler,
            random: &mut self.random,
            outlet: &self.outlet,
            index: slot.index,
            at,
        };
        Some((running, around))
    }

    /// Has the timer of a connection fire at its next deadline.
    fn arm(&mut self, ctx: &mut Context<'_, Command>, place: usize) {
        let slot = &mut self.slots[place];
        let deadline = match &slot.state {
            State::Control(control) => Some(control.next_deadline()),
            State::Running(running) => running.next_deadline(),
            State::Over => None,
        };
        if let (Some(deadline), State::Running(running)) = (deadline, &slot.state)
            && running.sends()
            && let Some(until) = self.pacer.awake_until(deadline, ctx.now())
        {
            ctx.stay_awake_until(until);
        }
        match (deadline, slot.timer) {
            (Some(deadline), Some((armed, _))) if deadline == armed => {}
            (deadline, timer) => {
                if let Some((_, timer)) = timer {
                    ctx.cancel_timer(timer);
                }
                slot.timer =
                    deadline.map(|deadline| (deadline, ctx.set_timer(deadline, place as u64)));
            }
        }
    }

    /// A timer of the measurement has fired.
    fn measure(&mut self, ctx: &mut Context<'_, Command>) {
        let at = self.settings.instants(ctx.now());
        match self.pacer.fired(at.now) {
            Step::Wait(deadline) => {
                ctx.set_timer(deadline, MEASURING);
            }
            Step::Found(timers) if timers.poor => {
                let late = timers.late;
                self.tell(self.slots[0].index, at, Happened::BusyPacing { late });
            }
            Step::Found(_) => {}
        }
    }

    fn end(&mut self, ctx: &mut Context<'_, Command>) {
        let at = self.settings.instants(ctx.now());
        for place in 0..self.slots.len() {
            if let Some((running, around)) = self.running(ctx, place, at) {
                running.stop(around);
            } else if let State::Control(_) = self.slots[place].state {
                self.fail(place, at, Failure::Ended);
            }
            self.arm(ctx, place);
        }
    }
}

impl Protocol for Client {
    type Message = Command;

    fn start(&mut self, ctx: &mut Context<'_, Command>) {
        if self.settings.parameters.direction == Direction::Upstream
            && !self.slots.is_empty()
            && let Some(deadline) = self.pacer.begin(ctx.now())
        {
            ctx.set_timer(deadline, MEASURING);
        }
        for place in 0..self.slots.len() {
            self.begin(ctx, place);
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, Command>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let place = ctx.socket_tag(socket) as usize;
        let at = self.settings.instants(ctx.now());
        for datagram in batch.drain(..) {
            if let Some((running, around)) = self.running(ctx, place, at) {
                running.datagram(&datagram, around);
                continue;
            }
            for bytes in datagram.iter() {
                let Some(slot) = self.slots.get_mut(place) else {
                    return;
                };
                let State::Control(control) = &mut slot.state else {
                    break;
                };
                let progress = control.datagram(&self.settings, bytes, datagram.peer, at);
                self.progress(ctx, place, (progress, datagram.local), at);
            }
        }
        self.arm(ctx, place);
    }

    fn socket_error(&mut self, ctx: &mut Context<'_, Command>, socket: SocketId, errno: i32) {
        let place = ctx.socket_tag(socket) as usize;
        let at = self.settings.instants(ctx.now());
        if let Some((running, around)) = self.running(ctx, place, at) {
            running.socket_error(errno, &around);
        } else if let Some(slot) = self.slots.get(place) {
            self.tell(slot.index, at, Happened::SocketError { errno });
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, Command>, token: u64) {
        if token == MEASURING {
            return self.measure(ctx);
        }
        let place = token as usize;
        let at = self.settings.instants(ctx.now());
        let Some(slot) = self.slots.get_mut(place) else {
            return;
        };
        slot.timer = None;
        if let State::Control(control) = &mut slot.state {
            match control.timer(at.now) {
                Ok(true) => self.request(ctx, place, at),
                Ok(false) => {}
                Err(failure) => self.fail(place, at, failure),
            }
        } else if let Some((running, around)) = self.running(ctx, place, at) {
            running.timer(around);
        }
        self.arm(ctx, place);
    }

    fn message(&mut self, ctx: &mut Context<'_, Command>, _from: ShardId, command: Command) {
        match command {
            Command::End => self.end(ctx),
        }
    }

    fn stopping(&mut self, ctx: &mut Context<'_, Command>) {
        self.end(ctx);
    }
}
