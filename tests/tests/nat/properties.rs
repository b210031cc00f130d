//! Without impairment the datagrams of each flow come out as they went in, both ways: the same ones, in
//! the same order, with the same boundaries, however they were sent.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ringmill_tests::drivers;
use ringmill_tests::net::random_bytes;

use crate::process::{Nat, assert_silent, at, receive, roomy_socket};

/// Networks that are tried, each with every driver and number of shards.
const CASES: u32 = 6;
const FLOWS: usize = 5;
/// A burst fills one GSO send at most: 64 KiB with its headers.
const BURST_BYTES_MAX: usize = 64_000;
/// What is on its way at a time fits in every socket buffer.
const WAVE_BYTES_MAX: usize = 150_000;

/// So many datagrams of one length by one client, the last one shorter by some bytes.
#[derive(Debug, Clone)]
struct Burst {
    flow: usize,
    len: usize,
    count: usize,
    cut: usize,
    /// In one system call, as the kernel may then deliver it.
    together: bool,
}

impl Burst {
    fn lengths(&self) -> impl Iterator<Item = usize> {
        let (len, count, cut) = (
            self.len,
            self.count,
            self.cut.min(self.len.saturating_sub(1)),
        );
        (1..=count).map(move |n| if n == count { len - cut } else { len })
    }
}

fn bursts() -> impl Strategy<Value = Vec<Burst>> {
    let len = prop_oneof![
        4 => 1..1500_usize,
        1 => Just(1222),
        1 => 1500..9000_usize,
        1 => Just(0),
    ];
    let one = (0..FLOWS, len, 1..40_usize, 0..50_usize, any::<bool>());
    let one = one.prop_map(|(flow, len, count, cut, together)| Burst {
        flow,
        len,
        count: count.min(BURST_BYTES_MAX / len.max(1)).max(1),
        cut,
        together: together && len > 0,
    });
    vec(one, 1..20)
}

/// Sends a burst; gives its datagrams.
fn send(client: &UdpSocket, to: std::net::SocketAddr, burst: &Burst, salt: usize) -> Vec<Vec<u8>> {
    let bytes = random_bytes(burst.len + salt);
    let datagrams: Vec<Vec<u8>> = burst
        .lengths()
        .enumerate()
        .map(|(n, len)| {
            let mut datagram = bytes[..len].to_vec();
            // Each is another one.
            for (byte, mark) in datagram.iter_mut().zip([n, salt, burst.flow]) {
                *byte = mark as u8;
            }
            datagram
        })
        .collect();
    let segment = |len: usize| {
        let len = i32::try_from(len).expect("a datagram");
        setsockopt(&client.as_fd(), UdpGsoSegment, &len)
    };
    // A host that cannot do it sends one by one.
    if burst.together && burst.len <= 1400 && segment(burst.len).is_ok() {
        let sent = client.send_to(&datagrams.concat(), to);
        segment(0).expect("and off again");
        sent.expect("send");
    } else {
        for datagram in &datagrams {
            client.send_to(datagram, to).expect("send");
        }
    }
    datagrams
}

/// One case: everything there and back in waves that no socket buffer loses.
fn carry(nat: &Nat, server: &UdpSocket, clients: &[UdpSocket], bursts: &[Burst]) {
    let mut bursts = bursts.iter().enumerate().peekable();
    let mut sources = vec![None; clients.len()];
    while bursts.peek().is_some() {
        let mut sent = vec![Vec::new(); clients.len()];
        let mut bytes = 0;
        while let Some((salt, burst)) = bursts.next_if(|_| bytes < WAVE_BYTES_MAX) {
            // The kernel counts hundreds of bytes for the shortest.
            bytes += burst.count * (burst.len + 800);
            sent[burst.flow].extend(send(&clients[burst.flow], nat.address(), burst, salt));
        }
        let count: usize = sent.iter().map(Vec::len).sum();
        let mut came: Vec<_> = (0..count).map(|_| receive(server)).collect();
        assert_silent(server);
        // There: each flow from a port of its own, in its order.
        for (flow, sent) in sent.iter().enumerate().filter(|(_, sent)| !sent.is_empty()) {
            if sources[flow].is_none() {
                let unknown = came.iter().map(|(_, from)| *from).find(|from| {
                    let of_it = came.iter().filter(|(_, other)| other == from);
                    !sources.contains(&Some(*from)) && of_it.map(|(data, _)| data).eq(sent)
                });
                sources[flow] = unknown;
            }
            let of_it = came.iter().filter(|(_, from)| sources[flow] == Some(*from));
            assert!(
                of_it.map(|(data, _)| data).eq(sent),
                "flow {flow} came out otherwise"
            );
        }
        // And back.
        for (data, from) in came.drain(..) {
            server.send_to(&data, from).expect("send");
        }
        for (client, sent) in clients.iter().zip(&sent) {
            for want in sent {
                let (data, from) = receive(client);
                assert!(
                    data == *want && from == nat.address(),
                    "another one came back"
                );
            }
            assert_silent(client);
        }
    }
}

#[test]
fn what_goes_in_comes_out() {
    let server = roomy_socket("127.0.0.1:0");
    let mut nats = Vec::new();
    for driver in drivers() {
        for shards in ["1", "2"] {
            let flags = ["--driver", driver, "--shards", shards];
            nats.push(Nat::start(&[at(&server)], &flags));
        }
    }
    // No files of failures: a case is small enough to be read.
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&bursts(), |bursts| {
        for nat in &nats {
            let clients: Vec<_> = (0..FLOWS).map(|_| roomy_socket("127.0.0.1:0")).collect();
            carry(nat, &server, &clients, &bursts);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    for nat in nats {
        let stopped = nat.stop();
        let count = |name: &str| stopped.count(&format!("counters.{name}"));
        let received = count("forward_received_datagrams");
        assert_eq!(count("forward_sent_datagrams"), received);
        assert_eq!(count("backward_received_datagrams"), received);
        assert_eq!(count("backward_sent_datagrams"), received);
        assert_eq!(
            count("backward_sent_bytes"),
            count("forward_received_bytes")
        );
    }
}
