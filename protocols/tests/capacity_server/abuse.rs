//! What a stranger may try: floods, replays, reflections, other people's tests, wrong numbers.

use ringmill_engine::Limits;
use ringmill_engine::driver::sim::WorldConfig;
use ringmill_engine::impairment::mix;
use ringmill_protocols::capacity::event::End;
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::pdu::{
    Activation, Null, Pdu, Setup, SetupCode, Status, TestAction, Version,
};
use ringmill_protocols::capacity::server::ServerEvent;

use super::client::{self, Wish};
use super::{
    BEGIN_S, MS, Scene, at, ear, encoded, request, signed, take, with_bandwidth, with_key,
};

fn wish(ident: u16, key: bool, direction: Direction) -> Wish {
    Wish {
        setup: request(ident),
        version: Version::V20,
        key,
        parameters: TestParameters {
            test_time_s: 5,
            rate: Rate::Fixed(5),
            ..TestParameters::new(direction)
        },
        begin: MS,
        moves: false,
    }
}

/// An address that nobody has, a new one for each number.
fn spoofed(number: u64) -> std::net::SocketAddr {
    let ip = 0x0A00_0000 | (mix(number) as u32 & 0x00FF_FFFF);
    std::net::SocketAddr::from((
        std::net::Ipv4Addr::from(ip),
        1024 + (number % 60_000) as u16,
    ))
}

#[test]
fn a_flood_of_spoofed_requests_keeps_nobody_out() {
    // With keys, also when they are optional; and with none at all.
    for (keys, optional) in [(true, false), (true, true), (false, false)] {
        let mut scene = Scene::new(1, WorldConfig::default(), 2, |settings| {
            if keys {
                with_key(settings);
            }
            settings.listeners[0].setup.auth_optional = optional;
        });
        let mut wish = wish(60_000, keys, Direction::Downstream);
        wish.begin = 2_000 * MS;
        let result = client::add(&mut scene.world, "198.51.100.1", scene.control, wish);
        // 10,000 a second for 5 s.
        let mut number = 0;
        for _ in 0..5_000 {
            for _ in 0..10 {
                number += 1;
                let bytes = encoded(&request((number % 50_000) as u16 + 1));
                let from = spoofed(number);
                scene.world.inject_datagram(from, scene.control, &bytes);
            }
            scene.run(1);
            let counters = scene.server.counters();
            let pending_max = u64::from(scene.server.settings().pending_max);
            assert!(counters.pending <= pending_max, "{counters:?}");
        }
        scene.run(4_000);
        let result = result.lock().expect("not poisoned").clone();
        let activated = result.activated_at.expect("the real client starts");
        assert!(activated < 3_000 * MS, "{activated}");
        assert!(result.end.is_some_and(End::is_complete), "{result:?}");
        scene.run(4_000);
        assert_eq!(scene.server.counters().pending, 0);
        scene.end();
    }
}

#[test]
fn one_source_holds_only_so_many() {
    let mut scene = Scene::new(1, WorldConfig::default(), 2, |settings| {
        settings.pending_per_source_max = 20;
    });
    let heard = ear(&mut scene.world, at("203.0.113.9:4000"));
    for ident in 1..=100 {
        let from = at("203.0.113.9:4000");
        scene
            .world
            .inject_datagram(from, scene.control, &encoded(&request(ident)));
    }
    scene.run(500);
    let answers = take(&heard);
    let code = |bytes: &[u8]| {
        Setup::decode_response(bytes)
            .ok()
            .map(|setup| setup.cmd_response)
    };
    let count = |wanted: SetupCode| {
        let codes = answers.iter().filter_map(|(_, _, bytes)| code(bytes));
        codes.filter(|code| *code == wanted.wire()).count()
    };
    assert_eq!(count(SetupCode::Accepted), 20);
    assert_eq!(count(SetupCode::NoConnection), 80);
    // And they are free again when they were not used.
    scene.run(3_000);
    assert_eq!(scene.server.counters().pending, 0);
    assert_eq!(scene.server.counters().activation_timeout_waiting, 20);
    scene.end();
}

