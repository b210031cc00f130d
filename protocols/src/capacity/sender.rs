//! The sending half of a test: two transmitters that fire by a row of the sending rate table
//! (RFC 9097 section 8.1, TR-471 clause 5.2.1).
//!
//! Deadlines follow from the deadline before and never from "now": a late tick is caught up, so the
//! mean rate is that of the row however coarse the ticks come. Only so much is caught up; what is
//! beyond, and what the socket does not take for as long, is given up and counted, which is how a test
//! knows that its sender was the limit. It sends nothing itself and reads no clock.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringmill_engine::time::Nanos;

use super::burst::Burst;
use super::pdu::{Load, RateStructure, SenderNotice, TestAction};
use super::time::{Instants, WallTime, nanos_to_ms};
use super::{START_DELAY_MAX, START_DELAY_MIN};

mod transmitter;

pub use transmitter::{CATCH_UP_BYTES_MAX, CATCH_UP_MAX};
use transmitter::{Transmitter, draw};

/// Status PDUs that may be missing between two before the number is taken for nonsense: at the
/// shortest trial interval a hundred times as many as fit before the watchdog ends the test.
pub const STATUS_GAP_MAX: u32 = 65_534;

/// The grid of transmitters whose interval is at least as long: the interval of all rows below
/// 100 Mbit/s, whose datagrams stay as far apart.
pub const COARSE_TICK: Nanos = 1_000_000;

/// A trial counts as limited by its sender when more than one of so many datagrams due was missed.
const LIMITED_ONE_OF: u64 = 100;

/// What a sender needs to know of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderSettings {
    /// The test runs over IPv6: sizes are 20 bytes less.
    pub ipv6: bool,
    /// Numbers of datagrams that the socket did not take are not used again: they count as lost.
    pub keep_numbers: bool,
    /// The checksum of headers is filled.
    pub check_sum: bool,
    /// Deadlines are shown on a grid of this many nanoseconds, so that the senders of a shard wake it
    /// together, transmitters of a millisecond or more on one of [`COARSE_TICK`]; the rate stays
    /// exact. 0 or 1 for none.
    pub tick: Nanos,
    /// Of random sizes and of the first delays.
    pub seed: u64,
}

/// What was sent between two status PDUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrialSent {
    /// Datagrams that the row wanted.
    pub due: u64,
    /// Of them those given up: too late, or not taken by the socket for too long.
    pub missed: u64,
    /// Those that the socket did not take at once.
    pub refused: u64,
}

impl TrialSent {
    /// Whether the sender could not keep the rate of the row, whatever the path could.
    #[must_use]
    pub fn limited(&self) -> bool {
        self.missed.max(self.refused) * LIMITED_ONE_OF > self.due
    }
}

/// What a status PDU's number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusOrder {
    /// The next one, or a later one: so many are missing.
    Next {
        /// Status PDUs not seen.
        lost: u16,
    },
    /// Late, or seen before.
    Stale,
    /// So far ahead that it cannot be. Nothing was taken from it.
    Nonsense,
}

/// The sender of one connection.
#[derive(Debug, Clone)]
pub struct Sender {
    settings: SenderSettings,
    rate: RateStructure,
    transmitters: [Transmitter; 2],
    next_seq: u32,
    rng: SmallRng,
    status_expected: u32,
    status_time: WallTime,
    status_received: Nanos,
    status_errors: u16,
    trial: TrialSent,
    total_datagrams: u64,
    total_bytes: u64,
    total_missed: u64,
}

