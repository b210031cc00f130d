//! From the driver's events to the protocols' handlers.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use rand::Rng;

use super::Shard;
use super::timers::{ENGINE, RESUME_ACCEPT};
use crate::control::{Notice, Stop};
use crate::driver::{ACCEPT_PAUSE, Close, Event};
use crate::ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
use crate::protocol::Closed;
use crate::stream::State;
use crate::{Buffer, Nanos};

impl Shard {
    pub(super) fn dispatch(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        let mut drain = events.drain(..).peekable();
        while let Some(event) = drain.next() {
            match event {
                Event::Received { stream, data } => self.received(stream, data),
                Event::Datagram { socket, datagram } => {
                    self.batch.push(datagram);
                    while let Some(Event::Datagram { datagram, .. }) = drain
                        .next_if(|next| matches!(next, Event::Datagram { socket: other, .. } if *other == socket))
                    {
                        self.batch.push(datagram);
                    }
                    self.datagrams(socket);
                }
                other => self.rare(other),
            }
            if !self.core.closing.is_empty() {
                self.tell_closed();
            }
        }
        drop(drain);
        self.events = events;
    }

    #[inline]
    pub(super) fn received(&mut self, id: StreamId, data: Buffer) {
        let core = &mut self.core;
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        stream.active = core.tables.active;
        if stream.state != State::Open {
            return;
        }
        let service = usize::from(stream.service);
        core.tables.metrics.services[service]
            .received_bytes
            .add(data.len() as u64);
        if stream.paused || stream.holding {
            if stream.discarding {
                return;
            }
            stream.holding = true;
            core.held
                .entry(id.index)
                .or_default()
                .data
                .push_back(Buffer::copied(&data));
            return;
        }
        self.services[service].received(core, id, data);
    }

    pub(super) fn datagrams(&mut self, id: SocketId) {
        let core = &mut self.core;
        if let Some(socket) = core.tables.sockets.get(id) {
            let service = usize::from(socket.service);
            let counters = &core.tables.metrics.services[service];
            let (mut count, mut bytes) = (0, 0);
            for datagram in &self.batch {
                count += datagram.count() as u64;
                bytes += datagram.data.len() as u64;
            }
            counters.received_datagrams.add(count);
            counters.received_datagram_bytes.add(bytes);
            self.services[service].datagrams(core, id, &mut self.batch);
        }
        self.batch.clear();
    }

    #[cold]
    fn rare(&mut self, event: Event) {
        let core = &mut self.core;
        match event {
            Event::Accepted {
                listener,
                stream,
                peer,
            } => self.accepted(listener, stream, peer),
            Event::AcceptFailed { listener, errno } => self.accept_failed(listener, errno),
            Event::Connected { stream: id } => {
                let Some(stream) = core.tables.streams.get(id) else {
                    return;
                };
                let state = stream.state;
                let service = usize::from(stream.service);
                let counters = &core.tables.metrics.services[service];
                if state == State::Closing {
                    // Its protocol closed it after the driver had seen it open, but before it
                    // was told: it still hears once that it is gone.
                    counters.connect_failed.add(1);
                    core.closing
                        .push((id, service as ServiceId, Closed::Normally));
                    return;
                }
                stream.announced = true;
                stream.active = core.tables.active;
                counters.connected.add(1);
                counters.open.add(1);
                if state == State::Open {
                    self.services[service].connected(core, id);
                }
            }
            Event::Ended { stream: id } => {
                let Some(stream) = core.tables.streams.get(id) else {
                    return;
                };
                stream.ended = true;
                if stream.holding && !stream.discarding {
                    core.held.entry(id.index).or_default().ended = true;
                } else {
                    self.peer_ended(id);
                }
            }
            Event::Drained { stream: id } => {
                let Some(stream) = core.tables.streams.get(id) else {
                    return;
                };
                if stream.state == State::Open {
                    let service = usize::from(stream.service);
                    self.services[service].drained(core, id);
                }
            }
            Event::Flushed { stream: id } => self.flushed(id),
            Event::Failed { stream, errno } => {
                core.take_down(stream, Close::Reset, Closed::Error(errno));
            }
            Event::SocketDrained { socket: id } => {
                let Some(socket) = core.tables.sockets.get(id) else {
                    return;
                };
                let service = usize::from(socket.service);
                self.services[service].socket_drained(core, id);
            }
            Event::SocketError { socket: id, errno } => {
                let Some(socket) = core.tables.sockets.get(id) else {
                    return;
                };
                let service = usize::from(socket.service);
                self.services[service].socket_error(core, id, errno);
            }
            Event::Received { .. } | Event::Datagram { .. } => unreachable!("handled by dispatch"),
        }
    }

    /// The peer has ended, and all that it sent was given to the protocol.
    fn peer_ended(&mut self, id: StreamId) {
        let core = &mut self.core;
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        if stream.state != State::Open {
            return;
        }
        if core.stop != Stop::Run && stream.finishing {
            // Nothing is left for its protocol to do: what is queued goes, then it closes.
            core.close(id, Closed::Stopping);
        } else {
            let service = usize::from(stream.service);
            self.services[service].ended(core, id);
        }
    }

    /// The queue of a draining or finishing stream is empty.
    fn flushed(&mut self, id: StreamId) {
        let core = &mut self.core;
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        match stream.state {
            State::Draining => core.take_down(id, Close::Graceful, Closed::Normally),
            State::Open if stream.finishing => core.driver.finish(&mut core.tables, id.index),
            _ => {}
        }
    }

