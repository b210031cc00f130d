//! One message to many streams: what is dropped for a reader that does not read, on every driver.
//!
//! A sender numbers its messages and drops the oldest of a full queue. Whenever its peer reads, it
//! must find whole messages with rising numbers, and as many as the sender did not drop.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::{
    Buffer, Closed, Connect, Context, DriverChoice, Engine, Fanned, Limits, ListenerId, Nanos,
    Protocol, QueueBounds, Sent, Service, StreamId, uring,
};

const MILLI: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MILLI;
const HANG: Duration = Duration::from_secs(30);

/// What the sender has done.
#[derive(Debug, Default, Clone)]
struct Tally {
    offered: u64,
    dropped: u64,
    /// Messages in the queue when all were offered.
    left: usize,
    done: bool,
}

/// Sends `count` numbered messages of `len` bytes to whoever connects, some each millisecond.
struct Announcer {
    count: u64,
    len: usize,
    each_time: u64,
    bounds: QueueBounds,
    to: Option<StreamId>,
    tally: Arc<Mutex<Tally>>,
}

impl Announcer {
    fn offer(&mut self, ctx: &mut Context<'_, ()>, to: StreamId) {
        let mut tally = self.tally.lock().unwrap();
        for _ in 0..self.each_time.min(self.count - tally.offered) {
            let mut message = vec![0x5a; self.len];
            message[..8].copy_from_slice(&tally.offered.to_be_bytes());
            let message = Fanned::new(message.into());
            tally.offered += 1;
            match ctx.send_within(to, message.clone(), self.bounds) {
                Sent::Queued => {}
                Sent::Closed => return,
                Sent::Full => {
                    let before = (ctx.queued_messages(to), ctx.queued_bytes(to));
                    let dropped = ctx.drop_oldest(to, self.len, self.bounds);
                    let after = (ctx.queued_messages(to), ctx.queued_bytes(to));
                    assert_eq!(
                        before,
                        (after.0 + dropped.messages, after.1 + dropped.bytes)
                    );
                    tally.dropped += dropped.messages as u64;
                    if !ctx.send_within(to, message, self.bounds).is_queued() {
                        tally.dropped += 1;
                    }
                }
            }
            assert!(ctx.queued_messages(to) <= self.bounds.messages_max.max(1));
            assert!(ctx.queued_bytes(to) <= self.bounds.bytes_max.max(self.len));
        }
        if tally.offered < self.count {
            ctx.set_timer(ctx.now() + MILLI, 0);
        } else {
            tally.left = ctx.queued_messages(to);
            tally.done = true;
            ctx.finish(to);
            assert_eq!(ctx.drop_oldest(to, 1 << 30, self.bounds).messages, 0);
        }
    }
}

impl Protocol for Announcer {
    type Message = ();
    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _: ListenerId,
        _: Option<SocketAddr>,
    ) {
        self.to = Some(stream);
        self.offer(ctx, stream);
    }
    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        if let Some(to) = self.to {
            self.offer(ctx, to);
        }
    }
    fn closed(&mut self, _: &mut Context<'_, ()>, _: StreamId, _: Closed) {
        self.to = None;
    }
}

/// Checks what a reader got; returns how many messages.
fn read_back(bytes: &[u8], len: usize, is_whole: bool) -> u64 {
    let messages = bytes.chunks_exact(len);
    assert!(
        !is_whole || messages.remainder().is_empty(),
        "the last one is whole"
    );
    let mut last = None;
    let mut count = 0;
    for message in messages {
        let number = u64::from_be_bytes(message[..8].try_into().unwrap());
        assert!(message[8..].iter().all(|byte| *byte == 0x5a), "{number}");
        assert!(
            last < Some(number),
            "{number} after {last:?}: order, or twice"
        );
        last = Some(number);
        count += 1;
    }
    count
}

