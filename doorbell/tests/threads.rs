//! The same as `tests/loom.rs` on real threads and the real CPU: fewer interleavings, but
//! the ones that the hardware makes.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ringmill_doorbell::Doorbell;

/// A receiver that sleeps longer than this with a message waiting has lost a wake-up.
const HANG: Duration = Duration::from_secs(30);

#[test]
fn no_wake_up_is_lost_and_none_is_rung_twice() {
    for (senders, messages_each) in [(1, 100_000), (2, 100_000), (8, 20_000)] {
        let bell = Doorbell::new();
        let posted: Vec<AtomicU64> = (0..senders).map(|_| AtomicU64::new(0)).collect();
        let rings = AtomicU64::new(0);
        let (wake, woken) = mpsc::channel();
        let mut sleeps = 0;
        thread::scope(|scope| {
            for counter in &posted {
                let (bell, rings, wake) = (&bell, &rings, wake.clone());
                scope.spawn(move || {
                    for _ in 0..messages_each {
                        counter.fetch_add(1, Ordering::Release);
                        if bell.must_ring() {
                            rings.fetch_add(1, Ordering::Relaxed);
                            // The receiver may be done and gone with its last message.
                            wake.send(()).ok();
                        }
                    }
                });
            }
            let total = || -> u64 { posted.iter().map(|c| c.load(Ordering::Acquire)).sum() };
            let mut received = total();
            while received < senders * messages_each {
                bell.prepare_sleep();
                if total() == received {
                    sleeps += 1;
                    woken.recv_timeout(HANG).expect("a wake-up was lost");
                    bell.woke();
                } else if bell.stay_awake() {
                    // The ring of a sender that was quicker than the second look: take it,
                    // so that the count below is of sleeps that were rung.
                    sleeps += 1;
                    woken.recv_timeout(HANG).expect("a ring was not delivered");
                }
                received = total();
            }
        });
        let rings = rings.load(Ordering::Relaxed);
        assert_eq!(rings, sleeps, "{senders} senders: one ring for one sleep");
    }
}
