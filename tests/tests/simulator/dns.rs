//! The DNS load and the fixed answer in virtual time: that queries leave when the plan says, on
//! connections chosen at random, and that every answer is told for what it is.

use std::sync::{Arc, Mutex};

use ringmill_engine::driver::sim::{
    EngineId, EngineSpec, Partition, StreamConfig, World, WorldConfig,
};
use ringmill_engine::impairment::{Impairment, Loss};
use ringmill_engine::{
    Address, Context, Datagram, Limits, Nanos, Payload, Protocol, Service, SocketId, Transmit,
};
use ringmill_protocols::dns::message::{Name, TYPE_A};
use ringmill_protocols::dns::{
    AnswerTemplate, DnsConfig, DnsFigures, DnsLoad, DnsShared, FixedAnswer, LATE_MAX, Queries,
    Record, RecordKind, Records,
};
use ringmill_protocols::guard::{Guard, GuardCounters, OwnPorts};
use ringmill_protocols::load::{Phase, Published, RatePlan, Unsent};

use super::bench::{
    Clients, ECHO, MILLI, READY_WITHIN, SECOND, UNGUARDED, address, run, servers, small_limits,
    stop, until,
};

const DNS: &str = "10.0.0.1:5353";

fn config(target: &str, datagrams: bool, connections: usize, plan: RatePlan) -> DnsConfig {
    let name = Name::parse("example.com").unwrap();
    DnsConfig {
        target: Address::Ip(address(target)),
        datagrams,
        connections,
        open_rate: None,
        reopen: false,
        plan: Arc::new(plan),
        poisson: true,
        seed: 42,
        queries: Arc::new(Queries::new(&[(name, TYPE_A)], !datagrams)),
        timeout: SECOND,
        sources: Vec::new(),
        reset_on_close: false,
    }
}

fn rate(rate: f64) -> RatePlan {
    RatePlan::constant(rate).unwrap()
}

/// A server with a fixed answer on the servers' host.
fn dns_server(world: &mut World) -> EngineId {
    let counters: Arc<GuardCounters> = Arc::default();
    let ports = Arc::new(OwnPorts::default());
    let service = Service::new("dns", move |shard| {
        let template = AnswerTemplate::of(&["192.0.2.1".parse().unwrap()], 60);
        let (ports, counters) = (Arc::clone(&ports), Arc::clone(&counters));
        let guard = Guard::new(UNGUARDED, ports, counters, u64::from(shard) + 1);
        FixedAnswer::new(template, guard)
    });
    let spec = EngineSpec::new(2)
        .limits(small_limits())
        .host("10.0.0.1")
        .service(service.listen(address(DNS)).bind(address(DNS)));
    world.engine(spec).expect("the server starts")
}

/// The clients of a run and what the control thread holds of them.
struct DnsClients {
    clients: Clients,
    shared: Arc<Mutex<Vec<Arc<DnsShared>>>>,
    records: Records,
}

impl DnsClients {
    fn start(world: &mut World, shards: u16, config: DnsConfig) -> Self {
        let config = Arc::new(config);
        let shared: Arc<Mutex<Vec<Arc<DnsShared>>>> = Arc::default();
        let records = Records::new();
        let (each, queue) = (Arc::clone(&shared), records.clone());
        let limits = Limits {
            max_connections: config.connections,
            ..Limits::default()
        };
        let clients = Clients::of(
            world,
            "10.0.0.2",
            shards,
            limits,
            &Arc::default(),
            move |load| {
                let dns = DnsShared::new();
                each.lock().unwrap().push(Arc::clone(&dns));
                DnsLoad::new(Arc::clone(&config), load, dns, Some(queue.clone()))
            },
        );
        Self {
            clients,
            shared,
            records,
        }
    }

    fn figures(&self) -> DnsFigures {
        let mut sum = DnsFigures::new();
        for shared in self.shared.lock().unwrap().iter() {
            sum.add(&shared.read());
        }
        sum
    }

