//! Runs engines on the simulated network: the part that a test talks to.
//!
//! A world holds any number of engines with any number of shards and decides, from its seed, which
//! of them takes its turn when. Nothing in it is a thread, a real clock or a real socket. When a
//! test that owns a world panics, the world prints its seed and how to replay it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::SimDriver;
use super::config::{FaultCounts, PathCounts, WorldConfig};
use super::network::{Network, Packet};
use crate::control::{ControlState, Notice, Stop};
use crate::driver::{Address, BoundDatagramSocket, BoundListener, BoundSocket};
use crate::engine::{AnyService, BoundAddress, Endpoint};
use crate::ids::{ListenerId, ServiceId, ShardId};
use crate::mailbox::shard_bells;
use crate::metrics::{ServiceSnapshot, ShardMetrics, ShardSnapshot};
use crate::shard::{Parts, Shard};
use crate::time::from_duration;
use crate::{Limits, Nanos, Protocol, Service, StartError};

/// A late wake-up for a message comes within this.
const LATE_MESSAGE: std::ops::Range<Nanos> = 1_000_000..20_000_000;
/// A stop that takes longer than this beyond the longest drain timeout is stuck.
const STOP_SLACK: Nanos = 10_000_000_000;
/// Turns without the clock moving on: past it two protocols answer each other for ever at once.
const TURNS_AT_ONCE_MAX: u32 = 1_000_000;

/// The seeds that a test over many seeds runs: that of `RINGMILL_SEED` alone, or as many as
/// `RINGMILL_SEEDS` says, or `count`.
///
/// # Panics
/// When one of the variables is set and is not a number.
#[must_use]
pub fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is {text:?}, but must be a number")),
        )
    };
    match number("RINGMILL_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("RINGMILL_SEEDS").unwrap_or(count)).collect(),
    }
}

/// An engine to be simulated.
pub struct EngineSpec {
    shards: u16,
    limits: Limits,
    addresses: Vec<IpAddr>,
    services: Vec<Box<dyn AnyService>>,
}

impl EngineSpec {
    /// An engine with this many shards, of small pools so that they run out sometimes.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        let limits = Limits {
            stream_pool_bytes: 256 << 10,
            datagram_buffers: 16,
            fill_buffers: 8,
            ..Limits::default()
        };
        Self {
            shards,
            limits,
            addresses: Vec::new(),
            services: Vec::new(),
        }
    }

    /// Bounds and timeouts.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Gives the engine's host an address. Engines with the same first address share a host.
    ///
    /// # Panics
    /// When the text is not an IP address.
    #[must_use]
    pub fn host(mut self, address: &str) -> Self {
        self.addresses.push(
            address
                .parse()
                .unwrap_or_else(|_| panic!("{address:?} is not an IP address")),
        );
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service<P: Protocol>(mut self, service: Service<P>) -> Self {
        self.services.push(service.erased());
        self
    }
}

/// One engine of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineId(usize);

/// A shard and when it is to run.
struct Slot {
    shard: Option<Shard>,
    port: super::PortId,
    /// Its turn takes until then.
    busy_until: Nanos,
    /// When it wakes up for what waits for it.
    wake_at: Option<Nanos>,
    /// The same, for messages and requests to stop.
    message_at: Option<Nanos>,
    held: ShardLeaks,
}

struct SimEngine {
    addresses: Vec<BoundAddress>,
    metrics: Vec<Arc<ShardMetrics>>,
    control: Arc<ControlState>,
    slots: Vec<Slot>,
    drain: Nanos,
}

/// What one shard still held when it had stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShardLeaks {
    /// Entries in the table of streams.
    pub streams: usize,
    /// Entries in the table of datagram sockets.
    pub sockets: usize,
    /// Bytes in send queues.
    pub queued_bytes: usize,
    /// Payloads in send queues of streams.
    pub queued_messages: usize,
    /// Descriptors of the driver.
    pub descriptors: usize,
    /// Pooled buffers, counted after the protocols were dropped.
    pub buffers: usize,
}

