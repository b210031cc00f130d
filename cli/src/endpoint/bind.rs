//! One port on every address of an endpoint, also when the kernel is to choose it.

use std::io;
use std::net::SocketAddr;

use super::AddressError;

/// With port 0 the kernel picks a port for the first address, which may be taken on the second.
/// Sixteen tries fail together only on a host that has next to no free port.
const PORT_ZERO_ATTEMPTS_MAX: usize = 16;

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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::endpoint::{Addresses, Endpoint};

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
}
