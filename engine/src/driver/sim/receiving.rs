//! What a simulated shard finds in its wait: accepted connections, bytes and datagrams, in the order
//! and with the faults that the seed brings.

use std::net::SocketAddr;

use super::network::{ConnectionId, Fin, Network, Owner, Packet, Released, SERVER, SimSocketId};
use super::{SimDriver, traced};
use crate::driver::{Event, Tables};
use crate::ids::{ListenerId, StreamId};
use crate::stream::State;
use crate::sys::socket::UDP_PAYLOAD_MAX;
use crate::{BufferMut, Datagram};

/// Receives of one stream, or datagram buffers of one socket, in one round.
const RECEIVES_PER_ROUND_MAX: u64 = 4;

/// Rounds over all streams in one wait: together as many receives as a kernel may have completed.
const ROUNDS_PER_WAIT_MAX: u64 = 4;

/// What accepting can fail with.
const ACCEPT_ERRORS: [i32; 3] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];

impl SimDriver {
    pub(super) fn gather(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        events: &mut Vec<Event>,
    ) {
        let port = self.port;
        if network.now < network.ports[port].hidden_until {
            return;
        }
        if network.ports[port].has_events(network.now)
            && network
                .random
                .happens(network.config.faults.completion_overflow)
        {
            network.faults.completion_overflow += 1;
            tables.metrics.shard.completion_overflows.add(1);
            network.hide(port);
            return;
        }
        for released in std::mem::take(&mut network.ports[port].released) {
            self.released(network, tables, released);
        }
        while let Some((id, listener)) = network.ports[port].adopted.pop_front() {
            self.accepted(network, tables, id, listener, None, events);
        }
        self.gather_accepts(network, tables, events);
        self.gather_starved(network);
        // Completions of different streams come interleaved.
        for _ in 0..=network.random.below(ROUNDS_PER_WAIT_MAX) {
            let mut ready = std::mem::take(&mut network.ports[port].ready);
            network.random.shuffle(&mut ready);
            for (id, end) in ready {
                if let Some(owner) = network.take_ready(id, end, port) {
                    self.stream_ready(network, tables, owner.index, id, end, events);
                }
            }
        }
        let mut ready = std::mem::take(&mut network.ports[port].ready_sockets);
        network.random.shuffle(&mut ready);
        for id in ready {
            self.socket_ready(network, tables, id, events);
        }
    }

    fn released(&mut self, network: &mut Network, tables: &mut Tables, released: Released) {
        match released {
            Released::Stream(index) => {
                self.descriptors -= 1;
                tables.streams.remove(index);
            }
            Released::Socket(index) => {
                self.descriptors -= 1;
                tables.sockets.remove(index);
            }
            Released::Writable(id) => {
                let Some(socket) = network.sockets.get(&id) else {
                    return;
                };
                tables.unblock_socket(socket.index);
            }
        }
    }

    fn gather_accepts(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        events: &mut Vec<Event>,
    ) {
        let port = self.port;
        for at in 0..network.ports[port].listeners.len() {
            while network.ports[port].listeners[at].armed
                && !network.ports[port].listeners[at].backlog.is_empty()
            {
                let listener = network.ports[port].listeners[at].id;
                if network.random.happens(network.config.faults.accept_failed) {
                    network.faults.accept_failed += 1;
                    let errno =
                        ACCEPT_ERRORS[network.random.below(ACCEPT_ERRORS.len() as u64) as usize];
                    network.ports[port].listeners[at].armed = false;
                    events.push(Event::AcceptFailed { listener, errno });
                    network.note(traced::OTHER, errno as u64);
                    break;
                }
                let waiting = &mut network.ports[port].listeners[at];
                let id = waiting.backlog.pop_front().expect("seen above");
                let wants_peer = waiting.wants_peer;
                let peer = network
                    .connections
                    .get(&id)
                    .and_then(|connection| connection.client);
                self.accepted(
                    network,
                    tables,
                    id,
                    listener,
                    peer.filter(|_| wants_peer),
                    events,
                );
            }
        }
    }

