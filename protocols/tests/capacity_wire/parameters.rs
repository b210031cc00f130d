//! What a server puts in the place of parameters that are not legal or beyond its limits, and what a
//! client takes from a response.

use ringmill_protocols::capacity::parameters::{
    Algorithm, Direction, ParameterError, Rate, ServerLimits, TestParameters,
};
use ringmill_protocols::capacity::pdu::{Activation, Version};

const OPEN: ServerLimits = ServerLimits {
    test_time_max_s: 3600,
    dscp_ecn_max: 255,
    row_max: 1152,
    random_payload: false,
    extended_rows: false,
};

fn default_request(version: Version) -> Activation {
    TestParameters::new(Direction::Downstream).request(version, version.wire())
}

#[test]
fn what_a_client_asks_for_by_default_comes_back() {
    for version in [Version::V11, Version::V20] {
        for direction in [Direction::Upstream, Direction::Downstream] {
            let asked = TestParameters::new(direction);
            let request = asked.request(version, version.wire());
            let (parameters, response) = TestParameters::corrected(&request, version, &OPEN);
            assert_eq!(parameters, asked);
            let accepted = Activation {
                cmd_response: Activation::ACCEPTED,
                ..request
            };
            assert_eq!(response, accepted);
            let taken = TestParameters::accepted(&response, version, &asked);
            assert_eq!(taken, Ok(asked));
        }
    }
}

