//! Load on datagrams: UDP.
//!
//! A flow is a connected socket with `depth` places; each place has at most one datagram out. A
//! datagram begins with eight bytes (little endian: place in the low 16 bits, turn of the place in
//! the rest), or with as many of them as fit, and goes on with the pattern. So every answer is
//! matched exactly, and lost, late, doubled and reordered datagrams are told apart.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ringmill_engine::{
    Address, Context, Datagram, Nanos, Open, Payload, Protocol, Sent, ShardId, SocketId, Transmit,
    error_name,
};

use super::pattern;
use super::schedule::Schedule;
use super::shared::{Phase, Recorder, Shared, Unsent};
use super::{Arrivals, Command, Config, GRACE, PUBLISH_INTERVAL};

const PUBLISH: u64 = 0;
const BEGIN: u64 = 1;
const MEASURE: u64 = 2;
const END: u64 = 3;
const GIVE_UP: u64 = 4;
const PACE: u64 = 5;
const SWEEP: u64 = 6;
const OPEN_MORE: u64 = 7;
/// Places that a flow can have: they travel in 16 bits.
const PLACES_MAX: usize = 1 << 16;
/// Sockets opened in one turn, so that opening many does not stop the shard.
const OPENS_PER_TURN: usize = 256;
/// Between two looks for datagrams without an answer.
const SWEEP_INTERVAL: Nanos = 10_000_000;
/// Lost datagrams that each flow remembers, to tell a late answer from a doubled one; of more, the
/// lowest turns are forgotten. A flow that loses so many has other troubles.
const LOST_KEPT_MAX: usize = 4096;
/// Bytes of the header.
const HEADER_LEN: usize = 8;

#[derive(Clone, Copy, Default)]
struct Place {
    /// How often the place has been used.
    turn: u64,
    intended: Nanos,
    sent: Nanos,
    /// When, among the datagrams of the flow, it was sent.
    order: u64,
    out: bool,
}

/// Whether a flow's socket takes sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Its queue was full when last tried.
    Full,
    Closed,
}

struct Flow {
    socket: SocketId,
    places: Box<[Place]>,
    /// Places that are free, for an open loop.
    free: Vec<u16>,
    state: State,
    next_order: u64,
    highest_order: u64,
    base: u64,
    /// Turns and places that were given up and whose answer has not come since.
    lost: BTreeSet<(u64, u16)>,
}

/// The datagram load of one shard. See the module documentation.
pub struct DatagramLoad {
    config: Arc<Config>,
    recorder: Recorder,
    flows: Vec<Flow>,
    next: usize,
    share: usize,
    begun: usize,
    first: usize,
    schedule: Schedule,
    /// Places of the flow at hand that are to be sent in this turn.
    ready: Vec<u16>,
    running: bool,
    ended: bool,
    /// The end came before its time.
    interrupted: bool,
    done: bool,
    outstanding: usize,
    /// When counting starts.
    measure_at: Nanos,
    end_at: Nanos,
}

impl DatagramLoad {
    /// The instance of one shard; figures go to `shared`.
    #[must_use]
    pub fn new(config: Arc<Config>, shared: Arc<Shared>) -> Self {
        let closed_loop = config.arrivals == Arrivals::Closed;
        Self {
            recorder: Recorder::new(shared, closed_loop),
            config,
            flows: Vec::new(),
            next: 0,
            share: 0,
            begun: 0,
            first: 0,
            schedule: Schedule::new(),
            ready: Vec::new(),
            running: false,
            ended: false,
            interrupted: false,
            done: false,
            outstanding: 0,
            measure_at: Nanos::MAX,
            end_at: Nanos::MAX,
        }
    }

