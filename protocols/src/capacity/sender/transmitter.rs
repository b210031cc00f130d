//! One of the two timers of a sender: what a row has it send, when, and how much of it is caught up
//! after a late tick. What a peer's row says is bounded here.
//!
//! The engine's pacer has one rate for its life and bounds ticks; here the row may change with every
//! trial, in step with what was sent before, and the bound is in time and bytes.

use rand::Rng;
use rand::rngs::SmallRng;
use ringmill_engine::time::Nanos;

use crate::capacity::pdu::{Load, RateStructure};
use crate::capacity::rates::{BURST_MAX, INTERVAL_MIN_US, PAYLOAD_BYTES_MAX, Size};

/// Lateness that is caught up: two to three time slices of a busy machine's scheduler. More of a
/// burst than this would rather measure the queue of the path than its rate.
pub const CATCH_UP_MAX: Nanos = 10_000_000;

/// Payload in bytes that is caught up at once: at the highest rows 10 ms would be 90 MB, and who
/// handles that much in one turn hears nothing meanwhile.
pub const CATCH_UP_BYTES_MAX: u64 = 16 << 20;

/// One of the two timers of a sender, and what it sends.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Transmitter {
    pub(super) interval: Nanos,
    pub(super) payload: Size,
    pub(super) burst: u32,
    pub(super) addon: Option<Size>,
    /// Ticks that are caught up at once.
    ticks_max: u64,
    pub(super) deadline: Option<Nanos>,
    /// Datagrams that the socket did not take and that the next tick sends too.
    pub(super) owed: u32,
}

/// Ticks that are due.
pub(super) struct Due {
    /// That go together.
    pub(super) ticks: u64,
    /// Datagrams that the row wanted in them and in those given up.
    pub(super) wanted: u64,
    /// Datagrams of ticks that are given up.
    pub(super) missed: u64,
}

impl Transmitter {
    /// Both transmitters of a row, off.
    pub(super) fn pair(rate: &RateStructure, ipv6: bool) -> [Self; 2] {
        let first = (rate.tx_interval1, rate.udp_payload1, rate.burst_size1);
        let second = (rate.tx_interval2, rate.udp_payload2, rate.burst_size2);
        [
            Self::of(first, None, ipv6),
            Self::of(second, size(rate.udp_addon2, ipv6), ipv6),
        ]
    }

    fn of((interval_us, payload, burst): (u32, u32, u32), addon: Option<Size>, ipv6: bool) -> Self {
        let interval_us = match interval_us {
            0 => 0,
            interval => interval.max(INTERVAL_MIN_US),
        };
        let interval = Nanos::from(interval_us) * 1_000;
        let payload = size(payload, ipv6);
        let burst = payload.map_or(0, |_| burst.min(BURST_MAX));
        let payload = payload.unwrap_or_default();
        let bytes = u64::from(burst) * u64::from(payload.max)
            + addon.map_or(0, |addon| u64::from(addon.max));
        let by_time = CATCH_UP_MAX.checked_div(interval).unwrap_or(1);
        let by_bytes = CATCH_UP_BYTES_MAX.checked_div(bytes).unwrap_or(u64::MAX);
        Self {
            interval,
            payload,
            burst,
            addon,
            ticks_max: by_time.min(by_bytes).max(1),
            deadline: None,
            owed: 0,
        }
    }

    fn per_tick(&self) -> u64 {
        u64::from(self.burst) + u64::from(self.addon.is_some())
    }

    /// Ticks may go as one burst when all datagrams are alike.
    fn merges(&self) -> bool {
        self.addon.is_none() && !self.payload.is_random()
    }

    /// Datagrams that may be owed: as many as are caught up.
    pub(super) fn owed_max(&self) -> u64 {
        self.ticks_max * u64::from(self.burst)
    }

    /// Ticks that are due and go together; `None` if there is none. Those beyond what is caught up
    /// are given up, oldest first.
    #[inline]
    pub(super) fn take_ticks(&mut self, now: Nanos) -> Option<Due> {
        let mut deadline = self.deadline?;
        let late = now.checked_sub(deadline)?;
        let (mut ticks, mut missed) = (1, 0);
        // Mostly a tick is in time, and the division is spared.
        if late >= self.interval {
            ticks += late / self.interval;
            let beyond = ticks.saturating_sub(self.ticks_max);
            deadline += beyond * self.interval;
            missed = beyond * self.per_tick();
            ticks -= beyond;
            if !self.merges() {
                ticks = 1;
            }
        }
        self.deadline = Some(deadline + ticks * self.interval);
        Some(Due {
            ticks,
            wanted: ticks * self.per_tick() + missed,
            missed,
        })
    }
}

/// The UDP payload that a size of a row means, within bounds; `None` for 0.
pub(super) fn size(wire: u32, ipv6: bool) -> Option<Size> {
    let bytes = (wire & !RateStructure::RANDOM).min(PAYLOAD_BYTES_MAX);
    if bytes == 0 {
        return None;
    }
    let size = Size::of(bytes | wire & RateStructure::RANDOM, ipv6);
    let least = Load::HEADER_LEN as u32;
    Some(Size {
        min: size.min.max(least),
        max: size.max.max(least),
    })
}

/// A size in bytes for one burst.
#[inline]
pub(super) fn draw(size: Size, rng: &mut SmallRng) -> u16 {
    let bytes = if size.is_random() {
        rng.random_range(size.min..=size.max)
    } else {
        size.max
    };
    // At most the largest payload of a row.
    bytes as u16
}
