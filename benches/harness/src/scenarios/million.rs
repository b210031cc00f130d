//! A million TCP connections, both ends on this host: opened, held and checked by one command, beside
//! the rate at which bare loops open connections here.
//!
//! Both run in a network namespace of their own, where the limits of each namespace (ports, listen
//! queues) are raised; the host's settings are never changed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::host::{Noise, NoiseGauge, children};
use crate::namespace::Namespace;
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named};
use crate::rounds::{Candidate, OTHERS_SHARE_MAX, Run, STEAL_SHARE_MAX, interleave};
use crate::setup::Setup;

const ROUNDS: u32 = 1;
const CONNECTIONS: u64 = 1_000_000;
const HOLD_S: f64 = 600.0;
/// Keep-traffic.
const MESSAGES_PER_S: f64 = 20_000.0;
const USER_BYTES_MAX: f64 = 128.0;
const OPEN_RATE_MIN: f64 = 30_000.0;
/// Slower than this it is not worth waiting for.
const OPEN_RATE_PATIENCE: f64 = 1_500.0;
/// Beyond opening and holding: starting, closing, the report.
const GRACE: Duration = Duration::from_secs(180);

/// What each network namespace has of its own, and what both candidates need here.
const SYSCTLS: [(&str, &str); 4] = [
    ("net.ipv4.ip_local_port_range", "1024 65535"),
    ("net.core.somaxconn", "65535"),
    ("net.ipv4.tcp_max_syn_backlog", "262144"),
    ("net.ipv4.tcp_syncookies", "0"),
];

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let quick = setup.quick;
    let connections = setup
        .connections
        .unwrap_or(if quick { 5_000 } else { CONNECTIONS });
    let hold_s = setup.hold.unwrap_or(if quick { 3.0 } else { HOLD_S });
    let rate = if quick { 500.0 } else { MESSAGES_PER_S };
    let title = format!("{connections} connections, {rate} messages/s for {hold_s} s");
    eprintln!("million: {title}");
    let soak = move || soak_line(setup, connections, hold_s, rate);
    let bare = move || -> anyhow::Result<Line> {
        Ok(setup.peer("peer-connect-bare")?.args(&format!(
            "--connections {connections} --accept-cpu {} --connect-cpu {}",
            setup.server_cpu, setup.load_cpu
        )))
    };
    let candidates = [
        // First: memory that the kernel keeps from closed connections would hide what new ones cost.
        Candidate {
            name: "ringmill soak".into(),
            peer: false,
            commands: soak().ok().iter().map(Line::shown).collect(),
            run: Box::new(move || measure_soak(setup, &soak()?, connections, hold_s)),
        },
        Candidate {
            name: "bare connect/accept".into(),
            peer: true,
            commands: bare().ok().iter().map(Line::shown).collect(),
            run: Box::new(move || measure_bare(setup, &bare()?)),
        },
    ];
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let ours = named(&series, "ringmill soak");
    let figure = |key: &str| ours.and_then(|ours| ours.median(key));
    let goals = vec![
        Goal::at_least(
            "live at once through the whole hold",
            figure("live_min"),
            connections as f64,
        ),
        Goal::at_most("connections ended against our will", figure("lost"), 0.0),
        Goal::at_most("connects that failed", figure("failed"), 0.0),
        Goal::at_most("wrong bytes", figure("wrong_bytes"), 0.0),
        Goal::at_most("messages without an answer", figure("unanswered"), 0.0),
        Goal::at_least(
            "messages/s answered, of those asked for",
            figure("rate_share"),
            0.99,
        ),
        Goal::at_most(
            "server, user bytes per connection (slope)",
            figure("server_bytes"),
            USER_BYTES_MAX,
        ),
        Goal::at_least(
            "connections opened/s",
            figure("opened_per_s"),
            OPEN_RATE_MIN,
        ),
        Goal::at_most(
            "reasons why the soak itself says that it failed",
            figure("failures"),
            0.0,
        ),
        Goal::at_most(
            "connections left open at the server's end",
            figure("left_open"),
            0.0,
        ),
    ];
    Ok(Outcome {
        scenario: "million",
        about: "`ringmill soak --self` opens the connections as fast as they are accepted, holds them with \
                traffic of which every byte is compared, and closes them; server and client share both CPUs. \
                Beside it, two bare loops of connect and accept, each on a CPU.",
        columns: vec![
            column("opened_per_s", "connections opened/s", 1.0, 0).with_ratio(),
            column("connect_p50_ns", "connect p50, ms", 1e6, 2),
            column("connect_p99_ns", "p99, ms", 1e6, 2),
            column("connect_max_ns", "longest, ms", 1e6, 1),
            column("live_min", "fewest live", 1.0, 0),
            column("lost", "lost", 1.0, 0),
            column("wrong_bytes", "wrong bytes", 1.0, 0),
            column("messages_per_s", "messages/s", 1.0, 0),
            column("p50_ns", "response p50, ms", 1e6, 2),
            column("p99_ns", "p99, ms", 1e6, 2),
            column("server_bytes", "server, user bytes/connection", 1.0, 1),
            column("client_bytes", "client, the same", 1.0, 1),
            column("kernel_bytes", "kernel bytes/connection, both ends", 1.0, 0),
            column("server_fixed_bytes", "server, fixed MB", 1e6, 1),
            column("client_fixed_bytes", "client, fixed MB", 1e6, 1),
            column("server_growth", "server's growth, bytes/h", 1.0, 0),
            column("server_rings", "server's rings", 1.0, 0),
        ],
        best_by: ("opened_per_s", true),
        cells: vec![Cell {
            title,
            series,
            goals,
        }],
        notes: vec![
            format!(
                "in a network namespace with {}",
                SYSCTLS.map(|(name, value)| format!("{name} = {value}")).join(", ")
            ),
            "the bare loops keep as many connections as a process may have files and reset the oldest for \
             each new one, so theirs is also the cost of closing; ringmill's keep them all"
                .into(),
            "bytes per connection are the slope between half and all of the connections; what is there \
             without a connection is fixed: rings, buffers, the program"
                .into(),
            "noise is that of the opening: the only figures that it bends are those of time".into(),
        ],
    })
}