#[test]
fn a_late_reader_finds_whole_messages_in_order_on_real_drivers() {
    for (driver, name) in [
        (DriverChoice::Uring, "uring"),
        (DriverChoice::Epoll, "epoll"),
    ] {
        if driver == DriverChoice::Uring
            && let Err(reason) = uring::probe(&uring::Options::default())
        {
            println!("skipped: {reason}");
            continue;
        }
        // (length, messages each time, bytes and messages that may wait)
        let cases = [
            (1000, 1000, 100_000, usize::MAX),
            (1000, 1000, 1 << 20, 50),
            (100_000, 10, 1 << 20, usize::MAX),
            (1000, 1000, 0, 0),
        ];
        for (len, each_time, bytes_max, messages_max) in cases {
            // More than the kernel keeps for both ends of a connection of loopback.
            let count = 40_000_000 / len as u64;
            let tally = Arc::new(Mutex::new(Tally::default()));
            let told = Arc::clone(&tally);
            let service = Service::new("announcer", move |_| Announcer {
                count,
                len,
                each_time,
                bounds: QueueBounds {
                    bytes_max,
                    messages_max,
                },
                to: None,
                tally: Arc::clone(&told),
            });
            let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let mut engine = Engine::builder()
                .driver(driver)
                .service(service.listen(address))
                .start()
                .unwrap();
            let to = engine.addresses()[0].address.to_string();
            let mut client = TcpStream::connect(to).unwrap();
            client.set_read_timeout(Some(HANG)).unwrap();
            let deadline = Instant::now() + HANG;
            while !tally.lock().unwrap().done {
                assert!(Instant::now() < deadline, "{name}: {:?}", tally.lock());
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            let tally = tally.lock().unwrap().clone();
            let got = read_back(&bytes, len, true);
            assert_eq!(got + tally.dropped, count, "{name}: {tally:?}");
            assert!(tally.dropped > 0, "{name}: {tally:?}");
            drop(client);
            engine.stop();
            engine.join().unwrap();
            let totals = engine.service_totals(0);
            assert_eq!(totals.sent_bytes, bytes.len() as u64, "{name}");
        }
    }
}

/// Connects, does not read for a while, reads for a while, and so on.
struct Moody {
    got: Arc<Mutex<(Vec<u8>, bool)>>,
    stream: Option<StreamId>,
    reads: bool,
}

impl Protocol for Moody {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let to: SocketAddr = "10.0.0.1:7".parse().unwrap();
        let connect = Connect {
            to: to.into(),
            from: None,
        };
        self.stream = ctx.connect(&connect).ok();
        ctx.set_timer(ctx.now() + 20 * MILLI, 0);
    }
    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        ctx.pause(stream);
    }
    fn received(&mut self, _: &mut Context<'_, ()>, _: StreamId, data: Buffer) {
        self.got.lock().unwrap().0.extend_from_slice(&data);
    }
    fn ended(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        self.got.lock().unwrap().1 = true;
        ctx.close(stream);
    }
    fn closed(&mut self, _: &mut Context<'_, ()>, _: StreamId, _: Closed) {
        self.stream = None;
    }
    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        let Some(stream) = self.stream else { return };
        self.reads = !self.reads;
        if self.reads {
            ctx.resume(stream);
        } else {
            ctx.pause(stream);
        }
        ctx.set_timer(ctx.now() + 20 * MILLI, 0);
    }
}

#[test]
fn a_moody_reader_finds_whole_messages_in_order_on_any_network() {
    let (mut dropping, mut whole) = (0, 0);
    for seed in seeds(300) {
        let mut world = World::new(seed, WorldConfig::random(seed));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let got = Arc::new(Mutex::new((Vec::new(), false)));
        let len = 8 + (seed as usize * 37) % 3000;
        let messages_max = if seed % 3 == 0 { 7 } else { usize::MAX };
        let told = Arc::clone(&tally);
        let service = Service::new("announcer", move |_| Announcer {
            count: 400,
            len,
            each_time: 10,
            bounds: QueueBounds {
                bytes_max: 10_000,
                messages_max,
            },
            to: None,
            tally: Arc::clone(&told),
        });
        let to: SocketAddr = "10.0.0.1:7".parse().unwrap();
        let spec = EngineSpec::new(1).host("10.0.0.1").limits(Limits {
            shard_queue_bytes_max: if seed % 5 == 0 { 9000 } else { 1 << 20 },
            stream_pool_bytes: 64 << 10,
            ..Limits::default()
        });
        world.engine(spec.service(service.listen(to))).unwrap();
        let reader = Arc::clone(&got);
        let client = Service::new("moody", move |_| Moody {
            got: Arc::clone(&reader),
            stream: None,
            reads: false,
        });
        world
            .engine(EngineSpec::new(1).host("10.0.0.2").service(client))
            .unwrap();
        let _ = world.run_until(|_| got.lock().unwrap().1, 30 * SECOND);
        world.stop_all().unwrap_or_else(|stuck| panic!("{stuck}"));
        world.leaks().assert_none();
        let (bytes, ended) = got.lock().unwrap().clone();
        let tally = tally.lock().unwrap().clone();
        // A network in trouble may cut the connection anywhere.
        let count = read_back(&bytes, len, ended && tally.done);
        if ended && tally.done {
            assert_eq!(count + tally.dropped, 400, "seed {seed}: {tally:?}");
            whole += 1;
        }
        dropping += u64::from(tally.dropped > 0);
    }
    assert!(
        std::env::var_os("RINGMILL_SEED").is_some() || (dropping > 50 && whole > 50),
        "{dropping} runs dropped, {whole} ran to their end"
    );
}

