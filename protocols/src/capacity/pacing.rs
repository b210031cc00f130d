//! How the senders of a shard are woken: by timers, or by a shard that does not sleep.
//!
//! Timers are cheap, but some hosts fire them late: a device whose timers have the resolution of its
//! scheduler's tick, a guest whose hypervisor is slow to run it. There a sender catches up in bursts
//! what it should have paced. So a shard that may send measures its timers when it starts, and where
//! they are poor it stays awake while a test sends, at the cost of its CPU. No clock is read here and
//! no timer is set: times go in, deadlines come out.

use ringmill_engine::time::Nanos;

/// What was chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Pacing {
    /// By timers, unless these are found poor.
    #[default]
    Auto,
    /// By timers, however late.
    Timer,
    /// Awake while a test sends.
    Busy,
}

/// One wait of the measurement: the interval of the fastest transmitters.
const WAIT: Nanos = 100_000;

/// Waits of the measurement: some 5 ms on a good host, less than the shortest delay before a
/// transmitter first fires, and enough that a few bad ones do not move the median.
const WAITS: usize = 31;

/// A median lateness from which timers are poor: then every other tick of the fastest transmitters is
/// at least one interval late, and two bursts leave as one. It is the resolution that OB-UDPST asks of
/// a host; its handbook has older devices without it paced busily.
pub const POOR_LATENESS: Nanos = WAIT;

/// How long before a deadline a busy shard stays awake: no timer is later than the coarsest tick of a
/// scheduler (HZ = 100). What has longer to wait, as the lowest row does, may sleep until then.
const AWAKE_AHEAD: Nanos = 10_000_000;

/// What timers were found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Median lateness in ns.
    pub late: Nanos,
    /// They are too late to pace by.
    pub poor: bool,
}

/// A step of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Have a timer fire then.
    Wait(Nanos),
    /// This is how timers are. It comes once.
    Found(Timers),
}

/// The pacing of one shard.
#[derive(Debug, Clone)]
pub struct Pacer {
    pacing: Pacing,
    due: Nanos,
    late: [Nanos; WAITS],
    waits: usize,
    busy: bool,
}

impl Pacer {
    /// As it was chosen.
    #[must_use]
    pub fn new(pacing: Pacing) -> Self {
        Self {
            pacing,
            due: 0,
            late: [0; WAITS],
            waits: 0,
            busy: pacing == Pacing::Busy,
        }
    }

    /// Begins the measurement, if there is something to be decided: when to have the first timer fire.
    #[must_use]
    pub fn begin(&mut self, now: Nanos) -> Option<Nanos> {
        self.due = now + WAIT;
        (self.pacing == Pacing::Auto).then_some(self.due)
    }

    /// Its timer has fired.
    #[must_use]
    pub fn fired(&mut self, now: Nanos) -> Step {
        if let Some(late) = self.late.get_mut(self.waits) {
            *late = now.saturating_sub(self.due);
            self.waits += 1;
        }
        if self.waits < WAITS {
            self.due = now + WAIT;
            return Step::Wait(self.due);
        }
        self.late.sort_unstable();
        let late = self.late[WAITS / 2];
        self.busy = late >= POOR_LATENESS;
        Step::Found(Timers {
            late,
            poor: self.busy,
        })
    }

    /// Until when a shard is to stay awake for the next deadline of a sender, if at all.
    #[inline]
    #[must_use]
    pub fn awake_until(&self, deadline: Nanos, now: Nanos) -> Option<Nanos> {
        let soon = deadline <= now.saturating_add(AWAKE_AHEAD);
        (self.busy && soon).then_some(deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Nanos = 1_000;
    const MS: Nanos = 1_000_000;

    /// Measures timers that are so late in turn; what is found.
    fn measure(pacer: &mut Pacer, late: &[Nanos]) -> Option<Timers> {
        let mut due = pacer.begin(7 * MS)?;
        for late in late.iter().cycle() {
            match pacer.fired(due + late) {
                Step::Wait(next) => {
                    assert_eq!(next, due + late + WAIT);
                    due = next;
                }
                Step::Found(timers) => return Some(timers),
            }
        }
        None
    }

    #[test]
    fn what_is_chosen_and_what_is_found_decide() {
        for (name, pacing, late, found, busy) in [
            ("on time", Pacing::Auto, &[0][..], Some((0, false)), false),
            (
                "a usual host",
                Pacing::Auto,
                &[55],
                Some((55, false)),
                false,
            ),
            (
                "just good enough",
                Pacing::Auto,
                &[99],
                Some((99, false)),
                false,
            ),
            ("poor", Pacing::Auto, &[100], Some((100, true)), true),
            (
                "a tick of 4 ms",
                Pacing::Auto,
                &[1500, 3900],
                Some((1500, true)),
                true,
            ),
            (
                "a few bad ones",
                Pacing::Auto,
                &[50, 60, 9000],
                Some((60, false)),
                false,
            ),
            (
                "most are bad",
                Pacing::Auto,
                &[50, 9000, 9000],
                Some((9000, true)),
                true,
            ),
            ("timers are wanted", Pacing::Timer, &[9000], None, false),
            ("no sleep is wanted", Pacing::Busy, &[0], None, true),
        ] {
            let mut pacer = Pacer::new(pacing);
            let late: Vec<_> = late.iter().map(|late| late * MICRO).collect();
            let want = found.map(|(late, poor)| Timers {
                late: late * MICRO,
                poor,
            });
            assert_eq!(measure(&mut pacer, &late), want, "{name}");
            for (ahead, awake) in [(0, busy), (MS, busy), (10 * MS, busy), (50 * MS, false)] {
                let deadline = 99 * MS + ahead;
                let until = pacer.awake_until(deadline, 99 * MS);
                assert_eq!(until, awake.then_some(deadline), "{name}, {ahead} ns ahead");
            }
        }
    }
}
