//! Hosts, their addresses, and the ports by which shards are attached to the network.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::connecting::Listener;
use super::{CLIENT, ConnectionId, HostId, Network, PortId, Released, SERVER, SimSocketId, error};
use crate::Nanos;
use crate::driver::Address;
use crate::ids::ListenerId;
use crate::sys::buffer::Pool;

/// The first port that the simulator gives away by itself, as Linux does.
pub(super) const FIRST_PORT: u16 = 32_768;

/// What waits for one shard.
pub(in crate::driver::sim) struct Port {
    pub(in crate::driver::sim) host: HostId,
    pub(in crate::driver::sim) listeners: Vec<Listener>,
    pub(in crate::driver::sim) ready: Vec<(ConnectionId, usize)>,
    pub(in crate::driver::sim) ready_sockets: Vec<SimSocketId>,
    pub(in crate::driver::sim) adopted: VecDeque<(ConnectionId, ListenerId)>,
    pub(in crate::driver::sim) released: Vec<Released>,
    /// Ends and sockets that wait for a free buffer.
    pub(in crate::driver::sim) starved: Vec<(ConnectionId, usize)>,
    pub(in crate::driver::sim) starved_sockets: Vec<SimSocketId>,
    /// The completion queue has overflowed: nothing is seen before this moment.
    pub(in crate::driver::sim) hidden_until: Nanos,
    pub(in crate::driver::sim) streams: Pool,
    pub(in crate::driver::sim) datagrams: Pool,
    pub(in crate::driver::sim) fill: Pool,
    pub(super) open: bool,
}

impl Port {
    /// Whether the driver's next wait finds something.
    pub(in crate::driver::sim) fn has_events(&self, now: Nanos) -> bool {
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

pub(super) struct Host {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) next_port: u16,
}

impl Network {
    /// The host with these addresses; made when it is new.
    pub(in crate::driver::sim) fn host(&mut self, addresses: &[IpAddr]) -> HostId {
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

    pub(in crate::driver::sim) fn open_port(
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
    pub(in crate::driver::sim) fn close_port(&mut self, port: PortId) {
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
    pub(super) fn own_address(
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

    pub(super) fn next_port(&mut self, host: HostId) -> u16 {
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
    pub(in crate::driver::sim) fn choose_listen_address(
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

    pub(super) fn host_for(&self, from: HostId, ip: IpAddr) -> Option<HostId> {
        if ip.is_loopback() || ip.is_unspecified() {
            Some(from)
        } else {
            self.host_of.get(&ip).copied()
        }
    }

    pub(super) fn loopback_host(&self, to: SocketAddr) -> Option<HostId> {
        (0..self.hosts.len()).find(|host| self.group(*host, to).is_some())
    }
}
