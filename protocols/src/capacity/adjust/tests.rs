//! Judging and bounds; whole searches are compared with the original's in the vectors.

use super::*;
use crate::capacity::parameters::Direction;

fn standard() -> TestParameters {
    TestParameters::new(Direction::Downstream)
}

const GOOD: Trial = Trial {
    loss: 0,
    out_of_order: 0,
    duplicates: 0,
    delay_var_sum_ms: 0,
    delay_var_count: 0,
    rtt_var_ms: Some(0),
    datagrams: 100,
    ce: 0,
    sub_interval: 0,
};

#[test]
fn averages_round_half_up_by_tenths() {
    for (sum, count, want) in [
        (0, 0, 0),
        (9, 0, 0),
        (5, 2, 3),
        (4, 3, 1),
        // 2.5 less a little is 2.4 in tenths.
        (249, 100, 2),
        (u64::MAX, 1, u32::MAX),
    ] {
        assert_eq!(average_ms(sum, count), want, "{sum} / {count}");
    }
}

#[test]
fn trials_are_judged() {
    let one_way = TestParameters {
        use_ow_del_var: true,
        ..standard()
    };
    let strict = TestParameters {
        ignore_ooo_dup: false,
        ..standard()
    };
    let marked = TestParameters {
        ecn_ce_thresh: 6,
        ..standard()
    };
    for (name, parameters, trial, want) in [
        ("good", standard(), GOOD, Verdict::Good),
        (
            "as much loss as tolerated",
            standard(),
            Trial { loss: 10, ..GOOD },
            Verdict::Good,
        ),
        (
            "one more",
            standard(),
            Trial { loss: 11, ..GOOD },
            Verdict::Bad,
        ),
        (
            "no delay known",
            standard(),
            Trial {
                rtt_var_ms: None,
                ..GOOD
            },
            Verdict::Neutral,
        ),
        (
            "no delay known, but loss",
            standard(),
            Trial {
                rtt_var_ms: None,
                loss: 11,
                ..GOOD
            },
            Verdict::Bad,
        ),
        (
            "the low threshold",
            standard(),
            Trial {
                rtt_var_ms: Some(30),
                ..GOOD
            },
            Verdict::Neutral,
        ),
        (
            "the upper threshold",
            standard(),
            Trial {
                rtt_var_ms: Some(90),
                ..GOOD
            },
            Verdict::Neutral,
        ),
        (
            "above it",
            standard(),
            Trial {
                rtt_var_ms: Some(91),
                ..GOOD
            },
            Verdict::Bad,
        ),
        ("one way without samples", one_way, GOOD, Verdict::Neutral),
        (
            "one way, 29.4 ms",
            one_way,
            Trial {
                delay_var_sum_ms: 294,
                delay_var_count: 10,
                ..GOOD
            },
            Verdict::Good,
        ),
        (
            "one way, 29.5 ms",
            one_way,
            Trial {
                delay_var_sum_ms: 295,
                delay_var_count: 10,
                ..GOOD
            },
            Verdict::Neutral,
        ),
        (
            "reordering counts",
            strict,
            Trial {
                loss: 4,
                out_of_order: 4,
                duplicates: 3,
                ..GOOD
            },
            Verdict::Bad,
        ),
        (
            "reordering does not",
            standard(),
            Trial {
                loss: 4,
                out_of_order: 4,
                duplicates: 3,
                ..GOOD
            },
            Verdict::Good,
        ),
        (
            "2 of 100 marked",
            marked,
            Trial { ce: 2, ..GOOD },
            Verdict::Good,
        ),
        (
            "3 of 100 marked",
            marked,
            Trial { ce: 3, ..GOOD },
            Verdict::Bad,
        ),
    ] {
        assert_eq!(
            AdjustSettings::new(parameters).judge(&trial),
            want,
            "{name}"
        );
    }
}

#[test]
fn a_held_search_comes_down_but_does_not_climb() {
    let mut adjuster = Adjuster::new(AdjustSettings::new(TestParameters {
        rate: Rate::Search { start: 400 },
        ..standard()
    }));
    assert_eq!(adjuster.step(&GOOD, true), 400);
    assert_eq!(adjuster.step(&Trial { loss: 99, ..GOOD }, true), 399);
    assert_eq!(adjuster.step(&GOOD, false), 409);
}

#[test]
fn rows_stay_within_their_bounds() {
    for (rate, row_max, want) in [
        (Rate::Fixed(u16::MAX), None, 1152),
        (Rate::Fixed(900), Some(500), 500),
        (Rate::Search { start: u16::MAX }, None, 1152),
        (Rate::Search { start: 900 }, Some(500), 500),
    ] {
        for algorithm in [Algorithm::B, Algorithm::C] {
            let mut adjuster = Adjuster::new(AdjustSettings {
                row_max,
                ..AdjustSettings::new(TestParameters {
                    algorithm,
                    rate,
                    ..standard()
                })
            });
            for _ in 0..3 {
                assert_eq!(adjuster.step(&GOOD, false), want, "{rate:?} {algorithm:?}");
            }
        }
    }
}
