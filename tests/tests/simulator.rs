//! The real services and the real load clients, on simulated networks of every kind.
//!
//! Everything about a run follows from its seed. `RINGMILL_SEEDS=N` runs more seeds,
//! `RINGMILL_SEED=S` replays one; seeds that once failed are in `tests/seeds.txt`.

#[path = "simulator/bench.rs"]
mod bench;
#[path = "simulator/chat.rs"]
mod chat;
#[path = "simulator/dns.rs"]
mod dns;
#[path = "simulator/figures.rs"]
mod figures;
#[path = "simulator/guard.rs"]
mod guard;
#[path = "simulator/liar.rs"]
mod liar;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineId, Faults, PathCounts, World, WorldConfig, seeds};
use ringmill_engine::impairment::{Impairment, mix};
use ringmill_engine::metrics::ServiceSnapshot;
use ringmill_engine::{Address, Limits, Nanos};
use ringmill_protocols::load::{Arrivals, Command, Config, FloodConfig, Phase, Published};

use bench::{
    Clients, DISCARD, DISCARD_SERVICE, DONE_WITHIN, ECHO, ECHO_SERVICE, ECHO_UNIX, Heard, Load,
    MILLI, READY_WITHIN, SECOND, STATS_LINE, STATS_SERVICE, address, small_limits, until,
};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 1000;
/// Fewer bytes than this in a datagram do not always tell its turn.
const HEADER_LEN: usize = 8;
/// A random run sends for at most this long.
const SENDING_MAX: Nanos = 200 * MILLI;
/// Bytes that a connection has out at most, so that a run takes milliseconds.
const OUT_BYTES_MAX: u64 = 128 << 10;

/// A small deterministic source of the tests' own.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % bound.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What happens in the middle of a run, `after` the start of the load.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Disturbance {
    None,
    /// The control thread ends the run early.
    Interrupt,
    StopClients,
    /// A graceful stop, and before it is over the second one that ends everything.
    StopClientsTwice,
    StopServers,
    StopServersTwice,
    KillServers,
}

const DISTURBANCES: [Disturbance; 6] = [
    Disturbance::Interrupt,
    Disturbance::StopClients,
    Disturbance::StopClientsTwice,
    Disturbance::StopServers,
    Disturbance::StopServersTwice,
    Disturbance::KillServers,
];

/// One run, all of it from a seed.
struct Plan {
    world: WorldConfig,
    load: Load,
    server_shards: u16,
    client_shards: u16,
    server_limits: Limits,
    client_limits: Limits,
    same_host: bool,
    warm_up: Nanos,
    sending: Nanos,
    disturbance: Disturbance,
    /// The disturbance comes while connections are being opened, and the start after it.
    is_early: bool,
    after: Nanos,
    then: Nanos,
}

