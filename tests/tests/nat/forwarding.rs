//! What comes in goes out, unchanged and to the right end: both IP versions, every length, ECN.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use ringmill_tests::drivers;
use ringmill_tests::net::{DATAGRAM_LEN_MAX, datagram_socket, has_ipv6, random_bytes};
use ringmill_tests::program::{PATIENCE, Running, command, until};
use socket2::SockRef;

use crate::process::{Nat, at, exchange, receive, roomy_socket};

/// The largest UDP payload over IPv6.
const DATAGRAM_LEN_MAX_V6: usize = 65_527;
/// ECN fields (RFC 3168 §5): not capable, ECT(1), ECT(0), CE.
const ECN_FIELDS: [u8; 4] = [0, 1, 2, 3];

/// Ends of a NAT: where it listens, and where it sends to.
const VERSIONS: [(&str, &str); 4] = [
    ("127.0.0.1:0", "127.0.0.1:0"),
    ("[::1]:0", "[::1]:0"),
    ("127.0.0.1:0", "[::1]:0"),
    ("[::1]:0", "127.0.0.1:0"),
];

/// The pairs of IP versions that this host has.
fn versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    let ipv6 = has_ipv6();
    if !ipv6 {
        ringmill_tests::skipped("IPv6: no address ::1");
    }
    let is_v4 = |address: &str| !address.starts_with('[');
    VERSIONS
        .into_iter()
        .filter(move |(listen, to)| ipv6 || (is_v4(listen) && is_v4(to)))
}

#[test]
fn every_length_both_ways_over_every_version() {
    for driver in drivers() {
        for (listen, to) in versions() {
            let server = roomy_socket(to);
            let nat = Nat::start_at(listen, &[at(&server).to_string()], &["--driver", driver]);
            let client = roomy_socket(listen);
            let mut bytes = 0;
            let mut count = 0;
            let mut source = None;
            for len in [
                0,
                1,
                64,
                1222,
                1472,
                2048,
                2049,
                8972,
                65_000,
                DATAGRAM_LEN_MAX,
                0,
                5,
            ] {
                let from = exchange(&client, nat.address(), &server, &random_bytes(len));
                assert_eq!(
                    *source.get_or_insert(from),
                    from,
                    "one socket for the client"
                );
                bytes += len as u64;
                count += 1;
            }
            let stopped = nat.stop();
            for way in ["forward", "backward"] {
                for kind in ["received", "sent"] {
                    let counter = |what| stopped.count(&format!("counters.{way}_{kind}_{what}"));
                    assert_eq!(counter("datagrams"), count, "{driver}, {listen} to {to}");
                    assert_eq!(counter("bytes"), bytes, "{driver}, {listen} to {to}");
                }
            }
            assert_eq!(stopped.count("counters.socket_errors"), 0);
        }
    }
}

/// IPv6 carries twenty bytes more than IPv4: such a datagram cannot go on, but it harms nobody.
#[test]
fn a_datagram_too_long_for_the_other_version() {
    if !has_ipv6() {
        return ringmill_tests::skipped("IPv6: no address ::1");
    }
    for driver in drivers() {
        let server = roomy_socket("127.0.0.1:0");
        let nat = Nat::start_at("[::1]:0", &[at(&server).to_string()], &["--driver", driver]);
        let client = roomy_socket("[::1]:0");
        exchange(&client, nat.address(), &server, b"before");
        client
            .send_to(&random_bytes(DATAGRAM_LEN_MAX_V6), nat.address())
            .expect("IPv6 takes it");
        exchange(&client, nat.address(), &server, b"after");
        let stopped = nat.stop();
        assert_eq!(
            stopped.count("counters.socket_errors"),
            1,
            "{driver}: it was refused"
        );
        assert_eq!(stopped.count("counters.forward_received_datagrams"), 3);
    }
}

