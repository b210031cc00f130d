//! Every output of `ringmill capacity`, made by both ends as processes on loopback, held against the
//! samples in docs/examples/capacity and the tables of keys in docs/capacity-fields.md.
//!
//! `RINGMILL_EXAMPLES=write` makes the samples anew instead of comparing with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

mod common;
use common::{PATIENCE, Running, ringmill};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/capacity");
const FIELDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/capacity-fields.md");
/// What the samples call the port of their server.
const PORT: &str = "24601";
/// How the programs run, which is no part of a sample.
const ENGINE: [&str; 4] = ["--shards", "1", "--driver", "epoll"];
/// Lines of a long table or recording that make a sample.
const ROWS: usize = 12;
/// Events that cannot be had on loopback: an activation from another host that guesses all of a
/// request, a path that refuses segmented sends; and timers that fire late, which few hosts have.
const NOT_HAD: [&str; 3] = [
    "server activation_refused",
    "server busy_pacing",
    "server not_segmented",
];

/// A sample: file name and content.
type Samples = BTreeMap<String, String>;

/// A server of these arguments, and its port.
fn serve(arguments: &str) -> (Running, u16) {
    let fixed = ["capacity", "server", "--listen", "127.0.0.1:0"];
    let words: Vec<_> = arguments.split_whitespace().collect();
    let mut server = Running::start(&[&fixed[..], &words, &ENGINE].concat(), Stdio::null());
    let line = server.line("127.0.0.1:");
    let (_, rest) = line.split_once("127.0.0.1:").unwrap();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // It is part of what is to be shown.
    server.put_back(line);
    (server, digits.parse().unwrap())
}

fn client(line: &str, port: u16, directory: &Path) -> Command {
    let line = line.replace(PORT, &port.to_string());
    let mut command = ringmill();
    command.arg("capacity").args(line.split_whitespace());
    command.current_dir(directory).stdin(Stdio::null());
    if !line.starts_with("rates") {
        command.args(ENGINE);
    }
    command
}

/// Runs a client to its end: exit code, output, errors, with the port of the samples.
fn measure(line: &str, port: u16, directory: &Path) -> (i32, String, String) {
    let output = client(line, port, directory).output().unwrap();
    let text = |bytes| shown(&String::from_utf8(bytes).unwrap(), port);
    let code = output.status.code().unwrap_or(-1);
    (code, text(output.stdout), text(output.stderr))
}

fn shown(text: &str, port: u16) -> String {
    text.replace(&format!(":{port}"), &format!(":{PORT}"))
}

/// Text as a console shows it: the command, then what it prints.
fn console(line: &str, output: &str) -> String {
    format!("$ ringmill capacity {line}\n{output}")
}

/// All that a server printed, of events that come often the first two.
fn told(server: &mut Running, port: u16) -> String {
    let mut seen = BTreeMap::new();
    let mut text = String::new();
    for line in server.output() {
        let kind = serde_json::from_str::<Value>(&line).map(|event| event["type"].to_string());
        let count: &mut u32 = seen.entry(kind.unwrap_or_default()).or_default();
        *count += 1;
        let often = ["\"trial\"", "\"interval\"", "\"sub_interval\""];
        if *count <= 2
            || !often
                .iter()
                .any(|kind| line.contains(&format!("\"type\":{kind}")))
        {
            text += &shown(&line, port);
            text.push('\n');
        }
    }
    text
}