    fn records(&self) -> Vec<Record> {
        std::iter::from_fn(|| self.records.pop()).collect()
    }
}

/// What a run came to.
struct Run {
    totals: Published,
    figures: DnsFigures,
    records: Vec<Record>,
    world: World,
    started: Nanos,
}

fn measure(seed: u64, network: WorldConfig, shards: u16, config: DnsConfig, time: Nanos) -> Run {
    let mut world = World::new(seed, network);
    let _ = servers(&mut world, 2, small_limits());
    let _ = dns_server(&mut world);
    let clients = DnsClients::start(&mut world, shards, config);
    until(&mut world, &clients.clients, Phase::Ready, READY_WITHIN);
    // As `run` does it.
    let started = world.now() + MILLI;
    let totals = run(&mut world, &clients.clients, time);
    stop(&mut world);
    Run {
        totals,
        figures: clients.figures(),
        records: clients.records(),
        world,
        started,
    }
}

fn queries(records: &[Record]) -> Vec<Nanos> {
    let queries = records.iter();
    let queries = queries.filter(|record| matches!(record.kind, RecordKind::Query { .. }));
    let mut times: Vec<_> = queries.map(|record| record.at).collect();
    times.sort_unstable();
    times
}

#[test]
fn every_query_is_answered_and_counted_once() {
    for (target, echoes) in [(DNS, false), (ECHO, true)] {
        for datagrams in [false, true] {
            for shards in [1, 2] {
                let config = config(target, datagrams, 7, rate(2_000.0));
                let run = measure(1, WorldConfig::default(), shards, config, 2 * SECOND);
                let tally = &run.totals.tally;
                let case = format!("{target}, datagrams {datagrams}, {shards} shards: {tally:?}");
                assert_eq!(
                    (tally.opened, tally.open_failed, tally.closed_early),
                    (7, 0, 0),
                    "{case}"
                );
                // Four standard errors of a Poisson count.
                assert!(tally.sent.abs_diff(4_000) < 4 * 64, "{case}");
                assert_eq!((tally.lost, tally.unsent), (0, 0), "{case}");
                assert_eq!(
                    (tally.late, tally.duplicated, tally.unknown),
                    (0, 0, 0),
                    "{case}"
                );
                assert_eq!(run.totals.response.len(), tally.sent, "{case}");
                let counts = run.figures.counts;
                let answered = if echoes {
                    counts.echoed
                } else {
                    counts.response_codes[0]
                };
                assert_eq!(
                    counts.response_codes.iter().sum::<u64>() + counts.echoed,
                    answered
                );
                // Answers that came after the end count for the latency only.
                assert_eq!(answered, tally.answered, "{case}");
                assert!(tally.sent - answered < 20, "{case}");
                assert_eq!(run.figures.lateness.len(), tally.sent, "{case}");
                assert_eq!(run.records.len() as u64, 2 * tally.sent, "{case}");
            }
        }
    }
}

