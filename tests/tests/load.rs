//! What the load client says about servers that are absent, lie, lose, repeat, stall or leave.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringmill_tests::drivers;
use ringmill_tests::program::{self, Load, Server};
use serde_json::json;

#[test]
fn nobody_listens() {
    for driver in drivers() {
        let gone = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = gone.local_addr().expect("an address");
        drop(gone);
        let load = Load::run(&format!("tcp://{address}"), &["--driver", driver]);
        assert_eq!(load.code, 1, "{load:#?}");
        assert!(load.stderr.contains("connection refused"), "{load:#?}");
        assert!(load.stderr.contains(&address.to_string()), "{load:#?}");
    }
}

#[test]
fn a_condition_that_holds_is_exit_code_3() {
    for driver in drivers() {
        let server = Server::start(&["tcp://127.0.0.1:0"], &["--driver", driver]);
        for (condition, code) in [("rate>1", 3), ("wrong>0", 0), ("p50<1h", 3), ("loss>0", 3)] {
            let flags = [
                "-c",
                "2",
                "-d",
                "200ms",
                "--driver",
                driver,
                "--fail-if",
                condition,
            ];
            let load = Load::run(server.endpoint(0), &flags);
            assert_eq!(load.code, code, "{condition}: {load:#?}");
            assert_eq!(load.stderr.contains(condition), code == 3, "{load:#?}");
        }
    }
}

/// Serves TCP connections on threads until dropped; `serve` gets each one.
struct StreamServer {
    endpoint: String,
}

impl StreamServer {
    fn start(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let serve = Arc::new(serve);
        // The threads end with the process: nothing else waits for them.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self {
            endpoint: format!("tcp://{address}"),
        }
    }
}

#[test]
fn wrong_bytes_on_a_stream_are_counted_one_by_one() {
    for driver in drivers() {
        let flipped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&flipped);
        let server = StreamServer::start(move |mut stream| {
            let mut chunk = [0; 65_536];
            let mut at = 0_usize;
            loop {
                let len = stream.read(&mut chunk)?;
                if len == 0 {
                    return Ok(());
                }
                // Every 1000th byte of the connection.
                for place in (0..len).filter(|place| (at + place) % 1000 == 999) {
                    chunk[place] ^= 1;
                    count.fetch_add(1, Ordering::SeqCst);
                }
                at += len;
                stream.write_all(&chunk[..len])?;
            }
        });
        let flags = [
            "-c", "3", "--depth", "4", "-s", "100", "-d", "300ms", "--driver", driver,
        ];
        let load = Load::run(&server.endpoint, &flags);
        assert_eq!(load.code, 4, "{load:#?}");
        let flipped = flipped.load(Ordering::SeqCst);
        assert!(flipped > 0, "the server lied");
        assert_eq!(load.count("wrong_bytes"), flipped, "{load:#?}");

        let load = Load::run(&server.endpoint, &[&flags[..], &["--no-verify"]].concat());
        assert_eq!(load.code, 0, "{load:#?}");
        assert_eq!(load.report["wrong_bytes"], json!(null), "{load:#?}");
    }
}

#[test]
fn a_server_that_closes_early_is_reported() {
    for driver in drivers() {
        let server = StreamServer::start(|mut stream| {
            let mut message = [0; 32];
            for _ in 0..10 {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
            Ok(())
        });
        let flags = ["-c", "4", "-s", "32", "-d", "2s", "--driver", driver];
        let load = Load::run(&server.endpoint, &flags);
        assert_eq!(load.count("connections.opened"), 4, "{load:#?}");
        assert_eq!(load.count("messages"), 40, "{load:#?}");
        let closed = load.report["connections"]["closed"].as_object();
        let closed: u64 = closed
            .into_iter()
            .flat_map(|causes| causes.values().filter_map(serde_json::Value::as_u64))
            .sum();
        assert_eq!(closed, 4, "{load:#?}");
        assert_ne!(load.report["errors"], json!({}), "{load:#?}");
    }
}

/// What the odd server does with the n-th datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// No answer.
    Drop,
    /// Two answers.
    Double,
    /// The answer comes after that to the next one.
    Swap,
    /// The answer comes after the client's patience.
    Delay,
    /// The last byte of the answer is another.
    Flip,
}

/// Every how many datagrams it does so.
const FAULT_EVERY: u64 = 10;
/// How long the client waits for an answer, and how long a delayed one takes: far more than a busy
/// machine makes anyone wait.
const CLIENT_PATIENCE: &str = "1s";
const DELAY: Duration = Duration::from_millis(1500);
/// Only among so many of the first, so that the run outlasts the last delay.
const DELAYS_AMONG: u64 = 30;