/// Clients of a server without keys.
fn clients(directory: &Path, samples: &mut Samples) {
    let (_server, port) = serve("");
    let lines = [
        ("up", "up 127.0.0.1:24601 --row 10 -t 5s"),
        ("down", "down 127.0.0.1:24601 --row 10 -t 5s"),
        ("both", "both 127.0.0.1:24601 --row 10 -t 5s"),
        (
            "search",
            "down 127.0.0.1:24601 --start-row 5 -t 5s --bimodal 2 --hold-first-mode --bandwidth 10Gbit",
        ),
        ("repeat", "up 127.0.0.1:24601 --row 10 -t 5s --repeat 2"),
        ("selftest", "selftest --row 10 -t 5s"),
        ("rates", "rates"),
    ];
    std::thread::scope(|scope| {
        let runs: Vec<_> = lines
            .into_iter()
            .flat_map(|(name, line)| {
                [
                    (name, line.to_owned(), "txt"),
                    (name, format!("{line} --json"), "ndjson"),
                ]
            })
            .chain([("rates", "rates --format tsv".to_owned(), "tsv")])
            .map(|(name, line, end)| {
                scope.spawn(move || {
                    let (code, output, errors) = measure(&line, port, directory);
                    assert_eq!(code, 0, "{line}: {errors}");
                    (name, line, end, output)
                })
            })
            .collect();
        for run in runs {
            let (name, line, end, mut output) = run.join().unwrap();
            if name == "rates" {
                output = output
                    .lines()
                    .take(ROWS)
                    .map(|line| format!("{line}\n"))
                    .collect();
            }
            if end == "txt" {
                output = console(&line, &output);
            }
            samples.insert(format!("{name}.{end}"), output);
        }
    });
    let line = "down 127.0.0.1:24601 --row 1 -t 5s --record all.csv --record-all";
    let (code, _, errors) = measure(line, port, directory);
    assert_eq!(code, 0, "{errors}");
    let records = std::fs::read_to_string(directory.join("all.csv")).unwrap();
    let records = records.lines().take(ROWS).map(|line| format!("{line}\n"));
    samples.insert("record.csv".into(), records.collect());
}

/// A setup request of a client, for who wants to ask like one.
fn setup_request(directory: &Path) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let line = "up 127.0.0.1:24601 --monitor -t 5s";
    let mut client = client(line, port, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut bytes = [0; 2048];
    let (length, _) = socket.recv_from(&mut bytes).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    bytes[..length].to_vec()
}

/// A server from its start to its end, as text and as events.
fn servers(directory: &Path, samples: &mut Samples) {
    let request = setup_request(directory);
    for (end, flags, metrics) in [
        ("txt", "--key secret --auth-optional --once", ""),
        (
            "ndjson",
            "--key secret --auth-optional --once --json --verbose",
            "--metrics 127.0.0.1:0",
        ),
    ] {
        let (mut server, port) = serve(&format!("{flags} {metrics}"));
        let (code, _, _) = measure(
            "down 127.0.0.1:24601 --monitor --key other",
            port,
            directory,
        );
        assert_eq!(code, 1);
        // Who never activates.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        silent.send_to(&request, address).unwrap();
        let line = server.line(match end {
            "txt" => "was not activated in time",
            _ => "\"not_activated\"",
        });
        server.put_back(line);
        let line = "down 127.0.0.1:24601 --row 10 -t 5s --key secret";
        let (code, _, errors) = measure(line, port, directory);
        assert_eq!(code, 0, "{errors}");
        server.ended_well();
        let mut text = told(&mut server, port);
        if end == "txt" {
            text = console(&format!("server {flags}"), &text);
        }
        samples.insert(format!("server.{end}"), text);
    }
}

const WATCH: &str = "up 127.0.0.1:24601 --monitor -t 5s --json";

/// A client that goes on while other things happen.
fn start(port: u16) -> Running {
    let line = WATCH.replace(PORT, &port.to_string());
    let words: Vec<_> = line.split_whitespace().collect();
    Running::start(
        &[&["capacity"], &words[..], &ENGINE].concat(),
        Stdio::null(),
    )
}

/// Both ends while their host loses datagrams, which all that runs beside would tell too.
fn losses(samples: &mut Samples) {
    let (mut server, port) = serve("--json --once");
    let mut client = start(port);
    let first = client.line("\"interval\"");
    client.put_back(first);
    common::overrun_a_socket();
    client.ended_well();
    server.ended_well();
    samples.insert("client_losses.ndjson".into(), told(&mut client, port));
    samples.insert("server_losses.ndjson".into(), told(&mut server, port));
}

/// Ends whose peer is gone, or too old.
fn troubles(_directory: &Path, samples: &mut Samples) {
    let (server, port) = serve("--json");
    let mut client = start(port);
    let first = client.line("\"interval\"");
    client.put_back(first);
    server.signal(Signal::SIGKILL);
    assert_eq!(client.ended().code(), Some(1));
    samples.insert("client_cut.ndjson".into(), told(&mut client, port));

    let (mut server, port) = serve("--json --once");
    let mut client = start(port);
    client.line("\"interval\"");
    client.signal(Signal::SIGKILL);
    server.ended_well();
    samples.insert("server_cut.ndjson".into(), told(&mut server, port));

    // A server that knows version 11 only says so, and is silent then.
    let old = UdpSocket::bind("127.0.0.1:0").unwrap();
    old.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = old.local_addr().unwrap().port();
    let mut client = start(port);
    let mut bytes = [0; 2048];
    let (length, from) = old.recv_from(&mut bytes).unwrap();
    // protocolVer, cmdRequest: a response, cmdResponse: the version is not spoken.
    bytes[2..4].copy_from_slice(&11_u16.to_be_bytes());
    bytes[8..10].copy_from_slice(&[2, 2]);
    old.send_to(&bytes[..length], from).unwrap();
    assert_eq!(client.ended().code(), Some(1));
    samples.insert("client_fallback.ndjson".into(), told(&mut client, port));
}

