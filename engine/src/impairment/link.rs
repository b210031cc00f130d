//! One direction of one flow: counts its datagrams and keeps what the impairment must remember.
//!
//! Bytes and time in, departures out. It holds what the caller gave, never copies or changes it: the
//! caller applies corruption and ECN as the departure says. What it holds is bounded by the gap of the
//! reordering and the queue of the bottleneck.

use std::collections::VecDeque;

use super::NANOS_PER_MICRO;
use super::bottleneck::{Bottleneck, ECN_NOT_CAPABLE, Refused};
use super::counters::ImpairmentCounters;
use super::decider::{Decider, Decision};
use super::model::{Impairment, Loss, Rate};
use crate::{Ecn, Nanos};

/// Why a datagram does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dropped {
    /// By the loss model.
    Lost,
    /// The queue of the bottleneck was full.
    QueueFull,
    /// The queue was long enough for RED to choose it.
    Red,
    /// It was longer than the largest that passes.
    TooLong,
    /// In a blackout.
    Blackout,
}

impl From<Refused> for Dropped {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::QueueFull,
            Refused::Red => Self::Red,
        }
    }
}

/// What became of a datagram offered to a [`Link`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Why nothing of it arrives; `None` when it does, unless CoDel drops it later.
    pub dropped: Option<Dropped>,
    /// It arrives twice.
    pub duplicated: bool,
    /// It arrives damaged.
    pub corrupted: bool,
    /// It is held back behind later ones, or for a time.
    pub held: bool,
}

/// A datagram that got into the path: what was decided about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Admitted {
    index: u64,
    decision: Decision,
    keep_order: bool,
    hold_max: Nanos,
    /// RED's random number.
    draw: f64,
}

impl Admitted {
    /// RED's random number for it, in 0 ≤ x < 1.
    #[must_use]
    pub fn draw(&self) -> f64 {
        self.draw
    }
}

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure<T> {
    /// When it leaves the impaired path.
    pub at: Nanos,
    /// Its number in the flow.
    pub index: u64,
    /// Whether [`Decider::corrupt`] is to be applied.
    pub corrupted: bool,
    /// Its ECN field from here on.
    pub ecn: Ecn,
    /// What the caller gave.
    pub item: T,
}

#[derive(Debug)]
struct Held<T> {
    /// Goes after the datagram with this number.
    after: u64,
    /// Or at this time.
    expires: Nanos,
    delay: Nanos,
    departure: Departure<T>,
}

/// One direction of one flow.
#[derive(Debug)]
pub struct Link<T> {
    decider: Decider,
    next: u64,
    /// The state of the burst chain at `next - 1`, for the probabilities given here.
    burst: Option<(bool, f64, f64)>,
    last_departure: Nanos,
    held: VecDeque<Held<T>>,
    /// A bottleneck of the flow's own, with its rate.
    bottleneck: Option<Box<Own<T>>>,
}

#[derive(Debug)]
struct Own<T> {
    rate: Rate,
    queue: Bottleneck<(Admitted, T)>,
}

impl<T: Clone> Link<T> {
    /// A link on which nothing has passed.
    #[must_use]
    pub fn new(decider: Decider) -> Self {
        Self {
            decider,
            next: 0,
            burst: None,
            last_departure: 0,
            held: VecDeque::new(),
            bottleneck: None,
        }
    }

    /// Where its decisions come from.
    #[must_use]
    pub fn decider(&self) -> Decider {
        self.decider
    }

