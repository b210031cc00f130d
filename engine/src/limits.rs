//! Bounds of a shard and what happens when one is hit.

use std::time::Duration;

/// Every bound that a user may set. The defaults suit a server of many small connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Live streams over all shards; past it a new connection is closed at once and counted as
    /// refused. Also decides how many rings the engine needs.
    pub max_connections: usize,
    /// Unsent bytes that one stream may hold. A send past it is answered [`Sent::Full`](crate::Sent).
    pub stream_queue_bytes_max: usize,
    /// Unsent bytes that all streams and sockets of one shard may hold together.
    pub shard_queue_bytes_max: usize,
    /// Unsent payloads that all streams of one shard may hold together, whatever their length:
    /// each takes 32 bytes of memory beside its own.
    pub shard_queue_messages_max: usize,
    /// Unsent bytes that one datagram socket may hold.
    pub socket_queue_bytes_max: usize,
    /// A stream on which nothing was received or sent for this long is closed; none by default.
    pub idle_timeout: Option<Duration>,
    /// A stream whose peer took nothing from a full queue for this long is closed.
    pub write_stall_timeout: Option<Duration>,
    /// How long a graceful stop waits for queues to empty and peers to close.
    pub drain_timeout: Duration,
    /// Spin this long for completions before sleeping: lower latency for a whole CPU.
    pub busy_poll: Duration,
    /// After a turn in which datagrams came, let more gather for this long before the next, unless a
    /// timer is due: fewer wake-ups where thousands of flows are slow, and as much delay. 0 is none.
    pub gather: Duration,
    /// Bytes of memory for stream receive buffers in each shard.
    pub stream_pool_bytes: usize,
    /// Receive buffers for datagrams in each shard that has datagram sockets (64 KiB each, so
    /// that one can hold what the kernel coalesced).
    pub datagram_buffers: u32,
    /// Buffers that protocols fill for sends in each shard (64 KiB each, memory on first use).
    pub fill_buffers: u32,
    /// Messages that wait in the mailbox of one shard and service.
    pub mailbox_messages_max: usize,
    /// Socket buffers to ask for on datagram sockets.
    pub datagram_socket_buffers: SocketBufferSizes,
}

/// The kernel's buffers of one socket, in bytes as asked for: it may grant less (`ringmill doctor`
/// shows what), and counts twice as much for its own bookkeeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketBufferSizes {
    /// What waits for the shard. With CAP_NET_ADMIN the ceiling `net.core.rmem_max` does not count.
    pub receive_bytes: usize,
    /// What waits for the network card; more than `net.core.wmem_max` is never granted.
    pub send_bytes: usize,
}

impl SocketBufferSizes {
    /// The same for both.
    #[must_use]
    pub const fn both(bytes: usize) -> Self {
        Self {
            receive_bytes: bytes,
            send_bytes: bytes,
        }
    }
}

impl Limits {
    /// The bounds of one stream's queue; the number of its payloads has none of its own.
    #[must_use]
    pub fn stream_queue(&self) -> QueueBounds {
        QueueBounds {
            bytes_max: self.stream_queue_bytes_max,
            messages_max: usize::MAX,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 100_000,
            // One slow reader must not hold more than this of a shard's memory.
            stream_queue_bytes_max: 1 << 20,
            shard_queue_bytes_max: 256 << 20,
            // As much memory again as the bytes above, if all were empty but for one byte.
            shard_queue_messages_max: 8 << 20,
            socket_queue_bytes_max: 8 << 20,
            idle_timeout: None,
            write_stall_timeout: Some(Duration::from_secs(60)),
            drain_timeout: Duration::from_secs(5),
            busy_poll: Duration::ZERO,
            gather: Duration::ZERO,
            stream_pool_bytes: 8 << 20,
            datagram_buffers: 128,
            fill_buffers: 64,
            mailbox_messages_max: 4096,
            datagram_socket_buffers: SocketBufferSizes::both(4 << 20),
        }
    }
}

/// How much may wait on one stream: what [`Context::send_within`](crate::Context::send_within) is
/// given beside the shard's own [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueBounds {
    /// Unsent bytes.
    pub bytes_max: usize,
    /// Unsent payloads, whatever their length.
    pub messages_max: usize,
}

/// What [`Context::drop_oldest`](crate::Context::drop_oldest) took out of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Payloads.
    pub messages: usize,
    /// Messages in them, by what [`Fanned::carrying`](crate::Fanned::carrying) was told; one in any
    /// other payload.
    pub carried: usize,
    /// Their bytes.
    pub bytes: usize,
}
