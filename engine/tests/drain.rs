//! What a graceful stop does with streams that are paused, half closed or full, on a simulated
//! network: it loses nothing that somebody still wants, and costs no longer than the peer takes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineId, EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::{
    Buffer, Closed, Connect, Context, Limits, ListenerId, Nanos, Protocol, Service, StreamId,
};

const MILLI: Nanos = 1_000_000;
/// A stop that takes this long has waited for its deadline, which is later.
const SOON: Nanos = 2_000 * MILLI;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const CHUNK: usize = 500;

fn address() -> SocketAddr {
    "10.0.0.1:7".parse().unwrap()
}

/// What a server's protocol saw of its stream.
#[derive(Debug, Default)]
struct Seen {
    received: usize,
    ended: usize,
    closed: Option<Closed>,
}

type Shared<T> = Arc<Mutex<T>>;

/// How the server treats its one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Reads nothing, ever.
    Deaf,
    /// Pauses with the first bytes, and reads on when the stop begins.
    ResumesAtTheStop,
    /// Once the stop has begun, pauses for a while whenever something arrives.
    PausesDuringTheStop,
    /// Sends so many bytes at once and reads what comes.
    Gives(usize),
}

/// Never closes: only the engine ends its streams.
struct Server {
    manner: Manner,
    seen: Shared<Seen>,
    stream: Option<StreamId>,
}

impl Protocol for Server {
    type Message = ();

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _: ListenerId,
        _: Option<SocketAddr>,
    ) {
        self.stream = Some(stream);
        match self.manner {
            Manner::Deaf => ctx.pause(stream),
            Manner::Gives(bytes) => assert!(ctx.send(stream, vec![1; bytes]).is_queued()),
            Manner::ResumesAtTheStop | Manner::PausesDuringTheStop => {}
        }
    }

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        assert_ne!(self.manner, Manner::Deaf, "a paused stream received");
        self.seen.lock().unwrap().received += data.len();
        match self.manner {
            Manner::ResumesAtTheStop if !ctx.is_stopping() => ctx.pause(stream),
            Manner::PausesDuringTheStop if ctx.is_stopping() => {
                ctx.pause(stream);
                ctx.set_timer(ctx.now() + MILLI, 0);
            }
            _ => {}
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        ctx.resume(self.stream.unwrap());
    }

    fn ended(&mut self, _: &mut Context<'_, ()>, _: StreamId) {
        self.seen.lock().unwrap().ended += 1;
    }

    fn closed(&mut self, _: &mut Context<'_, ()>, _: StreamId, reason: Closed) {
        self.seen.lock().unwrap().closed = Some(reason);
    }

    fn stopping(&mut self, ctx: &mut Context<'_, ()>) {
        if self.manner == Manner::ResumesAtTheStop {
            ctx.resume(self.stream.unwrap());
        }
    }
}

/// When a client sends FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Behind what it sends at first.
    AtOnce,
    /// When the server has ended.
    WithTheServer,
    /// So long after the connect.
    After(Nanos),
}

struct Client {
    /// Chunks sent at once, and when the server has ended.
    chunks: [usize; 2],
    end: End,
    stream: Option<StreamId>,
    received: Shared<usize>,
}

impl Client {
    fn send(ctx: &mut Context<'_, ()>, stream: StreamId, chunks: usize) {
        for _ in 0..chunks {
            assert!(ctx.send(stream, vec![7; CHUNK]).is_queued());
        }
    }
}

impl Protocol for Client {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let to = address().into();
        self.stream = Some(ctx.connect(&Connect { to, from: None }).unwrap());
    }

    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        Self::send(ctx, stream, self.chunks[0]);
        match self.end {
            End::AtOnce => ctx.finish(stream),
            End::WithTheServer => {}
            End::After(time) => {
                ctx.set_timer(ctx.now() + time, 0);
            }
        }
    }

    fn received(&mut self, _: &mut Context<'_, ()>, _: StreamId, data: Buffer) {
        *self.received.lock().unwrap() += data.len();
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        ctx.finish(self.stream.unwrap());
    }

    fn ended(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        if self.end == End::WithTheServer {
            Self::send(ctx, stream, self.chunks[1]);
        }
        ctx.close(stream);
    }
}

/// A server with one client, and what they saw.
struct Pair {
    world: World,
    server: EngineId,
    client: EngineId,
    seen: Shared<Seen>,
    received: Shared<usize>,
}

