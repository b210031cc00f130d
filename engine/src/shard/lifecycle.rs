//! The life of a stream, as its protocol and its shard act on it: pause, resume, finish, close. What
//! arrived before a pause took effect is held here.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::Core;
use crate::Buffer;
use crate::driver::Close;
use crate::ids::StreamId;
use crate::protocol::Closed;
use crate::stream::State;

/// Data that had left the kernel before a pause took effect. Copied out of the receive buffers, so
/// that many paused streams cannot starve the others; bounded by what one receive request had
/// completed before it was cancelled.
#[derive(Default)]
pub(super) struct Held {
    pub(super) data: VecDeque<Buffer>,
    pub(super) ended: bool,
}

impl Core {
    /// Send the rest, then take the stream down.
    pub(crate) fn close(&mut self, id: StreamId, reason: Closed) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        match stream.state {
            State::Open if stream.queue.is_some() => {
                stream.state = State::Draining;
                self.driver.read(&mut self.tables, id.index, false);
            }
            State::Open | State::Connecting => self.take_down(id, Close::Graceful, reason),
            State::Draining | State::Closing | State::Free => {}
        }
    }

    /// Reads a paused stream again: first what is held for it.
    pub(crate) fn resume(&mut self, id: StreamId) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        if stream.state != State::Open || !stream.paused {
            return;
        }
        stream.paused = false;
        if stream.holding {
            self.resumed.push(id);
        } else {
            self.driver.read(&mut self.tables, id.index, true);
        }
    }

    pub(crate) fn pause(&mut self, id: StreamId) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        // One that is read only to its end must not be stopped from it.
        if stream.state == State::Open && !stream.paused && !stream.discarding {
            stream.paused = true;
            self.driver.read(&mut self.tables, id.index, false);
        }
    }

    /// Reads a stream that its protocol has paused to its end, and throws away what comes. For a
    /// stop: nothing that it brings can be answered, and unread it would keep the peer from ending
    /// and turn our own end into a reset.
    pub(super) fn discard(&mut self, id: StreamId) {
        let stream = self.tables.streams.at(id.index);
        stream.paused = false;
        stream.discarding = true;
        // From here on `holding` only keeps what arrives away from the protocol.
        stream.holding = true;
        self.held.remove(&id.index);
        self.driver.read(&mut self.tables, id.index, true);
    }

    pub(crate) fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        if stream.state == State::Open && !stream.finishing {
            stream.finishing = true;
            if stream.queue.is_none() {
                self.driver.finish(&mut self.tables, id.index);
            }
        }
    }

    /// Take the stream down now and remember to tell its protocol.
    pub(crate) fn take_down(&mut self, id: StreamId, how: Close, reason: Closed) {
        let Some(stream) = self.tables.streams.get(id) else {
            return;
        };
        if matches!(stream.state, State::Closing | State::Free) {
            return;
        }
        let announced = stream.announced || stream.state == State::Connecting;
        let service = stream.service;
        stream.state = State::Closing;
        if std::mem::take(&mut stream.holding) {
            self.held.remove(&id.index);
        }
        if announced {
            self.closing.push((id, service, reason));
        }
        let counters = &self.tables.metrics.services[usize::from(service)];
        if stream.announced {
            counters.closed.add(1);
            counters.open.set(counters.open.get().saturating_sub(1));
        } else if announced {
            counters.connect_failed.add(1);
        }
        match reason {
            Closed::Error(_) => counters.failed.add(1),
            Closed::Idle => counters.idle_closed.add(1),
            Closed::Stalled => counters.stalled_closed.add(1),
            Closed::Normally | Closed::Stopping => {}
        }
        if stream.accepted {
            self.control.connections.fetch_sub(1, Ordering::Relaxed);
        }
        self.driver.close(&mut self.tables, id.index, how);
    }
}
