//! Multicast on simulated networks: streams that do not read, groups that lose, delay, double and
//! reorder, sessions that come and go. What the receivers count is what the sender and the network
//! say they did.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::impairment::{Impairment, Loss};
use ringmill_engine::{
    Buffer, Closed, Connect, Context, Datagram, Limits, Multicast, Nanos, Open, Protocol, Service,
    SocketId, StreamId,
};
use ringmill_protocols::multicast::wire::{Cutter, HEADER_LEN, Header};
use ringmill_protocols::multicast::{
    Group, Rate, Sender, SenderConfig, SenderSnapshot, Senders, Sequence, SlowReaders,
};

const SERVER: &str = "10.0.0.1:7";
const GROUP: &str = "239.255.0.1:3334";
const SEEDS: u64 = 100;

fn config(rate: Rate, slow_readers: SlowReaders) -> SenderConfig {
    SenderConfig {
        message_len: 100,
        rate,
        slow_readers,
        groups: Vec::new(),
        clock: 1,
        source: 77,
    }
}

/// Adds a sender of two shards to a world.
fn sender(world: &mut World, config: SenderConfig, limits: Limits) -> Arc<Senders> {
    let senders = Arc::new(Senders::new(2));
    let (config, for_shards) = (Arc::new(config), Arc::clone(&senders));
    let service = Service::new("multicast", move |shard| {
        Sender::new(Arc::clone(&config), for_shards.of_shard(shard))
    });
    let server: SocketAddr = SERVER.parse().unwrap();
    let spec = EngineSpec::new(2).limits(limits).host("10.0.0.1");
    world.engine(spec.service(service.listen(server))).unwrap();
    senders
}

/// What a receiver saw.
#[derive(Debug, Default, Clone)]
struct Seen {
    sequence: Sequence,
    highest: u64,
    first: Option<u64>,
    messages: u64,
    ended: bool,
    early: u64,
}

impl Seen {
    fn note(&mut self, header: &Header, now: Nanos) {
        assert_eq!(header.len, 100);
        self.early += u64::from(header.intended > now);
        self.first.get_or_insert(header.sequence);
        self.highest = self.highest.max(header.sequence);
        self.messages += 1;
        self.sequence.note(header.sequence);
    }
}

type Ledger = Arc<Mutex<Vec<Seen>>>;

/// Streams that read; the last of them stop reading after their first bytes, until the time is up.
struct Readers {
    count: usize,
    slow: usize,
    ledger: Ledger,
    streams: Vec<(StreamId, Cutter, usize)>,
}

impl Protocol for Readers {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for _ in 0..self.count {
            let connect = Connect {
                to: SERVER.parse::<SocketAddr>().unwrap().into(),
                from: None,
            };
            let stream = ctx.connect(&connect).unwrap();
            let mut ledger = self.ledger.lock().unwrap();
            ledger.push(Seen::default());
            self.streams
                .push((stream, Cutter::default(), ledger.len() - 1));
        }
        ctx.set_timer(ctx.now() + 2_000_000_000, 0);
    }

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        let now = ctx.now();
        let first_slow = self.streams.len() - self.slow;
        let place = self.streams.iter().position(|(open, ..)| *open == stream);
        let place = place.expect("a stream of ours");
        let (_, cutter, row) = &mut self.streams[place];
        let seen = &mut self.ledger.lock().unwrap()[*row];
        cutter.push(&data, |header| seen.note(header, now)).unwrap();
        if place >= first_slow && now < 1_900_000_000 {
            ctx.pause(stream);
        }
    }

    fn closed(&mut self, _: &mut Context<'_, ()>, stream: StreamId, _: Closed) {
        let row = self.streams.iter().find(|(open, ..)| *open == stream);
        let row = row.expect("a stream of ours").2;
        self.ledger.lock().unwrap()[row].ended = true;
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, _token: u64) {
        for (stream, ..) in &self.streams[self.streams.len() - self.slow..] {
            ctx.resume(*stream);
        }
    }
}

fn streams(
    seed: u64,
    rate: Rate,
    slow_readers: SlowReaders,
    slow: bool,
) -> (Vec<Seen>, SenderSnapshot) {
    let limits = Limits {
        stream_queue_bytes_max: 20_000,
        ..Limits::default()
    };
    streams_within(
        seed,
        config(rate, slow_readers),
        limits,
        4,
        usize::from(slow),
    )
}

