//! What a turn does before it looks at the ready list: outcomes of calls between two waits, and what
//! the last turn has not read to its end.

use super::Epoll;
use super::interest::bit;
use super::streams::can_receive;
use crate::driver::{Event, Tables};

impl Epoll {
    /// Ends the entries of closed streams; whether there were any.
    pub(super) fn free_closed(&mut self, tables: &mut Tables) -> bool {
        let any = !self.closed.is_empty();
        for index in self.closed.drain(..) {
            tables.streams.remove(index);
        }
        any
    }

    /// Reports what became of calls between the waits, unless the stream is closed by now.
    pub(super) fn take_pending(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        for event in std::mem::take(&mut self.pending) {
            match event {
                Event::Connected { stream } if tables.streams.get(stream).is_some() => {
                    self.connected(tables, stream, events);
                }
                Event::Failed { stream, errno } if tables.streams.get(stream).is_some() => {
                    tables.stream_failed(stream.index, bit::FAILED, errno, events);
                }
                Event::AcceptFailed { .. } => events.push(event),
                _ => {}
            }
        }
    }

    /// Receives from what was not read to its end, before anything newer gets the buffers.
    pub(super) fn receive_listed(&mut self, tables: &mut Tables, events: &mut Vec<Event>) {
        if !self.readable.is_empty() {
            for id in std::mem::take(&mut self.readable) {
                let Some(stream) = tables.streams.get(id) else {
                    continue;
                };
                stream.driver &= !bit::LISTED;
                if can_receive(stream) && stream.driver & bit::READABLE != 0 {
                    self.receive(tables, id, events);
                }
            }
        }
        if !self.readable_sockets.is_empty() {
            for id in std::mem::take(&mut self.readable_sockets) {
                let Some(socket) = tables.sockets.get(id) else {
                    continue;
                };
                socket.driver &= !bit::LISTED;
                if !socket.paused && socket.driver & bit::READABLE != 0 {
                    self.receive_datagrams(tables, id, true, events);
                }
            }
        }
    }

    pub(super) fn has_listed(&self) -> bool {
        !self.readable.is_empty() || !self.readable_sockets.is_empty()
    }
}
