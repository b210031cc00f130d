//! What the tests over real sockets share: engines on every driver that this host has.
//!
//! Nothing here waits for luck: [`until`] waits for an event and gives up only after a hang guard.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmill_engine::{Address, Builder, DriverChoice, Engine, StartError};

/// Long enough for the slowest machine: reached only when something hangs.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// Runs a test on every driver; says which this host (or this version) does not have.
pub(crate) fn on_every_driver(build: impl Fn() -> Builder, test: impl Fn(&mut Engine)) {
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        match build().driver(driver).start() {
            Ok(mut engine) => {
                test(&mut engine);
                engine.stop();
                engine.join().expect("every shard ends well");
            }
            Err(error @ StartError::Driver { .. }) => println!("skipped: {error}"),
            Err(StartError::Shard { error, .. }) if error.kind() == io::ErrorKind::Unsupported => {
                println!("skipped: the {driver:?} driver is not there");
            }
            Err(error) => panic!("{driver:?}: {error}"),
        }
    }
}

/// The bound internet address of an endpoint.
pub(crate) fn ip(engine: &Engine, endpoint: usize) -> SocketAddr {
    match &engine.addresses()[endpoint].address {
        Address::Ip(address) => *address,
        Address::Unix(path) => panic!("{} is no internet address", path.display()),
    }
}

/// Waits until `happened`, looking often; `what` names it when it does not.
pub(crate) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < HANG, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that differ everywhere, so that a lost or doubled piece shows.
pub(crate) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}
