//! The description of a bad network, as it stands in files and is given by flags. Plain data: nothing
//! here decides.

use serde::{Deserialize, Serialize};

use super::NANOS_PER_MICRO;
use crate::Nanos;

/// Jitter, loss and all else for one direction. The default passes everything unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Impairment {
    /// Which datagrams are lost.
    pub loss: Loss,
    /// Time that every datagram takes, microseconds.
    pub delay_us: u64,
    /// Spread of the delay, microseconds: the largest deviation (uniform) or one standard
    /// deviation (normal). A delay is never negative.
    pub jitter_us: u64,
    /// How delays spread.
    pub jitter_distribution: Distribution,
    /// Jitter never lets a datagram overtake an earlier one of its flow.
    pub keep_order: bool,
    /// Probability that a datagram arrives twice.
    pub duplication: f64,
    /// Which datagrams are held back behind later ones.
    pub reordering: Reordering,
    /// Which datagrams are damaged.
    pub corruption: Corruption,
    /// A bottleneck with a queue before it.
    pub rate: Option<Rate>,
    /// Longer datagrams are dropped, never cut. Bytes of payload.
    pub datagram_bytes_max: Option<usize>,
    /// Probability that a longer one is dropped.
    pub oversize_loss: f64,
    /// Probability that the ECN field of a datagram is cleared to "not ECN-capable".
    pub ecn_bleaching: f64,
    /// When nothing passes at all.
    pub blackouts: Vec<Blackout>,
}

impl Default for Impairment {
    fn default() -> Self {
        Self {
            loss: Loss::None,
            delay_us: 0,
            jitter_us: 0,
            jitter_distribution: Distribution::default(),
            keep_order: false,
            duplication: 0.0,
            reordering: Reordering::default(),
            corruption: Corruption::default(),
            rate: None,
            datagram_bytes_max: None,
            oversize_loss: 1.0,
            ecn_bleaching: 0.0,
            blackouts: Vec::new(),
        }
    }
}

/// A model of loss.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case", deny_unknown_fields)]
pub enum Loss {
    /// Nothing is lost.
    #[default]
    None,
    /// Each datagram for itself.
    Uniform {
        /// Probability of loss.
        probability: f64,
    },
    /// Bursts: a chain with a good and a bad state (Gilbert 1960, Elliott 1963), one step for
    /// each datagram of the flow.
    GilbertElliott {
        /// Probability of going from good to bad.
        good_to_bad: f64,
        /// Probability of going from bad to good; a burst lasts 1/this datagrams on average.
        bad_to_good: f64,
        /// Probability of loss in the good state.
        loss_good: f64,
        /// Probability of loss in the bad state.
        loss_bad: f64,
    },
}

/// How delays spread around their mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// Evenly within ± jitter.
    #[default]
    Uniform,
    /// Normal (the sum of twelve uniform draws, so within ± 6 standard deviations): the same
    /// figures on every machine, because no libm function is involved.
    Normal,
}

/// Holding datagrams back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reordering {
    /// Probability that a datagram is held back.
    pub probability: f64,
    /// How many later datagrams of the same flow go first.
    pub gap: u32,
    /// A held datagram goes after this time even if no later ones came, microseconds.
    pub hold_us_max: u64,
    /// Instead of a gap: a held datagram is late by this time, microseconds, whatever passes it.
    pub late_us: Option<u64>,
    /// And by up to this much more, evenly spread, microseconds.
    pub late_random_us: u64,
}

impl Default for Reordering {
    fn default() -> Self {
        Self {
            probability: 0.0,
            gap: 1,
            hold_us_max: 50_000,
            late_us: None,
            late_random_us: 0,
        }
    }
}

/// Damaging datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Corruption {
    /// Probability that a datagram is damaged.
    pub probability: f64,
    /// How many different bits of it are flipped.
    pub bits: u32,
}

impl Default for Corruption {
    fn default() -> Self {
        Self {
            probability: 0.0,
            bits: 1,
        }
    }
}

