//! `ringmill load dns`, `ringmill serve dns` and tcpscaler's command lines on real sockets: against
//! each other, echo servers, servers that lie, and unbound where it is installed.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use ringmill_tests::program::{self, LOOK, Load, PATIENCE, Server, tethered, until};
use ringmill_tests::{drivers, skipped};
use serde_json::{Value, json};

/// A query for example.com, type A, with an id.
fn query(id: u16) -> Vec<u8> {
    let rest = b"\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    [&id.to_be_bytes()[..], rest].concat()
}

/// The answer to [`query`] that `serve dns` gives by default.
fn answer(id: u16) -> Vec<u8> {
    let head = b"\x85\0\0\x01\0\x01\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    let record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01";
    [&id.to_be_bytes()[..], head, record].concat()
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn lost_nothing(load: &Load) {
    assert_eq!(load.code, 0, "{load:#?}");
    let dns = &load.report["dns"];
    for count in ["lost", "late", "duplicated", "unknown", "malformed"] {
        assert_eq!(dns[count], 0, "{count}: {load:#?}");
    }
    assert_eq!(load.report["errors"], json!({}), "{load:#?}");
}

#[test]
fn load_and_server_agree() {
    for driver in drivers() {
        let endpoints = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let server = Server::dns(&endpoints, &["--driver", driver]);
        for scheme in ["tcp", "udp"] {
            let endpoint = format!("{scheme}://{}", server.address(scheme));
            let flags = ["-c", "20", "--rate", "2k", "-d", "1s", "--driver", driver];
            let load = Load::dns(&endpoint, &[&flags[..], &["--tune", "off"]].concat());
            lost_nothing(&load);
            let dns = &load.report["dns"];
            assert_eq!(dns["offered"], 2000, "{load:#?}");
            let due = load.count("messages_sent") + load.count("dns.unsent");
            assert!(due.abs_diff(2000) < 200, "{load:#?}");
            assert_eq!(dns["response_codes"]["NOERROR"], load.report["messages"]);
            assert_eq!(dns["echoed"], 0, "{load:#?}");
            assert_eq!(load.count("connections.opened"), 20, "{load:#?}");
        }
        assert_eq!(server.stop().code, 0);
    }
}

#[test]
fn both_ip_versions_and_chosen_sources() {
    let mut cases = vec![("127.0.0.1", &["--sources", "127.0.0.2,127.0.0.3"][..])];
    if ringmill_tests::net::has_ipv6() {
        cases.push(("[::1]", &["--sources", "::1"]));
        cases.push(("[::1]", &[]));
    } else {
        skipped("IPv6: this host has none");
    }
    for driver in drivers() {
        for (host, sources) in &cases {
            let endpoints = ["tcp", "udp"].map(|scheme| format!("{scheme}://{host}:0"));
            let endpoints = [endpoints[0].as_str(), &endpoints[1]];
            let server = Server::dns(&endpoints, &["--driver", driver]);
            for scheme in ["tcp", "udp"] {
                let endpoint = format!("{scheme}://{}", server.address(scheme));
                let flags = ["-c", "4", "--rate", "500", "-d", "300ms"];
                let flags = [&flags[..], &["--driver", driver], sources].concat();
                let load = Load::dns(&endpoint, &flags);
                lost_nothing(&load);
                assert!(load.count("messages") > 50, "{endpoint}: {load:#?}");
            }
        }
    }
}

#[test]
fn an_interrupt_ends_the_run_with_its_whole_report() {
    for driver in drivers() {
        let server = Server::dns(&["tcp://127.0.0.1:0"], &["--driver", driver]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("record.csv");
        let flags = ["-c", "10", "--rate", "2k", "-d", "60s", "--driver", driver];
        let record = ["--record", file.to_str().unwrap()];
        let mut running = Load::begin_dns(server.endpoint(0), &[&flags[..], &record].concat());
        let _ = running.line_where("an interval", |line| line["type"] == "interval");
        running.signal(libc::SIGINT);
        let load = Load::finish(running);
        lost_nothing(&load);
        assert!(
            load.report["duration_s"].as_f64().unwrap() < 30.0,
            "{load:#?}"
        );
        let dns = &load.report["dns"];
        let offered = dns["offered"].as_u64().unwrap();
        let due = load.count("messages_sent") + load.count("dns.unsent");
        // Four standard errors of the arrivals.
        let allowed = 4.0 * (offered as f64).sqrt();
        assert!((due.abs_diff(offered) as f64) < allowed, "{load:#?}");
        let (queries, answers) = count_lines(&file);
        assert_eq!(
            (queries, answers),
            (load.count("messages_sent"), load.count("messages_sent")),
            "{load:#?}"
        );
    }
}

fn count_lines(file: &std::path::Path) -> (u64, u64) {
    let text = std::fs::read_to_string(file).unwrap();
    let (queries, answers) = lines_of(&text);
    (queries.len() as u64, answers.len() as u64)
}

/// What cannot be written costs the record and the exit code, not the figures.
#[test]
fn a_full_disk_does_not_cost_the_report() {
    let server = Server::dns(&["udp://127.0.0.1:0"], &[]);
    let flags = ["-c", "2", "--rate", "2k", "-d", "300ms"];
    let record = ["--record", "/dev/full"];
    let load = Load::dns(server.endpoint(0), &[&flags[..], &record].concat());
    assert_eq!(load.code, 1, "{load:#?}");
    assert!(
        load.stderr.contains("cannot write the record to /dev/full"),
        "{load:#?}"
    );
    assert!(load.count("messages") > 100, "{load:#?}");
    assert_eq!(load.report["dns"]["lost"], 0, "{load:#?}");
}

#[test]
fn an_echoed_query_counts_as_its_answer_and_is_told() {
    for driver in drivers() {
        let endpoints = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let server = Server::start(&endpoints, &["--driver", driver]);
        for scheme in ["tcp", "udp"] {
            let endpoint = format!("{scheme}://{}", server.address(scheme));
            let flags = [
                "-c",
                "5",
                "--rate",
                "1k",
                "-d",
                "500ms",
                "--arrivals",
                "constant",
                "--driver",
                driver,
            ];
            let load = Load::dns(&endpoint, &flags);
            lost_nothing(&load);
            let due = load.count("messages_sent") + load.count("dns.unsent");
            assert!((499..=501).contains(&due), "{load:#?}");
            assert_eq!(load.report["dns"]["echoed"], load.report["messages"]);
            assert_eq!(load.report["dns"]["response_codes"], json!({}));
        }
    }
}

#[test]
fn the_fixed_answer_is_exact_and_what_is_no_query_gets_none() {
    for driver in drivers() {
        let endpoints = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let server = Server::dns(&endpoints, &["--driver", driver]);

        let mut stream = TcpStream::connect(server.address("tcp")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Two queries, cut within the second; then one that is none.
        let two = [framed(&query(1)), framed(&query(0xfffe))].concat();
        for part in [&two[..40], &two[40..]] {
            stream.write_all(part).unwrap();
            std::thread::sleep(LOOK);
        }
        let expected = [framed(&answer(1)), framed(&answer(0xfffe))].concat();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, expected);
        // Closed: an answer is no query, and neither is what will be longer than any.
        let mut other = TcpStream::connect(server.address("tcp")).unwrap();
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        for (stream, bytes) in [
            (&mut stream, framed(&answer(3))),
            (&mut other, vec![0x80, 0, 0]),
        ] {
            stream.write_all(&bytes).unwrap();
            let end = stream.read(&mut got).unwrap_or_else(|error| {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                0
            });
            assert_eq!(end, 0);
        }

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server.address("udp")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for (datagram, answered) in [
            (answer(1), None),
            (query(2)[..20].to_vec(), None),
            (vec![0; 12], None),
            (query(3), Some(answer(3))),
        ] {
            socket.send(&datagram).unwrap();
            if let Some(expected) = answered {
                let mut got = [0; 600];
                let len = socket.recv(&mut got).unwrap();
                // The first that comes: nothing came for those before.
                assert_eq!(got[..len], expected);
            }
        }
    }
}

/// A TCP server on a thread that gives every query what `lie` makes of it.
fn liar(lie: impl Fn(u32, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    // The thread ends with the process.
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut number = 0;
        loop {
            let mut len = [0; 2];
            stream.read_exact(&mut len)?;
            let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut query)?;
            for message in lie(number, &query) {
                stream.write_all(&framed(&message))?;
            }
            number += 1;
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    });
    format!("tcp://{address}")
}

/// The rate of opening is that of the beginning: what is opened again later would raise it.
#[test]
fn connections_opened_again_are_not_in_the_opening() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("tcp://{}", listener.local_addr().expect("an address"));
    // Each connection ends with its first query.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || (&stream).read_exact(&mut [0; 2]));
        }
    });
    for driver in drivers() {
        let flags = ["-c", "4", "--rate", "100", "-d", "1s", "--reopen"];
        let load = Load::dns(&endpoint, &[&flags[..], &["--driver", driver]].concat());
        let dns = &load.report["dns"];
        assert_eq!(dns["opened"], 4, "{load:#?}");
        let opening_s = dns["opening_s"].as_f64().unwrap();
        let per_s = dns["opened_per_s"].as_f64().unwrap();
        assert!((per_s * opening_s - 4.0).abs() < 1e-6, "{load:#?}");
        assert!(load.count("connections.opened") > 20, "{load:#?}");
    }
}

