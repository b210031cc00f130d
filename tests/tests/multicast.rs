//! Multicast end to end: the real program over TCP, Unix and UDP groups, on one host and across two
//! network namespaces; the interactive pair; what is refused.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use ringmill_protocols::multicast::Sequence;
use ringmill_protocols::multicast::wire::Cutter;
use ringmill_tests::drivers;
use ringmill_tests::program::{PATIENCE, Running, command, until};
use serde_json::Value;

/// A multicast server that serves; its first lines say where.
struct Sender {
    running: Running,
    endpoints: Vec<String>,
}

impl Sender {
    fn start(endpoints: &[&str], flags: &[&str]) -> Self {
        Self::start_as(command(), endpoints, flags)
    }

    fn start_as(mut command: Command, endpoints: &[&str], flags: &[&str]) -> Self {
        command
            .args(["serve", "multicast", "--json"])
            .args(endpoints);
        let mut running = Running::start(&mut command, flags);
        let endpoints = endpoints.iter().map(|_| {
            let line = running.line(PATIENCE);
            let line = line.unwrap_or_else(|| panic!("no server: {}", running.stderr()));
            line["endpoint"].as_str().expect("it says where").to_owned()
        });
        let endpoints = endpoints.collect();
        Self { running, endpoints }
    }

    /// SIGTERM; the multicast counters of its last line.
    fn stop(mut self) -> Value {
        self.running.signal(libc::SIGTERM);
        let (code, lines) = self.running.wait(PATIENCE);
        assert_eq!(code, 0, "{}", self.running.stderr());
        let last = lines.last().expect("a last line");
        assert_eq!(last["type"], "stopped", "{last}");
        last["services"][0]["multicast"].clone()
    }
}

fn load(mut command: Command, endpoint: &str, flags: &[&str]) -> Value {
    command.args([
        "load",
        "multicast",
        endpoint,
        "--json",
        "-d",
        "1s",
        "--warmup",
        "200ms",
    ]);
    let mut running = Running::start(&mut command, flags);
    let (code, lines) = running.wait(PATIENCE);
    assert_eq!(code, 0, "{endpoint}: {}", running.stderr());
    let report = lines.last().expect("a report").clone();
    assert_eq!(report["type"], "report", "{report}");
    report
}

/// Every message once and in order, at the rate, with a latency.
fn assert_clean(report: &Value, receivers: u64, rate: u64, context: &str) {
    let count = |name: &str| report["datagrams"][name].as_u64().expect("a count");
    let messages = report["messages"].as_u64().expect("a count");
    assert_eq!(count("lost"), 0, "{context}: {report}");
    assert_eq!(count("duplicated"), 0, "{context}: {report}");
    assert_eq!(count("reordered"), 0, "{context}: {report}");
    assert_eq!(count("sent"), messages, "{context}: {report}");
    // The measured second is not exactly one on a busy machine.
    let expected = receivers * rate;
    assert!(
        (expected / 2..expected * 2).contains(&messages),
        "{context}: {messages} of {expected}: {report}"
    );
    assert_eq!(report["response_time"]["count"], messages, "{context}");
    assert_eq!(report["connections"]["opened"], receivers, "{context}");
    assert_eq!(report["errors"], serde_json::json!({}), "{context}");
}

/// A group of one test alone: tests run side by side, perhaps in several checkouts. IPv6 groups are
/// tested over a link: loopback has no route to them.
fn group(number: u8) -> String {
    let port = 20_000 + std::process::id() % 10_000;
    format!("udp://239.255.71.{number}:{port}")
}

#[test]
fn every_receiver_gets_every_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = format!("unix:{}/feed", folder.path().display());
    let group = group(1);
    for driver in drivers() {
        let endpoints = ["tcp://127.0.0.1:0", "tcp://[::1]:0", &path, &group];
        let flags = ["--rate", "500", "--interface", "lo", "--driver", driver];
        let sender = Sender::start(&endpoints, &flags);
        for endpoint in &sender.endpoints {
            let mut flags = vec!["-c", "3", "--driver", driver];
            if endpoint.starts_with("udp") {
                flags.extend(["--interface", "lo"]);
            }
            let report = load(command(), endpoint, &flags);
            assert_clean(&report, 3, 500, &format!("{driver}, {endpoint}"));
        }
        let counters = sender.stop();
        assert_eq!(counters["dropped"], 0, "{driver}: {counters}");
        assert_eq!(counters["queued"], counters["deliveries"], "{driver}");
    }
}

