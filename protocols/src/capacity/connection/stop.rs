//! The end of a test: the stop, its confirmation, silence, and the time that is up (RFC 9946 section 9).
//!
//! A server repeats its stop until the client confirms it; a client whose time has passed is done
//! without one too. Whatever is lost, both ends end.

use ringmill_engine::time::Nanos;

use super::{Connection, Work};
use crate::capacity::event::{End, Event, Sink};
use crate::capacity::pdu::{Pdu, RateStructure, SenderNotice, TestAction};
use crate::capacity::{FORCED_STOP_GRACE, NO_TRAFFIC_WARNING, STOP_GRACE};

/// How often a sending server repeats its stop: some five times until a client with the usual trial
/// interval confirms it, and no more load than row 0 where none ever does.
pub const STOP_REPEAT: Nanos = 10_000_000;

/// Stops that a client confirms again after its end, if the caller still hands them in: a server
/// that repeats them has not got the confirmation.
pub const CONFIRMATIONS_MAX: u32 = 10;

impl Connection {
    /// Ends the test before its time. A client tells the server and is done; a server begins the
    /// normal stop.
    pub fn stop(&mut self, now: Nanos, sink: &mut impl Sink) {
        if self.end.is_some() {
            return;
        }
        if self.server.is_some() {
            self.begin_stop(now);
        } else {
            self.confirm(End::Stopped, now, sink);
        }
    }

    /// When silence ends the connection. A client whose test should be over by the server's clock does
    /// not wait three seconds for a stop that was lost.
    pub(super) fn watchdog(&self) -> Nanos {
        if self.server.is_some() || self.action != TestAction::Test {
            return self.watchdog;
        }
        let over = self.stop_at - FORCED_STOP_GRACE + STOP_GRACE;
        let silent = self.peer_heard + NO_TRAFFIC_WARNING;
        self.watchdog.min(silent.max(over))
    }

    pub(super) fn expire(&mut self, now: Nanos, sink: &mut impl Sink) {
        // Results that lack more than the last moments are none.
        let over = self.stop_at - FORCED_STOP_GRACE;
        let test_over = self.peer_heard + NO_TRAFFIC_WARNING >= over;
        match (&self.server, self.action) {
            (Some(_), TestAction::Test) => self.finish(End::NoTraffic, sink),
            (Some(_), _) => self.finish(End::Unconfirmed, sink),
            (None, _) if test_over => self.confirm(End::StopMissing, now, sink),
            (None, _) => self.finish(End::NoTraffic, sink),
        }
    }

    pub(super) fn stop_time(&mut self, now: Nanos, sink: &mut impl Sink) {
        if self.server.is_some() {
            self.begin_stop(now);
        } else {
            self.confirm(End::StopMissing, now, sink);
        }
    }

    /// A server stops: its PDUs say so from now on, until one of the peer's does or the watchdog ends
    /// the wait.
    fn begin_stop(&mut self, now: Nanos) {
        if self.action == TestAction::Test {
            self.action = TestAction::Stop;
            if let Work::Send(_) = self.work {
                self.send_at = now;
            }
        }
    }

    /// A client ends: it says so once.
    fn confirm(&mut self, end: End, now: Nanos, sink: &mut impl Sink) {
        self.action = TestAction::Stop;
        self.send_stop(now, sink);
        self.finish(end, sink);
    }

    fn finish(&mut self, end: End, sink: &mut impl Sink) {
        self.end = Some(end);
        sink.event(Event::Ended(end));
    }

    /// A server that repeats its stop has not heard that this client confirmed it.
    pub(super) fn after_end(&mut self, buffer: &[u8], now: Nanos, sink: &mut impl Sink) {
        let stop = buffer.get(2).is_some_and(|action| (1..=2).contains(action));
        if self.server.is_none()
            && self.end.is_some_and(End::is_complete)
            && matches!(Pdu::of(buffer), Some(Pdu::Load | Pdu::Status))
            && stop
            && self.confirmations < CONFIRMATIONS_MAX
        {
            self.confirmations += 1;
            self.send_stop(now, sink);
        }
    }

    /// Sends one PDU that says stop: load that tells of its sender, or the status so far.
    pub(super) fn send_stop(&mut self, now: Nanos, sink: &mut impl Sink) {
        let at = self.instants(now);
        match &mut self.work {
            Work::Send(sender) => {
                let notice = SenderNotice {
                    trials: self.trials,
                    limited_trials: self.limited_trials,
                    missed: sender.total_missed(),
                };
                sink.pdu(&sender.stop_pdu(&notice, self.rx_stopped, at));
            }
            Work::Receive(_) => self.send_status(RateStructure::default(), now, sink),
        }
    }

    /// A PDU of the peer says stop. A server is done; a client confirms and is done.
    pub(super) fn peer_stops(&mut self, now: Nanos, sink: &mut impl Sink) {
        match (&self.server, self.action) {
            (Some(_), TestAction::Test) => self.finish(End::PeerStopped, sink),
            (Some(_), _) => self.finish(End::Complete, sink),
            (None, _) => self.confirm(End::Complete, now, sink),
        }
    }
}
