//! Each impairment does what its setting says, and the same again.

use super::*;

const COUNT: u64 = 100_000;

fn decider(flow: u64) -> Decider {
    Decider::new(7, flow, Direction::Forward)
}

fn assert_within(name: &str, got: u64, count: u64, probability: f64, sigmas: f64) {
    let mean = count as f64 * probability;
    let sigma = (mean * (1.0 - probability)).sqrt();
    assert!(
        (got as f64 - mean).abs() <= sigmas * sigma + 1.0,
        "{name}: {got}, wanted {mean} ± {sigma}"
    );
}

#[test]
fn frequencies_are_as_set() {
    for probability in [0.0, 0.001, 0.1, 0.5, 1.0] {
        let model = Impairment {
            loss: Loss::Uniform { probability },
            duplication: probability,
            reordering: Reordering {
                probability,
                gap: 3,
                ..Reordering::default()
            },
            corruption: Corruption {
                probability,
                bits: 1,
            },
            ..Impairment::default()
        };
        let mut counts = [0; 4];
        for index in 0..COUNT {
            let decision = decider(1).decide(index, &model);
            counts[0] += u64::from(decision.lost);
            counts[1] += u64::from(decision.duplicated);
            counts[2] += u64::from(decision.behind == 3);
            counts[3] += u64::from(decision.corrupted);
        }
        for (name, got) in ["loss", "duplication", "reordering", "corruption"]
            .into_iter()
            .zip(counts)
        {
            assert_within(name, got, COUNT, probability, 3.0);
        }
    }
}

#[test]
fn a_decision_depends_on_nothing_but_its_place() {
    let model = Impairment {
        loss: Loss::GilbertElliott {
            good_to_bad: 0.02,
            bad_to_good: 0.3,
            loss_good: 0.01,
            loss_bad: 0.9,
        },
        delay_us: 1000,
        jitter_us: 300,
        jitter_distribution: Distribution::Normal,
        duplication: 0.1,
        ..Impairment::default()
    };
    let forward: Vec<_> = (0..5000)
        .map(|index| decider(3).decide(index, &model))
        .collect();
    let mut backward: Vec<_> = (0..5000)
        .rev()
        .map(|index| decider(3).decide(index, &model))
        .collect();
    backward.reverse();
    assert_eq!(forward, backward, "the order of asking");
    for (name, other) in [
        ("flow", decider(4)),
        ("direction", Decider::new(7, 3, Direction::Backward)),
        ("seed", Decider::new(8, 3, Direction::Forward)),
    ] {
        let other: Vec<_> = (0..5000).map(|index| other.decide(index, &model)).collect();
        assert_ne!(forward, other, "{name}");
    }
}

#[test]
fn bursts_are_as_long_and_as_frequent_as_set() {
    for (good_to_bad, bad_to_good) in [(0.01, 0.25), (0.5, 0.5), (0.9, 0.8), (0.005, 0.1)] {
        let model = Impairment {
            loss: Loss::GilbertElliott {
                good_to_bad,
                bad_to_good,
                loss_good: 0.0,
                loss_bad: 1.0,
            },
            ..Impairment::default()
        };
        let lost: Vec<bool> = (0..COUNT)
            .map(|index| decider(5).decide(index, &model).lost)
            .collect();
        let total = lost.iter().filter(|lost| **lost).count() as f64;
        let bursts = lost
            .windows(2)
            .filter(|pair| !pair[0] && pair[1])
            .count()
            .max(1) as f64;
        let (share, length) = (total / COUNT as f64, total / bursts);
        let wanted = good_to_bad / (good_to_bad + bad_to_good);
        assert!(
            (share / wanted - 1.0).abs() < 0.2,
            "share {share}, wanted {wanted}"
        );
        assert!(
            (length * bad_to_good - 1.0).abs() < 0.2,
            "length {length}, wanted {}",
            1.0 / bad_to_good
        );

        // A link that walks the chain step by step finds the same.
        let counters = ImpairmentCounters::default();
        let mut link = Link::new(decider(5));
        let mut out = Vec::new();
        let walked: Vec<bool> = (0..COUNT)
            .map(|_| {
                link.offer(0, (1, 0), (), &model, &mut out, &counters)
                    .dropped
                    == Some(Dropped::Lost)
            })
            .collect();
        assert_eq!(walked, lost);
    }
}

