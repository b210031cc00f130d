//! What a guard has decided, by reason: counters of one shard, and their sum at one moment.

ringmill_engine::counters! {
    /// What one guard has decided. Written by its shard, readable by anyone.
    GuardCounters,
    /// [`GuardCounters`] at one moment, or the sum of several.
    GuardSnapshot {
        /// Datagrams not answered because they came from a port of this process on this host.
        own_port: counter,
        /// Datagrams not answered because their source port is that of a known responder.
        known_responder: counter,
        /// Datagrams not answered because their source port is zero.
        zero_port: counter,
        /// Datagrams not answered because their source is no single host: unspecified, broadcast,
        /// multicast or reserved.
        source_address: counter,
        /// Datagrams not answered because they were sent to a broadcast or multicast address.
        group_destination: counter,
        /// Datagrams not answered because their source was over its rate.
        over_rate: counter,
        /// Sources forgotten, before their bucket was full again, to make room for another.
        sources_evicted: counter,
    }
}
