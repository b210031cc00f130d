//! What an entry of a NAT costs: memory with many, and what is left when very many have come and gone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::drive::start_server;
use crate::host::{NoiseGauge, keyed_kb};
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

const ROUNDS: u32 = 3;
/// Bytes of user memory per entry.
const BYTES_MAX: f64 = 1024.0;
/// Memory after very many entries, as a share of what it was with the first lot gone.
const GROWTH_MAX: f64 = 1.02;
/// Entries at the two readings of the slope, and those that come and go at last.
const ENTRIES: [usize; 2] = [10_000, 50_000];
const CHURNED: usize = 1_000_000;
/// Rounds of clearing all before memory is read.
const PRIMING_ROUNDS: usize = 3;
/// Clients of one load process: its own sockets need ports too.
const CLIENTS_PER_LOAD: usize = 10_000;
/// Local addresses of the entries' sockets: one has some 28,000 ports.
const SOURCES: &str = "127.0.0.2,127.0.0.3,127.0.0.4";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory is read when it has stood still for this long.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let scale = if setup.quick { 50 } else { 1 };
    let title = format!("{} entries in one process", ENTRIES[1] / scale);
    eprintln!("nat-entries: {title}");
    let control = Path::new("nat.sock");
    let shown = [
        nat_line(setup, "127.0.0.1:PORT", control).ok(),
        load_line(setup, "127.0.0.1:PORT", "127.0.0.N", CLIENTS_PER_LOAD).ok(),
    ];
    let candidates = [Candidate {
        name: "nat uring".into(),
        peer: false,
        commands: shown.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || measure(setup, scale)),
    }];
    let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
    let goals = vec![
        Goal::at_most(
            "user bytes per entry",
            series[0].median("user_bytes"),
            BYTES_MAX,
        ),
        Goal::at_most(
            "memory after a million entries to memory before",
            series[0].median("growth"),
            GROWTH_MAX,
        ),
        Goal::at_most("entries left at the end", series[0].median("left"), 0.0),
    ];
    Ok(Outcome {
        scenario: "nat-entries",
        about: "One NAT process holds entries, each with a socket of its own, all of which have passed \
                datagrams both ways. Bytes per entry are the slope of its anonymous memory between \
                two numbers of them. Then clients come and are cleared until a million have, \
                after some rounds of it that let tables reach their size.",
        columns: vec![
            column("user_bytes", "user bytes/entry (RssAnon)", 1.0, 0).with_spread(),
            column("low_kb", "user kB with the fewer", 1.0, 0),
            column("churned", "entries created and dropped", 1.0, 0),
            column("before_kb", "user kB before that", 1.0, 0),
            column("after_kb", "user kB after", 1.0, 0),
            column("growth", "after/before", 1.0, 3),
            column("left", "entries left", 1.0, 0),
            column("created_per_s", "entries created/s", 1.0, 0),
        ],
        best_by: ("user_bytes", false),
        cells: vec![Cell {
            title,
            series,
            goals,
        }],
        notes: vec![
            "the clients are loads of 10,000 flows each, from an address of their own".into(),
        ],
    })
}

fn nat_line(setup: &Setup, to: &str, control: &Path) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args(&format!(
        "nat 127.0.0.1:0 {to} --sources {SOURCES} -n 60000 --entry-timeout 1h --cpus {} --json \
         --control unix:{}",
        setup.server_cpu,
        control.display()
    )))
}

fn load_line(setup: &Setup, to: &str, source: &str, clients: usize) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args(&format!(
        "load echo udp://{to} --sources {source} --connections {clients} --rate {clients}/s --warmup 0 \
         --duration 1h --shards 1 --cpus {} --json",
        setup.load_cpu
    )))
}

/// The NAT under measurement.
struct Nat {
    running: Running,
    address: String,
    control: BufReader<UnixStream>,
    _folder: PathBuf,
}

impl Nat {
    fn ask(&mut self, word: &str) -> anyhow::Result<Value> {
        writeln!(self.control.get_mut(), "{word}")?;
        let mut line = String::new();
        self.control.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        if answer["ok"] != true {
            bail!("'{word}' was answered {answer}");
        }
        Ok(answer)
    }

