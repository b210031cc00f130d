//! The ringmill command line: flags → configuration → shards → report. It knows no packet.

pub mod args;
pub mod commands;
pub mod doctor;
pub mod endpoint;
pub mod exit;
pub mod fail_if;
#[doc(hidden)]
pub mod fuzzing;
pub mod launch;
pub mod report;
pub mod signals;
pub mod units;

pub use commands::main;
