//! How a shard stops: it drains within a deadline, or ends at once.

use super::Shard;
use super::timers::{DRAIN_DEADLINE, ENGINE};
use crate::control::Stop;
use crate::driver::Close;
use crate::protocol::Closed;
use crate::stream::State;
use crate::time::from_duration;

impl Shard {
    pub(super) fn follow_control(&mut self) {
        let wanted = self.core.control.stop();
        if wanted != self.core.stop {
            let first = self.core.stop == Stop::Run;
            self.core.stop = wanted;
            if first {
                self.begin_drain();
            }
            if wanted == Stop::Now {
                self.close_everything();
            }
        }
        if self.core.stop != Stop::Run {
            if self.core.tables.sockets.live() > 0 {
                self.close_sockets(false);
                // A send that succeeds ends no wait, and the socket is closed when it is known.
                self.work_left |= !self.core.tables.sockets.dirty.is_empty();
            }
            let idle = self.core.tables.streams.live() == 0 && self.core.tables.sockets.live() == 0;
            if idle && !self.ended {
                self.ended = true;
                for service in &mut self.services {
                    service.stopped();
                }
            }
        }
    }

    fn begin_drain(&mut self) {
        let core = &mut self.core;
        core.driver.accept(&mut core.tables, false);
        for service in &mut self.services {
            service.stopping(&mut self.core);
        }
        // What a protocol has resumed just now it still gets.
        self.deliver_held();
        let core = &mut self.core;
        let deadline = core
            .now
            .saturating_add(from_duration(core.tables.limits.drain_timeout));
        core.timers.insert(deadline, (ENGINE, DRAIN_DEADLINE));
        let streams: Vec<u32> = core
            .tables
            .streams
            .live_in(0..u32::MAX)
            .map(|(index, _)| index)
            .collect();
        for index in streams {
            let id = core.tables.streams.id(index);
            let stream = core.tables.streams.at(index);
            match stream.state {
                // The peer has ended, and its protocol knows or does not want to: nothing can be
                // lost by closing.
                State::Open if stream.ended => core.close(id, Closed::Stopping),
                State::Open => {
                    let paused = stream.paused;
                    core.finish(id);
                    if paused {
                        core.discard(id);
                    }
                }
                State::Connecting => core.take_down(id, Close::Reset, Closed::Stopping),
                _ => {}
            }
        }
        self.close_sockets(false);
        self.tell_closed();
        self.work_left = true;
    }

    /// Closes the datagram sockets that have nothing left to send, or all.
    fn close_sockets(&mut self, all: bool) {
        let core = &mut self.core;
        for index in 0..core.tables.sockets.len() {
            let id = core.tables.sockets.id(index);
            if core
                .tables
                .sockets
                .get(id)
                .is_some_and(|socket| all || socket.queue.is_empty())
            {
                core.driver.close_socket(&mut core.tables, index);
            }
        }
    }

    pub(super) fn close_everything(&mut self) {
        self.close_sockets(true);
        let core = &mut self.core;
        let streams: Vec<u32> = core
            .tables
            .streams
            .live_in(0..u32::MAX)
            .map(|(index, _)| index)
            .collect();
        for index in streams {
            let id = core.tables.streams.id(index);
            core.take_down(id, Close::Reset, Closed::Stopping);
        }
        self.tell_closed();
        self.work_left = true;
    }
}