/// The rate changes when the plan says so, on one shard as on three, and its arrivals stay Poisson.
#[test]
fn plans_change_the_rate() {
    let plans = [
        (
            "steps",
            RatePlan::parse_steps("3 2000 3000 2000 300 2000 6000").unwrap(),
        ),
        (
            "slopes",
            RatePlan::parse_slopes(3000.0, "3 2000 -1500 2000 0 2000 2500").unwrap(),
        ),
    ];
    for (name, plan) in plans {
        for (datagrams, shards) in [(false, 1), (true, 1), (false, 3)] {
            let config = config(DNS, datagrams, 9, plan.clone());
            // A query leaves in the turn after its instant. Here turns are fast, so that what is
            // tested is the schedule and not the simulated CPU.
            let network = WorldConfig {
                turn_time: 100..101,
                wake_time: 100..101,
                ..WorldConfig::default()
            };
            let run = measure(3, network, shards, config, 6 * SECOND);
            let case = format!("{name}, datagrams {datagrams}, {shards} shards");
            let times = queries(&run.records);
            assert_eq!(times.len() as u64, run.totals.tally.sent, "{case}");
            // Every quarter of a second has its number, within four standard errors.
            for window in 0..24 {
                let (from, to) = (window * SECOND / 4, (window + 1) * SECOND / 4);
                let inside = |at: &&Nanos| (from..to).contains(&(**at - run.started));
                let found = times.iter().filter(inside).count() as f64;
                let wanted = plan.messages_until(to) - plan.messages_until(from);
                let allowed = 4.0 * wanted.max(1.0).sqrt();
                assert!(
                    (found - wanted).abs() <= allowed,
                    "{case}, window {window}: {found} of {wanted}"
                );
            }
            // Kolmogorov-Smirnov on the gaps, stretched by the plan: they are exponential.
            let ticks = times.iter().map(|at| plan.messages_until(at - run.started));
            let ticks: Vec<f64> = ticks.collect();
            let mut gaps: Vec<f64> = ticks.windows(2).map(|pair| pair[1] - pair[0]).collect();
            gaps.sort_unstable_by(f64::total_cmp);
            let n = gaps.len() as f64;
            let distance = gaps.iter().enumerate().fold(0.0_f64, |worst, (i, gap)| {
                let (cdf, i) = (1.0 - (-gap).exp(), i as f64);
                worst
                    .max((cdf - i / n).abs())
                    .max((cdf - (i + 1.0) / n).abs())
            });
            // The 1 % point of the Kolmogorov distribution; the seed is fixed.
            let limit = 1.628 / n.sqrt();
            assert!(distance < limit, "{case}: D = {distance}, limit {limit}");
        }
    }
}

#[test]
fn connections_are_chosen_uniformly() {
    let config = config(DNS, false, 50, rate(10_000.0));
    let run = measure(5, WorldConfig::default(), 2, config, 2 * SECOND);
    let mut counts = [0_u32; 50];
    for record in &run.records {
        if matches!(record.kind, RecordKind::Query { .. }) {
            counts[record.connection as usize] += 1;
        }
    }
    let mean = f64::from(counts.iter().sum::<u32>()) / 50.0;
    let square = |count: &u32| (f64::from(*count) - mean).powi(2) / mean;
    let chi_squared: f64 = counts.iter().map(square).sum();
    // 49 degrees of freedom: 1 % is above 74.9, 1 % below 28.9.
    assert!(
        (28.9..74.9).contains(&chi_squared),
        "{chi_squared}: {counts:?}"
    );
}

/// Which connection a query goes to has nothing to do with how long ago the one before left: else
/// the arrivals on a connection are no Poisson process, however good their sum is.
#[test]
fn the_choice_of_a_connection_does_not_depend_on_the_gap() {
    let network = WorldConfig {
        turn_time: 100..101,
        wake_time: 100..101,
        ..WorldConfig::default()
    };
    for datagrams in [false, true] {
        let config = config(DNS, datagrams, 5, rate(4_000.0));
        let run = measure(23, network.clone(), 1, config, 3 * SECOND);
        let asked = run.records.iter();
        let asked = asked.filter(|record| matches!(record.kind, RecordKind::Query { .. }));
        let asked: Vec<_> = asked.collect();
        let mut gaps = [(0.0, 0.0); 5];
        for pair in asked.windows(2) {
            let (count, sum) = &mut gaps[pair[1].connection as usize];
            *count += 1.0;
            *sum += (pair[1].at - pair[0].at) as f64;
        }
        // The mean of so many exponential gaps, within four standard errors.
        let mean = SECOND as f64 / 4_000.0;
        for (connection, (count, sum)) in gaps.iter().enumerate() {
            let off = (sum / count / mean - 1.0_f64).abs() * f64::sqrt(*count);
            assert!(
                off < 4.0,
                "connection {connection}: {off} standard errors, {gaps:?}"
            );
        }
    }
}

