//! `ringmill udpst`.

pub mod console;
pub mod getopt;
pub mod json;
pub mod local_time;
pub mod log;
pub mod metadata;
pub mod options;
pub mod stats_file;
