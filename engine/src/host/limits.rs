//! Limits that bound connections and datagrams: open files, locked memory, socket buffers, ports,
//! listen queues, connection tracking.

use serde::Serialize;
use socket2::{Domain, SockRef, Socket, Type};

use crate::sys::socket::ask_receive_buffer;

use super::read::{Limit, Reading, Root, parse_ranges, ranges_len};

/// Limits on files and memory of this process and this kernel.
#[derive(Debug, Clone, Serialize)]
pub struct FileLimits {
    /// Open files that the process may have now; also the size of a ring's descriptor table.
    pub soft: Reading<Limit>,
    /// Open files to which an unprivileged process may raise itself.
    pub hard: Reading<Limit>,
    /// Open files to which a privileged process may raise itself (`fs.nr_open`).
    pub nr_open: Reading<u64>,
    /// Open files of the whole machine (`fs.file-max`).
    pub file_max: Reading<u64>,
    /// Memory that the process may lock, in bytes; rings of old kernels count against it.
    pub memlock_bytes: Reading<Limit>,
}

impl FileLimits {
    pub(super) fn read(root: &Root) -> Self {
        let (soft, hard) = process_limit(root, "Max open files");
        let (memlock_bytes, _) = process_limit(root, "Max locked memory");
        Self {
            soft,
            hard,
            nr_open: root.sysctl("fs.nr_open"),
            file_max: root.sysctl("fs.file-max"),
            memlock_bytes,
        }
    }
}

/// Soft and hard limit from a line of /proc/self/limits.
fn process_limit(root: &Root, name: &str) -> (Reading<Limit>, Reading<Limit>) {
    let line = root.labelled("/proc/self/limits", name);
    let column = |index: usize| {
        line.clone().and_then(|line| {
            line.split_whitespace()
                .nth(index)
                .and_then(|text| text.parse().ok())
                .map_or_else(
                    || Reading::unknown(format!("/proc/self/limits has no number for '{name}'")),
                    Reading::known,
                )
        })
    };
    (column(0), column(1))
}

/// Buffer that the probe asks for: what a datagram receiver at several Gbit/s wants.
pub const SOCKET_BUFFER_ASKED_BYTES: u64 = 16 << 20;

/// Socket buffers: the kernel's ceilings and what a socket is really granted.
#[derive(Debug, Clone, Serialize)]
pub struct SocketBuffers {
    /// Ceiling of a receive buffer in bytes (`net.core.rmem_max`).
    pub rmem_max_bytes: Reading<u64>,
    /// Ceiling of a send buffer in bytes (`net.core.wmem_max`).
    pub wmem_max_bytes: Reading<u64>,
    /// What the probe asked for, in bytes.
    pub asked_bytes: u64,
    /// Receive buffer granted, in bytes. The kernel doubles what it accepts, to cover its own
    /// bookkeeping; this is its figure.
    pub receive_granted_bytes: Reading<u64>,
    /// Send buffer granted, in bytes, doubled likewise.
    pub send_granted_bytes: Reading<u64>,
}

impl SocketBuffers {
    pub(super) fn read(root: &Root) -> Self {
        let granted = |what: fn(&Socket) -> std::io::Result<usize>| {
            Socket::new(Domain::IPV4, Type::DGRAM, None)
                .or_else(|_| Socket::new(Domain::IPV6, Type::DGRAM, None))
                .and_then(|socket| what(&socket))
                .map_or_else(
                    |error| Reading::unknown(format!("no UDP socket to ask: {error}")),
                    |bytes| Reading::known(bytes as u64),
                )
        };
        Self {
            rmem_max_bytes: root.sysctl("net.core.rmem_max"),
            wmem_max_bytes: root.sysctl("net.core.wmem_max"),
            asked_bytes: SOCKET_BUFFER_ASKED_BYTES,
            receive_granted_bytes: granted(|socket| {
                ask_receive_buffer(socket, SOCKET_BUFFER_ASKED_BYTES as usize)?;
                socket.recv_buffer_size()
            }),
            send_granted_bytes: granted(|socket| {
                let socket = SockRef::from(socket);
                socket.set_send_buffer_size(SOCKET_BUFFER_ASKED_BYTES as usize)?;
                socket.send_buffer_size()
            }),
        }
    }
}

/// Ports that the kernel hands out to clients (`net.ipv4.ip_local_port_range`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// Ports in between that are not reserved: connections from one source address to one
    /// destination.
    pub usable: u32,
}

