//! What the capacity test of TR-471 finds on paths of a known rate, delay and loss, ringmill beside
//! OB-UDPST: both ends of one kind, through ringmill's own impairment simulator and through the kernel's
//! token bucket.
//!
//! Each run makes three network namespaces in a row and removes them at its end; nothing of the host's own
//! network is touched. The bottleneck is in the middle: a queue on the sender's own host would push back
//! on its socket and never lose anything. It must never judge one program by another path than the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::drive::{TimedWindow, start_server};
use crate::host::Noise;
use crate::namespace::{Namespace, ip};
use crate::process::{Line, Running};
use crate::report::{Cell, Goal, Outcome, column, named};
use crate::rounds::{Candidate, Run, Series, interleave};
use crate::setup::Setup;

const SECONDS: f64 = 10.0;
/// The shortest test that there is.
const SECONDS_MIN: f64 = 5.0;
/// A whole table takes 25 minutes with one.
const ROUNDS: u32 = 1;
/// Of IPv4 packets.
const RATES_MBPS: [f64; 3] = [10.0, 100.0, 500.0];
/// Each way, so a round trip has twice as much.
const DELAYS_MS: [u32; 3] = [0, 20, 100];
/// Each way; control and status datagrams are lost as well.
const LOSSES_PERCENT: [f64; 3] = [0.0, 0.1, 1.0];
/// What the bottleneck's queue holds. Below the 90 ms of delay variation at which the search backs off,
/// so that it meets a full queue as loss, as on most access links.
const QUEUE_S: f64 = 0.05;
/// Without loss the maximum is the path's rate, but for so much.
const DEVIATION_PERCENT_MAX: f64 = 3.0;
/// With loss it is the other program's or better, by the same measure.
const PEER_PERCENT_MIN: f64 = 97.0;
/// Headers of IPv4 and UDP, which the simulator does not see.
const IP_UDP_BYTES: u32 = 28;
/// Up to 1 Gbit/s a row consists of IP packets of this size, and one smaller for its odd bits.
const PACKET_BYTES: f64 = 1250.0;
/// The same with the Ethernet header, as the kernel's token bucket counts it.
const FRAME_BYTES: f64 = PACKET_BYTES + 14.0;
/// What the kernel's token bucket lets through at once: it adds no more than a thousandth to the best
/// second, but for the few packets that it must hold.
const BUCKET_S: f64 = 0.001;
const BUCKET_BYTES_MIN: f64 = 4_000.0;
/// A lost datagram of the set-up or of the end leaves a client without whole results: it is run again.
const ATTEMPTS_MAX: u32 = 4;
/// A server has its socket by then.
const SERVER_START: Duration = Duration::from_millis(300);
/// From a client's start until its set-up is over, and as much before its end.
const RAMP: Duration = Duration::from_secs(1);
/// Beyond a test's own seconds.
const GRACE: Duration = Duration::from_secs(15);

/// Addresses for benchmarks (RFC 2544, appendix C.2.2).
const SERVER_IP: &str = "198.18.0.1";
const CLIENT_IP: &str = "198.19.0.1";
/// The middle's addresses towards server and client; the simulator listens at the second.
const MIDDLE_IPS: [&str; 2] = ["198.18.0.2", "198.19.0.2"];
const PORT: u16 = 24601;
/// The middle's links towards server and client.
const LINKS: [&str; 2] = ["to-server", "to-client"];
/// A search that overshoots sends jumbo datagrams: the links are never what stops it.
const MTU_BYTES: u32 = 9_000;
/// Ports that the server's namespace gives to tests: the simulator listens at all of them.
const TEST_PORTS: (u16, u16) = (40_000, 40_009);

/// What lies between the two ends.
#[derive(Debug, Clone, Copy)]
enum Path {
    Simulator { delay_ms: u32, loss_percent: f64 },
    TokenBucket,
}

