//! Steering a running NAT from outside its shards: the console, the control socket and tests.
//!
//! Questions are answered from shared counters without waking a shard. Commands are posted to every
//! shard, which does them in small steps between datagrams, and answered when all shards have. One
//! control thread at a time; it may block, the shards never wait for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ringmill_engine::impairment::{ImpairmentCounters, ImpairmentSnapshot};
use ringmill_engine::{Controller, Nanos, Service};
use serde::Serialize;

use super::counters::{NatCounters, NatSnapshot};
use super::destination::{Destination, DestinationTotals, State};
use super::forwarder::Forwarder;
use super::settings::{DESTINATIONS_MAX, Settings};
use super::tap::Tap;

/// Events that wait for who watches; more are counted and lost.
const EVENTS_MAX: usize = 4096;
/// A command that a shard has not finished by then is reported as unanswered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What all shards and the control thread share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    /// Where all random decisions come from.
    pub(crate) seed: u64,
    /// Entries of all shards.
    pub(crate) entries: AtomicUsize,
    /// Flows seen so far, where they are numbered by arrival.
    pub(crate) flows: AtomicU64,
    /// Turns of round robin.
    pub(crate) turns: AtomicUsize,
    pub(crate) reverse_update: AtomicBool,
    /// Time zero of the scenario.
    pub(crate) began: OnceLock<Nanos>,
    pub(crate) shards: Box<[ShardShared]>,
    pub(crate) tap: Option<Arc<dyn Tap>>,
    pub(crate) destinations: RwLock<Vec<Arc<Destination>>>,
    events: SyncSender<Event>,
    events_lost: AtomicU64,
}

/// What one shard shows.
#[derive(Default)]
pub(crate) struct ShardShared {
    pub(crate) counters: NatCounters,
    /// Per direction, forward first.
    pub(crate) impaired: [ImpairmentCounters; 2],
}

impl Shared {
    pub(crate) fn say(&self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            self.events_lost.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn listed(&self) -> Vec<Arc<Destination>> {
        let destinations = self.destinations.read();
        destinations.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A destination went from one state to another.
    Destination {
        /// Its name.
        destination: String,
        /// Where it went.
        state: State,
        /// It came back because it answered.
        revived: bool,
    },
    /// The scenario is in another phase.
    Phase {
        /// Its name.
        phase: String,
    },
    /// An entry ended because nothing passed.
    TimedOut {
        /// The client.
        client: SocketAddr,
        /// The local port that it had.
        port: u16,
    },
}

/// A message to a shard.
pub enum Message {
    /// A destination was added; answered once this shard deals clients to it.
    Added(Arc<Destination>, Sender<Done>),
    /// A command, and where the answer goes.
    Command(Command, Sender<Done>),
}

/// What a shard can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// End so many entries, those used longest ago first.
    Clear(usize),
    /// Give every entry a new local socket and a new random destination.
    Reassign,
    /// Give every entry a new random destination.
    Rebalance,
}

/// What a shard has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Done {
    /// Entries looked at.
    pub entries: usize,
    /// Entries ended, moved or given another destination.
    pub changed: usize,
}

/// A command that could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// A shard did not answer.
    #[error("a shard did not answer within 30 s: it is overloaded or has stopped")]
    Unanswered,
    /// There are too many.
    #[error(
        "there are {DESTINATIONS_MAX} destinations already, which is the most: remove one first"
    )]
    TooManyDestinations,
}

/// A destination as shown to the user.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DestinationInfo {
    /// As the user wrote it.
    pub name: String,
    /// Its address.
    pub address: SocketAddr,
    /// Whether it is in use.
    pub state: State,
    /// Seconds since a datagram last passed to or from it; `None` never.
    pub idle_s: Option<f64>,
    /// What passed.
    #[serde(flatten)]
    pub totals: DestinationTotals,
}

