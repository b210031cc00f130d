//! How many TCP connections per second two bare loops open on loopback: connect on one CPU, accept on
//! another, a process each. The ceiling for what opens connections here with a socket call for each.
//!
//! One process may hold only as many files as its limit says, so it keeps as many connections as that
//! and resets the oldest for each new one. It must never run ahead of the accepting end by more than the
//! listen queue holds: a SYN that is dropped comes again a second later, and the figure would be that of
//! the kernel's patience.
//!
//! Prints one JSON object.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Files of either process beside its connections.
const FILES_RESERVED: u64 = 100;
/// Connections that the accepting end may be behind; below each listen queue in use (4096 by default).
const AHEAD_MAX: u64 = 2_048;
const BACKLOG: i32 = 4_096;
/// The first local address is 127.1.0.1.
const SOURCE_NET: u32 = 0x7f01_0001;
/// An accepting end that does not come on for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bare connect and accept loops over loopback.
#[derive(Parser)]
struct Flags {
    /// Connections to open.
    #[arg(long, default_value_t = 1_000_000)]
    connections: u64,
    /// Local addresses to connect from, in turn.
    #[arg(long, default_value_t = 64)]
    sources: u32,
    /// CPU of the accepting process.
    #[arg(long, default_value_t = 0)]
    accept_cpu: usize,
    /// CPU of the connecting process.
    #[arg(long, default_value_t = 1)]
    connect_cpu: usize,
}

/// What the two processes share.
struct Shared {
    accepted: AtomicU64,
    /// The connecting end is done.
    done: AtomicBool,
    /// The accepting end is.
    failed: AtomicBool,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    ensure!(flags.sources > 0, "--sources 0: at least one is needed");
    peer_common::lift_file_limit();
    let keep = file_limit().saturating_sub(FILES_RESERVED);
    ensure!(
        keep > 0,
        "the limit of open files leaves no room for connections"
    );
    let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    let target = listener.local_addr()?;
    let shared = shared_memory()?;
    // SAFETY: this process has one thread, so the child may go on as it likes.
    let child = unsafe { libc::fork() };
    match child {
        -1 => bail!(
            "cannot start the accepting process: {}",
            io::Error::last_os_error()
        ),
        0 => {
            // SAFETY: takes no pointer. A child alone would accept for ever.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let result = accept(&flags, &listener, shared, keep);
            if let Err(error) = &result {
                eprintln!("accepting: {error:#}");
                shared.failed.store(true, Ordering::Release);
            }
            std::process::exit(i32::from(result.is_err()));
        }
        _ => {}
    }
    drop(listener);
    let result = connect(&flags, &target, shared, keep);
    shared.done.store(true, Ordering::Release);
    let mut status = 0;
    // SAFETY: the child is ours and not waited for yet; `status` lives for the call.
    unsafe { libc::waitpid(child, &mut status, 0) };
    let seconds = result?;
    let accepted = shared.accepted.load(Ordering::Acquire);
    println!(
        "{}",
        serde_json::json!({
            "type": "report",
            "connections": flags.connections,
            "accepted": accepted,
            "kept": keep.min(flags.connections),
            "seconds": seconds,
            "connections_per_s": flags.connections as f64 / seconds,
        })
    );
    Ok(())
}

fn file_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur
}

fn shared_memory() -> anyhow::Result<&'static Shared> {
    // SAFETY: a fresh anonymous mapping of its own, never unmapped.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<Shared>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        bail!("no shared memory: {}", io::Error::last_os_error());
    }
    // SAFETY: page-aligned, large enough, and all zero, which is a valid value of each field; only
    // atomics are in it, so both processes may use it at once.
    Ok(unsafe { &*memory.cast::<Shared>() })
}

/// Accepts until the other end is done, keeping the newest connections.
fn accept(flags: &Flags, listener: &Socket, shared: &Shared, keep: u64) -> anyhow::Result<()> {
    peer_common::pin(flags.accept_cpu)?;
    let mut kept = VecDeque::new();
    let mut wait = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        if kept.len() as u64 >= keep {
            kept.pop_front();
        }
        match accept_one(listener) {
            Ok(socket) => {
                kept.push_back(socket);
                shared.accepted.fetch_add(1, Ordering::Release);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if shared.done.load(Ordering::Acquire) {
                    return Ok(());
                }
                // SAFETY: `wait` is one valid pollfd for the call.
                unsafe { libc::poll(&mut wait, 1, 10) };
            }
            // Reset by the other end before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                shared.accepted.fetch_add(1, Ordering::Release);
            }
            Err(error) => return Err(error).context("accept"),
        }
    }
}

/// One call, without asking for the address.
fn accept_one(listener: &Socket) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: null pointers are allowed: no address is wanted.
    let file = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(file) })
}

/// Opens all connections; seconds until the last was accepted. On loopback the whole handshake is done
/// within the call, so a plain connect never sleeps.
fn connect(flags: &Flags, target: &SockAddr, shared: &Shared, keep: u64) -> anyhow::Result<f64> {
    peer_common::pin(flags.connect_cpu)?;
    let sources: Vec<SockAddr> = (0..flags.sources)
        .map(|number| {
            let address = Ipv4Addr::from(SOURCE_NET + number);
            SocketAddr::V4(SocketAddrV4::new(address, 0)).into()
        })
        .collect();
    let mut kept = VecDeque::new();
    let begun = Instant::now();
    for number in 0..flags.connections {
        wait_for(shared, (number + 1).saturating_sub(AHEAD_MAX))?;
        if kept.len() as u64 >= keep {
            kept.pop_front();
        }
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // Closing resets: no TIME_WAIT is left behind.
        socket.set_linger(Some(Duration::ZERO))?;
        // The port is chosen when both addresses are known.
        bind_address_no_port(&socket)?;
        socket.bind(&sources[(number % u64::from(flags.sources)) as usize])?;
        socket
            .connect(target)
            .with_context(|| format!("connection {number}"))?;
        kept.push_back(socket);
    }
    wait_for(shared, flags.connections)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The kernel chooses a port at connect, when it knows which of them are free for the pair.
fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` lives for the call and its size is given.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until so many are accepted.
fn wait_for(shared: &Shared, accepted: u64) -> anyhow::Result<()> {
    if shared.accepted.load(Ordering::Acquire) >= accepted {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    while shared.accepted.load(Ordering::Acquire) < accepted {
        if shared.failed.load(Ordering::Acquire) || Instant::now() > deadline {
            bail!("the accepting process does not come on");
        }
        std::thread::yield_now();
    }
    Ok(())
}
