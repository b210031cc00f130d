use std::ffi::OsString;

use ringmill_protocols::capacity::adjust::Trial;
use ringmill_protocols::capacity::batch::Refused;
use ringmill_protocols::capacity::intervals::{InterfaceRate, Rates, Times};
use ringmill_protocols::capacity::limited::Limit;
use sha2::{Digest, Sha256};

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

fn times(min_ms: u32, avg_ms: u32, max_ms: u32) -> Times {
    Times {
        min_ms,
        max_ms,
        sum_ms: u64::from(avg_ms) * 10,
        count: 10,
    }
}

fn interval(number: u32, ms: u32, one_way_max: u32, rtt_max: u32, mbps: f64) -> Interval {
    Interval {
        number,
        reported: 1,
        active_connections: 1,
        accumulated_ms: ms,
        rates: Rates {
            ip: mbps,
            ..Rates::default()
        },
        delivery: Delivery {
            datagrams: 1000,
            ..Delivery::default()
        },
        delay_var: times(0, 0, one_way_max),
        rtt_var: times(0, 0, rtt_max),
        rtt_min_ms: Some(0),
        ..Interval::default()
    }
}

/// Everything that a client's run prints.
fn run(options: &Options, ident: u16, intervals: &[Interval], ce: bool) -> String {
    let direction = options.direction().expect("a client");
    let show = Show {
        loss_ratio: options.loss_ratio,
        ce,
    };
    let mut gathered = Results::new(options.first_mode, options.by_interface);
    let mut text = banner(options);
    let parameters = options.parameters(direction);
    text += &test_header(
        Prefix(None),
        &parameters,
        ident,
        options.connections_max,
        options,
    );
    for interval in intervals {
        gathered.add(interval);
        text += &sub_interval(Prefix(None), interval, show);
    }
    text + &results(
        Prefix(None),
        direction,
        &gathered,
        options.first_mode > 0,
        show,
    )
}

fn best(mut interval: Interval, ethernet: f64, fcs: f64, vlan: f64) -> Interval {
    interval.rates = Rates {
        ip: interval.rates.ip,
        ethernet,
        ethernet_fcs: fcs,
        ethernet_fcs_vlan: vlan,
    };
    interval
}

#[test]
fn the_samples_of_the_original_come_out_again() {
    let cases = [
        (
            sample!("client_console_ecn.txt"),
            run(
                &options("-d h -t 5 -I 1 -m 1 -Z 3"),
                53957,
                &[
                    interval(1, 1000, 4, 0, 0.71),
                    interval(2, 2000, 4, 1, 0.94),
                    best(interval(3, 3000, 0, 0, 0.99), 1.10, 1.13, 1.17),
                    interval(4, 4000, 0, 0, 0.83),
                    interval(5, 5000, 3, 0, 0.69),
                ],
                true,
            ),
        ),
        (
            sample!("client_console_loss_ratio.txt"),
            run(
                &options("-u h -t 5 -I 4 -P 2500 -r"),
                7769,
                &[
                    interval(1, 2500, 7, 1, 3.26),
                    best(interval(2, 5000, 1, 0, 3.80), 3.90, 3.93, 3.97),
                ],
                false,
            ),
        ),
    ];
    for (sample, ours) in cases {
        let built = |text: &str| -> Vec<String> {
            let lines = text.lines().map(|line| match line.split_once(", Built: ") {
                Some((versions, _)) => versions.to_owned(),
                None => line.to_owned(),
            });
            lines.collect()
        };
        assert_eq!(built(&ours), built(sample));
    }
}

