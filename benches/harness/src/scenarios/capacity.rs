//! The capacity test of TR-471 over loopback: how exactly a rate is kept, how high it comes, and how
//! many tests one server holds. ringmill is run by the command line of OB-UDPST, so that both get the
//! same one; OB-UDPST itself is no part of this workspace and is named by `--udpst`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::drive::TimedWindow;
use crate::host::{CpuTime, cpu_time};
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named, ratio};
use crate::rounds::{Candidate, Run, interleave};
use crate::setup::Setup;

use super::DRIVERS;
use super::udp_oneway::free_port;

const ROUNDS: u32 = 3;
const SECONDS: f64 = 10.0;
/// The shortest test that there is.
const SECONDS_MIN: f64 = 5.0;
/// Rows of the sending rate table, and their rates on layer 3 in Mbit/s.
const ROWS: [(u32, f64); 5] = [
    (10, 10.0),
    (100, 100.0),
    (500, 500.0),
    (1000, 1000.0),
    (1062, 7200.0),
];
const DEVIATION_PERCENT_MAX: f64 = 0.5;
const SINGLE_RATIO_MIN: f64 = 1.5;
const SINGLE_CPU_RATIO_MAX: f64 = 0.7;
const CONNECTIONS: [usize; 3] = [2, 4, 8];
const CONNECTIONS_RATIO_MIN: f64 = 1.3;
/// Tests at once, and the row of each.
const MANY: usize = 200;
const MANY_ROW: u32 = 10;
const MANY_DEVIATION_PERCENT_MAX: f64 = 1.0;
const MANY_CPU_RATIO_MAX: f64 = 0.5;
/// Connections of one client process.
const CLIENT_CONNECTIONS_MAX: usize = 24;
const IDLE_PERCENT_MAX: f64 = 0.5;
/// A server has its socket by then.
const SERVER_START: Duration = Duration::from_millis(500);
/// From a client's start until its rate is steady, and as much before its end.
const RAMP: Duration = Duration::from_millis(1500);
/// Beyond a test's own seconds.
const GRACE: Duration = Duration::from_secs(30);

const PEER: &str = "OB-UDPST";

/// Which of the two, with ringmill's driver.
#[derive(Clone, Copy)]
enum Program<'a> {
    Ringmill(&'a str),
    Peer,
}

impl Program<'_> {
    fn name(self) -> String {
        match self {
            Self::Ringmill(driver) => format!("ringmill {driver}"),
            Self::Peer => PEER.into(),
        }
    }

    fn line(self, setup: &Setup) -> anyhow::Result<Line> {
        Ok(match self {
            Self::Ringmill(driver) => setup.ringmill()?.args(&format!("udpst --driver {driver}")),
            Self::Peer => Line::new(setup.udpst.as_ref().context("no --udpst was given")?),
        })
    }
}