/// No shard and no connection fails by itself.
fn without_failures(faults: &mut Faults) {
    for name in [
        "accept_failed",
        "connect_failed",
        "open_failed",
        "connection_refused",
        "connection_lost",
        "connection_reset",
    ] {
        assert!(faults.set(name, 0.0), "{name} is a fault");
    }
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(mix(seed ^ 0x0b5e_55ed) >> 1);
        let dice = &mut dice;
        let mut world = WorldConfig::random(seed);
        match dice.below(4) {
            // A clean network: only sizes and times are random.
            0 => {
                world = WorldConfig {
                    streams: world.streams,
                    turn_time: world.turn_time,
                    wake_time: world.wake_time,
                    coalescing: world.coalescing,
                    ..WorldConfig::default()
                };
                world.streams.segment_loss = 0.0;
            }
            // Trouble, but nothing that ends a connection.
            1 | 2 => without_failures(&mut world.faults),
            _ => {}
        }
        let datagrams = dice.below(2) == 0;
        let most = if datagrams { 60_000 } else { 64 << 10 };
        let message_len = if dice.one_in(8) {
            1 + dice.below(2 * HEADER_LEN as u64)
        } else if datagrams && dice.below(3) > 0 {
            1 + dice.below(1400)
        } else {
            let bits = 1 + dice.below(16);
            1 + dice.below(1 << bits).min(most - 1)
        };
        let depth = (1 + dice.below(16)).min(OUT_BYTES_MAX / message_len).max(1);
        let connections = 1 + dice.below(6);
        let rate = 50.0 + dice.below(1000) as f64 * connections as f64;
        let arrivals = match dice.below(8) {
            0..=3 => Arrivals::Closed,
            4 | 5 => Arrivals::Constant(rate),
            6 => Arrivals::Poisson(rate),
            _ => Arrivals::Idle,
        };
        let same_host = dice.one_in(8);
        let target = if same_host && !datagrams && dice.below(2) == 0 {
            Address::Unix(ECHO_UNIX.into())
        } else {
            Address::Ip(address(ECHO))
        };
        let config = Config {
            target,
            connections: connections as usize,
            message_len: message_len as usize,
            depth: depth as usize,
            arrivals,
            verify: true,
            sources: Vec::new(),
            datagram_timeout: [20 * MILLI, 200 * MILLI, 2 * SECOND][dice.below(3) as usize],
            messages: None,
            seed,
            reset_on_close: dice.one_in(4),
        };
        let load = if !datagrams {
            Load::Streams(config)
        } else if dice.one_in(5) {
            Load::Flood(FloodConfig {
                target: address(DISCARD),
                flows: 1 + dice.below(3) as usize,
                datagram_len: message_len as usize,
                rate: Some(rate * 4.0),
            })
        } else {
            Load::Datagrams(config)
        };
        let idle_timeout = dice
            .one_in(6)
            .then(|| Duration::from_millis(20 + dice.below(500)));
        Self {
            world,
            load,
            server_shards: 1 + dice.below(3) as u16,
            client_shards: 1 + dice.below(2) as u16,
            server_limits: Limits {
                stream_queue_bytes_max: 100 << dice.below(10),
                socket_queue_bytes_max: 8 << 10 << dice.below(6),
                max_connections: if dice.one_in(8) { 3 } else { 1000 },
                idle_timeout,
                ..small_limits()
            },
            client_limits: Limits {
                // As the load tool does: all that may be outstanding fits.
                stream_queue_bytes_max: 2 * (depth * message_len) as usize,
                ..small_limits()
            },
            same_host,
            warm_up: if dice.one_in(3) {
                dice.below(50 * MILLI)
            } else {
                0
            },
            sending: 20 * MILLI + dice.below(SENDING_MAX),
            disturbance: if dice.one_in(3) {
                DISTURBANCES[dice.below(DISTURBANCES.len() as u64) as usize]
            } else {
                Disturbance::None
            },
            is_early: dice.one_in(4),
            after: dice.below(SENDING_MAX),
            then: dice.below(20 * MILLI),
        }
    }

    /// How long the slowest connection may take to bring back all that it has out.
    fn drain_time(&self, config: &Config) -> Nanos {
        let streams = &self.world.streams;
        let bytes = (config.depth * config.message_len) as u64;
        let (servers, clients) = (&self.server_limits, &self.client_limits);
        let pool = servers.stream_pool_bytes.min(clients.stream_pool_bytes) as u64;
        let mean = |range: &std::ops::Range<u64>| (range.start + range.end) / 2;
        let step = mean(&streams.segment_bytes)
            .min(mean(&streams.receive_bytes))
            .min(streams.send_buffer_bytes.start)
            .min(streams.receive_buffer_bytes.start)
            .min(servers.stream_queue_bytes_max as u64)
            .min(pool)
            .max(1);
        let turn = self.world.turn_time.end + self.world.wake_time.end;
        // The faults that hold something up do it for 2.5 ms on average.
        let faults = &self.world.faults;
        let held = (faults.receive_buffers_exhausted
            + 2.0 * faults.completion_overflow
            + faults.short_send
            + faults.receive_ended)
            * (5 * MILLI) as f64;
        let connections = config.connections as u64;
        (bytes / step + 2) * (4 * streams.delay.end + 4 * turn * connections + 2 * held as Nanos)
    }
}

/// What a run came to.
struct Outcome {
    world: World,
    totals: Published,
    heard: Heard,
    was_done: bool,
    /// Of so smooth a run every byte had to come back.
    was_smooth: bool,
}