/// A line of a table: what it is about, how it changes a request, and what it makes of a response.
type Case = (&'static str, fn(&mut Activation), fn(&mut Activation));

#[test]
fn substitutions_in_both_versions() {
    let cases: &[Case] = &[
        ("low 0", |a| a.low_thresh = 0, |a| a.low_thresh = 30),
        ("low 1", |a| a.low_thresh = 1, |a| a.low_thresh = 1),
        (
            "low 10001",
            |a| a.low_thresh = 10_001,
            |a| a.low_thresh = 30,
        ),
        ("upper 0", |a| a.upper_thresh = 0, |a| a.upper_thresh = 90),
        (
            "both 10000",
            |a| (a.low_thresh, a.upper_thresh) = (10_000, 10_000),
            |a| (a.low_thresh, a.upper_thresh) = (10_000, 10_000),
        ),
        (
            "upper 10001",
            |a| a.upper_thresh = 10_001,
            |a| a.upper_thresh = 90,
        ),
        (
            "low above upper",
            |a| (a.low_thresh, a.upper_thresh) = (51, 50),
            |a| (a.low_thresh, a.upper_thresh) = (30, 90),
        ),
        (
            "low above the default that upper falls back to",
            |a| (a.low_thresh, a.upper_thresh) = (91, 0),
            |a| (a.low_thresh, a.upper_thresh) = (30, 90),
        ),
        ("trial 4", |a| a.trial_int = 4, |a| a.trial_int = 50),
        ("trial 5", |a| a.trial_int = 5, |a| a.trial_int = 5),
        ("trial 250", |a| a.trial_int = 250, |a| a.trial_int = 250),
        ("trial 251", |a| a.trial_int = 251, |a| a.trial_int = 50),
        ("time 4", |a| a.test_int_time = 4, |a| a.test_int_time = 10),
        ("time 5", |a| a.test_int_time = 5, |a| a.test_int_time = 5),
        (
            "time 3600",
            |a| a.test_int_time = 3600,
            |a| a.test_int_time = 3600,
        ),
        (
            "time 3601",
            |a| a.test_int_time = 3601,
            |a| a.test_int_time = 10,
        ),
        (
            "row 1152",
            |a| a.sr_index_conf = 1152,
            |a| a.sr_index_conf = 1152,
        ),
        (
            "row 1153",
            |a| a.sr_index_conf = 1153,
            |a| a.sr_index_conf = 0xFFFF,
        ),
        (
            "row 65534",
            |a| a.sr_index_conf = 65534,
            |a| a.sr_index_conf = 0xFFFF,
        ),
        // OB-UDPST keeps the bit, looks the row up and crashes.
        (
            "row 1153 to start at",
            |a| (a.sr_index_conf, a.modifier_bitmap) = (1153, 0x81),
            |a| (a.sr_index_conf, a.modifier_bitmap) = (0xFFFF, 0x80),
        ),
        (
            "row 1152 to start at",
            |a| (a.sr_index_conf, a.modifier_bitmap) = (1152, 1),
            |a| (a.sr_index_conf, a.modifier_bitmap) = (1152, 1),
        ),
        (
            "one-way 2",
            |a| a.use_ow_del_var = 2,
            |a| a.use_ow_del_var = 0,
        ),
        (
            "one-way 1",
            |a| a.use_ow_del_var = 1,
            |a| a.use_ow_del_var = 1,
        ),
        (
            "delta 0",
            |a| a.high_speed_delta = 0,
            |a| a.high_speed_delta = 10,
        ),
        (
            "delta 255",
            |a| a.high_speed_delta = 255,
            |a| a.high_speed_delta = 255,
        ),
        (
            "slow 0",
            |a| a.slow_adj_thresh = 0,
            |a| a.slow_adj_thresh = 3,
        ),
        (
            "slow 65535",
            |a| a.slow_adj_thresh = 65535,
            |a| a.slow_adj_thresh = 65535,
        ),
        (
            "any sequence errors",
            |a| a.seq_err_thresh = 65535,
            |a| a.seq_err_thresh = 65535,
        ),
        (
            "no sequence errors",
            |a| a.seq_err_thresh = 0,
            |a| a.seq_err_thresh = 0,
        ),
        (
            "ignore 2",
            |a| a.ignore_ooo_dup = 2,
            |a| a.ignore_ooo_dup = 1,
        ),
        (
            "ignore 0",
            |a| a.ignore_ooo_dup = 0,
            |a| a.ignore_ooo_dup = 0,
        ),
        (
            "random payload, not granted; other bits are repeated",
            |a| a.modifier_bitmap = 0xFE,
            |a| a.modifier_bitmap = 0xFC,
        ),
        (
            "algorithm 2",
            |a| a.rate_adj_algo = 2,
            |a| a.rate_adj_algo = 0,
        ),
        (
            "algorithm 1",
            |a| a.rate_adj_algo = 1,
            |a| a.rate_adj_algo = 1,
        ),
        (
            "reserved bytes are repeated",
            |a| a.reserved3 = 0xABCD,
            |a| a.reserved3 = 0xABCD,
        ),
        ("a row in the request", |a| a.rate.burst_size1 = 7, |_| {}),
    ];
    for version in [Version::V11, Version::V20] {
        check(version, cases, &OPEN);
    }
}

#[test]
fn substitutions_in_version_20() {
    let cases: &[Case] = &[
        (
            "sub-interval 99",
            |a| a.sub_int_period = 99,
            |a| a.sub_int_period = 1000,
        ),
        (
            "sub-interval 100",
            |a| a.sub_int_period = 100,
            |a| a.sub_int_period = 100,
        ),
        (
            "sub-interval 10001",
            |a| a.sub_int_period = 10_001,
            |a| a.sub_int_period = 1000,
        ),
        (
            "sub-interval as long as the test",
            |a| (a.test_int_time, a.sub_int_period) = (7, 7000),
            |a| (a.test_int_time, a.sub_int_period) = (7, 7000),
        ),
        (
            "sub-interval longer than the test",
            |a| (a.test_int_time, a.sub_int_period) = (7, 7001),
            |a| (a.test_int_time, a.sub_int_period) = (10, 1000),
        ),
        (
            "the byte of version 11",
            |a| a.sub_int_sec_v11 = 77,
            |a| a.sub_int_sec_v11 = 77,
        ),
        (
            "suppression of all but one",
            |a| a.sr_adj_supp_count = 9,
            |a| a.sr_adj_supp_count = 9,
        ),
        (
            "suppression of all",
            |a| a.sr_adj_supp_count = 10,
            |a| a.sr_adj_supp_count = 0,
        ),
        (
            "CE threshold without ECN",
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0xB8, 5),
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0xB8, 0),
        ),
        (
            "CE threshold with ECT(1)",
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0x01, 5),
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0x01, 5),
        ),
        (
            "CE threshold with ECT(0)",
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0xBA, 255),
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0xBA, 255),
        ),
        (
            "CE threshold with CE",
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0x03, 5),
            |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0x03, 0),
        ),
    ];
    check(Version::V20, cases, &OPEN);
}

