//! Which datagrams come from this process itself: its own answering ports on this host's addresses.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::KNOWN_RESPONDERS;

const PORT_WORDS: usize = (u16::MAX as usize + 1) / 64;

/// The ports of this process that answer datagrams, and the addresses of this host: two of our own
/// services must not be aimed at each other. Shared by all services and shards.
///
/// Ports from which we only ask, such as those of a load client, do not belong here.
#[derive(Debug)]
pub struct OwnPorts {
    /// One bit per port that must not be answered without a closer look: ours and the known
    /// responders', so that the usual datagram costs one load.
    suspects: Box<[AtomicU64]>,
    addresses: Vec<IpAddr>,
}

impl OwnPorts {
    /// No ports yet. `addresses` are this host's; loopback addresses, and the address to which a
    /// datagram was sent, count as this host's anyway.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let ports = Self {
            suspects: (0..PORT_WORDS).map(|_| AtomicU64::new(0)).collect(),
            addresses: addresses
                .into_iter()
                .map(|address| address.to_canonical())
                .collect(),
        };
        for (port, _) in KNOWN_RESPONDERS {
            ports.add(*port);
        }
        ports
    }

    /// Adds a port that answers datagrams.
    pub fn add(&self, port: u16) {
        self.suspects[usize::from(port) / 64].fetch_or(1 << (port % 64), Relaxed);
    }

    #[inline]
    pub(super) fn suspects(&self, port: u16) -> bool {
        self.suspects[usize::from(port) / 64].load(Relaxed) >> (port % 64) & 1 != 0
    }

    pub(super) fn is_this_host(&self, address: IpAddr, local: Option<IpAddr>) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || local == Some(address) || self.addresses.contains(&address)
    }
}

impl Default for OwnPorts {
    fn default() -> Self {
        Self::new([])
    }
}
