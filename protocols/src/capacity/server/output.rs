//! From a running test to its socket: bursts, PDUs, counters, events.
//!
//! Nothing here waits; what finds no room is given back to the sender of the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::TrySendError;

use rand::rngs::SmallRng;
use ringmill_engine::{Context, Payload, SocketId, Transmit};

use super::event::{About, RecordBatch, ServerEvent};
use super::handover::Message;
use super::settings::Settings;
use super::shared::ShardShared;
use crate::capacity::batch::LoadRecord;
use crate::capacity::burst::Burst;
use crate::capacity::connection::Half;
use crate::capacity::event::{End, Event, Sink, TrialReport, Warning};
use crate::capacity::rates::{HEADERS_BYTES_V4, HEADERS_BYTES_V6};
use crate::capacity::transmit::{Filler, Queued, Route};

/// Load records that go to the writer together.
const RECORDS_PER_BATCH: usize = 512;

/// See the [module's page](self).
pub(super) struct Output<'a, 'c> {
    pub(super) ctx: &'a mut Context<'c, Message>,
    pub(super) settings: &'a Settings,
    pub(super) shown: &'a ShardShared,
    pub(super) rng: &'a mut SmallRng,
    pub(super) filler: &'a mut Filler,
    pub(super) about: &'a Arc<About>,
    pub(super) records: &'a mut Vec<LoadRecord>,
    pub(super) socket: SocketId,
    pub(super) peer: SocketAddr,
    pub(super) ecn: u8,
    pub(super) random_payload: bool,
    pub(super) half: Half,
    /// The end, if it came.
    pub(super) ended: Option<End>,
    /// A trial has ended: what is looked at from time to time is looked at now.
    pub(super) trial_ended: bool,
}

impl Output<'_, '_> {
    fn headers_bytes(&self) -> u64 {
        let headers = if self.peer.is_ipv6() {
            HEADERS_BYTES_V6
        } else {
            HEADERS_BYTES_V4
        };
        headers.into()
    }

    fn say(&self, event: ServerEvent) {
        say(self.settings, self.shown, event);
    }

    fn trial(&mut self, report: TrialReport) {
        let counters = &self.shown.counters;
        let trial = &report.trial;
        let ip_bytes = u64::from(report.bytes) + u64::from(trial.datagrams) * self.headers_bytes();
        let out_of_place = u64::from(trial.out_of_order) + u64::from(trial.duplicates);
        match self.half {
            Half::Sender => {
                counters.status_rx_messages.add(1);
                counters.delivered_tx_datagrams.add(trial.datagrams.into());
                counters.delivered_tx_ip_bytes.add(ip_bytes);
                counters.delivered_tx_lost.add(trial.loss.into());
                counters.delivered_tx_ooo_dup.add(out_of_place);
            }
            Half::Receiver => {
                counters.status_tx_messages.add(1);
                counters.delivered_rx_datagrams.add(trial.datagrams.into());
                counters.delivered_rx_ip_bytes.add(ip_bytes);
                counters.delivered_rx_lost.add(trial.loss.into());
                counters.delivered_rx_ooo_dup.add(out_of_place);
            }
        }
        if self.settings.trial_events {
            self.say(ServerEvent::Trial {
                about: Arc::clone(self.about),
                report,
            });
        }
    }

    fn warning(&mut self, warning: Warning) {
        let counters = &self.shown.counters;
        match warning {
            Warning::TrafficStopped => counters.traffic_stopped_here.add(1),
            Warning::TrafficStoppedAtPeer => counters.traffic_stopped_at_peer.add(1),
            _ => {}
        }
        self.say(ServerEvent::Warning {
            about: Arc::clone(self.about),
            warning,
        });
    }

    /// Gives the writer what has been recorded.
    pub(super) fn flush_records(&mut self) {
        let Some(outlet) = &self.settings.outlets.records else {
            return;
        };
        if self.records.is_empty() {
            return;
        }
        let batch = RecordBatch {
            about: Arc::clone(self.about),
            rows: std::mem::replace(self.records, Vec::with_capacity(RECORDS_PER_BATCH)),
        };
        let refused = match outlet.try_send(batch) {
            Ok(()) => return,
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => batch,
        };
        let counters = &self.shown.counters;
        counters.records_dropped.add(refused.rows.len() as u64);
    }
}

/// Tells the control thread something, if it listens.
pub(super) fn say(settings: &Settings, shown: &ShardShared, event: ServerEvent) {
    if settings.outlets.events.try_send(event).is_err() {
        shown.counters.events_dropped.add(1);
    }
}

impl Sink for Output<'_, '_> {
    fn burst(&mut self, burst: &Burst) -> u32 {
        let count = burst.count();
        let route = Route {
            socket: self.socket,
            peer: self.peer,
            ecn: self.ecn,
        };
        let random = self.random_payload.then_some(&mut *self.rng);
        let Queued {
            datagrams: taken,
            bytes,
        } = self.filler.send(self.ctx, &route, burst, random);
        let counters = &self.shown.counters;
        counters.tx_bursts.add(1);
        counters.tx_datagrams.add(taken.into());
        let headers = u64::from(taken) * self.headers_bytes();
        counters.tx_ip_bytes.add(bytes + headers);
        self.shown.peaks.tx_burst_size.raise(taken.into());
        if taken < count {
            let missing = u64::from(count - taken);
            counters.tx_overruns.add(1);
            counters.tx_overrun_datagrams.add(missing);
            self.shown.peaks.tx_overrun_size.raise(missing);
        }
        taken
    }

    fn pdu(&mut self, bytes: &[u8]) {
        let transmit = Transmit {
            ecn: self.ecn,
            ..Transmit::one(Some(self.peer), Payload::from(bytes.to_vec()))
        };
        // One that finds no room is lost, like any other: the next one follows soon.
        let _ = self.ctx.send_datagrams(self.socket, transmit);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Warning(warning) => self.warning(warning),
            Event::Trial(report) => {
                self.trial_ended = true;
                self.trial(report);
            }
            Event::SubInterval(sub_interval) => self.say(ServerEvent::SubInterval {
                about: Arc::clone(self.about),
                sub_interval,
            }),
            Event::Ended(end) => self.ended = Some(end),
        }
    }

    fn records(&self) -> bool {
        self.settings.outlets.records.is_some()
    }

    fn record(&mut self, load: &LoadRecord) {
        self.records.push(*load);
        if self.records.len() >= RECORDS_PER_BATCH {
            self.flush_records();
        }
    }
}