fn soak_line(setup: &Setup, connections: u64, hold_s: f64, rate: f64) -> anyhow::Result<Line> {
    let open_rate = setup
        .open_rate
        .map_or_else(|| "max".to_owned(), |rate| rate.to_string());
    let patience_s = (connections as f64 / OPEN_RATE_PATIENCE).max(30.0);
    Ok(setup.ringmill()?.args(&format!(
        "soak --self --connections {connections} --open-rate {open_rate} --open-timeout {patience_s:.0}s \
         --rate {rate} --hold {hold_s:.0}s --json"
    )))
}

fn namespace() -> anyhow::Result<Namespace> {
    let namespace = Namespace::with_loopback("million")?;
    for (name, value) in SYSCTLS {
        namespace.set(name, value)?;
    }
    Ok(namespace)
}

/// Starts a command that has both CPUs and gives them to its processes itself.
pub(super) fn start_on_both(
    setup: &Setup,
    namespace: &Namespace,
    line: &Line,
) -> anyhow::Result<Running> {
    let [server, load] = setup.cpus();
    let both = Line::new("taskset").args(&format!("-c {server},{load}"));
    Running::start(&both.joined(&namespace.inside(line)), setup.load_cpu)
}

fn measure_bare(setup: &Setup, line: &Line) -> anyhow::Result<Run> {
    let namespace = namespace()?;
    let running = start_on_both(setup, &namespace, line)?;
    // Its second process appears at once.
    std::thread::sleep(Duration::from_millis(200));
    let mut own = children(running.pid());
    own.push(running.pid());
    let gauge = NoiseGauge::start(setup.cpus(), &own);
    let deadline = Instant::now() + Duration::from_secs(300);
    let mut report = Value::Null;
    while let Some(said) = running.next_line(deadline)? {
        report = serde_json::from_str(&said).unwrap_or_default();
    }
    let noise = gauge.finish();
    let rate = report["connections_per_s"].as_f64();
    let rate = rate.with_context(|| format!("no report{}", running.complaint()))?;
    Ok(Run {
        values: BTreeMap::from([("opened_per_s", rate)]),
        noise,
        detail: report,
    })
}

