//! A soak: very many connections to an echo server, opened at a set rate, kept for a long time with
//! a little traffic on them, some closed and opened again.
//!
//! Each shard runs one instance over its part of the connections. It goes on after every error and
//! counts it by cause. What it keeps of a connection is one [word](word), so that a million of them
//! cost what the engine's own table costs; only messages that are on their way have memory of their
//! own. It must never wait for a connection: nothing here is done "when all are open" but the
//! beginning of the traffic, which the control thread commands.

mod addresses;
mod client;
mod shared;
mod word;

use ringmill_engine::Nanos;

pub use self::addresses::{AddressError, Addresses, Sources};
pub use self::client::Soak;
pub use self::shared::{Phase, Published, Shared, Tally};

/// The largest message, bytes: less than the period of the pattern, so that the two positions of a
/// connection tell how much is on its way.
pub const MESSAGE_LEN_MAX: usize = 16 << 10;

/// How connections that are churned are closed; it is always this end that closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChurnClose {
    /// By FIN: the connection stays in this end's TIME_WAIT for a minute.
    Fin,
    /// By RST: nothing stays.
    Reset,
}

/// What a soak does, the same on every shard.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where from and where to.
    pub addresses: Addresses,
    /// Connections over all shards.
    pub connections: usize,
    /// Connections opened per second over all shards; without, as fast as they are answered.
    pub open_rate: Option<f64>,
    /// Messages per second over all connections, at Poisson instants; 0 sends none.
    pub rate: f64,
    /// Bytes in each message: 1 to [`MESSAGE_LEN_MAX`].
    pub message_len: usize,
    /// Connections closed and opened again per second, at Poisson instants; 0 closes none.
    pub churn_rate: f64,
    /// How those are closed.
    pub churn_close: ChurnClose,
    /// A connection that is not established in this time has failed, ns.
    pub connect_timeout: Nanos,
    /// A connection whose message is not answered in this time is reset and opened again, ns.
    pub answer_timeout: Nanos,
    /// Seed of the instants and of the choice of connections.
    pub seed: u64,
}

impl Config {
    /// What part of the whole a shard has.
    fn part(&self, share: usize) -> f64 {
        share as f64 / self.connections.max(1) as f64
    }
}

/// What the control thread tells the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Traffic and churn last from `start` to `end`, on the monotonic clock.
    Hold {
        /// When the first message may be sent.
        start: Nanos,
        /// When the last may.
        end: Nanos,
    },
    /// End now.
    End,
}
