//! Which destination a client gets, for how long, and what happens when there is no room or no answer.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use ringmill_tests::net::datagram_socket;
use ringmill_tests::program::PATIENCE;
use ringmill_tests::{drivers, skipped};
use serde_json::json;

use crate::process::{Nat, assert_silent, at, destinations, exchange, receive, roomy_socket};

/// After how long an idle entry ends here.
const TIMEOUT: Duration = Duration::from_millis(300);

fn sockets<const N: usize>() -> [UdpSocket; N] {
    [(); N].map(|()| datagram_socket("127.0.0.1:0"))
}

/// The server that a datagram of the client reaches; it answers.
fn reaches(client: &UdpSocket, nat: &Nat, servers: &[UdpSocket]) -> usize {
    client.send_to(b"who?", nat.address()).expect("send");
    let mut polled: Vec<_> = servers
        .iter()
        .map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN))
        .collect();
    let patience = u16::try_from(PATIENCE.as_millis()).expect("less than a minute");
    assert_eq!(poll(&mut polled, patience), Ok(1), "one server gets it");
    let ready = |next: &PollFd| next.any() == Some(true);
    let server = polled.iter().position(ready).expect("one has something");
    let (_, from) = receive(&servers[server]);
    servers[server].send_to(b"me", from).expect("send");
    assert_eq!(receive(client), (b"me".to_vec(), nat.address()));
    server
}

fn start(servers: &[UdpSocket], flags: &[&str]) -> Nat {
    let addresses: Vec<_> = servers.iter().map(at).collect();
    Nat::start(&addresses, flags)
}

#[test]
fn one_after_the_other_and_the_least_used() {
    for driver in drivers() {
        let servers: [_; 3] = sockets();
        let clients: [_; 9] = sockets();
        let flags = ["--balance", "round-robin", "--driver", driver];
        let nat = start(&servers, &flags);
        for _ in 0..2 {
            // A client stays where it is.
            let found = clients
                .each_ref()
                .map(|client| reaches(client, &nat, &servers));
            assert_eq!(found, [0, 1, 2, 0, 1, 2, 0, 1, 2], "{driver}");
        }
        nat.stop();

        let flags = ["--balance", "least-used", "--driver", driver];
        let nat = start(&servers[..2], &flags);
        let mut used = [0; 3];
        for client in &clients[..4] {
            used[reaches(client, &nat, &servers)] += 1;
        }
        assert_eq!(used, [2, 2, 0], "{driver}");
        nat.order(&format!("add {}", at(&servers[2])));
        for client in &clients[4..6] {
            assert_eq!(reaches(client, &nat, &servers), 2, "{driver}");
        }
        // The entries of a destination that is taken away get another one.
        nat.order(&format!("remove {}", at(&servers[0])));
        let mut used = [0; 3];
        for client in &clients[..6] {
            used[reaches(client, &nat, &servers)] += 1;
        }
        assert_eq!(used, [0, 3, 3], "{driver}");
        assert_eq!(nat.stop().count("counters.reassigned"), 2, "{driver}");
    }
}

#[test]
fn at_random_by_seed_and_by_hash() {
    let servers: [_; 3] = sockets();
    let clients: [_; 90] = sockets();
    let found = |balance, seed, driver| {
        let nat = start(
            &servers,
            &["--balance", balance, "--seed", seed, "--driver", driver],
        );
        let found = clients
            .each_ref()
            .map(|client| reaches(client, &nat, &servers));
        // The same after the entries are gone: it is the client that decides.
        nat.order("clear");
        let again = clients
            .each_ref()
            .map(|client| reaches(client, &nat, &servers));
        assert_eq!(found, again, "{balance}");
        for server in 0..servers.len() {
            let used = found.iter().filter(|found| **found == server).count();
            // 30 on average, with a standard deviation of 4.5.
            assert!((8..=52).contains(&used), "{balance}: {used} at {server}");
        }
        nat.stop();
        found
    };
    for driver in drivers() {
        assert_eq!(found("random", "7", driver), found("random", "7", driver));
        assert_ne!(found("random", "7", driver), found("random", "8", driver));
        let hashed = found("hash", "7", driver);
        assert_eq!(hashed, found("hash", "8", driver), "the seed is no matter");
        // A destination that goes moves only its own clients, and they come back with it.
        let nat = start(&servers, &["--balance", "hash", "--driver", driver]);
        nat.order(&format!("remove {}", at(&servers[1])));
        for (client, before) in clients.iter().zip(&hashed) {
            let now = reaches(client, &nat, &servers);
            assert!(if *before == 1 {
                now != 1
            } else {
                now == *before
            });
        }
        nat.order(&format!("add {}", at(&servers[1])));
        nat.order("clear");
        let now = clients
            .each_ref()
            .map(|client| reaches(client, &nat, &servers));
        assert_eq!(now, hashed, "{driver}");
        nat.stop();
    }
}

