//! Streams: received from until everything is taken, sent to until there is no room.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::Epoll;
use super::inbox::Received;
use super::interest::{EDGE, ERR, HUP, IN, Kind, OUT, RDHUP, bit, word};
use crate::driver::{Event, Tables};
use crate::ids::{ServiceId, StreamId};
use crate::stream::State;
use crate::sys::io as calls;
use crate::sys::socket;

/// Bytes taken from one stream before the others have their turn.
const STREAM_TURN_BYTES: usize = 64 << 10;

/// Pieces of one stream's queue in one send: what the kernel takes at most (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;

/// Whether a stream is read now.
#[inline]
pub(super) fn can_receive(stream: &crate::stream::Stream) -> bool {
    stream.state == State::Open && !stream.paused && stream.driver & (bit::ENDED | bit::FAILED) == 0
}

/// Sends several pieces as one; the answer, and how many bytes were offered.
fn send_pieces(
    fd: RawFd,
    chunks: &std::collections::VecDeque<crate::Payload>,
) -> (Result<usize, i32>, usize) {
    /// Most queues have few pieces: those need no memory of their own.
    const FEW: usize = 64;
    let gather = |pieces: &mut [io::IoSlice<'_>]| {
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        (calls::send_pieces(fd, pieces), bytes)
    };
    let count = chunks.len().min(PIECES_MAX);
    if count <= FEW {
        let mut pieces = [io::IoSlice::new(&[]); FEW];
        for (piece, chunk) in pieces.iter_mut().zip(chunks) {
            *piece = io::IoSlice::new(chunk.bytes());
        }
        gather(&mut pieces[..count])
    } else {
        let mut pieces: Vec<_> = chunks
            .iter()
            .take(count)
            .map(|chunk| io::IoSlice::new(chunk.bytes()))
            .collect();
        gather(&mut pieces)
    }
}

pub(super) fn keep(files: &mut Vec<Option<OwnedFd>>, index: u32, fd: OwnedFd) {
    let index = index as usize;
    if files.len() <= index {
        files.resize_with(index + 1, || None);
    }
    files[index] = Some(fd);
}

impl Epoll {
    pub(super) fn insert_stream(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        fd: OwnedFd,
        state: State,
        bits: u8,
    ) -> StreamId {
        let id = tables
            .streams
            .insert(service, fd.as_raw_fd(), state, tables.active);
        tables.streams.at(id.index).driver = bits;
        keep(&mut self.stream_files, id.index, fd);
        self.descriptors += 1;
        id
    }

    /// Adds a stream to the interest list.
    pub(super) fn watch(&mut self, tables: &mut Tables, id: StreamId, out: bool) -> io::Result<()> {
        let stream = tables.streams.at(id.index);
        let interest = IN | RDHUP | EDGE | if out { OUT } else { 0 };
        self.poller.add(
            stream.slot,
            interest,
            word(Kind::Stream, id.generation, id.index),
        )?;
        stream.driver |= bit::WATCHED | if out { bit::WATCHED_OUT } else { 0 };
        Ok(())
    }

    /// Has a stream received from in the next turn.
    pub(super) fn list(&mut self, tables: &mut Tables, id: StreamId) {
        let stream = tables.streams.at(id.index);
        if stream.driver & bit::LISTED == 0 {
            stream.driver |= bit::LISTED;
            self.readable.push(id);
        }
    }

    #[inline]
    pub(super) fn stream_ready(
        &mut self,
        tables: &mut Tables,
        id: StreamId,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        let Some(stream) = tables.streams.get(id) else {
            return;
        };
        if stream.driver & bit::FAILED != 0 {
            return;
        }
        match stream.state {
            State::Open | State::Draining => {}
            State::Connecting => return self.connect_ready(tables, id, flags, events),
            State::Closing | State::Free => return,
        }
        if flags & (IN | RDHUP | HUP | ERR) != 0 {
            stream.driver |= bit::READABLE;
            if flags & (RDHUP | HUP | ERR) != 0 {
                stream.driver |= bit::LAST_EDGE;
            }
            if can_receive(stream) {
                self.receive(tables, id, events);
            } else if flags & ERR != 0 {
                // Nobody reads, so nobody else would notice.
                let errno = self.take_error(id.index);
                if errno != 0 {
                    tables.stream_failed(id.index, bit::FAILED, errno, events);
                }
            }
        }
        if flags & (OUT | HUP | ERR) != 0 {
            self.writable(tables, id, events);
        }
    }