const MEMBERS: usize = 21;
const ROUNDS: u64 = 2000;
const LEN: usize = 1000;
const SHARD_BYTES_MAX: usize = 200_000;

/// Says the same to all, once they are all there.
struct Caster {
    members: Vec<StreamId>,
    round: u64,
    queued_max: Arc<Mutex<usize>>,
}

impl Protocol for Caster {
    type Message = ();
    fn accepted(
        &mut self,
        ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _: ListenerId,
        _: Option<SocketAddr>,
    ) {
        self.members.push(stream);
        if self.members.len() == MEMBERS {
            ctx.set_timer(ctx.now() + MILLI, 0);
        }
    }
    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        let mut message = vec![0x5a; LEN];
        message[..8].copy_from_slice(&self.round.to_be_bytes());
        let message = Fanned::new(message.into());
        // Each alone could take all that the shard has.
        let bounds = QueueBounds {
            bytes_max: 1 << 20,
            messages_max: usize::MAX,
        };
        for &to in &self.members {
            if ctx.send_within(to, message.clone(), bounds).is_full() {
                ctx.drop_oldest(to, LEN, bounds);
                let _ = ctx.send_within(to, message.clone(), bounds);
            }
        }
        let queued: usize = self.members.iter().map(|to| ctx.queued_bytes(*to)).sum();
        let mut most = self.queued_max.lock().unwrap();
        *most = queued.max(*most);
        self.round += 1;
        if self.round < ROUNDS {
            ctx.set_timer(ctx.now() + MILLI / 2, 0);
        }
    }
    fn closed(&mut self, _: &mut Context<'_, ()>, stream: StreamId, _: Closed) {
        self.members.retain(|member| *member != stream);
    }
}

/// One connection that is read, and all the others are not.
struct Audience {
    got: Arc<Mutex<(Vec<u8>, bool)>>,
    reader: Option<StreamId>,
}

impl Protocol for Audience {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let to: SocketAddr = "10.0.0.1:7".parse().unwrap();
        for _ in 0..MEMBERS {
            let connect = Connect {
                to: to.into(),
                from: None,
            };
            let stream = ctx.connect(&connect).unwrap();
            self.reader.get_or_insert(stream);
        }
    }
    fn connected(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        if self.reader != Some(stream) {
            ctx.pause(stream);
        }
    }
    fn received(&mut self, _: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        if self.reader == Some(stream) {
            self.got.lock().unwrap().0.extend_from_slice(&data);
        }
    }
}

#[test]
fn those_who_read_keep_their_share_of_a_full_shard() {
    let mut config = WorldConfig::default();
    config.streams.send_buffer_bytes = 5000..5001;
    config.streams.receive_buffer_bytes = 7000..7001;
    let mut world = World::new(1, config);
    let (got, queued_max) = (Arc::<Mutex<(Vec<u8>, bool)>>::default(), Arc::default());
    let most = Arc::clone(&queued_max);
    let caster = Service::new("caster", move |_| Caster {
        members: Vec::new(),
        round: 0,
        queued_max: Arc::clone(&most),
    });
    let to: SocketAddr = "10.0.0.1:7".parse().unwrap();
    let spec = EngineSpec::new(1).host("10.0.0.1").limits(Limits {
        shard_queue_bytes_max: SHARD_BYTES_MAX,
        write_stall_timeout: None,
        ..Limits::default()
    });
    world.engine(spec.service(caster.listen(to))).unwrap();
    let reader = Arc::clone(&got);
    let audience = Service::new("audience", move |_| Audience {
        got: Arc::clone(&reader),
        reader: None,
    });
    world
        .engine(EngineSpec::new(1).host("10.0.0.2").service(audience))
        .unwrap();
    world.run_for(Duration::from_secs(5));
    let bytes = got.lock().unwrap().0.clone();
    assert_eq!(
        read_back(&bytes, LEN, true),
        ROUNDS,
        "the reader misses nothing"
    );
    let most = *queued_max.lock().unwrap();
    assert!(
        most > SHARD_BYTES_MAX / 2,
        "the others wait with {most} bytes"
    );
    assert!(most <= SHARD_BYTES_MAX, "{most} bytes");
    world.stop_all().unwrap();
    world.leaks().assert_none();
}
