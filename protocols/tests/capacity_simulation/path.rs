//! The search over a path of known capacity finds it, or stops where its sender cannot follow: both
//! ends, a bottleneck with a queue, virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use ringmill_protocols::capacity::burst::Burst;
use ringmill_protocols::capacity::connection::{Connection, ConnectionSettings, Role};
use ringmill_protocols::capacity::event::{Event, Sink};
use ringmill_protocols::capacity::parameters::{Algorithm, Direction, TestParameters};
use ringmill_protocols::capacity::pdu::{StatusChecksum, Version};
use ringmill_protocols::capacity::rates::{RateTable, Variant};
use ringmill_protocols::capacity::sender::SenderSettings;
use ringmill_protocols::capacity::summary::{Gatherer, Results};
use ringmill_protocols::capacity::time::{Instants, WallTime};

use crate::{Arrival, CLIENT, MS};

#[derive(Default)]
struct Out {
    datagrams: Vec<Vec<u8>>,
    gatherer: Gatherer,
    results: Results,
    row_max: u16,
}

impl Sink for Out {
    fn burst(&mut self, burst: &Burst) -> u32 {
        for index in 0..burst.count() {
            let mut datagram = vec![0; usize::from(burst.stride(index))];
            burst.fill(&mut datagram, index, 1);
            self.datagrams.push(datagram);
        }
        burst.count()
    }

    fn pdu(&mut self, bytes: &[u8]) {
        self.datagrams.push(bytes.to_vec());
    }

    fn event(&mut self, event: Event) {
        if let Event::Trial(report) = event {
            self.row_max = self.row_max.max(report.row.unwrap_or(0));
        }
        if let Event::SubInterval(one) = event {
            self.gatherer.add(&one, false, 1);
            if let Some(interval) = self.gatherer.check(1) {
                self.results.add(&interval);
            }
        }
    }
}

/// A path, and the hosts at its ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    /// At the IP layer.
    pub(crate) mbps: u64,
    pub(crate) queue_ms: u64,
    /// One way.
    pub(crate) delay_ms: u64,
    /// How late the timers of the sending host fire: as of one that cannot keep up.
    pub(crate) late_ms: u64,
}

/// What a test over it came to.
pub(crate) struct Came {
    /// The maximum that the client found, in Mbit/s.
    pub(crate) maximum_mbps: f64,
    /// The highest row that the server chose.
    pub(crate) row_max: u16,
    /// Both ends.
    pub(crate) ends: [Connection; 2],
}

