//! The simulated network: hosts, connections, datagrams and a virtual clock.
//!
//! It stands where the kernel stands. Everything that takes time is a happening in one queue,
//! ordered by (time, number), so that a run is the same whenever the seed is. Whatever a shard
//! must look at is put on its port; the shard's driver takes it from there in its wait. The
//! network never calls a driver or a shard.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::config::{FaultCounts, PathCounts, WorldConfig};
use super::random::Random;
use crate::driver::Address;
use crate::ids::ListenerId;
use crate::impairment::{Decider, Departure, Direction, Dropped, Link, mix};
use crate::sys::buffer::Pool;
use crate::{Ecn, Nanos};

pub(super) type PortId = usize;
pub(super) type HostId = usize;
pub(super) type ConnectionId = u64;
pub(super) type SimSocketId = u64;

/// The client's end and the server's end of a connection.
pub(super) const CLIENT: usize = 0;
pub(super) const SERVER: usize = 1;

const MILLI: Nanos = 1_000_000;
/// A dropped SYN comes again after this, as Linux does it (TCP_TIMEOUT_INIT).
const SYN_RETRY: Nanos = 1_000 * MILLI;
const SYN_TRIES_MAX: u32 = 5;
/// When a lost connect is given up.
const CONNECT_TIMEOUT: Nanos = 3_000 * MILLI;
/// An injected reset comes within this.
const RESET_WITHIN: Nanos = 250 * MILLI;
/// How late the effects of a fault are.
const FAULT_DELAY: std::ops::Range<Nanos> = 1_000..5 * MILLI;
/// How long the kernel keeps a closed descriptor's last request.
const RELEASE_DELAY: std::ops::Range<Nanos> = 0..200_000;
/// The first port that the simulator gives away by itself, as Linux does.
const FIRST_PORT: u16 = 32_768;

/// Which way FIN has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Fin {
    No,
    Wanted,
    Sent,
    Arrived,
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Taken from the sender, not yet on its way.
    unsent: VecDeque<u8>,
    in_flight: usize,
    /// On its way or arrived, but the sender does not know yet.
    unacknowledged: usize,
    pub(super) received: VecDeque<u8>,
    pub(super) fin: Fin,
    last_arrival: Nanos,
    send_bytes_max: usize,
    receive_bytes_max: usize,
    window_update: bool,
}

impl Pipe {
    pub(super) fn room(&self) -> usize {
        self.send_bytes_max
            .saturating_sub(self.unsent.len() + self.unacknowledged)
    }

    fn is_done(&self) -> bool {
        self.unsent.is_empty() && self.in_flight == 0 && self.fin == Fin::Arrived
    }
}

/// Who holds one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) port: PortId,
    /// Position in the shard's table of streams.
    pub(super) index: u32,
}

#[derive(Debug, Default)]
pub(super) struct End {
    host: HostId,
    pub(super) owner: Option<Owner>,
    /// The outcome of the connect, until it is told.
    pub(super) outcome: Option<Result<(), i32>>,
    pub(super) connecting: bool,
    pub(super) reading: bool,
    /// Already on the port's list.
    ready: bool,
    /// The driver has more to send and waits for room.
    pub(super) blocked: bool,
    pub(super) error: Option<i32>,
    /// Failure or end was told.
    pub(super) failed: bool,
    pub(super) ended: bool,
    /// The application has let go of it.
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ends: [End; 2],
    /// `pipes[i]` carries what end `i` sends.
    pub(super) pipes: [Pipe; 2],
    pub(super) client: Option<SocketAddr>,
    to: Address,
    syn_tries: u32,
    /// A reset has been sent by one of the ends: nothing more passes.
    reset: bool,
    /// The server's side has taken the SYN.
    established: bool,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) wants_peer: bool,
    pub(super) armed: bool,
    pub(super) backlog: VecDeque<ConnectionId>,
}

/// One datagram in the network or in a socket.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: Ecn,
    pub(super) bytes: std::rc::Rc<[u8]>,
}

#[derive(Debug)]
pub(super) struct SimSocket {
    pub(super) port: PortId,
    pub(super) index: u32,
    host: HostId,
    pub(super) local: SocketAddr,
    pub(super) peer: Option<SocketAddr>,
    pub(super) reading: bool,
    ready: bool,
    pub(super) error: Option<i32>,
    pub(super) received: VecDeque<Packet>,
    pub(super) received_bytes: usize,
}

/// A request that the kernel has let go of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Released {
    Stream(u32),
    Socket(u32),
    /// A datagram socket (by table index) has room to send again.
    Writable(SimSocketId),
}

