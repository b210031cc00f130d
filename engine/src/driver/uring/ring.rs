//! The ring itself: set-up, submission, waiting, provided buffers. No table, no policy.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{self, BufRingEntry};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use super::features::{Feature, Features};
use crate::Nanos;
use crate::driver::Wait;
use crate::mailbox::Waker;
use crate::sys::buffer::{Buffer, Pool, Region};

/// Submission entries: one turn's sends. More only means another system call.
const SUBMISSIONS: u32 = 4096;
/// Completion entries asked for; halved while the kernel says ENOMEM (a small memlock).
const COMPLETIONS: u32 = 16_384;
const COMPLETIONS_MIN: u32 = 1024;
/// Completions that end a gathering wait before its time: far below what the smallest queue holds.
const GATHERED_EVENTS: usize = 64;
/// Tries to hand over the rest of a submission that the kernel took only in part (it had no memory
/// for more requests), a millisecond apart when nothing was taken: then the ring is given up.
const SUBMIT_ATTEMPTS_MAX: u32 = 10_000;
const SUBMIT_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
/// IORING_REGISTER_SEND_MSG_RING and IORING_REGISTER_FILE_ALLOC_RANGE, of linux/io_uring.h.
const REGISTER_SEND_MSG_RING: libc::c_uint = 31;
const REGISTER_FILE_ALLOC_RANGE: libc::c_uint = 25;
/// IOU_PBUF_RING_INC of linux/io_uring.h.
const PBUF_RING_INC: u16 = 2;

/// RST instead of FIN when the socket is closed.
static LINGER_RESET: libc::linger = libc::linger {
    l_onoff: 1,
    l_linger: 0,
};

pub(super) struct Ring {
    uring: IoUring,
    /// GETEVENTS runs deferred completions also when nothing is waited for.
    defer: bool,
    /// Completions that had to be taken so that the kernel would take more requests.
    stash: VecDeque<cqueue::Entry>,
}

/// Whether an error of `io_uring_enter` passes by itself.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

