//! epoll behind safe functions: an interest list, and a wait with a deadline in nanoseconds.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events taken in one wait. What does not fit is reported by the next one.
const EVENTS_MAX: usize = 1024;

/// What a descriptor is ready for (EPOLLIN, …), and the word that it was registered with.
pub(crate) type Ready = (u32, u64);

/// An epoll instance.
pub(crate) struct Poller {
    fd: OwnedFd,
    events: Box<[libc::epoll_event]>,
    /// epoll_pwait2 (Linux 5.11) is there. Without it timeouts are rounded up to milliseconds.
    nanoseconds: bool,
}

impl Poller {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes an integer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX].into(),
            nanoseconds: true,
        })
    }

    fn control(&self, operation: i32, fd: RawFd, interest: u32, word: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest,
            u64: word,
        };
        // SAFETY: the event lives for the call, which only reads it.
        let answer = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Watches one more descriptor. Closing it ends that.
    pub(crate) fn add(&self, fd: RawFd, interest: u32, word: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, interest, word)
    }

    /// Watches for something else. What is ready already is reported once more.
    pub(crate) fn modify(&self, fd: RawFd, interest: u32, word: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest, word)
    }

    /// Stops watching a descriptor that stays open.
    pub(crate) fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Waits until something is ready or the time is over, never less; `None` waits for ever.
    /// Returns how many are ready (see [`Poller::ready`]): none when a signal came.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        loop {
            let answer = match timeout {
                Some(timeout) if self.nanoseconds && !timeout.is_zero() => {
                    self.wait_precisely(timeout)
                }
                _ => self.wait_milliseconds(timeout),
            };
            if answer >= 0 {
                return Ok(answer as usize);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => return Ok(0),
                // An old kernel, or a filter that does not know the call.
                Some(libc::ENOSYS | libc::EPERM) if self.nanoseconds => self.nanoseconds = false,
                _ => return Err(error),
            }
        }
    }

    fn wait_milliseconds(&mut self, timeout: Option<Duration>) -> i64 {
        let millis = match timeout {
            Some(timeout) => {
                i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
            None => -1,
        };
        let len = self.events.len() as i32;
        // SAFETY: the events are ours and as many as we say.
        let answer =
            unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), len, millis) };
        i64::from(answer)
    }

    fn wait_precisely(&mut self, timeout: Duration) -> i64 {
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
        };
        // By number, because older C libraries have no wrapper.
        // SAFETY: the events are ours and as many as we say; the time lives for the call; no
        // signal mask is given.
        unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                &raw const time,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        }
    }

    /// One of what the last wait reported.
    #[inline]
    pub(crate) fn ready(&self, at: usize) -> Ready {
        let event = self.events[at];
        (event.events, event.u64)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wait_is_never_short_with_either_call() {
        for nanoseconds in [true, false] {
            let mut poller = Poller::new().unwrap();
            poller.nanoseconds = nanoseconds;
            let timeout = Duration::from_nanos(2_300_001);
            let begin = Instant::now();
            assert_eq!(poller.wait(Some(timeout)).unwrap(), 0);
            assert!(begin.elapsed() >= timeout, "pwait2: {nanoseconds}");
        }
    }

    #[test]
    fn reports_the_word_and_every_edge_once() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        let interest = (libc::EPOLLIN | libc::EPOLLET) as u32;
        poller
            .add(reader.as_raw_fd(), interest, u64::MAX - 7)
            .unwrap();
        for _ in 0..2 {
            writer.write_all(b"x").unwrap();
            assert_eq!(poller.wait(None).unwrap(), 1);
            assert_eq!(poller.ready(0), (libc::EPOLLIN as u32, u64::MAX - 7));
            assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap(), 0);
        }
        poller.remove(reader.as_raw_fd()).unwrap();
        writer.write_all(b"x").unwrap();
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap(), 0);
    }
}
