//! The client in the simulated network against our server: control PDUs that are lost, bad paths,
//! several connections on several shards, an early end. Virtual time only.
//!
//! A failing seed is printed; `RINGMILL_SEED=n cargo test -p ringmill-protocols --test
//! capacity_client` runs that one alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_engine::driver::sim::{EngineSpec, Faults, Partition, World, WorldConfig, seeds};
use ringmill_engine::impairment::{Impairment, Loss};
use ringmill_engine::{Controller, Limits, Nanos, Service};
use ringmill_protocols::capacity::client::{
    Client, ClientEvent, ClientSettings, Command, Ended, Failure, Happened, Outlet,
};
use ringmill_protocols::capacity::event::End;
use ringmill_protocols::capacity::keys::{KeyRing, SharedKey};
use ringmill_protocols::capacity::pacing::Pacing;
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::pdu::{SetupCode, Version};
use ringmill_protocols::capacity::rates::EXTENDED_ROW_LAST;
use ringmill_protocols::capacity::server::{
    CapacityServer, Listener, Outlets, ServerEvent, Settings, WallClock,
};
use ringmill_protocols::capacity::setup::ServerSettings;
use ringmill_protocols::capacity::time::{Instants, WallTime};

const MS: Nanos = 1_000_000;
const SERVER: &str = "192.0.2.1";
const CLIENT: &str = "198.51.100.1";
/// When the world begins, Unix time.
const BEGIN: WallTime = WallTime {
    sec: 1_800_000_000,
    nsec: 0,
};
const TEST_S: u64 = 5;
/// One way; so what is sent when can be told.
const DELAY_MS: u64 = 50;
const SEEDS: u64 = 200;

fn key(text: &str) -> SharedKey {
    SharedKey::new(text).expect("a legal key")
}

/// A server and a client in a world.
struct Scene {
    world: World,
    events: Receiver<ClientEvent>,
    controller: Controller<Command>,
    server_events: Receiver<ServerEvent>,
}

impl Scene {
    fn new(
        seed: u64,
        config: WorldConfig,
        shards: u16,
        change: impl FnOnce(&mut ClientSettings, &mut Settings),
    ) -> Self {
        let mut world = World::new(seed, config);
        let clock = Instants {
            now: world.now(),
            wall: BEGIN,
        };
        let control: SocketAddr = format!("{SERVER}:24601").parse().expect("an address");
        let parameters = TestParameters {
            test_time_s: TEST_S as u16,
            rate: Rate::Fixed(5),
            ..TestParameters::new(Direction::Downstream)
        };
        let mut client = ClientSettings {
            seed,
            ident: 77,
            ..ClientSettings::new(vec![control], parameters, clock)
        };
        let (outlet, server_events) = sync_channel(1 << 12);
        let wall = Arc::new(WallClock::new(clock.now, clock.wall.unix_nanos()));
        let listener = Listener {
            setup: ServerSettings::default(),
        };
        let outlets = Outlets {
            events: outlet,
            records: None,
        };
        let mut server = Settings::new(vec![listener], wall, outlets);
        server.seed = seed;
        server.allow_unauthenticated_start = true;
        change(&mut client, &mut server);
        let server = CapacityServer::new(server, 2);
        let spec = EngineSpec::new(2)
            .host(SERVER)
            .limits(CapacityServer::limits(Limits::default()));
        world
            .engine(spec.service(server.service("capacity").bind(control)))
            .expect("the server starts");
        let (outlet, events) = sync_channel(1 << 12);
        let outlet = Arc::new(Outlet::new(outlet, None));
        let client = Arc::new(client);
        let connections = client.connections;
        let service = Service::new("client", move |shard| {
            let dealt = Client::dealt(connections, shard, shards);
            Client::new(Arc::clone(&client), dealt, Arc::clone(&outlet))
        });
        let controller = service.controller();
        world
            .engine(EngineSpec::new(shards).host(CLIENT).service(service))
            .expect("the client starts");
        Self {
            world,
            events,
            controller,
            server_events,
        }
    }

    fn run(&mut self, ms: u64) {
        self.world.run_for(Duration::from_millis(ms));
    }

    fn take(&self) -> Vec<ClientEvent> {
        self.events.try_iter().collect()
    }

    /// Ends everything: nothing may be left of any test.
    fn end(mut self) {
        self.world.stop_all().expect("all engines stop");
        self.world.leaks().assert_none();
    }
}

/// What the events of a connection came to.
#[derive(Debug, Default)]
struct Came {
    activated_ms: Option<u64>,
    sub_intervals: u32,
    ended: Option<Ended>,
    failure: Option<Failure>,
    setups: u32,
    activations: u32,
}