/// One lost answer holds nothing up: 30,000 queries a second on one socket use half of the ids in a
/// second, and a query is overdue only after two.
#[test]
fn one_lost_datagram_does_not_stop_its_socket() {
    let network = WorldConfig {
        backward: Impairment {
            loss: Loss::Uniform {
                probability: 0.000_2,
            },
            ..Impairment::default()
        },
        ..WorldConfig::default()
    };
    let mut config = config(DNS, true, 1, rate(30_000.0));
    config.timeout = 2 * SECOND;
    let run = measure(29, network, 1, config, 4 * SECOND);
    let tally = &run.totals.tally;
    assert!(tally.lost > 5, "{tally:?}");
    assert_eq!(tally.lost, run.world.path().lost, "{tally:?}");
    assert_eq!(tally.unsent, 0, "{tally:?}");
    assert_eq!(tally.sent, run.totals.response.len() + tally.lost);
}

/// Every query that was offered is told as sent or as not sent, also when the end finds the client
/// behind.
#[test]
fn nothing_that_was_offered_is_forgotten_at_the_end() {
    for (lateness, rate_per_s, shards) in [
        (0, 5_000, 1),
        (3 * SECOND / 2, 5_000, 1),
        (3 * SECOND / 2, 5_000, 2),
    ] {
        let network = WorldConfig {
            timer_lateness: lateness,
            ..WorldConfig::default()
        };
        let mut config = config(DNS, true, 4, rate(f64::from(rate_per_s)));
        config.poisson = false;
        let run = measure(31, network, shards, config, 6 * SECOND);
        let tally = &run.totals.tally;
        let case = format!("late by up to {lateness} ns, {shards} shards: {tally:?}");
        assert_eq!(
            tally.sent + tally.unsent,
            6 * u64::from(rate_per_s as u32),
            "{case}"
        );
        assert_eq!(tally.unsent > 0, lateness > 0, "{case}");
    }
}

/// Answers each query, about a name that nobody asked for.
struct Liar;

impl Protocol for Liar {
    type Message = ();

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for datagram in batch.drain(..) {
            for query in datagram.iter() {
                let mut answer = query.to_vec();
                // QR, and the first letter of the name (RFC 1035 §4.1).
                answer[2] |= 0x80;
                answer[13] = b'f';
                let transmit = Transmit::one(Some(datagram.peer), Payload::from(answer));
                assert!(ctx.send_datagrams(socket, transmit).is_queued());
            }
        }
    }
}

/// An answer to another question is in the record without a time, told as malformed, and leaves its
/// query to be lost: it may be somebody's guess.
#[test]
fn an_answer_to_another_question_is_none() {
    let mut world = World::new(37, WorldConfig::default());
    let service = Service::new("liar", |_| Liar).bind(address(DNS));
    let spec = EngineSpec::new(1)
        .limits(small_limits())
        .host("10.0.0.1")
        .service(service);
    let _ = world.engine(spec).expect("the server starts");
    let clients = DnsClients::start(&mut world, 1, config(DNS, true, 2, rate(100.0)));
    until(&mut world, &clients.clients, Phase::Ready, READY_WITHIN);
    let totals = run(&mut world, &clients.clients, 2 * SECOND);
    stop(&mut world);
    let tally = &totals.tally;
    assert!(tally.sent > 100, "{tally:?}");
    assert_eq!((tally.lost, tally.answered), (tally.sent, 0), "{tally:?}");
    assert_eq!(clients.figures().counts.malformed, tally.sent);
    let records = clients.records();
    let answers = records
        .iter()
        .filter(|record| record.kind == RecordKind::Answer { rtt: None });
    assert_eq!(answers.count() as u64, tally.sent, "{records:?}");
    assert_eq!(records.len() as u64, 2 * tally.sent, "{records:?}");
}

