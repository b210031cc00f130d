//! A soak on simulated networks: it goes on after every error, its sums hold at any moment, it opens
//! and sends at the rates asked for, and it finds every wrong byte.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineId, EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::{
    Address, Buffer, Context, Controller, Limits, ListenerId, Nanos, Protocol, Service, StreamId,
};
use ringmill_protocols::echo::Echo;
use ringmill_protocols::soak::{
    Addresses, ChurnClose, Command, Config, Phase, Published, Shared, Soak, Tally,
};

const SECOND: Nanos = 1_000_000_000;
const MILLI: Nanos = 1_000_000;
const SERVER: ([u8; 4], u16) = ([10, 0, 0, 1], 7);
const SEEDS: u64 = 200;

fn plan(connections: usize) -> Config {
    let target = Address::Ip(SERVER.into());
    let sources = ["10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
    Config {
        addresses: Addresses::new(vec![target], sources.into(), None),
        connections,
        open_rate: Some(2000.0),
        rate: 500.0,
        message_len: 32,
        churn_rate: 0.0,
        churn_close: ChurnClose::Fin,
        connect_timeout: SECOND,
        answer_timeout: SECOND,
        seed: 42,
    }
}

fn limits() -> Limits {
    Limits {
        stream_pool_bytes: 64 << 10,
        datagram_buffers: 1,
        fill_buffers: 1,
        ..Limits::default()
    }
}

struct Run {
    world: World,
    shared: Vec<Arc<Shared>>,
    controller: Controller<Command>,
    client: EngineId,
    server: Option<EngineId>,
}

impl Run {
    /// A world with a server and a soak of so many shards.
    fn start(
        seed: u64,
        world: WorldConfig,
        server: Option<EngineSpec>,
        config: Config,
        shards: u16,
    ) -> Self {
        let mut world = World::new(seed, world);
        let server = server.map(|server| world.engine(server).expect("the server starts"));
        let shared: Vec<_> = (0..shards).map(|_| Shared::new()).collect();
        let (of_shard, config) = (shared.clone(), Arc::new(config));
        let service = Service::new("soak", move |shard| {
            Soak::new(
                Arc::clone(&config),
                Arc::clone(&of_shard[usize::from(shard)]),
            )
        });
        let controller = service.controller();
        let spec = EngineSpec::new(shards)
            .limits(limits())
            .host("10.0.0.2")
            .host("10.0.0.3")
            .service(service);
        let client = world.engine(spec).expect("the client starts");
        Self {
            world,
            shared,
            controller,
            client,
            server,
        }
    }

    fn tell(&self, command: Command) {
        for shard in 0..self.shared.len() {
            let told = self.controller.post(shard as u16, command);
            told.expect("a mailbox has room");
        }
    }

    fn is(&self, phase: Phase) -> bool {
        self.shared.iter().all(|shared| shared.phase() >= phase)
    }

    /// Runs until all are live, or for so long.
    fn fill(&mut self, patience: Nanos) -> bool {
        let shared = self.shared.clone();
        let full = |_: &World| shared.iter().all(|shared| shared.phase() >= Phase::Full);
        self.world.run_until(full, patience).is_ok()
    }

    fn hold(&mut self, time: Nanos) {
        let start = self.world.now();
        let end = start + time;
        self.tell(Command::Hold { start, end });
    }

    fn finish(&mut self, context: &str) -> Published {
        let shared = self.shared.clone();
        let done = |_: &World| shared.iter().all(|shared| shared.phase() >= Phase::Done);
        let ended = self.world.run_until(done, 30 * SECOND);
        assert!(ended.is_ok(), "{context}: not done: {:#?}", self.read());
        let published = self.read();
        self.world.stop_all().expect("it stops");
        self.world.leaks().assert_none();
        published
    }

    fn read(&self) -> Published {
        let mut sum = Published::new();
        for shared in &self.shared {
            shared.add_to(&mut sum);
        }
        sum
    }
}

fn echo() -> EngineSpec {
    let service = Service::new("echo", |_| Echo::default()).listen(Address::Ip(SERVER.into()));
    EngineSpec::new(2)
        .limits(limits())
        .host("10.0.0.1")
        .service(service)
}

fn assert_sums(tally: &Tally, context: &str) {
    assert_eq!(
        tally.begun,
        tally.opening + tally.opened + tally.failed + tally.cancelled,
        "{context}: {tally:#?}"
    );
    assert_eq!(
        tally.opened,
        tally.live + tally.closing + tally.churned + tally.over + tally.lost_total(),
        "{context}: {tally:#?}"
    );
    assert_eq!(
        tally.sent,
        tally.answered + tally.on_the_way + tally.unanswered,
        "{context}: {tally:#?}"
    );
    let failed: u64 = tally.failed_by.values().sum();
    assert_eq!(tally.failed, failed, "{context}");
}

#[test]
fn sums_hold_whatever_goes_wrong() {
    let mut causes = BTreeSet::new();
    for seed in seeds(SEEDS) {
        let context = format!("seed {seed}");
        let mut network = WorldConfig::random(seed);
        // The server has room for all.
        network.streams_per_shard_max = 10_000;
        let config = Config {
            churn_rate: 100.0,
            churn_close: match seed % 2 {
                0 => ChurnClose::Fin,
                _ => ChurnClose::Reset,
            },
            seed,
            ..plan(30)
        };
        let mut run = Run::start(seed, network, Some(echo()), config, 1 + (seed % 3) as u16);
        run.fill(3 * SECOND);
        run.hold(SECOND);
        for _ in 0..8 {
            run.world.run_for(Duration::from_millis(200));
            for shared in &run.shared {
                let mut of_shard = Published::new();
                shared.add_to(&mut of_shard);
                assert_sums(&of_shard.tally, &context);
            }
        }
        let client = run.client;
        let connected = |run: &Run| run.world.service_totals(client, 0).connected;
        let shared = run.shared.clone();
        let done = |_: &World| shared.iter().all(|shared| shared.phase() >= Phase::Done);
        let ended = run.world.run_until(done, 30 * SECOND);
        assert!(ended.is_ok(), "{context}: not done: {:#?}", run.read());
        let opened = connected(&run);
        let tally = run.finish(&context).tally;
        assert_sums(&tally, &context);
        assert_eq!(
            (tally.live, tally.opening, tally.closing, tally.on_the_way),
            (0, 0, 0, 0),
            "{context}"
        );
        assert_eq!(tally.wrong_bytes, 0, "{context}: an honest server");
        assert_eq!(tally.opened, opened, "{context}: as the engine counts");
        causes.extend(tally.failed_by.keys().copied());
        causes.extend(tally.lost.keys().copied());
    }
    if std::env::var_os("RINGMILL_SEED").is_none() {
        for cause in [
            "connection refused",
            "connection reset",
            "no answer to the connect in time",
            "no answer to a message in time",
            "too many open files (process)",
        ] {
            assert!(causes.contains(cause), "never seen: {cause}; {causes:?}");
        }
    }
}

#[test]
fn connections_are_opened_at_the_rate_and_many_at_once() {
    for (rate, connections, shards) in [(1000.0, 500, 1), (4000.0, 2000, 3)] {
        let mut network = WorldConfig::default();
        // A round trip of 100 ms: one after the other would open ten a second.
        network.streams.delay = 50 * MILLI..50 * MILLI + 1;
        network.streams.backlog_max = 4096;
        let config = Config {
            open_rate: Some(rate),
            ..plan(connections)
        };
        let mut run = Run::start(1, network, Some(echo()), config, shards);
        assert!(run.fill(20 * SECOND), "{:?}", run.read());
        let published = run.read();
        let took = (published.tally.full_at - published.tally.began_at) as f64 / 1e9;
        let wanted = connections as f64 / rate + 0.1;
        assert!(
            (took / wanted - 1.0).abs() < 0.02,
            "{took} s instead of {wanted} s"
        );
        assert_eq!(published.tally.live, connections as u64);
        let median = published.connect.value_at_quantile(0.5) as f64 / 1e6;
        assert!((99.0..110.0).contains(&median), "{median} ms to connect");
        run.tell(Command::End);
        run.finish("rate");
    }
}

/// Notes when each connection was accepted.
struct Counter(Heard);

impl Protocol for Counter {
    type Message = ();

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _: ringmill_engine::ListenerId,
        _: Option<std::net::SocketAddr>,
    ) {
        let heard = (ctx.now(), stream.index());
        self.0.lock().unwrap().push(heard);
    }
}

