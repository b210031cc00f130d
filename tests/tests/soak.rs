//! `ringmill soak` on real sockets: ten thousand connections with churn, both ends in processes of
//! their own, and what it says when something is wrong.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringmill_tests::program::{Running, Server, command, signal, until};
use ringmill_tests::restrict::{raise_file_limit, with_files};
use ringmill_tests::{drivers, skipped};
use serde_json::Value;

const CONNECTIONS: u64 = 10_000;
/// Files that a process needs besides its connections, here with room for those of churn.
const OTHER_FILES: u64 = 1_500;
/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A finished soak.
struct Soak {
    code: i32,
    lines: Vec<Value>,
    report: Value,
    stderr: String,
}

impl Soak {
    fn run(mut command: std::process::Command, flags: &[&str]) -> Self {
        command.args(["soak", "--json"]);
        let mut running = Running::start(&mut command, flags);
        let (code, mut lines) = running.wait(PATIENCE);
        let stderr = running.stderr();
        let report = lines.pop().unwrap_or_default();
        Self {
            code,
            lines,
            report,
            stderr,
        }
    }

    fn count(&self, pointer: &str) -> u64 {
        let value = self.report.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no {pointer} in {:#}; {}", self.report, self.stderr))
    }

    fn assert_clean(&self, connections: u64, context: &str) {
        let all = format!("{context}: {:#}\n{}", self.report, self.stderr);
        assert_eq!(self.code, 0, "{all}");
        assert_eq!(self.report["failures"], Value::Array(Vec::new()), "{all}");
        assert_eq!(self.count("/opening/live"), connections, "{all}");
        assert_eq!(self.count("/connections/lost"), 0, "{all}");
        assert_eq!(self.count("/hold/wrong_bytes"), 0, "{all}");
        assert_eq!(self.count("/hold/unanswered"), 0, "{all}");
        let sent = self.count("/hold/messages_sent");
        assert_eq!(self.count("/hold/messages"), sent, "{all}");
    }
}

#[test]
fn ten_thousand_connections_with_churn() {
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
        // Each way of closing with each driver: churn_leaves_no_descriptor_entry_or_memory_behind.
        let close = match driver {
            "uring" => "fin",
            _ => "rst",
        };
        let context = format!("{driver}, {close}");
        let count = connections.to_string();
        let soak = Soak::run(
            command(),
            &[
                "--self",
                "-c",
                &count,
                "--driver",
                driver,
                "--open-rate",
                "5k",
                "--hold",
                "4s",
                "--rate",
                "2k",
                "--churn",
                "250/s",
                "--churn-close",
                close,
            ],
        );
        soak.assert_clean(connections, &context);
        // Poisson: five deviations.
        let churned = soak.count("/connections/churned");
        assert!(churned.abs_diff(1000) < 160, "{context}: {churned} churned");
        // Those that churn closed last may not have been opened again before the end.
        let opened = soak.count("/connections/opened");
        let all = connections + churned;
        assert!(
            (all - 100..=all).contains(&opened),
            "{context}: {opened} of {all}"
        );
        let sent = soak.count("/hold/messages_sent");
        assert!(sent.abs_diff(8_000) < 500, "{context}: {sent} sent");
        let per_s = soak.report["opening"]["per_s"].as_f64().unwrap_or(0.0);
        assert!(per_s < 5_200.0, "{context}: {per_s} opened per second");
        // The server saw the same, and who closed how.
        let accepted = soak.count("/server/counters/accepted");
        assert!((opened..=all).contains(&accepted), "{context}: {accepted}");
        assert_eq!(soak.count("/server/left_open"), 0, "{context}");
        // At the end all that are left are reset; before, only if churn is told to.
        let failed = soak.count("/server/counters/failed");
        let resets = accepted - if close == "fin" { churned } else { 0 };
        assert_eq!(failed, resets, "{context}: {:#}", soak.report["server"]);
        // Both processes are measured; here they are too small for more than an order.
        for end in ["client", "server"] {
            assert!(soak.count(&format!("/memory/{end}/full_bytes")) > 0);
        }
        let phases: Vec<_> = soak.lines.iter().map(|line| &line["phase"]).collect();
        assert!(phases.iter().any(|phase| *phase == "opening"), "{phases:?}");
        assert!(phases.iter().any(|phase| *phase == "held"), "{phases:?}");
    }
}

