//! Listening and connecting, and what can go wrong with a SYN.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::hosts::FIRST_PORT;
use super::streams::{Connection, End, Fin, Owner, Pipe};
use super::{CLIENT, ConnectionId, Happening, HostId, MILLI, Network, PortId, SERVER, error};
use crate::Nanos;
use crate::driver::Address;
use crate::ids::ListenerId;
use crate::impairment::mix;

/// A dropped SYN comes again after this, as Linux does it (TCP_TIMEOUT_INIT).
const SYN_RETRY: Nanos = 1_000 * MILLI;

const SYN_TRIES_MAX: u32 = 5;

/// When a lost connect is given up.
const CONNECT_TIMEOUT: Nanos = 3_000 * MILLI;

/// An injected reset comes within this.
const RESET_WITHIN: Nanos = 250 * MILLI;

#[derive(Debug)]
pub(in crate::driver::sim) struct Listener {
    pub(in crate::driver::sim) id: ListenerId,
    pub(in crate::driver::sim) wants_peer: bool,
    pub(in crate::driver::sim) armed: bool,
    pub(in crate::driver::sim) backlog: VecDeque<ConnectionId>,
}

impl Network {
    pub(in crate::driver::sim) fn listen(
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

    pub(in crate::driver::sim) fn connect(
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

    pub(super) fn syn(&mut self, id: ConnectionId) {
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

    pub(super) fn answer(&mut self, id: ConnectionId, outcome: Result<(), i32>) {
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
    pub(in crate::driver::sim) fn accepted(&mut self, id: ConnectionId, owner: Owner) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.ends[SERVER].owner = Some(owner);
    }

    /// A shard gives the server's end to another one.
    pub(in crate::driver::sim) fn hand_on(
        &mut self,
        id: ConnectionId,
        listener: ListenerId,
        to: PortId,
    ) -> bool {
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
}