fn disturb(world: &mut World, clients: &Clients, servers: EngineId, plan: &Plan) {
    let after = if plan.is_early {
        plan.after / 50
    } else {
        plan.after
    };
    if plan.disturbance == Disturbance::None {
        return;
    }
    world.run_for(Duration::from_nanos(after));
    let pause = Duration::from_nanos(plan.then);
    match plan.disturbance {
        Disturbance::None => {}
        Disturbance::Interrupt => clients.tell(Command::End),
        Disturbance::StopClients => world.stop(clients.engine),
        Disturbance::StopClientsTwice => {
            world.stop(clients.engine);
            world.run_for(pause);
            world.stop_now(clients.engine);
        }
        Disturbance::StopServers => world.stop(servers),
        Disturbance::StopServersTwice => {
            world.stop(servers);
            world.run_for(pause);
            world.stop_now(servers);
        }
        Disturbance::KillServers => world.kill(servers),
    }
}

/// Runs the plan of a seed and checks all that must hold in every run.
fn play(seed: u64) -> Outcome {
    let plan = Plan::new(seed);
    let mut world = World::new(seed, plan.world.clone());
    let servers = bench::servers(&mut world, plan.server_shards, plan.server_limits.clone());
    let heard = Arc::new(Mutex::new(Heard::default()));
    let host = if plan.same_host {
        "10.0.0.1"
    } else {
        "10.0.0.2"
    };
    let clients = Clients::start(
        &mut world,
        host,
        plan.client_shards,
        plan.client_limits.clone(),
        plan.load.clone(),
        &heard,
    );
    let is_early = plan.is_early && plan.disturbance != Disturbance::None;
    if is_early {
        disturb(&mut world, &clients, servers, &plan);
    }
    until(&mut world, &clients, Phase::Ready, READY_WITHIN);
    let start = world.now() + dice_pause(seed);
    clients.tell(Command::Begin {
        start,
        measure: start + plan.warm_up,
        end: start + plan.warm_up + plan.sending,
    });
    if !is_early {
        disturb(&mut world, &clients, servers, &plan);
    }
    until(
        &mut world,
        &clients,
        Phase::Done,
        plan.warm_up + plan.sending + DONE_WITHIN,
    );
    if matches!(plan.load, Load::Flood(_)) {
        // Nobody waits for the last ones, and a server in trouble takes some seconds for them.
        world.run_for(Duration::from_secs(20));
    }
    bench::stop(&mut world);
    let totals = clients.totals();
    let mut outcome = Outcome {
        totals,
        heard: heard.lock().unwrap().clone(),
        was_done: clients.have_reached(Phase::Done),
        was_smooth: false,
        world,
    };
    outcome.was_smooth = check(&plan, &outcome, servers, &clients);
    outcome
}

/// The moment of the start is another one in every run.
fn dice_pause(seed: u64) -> Nanos {
    mix(seed ^ 0x57a7) % (20 * MILLI)
}

/// Checks what must hold in every run; whether it was so smooth that nothing could be lost.
fn check(plan: &Plan, outcome: &Outcome, servers: EngineId, clients: &Clients) -> bool {
    let world = &outcome.world;
    let echo = world.service_totals(servers, ECHO_SERVICE);
    let discard = world.service_totals(servers, DISCARD_SERVICE);
    let stats = world.service_totals(servers, STATS_SERVICE);
    let own = clients.counters(world);
    let tally = &outcome.totals.tally;
    let words = || {
        format!(
            "{tally:?}\n{:?}\nservers {echo:?}\nclients {own:?}\n{:?}\n{:?}\n{:?}",
            outcome.totals.failures,
            world.path(),
            world.faults(),
            plan.disturbance,
        )
    };
    assert!(outcome.was_done, "a shard began again: {}", words());
    assert_eq!(tally.wrong_bytes, 0, "{}", words());
    if plan.disturbance != Disturbance::KillServers {
        for service in [&echo, &discard, &stats] {
            assert_eq!(service.accepted, service.closed, "{service:?}");
            assert_eq!(service.open, 0, "{service:?}");
        }
    }
    assert!(echo.sent_bytes <= echo.received_bytes, "{}", words());
    assert!(
        echo.sent_datagrams <= echo.received_datagrams,
        "{}",
        words()
    );
    assert!(
        echo.sent_datagram_bytes <= echo.received_datagram_bytes,
        "{}",
        words()
    );
    assert_eq!(discard.sent_bytes + discard.sent_datagrams, 0);
    let path = world.path();
    let open_loop = match &plan.load {
        Load::Streams(config) | Load::Datagrams(config) => config.arrivals != Arrivals::Closed,
        Load::Flood(_) => false,
    };
    // Only a schedule can be behind when the end comes.
    assert!(open_loop || tally.unsent == 0, "{}", words());
    check_query(&outcome.heard, plan, world);
    match &plan.load {
        Load::Streams(config) => {
            return check_streams(plan, config, outcome, &echo, &own, &words);
        }
        Load::Datagrams(config) => check_datagrams(plan, config, outcome, &own, &words),
        Load::Flood(_) => {
            assert!(
                discard.received_datagrams <= own.sent_datagrams + path.duplicated,
                "{}",
                words()
            );
            if plan.warm_up == 0 && plan.disturbance == Disturbance::None {
                let gone = own.sent_datagrams + own.dropped_datagrams;
                // A socket that stays blocked for too long is closed with its queue.
                let shortfall = tally.sent - gone;
                assert!(
                    shortfall == 0 || world.faults().datagram_send_blocked > 50,
                    "{}",
                    words()
                );
                assert_eq!(own.sent_datagrams, path.sent, "{}", words());
                assert_eq!(discard.received_datagrams, path.delivered, "{}", words());
            }
        }
    }
    false
}