    /// Receives until everything is taken, or the stream has had its turn.
    #[inline]
    pub(super) fn receive(&mut self, tables: &mut Tables, id: StreamId, events: &mut Vec<Event>) {
        let stream = tables.streams.at(id.index);
        let fd = stream.slot;
        let mut bytes = 0;
        loop {
            match self.inbox.receive(fd) {
                Received::Data { data, filled } => {
                    bytes += data.len();
                    events.push(Event::Received { stream: id, data });
                    if !filled && stream.driver & bit::LAST_EDGE == 0 {
                        break;
                    }
                    if bytes >= STREAM_TURN_BYTES {
                        self.list(tables, id);
                        return;
                    }
                }
                Received::Nothing => break,
                Received::End => {
                    stream.driver |= bit::ENDED;
                    events.push(Event::Ended { stream: id });
                    break;
                }
                Received::Later => {
                    self.list(tables, id);
                    return;
                }
                Received::Failed(errno) => {
                    tables.stream_failed(id.index, bit::FAILED, errno, events);
                    return;
                }
            }
        }
        stream.driver &= !bit::READABLE;
    }

    fn take_error(&self, index: u32) -> i32 {
        self.stream_files[index as usize]
            .as_ref()
            .map_or(0, socket::take_error)
    }

    fn connect_ready(
        &mut self,
        tables: &mut Tables,
        id: StreamId,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        match self.take_error(id.index) {
            0 => self.connected(tables, id, events),
            errno => return tables.stream_failed(id.index, bit::FAILED, errno, events),
        }
        // The same edge may have told of the first bytes.
        self.stream_ready(tables, id, flags & !OUT, events);
    }

    pub(super) fn connected(&mut self, tables: &mut Tables, id: StreamId, events: &mut Vec<Event>) {
        tables.streams.at(id.index).state = State::Open;
        events.push(Event::Connected { stream: id });
    }

    /// Sends the queue as far as there is room.
    #[inline]
    pub(super) fn send(&mut self, tables: &mut Tables, index: u32, events: &mut Vec<Event>) {
        loop {
            let stream = tables.streams.at(index);
            let Some(queue) = &stream.queue else { return };
            if queue.in_flight || stream.driver & bit::FAILED != 0 {
                return;
            }
            let (result, bytes) = if queue.chunks.len() == 1 {
                let chunk = queue.chunks[0].bytes();
                (calls::send(stream.slot, chunk), chunk.len())
            } else {
                send_pieces(stream.slot, &queue.chunks)
            };
            match result {
                Ok(sent) => {
                    if tables.stream_sent(index, sent, events) {
                        return;
                    }
                    if sent < bytes {
                        return self.wait_for_room(tables, index, false, events);
                    }
                }
                Err(libc::EAGAIN) => return self.wait_for_room(tables, index, false, events),
                // Memory is short: no edge is promised, so ask for a new one.
                Err(libc::ENOBUFS | libc::ENOMEM) => {
                    return self.wait_for_room(tables, index, true, events);
                }
                Err(errno) => return tables.stream_failed(index, bit::FAILED, errno, events),
            }
        }
    }

    /// The peer is slow: what it waits for must not hold receive buffers of others, and goes on
    /// with the next edge.
    #[cold]
    fn wait_for_room(
        &mut self,
        tables: &mut Tables,
        index: u32,
        ask_again: bool,
        events: &mut Vec<Event>,
    ) {
        let id = tables.streams.id(index);
        tables.streams.unpin(index);
        let stream = tables.streams.at(index);
        let queue = stream.queue.as_mut().expect("something is left to be sent");
        queue.in_flight = true;
        let result = if stream.driver & bit::WATCHED == 0 {
            self.watch(tables, id, true)
        } else if stream.driver & bit::WATCHED_OUT == 0 || ask_again {
            self.watch_room(tables, id, true)
        } else {
            Ok(())
        };
        if let Err(error) = result {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            tables.stream_failed(index, bit::FAILED, errno, events);
        }
    }

    /// Watches for room to send, or no more.
    fn watch_room(&mut self, tables: &mut Tables, id: StreamId, on: bool) -> io::Result<()> {
        let stream = tables.streams.at(id.index);
        let interest = IN | RDHUP | EDGE | if on { OUT } else { 0 };
        self.poller.modify(
            stream.slot,
            interest,
            word(Kind::Stream, id.generation, id.index),
        )?;
        if on {
            stream.driver |= bit::WATCHED_OUT;
        } else {
            stream.driver &= !bit::WATCHED_OUT;
        }
        Ok(())
    }

    /// There is room again (or an error, which the send will tell).
    fn writable(&mut self, tables: &mut Tables, id: StreamId, events: &mut Vec<Event>) {
        let stream = tables.streams.at(id.index);
        if let Some(queue) = &mut stream.queue
            && std::mem::take(&mut queue.in_flight)
        {
            self.send(tables, id.index, events);
        }
        let stream = tables.streams.at(id.index);
        let both = bit::UNIX | bit::WATCHED_OUT;
        if stream.driver & both == both && stream.queue.is_none() {
            // Left as it is it would only wake us more often.
            let _ = self.watch_room(tables, id, false);
        }
    }
}
