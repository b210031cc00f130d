//! A person's end of a connection: what is typed goes out, what comes back is shown, and a lost
//! connection is opened again one second later, until told to end.
//!
//! One stream, or one connected datagram socket, on the first shard. What is sent before the
//! connection stands waits for it, within a bound.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ringmill_engine::{
    Address, Buffer, Closed, Connect, Context, Datagram, Nanos, Open, Payload, Protocol, Sent,
    ShardId, SocketId, StreamId, Transmit, error_name,
};

use crate::backlog::{Backlog, LOOK_INTERVAL};

/// Between the end of a connection and the next attempt.
pub const RECONNECT_DELAY: Nanos = 1_000_000_000;
/// How long the end waits for answers.
pub const END_PATIENCE: Nanos = 1_000_000_000;
/// Messages held while there is no connection, or while the peer does not read: more than a person
/// types, less than matters.
pub const WAITING_BYTES_MAX: usize = 1 << 20;

const RECONNECT: u64 = 0;
const GIVE_UP: u64 = 1;
/// Perhaps what was received has been shown.
const LOOK: u64 = 2;

/// What the control thread asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send these bytes, as one datagram where there are datagrams.
    Send(Vec<u8>),
    /// Close the connection; it is opened again after [`RECONNECT_DELAY`].
    Disconnect,
    /// Send what waits, take the answers that come within [`END_PATIENCE`], and end.
    End,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection stands.
    Connected(Address),
    /// Bytes came; once they are shown, [`Backlog::shown`] is to hear of it.
    Received(Vec<u8>),
    /// The connection is gone, or did not come about.
    Disconnected(&'static str),
    /// A datagram was answered by an error.
    Refused(&'static str),
    /// A message was dropped: too much waits already.
    Dropped,
    /// It is over; so many messages were never sent.
    Ended {
        /// Messages that still waited for a connection.
        unsent: usize,
    },
}

/// Hears of every event, on the shard: must not block.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// Where messages go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Opening(StreamId),
    Stream(StreamId),
    Socket(SocketId),
}

/// The interactive client.
pub struct Interactive {
    targets: Vec<Address>,
    /// Which target is next.
    next: usize,
    datagrams: bool,
    report: Report,
    backlog: Arc<Backlog>,
    /// What is not read because too much waits to be shown.
    paused: Option<Link>,
    link: Link,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// Datagrams that were sent and not answered.
    unanswered: u64,
    ending: bool,
    ended: bool,
}

impl Interactive {
    /// A client of the first target that answers; `datagrams` instead of a stream. It reads no more
    /// while `backlog` is full.
    ///
    /// # Panics
    /// Without a target.
    #[must_use]
    pub fn new(
        targets: Vec<Address>,
        datagrams: bool,
        report: Report,
        backlog: Arc<Backlog>,
    ) -> Self {
        assert!(
            !targets.is_empty(),
            "a client needs somewhere to connect to"
        );
        Self {
            targets,
            next: 0,
            datagrams,
            report,
            backlog,
            paused: None,
            link: Link::Down,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            unanswered: 0,
            ending: false,
            ended: false,
        }
    }

    fn tell(&self, event: Event) {
        (self.report)(event);
    }

    fn open(&mut self, ctx: &mut Context<'_, Command>) {
        let target = self.targets[self.next % self.targets.len()].clone();
        match &target {
            Address::Ip(peer) if self.datagrams => {
                let any: IpAddr = match peer {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let open = Open {
                    local: SocketAddr::new(any, 0),
                    peer: Some(*peer),
                };
                match ctx.open(&open) {
                    Ok(socket) => {
                        self.link = Link::Socket(socket);
                        self.unanswered = 0;
                        self.tell(Event::Connected(target));
                        self.send_waiting(ctx);
                    }
                    Err(error) => self.lost(ctx, words(&error)),
                }
            }
            _ => {
                let connect = Connect {
                    to: target,
                    from: None,
                };
                match ctx.connect(&connect) {
                    Ok(stream) => self.link = Link::Opening(stream),
                    Err(error) => self.lost(ctx, words(&error)),
                }
            }
        }
    }

    fn show(&self, message: &[u8]) {
        self.backlog.add(message.len());
        self.tell(Event::Received(message.to_vec()));
    }

    /// Reads no more while too much waits to be shown.
    fn hold_on(&mut self, ctx: &mut Context<'_, Command>) {
        if self.paused == Some(self.link) || !self.backlog.is_full() {
            return;
        }
        match self.link {
            Link::Stream(stream) => ctx.pause(stream),
            Link::Socket(socket) => ctx.set_socket_reading(socket, false),
            Link::Down | Link::Opening(_) => return,
        }
        if self.paused.replace(self.link).is_none() {
            ctx.set_timer(ctx.now() + LOOK_INTERVAL, LOOK);
        }
    }

    fn look(&mut self, ctx: &mut Context<'_, Command>) {
        if self.backlog.is_full() {
            ctx.set_timer(ctx.now() + LOOK_INTERVAL, LOOK);
            return;
        }
        match self.paused.take() {
            Some(Link::Stream(stream)) => ctx.resume(stream),
            Some(Link::Socket(socket)) => ctx.set_socket_reading(socket, true),
            _ => {}
        }
    }

    /// The connection is gone: try again, unless this is the end.
    fn lost(&mut self, ctx: &mut Context<'_, Command>, why: &'static str) {
        if self.ended {
            return;
        }
        self.link = Link::Down;
        if self.ending {
            self.end();
        } else {
            self.tell(Event::Disconnected(why));
            ctx.set_timer(ctx.now() + RECONNECT_DELAY, RECONNECT);
        }
    }

    fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            let unsent = self.waiting.len();
            self.tell(Event::Ended { unsent });
        }
    }

    fn send_waiting(&mut self, ctx: &mut Context<'_, Command>) {
        while let Some(message) = self.waiting.front() {
            let sent = match self.link {
                Link::Stream(stream) => ctx.send(stream, message.clone()),
                Link::Socket(socket) => {
                    let transmit = Transmit {
                        peer: None,
                        source: None,
                        ecn: 0,
                        stride: u16::try_from(message.len()).unwrap_or(u16::MAX),
                        data: Payload::from(message.clone()),
                    };
                    ctx.send_datagrams(socket, transmit)
                }
                Link::Down | Link::Opening(_) => return,
            };
            if sent != Sent::Queued {
                // Full: `drained` comes back here. Closed: the next connection does.
                return;
            }
            self.unanswered += u64::from(self.datagrams);
            self.waiting_bytes -= message.len();
            self.waiting.pop_front();
        }
        if self.ending {
            self.wind_up(ctx);
        }
    }

    /// Everything is sent: let the answers come.
    fn wind_up(&mut self, ctx: &mut Context<'_, Command>) {
        match self.link {
            // The peer sees the end, answers the rest and closes.
            Link::Stream(stream) => ctx.finish(stream),
            Link::Socket(_) if self.unanswered > 0 => {}
            Link::Opening(_) if !self.waiting.is_empty() => {}
            _ => self.end(),
        }
    }
}

