//! An echo service and a client that checks every byte, on simulated networks of every kind.
//!
//! `RINGMILL_SEEDS=N` runs more seeds, `RINGMILL_SEED=S` replays one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{
    EngineId, EngineSpec, FaultCounts, Faults, Partition, StreamConfig, World, WorldConfig, seeds,
};
use ringmill_engine::impairment::{Corruption, Impairment, Loss, Rate, Reordering, mix};
use ringmill_engine::{
    Buffer, Closed, Connect, Context, Datagram, Limits, ListenerId, Nanos, Open, Payload, Protocol,
    Service, SocketId, StreamId, Transmit,
};

const MILLI: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MILLI;
/// Longest virtual time of one run: slow seeds move one byte in some milliseconds.
const RUN_MAX: Nanos = 4_000 * SECOND;

/// A small deterministic source of the tests' own.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % bound.max(1)
    }
}

// ---- the service under test ------------------------------------------------------------------

/// Sends back what it gets; when its queue is full it stops reading.
struct Echo {
    /// What did not fit, and whether the peer has ended, by stream.
    waiting: Vec<Option<(Buffer, bool)>>,
    /// Drops one byte of every receive: to see that the check can fail.
    broken: bool,
    report: Arc<Mutex<Report>>,
}

#[derive(Default, Debug, Clone)]
struct Report {
    greetings_posted: u64,
    greetings_heard: u64,
    /// Streams that the clients are through with, in whatever way.
    streams_over: u64,
    /// Streams on which everything came back.
    streams_whole: u64,
    streams_reset: u64,
    connects_failed: u64,
    bytes_checked: u64,
    flows_over: u64,
    datagrams_sent: u64,
    datagrams_back: u64,
    datagrams_twice: u64,
    datagrams_late: u64,
    refusals_heard: u64,
    opens_failed: u64,
    peers_known: u64,
    stopping: bool,
}

impl Echo {
    fn echo(&mut self, ctx: &mut Context<'_, u64>, stream: StreamId, data: Buffer) {
        if ctx.send(stream, data.clone()).is_full() {
            if self.waiting.len() <= stream.index() {
                self.waiting.resize_with(stream.index() + 1, || None);
            }
            ctx.pause(stream);
            self.waiting[stream.index()] = Some((Buffer::copied(&data), false));
        }
    }
}

impl Protocol for Echo {
    type Message = u64;

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, u64>,
        _: StreamId,
        _: ListenerId,
        peer: Option<SocketAddr>,
    ) {
        let next = (ctx.shard() + 1) % ctx.shards();
        let mut report = self.report.lock().unwrap();
        report.peers_known += u64::from(peer.is_some());
        if ctx.post(next, ctx.now()).is_ok() {
            report.greetings_posted += 1;
        }
    }

    fn message(&mut self, ctx: &mut Context<'_, u64>, _: u16, sent: u64) {
        assert!(ctx.now() >= sent, "a message from the future");
        self.report.lock().unwrap().greetings_heard += 1;
    }

    fn received(&mut self, ctx: &mut Context<'_, u64>, stream: StreamId, mut data: Buffer) {
        if self.broken && data.len() > 1 {
            data.advance(1);
        }
        self.echo(ctx, stream, data);
    }

    fn drained(&mut self, ctx: &mut Context<'_, u64>, stream: StreamId) {
        let Some(waiting) = self.waiting.get_mut(stream.index()) else {
            return;
        };
        let Some((data, ended)) = waiting.take() else {
            return;
        };
        self.echo(ctx, stream, data);
        match &mut self.waiting[stream.index()] {
            Some((_, still)) => *still = ended,
            None if ended => ctx.close(stream),
            None => ctx.resume(stream),
        }
    }

    fn ended(&mut self, ctx: &mut Context<'_, u64>, stream: StreamId) {
        match self.waiting.get_mut(stream.index()) {
            Some(Some((_, ended))) => *ended = true,
            _ => ctx.close(stream),
        }
    }

    fn closed(&mut self, _: &mut Context<'_, u64>, stream: StreamId, _: Closed) {
        if let Some(waiting) = self.waiting.get_mut(stream.index()) {
            *waiting = None;
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, u64>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for Datagram {
            peer,
            local,
            ecn,
            stride,
            data,
        } in batch.drain(..)
        {
            let transmit = Transmit {
                peer: Some(peer),
                source: local,
                ecn,
                stride,
                data: data.into(),
            };
            // A full queue drops, as UDP does.
            let _ = ctx.send_datagrams(socket, transmit);
        }
    }
}

