//! The servers of a test as they are named: `host[:port]`, IPv6 with a port as `[address]:port`. All
//! have addresses of one family: that of the first one, if none was asked for.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};

use ringmill_protocols::capacity::CONTROL_PORT;

use super::session::Server;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    #[must_use]
    pub fn of(address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Not how a server is named.
    #[error("'{text}' is no server: write HOST, HOST:PORT or [IPV6]:PORT")]
    Text {
        /// What was given.
        text: String,
    },
    /// The name cannot be resolved.
    #[error("cannot resolve '{name}': {source}")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The name has addresses, but of the other family.
    #[error("'{name}' has no {family} address, and all servers of a test must have one")]
    Family {
        /// The name.
        name: String,
        /// The family of the test.
        family: Family,
    },
}

/// Host and port of `text`.
///
/// # Errors
/// It is no server's name.
pub fn parse(text: &str, default_port: u16) -> Result<(String, u16), ServerError> {
    let wrong = || ServerError::Text { text: text.into() };
    let number = |port: &str| match port.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(wrong()),
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
        let port = match port.strip_prefix(':') {
            Some(port) => number(port)?,
            None if port.is_empty() => default_port,
            None => return Err(wrong()),
        };
        (host, port)
    } else {
        match text.split_once(':') {
            // More than one colon: an IPv6 address without a port.
            Some((_, rest)) if rest.contains(':') => (text, default_port),
            Some((host, port)) => (host, number(port)?),
            None => (text, default_port),
        }
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok((host.into(), port))
}

/// Finds the addresses of all servers.
///
/// # Errors
/// A server that is not named right, is not known, or has no address of the family.
pub fn resolve<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    default_port: Option<u16>,
    family: Option<Family>,
) -> Result<Vec<Server>, ServerError> {
    let mut family = family;
    let mut servers = Vec::new();
    for text in texts {
        let (name, port) = parse(text, default_port.unwrap_or(CONTROL_PORT))?;
        let addresses = match name.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => (name.as_str(), port)
                .to_socket_addrs()
                .map_err(|source| ServerError::Resolve {
                    name: name.clone(),
                    source,
                })?
                .collect(),
        };
        // An IPv4 address written as one of IPv6 is one of IPv4.
        let plain = |address: SocketAddr| match address.ip() {
            IpAddr::V6(ip) => match mapped(ip) {
                Some(ip) => SocketAddr::new(ip, address.port()),
                None => address,
            },
            IpAddr::V4(_) => address,
        };
        let fits = |address: &SocketAddr| family.is_none_or(|family| Family::of(address) == family);
        let found = addresses.iter().copied().map(plain).find(fits);
        let address = found.ok_or_else(|| ServerError::Family {
            name: name.clone(),
            family: family.unwrap_or(Family::V4),
        })?;
        family = Some(Family::of(&address));
        servers.push(Server { name, address });
    }
    Ok(servers)
}

fn mapped(address: Ipv6Addr) -> Option<IpAddr> {
    address.to_ipv4_mapped().map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_what_they_mean() {
        for (text, want) in [
            ("host", Some(("host", 24601))),
            ("host:1", Some(("host", 1))),
            ("192.0.2.1:25000", Some(("192.0.2.1", 25000))),
            ("::1", Some(("::1", 24601))),
            ("2001:db8::1", Some(("2001:db8::1", 24601))),
            ("[::1]", Some(("::1", 24601))),
            ("[::1]:7", Some(("::1", 7))),
            ("", None),
            (":7", None),
            ("host:", None),
            ("host:0", None),
            ("host:65536", None),
            ("[::1", None),
            ("[::1]7", None),
            ("a host", None),
        ] {
            let read = parse(text, CONTROL_PORT).ok();
            let want = want.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(read, want, "{text}");
        }
    }

    #[test]
    fn the_first_server_decides_the_family() {
        for (texts, family, want) in [
            (&["127.0.0.1", "127.0.0.2:9"][..], None, Some(2)),
            (&["127.0.0.1", "::1"], None, None),
            (&["::1", "[::2]:9"], Some(Family::V6), Some(2)),
            (&["::1"], Some(Family::V4), None),
            (&["::ffff:127.0.0.1"], Some(Family::V4), Some(1)),
        ] {
            let found = resolve(texts.iter().copied(), None, family);
            assert_eq!(found.ok().map(|servers| servers.len()), want, "{texts:?}");
        }
    }
}
