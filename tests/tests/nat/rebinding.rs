//! Clients whose ports change under way, as connection ids are for, and scenarios that change over time.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use ringmill_tests::net::datagram_socket;
use ringmill_tests::program::{PATIENCE, until};
use ringmill_tests::restrict::raise_file_limit;
use ringmill_tests::{drivers, skipped};
use serde_json::Value;

use crate::process::{Nat, assert_silent, at, count, exchange, receive, roomy_socket};

const CLIENTS: usize = 1_000;
/// Files of this process beside the clients.
const FILES_RESERVED: u64 = 100;
/// Clients that ask at a time: fewer datagrams than a socket buffer holds.
const AT_ONCE: usize = 100;
/// How long a client keeps a port.
const EVERY: Duration = Duration::from_secs(1);
/// Each client has moved at least this often at the end.
const MOVES_MIN: u32 = 1;

/// Where a server last saw each client.
struct Seen {
    port: Vec<Option<u16>>,
    moves: Vec<u32>,
    /// It was answered at the port that it has now.
    answered: Vec<bool>,
}

/// Some clients ask, and the server answers once all have; gives how many got their answer.
fn ask(
    nat: &Nat,
    server: &UdpSocket,
    clients: &[UdpSocket],
    first: usize,
    seen: &mut Seen,
) -> usize {
    for (number, client) in (first..).zip(clients) {
        let question = (number as u64).to_le_bytes();
        client.send_to(&question, nat.address()).expect("send");
    }
    let came: Vec<(Vec<u8>, SocketAddr)> = clients.iter().map(|_| receive(server)).collect();
    for (question, from) in &came {
        let number: [u8; 8] = question[..].try_into().expect("eight bytes");
        let number = u64::from_le_bytes(number) as usize;
        let before = seen.port[number].replace(from.port());
        if before != Some(from.port()) {
            seen.moves[number] += u32::from(before.is_some());
            seen.answered[number] = false;
        }
    }
    // Each answer is passed on, or dropped and counted.
    let passed = |info: &Value| count(info, "counters.backward_sent_datagrams");
    let dropped = |info: &Value| count(info, "counters.dropped_old_binding");
    let before = nat.info();
    for (question, from) in &came {
        server.send_to(question, from).expect("send");
    }
    let settled = passed(&before) + dropped(&before) + came.len() as u64;
    let after = until("all answers to be treated", || {
        let info = nat.info();
        (passed(&info) + dropped(&info) == settled).then_some(info)
    });
    let lost = (dropped(&after) - dropped(&before)) as usize;
    // All but those have an answer waiting, or nearly.
    let mut answered = 0;
    let deadline = Instant::now() + PATIENCE;
    let mut waiting: Vec<usize> = (0..clients.len()).collect();
    while answered + lost < clients.len() && Instant::now() < deadline {
        let mut polled: Vec<_> = waiting
            .iter()
            .map(|&n| PollFd::new(clients[n].as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut polled, 100_u16).expect("poll");
        let ready: Vec<bool> = polled.iter().map(|next| next.any() == Some(true)).collect();
        let mut ready = ready.into_iter();
        waiting.retain(|&n| {
            if ready.next() != Some(true) {
                return true;
            }
            let want = ((first + n) as u64).to_le_bytes();
            assert_eq!(receive(&clients[n]), (want.to_vec(), nat.address()));
            seen.answered[first + n] = true;
            answered += 1;
            false
        });
    }
    assert_eq!(
        answered + lost,
        clients.len(),
        "answered, or dropped and counted"
    );
    answered
}

#[test]
fn a_thousand_clients_that_move() {
    let files = raise_file_limit();
    if files < CLIENTS as u64 + FILES_RESERVED {
        return skipped(&format!(
            "{CLIENTS} clients: this process may have {files} files"
        ));
    }
    for driver in drivers() {
        let server = roomy_socket("127.0.0.1:0");
        let nat = Nat::start(&[at(&server)], &["--rebind", "1s", "--driver", driver]);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| datagram_socket("127.0.0.1:0"))
            .collect();
        let mut seen = Seen {
            port: vec![None; CLIENTS],
            moves: vec![0; CLIENTS],
            answered: vec![false; CLIENTS],
        };
        let (mut asked, mut answered) = (0, 0);
        let deadline = Instant::now() + PATIENCE;
        let goes_on = |seen: &Seen| {
            let moves = seen.moves.iter().all(|moves| *moves >= MOVES_MIN);
            moves && seen.answered.iter().all(|answered| *answered)
        };
        while !goes_on(&seen) {
            assert!(
                Instant::now() < deadline,
                "{driver}: not all move and are answered"
            );
            for (number, some) in clients.chunks(AT_ONCE).enumerate() {
                let got = ask(&nat, &server, some, number * AT_ONCE, &mut seen);
                asked += some.len() as u64;
                answered += got as u64;
            }
        }
        let stopped = nat.stop();
        let counter = |name: &str| stopped.count(&format!("counters.{name}"));
        let moves: u32 = seen.moves.iter().sum();
        assert_eq!(counter("rebound"), u64::from(moves), "{driver}");
        assert_eq!(counter("dropped_old_binding"), asked - answered, "{driver}");
        assert_eq!(counter("forward_received_datagrams"), asked, "{driver}");
        assert_eq!(counter("forward_sent_datagrams"), asked, "{driver}");
        assert_eq!(counter("backward_received_datagrams"), asked, "{driver}");
        assert_eq!(counter("backward_sent_datagrams"), answered, "{driver}");
        assert_eq!(counter("entries_created"), CLIENTS as u64, "{driver}");
        // Moves take turns: nobody is cut off for long.
        assert!(answered * 10 > asked * 9, "{driver}: {answered} of {asked}");
    }
}