/// So many streams, of which the last `slow` do not read for a while.
fn streams_within(
    seed: u64,
    config: SenderConfig,
    limits: Limits,
    count: usize,
    slow: usize,
) -> (Vec<Seen>, SenderSnapshot) {
    let mut world = World::new(seed, WorldConfig::default());
    let senders = sender(&mut world, config, limits);
    let ledger = Ledger::default();
    let for_readers = Arc::clone(&ledger);
    let readers = Service::new("readers", move |_| Readers {
        count,
        slow,
        ledger: Arc::clone(&for_readers),
        streams: Vec::new(),
    });
    world
        .engine(EngineSpec::new(1).host("10.0.0.2").service(readers))
        .unwrap();
    world.run_for(Duration::from_secs(3));
    world.stop_all().unwrap();
    world.leaks().assert_none();
    let seen = ledger.lock().unwrap().clone();
    (seen, senders.totals())
}

#[test]
fn readers_that_read_miss_nothing() {
    for seed in seeds(SEEDS) {
        let (seen, totals) = streams(
            seed,
            Rate::PerSecond(1000.0),
            SlowReaders::DropNewest,
            false,
        );
        assert_eq!(totals.dropped, 0, "seed {seed}: {totals:?}");
        let received: u64 = seen.iter().map(|seen| seen.messages).sum();
        assert_eq!(received, totals.queued, "seed {seed}");
        for seen in seen {
            let counts = seen.sequence.counts();
            assert!(seen.messages > 2_500, "seed {seed}: {seen:?}");
            assert_eq!((counts.lost, counts.duplicated), (0, 0), "seed {seed}");
            assert_eq!(
                seen.early, 0,
                "seed {seed}: received before it was meant to be sent"
            );
        }
    }
}

