//! What a protocol is promised, each promise on a simulated network where the unlikely order of
//! events comes up by itself within some seeds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::impairment::{Corruption, Impairment};
use ringmill_engine::{
    Address, Buffer, Closed, Connect, Context, Datagram, Limits, ListenerId, Nanos, Open, Protocol,
    Sent, Service, SocketId, StreamId, Transmit, error_name,
};

const MILLI: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MILLI;

fn server() -> SocketAddr {
    "10.0.0.1:7".parse().unwrap()
}

#[derive(Debug, Default)]
struct Seen {
    opened: u64,
    connected: u64,
    closed: u64,
    received: u64,
    goodbyes: u64,
    opens_refused: u64,
}

type Shared = Arc<Mutex<Seen>>;

/// Accepts, and reads what comes.
struct Sink(Shared);
impl Protocol for Sink {
    type Message = ();
    fn received(&mut self, _: &mut Context<'_, ()>, _: StreamId, data: Buffer) {
        self.0.lock().unwrap().received += data.len() as u64;
    }
    fn datagrams(&mut self, _: &mut Context<'_, ()>, _: SocketId, batch: &mut Vec<Datagram>) {
        self.0.lock().unwrap().goodbyes += batch
            .iter()
            .map(|datagram| datagram.count() as u64)
            .sum::<u64>();
    }
}

fn world<P: Protocol>(
    seed: u64,
    config: WorldConfig,
    seen: &Shared,
    client: impl Fn(Shared) -> P + Send + Sync + 'static,
) -> World {
    let mut world = World::new(seed, config);
    let (sink, told) = (Arc::clone(seen), Arc::clone(seen));
    let sink = Service::new("sink", move |_| Sink(Arc::clone(&sink)))
        .listen(server())
        .bind(server());
    world
        .engine(EngineSpec::new(1).host("10.0.0.1").service(sink))
        .unwrap();
    let client = Service::new("client", move |_| client(Arc::clone(&told)));
    world
        .engine(EngineSpec::new(1).host("10.0.0.2").service(client))
        .unwrap();
    world
}

fn coarse() -> WorldConfig {
    // Long turns, so that many events meet in one.
    WorldConfig {
        turn_time: 100_000..MILLI,
        ..WorldConfig::default()
    }
}

/// Opens some streams and closes all the others as soon as one is connected.
struct Racer {
    seen: Shared,
    streams: Vec<StreamId>,
    closed: Vec<StreamId>,
    send: bool,
}

impl Protocol for Racer {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for _ in 0..8 {
            self.streams.push(
                ctx.connect(&Connect {
                    to: server().into(),
                    from: None,
                })
                .unwrap(),
            );
        }
        self.seen.lock().unwrap().opened = 8;
    }
    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        assert!(!self.closed.contains(&stream), "connected after closed");
        self.seen.lock().unwrap().connected += 1;
        for other in self.streams.clone() {
            if other != stream {
                if self.send {
                    let _ = ctx.send(other, b"too soon" as &'static [u8]);
                }
                ctx.close(other);
            }
        }
    }
    fn closed(&mut self, _: &mut Context<'_, ()>, stream: StreamId, _: Closed) {
        assert!(!self.closed.contains(&stream), "closed twice");
        self.closed.push(stream);
        self.seen.lock().unwrap().closed += 1;
    }
}

#[test]
fn every_connect_that_is_closed_early_is_told_once() {
    for send in [false, true] {
        for seed in seeds(200).into_iter().take(200) {
            let seen = Shared::default();
            let mut world = world(seed, coarse(), &seen, move |seen| Racer {
                seen,
                streams: Vec::new(),
                closed: Vec::new(),
                send,
            });
            world.run_for(Duration::from_millis(100));
            assert!(seen.lock().unwrap().closed >= 7, "seed {seed}: {seen:?}");
            world.stop_all().unwrap();
            assert_eq!(seen.lock().unwrap().closed, 8, "seed {seed}");
            world.leaks().assert_none();
        }
    }
}