    fn open_more(&mut self, ctx: &mut Context<'_, Command>) {
        let Address::Ip(peer) = self.config.target else {
            return;
        };
        let any: IpAddr = if peer.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let depth = self.config.depth.clamp(1, PLACES_MAX);
        for _ in 0..OPENS_PER_TURN {
            if self.begun == self.share {
                break;
            }
            let number = self.first + self.begun;
            let local = self
                .config
                .source(number)
                .unwrap_or(SocketAddr::new(any, 0));
            match ctx.open(&Open {
                local,
                peer: Some(peer),
            }) {
                Ok(socket) => {
                    self.recorder.tally.opened += 1;
                    ctx.set_socket_tag(socket, self.flows.len() as u64);
                    self.flows.push(Flow {
                        socket,
                        places: vec![Place::default(); depth].into(),
                        free: (0..depth).rev().map(|place| place as u16).collect(),
                        state: State::Open,
                        next_order: 1,
                        highest_order: 0,
                        lost: BTreeSet::new(),
                        base: number as u64 * 7919 % pattern::PERIOD as u64,
                    });
                }
                Err(error) => {
                    self.recorder.tally.open_failed += 1;
                    self.recorder
                        .failed(("open", error_name(error.raw_os_error().unwrap_or(0))));
                }
            }
            self.begun += 1;
        }
        self.recorder.set_settled(self.begun);
        if self.begun < self.share {
            ctx.set_timer(ctx.now(), OPEN_MORE);
        } else {
            self.recorder.publish();
            self.recorder.set_phase(Phase::Ready);
        }
    }

    /// Sends one datagram from each place in `ready`, as far as the budget goes: as few sends as
    /// possible. What is not queued leaves its place free.
    fn send_ready(&mut self, ctx: &mut Context<'_, Command>, at: usize, intended: Nanos) -> Sent {
        let len = self.config.message_len;
        let now = self.recorder.stamp(ctx.now());
        let at_once = ctx.segments_max(len);
        let flow = &mut self.flows[at];
        let allowed = self.recorder.allowance(self.ready.len());
        flow.free.extend(self.ready.drain(allowed..));
        let mut result = Sent::Queued;
        for places in self.ready.chunks(at_once) {
            let total = places.len() * len;
            let mut filled = ctx.fill().filter(|buffer| buffer.len() >= total);
            let mut own = Vec::new();
            let bytes: &mut [u8] = match &mut filled {
                Some(buffer) => &mut buffer[..total],
                None => {
                    own.resize(total, 0);
                    &mut own
                }
            };
            for (&number, bytes) in places.iter().zip(bytes.chunks_mut(len)) {
                let place = &mut flow.places[usize::from(number)];
                place.turn += 1;
                place.intended = intended;
                place.sent = now;
                place.order = flow.next_order;
                place.out = true;
                flow.next_order += 1;
                write_message(bytes, identity(number, place.turn), flow.base);
            }
            let data = match filled {
                Some(buffer) => Payload::from(buffer.freeze(total)),
                None => Payload::from(own),
            };
            let transmit = Transmit {
                peer: None,
                source: None,
                ecn: 0,
                stride: len as u16,
                data,
            };
            result = ctx.send_datagrams(flow.socket, transmit);
            if result.is_queued() {
                self.recorder.sent(places.len() as u64);
                self.outstanding += places.len();
                continue;
            }
            for &number in places {
                flow.places[usize::from(number)].out = false;
                flow.free.push(number);
            }
            if result == Sent::Closed {
                if flow.state != State::Closed {
                    self.recorder.failed(("send", "socket closed"));
                }
                flow.state = State::Closed;
            } else {
                // In an open loop the message stays in the schedule and goes later.
                if self.config.arrivals == Arrivals::Closed {
                    self.recorder.failed(("send", "queue full"));
                }
                flow.state = State::Full;
            }
        }
        self.ready.clear();
        result
    }

    fn pace(&mut self, ctx: &mut Context<'_, Command>) {
        // The wake-up that was set before the end still comes.
        if self.ended {
            return;
        }
        // A late turn must not send what was meant for after the end.
        let now = ctx.now().min(self.end_at);
        let Some(next) = self.schedule.advance(now, &mut self.recorder) else {
            return;
        };
        ctx.set_timer(next, PACE);
        self.send_backlog(ctx);
        self.check_spent(ctx);
    }

