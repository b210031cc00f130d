//! Stream services over real sockets: echo, discard and the control query.

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use common::{HANG, ip, on_every_driver, pattern, until};
use ringmill_engine::{Builder, Engine, Limits, Service};
use ringmill_protocols::control::{CONNECTIONS_MAX, ServerStats, Stats};
use ringmill_protocols::discard::Discard;
use ringmill_protocols::echo::Echo;
use socket2::{Domain, SockRef, Socket, Type};

fn loopback(v6: bool) -> SocketAddr {
    let text = if v6 { "[::1]:0" } else { "127.0.0.1:0" };
    text.parse().unwrap()
}

fn echo(limits: Limits, v6: bool) -> Builder {
    let service = Service::new("echo", |_| Echo::default()).listen(loopback(v6));
    Engine::builder().shards(2).limits(limits).service(service)
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

#[test]
fn echo_is_byte_exact() {
    for v6 in [false, true] {
        on_every_driver(
            || echo(Limits::default(), v6),
            |engine| {
                for len in [1, 2, 31, 4095, 4096, 4097, 65_536, 300_000] {
                    let sent = pattern(len, len as u32);
                    let mut stream = connect(ip(engine, 0));
                    let mut writer = stream.try_clone().unwrap();
                    let outgoing = sent.clone();
                    let writing = std::thread::spawn(move || {
                        writer.write_all(&outgoing).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut received = Vec::new();
                    stream.read_to_end(&mut received).unwrap();
                    writing.join().unwrap();
                    assert!(
                        received == sent,
                        "{len} bytes came back as {}",
                        received.len()
                    );
                }
            },
        );
    }
}

/// A reader that takes nothing until the server has stopped reading too, then everything.
#[test]
fn a_slow_reader_costs_bounded_memory_and_no_byte() {
    /// More than both kernels' socket buffers can hold, whatever they grow to here.
    const BYTES: usize = 48 << 20;
    // The smallest bound is less than one receive buffer.
    for queue_bytes_max in [1 << 20, 64 << 10, 2 << 10] {
        let limits = Limits {
            stream_queue_bytes_max: queue_bytes_max,
            ..Limits::default()
        };
        on_every_driver(
            || echo(limits.clone(), false),
            |engine| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_recv_buffer_size(256 << 10).unwrap();
                socket.set_send_buffer_size(64 << 10).unwrap();
                socket.connect(&ip(engine, 0).into()).unwrap();
                let mut stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(HANG)).unwrap();
                let mut writer = stream.try_clone().unwrap();
                let sent = Arc::new(pattern(BYTES, 7));
                let outgoing = Arc::clone(&sent);
                let writing = std::thread::spawn(move || {
                    writer.write_all(&outgoing).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });

                // The server has taken what it may, and now leaves the rest to the peer's TCP.
                let mut before = (0, 0);
                let mut same = 0;
                until("the server stops reading", || {
                    let now = (
                        engine.service_totals(0).received_bytes,
                        engine.shard_totals().queued_bytes,
                    );
                    same = if now == before && now.1 > 0 {
                        same + 1
                    } else {
                        0
                    };
                    before = now;
                    same >= 200
                });
                assert!(
                    engine.service_totals(0).received_bytes < BYTES as u64,
                    "it stopped in time"
                );
                let bound = queue_bytes_max.max(64 << 10) as u64;
                let queued_bytes = engine.shard_totals().queued_bytes;
                assert!(
                    queued_bytes <= bound,
                    "{queued_bytes} bytes wait, at most {bound} may"
                );

                let mut piece = vec![0; 1 << 16];
                let (mut at, mut worst) = (0, 0);
                loop {
                    let count = stream.read(&mut piece).unwrap();
                    if count == 0 {
                        break;
                    }
                    assert!(
                        piece[..count] == sent[at..at + count],
                        "wrong bytes near {at}"
                    );
                    at += count;
                    worst = worst.max(engine.shard_totals().queued_bytes);
                }
                writing.join().unwrap();
                assert_eq!(at, BYTES);
                assert!(worst <= bound, "{worst} bytes waited, at most {bound} may");
                let totals = engine.service_totals(0);
                assert_eq!((totals.send_full, totals.failed), (0, 0), "paused in time");
            },
        );
    }
}

/// Slow readers hold their own queues, never the buffers that the others need.
#[test]
fn many_slow_readers_do_not_stop_the_others() {
    let limits = Limits {
        stream_pool_bytes: 256 << 10,
        ..Limits::default()
    };
    on_every_driver(
        || echo(limits.clone(), false).shards(1),
        |engine| {
            let slow: Vec<TcpStream> = (0..8)
                .map(|_| {
                    let stream = connect(ip(engine, 0));
                    stream.set_nonblocking(true).unwrap();
                    stream
                })
                .collect();
            let piece = pattern(64 << 10, 3);
            let mut quiet = 0;
            until("no slow reader can send more", || {
                let sent: usize = slow
                    .iter()
                    .map(|mut stream| match stream.write(&piece) {
                        Ok(count) => count,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                        Err(error) => panic!("a slow reader was cut off: {error}"),
                    })
                    .sum();
                quiet = if sent == 0 { quiet + 1 } else { 0 };
                quiet >= 100
            });
            let mut quick = connect(ip(engine, 0));
            for n in 0..100 {
                let sent = pattern(1_000, n);
                quick.write_all(&sent).unwrap();
                let mut received = vec![0; sent.len()];
                quick.read_exact(&mut received).unwrap();
                assert_eq!(received, sent);
            }
        },
    );
}

#[test]
fn a_stop_in_the_middle_ends_in_time() {
    on_every_driver(
        || echo(Limits::default(), false),
        |engine| {
            let mut stream = connect(ip(engine, 0));
            stream.write_all(b"before").unwrap();
            let mut received = [0; 6];
            stream.read_exact(&mut received).unwrap();
            engine.stop();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            assert!(rest.is_empty(), "nothing but the end follows");
            // What is sent now finds nobody who could answer; it must not be an error of the server.
            let _ = stream.write_all(b"after");
            drop(stream);
            until("the engine ends", || engine.has_ended());
            assert_eq!(engine.service_totals(0).failed, 0);
        },
    );
}

#[test]
fn discard_takes_everything_and_answers_nothing() {
    let service = || Service::new("discard", |_| Discard).listen(loopback(false));
    on_every_driver(
        || Engine::builder().service(service()),
        |engine| {
            let mut stream = connect(ip(engine, 0));
            stream.write_all(&pattern(1 << 20, 5)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer.is_empty());
            assert_eq!(engine.service_totals(0).received_bytes, 1 << 20);
        },
    );
}

fn stats() -> Service<Stats> {
    let stats = ServerStats {
        pid: 1,
        user_s: 1.5,
        system_s: 0.25,
        shards: 2,
        driver: "uring".to_owned(),
        version: "0.1.0".to_owned(),
    };
    let line = serde_json::to_string(&stats).unwrap();
    Service::new("stats", move |_| {
        Stats::new(Arc::new({
            let line = line.clone();
            move || line.clone()
        }))
    })
    .listen(loopback(false))
}

#[test]
fn the_control_query_answers_one_line_whatever_is_sent() {
    on_every_driver(
        || Engine::builder().service(stats()),
        |engine| {
            for input in ["", "GET / HTTP/1.1\r\n\r\n", "\0\0\0\0"] {
                let mut stream = connect(ip(engine, 0));
                stream.write_all(input.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                let line = answer.strip_suffix('\n').expect("one line");
                let stats: ServerStats = serde_json::from_str(line).unwrap();
                assert_eq!((stats.pid, stats.user_s), (1, 1.5), "after {input:?}");
            }
        },
    );
}

#[test]
fn the_control_query_bounds_its_connections() {
    on_every_driver(
        || Engine::builder().service(stats()),
        |engine| {
            let mut held: Vec<TcpStream> = (0..CONNECTIONS_MAX)
                .map(|_| connect(ip(engine, 0)))
                .collect();
            let mut line = [0; 1];
            for stream in &mut held {
                stream.read_exact(&mut line).unwrap();
            }
            let mut one_more = connect(ip(engine, 0));
            let refused = one_more.read(&mut line);
            assert!(refused.is_err(), "reset, not answered: {refused:?}");
            // A client that leaves makes room.
            SockRef::from(&held.pop().unwrap())
                .shutdown(Shutdown::Both)
                .unwrap();
            until("there is room again", || {
                let mut next = connect(ip(engine, 0));
                matches!(next.read(&mut line), Ok(1))
            });
        },
    );
}