    fn accepted(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        id: ConnectionId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
        events: &mut Vec<Event>,
    ) {
        let stream = self.adopt(tables, listener.service, id, SERVER, State::Open);
        network.accepted(
            id,
            Owner {
                port: self.port,
                index: stream.index,
            },
        );
        network.note(traced::ACCEPTED, id);
        events.push(Event::Accepted {
            listener,
            stream,
            peer,
        });
    }

    /// What waited for a free buffer tries again when there is one.
    pub(super) fn gather_starved(&mut self, network: &mut Network) {
        let port = self.port;
        if self.streams.available() > 0 {
            for (id, end) in std::mem::take(&mut network.ports[port].starved) {
                network.ready_again(id, end);
            }
        }
        if self.datagrams.available() > 0 {
            for id in std::mem::take(&mut network.ports[port].starved_sockets) {
                network.socket_ready_again(id);
            }
        }
    }

    fn stream_ready(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: ConnectionId,
        end: usize,
        events: &mut Vec<Event>,
    ) {
        let stream = tables.streams.id(index);
        let Some(connection) = network.connections.get_mut(&id) else {
            return;
        };
        let this = &mut connection.ends[end];
        if let Some(outcome) = this.outcome.take() {
            this.connecting = false;
            match outcome {
                Ok(()) => {
                    tables.streams.at(index).state = State::Open;
                    this.reading = true;
                    network.note(traced::CONNECTED, id);
                    events.push(Event::Connected { stream });
                }
                Err(errno) => return Self::fail(network, tables, index, id, end, errno, events),
            }
        }
        self.unblock(network, tables, index, id, end, events);
        if tables.streams.at(index).state == State::Open {
            self.receive(network, tables, stream, id, end, events);
        }
    }

    /// A send that waited for room goes on, or fails.
    fn unblock(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: ConnectionId,
        end: usize,
        events: &mut Vec<Event>,
    ) {
        let Some(connection) = network.connections.get_mut(&id) else {
            return;
        };
        if !connection.ends[end].blocked {
            return;
        }
        if let Some(errno) = connection.ends[end].error {
            return Self::fail(network, tables, index, id, end, errno, events);
        }
        if connection.pipes[end].room() == 0 {
            return;
        }
        connection.ends[end].blocked = false;
        if let Some(queue) = &mut tables.streams.at(index).queue {
            queue.in_flight = false;
            tables.streams.mark_dirty(index);
        }
    }

    fn receive(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        stream: StreamId,
        id: ConnectionId,
        end: usize,
        events: &mut Vec<Event>,
    ) {
        let mut receives = 1 + network.random.below(RECEIVES_PER_ROUND_MAX);
        loop {
            let Some(connection) = network.connections.get_mut(&id) else {
                return;
            };
            let pipe = &connection.pipes[1 - end];
            let (waiting, fin) = (pipe.received.len(), pipe.fin);
            let this = &mut connection.ends[end];
            if !this.reading || this.failed {
                return;
            }
            if waiting == 0 {
                if let Some(errno) = this.error {
                    return Self::fail(network, tables, stream.index, id, end, errno, events);
                }
                if fin == Fin::Arrived && !this.ended {
                    this.ended = true;
                    this.reading = false;
                    network.note(traced::ENDED, id);
                    events.push(Event::Ended { stream });
                }
                return;
            }
            if receives == 0 {
                return network.ready_again(id, end);
            }
            receives -= 1;
            if network
                .random
                .happens(network.config.faults.receive_buffers_exhausted)
            {
                network.faults.receive_buffers_exhausted += 1;
                tables.metrics.shard.buffers_exhausted.add(1);
                return network.ready_later(id, end);
            }
            let Some(mut buffer) = self.streams.fill() else {
                tables.metrics.shard.buffers_exhausted.add(1);
                network.ports[self.port].starved.push((id, end));
                return;
            };
            let most = network
                .random
                .within(&network.config.streams.receive_bytes)
                .max(1) as usize;
            let most = most.min(buffer.len());
            let len = network.receive(id, end, &mut buffer[..most]);
            network.note(traced::RECEIVED, id << 32 | len as u64);
            events.push(Event::Received {
                stream,
                data: buffer.freeze(len),
            });
            if network.random.happens(network.config.faults.receive_ended) {
                network.faults.receive_ended += 1;
                return network.ready_later(id, end);
            }
        }
    }

