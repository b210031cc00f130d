//! Chat: every message goes to every session on every shard, its sender included.
//!
//! A message is stored once, crosses to each other shard once, and is shared by the send queues
//! there. What a shard receives in one turn is stored, crosses and waits together. A session that sends exactly `!` is closed after its last message. Sessions that read too
//! slowly meet a policy and delay nobody.
//!
//! # Order
//!
//! All sessions get the messages of one sender in the order in which they were sent, and so those of
//! all senders of one shard in one and the same order. Between senders of different shards there is
//! no common order: two sessions on one shard see the same sequence, two on different shards may see
//! two such messages the other way round. A slow reader may miss messages, never get one twice or
//! early.
//!
//! A session gets the greeting and then every message that reaches its shard after it joined; after
//! its own `!` it gets nothing more.

mod counters;
mod crossing;
mod events;
mod fanout;
mod framing;
mod gathering;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use ringmill_engine::{
    Buffer, CONTROL, Closed, Context, ListenerId, Nanos, Payload, Protocol, QueueBounds, ShardId,
    StreamId,
};

pub use self::counters::{ChatCounters, ChatSnapshot};
use self::crossing::{Crossing, RETRY_INTERVAL, Taken};
pub use self::events::{Event, Reason, Report, SessionId, Transport};
use self::fanout::Members;
pub use self::fanout::SlowReader;
pub use self::framing::Framing;
use self::framing::{Cut, LEAVE, Lines};
use self::gathering::Gathering;
pub use self::gathering::Message;

/// Messages that may wait for one session unless told otherwise; those that a shard received in one
/// turn count as one. Each takes 32 bytes beside its own, so that the smallest of them cost a
/// session no more than 128 KiB.
pub const QUEUE_MESSAGES_DEFAULT: usize = 4096;
/// The longest line unless told otherwise.
pub const LINE_BYTES_DEFAULT: usize = 64 << 10;
/// How long the connection of a session that has left may stay open when all is sent: the peer has
/// been told the end and should close.
pub const LINGER: Nanos = 5_000_000_000;
/// Messages of the console that may wait for room in other shards: nobody types more.
const ADMIN_WAITING_MAX: usize = 1024;

const RETRY: u64 = 0;
const LINGERING: u64 = 1;
/// The end of this turn.
const GATHERED: u64 = 2;

/// How a chat behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Where messages end.
    pub framing: Framing,
    /// What slow readers meet.
    pub slow: SlowReader,
    /// What may wait for one session, within the limits of the engine.
    pub queue: QueueBounds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            framing: Framing::default(),
            slow: SlowReader::default(),
            queue: QueueBounds {
                bytes_max: usize::MAX,
                messages_max: QUEUE_MESSAGES_DEFAULT,
            },
        }
    }
}

/// Counters that share no cache line with those of another shard, nor a pair of lines that is
/// fetched together.
#[repr(align(128))]
#[derive(Default)]
struct OnOwnLines(ChatCounters);

/// A chat as all its shards and the control thread know it.
pub struct Room {
    settings: Settings,
    counters: Box<[OnOwnLines]>,
    taken: Arc<Taken>,
    transports: OnceLock<Vec<Transport>>,
    report: Option<Report>,
}

impl Room {
    /// A chat on so many shards, which tells `report` of its sessions.
    #[must_use]
    pub fn new(settings: Settings, shards: u16, report: Option<Report>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            counters: (0..shards).map(|_| OnOwnLines::default()).collect(),
            taken: Arc::new(Taken::new(shards)),
            transports: OnceLock::new(),
            report,
        })
    }

    /// Says by what each endpoint of the service is reached, in their order. Without this, by TCP.
    /// Heard only once, and before the engine starts.
    pub fn set_transports(&self, transports: Vec<Transport>) {
        let _ = self.transports.set(transports);
    }

    /// The chat on one shard.
    #[must_use]
    pub fn shard(self: &Arc<Self>, shard: ShardId) -> Chat {
        Chat {
            gathering: Gathering::default(),
            is_gathering: false,
            crossing: Crossing::new(shard, self.counters.len() as u16, Arc::clone(&self.taken)),
            room: Arc::clone(self),
            own: usize::from(shard),
            sessions: Vec::new(),
            members: Members::default(),
            joined: 0,
            paused: Vec::new(),
            is_retrying: false,
            lingering: VecDeque::new(),
        }
    }

    /// A line from the server's console as the message that sessions get. To be posted to one
    /// shard, always the same; it passes it on.
    #[must_use]
    pub fn admin_message(&self, text: &[u8]) -> Message {
        let framing = self.settings.framing;
        Message::one(framing.frame(&[b"(admin) ".as_slice(), text].concat()))
    }

    /// Counters of each shard.
    pub fn counters(&self) -> impl Iterator<Item = &ChatCounters> {
        self.counters.iter().map(|counters| &counters.0)
    }

    /// Counters of all shards together.
    #[must_use]
    pub fn totals(&self) -> ChatSnapshot {
        let zero = ChatSnapshot::default();
        let each = self.counters().map(ChatCounters::snapshot);
        each.fold(zero, |sum, next| sum.plus(&next))
    }

    fn transport(&self, listener: ListenerId) -> Transport {
        let known = self.transports.get();
        known
            .and_then(|all| all.get(usize::from(listener.endpoint)).copied())
            .unwrap_or(Transport::Tcp)
    }

    fn tell(&self, event: Event) {
        if let Some(report) = &self.report {
            report(event);
        }
    }
}