    fn send_backlog(&mut self, ctx: &mut Context<'_, Command>) {
        let mut tried = 0;
        let mut cause = Unsent::NoConnection;
        while let Some(intended) = self.schedule.oldest() {
            if tried == self.flows.len() {
                self.schedule.hold(cause);
                return;
            }
            if self.recorder.is_spent() {
                return;
            }
            self.next = (self.next + 1) % self.flows.len();
            let flow = &mut self.flows[self.next];
            if flow.state == State::Open
                && let Some(place) = flow.free.pop()
            {
                self.ready.push(place);
                if self.send_ready(ctx, self.next, intended).is_queued() {
                    self.schedule.sent(ctx.now(), &mut self.recorder);
                    tried = 0;
                    cause = Unsent::NoConnection;
                    continue;
                }
            }
            tried += 1;
            match self.flows[self.next].state {
                State::Full => cause = Unsent::QueueFull,
                State::Open if cause != Unsent::QueueFull => cause = Unsent::NoRoom,
                State::Open | State::Closed => {}
            }
        }
    }

    fn begin(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        self.running = true;
        if ctx.now() >= self.measure_at {
            // Without a warm-up the very first messages count.
            self.recorder.begin_measuring(ctx.now());
        }
        self.recorder.set_phase(Phase::Running);
        let now = ctx.now();
        let (shard, shards) = (ctx.shard(), ctx.shards());
        self.schedule
            .begin(&self.config, self.flows.len(), shard, shards, now);
        if self.config.arrivals == Arrivals::Closed {
            for at in 0..self.flows.len() {
                self.refill(ctx, at);
            }
        }
        ctx.set_timer(now + SWEEP_INTERVAL, SWEEP);
        self.pace(ctx);
        self.check_spent(ctx);
    }

    /// In a closed loop every free place is used at once.
    fn refill(&mut self, ctx: &mut Context<'_, Command>, at: usize) {
        let flow = &mut self.flows[at];
        if self.running
            && !self.ended
            && self.config.arrivals == Arrivals::Closed
            && flow.state == State::Open
            && !flow.free.is_empty()
        {
            self.ready = std::mem::take(&mut flow.free);
            // What found no room is in its free place, and its flow says why.
            let _ = self.send_ready(ctx, at, ctx.now());
        }
    }

    /// Counts what has waited too long as lost, and sends anew in its place.
    fn sweep(&mut self, ctx: &mut Context<'_, Command>) {
        let now = ctx.now();
        let due = now.saturating_sub(self.config.datagram_timeout);
        for at in 0..self.flows.len() {
            let flow = &mut self.flows[at];
            if flow.state == State::Full {
                // A socket that is never drained is tried again all the same.
                flow.state = State::Open;
            }
            for (number, place) in flow.places.iter_mut().enumerate() {
                if place.out && place.sent <= due {
                    place.out = false;
                    flow.lost.insert((place.turn, number as u16));
                    if flow.lost.len() > LOST_KEPT_MAX {
                        flow.lost.pop_first();
                    }
                    self.outstanding -= 1;
                    if place.sent >= self.recorder.measured_from {
                        self.recorder.tally.lost += 1;
                    }
                    flow.free.push(number as u16);
                }
            }
            self.refill(ctx, at);
        }
        self.send_backlog(ctx);
        if !self.done {
            ctx.set_timer(now + SWEEP_INTERVAL, SWEEP);
        }
        self.check_spent(ctx);
        self.check_done(ctx);
    }

