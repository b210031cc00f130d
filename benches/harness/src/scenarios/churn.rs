//! Ten million TCP connections opened and closed, once by RST and once by FIN, and what they leave
//! behind: descriptors, memory, wake-ups of an idle server.
//!
//! The server is one process that lives through it, so that it is compared with itself: idle after a
//! first short churn that lets tables and pools reach their size, and idle after the long one. The
//! client is one process from its first connection to its last, compared early and late in its hold.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::drive::start_servers;
use crate::host::{keyed_kb, open_descriptors};
use crate::namespace::Namespace;
use crate::process::Line;
use crate::report::{Cell, Goal, Outcome, column};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

const CHURNED: u64 = 10_000_000;
/// Closed and opened per second.
const RATE: u64 = 20_000;
/// Connections held meanwhile.
const HELD: usize = 10_000;
/// The server's endpoints: ports for the FIN way, whose connections keep theirs for a minute.
const ENDPOINTS: usize = 4;
const SOURCES: &str = "127.1.0.0/16";
/// The churn before the first reading, of the whole.
const PRIMING_SHARE: f64 = 0.1;
/// After it the client's own early reading is taken, of its hold.
const EARLY_SHARE: f64 = 0.2;
/// The client's late reading is the last one before this end of its hold.
const LATE_S: f64 = 3.0;
/// Memory of the server after, to before. A byte for each connection would be far more: 10 MB.
const GROWTH_MAX: f64 = 1.02;
/// Wake-ups per second of an idle server beyond those before.
const WAKE_UPS_MAX: f64 = 1.0;
/// The server is idle for so long before a reading, and during it.
const SETTLE: Duration = Duration::from_secs(3);
/// Looks at a busy ring before it is given up.
const FDINFO_TRIES: usize = 200;
const FDINFO_PAUSE: Duration = Duration::from_millis(3);
const GRACE: Duration = Duration::from_secs(120);

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let quick = setup.quick;
    let churned = setup
        .connections
        .unwrap_or(if quick { 4_000 } else { CHURNED });
    let rate = setup.open_rate.unwrap_or(if quick { 1_000 } else { RATE });
    let held = if quick { 500 } else { HELD };
    let mut cells = Vec::new();
    for (close, words) in [("rst", "RST"), ("fin", "FIN")] {
        let title = format!("{churned} connections closed by {words} of the client, {rate}/s");
        if !setup.wants_cell(&title) {
            continue;
        }
        eprintln!("churn: {title}");
        let plan = Plan {
            close,
            churned,
            rate,
            held,
        };
        let lines = [
            plan.server(setup),
            plan.client(setup, &["127.0.0.1:PORT".to_owned()], plan.seconds()),
        ];
        let candidates = [Candidate {
            name: "ringmill".into(),
            peer: false,
            commands: lines.iter().flatten().map(Line::shown).collect(),
            run: Box::new(move || plan.measure(setup)),
        }];
        let series = interleave(setup, setup.rounds(1), &candidates);
        let figure = |key: &str| series[0].median(key);
        let goals = vec![
            Goal::at_least(
                "connections opened and closed",
                figure("churned"),
                churned as f64,
            ),
            Goal::at_most("connections ended against our will", figure("lost"), 0.0),
            Goal::at_most("wrong bytes", figure("wrong_bytes"), 0.0),
            Goal::at_most(
                "server: descriptors more than before",
                figure("server_files_more"),
                0.0,
            ),
            Goal::at_most(
                "server: connections more than before",
                figure("server_direct_more"),
                0.0,
            ),
            Goal::at_most(
                "server: memory after/before",
                figure("server_growth"),
                GROWTH_MAX,
            ),
            Goal::at_most(
                "server: wake-ups/s when idle, more than before",
                figure("wake_ups_more"),
                WAKE_UPS_MAX,
            ),
            Goal::at_most(
                "client: connections in its rings more than early in the hold",
                figure("client_direct_more"),
                // Some are on their way at either moment; a leak would be one for each churned.
                held as f64 / 10.0,
            ),
            Goal::at_most(
                "client: memory late/early",
                figure("client_growth"),
                GROWTH_MAX,
            ),
        ];
        cells.push(Cell {
            title,
            series,
            goals,
        });
    }
    Ok(Outcome {
        scenario: "churn",
        about: "`ringmill soak --churn` closes connections and opens them again at a fixed rate. The server, \
                one process through it all, is read when it is idle after a first tenth of the churn, and \
                again after the whole; the client early and late in its hold.",
        columns: vec![
            column("churned", "opened and closed", 1.0, 0),
            column("churned_per_s", "per second", 1.0, 0),
            column("churn_missed", "due and not done", 1.0, 0),
            column("lost", "lost", 1.0, 0),
            column("time_wait", "TIME_WAIT at the end", 1.0, 0),
            column("server_before_kb", "server kB before", 1.0, 0),
            column("server_after_kb", "after", 1.0, 0),
            column("server_files", "server's files after", 1.0, 0),
            column("server_files_more", "more than before", 1.0, 0),
            column("server_direct", "connections in its rings after", 1.0, 0),
            column("wake_ups_before", "idle wake-ups/s before", 1.0, 1),
            column("wake_ups_after", "after", 1.0, 1),
            column("client_early_kb", "client kB early", 1.0, 0),
            column("client_late_kb", "late", 1.0, 0),
            column("client_direct_early", "client's connections early", 1.0, 0),
            column("client_direct_late", "late", 1.0, 0),
        ],
        best_by: ("server_growth", false),
        cells,
        notes: vec![
            "in a network namespace of its own, with every port from 1024 on".into(),
            "connections are slots in the tables of the rings as the kernel lists them (/proc/PID/fdinfo); \
             memory is RssAnon"
                .into(),
            "timers that are left over would wake an idle server: its voluntary context switches are \
             counted for three seconds before and after"
                .into(),
            "closing by FIN leaves the client's end in TIME_WAIT; when that table is full the kernel forgets \
             connections early, which the soak names (TCPTimeWaitOverflow)"
                .into(),
        ],
    })
}

