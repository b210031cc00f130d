//! Chat server on tokio as it is usually written: one broadcast channel, and for each connection a
//! task that reads and a task that writes what its receiver gives. A worker for each CPU.
//!
//! Messages are read into shared memory and cross without a copy. A writer takes all that waits and
//! sends it by one system call; who lags behind skips what the channel no longer holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use peer_common::{CHAT_GREETING, CHAT_LEAVE, CHAT_QUEUE_MESSAGES, STREAM_BUFFER_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{Receiver, Sender, channel};

/// Bytes of one write: what waits is gathered, and a burst is not held back for its end.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// A read is given at least this much room.
const READ_BYTES_MIN: usize = 1024;

fn main() -> anyhow::Result<()> {
    let flags = peer_common::start_chat("peer-chat-tokio")?;
    let workers = AtomicUsize::new(0);
    let cpus = flags.cpus.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(flags.cpus.len())
        .enable_io()
        .on_thread_start(move || {
            let worker = workers.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = peer_common::pin(cpus[worker % cpus.len()]) {
                eprintln!("peer-chat-tokio: {error:#}");
            }
        })
        .build()?;
    // On a worker, because the thread of `block_on` is none.
    let chat = runtime.spawn(async move {
        let listener = peer_common::tcp_listener(flags.listen)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        peer_common::announce(listener.local_addr()?);
        let (room, _) = channel(CHAT_QUEUE_MESSAGES);
        loop {
            let (stream, _) = listener.accept().await?;
            let messages = room.subscribe();
            let (reader, writer) = stream.into_split();
            let has_left = Arc::new(AtomicBool::new(false));
            let writing = tokio::spawn(write(writer, messages, Arc::clone(&has_left)));
            let room = room.clone();
            tokio::spawn(async move {
                read(reader, room, &has_left).await;
                if !has_left.load(Ordering::Relaxed) {
                    writing.abort();
                }
            });
        }
    });
    runtime.block_on(chat)?
}

/// Until the member closes, fails or says the word to leave.
async fn read(mut stream: OwnedReadHalf, room: Sender<Bytes>, has_left: &AtomicBool) {
    let mut buffer = BytesMut::with_capacity(STREAM_BUFFER_BYTES);
    loop {
        if buffer.capacity() < READ_BYTES_MIN {
            buffer.reserve(STREAM_BUFFER_BYTES);
        }
        if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
        let message = buffer.split().freeze();
        let leaves = message == CHAT_LEAVE;
        if leaves {
            has_left.store(true, Ordering::Relaxed);
        }
        // Fails only when nobody is there to hear it.
        let _ = room.send(message);
        if leaves {
            return;
        }
    }
}

/// Until the connection fails, or its member has left and was sent all.
async fn write(
    mut stream: OwnedWriteHalf,
    mut messages: Receiver<Bytes>,
    has_left: Arc<AtomicBool>,
) {
    if stream.write_all(CHAT_GREETING).await.is_err() {
        return;
    }
    let mut gathered = Vec::new();
    while !has_left.load(Ordering::Relaxed) || !messages.is_empty() {
        let first = match messages.recv().await {
            Ok(message) => message,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        if messages.is_empty() {
            if stream.write_all(&first).await.is_err() {
                return;
            }
            continue;
        }
        gathered.clear();
        gathered.extend_from_slice(&first);
        while gathered.len() < WRITE_BYTES_MAX {
            match messages.try_recv() {
                Ok(message) => gathered.extend_from_slice(&message),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if stream.write_all(&gathered).await.is_err() {
            return;
        }
    }
}
