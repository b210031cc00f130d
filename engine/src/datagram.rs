//! Datagrams in batches: one buffer may hold many of equal size that the kernel coalesced.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::ids::{ServiceId, SocketId};
use crate::sys::socket::UDP_PAYLOAD_MAX;
use crate::{Buffer, Payload};

/// Explicit congestion notification bits of the IP header (RFC 3168 §5).
pub type Ecn = u8;

/// One received buffer: a datagram, or several of equal size from one peer (GRO).
#[derive(Debug, Clone)]
pub struct Datagram {
    /// Who sent it.
    pub peer: SocketAddr,
    /// The local address it was sent to, where the kernel says.
    pub local: Option<IpAddr>,
    /// ECN bits of the IP header.
    pub ecn: Ecn,
    /// Bytes of each datagram in `data`; the last may be shorter. Equal to the length of `data`
    /// when there is one.
    pub stride: u16,
    /// The bytes of all of them, end to end.
    pub data: Buffer,
}

impl Datagram {
    /// How many datagrams the buffer holds: at least one, also when it is empty.
    #[must_use]
    pub fn count(&self) -> usize {
        segments(self.data.len(), self.stride)
    }

    /// The datagrams one by one.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let stride = usize::from(self.stride).max(1);
        (0..self.count()).map(move |i| {
            let start = (i * stride).min(self.data.len());
            &self.data[start..(start + stride).min(self.data.len())]
        })
    }
}

/// Datagrams in `len` bytes cut at `stride`: at least one.
#[must_use]
pub fn segments(len: usize, stride: u16) -> usize {
    len.div_ceil(usize::from(stride).max(1)).max(1)
}

/// What to send: a datagram, or several of equal size to one peer (one GSO send).
#[derive(Debug, Clone)]
pub struct Transmit {
    /// The receiver; `None` on a connected socket.
    pub peer: Option<SocketAddr>,
    /// The local address to send from: answer from where you were asked on a wildcard socket.
    pub source: Option<IpAddr>,
    /// ECN bits to set.
    pub ecn: Ecn,
    /// Bytes of each datagram in `data`; the last may be shorter.
    pub stride: u16,
    /// The bytes of all of them, end to end: at most 65,507.
    pub data: Payload,
}

impl Transmit {
    /// One datagram to a peer.
    #[must_use]
    pub fn one(peer: Option<SocketAddr>, data: Payload) -> Self {
        let stride = u16::try_from(data.len()).unwrap_or(u16::MAX);
        Self {
            peer,
            source: None,
            ecn: 0,
            stride,
            data,
        }
    }

    /// How many datagrams this is.
    #[must_use]
    pub fn count(&self) -> usize {
        segments(self.data.len(), self.stride)
    }

    /// The same, holding no receive buffer: for what waits for a slow receiver.
    pub(crate) fn unpinned(self) -> Self {
        let data = self.data.unpinned();
        Self { data, ..self }
    }
}

/// Transmits that one send gathers at most: the kernel copies the list of their places first.
pub(crate) const GATHERED_MAX: usize = 64;

/// How many transmits of a queue, from `at` on, can go as one send that is cut into datagrams of
/// the first one's stride, at most `fits` of them: what goes the same way, and all full but the
/// last. At least one.
pub(crate) fn gathered(queue: &VecDeque<Transmit>, at: usize, fits: usize) -> usize {
    let first = &queue[at];
    let stride = usize::from(first.stride);
    let (mut bytes, mut datagrams) = (first.data.len(), first.count());
    let mut count = 1;
    for next in queue.range(at + 1..).take(GATHERED_MAX - 1) {
        let len = next.data.len();
        (bytes, datagrams) = (bytes + len, datagrams + next.count());
        // Full up to here, and the next one cut alike or the shorter end.
        let fills = bytes > len && (bytes - len).is_multiple_of(stride);
        let alike = next.stride == first.stride || next.count() == 1 && len < stride;
        let same_way = (next.peer, next.source, next.ecn) == (first.peer, first.source, first.ecn);
        if !(fills && alike && same_way && len > 0) || datagrams > fits || bytes > UDP_PAYLOAD_MAX {
            break;
        }
        count += 1;
    }
    count
}

/// One datagram socket of a shard.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) generation: u32,
    pub(crate) slot: i32,
    pub(crate) service: ServiceId,
    pub(crate) open: bool,
    pub(crate) paused: bool,
    pub(crate) dirty: bool,
    pub(crate) was_full: bool,
    /// A send was refused by the shard's bound while its own queue was empty.
    pub(crate) waiting: bool,
    /// Waiting until the kernel has room again.
    pub(crate) blocked: bool,
    pub(crate) outstanding: u8,
    pub(crate) driver: u8,
    /// The socket refused segmentation offload once: send one by one from then on.
    pub(crate) no_gso: bool,
    /// Differentiated services code point of all that it sends.
    pub(crate) dscp: u8,
    pub(crate) ipv6: bool,
    /// The peer that the kernel knows: what goes there needs no name.
    pub(crate) connected: Option<SocketAddr>,
    /// The listening endpoint of the service, for sockets that the engine bound.
    pub(crate) endpoint: Option<u16>,
    pub(crate) local: SocketAddr,
    pub(crate) tag: u64,
    pub(crate) queue: VecDeque<Transmit>,
    pub(crate) queue_bytes: usize,
}

/// All datagram sockets of one shard.
#[derive(Default)]
pub(crate) struct Sockets {
    entries: Vec<Socket>,
    free: Vec<u32>,
    live: usize,
    pub(crate) dirty: Vec<u32>,
    /// Sockets to be told when the shard has room: none of their own bytes will drain first.
    pub(crate) waiting: Vec<SocketId>,
    /// Memory of queues that ran empty, for the next that fill: an idle socket holds none.
    spare_queues: Vec<VecDeque<Transmit>>,
}

