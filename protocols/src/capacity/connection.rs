//! One running test connection, of either role and in either direction: from activation to the
//! confirmed stop (RFC 9946 sections 8 and 9).
//!
//! Bytes and time in; bursts, PDUs and events out through a [`Sink`]. All timers are monotonic. The
//! wall clock is read once, at activation, and what goes on the wire follows from it by the monotonic
//! clock: a step of this machine's clock disturbs nothing, and one clock read per turn is enough.

use ringmill_engine::time::{NANOS_PER_SECOND, Nanos};

use super::batch::Refused;
use super::event::{End, Event, Sink, TrialReport, Warning};
use super::intervals::SubInterval;
use super::limited::Limit;
use super::pdu::{RateStructure, SenderNotice, Status, TestAction};
use super::receiver::{Receiver, ReceiverSettings};
use super::sender::Sender;
use super::time::{Instants, WallTime};
use super::{
    FORCED_STOP_GRACE, NO_TRAFFIC_TIMEOUT, NO_TRAFFIC_WARNING, STOP_GRACE,
    WARNINGS_PER_CONNECTION_MAX,
};

mod arrivals;
mod search;
mod settings;
mod stop;

pub use arrivals::Taken;
use search::Search;
pub use settings::{ConnectionSettings, Half, Role};
pub use stop::{CONFIRMATIONS_MAX, STOP_REPEAT};

enum Work {
    Send(Box<Sender>),
    Receive(Box<Receiver>),
}

/// See the [module's page](self).
pub struct Connection {
    settings: ConnectionSettings,
    server: Option<Search>,
    work: Work,
    start: Instants,
    action: TestAction,
    end: Option<End>,
    watchdog: Nanos,
    stop_at: Nanos,
    /// The next status PDU of a receiver, or the next stop PDU of a sending server.
    send_at: Nanos,
    peer_heard: Nanos,
    rx_stopped: bool,
    peer_rx_stopped: bool,
    bleached: bool,
    status_number: u32,
    sub_interval: u32,
    rtt_var_sum_ms: u64,
    rtt_var_count: u32,
    warnings: u32,
    confirmations: u32,
    refused: Refused,
    trials: u32,
    limited_trials: u32,
    peer_notice: Option<SenderNotice>,
    status_lost: StatusLost,
}

/// Status PDUs that were lost, as far as this end can know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatusLost {
    /// Of the peer's: missing here.
    pub here: u64,
    /// Of this end's: missing at the peer, by what it says.
    pub at_peer: u64,
}

impl Connection {
    /// A connection that is activated now.
    #[must_use]
    pub fn new(settings: ConnectionSettings, start: Instants) -> Self {
        let now = start.now;
        let parameters = &settings.parameters;
        let test = Nanos::from(parameters.test_time_s) * NANOS_PER_SECOND;
        let (server, first_row, grace) = match &settings.role {
            Role::Server {
                rows,
                row_max,
                hold_until_answered,
                infer_peer_limit,
            } => {
                let search = Search::new(parameters, rows, *row_max, *infer_peer_limit);
                let first_row = if *hold_until_answered {
                    search.lowest()
                } else {
                    search.rate()
                };
                (Some(search), first_row, STOP_GRACE)
            }
            Role::Client { first_row } => (None, *first_row, FORCED_STOP_GRACE),
        };
        let work = match settings.half() {
            Half::Sender => Work::Send(Box::new(Sender::new(settings.sender, &first_row, now))),
            Half::Receiver => Work::Receive(Box::new(Receiver::new(
                ReceiverSettings {
                    trial_interval_ms: parameters.trial_int_ms.into(),
                    sub_interval_ms: parameters.sub_int_ms.into(),
                    ecn_expected: parameters.ecn_ce_thresh > 0,
                },
                now,
            ))),
        };
        Self {
            server,
            work,
            start,
            action: TestAction::Test,
            end: None,
            watchdog: now + NO_TRAFFIC_TIMEOUT,
            stop_at: now + test + grace,
            send_at: now + settings.trial_interval(),
            peer_heard: now,
            rx_stopped: false,
            peer_rx_stopped: false,
            bleached: false,
            status_number: 0,
            sub_interval: 0,
            rtt_var_sum_ms: 0,
            rtt_var_count: 0,
            warnings: 0,
            confirmations: 0,
            refused: Refused::default(),
            trials: 0,
            limited_trials: 0,
            peer_notice: None,
            status_lost: StatusLost::default(),
            settings,
        }
    }

