//! Datagram echo over real sockets: sizes, batches, and what the guard stops.

mod common;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use common::{HANG, ip, on_every_driver, pattern, until};
use ringmill_engine::{
    Builder, Context, Datagram, Engine, Open, Payload, Protocol, Service, SocketId, Transmit,
};
use ringmill_protocols::echo::Echo;
use ringmill_protocols::guard::{GuardSettings, GuardSnapshot, Guards, OwnPorts};
use socket2::{Domain, Protocol as IpProtocol, SockAddr, Socket, Type};

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

/// Two addresses of this test program alone, so that it may use the ports of others there.
fn two_hosts() -> [Ipv4Addr; 2] {
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    [1, 2].map(|n| Ipv4Addr::new(127, 100 + n, high, low.clamp(1, 254)))
}

/// An echo service at each address, with its own guard.
fn servers(guards: &[Arc<Guards>], addresses: &[SocketAddr]) -> Builder {
    let mut builder = Engine::builder();
    for (guards, address) in guards.iter().zip(addresses) {
        let guards = Arc::clone(guards);
        let service = Service::new("echo", move |shard| Echo::new(guards.guard(shard)));
        builder = builder.service(service.bind(*address));
    }
    builder
}

fn guards(settings: GuardSettings) -> Arc<Guards> {
    Arc::new(Guards::new(settings, Arc::default(), 1))
}

fn client(of: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if of.is_ipv6() { V6 } else { V4 }).unwrap();
    socket.connect(of).unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    socket
}

#[test]
fn echo_of_every_size() {
    for address in [V4, V6, "0.0.0.0:0", "[::]:0"] {
        on_every_driver(
            || {
                let service =
                    Service::new("echo", |_| Echo::default()).bind(address.parse().unwrap());
                Engine::builder().shards(2).service(service)
            },
            |engine| {
                let mut server = ip(engine, 0);
                if server.ip().is_unspecified() {
                    // Answers must come from where the question went: the client is connected.
                    let asked = if server.is_ipv6() { "::1" } else { "127.0.0.9" };
                    server.set_ip(asked.parse().unwrap());
                }
                let client = client(server);
                for len in [0, 1, 32, 1222, 1472, 1473, 9000, 65_507] {
                    let sent = pattern(len, len as u32);
                    client.send(&sent).unwrap();
                    let mut received = vec![1; 65_536];
                    let count = client.recv(&mut received).unwrap();
                    assert!(received[..count] == sent[..], "{len} bytes via {server}");
                }
            },
        );
    }
}

/// Sends batches and passes on what comes back.
struct Batches {
    to: SocketAddr,
    /// (bytes of each, how many, bytes of the last)
    shape: (usize, usize, usize),
    results: Sender<Vec<u8>>,
}

impl Batches {
    fn bytes(shape: (usize, usize, usize)) -> Vec<u8> {
        let (stride, count, last) = shape;
        pattern(stride * (count - 1) + last, (stride + count) as u32)
    }
}

impl Protocol for Batches {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let local = if self.to.is_ipv6() { V6 } else { V4 };
        let socket = ctx
            .open(&Open {
                local: local.parse().unwrap(),
                peer: Some(self.to),
            })
            .unwrap();
        let transmit = Transmit {
            peer: None,
            source: None,
            ecn: 0,
            stride: self.shape.0 as u16,
            data: Payload::from(Self::bytes(self.shape)),
        };
        assert!(ctx.send_datagrams(socket, transmit).is_queued());
    }

    fn datagrams(
        &mut self,
        _ctx: &mut Context<'_, ()>,
        _socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for datagram in batch.iter().flat_map(Datagram::iter) {
            let _ = self.results.send(datagram.to_vec());
        }
    }
}

