//! The control thread's half of the capacity test: what is neither on a shard nor on the screen.
//!
//! Nothing here knows how a result is printed: both front ends (`ringmill capacity`, `ringmill
//! udpst`) are told by [`FrontEnd`] and print what they like.

pub mod interface;
pub mod network;
pub mod recording;
pub mod servers;
pub mod session;

pub use session::{
    ConnectionOutcome, FrontEnd, Outcome, RecordingName, RecordingPlan, Said, Server, TestOutcome,
    TestPlan, Verdict,
};
