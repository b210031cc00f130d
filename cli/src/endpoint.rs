//! Endpoints as people type them (`tcp://:7000`, `udp://*:7000`, `unix:/run/echo.sock`) and the
//! socket addresses that they stand for.
//!
//! One rule for every transport: `:7000` is this machine only (127.0.0.1 and ::1), `*:7000` is
//! every address (0.0.0.0 and ::), anything else is the address or name itself. Parsing looks at
//! the text alone; it must never ask the host. Only [`Endpoint::listen_addresses`] and
//! [`Endpoint::connect_addresses`] resolve names, and nothing here opens a socket.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest path of a Unix socket: `sun_path` holds 108 bytes with its closing NUL (unix(7)).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// Longest name of a network interface: `IFNAMSIZ` is 16 with its closing NUL (netdevice(7)).
pub const ZONE_BYTES_MAX: usize = 15;

/// Longest host name in text form (RFC 1035 §2.3.4: 255 octets on the wire).
pub const NAME_BYTES_MAX: usize = 253;

/// Longest label of a host name (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// With port 0 the kernel picks a port for the first address, which may be taken on the second.
/// Sixteen tries fail together only on a host that has next to no free port.
const PORT_ZERO_ATTEMPTS_MAX: usize = 16;

/// The transport of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// A TCP byte stream.
    Tcp,
    /// UDP datagrams.
    Udp,
    /// A Unix stream socket in the file system.
    Unix,
}

impl Scheme {
    /// The word before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Tcp => "tcp",
            Scheme::Udp => "udp",
            Scheme::Unix => "unix",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which addresses of which machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// `:7000`: 127.0.0.1 and ::1.
    Loopback,
    /// `*:7000`: every address of this machine, 0.0.0.0 and ::.
    Any,
    /// A literal address; the zone (an interface's name or index) only with a link-local one.
    Addr(IpAddr, Option<String>),
    /// A name to be resolved when it is needed.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Loopback => Ok(()),
            Host::Any => f.write_str("*"),
            Host::Addr(IpAddr::V4(address), _) => write!(f, "{address}"),
            Host::Addr(IpAddr::V6(address), None) => write!(f, "[{address}]"),
            Host::Addr(IpAddr::V6(address), Some(zone)) => write!(f, "[{address}%{zone}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}

/// The transports that have hosts and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TCP byte stream.
    Tcp,
    /// UDP datagrams.
    Udp,
}

/// Where to listen or where to connect. `Display` prints what `FromStr` reads.
///
/// ```
/// use ringmill_cli::endpoint::{Addresses, Endpoint};
///
/// let endpoint: Endpoint = "tcp://:7000".parse().unwrap();
/// let Addresses::Sockets(addresses) = endpoint.listen_addresses().unwrap() else { panic!() };
/// assert_eq!(addresses[0].to_string(), "127.0.0.1:7000");
/// assert_eq!(addresses[1].to_string(), "[::1]:7000");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// A host and a port.
    Inet {
        /// TCP or UDP.
        transport: Transport,
        /// Which addresses.
        host: Host,
        /// 0 asks the kernel for a free port (listening only).
        port: u16,
    },
    /// A stream socket at a path.
    Unix(PathBuf),
}