/// One connection.
#[derive(Debug)]
struct Session {
    id: SessionId,
    lines: Lines,
    /// Why it is over, once it is.
    over: Option<Reason>,
}

/// The chat service on one shard.
pub struct Chat {
    room: Arc<Room>,
    own: usize,
    /// By [`StreamId::index`].
    sessions: Vec<Option<Box<Session>>>,
    members: Members,
    joined: u64,
    gathering: Gathering,
    /// A timer will end this turn's gathering.
    is_gathering: bool,
    crossing: Crossing,
    /// Senders that wait until the outboxes are empty.
    paused: Vec<StreamId>,
    is_retrying: bool,
    /// Sessions that have left and whose connection is still open, oldest first.
    lingering: VecDeque<(StreamId, Nanos)>,
}

impl Chat {
    fn counters(&self) -> &ChatCounters {
        &self.room.counters[self.own].0
    }

    fn session(&mut self, stream: StreamId) -> Option<&mut Session> {
        self.sessions.get_mut(stream.index())?.as_deref_mut()
    }

    /// A message of a session: goes with all others of this turn.
    fn say(&mut self, ctx: &mut Context<'_, Message>, stream: StreamId, message: Payload) {
        self.counters().messages.add(1);
        self.counters().message_bytes.add(message.len() as u64);
        if !self.gathering.has_room(message.len()) {
            self.pass_gathered(ctx);
        }
        self.gathering.add(stream, message);
        if !self.is_gathering {
            self.is_gathering = true;
            ctx.set_timer(ctx.now(), GATHERED);
        }
    }

    /// Passes on what this turn has gathered so far. Before anyone joins or leaves, so that a
    /// session gets exactly what was said between.
    fn pass_gathered(&mut self, ctx: &mut Context<'_, Message>) {
        let Some((message, senders)) = self.gathering.take() else {
            return;
        };
        self.counters().stored_bytes.add(message.bytes.len() as u64);
        self.pass_on(ctx, message);
        if self.crossing.waiting() > 0 {
            for stream in senders {
                self.pause(ctx, stream);
            }
        }
    }

    fn pause(&mut self, ctx: &mut Context<'_, Message>, stream: StreamId) {
        self.counters().senders_paused.add(1);
        ctx.pause(stream);
        self.paused.push(stream);
    }

    /// A message of this shard: to all the others, and to everyone here.
    fn pass_on(&mut self, ctx: &mut Context<'_, Message>, message: Message) {
        self.crossing
            .send(ctx, &message, &self.room.counters[self.own].0);
        self.deliver(ctx, message);
        self.retry_later(ctx);
    }

    fn retry_later(&mut self, ctx: &mut Context<'_, Message>) {
        let waiting = self.crossing.waiting();
        self.counters().crossings_waiting.set(waiting as u64);
        if waiting > 0 && !self.is_retrying {
            self.is_retrying = true;
            ctx.set_timer(ctx.now() + RETRY_INTERVAL, RETRY);
        }
    }

    fn deliver(&mut self, ctx: &mut Context<'_, Message>, message: Message) {
        let Settings { queue, slow, .. } = self.room.settings;
        let counters = &self.room.counters[self.own].0;
        let too_slow = self.members.deliver(ctx, message, queue, slow, counters);
        if !too_slow.is_empty() {
            for stream in std::mem::take(too_slow) {
                self.counters().disconnected_slow.add(1);
                self.end(stream, Reason::TooSlow);
                ctx.reset(stream);
            }
        }
    }

    /// A session takes part no more. `false` when it did not before.
    fn end(&mut self, stream: StreamId, reason: Reason) -> bool {
        if let Some(session) = self.session(stream) {
            session.over.get_or_insert(reason);
        }
        let was_member = self.members.remove(stream);
        let members = self.members.len() as u64;
        self.counters().sessions.set(members);
        was_member
    }

    /// Its own word was its last: what is queued goes, and then the end.
    fn leave(&mut self, ctx: &mut Context<'_, Message>, stream: StreamId) {
        self.pass_gathered(ctx);
        if !self.end(stream, Reason::Left) {
            return;
        }
        self.counters().left.add(1);
        // Closing here would reset the connection of a peer that goes on sending, and take the last
        // messages from it.
        ctx.finish(stream);
        self.lingering.push_back((stream, ctx.now() + LINGER));
        if self.lingering.len() == 1 {
            ctx.set_timer(ctx.now() + LINGER, LINGERING);
        }
    }