// ---- the checking client ---------------------------------------------------------------------

#[derive(Clone)]
struct Plan {
    server: SocketAddr,
    datagram_server: SocketAddr,
    seed: u64,
    streams: u64,
    /// Bytes of one stream at most.
    bytes_max: u64,
    flows: u64,
    datagrams: u64,
    datagram_bytes_max: u64,
    /// The clients sometimes stop reading, or reset.
    moody: bool,
    /// Nothing may be lost, doubled or late.
    strict: bool,
}

impl Plan {
    fn all(&self, shards: u64) -> (u64, u64) {
        (self.streams * shards, self.flows * shards)
    }
}

/// The byte at a position of a stream or datagram.
fn pattern(key: u64, at: u64) -> u8 {
    (mix(key ^ (at / 8)) >> (at % 8 * 8)) as u8
}

struct Talk {
    id: StreamId,
    key: u64,
    total: u64,
    sent: u64,
    back: u64,
    /// FIN has been asked for.
    finished: bool,
    ended: bool,
    told: bool,
    dice: Dice,
}

struct Flow {
    key: u64,
    socket: Option<SocketId>,
    lens: Vec<u16>,
    seen: Vec<u32>,
    highest: Option<usize>,
}

struct Checker {
    plan: Plan,
    report: Arc<Mutex<Report>>,
    dice: Dice,
    by_stream: Vec<Option<Talk>>,
    /// The last stream that was paused: sometimes another one wakes it early.
    asleep: Option<StreamId>,
    flows: Vec<Flow>,
    retries: Vec<u64>,
}

const CONNECT: u64 = 1 << 32;
const RESUME: u64 = 2 << 32;
const SEND: u64 = 3 << 32;
const FLOW: u64 = 4 << 32;
const RETRIES_MAX: u64 = 5;

impl Checker {
    fn new(plan: Plan, shard: u16, report: Arc<Mutex<Report>>) -> Self {
        let dice = Dice(mix(plan.seed ^ u64::from(shard)) >> 1);
        Self {
            retries: vec![0; plan.streams as usize],
            plan,
            report,
            dice,
            by_stream: Vec::new(),
            asleep: None,
            flows: Vec::new(),
        }
    }

    fn connect(&mut self, ctx: &mut Context<'_, ()>, number: u64) {
        match ctx.connect(&Connect {
            to: self.plan.server.into(),
            from: None,
        }) {
            Ok(id) => {
                let mut dice = Dice(self.dice.below(u64::MAX >> 1));
                let talk = Talk {
                    id,
                    key: mix(self.plan.seed ^ number << 20),
                    total: dice.below(self.plan.bytes_max + 1),
                    sent: 0,
                    back: 0,
                    finished: false,
                    ended: false,
                    told: false,
                    dice,
                };
                if self.by_stream.len() <= id.index() {
                    self.by_stream.resize_with(id.index() + 1, || None);
                }
                assert!(
                    self.by_stream[id.index()].is_none(),
                    "a stream's place was taken before it was closed"
                );
                self.by_stream[id.index()] = Some(talk);
            }
            Err(_) => {
                let retries = &mut self.retries[number as usize];
                *retries += 1;
                if *retries > RETRIES_MAX || ctx.is_stopping() {
                    let mut report = self.report.lock().unwrap();
                    report.connects_failed += 1;
                    report.streams_over += 1;
                } else {
                    ctx.set_timer(ctx.now() + 10 * MILLI, CONNECT | number);
                }
            }
        }
    }

    fn talk(&mut self, id: StreamId) -> &mut Talk {
        let talk = self.by_stream.get_mut(id.index()).and_then(Option::as_mut);
        talk.filter(|talk| talk.id == id)
            .expect("an event for a stream that was never opened or is closed")
    }

    fn talk_on(&mut self, ctx: &mut Context<'_, ()>, id: StreamId) {
        let moody = self.plan.moody;
        loop {
            let talk = self.talk(id);
            if talk.sent == talk.total {
                break;
            }
            if moody && talk.dice.below(8) == 0 {
                // Think for a while.
                let pause = talk.dice.below(20 * MILLI);
                ctx.set_timer(ctx.now() + pause, SEND | id.index() as u64);
                return;
            }
            let len = (1 + talk.dice.below(3000)).min(talk.total - talk.sent);
            let bytes: Vec<u8> = (talk.sent..talk.sent + len)
                .map(|at| pattern(talk.key, at))
                .collect();
            let pooled = if talk.dice.below(2) == 0 {
                ctx.fill()
            } else {
                None
            };
            let sent = match pooled {
                Some(mut buffer) => {
                    buffer[..bytes.len()].copy_from_slice(&bytes);
                    ctx.send(id, buffer.freeze(bytes.len()))
                }
                None => ctx.send(id, Arc::<[u8]>::from(bytes)),
            };
            if !sent.is_queued() {
                return;
            }
            self.talk(id).sent += len;
        }
        let talk = self.talk(id);
        if !talk.finished {
            talk.finished = true;
            ctx.finish(id);
        }
    }

