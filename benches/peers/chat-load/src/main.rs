//! The members of a chat, to load it: all count what is delivered to them, some send.
//!
//! Closed loop: a sender has at most `--window` messages under way until its own come back to it, so
//! that the chat sets the pace and nothing piles up without bound. Each message of 32 bytes is one
//! write, and carries its sender and its number; senders and a sample of the others verify that
//! each sender's messages come in order and once. Other members count bytes.
//!
//! Prints JSON: `measuring` when the measured window begins, `interval` while it lasts, `report` at
//! its end. One thread.

mod member;
mod poll;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::{Value, json};

use crate::member::{Check, MESSAGE_BYTES, Member};
use crate::poll::Poll;

/// Between two `interval` events.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often senders are looked at whose messages do not come back.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A chat may drop messages: what has not come back by then is taken for lost, and its sender goes
/// on.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// One read. What a member has not read yet is rarely more.
const READ_BYTES: usize = 256 << 10;
/// Messages in one write, and under way, while queues are filled.
const FILL_BURST: u64 = 128;
const FILL_WINDOW: u64 = 16 * FILL_BURST;

/// Members of a chat who send, count and check what comes.
#[derive(Debug, Parser)]
struct Flags {
    /// The chat: ADDR:PORT.
    chat: SocketAddr,
    /// Connections.
    #[arg(long, default_value_t = 1000)]
    members: usize,
    /// Members that send.
    #[arg(long, default_value_t = 1)]
    senders: usize,
    /// Messages that a sender may have under way.
    #[arg(long, default_value_t = 1)]
    window: u64,
    /// Members that never read, in percent; none of them sends.
    #[arg(long, default_value_t = 0)]
    deaf_percent: usize,
    /// Before all else, messages of so many bytes in sum as fast as they go, to fill the queues of
    /// members that never read.
    #[arg(long, default_value_t = 0)]
    fill_bytes: u64,
    /// Members beside the senders that verify what comes.
    #[arg(long, default_value_t = 10)]
    sample: usize,
    /// Measured seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before the measured ones.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let deaf = flags.members * flags.deaf_percent / 100;
    let reading = flags.members.saturating_sub(deaf);
    ensure!(
        flags.senders >= 1 && flags.senders <= reading && flags.window >= 1,
        "there must be a sender, a window, and no more senders than the {reading} members who read"
    );
    peer_common::lift_file_limit();
    let mut load = Load::join(&flags, reading)?;
    load.fill(flags.fill_bytes / MESSAGE_BYTES as u64)?;
    load.pace = Pace {
        senders: flags.senders,
        window: flags.window,
        burst: 1,
    };
    load.start_sending()?;
    load.run_until(Instant::now() + Duration::from_secs_f64(flags.warmup))?;

    println!("{}", json!({ "type": "measuring" }));
    let start = Instant::now();
    let before: Vec<u64> = load.members.iter().map(|member| member.bytes).collect();
    let sent_before = load.sent();
    let end = start + Duration::from_secs_f64(flags.seconds);
    while Instant::now() < end {
        load.run_until(end.min(Instant::now() + INTERVAL))?;
        println!("{}", json!({ "type": "interval" }));
    }
    let seconds = start.elapsed().as_secs_f64();
    let each: Vec<u64> = load.members[..reading]
        .iter()
        .zip(&before)
        .map(|(member, before)| member.bytes - before)
        .collect();
    println!("{}", load.report(&flags, &each, sent_before, seconds));
    Ok(())
}

/// How members send.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The first so many send.
    senders: usize,
    /// Messages of each under way.
    window: u64,
    /// Messages in one write.
    burst: u64,
}

/// All members: senders first, then others who read, then those who do not.
struct Load {
    poll: Poll,
    members: Vec<Member>,
    pace: Pace,
    buffer: Vec<u8>,
    ready: Vec<usize>,
    next_look: Instant,
    /// Times that a sender's messages were taken for lost.
    expired: u64,
}

