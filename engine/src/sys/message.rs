//! Socket addresses and control messages (cmsg) as bytes, both ways.
//!
//! Pure byte work on `repr(C)` layouts: what the kernel wrote is parsed with bounds checks, what it
//! will read is built in place. No system call is made here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::datagram::Ecn;

/// Bytes for a socket address of either family.
pub(crate) const NAME_LEN: usize = size_of::<libc::sockaddr_in6>();
/// Bytes for all control messages of one datagram: segment size, packet info, traffic class.
pub(crate) const CONTROL_LEN: usize = 128;

const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();
const CMSG_ALIGN: usize = size_of::<usize>();

/// What the control messages of a received datagram say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Received {
    /// Bytes of each coalesced datagram (UDP_GRO).
    pub(crate) stride: Option<u16>,
    /// The address it was sent to.
    pub(crate) local: Option<IpAddr>,
    /// ECN bits.
    pub(crate) ecn: Ecn,
}

/// Parses the control messages of a received datagram; what is not known is passed over.
pub(crate) fn parse_control(mut control: &[u8]) -> Received {
    let mut received = Received::default();
    while control.len() >= CMSG_HEADER {
        let len = usize::from_ne_bytes(control[..8].try_into().expect("8 bytes"));
        let level = i32::from_ne_bytes(control[8..12].try_into().expect("4 bytes"));
        let kind = i32::from_ne_bytes(control[12..16].try_into().expect("4 bytes"));
        if len < CMSG_HEADER || len > control.len() {
            break;
        }
        let data = &control[CMSG_HEADER..len];
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) if data.len() >= 2 => {
                // The kernel writes an int; the value fits 16 bits.
                let stride = match data.get(..4) {
                    Some(bytes) => i32::from_ne_bytes(bytes.try_into().expect("4 bytes")),
                    None => i32::from(u16::from_ne_bytes(data[..2].try_into().expect("2 bytes"))),
                };
                received.stride = u16::try_from(stride).ok();
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() >= 12 => {
                // in_pktinfo: interface index, local address, header destination.
                let octets: [u8; 4] = data[8..12].try_into().expect("4 bytes");
                received.local = Some(IpAddr::V4(Ipv4Addr::from(octets)));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() >= 16 => {
                let octets: [u8; 16] = data[..16].try_into().expect("16 bytes");
                received.local = Some(IpAddr::V6(Ipv6Addr::from(octets)));
            }
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
                if !data.is_empty() =>
            {
                // IP_TOS is a byte, IPV6_TCLASS an int; the low byte is first on little endian.
                let class = match data.get(..4) {
                    Some(bytes) => i32::from_ne_bytes(bytes.try_into().expect("4 bytes")) as u8,
                    None => data[0],
                };
                received.ecn = class & 3;
            }
            _ => {}
        }
        let next = len.next_multiple_of(CMSG_ALIGN);
        control = control.get(next..).unwrap_or(&[]);
    }
    received
}

/// The traffic class octet of the IP header: code point and ECN bits (RFC 2474 §3, RFC 3168 §5).
pub(crate) const fn traffic_class(dscp: u8, ecn: Ecn) -> u8 {
    dscp << 2 | ecn & 3
}

/// Control messages for a send, in memory that the kernel can read.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Control {
    bytes: [u8; CONTROL_LEN],
    len: usize,
}

