//! Queries that are due, spread over the connections: uniformly at random, each query by itself.
//!
//! One turn notes what is due connection by connection and then hands each connection its queries
//! as one slice of the table. What cannot leave is counted by its cause and never waits: a query
//! that waited for one connection would hold up those of the others, and the load would depend on
//! the answers.

use rand::Rng;
use ringmill_engine::{Context, Nanos, Payload, Sent, ShardId, Transmit};

use super::client::{DnsLoad, Handle, PACE, lost};
use super::ids::Flight;
use super::record::RecordKind;
use crate::load::{Command, Instants, Spacing, Unsent};

/// A query that is so late is given up: past its maximum the client then goes on at the rate that
/// it can, and is late by this much and no more.
pub const LATE_MAX: Nanos = 1_000_000_000;
/// Queries that leave in one turn: between two turns answers are read. A larger burst would only
/// overflow a server's receive buffer.
const BURST_MAX: usize = 1024;
/// On streams so many for each that is open: a client that is behind sends more at once on each, or it
/// would fall further behind.
const BURST_EACH: usize = 8;
/// However many streams there are: noting so many takes about a millisecond.
const BURST_STREAMS_MAX: usize = 1 << 14;
/// Queries in flight on all connections of a shard, 16 bytes each: with a timeout of 5 s and no
/// answers at all, those of 1.6 million a second.
const OUTSTANDING_MAX: usize = 1 << 23;

impl DnsLoad {
    /// The schedule of this shard: its connections' part of the plan.
    pub(super) fn begin_sending(&mut self, shard: ShardId, shards: u16) {
        let part = self.connections.len() as f64 / self.config.connections.max(1) as f64;
        if part == 0.0 {
            return;
        }
        let spacing = if self.config.poisson {
            let seed = self.config.seed.wrapping_add(u64::from(shard) << 32);
            Spacing::Poisson { seed }
        } else {
            let offset = u32::from(shard) * 65_536 / u32::from(shards);
            Spacing::Even {
                offset: offset as u16,
            }
        };
        let plan = std::sync::Arc::clone(&self.config.plan);
        self.instants = Some(Instants::new(plan, part, spacing, self.start_at));
    }

    /// Sends what is due now, and sets the next wake-up.
    pub(super) fn pace(&mut self, ctx: &mut Context<'_, Command>) {
        // The wake-up that was set before the end still comes.
        if self.ended {
            return;
        }
        let clock = ctx.clock();
        // A late turn must not send what was meant for after the end.
        let now = clock.min(self.end_at.saturating_sub(1));
        let Some(mut instants) = self.instants.take() else {
            return;
        };
        // Too late by the clock, also after the end.
        self.give_up_late(&mut instants, now.min(clock.saturating_sub(LATE_MAX)));
        let sent = self.recorder.stamp(clock);
        let burst = match self.config.datagrams {
            true => BURST_MAX,
            false => (BURST_EACH * self.open.len()).clamp(BURST_MAX, BURST_STREAMS_MAX),
        };
        for _ in 0..burst {
            let Some(intended) = instants.pop_due(now) else {
                break;
            };
            self.note(Flight { intended, sent });
        }
        self.flush(ctx, clock);
        if let Some(next) = instants.next_intended() {
            ctx.set_timer(next, PACE);
        }
        self.instants = Some(instants);
    }

    pub(super) fn give_up_late(&mut self, instants: &mut Instants, too_late: Nanos) {
        let mut given_up = 0;
        while instants.pop_due(too_late).is_some() {
            given_up += 1;
        }
        self.recorder.unsent(Unsent::Late, given_up);
    }

    /// Chooses the connection of a query and notes it there.
    #[inline]
    fn note(&mut self, flight: Flight) {
        if self.open.is_empty() {
            self.recorder.unsent(Unsent::NoConnection, 1);
            return;
        }
        let at = self.open[self.choice.random_range(0..self.open.len())];
        let connection = &mut self.connections[at as usize];
        if let Some(overtaken) = connection.ids.give_up_overtaken() {
            self.outstanding -= 1;
            lost(&mut self.recorder, &overtaken);
        }
        if !connection.ids.has_room() || self.outstanding == OUTSTANDING_MAX {
            self.recorder.unsent(Unsent::NoRoom, 1);
            return;
        }
        connection.ids.push(flight);
        if connection.pending == 0 {
            self.touched.push(at);
        }
        connection.pending += 1;
        self.outstanding += 1;
    }

    /// Hands every connection its queries.
    fn flush(&mut self, ctx: &mut Context<'_, Command>, clock: Nanos) {
        let mut touched = std::mem::take(&mut self.touched);
        for at in touched.drain(..) {
            let connection = &mut self.connections[at as usize];
            let count = std::mem::take(&mut connection.pending) as usize;
            let first = connection.ids.next() - count as u64;
            let Some(handle) = connection.handle else {
                continue;
            };
            let (sent, result) = match handle {
                Handle::Stream(stream) => {
                    let (mut done, mut result) = (0, Sent::Queued);
                    while done < count && result.is_queued() {
                        let next = first + done as u64;
                        let (bytes, queries) = self.config.queries.run(next, count - done);
                        result = ctx.send(stream, bytes);
                        done += if result.is_queued() { queries } else { 0 };
                    }
                    (done, result)
                }
                Handle::Socket(socket) => {
                    let (mut done, mut result) = (0, Sent::Queued);
                    while done < count && result.is_queued() {
                        let next = first + done as u64;
                        let len = self.config.queries.run(next, 1).0.len();
                        let at_once = ctx.segments_max(len).min(count - done);
                        let (bytes, queries) = self.config.queries.equal_run(next, at_once);
                        let transmit = Transmit {
                            peer: None,
                            source: None,
                            ecn: 0,
                            stride: len as u16,
                            data: Payload::Static(bytes),
                        };
                        result = ctx.send_datagrams(socket, transmit);
                        done += if result.is_queued() { queries } else { 0 };
                    }
                    (done, result)
                }
            };
            self.account(at, first, count, sent, result, clock, ctx.shard());
        }
        self.touched = touched;
    }

    /// Counts what was sent on a connection, and takes back what was not.
    #[allow(
        clippy::too_many_arguments,
        reason = "the outcome of one send, used in one place"
    )]
    fn account(
        &mut self,
        at: u32,
        first: u64,
        count: usize,
        sent: usize,
        result: Sent,
        clock: Nanos,
        shard: ShardId,
    ) {
        let connection = &mut self.connections[at as usize];
        if sent < count {
            connection.ids.unpush(count - sent);
            self.outstanding -= count - sent;
            let cause = match result {
                Sent::Closed => Unsent::NoConnection,
                Sent::Full | Sent::Queued => Unsent::QueueFull,
            };
            self.recorder.unsent(cause, (count - sent) as u64);
        }
        let connection = &mut self.connections[at as usize];
        self.recorder.sent(sent as u64);
        if self.recorder.measuring {
            for flight in connection.ids.newest(sent) {
                let lateness = clock.saturating_sub(flight.intended);
                self.figures.late_by(lateness);
                self.recorder.late_by(lateness);
            }
        }
        if result == Sent::Closed && self.config.datagrams {
            // A stream's end is told by `closed`, a socket's only here.
            self.recorder.failed(("send", "socket closed"));
            self.take_out(at);
        }
        if self.is_recording() {
            for number in first..first + sent as u64 {
                let kind = RecordKind::Query { process: shard };
                self.record(at, number as u16, clock, kind);
            }
        }
    }
}