#[test]
fn a_repeat_gets_the_same_answer_and_no_slot_and_a_replay_gets_silence() {
    for (key, seed) in [(false, 1), (true, 2)] {
        let mut scene = Scene::new(seed, WorldConfig::default(), 3, |settings| {
            if key {
                with_key(settings);
            }
        });
        let own = at("203.0.113.9:4000");
        let heard = ear(&mut scene.world, own);
        let thief = at("203.0.113.77:4000");
        let stolen = ear(&mut scene.world, thief);
        let bytes = match key {
            true => signed(request(5), BEGIN_S),
            false => encoded(&request(5)),
        };
        for _ in 0..3 {
            scene.world.inject_datagram(own, scene.control, &bytes);
            scene.run(100);
        }
        let answers: Vec<_> = take(&heard)
            .into_iter()
            .filter(|(_, _, bytes)| Pdu::of(bytes) == Some(Pdu::Setup))
            .map(|(_, _, bytes)| bytes)
            .collect();
        assert_eq!(answers.len(), 3);
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        assert_eq!(scene.server.counters().pending, 1);
        assert_eq!(scene.server.counters().setup_accepts_sent, 1);
        if !key {
            scene.end();
            continue;
        }
        // From elsewhere, and from the same place when nobody waits any more.
        scene.world.inject_datagram(thief, scene.control, &bytes);
        scene.run(100);
        assert!(take(&stolen).is_empty());
        scene.run(3_000);
        scene.world.inject_datagram(own, scene.control, &bytes);
        scene.run(100);
        assert!(take(&heard).is_empty());
        assert_eq!(scene.server.counters().setup_replays_ignored, 2);
        assert_eq!(scene.server.counters().pending, 0);
        // Beyond the window its time is wrong.
        scene.run(10_000);
        scene.world.inject_datagram(own, scene.control, &bytes);
        scene.run(100);
        let answers = take(&heard);
        let response = Setup::decode_response(&answers[0].2).expect("a response");
        assert_eq!(response.cmd_response, SetupCode::AuthenticationTime.wire());
        scene.end();
    }
}

#[test]
fn what_is_no_request_gets_no_answer() {
    let mut scene = Scene::new(1, WorldConfig::default(), 1, |_| ());
    let own = at("203.0.113.9:4000");
    let heard = ear(&mut scene.world, own);
    let response = |code: u8| {
        encoded(&Setup {
            cmd_request: Setup::RESPONSE,
            cmd_response: code,
            ..request(1)
        })
        .to_vec()
    };
    let mut null = [0; Null::LEN];
    Null {
        protocol_ver: 20,
        ..Null::default()
    }
    .encode(&mut null);
    let mut answered_request = encoded(&request(1));
    answered_request[9] = 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a response that accepts", response(1)),
        ("a response that rejects", response(7)),
        ("a response of code 0", response(0)),
        ("a request with a code", answered_request.to_vec()),
        ("a null request", null.to_vec()),
        ("nothing", Vec::new()),
        ("one byte", vec![0xAC]),
        ("a byte too few", encoded(&request(1))[..55].to_vec()),
        (
            "a byte too many",
            [&encoded(&request(1))[..], &[0]].concat(),
        ),
        ("zeros", vec![0; Setup::LEN]),
        ("load", [&[0xBE, 0xEF][..], &[0; 54]].concat()),
        ("status", [&[0xFE, 0xED][..], &[0; 202]].concat()),
        (
            "an activation",
            [&[0xAC, 0xE2, 0, 20, 1][..], &[0; 99]].concat(),
        ),
    ];
    let count = cases.len() as u64;
    for (name, bytes) in cases {
        scene.world.inject_datagram(own, scene.control, &bytes);
        scene.run(50);
        assert!(take(&heard).is_empty(), "{name}");
    }
    let counters = scene.server.counters();
    assert_eq!(
        counters.control_invalid_size + counters.control_invalid_format,
        count
    );
    assert_eq!(counters.setup_requests_received, 0);
    scene.end();
}