    fn send_flow(&mut self, ctx: &mut Context<'_, ()>, number: u64) {
        let at = number as usize;
        let (server, connected) = (self.plan.datagram_server, number.is_multiple_of(2));
        let peer = connected.then_some(server);
        if self.flows[at].socket.is_none() {
            match ctx.open(&Open {
                local: SocketAddr::from(([0, 0, 0, 0], 0)),
                peer,
            }) {
                Ok(socket) => {
                    ctx.set_socket_tag(socket, number);
                    self.flows[at].socket = Some(socket);
                }
                Err(_) => {
                    self.report.lock().unwrap().opens_failed += 1;
                    ctx.set_timer(ctx.now() + 5 * MILLI, FLOW | number);
                    return;
                }
            }
        }
        let flow = &mut self.flows[at];
        let socket = flow.socket.expect("opened above");
        let left = self.plan.datagrams - flow.lens.len() as u64;
        if left == 0 {
            // The last answers have had their time.
            let first = (1..flow.seen.len()).all(|index| flow.seen[index] == 1);
            assert!(
                !self.plan.strict || first,
                "something was lost or doubled: {:?}",
                flow.seen
            );
            self.report.lock().unwrap().flows_over += 1;
            ctx.close_socket(socket);
            flow.socket = None;
            return;
        }
        // A burst of equal datagrams, the last perhaps shorter: one GSO send.
        let stride = 16 + self.dice.below(self.plan.datagram_bytes_max - 15);
        let count = (1 + self.dice.below(8))
            .min(left)
            .min(ctx.segments_max(stride as usize) as u64);
        let mut bytes = Vec::new();
        for index in 0..count {
            let len = if index + 1 == count {
                16 + self.dice.below(stride - 15)
            } else {
                stride
            };
            let sequence = flow.lens.len() as u64;
            bytes.extend_from_slice(&number.to_be_bytes());
            bytes.extend_from_slice(&sequence.to_be_bytes());
            bytes.extend((16..len).map(|at| pattern(flow.key ^ sequence, at)));
            flow.lens.push(len as u16);
            flow.seen.push(0);
        }
        let payload = Payload::from(bytes);
        let transmit = Transmit {
            peer: (!connected).then_some(server),
            source: None,
            ecn: 2,
            stride: stride.min(payload.len() as u64) as u16,
            data: payload,
        };
        let _ = ctx.send_datagrams(socket, transmit);
        self.report.lock().unwrap().datagrams_sent += count;
        let pause = if count == left {
            2 * SECOND
        } else {
            self.dice.below(5 * MILLI)
        };
        ctx.set_timer(ctx.now() + pause, FLOW | number);
    }
}