#[test]
fn sockets_that_cannot_be_opened_do_not_hold_up_the_others_for_long() {
    let mut network = WorldConfig::default();
    network.faults.open_failed = 1.0;
    let config = config(DNS, true, 500, rate(10.0));
    let mut world = World::new(37, network);
    let before = world.now();
    let clients = DnsClients::start(&mut world, 1, config);
    until(&mut world, &clients.clients, Phase::Ready, READY_WITHIN);
    let took = world.now() - before;
    let tally = clients.clients.totals().tally;
    assert_eq!((tally.opened, tally.open_failed), (0, 500), "{tally:?}");
    // Half of them for want of files, and each of those was a pause of 100 ms.
    assert!(took < 5 * SECOND, "{took} ns");
}

#[test]
fn what_the_network_does_to_datagrams_is_told_exactly() {
    let bad = |loss: f64, duplication: f64, delay_us: u64| WorldConfig {
        backward: Impairment {
            loss: Loss::Uniform { probability: loss },
            duplication,
            delay_us,
            ..Impairment::default()
        },
        ..WorldConfig::default()
    };
    for (name, network) in [
        ("loss", bad(0.05, 0.0, 200)),
        ("duplicates", bad(0.0, 0.05, 200)),
        ("late", bad(0.0, 0.0, 1_500_000)),
    ] {
        let run = measure(
            7,
            network,
            2,
            config(DNS, true, 5, rate(3_000.0)),
            3 * SECOND,
        );
        let (tally, path) = (&run.totals.tally, run.world.path());
        let answered = run.totals.response.len();
        assert_eq!(tally.sent, answered + tally.lost, "{name}: {tally:?}");
        match name {
            "loss" => assert_eq!((tally.lost, tally.late), (path.lost, 0), "{tally:?}"),
            "duplicates" => {
                assert_eq!(tally.lost, 0, "{tally:?}");
                // One that comes after all its queries are answered finds the socket closed.
                assert!(
                    path.duplicated - tally.duplicated < 5,
                    "{tally:?}, {path:?}"
                );
                assert!(tally.duplicated > 100, "{tally:?}");
            }
            _ => {
                assert_eq!((answered, tally.lost), (0, tally.sent));
                assert!(tally.late > 3_000, "{tally:?}");
            }
        }
        assert_eq!(tally.unknown, 0, "{name}: {tally:?}");
    }
}

#[test]
fn a_stalled_server_does_not_slow_the_load() {
    // Nothing passes for half of the run; streams hold what is sent.
    let network = WorldConfig {
        partitions: vec![Partition {
            from: SECOND,
            until: 2 * SECOND,
        }],
        ..WorldConfig::default()
    };
    let mut config = config(DNS, false, 5, rate(2_000.0));
    config.timeout = 10 * SECOND;
    let run = measure(9, network, 1, config, 2 * SECOND);
    let tally = &run.totals.tally;
    assert!(tally.sent.abs_diff(4_000) < 4 * 64, "{tally:?}");
    assert_eq!((tally.lost, tally.unsent), (0, 0), "{tally:?}");
    let slow = run.totals.response.value_at_quantile(0.99);
    assert!(slow > 900 * MILLI, "the stall shows: {slow}");
}

#[test]
fn what_cannot_leave_is_given_up_and_told() {
    // One connection whose server is gone for good: its queue fills, and the load goes on.
    let network = WorldConfig {
        partitions: vec![Partition {
            from: 100 * MILLI,
            until: 100 * SECOND,
        }],
        ..WorldConfig::default()
    };
    let mut config = config(DNS, false, 1, rate(100_000.0));
    config.timeout = 5 * SECOND;
    let mut world = World::new(11, network);
    let _ = dns_server(&mut world);
    let clients = DnsClients::start(&mut world, 1, config);
    let totals = run(&mut world, &clients.clients, 2 * SECOND);
    let tally = &totals.tally;
    let accounted = tally.sent + tally.unsent;
    // At most a last turn is cut off by the end.
    assert!(accounted.abs_diff(200_000) < 4 * 450, "{tally:?}");
    assert!(tally.unsent > 100_000, "{tally:?}");
    let causes: Vec<_> = tally.unsent_by.keys().copied().collect();
    let known = [Unsent::NoRoom, Unsent::QueueFull];
    assert!(
        causes.iter().all(|cause| known.contains(cause)),
        "{tally:?}"
    );
    assert!(tally.lateness_max_ns < LATE_MAX, "{tally:?}");
    assert_eq!(tally.sent, totals.response.len() + tally.lost, "{tally:?}");
}