/// Echoes datagrams but for its fault; counts how often it happened.
struct OddServer {
    endpoint: String,
    faults: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    quit: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OddServer {
    fn start(fault: Fault) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .expect("a socket takes timeouts");
        let endpoint = format!("udp://{}", socket.local_addr().expect("an address"));
        let (faults, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let quit = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (faults, answered, quit) = (faults.clone(), answered.clone(), quit.clone());
            move || serve_oddly(&socket, fault, &faults, &answered, &quit)
        });
        Self {
            endpoint,
            faults,
            answered,
            quit,
            thread: Some(thread),
        }
    }
}

impl Drop for OddServer {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve_oddly(
    socket: &UdpSocket,
    fault: Fault,
    faults: &AtomicU64,
    answered: &AtomicU64,
    quit: &AtomicBool,
) {
    let mut chunk = [0; 65_536];
    let mut held: Vec<(Instant, Vec<u8>, std::net::SocketAddr)> = Vec::new();
    let mut number = 0;
    let answer = |data: &[u8], to| {
        answered.fetch_add(1, Ordering::SeqCst);
        let _ = socket.send_to(data, to);
    };
    while !quit.load(Ordering::SeqCst) {
        if fault == Fault::Delay {
            let (due, rest) = held
                .into_iter()
                .partition(|(due, ..)| *due <= Instant::now());
            held = rest;
            for (_, data, to) in due {
                answer(&data, to);
            }
        }
        let Ok((len, from)) = socket.recv_from(&mut chunk) else {
            continue;
        };
        number += 1;
        let data = &mut chunk[..len];
        if number % FAULT_EVERY == 0 && (fault != Fault::Delay || number <= DELAYS_AMONG) {
            faults.fetch_add(1, Ordering::SeqCst);
            match fault {
                Fault::Drop => {}
                Fault::Double => {
                    answer(data, from);
                    answer(data, from);
                }
                Fault::Swap => held.push((Instant::now(), data.to_vec(), from)),
                Fault::Delay => held.push((Instant::now() + DELAY, data.to_vec(), from)),
                Fault::Flip => {
                    data[len - 1] ^= 1;
                    answer(data, from);
                }
            }
            continue;
        }
        answer(data, from);
        if fault == Fault::Swap {
            for (_, data, to) in held.drain(..) {
                answer(&data, to);
            }
        }
    }
}

/// One flow with few datagrams under way, even after a second of a stalled machine: the kernel drops
/// nothing and every count is the server's. The last answer of a held pair may have no successor, hence one less is allowed.
#[test]
fn faults_of_datagrams_are_told_apart_and_counted_exactly() {
    for driver in drivers() {
        for arrivals in [&["--depth", "8"][..], &["--rate", "200"]] {
            for (fault, counter) in [
                (Fault::Drop, "datagrams.lost"),
                (Fault::Double, "datagrams.duplicated"),
                (Fault::Swap, "datagrams.reordered"),
                (Fault::Delay, "datagrams.late"),
                (Fault::Flip, "wrong_bytes"),
            ] {
                let server = OddServer::start(fault);
                let time = if fault == Fault::Delay {
                    "2500ms"
                } else {
                    "500ms"
                };
                let patience = ["--timeout", CLIENT_PATIENCE];
                let flags = ["-c", "1", "-s", "100", "-d", time, patience[0], patience[1]];
                let flags = [&flags[..], arrivals, &["--driver", driver, "--shards", "1"]].concat();
                let load = Load::run(&server.endpoint, &flags);
                let (endpoint, faults) = (&server.endpoint, &server.faults);
                let context = format!("{driver} {arrivals:?} {fault:?} at {endpoint}: {load:#?}");
                let faults = faults.load(Ordering::SeqCst);
                assert!(faults > 1, "{context}");
                let counts = |name: &str| load.count(name);
                let expected = |name: &str| match (fault, name) {
                    // Late ones were given up as lost before.
                    (Fault::Drop | Fault::Delay, "datagrams.lost") => faults,
                    _ if name == counter => faults,
                    _ => 0,
                };
                for name in [
                    "datagrams.lost",
                    "datagrams.duplicated",
                    "datagrams.reordered",
                    "datagrams.late",
                    "wrong_bytes",
                ] {
                    let (found, expected) = (counts(name), expected(name));
                    let unpaired = u64::from(fault == Fault::Swap);
                    let exact = found == expected
                        || found + unpaired == expected
                        || name == "datagrams.lost" && fault == Fault::Swap && found <= unpaired;
                    assert!(exact, "{name} is {found}, not {expected}; {context}");
                }
                assert_eq!(
                    counts("datagrams.sent") - counts("datagrams.lost") + counts("datagrams.late"),
                    server.answered.load(Ordering::SeqCst) - counts("datagrams.duplicated"),
                    "{context}"
                );
                assert_eq!(
                    load.code,
                    if fault == Fault::Flip { 4 } else { 0 },
                    "{context}"
                );
            }
        }
    }
}

#[test]
fn an_open_loop_keeps_its_schedule() {
    for driver in drivers() {
        let server = Server::start(
            &["tcp://127.0.0.1:0", "udp://127.0.0.1:0"],
            &["--driver", driver],
        );
        for endpoint in [server.endpoint(0), server.endpoint(1)] {
            for more in [&[][..], &["--poisson"]] {
                let flags = ["-c", "10", "--rate", "2000", "-d", "2s", "--driver", driver];
                let load = Load::run(endpoint, &[&flags[..], more].concat());
                load.assert_clean();
                let sent = load.count("messages_sent");
                // A schedule is never exceeded (a Poisson one by its own spread, five sigma);
                // falling behind at the very end is the guard against a machine that is busy.
                let most = if more.is_empty() { 4040 } else { 4320 };
                assert!((3500..=most).contains(&sent), "{sent} sent; {load:#?}");
                let arrivals = if more.is_empty() {
                    "constant"
                } else {
                    "poisson"
                };
                assert_eq!(load.report["settings"]["arrivals"], arrivals);
            }
        }
    }
}

/// The server answers nothing for this long, once.
const STALL: Duration = Duration::from_millis(500);

#[test]
fn a_stall_shows_in_the_response_time_of_every_message_it_delayed() {
    for driver in drivers() {
        let server = StreamServer::start(|mut stream| {
            let begun = Instant::now();
            let mut stalled = false;
            let mut chunk = [0; 65_536];
            loop {
                let len = stream.read(&mut chunk)?;
                if len == 0 {
                    return Ok(());
                }
                if !stalled && begun.elapsed() > Duration::from_millis(700) {
                    stalled = true;
                    // The stall is the fault under test, not a wait for something.
                    std::thread::sleep(STALL);
                }
                stream.write_all(&chunk[..len])?;
            }
        });
        // One message at a time: only the schedule knows of those that had to wait.
        let flags = [
            "-c", "1", "--depth", "1", "--rate", "500", "-d", "2s", "--driver", driver,
        ];
        let load = Load::run(&server.endpoint, &flags);
        assert_eq!(load.code, 0, "{load:#?}");
        let response = |name: &str| load.count(&format!("response_time.{name}"));
        let latency = |name: &str| load.report["response_time"][name].as_u64().unwrap_or(0);
        assert!(response("max_ns") >= 400_000_000, "{load:#?}");
        // A quarter of the two seconds' messages were due in the stall: a tenth of all waited for
        // at least 300 ms of it, whatever else happened.
        assert!(latency("p90_ns") >= 200_000_000, "{load:#?}");
        let service = load.report["service_time"]["p90_ns"].as_u64();
        assert!(service < Some(latency("p90_ns")), "{load:#?}");
    }
}

#[test]
fn a_number_of_messages_is_sent_exactly_and_ends_the_run() {
    for driver in drivers() {
        let server = Server::start(
            &["tcp://127.0.0.1:0", "udp://127.0.0.1:0"],
            &["--driver", driver],
        );
        let ways: [&[&str]; 6] = [
            &["-c", "2"],
            &["-c", "3", "--depth", "16", "--shards", "2"],
            // More connections than messages are left for.
            &["-c", "300", "--depth", "8", "--shards", "2"],
            &["-c", "1", "--shards", "2", "--warmup", "200ms"],
            &["-c", "7", "--rate", "5k", "--shards", "2"],
            &["-c", "7", "--rate", "5k", "--poisson", "--warmup", "100ms"],
        ];
        for endpoint in [server.endpoint(0), server.endpoint(1)] {
            for way in ways {
                let flags = ["--messages", "1000", "-d", "60s", "--driver", driver];
                let load = Load::run(endpoint, &[&flags[..], way].concat());
                let context = format!("{endpoint} {way:?} {load:#?}");
                assert_eq!(load.code, 0, "{context}");
                assert_eq!(load.count("messages_sent"), 1000, "{context}");
                assert_eq!(load.report["settings"]["messages"], 1000, "{context}");
                let lost = load.report["datagrams"]["lost"].as_u64().unwrap_or(0);
                assert_eq!(load.count("messages") + lost, 1000, "{context}");
                let answered = |line: &serde_json::Value| line["messages"].as_u64();
                let in_intervals: u64 = load.lines.iter().filter_map(answered).sum();
                assert_eq!(in_intervals, load.count("messages"), "{context}");
                assert!(
                    load.report["errors"]
                        .as_object()
                        .is_some_and(|e| e.is_empty())
                );
                let seconds = load.report["duration_s"].as_f64();
                assert!(seconds < Some(30.0), "{context}");
            }
        }
        // The end of the time comes first.
        let flags = [
            "-m", "1000", "--rate", "100", "-d", "300ms", "--driver", driver,
        ];
        let load = Load::run(server.endpoint(0), &flags);
        load.assert_clean();
        assert!(load.count("messages_sent") <= 31, "{load:#?}");
        assert!(load.stderr.contains("of 1000 messages"), "{load:#?}");
        assert!(load.stderr.contains("--duration"), "{load:#?}");
    }
}

#[test]
fn a_histogram_of_what_is_never_answered_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("latency.hlog");
    let path_text = path.to_str().expect("a plain path");
    for (way, why) in [
        (
            &["flood", "udp://127.0.0.1:9"][..],
            "a flood is never answered",
        ),
        (&["echo", "udp://127.0.0.1:9", "--rate", "0"], "--rate 0"),
    ] {
        let mut command = program::command();
        command.arg("load").args(way);
        let output = command
            .args(["--histogram", path_text, "-d", "100ms"])
            .output()
            .expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{way:?}: {stderr}");
        assert!(stderr.contains("--histogram"), "{way:?}: {stderr}");
        assert!(stderr.contains(why), "{way:?}: {stderr}");
        assert!(!path.exists(), "no empty file is left by {way:?}");
    }
}

