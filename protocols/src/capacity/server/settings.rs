//! What the operator of a capacity server chooses, and how much is kept of anybody.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::clock::WallClock;
use super::event::{RecordBatch, ServerEvent};
use crate::capacity::pacing::Pacing;
use crate::capacity::parameters::ServerLimits;
use crate::capacity::pdu::StatusChecksum;
use crate::capacity::setup::ServerSettings;

/// Tests at once, pending ones included: a file each, and well over the 254 of OB-UDPST.
const TESTS_MAX_DEFAULT: u32 = 12_000;
/// Tests that wait for their activation: at 10,000 spoofed requests a second each of them waits
/// for 0.4 s, longer than the round trip of any client that can use the test.
const PENDING_MAX_DEFAULT: u32 = 4_096;
/// Of one address (IPv6: /64): ten clients with all 24 connections set up in the same 3 s.
const PENDING_PER_SOURCE_MAX_DEFAULT: u32 = 256;

/// One control address: the index is that of the service's bound endpoints.
#[derive(Debug, Clone)]
pub struct Listener {
    /// How setup requests are answered there. The budgets of several listeners may share a total,
    /// see [`Admission::within`](crate::capacity::admission::Admission::within).
    pub setup: ServerSettings,
}

/// Where events and records go. Neither is waited for: what finds no room is dropped and counted.
#[derive(Debug, Clone)]
pub struct Outlets {
    /// What happened.
    pub events: SyncSender<ServerEvent>,
    /// Each load PDU that arrived, when a file is written.
    pub records: Option<SyncSender<RecordBatch>>,
}

/// What a capacity server goes by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The control addresses, in the order in which they are bound.
    pub listeners: Vec<Listener>,
    /// Above what the parameters of a test are lowered.
    pub limits: ServerLimits,
    /// Ports for the sockets of tests, where a firewall has few open; the kernel's choice otherwise.
    pub test_ports: Option<RangeInclusive<u16>>,
    /// The rate of a test stays below the bandwidth that it booked.
    pub rate_limit: bool,
    /// Fixed and starting rows are sent at once also to those who did not authenticate. Otherwise
    /// they get row 0 until they have answered it.
    pub allow_unauthenticated_start: bool,
    /// Stop climbing when a client's sender seems to be the limit.
    pub infer_peer_limit: bool,
    /// What to make of the checksum of version 20 status PDUs.
    pub status_checksum: StatusChecksum,
    /// Numbers of datagrams that the socket did not take are not used again.
    pub keep_numbers: bool,
    /// Send each datagram by itself.
    pub without_gso: bool,
    /// How the shards are woken while they send.
    pub pacing: Pacing,
    /// Tests at once, pending ones included.
    pub tests_max: u32,
    /// Tests that wait for their activation; beyond it the oldest without authentication gives way.
    pub pending_max: u32,
    /// The same for one source address; beyond it requests are rejected.
    pub pending_per_source_max: u32,
    /// Each trial is an event.
    pub trial_events: bool,
    /// The wall clock.
    pub clock: Arc<WallClock>,
    /// Of start delays and random payload.
    pub seed: u64,
    /// Where events and records go.
    pub outlets: Outlets,
}

impl Settings {
    /// A server with these control addresses and nothing else chosen.
    #[must_use]
    pub fn new(listeners: Vec<Listener>, clock: Arc<WallClock>, outlets: Outlets) -> Self {
        Self {
            listeners,
            limits: ServerLimits::default(),
            test_ports: None,
            rate_limit: false,
            allow_unauthenticated_start: false,
            infer_peer_limit: true,
            status_checksum: StatusChecksum::default(),
            keep_numbers: false,
            without_gso: false,
            pacing: Pacing::default(),
            tests_max: TESTS_MAX_DEFAULT,
            pending_max: PENDING_MAX_DEFAULT,
            pending_per_source_max: PENDING_PER_SOURCE_MAX_DEFAULT,
            trial_events: false,
            clock,
            seed: 0,
            outlets,
        }
    }
}
