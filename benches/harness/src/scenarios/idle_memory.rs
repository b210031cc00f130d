//! What an idle TCP connection costs the server: the slope between two large
//! numbers of them, so that fixed costs do not blur it.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::drive::start_servers;
use crate::host::{NoiseGauge, keyed_kb, tcp_sockets};
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

const ROUNDS: u32 = 5;
/// Bytes of user memory per idle connection.
const BYTES_MAX: f64 = 128.0;
/// Connections per load process and per endpoint: fewer than the ephemeral
/// ports of one address pair (28,232 by default).
const CONNECTIONS_PER_LOAD: usize = 20_000;
/// Half of the loads are connected when the first reading is taken.
const LOADS: usize = 10;
/// The server's `--max-connections`: room above what comes.
const MAX_CONNECTIONS: usize = 250_000;
/// For one load to connect; about 21,000 a second were seen with other tools.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// Memory is read when it has stood still for this long.
const SETTLE: Duration = Duration::from_secs(2);
/// Closed connections of the last run may still be counted for this long.
const QUIET_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let per_load = if setup.quick {
        400
    } else {
        CONNECTIONS_PER_LOAD
    };
    let full = per_load * LOADS;
    let title = format!("{full} idle connections in one server process, one shard");
    eprintln!("idle-memory: {title}");
    let lines = [
        server_line(setup).ok(),
        load_line(setup, "127.0.0.N:PORT", per_load).ok(),
    ];
    let candidates = [Candidate {
        name: "ringmill uring".into(),
        peer: false,
        commands: lines.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || measure(setup, per_load)),
    }];
    // Memory does not depend on the minute: fewer rounds would do, but the
    // spread shows whether it is steady.
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let goals = vec![Goal::at_most(
        "user bytes per idle connection",
        series[0].median("user_bytes"),
        BYTES_MAX,
    )];
    Ok(Outcome {
        scenario: "idle-memory",
        about: "One server process holds idle TCP connections; its anonymous memory is read with \
                none, with half and with all of them. Bytes per connection are the slope between \
                half and all. Kernel memory is the whole machine's slab, so both ends of each \
                connection are in it.",
        columns: vec![
            column("user_bytes", "user bytes/connection (RssAnon)", 1.0, 1).with_spread(),
            column("pss_bytes", "the same (Pss_Anon)", 1.0, 1).with_spread(),
            column("fixed_kb", "user kB with none", 1.0, 0),
            column("first_half_kb", "user kB with half", 1.0, 0),
            column(
                "slab_bytes",
                "kernel slab bytes/connection, both ends",
                1.0,
                0,
            )
            .with_spread(),
        ],
        best_by: ("user_bytes", false),
        cells: vec![Cell {
            title,
            series,
            goals,
        }],
        notes: vec![
            format!("the connections come from {LOADS} loads, each to an endpoint of its own"),
            "the server may use several rings for them; what they cost shows between none and half"
                .into(),
        ],
    })
}

/// One endpoint per load, each on an address of its own.
fn server_line(setup: &Setup) -> anyhow::Result<Line> {
    let endpoints: Vec<String> = (1..=LOADS)
        .map(|number| format!("tcp://127.0.0.{number}:0"))
        .collect();
    Ok(setup.ringmill()?.args(&format!(
        "serve echo {} --shards 1 --cpus {} --driver uring --max-connections {MAX_CONNECTIONS} \
         --json",
        endpoints.join(" "),
        setup.server_cpu
    )))
}

fn load_line(setup: &Setup, address: &str, connections: usize) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args(&format!(
        "load echo tcp://{address} --connections {connections} --rate 0 --warmup 0 --duration 1h --shards 1 --cpus \
         {} --json",
        setup.load_cpu
    )))
}

/// Memory at one moment.
struct Reading {
    sockets: u64,
    rss_kb: u64,
    pss_kb: u64,
    slab_kb: u64,
}

