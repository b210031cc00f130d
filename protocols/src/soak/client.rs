//! The soak of one shard: it opens, sends, compares, churns, and opens again what was lost.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_engine::impairment::mix;
use ringmill_engine::pacer::Pacer;
use ringmill_engine::{
    Buffer, Closed, Context, Nanos, Protocol, Sent, ShardId, StreamId, error_name,
};

use super::shared::{Phase, Recorder, Shared};
use super::word::{Cause, Open, PLACES_MAX, Word};
use super::{ChurnClose, Command, Config};
use crate::load::pattern::{self, PERIOD};

const OPEN: u64 = 0;
const TRAFFIC: u64 = 1;
const CHURN: u64 = 2;
const LOOK: u64 = 3;
const START: u64 = 4;
const END: u64 = 5;
const GIVE_UP: u64 = 6;
const RETRY: u64 = 7;
const RESUME: u64 = 8;

/// Connects on their way on one shard. A rate of 10,000/s needs so many over a path of 400 ms; more
/// only overflow the server's queues of new connections.
const CONNECTS_MAX: usize = 4096;
/// Connects begun in one turn: those before them are to be answered first where that is quick, or
/// thousands would be on their way for nothing and each would take as long as all of them. Since
/// Linux 6.14 one call reaps about 20 answers of a ring (IO_LOCAL_TW_DEFAULT_MAX): more connects in
/// a turn than that and they pile up.
const CONNECTS_PER_TURN_MAX: usize = 16;
/// A connection that failed or was lost is tried again at the next beat of this; the server may be
/// restarting.
const RETRY_INTERVAL: Nanos = 1_000_000_000;
/// After a connect failed for want of something of this host, the next ones wait so long.
const LOCAL_PAUSE: Nanos = 100_000_000;
/// Between two publications and looks at what takes too long.
const LOOK_INTERVAL: Nanos = 200_000_000;
/// Connections drawn at random before a message or a churn finds none that is free for it.
const DRAWS_MAX: usize = 8;
/// Churns of so many seconds wait for a connection on which nothing is on its way: more are missed. A
/// server that comes back must not be met by all that were due while it was away.
const CHURN_OWED_MAX_S: f64 = 1.0;
/// As many wait at least: a low rate has no whole one in a second.
const CHURN_OWED_MIN: u64 = 16;
/// How long answers are awaited after the end, if the answer timeout is not shorter: nobody who
/// ends a soak waits longer.
const GRACE_MAX: Nanos = 10_000_000_000;
/// Ended connects are taken out of the queue when they come to its front; behind one that gets no
/// answer so many may wait before they are all taken out.
const ENDED_CONNECTS_MAX: usize = 2 * CONNECTS_MAX;

/// Messages on their way on one connection.
#[derive(Debug, Default)]
struct Waiting {
    /// Bytes of the oldest that have not come back.
    left: usize,
    /// Intended and actual time of the oldest.
    oldest: (Nanos, Nanos),
    /// Those of the others: there are few, as connections are drawn from very many.
    others: VecDeque<(Nanos, Nanos)>,
}

/// The soak of one shard. See the [module](super).
pub struct Soak {
    config: Arc<Config>,
    recorder: Recorder,
    random: SmallRng,
    /// Connections of this shard.
    share: usize,
    /// All that are open, in no order: connections are drawn from here.
    live: Vec<StreamId>,
    /// Connects on their way, and when each began, oldest first. Those that have ended are taken
    /// out when they come to the front.
    connects: VecDeque<(Nanos, StreamId)>,
    connecting: usize,
    /// Connections that this end closes and that are not gone yet.
    closing: usize,
    /// Connections that have failed or were lost and wait for the next beat.
    postponed: usize,
    retry_armed: bool,
    /// This host lacked something that a connect needs.
    paused: bool,
    /// The numbers of this shard's connects are one in so many.
    shards: u64,
    number: u64,
    opening: Option<Pacer>,
    /// When the turn began, and connects begun in it.
    turn: Nanos,
    begun_in_turn: usize,
    open_timer: bool,
    /// Nothing was to be opened when the pacer was last asked.
    open_idle: bool,
    traffic: Option<Pacer>,
    late_told: u64,
    churn: Option<Pacer>,
    churn_owed: u64,
    churn_owed_max: u64,
    /// By [`StreamId::index`].
    waiting: HashMap<usize, Waiting>,
    start_at: Nanos,
    end_at: Nanos,
    ended: bool,
    finishing: bool,
    done: bool,
}

