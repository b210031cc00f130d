//! epoll, edge-triggered, and the receive that copies nothing: what the kernel offers and the
//! standard library does not.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events of one wait.
const EVENTS: usize = 1024;

/// Sockets that are watched for something to read.
pub(crate) struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the descriptor was just made and nobody else owns it.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS],
        })
    }

    /// Watches a socket from now on, under this number.
    pub(crate) fn add(&self, socket: &impl AsRawFd, number: usize) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: number as u64,
        };
        let (epoll, fd) = (self.epoll.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: `event` lives for the call.
        let outcome = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if outcome < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits for at most so long, and appends the numbers of sockets with something to read.
    pub(crate) fn wait(&mut self, time: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        // Rounded up, so that the end of a wait is not spun for.
        let time_ms = time.as_millis() as i32 + 1;
        let (epoll, events) = (self.epoll.as_raw_fd(), self.events.as_mut_ptr());
        // SAFETY: `events` has room for `EVENTS` of them and lives for the call.
        let count = unsafe { libc::epoll_wait(epoll, events, EVENTS as i32, time_ms) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        let events = &self.events[..count as usize];
        ready.extend(events.iter().map(|event| event.u64 as usize));
        Ok(())
    }
}

/// Takes up to so many bytes from a TCP socket, which the kernel throws away instead of copying;
/// tcp(7) says so of MSG_TRUNC.
pub(crate) fn discard(socket: RawFd, bytes: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC on a TCP socket nothing is written, so no buffer is needed.
    let count = unsafe { libc::recv(socket, std::ptr::null_mut(), bytes, libc::MSG_TRUNC) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
