//! Recorded setup requests get the answers that OB-UDPST 9.0.0 gave, byte for byte.
//!
//! None of the recorded cases is among those in which we must differ from it. Those are tested by
//! themselves below: a response or what was reflected is not a request (it answers them, so that two
//! servers can be made to answer each other for ever), and a booking is given back in the direction
//! in which it was made.

use std::collections::HashMap;

use ringmill_protocols::capacity::admission::Admission;
use ringmill_protocols::capacity::auth::Keys;
use ringmill_protocols::capacity::keys::{KeyFile, KeyRing, SharedKey};
use ringmill_protocols::capacity::parameters::Direction;
use ringmill_protocols::capacity::pdu::{Activation, Null, Setup, SetupCode, Version};
use ringmill_protocols::capacity::setup::{Accepted, Examined, ServerSettings, examine};
use ringmill_protocols::capacity::time::WallTime;
use serde_json::Value;

use crate::{hex, unhex};

fn key(text: &str) -> SharedKey {
    SharedKey::new(text).unwrap()
}

fn settings(server: &str) -> ServerSettings {
    match server {
        "no options" => ServerSettings::default(),
        "key file with 0=legacykey 1=firstkey 2=secondkey 255=thirdkey, and -a backup" => {
            let file = b"0,legacykey\n1,firstkey\n2,secondkey\n255,thirdkey\n";
            ServerSettings {
                keys: KeyRing {
                    command_line: Some(key("backup")),
                    file: Some(KeyFile::parse(file).unwrap()),
                },
                ..ServerSettings::default()
            }
        }
        "-B 1000" => ServerSettings {
            admission: Admission::limited(1000),
            ..ServerSettings::default()
        },
        other => panic!("what is a server with {other}?"),
    }
}

fn at(sec: u32) -> WallTime {
    WallTime { sec, nsec: 0 }
}

/// When a recorded PDU was signed, or else the time 0.
fn time_of(response: &Value) -> u32 {
    let bytes = unhex(response["hex"].as_str().unwrap());
    match response["pdu"].as_str().unwrap() {
        "setup" => Setup::decode_response(&bytes).unwrap().auth.auth_unix_time,
        _ => Null::decode(&bytes).unwrap().auth.auth_unix_time,
    }
}

#[test]
fn recorded_answers() {
    let vectors = crate::json("setup_responses.json");
    // What is booked stays booked from case to case, as it did when they were recorded.
    let mut servers: HashMap<String, (ServerSettings, Vec<Accepted>)> = HashMap::new();
    let mut cases = 0;
    for case in vectors["cases"].as_array().unwrap() {
        cases += 1;
        let name = case["name"].as_str().unwrap();
        let server = case["server"].as_str().unwrap();
        let request = unhex(case["request"].as_str().unwrap());
        let recorded = case["responses"].as_array().unwrap();
        let (settings, accepted) = servers
            .entry(server.to_owned())
            .or_insert_with(|| (settings(server), Vec::new()));
        if let (Some(key_used), Some(client)) = (
            case["auth"]["key"].as_str(),
            case["auth"]["clientKey"].as_str(),
        ) {
            let time = u32::try_from(case["auth"]["authUnixTime"].as_u64().unwrap()).unwrap();
            let keys = Keys::derive(&key(key_used), time);
            assert_eq!(hex(keys.client()), client, "{name}");
            assert_eq!(hex(keys.server()), case["auth"]["serverKey"], "{name}");
        }

        let wall = at(recorded.first().map_or(0, time_of));
        let examined = match (examine(&request, settings, wall), recorded.first()) {
            (Err(_), None) => continue,
            (Ok(examined), Some(_)) => examined,
            (Ok(_), None) => panic!("{name}: not silent"),
            (Err(error), Some(_)) => panic!("{name}: silent, {error}"),
        };
        let setup = unhex(recorded[0]["hex"].as_str().unwrap());
        let expected = Setup::decode_response(&setup).unwrap();
        let mut bytes = [0xEE; Setup::LEN];
        let mut answers = Vec::new();
        if examined.verdict.is_ok() {
            let (len, connection) = examined.accept(expected.test_port, wall, &mut bytes);
            answers.push(hex(&bytes[..len]));
            let mut bytes = [0xEE; Null::LEN];
            let wall = at(recorded.get(1).map_or(0, time_of));
            if let Some(len) = connection.null_request(wall, &mut bytes) {
                answers.push(hex(&bytes[..len]));
            }
            accepted.push(connection);
        } else {
            let len = examined.reject(wall, &mut bytes);
            answers.push(hex(&bytes[..len]));
        }
        let recorded: Vec<_> = recorded.iter().map(|one| one["hex"].clone()).collect();
        assert_eq!(answers, recorded, "{name}");
    }
    assert_eq!(cases, 33);
}

fn request() -> Setup {
    Setup {
        protocol_ver: 20,
        mc_count: 1,
        mc_ident: 0x1234,
        cmd_request: Setup::REQUEST,
        modifier_bitmap: Setup::JUMBO,
        ..Setup::default()
    }
}

