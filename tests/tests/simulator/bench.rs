//! A simulated test bench: the real services on one host, the real load clients on another.
//!
//! It only sets up, waits and adds up; what a run must show is for the tests to say.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ringmill_engine::driver::sim::{EngineId, EngineSpec, World};
use ringmill_engine::metrics::ServiceSnapshot;
use ringmill_engine::{
    Address, Buffer, Closed, Connect, Context, Controller, Limits, Nanos, Protocol, Service,
    ShardId, StreamId,
};
use ringmill_protocols::control::Stats;
use ringmill_protocols::discard::Discard;
use ringmill_protocols::echo::Echo;
use ringmill_protocols::guard::{Guard, GuardCounters, GuardSettings, OwnPorts};
use ringmill_protocols::load::{
    Arrivals, Command, Config, DatagramLoad, Flood, FloodConfig, Phase, Published, Shared,
    StreamLoad,
};

pub(crate) const MILLI: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MILLI;
/// Connecting may take this long: a dropped SYN comes again four times, a second apart.
pub(crate) const READY_WITHIN: Nanos = 60 * SECOND;
/// After the end, answers are awaited for a second or the datagrams' timeout.
pub(crate) const DONE_WITHIN: Nanos = 20 * SECOND;
/// The echo service on the servers' host, for streams and datagrams. Not port 7: nobody answers
/// datagrams from there.
pub(crate) const ECHO: &str = "10.0.0.1:7007";
pub(crate) const ECHO_UNIX: &str = "/run/ringmill/echo.sock";
pub(crate) const DISCARD: &str = "10.0.0.1:9";
pub(crate) const STATS: &str = "10.0.0.1:7070";
/// What the control query answers here: it must arrive whole and unchanged.
pub(crate) const STATS_LINE: &str = r#"{"pid":1,"shards":3,"driver":"sim"}"#;
/// Positions of the services in the servers' engine.
pub(crate) const ECHO_SERVICE: usize = 0;
pub(crate) const DISCARD_SERVICE: usize = 1;
pub(crate) const STATS_SERVICE: usize = 2;

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

/// Small pools, so that they run out.
pub(crate) fn small_limits() -> Limits {
    Limits {
        stream_pool_bytes: 128 << 10,
        datagram_buffers: 16,
        fill_buffers: 4,
        ..Limits::default()
    }
}

/// Answers everybody as often as they like: the simulated clients share one address.
pub(crate) const UNGUARDED: GuardSettings = GuardSettings {
    per_source_rate: None,
    limit_loopback: false,
};

/// An echo service whose guards place their sources the same in every run.
pub(crate) fn echo(settings: GuardSettings, counters: &Arc<GuardCounters>) -> Service<Echo> {
    let ports = Arc::new(OwnPorts::default());
    let counters = Arc::clone(counters);
    Service::new("echo", move |shard| {
        Echo::new(Guard::new(
            settings,
            Arc::clone(&ports),
            Arc::clone(&counters),
            u64::from(shard) + 1,
        ))
    })
}

/// Echo, discard and control query on the servers' host.
pub(crate) fn servers(world: &mut World, shards: u16, limits: Limits) -> EngineId {
    let snapshot: Arc<dyn Fn() -> String + Send + Sync> = Arc::new(|| STATS_LINE.to_owned());
    let spec = EngineSpec::new(shards)
        .limits(limits)
        .host("10.0.0.1")
        .service(
            echo(UNGUARDED, &Arc::default())
                .listen(address(ECHO))
                .listen(Address::Unix(ECHO_UNIX.into()))
                .bind(address(ECHO)),
        )
        .service(
            Service::new("discard", |_| Discard)
                .listen(address(DISCARD))
                .bind(address(DISCARD)),
        )
        .service(
            Service::new("stats", move |_| Stats::new(Arc::clone(&snapshot)))
                .listen(address(STATS)),
        );
    world.engine(spec).expect("the servers start")
}

/// A load client that can be made for each shard.
#[derive(Clone)]
pub(crate) enum Load {
    Streams(Config),
    Datagrams(Config),
    Flood(FloodConfig),
}

/// A plan of streams or datagrams in one line of a test; the rest is as usual.
pub(crate) fn plan(target: &str, connections: usize, depth: usize, arrivals: Arrivals) -> Config {
    Config {
        target: Address::Ip(address(target)),
        connections,
        message_len: 64,
        depth,
        arrivals,
        verify: true,
        sources: Vec::new(),
        datagram_timeout: SECOND,
        messages: None,
        seed: 1,
        reset_on_close: false,
    }
}

/// The load clients on their host, and what the control thread holds of them.
pub(crate) struct Clients {
    pub(crate) engine: EngineId,
    pub(crate) shared: Vec<Arc<Shared>>,
    controller: Controller<Command>,
}

/// Asks the control query once and keeps what comes.
pub(crate) struct Query {
    pub(crate) heard: Arc<Mutex<Heard>>,
}