/// Reads a session to its end; what came, by number.
fn read_to_end(mut stream: TcpStream, sequence: &mut Sequence) -> u64 {
    let mut cutter = Cutter::default();
    let mut chunk = vec![0; 1 << 16];
    let mut highest = 0;
    loop {
        match stream
            .read(&mut chunk)
            .expect("the server ends it in order")
        {
            0 => return highest,
            len => cutter
                .push(&chunk[..len], |header| {
                    sequence.note(header.sequence);
                    highest = header.sequence;
                })
                .expect("messages"),
        }
    }
}

/// As fast as possible to a session that reads late: what was queued arrives, what was dropped is
/// missing, and both are counted exactly, on both ends.
#[test]
fn sent_is_received_and_counted_loss() {
    for driver in drivers() {
        let flags = [
            "--rate",
            "200k",
            "--size",
            "100",
            "--shards",
            "1",
            "--queue-per-connection",
            "64KiB",
            "--driver",
            driver,
        ];
        let mut sender = Sender::start(&["tcp://127.0.0.1:0"], &flags);
        let address = sender.endpoints[0].trim_start_matches("tcp://").to_owned();
        let slow = TcpStream::connect(&address).expect("it serves");
        sender.running.line_where("a loss", |line| {
            line["services"][0]["multicast"]["dropped"].as_u64() > Some(1000)
        });
        let reader = std::thread::spawn(move || {
            let mut sequence = Sequence::new();
            let highest = read_to_end(slow, &mut sequence);
            (sequence.counts(), highest)
        });
        sender
            .running
            .line_where("an interval", |line| line["type"] == "interval");
        let counters = sender.stop();
        let (counts, highest) = reader.join().expect("it reads to the end");
        let of = |name: &str| counters[name].as_u64().expect("a counter");
        assert_eq!(counts.received, of("queued"), "{driver}: {counters}");
        assert_eq!(of("queued") + of("dropped"), of("deliveries"), "{driver}");
        // The only session was there from the first message on.
        assert_eq!(of("deliveries"), of("messages"), "{driver}: {counters}");
        assert_eq!(counts.received + counts.lost, highest + 1, "{driver}");
        // What was dropped after the last message that came is known to the server alone.
        assert!(
            counts.lost <= of("dropped"),
            "{driver}: {counts:?}, {counters}"
        );
        assert!(counts.lost > 0, "{driver}: {counts:?}");
        assert_eq!((counts.duplicated, counts.reordered), (0, 0), "{driver}");
    }
}

#[test]
fn a_slow_reader_is_disconnected_on_request_and_delays_nobody() {
    for driver in drivers() {
        // The queue holds 200 ms: a reader that does read may be held up for so long.
        for rate in ["20k", "max"] {
            let flags = [
                "--rate",
                rate,
                "--slow-readers",
                "disconnect",
                "--size",
                "1k",
                "--shards",
                "1",
                "--queue-per-connection",
                "4MiB",
                "--driver",
                driver,
            ];
            let mut sender = Sender::start(&["tcp://127.0.0.1:0"], &flags);
            let endpoint = sender.endpoints[0].clone();
            let slow = TcpStream::connect(endpoint.trim_start_matches("tcp://")).expect("served");
            let report = load(command(), &endpoint, &["-c", "2", "--driver", driver]);
            assert!(
                report["messages"].as_u64() > Some(1000),
                "{driver}: {report}"
            );
            sender.running.line_where("a disconnect", |line| {
                line["services"][0]["multicast"]["disconnected"].as_u64() >= Some(1)
            });
            drop(slow);
            sender.stop();
        }
    }
}

