//! What a running test connection hands out: bursts and PDUs to send, and what happened.
//!
//! Warnings carry the number that is their exit status in OB-UDPST, so that both front ends agree.

use super::adjust::Trial;
use super::batch::{LoadRecord, Refused};
use super::burst::Burst;
use super::intervals::{Spread, SubInterval};
use super::limited::Limit;

/// Where a connection's output goes. Nothing is kept of what is borrowed.
pub trait Sink {
    /// Sends a burst. Returns how many of its datagrams were taken, counted from the front.
    fn burst(&mut self, burst: &Burst) -> u32;

    /// Sends one status or stop PDU. One that is not taken counts as lost.
    fn pdu(&mut self, bytes: &[u8]);

    /// Takes note of what happened.
    fn event(&mut self, event: Event);

    /// Whether [`record`](Self::record) is to be called; it costs time for each load PDU.
    fn records(&self) -> bool {
        false
    }

    /// Takes note of one load PDU that arrived.
    fn record(&mut self, _load: &LoadRecord) {}
}

/// What happened on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Something is not as it should be; the test goes on. At most
    /// [`WARNINGS_PER_CONNECTION_MAX`](super::WARNINGS_PER_CONNECTION_MAX) are handed out.
    Warning(Warning),
    /// A trial ended: a status PDU was sent, or one came that was not stale.
    Trial(TrialReport),
    /// A sub-interval of the test ended. Each number comes at most once, in rising order.
    SubInterval(SubInterval),
    /// The test has ended. Nothing follows.
    Ended(End),
}

/// One trial, as the receiver reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrialReport {
    /// What it showed.
    pub trial: Trial,
    /// One-way delay variation.
    pub delay_var: Spread,
    /// UDP payload that arrived, in bytes.
    pub bytes: u32,
    /// Its length in µs.
    pub delta_us: u32,
    /// The row from now on: only a server knows.
    pub row: Option<u16>,
    /// Who was the limit.
    pub limit: Limit,
}

/// Something is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warning {
    /// Status PDUs of the peer were lost, or came late ([`u16::MAX`]).
    StatusLost(u16),
    /// The peer says the same of ours.
    StatusLostAtPeer(u16),
    /// Nothing has come for a second.
    TrafficStopped,
    /// Nothing of ours has reached the peer for a second.
    TrafficStoppedAtPeer,
    /// Datagrams came that are no data PDUs.
    BadData(Refused),
    /// Load came without the ECN marking that was agreed.
    EcnBleached,
    /// The peer says the same of ours.
    EcnBleachedAtPeer,
}

impl Warning {
    /// The exit status that it stands for.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::StatusLost(_) => 2,
            Self::StatusLostAtPeer(_) => 3,
            Self::TrafficStopped => 4,
            Self::TrafficStoppedAtPeer => 5,
            Self::BadData(_) => 6,
            Self::EcnBleached => 7,
            Self::EcnBleachedAtPeer => 8,
        }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::StatusLost(u16::MAX) => f.write_str("a status PDU came late or twice"),
            Self::StatusLost(count) => write!(f, "{count} status PDUs of the peer were lost"),
            Self::StatusLostAtPeer(u16::MAX) => {
                f.write_str("a status PDU reached the peer late or twice")
            }
            Self::StatusLostAtPeer(count) => {
                write!(f, "{count} status PDUs did not reach the peer")
            }
            Self::TrafficStopped => f.write_str("nothing has come from the peer for a second"),
            Self::TrafficStoppedAtPeer => f.write_str("nothing has reached the peer for a second"),
            Self::BadData(refused) => write!(
                f,
                "datagrams that are no data PDUs: {} by their size, {} by a field, {} by checksum",
                refused.size, refused.format, refused.checksum
            ),
            Self::EcnBleached => f.write_str("load comes without its ECN marking: ECN bleaching"),
            Self::EcnBleachedAtPeer => {
                f.write_str("load reaches the peer without its ECN marking: ECN bleaching")
            }
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The test took its time and both ends know.
    Complete,
    /// A server has stopped and the client did not confirm it. The test is complete all the same.
    Unconfirmed,
    /// The time of the test has passed but the server's stop did not come. The results are complete.
    StopMissing,
    /// The client ended it before its time.
    PeerStopped,
    /// This end was told to stop before the time.
    Stopped,
    /// Nothing came from the peer for three seconds.
    NoTraffic,
}

impl End {
    /// Whether the test took its whole time.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        matches!(self, Self::Complete | Self::Unconfirmed | Self::StopMissing)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Complete => "the test is complete",
            Self::Unconfirmed => "the test is complete; the client did not confirm its end",
            Self::StopMissing => "the test is complete; the server's stop did not come",
            Self::PeerStopped => "the client ended the test early",
            Self::Stopped => "the test was ended early",
            Self::NoTraffic => {
                "nothing came from the peer for three seconds: look for a firewall or a lost path"
            }
        })
    }
}