#[test]
fn a_reader_that_stops_misses_what_is_counted_and_delays_nobody() {
    for seed in seeds(SEEDS) {
        let (seen, totals) = streams(seed, Rate::PerSecond(5000.0), SlowReaders::DropNewest, true);
        assert!(totals.dropped > 0, "seed {seed}: {totals:?}");
        assert_eq!(
            totals.queued + totals.dropped,
            totals.deliveries,
            "seed {seed}"
        );
        let received: u64 = seen.iter().map(|seen| seen.messages).sum();
        assert_eq!(received, totals.queued, "seed {seed}: sent is received");
        let (slow, others) = seen.split_last().unwrap();
        for seen in others {
            assert_eq!(seen.sequence.counts().lost, 0, "seed {seed}: {seen:?}");
            assert!(seen.messages > 12_000, "seed {seed}: {seen:?}");
        }
        let counts = slow.sequence.counts();
        let first = slow.first.expect("something came");
        assert_eq!(
            counts.received + counts.lost,
            slow.highest - first + 1,
            "seed {seed}"
        );
        assert!(
            counts.lost <= totals.dropped,
            "seed {seed}: {counts:?} {totals:?}"
        );
        assert_eq!((counts.duplicated, counts.reordered), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_reader_that_stops_is_disconnected_when_that_is_the_policy() {
    for seed in seeds(SEEDS) {
        let (seen, totals) = streams(seed, Rate::PerSecond(5000.0), SlowReaders::Disconnect, true);
        assert_eq!(totals.disconnected, 1, "seed {seed}: {totals:?}");
        assert_eq!(
            seen[3].sequence.counts().lost,
            0,
            "seed {seed}: gone before it missed one"
        );
        for seen in &seen[..3] {
            assert!(seen.messages > 12_000, "seed {seed}: {seen:?}");
        }
    }
}

/// However many do not read, and whatever the policy: their queues leave room for those who do.
#[test]
fn many_readers_that_stop_take_nothing_from_the_others() {
    for seed in seeds(SEEDS / 10) {
        for policy in [SlowReaders::DropNewest, SlowReaders::Disconnect] {
            let limits = Limits {
                stream_queue_bytes_max: 20_000,
                shard_queue_bytes_max: 60_000,
                ..Limits::default()
            };
            let config = config(Rate::PerSecond(5000.0), policy);
            let (seen, totals) = streams_within(seed, config, limits, 24, 20);
            let context = format!("seed {seed}, {policy:?}: {totals:?}");
            assert!(totals.dropped > 0, "{context}");
            for seen in &seen[..4] {
                let counts = seen.sequence.counts();
                assert_eq!(counts.lost, 0, "{context}: {counts:?}");
                assert!(seen.messages > 12_000, "{context}: {counts:?}");
            }
            let gone = seen[4..].iter().filter(|seen| seen.messages < 12_000);
            assert!(gone.count() > 0, "{context}");
            match policy {
                SlowReaders::Disconnect => assert_eq!(totals.disconnected, 20, "{context}"),
                SlowReaders::DropNewest => {
                    let received: u64 = seen.iter().map(|seen| seen.messages).sum();
                    assert_eq!(received, totals.queued - totals.withdrawn, "{context}");
                    assert!(totals.withdrawn > 0, "{context}");
                }
            }
        }
    }
}

/// As fast as possible a group's queue is full in the middle of a block: what was not sent is no
/// message.
#[test]
fn what_a_group_was_not_sent_is_not_counted() {
    // As fast as possible: each seed is a million datagrams.
    for seed in seeds(4) {
        let mut world = World::new(seed, WorldConfig::default());
        let config = SenderConfig {
            groups: vec![Group {
                to: GROUP.parse().unwrap(),
                multicast: Multicast::default(),
            }],
            ..config(Rate::Max, SlowReaders::DropNewest)
        };
        let limits = Limits {
            socket_queue_bytes_max: 50_000,
            ..Limits::default()
        };
        let senders = sender(&mut world, config, limits);
        world.run_for(Duration::from_millis(20));
        world.stop_all().unwrap();
        let totals = senders.totals();
        assert!(totals.messages > 1000, "seed {seed}: {totals:?}");
        assert_eq!(
            totals.messages, totals.deliveries,
            "seed {seed}: {totals:?}"
        );
        assert_eq!(totals.messages, totals.queued, "seed {seed}: {totals:?}");
    }
}

/// One receiver in the group on each shard.
struct Member {
    ledger: Ledger,
    row: usize,
}

impl Protocol for Member {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let local: SocketAddr = GROUP.parse().unwrap();
        let open = Open { local, peer: None };
        let multicast = Multicast {
            join: Some(local.ip()),
            ..Multicast::default()
        };
        ctx.open_multicast(&open, &multicast).unwrap();
        let mut ledger = self.ledger.lock().unwrap();
        self.row = ledger.len();
        ledger.push(Seen::default());
    }

    fn datagrams(&mut self, ctx: &mut Context<'_, ()>, _: SocketId, batch: &mut Vec<Datagram>) {
        let now = ctx.now();
        for datagram in batch.drain(..) {
            for message in datagram.iter() {
                let header = Header::read(message.first_chunk::<HEADER_LEN>().unwrap()).unwrap();
                self.ledger.lock().unwrap()[self.row].note(&header, now);
            }
        }
    }
}

#[test]
fn every_member_of_a_group_counts_what_the_network_did() {
    for seed in seeds(SEEDS) {
        let model = Impairment {
            loss: Loss::Uniform { probability: 0.05 },
            duplication: 0.03,
            delay_us: 5_000,
            jitter_us: 4_000,
            ..Impairment::default()
        };
        let mut world = World::new(
            seed,
            WorldConfig {
                forward: model.clone(),
                backward: model,
                ..WorldConfig::default()
            },
        );
        let ledger = Ledger::default();
        for host in ["10.0.0.2", "10.0.0.3"] {
            let for_members = Arc::clone(&ledger);
            let members = Service::new("members", move |_| Member {
                ledger: Arc::clone(&for_members),
                row: 0,
            });
            world
                .engine(EngineSpec::new(2).host(host).service(members))
                .unwrap();
        }
        world.run_for(Duration::from_millis(10));
        let groups = vec![Group {
            to: GROUP.parse().unwrap(),
            multicast: Multicast::default(),
        }];
        let config = SenderConfig {
            groups,
            ..config(Rate::PerSecond(2000.0), SlowReaders::DropNewest)
        };
        let senders = sender(&mut world, config, Limits::default());
        world.run_for(Duration::from_secs(1));
        let path = world.path();
        world.stop_all().unwrap();
        world.leaks().assert_none();
        let totals = senders.totals();
        assert_eq!(
            totals.dropped + totals.open_failed,
            0,
            "seed {seed}: {totals:?}"
        );
        let seen = ledger.lock().unwrap().clone();
        assert_eq!(seen.len(), 4, "one socket for each declared receiver");
        for seen in &seen {
            let counts = seen.sequence.counts();
            // The network decides once for the group. What differs is at the two ends of the run:
            // at most the messages of the delay's spread, 18 of them.
            let near = |one: u64, other: u64| one.abs_diff(other) <= 20;
            let context = format!("seed {seed}: {seen:?} {path:?}");
            assert!(counts.reordered > 0, "{context}");
            assert!(near(counts.lost, path.lost), "{context}");
            assert!(near(counts.duplicated, path.duplicated), "{context}");
            assert!(
                near(counts.received + counts.duplicated, seen.messages),
                "{context}"
            );
            assert!(
                counts.received + counts.duplicated <= seen.messages,
                "{context}"
            );
        }
    }
}
