//! Tests that run: what their clients send, their timers, and their end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringmill_engine::Datagram;

use super::control::{Ctx, Server, answer};
use super::event::ServerEvent;
use super::output::Output;
use super::slab::Place;
use super::tally::count_data;
use super::test::{State, Test, half, totals};
use crate::capacity::batch::Refused;
use crate::capacity::connection::{Connection, Half, StatusLost, Taken};
use crate::capacity::event::End;
use crate::capacity::parameters::Direction;
use crate::capacity::sender::COARSE_TICK;

impl Server {
    /// Takes what came to a test's socket.
    pub(super) fn arrived(&mut self, ctx: &mut Ctx<'_>, place: Place, batch: &mut Vec<Datagram>) {
        let Some(mut test) = self.tests.take(place) else {
            return;
        };
        let mut ended = None;
        for datagram in batch.drain(..) {
            if let State::Pending { .. } = test.state {
                for bytes in datagram.iter() {
                    if self.activate(ctx, &mut test, datagram.peer, bytes) {
                        break;
                    }
                }
                continue;
            }
            if datagram.peer != test.peer {
                let count = datagram.count() as u64;
                self.counters().data_wrong_source.add(count);
                continue;
            }
            ended = self.data(ctx, &mut test, &datagram);
            if ended.is_some() {
                break;
            }
        }
        self.settle(ctx, place, test, ended);
    }

    /// Takes what came from the client of a running test.
    fn data(&mut self, ctx: &mut Ctx<'_>, test: &mut Test, datagram: &Datagram) -> Option<End> {
        let now = ctx.now();
        let (stride, ecn) = (datagram.stride, datagram.ecn);
        let (before, lost_before) = (refused(test), status_lost(test));
        let (taken, ended) = self.with(ctx, test, |connection, output| {
            connection.datagram(&datagram.data, stride, ecn, now, output)
        })?;
        let State::Running {
            parameters,
            activated,
            ..
        } = &mut test.state
        else {
            return ended;
        };
        let counters = &self.shared.shards[usize::from(self.shard)].counters;
        match taken {
            Taken::Control => {
                // The answer to the activation was lost, or this is nothing of ours.
                if activated.is_repeated_by(&datagram.data) {
                    counters.activation_accepts_sent.add(1);
                    answer(ctx, test.socket, test.peer, None, &activated.response);
                }
            }
            Taken::Data => {
                let direction = parameters.direction;
                if half(direction) == Half::Receiver {
                    let count = datagram.count() as u64;
                    let headers = count * if test.peer.is_ipv6() { 48 } else { 28 };
                    counters.rx_bursts.add(1);
                    counters.rx_datagrams.add(count);
                    counters
                        .rx_ip_bytes
                        .add(datagram.data.len() as u64 + headers);
                    self.shown().peaks.rx_burst_size.raise(count);
                }
                let counters = self.counters();
                count_data(counters, direction, before, refused(test));
                let lost = status_lost(test);
                counters.status_lost_here.add(lost.here - lost_before.here);
                counters
                    .status_lost_at_peer
                    .add(lost.at_peer - lost_before.at_peer);
            }
        }
        ended
    }

    /// Has a running test do something; `None` for one that waits.
    pub(super) fn with<R>(
        &mut self,
        ctx: &mut Ctx<'_>,
        test: &mut Test,
        act: impl FnOnce(&mut Connection, &mut Output<'_, '_>) -> R,
    ) -> Option<(R, Option<End>)> {
        let State::Running {
            connection,
            parameters,
            ..
        } = &mut test.state
        else {
            return None;
        };
        let mut output = Output {
            ctx,
            settings: &self.shared.settings,
            shown: &self.shared.shards[usize::from(self.shard)],
            rng: &mut self.rng,
            filler: &mut self.filler,
            about: &test.about,
            records: &mut test.records,
            socket: test.socket,
            peer: test.peer,
            ecn: test.ecn,
            random_payload: parameters.random_payload,
            half: half(parameters.direction),
            ended: None,
            trial_ended: false,
        };
        let result = act(connection, &mut output);
        let ended = output.ended;
        if output.trial_ended || ended.is_some() {
            output.flush_records();
            if test.segmented && !output.ctx.is_segmented(test.socket) {
                test.segmented = false;
                self.counters().not_segmented.add(1);
                self.say(ServerEvent::NotSegmented {
                    about: Arc::clone(&test.about),
                });
            }
        }
        Some((result, ended))
    }

