//! Datagrams: sockets, the impaired paths between them, and refusals.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::hosts::FIRST_PORT;
use super::{Happening, HostId, Network, PortId, SimSocketId, error};
use crate::Ecn;
use crate::impairment::{Decider, Departure, Direction, Dropped, Link, mix};

/// One datagram in the network or in a socket.
#[derive(Debug, Clone)]
pub(in crate::driver::sim) struct Packet {
    pub(in crate::driver::sim) from: SocketAddr,
    pub(in crate::driver::sim) to: SocketAddr,
    pub(in crate::driver::sim) ecn: Ecn,
    pub(in crate::driver::sim) bytes: std::rc::Rc<[u8]>,
}

#[derive(Debug)]
pub(in crate::driver::sim) struct SimSocket {
    pub(in crate::driver::sim) port: PortId,
    pub(in crate::driver::sim) index: u32,
    pub(super) host: HostId,
    pub(in crate::driver::sim) local: SocketAddr,
    pub(in crate::driver::sim) peer: Option<SocketAddr>,
    pub(in crate::driver::sim) reading: bool,
    pub(super) ready: bool,
    pub(in crate::driver::sim) error: Option<i32>,
    pub(in crate::driver::sim) received: VecDeque<Packet>,
    pub(in crate::driver::sim) received_bytes: usize,
}

pub(super) struct Flow {
    /// The end that sent first.
    pub(super) first: SocketAddr,
    pub(super) links: [Link<Packet>; 2],
}

pub(super) type FlowKey = (SocketAddr, SocketAddr);

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
    pub(in crate::driver::sim) fn bind(
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
        Ok((self.insert_socket(port, index, local, peer), local))
    }

    /// Binds a socket to a multicast group that it joins. Any number may.
    pub(in crate::driver::sim) fn join(
        &mut self,
        port: PortId,
        index: u32,
        local: SocketAddr,
        group: IpAddr,
    ) -> io::Result<(SimSocketId, SocketAddr)> {
        if !group.is_multicast() || local.ip() != group || local.port() == 0 {
            return Err(error(libc::EINVAL));
        }
        Ok((self.insert_socket(port, index, local, None), local))
    }

    fn insert_socket(
        &mut self,
        port: PortId,
        index: u32,
        local: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> SimSocketId {
        let host = self.ports[port].host;
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
        id
    }

    pub(in crate::driver::sim) fn close_socket(&mut self, id: SimSocketId) {
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

    pub(super) fn mark_socket_ready(&mut self, id: SimSocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        if !socket.ready && socket.reading {
            socket.ready = true;
            self.ports[socket.port].ready_sockets.push(id);
        }
    }

    pub(in crate::driver::sim) fn take_socket_ready(
        &mut self,
        id: SimSocketId,
    ) -> Option<&mut SimSocket> {
        let socket = self.sockets.get_mut(&id)?;
        socket.ready = false;
        Some(socket)
    }

    pub(in crate::driver::sim) fn socket_ready_again(&mut self, id: SimSocketId) {
        self.mark_socket_ready(id);
    }

    pub(in crate::driver::sim) fn socket_ready_later(&mut self, id: SimSocketId) {
        let at = self.fault_delay();
        self.schedule(at, Happening::SocketReady(id));
    }

    pub(in crate::driver::sim) fn set_socket_reading(&mut self, id: SimSocketId, on: bool) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        socket.reading = on;
        if on && (!socket.received.is_empty() || socket.error.is_some()) {
            self.mark_socket_ready(id);
        }
    }

    /// Sends one datagram from a socket.
    pub(in crate::driver::sim) fn transmit(
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
        let codel = self.impaired.codel.get();
        let before = link.next_expiry();
        let outcome = link.offer(
            self.now,
            (bytes.len(), ecn),
            packet,
            model,
            &mut self.departures,
            &self.impaired,
        );
        let expiry = link.next_expiry().filter(|expiry| before != Some(*expiry));
        match outcome.dropped {
            Some(Dropped::Lost) => self.path.lost += 1,
            Some(Dropped::QueueFull | Dropped::Red) => self.path.queue_full += 1,
            Some(Dropped::TooLong) => self.path.too_long += 1,
            Some(Dropped::Blackout) => self.path.blackout += 1,
            None => {
                self.path.duplicated += u64::from(outcome.duplicated);
                self.path.held += u64::from(outcome.held);
            }
        }
        self.path.queue_full += self.impaired.codel.get() - codel;
        self.depart(key, backward);
        if let Some(expiry) = expiry {
            self.look_again(key, expiry);
        }
    }

    /// Puts a datagram into the network that no socket has sent, under whatever source it claims.
    /// It takes the delay of a stream's segment; no impairment touches it, partitions do.
    pub(in crate::driver::sim) fn inject(&mut self, packet: Packet) {
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
                ecn,
                mut item,
            } = departure;
            item.ecn = ecn;
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

    /// Each look sets the next ones of both links: were they not told apart by their moment, they
    /// would double with every one.
    fn look_again(&mut self, key: FlowKey, at: crate::Nanos) {
        if self.expiries.insert((key, at)) {
            self.schedule(at, Happening::Expire(key));
        }
    }

    pub(super) fn expire(&mut self, key: FlowKey) {
        let now = self.now;
        while let Some(&past) = self.expiries.range((key, 0)..=(key, now)).next() {
            self.expiries.remove(&past);
        }
        for backward in 0..2 {
            let Some(flow) = self.flows.get_mut(&key) else {
                return;
            };
            let codel = self.impaired.codel.get();
            flow.links[backward].expire(now, &mut self.departures, &self.impaired);
            self.path.queue_full += self.impaired.codel.get() - codel;
            let next = flow.links[backward].next_expiry();
            self.depart(key, backward);
            if let Some(next) = next {
                self.look_again(key, next);
            }
        }
    }

    pub(super) fn datagram_arrives(&mut self, packet: Packet) {
        let sender = self.host_of.get(&packet.from.ip()).copied();
        if packet.to.ip().is_multicast() {
            return self.group_datagram_arrives(sender, &packet);
        }
        let host = match sender {
            Some(sender) => self.host_for(sender, packet.to.ip()),
            // From a loopback address: the flow's ends are on one host, found by who is bound.
            None => self.loopback_host(packet.to),
        };
        let Some(host) = host else {
            self.path.unreachable += 1;
            return;
        };
        if self.is_cut() && sender.is_some_and(|sender| sender != host) {
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
        self.deliver(id, packet);
    }

    /// To every socket of every host that has joined the group. What the network does to a datagram
    /// it does before it fans out: the same for all receivers, but for their own full buffers.
    fn group_datagram_arrives(&mut self, sender: Option<HostId>, packet: &Packet) {
        let cut = self.is_cut();
        for host in 0..self.hosts.len() {
            let Some(members) = self.bound.get(&(host, packet.to)).cloned() else {
                continue;
            };
            if cut && sender.is_some_and(|sender| sender != host) {
                self.path.blackout += 1;
                continue;
            }
            for id in members {
                self.deliver(id, packet.clone());
            }
        }
    }

    fn is_cut(&self) -> bool {
        let partitions = &self.config.partitions;
        partitions
            .iter()
            .any(|partition| (partition.from..partition.until).contains(&self.now))
    }

    fn deliver(&mut self, id: SimSocketId, packet: Packet) {
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

    pub(super) fn group(&self, host: HostId, to: SocketAddr) -> Option<&Vec<SimSocketId>> {
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

    pub(super) fn refused(&mut self, to: SocketAddr, from: SocketAddr) {
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