/// An answer to the port that a client had before is dropped and counted, the next one arrives.
#[test]
fn a_late_answer_to_an_old_port() {
    for driver in drivers() {
        let server = datagram_socket("127.0.0.1:0");
        let flags = ["--rebind", "200ms/address", "--driver", driver];
        let sources = ["--sources", "127.0.0.2,127.0.0.3"];
        let nat = Nat::start(&[at(&server)], &[&flags[..], &sources].concat());
        let client = datagram_socket("127.0.0.1:0");
        let mut old = None;
        let mut hosts = std::collections::BTreeSet::new();
        // Asking again and again until the server has seen three addresses one after the other.
        let mut moves = 0;
        let deadline = Instant::now() + PATIENCE;
        while moves < 3 {
            assert!(Instant::now() < deadline, "{driver}: it does not move");
            client.send_to(b"hello", nat.address()).expect("send");
            let (_, from) = receive(&server);
            hosts.insert(from.ip());
            match old.replace(from) {
                Some(before) if before != from => {
                    assert_ne!(before.ip(), from.ip(), "{driver}: another address");
                    moves += 1;
                }
                _ => {}
            }
        }
        assert_eq!(hosts.len(), 2, "{driver}");
        // The mapping ends by the clock: what the server says after that is dropped.
        let last = old.expect("it was seen");
        let mut said = 0;
        loop {
            assert!(
                Instant::now() < deadline + EVERY,
                "{driver}: it does not move"
            );
            server.send_to(b"late", last).expect("send");
            said += 1;
            let dropped = until("passed on, or dropped and counted", || {
                let info = nat.info();
                let dropped = count(&info, "counters.dropped_old_binding");
                let passed = count(&info, "counters.backward_sent_datagrams");
                (passed + dropped == said).then_some(dropped)
            });
            if dropped > 0 {
                break;
            }
            assert_eq!(receive(&client).0, b"late");
        }
        assert_silent(&client);
        let stopped = nat.stop();
        assert_eq!(stopped.count("counters.rebound"), 3, "{driver}");
        assert_eq!(stopped.count("counters.dropped_old_binding"), 1, "{driver}");
    }
}

#[test]
fn a_scenario_changes_over_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tunnel.toml");
    std::fs::write(
        &path,
        r#"
seed = 7
[[phase]]
name = "good"
[[phase]]
name = "tunnel"
from_ms = 500
forward.loss = { model = "uniform", probability = 1.0 }
[[phase]]
name = "slow"
from_ms = 1000
backward.delay_us = 100000
"#,
    )
    .expect("a file");
    for driver in drivers() {
        let server = datagram_socket("127.0.0.1:0");
        let scenario = path.to_string_lossy();
        let mut nat = Nat::start(
            &[at(&server)],
            &["--scenario", &scenario, "--driver", driver],
        );
        assert_eq!(nat.listening[0]["seed"], 7);
        let client = datagram_socket("127.0.0.1:0");
        exchange(&client, nat.address(), &server, b"in the open");
        assert_eq!(nat.event("phase")["phase"], "tunnel", "{driver}");
        let began = Instant::now();
        for _ in 0..10 {
            client.send_to(b"in the dark", nat.address()).expect("send");
        }
        nat.until_count("counters.forward_received_datagrams", 11);
        let timely = began.elapsed() < Duration::from_millis(400);
        if timely {
            assert_silent(&server);
            assert_eq!(nat.count("forward.lost"), 10, "{driver}");
        } else {
            skipped("the middle of a scenario: this host was too busy");
            continue;
        }
        assert_eq!(nat.event("phase")["phase"], "slow", "{driver}");
        let began = Instant::now();
        exchange(&client, nat.address(), &server, b"and on");
        assert!(began.elapsed() >= Duration::from_millis(100), "{driver}");
        let stopped = nat.stop();
        assert_eq!(stopped.count("forward.lost"), 10, "{driver}");
        let more = stopped.lines.iter().filter(|line| line["event"] == "phase");
        assert_eq!(more.count(), 0, "{driver}: each phase is told once");
    }
}

/// A scenario that begins again goes through its phases for ever.
#[test]
fn a_scenario_repeats() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tides.toml");
    std::fs::write(
        &path,
        "repeat_ms = 200\n[[phase]]\nname = \"low\"\n[[phase]]\nname = \"high\"\nfrom_ms = 100\n\
         forward.duplication = 1.0\n",
    )
    .expect("a file");
    let server = datagram_socket("127.0.0.1:0");
    let scenario = path.to_string_lossy();
    let mut nat = Nat::start(&[at(&server)], &["--scenario", &scenario]);
    for _ in 0..3 {
        assert_eq!(nat.event("phase")["phase"], "high");
        assert_eq!(nat.event("phase")["phase"], "low");
    }
    nat.stop();
}
