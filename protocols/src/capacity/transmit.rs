//! From a burst to sends, and the memory for it: equal segments filled in place and queued as few segmented sends (GSO).
//!
//! A burst costs its headers: the rest of a pooled buffer stays from the burst before, and one
//! segmented send carries as many datagrams as fit. Client and server send through this. Nothing
//! here waits; what finds no room is given back to the sender of the test.

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngCore;
use rand::rngs::SmallRng;
use ringmill_engine::{
    Buffer, BufferMut, Context, Ecn, Limits, Payload, SocketBufferSizes, SocketId, Transmit,
};

use super::burst::{Burst, erase_headers};

/// The most payload of one UDP send over IPv4: 65,535 − 20 − 8.
const SEND_BYTES_MAX: usize = 65_507;

/// What waits in the queue of a test's socket before a burst is refused: the sender then knows that
/// this host is the limit, and what waits delays no measurement by much.
const SOCKET_QUEUE_BYTES_MAX: usize = 1 << 20;
/// What waits in the kernel to be sent, as with OB-UDPST: more would only delay.
const SEND_BUFFER_BYTES: usize = 1_024_000;
/// What waits in the kernel to be received. A shard that others keep off its CPU for 5 ms loses
/// nothing at 20 Gbit/s; with the 1 MB of OB-UDPST it does from 3 Gbit/s on, and the search goes down.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// What arrives within a tick of the fastest senders is taken at once: a tenth of the unit in which
/// delays are measured.
const GATHER: Duration = Duration::from_micros(100);
/// Buffers of 64 KiB for load: the largest burst of several tests in one turn. Memory on first use.
const FILL_BUFFERS: u32 = 256;
/// Receive buffers of 64 KiB: what arrives for many tests in one turn.
const RECEIVE_BUFFERS: u32 = 1_024;

/// The bounds that an engine should keep for tests, from those that it has otherwise.
#[must_use]
pub fn engine_limits(limits: Limits) -> Limits {
    Limits {
        socket_queue_bytes_max: SOCKET_QUEUE_BYTES_MAX,
        datagram_socket_buffers: SocketBufferSizes {
            receive_bytes: RECEIVE_BUFFER_BYTES,
            send_bytes: SEND_BUFFER_BYTES,
        },
        fill_buffers: FILL_BUFFERS,
        gather: GATHER,
        datagram_buffers: RECEIVE_BUFFERS,
        ..limits
    }
}

/// Where bursts of a connection go, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// From this socket.
    pub socket: SocketId,
    /// To this peer.
    pub peer: SocketAddr,
    /// ECN bits of each packet.
    pub ecn: Ecn,
}

/// What of a burst was queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queued {
    /// Datagrams, counted from the front.
    pub datagrams: u32,
    /// Their UDP payload in bytes.
    pub bytes: u64,
}

/// Writes the load of all connections of a shard into pooled buffers. Bursts of the same size follow
/// each other in one buffer: a thousand tests that send a datagram each keep the cache warm, where a
/// buffer for each would throw it over.
#[derive(Debug, Default)]
pub struct Filler {
    open: Option<Open>,
}

/// A buffer that has room left.
#[derive(Debug)]
struct Open {
    rest: BufferMut,
    /// How the whole buffer is laid out, and up to where headers are in it.
    filled: Filled,
    /// Where the rest begins, in bytes.
    at: u32,
}

impl Filler {
    /// Queues a burst, as few sends as hold it, with random bytes between the headers or with zeros.
    /// What is not queued found the socket full or every buffer of the shard in use.
    pub fn send<M: Send + 'static>(
        &mut self,
        ctx: &mut Context<'_, M>,
        route: &Route,
        burst: &Burst,
        mut random: Option<&mut SmallRng>,
    ) -> Queued {
        let mut queued = Queued::default();
        while queued.datagrams < burst.count() {
            let from = queued.datagrams;
            let stride = burst.stride(from);
            let at_once = ctx.segments_max(usize::from(stride)) as u32;
            let wanted =
                burst.segments(from, SEND_BYTES_MAX, at_once) as usize * usize::from(stride);
            let Some(open) = self.room(ctx, stride, wanted, random.as_deref_mut()) else {
                break;
            };
            let bytes_max = open.rest.len().min(SEND_BYTES_MAX);
            let part = burst.segments(from, bytes_max, at_once);
            let data = open.write(burst, from, part);
            let bytes = data.len() as u64;
            let transmit = Transmit {
                peer: Some(route.peer),
                source: None,
                ecn: route.ecn,
                stride,
                data: Payload::Buffer(data),
            };
            if !ctx.send_datagrams(route.socket, transmit).is_queued() {
                break;
            }
            queued.datagrams += part;
            queued.bytes += bytes;
        }
        queued
    }

    /// A buffer laid out for datagrams of `stride` bytes that has `wanted` bytes left, or a fresh one.
    fn room<M: Send + 'static>(
        &mut self,
        ctx: &mut Context<'_, M>,
        stride: u16,
        wanted: usize,
        random: Option<&mut SmallRng>,
    ) -> Option<&mut Open> {
        let fits = self.open.as_ref().is_some_and(|open| {
            open.filled.random == random.is_some()
                && open.filled.stride == stride
                && open.rest.len() >= wanted
        });
        if !fits {
            // First the old one, so that it can be the next.
            self.open = None;
            self.open = Some(Open::new(ctx.fill()?, stride, random));
        }
        self.open.as_mut()
    }
}

impl Open {
    /// Lays a buffer out: all that is no header is zeros, or random.
    fn new(mut rest: BufferMut, stride: u16, random: Option<&mut SmallRng>) -> Self {
        let is_random = random.is_some();
        let before = Filled::of(rest.mark()).filter(|before| before.random == is_random);
        let len = match (before, random) {
            (None, Some(rng)) => {
                rng.fill_bytes(&mut rest);
                0
            }
            (None, None) => {
                rest.fill(0);
                0
            }
            (Some(before), None) if before.stride != stride => {
                erase_headers(&mut rest[..before.len as usize], before.stride);
                0
            }
            (Some(before), _) => before.len,
        };
        Self {
            rest,
            filled: Filled {
                random: is_random,
                stride,
                len,
            },
            at: 0,
        }
    }

    /// Writes `count` datagrams of a burst, and goes on behind the last whole stride.
    fn write(&mut self, burst: &Burst, from: u32, count: u32) -> Buffer {
        let len = burst.fill(&mut self.rest, from, count);
        let whole = (count as usize * usize::from(self.filled.stride)).min(self.rest.len());
        self.at += whole as u32;
        self.filled.len = self.filled.len.max(self.at);
        self.rest.set_mark(self.filled.mark());
        let mut data = self.rest.split_front(whole);
        data.truncate(len);
        data
    }
}

/// What is in a buffer that was filled before: the mark of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Filled {
    /// Random bytes lie between the headers, else zeros.
    random: bool,
    /// Where the headers are.
    stride: u16,
    /// Up to where, in bytes.
    len: u32,
}

impl Filled {
    const KNOWN: u64 = 1 << 63;
    const RANDOM: u64 = 1 << 62;

    fn of(mark: u64) -> Option<Self> {
        (mark & Self::KNOWN != 0).then_some(Self {
            random: mark & Self::RANDOM != 0,
            stride: (mark >> 32) as u16,
            len: mark as u32,
        })
    }

    fn mark(self) -> u64 {
        let random = if self.random { Self::RANDOM } else { 0 };
        Self::KNOWN | random | u64::from(self.stride) << 32 | u64::from(self.len)
    }
}
