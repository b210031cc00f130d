//! Load on streams: TCP and Unix.
//!
//! A connection sends windows of the pattern and expects them back in order. Messages have no
//! header: the position in the stream is the identity of a byte.

use std::collections::VecDeque;
use std::sync::Arc;

use ringmill_engine::{Buffer, Closed, Connect, Context, Nanos, Protocol, Sent, ShardId, StreamId};

use super::pattern;
use super::schedule::Schedule;
use super::shared::{Phase, Recorder, Shared, Unsent};
use super::{Arrivals, CONNECTS_IN_FLIGHT_MAX, Command, Config, GRACE, PUBLISH_INTERVAL};

const PUBLISH: u64 = 0;
const BEGIN: u64 = 1;
const MEASURE: u64 = 2;
const END: u64 = 3;
const GIVE_UP: u64 = 4;
const PACE: u64 = 5;
const CONNECT_AGAIN: u64 = 6;
/// After a connect failed for want of a local resource, the next ones wait this long.
const CONNECT_PAUSE: Nanos = 100_000_000;

/// One connection.
#[derive(Default)]
struct Connection {
    /// Bytes sent and received since it was opened.
    sent_bytes: u64,
    received_bytes: u64,
    /// Where in the pattern the connection begins.
    base: u64,
    /// Intended and actual send times of what is outstanding, oldest first.
    outstanding: VecDeque<(Nanos, Nanos)>,
    open: bool,
}

/// The stream load of one shard. See the module documentation.
pub struct StreamLoad {
    config: Arc<Config>,
    recorder: Recorder,
    /// By [`StreamId::index`].
    connections: Vec<Connection>,
    /// Connections that are open, in the order of opening, for an open loop's turns.
    open: Vec<StreamId>,
    next: usize,
    /// Connections of this shard: to be opened, not yet begun, in flight.
    share: usize,
    begun: usize,
    in_flight: usize,
    connect_paused: bool,
    /// This shard's connections are numbered from here.
    first: usize,
    schedule: Schedule,
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

impl StreamLoad {
    /// The instance of one shard; figures go to `shared`.
    #[must_use]
    pub fn new(config: Arc<Config>, shared: Arc<Shared>) -> Self {
        let closed_loop = config.arrivals == Arrivals::Closed;
        Self {
            recorder: Recorder::new(shared, closed_loop),
            config,
            connections: Vec::new(),
            open: Vec::new(),
            next: 0,
            share: 0,
            begun: 0,
            in_flight: 0,
            connect_paused: false,
            first: 0,
            schedule: Schedule::new(),
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
        while self.begun < self.share
            && self.in_flight < CONNECTS_IN_FLIGHT_MAX
            && !self.connect_paused
            && !self.ended
        {
            let from = self.config.source(self.first + self.begun);
            match ctx.connect(&Connect {
                to: self.config.target.clone(),
                from,
            }) {
                Ok(_) => self.in_flight += 1,
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(0);
                    self.recorder
                        .failed(("connect", ringmill_engine::error_name(errno)));
                    self.recorder.tally.open_failed += 1;
                }
            }
            self.begun += 1;
        }
        self.check_ready();
    }

    fn check_ready(&mut self) {
        let settled = self.begun - self.in_flight;
        self.recorder.set_settled(settled);
        if settled == self.share && !self.running && !self.ended {
            self.recorder.publish();
            self.recorder.set_phase(Phase::Ready);
        }
    }

    /// Sends `count` messages on one connection now, or as many as the budget allows.
    #[inline]
    fn send(
        &mut self,
        ctx: &mut Context<'_, Command>,
        stream: StreamId,
        count: usize,
        intended: Nanos,
    ) -> Sent {
        let count = self.recorder.allowance(count);
        let len = self.config.message_len;
        let now = self.recorder.stamp(ctx.now());
        let connection = &mut self.connections[stream.index()];
        let mut left = count * len;
        while left > 0 {
            let window = pattern::window(connection.base + connection.sent_bytes, left);
            match ctx.send(stream, window) {
                Sent::Queued => {}
                Sent::Full => {
                    // The whole queue bound is outstanding: nothing that a load client should exceed.
                    self.recorder.failed(("send", "queue full"));
                    return Sent::Full;
                }
                // It has just failed; `closed` will say why.
                Sent::Closed => return Sent::Closed,
            }
            left -= window.len();
            connection.sent_bytes += window.len() as u64;
        }
        for _ in 0..count {
            connection.outstanding.push_back((intended, now));
        }
        self.outstanding += count;
        self.recorder.sent(count as u64);
        Sent::Queued
    }

    /// Sends what the schedule wants now, and sets the next wake-up.
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
            if self.open.is_empty() || tried == self.open.len() {
                self.schedule.hold(cause);
                return;
            }
            self.next = (self.next + 1) % self.open.len();
            let stream = self.open[self.next];
            let connection = &self.connections[stream.index()];
            if self.recorder.is_spent() {
                return;
            }
            if connection.outstanding.len() >= self.config.depth {
                tried += 1;
                if cause != Unsent::QueueFull {
                    cause = Unsent::NoRoom;
                }
                continue;
            }
            match self.send(ctx, stream, 1, intended) {
                Sent::Queued => {}
                Sent::Full => {
                    tried += 1;
                    cause = Unsent::QueueFull;
                    continue;
                }
                Sent::Closed => {
                    tried += 1;
                    continue;
                }
            }
            tried = 0;
            cause = Unsent::NoConnection;
            self.schedule.sent(ctx.now(), &mut self.recorder);
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
        let (shard, shards) = (ctx.shard(), ctx.shards());
        let now = ctx.now();
        self.schedule
            .begin(&self.config, self.open.len(), shard, shards, now);
        if self.config.arrivals == Arrivals::Closed {
            for stream in self.open.clone() {
                // A failure has been counted.
                let _ = self.send(ctx, stream, self.config.depth, now);
            }
        }
        self.pace(ctx);
        self.check_spent(ctx);
    }

