//! The interleavings of two senders and one receiver, by loom (all of them for one sleep):
//! `RUSTFLAGS="--cfg loom" cargo test -p ringmill-doorbell --release --test loom`
//!
//! The queue is a stand-in (crossbeam has no loom build): a flag for each sender, published
//! with release and read with acquire, which is the weakest thing that is still a queue. A
//! lock would hide what is tested here, because it orders the two sides by itself. The two
//! broken doorbells prove that the model can fail.
#![cfg(loom)]

use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Notify};
use ringmill_doorbell::Doorbell;

/// What the model needs of a doorbell, so that broken ones can be put in its place.
trait Bell: Send + Sync + 'static {
    const LOOKS_AGAIN: bool = true;
    fn new() -> Self;
    fn must_ring(&self) -> bool;
    fn prepare_sleep(&self);
    fn end_sleep(&self);
}

impl Bell for Doorbell {
    fn new() -> Self {
        Self::new()
    }
    fn must_ring(&self) -> bool {
        self.must_ring()
    }
    fn prepare_sleep(&self) {
        self.prepare_sleep();
    }
    fn end_sleep(&self) {
        self.woke();
    }
}

/// Broken: acquire and release where the fences should be.
struct NoFence(AtomicU32);

impl Bell for NoFence {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }
    fn must_ring(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
            && self
                .0
                .compare_exchange(1, 2, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }
    fn prepare_sleep(&self) {
        self.0.store(1, Ordering::Release);
    }
    fn end_sleep(&self) {
        self.0.swap(0, Ordering::AcqRel);
    }
}

/// Broken: the receiver does not look into its queue again after `prepare_sleep`.
struct NoSecondLook(Doorbell);

impl Bell for NoSecondLook {
    const LOOKS_AGAIN: bool = false;
    fn new() -> Self {
        Self(Doorbell::new())
    }
    fn must_ring(&self) -> bool {
        self.0.must_ring()
    }
    fn prepare_sleep(&self) {
        self.0.prepare_sleep();
    }
    fn end_sleep(&self) {
        self.0.woke();
    }
}

/// Broken: every sender that finds the receiver asleep rings.
struct RingsTwice(AtomicU32);

impl Bell for RingsTwice {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }
    fn must_ring(&self) -> bool {
        loom::sync::atomic::fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) == 1
    }
    fn prepare_sleep(&self) {
        self.0.store(1, Ordering::Relaxed);
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
    fn end_sleep(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

struct Shard<B> {
    bell: B,
    /// Stand-in queues, one message deep.
    full: Vec<AtomicBool>,
    wake_up: Notify,
    /// Plain counters that loom does not see, so that they order nothing.
    rings: Count,
    sleeps: Count,
}

impl<B: Bell> Shard<B> {
    fn post(&self, sender: usize) {
        self.full[sender].store(true, Ordering::Release);
        if self.bell.must_ring() {
            self.rings.fetch_add(1, SeqCst);
            self.wake_up.notify();
        }
    }

    fn take_all(&self) -> usize {
        let taken = self.full.iter().filter(|full| {
            full.load(Ordering::Acquire) && {
                full.store(false, Ordering::Relaxed);
                true
            }
        });
        taken.count()
    }

    fn is_empty(&self) -> bool {
        self.full.iter().all(|full| !full.load(Ordering::Acquire))
    }

    /// One turn: announces the sleep and says whether it would block now.
    fn lies_down(&self) -> bool {
        self.sleeps.fetch_add(1, SeqCst);
        self.bell.prepare_sleep();
        !B::LOOKS_AGAIN || self.is_empty()
    }

    /// Returns once `expected` messages are in. A lost wake-up leaves it blocked for ever,
    /// which loom reports as a deadlock.
    fn receive(&self, expected: usize) {
        let mut taken = self.take_all();
        while taken < expected {
            if self.lies_down() {
                self.wake_up.wait();
            }
            self.bell.end_sleep();
            taken += self.take_all();
        }
    }
}

/// Runs `receiver` against `senders` that post one message each, then `verdict` when all
/// are done, in every interleaving (or all with at most so many preemptions).
fn model<B: Bell, R: 'static>(
    senders: usize,
    preemptions_max: Option<usize>,
    receiver: fn(&Shard<B>, usize) -> R,
    verdict: fn(&Shard<B>, R),
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions_max;
    builder.check(move || {
        let shard = Arc::new(Shard {
            bell: B::new(),
            full: (0..senders).map(|_| AtomicBool::new(false)).collect(),
            wake_up: Notify::new(),
            rings: Count::new(0),
            sleeps: Count::new(0),
        });
        let threads: Vec<_> = (0..senders)
            .map(|sender| {
                let shard = Arc::clone(&shard);
                loom::thread::spawn(move || shard.post(sender))
            })
            .collect();
        let answer = receiver(&shard, senders);
        for thread in threads {
            thread.join().unwrap();
        }
        verdict(&shard, answer);
    });
}

/// Several sleeps of three threads have too many interleavings to walk through them all in
/// the time of a test; loom's manual names two to three preemptions as what finds most bugs.
const PREEMPTIONS_MAX: usize = 3;

/// The receiver runs until it has every message.
fn receives_all<B: Bell>(senders: usize) {
    let preemptions_max = (senders > 1).then_some(PREEMPTIONS_MAX);
    model::<B, ()>(senders, preemptions_max, Shard::receive, |shard, ()| {
        let (rings, sleeps) = (shard.rings.load(SeqCst), shard.sleeps.load(SeqCst));
        assert!(rings <= sleeps, "{rings} rings for {sleeps} sleeps");
    });
}

/// The receiver lies down once. Whether it would lie there for ever is an assertion here
/// and not a real deadlock, because loom cannot unwind from one of those.
fn sleeps_once<B: Bell>(senders: usize) {
    model::<B, bool>(
        senders,
        None,
        |shard, _| shard.lies_down(),
        |shard, blocks| {
            let rings = shard.rings.load(SeqCst);
            assert!(rings <= 1, "{rings} rings for one sleep");
            assert!(!blocks || rings == 1, "a lost wake-up");
        },
    );
}

#[test]
fn one_sender_never_loses_a_wake_up() {
    sleeps_once::<Doorbell>(1);
    receives_all::<Doorbell>(1);
}

#[test]
fn two_senders_never_lose_a_wake_up_and_ring_once_a_sleep() {
    sleeps_once::<Doorbell>(2);
    receives_all::<Doorbell>(2);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn without_the_fences_loom_finds_the_lost_wake_up() {
    sleeps_once::<NoFence>(1);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn without_the_second_look_loom_finds_the_lost_wake_up() {
    sleeps_once::<NoSecondLook>(1);
}

#[test]
#[should_panic(expected = "2 rings for one sleep")]
fn without_the_exchange_loom_finds_the_second_ring() {
    sleeps_once::<RingsTwice>(2);
}