#[test]
fn a_rate_table_is_that_of_the_original() {
    // SHA-256 of what `udpst -S` of OB-UDPST 9.0.0 prints after its banner.
    for (line, digest) in [
        (
            "",
            "b69d2f9d2480e7c2c2a249875f8c24ca86ccb16d3e16645d47bd6ef393d90e43",
        ),
        (
            "-6",
            "75bb236df8aeac2885338c3853086d97063bb7a5ac84ece9f7b8fff163d8a33a",
        ),
        (
            "-j",
            "7106313eb77b826db2ed3ff61283f2995cbd66326d442c8e9add84c7dd43d4bf",
        ),
        (
            "-T",
            "0eccc2ab9300a030d17c4d455a5dec9576760edbbd63f3bd9e5c66616276f6d1",
        ),
        (
            "-6 -j",
            "16c6366a6f448923ef4cc52e4506fe673c61bcd08087c6bd5907e03d3a63bb05",
        ),
        (
            "-6 -T",
            "ec8b1b583ba711804b991b2ee4bb30b54aec4e3b42929e73973681763c85c331",
        ),
        (
            "-j -T",
            "28c2fae587ee519577875360330316b767ad3c425c9fa805cec0e5493d6a5bb3",
        ),
        (
            "-6 -j -T",
            "eeb86b7257b61e3ec31c050b45cf10a08ecf105c91bd38906f9bd873f14bed4e",
        ),
    ] {
        let text = rate_table(options(line).table());
        let found = Sha256::digest(text.as_bytes());
        let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, digest, "-S {line}\n{}", &text[..400]);
    }
}

