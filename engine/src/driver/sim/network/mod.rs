//! The simulated network: hosts, connections, datagrams and a virtual clock.
//!
//! It stands where the kernel stands. Everything that takes time is a happening in one queue,
//! ordered by (time, number), so that a run is the same whenever the seed is. Whatever a shard
//! must look at is put on its port; the shard's driver takes it from there in its wait. The
//! network never calls a driver or a shard.

mod connecting;
mod datagrams;
mod hosts;
mod streams;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};

use self::datagrams::{Flow, FlowKey};
pub(super) use self::datagrams::{Packet, SimSocket};
use self::hosts::Host;
pub(super) use self::hosts::Port;
pub(super) use self::streams::{Connection, Fin, Owner};
use super::config::{FaultCounts, PathCounts, WorldConfig};
use super::random::Random;
use crate::Nanos;
use crate::driver::Address;
use crate::impairment::{Departure, ImpairmentCounters, mix};

pub(super) type PortId = usize;
pub(super) type HostId = usize;
pub(super) type ConnectionId = u64;
pub(super) type SimSocketId = u64;

/// The client's end and the server's end of a connection.
pub(super) const CLIENT: usize = 0;
pub(super) const SERVER: usize = 1;

const MILLI: Nanos = 1_000_000;
/// How late the effects of a fault are.
const FAULT_DELAY: std::ops::Range<Nanos> = 1_000..5 * MILLI;
/// How long the kernel keeps a closed descriptor's last request.
const RELEASE_DELAY: std::ops::Range<Nanos> = 0..200_000;

/// A request that the kernel has let go of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Released {
    Stream(u32),
    Socket(u32),
    /// A datagram socket (by table index) has room to send again.
    Writable(SimSocketId),
}

enum Happening {
    Syn(ConnectionId),
    Answer(ConnectionId, Result<(), i32>),
    Segment(ConnectionId, usize, Vec<u8>),
    Fin(ConnectionId, usize),
    Acknowledge(ConnectionId, usize, usize),
    Window(ConnectionId, usize),
    /// A reset arrives at this end.
    Reset(ConnectionId, usize),
    InjectedReset(ConnectionId),
    Ready(ConnectionId, usize),
    Datagram(Packet),
    /// A refusal comes back to this address.
    Refused {
        to: SocketAddr,
        from: SocketAddr,
    },
    SocketReady(SimSocketId),
    Expire(FlowKey),
    Released(PortId, Released),
    /// Only moves the clock, so that a port is looked at again.
    Tick,
}