/// What waits for one shard.
pub(super) struct Port {
    pub(super) host: HostId,
    pub(super) listeners: Vec<Listener>,
    pub(super) ready: Vec<(ConnectionId, usize)>,
    pub(super) ready_sockets: Vec<SimSocketId>,
    pub(super) adopted: VecDeque<(ConnectionId, ListenerId)>,
    pub(super) released: Vec<Released>,
    /// Ends and sockets that wait for a free buffer.
    pub(super) starved: Vec<(ConnectionId, usize)>,
    pub(super) starved_sockets: Vec<SimSocketId>,
    /// The completion queue has overflowed: nothing is seen before this moment.
    pub(super) hidden_until: Nanos,
    pub(super) streams: Pool,
    pub(super) datagrams: Pool,
    pub(super) fill: Pool,
    open: bool,
}

impl Port {
    /// Whether the driver's next wait finds something.
    pub(super) fn has_events(&self, now: Nanos) -> bool {
        now >= self.hidden_until
            && (!self.ready.is_empty()
                || !self.ready_sockets.is_empty()
                || !self.adopted.is_empty()
                || !self.released.is_empty()
                || self
                    .listeners
                    .iter()
                    .any(|listener| listener.armed && !listener.backlog.is_empty())
                || (!self.starved.is_empty() && self.streams.available() > 0)
                || (!self.starved_sockets.is_empty() && self.datagrams.available() > 0))
    }
}

struct Host {
    addresses: Vec<IpAddr>,
    next_port: u16,
}

struct Flow {
    /// The end that sent first.
    first: SocketAddr,
    links: [Link<Packet>; 2],
}

