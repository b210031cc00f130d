//! Helpers of the end-to-end tests: start the real program, read what it says, end it.
//!
//! Every wait has a deadline and every child ends with the value that owns it. Nothing here knows
//! the inside of ringmill: what a test learns, a user could learn the same way.

pub mod crowd;
pub mod link;
pub mod net;
pub mod peer;
pub mod program;
pub mod restrict;

/// The drivers that every test is run with.
pub const DRIVERS: [&str; 2] = ["uring", "epoll"];

/// The drivers that this build and host have; for each other one a line says why it is skipped.
#[must_use]
pub fn drivers() -> Vec<&'static str> {
    DRIVERS
        .into_iter()
        .filter(|driver| match program::probe(driver) {
            Ok(()) => true,
            Err(reason) => {
                skipped(&format!("driver {driver}: {reason}"));
                false
            }
        })
        .collect()
}

/// Says that something was not tested, and why.
pub fn skipped(reason: &str) {
    println!("skipped: {reason}");
}

/// Whether the long versions of tests were asked for (`RINGMILL_LONG=1`).
#[must_use]
pub fn long() -> bool {
    std::env::var_os("RINGMILL_LONG").is_some_and(|value| value == "1")
}