/// What is left when all engines have stopped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leaks {
    /// By engine and shard; all zero when nothing leaks.
    pub shards: BTreeMap<(EngineId, ShardId), ShardLeaks>,
    /// Shards that have not stopped.
    pub running: usize,
    /// Connections that the network still has.
    pub connections: usize,
    /// Datagram sockets that the network still has.
    pub sockets: usize,
}

impl Leaks {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running + self.connections + self.sockets == 0
            && self
                .shards
                .values()
                .all(|shard| *shard == ShardLeaks::default())
    }

    /// Panics when something is left.
    ///
    /// # Panics
    /// As said.
    pub fn assert_none(&self) {
        assert!(self.is_empty(), "something was not given back: {self:#?}");
    }
}

/// A simulation that does not come to where it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} after {now_ms} ms of virtual time: {state}; replay with RINGMILL_SEED={seed}")]
pub struct Stuck {
    /// What is wrong.
    pub what: &'static str,
    /// The seed of the world.
    pub seed: u64,
    /// When it was given up, milliseconds of virtual time.
    pub now_ms: u64,
    /// What every shard holds.
    pub state: String,
}

/// Engines on a simulated network. See [the module](super) for an example.
pub struct World {
    seed: u64,
    network: Rc<RefCell<Network>>,
    engines: Vec<SimEngine>,
    turns_at_once: u32,
}

impl World {
    /// An empty world. All that is left to chance in it follows from the seed.
    ///
    /// # Panics
    /// When an impairment of the configuration makes no sense.
    #[must_use]
    pub fn new(seed: u64, config: WorldConfig) -> Self {
        for model in [&config.forward, &config.backward] {
            if let Err(error) = model.validate() {
                panic!("the configuration of the world makes no sense: {error}");
            }
        }
        let network = Rc::new(RefCell::new(Network::new(seed, config)));
        Self {
            seed,
            network,
            engines: Vec::new(),
            turns_at_once: 0,
        }
    }

