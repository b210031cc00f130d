//! What of a host limits ringmill, and what to type about it.
//!
//! A pure function of [`Host`]: it reads nothing, so every piece of advice has a test that needs no
//! such host. A finding is only advice if somebody can act on it or must know it.

use serde::Serialize;

use super::kernel::KernelVersion;
use super::privileges::Container;
use super::read::Limit;
use super::rings::{Blocked, RingAccess};
use super::{Host, Privileges};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know; matters for extreme loads only.
    Note,
    /// Costs rate, latency or connections under ordinary load.
    Warning,
    /// Something does not work at all, or ringmill takes its second-best way.
    Serious,
}

/// What a finding is about; stable words for programs that read the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Version of the kernel.
    Kernel,
    /// io_uring.
    Rings,
    /// Open files of the process.
    Files,
    /// Memory that may be locked.
    LockedMemory,
    /// Memory that the control group allows.
    MemoryLimit,
    /// Segmentation of UDP sends.
    Gso,
    /// Segmentation of UDP receives.
    Gro,
    /// Ceiling of receive buffers.
    ReceiveBuffer,
    /// Ceiling of send buffers.
    SendBuffer,
    /// Ports of outgoing connections.
    Ports,
    /// Queue of connections that wait for accept.
    AcceptQueue,
    /// Queue of half-open connections.
    SynQueue,
    /// Connection tracking.
    Conntrack,
    /// CPU time that the control group allows.
    CpuQuota,
    /// CPU time that the hypervisor takes.
    StolenTime,
    /// Frequency governor.
    Governor,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about.
    pub topic: Topic,
    /// What was found.
    pub finding: String,
    /// What that means for ringmill.
    pub consequence: String,
    /// What to type, one command or setting a line; empty where nothing on this host helps.
    pub remedy: String,
}

/// Fewer open files than this get in the way of an ordinary load test.
const FILES_WANTED: u64 = 65_536;
/// Fewer than this get in the way of an ordinary server.
const FILES_NEEDED: u64 = 4_096;
/// What a lifted file limit is set to: 2^20, the default of fs.nr_open.
const FILES_ADVISED: u64 = 1_048_576;
/// Before Linux 5.12 a ring's memory counts as locked memory; a ring with a large completion queue
/// takes about 1 MiB of it.
const MEMLOCK_WANTED_BYTES: u64 = 8 << 20;
/// At 10 Gbit/s one millisecond of datagrams is 1.25 MB; a shard may be away for a few of those.
const SOCKET_BUFFER_WANTED_BYTES: u64 = 4 << 20;
/// Recommended for datagrams above about 1 Gbit/s by the handbook of OB-UDPST.
const SOCKET_BUFFER_ADVISED_BYTES: u64 = 16 << 20;
/// The kernel's own default range has 28,232 ports: below that somebody narrowed it.
const PORTS_WANTED: u32 = 28_232;
/// Connections that arrive while a shard serves others: the kernel's default since 5.4.
const LISTEN_QUEUE_WANTED: u64 = 4_096;
/// Half-open connections; counts only where SYN cookies are off, so the kernel's own choice for a
/// machine of a few GiB is good enough.
const SYN_QUEUE_WANTED: u64 = 1_024;
/// Recommended for servers under very many connects.
const LISTEN_QUEUE_ADVISED: u64 = 8_192;
/// Tracked connections that leave room for a test with 100,000 of them at both ends.
const CONNTRACK_WANTED: u64 = 262_144;
/// Recommended for load tests with connection tracking on.
const CONNTRACK_ADVISED: u64 = 1_000_000;
/// Stolen time beyond which figures of a load test say more about the neighbours.
const STEAL_TOLERATED_PERCENT: f64 = 1.0;
/// Less memory than this does not hold the buffers of a few shards and their connections.
const MEMORY_WANTED_BYTES: u64 = 256 << 20;