#[test]
fn lies_are_counted_for_what_they_are() {
    let right = |query: &[u8]| answer(u16::from_be_bytes([query[0], query[1]]));
    type Lie = Box<dyn Fn(u32, &[u8]) -> Vec<Vec<u8>> + Send>;
    let cases: Vec<(&str, Lie)> = vec![
        (
            "duplicated",
            Box::new(move |_, query| vec![right(query), right(query)]),
        ),
        (
            "unknown",
            Box::new(move |_, query| {
                let mut other = right(query);
                other[0] ^= 0x80;
                vec![other, right(query)]
            }),
        ),
        (
            "malformed",
            Box::new(move |_, query| {
                let mut other = right(query);
                other[13] = b'f';
                vec![other, right(query)]
            }),
        ),
        ("lost", Box::new(move |_, _| Vec::new())),
        (
            "SERVFAIL",
            Box::new(move |_, query| {
                let mut failure = right(query)[..12].to_vec();
                failure[3] = 2;
                failure[4..].fill(0);
                vec![failure]
            }),
        ),
    ];
    for (name, lie) in cases {
        let endpoint = liar(lie);
        let flags = [
            "-c",
            "1",
            "--rate",
            "200",
            "-d",
            "500ms",
            "--timeout",
            "200ms",
            "--arrivals",
            "constant",
        ];
        let load = Load::dns(&endpoint, &flags);
        let dns = &load.report["dns"];
        let sent = load.count("messages_sent");
        assert!(sent >= 50, "{name}: {load:#?}");
        let count = |what: &str| dns[what].as_u64().expect(what);
        for what in ["duplicated", "unknown", "malformed", "lost"] {
            let expected = if what == name { sent } else { 0 };
            // The last query's second message may find the connection closed.
            let missing = expected - count(what).min(expected);
            assert!(
                missing <= u64::from(what != "lost") && count(what) <= expected,
                "{name}, {what}: {load:#?}"
            );
        }
        match name {
            "SERVFAIL" => {
                assert_eq!(dns["response_codes"]["SERVFAIL"], load.report["messages"]);
                assert_eq!(
                    load.report["errors"]["answer: SERVFAIL"],
                    load.report["messages"]
                );
            }
            "lost" => assert_eq!(load.code, 1, "nothing was answered"),
            _ => assert_eq!(load.code, 0, "{name}: {load:#?}"),
        }
    }
}

