//! The DNS load of one shard: its life from connecting to the last answer, and its handlers.
//!
//! It follows the same commands and phases as the other loads, so that one control thread runs all.
//! How connections are opened is in `opening`, how queries leave in `sending`.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use ringmill_engine::pacer::Pacer;
use ringmill_engine::{
    Buffer, Closed, Context, Datagram, Nanos, Protocol, ShardId, SocketId, StreamId, error_name,
};

use super::figures::{DnsFigures, DnsShared};
use super::frames::Frames;
use super::ids::{Flight, Found, Ids};
use super::message::{self, Header};
use super::record::{Record, RecordKind, Records};
use super::{DnsConfig, Queries};
use crate::load::shared::Recorder;
use crate::load::{Command, Config, Instants, PUBLISH_INTERVAL, Phase, Shared};

pub(super) const PUBLISH: u64 = 0;
const BEGIN: u64 = 1;
const MEASURE: u64 = 2;
const END: u64 = 3;
const GIVE_UP: u64 = 4;
pub(super) const PACE: u64 = 5;
const SWEEP: u64 = 6;
pub(super) const OPEN_MORE: u64 = 7;
/// Between two looks for queries without an answer. Each looks at a part of the connections.
const SWEEP_INTERVAL: Nanos = 10_000_000;
/// Looks in which each connection has its turn once: a million are 20,000 a look.
const SWEEP_PARTS: usize = 50;
/// After the timeout of the last query: the looks go round once more.
const END_SLACK: Nanos = SWEEP_INTERVAL * SWEEP_PARTS as Nanos;
/// Tells the random numbers that choose connections from those of the arrivals: drawn alike, a
/// connection would always be chosen after gaps of one length.
const CHOICE_STREAM: u64 = 0x9e37_79b9_7f4a_7c15;

/// A connection's stream or socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handle {
    Stream(StreamId),
    Socket(SocketId),
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not begun, failed, or closed.
    Closed,
    /// A connect is in flight.
    Opening,
    /// Queries go out on it; its place among the open ones.
    Open(u32),
}

/// One connection.
pub(super) struct Connection {
    pub(super) handle: Option<Handle>,
    pub(super) state: State,
    pub(super) ids: Ids,
    frames: Frames,
    /// Queries of this turn that are noted in `ids` and not sent yet.
    pub(super) pending: u32,
}

impl Connection {
    pub(super) fn new(begin: u64) -> Self {
        Self {
            handle: None,
            state: State::Closed,
            ids: Ids::new(begin),
            frames: Frames::default(),
            pending: 0,
        }
    }
}

/// The DNS load of one shard. See the [module's page](super).
pub struct DnsLoad {
    pub(super) config: Arc<DnsConfig>,
    pub(super) recorder: Recorder,
    pub(super) figures: DnsFigures,
    dns_shared: Arc<DnsShared>,
    records: Option<Records>,
    /// This shard's connections; the first has this number over all shards.
    pub(super) connections: Vec<Connection>,
    pub(super) first: usize,
    /// Connection of a stream, by [`StreamId::index`].
    pub(super) of_stream: Vec<u32>,
    /// Connections that are open, in no order.
    pub(super) open: Vec<u32>,
    /// Connections that are to be opened, the next one last.
    pub(super) to_open: Vec<u32>,
    pub(super) in_flight: usize,
    pub(super) open_pacer: Option<Pacer>,
    /// No connect before this time: a local resource was missing.
    pub(super) open_paused_until: Nanos,
    /// Such pauses since a connection was opened.
    pub(super) open_pauses: u32,
    /// A timer will go on with opening: one is enough.
    pub(super) open_timer_set: bool,
    /// Connections that are open or have failed once: the beginning is over when all are.
    pub(super) settled: usize,
    pub(super) instants: Option<Instants>,
    pub(super) choice: SmallRng,
    /// Connections with queries to be sent in this turn.
    pub(super) touched: Vec<u32>,
    pub(super) running: bool,
    pub(super) ended: bool,
    interrupted: bool,
    pub(super) done: bool,
    /// Queries in flight on all connections.
    pub(super) outstanding: usize,
    /// Where the next look for overdue queries begins.
    swept: usize,
    /// When the plan begins: the same on all shards, however late each comes to it.
    pub(super) start_at: Nanos,
    measure_at: Nanos,
    pub(super) end_at: Nanos,
}

