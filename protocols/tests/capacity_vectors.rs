//! Rate adjustment and receiver against what a real OB-UDPST 9.0.0 server did.

use ringmill_protocols::capacity::adjust::{AdjustSettings, Adjuster, Trial};
use ringmill_protocols::capacity::parameters::{Algorithm, Direction, Rate, TestParameters};
use ringmill_protocols::capacity::pdu::{Load, Status};
use ringmill_protocols::capacity::receiver::{Receiver, ReceiverSettings};
use ringmill_protocols::capacity::sequence::{Sequence, SequenceErrors};
use ringmill_protocols::capacity::time::{Instants, WallTime};
use serde_json::Value;

fn load(text: &str) -> Value {
    serde_json::from_str(text).expect("the vectors are JSON")
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().expect("a number")).expect("of 32 bits")
}

fn settings(params: &Value) -> AdjustSettings {
    let get = |name: &str| number(&params[name]) as u16;
    AdjustSettings::new(TestParameters {
        algorithm: match params["algo"].as_str() {
            Some("B") => Algorithm::B,
            Some("C") => Algorithm::C,
            other => panic!("algorithm {other:?}"),
        },
        rate: match (get("srIndexConf"), get("srIndexIsStart")) {
            (u16::MAX, _) => Rate::Search { start: 0 },
            (start, 1) => Rate::Search { start },
            (row, _) => Rate::Fixed(row),
        },
        low_thresh_ms: get("lowThresh"),
        upper_thresh_ms: get("upperThresh"),
        seq_err_thresh: get("seqErrThresh"),
        slow_adj_thresh: get("slowAdjThresh"),
        high_speed_delta: get("highSpeedDelta") as u8,
        ignore_ooo_dup: get("ignoreOooDup") == 1,
        use_ow_del_var: get("useOwDelVar") == 1,
        sr_adj_supp_count: get("srAdjSuppCount"),
        ecn_ce_thresh: get("ecnCEThresh") as u8,
        ..TestParameters::new(Direction::Downstream)
    })
}

#[test]
fn rows_are_those_of_the_original() {
    let vectors = load(include_str!("vectors/udpst/rate_adjust_traces.json"));
    let mut steps = 0;
    let traces = vectors["traces"].as_array().expect("a list");
    for trace in traces {
        let mut adjuster = Adjuster::new(settings(&trace["params"]));
        for (at, step) in trace["steps"]
            .as_array()
            .expect("a list")
            .iter()
            .enumerate()
        {
            let trial = Trial {
                loss: number(&step[0]),
                out_of_order: number(&step[1]),
                duplicates: number(&step[2]),
                delay_var_sum_ms: number(&step[3]),
                delay_var_count: number(&step[4]),
                rtt_var_ms: (!step[5].is_null()).then(|| number(&step[5])),
                datagrams: number(&step[6]),
                ce: number(&step[7]),
                sub_interval: number(&step[8]),
            };
            let row = adjuster.step(&trial, false);
            assert_eq!(
                u32::from(row),
                number(&step[9]),
                "{} step {at}",
                trace["name"]
            );
            steps += 1;
        }
    }
    assert_eq!((traces.len(), steps), (20, 3240));
}

#[test]
fn sequence_errors_are_those_of_the_original() {
    let vectors = load(include_str!("vectors/udpst/receiver_vectors.json"));
    let patterns = vectors["sequence"].as_array().expect("a list");
    for pattern in patterns {
        let mut sequence = Sequence::new();
        let mut errors = SequenceErrors::default();
        for value in pattern["lpduSeqNo"].as_array().expect("a list") {
            errors.count(sequence.arrived(number(value)));
        }
        let want = &pattern["status"];
        let want = SequenceErrors {
            loss: number(&want["seqErrLoss"]),
            out_of_order: number(&want["seqErrOoo"]),
            duplicates: number(&want["seqErrDup"]),
        };
        assert_eq!(errors, want, "{}", pattern["name"]);
    }
    assert_eq!(patterns.len(), 16);
}

const MS: u64 = 1_000_000;

fn receiver() -> Receiver {
    let settings = ReceiverSettings {
        trial_interval_ms: 50,
        sub_interval_ms: 1000,
        ecn_expected: false,
    };
    Receiver::new(settings, 0)
}

/// Both clocks, this many nanoseconds after the test began.
fn at(now: u64) -> Instants {
    Instants {
        now,
        wall: WallTime::from_unix_nanos(1_800_000_000_000_000_000 + now),
    }
}

