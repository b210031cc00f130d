//! Echo server on monoio's io_uring driver: one task and one buffer per
//! connection, TCP only. The ring is set up as a server would: single issuer
//! with deferred task work where the kernel has it, else cooperative.

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, Runtime, RuntimeBuilder};
use peer_common::STREAM_BUFFER_BYTES;

/// Room for one submission of each of thousands of connections per turn.
const RING_ENTRIES: u32 = 4096;

fn main() -> anyhow::Result<()> {
    let flags = peer_common::start("peer-echo-monoio")?;
    anyhow::ensure!(!flags.udp, "peer-echo-monoio echoes TCP only");
    let mut runtime = runtime()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(peer_common::tcp_listener(flags.listen)?)?;
        peer_common::announce(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            monoio::spawn(echo_stream(stream));
        }
    })
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

/// Until the peer closes or fails; either way the connection is over.
async fn echo_stream(mut stream: TcpStream) {
    let mut buffer: Vec<u8> = Vec::with_capacity(STREAM_BUFFER_BYTES);
    loop {
        let (outcome, received) = stream.read(buffer).await;
        if !matches!(outcome, Ok(1..)) {
            return;
        }
        let (outcome, sent) = stream.write_all(received).await;
        if outcome.is_err() {
            return;
        }
        buffer = sent;
    }
}