struct Scheduled {
    at: Nanos,
    number: u64,
    happening: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// See the module documentation.
pub(super) struct Network {
    pub(super) now: Nanos,
    pub(super) random: Random,
    pub(super) config: WorldConfig,
    pub(super) faults: FaultCounts,
    pub(super) path: PathCounts,
    pub(super) trace: u64,
    seed: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    numbers: u64,
    hosts: Vec<Host>,
    host_of: BTreeMap<IpAddr, HostId>,
    pub(super) ports: Vec<Port>,
    // Looked up by key only, never walked: the order of a hash map is not reproducible.
    listening: HashMap<(HostId, Address), Vec<(PortId, usize)>>,
    bound: BTreeMap<(HostId, SocketAddr), Vec<SimSocketId>>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    next_connection: ConnectionId,
    tuples: BTreeMap<(SocketAddr, SocketAddr), ConnectionId>,
    pub(super) sockets: BTreeMap<SimSocketId, SimSocket>,
    next_socket: SimSocketId,
    flows: BTreeMap<FlowKey, Flow>,
    /// When the links of flows are looked at for what they hold: each moment once.
    expiries: BTreeSet<(FlowKey, Nanos)>,
    departures: Vec<Departure<Packet>>,
    impaired: ImpairmentCounters,
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Network {
    pub(super) fn new(seed: u64, config: WorldConfig) -> Self {
        Self {
            now: 0,
            random: Random::new(seed),
            config,
            faults: FaultCounts::default(),
            path: PathCounts::default(),
            trace: mix(seed),
            seed,
            queue: BinaryHeap::new(),
            numbers: 0,
            hosts: Vec::new(),
            host_of: BTreeMap::new(),
            ports: Vec::new(),
            listening: HashMap::new(),
            bound: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 1,
            tuples: BTreeMap::new(),
            sockets: BTreeMap::new(),
            next_socket: 1,
            flows: BTreeMap::new(),
            expiries: BTreeSet::new(),
            departures: Vec::new(),
            impaired: ImpairmentCounters::default(),
        }
    }

    /// Adds to the trace: what a run did, in order.
    pub(super) fn note(&mut self, what: u64, detail: u64) {
        self.trace = mix(self.trace
            ^ mix(self.now ^ what << 56)
            ^ detail.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }

    fn schedule(&mut self, at: Nanos, happening: Happening) {
        self.numbers += 1;
        let at = at.max(self.now);
        self.queue.push(Reverse(Scheduled {
            at,
            number: self.numbers,
            happening,
        }));
    }

    fn fault_delay(&mut self) -> Nanos {
        self.now + self.random.within(&FAULT_DELAY)
    }

    /// When the next thing happens in the network.
    pub(super) fn next_at(&self) -> Option<Nanos> {
        self.queue.peek().map(|Reverse(scheduled)| scheduled.at)
    }

    /// Lets the next thing happen.
    pub(super) fn step(&mut self) {
        let Some(Reverse(Scheduled { at, happening, .. })) = self.queue.pop() else {
            return;
        };
        self.now = self.now.max(at);
        self.happen(happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Syn(id) => self.syn(id),
            Happening::Answer(id, outcome) => self.answer(id, outcome),
            Happening::Segment(id, from, bytes) => self.segment(id, from, &bytes),
            Happening::Fin(id, from) => {
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                connection.pipes[from].fin = Fin::Arrived;
                if connection.ends[1 - from].reading {
                    self.mark_ready(id, 1 - from);
                }
                self.reap(id);
            }
            Happening::Acknowledge(id, from, count) => {
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                connection.pipes[from].unacknowledged -= count;
                if connection.ends[from].blocked {
                    self.mark_ready(id, from);
                }
                self.pump(id, from);
            }
            Happening::Window(id, from) => {
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                connection.pipes[from].window_update = false;
                self.pump(id, from);
            }
            Happening::Reset(id, end) => self.reset_arrives(id, end),
            Happening::InjectedReset(id) => {
                let Some(connection) = self.connections.get(&id) else {
                    return;
                };
                let open = connection
                    .ends
                    .iter()
                    .all(|end| end.owner.is_some() && !end.closed && !end.connecting);
                if open && !connection.reset {
                    self.faults.connection_reset += 1;
                    self.path.resets += 1;
                    self.reset_arrives(id, CLIENT);
                    self.reset_arrives(id, SERVER);
                }
            }
            Happening::Ready(id, end) => self.mark_ready(id, end),
            Happening::Datagram(packet) => self.datagram_arrives(packet),
            Happening::Refused { to, from } => self.refused(to, from),
            Happening::SocketReady(id) => self.mark_socket_ready(id),
            Happening::Expire(key) => self.expire(key),
            Happening::Released(port, released) => {
                if self.ports[port].open {
                    self.ports[port].released.push(released);
                }
            }
            Happening::Tick => {}
        }
    }

    pub(super) fn release_later(&mut self, port: PortId, released: Released) {
        let at = self.now + self.random.within(&RELEASE_DELAY);
        self.schedule(at, Happening::Released(port, released));
    }

    pub(super) fn writable_later(&mut self, port: PortId, socket: SimSocketId) {
        let at = self.fault_delay();
        self.schedule(at, Happening::Released(port, Released::Writable(socket)));
    }

    /// The completion queue of a port overflows for a while.
    pub(super) fn hide(&mut self, port: PortId) {
        let until = self.fault_delay();
        self.ports[port].hidden_until = until;
        self.schedule(until, Happening::Tick);
    }
}