/// Limits of the network stack.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkLimits {
    /// Ports of outgoing connections.
    pub local_ports: Reading<PortRange>,
    /// Longest queue of connections that wait for accept (`net.core.somaxconn`).
    pub somaxconn: Reading<u64>,
    /// Longest queue of half-open connections (`net.ipv4.tcp_max_syn_backlog`).
    pub syn_backlog: Reading<u64>,
    /// Connections that the firewall tracks at most (`net.netfilter.nf_conntrack_max`); unknown
    /// where none are tracked.
    pub conntrack_max: Reading<u64>,
    /// Connections that the firewall tracks now.
    pub conntrack_count: Reading<u64>,
}

impl NetworkLimits {
    pub(super) fn read(root: &Root) -> Self {
        let conntrack = |name: &str| {
            let reading = root.sysctl(&format!("net.netfilter.{name}"));
            if reading.value.is_none() && !root.exists("/proc/sys/net/netfilter") {
                return Reading::unknown("connections are not tracked here");
            }
            reading
        };
        Self {
            local_ports: local_ports(root),
            somaxconn: root.sysctl("net.core.somaxconn"),
            syn_backlog: root.sysctl("net.ipv4.tcp_max_syn_backlog"),
            conntrack_max: conntrack("nf_conntrack_max"),
            conntrack_count: conntrack("nf_conntrack_count"),
        }
    }
}

fn local_ports(root: &Root) -> Reading<PortRange> {
    let file = "/proc/sys/net/ipv4/ip_local_port_range";
    root.text(file).and_then(|text| {
        let ports: Vec<u16> = text
            .split_whitespace()
            .map_while(|port| port.parse().ok())
            .collect();
        let &[first, last] = ports.as_slice() else {
            return Reading::unknown(format!("{file} holds '{text}', which is no range"));
        };
        if first > last {
            return Reading::unknown(format!("{file} holds '{text}', which is no range"));
        }
        let reserved = root
            .text("/proc/sys/net/ipv4/ip_local_reserved_ports")
            .value
            .and_then(|text| parse_ranges(&text))
            .unwrap_or_default();
        let inside: Vec<(u32, u32)> = reserved
            .into_iter()
            .map(|(from, to)| (from.max(first.into()), to.min(last.into())))
            .filter(|(from, to)| from <= to)
            .collect();
        Reading::known(PortRange {
            first,
            last,
            usable: u32::from(last - first) + 1 - ranges_len(&inside),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::FakeHost;

    #[test]
    fn process_limits_are_read_by_column() {
        let host = FakeHost::new().file(
            "/proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            1024                 1048576              files\n\
             Max locked memory         8388608              unlimited            bytes\n",
        );
        let limits = FileLimits::read(&host.root());
        assert_eq!(limits.soft.value, Some(Limit::At(1024)));
        assert_eq!(limits.hard.value, Some(Limit::At(1 << 20)));
        assert_eq!(limits.memlock_bytes.value, Some(Limit::At(8 << 20)));
        assert!(limits.nr_open.reason.unwrap().contains("fs.nr_open"));
    }

    #[test]
    fn reserved_ports_are_not_usable() {
        for (range, reserved, usable) in [
            ("32768\t60999", "", Some(28_232)),
            ("1024 65535", "", Some(64_512)),
            ("1000 1009", "1-1001,1005,1009-2000", Some(6)),
            ("9 8", "", None),
            ("x", "", None),
        ] {
            let host = FakeHost::new()
                .file("/proc/sys/net/ipv4/ip_local_port_range", range)
                .file("/proc/sys/net/ipv4/ip_local_reserved_ports", reserved);
            let ports = NetworkLimits::read(&host.root()).local_ports;
            assert_eq!(ports.value.map(|ports| ports.usable), usable, "{range}");
        }
    }

    #[test]
    fn an_untracked_host_says_so() {
        let none = NetworkLimits::read(&FakeHost::new().root());
        assert_eq!(
            none.conntrack_max.reason.as_deref(),
            Some("connections are not tracked here")
        );
        let tracked = FakeHost::new()
            .file("/proc/sys/net/netfilter/nf_conntrack_max", "262144\n")
            .file("/proc/sys/net/netfilter/nf_conntrack_count", "7\n");
        let limits = NetworkLimits::read(&tracked.root());
        assert_eq!(limits.conntrack_max.value, Some(262_144));
        assert_eq!(limits.conntrack_count.value, Some(7));
    }

    #[test]
    fn a_real_socket_is_granted_something() {
        let buffers = SocketBuffers::read(&Root::default());
        for granted in [buffers.receive_granted_bytes, buffers.send_granted_bytes] {
            assert!(granted.value.is_some_and(|bytes| bytes > 0) || granted.reason.is_some());
        }
    }
}