fn came(events: &[ClientEvent], connection: u8) -> Came {
    let mut came = Came::default();
    for event in events.iter().filter(|event| event.connection == connection) {
        assert!(
            came.ended.is_none() && came.failure.is_none(),
            "nothing follows an end: {event:?}"
        );
        match &event.happened {
            Happened::SetupSent { .. } => came.setups += 1,
            Happened::ActivationSent { .. } => came.activations += 1,
            Happened::Activated(_) => came.activated_ms = Some(event.at.now / MS),
            Happened::SubInterval(part) => {
                assert_eq!(part.number, came.sub_intervals + 1, "in order");
                came.sub_intervals += 1;
            }
            Happened::Ended(ended) => came.ended = Some(**ended),
            Happened::Failed(failure) => came.failure = Some(*failure),
            _ => {}
        }
    }
    came
}

fn slow_path() -> WorldConfig {
    let path = Impairment {
        delay_us: DELAY_MS * 1000,
        ..Impairment::default()
    };
    WorldConfig {
        forward: path.clone(),
        backward: path,
        ..WorldConfig::default()
    }
}

#[test]
fn what_is_lost_of_the_control_phase_and_of_the_stop_costs_no_test() {
    // What would arrive in this time is lost. Setup arrives at 50 ms, its answer at 100, activation at
    // 150, its answer at 200 ms. The server stops 5.5 s after the activation came.
    let stop = 150 + TEST_S * 1000 + 500;
    for (name, from, until, setups, activations, end) in [
        ("nothing", 0, 0, 1, 1, Some(End::Complete)),
        ("the setup request", 30, 70, 2, 1, Some(End::Complete)),
        ("its answer", 80, 120, 2, 1, Some(End::Complete)),
        (
            "the activation request",
            130,
            170,
            1,
            2,
            Some(End::Complete),
        ),
        ("its answer", 180, 220, 1, 2, Some(End::Complete)),
        (
            "four setups and answers",
            0,
            1900,
            5,
            1,
            Some(End::Complete),
        ),
        (
            "the first stops",
            stop - 20,
            stop + 100,
            1,
            1,
            Some(End::Complete),
        ),
        (
            "all from the stop on",
            stop - 20,
            60_000,
            1,
            1,
            Some(End::StopMissing),
        ),
        ("the middle", 2_000, 2_900, 1, 1, Some(End::Complete)),
        ("everything", 0, 60_000, 6, 0, None),
        ("all but the setup", 130, 60_000, 1, 7, None),
        (
            "all from the middle on",
            2_000,
            60_000,
            1,
            1,
            Some(End::NoTraffic),
        ),
    ] {
        for (direction, version, signed) in [
            (Direction::Downstream, Version::V20, false),
            (Direction::Upstream, Version::V20, true),
            (Direction::Downstream, Version::V11, true),
            (Direction::Upstream, Version::V11, false),
        ] {
            let config = WorldConfig {
                partitions: vec![Partition {
                    from: from * MS,
                    until: until * MS,
                }],
                ..slow_path()
            };
            let mut scene = Scene::new(1, config, 1, |client, server| {
                client.parameters.direction = direction;
                client.version = version;
                if signed {
                    client.key = Some((3, key("secret")));
                    server.listeners[0].setup.keys = KeyRing {
                        command_line: Some(key("secret")),
                        file: None,
                    };
                }
            });
            scene.run(14_000);
            let found = came(&scene.take(), 0);
            let about = format!("{name}, {direction:?}, {version:?}: {found:?}");
            assert_eq!(found.ended.map(|ended| ended.end), end, "{about}");
            assert_eq!(found.setups, setups, "{about}");
            // A server that sends load already needs no second request.
            assert!(found.activations <= activations, "{about}");
            if end.is_some_and(End::is_complete) {
                assert_eq!(u64::from(found.sub_intervals), TEST_S, "{about}");
                assert_eq!(found.failure, None, "{about}");
            } else if end.is_none() {
                let timeout = match activations {
                    0 => Failure::SetupTimeout,
                    _ => Failure::ActivationTimeout,
                };
                assert_eq!(found.failure, Some(timeout), "{about}");
            }
            scene.end();
        }
    }
}