impl Sender {
    /// A sender by a row, activated now. Each transmitter starts after a random delay of its own.
    #[must_use]
    pub fn new(settings: SenderSettings, rate: &RateStructure, now: Nanos) -> Self {
        let mut sender = Self {
            settings,
            rate: RateStructure::default(),
            transmitters: [Transmitter::default(); 2],
            next_seq: 1,
            rng: SmallRng::seed_from_u64(settings.seed),
            status_expected: 1,
            status_time: WallTime::NONE,
            status_received: now,
            status_errors: 0,
            trial: TrialSent::default(),
            total_datagrams: 0,
            total_bytes: 0,
            total_missed: 0,
        };
        sender.set_rate(rate, now);
        for transmitter in &mut sender.transmitters {
            let delay_us = sender
                .rng
                .random_range(START_DELAY_MIN / 1_000..=START_DELAY_MAX / 1_000);
            if let Some(deadline) = &mut transmitter.deadline {
                *deadline = now + delay_us * 1_000;
            }
        }
        sender
    }

    /// Sends by another row from now on. Its numbers may come from a peer: they are bounded.
    pub fn set_rate(&mut self, rate: &RateStructure, now: Nanos) {
        if *rate == self.rate {
            return;
        }
        self.rate = *rate;
        let new = Transmitter::pair(rate, self.settings.ipv6);
        for (old, mut new) in self.transmitters.iter_mut().zip(new) {
            if new.interval > 0 {
                // In step with what it did before, but never later than the new interval says.
                let latest = now + new.interval;
                new.deadline = Some(old.deadline.map_or(latest, |old| old.min(latest)));
            }
            self.trial.missed += u64::from(old.owed);
            self.total_missed += u64::from(old.owed);
            *old = new;
        }
    }

    /// The row that it sends by.
    #[must_use]
    pub fn rate(&self) -> &RateStructure {
        &self.rate
    }

