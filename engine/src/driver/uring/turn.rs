//! What a turn does beside its streams and sockets: it lends buffers, takes all completions and
//! hands each to what it answers.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{cqueue, opcode, types};

use super::Uring;
use super::requests::{OPS, Op, bit, tag};
use super::ring::BufferRing;
use crate::driver::{Event, Tables};
use crate::ids::{ListenerId, ServiceId, SocketId, StreamId};
use crate::stream::State;

/// A receive that found no buffer: its index and generation.
pub(super) enum Starved {
    Stream(u32, u32),
    Socket(u32, u32),
}

/// What a receive that brought no data means.
pub(super) enum WithoutData {
    /// It was cancelled or interrupted.
    Nothing,
    /// The peer sends no more.
    End,
    /// No buffer was free.
    NoBuffer,
    Failed(i32),
}

/// Takes back the buffer of a receive without data, if it names one, and says what it means.
pub(super) fn without_data(
    buffers: &mut BufferRing,
    tables: &mut Tables,
    completion: &cqueue::Entry,
) -> WithoutData {
    let flags = completion.flags();
    if let Some(bid) = cqueue::buffer_select(flags) {
        buffers.returned(bid, cqueue::buffer_more(flags));
    }
    match -completion.result() {
        0 => WithoutData::End,
        libc::ECANCELED | libc::EINTR | libc::EAGAIN => WithoutData::Nothing,
        libc::ENOBUFS => {
            tables.metrics.shard.buffers_exhausted.add(1);
            buffers.exhausted();
            WithoutData::NoBuffer
        }
        errno => WithoutData::Failed(errno),
    }
}

impl Uring {
    /// Submits what was tried so far: its memory can be used again.
    pub(super) fn submit_tried(&mut self) {
        if let Err(error) = self.ring.submit() {
            panic!("io_uring refused a submission: {error}");
        }
        self.headers_used = 0;
        self.message_memory_used = 0;
        self.message_vectors_used = 0;
    }

    pub(super) fn arm_eventfd(&mut self) {
        let Some(eventfd) = &self.eventfd else { return };
        if self.eventfd_armed {
            return;
        }
        self.eventfd_armed = true;
        let entry = opcode::PollAdd::new(types::Fd(eventfd.as_raw_fd()), libc::POLLIN as u32)
            .build()
            .user_data(tag(Op::Wake, 1, 0));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }

    /// Gives free buffers to the kernel and arms the receives that waited for one.
    pub(super) fn replenish(&mut self, tables: &mut Tables) {
        self.streams.lend();
        if let Some(datagrams) = &mut self.datagrams {
            datagrams.lend();
        }
        for _ in 0..self.starved.len() {
            let Some(starved) = self.starved.pop_front() else {
                return;
            };
            match starved {
                Starved::Stream(index, generation) if self.streams.lent() > 0 => {
                    let id = StreamId { index, generation };
                    if tables
                        .streams
                        .get(id)
                        .is_some_and(|stream| stream.state == State::Open)
                    {
                        self.arm_receive(tables, index);
                    }
                }
                Starved::Socket(index, generation)
                    if self
                        .datagrams
                        .as_ref()
                        .is_some_and(|buffers| buffers.lent() > 0) =>
                {
                    if tables.sockets.get(SocketId { index, generation }).is_some() {
                        self.arm_receive_message(tables, index);
                    }
                }
                still => self.starved.push_back(still),
            }
        }
    }

    pub(super) fn take_completions(
        &mut self,
        tables: &mut Tables,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        /// Completions copied out of the queue at a time, so that handling them may submit.
        const CHUNK: usize = 64;
        loop {
            while let Some(completion) = self.ring.stashed() {
                self.complete(tables, &completion, events);
            }
            let mut taken: [std::mem::MaybeUninit<cqueue::Entry>; CHUNK] =
                [const { std::mem::MaybeUninit::uninit() }; CHUNK];
            let mut queue = self.ring.completions();
            let chunk = queue.fill(&mut taken);
            drop(queue);
            for completion in chunk.iter() {
                self.complete(tables, completion, events);
            }
            if !chunk.is_empty() {
                continue;
            }
            if !self.ring.overflowed() {
                return Ok(());
            }
            tables.metrics.shard.completion_overflows.add(1);
            self.ring.flush_overflow()?;
        }
    }

    #[inline]
    fn complete(
        &mut self,
        tables: &mut Tables,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let user_data = completion.user_data();
        let op = OPS[(user_data >> 56) as usize];
        let detail = (user_data >> 32) as u32 & 0xff_ffff;
        let index = user_data as u32;
        match op {
            Op::Receive => self.received(tables, index, completion, events),
            Op::Send => {
                self.failed.insert(index, completion.result());
            }
            Op::SendMessage => self.tried_messages[index as usize].result = completion.result(),
            Op::ReceiveMessage => self.received_message(tables, index, completion, events),
            Op::SlowSend => self.slow_sent(tables, index, completion.result(), events),
            Op::Accept => self.accepted(tables, index as usize, completion, events),
            Op::Connect => self.connected(tables, index, completion.result(), events),
            Op::Close => {
                self.descriptors -= 1;
                let stream = tables.streams.at(index);
                stream.outstanding -= 1;
                if stream.driver & bit::OWN != 0 {
                    self.own_slots.push(stream.slot as u32);
                }
                self.release_if_done(tables, index);
            }
            Op::CloseSocket => {
                self.descriptors -= 1;
                let socket = tables.sockets.at(index);
                socket.outstanding -= 1;
                if socket.driver & bit::OWN != 0 {
                    self.own_slots.push(socket.slot as u32);
                }
                self.release_socket_if_done(tables, index);
            }
            Op::ConnectSocket => self.socket_connected(tables, index, completion.result()),
            Op::Writable => self.writable(tables, index),
            Op::Wake if detail == 1 => {
                self.eventfd_armed = false;
                if let Some(eventfd) = &self.eventfd {
                    // It was readable; an error would only mean another wake-up.
                    let _ = eventfd.drain();
                }
                self.arm_eventfd();
            }
            Op::Adopt if completion.result() >= 0 => {
                // `detail` is the service, `index` the endpoint; the result is the new slot.
                let listener = ListenerId {
                    service: detail as ServiceId,
                    endpoint: index as u16,
                };
                let stream = self.adopt_slot(tables, listener.service, completion.result(), 0);
                events.push(Event::Accepted {
                    listener,
                    stream,
                    peer: None,
                });
            }
            Op::HandOn => {
                let stream = tables.streams.at(index);
                stream.outstanding -= 1;
                if completion.result() < 0 {
                    tables.metrics.shard.driver_errors.add(1);
                }
                let (slot, bits) = (stream.slot, stream.driver);
                stream.outstanding += 1;
                let generation = tables.streams.id(index).generation;
                self.close_slot(slot, bits, tag(Op::Close, generation, index));
            }
            Op::Shutdown => {
                let generation = tables.streams.id(index).generation;
                let stream = tables.streams.at(index);
                stream.outstanding -= 1;
                stream.driver &= !bit::SHUTTING;
                if stream.state == State::Closing {
                    // The close that waited, already counted.
                    let (slot, bits) = (stream.slot, stream.driver);
                    self.close_slot(slot, bits, tag(Op::Close, generation, index));
                }
            }
            Op::Wake | Op::Adopt | Op::Ignore => {}
        }
    }
}
