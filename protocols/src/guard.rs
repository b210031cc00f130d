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

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_engine::metrics::Counter;
use ringmill_engine::{Nanos, ShardId};
use serde::{Deserialize, Serialize};

/// Source ports that are never answered, and why. A port is here when a service that usually lives
/// there answers datagrams that nobody there asked for, so that an answer of ours could be answered.
///
/// Honest clients that this costs: programs that use one port both ways (ntpd on 123, an IKE or
/// SIP agent on 500 or 5060, a name server with a fixed query port), which have no business with a
/// test service; and, where the range of ephemeral ports was widened below 32,768, or a translating
/// gateway picks any port, the few flows in 64,000 that are given one of the ports above 1,023.
/// Such a flow is seen in [`GuardSnapshot::known_responder`].
pub const KNOWN_RESPONDERS: &[(u16, &str)] = &[
    (0, "not a port: cannot be answered"),
    (7, "echo answers everything (RFC 862)"),
    (11, "active users answers everything (RFC 866)"),
    (13, "daytime answers everything (RFC 867)"),
    (17, "quote of the day answers everything (RFC 865)"),
    (
        19,
        "character generator answers everything, with more (RFC 864)",
    ),
    (37, "time answers everything (RFC 868)"),
    (
        53,
        "DNS: some servers answer errors with errors (CVE-2024-2169)",
    ),
    (
        69,
        "TFTP: some servers answer errors with errors (CVE-2024-2169)",
    ),
    (111, "port mapper: answers a small call with a list"),
    (
        123,
        "NTP: old servers answer errors with errors (CVE-2009-3563)",
    ),
    (
        137,
        "NetBIOS name service: answers a node status query with a list",
    ),
    (138, "NetBIOS datagram service: answers with errors"),
    (161, "SNMP: answers a bulk request with much more"),
    (
        389,
        "connectionless LDAP: answers a small search with much more",
    ),
    (
        427,
        "service location: answers with registered lists (CVE-2023-29552)",
    ),
    (
        500,
        "IKE: answers what it cannot parse with a notification, and repeats itself",
    ),
    (520, "RIPv1: answers a request with the whole table"),
    (623, "IPMI: answers a ping"),
    (1434, "SQL Server browser: answers one byte with a list"),
    (1900, "SSDP: answers one search with many datagrams"),
    (
        3702,
        "WS-Discovery: answers what it cannot parse with much more",
    ),
    (5060, "SIP: answers and repeats"),
    (5353, "multicast DNS: answers unicast queries too"),
    (
        11211,
        "memcached: answers a small request with up to a megabyte",
    ),
];

/// Datagrams per second that one source may have answered, unless the user says otherwise: far
/// more than a person, a probe or a monitoring system sends, and at 1,222 bytes under 100 Mbit/s,
/// so that a forged victim is not flooded from here.
pub const PER_SOURCE_RATE_DEFAULT: u32 = 10_000;

/// A bucket holds a tenth of a second: a loop at `x` times the rate is down to the rate after
/// `0.1 / (x − 1)` seconds, so any loop faster than 1.1 times the rate is within one second.
const BURST_PARTS_PER_SECOND: u64 = 10;
/// But a bucket of a low rate holds what one received buffer usually holds at most (64 coalesced
/// datagrams), or one second's worth when that is less.
const BURST_MIN: u64 = 64;
/// Sources remembered in each shard: 256 KiB, allocated when the first limited source comes.
///
/// A source that sends little is forgotten as soon as its bucket is full again, which takes
/// `1 / rate` seconds per datagram: to keep this table full at the default rate takes 164 million
/// datagrams per second.
pub const SOURCES_MAX: usize = SETS * WAYS;
const SETS: usize = 4096;
/// Four entries of 16 bytes are one cache line.
const WAYS: usize = 4;
const PORT_WORDS: usize = (u16::MAX as usize + 1) / 64;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

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
    fn suspects(&self, port: u16) -> bool {
        self.suspects[usize::from(port) / 64].load(Relaxed) >> (port % 64) & 1 != 0
    }

    fn is_this_host(&self, address: IpAddr, local: Option<IpAddr>) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || local == Some(address) || self.addresses.contains(&address)
    }
}