#[test]
fn substitutions_in_version_11() {
    let cases: &[Case] = &[
        (
            "sub-interval 0",
            |a| a.sub_int_sec_v11 = 0,
            |a| a.sub_int_sec_v11 = 1,
        ),
        (
            "sub-interval 10",
            |a| a.sub_int_sec_v11 = 10,
            |a| a.sub_int_sec_v11 = 10,
        ),
        (
            "sub-interval 11",
            |a| a.sub_int_sec_v11 = 11,
            |a| a.sub_int_sec_v11 = 1,
        ),
        (
            "sub-interval longer than the test",
            |a| (a.test_int_time, a.sub_int_sec_v11) = (5, 6),
            |a| (a.test_int_time, a.sub_int_sec_v11) = (10, 1),
        ),
        (
            "the byte that is the CE threshold in version 20",
            |a| a.ecn_ce_thresh = 9,
            |a| a.ecn_ce_thresh = 9,
        ),
    ];
    check(Version::V11, cases, &OPEN);
}

#[test]
fn a_server_has_limits() {
    let limits = ServerLimits {
        test_time_max_s: 20,
        dscp_ecn_max: 0x28,
        row_max: 500,
        random_payload: true,
        extended_rows: false,
    };
    let cases: &[Case] = &[
        ("longer", |a| a.test_int_time = 21, |a| a.test_int_time = 20),
        ("marked", |a| a.dscp_ecn = 0x29, |a| a.dscp_ecn = 0x28),
        (
            "faster",
            |a| a.sr_index_conf = 501,
            |a| a.sr_index_conf = 500,
        ),
        (
            "faster at first",
            |a| (a.sr_index_conf, a.modifier_bitmap) = (501, 1),
            |a| (a.sr_index_conf, a.modifier_bitmap) = (500, 1),
        ),
        ("automatic", |_| {}, |_| {}),
        (
            "random",
            |a| a.modifier_bitmap = 2,
            |a| a.modifier_bitmap = 2,
        ),
    ];
    for version in [Version::V11, Version::V20] {
        check(version, cases, &limits);
    }
    // The mark loses its ECN bits by the limit, and with them the threshold.
    let cases: &[Case] = &[(
        "mark",
        |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0xBA, 5),
        |a| (a.dscp_ecn, a.ecn_ce_thresh) = (0x28, 0),
    )];
    check(Version::V20, cases, &limits);
    // The default time holds the limit, too.
    let short = ServerLimits {
        test_time_max_s: 6,
        ..OPEN
    };
    let cases: &[Case] = &[
        (
            "a sub-interval longer than the shortened test",
            |a| (a.test_int_time, a.sub_int_period) = (10, 7000),
            |a| (a.test_int_time, a.sub_int_period) = (6, 1000),
        ),
        (
            "suppression counted in the shortened test",
            |a| a.sr_adj_supp_count = 6,
            |a| (a.test_int_time, a.sr_adj_supp_count) = (6, 0),
        ),
    ];
    check(Version::V20, cases, &short);
    let cases: &[Case] = &[(
        "a row that there is not",
        |a| a.sr_index_conf = 1153,
        |a| {
            a.sr_index_conf = 0xFFFF;
        },
    )];
    check(Version::V20, cases, &OPEN);
}