impl Protocol for Checker {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for number in 0..self.plan.streams {
            let at = ctx.now() + self.dice.below(100 * MILLI);
            ctx.set_timer(at, CONNECT | number);
        }
        for number in 0..self.plan.flows {
            let key = mix(self.plan.seed ^ number << 40);
            self.flows.push(Flow {
                key,
                socket: None,
                lens: Vec::new(),
                seen: Vec::new(),
                highest: None,
            });
            ctx.set_timer(ctx.now() + self.dice.below(50 * MILLI), FLOW | number);
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, token: u64) {
        let detail = token & 0xffff_ffff;
        match token & !0xffff_ffff {
            CONNECT => self.connect(ctx, detail),
            FLOW => {
                if !ctx.is_stopping() {
                    self.send_flow(ctx, detail);
                }
            }
            kind => {
                let Some(Some(talk)) = self.by_stream.get(detail as usize) else {
                    return;
                };
                let id = talk.id;
                if kind == RESUME {
                    ctx.resume(id)
                } else {
                    self.talk_on(ctx, id)
                }
            }
        }
    }

    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        self.talk_on(ctx, stream);
    }

    fn drained(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        self.talk_on(ctx, stream);
    }

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        let moody = self.plan.moody;
        if let Some(other) = self
            .asleep
            .filter(|other| *other != stream && self.dice.below(2) == 0)
        {
            self.asleep = None;
            ctx.resume(other);
        }
        let talk = self.talk(stream);
        for (at, byte) in data.iter().enumerate() {
            let at = talk.back + at as u64;
            assert_eq!(
                *byte,
                pattern(talk.key, at),
                "byte {at} of {stream:?} came back wrong"
            );
        }
        talk.back += data.len() as u64;
        assert!(
            talk.back <= talk.sent,
            "{stream:?}: {} bytes back, {} sent",
            talk.back,
            talk.sent
        );
        assert!(!talk.ended, "bytes after the end");
        if moody && talk.dice.below(10) == 0 {
            ctx.pause(stream);
            let pause = talk.dice.below(30 * MILLI);
            ctx.set_timer(ctx.now() + pause, RESUME | stream.index() as u64);
            self.asleep = Some(stream);
        } else if moody && talk.dice.below(200) == 0 {
            ctx.reset(stream);
        }
        self.report.lock().unwrap().bytes_checked += data.len() as u64;
    }

    fn ended(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        let report = Arc::clone(&self.report);
        let talk = self.talk(stream);
        assert!(
            !std::mem::replace(&mut talk.ended, true),
            "told twice of the end"
        );
        let mut report = report.lock().unwrap();
        if !report.stopping {
            assert!(talk.finished, "{stream:?}: the server ended first");
            assert_eq!(
                talk.back, talk.sent,
                "{stream:?}: the end came before the last byte"
            );
        }
        if talk.finished && talk.back == talk.total {
            report.streams_whole += 1;
        }
        drop(report);
        ctx.close(stream);
    }

    fn closed(&mut self, _: &mut Context<'_, ()>, stream: StreamId, reason: Closed) {
        let talk = self.talk(stream);
        assert!(
            !std::mem::replace(&mut talk.told, true),
            "told twice of the close"
        );
        self.by_stream[stream.index()] = None;
        let mut report = self.report.lock().unwrap();
        report.streams_over += 1;
        report.streams_reset += u64::from(matches!(reason, Closed::Error(_)));
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let number = ctx.socket_tag(socket);
        let flow = &mut self.flows[number as usize];
        let mut report = self.report.lock().unwrap();
        for datagram in batch.iter() {
            assert_eq!(datagram.peer, self.plan.datagram_server);
            assert_eq!(datagram.ecn, 2);
            for bytes in datagram.iter() {
                let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
                assert_eq!(word(0), number, "a datagram of another flow");
                let sequence = word(8) as usize;
                assert!(sequence < flow.lens.len(), "a datagram that was never sent");
                assert_eq!(
                    bytes.len(),
                    usize::from(flow.lens[sequence]),
                    "a datagram was cut or joined"
                );
                let intact = bytes[16..]
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == pattern(flow.key ^ sequence as u64, at as u64 + 16));
                assert!(intact, "a damaged datagram was delivered");
                report.datagrams_back += 1;
                report.datagrams_twice += u64::from(flow.seen[sequence] > 0);
                flow.seen[sequence] += 1;
                let late = flow.highest.is_some_and(|highest| sequence < highest);
                report.datagrams_late += u64::from(late);
                assert!(!(late && self.plan.strict), "a datagram was overtaken");
                flow.highest = flow.highest.max(Some(sequence));
            }
        }
    }

    fn socket_error(&mut self, _: &mut Context<'_, ()>, _: SocketId, errno: i32) {
        assert_eq!(errno, libc::ECONNREFUSED);
        self.report.lock().unwrap().refusals_heard += 1;
    }
}

// ---- running it ------------------------------------------------------------------------------

struct Run {
    world: World,
    server: EngineId,
    clients: EngineId,
    report: Arc<Mutex<Report>>,
    plan: Plan,
    client_shards: u16,
}

struct Sizes {
    server_shards: u16,
    client_shards: u16,
    streams: u64,
    bytes_max: u64,
    flows: u64,
    datagrams: u64,
    moody: bool,
    strict: bool,
    broken: bool,
    limits: Limits,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            server_shards: 2,
            client_shards: 1,
            streams: 8,
            bytes_max: 20_000,
            flows: 2,
            datagrams: 50,
            moody: false,
            strict: false,
            broken: false,
            limits: small_limits(),
        }
    }
}

fn small_limits() -> Limits {
    Limits {
        stream_queue_bytes_max: 8 << 10,
        socket_queue_bytes_max: 32 << 10,
        stream_pool_bytes: 128 << 10,
        datagram_buffers: 8,
        fill_buffers: 4,
        ..Limits::default()
    }
}