impl DnsLoad {
    /// The instance of one shard; figures go to `shared` and `dns_shared`, every query and answer to
    /// `records`, if there are.
    #[must_use]
    pub fn new(
        config: Arc<DnsConfig>,
        shared: Arc<Shared>,
        dns_shared: Arc<DnsShared>,
        records: Option<Records>,
    ) -> Self {
        Self {
            recorder: Recorder::new(shared, false),
            figures: DnsFigures::new(),
            dns_shared,
            records,
            connections: Vec::new(),
            first: 0,
            of_stream: Vec::new(),
            open: Vec::new(),
            to_open: Vec::new(),
            in_flight: 0,
            open_pacer: None,
            open_paused_until: 0,
            open_pauses: 0,
            open_timer_set: false,
            settled: 0,
            instants: None,
            choice: SmallRng::seed_from_u64(config.seed),
            touched: Vec::new(),
            running: false,
            ended: false,
            interrupted: false,
            done: false,
            outstanding: 0,
            swept: 0,
            start_at: 0,
            measure_at: Nanos::MAX,
            end_at: Nanos::MAX,
            config,
        }
    }

    pub(super) fn publish(&mut self) {
        self.recorder.publish();
        self.dns_shared.publish(&mut self.figures);
    }

    /// Leaves a record for the writer.
    #[inline]
    pub(super) fn record(&mut self, connection: u32, id: u16, at: Nanos, kind: RecordKind) {
        let Some(records) = &self.records else { return };
        let record = Record {
            at,
            connection: self.first as u32 + connection,
            id,
            kind,
        };
        self.figures.counts.records_dropped += u64::from(!records.push(record));
    }

    pub(super) fn is_recording(&self) -> bool {
        self.records.is_some()
    }

    fn begin(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        self.running = true;
        if ctx.now() >= self.measure_at {
            // Without a warm-up the very first queries count.
            self.recorder.begin_measuring(ctx.now());
        }
        self.recorder.set_phase(Phase::Running);
        self.begin_sending(ctx.shard(), ctx.shards());
        ctx.set_timer(ctx.now() + SWEEP_INTERVAL, SWEEP);
        self.pace(ctx);
    }

    /// Gives up the overdue queries of one connection.
    #[inline]
    fn expire(&mut self, at: u32, now: Nanos) {
        let due = now.saturating_sub(self.config.timeout);
        let (recorder, outstanding) = (&mut self.recorder, &mut self.outstanding);
        self.connections[at as usize].ids.expire(due, |flight| {
            *outstanding -= 1;
            lost(recorder, &flight);
        });
    }

    fn sweep(&mut self, ctx: &mut Context<'_, Command>) {
        let count = self.connections.len();
        for _ in 0..count.div_ceil(SWEEP_PARTS) {
            self.swept = (self.swept + 1) % count;
            self.expire(self.swept as u32, ctx.now());
        }
        if !self.done {
            ctx.set_timer(ctx.now() + SWEEP_INTERVAL, SWEEP);
        }
        self.check_done(ctx);
    }

    /// A message has arrived on a connection.
    #[inline]
    fn answer(&mut self, at: u32, bytes: &[u8], now: Nanos) {
        let Some(header) = Header::read(bytes) else {
            self.malformed("too short for a header");
            return;
        };
        self.expire(at, now);
        let connection = &mut self.connections[at as usize];
        let mut rtt = None;
        match connection.ids.find(header.id) {
            Found::InFlight(number) => {
                if !message::is_about(bytes, &header, self.config.queries.question(number)) {
                    self.malformed("not about the question that was asked");
                    self.record(at, header.id, now, RecordKind::Answer { rtt });
                    return;
                }
                let (flight, in_order) = connection.ids.answered(number);
                self.outstanding -= 1;
                self.recorder.tally.reordered += u64::from(!in_order);
                if self.recorder.measuring {
                    self.figures.counts.answer(&header);
                    if header.is_answer() && header.response_code() != 0 {
                        let code = header.response_code();
                        self.recorder
                            .failed(("answer", message::response_code_name(code)));
                    }
                }
                self.recorder
                    .answered(now, flight.intended, flight.sent, bytes.len());
                rtt = Some(now.saturating_sub(flight.sent));
            }
            Found::Duplicate => self.recorder.tally.duplicated += 1,
            Found::Late(number) => {
                connection.ids.came_late(number);
                self.recorder.tally.late += 1;
            }
            Found::Unknown => self.recorder.tally.unknown += 1,
        }
        self.record(at, header.id, now, RecordKind::Answer { rtt });
    }

    fn malformed(&mut self, why: &'static str) {
        self.figures.counts.malformed += 1;
        self.recorder.failed(("answer", why));
    }

    /// A connection is gone: nothing more is sent on it, and what is in flight is lost.
    pub(super) fn take_out(&mut self, at: u32) {
        let connection = &mut self.connections[at as usize];
        if let State::Open(place) = connection.state {
            self.open.swap_remove(place as usize);
            if let Some(&moved) = self.open.get(place as usize) {
                self.connections[moved as usize].state = State::Open(place);
            }
        }
        let connection = &mut self.connections[at as usize];
        connection.state = State::Closed;
        connection.handle = None;
        connection.frames = Frames::default();
        connection.pending = 0;
        for flight in connection.ids.drain() {
            self.outstanding -= 1;
            lost(&mut self.recorder, &flight);
        }
    }

