//! Receivers that count: streams to a multicast server, or sockets in a group, many on one shard.
//!
//! They send nothing. What is counted lies between the first and the last message that each receiver
//! got in the measured time (see [`Sequence`]), so a loss is exact and needs no word from the sender.

use std::net::SocketAddr;
use std::sync::Arc;

use ringmill_engine::{
    Address, Buffer, Closed, Connect, Context, Datagram, Multicast, Nanos, Open, Protocol, ShardId,
    SocketId, StreamId, error_name,
};

use super::sequence::{Arrival, Sequence};
use super::wire::{Cutter, HEADER_LEN, Header};
use crate::load::shared::{Phase, Recorder, Shared};
use crate::load::{CONNECTS_IN_FLIGHT_MAX, Command, Config, PUBLISH_INTERVAL};

const PUBLISH: u64 = 0;
const BEGIN: u64 = 1;
const MEASURE: u64 = 2;
const END: u64 = 3;

/// Sources that one receiver tells apart: shards of the sender, several senders, restarts. What
/// comes from more counts as unknown.
const SOURCES_MAX: usize = 64;

/// What the receivers do, the same on every shard.
#[derive(Debug, Clone)]
pub struct ReceiveConfig {
    /// The server, or the group (with the scope of an IPv6 group that needs one).
    pub target: Address,
    /// For a group: where to join it. Streams have none.
    pub multicast: Option<Multicast>,
    /// Receivers over all shards.
    pub receivers: usize,
    /// Names the clock of this host: latency is measured of messages that name the same.
    pub clock: u32,
}

/// One receiver.
#[derive(Default)]
struct Receiver {
    cutter: Cutter,
    /// By source.
    sequences: Vec<(u32, Sequence)>,
    /// Which source sent last.
    last: usize,
    /// What it says makes no sense, or it has closed.
    dead: bool,
}

impl Receiver {
    #[inline]
    fn note(&mut self, recorder: &mut Recorder, header: &Header, now: Nanos, clock: u32) {
        let known = match self.sequences.get(self.last) {
            Some((source, _)) if *source == header.source => Some(self.last),
            _ => self
                .sequences
                .iter()
                .position(|(source, _)| *source == header.source),
        };
        self.last = match known {
            Some(place) => place,
            None if self.sequences.len() < SOURCES_MAX => {
                self.sequences.push((header.source, Sequence::new()));
                self.sequences.len() - 1
            }
            None => {
                recorder.tally.unknown += 1;
                return;
            }
        };
        let (_, sequence) = &mut self.sequences[self.last];
        match sequence.note(header.sequence) {
            Arrival::Fresh if recorder.measuring => {
                recorder.tally.bytes += u64::from(header.len);
                let same = clock != 0 && clock == header.clock;
                recorder.delivered(same.then(|| now.saturating_sub(header.intended)));
            }
            Arrival::Foreign => recorder.tally.unknown += 1,
            Arrival::Fresh | Arrival::Duplicate | Arrival::Ignored => {}
        }
    }
}

/// The receivers of one shard.
pub struct Receivers {
    config: Arc<ReceiveConfig>,
    recorder: Recorder,
    /// By [`StreamId::index`] or [`SocketId::index`].
    receivers: Vec<Receiver>,
    open: Vec<StreamId>,
    share: usize,
    begun: usize,
    in_flight: usize,
    running: bool,
    ended: bool,
    end_at: Nanos,
}

impl Receivers {
    /// Those of one shard; figures go to `shared`.
    #[must_use]
    pub fn new(config: Arc<ReceiveConfig>, shared: Arc<Shared>) -> Self {
        Self {
            config,
            recorder: Recorder::new(shared, false),
            receivers: Vec::new(),
            open: Vec::new(),
            share: 0,
            begun: 0,
            in_flight: 0,
            running: false,
            ended: false,
            end_at: Nanos::MAX,
        }
    }

    fn receiver(&mut self, index: usize) -> &mut Receiver {
        if index >= self.receivers.len() {
            self.receivers.resize_with(index + 1, Receiver::default);
        }
        &mut self.receivers[index]
    }

    fn open_more(&mut self, ctx: &mut Context<'_, Command>) {
        while self.begun < self.share && self.in_flight < CONNECTS_IN_FLIGHT_MAX && !self.ended {
            self.begun += 1;
            let opened = match (&self.config.target, self.config.multicast) {
                (Address::Ip(group), Some(multicast)) => Self::open_group(ctx, *group, multicast),
                (to, _) => ctx
                    .connect(&Connect {
                        to: to.clone(),
                        from: None,
                    })
                    .map(|_| self.in_flight += 1),
            };
            match opened {
                Ok(()) if self.config.multicast.is_some() => self.recorder.tally.opened += 1,
                Ok(()) => {}
                Err(error) => {
                    self.recorder.tally.open_failed += 1;
                    let errno = error.raw_os_error().unwrap_or(0);
                    self.recorder.failed(("connect", error_name(errno)));
                }
            }
        }
        let settled = self.begun - self.in_flight;
        self.recorder.set_settled(settled);
        if settled == self.share && !self.running && !self.ended {
            self.recorder.publish();
            self.recorder.set_phase(Phase::Ready);
        }
    }

