//! Judging and bounds; whole searches are compared with the original's in the vectors.

use super::*;

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
    let one_way = AdjustSettings {
        one_way_delay: true,
        ..AdjustSettings::default()
    };
    let strict = AdjustSettings {
        ignore_reordering: false,
        ..AdjustSettings::default()
    };
    let marked = AdjustSettings {
        ce_threshold: 6,
        ..AdjustSettings::default()
    };
    for (name, settings, trial, want) in [
        ("good", AdjustSettings::default(), GOOD, Verdict::Good),
        (
            "as much loss as tolerated",
            AdjustSettings::default(),
            Trial { loss: 10, ..GOOD },
            Verdict::Good,
        ),
        (
            "one more",
            AdjustSettings::default(),
            Trial { loss: 11, ..GOOD },
            Verdict::Bad,
        ),
        (
            "no delay known",
            AdjustSettings::default(),
            Trial {
                rtt_var_ms: None,
                ..GOOD
            },
            Verdict::Neutral,
        ),
        (
            "no delay known, but loss",
            AdjustSettings::default(),
            Trial {
                rtt_var_ms: None,
                loss: 11,
                ..GOOD
            },
            Verdict::Bad,
        ),
        (
            "the low threshold",
            AdjustSettings::default(),
            Trial {
                rtt_var_ms: Some(30),
                ..GOOD
            },
            Verdict::Neutral,
        ),
        (
            "the upper threshold",
            AdjustSettings::default(),
            Trial {
                rtt_var_ms: Some(90),
                ..GOOD
            },
            Verdict::Neutral,
        ),
        (
            "above it",
            AdjustSettings::default(),
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
            AdjustSettings::default(),
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
        assert_eq!(settings.judge(&trial), want, "{name}");
    }
}

#[test]
fn a_held_search_comes_down_but_does_not_climb() {
    let mut adjuster = Adjuster::new(AdjustSettings {
        plan: Plan::Search { start: 400 },
        ..AdjustSettings::default()
    });
    assert_eq!(adjuster.step(&GOOD, true), 400);
    assert_eq!(adjuster.step(&Trial { loss: 99, ..GOOD }, true), 399);
    assert_eq!(adjuster.step(&GOOD, false), 409);
}

#[test]
fn rows_stay_within_their_bounds() {
    for (plan, row_max, want) in [
        (Plan::Fixed(u16::MAX), None, 1152),
        (Plan::Fixed(900), Some(500), 500),
        (Plan::Search { start: u16::MAX }, None, 1152),
        (Plan::Search { start: 900 }, Some(500), 500),
    ] {
        for algorithm in [Algorithm::B, Algorithm::C] {
            let mut adjuster = Adjuster::new(AdjustSettings {
                algorithm,
                plan,
                row_max,
                ..AdjustSettings::default()
            });
            for _ in 0..3 {
                assert_eq!(adjuster.step(&GOOD, false), want, "{plan:?} {algorithm:?}");
            }
        }
    }
}