impl Reading {
    fn take(server: u32) -> anyhow::Result<Reading> {
        let kb = |path: &str, name: &str| {
            keyed_kb(path, name).with_context(|| format!("{path} has no {name}"))
        };
        Ok(Reading {
            sockets: tcp_sockets()?,
            rss_kb: kb(&format!("/proc/{server}/status"), "RssAnon")?,
            pss_kb: kb(&format!("/proc/{server}/smaps_rollup"), "Pss_Anon")?,
            slab_kb: kb("/proc/meminfo", "Slab")?,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "tcp_sockets": self.sockets, "rss_anon_kb": self.rss_kb,
            "pss_anon_kb": self.pss_kb, "slab_kb": self.slab_kb,
        })
    }
}

fn measure(setup: &Setup, per_load: usize) -> anyhow::Result<Run> {
    let limit: u64 = fs::read_to_string("/proc/sys/fs/file-max")?
        .trim()
        .parse()?;
    let sockets_wanted = 2 * (per_load * LOADS) as u64;
    if limit < sockets_wanted {
        bail!("fs.file-max is {limit}, {sockets_wanted} sockets are needed: raise it by sysctl");
    }
    wait_until_quiet()?;
    let (server, addresses) = start_servers(&server_line(setup)?, "tcp", LOADS, setup.server_cpu)?;
    std::thread::sleep(SETTLE);
    let none = Reading::take(server.pid())?;
    let mut loads = Vec::new();
    let mut connect = |addresses: &[String]| -> anyhow::Result<Reading> {
        for address in addresses {
            let line = load_line(setup, address, per_load)?;
            let load = Running::start(&line, setup.load_cpu)?;
            wait_until_connected(&load)?;
            loads.push(load);
        }
        std::thread::sleep(SETTLE);
        let reading = Reading::take(server.pid())?;
        let held = reading.sockets.saturating_sub(none.sockets);
        let wanted = 2 * (loads.len() * per_load) as u64;
        if held < wanted {
            bail!("{held} sockets are connected, {wanted} were expected");
        }
        Ok(reading)
    };
    let half = connect(&addresses[..LOADS / 2])?;
    let all = connect(&addresses[LOADS / 2..])?;
    // Noise bends times, not memory: measured for the record over one second.
    let pids: Vec<u32> = loads
        .iter()
        .map(Running::pid)
        .chain([server.pid()])
        .collect();
    let gauge = NoiseGauge::start(setup.cpus(), &pids);
    std::thread::sleep(Duration::from_secs(1));
    let noise = gauge.finish();
    for load in loads.drain(..) {
        load.stop();
    }
    server.stop();

    let more = (per_load * (LOADS - LOADS / 2)) as f64;
    let slope = |after: u64, before: u64| (after as f64 - before as f64) * 1024.0 / more;
    Ok(Run {
        values: BTreeMap::from([
            ("user_bytes", slope(all.rss_kb, half.rss_kb)),
            ("pss_bytes", slope(all.pss_kb, half.pss_kb)),
            ("slab_bytes", slope(all.slab_kb, half.slab_kb)),
            ("fixed_kb", none.rss_kb as f64),
            ("first_half_kb", half.rss_kb as f64),
        ]),
        noise,
        detail: json!({"none": none.to_json(), "half": half.to_json(), "all": all.to_json()}),
    })
}

/// A load says `measuring` once all its connections stand.
fn wait_until_connected(load: &Running) -> anyhow::Result<()> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    while let Some(line) = load.next_line(deadline)? {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if event["type"] == "measuring" {
            return Ok(());
        }
    }
    bail!("a load ended before it was connected{}", load.complaint())
}

/// The sockets of an earlier run would count as this one's.
fn wait_until_quiet() -> anyhow::Result<()> {
    let deadline = Instant::now() + QUIET_TIMEOUT;
    let mut before = tcp_sockets()?;
    loop {
        std::thread::sleep(SETTLE);
        let now = tcp_sockets()?;
        // Equal within what other programs open and close.
        if now.abs_diff(before) <= 10 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("the number of TCP sockets does not come to rest: {before}, then {now}");
        }
        before = now;
    }
}