/// The state of a NAT.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// Entries now.
    pub entries: usize,
    /// Whether answers from other destinations move an entry.
    pub reverse_update: bool,
    /// All destinations, in the order in which they were added.
    pub destinations: Vec<DestinationInfo>,
    /// All counters of all shards.
    pub counters: NatSnapshot,
    /// What the impairment did forward.
    pub forward: ImpairmentSnapshot,
    /// What the impairment did backward.
    pub backward: ImpairmentSnapshot,
    /// Events that nobody took in time.
    pub events_lost: u64,
}

/// A NAT seen from outside its shards.
pub struct Nat {
    shared: Arc<Shared>,
    controller: OnceLock<Controller<Message>>,
    events: Mutex<Receiver<Event>>,
}

impl Nat {
    /// A NAT for an engine of so many shards; nothing runs before its [service](Self::service) does.
    #[must_use]
    pub fn new(settings: Settings, shards: u16) -> Self {
        Self::with_tap(settings, shards, None)
    }

    /// The same, with copies of all that comes in and goes out for a tap.
    #[must_use]
    pub fn with_tap(settings: Settings, shards: u16, tap: Option<Arc<dyn Tap>>) -> Self {
        let named = settings.destinations.iter();
        let destinations = named
            .map(|(name, address)| Arc::new(Destination::new(name, *address, shards)))
            .collect();
        let (events, received) = sync_channel(EVENTS_MAX);
        let shared = Shared {
            entries: AtomicUsize::new(0),
            flows: AtomicU64::new(0),
            turns: AtomicUsize::new(0),
            reverse_update: AtomicBool::new(settings.reverse_update),
            began: OnceLock::new(),
            shards: (0..shards).map(|_| ShardShared::default()).collect(),
            destinations: RwLock::new(destinations),
            events,
            events_lost: AtomicU64::new(0),
            tap,
            seed: settings.seed,
            settings,
        };
        Self {
            shared: Arc::new(shared),
            controller: OnceLock::new(),
            events: Mutex::new(received),
        }
    }

    /// The service for the engine; the caller binds its endpoints. Taken once.
    pub fn service(&self, name: impl Into<String>) -> Service<Forwarder> {
        let shared = Arc::clone(&self.shared);
        let service = Service::new(name, move |shard| {
            Forwarder::new(Arc::clone(&shared), shard)
        });
        let _ = self.controller.set(service.controller());
        service
    }

    /// The settings that it began with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// The next event, if there is one.
    pub fn take_event(&self) -> Option<Event> {
        let events = self.events.lock();
        events
            .unwrap_or_else(PoisonError::into_inner)
            .try_recv()
            .ok()
    }

    /// The state at `now` (the clock of the shards).
    #[must_use]
    pub fn info(&self, now: Nanos) -> Info {
        let destinations = self.shared.listed().into_iter().map(|next| {
            let used = next.last_used();
            DestinationInfo {
                name: next.name.clone(),
                address: next.address,
                state: next.state(),
                idle_s: (used > 0).then(|| now.saturating_sub(used) as f64 / 1e9),
                totals: next.totals(),
            }
        });
        let mut impaired = [ImpairmentSnapshot::default(); 2];
        let mut counters = NatSnapshot::default();
        for shard in &self.shared.shards {
            counters = counters.plus(&shard.counters.snapshot());
            for (sum, next) in impaired.iter_mut().zip(&shard.impaired) {
                *sum = sum.plus(&next.snapshot());
            }
        }
        let [forward, backward] = impaired;
        Info {
            entries: self.shared.entries.load(Relaxed),
            reverse_update: self.shared.reverse_update.load(Relaxed),
            destinations: destinations.collect(),
            counters,
            forward,
            backward,
            events_lost: self.shared.events_lost.load(Relaxed),
        }
    }