type FlowKey = (SocketAddr, SocketAddr);

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
    departures: Vec<Departure<Packet>>,
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn address_hash(address: &SocketAddr) -> u64 {
    let hash = match address.ip() {
        IpAddr::V4(ip) => mix(u64::from(u32::from(ip))),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            mix(mix(bits as u64) ^ (bits >> 64) as u64)
        }
    };
    mix(hash ^ u64::from(address.port()))
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
            departures: Vec::new(),
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

    // ---- hosts, ports, addresses -----------------------------------------------------------

    /// The host with these addresses; made when it is new.
    pub(super) fn host(&mut self, addresses: &[IpAddr]) -> HostId {
        if let Some(host) = addresses
            .first()
            .and_then(|address| self.host_of.get(address))
        {
            return *host;
        }
        let host = self.hosts.len();
        self.hosts.push(Host {
            addresses: addresses.to_vec(),
            next_port: FIRST_PORT,
        });
        for address in addresses {
            self.host_of.insert(*address, host);
        }
        host
    }

    pub(super) fn open_port(
        &mut self,
        host: HostId,
        streams: Pool,
        datagrams: Pool,
        fill: Pool,
    ) -> PortId {
        self.ports.push(Port {
            host,
            listeners: Vec::new(),
            ready: Vec::new(),
            ready_sockets: Vec::new(),
            adopted: VecDeque::new(),
            released: Vec::new(),
            starved: Vec::new(),
            starved_sockets: Vec::new(),
            hidden_until: 0,
            streams,
            datagrams,
            fill,
            open: true,
        });
        self.ports.len() - 1
    }

    /// The process of a driver has gone: its kernel closes what it held.
    pub(super) fn close_port(&mut self, port: PortId) {
        self.ports[port].open = false;
        for group in self.listening.values_mut() {
            group.retain(|(member, _)| *member != port);
        }
        for listener in std::mem::take(&mut self.ports[port].listeners) {
            for id in listener.backlog {
                self.let_go(id, SERVER, true);
            }
        }
        for (id, _) in std::mem::take(&mut self.ports[port].adopted) {
            self.let_go(id, SERVER, true);
        }
        let owned: Vec<_> = self
            .connections
            .iter()
            .flat_map(|(id, connection)| {
                let of = move |end: usize| (*id, end, connection.ends[end].owner);
                [of(CLIENT), of(SERVER)]
            })
            .filter(|(_, _, owner)| owner.is_some_and(|owner| owner.port == port))
            .collect();
        for (id, end, _) in owned {
            self.let_go(id, end, false);
        }
        let sockets: Vec<_> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.port == port)
            .map(|(id, _)| *id)
            .collect();
        for id in sockets {
            self.close_socket(id);
        }
    }

    /// Turns a wildcard or loopback address into one of the host, and port 0 into a free one.
    fn own_address(
        &mut self,
        host: HostId,
        wanted: Option<SocketAddr>,
        ipv6: bool,
    ) -> io::Result<SocketAddr> {
        let ip = match wanted.map(|address| address.ip()) {
            Some(ip) if !ip.is_unspecified() => {
                if !ip.is_loopback() && !self.hosts[host].addresses.contains(&ip) {
                    return Err(error(libc::EADDRNOTAVAIL));
                }
                ip
            }
            _ => {
                let mut addresses = self.hosts[host].addresses.iter();
                *addresses
                    .find(|ip| ip.is_ipv6() == ipv6)
                    .ok_or_else(|| error(libc::EADDRNOTAVAIL))?
            }
        };
        Ok(SocketAddr::new(
            ip,
            wanted.map_or(0, |address| address.port()),
        ))
    }

    fn next_port(&mut self, host: HostId) -> u16 {
        let next = &mut self.hosts[host].next_port;
        let port = *next;
        *next = if *next == u16::MAX {
            FIRST_PORT
        } else {
            *next + 1
        };
        port
    }

    /// A free port where none is asked for.
    pub(super) fn choose_listen_address(
        &mut self,
        host: HostId,
        address: &Address,
        datagram: bool,
    ) -> io::Result<Address> {
        let mut address = address.clone();
        if let Address::Ip(ip) = &mut address {
            if !ip.ip().is_unspecified()
                && !ip.ip().is_loopback()
                && !self.hosts[host].addresses.contains(&ip.ip())
            {
                return Err(error(libc::EADDRNOTAVAIL));
            }
            if ip.port() == 0 {
                ip.set_port(self.next_port(host));
            }
            if datagram {
                let used = self
                    .bound
                    .get(&(host, *ip))
                    .is_some_and(|group| !group.is_empty());
                return if used {
                    Err(error(libc::EADDRINUSE))
                } else {
                    Ok(address)
                };
            }
        }
        let used = self
            .listening
            .get(&(host, address.clone()))
            .is_some_and(|group| !group.is_empty());
        if used {
            Err(error(libc::EADDRINUSE))
        } else {
            Ok(address)
        }
    }

    fn host_for(&self, from: HostId, ip: IpAddr) -> Option<HostId> {
        if ip.is_loopback() || ip.is_unspecified() {
            Some(from)
        } else {
            self.host_of.get(&ip).copied()
        }
    }

    // ---- listening and connecting ----------------------------------------------------------

    pub(super) fn listen(
        &mut self,
        port: PortId,
        address: Address,
        id: ListenerId,
        wants_peer: bool,
    ) {
        let host = self.ports[port].host;
        let at = self.ports[port].listeners.len();
        self.ports[port].listeners.push(Listener {
            id,
            wants_peer,
            armed: true,
            backlog: VecDeque::new(),
        });
        self.listening
            .entry((host, address))
            .or_default()
            .push((port, at));
    }

    fn pipe(&mut self) -> Pipe {
        let streams = &self.config.streams;
        Pipe {
            unsent: VecDeque::new(),
            in_flight: 0,
            unacknowledged: 0,
            received: VecDeque::new(),
            fin: Fin::No,
            last_arrival: 0,
            send_bytes_max: self.random.within(&streams.send_buffer_bytes).max(1) as usize,
            receive_bytes_max: self.random.within(&streams.receive_buffer_bytes).max(1) as usize,
            window_update: false,
        }
    }

    pub(super) fn connect(
        &mut self,
        owner: Owner,
        to: &Address,
        from: Option<SocketAddr>,
    ) -> io::Result<ConnectionId> {
        let host = self.ports[owner.port].host;
        let mut client = None;
        if let Address::Ip(to) = to {
            let mut local = if to.ip().is_loopback() && from.is_none() {
                SocketAddr::new(to.ip(), 0)
            } else {
                self.own_address(host, from, to.is_ipv6())?
            };
            if local.port() == 0 {
                let mut tries = 0;
                loop {
                    local.set_port(self.next_port(host));
                    if !self.tuples.contains_key(&(local, *to)) {
                        break;
                    }
                    tries += 1;
                    if tries > u16::MAX - FIRST_PORT {
                        return Err(error(libc::EADDRNOTAVAIL));
                    }
                }
            } else if self.tuples.contains_key(&(local, *to)) {
                return Err(error(libc::EADDRNOTAVAIL));
            }
            self.tuples.insert((local, *to), self.next_connection);
            client = Some(local);
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let pipes = [self.pipe(), self.pipe()];
        let mut ends = [End::default(), End::default()];
        ends[CLIENT].host = host;
        ends[CLIENT].owner = Some(owner);
        ends[CLIENT].connecting = true;
        let connection = Connection {
            ends,
            pipes,
            client,
            to: to.clone(),
            syn_tries: 0,
            reset: false,
            established: false,
        };
        self.connections.insert(id, connection);
        if self.random.happens(self.config.faults.connection_lost) {
            self.faults.connection_lost += 1;
            self.schedule(
                self.now + CONNECT_TIMEOUT,
                Happening::Answer(id, Err(libc::ETIMEDOUT)),
            );
            return Ok(id);
        }
        let at = self.now + self.delay();
        self.schedule(at, Happening::Syn(id));
        Ok(id)
    }

    fn delay(&mut self) -> Nanos {
        self.random.within(&self.config.streams.delay)
    }

    /// When something sent now from one host to another arrives, if nothing cuts them off; a
    /// partition makes it wait.
    fn arrival(&mut self, from: HostId, to: HostId) -> Nanos {
        let at = self.now + self.delay();
        let cut =
            |partition: &&super::config::Partition| (partition.from..partition.until).contains(&at);
        match self.config.partitions.iter().find(cut) {
            Some(partition) if from != to => {
                let until = partition.until;
                until
                    + self
                        .random
                        .within(&self.config.streams.retransmission_delay)
            }
            _ => at,
        }
    }

    fn syn(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let client_host = connection.ends[CLIENT].host;
        let to = connection.to.clone();
        let host = match &to {
            Address::Ip(ip) => self.host_for(client_host, ip.ip()),
            Address::Unix(_) => Some(client_host),
        };
        let Some(host) = host else {
            let at = self.now + self.delay();
            return self.schedule(at, Happening::Answer(id, Err(libc::EHOSTUNREACH)));
        };
        let refuse = if self.random.happens(self.config.faults.connection_refused) {
            self.faults.connection_refused += 1;
            true
        } else {
            false
        };
        let group = self.listeners_of(host, &to);
        if group.is_empty() || refuse {
            let errno = if matches!(to, Address::Unix(_)) && !refuse {
                libc::ENOENT
            } else {
                libc::ECONNREFUSED
            };
            let at = self.arrival(host, client_host);
            return self.schedule(at, Happening::Answer(id, Err(errno)));
        }
        // Steered by a hash, as a SO_REUSEPORT group does it.
        let (port, at) = group[(mix(self.seed ^ mix(id)) % group.len() as u64) as usize];
        let connection = self.connections.get_mut(&id).expect("seen above");
        connection.syn_tries += 1;
        let tries = connection.syn_tries;
        let listener = &mut self.ports[port].listeners[at];
        if listener.backlog.len() >= self.config.streams.backlog_max {
            if tries >= SYN_TRIES_MAX {
                return self.answer(id, Err(libc::ETIMEDOUT));
            }
            return self.schedule(self.now + SYN_RETRY, Happening::Syn(id));
        }
        listener.backlog.push_back(id);
        connection.established = true;
        connection.ends[SERVER].host = host;
        let at = self.arrival(host, client_host);
        // Data must not overtake the handshake.
        self.connections.get_mut(&id).expect("seen above").pipes[SERVER].last_arrival = at;
        self.schedule(at, Happening::Answer(id, Ok(())));
        if self.random.happens(self.config.faults.connection_reset) {
            let at = at + self.random.below(RESET_WITHIN);
            self.schedule(at, Happening::InjectedReset(id));
        }
    }

    fn listeners_of(&self, host: HostId, to: &Address) -> Vec<(PortId, usize)> {
        let exact = self
            .listening
            .get(&(host, to.clone()))
            .filter(|group| !group.is_empty());
        if let Some(group) = exact {
            return group.clone();
        }
        let Address::Ip(ip) = to else {
            return Vec::new();
        };
        let any: IpAddr = if ip.is_ipv6() {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        };
        let any = Address::Ip(SocketAddr::new(any, ip.port()));
        self.listening
            .get(&(host, any))
            .cloned()
            .unwrap_or_default()
    }

    fn answer(&mut self, id: ConnectionId, outcome: Result<(), i32>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[CLIENT];
        if end.error.is_none() && end.connecting {
            end.outcome = Some(outcome);
            self.mark_ready(id, CLIENT);
        }
    }

    /// A shard accepts: from now on it owns the server's end.
    pub(super) fn accepted(&mut self, id: ConnectionId, owner: Owner) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.ends[SERVER].owner = Some(owner);
    }

    /// A shard gives the server's end to another one.
    pub(super) fn hand_on(&mut self, id: ConnectionId, listener: ListenerId, to: PortId) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        if !self.ports[to].open {
            return false;
        }
        let end = &mut connection.ends[SERVER];
        end.owner = None;
        end.reading = false;
        end.ready = false;
        self.ports[to].adopted.push_back((id, listener));
        true
    }

    // ---- stream bytes ----------------------------------------------------------------------

    fn mark_ready(&mut self, id: ConnectionId, at: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[at];
        let Some(owner) = end.owner else { return };
        if !end.ready && !end.closed {
            end.ready = true;
            self.ports[owner.port].ready.push((id, at));
        }
    }

    /// Puts an end on its port's list after a moment.
    pub(super) fn ready_later(&mut self, id: ConnectionId, end: usize) {
        let at = self.fault_delay();
        self.schedule(at, Happening::Ready(id, end));
    }

    /// The driver looks at an end now.
    pub(super) fn take_ready(
        &mut self,
        id: ConnectionId,
        at: usize,
        port: PortId,
    ) -> Option<Owner> {
        let end = &mut self.connections.get_mut(&id)?.ends[at];
        let owner = end.owner.filter(|owner| owner.port == port)?;
        end.ready = false;
        Some(owner)
    }

    /// Puts an end back on its list, because there is more.
    pub(super) fn ready_again(&mut self, id: ConnectionId, end: usize) {
        self.mark_ready(id, end);
    }

    pub(super) fn set_reading(&mut self, id: ConnectionId, at: usize, on: bool) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let waits = !connection.pipes[1 - at].received.is_empty()
            || connection.pipes[1 - at].fin == Fin::Arrived;
        let end = &mut connection.ends[at];
        end.reading = on;
        if on && (waits || end.error.is_some()) {
            self.mark_ready(id, at);
        }
    }

    /// Room in the send buffer of an end, or why sending fails.
    pub(super) fn send_room(&self, id: ConnectionId, at: usize) -> Result<usize, i32> {
        let Some(connection) = self.connections.get(&id) else {
            return Err(libc::EPIPE);
        };
        if let Some(errno) = connection.ends[at].error {
            return Err(errno);
        }
        if connection.pipes[at].fin != Fin::No {
            return Err(libc::EPIPE);
        }
        Ok(connection.pipes[at].room())
    }

    pub(super) fn send(&mut self, id: ConnectionId, at: usize, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pipes[at].unsent.extend(bytes);
        }
    }

    pub(super) fn finish(&mut self, id: ConnectionId, at: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.pipes[at].fin == Fin::No {
            connection.pipes[at].fin = Fin::Wanted;
        }
        self.pump(id, at);
    }

    /// Sends what the peer's window allows, cut anywhere.
    pub(super) fn pump(&mut self, id: ConnectionId, at: usize) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else {
                return;
            };
            if connection.reset {
                return;
            }
            let (from, to) = (connection.ends[at].host, connection.ends[1 - at].host);
            let pipe = &mut connection.pipes[at];
            let window = pipe
                .receive_bytes_max
                .saturating_sub(pipe.in_flight + pipe.received.len());
            let wanted = pipe.unsent.len().min(window);
            let ends = pipe.unsent.is_empty() && pipe.fin == Fin::Wanted;
            if wanted == 0 && !ends {
                return;
            }
            let mut arrival = self.arrival(from, to);
            if self.random.happens(self.config.streams.segment_loss) {
                self.path.retransmitted += 1;
                arrival += self
                    .random
                    .within(&self.config.streams.retransmission_delay);
            }
            let len = wanted.min(
                self.random
                    .within(&self.config.streams.segment_bytes)
                    .max(1) as usize,
            );
            let pipe = &mut self.connections.get_mut(&id).expect("seen above").pipes[at];
            arrival = arrival.max(pipe.last_arrival);
            pipe.last_arrival = arrival;
            if ends {
                pipe.fin = Fin::Sent;
                return self.schedule(arrival, Happening::Fin(id, at));
            }
            let bytes: Vec<u8> = pipe.unsent.drain(..len).collect();
            pipe.in_flight += len;
            pipe.unacknowledged += len;
            self.schedule(arrival, Happening::Segment(id, at, bytes));
        }
    }

    fn segment(&mut self, id: ConnectionId, from: usize, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.reset {
            return;
        }
        let pipe = &mut connection.pipes[from];
        pipe.in_flight -= bytes.len();
        if connection.ends[1 - from].closed {
            // Nobody will read this: the kernel answers with a reset (RFC 9293 §3.10.7).
            return self.send_reset(id, 1 - from);
        }
        pipe.received.extend(bytes);
        if connection.ends[1 - from].reading {
            self.mark_ready(id, 1 - from);
        }
        let connection = &self.connections[&id];
        let (near, far) = (connection.ends[from].host, connection.ends[1 - from].host);
        let at = self.arrival(far, near);
        self.schedule(at, Happening::Acknowledge(id, from, bytes.len()));
    }

    /// Takes up to `into.len()` received bytes.
    pub(super) fn receive(&mut self, id: ConnectionId, at: usize, into: &mut [u8]) -> usize {
        let Some(connection) = self.connections.get_mut(&id) else {
            return 0;
        };
        let pipe = &mut connection.pipes[1 - at];
        let len = into.len().min(pipe.received.len());
        for (to, byte) in into.iter_mut().zip(pipe.received.drain(..len)) {
            *to = byte;
        }
        if !pipe.unsent.is_empty() && !pipe.window_update {
            pipe.window_update = true;
            let (far, near) = (connection.ends[1 - at].host, connection.ends[at].host);
            let arrival = self.arrival(near, far);
            self.schedule(arrival, Happening::Window(id, 1 - at));
        }
        len
    }

    /// One end sends a reset: it is dead, and the other learns of it.
    fn send_reset(&mut self, id: ConnectionId, by: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if !connection.reset {
            connection.reset = true;
            self.path.resets += 1;
            let connection = &self.connections[&id];
            let (near, far) = (connection.ends[by].host, connection.ends[1 - by].host);
            let last = connection.pipes[by].last_arrival;
            let at = self.arrival(near, far).max(last);
            self.schedule(at, Happening::Reset(id, 1 - by));
        }
    }

    fn reset_arrives(&mut self, id: ConnectionId, at: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.reset = true;
        let end = &mut connection.ends[at];
        if !end.closed {
            end.error = Some(libc::ECONNRESET);
            if end.connecting {
                end.outcome = Some(Err(libc::ECONNRESET));
            }
            if end.reading || end.blocked || end.connecting {
                self.mark_ready(id, at);
            }
        }
        self.reap(id);
    }

    /// An application lets go of its end: FIN after what is queued, or a reset when it wants one
    /// or has left data unread (RFC 1122 §4.2.2.13).
    pub(super) fn let_go(&mut self, id: ConnectionId, at: usize, reset: bool) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[at];
        end.owner = None;
        end.reading = false;
        end.ready = false;
        end.blocked = false;
        let connecting = std::mem::take(&mut end.connecting);
        end.closed = true;
        let unread = !connection.pipes[1 - at].received.is_empty();
        if !connection.established {
            // The server knows nothing of it; what is under way finds nobody.
            return self.forget(id);
        }
        if connecting {
            self.send_reset(id, at);
        } else if reset || unread {
            connection.pipes[at].unsent.clear();
            self.send_reset(id, at);
        } else {
            self.finish(id, at);
        }
        self.reap(id);
    }

    /// Forgets a connection that neither end needs any more.
    fn reap(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let done = connection.reset || connection.pipes.iter().all(Pipe::is_done);
        if connection.ends.iter().all(|end| end.closed) && done {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        if let (Some(client), Address::Ip(to)) = (connection.client, connection.to) {
            self.tuples.remove(&(client, to));
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

    // ---- datagrams -------------------------------------------------------------------------

    pub(super) fn bind(
        &mut self,
        port: PortId,
        index: u32,
        local: SocketAddr,
        peer: Option<SocketAddr>,
        share: bool,
    ) -> io::Result<(SimSocketId, SocketAddr)> {
        let host = self.ports[port].host;
        let mut local = local;
        if local.ip().is_unspecified() {
            if let Some(peer) = peer {
                local.set_ip(self.own_address(host, Some(local), peer.is_ipv6())?.ip());
            }
        } else {
            self.own_address(host, Some(local), local.is_ipv6())?;
        }
        if local.port() == 0 {
            let mut tries = 0;
            loop {
                local.set_port(self.next_port(host));
                if self.bound.get(&(host, local)).is_none_or(Vec::is_empty) {
                    break;
                }
                tries += 1;
                if tries > u16::MAX - FIRST_PORT {
                    return Err(error(libc::EADDRINUSE));
                }
            }
        } else if !share
            && self
                .bound
                .get(&(host, local))
                .is_some_and(|group| !group.is_empty())
        {
            return Err(error(libc::EADDRINUSE));
        }
        let id = self.next_socket;
        self.next_socket += 1;
        let socket = SimSocket {
            port,
            index,
            host,
            local,
            peer,
            reading: true,
            ready: false,
            error: None,
            received: VecDeque::new(),
            received_bytes: 0,
        };
        self.sockets.insert(id, socket);
        self.bound.entry((host, local)).or_default().push(id);
        Ok((id, local))
    }

    pub(super) fn close_socket(&mut self, id: SimSocketId) {
        let Some(socket) = self.sockets.remove(&id) else {
            return;
        };
        let key = (socket.host, socket.local);
        if let Some(group) = self.bound.get_mut(&key) {
            group.retain(|member| *member != id);
            if group.is_empty() {
                self.bound.remove(&key);
            }
        }
    }

    fn mark_socket_ready(&mut self, id: SimSocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        if !socket.ready && socket.reading {
            socket.ready = true;
            self.ports[socket.port].ready_sockets.push(id);
        }
    }

    pub(super) fn take_socket_ready(&mut self, id: SimSocketId) -> Option<&mut SimSocket> {
        let socket = self.sockets.get_mut(&id)?;
        socket.ready = false;
        Some(socket)
    }

    pub(super) fn socket_ready_again(&mut self, id: SimSocketId) {
        self.mark_socket_ready(id);
    }

    pub(super) fn socket_ready_later(&mut self, id: SimSocketId) {
        let at = self.fault_delay();
        self.schedule(at, Happening::SocketReady(id));
    }

    pub(super) fn set_socket_reading(&mut self, id: SimSocketId, on: bool) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        socket.reading = on;
        if on && (!socket.received.is_empty() || socket.error.is_some()) {
            self.mark_socket_ready(id);
        }
    }

    /// Sends one datagram from a socket.
    pub(super) fn transmit(
        &mut self,
        id: SimSocketId,
        to: SocketAddr,
        source: Option<IpAddr>,
        ecn: Ecn,
        bytes: &[u8],
    ) {
        let Some(socket) = self.sockets.get(&id) else {
            return;
        };
        let host = socket.host;
        let mut from = socket.local;
        let connected = socket.peer.is_some();
        if let Some(source) = source {
            from.set_ip(source);
        } else if from.ip().is_unspecified() {
            match self.own_address(host, None, to.is_ipv6()) {
                _ if to.ip().is_loopback() => from.set_ip(to.ip()),
                Ok(own) => from.set_ip(own.ip()),
                Err(_) => return,
            }
        }
        self.path.sent += 1;
        if connected && self.random.happens(self.config.faults.datagram_refused) {
            self.faults.datagram_refused += 1;
            let at = self.now + self.delay();
            self.schedule(at, Happening::Refused { to: from, from: to });
        }
        let key = if from <= to { (from, to) } else { (to, from) };
        let seed = self.seed;
        let flow = self.flows.entry(key).or_insert_with(|| {
            let number = mix(address_hash(&key.0) ^ mix(address_hash(&key.1)));
            let link = |direction| Link::new(Decider::new(seed, number, direction));
            Flow {
                first: from,
                links: [link(Direction::Forward), link(Direction::Backward)],
            }
        });
        let backward = usize::from(flow.first != from);
        let model = if backward == 0 {
            &self.config.forward
        } else {
            &self.config.backward
        };
        let packet = Packet {
            from,
            to,
            ecn,
            bytes: bytes.into(),
        };
        let link = &mut flow.links[backward];
        let before = link.next_expiry();
        let outcome = link.offer(self.now, bytes.len(), packet, model, &mut self.departures);
        let expiry = link.next_expiry().filter(|expiry| before != Some(*expiry));
        match outcome.dropped {
            Some(Dropped::Lost) => self.path.lost += 1,
            Some(Dropped::QueueFull) => self.path.queue_full += 1,
            Some(Dropped::TooLong) => self.path.too_long += 1,
            Some(Dropped::Blackout) => self.path.blackout += 1,
            None => {
                self.path.duplicated += u64::from(outcome.duplicated);
                self.path.held += u64::from(outcome.held);
            }
        }
        self.depart(key, backward);
        if let Some(expiry) = expiry {
            self.schedule(expiry, Happening::Expire(key));
        }
    }

    /// Puts a datagram into the network that no socket has sent, under whatever source it claims.
    /// It takes the delay of a stream's segment; no impairment touches it, partitions do.
    pub(super) fn inject(&mut self, packet: Packet) {
        self.path.sent += 1;
        let at = self.now + self.delay();
        self.schedule(at, Happening::Datagram(packet));
    }

    fn depart(&mut self, key: FlowKey, backward: usize) {
        let mut departures = std::mem::take(&mut self.departures);
        for departure in departures.drain(..) {
            let Departure {
                at,
                index,
                corrupted,
                mut item,
            } = departure;
            if corrupted {
                let model = if backward == 0 {
                    &self.config.forward
                } else {
                    &self.config.backward
                };
                self.path.corrupted += 1;
                if !self.config.deliver_corrupted {
                    continue;
                }
                let mut bytes = item.bytes.to_vec();
                let decider = self.flows[&key].links[backward].decider();
                decider.corrupt(index, model.corruption.bits, &mut bytes);
                item.bytes = bytes.into();
            }
            self.schedule(at, Happening::Datagram(item));
        }
        self.departures = departures;
    }

    fn expire(&mut self, key: FlowKey) {
        let now = self.now;
        for backward in 0..2 {
            let Some(flow) = self.flows.get_mut(&key) else {
                return;
            };
            flow.links[backward].expire(now, &mut self.departures);
            let next = flow.links[backward].next_expiry();
            self.depart(key, backward);
            if let Some(next) = next {
                self.schedule(next, Happening::Expire(key));
            }
        }
    }

    fn datagram_arrives(&mut self, packet: Packet) {
        let sender = self.host_of.get(&packet.from.ip()).copied();
        let host = match sender {
            Some(sender) => self.host_for(sender, packet.to.ip()),
            // From a loopback address: the flow's ends are on one host, found by who is bound.
            None => self.loopback_host(packet.to),
        };
        let Some(host) = host else {
            self.path.unreachable += 1;
            return;
        };
        let now = self.now;
        let cut = self
            .config
            .partitions
            .iter()
            .any(|partition| (partition.from..partition.until).contains(&now));
        if cut && sender.is_some_and(|sender| sender != host) {
            self.path.blackout += 1;
            return;
        }
        let Some(id) = self.socket_for(host, &packet) else {
            self.path.unreachable += 1;
            let at = self.now + self.delay();
            return self.schedule(
                at,
                Happening::Refused {
                    to: packet.from,
                    from: packet.to,
                },
            );
        };
        let room = self.config.socket_buffer_bytes;
        let socket = self.sockets.get_mut(&id).expect("a bound socket is open");
        if socket.received_bytes + packet.bytes.len() > room && !socket.received.is_empty() {
            self.path.socket_full += 1;
            return;
        }
        self.path.delivered += 1;
        socket.received_bytes += packet.bytes.len();
        socket.received.push_back(packet);
        self.mark_socket_ready(id);
    }

    fn loopback_host(&self, to: SocketAddr) -> Option<HostId> {
        (0..self.hosts.len()).find(|host| self.group(*host, to).is_some())
    }

    fn group(&self, host: HostId, to: SocketAddr) -> Option<&Vec<SimSocketId>> {
        let any: IpAddr = if to.is_ipv6() {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        };
        self.bound
            .get(&(host, to))
            .or_else(|| self.bound.get(&(host, SocketAddr::new(any, to.port()))))
    }

    fn socket_for(&self, host: HostId, packet: &Packet) -> Option<SimSocketId> {
        let group = self.group(host, packet.to)?;
        let peer = |id: &SimSocketId| self.sockets[id].peer;
        if let Some(id) = group.iter().find(|id| peer(id) == Some(packet.from)) {
            return Some(*id);
        }
        let open: Vec<_> = group.iter().filter(|id| peer(id).is_none()).collect();
        let hash = mix(self.seed ^ address_hash(&packet.from) ^ mix(address_hash(&packet.to)));
        (!open.is_empty()).then(|| *open[(hash % open.len() as u64) as usize])
    }

    fn refused(&mut self, to: SocketAddr, from: SocketAddr) {
        let host = self
            .host_of
            .get(&to.ip())
            .copied()
            .or_else(|| self.loopback_host(to));
        let Some(group) = host.and_then(|host| self.group(host, to)) else {
            return;
        };
        // Only a connected socket hears of it.
        let Some(id) = group
            .iter()
            .copied()
            .find(|id| self.sockets[id].peer == Some(from))
        else {
            return;
        };
        self.sockets
            .get_mut(&id)
            .expect("a bound socket is open")
            .error = Some(libc::ECONNREFUSED);
        self.mark_socket_ready(id);
    }
}