impl Run {
    fn new(seed: u64, config: WorldConfig, sizes: Sizes) -> Self {
        let mut world = World::new(seed, config);
        let report = Arc::new(Mutex::new(Report::default()));
        let listen: SocketAddr = "10.0.0.1:7".parse().unwrap();
        let heard = Arc::clone(&report);
        let broken = sizes.broken;
        let echo = Service::new("echo", move |_| Echo {
            waiting: Vec::new(),
            broken,
            report: Arc::clone(&heard),
        })
        .with_peer_addresses()
        .listen(listen)
        .bind("0.0.0.0:9".parse().unwrap());
        let spec = EngineSpec::new(sizes.server_shards)
            .limits(sizes.limits.clone())
            .host("10.0.0.1")
            .service(echo);
        let server = world.engine(spec).unwrap();
        let plan = Plan {
            server: listen,
            datagram_server: "10.0.0.1:9".parse().unwrap(),
            seed,
            streams: sizes.streams,
            bytes_max: sizes.bytes_max,
            flows: sizes.flows,
            datagrams: sizes.datagrams,
            datagram_bytes_max: 1400,
            moody: sizes.moody,
            strict: sizes.strict,
        };
        let (told, planned) = (Arc::clone(&report), plan.clone());
        let checker = Service::new("checker", move |shard| {
            Checker::new(planned.clone(), shard, Arc::clone(&told))
        });
        let spec = EngineSpec::new(sizes.client_shards)
            .limits(sizes.limits)
            .host("10.0.0.2")
            .service(checker);
        let clients = world.engine(spec).unwrap();
        Self {
            world,
            server,
            clients,
            report,
            plan,
            client_shards: sizes.client_shards,
        }
    }

    fn report(&self) -> Report {
        self.report.lock().unwrap().clone()
    }

    /// Until every stream and flow is over.
    fn finish(&mut self) {
        let (streams, flows) = self.plan.all(u64::from(self.client_shards));
        let report = Arc::clone(&self.report);
        let over = move |_: &World| {
            let report = report.lock().unwrap();
            report.streams_over >= streams && report.flows_over >= flows
        };
        self.world
            .run_until(over, RUN_MAX)
            .unwrap_or_else(|stuck| panic!("{stuck}\n{:?}", self.report()));
    }

    /// Stops everything and checks that nothing is left anywhere.
    fn stop(&mut self) {
        self.report.lock().unwrap().stopping = true;
        self.world
            .stop_all()
            .unwrap_or_else(|stuck| panic!("{stuck}\n{:?}", self.report()));
        self.world.leaks().assert_none();
        let path = self.world.path();
        let gone = path.lost + path.queue_full + path.too_long + path.blackout + path.corrupted;
        assert_eq!(
            path.sent + path.duplicated,
            path.delivered + gone + path.socket_full + path.unreachable,
            "every datagram is accounted for: {path:?}"
        );
    }
}

/// A run in which everything, sizes and faults, follows from the seed.
fn mixed(seed: u64, broken: bool) -> Run {
    let config = WorldConfig::random(seed);
    let mut dice = Dice(mix(seed ^ 0xd1ce) >> 1);
    // So that the slowest network is through in reasonable time.
    let window = config
        .streams
        .send_buffer_bytes
        .start
        .min(config.streams.receive_buffer_bytes.start);
    let step = window
        .min(config.streams.segment_bytes.end)
        .min(config.streams.receive_bytes.end);
    let sizes = Sizes {
        server_shards: 1 + dice.below(3) as u16,
        client_shards: 1 + dice.below(2) as u16,
        streams: dice.below(10),
        bytes_max: (step * 40).clamp(50, 20_000),
        flows: dice.below(3),
        datagrams: 1 + dice.below(60),
        moody: dice.below(2) == 0,
        strict: false,
        broken,
        limits: Limits {
            stream_queue_bytes_max: 100 << dice.below(10),
            shard_queue_bytes_max: if dice.below(4) == 0 {
                500 << dice.below(8)
            } else {
                256 << 20
            },
            max_connections: if dice.below(8) == 0 { 4 } else { 1000 },
            idle_timeout: (dice.below(4) == 0).then_some(Duration::from_secs(5)),
            ..small_limits()
        },
    };
    let mut run = Run::new(seed, config, sizes);
    match dice.below(8) {
        // Stop or kill under load.
        0 | 1 => run
            .world
            .run_for(Duration::from_nanos(dice.below(300 * MILLI))),
        2 => {
            run.world
                .run_for(Duration::from_nanos(dice.below(300 * MILLI)));
            run.report.lock().unwrap().stopping = true;
            let victim = if dice.below(2) == 0 {
                run.server
            } else {
                run.clients
            };
            match dice.below(3) {
                0 => run.world.kill(victim),
                1 => run.world.stop_now(victim),
                _ => run.world.stop(victim),
            }
            run.world
                .run_for(Duration::from_nanos(dice.below(300 * MILLI)));
        }
        _ => run.finish(),
    }
    run.stop();
    run
}