impl Default for OwnPorts {
    fn default() -> Self {
        Self::new([])
    }
}

macro_rules! guard_counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// What one guard has decided. Written by its shard, readable by anyone.
        #[derive(Debug, Default)]
        pub struct GuardCounters { $($(#[doc = $help])+ pub $name: Counter,)+ }

        /// [`GuardCounters`] at one moment, or the sum of several.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
        pub struct GuardSnapshot { $($(#[doc = $help])+ pub $name: u64,)+ }

        impl GuardCounters {
            /// All values now.
            #[must_use]
            pub fn snapshot(&self) -> GuardSnapshot {
                GuardSnapshot { $($name: self.$name.get(),)+ }
            }
        }

        impl GuardSnapshot {
            /// Name and help of every value, in order. All are counters.
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($name), concat!($($help),+)),)+];

            /// The values in the order of [`Self::FIELDS`].
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)+]
            }

            /// Sums two snapshots.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name.wrapping_add(other.$name),)+ }
            }
        }
    };
}

guard_counters! {
    /// Datagrams not answered because they came from a port of this process on this host.
    own_port,
    /// Datagrams not answered because their source port is that of a known responder.
    known_responder,
    /// Datagrams not answered because their source port is zero.
    zero_port,
    /// Datagrams not answered because their source is no single host: unspecified, broadcast,
    /// multicast or reserved.
    source_address,
    /// Datagrams not answered because they were sent to a broadcast or multicast address.
    group_destination,
    /// Datagrams not answered because their source was over its rate.
    over_rate,
    /// Sources forgotten, before their bucket was full again, to make room for another.
    sources_evicted,
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

/// What counts as one source: an IPv4 address, or the /64 that one IPv6 host may fill as it likes.
#[inline]
fn source_key(address: IpAddr) -> u64 {
    /// Where no IPv6 source can be: ffff:ffff::/32 is multicast.
    const IPV4: u64 = 0xffff_ffff_0000_0000;
    match address.to_canonical() {
        IpAddr::V4(address) => IPV4 | u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// A source and the moment at which its bucket will be full again (the theoretical arrival time of
/// the generic cell rate algorithm, ITU-T I.371). When that moment is past, the entry says nothing
/// that a new one would not, and is free.
#[derive(Debug, Clone, Copy, Default)]
struct Source {
    key: u64,
    full_at: Nanos,
}

type Set = [Source; WAYS];

/// A token bucket for each of a bounded number of sources.
///
/// A source has four possible places. When all are taken, the one whose bucket is nearest to full
/// is forgotten. That source loses nothing: it is given a fresh bucket. Sources that are being
/// limited have the emptiest buckets and are forgotten last, so a flood of forged sources, of which
/// each sends little, neither lifts a limit nor stops anyone from being answered.
#[derive(Debug)]
struct Sources {
    /// Time that one datagram takes from a bucket.
    interval: Nanos,
    /// Time that a full bucket holds.
    capacity: Nanos,
    keys: [u64; 2],
    sets: Vec<Set>,
}

impl Sources {
    fn new(rate: u32, seed: u64) -> Self {
        let rate = u64::from(rate.max(1));
        let interval = (NANOS_PER_SECOND + rate / 2) / rate;
        let burst = (rate / BURST_PARTS_PER_SECOND).max(rate.min(BURST_MIN));
        let mut random = SmallRng::seed_from_u64(seed);
        Self {
            interval: interval.max(1),
            capacity: burst * interval.max(1),
            keys: [random.random(), random.random()],
            sets: Vec::new(),
        }
    }

    /// Takes up to `count` datagrams from a source's bucket. Returns how many it held, and whether
    /// another source was forgotten for it.
    #[inline]
    fn take(&mut self, now: Nanos, key: u64, count: u64) -> (u64, bool) {
        if self.sets.is_empty() {
            self.sets = vec![Set::default(); SETS];
        }
        // Both halves of a 128-bit product with secret factors: enough to keep places secret.
        let product = u128::from(key ^ self.keys[0]) * u128::from(self.keys[1] | 1);
        let place = (product as u64 ^ (product >> 64) as u64) as usize % SETS;
        let set = &mut self.sets[place];
        let (way, evicted) = match set.iter().position(|source| source.key == key) {
            Some(way) => (way, false),
            None => {
                let fullest = (0..WAYS)
                    .min_by_key(|way| set[*way].full_at)
                    .expect("a set has ways");
                let evicted = set[fullest].full_at > now;
                set[fullest] = Source { key, full_at: now };
                (fullest, evicted)
            }
        };
        let source = &mut set[way];
        let full_at = source.full_at.max(now);
        // What the bucket holds, as time. `now` may lag what another turn has seen, never by much.
        let held = (now + self.capacity).saturating_sub(full_at);
        let wanted = count.saturating_mul(self.interval);
        let admitted = if wanted <= held {
            count
        } else {
            held / self.interval
        };
        source.full_at = full_at + admitted * self.interval;
        (admitted, evicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = NANOS_PER_SECOND;
    const START: Nanos = 1_000 * SECOND;

    fn guard(settings: GuardSettings) -> Guard {
        let own = OwnPorts::new([
            "192.0.2.10".parse().unwrap(),
            "2001:db8::10".parse().unwrap(),
        ]);
        own.add(7000);
        Guard::new(settings, Arc::new(own), Arc::default(), 1)
    }

    fn limited(rate: u32) -> Guard {
        guard(GuardSettings {
            per_source_rate: Some(rate),
            limit_loopback: true,
        })
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_answered() {
        type Reason = fn(&GuardSnapshot) -> u64;
        let none: Reason = |_| 0;
        let own: Reason = |c| c.own_port;
        let responder: Reason = |c| c.known_responder;
        let source: Reason = |c| c.source_address;
        let group: Reason = |c| c.group_destination;
        let zero: Reason = |c| c.zero_port;
        let cases: &[(&str, Option<&str>, bool, Reason, &str)] = &[
            (
                "127.0.0.1:40000",
                Some("127.0.0.1"),
                true,
                none,
                "a client on this host",
            ),
            ("[::1]:40000", Some("::1"), true, none, "the same over IPv6"),
            (
                "198.51.100.1:40000",
                Some("192.0.2.10"),
                true,
                none,
                "a client elsewhere",
            ),
            (
                "198.51.100.1:40000",
                None,
                true,
                none,
                "unknown local address",
            ),
            (
                "198.51.100.1:7000",
                Some("192.0.2.10"),
                true,
                none,
                "our port, another host",
            ),
            (
                "[2001:db8:1::1]:7000",
                Some("2001:db8::10"),
                true,
                none,
                "the same over IPv6",
            ),
            (
                "127.0.0.1:7000",
                Some("127.0.0.1"),
                false,
                own,
                "our own port",
            ),
            (
                "127.9.9.9:7000",
                Some("127.0.0.1"),
                false,
                own,
                "any loopback address is this host",
            ),
            ("[::1]:7000", None, false, own, "our own port, IPv6"),
            (
                "192.0.2.10:7000",
                Some("127.0.0.1"),
                false,
                own,
                "an address of this host",
            ),
            (
                "[::ffff:192.0.2.10]:7000",
                None,
                false,
                own,
                "the same, mapped",
            ),
            (
                "[2001:db8::10]:7000",
                None,
                false,
                own,
                "an IPv6 address of this host",
            ),
            (
                "203.0.113.5:7000",
                Some("203.0.113.5"),
                false,
                own,
                "an address that is ours as it was sent to",
            ),
            (
                "127.0.0.1:7001",
                Some("127.0.0.1"),
                true,
                none,
                "a port next to ours",
            ),
            ("198.51.100.1:7", None, false, responder, "echo"),
            ("198.51.100.1:19", None, false, responder, "chargen"),
            ("127.0.0.1:53", None, false, responder, "DNS on this host"),
            ("[2001:db8:1::1]:123", None, false, responder, "NTP"),
            ("198.51.100.1:1900", None, false, responder, "SSDP"),
            ("198.51.100.1:11211", None, false, responder, "memcached"),
            (
                "198.51.100.1:8",
                None,
                true,
                none,
                "a port next to a responder",
            ),
            ("198.51.100.1:65535", None, true, none, "the last port"),
            ("198.51.100.1:0", None, false, zero, "no port"),
            ("0.0.0.0:40000", None, false, source, "unspecified"),
            ("0.1.2.3:40000", None, false, source, "this network"),
            ("[::]:40000", None, false, source, "unspecified, IPv6"),
            ("255.255.255.255:40000", None, false, source, "broadcast"),
            ("224.0.0.1:40000", None, false, source, "multicast"),
            (
                "239.255.255.250:40000",
                None,
                false,
                source,
                "the last multicast block",
            ),
            ("240.0.0.1:40000", None, false, source, "reserved"),
            ("[ff02::1]:40000", None, false, source, "multicast, IPv6"),
            (
                "[::ffff:224.0.0.1]:40000",
                None,
                false,
                source,
                "mapped multicast",
            ),
            (
                "223.255.255.255:40000",
                None,
                true,
                none,
                "the last unicast address",
            ),
            (
                "198.51.100.1:40000",
                Some("224.0.0.251"),
                false,
                group,
                "sent to a group",
            ),
            (
                "198.51.100.1:40000",
                Some("255.255.255.255"),
                false,
                group,
                "sent to everyone",
            ),
            (
                "198.51.100.1:40000",
                Some("ff02::fb"),
                false,
                group,
                "sent to a group, IPv6",
            ),
        ];
        for (peer, local, answered, reason, what) in cases {
            let mut guard = guard(GuardSettings::default());
            let local = local.map(|local| local.parse().unwrap());
            let admitted = guard.admit(START, address(peer), local, 3);
            assert_eq!(
                admitted,
                if *answered { 3 } else { 0 },
                "{what}: {peer} → {local:?}"
            );
            let counted = guard.counters().snapshot();
            let total: u64 = counted.values().iter().sum();
            let want = if *answered { (0, 0) } else { (3, 3) };
            assert_eq!(
                (reason(&counted), total),
                want,
                "{what}: counted by its reason"
            );
        }
    }

    #[test]
    fn every_known_responder_is_refused() {
        for (port, why) in KNOWN_RESPONDERS {
            let mut guard = guard(GuardSettings::default());
            assert_eq!(
                guard.admit(START, SocketAddr::from(([198, 51, 100, 1], *port)), None, 1),
                0,
                "{why}"
            );
        }
        assert!(
            KNOWN_RESPONDERS.is_sorted_by_key(|(port, _)| *port),
            "readable: in order"
        );
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_the_rate() {
        // (rate, what a full bucket holds)
        for (rate, burst) in [
            (1, 1),
            (10, 10),
            (64, 64),
            (100, 64),
            (640, 64),
            (10_000, 1_000),
            (1_000_000, 100_000),
        ] {
            let mut guard = limited(rate);
            let peer = address("198.51.100.1:40000");
            let far_more = 10_000_000;
            assert_eq!(
                guard.admit(START, peer, None, far_more),
                burst,
                "burst at {rate}/s"
            );
            assert_eq!(guard.admit(START, peer, None, 1), 0, "empty at {rate}/s");
            let tick = SECOND / u64::from(rate);
            assert_eq!(
                guard.admit(START + tick - 1, peer, None, 1),
                0,
                "too early at {rate}/s"
            );
            assert_eq!(
                guard.admit(START + tick, peer, None, 1),
                1,
                "one later at {rate}/s"
            );
            assert_eq!(
                guard.admit(START + 100 * SECOND, peer, None, far_more),
                burst,
                "full again at {rate}/s"
            );
        }
    }

    #[test]
    fn a_loop_falls_to_the_rate_within_a_second() {
        let rate = 10_000;
        for speed in [11_000_u64, 20_000, 100_000, 1_000_000] {
            let mut guard = limited(rate);
            let peer = address("198.51.100.1:40000");
            let mut answered_in = [0_u64; 3];
            for n in 0..3 * speed {
                let admitted = guard.admit(START + n * SECOND / speed, peer, None, 1);
                answered_in[(n / speed) as usize] += admitted as u64;
            }
            assert!(answered_in[0] <= 11_000, "{speed}/s: {answered_in:?}");
            for second in &answered_in[1..] {
                assert!(
                    (9_999..=10_001).contains(second),
                    "{speed}/s: {answered_in:?}"
                );
            }
        }
    }

    #[test]
    fn what_counts_as_one_source() {
        let cases = [
            (
                "198.51.100.1:1000",
                "198.51.100.1:2000",
                true,
                "ports of one address",
            ),
            (
                "198.51.100.1:1000",
                "198.51.100.2:1000",
                false,
                "two addresses",
            ),
            (
                "[2001:db8:0:1::1]:1000",
                "[2001:db8:0:1:ffff::2]:1000",
                true,
                "one /64",
            ),
            (
                "[2001:db8:0:1::1]:1000",
                "[2001:db8:0:2::1]:1000",
                false,
                "two /64s",
            ),
            (
                "198.51.100.1:1000",
                "[::ffff:198.51.100.1]:1000",
                true,
                "mapped and not",
            ),
            ("0.0.0.1:1000", "[::1]:1000", false, "families do not mix"),
        ];
        for (first, second, same, what) in cases {
            let keys = [first, second].map(|text| source_key(address(text).ip()));
            assert_eq!(keys[0] == keys[1], same, "{what}");
        }
    }

    #[test]
    fn loopback_is_exempt_unless_asked() {
        for (peer, limit_loopback, exempt) in [
            ("127.0.0.1:40000", false, true),
            ("[::1]:40000", false, true),
            ("127.0.0.1:40000", true, false),
            ("[::1]:40000", true, false),
            ("198.51.100.1:40000", false, false),
        ] {
            let mut guard = guard(GuardSettings {
                per_source_rate: Some(100),
                limit_loopback,
            });
            let admitted = guard.admit(START, address(peer), None, 1_000);
            assert_eq!(
                admitted == 1_000,
                exempt,
                "{peer}, limit loopback: {limit_loopback}"
            );
        }
        let mut unlimited = guard(GuardSettings {
            per_source_rate: None,
            limit_loopback: true,
        });
        assert_eq!(
            unlimited.admit(START, address("198.51.100.1:1000"), None, 1 << 20),
            1 << 20
        );
    }

    #[test]
    fn a_flood_of_forged_sources_lifts_no_limit_and_stops_nobody() {
        let mut guard = limited(10_000);
        let limited_source = address("192.0.2.1:40000");
        let honest = address("192.0.2.2:40000");
        assert_eq!(guard.admit(START, limited_source, None, 5_000), 1_000);
        // A million forged sources within one millisecond: a thousand million per second.
        let mut over = 0;
        for n in 0..1_000_000_u32 {
            let forged = SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 40000));
            let now = START + u64::from(n);
            assert_eq!(
                guard.admit(now, forged, None, 1),
                1,
                "a new source is answered"
            );
            if n % 1_000 == 0 {
                assert_eq!(
                    guard.admit(now, honest, None, 1),
                    1,
                    "the honest source is answered"
                );
                over += guard.admit(now, limited_source, None, 1);
            }
        }
        // One millisecond at 10,000 per second is ten.
        assert!(over <= 10, "the limited source was answered {over} times");
        assert_eq!(
            guard.sources.as_ref().unwrap().sets.len(),
            SETS,
            "memory does not grow"
        );
        assert!(guard.counters().snapshot().sources_evicted > 0);
        // A slow flood evicts nobody: buckets are full again, and entries free, in time.
        let evicted = guard.counters().snapshot().sources_evicted;
        for n in 0..100_000_u32 {
            let forged = SocketAddr::from((std::net::Ipv4Addr::from(0x0b00_0000 + n), 40000));
            let now = START + SECOND + u64::from(n) * 1_000;
            assert_eq!(guard.admit(now, forged, None, 1), 1);
        }
        assert_eq!(
            guard.counters().snapshot().sources_evicted,
            evicted,
            "at a million per second"
        );
    }

    #[test]
    fn guards_add_up_over_shards() {
        let guards = Guards::new(GuardSettings::default(), Arc::default(), 2);
        for shard in 0..2 {
            assert_eq!(
                guards
                    .guard(shard)
                    .admit(START, address("198.51.100.1:19"), None, 4),
                0
            );
        }
        assert_eq!(
            guards.totals(),
            GuardSnapshot {
                known_responder: 8,
                ..GuardSnapshot::default()
            }
        );
        assert_eq!(GuardSnapshot::FIELDS.len(), guards.totals().values().len());
    }
}