/// Both ends with few files: several rings on each.
#[test]
fn more_connections_than_files_are_held_by_several_rings() {
    if !drivers().contains(&"uring") {
        return;
    }
    let soak = Soak::run(
        with_files(command(), 2000),
        &[
            "--self",
            "-c",
            "6k",
            "--driver",
            "uring",
            "--open-rate",
            "max",
            "--hold",
            "1s",
        ],
    );
    soak.assert_clean(6000, "2000 files");
    assert!(soak.count("/settings/shards") >= 4, "{:#}", soak.report);
    assert!(soak.count("/server/shards") >= 4, "{:#}", soak.report);
    assert!(
        soak.stderr.contains("under the limit of 2000 open files"),
        "{}",
        soak.stderr
    );
}

#[test]
fn what_cannot_be_held_is_refused_before_it_begins() {
    let cases: [(&[&str], &str); 8] = [
        // TEST-NET-3 (RFC 5737) is on no host.
        (
            &["tcp://127.0.0.1:7", "--sources", "203.0.113.0/30"],
            "2 of 2 addresses are not on this host: 203.0.113.1, 203.0.113.2; add them to its \
             network card: `ip address add 203.0.113.1/32 dev INTERFACE`",
        ),
        (
            &["--self", "-c", "6k", "--driver", "epoll"],
            "under its limit of 2000 open files",
        ),
        (&["--self", "--tls"], "TLS"),
        (&["tls://127.0.0.1:7"], "tls"),
        (&["udp://127.0.0.1:7"], "load echo"),
        (
            &["tcp://127.0.0.1:7", "--sources", "127.1.0.1/16"],
            "127.1.0.0/16",
        ),
        (
            &["tcp://127.0.0.1:7", "--fail-if", "nonsense>1"],
            "live, opened",
        ),
        (
            &["--self", "--churn", "30k"],
            "opened again at --open-rate, which is 10000; raise it above 30000 or say 'max'",
        ),
    ];
    for (flags, words) in cases {
        let mut command = with_files(command(), 2000);
        command.arg("soak");
        let mut running = Running::start(&mut command, flags);
        let (code, _) = running.wait(PATIENCE);
        let stderr = running.stderr();
        assert_eq!(code, 2, "{flags:?}: {stderr}");
        assert!(stderr.contains(words), "{flags:?}: {stderr}");
    }
}

#[test]
fn a_server_that_is_not_there_is_named_with_what_helps() {
    // Bound and closed again: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let soak = Soak::run(command(), &[&format!("tcp://{free}"), "-c", "10"]);
    assert_eq!(soak.code, 1, "{}", soak.stderr);
    assert!(
        soak.stderr.contains("connection refused"),
        "{}",
        soak.stderr
    );
    assert!(
        soak.stderr.contains("is the server running"),
        "{}",
        soak.stderr
    );
}

#[test]
fn too_few_ports_are_foretold_and_named() {
    let server = Server::start(&["tcp://127.0.0.1:0"], &["--shards", "1"]);
    let soak = Soak::run(
        command(),
        &[
            server.endpoint(0),
            "-c",
            "40",
            "--sources",
            "127.3.0.1",
            "--source-ports",
            "40000-40029",
            "--open-timeout",
            "3s",
            "--hold",
            "1s",
            "--rate",
            "10",
        ],
    );
    assert_eq!(soak.code, 1, "{}", soak.stderr);
    assert!(
        soak.stderr.contains("make 30 connections, not 40"),
        "{}",
        soak.stderr
    );
    assert!(soak.count("/opening/live") <= 30, "{:#}", soak.report);
    assert!(soak.count("/connections/failed") >= 10, "{:#}", soak.report);
    let failures = soak.report["failures"].to_string();
    assert!(
        failures.contains("of 40 connections were live"),
        "{failures}"
    );
}

/// Echoes, but for one byte of the hundredth receive, which is another.
fn mutating_server() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&accepted);
    let received = Arc::new(AtomicU64::new(0));
    let serve = move |mut stream: TcpStream, received: Arc<AtomicU64>| {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if received.fetch_add(1, Ordering::Relaxed) == 100 {
                buffer[0] ^= 1;
            }
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::Relaxed);
            let received = Arc::clone(&received);
            std::thread::spawn(move || serve(stream, received));
        }
    });
    (address, accepted)
}

