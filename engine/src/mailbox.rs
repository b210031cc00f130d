//! Bounded mailboxes: the only way in which shards talk to each other.
//!
//! Every shard has one [`ShardBell`] and, for each service that it hosts, one mailbox: a
//! bounded queue that all other shards and the control threads push into and only the shard
//! itself takes from. A full mailbox refuses the message and gives it back; what to do then
//! (drop it, keep it, close something) is the policy of whoever posts. A mailbox never
//! blocks, never allocates after its creation, and never makes a system call but to wake a
//! shard that sleeps.
//!
//! Order: the messages of one sender to one mailbox arrive in the order of posting. Nothing
//! is promised between senders or between mailboxes.
//!
//! # The sleep of a shard
//!
//! ```
//! # use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
//! # use ringmill_engine::mailbox::{Waker, mailboxes, shard_bells};
//! # struct Flag(AtomicBool);
//! # impl Waker for Flag { fn wake(&self) { self.0.store(true, Ordering::SeqCst) } }
//! # let flag = Arc::new(Flag(AtomicBool::new(false)));
//! let bells = shard_bells(2);
//! let (mut ends, control) = mailboxes::<&str>(&bells, 64);
//! let mine = ends.pop().expect("two shards were asked for");
//! bells[1].register(flag.clone()); // before the first sleep
//!
//! let other = ends.pop().expect("two shards were asked for");
//! bells[1].prepare_sleep();
//! if mine.is_empty() {
//!     // Here the driver would block, and this sender would wake it.
//!     other.post(1, "good morning").expect("there is room");
//! #   assert!(flag.0.load(Ordering::SeqCst));
//!     bells[1].woke();
//! } else {
//!     bells[1].stay_awake();
//! }
//! assert_eq!(mine.try_receive(), Some((0, "good morning")));
//! ```

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;
use ringmill_doorbell::Doorbell;

/// The sender's number of a message that came from a [`ControlSender`] and from no shard.
pub const FROM_CONTROL: u16 = u16::MAX;

/// Cuts the sleep of one shard short. Its driver supplies it, for instance as an
/// [`EventFdWaker`](crate::sys::eventfd::EventFdWaker).
///
/// A wake-up must not be lost when it comes between the driver's decision to block and the
/// blocking itself (an eventfd's counter stays, so does a ring message's completion). It
/// may be late: then it cuts the next sleep short.
pub trait Waker: Send + Sync {
    /// Wakes the shard. Called from any thread, must not block.
    fn wake(&self);
}

impl<W: Waker + ?Sized> Waker for Arc<W> {
    fn wake(&self) {
        (**self).wake();
    }
}

/// Where a shard is told that one of its mailboxes has something for it, while it sleeps.
/// One for each shard, shared by all its mailboxes.
pub struct ShardBell {
    doorbell: Doorbell,
    waker: OnceLock<Box<dyn Waker>>,
}

/// The bells of `shards` shards, to be handed to [`mailboxes`] and to every shard's driver.
///
/// # Panics
/// If `shards` is [`FROM_CONTROL`], which no shard may have as its number.
#[must_use]
pub fn shard_bells(shards: u16) -> Arc<[ShardBell]> {
    assert_ne!(shards, FROM_CONTROL, "at most {} shards", FROM_CONTROL - 1);
    (0..shards)
        .map(|_| ShardBell {
            doorbell: Doorbell::new(),
            waker: OnceLock::new(),
        })
        .collect()
}

impl ShardBell {
    /// The shard's driver says how to wake it. Once, before its first sleep.
    ///
    /// # Panics
    /// If a waker is registered already: two drivers took themselves for the same shard.
    pub fn register(&self, waker: impl Waker + 'static) {
        let accepted = self.waker.set(Box::new(waker)).is_ok();
        assert!(accepted, "the waker of a shard is registered twice");
    }

    /// The shard is about to block. It must now look into all its mailboxes once more, and
    /// may block only if all are empty; else it calls [`stay_awake`](Self::stay_awake).
    ///
    /// # Panics
    /// If no waker is registered: nobody could wake it.
    pub fn prepare_sleep(&self) {
        assert!(
            self.waker.get().is_some(),
            "a shard sleeps before its driver registered a waker"
        );
        self.doorbell.prepare_sleep();
    }

    /// The shard does not block after all. `true` if it was rung: a wake-up is on its way
    /// and will cut the next sleep short.
    pub fn stay_awake(&self) -> bool {
        self.doorbell.stay_awake()
    }

    /// The shard no longer blocks, for whatever reason. `true` if it was rung.
    pub fn woke(&self) -> bool {
        self.doorbell.woke()
    }