impl Load {
    fn join(flags: &Flags, reading: usize) -> anyhow::Result<Self> {
        let mut members = Vec::with_capacity(flags.members);
        for number in 0..flags.members {
            let joined = if number < reading {
                Member::join(flags.chat)
            } else {
                Member::join_deaf(flags.chat)
            };
            let mut member = joined.with_context(|| format!("member {number} cannot join"))?;
            if number < reading.min(flags.senders + flags.sample) {
                let own = (number < flags.senders).then_some(number);
                member.check = Some(Check::new(flags.senders, own));
            }
            members.push(member);
        }
        let poll = Poll::new()?;
        for (number, member) in members[..reading].iter().enumerate() {
            poll.add(&member.stream, number)?;
        }
        Ok(Self {
            poll,
            members,
            pace: Pace {
                senders: 1,
                window: FILL_WINDOW,
                burst: FILL_BURST,
            },
            buffer: vec![0; READ_BYTES],
            ready: Vec::new(),
            next_look: Instant::now(),
            expired: 0,
        })
    }

    fn sent(&self) -> u64 {
        let senders = &self.members[..self.pace.senders];
        senders.iter().map(|member| member.sent).sum()
    }

    fn start_sending(&mut self) -> anyhow::Result<()> {
        for sender in &mut self.members[..self.pace.senders] {
            sender.last_back = Instant::now();
            sender.fill_window(self.pace.window, self.pace.burst)?;
        }
        Ok(())
    }

    fn fill(&mut self, messages: u64) -> anyhow::Result<()> {
        if messages > 0 {
            self.start_sending()?;
        }
        while self.members[0].back < messages {
            self.run_until(Instant::now() + LOOK_INTERVAL)?;
        }
        Ok(())
    }

    fn run_until(&mut self, end: Instant) -> anyhow::Result<()> {
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            if now >= self.next_look {
                self.next_look = now + LOOK_INTERVAL;
                self.expire(now)?;
            }
            let wait = end.min(self.next_look) - now;
            self.poll.wait(wait, &mut self.ready)?;
            for number in self.ready.drain(..) {
                let member = &mut self.members[number];
                let came_back = member
                    .receive(&mut self.buffer)
                    .with_context(|| format!("member {number}"))?;
                if came_back && number < self.pace.senders {
                    member.last_back = now;
                    member.fill_window(self.pace.window, self.pace.burst)?;
                }
            }
        }
    }

    fn expire(&mut self, now: Instant) -> anyhow::Result<()> {
        for sender in &mut self.members[..self.pace.senders] {
            if now.saturating_duration_since(sender.last_back) > LOST_AFTER {
                sender.last_back = now;
                sender.back = sender.sent;
                self.expired += 1;
            }
            // Also where the kernel had no room before.
            sender.fill_window(self.pace.window, self.pace.burst)?;
        }
        Ok(())
    }

    fn report(&self, flags: &Flags, each: &[u64], sent_before: u64, seconds: f64) -> Value {
        let message = MESSAGE_BYTES as u64;
        let deliveries = each.iter().sum::<u64>() / message;
        let checks = || {
            self.members
                .iter()
                .filter_map(|member| member.check.as_ref())
        };
        let sum = |of: fn(&Check) -> u64| checks().map(of).sum::<u64>();
        let rate = |bytes: Option<&u64>| bytes.map(|bytes| (bytes / message) as f64 / seconds);
        json!({
            "type": "report",
            "members": flags.members,
            "reading": each.len(),
            "senders": flags.senders,
            "window": flags.window,
            "seconds": seconds,
            "messages_sent": self.sent() - sent_before,
            "deliveries": deliveries,
            "messages_per_s": deliveries as f64 / seconds,
            "bytes_per_s": (deliveries * message) as f64 / seconds,
            "member_messages_per_s": {
                "mean": deliveries as f64 / seconds / each.len() as f64,
                "min": rate(each.iter().min()),
                "max": rate(each.iter().max()),
            },
            "verified_by": checks().count(),
            "verified": sum(|check| check.verified),
            "order_violations": sum(|check| check.order_violations),
            "duplicates": sum(|check| check.duplicates),
            "missed": sum(|check| check.missed),
            "wrong_bytes": sum(|check| check.wrong) * message,
            "windows_expired": self.expired,
        })
    }
}
