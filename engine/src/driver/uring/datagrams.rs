//! Datagram sockets: one multishot receive each, and sends tried in their submission, of many equal
//! datagrams at once where the path allows it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use io_uring::{cqueue, opcode, squeue, types};

use super::Uring;
use super::requests::{Op, bit, slot_flags, tag};
use super::ring::BufferRing;
use super::turn::{Starved, WithoutData, without_data};
use crate::datagram::{GATHERED_MAX, Transmit, gathered, name_of, segments};
use crate::driver::{Event, Tables, segments_that_fit};
use crate::ids::{ServiceId, SocketId};
use crate::sys::message::{self, Control, Name};
use crate::sys::socket;
use crate::{Datagram, Payload};

const DATAGRAM_GROUP: u16 = 1;

/// One datagram buffer: header, address, control messages and the most that the kernel coalesces.
const DATAGRAM_BUFFER_LEN: usize = 64 * 1024 + 256;

/// A datagram send handed to the kernel in this turn.
pub(super) struct TriedMessage {
    pub(super) index: u32,
    pub(super) datagrams: usize,
    /// Which transmits of `transmits`: several whole ones, or the part of one that follows.
    pub(super) transmit: usize,
    pub(super) gathered: usize,
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) segmented: bool,
    pub(super) result: i32,
}

/// A place in memory that is not set yet.
const EMPTY_VECTOR: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Memory that the kernel reads while it takes a datagram send.
#[derive(Clone)]
pub(super) struct MessageMemory {
    pub(super) header: libc::msghdr,
    pub(super) name: Name,
    pub(super) control: Control,
}

impl Uring {
    fn open_datagram_buffers(&mut self) -> io::Result<()> {
        if self.datagrams.is_none() {
            let count = self.datagram_buffers.clamp(8, 1 << 14).next_power_of_two() as u16;
            self.datagrams = Some(BufferRing::new(
                &self.ring,
                DATAGRAM_GROUP,
                count,
                DATAGRAM_BUFFER_LEN,
                false,
            )?);
            let memory = MessageMemory {
                // SAFETY: an all-zero msghdr is a valid one.
                header: unsafe { std::mem::zeroed() },
                name: Name::new(),
                control: Control::new(),
            };
            let capacity = self.ring.submission_capacity();
            self.message_memory = vec![memory; capacity].into();
            self.message_vectors = vec![EMPTY_VECTOR; capacity.max(GATHERED_MAX)].into();
        }
        Ok(())
    }

    pub(super) fn insert_socket(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        fd: OwnedFd,
        local: SocketAddr,
    ) -> io::Result<SocketId> {
        self.open_datagram_buffers()?;
        let (slot, bits) = self.take_slot(fd)?;
        self.descriptors += 1;
        let id = tables.sockets.insert(service, slot, local);
        tables.sockets.at(id.index).driver = bits;
        self.arm_receive_message(tables, id.index);
        Ok(id)
    }

    /// Fixes a socket's peer. UDP connects within the submission, so that what is sent next in the
    /// same one needs no name already.
    pub(super) fn connect_datagrams(&mut self, tables: &mut Tables, index: u32, peer: SocketAddr) {
        if self.connecting_sockets.contains_key(&index) {
            // The kernel may still read the address of the connect before.
            return;
        }
        let generation = tables.sockets.id(index).generation;
        let address = Box::new(socket2::SockAddr::from(peer));
        let socket = tables.sockets.at(index);
        socket.connected = Some(peer);
        socket.outstanding += 1;
        let fd = types::Fd(socket.slot);
        let entry = opcode::Connect::new(fd, address.as_ptr().cast(), address.len())
            .build()
            .flags(slot_flags(socket.driver))
            .user_data(tag(Op::ConnectSocket, generation, index));
        self.connecting_sockets.insert(index, address);
        // SAFETY: the address is boxed and kept in `connecting_sockets` until the request has completed.
        unsafe { self.push(&entry) };
    }

    pub(super) fn socket_connected(&mut self, tables: &mut Tables, index: u32, result: i32) {
        self.connecting_sockets.remove(&index);
        let socket = tables.sockets.at(index);
        socket.outstanding -= 1;
        if result < 0 {
            socket.connected = None;
        }
        self.release_socket_if_done(tables, index);
    }

    pub(super) fn arm_receive_message(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.sockets.id(index).generation;
        let socket = tables.sockets.at(index);
        if socket.driver & bit::ARMED != 0 || socket.paused || !socket.open {
            return;
        }
        socket.driver |= bit::ARMED;
        socket.outstanding += 1;
        let header: *const libc::msghdr = &raw const *self.receive_header;
        let entry = opcode::RecvMsgMulti::new(types::Fd(socket.slot), header, DATAGRAM_GROUP)
            .build()
            .flags(slot_flags(socket.driver))
            .user_data(tag(Op::ReceiveMessage, generation, index));
        // SAFETY: the header is boxed, never written again and outlives the ring's requests; the
        // buffers are those of the registered group.
        unsafe { self.push(&entry) };
    }

