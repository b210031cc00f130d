//! The ringmill command line.

pub mod endpoint;
pub mod fail_if;
pub mod report;
pub mod units;
