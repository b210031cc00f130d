//! A datagram load whose send queue is full: what it was not able to send is counted, with the
//! cause, and what had to wait goes when there is room.

use std::sync::Arc;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig};
use ringmill_engine::{Address, Limits, Nanos, Service};
use ringmill_protocols::load::{
    Arrivals, Command, Config, DatagramLoad, Phase, Published, Shared, Unsent,
};

const SECOND: Nanos = 1_000_000_000;
/// Nobody is there: only what leaves the client matters.
const NOBODY: ([u8; 4], u16) = ([10, 0, 0, 1], 7);
const MESSAGE_LEN: usize = 1000;

/// One second of an open loop whose sends are refused by the kernel with this probability.
fn run(arrivals: Arrivals, depth: usize, blocked: f64) -> Published {
    let mut config = WorldConfig::default();
    assert!(config.faults.set("datagram_send_blocked", blocked));
    let mut world = World::new(1, config);
    let plan = Arc::new(Config {
        target: Address::Ip(NOBODY.into()),
        connections: 1,
        message_len: MESSAGE_LEN,
        depth,
        arrivals,
        verify: true,
        sources: Vec::new(),
        datagram_timeout: 2 * SECOND,
        messages: None,
        seed: 1,
        reset_on_close: false,
    });
    let shared = Shared::new();
    let of_shard = Arc::clone(&shared);
    let service = Service::new("load", move |_| {
        DatagramLoad::new(Arc::clone(&plan), Arc::clone(&of_shard))
    });
    let controller = service.controller();
    let limits = Limits {
        // Room for two.
        socket_queue_bytes_max: 2 * MESSAGE_LEN,
        ..Limits::default()
    };
    let spec = EngineSpec::new(1)
        .limits(limits)
        .host("10.0.0.2")
        .service(service);
    world.engine(spec).expect("the client starts");
    let reach = |world: &mut World, phase: Phase| {
        let reached = world.run_until(|_| shared.phase() >= phase, 20 * SECOND);
        assert!(reached.is_ok(), "not {phase:?}: {:?}", shared.read());
    };
    reach(&mut world, Phase::Ready);
    let start = world.now();
    let end = start + SECOND;
    let begin = Command::Begin {
        start,
        measure: start,
        end,
    };
    controller.post(0, begin).expect("a mailbox has room");
    reach(&mut world, Phase::Done);
    shared.read()
}

#[test]
fn what_is_due_is_sent_or_counted_with_its_cause() {
    for (depth, blocked, cause) in [
        (10_000, 0.0, None),
        (10_000, 1.0, Some(Unsent::QueueFull)),
        (100, 0.0, Some(Unsent::NoRoom)),
    ] {
        let published = run(Arrivals::Constant(1000.0), depth, blocked);
        let tally = &published.tally;
        let context = format!("{depth} {blocked}: {published:?}");
        // One more or less at the ends.
        assert!((tally.sent + tally.unsent).abs_diff(1000) <= 1, "{context}");
        assert_eq!(tally.unsent > 0, cause.is_some(), "{context}");
        let causes: Vec<_> = tally.unsent_by.keys().copied().collect();
        assert_eq!(causes, Vec::from_iter(cause), "{context}");
        let failed = published.failures.get(&("send", "queue full"));
        assert_eq!(failed, None, "{context}");
    }
}

#[test]
fn a_closed_loop_with_a_full_queue_says_so() {
    let published = run(Arrivals::Closed, 4, 1.0);
    let failed = published.failures.get(&("send", "queue full"));
    assert!(failed.is_some(), "{published:?}");
    assert_eq!(published.tally.unsent, 0, "a closed loop has no schedule");
}