/// What limits ringmill on this host, the most serious first.
pub fn advice(host: &Host) -> Vec<Advice> {
    let mut list = Vec::new();
    let mut add = |severity, topic, finding: String, consequence: &str, remedy: String| {
        list.push(Advice {
            severity,
            topic,
            finding,
            consequence: consequence.to_owned(),
            remedy,
        });
    };

    if let RingAccess::Refused { error, by, .. } = &host.rings.access {
        add(
            Severity::Serious,
            Topic::Rings,
            format!("io_uring is refused by {}: {error}", name_of(*by)),
            "the epoll driver serves instead: the same results, more system calls per message",
            ring_remedy(*by, host),
        );
    } else if let Some(kernel) = &host.machine.kernel.value {
        add_kernel(kernel, &mut add);
    }

    if let Some(soft) = host.files.soft.value
        && soft.is_below(FILES_WANTED)
    {
        let severity = if soft.is_below(FILES_NEEDED) {
            Severity::Warning
        } else {
            Severity::Note
        };
        let remedy = match host.files.hard.value {
            Some(hard) if hard > soft => format!("ulimit -n {hard}"),
            _ => format!(
                "LimitNOFILE={FILES_ADVISED} in the systemd unit, --ulimit nofile={FILES_ADVISED} for \
                 docker or podman,\nor '* - nofile {FILES_ADVISED}' in /etc/security/limits.conf and a new login"
            ),
        };
        add(
            severity,
            Topic::Files,
            format!("a process may have {soft} files open"),
            "bounds the connections of the epoll driver, and those of each single ring: more \
             connections take more rings",
            remedy,
        );
    }

    let kernel_charges_memlock = host
        .machine
        .kernel
        .value
        .as_ref()
        .is_some_and(|kernel| !kernel.at_least(5, 12));
    if let Some(memlock_bytes) = host.files.memlock_bytes.value
        && memlock_bytes.is_below(MEMLOCK_WANTED_BYTES)
        && kernel_charges_memlock
        && !host.privileges.has("IPC_LOCK")
    {
        add(
            Severity::Warning,
            Topic::LockedMemory,
            format!(
                "only {memlock_bytes} bytes may be locked, and this kernel counts rings as such"
            ),
            "rings are made smaller, or refused when several are needed",
            format!(
                "ulimit -l {}, or LimitMEMLOCK=infinity in the systemd unit",
                64 << 10
            ),
        );
    }

    if let Some(reason) = &host.datagrams.gso_segments_max.reason {
        add(
            Severity::Warning,
            Topic::Gso,
            reason.clone(),
            "each UDP datagram takes its own way through the kernel: about a third of the rate",
            "a kernel from 4.18 on, without a filter on this socket option".to_owned(),
        );
    } else if let Some(reason) = &host.datagrams.gro_segments.reason {
        add(
            Severity::Warning,
            Topic::Gro,
            reason.clone(),
            "UDP datagrams are received one by one: a fraction of the rate",
            "a kernel from 5.0 on, without a filter on this socket option".to_owned(),
        );
    }

    for (topic, name, value) in [
        (
            Topic::ReceiveBuffer,
            "net.core.rmem_max",
            &host.socket_buffers.rmem_max_bytes,
        ),
        (
            Topic::SendBuffer,
            "net.core.wmem_max",
            &host.socket_buffers.wmem_max_bytes,
        ),
    ] {
        if let Some(bytes) = value.value
            && bytes < SOCKET_BUFFER_WANTED_BYTES
        {
            add(
                Severity::Note,
                topic,
                format!("{name} is {bytes} bytes"),
                "bursts of datagrams above about 1 Gbit/s overflow the socket before a shard comes round",
                format!("sysctl -w {name}={SOCKET_BUFFER_ADVISED_BYTES}"),
            );
        }
    }

    if let Some(ports) = &host.network.local_ports.value
        && ports.usable < PORTS_WANTED
    {
        add(
            Severity::Note,
            Topic::Ports,
            format!("{} ports for outgoing connections ({}-{})", ports.usable, ports.first, ports.last),
            "a load client has no more connections than that from one source address to one endpoint",
            "sysctl -w net.ipv4.ip_local_port_range='1024 65535', or more source addresses with --sources"
                .to_owned(),
        );
    }

    for (topic, name, value, wanted) in [
        (
            Topic::AcceptQueue,
            "net.core.somaxconn",
            &host.network.somaxconn,
            LISTEN_QUEUE_WANTED,
        ),
        (
            Topic::SynQueue,
            "net.ipv4.tcp_max_syn_backlog",
            &host.network.syn_backlog,
            SYN_QUEUE_WANTED,
        ),
    ] {
        if let Some(length) = value.value
            && length < wanted
        {
            add(
                Severity::Note,
                topic,
                format!("{name} is {length}"),
                "when thousands connect at once, some of them are refused or wait for a second try",
                format!("sysctl -w {name}={LISTEN_QUEUE_ADVISED}"),
            );
        }
    }

    if let Some(max) = host.network.conntrack_max.value {
        let count = host.network.conntrack_count.value.unwrap_or(0);
        // The last fifth fills in an instant under load.
        let nearly_full = count >= max - max / 5;
        if max < CONNTRACK_WANTED || nearly_full {
            add(
                if nearly_full {
                    Severity::Warning
                } else {
                    Severity::Note
                },
                Topic::Conntrack,
                format!("the firewall tracks {count} of at most {max} connections"),
                "beyond that new connections are dropped without a word; tracking costs rate in any case",
                format!(
                    "sysctl -w net.netfilter.nf_conntrack_max={CONNTRACK_ADVISED}, or NOTRACK rules for ringmill's ports"
                ),
            );
        }
    }

    if let (Some(Limit::At(milli)), Some(cpus)) = (
        host.control_group.cpu_milli.value,
        host.machine.cpus_allowed.value,
    ) && milli < u64::from(cpus) * 1000
    {
        let whole = (milli / 1000).max(1);
        add(
            Severity::Warning,
            Topic::CpuQuota,
            format!(
                "{cpus} CPUs are visible but the control group's quota is {}.{:03} of them",
                milli / 1000,
                milli % 1000
            ),
            "shards are stopped for the rest of each period once the quota is used up: high tail latency",
            if host.privileges.container == Some(Container::Kubernetes) {
                "equal whole numbers for requests.cpu and limits.cpu, and the node's static CPU manager policy"
                    .to_owned()
            } else {
                format!(
                    "--shards {whole}, or a set of CPUs in place of the quota (--cpuset-cpus, AllowedCPUs=)"
                )
            },
        );
    }
    if let Some(percent) = host.machine.steal_percent.value
        && percent > STEAL_TOLERATED_PERCENT
    {
        add(
            Severity::Warning,
            Topic::StolenTime,
            format!("the hypervisor gave {percent:.1} % of the CPU time since boot to others"),
            "rates and latencies measured here vary with the neighbours' load",
            String::new(),
        );
    }
    if let Some(governors) = &host.machine.governors.value
        && governors
            .iter()
            .any(|name| name == "powersave" || name == "conservative")
    {
        add(
            Severity::Note,
            Topic::Governor,
            format!("frequency governor {}", governors.join(", ")),
            "CPUs may clock up late: latency at low load is higher and varies",
            "cpupower frequency-set -g performance".to_owned(),
        );
    }
    if let Some(Limit::At(bytes)) = host.control_group.memory_bytes.value
        && bytes < MEMORY_WANTED_BYTES
    {
        add(
            Severity::Warning,
            Topic::MemoryLimit,
            format!("the control group allows {} MiB of memory", bytes >> 20),
            "buffers of many shards or many connections end in an out-of-memory kill; the kernel's \
             share of a connection counts too",
            "raise the memory limit, or lower --shards and --max-connections".to_owned(),
        );
    }

    list.sort_by_key(|advice| std::cmp::Reverse(advice.severity));
    list
}