#[test]
fn delays_spread_as_set() {
    for (distribution, deviation) in [
        (Distribution::Uniform, 200.0 / 3_f64.sqrt()),
        (Distribution::Normal, 200.0),
    ] {
        let model = Impairment {
            delay_us: 2000,
            jitter_us: 200,
            jitter_distribution: distribution,
            ..Impairment::default()
        };
        let delays: Vec<f64> = (0..COUNT)
            .map(|index| decider(6).decide(index, &model).delay as f64 / 1000.0)
            .collect();
        let mean = delays.iter().sum::<f64>() / COUNT as f64;
        let variance = delays
            .iter()
            .map(|delay| (delay - mean).powi(2))
            .sum::<f64>()
            / COUNT as f64;
        assert!((mean - 2000.0).abs() < 3.0, "{distribution:?}: mean {mean}");
        assert!(
            (variance.sqrt() / deviation - 1.0).abs() < 0.02,
            "{distribution:?}: {}",
            variance.sqrt()
        );
    }
}

#[test]
fn a_held_datagram_goes_behind_the_gap() {
    let model = Impairment {
        reordering: Reordering {
            probability: 0.2,
            gap: 2,
            hold_us_max: 1000,
            ..Reordering::default()
        },
        ..Impairment::default()
    };
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(decider(8));
    let mut out = Vec::new();
    let mut held = Vec::new();
    for index in 0..1000_u64 {
        if link
            .offer(index, (1, 0), index, &model, &mut out, &counters)
            .held
        {
            held.push(index);
        }
    }
    link.expire(u64::MAX, &mut out, &counters);
    let order: Vec<u64> = out.iter().map(|departure| departure.item).collect();
    assert!(!held.is_empty());
    let position = |index: u64| order.iter().position(|item| *item == index).unwrap();
    for &index in held.iter().filter(|index| **index < 990) {
        for later in index + 1..=index + 2 {
            let overtakes = held.contains(&later) || position(later) < position(index);
            assert!(overtakes, "{later} goes before {index}");
        }
        if !held.contains(&(index + 3)) {
            assert!(
                position(index + 3) > position(index),
                "{index} goes before {}",
                index + 3
            );
        }
    }
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1000).collect::<Vec<_>>(), "none is lost");
}

#[test]
fn a_held_datagram_goes_when_no_other_comes() {
    let model = Impairment {
        reordering: Reordering {
            probability: 1.0,
            gap: 5,
            hold_us_max: 10,
            ..Reordering::default()
        },
        ..Impairment::default()
    };
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(decider(9));
    let mut out = Vec::new();
    assert!(
        link.offer(1000, (1, 0), "only", &model, &mut out, &counters)
            .held
    );
    assert_eq!(link.next_expiry(), Some(11_000));
    link.expire(10_999, &mut out, &counters);
    assert!(out.is_empty());
    link.expire(11_000, &mut out, &counters);
    assert_eq!((out[0].item, out[0].at), ("only", 11_000));
    assert_eq!(link.next_expiry(), None);
}

