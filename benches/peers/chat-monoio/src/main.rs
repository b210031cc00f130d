//! Chat server on monoio's io_uring driver: an executor for each CPU, each with its own listener and
//! members. A message is appended to the queue of each member here and crosses to each other
//! executor once, by a channel.
//!
//! A member's queue is the bytes that wait for it: its writer swaps it for an empty one and sends
//! all by one operation. Copying 32 bytes is cheaper than counting a reference to them. What finds
//! the queue full is skipped, whole.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use anyhow::Context;
use flume::{Receiver, Sender};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, Splitable};
use monoio::net::TcpListener;
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};
use monoio::{IoUringDriver, Runtime, RuntimeBuilder};
use peer_common::{CHAT_GREETING, CHAT_LEAVE, CHAT_QUEUE_MESSAGES, ChatFlags, STREAM_BUFFER_BYTES};

/// Room for one submission of each of thousands of connections per turn.
const RING_ENTRIES: u32 = 4096;
/// Bytes that may wait for one member: as many as ringmill's default.
const QUEUE_BYTES_MAX: usize = 1 << 20;

type Message = Arc<[u8]>;

fn main() -> anyhow::Result<()> {
    let ChatFlags { listen, cpus } = peer_common::start_chat("peer-chat-monoio")?;
    let first = peer_common::shared_tcp_listener(listen)?;
    let local = first.local_addr()?;
    let (senders, receivers): (Vec<_>, Vec<_>) = cpus
        .iter()
        .map(|_| flume::bounded(CHAT_QUEUE_MESSAGES))
        .unzip();
    let mut threads = Vec::new();
    let mut listener = Some(first);
    for (own, (cpu, inbox)) in cpus.into_iter().zip(receivers).enumerate() {
        let others = senders
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != own)
            .map(|(_, sender)| sender.clone())
            .collect();
        // Bound here, so that all listen before the first connection comes.
        let listener = match listener.take() {
            Some(first) => first,
            None => peer_common::shared_tcp_listener(local)?,
        };
        threads.push(std::thread::spawn(move || {
            peer_common::pin(cpu)?;
            runtime()?.block_on(serve(listener, others, inbox, (own == 0).then_some(local)))
        }));
    }
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("an executor panicked"))??;
    }
    Ok(())
}

fn runtime() -> std::io::Result<Runtime<IoUringDriver>> {
    let build = |ring: io_uring::Builder| {
        RuntimeBuilder::<IoUringDriver>::new()
            .with_entries(RING_ENTRIES)
            .uring_builder(ring)
            .build()
    };
    let mut deferred = io_uring::IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun();
    let mut cooperative = io_uring::IoUring::builder();
    cooperative.setup_coop_taskrun();
    build(deferred)
        .or_else(|_| build(cooperative))
        .or_else(|_| build(io_uring::IoUring::builder()))
}

/// One executor's part of the chat.
struct Room {
    members: RefCell<Vec<Rc<Member>>>,
    others: Vec<Sender<Message>>,
}

/// One connection.
#[derive(Default)]
struct Member {
    /// Its place in [`Room::members`].
    place: Cell<usize>,
    queue: RefCell<Vec<u8>>,
    writer: RefCell<Option<Waker>>,
    /// Nothing more comes for it.
    is_over: Cell<bool>,
}

async fn serve(
    listener: std::net::TcpListener,
    others: Vec<Sender<Message>>,
    inbox: Receiver<Message>,
    announced: Option<SocketAddr>,
) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener).context("the listening socket")?;
    let room = Rc::new(Room {
        members: RefCell::default(),
        others,
    });
    let here = Rc::clone(&room);
    monoio::spawn(async move {
        while let Ok(message) = inbox.recv_async().await {
            here.deliver(&message);
            for message in inbox.try_iter() {
                here.deliver(&message);
            }
        }
    });
    if let Some(local) = announced {
        peer_common::announce(local);
    }
    loop {
        let (stream, _) = listener.accept().await?;
        let member = room.join();
        let (reader, writer) = stream.into_split();
        monoio::spawn(write(writer, Rc::clone(&member)));
        let room = Rc::clone(&room);
        monoio::spawn(async move {
            read(reader, &room).await;
            room.leave(&member);
        });
    }
}

impl Room {
    fn join(&self) -> Rc<Member> {
        let member = Rc::new(Member::default());
        member.queue.borrow_mut().extend_from_slice(CHAT_GREETING);
        let mut members = self.members.borrow_mut();
        member.place.set(members.len());
        members.push(Rc::clone(&member));
        member
    }

    fn leave(&self, member: &Member) {
        let mut members = self.members.borrow_mut();
        let place = member.place.get();
        members.swap_remove(place);
        if let Some(moved) = members.get(place) {
            moved.place.set(place);
        }
        member.is_over.set(true);
        member.wake();
    }

    fn deliver(&self, message: &[u8]) {
        for member in self.members.borrow().iter() {
            let mut queue = member.queue.borrow_mut();
            if queue.len() + message.len() <= QUEUE_BYTES_MAX {
                queue.extend_from_slice(message);
                member.wake();
            }
        }
    }
}

impl Member {
    fn wake(&self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

/// Until the member closes, fails or says the word to leave.
async fn read(mut stream: TcpOwnedReadHalf, room: &Room) {
    let mut buffer: Vec<u8> = Vec::with_capacity(STREAM_BUFFER_BYTES);
    loop {
        let (outcome, received) = stream.read(buffer).await;
        if !matches!(outcome, Ok(1..)) {
            return;
        }
        room.deliver(&received);
        if !room.others.is_empty() {
            let message: Message = Arc::from(&received[..]);
            for other in &room.others {
                // A full channel makes this sender wait, and nobody else.
                let _ = other.send_async(Arc::clone(&message)).await;
            }
        }
        if received == CHAT_LEAVE {
            return;
        }
        buffer = received;
    }
}

/// Until the connection fails, or its member has left and was sent all.
async fn write(mut stream: TcpOwnedWriteHalf, member: Rc<Member>) {
    let mut buffer = Vec::new();
    loop {
        poll_fn(|context| {
            if !member.queue.borrow().is_empty() || member.is_over.get() {
                return Poll::Ready(());
            }
            *member.writer.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        std::mem::swap(&mut *member.queue.borrow_mut(), &mut buffer);
        if buffer.is_empty() {
            return;
        }
        let (outcome, mut sent) = stream.write_all(buffer).await;
        if outcome.is_err() {
            return;
        }
        sent.clear();
        buffer = sent;
    }
}
