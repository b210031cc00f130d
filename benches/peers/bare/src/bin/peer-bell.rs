//! What a message between two threads costs when each is announced by a write
//! to an eventfd: the obvious way, which a mailbox with a doorbell has to beat.
//!
//! - awake: the receiver polls its eventfd without sleeping; time per message
//!   over a long run
//! - sleeping: the receiver blocks in a read of it; one message at a time, from
//!   just before the write until the receiver runs again
//!
//! Prints one JSON object; all times in nanoseconds.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use peer_bare::percentile;

/// Time for the receiver to fall asleep again between two messages.
const ASLEEP_AFTER: Duration = Duration::from_micros(300);

/// An eventfd write per message between two pinned threads.
#[derive(Parser)]
struct Flags {
    /// Messages of the awake run.
    #[arg(long, default_value_t = 2_000_000)]
    messages: u64,
    /// Messages of the sleeping run.
    #[arg(long, default_value_t = 5_000)]
    wakes: u64,
    /// CPU of the receiver.
    #[arg(long, default_value_t = 0)]
    receiver_cpu: usize,
    /// CPU of the sender.
    #[arg(long, default_value_t = 1)]
    sender_cpu: usize,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let awake = awake(&flags)?;
    let (mut wakes, mut sends) = sleeping(&flags)?;
    wakes.sort_unstable();
    sends.sort_unstable();
    println!(
        "{}",
        serde_json::json!({
            "type": "report",
            "way": "eventfd per message",
            "awake_ns_per_message": awake,
            "sleeping_wake_ns": {
                "p50": percentile(&wakes, 0.5), "p99": percentile(&wakes, 0.99),
            },
            // By definition of this way.
            "bells_per_message": { "awake": 1.0, "sleeping": 1.0 },
            "sleeping_send_ns": {
                "p50": percentile(&sends, 0.5), "p99": percentile(&sends, 0.99),
            },
        })
    );
    Ok(())
}

/// Nanoseconds per message with a receiver that never sleeps.
fn awake(flags: &Flags) -> anyhow::Result<f64> {
    let bell = eventfd(libc::EFD_NONBLOCK)?;
    let fd = bell.as_raw_fd();
    let ready = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| -> anyhow::Result<Instant> {
            peer_common::pin(flags.receiver_cpu)?;
            ready.store(true, Ordering::Release);
            let mut received = 0;
            while received < flags.messages {
                received += take(fd)?.unwrap_or(0);
            }
            Ok(Instant::now())
        });
        let sender = scope.spawn(|| -> anyhow::Result<Instant> {
            peer_common::pin(flags.sender_cpu)?;
            while !ready.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            for _ in 0..flags.messages {
                ring(fd)?;
            }
            Ok(start)
        });
        let start = sender.join().expect("returns errors")?;
        let end = receiver.join().expect("returns errors")?;
        Ok((end - start).as_nanos() as f64 / flags.messages as f64)
    })
}

/// Per message: nanoseconds until the sleeping receiver runs, and those that
/// the sender spent in its write.
fn sleeping(flags: &Flags) -> anyhow::Result<(Vec<u64>, Vec<u64>)> {
    let bell = eventfd(0)?;
    let fd = bell.as_raw_fd();
    let epoch = Instant::now();
    let now = || epoch.elapsed().as_nanos() as u64;
    let woken_at = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| -> anyhow::Result<()> {
            peer_common::pin(flags.receiver_cpu)?;
            for _ in 0..flags.wakes {
                take(fd)?;
                woken_at.store(now(), Ordering::Release);
            }
            Ok(())
        });
        let sender = scope.spawn(|| -> anyhow::Result<_> {
            peer_common::pin(flags.sender_cpu)?;
            let (mut wakes, mut sends) = (Vec::new(), Vec::new());
            for _ in 0..flags.wakes {
                let pause = Instant::now();
                while pause.elapsed() < ASLEEP_AFTER {
                    std::hint::spin_loop();
                }
                woken_at.store(0, Ordering::Release);
                let start = now();
                ring(fd)?;
                sends.push(now() - start);
                let woken = loop {
                    match woken_at.load(Ordering::Acquire) {
                        0 => std::hint::spin_loop(),
                        woken => break woken,
                    }
                };
                wakes.push(woken.saturating_sub(start));
            }
            Ok((wakes, sends))
        });
        let times = sender.join().expect("returns errors")?;
        receiver.join().expect("returns errors")?;
        Ok(times)
    })
}

fn eventfd(flags: libc::c_int) -> anyhow::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::eventfd(0, flags) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("eventfd");
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Announces one message.
fn ring(fd: RawFd) -> anyhow::Result<()> {
    let one = 1_u64;
    // SAFETY: eight readable bytes.
    let count = unsafe { libc::write(fd, (&raw const one).cast(), 8) };
    if count == 8 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error()).context("eventfd write")
    }
}

/// How many were announced since; none: nothing yet (non-blocking only).
fn take(fd: RawFd) -> anyhow::Result<Option<u64>> {
    let mut announced = 0_u64;
    // SAFETY: eight writable bytes.
    let count = unsafe { libc::read(fd, (&raw mut announced).cast(), 8) };
    if count == 8 {
        return Ok(Some(announced));
    }
    let error = std::io::Error::last_os_error();
    match error.kind() {
        std::io::ErrorKind::WouldBlock => Ok(None),
        _ => Err(error).context("eventfd read"),
    }
}