    /// Wakes the shard if it sleeps, without a message: for a control thread that has
    /// changed something which the shard looks at in every turn, a stop flag for instance.
    /// To be called after the change. `true` if it had to be woken.
    pub fn nudge(&self) -> bool {
        let must_ring = self.doorbell.must_ring();
        if must_ring {
            self.ring();
        }
        must_ring
    }

    #[cold]
    fn ring(&self) {
        // Only a shard that went through `prepare_sleep` is ever rung.
        let waker = self.waker.get().expect("a sleeping shard has a waker");
        waker.wake();
    }
}

impl fmt::Debug for ShardBell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardBell")
            .field("doorbell", &self.doorbell)
            .field("has_waker", &self.waker.get().is_some())
            .finish()
    }
}

/// The mailbox of shard `to` is full. The message comes back: the caller decides.
#[derive(thiserror::Error)]
#[error(
    "the mailbox of shard {to} is full: {capacity} messages wait there; \
     that shard is overloaded or has stopped"
)]
pub struct Full<M> {
    /// The shard that did not get the message.
    pub to: u16,
    /// How many messages its mailbox holds.
    pub capacity: usize,
    /// The message itself.
    pub message: M,
}

/// Without the message, so that any type of message will do.
impl<M> fmt::Debug for Full<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Full")
            .field("to", &self.to)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// What one sender has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MailboxCounters {
    /// Messages that a mailbox accepted.
    pub messages_posted: u64,
    /// Messages that came back because the mailbox was full.
    pub messages_refused: u64,
    /// Sleeping shards that were woken, each a system call.
    pub doorbells_rung: u64,
}

/// One queue for each receiving shard; a message travels with its sender's number.
struct Queues<M> {
    queues: Box<[ArrayQueue<(u16, M)>]>,
    bells: Arc<[ShardBell]>,
}

impl<M> Queues<M> {
    #[inline]
    fn enqueue(&self, from: u16, to: u16, message: M) -> Result<(), Full<M>> {
        let queue = &self.queues[usize::from(to)];
        queue.push((from, message)).map_err(|(_, message)| Full {
            to,
            capacity: queue.capacity(),
            message,
        })
    }

    /// Pushes, then says whether shard `to` sleeps and the caller must ring.
    #[inline]
    fn push(&self, from: u16, to: u16, message: M) -> Result<bool, Full<M>> {
        self.enqueue(from, to, message)?;
        Ok(self.bells[usize::from(to)].doorbell.must_ring())
    }
}

/// One shard's end: it posts to all the others and receives what they posted to it. Moved
/// to the shard's thread and never shared.
pub struct Mailbox<M> {
    shard: u16,
    shared: Arc<Queues<M>>,
    messages_posted: Cell<u64>,
    messages_refused: Cell<u64>,
    doorbells_rung: Cell<u64>,
    /// Shards that were posted to and not rung yet.
    unrung: Box<[Cell<bool>]>,
    any_unrung: Cell<bool>,
}

/// The mailboxes of one service: one end for each shard, in the order of their numbers, and
/// one for control threads. Each shard's queue holds `capacity` messages, whoever sends
/// them; the memory for all of them (`shards × capacity × size_of::<M>()`, and 16 bytes or
/// so for each) is taken now.
///
/// # Panics
/// If `capacity` is zero.
#[must_use]
pub fn mailboxes<M: Send>(
    bells: &Arc<[ShardBell]>,
    capacity: usize,
) -> (Vec<Mailbox<M>>, ControlSender<M>) {
    let shared = Arc::new(Queues {
        queues: bells.iter().map(|_| ArrayQueue::new(capacity)).collect(),
        bells: Arc::clone(bells),
    });
    let ends = (0..bells.len())
        .map(|shard| Mailbox {
            // `shard_bells` made no more than fit.
            shard: shard as u16,
            shared: Arc::clone(&shared),
            messages_posted: Cell::new(0),
            messages_refused: Cell::new(0),
            doorbells_rung: Cell::new(0),
            unrung: bells.iter().map(|_| Cell::new(false)).collect(),
            any_unrung: Cell::new(false),
        })
        .collect();
    let control = ControlSender {
        shared,
        counters: Arc::default(),
    };
    (ends, control)
}

