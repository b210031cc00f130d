//! `ringmill run` and `serve` as processes: configuration files, counters of each service, metrics.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;

use common::{PATIENCE, Running, echoes, http, metric, run};
use nix::sys::signal::Signal;

const TWO_SERVICES: &str = r#"
[engine]
shards = 2
metrics = ":0"

[[service]]
name = "front"
module = "echo"
endpoints = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]

[[service]]
name = "sink"
module = "discard"
endpoints = ["tcp://127.0.0.1:0"]
"#;

fn file(text: &str) -> tempfile::TempPath {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into_temp_path()
}

fn address_of(url: &str) -> SocketAddr {
    let rest = url.split_once("//").unwrap().1;
    rest.split_once('/').unwrap().0.parse().unwrap()
}

#[test]
fn services_share_shards_and_keep_their_own_counters() {
    let path = file(TWO_SERVICES);
    let path = path.to_str().unwrap();
    let mut server = Running::start(&["run", path, "--json"], Stdio::null());
    let front = server.address("tcp");
    let datagrams = server.address("udp");
    let sink = server.address("tcp");
    let metrics = server.event("metrics");
    let metrics = address_of(metrics["url"].as_str().unwrap());

    echoes(front);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"datagram", datagrams).unwrap();
    let mut answer = [0; 16];
    let (length, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!((&answer[..length], from), (&b"datagram"[..], datagrams));
    let mut stream = TcpStream::connect(sink).unwrap();
    stream.write_all(&[7; 1000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // It answers nothing, takes everything, and closes after us.
    assert_eq!(stream.read(&mut answer).unwrap(), 0);

    let (status, text) = http(metrics, "GET /metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let of = |name, service| metric(&text, name, &[&format!("service=\"{service}\"")]);
    assert_eq!(of("ringmill_service_received_bytes_total", "front"), 5.0);
    assert_eq!(of("ringmill_service_sent_bytes_total", "front"), 5.0);
    assert_eq!(
        of("ringmill_service_received_datagrams_total", "front"),
        1.0
    );
    assert_eq!(of("ringmill_service_received_bytes_total", "sink"), 1000.0);
    assert_eq!(of("ringmill_service_sent_bytes_total", "sink"), 0.0);
    assert_eq!(of("ringmill_guard_over_rate_total", "front"), 0.0);
    assert!(metric(&text, "ringmill_shard_turns_total", &["shard=\"1\""]) > 0.0);
    assert!(metric(&text, "process_resident_memory_bytes", &[]) > 1e6);
    let (status, _) = http(metrics, "GET /");
    assert_eq!(status, "HTTP/1.1 404 Not Found");
    let (status, _) = http(metrics, "DELETE /metrics");
    assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");

    let interval = server.event("interval");
    assert_eq!(interval["services"][1]["name"], "sink");
    server.signal(Signal::SIGTERM);
    let stopped = server.event("stopped");
    assert_eq!(stopped["counters"]["received_bytes"], 1005);
    assert_eq!(stopped["services"][0]["counters"]["received_bytes"], 5);
    assert_eq!(stopped["services"][1]["counters"]["received_bytes"], 1000);
    server.ended_well();
}

