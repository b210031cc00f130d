//! Echo server on tokio: one current-thread runtime, one task and one buffer
//! per connection. With `--udp`, one socket and one datagram per system call,
//! which is all that tokio's socket offers.

use peer_common::{DATAGRAM_BUFFER_BYTES, STREAM_BUFFER_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

fn main() -> anyhow::Result<()> {
    let flags = peer_common::start("peer-echo-tokio")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        if flags.udp {
            let socket = peer_common::udp_socket(flags.listen)?;
            socket.set_nonblocking(true)?;
            let socket = UdpSocket::from_std(socket)?;
            peer_common::announce(socket.local_addr()?);
            echo_datagrams(socket).await
        } else {
            let listener = peer_common::tcp_listener(flags.listen)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            peer_common::announce(listener.local_addr()?);
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(echo_stream(stream));
            }
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

async fn echo_datagrams(socket: UdpSocket) -> anyhow::Result<()> {
    let mut buffer = vec![0; DATAGRAM_BUFFER_BYTES];
    loop {
        let (count, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer met a closed port: not this datagram's fault.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error.into()),
        };
        // An answer that the kernel refuses is a lost datagram, as on a wire.
        let _ = socket.send_to(&buffer[..count], from).await;
    }
}