/// What is asked for, by whom it is answered, and what is agreed.
#[test]
fn rows_past_the_table_need_both_ends() {
    let granting = ServerLimits {
        row_max: 1252,
        extended_rows: true,
        ..OPEN
    };
    let low = ServerLimits {
        row_max: 1200,
        ..granting
    };
    let (fixed, start) = (Rate::Fixed, |start| Rate::Search { start });
    for (name, version, asked, extended, limits, agreed, granted) in [
        (
            "granted",
            Version::V20,
            fixed(1180),
            true,
            granting,
            fixed(1180),
            true,
        ),
        (
            "the last",
            Version::V20,
            start(1252),
            true,
            granting,
            start(1252),
            true,
        ),
        (
            "a search",
            Version::V20,
            start(0),
            true,
            granting,
            start(0),
            true,
        ),
        (
            "lowered",
            Version::V20,
            start(1252),
            true,
            low,
            start(1200),
            true,
        ),
        (
            "not asked for",
            Version::V20,
            fixed(1180),
            false,
            granting,
            fixed(1152),
            false,
        ),
        (
            "not granted",
            Version::V20,
            fixed(1180),
            true,
            OPEN,
            fixed(1152),
            false,
        ),
        (
            "nor to start at",
            Version::V20,
            start(1180),
            true,
            OPEN,
            start(1152),
            false,
        ),
        (
            "an old client",
            Version::V11,
            fixed(1180),
            true,
            granting,
            fixed(1152),
            false,
        ),
    ] {
        let asked = TestParameters {
            rate: asked,
            extended_rows: extended,
            ..TestParameters::new(Direction::Upstream)
        };
        let request = asked.request(version, version.wire());
        // Such an index crashes OB-UDPST 9.0.0.
        assert!(
            request.sr_index_conf <= 1152 || request.sr_index_conf == 0xFFFF,
            "{name}"
        );
        let (server, response) = TestParameters::corrected(&request, version, &limits);
        let client = TestParameters::accepted(&response, version, &asked).expect(name);
        assert_eq!(
            (client.rate, client.extended_rows),
            (agreed, granted),
            "{name}"
        );
        assert_eq!(server, client, "{name}");
        // A server that returns unknown bytes as they came, or clears them, grants nothing.
        for reserved5 in [request.reserved5, 0] {
            let echo = Activation {
                cmd_response: Activation::ACCEPTED,
                reserved5,
                ..request
            };
            let client = TestParameters::accepted(&echo, version, &asked).expect(name);
            assert!(!client.extended_rows && client.rate.row() <= 1152, "{name}");
        }
    }
    // A grant that was not asked for, and one beyond the rows that there are.
    let asked = TestParameters::new(Direction::Upstream);
    let mut response = asked.request(Version::V20, 20);
    response.cmd_response = Activation::ACCEPTED;
    response.reserved5 = Activation::ROWS_GRANTED;
    let agreed = TestParameters::accepted(&response, Version::V20, &asked);
    assert_eq!(agreed, Ok(asked));
    let asked = TestParameters {
        rate: fixed(1180),
        extended_rows: true,
        ..asked
    };
    (response.sr_index_conf, response.reserved3) = (1152, 101);
    let agreed = TestParameters::accepted(&response, Version::V20, &asked);
    let error = ParameterError::Value {
        field: "reserved3",
        value: 101,
    };
    assert_eq!(agreed, Err(error));
}

fn check(version: Version, cases: &[Case], limits: &ServerLimits) {
    for (name, ask, answer) in cases {
        let mut request = default_request(version);
        ask(&mut request);
        let mut expected = request;
        expected.cmd_response = Activation::ACCEPTED;
        expected.rate = Default::default();
        answer(&mut expected);
        let (parameters, response) = TestParameters::corrected(&request, version, limits);
        assert_eq!(response, expected, "{version:?}: {name}");
        // What it says is what it does.
        let (again, unchanged) = TestParameters::corrected(&response, version, limits);
        assert_eq!((again, unchanged), (parameters, response), "{name}");
    }
}

#[test]
fn rows_are_understood() {
    for (sr_index_conf, modifier_bitmap, rate) in [
        (0xFFFF, 0, Rate::Search { start: 0 }),
        (0xFFFF, 1, Rate::Search { start: 0 }),
        (0, 0, Rate::Fixed(0)),
        (0, 1, Rate::Search { start: 0 }),
        (100, 0, Rate::Fixed(100)),
        (100, 1, Rate::Search { start: 100 }),
        (60_000, 1, Rate::Search { start: 0 }),
    ] {
        let request = Activation {
            sr_index_conf,
            modifier_bitmap,
            ..default_request(Version::V20)
        };
        let (parameters, _) = TestParameters::corrected(&request, Version::V20, &OPEN);
        assert_eq!(parameters.rate, rate, "{sr_index_conf} {modifier_bitmap}");
    }
    for (rate, suppressed, first) in [
        (Rate::Search { start: 0 }, 0, 0),
        (Rate::Search { start: 70 }, 3, 70),
        (Rate::Fixed(70), 0, 70),
        (Rate::Fixed(70), 1, 0),
    ] {
        assert_eq!(rate.first_row(suppressed), first, "{rate:?} {suppressed}");
    }
}

