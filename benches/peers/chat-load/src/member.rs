//! One member of the chat: joins, sends within its window, counts and verifies what comes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use peer_common::CHAT_GREETING;
use socket2::{Domain, Protocol, Socket, Type};

use crate::poll;

/// A message: a mark, its sender and its number, then nothing.
pub(crate) const MESSAGE_BYTES: usize = 32;
const MARK: u32 = 0x6368_6174;
/// A chat greets within this, or it is none.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Who never reads should be full soon; the kernel makes more of it.
const DEAF_RECEIVE_BYTES: usize = 4096;

/// One connection.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) stream: TcpStream,
    /// Bytes received after the greeting.
    pub(crate) bytes: u64,
    /// Its own messages: written so far, and come back or taken for lost.
    pub(crate) sent: u64,
    pub(crate) back: u64,
    pub(crate) last_back: Instant,
    /// None: it only counts.
    pub(crate) check: Option<Check>,
}

impl Member {
    /// Connects and takes the greeting: from then on, every message comes here.
    pub(crate) fn join(chat: SocketAddr) -> anyhow::Result<Self> {
        let mut member = Self::connect(chat, None)?;
        let mut greeting = vec![0; CHAT_GREETING.len()];
        let read = member.stream.read_exact(&mut greeting);
        read.context("no greeting came")?;
        ensure!(
            greeting == CHAT_GREETING,
            "this is no chat: it said {:?}",
            String::from_utf8_lossy(&greeting)
        );
        member.stream.set_nonblocking(true)?;
        Ok(member)
    }

    /// Connects and never reads; waits for the greeting all the same.
    pub(crate) fn join_deaf(chat: SocketAddr) -> anyhow::Result<Self> {
        let member = Self::connect(chat, Some(DEAF_RECEIVE_BYTES))?;
        let greeted = member.stream.peek(&mut [0]);
        greeted.context("no greeting came")?;
        Ok(member)
    }