fn measure_soak(setup: &Setup, line: &Line, connections: u64, hold_s: f64) -> anyhow::Result<Run> {
    let namespace = namespace()?;
    let running = start_on_both(setup, &namespace, line)?;
    let deadline = Instant::now()
        + Duration::from_secs_f64(hold_s + connections as f64 / OPEN_RATE_PATIENCE)
        + GRACE;
    let (mut gauge, mut noise) = (None, None);
    let report = loop {
        let Some(said) = running.next_line(deadline)? else {
            bail!(
                "`{}` ended without a report{}",
                line.shown(),
                running.complaint()
            );
        };
        let event: Value = serde_json::from_str(&said).unwrap_or_default();
        match (event["type"].as_str(), event["phase"].as_str()) {
            (Some("interval"), Some("opening")) if gauge.is_none() => {
                let mut own = children(running.pid());
                own.push(running.pid());
                gauge = Some(NoiseGauge::start(setup.cpus(), &own));
            }
            (Some("interval"), Some("opened" | "held")) if noise.is_none() => {
                let seen = gauge
                    .as_ref()
                    .map_or_else(Noise::default, NoiseGauge::finish);
                noise = Some(seen);
                // Its opening will be thrown away: the hold is not worth its minutes.
                if !setup.quick && (seen.steal > STEAL_SHARE_MAX || seen.others > OTHERS_SHARE_MAX)
                {
                    return Ok(Run {
                        values: BTreeMap::new(),
                        noise: seen,
                        detail: event,
                    });
                }
            }
            (Some("report"), _) => break event,
            _ => {}
        }
    };
    let at = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let need = |path: &str| at(path).with_context(|| format!("the report has no {path}"));
    let asked = need("/settings/rate")?;
    let mut values = BTreeMap::from([
        ("opened_per_s", need("/opening/per_s")?),
        ("live_min", need("/hold/live_min")?),
        ("lost", need("/connections/lost")?),
        ("failed", need("/connections/failed")?),
        ("wrong_bytes", need("/hold/wrong_bytes")?),
        ("unanswered", need("/hold/unanswered")?),
        ("messages_per_s", need("/hold/messages_per_s")?),
        ("rate_share", need("/hold/messages_per_s")? / asked),
        ("left_open", need("/server/left_open")?),
        ("server_rings", need("/server/shards")?),
        (
            "failures",
            report["failures"].as_array().map_or(0, Vec::len) as f64,
        ),
    ]);
    // Not measured where there are too few connections or seconds.
    let more = [
        ("connect_p50_ns", "/opening/connect_time/p50_ns"),
        ("connect_p99_ns", "/opening/connect_time/p99_ns"),
        ("connect_max_ns", "/opening/connect_time/max_ns"),
        ("p50_ns", "/hold/response_time/p50_ns"),
        ("p99_ns", "/hold/response_time/p99_ns"),
        ("server_bytes", "/memory/server/per_connection_bytes"),
        ("client_bytes", "/memory/client/per_connection_bytes"),
        ("kernel_bytes", "/memory/kernel/per_connection_bytes"),
        ("server_fixed_bytes", "/memory/server/fixed_bytes"),
        ("client_fixed_bytes", "/memory/client/fixed_bytes"),
        ("server_growth", "/memory/server/growth_bytes_per_hour"),
    ];
    values.extend(
        more.into_iter()
            .filter_map(|(key, path)| Some((key, at(path)?))),
    );
    Ok(Run {
        values,
        noise: noise.unwrap_or_default(),
        detail: report,
    })
}