/// A server that answers from further ports can be reached at each of them, and only there.
#[test]
fn ports_are_kept() {
    for driver in drivers() {
        let servers = [(); 2].map(|()| roomy_socket("127.0.0.1:0"));
        let [first, second] = servers.each_ref().map(|server| at(server).port());
        let listen = |port| SocketAddr::from(([127, 0, 0, 2], port));
        let more = listen(second).to_string();
        let flags = ["--keep-port", "--listen", &more, "--driver", driver];
        // The port of the destination is not used.
        let to = ["127.0.0.1:9".to_owned()];
        let nat = Nat::start_at(&listen(first).to_string(), &to, &flags);
        let client = roomy_socket("127.0.0.1:0");
        for (server, port) in servers.iter().zip([first, second]) {
            exchange(&client, listen(port), server, b"to each its own");
        }
        let from = exchange(&client, listen(first), &servers[0], b"again");
        servers[1].send_to(b"astray", from).expect("send");
        exchange(&client, listen(first), &servers[0], b"after");
        let stopped = nat.stop();
        assert_eq!(stopped.count("counters.entries_created"), 2, "{driver}");
        assert_eq!(
            stopped.count("counters.dropped_wrong_routed"),
            1,
            "{driver}"
        );
    }
}

/// Where ports are kept, the NAT's own address is the NAT, whatever the port.
#[test]
fn kept_ports_do_not_go_round() {
    let flags = ["nat", "127.0.0.1:0", "127.0.0.1:9", "--keep-port"];
    let output = command().args(flags).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("round for ever"), "{said}");
}

/// Receives one datagram with its ECN field.
fn receive_ecn(socket: &UdpSocket) -> u8 {
    let mut space = nix::cmsg_space!(libc::c_int, libc::c_int);
    let mut bytes = [0; 64];
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let fd = socket.as_raw_fd();
    let message = recvmsg::<SockaddrStorage>(fd, &mut buffers, Some(&mut space), MsgFlags::empty())
        .unwrap_or_else(|error| panic!("nothing came: {error}"));
    let found = message
        .cmsgs()
        .expect("control messages fit")
        .find_map(|next| match next {
            ControlMessageOwned::Ipv4Tos(class) => Some(class),
            ControlMessageOwned::Ipv6TClass(class) => Some(class as u8),
            _ => None,
        });
    found.expect("a class") & 3
}

fn set_ecn(socket: &UdpSocket, ecn: u8) {
    let (ipv4, socket) = (at(socket).is_ipv4(), SockRef::from(socket));
    let set = if ipv4 {
        socket.set_tos_v4(ecn.into())
    } else {
        socket.set_tclass_v6(ecn.into())
    };
    set.expect("a socket takes a class");
}

fn tell_ecn(socket: &UdpSocket) {
    let (ipv4, socket) = (at(socket).is_ipv4(), SockRef::from(socket));
    let set = if ipv4 {
        socket.set_recv_tos_v4(true)
    } else {
        socket.set_recv_tclass_v6(true)
    };
    set.expect("a socket tells the class");
}

#[test]
fn ecn_passes_unchanged_or_bleached() {
    for driver in drivers() {
        for (listen, to) in versions() {
            for bleaches in [false, true] {
                let server = datagram_socket(to);
                let mut flags = vec!["--driver", driver];
                if bleaches {
                    flags.extend(["--impair", "bleach=100%"]);
                }
                let nat = Nat::start_at(listen, &[at(&server).to_string()], &flags);
                let client = datagram_socket(listen);
                let context = format!("{driver}, {listen} to {to}, bleaches: {bleaches}");
                let source = exchange(&client, nat.address(), &server, b"hello");
                tell_ecn(&server);
                tell_ecn(&client);
                for ecn in ECN_FIELDS {
                    let want = if bleaches { 0 } else { ecn };
                    set_ecn(&client, ecn);
                    client.send_to(b"there", nat.address()).expect("send");
                    assert_eq!(receive_ecn(&server), want, "there: {context}");
                    set_ecn(&server, ecn);
                    server.send_to(b"back", source).expect("send");
                    assert_eq!(receive_ecn(&client), want, "back: {context}");
                }
                let stopped = nat.stop();
                for way in ["forward", "backward"] {
                    let bleached = stopped.count(&format!("{way}.bleached"));
                    assert_eq!(bleached, if bleaches { 3 } else { 0 }, "{way}: {context}");
                }
            }
        }
    }
}