impl<M> Mailbox<M> {
    /// The number of the shard whose end this is.
    #[must_use]
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// How many shards there are, this one included.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shared.queues.len() as u16
    }

    /// Gives a message to shard `to` (this one may post to itself), and wakes it if it
    /// sleeps.
    ///
    /// # Errors
    /// [`Full`], with the message, if shard `to` has as many waiting as its mailbox holds.
    ///
    /// # Panics
    /// If there is no shard `to`. A number from the network is to be held against
    /// [`shards`](Self::shards) first.
    #[inline]
    pub fn post(&self, to: u16, message: M) -> Result<(), Full<M>> {
        match self.shared.push(self.shard, to, message) {
            Ok(must_ring) => {
                add_one(&self.messages_posted);
                if must_ring {
                    add_one(&self.doorbells_rung);
                    self.shared.bells[usize::from(to)].ring();
                }
                Ok(())
            }
            Err(full) => {
                add_one(&self.messages_refused);
                Err(full)
            }
        }
    }

    /// [`post`](Self::post) without waking the receiver yet: [`ring`](Self::ring) must follow. A
    /// shard posts so in a turn and rings at its end, so that the fence that the doorbell needs
    /// (it waits until the message has left this CPU's store buffer) is paid once for each
    /// receiver and turn, not for each message.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    ///
    /// # Panics
    /// As [`post`](Self::post).
    #[inline]
    pub fn post_unrung(&self, to: u16, message: M) -> Result<(), Full<M>> {
        match self.shared.enqueue(self.shard, to, message) {
            Ok(()) => {
                add_one(&self.messages_posted);
                if !self.unrung[usize::from(to)].replace(true) {
                    self.any_unrung.set(true);
                }
                Ok(())
            }
            Err(full) => {
                add_one(&self.messages_refused);
                Err(full)
            }
        }
    }

    /// Wakes every shard that was posted to since and sleeps.
    #[inline]
    pub fn ring(&self) {
        if !self.any_unrung.replace(false) {
            return;
        }
        for (to, unrung) in self.unrung.iter().enumerate() {
            let bell = &self.shared.bells[to];
            if unrung.replace(false) && bell.doorbell.must_ring() {
                add_one(&self.doorbells_rung);
                bell.ring();
            }
        }
    }

    /// The next message for this shard, and the number of the shard that sent it, or
    /// [`FROM_CONTROL`].
    #[inline]
    #[must_use]
    pub fn try_receive(&self) -> Option<(u16, M)> {
        self.own_queue().pop()
    }

    /// Whether nothing waits for this shard. A message that a sender is just pushing may
    /// count as waiting or not; after [`ShardBell::prepare_sleep`] such a sender rings.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.own_queue().is_empty()
    }

    /// How many messages wait for this shard, about.
    #[must_use]
    pub fn len(&self) -> usize {
        self.own_queue().len()
    }

    /// What this end has sent.
    #[must_use]
    pub fn counters(&self) -> MailboxCounters {
        MailboxCounters {
            messages_posted: self.messages_posted.get(),
            messages_refused: self.messages_refused.get(),
            doorbells_rung: self.doorbells_rung.get(),
        }
    }

    fn own_queue(&self) -> &ArrayQueue<(u16, M)> {
        &self.shared.queues[usize::from(self.shard)]
    }
}

impl<M> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("shard", &self.shard)
            .field("waiting", &self.len())
            .field("counters", &self.counters())
            .finish()
    }
}

fn add_one(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

#[derive(Debug, Default)]
struct SharedCounters {
    messages_posted: AtomicU64,
    messages_refused: AtomicU64,
    doorbells_rung: AtomicU64,
}

/// Posts to shards from a thread that is none: commands, signals, the console. Clones share
/// their counters.
pub struct ControlSender<M> {
    shared: Arc<Queues<M>>,
    counters: Arc<SharedCounters>,
}

impl<M> ControlSender<M> {
    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shared.queues.len() as u16
    }

    /// Gives a message to shard `to`, and wakes it if it sleeps. It arrives as coming
    /// from [`FROM_CONTROL`].
    ///
    /// # Errors
    /// As [`Mailbox::post`].
    ///
    /// # Panics
    /// If there is no shard `to`.
    pub fn post(&self, to: u16, message: M) -> Result<(), Full<M>> {
        match self.shared.push(FROM_CONTROL, to, message) {
            Ok(must_ring) => {
                let counters = &self.counters;
                counters.messages_posted.fetch_add(1, Ordering::Relaxed);
                if must_ring {
                    counters.doorbells_rung.fetch_add(1, Ordering::Relaxed);
                    self.shared.bells[usize::from(to)].ring();
                }
                Ok(())
            }
            Err(full) => {
                let refused = &self.counters.messages_refused;
                refused.fetch_add(1, Ordering::Relaxed);
                Err(full)
            }
        }
    }

    /// What this sender and its clones have sent.
    #[must_use]
    pub fn counters(&self) -> MailboxCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MailboxCounters {
            messages_posted: read(&self.counters.messages_posted),
            messages_refused: read(&self.counters.messages_refused),
            doorbells_rung: read(&self.counters.doorbells_rung),
        }
    }
}