impl Ring {
    /// A ring with the best flags of those allowed. Must be called on the thread that uses it.
    pub(super) fn new(features: Features) -> io::Result<Self> {
        let mut completions = COMPLETIONS;
        loop {
            match Self::build(features, SUBMISSIONS.min(completions), completions) {
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOMEM)
                        && completions > COMPLETIONS_MIN =>
                {
                    completions /= 2;
                }
                other => return other,
            }
        }
    }

    fn build(features: Features, submissions: u32, completions: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .setup_clamp()
            .setup_cqsize(completions)
            .setup_submit_all();
        let defer = features.has(Feature::DeferTaskrun);
        if defer {
            builder.setup_single_issuer().setup_defer_taskrun();
        } else if features.has(Feature::CoopTaskrun) {
            builder.setup_coop_taskrun();
        }
        let uring = builder.build(submissions)?;
        if features.has(Feature::RegisteredRing) {
            // Only a look-up is saved: go on without it.
            let _ = uring.submitter().register_ring_fd();
        }
        Ok(Self {
            uring,
            defer,
            stash: VecDeque::new(),
        })
    }

    /// A small ring with no flags, for probes.
    pub(super) fn plain(entries: u32) -> io::Result<Self> {
        Ok(Self {
            uring: IoUring::new(entries)?,
            defer: false,
            stash: VecDeque::new(),
        })
    }

    pub(super) fn raw(&self) -> &IoUring {
        &self.uring
    }

    pub(super) fn submission_capacity(&self) -> usize {
        self.uring.params().sq_entries() as usize
    }

    /// Queues a request, submitting first when the queue is full.
    ///
    /// # Safety
    /// All memory that the entry points to must stay valid and in place until the request has
    /// completed (or, for requests that complete in their submission, until the next submit).
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: passed on to our caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    /// Whether the next request would have to submit the others first.
    #[inline]
    pub(super) fn is_full(&mut self) -> bool {
        self.uring.submission().is_full()
    }

    /// Hands the queued requests to the kernel without waiting: all of them, because the memory
    /// of a tried send is used again as soon as this returns.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            let taken = match self.uring.submit() {
                Ok(taken) => taken,
                Err(error) if is_passing(&error) => 0,
                Err(error) => return Err(error),
            };
            if self.uring.submission().is_empty() {
                return Ok(());
            }
            if taken == 0 {
                // Completions must be taken before more can be submitted, or memory was short.
                let completions = self.uring.completion();
                self.stash.extend(completions);
                std::thread::sleep(SUBMIT_PAUSE);
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// A completion that had to be taken out of its turn.
    #[inline]
    pub(super) fn stashed(&mut self) -> Option<cqueue::Entry> {
        self.stash.pop_front()
    }

    /// Submits and waits.
    pub(super) fn submit_and_wait(&mut self, wait: Wait, now: Nanos) -> io::Result<()> {
        let submitter = self.uring.submitter();
        let timespec;
        let result = match wait {
            Wait::Poll if self.defer => {
                // The crate asks for events only when it waits; a deferring ring needs the request.
                self.submit_and_get_events()
            }
            Wait::Poll => submitter.submit_and_wait(0),
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::Until(deadline) | Wait::Gather(deadline) => {
                let left = deadline.saturating_sub(now);
                timespec = types::Timespec::new()
                    .sec(left / 1_000_000_000)
                    .nsec((left % 1_000_000_000) as u32);
                let events = match wait {
                    Wait::Gather(_) => GATHERED_EVENTS,
                    _ => 1,
                };
                let args = types::SubmitArgs::new().timespec(&timespec);
                submitter.submit_with_args(events, &args)
            }
        };
        Self::forgive(result)?;
        // The kernel takes a part when it has no memory for all, and then does not wait.
        if self.uring.submission().is_empty() {
            Ok(())
        } else {
            self.submit()
        }
    }

    /// What a call may answer without harm.
    fn forgive(result: io::Result<usize>) -> io::Result<()> {
        match result {
            Err(error) if error.raw_os_error() != Some(libc::ETIME) && !is_passing(&error) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn submit_and_get_events(&mut self) -> io::Result<usize> {
        let queued = {
            let mut submission = self.uring.submission();
            submission.sync();
            submission.len()
        };
        let submitter = self.uring.submitter();
        // SAFETY: no argument is passed, and the count is that of the queue.
        unsafe {
            submitter.enter::<libc::sigset_t>(queued as u32, 0, EnterFlags::GETEVENTS.bits(), None)
        }
    }

    /// Whether completions wait in the kernel because the queue was full.
    #[inline]
    pub(super) fn overflowed(&mut self) -> bool {
        self.uring.submission().cq_overflow()
    }

    /// Brings overflowed completions into the queue.
    pub(super) fn flush_overflow(&mut self) -> io::Result<()> {
        Self::forgive(self.submit_and_get_events())
    }

    /// Ends every request that the kernel holds. Closing the descriptor alone does not: others may
    /// hold the ring (a waker), and the kernel takes a closed ring down behind our back, while
    /// memory that its requests point to is being freed.
    pub(super) fn cancel_all(&mut self) {
        let submitter = self.uring.submitter();
        let patience = types::Timespec::new().sec(1);
        let _ = submitter.register_sync_cancel(Some(patience), types::CancelBuilder::any());
        // Lets the cancelled ones run to their end; nothing is submitted.
        // SAFETY: no argument is passed.
        let _ =
            unsafe { submitter.enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None) };
    }

    #[inline]
    pub(super) fn completions(&mut self) -> cqueue::CompletionQueue<'_> {
        self.uring.completion()
    }

    /// Makes the kernel choose slots for accepted files only from `offset` on.
    pub(super) fn reserve_slots(&self, offset: u32, len: u32) -> io::Result<()> {
        #[repr(C)]
        struct FileIndexRange {
            off: u32,
            len: u32,
            resv: u64,
        }
        let range = FileIndexRange {
            off: offset,
            len,
            resv: 0,
        };
        // SAFETY: the struct is that of linux/io_uring.h and lives for the call.
        unsafe {
            register(
                self.uring.as_raw_fd(),
                REGISTER_FILE_ALLOC_RANGE,
                std::ptr::from_ref(&range).cast(),
                0,
            )
        }
    }

    /// Asks for RST at close, through the ring; waits for the answer. For probes.
    pub(super) fn set_linger_reset(&mut self, fd: RawFd) -> io::Result<bool> {
        // SAFETY: the option's value is static.
        unsafe { self.push(&linger_reset(types::Fd(fd)))? };
        self.submit_and_wait(Wait::Forever, 0)?;
        Ok(self
            .completions()
            .next()
            .is_some_and(|completion| completion.result() == 0))
    }

    /// A handle that wakes this ring from any thread.
    pub(super) fn message_waker(&self, user_data: u64) -> io::Result<MessageWaker> {
        // SAFETY: dup of a descriptor that we own gives a new one that nobody else owns.
        let fd = unsafe { libc::fcntl(self.uring.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let ring = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(MessageWaker { ring, user_data })
    }
}

/// The request that makes a close a reset (SO_LINGER with 0 seconds).
pub(super) fn linger_reset(fd: types::Fd) -> squeue::Entry {
    opcode::SetSockOpt::new(
        fd,
        libc::SOL_SOCKET as u32,
        libc::SO_LINGER as u32,
        std::ptr::from_ref(&LINGER_RESET).cast(),
        size_of::<libc::linger>() as u32,
    )
    .build()
}

/// # Safety
/// `argument` must be what the operation expects.
unsafe fn register(
    fd: RawFd,
    operation: libc::c_uint,
    argument: *const libc::c_void,
    count: libc::c_uint,
) -> io::Result<()> {
    // SAFETY: see above.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, fd, operation, argument, count) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Wakes a ring by posting a completion to it, without a ring of one's own (Linux 6.13).
pub(super) struct MessageWaker {
    ring: OwnedFd,
    user_data: u64,
}

impl MessageWaker {
    fn post(&self) -> io::Result<()> {
        let entry =
            opcode::MsgRingData::new(types::Fd(self.ring.as_raw_fd()), 0, self.user_data, None)
                .build();
        // SAFETY: the operation reads one submission entry; descriptor −1 means "no ring of ours".
        unsafe {
            register(
                -1,
                REGISTER_SEND_MSG_RING,
                std::ptr::from_ref(&entry).cast(),
                1,
            )
        }
    }
}

impl Waker for MessageWaker {
    fn wake(&self) {
        // The kernel needs memory to pass it on; a wake-up must not get lost for want of it.
        // Other errors mean that the ring is gone.
        while self.post().is_err_and(|error| is_passing(&error)) {
            std::thread::yield_now();
        }
    }
}

/// Whether a message without a ring arrives.
pub(super) fn message_works(ring: &IoUring) -> bool {
    // SAFETY: dup of a descriptor that is open.
    let fd = unsafe { libc::fcntl(ring.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return false;
    }
    // SAFETY: just made, owned by nobody else.
    let ring = unsafe { OwnedFd::from_raw_fd(fd) };
    let waker = MessageWaker { ring, user_data: 0 };
    waker.post().is_ok()
}

/// A ring of buffers that the kernel takes from when it receives.
pub(super) struct BufferRing {
    pub(super) pool: Pool,
    entries: Region,
    mask: u16,
    tail: u16,
    group: u16,
    incremental: bool,
    /// Which buffer is at each position of the ring, for receives that span several.
    order: Box<[u16]>,
    /// Where each buffer is.
    position: Box<[u16]>,
    /// Bytes that the kernel has already filled of each buffer (incremental only).
    filled: Box<[u32]>,
    lent: usize,
    /// How many buffers to lend: twice what a turn has lately needed. Few buffers in turn stay in
    /// the caches; a ring that lends all of them walks through the whole pool, and copying 32
    /// bytes into a cold line costs as much as a send queue operation (9 % of an echo server).
    wanted: usize,
    wanted_min: usize,
    quiet_turns: u32,
    /// Buffers that the kernel has used since the last look.
    used: usize,
}

/// Lent at least when buffers are small: enough for a burst after a quiet time.
const LENT_MIN: usize = 64;
/// Lent at least when buffers are large: an incremental one takes many receives, a coalesced one
/// many datagrams, and half a megabyte stays in a core's cache.
const LENT_MIN_LARGE: usize = 8;
/// From this length on a buffer is large.
const LARGE_LEN: usize = 32 << 10;
/// One buffer fewer is lent after so many turns that needed less than half of them.
const QUIET_TURNS: u32 = 16;

impl BufferRing {
    /// A ring of `count` (a power of two) buffers of `buffer_len` bytes, all lent to the kernel.
    pub(super) fn new(
        ring: &Ring,
        group: u16,
        count: u16,
        buffer_len: usize,
        incremental: bool,
    ) -> io::Result<Self> {
        let mut buffers = Self::register(ring.raw(), group, count, buffer_len, incremental)?;
        buffers.lend();
        Ok(buffers)
    }

    fn register(
        ring: &IoUring,
        group: u16,
        count: u16,
        buffer_len: usize,
        incremental: bool,
    ) -> io::Result<Self> {
        assert!(count.is_power_of_two());
        let entries = Region::map(usize::from(count) * size_of::<BufRingEntry>())?;
        let flags = if incremental { PBUF_RING_INC } else { 0 };
        // SAFETY: the region is page aligned, large enough, and lives in the returned value, which
        // unregisters nothing because the ring (a field dropped earlier) ends first.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.base() as u64,
                count,
                group,
                flags,
            )?;
        }
        let buffers = usize::from(count);
        let lent_min = if buffer_len >= LARGE_LEN {
            LENT_MIN_LARGE
        } else {
            LENT_MIN
        };
        let wanted_min = lent_min.min(buffers);
        Ok(Self {
            pool: Pool::new(u32::from(count), buffer_len)?,
            entries,
            mask: count - 1,
            tail: 0,
            group,
            incremental,
            order: vec![0; buffers].into(),
            position: vec![0; buffers].into(),
            filled: vec![0; buffers].into(),
            lent: 0,
            wanted: wanted_min,
            wanted_min,
            quiet_turns: 0,
            used: 0,
        })
    }

    /// Whether the kernel knows incremental buffers.
    pub(super) fn try_incremental(ring: &IoUring) -> bool {
        let attempt = Self::register(ring, 0, 8, 4096, true);
        let works = attempt.is_ok();
        let _ = ring.submitter().unregister_buf_ring(0);
        works
    }

    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// Buffers that the kernel may still fill.
    pub(super) fn lent(&self) -> usize {
        self.lent
    }

    /// A receive found no buffer: lend more from now on.
    pub(super) fn exhausted(&mut self) {
        self.wanted = (self.wanted * 2).min(self.pool.capacity());
    }

    /// Gives free buffers to the kernel, the most recently used first.
    #[inline]
    pub(super) fn lend(&mut self) {
        let before = self.tail;
        let used = std::mem::take(&mut self.used);
        if used * 2 > self.wanted {
            self.wanted = (used * 2).min(self.pool.capacity());
        } else if self.wanted > self.wanted_min {
            // Slowly: a burst comes back.
            self.quiet_turns += 1;
            if self.quiet_turns == QUIET_TURNS {
                self.quiet_turns = 0;
                self.wanted -= 1;
            }
        }
        while self.lent < self.wanted {
            let Some(buffer) = self.pool.take() else {
                break;
            };
            let at = self.tail & self.mask;
            let bid = buffer as u16;
            let entry = self
                .entries
                .base()
                .cast::<BufRingEntry>()
                .wrapping_add(usize::from(at));
            // SAFETY: `at` is within the region, and the kernel does not look at entries past the
            // tail that it has been told. The fields are written one by one because the first
            // entry overlaps the ring's tail.
            unsafe {
                (*entry).set_addr(self.pool.address(buffer) as u64);
                (*entry).set_len(self.pool.buffer_len() as u32);
                (*entry).set_bid(bid);
            }
            self.order[usize::from(at)] = bid;
            self.position[usize::from(bid)] = at;
            self.filled[usize::from(bid)] = 0;
            self.tail = self.tail.wrapping_add(1);
            self.lent += 1;
        }
        if self.tail != before {
            // SAFETY: the first entry is initialised memory of the ring, and its tail is only
            // ever written here.
            let tail = unsafe { BufRingEntry::tail(self.entries.base().cast()) };
            // SAFETY: `tail` is a valid, aligned u16 that the kernel reads atomically.
            unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
        }
    }

    /// The bytes of a completed receive, in order; `more` says that the kernel goes on filling the
    /// (last) buffer.
    #[inline]
    pub(super) fn received(
        &mut self,
        bid: u16,
        mut len: usize,
        more: bool,
        mut each: impl FnMut(Buffer),
    ) {
        if self.incremental {
            let at = self.filled[usize::from(bid)];
            if more {
                self.filled[usize::from(bid)] = at + len as u32;
                each(self.pool.share(u32::from(bid), at as usize, len));
            } else {
                self.lent -= 1;
                self.used += 1;
                each(self.pool.adopt(u32::from(bid), at as usize, len));
            }
            return;
        }
        let mut at = self.position[usize::from(bid)];
        loop {
            let bid = self.order[usize::from(at & self.mask)];
            let part = len.min(self.entry_len(at & self.mask));
            self.lent -= 1;
            self.used += 1;
            each(self.pool.adopt(u32::from(bid), 0, part));
            len -= part;
            if len == 0 {
                return;
            }
            at = at.wrapping_add(1);
        }
    }

    /// The length of the buffer at a position, as the kernel sees it: for a bundle it may shorten
    /// the first one, and leaves it so when that receive then takes nothing.
    fn entry_len(&self, at: u16) -> usize {
        let entry = self
            .entries
            .base()
            .cast::<BufRingEntry>()
            .wrapping_add(usize::from(at));
        // SAFETY: `at` is within the region; the kernel has consumed this entry and writes to it
        // no more, and we write it only in `lend`.
        unsafe { (*entry).len() as usize }
    }

    /// A buffer came back with nothing in it (a receive that ended or failed after it took one).
    pub(super) fn returned(&mut self, bid: u16, more: bool) {
        if !more {
            self.lent -= 1;
            self.pool.release(u32::from(bid));
        }
    }
}
