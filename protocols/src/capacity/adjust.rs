//! Rate adjustment: what one trial showed → the row to send by (algorithm B: RFC 9097 section 8.1
//! and appendix A, RFC 9946 section 5.1, TR-471 clause 5.2.1; algorithm C as OB-UDPST has it). Only a server does this.
//!
//! It keeps an index into the sending rate table and nothing of the network: it never reads a clock
//! and never sees a PDU. With a held step (ours only, see [`Adjuster::step`]) a good trial changes
//! nothing, so that a search does not climb past what the sender itself can do.

use super::parameters::{Algorithm, Rate, TestParameters};
use super::rates::{HIGH_SPEED_ROW, ROW_LAST};

/// How many fast steps a congested search goes back.
const BACK_OFF_STEPS: u16 = 3;

/// Algorithm C: single steps before it tries fast ones again, at first and how much more each time.
const RETRY_THRESHOLD_STEP: u32 = 5;

/// What rules the adjustment of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdjustSettings {
    /// What was agreed at activation.
    pub parameters: TestParameters,
    /// The highest row there is.
    pub last_row: u16,
    /// The row never goes beyond this one: the bandwidth that was admitted, where it is enforced.
    pub row_max: Option<u16>,
}

impl AdjustSettings {
    /// By the table of OB-UDPST and without a bandwidth limit.
    #[must_use]
    pub const fn new(parameters: TestParameters) -> Self {
        Self {
            parameters,
            last_row: ROW_LAST,
            row_max: None,
        }
    }
}

/// What one trial interval showed at the receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trial {
    /// Datagrams lost.
    pub loss: u32,
    /// Datagrams out of order.
    pub out_of_order: u32,
    /// Datagrams that came again.
    pub duplicates: u32,
    /// Sum of the one-way delay variations in ms.
    pub delay_var_sum_ms: u32,
    /// How many make that sum.
    pub delay_var_count: u32,
    /// Last round-trip variation in ms, if there was one.
    pub rtt_var_ms: Option<u32>,
    /// Datagrams received.
    pub datagrams: u32,
    /// Those with ECN CE.
    pub ce: u32,
    /// Number of the last saved sub-interval.
    pub sub_interval: u32,
}

/// How a trial is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Room for more.
    Good,
    /// Between the thresholds: nothing changes.
    Neutral,
    /// Congestion.
    Bad,
}

/// The average of `count` times in ms that make `sum`, rounded half up by way of tenths as the
/// original does; 0 without samples.
#[must_use]
pub fn average_ms(sum: u64, count: u64) -> u32 {
    match (sum.saturating_mul(10)).checked_div(count) {
        Some(tenths) => u32::try_from(tenths.saturating_add(5) / 10).unwrap_or(u32::MAX),
        None => 0,
    }
}

impl AdjustSettings {
    /// Judges a trial by the thresholds.
    #[must_use]
    pub fn judge(&self, trial: &Trial) -> Verdict {
        let parameters = &self.parameters;
        let (low_ms, upper_ms) = (
            u32::from(parameters.low_thresh_ms),
            u32::from(parameters.upper_thresh_ms),
        );
        let errors = if parameters.ignore_ooo_dup {
            trial.loss
        } else {
            trial
                .loss
                .saturating_add(trial.out_of_order)
                .saturating_add(trial.duplicates)
        };
        let delay_ms = if parameters.use_ow_del_var {
            (trial.delay_var_count > 0)
                .then(|| average_ms(trial.delay_var_sum_ms.into(), trial.delay_var_count.into()))
        } else {
            trial.rtt_var_ms
        }
        // Without data the delay is neither good nor bad.
        .unwrap_or(low_ms);
        let congested = parameters.ecn_ce_thresh > 0 && trial.ce > 0 && {
            let share =
                u64::from(parameters.ecn_ce_thresh - 1) * u64::from(trial.datagrams) * 10 / 255;
            u64::from(trial.ce) > (share + 5) / 10
        };
        if errors > u32::from(parameters.seq_err_thresh) || delay_ms > upper_ms || congested {
            Verdict::Bad
        } else if delay_ms < low_ms {
            Verdict::Good
        } else {
            Verdict::Neutral
        }
    }