    /// When something is due next; `None` while the row sends nothing.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let shown = |transmitter: &Transmitter| {
            let deadline = transmitter.deadline?;
            let tick = match transmitter.interval {
                _ if self.settings.tick <= 1 => return Some(deadline),
                // Thousands of slow senders then wake their shard a thousand times a second.
                COARSE_TICK.. => self.settings.tick.max(COARSE_TICK),
                _ => self.settings.tick,
            };
            Some(deadline.next_multiple_of(tick))
        };
        let [one, two] = &self.transmitters;
        match (shown(one), shown(two)) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        }
    }

    /// Whether something is due. Cheap.
    #[inline]
    #[must_use]
    pub fn is_due(&self, now: Nanos) -> bool {
        self.transmitters
            .iter()
            .any(|transmitter| transmitter.deadline.is_some_and(|deadline| deadline <= now))
    }

    /// Hands out what is due, burst by burst. `emit` says how many of the datagrams the socket took,
    /// counted from the front; the numbers of the others are used again.
    pub fn due(&mut self, at: Instants, rx_stopped: bool, emit: &mut impl FnMut(&Burst) -> u32) {
        let load = self.header(TestAction::Test, rx_stopped, at);
        // A socket that is full stays so for the rest of this call.
        let mut full = false;
        for index in 0..self.transmitters.len() {
            while let Some(ticks) = self.take_ticks(index, at.now) {
                self.fire(index, ticks, &load, &mut full, emit);
            }
        }
    }

    fn take_ticks(&mut self, index: usize, now: Nanos) -> Option<u64> {
        let due = self.transmitters[index].take_ticks(now)?;
        self.trial.due += due.wanted;
        self.trial.missed += due.missed;
        self.total_missed += due.missed;
        Some(due.ticks)
    }

    fn fire(
        &mut self,
        index: usize,
        ticks: u64,
        load: &Load,
        full: &mut bool,
        emit: &mut impl FnMut(&Burst) -> u32,
    ) {
        let transmitter = &mut self.transmitters[index];
        // At most 100 in a burst, and what is caught up and owed is bounded by bytes.
        let wanted = (ticks * u64::from(transmitter.burst) + u64::from(transmitter.owed)) as u32;
        transmitter.owed = 0;
        let payload_bytes = draw(transmitter.payload, &mut self.rng);
        let addon_bytes = transmitter
            .addon
            .map_or(0, |size| draw(size, &mut self.rng));
        let load = Load {
            lpdu_seq_no: self.next_seq,
            ..*load
        };
        let burst = Burst::new(
            &load,
            wanted,
            payload_bytes,
            addon_bytes,
            self.settings.check_sum,
        );
        let count = burst.count();
        if count == 0 {
            return;
        }
        let accepted = if *full { 0 } else { emit(&burst).min(count) };
        let equal = accepted.min(wanted);
        self.total_datagrams += u64::from(accepted);
        self.total_bytes += u64::from(equal) * u64::from(payload_bytes);
        if accepted == count {
            self.total_bytes += u64::from(addon_bytes);
            self.next_seq = self.next_seq.wrapping_add(count);
            return;
        }
        self.refused(index, wanted - equal, count - accepted);
        let used = if self.settings.keep_numbers && !*full {
            count
        } else {
            accepted
        };
        self.next_seq = self.next_seq.wrapping_add(used);
        *full = true;
    }

    /// Some of a burst were not taken: those of equal size are owed, up to a bound, unless their
    /// numbers are gone.
    fn refused(&mut self, index: usize, equal: u32, all: u32) {
        let transmitter = &mut self.transmitters[index];
        let owed = if self.settings.keep_numbers || transmitter.payload.is_random() {
            0
        } else {
            u64::from(equal).min(transmitter.owed_max()) as u32
        };
        transmitter.owed = owed;
        let missed = u64::from(all - owed);
        self.trial.refused += u64::from(all);
        self.trial.missed += missed;
        self.total_missed += missed;
    }

    /// A PDU that stops the test, or confirms that the peer stopped it, and tells a peer of ours what
    /// this sender could not do.
    pub fn stop_pdu(
        &mut self,
        notice: &SenderNotice,
        rx_stopped: bool,
        at: Instants,
    ) -> [u8; SenderNotice::PDU_LEN] {
        let load = self.header(TestAction::Stop, rx_stopped, at);
        self.next_seq = self.next_seq.wrapping_add(1);
        let len = SenderNotice::PDU_LEN as u16;
        let burst = Burst::new(&load, 1, len, 0, self.settings.check_sum);
        let mut bytes = [0; SenderNotice::PDU_LEN];
        burst.fill(&mut bytes, 0, 1);
        notice.write(&mut bytes);
        bytes
    }

    fn header(&self, test_action: TestAction, rx_stopped: bool, at: Instants) -> Load {
        let response_ms = nanos_to_ms(at.now.saturating_sub(self.status_received));
        Load {
            test_action,
            rx_stopped,
            lpdu_seq_no: self.next_seq,
            udp_payload: 0,
            spdu_seq_err: self.status_errors,
            spdu_time: self.status_time,
            lpdu_time: at.wall,
            rtt_resp_delay: u16::try_from(response_ms).unwrap_or(u16::MAX),
            check_sum: 0,
        }
    }

    /// Takes the number and time of a status PDU, to be echoed.
    pub fn status(&mut self, number: u32, time: WallTime, now: Nanos) -> StatusOrder {
        let order = match number.checked_sub(self.status_expected) {
            Some(gap) if gap > STATUS_GAP_MAX => return StatusOrder::Nonsense,
            Some(gap) => {
                let lost = gap as u16;
                self.status_errors = lost;
                self.status_expected = number.saturating_add(1);
                StatusOrder::Next { lost }
            }
            None => {
                self.status_errors = Load::STATUS_LATE;
                StatusOrder::Stale
            }
        };
        self.status_time = time;
        self.status_received = now;
        order
    }

    /// What was sent since this was last asked, and begins anew.
    pub fn take_trial(&mut self) -> TrialSent {
        std::mem::take(&mut self.trial)
    }

    /// Datagrams of the whole test and their UDP payload in bytes; stop PDUs are not among them.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.total_datagrams, self.total_bytes)
    }

    /// Datagrams of the whole test that the row wanted and that were given up.
    #[must_use]
    pub fn total_missed(&self) -> u64 {
        self.total_missed
    }
}

#[cfg(test)]
mod tests;