#[derive(Default, Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) text: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) over: bool,
}

impl Protocol for Query {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let to = address(STATS).into();
        if ctx.shard() != 0 || ctx.connect(&Connect { to, from: None }).is_err() {
            self.heard.lock().unwrap().over |= ctx.shard() == 0;
        }
    }

    fn received(&mut self, _: &mut Context<'_, ()>, _: StreamId, data: Buffer) {
        self.heard.lock().unwrap().text.extend_from_slice(&data);
    }

    fn ended(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        self.heard.lock().unwrap().ended = true;
        ctx.close(stream);
    }

    fn closed(&mut self, _: &mut Context<'_, ()>, _: StreamId, _: Closed) {
        self.heard.lock().unwrap().over = true;
    }
}

impl Clients {
    /// Starts an engine of load clients on a host of their own, or on `host`.
    pub(crate) fn start(
        world: &mut World,
        host: &str,
        shards: u16,
        limits: Limits,
        load: Load,
        heard: &Arc<Mutex<Heard>>,
    ) -> Self {
        match load {
            Load::Streams(config) => {
                let config = Arc::new(config);
                Self::of(world, host, shards, limits, heard, move |shared| {
                    StreamLoad::new(Arc::clone(&config), shared)
                })
            }
            Load::Datagrams(config) => {
                let config = Arc::new(config);
                Self::of(world, host, shards, limits, heard, move |shared| {
                    DatagramLoad::new(Arc::clone(&config), shared)
                })
            }
            Load::Flood(config) => {
                let config = Arc::new(config);
                Self::of(world, host, shards, limits, heard, move |shared| {
                    Flood::new(Arc::clone(&config), shared)
                })
            }
        }
    }

    /// Starts clients of any kind: `make` makes the one of a shard.
    pub(crate) fn of<P: Protocol<Message = Command>>(
        world: &mut World,
        host: &str,
        shards: u16,
        limits: Limits,
        heard: &Arc<Mutex<Heard>>,
        make: impl Fn(Arc<Shared>) -> P + Send + Sync + 'static,
    ) -> Self {
        let shared: Vec<_> = (0..shards).map(|_| Shared::new()).collect();
        let each = shared.clone();
        let load = Service::new("load", move |shard: ShardId| {
            make(Arc::clone(&each[usize::from(shard)]))
        });
        let controller = load.controller();
        let heard = Arc::clone(heard);
        let query = Service::new("query", move |_| Query {
            heard: Arc::clone(&heard),
        });
        let spec = EngineSpec::new(shards)
            .limits(limits)
            .host(host)
            .service(load)
            .service(query);
        Self {
            engine: world.engine(spec).expect("the clients start"),
            shared,
            controller,
        }
    }

    /// Whether every shard has come so far.
    pub(crate) fn have_reached(&self, phase: Phase) -> bool {
        self.shared.iter().all(|shared| shared.phase() >= phase)
    }

    /// What all shards have published.
    pub(crate) fn totals(&self) -> Published {
        let mut sum = Published::new();
        for shared in &self.shared {
            sum.add(&shared.read());
        }
        sum
    }

    pub(crate) fn tell(&self, command: Command) {
        for shard in 0..self.shared.len() {
            self.controller
                .post(shard as ShardId, command)
                .expect("a mailbox has room for a command");
        }
    }

    /// The counters of the load service itself.
    pub(crate) fn counters(&self, world: &World) -> ServiceSnapshot {
        world.service_totals(self.engine, 0)
    }
}

/// Waits until all are connected, runs the load for `time`, measured from the first message on,
/// and waits until every shard is done.
pub(crate) fn run(world: &mut World, clients: &Clients, time: Nanos) -> Published {
    until(world, clients, Phase::Ready, READY_WITHIN);
    let start = world.now() + MILLI;
    clients.tell(Command::Begin {
        start,
        measure: start,
        end: start + time,
    });
    until(world, clients, Phase::Done, time + DONE_WITHIN);
    clients.totals()
}

pub(crate) fn until(world: &mut World, clients: &Clients, phase: Phase, within: Nanos) {
    world
        .run_until(|_| clients.have_reached(phase), within)
        .unwrap_or_else(|stuck| {
            panic!(
                "not every client is {phase:?}: {stuck}\n{:?}",
                clients.totals().tally
            )
        });
}

/// Stops everything; nothing may be left anywhere, and every datagram must be accounted for.
pub(crate) fn stop(world: &mut World) {
    world.stop_all().unwrap_or_else(|stuck| panic!("{stuck}"));
    world.leaks().assert_none();
    let path = world.path();
    let gone = path.lost + path.queue_full + path.too_long + path.blackout + path.corrupted;
    assert_eq!(
        path.sent + path.duplicated,
        path.delivered + gone + path.socket_full + path.unreachable,
        "every datagram is accounted for: {path:?}"
    );
}
