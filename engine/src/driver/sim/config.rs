//! Everything that a simulated world can be told: its network, its machines, and which faults to
//! inject how often. Plain data; a seed alone makes a random mix of all of it.

use std::ops::Range;

use super::random::Random;
use crate::Nanos;
use crate::impairment::{Corruption, Distribution, Impairment, Loss, Rate, Reordering};

const MICRO: Nanos = 1_000;
const MILLI: Nanos = 1_000_000;

/// What a [`World`](super::World) is like. The default is a clean network with 0.1–0.3 ms one way
/// and no faults.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldConfig {
    /// Datagrams from the end that sent the first one of a flow.
    pub forward: Impairment,
    /// Datagrams back to it.
    pub backward: Impairment,
    /// Give damaged datagrams to protocols. Off by default: the UDP checksum drops them.
    pub deliver_corrupted: bool,
    /// Probability that a datagram joins the one before it in one receive buffer (GRO) when both
    /// wait, come from one peer and have the same size.
    pub coalescing: f64,
    /// Bytes that wait in a datagram socket before more are dropped.
    pub socket_buffer_bytes: usize,
    /// How streams behave.
    pub streams: StreamConfig,
    /// What goes wrong at the driver boundary, how often.
    pub faults: Faults,
    /// When hosts cannot reach each other.
    pub partitions: Vec<Partition>,
    /// Virtual CPU time of one turn of a shard, ns.
    pub turn_time: Range<Nanos>,
    /// From the moment that something is there to the moment that its sleeping shard runs, ns.
    pub wake_time: Range<Nanos>,
    /// How late the timers of a sleeping shard fire, ns: as on a host of poor timer resolution.
    pub timer_lateness: Nanos,
    /// Streams that one shard can hold before it hands on.
    pub streams_per_shard_max: usize,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            forward: Impairment {
                delay_us: 200,
                ..Impairment::default()
            },
            backward: Impairment {
                delay_us: 200,
                ..Impairment::default()
            },
            deliver_corrupted: false,
            coalescing: 0.5,
            socket_buffer_bytes: 256 << 10,
            streams: StreamConfig::default(),
            faults: Faults::default(),
            partitions: Vec::new(),
            turn_time: MICRO..20 * MICRO,
            wake_time: MICRO..50 * MICRO,
            timer_lateness: 0,
            streams_per_shard_max: 10_000,
        }
    }
}

/// How simulated TCP behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamConfig {
    /// One way, ns; drawn for every segment. Order is kept.
    pub delay: Range<Nanos>,
    /// Bytes of a segment; drawn for every segment, so receives are split anywhere.
    pub segment_bytes: Range<u64>,
    /// The send buffer of one end, bytes; drawn for every connection.
    pub send_buffer_bytes: Range<u64>,
    /// The receive window of one end, bytes; drawn for every connection.
    pub receive_buffer_bytes: Range<u64>,
    /// Bytes of one receive at most; drawn for every receive.
    pub receive_bytes: Range<u64>,
    /// Probability that a segment is lost and comes again after `retransmission_delay`.
    pub segment_loss: f64,
    /// How late a segment is that was lost, ns.
    pub retransmission_delay: Range<Nanos>,
    /// Connections that wait to be accepted on one listener of one shard; past it a SYN is dropped
    /// and comes again.
    pub backlog_max: usize,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            delay: 100 * MICRO..300 * MICRO,
            segment_bytes: 1..1460,
            send_buffer_bytes: 16 << 10..64 << 10,
            receive_buffer_bytes: 16 << 10..64 << 10,
            receive_bytes: 1..4096,
            segment_loss: 0.0,
            retransmission_delay: 200 * MILLI..400 * MILLI,
            backlog_max: 128,
        }
    }
}

/// A time in which different hosts cannot reach each other: datagrams are lost, segments wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// When it begins, ns since the start of the world.
    pub from: Nanos,
    /// When it is over.
    pub until: Nanos,
}

macro_rules! faults {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// Probabilities of faults, each per opportunity. All zero by default.
        #[derive(Debug, Clone, Copy, PartialEq, Default)]
        pub struct Faults { $($(#[doc = $help])+ pub $name: f64,)+ }

        /// How often each fault of [`Faults`] was injected.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct FaultCounts { $($(#[doc = $help])+ pub $name: u64,)+ }

        impl FaultCounts {
            /// Name and count of every fault.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }

        impl Faults {
            /// Every fault with the same probability.
            #[must_use]
            pub fn all(probability: f64) -> Self {
                Self { $($name: probability,)+ }
            }

            /// Sets one fault by its name; `false` when there is none of that name.
            pub fn set(&mut self, name: &str, probability: f64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = probability,)+
                    _ => return false,
                }
                true
            }
        }
    };
}

faults! {
    /// A receive finds no buffer (ENOBUFS) and waits for one.
    receive_buffers_exhausted,
    /// The completion queue overflows: events come late, in one bunch.
    completion_overflow,
    /// A multishot receive ends and must be armed again.
    receive_ended,
    /// A stream send takes only a part, possibly nothing.
    short_send,
    /// A datagram socket's send buffer is full (EAGAIN).
    datagram_send_blocked,
    /// Segmentation offload is refused on a socket: datagrams go one by one.
    segmentation_refused,
    /// A wait ends with nothing (EINTR, ECANCELED).
    spurious_wake,
    /// The shard wakes before its next timer is due.
    early_timer_wake,
    /// The wake-up for a message comes late, by up to 20 ms.
    late_message_wake,
    /// Accepting fails (EMFILE, ENFILE, ENOMEM) and stops.
    accept_failed,
    /// Opening a stream fails at once (EMFILE, ENOMEM).
    connect_failed,
    /// Opening a datagram socket fails at once (EMFILE, ENOMEM).
    open_failed,
    /// No pooled buffer is free for a protocol to fill.
    fill_exhausted,
    /// A connect is refused (ECONNREFUSED).
    connection_refused,
    /// A connect times out (ETIMEDOUT) after 3 s.
    connection_lost,
    /// An open connection is reset, within a quarter of a second.
    connection_reset,
    /// A connected datagram socket hears of a refused datagram that was in fact delivered.
    datagram_refused,
}

/// What the network did to traffic: not faults of a driver but what a path does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathCounts {
    /// Datagrams given to the network.
    pub sent: u64,
    /// Datagrams put into a socket.
    pub delivered: u64,
    /// Lost by the loss model.
    pub lost: u64,
    /// Dropped because a bottleneck's queue was full.
    pub queue_full: u64,
    /// Dropped as too long for the path.
    pub too_long: u64,
    /// Dropped in a blackout or partition.
    pub blackout: u64,
    /// Doubled.
    pub duplicated: u64,
    /// Held back behind later ones.
    pub held: u64,
    /// Damaged, whether delivered or dropped by the checksum.
    pub corrupted: u64,
    /// Dropped because the receiving socket was full.
    pub socket_full: u64,
    /// Sent to a port where nobody listens.
    pub unreachable: u64,
    /// Joined with the one before in a receive buffer.
    pub coalesced: u64,
    /// Stream segments that were lost and sent again.
    pub retransmitted: u64,
    /// Connections reset for whatever reason.
    pub resets: u64,
}

