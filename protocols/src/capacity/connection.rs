//! One running test connection, of either role and in either direction: from activation to the
//! confirmed stop (RFC 9946 section on the test phase, TR-471 clause 5).
//!
//! Bytes and time in; bursts, PDUs and events out through a [`Sink`]. All timers are monotonic. The
//! wall clock is read once, at activation, and what goes on the wire follows from it by the monotonic
//! clock: a step of this machine's clock disturbs nothing, and one clock read per turn is enough.

use std::sync::Arc;

use ringmill_engine::time::{NANOS_PER_SECOND, Nanos};

use super::adjust::{AdjustSettings, Adjuster, Trial};
use super::batch::{Batch, Refused};
use super::event::{End, Event, Sink, TrialReport, Warning};
use super::intervals::SubInterval;
use super::limited::{Limit, PeerLimit, row_mbps};
use super::pdu::{Pdu, RateStructure, Status, StatusChecksum, TestAction, Version};
use super::receiver::{Receiver, ReceiverSettings};
use super::sender::{Sender, SenderSettings, StatusOrder};
use super::time::{Instants, WallTime};
use super::{
    FORCED_STOP_GRACE, NO_TRAFFIC_TIMEOUT, NO_TRAFFIC_WARNING, STOP_GRACE,
    WARNINGS_PER_CONNECTION_MAX,
};

/// How often a sending server repeats its stop: some five times until a client with the usual trial
/// interval confirms it, and no more load than row 0 where none ever does.
pub const STOP_REPEAT: Nanos = 10_000_000;

/// Stops that a client confirms again after its end, if the caller still hands them in: a server
/// that repeats them has not got the confirmation.
pub const CONFIRMATIONS_MAX: u32 = 10;

const NANOS_PER_MS: Nanos = 1_000_000;

/// Which end of the test this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The server: it adjusts the rate and stops the test.
    Server {
        /// What rules the row.
        adjust: AdjustSettings,
        /// The sending rate table.
        rows: Arc<[RateStructure]>,
        /// Send row 0 until the first status PDU, so that nobody who has not answered gets more.
        hold_until_answered: bool,
        /// Hold the search when a peer's sender seems to be the limit, see
        /// [`limited`](super::limited).
        infer_peer_limit: bool,
    },
    /// The client.
    Client {
        /// The row to begin with in an upstream test.
        first_row: RateStructure,
    },
}

/// Which way load goes, as this end sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// This end sends load.
    Sender,
    /// This end receives load.
    Receiver,
}

/// All that a connection must know; the values of the activation, already corrected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Server or client.
    pub role: Role,
    /// Sender or receiver.
    pub half: Half,
    /// The format of status PDUs.
    pub version: Version,
    /// Length of the test in s.
    pub test_time_s: u32,
    /// Between two status PDUs, in ms. Not 0.
    pub trial_interval_ms: u32,
    /// Length of a sub-interval in ms. Not 0.
    pub sub_interval_ms: u32,
    /// An ECN marking was agreed and counts.
    pub ecn_expected: bool,
    /// The connection's authentication mode, repeated in status PDUs.
    pub auth_mode: u8,
    /// What to make of the checksum of version 20 status PDUs.
    pub status_checksum: StatusChecksum,
    /// How to send; also whether checksums are filled.
    pub sender: SenderSettings,
}

/// Whether a buffer was for a running test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Yes, good or bad.
    Data,
    /// It begins with a PDU of the control phase: repeated, late, or meant for another.
    Control,
}

enum Work {
    Send(Box<Sender>),
    Receive(Box<Receiver>),
}

struct Server {
    adjuster: Adjuster,
    rows: Arc<[RateStructure]>,
    /// Of the adjuster's row.
    row_mbps: f64,
    peer_limit: Option<PeerLimit>,
}

impl Server {
    fn row(&self, index: u16) -> RateStructure {
        let last = self.rows.len().saturating_sub(1);
        let row = self.rows.get(usize::from(index).min(last));
        row.copied().unwrap_or_default()
    }

    fn step(&mut self, trial: &Trial, held: bool) -> RateStructure {
        let before = self.adjuster.row();
        let index = self.adjuster.step(trial, held);
        let rate = self.row(index);
        if index != before || self.row_mbps == 0.0 {
            self.row_mbps = row_mbps(&rate);
        }
        rate
    }
}