    /// Takes the next datagram of the flow, (bytes, ECN field), `now` after the start of the run;
    /// adds what leaves by this to `out`: the datagram, its duplicate, and those held back behind
    /// it. A bottleneck of the model is this flow's own.
    pub fn offer(
        &mut self,
        now: Nanos,
        (bytes, ecn): (usize, Ecn),
        item: T,
        model: &Impairment,
        out: &mut Vec<Departure<T>>,
        counters: &ImpairmentCounters,
    ) -> Outcome {
        self.set_rate(now, model.rate, out, counters);
        let admitted = match self.admit(now, bytes, model, out, counters) {
            Ok(admitted) => admitted,
            Err(dropped) => {
                return Outcome {
                    dropped: Some(dropped),
                    ..Outcome::default()
                };
            }
        };
        let decision = admitted.decision;
        let mut outcome = Outcome {
            dropped: None,
            duplicated: decision.duplicated,
            corrupted: decision.corrupted,
            held: decision.held,
        };
        let Some(mut own) = self.bottleneck.take() else {
            self.pass(now, ecn, admitted, item, out, counters);
            return outcome;
        };
        let (rate, draw) = (own.rate, admitted.draw);
        let item = (admitted, item);
        let refused = own
            .queue
            .offer(now, (bytes, ecn), item, &rate, draw, counters);
        self.bottleneck = Some(own);
        if let Err(refused) = refused {
            self.refused(now, &admitted, out, counters);
            outcome = Outcome {
                dropped: Some(refused.into()),
                ..Outcome::default()
            };
        }
        self.serve(now, out, counters);
        outcome
    }

    /// The first part of the way: whether the next datagram of the flow gets into the path at all.
    ///
    /// # Errors
    /// Why not; it was counted, and what was held back behind it is in `out`.
    pub fn admit(
        &mut self,
        now: Nanos,
        bytes: usize,
        model: &Impairment,
        out: &mut Vec<Departure<T>>,
        counters: &ImpairmentCounters,
    ) -> Result<Admitted, Dropped> {
        let index = self.next;
        self.next += 1;
        counters.offered.add(1);
        let burst = self.burst(index, model);
        let decision = self.decider.decide_in(index, model, burst);
        let admitted = Admitted {
            index,
            decision,
            keep_order: model.keep_order,
            hold_max: model.reordering.hold_us_max * NANOS_PER_MICRO,
            draw: match model.rate {
                Some(_) => self.decider.red(index),
                None => 0.0,
            },
        };
        let too_long = model.datagram_bytes_max.is_some_and(|max| bytes > max);
        let (dropped, counter) = if too_long && decision.lost_if_oversize {
            (Dropped::TooLong, &counters.oversize)
        } else if model.blackouts.iter().any(|blackout| blackout.covers(now)) {
            (Dropped::Blackout, &counters.blackout)
        } else if decision.lost {
            (Dropped::Lost, &counters.lost)
        } else {
            return Ok(admitted);
        };
        counter.add(1);
        self.refused(now, &admitted, out, counters);
        Err(dropped)
    }

    /// Tells that a datagram was dropped behind [`admit`](Self::admit), by a bottleneck: those held
    /// back behind it go.
    pub fn refused(
        &mut self,
        now: Nanos,
        admitted: &Admitted,
        out: &mut Vec<Departure<T>>,
        counters: &ImpairmentCounters,
    ) {
        self.release(|held| held.after <= admitted.index, now, out, counters);
    }

    /// The last part of the way, from the moment `at` which the bottleneck was through with it, or
    /// at which it came when there is none. `ecn` is the field as the bottleneck left it.
    pub fn pass(
        &mut self,
        at: Nanos,
        ecn: Ecn,
        admitted: Admitted,
        item: T,
        out: &mut Vec<Departure<T>>,
        counters: &ImpairmentCounters,
    ) {
        let Admitted {
            index, decision, ..
        } = admitted;
        let ecn = if decision.bleached && ecn != ECN_NOT_CAPABLE {
            counters.bleached.add(1);
            ECN_NOT_CAPABLE
        } else {
            ecn
        };
        counters.corrupted.add(u64::from(decision.corrupted));
        counters.duplicated.add(u64::from(decision.duplicated));
        counters.reordered.add(u64::from(decision.held));
        let departure = |at, item| Departure {
            at,
            index,
            corrupted: decision.corrupted,
            ecn,
            item,
        };
        if decision.duplicated {
            counters.passed.add(1);
            out.push(departure(at + decision.duplicate_delay, item.clone()));
        }
        let mut last = at;
        if decision.behind > 0 {
            self.held.push_back(Held {
                after: index + u64::from(decision.behind),
                expires: at + admitted.hold_max,
                delay: decision.delay,
                departure: departure(at, item),
            });
        } else {
            let mut at = at + decision.delay;
            if admitted.keep_order && !decision.held {
                at = at.max(self.last_departure);
            }
            if !decision.held {
                self.last_departure = self.last_departure.max(at);
                last = at;
            }
            counters.passed.add(1);
            out.push(departure(at, item));
        }
        self.release(|held| held.after <= index, last, out, counters);
    }