#[test]
fn a_client_that_comes_too_late_gives_up_the_oldest_and_says_so() {
    // A sleeping shard is woken one and a half seconds late, again and again.
    let network = WorldConfig {
        timer_lateness: 3 * SECOND / 2,
        ..WorldConfig::default()
    };
    let run = measure(
        19,
        network,
        1,
        config(DNS, true, 3, rate(1_000.0)),
        10 * SECOND,
    );
    let tally = &run.totals.tally;
    let late = tally.unsent_by.get(&Unsent::Late).copied().unwrap_or(0);
    assert_eq!(late, tally.unsent, "{tally:?}");
    // A third of each such time is beyond the limit.
    assert!((1_500..4_500).contains(&late), "{tally:?}");
    let latest = run.figures.lateness.max();
    assert!(
        (LATE_MAX / 2..=LATE_MAX + LATE_MAX / 500).contains(&latest),
        "{latest}"
    );
    assert!((tally.sent + late).abs_diff(10_000) < 2_000, "{tally:?}");
}

#[test]
fn connections_open_at_their_rate_however_long_each_takes() {
    for (delay_us, rate_per_s, least) in [(200, 500.0, 1_990), (400_000, 500.0, 2_390)] {
        let delay = delay_us * 1_000;
        let network = WorldConfig {
            streams: StreamConfig {
                delay: delay..delay + 1,
                ..StreamConfig::default()
            },
            ..WorldConfig::default()
        };
        let mut config = config(DNS, false, 1_000, rate(10.0));
        config.open_rate = Some(rate_per_s);
        let mut world = World::new(13, network);
        let _ = dns_server(&mut world);
        let before = world.now();
        let clients = DnsClients::start(&mut world, 2, config);
        until(&mut world, &clients.clients, Phase::Ready, READY_WITHIN);
        let took_ms = (world.now() - before) / MILLI;
        assert_eq!(clients.clients.totals().tally.opened, 1_000);
        assert!(
            (least..least + 420).contains(&took_ms),
            "{delay_us} µs: {took_ms} ms"
        );
    }
}

#[test]
fn a_lost_connection_is_told_and_opened_again_if_wanted() {
    for reopen in [false, true] {
        let mut config = config(DNS, false, 20, rate(1_000.0));
        config.reopen = reopen;
        let mut world = World::new(17, WorldConfig::default());
        let server = dns_server(&mut world);
        let clients = DnsClients::start(&mut world, 1, config);
        until(&mut world, &clients.clients, Phase::Ready, READY_WITHIN);
        let start = world.now() + MILLI;
        clients
            .clients
            .tell(ringmill_protocols::load::Command::Begin {
                start,
                measure: start,
                end: start + 4 * SECOND,
            });
        world.run_for(std::time::Duration::from_secs(1));
        world.kill(server);
        world.run_for(std::time::Duration::from_millis(50));
        let _ = dns_server(&mut world);
        until(&mut world, &clients.clients, Phase::Done, 20 * SECOND);
        let totals = clients.clients.totals();
        let tally = &totals.tally;
        assert_eq!(tally.closed_early, 20, "{totals:?}");
        assert_eq!(tally.opened, if reopen { 40 } else { 20 }, "{tally:?}");
        assert!(
            tally.unsent_by.contains_key(&Unsent::NoConnection),
            "{tally:?}"
        );
        assert_eq!(tally.sent, totals.response.len() + tally.lost, "{tally:?}");
        if reopen {
            assert!(tally.answered > 3_000, "{tally:?}");
        } else {
            assert!(tally.unsent > 2_500, "{tally:?}");
        }
        stop(&mut world);
    }
}
