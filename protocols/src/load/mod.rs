//! Load clients for echo servers: what they are told, what they measure, how shards stay in step.
//!
//! Each shard runs one instance over its share of the connections. The control thread waits until
//! all are connected, names a common start, and reads what the shards publish once a second; it
//! never touches their state. A client measures from the intended start of each message, so a
//! server that stalls cannot hide it.

mod datagram;
mod flood;
mod instants;
pub(crate) mod pattern;
mod plan;
mod schedule;
pub(crate) mod shared;
mod stream;

use std::net::{IpAddr, SocketAddr};

use ringmill_engine::{Address, Nanos};

pub use self::datagram::DatagramLoad;
pub use self::flood::{Flood, FloodConfig};
pub use self::instants::{Instants, Spacing};
pub use self::plan::{PLAN_LINES_MAX, PlanError, RatePlan};
pub use self::shared::{Failure, Phase, Published, Shared, Tally, Unsent};
pub use self::stream::StreamLoad;

/// The largest message, bytes.
pub const MESSAGE_LEN_MAX: usize = pattern::WINDOW_MAX;
/// Connects in flight on one shard: more only overflows the server's queue of new connections.
pub(crate) const CONNECTS_IN_FLIGHT_MAX: usize = 256;
/// Between two publications to the control thread.
pub(crate) const PUBLISH_INTERVAL: Nanos = 100_000_000;
/// How long after the end answers are still awaited.
const GRACE: Nanos = 1_000_000_000;

/// How messages are spaced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Closed loop: the next message follows the answer to the one before.
    Closed,
    /// Open loop at a constant rate, messages per second over all connections of all shards.
    Constant(f64),
    /// Open loop with exponential gaps.
    Poisson(f64),
    /// Nothing is sent: the connections are only held.
    Idle,
}

/// What a load run does, the same on every shard.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to.
    pub target: Address,
    /// Connections (TCP, Unix) or flows (UDP sockets) over all shards.
    pub connections: usize,
    /// Bytes in each message: 1 to [`MESSAGE_LEN_MAX`], at most 65,507 for datagrams.
    pub message_len: usize,
    /// Messages outstanding on each connection; the most that may be in an open loop.
    pub depth: usize,
    /// Closed or open loop.
    pub arrivals: Arrivals,
    /// Compare every echoed byte.
    pub verify: bool,
    /// Local addresses, dealt to the connections in turn; empty lets the kernel choose.
    pub sources: Vec<IpAddr>,
    /// A datagram without an answer for this long is lost.
    pub datagram_timeout: Nanos,
    /// Messages of the measured time over all shards: no more are sent, and when their answers are
    /// there, the run ends. It ends at the end of its time if that comes first.
    pub messages: Option<u64>,
    /// Seed of the arrivals.
    pub seed: u64,
    /// Close with RST instead of FIN: leaves no TIME_WAIT behind.
    pub reset_on_close: bool,
}

impl Config {
    /// The part of `total` that belongs to a shard, the first ones taking the remainder.
    pub(crate) fn share(total: usize, shard: u16, shards: u16) -> usize {
        let (shard, shards) = (usize::from(shard), usize::from(shards));
        total / shards + usize::from(shard < total % shards)
    }

    /// The part of [`Config::messages`] that belongs to a shard: that of its connections, whose
    /// numbers begin with `first` and are `share`. The parts of all shards add up exactly.
    fn budget(&self, first: usize, share: usize) -> Option<u64> {
        let messages = u128::from(self.messages?);
        let connections = self.connections.max(1) as u128;
        let until = |number: usize| messages * number as u128 / connections;
        Some((until(first + share) - until(first)) as u64)
    }

    /// The local address of a connection.
    fn source(&self, number: usize) -> Option<SocketAddr> {
        let count = self.sources.len();
        (count > 0).then(|| SocketAddr::new(self.sources[number % count], 0))
    }
}

/// What the control thread tells the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// All shards are connected: start at this moment, measure from `measure` to `end`.
    Begin {
        /// When the first message is sent.
        start: Nanos,
        /// When counting starts.
        measure: Nanos,
        /// When the last message may be sent.
        end: Nanos,
    },
    /// End now: the user interrupted.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (total, shards) in [(0, 1), (1, 3), (10, 3), (100, 7)] {
            let sum: usize = (0..shards)
                .map(|shard| Config::share(total, shard, shards))
                .sum();
            assert_eq!(sum, total, "{total} over {shards}");
        }
    }

    #[test]
    fn budgets_add_up_and_follow_the_connections() {
        for (messages, connections, shards, expected) in [
            (1000, 2, 1, &[1000][..]),
            (1000, 1, 2, &[1000, 0]),
            (1000, 100, 2, &[500, 500]),
            (1000, 10, 3, &[400, 300, 300]),
            (1, 3, 3, &[0, 0, 1]),
            (0, 3, 2, &[0, 0]),
            (u64::MAX, 3, 3, &[u64::MAX / 3; 3]),
        ] {
            let config = Config {
                target: Address::Ip(SocketAddr::from(([127, 0, 0, 1], 7))),
                connections,
                message_len: 1,
                depth: 1,
                arrivals: Arrivals::Closed,
                verify: true,
                sources: Vec::new(),
                datagram_timeout: 1,
                messages: Some(messages),
                seed: 0,
                reset_on_close: false,
            };
            let mut first = 0;
            let budgets: Vec<u64> = (0..shards)
                .map(|shard| {
                    let share = Config::share(connections, shard, shards);
                    first += share;
                    config.budget(first - share, share).expect("a budget")
                })
                .collect();
            assert_eq!(budgets, expected, "{messages} over {connections}");
            assert_eq!(budgets.iter().sum::<u64>(), messages);
            let unlimited = Config {
                messages: None,
                ..config
            };
            assert_eq!(unlimited.budget(0, connections), None);
        }
    }
}