#[test]
fn a_batch_comes_back_as_the_same_datagrams() {
    for address in [V4, V6] {
        for shape in [
            (1222, 53, 1222),
            (1222, 7, 1),
            (32, 64, 32),
            (8972, 7, 100),
            (1, 100, 1),
        ] {
            on_every_driver(
                || {
                    Engine::builder().service(
                        Service::new("echo", |_| Echo::default()).bind(address.parse().unwrap()),
                    )
                },
                |engine| {
                    let (results, received): (_, Receiver<Vec<u8>>) = channel();
                    let to = ip(engine, 0);
                    let batches = Service::new("client", move |_| Batches {
                        to,
                        shape,
                        results: results.clone(),
                    });
                    let client = Engine::builder().service(batches).start().unwrap();
                    let (stride, count, _) = shape;
                    let sent = Batches::bytes(shape);
                    // UDP promises no order, loopback gives it: compare as counted sets.
                    let mut want = BTreeMap::new();
                    for datagram in sent.chunks(stride) {
                        *want.entry(datagram.to_vec()).or_insert(0) += 1;
                    }
                    let mut got = BTreeMap::new();
                    for _ in 0..count {
                        let datagram = received
                            .recv_timeout(HANG)
                            .expect("every datagram comes back");
                        *got.entry(datagram).or_insert(0) += 1;
                    }
                    assert!(got == want, "{shape:?} via {to}");
                    drop(client);
                    let totals = engine.service_totals(0);
                    assert_eq!(totals.received_datagrams, count as u64);
                    // The driver may count its last sends when it wakes next.
                    until("no more and no less was sent than was asked", || {
                        engine.service_totals(0).sent_datagram_bytes == sent.len() as u64
                    });
                },
            );
        }
    }
}

/// A socket that may lie about its source, if this user may open one.
struct Forger(Socket);

impl Forger {
    fn open() -> Option<Self> {
        match Socket::new(Domain::IPV4, Type::RAW, Some(IpProtocol::from(255))) {
            Ok(socket) => Some(Self(socket)),
            Err(error) => {
                println!("skipped: forging a source needs a raw socket (CAP_NET_RAW): {error}");
                None
            }
        }
    }

    /// One datagram of 8 bytes (RFC 791, RFC 768; a UDP checksum of zero means none).
    fn send(&self, from: SocketAddr, to: SocketAddr) {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
            panic!("IPv4 only");
        };
        let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend([0, 16, 0, 0]);
        packet.extend(*b"forged!!");
        let sent = self
            .0
            .send_to(&packet, &SockAddr::from(to))
            .expect("loopback takes the packet");
        assert_eq!(sent, packet.len());
    }
}

#[test]
fn echo_servers_spoofed_at_each_other_exchange_one_packet_through_a_listed_port() {
    let Some(forger) = Forger::open() else { return };
    let [one, two] = two_hosts();
    // Above 1,023, so that no right to bind it is needed: memcached and SSDP.
    for listed in [11211, 1900] {
        let all = || {
            [
                guards(GuardSettings::default()),
                guards(GuardSettings::default()),
            ]
        };
        let shared = std::cell::RefCell::new(all());
        on_every_driver(
            || {
                *shared.borrow_mut() = all();
                let addresses = [SocketAddr::from((one, 0)), SocketAddr::from((two, listed))];
                // Both are loopback and in one process, but as two hosts would: each knows itself.
                servers(&*shared.borrow(), &addresses)
            },
            |engine| {
                let [a, b] = [ip(engine, 0), ip(engine, 1)];
                let [a_guards, b_guards] = shared.borrow().clone();
                // "b asks a": a does not answer a listed port.
                forger.send(b, a);
                until("a has decided", || a_guards.totals().known_responder == 1);
                assert_eq!(engine.service_totals(0).sent_datagrams, 0);
                // "a asks b": b answers once, a does not answer that.
                forger.send(a, b);
                until("a has decided again", || {
                    a_guards.totals().known_responder == 2
                });
                until("b's answer is counted", || {
                    engine.service_totals(1).sent_datagrams == 1
                });
                assert_eq!(engine.service_totals(0).sent_datagrams, 0, "and no second");
                assert_eq!(b_guards.totals(), GuardSnapshot::default());
            },
        );
    }
}

#[test]
fn services_of_one_process_do_not_answer_each_other() {
    let Some(forger) = Forger::open() else { return };
    let [one, two] = two_hosts();
    let shared = std::cell::RefCell::new(guards(GuardSettings::default()));
    on_every_driver(
        || {
            let own_ports = Arc::new(OwnPorts::default());
            let settings = GuardSettings::default();
            let both = [(); 2].map(|()| Arc::new(Guards::new(settings, Arc::clone(&own_ports), 1)));
            *shared.borrow_mut() = Arc::clone(&both[0]);
            servers(
                &both,
                &[SocketAddr::from((one, 0)), SocketAddr::from((two, 0))],
            )
        },
        |engine| {
            for from in [ip(engine, 1), ip(engine, 0)] {
                let before = shared.borrow().totals().own_port;
                forger.send(from, ip(engine, 0));
                until("it has decided", || {
                    shared.borrow().totals().own_port == before + 1
                });
            }
            assert_eq!(engine.service_totals(0).sent_datagrams, 0);
        },
    );
}