#[test]
fn replies_are_never_larger_than_three_requests() {
    // What every request can bring about at its source's address, until the server gives up.
    for (name, key, bytes) in [
        ("accepted", false, encoded(&request(1))),
        ("accepted, signed", true, signed(request(1), BEGIN_S)),
        ("rejected", true, encoded(&request(1))),
    ] {
        let mut scene = Scene::new(1, WorldConfig::default(), 2, |settings| {
            if key {
                with_key(settings);
            }
        });
        let victim = at("203.0.113.9:4000");
        let heard = ear(&mut scene.world, victim);
        scene.world.inject_datagram(victim, scene.control, &bytes);
        scene.run(10_000);
        let sum: usize = take(&heard).iter().map(|(_, _, bytes)| bytes.len()).sum();
        assert!((1..=3 * Setup::LEN).contains(&sum), "{name}: {sum}");
        scene.end();
    }
}

/// Sets a test up from `own` and gives the address of its socket.
fn set_up(
    scene: &mut Scene,
    own: std::net::SocketAddr,
    heard: &super::Heard,
) -> std::net::SocketAddr {
    scene
        .world
        .inject_datagram(own, scene.control, &encoded(&request(1)));
    scene.run(100);
    let answers = take(heard);
    let response = answers
        .iter()
        .find_map(|(_, _, bytes)| Setup::decode_response(bytes).ok())
        .expect("it is accepted");
    std::net::SocketAddr::new(scene.control.ip(), response.test_port)
}

fn activation(change: impl FnOnce(&mut Activation)) -> Vec<u8> {
    let parameters = TestParameters::new(Direction::Downstream);
    let mut activation = parameters.request(Version::V20, 20);
    change(&mut activation);
    let mut bytes = vec![0; Activation::LEN_MAX];
    let len = activation.encode(Version::V20, &mut bytes);
    bytes.truncate(len);
    bytes
}

#[test]
fn only_who_set_a_test_up_activates_it() {
    let mut scene = Scene::new(1, WorldConfig::default(), 2, |_| ());
    let (own, moved) = (at("203.0.113.9:4000"), at("203.0.113.9:4001"));
    let thief = at("203.0.113.77:4000");
    let heard = ear(&mut scene.world, own);
    let heard_moved = ear(&mut scene.world, moved);
    let stolen = ear(&mut scene.world, thief);
    let test = set_up(&mut scene, own, &heard);
    let bytes = activation(|_| ());
    scene.world.inject_datagram(thief, test, &bytes);
    scene.run(100);
    assert!(take(&stolen).is_empty());
    assert_eq!(scene.server.counters().activation_wrong_source, 1);
    // The client's port may differ: a NAT in between.
    scene.world.inject_datagram(moved, test, &bytes);
    scene.run(100);
    let answers = take(&heard_moved);
    let response = Activation::decode_response(&answers[0].2, Version::V20).expect("an answer");
    assert_eq!(response.cmd_response, Activation::ACCEPTED);
    // A repeat of it is answered alike; the thief still gets nothing, and stops nothing.
    scene.world.inject_datagram(moved, test, &bytes);
    let stop = Status {
        test_action: TestAction::Stop,
        spdu_seq_no: 1,
        ..Status::default()
    };
    let mut stop_bytes = [0; Status::LEN_MAX];
    let len = stop.encode(Version::V20, &mut stop_bytes);
    scene.world.inject_datagram(thief, test, &stop_bytes[..len]);
    scene.run(20);
    let again = take(&heard_moved);
    assert!(again.iter().any(|(_, _, bytes)| *bytes == answers[0].2));
    assert!(take(&stolen).is_empty());
    assert_eq!(scene.server.counters().running, 1);
    scene.run(5_000);
    assert_eq!(scene.server.counters().running, 0);
    scene.end();
}

