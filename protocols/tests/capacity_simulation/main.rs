//! Both ends of a test connection over a seeded link: loss, reordering, duplication, lost and late
//! stops, clock steps, late ticks, full sockets, a link that dies. Virtual time only.
//!
//! A failing seed is printed; `CAPACITY_SEED=n cargo test -p ringmill-protocols --test
//! capacity_simulation` runs that one alone.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_protocols::capacity::burst::Burst;
use ringmill_protocols::capacity::connection::{Connection, ConnectionSettings, Role, Taken};
use ringmill_protocols::capacity::event::{End, Event, Sink};
use ringmill_protocols::capacity::intervals::SubInterval;
use ringmill_protocols::capacity::parameters::{Algorithm, Direction, Rate, TestParameters};
use ringmill_protocols::capacity::pdu::{Pdu, StatusChecksum, Version};
use ringmill_protocols::capacity::rates::{RateTable, Variant};
use ringmill_protocols::capacity::sender::SenderSettings;
use ringmill_protocols::capacity::time::{Instants, WallTime};

mod path;
mod trouble;

use trouble::{Trouble, shift};

const SEEDS: u64 = 600;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const SERVER: usize = 0;
const CLIENT: usize = 1;

/// The highest row: as much as 600 tests can send in a few seconds.
const ROW_MAX: u16 = 40;

/// What one end handed out.
#[derive(Default)]
struct Out {
    datagrams: Vec<Vec<u8>>,
    sub_intervals: Vec<SubInterval>,
    ends: Vec<End>,
    loads: u64,
    /// How often, of 100, a burst is only partly taken.
    full_percent: u32,
    rng: Option<SmallRng>,
}

impl Sink for Out {
    fn burst(&mut self, burst: &Burst) -> u32 {
        let rng = self.rng.as_mut().expect("set up");
        let mut taken = burst.count();
        if rng.random_range(0..100) < self.full_percent {
            taken = rng.random_range(0..=taken);
        }
        let mut at = 0;
        while at < taken {
            let count = burst.segments(at, 65_507, 64).min(taken - at);
            let mut buffer = vec![0; 65_507];
            let len = burst.fill(&mut buffer, at, count);
            for datagram in buffer[..len].chunks(usize::from(burst.stride(at))) {
                self.datagrams.push(datagram.to_vec());
            }
            at += count;
        }
        self.loads += u64::from(taken);
        taken
    }

    fn pdu(&mut self, bytes: &[u8]) {
        self.datagrams.push(bytes.to_vec());
    }

    fn event(&mut self, event: Event) {
        assert!(self.ends.is_empty(), "{event:?} after the end");
        match event {
            Event::SubInterval(sub_interval) => self.sub_intervals.push(sub_interval),
            Event::Ended(end) => self.ends.push(end),
            Event::Warning(_) | Event::Trial(_) => {}
        }
    }
}

/// What is on the way: when it arrives, in which order, at which end, its bytes.
type Arrival = (u64, u64, usize, Vec<u8>);

struct Simulation {
    ends: [Connection; 2],
    outs: [Out; 2],
    link: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    trouble: Trouble,
    rng: SmallRng,
    version: Version,
    timers: [u64; 2],
    /// Test load that the receiving end took, by number.
    arrived: Vec<u32>,
    /// And what came after its end.
    too_late: usize,
}

impl Simulation {
    fn flush(&mut self, from: usize, now: u64) {
        for mut bytes in std::mem::take(&mut self.outs[from].datagrams) {
            let load = Pdu::of(&bytes) == Some(Pdu::Load);
            // The sender's own stamp; what a load PDU echoes is the other end's.
            let stamp = match (load, self.version) {
                (true, _) => 20,
                (false, Version::V20) => 152,
                (false, Version::V11) => 160,
            };
            shift(&mut bytes, stamp, self.trouble.clock(from, now));
            let stop = bytes[2] != 0;
            let loss = if stop {
                self.trouble.stop_loss
            } else {
                self.trouble.loss
            };
            if now >= self.trouble.dies_at || self.rng.random_bool(loss) {
                continue;
            }
            let copies = 1 + u32::from(self.rng.random_bool(self.trouble.duplication));
            for _ in 0..copies {
                let mut at =
                    now + self.trouble.delay + self.rng.random_range(0..=self.trouble.jitter);
                if stop {
                    at += self.rng.random_range(0..=self.trouble.stop_delay);
                }
                self.order += 1;
                let arrival = (at, self.order, 1 - from, bytes.clone());
                self.link.push(Reverse(arrival));
            }
        }
    }

