//! Merging, in cases: made-up runs of which every figure of the whole is known.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::*;
use crate::report::hlog::LogWriter;
use std::time::Duration;
use std::time::SystemTime;

/// A run of some seconds on one host.
#[derive(Clone)]
struct Made {
    name: &'static str,
    index: Option<u64>,
    /// After 2026-01-31T18:00:00Z.
    offset_ms: u64,
    seconds: u64,
    per_second: u64,
    /// Latencies in nanoseconds, of which each message has one in turn.
    latencies: Vec<u64>,
    histograms: bool,
    complete: bool,
    settings: Value,
    version: &'static str,
}

impl Made {
    fn new(name: &'static str, index: u64) -> Self {
        Self {
            name,
            index: Some(index),
            offset_ms: 0,
            seconds: 10,
            per_second: 100,
            latencies: vec![1000 * (index + 1)],
            histograms: true,
            complete: true,
            settings: json!({ "connections": 10, "seed": 42, "seed_of_host": index }),
            version: "0.1.0",
        }
    }

    fn started(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_769_882_400_000 + self.offset_ms)
    }

    fn histogram(&self, messages: u64) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap();
        for message in 0..messages {
            let turn = message as usize % self.latencies.len();
            histogram.record(self.latencies[turn]).unwrap();
        }
        histogram
    }

    fn latency(&self, messages: u64) -> Value {
        json!(Latency::from_histogram(&self.histogram(messages)))
    }

    fn text(&self) -> String {
        let started = crate::start::rfc3339(self.started());
        let mut lines = vec![json!({
            "type": "measuring", "version": self.version, "workload": "echo", "endpoint": "tcp://s:7",
            "started_at": started, "host_index": self.index,
        })];
        for second in 0..self.seconds {
            lines.push(json!({
                "type": "interval", "start_s": second, "duration_s": 1.0, "messages": self.per_second,
                "bytes": self.per_second * 32, "connections": 10, "errors": 0, "lost": null,
                "wrong_bytes": 0, "response_time": self.latency(self.per_second),
                "service_time": null,
            }));
        }
        let messages = self.seconds * self.per_second;
        let histogram = self
            .histograms
            .then(|| hlog::encode(&self.histogram(messages)).unwrap());
        if self.complete {
            lines.push(json!({
                "type": "report", "schema": 1, "version": self.version, "command": ["ringmill"],
                "workload": "echo", "endpoint": "tcp://s:7", "settings": self.settings,
                "environment": { "build": { "profile": "release" } },
                "started_at": started, "host_index": self.index, "hosts": null,
                "duration_s": self.seconds, "warmup_s": 1.0,
                "connections": { "opened": 10, "failed": 1, "closed": { "peer closed": 2 } },
                "messages_sent": messages, "messages": messages, "bytes": messages * 32,
                "messages_per_s": self.per_second as f64, "bytes_per_s": self.per_second as f64 * 32.0,
                "errors": { "connection: refused": 1 }, "wrong_bytes": 0,
                "datagrams": { "sent": messages, "lost": self.index, "loss_ratio": 0.5 },
                "response_time": self.latency(messages), "service_time": null,
                "histograms": { "response": histogram, "service": null },
                "cpu": { "client": { "user_s": 1.0, "system_s": 1.0, "cpus": 2, "cpus_busy": 0.5,
                                     "share_percent": 25.0, "per_message_ns": 1.0 }, "server": null },
                "limits": { "client_limited": null, "steal_percent": 0.5, "other_busy_percent": null },
            }));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn input(&self) -> Input {
        read(&format!("{}.ndjson", self.name), self.text().as_bytes()).unwrap()
    }

    fn log(&self, name: &str) -> Input {
        let mut log = LogWriter::begin(Vec::new(), self.started(), &[]).unwrap();
        let second = Duration::from_secs(1);
        for number in 0..self.seconds {
            let start = Duration::from_secs(number);
            let histogram = self.histogram(self.per_second);
            log.interval(LatencyKind::Response, start, second, &histogram)
                .unwrap();
        }
        read(name, &log.finish().unwrap()).unwrap()
    }
}

fn merged(hosts: &[Made]) -> Merged {
    merge(hosts.iter().map(Made::input).collect()).unwrap()
}

fn words(merged: &Merged) -> String {
    merged.warnings.join("\n")
}

#[test]
fn hosts_that_ran_together_add_up() {
    let hosts = [Made::new("a", 0), Made::new("b", 1), Made::new("c", 2)];
    let merged = merged(&hosts);
    assert_eq!(words(&merged), "");
    assert_eq!(merged.together, Some(true));
    assert_eq!((merged.span_s, merged.common_s), (Some(10.0), Some(10.0)));
    let figures = Value::Object(merged.figures.clone());
    for (path, expected) in [
        ("/messages", json!(3000)),
        ("/messages_per_s", json!(300.0)),
        ("/messages_per_s_of_span", json!(300.0)),
        ("/connections/opened", json!(30)),
        ("/connections/closed/peer closed", json!(6)),
        ("/errors/connection: refused", json!(3)),
        ("/datagrams/loss_ratio", json!(0.001)),
        ("/wrong_bytes", json!(0)),
        ("/limits/steal_percent", json!(0.5)),
        ("/cpu/client/user_s", json!(3.0)),
        ("/cpu/client/cpus", json!(6)),
        ("/cpu/client/share_percent", json!(25.0)),
        ("/cpu/client/per_message_ns", json!(2e6)),
        ("/service_time", Value::Null),
    ] {
        assert_eq!(figures.pointer(path), Some(&expected), "{path}");
    }
    assert_eq!(
        merged.settings,
        *json!({"connections": 10, "seed": 42}).as_object().unwrap()
    );
    assert_eq!(merged.intervals.len(), 10);
    assert!(merged.intervals.iter().all(|interval| {
        interval.hosts == 3
            && interval.duration_s == 1.0
            && interval.figures["messages"] == 300
            && interval.figures["connections"] == 30
    }));
}

#[test]
fn percentiles_are_those_of_all_messages() {
    // Of 100 messages on one host one is slow; the other hosts' are all fast.
    let mut slow = Made::new("slow", 0);
    slow.latencies = vec![1000; 99];
    slow.latencies.push(1_000_000);
    let mut fast = Made::new("fast", 1);
    fast.latencies = vec![1000];
    fast.per_second = 900;
    let merged = merged(&[slow.clone(), fast.clone()]);
    let mut all = slow.histogram(1000);
    all.auto(true);
    all.add(fast.histogram(9000)).unwrap();
    let expected = json!(Latency::from_histogram(&all));
    assert_eq!(merged.figures["response_time"], expected);
    // The mean of the two p99.9 would be near 500 microseconds; of all, one in a thousand is slow.
    assert!(expected["p99.9_ns"].as_u64() < Some(2000), "{expected}");
    assert_eq!(merged.no_percentiles, None);
}

#[test]
fn without_every_histogram_there_are_no_percentiles() {
    let mut hosts = [Made::new("a", 0), Made::new("b", 1)];
    hosts[1].histograms = false;
    let without = merged(&hosts);
    let why = without.no_percentiles.as_deref().unwrap();
    assert!(why.contains("without the histograms of b:"), "{why}");
    let latency = &without.figures["response_time"];
    assert_eq!(
        (&latency["count"], &latency["p99_ns"]),
        (&json!(2000), &Value::Null)
    );
    assert_eq!(
        latency["max_ns"],
        Latency::from_histogram(&hosts[1].histogram(1))
            .unwrap()
            .max_ns
    );
    assert!(human::render(&without).contains(why));

    // A log beside it is as good, found by its name or by its start.
    hosts[0].offset_ms = 5;
    for name in ["b.hlog", "latencies.hlog"] {
        let inputs = vec![hosts[0].input(), hosts[1].input(), hosts[1].log(name)];
        let with = merge(inputs).unwrap();
        assert_eq!(with.no_percentiles, None, "{name}: {}", words(&with));
        assert!(with.figures["response_time"]["p99_ns"].is_u64(), "{name}");
    }
    // And with every log, the seconds have percentiles, too.
    let inputs = vec![
        hosts[0].input(),
        hosts[1].input(),
        hosts[0].log("a.hlog"),
        hosts[1].log("b.hlog"),
    ];
    let with = merge(inputs).unwrap();
    let latency = &with.intervals[4].figures["response_time"];
    assert_eq!(
        (&latency["count"], latency["p50_ns"].is_u64()),
        (&json!(200), true)
    );
}

#[test]
fn seconds_are_those_of_the_wall_clock() {
    let mut late = Made::new("late", 1);
    late.offset_ms = 2500;
    let merged = merged(&[Made::new("first", 0), late]);
    let messages: Vec<u64> = merged
        .intervals
        .iter()
        .map(|interval| interval.figures["messages"].as_u64().unwrap())
        .collect();
    assert_eq!(
        messages,
        [
            100, 100, 150, 200, 200, 200, 200, 200, 200, 200, 100, 100, 50
        ]
    );
    assert_eq!(merged.intervals[12].duration_s, 0.5);
    assert_eq!(merged.intervals[12].figures["messages_per_s"], 100.0);
    let hosts: Vec<u64> = merged
        .intervals
        .iter()
        .map(|interval| interval.hosts)
        .collect();
    assert_eq!(hosts, [1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]);
}

#[test]
fn a_few_milliseconds_make_no_second_of_their_own() {
    let mut late = Made::new("late", 1);
    late.offset_ms = 3;
    let merged = merged(&[Made::new("first", 0), late]);
    assert_eq!(merged.intervals.len(), 10);
    let sum: u64 = merged
        .intervals
        .iter()
        .map(|interval| interval.figures["messages"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, 2000);
    assert_eq!(words(&merged), "");
}

#[test]
fn rates_of_other_times_are_not_summed() {
    let mut late = Made::new("late", 1);
    late.offset_ms = 8000;
    let merged = merged(&[Made::new("first", 0), late]);
    assert_eq!(merged.together, Some(false));
    assert_eq!((merged.span_s, merged.common_s), (Some(18.0), Some(2.0)));
    assert_eq!(merged.figures["messages"], 2000);
    assert_eq!(merged.figures["messages_per_s"], Value::Null);
    let of_span = merged.figures["messages_per_s_of_span"].as_f64().unwrap();
    assert!((of_span - 2000.0 / 18.0).abs() < 1e-9);
    let words = words(&merged);
    assert!(words.contains("late: began 8.0 s later"), "{words}");
    assert!(
        words.contains("together for 2.0 s of 18.0 s only"),
        "{words}"
    );
}

#[test]
fn hosts_that_differ_are_named() {
    type Spoil = fn(&mut Made);
    let cases: [(Spoil, &str); 5] = [
        (
            |host| host.settings = json!({"connections": 20, "seed": 42}),
            "c: setting connections 20, not 10",
        ),
        (
            |host| host.version = "0.0.9",
            "c: version \"0.0.9\", not \"0.1.0\"",
        ),
        (|host| host.seconds = 8, "c: ended 2.0 s earlier"),
        (
            |host| host.index = Some(0),
            "a, c: all of them are host 0: they drew the same random numbers",
        ),
        (
            |host| host.complete = false,
            "c: the run has no report: the host was lost",
        ),
    ];
    for (spoil, expected) in cases {
        let mut hosts = [Made::new("a", 0), Made::new("b", 1), Made::new("c", 2)];
        spoil(&mut hosts[2]);
        let merged = merged(&hosts);
        let words = words(&merged);
        assert!(words.contains(expected), "{expected}: {words}");
        assert!(human::render(&merged).contains(expected));
    }
}

#[test]
fn a_lost_host_counts_as_far_as_it_came() {
    let mut lost = Made::new("lost", 1);
    lost.complete = false;
    lost.seconds = 4;
    let merged = merge(vec![
        Made::new("whole", 0).input(),
        lost.input(),
        lost.log("lost.hlog"),
    ])
    .unwrap();
    assert_eq!(merged.figures["messages"], 1400);
    assert_eq!(merged.figures["response_time"]["count"], 1400);
    assert_eq!(merged.no_percentiles, None);
    let row = &merged.hosts[1];
    assert_eq!(
        (row.complete, row.messages, row.duration_s),
        (false, Some(400), 4.0)
    );
    assert!(human::render(&merged).contains("LOST"));
}

#[test]
fn missing_hosts_and_twins() {
    let mut made = Made::new("a", 0);
    made.index = Some(0);
    let text = made.text().replace("\"hosts\":null", "\"hosts\":3");
    let one = read("a.ndjson", text.as_bytes()).unwrap();
    let merged = merge(vec![one]).unwrap();
    assert!(
        words(&merged).contains("of 3 hosts these are missing: 1, 2"),
        "{}",
        words(&merged)
    );

    let twice = merge(vec![
        made.input(),
        read("copy.ndjson", made.text().as_bytes()).unwrap(),
    ]);
    let error = twice.unwrap_err().to_string();
    assert!(error.contains("a and copy are the same run"), "{error}");

    let error = merge(vec![made.log("a.hlog")]).unwrap_err().to_string();
    assert!(error.contains("only histograms"), "{error}");

    let mut stranger = Made::new("stranger", 7);
    stranger.offset_ms = 100_000;
    let merged = merge(vec![made.input(), stranger.log("stranger.hlog")]).unwrap();
    assert!(words(&merged).contains("stranger: it cannot be told which host"));
}

#[test]
fn the_report_for_people() {
    let merged = merged(&[Made::new("a", 0), Made::new("b", 1)]);
    let text = human::render(&merged);
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "echo on tcp://s:7, 2 hosts merged, 10.0 s from 2026-01-31T18:00:00.000Z, 10.0 s of it all at once",
        "messages 2,000",
        "messages_per_s 200.0 /s",
        "errors 2 connection: refused",
        "seconds with all hosts 200.0 /s to 200.0 /s",
        "a 0 +0.00 s 10.0 s 1,000",
    ] {
        assert!(squeezed.contains(words), "{words:?} is not in\n{text}");
    }
    assert!(!text.contains("Before you believe it"), "{text}");
}

/// A soak's report has its own shape, and its intervals say how it stands.
#[test]
fn soaks_are_merged_by_their_shape() {
    let soak = |name: &str, live: u64, bytes: f64, failures: Value| {
        let head = json!({"type": "measuring", "workload": "soak", "started_at": "2026-01-31T18:00:00.000Z"});
        let line = |at: u64| {
            json!({"type": "interval", "phase": "hold", "at_s": at, "live": live, "opened": live + at,
                   "failed_by": {"reset": 1}, "messages": at * 10, "messages_per_s": 10.0})
        };
        let report = json!({
            "type": "report", "schema": 1, "version": "0.1.0", "workload": "soak", "endpoints": ["tcp://s:7"],
            "settings": {"rate": 10}, "started_at": "2026-01-31T18:00:00.000Z",
            "opening": {"wanted": 100, "live": live, "duration_s": 1.0, "per_s": 100.0, "connect_time": null},
            "hold": {"duration_s": 2.0, "live_min": live, "messages": 20, "messages_per_s": 10.0,
                     "wrong_bytes": 0, "lateness_max_ns": live, "unsent": {}, "response_time": null},
            "connections": {"opened": 100, "failed": 1, "failed_by": {"reset": 1}, "lost": 0},
            "memory": {"client": {"per_connection_bytes": bytes}, "kernel_source": "slab"},
            "server": null, "kernel": [], "failures": failures,
        });
        let text = format!("{head}\n{}\n{}\n{}\n{report}\n", line(1), line(2), line(3));
        read(&format!("{name}.ndjson"), text.as_bytes()).unwrap()
    };
    let merged = merge(vec![
        soak("a", 100, 90.0, json!([])),
        soak(
            "b",
            99,
            80.0,
            json!(["only 99 of 100 connections were live at once"]),
        ),
    ])
    .unwrap();
    let figures = Value::Object(merged.figures.clone());
    for (path, expected) in [
        ("/opening/live", json!(199)),
        ("/opening/per_s", json!(200.0)),
        ("/hold/messages", json!(40)),
        ("/hold/messages_per_s", json!(20.0)),
        ("/hold/lateness_max_ns", json!(100)),
        ("/connections/failed_by/reset", json!(2)),
        ("/memory/client/per_connection_bytes", json!(90.0)),
        ("/memory/kernel_source", json!("slab")),
        (
            "/failures/0",
            json!("b: only 99 of 100 connections were live at once"),
        ),
    ] {
        assert_eq!(figures.pointer(path), Some(&expected), "{path}");
    }
    assert_eq!(merged.intervals.len(), 3);
    let last = &merged.intervals[2].figures;
    assert_eq!(
        (&last["live"], &last["messages"], &last["opened"]),
        (&json!(199), &json!(60), &json!(205))
    );
    assert_eq!(merged.hosts[0].messages, Some(20));
    assert_eq!(merged.endpoints, ["tcp://s:7"]);
    assert!(human::render(&merged).contains("hold.messages"));
}
