//! Counters that one shard writes and anyone may read.
//!
//! A counter has one writer, so adding is a plain load and store; a reader sees each counter whole
//! but not all of them at the same instant. Nothing here blocks and nothing is reset.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only its shard changes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter. Only the owning shard may call this.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Sets a gauge. Only the owning shard may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value as last written.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Defines a struct of counters, all of one shard, and the struct of their values at one moment, with
/// names, kinds and help for who shows them. The crate that uses it needs `serde`.
#[macro_export]
macro_rules! counters {
    ($(#[$doc:meta])* $live:ident, $(#[$snapdoc:meta])* $snapshot:ident { $($(#[doc = $help:literal])+ $name:ident: $kind:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $live { $($(#[doc = $help])+ pub $name: $crate::metrics::Counter,)+ }

        $(#[$snapdoc])*
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ::serde::Serialize)]
        pub struct $snapshot { $($(#[doc = $help])+ pub $name: u64,)+ }

        impl $live {
            /// All values now.
            #[must_use]
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($name: self.$name.get(),)+ }
            }
        }

        impl $snapshot {
            /// Name, kind (`counter` or `gauge`) and help of every value, in order.
            pub const FIELDS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($name), stringify!($kind), concat!($($help),+)),)+];

            /// The values in the order of [`Self::FIELDS`].
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)+]
            }

            /// Sums two snapshots, of two shards say.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name.wrapping_add(other.$name),)+ }
            }
        }
    };
}

counters! {
    /// What one service has done on one shard.
    ServiceCounters,
    /// [`ServiceCounters`] at one moment.
    ServiceSnapshot {
        /// Streams open now.
        open: gauge,
        /// Streams accepted.
        accepted: counter,
        /// Streams connected by us.
        connected: counter,
        /// Connects that failed.
        connect_failed: counter,
        /// Streams refused because the connection limit was reached.
        refused: counter,
        /// Streams closed, for whatever reason.
        closed: counter,
        /// Streams that ended by an error such as a reset.
        failed: counter,
        /// Streams closed because they were idle for too long.
        idle_closed: counter,
        /// Streams closed because their peer stopped taking data.
        stalled_closed: counter,
        /// Bytes received on streams.
        received_bytes: counter,
        /// Bytes sent on streams.
        sent_bytes: counter,
        /// Sends refused because a queue was full.
        send_full: counter,
        /// Datagrams received.
        received_datagrams: counter,
        /// Bytes of datagrams received.
        received_datagram_bytes: counter,
        /// Datagrams sent.
        sent_datagrams: counter,
        /// Bytes of datagrams sent.
        sent_datagram_bytes: counter,
        /// Datagrams that were dropped unsent: the kernel refused them, or their socket was closed.
        dropped_datagrams: counter,
        /// Messages received from other shards or the control thread.
        messages: counter,
        /// Messages that found the mailbox of the receiver full.
        messages_refused: counter,
        /// Timers fired.
        timers: counter,
    }
}

counters! {
    /// What one shard has done for all of its services.
    ShardCounters,
    /// [`ShardCounters`] at one moment.
    ShardSnapshot {
        /// Turns of the loop: one wait in the kernel each.
        turns: counter,
        /// Events that the driver delivered.
        events: counter,
        /// Times that accepting was paused because files or memory ran out.
        accept_pauses: counter,
        /// Times that no receive buffer was free when the kernel wanted one.
        buffers_exhausted: counter,
        /// Completions that did not fit into the completion queue at once.
        completion_overflows: counter,
        /// Accepted streams handed on to a shard with room.
        handed_on: counter,
        /// Doorbells rung because the receiver of a message slept.
        doorbells: counter,
        /// Bytes that wait in send queues now.
        queued_bytes: gauge,
        /// Errors that the kernel gave for requests that should not fail.
        driver_errors: counter,
    }
}

/// The counters of one shard.
#[derive(Debug)]
pub struct ShardMetrics {
    /// The shard itself.
    pub shard: ShardCounters,
    /// Its services, by [`ServiceId`](crate::ServiceId).
    pub services: Vec<ServiceCounters>,
}

impl ShardMetrics {
    pub(crate) fn new(services: usize) -> Self {
        Self {
            shard: ShardCounters::default(),
            services: (0..services).map(|_| ServiceCounters::default()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_add_up() {
        let live = ServiceCounters::default();
        live.accepted.add(3);
        live.open.set(2);
        let sum = live.snapshot().plus(&live.snapshot());
        assert_eq!((sum.accepted, sum.open), (6, 4));
        assert_eq!(ServiceSnapshot::FIELDS.len(), sum.values().len());
        assert_eq!(
            ServiceSnapshot::FIELDS[0],
            ("open", "gauge", " Streams open now.")
        );
    }
}