    /// Nothing more is sent; when all answers are there, the connections are closed.
    fn end(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.schedule.end(&mut self.recorder);
        self.recorder.end_measuring(ctx.now());
        self.recorder.publish();
        self.recorder.set_phase(Phase::Ending);
        ctx.set_timer(ctx.now() + GRACE, GIVE_UP);
        self.check_done(ctx);
    }

    /// When the last message of the budget has been sent, nothing more is; when its answers are
    /// there too, the run ends. Without an open connection nobody will ever
    /// spend it.
    fn check_spent(&mut self, ctx: &mut Context<'_, Command>) {
        let nobody = self.recorder.has_budget() && self.open.is_empty();
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
        let missing = self.outstanding as u64;
        if self.interrupted {
            self.recorder.tally.interrupted += missing;
        } else {
            self.recorder.tally.lost += missing;
        }
        self.recorder.publish();
        for stream in std::mem::take(&mut self.open) {
            if self.config.reset_on_close {
                ctx.reset(stream);
            } else {
                ctx.close(stream);
            }
        }
        self.recorder.set_phase(Phase::Done);
    }
}

impl Protocol for StreamLoad {
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

    fn connected(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId) {
        self.in_flight -= 1;
        self.recorder.tally.opened += 1;
        if self.connections.len() <= stream.index() {
            self.connections
                .resize_with(stream.index() + 1, Connection::default);
        }
        // Connections begin at different places of the pattern, so that a byte of another
        // connection does not pass for one's own.
        let number = self.first + self.recorder.tally.opened as usize - 1;
        let base = number as u64 * 7919 % pattern::PERIOD as u64;
        self.connections[stream.index()] = Connection {
            base,
            open: true,
            ..Connection::default()
        };
        if self.done {
            // The run ended while it was being connected.
            ctx.close(stream);
            return;
        }
        self.open.push(stream);
        self.open_more(ctx);
    }

    #[inline]
    fn received(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, data: Buffer) {
        let len = self.config.message_len as u64;
        let now = ctx.now();
        let connection = &mut self.connections[stream.index()];
        if self.config.verify {
            let wrong = pattern::wrong_bytes(&data, connection.base + connection.received_bytes);
            if wrong > 0 {
                self.recorder.tally.wrong_bytes += wrong;
            }
        }
        let before = connection.received_bytes;
        connection.received_bytes += data.len() as u64;
        if connection.received_bytes > connection.sent_bytes {
            self.recorder.tally.unknown += 1;
            connection.received_bytes = connection.sent_bytes;
        }
        // Messages whose last byte has now arrived.
        let complete = (connection.received_bytes / len - before / len) as usize;
        for _ in 0..complete {
            let Some((intended, sent)) = connection.outstanding.pop_front() else {
                break;
            };
            self.outstanding -= 1;
            self.recorder.answered(now, intended, sent, len as usize);
        }
        if self.ended {
            self.check_done(ctx);
            return;
        }
        if complete > 0 && self.config.arrivals == Arrivals::Closed {
            // A failure has been counted.
            let _ = self.send(ctx, stream, complete, now);
        } else {
            self.send_backlog(ctx);
        }
        self.check_spent(ctx);
    }

    fn closed(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, reason: Closed) {
        let connection = self
            .connections
            .get_mut(stream.index())
            .filter(|connection| connection.open);
        let Some(connection) = connection else {
            // It was never open.
            self.in_flight -= 1;
            self.recorder.tally.open_failed += 1;
            if let Closed::Error(errno) = reason {
                self.recorder
                    .failed(("connect", ringmill_engine::error_name(errno)));
                if matches!(errno, libc::EADDRNOTAVAIL | libc::EAGAIN | libc::ENOBUFS)
                    && !self.connect_paused
                {
                    self.connect_paused = true;
                    ctx.set_timer(ctx.now() + CONNECT_PAUSE, CONNECT_AGAIN);
                }
            }
            self.open_more(ctx);
            return;
        };
        connection.open = false;
        let missing = connection.outstanding.len();
        self.outstanding -= missing;
        connection.outstanding = VecDeque::new();
        if self.done {
            return;
        }
        if self.recorder.measuring || self.ended {
            self.recorder.tally.lost += missing as u64;
        }
        self.open.retain(|open| *open != stream);
        self.recorder.tally.closed_early += 1;
        let words = match reason {
            Closed::Error(errno) => ringmill_engine::error_name(errno),
            Closed::Normally => "closed by peer",
            Closed::Idle | Closed::Stalled => "timed out",
            Closed::Stopping => "interrupted",
        };
        self.recorder.failed(("connection", words));
        if self.running && self.open.is_empty() {
            self.end(ctx);
        }
        self.check_spent(ctx);
        self.check_done(ctx);
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
            CONNECT_AGAIN => {
                self.connect_paused = false;
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
