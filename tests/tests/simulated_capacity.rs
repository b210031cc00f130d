//! Thousands of capacity tests of a low rate on one simulated server: every one of them has its rate
//! to the datagram, loses nothing, and leaves nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use ringmill_engine::Limits;
use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig};
use ringmill_protocols::capacity::event::End;
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::server::{
    CapacityServer, Listener, Outlets, Settings, WallClock,
};
use ringmill_protocols::capacity::setup::ServerSettings;
use ringmill_tests::crowd::{self, Plan};
use ringmill_tests::long;

const SHARDS: u16 = 2;
const SECONDS: u16 = 5;
/// Between two clients: all have begun after half the time of a test.
const SPACING_WHOLE: Duration = Duration::from_millis(2_500);

#[test]
fn thousands_of_slow_tests_at_once() {
    let tests = if long() { 10_000 } else { 2_000 };
    let mut world = World::new(1, WorldConfig::default());
    let clock = Arc::new(WallClock::new(world.now(), 1_800_000_000_000_000_000));
    let (events, told) = sync_channel(1 << 20);
    let listener = Listener {
        setup: ServerSettings::default(),
    };
    let outlets = Outlets {
        events,
        records: None,
    };
    let settings = Settings::new(vec![listener], Arc::clone(&clock), outlets);
    let server = CapacityServer::new(settings, SHARDS);
    let control: SocketAddr = "192.0.2.1:24601".parse().expect("an address");
    let engine = EngineSpec::new(SHARDS)
        .host("192.0.2.1")
        .limits(CapacityServer::limits(Limits::default()))
        .service(server.service("capacity").bind(control));
    world.engine(engine).expect("the server starts");
    let plan = Plan {
        server: control,
        locals: vec!["198.51.100.1".parse().expect("an address")],
        clients: tests,
        spacing: (SPACING_WHOLE / tests).as_nanos() as u64,
        parameters: TestParameters {
            test_time_s: SECONDS,
            rate: Rate::Fixed(0),
            ..TestParameters::new(Direction::Downstream)
        },
        clock,
    };
    let (crowd, fared) = crowd::service(&plan, SHARDS);
    let engine = EngineSpec::new(SHARDS)
        .host("198.51.100.1")
        .limits(CapacityServer::limits(Limits::default()))
        .service(crowd);
    world.engine(engine).expect("the crowd gathers");

    world.run_for(SPACING_WHOLE + Duration::from_secs(1));
    let counters = server.counters();
    assert_eq!(counters.running, u64::from(tests), "{}", fared.numbers());
    // What has been booked, remembered and counted for those who began is still exact.
    assert_eq!(counters.pending, 0);
    assert_eq!(counters.setup_accepts_sent, u64::from(tests));
    world.run_for(Duration::from_secs(SECONDS.into()));
    let outcomes = fared.outcomes();
    assert_eq!(outcomes.len() as u32, tests, "{}", fared.numbers());
    // A datagram each 50 ms, a start drawn from 5 to 50 ms, and half a second until the stop.
    let rate = u64::from(SECONDS) * 20;
    let wrong = outcomes.iter().find(|one| {
        one.end != End::Complete || one.lost > 0 || !(rate + 7..=rate + 12).contains(&one.datagrams)
    });
    assert_eq!(wrong, None);
    let counters = server.counters();
    assert_eq!(counters.tests_complete, u64::from(tests));
    assert_eq!(counters.events_dropped, 0);
    assert!(told.try_iter().count() as u32 >= 3 * tests);
    world.stop_all().expect("all engines stop");
    world.leaks().assert_none();
}