#[test]
fn everything_that_can_be_asked_for_is_carried() {
    let asked = TestParameters {
        direction: Direction::Upstream,
        low_thresh_ms: 11,
        upper_thresh_ms: 77,
        trial_int_ms: 100,
        test_time_s: 6,
        sub_int_ms: 2000,
        dscp_ecn: 2,
        rate: Rate::Search { start: 100 },
        use_ow_del_var: true,
        high_speed_delta: 20,
        slow_adj_thresh: 7,
        seq_err_thresh: 33,
        ignore_ooo_dup: false,
        random_payload: true,
        algorithm: Algorithm::C,
        ecn_ce_thresh: 5,
        sr_adj_supp_count: 2,
        extended_rows: false,
    };
    assert_eq!(asked.sub_intervals(), 3);
    let limits = ServerLimits {
        random_payload: true,
        ..OPEN
    };
    for version in [Version::V11, Version::V20] {
        let request = asked.request(version, version.wire());
        let (parameters, response) = TestParameters::corrected(&request, version, &limits);
        let expected = match version {
            Version::V20 => asked,
            Version::V11 => TestParameters {
                ecn_ce_thresh: 0,
                sr_adj_supp_count: 0,
                ..asked
            },
        };
        assert_eq!(parameters, expected);
        let taken = TestParameters::accepted(&response, version, &asked);
        assert_eq!(taken, Ok(expected));
    }
    let fine = TestParameters {
        sub_int_ms: 1500,
        ..asked
    };
    let request = fine.request(Version::V11, 11);
    assert_eq!(request.sub_int_sec_v11, 2, "whole seconds, rounded up");
}

#[test]
fn a_client_trusts_no_number_beyond_what_it_asked_for() {
    let asked = TestParameters::new(Direction::Downstream);
    let value = |field, value| Err(ParameterError::Value { field, value });
    type Change = fn(&mut Activation);
    let cases: &[(Change, Result<(), ParameterError>)] = &[
        (|_| {}, Ok(())),
        (|a| a.test_int_time = 5, Ok(())),
        (|a| a.test_int_time = 11, value("testIntTime", 11)),
        (|a| a.test_int_time = 65535, value("testIntTime", 65535)),
        (|a| a.trial_int = 0, value("trialInt", 0)),
        (|a| a.sub_int_period = 0, value("subIntPeriod", 0)),
        (|a| a.sub_int_period = 10_001, value("subIntPeriod", 10_001)),
        (|a| a.low_thresh = 0, value("lowThresh", 0)),
        (|a| a.upper_thresh = 1, value("upperThresh", 1)),
        (|a| a.dscp_ecn = 4, value("dscpEcn", 4)),
        (|a| a.sr_index_conf = 1152, Ok(())),
        (|a| a.sr_index_conf = 1153, value("srIndexConf", 1153)),
        (|a| a.modifier_bitmap = 2, value("modifierBitmap", 2)),
        (|a| a.high_speed_delta = 0, value("highSpeedDelta", 0)),
        (|a| a.slow_adj_thresh = 0, value("slowAdjThresh", 0)),
        (|a| a.use_ow_del_var = 9, value("useOwDelVar", 9)),
        (|a| a.ignore_ooo_dup = 9, value("ignoreOooDup", 9)),
        (|a| a.rate_adj_algo = 9, value("rateAdjAlgo", 9)),
        (|a| a.ecn_ce_thresh = 1, value("ecnCEThresh", 1)),
        (|a| a.sr_adj_supp_count = 10, value("srAdjSuppCount", 10)),
        (
            |a| a.cmd_request = Activation::UPSTREAM,
            Err(ParameterError::Direction),
        ),
    ];
    for (index, (change, expected)) in cases.iter().enumerate() {
        let mut response = default_request(Version::V20);
        response.cmd_response = Activation::ACCEPTED;
        change(&mut response);
        let taken = TestParameters::accepted(&response, Version::V20, &asked);
        assert_eq!(taken.map(drop), *expected, "case {index}");
    }
}
