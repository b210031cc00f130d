//! Endpoints as people type them (`tcp://:7000`, `udp://*:7000`, `unix:/run/echo.sock`) and the
//! socket addresses that they stand for.
//!
//! One rule for every transport: `:7000` is this machine only (127.0.0.1 and ::1), `*:7000` is
//! every address (0.0.0.0 and ::), anything else is the address or name itself. Parsing (`parse`)
//! looks at the text alone; it must never ask the host. Only [`Endpoint::listen_addresses`] and
//! [`Endpoint::connect_addresses`] (`resolve`) resolve names, and nothing here opens a socket:
//! [`bind_all`] is given the way to.

mod bind;
mod error;
mod parse;
mod resolve;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use bind::bind_all;
pub use error::{AddressError, EndpointError};
pub use parse::{NAME_BYTES_MAX, UNIX_PATH_BYTES_MAX, ZONE_BYTES_MAX};
pub use resolve::Addresses;

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

impl Endpoint {
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
