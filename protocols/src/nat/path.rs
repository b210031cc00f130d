//! What happens to datagrams on their way through the NAT on one shard: decided by the impairment
//! model, held back here for as long as it takes.
//!
//! What is held has memory of its own, so that it starves no receive pool, and its bytes are bounded.
//! Nothing here sends and nothing here is random: the model decides. Times are counted from the start
//! of the run, which is the same for all shards.

use std::cell::Cell;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::sync::Arc;

use ringmill_engine::impairment::{
    Admitted, Bottleneck, Changes, Decider, Departure, Direction, Impairment, Link, Phase, Rate,
    Scenario, Served,
};
use ringmill_engine::{Buffer, Ecn, Nanos};

use super::control::Shared;
use super::entries::{Entries, EntryId};

/// What the model remembers of one entry: forward, backward.
#[derive(Debug)]
pub(crate) struct Links([Link<Load>; 2]);

impl Links {
    /// Datagrams that will not leave when these end. What has left them for its own time does not
    /// count.
    pub(crate) fn waiting(&self) -> usize {
        self.0.iter().map(Link::waiting).sum()
    }
}

/// A datagram that leaves now.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) entry: EntryId,
    pub(crate) direction: Direction,
    pub(crate) ecn: Ecn,
    pub(crate) data: Buffer,
}

/// Bytes and datagrams that are held back.
#[derive(Debug, Default)]
struct Account {
    datagrams: Cell<u64>,
    bytes: Cell<u64>,
}

/// A datagram in memory of its own counts as held for as long as it exists.
#[derive(Debug)]
struct Charge(Rc<Account>, u64);

impl Charge {
    fn new(account: &Rc<Account>, bytes: usize) -> Self {
        let bytes = bytes as u64;
        account.datagrams.set(account.datagrams.get() + 1);
        account.bytes.set(account.bytes.get() + bytes);
        Self(Rc::clone(account), bytes)
    }
}

impl Clone for Charge {
    fn clone(&self) -> Self {
        Self::new(&self.0, self.1 as usize)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.datagrams.set(self.0.datagrams.get() - 1);
        self.0.bytes.set(self.0.bytes.get() - self.1);
    }
}

/// A datagram on the path: lent by the receive pool until it has to wait.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    data: Buffer,
    charge: Option<Charge>,
}

/// What is to happen at a time.
#[derive(Debug)]
enum Due {
    Leave {
        entry: EntryId,
        direction: Direction,
        ecn: Ecn,
        load: Load,
    },
    /// The link of an entry has something to let go.
    Look(EntryId, Direction),
}

#[derive(Debug)]
struct Waiting {
    at: Nanos,
    /// Equal times in the order in which they were set.
    sequence: u64,
    due: Due,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

/// A datagram before the bottleneck that all flows of a direction share.
#[derive(Debug)]
struct Queued {
    entry: EntryId,
    admitted: Admitted,
    load: Load,
}

/// The impaired path of one shard.
pub(crate) struct Path {
    shared: Arc<Shared>,
    shard: usize,
    /// Time zero.
    began: Nanos,
    /// Whether there is any impairment at any time, and whether mappings ever move.
    impairs: bool,
    rebinds: bool,
    phase: usize,
    next_phase: Option<Nanos>,
    entered: bool,
    /// Whether a direction passes everything unchanged in this phase.
    clean: [bool; 2],
    shared_queues: [Bottleneck<Queued>; 2],
    waiting: BinaryHeap<Reverse<Waiting>>,
    sequence: u64,
    account: Rc<Account>,
    departures: Vec<Departure<Load>>,
    served: Vec<Served<Queued>>,
}

const fn slot(direction: Direction) -> usize {
    match direction {
        Direction::Forward => 0,
        Direction::Backward => 1,
    }
}

fn model(phase: &Phase, direction: Direction) -> &Impairment {
    match direction {
        Direction::Forward => &phase.forward,
        Direction::Backward => &phase.backward,
    }
}

/// The bottleneck that all flows share, if there is one.
fn shared_rate(model: &Impairment) -> Option<Rate> {
    model.rate.filter(|rate| !rate.per_flow)
}

impl Path {
    pub(crate) fn new(shared: Arc<Shared>, shard: u16) -> Self {
        let scenario = &shared.settings.scenario;
        Self {
            shard: usize::from(shard),
            began: 0,
            impairs: !scenario.is_clean(),
            rebinds: scenario.rebinds(),
            phase: 0,
            next_phase: None,
            entered: false,
            clean: [true; 2],
            shared_queues: Default::default(),
            waiting: BinaryHeap::new(),
            sequence: 0,
            account: Rc::default(),
            departures: Vec::new(),
            served: Vec::new(),
            shared,
        }
    }

