use std::ffi::OsString;

use ringmill_protocols::capacity::intervals::{Delivery, Rates, Times};

use super::numbers::seconds;
use super::*;

macro_rules! sample {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/udpst/",
            $name
        ))
    };
}

fn options(line: &str) -> Options {
    Options::parse(line.split_whitespace().map(OsString::from)).expect(line)
}

/// 2026-11-20T21:56:00Z and so many microseconds.
fn at(micros: u64) -> WallTime {
    WallTime::from_unix_nanos(1_795_211_760_000_000_000 + micros * 1000)
}

fn times(avg_ms: u32, max_ms: u32) -> Times {
    Times {
        min_ms: 0,
        max_ms,
        sum_ms: u64::from(avg_ms) * 10,
        count: 10,
    }
}

struct Shape {
    micros: u64,
    ms: u32,
    active: u32,
    one_way_max: u32,
    rtt: (u32, u32),
    rates: [f64; 4],
}

fn interval(number: u32, shape: &Shape) -> (Interval, WallTime) {
    let [ip, ethernet, ethernet_fcs, ethernet_fcs_vlan] = shape.rates;
    let interval = Interval {
        number,
        reported: shape.active,
        active_connections: shape.active,
        accumulated_ms: shape.ms,
        rates: Rates {
            ip,
            ethernet,
            ethernet_fcs,
            ethernet_fcs_vlan,
        },
        delivery: Delivery {
            datagrams: 10_000,
            ..Delivery::default()
        },
        delay_var: times(0, shape.one_way_max),
        rtt_var: times(shape.rtt.0, shape.rtt.1),
        rtt_min_ms: Some(0),
        ..Interval::default()
    };
    (interval, at(shape.micros))
}

