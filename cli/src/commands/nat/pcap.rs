//! `--pcap`: what came in and went out, as a file that network analysers read.
//!
//! Each datagram gets the IP and UDP headers that it had on the wire as far as they are known, and no
//! link layer. A thread of its own writes; when the disk is too slow, datagrams are left out of the
//! file and counted, never held up.

use std::fs::File;
use std::io::{self, BufWriter};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};
use ringmill_engine::Nanos;
use ringmill_engine::time::monotonic_now;
use ringmill_protocols::nat::{Seen, Tap};

/// Datagrams that wait for the disk: 16 MiB of full-sized ones.
const WAITING_MAX: usize = 8192;
/// An IPv6 datagram with its headers.
const SNAPSHOT_BYTES: u32 = 40 + 8 + 65_535;
/// As most hosts send; what the real one was is not known to a UDP socket.
const HOP_LIMIT: u8 = 64;

struct Packet {
    at: Duration,
    bytes: Vec<u8>,
}

/// Copies for the file.
struct Copies {
    sender: Mutex<Option<SyncSender<Packet>>>,
    lost: AtomicU64,
    /// Wall clock less the clock of the shards.
    offset: Duration,
}

impl Tap for Copies {
    fn take(&self, seen: Seen<'_>) {
        let sender = self.sender.lock();
        let sender = sender.unwrap_or_else(PoisonError::into_inner);
        let packet = Packet {
            at: self.offset + Duration::from_nanos(seen.at),
            bytes: on_the_wire(&seen),
        };
        let taken = sender
            .as_ref()
            .is_some_and(|sender| sender.try_send(packet).is_ok());
        if !taken {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

/// A file that is being written.
pub struct Capture {
    copies: Arc<Copies>,
    thread: JoinHandle<io::Result<u64>>,
}

/// What became of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    /// Datagrams in the file.
    pub written: u64,
    /// Datagrams left out because the disk was too slow.
    pub lost: u64,
}

impl Capture {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn start(path: &Path) -> io::Result<Self> {
        let header = PcapHeader {
            datalink: DataLink::RAW,
            ts_resolution: TsResolution::NanoSecond,
            snaplen: SNAPSHOT_BYTES,
            ..PcapHeader::default()
        };
        let file = BufWriter::new(File::create(path)?);
        let writer = PcapWriter::with_header(file, header).map_err(io::Error::other)?;
        let (sender, packets) = sync_channel(WAITING_MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let now: Nanos = monotonic_now();
        let copies = Copies {
            sender: Mutex::new(Some(sender)),
            lost: AtomicU64::new(0),
            offset: wall
                .unwrap_or_default()
                .saturating_sub(Duration::from_nanos(now)),
        };
        let thread = std::thread::Builder::new()
            .name("pcap".into())
            .spawn(move || write(writer, &packets))?;
        Ok(Self {
            copies: Arc::new(copies),
            thread,
        })
    }

    /// Where the NAT puts its copies.
    #[must_use]
    pub fn tap(&self) -> Arc<dyn Tap> {
        Arc::clone(&self.copies) as Arc<dyn Tap>
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it could not be written: disk full, for one.
    pub fn finish(self) -> io::Result<Captured> {
        // The writer ends when nobody can send any more.
        let sender = self.copies.sender.lock();
        *sender.unwrap_or_else(PoisonError::into_inner) = None;
        let written = self.thread.join();
        let written = written.unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))?;
        Ok(Captured {
            written,
            lost: self.copies.lost.load(Relaxed),
        })
    }
}

fn write(mut writer: PcapWriter<BufWriter<File>>, packets: &Receiver<Packet>) -> io::Result<u64> {
    let mut written = 0;
    for Packet { at, bytes } in packets {
        let len = bytes.len() as u32;
        let packet = PcapPacket::new_owned(at, len, bytes);
        writer.write_packet(&packet).map_err(io::Error::other)?;
        written += 1;
    }
    let mut file = writer.into_writer();
    io::Write::flush(&mut file)?;
    Ok(written)
}

/// The datagram with IP and UDP headers.
fn on_the_wire(seen: &Seen<'_>) -> Vec<u8> {
    let (source, destination) = one_version(seen.source, seen.destination);
    let len = seen.payload.len();
    let mut bytes = Vec::with_capacity(len + 48);
    let udp_len = (UdpHeader::LEN + len) as u16;
    // What a datagram of 65,507 bytes cannot have, a vector can: writing does not fail.
    let udp = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header::new(
                udp_len,
                HOP_LIMIT,
                IpNumber::UDP,
                from.octets(),
                to.octets(),
            );
            header.ok().and_then(|mut header| {
                header.ecn = etherparse::IpEcn::try_new(seen.ecn & 0b11).ok()?;
                header.header_checksum = header.calc_header_checksum();
                header.write(&mut bytes).ok()?;
                UdpHeader::with_ipv4_checksum(
                    source.port(),
                    destination.port(),
                    &header,
                    seen.payload,
                )
                .ok()
            })
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                traffic_class: seen.ecn & 0b11,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: udp_len,
                next_header: IpNumber::UDP,
                hop_limit: HOP_LIMIT,
                source: from.octets(),
                destination: to.octets(),
            };
            header.write(&mut bytes).ok().and_then(|()| {
                UdpHeader::with_ipv6_checksum(
                    source.port(),
                    destination.port(),
                    &header,
                    seen.payload,
                )
                .ok()
            })
        }
        _ => None,
    };
    if let Some(udp) = udp {
        let _ = udp.write(&mut bytes);
    }
    bytes.extend_from_slice(seen.payload);
    bytes
}

/// Both ends in one IP version: a mapped address where one of them is IPv4.
fn one_version(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv6() == destination.is_ipv6() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
    use pcap_file::pcap::PcapReader;

    #[test]
    fn what_is_written_can_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nat.pcap");
        let capture = Capture::start(&path).expect("a capture");
        let tap = capture.tap();
        let cases = [
            ("10.0.0.1:1000", "10.0.0.2:2000", 2, &b"hello"[..]),
            ("[fe80::1]:1", "[fe80::2]:2", 1, b""),
            ("10.0.0.1:1000", "[::1]:2000", 0, b"mixed"),
        ];
        for (source, destination, ecn, payload) in cases {
            tap.take(Seen {
                at: monotonic_now(),
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
                ecn,
                payload,
            });
        }
        let captured = capture.finish().expect("a file");
        assert_eq!((captured.written, captured.lost), (3, 0));
        let file = File::open(&path).expect("the file");
        let mut reader = PcapReader::new(file).expect("a capture");
        assert_eq!(reader.header().datalink, DataLink::RAW);
        for (source, destination, ecn, payload) in cases {
            let packet = reader.next_packet().expect("a packet").expect("whole");
            let age = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("a time");
            assert!(age.abs_diff(packet.timestamp) < Duration::from_secs(60));
            let headers = PacketHeaders::from_ip_slice(&packet.data).expect("IP");
            let port = |text: &str| text.parse::<SocketAddr>().expect("an address").port();
            let Some(TransportHeader::Udp(udp)) = headers.transport else {
                panic!("no UDP");
            };
            assert_eq!(udp.source_port, port(source));
            assert_eq!(udp.destination_port, port(destination));
            assert_eq!(headers.payload.slice(), payload);
            match headers.net.expect("IP") {
                NetHeaders::Ipv4(ip, _) => assert_eq!(ip.ecn.value(), ecn),
                NetHeaders::Ipv6(ip, _) => assert_eq!(ip.traffic_class & 3, ecn),
                _ => panic!("no IP"),
            }
        }
    }
}