fn words(error: &std::io::Error) -> &'static str {
    error_name(error.raw_os_error().unwrap_or(0))
}

impl Protocol for Interactive {
    type Message = Command;

    fn start(&mut self, ctx: &mut Context<'_, Command>) {
        if ctx.shard() == 0 {
            self.open(ctx);
        }
    }

    fn connected(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId) {
        self.link = Link::Stream(stream);
        let target = self.targets[self.next % self.targets.len()].clone();
        self.tell(Event::Connected(target));
        self.send_waiting(ctx);
    }

    fn received(&mut self, ctx: &mut Context<'_, Command>, _stream: StreamId, data: Buffer) {
        self.show(&data);
        self.hold_on(ctx);
    }

    fn drained(&mut self, ctx: &mut Context<'_, Command>, _stream: StreamId) {
        self.send_waiting(ctx);
    }

    fn closed(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId, reason: Closed) {
        let why = match reason {
            Closed::Error(errno) => error_name(errno),
            _ => "closed",
        };
        if self.link == Link::Opening(stream) {
            // Perhaps the server has the other address of this name.
            self.next = self.next.wrapping_add(1);
            if !self.next.is_multiple_of(self.targets.len()) && !self.ended {
                self.link = Link::Down;
                self.open(ctx);
                return;
            }
        }
        self.lost(ctx, why);
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, Command>,
        _socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for datagram in batch.drain(..) {
            let stride = usize::from(datagram.stride).max(1);
            for message in datagram.data.chunks(stride) {
                self.unanswered = self.unanswered.saturating_sub(1);
                self.show(message);
            }
        }
        self.hold_on(ctx);
        if self.ending {
            self.wind_up(ctx);
        }
    }

    fn socket_drained(&mut self, ctx: &mut Context<'_, Command>, _socket: SocketId) {
        self.send_waiting(ctx);
    }

    fn socket_error(&mut self, ctx: &mut Context<'_, Command>, _socket: SocketId, errno: i32) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.tell(Event::Refused(error_name(errno)));
        if self.ending {
            self.wind_up(ctx);
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, Command>, token: u64) {
        match token {
            RECONNECT if self.link == Link::Down && !self.ending => self.open(ctx),
            GIVE_UP => self.end(),
            LOOK => self.look(ctx),
            _ => {}
        }
    }

    fn message(&mut self, ctx: &mut Context<'_, Command>, _from: ShardId, command: Command) {
        if self.ending {
            return;
        }
        match command {
            Command::Send(message) => {
                if message.is_empty() {
                    return;
                }
                if self.waiting_bytes + message.len() > WAITING_BYTES_MAX {
                    self.tell(Event::Dropped);
                    return;
                }
                self.waiting_bytes += message.len();
                self.waiting.push_back(message);
                self.send_waiting(ctx);
            }
            Command::Disconnect => match self.link {
                // `closed` follows and does the rest.
                Link::Stream(stream) => ctx.close(stream),
                Link::Opening(stream) => ctx.reset(stream),
                Link::Socket(socket) => {
                    ctx.close_socket(socket);
                    self.lost(ctx, "closed");
                }
                Link::Down => {}
            },
            Command::End => {
                self.ending = true;
                ctx.set_timer(ctx.now() + END_PATIENCE, GIVE_UP);
                self.send_waiting(ctx);
                if self.waiting.is_empty() || self.link == Link::Down {
                    self.wind_up(ctx);
                }
            }
        }
    }
}
