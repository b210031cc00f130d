//! Datagrams in batches: one buffer may hold many of equal size that the kernel coalesced.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::ids::{ServiceId, SocketId};
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
    pub(crate) ipv6: bool,
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
            ipv6: local.is_ipv6(),
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
}