#[test]
fn a_changed_file_is_checked_and_not_applied() {
    let path = file(TWO_SERVICES);
    let name = path.to_str().unwrap();
    let mut server = Running::start(&["run", name, "--json"], Stdio::null());
    let front = server.address("tcp");
    server.line("127.0.0.1:");
    for (text, valid, words) in [
        (TWO_SERVICES.to_owned(), true, "valid and unchanged"),
        (
            TWO_SERVICES.replace("sink", "sunk"),
            true,
            "at the next start",
        ),
        (
            TWO_SERVICES.replace("module = \"discard\"", "module = \"x\""),
            false,
            ":13:10: ",
        ),
        (
            TWO_SERVICES.replace("shards = 2", "cpus = \"9000\""),
            false,
            "9000",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        server.signal(Signal::SIGHUP);
        let event = server.event("configuration");
        assert_eq!(event["valid"], valid, "{event}");
        assert!(event["words"].as_str().unwrap().contains(words), "{event}");
    }
    echoes(front);
    server.signal(Signal::SIGTERM);
    server.ended_well();
}

#[test]
fn the_effective_configuration_reads_as_itself() {
    let path = file(TWO_SERVICES);
    let (code, first, errors) = run(&["run", "--print-config", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    assert!(
        first.contains("idle_timeout = \"0s\""),
        "defaults are written out: {first}"
    );
    let again = file(&first);
    let (_, second, _) = run(&["run", "--print-config", again.to_str().unwrap()]);
    assert_eq!(first, second);
    for (text, effective) in [
        (TWO_SERVICES.to_owned(), "steer_by_cpu = false\n"),
        (
            format!("{TWO_SERVICES}\n[limits]\nsteer_by_cpu = true\n"),
            "steer_by_cpu = true\n",
        ),
    ] {
        let path = file(&text);
        let (_, printed, errors) = run(&["run", "--print-config", path.to_str().unwrap()]);
        assert!(printed.contains(effective), "{printed}{errors}");
    }
    let (code, output, _) = run(&["run", "--check", again.to_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(output.ends_with(": valid\n"), "{output}");
}

#[test]
fn what_is_wrong_is_said_before_anything_starts() {
    let used = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let used = used.local_addr().unwrap().to_string();
    let service = |endpoint: &str| {
        format!("[[service]]\nname = \"a\"\nmodule = \"echo\"\nendpoints = [\"{endpoint}\"]\n")
    };
    let cases = [
        ("", "there is no service"),
        (&service("tcp//:1"), ":4:13: "),
        (
            &service("tcp://no.such.host.invalid:1"),
            "no.such.host.invalid",
        ),
        (
            &format!("[engine]\ncpus = \"9000\"\n{}", service("tcp://:0")),
            "9000",
        ),
        (
            &format!("[engine]\ninterface = \"nope0\"\n{}", service("tcp://:0")),
            "nope0",
        ),
        (
            &format!("[engine]\nmetrics = \"{used}\"\n{}", service("tcp://:0")),
            &used,
        ),
        (&service(&format!("tcp://{used}")), &used),
    ];
    for (text, words) in cases {
        let path = file(text);
        let (code, output, errors) = run(&["run", path.to_str().unwrap()]);
        assert_eq!(code, 2, "{text}\n{errors}");
        assert!(errors.contains(words), "{errors}\nlacks {words}");
        assert_eq!(output, "", "{text}");
    }
    let (code, _, errors) = run(&["run", "/no/such/file.toml"]);
    assert_eq!(code, 2);
    assert!(
        errors.contains("/no/such/file.toml: cannot open"),
        "{errors}"
    );
}

#[test]
fn metrics_outlast_clients_that_say_nothing() {
    let arguments = [
        "serve",
        "discard",
        "udp://127.0.0.1:0",
        "--metrics",
        ":0",
        "--shards",
        "1",
    ];
    let mut server = Running::start(&arguments, Stdio::null());
    let line = server.line("metrics at ");
    let address = address_of(line.strip_prefix("metrics at ").unwrap());
    // More than are served at a time, and each takes its time limit.
    let silent: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let (status, _) = http(address, "GET /metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // Closed, with or without a word; not left open.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    server.signal(Signal::SIGTERM);
    server.ended_well();
}

#[test]
fn a_load_run_has_metrics_too() {
    let mut server = Running::start(&["serve", "echo", "tcp://127.0.0.1:0"], Stdio::null());
    let endpoint = format!("tcp://{}", server.address("tcp"));
    let arguments = [
        "load",
        "echo",
        &endpoint,
        "-c",
        "1",
        "--warmup",
        "0s",
        "-d",
        "60s",
        "--metrics",
        ":0",
        "--shards",
        "1",
        "--rate",
        "10",
    ];
    let mut load = Running::start(&arguments, Stdio::null());
    let line = load.error("metrics at ");
    let address = address_of(line.strip_prefix("metrics at ").unwrap());
    let patience = std::time::Instant::now() + PATIENCE;
    loop {
        let (_, text) = http(address, "GET /metrics");
        assert!(
            metric(
                &text,
                "ringmill_service_connected_total",
                &["service=\"load\""]
            ) <= 1.0
        );
        if metric(&text, "ringmill_load_answered_total", &[]) > 0.0 {
            break;
        }
        assert!(std::time::Instant::now() < patience, "{text}");
    }
    load.signal(Signal::SIGINT);
    load.ended_well();
    server.signal(Signal::SIGTERM);
    server.ended_well();
}

#[test]
fn rings_are_added_for_connections_that_are_asked_for() {
    let limited = |arguments: &str| {
        // The limit of files, lowered for the child alone.
        let program = env!("CARGO_BIN_EXE_ringmill");
        let script = format!("ulimit -n 2000; exec {program} {arguments}");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::null());
        let output = shell.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("# On this machine"));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let service = "[[service]]\nname = \"a\"\nmodule = \"echo\"\nendpoints = [\"tcp://:0\"]\n";
    let one = file(&format!("[engine]\nshards = 1\n{service}"));
    let line = limited(&format!("run --print-config {}", one.display()));
    assert!(
        line.contains(" 1 shards"),
        "the default asks for no more: {line}"
    );
    let text = format!("[engine]\nshards = 1\n[limits]\nmax_connections = 4000\n{service}");
    let many = file(&text);
    let line = limited(&format!("run --print-config {}", many.display()));
    let (code, _, _) = run(&["doctor", "--json"]);
    assert_eq!(code, 0);
    if line.contains(" 1 shards") {
        println!("skipped: without io_uring connections need no rings: {line}");
    } else {
        assert!(line.contains(" 3 shards"), "{line}");
        assert!(line.contains("up to 4000 connections"), "{line}");
    }
}