/// The text of a run of these options and sub-intervals.
fn text(line: &str, run: impl FnOnce(&mut Run<'_>), shapes: &[Shape]) -> String {
    let options = options(line);
    let numbered = shapes.iter().zip(1..);
    let intervals: Vec<_> = numbered
        .map(|(shape, number)| interval(number, shape))
        .collect();
    let mut results = Results::new(options.first_mode, options.by_interface);
    for (interval, _) in &intervals {
        results.add(interval);
    }
    let servers: Vec<_> = options
        .hosts
        .iter()
        .map(|host| Server {
            name: host.name.clone(),
            address: std::net::SocketAddr::new(host.name.parse().unwrap(), host.port),
        })
        .collect();
    let mut found = Run {
        options: &options,
        servers: &servers,
        ident: 0,
        first: None,
        intervals: &intervals,
        results: (!shapes.is_empty()).then_some(&results),
        bleached: false,
        ended: at(0),
        status: 0,
        messages: ["", ""],
    };
    run(&mut found);
    found.text(options.json.unwrap_or_default()).unwrap()
}

fn first(options: &Options, local: &str, peer: &str, at: WallTime) -> Option<First> {
    let direction = options.direction().unwrap();
    Some(First {
        local: local.parse().unwrap(),
        peer: peer.parse().unwrap(),
        parameters: options.parameters(direction),
        at,
    })
}

const fn shape(micros: u64, ms: u32, one_way_max: u32, rtt_max: u32, rates: [f64; 4]) -> Shape {
    Shape {
        micros,
        ms,
        active: 1,
        one_way_max,
        rtt: (0, rtt_max),
        rates,
    }
}

#[test]
fn the_sample_of_a_bimodal_run_comes_out_again() {
    let only = |ip: f64| [ip, 0.0, 0.0, 0.0];
    let ours = text(
        "-d 127.0.0.1 -t 5 -i 2 -f jsonb",
        |run| {
            run.first = first(run.options, "127.0.0.1:1", "127.0.0.1:2", at(26_066_618));
            run.ended = at(31_621_407);
        },
        &[
            shape(27_119_421, 1000, 3, 2, only(1.606)),
            shape(28_120_819, 2000, 1, 0, [1.898, 2.00, 2.03, 2.06]),
            shape(29_131_011, 3000, 0, 0, [1.94, 2.05, 2.08, 2.12]),
            shape(30_145_420, 4000, 2, 2, only(1.45)),
            shape(31_160_836, 5000, 4, 0, only(1.44)),
        ],
    );
    assert_eq!(ours, sample!("client_jsonb_bimodal.json"));
}

#[test]
fn the_sample_of_a_search_comes_out_again() {
    let ours = text(
        "-u 127.0.0.1 -t 5 -s -f json",
        |run| {
            run.ident = 35665;
            run.first = first(
                run.options,
                "127.0.0.1:39456",
                "127.0.0.1:52535",
                at(20_525_099),
            );
            run.ended = at(26_060_909);
        },
        &[
            shape(21_000_000, 1000, 6, 1, [46.92, 0.0, 0.0, 0.0]),
            shape(22_000_000, 2000, 0, 0, [209.96, 0.0, 0.0, 0.0]),
            shape(23_000_000, 3000, 0, 0, [388.11, 0.0, 0.0, 0.0]),
            shape(24_000_000, 4000, 0, 0, [588.78, 0.0, 0.0, 0.0]),
            shape(25_658_290, 5000, 0, 0, [706.78, 714.70, 716.96, 719.22]),
        ],
    );
    assert_eq!(ours, sample!("client_json_summary_only_search.json"));
}

#[test]
fn the_sample_of_two_servers_comes_out_again() {
    let sample = sample!("client_jsonf_two_servers_fixed.json");
    // The figures of the sample, in the order of its sub-intervals.
    let values = |key: &str| -> Vec<String> {
        let lines = sample
            .lines()
            .filter_map(|line| line.trim().strip_prefix(key));
        lines
            .map(|value| value.trim_matches(['\t', ',', '"', ':']).to_owned())
            .collect()
    };
    let ms = |text: &str| (text.parse::<f64>().unwrap() * 1000.0).round() as u32;
    let (capacity, ends) = (
        values("\"IPLayerCapacity\""),
        values("\"TimeOfSubInterval\""),
    );
    let (one_way, rtt_avg, rtt_max) = (
        values("\"PDVMax\""),
        values("\"RTTAvg\""),
        values("\"RTTMax\""),
    );
    let shapes: Vec<_> = (0..5)
        .map(|n| {
            let time: jiff::Timestamp = ends[n].parse().unwrap();
            let ip: f64 = capacity[n].parse().unwrap();
            Shape {
                micros: (time.as_microsecond() - 1_795_211_760_000_000) as u64,
                ms: (n as u32 + 1) * 1000,
                active: 2,
                one_way_max: ms(&one_way[n]),
                rtt: (ms(&rtt_avg[n]), ms(&rtt_max[n])),
                rates: [ip, 5.72, 5.78, 5.84],
            }
        })
        .collect();
    let ours = text(
        "-d 127.0.0.1 127.0.0.1:24602 -t 5 -I 3 -f jsonf",
        |run| {
            run.ident = 21337;
            run.first = first(
                run.options,
                "127.0.0.1:48859",
                "127.0.0.1:57213",
                at(14_975_609),
            );
            run.ended = at(20_508_645);
        },
        &shapes,
    );
    assert_eq!(ours, sample);
}

#[test]
fn the_samples_of_failures_come_out_again() {
    let none = text(
        "-d 127.0.0.1:24999 -f json",
        |run| {
            run.status = 200;
            run.messages = [
                "ERROR: Minimum required connections (1) unavailable",
                "WARNING: Timeout awaiting response from server 127.0.0.1:24999",
            ];
        },
        &[],
    );
    assert_eq!(none, sample!("client_json_no_server.json"));
    let rejected = text(
        "-d 127.0.0.1 -f jsonf",
        |run| {
            run.status = 111;
            run.messages = [
                "ERROR: Minimum required connections (1) unavailable",
                "ERROR: Client traditional MTU option does not match server 127.0.0.1:24601",
            ];
        },
        &[],
    );
    assert_eq!(rejected, sample!("client_jsonf_setup_rejected.json"));
}

#[test]
fn a_test_that_fails_has_only_what_it_began_with() {
    let ours = text(
        "-d 127.0.0.1 -f jsonb",
        |run| {
            run.first = first(run.options, "[::1]:1", "[::1]:2", at(0));
            run.status = 200;
        },
        &[],
    );
    assert_eq!(
        ours,
        "{\"Output\":{\"BOMTime\":\"2026-11-20T21:56:00.000000Z\",\"TmaxUsed\":1000,\
         \"TestInterval\":10,\"TmaxRTTUsed\":3000,\"TimestampResolutionUsed\":1,\"EOMTime\":\
         \"2026-11-20T21:56:00.000000Z\",\"Status\":\"Error_Other\"},\"ErrorStatus\":200,\
         \"ErrorMessage\":\"\",\"ErrorMessage2\":\"\"}\n"
    );
}

#[test]
fn a_bimodal_test_that_ended_in_its_first_mode_lacks_the_second() {
    let ours = text(
        "-d 127.0.0.1 -i 3 -f jsonb",
        |run| run.first = first(run.options, "127.0.0.1:1", "127.0.0.1:2", at(0)),
        &[shape(0, 1000, 0, 0, [1.0; 4])],
    );
    assert!(
        ours.contains("\"Summary\":{\"Mode\":1,\"Intervals\":1,"),
        "{ours}"
    );
    for key in ["ModalSummary", "ModalResult", "ECNBleachingDetected"] {
        assert!(!ours.contains(key), "{key}");
    }
}

#[test]
fn seconds_have_nine_digits_and_a_point() {
    for (ms, text) in [
        (0, "0.0"),
        (1, "0.001"),
        (-3, "-0.003"),
        (12_000, "12.0"),
        (12_345, "12.345"),
        (123_456_789_123, "123456789.1"),
        (1_795_210_881_234, "1.79521088e+09"),
        (1_000_000_000_000, "1000000000.0"),
    ] {
        assert_eq!(seconds(ms), text);
    }
}

#[test]
fn sizes_of_payload_go_with_the_address_family() {
    for (line, peer, least, most, default) in [
        ("-d 127.0.0.1", "127.0.0.1:5", 52, 8972, 1222),
        ("-d 127.0.0.1 -j", "[::ffff:127.0.0.1]:5", 52, 1222, 1222),
        ("-d ::1 -jT", "[::1]:5", 32, 1452, 1452),
        ("-d ::1", "[::1]:5", 32, 8952, 1202),
    ] {
        let ours = text(
            line,
            |run| run.first = first(run.options, peer, peer, at(0)),
            &[],
        );
        let keys = format!(
            "\"UDPPayloadMin\":{least},\"UDPPayloadMax\":{most},\"UDPPayloadDefault\":{default},"
        );
        assert!(ours.contains(&keys), "{line}: {ours}");
    }
}
