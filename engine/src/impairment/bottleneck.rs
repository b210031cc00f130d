//! A bottleneck: a queue that is served at a rate, in virtual time.
//!
//! What waits is served at exact moments however late the caller looks; the fraction of a nanosecond
//! that a service takes is carried on, so the rate does not drift. Managed by tail drop, CoDel
//! (RFC 8289) or RED (Floyd and Jacobson 1993). Nothing here reads a clock or draws a number.

use std::collections::VecDeque;

use super::NANOS_PER_MICRO;
use super::counters::ImpairmentCounters;
use super::model::{Queue, Rate};
use crate::time::NANOS_PER_SECOND;
use crate::{Ecn, Nanos};

/// Not ECN-capable (RFC 3168 §5).
pub const ECN_NOT_CAPABLE: Ecn = 0b00;
/// Congestion experienced (RFC 3168 §5).
pub const ECN_CE: Ecn = 0b11;

/// RFC 8289 §4.2: a queue of no more than one full-sized packet is no reason to drop.
const FULL_PACKET_BYTES: u64 = 1_500;

/// Why a queue did not take a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It was full.
    Full,
    /// RED chose it.
    Red,
}

/// A datagram that has been served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served<T> {
    /// When its last bit was through.
    pub at: Nanos,
    /// Its ECN field, perhaps marked.
    pub ecn: Ecn,
    /// What the caller gave.
    pub item: T,
}

#[derive(Debug)]
struct Waiting<T> {
    arrived: Nanos,
    bytes: u64,
    ecn: Ecn,
    item: T,
}

/// A queue and its server.
#[derive(Debug)]
pub struct Bottleneck<T> {
    waiting: VecDeque<Waiting<T>>,
    waiting_bytes: u64,
    /// Bytes of the datagram that is being served until `free_at`.
    served_bytes: u64,
    free_at: Nanos,
    /// What the last service took beyond whole nanoseconds, in parts of one: the numerator over the
    /// rate in bits per second.
    carry: u128,
    codel: Codel,
    red: Red,
}

impl<T> Default for Bottleneck<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            served_bytes: 0,
            free_at: 0,
            carry: 0,
            codel: Codel::default(),
            red: Red::default(),
        }
    }
}

impl<T> Bottleneck<T> {
    /// Takes a datagram that arrives `now`, not earlier than the last. Serve what is due
    /// ([`serve`](Self::serve)) before. `draw` is RED's random number in 0 ≤ x < 1.
    ///
    /// # Errors
    /// Why it is dropped; it was counted.
    pub fn offer(
        &mut self,
        now: Nanos,
        (bytes, mut ecn): (usize, Ecn),
        item: T,
        rate: &Rate,
        draw: f64,
        counters: &ImpairmentCounters,
    ) -> Result<(), Refused> {
        let bytes = bytes as u64 + rate.overhead_bytes;
        let in_service = if self.free_at > now {
            self.served_bytes
        } else {
            0
        };
        let queued = self.waiting_bytes + in_service;
        if let Queue::Red { .. } = rate.queue {
            let idle = (queued == 0).then(|| now.saturating_sub(self.free_at));
            match self.red.decide(queued, idle, rate, (ecn, draw)) {
                Verdict::Pass => {}
                Verdict::Mark => {
                    ecn = ECN_CE;
                    counters.marked.add(1);
                }
                Verdict::Drop => {
                    counters.red.add(1);
                    return Err(Refused::Red);
                }
            }
        }
        // One datagram always finds room, however small the queue.
        if queued > 0 && queued + bytes > rate.queue_bytes_max {
            counters.queue_full.add(1);
            return Err(Refused::Full);
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting {
            arrived: now,
            bytes,
            ecn,
            item,
        });
        Ok(())
    }

    /// Serves all whose turn has come by `now`.
    pub fn serve(
        &mut self,
        now: Nanos,
        rate: &Rate,
        counters: &ImpairmentCounters,
        mut served: impl FnMut(Served<T>),
    ) {
        while let Some(at) = self.next().filter(|at| *at <= now) {
            let Some(mut head) = self.waiting.pop_front() else {
                return;
            };
            self.waiting_bytes -= head.bytes;
            match self
                .codel
                .decide(at, &head, self.waiting_bytes, &rate.queue)
            {
                Verdict::Pass => {}
                Verdict::Mark => {
                    head.ecn = ECN_CE;
                    counters.marked.add(1);
                }
                Verdict::Drop => {
                    counters.codel.add(1);
                    continue;
                }
            }
            // One bit takes 10⁹ / rate ns.
            let rate = u128::from(rate.bits_per_second.max(1));
            let parts = u128::from(head.bytes * 8) * u128::from(NANOS_PER_SECOND)
                + if at == self.free_at { self.carry } else { 0 };
            self.carry = parts % rate;
            self.free_at = at + (parts / rate) as Nanos;
            self.served_bytes = head.bytes;
            served(Served {
                at: self.free_at,
                ecn: head.ecn,
                item: head.item,
            });
        }
    }

