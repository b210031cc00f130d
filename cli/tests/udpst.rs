//! `ringmill udpst` as a script sees it: both ends as processes on loopback, their output compared
//! with samples of OB-UDPST 9.0.0, their exit statuses, their files. Also our own samples in
//! docs/examples: they must have the structure of what is printed.

use std::net::UdpSocket;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/udpst");
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/udpst");
/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program under the name `udpst`.
fn udpst(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmill"));
    command
        .arg0("/usr/bin/udpst")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs it to its end: exit status and output.
fn run(arguments: &[&str]) -> (i32, String) {
    let output = udpst(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap_or(-1), text)
}

/// A port that is free now.
fn free_port() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port().to_string()
}

/// A server that ends with the test.
struct Server {
    process: Child,
    log: PathBuf,
    port: String,
}

impl Server {
    /// Starts one and waits until it serves.
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        let port = free_port();
        let log = directory.join(format!("server-{port}"));
        let arguments = [&["-v", "-p", &port, "127.0.0.1"], arguments].concat();
        let process = udpst(&arguments)
            .stdout(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let server = Self { process, log, port };
        server.wait_for("Awaiting setup requests on 127.0.0.1:");
        server
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&self, text: &str) {
        let patience = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            assert!(Instant::now() < patience, "no '{text}' in {}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it by a signal: its exit status.
    fn stop(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.process.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What is around the numbers of a text; a number keeps whether it has decimals, but for a zero.
fn skeleton(text: &str) -> String {
    let mut skeleton = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(at);
        skeleton.push_str(before.trim_end_matches('-'));
        let end = number
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(number.len());
        skeleton.push('#');
        rest = &number[end..];
    }
    skeleton + rest
}

/// The skeleton of a console text without what is free to differ: who built it, and blanks that keep
/// columns in place.
fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let line = line.split(", Built: ").next().unwrap_or_default();
        let words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
        skeleton(&words.join(" "))
    });
    lines.collect()
}

fn sample(name: &str) -> String {
    std::fs::read_to_string(Path::new(DATA).join(name)).unwrap()
}

#[test]
fn real_runs_print_what_the_original_prints() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path(), &[]);
    let port = server.port.clone();
    let twice = format!("127.0.0.1:{port}");
    let cases: [(&str, &[&str]); 5] = [
        (
            "client_console_ecn.txt",
            &["-d", "-t5", "-I1", "-m", "1", "-Z3", "127.0.0.1"],
        ),
        (
            "client_console_loss_ratio.txt",
            &["-u", "-t5", "-I4", "-P2500", "-r", "127.0.0.1"],
        ),
        (
            "client_jsonb_bimodal.json",
            &["-d", "-t5", "-I2", "-i2", "-f", "jsonb", "127.0.0.1"],
        ),
        (
            "client_jsonf_two_servers_fixed.json",
            &["-d", "-t5", "-I3", "-f", "jsonf", "127.0.0.1", &twice],
        ),
        (
            "client_json_summary_only_search.json",
            &["-u", "-t5", "-s", "-f", "JSON", "127.0.0.1", "-I@1"],
        ),
    ];
    // All at once: a test takes five seconds, whatever else goes on.
    std::thread::scope(|scope| {
        for (name, arguments) in cases {
            let port = port.clone();
            scope.spawn(move || {
                let (status, text) = run(&[&["-p", port.as_str()], arguments].concat());
                assert_eq!(status, 0, "{name}: {text}");
                let (found, expected) = (lines(&text), lines(&sample(name)));
                assert_eq!(found, expected, "{name}");
            });
        }
    });
    server.wait_for("[2]End time reached");
    assert_eq!(server.stop(), Some(255), "ended by a signal");
    let text = server.text();
    for part in [
        "]Setup request (0.",
        "]Null request (1.",
        "]Sub-Interval[5](sec): ",
        "]Sending test stop",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn exit_statuses_say_what_went_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["-a", "secret", "-B", "10"]);
    let keys = directory.path().join("keys");
    std::fs::write(&keys, "1,one\n1,two\n").unwrap();
    let keys = keys.to_str().unwrap();
    let nobody = free_port();
    let key: &[&str] = &["-a", "secret"];
    let cases: [(&[&str], &[&str], i32, &str); 11] = [
        (
            &["-d", "-p", &nobody, "127.0.0.1"],
            &[],
            200,
            "ERROR: Minimum required connections (1)",
        ),
        (
            &["-d", "-p", &server.port, "127.0.0.1"],
            &["-B5"],
            105,
            "(-a, -K) is required by server",
        ),
        (
            &["-d", "-p", &server.port, "127.0.0.1"],
            &["-B5", "-a", "other"],
            107,
            "not signed with",
        ),
        (
            &["-d", "-p", &server.port, "127.0.0.1", "-j"],
            key,
            103,
            "Jumbo setting (-j) differs",
        ),
        (
            &["-d", "-p", &server.port, "127.0.0.1", "-T"],
            key,
            111,
            "Traditional MTU setting",
        ),
        (
            &["-d", "-p", &server.port, "127.0.0.1"],
            key,
            109,
            "Bandwidth (-B) is required",
        ),
        (
            &["-d", "-p", &server.port, "127.0.0.1", "-B20"],
            key,
            110,
            "Bandwidth (-B 20) is more",
        ),
        (
            &["-d", "127.0.0.1", "-t4"],
            &[],
            50,
            "ERROR: -t 4 is out of range (5-3600)",
        ),
        (
            &["-?"],
            &[],
            50,
            "Usage: udpst [OPTION]... [SERVER[:PORT]]...\n",
        ),
        (
            &["-d", "127.0.0.1", "-K", keys],
            &[],
            51,
            "line 2: key id 1 comes a second time",
        ),
        (
            &["-d", "127.0.0.1", "-E", "no-such-card"],
            &[],
            75,
            "interface 'no-such-card'",
        ),
    ];
    std::thread::scope(|scope| {
        for (arguments, more, status, says) in cases {
            scope.spawn(move || {
                let arguments = [arguments, more].concat();
                let (found, text) = run(&arguments);
                assert_eq!(found, status, "{arguments:?}: {text}");
                assert!(text.contains(says), "{arguments:?}: {says} in {text}");
            });
        }
    });
    // In JSON the two last messages, and the same status.
    let (status, text) = run(&[
        "-u",
        "-p",
        &server.port,
        "-j",
        "-a",
        "secret",
        "-f",
        "json",
        "127.0.0.1",
    ]);
    assert_eq!(status, 103);
    assert!(
        text.contains(
            "\"ErrorStatus\":103,\"ErrorMessage\":\"ERROR: Minimum required connections (1) \
             unavailable\",\"ErrorMessage2\":\"ERROR: Jumbo setting"
        ),
        "{text}"
    );
    let (status, text) = run(&["-S", "-6"]);
    assert_eq!(status, 0);
    assert!(text.contains("Sending Rate Table for IPv6 "), "{text}");
}

