//! Datagram sockets: received and sent in batches, of many equal datagrams in one buffer where the
//! path allows it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::Epoll;
use super::interest::{EDGE, ERR, HUP, IN, Kind, OUT, bit, word};
use super::streams::keep;
use crate::datagram::{Transmit, gathered, name_of, segments};
use crate::driver::{Event, Tables, segments_that_fit};
use crate::ids::{ServiceId, SocketId};
use crate::sys::batch::{Outgoing, ReceiveBatch, SEND_BATCH, SEND_PIECES_MAX, SendBatch};
use crate::sys::{message, socket};

/// Batches taken from one datagram socket before the others have their turn.
const SOCKET_TURN_BATCHES: usize = 4;

/// What receiving and sending datagrams needs; made for the first socket.
pub(super) struct Datagrams {
    pub(super) receive: ReceiveBatch,
    send: SendBatch,
    parts: Vec<Part>,
}

/// One message of a send: several whole transmits from a position of the queue on, or a part of one.
struct Part {
    transmit: usize,
    gathered: usize,
    start: usize,
    len: usize,
    datagrams: usize,
}

impl Epoll {
    pub(super) fn insert_socket(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        fd: OwnedFd,
        local: std::net::SocketAddr,
    ) -> io::Result<SocketId> {
        if self.datagrams.is_none() {
            self.datagrams = Some(Datagrams {
                receive: ReceiveBatch::new(self.datagram_buffers.clamp(8, 1 << 14))?,
                send: SendBatch::new(),
                parts: Vec::with_capacity(SEND_BATCH),
            });
        }
        let raw = fd.as_raw_fd();
        let id = tables.sockets.insert(service, raw, local);
        if let Err(error) =
            self.poller
                .add(raw, IN | EDGE, word(Kind::Socket, id.generation, id.index))
        {
            tables.sockets.remove(id.index);
            return Err(error);
        }
        keep(&mut self.socket_files, id.index, fd);
        self.descriptors += 1;
        Ok(id)
    }

    pub(super) fn list_socket(&mut self, tables: &mut Tables, id: SocketId) {
        let socket = tables.sockets.at(id.index);
        if socket.driver & bit::LISTED == 0 {
            socket.driver |= bit::LISTED;
            self.readable_sockets.push(id);
        }
    }

    pub(super) fn socket_ready(
        &mut self,
        tables: &mut Tables,
        id: SocketId,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        let Some(socket) = tables.sockets.get(id) else {
            return;
        };
        if flags & OUT != 0 && socket.blocked {
            socket.blocked = false;
            let fd = socket.slot;
            // Room is reported with every datagram that leaves: watch it only while blocked.
            let word = word(Kind::Socket, id.generation, id.index);
            let _ = self.poller.modify(fd, IN | EDGE, word);
            // At once, so that a shard which stops sees the queue empty in this turn.
            self.transmit(tables, id.index, events);
        }
        if flags & (IN | ERR | HUP) != 0 {
            let socket = tables.sockets.at(id.index);
            socket.driver |= bit::READABLE;
            if !socket.paused {
                self.receive_datagrams(tables, id, flags & ERR != 0, events);
            }
        }
    }

    /// Receives until everything is taken, or the socket has had its turn. `exhaust` when an
    /// error waits somewhere among the datagrams.
    pub(super) fn receive_datagrams(
        &mut self,
        tables: &mut Tables,
        id: SocketId,
        exhaust: bool,
        events: &mut Vec<Event>,
    ) {
        let datagrams = self.datagrams.as_mut().expect("a socket was opened");
        let fd = tables.sockets.at(id.index).slot;
        for _ in 0..SOCKET_TURN_BATCHES {
            let lent = datagrams.receive.lend();
            if lent == 0 {
                tables.metrics.shard.buffers_exhausted.add(1);
                if events
                    .iter()
                    .any(|event| matches!(event, Event::Datagram { .. }))
                {
                    // Those of this turn are about to come back.
                    break;
                }
            }
            let each = |datagram| {
                events.push(Event::Datagram {
                    socket: id,
                    datagram,
                })
            };
            let result = match lent {
                0 => datagrams.receive.receive_copied(fd, each).map(|()| true),
                _ => datagrams.receive.receive(fd, each).map(|(_, more)| more),
            };
            match result {
                Ok(more) if more || exhaust => {}
                Ok(_) | Err(libc::EAGAIN) => {
                    tables.sockets.at(id.index).driver &= !bit::READABLE;
                    return;
                }
                // Taken by asking; what else waits comes after it.
                Err(errno) => events.push(Event::SocketError { socket: id, errno }),
            }
        }
        self.list_socket(tables, id);
    }

