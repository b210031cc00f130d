//! The table of a shard's streams: one small entry each, and a send queue only while one is needed.
//!
//! The table knows no system call. A driver keeps its two words per stream here, so that an idle
//! connection costs one entry and nothing else.

use std::collections::VecDeque;

use crate::ids::{ServiceId, StreamId};
use crate::limits::{Dropped, QueueBounds};
use crate::{Limits, Nanos, Payload};

/// Empty send queues kept for reuse, so that a send does not allocate.
const SPARE_QUEUES_MAX: usize = 4096;
/// A piece of at most this many bytes is merged with its neighbour behind a slow peer's send.
const MERGE_LEN_MAX: usize = 4096;
/// Merged pieces grow no larger than this.
const MERGED_LEN_MAX: usize = 64 << 10;
/// Entries are allocated in blocks, so growing never doubles memory.
const BLOCK: usize = 1024;
/// Activity is kept in ticks of this many nanoseconds since the table was made (wraps after 13
/// years): timeouts are in tenths of seconds, not finer.
pub(crate) const ACTIVITY_TICK: Nanos = 100_000_000;

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No stream lives here.
    Free,
    /// A connect is in flight.
    Connecting,
    /// Both ways open.
    Open,
    /// The protocol has closed it; the queue is still being sent.
    Draining,
    /// The driver is taking it down; nothing more is told to the protocol.
    Closing,
}

/// What remains to be sent on one stream.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    pub(crate) chunks: VecDeque<Payload>,
    /// Bytes in `chunks`.
    pub(crate) bytes: usize,
    /// The kernel holds (a copy of pointers to) the front until a completion arrives.
    pub(crate) in_flight: bool,
    /// The protocol was told "full" and waits for "drained".
    pub(crate) was_full: bool,
    /// Bytes of the front have been sent: it must go out to its end.
    partial: bool,
    /// When the kernel last took bytes from here, or the queue began, in [`ACTIVITY_TICK`]s.
    pub(crate) progress: u32,
    /// Driver's scratch that must stay in place while a send is in flight.
    pub(crate) vectors: Vec<libc::iovec>,
}

impl SendQueue {
    /// Removes `count` sent bytes from the front.
    pub(crate) fn consume(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "more was sent than queued");
        self.bytes -= count;
        while count > 0 {
            let front = self.chunks.front_mut().expect("bytes counts the chunks");
            let len = front.len();
            if count < len {
                front.advance(count);
                self.partial = true;
                return;
            }
            count -= len;
            self.partial = false;
            self.chunks.pop_front();
        }
    }

    /// Copies out what is pinned in receive buffers, because the peer is slow; neighbours become
    /// one piece, so that many tiny ones cost no more memory than their bytes. See
    /// [`Streams::unpin`].
    fn unpin(&mut self) {
        let chunks = std::mem::take(&mut self.chunks);
        for chunk in chunks {
            self.append_unpinned(chunk, 0);
        }
    }

    /// Appends a piece behind a slow peer's; the first `held` pieces must stay as they are,
    /// because the kernel reads them.
    fn append_unpinned(&mut self, chunk: Payload, held: usize) {
        let small = matches!(chunk, Payload::Buffer(_)) || chunk.len() <= MERGE_LEN_MAX;
        if !small || chunk.is_shared() {
            self.chunks.push_back(chunk);
            return;
        }
        let mergeable = self.chunks.len() > held;
        match self.chunks.back_mut() {
            Some(Payload::Owned { bytes, .. })
                if mergeable && bytes.len() + chunk.len() <= MERGED_LEN_MAX =>
            {
                bytes.extend_from_slice(chunk.bytes());
            }
            _ => self.chunks.push_back(chunk.unpinned()),
        }
    }

    fn reset(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
        self.in_flight = false;
        self.was_full = false;
        self.partial = false;
    }

    /// Pieces at the front that must stay: the kernel may read one, or has sent a part of it.
    fn held(&self) -> usize {
        usize::from(self.in_flight || self.partial)
    }

    /// Drops the oldest pieces that may be dropped until at most `bytes_max` bytes and
    /// `messages_max` pieces are left.
    fn drop_oldest(&mut self, bytes_max: usize, messages_max: usize) -> Dropped {
        let held = self.held();
        let mut dropped = Dropped::default();
        for chunk in self.chunks.iter().skip(held) {
            let fits = self.bytes - dropped.bytes <= bytes_max
                && self.chunks.len() - dropped.messages <= messages_max;
            if fits {
                break;
            }
            dropped.messages += 1;
            dropped.carried += chunk.carried();
            dropped.bytes += chunk.len();
        }
        self.chunks.drain(held..held + dropped.messages);
        self.bytes -= dropped.bytes;
        dropped
    }

    /// Drops the newest pieces until at most `bytes_max` bytes and `messages_max` pieces are left,
    /// or one. That one goes out sooner or later, so that whoever waits for room is told.
    fn drop_newest(&mut self, bytes_max: usize, messages_max: usize) -> Dropped {
        let mut dropped = Dropped::default();
        while self.chunks.len() > 1
            && (self.bytes > bytes_max || self.chunks.len() > messages_max)
            && let Some(chunk) = self.chunks.pop_back()
        {
            self.bytes -= chunk.len();
            dropped.messages += 1;
            dropped.carried += chunk.carried();
            dropped.bytes += chunk.len();
        }
        dropped
    }
}

