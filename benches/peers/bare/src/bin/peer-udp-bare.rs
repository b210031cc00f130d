//! The least code that moves datagrams one way over loopback: the ceiling
//! that an engine is compared with. One thread sends, one receives, each on a
//! CPU of its own, with nothing between them and the kernel.
//!
//! - `gso`: sendmmsg of messages that the kernel cuts into equal datagrams
//!   (UDP_SEGMENT), recvmmsg of messages that it joined again (UDP_GRO)
//! - `plain`: sendmmsg and recvmmsg of single datagrams
//!
//! Prints one JSON object. Only what arrived counts.

use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use socket2::SockRef;

/// Messages per system call: past this the call's own cost is below 1 %.
const GSO_BATCH: usize = 16;
/// Single datagrams per system call, the same reason.
const PLAIN_BATCH: usize = 64;
/// Segments that every kernel with GSO takes in one send.
const GSO_SEGMENTS_MAX: usize = 64;
/// The largest UDP payload over IPv4.
const UDP_PAYLOAD_BYTES_MAX: usize = 65_507;
/// Asked of both sockets; the kernel grants up to net.core.[rw]mem_max.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// How soon the receiver notices the end when nothing arrives.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    Gso,
    Plain,
}

/// One-way UDP over loopback by bare system calls.
#[derive(Parser)]
struct Flags {
    /// With segmentation offload on both sides, or without.
    #[arg(long, value_enum, default_value = "gso")]
    mode: Mode,
    /// Payload of a datagram in bytes.
    #[arg(long, default_value_t = 1222)]
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

/// What the two loops publish; each counter has one writer.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent_datagrams: AtomicU64,
    received_datagrams: AtomicU64,
    received_bytes: AtomicU64,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    ensure!(
        (1..=UDP_PAYLOAD_BYTES_MAX).contains(&flags.size),
        "--size must be 1 to {UDP_PAYLOAD_BYTES_MAX}"
    );
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    sender.connect(receiver.local_addr()?)?;
    SockRef::from(&receiver).set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    SockRef::from(&sender).set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    receiver.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
    if flags.mode == Mode::Gso {
        set_udp_option(receiver.as_raw_fd(), libc::UDP_GRO, 1).context("UDP_GRO")?;
        set_udp_option(
            sender.as_raw_fd(),
            libc::UDP_SEGMENT,
            flags.size as libc::c_int,
        )
        .context("UDP_SEGMENT")?;
    }

    let shared = Shared::default();
    let (first, second, elapsed) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let receive = scope.spawn(|| {
            peer_common::pin(flags.receiver_cpu)?;
            receive_loop(receiver.as_raw_fd(), flags.mode, &shared)
        });
        let send = scope.spawn(|| {
            peer_common::pin(flags.sender_cpu)?;
            send_loop(sender.as_raw_fd(), flags.mode, flags.size, &shared)
        });
        std::thread::sleep(Duration::from_secs_f64(flags.warmup));
        let (first, start) = (snapshot(&shared), Instant::now());
        std::thread::sleep(Duration::from_secs_f64(flags.seconds));
        let (second, elapsed) = (snapshot(&shared), start.elapsed());
        shared.stop.store(true, Relaxed);
        for (name, thread) in [("receiver", receive), ("sender", send)] {
            thread
                .join()
                .expect("the loops return errors, they do not panic")
                .context(name)?;
        }
        Ok((first, second, elapsed.as_secs_f64()))
    })?;

    let [sent, received, bytes] = std::array::from_fn(|index| second[index] - first[index]);
    println!(
        "{}",
        serde_json::json!({
            "type": "report",
            "mode": match flags.mode { Mode::Gso => "gso", Mode::Plain => "plain" },
            "size": flags.size,
            "seconds": elapsed,
            "sent": sent,
            "received": received,
            "datagrams_per_s": received as f64 / elapsed,
            "bytes_per_s": bytes as f64 / elapsed,
            "gbit_per_s": bytes as f64 * 8.0 / elapsed / 1e9,
        })
    );
    Ok(())
}

fn snapshot(shared: &Shared) -> [u64; 3] {
    [
        &shared.sent_datagrams,
        &shared.received_datagrams,
        &shared.received_bytes,
    ]
    .map(|counter| counter.load(Relaxed))
}