/// Not derived: that would ask for `M: Clone`.
impl<M> Clone for ControlSender<M> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            counters: Arc::clone(&self.counters),
        }
    }
}

impl<M> fmt::Debug for ControlSender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlSender")
            .field("shards", &self.shards())
            .field("counters", &self.counters())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A shard that sleeps longer than this with a message waiting has lost a wake-up.
    const HANG: Duration = Duration::from_secs(30);

    struct ChannelWaker(mpsc::Sender<()>);

    impl Waker for ChannelWaker {
        fn wake(&self) {
            // The shard may be done and gone with its last message.
            self.0.send(()).ok();
        }
    }

    fn counters(posted: u64, refused: u64, rung: u64) -> MailboxCounters {
        MailboxCounters {
            messages_posted: posted,
            messages_refused: refused,
            doorbells_rung: rung,
        }
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let bells = shard_bells(2);
        let (ends, control) = mailboxes::<String>(&bells, 2);
        assert_eq!((ends[1].shard(), ends[1].shards()), (1, 2));
        ends[0].post(1, "a".into()).unwrap();
        control.post(1, "b".into()).unwrap();
        let full = ends[0].post(1, "c".into()).unwrap_err();
        assert_eq!((full.to, full.capacity, full.message.as_str()), (1, 2, "c"));
        assert!(full.to_string().contains("shard 1 is full: 2 messages"));
        assert_eq!(
            control.clone().post(1, "d".into()).unwrap_err().message,
            "d"
        );

        assert_eq!(ends[1].try_receive(), Some((0, "a".into())));
        assert_eq!(ends[1].try_receive(), Some((FROM_CONTROL, "b".into())));
        assert_eq!(ends[1].try_receive(), None);
        assert!(ends[0].is_empty(), "nothing went to the sender");
        assert_eq!(ends[0].counters(), counters(1, 1, 0));
        assert_eq!(control.counters(), counters(1, 1, 0));
    }

    #[test]
    fn rings_only_a_sleeping_shard_and_once() {
        let bells = shard_bells(2);
        // Two services on the same shards share the bell.
        let (chat, control) = mailboxes::<u8>(&bells, 8);
        let (echo, _) = mailboxes::<u8>(&bells, 8);
        let (wake, woken) = mpsc::channel();
        bells[1].register(ChannelWaker(wake));

        chat[0].post(1, 1).unwrap();
        assert!(woken.try_recv().is_err(), "awake");
        bells[1].prepare_sleep();
        assert!(!chat[1].is_empty());
        assert!(!bells[1].stay_awake(), "nobody rang");
        chat[0].post(1, 2).unwrap();
        assert!(woken.try_recv().is_err(), "stayed awake");

        bells[1].prepare_sleep();
        echo[0].post(1, 3).unwrap();
        assert!(woken.try_recv().is_ok(), "asleep: the first sender rings");
        chat[0].post(1, 4).unwrap();
        control.post(1, 5).unwrap();
        assert!(woken.try_recv().is_err(), "the others do not");
        assert!(bells[1].woke(), "and the shard knows that it was rung");

        bells[1].prepare_sleep();
        control.post(1, 6).unwrap();
        assert!(woken.try_recv().is_ok(), "control rings as well");
        bells[1].woke();
        assert!(!bells[1].nudge());
        bells[1].prepare_sleep();
        assert!(bells[1].nudge());
        assert!(woken.try_recv().is_ok(), "so does a nudge");
        bells[1].woke();

        assert_eq!(chat[0].counters(), counters(3, 0, 0));
        assert_eq!(echo[0].counters(), counters(1, 0, 1));
        assert_eq!(control.counters(), counters(2, 0, 1));
    }

    #[test]
    fn a_turn_rings_once_for_all_that_it_posted() {
        let bells = shard_bells(2);
        let (wake, woken) = mpsc::channel();
        bells[1].register(ChannelWaker(wake));
        let (chat, _control) = mailboxes::<u32>(&bells, 8);
        bells[1].prepare_sleep();
        for number in 0..3 {
            chat[0].post_unrung(1, number).unwrap();
        }
        assert!(woken.try_recv().is_err(), "not before the turn ends");
        chat[0].ring();
        chat[0].ring();
        assert!(woken.try_recv().is_ok());
        assert!(woken.try_recv().is_err(), "once");
        assert_eq!(chat[0].counters().doorbells_rung, 1);
        assert_eq!(chat[0].counters().messages_posted, 3);
    }

    #[test]
    #[should_panic(expected = "before its driver registered a waker")]
    fn a_shard_without_a_waker_must_not_sleep() {
        shard_bells(1)[0].prepare_sleep();
    }

    #[test]
    fn ends_can_move_to_their_threads() {
        fn is_send<T: Send>() {}
        fn is_sync<T: Sync>() {}
        is_send::<Mailbox<Cell<u8>>>();
        is_send::<ControlSender<Cell<u8>>>();
        is_sync::<ControlSender<Cell<u8>>>();
        is_sync::<ShardBell>();
    }

    /// Every shard is a thread that posts to all the others, sleeps when it has nothing to
    /// do, and must get everything, in the order of each sender.
    #[test]
    fn threads_get_every_message_in_order_and_none_sleeps_for_ever() {
        const SHARDS: u16 = 4;
        const MESSAGES: u64 = 20_000;
        for capacity in [1, 7, 1024] {
            let bells = shard_bells(SHARDS);
            let (ends, control) = mailboxes::<u64>(&bells, capacity);
            thread::scope(|scope| {
                for mailbox in ends {
                    let bell = &bells[usize::from(mailbox.shard())];
                    scope.spawn(move || run_shard(&mailbox, bell, MESSAGES));
                }
                scope.spawn(|| {
                    for number in 0..MESSAGES {
                        for to in 0..SHARDS {
                            while control.post(to, number).is_err() {
                                thread::yield_now();
                            }
                        }
                    }
                });
            });
            let sent = control.counters();
            assert_eq!(sent.messages_posted, MESSAGES * u64::from(SHARDS));
        }
    }

    fn run_shard(mailbox: &Mailbox<u64>, bell: &ShardBell, messages: u64) {
        let (wake, woken) = mpsc::channel();
        bell.register(ChannelWaker(wake));
        let shards = usize::from(mailbox.shards());
        let own = usize::from(mailbox.shard());
        // By sender, the control thread last; nothing comes from ourselves.
        let mut received = vec![0; shards + 1];
        received[own] = messages;
        let mut sent = vec![0; shards];
        sent[own] = messages;
        loop {
            while let Some((from, number)) = mailbox.try_receive() {
                let from = usize::from(from).min(shards);
                assert_eq!(number, received[from], "from {from} to {own}");
                received[from] += 1;
            }
            for (to, sent) in sent.iter_mut().enumerate() {
                while *sent < messages && mailbox.post(to as u16, *sent).is_ok() {
                    *sent += 1;
                }
            }
            if sent.iter().any(|&sent| sent < messages) {
                thread::yield_now();
            } else if received.iter().all(|&received| received == messages) {
                break;
            } else {
                bell.prepare_sleep();
                if mailbox.is_empty() {
                    woken.recv_timeout(HANG).expect("a wake-up was lost");
                    bell.woke();
                } else {
                    bell.stay_awake();
                }
            }
        }
        let counters = mailbox.counters();
        assert_eq!(counters.messages_posted, messages * (shards as u64 - 1));
    }

    proptest! {
        /// Any sequence of posts and receives behaves like one bounded FIFO for each shard.
        #[test]
        fn behaves_like_bounded_queues(
            capacity in 1_usize..6,
            steps in prop::collection::vec((0_u16..4, prop::option::of(0_u16..3)), 0..200),
        ) {
            let (ends, control) = mailboxes::<usize>(&shard_bells(3), capacity);
            let mut model = vec![VecDeque::new(); 3];
            for (number, (who, to)) in steps.into_iter().enumerate() {
                match to {
                    Some(to) => {
                        let (from, answer) = match ends.get(usize::from(who)) {
                            Some(end) => (who, end.post(to, number)),
                            None => (FROM_CONTROL, control.post(to, number)),
                        };
                        let queue = &mut model[usize::from(to)];
                        if queue.len() < capacity {
                            prop_assert!(answer.is_ok());
                            queue.push_back((from, number));
                        } else {
                            prop_assert_eq!(answer.unwrap_err().message, number);
                        }
                    }
                    None => {
                        let shard = usize::from(who % 3);
                        prop_assert_eq!(ends[shard].len(), model[shard].len());
                        prop_assert_eq!(ends[shard].is_empty(), model[shard].is_empty());
                        prop_assert_eq!(ends[shard].try_receive(), model[shard].pop_front());
                    }
                }
            }
        }
    }
}