/// One stream. Kept at 56 bytes or less: a million idle connections pay for every one of them.
#[derive(Debug)]
pub(crate) struct Stream {
    generation: u32,
    /// The driver's handle: a file descriptor or a direct descriptor.
    pub(crate) slot: i32,
    pub(crate) service: ServiceId,
    pub(crate) state: State,
    /// The driver's own bits.
    pub(crate) driver: u8,
    /// Requests that the kernel still holds for this stream.
    pub(crate) outstanding: u8,
    /// The protocol asked to stop reading.
    pub(crate) paused: bool,
    /// In the list of streams to be flushed this turn.
    pub(crate) dirty: bool,
    /// The protocol has been told that it is open, and must be told when it closes.
    pub(crate) announced: bool,
    /// It was accepted (and counts against the connection limit), not connected by us.
    pub(crate) accepted: bool,
    /// FIN follows when the queue is empty.
    pub(crate) finishing: bool,
    /// The peer has sent FIN.
    pub(crate) ended: bool,
    /// The shard holds data that arrived while it was paused.
    pub(crate) holding: bool,
    /// The shard stops, and the stream was paused: what arrives is thrown away until its end.
    pub(crate) discarding: bool,
    /// A send was refused by the shard's bound while its own queue was empty.
    pub(crate) waiting: bool,
    /// Last progress in either direction, in [`ACTIVITY_TICK`]s.
    pub(crate) active: u32,
    /// A word of the protocol's own.
    pub(crate) tag: u64,
    /// Present only while there is something to send.
    pub(crate) queue: Option<Box<SendQueue>>,
}