    pub(super) fn received_message(
        &mut self,
        tables: &mut Tables,
        index: u32,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let (result, flags) = (completion.result(), completion.flags());
        let id = tables.sockets.id(index);
        let socket = tables.sockets.at(index);
        let more = cqueue::more(flags);
        if !more {
            socket.driver &= !(bit::ARMED | bit::CANCELLING);
            socket.outstanding -= 1;
        }
        let open = socket.open;
        let buffers = self.datagrams.as_mut().expect("a socket was opened");
        if result >= 0 {
            if let Some(bid) = cqueue::buffer_select(flags) {
                buffers.received(bid, result as usize, false, |mut data| {
                    let header = *self.receive_header;
                    let Ok(parsed) = types::RecvMsgOut::parse(&data, &header) else {
                        return;
                    };
                    let Some(peer) = message::parse_name(parsed.name_data()) else {
                        return;
                    };
                    let control = message::parse_control(parsed.control_data());
                    let payload = parsed.payload_data().len();
                    // The payload is what follows the fixed-size head.
                    let head = data.len() - payload;
                    data.advance(head);
                    if open {
                        let stride = control
                            .stride
                            .unwrap_or(u16::try_from(payload).unwrap_or(u16::MAX));
                        let datagram = Datagram {
                            peer,
                            local: control.local,
                            ecn: control.ecn,
                            stride,
                            data,
                        };
                        events.push(Event::Datagram {
                            socket: id,
                            datagram,
                        });
                    }
                });
            }
        } else {
            match without_data(buffers, tables, completion) {
                WithoutData::NoBuffer => {
                    self.starved
                        .push_back(Starved::Socket(index, id.generation));
                    self.release_socket_if_done(tables, index);
                    return;
                }
                WithoutData::Failed(errno) if open => {
                    events.push(Event::SocketError { socket: id, errno });
                }
                WithoutData::Failed(_) | WithoutData::Nothing | WithoutData::End => {}
            }
        }
        if !more {
            if tables.sockets.at(index).open {
                self.arm_receive_message(tables, index);
            } else {
                self.release_socket_if_done(tables, index);
            }
        }
    }

    pub(super) fn release_socket_if_done(&mut self, tables: &mut Tables, index: u32) {
        let socket = tables.sockets.at(index);
        if !socket.open && socket.outstanding == 0 && socket.slot >= 0 {
            tables.sockets.remove(index);
        }
    }

    /// Tries the whole queue of a socket.
    pub(super) fn flush_socket(&mut self, tables: &mut Tables, index: u32) {
        self.outcome_awaited |= tables.sockets.at(index).was_full;
        loop {
            let socket = tables.sockets.at(index);
            let Some(first) = socket.queue.front() else {
                return;
            };
            let at_once = match socket.no_gso {
                true => 1,
                false => segments_that_fit(usize::from(first.stride), socket::gso_segments_max()),
            };
            let gathered = gathered(&socket.queue, 0, at_once);
            let at = self.transmits.len();
            self.transmits.extend(socket.queue.drain(..gathered));
            if gathered == 1 {
                self.try_transmit(tables, index, at, at_once);
            } else {
                let all = &self.transmits[at..];
                let len = all.iter().map(|transmit| transmit.data.len()).sum();
                let datagrams = all.iter().map(Transmit::count).sum();
                self.try_message(tables, index, (at, gathered), (0, len), datagrams);
            }
        }
    }

    /// Hands one transmit to the kernel: as one GSO send, or as several of `at_once` datagrams.
    fn try_transmit(&mut self, tables: &mut Tables, index: u32, at: usize, at_once: usize) {
        let transmit = &self.transmits[at];
        let (len, stride) = (transmit.data.len(), transmit.stride);
        let whole = segments(len, stride);
        if whole <= at_once {
            self.try_message(tables, index, (at, 1), (0, len), whole);
            return;
        }
        let step = usize::from(stride).max(1) * at_once;
        let mut start = 0;
        while start < len {
            let part = step.min(len - start);
            let count = segments(part, stride);
            self.try_message(tables, index, (at, 1), (start, part), count);
            start += part;
        }
    }