#[test]
fn without_any_destination_nothing_passes() {
    let servers: [_; 1] = sockets();
    let clients: [_; 2] = sockets();
    let nat = start(&servers, &[]);
    reaches(&clients[0], &nat, &servers);
    let word = format!("remove {}", at(&servers[0]));
    nat.order(&word);
    for client in &clients {
        client.send_to(b"?", nat.address()).expect("send");
    }
    nat.until_count("counters.dropped_no_destination", 2);
    nat.order(&word.replace("remove", "add"));
    for client in &clients {
        reaches(client, &nat, &servers);
    }
    nat.stop();
}

#[test]
fn a_full_table_refuses_newcomers() {
    for driver in drivers() {
        for shards in ["1", "2"] {
            let servers: [_; 1] = sockets();
            let clients: [_; 5] = sockets();
            let flags = ["-n", "3", "--driver", driver, "--shards", shards];
            let nat = start(&servers, &flags);
            for client in &clients[..3] {
                reaches(client, &nat, &servers);
            }
            for client in &clients[3..] {
                client.send_to(b"?", nat.address()).expect("send");
            }
            nat.until_count("counters.dropped_table_full", 2);
            for client in &clients[..3] {
                reaches(client, &nat, &servers);
            }
            nat.order("clear 1");
            reaches(&clients[3], &nat, &servers);
            assert_silent(&servers[0]);
            let stopped = nat.stop();
            assert_eq!(stopped.count("counters.dropped_table_full"), 2, "{driver}");
            assert_eq!(stopped.count("counters.entries_created"), 4, "{driver}");
        }
    }
}

#[test]
fn a_full_table_makes_room_if_it_may() {
    for driver in drivers() {
        let servers: [_; 1] = sockets();
        let clients: [_; 4] = sockets();
        let flags = ["-n", "3", "--when-full", "evict-oldest", "--driver", driver];
        let nat = start(&servers, &flags);
        let ask = |client| exchange(client, nat.address(), &servers[0], b"hello");
        let sources: Vec<_> = clients[..3].iter().map(ask).collect();
        // The first is used again: the second is the oldest then.
        assert_eq!(ask(&clients[0]), sources[0]);
        ask(&clients[3]);
        // What comes late for the one that had to go reaches nobody.
        servers[0].send_to(b"late", sources[1]).expect("send");
        assert_eq!(ask(&clients[0]), sources[0]);
        assert_eq!(ask(&clients[2]), sources[2]);
        assert_silent(&clients[1]);
        let stopped = nat.stop();
        assert_eq!(stopped.count("counters.entries_evicted"), 1, "{driver}");
        assert_eq!(stopped.count("entries"), 3, "{driver}");
    }
}

/// An entry that makes room takes nothing with it that was counted as sent.
#[test]
fn what_was_sent_by_an_evicted_entry_arrives() {
    const EACH: u64 = 500;
    for driver in drivers() {
        let server = roomy_socket("127.0.0.1:0");
        let clients: [_; 2] = sockets();
        let flags = ["-n", "1", "--when-full", "evict-oldest", "--driver", driver];
        let nat = Nat::start(&[at(&server)], &flags);
        let mut sent = 0;
        for _ in 0..EACH {
            for client in &clients {
                client.send_to(b"to and fro", nat.address()).expect("send");
                sent += 1;
            }
            if sent % 100 == 0 {
                nat.until_count("counters.forward_received_datagrams", sent);
            }
        }
        nat.until_count("counters.forward_received_datagrams", sent);
        let stopped = nat.stop();
        let counted = stopped.count("counters.forward_sent_datagrams");
        for n in 0..counted {
            let (data, _) = receive(&server);
            assert_eq!(data, b"to and fro", "{driver}: number {n} of {counted}");
        }
        assert_silent(&server);
        assert_eq!(counted, 2 * EACH, "{driver}");
    }
}

