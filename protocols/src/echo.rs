//! Echo: everything that arrives goes back, over streams and datagrams, without a copy.
//!
//! A stream whose peer does not read is paused, so that the peer's own TCP window fills and its
//! sends wait; nothing is dropped and nothing grows. Datagrams go back only as far as the
//! [guard](crate::guard) lets them, never with more bytes than came. Echo keeps no state per stream
//! or peer.

use ringmill_engine::{Buffer, Context, Datagram, Payload, Protocol, SocketId, StreamId, Transmit};

use crate::guard::Guard;

/// The echo service on one shard.
#[derive(Debug, Default)]
pub struct Echo {
    guard: Guard,
    /// The largest receive buffer seen: the next one may be as large.
    buffer_bytes_max: usize,
}

impl Echo {
    /// An echo service that answers the datagrams that `guard` admits. The default is one with the
    /// default guard, whose counters nobody else sees.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self {
            guard,
            buffer_bytes_max: 0,
        }
    }

    /// Whether a stream's queue has no room for another buffer, or is past half of its bound.
    fn is_high(&self, queued_bytes: usize, queue_bytes_max: usize) -> bool {
        queued_bytes > 0
            && (queued_bytes > queue_bytes_max / 2
                || queued_bytes + self.buffer_bytes_max > queue_bytes_max)
    }
}

impl Protocol for Echo {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for (_, socket) in ctx.bound_sockets() {
            if let Some(local) = ctx.local_address(socket) {
                self.guard.own_ports().add(local.port());
            }
        }
    }

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        self.buffer_bytes_max = self.buffer_bytes_max.max(data.pinned_bytes());
        if ctx.send(stream, data).is_full() {
            // The stream was paused in time for its own bound, so the whole shard's is hit: bytes
            // would be missing from the middle, and a broken echo must not look like a good one.
            ctx.close(stream);
            return;
        }
        // The entry and its queue were just written by `send`, so asking costs two loads.
        let queued_bytes = ctx.queued_bytes(stream);
        if self.is_high(queued_bytes, ctx.limits().stream_queue_bytes_max) {
            ctx.pause(stream);
            ctx.notify_when_drained(stream);
        }
    }

    fn drained(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        let queued_bytes = ctx.queued_bytes(stream);
        if self.is_high(queued_bytes, ctx.limits().stream_queue_bytes_max) {
            // Half is free, but not enough for one whole buffer: a very small bound.
            ctx.notify_when_drained(stream);
        } else {
            ctx.resume(stream);
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        // Known for each datagram on a wildcard socket, else the same for all.
        let bound = ctx
            .local_address(socket)
            .map(|local| local.ip())
            .filter(|ip| !ip.is_unspecified());
        for mut datagram in batch.drain(..) {
            let count = datagram.count();
            let local = datagram.local.or(bound);
            let admitted = self.guard.admit(ctx.now(), datagram.peer, local, count);
            if admitted == 0 {
                continue;
            }
            if admitted < count {
                datagram
                    .data
                    .truncate(admitted * usize::from(datagram.stride));
            }
            let Datagram {
                peer,
                local,
                stride,
                data,
                ..
            } = datagram;
            let transmit = Transmit {
                peer: Some(peer),
                source: local,
                ecn: 0,
                stride,
                data: Payload::Buffer(data),
            };
            // Full: the kernel does not take what we have, so this one is lost, as datagrams may
            // be; the engine counts it in `send_full`.
            let _ = ctx.send_datagrams(socket, transmit);
        }
    }
}
