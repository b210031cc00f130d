//! Rate adjustment and receiver against what a real OB-UDPST 9.0.0 server did.

use ringmill_protocols::capacity::adjust::{AdjustSettings, Adjuster, Algorithm, Plan, Trial};
use ringmill_protocols::capacity::sequence::{Sequence, SequenceErrors};
use serde_json::Value;

fn load(text: &str) -> Value {
    serde_json::from_str(text).expect("the vectors are JSON")
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().expect("a number")).expect("of 32 bits")
}

fn settings(params: &Value) -> AdjustSettings {
    let get = |name: &str| number(&params[name]);
    AdjustSettings {
        algorithm: match params["algo"].as_str() {
            Some("B") => Algorithm::B,
            Some("C") => Algorithm::C,
            other => panic!("algorithm {other:?}"),
        },
        plan: match (get("srIndexConf") as u16, get("srIndexIsStart")) {
            (u16::MAX, _) => Plan::Search { start: 0 },
            (start, 1) => Plan::Search { start },
            (row, _) => Plan::Fixed(row),
        },
        low_threshold_ms: get("lowThresh"),
        upper_threshold_ms: get("upperThresh"),
        sequence_errors_max: get("seqErrThresh"),
        slow_threshold: get("slowAdjThresh"),
        high_speed_delta: get("highSpeedDelta") as u16,
        ignore_reordering: get("ignoreOooDup") == 1,
        one_way_delay: get("useOwDelVar") == 1,
        suppressed_sub_intervals: get("srAdjSuppCount"),
        ce_threshold: get("ecnCEThresh") as u8,
        ..AdjustSettings::default()
    }
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
