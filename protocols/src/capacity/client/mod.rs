//! The client of the capacity test: a protocol on shards that sets its connections up, activates
//! them and runs them (RFC 9946, RFC 9097).
//!
//! A connection stays on the shard that it was dealt to, with a socket of its own. What happens goes
//! to the control thread by a bounded queue of [`ClientEvent`]s, what arrives goes to a recorder by
//! another; neither can hold a shard up. The control thread decides when a test with too few
//! connections ends, and says so by [`Command::End`].

mod events;
mod settings;

pub use events::{
    Activated, ClientEvent, Ended, Failure, Happened, Outlet, RECORDS_PER_BATCH, RecordBatch,
};
pub use settings::{ClientSettings, DatagramSizes, Recording};

/// What the control thread tells a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// End all connections now: running ones tell their server, the others are given up.
    End,
}
