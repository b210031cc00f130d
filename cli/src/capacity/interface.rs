//! What a network interface moves: its byte counters in /sys, read once for each sub-interval.

use std::io;
use std::path::PathBuf;

use ringmill_engine::Nanos;
use ringmill_protocols::capacity::intervals::{InterfaceRate, interface_mbps};
use ringmill_protocols::capacity::parameters::Direction;

/// Watches one interface.
#[derive(Debug)]
pub struct Interface {
    test: PathBuf,
    other: PathBuf,
    last: (Nanos, u64, u64),
}

impl Interface {
    /// From now on; the direction is that of the test.
    ///
    /// # Errors
    /// There is no such interface, or its counters cannot be read.
    pub fn watch(name: &str, direction: Direction, now: Nanos) -> io::Result<Self> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(io::ErrorKind::NotFound.into());
        }
        let counter = |counter: &str| {
            PathBuf::from(format!("/sys/class/net/{name}/statistics/{counter}_bytes"))
        };
        let (test, other) = match direction {
            Direction::Upstream => (counter("tx"), counter("rx")),
            Direction::Downstream => (counter("rx"), counter("tx")),
        };
        let mut interface = Self {
            test,
            other,
            last: (now, 0, 0),
        };
        interface.last = interface.read(now)?;
        Ok(interface)
    }

    fn read(&self, now: Nanos) -> io::Result<(Nanos, u64, u64)> {
        let number = |path: &PathBuf| {
            let text = std::fs::read_to_string(path)?;
            text.trim().parse().map_err(io::Error::other)
        };
        Ok((now, number(&self.test)?, number(&self.other)?))
    }

    /// The rate since this was last asked.
    pub fn rate(&mut self, now: Nanos) -> InterfaceRate {
        let Ok(read) = self.read(now) else {
            return InterfaceRate::default();
        };
        let (before, test, other) = std::mem::replace(&mut self.last, read);
        let elapsed_us = now.saturating_sub(before) / 1_000;
        InterfaceRate {
            test_mbps: interface_mbps(test, read.1, elapsed_us),
            other_mbps: interface_mbps(other, read.2, elapsed_us),
        }
    }
}