    fn entries(&mut self) -> anyhow::Result<usize> {
        let info = self.ask("info")?;
        info["entries"]
            .as_u64()
            .map(|entries| entries as usize)
            .context("info has no entries")
    }

    fn wait_for(&mut self, entries: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let now = self.entries()?;
            if now >= entries {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{now} entries, {entries} were expected");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn memory_kb(&self) -> anyhow::Result<u64> {
        std::thread::sleep(SETTLE);
        let path = format!("/proc/{}/status", self.running.pid());
        keyed_kb(&path, "RssAnon").with_context(|| format!("{path} has no RssAnon"))
    }
}

fn measure(setup: &Setup, scale: usize) -> anyhow::Result<Run> {
    let echo = setup.ringmill()?.args(&format!(
        "serve echo udp://127.0.0.1:0 --shards 1 --cpus {} --json",
        setup.load_cpu
    ));
    let (echo, to) = start_server(&echo, "udp", setup.load_cpu)?;
    let folder = std::env::temp_dir();
    let path = folder.join(format!("ringmill-bench-{}.sock", std::process::id()));
    let (running, address) = start_server(&nat_line(setup, &to, &path)?, "udp", setup.server_cpu)?;
    let control = UnixStream::connect(&path).context("the NAT takes no commands")?;
    let mut nat = Nat {
        running,
        address,
        control: BufReader::new(control),
        _folder: path,
    };
    let clients = CLIENTS_PER_LOAD / scale;
    let mut loads = Vec::new();
    let mut readings = Vec::new();
    for entries in ENTRIES.map(|entries| entries / scale) {
        while loads.len() * clients < entries {
            let source = format!("127.0.1.{}", loads.len() + 1);
            let line = load_line(setup, &nat.address, &source, clients)?;
            loads.push(Running::start(&line, setup.load_cpu)?);
            nat.wait_for(loads.len() * clients)?;
        }
        readings.push(nat.memory_kb()?);
    }
    let pids: Vec<u32> = loads
        .iter()
        .chain([&nat.running, &echo])
        .map(Running::pid)
        .collect();
    let gauge = NoiseGauge::start(setup.cpus(), &pids);
    std::thread::sleep(Duration::from_secs(1));
    let noise = gauge.finish();
    // The loads go on, so entries that are cleared come again at once.
    let more = (ENTRIES[1] - ENTRIES[0]) / scale;
    let user_bytes = (readings[1] as f64 - readings[0] as f64) * 1024.0 / more as f64;
    let created = |nat: &mut Nat| -> anyhow::Result<usize> {
        let info = nat.ask("info")?;
        let created = info["counters"]["entries_created"].as_u64();
        Ok(created.context("no entries_created")? as usize)
    };
    // Tables and queues reach their size in the first rounds: no leak.
    for _ in 0..PRIMING_ROUNDS {
        nat.ask("clear")?;
        nat.wait_for(ENTRIES[1] / scale)?;
    }
    let before_kb = nat.memory_kb()?;
    let begun = Instant::now();
    let first = created(&mut nat)?;
    let mut churned = 0;
    while churned < CHURNED / scale {
        nat.ask("clear")?;
        nat.wait_for(ENTRIES[1] / scale)?;
        churned = created(&mut nat)? - first;
    }
    let created_per_s = churned as f64 / begun.elapsed().as_secs_f64();
    let after_kb = nat.memory_kb()?;
    for load in loads {
        load.stop();
    }
    nat.ask("clear")?;
    let left = nat.entries()?;
    let info = nat.ask("info")?;
    nat.running.stop();
    echo.stop();
    Ok(Run {
        values: BTreeMap::from([
            ("user_bytes", user_bytes),
            ("low_kb", readings[0] as f64),
            ("churned", churned as f64),
            ("before_kb", before_kb as f64),
            ("after_kb", after_kb as f64),
            ("growth", after_kb as f64 / before_kb as f64),
            ("left", left as f64),
            ("created_per_s", created_per_s),
        ]),
        noise,
        detail: json!({ "info": info }),
    })
}
