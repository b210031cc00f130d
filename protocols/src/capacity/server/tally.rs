//! What a shard counts of itself: its load for the board, late turns, refused PDUs by their reason.

use ringmill_engine::Nanos;
use ringmill_engine::time::NANOS_PER_SECOND;

use super::control::{Ctx, HOUSEKEEPING, HOUSEKEEPING_INTERVAL, Server};
use super::counters::ServerCounters;
use super::test::TICK;
use crate::capacity::auth::AuthError;
use crate::capacity::batch::Refused;
use crate::capacity::parameters::Direction;
use crate::capacity::pdu::DecodeError;

impl Server {
    pub(super) fn bytes(&self) -> u64 {
        let counters = self.counters();
        counters.tx_ip_bytes.get() + counters.rx_ip_bytes.get()
    }

    /// Tells the others what this shard does.
    pub(super) fn keep_house(&mut self, ctx: &mut Ctx<'_>) {
        let (bytes, at) = self.seen;
        let elapsed = (ctx.now() - at).max(1);
        self.seen = (self.bytes(), ctx.now());
        let bits = u128::from(self.seen.0 - bytes) * 8;
        let mbps = bits * u128::from(NANOS_PER_SECOND) / u128::from(elapsed) / 1_000_000;
        let board = &self.shared.board;
        board.set_mbps(self.shard, u32::try_from(mbps).unwrap_or(u32::MAX));
        self.housekeeping = self.pending + self.running > 0;
        if self.housekeeping {
            ctx.set_timer(ctx.now() + HOUSEKEEPING_INTERVAL, HOUSEKEEPING);
        } else {
            board.set_mbps(self.shard, 0);
        }
    }

    /// Counts a turn that comes so late that several ticks are done as one.
    pub(super) fn count_late(&mut self, deadline: Nanos, now: Nanos) {
        let ticks = 1 + now.saturating_sub(deadline) / TICK;
        // The timers of a turn were all late by as much.
        if ticks > 1 && std::mem::replace(&mut self.late_turn, now) != now {
            self.counters().coalesced_bursts.add(1);
            self.counters().coalesced_ticks.add(ticks);
            self.shown().peaks.coalesced_ticks.raise(ticks);
        }
    }

    /// Counts the sockets that had something in one turn.
    pub(super) fn count_ready(&mut self, now: Nanos) {
        if self.ready.1 != now {
            self.counters().ready_turns.add(1);
            self.ready = (0, now);
        }
        self.ready.0 += 1;
        self.counters().ready_sockets.add(1);
        self.shown().peaks.ready_sockets.raise(self.ready.0);
    }
}

pub(super) fn count_control(counters: &ServerCounters, error: DecodeError) {
    match error {
        DecodeError::Size { .. } => counters.control_invalid_size.add(1),
        DecodeError::Format { .. } => counters.control_invalid_format.add(1),
        DecodeError::Checksum { .. } => counters.control_invalid_checksum.add(1),
    }
}

pub(super) fn count_auth(counters: &ServerCounters, error: AuthError) {
    match error {
        AuthError::Digest => counters.control_auth_failure.add(1),
        AuthError::Time { .. } => counters.control_bad_auth_time.add(1),
    }
}

pub(super) fn count_data(
    counters: &ServerCounters,
    direction: Direction,
    before: Refused,
    after: Refused,
) {
    if before == after {
        return;
    }
    let (size, format, checksum) = match direction {
        Direction::Upstream => (
            &counters.data_load_invalid_size,
            &counters.data_load_invalid_format,
            &counters.data_load_invalid_checksum,
        ),
        Direction::Downstream => (
            &counters.data_status_invalid_size,
            &counters.data_status_invalid_format,
            &counters.data_status_invalid_checksum,
        ),
    };
    size.add(u64::from(after.size - before.size));
    format.add(u64::from(after.format - before.format));
    checksum.add(u64::from(after.checksum - before.checksum));
}