    /// When [`timer`](Self::timer) wants to be called next; `None` after the end.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        if self.end.is_some() {
            return None;
        }
        let mut deadline = self.watchdog();
        if self.action == TestAction::Test {
            deadline = deadline.min(self.stop_at);
        }
        match &self.work {
            Work::Send(sender) if self.action == TestAction::Test => {
                deadline = deadline.min(sender.next_deadline().unwrap_or(Nanos::MAX));
            }
            Work::Send(_) | Work::Receive(_) => deadline = deadline.min(self.send_at),
        }
        Some(deadline)
    }

    /// Does what is due.
    pub fn timer(&mut self, now: Nanos, sink: &mut impl Sink) {
        if self.end.is_some() {
            return;
        }
        if self.watchdog() <= now {
            self.expire(now, sink);
            return;
        }
        if self.action == TestAction::Test && self.stop_at <= now {
            self.stop_time(now, sink);
            if self.end.is_some() {
                return;
            }
        }
        let testing = self.action == TestAction::Test;
        match &self.work {
            Work::Send(sender) if testing => {
                if sender.is_due(now) {
                    self.send_load(now, sink);
                }
            }
            Work::Send(_) if self.send_at <= now => {
                self.send_at = now + STOP_REPEAT;
                self.send_stop(now, sink);
            }
            Work::Receive(_) if self.send_at <= now => {
                // From its own time, but one status PDU is enough after a stall.
                let interval = self.settings.trial_interval();
                let late = now - self.send_at;
                self.send_at += interval * (1 + late / interval);
                self.status_time(now, sink);
            }
            Work::Send(_) | Work::Receive(_) => {}
        }
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The sending half, if this end has it.
    #[must_use]
    pub fn sender(&self) -> Option<&Sender> {
        match &self.work {
            Work::Send(sender) => Some(sender),
            Work::Receive(_) => None,
        }
    }

    /// The receiving half, if this end has it.
    #[must_use]
    pub fn receiver(&self) -> Option<&Receiver> {
        match &self.work {
            Work::Receive(receiver) => Some(receiver),
            Work::Send(_) => None,
        }
    }

    /// Datagrams that were no data PDUs.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.refused
    }

    /// Status PDUs that were lost.
    #[must_use]
    pub fn status_lost(&self) -> StatusLost {
        self.status_lost
    }

    /// Trials in which a sender was the limit and not the path: as this end knows or infers it, or as
    /// a peer of ours that sent has told with its stop.
    #[must_use]
    pub fn limited_trials(&self) -> u32 {
        let told = self.peer_notice.map_or(0, |notice| notice.limited_trials);
        self.limited_trials.max(told)
    }

    /// Datagrams that the rows wanted and that the sender gave up: this end, or a peer of ours that
    /// has told it with its stop.
    #[must_use]
    pub fn missed(&self) -> u64 {
        match &self.work {
            Work::Send(sender) => sender.total_missed(),
            Work::Receive(_) => self.peer_notice.map_or(0, |notice| notice.missed),
        }
    }

    /// Both clocks at a monotonic time: the wall clock as it was set at activation.
    #[must_use]
    pub fn instants(&self, now: Nanos) -> Instants {
        let elapsed = now.saturating_sub(self.start.now);
        let wall = self.start.wall.unix_nanos().saturating_add(elapsed);
        Instants {
            now,
            wall: WallTime::from_unix_nanos(wall),
        }
    }

    fn send_load(&mut self, now: Nanos, sink: &mut impl Sink) {
        self.notice_silence(now, sink);
        let at = self.instants(now);
        let rx_stopped = self.rx_stopped;
        if let Work::Send(sender) = &mut self.work {
            sender.due(at, rx_stopped, &mut |burst| sink.burst(burst));
        }
    }

    /// The status timer of a receiver.
    fn status_time(&mut self, now: Nanos, sink: &mut impl Sink) {
        let seen = self.receiver().is_some_and(Receiver::seen);
        if !seen && self.action == TestAction::Test {
            return;
        }
        self.notice_silence(now, sink);
        let Work::Receive(receiver) = &self.work else {
            return;
        };
        let mut rate = RateStructure::default();
        let mut limit = Limit::Path;
        let trial = receiver.trial();
        if let Some(server) = &mut self.server {
            if self.action == TestAction::Test {
                limit = server.limit_of_peer(receiver, &trial, self.settings.sender.ipv6, now);
                rate = server.step(&trial, limit != Limit::Path);
            } else {
                rate = server.rate();
            }
        }
        self.trials += 1;
        self.limited_trials += u32::from(limit != Limit::Path);
        let (bytes, delta) = receiver.trial_bytes(now);
        let delay_var = receiver.trial_delay_var();
        self.send_status(rate, now, sink);
        sink.event(Event::Trial(TrialReport {
            trial,
            delay_var,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            delta_us: u32::try_from(delta / 1_000).unwrap_or(u32::MAX),
            row: self.server.as_ref().map(Search::index),
            limit,
        }));
        if let Work::Receive(receiver) = &mut self.work
            && let Some(sub_interval) = receiver.status_sent(now)
        {
            self.report(sub_interval, sink);
        }
    }

    fn send_status(&mut self, rate: RateStructure, now: Nanos, sink: &mut impl Sink) {
        let at = self.instants(now);
        let Work::Receive(receiver) = &mut self.work else {
            return;
        };
        self.status_number = self.status_number.wrapping_add(1);
        let status = Status {
            test_action: self.action,
            rx_stopped: self.rx_stopped,
            spdu_seq_no: self.status_number,
            rate,
            spdu_time: at.wall,
            auth_mode: self.settings.auth_mode,
            ..receiver.status(now)
        };
        let mut bytes = [0; Status::LEN_MAX];
        let len = status.encode(self.settings.version, &mut bytes);
        if self.settings.sender.check_sum {
            Status::fill_check_sum(self.settings.version, &mut bytes);
        }
        sink.pdu(&bytes[..len]);
    }

    /// Looked at whenever something is sent, so that the PDU says it.
    fn notice_silence(&mut self, now: Nanos, sink: &mut impl Sink) {
        if !self.rx_stopped && now.saturating_sub(self.peer_heard) >= NO_TRAFFIC_WARNING {
            self.rx_stopped = true;
            self.warn(Warning::TrafficStopped, sink);
        }
    }

    /// Hands out a sub-interval, unless it is beyond the test.
    fn report(&mut self, sub_interval: SubInterval, sink: &mut impl Sink) {
        self.sub_interval = sub_interval.number;
        if sub_interval.number <= self.settings.parameters.sub_intervals() {
            sink.event(Event::SubInterval(sub_interval));
        }
    }

    fn warn(&mut self, warning: Warning, sink: &mut impl Sink) {
        if self.warnings < WARNINGS_PER_CONNECTION_MAX {
            self.warnings += 1;
            sink.event(Event::Warning(warning));
        }
    }
}

#[cfg(test)]
mod tests;
