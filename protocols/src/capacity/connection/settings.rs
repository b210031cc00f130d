//! What a running connection must know: its role, what was agreed, and how careful it is.

use std::sync::Arc;

use ringmill_engine::time::Nanos;

use crate::capacity::parameters::{Direction, TestParameters};
use crate::capacity::pdu::{RateStructure, StatusChecksum, Version};
use crate::capacity::rates::RateTable;
use crate::capacity::sender::SenderSettings;

const NANOS_PER_MS: Nanos = 1_000_000;

/// Which end of the test this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The server: it adjusts the rate and stops the test.
    Server {
        /// The sending rate table.
        rows: Arc<RateTable>,
        /// The highest row that the admitted bandwidth allows, where it is enforced.
        row_max: Option<u16>,
        /// Send row 0 until the first status PDU, so that nobody who has not answered gets more.
        hold_until_answered: bool,
        /// Hold the search when a peer's sender seems to be the limit, see
        /// [`limited`](crate::capacity::limited).
        infer_peer_limit: bool,
    },
    /// The client.
    Client {
        /// The row to begin with in an upstream test.
        first_row: RateStructure,
    },
}

/// Which way load goes, as this end sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// This end sends load.
    Sender,
    /// This end receives load.
    Receiver,
}

/// All that a connection must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Server or client.
    pub role: Role,
    /// What was agreed at activation, legal.
    pub parameters: TestParameters,
    /// The format of status PDUs.
    pub version: Version,
    /// The connection's authentication mode, repeated in status PDUs.
    pub auth_mode: u8,
    /// What to make of the checksum of version 20 status PDUs.
    pub status_checksum: StatusChecksum,
    /// How to send; also whether checksums are filled.
    pub sender: SenderSettings,
}

impl ConnectionSettings {
    /// Whether this end sends load or receives it.
    #[must_use]
    pub fn half(&self) -> Half {
        match (&self.role, self.parameters.direction) {
            (Role::Server { .. }, Direction::Downstream)
            | (Role::Client { .. }, Direction::Upstream) => Half::Sender,
            (Role::Server { .. }, Direction::Upstream)
            | (Role::Client { .. }, Direction::Downstream) => Half::Receiver,
        }
    }

    /// Between two status PDUs.
    pub(super) fn trial_interval(&self) -> Nanos {
        Nanos::from(self.parameters.trial_int_ms.max(1)) * NANOS_PER_MS
    }
}