    /// One answer. Returns the place that it frees.
    fn answer(&mut self, at: usize, bytes: &[u8], now: Nanos) -> Option<u16> {
        let flow = &mut self.flows[at];
        let depth = flow.places.len();
        if bytes.len() != self.config.message_len {
            self.recorder.tally.unknown += 1;
            return None;
        }
        let (number, turn) = recognise(bytes, depth, |number| flow.places[number].turn);
        let Some(place) = flow.places.get_mut(number) else {
            self.recorder.tally.unknown += 1;
            return None;
        };
        if turn != place.turn || !place.out {
            if flow.lost.remove(&(turn, number as u16)) {
                self.recorder.tally.late += 1;
            } else if turn <= place.turn && turn > 0 {
                self.recorder.tally.duplicated += 1;
            } else {
                self.recorder.tally.unknown += 1;
            }
            return None;
        }
        place.out = false;
        self.outstanding -= 1;
        if place.order < flow.highest_order {
            self.recorder.tally.reordered += 1;
        } else {
            flow.highest_order = place.order;
        }
        if self.config.verify && bytes.len() > HEADER_LEN {
            let wrong = pattern::wrong_bytes(&bytes[HEADER_LEN..], flow.base + place.turn);
            self.recorder.tally.wrong_bytes += wrong;
        }
        self.recorder
            .answered(now, place.intended, place.sent, bytes.len());
        Some(number as u16)
    }

    fn end(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.schedule.end(&mut self.recorder);
        self.recorder.end_measuring(ctx.now());
        self.recorder.publish();
        self.recorder.set_phase(Phase::Ending);
        ctx.set_timer(
            ctx.now() + GRACE.max(self.config.datagram_timeout + SWEEP_INTERVAL),
            GIVE_UP,
        );
        self.check_done(ctx);
    }

    /// When the last message of the budget has been sent, nothing more is; when its answers are
    /// there too, the run ends. Without an open flow nobody will ever spend it.
    fn check_spent(&mut self, ctx: &mut Context<'_, Command>) {
        let nobody =
            self.recorder.has_budget() && self.flows.iter().all(|flow| flow.state == State::Closed);
        if self.ended || !(nobody || self.recorder.is_spent()) {
            return;
        }
        self.schedule.drop_rest();
        if self.outstanding == 0 {
            self.end(ctx);
        }
    }

    fn check_done(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended && !self.done && self.outstanding == 0 {
            self.finish(ctx);
        }
    }

    fn finish(&mut self, ctx: &mut Context<'_, Command>) {
        self.done = true;
        let from = self.recorder.measured_from;
        let due = ctx.now().saturating_sub(self.config.datagram_timeout);
        let places = self.flows.iter().flat_map(|flow| flow.places.iter());
        for place in places.filter(|place| place.out && place.sent >= from) {
            // An interrupt does not shorten a datagram's time.
            if self.interrupted && place.sent > due {
                self.recorder.tally.interrupted += 1;
            } else {
                self.recorder.tally.lost += 1;
            }
        }
        self.recorder.publish();
        for flow in &self.flows {
            ctx.close_socket(flow.socket);
        }
        self.recorder.set_phase(Phase::Done);
    }
}

/// The first eight bytes of a datagram.
fn identity(place: u16, turn: u64) -> u64 {
    u64::from(place) | turn << 16
}

fn write_message(bytes: &mut [u8], identity: u64, base: u64) {
    let header = identity.to_le_bytes();
    let head = bytes.len().min(HEADER_LEN);
    bytes[..head].copy_from_slice(&header[..head]);
    if bytes.len() > HEADER_LEN {
        let rest = &mut bytes[HEADER_LEN..];
        rest.copy_from_slice(pattern::window(base + (identity >> 16), rest.len()));
    }
}

/// The place and turn of an answer. A datagram shorter than the header carries only the low bits
/// of both; the turn is then the one that the place is at, if those bits agree.
fn recognise(bytes: &[u8], depth: usize, turn_of: impl Fn(usize) -> u64) -> (usize, u64) {
    let mut header = [0; HEADER_LEN];
    let head = bytes.len().min(HEADER_LEN);
    header[..head].copy_from_slice(&bytes[..head]);
    let value = u64::from_le_bytes(header);
    let number = (value & 0xffff) as usize;
    if head == HEADER_LEN || number >= depth {
        return (number, value >> 16);
    }
    let turn = turn_of(number);
    let mask = if head == 0 {
        0
    } else {
        u64::MAX >> (64 - 8 * head as u32)
    };
    if identity(number as u16, turn) & mask == value & mask {
        (number, turn)
    } else {
        (number, value >> 16)
    }
}

