//! One-way datagrams as fast as the host sends them, or at a set rate.
//!
//! Nothing is answered: the receiver counts. One send carries as many datagrams as the kernel
//! takes, all of them windows of the constant pattern.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ringmill_engine::pacer::Pacer;
use ringmill_engine::{
    Context, Nanos, Open, Payload, Protocol, Sent, ShardId, SocketId, Transmit, error_name,
};

use super::pattern;
use super::shared::{Phase, Recorder, Shared, Unsent};
use super::{Command, PUBLISH_INTERVAL};

const PUBLISH: u64 = 0;
const BEGIN: u64 = 1;
const MEASURE: u64 = 2;
const END: u64 = 3;
const GO_ON: u64 = 4;
const CLOSE: u64 = 5;
/// Between the last send and the close of the sockets, so that what is queued and counted as sent
/// goes out: a socket's whole queue (8 MiB) takes this long at 0.7 Gbit/s.
const LINGER: Nanos = 100_000_000;
/// Sends queued in one turn: enough to make the turn's other costs small, few enough that the
/// clock is read often.
const SENDS_PER_TURN: usize = 8;

/// What a flood does.
#[derive(Debug, Clone)]
pub struct FloodConfig {
    /// Where to.
    pub target: SocketAddr,
    /// Flows (sockets) on each shard.
    pub flows: usize,
    /// Bytes in each datagram.
    pub datagram_len: usize,
    /// Datagrams per second on each shard; as fast as possible without.
    pub rate: Option<f64>,
}

/// The flood of one shard.
pub struct Flood {
    config: Arc<FloodConfig>,
    recorder: Recorder,
    sockets: Vec<SocketId>,
    next: usize,
    pacer: Option<Pacer>,
    running: bool,
    ended: bool,
    /// A full queue holds the flood up until it is drained.
    blocked: bool,
    /// A full queue has held it up since it last looked at what is due.
    was_blocked: bool,
    /// Of the ticks that the pacer gave up, those that are counted.
    skipped: u64,
    end_at: Nanos,
}

impl Flood {
    /// The instance of one shard; figures go to `shared`.
    #[must_use]
    pub fn new(config: Arc<FloodConfig>, shared: Arc<Shared>) -> Self {
        Self {
            config,
            recorder: Recorder::new(shared, true),
            sockets: Vec::new(),
            next: 0,
            pacer: None,
            running: false,
            ended: false,
            blocked: false,
            was_blocked: false,
            skipped: 0,
            end_at: Nanos::MAX,
        }
    }

    fn go_on(&mut self, ctx: &mut Context<'_, Command>) {
        if !self.running || self.sockets.is_empty() {
            return;
        }
        let len = self.config.datagram_len;
        let at_once = ctx.segments_max(len);
        match &mut self.pacer {
            None => {
                for _ in 0..SENDS_PER_TURN {
                    if !self.send(ctx, at_once, len) {
                        return;
                    }
                }
                ctx.set_timer(ctx.now(), GO_ON);
            }
            Some(pacer) => {
                let due = pacer.due(ctx.now()) as usize;
                let cause = if self.was_blocked {
                    Unsent::QueueFull
                } else {
                    Unsent::Late
                };
                self.recorder
                    .unsent(cause, pacer.ticks_skipped() - self.skipped);
                self.skipped = pacer.ticks_skipped();
                self.was_blocked = false;
                let mut left = due;
                while left > 0 {
                    let count = left.min(at_once);
                    if !self.send(ctx, count, len) {
                        // What is still due goes when the queue has room again.
                        break;
                    }
                    left -= count;
                }
                let Some(pacer) = &mut self.pacer else { return };
                for _ in left..due {
                    let _ = pacer.pop_due(ctx.now());
                }
                if left == 0 {
                    ctx.set_timer(pacer.next_intended(), GO_ON);
                }
            }
        }
    }

    fn send(&mut self, ctx: &mut Context<'_, Command>, count: usize, len: usize) -> bool {
        self.next = (self.next + 1) % self.sockets.len();
        let data = Payload::Static(pattern::window(0, count * len));
        let transmit = Transmit {
            peer: None,
            source: None,
            ecn: 0,
            stride: len as u16,
            data,
        };
        match ctx.send_datagrams(self.sockets[self.next], transmit) {
            Sent::Queued => {
                self.recorder.sent(count as u64);
                true
            }
            Sent::Full => {
                self.blocked = true;
                self.was_blocked = true;
                false
            }
            Sent::Closed => false,
        }
    }

    /// Nothing more is sent; the sockets are closed when what is queued has had its time.
    fn end(&mut self, ctx: &mut Context<'_, Command>) {
        if self.ended {
            return;
        }
        self.running = false;
        self.ended = true;
        self.recorder.measuring = false;
        self.recorder.publish();
        self.recorder.set_phase(Phase::Ending);
        ctx.set_timer(ctx.now() + LINGER, CLOSE);
    }

    fn close(&mut self, ctx: &mut Context<'_, Command>) {
        for socket in self.sockets.drain(..) {
            ctx.close_socket(socket);
        }
        self.recorder.publish();
        self.recorder.set_phase(Phase::Done);
    }
}

impl Protocol for Flood {
    type Message = Command;

    fn start(&mut self, ctx: &mut Context<'_, Command>) {
        let any: IpAddr = if self.config.target.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        for _ in 0..self.config.flows {
            match ctx.open(&Open {
                local: SocketAddr::new(any, 0),
                peer: Some(self.config.target),
            }) {
                Ok(socket) => {
                    self.recorder.tally.opened += 1;
                    self.sockets.push(socket);
                }
                Err(error) => {
                    self.recorder.tally.open_failed += 1;
                    self.recorder
                        .failed(("open", error_name(error.raw_os_error().unwrap_or(0))));
                }
            }
        }
        self.recorder.set_settled(self.config.flows);
        self.recorder.publish();
        self.recorder.set_phase(Phase::Ready);
        ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
    }

    fn socket_drained(&mut self, ctx: &mut Context<'_, Command>, _socket: SocketId) {
        if std::mem::take(&mut self.blocked) {
            self.go_on(ctx);
        }
    }

    fn socket_error(&mut self, _ctx: &mut Context<'_, Command>, _socket: SocketId, errno: i32) {
        self.recorder.failed(("socket", error_name(errno)));
    }

    fn timer(&mut self, ctx: &mut Context<'_, Command>, token: u64) {
        match token {
            PUBLISH if !self.ended => {
                self.recorder.publish();
                ctx.set_timer(ctx.now() + PUBLISH_INTERVAL, PUBLISH);
            }
            BEGIN if !self.ended => {
                self.running = true;
                self.recorder.set_phase(Phase::Running);
                self.pacer = self
                    .config
                    .rate
                    .and_then(|rate| Pacer::constant(rate, ctx.now()).ok());
                self.go_on(ctx);
            }
            MEASURE => {
                self.recorder.measuring = !self.ended;
                ctx.set_timer(self.end_at, END);
            }
            END => self.end(ctx),
            CLOSE => self.close(ctx),
            GO_ON => self.go_on(ctx),
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
                // Before BEGIN, so that without a warm-up the first messages are counted too.
                ctx.set_timer(measure.max(start), MEASURE);
                ctx.set_timer(start, BEGIN);
            }
            Command::End => self.end(ctx),
        }
    }

    fn stopping(&mut self, ctx: &mut Context<'_, Command>) {
        self.end(ctx);
        // The engine closes the sockets itself when their queues are empty.
        self.recorder.set_phase(Phase::Done);
    }
}