/// A bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Bits per second that get through: of payload, and of `overhead_bytes` with each datagram.
    pub bits_per_second: u64,
    /// Bytes that may wait or be on their way; a datagram that does not fit any more is dropped.
    pub queue_bytes_max: u64,
    /// Bytes that each datagram takes besides its payload, in rate and queue: 28 for a rate of IPv4
    /// packets, 48 of IPv6.
    #[serde(default)]
    pub overhead_bytes: u64,
    /// What is dropped or marked before the queue is full.
    #[serde(default)]
    pub queue: Queue,
    /// Each flow has a bottleneck of its own; otherwise all flows of the direction share one, where
    /// flows can meet: in the simulator each pair of hosts has its own path.
    #[serde(default)]
    pub per_flow: bool,
}

impl Default for Rate {
    /// 10 Mbit/s with 100 ms of queue.
    fn default() -> Self {
        Self {
            bits_per_second: 10_000_000,
            queue_bytes_max: 125_000,
            overhead_bytes: 0,
            queue: Queue::TailDrop,
            per_flow: false,
        }
    }
}

/// How a queue is managed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields)]
pub enum Queue {
    /// Dropped when full, not before.
    #[default]
    TailDrop,
    /// CoDel (RFC 8289): drops from the head once the smallest time in the queue has been above
    /// the target for an interval.
    Codel {
        /// Acceptable time in the queue, microseconds (RFC 8289 §4.4: 5 ms).
        #[serde(default = "codel_target_us")]
        target_us: u64,
        /// About the longest round trip, microseconds (RFC 8289 §4.3: 100 ms).
        #[serde(default = "codel_interval_us")]
        interval_us: u64,
        /// Mark datagrams that are ECN-capable instead of dropping them.
        #[serde(default)]
        ecn: bool,
    },
    /// Random early detection (Floyd and Jacobson 1993): drops on arrival with a probability that
    /// grows with the average queue.
    Red {
        /// Average queue at which it begins, bytes.
        bytes_min: u64,
        /// Average queue from which everything is dropped, bytes.
        bytes_max: u64,
        /// Probability just below `bytes_max`.
        #[serde(default = "red_probability_max")]
        probability_max: f64,
        /// Weight of the present queue in the average.
        #[serde(default = "red_weight")]
        weight: f64,
        /// Mark datagrams that are ECN-capable instead of dropping them, below `bytes_max`.
        #[serde(default)]
        ecn: bool,
    },
}

/// RFC 8289 §4.4.
#[must_use]
pub const fn codel_target_us() -> u64 {
    5_000
}

/// RFC 8289 §4.3.
#[must_use]
pub const fn codel_interval_us() -> u64 {
    100_000
}

/// The value that the authors of RED recommend since 1997.
#[must_use]
pub const fn red_probability_max() -> f64 {
    0.1
}

/// The queue weight of Floyd and Jacobson 1993, §5.
#[must_use]
pub const fn red_weight() -> f64 {
    0.002
}

/// A time in which nothing passes, counted from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    /// When it begins, microseconds.
    pub from_us: u64,
    /// When it is over, microseconds.
    pub until_us: u64,
    /// Repeat with this period, microseconds.
    #[serde(default)]
    pub every_us: Option<u64>,
}

impl Blackout {
    /// Whether the blackout is on at `elapsed` since the start of the run.
    #[must_use]
    pub fn covers(&self, elapsed: Nanos) -> bool {
        let at = elapsed / NANOS_PER_MICRO;
        if at < self.from_us {
            return false;
        }
        let within = match self.every_us {
            Some(every) if every > 0 => (at - self.from_us) % every,
            _ => at - self.from_us,
        };
        within < self.until_us.saturating_sub(self.from_us)
    }
}

/// A description that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidImpairment {
    /// Not a probability.
    #[error("{name} is {value}, but a probability lies between 0 and 1")]
    Probability {
        /// Which field.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// A time that no test waits for, and that sums would not hold.
    #[error("{name} is {value_us} µs: more than a day")]
    TooLong {
        /// Which field.
        name: &'static str,
        /// Its value, microseconds.
        value_us: u64,
    },
    /// A rate at which nothing would ever pass.
    #[error("rate.bits_per_second is 0: use a blackout to let nothing pass")]
    NoRate,
    /// RED that begins after it ends.
    #[error(
        "rate.queue.bytes_min is {bytes_min}, but must be less than bytes_max, which is {bytes_max}"
    )]
    RedBackwards {
        /// Where it begins.
        bytes_min: u64,
        /// Where it ends.
        bytes_max: u64,
    },
    /// CoDel without time.
    #[error("rate.queue.interval_us is 0: CoDel needs an interval, usually 100000")]
    NoInterval,
    /// A gap of nothing.
    #[error("reordering.gap is 0: a datagram is held back behind at least one other")]
    NoGap,
    /// A blackout that ends before it begins.
    #[error("a blackout from {from_us} µs until {until_us} µs ends before it begins")]
    Backwards {
        /// Its start.
        from_us: u64,
        /// Its end.
        until_us: u64,
    },
}

