//! Ten thousand verified connections, few files, and what happens when those run out.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringmill_tests::net::{answers, assert_message_echo, connect};
use ringmill_tests::program::{Load, PATIENCE, Server, command, until};
use ringmill_tests::restrict::{raise_file_limit, with_files};
use ringmill_tests::{drivers, skipped};

const CONNECTIONS: u64 = 10_000;
/// Files that a process needs besides its connections.
const OTHER_FILES: u64 = 200;
/// The lowered limit: several rings are needed for ten thousand connections then.
const FEW_FILES: u64 = 2000;

fn assert_many(server: &Server, load: &Load, connections: u64, context: &str) {
    load.assert_clean();
    assert_eq!(load.count("connections.opened"), connections, "{context}");
    assert!(
        load.count("messages") >= connections,
        "{context}: {load:#?}"
    );
    assert_eq!(server.listening.len(), 1, "{context}");
}

/// One message outstanding on each connection: the run goes on until each has had some.
fn flags(connections: &str) -> [&str; 6] {
    ["-c", connections, "-d", "2s", "--reset", "--json"]
}

#[test]
fn ten_thousand_connections() {
    let hard = raise_file_limit();
    for driver in drivers() {
        // Direct descriptors of io_uring are not files of the process.
        let connections = match driver {
            "uring" => CONNECTIONS,
            _ => CONNECTIONS.min(hard.saturating_sub(OTHER_FILES)),
        };
        println!("{driver}: {connections} connections, {hard} files allowed");
        if connections < CONNECTIONS {
            skipped(&format!(
                "{driver}: {CONNECTIONS} connections; only {hard} files"
            ));
        }
        let mut server = Server::start(&["tcp://127.0.0.1:0"], &["--driver", driver]);
        let count = connections.to_string();
        let load = Load::run(
            server.endpoint(0),
            &[&flags(&count)[..5], &["--driver", driver]].concat(),
        );
        assert_many(&server, &load, connections, driver);
        let counters = server.counters_when_closed(connections);
        assert_eq!(counters["accepted"], connections, "{driver}");
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        assert_eq!(stopped.stderr, "", "{driver}");
    }
}

#[test]
fn ten_thousand_connections_with_two_thousand_files_need_several_rings() {
    if !drivers().contains(&"uring") {
        return;
    }
    let server = Server::start_as(
        with_files(command(), FEW_FILES),
        &["tcp://127.0.0.1:0"],
        &["--driver", "uring", "--max-connections", "10k"],
    );
    let cpus = std::thread::available_parallelism().expect("known").get() as u64;
    let rings = CONNECTIONS.div_ceil(FEW_FILES);
    assert!(server.shards() >= rings, "{} shards", server.shards());
    if cpus < rings {
        assert!(server.shards() > cpus, "{} shards", server.shards());
    }
    let count = CONNECTIONS.to_string();
    let load = Load::run_as(
        with_files(command(), FEW_FILES),
        server.endpoint(0),
        &[&flags(&count)[..5], &["--driver", "uring"]].concat(),
    );
    assert_many(&server, &load, CONNECTIONS, "uring");
    let shards = load.report["settings"]["shards"].as_u64();
    assert!(shards >= Some(rings), "{load:#?}");
    let stopped = server.stop();
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert_eq!(stopped.counter("accepted"), CONNECTIONS);
    assert_eq!(stopped.counter("refused"), 0);
}

/// Which of the connections are served, in order.
fn served(connections: &mut [TcpStream], patience: Duration) -> Vec<bool> {
    connections
        .iter_mut()
        .map(|connection| answers(connection, patience))
        .collect()
}

/// Clients of a server that has [`FEW_FILES`]: more than fit.
const CLIENTS: usize = 2300;