    /// Starts an engine: binds its endpoints and opens its shards.
    ///
    /// # Errors
    /// When an endpoint cannot be bound, as on a real host, or the specification asks for nothing.
    pub fn engine(&mut self, spec: EngineSpec) -> Result<EngineId, StartError> {
        let EngineSpec {
            shards,
            limits,
            mut addresses,
            services,
        } = spec;
        if services.is_empty() || shards == 0 {
            return Err(StartError::Configuration(
                "an engine needs a service and a shard".into(),
            ));
        }
        if addresses.is_empty() {
            addresses.push(IpAddr::from([
                10,
                255,
                (self.engines.len() / 250) as u8,
                (self.engines.len() % 250) as u8 + 1,
            ]));
        }
        let host = self.network.borrow_mut().host(&addresses);
        let bells = shard_bells(shards);
        let control = Arc::new(ControlState::new(Arc::clone(&bells), Vec::new()));
        let loads: Arc<[AtomicUsize]> = (0..shards).map(|_| AtomicUsize::new(0)).collect();
        let metrics: Vec<_> = (0..shards)
            .map(|_| Arc::new(ShardMetrics::new(services.len())))
            .collect();

        let mut bound = Vec::new();
        let mut guests: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
        for (service, definition) in services.iter().enumerate() {
            for (endpoint, wanted) in definition.endpoints().iter().enumerate() {
                let id = ListenerId {
                    service: service as ServiceId,
                    endpoint: endpoint as u16,
                };
                let (address, datagram) = match wanted {
                    Endpoint::Stream { address, .. } => (address.clone(), false),
                    Endpoint::Datagram(address) => (Address::Ip(*address), true),
                };
                let chosen = self
                    .network
                    .borrow_mut()
                    .choose_listen_address(host, &address, datagram);
                let address = chosen.map_err(|error| StartError::Bind {
                    address: address.to_string(),
                    error,
                    holder: None,
                })?;
                bound.push((
                    BoundAddress {
                        service: definition.name().to_owned(),
                        id,
                        address,
                        datagrams: datagram,
                    },
                    wanted.clone(),
                ));
            }
            let messages_max = limits.mailbox_messages_max;
            for (shard, guest) in definition
                .guests(service as ServiceId, &bells, messages_max)
                .into_iter()
                .enumerate()
            {
                guests[shard].push(guest);
            }
        }

        let siblings = Rc::new(RefCell::new(Vec::new()));
        let drivers: Result<Vec<_>, _> = (0..shards)
            .map(|shard| {
                SimDriver::new(&self.network, host, &siblings, &limits)
                    .map_err(|error| StartError::Shard { shard, error })
            })
            .collect();
        let mut engine = SimEngine {
            addresses: bound.iter().map(|(address, _)| address.clone()).collect(),
            metrics: metrics.clone(),
            control: Arc::clone(&control),
            slots: Vec::new(),
            drain: from_duration(limits.drain_timeout),
        };
        for (shard, (driver, guests)) in drivers?.into_iter().zip(guests).enumerate() {
            let mut parts = Parts {
                id: shard as ShardId,
                shards,
                limits: limits.clone(),
                metrics: Arc::clone(&metrics[shard]),
                control: Arc::clone(&control),
                bells: Arc::clone(&bells),
                guests,
                listeners: Vec::new(),
                sockets: Vec::new(),
                loads: Arc::clone(&loads),
            };
            for (BoundAddress { id, address, .. }, endpoint) in &bound {
                match (endpoint, address) {
                    (Endpoint::Datagram(_), Address::Ip(local)) => {
                        parts.sockets.push(BoundDatagramSocket {
                            service: id.service,
                            endpoint: Some(id.endpoint),
                            local: *local,
                            socket: BoundSocket::Simulated,
                        })
                    }
                    (Endpoint::Stream { wants_peer, .. }, _) => {
                        parts.listeners.push(BoundListener {
                            id: *id,
                            address: address.clone(),
                            socket: BoundSocket::Simulated,
                            wants_peer: *wants_peer,
                        })
                    }
                    (Endpoint::Datagram(_), Address::Unix(_)) => {
                        unreachable!("datagram endpoints are IP")
                    }
                }
            }
            let port = driver.port();
            let shard =
                Shard::open(Box::new(driver), parts).map_err(|error| StartError::Shard {
                    shard: shard as ShardId,
                    error,
                })?;
            let now = self.now();
            engine.slots.push(Slot {
                shard: Some(shard),
                port,
                busy_until: now,
                wake_at: Some(now),
                message_at: None,
                held: ShardLeaks::default(),
            });
        }
        self.engines.push(engine);
        Ok(EngineId(self.engines.len() - 1))
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Virtual time since the world began, ns.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.network.borrow().now
    }

