//! A chat as a server's user sees it: its settings, its console, and the events of its sessions.
//!
//! Events come from the shards through a queue with a bound, and are printed by the control thread:
//! a storm of joins must not wait for a slow terminal. What does not fit is counted and told.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ringmill_engine::{Controller, QueueBounds, Service};
use ringmill_protocols::chat::{
    Chat, Event, Framing, LINE_BYTES_DEFAULT, Message, QUEUE_MESSAGES_DEFAULT, Report, Room,
    Settings, SlowReader,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::units;

/// Events that wait to be printed: some tenths of a second of a storm.
const EVENTS_MAX: usize = 65_536;
/// The shard that passes on what the console says: always the same, so that order holds.
const CONSOLE_SHARD: u16 = 0;
/// A full mailbox is emptied within turns; a server that does not do so in this time is in trouble.
const POST_TRIES: u32 = 1000;
const POST_INTERVAL: Duration = Duration::from_millis(1);

/// Where messages end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameArg {
    /// A message is what one receive returns.
    #[default]
    Read,
    /// Messages are whole lines.
    Line,
}

/// What slow readers meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlowReaderArg {
    /// The oldest messages that wait for it are dropped.
    #[default]
    DropOldest,
    /// New messages are dropped.
    DropNewest,
    /// It is disconnected.
    Disconnect,
}

impl From<SlowReaderArg> for SlowReader {
    fn from(policy: SlowReaderArg) -> Self {
        match policy {
            SlowReaderArg::DropOldest => Self::DropOldest,
            SlowReaderArg::DropNewest => Self::DropNewest,
            SlowReaderArg::Disconnect => Self::Disconnect,
        }
    }
}

/// How connects, disconnects and refusals are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventsArg {
    /// Not at all.
    #[default]
    Off,
    /// A line of words each.
    Text,
    /// A line of JSON each.
    Json,
}

/// How a chat behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Chat")]
pub struct ChatArgs {
    /// Where messages end. A stream may cut what was sent as one anywhere: 'line' keeps lines whole.
    #[arg(long, value_enum, default_value_t)]
    pub frame: FrameArg,

    /// With --frame line, the longest line; a longer one is thrown away and counted.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, default_value = "64KiB")]
    pub line_max: u64,

    /// What happens when the queue of a session is full (see --queue-per-connection).
    #[arg(long, value_enum, default_value_t)]
    pub slow_reader: SlowReaderArg,

    /// Messages that may wait for one session; those that arrived at the same moment count as one.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        default_value_t = QUEUE_MESSAGES_DEFAULT as u32
    )]
    pub queue_messages: u32,

    /// Report connects, disconnects and refusals on standard output. Costs a system call for each
    /// connection, to learn its address.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub events: EventsArg,
}

impl Default for ChatArgs {
    fn default() -> Self {
        Self {
            frame: FrameArg::default(),
            line_max: LINE_BYTES_DEFAULT as u64,
            slow_reader: SlowReaderArg::default(),
            queue_messages: QUEUE_MESSAGES_DEFAULT as u32,
            events: EventsArg::default(),
        }
    }
}

impl From<ChatArgs> for Settings {
    fn from(args: ChatArgs) -> Self {
        Self {
            framing: match args.frame {
                FrameArg::Read => Framing::Read,
                FrameArg::Line => Framing::Line {
                    bytes_max: usize::try_from(args.line_max).unwrap_or(usize::MAX),
                },
            },
            slow: args.slow_reader.into(),
            // The bytes are the engine's limit for every stream.
            queue: QueueBounds {
                bytes_max: usize::MAX,
                messages_max: args.queue_messages as usize,
            },
        }
    }
}

/// A chat that runs, as the control thread holds it.
pub struct RunningChat {
    name: String,
    /// Its counters.
    pub room: Arc<Room>,
    controller: Controller<Message>,
    format: EventsArg,
    events: Receiver<Event>,
    lost: Arc<AtomicU64>,
    /// Refused connections that were told.
    refused: u64,
}

/// Something to be printed: an event in both of its forms.
pub struct Told {
    /// For programs.
    pub json: Value,
    /// For a person.
    pub words: String,
    /// Which of the two was asked for.
    pub format: EventsArg,
}

impl RunningChat {
    /// A chat on so many shards, and the service that is still to be given its endpoints.
    #[must_use]
    pub fn new(name: &str, args: ChatArgs, shards: u16) -> (Self, Service<Chat>) {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let unheard = Arc::clone(&lost);
        let report: Report = Arc::new(move |event| {
            if sender.try_send(event).is_err() {
                unheard.fetch_add(1, Ordering::Relaxed);
            }
        });
        let wanted = args.events != EventsArg::Off;
        let room = Room::new(args.into(), shards, wanted.then_some(report));
        let for_shards = Arc::clone(&room);
        let mut service = Service::new(name, move |shard| for_shards.shard(shard));
        if wanted {
            service = service.with_peer_addresses();
        }
        let running = Self {
            name: name.to_owned(),
            room,
            controller: service.controller(),
            format: args.events,
            events,
            lost,
            refused: 0,
        };
        (running, service)
    }

    /// Says a line of the console to everyone. `false` when the server does not take it.
    #[must_use]
    pub fn say(&self, line: &[u8]) -> bool {
        let mut message = self.room.admin_message(line);
        for _ in 0..POST_TRIES {
            match self.controller.post(CONSOLE_SHARD, message) {
                Ok(()) => return true,
                Err(back) => message = back,
            }
            std::thread::sleep(POST_INTERVAL);
        }
        false
    }

    /// What has happened since the last call; `refused` counts the connections that the engine
    /// refused until now.
    pub fn happened(&mut self, refused: u64) -> Vec<Told> {
        if self.format == EventsArg::Off {
            return Vec::new();
        }
        let name = self.name.as_str();
        let mut told = Vec::new();
        let mut tell = |json: Value, words: String| {
            told.push(Told {
                json,
                words,
                format: self.format,
            });
        };
        for event in self.events.try_iter().take(EVENTS_MAX) {
            match event {
                Event::Connected {
                    session,
                    transport,
                    peer,
                } => {
                    let from = peer.map(|peer| peer.to_string());
                    tell(
                        json!({
                            "type": "connected",
                            "service": name,
                            "session": session,
                            "transport": transport.to_string().to_lowercase(),
                            "peer": from,
                        }),
                        format!(
                            "{name}: session {session} connected by {transport}{}",
                            MaybeFrom(from.as_deref())
                        ),
                    );
                }
                Event::Disconnected { session, reason } => tell(
                    json!({
                        "type": "disconnected",
                        "service": name,
                        "session": session,
                        "reason": reason.to_string(),
                    }),
                    format!("{name}: session {session} disconnected: {reason}"),
                ),
            }
        }
        let more = refused.saturating_sub(self.refused);
        self.refused = refused;
        if more > 0 {
            tell(
                json!({ "type": "refused", "service": name, "count": more }),
                format!("{name}: {more} connections refused: too many are open"),
            );
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tell(
                json!({ "type": "events_lost", "service": name, "count": lost }),
                format!("{name}: {lost} events not shown: too many at once"),
            );
        }
        told
    }
}

struct MaybeFrom<'a>(Option<&'a str>);

impl fmt::Display for MaybeFrom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => write!(f, " from {peer}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        chat: ChatArgs,
    }

    #[test]
    fn no_flag_and_no_key_mean_the_same() {
        assert_eq!(Flags::parse_from(["test"]).chat, ChatArgs::default());
    }
}
