//! The server of the capacity test on an engine (RFC 9946): all tests of a process, on all shards,
//! behind one control port.
//!
//! A setup request is examined on the shard where it arrives, and its test goes to the shard with
//! the least load: that one opens the test's socket and runs the test to its end; the answer leaves
//! from where the request came to. Nothing is kept for those who were refused without a good
//! signature, and everything that is kept has a bound: see [`Settings`].
//!
//! | file | idea |
//! |---|---|
//! | `settings` | what an operator chooses, and the bounds |
//! | `shared` | what the shards and the control thread share; the server as the latter holds it |
//! | `control` | one shard: what it owns, and where what happens goes |
//! | `request`, `pending`, `activation`, `running` | a test from its setup request to its end |
//! | `handover` | what the shards tell each other |
//! | `answers` | setup requests of the last seconds, so that a repeat gets the same answer |
//! | `replay` | signatures of the last seconds, so that a replay gets silence |
//! | `sources` | how many pending tests one source has |
//! | `board` | which shard takes the next test |
//! | `ports` | the ports that a shard may give to tests |
//! | `slab`, `test` | the tests of a shard, and one of them |
//! | `output` | from a test to its socket |
//! | `clock` | the wall clock |
//! | `event`, `counters`, `tally` | what the control thread is told, and what is counted |

mod activation;
mod answers;
mod board;
mod clock;
mod control;
mod counters;
mod event;
mod handover;
mod output;
mod pending;
mod ports;
mod replay;
mod request;
mod running;
mod settings;
mod shared;
mod slab;
mod sources;
mod tally;
mod test;

pub use clock::WallClock;
pub use control::Server;
pub use counters::{Peak, Peaks, PeaksSnapshot, ServerCounters, ServerSnapshot};
pub use event::{About, RecordBatch, ServerEvent, TestId, Totals};
pub use handover::Message;
pub use settings::{Listener, Outlets, Settings};
pub use shared::CapacityServer;