#[test]
fn an_idle_entry_ends() {
    let timeout = format!("{}ms", TIMEOUT.as_millis());
    for driver in drivers() {
        let server = datagram_socket("127.0.0.1:0");
        let clients: [_; 3] = sockets();
        let flags = ["--entry-timeout", &timeout, "--driver", driver];
        let mut nat = Nat::start(&[at(&server)], &flags);
        let to = nat.address();
        let idle = exchange(&clients[0], to, &server, b"hello");
        let busy = [1, 2].map(|n| exchange(&clients[n], to, &server, b"hello"));
        // One is kept by what it sends, one by what it gets. Where this host is too busy to do so in
        // time, they end as they should, and nothing can be said about keeping.
        let mut slowest = Duration::ZERO;
        let mut last = Instant::now();
        while nat.count("counters.entries_timed_out") == 0 {
            clients[1].send_to(b"still here", to).expect("send");
            receive(&server);
            server.send_to(b"for you", busy[1]).expect("send");
            slowest = slowest.max(last.elapsed());
            last = Instant::now();
            receive(&clients[2]);
        }
        let ended = nat.event("timed_out");
        if slowest > TIMEOUT / 2 {
            skipped(&format!(
                "entries kept alive: this host paused for {slowest:?}"
            ));
            continue;
        }
        assert_eq!(
            ended,
            json!({
                "type": "nat",
                "event": "timed_out",
                "client": at(&clients[0]),
                "port": idle.port(),
            })
        );
        for (client, port) in clients[1..].iter().zip(busy) {
            assert_eq!(exchange(client, to, &server, b"hello"), port, "{driver}");
        }
        server.send_to(b"late", idle).expect("send");
        let now = exchange(&clients[0], to, &server, b"hello again");
        assert_ne!(now, idle, "{driver}: another socket");
        assert_silent(&clients[0]);
        // All of them in the end.
        nat.until_count("counters.entries_timed_out", 4);
        let stopped = nat.stop();
        assert_eq!(stopped.count("entries"), 0, "{driver}");
        assert_eq!(stopped.count("destinations.0.entries"), 0, "{driver}");
    }
}

#[test]
fn a_silent_destination_is_left_out_and_comes_back() {
    for driver in drivers() {
        let servers: [_; 2] = sockets();
        let clients: [_; 5] = sockets();
        let flags = [
            "--balance",
            "round-robin",
            "--destination-timeout",
            "300ms",
            "--driver",
            driver,
        ];
        let mut nat = start(&servers, &flags);
        let [silent, other] = servers.each_ref().map(|server| at(server).to_string());
        let event = |state: &str, revived: bool| {
            json!({
                "type": "nat",
                "event": "destination",
                "destination": silent,
                "state": state,
                "revived": revived,
            })
        };
        clients[0]
            .send_to(b"anybody?", nat.address())
            .expect("send");
        assert_eq!(nat.event("destination"), event("stale", false), "{driver}");
        // Nobody new gets it, and its entry goes elsewhere.
        for client in [&clients[0], &clients[1]] {
            exchange(client, nat.address(), &servers[1], b"hello");
        }
        assert_eq!(
            nat.event("destination"),
            event("probing", false),
            "{driver}"
        );
        // The next newcomer tries it, and only that one.
        let (_, from) = receive(&servers[0]);
        clients[2]
            .send_to(b"are you back?", nat.address())
            .expect("send");
        assert_eq!(receive(&servers[0]).0, b"are you back?");
        assert_eq!(nat.info()["destinations"][0]["state"], "pending");
        exchange(&clients[3], nat.address(), &servers[1], b"hello");
        // It says nothing: the same again.
        assert_eq!(nat.event("destination"), event("stale", false), "{driver}");
        assert_eq!(
            nat.event("destination"),
            event("probing", false),
            "{driver}"
        );
        clients[4]
            .send_to(b"and now?", nat.address())
            .expect("send");
        let (_, source) = receive(&servers[0]);
        servers[0].send_to(b"yes", source).expect("send");
        assert_eq!(receive(&clients[4]).0, b"yes");
        assert_eq!(nat.event("destination"), event("active", true), "{driver}");
        assert_eq!(nat.info()["destinations"][0]["state"], "active");
        // What the first entry had sent to it came from the socket that the client still has.
        assert_ne!(from, source);
        assert_eq!(nat.info()["destinations"][1]["name"], other);
        nat.stop();
    }
}

#[test]
fn the_last_destination_stays_and_rebalancing_takes_all_back() {
    let servers: [_; 2] = sockets();
    let clients: [_; 2] = sockets();
    let flags = ["--balance", "round-robin", "--destination-timeout", "200ms"];
    let mut nat = start(&servers, &flags);
    for client in &clients {
        client.send_to(b"anybody?", nat.address()).expect("send");
    }
    let stale = nat.event("destination");
    assert_eq!(stale["state"], "stale");
    let probing = nat.event("destination");
    assert_eq!(
        probing["state"], "probing",
        "the other one stays: {probing}"
    );
    assert_eq!(stale["destination"], probing["destination"]);
    nat.order("rebalance");
    // It owes nothing from now on; the other one may go stale at once, as it is not the last now.
    let info = nat.info();
    let back = destinations(&info).find(|next| next["name"] == stale["destination"]);
    assert_eq!(
        back.map(|next| &next["state"]),
        Some(&json!("active")),
        "{info}"
    );
    nat.stop();
}