    /// Nothing more is sent; when all answers are there, the connections are closed.
    fn end(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        // What was due by then still goes, in whichever order the timers come.
        self.pace(ctx);
        self.ended = true;
        if let Some(mut instants) = self.instants.take() {
            // A client that is behind does not come to these any more.
            self.give_up_late(&mut instants, ctx.now().min(self.end_at.saturating_sub(1)));
        }
        self.recorder.end_measuring(ctx.now());
        self.publish();
        self.recorder.set_phase(Phase::Ending);
        ctx.set_timer(ctx.now() + self.config.timeout + END_SLACK, GIVE_UP);
        self.check_done(ctx);
    }

    pub(super) fn check_done(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended && !self.done && self.outstanding == 0 {
            self.finish(ctx);
        }
    }

    fn finish(&mut self, ctx: &mut Context<'_, Command>) {
        self.done = true;
        let due = ctx.now().saturating_sub(self.config.timeout);
        for connection in &mut self.connections {
            for flight in connection.ids.drain() {
                // An interrupt does not shorten a query's time.
                if self.interrupted && flight.sent >= due {
                    let counts = flight.sent >= self.recorder.measured_from;
                    self.recorder.tally.interrupted += u64::from(counts);
                } else {
                    lost(&mut self.recorder, &flight);
                }
            }
        }
        self.outstanding = 0;
        self.publish();
        for at in std::mem::take(&mut self.open) {
            let connection = &mut self.connections[at as usize];
            connection.state = State::Closed;
            match connection.handle {
                Some(Handle::Stream(stream)) if self.config.reset_on_close => ctx.reset(stream),
                Some(Handle::Stream(stream)) => ctx.close(stream),
                Some(Handle::Socket(socket)) => ctx.close_socket(socket),
                None => {}
            }
        }
        self.recorder.set_phase(Phase::Done);
    }
}

/// A query without an answer counts if it was sent in the measured time.
pub(super) fn lost(recorder: &mut Recorder, flight: &Flight) {
    if flight.sent >= recorder.measured_from {
        recorder.tally.lost += 1;
    }
}

impl Protocol for DnsLoad {
    type Message = Command;

    fn start(&mut self, ctx: &mut Context<'_, Command>) {
        let (shard, shards) = (ctx.shard(), ctx.shards());
        let share = |shard| Config::share(self.config.connections, shard, shards);
        self.first = (0..shard).map(share).sum();
        let count = share(shard);
        let first_of = |at| Queries::first_of(&self.config.queries, self.first + at);
        self.connections = (0..count).map(|at| Connection::new(first_of(at))).collect();
        self.to_open = (0..count as u32).rev().collect();
        let seed = self.config.seed.wrapping_add(u64::from(shard) << 32);
        self.choice = SmallRng::seed_from_u64(seed ^ CHOICE_STREAM);
        ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
        self.begin_opening(ctx);
    }

    fn connected(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId) {
        self.is_open(ctx, stream);
    }

    fn received(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, data: Buffer) {
        let at = self.of_stream[stream.index()];
        let now = ctx.now();
        let mut frames = std::mem::take(&mut self.connections[at as usize].frames);
        frames.read(&data, |message| {
            self.answer(at, message, now);
            true
        });
        self.connections[at as usize].frames = frames;
        self.check_done(ctx);
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, Command>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let at = ctx.socket_tag(socket) as u32;
        let now = ctx.now();
        for datagram in batch.drain(..) {
            for message in datagram.iter() {
                self.answer(at, message, now);
            }
        }
        self.check_done(ctx);
    }

    fn socket_error(&mut self, _ctx: &mut Context<'_, Command>, _socket: SocketId, errno: i32) {
        self.recorder.failed(("socket", error_name(errno)));
    }

    fn closed(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, reason: Closed) {
        self.is_closed(ctx, stream, reason);
        self.check_done(ctx);
    }

    fn timer(&mut self, ctx: &mut Context<'_, Command>, token: u64) {
        match token {
            PUBLISH if !self.done => {
                self.publish();
                ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
            }
            BEGIN => self.begin(ctx),
            MEASURE => {
                if !self.ended && !self.recorder.measuring {
                    self.recorder.begin_measuring(ctx.now());
                }
                ctx.set_timer(self.end_at, END);
            }
            END => self.end(ctx),
            GIVE_UP if !self.done => self.finish(ctx),
            PACE => self.pace(ctx),
            SWEEP if !self.connections.is_empty() => self.sweep(ctx),
            OPEN_MORE => {
                self.open_timer_set = false;
                self.open_more(ctx);
            }
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
                self.start_at = start;
                self.measure_at = measure;
                self.end_at = end;
                // Before BEGIN, so that without a warm-up the first queries are counted too.
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
