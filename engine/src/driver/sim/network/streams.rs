//! The bytes of connections: windows, segments, FIN and resets.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::{ConnectionId, Happening, HostId, Network, PortId};
use crate::Nanos;
use crate::driver::Address;
use crate::driver::sim::config::Partition;

/// Which way FIN has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(in crate::driver::sim) enum Fin {
    No,
    Wanted,
    Sent,
    Arrived,
}

/// One direction of a connection.
#[derive(Debug)]
pub(in crate::driver::sim) struct Pipe {
    /// Taken from the sender, not yet on its way.
    pub(super) unsent: VecDeque<u8>,
    pub(super) in_flight: usize,
    /// On its way or arrived, but the sender does not know yet.
    pub(super) unacknowledged: usize,
    pub(in crate::driver::sim) received: VecDeque<u8>,
    pub(in crate::driver::sim) fin: Fin,
    pub(super) last_arrival: Nanos,
    pub(super) send_bytes_max: usize,
    pub(super) receive_bytes_max: usize,
    pub(super) window_update: bool,
}

impl Pipe {
    pub(in crate::driver::sim) fn room(&self) -> usize {
        self.send_bytes_max
            .saturating_sub(self.unsent.len() + self.unacknowledged)
    }

    fn is_done(&self) -> bool {
        self.unsent.is_empty() && self.in_flight == 0 && self.fin == Fin::Arrived
    }
}

/// Who holds one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::driver::sim) struct Owner {
    pub(in crate::driver::sim) port: PortId,
    /// Position in the shard's table of streams.
    pub(in crate::driver::sim) index: u32,
}

#[derive(Debug, Default)]
pub(in crate::driver::sim) struct End {
    pub(super) host: HostId,
    pub(in crate::driver::sim) owner: Option<Owner>,
    /// The outcome of the connect, until it is told.
    pub(in crate::driver::sim) outcome: Option<Result<(), i32>>,
    pub(in crate::driver::sim) connecting: bool,
    pub(in crate::driver::sim) reading: bool,
    /// Already on the port's list.
    pub(super) ready: bool,
    /// The driver has more to send and waits for room.
    pub(in crate::driver::sim) blocked: bool,
    pub(in crate::driver::sim) error: Option<i32>,
    /// Failure or end was told.
    pub(in crate::driver::sim) failed: bool,
    pub(in crate::driver::sim) ended: bool,
    /// The application has let go of it.
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(in crate::driver::sim) struct Connection {
    pub(in crate::driver::sim) ends: [End; 2],
    /// `pipes[i]` carries what end `i` sends.
    pub(in crate::driver::sim) pipes: [Pipe; 2],
    pub(in crate::driver::sim) client: Option<SocketAddr>,
    pub(super) to: Address,
    pub(super) syn_tries: u32,
    /// A reset has been sent by one of the ends: nothing more passes.
    pub(super) reset: bool,
    /// The server's side has taken the SYN.
    pub(super) established: bool,
}

impl Network {
    pub(super) fn delay(&mut self) -> Nanos {
        self.random.within(&self.config.streams.delay)
    }

    /// When something sent now from one host to another arrives, if nothing cuts them off; a
    /// partition makes it wait.
    pub(super) fn arrival(&mut self, from: HostId, to: HostId) -> Nanos {
        let at = self.now + self.delay();
        let cut = |partition: &&Partition| (partition.from..partition.until).contains(&at);
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

    pub(super) fn mark_ready(&mut self, id: ConnectionId, at: usize) {
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
    pub(in crate::driver::sim) fn ready_later(&mut self, id: ConnectionId, end: usize) {
        let at = self.fault_delay();
        self.schedule(at, Happening::Ready(id, end));
    }

    /// The driver looks at an end now.
    pub(in crate::driver::sim) fn take_ready(
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
    pub(in crate::driver::sim) fn ready_again(&mut self, id: ConnectionId, end: usize) {
        self.mark_ready(id, end);
    }

    pub(in crate::driver::sim) fn set_reading(&mut self, id: ConnectionId, at: usize, on: bool) {
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
    pub(in crate::driver::sim) fn send_room(
        &self,
        id: ConnectionId,
        at: usize,
    ) -> Result<usize, i32> {
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

    pub(in crate::driver::sim) fn send(&mut self, id: ConnectionId, at: usize, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pipes[at].unsent.extend(bytes);
        }
    }

    pub(in crate::driver::sim) fn finish(&mut self, id: ConnectionId, at: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.pipes[at].fin == Fin::No {
            connection.pipes[at].fin = Fin::Wanted;
        }
        self.pump(id, at);
    }

    /// Sends what the peer's window allows, cut anywhere.
    pub(in crate::driver::sim) fn pump(&mut self, id: ConnectionId, at: usize) {
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

    pub(super) fn segment(&mut self, id: ConnectionId, from: usize, bytes: &[u8]) {
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
    pub(in crate::driver::sim) fn receive(
        &mut self,
        id: ConnectionId,
        at: usize,
        into: &mut [u8],
    ) -> usize {
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

    pub(super) fn reset_arrives(&mut self, id: ConnectionId, at: usize) {
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
    pub(in crate::driver::sim) fn let_go(&mut self, id: ConnectionId, at: usize, reset: bool) {
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
    pub(super) fn reap(&mut self, id: ConnectionId) {
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
}
