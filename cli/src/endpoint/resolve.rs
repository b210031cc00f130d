//! From an [`Endpoint`] to the socket addresses that it stands for on this host. The only place
//! that asks the resolver.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use super::{AddressError, Endpoint, Host};

/// What an endpoint stands for on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// Socket addresses, in the order in which to use them; never empty.
    Sockets(Vec<SocketAddr>),
    /// The path of a Unix socket.
    Path(PathBuf),
}

impl Endpoint {
    /// The addresses to bind, IPv4 first.
    ///
    /// Every IPv6 socket has to be bound with `IPV6_V6ONLY`: both families are listed, so a dual
    /// socket would collide with its IPv4 neighbour. Port 0 stays 0 in every address; binding
    /// each by itself would give each another port, so bind them through
    /// [`bind_all`](super::bind_all).
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    fn sockets(addresses: Addresses) -> Vec<String> {
        match addresses {
            Addresses::Sockets(list) => list.iter().map(SocketAddr::to_string).collect(),
            Addresses::Path(path) => vec![path.display().to_string()],
        }
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
}