#[test]
fn one_wrong_byte_fails_the_soak_and_its_connection_is_opened_again() {
    for driver in drivers() {
        let (address, accepted) = mutating_server();
        let soak = Soak::run(
            command(),
            &[
                &address, "-c", "20", "--hold", "3s", "--rate", "200", "--driver", driver,
            ],
        );
        assert_eq!(soak.code, 4, "{driver}: {}", soak.stderr);
        assert_eq!(soak.count("/hold/wrong_bytes"), 1, "{driver}");
        assert_eq!(soak.count("/connections/lost_by/wrong bytes came back"), 1);
        assert_eq!(soak.count("/connections/opened"), 21, "{driver}");
        assert_eq!(accepted.load(Ordering::Relaxed), 21, "{driver}");
    }
}

#[test]
fn a_condition_on_a_soak_fails_it() {
    for (condition, code) in [("lost>0", 0), ("opened>=50", 3), ("client_bytes>128", 3)] {
        let flags = ["--self", "-c", "50", "--hold", "1s", "--fail-if", condition];
        let soak = Soak::run(command(), &flags);
        assert_eq!(soak.code, code, "{condition}: {}", soak.stderr);
    }
}

/// The server is killed while the soak runs: it goes on, counts, and opens again when it is back.
#[test]
fn a_server_that_comes_back_gets_its_connections_again() {
    let server = Server::start(&["tcp://127.0.0.1:0"], &["--shards", "1"]);
    let endpoint = server.endpoint(0).to_owned();
    let mut command = command();
    command.args(["soak", "--json", &endpoint]);
    let mut soak = Running::start(
        &mut command,
        &["-c", "100", "--hold", "8s", "--rate", "100"],
    );
    let _ = soak.line_where("a soak that holds", |line| line["phase"] == "held");
    drop(server);
    let _ = soak.line_where("the loss", |line| line["lost"].as_u64() >= Some(100));
    let _again = Server::start(&[&endpoint], &["--shards", "1"]);
    let back = soak.line_where("all of them", |line| line["live"] == 100);
    assert_eq!(back["opened"], 200, "{back}");
    let (code, lines) = soak.wait(PATIENCE);
    assert_eq!(code, 1, "{}", soak.stderr());
    let report = lines.last().expect("a report");
    assert_eq!(report["connections"]["lost"], 100, "{report:#}");
}

/// Descriptors that a process holds: its files, and those in the tables of its rings, which the kernel
/// lists as `  17: socket:[…]` below `UserFiles`.
fn descriptors(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let rings = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process runs");
    let in_rings = rings.flatten().map(|entry| {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let listed = text.split_once("UserFiles:").map_or("", |(_, rest)| rest);
        let of_files = listed.split("UserBufs:").next().unwrap_or("");
        let is_file = |line: &&str| {
            let number = line.split_once(": ").map(|(number, _)| number.trim());
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        of_files.lines().skip(1).filter(is_file).count()
    });
    files.count() + in_rings.sum::<usize>()
}

/// Memory of a process that is its alone, bytes.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kb = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kb.expect("the kernel says so") * 1024
}

