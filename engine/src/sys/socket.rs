//! Sockets as the engine wants them: non-blocking, close-on-exec, with the right options set.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::driver::{Address, Connect, Multicast, Open};
use crate::limits::SocketBufferSizes;

/// Connections that wait to be accepted: the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 65_535;
/// The most datagrams in one GSO send since Linux 6.9 (UDP_MAX_SEGMENTS); 64 before.
const SEGMENTS_MAX: usize = 128;
/// The most payload that one UDP send can carry over IPv4: 65,535 − 20 − 8.
pub(crate) const UDP_PAYLOAD_MAX: usize = 65_507;

/// Whether several sockets of this process share the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// The only one.
    Alone,
    /// One of a group (SO_REUSEPORT).
    Group,
}

/// A listening TCP or Unix socket.
pub(crate) fn listen_stream(address: &Address, share: Share) -> io::Result<OwnedFd> {
    let socket = match address {
        Address::Ip(ip) => {
            let socket = Socket::new(Domain::for_address(*ip), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(share == Share::Group)?;
            if ip.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            // Inherited by every accepted socket, so that none needs a call of its own.
            socket.set_tcp_nodelay(true)?;
            socket.bind(&SockAddr::from(*ip))?;
            socket
        }
        Address::Unix(path) => listen_unix(path)?,
    };
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Ends the listening of a socket at once, whoever else holds it; what waits in its queue is reset.
pub(crate) fn stop_listening(listener: &OwnedFd) {
    // Nothing to do about a socket that does not listen any more: that is what is wanted.
    let _ = SockRef::from(listener).shutdown(std::net::Shutdown::Both);
}

/// A Unix socket file that nobody listens on any more is replaced; a live one is an error.
fn listen_unix(path: &Path) -> io::Result<Socket> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            match probe.connect(&address) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    socket.bind(&address)?;
                }
                _ => return Err(error),
            }
        }
        other => other?,
    }
    Ok(socket)
}

/// A stream socket with its options set and bound where asked, not yet connected.
pub(crate) fn open_stream(connect: &Connect) -> io::Result<OwnedFd> {
    let socket = match &connect.to {
        Address::Ip(to) => {
            let kind = Type::STREAM.nonblocking();
            let socket = Socket::new(Domain::for_address(*to), kind, Some(Protocol::TCP))?;
            socket.set_tcp_nodelay(true)?;
            if let Some(from) = connect.from {
                if from.port() == 0 {
                    // The port is chosen at connect: one port can then serve several peers.
                    set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
                } else {
                    socket.set_reuse_address(true)?;
                }
                socket.bind(&SockAddr::from(from))?;
            }
            socket
        }
        Address::Unix(_) => Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?,
    };
    Ok(socket.into())
}

/// The kernel's form of a stream address.
pub(crate) fn socket_address(address: &Address) -> io::Result<SockAddr> {
    match address {
        Address::Ip(ip) => Ok(SockAddr::from(*ip)),
        Address::Unix(path) => SockAddr::unix(path),
    }
}

/// Asks for a receive buffer: past `net.core.rmem_max` where this process may (CAP_NET_ADMIN), else
/// what that allows; less is not an error.
pub(crate) fn ask_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    let forced = i32::try_from(bytes).is_ok_and(|bytes| {
        set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_ok()
    });
    if forced {
        return Ok(());
    }
    socket.set_recv_buffer_size(bytes)
}

/// Fixes the peer of a UDP socket.
pub(crate) fn connect_datagram(socket: &impl AsFd, peer: SocketAddr) -> io::Result<()> {
    SockRef::from(socket).connect(&SockAddr::from(peer))
}