/// A managed queue marks what can be marked and drops nothing of it.
#[test]
fn queues_mark_congestion() {
    const COUNT: u64 = 200;
    for driver in drivers() {
        for queue in ["codel=1ms/10ms,ecn", "red=100/60k/100%,ecn"] {
            let server = roomy_socket("127.0.0.1:0");
            let spec = format!("rate=4Mbit,queue=1M,{queue}");
            let nat = Nat::start(&[at(&server)], &["--forward", &spec, "--driver", driver]);
            let client = datagram_socket("127.0.0.1:0");
            tell_ecn(&server);
            set_ecn(&client, 2);
            for _ in 0..COUNT {
                client
                    .send_to(&random_bytes(500), nat.address())
                    .expect("send");
            }
            let arrived: Vec<u8> = (0..COUNT).map(|_| receive_ecn(&server)).collect();
            let marked = arrived.iter().filter(|ecn| **ecn == 3).count() as u64;
            let whole = arrived.iter().filter(|ecn| **ecn == 2).count() as u64;
            assert_eq!(marked + whole, COUNT, "{driver}, {queue}: {arrived:?}");
            assert!(marked > 0, "{driver}, {queue}");
            let stopped = nat.stop();
            assert_eq!(stopped.count("forward.marked"), marked, "{driver}, {queue}");
            assert_eq!(stopped.count("forward.passed"), COUNT, "{driver}, {queue}");
        }
    }
}

#[test]
fn sources_and_ports_are_those_that_were_given() {
    for driver in drivers() {
        let server = datagram_socket("127.0.0.1:0");
        // Four ports that were free a moment ago, and may be in use again: then the next is taken.
        let first = at(&datagram_socket("127.0.0.1:0")).port().min(60_000);
        let ports = format!("{first}-{}", first + 3);
        let flags = ["--sources", "127.0.0.2,127.0.0.3", "--driver", driver];
        let nat = Nat::start(&[at(&server)], &flags);
        let clients: Vec<_> = (0..4).map(|_| datagram_socket("127.0.0.1:0")).collect();
        let sources = clients.iter().map(|client| {
            exchange(client, nat.address(), &server, b"hello")
                .ip()
                .to_string()
        });
        let sources: Vec<_> = sources.collect();
        assert_eq!(
            sources,
            ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]
        );
        nat.stop();
        for (reuse, again) in [("oldest", 1), ("newest", 2)] {
            let flags = [
                "--ports",
                &ports,
                "--port-reuse",
                reuse,
                "--sources",
                "127.0.0.4",
            ];
            let nat = Nat::start(
                &[at(&server)],
                &[&flags[..], &["--driver", driver]].concat(),
            );
            let port = |client| exchange(client, nat.address(), &server, b"hello");
            let one = port(&clients[0]);
            assert_eq!(one.ip().to_string(), "127.0.0.4");
            assert!((first..first + 4).contains(&one.port()), "{one}");
            let two = port(&clients[1]);
            let three = port(&clients[2]);
            // The first entry ends, then the second: its port is the latest that became free.
            for ended in [one, two] {
                nat.order("clear 1");
                until("the port to be free", || UdpSocket::bind(ended).ok());
            }
            let next = port(&clients[3]);
            let last = port(&clients[0]);
            let all = [one, two, three, next];
            if again == 1 {
                assert!(
                    !all[..3].contains(&next),
                    "the one that was never used: {all:?}"
                );
                assert_eq!(last, one, "{reuse}");
            } else {
                assert_eq!((next, last), (two, one), "{reuse}");
            }
            // All four in use: a fifth client cannot be served, and is as soon as one is free.
            port(&clients[1]);
            let fifth = datagram_socket("127.0.0.1:0");
            fifth.send_to(b"?", nat.address()).expect("send");
            nat.until_count("counters.dropped_no_socket", 1);
            nat.order("clear 1");
            until("a port to be free", || {
                all.iter().find(|port| UdpSocket::bind(port).is_ok())
            });
            exchange(&fifth, nat.address(), &server, b"hello");
            let stopped = nat.stop();
            assert_eq!(stopped.count("counters.dropped_no_socket"), 1, "{driver}");
        }
    }
}

/// A client answers to the address that it sent to, where the NAT has several.
#[test]
fn answers_come_from_the_address_that_was_asked() {
    let server = datagram_socket("127.0.0.1:0");
    for driver in drivers() {
        let nat = Nat::start_at(
            "0.0.0.0:0",
            &[at(&server).to_string()],
            &["--driver", driver],
        );
        let port = nat.address().port();
        let client = datagram_socket("0.0.0.0:0");
        for host in [[127, 0, 0, 1], [127, 1, 2, 3], [127, 0, 0, 9]] {
            exchange(&client, (host, port).into(), &server, b"hello");
        }
        assert_eq!(nat.stop().count("counters.entries_created"), 1);
    }
}

