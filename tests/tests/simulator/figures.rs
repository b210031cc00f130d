//! What a load client reports is what happened: rates, stalls, losses, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use ringmill_engine::driver::sim::{Partition, StreamConfig, World, WorldConfig};
use ringmill_engine::impairment::{Impairment, Loss};
use ringmill_engine::{Limits, Nanos};
use ringmill_protocols::load::{Arrivals, Config, FloodConfig, Published};

use super::bench::{
    Clients, DISCARD, DISCARD_SERVICE, ECHO, ECHO_SERVICE, Load, MILLI, SECOND, STATS_LINE,
    address, plan, run, servers, small_limits, stop,
};

/// The stall in the tests of stalls, in the middle of the run.
const STALL: Partition = Partition {
    from: 300 * MILLI,
    until: 800 * MILLI,
};
const STALL_TIME: Nanos = STALL.until - STALL.from;
/// Histograms keep three digits.
const STALL_SEEN: Nanos = STALL_TIME - STALL_TIME / 500;

/// One load run against the servers; nothing may be left of it.
fn measure(
    seed: u64,
    config: WorldConfig,
    shards: u16,
    load: Load,
    time: Nanos,
) -> (World, Published) {
    let mut world = World::new(seed, config);
    let _ = servers(&mut world, 2, small_limits());
    let clients = Clients::start(
        &mut world,
        "10.0.0.2",
        shards,
        small_limits(),
        load,
        &Arc::default(),
    );
    let totals = run(&mut world, &clients, time);
    stop(&mut world);
    (world, totals)
}

type Kind = fn(Config) -> Load;
const KINDS: [(&str, Kind); 2] = [("streams", Load::Streams), ("datagrams", Load::Datagrams)];

#[test]
fn an_open_loop_keeps_its_rate_whatever_the_server_does() {
    for (name, kind) in KINDS {
        for shards in [1, 2] {
            for (rate, stalls) in [(1000.0, false), (1000.0, true), (333.3, true)] {
                let config = WorldConfig {
                    partitions: if stalls { vec![STALL] } else { Vec::new() },
                    ..WorldConfig::default()
                };
                // Room for all that the stall holds up.
                let load = kind(plan(ECHO, 4, 500, Arrivals::Constant(rate)));
                let (world, totals) = measure(1, config, shards, load, 2 * SECOND);
                let (tally, case) = (&totals.tally, (name, shards, rate, stalls));
                let off = tally.sent as f64 - rate * 2.0;
                assert!(off.abs() <= f64::from(shards), "{case:?}: off by {off}");
                assert_eq!((tally.unsent, tally.wrong_bytes), (0, 0), "{case:?}");
                assert!(tally.lateness_max_ns < MILLI, "{case:?}: {tally:?}");
                assert_eq!(tally.lost, world.path().blackout, "{case:?}");
                let slowest = [totals.response.max(), totals.service.max()];
                if stalls && name == "streams" {
                    assert!(
                        slowest.iter().all(|ns| *ns >= STALL_SEEN),
                        "{case:?}: {slowest:?}"
                    );
                } else {
                    assert!(
                        slowest.iter().all(|ns| *ns < 2 * MILLI),
                        "{case:?}: {slowest:?}"
                    );
                }
            }
        }
    }
}

/// With one message out at a time, only one message takes long on the wire; all that should have
/// been sent meanwhile are late too, and the response time says so.
#[test]
fn a_stall_is_seen_by_all_who_had_to_wait() {
    let config = WorldConfig {
        partitions: vec![STALL],
        ..WorldConfig::default()
    };
    let load = Load::Streams(plan(ECHO, 1, 1, Arrivals::Constant(1000.0)));
    let (_, totals) = measure(1, config, 1, load, 4 * SECOND);
    let (response, service) = (&totals.response, &totals.service);
    let slow = STALL_TIME / 5;
    let waited = [service, response].map(|histogram| histogram.count_between(slow, u64::MAX));
    assert_eq!(waited[0], 1, "one was really out");
    // All that were due in the stall but for its last fifth.
    assert!(waited[1] >= 400, "{waited:?}");
    assert!(response.max() >= STALL_SEEN && service.max() >= STALL_SEEN);
    let off = totals.tally.sent as i64 - 4000;
    assert!(off.abs() <= 1, "what waited was sent later: off by {off}");
    assert!(totals.tally.lateness_max_ns >= STALL_SEEN);
}

#[test]
fn poisson_arrivals_come_as_often_as_chance_has_it() {
    for (name, kind) in KINDS {
        for seed in 1..6 {
            let config = Config {
                seed,
                ..plan(ECHO, 4, 500, Arrivals::Poisson(2000.0))
            };
            let (_, totals) = measure(seed, WorldConfig::default(), 2, kind(config), 3 * SECOND);
            let (mean, sent) = (6000.0_f64, totals.tally.sent as f64);
            assert!(
                (sent - mean).abs() <= 4.0 * mean.sqrt(),
                "{name}, seed {seed}: {sent} instead of {mean}"
            );
            assert_eq!(totals.tally.lost, 0);
        }
    }
}