impl WorldConfig {
    /// A random mix of everything, mild to harsh, from a seed: for tests over many seeds.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed_0f0a_11c0_ffee);
        let random = &mut random;
        let faults = Faults {
            receive_buffers_exhausted: often(random, 0.1),
            completion_overflow: often(random, 0.1),
            receive_ended: often(random, 0.2),
            short_send: often(random, 0.4),
            datagram_send_blocked: often(random, 0.1),
            segmentation_refused: often(random, 0.1),
            spurious_wake: often(random, 0.2),
            early_timer_wake: often(random, 0.3),
            late_message_wake: often(random, 0.3),
            accept_failed: often(random, 0.1),
            connect_failed: often(random, 0.1),
            open_failed: often(random, 0.1),
            fill_exhausted: often(random, 0.2),
            connection_refused: often(random, 0.1),
            connection_lost: often(random, 0.05),
            connection_reset: often(random, 0.2),
            datagram_refused: often(random, 0.02),
        };
        let small = random.happens(0.3);
        let buffer = |random: &mut Random| {
            let most = if small { 64 } else { 32 << 10 };
            let start = 1 + random.below(most);
            start..start + 1 + random.below(most * 2)
        };
        let partitions = if random.happens(0.2) {
            let from = random.below(300 * MILLI);
            vec![Partition {
                from,
                until: from + random.below(200 * MILLI),
            }]
        } else {
            Vec::new()
        };
        Self {
            forward: impairment(random),
            backward: impairment(random),
            deliver_corrupted: false,
            coalescing: random.below(11) as f64 / 10.0,
            socket_buffer_bytes: 4 << 10 << random.below(8),
            streams: StreamConfig {
                delay: 10 * MICRO..10 * MICRO + 1 + random.below(5 * MILLI),
                segment_bytes: 1..2 + random.below(if small { 100 } else { 5000 }),
                send_buffer_bytes: buffer(random),
                receive_buffer_bytes: buffer(random),
                receive_bytes: 1..2 + random.below(5000),
                segment_loss: often(random, 0.02),
                backlog_max: 1 + random.below(64) as usize,
                ..StreamConfig::default()
            },
            faults,
            partitions,
            turn_time: MICRO..2 * MICRO + random.below(200 * MICRO),
            wake_time: MICRO..2 * MICRO + random.below(200 * MICRO),
            timer_lateness: 0,
            streams_per_shard_max: if random.happens(0.3) {
                2 + random.below(8) as usize
            } else {
                10_000
            },
        }
    }
}

/// Off in half of the cases, else somewhere up to `most`.
fn often(random: &mut Random, most: f64) -> f64 {
    if random.happens(0.5) {
        most * random.below(1001) as f64 / 1000.0
    } else {
        0.0
    }
}

fn impairment(random: &mut Random) -> Impairment {
    let loss = match random.below(4) {
        0 => Loss::Uniform {
            probability: often(random, 0.3),
        },
        1 => Loss::GilbertElliott {
            good_to_bad: 0.05,
            bad_to_good: 0.2 + often(random, 0.5),
            loss_good: often(random, 0.05),
            loss_bad: 0.9,
        },
        _ => Loss::None,
    };
    Impairment {
        loss,
        delay_us: random.below(3000),
        jitter_us: if random.happens(0.5) {
            random.below(2000)
        } else {
            0
        },
        jitter_distribution: if random.happens(0.5) {
            Distribution::Normal
        } else {
            Distribution::Uniform
        },
        keep_order: random.happens(0.3),
        duplication: often(random, 0.2),
        reordering: Reordering {
            probability: often(random, 0.2),
            gap: 1 + random.below(5) as u32,
            hold_us_max: 20_000,
            ..Reordering::default()
        },
        corruption: Corruption {
            probability: often(random, 0.1),
            bits: 1 + random.below(4) as u32,
        },
        rate: random.happens(0.3).then(|| Rate {
            bits_per_second: 1_000_000 + random.below(100_000_000),
            queue_bytes_max: 50_000,
            ..Rate::default()
        }),
        datagram_bytes_max: random
            .happens(0.2)
            .then(|| 500 + random.below(1000) as usize),
        ..Impairment::default()
    }
}