/// Sends a datagram as its last deed.
struct Polite(Shared);
impl Protocol for Polite {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        self.open(ctx);
    }
    fn stopping(&mut self, ctx: &mut Context<'_, ()>) {
        let socket = self.open(ctx);
        assert!(socket.is_none(), "nothing is opened once a stop has begun");
    }
}
impl Polite {
    fn open(&self, ctx: &mut Context<'_, ()>) -> Option<SocketId> {
        let open = Open {
            local: "0.0.0.0:0".parse().unwrap(),
            peer: Some(server()),
        };
        match ctx.open(&open) {
            Ok(socket) => Some(socket),
            Err(_) => {
                self.0.lock().unwrap().opens_refused += 1;
                None
            }
        }
    }
}

#[test]
fn no_socket_is_opened_once_a_stop_has_begun() {
    let seen = Shared::default();
    let mut world = world(1, WorldConfig::default(), &seen, Polite);
    world.run_for(Duration::from_millis(10));
    world.stop_all().unwrap();
    assert_eq!(seen.lock().unwrap().opens_refused, 1);
    world.leaks().assert_none();
}

struct Farewell {
    socket: Option<SocketId>,
}
impl Protocol for Farewell {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let open = Open {
            local: "0.0.0.0:0".parse().unwrap(),
            peer: Some(server()),
        };
        self.socket = Some(ctx.open(&open).unwrap());
    }
    fn stopping(&mut self, ctx: &mut Context<'_, ()>) {
        for _ in 0..20 {
            let farewell = Transmit::one(None, (b"farewell" as &'static [u8]).into());
            assert_eq!(
                ctx.send_datagrams(self.socket.unwrap(), farewell),
                Sent::Queued
            );
        }
    }
}

#[test]
fn datagrams_queued_while_stopping_are_sent() {
    for seed in seeds(50).into_iter().take(50) {
        let seen = Shared::default();
        let mut config = WorldConfig::default();
        config.faults.datagram_send_blocked = 0.2;
        let mut world = World::new(seed, config);
        let heard = Arc::clone(&seen);
        let sink = Service::new("sink", move |_| Sink(Arc::clone(&heard))).bind(server());
        world
            .engine(EngineSpec::new(1).host("10.0.0.1").service(sink))
            .unwrap();
        let farewell = Service::new("farewell", |_| Farewell { socket: None });
        let leaving = world
            .engine(EngineSpec::new(1).host("10.0.0.2").service(farewell))
            .unwrap();
        world.run_for(Duration::from_millis(10));
        world.stop(leaving);
        world
            .run_until(|world| world.has_ended(leaving), SECOND)
            .unwrap();
        world.run_for(Duration::from_millis(100));
        assert_eq!(seen.lock().unwrap().goodbyes, 20, "seed {seed}");
        world.stop_all().unwrap();
        world.leaks().assert_none();
    }
}

/// Sends and closes the socket in the same breath.
struct Hasty;
impl Protocol for Hasty {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let open = Open {
            local: "0.0.0.0:0".parse().unwrap(),
            peer: Some(server()),
        };
        let socket = ctx.open(&open).unwrap();
        let three = Transmit {
            stride: 100,
            ..Transmit::one(None, vec![0; 250].into())
        };
        assert_eq!(ctx.send_datagrams(socket, three), Sent::Queued);
        ctx.close_socket(socket);
    }
}

#[test]
fn datagrams_of_a_closed_socket_are_counted() {
    let mut world = World::new(1, WorldConfig::default());
    let hasty = Service::new("hasty", |_| Hasty);
    let hasty = world.engine(EngineSpec::new(1).service(hasty)).unwrap();
    world.run_for(Duration::from_millis(10));
    let totals = world.service_totals(hasty, 0);
    assert_eq!((totals.sent_datagrams, totals.dropped_datagrams), (0, 3));
    world.stop_all().unwrap();
    world.leaks().assert_none();
}

/// Pauses at once, then resumes and closes in one breath, with something left to send.
struct Fickle {
    seen: Shared,
    closing: bool,
    end: bool,
}
impl Protocol for Fickle {
    type Message = ();
    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _: ListenerId,
        _: Option<SocketAddr>,
    ) {
        ctx.set_tag(stream, 0);
    }
    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, _: Buffer) {
        assert!(!self.closing, "received after close");
        self.seen.lock().unwrap().received += 1;
        if ctx.tag(stream) == 0 {
            ctx.set_tag(stream, 1);
            ctx.pause(stream);
            for _ in 0..50 {
                let _ = ctx.send(stream, vec![1; 1000]);
            }
            ctx.set_timer(ctx.now() + 30 * MILLI, stream.index() as u64);
            self.end = true;
            FICKLE.with(|cell| cell.set(Some(stream)));
        }
    }
    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        let stream = FICKLE.with(|cell| cell.get()).unwrap();
        ctx.resume(stream);
        ctx.close(stream);
        assert_eq!(ctx.send(stream, b"late" as &'static [u8]), Sent::Closed);
        self.closing = true;
    }
    fn ended(&mut self, _: &mut Context<'_, ()>, _: StreamId) {
        assert!(!self.closing, "ended after close");
    }
}