/// Without a rate, too, connects are spread over turns, so that answers are taken in between.
#[test]
fn as_fast_as_possible_is_not_all_at_once() {
    let heard = Heard::default();
    let ears = Arc::clone(&heard);
    let mut network = WorldConfig::default();
    network.streams.delay = MILLI..MILLI + 1;
    network.streams.backlog_max = 8192;
    (network.turn_time, network.wake_time) = (1000..1001, 1000..1001);
    let service = Service::new("counter", move |_| Counter(Arc::clone(&ears)))
        .listen(Address::Ip(SERVER.into()));
    let server = EngineSpec::new(1)
        .limits(limits())
        .host("10.0.0.1")
        .service(service);
    let config = Config {
        open_rate: None,
        ..plan(4000)
    };
    let mut run = Run::start(6, network, Some(server), config, 1);
    assert!(run.fill(SECOND), "{:?}", run.read());
    let mut at: HashMap<Nanos, u64> = HashMap::new();
    for (when, _) in heard.lock().unwrap().iter() {
        *at.entry(*when).or_default() += 1;
    }
    // 16 in a turn of the client, and a turn of the server may see a few of those.
    let most = at.values().max().expect("some were accepted");
    assert!(*most <= 64, "{most} at once");
    run.tell(Command::End);
    run.finish("as fast as possible");
}