#[test]
fn every_byte_comes_back_on_every_network() {
    let seeds = seeds(1000);
    let mut sum = Report::default();
    let mut trace = 0;
    let mut injected: Vec<(&str, u64)> = FaultCounts::default().list();
    for seed in &seeds {
        let run = mixed(*seed, false);
        trace = mix(trace ^ run.world.trace_hash());
        let report = run.report();
        sum.streams_whole += report.streams_whole;
        sum.streams_reset += report.streams_reset;
        sum.bytes_checked += report.bytes_checked;
        sum.datagrams_back += report.datagrams_back;
        sum.datagrams_twice += report.datagrams_twice;
        sum.datagrams_late += report.datagrams_late;
        for (total, (_, count)) in injected.iter_mut().zip(run.world.faults().list()) {
            total.1 += count;
        }
    }
    println!(
        "{} seeds, trace {trace:016x}: {sum:?}\n{injected:?}",
        seeds.len()
    );
    if seeds.len() >= 1000 {
        for (fault, count) in injected {
            assert!(count > 0, "{fault} was never injected");
        }
        assert!(
            sum.streams_whole > 1000 && sum.datagrams_twice > 0 && sum.datagrams_late > 0,
            "{sum:?}"
        );
    }
}

/// Seeds of a focused test: RINGMILL_SEEDS is for the mixed one.
fn few(count: usize) -> impl Iterator<Item = u64> {
    seeds(count as u64).into_iter().take(count)
}

#[test]
fn a_clean_network_keeps_everything_in_order() {
    let sizes = Sizes {
        streams: 30,
        flows: 4,
        strict: true,
        moody: false,
        ..Sizes::default()
    };
    let mut run = Run::new(1, WorldConfig::default(), sizes);
    run.finish();
    let report = run.report();
    assert_eq!(
        (report.streams_whole, report.streams_reset),
        (30, 0),
        "{report:?}"
    );
    assert_eq!(report.datagrams_back, report.datagrams_sent);
    assert_eq!((report.greetings_posted, report.greetings_heard), (30, 30));
    assert_eq!(report.peers_known, 30);
    assert!(
        run.world.path().coalesced > 0,
        "some receives held several datagrams"
    );
    assert!(
        run.world
            .faults()
            .list()
            .iter()
            .all(|(_, count)| *count == 0),
        "no fault without a knob"
    );
    let (server, clients) = (
        run.world.service_totals(run.server, 0),
        run.world.service_totals(run.clients, 0),
    );
    assert_eq!(
        (
            server.accepted,
            clients.connected,
            server.failed + clients.failed
        ),
        (30, 30, 0)
    );
    assert_eq!(
        (server.received_bytes, server.sent_bytes),
        (clients.sent_bytes, clients.received_bytes)
    );
    run.stop();
}

#[test]
fn every_fault_is_injected_and_survived() {
    for (fault, probability) in [
        ("receive_buffers_exhausted", 0.2),
        ("completion_overflow", 0.2),
        ("receive_ended", 0.5),
        ("short_send", 0.7),
        ("datagram_send_blocked", 0.3),
        ("segmentation_refused", 1.0),
        ("spurious_wake", 0.5),
        ("early_timer_wake", 0.5),
        ("late_message_wake", 0.5),
        ("accept_failed", 0.3),
        ("connect_failed", 0.2),
        ("open_failed", 0.5),
        ("fill_exhausted", 0.5),
        ("connection_refused", 0.4),
        ("connection_lost", 0.3),
        ("connection_reset", 1.0),
        ("datagram_refused", 0.1),
    ] {
        for seed in few(5) {
            let mut config = WorldConfig::default();
            assert!(config.faults.set(fault, probability), "{fault} is a fault");
            let sizes = Sizes {
                streams: 20,
                flows: 3,
                moody: fault == "connection_reset",
                bytes_max: if fault == "connection_reset" {
                    300_000
                } else {
                    20_000
                },
                ..Sizes::default()
            };
            let mut run = Run::new(seed, config, sizes);
            run.finish();
            let (report, injected) = (run.report(), run.world.faults());
            for (name, count) in injected.list() {
                assert_eq!(
                    count > 0,
                    name == fault,
                    "{fault}, seed {seed}: {name} was injected {count} times"
                );
            }
            let harmless = !fault.starts_with("connection_");
            let whole = report.streams_whole == 20 && report.streams_reset == 0;
            assert_eq!(whole, harmless, "{fault}, seed {seed}: {report:?}");
            assert_eq!(
                report.datagrams_back, report.datagrams_sent,
                "{fault}, seed {seed}"
            );
            let server = run.world.shard_totals(run.server);
            match fault {
                "accept_failed" => {
                    assert!(server.accept_pauses > 0);
                    assert!(
                        run.world.take_notice(run.server).is_some(),
                        "the operator hears of it"
                    );
                }
                "datagram_refused" => assert!(report.refusals_heard > 0),
                "open_failed" => assert!(report.opens_failed > 0),
                "completion_overflow" => assert!(server.completion_overflows > 0),
                "receive_buffers_exhausted" => assert!(server.buffers_exhausted > 0),
                _ => {}
            }
            run.stop();
        }
    }
}

