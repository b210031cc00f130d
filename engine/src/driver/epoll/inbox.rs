//! Where the bytes of streams are received: large pooled buffers that many receives share.
//!
//! A receive takes only what it fills. So a turn of a thousand small messages touches some tens of
//! kilobytes one after the other, and when all of them have been answered the next turn writes to
//! the same memory again, which is then still in the cache. A stream never owns a buffer.

use std::os::fd::RawFd;

use crate::Buffer;
use crate::sys::buffer::Pool;
use crate::sys::io;

/// One buffer: a large transfer gets this much in one receive.
const BUFFER_LEN: usize = 64 << 10;
/// With less room than this left the next buffer is begun, so that a large transfer is not cut
/// into small receives.
const ROOM_MIN: usize = 16 << 10;

/// What a receive gave.
pub(super) enum Received {
    /// Bytes. `filled` when they took all the room, so that more may wait.
    Data { data: Buffer, filled: bool },
    /// The peer has sent FIN.
    End,
    /// Nothing waits.
    Nothing,
    /// No buffer is free now, but those of this turn are about to come back.
    Later,
    /// The stream has failed.
    Failed(i32),
}

/// See the module documentation.
pub(super) struct Inbox {
    pool: Pool,
    /// The buffer that is being filled, and up to where it is.
    current: Option<u32>,
    at: usize,
    /// Buffers that this turn has begun.
    begun: usize,
    /// For receives while protocols keep all buffers: then the bytes are copied out.
    scratch: Box<[u8]>,
    /// Times that no buffer was free since this was last asked.
    exhausted: u64,
}

impl Inbox {
    /// With buffers of about so many bytes together; memory on first use.
    pub(super) fn new(bytes: usize) -> std::io::Result<Self> {
        let count = (bytes / BUFFER_LEN).clamp(4, 1 << 16) as u32;
        Ok(Self {
            pool: Pool::new(count, BUFFER_LEN)?,
            current: None,
            at: 0,
            begun: 0,
            scratch: Box::new([]),
            exhausted: 0,
        })
    }

    /// Buffers of which a protocol or a queue holds a part.
    pub(super) fn held(&self) -> usize {
        let ours = self
            .current
            .is_some_and(|current| self.pool.is_sole(current));
        self.pool.capacity() - self.pool.available() - usize::from(ours)
    }

    /// A new turn begins: memory that nobody holds any more is used again.
    pub(super) fn begin_turn(&mut self) {
        self.begun = 0;
        if self
            .current
            .is_some_and(|current| self.pool.is_sole(current))
        {
            self.at = 0;
        }
    }

    /// Times that no buffer was free since the last call.
    pub(super) fn take_exhausted(&mut self) -> u64 {
        std::mem::take(&mut self.exhausted)
    }

    /// The buffer to receive into, with enough room.
    #[inline]
    fn room(&mut self) -> Option<u32> {
        if self.current.is_some() && BUFFER_LEN - self.at >= ROOM_MIN {
            return self.current;
        }
        if let Some(full) = self.current.take() {
            self.pool.release(full);
        }
        self.current = self.pool.take();
        self.at = 0;
        self.begun += usize::from(self.current.is_some());
        self.current
    }

    /// Receives once.
    #[inline]
    pub(super) fn receive(&mut self, fd: RawFd) -> Received {
        let Some(current) = self.room() else {
            return self.receive_copied(fd);
        };
        let (at, room) = (self.at, BUFFER_LEN - self.at);
        // SAFETY: the address is that of a buffer which we took from the pool and hold; the room
        // from `at` to its end has not been given to anybody since it was last free.
        let result = unsafe { io::receive(fd, self.pool.address(current).add(at), room) };
        match result {
            Ok(0) => Received::End,
            Ok(len) => {
                self.at += len;
                Received::Data {
                    data: self.pool.share(current, at, len),
                    filled: len == room,
                }
            }
            Err(libc::EAGAIN) => Received::Nothing,
            Err(errno) => Received::Failed(errno),
        }
    }

    #[cold]
    fn receive_copied(&mut self, fd: RawFd) -> Received {
        self.exhausted += 1;
        if self.begun > 0 {
            return Received::Later;
        }
        if self.scratch.is_empty() {
            self.scratch = vec![0; BUFFER_LEN].into();
        }
        // SAFETY: the memory is ours and as long as we say.
        match unsafe { io::receive(fd, self.scratch.as_mut_ptr(), self.scratch.len()) } {
            Ok(0) => Received::End,
            Ok(len) => Received::Data {
                data: Buffer::copied(&self.scratch[..len]),
                filled: len == self.scratch.len(),
            },
            Err(libc::EAGAIN) => Received::Nothing,
            Err(errno) => Received::Failed(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn data(received: Received) -> Buffer {
        match received {
            Received::Data { data, .. } => data,
            _ => panic!("data was sent"),
        }
    }

    #[test]
    fn small_receives_share_a_buffer_and_its_memory_is_used_again() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(4 * BUFFER_LEN).unwrap();
        let mut first_at = None;
        for turn in 0..3_u8 {
            inbox.begin_turn();
            let mut kept = Vec::new();
            for message in 0..10_u8 {
                writer.write_all(&[turn, message]).unwrap();
                kept.push(data(inbox.receive(reader.as_raw_fd())));
            }
            assert_eq!(inbox.held(), 1);
            for (message, buffer) in kept.iter().enumerate() {
                assert_eq!(&buffer[..], [turn, message as u8]);
            }
            let at = kept[0].as_ptr();
            assert_eq!(*first_at.get_or_insert(at), at, "turn {turn}");
        }
        assert_eq!(inbox.held(), 0);
    }

    #[test]
    fn when_everything_is_kept_bytes_are_copied_out() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(4 * BUFFER_LEN).unwrap();
        let mut kept = Vec::new();
        let big = vec![7; BUFFER_LEN];
        for _ in 0..4 {
            inbox.begin_turn();
            writer.write_all(&big).unwrap();
            while let Received::Data { data, .. } = inbox.receive(reader.as_raw_fd()) {
                kept.push(data);
            }
        }
        assert_eq!(
            kept.iter().map(|part| part.len()).sum::<usize>(),
            4 * BUFFER_LEN
        );
        writer.write_all(b"once more").unwrap();
        inbox.begin_turn();
        assert_eq!(&data(inbox.receive(reader.as_raw_fd()))[..], b"once more");
        assert!(inbox.take_exhausted() > 0);
        kept.clear();
        assert_eq!(inbox.held(), 0);
    }
}