/// What a server has heard: when, on which of its connections.
type Heard = Arc<Mutex<Vec<(Nanos, usize)>>>;

struct Listener(Heard);

impl Protocol for Listener {
    type Message = ();

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        let heard = (ctx.now(), stream.index());
        self.0.lock().unwrap().push(heard);
        assert!(ctx.send(stream, data).is_queued());
    }
}

#[test]
fn messages_leave_at_poisson_instants_on_connections_drawn_evenly() {
    const CONNECTIONS: usize = 20;
    const RATE: f64 = 100.0;
    const TIME_S: u64 = 60;
    let heard = Heard::default();
    let ears = Arc::clone(&heard);
    let mut network = WorldConfig::default();
    // One receive is one message.
    network.streams.segment_bytes = 1000..1001;
    network.streams.receive_bytes = 1000..1001;
    let service = Service::new("listener", move |_| Listener(Arc::clone(&ears)))
        .listen(Address::Ip(SERVER.into()));
    let server = EngineSpec::new(1)
        .limits(limits())
        .host("10.0.0.1")
        .service(service);
    let config = Config {
        rate: RATE,
        ..plan(CONNECTIONS)
    };
    let mut run = Run::start(5, network, Some(server), config, 2);
    assert!(run.fill(5 * SECOND));
    run.hold(TIME_S * SECOND);
    run.world.run_for(Duration::from_secs(TIME_S));
    let tally = run.finish("poisson").tally;
    let heard = heard.lock().unwrap();
    // Two that leave within one turn on the same connection are one receive.
    assert!(
        tally.sent.abs_diff(heard.len() as u64) < 5,
        "{}",
        heard.len()
    );
    assert_eq!(tally.answered, tally.sent);

    let wanted = RATE * TIME_S as f64;
    let deviation = (heard.len() as f64 - wanted) / wanted.sqrt();
    assert!(deviation.abs() < 4.0, "{} messages", heard.len());
    // Gaps are exponential: as many are longer than so many means as should be.
    let gaps: Vec<f64> = heard
        .windows(2)
        .map(|pair| (pair[1].0 - pair[0].0) as f64 / 1e9 * RATE)
        .collect();
    for means in [0.25, 0.5, 1.0, 2.0, 3.0] {
        let longer = gaps.iter().filter(|gap| **gap > means).count() as f64 / gaps.len() as f64;
        let expected = f64::exp(-means);
        let error = (expected * (1.0 - expected) / gaps.len() as f64).sqrt();
        assert!(
            (longer - expected).abs() < 4.0 * error + 0.01,
            "{longer} of the gaps are longer than {means} means, not {expected}"
        );
    }
    let mut each: HashMap<usize, u64> = HashMap::new();
    for (_, stream) in heard.iter() {
        *each.entry(*stream).or_default() += 1;
    }
    assert_eq!(each.len(), CONNECTIONS, "all were drawn");
    let mean = heard.len() as f64 / CONNECTIONS as f64;
    let square: f64 = each
        .values()
        .map(|count| (*count as f64 - mean).powi(2) / mean)
        .sum();
    // Chi-square with 19 degrees of freedom: 43.8 in one of a thousand.
    assert!(square < 43.8, "{each:?}");
}