#[test]
fn every_impairment_of_a_path_does_what_it_says() {
    type Seen = fn(&Run) -> u64;
    let cases: [(&str, Impairment, Seen); 7] = [
        (
            "loss",
            Impairment {
                loss: Loss::Uniform { probability: 0.2 },
                ..Impairment::default()
            },
            |run| run.world.path().lost,
        ),
        (
            "duplication",
            Impairment {
                duplication: 0.2,
                ..Impairment::default()
            },
            |run| run.report().datagrams_twice,
        ),
        (
            "reordering",
            Impairment {
                reordering: Reordering {
                    probability: 0.2,
                    gap: 2,
                    hold_us_max: 1000,
                    ..Reordering::default()
                },
                ..Impairment::default()
            },
            |run| run.report().datagrams_late,
        ),
        (
            "jitter",
            Impairment {
                delay_us: 5000,
                jitter_us: 5000,
                ..Impairment::default()
            },
            |run| run.report().datagrams_late,
        ),
        (
            "corruption, dropped by the checksum",
            Impairment {
                corruption: Corruption {
                    probability: 0.2,
                    bits: 3,
                },
                ..Impairment::default()
            },
            |run| run.world.path().corrupted,
        ),
        (
            "a bottleneck",
            Impairment {
                rate: Some(Rate {
                    bits_per_second: 200_000,
                    queue_bytes_max: 3000,
                    ..Rate::default()
                }),
                ..Impairment::default()
            },
            |run| run.world.path().queue_full,
        ),
        (
            "a small MTU",
            Impairment {
                datagram_bytes_max: Some(500),
                ..Impairment::default()
            },
            |run| run.world.path().too_long,
        ),
    ];
    for (name, forward, seen) in cases {
        let config = WorldConfig {
            forward,
            ..WorldConfig::default()
        };
        let mut run = Run::new(
            5,
            config,
            Sizes {
                streams: 0,
                flows: 4,
                ..Sizes::default()
            },
        );
        run.finish();
        assert!(seen(&run) > 0, "{name}: {:?}", run.world.path());
        run.stop();
    }
}

#[test]
fn a_full_socket_drops() {
    let config = WorldConfig {
        socket_buffer_bytes: 3000,
        wake_time: 5 * MILLI..20 * MILLI,
        ..WorldConfig::default()
    };
    let mut run = Run::new(
        6,
        config,
        Sizes {
            streams: 0,
            flows: 4,
            ..Sizes::default()
        },
    );
    run.finish();
    assert!(run.world.path().socket_full > 0);
    run.stop();
}

#[test]
fn streams_survive_a_partition_and_loss() {
    for seed in few(10) {
        let config = WorldConfig {
            streams: StreamConfig {
                segment_loss: 0.2,
                ..StreamConfig::default()
            },
            partitions: vec![Partition {
                from: 50 * MILLI,
                until: 2 * SECOND,
            }],
            ..WorldConfig::default()
        };
        let mut run = Run::new(
            seed,
            config,
            Sizes {
                streams: 10,
                flows: 2,
                datagrams: 500,
                ..Sizes::default()
            },
        );
        run.finish();
        assert_eq!(run.report().streams_whole, 10);
        assert!(run.world.now() > 2 * SECOND);
        assert!(run.world.path().blackout > 0 && run.world.path().retransmitted > 0);
        run.stop();
    }
}

