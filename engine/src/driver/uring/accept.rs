//! Accepting: one multishot request for each listener, and what becomes a stream of the table.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{cqueue, opcode, types};

use super::requests::{Op, bit, tag};
use super::{Feature, Uring};
use crate::driver::{Event, Tables};
use crate::ids::{ListenerId, ServiceId, StreamId};
use crate::stream::State;
use crate::sys::socket;

pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) fd: OwnedFd,
    pub(super) wants_peer: bool,
    pub(super) armed: bool,
}

impl Uring {
    pub(super) fn arm_accept(&mut self, at: usize) {
        let listener = &mut self.listeners[at];
        if listener.armed {
            return;
        }
        listener.armed = true;
        let direct = self.features.has(Feature::DirectDescriptors) && !listener.wants_peer;
        let entry = opcode::AcceptMulti::new(types::Fd(listener.fd.as_raw_fd()))
            .allocate_file_index(direct)
            .flags(if direct {
                0
            } else {
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK
            })
            .build()
            .user_data(tag(Op::Accept, 0, at as u32));
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry) };
    }

    pub(super) fn accepted(
        &mut self,
        tables: &mut Tables,
        at: usize,
        completion: &cqueue::Entry,
        events: &mut Vec<Event>,
    ) {
        let result = completion.result();
        let listener = &mut self.listeners[at];
        if !cqueue::more(completion.flags()) {
            listener.armed = false;
        }
        let (id, wants_peer) = (listener.id, listener.wants_peer);
        if result >= 0 {
            let direct = self.features.has(Feature::DirectDescriptors) && !wants_peer;
            let peer = wants_peer.then(|| {
                // SAFETY: the kernel has just given us this descriptor; it stays ours, the
                // borrow ends here.
                socket::peer_address(&unsafe { std::os::fd::BorrowedFd::borrow_raw(result) })
            });
            let stream = self.adopt_slot(
                tables,
                id.service,
                result,
                if direct { 0 } else { bit::FILE },
            );
            events.push(Event::Accepted {
                listener: id,
                stream,
                peer: peer.flatten(),
            });
        } else {
            match -result {
                libc::ECANCELED
                | libc::ECONNABORTED
                | libc::EINTR
                | libc::EAGAIN
                | libc::EPROTO => {}
                errno => {
                    events.push(Event::AcceptFailed {
                        listener: id,
                        errno,
                    });
                    return;
                }
            }
        }
        if self.accepting && !self.listeners[at].armed {
            self.arm_accept(at);
        }
    }

    pub(super) fn adopt_slot(
        &mut self,
        tables: &mut Tables,
        service: ServiceId,
        slot: i32,
        bits: u8,
    ) -> StreamId {
        self.descriptors += 1;
        let stream = tables
            .streams
            .insert(service, slot, State::Open, tables.active);
        tables.streams.at(stream.index).driver = bits;
        stream
    }
}
