//! The ringmill command line.

pub mod endpoint;
pub mod report;
pub mod units;
