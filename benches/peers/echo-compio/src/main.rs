//! Echo server on compio's io_uring driver: one task and one buffer per
//! connection, TCP only. The ring is set up as a server would: single issuer
//! with deferred task work where the kernel has it, else cooperative.

use std::io;

use compio::BufResult;
use compio::driver::{DriverType, ProactorBuilder};
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;
use peer_common::STREAM_BUFFER_BYTES;

/// Room for one submission of each of thousands of connections per turn.
const RING_ENTRIES: u32 = 4096;

fn main() -> anyhow::Result<()> {
    let flags = peer_common::start("peer-echo-compio")?;
    anyhow::ensure!(!flags.udp, "peer-echo-compio echoes TCP only");
    runtime()?.block_on(async {
        let listener = TcpListener::from_std(peer_common::tcp_listener(flags.listen)?)?;
        peer_common::announce(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            compio::runtime::spawn(echo_stream(stream)).detach();
        }
    })
}

fn runtime() -> io::Result<Runtime> {
    let build = |ring: &mut ProactorBuilder| {
        ring.capacity(RING_ENTRIES).driver_type(DriverType::IoUring);
        Runtime::builder().with_proactor(ring.clone()).build()
    };
    build(
        ProactorBuilder::new()
            .single_issuer(true)
            .defer_taskrun(true),
    )
    .or_else(|_| build(ProactorBuilder::new().coop_taskrun(true).taskrun_flag(true)))
    .or_else(|_| build(&mut ProactorBuilder::new()))
}

/// Until the peer closes or fails; either way the connection is over.
async fn echo_stream(mut stream: TcpStream) {
    let mut buffer: Vec<u8> = Vec::with_capacity(STREAM_BUFFER_BYTES);
    loop {
        buffer.clear();
        let BufResult(outcome, received) = stream.read(buffer).await;
        if !matches!(outcome, Ok(1..)) {
            return;
        }
        let BufResult(outcome, sent) = stream.write_all(received).await;
        if outcome.is_err() {
            return;
        }
        buffer = sent;
    }
}