/// The control query's answer is whole, or at worst cut short; never another.
fn check_query(heard: &Heard, plan: &Plan, world: &World) {
    let line = format!("{STATS_LINE}\n");
    assert!(
        line.as_bytes().starts_with(&heard.text),
        "{:?}",
        String::from_utf8_lossy(&heard.text)
    );
    if heard.ended && plan.disturbance == Disturbance::None && world.faults().connection_reset == 0
    {
        assert_eq!(heard.text, line.as_bytes(), "the end came too early");
    }
}

fn check_streams(
    plan: &Plan,
    config: &Config,
    outcome: &Outcome,
    echo: &ServiceSnapshot,
    own: &ServiceSnapshot,
    words: &dyn Fn() -> String,
) -> bool {
    let tally = &outcome.totals.tally;
    let faults = outcome.world.faults();
    let len = config.message_len as u64;
    assert_eq!(
        tally.late + tally.duplicated + tally.reordered + tally.unknown,
        0,
        "{}",
        words()
    );
    // Room for all that may be outstanding was given.
    let full = outcome.totals.failures.get(&("send", "queue full"));
    assert_eq!(full, None, "{}", words());
    let settled = tally.opened + tally.open_failed;
    assert!(settled <= config.connections as u64, "{}", words());
    if !(plan.is_early && plan.disturbance != Disturbance::None) {
        assert_eq!(settled, config.connections as u64, "{}", words());
    }
    let stopped = !matches!(plan.disturbance, Disturbance::None | Disturbance::Interrupt);
    let ended = faults.connection_reset + echo.refused + echo.idle_closed + echo.stalled_closed;
    if !stopped && ended == 0 {
        assert_eq!(tally.closed_early, 0, "{}", words());
    }
    if plan.warm_up > 0 {
        // What was out when measuring began is answered but was not counted as sent.
        let out = (config.connections * config.depth) as u64;
        assert!(tally.answered <= tally.sent + out, "{}", words());
        return false;
    }
    assert!(tally.answered <= tally.sent, "{}", words());
    assert_eq!(tally.bytes, tally.answered * len);
    assert!(own.sent_bytes <= tally.sent * len, "{}", words());
    let intact = !stopped && ended == 0 && faults.accept_failed == 0;
    let is_smooth = intact && is_prompt(plan, config);
    if is_smooth {
        assert_eq!(tally.lost, 0, "{}", words());
        let bytes = tally.sent * len;
        assert_eq!(
            [
                own.sent_bytes,
                echo.received_bytes,
                echo.sent_bytes,
                own.received_bytes
            ],
            [bytes; 4],
            "{}",
            words()
        );
    }
    is_smooth
}

/// Whether all answers come within the second for which a client waits after the end.
fn is_prompt(plan: &Plan, config: &Config) -> bool {
    let world = &plan.world;
    world.partitions.is_empty()
        && world.streams.segment_loss == 0.0
        && plan.drain_time(config) < SECOND / 2
}