/// All streams of one shard.
pub(crate) struct Streams {
    blocks: Vec<Box<[Stream]>>,
    free: Vec<u32>,
    live: usize,
    // Boxed, because a stream's entry holds a pointer: the box itself is what is reused.
    #[allow(clippy::vec_box)]
    spare_queues: Vec<Box<SendQueue>>,
    /// Streams with something to send this turn.
    pub(crate) dirty: VecDeque<u32>,
    /// Bytes in all send queues of the shard, streams and sockets.
    pub(crate) queued_bytes: usize,
    /// Payloads in the send queues of the shard's streams.
    pub(crate) queued_messages: usize,
    /// Streams to be told when the shard has room: none of their own bytes will drain first.
    pub(crate) waiting: Vec<StreamId>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            live: 0,
            spare_queues: Vec::new(),
            dirty: VecDeque::new(),
            queued_bytes: 0,
            queued_messages: 0,
            waiting: Vec::new(),
        }
    }

    /// Streams that are not free.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Entries ever used, free ones included.
    pub(crate) fn len(&self) -> u32 {
        (self.blocks.len() * BLOCK) as u32
    }

    /// A new entry.
    pub(crate) fn insert(
        &mut self,
        service: ServiceId,
        slot: i32,
        state: State,
        active: u32,
    ) -> StreamId {
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.grow(),
        };
        self.live += 1;
        let entry = self.at(index);
        let generation = entry.generation;
        *entry = Stream {
            slot,
            service,
            state,
            active,
            ..Stream::vacant(generation)
        };
        StreamId { index, generation }
    }

    fn grow(&mut self) -> u32 {
        let first = self.len();
        self.blocks
            .push((0..BLOCK).map(|_| Stream::vacant(1)).collect());
        self.free.extend((first + 1..first + BLOCK as u32).rev());
        first
    }

    /// Ends an entry; its id is invalid from now on.
    pub(crate) fn remove(&mut self, index: u32) {
        if let Some(queue) = self.at(index).queue.take() {
            self.queued_bytes -= queue.bytes;
            self.queued_messages -= queue.chunks.len();
            self.recycle(queue);
        }
        let entry = self.at(index);
        debug_assert_ne!(entry.state, State::Free);
        let generation = entry.generation.wrapping_add(1).max(1) & GENERATION_MASK;
        *entry = Stream::vacant(generation.max(1));
        self.live -= 1;
        self.free.push(index);
    }

    /// The entry at a position that is known to be valid.
    #[inline]
    pub(crate) fn at(&mut self, index: u32) -> &mut Stream {
        &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK]
    }

    /// The entry of an id, unless the stream has ended.
    #[inline]
    pub(crate) fn get(&mut self, id: StreamId) -> Option<&mut Stream> {
        let entry = self
            .blocks
            .get_mut(id.index as usize / BLOCK)
            .map(|block| &mut block[id.index as usize % BLOCK])?;
        (entry.generation == id.generation && entry.state != State::Free).then_some(entry)
    }

    /// The current id of a position.
    #[inline]
    pub(crate) fn id(&mut self, index: u32) -> StreamId {
        StreamId {
            index,
            generation: self.at(index).generation,
        }
    }

    /// Appends to a stream's queue and marks it to be flushed. `false` when a bound is hit: then
    /// nothing was queued.
    #[inline]
    pub(crate) fn enqueue(
        &mut self,
        index: u32,
        payload: Payload,
        limits: &Limits,
        bounds: QueueBounds,
        active: u32,
    ) -> bool {
        let len = payload.len();
        let (queued_bytes, queued_messages) = (self.queued_bytes, self.queued_messages);
        let stream = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
        let queue = match &mut stream.queue {
            Some(queue) => queue,
            None => {
                let queue = stream
                    .queue
                    .insert(self.spare_queues.pop().unwrap_or_default());
                queue.progress = active;
                queue
            }
        };
        // A message larger than a bound still goes when nothing waits before it.
        let full = queue.bytes > 0
            && (queue.bytes + len > bounds.bytes_max || queue.chunks.len() >= bounds.messages_max)
            || queued_bytes > 0 && queued_bytes + len > limits.shard_queue_bytes_max
            || queued_messages >= limits.shard_queue_messages_max;
        if full {
            if queue.bytes > 0 {
                queue.was_full = true;
            } else {
                self.refused_while_empty(index);
            }
            return false;
        }
        queue.bytes += len;
        let pieces = queue.chunks.len();
        if queue.in_flight {
            // Behind a send that waits for a slow peer nothing may pin a receive buffer.
            queue.append_unpinned(payload, 1);
        } else {
            queue.chunks.push_back(payload);
        }
        self.queued_messages += queue.chunks.len() - pieces;
        self.queued_bytes += len;
        if !stream.dirty && !queue.in_flight {
            stream.dirty = true;
            self.dirty.push_back(index);
        }
        true
    }

    /// What is free of the shard's bounds.
    pub(crate) fn room(&self, limits: &Limits) -> QueueBounds {
        let free = |max: usize, used: usize| max.saturating_sub(used);
        QueueBounds {
            bytes_max: free(limits.shard_queue_bytes_max, self.queued_bytes),
            messages_max: free(limits.shard_queue_messages_max, self.queued_messages),
        }
    }

    /// Makes room in a stream's queue for `len` more bytes in one more piece within `bounds`, as
    /// far as pieces may be dropped.
    pub(crate) fn drop_oldest(
        &mut self,
        index: u32,
        len: usize,
        bounds: QueueBounds,
        limits: &Limits,
    ) -> Dropped {
        let stream = self.at(index);
        let Some(queue) = &mut stream.queue else {
            return Dropped::default();
        };
        let dropped = queue.drop_oldest(
            bounds.bytes_max.saturating_sub(len),
            bounds.messages_max.saturating_sub(1),
        );
        if dropped.messages > 0 && queue.bytes <= limits.stream_queue_bytes_max / 2 {
            // Whoever was refused has made the room itself.
            queue.was_full = false;
        }
        if queue.chunks.is_empty() {
            // As after a send of everything: an idle stream has no queue.
            let queue = stream.queue.take().expect("just seen");
            self.recycle(queue);
        }
        self.queued_bytes -= dropped.bytes;
        self.queued_messages -= dropped.messages;
        dropped
    }

    /// Drops the newest pieces of a stream whose queue is longer than what is free of the shard's
    /// bounds, until it is as long as what is free then.
    pub(crate) fn yield_share(&mut self, index: u32, limits: &Limits) -> Dropped {
        let room = self.room(limits);
        let Some(queue) = &mut self.at(index).queue else {
            return Dropped::default();
        };
        // What one gives up is free: half of the difference makes both the same.
        let even = |used: usize, free: usize| used.min(usize::midpoint(used, free));
        let dropped = queue.drop_newest(
            even(queue.bytes, room.bytes_max),
            even(queue.chunks.len(), room.messages_max),
        );
        self.queued_bytes -= dropped.bytes;
        self.queued_messages -= dropped.messages;
        dropped
    }

    /// A stream's peer is slow: what it waits for must not hold receive buffers of others.
    pub(crate) fn unpin(&mut self, index: u32) {
        let Some(queue) = &mut self.at(index).queue else {
            return;
        };
        let pieces = queue.chunks.len();
        queue.unpin();
        let merged = pieces - queue.chunks.len();
        self.queued_messages -= merged;
    }

    /// Has a stream's queue sent in the next wait.
    #[inline]
    pub(crate) fn mark_dirty(&mut self, index: u32) {
        let stream = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
        if !stream.dirty {
            stream.dirty = true;
            self.dirty.push_back(index);
        }
    }

    /// The shard is full of others' bytes: an empty queue must not stay, since it never drains.
    #[cold]
    fn refused_while_empty(&mut self, index: u32) {
        let id = self.id(index);
        let stream = self.at(index);
        let first = !std::mem::replace(&mut stream.waiting, true);
        let queue = stream.queue.take();
        if first {
            self.waiting.push(id);
        }
        if let Some(queue) = queue {
            self.recycle(queue);
        }
    }

    /// Notes that `count` bytes of a stream were sent. Returns whether its queue is now empty and
    /// was given back, and whether the protocol waits to hear of room.
    #[inline]
    pub(crate) fn sent(&mut self, index: u32, count: usize, limits: &Limits) -> SentProgress {
        self.queued_bytes -= count;
        let stream = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
        let Some(queue) = &mut stream.queue else {
            return SentProgress {
                empty: true,
                room: false,
            };
        };
        let pieces = queue.chunks.len();
        queue.consume(count);
        self.queued_messages -= pieces - queue.chunks.len();
        let low_mark = limits.stream_queue_bytes_max / 2;
        let room = queue.was_full && queue.bytes <= low_mark;
        if room {
            queue.was_full = false;
        }
        let empty = queue.bytes == 0;
        if empty {
            let queue = stream.queue.take().expect("just seen");
            self.recycle(queue);
        }
        SentProgress { empty, room }
    }

    fn recycle(&mut self, mut queue: Box<SendQueue>) {
        if self.spare_queues.len() < SPARE_QUEUES_MAX {
            queue.reset();
            self.spare_queues.push(queue);
        }
    }

    /// Every live position of a block range, for sweeps that must not stop a turn for long.
    pub(crate) fn live_in(
        &self,
        range: std::ops::Range<u32>,
    ) -> impl Iterator<Item = (u32, &Stream)> {
        (range.start..range.end.min(self.len())).filter_map(|index| {
            let stream = &self.blocks[index as usize / BLOCK][index as usize % BLOCK];
            (stream.state != State::Free).then_some((index, stream))
        })
    }
}