fn ask(request: &Setup, settings: &ServerSettings, wall: WallTime) -> Option<Examined> {
    let mut bytes = [0; Setup::LEN];
    request.encode(&mut bytes);
    examine(&bytes, settings, wall).ok()
}

#[test]
fn a_response_is_no_request() {
    let settings = ServerSettings::default();
    let mut bytes = [0; Setup::LEN];
    let accepted = ask(&request(), &settings, at(0)).unwrap();
    let _ = accepted.accept(4000, at(0), &mut bytes);
    assert!(examine(&bytes, &settings, at(0)).is_err(), "our own answer");
    for (cmd_request, cmd_response) in [(1, 1), (1, 255), (2, 0), (2, 1), (0, 0), (3, 0)] {
        let reflected = Setup {
            cmd_request,
            cmd_response,
            ..request()
        };
        assert!(
            ask(&reflected, &settings, at(0)).is_none(),
            "{cmd_request} {cmd_response}"
        );
    }
}

#[test]
fn the_first_check_that_fails_gives_the_code() {
    let keyed =
        settings("key file with 0=legacykey 1=firstkey 2=secondkey 255=thirdkey, and -a backup");
    let limited = settings("-B 1000");
    let open = ServerSettings::default();
    let optional = ServerSettings {
        auth_optional: true,
        ..keyed.clone()
    };
    let plain = ServerSettings {
        jumbo: false,
        traditional: true,
        ..open.clone()
    };
    // Everything is wrong at first; each line puts one thing more right.
    let mut wrong = Setup {
        protocol_ver: 10,
        mc_count: 0,
        modifier_bitmap: Setup::TRADITIONAL,
        max_bandwidth: 0,
        ..request()
    };
    wrong.auth.auth_mode = 2;
    let versioned = Setup {
        protocol_ver: 12,
        ..wrong
    };
    let counted = Setup {
        mc_count: 24,
        mc_index: 23,
        ..versioned
    };
    let jumbo = Setup {
        modifier_bitmap: Setup::JUMBO | Setup::TRADITIONAL,
        ..counted
    };
    let modern = Setup {
        modifier_bitmap: Setup::JUMBO,
        ..jumbo
    };
    let much = Setup {
        max_bandwidth: 1001 | Setup::UPSTREAM,
        ..modern
    };
    let fits = Setup {
        max_bandwidth: 1000 | Setup::UPSTREAM,
        ..modern
    };
    for (request, settings, expected) in [
        (wrong, &limited, Err(SetupCode::Version)),
        (versioned, &limited, Err(SetupCode::Connections)),
        (counted, &limited, Err(SetupCode::Jumbo)),
        (jumbo, &limited, Err(SetupCode::Traditional)),
        (modern, &limited, Err(SetupCode::BandwidthMissing)),
        (much, &limited, Err(SetupCode::BandwidthUnavailable)),
        (fits, &limited, Err(SetupCode::AuthenticationNotConfigured)),
        (modern, &keyed, Err(SetupCode::AuthenticationMode)),
        (request(), &keyed, Err(SetupCode::AuthenticationRequired)),
        (request(), &optional, Ok(())),
        (request(), &open, Ok(())),
        (request(), &plain, Err(SetupCode::Jumbo)),
        (
            Setup {
                modifier_bitmap: 0,
                ..request()
            },
            &plain,
            Err(SetupCode::Traditional),
        ),
        (
            Setup {
                modifier_bitmap: Setup::TRADITIONAL,
                ..request()
            },
            &plain,
            Ok(()),
        ),
    ] {
        let examined = ask(&request, settings, at(0)).expect("an answer");
        assert_eq!(examined.verdict, expected, "{request:?}");
    }
    let booked = limited.admission.booked_mbps(Direction::Upstream);
    assert_eq!(
        booked, 0,
        "a request that failed later has left nothing booked"
    );
}

#[test]
fn what_is_booked_is_given_back_in_its_direction() {
    let settings = settings("-B 1000");
    let booked = |direction| settings.admission.booked_mbps(direction);
    let upstream = Setup {
        max_bandwidth: 700 | Setup::UPSTREAM,
        ..request()
    };
    let mut bytes = [0; Setup::LEN];
    let (_, connection) = ask(&upstream, &settings, at(0))
        .unwrap()
        .accept(4000, at(0), &mut bytes);
    assert_eq!(connection.max_bandwidth_mbps, 700);
    assert_eq!(booked(Direction::Upstream), 700);
    // The activation may then say downstream.
    drop(connection);
    assert_eq!(booked(Direction::Upstream), 0);
    assert_eq!(booked(Direction::Downstream), 0);

    // No socket was to be had.
    let examined = ask(&upstream, &settings, at(0)).unwrap();
    assert_eq!(booked(Direction::Upstream), 700);
    examined.reject(at(0), &mut bytes);
    let response = Setup::decode_response(&bytes).unwrap();
    assert_eq!(
        SetupCode::of(response.cmd_response),
        Some(SetupCode::NoConnection)
    );
    assert_eq!(booked(Direction::Upstream), 0);
}