#[test]
fn nobody_gets_load_who_has_not_answered() {
    // A forged client with a fixed row, a starting row, and the longest test: 3 s of row 0 at most.
    for (sr_index_conf, modifier_bitmap) in [
        (1152, 0),
        (1000, Activation::START_ROW),
        (Activation::AUTOMATIC, 0),
    ] {
        let mut scene = Scene::new(1, WorldConfig::default(), 1, |_| ());
        let own = at("203.0.113.9:4000");
        let heard = ear(&mut scene.world, own);
        let test = set_up(&mut scene, own, &heard);
        let bytes = activation(|activation| {
            activation.test_int_time = 3600;
            activation.sr_index_conf = sr_index_conf;
            activation.modifier_bitmap |= modifier_bitmap;
        });
        scene.world.inject_datagram(own, test, &bytes);
        scene.run(10_000);
        let sum: usize = take(&heard).iter().map(|(_, _, bytes)| bytes.len()).sum();
        // 20 datagrams of at most 1,222 bytes a second.
        assert!((1..=3 * 20 * 1_222 + 1_000).contains(&sum), "{sum}");
        assert_eq!(scene.server.counters().running, 0);
        scene.end();
    }
}

#[test]
fn numbers_that_cannot_be_are_corrected_and_crash_nothing() {
    for number in 0..200_u64 {
        let mut scene = Scene::new(number, WorldConfig::default(), 1, |_| ());
        let own = at("203.0.113.9:4000");
        let heard = ear(&mut scene.world, own);
        let test = set_up(&mut scene, own, &heard);
        let mut bytes = activation(|activation| {
            // What crashes the original: a row beyond the table with the start bit.
            activation.sr_index_conf = 1_153 + (mix(number) % 64_000) as u16;
            activation.modifier_bitmap |= Activation::START_ROW;
        });
        if number > 0 {
            // And anything else, but for what makes it an unsigned activation.
            for (at, byte) in bytes.iter_mut().enumerate().skip(6) {
                if !(63..104).contains(&at) {
                    *byte = (mix(number ^ (at as u64) << 20)) as u8;
                }
            }
        }
        scene.world.inject_datagram(own, test, &bytes);
        scene.run(50);
        let mut status = [0; Status::LEN_MAX];
        for (at, byte) in status.iter_mut().enumerate() {
            *byte = (mix(number ^ (at as u64) << 30)) as u8;
        }
        status[..4].copy_from_slice(&[0xFE, 0xED, 0, 0]);
        status[4..8].copy_from_slice(&1_u32.to_be_bytes());
        scene.world.inject_datagram(own, test, &status);
        scene.run(200);
        let answers = take(&heard);
        let response = answers
            .iter()
            .find_map(|(_, _, bytes)| Activation::decode_response(bytes, Version::V20).ok());
        let response = response.unwrap_or_else(|| panic!("{number}: no answer"));
        assert_eq!(response.cmd_response, Activation::ACCEPTED);
        if number == 0 {
            assert_eq!(response.sr_index_conf, Activation::AUTOMATIC);
        }
        scene.end();
    }
}