    fn open_group(
        ctx: &mut Context<'_, Command>,
        group: SocketAddr,
        multicast: Multicast,
    ) -> std::io::Result<()> {
        let open = Open {
            local: group,
            peer: None,
        };
        let multicast = Multicast {
            join: Some(group.ip()),
            ..multicast
        };
        ctx.open_multicast(&open, &multicast).map(drop)
    }

    fn publish(&mut self) {
        if self.running {
            let tally = &mut self.recorder.tally;
            (tally.answered, tally.lost) = (0, 0);
            (tally.duplicated, tally.reordered, tally.late) = (0, 0, 0);
            for receiver in &self.receivers {
                for (_, sequence) in &receiver.sequences {
                    let counts = sequence.counts();
                    tally.answered += counts.received;
                    tally.lost += counts.lost;
                    tally.duplicated += counts.duplicated;
                    tally.reordered += counts.reordered;
                    tally.late += counts.stale;
                }
            }
            tally.sent = tally.answered + tally.lost;
        }
        self.recorder.publish();
    }

    fn end(&mut self, ctx: &mut Context<'_, Command>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.publish();
        self.recorder.end_measuring(ctx.now());
        for stream in std::mem::take(&mut self.open) {
            // The server goes on sending: its bytes have nowhere to go.
            ctx.reset(stream);
        }
        self.recorder.set_phase(Phase::Done);
    }

    /// Whether what arrives now is looked at.
    fn listens(&self) -> bool {
        !self.ended
    }
}

impl Protocol for Receivers {
    type Message = Command;

    fn start(&mut self, ctx: &mut Context<'_, Command>) {
        self.share = Config::share(self.config.receivers, ctx.shard(), ctx.shards());
        self.open_more(ctx);
        ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
    }

    fn connected(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId) {
        self.in_flight -= 1;
        *self.receiver(stream.index()) = Receiver::default();
        self.open.push(stream);
        self.recorder.tally.opened += 1;
        if self.ended {
            ctx.reset(stream);
        }
        self.open_more(ctx);
    }

    fn received(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, data: Buffer) {
        if !self.listens() {
            return;
        }
        let (now, clock) = (ctx.now(), self.config.clock);
        let index = stream.index();
        self.receiver(index);
        let Self {
            receivers,
            recorder,
            ..
        } = self;
        let receiver = &mut receivers[index];
        if receiver.dead {
            return;
        }
        let mut cutter = std::mem::take(&mut receiver.cutter);
        let result = cutter.push(&data, |header| receiver.note(recorder, header, now, clock));
        receiver.cutter = cutter;
        if result.is_err() {
            receiver.dead = true;
            recorder.failed(("content", "not a multicast server of ringmill"));
            ctx.reset(stream);
        }
    }

    fn closed(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, reason: Closed) {
        let place = self.open.iter().position(|open| *open == stream);
        match place {
            Some(place) => {
                self.open.swap_remove(place);
                let told = self.receivers[stream.index()].dead;
                if !self.ended && !told {
                    self.recorder.tally.closed_early += 1;
                    let words = match reason {
                        Closed::Error(errno) => error_name(errno),
                        Closed::Normally => "closed by the server",
                        _ => "closed",
                    };
                    self.recorder.failed(("connection", words));
                }
                if !self.ended && self.running && self.open.is_empty() && self.in_flight == 0 {
                    self.end(ctx);
                }
            }
            None if !self.ended => {
                self.in_flight -= 1;
                self.recorder.tally.open_failed += 1;
                let words = match reason {
                    Closed::Error(errno) => error_name(errno),
                    _ => "closed",
                };
                self.recorder.failed(("connect", words));
                self.open_more(ctx);
            }
            None => {}
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, Command>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let listens = self.listens();
        let (now, clock) = (ctx.now(), self.config.clock);
        self.receiver(socket.index());
        let Self {
            receivers,
            recorder,
            ..
        } = self;
        let receiver = &mut receivers[socket.index()];
        for datagram in batch.drain(..).filter(|_| listens) {
            for message in datagram.iter() {
                let header = match message.first_chunk::<HEADER_LEN>() {
                    Some(head) => Header::read(head),
                    None => Err(super::wire::WireError::Length),
                };
                match header {
                    Ok(header) if header.len as usize == message.len() => {
                        receiver.note(recorder, &header, now, clock);
                    }
                    _ => recorder.tally.unknown += 1,
                }
            }
        }
    }

    fn socket_error(&mut self, _ctx: &mut Context<'_, Command>, _socket: SocketId, errno: i32) {
        self.recorder.failed(("socket", error_name(errno)));
    }

    fn timer(&mut self, ctx: &mut Context<'_, Command>, token: u64) {
        match token {
            PUBLISH if !self.ended => {
                self.publish();
                ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
            }
            BEGIN if !self.ended => self.recorder.set_phase(Phase::Running),
            MEASURE if !self.ended => {
                self.running = true;
                self.recorder.begin_measuring(ctx.now());
                for receiver in &mut self.receivers {
                    for (_, sequence) in &mut receiver.sequences {
                        sequence.restart();
                    }
                }
                ctx.set_timer(self.end_at, END);
            }
            END => self.end(ctx),
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
                self.end_at = end;
                ctx.set_timer(measure.max(start), MEASURE);
                ctx.set_timer(start, BEGIN);
            }
            Command::End => self.end(ctx),
        }
    }

    fn stopping(&mut self, ctx: &mut Context<'_, Command>) {
        self.end(ctx);
    }
}
