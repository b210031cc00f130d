//! The ringmill command line.

pub mod endpoint;