/// Which of the receives a lying server lies about.
const LIE: u64 = 20;

/// What it does then.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    Flip,
    Cut,
    Double,
    Drop,
    /// The bytes of another connection.
    Swap,
    End,
}

struct Liar {
    lie: Lie,
    count: u64,
    before: Vec<u8>,
}

impl Protocol for Liar {
    type Message = ();

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        self.count += 1;
        let mut bytes = data.to_vec();
        let before = std::mem::replace(&mut self.before, bytes.clone());
        if self.count == LIE {
            match self.lie {
                Lie::Flip => bytes[0] ^= 4,
                Lie::Cut => {
                    bytes.remove(0);
                }
                Lie::Double => bytes.extend_from_within(..),
                Lie::Drop => return,
                Lie::Swap => bytes = before,
                Lie::End => {
                    ctx.close(stream);
                    return;
                }
            }
        }
        assert!(ctx.send(stream, bytes).is_queued());
    }
}

#[test]
fn every_lie_is_found_and_its_connection_opened_again() {
    const CONNECTIONS: u64 = 10;
    for (lie, cause, wrong) in [
        (Lie::Flip, "wrong bytes came back", 1..=1),
        (Lie::Cut, "wrong bytes came back", 16..=31),
        (Lie::Double, "wrong bytes came back", 32..=32),
        (Lie::Swap, "wrong bytes came back", 16..=32),
        (Lie::Drop, "no answer to a message in time", 0..=0),
        (Lie::End, "closed by the server", 0..=0),
    ] {
        let mut network = WorldConfig::default();
        network.streams.segment_bytes = 1000..1001;
        network.streams.receive_bytes = 1000..1001;
        let service = Service::new("liar", move |_| Liar {
            lie,
            count: 0,
            before: Vec::new(),
        })
        .listen(Address::Ip(SERVER.into()));
        let server = EngineSpec::new(1)
            .limits(limits())
            .host("10.0.0.1")
            .service(service);
        // Rare enough that the connection has no other message on its way.
        let config = Config {
            rate: 10.0,
            answer_timeout: SECOND / 10,
            ..plan(CONNECTIONS as usize)
        };
        let mut run = Run::start(3, network, Some(server), config, 1);
        assert!(run.fill(5 * SECOND));
        run.hold(8 * SECOND);
        run.world.run_for(Duration::from_secs(7));
        let during = run.read().tally;
        assert_eq!(
            during.live, CONNECTIONS,
            "{lie:?}: opened again: {during:#?}"
        );
        let tally = run.finish("lie").tally;
        let expected = BTreeMap::from([(cause, 1)]);
        assert_eq!(tally.lost, expected, "{lie:?}: {tally:#?}");
        assert_eq!(tally.opened, CONNECTIONS + 1, "{lie:?}");
        assert!(wrong.contains(&tally.wrong_bytes), "{lie:?}: {tally:#?}");
        assert_sums(&tally, "lie");
    }
}

