//! What a seed does to a test: its link, its clocks and its ticks.

use rand::Rng;
use rand::rngs::SmallRng;
use ringmill_protocols::capacity::time::WallTime;

use crate::{MS, SECOND};

/// What a seed does to the test.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) delay: u64,
    pub(crate) jitter: u64,
    pub(crate) stop_loss: f64,
    pub(crate) stop_delay: u64,
    pub(crate) late_ticks: u64,
    pub(crate) full_percent: u32,
    /// When each end's wall clock steps, and by how many nanoseconds.
    pub(crate) clock_steps: [(u64, i64); 2],
    pub(crate) dies_at: u64,
    pub(crate) lingers: bool,
}

impl Trouble {
    pub(crate) fn draw(rng: &mut SmallRng) -> Self {
        let mut some = |chance: f64, most: u64| {
            if rng.random_bool(chance) {
                rng.random_range(0..=most)
            } else {
                0
            }
        };
        let percent = |value: u64| value as f64 / 100.0;
        Self {
            loss: percent(some(0.6, 10)),
            duplication: percent(some(0.5, 5)),
            delay: some(0.8, 100 * MS),
            jitter: some(0.5, 3 * MS),
            stop_loss: percent([0, 0, 50, 90, 100][some(1.0, 4) as usize]),
            stop_delay: some(0.3, 400 * MS),
            late_ticks: some(0.5, 2 * MS),
            full_percent: some(0.2, 30) as u32,
            clock_steps: [0, 1].map(|_| {
                let step = some(0.3, 10 * SECOND) as i64;
                (
                    some(1.0, 3 * SECOND),
                    step - 5 * SECOND as i64 * i64::from(step != 0),
                )
            }),
            dies_at: match some(0.1, 3 * SECOND) {
                0 => u64::MAX,
                time => time,
            },
            lingers: some(1.0, 1) == 1,
        }
    }

    /// How far an end's wall clock is off at a time.
    pub(crate) fn clock(&self, end: usize, now: u64) -> i64 {
        match self.clock_steps[end] {
            (at, step) if now >= at => step,
            _ => 0,
        }
    }
}

/// Moves the time at an offset of a PDU, as a stepped clock would have written it.
pub(crate) fn shift(bytes: &mut [u8], at: usize, by: i64) {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let (sec, nsec) = (word(at), word(at + 4));
    // Zero stands for no time.
    if (sec, nsec) != (0, 0) {
        let time = WallTime { sec, nsec }
            .unix_nanos()
            .saturating_add_signed(by);
        let time = WallTime::from_unix_nanos(time);
        bytes[at..at + 4].copy_from_slice(&time.sec.to_be_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&time.nsec.to_be_bytes());
    }
}