    /// A number that follows from everything that happened so far and when: two runs with the same
    /// number are the same run.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.network.borrow().trace
    }

    /// The faults injected so far.
    #[must_use]
    pub fn faults(&self) -> FaultCounts {
        self.network.borrow().faults
    }

    /// What the network did to traffic so far.
    #[must_use]
    pub fn path(&self) -> PathCounts {
        self.network.borrow().path
    }

    /// Changes the world from now on: faults, impairments, delays.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut WorldConfig)) {
        change(&mut self.network.borrow_mut().config);
    }

    /// Puts a datagram into the network as if `from` had sent it: what an attacker does who forges
    /// a source. It arrives after the delay of a stream's segment, unless a partition is in its
    /// way; losses, doubling and the like of [`WorldConfig`] are not for it.
    pub fn inject_datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.network.borrow_mut().inject(Packet {
            from,
            to,
            ecn: 0,
            bytes: bytes.into(),
        });
    }

    /// Every bound endpoint of an engine.
    #[must_use]
    pub fn addresses(&self, engine: EngineId) -> &[BoundAddress] {
        &self.engines[engine.0].addresses
    }

    /// The address of a bound IP endpoint, by its position among all of the engine.
    ///
    /// # Panics
    /// When there is no such endpoint, or it is a Unix socket.
    #[must_use]
    pub fn ip_address(&self, engine: EngineId, endpoint: usize) -> SocketAddr {
        match self.engines[engine.0].addresses[endpoint].address {
            Address::Ip(address) => address,
            Address::Unix(_) => panic!("endpoint {endpoint} is a Unix socket"),
        }
    }

    /// Counters of one service, summed over the shards.
    #[must_use]
    pub fn service_totals(&self, engine: EngineId, service: usize) -> ServiceSnapshot {
        let snapshots = self.engines[engine.0]
            .metrics
            .iter()
            .map(|metrics| metrics.services[service].snapshot());
        snapshots.fold(ServiceSnapshot::default(), |sum, next| sum.plus(&next))
    }

    /// Counters of the shards themselves, summed.
    #[must_use]
    pub fn shard_totals(&self, engine: EngineId) -> ShardSnapshot {
        let snapshots = self.engines[engine.0]
            .metrics
            .iter()
            .map(|metrics| metrics.shard.snapshot());
        snapshots.fold(ShardSnapshot::default(), |sum, next| sum.plus(&next))
    }

    /// The next thing that an operator of the engine should hear of.
    #[must_use]
    pub fn take_notice(&self, engine: EngineId) -> Option<Notice> {
        self.engines[engine.0].control.take_notice()
    }

    /// Asks an engine to stop gracefully; run on to see it end.
    pub fn stop(&mut self, engine: EngineId) {
        self.engines[engine.0].control.request(Stop::Drain);
    }

    /// Asks an engine to end now: what is queued is lost.
    pub fn stop_now(&mut self, engine: EngineId) {
        self.engines[engine.0].control.request(Stop::Now);
    }

    /// Ends an engine as a killed process ends: no handler is called, its kernel closes its
    /// connections. Its host stays, so that it can be started again.
    pub fn kill(&mut self, engine: EngineId) {
        for slot in &mut self.engines[engine.0].slots {
            slot.shard = None;
        }
    }

    /// Whether all shards of an engine have ended.
    #[must_use]
    pub fn has_ended(&self, engine: EngineId) -> bool {
        self.engines[engine.0]
            .slots
            .iter()
            .all(|slot| slot.shard.is_none())
    }

    /// Runs until the condition holds.
    ///
    /// # Errors
    /// When it does not within `limit` (ns of virtual time from now).
    pub fn run_until(
        &mut self,
        mut done: impl FnMut(&Self) -> bool,
        limit: Nanos,
    ) -> Result<(), Stuck> {
        let deadline = self.now().saturating_add(limit);
        // What came from outside: a stop, a message.
        self.wake_shards();
        while !done(self) {
            match self.next_at() {
                None => return Err(self.stuck("nothing is left to happen")),
                Some(at) if at > deadline => {
                    self.move_clock(deadline);
                    return Err(self.stuck("the condition does not hold"));
                }
                Some(_) => self.step(),
            }
            if self.turns_at_once > TURNS_AT_ONCE_MAX {
                return Err(self.stuck("the clock stands still"));
            }
        }
        Ok(())
    }

    /// Runs for a length of virtual time.
    pub fn run_for(&mut self, time: Duration) {
        let deadline = self.now().saturating_add(from_duration(time));
        self.wake_shards();
        while self.next_at().is_some_and(|at| at <= deadline) {
            self.step();
        }
        self.move_clock(deadline);
    }

    /// Stops all engines gracefully and runs until they and the network are at rest.
    ///
    /// # Errors
    /// When they do not end within their drain timeouts and 10 s more.
    pub fn stop_all(&mut self) -> Result<(), Stuck> {
        for engine in &self.engines {
            engine.control.request(Stop::Drain);
        }
        let drain = self
            .engines
            .iter()
            .map(|engine| engine.drain)
            .max()
            .unwrap_or(0);
        let ended =
            |world: &Self| (0..world.engines.len()).all(|engine| world.has_ended(EngineId(engine)));
        self.run_until(ended, drain + STOP_SLACK)?;
        // What is still under way arrives or is thrown away.
        while self.network.borrow().next_at().is_some() {
            self.network.borrow_mut().step();
        }
        Ok(())
    }

    /// What has not been given back. Meaningful after [`World::stop_all`].
    #[must_use]
    pub fn leaks(&self) -> Leaks {
        let network = self.network.borrow();
        let mut leaks = Leaks {
            connections: network.connections.len(),
            sockets: network.sockets.len(),
            ..Leaks::default()
        };
        for (number, engine) in self.engines.iter().enumerate() {
            for (shard, slot) in engine.slots.iter().enumerate() {
                leaks.running += usize::from(slot.shard.is_some());
                let port = &network.ports[slot.port];
                let pools = [&port.streams, &port.datagrams, &port.fill];
                let buffers = pools
                    .iter()
                    .map(|pool| pool.capacity() - pool.available())
                    .sum();
                leaks.shards.insert(
                    (EngineId(number), shard as ShardId),
                    ShardLeaks {
                        buffers,
                        ..slot.held
                    },
                );
            }
        }
        leaks
    }

    // ---- the scheduler -----------------------------------------------------------------------

    fn move_clock(&mut self, to: Nanos) {
        let mut network = self.network.borrow_mut();
        network.now = network.now.max(to);
    }

    /// When a slot runs next.
    fn slot_at(network: &Network, slot: &mut Slot) -> Option<Nanos> {
        let shard = slot.shard.as_mut()?;
        let mut at = [slot.wake_at, slot.message_at].into_iter().flatten().min();
        if let Some(mut deadline) = shard.next_deadline() {
            if !shard.stays_awake(deadline) {
                deadline += network.config.timer_lateness;
            }
            at = Some(at.map_or(deadline, |at| at.min(deadline)));
        }
        Some(at?.max(slot.busy_until).max(network.now))
    }

    fn next_slot(&mut self) -> Option<(Nanos, usize, usize)> {
        let network = self.network.borrow();
        let mut next = None;
        for (engine, simulated) in self.engines.iter_mut().enumerate() {
            for (shard, slot) in simulated.slots.iter_mut().enumerate() {
                let at = Self::slot_at(&network, slot);
                if at.is_some_and(|at| next.is_none_or(|(earliest, _, _)| at < earliest)) {
                    next = at.map(|at| (at, engine, shard));
                }
            }
        }
        next
    }

    fn next_at(&mut self) -> Option<Nanos> {
        let slot = self.next_slot().map(|(at, _, _)| at);
        let network = self.network.borrow().next_at();
        slot.into_iter().chain(network).min()
    }

    /// Lets the next thing happen: in the network, or one turn of one shard.
    fn step(&mut self) {
        let network_at = self.network.borrow().next_at();
        match self.next_slot() {
            Some((at, engine, shard)) if network_at.is_none_or(|network_at| at < network_at) => {
                self.turn(at, engine, shard);
            }
            _ => {
                let mut network = self.network.borrow_mut();
                let before = network.now;
                network.step();
                if network.now > before {
                    self.turns_at_once = 0;
                }
            }
        }
        self.wake_shards();
    }

    fn turn(&mut self, at: Nanos, engine: usize, shard: usize) {
        let seed = self.seed;
        {
            let mut network = self.network.borrow_mut();
            self.turns_at_once = if at > network.now {
                0
            } else {
                self.turns_at_once + 1
            };
            network.now = at;
        }
        let slot = &mut self.engines[engine].slots[shard];
        let Some(running) = &mut slot.shard else {
            return;
        };
        slot.wake_at = None;
        slot.message_at = None;
        if let Err(error) = running.turn() {
            panic!("shard {shard} of engine {engine} failed (seed {seed}): {error}");
        }
        if running.has_ended() {
            let (streams, sockets, queued_bytes) = running.table_counts();
            let queued_messages = running.queued_messages();
            let descriptors = running.held().descriptors;
            slot.held = ShardLeaks {
                streams,
                sockets,
                queued_bytes,
                queued_messages,
                descriptors,
                buffers: 0,
            };
            slot.shard = None;
            return;
        }
        let network = &mut *self.network.borrow_mut();
        slot.busy_until = at + network.random.within(&network.config.turn_time);
        // The loop goes straight on while it has something to do.
        if running.has_work() {
            slot.wake_at = Some(slot.busy_until);
        } else if network.random.happens(network.config.faults.spurious_wake) {
            network.faults.spurious_wake += 1;
            slot.wake_at = Some(slot.busy_until);
        } else if let Some(deadline) = running
            .next_deadline()
            .filter(|deadline| *deadline > slot.busy_until)
            && network
                .random
                .happens(network.config.faults.early_timer_wake)
        {
            network.faults.early_timer_wake += 1;
            let early = network.random.below(deadline - slot.busy_until);
            slot.wake_at = Some(slot.busy_until + early);
        }
    }

    /// Decides when sleeping shards wake up for what has come for them.
    fn wake_shards(&mut self) {
        let network = &mut *self.network.borrow_mut();
        let now = network.now;
        for slot in self.engines.iter_mut().flat_map(|engine| &mut engine.slots) {
            let Some(shard) = &slot.shard else { continue };
            // A wake-up in the far future (an early timer) is not what this is about.
            let wake_time = &network.config.wake_time;
            let soon = now + wake_time.end;
            let sleeps = |slot: &Slot| slot.wake_at.is_none_or(|at| at > soon);
            if network.ports[slot.port].has_events(now) && sleeps(slot) {
                slot.wake_at = Some(now + network.random.within(wake_time));
            }
            if slot.message_at.is_none() && sleeps(slot) && shard.has_work() {
                let delay = if network
                    .random
                    .happens(network.config.faults.late_message_wake)
                {
                    network.faults.late_message_wake += 1;
                    network.random.within(&LATE_MESSAGE)
                } else {
                    network.random.within(&network.config.wake_time)
                };
                slot.message_at = Some(now + delay);
            }
        }
    }

    fn stuck(&mut self, what: &'static str) -> Stuck {
        let mut state = String::new();
        let network = self.network.borrow();
        for (engine, simulated) in self.engines.iter_mut().enumerate() {
            for (number, slot) in simulated.slots.iter_mut().enumerate() {
                use std::fmt::Write as _;
                let _ = match &mut slot.shard {
                    None => write!(state, "engine {engine} shard {number} has ended; "),
                    Some(shard) => {
                        let (streams, sockets, queued) = shard.table_counts();
                        write!(
                            state,
                            "engine {engine} shard {number}: {streams} streams, {sockets} sockets, \
                             {queued} bytes queued, {:?}, has work: {}, events wait: {}, next timer: {:?}; ",
                            shard.held(),
                            shard.has_work(),
                            network.ports[slot.port].has_events(network.now),
                            shard.next_deadline(),
                        )
                    }
                };
            }
        }
        state.push_str(&format!(
            "{} connections in the network",
            network.connections.len()
        ));
        Stuck {
            what,
            seed: self.seed,
            now_ms: network.now / 1_000_000,
            state,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let now = self
                .network
                .try_borrow()
                .map(|network| network.now / 1_000_000)
                .unwrap_or(0);
            eprintln!(
                "the simulation failed with seed {} at {now} ms of virtual time; \
                 replay it with RINGMILL_SEED={} cargo test <the test's name>",
                self.seed, self.seed,
            );
        }
    }
}