#[test]
fn two_modes_are_named_by_their_sub_intervals() {
    let intervals = [1, 2, 3, 4, 5].map(|number| interval(number, number * 1000, 0, 0, 1.0));
    let options = options("-d h -t 5 -i 2 -E lo");
    let mut with_interface = intervals;
    for interval in &mut with_interface {
        interval.interface = Some(InterfaceRate {
            test_mbps: 2.0,
            other_mbps: 0.0,
        });
    }
    let text = run(&options, 1, &with_interface, false);
    for part in [
        ", [lo]\n",
        "Mbps(L3/IP): 1.00 [2.00]\n",
        "\nDownstream Sum[1-2] Delivered(%): 100.00, ",
        "\nDownstream Sum[3-5] Delivered(%): ",
        "\nDownstream Max[1-2] Mbps(L3/IP): 1.00 [2.00], Mbps(L2/Eth): ",
        "\nDownstream Max[3-5] ",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // A test that ended within its first mode has but that.
    let text = run(&options, 1, &intervals[..2], false);
    assert!(
        text.contains(" Sum[1-2] ") && !text.contains("Sum[3"),
        "{text}"
    );
}

#[test]
fn columns_stay_in_place() {
    let show = Show::default();
    for (number, ms, starts) in [
        (
            9,
            9_000,
            "[0]Sub-Interval[9](sec):   9.0, Delivered(%): 100.00, ",
        ),
        (
            10,
            10_000,
            "[0]Sub-Interval[10](sec): 10.0, Delivered(%): 100.00, ",
        ),
        (100, 100_049, "[0]Sub-Interval[100](sec): 100.0, "),
    ] {
        let line = sub_interval(Prefix(Some(0)), &interval(number, ms, 0, 0, 1.0), show);
        assert!(line.starts_with(starts), "{line}");
    }
    let mut lossy = interval(1, 1000, 0, 0, 1.0);
    lossy.delivery.lost = 1;
    let line = sub_interval(Prefix(None), &lossy, show);
    assert!(
        line.contains("Delivered(%):  99.90, Loss/OoO/Dup: 1/0/0, "),
        "{line}"
    );
    let ratio = Show {
        loss_ratio: true,
        ce: true,
    };
    let line = sub_interval(Prefix(None), &lossy, ratio);
    assert!(
        line.contains("LossRatio: 9.99E-04, Loss/OoO/Dup/CE: 1/0/0/0, "),
        "{line}"
    );
}

#[test]
fn numbers_in_the_notation_of_c() {
    for (value, text) in [
        (0.0, "0.00E+00"),
        (1.0, "1.00E+00"),
        (0.001_234, "1.23E-03"),
        (1.5e-120, "1.50E-120"),
    ] {
        assert_eq!(scientific(value), text);
    }
}

#[test]
fn banners() {
    let text = banner(&options("--rate-limit --checksum --no-gso -6 -T"));
    assert!(
        text.contains("Protocol Ver: 11-20, Built: ringmill "),
        "{text}"
    );
    assert!(
        text.contains(", Rate Limiting via '-B mbps'\nMode: Server, "),
        "{text}"
    );
    assert!(text.contains("Payload Default[Max]: 1452[8952], Auth: Available, Checksum: On, "));
    assert!(
        text.ends_with("Optimizations: SendMMsg() RecvMMsg()+Trunc\n"),
        "{text}"
    );
    assert!(
        banner(&options("-d -j h")).contains("Mode: Client, Payload Default[Max]: 1222[1222],")
    );
}

#[test]
fn the_row_of_a_test() {
    for (line, name) in [
        ("-d h", "<Auto>"),
        ("-d h -I 0", "0"),
        ("-d h -I @0", "@0"),
        ("-d h -I @7", "@7"),
        ("-d h -I 7", "7"),
    ] {
        let options = options(line);
        let rate = options.parameters(Direction::Downstream).rate;
        assert_eq!(row_name(rate, options.row), name, "{line}");
    }
}

#[test]
fn warnings_say_where() {
    let server = Some("127.0.0.1:24601".parse().unwrap());
    let refused = Refused {
        size: 1,
        format: 2,
        checksum: 3,
    };
    for (what, prefix, server, text) in [
        (
            Warning::StatusLost(3),
            Prefix(None),
            server,
            "LOCAL WARNING: Incoming status feedback messages lost (3) [Server 127.0.0.1:24601]\n",
        ),
        (
            Warning::StatusLostAtPeer(u16::MAX),
            Prefix(Some(2)),
            None,
            "[2]REMOTE WARNING: Incoming status feedback messages lost (OoO/Dup)\n",
        ),
        (
            Warning::TrafficStopped,
            Prefix(None),
            None,
            "LOCAL WARNING: Incoming traffic has completely stopped\n",
        ),
        (
            Warning::EcnBleachedAtPeer,
            Prefix(None),
            None,
            "REMOTE WARNING: Incoming ECN bleaching detected\n",
        ),
        (
            Warning::BadData(refused),
            Prefix(Some(1)),
            None,
            "[1]WARNING: Received invalid data PDUs (size: 1, format: 2, checksum: 3)\n",
        ),
    ] {
        assert_eq!(warning(prefix, what, server), text);
    }
}

#[test]
fn trials_of_either_end() {
    let report = TrialReport {
        trial: Trial {
            loss: 1,
            out_of_order: 2,
            duplicates: 3,
            ce: 4,
            ..Trial::default()
        },
        delay_var: Spread {
            min_ms: 5,
            avg_ms: 6,
            max_ms: 7,
        },
        bytes: 0,
        delta_us: 0,
        row: Some(9),
        limit: Limit::Path,
    };
    let ce = Show {
        ce: true,
        ..Show::default()
    };
    assert_eq!(
        trial(
            Prefix(Some(1)),
            &report,
            Show::default(),
            DebugEnd::Mbps(1.0)
        ),
        "[1]DEBUG Status Feedback [Loss/OoO/Dup: 1/2/3, OWDVar(ms): 5/6/7, RTTVar(ms): -1] \
         Mbps(L3/IP): 1.00\n"
    );
    assert_eq!(
        trial(Prefix(Some(2)), &report, ce, DebugEnd::Row(9)),
        "[2]DEBUG Rate Adjustment [Loss/OoO/Dup/CE: 1/2/3/4, OWDVar(ms): 5/6/7, RTTVar(ms): -1] \
         SRIndex: 9\n"
    );
}