/// Churn through many times as many connections as there is room for on either end: what is not given
/// back is missing soon, and what the server has grown by shows.
#[test]
fn churn_leaves_no_descriptor_entry_or_memory_behind() {
    const HELD: u64 = 400;
    /// Two seconds' churn may still be open at the server.
    const ROOM: &str = "2000";
    // A ring holds 2464 accepted connections then.
    const FILES: u64 = 4000;
    const CHURNED_MIN: u64 = 4_000;
    // A word for each churned connection would be 32 KiB, a table entry of 64 bytes 256 KiB.
    const GROWTH_MAX: u64 = 128 << 10;
    for driver in drivers() {
        for close in ["fin", "rst"] {
            let context = format!("{driver}, {close}");
            let mut server = Server::start_as(
                with_files(command(), FILES),
                &["tcp://127.0.0.1:0"],
                &[
                    "--shards",
                    "1",
                    "--driver",
                    driver,
                    "--max-connections",
                    ROOM,
                ],
            );
            let pid = server.running.pid();
            let before = descriptors(pid);
            let mut command = with_files(command(), FILES);
            command.args(["soak", "--json", server.endpoint(0)]);
            let mut soak = Running::start(
                &mut command,
                &[
                    "-c",
                    "400",
                    "--hold",
                    "4s",
                    "--rate",
                    "50",
                    "--churn",
                    "1500/s",
                    "--driver",
                    driver,
                    "--churn-close",
                    close,
                    "--sources",
                    "127.9.0.0/24",
                    "--shards",
                    "1",
                ],
            );
            // Tables and buffers have their size by then.
            let warm = soak.line_where("the first churn", |line| {
                line["churned"].as_u64() >= Some(1_500)
            });
            let (of_client, of_server) = (warm["client_bytes"].as_u64(), memory(pid));
            let (code, mut lines) = soak.wait(PATIENCE);
            let report = lines.pop().unwrap_or_default();
            let last = lines.pop().unwrap_or_default();
            let all = format!("{context}: {report:#}\n{}", soak.stderr());
            assert_eq!(code, 0, "{all}");
            let connections = &report["connections"];
            let churned = connections["churned"].as_u64().unwrap_or(0);
            assert!(churned > CHURNED_MIN, "{all}");
            // Those closed last may not have been opened again before the end.
            let opened = connections["opened"].as_u64().unwrap_or(0);
            assert!((churned..=HELD + churned).contains(&opened), "{all}");
            // No entry is lost: at this end there are exactly as many as connections.
            assert_eq!(
                (&connections["failed"], &connections["lost"]),
                (&0.into(), &0.into())
            );
            let counters = server.counters_when_closed(opened);
            assert_eq!(counters["refused"], 0, "{context}: {counters}");
            // The driver gives descriptors back a moment after the protocol has heard.
            until("every descriptor to be given back", || {
                (descriptors(pid) == before).then_some(())
            });
            let grown = memory(pid).saturating_sub(of_server);
            assert!(
                grown < GROWTH_MAX,
                "{context}: the server grew by {grown} bytes"
            );
            let at_end = last["client_bytes"].as_u64();
            let grown = at_end
                .zip(of_client)
                .map(|(end, warm)| end.saturating_sub(warm));
            assert!(
                grown.is_some_and(|grown| grown < GROWTH_MAX),
                "{context}: this end grew by {grown:?} bytes; {last}"
            );
            let stopped = server.stop();
            assert_eq!(stopped.code, 0, "{context}: {}", stopped.stderr);
        }
    }
}

/// The server that a soak with `--self` has started.
fn child_of(soak: &Running) -> u32 {
    let parent = soak.pid();
    let children = || {
        let processes = std::fs::read_dir("/proc").ok()?;
        processes.flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // Behind the name, which may have blanks: state, parent.
            let of: u32 = stat
                .rsplit_once(')')?
                .1
                .split_whitespace()
                .nth(1)?
                .parse()
                .ok()?;
            (of == parent).then_some(pid)
        })
    };
    until("the server", children)
}