/// Lines of a record by their first letter; every line has the form that tcpscaler prints.
fn lines_of(text: &str) -> (Vec<Vec<&str>>, Vec<Vec<&str>>) {
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("type,timestamp,connection_id,query_id,poisson_id,poisson_interval_us,rtt_us")
    );
    let fields = lines.map(|line| line.split(',').collect::<Vec<_>>());
    let (queries, answers): (Vec<_>, Vec<_>) = fields.partition(|fields| fields[0] == "Q");
    for fields in queries.iter().chain(&answers) {
        assert_eq!(fields.len(), 7, "{fields:?}");
        let (seconds, nanos) = fields[1].split_once('.').expect("seconds.nanoseconds");
        assert!(
            seconds.parse::<u64>().is_ok() && nanos.len() == 9,
            "{fields:?}"
        );
        let is_query = fields[0] == "Q";
        assert_eq!(fields[4].parse::<u32>().is_ok(), is_query, "{fields:?}");
        assert_eq!(fields[5], "", "{fields:?}");
        assert_eq!(fields[6].parse::<u64>().is_ok(), !is_query, "{fields:?}");
        assert!(is_query || fields[0] == "A", "{fields:?}");
    }
    (queries, answers)
}

#[test]
fn a_record_has_every_query_and_answer() {
    let server = Server::dns(&["udp://127.0.0.1:0"], &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("record.csv");
    let flags = [
        "-c",
        "3",
        "--rate",
        "1k",
        "-d",
        "500ms",
        "--record",
        file.to_str().unwrap(),
    ];
    let load = Load::dns(server.endpoint(0), &flags);
    lost_nothing(&load);
    let text = std::fs::read_to_string(&file).unwrap();
    let (queries, answers) = lines_of(&text);
    assert_eq!(
        queries.len() as u64,
        load.count("messages_sent"),
        "{load:#?}"
    );
    assert_eq!(answers.len(), queries.len());
    assert_eq!(load.count("dns.recorded"), 2 * queries.len() as u64);
    assert_eq!(load.count("dns.records_dropped"), 0);
    // Ids go up by one on each connection, and each has its answer.
    for connection in ["0", "1", "2"] {
        let ids = |lines: &[Vec<&str>]| {
            let mine = lines.iter().filter(|fields| fields[2] == connection);
            let mut ids: Vec<u16> = mine.map(|fields| fields[3].parse().unwrap()).collect();
            ids.sort_unstable();
            ids
        };
        let asked = ids(&queries);
        assert_eq!(asked, (0..asked.len() as u16).collect::<Vec<_>>());
        assert_eq!(ids(&answers), asked);
    }
}

#[test]
fn a_plan_decides_rates_and_length() {
    let server = Server::dns(&["udp://127.0.0.1:0"], &[]);
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan");
    std::fs::write(&plan, "3\n500 200\n250 0\n250 2000\n").unwrap();
    let plan = plan.to_str().unwrap();
    let flags = ["-c", "3", "--plan", plan, "--arrivals", "constant"];
    let load = Load::dns(server.endpoint(0), &flags);
    lost_nothing(&load);
    assert_eq!(load.report["dns"]["offered"], 600, "{load:#?}");
    let due = load.count("messages_sent") + load.count("dns.unsent");
    assert!((599..=602).contains(&due), "{load:#?}");
    let length = load.report["duration_s"].as_f64().unwrap();
    assert!((0.99..1.2).contains(&length), "{load:#?}");
}

#[test]
fn wrong_flags_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan");
    std::fs::write(&plan, "2\n500 200\n").unwrap();
    let plan = plan.to_str().unwrap();
    for (flags, words) in [
        (
            &["tls://:853", "--rate", "1"][..],
            "tls:// is not yet in this version: use tcp://",
        ),
        (&["tcp://:53"], "--rate"),
        (
            &["tcp://:53", "--plan", plan],
            "says that it has 2 lines, and has 1",
        ),
        (
            &["tcp://:53", "--plan", plan, "--rate", "5"],
            "cannot be used with",
        ),
        (
            &["tcp://:53", "--plan", "/nowhere"],
            "/nowhere: No such file",
        ),
        (
            &["tcp://:53", "--rate", "1", "--name", "a..b"],
            "empty label",
        ),
        (
            &["tcp://:53", "--rate", "1", "--type", "B"],
            "no record type",
        ),
        (
            &["tcp://:53", "--rate", "1", "--open-rate", "0"],
            "a rate of at least one in 1,000 s",
        ),
        (
            &["tcp://127.0.0.1:53", "--rate", "1", "--sources", "::1"],
            "--sources ::1: the server is 127.0.0.1:53, of the other IP version",
        ),
        (
            &["tcp://:53", "--rate", "1", "--record", "-", "--json"],
            "both want standard output",
        ),
    ] {
        let output = program::command()
            .args(["load", "dns"])
            .args(flags)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {stderr}");
        assert!(stderr.contains(words), "{flags:?}: {stderr}");
    }
}

