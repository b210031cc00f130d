//! Many datagrams in one system call: recvmmsg into pooled buffers, sendmmsg from borrowed bytes.
//!
//! Both keep the headers that the kernel reads and writes between calls, so that a call costs what
//! it moves. With GRO and GSO each message of a batch may itself be many datagrams.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use super::buffer::Pool;
use super::io::retry;
use super::message::{self, CONTROL_LEN, Control, NAME_LEN, Name};
use crate::Buffer;
use crate::datagram::Datagram;

/// Messages taken in one receive: with GRO each may be 64 KiB, and no more than a megabyte stays
/// in a core's cache (the copy out of the kernel is four fifths of the cost).
const RECEIVE_BATCH: usize = 16;
/// Messages given in one send.
pub(crate) const SEND_BATCH: usize = 64;
/// One datagram buffer: the most that the kernel coalesces, and an odd rest so that the beginnings
/// of neighbouring buffers do not compete for the same lines of the cache.
const BUFFER_LEN: usize = 64 * 1024 + 256;

fn empty_header() -> libc::mmsghdr {
    // SAFETY: an all-zero mmsghdr is a valid one: null pointers and zero lengths.
    unsafe { std::mem::zeroed() }
}

fn empty_vector() -> libc::iovec {
    libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }
}

/// Where the kernel writes what it says about a datagram.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Space {
    control: [u8; CONTROL_LEN],
    name: [u8; NAME_LEN],
}

/// Receives batches of datagrams.
pub(crate) struct ReceiveBatch {
    pool: Pool,
    /// The buffers in the first slots: lent to the next receive.
    lent: Vec<u32>,
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    spaces: Box<[Space]>,
    /// For a receive while no buffer is free.
    scratch: Box<[u8]>,
}

impl ReceiveBatch {
    /// With `count` buffers of 64 KiB, memory on first use.
    pub(crate) fn new(count: u32) -> std::io::Result<Self> {
        let mut batch = Self {
            pool: Pool::new(count, BUFFER_LEN)?,
            lent: Vec::with_capacity(RECEIVE_BATCH),
            headers: vec![empty_header(); RECEIVE_BATCH].into(),
            vectors: vec![empty_vector(); RECEIVE_BATCH].into(),
            spaces: vec![
                Space {
                    control: [0; CONTROL_LEN],
                    name: [0; NAME_LEN]
                };
                RECEIVE_BATCH
            ]
            .into(),
            scratch: Box::new([]),
        };
        batch.lend();
        Ok(batch)
    }

    /// Buffers that are neither free nor lent to the kernel.
    pub(crate) fn held(&self) -> usize {
        self.pool.capacity() - self.pool.available() - self.lent.len()
    }

    /// Fills the empty slots with free buffers; returns how many slots are filled.
    pub(crate) fn lend(&mut self) -> usize {
        while self.lent.len() < RECEIVE_BATCH {
            let Some(buffer) = self.pool.take() else {
                break;
            };
            self.lent.push(buffer);
            self.prepare(self.lent.len() - 1);
        }
        self.lent.len()
    }

    fn prepare(&mut self, slot: usize) {
        let base = self.pool.address(self.lent[slot]);
        self.prepare_at(slot, base, BUFFER_LEN);
    }

