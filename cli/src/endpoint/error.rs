//! What can be wrong with an endpoint, as text and on this host, and what to write instead.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use super::Endpoint;

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
    #[error("cannot listen on {address}: {source}{}", remedy(source))]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What to do about an address that cannot be bound; nothing where the kernel's words say it.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "; this host has no such address, `ip addr` lists those it has"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below net.ipv4.ip_unprivileged_port_start need root or CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_bound_says_what_to_do() {
        for (errno, words) in [
            (libc::EADDRNOTAVAIL, "`ip addr`"),
            (libc::EACCES, "CAP_NET_BIND_SERVICE"),
            (libc::EADDRINUSE, "in use"),
        ] {
            let error = AddressError::Bind {
                address: ([192, 0, 2, 1], 80).into(),
                source: io::Error::from_raw_os_error(errno),
            };
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