/// What can go wrong, as a user sees it.
fn errors(directory: &Path, samples: &mut Samples) {
    let (_server, port) = serve("--key secret --bandwidth 20");
    let (_open, open_port) = serve("");
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent_port = nobody.local_addr().unwrap().port();
    std::fs::write(directory.join("keys"), "1,one\n1,two\n").unwrap();
    let lines = [
        (silent_port, "down 127.0.0.1:24601", 1),
        (port, "down 127.0.0.1:24601 --monitor", 1),
        (port, "down 127.0.0.1:24601 --monitor --key other", 1),
        (open_port, "down 127.0.0.1:24601 --monitor --key secret", 1),
        (
            port,
            "down 127.0.0.1:24601 --monitor --key secret --no-jumbo",
            1,
        ),
        (
            port,
            "down 127.0.0.1:24601 --monitor --key secret --traditional",
            1,
        ),
        (port, "down 127.0.0.1:24601 --key secret", 1),
        (
            port,
            "down 127.0.0.1:24601 --key secret --verify 100Mbit",
            1,
        ),
        (port, "down 127.0.0.1:24601 --monitor -t 4s", 2),
        (port, "down 127.0.0.1:24601 --row 1 --source ::1", 2),
        (port, "down 127.0.0.1:24601 --key-file keys", 2),
        (port, "up 127.0.0.1:24601 --record all.csv", 2),
        (port, "down 127.0.0.1:24601 --watch no-such-card", 1),
        (
            open_port,
            "up 127.0.0.1:24601 --monitor -t 5s --fail-if capacity<1Mbit",
            3,
        ),
    ];
    let mut text = String::new();
    std::thread::scope(|scope| {
        let runs: Vec<_> = lines
            .into_iter()
            .map(|(port, line, code)| {
                let run = scope.spawn(move || measure(line, port, directory));
                (line, code, run)
            })
            .collect();
        for (line, code, run) in runs {
            let (found, _, errors) = run.join().unwrap();
            assert_eq!(found, code, "{line}: {errors}");
            text += &console(&line.replace("capacity<1Mbit", "'capacity<1Mbit'"), &errors);
            text += &format!("[exit code {found}]\n\n");
        }
    });
    samples.insert("errors.txt".into(), text);
    let (_, output, _) = measure("down 127.0.0.1:24601 --monitor --json", port, directory);
    samples.insert("errors.ndjson".into(), output);
}

/// What of a text does not change from run to run: lines without numbers and their padding, a line of
/// one kind once, in order of their letters. Nothing of what a busy host may add.
fn skeleton(text: &str) -> Vec<String> {
    const MAY_BE: [&str; 4] = [
        "UdpRcvbufErrors",
        "IpReasmFails",
        "sender limited",
        "status PDU",
    ];
    let lines = text
        .lines()
        .filter(|line| !MAY_BE.iter().any(|part| line.contains(part)));
    let mut lines: Vec<_> = lines
        .map(|line| {
            let mut skeleton = String::new();
            for c in line
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .chars()
            {
                match c {
                    '0'..='9' if skeleton.ends_with('#') => {}
                    '0'..='9' => {
                        // A sign belongs to its number.
                        if skeleton.ends_with('-') {
                            skeleton.pop();
                        }
                        skeleton.push('#');
                    }
                    '.' | ',' if skeleton.ends_with('#') => {}
                    c => skeleton.push(c),
                }
            }
            skeleton
        })
        .collect();
    // Two directions at once come in any order.
    lines.sort();
    lines.dedup();
    lines
}