impl Protocol for DatagramLoad {
    type Message = Command;

    fn start(&mut self, ctx: &mut Context<'_, Command>) {
        let (shard, shards) = (ctx.shard(), ctx.shards());
        self.share = Config::share(self.config.connections, shard, shards);
        self.first = (0..shard)
            .map(|before| Config::share(self.config.connections, before, shards))
            .sum();
        self.recorder
            .set_budget(self.config.budget(self.first, self.share));
        ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
        self.open_more(ctx);
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, Command>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let now = ctx.now();
        let at = ctx.socket_tag(socket) as usize;
        if at >= self.flows.len() {
            return;
        }
        let mut freed = Vec::new();
        for datagram in batch.drain(..) {
            for bytes in datagram.iter() {
                freed.extend(self.answer(at, bytes, now));
            }
        }
        self.flows[at].free.extend_from_slice(&freed);
        self.refill(ctx, at);
        self.send_backlog(ctx);
        self.check_spent(ctx);
        self.check_done(ctx);
    }

    fn socket_drained(&mut self, ctx: &mut Context<'_, Command>, socket: SocketId) {
        let at = ctx.socket_tag(socket) as usize;
        let Some(flow) = self.flows.get_mut(at) else {
            return;
        };
        if flow.state == State::Full {
            flow.state = State::Open;
        }
        self.refill(ctx, at);
        self.send_backlog(ctx);
        self.check_spent(ctx);
    }

    fn socket_error(&mut self, _ctx: &mut Context<'_, Command>, _socket: SocketId, errno: i32) {
        self.recorder.failed(("socket", error_name(errno)));
    }

    fn timer(&mut self, ctx: &mut Context<'_, Command>, token: u64) {
        match token {
            PUBLISH if !self.done => {
                self.recorder.publish();
                ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
            }
            BEGIN => self.begin(ctx),
            MEASURE => {
                if !self.ended && !self.recorder.measuring {
                    self.recorder.begin_measuring(ctx.now());
                }
                ctx.set_timer(self.end_at, END);
                self.check_spent(ctx);
            }
            END => {
                // What was due by then still goes, in whichever order the timers come.
                self.pace(ctx);
                self.end(ctx);
            }
            GIVE_UP if !self.done => self.finish(ctx),
            PACE => self.pace(ctx),
            SWEEP => self.sweep(ctx),
            OPEN_MORE => self.open_more(ctx),
            _ => {}
        }
    }

    fn message(&mut self, ctx: &mut Context<'_, Command>, _from: ShardId, command: Command) {
        match command {
            Command::Begin {
                start,
                measure,
                end,
            } => {
                self.measure_at = measure;
                self.end_at = end;
                // Before BEGIN, so that without a warm-up the first messages are counted too.
                ctx.set_timer(measure.max(start), MEASURE);
                ctx.set_timer(start, BEGIN);
            }
            Command::End => {
                self.interrupted |= !self.ended;
                self.end(ctx);
            }
        }
    }

    fn stopping(&mut self, ctx: &mut Context<'_, Command>) {
        self.interrupted |= !self.done;
        self.end(ctx);
        if !self.done {
            self.finish(ctx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_recognised_at_every_length() {
        for len in 0..64 {
            let mut bytes = vec![0; len];
            let turn = 0x0001_0203;
            write_message(&mut bytes, identity(5, turn), 77);
            // Fewer than two bytes cannot tell the places apart: then there is one.
            let (place, depth) = if len >= 2 {
                (5, 64)
            } else {
                (usize::from(len == 1) * 5, 6)
            };
            assert_eq!(recognise(&bytes, depth, |_| turn).0, place, "{len} bytes");
        }
    }
}