/// See the [module's page](self).
pub struct Connection {
    settings: ConnectionSettings,
    server: Option<Server>,
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
    limited_trials: u32,
}

impl Connection {
    /// A connection that is activated now.
    #[must_use]
    pub fn new(settings: ConnectionSettings, start: Instants) -> Self {
        let now = start.now;
        let test = Nanos::from(settings.test_time_s) * NANOS_PER_SECOND;
        let (server, first_row, grace) = match &settings.role {
            Role::Server {
                adjust,
                rows,
                hold_until_answered,
                infer_peer_limit,
            } => {
                let last_row = u16::try_from(rows.len().saturating_sub(1)).unwrap_or(u16::MAX);
                let adjuster = Adjuster::new(AdjustSettings {
                    last_row: adjust.last_row.min(last_row),
                    ..*adjust
                });
                let server = Server {
                    row_mbps: 0.0,
                    peer_limit: infer_peer_limit.then(PeerLimit::default),
                    rows: Arc::clone(rows),
                    adjuster,
                };
                let first = if *hold_until_answered {
                    0
                } else {
                    server.adjuster.row()
                };
                let first_row = server.row(first);
                (Some(server), first_row, STOP_GRACE)
            }
            Role::Client { first_row } => (None, *first_row, FORCED_STOP_GRACE),
        };
        let work = match settings.half {
            Half::Sender => Work::Send(Box::new(Sender::new(settings.sender, &first_row, now))),
            Half::Receiver => Work::Receive(Box::new(Receiver::new(
                ReceiverSettings {
                    trial_interval_ms: settings.trial_interval_ms,
                    sub_interval_ms: settings.sub_interval_ms,
                    ecn_expected: settings.ecn_expected,
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
            send_at: now + trial_interval(&settings),
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
            limited_trials: 0,
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
                let interval = trial_interval(&self.settings);
                let late = now - self.send_at;
                self.send_at += interval * (1 + late / interval);
                self.status_time(now, sink);
            }
            Work::Send(_) | Work::Receive(_) => {}
        }
    }

    /// Takes a receive buffer: datagrams of `stride` bytes end to end, the last may be shorter.
    pub fn datagram(
        &mut self,
        buffer: &[u8],
        stride: u16,
        ecn: u8,
        now: Nanos,
        sink: &mut impl Sink,
    ) -> Taken {
        if let Some(Pdu::Setup | Pdu::Null | Pdu::Activation) = Pdu::of(buffer) {
            return Taken::Control;
        }
        if self.end.is_some() {
            self.after_end(buffer, now, sink);
            return Taken::Data;
        }
        let at = self.instants(now);
        match &mut self.work {
            Work::Receive(receiver) => {
                let batch = if sink.records() {
                    let mut record = |load: &_| sink.record(load);
                    receiver.batch_recorded(buffer, stride, ecn, at, &mut record)
                } else {
                    receiver.batch(buffer, stride, ecn, at)
                };
                let bleached = receiver.ecn_bleached();
                self.load_came(&batch, bleached, now, sink);
            }
            Work::Send(_) => {
                for bytes in buffer.chunks(usize::from(stride).max(1)) {
                    let (version, rule) = (self.settings.version, self.settings.status_checksum);
                    match Status::decode(bytes, version, rule) {
                        Ok(status) => self.status_came(&status, now, sink),
                        Err(error) => {
                            let mut refused = Refused::default();
                            refused.count(error);
                            self.refuse(refused, sink);
                        }
                    }
                    if self.end.is_some() {
                        break;
                    }
                }
            }
        }
        Taken::Data
    }

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

    /// Trials in which a sender was the limit and not the path.
    #[must_use]
    pub fn limited_trials(&self) -> u32 {
        self.limited_trials
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

    /// When silence ends the connection. A client whose test should be over by the server's clock does
    /// not wait three seconds for a stop that was lost.
    fn watchdog(&self) -> Nanos {
        if self.server.is_some() || self.action != TestAction::Test {
            return self.watchdog;
        }
        let over = self.stop_at - FORCED_STOP_GRACE + STOP_GRACE;
        let silent = self.peer_heard + NO_TRAFFIC_WARNING;
        self.watchdog.min(silent.max(over))
    }

    fn expire(&mut self, now: Nanos, sink: &mut impl Sink) {
        let test_over = self.stop_at <= now + FORCED_STOP_GRACE;
        match (&self.server, self.action) {
            (Some(_), TestAction::Test) => self.finish(End::NoTraffic, sink),
            (Some(_), _) => self.finish(End::Unconfirmed, sink),
            (None, _) if test_over => self.confirm(End::StopMissing, now, sink),
            (None, _) => self.finish(End::NoTraffic, sink),
        }
    }

    fn stop_time(&mut self, now: Nanos, sink: &mut impl Sink) {
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
    fn after_end(&mut self, buffer: &[u8], now: Nanos, sink: &mut impl Sink) {
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

    /// Sends one PDU that says stop: a bare header of load, or the status so far.
    fn send_stop(&mut self, now: Nanos, sink: &mut impl Sink) {
        let at = self.instants(now);
        match &mut self.work {
            Work::Send(sender) => sink.pdu(&sender.stop_pdu(self.rx_stopped, at)),
            Work::Receive(_) => self.send_status(RateStructure::default(), now, sink),
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
                rate = server.row(server.adjuster.row());
            }
        }
        self.limited_trials += u32::from(limit != Limit::Path);
        let (bytes, delta) = receiver.trial_bytes(now);
        self.send_status(rate, now, sink);
        sink.event(Event::Trial(TrialReport {
            trial,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            delta_us: u32::try_from(delta / 1_000).unwrap_or(u32::MAX),
            row: self.server.as_ref().map(|server| server.adjuster.row()),
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

    fn load_came(&mut self, batch: &Batch, bleached: bool, now: Nanos, sink: &mut impl Sink) {
        if batch.refused.sum() > 0 {
            self.refuse(batch.refused, sink);
        }
        if batch.valid == 0 {
            return;
        }
        self.heard(batch.peer_rx_stopped, batch.valid > batch.stops, now, sink);
        if batch.status_errors > 0 {
            self.warn(Warning::StatusLostAtPeer(batch.status_errors), sink);
        }
        if bleached && !self.bleached {
            self.bleached = true;
            self.warn(Warning::EcnBleached, sink);
        }
        if batch.stops > 0 {
            self.peer_stops(now, sink);
        }
    }

    fn status_came(&mut self, status: &Status, now: Nanos, sink: &mut impl Sink) {
        let Work::Send(sender) = &mut self.work else {
            return;
        };
        let order = sender.status(status.spdu_seq_no, status.spdu_time, now);
        if order == StatusOrder::Nonsense {
            let refused = Refused {
                format: 1,
                ..Refused::default()
            };
            self.refuse(refused, sink);
            return;
        }
        let stops = status.test_action != TestAction::Test;
        self.heard(status.rx_stopped, !stops, now, sink);
        match order {
            StatusOrder::Next { lost: 0 } | StatusOrder::Nonsense => {}
            StatusOrder::Next { lost } => self.warn(Warning::StatusLost(lost), sink),
            StatusOrder::Stale => self.warn(Warning::StatusLost(u16::MAX), sink),
        }
        if status.modifier_bitmap & Status::ECN_BLEACHED != 0 && !self.bleached {
            self.bleached = true;
            self.warn(Warning::EcnBleachedAtPeer, sink);
        }
        // What a stale one says was true before what is known already.
        if order != StatusOrder::Stale {
            self.take_status(status, stops, now, sink);
        }
        if stops {
            self.peer_stops(now, sink);
        }
    }

    fn take_status(&mut self, status: &Status, stops: bool, now: Nanos, sink: &mut impl Sink) {
        if status.sub_int_seq_no > self.sub_interval {
            let ended = SubInterval::of_status(status, self.rtt_var_sum_ms, self.rtt_var_count);
            (self.rtt_var_sum_ms, self.rtt_var_count) = (0, 0);
            self.report(ended, sink);
        }
        // The sub-intervals begin behind the first status PDU.
        if status.rtt_var_sample != Status::NONE && status.spdu_seq_no > 1 {
            self.rtt_var_sum_ms += u64::from(status.rtt_var_sample);
            self.rtt_var_count += 1;
        }
        if stops || self.action != TestAction::Test {
            return;
        }
        let Work::Send(sender) = &mut self.work else {
            return;
        };
        let limited = sender.take_trial().limited();
        self.limited_trials += u32::from(limited);
        let trial = trial_of(status);
        let rate = match &mut self.server {
            Some(server) => server.step(&trial, limited),
            None => status.rate,
        };
        sender.set_rate(&rate, now);
        sink.event(Event::Trial(TrialReport {
            trial,
            bytes: status.ti_rx_bytes,
            delta_us: status.ti_delta_time,
            row: self.server.as_ref().map(|server| server.adjuster.row()),
            limit: if limited { Limit::Sender } else { Limit::Path },
        }));
    }

    /// A PDU of the peer says stop. A server is done; a client confirms and is done.
    fn peer_stops(&mut self, now: Nanos, sink: &mut impl Sink) {
        match (&self.server, self.action) {
            (Some(_), TestAction::Test) => self.finish(End::PeerStopped, sink),
            (Some(_), _) => self.finish(End::Complete, sink),
            (None, _) => self.confirm(End::Complete, now, sink),
        }
    }

    /// A valid PDU came.
    fn heard(&mut self, rx_stopped: bool, tests: bool, now: Nanos, sink: &mut impl Sink) {
        self.peer_heard = now;
        self.rx_stopped = false;
        if tests && self.action == TestAction::Test {
            self.watchdog = now + NO_TRAFFIC_TIMEOUT;
        }
        if rx_stopped && !self.peer_rx_stopped {
            self.warn(Warning::TrafficStoppedAtPeer, sink);
        }
        self.peer_rx_stopped = rx_stopped;
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
        let count = self.settings.test_time_s.saturating_mul(1_000) / self.settings.sub_interval_ms;
        if sub_interval.number <= count {
            sink.event(Event::SubInterval(sub_interval));
        }
    }

    fn refuse(&mut self, refused: Refused, sink: &mut impl Sink) {
        self.refused.size = self.refused.size.saturating_add(refused.size);
        self.refused.format = self.refused.format.saturating_add(refused.format);
        self.refused.checksum = self.refused.checksum.saturating_add(refused.checksum);
        self.warn(Warning::BadData(refused), sink);
    }

    fn warn(&mut self, warning: Warning, sink: &mut impl Sink) {
        if self.warnings < WARNINGS_PER_CONNECTION_MAX {
            self.warnings += 1;
            sink.event(Event::Warning(warning));
        }
    }
}

impl Server {
    /// Whether the peer's sender is the limit of a trial that ends now.
    fn limit_of_peer(
        &mut self,
        receiver: &Receiver,
        trial: &Trial,
        ipv6: bool,
        now: Nanos,
    ) -> Limit {
        let Some(limit) = &mut self.peer_limit else {
            return Limit::Path;
        };
        let (bytes, elapsed) = receiver.trial_bytes(now);
        let headers = if ipv6 { 48 } else { 28 };
        let bits = (bytes + u64::from(trial.datagrams) * headers) * 8;
        // Bits in a nanosecond, by 1000, are Mbit/s.
        let mbps = bits as f64 * 1_000.0 / elapsed.max(1) as f64;
        let verdict = self.adjuster.settings().judge(trial);
        if limit.trial(verdict, self.row_mbps, mbps) {
            Limit::Peer
        } else {
            Limit::Path
        }
    }
}

fn trial_interval(settings: &ConnectionSettings) -> Nanos {
    Nanos::from(settings.trial_interval_ms.max(1)) * NANOS_PER_MS
}

/// The trial that a status PDU reports.
fn trial_of(status: &Status) -> Trial {
    Trial {
        loss: status.seq_err_loss,
        out_of_order: status.seq_err_ooo,
        duplicates: status.seq_err_dup,
        delay_var_sum_ms: status.delay_var_sum,
        delay_var_count: status.delay_var_cnt,
        rtt_var_ms: (status.rtt_var_sample != Status::NONE).then_some(status.rtt_var_sample),
        datagrams: status.ti_rx_datagrams,
        ce: status.ti_rx_ce_count,
        sub_interval: status.sub_int_seq_no,
    }
}
