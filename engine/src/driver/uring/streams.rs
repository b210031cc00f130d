//! Streams: multishot receives, sends tried in their submission, and sends that wait for room.

use io_uring::{cqueue, opcode, squeue, types};

use super::requests::{Op, bit, slot_flags, tag};
use super::turn::{Starved, WithoutData, without_data};
use super::{Feature, INCREMENTAL_BUFFER_LEN, STREAM_BUFFER_LEN, Uring};
use crate::driver::{Event, Tables};
use crate::stream::{SendQueue, State};

/// Bytes in one send of one piece: its length travels in 32 bits.
const SEND_LEN_MAX: usize = 1 << 30;

/// Pieces of one stream's queue in one send.
const VECTORS_MAX: usize = 64;

/// A send handed to the kernel in this turn.
pub(super) struct Tried {
    pub(super) index: u32,
    pub(super) bytes: usize,
}

/// Fills the queue's vectors with its first pieces; returns their bytes.
fn gather(queue: &mut SendQueue) -> usize {
    queue.vectors.clear();
    let mut bytes = 0;
    for chunk in queue.chunks.iter().take(VECTORS_MAX) {
        let chunk = chunk.bytes();
        queue.vectors.push(libc::iovec {
            iov_base: chunk.as_ptr().cast_mut().cast(),
            iov_len: chunk.len(),
        });
        bytes += chunk.len();
    }
    bytes
}

impl Uring {
    pub(super) fn arm_receive(&mut self, tables: &mut Tables, index: u32) {
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        if stream.driver & (bit::ARMED | bit::ENDED) != 0 || stream.paused {
            return;
        }
        stream.driver |= bit::ARMED;
        stream.outstanding += 1;
        let group = self.streams.group();
        let fd = types::Fd(stream.slot);
        let entry = if stream.driver & bit::BUNDLE != 0 {
            opcode::RecvMultiBundle::new(fd, group).build()
        } else {
            opcode::RecvMulti::new(fd, group).build()
        };
        let entry = entry.flags(slot_flags(stream.driver)).user_data(tag(
            Op::Receive,
            id.generation,
            index,
        ));
        // SAFETY: the buffers are those of the registered group.
        unsafe { self.push(&entry) };
    }

    pub(super) fn cancel_receive(&mut self, tables: &mut Tables, index: u32) {
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        if stream.driver & bit::ARMED != 0 && stream.driver & bit::CANCELLING == 0 {
            stream.driver |= bit::CANCELLING;
            self.cancel(tag(Op::Receive, id.generation, index));
        }
    }

    #[inline]
    pub(super) fn received(
        &mut self,
        tables: &mut Tables,
        index: u32,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let (result, flags) = (completion.result(), completion.flags());
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        let more = cqueue::more(flags);
        if !more {
            stream.driver &= !(bit::ARMED | bit::CANCELLING);
            stream.outstanding -= 1;
        }
        if result > 0 {
            let bid = cqueue::buffer_select(flags).expect("a receive with data names its buffer");
            let len = result as usize;
            let wanted = stream.state == State::Open;
            self.streams
                .received(bid, len, cqueue::buffer_more(flags), |data| {
                    if wanted {
                        events.push(Event::Received { stream: id, data });
                    }
                });
            // A full buffer means that more was waiting: let one receive take several from now on.
            if len >= STREAM_BUFFER_LEN
                && stream.driver & bit::BUNDLE == 0
                && self.features.has(Feature::Bundles)
                && !self.streams_incremental()
            {
                tables.streams.at(index).driver |= bit::BUNDLE;
                self.cancel_receive(tables, index);
            }
        } else {
            match without_data(&mut self.streams, tables, completion) {
                WithoutData::End => {
                    let stream = tables.streams.at(index);
                    stream.driver |= bit::ENDED;
                    if stream.state == State::Open {
                        events.push(Event::Ended { stream: id });
                    }
                }
                WithoutData::Nothing => {}
                WithoutData::NoBuffer => {
                    self.starved
                        .push_back(Starved::Stream(index, id.generation));
                    self.release_if_done(tables, index);
                    return;
                }
                WithoutData::Failed(errno) => {
                    tables.streams.at(index).driver |= bit::ENDED;
                    tables.stream_failed(index, bit::FAILED, errno, events);
                }
            }
        }
        if !more {
            if tables.streams.at(index).state == State::Open {
                self.arm_receive(tables, index);
            } else {
                self.release_if_done(tables, index);
            }
        }
    }

    fn streams_incremental(&self) -> bool {
        self.streams.pool.buffer_len() == INCREMENTAL_BUFFER_LEN
    }

    /// Frees the entry of a closed stream once the kernel holds no request for it.
    pub(super) fn release_if_done(&mut self, tables: &mut Tables, index: u32) {
        let stream = tables.streams.at(index);
        if stream.state == State::Closing && stream.outstanding == 0 {
            tables.streams.remove(index);
        }
    }

