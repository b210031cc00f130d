//! Segmentation of UDP in the kernel, tried on a pair of loopback sockets: GSO takes one large send
//! apart, GRO gives several datagrams as one receive.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde::Serialize;

use super::read::Reading;
use crate::sys::socket::set_option;

/// Segments in one send to try, highest first: newer kernels take 128 (UDP_MAX_SEGMENTS), older 64.
const SEGMENTS_TRIED: [usize; 2] = [128, 64];
/// Bytes of a segment in the probe; 128 of them stay far below the 64 KiB of one send.
const SEGMENT_BYTES: usize = 32;
/// A hang guard: on loopback the datagrams are there when the send returns.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the kernel does for UDP in bulk.
#[derive(Debug, Clone, Serialize)]
pub struct Datagrams {
    /// Segments that one send may hold (UDP_SEGMENT).
    pub gso_segments_max: Reading<usize>,
    /// Segments that came back in one receive (UDP_GRO) of that send. A limit of loopback, not of
    /// a network card.
    pub gro_segments: Reading<usize>,
}

impl Datagrams {
    pub(super) fn probe() -> Self {
        match pair() {
            Ok((sender, receiver)) => probe_pair(&sender, &receiver),
            Err(error) => {
                let reason = format!("no UDP sockets on loopback: {error}");
                Self {
                    gso_segments_max: Reading::unknown(reason.clone()),
                    gro_segments: Reading::unknown(reason),
                }
            }
        }
    }
}

fn pair() -> io::Result<(UdpSocket, UdpSocket)> {
    let on = |address: SocketAddr| {
        let receiver = UdpSocket::bind(address)?;
        receiver.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        let sender = UdpSocket::bind(address)?;
        sender.connect(receiver.local_addr()?)?;
        // Nobody else on this machine may slip a datagram into the probe.
        receiver.connect(sender.local_addr()?)?;
        Ok((sender, receiver))
    };
    on((Ipv4Addr::LOCALHOST, 0).into()).or_else(|_: io::Error| on((Ipv6Addr::LOCALHOST, 0).into()))
}

fn probe_pair(sender: &UdpSocket, receiver: &UdpSocket) -> Datagrams {
    let gro = set_option(receiver, libc::SOL_UDP, libc::UDP_GRO, 1);
    let sent = set_option(
        sender,
        libc::SOL_UDP,
        libc::UDP_SEGMENT,
        SEGMENT_BYTES as i32,
    )
    .and_then(|()| send_most(sender));
    let gso_segments_max = match &sent {
        Ok(segments) => Reading::known(*segments),
        Err(error) => Reading::unknown(format!("UDP_SEGMENT is refused: {error}")),
    };
    let gro_segments = match (gro, &sent) {
        (Err(error), _) => Reading::unknown(format!("UDP_GRO is refused: {error}")),
        (Ok(()), Err(_)) => Reading::unknown("cannot be tried on loopback without segmented sends"),
        (Ok(()), Ok(segments)) => {
            let mut buffer = vec![0; segments * SEGMENT_BYTES];
            match receiver.recv(&mut buffer) {
                Ok(bytes) if bytes > SEGMENT_BYTES => Reading::known(bytes / SEGMENT_BYTES),
                Ok(_) => Reading::unknown("UDP_GRO is accepted but datagrams arrive one by one"),
                Err(error) => Reading::unknown(format!("nothing arrived on loopback: {error}")),
            }
        }
    };
    Datagrams {
        gso_segments_max,
        gro_segments,
    }
}

/// Sends as many segments as the kernel takes at once; answers how many.
fn send_most(sender: &UdpSocket) -> io::Result<usize> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for segments in SEGMENTS_TRIED {
        match sender.send(&vec![0; segments * SEGMENT_BYTES]) {
            Ok(_) => return Ok(segments),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_ends_in_figures_or_reasons() {
        let datagrams = Datagrams::probe();
        match datagrams.gso_segments_max.value {
            Some(segments) => assert!(SEGMENTS_TRIED.contains(&segments)),
            None => println!("skipped: {}", datagrams.gso_segments_max),
        }
        match datagrams.gro_segments.value {
            Some(segments) => assert!(segments > 1),
            None => println!("skipped: {}", datagrams.gro_segments),
        }
    }

    #[test]
    fn a_socket_that_refuses_options_yields_reasons() {
        // A datagram socket of another family knows neither option.
        let (sender, receiver) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let as_udp = |socket: std::os::unix::net::UnixDatagram| {
            UdpSocket::from(std::os::fd::OwnedFd::from(socket))
        };
        let datagrams = probe_pair(&as_udp(sender), &as_udp(receiver));
        assert!(
            datagrams
                .gso_segments_max
                .reason
                .unwrap()
                .contains("UDP_SEGMENT")
        );
        assert!(datagrams.gro_segments.reason.unwrap().contains("UDP_GRO"));
    }
}