/// Generations travel in 24 bits of a request's user data.
pub(crate) const GENERATION_MASK: u32 = (1 << 24) - 1;

/// See [`Streams::sent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SentProgress {
    pub(crate) empty: bool,
    pub(crate) room: bool,
}

impl Stream {
    fn vacant(generation: u32) -> Self {
        Self {
            generation,
            slot: -1,
            service: 0,
            state: State::Free,
            driver: 0,
            outstanding: 0,
            paused: false,
            dirty: false,
            announced: false,
            accepted: false,
            finishing: false,
            ended: false,
            holding: false,
            discarding: false,
            waiting: false,
            active: 0,
            tag: 0,
            queue: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Stream>() <= 56, "{}", size_of::<Stream>());
    }

    #[test]
    fn an_id_does_not_outlive_its_stream() {
        let mut streams = Streams::new();
        let first = streams.insert(0, 7, State::Open, 0);
        assert!(streams.get(first).is_some());
        streams.remove(first.index);
        let second = streams.insert(0, 8, State::Open, 0);
        assert_eq!(second.index, first.index);
        assert!(streams.get(first).is_none());
        assert_eq!(streams.get(second).unwrap().slot, 8);
    }

    #[test]
    fn a_queue_has_a_bound_and_tells_of_room() {
        let limits = Limits {
            stream_queue_bytes_max: 100,
            ..Limits::default()
        };
        let bounds = limits.stream_queue();
        let mut streams = Streams::new();
        let id = streams.insert(0, 1, State::Open, 0);
        assert!(streams.enqueue(id.index, vec![1; 60].into(), &limits, bounds, 0));
        assert!(!streams.enqueue(id.index, vec![2; 60].into(), &limits, bounds, 0));
        assert_eq!(streams.queued_bytes, 60);
        assert_eq!(
            streams.sent(id.index, 5, &limits),
            SentProgress {
                empty: false,
                room: false
            }
        );
        assert_eq!(
            streams.sent(id.index, 10, &limits),
            SentProgress {
                empty: false,
                room: true
            }
        );
        assert_eq!(
            streams.sent(id.index, 45, &limits),
            SentProgress {
                empty: true,
                room: false
            }
        );
        assert_eq!(streams.queued_bytes, 0);
        assert_eq!(streams.dirty, [id.index]);
    }