/// Every connection needs a file of the process: the limit is met while clients wait.
#[test]
fn out_of_files_the_server_pauses_accepting_and_recovers() {
    raise_file_limit();
    for driver in drivers() {
        // Without direct descriptors a ring's connections are files of the process, too.
        let more: &[&str] = match driver {
            "uring" => &["--uring-without", "direct_descriptors"],
            _ => &[],
        };
        // More than fit, so that no other bound is met first.
        let flags = ["--driver", driver, "--max-connections", "5000"];
        let mut server = Server::start_as(
            with_files(command(), FEW_FILES),
            &["tcp://127.0.0.1:0"],
            &[&flags[..], more].concat(),
        );
        let address = server.address("tcp");
        // The kernel queues those that are not accepted yet, so all of these connect.
        let mut waiting: Vec<TcpStream> = (0..CLIENTS)
            .map(|_| {
                let mut stream = connect(address);
                stream.write_all(b"?").expect("a byte fits");
                stream.set_nonblocking(true).expect("any socket can");
                stream
            })
            .collect();
        until("a word about it", || {
            let said = server.running.stderr();
            said.contains("accepting pauses").then_some(())
        });
        let line = server.running.line_where("a full server", |line| {
            line["type"] == "interval" && line["connections"].as_u64() >= Some(FEW_FILES / 2)
        });
        let open = line["connections"].as_u64().expect("a count") as usize;
        assert!(open < FEW_FILES as usize, "{driver}: {open} open");
        let mut served = Vec::new();
        until("the answers to those that were accepted", || {
            served.extend(take_answered(&mut waiting));
            (served.len() >= open).then_some(())
        });
        println!("{driver}: {} served, {} wait", served.len(), waiting.len());
        assert!(!waiting.is_empty(), "{driver}: all fit");
        // They go on being served, while the others wait.
        for stream in &mut served {
            stream.set_nonblocking(false).expect("any socket can");
            assert_message_echo(stream, b"still here");
        }
        // Room again for all that wait: they are accepted after the pause.
        drop(served);
        until("those that waited", || {
            waiting.retain_mut(|stream| !has_answer(stream));
            waiting.is_empty().then_some(())
        });
        let stopped = server.stop();
        let words = stopped.stderr.matches("accepting pauses").count();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        // One line in ten seconds; all of this takes a few.
        assert!((1..=2).contains(&words), "{driver}: {}", stopped.stderr);
        assert_eq!(stopped.counter("refused"), 0, "{driver}");
    }
}

/// Takes out those that have been answered.
fn take_answered(waiting: &mut Vec<TcpStream>) -> Vec<TcpStream> {
    let (mut answered, mut rest) = (Vec::new(), Vec::new());
    for mut stream in waiting.drain(..) {
        if has_answer(&mut stream) {
            answered.push(stream);
        } else {
            rest.push(stream);
        }
    }
    *waiting = rest;
    answered
}

/// Takes the answer to `?` when it is there.
fn has_answer(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(1) => true,
        Ok(_) => panic!("closed without an answer"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("ended without an answer: {error}"),
    }
}

/// Whether a new connection is served; one that is refused may even fail to connect.
fn is_served(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok_and(|mut new| answers(&mut new, PATIENCE))
}

/// Past `--max-connections` a connection is closed at once; the others do not notice.
#[test]
fn past_max_connections_a_connection_is_refused() {
    for driver in drivers() {
        let flags = ["--driver", driver, "--max-connections", "10"];
        let server = Server::start(&["tcp://127.0.0.1:0"], &flags);
        let address = server.address("tcp");
        let mut connections: Vec<TcpStream> = (0..10).map(|_| connect(address)).collect();
        let first = served(&mut connections, PATIENCE);
        assert!(first.iter().all(|served| *served), "{driver}: {first:?}");
        assert!(!is_served(address), "{driver}");
        let again = served(&mut connections, PATIENCE);
        assert!(again.iter().all(|served| *served), "{driver}: {again:?}");
        // A place that is free again is given away again.
        drop(connections.pop());
        until("a free place", || is_served(address).then_some(()));
        // An idle client that does not hang up would hold up the stop.
        drop(connections);
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        assert!(stopped.counter("refused") >= 1, "{driver}");
    }
}
