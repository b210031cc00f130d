//! A person at a multicast group: typed lines go to it, or what comes from it is shown.
//!
//! One socket on the first shard. The sender binds to any port; a receiver joins.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use ringmill_engine::{
    Context, Datagram, Multicast, Nanos, Open, Payload, Protocol, ShardId, SocketId, Transmit,
    error_name,
};

use super::sender::Group;
use crate::backlog::{Backlog, LOOK_INTERVAL};

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TalkRole {
    /// Typed lines go to the group.
    Send,
    /// What the group is sent is shown.
    Receive,
}

/// What the control thread asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TalkCommand {
    /// Send one datagram.
    Send(Vec<u8>),
    /// Close the socket and open another.
    Restart,
    /// What was sent before has left the queue when [`TalkEvent::Ended`] comes.
    End,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TalkEvent {
    /// The socket is open.
    Open,
    /// It cannot be opened: in these words.
    Failed(&'static str),
    /// A datagram came from this sender; once it is shown, [`Backlog::shown`] is to hear of it.
    Received(SocketAddr, Vec<u8>),
    /// A datagram could not be sent.
    NotSent(&'static str),
    /// It is over.
    Ended,
}

/// Hears of every event, on the shard: must not block.
pub type TalkReport = Arc<dyn Fn(TalkEvent) + Send + Sync>;

const ENDED: u64 = 0;
const CLOSE: u64 = 1;
/// Perhaps what was received has been shown.
const LOOK: u64 = 2;
/// After a restart the old socket still sends what was typed before: a turn takes less.
const LINGER: Nanos = 100_000_000;

/// One end of the interactive pair.
pub struct Talk {
    role: TalkRole,
    group: Group,
    report: TalkReport,
    backlog: Arc<Backlog>,
    /// A timer looks whether the backlog has room again.
    is_looking: bool,
    socket: Option<SocketId>,
    /// Sockets of before a restart, oldest first.
    closing: VecDeque<SocketId>,
}

impl Talk {
    /// An end at `group`. It reads no more while `backlog` is full: what comes then is lost.
    #[must_use]
    pub fn new(role: TalkRole, group: Group, report: TalkReport, backlog: Arc<Backlog>) -> Self {
        Self {
            role,
            group,
            report,
            backlog,
            is_looking: false,
            socket: None,
            closing: VecDeque::new(),
        }
    }

    /// The socket of an end.
    #[must_use]
    pub fn open(role: TalkRole, group: &Group) -> (Open, Multicast) {
        match role {
            TalkRole::Send => (group.open(), group.multicast),
            TalkRole::Receive => {
                let open = Open {
                    local: group.to,
                    peer: None,
                };
                let multicast = Multicast {
                    join: Some(group.to.ip()),
                    ..group.multicast
                };
                (open, multicast)
            }
        }
    }

    fn begin(&mut self, ctx: &mut Context<'_, TalkCommand>) {
        let (open, multicast) = Self::open(self.role, &self.group);
        match ctx.open_multicast(&open, &multicast) {
            Ok(socket) => {
                self.socket = Some(socket);
                (self.report)(TalkEvent::Open);
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                (self.report)(TalkEvent::Failed(error_name(errno)));
            }
        }
    }
}

impl Protocol for Talk {
    type Message = TalkCommand;

    fn start(&mut self, ctx: &mut Context<'_, TalkCommand>) {
        if ctx.shard() == 0 {
            self.begin(ctx);
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, TalkCommand>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for datagram in batch.drain(..) {
            for message in datagram.iter() {
                self.backlog.add(message.len());
                (self.report)(TalkEvent::Received(datagram.peer, message.to_vec()));
            }
        }
        if self.backlog.is_full() {
            ctx.set_socket_reading(socket, false);
            if !std::mem::replace(&mut self.is_looking, true) {
                ctx.set_timer(ctx.now() + LOOK_INTERVAL, LOOK);
            }
        }
    }

    fn socket_error(&mut self, _ctx: &mut Context<'_, TalkCommand>, _: SocketId, errno: i32) {
        (self.report)(TalkEvent::NotSent(error_name(errno)));
    }

    fn timer(&mut self, ctx: &mut Context<'_, TalkCommand>, token: u64) {
        match token {
            ENDED => (self.report)(TalkEvent::Ended),
            LOOK if self.backlog.is_full() => {
                ctx.set_timer(ctx.now() + LOOK_INTERVAL, LOOK);
            }
            LOOK => {
                self.is_looking = false;
                if let Some(socket) = self.socket {
                    ctx.set_socket_reading(socket, true);
                }
            }
            _ => {
                if let Some(socket) = self.closing.pop_front() {
                    ctx.close_socket(socket);
                }
            }
        }
    }

    fn message(&mut self, ctx: &mut Context<'_, TalkCommand>, _: ShardId, command: TalkCommand) {
        match (command, self.socket) {
            (TalkCommand::Send(bytes), Some(socket)) => {
                let transmit = Transmit::one(None, Payload::from(bytes));
                if !ctx.send_datagrams(socket, transmit).is_queued() {
                    (self.report)(TalkEvent::NotSent("the queue is full"));
                }
            }
            (TalkCommand::Send(_), None) => {
                (self.report)(TalkEvent::NotSent("there is no socket"));
            }
            (TalkCommand::Restart, socket) => {
                match socket {
                    Some(socket) if self.role == TalkRole::Send => {
                        self.closing.push_back(socket);
                        let at = ctx.now() + LINGER;
                        ctx.set_timer(at, CLOSE);
                    }
                    // Two members would show everything twice.
                    Some(socket) => ctx.close_socket(socket),
                    None => {}
                }
                self.begin(ctx);
            }
            (TalkCommand::End, _) => {
                // Sends go out at the end of a turn: the next one comes after it.
                let now = ctx.now();
                ctx.set_timer(now, ENDED);
            }
        }
    }
}