/// What a candidate runs, and where.
#[derive(Clone)]
struct Plan {
    /// Server processes; the clients are dealt to them.
    servers: usize,
    /// Flags of every server.
    server_flags: String,
    /// Flags of each client process.
    clients: Vec<String>,
    /// Processes may use both CPUs.
    both_cpus: bool,
    seconds: f64,
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS).max(SECONDS_MIN).round();
    let programs: Vec<Program<'_>> = DRIVERS
        .map(Program::Ringmill)
        .into_iter()
        .chain(setup.udpst.as_ref().map(|_| Program::Peer))
        .collect();
    let mut cells = Vec::new();
    let mut cell = |title: String,
                    plan: &dyn Fn(Program<'_>) -> Plan,
                    goals: &dyn Fn(&[crate::rounds::Series]) -> Vec<Goal>| {
        if !setup.wants_cell(&title) {
            return;
        }
        eprintln!("capacity: {title}");
        let candidates: Vec<_> = programs
            .iter()
            .map(|program| candidate(setup, *program, plan(*program)))
            .collect();
        let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
        let goals = goals(&series);
        cells.push(Cell {
            title,
            series,
            goals,
        });
    };
    let single = |flags: String| {
        move |_: Program<'_>| Plan {
            servers: 1,
            server_flags: String::new(),
            clients: vec![flags.clone()],
            both_cpus: false,
            seconds,
        }
    };
    for (row, mbps) in ROWS {
        for direction in ["down", "up"] {
            let flag = &direction[..1];
            cell(
                format!("row {row}, {mbps} Mbit/s, {direction}"),
                &single(format!("-{flag} -I {row}")),
                &|series| {
                    of_drivers(|driver| {
                        let ours = named(series, &format!("ringmill {driver}"));
                        let found = ours.and_then(|ours| ours.median("mbps"));
                        let deviation = found.map(|found| (found / mbps - 1.0).abs() * 100.0);
                        vec![Goal::at_most(
                            format!("{driver}, deviation of the rate, %"),
                            deviation,
                            DEVIATION_PERCENT_MAX,
                        )]
                    })
                },
            );
        }
    }
    for sizes in ["", "-j"] {
        for direction in ["down", "up"] {
            let flag = &direction[..1];
            let words = if sizes.is_empty() { "jumbo" } else { sizes };
            let flags = format!("-{flag} -A C {sizes}");
            cell(
                format!("highest rate, one flow, {words}, {direction}"),
                &|program| Plan {
                    server_flags: sizes.into(),
                    ..single(flags.clone())(program)
                },
                &|series| {
                    of_drivers(|driver| {
                        let ours = named(series, &format!("ringmill {driver}"));
                        let peer = named(series, PEER);
                        let text = |what| format!("{driver}, {what} to {PEER}'s");
                        vec![
                            Goal::at_least(
                                text("rate"),
                                ratio(ours, peer, "mbps"),
                                SINGLE_RATIO_MIN,
                            ),
                            Goal::at_most(
                                text("CPU of both ends per Gbit"),
                                ratio(ours, peer, "cpu_s_per_gbit"),
                                SINGLE_CPU_RATIO_MAX,
                            ),
                        ]
                    })
                },
            );
        }
        for connections in CONNECTIONS {
            let words = if sizes.is_empty() { "jumbo" } else { sizes };
            cell(
                format!("{connections} connections, {words}, down"),
                &|program| {
                    let flags = format!("-d -A C {sizes}");
                    let (servers, clients) = match program {
                        Program::Ringmill(_) => (1, vec![format!("{flags} -C {connections}")]),
                        Program::Peer => (connections, vec![flags; connections]),
                    };
                    Plan {
                        servers,
                        server_flags: sizes.into(),
                        clients,
                        both_cpus: true,
                        seconds,
                    }
                },
                &|series| {
                    of_drivers(|driver| {
                        let ours = named(series, &format!("ringmill {driver}"));
                        vec![Goal::at_least(
                            format!("{driver}, rate to as many processes of {PEER}"),
                            ratio(ours, named(series, PEER), "mbps"),
                            CONNECTIONS_RATIO_MIN,
                        )]
                    })
                },
            );
        }
    }
    cell(
        format!("{MANY} tests of {MANY_ROW} Mbit/s at one server, down"),
        &|_| {
            let whole = MANY / CLIENT_CONNECTIONS_MAX;
            let rest = MANY % CLIENT_CONNECTIONS_MAX;
            let counts = std::iter::repeat_n(CLIENT_CONNECTIONS_MAX, whole).chain([rest]);
            Plan {
                servers: 1,
                server_flags: String::new(),
                clients: counts
                    .map(|count| format!("-d -I {MANY_ROW} -C {count}"))
                    .collect(),
                both_cpus: false,
                seconds,
            }
        },
        &|series| {
            of_drivers(|driver| {
                let ours = named(series, &format!("ringmill {driver}"));
                let wanted = f64::from(MANY_ROW) * MANY as f64;
                let found = ours.and_then(|ours| ours.median("mbps"));
                let deviation = found.map(|found| (found / wanted - 1.0).abs() * 100.0);
                vec![
                    Goal::at_most(
                        format!("{driver}, deviation of the sum, %"),
                        deviation,
                        MANY_DEVIATION_PERCENT_MAX,
                    ),
                    Goal::at_most(
                        format!("{driver}, server CPU to {PEER}'s"),
                        ratio(ours, named(series, PEER), "server_busy"),
                        MANY_CPU_RATIO_MAX,
                    ),
                ]
            })
        },
    );
    cell(
        "idle server".into(),
        &|_| Plan {
            servers: 1,
            server_flags: String::new(),
            clients: Vec::new(),
            both_cpus: false,
            seconds,
        },
        &|series| {
            of_drivers(|driver| {
                let ours = named(series, &format!("ringmill {driver}"));
                let busy = ours.and_then(|ours| ours.median("server_busy"));
                vec![Goal::at_most(
                    format!("{driver}, CPU, %"),
                    busy.map(|busy| busy * 100.0),
                    IDLE_PERCENT_MAX,
                )]
            })
        },
    );
    Ok(Outcome {
        scenario: "capacity",
        about: "The UDP capacity test, both ends of one kind, over loopback. The rate is the mean of \
                the test on layer 3, as the client reports it: what was received.",
        columns: vec![
            column("mbps", "Mbit/s", 1.0, 2).with_ratio(),
            column("mbps_max", "highest sub-interval, Mbit/s", 1.0, 2),
            column("cpu_s_per_gbit", "CPU of both ends, s/Gbit", 1.0, 4).with_ratio(),
            column("server_busy", "servers busy, %", 0.01, 1),
            column("load_busy", "clients busy, %", 0.01, 1),
            column("delivered_percent", "delivered, %", 1.0, 2),
        ],
        best_by: ("mbps", true),
        cells,
        notes: vec![
            "one flow: the server on one CPU, the client on the other. Several connections: ringmill's \
             one server and one client may use both; of the peer there is a server and a client for \
             each connection, each pinned to one CPU in turn"
                .into(),
            "both are run by the same command line; ringmill's is `ringmill udpst`".into(),
        ],
    })
}

