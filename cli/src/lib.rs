//! The ringmill command line.

pub mod endpoint;
pub mod fail_if;
#[doc(hidden)]
pub mod fuzzing;
pub mod report;
pub mod units;
pub mod doctor;
