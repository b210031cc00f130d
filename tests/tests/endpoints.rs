//! Where a server is reached: ports in use and shared, loopback pairs, the address that was asked.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use ringmill_tests::net::{
    answers, assert_datagram_echo, assert_message_echo, connect, datagram_socket, has_ipv6,
};
use ringmill_tests::program::{PATIENCE, Running, Server, command};
use ringmill_tests::{drivers, skipped};

/// Starts a server that cannot; returns its exit code and what it says.
fn refused(endpoint: &str, flags: &[&str]) -> (i32, String) {
    let mut command = command();
    command.args(["serve", "echo", endpoint, "--json"]);
    let mut running = Running::start(&mut command, flags);
    let (code, lines) = running.wait(PATIENCE);
    assert!(lines.is_empty(), "{endpoint}: {lines:?}");
    (code, running.stderr())
}

#[test]
fn a_port_in_use_names_the_ringmill_that_holds_it() {
    for driver in drivers() {
        let endpoints = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        for shards in ["1", "2"] {
            let flags = ["--driver", driver, "--shards", shards];
            let server = Server::start(&endpoints, &flags);
            let pid = server.running.pid();
            for number in 0..endpoints.len() {
                let endpoint = server.endpoint(number);
                let (code, said) = refused(endpoint, &flags);
                let context = format!("{driver}, {shards} shards, {endpoint}: {said}");
                assert_eq!(code, 2, "{context}");
                let address = endpoint.split_once("://").expect("an endpoint").1;
                assert!(said.contains(address), "{context}");
                assert!(
                    said.contains(&format!("held by ringmill, process {pid}")),
                    "{context}"
                );
            }
            assert_eq!(server.stop().code, 0, "{driver}");
        }
    }
}

#[test]
fn a_port_in_use_names_any_other_program_that_holds_it() {
    for driver in drivers() {
        let stream = TcpListener::bind("127.0.0.1:0").expect("a port");
        let datagram = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let me = format!("process {}", std::process::id());
        for (scheme, address) in [
            ("tcp", stream.local_addr().expect("an address")),
            ("udp", datagram.local_addr().expect("an address")),
        ] {
            let (code, said) = refused(&format!("{scheme}://{address}"), &["--driver", driver]);
            assert_eq!(code, 2, "{said}");
            assert!(said.contains(&me), "{said}");
            // An address of the port's pair is enough to be in the way.
            let port = address.port();
            let (code, said) = refused(&format!("{scheme}://:{port}"), &["--driver", driver]);
            assert_eq!(code, 2, "{said}");
            assert!(said.contains(&me), "{said}");
        }
    }
}

#[test]
fn a_port_is_shared_when_both_say_so() {
    for driver in drivers() {
        for endpoint in ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"] {
            let flags = ["--driver", driver, "--share-port"];
            let first = Server::start(&[endpoint], &flags);
            let shared = first.endpoint(0).to_owned();
            let (code, said) = refused(&shared, &["--driver", driver]);
            assert_eq!(code, 2, "one that does not share: {said}");
            let second = Server::start(&[&shared], &flags);
            assert_eq!(second.endpoint(0), shared);
            let address: SocketAddr = first.address(&shared[..3]);
            // Whoever gets it answers.
            for _ in 0..20 {
                if endpoint.starts_with("tcp") {
                    assert_message_echo(&mut connect(address), b"whoever");
                } else {
                    assert_datagram_echo(&datagram_socket("127.0.0.1:0"), address, b"whoever");
                }
            }
            let (first, second) = (first.stop(), second.stop());
            assert_eq!((first.code, second.code), (0, 0), "{driver}");
            let total = |counter| first.counter(counter) + second.counter(counter);
            assert_eq!(
                total("accepted") + total("received_datagrams"),
                20,
                "{driver}"
            );
        }
    }
}