#[test]
fn a_full_shard_hands_on() {
    let config = WorldConfig {
        streams_per_shard_max: 4,
        ..WorldConfig::default()
    };
    let sizes = Sizes {
        server_shards: 3,
        streams: 30,
        bytes_max: 100_000,
        flows: 0,
        moody: true,
        ..Sizes::default()
    };
    let mut run = Run::new(7, config, sizes);
    run.finish();
    assert!(run.world.shard_totals(run.server).handed_on > 0);
    run.stop();
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut traces = Vec::new();
    for seed in few(40) {
        let (first, second) = (mixed(seed, false), mixed(seed, false));
        assert_eq!(
            first.world.trace_hash(),
            second.world.trace_hash(),
            "seed {seed}"
        );
        assert_eq!(first.world.now(), second.world.now());
        assert_eq!(first.world.faults(), second.world.faults());
        assert_eq!(first.world.path(), second.world.path());
        traces.push(first.world.trace_hash());
    }
    let runs = traces.len();
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), runs, "other seeds give other runs");
}

#[test]
fn a_broken_echo_is_caught() {
    let broken = || {
        let mut run = Run::new(
            8,
            WorldConfig::default(),
            Sizes {
                broken: true,
                flows: 0,
                ..Sizes::default()
            },
        );
        run.finish();
    };
    let caught = std::panic::catch_unwind(broken).expect_err("the check must fail");
    let message = caught.downcast_ref::<String>().expect("a message");
    assert!(message.contains("came back wrong"), "{message}");
}

#[test]
fn a_world_that_stands_still_says_so() {
    let mut run = Run::new(9, WorldConfig::default(), Sizes::default());
    let stuck = run
        .world
        .run_until(|_| false, 100 * MILLI)
        .expect_err("nothing can make it true");
    assert_eq!((stuck.seed, stuck.now_ms), (9, 100));
    assert!(stuck.to_string().contains("RINGMILL_SEED=9"), "{stuck}");
    run.stop();
}

#[test]
fn a_graceful_stop_under_load_fails_nobody() {
    for seed in few(200) {
        let faults = Faults {
            short_send: 0.3,
            spurious_wake: 0.2,
            receive_ended: 0.2,
            ..Faults::default()
        };
        let config = WorldConfig {
            faults,
            ..WorldConfig::default()
        };
        let mut run = Run::new(
            seed,
            config,
            Sizes {
                streams: 20,
                flows: 2,
                ..Sizes::default()
            },
        );
        run.world
            .run_for(Duration::from_nanos(20 * MILLI + mix(seed) % (100 * MILLI)));
        run.report.lock().unwrap().stopping = true;
        run.world.stop(run.server);
        let server = run.server;
        run.world
            .run_until(|world| world.has_ended(server), 4 * SECOND)
            .unwrap_or_else(|stuck| panic!("{stuck}"));
        let totals = run.world.service_totals(run.server, 0);
        assert_eq!(
            totals.failed, 0,
            "seed {seed}: the server's streams end, none fails"
        );
        run.stop();
    }
}

#[test]
fn a_killed_server_comes_back() {
    let mut run = Run::new(
        11,
        WorldConfig::default(),
        Sizes {
            streams: 10,
            bytes_max: 200_000,
            flows: 0,
            ..Sizes::default()
        },
    );
    run.world.run_for(Duration::from_millis(60));
    run.report.lock().unwrap().stopping = true;
    run.world.kill(run.server);
    run.finish();
    let before = run.report();
    assert!(before.streams_whole < 10, "{before:?}");
    let heard = Arc::clone(&run.report);
    let echo = Service::new("echo", move |_| Echo {
        waiting: Vec::new(),
        broken: false,
        report: Arc::clone(&heard),
    })
    .listen("10.0.0.1:7".parse::<SocketAddr>().unwrap());
    run.world
        .engine(EngineSpec::new(1).host("10.0.0.1").service(echo))
        .unwrap();
    let (told, planned) = (Arc::clone(&run.report), run.plan.clone());
    let checker = Service::new("checker", move |shard| {
        Checker::new(planned.clone(), shard, Arc::clone(&told))
    });
    run.world
        .engine(EngineSpec::new(1).host("10.0.0.3").service(checker))
        .unwrap();
    let report = Arc::clone(&run.report);
    run.world
        .run_until(|_| report.lock().unwrap().streams_over == 20, RUN_MAX)
        .unwrap();
    assert_eq!(run.report().streams_whole, before.streams_whole + 10);
    run.stop();
}
