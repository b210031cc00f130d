//! Whole tests over bad paths, many seeds: loss, reordering, doubling, coalescing, refused sockets
//! and full buffers at the server's driver. Both ends end, agree, and leave nothing.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_engine::driver::sim::{Faults, WorldConfig, seeds};
use ringmill_engine::impairment::{Impairment, Loss};
use ringmill_protocols::capacity::event::End;
use ringmill_protocols::capacity::parameters::{Algorithm, Direction, Rate, TestParameters};
use ringmill_protocols::capacity::pdu::{Setup, Version};
use ringmill_protocols::capacity::server::ServerEvent;

use super::client::{self, Wish};
use super::{MS, Scene, key_ring, request};

const SEEDS: u64 = 200;

fn path(rng: &mut SmallRng) -> Impairment {
    let loss = rng.random_range(0.0..0.05);
    Impairment {
        loss: Loss::Uniform { probability: loss },
        delay_us: rng.random_range(50..30_000),
        duplication: rng.random_range(0.0..0.02),
        jitter_us: rng.random_range(0..2_000),
        ..Impairment::default()
    }
}

#[test]
fn tests_end_well_on_bad_paths() {
    let mut complete = 0;
    for seed in seeds(SEEDS) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let config = WorldConfig {
            forward: path(&mut rng),
            backward: path(&mut rng),
            faults: Faults {
                datagram_send_blocked: rng.random_range(0.0..0.01),
                segmentation_refused: rng.random_range(0.0..0.01),
                fill_exhausted: rng.random_range(0.0..0.01),
                late_message_wake: 0.05,
                receive_buffers_exhausted: 0.001,
                ..Faults::default()
            },
            ..WorldConfig::default()
        };
        let key = rng.random_bool(0.5);
        let shards = rng.random_range(1..=3);
        let mut scene = Scene::new(seed, config, shards, |settings| {
            settings.rate_limit = true;
            if key {
                settings.listeners[0].setup.keys = key_ring();
            }
        });
        let clients = rng.random_range(1..=3_u16);
        let mut results = Vec::new();
        for number in 1..=clients {
            let direction = match rng.random_bool(0.5) {
                true => Direction::Upstream,
                false => Direction::Downstream,
            };
            let version = match rng.random_bool(0.3) {
                true => Version::V11,
                false => Version::V20,
            };
            let upstream = match direction {
                Direction::Upstream => Setup::UPSTREAM,
                Direction::Downstream => 0,
            };
            let setup = Setup {
                protocol_ver: version.wire(),
                // The search stays below what a thousand tests can send in a few seconds.
                max_bandwidth: 10 | upstream,
                ..request(number)
            };
            let parameters = TestParameters {
                test_time_s: 5,
                rate: match rng.random_range(0..3) {
                    0 => Rate::Search { start: 0 },
                    1 => Rate::Search { start: 5 },
                    _ => Rate::Fixed(rng.random_range(0..10)),
                },
                algorithm: match rng.random_bool(0.5) {
                    true => Algorithm::C,
                    false => Algorithm::B,
                },
                ..TestParameters::new(direction)
            };
            let wish = Wish {
                setup,
                version,
                key,
                parameters,
                begin: rng.random_range(1..500) * MS,
                moves: rng.random_bool(0.2),
            };
            let host = format!("198.51.100.{number}");
            results.push(client::add(&mut scene.world, &host, scene.control, wish));
        }
        scene.run(14_000);
        let mut activated = 0;
        for result in &results {
            let result = result.lock().expect("not poisoned").clone();
            activated += usize::from(result.activated_at.is_some());
            if let Some(end) = result.end {
                complete += usize::from(end.is_complete());
                assert!(
                    end.is_complete() || end == End::NoTraffic,
                    "seed {seed}: {end:?}"
                );
                assert!(result.datagrams > 0, "seed {seed}");
            }
            // Requests are repeated for far longer than a few percent of loss can matter.
            assert!(result.activated_at.is_some(), "seed {seed}: {result:?}");
            assert!(result.end.is_some(), "seed {seed}: {result:?}");
            assert!(result.sub_intervals >= 4, "seed {seed}: {result:?}");
        }
        let counters = scene.server.counters();
        assert_eq!((counters.running, counters.pending), (0, 0), "seed {seed}");
        let events = scene.events();
        let ended = |event: &&ServerEvent| matches!(event, ServerEvent::Ended { .. });
        assert_eq!(
            events.iter().filter(ended).count() as u64,
            counters.tests_ended,
            "seed {seed}"
        );
        assert!(counters.tests_ended >= activated as u64, "seed {seed}");
        scene.end();
    }
    // A dying path may end one early, but not many.
    assert!(complete > 0);
}

