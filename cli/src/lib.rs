//! The ringmill command line.

pub mod endpoint;
pub mod units;