    /// Sends the queue of a socket: batches of GSO sends, or of single datagrams where the path
    /// has refused those.
    pub(super) fn transmit(&mut self, tables: &mut Tables, index: u32, events: &mut Vec<Event>) {
        loop {
            self.plan(tables, index);
            let datagrams = self.datagrams.as_mut().expect("a socket was opened");
            let socket = tables.sockets.at(index);
            if datagrams.parts.is_empty() {
                return;
            }
            let (queue, dscp, connected) = (&socket.queue, socket.dscp, socket.connected);
            let messages = datagrams.parts.iter().map(|part| {
                let transmit = &queue[part.transmit];
                let all = queue.range(part.transmit..part.transmit + part.gathered);
                let pieces = all.map(|transmit| match part.gathered {
                    1 => &transmit.data.bytes()[part.start..part.start + part.len],
                    _ => transmit.data.bytes(),
                });
                Outgoing {
                    peer: name_of(transmit.peer, connected),
                    source: transmit.source,
                    class: message::traffic_class(dscp, transmit.ecn),
                    segment: (part.datagrams > 1).then_some(transmit.stride),
                    pieces,
                }
            });
            match datagrams.send.send(socket.slot, socket.ipv6, messages) {
                Ok(sent) => self.leave(tables, index, sent, true, events),
                Err(libc::EAGAIN) => return self.wait_for_socket_room(tables, index, events),
                // No segmentation offload on this path, or the datagram is larger than its MTU.
                Err(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
                    if datagrams.parts[0].datagrams > 1 =>
                {
                    socket.no_gso = true;
                }
                Err(errno) => {
                    self.leave(tables, index, 1, false, events);
                    events.push(Event::SocketError {
                        socket: tables.sockets.id(index),
                        errno,
                    });
                }
            }
        }
    }

    /// Cuts the front of a socket's queue into the messages of one batch.
    fn plan(&mut self, tables: &mut Tables, index: u32) {
        let Some(datagrams) = &mut self.datagrams else {
            return;
        };
        let parts = &mut datagrams.parts;
        parts.clear();
        let socket = tables.sockets.at(index);
        let (mut transmit, mut pieces) = (0, 0);
        'queue: while let Some(data) = socket.queue.get(transmit) {
            let (len, stride) = (data.data.len(), usize::from(data.stride).max(1));
            let at_once = match socket.no_gso {
                true => 1,
                false => segments_that_fit(stride, socket::gso_segments_max()),
            };
            let gathered = gathered(&socket.queue, transmit, at_once);
            if gathered > 1 {
                pieces += gathered;
                if parts.len() == SEND_BATCH || pieces > SEND_PIECES_MAX {
                    break;
                }
                let all = socket.queue.range(transmit..transmit + gathered);
                parts.push(Part {
                    transmit,
                    gathered,
                    start: 0,
                    len: all.clone().map(|transmit| transmit.data.len()).sum(),
                    datagrams: all.map(Transmit::count).sum(),
                });
                transmit += gathered;
                continue;
            }
            let step = stride * at_once;
            let mut start = 0;
            loop {
                pieces += 1;
                if parts.len() == SEND_BATCH || pieces > SEND_PIECES_MAX {
                    break 'queue;
                }
                let len_of_part = step.min(len - start);
                let datagrams = segments(len_of_part, data.stride);
                parts.push(Part {
                    transmit,
                    gathered: 1,
                    start,
                    len: len_of_part,
                    datagrams,
                });
                start += len_of_part;
                if start == len {
                    break;
                }
            }
            transmit += 1;
        }
    }

    /// Takes the first messages of the plan out of the queue: sent, or given up.
    fn leave(
        &mut self,
        tables: &mut Tables,
        index: u32,
        count: usize,
        sent: bool,
        events: &mut Vec<Event>,
    ) {
        let Some(datagrams) = &mut self.datagrams else {
            return;
        };
        for part in &datagrams.parts[..count] {
            let queue = &mut tables.sockets.at(index).queue;
            let front = queue.front_mut().expect("the plan was made from the queue");
            if part.gathered == 1 && front.data.len() > part.len {
                front.data.advance(part.len);
            } else {
                queue.drain(..part.gathered);
            }
            tables.transmit_done(index, part.datagrams, part.len, sent);
            tables.socket_room(index, part.len, events);
        }
    }

    #[cold]
    fn wait_for_socket_room(&mut self, tables: &mut Tables, index: u32, events: &mut Vec<Event>) {
        let id = tables.sockets.id(index);
        let socket = tables.sockets.at(index);
        let queue = std::mem::take(&mut socket.queue);
        socket.queue = queue.into_iter().map(Transmit::unpinned).collect();
        socket.blocked = true;
        let interest = IN | OUT | EDGE;
        if let Err(error) = self.poller.modify(
            socket.slot,
            interest,
            word(Kind::Socket, id.generation, id.index),
        ) {
            socket.blocked = false;
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            events.push(Event::SocketError { socket: id, errno });
        }
    }
}