fn of_drivers(goals: impl Fn(&str) -> Vec<Goal>) -> Vec<Goal> {
    DRIVERS.iter().flat_map(|driver| goals(driver)).collect()
}

fn candidate<'a>(setup: &'a Setup, program: Program<'a>, plan: Plan) -> Candidate<'a> {
    let commands = match program.line(setup) {
        Ok(line) => {
            let server = line
                .clone()
                .args(&format!("{} -p PORT 127.0.0.1", plan.server_flags));
            let clients = plan
                .clients
                .iter()
                .map(|flags| client(&line, flags, plan.seconds, 0));
            let mut shown: Vec<_> = clients.map(|line| line.shown()).collect();
            shown.dedup();
            shown.insert(0, server.shown());
            shown
        }
        Err(_) => Vec::new(),
    };
    Candidate {
        name: program.name(),
        peer: matches!(program, Program::Peer),
        commands,
        run: Box::new(move || measure(setup, &program.line(setup)?, &plan)),
    }
}

fn client(line: &Line, flags: &str, seconds: f64, port: u16) -> Line {
    line.clone().args(&format!(
        "{flags} -t {seconds} -f json -s -p {port} 127.0.0.1"
    ))
}

fn measure(setup: &Setup, line: &Line, plan: &Plan) -> anyhow::Result<Run> {
    let cpus = setup.cpus();
    let start = |line: &Line, nth: usize, cpu: usize| {
        if plan.both_cpus && plan.servers == 1 {
            // Not one of them: both.
            let both = format!("-c {},{}", cpus[0], cpus[1]);
            Running::start(&Line::new("taskset").args(&both).joined(line), cpu)
        } else if plan.both_cpus {
            Running::start(line, cpus[nth % cpus.len()])
        } else {
            Running::start(line, cpu)
        }
    };
    let mut servers = Vec::new();
    for nth in 0..plan.servers {
        let port = free_port()?;
        let server = line
            .clone()
            .args(&format!("{} -p {port} 127.0.0.1", plan.server_flags));
        servers.push((start(&server, nth, setup.server_cpu)?, port));
        std::thread::sleep(SERVER_START / plan.servers as u32);
    }
    let mut clients = Vec::new();
    for (nth, flags) in plan.clients.iter().enumerate() {
        let port = servers[nth % servers.len()].1;
        // The other CPU than its server's, where there is one for each.
        clients.push(start(
            &client(line, flags, plan.seconds, port),
            nth + 1,
            setup.load_cpu,
        )?);
    }
    std::thread::sleep(RAMP);
    let others: Vec<u32> = clients
        .iter()
        .chain(servers.iter().map(|(server, _)| server))
        .map(Running::pid)
        .collect();
    let times = |pids: &[u32]| -> anyhow::Result<f64> {
        pids.iter()
            .map(|pid| cpu_time(*pid).map(|CpuTime { total_s, .. }| total_s))
            .sum()
    };
    let (client_pids, server_pids) = others.split_at(clients.len());
    let window = TimedWindow::beside(setup, &servers[0].0, &others)?;
    let (began, before) = (Instant::now(), (times(client_pids)?, times(server_pids)?));
    std::thread::sleep(Duration::from_secs_f64(plan.seconds).saturating_sub(RAMP * 2));
    let elapsed = began.elapsed().as_secs_f64();
    let after = (times(client_pids)?, times(server_pids)?);
    let noise = window.finish()?.noise;
    let deadline = Instant::now() + RAMP + GRACE;
    let (mut mbps, mut mbps_max, mut delivered) = (0.0, 0.0, 100.0_f64);
    let mut reports = Vec::new();
    for client in clients {
        let output = client.finish(deadline)?.join("\n");
        let report: Value = serde_json::from_str(&output).context("a report is no JSON")?;
        let summary = &report["Output"]["Summary"];
        let figure = |value: &Value| value.as_f64().context("a report without a rate");
        mbps += figure(&summary["IPLayerCapacitySummary"])?;
        mbps_max += figure(&report["Output"]["AtMax"]["MaxIPLayerCapacity"])?;
        delivered = delivered.min(figure(&summary["DeliveredPercent"])?);
        reports.push(summary.clone());
    }
    let (load_busy, server_busy) = (
        (after.0 - before.0) / elapsed,
        (after.1 - before.1) / elapsed,
    );
    let mut values = BTreeMap::from([("server_busy", server_busy)]);
    if !reports.is_empty() {
        ensure!(mbps > 0.0, "nothing was received");
        values.extend([
            ("mbps", mbps),
            ("mbps_max", mbps_max),
            ("load_busy", load_busy),
            ("delivered_percent", delivered),
            (
                "cpu_s_per_gbit",
                (load_busy + server_busy) / (mbps / 1000.0),
            ),
        ]);
    }
    Ok(Run {
        values,
        noise,
        detail: json!(reports),
    })
}