#[test]
fn what_was_booked_follows_the_direction_of_the_test_where_it_fits() {
    // Booked upstream, activated downstream, where others have booked some already.
    for (name, others, taken) in [("free", 40, true), ("all but free", 41, false)] {
        let mut scene = Scene::new(1, WorldConfig::default(), 1, |settings| {
            with_bandwidth(settings, 100);
        });
        let booked = |scene: &Scene| {
            let admission = &scene.server.settings().listeners[0].setup.admission;
            let counters = scene.server.counters();
            let shown = [
                counters.booked_upstream_mbps,
                counters.booked_downstream_mbps,
            ];
            let real = [Direction::Upstream, Direction::Downstream]
                .map(|direction| u64::from(admission.booked_mbps(direction)));
            assert_eq!(shown, real, "{name}");
            real
        };
        let own = at("203.0.113.9:4000");
        let heard = ear(&mut scene.world, own);
        for (from, max_bandwidth, ident) in
            [(spoofed(1), others, 1), (own, 60 | Setup::UPSTREAM, 2)]
        {
            let setup = Setup {
                max_bandwidth,
                ..request(ident)
            };
            scene
                .world
                .inject_datagram(from, scene.control, &encoded(&setup));
        }
        scene.run(100);
        assert_eq!(booked(&scene), [60, others.into()], "{name}");
        let answers = take(&heard);
        let response = answers
            .iter()
            .find_map(|(_, _, bytes)| Setup::decode_response(bytes).ok())
            .expect("it is accepted");
        let test = std::net::SocketAddr::new(scene.control.ip(), response.test_port);
        scene.world.inject_datagram(own, test, &activation(|_| ()));
        scene.run(100);
        let answers = take(&heard);
        let answer = Activation::decode_response(&answers[0].2, Version::V20).expect("an answer");
        let (code, now) = match taken {
            true => (Activation::ACCEPTED, [0, 100]),
            false => (Activation::REJECTED, [60, u64::from(others)]),
        };
        assert_eq!(answer.cmd_response, code, "{name}");
        assert_eq!(booked(&scene), now, "{name}");
        // Nothing comes back from the client: its test ends, and nothing stays booked.
        scene.run(10_000);
        assert_eq!(booked(&scene), [0, 0], "{name}");
        scene.end();
    }
}

#[test]
fn a_shard_that_is_behind_turns_nobody_away_and_loses_no_answer() {
    // Mailboxes so small that every burst of requests fills them, both on the way there and back.
    let limits = Limits {
        mailbox_messages_max: 4,
        ..Limits::default()
    };
    let mut scene = Scene::within(limits, 1, WorldConfig::default(), 6, |_| ());
    let own = at("203.0.113.9:4000");
    let heard = ear(&mut scene.world, own);
    const REQUESTS: u16 = 200;
    for ident in 1..=REQUESTS {
        scene
            .world
            .inject_datagram(own, scene.control, &encoded(&request(ident)));
    }
    scene.run(100);
    let mut idents: Vec<_> = take(&heard)
        .iter()
        .filter(|(_, from, _)| *from == scene.control)
        .filter_map(|(_, _, bytes)| Setup::decode_response(bytes).ok())
        .filter(|response| response.cmd_response == SetupCode::Accepted.wire())
        .map(|response| response.mc_ident)
        .collect();
    idents.sort_unstable();
    assert_eq!(idents, (1..=REQUESTS).collect::<Vec<_>>());
    assert_eq!(scene.server.counters().setup_rejects_sent, 0);
    scene.end();
}

#[test]
fn a_thousand_tests_wait_and_ports_are_bounded() {
    let mut scene = Scene::new(1, WorldConfig::default(), 2, |settings| {
        settings.test_ports = Some(40_000..=40_299);
    });
    for number in 0..1_000_u64 {
        let bytes = encoded(&request(number as u16 + 1));
        scene
            .world
            .inject_datagram(spoofed(number), scene.control, &bytes);
    }
    scene.run(500);
    let counters = scene.server.counters();
    assert_eq!(counters.pending, 300);
    assert_eq!(counters.setup_connection_create_fail, 700);
    let ports: std::collections::HashSet<u16> = scene
        .events()
        .iter()
        .filter_map(|event| match event {
            ServerEvent::Accepted(about) => Some(about.local.port()),
            _ => None,
        })
        .collect();
    assert_eq!(ports.len(), 300);
    assert!(ports.iter().all(|port| (40_000..=40_299).contains(port)));
    scene.run(3_000);
    assert_eq!(scene.server.counters().pending, 0);
    scene.end();

    let mut scene = Scene::new(1, WorldConfig::default(), 2, |_| ());
    for number in 0..1_000_u64 {
        let bytes = encoded(&request(number as u16 + 1));
        scene
            .world
            .inject_datagram(spoofed(number), scene.control, &bytes);
    }
    scene.run(500);
    assert_eq!(scene.server.counters().pending, 1_000);
    scene.end();
}