#[derive(Clone, Copy)]
struct Plan {
    close: &'static str,
    churned: u64,
    rate: u64,
    held: usize,
}

/// The server at one moment, idle.
struct Idle {
    files: usize,
    direct: usize,
    kb: u64,
    wake_ups_per_s: f64,
}

impl Idle {
    fn take(pid: u32) -> anyhow::Result<Idle> {
        std::thread::sleep(SETTLE);
        let before = wake_ups(pid)?;
        let begun = Instant::now();
        std::thread::sleep(SETTLE);
        let wake_ups_per_s = (wake_ups(pid)? - before) as f64 / begun.elapsed().as_secs_f64();
        let (files, direct) = open_descriptors(pid)?;
        Ok(Idle {
            files,
            direct,
            kb: memory_kb(pid)?,
            wake_ups_per_s,
        })
    }
}

fn memory_kb(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    keyed_kb(&path, "RssAnon").with_context(|| format!("{path} has no RssAnon"))
}

/// Voluntary context switches of all threads so far.
fn wake_ups(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let text = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        sum += text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .and_then(|rest| rest.trim().parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(sum)
}

/// The client at one moment of its hold.
#[derive(Clone, Copy)]
struct Held {
    direct: usize,
    kb: u64,
}

impl Held {
    fn take(pid: u32) -> anyhow::Result<Held> {
        // The kernel leaves the table of a ring out while the ring is at work.
        for _ in 0..FDINFO_TRIES {
            let direct = open_descriptors(pid)?.1;
            if direct > 0 {
                let kb = memory_kb(pid)?;
                return Ok(Held { direct, kb });
            }
            std::thread::sleep(FDINFO_PAUSE);
        }
        bail!(
            "the kernel does not list the connections of process {pid}: its ring is never at rest"
        )
    }
}

impl Plan {
    fn seconds(&self) -> f64 {
        // A second more: the last ones of the plan may fall behind its end by chance.
        self.churned as f64 / self.rate as f64 * 1.01 + 1.0
    }

    fn server(&self, setup: &Setup) -> anyhow::Result<Line> {
        Ok(setup.ringmill()?.args(&format!(
            "serve echo {} --shards 1 --cpus {} --max-connections {} --json",
            ["tcp://127.0.0.1:0"; ENDPOINTS].join(" "),
            setup.server_cpu,
            // Those that the client has closed may still be open here.
            self.held + self.held / 2,
        )))
    }

    fn client(&self, setup: &Setup, addresses: &[String], seconds: f64) -> anyhow::Result<Line> {
        let endpoints: Vec<String> = addresses
            .iter()
            .map(|address| format!("tcp://{address}"))
            .collect();
        Ok(setup.ringmill()?.args(&format!(
            "soak {} --connections {} --sources {SOURCES} --open-rate max --churn {} --churn-close {} \
             --hold {seconds:.0}s --rate 1000 --shards 1 --cpus {} --json",
            endpoints.join(" "),
            self.held,
            self.rate,
            self.close,
            setup.load_cpu
        )))
    }

    fn measure(&self, setup: &Setup) -> anyhow::Result<Run> {
        let namespace = Namespace::with_loopback("churn")?;
        namespace.set("net.ipv4.ip_local_port_range", "1024 65535")?;
        namespace.set("net.core.somaxconn", "65535")?;
        let (server, addresses) = start_servers(
            &namespace.inside(&self.server(setup)?),
            "tcp",
            ENDPOINTS,
            setup.server_cpu,
        )?;
        let soak = |seconds: f64| self.soak(setup, &namespace, &addresses, seconds);
        soak((self.seconds() * PRIMING_SHARE).max(2.0))?;
        let before = Idle::take(server.pid())?;
        let Soaked {
            report,
            early,
            late,
        } = soak(self.seconds())?;
        let after = Idle::take(server.pid())?;
        server.stop();
        let need = |path: &str| {
            let value = report.pointer(path).and_then(Value::as_f64);
            value.with_context(|| format!("the report has no {path}"))
        };
        let churned = need("/connections/churned")?;
        let more = |late: usize, early: usize| late as f64 - early as f64;
        let mut values = BTreeMap::from([
            ("churned", churned),
            ("churned_per_s", churned / need("/hold/duration_s")?),
            ("churn_missed", need("/connections/churn_missed")?),
            ("lost", need("/connections/lost")?),
            ("wrong_bytes", need("/hold/wrong_bytes")?),
            ("server_before_kb", before.kb as f64),
            ("server_after_kb", after.kb as f64),
            ("server_growth", after.kb as f64 / before.kb as f64),
            ("server_files", after.files as f64),
            ("server_files_more", more(after.files, before.files)),
            ("server_direct", after.direct as f64),
            ("server_direct_more", more(after.direct, before.direct)),
            ("wake_ups_before", before.wake_ups_per_s),
            ("wake_ups_after", after.wake_ups_per_s),
            (
                "wake_ups_more",
                after.wake_ups_per_s - before.wake_ups_per_s,
            ),
            ("client_early_kb", early.kb as f64),
            ("client_late_kb", late.kb as f64),
            ("client_growth", late.kb as f64 / early.kb as f64),
            ("client_direct_early", early.direct as f64),
            ("client_direct_late", late.direct as f64),
            ("client_direct_more", more(late.direct, early.direct)),
        ]);
        let time_wait = report.pointer("/connections/time_wait");
        values.extend(
            time_wait
                .and_then(Value::as_f64)
                .map(|count| ("time_wait", count)),
        );
        // No noise: nothing here is a figure of time that it would bend.
        Ok(Run {
            values,
            detail: json!({"report": report}),
            ..Run::default()
        })
    }

    fn soak(
        &self,
        setup: &Setup,
        namespace: &Namespace,
        addresses: &[String],
        seconds: f64,
    ) -> anyhow::Result<Soaked> {
        let line = self.client(setup, addresses, seconds)?;
        let client = namespace.start(&line, setup.load_cpu)?;
        let deadline = Instant::now() + Duration::from_secs_f64(seconds) + GRACE;
        let (mut early, mut late) = (None, None);
        while let Some(said) = client.next_line(deadline)? {
            let event: Value = serde_json::from_str(&said).unwrap_or_default();
            if event["phase"] == "held" {
                let left_s = event["left_s"].as_f64().unwrap_or(0.0);
                // Late: while it still holds them.
                let is_early = left_s <= seconds * (1.0 - EARLY_SHARE) && early.is_none();
                if is_early || (left_s > 0.5 && left_s <= LATE_S) {
                    let held = Held::take(client.pid())?;
                    early.get_or_insert(held);
                    late = Some(held);
                }
            }
            if event["type"] == "report" {
                let (early, late) = early.zip(late).context("the hold was too short to look")?;
                let found = event["connections"]["churned"].as_u64().unwrap_or(0);
                ensure!(found > 0, "nothing was churned: {}", event["failures"]);
                return Ok(Soaked {
                    report: event,
                    early,
                    late,
                });
            }
        }
        bail!(
            "`{}` ended without a report{}",
            line.shown(),
            client.complaint()
        )
    }
}

/// What one soak came to.
struct Soaked {
    report: Value,
    early: Held,
    late: Held,
}