    /// Lets go of what has waited for long enough: in the bottleneck, or behind others.
    pub fn expire(
        &mut self,
        now: Nanos,
        out: &mut Vec<Departure<T>>,
        counters: &ImpairmentCounters,
    ) {
        self.serve(now, out, counters);
        self.release(|held| held.expires <= now, now, out, counters);
    }

    /// Datagrams that wait: in a bottleneck of the flow's own, or behind others.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let own = self.bottleneck.as_ref();
        self.held.len() + own.map_or(0, |own| own.queue.waiting())
    }

    /// When [`Link::expire`] is to be called next.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Nanos> {
        let held = self.held.iter().map(|held| held.expires).min();
        let own = self.bottleneck.as_ref().and_then(|own| own.queue.next());
        held.into_iter().chain(own).min()
    }

    /// Makes the bottleneck what the model says; what waits in one that is gone goes.
    fn set_rate(
        &mut self,
        now: Nanos,
        rate: Option<Rate>,
        out: &mut Vec<Departure<T>>,
        counters: &ImpairmentCounters,
    ) {
        self.serve(now, out, counters);
        match (&mut self.bottleneck, rate) {
            (Some(own), Some(rate)) => own.rate = rate,
            (None, Some(rate)) => {
                let queue = Bottleneck::default();
                self.bottleneck = Some(Box::new(Own { rate, queue }));
            }
            (Some(_), None) => {
                if let Some(mut own) = self.bottleneck.take() {
                    own.queue.open(now, |served| {
                        let (admitted, item) = served.item;
                        self.pass(now, served.ecn, admitted, item, out, counters);
                    });
                }
            }
            (None, None) => {}
        }
    }

    fn serve(&mut self, now: Nanos, out: &mut Vec<Departure<T>>, counters: &ImpairmentCounters) {
        let Some(mut own) = self.bottleneck.take() else {
            return;
        };
        let rate = own.rate;
        own.queue.serve(now, &rate, counters, |served| {
            let (admitted, item) = served.item;
            self.pass(served.at, served.ecn, admitted, item, out, counters);
        });
        self.bottleneck = Some(own);
    }

    fn release(
        &mut self,
        due: impl Fn(&Held<T>) -> bool,
        earliest: Nanos,
        out: &mut Vec<Departure<T>>,
        counters: &ImpairmentCounters,
    ) {
        if self.held.is_empty() {
            return;
        }
        let (released, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|held| due(held));
        self.held = kept;
        for held in released {
            let mut departure = held.departure;
            // Not before the one that it was held back for.
            departure.at = (departure.at + held.delay).max(earliest);
            counters.passed.add(1);
            out.push(departure);
        }
    }

    fn burst(&mut self, index: u64, model: &Impairment) -> bool {
        let Loss::GilbertElliott {
            good_to_bad,
            bad_to_good,
            ..
        } = model.loss
        else {
            self.burst = None;
            return false;
        };
        let bad = match self.burst {
            Some((bad, p, r)) if p == good_to_bad && r == bad_to_good => {
                self.decider
                    .next_burst(index, bad, good_to_bad, bad_to_good)
            }
            _ => self.decider.burst(index, good_to_bad, bad_to_good),
        };
        self.burst = Some((bad, good_to_bad, bad_to_good));
        bad
    }
}
