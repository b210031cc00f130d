//! What a chat counts, exactly: each message is queued for each session of a shard, or in one of
//! the counters that say why not.

use ringmill_engine::counters;

counters! {
    /// What one shard of a chat has done.
    ChatCounters,
    /// [`ChatCounters`] at one moment.
    ChatSnapshot {
        /// Sessions that take part now.
        sessions: gauge,
        /// Sessions that joined.
        joined: counter,
        /// Sessions that left by the word '!'.
        left: counter,
        /// Messages received from sessions (with line framing, all lines of one receive are one).
        messages: counter,
        /// Their bytes.
        message_bytes: counter,
        /// Bytes copied into memory that all shards and sessions share.
        stored_bytes: counter,
        /// Messages from the console.
        admin_messages: counter,
        /// Messages from the console that were refused because too many waited.
        admin_refused: counter,
        /// Messages given to other shards, once to each; those of one turn go together.
        crossed: counter,
        /// Messages that had to wait because another shard had no room for them.
        crossings_delayed: counter,
        /// Messages that wait for another shard now.
        crossings_waiting: gauge,
        /// Messages that still waited for another shard when the server stopped.
        crossings_lost: counter,
        /// Times that the reading of a sender was paused because its message had to wait.
        senders_paused: counter,
        /// Messages queued for a session of this shard.
        deliveries: counter,
        /// Messages dropped from the queue of a slow reader to make room for newer ones.
        dropped_oldest: counter,
        /// Messages not queued because the queue of a slow reader, or the shard, was full.
        dropped_newest: counter,
        /// Messages dropped from the end of the queue of a slow reader, because the queues of many
        /// had the memory of the shard.
        withdrawn: counter,
        /// Sessions disconnected because they read too slowly.
        disconnected_slow: counter,
        /// Lines thrown away because they were longer than the bound.
        lines_too_long: counter,
    }
}