thread_local! {
    /// The one stream of a run.
    static FICKLE: std::cell::Cell<Option<StreamId>> = const { std::cell::Cell::new(None) };
}

/// Sends a lot and reads nothing.
struct Talker;
impl Protocol for Talker {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        ctx.connect(&Connect {
            to: server().into(),
            from: None,
        })
        .unwrap();
    }
    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        ctx.pause(stream);
        let _ = ctx.send(stream, vec![0; 10_000]);
        ctx.finish(stream);
        assert_eq!(
            ctx.send(stream, b"after the end" as &'static [u8]),
            Sent::Closed,
            "finish is final"
        );
    }
}

#[test]
fn nothing_is_received_after_close() {
    for seed in seeds(100).into_iter().take(100) {
        let mut config = coarse();
        config.streams.send_buffer_bytes = 2000..3000;
        config.streams.receive_buffer_bytes = 5000..8000;
        let mut world = World::new(seed, config);
        let seen = Shared::default();
        let told = Arc::clone(&seen);
        let fickle = Service::new("fickle", move |_| Fickle {
            seen: Arc::clone(&told),
            closing: false,
            end: false,
        })
        .listen(server());
        world
            .engine(EngineSpec::new(1).host("10.0.0.1").service(fickle))
            .unwrap();
        world
            .engine(
                EngineSpec::new(1)
                    .host("10.0.0.2")
                    .service(Service::new("talker", |_| Talker)),
            )
            .unwrap();
        world.run_for(Duration::from_millis(200));
        assert!(seen.lock().unwrap().received > 0);
        world.stop_all().unwrap();
        world.leaks().assert_none();
    }
}

/// Never reads.
struct Deaf;
impl Protocol for Deaf {
    type Message = ();
    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _: ListenerId,
        _: Option<SocketAddr>,
    ) {
        ctx.pause(stream);
    }
}

/// Sends until its queue is full, and again whenever there is room.
struct Flood;
impl Flood {
    fn flood(ctx: &mut Context<'_, ()>, stream: StreamId) {
        while ctx.send(stream, vec![7; 1000]).is_queued() {}
    }
}
impl Protocol for Flood {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        ctx.connect(&Connect {
            to: server().into(),
            from: None,
        })
        .unwrap();
    }
    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        Self::flood(ctx, stream);
    }
    fn drained(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        Self::flood(ctx, stream);
    }
}

#[test]
fn a_paused_receiver_holds_its_sender() {
    let mut config = WorldConfig::default();
    config.streams.send_buffer_bytes = 5000..5001;
    config.streams.receive_buffer_bytes = 7000..7001;
    let mut world = World::new(1, config);
    let limits = Limits {
        stream_queue_bytes_max: 20_000,
        write_stall_timeout: Some(Duration::from_secs(3)),
        ..Limits::default()
    };
    let deaf = Service::new("deaf", |_| Deaf).listen(server());
    world
        .engine(EngineSpec::new(1).host("10.0.0.1").service(deaf))
        .unwrap();
    let flood = EngineSpec::new(1)
        .limits(limits)
        .host("10.0.0.2")
        .service(Service::new("flood", |_| Flood));
    let flood = world.engine(flood).unwrap();
    world.run_for(Duration::from_secs(1));
    let totals = world.service_totals(flood, 0);
    assert_eq!(totals.sent_bytes, 12_000, "what both kernels hold");
    assert!(totals.send_full > 0);
    // And it is not held for ever.
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.service_totals(flood, 0).stalled_closed, 1);
    world.stop_all().unwrap();
    world.leaks().assert_none();
}