    /// Sets time zero.
    pub(crate) fn begin(&mut self, began: Nanos) {
        self.began = began;
        self.set_phase(0);
    }

    fn scenario(&self) -> &Scenario {
        &self.shared.settings.scenario
    }

    /// Whether it has nothing to do at any time.
    pub(crate) fn is_unused(&self) -> bool {
        !self.impairs && !self.rebinds
    }

    pub(crate) fn held_datagrams(&self) -> u64 {
        self.account.datagrams.get()
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.account.bytes.get()
    }

    /// What an entry needs.
    pub(crate) fn links(&self, flow: u64) -> Option<Box<Links>> {
        let link = |direction| Link::new(Decider::new(self.shared.seed, flow, direction));
        self.impairs
            .then(|| Box::new(Links([Direction::Forward, Direction::Backward].map(link))))
    }

    /// How often a flow has moved to another mapping by `now`.
    pub(crate) fn rebindings(&self, flow: u64, now: Nanos) -> u64 {
        if !self.rebinds {
            return 0;
        }
        let elapsed = now.saturating_sub(self.began);
        self.scenario().rebindings(self.shared.seed, flow, elapsed)
    }

    /// Whether a mapping that moves goes to another address.
    pub(crate) fn rebinds_address(&self) -> bool {
        let phase = self.scenario().phases.get(self.phase);
        phase
            .and_then(|phase| phase.rebinding)
            .is_some_and(|rebinding| rebinding.changes == Changes::Address)
    }

    /// Whether everything of a direction passes unchanged now.
    pub(crate) fn is_clean(&mut self, direction: Direction, now: Nanos) -> bool {
        if !self.impairs {
            return true;
        }
        self.enter(now);
        self.clean[slot(direction)]
    }

    /// Goes to the phase of this time.
    pub(crate) fn enter(&mut self, now: Nanos) {
        let elapsed = now.saturating_sub(self.began);
        if self.next_phase.is_some_and(|next| elapsed >= next) {
            self.set_phase(elapsed);
            self.entered = true;
        }
    }

    /// The name of the phase, if it is another one than when this was last asked.
    pub(crate) fn take_entered(&mut self) -> Option<String> {
        let phase = self.scenario().phases.get(self.phase)?.name.clone();
        std::mem::take(&mut self.entered).then_some(phase)
    }

    fn set_phase(&mut self, elapsed: Nanos) {
        let (phase, next) = self.scenario().at(elapsed);
        (self.phase, self.next_phase) = (phase, next);
        let phase = &self.shared.settings.scenario.phases[phase];
        self.clean = [phase.forward.is_clean(), phase.backward.is_clean()];
    }

