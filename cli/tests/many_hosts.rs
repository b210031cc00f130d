//! Load from several hosts, as processes on this one: begun together, merged into one report; and the
//! manifest of docs/many-hosts.md, held against the command line.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Parser as _;
use nix::sys::signal::Signal;
use ringmill_cli::commands::{Cli, Command, load::Workload};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

mod common;
use common::{Running, ringmill};

const MANIFEST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/examples/kubernetes/load-job.yaml"
);

/// An echo server on loopback, and where it is.
fn serve() -> (Running, String) {
    let arguments = [
        "serve",
        "echo",
        "tcp://127.0.0.1:0",
        "--shards",
        "1",
        "--driver",
        "epoll",
    ];
    let mut server = Running::start(&arguments, Stdio::null());
    let line = server.line("tcp://127.0.0.1:");
    let (_, rest) = line.split_once("tcp://127.0.0.1:").expect("an endpoint");
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (server, format!("tcp://127.0.0.1:{port}"))
}

fn load(endpoint: &str, more: &[&str]) -> std::process::Command {
    let mut command = ringmill();
    command
        .args([
            "load", "echo", endpoint, "-c", "2", "--rate", "200", "--json",
        ])
        .args(["--shards", "1", "--driver", "epoll", "--tune", "off"])
        .args(more)
        .stdin(Stdio::null());
    command
}

