//! What a test is to be, as the client was told: the same for all of its connections.

use std::net::{IpAddr, SocketAddr};

use ringmill_engine::time::Nanos;

use crate::capacity::keys::SharedKey;
use crate::capacity::pacing::Pacing;
use crate::capacity::parameters::TestParameters;
use crate::capacity::pdu::{Setup, StatusChecksum, Version};
use crate::capacity::time::{Instants, WallTime};

/// Which datagram sizes the rows have: client and server must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatagramSizes {
    /// Datagrams above the default size are allowed past 1 Gbit/s.
    pub jumbo: bool,
    /// Packets fill an MTU of 1500.
    pub traditional: bool,
}

impl Default for DatagramSizes {
    fn default() -> Self {
        Self {
            jumbo: true,
            traditional: false,
        }
    }
}

/// Which load PDUs a receiving client records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recording {
    /// Those with a sample of the round-trip time.
    RoundTrips,
    /// All of them.
    All,
}

/// One test: the settings of all of its connections.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Control address of each server; connections are dealt to them in rotation. All of one address
    /// family, never empty.
    pub servers: Vec<SocketAddr>,
    /// Connections to attempt: 1 to [`CONNECTIONS_MAX`](crate::capacity::CONNECTIONS_MAX).
    pub connections: u8,
    /// Random identity of the test, not 0.
    pub ident: u16,
    /// What to ask for.
    pub parameters: TestParameters,
    /// Bandwidth in Mbit/s that all connections together may need, if servers are to be told.
    pub bandwidth_mbps: Option<u32>,
    /// Datagram sizes.
    pub sizes: DatagramSizes,
    /// Key and its id, for a test with authentication.
    pub key: Option<(u8, SharedKey)>,
    /// The version to begin with.
    pub version: Version,
    /// Go on in version 11 with a server that speaks nothing newer.
    pub fall_back: bool,
    /// Fill the checksums of headers.
    pub check_sum: bool,
    /// What to make of the checksum of version 20 status PDUs.
    pub status_checksum: StatusChecksum,
    /// Numbers of datagrams that the socket did not take are not used again.
    pub keep_numbers: bool,
    /// Local address to send from, if not any.
    pub local: Option<IpAddr>,
    /// Send with segmentation offload: many datagrams by one call.
    pub gso: bool,
    /// Sending deadlines are shown on a grid of this many nanoseconds, 0 for none.
    pub tick: Nanos,
    /// How the shards of a sending client are woken.
    pub pacing: Pacing,
    /// Record what a receiving client gets.
    pub recording: Option<Recording>,
    /// Both clocks, read together when the test was set up: the wall clock of this test follows from
    /// it by the monotonic one.
    pub clock: Instants,
    /// Of random sizes, payload and first delays.
    pub seed: u64,
}

impl ClientSettings {
    /// A test with nothing but the defaults, one connection to each server.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>, parameters: TestParameters, clock: Instants) -> Self {
        Self {
            connections: u8::try_from(servers.len()).unwrap_or(u8::MAX),
            servers,
            ident: 1,
            parameters,
            bandwidth_mbps: None,
            sizes: DatagramSizes::default(),
            key: None,
            version: Version::V20,
            fall_back: true,
            check_sum: false,
            status_checksum: StatusChecksum::Lenient,
            keep_numbers: false,
            local: None,
            gso: true,
            tick: 0,
            pacing: Pacing::default(),
            recording: None,
            clock,
            seed: 0,
        }
    }

    /// Where a connection is set up.
    #[must_use]
    pub fn server(&self, connection: u8) -> SocketAddr {
        self.servers[usize::from(connection) % self.servers.len()]
    }

    /// Both clocks at a monotonic time.
    #[must_use]
    pub fn instants(&self, now: Nanos) -> Instants {
        let passed = now.saturating_sub(self.clock.now);
        let wall = self.clock.wall.unix_nanos().saturating_add(passed);
        Instants {
            now,
            wall: WallTime::from_unix_nanos(wall),
        }
    }

    /// What a connection asks for in its setup request, in Mbit/s; 0 for not given. More than a
    /// request can say is the most that it can.
    #[must_use]
    pub fn bandwidth_of_connection(&self) -> u16 {
        match self.bandwidth_mbps {
            Some(mbps @ 1..) => {
                let share = (mbps / u32::from(self.connections.max(1))).max(1);
                let most = Setup::BANDWIDTH_MAX_MBPS;
                u16::try_from(share).map_or(most, |mbps| mbps.min(most))
            }
            _ => 0,
        }
    }
}