#[test]
fn churn_closes_from_this_end_as_told_and_loses_no_message() {
    for (close, resets) in [(ChurnClose::Fin, false), (ChurnClose::Reset, true)] {
        let mut network = WorldConfig::default();
        network.streams.backlog_max = 4096;
        let config = Config {
            churn_rate: 50.0,
            churn_close: close,
            ..plan(200)
        };
        let mut run = Run::start(9, network, Some(echo()), config, 2);
        assert!(run.fill(5 * SECOND));
        run.hold(20 * SECOND);
        run.world.run_for(Duration::from_secs(19));
        let server = run
            .world
            .service_totals(run.server.expect("there is one"), 0);
        let during = run.read().tally;
        assert!(during.live + during.opening >= 199, "{during:#?}");
        // Four deviations of a Poisson count.
        assert!(during.churned.abs_diff(950) < 125, "{close:?}: {during:#?}");
        if resets {
            assert!(server.failed >= during.churned - 5, "{server:?}");
        } else {
            assert_eq!(server.failed, 0, "{server:?}");
            assert!(server.closed >= during.churned - 5, "{server:?}");
        }
        let tally = run.finish("churn").tally;
        assert_eq!(tally.lost, BTreeMap::new());
        assert_eq!((tally.unanswered, tally.churn_missed), (0, 0), "{close:?}");
        assert_sums(&tally, "churn");
    }
}

#[test]
fn without_a_server_it_tries_again_each_second_and_says_why() {
    let mut run = Run::start(4, WorldConfig::default(), None, plan(20), 1);
    run.world.run_for(Duration::from_millis(4_500));
    let tally = run.read().tally;
    assert_eq!(tally.opened, 0);
    // At once, and at four beats.
    assert!((80..=100).contains(&tally.failed), "{tally:#?}");
    let causes: Vec<_> = tally.failed_by.keys().copied().collect();
    assert_eq!(causes, ["no route to host"]);
    assert!(!run.is(Phase::Full));
    run.hold(SECOND);
    let tally = run.finish("nobody").tally;
    let words = BTreeMap::from([("no connection was live", tally.unsent_total())]);
    assert_eq!(tally.unsent, words);
    assert!(tally.unsent_total() > 300, "{tally:#?}");
}

/// Keeps what it hears until its time comes, then echoes all of it.
struct Sleeper {
    wakes_at: Nanos,
    kept: Vec<(StreamId, Vec<u8>)>,
}

impl Protocol for Sleeper {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        ctx.set_timer(self.wakes_at, 0);
    }

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        if ctx.now() < self.wakes_at {
            self.kept.push((stream, data.to_vec()));
        } else {
            assert!(ctx.send(stream, data).is_queued());
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, _token: u64) {
        for (stream, bytes) in self.kept.drain(..) {
            assert!(ctx.send(stream, bytes).is_queued());
        }
    }
}

fn sleeper(wakes_at: Nanos) -> EngineSpec {
    let service = Service::new("sleeper", move |_| Sleeper {
        wakes_at,
        kept: Vec::new(),
    });
    EngineSpec::new(1)
        .limits(limits())
        .host("10.0.0.1")
        .service(service.listen(Address::Ip(SERVER.into())))
}

#[test]
fn answers_that_are_slow_are_awaited_after_the_end() {
    let config = Config {
        answer_timeout: 8 * SECOND,
        ..plan(20)
    };
    let server = sleeper(6 * SECOND);
    let mut run = Run::start(6, WorldConfig::default(), Some(server), config, 2);
    assert!(run.fill(SECOND));
    run.hold(SECOND);
    let tally = run.finish("slow").tally;
    assert!(tally.sent > 300, "{tally:#?}");
    assert_eq!((tally.answered, tally.unanswered), (tally.sent, 0));
    assert_eq!(tally.lost, BTreeMap::new());
}