/// One row of a table.
#[derive(Debug, Clone, Copy)]
struct Conditions {
    rate_mbps: f64,
    path: Path,
    /// `-d` or `-u`.
    flag: &'static str,
    seconds: f64,
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Outcome> {
    let seconds = setup.seconds(SECONDS).max(SECONDS_MIN).round();
    let mut cells = Vec::new();
    for (kind, paths) in [
        ("ringmill nat", simulated()),
        ("TBF", vec![Path::TokenBucket]),
    ] {
        for (direction, flag) in [("down", "-d"), ("up", "-u")] {
            let title = format!("through {kind}, {direction}");
            if !setup.wants_cell(&title) {
                continue;
            }
            eprintln!("capacity-paths: {title}");
            let rows: Vec<Conditions> = RATES_MBPS
                .iter()
                .flat_map(|&rate_mbps| {
                    paths.iter().map(move |&path| Conditions {
                        rate_mbps,
                        path,
                        flag,
                        seconds,
                    })
                })
                .collect();
            let candidates: Vec<_> = rows.iter().map(|row| candidate(setup, *row)).collect();
            let series = interleave(setup, setup.rounds(ROUNDS), &candidates);
            let goals = rows
                .iter()
                .filter(|row| setup.wants_candidate(&row.name()))
                .filter_map(|row| row.goal(named(&series, &row.name())?));
            let goals = goals.collect();
            cells.push(Cell {
                title,
                series,
                goals,
            });
        }
    }
    Ok(Outcome {
        scenario: "capacity-paths",
        about: "The highest rate that each program's client finds, both ends of one kind, on paths of a \
                set rate, delay and loss: search by algorithm B, 10 s, the same command line. Rates are \
                those of IPv4 packets; delay and loss are each way.",
        columns: vec![
            column("ours_max_mbps", "ringmill, maximum, Mbit/s", 1.0, 2),
            column("ours_percent", "of the path's rate, %", 1.0, 1),
            column("peer_max_mbps", "OB-UDPST, maximum, Mbit/s", 1.0, 2),
            column("peer_percent", "of the path's rate, %", 1.0, 1),
            column("ours_to_peer", "ringmill to OB-UDPST", 1.0, 3),
            column("ours_mean_mbps", "ringmill, mean", 1.0, 2),
            column("peer_mean_mbps", "OB-UDPST, mean", 1.0, 2),
            column("ours_repeats", "ringmill, runs that ended early", 1.0, 0),
            column("peer_repeats", "OB-UDPST, runs that ended early", 1.0, 0),
        ],
        best_by: ("ours_max_mbps", true),
        cells,
        notes: vec![
            format!(
                "the bottleneck's queue holds {:.0} ms of the rate and drops what comes when it is full",
                QUEUE_S * 1e3
            ),
            format!(
                "`ringmill nat` counts {IP_UDP_BYTES} bytes of headers with each datagram (`overhead`); it \
                 runs on the receiver's CPU and is the same for both programs. Rate, delay and loss are \
                 those of either direction: a delay of 100 ms is a round trip of 200 ms"
            ),
            format!(
                "TBF counts Ethernet frames: it is set to {FRAME_BYTES}/{PACKET_BYTES} of the rate, with a \
                 bucket of {:.0} ms. It is in a namespace between the two ends, because the queue of a \
                 sender's own host pushes back on its socket instead of losing anything",
                BUCKET_S * 1e3
            ),
            format!(
                "a run that ends early, by a lost datagram of its set-up or otherwise, is run again and \
                 counted; links have an MTU of {MTU_BYTES}"
            ),
            "the maximum is the sub-interval of one second with the highest rate; the mean contains the \
             climb of the search"
                .into(),
            format!(
                "goals: without loss a maximum within {DEVIATION_PERCENT_MAX} % of the rate; with loss at \
                 least {PEER_PERCENT_MIN} % of what OB-UDPST finds, or of the rate where that is less"
            ),
        ],
    })
}

fn simulated() -> Vec<Path> {
    let losses = |delay_ms| {
        LOSSES_PERCENT.map(|loss_percent| Path::Simulator {
            delay_ms,
            loss_percent,
        })
    };
    DELAYS_MS.into_iter().flat_map(losses).collect()
}

impl Conditions {
    fn name(&self) -> String {
        let rate = self.rate_mbps;
        match self.path {
            Path::Simulator {
                delay_ms,
                loss_percent,
            } => format!("{rate} Mbit/s, {delay_ms} ms, {loss_percent} % loss"),
            Path::TokenBucket => format!("{rate} Mbit/s"),
        }
    }