impl Soak {
    /// The instance of one shard; figures go to `shared`.
    #[must_use]
    pub fn new(config: Arc<Config>, shared: Arc<Shared>) -> Self {
        Self {
            recorder: Recorder::new(shared),
            config,
            random: SmallRng::seed_from_u64(0),
            share: 0,
            live: Vec::new(),
            connects: VecDeque::new(),
            connecting: 0,
            closing: 0,
            postponed: 0,
            retry_armed: false,
            paused: false,
            shards: 1,
            number: 0,
            opening: None,
            turn: 0,
            begun_in_turn: 0,
            open_timer: false,
            open_idle: true,
            traffic: None,
            late_told: 0,
            churn: None,
            churn_owed: 0,
            churn_owed_max: CHURN_OWED_MIN,
            waiting: HashMap::new(),
            start_at: Nanos::MAX,
            end_at: Nanos::MAX,
            ended: false,
            finishing: false,
            done: false,
        }
    }

    // ---- opening -------------------------------------------------------------------------

    /// Connections that are missing and whose turn it is.
    fn missing(&self) -> usize {
        let there = self.live.len() + self.connecting + self.closing + self.postponed;
        self.share.saturating_sub(there)
    }

    /// Begins the connects that are due.
    fn open_more(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        let now = ctx.now();
        if now != self.turn {
            (self.turn, self.begun_in_turn) = (now, 0);
        }
        loop {
            if self.missing() == 0 {
                self.open_idle = true;
                return;
            }
            if self.paused || self.connecting >= CONNECTS_MAX {
                return;
            }
            if self.begun_in_turn == CONNECTS_PER_TURN_MAX {
                // In the next turn, not in this one.
                self.arm_open(ctx, now + 1);
                return;
            }
            if std::mem::take(&mut self.open_idle) {
                self.begin_opening(now);
            }
            if let Some(pacer) = &mut self.opening
                && pacer.pop_due(now).is_none()
            {
                let next = pacer.next_intended();
                self.arm_open(ctx, next);
                return;
            }
            self.begun_in_turn += 1;
            self.begin_one(ctx);
        }
    }

    /// Opening goes on after a time in which nothing was to be opened: at the rate from now on, and
    /// never faster than it was left.
    fn begin_opening(&mut self, now: Nanos) {
        let part = self.config.part(self.share);
        let rate = self.config.open_rate.map(|rate| rate * part);
        let start = self.opening.as_ref().map_or(now, Pacer::next_intended);
        self.opening = rate.and_then(|rate| Pacer::constant(rate, start.max(now)).ok());
    }

    fn arm_open(&mut self, ctx: &mut Context<'_, Command>, at: Nanos) {
        if !std::mem::replace(&mut self.open_timer, true) {
            ctx.set_timer(at, OPEN);
        }
    }

    fn begin_one(&mut self, ctx: &mut Context<'_, Command>) {
        let now = ctx.now();
        let connect = self.config.addresses.connect(self.number);
        self.number += self.shards;
        let tally = &mut self.recorder.tally;
        tally.begun += 1;
        if tally.began_at == 0 {
            tally.began_at = now;
        }
        match ctx.connect(&connect) {
            Ok(stream) => {
                ctx.set_tag(stream, Word::Connecting(now).pack());
                self.connects.push_back((now, stream));
                self.connecting += 1;
                if self.connects.len() > self.connecting + ENDED_CONNECTS_MAX {
                    let is_on_its_way = |(since, stream): &(Nanos, StreamId)| {
                        Word::Connecting(*since).pack() == ctx.tag(*stream)
                    };
                    self.connects.retain(is_on_its_way);
                }
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.recorder.connect_failed(error_name(errno));
                self.postpone(ctx, Some(errno));
            }
        }
    }

