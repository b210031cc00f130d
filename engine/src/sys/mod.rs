//! The kernel boundary: memory maps, socket calls and control messages behind safe functions.
//!
//! Every `unsafe` block of the project that is not in a driver (or in a test) is here, with the reason why it is
//! sound. Nothing here knows a protocol, a shard or a policy.

pub(crate) mod batch;
pub mod buffer;
pub mod clock;
pub mod eventfd;
pub(crate) mod io;
pub mod message;
pub(crate) mod placement;
pub(crate) mod poll;
pub mod socket;
