//! Which limit of a host binds first, and at what number of connections, opens per second or bits per
//! second.
//!
//! A small model: every limit is turned into a capacity by one plain rule, and the rule is shown beside
//! it. It predicts what a host refuses or drops, not how fast its CPUs are; that is measured.

use ringmill_engine::host::{Host as Facts, Limit as FileLimit};
use ringmill_engine::topology::SHARDS_MAX;
use ringmill_engine::uring;
use serde::Serialize;

use super::Host;
use super::formula::{ACCEPT_PAUSE_S, Goal, PAGE_BYTES, QUEUED_BYTES, READ_PAUSE_S, TIME_WAIT_S};
use super::nic::Nic;
use super::profile::Role;
use super::setting::NicField;

/// What a connection takes at one end: 3.6 kB in the kernel, 1 kB for a receive that is armed in a ring,
/// and at most 128 bytes of ours (measured with a hundred thousand idle ones).
const CONNECTION_BYTES: u64 = 4800;
/// What a DTLS session takes.
const SESSION_BYTES: u64 = 512;
/// Files of the process beside connections that are files themselves.
const FILES_BESIDE: u64 = 256;
/// Datagrams of which a fragment is missing, at a loss of a tenth of that per fragment.
const INCOMPLETE_SHARE: f64 = 0.01;
/// How long a CPU may leave a card's ring alone.
const RING_PAUSE_S: f64 = 0.001;
/// Bits of a datagram that fills an Ethernet frame.
const PACKET_BITS: f64 = 1500.0 * 8.0;
/// `tcp_tw_reuse`: a port is used again after this long.
const REUSE_S: f64 = 1.0;

/// What a capacity is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Connections at once.
    Connections,
    /// Connections opened per second.
    OpensPerS,
    /// Bits per second.
    BitsPerS,
}

/// One limit as a capacity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// What limits.
    pub name: String,
    /// How far it reaches.
    pub capacity: f64,
    /// In what.
    pub unit: Unit,
    /// How the capacity is found: values and rule.
    pub rule: String,
}

impl Limit {
    /// The capacity for people.
    #[must_use]
    pub fn in_words(&self) -> String {
        use crate::units::{format_bit_rate, format_count};
        match self.unit {
            Unit::Connections => format!("{} connections", format_count(self.capacity as u64)),
            Unit::OpensPerS => format!(
                "{} connections opened per second",
                format_count(self.capacity as u64)
            ),
            Unit::BitsPerS => format_bit_rate(self.capacity),
        }
    }
}

/// How the host is used, as far as limits depend on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Which end it is.
    pub role: Role,
    /// Source addresses of its clients.
    pub sources: u64,
    /// Destinations (address and port) of its clients.
    pub destinations: u64,
    /// Round-trip time of the path in seconds, where it was given.
    pub rtt_s: Option<f64>,
    /// Whether rings hold connections that are no files of the process.
    pub direct_descriptors: bool,
    /// Whether datagrams travel in fragments.
    pub fragments: bool,
}

/// Every limit that could be read.
#[must_use]
pub fn limits(
    host: &Host,
    facts: &Facts,
    nic: Option<&Nic>,
    interface: Option<&str>,
    usage: &Usage,
) -> Vec<Limit> {
    let mut list = List {
        host,
        facts,
        usage,
        limits: Vec::new(),
    };
    if usage.role.is_stream() {
        list.files();
        list.tcp_memory();
    }
    list.memory();
    list.conntrack();
    if usage.role.accepts() {
        list.accepting();
    }
    if usage.role.opens() {
        list.ports();
    }
    if usage.role.is_stream() {
        list.time_wait();
    } else {
        list.datagrams();
    }
    list.card(nic, interface);
    list.limits
}

/// The limit of a unit that is reached first.
#[must_use]
pub fn first(limits: &[Limit], unit: Unit) -> Option<&Limit> {
    let of_unit = limits.iter().filter(|limit| limit.unit == unit);
    of_unit.min_by(|a, b| a.capacity.total_cmp(&b.capacity))
}

/// The limits that are reached before the goal.
pub fn below<'a>(limits: &'a [Limit], goal: &'a Goal) -> impl Iterator<Item = &'a Limit> {
    limits.iter().filter(|limit| {
        let wanted = match limit.unit {
            Unit::Connections => Some(goal.connections as f64),
            Unit::OpensPerS => goal.opens_per_s,
            Unit::BitsPerS => goal.bits_per_s,
        };
        wanted.is_some_and(|wanted| limit.capacity < wanted)
    })
}