    /// A connection has ended against our will. It is opened again later: at once, a server that
    /// refuses by closing would be met by connects as fast as both ends can.
    fn lose(&mut self, ctx: &mut Context<'_, Command>, cause: &'static str) {
        self.recorder.lost(cause);
        self.postpone(ctx, None);
    }

    /// A connect has failed, or a connection was lost: it is tried again later.
    fn postpone(&mut self, ctx: &mut Context<'_, Command>, errno: Option<i32>) {
        self.postponed += 1;
        if !std::mem::replace(&mut self.retry_armed, true) {
            ctx.set_timer(ctx.now() + RETRY_INTERVAL, RETRY);
        }
        let local = matches!(
            errno,
            Some(
                libc::EADDRNOTAVAIL
                    | libc::EADDRINUSE
                    | libc::EAGAIN
                    | libc::ENOBUFS
                    | libc::ENOMEM
                    | libc::EMFILE
                    | libc::ENFILE
            )
        );
        if local && !std::mem::replace(&mut self.paused, true) {
            ctx.set_timer(ctx.now() + LOCAL_PAUSE, RESUME);
        }
    }

    /// Gives up the connects that take too long.
    fn expire_connects(&mut self, ctx: &mut Context<'_, Command>) {
        let now = ctx.now();
        while let Some((since, stream)) = self.connects.front().copied() {
            // Another connect has this entry's stream only if this one has ended.
            let connecting = Word::Connecting(since).pack() == ctx.tag(stream);
            if connecting && now < since.saturating_add(self.config.connect_timeout) {
                return;
            }
            self.connects.pop_front();
            if connecting {
                ctx.set_tag(stream, Word::Closing(Cause::ConnectTimeout).pack());
                ctx.reset(stream);
            }
        }
    }

    // ---- traffic -------------------------------------------------------------------------

    fn begin(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        let part = self.config.part(self.share);
        let seed = mix(self.config.seed ^ u64::from(ctx.shard()) << 32);
        let start = self.start_at.max(ctx.now());
        // A rate of nothing, or too low to be paced, is none.
        self.traffic = Pacer::poisson(self.config.rate * part, start, mix(seed ^ 1)).ok();
        let churn_rate = self.config.churn_rate * part;
        self.churn = Pacer::poisson(churn_rate, start, mix(seed ^ 2)).ok();
        self.churn_owed_max = CHURN_OWED_MIN.max((churn_rate * CHURN_OWED_MAX_S) as u64);
        self.pace_traffic(ctx);
        self.pace_churn(ctx);
    }

    fn pace_traffic(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        // A late turn must not send what was meant for after the end.
        let now = ctx.now().min(self.end_at);
        let Some(mut pacer) = self.traffic.take() else {
            return;
        };
        while let Some(intended) = pacer.pop_due(now) {
            self.send_one(ctx, intended);
        }
        let skipped = pacer.ticks_skipped();
        let late = skipped - std::mem::replace(&mut self.late_told, skipped);
        self.recorder
            .unsent("this end came too late to its schedule", late);
        ctx.set_timer(pacer.next_intended(), TRAFFIC);
        self.traffic = Some(pacer);
    }

    /// Sends one message on a connection drawn at random.
    fn send_one(&mut self, ctx: &mut Context<'_, Command>, intended: Nanos) {
        let len = self.config.message_len;
        let now = ctx.now();
        let mut cause = "no connection was live";
        for _ in 0..DRAWS_MAX.min(self.live.len()) {
            let stream = self.live[self.random.random_range(0..self.live.len())];
            let Word::Open(mut open) = Word::unpack(ctx.tag(stream)) else {
                continue;
            };
            // The distance of the two positions must stay within the period.
            if open.on_the_way() + len >= PERIOD {
                cause = "too much was on its way on each connection drawn";
                continue;
            }
            match ctx.send(stream, pattern::window(u64::from(open.sent), len)) {
                Sent::Queued => {}
                Sent::Full => {
                    cause = "a send queue was full";
                    continue;
                }
                // It has just failed; `closed` will say why.
                Sent::Closed => continue,
            }
            open.advance_sent(len);
            ctx.set_tag(stream, Word::Open(open).pack());
            let waiting = self.waiting.entry(stream.index()).or_default();
            if waiting.left == 0 {
                waiting.left = len;
                waiting.oldest = (intended, now);
            } else {
                waiting.others.push_back((intended, now));
            }
            let tally = &mut self.recorder.tally;
            tally.sent += 1;
            tally.on_the_way += 1;
            tally.lateness_max_ns = tally.lateness_max_ns.max(now.saturating_sub(intended));
            return;
        }
        self.recorder.unsent(cause, 1);
    }