/// The longest time that makes sense.
const DAY_US: u64 = 86_400_000_000;

impl Impairment {
    /// Whether everything passes unchanged and at once.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let same = Self {
            // What has no effect without its neighbour.
            jitter_distribution: self.jitter_distribution,
            keep_order: self.keep_order,
            oversize_loss: self.oversize_loss,
            reordering: Reordering {
                probability: 0.0,
                ..self.reordering
            },
            corruption: Corruption {
                probability: 0.0,
                ..self.corruption
            },
            ..Self::default()
        };
        *self == same
    }

    /// Whether every field makes sense.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn validate(&self) -> Result<(), InvalidImpairment> {
        let mut probabilities = vec![
            ("duplication", self.duplication),
            ("reordering.probability", self.reordering.probability),
            ("corruption.probability", self.corruption.probability),
            ("oversize_loss", self.oversize_loss),
            ("ecn_bleaching", self.ecn_bleaching),
        ];
        match self.loss {
            Loss::None => {}
            Loss::Uniform { probability } => probabilities.push(("loss.probability", probability)),
            Loss::GilbertElliott {
                good_to_bad,
                bad_to_good,
                loss_good,
                loss_bad,
            } => {
                probabilities.extend([
                    ("loss.good_to_bad", good_to_bad),
                    ("loss.bad_to_good", bad_to_good),
                    ("loss.loss_good", loss_good),
                    ("loss.loss_bad", loss_bad),
                ]);
            }
        }
        if let Some(Queue::Red {
            probability_max,
            weight,
            ..
        }) = self.rate.map(|rate| rate.queue)
        {
            probabilities.extend([
                ("rate.queue.probability_max", probability_max),
                ("rate.queue.weight", weight),
            ]);
        }
        for (name, value) in probabilities {
            if !(0.0..=1.0).contains(&value) {
                return Err(InvalidImpairment::Probability { name, value });
            }
        }
        let (target_us, interval_us) = match self.rate.map(|rate| rate.queue) {
            Some(Queue::Codel {
                target_us,
                interval_us,
                ..
            }) => (target_us, interval_us),
            _ => (0, 0),
        };
        for (name, value_us) in [
            ("delay_us", self.delay_us),
            ("jitter_us", self.jitter_us),
            ("reordering.hold_us_max", self.reordering.hold_us_max),
            ("reordering.late_us", self.reordering.late_us.unwrap_or(0)),
            ("reordering.late_random_us", self.reordering.late_random_us),
            ("rate.queue.target_us", target_us),
            ("rate.queue.interval_us", interval_us),
        ] {
            if value_us > DAY_US {
                return Err(InvalidImpairment::TooLong { name, value_us });
            }
        }
        if self.rate.is_some_and(|rate| rate.bits_per_second == 0) {
            return Err(InvalidImpairment::NoRate);
        }
        match self.rate.map(|rate| rate.queue) {
            Some(Queue::Red {
                bytes_min,
                bytes_max,
                ..
            }) if bytes_min >= bytes_max => {
                return Err(InvalidImpairment::RedBackwards {
                    bytes_min,
                    bytes_max,
                });
            }
            Some(Queue::Codel { interval_us: 0, .. }) => {
                return Err(InvalidImpairment::NoInterval);
            }
            _ => {}
        }
        if self.reordering.probability > 0.0 && self.reordering.gap == 0 {
            return Err(InvalidImpairment::NoGap);
        }
        for &Blackout {
            from_us, until_us, ..
        } in &self.blackouts
        {
            if until_us < from_us {
                return Err(InvalidImpairment::Backwards { from_us, until_us });
            }
        }
        Ok(())
    }
}