    /// Closes what has lingered for too long; who still has something to read is given time, and
    /// the engine watches over that.
    fn end_lingering(&mut self, ctx: &mut Context<'_, Message>) {
        let now = ctx.now();
        while let Some(&(stream, deadline)) = self.lingering.front() {
            if deadline > now {
                ctx.set_timer(deadline, LINGERING);
                return;
            }
            self.lingering.pop_front();
            if ctx.queued_messages(stream) > 0 {
                self.lingering.push_back((stream, now + LINGER));
            } else {
                ctx.close(stream);
            }
        }
    }
}

impl Protocol for Chat {
    type Message = Message;

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, Self::Message>,
        stream: StreamId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
    ) {
        self.pass_gathered(ctx);
        let session = self.joined * u64::from(ctx.shards()) + u64::from(ctx.shard()) + 1;
        self.joined += 1;
        let index = stream.index();
        if self.sessions.len() <= index {
            self.sessions.resize_with(index + 1, || None);
        }
        self.sessions[index] = Some(Box::new(Session {
            id: session,
            lines: Lines::default(),
            over: None,
        }));
        let transport = self.room.transport(listener);
        let greeting =
            format!("Hello from {transport} chat! Send a message, or '!' to disconnect.");
        let greeting = self.room.settings.framing.frame(greeting.as_bytes());
        if !ctx.send(stream, greeting).is_queued() {
            // The shard is full of what others do not read: this one can at least take part.
            self.counters().dropped_newest.add(1);
        }
        self.members.add(stream);
        let members = self.members.len() as u64;
        self.counters().sessions.set(members);
        self.counters().joined.add(1);
        self.room.tell(Event::Connected {
            session,
            transport,
            peer,
        });
    }

    fn received(&mut self, ctx: &mut Context<'_, Self::Message>, stream: StreamId, data: Buffer) {
        let framing = self.room.settings.framing;
        let Some(session) = self.session(stream) else {
            return;
        };
        if session.over.is_some() {
            return;
        }
        let cut = match framing {
            Framing::Line { bytes_max } => session.lines.take(&data, bytes_max),
            Framing::Read => Cut {
                message: Some(Cow::Borrowed(&data[..])),
                too_long: 0,
                leaves: data[..] == *LEAVE,
            },
        };
        let Cut {
            too_long, leaves, ..
        } = cut;
        let message = match cut.message {
            Some(Cow::Borrowed(_)) => Some(Payload::from(data)),
            Some(Cow::Owned(bytes)) => Some(Payload::Owned { bytes, start: 0 }),
            None => None,
        };
        self.counters().lines_too_long.add(too_long);
        if let Some(message) = message {
            self.say(ctx, stream, message);
        }
        if leaves {
            self.leave(ctx, stream);
        } else if self.crossing.waiting() > 0 {
            self.pause(ctx, stream);
        }
    }

    fn ended(&mut self, ctx: &mut Context<'_, Self::Message>, stream: StreamId) {
        if let Some(session) = self.session(stream)
            && session.over.is_none()
            && let Some(bytes) = session.lines.end()
        {
            self.say(ctx, stream, Payload::Owned { bytes, start: 0 });
        }
        self.pass_gathered(ctx);
        self.end(stream, Reason::ClosedByPeer);
        ctx.close(stream);
    }

    fn closed(&mut self, _ctx: &mut Context<'_, Self::Message>, stream: StreamId, reason: Closed) {
        self.end(stream, Reason::Engine(reason));
        let session = self.sessions.get_mut(stream.index()).and_then(Option::take);
        if let Some(session) = session {
            self.room.tell(Event::Disconnected {
                session: session.id,
                reason: session.over.unwrap_or(Reason::Engine(reason)),
            });
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, Self::Message>, token: u64) {
        match token {
            GATHERED => {
                self.is_gathering = false;
                self.pass_gathered(ctx);
                return;
            }
            LINGERING => {
                self.end_lingering(ctx);
                return;
            }
            _ => {}
        }
        self.is_retrying = false;
        if self.crossing.retry(ctx, &self.room.counters[self.own].0) {
            for stream in std::mem::take(&mut self.paused) {
                ctx.resume(stream);
            }
        }
        self.retry_later(ctx);
    }

    fn stopped(&mut self) {
        let unsaid = self.gathering.take();
        let unsaid = unsaid.map_or(0, |(message, _)| message.messages as usize);
        let lost = (self.crossing.waiting() + unsaid) as u64;
        self.counters().crossings_lost.add(lost);
        self.counters().crossings_waiting.set(0);
    }

    fn message(
        &mut self,
        ctx: &mut Context<'_, Self::Message>,
        from: ShardId,
        message: Self::Message,
    ) {
        if from != CONTROL {
            let own = ctx.shard();
            self.room.taken.add(own, from, message.bytes.len());
            self.deliver(ctx, message);
        } else if self.crossing.waiting() < ADMIN_WAITING_MAX {
            self.counters().admin_messages.add(1);
            self.pass_gathered(ctx);
            self.pass_on(ctx, message);
        } else {
            self.counters().admin_refused.add(1);
        }
    }
}
