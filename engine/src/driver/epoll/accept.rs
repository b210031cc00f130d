//! Listeners: watched while the shard accepts, and emptied a part at a time.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::Epoll;
use super::interest::{IN, Kind, bit, word};
use crate::driver::{Event, Tables};
use crate::ids::ListenerId;
use crate::stream::State;
use crate::sys::io as calls;

/// Connections taken from one listener before the streams have their turn.
const ACCEPTS_PER_TURN: usize = 256;

pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) fd: OwnedFd,
    pub(super) wants_peer: bool,
    pub(super) unix: bool,
    pub(super) watched: bool,
}

impl Epoll {
    pub(super) fn watch_listener(&mut self, at: usize) -> io::Result<()> {
        let listener = &mut self.listeners[at];
        if !listener.watched {
            // Level-triggered, so that what one turn leaves is reported again; exclusive, so that
            // of several shards on one Unix socket not all wake up for one connection.
            let interest = IN | libc::EPOLLEXCLUSIVE as u32;
            self.poller.add(
                listener.fd.as_raw_fd(),
                interest,
                word(Kind::Listener, 0, at as u32),
            )?;
            listener.watched = true;
        }
        Ok(())
    }

    pub(super) fn unwatch_listener(&mut self, at: usize) {
        let listener = &mut self.listeners[at];
        if std::mem::take(&mut listener.watched) {
            // It was added, so it can be removed.
            let _ = self.poller.remove(listener.fd.as_raw_fd());
        }
    }

    pub(super) fn accept_ready(&mut self, tables: &mut Tables, at: usize, events: &mut Vec<Event>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let listener = &self.listeners[at];
            let (id, unix) = (listener.id, listener.unix);
            match calls::accept(listener.fd.as_raw_fd(), listener.wants_peer) {
                Ok((fd, peer)) => {
                    let bits = if unix { bit::UNIX } else { 0 };
                    let stream = self.insert_stream(tables, id.service, fd, State::Open, bits);
                    events.push(Event::Accepted {
                        listener: id,
                        stream,
                        peer,
                    });
                }
                Err(libc::EAGAIN) => return,
                // That connection has failed before we took it, the next may be well.
                Err(
                    libc::ECONNABORTED
                    | libc::EPROTO
                    | libc::EPERM
                    | libc::ENETDOWN
                    | libc::ENOPROTOOPT
                    | libc::EHOSTDOWN
                    | libc::ENONET
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH,
                ) => {}
                Err(errno) => {
                    self.unwatch_listener(at);
                    events.push(Event::AcceptFailed {
                        listener: id,
                        errno,
                    });
                    return;
                }
            }
        }
    }
}
