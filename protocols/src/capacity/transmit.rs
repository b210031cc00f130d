//! From a burst to sends: equal segments filled in place and queued as few segmented sends (GSO).
//!
//! A block of memory is the payload of many bursts: only headers are written, the rest stays zeros
//! or random bytes. A block is filled again when the kernel has taken what it held. Client and
//! server send through this; one [`Blocks`] serves all connections of a shard.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use ringmill_engine::{Context, Ecn, Nanos, Payload, SocketId, Transmit};

use super::burst::{Burst, erase_headers};

/// Bytes of a block: the largest UDP payload over IPv4, which bounds a segmented send too.
const BLOCK_BYTES: usize = 65_507;
/// Most blocks of a shard: 16 MiB, as much as senders catch up at once. When all wait to be sent,
/// a burst is refused as by a full socket.
const BLOCKS_MAX: usize = 256;
/// A send of at most so many bytes gets memory of its own: thousands of slow connections that send
/// in one turn then need no block each.
const OWN_BYTES_MAX: usize = 2048;

/// Where bursts of a connection go, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// From this socket.
    pub socket: SocketId,
    /// To this peer, unless the socket is connected.
    pub peer: Option<SocketAddr>,
    /// From this local address, where the socket has several.
    pub source: Option<IpAddr>,
    /// ECN bits of each packet.
    pub ecn: Ecn,
}

/// Memory that bursts are sent from.
pub struct Blocks {
    blocks: Vec<Block>,
    /// Those before it were used in this turn.
    next: usize,
    turn: Nanos,
    random: Option<SmallRng>,
}

struct Block {
    bytes: Arc<[u8]>,
    /// Where headers begin that were written last; the length for none.
    start: usize,
    /// At what distance they are.
    stride: u16,
}

impl Blocks {
    /// Blocks of zeros, as load is unless random payload was agreed.
    #[must_use]
    pub fn zeros() -> Self {
        Self {
            blocks: Vec::new(),
            next: 0,
            turn: 0,
            random: None,
        }
    }

