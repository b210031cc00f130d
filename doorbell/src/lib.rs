//! The sleep/doorbell flag of a shard: one atomic word that tells a sender whether the
//! shard that it has just given a message to must be woken.
//!
//! Waking a sleeping thread costs a system call and 46–86 µs until it runs; a message in a
//! bounded queue costs some 20 ns. So a sender rings only when the receiver really sleeps,
//! and of many senders only one does. This crate decides *whether* to ring. It must never
//! know the queue, or how a ring is delivered (eventfd, ring message): that keeps it small
//! enough for loom to walk through every interleaving, which `tests/loom.rs` does.
//!
//! # The protocol
//!
//! | who | does, in this order |
//! |---|---|
//! | sender | pushes into the queue, then calls [`Doorbell::must_ring`]; if it says `true`, delivers one wake-up |
//! | receiver | calls [`Doorbell::prepare_sleep`], then looks into *all* its queues again; if one is not empty it calls [`Doorbell::stay_awake`] and works on, else it blocks until a wake-up (or its timer, or a socket), then calls [`Doorbell::woke`] and empties its queues |
//!
//! # Why a fence on both sides
//!
//! Each side writes one word and then reads the other's: the sender writes the queue and
//! reads the flag, the receiver writes the flag and reads the queue. This is Dekker's
//! pattern. With acquire and release alone both may read the old value (every CPU, x86
//! included, lets a load overtake an earlier store to another address): the sender sees
//! "awake" and does not ring, the receiver sees "empty" and sleeps, and the message lies
//! there for ever. A `SeqCst` fence between the write and the read on *both* sides forbids
//! exactly this: whichever fence comes second in the single order of all such fences, the
//! read after it sees the write before the other one. The queue's own operations give no
//! such promise in their interface, whatever they happen to use today.
//!
//! # Cost
//!
//! To an awake receiver: one fence and one relaxed load of a line that nobody writes. The
//! flag has two cache lines of its own (the prefetcher of x86 fetches lines in pairs), so
//! that going to sleep does not disturb the queue's neighbours.
#![forbid(unsafe_code)]

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// The receiver runs and will look into its queues before it sleeps.
const AWAKE: u32 = 0;
/// The receiver sleeps, or is about to; the next sender must ring.
const SLEEPING: u32 = 1;
/// A sender has taken it upon itself to wake the receiver; nobody else needs to.
const RUNG: u32 = 2;

/// Tells senders whether the shard behind it sleeps. One for each shard, shared by all who
/// send to it, however many queues lie between them.
///
/// ```
/// use ringmill_doorbell::Doorbell;
///
/// let doorbell = Doorbell::new();
/// assert!(!doorbell.must_ring(), "an awake shard needs no ring");
/// doorbell.prepare_sleep();
/// assert!(doorbell.must_ring(), "the first sender after that rings");
/// assert!(!doorbell.must_ring(), "the second need not");
/// assert!(doorbell.woke(), "and the shard learns that it was rung");
/// ```
#[derive(Debug)]
#[repr(align(128))]
pub struct Doorbell {
    state: AtomicU32,
}

impl Doorbell {
    /// A doorbell whose shard is awake.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: AtomicU32::new(AWAKE),
        }
    }

    /// Sender: whether the caller must wake the receiver. To be called *after* the message
    /// is in the queue. Of all the senders that find the receiver asleep exactly one gets
    /// `true`, and it must then deliver the wake-up: nobody else will.
    #[inline]
    #[must_use = "the sender that is told to ring is the only one; if it does not, the shard sleeps on"]
    pub fn must_ring(&self) -> bool {
        // Orders the caller's push before the load; pairs with the fence of `prepare_sleep`.
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) == SLEEPING && self.take_ring()
    }

    /// Whether this sender, of those that saw the receiver asleep, is the one that rings.
    /// Apart from `must_ring`, so that its awake path stays small enough to inline.
    #[cold]
    fn take_ring(&self) -> bool {
        // Relaxed is enough: the word decides who rings and carries no data. The message
        // is published by the queue, the wake-up orders itself.
        self.state
            .compare_exchange(SLEEPING, RUNG, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Receiver: announces that it is about to sleep. It must now look into all its queues
    /// once more, and may block only if all are empty; else it calls
    /// [`stay_awake`](Self::stay_awake).
    #[inline]
    pub fn prepare_sleep(&self) {
        self.state.store(SLEEPING, Ordering::Relaxed);
        // Orders the store before the caller's look into its queues; pairs with `must_ring`.
        fence(Ordering::SeqCst);
    }

    /// Receiver: takes back [`prepare_sleep`](Self::prepare_sleep), because a queue was not
    /// empty or there is other work. `true` if a sender has rung meanwhile: its wake-up is
    /// on the way and will cut the next sleep short, which costs a turn and harms nothing.
    #[inline]
    pub fn stay_awake(&self) -> bool {
        self.end_sleep()
    }

    /// Receiver: it no longer blocks, for whatever reason (ring, timer, socket, signal). It
    /// must empty its queues now. `true` if it was rung.
    #[inline]
    pub fn woke(&self) -> bool {
        self.end_sleep()
    }

    /// A swap and not a store, so that a ring is never overwritten unseen.
    fn end_sleep(&self) -> bool {
        self.state.swap(AWAKE, Ordering::Relaxed) == RUNG
    }
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Doorbell;

    #[test]
    fn answers_by_state() {
        // (what the receiver and earlier senders did, does this sender ring)
        type Before = fn(&Doorbell);
        let cases: [(&str, Before, bool); 7] = [
            ("awake", |_| {}, false),
            ("asleep", |bell| bell.prepare_sleep(), true),
            (
                "asleep and rung already",
                |bell| {
                    bell.prepare_sleep();
                    assert!(bell.must_ring());
                },
                false,
            ),
            (
                "changed its mind",
                |bell| {
                    bell.prepare_sleep();
                    assert!(!bell.stay_awake());
                },
                false,
            ),
            (
                "woken by something else",
                |bell| {
                    bell.prepare_sleep();
                    assert!(!bell.woke());
                },
                false,
            ),
            (
                "woken by the ring",
                |bell| {
                    bell.prepare_sleep();
                    assert!(bell.must_ring());
                    assert!(bell.woke());
                },
                false,
            ),
            (
                "asleep again after a ring",
                |bell| {
                    bell.prepare_sleep();
                    assert!(bell.must_ring());
                    assert!(bell.stay_awake());
                    bell.prepare_sleep();
                },
                true,
            ),
        ];
        for (name, before, rings) in cases {
            let bell = Doorbell::new();
            before(&bell);
            assert_eq!(bell.must_ring(), rings, "{name}");
        }
    }

    #[test]
    fn has_cache_lines_of_its_own() {
        assert_eq!(align_of::<Doorbell>(), 128);
        assert_eq!(size_of::<Doorbell>(), 128);
    }
}
