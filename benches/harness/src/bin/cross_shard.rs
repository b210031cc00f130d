//! What a message between two threads costs over the engine's mailbox; its
//! counterpart with an eventfd per message is `peer-bell`.
//!
//! - awake: the receiver takes from its mailbox without sleeping; time per
//!   message over a long run, in turns of 16 messages and in turns of one
//! - sleeping: the receiver says that it sleeps and blocks on its eventfd; one
//!   message at a time, from just before the post until the receiver runs
//!
//! Prints one JSON object; all times in nanoseconds.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use ringmill_engine::mailbox::{Mailbox, MailboxCounters, ShardBell, mailboxes, shard_bells};
use ringmill_engine::sys::eventfd::EventFdWaker;
use serde_json::{Value, json};

/// Messages that a mailbox holds: enough that neither side waits for long.
const CAPACITY: usize = 1024;
/// Time for the receiver to fall asleep again between two messages.
const ASLEEP_AFTER: Duration = Duration::from_micros(300);
/// Messages that a shard posts in one turn before it rings, as its loop does.
const PER_TURN: u64 = 16;
/// The two ends.
const SENDER: usize = 0;
const RECEIVER: usize = 1;

/// Messages over a mailbox between two pinned threads.
#[derive(Parser)]
struct Flags {
    /// Messages of the awake run.
    #[arg(long, default_value_t = 50_000_000)]
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
    let (alone_ns, _) = awake(&flags, 1)?;
    let (awake_ns, awake) = awake(&flags, PER_TURN)?;
    let (mut wakes, mut sends, sleeping) = sleeping(&flags)?;
    wakes.sort_unstable();
    sends.sort_unstable();
    let percentiles = |sorted: &[u64]| -> Value {
        json!({
            "p50": peer_bare::percentile(sorted, 0.5),
            "p99": peer_bare::percentile(sorted, 0.99),
        })
    };
    let bells = |counters: MailboxCounters| {
        counters.doorbells_rung as f64 / counters.messages_posted.max(1) as f64
    };
    let report = json!({
        "type": "report",
        "way": "mailbox",
        "awake_ns_per_message": awake_ns,
        "awake_one_per_turn_ns": alone_ns,
        "sleeping_wake_ns": percentiles(&wakes),
        "sleeping_send_ns": percentiles(&sends),
        "bells_per_message": { "awake": bells(awake), "sleeping": bells(sleeping) },
        "refused_when_full": awake.messages_refused,
    });
    println!("{report}");
    Ok(())
}

/// Both ends of a service with two shards, and the shards' bells.
type Ends = (Mailbox<u64>, Mailbox<u64>, Arc<[ShardBell]>);

fn ends() -> anyhow::Result<Ends> {
    let bells = shard_bells(2);
    let (ends, _control) = mailboxes(&bells, CAPACITY);
    let [sender, receiver] = <[_; 2]>::try_from(ends)
        .map_err(|ends| anyhow::anyhow!("{} ends for two shards", ends.len()))?;
    Ok((sender, receiver, bells))
}

/// Nanoseconds per message with a receiver that never sleeps.
fn awake(flags: &Flags, per_turn: u64) -> anyhow::Result<(f64, MailboxCounters)> {
    let (sender_end, receiver_end, _bells) = ends()?;
    let ready = AtomicBool::new(false);
    let ready = &ready;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> anyhow::Result<Instant> {
            peer_common::pin(flags.receiver_cpu)?;
            ready.store(true, Ordering::Release);
            let mut expected = 0;
            while expected < flags.messages {
                match receiver_end.try_receive() {
                    Some((_, number)) => {
                        anyhow::ensure!(number == expected, "{number} came, not {expected}");
                        expected += 1;
                    }
                    None => std::hint::spin_loop(),
                }
            }
            Ok(Instant::now())
        });
        let sender = scope.spawn(move || -> anyhow::Result<(Instant, MailboxCounters)> {
            peer_common::pin(flags.sender_cpu)?;
            while !ready.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            for number in 0..flags.messages {
                while sender_end.post_unrung(RECEIVER as u16, number).is_err() {
                    std::hint::spin_loop();
                }
                if number % per_turn == 0 {
                    sender_end.ring();
                }
            }
            Ok((start, sender_end.counters()))
        });
        let end = receiver.join().expect("returns errors")?;
        let (start, counters) = sender.join().expect("returns errors")?;
        Ok((
            (end - start).as_nanos() as f64 / flags.messages as f64,
            counters,
        ))
    })
}

/// Per message: nanoseconds until the sleeping receiver runs, and those that
/// the sender spent in its post.
fn sleeping(flags: &Flags) -> anyhow::Result<(Vec<u64>, Vec<u64>, MailboxCounters)> {
    let (sender_end, receiver_end, bells) = ends()?;
    let waker = EventFdWaker::new().context("eventfd")?;
    for shard in [SENDER, RECEIVER] {
        bells[shard].register(waker.clone());
    }
    let epoch = Instant::now();
    let now = move || epoch.elapsed().as_nanos() as u64;
    let woken_at = AtomicU64::new(0);
    let woken_at = &woken_at;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> anyhow::Result<()> {
            peer_common::pin(flags.receiver_cpu)?;
            let bell = &bells[RECEIVER];
            let mut received = 0;
            while received < flags.wakes {
                bell.prepare_sleep();
                if receiver_end.is_empty() {
                    wait_readable(&waker)?;
                    woken_at.store(now(), Ordering::Release);
                    bell.woke();
                    waker.drain()?;
                } else {
                    // It came before the sleep: no wake to measure, but received.
                    woken_at.store(now(), Ordering::Release);
                    bell.stay_awake();
                }
                while receiver_end.try_receive().is_some() {
                    received += 1;
                }
            }
            Ok(())
        });
        let sender = scope.spawn(move || -> anyhow::Result<_> {
            peer_common::pin(flags.sender_cpu)?;
            let (mut wakes, mut sends) = (Vec::new(), Vec::new());
            for number in 0..flags.wakes {
                let pause = Instant::now();
                while pause.elapsed() < ASLEEP_AFTER {
                    std::hint::spin_loop();
                }
                woken_at.store(0, Ordering::Release);
                let start = now();
                sender_end
                    .post(RECEIVER as u16, number)
                    .context("one message, and full")?;
                sends.push(now() - start);
                let woken = loop {
                    match woken_at.load(Ordering::Acquire) {
                        0 => std::hint::spin_loop(),
                        woken => break woken,
                    }
                };
                wakes.push(woken.saturating_sub(start));
            }
            Ok((wakes, sends, sender_end.counters()))
        });
        let times = sender.join().expect("returns errors")?;
        receiver.join().expect("returns errors")?;
        Ok(times)
    })
}

/// Blocks as a driver does.
fn wait_readable(waker: &EventFdWaker) -> anyhow::Result<()> {
    let mut poll = libc::pollfd {
        fd: waker.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, alive for the call.
    let count = unsafe { libc::poll(&raw mut poll, 1, -1) };
    let error = std::io::Error::last_os_error();
    if count < 0 && error.kind() != std::io::ErrorKind::Interrupted {
        return Err(error).context("poll");
    }
    Ok(())
}