    fn prepare_at(&mut self, slot: usize, base: *mut u8, len: usize) {
        self.vectors[slot] = libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        };
        let space = &mut self.spaces[slot];
        let header = &mut self.headers[slot].msg_hdr;
        header.msg_iov = &raw mut self.vectors[slot];
        header.msg_iovlen = 1;
        header.msg_name = space.name.as_mut_ptr().cast();
        header.msg_namelen = NAME_LEN as libc::socklen_t;
        header.msg_control = space.control.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_LEN;
        header.msg_flags = 0;
    }

    fn call(&mut self, fd: RawFd, count: usize) -> Result<usize, i32> {
        retry(|| {
            // SAFETY: the first `count` headers were prepared: they point to their own slots of
            // `vectors` and `spaces`, boxed and never moved, and to buffers that the pool has
            // given us (or the scratch memory) and that nobody reads before the call returns.
            unsafe {
                libc::recvmmsg(
                    fd,
                    self.headers.as_mut_ptr(),
                    count as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                ) as isize
            }
        })
    }

    /// Who sent what is in a slot, and what the kernel says about it.
    fn about(&self, slot: usize) -> (Option<SocketAddr>, message::Received) {
        let header = &self.headers[slot].msg_hdr;
        let space = &self.spaces[slot];
        let peer = message::parse_name(&space.name[..(header.msg_namelen as usize).min(NAME_LEN)]);
        let control =
            message::parse_control(&space.control[..header.msg_controllen.min(CONTROL_LEN)]);
        (peer, control)
    }

    /// Receives into the lent buffers. Returns how many messages there were, and whether there
    /// may be more.
    pub(crate) fn receive(
        &mut self,
        fd: RawFd,
        mut each: impl FnMut(Datagram),
    ) -> Result<(usize, bool), i32> {
        let lent = self.lent.len();
        let count = self.call(fd, lent)?;
        for slot in 0..count {
            let (peer, control) = self.about(slot);
            let data = self
                .pool
                .adopt(self.lent[slot], 0, self.headers[slot].msg_len as usize);
            if let Some(peer) = peer {
                each(datagram(peer, control, data));
            }
        }
        // New buffers for the used slots; where there is none the last slot moves up.
        for slot in (0..count).rev() {
            match self.pool.take() {
                Some(buffer) => self.lent[slot] = buffer,
                None => {
                    self.lent.swap_remove(slot);
                }
            }
            if slot < self.lent.len() {
                self.prepare(slot);
            }
        }
        Ok((count, count == lent))
    }

    /// Receives one message while no buffer is free, into memory of its own.
    pub(crate) fn receive_copied(
        &mut self,
        fd: RawFd,
        each: impl FnOnce(Datagram),
    ) -> Result<(), i32> {
        assert!(self.lent.is_empty(), "slot 0 is in use");
        if self.scratch.is_empty() {
            self.scratch = vec![0; BUFFER_LEN].into();
        }
        let base = self.scratch.as_mut_ptr();
        self.prepare_at(0, base, BUFFER_LEN);
        self.call(fd, 1)?;
        let (peer, control) = self.about(0);
        let data = Buffer::copied(&self.scratch[..self.headers[0].msg_len as usize]);
        if let Some(peer) = peer {
            each(datagram(peer, control, data));
        }
        Ok(())
    }
}

fn datagram(peer: SocketAddr, control: message::Received, data: Buffer) -> Datagram {
    let stride = control
        .stride
        .unwrap_or(u16::try_from(data.len()).unwrap_or(u16::MAX));
    Datagram {
        peer,
        local: control.local,
        ecn: control.ecn,
        stride,
        data,
    }
}

/// One message of a send.
pub(crate) struct Outgoing<P> {
    /// The receiver; `None` on a connected socket.
    pub(crate) peer: Option<SocketAddr>,
    /// The address to send from, when it must be a certain one.
    pub(crate) source: Option<IpAddr>,
    /// The traffic class octet: code point and ECN bits.
    pub(crate) class: u8,
    /// Where the kernel cuts the bytes into datagrams (GSO); `None` for one datagram.
    pub(crate) segment: Option<u16>,
    /// The bytes, in pieces that follow each other.
    pub(crate) pieces: P,
}

/// Pieces of all messages of one send.
pub(crate) const SEND_PIECES_MAX: usize = 4 * SEND_BATCH;

/// Sends batches of datagrams.
pub(crate) struct SendBatch {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
}

impl SendBatch {
    pub(crate) fn new() -> Self {
        Self {
            headers: vec![empty_header(); SEND_BATCH].into(),
            vectors: vec![empty_vector(); SEND_PIECES_MAX].into(),
            names: vec![Name::new(); SEND_BATCH].into(),
            controls: vec![Control::new(); SEND_BATCH].into(),
        }
    }