/// Kernels on which rings work, but without what makes them fast.
fn add_kernel(kernel: &KernelVersion, add: &mut impl FnMut(Severity, Topic, String, &str, String)) {
    // Multishot accept 5.19, multishot receive 6.0, DEFER_TASKRUN 6.1.
    if !kernel.at_least(6, 1) {
        add(
            Severity::Warning,
            Topic::Kernel,
            format!(
                "Linux {kernel} has no DEFER_TASKRUN (6.1), and before 6.0 no multishot receive"
            ),
            "rings work but are no faster than epoll",
            "a kernel from 6.1 on, as Debian 12 has".to_owned(),
        );
    }
}

fn name_of(by: Blocked) -> &'static str {
    match by {
        Blocked::Sysctl => "the kernel setting kernel.io_uring_disabled",
        Blocked::Seccomp => "a seccomp filter",
        Blocked::SecurityModule => "a security module",
        Blocked::Kernel => "the kernel, which does not have it",
        Blocked::Memory => "want of memory",
        Blocked::Files => "want of file descriptors",
        Blocked::Unexplained => "the kernel",
    }
}

fn ring_remedy(by: Blocked, host: &Host) -> String {
    match by {
        Blocked::Sysctl => match host.rings.group.value {
            Some(group) if group >= 0 && host.rings.disabled.value == Some(1) => {
                format!("run ringmill in group {group}, or: sysctl -w kernel.io_uring_disabled=0")
            }
            _ => "sysctl -w kernel.io_uring_disabled=0".to_owned(),
        },
        Blocked::Seccomp => seccomp_remedy(&host.privileges),
        Blocked::SecurityModule => {
            "ausearch -m avc -ts recent shows the denial; allow the class io_uring to ringmill's domain"
                .to_owned()
        }
        Blocked::Kernel => "a kernel from 6.1 on with CONFIG_IO_URING".to_owned(),
        Blocked::Memory => {
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit".to_owned()
        }
        Blocked::Files => "ulimit -n, see the advice about open files".to_owned(),
        Blocked::Unexplained => String::new(),
    }
}