/// Connects once and notes how it ends.
struct Caller {
    to: Address,
    from: Option<SocketAddr>,
    end: Arc<Mutex<String>>,
}
impl Protocol for Caller {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        if let Err(error) = ctx.connect(&Connect {
            to: self.to.clone(),
            from: self.from,
        }) {
            *self.end.lock().unwrap() = error_name(error.raw_os_error().unwrap()).to_owned();
        }
    }
    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        *self.end.lock().unwrap() = "connected".to_owned();
        ctx.close(stream);
    }
    fn closed(&mut self, _: &mut Context<'_, ()>, _: StreamId, reason: Closed) {
        if let Closed::Error(_) = reason {
            *self.end.lock().unwrap() = reason.to_string();
        }
    }
}

#[test]
fn connects_end_as_on_a_kernel() {
    let ip = |text: &str| Address::Ip(text.parse().unwrap());
    let path = |text: &str| Address::Unix(text.into());
    for (to, from, want) in [
        (ip("10.0.0.1:7"), None, "connected"),
        (ip("127.0.0.1:7"), None, "connected"),
        (ip("[fd00::1]:8"), None, "connected"),
        (path("/run/sink"), None, "connected"),
        (ip("10.0.0.1:7"), Some("10.0.0.1:0"), "connected"),
        (
            ip("10.0.0.1:7"),
            Some("10.9.9.9:0"),
            "no free local port or address",
        ),
        (ip("10.0.0.1:70"), None, "connection refused"),
        (ip("10.0.9.9:7"), None, "no route to host"),
        (path("/run/nobody"), None, "no such file"),
    ] {
        let case = format!("{to} from {from:?}");
        let mut world = World::new(1, WorldConfig::default());
        let end = Arc::new(Mutex::new(String::new()));
        let told = Arc::clone(&end);
        let from = from.map(|from| from.parse().unwrap());
        let caller = move |_| Caller {
            to: to.clone(),
            from,
            end: Arc::clone(&told),
        };
        let sink = Service::new("sink", |_| Sink(Shared::default()))
            .listen("0.0.0.0:7".parse::<SocketAddr>().unwrap())
            .listen("[fd00::1]:8".parse::<SocketAddr>().unwrap())
            .listen(path("/run/sink"));
        let spec = EngineSpec::new(2)
            .host("10.0.0.1")
            .host("fd00::1")
            .service(sink);
        world
            .engine(spec.service(Service::new("caller", caller)))
            .unwrap();
        world.run_for(Duration::from_secs(1));
        assert_eq!(*end.lock().unwrap(), want, "{case}");
        world.stop_all().unwrap();
        world.leaks().assert_none();
    }
}

#[test]
fn a_port_in_use_is_an_error_of_the_start() {
    let mut world = World::new(1, WorldConfig::default());
    let sink = || Service::new("sink", |_| Sink(Shared::default())).listen(server());
    world
        .engine(EngineSpec::new(1).host("10.0.0.1").service(sink()))
        .unwrap();
    let Err(error) = world.engine(EngineSpec::new(1).host("10.0.0.1").service(sink())) else {
        panic!("the port is in use");
    };
    assert!(
        error.to_string().starts_with("cannot listen on 10.0.0.1:7"),
        "{error}"
    );
    let free = Service::new("sink", |_| Sink(Shared::default()))
        .listen("10.0.0.1:0".parse::<SocketAddr>().unwrap());
    let engine = world
        .engine(EngineSpec::new(1).host("10.0.0.1").service(free))
        .unwrap();
    assert_ne!(world.ip_address(engine, 0).port(), 0);
    world.stop_all().unwrap();
}

/// Sends zeros, and counts the bits that are not.
struct Zeros;
impl Protocol for Zeros {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let socket = ctx
            .open(&Open {
                local: "10.0.0.2:0".parse().unwrap(),
                peer: None,
            })
            .unwrap();
        for _ in 0..100 {
            let zeros = Transmit::one(Some(server()), vec![0; 100].into());
            assert!(ctx.send_datagrams(socket, zeros).is_queued());
        }
        // An empty datagram is one, too.
        assert!(
            ctx.send_datagrams(socket, Transmit::one(Some(server()), vec![].into()))
                .is_queued()
        );
    }
}
struct Ones(Shared);
impl Protocol for Ones {
    type Message = ();
    fn datagrams(&mut self, _: &mut Context<'_, ()>, _: SocketId, batch: &mut Vec<Datagram>) {
        for datagram in batch.iter().flat_map(Datagram::iter) {
            let ones: u32 = datagram.iter().map(|byte| byte.count_ones()).sum();
            assert_eq!(ones, if datagram.is_empty() { 0 } else { 3 });
            self.0.lock().unwrap().received += 1;
        }
    }
}