#[test]
fn a_server_writes_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (stats, records) = (file("stats.json"), format!("+{}", file("#M#D#i-#H.csv")));
    let mut server = Server::start(
        directory.path(),
        &[
            "-1",
            "-G",
            &stats,
            "--stats-record",
            "1",
            "--stats-file",
            "2",
            "-O",
            &records,
        ],
    );
    let (status, text) = run(&["-u", "-t5", "-I1", "-s", "-p", &server.port, "127.0.0.1"]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(
        server.process.wait().unwrap().code(),
        Some(0),
        "one good test"
    );
    let stats: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(stats).unwrap()).unwrap();
    assert_eq!(stats["counters"]["setup"]["accepts_sent"], 1);
    assert_eq!(
        stats["data_records"][0]["maximum"]["allocated"]["connection_count"],
        1
    );
    let records = std::fs::read_to_string(file("SU0-127.0.0.1.csv")).unwrap();
    let rows = records.lines().count();
    assert!(
        rows > 2000,
        "{rows} rows, and 5 s of row 1 are some 5000 datagrams"
    );
    assert!(records.lines().all(|row| row.matches(',').count() == 12));
    // The last figure of a complete row: nothing is cut.
    assert!(records.ends_with('\n'));
}

#[test]
fn our_samples_have_the_structure_of_the_originals() {
    let ours = |name: &str| std::fs::read_to_string(Path::new(EXAMPLES).join(name)).unwrap();
    for name in [
        "client_console_ecn.txt",
        "client_console_loss_ratio.txt",
        "client_jsonb_bimodal.json",
        "client_jsonf_two_servers_fixed.json",
        "client_json_summary_only_search.json",
        "client_json_no_server.json",
        "server_stats.json",
    ] {
        assert_eq!(lines(&ours(name)), lines(&sample(name)), "{name}");
        if name.ends_with("json") {
            serde_json::from_str::<serde_json::Value>(&ours(name)).expect(name);
        }
    }
    let csv = ours("metadata_all.csv");
    let mut rows = csv.lines();
    assert_eq!(rows.next(), Some(ringmill_cli::capacity::recording::HEADER));
    assert!(rows.all(|row| row.matches(',').count() == 12));
}
