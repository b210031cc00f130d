//! What every benchmark peer needs and none should do differently: flags,
//! pinning, the file limit and a listening socket.
//!
//! Nothing here runs once a connection is open: a peer's figures are its
//! runtime's own.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, Socket, Type};

/// One read or write: 128 messages of 32 bytes. The deepest scenario has 64
/// outstanding per connection, so no peer needs a second read for its size.
pub const STREAM_BUFFER_BYTES: usize = 4096;

/// The largest UDP payload.
pub const DATAGRAM_BUFFER_BYTES: usize = 65_535;

/// What a chat says to who joins; `ringmill serve chat` says the same.
pub const CHAT_GREETING: &[u8] = b"Hello from TCP chat! Send a message, or '!' to disconnect.";

/// The word that ends a session of a chat.
pub const CHAT_LEAVE: &[u8] = b"!";

/// Messages that may wait for one member of a chat: as many as ringmill's default.
pub const CHAT_QUEUE_MESSAGES: usize = 4096;

/// 10,000 connections arrive at once; the kernel caps this by
/// `net.core.somaxconn` (4096 by default).
const LISTEN_BACKLOG: i32 = 4096;

/// The flags of an echo peer.
#[derive(Debug, Clone, Copy)]
pub struct EchoFlags {
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// The only CPU to run on; none: as started.
    pub cpu: Option<usize>,
    /// Echo datagrams instead of streams.
    pub udp: bool,
}

/// Reads `--listen ADDR:PORT [--cpu N] [--udp]`, pins the process and lifts
/// its file limit to the hard limit.
///
/// # Errors
/// An unknown or incomplete flag, or a CPU this process may not run on.
pub fn start(name: &str) -> anyhow::Result<EchoFlags> {
    let usage = format!("usage: {name} --listen ADDR:PORT [--cpu N] [--udp]");
    let mut listen = None;
    let mut cpu = None;
    let mut udp = false;
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{flag}: value missing; {usage}"))
        };
        match flag.as_str() {
            "--listen" => listen = Some(value()?.parse().context("--listen wants ADDR:PORT")?),
            "--cpu" => cpu = Some(value()?.parse().context("--cpu wants a number")?),
            "--udp" => udp = true,
            other => bail!("unknown flag {other}; {usage}"),
        }
    }
    let flags = EchoFlags {
        listen: listen.context(usage)?,
        cpu,
        udp,
    };
    if let Some(cpu) = flags.cpu {
        pin(cpu)?;
    }
    lift_file_limit();
    Ok(flags)
}

/// The flags of a chat peer.
#[derive(Debug, Clone)]
pub struct ChatFlags {
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// The CPUs to run on, one thread each.
    pub cpus: Vec<usize>,
}

/// Reads `--listen ADDR:PORT --cpus N,N` and lifts the process's file limit to
/// the hard limit. Pinning is left to the peer, thread by thread.
///
/// # Errors
/// An unknown or incomplete flag.
pub fn start_chat(name: &str) -> anyhow::Result<ChatFlags> {
    let usage = format!("usage: {name} --listen ADDR:PORT --cpus N,N");
    let (mut listen, mut cpus) = (None, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{flag}: value missing; {usage}"))?;
        match flag.as_str() {
            "--listen" => listen = Some(value.parse().context("--listen wants ADDR:PORT")?),
            "--cpus" => {
                for cpu in value.split(',') {
                    cpus.push(cpu.parse().context("--cpus wants numbers and commas")?);
                }
            }
            other => bail!("unknown flag {other}; {usage}"),
        }
    }
    if cpus.is_empty() {
        bail!("no CPU to run on; {usage}");
    }
    lift_file_limit();
    let listen = listen.context(usage)?;
    Ok(ChatFlags { listen, cpus })
}

/// Pins the calling thread, and those that it starts later, to one CPU.
///
/// # Errors
/// The CPU does not exist or is outside this process's cpuset.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    // SAFETY: cpu_set_t is plain data; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        bail!(
            "CPU {cpu} is beyond the {} that a set can name",
            libc::CPU_SETSIZE
        );
    }
    // SAFETY: `cpu` is within the set, checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` lives for the call and its size is given.
    let outcome = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    if outcome != 0 {
        let error = std::io::Error::last_os_error();
        bail!("cannot run on CPU {cpu}: {error}; `nproc` and the cpuset tell which are allowed");
    }
    Ok(())
}

/// Soft file limit up to the hard one; 10,000 connections need it where the
/// soft limit is 1024. Failing here shows later as EMFILE, so it is no error.
pub fn lift_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// A listening TCP socket. Accepted sockets inherit its TCP_NODELAY, so that
/// no peer pays a system call per connection for it. It blocks: a ring would
/// answer EAGAIN instead of waiting; tokio must make it non-blocking.
///
/// # Errors
/// The address cannot be bound.
pub fn tcp_listener(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    listener(listen, false)
}

/// The same, one of several at one address, among which the kernel spreads the
/// connections.
///
/// # Errors
/// The address cannot be bound.
pub fn shared_tcp_listener(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    listener(listen, true)
}

fn listener(listen: SocketAddr, is_shared: bool) -> anyhow::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_tcp_nodelay(true)?;
    socket
        .bind(&listen.into())
        .with_context(|| format!("cannot listen on {listen}"))?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// A bound UDP socket, blocking as above.
///
/// # Errors
/// The address cannot be bound.
pub fn udp_socket(listen: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket
        .bind(&listen.into())
        .with_context(|| format!("cannot bind {listen}"))?;
    Ok(UdpSocket::from(socket))
}

/// Tells the harness that connections may come: `listening on ADDR:PORT`.
pub fn announce(local: SocketAddr) {
    use std::io::Write;
    println!("listening on {local}");
    // Standard output is a pipe here, so it would wait for a full block.
    let _ = std::io::stdout().flush();
}
