//! How a simulated shard sends: as much as there is room for, with the faults of a kernel.

use super::network::{ConnectionId, Network, SimSocketId};
use super::{SimDriver, traced};
use crate::datagram::Transmit;
use crate::driver::{Event, Tables};
use crate::sys::socket::UDP_PAYLOAD_MAX;

impl SimDriver {
    pub(super) fn try_send(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        events: &mut Vec<Event>,
    ) {
        let Some((id, end)) = self.connection(index) else {
            return;
        };
        let Some(queue) = &tables.streams.at(index).queue else {
            return;
        };
        if queue.in_flight || queue.bytes == 0 {
            return;
        }
        let room = match network.send_room(id, end) {
            Ok(room) => room,
            Err(errno) => return Self::fail(network, tables, index, id, end, errno, events),
        };
        let mut taken = room.min(queue.bytes);
        let mut short = false;
        if taken > 0 && network.random.happens(network.config.faults.short_send) {
            let less = network.random.below(taken as u64) as usize;
            network.faults.short_send += 1;
            taken = less;
            short = true;
        }
        let mut left = taken;
        for chunk in &queue.chunks {
            let part = left.min(chunk.len());
            network.send(id, end, &chunk.bytes()[..part]);
            left -= part;
        }
        if taken > 0 {
            network.note(traced::SENT, id << 32 | taken as u64);
            tables.stream_sent(index, taken, events);
            network.pump(id, end);
        }
        tables.streams.unpin(index);
        if let Some(queue) = &mut tables.streams.at(index).queue {
            queue.in_flight = true;
            if let Some(connection) = network.connections.get_mut(&id) {
                connection.ends[end].blocked = true;
            }
            if short {
                network.ready_later(id, end);
            }
        }
    }

    pub(super) fn fail(
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: ConnectionId,
        end: usize,
        errno: i32,
        events: &mut Vec<Event>,
    ) {
        let connection = network.connections.get_mut(&id);
        if connection
            .is_some_and(|connection| std::mem::replace(&mut connection.ends[end].failed, true))
        {
            return;
        }
        network.note(traced::FAILED, id << 32 | errno as u64);
        events.push(Event::Failed {
            stream: tables.streams.id(index),
            errno,
        });
    }

    pub(super) fn flush_socket(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        events: &mut Vec<Event>,
    ) {
        let Some(id) = self.socket(index) else {
            return;
        };
        while let Some(transmit) = tables.sockets.at(index).queue.pop_front() {
            if network
                .random
                .happens(network.config.faults.datagram_send_blocked)
            {
                network.faults.datagram_send_blocked += 1;
                let socket = tables.sockets.at(index);
                socket.queue.push_front(transmit.unpinned());
                socket.blocked = true;
                network.writable_later(self.port, id);
                break;
            }
            self.transmit(network, tables, index, id, &transmit, events);
        }
    }

    fn transmit(
        &mut self,
        network: &mut Network,
        tables: &mut Tables,
        index: u32,
        id: SimSocketId,
        transmit: &Transmit,
        events: &mut Vec<Event>,
    ) {
        let bytes = transmit.data.bytes();
        let count = transmit.count();
        let socket = tables.sockets.at(index);
        if count > 1
            && !socket.no_gso
            && network
                .random
                .happens(network.config.faults.segmentation_refused)
        {
            // As on a path without the offload: from now on one by one.
            network.faults.segmentation_refused += 1;
            socket.no_gso = true;
        }
        let connected = network.sockets.get(&id).and_then(|socket| socket.peer);
        let errno = match transmit.peer.or(connected) {
            None => Err(libc::EDESTADDRREQ),
            Some(_)
                if usize::from(transmit.stride) > UDP_PAYLOAD_MAX
                    || bytes.len() > UDP_PAYLOAD_MAX =>
            {
                Err(libc::EMSGSIZE)
            }
            Some(to) if to.is_ipv6() != socket.ipv6 && !socket.ipv6 => Err(libc::EAFNOSUPPORT),
            Some(to) => Ok(to),
        };
        match errno {
            Ok(to) => {
                let stride = usize::from(transmit.stride).max(1);
                for at in 0..count {
                    let start = (at * stride).min(bytes.len());
                    let one = &bytes[start..(start + stride).min(bytes.len())];
                    network.transmit(id, to, transmit.source, transmit.ecn, one);
                }
                network.note(traced::TRANSMITTED, id << 32 | bytes.len() as u64);
                tables.transmit_done(index, count, bytes.len(), true);
            }
            Err(errno) => {
                tables.transmit_done(index, count, bytes.len(), false);
                events.push(Event::SocketError {
                    socket: tables.sockets.id(index),
                    errno,
                });
            }
        }
        tables.socket_room(index, bytes.len(), events);
    }
}