    fn has_loss(&self) -> bool {
        matches!(self.path, Path::Simulator { loss_percent, .. } if loss_percent > 0.0)
    }

    fn goal(&self, series: &Series) -> Option<Goal> {
        let ours = series.median("ours_max_mbps");
        let name = self.name();
        if !self.has_loss() {
            let deviation = ours.map(|ours| (ours / self.rate_mbps - 1.0).abs() * 100.0);
            return Some(Goal::at_most(
                format!("{name}: deviation of the maximum from the rate, %"),
                deviation,
                DEVIATION_PERCENT_MAX,
            ));
        }
        let peer = series.median("peer_max_mbps")?;
        let wanted = peer.min(self.rate_mbps);
        Some(Goal::at_least(
            format!("{name}: of what OB-UDPST finds, %"),
            ours.map(|ours| ours / wanted * 100.0),
            PEER_PERCENT_MIN,
        ))
    }

    fn queue_bytes(&self) -> f64 {
        self.rate_mbps * 1e6 / 8.0 * QUEUE_S
    }

    /// Whom the client asks.
    fn target(&self) -> &'static str {
        match self.path {
            Path::Simulator { .. } => MIDDLE_IPS[1],
            Path::TokenBucket => SERVER_IP,
        }
    }

    fn server(&self, program: &Line) -> Line {
        program.clone().args(&format!("-p {PORT} {SERVER_IP}"))
    }

    fn client(&self, program: &Line) -> Line {
        program.clone().args(&format!(
            "{} -t {} -f json -p {PORT} {}",
            self.flag,
            self.seconds,
            self.target()
        ))
    }

    /// The simulator, on the CPU of the receiver: sending costs both programs more.
    fn simulator(&self, setup: &Setup) -> anyhow::Result<Option<(Line, usize)>> {
        let Path::Simulator {
            delay_ms,
            loss_percent,
        } = self.path
        else {
            return Ok(None);
        };
        let cpu = match self.flag {
            "-d" => setup.load_cpu,
            _ => setup.server_cpu,
        };
        let mut impairment = format!(
            "rate={}Mbit,queue={:.0},overhead={IP_UDP_BYTES}",
            self.rate_mbps,
            self.queue_bytes()
        );
        if delay_ms > 0 {
            impairment += &format!(",delay={delay_ms}ms");
        }
        if loss_percent > 0.0 {
            impairment += &format!(",loss={loss_percent}%");
        }
        let ((first, last), ip) = (TEST_PORTS, MIDDLE_IPS[1]);
        let line = setup.ringmill()?.args(&format!(
            "nat {ip}:{PORT} {SERVER_IP}:{PORT} --listen {ip}:{first}-{last} \
             --keep-port --impair {impairment} --seed 1 --flows arrival --shards 1 --cpus {cpu} --json"
        ));
        Ok(Some((line, cpu)))
    }

    fn token_bucket(&self, link: &str) -> String {
        let bytes_per_s = self.rate_mbps * 1e6 / 8.0 * FRAME_BYTES / PACKET_BYTES;
        let bucket = (bytes_per_s * BUCKET_S).max(BUCKET_BYTES_MIN);
        format!(
            "tc qdisc replace dev {link} root tbf rate {:.0}bit burst {bucket:.0} limit {:.0}",
            bytes_per_s * 8.0,
            bytes_per_s * QUEUE_S + bucket,
        )
    }
}