    fn connect(chat: SocketAddr, receive_bytes: Option<usize>) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::for_address(chat), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.connect(&chat.into())?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(JOIN_TIMEOUT))?;
        Ok(Self {
            stream,
            bytes: 0,
            sent: 0,
            back: 0,
            last_back: Instant::now(),
            check: None,
        })
    }

    /// Writes as many messages as may be under way, so many by each write.
    pub(crate) fn fill_window(&mut self, window: u64, burst: u64) -> anyhow::Result<()> {
        let Some(own) = self.check.as_ref().and_then(|check| check.own) else {
            return Ok(());
        };
        while self.sent - self.back + burst <= window {
            let numbers = self.sent..self.sent + burst;
            let outcome = match burst {
                1 => self.stream.write(&encode(own as u32, self.sent)),
                _ => {
                    let messages: Vec<u8> = numbers.flat_map(|n| encode(own as u32, n)).collect();
                    self.stream.write(&messages)
                }
            };
            match outcome {
                Ok(count) if count as u64 == burst * MESSAGE_BYTES as u64 => self.sent += burst,
                Ok(count) => bail!("the kernel took only {count} bytes of {burst} messages"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        Ok(())
    }

    /// Takes all that has come. `true` when messages of its own were among it.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> anyhow::Result<bool> {
        let mut came_back = false;
        loop {
            let outcome = match &self.check {
                Some(_) => self.stream.read(buffer),
                None => poll::discard(self.stream.as_raw_fd(), buffer.len()),
            };
            let count = match outcome {
                Ok(0) => bail!("the chat closed the connection"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(came_back),
                Err(error) => return Err(error).context("cannot receive"),
            };
            self.bytes += count as u64;
            if let Some(check) = &mut self.check
                && let Some(last) = check.take(&buffer[..count])
            {
                self.back = last + 1;
                came_back = true;
            }
            // Less than asked for: the next would find nothing, and epoll tells when more comes.
            if count < buffer.len() {
                return Ok(came_back);
            }
        }
    }
}

fn encode(sender: u32, number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..4].copy_from_slice(&MARK.to_le_bytes());
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    message[8..16].copy_from_slice(&number.to_le_bytes());
    message
}

/// What a member that looks at its messages has seen.
#[derive(Debug)]
pub(crate) struct Check {
    /// Which sender it is itself, if it is one.
    own: Option<usize>,
    /// The number that should come next, by sender.
    expected: Vec<u64>,
    /// The beginning of a message whose end has not come.
    partial: Vec<u8>,
    pub(crate) verified: u64,
    /// Messages older than the last of their sender.
    pub(crate) order_violations: u64,
    /// The last of their sender once more.
    pub(crate) duplicates: u64,
    /// Numbers that were passed over.
    pub(crate) missed: u64,
    /// Messages that nobody sent.
    pub(crate) wrong: u64,
}

impl Check {
    pub(crate) fn new(senders: usize, own: Option<usize>) -> Self {
        Self {
            own,
            expected: vec![0; senders],
            partial: Vec::new(),
            verified: 0,
            order_violations: 0,
            duplicates: 0,
            missed: 0,
            wrong: 0,
        }
    }

    /// Verifies what came; the number of its own last message among it.
    fn take(&mut self, mut data: &[u8]) -> Option<u64> {
        let mut own = None;
        if !self.partial.is_empty() {
            let missing = (MESSAGE_BYTES - self.partial.len()).min(data.len());
            let (end, rest) = data.split_at(missing);
            self.partial.extend_from_slice(end);
            data = rest;
            if self.partial.len() < MESSAGE_BYTES {
                return None;
            }
            let whole = std::mem::take(&mut self.partial);
            own = self.one(&whole);
        }
        let mut messages = data.chunks_exact(MESSAGE_BYTES);
        for message in &mut messages {
            own = self.one(message).or(own);
        }
        self.partial.extend_from_slice(messages.remainder());
        own
    }

    fn one(&mut self, message: &[u8]) -> Option<u64> {
        let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap_or([0; 4]));
        let number = u64::from(word(8)) | u64::from(word(12)) << 32;
        let sender = word(4) as usize;
        let Some(expected) = self.expected.get_mut(sender).filter(|_| word(0) == MARK) else {
            self.wrong += 1;
            return None;
        };
        self.verified += 1;
        if number >= *expected {
            self.missed += number - *expected;
            *expected = number + 1;
        } else if number + 1 == *expected {
            self.duplicates += 1;
        } else {
            self.order_violations += 1;
        }
        (self.own == Some(sender)).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_held_against_what_was_sent() {
        // Messages as (sender, number); order violations, duplicates, missed, wrong; the own last.
        type Case<'a> = (&'a [(u32, u64)], [u64; 4], Option<u64>);
        let cases: &[Case<'_>] = &[
            (&[(0, 0), (0, 1), (1, 0), (1, 1)], [0; 4], Some(1)),
            (&[(0, 0), (0, 1), (0, 2)], [0; 4], None),
            (&[(0, 0), (0, 0)], [0, 1, 0, 0], None),
            (&[(0, 0), (0, 1), (0, 0)], [1, 0, 0, 0], None),
            (&[(1, 4)], [0, 0, 4, 0], Some(4)),
            (&[(7, 0)], [0, 0, 0, 1], None),
        ];
        for (messages, faults, own) in cases {
            let bytes: Vec<u8> = messages.iter().flat_map(|(s, n)| encode(*s, *n)).collect();
            for cut in [1, 7, 32, 33, 1000] {
                let mut check = Check::new(2, Some(1));
                let mut last = None;
                for part in bytes.chunks(cut) {
                    last = check.take(part).or(last);
                }
                let Check {
                    order_violations,
                    duplicates,
                    missed,
                    wrong,
                    ..
                } = check;
                let found = [order_violations, duplicates, missed, wrong];
                assert_eq!((found, last), (*faults, *own), "{messages:?} by {cut}");
            }
        }
    }
}