    /// Sends the first [`SEND_BATCH`] of `messages` at most, which have at most
    /// [`SEND_PIECES_MAX`] pieces. Returns how many went; an error is that of the first.
    ///
    /// # Panics
    /// When there are more pieces.
    pub(crate) fn send<'a, P: Iterator<Item = &'a [u8]>>(
        &mut self,
        fd: RawFd,
        ipv6: bool,
        messages: impl Iterator<Item = Outgoing<P>>,
    ) -> Result<usize, i32> {
        let (mut count, mut used) = (0, 0);
        for (slot, message) in messages.take(SEND_BATCH).enumerate() {
            let first = used;
            for bytes in message.pieces {
                self.vectors[used] = libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                };
                used += 1;
            }
            let header = &mut self.headers[slot].msg_hdr;
            header.msg_iov = self.vectors[first..used].as_mut_ptr();
            header.msg_iovlen = used - first;
            (header.msg_name, header.msg_namelen) = match message.peer {
                Some(peer) => {
                    self.names[slot].set(peer, ipv6);
                    let name = self.names[slot].as_slice();
                    (
                        name.as_ptr().cast_mut().cast(),
                        name.len() as libc::socklen_t,
                    )
                }
                None => (std::ptr::null_mut(), 0),
            };
            self.controls[slot].set(message.segment, message.source, message.class, ipv6);
            let control = self.controls[slot].as_slice();
            header.msg_controllen = control.len();
            header.msg_control = match control.is_empty() {
                true => std::ptr::null_mut(),
                false => control.as_ptr().cast_mut().cast(),
            };
            count = slot + 1;
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        retry(|| {
            // SAFETY: the first `count` headers have just been written: they point to their slots
            // of boxed arrays and to bytes that are borrowed for longer than this call. The kernel
            // writes only the lengths in the headers.
            unsafe {
                libc::sendmmsg(fd, self.headers.as_mut_ptr(), count as libc::c_uint, flags) as isize
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let (a, b) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        b.set_nonblocking(true).unwrap();
        (a, b)
    }

    #[test]
    fn a_batch_arrives_in_order_also_when_buffers_run_out() {
        let (sender, receiver) = pair();
        let to = receiver.local_addr().unwrap();
        let texts: Vec<Vec<u8>> = (0..6).map(|i| vec![i; usize::from(i) * 100]).collect();
        let messages = texts.iter().map(|bytes| Outgoing {
            peer: Some(to),
            source: None,
            class: 0,
            segment: None,
            pieces: std::iter::once(&bytes[..]),
        });
        assert_eq!(
            SendBatch::new().send(sender.as_raw_fd(), false, messages),
            Ok(6)
        );

        let mut batch = ReceiveBatch::new(4).unwrap();
        let mut got = Vec::new();
        let fd = receiver.as_raw_fd();
        assert_eq!(
            batch.receive(fd, |datagram| got.push(datagram)),
            Ok((4, true))
        );
        assert_eq!((batch.lend(), batch.held()), (0, 4));
        batch
            .receive_copied(fd, |datagram| got.push(datagram))
            .unwrap();
        drop(got.remove(0));
        assert_eq!((batch.lend(), batch.held()), (1, 3));
        assert_eq!(
            batch.receive(fd, |datagram| got.push(datagram)),
            Ok((1, true))
        );
        for (datagram, want) in got.iter().zip(&texts[1..]) {
            assert_eq!(&datagram.data[..], &want[..]);
            assert_eq!(usize::from(datagram.stride), want.len());
            assert_eq!(datagram.peer, sender.local_addr().unwrap());
        }
        assert_eq!(got.len(), 5);
        drop(got);
        assert_eq!((batch.lend(), batch.held()), (4, 0));
        assert_eq!(batch.receive(fd, |_| ()), Err(libc::EAGAIN));
        assert_eq!(batch.held(), 0);
    }
}