fn merge(arguments: &[&str], directory: &Path) -> (i32, String, String) {
    let output = ringmill()
        .args(["report", "merge"])
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

fn last_line(text: &str) -> Value {
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn hosts_begin_together_and_make_one_report() {
    let (_server, endpoint) = serve();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let at = jiff::Timestamp::now() + Duration::from_secs(2);
    let at = format!("{at:.3}");
    let children: Vec<_> = ["0", "1", "2"]
        .map(|index| {
            let log = directory.join(format!("host-{index}.hlog"));
            let log = log.to_str().unwrap();
            let more = [
                "--start-at",
                &at,
                "--host-index",
                index,
                "--hosts",
                "3",
                "-d",
                "2s",
            ];
            let mut command = load(&endpoint, &more);
            command.args(["--warmup", "200ms", "--histogram", log]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            (index, command.spawn().expect("it starts"))
        })
        .into_iter()
        .collect();
    let (mut messages, mut latencies) = (0, 0);
    let mut seeds = Vec::new();
    for (index, child) in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("waiting until"), "{said}");
        let text = String::from_utf8(output.stdout).unwrap();
        let report = last_line(&text);
        messages += report["messages"].as_u64().unwrap();
        latencies += report["response_time"]["count"].as_u64().unwrap();
        seeds.push(report["settings"]["seed_of_host"].clone());
        // Begun at the moment: the measured part follows the warm-up.
        let started: jiff::Timestamp = report["started_at"].as_str().unwrap().parse().unwrap();
        let wanted: jiff::Timestamp = at.parse().unwrap();
        let late = started.duration_since(wanted).as_secs_f64() - 0.2;
        assert!((-0.002..5.0).contains(&late), "{late} s late");
        std::fs::write(directory.join(format!("host-{index}.ndjson")), text).unwrap();
    }
    seeds.dedup();
    assert_eq!(seeds.len(), 3, "{seeds:?}");

    let files = [
        "host-0.ndjson",
        "host-1.ndjson",
        "host-2.ndjson",
        "host-0.hlog",
        "host-1.hlog",
        "host-2.hlog",
    ];
    let (code, text, said) = merge(&[&files[..], &["--json"]].concat(), directory);
    assert_eq!(code, 0, "{said}");
    let merged = last_line(&text);
    assert_eq!(merged["type"], "merged");
    assert_eq!(merged["messages"], messages);
    assert_eq!(merged["response_time"]["count"], latencies);
    assert!(merged["response_time"]["p99_ns"].is_u64(), "{merged:#}");
    assert_eq!(merged["hosts"].as_array().unwrap().len(), 3);
    let intervals: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["type"] == "interval")
        .collect();
    let of_intervals: u64 = intervals
        .iter()
        .map(|line| line["messages"].as_u64().unwrap())
        .sum();
    assert_eq!(of_intervals, messages, "{intervals:#?}");

    // Without one host's report, and with its file cut off.
    let whole = std::fs::read_to_string(directory.join("host-1.ndjson")).unwrap();
    let cut = &whole[..whole.len() - 100];
    std::fs::write(directory.join("host-1.ndjson"), cut).unwrap();
    let (code, text, said) = merge(&files, directory);
    assert_eq!(code, 0, "{said}");
    for words in [
        "the last, was cut off",
        "host-1: the run has no report",
        "LOST: cut off",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    for (name, content, code, words) in [
        ("gone.ndjson", None, 1, "cannot read gone.ndjson"),
        ("empty.ndjson", Some(""), 2, "nothing is in it"),
        (
            "text.ndjson",
            Some("hello\n"),
            2,
            "line 1 is neither NDJSON",
        ),
    ] {
        if let Some(content) = content {
            std::fs::write(directory.join(name), content).unwrap();
        }
        let (found, _, said) = merge(&["host-0.ndjson", name], directory);
        assert_eq!(found, code, "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_moment_gone_by_is_refused_and_waiting_can_be_ended() {
    let (_server, endpoint) = serve();
    for command in ["load", "capacity"] {
        let mut late = match command {
            "load" => load(&endpoint, &["--start-at", "2020-01-01T00:00:00Z"]),
            _ => {
                let mut late = ringmill();
                late.args(["capacity", "down", "127.0.0.1", "--tune", "off"]);
                late.args(["--start-at", "2020-01-01T00:00:00Z"]);
                late
            }
        };
        let output = late.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("--start-at 2020-01-01T00:00:00Z was"),
            "{said}"
        );
    }
    // Both before the connections are opened, and while they are held.
    for ahead in ["+10m", "+20s"] {
        let began = Instant::now();
        let mut command = load(&endpoint, &["--start-at", ahead]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("waiting until") {
            line.clear();
            let read = std::io::BufRead::read_line(&mut said, &mut line).unwrap();
            assert!(read > 0, "it ended before it waited");
        }
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{ahead}");
        assert!(began.elapsed() < Duration::from_secs(15), "{ahead}");
    }
}

#[test]
fn hosts_and_their_parts_of_the_sources() {
    let (_server, endpoint) = serve();
    let sources = "127.0.3.1,127.0.3.2,127.0.3.3";
    let run = |more: &[&str]| {
        let flags = ["--sources", sources, "-d", "200ms", "--warmup", "0"];
        load(&endpoint, &[&flags[..], more].concat())
            .output()
            .unwrap()
    };
    let output = run(&["--host-index", "1", "--hosts", "3"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // As a Job says it.
    let mut by_environment = load(&endpoint, &["-d", "200ms", "--warmup", "0"]);
    by_environment.env("JOB_COMPLETION_INDEX", "5");
    let output = by_environment.output().unwrap();
    let report = last_line(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(report["host_index"], 5);
    for (more, words) in [
        (
            &["--host-index", "3", "--hosts", "3"][..],
            "counted from 0 to 2",
        ),
        (&["--hosts", "3"], "which of them is this"),
        (
            &["--host-index", "0", "--hosts", "4"],
            "3 addresses for 4 hosts",
        ),
    ] {
        let output = run(more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn the_manifest_is_a_job_that_our_command_line_takes() {
    let text = std::fs::read_to_string(MANIFEST).unwrap();
    let documents = YamlLoader::load_from_str(&text).unwrap();
    assert_eq!(documents.len(), 1);
    let job = &documents[0];
    assert_eq!(job["kind"].as_str(), Some("Job"));
    let spec = &job["spec"];
    assert_eq!(spec["completionMode"].as_str(), Some("Indexed"));
    assert_eq!(spec["completions"], spec["parallelism"]);
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"].as_str(), Some("Never"));
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["localhostProfile"].as_str(),
        Some("seccomp-ringmill.json")
    );
    let container = &pod["containers"][0];
    let list = |value: &Yaml| value.as_vec().expect("a list").clone();
    let mut arguments = vec!["ringmill".to_owned()];
    for argument in list(&container["args"]) {
        let mut argument = argument.as_str().expect("a text").to_owned();
        for variable in list(&container["env"]) {
            let name = variable["name"].as_str().expect("a name");
            let value = variable["value"].as_str().expect("a text");
            argument = argument.replace(&format!("$({name})"), value);
        }
        assert!(!argument.contains("$("), "{argument}");
        arguments.push(argument);
    }
    let cli = Cli::try_parse_from(&arguments).unwrap_or_else(|error| panic!("{error}"));
    let Command::Load(load) = cli.command else {
        panic!("{arguments:?}");
    };
    let Workload::Echo(echo) = load.workload else {
        panic!("{arguments:?}");
    };
    let hosts = spec["completions"]
        .as_i64()
        .and_then(|hosts| u32::try_from(hosts).ok());
    assert_eq!(echo.run.host.hosts, hosts);
    assert!(echo.run.start.start_at.is_some() && echo.run.json);
}