    pub(super) fn accepted(
        &mut self,
        listener: ListenerId,
        id: StreamId,
        peer: Option<SocketAddr>,
    ) {
        let core = &mut self.core;
        let live = core.tables.streams.live();
        self.loads[usize::from(core.tables.shard)].store(live, Ordering::Relaxed);
        let Some(stream) = core.tables.streams.get(id) else {
            return;
        };
        let service = usize::from(listener.service);
        let total = core.control.connections.fetch_add(1, Ordering::Relaxed) + 1;
        stream.accepted = true;
        stream.active = core.tables.active;
        if total > core.tables.limits.max_connections || core.stop != Stop::Run {
            core.tables.metrics.services[service].refused.add(1);
            core.take_down(id, Close::Reset, Closed::Normally);
            return;
        }
        if live > core.driver.capacity() {
            let room = self
                .loads
                .iter()
                .map(|load| load.load(Ordering::Relaxed))
                .enumerate();
            let (least, load) = room
                .min_by_key(|(_, load)| *load)
                .expect("there is a shard");
            let full = load >= core.driver.capacity();
            core.control.connections.fetch_sub(1, Ordering::Relaxed);
            core.tables.streams.at(id.index).accepted = false;
            if !full
                && core
                    .driver
                    .hand_on(&mut core.tables, id.index, listener, least as ShardId)
            {
                core.tables.metrics.shard.handed_on.add(1);
                return;
            }
            core.tables.metrics.services[service].refused.add(1);
            core.take_down(id, Close::Reset, Closed::Normally);
            return;
        }
        let stream = core.tables.streams.at(id.index);
        stream.announced = true;
        let counters = &core.tables.metrics.services[service];
        counters.accepted.add(1);
        counters.open.add(1);
        core.driver.read(&mut core.tables, id.index, true);
        self.services[service].accepted(core, id, listener, peer);
    }

    fn accept_failed(&mut self, listener: ListenerId, errno: i32) {
        let core = &mut self.core;
        if core.control.stop() != Stop::Run {
            // Its listener was shut by the stop, of which this shard may not know yet.
            return;
        }
        core.control.notify(Notice::AcceptFailed {
            shard: core.tables.shard,
            listener,
            errno,
        });
        if core.accept_paused {
            return;
        }
        core.accept_paused = true;
        core.tables.metrics.shard.accept_pauses.add(1);
        core.driver.accept(&mut core.tables, false);
        let pause = core
            .random
            .random_range(ACCEPT_PAUSE.start.as_nanos()..ACCEPT_PAUSE.end.as_nanos());
        core.timers
            .insert(core.now + pause as Nanos, (ENGINE, RESUME_ACCEPT));
    }

    /// Gives resumed streams what was held for them, before anything that arrives from now on.
    pub(super) fn deliver_held(&mut self) {
        while let Some(id) = self.core.resumed.pop() {
            loop {
                let core = &mut self.core;
                let Some(stream) = core.tables.streams.get(id) else {
                    break;
                };
                let service = usize::from(stream.service);
                // Closed meanwhile, with something left to send: nothing more is received.
                if stream.state != State::Open || stream.paused || !stream.holding {
                    break;
                }
                let Some(held) = core.held.get_mut(&id.index) else {
                    break;
                };
                if let Some(data) = held.data.pop_front() {
                    self.services[service].received(core, id, data);
                    continue;
                }
                stream.holding = false;
                let ended = held.ended;
                core.held.remove(&id.index);
                core.driver.read(&mut core.tables, id.index, true);
                if ended {
                    self.peer_ended(id);
                }
            }
        }
    }

    /// Tells those that the shard's bound refused, once half of it is free.
    pub(super) fn tell_of_room(&mut self) {
        let tables = &mut self.core.tables;
        let waiting = !tables.streams.waiting.is_empty() || !tables.sockets.waiting.is_empty();
        let limits = &tables.limits;
        let is_full = tables.streams.queued_bytes > limits.shard_queue_bytes_max / 2
            || tables.streams.queued_messages > limits.shard_queue_messages_max / 2;
        if !waiting || is_full {
            return;
        }
        // They may be refused again, and then wait for the next time.
        let streams = std::mem::take(&mut tables.streams.waiting);
        let sockets = std::mem::take(&mut tables.sockets.waiting);
        for id in streams {
            let core = &mut self.core;
            let Some(stream) = core.tables.streams.get(id) else {
                continue;
            };
            stream.waiting = false;
            if stream.state == State::Open && !stream.finishing {
                let service = usize::from(stream.service);
                self.services[service].drained(core, id);
            }
        }
        for id in sockets {
            let core = &mut self.core;
            let Some(socket) = core.tables.sockets.get(id) else {
                continue;
            };
            socket.waiting = false;
            let service = usize::from(socket.service);
            self.services[service].socket_drained(core, id);
        }
    }

    pub(super) fn tell_closed(&mut self) {
        // A handler may close more streams, so take one at a time.
        while let Some((id, service, reason)) = self.core.closing.pop() {
            self.services[usize::from(service)].closed(&mut self.core, id, reason);
        }
        let live = self.core.tables.streams.live();
        self.loads[usize::from(self.core.tables.shard)].store(live, Ordering::Relaxed);
    }
}
