//! Timers that have expired, of the protocols and of the engine itself: idle sweeps, the end of a
//! pause in accepting, the deadline of a stop.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Shard;
use crate::Nanos;
use crate::control::Stop;
use crate::driver::Close;
use crate::ids::ServiceId;
use crate::protocol::Closed;
use crate::stream::{ACTIVITY_TICK, State};
use crate::time::from_duration;

/// Table entries looked at in one sweep step, at least and at most: a look at each is a cache miss, and
/// with fifty rings for a million streams the sweeps of idle ones would take a tenth of a CPU.
const SWEEP_STEP: RangeInclusive<u32> = 256..=4096;
/// In so many steps a table is swept, if that is within those bounds.
const SWEEP_STEPS: u32 = 20;

/// Between two sweep steps.
const SWEEP_INTERVAL: Nanos = 100_000_000;

/// The engine's own timers.
pub(super) const ENGINE: ServiceId = ServiceId::MAX;
pub(super) const RESUME_ACCEPT: u64 = 0;
const SWEEP: u64 = 1;
pub(super) const DRAIN_DEADLINE: u64 = 2;

impl Shard {
    pub(super) fn fire_timers(&mut self) {
        while let Some(expired) = self.core.timers.pop_expired(self.core.now) {
            let (service, token) = expired.payload;
            if service == ENGINE {
                self.engine_timer(token);
            } else {
                self.core.tables.metrics.services[usize::from(service)]
                    .timers
                    .add(1);
                self.services[usize::from(service)].timer(&mut self.core, token);
            }
        }
    }

    fn engine_timer(&mut self, token: u64) {
        let core = &mut self.core;
        match token {
            RESUME_ACCEPT => {
                core.accept_paused = false;
                if core.stop == Stop::Run {
                    core.driver.accept(&mut core.tables, true);
                }
            }
            SWEEP => {
                core.sweep_armed = false;
                self.sweep();
            }
            DRAIN_DEADLINE => self.close_everything(),
            _ => {}
        }
    }

    /// Sweeps go on while there is a stream and a timeout: a shard with nothing to do sleeps.
    pub(super) fn arm_sweep(&mut self) {
        let core = &mut self.core;
        if core.sweep_armed || core.tables.streams.live() == 0 {
            return;
        }
        let limits = &core.tables.limits;
        if limits.idle_timeout.is_some() || limits.write_stall_timeout.is_some() {
            core.sweep_armed = true;
            let at = core.now + SWEEP_INTERVAL;
            core.timers.insert(at, (ENGINE, SWEEP));
        }
    }

    /// Looks at the next part of the table for streams that are idle or stalled.
    fn sweep(&mut self) {
        let core = &mut self.core;
        let ticks = |timeout: Option<Duration>| {
            timeout.map(|timeout| {
                u32::try_from(from_duration(timeout).div_ceil(ACTIVITY_TICK)).unwrap_or(u32::MAX)
            })
        };
        let idle = ticks(core.tables.limits.idle_timeout);
        let stall = ticks(core.tables.limits.write_stall_timeout);
        let now = core.tables.active;
        let (from, len) = (core.sweep_at, core.tables.streams.len());
        let step = len.div_ceil(SWEEP_STEPS);
        let step = step.clamp(*SWEEP_STEP.start(), *SWEEP_STEP.end());
        core.sweep_at = if from + step >= len { 0 } else { from + step };
        let overdue: Vec<_> = core
            .tables
            .streams
            .live_in(from..from + step)
            .filter_map(|(index, stream)| {
                let stalled = stream.queue.as_ref().is_some_and(|queue| {
                    stall.is_some_and(|stall| now.wrapping_sub(queue.progress) > stall)
                });
                let idle = idle.is_some_and(|idle| now.wrapping_sub(stream.active) > idle);
                let due =
                    matches!(stream.state, State::Open | State::Draining) && (stalled || idle);
                due.then_some((
                    index,
                    if stalled {
                        Closed::Stalled
                    } else {
                        Closed::Idle
                    },
                ))
            })
            .collect();
        for (index, reason) in overdue {
            let id = core.tables.streams.id(index);
            core.take_down(id, Close::Reset, reason);
        }
    }
}