    #[inline]
    pub(super) fn try_send(&mut self, tables: &mut Tables, index: u32) {
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
        if self.headers_used == self.headers.len() || self.ring.is_full() {
            self.submit_tried();
        }
        let generation = tables.streams.id(index).generation;
        let stream = tables.streams.at(index);
        let Some(queue) = &mut stream.queue else {
            return;
        };
        if queue.in_flight || queue.bytes == 0 {
            return;
        }
        let fd = types::Fd(stream.slot);
        let (entry, bytes) = if queue.chunks.len() == 1 {
            let chunk = queue.chunks[0].bytes();
            let chunk = &chunk[..chunk.len().min(SEND_LEN_MAX)];
            (
                opcode::Send::new(fd, chunk.as_ptr(), chunk.len() as u32)
                    .flags(FLAGS)
                    .build(),
                chunk.len(),
            )
        } else {
            let bytes = gather(queue);
            let header = &mut self.headers[self.headers_used];
            self.headers_used += 1;
            header.msg_iov = queue.vectors.as_mut_ptr();
            header.msg_iovlen = queue.vectors.len();
            (
                opcode::SendMsg::new(fd, header).flags(FLAGS as u32).build(),
                bytes,
            )
        };
        // A send that succeeds gives no completion, which would end the wait.
        let rest = bytes < queue.bytes;
        let closing = stream.state == State::Draining || stream.finishing;
        self.outcome_awaited |= queue.was_full || rest || closing;
        let entry = entry
            .flags(slot_flags(stream.driver) | squeue::Flags::SKIP_SUCCESS)
            .user_data(tag(Op::Send, generation, index));
        // SAFETY: MSG_DONTWAIT makes the kernel finish with the chunks, the vectors and the header
        // within the submission. All three stay in place until `settle_tried`, which runs after
        // the submission: the queue is boxed, and nothing is removed from it before.
        unsafe { self.push(&entry) };
        self.tried.push(Tried { index, bytes });
    }

    /// After the submission, when all its completions are known: what did not fail was sent.
    pub(super) fn settle_tried(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        self.headers_used = 0;
        self.message_memory_used = 0;
        self.message_vectors_used = 0;
        let mut tried = std::mem::take(&mut self.tried);
        for Tried { index, bytes } in tried.drain(..) {
            if self.failed.is_empty() {
                if !tables.stream_sent(index, bytes, events) {
                    self.again.push(index);
                }
                continue;
            }
            let result = self.failed.get(&index).copied();
            self.settle_one(tables, index, bytes, result, events);
        }
        self.tried = tried;
        self.failed.clear();
        // More than fits one send was queued: the rest goes next turn.
        while let Some(index) = self.again.pop() {
            tables.streams.mark_dirty(index);
        }
    }

    #[cold]
    fn settle_one(
        &mut self,
        tables: &mut Tables,
        index: u32,
        bytes: usize,
        result: Option<i32>,
        events: &mut Vec<Event>,
    ) {
        let sent = match result {
            None => bytes,
            Some(result) if result >= 0 => result as usize,
            Some(errno)
                if errno == -libc::EAGAIN || errno == -libc::EINTR || errno == -libc::ENOBUFS =>
            {
                0
            }
            Some(errno) => {
                tables.stream_failed(index, bit::FAILED, -errno, events);
                return;
            }
        };
        let empty = tables.stream_sent(index, sent, events);
        if !empty && sent == bytes {
            self.again.push(index);
        } else if !empty {
            self.slow_send(tables, index);
        }
    }

    /// Sends the queue by a request that waits for room.
    fn slow_send(&mut self, tables: &mut Tables, index: u32) {
        let generation = tables.streams.id(index).generation;
        // The peer is slow: what it waits for must not hold receive buffers of others.
        tables.streams.unpin(index);
        let stream = tables.streams.at(index);
        let Some(queue) = &mut stream.queue else {
            return;
        };
        queue.in_flight = true;
        stream.outstanding += 1;
        let chunk = queue
            .chunks
            .front()
            .expect("the queue is not empty")
            .bytes();
        let chunk = &chunk[..chunk.len().min(SEND_LEN_MAX)];
        let entry = opcode::Send::new(types::Fd(stream.slot), chunk.as_ptr(), chunk.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .flags(slot_flags(stream.driver))
            .user_data(tag(Op::SlowSend, generation, index));
        // SAFETY: while `in_flight` is set nothing is removed from the front of the queue, a
        // chunk's bytes never move, and the entry (and with it the queue) is freed only when
        // `outstanding` is zero.
        unsafe { self.push(&entry) };
    }

    pub(super) fn slow_sent(
        &mut self,
        tables: &mut Tables,
        index: u32,
        result: i32,
        events: &mut Vec<Event>,
    ) {
        let stream = tables.streams.at(index);
        stream.outstanding -= 1;
        if let Some(queue) = &mut stream.queue {
            queue.in_flight = false;
        }
        if stream.state == State::Closing {
            self.release_if_done(tables, index);
            return;
        }
        match result {
            sent if sent >= 0 => {
                if !tables.stream_sent(index, sent as usize, events) {
                    self.again.push(index);
                }
            }
            errno if errno == -libc::EAGAIN || errno == -libc::EINTR => self.again.push(index),
            errno => tables.stream_failed(index, bit::FAILED, -errno, events),
        }
    }

    pub(super) fn connected(
        &mut self,
        tables: &mut Tables,
        index: u32,
        result: i32,
        events: &mut Vec<Event>,
    ) {
        self.connecting.remove(&index);
        let id = tables.streams.id(index);
        let stream = tables.streams.at(index);
        stream.outstanding -= 1;
        if stream.state == State::Closing {
            self.release_if_done(tables, index);
        } else if result == 0 {
            stream.state = State::Open;
            events.push(Event::Connected { stream: id });
            self.arm_receive(tables, index);
        } else {
            tables.stream_failed(index, bit::FAILED, -result, events);
        }
    }
}