fn set_udp_option(fd: RawFd, option: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    // SAFETY: `value` is an int that lives for the call, as both options want.
    let outcome = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_UDP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Sends as fast as the kernel takes it until told to stop.
fn send_loop(fd: RawFd, mode: Mode, size: usize, shared: &Shared) -> anyhow::Result<()> {
    let (batch, segments) = match mode {
        Mode::Gso => (
            GSO_BATCH,
            GSO_SEGMENTS_MAX.min(UDP_PAYLOAD_BYTES_MAX / size),
        ),
        Mode::Plain => (PLAIN_BATCH, 1),
    };
    let mut payload = vec![0x5a_u8; size * segments];
    let mut part = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: mmsghdr is plain data; all zero is "no address, no parts".
    let mut messages: Vec<libc::mmsghdr> = vec![unsafe { zeroed() }; batch];
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let mut sent = 0;
    while !shared.stop.load(Relaxed) {
        // SAFETY: the headers point to `part` and `payload`, which outlive the
        // call; the kernel only reads the payload.
        let count = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), batch as u32, 0) };
        match usize::try_from(count) {
            Ok(count) => sent += (count * segments) as u64,
            Err(_) => retry_or_fail("sendmmsg")?,
        }
        shared.sent_datagrams.store(sent, Relaxed);
    }
    Ok(())
}

/// Space for the one control message (the segment size) of a message.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 64]);

/// Counts what arrives until told to stop.
fn receive_loop(fd: RawFd, mode: Mode, shared: &Shared) -> anyhow::Result<()> {
    let (batch, control_bytes) = match mode {
        Mode::Gso => (GSO_BATCH, size_of::<Control>()),
        Mode::Plain => (PLAIN_BATCH, 0),
    };
    const BUFFER_BYTES: usize = 1 << 16;
    let mut buffers = vec![0_u8; batch * BUFFER_BYTES];
    let mut controls = vec![Control([0; 64]); batch];
    let mut parts: Vec<libc::iovec> = buffers
        .chunks_exact_mut(BUFFER_BYTES)
        .map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: BUFFER_BYTES,
        })
        .collect();
    // SAFETY: mmsghdr is plain data; all zero is "no address, no parts".
    let mut messages: Vec<libc::mmsghdr> = vec![unsafe { zeroed() }; batch];
    for ((message, part), control) in messages.iter_mut().zip(&mut parts).zip(&mut controls) {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = (&raw mut *control).cast();
    }
    let (mut datagrams, mut bytes) = (0, 0);
    while !shared.stop.load(Relaxed) {
        for message in &mut messages {
            message.msg_hdr.msg_controllen = control_bytes;
        }
        // SAFETY: every header points to its own buffer and control space,
        // with their true lengths, all alive for the call.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                batch as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            retry_or_fail("recvmmsg")?;
            continue;
        };
        for message in &messages[..count] {
            let length = u64::from(message.msg_len);
            bytes += length;
            datagrams += match segment_bytes(&message.msg_hdr) {
                Some(segment) => length.div_ceil(segment),
                None => 1,
            };
        }
        shared.received_datagrams.store(datagrams, Relaxed);
        shared.received_bytes.store(bytes, Relaxed);
    }
    Ok(())
}

/// The size of the equal datagrams in a joined message; none: a single one.
fn segment_bytes(header: &libc::msghdr) -> Option<u64> {
    // SAFETY: the kernel filled the control space that `header` describes.
    let control = unsafe { libc::CMSG_FIRSTHDR(header) };
    if control.is_null() {
        return None;
    }
    // SAFETY: not null, so it points to a whole control message header; a
    // UDP_GRO message carries an int, read unaligned.
    unsafe {
        ((*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO)
            .then(|| {
                libc::CMSG_DATA(control)
                    .cast::<libc::c_int>()
                    .read_unaligned() as u64
            })
            .filter(|segment| *segment > 0)
    }
}

/// A full queue, a timeout and a signal are part of the game.
fn retry_or_fail(call: &str) -> anyhow::Result<()> {
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ECONNREFUSED) => Ok(()),
        _ => Err(error).with_context(|| format!("{call} failed")),
    }
}