fn is_gone(pid: u32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_signal_ends_each_phase_with_a_report_and_without_a_server_left() {
    // What is running when the signal comes, and whether all are open by then.
    let cases: [(&str, &str, &[&str], bool); 3] = [
        (
            "opening",
            "opening",
            &["--open-rate", "500", "--hold", "60s"],
            false,
        ),
        (
            "holding",
            "held",
            &["--open-rate", "max", "--hold", "60s"],
            true,
        ),
        // The line at the end of the hold: everything is being closed.
        (
            "closing",
            "end",
            &["--open-rate", "max", "--hold", "1s"],
            true,
        ),
    ];
    for (phase, line_of, flags, full) in cases {
        for number in [libc::SIGINT, libc::SIGTERM] {
            let context = format!("{phase}, signal {number}");
            let mut command = command();
            command.args(["soak", "--json", "--self", "-c", "2000", "--rate", "200"]);
            let mut soak = Running::start(&mut command, flags);
            soak.line_where(phase, |line| match line_of {
                "end" => line["phase"] == "held" && line["left_s"].as_f64() < Some(0.1),
                wanted => line["phase"] == wanted,
            });
            let server = child_of(&soak);
            soak.signal(number);
            let (code, lines) = soak.wait(PATIENCE);
            let report = lines.last().cloned().unwrap_or_default();
            let all = format!("{context}: {report:#}\n{}", soak.stderr());
            assert_eq!(report["type"], "report", "{all}");
            assert_eq!(code, 0, "{all}");
            let opened = report["opening"]["live"].as_u64();
            assert_eq!(opened == Some(2000), full, "{all}");
            assert_eq!(report["connections"]["lost"], 0, "{all}");
            assert_eq!(report["server"]["left_open"], 0, "{all}");
            assert_eq!(report["hold"]["unanswered"], 0, "{all}");
            assert!(is_gone(server), "{all}");
        }
    }
}

#[test]
fn a_second_signal_ends_at_once_and_no_server_is_left() {
    let mut command = command();
    command.args(["soak", "--json", "--self", "-c", "2000"]);
    let mut soak = Running::start(&mut command, &["--hold", "60s"]);
    soak.line_where("the hold", |line| line["phase"] == "held");
    let server = child_of(&soak);
    soak.signal(libc::SIGINT);
    soak.signal(libc::SIGTERM);
    let (code, _) = soak.wait(PATIENCE);
    assert_eq!(code, 130, "{}", soak.stderr());
    until("the server's end", || is_gone(server).then_some(()));
}

/// Nobody would start it again: the soak ends, and its report is whole.
#[test]
fn a_server_of_its_own_that_dies_ends_the_soak_with_its_report() {
    for (phase, rate) in [("opening", "500"), ("held", "max")] {
        let mut command = command();
        command.args(["soak", "--json", "--self", "-c", "2000"]);
        let mut soak = Running::start(&mut command, &["--open-rate", rate, "--hold", "600s"]);
        soak.line_where(phase, |line| {
            line["phase"] == phase && line["opened"].as_u64() > Some(0)
        });
        signal(child_of(&soak), libc::SIGKILL);
        let (code, lines) = soak.wait(PATIENCE);
        let report = lines.last().cloned().unwrap_or_default();
        let all = format!("{phase}: {report:#}\n{}", soak.stderr());
        assert_eq!(code, 1, "{all}");
        assert_eq!(report["type"], "report", "{all}");
        let failures = report["failures"].to_string();
        assert!(
            failures.contains("the server process ended with signal: 9"),
            "{all}"
        );
        let opened = report["connections"]["opened"].as_u64();
        assert_eq!(report["connections"]["lost"].as_u64(), opened, "{all}");
        let held = report["hold"]["duration_s"].as_f64();
        assert!(held < Some(60.0), "{all}");
    }
}

#[test]
fn a_reader_of_the_table_that_leaves_does_not_end_the_soak() {
    let mut command = command();
    command.args(["soak", "--self", "-c", "50", "--hold", "3s", "--rate", "50"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut soak = command.spawn().expect("it starts");
    let mut table = BufReader::new(soak.stdout.take().expect("piped"));
    let mut head = String::new();
    table
        .read_line(&mut head)
        .expect("the names of the columns");
    assert!(head.contains("live opening"), "{head}");
    drop(table);
    let ended = soak.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// What churn closes comes back, or the verdict says that it did not.
#[test]
fn connections_that_churn_cannot_open_again_fail_the_soak() {
    // It takes thirty, and refuses those that come afterwards.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let endpoint = format!("tcp://{}", listener.local_addr().expect("its address"));
    let server = std::thread::spawn(move || -> Vec<TcpStream> {
        let streams = listener.incoming().take(30);
        streams.map(|stream| stream.expect("accept")).collect()
    });
    let flags = ["-c", "30", "--rate", "0", "--hold", "3s", "--churn", "10/s"];
    let soak = Soak::run(command(), &[&[endpoint.as_str()], &flags[..]].concat());
    drop(server.join());
    assert_eq!(soak.code, 1, "{}", soak.stderr);
    assert_eq!(soak.count("/opening/live"), 30);
    assert_eq!(soak.count("/connections/lost"), 0);
    assert!(soak.count("/hold/missing_at_end") > 10, "{:#}", soak.report);
    let failures = soak.report["failures"].to_string();
    assert!(failures.contains("could not be opened again"), "{failures}");
}

#[test]
fn a_kernel_that_cannot_reset_is_named() {
    if !drivers().contains(&"uring") {
        return;
    }
    let flags = [
        "--self",
        "-c",
        "20",
        "--hold",
        "1s",
        "--driver",
        "uring",
        "--uring-without",
        "socket_commands",
    ];
    let soak = Soak::run(command(), &flags);
    assert_eq!(soak.code, 0, "{}", soak.stderr);
    assert!(soak.stderr.contains("ends by FIN"), "{}", soak.stderr);
}