#[test]
fn a_condition_on_loss_holds_for_streams_too() {
    let endpoint = liar(|number, query| {
        let id = u16::from_be_bytes([query[0], query[1]]);
        if number % 2 == 0 {
            vec![answer(id)]
        } else {
            Vec::new()
        }
    });
    let flags = [
        "-c",
        "1",
        "--rate",
        "200",
        "-d",
        "300ms",
        "--timeout",
        "200ms",
        "--fail-if",
        "loss>10%",
    ];
    let load = Load::dns(&endpoint, &flags);
    assert_eq!(load.code, 3, "{load:#?}");
}

/// Queries in the half second after the first one, and later.
fn halves(queries: &[Vec<&str>]) -> [usize; 2] {
    let time = |fields: &Vec<&str>| fields[1].parse::<f64>().expect("seconds");
    let mut times: Vec<_> = queries.iter().map(time).collect();
    times.sort_by(f64::total_cmp);
    let middle = times.first().map_or(0.0, |first| first + 0.5);
    let early = times.iter().filter(|time| **time < middle).count();
    [early, times.len() - early]
}

/// Runs a program to its end with lines on its standard input.
fn run(mut command: Command, input: &str) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_command_lines_of_tcpscaler_print_its_lines() {
    let endpoints = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
    let server = Server::start(&endpoints, &[]);
    for (program, scheme) in [("tcpclient", "tcp"), ("udpclient", "udp")] {
        let port = server.address(scheme).port().to_string();
        // Queries in the first and in the second half second: the rate does change.
        for (flags, input, expected) in [
            (&["-r", "500", "-t", "1"][..], "", [250, 250]),
            (&["--stdin"], "2\n500 200\n500 800\n", [100, 400]),
            (
                &["-r", "100", "--stdin-rateslope"],
                "1\n1000 800\n",
                [150, 350],
            ),
        ] {
            // By the word after `ringmill`, and by the name of the program.
            let folder = tempfile::tempdir().unwrap();
            let link = folder.path().join(program);
            std::os::unix::fs::symlink(program::ringmill(), &link).unwrap();
            let mut word = program::command();
            word.arg(program);
            for mut command in [word, Command::new(&link)] {
                command
                    .args(["-R", "-p", &port, "-c", "5", "127.0.0.1"])
                    .args(flags);
                let (code, stdout, stderr) = run(tethered(command), input);
                assert_eq!(code, 0, "{program} {flags:?}: {stderr}");
                let (queries, answers) = lines_of(&stdout);
                let halves = halves(&queries);
                for (found, expected) in halves.iter().zip(expected) {
                    // Four standard errors, and what a busy machine shifts.
                    assert!(
                        found.abs_diff(expected) < 80,
                        "{program} {flags:?}: {halves:?}; {stderr}"
                    );
                }
                assert_eq!(
                    answers.len(),
                    queries.len(),
                    "{program} {flags:?}: {stderr}"
                );
                assert!(
                    stderr.contains("queries echoed, taken as answers"),
                    "{stderr}"
                );
            }
        }
        let mut help = program::command();
        help.args([program, "-h"]);
        let (code, stdout, stderr) = run(help, "");
        assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
        assert!(stderr.starts_with("usage: ringmill "), "{stderr}");
        for (flags, words) in [
            (
                &["-c", "1", "127.0.0.1"][..],
                "Error: missing mandatory arguments",
            ),
            (
                &["--tls", "-c", "1", "-r", "1", "-p", "853", "127.0.0.1"],
                match program {
                    "tcpclient" => "Error: --tls is not yet in this version",
                    _ => "Error: there is no option --tls",
                },
            ),
        ] {
            let mut wrong = program::command();
            wrong.arg(program).args(flags);
            let (code, _, stderr) = run(wrong, "");
            assert_eq!(code, 1, "{stderr}");
            assert!(stderr.starts_with(words), "{stderr}");
        }
    }
}