fn check_datagrams(
    plan: &Plan,
    config: &Config,
    outcome: &Outcome,
    own: &ServiceSnapshot,
    words: &dyn Fn() -> String,
) {
    let tally = &outcome.totals.tally;
    let reads_header = config.message_len >= HEADER_LEN;
    let matched = tally.answered + tally.late + tally.duplicated + tally.unknown;
    assert!(matched <= own.received_datagrams, "{}", words());
    if reads_header {
        assert_eq!(tally.unknown, 0, "{}", words());
    }
    let places = (config.connections * config.depth) as u64;
    let clients_run = !matches!(
        plan.disturbance,
        Disturbance::StopClients | Disturbance::StopClientsTwice
    );
    if plan.warm_up == 0 {
        assert!(tally.answered + tally.lost <= tally.sent, "{}", words());
        if clients_run {
            // What came after the end is not counted as answered, but neither is it lost.
            let after_end = own.received_datagrams - matched;
            assert_eq!(
                tally.sent,
                tally.answered + tally.lost + after_end,
                "{}",
                words()
            );
            assert_eq!(
                tally.sent,
                own.sent_datagrams + own.dropped_datagrams,
                "{}",
                words()
            );
        }
    } else {
        assert!(
            tally.answered + tally.lost <= tally.sent + places,
            "{}",
            words()
        );
    }
    let ways: [&Impairment; 2] = [&plan.world.forward, &plan.world.backward];
    let doubles = ways.iter().any(|way| way.duplication > 0.0);
    let overtakes = doubles
        || ways
            .iter()
            .any(|way| way.reordering.probability > 0.0 || way.jitter_us > 0 && !way.keep_order);
    if reads_header && !doubles {
        assert_eq!(tally.duplicated, 0, "{}", words());
    }
    if reads_header && !overtakes {
        assert_eq!(tally.reordered, 0, "{}", words());
    }
    if reads_header && config.datagram_timeout >= 2 * SECOND {
        assert_eq!(tally.late, 0, "{}", words());
    }
}

/// The seeds of `tests/seeds.txt`, with the reason that stands behind each.
fn written_down() -> Vec<(u64, &'static str)> {
    let lines = include_str!("../seeds.txt").lines();
    lines
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (seed, why) = line
                .split_once(char::is_whitespace)
                .unwrap_or_else(|| panic!("seeds.txt: {line:?} does not say why"));
            let seed = seed
                .parse()
                .unwrap_or_else(|_| panic!("seeds.txt: {seed:?} is not a seed"));
            (seed, why.trim())
        })
        .collect()
}

#[test]
fn seeds_that_once_failed_pass() {
    for (seed, why) in written_down() {
        assert!(!why.is_empty(), "seed {seed} does not say why");
        println!("seed {seed}: {why}");
        play(seed);
    }
}

#[test]
fn every_load_is_answered_on_every_network() {
    for (seed, _) in written_down() {
        play(seed);
    }
    let seeds = seeds(SEEDS);
    let (mut sum, mut path) = (Published::new(), PathCounts::default());
    let (mut queries, mut smooth) = (0, 0);
    for seed in &seeds {
        let outcome = play(*seed);
        sum.add(&outcome.totals);
        path.resets += outcome.world.path().resets;
        queries += u64::from(outcome.heard.ended);
        smooth += u64::from(outcome.was_smooth && outcome.totals.tally.answered > 0);
    }
    let tally = &sum.tally;
    println!(
        "{} seeds: {tally:?}\n{:?}\n{queries} control queries answered, {smooth} smooth runs",
        seeds.len(),
        sum.failures
    );
    if seeds.len() as u64 >= SEEDS {
        // So that nothing above is true only because nothing happened.
        for (what, count) in [
            ("answers", tally.answered / 10_000),
            ("lost", tally.lost),
            ("late", tally.late),
            ("doubled", tally.duplicated),
            ("overtaken", tally.reordered),
            ("closed early", tally.closed_early),
            ("connects failed", tally.open_failed),
            ("resets", path.resets),
            ("control queries", queries),
            ("smooth runs", smooth / 3),
        ] {
            assert!(count > 10, "{what}: {count}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut traces = Vec::new();
    for seed in seeds(20) {
        let (first, second) = (play(seed), play(seed));
        assert_eq!(
            first.world.trace_hash(),
            second.world.trace_hash(),
            "seed {seed}"
        );
        assert_eq!(first.world.now(), second.world.now(), "seed {seed}");
        assert_eq!(first.totals.tally, second.totals.tally, "seed {seed}");
        traces.push(first.world.trace_hash());
    }
    let runs = traces.len();
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), runs, "other seeds give other runs");
}
