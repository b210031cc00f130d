//! What a NAT counts, exactly: each datagram that came in is either sent, or in exactly one counter
//! that says why not.

use ringmill_engine::counters;

counters! {
    /// What one shard of a NAT has done.
    NatCounters,
    /// [`NatCounters`] at one moment.
    NatSnapshot {
        /// Entries now.
        entries: gauge,
        /// Entries created.
        entries_created: counter,
        /// Entries that ended because nothing passed for the timeout.
        entries_timed_out: counter,
        /// Entries that ended by command.
        entries_cleared: counter,
        /// Entries that had to make room for a new client.
        entries_evicted: counter,
        /// Entries that ended because no new socket could be opened for them.
        entries_lost: counter,
        /// Times that an entry was given another destination.
        reassigned: counter,
        /// Times that an entry moved to another local port or address, by impairment or command.
        rebound: counter,
        /// Datagrams from clients.
        forward_received_datagrams: counter,
        /// Bytes from clients.
        forward_received_bytes: counter,
        /// Datagrams sent to destinations.
        forward_sent_datagrams: counter,
        /// Bytes sent to destinations.
        forward_sent_bytes: counter,
        /// Datagrams from destinations.
        backward_received_datagrams: counter,
        /// Bytes from destinations.
        backward_received_bytes: counter,
        /// Datagrams sent to clients.
        backward_sent_datagrams: counter,
        /// Bytes sent to clients.
        backward_sent_bytes: counter,
        /// Datagrams of new clients dropped because the table was full.
        dropped_table_full: counter,
        /// Datagrams of new clients dropped because no socket could be opened.
        dropped_no_socket: counter,
        /// Datagrams dropped because there is no destination.
        dropped_no_destination: counter,
        /// Datagrams dropped because they came from another than the entry's destination.
        dropped_wrong_routed: counter,
        /// Datagrams dropped because they are no DTLS records.
        dropped_not_dtls: counter,
        /// Datagrams dropped because they came to a port that the entry had left.
        dropped_old_binding: counter,
        /// Datagrams dropped because the send queue was full.
        dropped_queue_full: counter,
        /// Datagrams dropped because more were held back than the bound allows.
        dropped_held_full: counter,
        /// Datagrams held back whose entry ended before they left.
        dropped_entry_ended: counter,
        /// Datagrams held back now.
        held_datagrams: gauge,
        /// Bytes held back now.
        held_bytes: gauge,
        /// Errors that sockets reported.
        socket_errors: counter,
    }
}