    /// Ends entries: all, or so many. Gives how many.
    ///
    /// # Errors
    /// When a shard does not answer.
    pub fn clear(&self, count: Option<usize>) -> Result<usize, ControlError> {
        let mut left = count.unwrap_or(usize::MAX);
        let mut parts = Vec::with_capacity(self.shared.shards.len());
        for shard in &self.shared.shards {
            let part = left.min(shard.counters.entries.get() as usize);
            left -= part;
            // All is all: also what came since the counter was read.
            parts.push(Command::Clear(count.map_or(usize::MAX, |_| part)));
        }
        Ok(self.order(|shard| parts[shard])?.changed)
    }

    /// Gives every entry a new local socket and a new random destination.
    ///
    /// # Errors
    /// When a shard does not answer.
    pub fn reassign(&self) -> Result<Done, ControlError> {
        self.order(|_| Command::Reassign)
    }

    /// Takes destinations that are not in use back and gives every entry a random one. Gives how
    /// many entries there are and how many have another one now.
    ///
    /// # Errors
    /// When a shard does not answer.
    pub fn rebalance(&self) -> Result<Done, ControlError> {
        for destination in self.shared.listed() {
            if destination.state() != State::Active {
                destination.reinstate();
            }
        }
        self.order(|_| Command::Rebalance)
    }

    /// Adds a destination; `false` when it is there.
    ///
    /// # Errors
    /// When there are too many, or a shard does not answer.
    pub fn add(&self, name: &str, address: SocketAddr) -> Result<bool, ControlError> {
        let mut destinations = self
            .shared
            .destinations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if destinations.iter().any(|next| next.address == address) {
            return Ok(false);
        }
        if destinations.len() >= DESTINATIONS_MAX {
            return Err(ControlError::TooManyDestinations);
        }
        let shards = self.shared.shards.len() as u16;
        let added = Arc::new(Destination::new(name, address, shards));
        destinations.push(Arc::clone(&added));
        drop(destinations);
        self.tell(|_, answer| Message::Added(Arc::clone(&added), answer))?;
        Ok(true)
    }

    /// Removes a destination; `false` when it was not there. Its entries get another one with their
    /// next datagram.
    pub fn remove(&self, address: SocketAddr) -> bool {
        let mut destinations = self
            .shared
            .destinations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let place = destinations.iter().position(|next| next.address == address);
        if let Some(place) = place {
            destinations.remove(place).remove();
        }
        place.is_some()
    }

    /// Whether datagrams go to the port at which they came.
    #[must_use]
    pub fn keeps_port(&self) -> bool {
        self.shared.settings.keep_port
    }

    /// Whether answers from other destinations move an entry from now on.
    pub fn set_reverse_update(&self, on: bool) {
        self.shared.reverse_update.store(on, Relaxed);
    }

    fn order(&self, command: impl Fn(usize) -> Command) -> Result<Done, ControlError> {
        self.tell(|shard, answer| Message::Command(command(shard), answer))
    }

    /// Sends a message to every shard and waits until all have done it.
    fn tell(&self, message: impl Fn(usize, Sender<Done>) -> Message) -> Result<Done, ControlError> {
        let (sender, receiver) = channel();
        let shards = self.shared.shards.len();
        for shard in 0..shards {
            self.post(shard as u16, message(shard, sender.clone()))?;
        }
        drop(sender);
        let mut sum = Done::default();
        for _ in 0..shards {
            let done = receiver
                .recv_timeout(ANSWER_TIMEOUT)
                .map_err(|_| ControlError::Unanswered)?;
            sum.entries += done.entries;
            sum.changed += done.changed;
        }
        Ok(sum)
    }

    /// Posts a message, waiting a while for room in a mailbox that is full.
    fn post(&self, shard: u16, mut message: Message) -> Result<(), ControlError> {
        let controller = self.controller.get().ok_or(ControlError::Unanswered)?;
        let patience = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match controller.post(shard, message) {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() > patience => return Err(ControlError::Unanswered),
                Err(back) => message = back,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
