//! A ring's table of direct descriptors: how it is divided, how many streams it holds, and how files
//! get into it and out again. Where there is none every stream is a file of the process.

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use io_uring::{opcode, types};

use super::requests::bit;
use super::{Feature, Features, Uring};
use crate::driver::streams_as_files;

/// Slots that the kernel does not choose from, for what we open ourselves beside a listener.
const OWN_SLOTS_WITH_LISTENERS: usize = 1024;

/// Accepts that may be on their way while the table is declared full.
const SLOT_SLACK: usize = 512;

/// How many streams one ring holds under a limit of open files, which is also that of its table.
/// Without direct descriptors the limit is that of all rings together: see
/// [`Features::streams_held`].
#[must_use]
pub fn streams_per_ring(files: usize, listens: bool) -> usize {
    Table {
        len: files,
        listens,
    }
    .streams()
    .max(1)
}

/// How many rings hold `connections` streams under a limit of open files, which is also that of
/// a ring's table. Without direct descriptors see [`Features::rings_for`].
#[must_use]
fn rings_for(connections: usize, files: usize, listens: bool) -> usize {
    connections.div_ceil(streams_per_ring(files, listens))
}

impl Features {
    /// How many streams so many rings of one process hold together under a limit of open files.
    /// With direct descriptors the limit is that of each ring's table; without them every stream
    /// is a file of the process, and more rings hold no more.
    #[must_use]
    pub fn streams_held(self, rings: usize, files: usize, listens: bool) -> usize {
        if self.has(Feature::DirectDescriptors) {
            rings * streams_per_ring(files, listens)
        } else {
            streams_as_files(files)
        }
    }

    /// How many rings hold `connections` streams under a limit of open files, or as many of them
    /// as the limit allows: see [`Features::streams_held`].
    #[must_use]
    pub fn rings_for(self, connections: usize, files: usize, listens: bool) -> usize {
        if self.has(Feature::DirectDescriptors) {
            rings_for(connections, files, listens)
        } else {
            1
        }
    }
}

/// How a ring's table of direct descriptors is divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) len: usize,
    pub(super) listens: bool,
}

impl Table {
    /// Slots for what we open ourselves: all of them, unless the kernel chooses slots for what it
    /// accepts.
    pub(super) fn own(self) -> usize {
        if self.listens {
            OWN_SLOTS_WITH_LISTENERS.min(self.len / 16)
        } else {
            self.len
        }
    }

    /// Accepts that may be on their way while the table is declared full.
    fn slack(self) -> usize {
        SLOT_SLACK.min(self.len / 16)
    }

    /// Streams that fit: shards do not fill evenly under a hash, so a part stays free.
    pub(super) fn streams(self) -> usize {
        if self.listens {
            self.len - self.own() - self.slack()
        } else {
            self.len - self.slack()
        }
    }

    /// A table for so many streams, as large as the limit of files allows.
    pub(super) fn for_streams(streams: usize, files: usize, listens: bool) -> Self {
        let wanted = streams + streams / 4 + OWN_SLOTS_WITH_LISTENERS + SLOT_SLACK;
        Self {
            len: wanted.max(4096).min(files),
            listens,
        }
    }
}

impl Uring {
    /// Puts a file that we opened into the table where there is one, and returns its slot.
    pub(super) fn take_slot(&mut self, fd: OwnedFd) -> io::Result<(i32, u8)> {
        if !self.features.has(Feature::DirectDescriptors) {
            return Ok((fd.into_raw_fd(), bit::FILE));
        }
        let slot = self
            .own_slots
            .pop()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
        if let Err(error) = self
            .ring
            .raw()
            .submitter()
            .register_files_update(slot, &[fd.as_raw_fd()])
        {
            self.own_slots.push(slot);
            return Err(error);
        }
        Ok((slot as i32, bit::OWN))
    }

    pub(super) fn close_slot(&mut self, slot: i32, bits: u8, user_data: u64) {
        let entry = if bits & bit::FILE != 0 {
            opcode::Close::new(types::Fd(slot)).build()
        } else {
            opcode::Close::new(types::Fixed(slot as u32)).build()
        };
        // SAFETY: the request points to no memory.
        unsafe { self.push(&entry.user_data(user_data)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_direct_descriptors_make_more_rings_hold_more() {
        let direct = Features::default().with(Feature::DirectDescriptors);
        let files = Features::default();
        for (limit, connections, rings, held_by_files) in [
            (512, 1_000, 3, 384),
            (2_000, 10_000, 6, 1_500),
            (20_000, 10_000, 1, 19_488),
            (20_000, 200_000, 11, 19_488),
        ] {
            assert_eq!(direct.rings_for(connections, limit, true), rings, "{limit}");
            assert!(direct.streams_held(rings, limit, true) >= connections);
            assert!(direct.streams_held(rings - 1, limit, true) < connections);
            assert_eq!(files.rings_for(connections, limit, true), 1);
            assert_eq!(files.streams_held(1, limit, true), held_by_files);
            assert_eq!(files.streams_held(rings, limit, true), held_by_files);
        }
    }
}