    /// What may go is dropped from the front, and the accounts follow; what a peer has a part of,
    /// or what the kernel may be reading, stays.
    #[test]
    fn the_oldest_are_dropped_but_never_what_is_on_its_way() {
        let limits = Limits::default();
        let bounds = |bytes_max, messages_max| QueueBounds {
            bytes_max,
            messages_max,
        };
        // (sent of the first, in flight, room wanted, bounds) → (dropped, queue bytes left)
        let cases = [
            (0, false, 10, bounds(50, 99), (1, 40)),
            (0, false, 10, bounds(30, 99), (3, 20)),
            (0, false, 10, bounds(99, 99), (0, 50)),
            (0, false, 10, bounds(99, 3), (3, 20)),
            (0, false, 99, bounds(50, 99), (5, 0)),
            (3, false, 10, bounds(40, 99), (2, 27)),
            (3, false, 99, bounds(50, 99), (4, 7)),
            (0, true, 99, bounds(50, 99), (4, 10)),
            (10, true, 99, bounds(50, 99), (3, 10)),
            (0, true, 1, bounds(99, 0), (4, 10)),
        ];
        for (number, (sent, in_flight, len, bounds, expected)) in cases.into_iter().enumerate() {
            let mut streams = Streams::new();
            let id = streams.insert(0, 1, State::Open, 0);
            for _ in 0..5 {
                let payload = Payload::Static(b"0123456789");
                assert!(streams.enqueue(id.index, payload, &limits, limits.stream_queue(), 0));
            }
            streams.sent(id.index, sent, &limits);
            if let Some(queue) = &mut streams.at(id.index).queue {
                queue.in_flight = in_flight;
            }
            let dropped = streams.drop_oldest(id.index, len, bounds, &limits);
            let queue = streams.at(id.index).queue.as_ref();
            let (bytes, pieces) = queue.map_or((0, 0), |queue| (queue.bytes, queue.chunks.len()));
            assert_eq!((dropped.messages, bytes), expected, "case {number}");
            assert_eq!(dropped.bytes, 10 * dropped.messages, "case {number}");
            assert_eq!(streams.queued_bytes, bytes, "case {number}");
            assert_eq!(streams.queued_messages, pieces, "case {number}");
            streams.remove(id.index);
            assert_eq!((streams.queued_bytes, streams.queued_messages), (0, 0));
        }
    }

