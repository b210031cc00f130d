//! The ringmill command line: flags → configuration → shards → report. It knows no packet.

#![forbid(unsafe_code)]

pub mod args;
pub mod as_text;
pub mod capacity;
pub mod chat;
pub mod commands;
pub mod config;
pub mod console;
pub mod dns;
pub mod doctor;
pub mod endpoint;
pub mod exit;
pub mod fail_if;
pub mod firewall;
#[doc(hidden)]
pub mod fuzzing;
pub mod launch;
pub mod many_hosts;
pub mod metrics;
pub mod multicast;
pub mod printer;
pub mod report;
pub mod server;
mod server_process;
pub mod service;
pub mod signals;
pub mod start;
pub mod tune;
pub mod units;

pub use commands::main;