    fn socket_ready(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        id: SimSocketId,
        events: &mut Vec<Event>,
    ) {
        let mut receives = 1 + network.random.below(RECEIVES_PER_ROUND_MAX);
        loop {
            let faults = network.config.faults;
            let exhausted = network.random.happens(faults.receive_buffers_exhausted);
            let Some(socket) = network.take_socket_ready(id) else {
                return;
            };
            let index = socket.index;
            if let Some(errno) = socket.error.take() {
                events.push(Event::SocketError {
                    socket: tables.sockets.id(index),
                    errno,
                });
                network.note(traced::OTHER, errno as u64);
                continue;
            }
            if !socket.reading || socket.received.is_empty() {
                return;
            }
            if receives == 0 {
                return network.socket_ready_again(id);
            }
            receives -= 1;
            if exhausted {
                network.faults.receive_buffers_exhausted += 1;
                tables.metrics.shard.buffers_exhausted.add(1);
                return network.socket_ready_later(id);
            }
            let Some(buffer) = self.datagrams.fill() else {
                tables.metrics.shard.buffers_exhausted.add(1);
                network.ports[self.port].starved_sockets.push(id);
                return;
            };
            let datagram = Self::coalesce(network, id, buffer);
            network.note(traced::DATAGRAM, id << 32 | datagram.data.len() as u64);
            events.push(Event::Datagram {
                socket: tables.sockets.id(index),
                datagram,
            });
            if network.random.happens(faults.receive_ended) {
                network.faults.receive_ended += 1;
                return network.socket_ready_later(id);
            }
        }
    }

    /// One receive: the first waiting datagram and, as GRO has it, those of equal size from the
    /// same peer that follow it; the last may be shorter.
    fn coalesce(network: &mut Network, id: SimSocketId, mut buffer: BufferMut) -> Datagram {
        let coalescing = network.config.coalescing;
        let socket = network
            .sockets
            .get_mut(&id)
            .expect("the caller has seen it");
        let first = socket
            .received
            .pop_front()
            .expect("the caller has seen one");
        let stride = first.bytes.len();
        let mut len = 0;
        let put = |buffer: &mut BufferMut, len: &mut usize, packet: &Packet| {
            buffer[*len..*len + packet.bytes.len()].copy_from_slice(&packet.bytes);
            *len += packet.bytes.len();
        };
        put(&mut buffer, &mut len, &first);
        let mut freed = stride;
        let mut joined = 0;
        while let Some(next) = socket.received.front() {
            let size = next.bytes.len();
            let fits = next.from == first.from
                && next.to == first.to
                && next.ecn == first.ecn
                && (1..=stride).contains(&size)
                && len + size <= UDP_PAYLOAD_MAX;
            if !fits || !network.random.happens(coalescing) {
                break;
            }
            let next = socket.received.pop_front().expect("seen above");
            put(&mut buffer, &mut len, &next);
            freed += size;
            joined += 1;
            if size < stride {
                break;
            }
        }
        socket.received_bytes -= freed;
        network.path.coalesced += joined;
        Datagram {
            peer: first.from,
            local: Some(first.to.ip()),
            ecn: first.ecn,
            stride: stride as u16,
            data: buffer.freeze(len),
        }
    }
}
