//! What a user may set of a NAT.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ringmill_engine::Nanos;
use ringmill_engine::impairment::{Scenario, mix};
use serde::{Deserialize, Serialize};

use super::outlets::PortReuse;

/// Destinations at a time. The health of all is looked at in one go, and choosing one walks the list.
pub const DESTINATIONS_MAX: usize = 1_000;

/// How an entry's destination is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balancing {
    /// Evenly at random, as a function of seed, flow and how often the flow was assigned.
    #[default]
    Random,
    /// One after the other, over all shards.
    RoundRobin,
    /// The one that the fewest entries use.
    LeastUsed,
    /// By client: the same client always gets the same destination, and a destination that comes
    /// or goes moves only its own share (highest random weight, Thaler and Ravishankar 1998).
    Hash,
}

/// What happens to a new client when the table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Its datagrams are dropped and counted.
    #[default]
    Refuse,
    /// It takes the place of the entry of its shard that was used longest ago.
    EvictOldest,
}

/// How flows are numbered, for all that is decided by flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowNumbers {
    /// From the client's address and port: the same for the same client in every run.
    #[default]
    Client,
    /// 0, 1, 2… in the order of arrival: the same for clients whose ports change, as long as they
    /// come in the same order.
    Arrival,
}

/// All settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Name and address of each destination to begin with.
    pub destinations: Vec<(String, SocketAddr)>,
    /// Local addresses to send from; the kernel's choice when empty.
    pub sources: Vec<IpAddr>,
    /// Local ports to send from; the kernel's choice when none.
    pub ports: Option<RangeInclusive<u16>>,
    /// Which port of the range is reused first.
    pub port_reuse: PortReuse,
    /// How destinations are chosen.
    pub balancing: Balancing,
    /// Entries of all shards together.
    pub entries_max: usize,
    /// What happens when there are as many.
    pub when_full: WhenFull,
    /// An entry on which nothing passed for this long ends; `None` never.
    pub entry_timeout: Option<Nanos>,
    /// A destination that owes an answer for this long is stale; `None` never.
    pub destination_timeout: Option<Nanos>,
    /// A datagram goes to the port at which it came, at its destination's address: for protocols
    /// whose server names further ports in its answers.
    pub keep_port: bool,
    /// An answer from another destination of the list moves the entry there.
    pub reverse_update: bool,
    /// Drop what does not begin like a DTLS record, in both directions.
    pub dtls_only: bool,
    /// How flows are numbered.
    pub flow_numbers: FlowNumbers,
    /// Where all random decisions come from.
    pub seed: u64,
    /// What happens to datagrams on the way, over time.
    pub scenario: Scenario,
    /// Bytes of datagrams that each shard may hold back for an impairment.
    pub held_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            destinations: Vec::new(),
            sources: Vec::new(),
            ports: None,
            port_reuse: PortReuse::default(),
            balancing: Balancing::default(),
            entries_max: 10_000,
            when_full: WhenFull::default(),
            entry_timeout: Some(30_000_000_000),
            destination_timeout: Some(15_000_000_000),
            keep_port: false,
            reverse_update: false,
            dtls_only: false,
            flow_numbers: FlowNumbers::default(),
            seed: 1,
            scenario: Scenario::default(),
            // Half a second at 1 Gbit/s.
            held_bytes_max: 64 << 20,
        }
    }
}

/// The number of a client's flow: a hash of address, port and endpoint, the same on every machine.
#[must_use]
pub fn flow_number(client: SocketAddr, endpoint: u16) -> u64 {
    let address = match client.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .to_bits();
    let port = u64::from(client.port()) << 16 | u64::from(endpoint);
    mix(mix(mix((address >> 64) as u64) ^ address as u64) ^ port)
}