/// A script may keep the pipe open: what the first line says is all that is read.
#[test]
fn a_plan_on_an_open_pipe_begins_at_once() {
    let server = Server::start(&["udp://127.0.0.1:0"], &[]);
    let address = server.address("udp");
    let (endpoint, port) = (server.endpoint(0).to_owned(), address.port().to_string());
    let mut front = program::command();
    front.args(["udpclient", "--stdin", "-c", "2", "-p", &port, "127.0.0.1"]);
    let mut load = program::command();
    load.args(["load", "dns", &endpoint, "--plan", "-", "-c", "2"]);
    for mut command in [front, load] {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(b"1\n300 500\n").unwrap();
        let status = until("the end of the plan", || child.try_wait().unwrap());
        assert!(status.success(), "{command:?}: {status}");
        drop(pipe);
    }
}

#[test]
fn tcpserver_echoes() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut command = program::command();
    command.args(["tcpserver", &address.port().to_string()]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stream = until("tcpserver", || TcpStream::connect(address).ok());
    stream.write_all(b"and back").unwrap();
    let mut back = [0; 8];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"and back");
    program::signal(child.id(), libc::SIGTERM);
    drop(stream);
    assert!(child.wait().unwrap().success());
}

/// The example configuration is one, as far as unbound itself can say.
#[test]
fn the_example_configuration_of_unbound_is_right() {
    let unbound = std::env::var("RINGMILL_UNBOUND").unwrap_or_else(|_| "unbound".into());
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tuning/unbound-many-tcp.conf"
    );
    assert!(std::path::Path::new(file).exists());
    let checked = Command::new(format!("{unbound}-checkconf"))
        .arg(file)
        .output();
    let Ok(checked) = checked else {
        return skipped("unbound-checkconf is not installed (apt-get install unbound)");
    };
    let told = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{told}");
}