#[test]
fn a_clean_path_gives_the_row_and_every_datagram() {
    for (direction, version) in [
        (Direction::Upstream, Version::V20),
        (Direction::Downstream, Version::V20),
        (Direction::Upstream, Version::V11),
        (Direction::Downstream, Version::V11),
    ] {
        for seed in seeds(3) {
            let mut scene = Scene::new(seed, WorldConfig::default(), 2, |settings| {
                settings.allow_unauthenticated_start = true;
            });
            let setup = Setup {
                protocol_ver: version.wire(),
                ..request(7)
            };
            let wish = Wish {
                setup,
                version,
                key: false,
                parameters: TestParameters {
                    test_time_s: 5,
                    rate: Rate::Fixed(20),
                    ..TestParameters::new(direction)
                },
                begin: MS,
                moves: false,
            };
            let result = client::add(&mut scene.world, "198.51.100.1", scene.control, wish);
            scene.run(7_000);
            let result = result.lock().expect("not poisoned").clone();
            assert_eq!(result.end, Some(End::Complete), "seed {seed}");
            assert_eq!(result.lost, 0, "seed {seed}");
            // Row 20 is two datagrams a millisecond; the start is drawn and the stop takes 0.5 s.
            let (least, most) = (2_000 * 5, 2_000 * 6);
            assert!(
                (least..=most).contains(&result.datagrams),
                "seed {seed}: {result:?}"
            );
            let totals = scene.events().iter().find_map(|event| match event {
                ServerEvent::Ended { totals, end, .. } => Some((*totals, *end)),
                _ => None,
            });
            let (totals, end) = totals.expect("it has ended");
            assert_eq!(end, End::Complete);
            // What is on its way when a test ends is counted where it left.
            let difference = totals.datagrams.abs_diff(result.datagrams);
            assert!(difference <= 4, "seed {seed}: {totals:?} {result:?}");
            scene.end();
        }
    }
}

#[test]
fn random_payload_is_random_and_otherwise_it_is_zeros() {
    for random in [false, true] {
        let mut scene = Scene::new(1, WorldConfig::default(), 1, |settings| {
            settings.limits.random_payload = true;
            settings.allow_unauthenticated_start = true;
        });
        let wishes = [
            (1, random, Rate::Search { start: 0 }),
            (2, false, Rate::Fixed(15)),
        ];
        let results = wishes.map(|(number, random_payload, rate)| {
            let wish = Wish {
                setup: request(number),
                version: Version::V20,
                key: false,
                parameters: TestParameters {
                    test_time_s: 5,
                    random_payload,
                    rate,
                    ..TestParameters::new(Direction::Downstream)
                },
                begin: MS,
                moves: false,
            };
            let host = format!("198.51.100.{number}");
            client::add(&mut scene.world, &host, scene.control, wish)
        });
        scene.run(2_000);
        // Both tests fill the same memory in turn.
        let [one, two] = results.map(|result| result.lock().expect("not poisoned").clone());
        assert_eq!(one.random_bytes, random);
        assert!(!two.random_bytes);
        assert!(one.datagrams > 0 && two.datagrams > 0);
        scene.end();
    }
}