/// A UDP socket that asks for coalescing, ECN bits and the local address of each datagram.
pub(crate) fn open_datagram(
    open: &Open,
    multicast: Option<&Multicast>,
    share: Share,
    buffers: SocketBufferSizes,
) -> io::Result<OwnedFd> {
    let local = open.local;
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(share == Share::Group)?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    ask_receive_buffer(&socket, buffers.receive_bytes)?;
    socket.set_send_buffer_size(buffers.send_bytes)?;
    // Coalescing and ECN are worth having and not worth failing for.
    let _ = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    if local.is_ipv4() {
        let _ = set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
        // Fragment rather than refuse what is larger than the path.
        let _ = set_option(
            &socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        );
        if local.ip().is_unspecified() {
            set_option(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
    } else {
        let _ = set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
        let _ = set_option(
            &socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        );
        if local.ip().is_unspecified() {
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
    }
    if let Some(multicast) = multicast {
        // Every receiver of a group on this host binds to the same address.
        socket.set_reuse_address(multicast.join.is_some())?;
        set_multicast(&socket, local.is_ipv6(), multicast)?;
    }
    socket.bind(&SockAddr::from(local))?;
    if let Some(group) =
        multicast.and_then(|multicast| Some((multicast.join?, multicast.interface)))
    {
        join(&socket, group)?;
    }
    if let Some(peer) = open.peer {
        socket.connect(&SockAddr::from(peer))?;
    }
    Ok(socket.into())
}

/// How a socket sends to groups, and that it receives from none that others have joined.
fn set_multicast(socket: &Socket, ipv6: bool, multicast: &Multicast) -> io::Result<()> {
    if ipv6 {
        socket.set_multicast_hops_v6(multicast.hops.into())?;
        socket.set_multicast_loop_v6(multicast.to_own_host)?;
        let _ = set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0);
        if multicast.interface != 0 {
            socket.set_multicast_if_v6(multicast.interface)?;
        }
    } else {
        socket.set_multicast_ttl_v4(multicast.hops.into())?;
        socket.set_multicast_loop_v4(multicast.to_own_host)?;
        let _ = set_option(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0);
        if multicast.interface != 0 {
            let choice = multicast_request(Ipv4Addr::UNSPECIFIED, multicast.interface);
            set_option(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, choice)?;
        }
    }
    Ok(())
}

fn join(socket: &Socket, (group, interface): (IpAddr, u32)) -> io::Result<()> {
    match group {
        IpAddr::V4(group) => {
            let request = multicast_request(group, interface);
            set_option(socket, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, request)
        }
        IpAddr::V6(group) => socket.join_multicast_v6(&group, interface),
    }
}

fn multicast_request(group: Ipv4Addr, interface: u32) -> libc::ip_mreqn {
    libc::ip_mreqn {
        imr_multiaddr: libc::in_addr {
            s_addr: u32::from(group).to_be(),
        },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: interface as i32,
    }
}

/// The index of a network interface by its name, in the network namespace of this process.
///
/// # Errors
/// ENODEV when there is none of that name, EINVAL when no interface can be called so.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the name is a terminated string that lives for the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The local address of a socket, when it is an internet one.
pub(crate) fn local_address(fd: &impl AsFd) -> io::Result<SocketAddr> {
    let name = SockRef::from(fd).local_addr()?;
    name.as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// The address of the peer of a connected socket, when it is an internet one.
pub(crate) fn peer_address(fd: &impl AsFd) -> Option<SocketAddr> {
    SockRef::from(fd).peer_addr().ok()?.as_socket()
}

/// The pending error of a socket (SO_ERROR), cleared by asking.
pub(crate) fn take_error(fd: &impl AsFd) -> i32 {
    match SockRef::from(fd).take_error() {
        Ok(Some(error)) => error.raw_os_error().unwrap_or(libc::EIO),
        _ => 0,
    }
}

/// Sets an option whose value is plain data: an int, or one of the kernel's structs.
pub(crate) fn set_option<T: Copy>(
    fd: &impl AsRawFd,
    level: i32,
    name: i32,
    value: T,
) -> io::Result<()> {
    // SAFETY: the kernel reads at most so many bytes of a value that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How many datagrams one send may carry on this kernel (UDP_SEGMENT): 1 when it cannot.
/// Found out once, by sending to ourselves over loopback.
pub(crate) fn gso_segments_max() -> usize {
    static FOUND: OnceLock<usize> = OnceLock::new();
    *FOUND.get_or_init(|| {
        [SEGMENTS_MAX, 64]
            .into_iter()
            .find(|&count| gso_works(count).unwrap_or(false))
            .unwrap_or(1)
    })
}

fn gso_works(count: usize) -> io::Result<bool> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    sender.connect(receiver.local_addr()?)?;
    set_option(&sender, libc::SOL_UDP, libc::UDP_SEGMENT, 1)?;
    if sender.send(&vec![7; count]).is_err() {
        return Ok(false);
    }
    let mut byte = [0; 2];
    Ok(receiver.recv(&mut byte)? == 1)
}

/// Raises the soft limit of open files to the hard limit and returns it.
pub fn raise_file_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit and setrlimit read and write only the struct given to them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 1024;
        }
        if limit.rlim_cur < limit.rlim_max {
            let raised = libc::rlimit {
                rlim_cur: limit.rlim_max,
                rlim_max: limit.rlim_max,
            };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
                limit.rlim_cur = limit.rlim_max;
            }
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// Lets this thread's sleeps end when they should: the default slack of 50 µs is more than a
/// pacing interval.
pub(crate) fn set_timer_slack() {
    // SAFETY: PR_SET_TIMERSLACK takes one integer; 1 ns is the least.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_usize) };
}

/// Steers a group of listening sockets by the CPU that received the connection: the filter looks
/// up the CPU's shard. An unlisted CPU gets an index past the group, and the kernel hashes then.
pub(crate) fn steer_by_cpu(fd: &impl AsRawFd, cpus: &[usize]) -> io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SKF_AD_CPU, SKF_AD_OFF};
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program = vec![op(
        BPF_LD | BPF_W | BPF_ABS,
        0,
        0,
        (SKF_AD_OFF + SKF_AD_CPU) as u32,
    )];
    for (shard, cpu) in cpus.iter().enumerate() {
        program.push(op(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, *cpu as u32));
        program.push(op(BPF_RET | BPF_K, 0, 0, shard as u32));
    }
    program.push(op(BPF_RET | BPF_K, 0, 0, u32::MAX));
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program and its description live for the call; the kernel copies both.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