    /// Takes one datagram of an entry; adds to `ready` what leaves by this.
    pub(crate) fn offer(
        &mut self,
        now: Nanos,
        (entries, entry): (&mut Entries, EntryId),
        direction: Direction,
        (data, ecn): (Buffer, Ecn),
        ready: &mut Vec<Ready>,
    ) {
        let elapsed = now.saturating_sub(self.began);
        self.serve(elapsed, entries, ready);
        let shared = Arc::clone(&self.shared);
        let model = model(&shared.settings.scenario.phases[self.phase], direction);
        let shown = &shared.shards[self.shard];
        let counters = &shown.impaired[slot(direction)];
        let Some(links) = entries
            .by_id(entry)
            .and_then(|entry| entry.links.as_deref_mut())
        else {
            return;
        };
        let link = &mut links.0[slot(direction)];
        let bytes = data.len();
        let waits = model.rate.is_some() || model.reordering.probability > 0.0;
        let mut load = Load { data, charge: None };
        if waits && !self.own(&mut load) {
            shown.counters.dropped_held_full.add(1);
            return;
        }
        let before = link.next_expiry();
        let Some(rate) = shared_rate(model) else {
            let out = &mut self.departures;
            link.offer(elapsed, (bytes, ecn), load, model, out, counters);
            if let Some(next) = link.next_expiry().filter(|next| before != Some(*next)) {
                self.wait(next, Due::Look(entry, direction));
            }
            self.depart(elapsed, entries, (entry, direction), ready);
            return;
        };
        let out = &mut self.departures;
        if let Ok(admitted) = link.admit(elapsed, bytes, model, out, counters) {
            let queued = Queued {
                entry,
                admitted,
                load,
            };
            let queue = &mut self.shared_queues[slot(direction)];
            let draw = admitted.draw();
            if queue
                .offer(elapsed, (bytes, ecn), queued, &rate, draw, counters)
                .is_err()
            {
                link.refused(elapsed, &admitted, out, counters);
            }
        }
        self.depart(elapsed, entries, (entry, direction), ready);
        self.serve(elapsed, entries, ready);
    }

    /// Lets go of all that is due.
    pub(crate) fn expire(&mut self, now: Nanos, entries: &mut Entries, ready: &mut Vec<Ready>) {
        let elapsed = now.saturating_sub(self.began);
        self.serve(elapsed, entries, ready);
        while let Some(Reverse(next)) = self.waiting.peek()
            && next.at <= elapsed
        {
            let Some(Reverse(next)) = self.waiting.pop() else {
                return;
            };
            match next.due {
                Due::Leave {
                    entry,
                    direction,
                    ecn,
                    load,
                } => ready.push(Ready {
                    entry,
                    direction,
                    ecn,
                    data: load.data,
                }),
                Due::Look(entry, direction) => {
                    self.look(elapsed, entries, (entry, direction), ready)
                }
            }
        }
    }

    /// When [`expire`](Self::expire) is to be called next.
    pub(crate) fn next(&self) -> Option<Nanos> {
        let queues = self.shared_queues.iter().filter_map(Bottleneck::next);
        let waiting = self.waiting.peek().map(|Reverse(next)| next.at);
        let next = queues.chain(waiting).chain(self.next_phase).min();
        next.map(|next| self.began.saturating_add(next))
    }

    /// Lets the link of an entry let go of what is due.
    fn look(
        &mut self,
        elapsed: Nanos,
        entries: &mut Entries,
        (entry, direction): (EntryId, Direction),
        ready: &mut Vec<Ready>,
    ) {
        let Some(links) = entries
            .by_id(entry)
            .and_then(|entry| entry.links.as_deref_mut())
        else {
            return;
        };
        let counters = &self.shared.shards[self.shard].impaired[slot(direction)];
        let link = &mut links.0[slot(direction)];
        link.expire(elapsed, &mut self.departures, counters);
        if let Some(next) = link.next_expiry() {
            self.wait(next, Due::Look(entry, direction));
        }
        self.depart(elapsed, entries, (entry, direction), ready);
    }

    /// Serves the bottlenecks that all flows share.
    fn serve(&mut self, elapsed: Nanos, entries: &mut Entries, ready: &mut Vec<Ready>) {
        for direction in [Direction::Forward, Direction::Backward] {
            let queue = &mut self.shared_queues[slot(direction)];
            if queue.next().is_none() {
                continue;
            }
            let phase = &self.shared.settings.scenario.phases[self.phase];
            let counters = &self.shared.shards[self.shard].impaired[slot(direction)];
            let served = &mut self.served;
            match shared_rate(model(phase, direction)) {
                Some(rate) => queue.serve(elapsed, &rate, counters, |next| served.push(next)),
                None => queue.open(elapsed, |next| served.push(next)),
            }
            let mut served = std::mem::take(&mut self.served);
            for next in served.drain(..) {
                self.pass(elapsed, next, entries, direction, ready);
            }
            self.served = served;
        }
    }