#[test]
fn the_window_of_each_version() {
    use ringmill_protocols::capacity::auth::Signed;
    let settings =
        settings("key file with 0=legacykey 1=firstkey 2=secondkey 255=thirdkey, and -a backup");
    let now = 1_000_000_u32;
    for (protocol_ver, offset, expected) in [
        (20, 5, Ok(())),
        (20, -5, Ok(())),
        (20, 6, Err(SetupCode::AuthenticationTime)),
        (20, -6, Err(SetupCode::AuthenticationTime)),
        (11, 150, Ok(())),
        (11, -150, Ok(())),
        (11, 151, Err(SetupCode::AuthenticationTime)),
        (19, -151, Err(SetupCode::AuthenticationTime)),
        // The digest comes first, the version after it.
        (21, 0, Err(SetupCode::Version)),
        (10, 0, Err(SetupCode::Version)),
        (21, 9, Err(SetupCode::AuthenticationTime)),
    ] {
        let mut signed = Setup {
            protocol_ver,
            ..request()
        };
        signed.auth.auth_mode = 1;
        signed.auth.key_id = 2;
        signed.auth.auth_unix_time = now.checked_add_signed(offset).unwrap();
        let mut bytes = [0; Setup::LEN];
        signed.encode(&mut bytes);
        let shared = key("secondkey");
        let keys = Keys::derive(&shared, signed.auth.auth_unix_time);
        match protocol_ver {
            ..20 => Signed::Setup.sign(shared.bytes(), &mut bytes),
            _ => Signed::Setup.sign(keys.client(), &mut bytes),
        }
        let examined = examine(&bytes, &settings, at(now)).unwrap();
        assert_eq!(examined.verdict, expected, "{protocol_ver} {offset}");
        if expected == Err(SetupCode::AuthenticationTime) {
            let error = examined.auth_error.unwrap().to_string();
            assert!(error.contains(&format!("by {offset} s")), "{error}");
        }
        let mut bytes = [0; Setup::LEN];
        match expected {
            Ok(()) => drop(examined.accept(4000, at(now), &mut bytes)),
            Err(_) => drop(examined.reject(at(now), &mut bytes)),
        }
        // A rejection in version 20 is signed with the right key, too.
        if protocol_ver >= 20 {
            assert!(Signed::Setup.verify(keys.server(), &bytes));
        }
    }
}

#[test]
fn an_activation_must_be_signed_when_the_setup_was() {
    use ringmill_protocols::capacity::auth::Signed;
    let settings = ServerSettings {
        fill_check_sum: true,
        ..settings("key file with 0=legacykey 1=firstkey 2=secondkey 255=thirdkey, and -a backup")
    };
    let now = at(1_000_000);
    let mut setup = request();
    setup.auth.auth_mode = 1;
    setup.auth.key_id = 1;
    setup.auth.auth_unix_time = now.sec;
    let keys = Keys::derive(&key("firstkey"), now.sec);
    let mut bytes = [0; Setup::LEN];
    setup.encode(&mut bytes);
    Signed::Setup.sign(keys.client(), &mut bytes);
    let examined = examine(&bytes, &settings, now).unwrap();
    let (_, connection) = examined.accept(4000, now, &mut bytes);
    assert!(connection.authenticated);
    let response = Setup::decode_response(&bytes).expect("with a right checksum");
    assert_ne!(response.check_sum, 0);

    let mut activation = Activation {
        protocol_ver: 20,
        cmd_request: Activation::DOWNSTREAM,
        ..Activation::default()
    };
    activation.auth.auth_mode = 1;
    activation.auth.auth_unix_time = now.sec + 1;
    let mut bytes = [0; Activation::LEN_MAX];
    activation.encode(Version::V20, &mut bytes);
    assert!(connection.activation(&bytes, now, 5).is_err(), "not signed");
    Signed::Activation.sign(keys.server(), &mut bytes);
    assert!(
        connection.activation(&bytes, now, 5).is_err(),
        "the wrong key"
    );
    Signed::Activation.sign(keys.client(), &mut bytes);
    assert!(
        connection.activation(&bytes, at(now.sec + 7), 5).is_err(),
        "too old"
    );
    let read = connection.activation(&bytes, now, 5).expect("right");

    let response = Activation {
        cmd_response: Activation::ACCEPTED,
        ..read
    };
    let len = connection.activation_response(&response, now, &mut bytes);
    let read = Activation::decode_response(&bytes[..len], Version::V20).expect("right checksum");
    assert_eq!((read.auth.key_id, read.auth.auth_unix_time), (1, now.sec));
    assert!(Signed::Activation.verify(keys.server(), &bytes));
    assert!(connection.activation(&bytes, now, 5).is_err(), "a response");
}
