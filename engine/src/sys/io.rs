//! The plain calls of non-blocking stream sockets: accept, connect, receive, send, shut down.
//!
//! None of them ever blocks. A call that a signal interrupted is made again. Errors are error
//! numbers, because the drivers decide by them. Whoever calls owns the descriptors that it names
//! by number; none is opened twice or closed here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::message::{NAME_LEN, parse_name};

/// Flags of every send: no signal when the peer has gone, no waiting.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// The error number of the call that has just failed.
fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// Makes a call until no signal interrupts it.
#[inline]
pub(crate) fn retry(mut call: impl FnMut() -> isize) -> Result<usize, i32> {
    loop {
        let answer = call();
        if answer >= 0 {
            return Ok(answer as usize);
        }
        match errno() {
            libc::EINTR => {}
            other => return Err(other),
        }
    }
}

/// Takes the next connection; its peer's address when that is wanted and an internet one.
pub(crate) fn accept(
    listener: RawFd,
    wants_peer: bool,
) -> Result<(OwnedFd, Option<SocketAddr>), i32> {
    let mut name = [0_u8; NAME_LEN];
    let mut len = NAME_LEN as libc::socklen_t;
    let (to, to_len) = match wants_peer {
        true => (name.as_mut_ptr(), &raw mut len),
        false => (std::ptr::null_mut(), std::ptr::null_mut()),
    };
    let fd = retry(|| {
        // SAFETY: both pointers are null, or name memory of ours that is as long as `len` says;
        // the kernel writes no more than that.
        unsafe {
            libc::accept4(
                listener,
                to.cast(),
                to_len,
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            ) as isize
        }
    })?;
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let known = &name[..(len as usize).min(NAME_LEN)];
    Ok((fd, if wants_peer { parse_name(known) } else { None }))
}

/// Starts to connect. EINPROGRESS is the usual answer; `Ok` when the peer is there at once.
pub(crate) fn connect(fd: &OwnedFd, to: &socket2::SockAddr) -> Result<(), i32> {
    // SAFETY: the address is valid for its length and only read.
    let answer = unsafe { libc::connect(fd.as_raw_fd(), to.as_ptr().cast(), to.len()) };
    // Not made again after a signal: the connect goes on by itself then, as after EINPROGRESS.
    if answer == 0 { Ok(()) } else { Err(errno()) }
}

/// Receives what is there; 0 when the peer has ended.
///
/// # Safety
/// `to` must be writable for `len` bytes that nobody else reads or writes during the call.
#[inline]
pub(crate) unsafe fn receive(fd: RawFd, to: *mut u8, len: usize) -> Result<usize, i32> {
    retry(|| {
        // SAFETY: the caller vouches for the memory.
        unsafe { libc::recv(fd, to.cast(), len, libc::MSG_DONTWAIT) }
    })
}

/// Sends what there is room for.
#[inline]
pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> Result<usize, i32> {
    retry(|| {
        // SAFETY: the bytes are borrowed for the call, which only reads them.
        unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS) }
    })
}

/// Sends several pieces as one, as far as there is room.
pub(crate) fn send_pieces(fd: RawFd, pieces: &[io::IoSlice<'_>]) -> Result<usize, i32> {
    // SAFETY: an all-zero msghdr is a valid one: null pointers and zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    // IoSlice has the layout of iovec; the kernel only reads what it points to.
    header.msg_iov = pieces.as_ptr().cast_mut().cast();
    header.msg_iovlen = pieces.len();
    retry(|| {
        // SAFETY: header and pieces are borrowed for the call.
        unsafe { libc::sendmsg(fd, &raw const header, SEND_FLAGS) }
    })
}

/// Tells the peer that nothing more will come.
pub(crate) fn shutdown_write(fd: RawFd) -> Result<(), i32> {
    // SAFETY: takes two integers.
    let answer = unsafe { libc::shutdown(fd, libc::SHUT_WR) };
    if answer == 0 { Ok(()) } else { Err(errno()) }
}
