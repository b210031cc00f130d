//! The scenarios, one file each, and the commands they share.

use crate::drive::{run_load, start_server};
use crate::process::Line;
use crate::report::Outcome;
use crate::rounds::{Candidate, Run};
use crate::setup::Setup;

mod capacity;
mod capacity_paths;
mod chat;
mod chat_run;
mod chat_slow_readers;
mod churn;
mod cross_shard;
mod dns_load;
mod dns_programs;
mod dns_server;
mod dns_udp;
mod dns_unbound;
mod idle_memory;
mod latency_busy_poll;
mod million;
mod multicast;
mod nat_delay;
mod nat_entries;
mod nat_forward;
mod tcp_echo;
mod udp_echo;
mod udp_oneway;
mod verify_soak;

/// Name, one line of help, and the scenario itself.
pub(crate) type Scenario = (
    &'static str,
    &'static str,
    fn(&Setup) -> anyhow::Result<Outcome>,
);

/// Every scenario, in the order of a whole run.
pub(crate) const ALL: [Scenario; 21] = [
    (
        "tcp-echo",
        "32-byte echo over TCP against four runtimes",
        tcp_echo::run,
    ),
    (
        "latency-busy-poll",
        "one connection, spinning against sleeping",
        latency_busy_poll::run,
    ),
    (
        "udp-echo",
        "datagram echo, 32 and 1222 bytes",
        udp_echo::run,
    ),
    (
        "udp-oneway",
        "datagrams one way, 1222 and 8972 bytes",
        udp_oneway::run,
    ),
    (
        "idle-memory",
        "memory of idle TCP connections",
        idle_memory::run,
    ),
    (
        "cross-shard",
        "a message between two shards",
        cross_shard::run,
    ),
    (
        "multicast",
        "32-byte messages to 1 and 100 receivers, over streams and in a UDP group",
        multicast::run,
    ),
    (
        "nat-forward",
        "datagrams through a NAT against two relays",
        nat_forward::run,
    ),
    (
        "capacity",
        "the UDP capacity test: exact rates, highest rates, many tests at once",
        capacity::run,
    ),
    (
        "capacity-paths",
        "what the capacity test finds on paths of known rate, delay and loss",
        capacity_paths::run,
    ),
    ("nat-delay", "how exactly a NAT delays", nat_delay::run),
    (
        "nat-entries",
        "memory of a NAT's entries, a million created and dropped",
        nat_entries::run,
    ),
    (
        "chat",
        "a message to 1,000 members, against two runtimes",
        chat::run,
    ),
    (
        "chat-slow-readers",
        "a tenth of the members never read",
        chat_slow_readers::run,
    ),
    (
        "verify-soak",
        "every byte checked for a minute at full load",
        verify_soak::run,
    ),
    (
        "dns-load",
        "open-loop DNS queries over TCP, against tcpscaler's client",
        dns_load::run,
    ),
    (
        "dns-udp",
        "DNS queries over UDP, lost answers counted",
        dns_udp::run,
    ),
    (
        "dns-server",
        "the echo server under DNS load, against tcpscaler's",
        dns_server::run,
    ),
    (
        "dns-unbound",
        "unbound under DNS load, every answer matched",
        dns_unbound::run,
    ),
    (
        "million",
        "a million TCP connections with traffic, and how fast they open",
        million::run,
    ),
    (
        "churn",
        "ten million TCP connections opened and closed",
        churn::run,
    ),
];

/// ringmill's drivers that have a kernel below them.
const DRIVERS: [&str; 2] = ["uring", "epoll"];

/// A duration as the command line writes it.
fn duration(seconds: f64) -> String {
    if seconds.fract() == 0.0 {
        format!("{seconds}s")
    } else {
        format!("{:.0}ms", seconds * 1e3)
    }
}

/// `ringmill serve <module> <scheme>://127.0.0.1:0` on one shard.
fn serve(setup: &Setup, module: &str, scheme: &str, driver: &str) -> anyhow::Result<Line> {
    Ok(setup.ringmill()?.args(&format!(
        "serve {module} {scheme}://127.0.0.1:0 --shards 1 --cpus {} --driver {driver} --json",
        setup.server_cpu
    )))
}

/// One of the echo peers.
fn peer_echo(setup: &Setup, name: &str, udp: bool) -> anyhow::Result<Line> {
    let line = setup
        .peer(name)?
        .args(&format!("--listen 127.0.0.1:0 --cpu {}", setup.server_cpu));
    Ok(if udp { line.args("--udp") } else { line })
}

/// The load of an echo cell.
#[derive(Clone, Copy)]
struct EchoLoad {
    scheme: &'static str,
    connections: usize,
    size: usize,
    depth: usize,
    seconds: f64,
    /// Further flags, e.g. `--no-verify`.
    extra: &'static str,
}

impl EchoLoad {
    fn line(&self, setup: &Setup, address: &str) -> anyhow::Result<Line> {
        let EchoLoad {
            scheme,
            connections,
            size,
            depth,
            seconds,
            extra,
        } = self;
        Ok(setup.ringmill()?.args(&format!(
            "load echo {scheme}://{address} --connections {connections} --size {size} \
             --depth {depth} --duration {} --warmup {} --shards 1 --cpus {} --json {extra}",
            duration(*seconds),
            duration(setup.warmup_seconds()),
            setup.load_cpu
        )))
    }

    /// A fresh server, this load, and what came out.
    fn measure(&self, setup: &Setup, server: &Line) -> anyhow::Result<Run> {
        let (server, address) = start_server(server, self.scheme, setup.server_cpu)?;
        run_load(
            setup,
            &server,
            &[],
            &self.line(setup, &address)?,
            self.seconds,
        )
    }
}

/// A candidate that is one server under this load. A server that is not built
/// fails when its turn comes, and the others go on.
fn echo_candidate<'a>(
    setup: &'a Setup,
    name: &str,
    peer: bool,
    server: anyhow::Result<Line>,
    load: EchoLoad,
) -> Candidate<'a> {
    let commands = [
        server.as_ref().ok().cloned(),
        load.line(setup, "127.0.0.1:PORT").ok(),
    ];
    Candidate {
        name: name.into(),
        peer,
        commands: commands.iter().flatten().map(Line::shown).collect(),
        run: Box::new(move || match &server {
            Ok(server) => load.measure(setup, server),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        }),
    }
}
