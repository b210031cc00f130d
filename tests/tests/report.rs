//! `load --json`: every line parses, the last is the report, and its fields are the documented ones.

use std::collections::BTreeSet;

use ringmill_tests::drivers;
use ringmill_tests::program::{Load, PATIENCE, Server};
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../docs/report.md");

/// Fields that the first column of a table under a heading of the document names.
fn documented(heading: &str) -> BTreeSet<String> {
    let section = DOCUMENT
        .split("\n## ")
        .find(|part| part.starts_with(heading))
        .unwrap_or_else(|| panic!("no heading {heading}"));
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(field, _)| field.to_owned())
        .collect()
}

/// Dotted paths of all fields, not going into those that `whole` names.
fn fields(value: &Value, prefix: &str, whole: &[&str], into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if !whole.contains(&prefix) => {
            for (key, value) in map {
                let dot = if prefix.is_empty() { "" } else { "." };
                fields(value, &format!("{prefix}{dot}{key}"), whole, into);
            }
        }
        _ => {
            into.insert(prefix.to_owned());
        }
    }
}

fn fields_of(value: &Value) -> BTreeSet<String> {
    // Maps with free keys, and objects that have a table of their own.
    const WHOLE: [&str; 7] = [
        "settings",
        "errors",
        "connections.closed",
        "response_time",
        "service_time",
        "cpu.client",
        "cpu.server",
    ];
    let mut set = BTreeSet::new();
    fields(value, "", &WHOLE, &mut set);
    set
}

/// Checks what is written about a run; `datagrams` has fields only in a run over UDP.
fn assert_documented(load: &Load, datagrams: bool) {
    let types: Vec<_> = load.lines.iter().map(|line| &line["type"]).collect();
    for line in &load.lines {
        match line["type"].as_str() {
            Some("interval") => assert_eq!(fields_of(line), documented("Interval"), "{types:?}"),
            Some("measuring") => assert_eq!(fields_of(line), documented("Measuring"), "{types:?}"),
            _ => panic!("a line of another type: {line}"),
        }
    }
    assert!(types.iter().any(|kind| **kind == "interval"), "{types:?}");
    let mut expected = documented("Report");
    if !datagrams {
        expected.retain(|field| !field.starts_with("datagrams."));
        expected.insert("datagrams".into());
    }
    assert_eq!(fields_of(&load.report), expected);
    let keys = |value: &Value| -> BTreeSet<String> {
        let map = value.as_object().expect("an object");
        map.keys().cloned().collect()
    };
    for line in load.lines.iter().chain([&load.report]) {
        for latency in [&line["response_time"], &line["service_time"]] {
            if !latency.is_null() {
                assert_eq!(keys(latency), documented("Latency"));
            }
        }
    }
    assert_eq!(keys(&load.report["cpu"]["client"]), documented("CPU use"));
}

#[test]
fn lines_and_fields_are_the_documented_ones() {
    for driver in drivers() {
        let endpoints = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"];
        let server = Server::start(&endpoints, &["--driver", driver]);
        for number in 0..2 {
            let flags = [
                "-c", "4", "-d", "1200ms", "--warmup", "100ms", "--driver", driver,
            ];
            let load = Load::run(server.endpoint(number), &flags);
            load.assert_clean();
            assert_documented(&load, number == 1);
            assert_eq!(load.report["settings"]["driver"], driver);
            assert_eq!(load.report["schema"], 1);
        }
    }
}

#[test]
fn the_first_signal_ends_a_run_with_its_report() {
    for driver in drivers() {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let server = Server::start(&["tcp://127.0.0.1:0"], &["--driver", driver]);
            let flags = ["-c", "4", "-d", "10m", "--driver", driver];
            let mut running = Load::begin(server.endpoint(0), &flags);
            running.line_where("a second with answers", |line| {
                line["type"] == "interval" && line["messages"].as_u64() > Some(0)
            });
            running.signal(signal);
            let load = Load::finish(running);
            load.assert_clean();
            assert!(load.report["duration_s"].as_f64() < Some(60.0), "{load:#?}");
            assert_eq!(server.stop().code, 0, "{driver}");
        }
    }
}

#[test]
fn a_histogram_file_is_an_hdr_log() {
    for driver in drivers() {
        let server = Server::start(&["tcp://127.0.0.1:0"], &["--driver", driver]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run.hlog");
        let path = path.to_str().expect("a plain path");
        let flags = [
            "-c",
            "2",
            "-d",
            "1200ms",
            "--driver",
            driver,
            "--histogram",
            path,
        ];
        Load::run(server.endpoint(0), &flags).assert_clean();
        let log = std::fs::read_to_string(path).expect("it was written");
        assert!(
            log.contains("Tag=response") && log.contains("Tag=service"),
            "{log}"
        );
    }
}

#[test]
fn the_report_of_a_person_is_not_json() {
    for driver in drivers() {
        let server = Server::start(&["tcp://127.0.0.1:0"], &["--driver", driver]);
        let output = ringmill_tests::program::command()
            .args(["load", "echo", server.endpoint(0), "-c", "2", "-d", "300ms"])
            .args(["--warmup", "0", "--driver", driver])
            .output()
            .expect("it can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("p99") && !text.contains('{'), "{text}");
        let stopped = server.stop();
        assert_eq!(stopped.counter("open"), 0, "within {PATIENCE:?}");
    }
}
