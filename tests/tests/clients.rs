//! Echo with clients and servers that nobody here wrote: every byte comes back, in order, once.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use ringmill_tests::net::{
    assert_datagram_echo, assert_stream_echo, connect, datagram_socket, has_ipv6, random_bytes,
};
use ringmill_tests::peer::{Peer, has};
use ringmill_tests::program::{Load, Server, tethered, until};
use ringmill_tests::{drivers, skipped};

/// One byte, around a message, a page, a receive buffer, and more than all socket buffers hold.
const STREAM_SIZES: [usize; 7] = [1, 31, 1460, 4096, 65_537, 1_000_003, 12_345_678];
/// One byte, around the path MTU of Ethernet, jumbo frames, and more than one page.
const DATAGRAM_SIZES: [usize; 6] = [1, 32, 1222, 1472, 1473, 8972];

#[test]
fn plain_sockets_and_half_close() {
    for driver in drivers() {
        let server = Server::start(&["tcp://:0", "udp://:0"], &["--driver", driver]);
        for size in STREAM_SIZES.into_iter().chain([0]) {
            assert_stream_echo(connect(server.address("tcp")), &random_bytes(size));
        }
        let socket = datagram_socket("127.0.0.1:0");
        for size in DATAGRAM_SIZES.into_iter().chain([0, 65_507]) {
            assert_datagram_echo(&socket, server.address("udp"), &random_bytes(size));
        }
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        let total: usize = STREAM_SIZES.iter().sum();
        assert_eq!(stopped.counter("received_bytes"), total as u64, "{driver}");
        assert_eq!(stopped.counter("sent_bytes"), total as u64, "{driver}");
        assert_eq!(stopped.counter("open"), 0, "{driver}");
    }
}

/// The addresses at which socat and ncat reach a server, as each of them writes them.
fn stream_peers(server: &Server, path: &str) -> Vec<Vec<String>> {
    let mut peers: Vec<String> = Vec::new();
    for line in &server.listening {
        let endpoint = line["endpoint"].as_str().unwrap_or("");
        if let Some(address) = endpoint.strip_prefix("tcp://") {
            let (host, port) = address.rsplit_once(':').expect("an address with a port");
            let version = if host.starts_with('[') { 6 } else { 4 };
            // -t: how long socat waits for the rest after its own end of input.
            peers.push(format!("socat -t 20 - TCP{version}:{host}:{port}"));
            let host = host.trim_matches(['[', ']']);
            peers.push(format!("ncat -{version} {host} {port}"));
        }
    }
    peers.push(format!("socat -t 20 - UNIX-CONNECT:{path}"));
    peers.push(format!("ncat -U {path}"));
    peers
        .iter()
        .map(|line| line.split(' ').map(str::to_owned).collect())
        .collect()
}

#[test]
fn streams_of_socat_and_ncat() {
    let (socat, ncat) = (has("socat"), has("ncat"));
    if !has_ipv6() {
        skipped("this host has no IPv6 loopback");
    }
    for driver in drivers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("echo");
        let path = path.to_str().expect("a plain path");
        let unix = format!("unix:{path}");
        let server = Server::start(&["tcp://:0", &unix], &["--driver", driver]);
        for arguments in stream_peers(&server, path) {
            if !(if arguments[0] == "socat" { socat } else { ncat }) {
                continue;
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            for size in [1, 4096, 1_000_003] {
                let data = random_bytes(size);
                let back = Peer::start(&arguments).exchange(&data);
                assert!(
                    back == data,
                    "{driver}: {}: {} of {size} bytes, or others",
                    arguments.join(" "),
                    back.len()
                );
            }
        }
        assert_eq!(server.stop().code, 0, "{driver}");
    }
}

#[test]
fn datagrams_of_socat_and_ncat() {
    let (socat, ncat) = (has("socat"), has("ncat"));
    for driver in drivers() {
        let server = Server::start(&["udp://:0"], &["--driver", driver]);
        for line in &server.listening {
            let address = line["endpoint"].as_str().unwrap_or("");
            let address = address.trim_start_matches("udp://");
            let (host, port) = address.rsplit_once(':').expect("an address with a port");
            let version = if host.starts_with('[') { "6" } else { "4" };
            if socat {
                // -b: the largest datagram that it makes of its input.
                let to = format!("UDP{version}:{host}:{port}");
                let mut peer = Peer::start(&["socat", "-b", "65507", "-", &to]);
                for size in DATAGRAM_SIZES {
                    let data = random_bytes(size);
                    assert!(peer.ask(&data) == data, "{driver}: socat, {size} bytes");
                }
            }
            if ncat {
                let host = host.trim_matches(['[', ']']);
                let mut peer = Peer::start(&["ncat", "-u", &format!("-{version}"), host, port]);
                for size in DATAGRAM_SIZES {
                    let data = random_bytes(size);
                    assert!(peer.ask(&data) == data, "{driver}: ncat, {size} bytes");
                }
            }
        }
        assert_eq!(server.stop().code, 0, "{driver}");
    }
}

/// A free port of 127.0.0.1, for servers that cannot choose one themselves.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn the_load_client_against_servers_of_socat_and_ncat() {
    let (socat, ncat) = (has("socat"), has("ncat"));
    for driver in drivers() {
        let port = free_port();
        let flags = ["-c", "8", "--depth", "4", "-d", "500ms", "--driver", driver];
        let mut servers = Vec::new();
        if socat {
            let listen = format!("TCP4-LISTEN:{port},bind=127.0.0.1,fork,backlog=64");
            servers.push(vec!["socat".to_owned(), listen, "PIPE".into()]);
        }
        if ncat {
            let line = format!("ncat -l 127.0.0.1 {port} -k -e /bin/cat");
            servers.push(line.split(' ').map(str::to_owned).collect());
        }
        for arguments in servers {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let _server = Peer::start(&arguments);
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            until("the foreign server", || {
                std::net::TcpStream::connect(address).ok()
            });
            let load = Load::run(&format!("tcp://127.0.0.1:{port}"), &flags);
            load.assert_clean();
        }
    }
}

/// Only sockperf's sending side fits an echo server: its ping-pong drops answers that are not its
/// own server's, and its server ignores messages that are not its own client's. iperf3 cannot speak
/// echo at all.
#[test]
fn datagrams_of_sockperf() {
    if !has("sockperf") {
        return;
    }
    for driver in drivers() {
        let mut server = Server::start(&["udp://127.0.0.1:0"], &["--driver", driver]);
        let port = server.address("udp").port().to_string();
        let mut client = tethered(Command::new("sockperf"));
        client.args([
            "throughput",
            "-i",
            "127.0.0.1",
            "-p",
            &port,
            "-t",
            "1",
            "--mps",
            "1000",
        ]);
        let done = client
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("sockperf can be started");
        assert!(done.success(), "{driver}: sockperf ended by {done}");
        let line = server.running.line_where("sockperf's datagrams", |line| {
            line["type"] == "interval"
                && line["counters"]["received_datagrams"].as_u64() > Some(500)
                && line["datagrams_per_s"] == 0.0
        });
        assert_eq!(
            line["counters"]["received_datagrams"], line["counters"]["sent_datagrams"],
            "{driver}"
        );
        assert_eq!(server.stop().code, 0, "{driver}");
    }
}
