//! One test connection of a server: from the accepted setup over activation to its end.

use std::net::SocketAddr;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;
use ringmill_engine::timer::TimerId;
use ringmill_engine::{Nanos, SocketId};

use super::event::{About, Totals};
use super::settings::{Listener, Settings};
use super::sources::Hold;
use crate::capacity::batch::LoadRecord;
use crate::capacity::connection::{Connection, ConnectionSettings, Half, Role};
use crate::capacity::parameters::{Direction, TestParameters};
use crate::capacity::pdu::{Activation, Version};
use crate::capacity::rates::{RateTable, Variant};
use crate::capacity::sender::SenderSettings;
use crate::capacity::setup::Accepted;
use crate::capacity::time::Instants;

/// Deadlines of all tests of a shard fall on this grid, so that they wake it together: the interval
/// of the fastest transmitters.
pub(super) const TICK: Nanos = 100_000;

/// The rate tables of a server: `[jumbo and MTU as listeners have them][IPv6]`, and the same with the
/// rows past the end where those are granted.
#[derive(Debug)]
pub(super) struct Tables {
    plain: Vec<[Arc<RateTable>; 2]>,
    extended: Vec<[Arc<RateTable>; 2]>,
}

impl Tables {
    pub(super) fn new(settings: &Settings) -> Self {
        let all = |make: fn(Variant) -> RateTable| {
            let of_listener = |listener: &Listener| {
                [false, true].map(|ipv6| {
                    Arc::new(make(Variant {
                        ipv6,
                        jumbo: listener.setup.jumbo,
                        traditional: listener.setup.traditional,
                    }))
                })
            };
            settings.listeners.iter().map(of_listener).collect()
        };
        Self {
            plain: all(RateTable::new),
            extended: if settings.limits.extended_rows {
                all(RateTable::extended)
            } else {
                Vec::new()
            },
        }
    }

    /// The table of a test: the plain one, unless rows past its end were granted.
    pub(super) fn of(&self, listener: u16, peer: SocketAddr, extended: bool) -> &Arc<RateTable> {
        let listener = usize::from(listener);
        let plain = &self.plain[listener];
        let tables = match self.extended.get(listener) {
            Some(tables) if extended => tables,
            _ => plain,
        };
        &tables[usize::from(peer.is_ipv6())]
    }
}

/// The activation that a test runs by, to recognise a repeat of it and to answer alike.
pub(super) struct Activated {
    request: Box<[u8]>,
    pub(super) response: Box<[u8]>,
    /// Times that the answer was repeated.
    pub(super) repeats: u32,
}

impl Activated {
    /// Repeats of one answer: a client that has not got so many will not get another.
    const REPEATS_MAX: u32 = 10;

    pub(super) fn new(request: &[u8], response: &[u8]) -> Self {
        Self {
            request: request.into(),
            response: response.into(),
            repeats: 0,
        }
    }

    /// Whether a datagram is the same request again, and is to be answered again.
    pub(super) fn is_repeated_by(&mut self, bytes: &[u8]) -> bool {
        let repeated = self.repeats < Self::REPEATS_MAX && *bytes == *self.request;
        self.repeats += u32::from(repeated);
        repeated
    }
}

/// Where a test is.
pub(super) enum State {
    /// It waits for the activation request.
    Pending {
        /// What its source has of pending tests.
        _hold: Hold,
    },
    /// It runs.
    Running {
        connection: Box<Connection>,
        parameters: TestParameters,
        activated: Activated,
    },
}

/// See the [module's page](self).
pub(super) struct Test {
    pub(super) about: Arc<About>,
    pub(super) socket: SocketId,
    /// The client: where the setup request came from, then where the activation request did.
    pub(super) peer: SocketAddr,
    pub(super) accepted: Accepted,
    /// ECN bits of all that the test sends.
    pub(super) ecn: u8,
    pub(super) state: State,
    pub(super) timer: Option<(Nanos, TimerId)>,
    /// Whether sends were segmented when it was last looked at.
    pub(super) segmented: bool,
    pub(super) records: Vec<LoadRecord>,
}

impl Test {
    /// The highest row that what was booked allows, where that is enforced.
    pub(super) fn row_max(&self, settings: &Settings, rows: &RateTable) -> Option<u16> {
        let mbps = self.accepted.max_bandwidth_mbps;
        (settings.rate_limit && mbps > 0).then(|| rows.cap_row(mbps))
    }

    /// Completes the response to an activation request: an upstream test is told its first row.
    pub(super) fn complete(
        &self,
        response: &mut Activation,
        parameters: &TestParameters,
        settings: &Settings,
        rows: &RateTable,
    ) {
        if parameters.direction == Direction::Upstream {
            let row = parameters.first_row();
            let row = row.min(self.row_max(settings, rows).unwrap_or(u16::MAX));
            response.rate = rows.row(row).rate;
        }
    }

    /// Starts the test.
    pub(super) fn connection(
        &self,
        parameters: TestParameters,
        settings: &Settings,
        rows: &Arc<RateTable>,
        rng: &mut SmallRng,
        at: Instants,
    ) -> Connection {
        let setup = &settings.listeners[usize::from(self.about.listener)].setup;
        let settings = ConnectionSettings {
            role: Role::Server {
                row_max: self.row_max(settings, rows),
                rows: Arc::clone(rows),
                hold_until_answered: !(self.accepted.authenticated
                    || settings.allow_unauthenticated_start),
                infer_peer_limit: settings.infer_peer_limit,
            },
            parameters,
            version: self.accepted.version,
            auth_mode: self.accepted.auth_mode,
            status_checksum: settings.status_checksum,
            sender: SenderSettings {
                ipv6: self.peer.is_ipv6(),
                keep_numbers: settings.keep_numbers,
                check_sum: setup.fill_check_sum,
                tick: TICK,
                seed: rng.random(),
            },
        };
        Connection::new(settings, at)
    }
}

/// What a test came to.
pub(super) fn totals(connection: &Connection) -> Totals {
    let mut totals = Totals {
        limited_trials: connection.limited_trials(),
        refused: connection.refused(),
        ..Totals::default()
    };
    if let Some(sender) = connection.sender() {
        (totals.datagrams, totals.bytes) = sender.totals();
        totals.missed = sender.total_missed();
    }
    if let Some(receiver) = connection.receiver() {
        (totals.datagrams, totals.bytes) = receiver.totals();
        totals.errors = receiver.total_errors();
    }
    totals
}

/// Which way load goes, as a server sees it.
pub(super) const fn half(direction: Direction) -> Half {
    match direction {
        Direction::Downstream => Half::Sender,
        Direction::Upstream => Half::Receiver,
    }
}

/// The time window of signatures in s.
pub(super) fn window_s(settings: &Settings, listener: u16, version: Version) -> u32 {
    let setup = &settings.listeners[usize::from(listener)].setup;
    match version {
        Version::V11 => setup.auth_window_v11_s,
        Version::V20 => setup.auth_window_s,
    }
}