    fn arrive(&mut self, now: u64, to: usize, mut bytes: Vec<u8>) {
        let load = Pdu::of(&bytes) == Some(Pdu::Load);
        let mut buffer = Vec::new();
        let stride = bytes.len();
        let mut numbers = Vec::new();
        // What arrives at one time with one length comes as one buffer.
        loop {
            if load {
                shift(&mut bytes, 12, -self.trouble.clock(to, now));
                let number = u32::from_be_bytes(bytes[4..8].try_into().expect("4 bytes"));
                if bytes[2] == 0 {
                    numbers.push(number);
                }
            }
            let shorter = bytes.len() < stride;
            buffer.append(&mut bytes);
            match self.link.peek() {
                Some(Reverse((at, _, end, next)))
                    if *at == now
                        && *end == to
                        && next.len() <= stride
                        && !shorter
                        && buffer.len() + next.len() < 65_535 =>
                {
                    bytes = self.link.pop().expect("peeked").0.3;
                }
                _ => break,
            }
        }
        if load && self.ends[to].end().is_none() {
            self.arrived.append(&mut numbers);
        } else if load {
            self.too_late += numbers.len();
        }
        let ended = self.ends[to].end().is_some();
        if ended && !self.trouble.lingers {
            return;
        }
        let taken = self.ends[to].datagram(&buffer, stride as u16, 0, now, &mut self.outs[to]);
        assert_eq!(taken, Taken::Data);
        self.flush(to, now);
        self.arm(to, now);
    }

    /// Timers come late, by as much as the seed says.
    fn arm(&mut self, end: usize, now: u64) {
        self.timers[end] = match self.ends[end].next_deadline() {
            None => u64::MAX,
            Some(deadline) => {
                deadline.max(now) + self.rng.random_range(0..=self.trouble.late_ticks)
            }
        };
    }

    /// Runs until both have ended and nothing is on the way. Returns the time.
    fn run(&mut self, start: u64) -> u64 {
        let mut now = start;
        self.arm(SERVER, now);
        self.arm(CLIENT, now);
        loop {
            let timer = self.timers[SERVER].min(self.timers[CLIENT]);
            let arrival = self.link.peek().map_or(u64::MAX, |next| next.0.0);
            if timer == u64::MAX && arrival == u64::MAX {
                return now;
            }
            now = timer.min(arrival);
            assert!(now < start + 20 * SECOND, "it does not end");
            if arrival <= timer {
                let Reverse((_, _, to, bytes)) = self.link.pop().expect("peeked");
                self.arrive(now, to, bytes);
            } else {
                let end = usize::from(self.timers[CLIENT] == timer);
                self.ends[end].timer(now, &mut self.outs[end]);
                self.flush(end, now);
                self.arm(end, now);
            }
        }
    }
}