/// The paths of all values in an object, as the tables write them.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                paths(value, &path, found);
            }
        }
        Value::Array(values) => {
            for value in values {
                paths(value, &format!("{path}[]"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// The keys of each kind of event, such as `client report`.
fn keys<'a>(
    samples: impl Iterator<Item = (&'a String, &'a String)>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, text) in samples.filter(|(name, _)| name.ends_with(".ndjson")) {
        for line in text.lines() {
            let event: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut found = BTreeSet::new();
            paths(&event, "", &mut found);
            let end = match name.split(['.', '_']).next() {
                Some("server") => "server",
                Some("rates") => "rates",
                _ => "client",
            };
            let kind = event["type"].as_str().unwrap_or("row");
            kinds
                .entry(format!("{end} {kind}"))
                .or_default()
                .extend(found);
        }
    }
    kinds
}

/// The keys of the tables: a heading names the kinds that a table is about, and where in them.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(FIELDS).unwrap();
    let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut about: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix('#') {
            let spans = heading.split('`').skip(1).step_by(2);
            about = spans
                .filter_map(|span| {
                    let mut words = span.split(' ');
                    let kind = format!("{} {}", words.next()?, words.next()?);
                    let place = words
                        .next()
                        .map_or_else(String::new, |place| format!("{place}."));
                    Some((kind, place))
                })
                .collect();
        } else if let Some(row) = line.strip_prefix("| `") {
            let key = row.split('`').next().unwrap();
            for (kind, place) in &about {
                kinds
                    .entry(kind.clone())
                    .or_default()
                    .insert(format!("{place}{key}"));
            }
        }
    }
    for keys in kinds.iter_mut().filter(|(kind, _)| *kind != "rates row") {
        keys.1.insert("type".into());
    }
    kinds
}

/// Keys that are there only when there is something to say.
fn optional(key: &str) -> bool {
    ["interface_mbps", "connections[].clock_offset_s"]
        .iter()
        .any(|end| key.ends_with(end))
        || key.starts_with("tests[].starved[].")
}

/// Without what only a host says whose timers fire late at that moment.
fn without_timers(text: &str) -> String {
    let lines = text.split_inclusive('\n');
    lines.filter(|line| !line.contains("timers fire")).collect()
}

#[test]
fn samples_and_tables_are_of_what_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut live = Samples::new();
    // Parts at the same time, for tests take five seconds whatever else goes on.
    std::thread::scope(|scope| {
        let part = |run: fn(&Path, &mut Samples)| {
            scope.spawn(move || {
                let mut samples = Samples::new();
                run(directory, &mut samples);
                samples
            })
        };
        for part in [part(clients), part(servers), part(troubles), part(errors)] {
            live.extend(part.join().unwrap());
        }
    });
    losses(&mut live);
    if std::env::var("RINGMILL_EXAMPLES").is_ok_and(|wish| wish == "write") {
        std::fs::create_dir_all(EXAMPLES).unwrap();
        for (name, text) in &live {
            std::fs::write(Path::new(EXAMPLES).join(name), text).unwrap();
        }
    }

    let mut samples = Samples::new();
    for entry in std::fs::read_dir(EXAMPLES).unwrap() {
        let entry = entry.unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();
        samples.insert(entry.file_name().into_string().unwrap(), text);
    }
    let names = |samples: &Samples| samples.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&samples), names(&live), "the samples");
    for (name, text) in &live {
        if !name.ends_with(".ndjson") {
            let text = without_timers(text);
            assert_eq!(skeleton(&text), skeleton(&samples[name]), "{name}");
        }
    }
    for name in ["rates.txt", "rates.tsv", "rates.ndjson"] {
        assert_eq!(live[name], samples[name], "{name}");
    }

    let documented = documented();
    for (what, found) in [
        ("printed", keys(live.iter())),
        ("samples", keys(samples.iter())),
    ] {
        for (kind, keys) in &documented {
            if NOT_HAD.contains(&kind.as_str()) {
                continue;
            }
            let none = BTreeSet::new();
            let found = found.get(kind).unwrap_or(&none);
            // An object that is not known is null.
            let object = |key: &String| keys.iter().any(|of| of.starts_with(&format!("{key}.")));
            let extra = found.difference(keys).filter(|key| !object(key));
            let extra: Vec<_> = extra.collect();
            assert!(
                extra.is_empty(),
                "{kind}, {what}: not in the table: {extra:?}"
            );
            let missing = keys.difference(found).filter(|key| !optional(key));
            let missing: Vec<_> = missing.collect();
            assert!(
                missing.is_empty(),
                "{kind}: in the table, not {what}: {missing:?}"
            );
        }
        let unknown = found.keys().filter(|kind| !documented.contains_key(*kind));
        let unknown: Vec<_> = unknown.collect();
        assert!(unknown.is_empty(), "{what}: no table for {unknown:?}");
    }
}