#[test]
fn churn_that_was_not_possible_is_missed_not_made_up_for_at_once() {
    const RATE: u64 = 50;
    let config = Config {
        rate: 200.0,
        churn_rate: RATE as f64,
        answer_timeout: 60 * SECOND,
        ..plan(10)
    };
    // Till then each connection has a message on its way.
    let server = sleeper(20 * SECOND);
    let mut run = Run::start(7, WorldConfig::default(), Some(server), config, 1);
    assert!(run.fill(SECOND));
    run.hold(30 * SECOND);
    run.world.run_for(Duration::from_secs(19));
    let before = run.read().tally;
    run.world.run_for(Duration::from_secs(3));
    let after = run.read().tally;
    let churned = after.churned - before.churned;
    // A second's worth that waited, and three seconds of its own.
    assert!((50..=5 * RATE).contains(&churned), "{churned} churned");
    assert!(after.churn_missed > 15 * RATE, "{after:#?}");
    run.tell(Command::End);
    run.finish("missed");
}

/// Ends its side and reads no more at the first byte that it hears.
struct HalfClosed;

impl Protocol for HalfClosed {
    type Message = ();

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, _data: Buffer) {
        ctx.pause(stream);
        ctx.finish(stream);
    }
}

#[test]
fn a_server_that_ends_and_reads_no_more_keeps_no_connection() {
    let mut network = WorldConfig::default();
    network.streams.send_buffer_bytes = 1000..1001;
    network.streams.receive_buffer_bytes = 1000..1001;
    let service = Service::new("half", |_| HalfClosed).listen(Address::Ip(SERVER.into()));
    let server = EngineSpec::new(1)
        .limits(limits())
        .host("10.0.0.1")
        .service(service);
    let config = Config {
        rate: 20.0,
        message_len: 16 << 10,
        ..plan(10)
    };
    let mut run = Run::start(8, network, Some(server), config, 1);
    assert!(run.fill(SECOND));
    run.hold(3 * SECOND);
    run.world.run_for(Duration::from_secs(2));
    let during = run.read().tally;
    assert!(during.lost_total() > 10, "{during:#?}");
    assert!(during.closing < 3, "they are gone at once: {during:#?}");
    let tally = run.finish("half").tally;
    assert_sums(&tally, "half");
}

#[test]
fn churn_leaves_no_timer_behind() {
    let config = Config {
        churn_rate: 300.0,
        ..plan(200)
    };
    let mut run = Run::start(10, WorldConfig::default(), Some(echo()), config, 1);
    assert!(run.fill(SECOND));
    run.hold(40 * SECOND);
    run.world.run_for(Duration::from_secs(1));
    let (client, server) = (run.client, run.server.expect("there is one"));
    let mut fired_in = |seconds| {
        let fired =
            |run: &Run| [client, server].map(|engine| run.world.service_totals(engine, 0).timers);
        let before = fired(&run);
        run.world.run_for(Duration::from_secs(seconds));
        let after = fired(&run);
        [after[0] - before[0], after[1] - before[1]]
    };
    let [early, of_server] = fired_in(10);
    // Thousands of connections later as many fire.
    let _ = fired_in(15);
    let [late, _] = fired_in(10);
    assert_eq!(of_server, 0, "an echo has none");
    assert!(late.abs_diff(early) < early / 10, "{early}, then {late}");
    let tally = run.finish("timers").tally;
    assert!(tally.churned > 10_000, "{tally:#?}");
}

/// Accepts everyone and has room for nobody.
struct Refuser;

impl Protocol for Refuser {
    type Message = ();

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _listener: ListenerId,
        _peer: Option<SocketAddr>,
    ) {
        ctx.close(stream);
    }
}

#[test]
fn a_server_that_closes_everything_is_not_stormed() {
    let service = Service::new("refuser", |_| Refuser).listen(Address::Ip(SERVER.into()));
    let server = EngineSpec::new(1)
        .limits(limits())
        .host("10.0.0.1")
        .service(service);
    let config = Config {
        open_rate: None,
        ..plan(20)
    };
    let mut run = Run::start(11, WorldConfig::default(), Some(server), config, 1);
    run.world.run_for(Duration::from_millis(4_500));
    let tally = run.read().tally;
    // At once, and at four beats.
    assert!((80..=100).contains(&tally.begun), "{tally:#?}");
    assert!(tally.lost_total() >= 80, "{tally:#?}");
    run.tell(Command::End);
    assert_sums(&run.finish("refused").tally, "refused");
}