/// Nobody is there: the kernel's refusals change nothing for those who come later.
#[test]
fn a_destination_that_is_down() {
    for driver in drivers() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            if local.starts_with('[') && !has_ipv6() {
                ringmill_tests::skipped("IPv6: no address ::1");
                continue;
            }
            let down = datagram_socket(local);
            let to = at(&down);
            drop(down);
            let nat = Nat::start_at(local, &[to.to_string()], &["--driver", driver]);
            let client = datagram_socket(local);
            for n in 1..=50 {
                client.send_to(b"anybody?", nat.address()).expect("send");
                nat.until_count("counters.forward_sent_datagrams", n);
            }
            let up = UdpSocket::bind(to).expect("the port is free again");
            up.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            exchange(&client, nat.address(), &up, b"here!");
            let stopped = nat.stop();
            assert_eq!(
                stopped.count("counters.forward_sent_datagrams"),
                51,
                "{driver}"
            );
            assert_eq!(stopped.count("counters.entries_created"), 1, "{driver}");
        }
    }
}

/// A client that has gone is no reason to end either.
#[test]
fn a_client_that_is_gone() {
    for driver in drivers() {
        let server = datagram_socket("127.0.0.1:0");
        let nat = Nat::start(&[at(&server)], &["--driver", driver]);
        let client = datagram_socket("127.0.0.1:0");
        let source = exchange(&client, nat.address(), &server, b"hello");
        drop(client);
        for n in 2..=20 {
            server.send_to(b"are you there?", source).expect("send");
            nat.until_count("counters.backward_sent_datagrams", n);
        }
        let other = datagram_socket("127.0.0.1:0");
        exchange(&other, nat.address(), &server, b"hello");
        nat.stop();
    }
}

#[test]
fn the_dtls_filter_lets_records_pass() {
    let record = |kind: u8, minor: u8, len: usize| {
        let mut record = random_bytes(len);
        record[..3].copy_from_slice(&[kind, 254, minor]);
        record
    };
    for driver in drivers() {
        let server = datagram_socket("127.0.0.1:0");
        let nat = Nat::start(&[at(&server)], &["--dtls-only", "--driver", driver]);
        let client = datagram_socket("127.0.0.1:0");
        let source = exchange(&client, nat.address(), &server, &record(22, 253, 14));
        let others = [
            Vec::new(),
            b"hello".to_vec(),
            record(22, 253, 13),
            record(24, 253, 100),
            record(23, 255, 100),
            record(22, 252, 100),
        ];
        for other in &others {
            client.send_to(other, nat.address()).expect("send");
            server.send_to(other, source).expect("send");
        }
        for kind in [20, 21, 22, 23, 25] {
            exchange(&client, nat.address(), &server, &record(kind, 253, 1000));
        }
        exchange(&client, nat.address(), &server, &record(22, 255, 14));
        let stopped = nat.stop();
        let dropped = 2 * others.len() as u64;
        assert_eq!(
            stopped.count("counters.dropped_not_dtls"),
            dropped,
            "{driver}"
        );
        assert_eq!(
            stopped.count("counters.forward_sent_datagrams"),
            7,
            "{driver}"
        );
    }
}

/// A stranger who sends to the port of an entry reaches nobody.
#[test]
fn what_comes_from_elsewhere_is_dropped() {
    for driver in drivers() {
        let servers = [(); 2].map(|()| datagram_socket("127.0.0.1:0"));
        let stranger = datagram_socket("127.0.0.1:0");
        // The second one is known, but used by nobody at first.
        let flags = ["--balance", "round-robin", "--driver", driver];
        let nat = Nat::start(&[at(&servers[0]), at(&servers[1])], &flags);
        let client = datagram_socket("127.0.0.1:0");
        let source = exchange(&client, nat.address(), &servers[0], b"hello");
        let used = |n: usize| nat.info()["destinations"][n]["entries"].clone();
        for other in [&stranger, &servers[1]] {
            other.send_to(b"psst", source).expect("send");
        }
        nat.until_count("counters.dropped_wrong_routed", 2);
        assert_eq!((used(0), used(1)), (1.into(), 0.into()));
        // With the reverse update the known one takes over, the stranger never does.
        nat.order("reverse on");
        stranger.send_to(b"psst", source).expect("send");
        nat.until_count("counters.dropped_wrong_routed", 3);
        servers[1].send_to(b"from the other", source).expect("send");
        assert_eq!(
            receive(&client),
            (b"from the other".to_vec(), nat.address())
        );
        assert_eq!((used(0), used(1)), (0.into(), 1.into()));
        exchange(&client, nat.address(), &servers[1], b"and on");
        nat.order("reverse off");
        servers[0].send_to(b"late", source).expect("send");
        nat.until_count("counters.dropped_wrong_routed", 4);
        exchange(&client, nat.address(), &servers[1], b"and on");
        let stopped = nat.stop();
        assert_eq!(
            stopped.count("counters.dropped_wrong_routed"),
            4,
            "{driver}"
        );
        assert_eq!(stopped.count("counters.reassigned"), 1, "{driver}");
    }
}