    /// A queue that is longer than what is free gives up half of the difference, from its end.
    #[test]
    fn a_long_queue_yields_to_others() {
        // (shard's bytes, shard's pieces) → pieces left of 5 with 10 bytes each
        for (bytes_max, messages_max, left) in [
            (1000, 1000, 5),
            (100, 10, 5),
            (99, 10, 4),
            (70, 1000, 3),
            (50, 1000, 2),
            (1000, 9, 4),
            (1000, 5, 2),
            (10, 1, 2),
        ] {
            let unbounded = Limits::default();
            let limits = Limits {
                shard_queue_bytes_max: bytes_max,
                shard_queue_messages_max: messages_max,
                ..Limits::default()
            };
            let mut streams = Streams::new();
            let id = streams.insert(0, 1, State::Open, 0);
            for number in 0..5 {
                let payload = vec![number; 10].into();
                let bounds = unbounded.stream_queue();
                assert!(streams.enqueue(id.index, payload, &unbounded, bounds, 0));
            }
            let dropped = streams.yield_share(id.index, &limits);
            let queue = streams.at(id.index).queue.as_ref().unwrap();
            let case = format!("{bytes_max}, {messages_max}");
            assert_eq!(queue.chunks.len(), left, "{case}");
            assert_eq!(queue.chunks[0].bytes(), [0; 10], "{case}: the oldest stay");
            assert_eq!(queue.bytes, 10 * left, "{case}");
            assert_eq!((dropped.messages, dropped.carried), (5 - left, 5 - left));
            assert_eq!(dropped.bytes, 10 * (5 - left), "{case}");
            assert_eq!(streams.queued_bytes, 10 * left, "{case}");
            assert_eq!(streams.queued_messages, left, "{case}");
        }
    }

    #[test]
    fn pieces_that_merge_are_counted_as_one() {
        let limits = Limits::default();
        let mut streams = Streams::new();
        let id = streams.insert(0, 1, State::Open, 0);
        let add = |streams: &mut Streams, bytes: &[u8]| {
            let payload = Payload::from(bytes.to_vec());
            assert!(streams.enqueue(id.index, payload, &limits, limits.stream_queue(), 0));
        };
        for _ in 0..4 {
            add(&mut streams, b"ab");
        }
        assert_eq!(streams.queued_messages, 4);
        streams.unpin(id.index);
        assert_eq!((streams.queued_messages, streams.queued_bytes), (1, 8));
        streams.at(id.index).queue.as_mut().unwrap().in_flight = true;
        add(&mut streams, b"cd");
        add(&mut streams, b"ef");
        assert_eq!(streams.queued_messages, 2);
        streams.sent(id.index, 9, &limits);
        assert_eq!((streams.queued_messages, streams.queued_bytes), (1, 3));
    }
}