    fn pass(
        &mut self,
        elapsed: Nanos,
        served: Served<Queued>,
        entries: &mut Entries,
        direction: Direction,
        ready: &mut Vec<Ready>,
    ) {
        let Served {
            at,
            ecn,
            item:
                Queued {
                    entry,
                    admitted,
                    load,
                },
        } = served;
        let shown = &self.shared.shards[self.shard];
        let Some(links) = entries
            .by_id(entry)
            .and_then(|entry| entry.links.as_deref_mut())
        else {
            shown.counters.dropped_entry_ended.add(1);
            return;
        };
        let link = &mut links.0[slot(direction)];
        let before = link.next_expiry();
        let counters = &shown.impaired[slot(direction)];
        link.pass(at, ecn, admitted, load, &mut self.departures, counters);
        if let Some(next) = link.next_expiry().filter(|next| before != Some(*next)) {
            self.wait(next, Due::Look(entry, direction));
        }
        self.depart(elapsed, entries, (entry, direction), ready);
    }

    /// Sends on what the link of an entry gave back: now, or when it is due.
    fn depart(
        &mut self,
        elapsed: Nanos,
        entries: &mut Entries,
        (entry, direction): (EntryId, Direction),
        ready: &mut Vec<Ready>,
    ) {
        let mut departures = std::mem::take(&mut self.departures);
        for departure in departures.drain(..) {
            let Departure {
                at,
                index,
                corrupted,
                ecn,
                item: mut load,
            } = departure;
            if corrupted {
                self.corrupt(entries, (entry, direction), index, &mut load);
            }
            if at <= elapsed {
                let data = load.data;
                ready.push(Ready {
                    entry,
                    direction,
                    ecn,
                    data,
                });
            } else if load.charge.is_some() || self.own(&mut load) {
                let due = Due::Leave {
                    entry,
                    direction,
                    ecn,
                    load,
                };
                self.wait(at, due);
            } else {
                let counters = &self.shared.shards[self.shard].counters;
                counters.dropped_held_full.add(1);
            }
        }
        self.departures = departures;
    }

    fn corrupt(
        &self,
        entries: &mut Entries,
        (entry, direction): (EntryId, Direction),
        index: u64,
        load: &mut Load,
    ) {
        let Some(links) = entries
            .by_id(entry)
            .and_then(|entry| entry.links.as_deref_mut())
        else {
            return;
        };
        let phase = &self.shared.settings.scenario.phases[self.phase];
        let bits = model(phase, direction).corruption.bits;
        let mut bytes = load.data.to_vec();
        let decider = links.0[slot(direction)].decider();
        decider.corrupt(index, bits, &mut bytes);
        load.data = Buffer::copied(&bytes);
    }

    fn wait(&mut self, at: Nanos, due: Due) {
        self.sequence += 1;
        self.waiting.push(Reverse(Waiting {
            at,
            sequence: self.sequence,
            due,
        }));
    }

    /// Gives a datagram memory of its own; `false` when too much is held already.
    fn own(&self, load: &mut Load) -> bool {
        let bytes = load.data.len();
        let held = self.account.bytes.get() + bytes as u64;
        if held > self.shared.settings.held_bytes_max as u64
            || self.account.datagrams.get() >= HELD_DATAGRAMS_MAX
        {
            return false;
        }
        load.data = Buffer::copied(&load.data);
        load.charge = Some(Charge::new(&self.account, bytes));
        true
    }
}

/// Datagrams that a shard may hold, however short: each costs a few hundred bytes beside its own.
const HELD_DATAGRAMS_MAX: u64 = 1 << 20;
