//! The server over real sockets, on every driver that this host has: up and down, IPv4 and IPv6, both
//! versions, with and without authentication, all at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use ringmill_engine::{Engine, Limits};
use ringmill_protocols::capacity::event::End;
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::pdu::{Setup, Version};
use ringmill_protocols::capacity::server::{
    CapacityServer, Listener, Outlets, ServerEvent, Settings, WallClock,
};
use ringmill_protocols::capacity::setup::ServerSettings;

use super::client::{self, Wish};
use super::{BEGIN_S, key_ring, request};

#[path = "../common/mod.rs"]
mod common;

/// A port that is free at the moment on an address.
fn free(ip: &str) -> Option<SocketAddr> {
    let socket = std::net::UdpSocket::bind((ip, 0)).ok()?;
    socket.local_addr().ok()
}

#[test]
fn tests_over_real_sockets() {
    let places: Vec<SocketAddr> = ["127.0.0.1", "::1"].into_iter().filter_map(free).collect();
    if places.len() < 2 {
        println!("skipped: the half over IPv6, which this host does not have");
    }
    let build = || {
        let (outlet, events) = sync_channel(1 << 16);
        // The clock of the double: it starts with the monotonic one.
        let clock = WallClock::new(0, u64::from(BEGIN_S) * 1_000_000_000);
        let setup = ServerSettings {
            keys: key_ring(),
            auth_optional: true,
            ..ServerSettings::default()
        };
        let listeners = places.iter().map(|_| Listener {
            setup: setup.clone(),
        });
        let outlets = Outlets {
            events: outlet,
            records: None,
        };
        let settings = Settings::new(listeners.collect(), Arc::new(clock), outlets);
        let server = CapacityServer::new(settings, 2);
        let service = server.service("capacity");
        let service = places
            .iter()
            .fold(service, |service, place| service.bind(*place));
        let mut builder = Engine::builder()
            .shards(2)
            .limits(CapacityServer::limits(Limits::default()))
            .service(service);
        let mut results = Vec::new();
        for (at, place) in places.iter().enumerate() {
            for (number, (direction, version)) in [
                (Direction::Upstream, Version::V20),
                (Direction::Downstream, Version::V20),
                (Direction::Upstream, Version::V11),
                (Direction::Downstream, Version::V11),
            ]
            .into_iter()
            .enumerate()
            {
                let wish = Wish {
                    setup: Setup {
                        protocol_ver: version.wire(),
                        ..request((at * 10 + number + 1) as u16)
                    },
                    version,
                    key: number % 2 == at % 2,
                    parameters: TestParameters {
                        test_time_s: 5,
                        rate: Rate::Fixed(10),
                        dscp_ecn: 0xb8,
                        ..TestParameters::new(direction)
                    },
                    begin: 0,
                    moves: number == 1,
                };
                let (service, result) = client::service(*place, wish);
                builder = builder.service(service);
                results.push(result);
            }
        }
        (builder, server, events, results)
    };
    for driver in [
        ringmill_engine::DriverChoice::Uring,
        ringmill_engine::DriverChoice::Epoll,
    ] {
        let (builder, server, events, results) = build();
        let mut engine = match builder.driver(driver).start() {
            Ok(engine) => engine,
            Err(error) => {
                println!("skipped: {error}");
                continue;
            }
        };
        let over = |result: &Arc<std::sync::Mutex<client::Result>>| {
            result.lock().expect("not poisoned").end.is_some()
        };
        common::until("all tests to end", || results.iter().all(over));
        common::until("the server to know", || server.counters().running == 0);
        engine.stop();
        engine.join().expect("every shard ends well");
        for result in &results {
            let result = result.lock().expect("not poisoned").clone();
            assert_eq!(result.end, Some(End::Complete), "{result:?}");
            // A thousand datagrams a second, on a machine that may be busy with other tests.
            assert!((3_000..=6_000).contains(&result.datagrams), "{result:?}");
            assert!(result.sub_intervals >= 4, "{result:?}");
        }
        let ended = events
            .try_iter()
            .filter(|event| matches!(event, ServerEvent::Ended { .. }));
        assert_eq!(ended.count(), results.len());
    }
}
