//! What arrives while a test runs: load at a receiver, status at a sender.
//!
//! Every number is the peer's and is bounded where it is used. A stale status PDU is echoed and
//! otherwise left alone: what it says was true before what is known already.

use ringmill_engine::time::Nanos;

use super::search::{Search, trial_of};
use super::{Connection, Work};
use crate::capacity::NO_TRAFFIC_TIMEOUT;
use crate::capacity::batch::{Batch, Refused};
use crate::capacity::event::{Event, Sink, TrialReport, Warning};
use crate::capacity::intervals::{SubInterval, Times};
use crate::capacity::limited::Limit;
use crate::capacity::pdu::{Load, Pdu, SenderNotice, Status, TestAction};
use crate::capacity::sender::StatusOrder;

/// Whether a buffer was for a running test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Yes, good or bad.
    Data,
    /// It begins with a PDU of the control phase: repeated, late, or meant for another.
    Control,
}

impl Connection {
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
                if batch.stops > 0 {
                    let stops = buffer.chunks(usize::from(stride).max(1));
                    self.peer_notice = stops.filter_map(SenderNotice::read).next_back();
                }
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

    fn load_came(&mut self, batch: &Batch, bleached: bool, now: Nanos, sink: &mut impl Sink) {
        if batch.refused.sum() > 0 {
            self.refuse(batch.refused, sink);
        }
        if batch.valid == 0 {
            return;
        }
        self.heard(batch.peer_rx_stopped, batch.valid > batch.stops, now, sink);
        if batch.status_errors > 0 {
            if batch.status_errors != Load::STATUS_LATE {
                self.status_lost.at_peer += u64::from(batch.status_errors);
            }
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
            StatusOrder::Next { lost } => {
                self.status_lost.here += u64::from(lost);
                self.warn(Warning::StatusLost(lost), sink);
            }
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
        let sent = sender.take_trial();
        let limited = sent.limited();
        self.trials += 1;
        self.limited_trials += u32::from(limited);
        let trial = trial_of(status);
        let rate = match &mut self.server {
            Some(server) => {
                let held = server.limit_of_own(&sent);
                server.step(&trial, held)
            }
            None => status.rate,
        };
        sender.set_rate(&rate, now);
        sink.event(Event::Trial(TrialReport {
            trial,
            delay_var: Times {
                min_ms: status.delay_var_min,
                max_ms: status.delay_var_max,
                sum_ms: status.delay_var_sum.into(),
                count: status.delay_var_cnt.into(),
            }
            .spread(),
            bytes: status.ti_rx_bytes,
            delta_us: status.ti_delta_time,
            row: self.server.as_ref().map(Search::index),
            limit: if limited { Limit::Sender } else { Limit::Path },
        }));
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

    fn refuse(&mut self, refused: Refused, sink: &mut impl Sink) {
        self.refused.size = self.refused.size.saturating_add(refused.size);
        self.refused.format = self.refused.format.saturating_add(refused.format);
        self.refused.checksum = self.refused.checksum.saturating_add(refused.checksum);
        self.warn(Warning::BadData(refused), sink);
    }
}
