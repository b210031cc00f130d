//! A plain multicast pair over loopback: one thread sends 32-byte numbered datagrams with sendto as
//! fast as it can, another receives them on its sockets with recvfrom, each on a CPU of its own.
//!
//! Prints one JSON object. Only what arrived counts; loss is what the numbers say, from the first to
//! the last that each socket got.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Asked of every receiving socket, as ringmill does; the kernel grants up to net.core.rmem_max.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Datagrams read from one ready socket before the next has its turn.
const TURN_DATAGRAMS_MAX: usize = 64;
const EVENTS_MAX: usize = 256;
/// How soon the receiver notices the end when nothing arrives.
const WAIT_MS: libc::c_int = 100;

/// One-way UDP multicast over loopback, one datagram per system call.
#[derive(Parser)]
struct Flags {
    /// The group.
    #[arg(long, default_value = "239.255.0.7:0")]
    group: SocketAddrV4,
    /// Receiving sockets.
    #[arg(long, default_value_t = 1)]
    receivers: usize,
    /// Payload of a datagram in bytes.
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// Measured seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before the measured ones.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// CPU of the receiver.
    #[arg(long, default_value_t = 0)]
    receiver_cpu: usize,
    /// CPU of the sender.
    #[arg(long, default_value_t = 1)]
    sender_cpu: usize,
}

/// Each counter has one writer.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    lost: AtomicU64,
}

fn main() -> anyhow::Result<()> {
    let mut flags = Flags::parse();
    ensure!(flags.size >= 8, "--size: a number takes 8 bytes");
    ensure!(
        flags.group.ip().is_multicast(),
        "--group: no multicast group"
    );
    let mut receivers = Vec::new();
    for _ in 0..flags.receivers {
        let receiver = receiver(flags.group)?;
        // Port 0: the kernel chooses one, and all others share it.
        flags.group.set_port(receiver.local_addr()?.port());
        receivers.push(receiver);
    }
    let sender = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    sender.set_multicast_if_v4(&Ipv4Addr::LOCALHOST)?;
    let sender: UdpSocket = sender.into();

    let shared = Shared::default();
    let counts = || [&shared.sent, &shared.received, &shared.lost].map(|count| count.load(Relaxed));
    let (first, second, elapsed) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let receive = scope.spawn(|| {
            peer_common::pin(flags.receiver_cpu)?;
            receive_loop(&receivers, &shared)
        });
        let send = scope.spawn(|| {
            peer_common::pin(flags.sender_cpu)?;
            send_loop(&sender, flags.group, flags.size, &shared)
        });
        std::thread::sleep(Duration::from_secs_f64(flags.warmup));
        let (first, start) = (counts(), Instant::now());
        std::thread::sleep(Duration::from_secs_f64(flags.seconds));
        let (second, elapsed) = (counts(), start.elapsed());
        shared.stop.store(true, Relaxed);
        for (name, thread) in [("receiver", receive), ("sender", send)] {
            thread
                .join()
                .expect("the loops return errors, they do not panic")
                .context(name)?;
        }
        Ok((first, second, elapsed.as_secs_f64()))
    })?;
    let [sent, received, lost] = std::array::from_fn(|index| second[index] - first[index]);
    println!(
        "{}",
        serde_json::json!({
            "type": "report",
            "receivers": flags.receivers,
            "seconds": elapsed,
            "sent": sent,
            "received": received,
            "lost": lost,
            "messages_per_s": received as f64 / elapsed,
        })
    );
    Ok(())
}

/// A socket that has joined the group on loopback.
fn receiver(group: SocketAddrV4) -> anyhow::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&SockAddr::from(group))?;
    socket.join_multicast_v4(group.ip(), &Ipv4Addr::LOCALHOST)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn send_loop(
    socket: &UdpSocket,
    group: SocketAddrV4,
    size: usize,
    shared: &Shared,
) -> anyhow::Result<()> {
    let mut message = vec![0; size];
    let mut sequence = 0_u64;
    while !shared.stop.load(Relaxed) {
        message[..8].copy_from_slice(&sequence.to_be_bytes());
        socket.send_to(&message, group).context("sendto")?;
        sequence += 1;
        shared.sent.store(sequence, Relaxed);
    }
    Ok(())
}

/// Counts what arrives until told to stop.
fn receive_loop(sockets: &[UdpSocket], shared: &Shared) -> anyhow::Result<()> {
    // SAFETY: no pointers are passed.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    ensure!(epoll >= 0, std::io::Error::last_os_error());
    for (index, socket) in sockets.iter().enumerate() {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: index as u64,
        };
        // SAFETY: `event` lives for the call; both descriptors are open.
        let outcome =
            unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &mut event) };
        ensure!(outcome == 0, std::io::Error::last_os_error());
    }
    let mut expected: Vec<Option<u64>> = vec![None; sockets.len()];
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
    let (mut received, mut lost) = (0, 0);
    let mut buffer = [0; 2048];
    while !shared.stop.load(Relaxed) {
        // SAFETY: `events` has room for EVENTS_MAX and lives for the call.
        let ready =
            unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS_MAX as i32, WAIT_MS) };
        for event in &events[..ready.max(0) as usize] {
            let index = event.u64 as usize;
            for _ in 0..TURN_DATAGRAMS_MAX {
                let count = match sockets[index].recv_from(&mut buffer) {
                    Ok((count, _)) => count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("recvfrom"),
                };
                let number = buffer[..count].first_chunk().context("a short datagram")?;
                let number = u64::from_be_bytes(*number);
                lost += number - expected[index].unwrap_or(number);
                expected[index] = Some(number + 1);
                received += 1;
            }
            shared.received.store(received, Relaxed);
            shared.lost.store(lost, Relaxed);
        }
    }
    // SAFETY: it is ours, open, and used no more.
    unsafe { libc::close(epoll) };
    Ok(())
}
