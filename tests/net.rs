//! Plain sockets of the tests: random bytes, exact echo, and what this host has.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};

use crate::program::PATIENCE;

/// The largest UDP payload over IPv4.
pub const DATAGRAM_LEN_MAX: usize = 65_507;

/// Random bytes, the same in every run.
#[must_use]
pub fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(len as u64).fill_bytes(&mut bytes);
    bytes
}

/// Whether this host has the IPv6 loopback address.
#[must_use]
pub fn has_ipv6() -> bool {
    UdpSocket::bind("[::1]:0").is_ok()
}

/// A connection with a hang guard on every read and write.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)
        .unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    guard(&stream);
    stream
}

fn guard(stream: &TcpStream) {
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .expect("a socket takes timeouts");
}

/// A datagram socket with a hang guard.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn datagram_socket(local: &str) -> UdpSocket {
    let socket = UdpSocket::bind(local).unwrap_or_else(|error| panic!("{local}: {error}"));
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes timeouts");
    socket
}

/// Sends `data` and half-closes, while everything that comes back until the server's own end is
/// read; it must be the same bytes.
///
/// # Panics
/// When it is not.
pub fn assert_stream_echo(mut stream: TcpStream, data: &[u8]) {
    let mut writer = stream.try_clone().expect("a socket can be cloned");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(data).expect("the server takes everything");
            writer.shutdown(Shutdown::Write).expect("half-close");
        });
        let mut back = Vec::with_capacity(data.len());
        stream.read_to_end(&mut back).expect("the server answers");
        assert!(
            back == data,
            "{} of {} bytes, or others",
            back.len(),
            data.len()
        );
    });
}

/// Sends one message and waits for its echo.
///
/// # Panics
/// When it does not come.
pub fn assert_message_echo(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).expect("the server takes it");
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back).expect("the server answers");
    assert!(back == message, "other bytes came back");
}

/// Sends one datagram and waits for its echo; returns whence it came.
///
/// # Panics
/// When it does not come, or is another.
pub fn assert_datagram_echo(socket: &UdpSocket, to: SocketAddr, data: &[u8]) -> SocketAddr {
    socket.send_to(data, to).expect("send");
    let mut back = vec![0; 1 << 16];
    let (len, from) = socket
        .recv_from(&mut back)
        .unwrap_or_else(|error| panic!("{} bytes to {to}: {error}", data.len()));
    assert!(
        back[..len] == *data,
        "{len} of {} bytes, or others",
        data.len()
    );
    from
}

/// Whether a message is echoed within a time; the connection is of no use after a `false`.
pub fn answers(stream: &mut TcpStream, patience: Duration) -> bool {
    let mut back = [0; 1];
    let asked = stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.write_all(b"?"));
    asked.is_ok() && stream.read_exact(&mut back).is_ok() && back == *b"?"
}
