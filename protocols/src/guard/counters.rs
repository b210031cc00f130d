//! What a guard has decided, by reason: counters of one shard, and their sum at one moment.

use ringmill_engine::metrics::Counter;
use serde::Serialize;

macro_rules! guard_counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// What one guard has decided. Written by its shard, readable by anyone.
        #[derive(Debug, Default)]
        pub struct GuardCounters { $($(#[doc = $help])+ pub $name: Counter,)+ }

        /// [`GuardCounters`] at one moment, or the sum of several.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
        pub struct GuardSnapshot { $($(#[doc = $help])+ pub $name: u64,)+ }

        impl GuardCounters {
            /// All values now.
            #[must_use]
            pub fn snapshot(&self) -> GuardSnapshot {
                GuardSnapshot { $($name: self.$name.get(),)+ }
            }
        }

        impl GuardSnapshot {
            /// Name and help of every value, in order. All are counters.
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($name), concat!($($help),+)),)+];

            /// The values in the order of [`Self::FIELDS`].
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)+]
            }

            /// Sums two snapshots.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name.wrapping_add(other.$name),)+ }
            }
        }
    };
}

guard_counters! {
    /// Datagrams not answered because they came from a port of this process on this host.
    own_port,
    /// Datagrams not answered because their source port is that of a known responder.
    known_responder,
    /// Datagrams not answered because their source port is zero.
    zero_port,
    /// Datagrams not answered because their source is no single host: unspecified, broadcast,
    /// multicast or reserved.
    source_address,
    /// Datagrams not answered because they were sent to a broadcast or multicast address.
    group_destination,
    /// Datagrams not answered because their source was over its rate.
    over_rate,
    /// Sources forgotten, before their bucket was full again, to make room for another.
    sources_evicted,
}
