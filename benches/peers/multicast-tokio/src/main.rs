//! Stream multicast server on tokio: one task writes numbered messages of 32 bytes in blocks, shared
//! by all connections; each connection has a task and a bounded channel. As fast as the slowest
//! connection reads, so nothing is ever dropped.
//!
//! The messages are those of `ringmill serve multicast`, so one receiver measures both.

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const MESSAGE_BYTES: usize = 32;
/// As ringmill's: few system calls, and many blocks fit into a queue.
const BLOCK_BYTES: usize = 64 << 10;
/// Blocks that may wait for one connection: 1 MiB, as ringmill's queue.
const QUEUED_BLOCKS_MAX: usize = 16;
/// Connections that may wait to be added between two blocks.
const JOINING_MAX: usize = 1024;

fn main() -> anyhow::Result<()> {
    let flags = peer_common::start("peer-multicast-tokio")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = peer_common::tcp_listener(flags.listen)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        peer_common::announce(listener.local_addr()?);
        let (join, joining) = mpsc::channel(JOINING_MAX);
        tokio::spawn(generate(joining));
        loop {
            let (stream, _) = listener.accept().await?;
            let (blocks, queue) = mpsc::channel(QUEUED_BLOCKS_MAX);
            tokio::spawn(write_all(stream, queue));
            join.send(blocks).await?;
        }
    })
}

/// Writes blocks for ever, while there is a connection.
async fn generate(mut joining: mpsc::Receiver<mpsc::Sender<Bytes>>) {
    let mut connections: Vec<mpsc::Sender<Bytes>> = Vec::new();
    let mut sequence = 0_u64;
    loop {
        if connections.is_empty() {
            match joining.recv().await {
                Some(first) => connections.push(first),
                None => return,
            }
        }
        while let Ok(next) = joining.try_recv() {
            connections.push(next);
        }
        let block = block(&mut sequence);
        let mut gone = false;
        for connection in &connections {
            gone |= connection.send(block.clone()).await.is_err();
        }
        if gone {
            connections.retain(|connection| !connection.is_closed());
        }
    }
}

fn block(sequence: &mut u64) -> Bytes {
    let mut block = vec![0; BLOCK_BYTES];
    for message in block.chunks_exact_mut(MESSAGE_BYTES) {
        message[..4].copy_from_slice(b"RMm1");
        message[4..8].copy_from_slice(&(MESSAGE_BYTES as u32).to_be_bytes());
        message[8..16].copy_from_slice(&sequence.to_be_bytes());
        // No time and no clock: nobody measures latency at full load.
        message[28..32].copy_from_slice(&1_u32.to_be_bytes());
        *sequence += 1;
    }
    block.into()
}

/// Until the peer closes.
async fn write_all(mut stream: TcpStream, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(block) = queue.recv().await {
        if stream.write_all(&block).await.is_err() {
            return;
        }
    }
}