struct List<'a> {
    host: &'a Host,
    facts: &'a Facts,
    usage: &'a Usage,
    limits: Vec<Limit>,
}

impl List<'_> {
    fn add(&mut self, name: &str, capacity: f64, unit: Unit, rule: String) {
        self.limits.push(Limit {
            name: name.into(),
            capacity,
            unit,
            rule,
        });
    }

    fn connections(&mut self, name: &str, capacity: u64, rule: String) {
        self.add(name, capacity as f64, Unit::Connections, rule);
    }

    fn sysctl(&self, name: &str) -> Option<u64> {
        self.host.root().sysctl(name).value
    }

    /// The numbers of a sysctl that has several.
    fn sysctls(&self, name: &str) -> Option<Vec<u64>> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let text = self.host.root().text(&file).value?;
        text.split_whitespace()
            .map(|word| word.parse().ok())
            .collect()
    }

    /// Ends of each connection on this host.
    fn ends(&self) -> u64 {
        if self.usage.role == Role::Both { 2 } else { 1 }
    }

    fn files(&mut self) {
        let files = &self.facts.files;
        let process = files.hard.value.map(|hard| match hard {
            FileLimit::At(files) => files,
            FileLimit::Unlimited => self.sysctl("fs.nr_open").unwrap_or(u64::MAX),
        });
        if let Some(process) = process {
            if self.usage.direct_descriptors {
                let each =
                    uring::streams_per_ring(usize::try_from(process).unwrap_or(usize::MAX), true)
                        as u64;
                self.connections(
                    "open files of a process, as rings",
                    each.saturating_mul(SHARDS_MAX as u64),
                    format!(
                        "{each} in each ring at a limit of {process}, and as many rings as it takes"
                    ),
                );
            } else {
                self.connections(
                    "open files of a process",
                    process.saturating_sub(FILES_BESIDE),
                    format!("a limit of {process}, {FILES_BESIDE} for other things; a process for each end"),
                );
            }
        }
        let open = self
            .sysctls("fs.file-nr")
            .and_then(|numbers| numbers.first().copied());
        if let (Some(most), Some(open)) = (self.sysctl("fs.file-max"), open) {
            let ends = self.ends();
            self.connections(
                "fs.file-max",
                most.saturating_sub(open) / ends,
                format!("{most} files of the machine, {open} open now, {ends} for each connection"),
            );
        }
    }

    fn tcp_memory(&mut self) {
        if let Some(&[_, _, most]) = self.sysctls("net.ipv4.tcp_mem").as_deref() {
            let bytes = most.saturating_mul(PAGE_BYTES);
            let each = QUEUED_BYTES / 2 * self.ends();
            self.connections(
                "net.ipv4.tcp_mem",
                bytes / each,
                format!("{most} pages, and {each} bytes under way on each connection; idle ones take none"),
            );
        }
    }

    fn memory(&mut self) {
        let text = self
            .host
            .root()
            .labelled("/proc/meminfo", "MemAvailable:")
            .value;
        let available = text.and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        let group = match self.facts.control_group.memory_bytes.value {
            Some(FileLimit::At(bytes)) => bytes,
            _ => u64::MAX,
        };
        if let Some(kib) = available {
            let bytes = group.min(kib.saturating_mul(1024));
            let each = if self.usage.role.is_stream() {
                CONNECTION_BYTES * self.ends()
            } else {
                SESSION_BYTES
            };
            self.connections(
                "memory",
                bytes / each,
                format!(
                    "{} free, {each} bytes for each idle one",
                    crate::units::format_bytes(bytes)
                ),
            );
        }
    }

    fn conntrack(&mut self) {
        let network = &self.facts.network;
        if let (Some(most), Some(count)) =
            (network.conntrack_max.value, network.conntrack_count.value)
            // The module alone tracks nothing; where a rule does, whoever is logged in is an entry.
            && count > 0
        {
            self.connections(
                "net.netfilter.nf_conntrack_max",
                most.saturating_sub(count),
                format!("{most} entries, {count} used"),
            );
        }
    }

    fn accepting(&mut self) {
        let network = &self.facts.network;
        let queues = [
            ("net.core.somaxconn", network.somaxconn.value),
            ("net.ipv4.tcp_max_syn_backlog", network.syn_backlog.value),
        ];
        let pause_ms = ACCEPT_PAUSE_S * 1000.0;
        for (name, value) in queues {
            if let Some(value) = value {
                self.add(
                    name,
                    value as f64 / ACCEPT_PAUSE_S,
                    Unit::OpensPerS,
                    format!("{value} wait on each socket while nobody accepts for {pause_ms} ms"),
                );
            }
        }
    }

    fn ports(&mut self) {
        let Some(range) = self.facts.network.local_ports.value.clone() else {
            return;
        };
        let Usage {
            sources,
            destinations,
            ..
        } = *self.usage;
        let usable = u64::from(range.usable);
        let all = usable.saturating_mul(sources).saturating_mul(destinations);
        self.connections(
            "net.ipv4.ip_local_port_range",
            all,
            format!("{usable} ports × {sources} source addresses × {destinations} destinations"),
        );
        let (hold_s, how) = match self.sysctl("net.ipv4.tcp_tw_reuse") {
            Some(1) => (REUSE_S, "1 s (tcp_tw_reuse)"),
            _ => (TIME_WAIT_S, "60 s"),
        };
        self.add(
            "ports in TIME_WAIT",
            all as f64 / hold_s,
            Unit::OpensPerS,
            format!("{all} of them, each held for {how} after this end closed"),
        );
    }

    fn time_wait(&mut self) {
        if let Some(most) = self.sysctl("net.ipv4.tcp_max_tw_buckets") {
            self.add(
                "net.ipv4.tcp_max_tw_buckets",
                most as f64 / TIME_WAIT_S,
                Unit::OpensPerS,
                format!("{most} closed by this end stay for 60 s; those past it are cut short"),
            );
        }
        let window = self
            .sysctls("net.ipv4.tcp_rmem")
            .and_then(|numbers| numbers.last().copied());
        if let (Some(most), Some(rtt_s)) = (window, self.usage.rtt_s) {
            // Half of the buffer is the kernel's overhead (tcp_adv_win_scale).
            self.add(
                "net.ipv4.tcp_rmem, one connection",
                most as f64 / 2.0 * 8.0 / rtt_s,
                Unit::BitsPerS,
                format!(
                    "a window of {} in {} ms",
                    crate::units::format_bytes(most / 2),
                    rtt_s * 1000.0
                ),
            );
        }
    }

    fn datagrams(&mut self) {
        if let Some(most) = self.facts.socket_buffers.rmem_max_bytes.value {
            self.add(
                "net.core.rmem_max, one socket",
                most as f64 * 8.0 / READ_PAUSE_S,
                Unit::BitsPerS,
                format!(
                    "{} hold what comes while the reader is away for {} ms",
                    crate::units::format_bytes(most),
                    READ_PAUSE_S * 1000.0
                ),
            );
        }
        if !self.usage.fragments {
            return;
        }
        for (bytes, time) in [
            ("net.ipv4.ipfrag_high_thresh", "net.ipv4.ipfrag_time"),
            ("net.ipv6.ip6frag_high_thresh", "net.ipv6.ip6frag_time"),
        ] {
            if let (Some(most), Some(seconds)) = (self.sysctl(bytes), self.sysctl(time)) {
                self.add(
                    bytes,
                    most as f64 * 8.0 / (seconds.max(1) as f64 * INCOMPLETE_SHARE),
                    Unit::BitsPerS,
                    format!(
                        "{} for datagrams that stay incomplete for {seconds} s, when 1 % of them do",
                        crate::units::format_bytes(most)
                    ),
                );
            }
        }
    }

    fn card(&mut self, nic: Option<&Nic>, interface: Option<&str>) {
        let ring = nic.and_then(|nic| nic.value(&NicField::RxRing)?.parse::<u64>().ok());
        if let Some(ring) = ring {
            self.add(
                "receive ring of the card, one queue",
                ring as f64 * PACKET_BITS / RING_PAUSE_S,
                Unit::BitsPerS,
                format!(
                    "{ring} packets of 1500 bytes while the CPU is away for {} ms",
                    RING_PAUSE_S * 1000.0
                ),
            );
        }
        let Some(interface) = interface else {
            return;
        };
        // -1 where nobody knows, which does not parse as unsigned.
        let file = format!("/sys/class/net/{interface}/speed");
        if let Some(mbits) = self.host.root().value::<u64>(&file).value {
            self.add(
                "speed of the link",
                mbits as f64 * 1e6,
                Unit::BitsPerS,
                format!("{mbits} Mbit/s"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::FakeHost;

    fn usage(role: Role) -> Usage {
        Usage {
            role,
            sources: 1,
            destinations: 1,
            rtt_s: None,
            direct_descriptors: false,
            fragments: false,
        }
    }

    fn of(fake: &FakeHost, usage: &Usage) -> Vec<Limit> {
        let host = fake.host();
        let nic = host.nic("eth0").unwrap();
        limits(&host, &host.facts(), Some(&nic), Some("eth0"), usage)
    }

    #[test]
    fn each_limit_is_a_capacity_by_its_rule() {
        let fake = FakeHost::large();
        let client = of(
            &fake,
            &Usage {
                sources: 3,
                destinations: 2,
                ..usage(Role::Client)
            },
        );
        let server = of(&fake, &usage(Role::Server));
        let both = of(
            &fake,
            &Usage {
                direct_descriptors: true,
                ..usage(Role::Both)
            },
        );
        let datagrams = of(
            &fake,
            &Usage {
                fragments: true,
                ..usage(Role::Datagrams)
            },
        );
        for (limits, name, capacity) in [
            (&client, "net.ipv4.ip_local_port_range", 28_232.0 * 6.0),
            (&client, "ports in TIME_WAIT", 28_232.0 / 10.0),
            (&client, "open files of a process", 19_744.0),
            (&server, "fs.file-max", 99_000.0),
            (&both, "fs.file-max", 49_500.0),
            (&server, "net.core.somaxconn", 40_960.0),
            (&server, "net.netfilter.nf_conntrack_max", 65_526.0),
            (&server, "net.ipv4.tcp_mem", 190_000.0),
            (&both, "net.ipv4.tcp_mem", 95_000.0),
            (&server, "memory", (15_728_640_u64 * 1024 / 4800) as f64),
            (
                &datagrams,
                "net.core.rmem_max, one socket",
                212_992.0 * 800.0,
            ),
            (&datagrams, "receive ring of the card, one queue", 3.072e9),
            (&datagrams, "speed of the link", 1e10),
        ] {
            let found = limits.iter().find(|limit| limit.name == name);
            let found = found.unwrap_or_else(|| panic!("no {name} in {limits:#?}"));
            assert!(
                (found.capacity - capacity).abs() <= capacity * 1e-9,
                "{name}: {}",
                found.capacity
            );
        }
    }

    /// The two values that the reference gives for fragments, and why: 4 MiB for 30 s hold what comes at
    /// 112 Mbit/s, 100 MiB for 3 s what comes at 28 Gbit/s.
    #[test]
    fn fragments_bind_until_their_memory_is_raised() {
        let fake = FakeHost::large();
        let usage = Usage {
            fragments: true,
            ..usage(Role::Datagrams)
        };
        let first_of = |fake: &FakeHost| {
            let limits = of(fake, &usage);
            first(&limits, Unit::BitsPerS).unwrap().clone()
        };
        let before = first_of(&fake);
        assert_eq!(before.name, "net.ipv6.ip6frag_high_thresh");
        assert!(before.capacity < 60e6, "{before:?}");
        for family in ["net/ipv4/ipfrag", "net/ipv6/ip6frag"] {
            fake.set(&format!("proc/sys/{family}_high_thresh"), "104857600");
            fake.set(&format!("proc/sys/{family}_time"), "3");
        }
        assert_eq!(first_of(&fake).name, "net.core.rmem_max, one socket");
    }

    #[test]
    fn the_lowest_capacity_binds_first() {
        let fake = FakeHost::large();
        let limits = of(&fake, &usage(Role::Server));
        assert_eq!(
            first(&limits, Unit::Connections).unwrap().name,
            "open files of a process"
        );
        let goal = |connections| Goal {
            connections,
            bits_per_s: None,
            opens_per_s: None,
            memory_bytes: 0,
        };
        assert_eq!(below(&limits, &goal(10_000)).count(), 0);
        let names: Vec<_> = limits.iter().map(|limit| limit.name.as_str()).collect();
        assert_eq!(below(&limits, &goal(66_000)).count(), 2, "{names:?}");
    }

    #[test]
    fn a_host_that_shows_nothing_has_no_limits() {
        let fake = FakeHost::with_cpus(1);
        let host = fake.host();
        for role in [Role::Server, Role::Client, Role::Both, Role::Datagrams] {
            assert_eq!(limits(&host, &host.facts(), None, None, &usage(role)), []);
        }
    }
}