/// Runs a seed; returns how both ended and how many datagrams arrived.
fn simulate(seed: u64) -> ([End; 2], usize) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let trouble = Trouble::draw(&mut rng);
    let version = if rng.random_bool(0.7) {
        Version::V20
    } else {
        Version::V11
    };
    let sending = rng.random_range(0..2);
    let direction = if sending == SERVER {
        Direction::Downstream
    } else {
        Direction::Upstream
    };
    let rate = match rng.random_range(0..3) {
        0 => Rate::Search { start: 0 },
        1 => Rate::Search {
            start: rng.random_range(0..=ROW_MAX),
        },
        _ => Rate::Fixed(rng.random_range(0..=ROW_MAX)),
    };
    let parameters = TestParameters {
        rate,
        algorithm: [Algorithm::B, Algorithm::C][rng.random_range(0..2)],
        use_ow_del_var: rng.random_bool(0.3),
        ignore_ooo_dup: rng.random_bool(0.7),
        sr_adj_supp_count: rng.random_range(0..2),
        test_time_s: 3,
        sub_int_ms: [500, 1000][rng.random_range(0..2)],
        trial_int_ms: [20, 50][rng.random_range(0..2)],
        ..TestParameters::new(direction)
    };
    let rows = Arc::new(RateTable::new(Variant::default()));
    let settings = |end: usize, seed: u64| ConnectionSettings {
        role: if end == SERVER {
            Role::Server {
                rows: Arc::clone(&rows),
                row_max: Some(ROW_MAX),
                hold_until_answered: true,
                infer_peer_limit: true,
            }
        } else {
            Role::Client {
                first_row: rows.row(parameters.first_row()).rate,
            }
        },
        parameters,
        version,
        auth_mode: 0,
        status_checksum: StatusChecksum::Lenient,
        sender: SenderSettings {
            ipv6: false,
            keep_numbers: false,
            // The steps are made on the wire, behind the checksum.
            check_sum: trouble.clock_steps.iter().all(|(_, step)| *step == 0),
            tick: 0,
            seed,
        },
    };
    let start = Instants {
        now: 77 * SECOND,
        wall: WallTime::from_unix_nanos(1_800_000_000 * SECOND),
    };
    let end = |end: usize| Connection::new(settings(end, seed + end as u64), start);
    let out = |end: u64| Out {
        full_percent: trouble.full_percent,
        rng: Some(SmallRng::seed_from_u64(seed ^ end)),
        ..Out::default()
    };
    let mut simulation = Simulation {
        ends: [end(SERVER), end(CLIENT)],
        outs: [out(1), out(2)],
        link: BinaryHeap::new(),
        order: 0,
        trouble: Trouble {
            dies_at: trouble.dies_at.saturating_add(start.now),
            clock_steps: trouble.clock_steps.map(|(at, by)| (at + start.now, by)),
            ..trouble.clone()
        },
        rng,
        version,
        timers: [0; 2],
        arrived: Vec::new(),
        too_late: 0,
    };
    let ended = simulation.run(start.now) - start.now;
    let [server, client] = simulation.outs.each_ref().map(|out| out.ends.clone());
    let alive = trouble.dies_at == u64::MAX;
    let what = format!("seed {seed}: {trouble:?}, {rate:?}, sending {sending}");

    // It ends, once, and for a reason that fits.
    assert!(ended < 8 * SECOND, "{what}: took {ended} ns");
    let ([server], [client]) = (&server[..], &client[..]) else {
        panic!("{what}: ends {server:?} {client:?}");
    };
    if alive {
        assert!(
            server.is_complete() || *server == End::PeerStopped,
            "{what}: {server}"
        );
        assert!(client.is_complete(), "{what}: {client}");
        assert_ne!(*server, End::PeerStopped, "{what}");
    }
    if alive && trouble.stop_loss == 0.0 {
        assert_eq!(*client, End::Complete, "{what}");
        assert_eq!(*server, End::Complete, "{what}");
    }

    // Sent = received + lost.
    let sender = simulation.ends[sending].sender().expect("it sends");
    let receiver = simulation.ends[1 - sending]
        .receiver()
        .expect("it receives");
    assert_eq!(sender.totals().0, simulation.outs[sending].loads, "{what}");
    let (datagrams, errors) = (receiver.totals().0, receiver.total_errors());
    let arrived = &simulation.arrived;
    let newest = arrived.iter().max().copied().unwrap_or(0);
    let different = arrived.iter().collect::<HashSet<_>>().len();
    assert_eq!(datagrams, arrived.len() as u64, "{what}");
    assert_eq!(
        errors.duplicates as usize,
        arrived.len() - different,
        "{what}"
    );
    assert_eq!(errors.loss as usize, newest as usize - different, "{what}");
    assert_eq!(
        u64::from(newest),
        datagrams - u64::from(errors.duplicates) + u64::from(errors.loss),
        "{what}"
    );
    if trouble.loss == 0.0 && alive {
        // The stop may overtake the last load.
        assert!(errors.loss as usize <= simulation.too_late, "{what}");
    }

    // Both ends tell the same of each sub-interval, and the client has them all.
    let [measured, told] = [1 - sending, sending].map(|end| &simulation.outs[end].sub_intervals);
    for one in told {
        let same = measured.iter().find(|other| other.number == one.number);
        let same = same.unwrap_or_else(|| panic!("{what}: nobody measured {one:?}"));
        assert_eq!((one.stats, one.ce), (same.stats, same.ce), "{what}");
    }
    if alive {
        let want: Vec<u32> = (1..=parameters.sub_intervals()).collect();
        let of_client = &simulation.outs[CLIENT].sub_intervals;
        let numbers: Vec<u32> = of_client.iter().map(|one| one.number).collect();
        assert_eq!(numbers, want, "{what}");
    }
    ([*server, *client], arrived.len())
}

#[test]
fn both_ends_agree_whatever_the_link_does() {
    if let Ok(seed) = std::env::var("CAPACITY_SEED") {
        simulate(seed.parse().expect("CAPACITY_SEED is a number"));
        return;
    }
    let (mut seen, mut datagrams) = (HashSet::new(), 0);
    for seed in 0..SEEDS {
        let (ends, arrived) = simulate(seed);
        seen.extend(ends);
        datagrams += arrived;
    }
    // The troubles are real ones.
    for end in [
        End::Complete,
        End::Unconfirmed,
        End::StopMissing,
        End::NoTraffic,
    ] {
        assert!(seen.contains(&end), "no seed ended so: {end}");
    }
    assert!(datagrams > 1_000_000, "only {datagrams} datagrams");
}
