//! Echo server on glommio: one local executor, one task and one buffer per
//! connection, TCP only. Its storage memory, which an echo server never uses,
//! is cut to the least, because it is locked and registered: the default of
//! 10 MiB does not fit the usual limit of 8 MiB of locked memory.

use std::os::fd::{FromRawFd, IntoRawFd};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};
use peer_common::STREAM_BUFFER_BYTES;

/// glommio's minimum of registered storage memory.
const STORAGE_BYTES: usize = 64 << 10;

/// Entries of each of glommio's rings (the default is 128): thousands of
/// connections become ready in one turn.
const RING_ENTRIES: usize = 4096;

fn main() -> anyhow::Result<()> {
    let flags = peer_common::start("peer-echo-glommio")?;
    anyhow::ensure!(!flags.udp, "peer-echo-glommio echoes TCP only");
    let placement = flags.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement)
        .io_memory(STORAGE_BYTES)
        .ring_depth(RING_ENTRIES)
        .make()
        .map_err(|error| anyhow::anyhow!("glommio cannot start: {error}; see `ulimit -l`"))?;
    executor.run(async move {
        let listener = peer_common::tcp_listener(flags.listen)?;
        // SAFETY: the descriptor is a listening socket that nobody else owns.
        let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
        peer_common::announce(
            listener
                .local_addr()
                .map_err(|error| anyhow::anyhow!("local address: {error}"))?,
        );
        loop {
            let stream = listener
                .accept()
                .await
                .map_err(|error| anyhow::anyhow!("accept: {error}"))?;
            glommio::spawn_local(echo_stream(stream)).detach();
        }
    })
}

/// Until the peer closes or fails; either way the connection is over.
async fn echo_stream(mut stream: TcpStream) {
    let mut buffer = vec![0; STREAM_BUFFER_BYTES];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