/// What cannot work is said at the start, in words, with an exit code, and nothing runs on.
#[test]
fn what_cannot_work_is_said_at_the_start() {
    let taken = datagram_socket("127.0.0.1:0");
    let used = at(&taken).to_string();
    let free = at(&datagram_socket("127.0.0.1:0")).to_string();
    let any = format!("*:{}", at(&datagram_socket("127.0.0.1:0")).port());
    let own = any.replace('*', "127.0.0.1");
    let to = "127.0.0.1:9";
    for (arguments, codes, want) in [
        (vec![used.as_str(), to], &[1, 2][..], "in use"),
        (
            vec![&free, "no-such-host.invalid:1"],
            &[1, 2],
            "no-such-host.invalid",
        ),
        (vec![&free, &free], &[2], "where this NAT listens itself"),
        (vec![&any, &own], &[2], "where this NAT listens itself"),
        (vec![&free, "127.0.0.1"], &[2], "port"),
        (vec![&free], &[2], "required"),
        (
            vec![&free, to, "--sources", "192.0.2.77"],
            &[2],
            "cannot send from it",
        ),
        (vec![&free, to, "--sources", "::1"], &[2], "IP version"),
        (vec![&free, to, "--ports", "9-1"], &[2], "no range of ports"),
        (vec![&free, to, "--impair", "loss=200%"], &[2], "loss"),
        (
            vec![&free, to, "--impair", "rate=1Mbit", "--shards", "2"],
            &[2],
            "one queue",
        ),
        (vec![&free, to, "--rebind", "0s"], &[2], "at least 1ms"),
        (
            vec![&free, to, "--scenario", "/no/such/file"],
            &[1, 2],
            "/no/such/file",
        ),
    ] {
        let mut line = command();
        line.arg("nat").args(&arguments);
        let mut running = Running::start(&mut line, &["--json"]);
        let (code, lines) = running.wait(PATIENCE);
        let said = running.stderr();
        assert!(codes.contains(&code), "{arguments:?}: {code}: {said}");
        assert!(said.contains(want), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert!(lines.is_empty(), "{arguments:?}: {lines:?}");
    }
    // Nothing is left that holds the port.
    UdpSocket::bind(&*free).expect("the port is free again");
}

/// A destination that is the NAT itself is refused at the console as well.
#[test]
fn a_loop_cannot_be_added() {
    let server = datagram_socket("127.0.0.1:0");
    let nat = Nat::start(&[at(&server)], &[]);
    let answer = nat.ask(&format!("add {}", nat.address()));
    assert_eq!(answer["ok"], false, "{answer}");
    let error = answer["error"].as_str().unwrap_or_default();
    assert!(error.contains("where this NAT listens itself"), "{answer}");
    assert_eq!(nat.info()["destinations"].as_array().map(Vec::len), Some(1));
    nat.stop();
}

/// A signal ends it with its last line; what is in progress then is not lost uncounted.
#[test]
fn signals_end_it() {
    for driver in drivers() {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let server = datagram_socket("127.0.0.1:0");
            let nat = Nat::start(&[at(&server)], &["--driver", driver]);
            let client = datagram_socket("127.0.0.1:0");
            exchange(&client, nat.address(), &server, b"hello");
            let address: SocketAddr = nat.address();
            nat.running.signal(signal);
            let stopped = nat.ended();
            assert_eq!(
                stopped.count("counters.forward_sent_datagrams"),
                1,
                "{driver}"
            );
            assert_eq!(
                stopped.count("counters.backward_sent_datagrams"),
                1,
                "{driver}"
            );
            assert_eq!(stopped.stderr, "", "{driver}");
            UdpSocket::bind(address).expect("the port is free again");
        }
    }
}