#[test]
fn as_fast_as_possible_loses_nothing_that_is_not_counted() {
    for driver in drivers() {
        let flags = [
            "--rate",
            "max",
            "--no-rate-cap",
            "--interface",
            "lo",
            "--driver",
            driver,
        ];
        for endpoint in ["tcp://127.0.0.1:0", &group(3)] {
            let sender = Sender::start(&[endpoint], &flags);
            let mut flags = vec!["-c", "4", "--driver", driver];
            if endpoint.starts_with("udp") {
                flags.extend(["--interface", "lo"]);
            }
            let report = load(command(), &sender.endpoints[0], &flags);
            let count = |name: &str| report["datagrams"][name].as_u64().expect("a count");
            let messages = report["messages"].as_u64().expect("a count");
            assert!(messages > 4000, "{driver}, {endpoint}: {report}");
            assert_eq!(
                count("sent"),
                messages + count("lost"),
                "{driver}: {report}"
            );
            assert_eq!(count("duplicated"), 0, "{driver}, {endpoint}: {report}");
            sender.stop();
        }
    }
}

#[test]
fn what_is_refused_is_refused_in_words() {
    for (arguments, words) in [
        (
            "serve multicast udp://239.255.0.1:1 --interface nonesuch0",
            "no such interface",
        ),
        ("serve multicast udp://192.0.2.1:1", "is no multicast group"),
        (
            "serve multicast udp://224.0.0.251:1 --interface lo",
            "--any-group",
        ),
        (
            "serve multicast udp://239.255.0.1:1 --interface lo --rate max",
            "--no-rate-cap",
        ),
        (
            "serve multicast tcp://127.0.0.1:0 --size 8",
            "--size 8: from 32",
        ),
        ("serve multicast tcp://127.0.0.1:0 --rate 0", "or 'max'"),
        ("load multicast udp://192.0.2.1:1", "is no multicast group"),
        (
            "load multicast udp://[ff02::1:5]:1",
            "say which with --interface",
        ),
        (
            "load multicast udp://239.255.0.1:1 --interface nonesuch0",
            "no such interface",
        ),
        ("multicast send 192.0.2.1:1", "is no multicast group"),
        (
            "multicast receive 239.255.0.1:1 --interface nonesuch0",
            "no such interface",
        ),
    ] {
        let output = command()
            .args(arguments.split(' '))
            .stdin(Stdio::null())
            .output()
            .expect("it can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(said.contains(words), "{arguments}: {said}");
    }
}

/// What a child says on standard error, line by line until `wanted`.
fn wait_for(lines: &mut impl Iterator<Item = std::io::Result<String>>, wanted: &str) {
    for line in lines {
        if line.expect("it can be read").contains(wanted) {
            return;
        }
    }
    panic!("it ended before it said {wanted:?}");
}

#[test]
fn typed_lines_come_out_at_the_other_end() {
    use std::io::{BufRead as _, BufReader};
    for driver in drivers() {
        {
            let group = group(2);
            let end = |verb: &str| {
                let mut child = command()
                    .args([
                        "multicast",
                        verb,
                        &group,
                        "--interface",
                        "lo",
                        "--driver",
                        driver,
                    ])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("it can be started");
                let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
                wait_for(
                    &mut said,
                    if verb == "send" {
                        "sending to"
                    } else {
                        "joined"
                    },
                );
                (child, said)
            };
            let (mut receiver, _said) = end("receive");
            let (mut sender, mut said) = end("send");
            let mut typed = sender.stdin.take().expect("piped");
            let mut shown = BufReader::new(receiver.stdout.take().expect("piped")).lines();
            let mut next = || shown.next().expect("a line").expect("it can be read");
            typed
                .write_all("grüße\nagain\n".as_bytes())
                .expect("it reads");
            assert_eq!([next(), next()], ["grüße", "again"], "{driver}, {group}");
            typed.write_all(b"!\n").expect("it reads");
            wait_for(&mut said, "restarting");
            typed.write_all(b"after\n\n").expect("it reads");
            assert_eq!(next(), "after", "{driver}, {group}");
            let status = until("the sender's end", || sender.try_wait().expect("a child"));
            assert!(status.success(), "{driver}: {status}");
            drop(receiver.stdin.take());
            let status = until("the receiver's end", || {
                receiver.try_wait().expect("a child")
            });
            assert!(status.success(), "{driver}: {status}");
        }
    }
}