#[test]
fn a_path_in_use_or_without_a_folder_is_an_error() {
    for driver in drivers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("echo").display().to_string();
        let endpoint = format!("unix:{path}");
        let server = Server::start(&[&endpoint], &["--driver", driver]);
        let (code, said) = refused(&endpoint, &["--driver", driver]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(&path), "{said}");
        // The one that serves was not disturbed.
        let stream = std::os::unix::net::UnixStream::connect(&path);
        assert!(stream.is_ok(), "{driver}: {stream:?}");
        drop(stream);
        assert_eq!(server.stop().code, 0, "{driver}");
        assert_eq!(
            Server::start(&[&endpoint], &["--driver", driver])
                .stop()
                .code,
            0,
            "{driver}: after a stopped server"
        );
        // And a server that was killed does not block the next one.
        drop(Server::start(&[&endpoint], &["--driver", driver]));
        assert_eq!(
            Server::start(&[&endpoint], &["--driver", driver])
                .stop()
                .code,
            0,
            "{driver}: after a killed server"
        );
        let (code, said) = refused("unix:/no/such/folder/echo", &["--driver", driver]);
        assert_eq!(code, 2, "{said}");
    }
}

#[test]
fn loopback_has_one_port_for_both_ip_versions() {
    if !has_ipv6() {
        return skipped("this host has no IPv6 loopback");
    }
    for driver in drivers() {
        let server = Server::start(&["tcp://:0", "udp://:0"], &["--driver", driver]);
        let address = |number: usize| -> SocketAddr {
            let endpoint = server.endpoint(number);
            let address = endpoint.split_once("://").expect("an endpoint").1;
            address.parse().expect("an address")
        };
        for pair in [0, 2] {
            let (v4, v6) = (address(pair), address(pair + 1));
            assert_eq!(v4.port(), v6.port(), "{:?}", server.listening);
            assert_ne!(v4.port(), 0);
            assert_eq!(v4.ip().to_string(), "127.0.0.1");
            assert_eq!(v6.ip().to_string(), "::1");
        }
        for number in [0, 1] {
            assert_message_echo(&mut connect(address(number)), b"either");
        }
        assert_datagram_echo(&datagram_socket("127.0.0.1:0"), address(2), b"either");
        assert_datagram_echo(&datagram_socket("[::1]:0"), address(3), b"either");
        // Only loopback: another address of this host is not served.
        let other = SocketAddr::from(([127, 0, 0, 5], address(0).port()));
        assert!(std::net::TcpStream::connect_timeout(&other, PATIENCE).is_err());
        assert_eq!(server.stop().code, 0, "{driver}");
    }
}

#[test]
fn a_wildcard_answers_from_the_address_that_was_asked() {
    for driver in drivers() {
        for shards in ["1", "2"] {
            let flags = ["--driver", driver, "--shards", shards];
            let server = Server::start(&["udp://*:0", "tcp://*:0"], &flags);
            let port = server.address("udp").port();
            for host in ["127.0.0.1", "127.0.0.5", "127.8.9.10"] {
                let asked: SocketAddr = format!("{host}:{port}").parse().expect("an address");
                let socket = datagram_socket("127.0.0.1:0");
                for size in [1, 1222, 8972] {
                    let data = vec![7; size];
                    let from = assert_datagram_echo(&socket, asked, &data);
                    assert_eq!(from, asked, "{driver}");
                }
            }
            if has_ipv6() {
                let asked = format!("[::1]:{port}").parse().expect("an address");
                let from = assert_datagram_echo(&datagram_socket("[::1]:0"), asked, b"six");
                assert_eq!(from, asked, "{driver}");
            } else {
                skipped("this host has no IPv6 loopback");
            }
            let port = server.address("tcp").port();
            let asked = SocketAddr::from(([127, 0, 0, 5], port));
            assert!(
                answers(&mut connect(asked), Duration::from_secs(10)),
                "{driver}"
            );
            assert_eq!(server.stop().code, 0, "{driver}");
        }
    }
}

/// The next server has the port at once, after a clean end and after a kill, although the kernel
/// takes the rings of a process apart only after its end.
#[test]
fn a_server_can_be_replaced_at_once() {
    for driver in drivers() {
        let mut endpoints = vec![
            "tcp://127.0.0.1:0".to_owned(),
            "udp://127.0.0.1:0".to_owned(),
        ];
        for killed in [false, false, true, true, false] {
            let asked: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            let server = Server::start(&asked, &["--driver", driver]);
            assert_message_echo(&mut connect(server.address("tcp")), b"next");
            assert_datagram_echo(
                &datagram_socket("127.0.0.1:0"),
                server.address("udp"),
                b"next",
            );
            endpoints = vec![server.endpoint(0).to_owned(), server.endpoint(1).to_owned()];
            if killed {
                drop(server);
            } else {
                assert_eq!(server.stop().code, 0, "{driver}");
            }
        }
    }
}
