//! An eventfd: a descriptor that becomes readable when another thread rings it. It wakes a
//! shard that sleeps in its driver; it carries no data, only "look into your mailboxes".

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::mailbox::Waker;

/// Wakes the driver that waits for this descriptor to become readable.
///
/// Clones share one eventfd: the driver keeps one to wait on and to [`drain`](Self::drain),
/// the other is registered as the shard's [`Waker`]. The descriptor does not block, so
/// io_uring must wait for it by a poll (a read of it would end with EAGAIN at once).
/// Whoever polls edge-triggered (EPOLLET, multishot poll) need not drain at all: every ring
/// is an edge, and the counter holds 2⁶⁴ − 2 of them.
#[derive(Debug, Clone)]
pub struct EventFdWaker {
    descriptor: Arc<OwnedFd>,
}

impl EventFdWaker {
    /// A new eventfd, closed on exec, not readable yet.
    ///
    /// # Errors
    /// What eventfd(2) says: EMFILE or ENFILE where the limit of open files is reached,
    /// ENOMEM.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes two integers and touches no memory of ours.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self {
            descriptor: Arc::new(descriptor),
        })
    }

    /// Takes all rings so far, so that the descriptor is no longer readable, and says how
    /// many they were. Never blocks.
    ///
    /// # Errors
    /// None that a healthy process can see; what read(2) says otherwise.
    pub fn drain(&self) -> io::Result<u64> {
        let mut rings = [0; size_of::<u64>()];
        loop {
            // SAFETY: the buffer is ours, writable, and as long as we say.
            let read = unsafe {
                libc::read(
                    self.descriptor.as_raw_fd(),
                    rings.as_mut_ptr().cast(),
                    rings.len(),
                )
            };
            if read >= 0 {
                return Ok(u64::from_ne_bytes(rings));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(0),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
    }
}

impl Waker for EventFdWaker {
    fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        loop {
            // SAFETY: the buffer is ours, readable, and as long as we say.
            let written =
                unsafe { libc::write(self.descriptor.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            if written >= 0 {
                return;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                // The counter is full, so the descriptor is readable and the shard awake.
                io::ErrorKind::WouldBlock => return,
                // A descriptor that we own and hold open knows no other error. A shard that
                // is never woken must not go unnoticed.
                _ => panic!("cannot wake a shard: writing to its eventfd failed: {error}"),
            }
        }
    }
}

impl AsFd for EventFdWaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for EventFdWaker {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(waker: &EventFdWaker) -> bool {
        let mut poll = libc::pollfd {
            fd: waker.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, and a timeout of zero.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn is_readable_from_the_ring_until_drained() {
        let waker = EventFdWaker::new().unwrap();
        assert!(!readable(&waker));
        assert_eq!(waker.drain().unwrap(), 0);
        waker.wake();
        waker.clone().wake();
        assert!(readable(&waker));
        assert_eq!(waker.drain().unwrap(), 2);
        assert!(!readable(&waker));
    }

    #[test]
    fn a_full_counter_is_a_ring_all_the_same() {
        let waker = EventFdWaker::new().unwrap();
        let full = (u64::MAX - 1).to_ne_bytes();
        // SAFETY: the buffer is ours, readable, and as long as we say.
        let written = unsafe { libc::write(waker.as_raw_fd(), full.as_ptr().cast(), full.len()) };
        assert_eq!(written, 8);
        waker.wake();
        assert!(readable(&waker));
    }
}