/// Runs a test over a path.
pub(crate) fn run(direction: Direction, algorithm: Algorithm, path: Path) -> Came {
    let Path {
        mbps,
        queue_ms,
        delay_ms,
        late_ms,
    } = path;
    let rows = Arc::new(RateTable::new(Variant::default()));
    let parameters = TestParameters {
        algorithm,
        ..TestParameters::new(direction)
    };
    let start = Instants {
        now: 0,
        wall: WallTime::from_unix_nanos(1_800_000_000_000_000_000),
    };
    let mut ends = [0, 1].map(|end| {
        let role = if end == CLIENT {
            Role::Client {
                first_row: rows.row(0).rate,
            }
        } else {
            Role::Server {
                rows: Arc::clone(&rows),
                row_max: None,
                hold_until_answered: true,
                infer_peer_limit: true,
            }
        };
        let settings = ConnectionSettings {
            role,
            parameters,
            version: Version::V20,
            auth_mode: 0,
            status_checksum: StatusChecksum::Lenient,
            sender: SenderSettings {
                ipv6: false,
                keep_numbers: false,
                check_sum: false,
                tick: 100_000,
                seed: end as u64,
            },
        };
        Connection::new(settings, start)
    });
    let mut outs = [Out::default(), Out::default()];
    let mut link: BinaryHeap<Reverse<Arrival>> = BinaryHeap::new();
    let (mut free_at, mut order) = ([0; 2], 0);
    loop {
        let timers = ends.each_ref().map(|end| {
            let late = end.sender().map_or(0, |_| late_ms * MS);
            let deadline = end.next_deadline();
            deadline.map_or(u64::MAX, |deadline| deadline + late)
        });
        let arrival = link.peek().map_or(u64::MAX, |next| next.0.0);
        let now = timers[0].min(timers[1]).min(arrival);
        if now == u64::MAX {
            let row_max = outs[1 - CLIENT].row_max;
            return Came {
                maximum_mbps: outs[CLIENT].results.whole().maximum.rates.ip,
                row_max,
                ends,
            };
        }
        let end = if now == arrival {
            let Reverse((_, _, to, bytes)) = link.pop().expect("peeked");
            ends[to].datagram(&bytes, bytes.len() as u16, 0, now, &mut outs[to]);
            to
        } else {
            let end = usize::from(timers[1] == now);
            ends[end].timer(now, &mut outs[end]);
            end
        };
        for bytes in outs[end].datagrams.drain(..) {
            let begin = now.max(free_at[end]);
            if begin - now <= queue_ms * MS {
                free_at[end] = begin + (bytes.len() as u64 + 28) * 8_000 / mbps;
                order += 1;
                link.push(Reverse((
                    free_at[end] + delay_ms * MS,
                    order,
                    1 - end,
                    bytes,
                )));
            }
        }
    }
}

#[test]
fn the_capacity_of_a_path_is_found() {
    for (mbps, queue_ms, delay_ms) in [(10, 50, 0), (10, 100, 50), (100, 50, 0), (100, 50, 10)] {
        for direction in [Direction::Upstream, Direction::Downstream] {
            for algorithm in [Algorithm::B, Algorithm::C] {
                let path = Path {
                    mbps,
                    queue_ms,
                    delay_ms,
                    late_ms: 0,
                };
                let came = run(direction, algorithm, path);
                let found = came.maximum_mbps;
                let share = found / mbps as f64;
                for end in &came.ends {
                    assert_eq!(end.limited_trials(), 0, "the path is the limit: {path:?}");
                }
                assert!(
                    (0.97..=1.03).contains(&share),
                    "{found:.2} of {mbps} Mbit/s, queue {queue_ms} ms, delay {delay_ms} ms, \
                     {direction:?}, {algorithm:?}"
                );
            }
        }
    }
}

/// A host that wakes up 25 ms late catches 10 ms of that up: it sends well below its rows, on a path that
/// would carry all of them.
#[test]
fn a_sender_that_cannot_follow_is_told_to_both_ends_and_ends_the_climb() {
    /// The highest row that ten trials reach from row 0.
    const CLIMB_MAX: u16 = 110;
    let wide = Path {
        mbps: 2_000,
        queue_ms: 50,
        delay_ms: 5,
        late_ms: 0,
    };
    for algorithm in [Algorithm::B, Algorithm::C] {
        for direction in [Direction::Upstream, Direction::Downstream] {
            let about = format!("{direction:?}, {algorithm:?}");
            let slow = Path {
                late_ms: 25,
                ..wide
            };
            let came = run(direction, algorithm, slow);
            for end in &came.ends {
                let limited = end.limited_trials();
                assert!(limited > 100, "{about}: {limited} trials are limited");
                if let Some(receiver) = end.receiver() {
                    // What was given up was never numbered, and so is no loss.
                    assert_eq!(receiver.total_errors().loss, 0, "{about}");
                    assert!(end.missed() > 0, "{about}");
                }
            }
            let [server, client] = came.ends.each_ref().map(Connection::missed);
            assert_eq!(server, client, "{about}: told as it was");
            if direction == Direction::Downstream {
                // Its own sender: ten trials in a row have shown it by then.
                assert!(came.row_max <= CLIMB_MAX, "{about}: row {}", came.row_max);
            }
        }
    }
}
