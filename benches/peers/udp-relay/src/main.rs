//! Two UDP relays as a careful programmer writes them in an afternoon: what `ringmill nat` is measured
//! against. Each client gets a socket of its own towards the one destination.
//!
//! `simple`: one thread in each direction, recvfrom and sendto, one client. `epoll`: one thread,
//! recvmmsg of up to 64 datagrams from each readable socket, one sendto for each datagram.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

/// Datagrams of one recvmmsg.
const BATCH: usize = 64;
/// The most that one datagram holds.
const BYTES_MAX: usize = 65_536;
/// As `ringmill` asks for.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
const EVENTS: usize = 256;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut listen, mut to, mut mode, mut cpu) = (None, None, String::from("epoll"), None);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--listen" => listen = Some(value.parse::<SocketAddr>()?),
            "--to" => to = Some(value.parse::<SocketAddr>()?),
            "--mode" => mode = value,
            "--cpu" => cpu = Some(value.parse::<usize>()?),
            _ => bail!("unknown flag {flag}; usage: --listen A --to A --mode simple|epoll --cpu N"),
        }
    }
    let (listen, to) = (
        listen.context("--listen is needed")?,
        to.context("--to is needed")?,
    );
    if let Some(cpu) = cpu {
        pin(cpu)?;
    }
    let socket = open(listen)?;
    println!("listening on {}", socket.local_addr()?);
    match mode.as_str() {
        "simple" => simple(&socket, to),
        "epoll" => epoll(&socket, to),
        _ => bail!("unknown mode {mode}"),
    }
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    // SAFETY: an all-zero set is empty; CPU_SET checks its bound; the call reads the set only.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result != 0 {
        bail!("cannot run on CPU {cpu}: {}", io::Error::last_os_error());
    }
    Ok(())
}

fn open(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn any_of(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    }
}

/// One client, blocking calls.
fn simple(socket: &UdpSocket, to: SocketAddr) -> anyhow::Result<()> {
    let upstream = open(any_of(to))?;
    let client: Arc<OnceLock<SocketAddr>> = Arc::default();
    let (back, answers, known) = (socket.try_clone()?, upstream.try_clone()?, client.clone());
    std::thread::spawn(move || {
        let mut bytes = vec![0; BYTES_MAX];
        while let Ok((len, _)) = answers.recv_from(&mut bytes) {
            if let Some(client) = known.get() {
                let _ = back.send_to(&bytes[..len], client);
            }
        }
    });
    let mut bytes = vec![0; BYTES_MAX];
    loop {
        let (len, from) = socket.recv_from(&mut bytes)?;
        client.get_or_init(|| from);
        // A full socket loses the datagram, as networks do.
        let _ = upstream.send_to(&bytes[..len], to);
    }
}

/// What one recvmmsg fills.
struct Batch {
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new() -> Self {
        // SAFETY: all-zero iovecs, headers and addresses are valid and point to nothing.
        let (vector, header, name) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let mut batch = Self {
            bytes: vec![0; BATCH * BYTES_MAX],
            names: vec![name; BATCH],
            vectors: vec![vector; BATCH],
            headers: vec![header; BATCH],
        };
        for n in 0..BATCH {
            batch.vectors[n] = libc::iovec {
                iov_base: batch.bytes[n * BYTES_MAX..].as_mut_ptr().cast(),
                iov_len: BYTES_MAX,
            };
            let header = &mut batch.headers[n].msg_hdr;
            header.msg_iov = &raw mut batch.vectors[n];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut batch.names[n]).cast();
        }
        batch
    }

    /// Datagrams taken; 0 when none waits.
    fn receive(&mut self, socket: RawFd) -> usize {
        for header in &mut self.headers {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        // SAFETY: the headers point into vectors of this batch, which never grow, and to names of
        // the length given.
        let received = unsafe {
            libc::recvmmsg(
                socket,
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).unwrap_or(0)
    }

    fn len(&self, n: usize) -> usize {
        self.headers[n].msg_len as usize
    }

    fn peer(&self, n: usize) -> Option<SocketAddr> {
        let len = self.headers[n].msg_hdr.msg_namelen;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: both are a sockaddr_storage, of which the kernel has written `len` bytes.
        unsafe {
            *storage.view_as::<libc::sockaddr_storage>() = self.names[n];
            SockAddr::new(storage, len)
        }
        .as_socket()
    }

    fn datagram(&self, n: usize) -> &[u8] {
        &self.bytes[n * BYTES_MAX..][..self.len(n)]
    }
}

fn watch(epoll: RawFd, socket: RawFd) -> anyhow::Result<()> {
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: socket as u64,
    };
    // SAFETY: the event is read during the call only.
    if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &raw mut event) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

/// Many clients, one thread.
fn epoll(listening: &UdpSocket, to: SocketAddr) -> anyhow::Result<()> {
    // SAFETY: no memory is involved.
    let epoll = unsafe { libc::epoll_create1(0) };
    if epoll < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let main = listening.as_raw_fd();
    watch(epoll, main)?;
    let mut by_client: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut client_of: HashMap<RawFd, SocketAddr> = HashMap::new();
    let mut batch = Batch::new();
    // SAFETY: an all-zero event is valid.
    let mut events: Vec<libc::epoll_event> = vec![unsafe { std::mem::zeroed() }; EVENTS];
    loop {
        // SAFETY: there is room for so many events.
        let ready = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS as i32, -1) };
        for event in &events[..usize::try_from(ready).unwrap_or(0)] {
            let socket = event.u64 as RawFd;
            let count = batch.receive(socket);
            for n in 0..count {
                if socket == main {
                    let Some(peer) = batch.peer(n) else { continue };
                    let upstream = match by_client.entry(peer) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(new) => {
                            let upstream = open(any_of(to))?;
                            watch(epoll, upstream.as_raw_fd())?;
                            client_of.insert(upstream.as_raw_fd(), peer);
                            new.insert(upstream)
                        }
                    };
                    // A full socket loses the datagram, as networks do.
                    let _ = upstream.send_to(batch.datagram(n), to);
                } else if let Some(client) = client_of.get(&socket) {
                    let _ = listening.send_to(batch.datagram(n), client);
                }
            }
        }
    }
}