/// Queues kept in reserve: about as many as sockets send in one turn.
const SPARE_QUEUES_MAX: usize = 256;

/// The name that a datagram to `peer` needs on a socket that is connected, or not.
#[inline]
pub(crate) fn name_of(
    peer: Option<SocketAddr>,
    connected: Option<SocketAddr>,
) -> Option<SocketAddr> {
    peer.filter(|_| peer != connected)
}

impl Sockets {
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    pub(crate) fn insert(&mut self, service: ServiceId, slot: i32, local: SocketAddr) -> SocketId {
        self.live += 1;
        let vacant = |generation| Socket {
            generation,
            slot,
            service,
            open: true,
            paused: false,
            dirty: false,
            was_full: false,
            waiting: false,
            blocked: false,
            outstanding: 0,
            driver: 0,
            no_gso: false,
            dscp: 0,
            ipv6: local.is_ipv6(),
            connected: None,
            endpoint: None,
            local,
            tag: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
        };
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            *entry = vacant(entry.generation);
            SocketId {
                index,
                generation: entry.generation,
            }
        } else {
            let index = self.entries.len() as u32;
            self.entries.push(vacant(1));
            SocketId {
                index,
                generation: 1,
            }
        }
    }

    /// Adds to a socket's queue.
    #[inline]
    pub(crate) fn enqueue(&mut self, index: u32, transmit: Transmit) {
        let entry = &mut self.entries[index as usize];
        if entry.queue.capacity() == 0
            && let Some(spare) = self.spare_queues.pop()
        {
            entry.queue = spare;
        }
        entry.queue_bytes += transmit.data.len();
        entry.queue.push_back(transmit);
        if !entry.blocked {
            self.mark_dirty(index);
        }
    }

    /// Takes the memory of a queue that ran empty.
    #[inline]
    pub(crate) fn rest(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.queue.is_empty() {
            let spare = std::mem::take(&mut entry.queue);
            if self.spare_queues.len() < SPARE_QUEUES_MAX {
                self.spare_queues.push(spare);
            }
        }
    }

    /// Ends an entry. The caller has taken its queue into account.
    pub(crate) fn remove(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation =
            (entry.generation.wrapping_add(1) & crate::stream::GENERATION_MASK).max(1);
        entry.open = false;
        entry.slot = -1;
        entry.queue = VecDeque::new();
        entry.queue_bytes = 0;
        self.live -= 1;
        self.free.push(index);
    }

    #[inline]
    pub(crate) fn at(&mut self, index: u32) -> &mut Socket {
        &mut self.entries[index as usize]
    }

    #[inline]
    pub(crate) fn get(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.entries
            .get_mut(id.index as usize)
            .filter(|entry| entry.generation == id.generation && entry.open)
    }

    /// Has a socket's queue sent in the next wait.
    #[inline]
    pub(crate) fn mark_dirty(&mut self, index: u32) {
        let socket = &mut self.entries[index as usize];
        if !socket.dirty {
            socket.dirty = true;
            self.dirty.push(index);
        }
    }

    #[inline]
    pub(crate) fn id(&self, index: u32) -> SocketId {
        SocketId {
            index,
            generation: self.entries[index as usize].generation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_a_buffer() {
        for (len, stride, want) in [
            (0, 0, 1),
            (0, 100, 1),
            (1, 1, 1),
            (100, 100, 1),
            (101, 100, 2),
            (300, 100, 3),
        ] {
            assert_eq!(segments(len, stride), want, "{len} bytes by {stride}");
        }
    }

    #[test]
    fn what_is_gathered_is_cut_into_the_same_datagrams() {
        let to = |port: u16| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let transmit = |port, stride, len| Transmit {
            peer: to(port),
            source: None,
            ecn: 0,
            stride,
            data: Payload::Owned {
                bytes: vec![0; len],
                start: 0,
            },
        };
        let one = |len: usize| transmit(1, len as u16, len);
        for (name, queue, fits, want) in [
            ("alone", vec![one(100)], 64, 1),
            ("alike", vec![one(100), one(100), one(100)], 64, 3),
            ("as many as fit", vec![one(100), one(100), one(100)], 2, 2),
            (
                "a shorter one ends",
                vec![one(100), one(99), one(99)],
                64,
                2,
            ),
            (
                "a longer one does not follow",
                vec![one(100), one(101)],
                64,
                1,
            ),
            ("an empty one does not", vec![one(100), one(0)], 64, 1),
            ("nothing follows an empty one", vec![one(0), one(0)], 64, 1),
            ("another way", vec![one(100), transmit(2, 100, 100)], 64, 1),
            (
                "coalesced ones",
                vec![transmit(1, 10, 30), transmit(1, 10, 25), one(10)],
                64,
                2,
            ),
            (
                "of another cut",
                vec![transmit(1, 10, 30), transmit(1, 15, 30)],
                64,
                1,
            ),
            (
                "no more than one send holds",
                vec![one(30_000), one(30_000), one(30_000)],
                64,
                2,
            ),
            ("no gathering", vec![one(100), one(100)], 1, 1),
        ] {
            assert_eq!(gathered(&queue.into(), 0, fits), want, "{name}");
        }
        let marked = Transmit { ecn: 3, ..one(9) };
        assert_eq!(gathered(&vec![one(9), one(9), marked].into(), 1, 64), 1);
        let many: VecDeque<_> = (0..100).map(|_| one(9)).collect();
        assert_eq!(gathered(&many, 0, 128), GATHERED_MAX);
    }
}