    /// Hands `gathered` transmits from `at` on to the kernel as one send, or a part of one.
    fn try_message(
        &mut self,
        tables: &mut Tables,
        index: u32,
        (at, gathered): (usize, usize),
        (start, len): (usize, usize),
        count: usize,
    ) {
        if self.message_memory_used == self.message_memory.len()
            || self.message_vectors_used + gathered > self.message_vectors.len()
            || self.ring.is_full()
        {
            self.submit_tried();
        }
        let socket = tables.sockets.at(index);
        let transmit = &self.transmits[at];
        let memory = &mut self.message_memory[self.message_memory_used];
        self.message_memory_used += 1;
        let used = self.message_vectors_used;
        let vectors = &mut self.message_vectors[used..used + gathered];
        self.message_vectors_used += gathered;
        for (vector, transmit) in vectors.iter_mut().zip(&self.transmits[at..]) {
            let bytes = transmit.data.bytes();
            let bytes = match gathered {
                1 => &bytes[start..start + len],
                _ => bytes,
            };
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
        }
        memory.header.msg_iov = vectors.as_mut_ptr();
        memory.header.msg_iovlen = gathered;
        match name_of(transmit.peer, socket.connected) {
            Some(peer) => {
                memory.name.set(peer, socket.ipv6);
                memory.header.msg_name = memory.name.as_slice().as_ptr().cast_mut().cast();
                memory.header.msg_namelen = memory.name.as_slice().len() as u32;
            }
            None => {
                memory.header.msg_name = std::ptr::null_mut();
                memory.header.msg_namelen = 0;
            }
        }
        self.outcome_awaited |= socket.was_full;
        let segmented = count > 1;
        memory.control.set(
            segmented.then_some(transmit.stride),
            transmit.source,
            message::traffic_class(socket.dscp, transmit.ecn),
            socket.ipv6,
        );
        let control = memory.control.as_slice();
        memory.header.msg_controllen = control.len();
        memory.header.msg_control = if control.is_empty() {
            std::ptr::null_mut()
        } else {
            control.as_ptr().cast_mut().cast()
        };
        let entry = opcode::SendMsg::new(types::Fd(socket.slot), &raw const memory.header)
            .flags((libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u32)
            .build()
            .flags(slot_flags(socket.driver) | squeue::Flags::SKIP_SUCCESS)
            .user_data(tag(Op::SendMessage, 0, self.tried_messages.len() as u32));
        // SAFETY: MSG_DONTWAIT makes the kernel finish with the header, the name, the control
        // messages, the vectors and the bytes within the submission; they stay in place until
        // `settle_messages` (the arenas are boxed and reused only after a submit, the transmits
        // are kept, their bytes never move).
        unsafe { self.push(&entry) };
        self.tried_messages.push(TriedMessage {
            index,
            datagrams: count,
            transmit: at,
            gathered,
            start,
            len,
            segmented,
            result: 0,
        });
    }

    /// As `settle_tried`, for datagrams.
    pub(super) fn settle_messages(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        let mut again: Vec<(u32, Transmit)> = Vec::new();
        for tried in std::mem::take(&mut self.tried_messages) {
            let id = tables.sockets.id(tried.index);
            debug_assert!(
                tables.sockets.at(tried.index).open,
                "sockets close between waits, when every send is settled"
            );
            let errno = -tried.result;
            let retry = match errno {
                0 => {
                    tables.transmit_done(tried.index, tried.datagrams, tried.len, true);
                    false
                }
                // The socket's send buffer is full: wait for room.
                libc::EAGAIN => true,
                // No segmentation offload on this path, or the datagram is larger than its MTU.
                libc::EIO | libc::EINVAL | libc::EMSGSIZE if tried.segmented => {
                    tables.sockets.at(tried.index).no_gso = true;
                    true
                }
                errno => {
                    tables.transmit_done(tried.index, tried.datagrams, tried.len, false);
                    events.push(Event::SocketError { socket: id, errno });
                    false
                }
            };
            if retry {
                let untried = self.untried(&tried);
                again.extend(untried.map(|transmit| (tried.index, transmit)));
                let socket = tables.sockets.at(tried.index);
                if errno == libc::EAGAIN && !socket.blocked {
                    socket.blocked = true;
                    self.arm_writable(tables, tried.index);
                }
            } else {
                tables.socket_room(tried.index, tried.len, events);
            }
        }
        self.transmits.clear();
        // Back to the front, in their order.
        for (index, transmit) in again.into_iter().rev() {
            let socket = tables.sockets.at(index);
            socket.queue.push_front(transmit);
            if !socket.blocked {
                tables.sockets.mark_dirty(index);
            }
        }
    }

    /// What the kernel did not take of one send, holding no receive buffer.
    fn untried(&self, tried: &TriedMessage) -> impl Iterator<Item = Transmit> {
        let all = &self.transmits[tried.transmit..tried.transmit + tried.gathered];
        let (start, len, whole) = (tried.start, tried.len, tried.gathered > 1);
        all.iter().map(move |transmit| {
            let bytes = transmit.data.bytes();
            if whole || len == bytes.len() {
                return transmit.clone().unpinned();
            }
            Transmit {
                data: Payload::from(bytes[start..start + len].to_vec()),
                ..transmit.clone()
            }
        })
    }

    fn arm_writable(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.sockets.id(index).generation;
        let socket = tables.sockets.at(index);
        socket.outstanding += 1;
        let entry = opcode::PollAdd::new(types::Fd(socket.slot), libc::POLLOUT as u32)
            .build()
            .flags(slot_flags(socket.driver))
            .user_data(tag(Op::Writable, generation, index));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }

    pub(super) fn writable(&mut self, tables: &mut Tables, index: u32) {
        let socket = tables.sockets.at(index);
        socket.outstanding -= 1;
        // Someone may wait for the queue to empty: a stop, or a protocol that was told "full".
        self.outcome_awaited = true;
        tables.unblock_socket(index);
        self.release_socket_if_done(tables, index);
    }
}