/// unbound from `RINGMILL_UNBOUND` or the path, answering from a zone of its own.
#[test]
fn unbound_answers_every_query() {
    let unbound = std::env::var("RINGMILL_UNBOUND").unwrap_or_else(|_| "unbound".into());
    let found = Command::new(&unbound).arg("-V").output();
    if !found.is_ok_and(|output| output.status.success()) {
        return skipped("unbound is not installed (apt-get install unbound)");
    }
    let folder = tempfile::tempdir().unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let file = folder.path().join("unbound.conf");
    let configuration = format!(
        "server:\n  interface: 127.0.0.1@{port}\n  username: \"\"\n  chroot: \"\"\n  directory: \
         \"{folder}\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  \
         incoming-num-tcp: 100\n  outgoing-range: 64\n  num-queries-per-thread: 32\n  \
         module-config: \"iterator\"\n  local-zone: \"test.\" static\n  local-data: \
         \"www.test. A 192.0.2.1\"\nremote-control:\n  control-enable: no\n",
        folder = folder.path().display(),
    );
    std::fs::write(&file, configuration).unwrap();
    let mut command = Command::new(&unbound);
    command.arg("-c").arg(&file).stderr(Stdio::null());
    let mut child = tethered(command).spawn().unwrap();
    let address = format!("127.0.0.1:{port}");
    until("unbound", || TcpStream::connect(&address).ok());
    let names = folder.path().join("names");
    std::fs::write(&names, "www.test\nnothing.test AAAA\nWWW.TEST TXT\n").unwrap();
    for scheme in ["tcp", "udp"] {
        let flags = [
            "-c",
            "20",
            "--rate",
            "1k",
            "-d",
            "1s",
            "--names",
            names.to_str().unwrap(),
        ];
        let load = Load::dns(&format!("{scheme}://{address}"), &flags);
        let dns = &load.report["dns"];
        assert_eq!(load.code, 0, "{load:#?}");
        for count in [
            "lost",
            "late",
            "duplicated",
            "unknown",
            "malformed",
            "echoed",
        ] {
            assert_eq!(dns[count], 0, "{count}: {load:#?}");
        }
        let codes = dns["response_codes"].as_object().unwrap();
        let total: u64 = codes.values().filter_map(Value::as_u64).sum();
        assert_eq!(total, load.count("messages"), "{load:#?}");
        // A third of the names does not exist.
        let missing = dns["response_codes"]["NXDOMAIN"].as_u64().unwrap_or(0);
        assert!(missing.abs_diff(total / 3) < total / 10, "{load:#?}");
    }
    program::signal(child.id(), libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(10));
    let _ = child.wait();
}