fn seccomp_remedy(privileges: &Privileges) -> String {
    match privileges.container {
        Some(Container::Kubernetes) => {
            "securityContext.seccompProfile: {type: Localhost, localhostProfile: seccomp-ringmill.json} \
             (docs/operations.md)"
                .to_owned()
        }
        Some(Container::Podman) => {
            "podman run --security-opt seccomp=deploy/seccomp-ringmill.json …".to_owned()
        }
        Some(Container::Docker) => {
            "docker run --security-opt seccomp=deploy/seccomp-ringmill.json …".to_owned()
        }
        Some(Container::Other) | None => {
            "SystemCallFilter=io_uring_setup io_uring_enter io_uring_register, as one more line of the \
             systemd unit (deploy/ringmill.service)"
                .to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::FakeHost;
    use crate::host::{Datagrams, PortRange, Reading};

    /// A host with nothing to complain about.
    fn good() -> Host {
        let folder = FakeHost::new()
            .file("/proc/sys/kernel/osrelease", "6.12.0")
            .file(
                "/proc/self/status",
                "Seccomp:\t0\nCapEff:\t0\nCpus_allowed_list:\t0-3\n",
            )
            .file(
                "/proc/self/limits",
                "Max open files 1048576 1048576 files\nMax locked memory 8388608 8388608 bytes\n",
            )
            .file("/proc/sys/net/core/rmem_max", "16777216")
            .file("/proc/sys/net/core/wmem_max", "16777216")
            .file("/proc/sys/net/core/somaxconn", "8192")
            .file("/proc/sys/net/ipv4/tcp_max_syn_backlog", "8192")
            .file("/proc/sys/net/ipv4/ip_local_port_range", "32768 60999");
        let mut host = Host::read_below(&folder.root());
        host.rings.access = RingAccess::Allowed;
        host.datagrams = Datagrams {
            gso_segments_max: Reading::known(128),
            gro_segments: Reading::known(128),
        };
        host
    }

    fn refused(by: Blocked) -> RingAccess {
        RingAccess::Refused {
            errno: 1,
            error: "Operation not permitted".to_owned(),
            by,
        }
    }

    #[test]
    fn a_good_host_needs_no_advice() {
        assert_eq!(advice(&good()), vec![]);
    }

    #[test]
    fn each_limit_has_its_finding_and_its_remedy() {
        type Change = fn(&mut Host);
        let cases: [(&str, Change, Severity, Topic, &str); 19] = [
            (
                "seccomp in Docker",
                |h| {
                    h.rings.access = refused(Blocked::Seccomp);
                    h.privileges.container = Some(Container::Docker);
                },
                Severity::Serious,
                Topic::Rings,
                "docker run --security-opt seccomp=",
            ),
            (
                "seccomp in Podman",
                |h| {
                    h.rings.access = refused(Blocked::Seccomp);
                    h.privileges.container = Some(Container::Podman);
                },
                Severity::Serious,
                Topic::Rings,
                "podman run",
            ),
            (
                "seccomp in a pod",
                |h| {
                    h.rings.access = refused(Blocked::Seccomp);
                    h.privileges.container = Some(Container::Kubernetes);
                },
                Severity::Serious,
                Topic::Rings,
                "Localhost",
            ),
            (
                "seccomp by systemd",
                |h| h.rings.access = refused(Blocked::Seccomp),
                Severity::Serious,
                Topic::Rings,
                "SystemCallFilter",
            ),
            (
                "sysctl",
                |h| h.rings.access = refused(Blocked::Sysctl),
                Severity::Serious,
                Topic::Rings,
                "io_uring_disabled=0",
            ),
            (
                "sysctl for all but one group",
                |h| {
                    h.rings.access = refused(Blocked::Sysctl);
                    h.rings.disabled = Reading::known(1);
                    h.rings.group = Reading::known(997);
                },
                Severity::Serious,
                Topic::Rings,
                "group 997",
            ),
            (
                "SELinux",
                |h| h.rings.access = refused(Blocked::SecurityModule),
                Severity::Serious,
                Topic::Rings,
                "ausearch",
            ),
            (
                "old kernel",
                |h| h.machine.kernel = Reading::known("5.15.0".parse().unwrap()),
                Severity::Warning,
                Topic::Kernel,
                "6.1",
            ),
            (
                "few files, more may be had",
                |h| h.files.soft = Reading::known(Limit::At(1024)),
                Severity::Warning,
                Topic::Files,
                "ulimit -n 1048576",
            ),
            (
                "not many files, and no more to be had",
                |h| {
                    h.files.soft = Reading::known(Limit::At(20_000));
                    h.files.hard = Reading::known(Limit::At(20_000));
                },
                Severity::Note,
                Topic::Files,
                "LimitNOFILE=1048576",
            ),
            (
                "no GSO",
                |h| h.datagrams.gso_segments_max = Reading::unknown("UDP_SEGMENT is refused"),
                Severity::Warning,
                Topic::Gso,
                "4.18",
            ),
            (
                "no GRO",
                |h| h.datagrams.gro_segments = Reading::unknown("UDP_GRO is refused"),
                Severity::Warning,
                Topic::Gro,
                "5.0",
            ),
            (
                "small receive buffers",
                |h| h.socket_buffers.rmem_max_bytes = Reading::known(212_992),
                Severity::Note,
                Topic::ReceiveBuffer,
                "sysctl -w net.core.rmem_max=16777216",
            ),
            (
                "few ports",
                |h| {
                    h.network.local_ports = Reading::known(PortRange {
                        first: 50_000,
                        last: 50_999,
                        usable: 1000,
                    });
                },
                Severity::Note,
                Topic::Ports,
                "--sources",
            ),
            (
                "short listen queue",
                |h| h.network.somaxconn = Reading::known(128),
                Severity::Note,
                Topic::AcceptQueue,
                "somaxconn=8192",
            ),
            (
                "conntrack nearly full",
                |h| {
                    h.network.conntrack_max = Reading::known(1_000_000);
                    h.network.conntrack_count = Reading::known(900_000);
                },
                Severity::Warning,
                Topic::Conntrack,
                "nf_conntrack_max=",
            ),
            (
                "CPU quota",
                |h| h.control_group.cpu_milli = Reading::known(Limit::At(2500)),
                Severity::Warning,
                Topic::CpuQuota,
                "--shards 2",
            ),
            (
                "governor",
                |h| h.machine.governors = Reading::known(vec!["powersave".to_owned()]),
                Severity::Note,
                Topic::Governor,
                "cpupower",
            ),
            (
                "little memory",
                |h| h.control_group.memory_bytes = Reading::known(Limit::At(64 << 20)),
                Severity::Warning,
                Topic::MemoryLimit,
                "memory limit",
            ),
        ];
        for (name, change, severity, topic, remedy) in cases {
            let mut host = good();
            change(&mut host);
            let list = advice(&host);
            assert_eq!(list.len(), 1, "{name}: {list:?}");
            assert_eq!(
                (list[0].severity, list[0].topic),
                (severity, topic),
                "{name}"
            );
            assert!(
                list[0].remedy.contains(remedy),
                "{name}: {}",
                list[0].remedy
            );
            assert!(!list[0].finding.is_empty() && !list[0].consequence.is_empty());
        }
    }

    #[test]
    fn memlock_matters_to_old_kernels_only() {
        for (release, capability, expected) in [
            ("5.10.0", false, 1),
            ("5.10.0", true, 0),
            ("6.12.0", false, 0),
        ] {
            let mut host = good();
            host.machine.kernel = Reading::known(release.parse().unwrap());
            host.files.memlock_bytes = Reading::known(Limit::At(65_536));
            if capability {
                host.privileges.capabilities = Reading::known(vec!["IPC_LOCK".to_owned()]);
            }
            let about_memory = advice(&host)
                .iter()
                .filter(|advice| advice.topic == Topic::LockedMemory)
                .count();
            assert_eq!(about_memory, expected, "{release} {capability}");
        }
    }

    #[test]
    fn the_most_serious_comes_first() {
        let mut host = good();
        host.network.somaxconn = Reading::known(128);
        host.files.soft = Reading::known(Limit::At(1024));
        host.rings.access = refused(Blocked::Seccomp);
        let severities: Vec<_> = advice(&host).iter().map(|a| a.severity).collect();
        assert_eq!(
            severities,
            [Severity::Serious, Severity::Warning, Severity::Note]
        );
    }
}
