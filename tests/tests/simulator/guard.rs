//! Two echo services aimed at each other with one forged datagram: the guard ends what would go on
//! for ever.

use std::sync::Arc;
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineId, EngineSpec, World, WorldConfig};
use ringmill_protocols::guard::{GuardCounters, GuardSettings, GuardSnapshot};

use super::bench::{address, echo, small_limits, stop};

/// Forged datagrams, so that the loop would turn faster than any rate below.
const FORGED: u64 = 200;

/// An echo service on a host and ports of its own.
fn answering(
    world: &mut World,
    host: &str,
    ports: &[u16],
    settings: GuardSettings,
) -> (EngineId, Arc<GuardCounters>) {
    let counters = Arc::default();
    let mut service = echo(settings, &counters);
    for port in ports {
        service = service.bind(address(&format!("{host}:{port}")));
    }
    let spec = EngineSpec::new(1)
        .limits(small_limits())
        .host(host)
        .service(service);
    (
        world.engine(spec).expect("the echo service starts"),
        counters,
    )
}

fn sent(world: &World, engine: EngineId) -> u64 {
    world.service_totals(engine, 0).sent_datagrams
}

/// Datagrams that each of two services sent in the second virtual second of a loop, and what the
/// guards decided.
fn second_of_a_loop(per_source_rate: Option<u32>) -> ([u64; 2], GuardSnapshot) {
    let mut world = World::new(1, WorldConfig::default());
    let settings = GuardSettings {
        per_source_rate,
        limit_loopback: false,
    };
    let (first, guard) = answering(&mut world, "10.0.0.1", &[7007], settings);
    let (second, other) = answering(&mut world, "10.0.0.2", &[7008], settings);
    world.run_for(Duration::from_millis(1));
    for number in 0..FORGED {
        world.inject_datagram(
            address("10.0.0.2:7008"),
            address("10.0.0.1:7007"),
            &number.to_le_bytes(),
        );
    }
    world.run_for(Duration::from_secs(1));
    let before = [first, second].map(|engine| sent(&world, engine));
    world.run_for(Duration::from_secs(1));
    let after = [first, second].map(|engine| sent(&world, engine));
    let decided = guard.snapshot().plus(&other.snapshot());
    stop(&mut world);
    ([after[0] - before[0], after[1] - before[1]], decided)
}

#[test]
fn a_loop_of_two_echo_services_falls_to_the_source_rate_within_a_second() {
    let (unlimited, decided) = second_of_a_loop(None);
    assert_eq!(decided, GuardSnapshot::default());
    assert!(
        unlimited.iter().all(|count| *count > 100_000),
        "without a rate the loop turns at full speed: {unlimited:?}"
    );
    for rate in [500, 3000, 10_000, 50_000] {
        let (limited, decided) = second_of_a_loop(Some(rate));
        assert!(
            limited.iter().all(|count| *count <= u64::from(rate)),
            "{rate}/s: {limited:?}"
        );
        assert!(decided.over_rate > 0, "{rate}/s: {decided:?}");
    }
}

/// What the guard refuses outright: nothing is sent, and the reason is counted.
#[test]
fn what_no_honest_client_sends_from_is_never_answered() {
    type Counted = fn(&GuardSnapshot) -> u64;
    let cases: [(&str, &str, Counted); 5] = [
        ("10.0.0.2:7", "echo elsewhere", |guard| {
            guard.known_responder
        }),
        ("10.0.0.2:53", "a name server", |guard| {
            guard.known_responder
        }),
        ("10.0.0.1:7009", "our own other port", |guard| {
            guard.own_port
        }),
        ("10.0.0.2:0", "no port", |guard| guard.zero_port),
        ("224.0.0.1:9999", "a group", |guard| guard.source_address),
    ];
    for (from, what, counted) in cases {
        let mut world = World::new(1, WorldConfig::default());
        let settings = GuardSettings::default();
        let (engine, guard) = answering(&mut world, "10.0.0.1", &[7007, 7009], settings);
        world.run_for(Duration::from_millis(1));
        for _ in 0..10 {
            world.inject_datagram(address(from), address("10.0.0.1:7007"), b"hello");
        }
        world.run_for(Duration::from_secs(1));
        let heard = world.service_totals(engine, 0).received_datagrams;
        assert_eq!(heard, 10, "{what}");
        assert_eq!(sent(&world, engine), 0, "{what}: {:?}", guard.snapshot());
        assert_eq!(counted(&guard.snapshot()), 10, "{what}");
        stop(&mut world);
    }
}

/// An honest source under its rate is answered in full; over it, exactly the rate and one burst.
#[test]
fn a_source_is_held_to_its_rate_in_virtual_time() {
    let mut world = World::new(1, WorldConfig::default());
    let settings = GuardSettings {
        per_source_rate: Some(1000),
        limit_loopback: false,
    };
    let (engine, guard) = answering(&mut world, "10.0.0.1", &[7007], settings);
    let burst = 100;
    for (per_milli, seconds) in [(1_u64, 1_u64), (5, 2)] {
        let before = sent(&world, engine);
        for _ in 0..seconds * 1000 {
            for _ in 0..per_milli {
                world.inject_datagram(address("10.9.9.9:40000"), address("10.0.0.1:7007"), b"x");
            }
            world.run_for(Duration::from_millis(1));
        }
        world.run_for(Duration::from_millis(500));
        let answered = sent(&world, engine) - before;
        let offered = per_milli * seconds * 1000;
        let most = seconds * 1000 + burst;
        let (from, to) = (offered.min(most - 2), offered.min(most + 2));
        assert!(
            (from..=to).contains(&answered),
            "{per_milli}/ms: {answered}"
        );
    }
    let refused = guard.snapshot().over_rate;
    assert_eq!(
        refused + sent(&world, engine),
        world.service_totals(engine, 0).received_datagrams
    );
    stop(&mut world);
}