fn ours(setup: &Setup) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args("udpst"))
}

fn candidate(setup: &Setup, row: Conditions) -> Candidate<'_> {
    let between = match row.simulator(setup) {
        Ok(Some((line, _))) => line.shown(),
        Ok(None) => row.token_bucket("LINK"),
        Err(error) => format!("{error:#}"),
    };
    let mut commands = vec![between];
    let peer = setup.udpst.as_ref().map(Line::new);
    for program in ours(setup).ok().iter().chain(&peer) {
        commands.extend([row.server(program).shown(), row.client(program).shown()]);
    }
    Candidate {
        name: row.name(),
        peer: false,
        commands,
        run: Box::new(move || {
            let (mut values, mut noise) = (BTreeMap::new(), Noise::default());
            let mut detail = serde_json::Map::new();
            let mut add = |program: &Line, keys: [&'static str; 4]| -> anyhow::Result<f64> {
                let Found {
                    max_mbps,
                    mean_mbps,
                    repeats,
                    noise: seen,
                    detail: said,
                } = measure(setup, program, &row)?;
                let percent = max_mbps / row.rate_mbps * 100.0;
                values.extend(
                    keys.into_iter()
                        .zip([max_mbps, percent, mean_mbps, repeats]),
                );
                noise.steal = noise.steal.max(seen.steal);
                noise.others = noise.others.max(seen.others);
                detail.insert(keys[0].split('_').next().unwrap_or_default().into(), said);
                Ok(max_mbps)
            };
            let ours = add(
                &ours(setup)?,
                [
                    "ours_max_mbps",
                    "ours_percent",
                    "ours_mean_mbps",
                    "ours_repeats",
                ],
            )?;
            if let Some(peer) = &peer {
                let peer = add(
                    peer,
                    [
                        "peer_max_mbps",
                        "peer_percent",
                        "peer_mean_mbps",
                        "peer_repeats",
                    ],
                )?;
                values.insert("ours_to_peer", ours / peer);
            }
            eprint!(
                " {ours:.2} Mbit/s, peer {:.2}",
                values.get("peer_max_mbps").unwrap_or(&0.0)
            );
            Ok(Run {
                values,
                noise,
                detail: Value::Object(detail),
            })
        }),
    }
}

/// What one program found.
struct Found {
    max_mbps: f64,
    mean_mbps: f64,
    /// Runs before it that ended early.
    repeats: f64,
    noise: Noise,
    detail: Value,
}

fn measure(setup: &Setup, program: &Line, row: &Conditions) -> anyhow::Result<Found> {
    let mut failures = Vec::new();
    for attempt in 0..ATTEMPTS_MAX {
        let network = Network::make(row)?;
        let (noise, report, simulator) = match test(setup, program, row, &network) {
            Ok(done) => done,
            Err(error) => {
                failures.push(format!("{error:#}"));
                continue;
            }
        };
        let output = &report["Output"];
        let figure = |value: &Value| value.as_f64().context("a report without a rate");
        let each = |key: &str| -> Vec<Value> {
            let seconds = output["IncrementalResult"].as_array();
            seconds
                .into_iter()
                .flatten()
                .map(|next| next[key].clone())
                .collect()
        };
        return Ok(Found {
            max_mbps: figure(&output["AtMax"]["MaxIPLayerCapacity"])?,
            mean_mbps: figure(&output["Summary"]["IPLayerCapacitySummary"])?,
            repeats: f64::from(attempt),
            noise,
            detail: json!({
                "mbps": each("IPLayerCapacity"),
                "lost": each("LossCount"),
                "rtt_max_s": each("RTTMax"),
                "summary": output["Summary"],
                "exit": report["ErrorStatus"],
                "failures": failures,
                "simulator": simulator,
            }),
        });
    }
    bail!(
        "no result in {ATTEMPTS_MAX} runs: {}",
        failures.last().map_or("", String::as_str)
    )
}