/// What an endpoint stands for on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// Socket addresses, in the order in which to use them; never empty.
    Sockets(Vec<SocketAddr>),
    /// The path of a Unix socket.
    Path(PathBuf),
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing was given.
    #[error(
        "the endpoint is empty: write for example tcp://:7000 (this machine only), udp://*:7000 (every address) or unix:/path"
    )]
    Empty,
    /// No `tcp:`, `udp:` or `unix:` in front, and no default applies.
    #[error(
        "'{text}' does not say how to talk: write tcp://{text} or udp://{text}, or unix:/path for a Unix socket"
    )]
    NoScheme {
        /// What was given.
        text: String,
    },
    /// A transport that nobody knows.
    #[error("'{scheme}' is not a transport: known are tcp://, udp:// and unix:")]
    UnknownScheme {
        /// The word before `://`.
        scheme: String,
    },
    /// A transport that is planned.
    #[error(
        "{scheme}:// is not yet in this version: use {instead}://, without encryption, for now"
    )]
    NotYet {
        /// `tls` or `dtls`.
        scheme: &'static str,
        /// The plain transport below it.
        instead: &'static str,
    },
    /// No `:port` at the end.
    #[error("'{text}' has no port: end it with one, as in {text}:7000")]
    NoPort {
        /// What was given.
        text: String,
    },
    /// The port is not a number from 0 to 65535.
    #[error("port '{port}' is not a number from 0 to 65535")]
    BadPort {
        /// The text after the last colon.
        port: String,
    },
    /// An IPv6 address without brackets.
    #[error("'{host}' looks like an IPv6 address: put it in brackets, as in [::1]:7000")]
    NeedsBrackets {
        /// The text before the last colon.
        host: String,
    },
    /// Not an IPv4 or IPv6 address.
    #[error("'{address}' is not an IP address: IPv4 is written 192.0.2.1, IPv6 [2001:db8::1]")]
    BadAddress {
        /// The text.
        address: String,
    },
    /// The part after `%` cannot be an interface, or the address takes none.
    #[error("zone '{zone}' of {address}: {reason}")]
    BadZone {
        /// The address before `%`.
        address: Ipv6Addr,
        /// The text after `%`.
        zone: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Not a host name.
    #[error(
        "'{name}' is not a host name: letters, digits, '-' and '_' in parts of 1 to 63, joined by dots, at most 253 in all"
    )]
    BadName {
        /// The text.
        name: String,
    },
    /// Something follows the port.
    #[error(
        "'{text}' has more than a host and a port: leave out what follows the port, from '{rest}'"
    )]
    TrailingPath {
        /// What was given.
        text: String,
        /// From the first slash.
        rest: String,
    },
    /// Not a usable socket path.
    #[error("'{path}' cannot be the path of a Unix socket: {reason}")]
    BadPath {
        /// The text after `unix:`.
        path: String,
        /// What is wrong, and what to do.
        reason: &'static str,
    },
}