    /// When the next service begins: look again then.
    #[must_use]
    pub fn next(&self) -> Option<Nanos> {
        self.waiting
            .front()
            .map(|head| head.arrived.max(self.free_at))
    }

    /// Datagrams that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Lets everything go at once: the bottleneck is gone.
    pub fn open(&mut self, now: Nanos, mut served: impl FnMut(Served<T>)) {
        self.waiting_bytes = 0;
        for Waiting { ecn, item, .. } in self.waiting.drain(..) {
            served(Served { at: now, ecn, item });
        }
        *self = Self::default();
    }

    /// Bytes that wait, overhead included.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Mark,
    Drop,
}

fn mark_or_drop(ecn: Ecn, marks: bool) -> Verdict {
    if marks && ecn != ECN_NOT_CAPABLE {
        Verdict::Mark
    } else {
        Verdict::Drop
    }
}

/// The state of RFC 8289 §5.
#[derive(Debug, Default)]
struct Codel {
    first_above: Option<Nanos>,
    drop_next: Nanos,
    count: u32,
    last_count: u32,
    dropping: bool,
}

impl Codel {
    /// Decides about the head of the queue when it is to be served.
    fn decide<T>(
        &mut self,
        now: Nanos,
        head: &Waiting<T>,
        left_bytes: u64,
        queue: &Queue,
    ) -> Verdict {
        let Queue::Codel {
            target_us,
            interval_us,
            ecn,
        } = *queue
        else {
            return Verdict::Pass;
        };
        let interval = interval_us * NANOS_PER_MICRO;
        let too_long = self.is_too_long(
            now,
            now - head.arrived,
            left_bytes,
            (target_us * NANOS_PER_MICRO, interval),
        );
        if !too_long {
            self.dropping = false;
            return Verdict::Pass;
        }
        if self.dropping {
            if now < self.drop_next {
                return Verdict::Pass;
            }
            self.count += 1;
            self.drop_next = control_law(self.drop_next, interval, self.count);
        } else {
            self.dropping = true;
            // Begin near the rate that controlled the queue the last time.
            let since = self.count - self.last_count;
            let recent = now.saturating_sub(self.drop_next) < 16 * interval;
            self.count = if since > 1 && recent { since } else { 1 };
            self.drop_next = control_law(now, interval, self.count);
            self.last_count = self.count;
        }
        mark_or_drop(head.ecn, ecn)
    }

    /// Whether the time in the queue has been above the target for a whole interval.
    fn is_too_long(
        &mut self,
        now: Nanos,
        sojourn: Nanos,
        left_bytes: u64,
        (target, interval): (Nanos, Nanos),
    ) -> bool {
        if sojourn < target || left_bytes <= FULL_PACKET_BYTES {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now + interval);
                false
            }
            Some(since) => now >= since,
        }
    }
}

/// RFC 8289 §5.3: the next drop comes sooner the more there were.
fn control_law(at: Nanos, interval: Nanos, count: u32) -> Nanos {
    // The square root is exact by IEEE 754: the same on every machine.
    at + (interval as f64 / f64::from(count.max(1)).sqrt()) as Nanos
}

/// The state of Floyd and Jacobson 1993, figure 2.
#[derive(Debug, Default)]
struct Red {
    average: f64,
    /// Datagrams since the last that was chosen; none yet above the minimum.
    since: Option<u32>,
}

impl Red {
    fn decide(
        &mut self,
        queued: u64,
        idle: Option<Nanos>,
        rate: &Rate,
        (field, draw): (Ecn, f64),
    ) -> Verdict {
        let Queue::Red {
            bytes_min,
            bytes_max,
            probability_max,
            weight,
            ecn,
        } = rate.queue
        else {
            return Verdict::Pass;
        };
        match idle {
            // As if so many full packets had found the queue empty.
            Some(idle) => {
                let packet = u128::from(FULL_PACKET_BYTES * 8) * u128::from(NANOS_PER_SECOND)
                    / u128::from(rate.bits_per_second.max(1));
                let packets = u128::from(idle) / packet.max(1);
                self.average *= power(1.0 - weight, packets);
            }
            None => self.average += weight * (queued as f64 - self.average),
        }
        let (min, max) = (bytes_min as f64, bytes_max as f64);
        if self.average < min {
            self.since = None;
            return Verdict::Pass;
        }
        if self.average >= max {
            self.since = Some(0);
            return Verdict::Drop;
        }
        let since = self.since.map_or(0, |since| since.saturating_add(1));
        self.since = Some(since);
        let base = probability_max * (self.average - min) / (max - min);
        let spread = 1.0 - f64::from(since) * base;
        let chosen = spread <= 0.0 || draw < base / spread;
        if !chosen {
            return Verdict::Pass;
        }
        self.since = Some(0);
        mark_or_drop(field, ecn)
    }
}

/// `base` to the power of `exponent` by squaring: the same on every machine, which `powf` is not.
fn power(base: f64, mut exponent: u128) -> f64 {
    let (mut result, mut factor) = (1.0, base);
    while exponent > 0 && result > 0.0 {
        if exponent & 1 == 1 {
            result *= factor;
        }
        factor *= factor;
        exponent >>= 1;
    }
    result
}