/// One test on a fresh path: noise, the client's report, and what the simulator counted.
fn test(
    setup: &Setup,
    program: &Line,
    row: &Conditions,
    network: &Network,
) -> anyhow::Result<(Noise, Value, Value)> {
    let server = network
        .server
        .start(&row.server(program), setup.server_cpu)?;
    let simulator = match row.simulator(setup)? {
        Some((line, cpu)) => Some(
            start_server(&network.middle.inside(&line), "udp", cpu)
                .context("the simulator does not start")?
                .0,
        ),
        None => None,
    };
    std::thread::sleep(SERVER_START);
    let client = network.client.start(&row.client(program), setup.load_cpu)?;
    std::thread::sleep(RAMP);
    let beside: Vec<u32> = simulator
        .iter()
        .chain([&client])
        .map(Running::pid)
        .collect();
    let window = TimedWindow::beside(setup, &server, &beside)?;
    std::thread::sleep(Duration::from_secs_f64(row.seconds).saturating_sub(RAMP * 2));
    let noise = window.finish();
    // Not `finish`: a warning is an exit status of its own, and no failure.
    let deadline = Instant::now() + RAMP + GRACE;
    let mut said = String::new();
    while let Some(line) = client.next_line(deadline)? {
        said += &line;
    }
    let report: Value = serde_json::from_str(&said)
        .with_context(|| format!("a report is no JSON{}", client.complaint()))?;
    let sub_intervals = report["Output"]["IncrementalResult"].as_array();
    ensure!(
        sub_intervals.is_some_and(|all| all.len() as f64 >= row.seconds),
        "`{}` did not take its time: {} {} {}",
        client.name(),
        report["ErrorStatus"],
        report["ErrorMessage"],
        report["ErrorMessage2"]
    );
    let stopped = simulator.and_then(|simulator| simulator.stop().pop());
    let stopped: Value = stopped
        .and_then(|line| serde_json::from_str(&line).ok())
        .unwrap_or_default();
    let simulator = json!({
        "forward": stopped["forward"], "backward": stopped["backward"],
        "counters": stopped["counters"],
    });
    Ok((noise?.noise, report, simulator))
}

/// Three namespaces in a row. The links have the names of what they lead to.
struct Network {
    server: Namespace,
    middle: Namespace,
    client: Namespace,
}

impl Network {
    fn make(row: &Conditions) -> anyhow::Result<Network> {
        let namespace = |role| Namespace::add(&format!("ringmill-{role}-{}", std::process::id()));
        let network = Network {
            server: namespace("server")?,
            middle: namespace("middle")?,
            client: namespace("client")?,
        };
        let (middle, ends) = (
            &network.middle,
            [(&network.server, SERVER_IP), (&network.client, CLIENT_IP)],
        );
        middle.run("sysctl -qw net.ipv4.ip_forward=1")?;
        for (((end, address), own), link) in ends.into_iter().zip(MIDDLE_IPS).zip(LINKS) {
            ip(&format!(
                "link add name {link} netns {} type veth peer name uplink netns {}",
                middle.name(),
                end.name()
            ))?;
            for (namespace, link, address) in [(middle, link, own), (end, "uplink", address)] {
                let name = namespace.name();
                ip(&format!("-n {name} addr add {address}/24 dev {link}"))?;
                ip(&format!("-n {name} link set {link} mtu {MTU_BYTES} up"))?;
            }
            ip(&format!("-n {} route add default via {own}", end.name()))?;
            if matches!(row.path, Path::TokenBucket) {
                middle.run(&row.token_bucket(link))?;
            }
        }
        let (first, last) = TEST_PORTS;
        // Both servers take the ports of tests from the kernel.
        network
            .server
            .set("net.ipv4.ip_local_port_range", &format!("{first} {last}"))?;
        Ok(network)
    }
}