/// Why an endpoint cannot be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The name has no address, or the resolver failed.
    #[error(
        "cannot find the address of '{name}': {source}; check the spelling and the name server"
    )]
    Resolve {
        /// The name, or the address with its zone.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name exists and has no address.
    #[error("'{name}' has no IPv4 or IPv6 address: check the name, or give the address itself")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// `*`, 0.0.0.0 or :: as a destination.
    #[error(
        "{endpoint} means every address and can only be listened on: connect to :{port} (this machine) or to a host"
    )]
    NotADestination {
        /// The endpoint.
        endpoint: Endpoint,
        /// Its port.
        port: u16,
    },
    /// Port 0 as a destination.
    #[error(
        "{endpoint} has port 0, which only a listener may ask for: give the port that the server printed"
    )]
    PortZero {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// The socket could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Endpoint {
    /// Reads an endpoint whose scheme may be left out: `:7000` with [`Scheme::Tcp`] is
    /// `tcp://:7000`. A bare path is never taken for a Unix socket; `unix:` says so.
    ///
    /// # Errors
    /// [`EndpointError`] says what is wrong with the text and what to write.
    pub fn parse_with(text: &str, default: Option<Scheme>) -> Result<Self, EndpointError> {
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        if let Some(path) = strip_prefix_ignore_case(text, "unix:") {
            return parse_unix(path);
        }
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (parse_scheme(scheme)?, rest),
            None => match default {
                Some(Scheme::Tcp) => (Transport::Tcp, text),
                Some(Scheme::Udp) => (Transport::Udp, text),
                Some(Scheme::Unix) => return parse_unix(text),
                None => {
                    return Err(EndpointError::NoScheme {
                        text: text.to_owned(),
                    });
                }
            },
        };
        if let Some(slash) = rest.find('/') {
            return Err(EndpointError::TrailingPath {
                text: text.to_owned(),
                rest: rest[slash..].to_owned(),
            });
        }
        let (host, port) = parse_host_port(rest, text)?;
        Ok(Endpoint::Inet {
            transport,
            host,
            port,
        })
    }

    /// TCP, UDP or Unix.
    pub fn scheme(&self) -> Scheme {
        match self {
            Endpoint::Inet {
                transport: Transport::Tcp,
                ..
            } => Scheme::Tcp,
            Endpoint::Inet {
                transport: Transport::Udp,
                ..
            } => Scheme::Udp,
            Endpoint::Unix(_) => Scheme::Unix,
        }
    }

    /// The host; `None` for a Unix socket.
    pub fn host(&self) -> Option<&Host> {
        match self {
            Endpoint::Inet { host, .. } => Some(host),
            Endpoint::Unix(_) => None,
        }
    }

    /// The port; `None` for a Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Endpoint::Inet { port, .. } => Some(*port),
            Endpoint::Unix(_) => None,
        }
    }

    /// The path; `None` unless it is a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Endpoint::Inet { .. } => None,
            Endpoint::Unix(path) => Some(path),
        }
    }

    /// The addresses to bind, IPv4 first.
    ///
    /// Every IPv6 socket has to be bound with `IPV6_V6ONLY`: both families are listed, so a dual
    /// socket would collide with its IPv4 neighbour. Port 0 stays 0 in every address; binding
    /// each by itself would give each another port, so bind them through [`bind_all`].
    ///
    /// # Errors
    /// [`AddressError`] when a name or zone cannot be resolved.
    pub fn listen_addresses(&self) -> Result<Addresses, AddressError> {
        match self {
            Endpoint::Unix(path) => Ok(Addresses::Path(path.clone())),
            Endpoint::Inet { host, port, .. } => addresses_of(host, *port).map(Addresses::Sockets),
        }
    }

    /// The addresses to try in turn, in the resolver's order; loopback tries IPv4 first.
    ///
    /// # Errors
    /// [`AddressError`] when a name cannot be resolved, and for `*`, 0.0.0.0, `[::]` and port 0,
    /// which nobody can connect to.
    pub fn connect_addresses(&self) -> Result<Addresses, AddressError> {
        let (host, port) = match self {
            Endpoint::Unix(path) => return Ok(Addresses::Path(path.clone())),
            Endpoint::Inet { host, port, .. } => (host, *port),
        };
        if port == 0 {
            return Err(AddressError::PortZero {
                endpoint: self.clone(),
            });
        }
        let unspecified = match host {
            Host::Any => true,
            Host::Addr(address, _) => address.is_unspecified(),
            Host::Loopback | Host::Name(_) => false,
        };
        if unspecified {
            return Err(AddressError::NotADestination {
                endpoint: self.clone(),
                port,
            });
        }
        addresses_of(host, port).map(Addresses::Sockets)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        Endpoint::parse_with(text, None)
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> String {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Inet { host, port, .. } => write!(f, "{}://{host}:{port}", self.scheme()),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Binds every address of an endpoint with one port.
///
/// `bind` gets an address and returns what it bound with the address that the kernel gave it.
/// With port 0 the first address is bound first and its port used for the others; if it is taken
/// there, all are dropped and the kernel is asked again, up to 16 times. A family that this host
/// does not have (no IPv6) is left out as long as one address was bound.
///
/// # Errors
/// [`AddressError::Bind`] with the first address that could not be bound.
pub fn bind_all<T>(
    addresses: &[SocketAddr],
    mut bind: impl FnMut(SocketAddr) -> io::Result<(T, SocketAddr)>,
) -> Result<Vec<(T, SocketAddr)>, AddressError> {
    let mut attempt = 1;
    loop {
        match bind_once(addresses, &mut bind) {
            Err(AddressError::Bind { address, source })
                if source.kind() == io::ErrorKind::AddrInUse
                    && address.port() != 0
                    && addresses.iter().all(|wanted| wanted.port() == 0)
                    && attempt < PORT_ZERO_ATTEMPTS_MAX =>
            {
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn bind_once<T>(
    addresses: &[SocketAddr],
    bind: &mut impl FnMut(SocketAddr) -> io::Result<(T, SocketAddr)>,
) -> Result<Vec<(T, SocketAddr)>, AddressError> {
    let mut bound: Vec<(T, SocketAddr)> = Vec::with_capacity(addresses.len());
    let mut missing_family = None;
    for &wanted in addresses {
        let mut address = wanted;
        if let (0, Some((_, first))) = (wanted.port(), bound.first()) {
            address.set_port(first.port());
        }
        match bind(address) {
            Ok(socket) => bound.push(socket),
            Err(source) if is_missing_family(&source) => {
                missing_family.get_or_insert(AddressError::Bind { address, source });
            }
            Err(source) => return Err(AddressError::Bind { address, source }),
        }
    }
    match missing_family {
        Some(error) if bound.is_empty() => Err(error),
        _ => Ok(bound),
    }
}

fn is_missing_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn addresses_of(host: &Host, port: u16) -> Result<Vec<SocketAddr>, AddressError> {
    let pair = |v4: Ipv4Addr, v6: Ipv6Addr| {
        Ok(vec![
            SocketAddr::from((v4, port)),
            SocketAddr::from((v6, port)),
        ])
    };
    match host {
        Host::Loopback => pair(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        Host::Any => pair(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        Host::Addr(address, None) => Ok(vec![SocketAddr::new(*address, port)]),
        // getaddrinfo turns the zone into a scope id (RFC 4007 §11).
        Host::Addr(address, Some(zone)) => resolve(&format!("{address}%{zone}"), port),
        Host::Name(name) => resolve(name, port),
    }
}

fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, AddressError> {
    let found = (name, port)
        .to_socket_addrs()
        .map_err(|source| AddressError::Resolve {
            name: name.to_owned(),
            source,
        })?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(AddressError::NoAddress {
            name: name.to_owned(),
        });
    }
    Ok(addresses)
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix)
        .then(|| &text[prefix.len()..])
}

fn parse_scheme(scheme: &str) -> Result<Transport, EndpointError> {
    match scheme.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        "tls" => Err(EndpointError::NotYet {
            scheme: "tls",
            instead: "tcp",
        }),
        "dtls" => Err(EndpointError::NotYet {
            scheme: "dtls",
            instead: "udp",
        }),
        _ => Err(EndpointError::UnknownScheme {
            scheme: scheme.to_owned(),
        }),
    }
}

fn parse_unix(text: &str) -> Result<Endpoint, EndpointError> {
    let fail = |reason| EndpointError::BadPath {
        path: text.to_owned(),
        reason,
    };
    // `unix:///path` has an empty host between the second and the third slash (RFC 8089 §2).
    let path = match text.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(_) => {
            return Err(fail(
                "a host has no place here; write unix:/path or unix:///path",
            ));
        }
        None => text,
    };
    if path.is_empty() {
        return Err(fail("it is empty; write unix:/path"));
    }
    if path.starts_with('@') || path.contains('\0') {
        return Err(fail(
            "abstract sockets and NUL are not supported; give a path in a folder",
        ));
    }
    // `//x` printed after `unix:` would read as a host, so several leading slashes become one.
    let path = match path.trim_start_matches('/') {
        relative if relative.len() == path.len() => relative.to_owned(),
        rest => format!("/{rest}"),
    };
    if path.ends_with('/') {
        return Err(fail("it is a folder; add the name of the socket"));
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(fail(
            "it is longer than the 107 bytes of the kernel; use a shorter folder",
        ));
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

fn parse_host_port(text: &str, whole: &str) -> Result<(Host, u16), EndpointError> {
    if let Some(inner) = text.strip_prefix('[') {
        let Some((address, port)) = inner.split_once(']') else {
            return Err(EndpointError::BadAddress {
                address: text.to_owned(),
            });
        };
        let host = parse_ipv6(address)?;
        let Some(port) = port.strip_prefix(':') else {
            return Err(if port.is_empty() {
                EndpointError::NoPort {
                    text: whole.to_owned(),
                }
            } else {
                EndpointError::BadPort {
                    port: port.to_owned(),
                }
            });
        };
        return Ok((host, parse_port(port)?));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        // A lone number was meant as a port, all else as a host.
        return Err(EndpointError::NoPort {
            text: whole.to_owned(),
        });
    };
    let host = match host {
        "" => Host::Loopback,
        "*" => Host::Any,
        _ if host.contains(':') => {
            return Err(EndpointError::NeedsBrackets {
                host: host.to_owned(),
            });
        }
        _ => parse_ipv4_or_name(host)?,
    };
    Ok((host, parse_port(port)?))
}

fn parse_port(text: &str) -> Result<u16, EndpointError> {
    let bad = || EndpointError::BadPort {
        port: text.to_owned(),
    };
    // u16's own parser would also take "+7".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

fn parse_ipv6(text: &str) -> Result<Host, EndpointError> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().map_err(|_| EndpointError::BadAddress {
        address: text.to_owned(),
    })?;
    let Some(zone) = zone else {
        return Ok(Host::Addr(address.into(), None));
    };
    let fail = |reason| EndpointError::BadZone {
        address,
        zone: zone.to_owned(),
        reason,
    };
    // RFC 4291 §2.7: the low four bits of the second byte are a multicast address's scope.
    let link_local_group = address.is_multicast() && address.octets()[1] & 0x0f == 2;
    if !address.is_unicast_link_local() && !link_local_group {
        return Err(fail(
            "only a link-local address (fe80::…, ff02::…) has one; leave it out",
        ));
    }
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'[' | b']' | b'/');
    if zone.is_empty() || zone.len() > ZONE_BYTES_MAX || !zone.bytes().all(allowed) {
        return Err(fail(
            "give an interface's name or index, as in [fe80::1%eth0]",
        ));
    }
    Ok(Host::Addr(address.into(), Some(zone.to_owned())))
}

fn parse_ipv4_or_name(text: &str) -> Result<Host, EndpointError> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Addr(address.into(), None));
    }
    let labels = text.strip_suffix('.').unwrap_or(text);
    let last = labels.rsplit('.').next().unwrap_or_default();
    // No top-level domain is a number (RFC 3696 §2): `1.2.3` is a mistyped address, not a name.
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EndpointError::BadAddress {
            address: text.to_owned(),
        });
    }
    let good_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if labels.len() > NAME_BYTES_MAX || !labels.split('.').all(good_label) {
        return Err(EndpointError::BadName {
            name: text.to_owned(),
        });
    }
    Ok(Host::Name(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddrV6, TcpListener};

    use proptest::prelude::*;

    use super::*;

    fn inet(transport: Transport, host: Host, port: u16) -> Endpoint {
        Endpoint::Inet {
            transport,
            host,
            port,
        }
    }

    fn v6(text: &str, zone: Option<&str>) -> Host {
        Host::Addr(IpAddr::V6(text.parse().unwrap()), zone.map(str::to_owned))
    }

    fn sockets(addresses: Addresses) -> Vec<String> {
        match addresses {
            Addresses::Sockets(list) => list.iter().map(SocketAddr::to_string).collect(),
            Addresses::Path(path) => vec![path.display().to_string()],
        }
    }

    #[test]
    fn texts_and_what_they_mean() {
        use Transport::{Tcp, Udp};
        let v4 = |text: &str| Host::Addr(IpAddr::V4(text.parse().unwrap()), None);
        for (text, expected) in [
            ("tcp://:7000", inet(Tcp, Host::Loopback, 7000)),
            ("udp://:7000", inet(Udp, Host::Loopback, 7000)),
            ("udp://*:7000", inet(Udp, Host::Any, 7000)),
            ("tcp://*:0", inet(Tcp, Host::Any, 0)),
            ("tcp://1.2.3.4:7", inet(Tcp, v4("1.2.3.4"), 7)),
            ("tcp://0.0.0.0:65535", inet(Tcp, v4("0.0.0.0"), 65535)),
            ("tcp://[::1]:7", inet(Tcp, v6("::1", None), 7)),
            (
                "tcp://[fe80::1%eth0]:7",
                inet(Tcp, v6("fe80::1", Some("eth0")), 7),
            ),
            (
                "udp://[ff02::1%2]:7",
                inet(Udp, v6("ff02::1", Some("2")), 7),
            ),
            (
                "tcp://localhost:80",
                inet(Tcp, Host::Name("localhost".into()), 80),
            ),
            (
                "tcp://a-b.example.:80",
                inet(Tcp, Host::Name("a-b.example.".into()), 80),
            ),
            ("TCP://:1", inet(Tcp, Host::Loopback, 1)),
            (
                "unix:/run/echo.sock",
                Endpoint::Unix("/run/echo.sock".into()),
            ),
            (
                "unix:///run/echo.sock",
                Endpoint::Unix("/run/echo.sock".into()),
            ),
            ("unix:echo.sock", Endpoint::Unix("echo.sock".into())),
            ("unix:////run//x", Endpoint::Unix("/run//x".into())),
        ] {
            assert_eq!(text.parse::<Endpoint>().as_ref(), Ok(&expected), "{text}");
            assert_eq!(
                expected.to_string().parse(),
                Ok(expected),
                "{text} printed and read again"
            );
        }
    }

    #[test]
    fn a_default_scheme_fills_the_gap() {
        for (text, default, expected) in [
            (":7000", Scheme::Tcp, "tcp://:7000"),
            ("*:7000", Scheme::Udp, "udp://*:7000"),
            ("[::1]:5", Scheme::Udp, "udp://[::1]:5"),
            ("host:5", Scheme::Tcp, "tcp://host:5"),
            ("udp://:1", Scheme::Tcp, "udp://:1"),
            ("/run/x", Scheme::Unix, "unix:/run/x"),
        ] {
            let endpoint = Endpoint::parse_with(text, Some(default)).unwrap();
            assert_eq!(endpoint.to_string(), expected);
        }
    }

    #[test]
    fn errors_name_the_cause_and_the_remedy() {
        for (text, words) in [
            ("", "tcp://:7000"),
            (":7000", "write tcp://:7000 or udp://:7000"),
            ("http://x:1", "'http' is not a transport"),
            ("tls://:1", "not yet in this version: use tcp://"),
            ("dtls://:1", "not yet in this version: use udp://"),
            ("tcp://host", "has no port"),
            ("tcp://[::1]", "has no port"),
            ("tcp://:", "port ''"),
            ("tcp://:65536", "port '65536'"),
            ("tcp://:+7", "port '+7'"),
            ("tcp://::1:7", "brackets"),
            ("tcp://[::1", "not an IP address"),
            ("tcp://[1.2.3.4]:7", "not an IP address"),
            ("tcp://1.2.3:7", "not an IP address"),
            ("tcp://1.2.3.256:7", "not an IP address"),
            ("tcp://[::1%lo]:7", "only a link-local address"),
            ("tcp://[fe80::1%]:7", "interface's name"),
            ("tcp://[fe80::1%sixteen-letters!]:7", "interface's name"),
            ("tcp://a b:7", "not a host name"),
            ("tcp://-a:7", "not a host name"),
            ("tcp://a..b:7", "not a host name"),
            ("tcp://:7/x", "leave out what follows the port, from '/x'"),
            ("unix:", "empty"),
            ("unix://host/path", "unix:///path"),
            ("unix:@name", "abstract"),
            ("unix:/run/", "folder"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(
                error.contains(words),
                "{text:?} gave {error:?}, which lacks {words:?}"
            );
        }
        let long = format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX));
        assert!(
            long.parse::<Endpoint>()
                .unwrap_err()
                .to_string()
                .contains("shorter")
        );
        assert!(long[..long.len() - 1].parse::<Endpoint>().is_ok());
    }

    #[test]
    fn addresses_follow_one_rule_for_tcp_and_udp() {
        for scheme in ["tcp", "udp"] {
            for (rest, listen, connect) in [
                (
                    ":9",
                    vec!["127.0.0.1:9", "[::1]:9"],
                    Some(vec!["127.0.0.1:9", "[::1]:9"]),
                ),
                ("*:9", vec!["0.0.0.0:9", "[::]:9"], None),
                (
                    "192.0.2.1:9",
                    vec!["192.0.2.1:9"],
                    Some(vec!["192.0.2.1:9"]),
                ),
                ("0.0.0.0:9", vec!["0.0.0.0:9"], None),
                ("[::]:9", vec!["[::]:9"], None),
                (":0", vec!["127.0.0.1:0", "[::1]:0"], None),
            ] {
                let endpoint: Endpoint = format!("{scheme}://{rest}").parse().unwrap();
                assert_eq!(sockets(endpoint.listen_addresses().unwrap()), listen);
                assert_eq!(endpoint.connect_addresses().map(sockets).ok(), {
                    connect.map(|list| list.into_iter().map(str::to_owned).collect())
                });
            }
        }
        let unix: Endpoint = "unix:/run/x".parse().unwrap();
        assert_eq!(sockets(unix.listen_addresses().unwrap()), ["/run/x"]);
        assert_eq!(sockets(unix.connect_addresses().unwrap()), ["/run/x"]);
    }

    #[test]
    fn names_and_zones_are_resolved_by_the_host() {
        let local: Endpoint = "tcp://localhost:9".parse().unwrap();
        let found = sockets(local.connect_addresses().unwrap());
        assert!(
            found.iter().any(|a| a == "127.0.0.1:9" || a == "[::1]:9"),
            "{found:?}"
        );

        // By index, because no interface name is certain to exist.
        let zoned: Endpoint = "tcp://[fe80::1%1]:9".parse().unwrap();
        let expected = SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 1);
        assert_eq!(
            zoned.connect_addresses().unwrap(),
            Addresses::Sockets(vec![expected.into()])
        );

        // RFC 6761 §6.4: .invalid never resolves.
        let unknown: Endpoint = "tcp://nowhere.invalid:9".parse().unwrap();
        let error = unknown.connect_addresses().unwrap_err().to_string();
        assert!(error.contains("nowhere.invalid"), "{error}");
    }

    #[test]
    fn port_zero_gives_one_port_to_both_families() {
        let endpoint: Endpoint = "tcp://:0".parse().unwrap();
        let Addresses::Sockets(addresses) = endpoint.listen_addresses().unwrap() else {
            panic!("a TCP endpoint has socket addresses");
        };
        let bound = bind_all(&addresses, |address| {
            let listener = TcpListener::bind(address)?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        })
        .unwrap();
        assert_ne!(bound[0].1.port(), 0);
        assert!(
            bound
                .iter()
                .all(|(_, local)| local.port() == bound[0].1.port())
        );
    }

    /// A stand-in kernel: answers in the order given.
    fn bind_script(
        addresses: &[&str],
        answers: Vec<Result<u16, i32>>,
    ) -> (Result<Vec<String>, String>, Vec<String>) {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let mut asked = Vec::new();
        let mut answers = answers.into_iter();
        let result = bind_all(&addresses, |mut address| {
            asked.push(address.to_string());
            match answers.next().expect("asked more often than expected") {
                Ok(port) => {
                    address.set_port(port);
                    Ok(((), address))
                }
                Err(errno) => Err(io::Error::from_raw_os_error(errno)),
            }
        });
        let result = result
            .map(|bound| bound.iter().map(|(_, local)| local.to_string()).collect())
            .map_err(|error| error.to_string());
        (result, asked)
    }

    #[test]
    fn a_port_taken_on_the_second_address_is_asked_for_again() {
        let (result, asked) = bind_script(
            &["127.0.0.1:0", "[::1]:0"],
            vec![Ok(5000), Err(libc::EADDRINUSE), Ok(5001), Ok(5001)],
        );
        assert_eq!(result.unwrap(), ["127.0.0.1:5001", "[::1]:5001"]);
        assert_eq!(
            asked,
            ["127.0.0.1:0", "[::1]:5000", "127.0.0.1:0", "[::1]:5001"]
        );

        let (result, asked) = bind_script(&["127.0.0.1:9", "[::1]:9"], vec![Err(libc::EADDRINUSE)]);
        assert!(result.unwrap_err().contains("cannot listen on 127.0.0.1:9"));
        assert_eq!(asked.len(), 1, "a fixed port is not tried twice");

        let tries = PORT_ZERO_ATTEMPTS_MAX;
        let answers = (0..tries)
            .flat_map(|_| [Ok(5000), Err(libc::EADDRINUSE)])
            .collect();
        let (result, asked) = bind_script(&["127.0.0.1:0", "[::1]:0"], answers);
        assert!(result.is_err());
        assert_eq!(asked.len(), 2 * tries);
    }

    #[test]
    fn a_missing_family_is_left_out_unless_nothing_remains() {
        for errno in [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT] {
            let (result, _) = bind_script(&["0.0.0.0:9", "[::]:9"], vec![Ok(9), Err(errno)]);
            assert_eq!(result.unwrap(), ["0.0.0.0:9"]);
            let (result, _) = bind_script(&["[::]:9"], vec![Err(errno)]);
            assert!(result.unwrap_err().contains("cannot listen on [::]:9"));
        }
    }

    #[test]
    fn files_carry_endpoints_as_text() {
        let endpoint: Endpoint = serde_json::from_str("\"udp://*:7\"").unwrap();
        assert_eq!(serde_json::to_string(&endpoint).unwrap(), "\"udp://*:7\"");
        let error = serde_json::from_str::<Endpoint>("\"tls://:7\"").unwrap_err();
        assert!(error.to_string().contains("not yet in this version"));
    }

    fn any_host() -> impl Strategy<Value = Host> {
        let link_local = |last: u64| {
            let bits = (0xfe80_u128 << 112) | u128::from(last);
            IpAddr::V6(Ipv6Addr::from(bits))
        };
        prop_oneof![
            Just(Host::Loopback),
            Just(Host::Any),
            any::<Ipv4Addr>().prop_map(|a| Host::Addr(a.into(), None)),
            any::<Ipv6Addr>().prop_map(|a| Host::Addr(a.into(), None)),
            (any::<u64>(), "[a-z][a-z0-9.@_-]{0,14}")
                .prop_map(move |(last, zone)| Host::Addr(link_local(last), Some(zone))),
            "[a-z][a-z0-9_]{0,9}(\\.[a-z][a-z0-9]{0,9}){0,3}".prop_map(Host::Name),
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(host in any_host(), port: u16, udp: bool) {
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            let endpoint = inet(transport, host, port);
            prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
        }

        #[test]
        fn no_text_panics_and_what_is_read_is_stable(text in "\\PC{0,40}") {
            for default in [None, Some(Scheme::Tcp), Some(Scheme::Unix)] {
                if let Ok(endpoint) = Endpoint::parse_with(&text, default) {
                    prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
                }
            }
        }

        #[test]
        fn near_misses_do_not_panic(
            text in "(tcp|udp|unix|tls):(//)?(\\*|\\[[0-9a-f:%]{0,12}\\]?|[a-z0-9.:-]{0,12}):?[0-9]{0,6}"
        ) {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
            }
        }
    }
}