impl Pair {
    fn new(seed: u64, config: WorldConfig, manner: Manner, chunks: [usize; 2], end: End) -> Self {
        let mut world = World::new(seed, config);
        let limits = Limits {
            drain_timeout: DRAIN_TIMEOUT,
            ..Limits::default()
        };
        let (seen, received) = (Shared::<Seen>::default(), Shared::<usize>::default());
        let told = Arc::clone(&seen);
        let service = Service::new("server", move |_| Server {
            manner,
            seen: Arc::clone(&told),
            stream: None,
        });
        let spec = EngineSpec::new(1).limits(limits).host("10.0.0.1");
        let server = world
            .engine(spec.service(service.listen(address())))
            .unwrap();
        let told = Arc::clone(&received);
        let service = Service::new("client", move |_| Client {
            chunks,
            end,
            stream: None,
            received: Arc::clone(&told),
        });
        let spec = EngineSpec::new(1).host("10.0.0.2");
        let client = world.engine(spec.service(service)).unwrap();
        Self {
            world,
            server,
            client,
            seen,
            received,
        }
    }

    /// Stops the server; it must not take until its deadline, and nobody's stream may fail.
    fn stop(&mut self) {
        self.world.stop(self.server);
        let server = self.server;
        self.world
            .run_until(|world| world.has_ended(server), SOON)
            .unwrap_or_else(|stuck| panic!("{stuck}\n{:?}", self.seen));
        self.world.run_for(Duration::from_millis(500));
        for engine in [self.server, self.client] {
            assert_eq!(self.world.service_totals(engine, 0).failed, 0);
        }
        self.world.stop_all().unwrap();
        self.world.leaks().assert_none();
    }
}

/// Shards look rarely, so that much arrives at once.
fn coarse() -> WorldConfig {
    let mut config = WorldConfig {
        turn_time: 100_000..MILLI,
        wake_time: 100_000..5 * MILLI,
        ..WorldConfig::default()
    };
    config.streams.receive_bytes = 100..1000;
    config
}

fn each_seed(run: impl Fn(u64)) {
    for seed in seeds(100).into_iter().take(100) {
        run(seed);
    }
}

/// Its peer has more to send than both kernels hold, and so would never end.
#[test]
fn a_paused_stream_does_not_hold_up_the_stop() {
    each_seed(|seed| {
        let mut config = coarse();
        config.streams.send_buffer_bytes = 2000..3000;
        config.streams.receive_buffer_bytes = 5000..8000;
        for end in [End::AtOnce, End::WithTheServer] {
            let mut pair = Pair::new(seed, config.clone(), Manner::Deaf, [100, 2], end);
            pair.world.run_for(Duration::from_millis(50));
            pair.stop();
            let seen = pair.seen.lock().unwrap();
            assert_eq!((seen.received, seen.ended), (0, 0), "seed {seed}");
            assert!(seen.closed.is_some(), "seed {seed}");
        }
    });
}

/// Also when the peer has ended long ago and the end waits behind what is held.
#[test]
fn what_is_resumed_at_the_stop_gets_all_that_was_sent() {
    each_seed(|seed| {
        let manner = Manner::ResumesAtTheStop;
        let mut pair = Pair::new(seed, coarse(), manner, [5, 0], End::AtOnce);
        pair.world.run_for(Duration::from_millis(50));
        assert!(pair.seen.lock().unwrap().received < 5 * CHUNK);
        pair.stop();
        let seen = pair.seen.lock().unwrap();
        assert_eq!(seen.received, 5 * CHUNK, "seed {seed}: {seen:?}");
    });
}

/// The end that was held is the end of the stream, as one that was not held is.
#[test]
fn a_held_end_ends_a_stream_that_stops() {
    each_seed(|seed| {
        let manner = Manner::PausesDuringTheStop;
        let mut pair = Pair::new(seed, coarse(), manner, [1, 5], End::WithTheServer);
        pair.world.run_for(Duration::from_millis(50));
        pair.stop();
        let seen = pair.seen.lock().unwrap();
        assert_eq!((seen.received, seen.ended), (6 * CHUNK, 0), "seed {seed}");
        assert!(seen.closed.is_some());
    });
}

/// A peer that sends FIN while it still receives gets the rest.
#[test]
fn a_peer_that_ends_during_the_stop_gets_what_is_queued() {
    const BYTES: usize = 100_000;
    each_seed(|seed| {
        let mut config = coarse();
        config.streams.send_buffer_bytes = 2000..3000;
        config.streams.receive_buffer_bytes = 5000..8000;
        let (manner, end) = (Manner::Gives(BYTES), End::After(20 * MILLI));
        let mut pair = Pair::new(seed, config, manner, [1, 0], end);
        pair.world.run_for(Duration::from_millis(10));
        pair.stop();
        assert_eq!(*pair.received.lock().unwrap(), BYTES, "seed {seed}");
    });
}