#[test]
fn exactly_what_the_network_dropped_is_lost() {
    let dropping = |probability| Impairment {
        delay_us: 300,
        loss: Loss::Uniform { probability },
        ..Impairment::default()
    };
    for (forward, backward) in [(0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.1, 0.3)] {
        for arrivals in [Arrivals::Closed, Arrivals::Constant(2000.0)] {
            let config = WorldConfig {
                forward: dropping(forward),
                backward: dropping(backward),
                ..WorldConfig::default()
            };
            let load = Config {
                datagram_timeout: 50 * MILLI,
                ..plan(ECHO, 3, 100, arrivals)
            };
            let (world, totals) = measure(3, config, 2, Load::Datagrams(load), SECOND);
            let tally = &totals.tally;
            let case = (forward, backward, arrivals);
            assert_eq!(tally.lost, world.path().lost, "{case:?}: {tally:?}");
            assert_eq!(tally.lost > 0, forward + backward > 0.0, "{case:?}");
            let others = [tally.late, tally.duplicated, tally.reordered, tally.unknown];
            assert_eq!(others, [0; 4], "{case:?}: {tally:?}");
        }
    }
}

/// A datagram that is only slow is late when it comes, and not doubled, however many of its
/// place have been given up since.
#[test]
fn a_slow_answer_is_late_and_not_doubled() {
    for (delay_us, duplication) in [(35_000, 0.0), (80_000, 0.0), (80_000, 1.0)] {
        let slow = Impairment {
            delay_us,
            duplication,
            ..Impairment::default()
        };
        let config = WorldConfig {
            forward: slow.clone(),
            ..WorldConfig::default()
        };
        let load = Config {
            datagram_timeout: 10 * MILLI,
            ..plan(ECHO, 2, 3, Arrivals::Closed)
        };
        let (_, totals) = measure(4, config, 1, Load::Datagrams(load), SECOND);
        let tally = &totals.tally;
        assert_eq!(tally.answered, 0, "{tally:?}");
        assert!(tally.late > 100, "{tally:?}");
        if duplication == 0.0 {
            assert_eq!(tally.duplicated, 0, "{delay_us} µs: {tally:?}");
        } else {
            assert!(
                tally.duplicated <= tally.late && tally.late - tally.duplicated <= 20,
                "each was doubled once: {tally:?}"
            );
        }
    }
}

#[test]
fn a_flood_sends_at_its_rate() {
    for shards in [1, 2] {
        for rate in [100.0, 12_345.0] {
            let load = Load::Flood(FloodConfig {
                target: address(DISCARD),
                flows: 3,
                datagram_len: 200,
                rate: Some(rate),
            });
            let mut world = World::new(1, WorldConfig::default());
            let engine = servers(&mut world, 2, small_limits());
            let clients = Clients::start(
                &mut world,
                "10.0.0.2",
                shards,
                small_limits(),
                load,
                &Arc::default(),
            );
            let totals = run(&mut world, &clients, 2 * SECOND);
            // The last ones arrive.
            world.run_for(Duration::from_millis(10));
            let sent = totals.tally.sent;
            let off = sent as f64 - 2.0 * rate * f64::from(shards);
            assert!(off.abs() <= f64::from(shards), "{rate}/s: off by {off}");
            let taken = world.service_totals(engine, DISCARD_SERVICE);
            assert_eq!(taken.received_datagrams, sent);
            assert_eq!(taken.received_datagram_bytes, sent * 200);
            stop(&mut world);
        }
    }
}

#[test]
fn echo_loses_nothing_however_small_its_queues_and_windows_are() {
    for queue_bytes_max in [1, 10, 1000, 100_000] {
        for window in [1..2_u64, 100..200, 20_000..30_000] {
            for message_len in [1, 100, 5000] {
                let tiny = window.end == 2;
                if tiny && message_len > 100 {
                    continue;
                }
                let config = WorldConfig {
                    streams: StreamConfig {
                        delay: 1_000..20_000,
                        send_buffer_bytes: window.clone(),
                        receive_buffer_bytes: window.clone(),
                        ..StreamConfig::default()
                    },
                    ..WorldConfig::default()
                };
                let mut world = World::new(9, config);
                let limits = Limits {
                    stream_queue_bytes_max: queue_bytes_max,
                    ..small_limits()
                };
                let engine = servers(&mut world, 1, limits);
                let load = Config {
                    message_len,
                    ..plan(ECHO, 2, 8, Arrivals::Closed)
                };
                let clients = Clients::start(
                    &mut world,
                    "10.0.0.2",
                    1,
                    small_limits(),
                    Load::Streams(load),
                    &Arc::default(),
                );
                let totals = run(&mut world, &clients, 100 * MILLI);
                let (tally, case) = (&totals.tally, (queue_bytes_max, &window, message_len));
                assert!(tally.answered > 0, "{case:?}: {tally:?}");
                let bad = [
                    tally.wrong_bytes,
                    tally.lost,
                    tally.closed_early,
                    tally.unknown,
                ];
                assert_eq!(bad, [0; 4], "{case:?}: {tally:?}");
                let echo = world.service_totals(engine, ECHO_SERVICE);
                assert_eq!(echo.send_full, 0, "{case:?}: paused in time");
                assert_eq!(echo.sent_bytes, tally.sent * message_len as u64, "{case:?}");
                stop(&mut world);
            }
        }
    }
}

#[test]
fn the_control_query_answers_in_one_line() {
    let heard = Arc::default();
    let mut world = World::new(1, WorldConfig::default());
    let _ = servers(&mut world, 3, small_limits());
    let load = Load::Streams(plan(ECHO, 1, 1, Arrivals::Idle));
    let _clients = Clients::start(&mut world, "10.0.0.2", 1, small_limits(), load, &heard);
    world
        .run_until(|_| heard.lock().unwrap().over, SECOND)
        .unwrap();
    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.text, format!("{STATS_LINE}\n").into_bytes());
    assert!(heard.ended, "the server said that nothing follows");
    stop(&mut world);
}