/// What a slow server takes for its answer, longer than the measured part.
const SLOW_ANSWER: Duration = Duration::from_millis(600);

#[test]
fn answers_after_the_end_are_in_the_histogram() {
    for driver in drivers() {
        let server = StreamServer::start(|mut stream| {
            let mut message = [0; 32];
            loop {
                stream.read_exact(&mut message)?;
                // The slowness is the fault under test, not a wait for something.
                std::thread::sleep(SLOW_ANSWER);
                stream.write_all(&message)?;
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("latency.hlog");
        let path_text = path.to_str().expect("a plain path");
        let flags = ["-c", "2", "-d", "200ms", "--histogram", path_text];
        let load = Load::run(
            &server.endpoint,
            &[&flags[..], &["--driver", driver]].concat(),
        );
        assert_eq!(load.count("messages"), 0, "{load:#?}");
        assert_eq!(load.count("response_time.count"), 2, "{load:#?}");
        let log = std::fs::read_to_string(&path).expect("a log");
        for kind in ["Tag=response,", "Tag=service,"] {
            let lines: Vec<_> = log
                .lines()
                .filter_map(|line| line.strip_prefix(kind))
                .collect();
            assert_eq!(lines.len(), 1, "{log}");
            let fields: Vec<_> = lines[0].split(',').collect();
            let start_s: f64 = fields[0].parse().expect("a start");
            let max_ns: f64 = fields[2].parse().expect("a maximum");
            assert!(start_s >= 0.2, "{log}");
            assert!(max_ns >= SLOW_ANSWER.as_nanos() as f64, "{log}");
        }
    }
}

#[test]
fn an_interrupt_tells_what_was_still_out() {
    for driver in drivers() {
        let swallow = StreamServer::start(|mut stream| {
            let mut chunk = [0; 65_536];
            while stream.read(&mut chunk)? > 0 {}
            Ok(())
        });
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let silent = format!("udp://{}", silent.local_addr().expect("an address"));
        for (endpoint, signals) in [(&swallow.endpoint, 1), (&silent, 2)] {
            let flags = ["-c", "2", "--depth", "3", "-d", "60s", "--timeout", "60s"];
            let flags = [&flags[..], &["--driver", driver]].concat();
            let mut running = Load::begin(endpoint, &flags);
            let measuring = running.line(program::PATIENCE).expect("a line");
            assert_eq!(measuring["type"], "measuring");
            // The first interval shows that messages are under way.
            let interval = running.line(program::PATIENCE).expect("a line");
            assert_eq!(interval["type"], "interval");
            running.signal(libc::SIGINT);
            if signals > 1 {
                // Its answers may take a minute: the second one does not wait for them. Two signals
                // at the same moment would count as one.
                std::thread::sleep(Duration::from_millis(300));
                running.signal(libc::SIGINT);
            }
            let load = Load::finish(running);
            let context = format!("{endpoint} {signals}: {load:#?}");
            assert_eq!(load.count("messages_sent"), 6, "{context}");
            assert_eq!(
                load.count("settings.unanswered_at_interrupt"),
                6,
                "{context}"
            );
            assert!(
                load.stderr.contains("6 messages were still unanswered"),
                "{context}"
            );
            assert_eq!(load.report["errors"], json!({}), "{context}");
            assert!(
                load.report["datagrams"]["lost"].as_u64().unwrap_or(0) == 0,
                "{context}"
            );
        }
    }
}