#[test]
fn a_bottleneck_sends_at_its_rate_and_drops_at_its_tail() {
    // 1000 bytes each, 1 ms each at 8 Mbit/s; five wait.
    let model = Impairment {
        rate: Some(Rate {
            bits_per_second: 8_000_000,
            queue_bytes_max: 5_000,
            ..Rate::default()
        }),
        ..Impairment::default()
    };
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(decider(10));
    let mut out = Vec::new();
    let outcomes: Vec<_> = (0..8)
        .map(|_| {
            link.offer(0, (1000, 0), (), &model, &mut out, &counters)
                .dropped
        })
        .collect();
    link.expire(2_900_000, &mut out, &counters);
    let full = Some(Dropped::QueueFull);
    assert_eq!(outcomes, [None, None, None, None, None, full, full, full]);
    assert_eq!(
        link.offer(3_000_000, (1000, 0), (), &model, &mut out, &counters)
            .dropped,
        None
    );
    link.expire(9_000_000, &mut out, &counters);
    let times: Vec<_> = out.iter().map(|next| next.at / 1_000_000).collect();
    assert_eq!(times, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn size_and_blackouts() {
    let model = Impairment {
        datagram_bytes_max: Some(1200),
        blackouts: vec![
            Blackout {
                from_us: 10,
                until_us: 20,
                every_us: None,
            },
            Blackout {
                from_us: 1000,
                until_us: 1100,
                every_us: Some(500),
            },
        ],
        ..Impairment::default()
    };
    for (at_us, bytes, want) in [
        (0, 1200, None),
        (0, 1201, Some(Dropped::TooLong)),
        (9, 1, None),
        (10, 1, Some(Dropped::Blackout)),
        (19, 1, Some(Dropped::Blackout)),
        (20, 1, None),
        (600, 1, None),
        (1099, 1, Some(Dropped::Blackout)),
        (1100, 1, None),
        (1500, 1, Some(Dropped::Blackout)),
        (1600, 1, None),
    ] {
        let counters = ImpairmentCounters::default();
        let mut link = Link::new(decider(11));
        let outcome = link.offer(
            at_us * 1000,
            (bytes, 0),
            (),
            &model,
            &mut Vec::new(),
            &counters,
        );
        assert_eq!(outcome.dropped, want, "{bytes} bytes at {at_us} µs");
    }
}

#[test]
fn corruption_flips_as_many_bits_as_set() {
    for (bits, len, want) in [(1, 10, 1), (5, 100, 5), (20, 2, 16), (3, 0, 0)] {
        for index in 0..50 {
            let mut bytes = vec![0; len];
            decider(12).corrupt(index, bits, &mut bytes);
            assert_eq!(
                bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(),
                want
            );
        }
    }
}

#[test]
fn jitter_overtakes_unless_order_is_kept() {
    for keep_order in [false, true] {
        let model = Impairment {
            delay_us: 500,
            jitter_us: 500,
            keep_order,
            ..Impairment::default()
        };
        let counters = ImpairmentCounters::default();
        let mut link = Link::new(decider(13));
        let mut out = Vec::new();
        for index in 0..100 {
            link.offer(index * 1000, (1, 0), index, &model, &mut out, &counters);
        }
        assert_eq!(out.is_sorted_by_key(|departure| departure.at), keep_order);
    }
}

/// Sends `count` datagrams of 1,000 bytes, one each `every` ns, through a bottleneck of 8 Mbit/s:
/// 1 ms each. Gives what was served with its time in the path.
fn through(
    queue: Queue,
    queue_bytes_max: u64,
    (count, every): (u64, u64),
    ecn: crate::Ecn,
) -> (Vec<(Served<u64>, u64)>, ImpairmentSnapshot) {
    let rate = Rate {
        bits_per_second: 8_000_000,
        queue_bytes_max,
        queue,
        ..Rate::default()
    };
    let counters = ImpairmentCounters::default();
    let mut bottleneck = Bottleneck::default();
    let mut out = Vec::new();
    for n in 0..count {
        let now = n * every;
        bottleneck.serve(now, &rate, &counters, |served| out.push(served));
        let draw = decider(20).red(n);
        let _ = bottleneck.offer(now, (1_000, ecn), n, &rate, draw, &counters);
    }
    bottleneck.serve(u64::MAX, &rate, &counters, |served| out.push(served));
    let timed = out
        .into_iter()
        .map(|served| {
            let spent = served.at - served.item * every;
            (served, spent)
        })
        .collect();
    (timed, counters.snapshot())
}

const MILLI: u64 = 1_000_000;

#[test]
fn a_rate_does_not_drift() {
    // 1,222 bytes at 7,777,777 bit/s are not a whole number of nanoseconds.
    let rate = Rate {
        bits_per_second: 7_777_777,
        queue_bytes_max: 20_000,
        ..Rate::default()
    };
    let counters = ImpairmentCounters::default();
    let mut bottleneck = Bottleneck::default();
    let (mut last, mut served) = (0, 0_u64);
    for n in 0..2 * COUNT {
        let now = n * 600_000;
        bottleneck.serve(now, &rate, &counters, |next| {
            (last, served) = (next.at, served + 1);
        });
        let _ = bottleneck.offer(now, (1_222, 0), (), &rate, 0.0, &counters);
    }
    assert!(served > 90_000, "{served}");
    let exact = u128::from(served) * 1_222 * 8 * 1_000_000_000 / 7_777_777;
    assert_eq!(
        u128::from(last),
        exact,
        "to the nanosecond over {served} datagrams"
    );
}

#[test]
fn overhead_counts_in_rate_and_queue() {
    // 972 + 28 bytes at 8 Mbit/s: 1 ms each; the queue holds five of them, and would six of 972.
    let rate = Rate {
        bits_per_second: 8_000_000,
        queue_bytes_max: 5_900,
        overhead_bytes: 28,
        ..Rate::default()
    };
    let counters = ImpairmentCounters::default();
    let mut bottleneck = Bottleneck::default();
    let mut taken = 0;
    for n in 0..10_u64 {
        let offered = bottleneck.offer(0, (972, 0), n, &rate, 0.0, &counters);
        taken += u64::from(offered.is_ok());
    }
    assert_eq!((taken, bottleneck.waiting_bytes()), (5, 5_000));
    let mut at = Vec::new();
    bottleneck.serve(u64::MAX, &rate, &counters, |served| at.push(served.at));
    let expected: Vec<u64> = (1..=5).map(|n| n * MILLI).collect();
    assert_eq!(at, expected);
}

#[test]
fn codel_keeps_the_queue_at_its_target() {
    let codel = |ecn| Queue::Codel {
        target_us: codel_target_us(),
        interval_us: codel_interval_us(),
        ecn,
    };
    // A twentieth more than fits: the queue of 200 datagrams stands full without management.
    let load = (COUNT, 950_000);
    let late = |timed: &[(Served<u64>, u64)]| {
        let mut spent: Vec<u64> = timed.iter().map(|(_, spent)| *spent).collect();
        spent.drain(..spent.len() / 2);
        spent.sort_unstable();
        spent[spent.len() / 2]
    };
    let (unmanaged, counts) = through(Queue::TailDrop, 200_000, load, 0);
    assert!(late(&unmanaged) > 190 * MILLI);
    assert_eq!(counts.queue_full, COUNT - unmanaged.len() as u64);
    let (managed, counts) = through(codel(false), 200_000, load, 0);
    assert_eq!(counts.queue_full, 0, "it never fills once it is managed");
    assert_eq!(counts.codel, COUNT - managed.len() as u64);
    assert!(late(&managed) < 15 * MILLI, "{}", late(&managed));
    let (marked, counts) = through(codel(true), 200_000, load, 0b10);
    assert_eq!(counts.codel, 0, "marks what can be marked");
    let ce = marked
        .iter()
        .filter(|(served, _)| served.ecn == ECN_CE)
        .count();
    assert_eq!(counts.marked, ce as u64);
    assert!(ce > 0);
    // A short burst is let through: above the target for less than an interval.
    let (burst, counts) = through(codel(false), 200_000, (90, 1_000), 0);
    assert_eq!((burst.len(), counts.codel), (90, 0));
    // Below capacity nothing happens.
    let (below, counts) = through(codel(false), 200_000, (COUNT, 1_100_000), 0);
    assert_eq!((below.len() as u64, counts.codel), (COUNT, 0));
}

#[test]
fn codel_drops_at_the_times_of_its_control_law() {
    let queue = Queue::Codel {
        target_us: 5_000,
        interval_us: 100_000,
        ecn: false,
    };
    // One datagram each 100 µs: the queue only grows, so after 5 ms in the queue and one interval
    // drops come at t, t + 100/√1, + 100/√2, + 100/√3… ms (RFC 8289 §5.3).
    let (timed, counts) = through(queue, u64::MAX, (20_000, 100_000), 0);
    assert!(counts.codel > 20);
    let mut served = timed.iter().map(|(served, _)| served.item).peekable();
    let mut drops = Vec::new();
    let mut clock = 0; // the moment at which each is dequeued: 1 ms per datagram served
    for item in 0..20_000 {
        if served.next_if_eq(&item).is_some() {
            clock += MILLI;
        } else {
            drops.push(clock.max(item * 100_000));
        }
    }
    let mut due = drops[0];
    for (n, drop) in drops.iter().enumerate().skip(1).take(20) {
        due += (100.0 * MILLI as f64 / (n as f64).sqrt()) as u64;
        let late = drop.saturating_sub(due);
        assert!(
            *drop >= due && late <= MILLI,
            "drop {n} at {drop}, due {due}"
        );
    }
}

#[test]
fn red_follows_its_curve() {
    let red = |ecn| Queue::Red {
        bytes_min: 5_000,
        bytes_max: 15_000,
        probability_max: red_probability_max(),
        weight: red_weight(),
        ecn,
    };
    let (_, light) = through(red(false), 100_000, (COUNT, 1_050_000), 0);
    assert_eq!(light.red, 0, "no queue, no drop");
    let (passed, heavy) = through(red(false), 100_000, (COUNT, 960_000), 0);
    let share = heavy.red as f64 / COUNT as f64;
    assert!(
        (share - 0.04).abs() < 0.004,
        "what does not fit is dropped early: {share}"
    );
    assert_eq!(heavy.queue_full, 0);
    assert_eq!(passed.len() as u64 + heavy.red, COUNT);
    let (_, again) = through(red(false), 100_000, (COUNT, 960_000), 0);
    assert_eq!(heavy, again, "the same seed decides the same");
    let (marked, counts) = through(red(true), 100_000, (20_000, 1_000_000), 0b01);
    let ce = marked
        .iter()
        .filter(|(served, _)| served.ecn == ECN_CE)
        .count();
    assert_eq!((counts.marked, counts.red), (ce as u64, 0));
}

#[test]
fn ecn_is_bleached_as_often_as_set() {
    let model = Impairment {
        ecn_bleaching: 0.3,
        ..Impairment::default()
    };
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(decider(21));
    let mut out = Vec::new();
    for index in 0..COUNT {
        link.offer(0, (1, 0b10), index, &model, &mut out, &counters);
    }
    let bleached = out.iter().filter(|next| next.ecn == 0).count() as u64;
    assert_eq!(bleached, counters.bleached.get());
    assert_within("bleached", bleached, COUNT, 0.3, 3.0);
    assert!(out.iter().all(|next| next.ecn == 0 || next.ecn == 0b10));
}

#[test]
fn oversize_may_be_a_matter_of_chance() {
    let model = Impairment {
        datagram_bytes_max: Some(100),
        oversize_loss: 0.25,
        ..Impairment::default()
    };
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(decider(22));
    let mut out = Vec::new();
    for index in 0..2 * COUNT {
        let bytes = 100 + (index % 2) as usize;
        link.offer(0, (bytes, 0), index, &model, &mut out, &counters);
    }
    assert_within("oversize", counters.oversize.get(), COUNT, 0.25, 3.0);
    let small = out.iter().filter(|next| next.item % 2 == 0).count() as u64;
    assert_eq!(small, COUNT, "what fits is never dropped");
}

#[test]
fn a_late_datagram_is_late_by_its_time() {
    let model = Impairment {
        delay_us: 1_000,
        keep_order: true,
        reordering: Reordering {
            probability: 0.1,
            late_us: Some(5_000),
            late_random_us: 2_000,
            ..Reordering::default()
        },
        ..Impairment::default()
    };
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(decider(23));
    let mut out = Vec::new();
    for index in 0..COUNT {
        link.offer(index * 1_000, (1, 0), index, &model, &mut out, &counters);
    }
    let mut late = 0;
    for next in &out {
        let spent = next.at - next.item * 1_000;
        if spent > MILLI {
            late += 1;
            assert!((6 * MILLI..8 * MILLI).contains(&spent), "{spent}");
        } else {
            assert_eq!(spent, MILLI);
        }
    }
    assert_eq!(late, counters.reordered.get());
    assert_within("late", late, COUNT, 0.1, 3.0);
}

#[test]
fn what_comes_is_counted_once() {
    let model = Impairment {
        loss: Loss::Uniform { probability: 0.2 },
        duplication: 0.1,
        corruption: Corruption {
            probability: 0.1,
            bits: 2,
        },
        reordering: Reordering {
            probability: 0.1,
            gap: 3,
            ..Reordering::default()
        },
        datagram_bytes_max: Some(900),
        rate: Some(Rate {
            bits_per_second: 2_000_000,
            queue_bytes_max: 30_000,
            queue: Queue::Codel {
                target_us: 5_000,
                interval_us: 100_000,
                ecn: true,
            },
            per_flow: true,
            ..Rate::default()
        }),
        blackouts: vec![Blackout {
            from_us: 100_000,
            until_us: 200_000,
            every_us: Some(1_000_000),
        }],
        ..Impairment::default()
    };
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(decider(24));
    let mut out = Vec::new();
    for index in 0..COUNT {
        let now = index * 800_000;
        link.expire(now, &mut out, &counters);
        let bytes = 1 + (index * 7 % 1_000) as usize;
        link.offer(
            now,
            (bytes, (index % 4) as u8),
            index,
            &model,
            &mut out,
            &counters,
        );
    }
    while let Some(next) = link.next_expiry() {
        link.expire(next, &mut out, &counters);
    }
    let counts = counters.snapshot();
    assert_eq!(counts.offered, COUNT);
    assert_eq!(counts.passed, out.len() as u64);
    assert_eq!(
        counts.offered + counts.duplicated,
        counts.passed + counts.dropped()
    );
    for (name, count) in [
        ("lost", counts.lost),
        ("blackout", counts.blackout),
        ("oversize", counts.oversize),
        ("codel", counts.codel),
        ("marked", counts.marked),
        ("duplicated", counts.duplicated),
        ("reordered", counts.reordered),
        ("corrupted", counts.corrupted),
    ] {
        assert!(count > 0, "{name}");
    }
}

#[test]
fn a_clean_description_changes_nothing() {
    assert!(Impairment::default().is_clean());
    assert!(Scenario::default().is_clean());
    for model in [
        Impairment {
            delay_us: 1,
            ..Impairment::default()
        },
        Impairment {
            ecn_bleaching: 0.1,
            ..Impairment::default()
        },
        Impairment {
            rate: Some(Rate::default()),
            ..Impairment::default()
        },
        Impairment {
            reordering: Reordering {
                probability: 0.5,
                ..Reordering::default()
            },
            ..Impairment::default()
        },
    ] {
        assert!(!model.is_clean(), "{model:?}");
    }
}
