//! Pacing, bounds on what a peer asks for, and backpressure.

use super::transmitter::size;
use super::*;

const MS: Nanos = 1_000_000;

fn settings() -> SenderSettings {
    SenderSettings {
        ipv6: false,
        keep_numbers: false,
        check_sum: false,
        tick: 0,
        seed: 1,
    }
}

fn rate(values: [u32; 7]) -> RateStructure {
    RateStructure {
        tx_interval1: values[0],
        udp_payload1: values[1],
        burst_size1: values[2],
        tx_interval2: values[3],
        udp_payload2: values[4],
        burst_size2: values[5],
        udp_addon2: values[6],
    }
}

fn at(now: Nanos) -> Instants {
    Instants {
        now,
        wall: WallTime::from_unix_nanos(1_800_000_000_000_000_000 + now),
    }
}

/// Takes all that is due; returns the bursts.
fn take(sender: &mut Sender, now: Nanos) -> Vec<Burst> {
    let mut bursts = Vec::new();
    sender.due(at(now), false, &mut |burst| {
        bursts.push(*burst);
        burst.count()
    });
    bursts
}

#[test]
fn fixed_rows_keep_their_rate_however_late_the_ticks_come() {
    // Row 10, 100, 500, 537, 1000, and 1062 with jumbo frames.
    for (name, values, mbps) in [
        ("10", [0, 0, 0, 1000, 1222, 1, 0], 10.0),
        ("100", [100, 1222, 1, 0, 0, 0, 0], 100.0),
        ("500", [100, 1222, 5, 0, 0, 0, 0], 500.0),
        ("537", [100, 1222, 5, 1000, 1222, 3, 847], 537.0),
        ("1000", [100, 1222, 10, 0, 0, 0, 0], 1000.0),
        ("1062", [100, 8972, 10, 0, 0, 0, 0], 7200.0),
    ] {
        for (ipv6, tick) in [(false, 0), (true, 0), (false, 100_000)] {
            let settings = SenderSettings {
                ipv6,
                tick,
                ..settings()
            };
            let mut sender = Sender::new(settings, &rate(values), 0);
            let mut lateness = SmallRng::seed_from_u64(7);
            let (mut now, mut datagrams, mut numbers) = (0, 0, 1);
            let (from, until) = (100 * MS, 10_100 * MS);
            let mut bytes = 0;
            while now < until {
                now = sender.next_deadline().expect("a row that sends")
                    + lateness.random_range(0..2 * MS);
                for burst in take(&mut sender, now) {
                    assert_eq!(burst.first_seq, numbers);
                    numbers += burst.count();
                    if now >= from && now < until {
                        datagrams += u64::from(burst.count());
                        bytes += u64::from(burst.datagrams) * u64::from(burst.payload_bytes)
                            + u64::from(burst.addon_bytes);
                    }
                }
            }
            let overhead = if ipv6 { 48 } else { 28 };
            let sent = (bytes + datagrams * overhead) as f64 * 8.0 / 10_000_000.0;
            assert!(
                (sent / mbps - 1.0).abs() < 0.005,
                "row {name}: {sent} Mbit/s"
            );
            let trial = sender.take_trial();
            assert_eq!((trial.missed, trial.limited()), (0, false), "row {name}");
        }
    }
}

#[test]
fn what_is_too_late_is_given_up_and_counted() {
    let mut sender = Sender::new(settings(), &rate([100, 1222, 5, 0, 0, 0, 0]), 0);
    let start = sender.next_deadline().expect("a row that sends");
    let bursts = take(&mut sender, start + 30 * MS);
    // 301 ticks are due, 10 ms of them are caught up.
    assert_eq!(bursts.iter().map(Burst::count).sum::<u32>(), 500);
    let trial = sender.take_trial();
    assert_eq!((trial.due, trial.missed), (1505, 1005));
    assert!(trial.limited());
    assert_eq!(sender.next_deadline(), Some(start + 30 * MS + 100_000));
    take(&mut sender, start + 31 * MS);
    assert!(!sender.take_trial().limited());
}

#[test]
fn the_highest_rows_catch_up_no_more_than_their_bytes() {
    let mut sender = Sender::new(settings(), &rate([100, 8972, 100, 0, 0, 0, 0]), 0);
    let start = sender.next_deadline().expect("a row that sends");
    let bursts = take(&mut sender, start + 10 * MS);
    assert_eq!(bursts.iter().map(Burst::count).sum::<u32>(), 1800);
}

#[test]
fn a_full_socket_gets_the_rest_later_with_the_same_numbers() {
    let mut sender = Sender::new(settings(), &rate([100, 1222, 5, 0, 0, 0, 0]), 0);
    let start = sender.next_deadline().expect("a row that sends");
    let mut seen = Vec::new();
    for (tick, room) in [2, 0, 100].into_iter().enumerate() {
        sender.due(at(start + tick as Nanos * 100_000), false, &mut |burst| {
            let taken = burst.count().min(room);
            seen.push((burst.first_seq, burst.count(), taken));
            taken
        });
    }
    assert_eq!(seen, [(1, 5, 2), (3, 8, 0), (3, 13, 13)]);
    assert_eq!(sender.totals(), (15, 15 * 1222));
    let trial = sender.take_trial();
    assert_eq!((trial.due, trial.missed, trial.limited()), (15, 0, true));
}