    fn bounded(&self, row: u16) -> u16 {
        row.min(self.last_row).min(self.row_max.unwrap_or(u16::MAX))
    }
}

/// The state of the search of one connection.
#[derive(Debug, Clone)]
pub struct Adjuster {
    settings: AdjustSettings,
    row: u16,
    congestion: u32,
    retries: u32,
    retry_threshold: u32,
    doubles: bool,
}

impl Adjuster {
    /// At the starting row, or at row 0: a fixed row is only taken with the first step.
    #[must_use]
    pub fn new(settings: AdjustSettings) -> Self {
        let row = match settings.parameters.rate {
            Rate::Search { start } => settings.bounded(start),
            Rate::Fixed(_) => 0,
        };
        Self {
            settings,
            row,
            congestion: 0,
            retries: 0,
            retry_threshold: RETRY_THRESHOLD_STEP,
            doubles: false,
        }
    }

    /// The row to send by.
    #[must_use]
    pub fn row(&self) -> u16 {
        self.row
    }

    /// What rules it.
    #[must_use]
    pub fn settings(&self) -> &AdjustSettings {
        &self.settings
    }

    /// Takes one trial into account and returns the row to send by from now on. `held` says that
    /// not the path but the sender is the limit: a good trial then proves nothing and changes
    /// nothing; a bad one counts as always. The original knows no such thing (`held` is false).
    pub fn step(&mut self, trial: &Trial, held: bool) -> u16 {
        let parameters = &self.settings.parameters;
        // Never so when the count is 0.
        let suppressed = trial.sub_interval < u32::from(parameters.sr_adj_supp_count);
        match parameters.rate {
            Rate::Fixed(_) if suppressed => self.row = 0,
            Rate::Fixed(row) => self.row = row,
            Rate::Search { .. } if suppressed => {}
            Rate::Search { .. } => match (self.settings.judge(trial), parameters.algorithm) {
                (Verdict::Good, _) if held => {}
                (Verdict::Good, Algorithm::B) => self.good_b(),
                (Verdict::Good, Algorithm::C) => self.good_c(),
                (Verdict::Bad, algorithm) => self.bad(algorithm),
                (Verdict::Neutral, _) => {}
            },
        }
        self.row = self.settings.bounded(self.row);
        self.row
    }

    fn fast(&self) -> bool {
        self.row < HIGH_SPEED_ROW && self.congestion < self.slow_threshold()
    }

    fn slow_threshold(&self) -> u32 {
        self.settings.parameters.slow_adj_thresh.into()
    }

    fn good_b(&mut self) {
        if self.fast() {
            self.row = self
                .row
                .saturating_add(self.settings.parameters.high_speed_delta.into())
                .min(HIGH_SPEED_ROW);
            self.congestion = 0;
        } else if self.row < self.settings.last_row {
            self.row += 1;
        }
    }

    fn good_c(&mut self) {
        if self.fast() {
            if 2 * self.row > HIGH_SPEED_ROW {
                self.row = HIGH_SPEED_ROW;
            } else {
                self.row = self.row.max(1);
                if self.doubles {
                    self.row *= 2;
                }
                self.doubles = !self.doubles;
            }
            self.congestion = 0;
            return;
        }
        if self.row < self.settings.last_row {
            self.row += 1;
            self.retries += 1;
        }
        if self.retries >= self.retry_threshold {
            self.congestion = 0;
            self.retries = 0;
            self.retry_threshold = self.retry_threshold.saturating_add(RETRY_THRESHOLD_STEP);
        }
    }

    fn bad(&mut self, algorithm: Algorithm) {
        self.congestion = self.congestion.saturating_add(1);
        if self.row < HIGH_SPEED_ROW && self.congestion == self.slow_threshold() {
            let back = BACK_OFF_STEPS * u16::from(self.settings.parameters.high_speed_delta);
            self.row = self.row.saturating_sub(back);
        } else if self.row > 0 {
            self.row -= 1;
            if algorithm == Algorithm::C {
                self.retries += 1;
                if self.retries >= self.retry_threshold {
                    self.congestion = 0;
                    self.retries = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