#[test]
fn damaged_datagrams_arrive_when_asked_for() {
    let corruption = Corruption {
        probability: 1.0,
        bits: 3,
    };
    let forward = Impairment {
        corruption,
        ..Impairment::default()
    };
    let mut world = World::new(
        1,
        WorldConfig {
            forward,
            deliver_corrupted: true,
            ..WorldConfig::default()
        },
    );
    let seen = Shared::default();
    let told = Arc::clone(&seen);
    let ones = Service::new("ones", move |_| Ones(Arc::clone(&told))).bind(server());
    world
        .engine(EngineSpec::new(1).host("10.0.0.1").service(ones))
        .unwrap();
    world
        .engine(
            EngineSpec::new(1)
                .host("10.0.0.2")
                .service(Service::new("zeros", |_| Zeros)),
        )
        .unwrap();
    world.run_for(Duration::from_millis(100));
    assert_eq!(seen.lock().unwrap().received, 101);
    world.stop_all().unwrap();
    world.leaks().assert_none();
}

/// Sends its share on several streams and a socket, more than its shard may queue.
struct Crowd {
    left: Vec<(StreamId, usize)>,
    socket: Option<SocketId>,
    datagrams: usize,
}
impl Crowd {
    const SHARE: usize = 100_000;
    const DATAGRAMS: usize = 50;

    fn send(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        let (_, left) = self.left.iter_mut().find(|(id, _)| *id == stream).unwrap();
        while *left > 0 {
            let len = 2000.min(*left);
            if !ctx.send(stream, vec![7; len]).is_queued() {
                return;
            }
            *left -= len;
        }
        ctx.finish(stream);
    }
    fn send_datagrams(&mut self, ctx: &mut Context<'_, ()>) {
        while self.datagrams > 0 {
            let datagram = Transmit::one(Some(server()), vec![7; 1000].into());
            if !ctx
                .send_datagrams(self.socket.unwrap(), datagram)
                .is_queued()
            {
                return;
            }
            self.datagrams -= 1;
        }
    }
}
impl Protocol for Crowd {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for _ in 0..6 {
            let stream = ctx
                .connect(&Connect {
                    to: server().into(),
                    from: None,
                })
                .unwrap();
            self.left.push((stream, Self::SHARE));
        }
        let open = Open {
            local: "10.0.0.2:0".parse().unwrap(),
            peer: None,
        };
        self.socket = Some(ctx.open(&open).unwrap());
        ctx.set_timer(10 * MILLI, 0);
    }
    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        self.send_datagrams(ctx);
    }
    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        self.send(ctx, stream);
    }
    fn drained(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        self.send(ctx, stream);
    }
    fn socket_drained(&mut self, ctx: &mut Context<'_, ()>, _: SocketId) {
        self.send_datagrams(ctx);
    }
}

#[test]
fn whoever_was_refused_by_the_shards_bound_hears_of_room() {
    for bound in [1500, 5000, 20_000] {
        for seed in seeds(20).into_iter().take(20) {
            let seen = Shared::default();
            let mut world = World::new(seed, WorldConfig::default());
            let told = Arc::clone(&seen);
            let sink = Service::new("sink", move |_| Sink(Arc::clone(&told)))
                .listen(server())
                .bind(server());
            world
                .engine(EngineSpec::new(1).host("10.0.0.1").service(sink))
                .unwrap();
            let limits = Limits {
                stream_queue_bytes_max: 10_000,
                shard_queue_bytes_max: bound,
                ..Limits::default()
            };
            let crowd = |_| Crowd {
                left: Vec::new(),
                socket: None,
                datagrams: Crowd::DATAGRAMS,
            };
            let crowd = EngineSpec::new(1)
                .limits(limits)
                .host("10.0.0.2")
                .service(Service::new("crowd", crowd));
            world.engine(crowd).unwrap();
            let all = |_: &World| {
                let seen = seen.lock().unwrap();
                seen.received == 6 * Crowd::SHARE as u64 && seen.goodbyes == Crowd::DATAGRAMS as u64
            };
            world
                .run_until(all, 60 * SECOND)
                .unwrap_or_else(|stuck| panic!("bound {bound}: {stuck} {seen:?}"));
            world.stop_all().unwrap();
            world.leaks().assert_none();
        }
    }
}