#[test]
fn refusals_are_told_in_words() {
    type Change = fn(&mut ClientSettings, &mut Settings);
    let secret = |server: &mut Settings| {
        server.listeners[0].setup.keys = KeyRing {
            command_line: Some(key("secret")),
            file: None,
        };
    };
    let cases: [(&str, Change, SetupCode); 4] = [
        (
            "jumbo",
            |client, _| client.sizes.jumbo = false,
            SetupCode::Jumbo,
        ),
        (
            "1500-byte",
            |client, _| client.sizes.traditional = true,
            SetupCode::Traditional,
        ),
        (
            "requires a key",
            |_, server| {
                server.listeners[0].setup.keys = KeyRing {
                    command_line: Some(key("secret")),
                    file: None,
                };
            },
            SetupCode::AuthenticationRequired,
        ),
        (
            "has no key",
            |client, _| client.key = Some((0, key("secret"))),
            SetupCode::AuthenticationNotConfigured,
        ),
    ];
    for (words, change, code) in cases {
        let mut scene = Scene::new(1, WorldConfig::default(), 1, change);
        scene.run(1_000);
        let found = came(&scene.take(), 0);
        let failure = found.failure.expect(words);
        assert!(failure.to_string().contains(words), "{failure}");
        let status = failure.status();
        // Who has no key signs with none that a client can check.
        let unsigned = code == SetupCode::AuthenticationNotConfigured;
        assert_eq!(status, if unsigned { 107 } else { 100 + code.wire() });
        scene.end();
    }
    // A clock that is wrong, a key that is wrong.
    for (offset_s, text, words) in [
        (60, "secret", "60 s"),
        (-60, "secret", "60 s"),
        (0, "another", "keys"),
    ] {
        let mut scene = Scene::new(1, WorldConfig::default(), 1, |client, server| {
            secret(server);
            client.key = Some((0, key(text)));
            client.clock.wall.sec = client.clock.wall.sec.strict_add_signed(offset_s);
        });
        scene.run(1_000);
        let found = came(&scene.take(), 0);
        let failure = found.failure.expect(words);
        assert!(failure.to_string().contains(words), "{failure}");
        scene.end();
    }
}

#[test]
fn an_early_end_is_told_to_the_server() {
    for direction in [Direction::Downstream, Direction::Upstream] {
        let mut scene = Scene::new(1, slow_path(), 2, |client, _| {
            client.parameters.direction = direction;
            client.connections = 3;
        });
        scene.run(2_500);
        for shard in 0..2 {
            scene.controller.post(shard, Command::End).expect("room");
        }
        scene.run(1_000);
        let events = scene.take();
        for connection in 0..3 {
            let found = came(&events, connection);
            let end = found.ended.map(|ended| ended.end);
            assert_eq!(end, Some(End::Stopped), "{found:?}");
            assert_eq!(found.sub_intervals, 2);
        }
        let told = scene.server_events.try_iter().filter(|event| {
            matches!(
                event,
                ServerEvent::Ended {
                    end: End::PeerStopped,
                    ..
                }
            )
        });
        assert_eq!(told.count(), 3);
        scene.end();
    }
}

/// Rows past the table's end, between two ends of which either may not know them.
#[test]
fn rows_past_the_table_are_sent_by_when_both_ends_allow_them() {
    for (asked, allowed, row) in [(true, true, 1200), (true, false, 1152), (false, true, 1152)] {
        for direction in [Direction::Downstream, Direction::Upstream] {
            let mut scene = Scene::new(1, slow_path(), 1, |client, server| {
                client.parameters.direction = direction;
                client.parameters.rate = Rate::Fixed(1200);
                client.parameters.extended_rows = asked;
                client.sizes.jumbo = false;
                server.listeners[0].setup.jumbo = false;
                server.limits.extended_rows = allowed;
                server.limits.row_max = EXTENDED_ROW_LAST;
                server.trial_events = true;
            });
            // Activated at 150 ms there and 200 ms here; the first trials end within 70 ms more.
            scene.run(270);
            let about = format!("{direction:?}, asked {asked}, allowed {allowed}");
            let activated = scene
                .take()
                .into_iter()
                .find_map(|event| match event.happened {
                    Happened::Activated(activated) => Some(activated.parameters),
                    _ => None,
                });
            let agreed = activated.unwrap_or_else(|| panic!("{about}: not activated"));
            assert_eq!(agreed.rate, Rate::Fixed(row), "{about}");
            assert_eq!(agreed.extended_rows, asked && allowed, "{about}");
            scene.controller.post(0, Command::End).expect("room");
            scene.run(200);
            let rows = scene
                .server_events
                .try_iter()
                .filter_map(|event| match event {
                    ServerEvent::Trial { report, .. } => report.row,
                    _ => None,
                });
            assert_eq!(rows.max(), Some(row), "{about}");
            scene.end();
        }
    }
}

