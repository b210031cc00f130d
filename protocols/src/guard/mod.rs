//! The reflection guard of services that answer UDP datagrams to whoever seems to have sent them.
//!
//! A source address is a claim. Whoever can forge it may aim two answering services at each other
//! (a loop that needs no further packet: CVE-1999-0103, CVE-2024-2169) or aim an answering service
//! at a victim. The guard decides, before anything is answered, how many datagrams of a received
//! buffer may be. It refuses what no honest client sends from, and holds every other source to a
//! rate, so that what remains possible is bounded and counted.
//!
//! It must never allocate per datagram, grow with the number of sources, or read a clock: time
//! comes from the caller, so it behaves the same in the simulator.

mod counters;
mod own_ports;
mod responders;
mod sources;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ringmill_engine::metrics::Counter;
use ringmill_engine::{Nanos, ShardId};
use serde::{Deserialize, Serialize};

pub use counters::{GuardCounters, GuardSnapshot};
pub use own_ports::OwnPorts;
pub use responders::KNOWN_RESPONDERS;
pub use sources::SOURCES_MAX;
use sources::{Sources, source_key};

/// Datagrams per second that one source may have answered, unless the user says otherwise: far
/// more than a person, a probe or a monitoring system sends, and at 1,222 bytes under 100 Mbit/s,
/// so that a forged victim is not flooded from here.
pub const PER_SOURCE_RATE_DEFAULT: u32 = 10_000;

/// What a user may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardSettings {
    /// Datagrams per second that one source (an IPv4 address, or an IPv6 /64) may have answered by
    /// one shard; `None` for no limit. The flows of a source may fall to several shards, but a
    /// loop is one flow.
    pub per_source_rate: Option<u32>,
    /// Whether the rate also holds for loopback sources, which nobody can forge from outside.
    pub limit_loopback: bool,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            per_source_rate: Some(PER_SOURCE_RATE_DEFAULT),
            limit_loopback: false,
        }
    }
}

/// Everything that the guards of one service share: settings, own ports and counters.
#[derive(Debug)]
pub struct Guards {
    settings: GuardSettings,
    own_ports: Arc<OwnPorts>,
    counters: Vec<Arc<GuardCounters>>,
}

impl Guards {
    /// For a service on this many shards.
    #[must_use]
    pub fn new(settings: GuardSettings, own_ports: Arc<OwnPorts>, shards: u16) -> Self {
        Self {
            settings,
            own_ports,
            counters: (0..shards).map(|_| Arc::default()).collect(),
        }
    }

    /// The guard of one shard. Make one for each: counters have one writer.
    ///
    /// # Panics
    /// When there are fewer shards.
    #[must_use]
    pub fn guard(&self, shard: ShardId) -> Guard {
        let counters = Arc::clone(&self.counters[usize::from(shard)]);
        Guard::new(
            self.settings,
            Arc::clone(&self.own_ports),
            counters,
            secret_seed(),
        )
    }

    /// The counters of all shards, summed.
    #[must_use]
    pub fn totals(&self) -> GuardSnapshot {
        let snapshots = self.counters.iter().map(|counters| counters.snapshot());
        snapshots.fold(GuardSnapshot::default(), |sum, next| sum.plus(&next))
    }

    /// The counters of each shard.
    #[must_use]
    pub fn counters(&self) -> &[Arc<GuardCounters>] {
        &self.counters
    }
}

/// The guard of one service on one shard.
#[derive(Debug)]
pub struct Guard {
    own_ports: Arc<OwnPorts>,
    counters: Arc<GuardCounters>,
    limit_loopback: bool,
    sources: Option<Sources>,
}

impl Guard {
    /// A guard of its own; [`Guards`] makes those of a service. `seed` decides where sources are
    /// kept: unknown to the outside, so that nobody can choose sources that share a place; fixed
    /// in the simulator.
    #[must_use]
    pub fn new(
        settings: GuardSettings,
        own_ports: Arc<OwnPorts>,
        counters: Arc<GuardCounters>,
        seed: u64,
    ) -> Self {
        Self {
            own_ports,
            counters,
            limit_loopback: settings.limit_loopback,
            sources: settings
                .per_source_rate
                .map(|rate| Sources::new(rate, seed)),
        }
    }

    /// The registry to which a service adds the ports that it answers from.
    #[must_use]
    pub fn own_ports(&self) -> &OwnPorts {
        &self.own_ports
    }

    /// What was decided so far.
    #[must_use]
    pub fn counters(&self) -> &Arc<GuardCounters> {
        &self.counters
    }

    /// How many of `count` datagrams that came together from `peer` may be answered: the first so
    /// many. `local` is the address to which they were sent.
    #[inline]
    #[must_use]
    pub fn admit(
        &mut self,
        now: Nanos,
        peer: SocketAddr,
        local: Option<IpAddr>,
        count: usize,
    ) -> usize {
        let count = count as u64;
        let suspect = self.own_ports.suspects(peer.port())
            || !is_one_host(peer.ip())
            || local.is_some_and(|local| !is_one_host(local));
        if suspect && let Some(counter) = self.refusal(peer, local) {
            counter.add(count);
            return 0;
        }
        let Some(sources) = &mut self.sources else {
            return count as usize;
        };
        if !self.limit_loopback && peer.ip().is_loopback() {
            return count as usize;
        }
        let (admitted, evicted) = sources.take(now, source_key(peer.ip()), count);
        if admitted < count {
            self.counters.over_rate.add(count - admitted);
        }
        if evicted {
            self.counters.sources_evicted.add(1);
        }
        admitted as usize
    }

    /// Why a suspect is refused; `None` when it may be answered after all.
    #[cold]
    fn refusal(&self, peer: SocketAddr, local: Option<IpAddr>) -> Option<&Counter> {
        let counters = &*self.counters;
        if peer.port() == 0 {
            return Some(&counters.zero_port);
        }
        if !is_one_host(peer.ip()) {
            return Some(&counters.source_address);
        }
        if local.is_some_and(|local| !is_one_host(local)) {
            return Some(&counters.group_destination);
        }
        if KNOWN_RESPONDERS
            .iter()
            .any(|(port, _)| *port == peer.port())
        {
            return Some(&counters.known_responder);
        }
        self.own_ports
            .is_this_host(peer.ip(), local)
            .then_some(&counters.own_port)
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new(
            GuardSettings::default(),
            Arc::default(),
            Arc::default(),
            secret_seed(),
        )
    }
}

/// Whether an address can be that of one host: not unspecified or "this network" (0.0.0.0/8, ::),
/// multicast (224.0.0.0/4, ff00::/8), reserved or broadcast (240.0.0.0/4). The broadcast address of
/// a network cannot be told from outside it; the kernel refuses it as a source on its own networks.
#[inline]
fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => (1..224).contains(&address.octets()[0]),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => (1..224).contains(&mapped.octets()[0]),
            None => address != Ipv6Addr::UNSPECIFIED && !address.is_multicast(),
        },
    }
}

/// A number that nobody outside knows: the key of a fresh standard hasher, from the system.
fn secret_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