impl Control {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; CONTROL_LEN],
            len: 0,
        }
    }

    /// Begins anew: the segment size when the send carries several datagrams, the source address
    /// when it must be a certain one, the traffic class (DSCP and ECN) when set.
    pub(crate) fn set(
        &mut self,
        segment: Option<u16>,
        source: Option<IpAddr>,
        class: u8,
        ipv6: bool,
    ) {
        self.len = 0;
        if let Some(segment) = segment {
            self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        match source {
            Some(IpAddr::V4(address)) if !ipv6 => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&address.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(address) if ipv6 => {
                let octets = match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                let mut info = [0; 20];
                info[..16].copy_from_slice(&octets);
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            _ => {}
        }
        if class != 0 {
            let class = i32::from(class).to_ne_bytes();
            if ipv6 {
                self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class);
            } else {
                self.push(libc::IPPROTO_IP, libc::IP_TOS, &class);
            }
        }
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let len = CMSG_HEADER + data.len();
        let at = self.len;
        // Three messages of at most 20 bytes always fit into CONTROL_LEN.
        let message = &mut self.bytes[at..at + len];
        message[..8].copy_from_slice(&len.to_ne_bytes());
        message[8..12].copy_from_slice(&level.to_ne_bytes());
        message[12..16].copy_from_slice(&kind.to_ne_bytes());
        message[CMSG_HEADER..].copy_from_slice(data);
        self.len = at + len.next_multiple_of(CMSG_ALIGN);
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A socket address as the kernel reads it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Name {
    bytes: [u8; 32],
    len: u32,
}

impl Name {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; 32],
            len: 0,
        }
    }

    /// Encodes an address. On an IPv6 socket an IPv4 address is mapped (RFC 4291 §2.5.5.2).
    pub(crate) fn set(&mut self, address: SocketAddr, ipv6: bool) {
        let address = match address {
            SocketAddr::V4(v4) if ipv6 => {
                SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            other => other,
        };
        match address {
            SocketAddr::V4(v4) => {
                self.bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                self.bytes[2..4].copy_from_slice(&v4.port().to_be_bytes());
                self.bytes[4..8].copy_from_slice(&v4.ip().octets());
                self.bytes[8..16].fill(0);
                self.len = 16;
            }
            SocketAddr::V6(v6) => {
                self.bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                self.bytes[2..4].copy_from_slice(&v6.port().to_be_bytes());
                self.bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                self.bytes[8..24].copy_from_slice(&v6.ip().octets());
                self.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                self.len = NAME_LEN as u32;
            }
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// Decodes an address that the kernel wrote; a mapped IPv4 address is given as IPv4.
pub(crate) fn parse_name(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(name.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(name.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = name.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::V4(SocketAddrV4::new(octets.into(), port)))
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(name.get(4..8)?.try_into().ok()?);
            let octets: [u8; 16] = name.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(name.get(24..28)?.try_into().ok()?);
            let ip = Ipv6Addr::from(octets);
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, port)),
                None => SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip() {
        for text in [
            "127.0.0.1:7000",
            "[::1]:1",
            "[fe80::1%3]:65535",
            "255.255.255.255:0",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let mut name = Name::new();
            name.set(address, address.is_ipv6());
            assert_eq!(parse_name(name.as_slice()), Some(address), "{text}");
        }
        let mut mapped = Name::new();
        mapped.set("10.0.0.1:5".parse().unwrap(), true);
        assert_eq!(mapped.as_slice().len(), NAME_LEN);
        assert_eq!(
            parse_name(mapped.as_slice()),
            Some("10.0.0.1:5".parse().unwrap())
        );
    }

    #[test]
    fn control_messages_of_a_send_are_read_back() {
        let mut control = Control::new();
        control.set(Some(1222), Some("::1".parse().unwrap()), 2, true);
        // UDP_SEGMENT (103) is not UDP_GRO (104): only address and class come back.
        let got = parse_control(control.as_slice());
        assert_eq!(
            got,
            Received {
                stride: None,
                local: Some("::1".parse().unwrap()),
                ecn: 2
            }
        );
    }

    #[test]
    fn broken_control_messages_end_the_parse() {
        assert_eq!(parse_control(&[]), Received::default());
        assert_eq!(parse_control(&[0; 64]), Received::default());
        assert_eq!(parse_control(&[0xff; 64]), Received::default());
        let mut short = [0; 16];
        short[..8].copy_from_slice(&15_usize.to_ne_bytes());
        assert_eq!(parse_control(&short), Received::default());
    }
}