#[test]
fn counts_of_a_whole_receiver_are_those_of_the_original() {
    let vectors = load(include_str!("vectors/udpst/receiver_vectors.json"));
    for pattern in vectors["sequence"].as_array().expect("a list") {
        let mut receiver = receiver();
        let mut buffer = Vec::new();
        for value in pattern["lpduSeqNo"].as_array().expect("a list") {
            let mut datagram = [0; 40];
            let load = Load {
                lpdu_seq_no: number(value),
                udp_payload: 40,
                lpdu_time: at(0).wall,
                ..Load::default()
            };
            load.encode(&mut datagram);
            buffer.extend(datagram);
        }
        // All in one coalesced buffer.
        receiver.batch(&buffer, 40, 0, at(MS));
        let status = receiver.status(50 * MS);
        let want = &pattern["status"];
        for (field, got) in [
            ("tiRxDatagrams", status.ti_rx_datagrams),
            ("seqErrLoss", status.seq_err_loss),
            ("seqErrOoo", status.seq_err_ooo),
            ("seqErrDup", status.seq_err_dup),
            ("delayVarCnt", status.delay_var_cnt),
        ] {
            assert_eq!(got, number(&want[field]), "{} {field}", pattern["name"]);
        }
        assert_eq!(status.ti_rx_bytes as usize, buffer.len());
    }
}

#[test]
fn delays_are_those_of_the_original() {
    let vectors = load(include_str!("vectors/udpst/receiver_vectors.json"));
    let (mut one_way, mut round_trip) = (0, 0);
    for case in vectors["delay"].as_array().expect("a list") {
        let mut receiver = receiver();
        let mut sequence = 0;
        let mut next = |spdu_time: WallTime, lpdu_time: WallTime, delay: u16| {
            sequence += 1;
            Load {
                lpdu_seq_no: sequence,
                udp_payload: 32,
                spdu_time,
                lpdu_time,
                rtt_resp_delay: delay,
                ..Load::default()
            }
        };
        let check = |status: &Status, want: &Value, tolerances: &[(&str, i64)]| {
            for (field, tolerance) in tolerances {
                let got: i64 = match *field {
                    "clockDeltaMin" => status.clock_delta_min.into(),
                    "delayVarMin" => status.delay_var_min.into(),
                    "delayVarMax" => status.delay_var_max.into(),
                    "delayVarSum" => status.delay_var_sum.into(),
                    "delayVarCnt" => status.delay_var_cnt.into(),
                    "rttMinimum" => status.rtt_minimum.into(),
                    "rttVarSample" => status.rtt_var_sample.into(),
                    "delayMinUpd" => status.delay_min_upd.into(),
                    other => panic!("no field {other}"),
                };
                let want = want[field].as_i64().expect("a number");
                assert!(
                    (got - want).abs() <= *tolerance,
                    "{} {field}: {got}, not {want}",
                    case["name"]
                );
            }
        };
        let round_trips = [("rttMinimum", 0), ("rttVarSample", 0), ("delayMinUpd", 0)];
        if case["kind"] == "owd" {
            one_way += 1;
            for offset in case["offset_ms"].as_array().expect("a list") {
                let offset = offset.as_i64().expect("ms");
                let sent = at(10_000 * MS).wall.unix_nanos();
                let sent = sent.saturating_add_signed(-offset * MS as i64);
                let load = next(WallTime::NONE, WallTime::from_unix_nanos(sent), 0);
                receiver.load(&load, 0, 32, at(10_000 * MS));
            }
            // The real ones were sent one after the other, some ms apart.
            let one_way = [
                ("clockDeltaMin", 4),
                ("delayVarMin", 0),
                ("delayVarMax", 4),
                ("delayVarSum", 8),
                ("delayVarCnt", 0),
            ];
            let (status, want) = (receiver.status(10_050 * MS), &case["status"]);
            check(&status, want, &one_way);
            check(&status, want, &round_trips);
            continue;
        }
        // The real elapsed times in ms: what was waited and what the machine took.
        let elapsed = [103, 61, 127, 51, 82, 3];
        let mut now = 1_000 * MS;
        for (step, elapsed) in case["steps"]
            .as_array()
            .expect("a list")
            .iter()
            .zip(elapsed)
        {
            round_trip += 1;
            let status_time = at(now).wall;
            now += elapsed * MS;
            let delay = number(&step["rttRespDelay"]) as u16;
            receiver.load(&next(status_time, at(now).wall, delay), 0, 32, at(now));
            let status = receiver.status(now);
            check(&status, &step["status"], &round_trips);
            assert_ne!(status.rtt_var_sample, Status::NONE);
        }
    }
    assert_eq!((one_way, round_trip), (3, 6));
}
