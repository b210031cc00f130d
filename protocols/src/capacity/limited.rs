//! Who is the limit of a trial: the path, this sender, or the peer's. Ours only: the original's
//! search climbs on when a sender cannot follow.
//!
//! This end's sender knows by itself what it missed; each such trial is counted, and the search is held
//! when nothing else is seen. Of a peer's sender a server can only infer it:
//! much less arrives than the row says, and yet nothing is lost and nothing is delayed.

use super::adjust::Verdict;

/// What keeps the rate of a trial from growing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The path, or nothing yet.
    #[default]
    Path,
    /// The sender of this end: ticks came too late, or the socket was full.
    Sender,
    /// The sender of the peer, as far as can be inferred.
    Peer,
}

/// Good trials in a row that must agree: rows change at once, but what arrives follows a round trip
/// and a trial later, and the row to compare with is the lowest of them.
const TRIALS: u32 = 10;

/// What arrives must be below this share of the row. OB-UDPST senders fall to 0.78 of some rows by
/// their ticks alone and can still do more, so only a clear case counts.
const SHARE_MAX: f64 = 0.5;

/// Watches what arrives from a peer's sender.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerLimit {
    trials: u32,
    lowest_mbps: f64,
}

impl PeerLimit {
    /// Takes a trial: how it was judged, the rate of its row, and what arrived. Returns whether the
    /// peer's sender is the limit.
    pub fn trial(&mut self, verdict: Verdict, row_mbps: f64, received_mbps: f64) -> bool {
        if verdict != Verdict::Good || received_mbps >= row_mbps * SHARE_MAX {
            self.trials = 0;
            return false;
        }
        if self.trials == 0 || row_mbps < self.lowest_mbps {
            self.lowest_mbps = row_mbps;
        }
        if received_mbps >= self.lowest_mbps * SHARE_MAX {
            self.trials = 0;
            return false;
        }
        self.trials = self.trials.saturating_add(1);
        self.trials >= TRIALS
    }
}

/// What this end's sender may send of a row, at most, for the search to be held.
///
/// A sender that is kept off its CPU now and then misses much of a trial and still sends more when the
/// row is higher: with a low bound the search would stop far below a path that it can fill.
const OWN_SHARE_MAX: f64 = 0.75;

/// Watches what the sender of this end sends.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnLimit {
    trials: u32,
}

impl OwnLimit {
    /// Takes a trial: the datagrams that its row wanted, and those that did not leave when they were
    /// due. Returns whether a higher row would send no more.
    pub fn trial(&mut self, due: u64, missed: u64) -> bool {
        let sent = due.saturating_sub(missed) as f64;
        if due == 0 || sent > due as f64 * OWN_SHARE_MAX {
            self.trials = 0;
            return false;
        }
        self.trials = self.trials.saturating_add(1);
        self.trials >= TRIALS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_that_never_keeps_up_holds_the_search_and_a_disturbed_one_does_not() {
        let mut limit = OwnLimit::default();
        for trial in 1..=20 {
            assert_eq!(limit.trial(1000, 250), trial >= 10);
        }
        assert!(!limit.trial(1000, 249), "it keeps up well enough");
        // Three trials of four are lost to others on its CPU.
        for trial in 0..100 {
            assert!(!limit.trial(1000, if trial % 4 == 0 { 10 } else { 900 }));
        }
        assert!(!limit.trial(0, 0), "nothing was due");
    }

    #[test]
    fn a_slow_peer_is_found_out_after_ten_trials() {
        let mut limit = PeerLimit::default();
        for trial in 1..=20 {
            assert_eq!(limit.trial(Verdict::Good, 1000.0, 300.0), trial >= 10);
        }
        for (name, verdict, row, received) in [
            ("the path is the limit", Verdict::Bad, 1000.0, 300.0),
            ("nobody knows", Verdict::Neutral, 1000.0, 300.0),
            ("it keeps up well enough", Verdict::Good, 1000.0, 600.0),
        ] {
            let mut limit = limit;
            assert!(!limit.trial(verdict, row, received), "{name}");
            assert!(!limit.trial(Verdict::Good, 1000.0, 300.0), "{name}: anew");
        }
    }

    #[test]
    fn a_climb_over_a_long_path_is_no_limit() {
        // Algorithm C: the row doubles every second trial, what arrives is six trials behind.
        let mut limit = PeerLimit::default();
        let row = |trial: i32| f64::from(1 << (trial.clamp(0, 20) / 2));
        for trial in 0..60 {
            assert!(!limit.trial(Verdict::Good, row(trial), row(trial - 6)));
        }
    }
}