    /// So many right bytes have come back on a connection.
    fn came_back(&mut self, now: Nanos, index: usize, mut bytes: usize) {
        let len = self.config.message_len;
        self.recorder.tally.bytes += bytes as u64;
        let Some(waiting) = self.waiting.get_mut(&index) else {
            return;
        };
        while bytes > 0 && waiting.left > 0 {
            let part = bytes.min(waiting.left);
            bytes -= part;
            waiting.left -= part;
            if waiting.left > 0 {
                break;
            }
            let (intended, sent) = waiting.oldest;
            self.recorder.answered(now, intended, sent);
            if let Some(next) = waiting.others.pop_front() {
                waiting.oldest = next;
                waiting.left = len;
            }
        }
        if waiting.left == 0 {
            self.waiting.remove(&index);
        }
    }

    /// Messages of a connection will not come back any more.
    fn drop_waiting(&mut self, index: usize) {
        if let Some(waiting) = self.waiting.remove(&index) {
            let count = 1 + waiting.others.len() as u64;
            self.recorder.tally.on_the_way -= count;
            self.recorder.tally.unanswered += count;
        }
    }

    /// Resets connections whose oldest message has waited too long.
    fn expire_messages(&mut self, ctx: &mut Context<'_, Command>) {
        let timeout = self.config.answer_timeout;
        let too_old = ctx.now().saturating_sub(timeout);
        let overdue = |waiting: &Waiting| waiting.oldest.1 < too_old;
        if too_old == 0 || !self.waiting.values().any(overdue) {
            return;
        }
        // Rare: only now is it worth finding the streams of these indices.
        let late: Vec<StreamId> = self
            .live
            .iter()
            .filter(|stream| self.waiting.get(&stream.index()).is_some_and(overdue))
            .copied()
            .collect();
        for stream in late {
            self.end_one(ctx, stream, Cause::Unanswered);
        }
    }

    // ---- closing -------------------------------------------------------------------------

    fn pace_churn(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        let now = ctx.now().min(self.end_at);
        let Some(pacer) = &mut self.churn else {
            return;
        };
        let skipped = pacer.ticks_skipped();
        while pacer.pop_due(now).is_some() {
            self.churn_owed += 1;
        }
        self.recorder.tally.churn_missed += pacer.ticks_skipped() - skipped;
        ctx.set_timer(pacer.next_intended(), CHURN);
        self.churn_some(ctx);
        let missed = self.churn_owed.saturating_sub(self.churn_owed_max);
        self.churn_owed -= missed;
        self.recorder.tally.churn_missed += missed;
    }

    /// Closes the connections that are to be churned. What finds none without a message on its way
    /// is tried again with the next.
    fn churn_some(&mut self, ctx: &mut Context<'_, Command>) {
        while self.churn_owed > 0 && !self.ended {
            let idle = (0..DRAWS_MAX.min(self.live.len())).find_map(|_| {
                let stream = self.live[self.random.random_range(0..self.live.len())];
                (!self.waiting.contains_key(&stream.index())).then_some(stream)
            });
            let Some(stream) = idle else { return };
            self.churn_owed -= 1;
            self.end_one(ctx, stream, Cause::Churn);
        }
    }

    /// Closes an open connection from this end.
    fn end_one(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, cause: Cause) {
        let Word::Open(open) = Word::unpack(ctx.tag(stream)) else {
            return;
        };
        self.take_out(ctx, open);
        let is_answered = !self.waiting.contains_key(&stream.index());
        self.drop_waiting(stream.index());
        self.closing += 1;
        ctx.set_tag(stream, Word::Closing(cause).pack());
        let by_fin = match cause {
            Cause::Churn => self.config.churn_close == ChurnClose::Fin,
            // It has said its FIN already. What it has not read yet it may never read, and a FIN
            // would wait behind that.
            Cause::Peer => is_answered,
            _ => false,
        };
        if by_fin {
            ctx.close(stream);
        } else {
            ctx.reset(stream);
        }
    }

