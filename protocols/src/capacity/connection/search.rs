//! The search of a server: trial by trial the next row, unless a sender is the limit.

use std::sync::Arc;

use ringmill_engine::time::Nanos;

use crate::capacity::adjust::{AdjustSettings, Adjuster, Trial};
use crate::capacity::limited::{Limit, OwnLimit, PeerLimit};
use crate::capacity::parameters::TestParameters;
use crate::capacity::pdu::{RateStructure, Status};
use crate::capacity::rates::{HEADERS_BYTES_V4, HEADERS_BYTES_V6, RateTable};
use crate::capacity::receiver::Receiver;
use crate::capacity::sender::TrialSent;

/// The row of one connection, and what chooses it.
pub(super) struct Search {
    adjuster: Adjuster,
    rows: Arc<RateTable>,
    /// Of the adjuster's row, in Mbit/s.
    row_mbps: f64,
    own_limit: OwnLimit,
    peer_limit: Option<PeerLimit>,
}

impl Search {
    pub(super) fn new(
        parameters: &TestParameters,
        rows: &Arc<RateTable>,
        row_max: Option<u16>,
        infer_peer_limit: bool,
    ) -> Self {
        let adjuster = Adjuster::new(AdjustSettings {
            last_row: rows.last(),
            row_max,
            ..AdjustSettings::new(*parameters)
        });
        Self {
            row_mbps: rows.mbps(adjuster.row()),
            own_limit: OwnLimit::default(),
            peer_limit: infer_peer_limit.then(PeerLimit::default),
            rows: Arc::clone(rows),
            adjuster,
        }
    }

    /// The index of the row.
    pub(super) fn index(&self) -> u16 {
        self.adjuster.row()
    }

    /// The row.
    pub(super) fn rate(&self) -> RateStructure {
        self.rows.row(self.index()).rate
    }

    /// Row 0.
    pub(super) fn lowest(&self) -> RateStructure {
        self.rows.row(0).rate
    }

    /// Takes a trial into account; returns the row from now on.
    pub(super) fn step(&mut self, trial: &Trial, held: bool) -> RateStructure {
        let before = self.index();
        let index = self.adjuster.step(trial, held);
        if index != before {
            self.row_mbps = self.rows.mbps(index);
        }
        self.rate()
    }

    /// Whether this end's sender would send no more by a higher row, after a trial.
    pub(super) fn limit_of_own(&mut self, sent: &TrialSent) -> bool {
        self.own_limit
            .trial(sent.due, sent.missed.max(sent.refused))
    }

    /// Whether the peer's sender is the limit of a trial that ends now.
    pub(super) fn limit_of_peer(
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
        let headers = if ipv6 {
            HEADERS_BYTES_V6
        } else {
            HEADERS_BYTES_V4
        };
        let bits = (bytes + u64::from(trial.datagrams) * u64::from(headers)) * 8;
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

/// The trial that a status PDU reports.
pub(super) fn trial_of(status: &Status) -> Trial {
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