#[test]
fn echo_servers_spoofed_at_each_other_fall_to_the_source_rate_through_other_ports() {
    const RATE: u32 = 1_000;
    const BURST: u64 = 100;
    let Some(forger) = Forger::open() else { return };
    let [one, two] = two_hosts();
    let settings = GuardSettings {
        per_source_rate: Some(RATE),
        limit_loopback: true,
    };
    let all = || [guards(settings), guards(settings)];
    let shared = std::cell::RefCell::new(all());
    on_every_driver(
        || {
            *shared.borrow_mut() = all();
            servers(
                &*shared.borrow(),
                &[SocketAddr::from((one, 0)), SocketAddr::from((two, 0))],
            )
        },
        |engine| {
            let [a, b] = [ip(engine, 0), ip(engine, 1)];
            let both = shared.borrow().clone();
            let begin = Instant::now();
            // More in the loop at a time than a bucket holds, and a feeder that never tires.
            let over = || {
                both.iter()
                    .map(|guards| guards.totals().over_rate)
                    .sum::<u64>()
            };
            until("the loop is held by its rate", || {
                for _ in 0..50 {
                    forger.send(b, a);
                }
                over() >= 5_000
            });
            let answered = [0, 1].map(|service| engine.service_totals(service).sent_datagrams);
            let elapsed_s = begin.elapsed().as_secs_f64();
            // A bucket cannot give more than its burst and the rate, whatever comes.
            let most = BURST + (elapsed_s * f64::from(RATE)).ceil() as u64;
            for count in answered {
                assert!(count >= BURST, "the loop was real: {answered:?}");
                assert!(
                    count <= most,
                    "{answered:?} in {elapsed_s} s, at most {most}"
                );
            }
            // Every datagram over the rate left the loop: without the feeder it ends.
            until("the loop is empty", || {
                let seen =
                    |engine: &Engine| [0, 1].map(|s| engine.service_totals(s).received_datagrams);
                let totals =
                    |g: &[Arc<Guards>; 2]| g.iter().map(|g| g.totals().over_rate).sum::<u64>();
                let sent: u64 = [0, 1]
                    .map(|s| engine.service_totals(s).sent_datagrams)
                    .iter()
                    .sum();
                let received: u64 = seen(engine).iter().sum();
                received == sent + totals(&both)
            });
        },
    );
}

/// Loopback sources are not limited unless asked, so that a load test on one machine is honest.
#[test]
fn loopback_clients_are_not_limited_by_default() {
    let shared = std::cell::RefCell::new(guards(GuardSettings::default()));
    on_every_driver(
        || {
            let settings = GuardSettings {
                per_source_rate: Some(1),
                ..GuardSettings::default()
            };
            *shared.borrow_mut() = guards(settings);
            servers(&[shared.borrow().clone()], &[V4.parse().unwrap()])
        },
        |engine| {
            let client = client(ip(engine, 0));
            for n in 0..500_u32 {
                client.send(&n.to_be_bytes()).unwrap();
                let mut answer = [0; 4];
                assert_eq!(client.recv(&mut answer).unwrap(), 4);
                assert_eq!(answer, n.to_be_bytes());
            }
            assert_eq!(shared.borrow().totals(), GuardSnapshot::default());
        },
    );
}

/// A refused answer (no such port any more) is no reason to stop.
#[test]
fn a_client_that_left_does_not_stop_the_echo() {
    on_every_driver(
        || {
            Engine::builder()
                .service(Service::new("echo", |_| Echo::default()).bind(V4.parse().unwrap()))
        },
        |engine| {
            for _ in 0..100 {
                client(ip(engine, 0)).send(b"and gone").unwrap();
            }
            let client = client(ip(engine, 0));
            client.send(b"still there?").unwrap();
            let mut answer = [0; 64];
            let count = match client.recv(&mut answer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("no answer"),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(&answer[..count], b"still there?");
        },
    );
}