    /// Puts a test back with its timer set, or ends it.
    pub(super) fn settle(
        &mut self,
        ctx: &mut Ctx<'_>,
        place: Place,
        mut test: Box<Test>,
        ended: Option<End>,
    ) {
        let State::Running {
            connection,
            parameters,
            ..
        } = &test.state
        else {
            return self.tests.put(place, test);
        };
        if let Some(end) = ended {
            self.say(ServerEvent::Ended {
                about: Arc::clone(&test.about),
                direction: parameters.direction,
                end,
                totals: totals(connection),
            });
            let counters = self.counters();
            counters.tests_ended.add(1);
            counters.tests_complete.add(u64::from(end.is_complete()));
            return self.end(ctx, place, *test);
        }
        if let Some(deadline) = connection.next_deadline() {
            // Receivers wake the shard together too. The status PDUs of one stay as far apart.
            let deadline = match half(parameters.direction) {
                Half::Receiver => deadline.next_multiple_of(COARSE_TICK),
                Half::Sender => {
                    if let Some(until) = self.pacer.awake_until(deadline, ctx.now()) {
                        ctx.stay_awake_until(until);
                    }
                    deadline
                }
            };
            // A timer that fires too early costs less than setting it anew with every datagram.
            let earlier = test.timer.as_ref().is_none_or(|(set, _)| deadline < *set);
            if earlier {
                if let Some((_, timer)) = test.timer.take() {
                    ctx.cancel_timer(timer);
                }
                test.timer = Some((deadline, ctx.set_timer(deadline, place.word())));
            }
        }
        self.tests.put(place, test);
    }

    /// Nothing of a test is left but what was counted.
    pub(super) fn end(&mut self, ctx: &mut Ctx<'_>, place: Place, test: Test) {
        self.book(&test, false);
        match test.state {
            State::Pending { .. } => self.pending -= 1,
            State::Running { .. } => self.running -= 1,
        }
        self.counters().pending.set(self.pending.into());
        self.counters().running.set(self.running.into());
        if let Some((_, timer)) = test.timer {
            ctx.cancel_timer(timer);
        }
        ctx.close_socket(test.socket);
        self.ports.give_back(test.about.local.port());
        self.shared.tests.fetch_sub(1, Ordering::Relaxed);
        self.shared.board.left(self.shard);
        self.tests.end(place);
    }

    pub(super) fn book(&mut self, test: &Test, more: bool) {
        let mbps = u64::from(test.accepted.max_bandwidth_mbps);
        let upstream = test.accepted.booking.direction() == Direction::Upstream;
        let booked = &mut self.booked_mbps[usize::from(upstream)];
        *booked = if more { *booked + mbps } else { *booked - mbps };
        let [downstream, upstream] = self.booked_mbps;
        let counters = self.counters();
        counters.booked_upstream_mbps.set(upstream);
        counters.booked_downstream_mbps.set(downstream);
    }

    /// A timer of a test has fired.
    pub(super) fn test_timer(&mut self, ctx: &mut Ctx<'_>, place: Place) {
        let Some(mut test) = self.tests.take(place) else {
            return;
        };
        let deadline = test
            .timer
            .take()
            .map_or(ctx.now(), |(deadline, _)| deadline);
        if let State::Pending { .. } = test.state {
            self.counters().activation_timeout_waiting.add(1);
            self.say(ServerEvent::NotActivated {
                about: Arc::clone(&test.about),
                evicted: false,
            });
            return self.end(ctx, place, *test);
        }
        let now = ctx.now();
        self.count_late(deadline, now);
        let acted = self.with(ctx, &mut test, |connection, output| {
            connection.timer(now, output);
        });
        let ended = acted.and_then(|((), ended)| ended);
        self.settle(ctx, place, test, ended);
    }

    /// All tests end: their clients are told once.
    pub(super) fn end_all(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now();
        for place in self.tests.places() {
            let Some(mut test) = self.tests.take(place) else {
                continue;
            };
            let acted = self.with(ctx, &mut test, |connection, output| {
                connection.stop(now, output);
                connection.timer(now, output);
            });
            let ended = acted.and_then(|((), ended)| ended);
            self.settle(ctx, place, test, ended);
        }
    }
}

fn refused(test: &Test) -> Refused {
    match &test.state {
        State::Running { connection, .. } => connection.refused(),
        State::Pending { .. } => Refused::default(),
    }
}

fn status_lost(test: &Test) -> StatusLost {
    match &test.state {
        State::Running { connection, .. } => connection.status_lost(),
        State::Pending { .. } => StatusLost::default(),
    }
}
