//! From sub-intervals to results: those of all connections gathered, summed up, and the best of them
//! (RFC 9097 sections 6.3 and 6.6).
//!
//! Plain numbers only: how they are printed is not decided here.

use super::adjust::average_ms;
use super::intervals::{
    Delivery, InterfaceRate, Interval, Rates, Spread, SubInterval, Times, least,
};

/// Gathers the sub-intervals of all connections of a client.
#[derive(Debug, Clone, Default)]
pub struct Gatherer {
    open: Option<Interval>,
    closed: u32,
    late: u32,
}

impl Gatherer {
    /// Adds what one connection had. When that is of a later sub-interval than the open one, the
    /// open one is closed and returned. What comes after its sub-interval was closed is counted and
    /// left out.
    pub fn add(&mut self, part: &SubInterval, ipv6: bool, active: u32) -> Option<Interval> {
        if part.number <= self.closed || self.open.is_some_and(|open| part.number < open.number) {
            self.late += 1;
            return None;
        }
        let closed = if self.open.is_some_and(|open| open.number < part.number) {
            self.close(active)
        } else {
            None
        };
        self.open.get_or_insert_default().add(part, ipv6);
        closed
    }

    /// Closes the open sub-interval if as many connections as are active have reported.
    pub fn check(&mut self, active: u32) -> Option<Interval> {
        if self.open.is_some_and(|open| open.reported >= active) {
            self.close(active)
        } else {
            None
        }
    }

    /// Closes the open sub-interval: at the end of the test.
    pub fn close(&mut self, active: u32) -> Option<Interval> {
        let mut closed = self.open.take()?;
        closed.active_connections = active;
        self.closed = closed.number;
        Some(closed)
    }

    /// Reports that came too late for their sub-interval.
    #[must_use]
    pub fn late(&self) -> u32 {
        self.late
    }
}

/// What the sub-intervals of one mode of the test come to: of all, unless the test is bimodal.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    /// Number of the first sub-interval, 0 for none.
    pub first: u32,
    /// Number of the last.
    pub last: u32,
    /// How many there are.
    pub intervals: u32,
    /// Connections that were active in the last.
    pub active_connections: u32,
    /// Means of the rates of the sub-intervals.
    pub rates: Rates,
    /// Mean of the interface's rates.
    pub interface: Option<InterfaceRate>,
    /// Sums.
    pub delivery: Delivery,
    /// One-way delay variation; the average is that of the sub-intervals' averages.
    pub delay_var: Spread,
    /// Round-trip delay variation.
    pub rtt_var: Spread,
    /// Least one-way delay in ms, the difference of the clocks included.
    pub one_way_min_ms: i64,
    /// Least round-trip time in ms, 0 if there was none.
    pub rtt_min_ms: u32,
    /// The sub-interval with the highest rate, the first of equals.
    pub maximum: Interval,
}

/// Sums up one mode.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    first: u32,
    intervals: u32,
    rate_sums: Rates,
    interface_sums: Option<InterfaceRate>,
    delivery: Delivery,
    delay_var: Times,
    delay_averages: u64,
    rtt_var: Times,
    clock_delta_min_ms: i64,
    rtt_min_ms: Option<u32>,
    last: Interval,
    maximum: Interval,
}

impl Tally {
    fn add(&mut self, interval: &Interval, by_interface: bool) {
        let higher = if by_interface {
            let rate = |interval: &Interval| interval.interface.map_or(0.0, |rate| rate.test_mbps);
            rate(interval) > rate(&self.maximum)
        } else {
            interval.rates.ip > self.maximum.rates.ip
        };
        if self.intervals == 0 || higher {
            self.maximum = *interval;
        }
        if self.intervals == 0 {
            self.first = interval.number;
            self.clock_delta_min_ms = interval.clock_delta_min_ms;
        }
        self.intervals += 1;
        self.rate_sums.add(&interval.rates);
        if let Some(rate) = interval.interface {
            let sums = self.interface_sums.get_or_insert_default();
            sums.test_mbps += rate.test_mbps;
            sums.other_mbps += rate.other_mbps;
        }
        self.delivery.add(&interval.delivery);
        self.delay_var.add(&interval.delay_var);
        self.delay_averages += u64::from(interval.delay_var.spread().avg_ms);
        self.rtt_var.add(&interval.rtt_var);
        self.clock_delta_min_ms = self.clock_delta_min_ms.min(interval.clock_delta_min_ms);
        self.rtt_min_ms = least(self.rtt_min_ms, interval.rtt_min_ms);
        self.last = *interval;
    }

    fn summary(&self) -> Summary {
        let count = f64::from(self.intervals.max(1));
        Summary {
            first: self.first,
            last: self.last.number,
            intervals: self.intervals,
            active_connections: self.last.active_connections,
            rates: self.rate_sums.divided(count),
            interface: self.interface_sums.map(|sums| InterfaceRate {
                test_mbps: sums.test_mbps / count,
                other_mbps: sums.other_mbps / count,
            }),
            delivery: self.delivery,
            delay_var: Spread {
                avg_ms: average_ms(self.delay_averages, self.intervals.into()),
                ..self.delay_var.spread()
            },
            rtt_var: self.rtt_var.spread(),
            one_way_min_ms: self.clock_delta_min_ms,
            rtt_min_ms: self.rtt_min_ms.unwrap_or(0),
            maximum: self.maximum,
        }
    }
}

/// What a whole test comes to, by one mode or by two.
#[derive(Debug, Clone, Default)]
pub struct Results {
    first_mode: u32,
    by_interface: bool,
    all: Tally,
    modes: [Tally; 2],
}

impl Results {
    /// Nothing yet. The sub-intervals up to `first_mode` are a mode of their own, 0 for a test with
    /// one mode; `by_interface` has the interface's rate decide the maximum.
    #[must_use]
    pub fn new(first_mode: u32, by_interface: bool) -> Self {
        Self {
            first_mode,
            by_interface,
            ..Self::default()
        }
    }

    /// Adds a sub-interval, in order.
    pub fn add(&mut self, interval: &Interval) {
        self.all.add(interval, self.by_interface);
        let mode = usize::from(self.first_mode > 0 && interval.number > self.first_mode);
        self.modes[mode].add(interval, self.by_interface);
    }

    /// The whole test as one mode.
    #[must_use]
    pub fn whole(&self) -> Summary {
        self.all.summary()
    }

    /// Mode by mode: one, or two once a bimodal test has come to its second mode. None without any
    /// sub-interval.
    pub fn modes(&self) -> impl Iterator<Item = Summary> {
        self.modes
            .iter()
            .filter(|mode| mode.intervals > 0)
            .map(Tally::summary)
    }
}

#[cfg(test)]
mod tests;