    /// Takes a connection out of the list of live ones; the last one gets its place.
    fn take_out(&mut self, ctx: &mut Context<'_, Command>, open: Open) {
        let place = open.place as usize;
        self.live.swap_remove(place);
        if let Some(moved) = self.live.get(place).copied()
            && let Word::Open(mut word) = Word::unpack(ctx.tag(moved))
        {
            word.place = open.place;
            ctx.set_tag(moved, Word::Open(word).pack());
        }
    }

    // ---- the end -------------------------------------------------------------------------

    /// Nothing more is sent, opened or churned; answers are awaited a while.
    fn end(&mut self, ctx: &mut Context<'_, Command>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.recorder.tally.churn_missed += std::mem::take(&mut self.churn_owed);
        let grace = self.config.answer_timeout.min(GRACE_MAX);
        ctx.set_timer(ctx.now().saturating_add(grace), GIVE_UP);
        self.check_answered(ctx);
    }

    fn check_answered(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended && self.waiting.is_empty() {
            self.finish(ctx);
        }
    }

    /// Closes everything.
    fn finish(&mut self, ctx: &mut Context<'_, Command>) {
        if std::mem::replace(&mut self.finishing, true) {
            return;
        }
        while let Some(stream) = self.live.last().copied() {
            self.end_one(ctx, stream, Cause::Over);
        }
        for (since, stream) in std::mem::take(&mut self.connects) {
            if ctx.tag(stream) == Word::Connecting(since).pack() {
                ctx.set_tag(stream, Word::Closing(Cause::Cancelled).pack());
                ctx.reset(stream);
            }
        }
        self.check_done();
    }

    fn check_done(&mut self) {
        if self.finishing && !self.done && self.connecting == 0 && self.closing == 0 {
            self.done = true;
            self.publish();
            self.recorder.set_phase(Phase::Done);
        }
    }

    fn publish(&mut self) {
        let tally = &mut self.recorder.tally;
        tally.live = self.live.len() as u64;
        tally.opening = self.connecting as u64;
        tally.closing = self.closing as u64;
        self.recorder.publish();
    }
}

impl Protocol for Soak {
    type Message = Command;

    fn start(&mut self, ctx: &mut Context<'_, Command>) {
        let (shard, shards) = (ctx.shard(), ctx.shards());
        let seed = self.config.seed ^ u64::from(shard) << 32;
        self.random = SmallRng::seed_from_u64(mix(seed));
        self.share =
            crate::load::Config::share(self.config.connections, shard, shards).min(PLACES_MAX);
        self.live.reserve_exact(self.share);
        self.shards = u64::from(shards);
        self.number = u64::from(shard);
        ctx.set_timer(ctx.now() + LOOK_INTERVAL, LOOK);
        self.open_more(ctx);
        if self.share == 0 {
            self.publish();
            self.recorder.set_phase(Phase::Full);
        }
    }

    fn connected(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId) {
        let Word::Connecting(since) = Word::unpack(ctx.tag(stream)) else {
            return;
        };
        self.connecting -= 1;
        self.recorder.connected(ctx.now().saturating_sub(since));
        let serial = self.recorder.tally.opened;
        let base = mix(self.config.seed ^ mix(u64::from(ctx.shard()) << 48 ^ serial));
        let open = Open::new(self.live.len(), base);
        ctx.set_tag(stream, Word::Open(open).pack());
        self.live.push(stream);
        if self.finishing {
            self.end_one(ctx, stream, Cause::Over);
            return;
        }
        if self.live.len() == self.share && self.recorder.tally.full_at == 0 {
            self.recorder.tally.full_at = ctx.now();
            self.publish();
            self.recorder.set_phase(Phase::Full);
        }
        self.open_more(ctx);
    }