/// Hosts whose timers are later than what is caught up of a sender's ticks.
#[test]
fn late_timers_are_found_out_and_a_sender_does_not_wait_for_them() {
    let late = 12 * MS;
    for direction in [Direction::Upstream, Direction::Downstream] {
        for (pacing, warned, missed) in [
            (Pacing::Timer, false, 200..2_000),
            // By timers until they are measured.
            (Pacing::Auto, true, 1..100),
            (Pacing::Busy, false, 0..10),
        ] {
            let config = WorldConfig {
                timer_lateness: late,
                ..slow_path()
            };
            let mut scene = Scene::new(1, config, 1, |client, server| {
                client.parameters.direction = direction;
                client.pacing = pacing;
                server.pacing = pacing;
            });
            scene.run(8_000);
            let about = format!("{direction:?}, {pacing:?}");
            let events = scene.take();
            let ended = came(&events, 0).ended.expect(&about);
            assert!(missed.contains(&ended.missed), "{about}: {}", ended.missed);
            // Who never sends does not care.
            let told = events.iter().find_map(|event| match event.happened {
                Happened::BusyPacing { late } => Some(late),
                _ => None,
            });
            let warns = warned && direction == Direction::Upstream;
            assert_eq!(told.is_some(), warns, "{about}: {told:?}");
            assert!(told.is_none_or(|told| told >= late), "{about}: {told:?}");
            let shards = scene
                .server_events
                .try_iter()
                .filter(|event| matches!(event, ServerEvent::BusyPacing { .. }));
            assert_eq!(shards.count(), if warned { 2 } else { 0 }, "{about}");
            scene.end();
        }
    }
    // Good timers are left alone.
    let mut scene = Scene::new(1, slow_path(), 1, |client, _| {
        client.parameters.direction = Direction::Upstream;
    });
    scene.run(1_000);
    let busy = |event: &ClientEvent| matches!(event.happened, Happened::BusyPacing { .. });
    assert!(!scene.take().iter().any(busy));
    let busy = |event: &ServerEvent| matches!(event, ServerEvent::BusyPacing { .. });
    assert!(!scene.server_events.try_iter().any(|event| busy(&event)));
    scene.end();
}

fn bad_path(rng: &mut SmallRng) -> Impairment {
    Impairment {
        loss: Loss::Uniform {
            probability: rng.random_range(0.0..0.1),
        },
        delay_us: rng.random_range(50..30_000),
        duplication: rng.random_range(0.0..0.02),
        jitter_us: rng.random_range(0..2_000),
        ..Impairment::default()
    }
}

#[test]
fn tests_end_well_on_bad_paths() {
    let (mut complete, mut all) = (0, 0);
    let wanted = seeds(SEEDS);
    for seed in &wanted {
        let mut rng = SmallRng::seed_from_u64(*seed);
        let config = WorldConfig {
            forward: bad_path(&mut rng),
            backward: bad_path(&mut rng),
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
        let connections = rng.random_range(1..=3);
        let shards = rng.random_range(1..=2);
        let mut scene = Scene::new(*seed, config, shards, |client, server| {
            client.connections = connections;
            if rng.random_bool(0.5) {
                client.parameters.direction = Direction::Upstream;
            }
            if rng.random_bool(0.3) {
                client.version = Version::V11;
            }
            if rng.random_bool(0.5) {
                client.key = Some((0, key("secret")));
                server.listeners[0].setup.keys = KeyRing {
                    command_line: Some(key("secret")),
                    file: None,
                };
            }
            client.parameters.random_payload = rng.random_bool(0.2);
            client.check_sum = rng.random_bool(0.5);
            client.parameters.rate = match rng.random_range(0..3) {
                0 => Rate::Fixed(0),
                1 => Rate::Fixed(rng.random_range(1..20)),
                // The search climbs as far as the loss lets it, which is not far.
                _ => Rate::Search { start: 0 },
            };
            client.parameters.seq_err_thresh = 0;
            // The clocks of two hosts.
            let off = rng.random_range(-4..=4);
            client.clock.wall.sec = client.clock.wall.sec.strict_add_signed(off);
        });
        scene.run(14_000);
        let events = scene.take();
        for connection in 0..connections {
            let found = came(&events, connection);
            let about = format!("seed {seed}, connection {connection}: {found:?}");
            all += 1;
            match (found.ended, found.failure) {
                (Some(ended), None) => {
                    assert!(ended.end.is_complete(), "{about}");
                    let seen = u64::from(found.sub_intervals);
                    // The status with the last one may be lost with the stop.
                    assert!((TEST_S - 1..=TEST_S).contains(&seen), "{about}");
                    complete += 1;
                }
                (None, Some(Failure::SetupTimeout | Failure::ActivationTimeout)) => {}
                _ => panic!("{about}"),
            }
        }
        scene.end();
    }
    // Six requests and answers may all be lost, but hardly ever are.
    assert!(complete * 100 >= all * 99, "{complete} of {all}");
}
