//! What a server counts: all that the statistics file of OB-UDPST reports, and what it drops itself.
//!
//! A shard writes its own; readers see sums that are exact once the shard rests.

use std::sync::atomic::{AtomicU64, Ordering};

use ringmill_engine::counters;

counters! {
    /// What one shard of a capacity server has done.
    ServerCounters,
    /// [`ServerCounters`] at one moment.
    ServerSnapshot {
        /// Tests that wait for their activation.
        pending: gauge,
        /// Tests that run.
        running: gauge,
        /// Mbit/s booked upstream by tests of this shard.
        booked_upstream_mbps: gauge,
        /// Mbit/s booked downstream by tests of this shard.
        booked_downstream_mbps: gauge,
        /// Setup requests that were well formed.
        setup_requests_received: counter,
        /// Setup requests accepted.
        setup_accepts_sent: counter,
        /// Setup requests rejected, whatever the code.
        setup_rejects_sent: counter,
        /// Rejected for their version (code 2).
        setup_invalid_protocol_ver: counter,
        /// Rejected for an option (codes 3, 4, 5, 6, 9, 11, 12).
        setup_invalid_setup_option: counter,
        /// Rejected for want of bandwidth (code 10).
        setup_bandwidth_exceeded: counter,
        /// Rejected because no connection could be made (code 13).
        setup_connection_create_fail: counter,
        /// Setup requests below version 20.
        setup_legacy_protocol_ver: counter,
        /// Repeats of a setup request that got the same answer again.
        setup_repeats_answered: counter,
        /// Replays of a signed setup request that got silence.
        setup_replays_ignored: counter,
        /// Setup requests beyond what one source may have pending.
        setup_source_bound: counter,
        /// Pending tests of unauthenticated clients that had to make room for newer ones.
        setup_evicted: counter,
        /// Tests that were not activated in time.
        activation_timeout_waiting: counter,
        /// Activation requests that were well formed and believed.
        activation_requests_received: counter,
        /// Activation requests accepted, repeats included.
        activation_accepts_sent: counter,
        /// Activation requests rejected.
        activation_rejects_sent: counter,
        /// Activation requests with parameters that could not be taken even corrected.
        activation_bad_parameter: counter,
        /// Activation requests from another host than the setup request.
        activation_wrong_source: counter,
        /// Control PDUs of a wrong size.
        control_invalid_size: counter,
        /// Control PDUs of a wrong format.
        control_invalid_format: counter,
        /// Control PDUs with a wrong checksum.
        control_invalid_checksum: counter,
        /// Control PDUs with a wrong signature.
        control_auth_failure: counter,
        /// Control PDUs rightly signed, but at another time.
        control_bad_auth_time: counter,
        /// Load PDUs of a wrong size.
        data_load_invalid_size: counter,
        /// Load PDUs of a wrong format.
        data_load_invalid_format: counter,
        /// Load PDUs with a wrong checksum.
        data_load_invalid_checksum: counter,
        /// Status PDUs of a wrong size.
        data_status_invalid_size: counter,
        /// Status PDUs of a wrong format.
        data_status_invalid_format: counter,
        /// Status PDUs with a wrong checksum.
        data_status_invalid_checksum: counter,
        /// Datagrams on a test's port from another than its client.
        data_wrong_source: counter,
        /// Tests that ran and have ended.
        tests_ended: counter,
        /// Among these, tests that took their whole time.
        tests_complete: counter,
        /// Load datagrams handed to the stack.
        tx_datagrams: counter,
        /// Bytes of these at L3.
        tx_ip_bytes: counter,
        /// Sends of load.
        tx_bursts: counter,
        /// Sends of load that were not wholly accepted.
        tx_overruns: counter,
        /// Datagrams that these did not accept.
        tx_overrun_datagrams: counter,
        /// Load datagrams received.
        rx_datagrams: counter,
        /// Bytes of these at L3.
        rx_ip_bytes: counter,
        /// Buffers of load received.
        rx_bursts: counter,
        /// Load datagrams that clients report as received.
        delivered_tx_datagrams: counter,
        /// Bytes of these at L3.
        delivered_tx_ip_bytes: counter,
        /// Load datagrams that clients report as lost.
        delivered_tx_lost: counter,
        /// Load datagrams that clients report as late or doubled.
        delivered_tx_ooo_dup: counter,
        /// Load datagrams that were reported to clients as received.
        delivered_rx_datagrams: counter,
        /// Bytes of these at L3.
        delivered_rx_ip_bytes: counter,
        /// Load datagrams that were reported to clients as lost.
        delivered_rx_lost: counter,
        /// Load datagrams that were reported to clients as late or doubled.
        delivered_rx_ooo_dup: counter,
        /// Turns in which sockets had something to read.
        ready_turns: counter,
        /// Sockets that had something to read in these.
        ready_sockets: counter,
        /// Turns that came so late that several ticks of 100 µs were done as one.
        coalesced_bursts: counter,
        /// Ticks in these.
        coalesced_ticks: counter,
        /// Status PDUs sent.
        status_tx_messages: counter,
        /// Status PDUs received.
        status_rx_messages: counter,
        /// Status PDUs of clients that were lost.
        status_lost_here: counter,
        /// Status PDUs of this server that clients did not get.
        status_lost_at_peer: counter,
        /// Times that nothing came from a client for a second.
        traffic_stopped_here: counter,
        /// Times that nothing reached a client for a second.
        traffic_stopped_at_peer: counter,
        /// Tests whose path refused segmented sends.
        not_segmented: counter,
        /// Events that the control thread did not take in time.
        events_dropped: counter,
        /// Load records that the writer did not take in time.
        records_dropped: counter,
    }
}

macro_rules! peaks {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// The largest values since they were last taken: one shard raises, one reader takes.
        #[derive(Debug, Default)]
        pub struct Peaks { $($(#[doc = $help])+ pub $name: Peak,)+ }

        /// [`Peaks`] as they were taken.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct PeaksSnapshot { $($(#[doc = $help])+ pub $name: u64,)+ }

        impl Peaks {
            /// The largest values since this was last called.
            #[must_use]
            pub fn take(&self) -> PeaksSnapshot {
                PeaksSnapshot { $($name: self.$name.take(),)+ }
            }
        }

        impl PeaksSnapshot {
            /// The larger of each, of two shards say.
            #[must_use]
            pub fn max(&self, other: &Self) -> Self {
                Self { $($name: self.$name.max(other.$name),)+ }
            }
        }
    };
}

peaks! {
    /// Datagrams of one send that were not accepted.
    tx_overrun_size,
    /// Datagrams accepted in one send.
    tx_burst_size,
    /// Datagrams received in one buffer.
    rx_burst_size,
    /// Sockets with something to read in one turn.
    ready_sockets,
    /// Ticks of 100 µs that were done as one.
    coalesced_ticks,
}

/// The largest value since it was last taken.
#[derive(Debug, Default)]
pub struct Peak(AtomicU64);

impl Peak {
    /// Raises it, if it is less. For one writer: a reader in between costs one value at most.
    #[inline]
    pub fn raise(&self, value: u64) {
        if self.0.load(Ordering::Relaxed) < value {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    /// The value, and 0 from now on.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}
