//! DNS: an open-loop load of queries over very many connections, and a server with a fixed answer.
//!
//! [`DnsLoad`] asks for names at the instants of a [`RatePlan`], each time on a connection chosen at
//! random, whether or not answers come. It never turns into a closed loop: a query that cannot leave
//! within [`LATE_MAX`] of its instant, or whose connection has no room, is given up and counted.
//! [`FixedAnswer`] is what measures clients and networks by: it looks nothing up.
//!
//! | file | idea |
//! |---|---|
//! | `message` | names, headers, questions |
//! | `queries` | all queries of a run, encoded once |
//! | `ids` | which answer belongs to which query |
//! | `frames` | messages on a stream |
//! | `client` | the load: its life and its handlers |
//! | `opening` | connections opened at a rate |
//! | `sending` | queries due, spread over the connections |
//! | `figures`, `record` | what is counted, and written line by line |
//! | `server` | the fixed answer |

mod client;
mod figures;
pub mod frames;
pub mod ids;
pub mod message;
mod opening;
mod queries;
mod record;
mod sending;
mod server;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringmill_engine::{Address, Nanos};

use crate::load::RatePlan;

pub use client::DnsLoad;
pub use figures::{DnsCounts, DnsFigures, DnsShared};
pub use queries::{NAMES_MAX, Queries};
pub use record::{HEADER as RECORD_HEADER, Record, RecordKind, Records};
pub use sending::LATE_MAX;
pub use server::{AnswerTemplate, FixedAnswer};

/// What a DNS load does, the same on every shard.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Where to.
    pub target: Address,
    /// Whether it is asked in datagrams.
    pub datagrams: bool,
    /// Connections (UDP: sockets) over all shards.
    pub connections: usize,
    /// Connections opened per second over all shards; as fast as a bounded number in flight allows,
    /// if none.
    pub open_rate: Option<f64>,
    /// Open a connection again that has closed.
    pub reopen: bool,
    /// Queries per second over all connections of all shards, from the start on: the warm-up is part
    /// of it.
    pub plan: Arc<RatePlan>,
    /// Poisson arrivals; evenly spaced ones if not.
    pub poisson: bool,
    /// Of the arrivals and of the choice of connections.
    pub seed: u64,
    /// What is asked.
    pub queries: Arc<Queries>,
    /// A query without an answer for this long is lost.
    pub timeout: Nanos,
    /// Local addresses, dealt to the connections in turn; empty lets the kernel choose.
    pub sources: Vec<IpAddr>,
    /// Close with RST instead of FIN: leaves no TIME_WAIT behind.
    pub reset_on_close: bool,
}

impl DnsConfig {
    /// The local address of a connection.
    fn source(&self, number: usize) -> Option<SocketAddr> {
        let count = self.sources.len();
        (count > 0).then(|| SocketAddr::new(self.sources[number % count], 0))
    }
}