    /// Blocks of pseudo-random bytes.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        Self {
            random: Some(SmallRng::seed_from_u64(seed)),
            ..Self::zeros()
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Queues a burst: as few sends as hold it. Returns how many datagrams were taken, counted from
    /// the front; the others found the socket or the blocks full.
    pub fn send<M: Send + 'static>(
        &mut self,
        ctx: &mut Context<'_, M>,
        route: &Route,
        burst: &Burst,
    ) -> u32 {
        if self.turn != ctx.now() {
            // What was sent in an earlier turn is mostly free again, and still in the cache.
            self.turn = ctx.now();
            self.next = 0;
        }
        let mut from = 0;
        while from < burst.count() {
            let stride = burst.stride(from);
            let at_once = ctx.segments_max(usize::from(stride));
            let at_once = u32::try_from(at_once).unwrap_or(u32::MAX).max(1);
            let count = burst.segments(from, BLOCK_BYTES, at_once);
            let Some(data) = self.fill(burst, from, count) else {
                break;
            };
            let transmit = Transmit {
                peer: route.peer,
                source: route.source,
                ecn: route.ecn,
                stride,
                data,
            };
            if !ctx.send_datagrams(route.socket, transmit).is_queued() {
                break;
            }
            from += count;
        }
        from
    }

    /// `count` datagrams of a burst from `from` on, or `None` when every block waits to be sent.
    fn fill(&mut self, burst: &Burst, from: u32, count: u32) -> Option<Payload> {
        let len: usize = (from..from + count)
            .map(|index| usize::from(burst.stride(index)))
            .sum();
        if len <= OWN_BYTES_MAX {
            let mut bytes = vec![0; len];
            if let Some(random) = &mut self.random {
                random.fill_bytes(&mut bytes);
            }
            burst.fill(&mut bytes, from, count);
            return Some(Payload::from(bytes));
        }
        let index = self.free_block()?;
        let block = &mut self.blocks[index];
        // What is sent is the end of a block.
        let start = BLOCK_BYTES - len;
        let stride = burst.stride(from);
        let bytes = Arc::get_mut(&mut block.bytes)?;
        let in_step = block.stride == stride
            && start
                .abs_diff(block.start)
                .is_multiple_of(usize::from(stride).max(1));
        if in_step {
            block.start = block.start.min(start);
        } else {
            if self.random.is_none() {
                erase_headers(&mut bytes[block.start..], block.stride);
            }
            (block.start, block.stride) = (start, stride);
        }
        burst.fill(&mut bytes[start..], from, count);
        Some(Payload::Shared {
            bytes: Arc::clone(&block.bytes),
            start: start as u32,
        })
    }

    /// A block that nothing waits in.
    fn free_block(&mut self) -> Option<usize> {
        while let Some(block) = self.blocks.get_mut(self.next) {
            let index = self.next;
            self.next += 1;
            if Arc::get_mut(&mut block.bytes).is_some() {
                return Some(index);
            }
        }
        if self.blocks.len() == BLOCKS_MAX {
            return None;
        }
        let mut bytes = vec![0; BLOCK_BYTES];
        if let Some(random) = &mut self.random {
            random.fill_bytes(&mut bytes);
        }
        self.blocks.push(Block {
            bytes: bytes.into(),
            start: BLOCK_BYTES,
            stride: 0,
        });
        self.next = self.blocks.len();
        Some(self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::pdu::Load;
    use crate::capacity::time::WallTime;

    fn burst(first: u32, datagrams: u32, payload: u16, addon: u16) -> Burst {
        let load = Load {
            lpdu_seq_no: first,
            lpdu_time: WallTime { sec: !0, nsec: !0 },
            spdu_time: WallTime { sec: !0, nsec: !0 },
            ..Load::default()
        };
        Burst::new(&load, datagrams, payload, addon, false)
    }

    #[test]
    fn load_is_headers_and_zeros_whatever_was_sent_before() {
        let mut blocks = Blocks::zeros();
        let sent = [
            (40, 1222, 0),
            (40, 1222, 97),
            (7, 8972, 0),
            (3, 8972, 100),
            (50, 1222, 0),
            (2, 1202, 0),
            (53, 1222, 0),
            (1, 1222, 0),
        ];
        for (number, (datagrams, payload, addon)) in sent.into_iter().enumerate() {
            blocks.next = 0;
            let first = number as u32 * 1000;
            let burst = burst(first, datagrams, payload, addon);
            let data = blocks.fill(&burst, 0, burst.count()).expect("a block");
            let mut seen = 0;
            for datagram in data.bytes().chunks(usize::from(payload)) {
                let load = Load::decode(datagram, datagram.len()).expect("a load PDU");
                assert_eq!(load.lpdu_seq_no, first + seen);
                assert_eq!(usize::from(load.udp_payload), datagram.len());
                assert!(datagram[Load::HEADER_LEN..].iter().all(|byte| *byte == 0));
                seen += 1;
            }
            assert_eq!(seen, burst.count());
        }
        assert_eq!(blocks.blocks.len(), 1, "one block is used again and again");
    }

    #[test]
    fn random_load_is_random_behind_its_headers() {
        let mut blocks = Blocks::random(7);
        for datagrams in [1, 40] {
            let burst = burst(1, datagrams, 1222, 0);
            let data = blocks.fill(&burst, 0, datagrams).expect("a block");
            for datagram in data.bytes().chunks(1222) {
                assert!(Load::decode(datagram, 1222).is_ok());
                let zeros = datagram[32..].iter().filter(|byte| **byte == 0).count();
                assert!(zeros < 100, "{zeros} of 1190 bytes are zero");
            }
        }
    }

    #[test]
    fn what_waits_is_not_touched_and_blocks_are_bounded() {
        let mut blocks = Blocks::zeros();
        let burst = burst(1, 7, 8972, 0);
        let waiting: Vec<_> = (0..BLOCKS_MAX)
            .map(|_| blocks.fill(&burst, 0, 7).expect("a block"))
            .collect();
        blocks.next = 0;
        assert!(blocks.fill(&burst, 0, 7).is_none());
        drop(waiting);
        blocks.next = 0;
        assert!(blocks.fill(&burst, 0, 7).is_some());
        assert_eq!(blocks.memory_bytes(), BLOCKS_MAX * BLOCK_BYTES);
    }
}
