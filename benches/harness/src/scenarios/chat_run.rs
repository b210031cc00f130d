//! One run of a chat under load: the server, its members, and what the server itself counted.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::drive::{run_load, start_server};
use crate::host::keyed_kb;
use crate::process::{Line, Running};
use crate::rounds::Run;
use crate::setup::Setup;

/// Members of every chat here.
pub(super) const MEMBERS: usize = 1000;
/// Bytes of a message; the load knows no other.
pub(super) const MESSAGE_BYTES: usize = 32;
/// Shards of ringmill: the fewest between which anything crosses.
pub(super) const SHARDS: usize = 2;
/// ringmill says where its counters are right after where it listens.
const METRICS_TIMEOUT: Duration = Duration::from_secs(5);

/// The load of a cell.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChatLoad {
    pub(super) members: usize,
    pub(super) senders: usize,
    pub(super) window: u64,
    pub(super) deaf_percent: usize,
    /// Sent before the warm-up, to fill the queues of the deaf.
    pub(super) fill_bytes: u64,
    pub(super) warmup: f64,
    pub(super) seconds: f64,
}

impl ChatLoad {
    pub(super) fn title(&self) -> String {
        let plural = if self.senders == 1 { "" } else { "s" };
        format!(
            "{} members, {} sender{plural} × {} under way, {MESSAGE_BYTES} B",
            self.members, self.senders, self.window
        )
    }

    pub(super) fn line(&self, setup: &Setup, address: &str) -> anyhow::Result<Line> {
        let ChatLoad {
            members,
            senders,
            window,
            deaf_percent,
            fill_bytes,
            warmup,
            seconds,
        } = self;
        let mut more = match deaf_percent {
            0 => String::new(),
            percent => format!("--deaf-percent {percent}"),
        };
        if *fill_bytes > 0 {
            more += &format!(" --fill-bytes {fill_bytes}");
        }
        Ok(setup.peer("chat-load")?.args(&format!(
            "{address} --members {members} --senders {senders} --window {window} --seconds {seconds} \
             --warmup {warmup} {more}"
        )))
    }
}

/// `ringmill serve chat` on the servers' CPU.
pub(super) fn serve_chat(setup: &Setup, driver: &str) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args(&format!(
        "serve chat tcp://127.0.0.1:0 --shards {SHARDS} --cpus {} --driver {driver} --json \
         --metrics 127.0.0.1:0",
        setup.server_cpu
    )))
}

/// What came out.
pub(super) struct Measured {
    pub(super) run: Run,
    /// ringmill's counters when the load had ended; others count nothing.
    pub(super) metrics: Option<Metrics>,
}

/// A fresh server, this load, and what came out.
///
/// # Errors
/// Either fails, or a member saw a message out of order or twice.
pub(super) fn measure(setup: &Setup, server: &Line, load: ChatLoad) -> anyhow::Result<Measured> {
    let (server, address) = start_server(server, "tcp", setup.server_cpu)?;
    let has_metrics = server_tells_metrics(&server)?;
    let memory_kb = || keyed_kb(format!("/proc/{}/status", server.pid()), "RssAnon");
    let before_kb = memory_kb().context("the server died at its start")?;
    let line = load.line(setup, &address)?;
    let mut run = run_load(setup, &server, &[], &line, load.warmup + load.seconds)?;
    // A server keeps what it took, so this is the most that it held.
    let after_kb = memory_kb().context("the server died under load")?;
    for fault in ["order_violations", "duplicates"] {
        let count = run.detail[fault].as_f64().unwrap_or(f64::NAN);
        ensure!(count == 0.0, "{count} {}", fault.replace('_', " "));
    }
    let member = &run.detail["member_messages_per_s"];
    let figures = [
        ("missed", &run.detail["missed"]),
        ("member_mean", &member["mean"]),
        ("member_min", &member["min"]),
    ];
    for (key, value) in figures {
        run.values.insert(key, value.as_f64().unwrap_or(f64::NAN));
    }
    let grown_kb = after_kb as f64 - before_kb as f64;
    run.values.insert("grown_kb", grown_kb);
    let metrics = has_metrics.map(|at| Metrics::read(&at)).transpose()?;
    if let Some(metrics) = &metrics {
        let report = run.detail.take();
        run.detail = json!({ "load": report, "counters": metrics.0 });
    }
    Ok(Measured { run, metrics })
}

/// Where ringmill's counters can be read; none: this is a peer.
fn server_tells_metrics(server: &Running) -> anyhow::Result<Option<String>> {
    let asked = |line: &str| line.contains("--metrics");
    if !asked(server.name()) {
        return Ok(None);
    }
    let deadline = Instant::now() + METRICS_TIMEOUT;
    while let Some(said) = server.next_line(deadline)? {
        let event: Value = serde_json::from_str(&said).unwrap_or_default();
        if event["type"] == "metrics" {
            return Ok(event["url"].as_str().map(str::to_owned));
        }
    }
    Ok(None)
}

/// ringmill's counters at one moment, by name without `ringmill_`, each the sum over its shards.
#[derive(Debug, Default)]
pub(super) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// 0 for what is not there.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    fn read(url: &str) -> anyhow::Result<Self> {
        let host = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split('/').next())
            .with_context(|| format!("{url} is no URL of metrics"))?;
        let mut stream = TcpStream::connect(host).context("the metrics endpoint is gone")?;
        stream.set_read_timeout(Some(METRICS_TIMEOUT))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(Self::parse(&text))
    }

    /// Lines such as `ringmill_chat_messages_total{service="chat",shard="0"} 5`.
    fn parse(text: &str) -> Self {
        let mut sums = BTreeMap::new();
        for line in text.lines() {
            let Some((name, value)) = line
                .strip_prefix("ringmill_")
                .and_then(|line| line.rsplit_once(' '))
            else {
                continue;
            };
            let name = name.split('{').next().unwrap_or(name);
            if let Ok(value) = value.trim().parse::<f64>() {
                *sums.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
        Self(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_shards() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE ringmill_chat_messages counter\n\
                    ringmill_chat_messages_total{service=\"chat\",shard=\"0\"} 5\n\
                    ringmill_chat_messages_total{service=\"chat\",shard=\"1\"} 7\n\
                    process_open_fds 20\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("chat_messages_total"), 12.0);
        assert_eq!(metrics.sum("nothing"), 0.0);
        assert_eq!(metrics.0.len(), 1);
    }
}