#[test]
fn a_socket_that_stays_full_owes_a_bounded_number() {
    let mut sender = Sender::new(settings(), &rate([100, 1222, 5, 1000, 1222, 1, 97]), 0);
    for tick in 0..1000 {
        sender.due(at(50 * MS + tick * 100_000), false, &mut |_| 0);
    }
    let trial = sender.take_trial();
    let owed = sender
        .transmitters
        .iter()
        .map(|t| u64::from(t.owed))
        .sum::<u64>();
    assert!(owed <= 510, "{owed}");
    assert_eq!(trial.missed + owed, trial.due);
    assert_eq!((sender.totals(), sender.next_seq), ((0, 0), 1));
}

#[test]
fn numbers_may_be_kept() {
    let settings = SenderSettings {
        keep_numbers: true,
        ..settings()
    };
    let mut sender = Sender::new(settings, &rate([100, 1222, 5, 0, 0, 0, 0]), 0);
    let start = sender.next_deadline().expect("a row that sends");
    let mut seen = Vec::new();
    for tick in 0..3 {
        sender.due(at(start + tick * 100_000), false, &mut |burst| {
            seen.push((burst.first_seq, burst.count()));
            2
        });
    }
    assert_eq!(seen, [(1, 5), (6, 5), (11, 5)]);
}

#[test]
fn rows_of_a_peer_are_bounded() {
    let random = RateStructure::RANDOM;
    for (name, values, interval, datagrams, payload) in [
        ("interval", [1, 1222, 1, 0, 0, 0, 0], 100_000, 1, 1222),
        (
            "burst",
            [100, 1222, u32::MAX, 0, 0, 0, 0],
            100_000,
            100,
            1222,
        ),
        ("payload", [100, !random, 1, 0, 0, 0, 0], 100_000, 1, 8972),
        ("no payload", [100, 0, 5, 0, 0, 0, 0], 100_000, 0, 0),
        (
            "less than a header",
            [100, 1, 5, 0, 0, 0, 0],
            100_000,
            5,
            32,
        ),
    ] {
        let mut sender = Sender::new(settings(), &rate(values), 0);
        let start = sender.next_deadline().expect("it is on");
        let bursts = take(&mut sender, start);
        let got = bursts
            .first()
            .map_or((0, 0), |b| (b.datagrams, b.payload_bytes));
        assert_eq!(got, (datagrams, payload), "{name}");
        assert_eq!(sender.next_deadline(), Some(start + interval), "{name}");
    }
}

#[test]
fn sizes_follow_the_address_family() {
    let random = RateStructure::RANDOM;
    for (ipv6, value, least, most) in [
        (false, 1222, 1222, 1222),
        (true, 1222, 1202, 1202),
        (true, 51, 51, 51),
        (true, 52, 32, 32),
        (false, 1222 | random, 52, 1222),
        (true, 1222 | random, 32, 1202),
        (false, 40 | random, 40, 40),
    ] {
        let size = size(value, ipv6).expect("a size");
        let mut rng = SmallRng::seed_from_u64(3);
        let drawn: Vec<u16> = (0..10_000).map(|_| draw(size, &mut rng)).collect();
        let (min, max) = (drawn.iter().min(), drawn.iter().max());
        assert_eq!((min, max), (Some(&least), Some(&most)), "{value:#x} {ipv6}");
    }
}

#[test]
fn a_faster_row_does_not_wait_for_the_slow_one() {
    let row_0 = rate([0, 0, 0, 50_000, 0, 0, 1222 | RateStructure::RANDOM]);
    let mut sender = Sender::new(settings(), &row_0, 0);
    let first = sender.next_deadline().expect("row 0 sends");
    assert!(
        (START_DELAY_MIN..=START_DELAY_MAX).contains(&first),
        "{first}"
    );
    take(&mut sender, first);
    assert_eq!(sender.next_deadline(), Some(first + 50 * MS));
    sender.set_rate(&rate([100, 1222, 1, 1000, 1222, 1, 0]), first + MS);
    assert_eq!(sender.next_deadline(), Some(first + MS + 100_000));
    sender.set_rate(&rate([0; 7]), first + MS);
    assert_eq!(sender.next_deadline(), None);
    assert!(take(&mut sender, first + 900 * MS).is_empty());
}

#[test]
fn status_pdus_are_echoed_and_their_gaps_told() {
    let mut sender = Sender::new(settings(), &rate([100, 1222, 1, 0, 0, 0, 0]), 0);
    let header = |sender: &mut Sender, now| {
        let bytes = sender.stop_pdu(&SenderNotice::default(), false, at(now));
        let load = Load::decode(&bytes, bytes.len()).expect("a load PDU");
        (load.spdu_seq_err, load.spdu_time.sec, load.rtt_resp_delay)
    };
    assert_eq!(header(&mut sender, 7 * MS), (0, 0, 7));
    for (number, order, errors) in [
        (1, StatusOrder::Next { lost: 0 }, 0),
        (4, StatusOrder::Next { lost: 2 }, 2),
        (3, StatusOrder::Stale, u16::MAX),
        (4, StatusOrder::Stale, u16::MAX),
        (5, StatusOrder::Next { lost: 0 }, 0),
    ] {
        let time = WallTime {
            sec: 100 + number,
            nsec: 0,
        };
        assert_eq!(sender.status(number, time, 10 * MS), order, "{number}");
        let want = (errors, 100 + number, 3);
        assert_eq!(header(&mut sender, 12 * MS + 500_000), want, "{number}");
    }
    let nonsense = sender.status(u32::MAX, WallTime::NONE, 20 * MS);
    assert_eq!(nonsense, StatusOrder::Nonsense);
    assert_eq!(header(&mut sender, 15 * MS), (0, 105, 5));
}