    fn received(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, data: Buffer) {
        let Word::Open(mut open) = Word::unpack(ctx.tag(stream)) else {
            return;
        };
        let expected = data.len().min(open.on_the_way());
        let wrong = pattern::wrong_bytes(&data[..expected], u64::from(open.received))
            + (data.len() - expected) as u64;
        if wrong > 0 {
            self.recorder.tally.wrong_bytes += wrong;
            // One byte too many or too few would make all that follow wrong, too.
            self.end_one(ctx, stream, Cause::Wrong);
        } else {
            open.advance_received(expected);
            ctx.set_tag(stream, Word::Open(open).pack());
            self.came_back(ctx.now(), stream.index(), expected);
        }
        self.check_answered(ctx);
    }

    fn ended(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId) {
        self.end_one(ctx, stream, Cause::Peer);
        self.check_answered(ctx);
    }

    fn closed(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, reason: Closed) {
        let words = match reason {
            Closed::Error(errno) => error_name(errno),
            Closed::Normally => "closed by this end",
            Closed::Idle | Closed::Stalled => "timed out",
            Closed::Stopping => "interrupted",
        };
        let errno = match reason {
            Closed::Error(errno) => Some(errno),
            _ => None,
        };
        match Word::unpack(ctx.tag(stream)) {
            Word::Connecting(_) => {
                self.connecting -= 1;
                if reason == Closed::Stopping {
                    self.recorder.tally.cancelled += 1;
                } else {
                    self.recorder.connect_failed(words);
                    self.postpone(ctx, errno);
                }
            }
            Word::Open(open) => {
                self.take_out(ctx, open);
                self.drop_waiting(stream.index());
                if reason == Closed::Stopping {
                    self.recorder.tally.over += 1;
                } else {
                    self.lose(ctx, words);
                }
            }
            Word::Closing(Cause::ConnectTimeout) => {
                self.connecting -= 1;
                self.recorder
                    .connect_failed("no answer to the connect in time");
                self.postpone(ctx, None);
            }
            Word::Closing(Cause::Cancelled) => {
                self.connecting -= 1;
                self.recorder.tally.cancelled += 1;
            }
            Word::Closing(cause) => {
                self.closing -= 1;
                match cause {
                    Cause::Churn => self.recorder.tally.churned += 1,
                    Cause::Peer => self.lose(ctx, "closed by the server"),
                    Cause::Wrong => self.lose(ctx, "wrong bytes came back"),
                    Cause::Unanswered => self.lose(ctx, "no answer to a message in time"),
                    _ => self.recorder.tally.over += 1,
                }
            }
        }
        self.check_answered(ctx);
        self.check_done();
        self.open_more(ctx);
    }

    fn timer(&mut self, ctx: &mut Context<'_, Command>, token: u64) {
        match token {
            OPEN => {
                self.open_timer = false;
                self.open_more(ctx);
            }
            TRAFFIC => self.pace_traffic(ctx),
            CHURN => self.pace_churn(ctx),
            LOOK if !self.done => {
                self.expire_connects(ctx);
                self.expire_messages(ctx);
                self.churn_some(ctx);
                self.publish();
                ctx.set_timer(ctx.now() + LOOK_INTERVAL, LOOK);
            }
            START => self.begin(ctx),
            END => {
                // What was due by then still goes, in whichever order the timers come.
                self.pace_traffic(ctx);
                self.pace_churn(ctx);
                self.end(ctx);
            }
            GIVE_UP => self.finish(ctx),
            RETRY => {
                self.retry_armed = false;
                self.postponed = 0;
                self.open_more(ctx);
            }
            RESUME => {
                self.paused = false;
                self.open_more(ctx);
            }
            _ => {}
        }
    }

    fn message(&mut self, ctx: &mut Context<'_, Command>, _from: ShardId, command: Command) {
        match command {
            Command::Hold { start, end } => {
                self.start_at = start;
                self.end_at = end;
                ctx.set_timer(start, START);
                ctx.set_timer(end, END);
            }
            Command::End => self.end(ctx),
        }
    }

    fn stopping(&mut self, ctx: &mut Context<'_, Command>) {
        self.end(ctx);
        self.finish(ctx);
    }
}
