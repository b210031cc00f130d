//! The NAT on one shard: datagrams of clients go out from a socket of their own, answers come back.
//!
//! The kernel hashes each client to one shard, and everything about it stays there: entry, socket,
//! impairment, timers. What came coalesced leaves coalesced, and nothing is copied unless an
//! impairment holds or changes it. A datagram is never cut, and never goes to anybody but the entry's
//! client or its destination.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Sender;

use ringmill_engine::impairment::{Direction, mix};
use ringmill_engine::{
    Buffer, Context, Datagram, Ecn, Nanos, Open, Payload, Protocol, ShardId, SocketId, Transmit,
    segments,
};

use super::control::{Command, Done, Event, Message, ShardShared, Shared};
use super::counters::NatCounters;
use super::destination::{Destination, State};
use super::entries::{Entries, Entry, Opening};
use super::filter::is_dtls;
use super::health;
use super::outlets::{Outlet, Outlets};
use super::path::{Path, Ready};
use super::settings::{Balancing, FlowNumbers, Settings, WhenFull, flow_number};
use super::tap::Seen;

/// Tags of listening sockets have this bit; those of entries are the entry's place.
const LISTENS: u64 = 1 << 63;
/// Entries that a command treats between two turns: a socket is opened and closed for each, a few
/// microseconds, so that datagrams wait for at most about two milliseconds.
const STEP: usize = 256;
/// The shard that looks at the health of the destinations.
const HEALTH_SHARD: ShardId = 0;

/// What a timer is for.
mod token {
    pub(super) const IDLE: u64 = 0;
    pub(super) const HEALTH: u64 = 1;
    pub(super) const PATH: u64 = 2;
    pub(super) const JOB: u64 = 3;
    pub(super) const CLOSE: u64 = 4;
}

/// The NAT service on one shard.
pub struct Forwarder {
    shared: Arc<Shared>,
    shard: ShardId,
    entries: Entries,
    outlets: Outlets,
    destinations: Vec<Arc<Destination>>,
    path: Path,
    /// What left the path in this call.
    ready: Vec<Ready>,
    jobs: VecDeque<Job>,
    /// Sockets that no entry has any more.
    closing: Vec<Closing>,
    idle_armed: bool,
    /// When the path's timer fires.
    path_armed: Option<(Nanos, ringmill_engine::timer::TimerId)>,
}

/// A socket that is closed in the next turn: what was sent by it in this one leaves at its end, and
/// was counted as sent.
struct Closing {
    socket: SocketId,
    outlet: Option<Outlet>,
    since: Nanos,
}

/// A command on its way through the entries.
struct Job {
    command: Command,
    place: u32,
    done: Done,
    answer: Sender<Done>,
}

impl Forwarder {
    /// The NAT on one shard.
    pub(crate) fn new(shared: Arc<Shared>, shard: ShardId) -> Self {
        let settings = &shared.settings;
        let shards = shared.shards.len() as u16;
        let outlets = Outlets::new(
            &settings.sources,
            settings.ports.as_ref(),
            settings.port_reuse,
            shard,
            shards,
        );
        Self {
            entries: Entries::default(),
            outlets,
            destinations: shared.listed(),
            path: Path::new(Arc::clone(&shared), shard),
            ready: Vec::new(),
            jobs: VecDeque::new(),
            closing: Vec::new(),
            idle_armed: false,
            path_armed: None,
            shard,
            shared,
        }
    }

    fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    fn shown(&self) -> &ShardShared {
        &self.shared.shards[usize::from(self.shard)]
    }

    fn counters(&self) -> &NatCounters {
        &self.shown().counters
    }

    // ---- from clients --------------------------------------------------------------------

    fn forward(
        &mut self,
        ctx: &mut Context<'_, Message>,
        listener: SocketId,
        endpoint: u16,
        datagram: Datagram,
    ) {
        let count = datagram.count();
        if self.shared.tap.is_some() {
            self.tap_received(ctx, listener, &datagram);
        }
        let counters = self.counters();
        counters.forward_received_datagrams.add(count as u64);
        counters
            .forward_received_bytes
            .add(datagram.data.len() as u64);
        let index = match self.entries.find(datagram.peer, endpoint) {
            Some(index) => index,
            None => match self.create(ctx, listener, endpoint, &datagram) {
                Some(index) => index,
                None => return,
            },
        };
        self.entries.touch(index, ctx.now());
        if let Some(entry) = self.entries.get(index) {
            // A client may move from one of our addresses to another.
            entry.asked = datagram.local;
        }
        if !self.keep_binding(ctx, index) || !self.keep_destination(ctx, index) {
            self.counters().dropped_no_destination.add(count as u64);
            return;
        }
        self.pass(ctx, index, Direction::Forward, datagram);
    }

    /// The entry of a client that has none.
    fn create(
        &mut self,
        ctx: &mut Context<'_, Message>,
        listener: SocketId,
        endpoint: u16,
        datagram: &Datagram,
    ) -> Option<u32> {
        let count = datagram.count() as u64;
        if !self.take_place(ctx) {
            self.counters().dropped_table_full.add(count);
            return None;
        }
        let flow = match self.settings().flow_numbers {
            FlowNumbers::Client => flow_number(datagram.peer, endpoint),
            FlowNumbers::Arrival => self.shared.flows.fetch_add(1, Relaxed),
        };
        let Some(destination) = self.choose(ctx.now(), flow, 0) else {
            self.counters().dropped_no_destination.add(count);
            self.shared.entries.fetch_sub(1, Relaxed);
            return None;
        };
        let place = self.entries.next_place();
        let Some(outlet) = self.open(ctx, destination.address.is_ipv6(), None, place) else {
            self.counters().dropped_no_socket.add(count);
            self.shared.entries.fetch_sub(1, Relaxed);
            return None;
        };
        let local = ctx.local_address(listener);
        let opening = Opening {
            client: datagram.peer,
            endpoint,
            listener,
            asked: datagram.local,
            port: local
                .filter(|_| self.settings().keep_port)
                .map(|local| local.port()),
            flow,
            rebindings: self.path.rebindings(flow, ctx.now()),
            links: self.path.links(flow),
        };
        destination.traffic(self.shard).entries.add(1);
        let index = self.entries.insert(opening, destination, outlet, ctx.now());
        let counters = self.counters();
        counters.entries_created.add(1);
        counters.entries.set(self.entries.len() as u64);
        self.arm_idle(ctx);
        Some(index)
    }

    /// Takes one of the places that all shards share, making room for it if it may.
    fn take_place(&mut self, ctx: &mut Context<'_, Message>) -> bool {
        let max = self.settings().entries_max;
        let take = |entries: usize| (entries < max).then_some(entries + 1);
        let places = &self.shared.entries;
        if places.fetch_update(Relaxed, Relaxed, take).is_ok() {
            return true;
        }
        if self.settings().when_full == WhenFull::Refuse {
            return false;
        }
        // Another shard may take the place that this gives: then the client's next datagram tries
        // again.
        let Some(oldest) = self.entries.oldest() else {
            return false;
        };
        self.end(ctx, oldest);
        self.counters().entries_evicted.add(1);
        let places = &self.shared.entries;
        places.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// A socket for the entry at a place, bound where it should send from.
    fn open(
        &mut self,
        ctx: &mut Context<'_, Message>,
        ipv6: bool,
        avoid: Option<IpAddr>,
        place: u32,
    ) -> Option<(SocketId, Option<Outlet>)> {
        for _ in 0..self.outlets.attempts() {
            let Some((local, outlet)) = self.outlets.take(ipv6, avoid) else {
                if self.close_before(ctx, Nanos::MAX) {
                    continue;
                }
                return None;
            };
            let peer = None;
            match ctx.open(&Open { local, peer }) {
                Ok(socket) => {
                    ctx.set_socket_tag(socket, u64::from(place));
                    return Some((socket, outlet));
                }
                Err(error) => {
                    self.outlets.put_off(outlet);
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
                    ) && !self.close_before(ctx, Nanos::MAX)
                    {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Closes a socket once what waits in its queue has left.
    fn close(&mut self, ctx: &mut Context<'_, Message>, socket: SocketId, outlet: Option<Outlet>) {
        let since = ctx.now();
        if self.closing.is_empty() {
            ctx.set_timer(since + 1, token::CLOSE);
        }
        self.closing.push(Closing {
            socket,
            outlet,
            since,
        });
    }

    /// Closes the sockets that were given up before a time; whether there was one. Where ports or
    /// files are short this may be at once: a client that comes now needs them more.
    fn close_before(&mut self, ctx: &mut Context<'_, Message>, before: Nanos) -> bool {
        // In the order in which they were given up.
        let count = self.closing.partition_point(|next| next.since < before);
        for next in self.closing.drain(..count) {
            ctx.close_socket(next.socket);
            self.outlets.give_back(next.outlet);
        }
        count > 0
    }

    /// Moves the entry to another local port if it is time to. Always leaves it with a socket.
    fn keep_binding(&mut self, ctx: &mut Context<'_, Message>, index: u32) -> bool {
        let Some(entry) = self.entries.get(index) else {
            return false;
        };
        let due = self.path.rebindings(entry.flow, ctx.now());
        if due == entry.rebindings {
            return true;
        }
        entry.rebindings = due;
        let elsewhere = self.path.rebinds_address();
        self.move_socket(ctx, index, elsewhere)
    }

    /// Gives the entry another socket. `false` when there was none to be had and its own cannot
    /// reach the destination: then the entry is gone.
    fn move_socket(&mut self, ctx: &mut Context<'_, Message>, index: u32, elsewhere: bool) -> bool {
        let Some(entry) = self.entries.get(index) else {
            return false;
        };
        let ipv6 = entry.destination.address.is_ipv6();
        let (old, old_outlet) = (entry.socket, entry.outlet);
        let local = ctx.local_address(old);
        let avoid = local.filter(|_| elsewhere).map(|local| local.ip());
        let Some((socket, outlet)) = self.open(ctx, ipv6, avoid, index) else {
            let reaches = local.is_some_and(|local| local.is_ipv6() == ipv6);
            if !reaches {
                self.counters().entries_lost.add(1);
                self.end(ctx, index);
            }
            return reaches;
        };
        if let Some(entry) = self.entries.get(index) {
            (entry.socket, entry.outlet) = (socket, outlet);
        }
        self.close(ctx, old, old_outlet);
        self.counters().rebound.add(1);
        true
    }

    // ---- destinations --------------------------------------------------------------------

    /// Gives the entry another destination if its own may no longer be used. `false` when there is
    /// none, or when the entry is gone.
    fn keep_destination(&mut self, ctx: &mut Context<'_, Message>, index: u32) -> bool {
        let Some(entry) = self.entries.get(index) else {
            return false;
        };
        // A destination that was just assigned gets at least one datagram.
        if entry.destination.is_usable() || (entry.fresh && !entry.destination.is_removed()) {
            return true;
        }
        self.assign(ctx, index).is_some()
    }

    /// Draws a destination for the entry: whether it is another one; `None` when there is none.
    fn assign(&mut self, ctx: &mut Context<'_, Message>, index: u32) -> Option<bool> {
        let entry = self.entries.get(index)?;
        let (flow, assignments) = (entry.flow, entry.assignments);
        let chosen = self.choose(ctx.now(), flow, assignments)?;
        let entry = self.entries.get(index)?;
        entry.assignments += 1;
        entry.fresh = true;
        if Arc::ptr_eq(&entry.destination, &chosen) {
            return Some(false);
        }
        let other_version = entry.destination.address.is_ipv6() != chosen.address.is_ipv6();
        replace_destination(entry, chosen, self.shard);
        self.counters().reassigned.add(1);
        if other_version && !self.move_socket(ctx, index, false) {
            return None;
        }
        Some(true)
    }

    /// A destination for a flow that was assigned one so many times before.
    fn choose(&mut self, now: Nanos, flow: u64, assignments: u32) -> Option<Arc<Destination>> {
        self.destinations.retain(|next| !next.is_removed());
        // The first that needs one tries what was silent.
        for destination in &self.destinations {
            if destination.state() == State::Probing
                && destination.change(State::Probing, State::Pending, now)
            {
                return Some(Arc::clone(destination));
            }
        }
        let active = |next: &&Arc<Destination>| next.state() == State::Active;
        let mut usable: Vec<&Arc<Destination>> = self.destinations.iter().filter(active).collect();
        if usable.is_empty() {
            // The active ones were removed: better a silent one than none.
            usable = self.destinations.iter().collect();
        }
        let count = usable.len();
        let chosen = match self.settings().balancing {
            _ if count < 2 => usable.first(),
            Balancing::Random => {
                let seed = self.settings().seed;
                let draw = mix(mix(seed ^ flow.rotate_left(17)).wrapping_add(assignments.into()));
                usable.get((draw % count as u64) as usize)
            }
            Balancing::RoundRobin => {
                let turn = self.shared.turns.fetch_add(1, Relaxed);
                usable.get(turn % count)
            }
            Balancing::LeastUsed => usable.iter().min_by_key(|next| next.totals().entries),
            Balancing::Hash => usable
                .iter()
                .max_by_key(|next| mix(flow ^ flow_number(next.address, 0))),
        };
        chosen.map(|chosen| Arc::clone(chosen))
    }

    fn look_at_health(&mut self, ctx: &mut Context<'_, Message>) {
        let Some(timeout) = self.settings().destination_timeout else {
            return;
        };
        for (destination, state) in health::look(&self.shared.listed(), ctx.now(), timeout) {
            self.shared.say(Event::Destination {
                destination: destination.name.clone(),
                state,
                revived: false,
            });
        }
        let next = ctx.now() + (timeout / health::LOOKS_PER_TIMEOUT).max(1);
        ctx.set_timer(next, token::HEALTH);
    }

    // ---- from destinations ---------------------------------------------------------------

    fn backward(
        &mut self,
        ctx: &mut Context<'_, Message>,
        index: u32,
        socket: SocketId,
        datagram: Datagram,
    ) {
        let count = datagram.count();
        let now = ctx.now();
        if self.shared.tap.is_some() {
            self.tap_received(ctx, socket, &datagram);
        }
        let counters = self.counters();
        counters.backward_received_datagrams.add(count as u64);
        counters
            .backward_received_bytes
            .add(datagram.data.len() as u64);
        let shard = self.shard;
        let Some(entry) = self
            .entries
            .get(index)
            .filter(|entry| entry.socket == socket)
        else {
            self.counters().dropped_old_binding.add(count as u64);
            return;
        };
        if entry.rebindings != self.path.rebindings(entry.flow, now) {
            // The mapping has moved; the socket follows with the client's next datagram.
            self.counters().dropped_old_binding.add(count as u64);
            return;
        }
        if entry.target() != datagram.peer {
            let listed = self.destinations.iter();
            let known = listed
                .filter(|next| !next.is_removed() && entry.address_of(next) == datagram.peer)
                .find(|_| self.shared.reverse_update.load(Relaxed));
            let Some(known) = known else {
                self.counters().dropped_wrong_routed.add(count as u64);
                return;
            };
            replace_destination(entry, Arc::clone(known), shard);
            self.shared.shards[usize::from(shard)]
                .counters
                .reassigned
                .add(1);
        }
        let destination = &entry.destination;
        destination.traffic(shard).answered(now);
        let state = destination.state();
        if state != State::Active && destination.change(state, State::Active, now) {
            self.shared.say(Event::Destination {
                destination: destination.name.clone(),
                state: State::Active,
                revived: true,
            });
        }
        self.entries.touch(index, now);
        self.pass(ctx, index, Direction::Backward, datagram);
    }

    // ---- both ways -----------------------------------------------------------------------

    /// Takes what came in one buffer through filter and impairment.
    fn pass(
        &mut self,
        ctx: &mut Context<'_, Message>,
        index: u32,
        direction: Direction,
        datagram: Datagram,
    ) {
        let now = ctx.now();
        let clean = self.path.is_clean(direction, now);
        let foreign = self.settings().dtls_only && !datagram.iter().all(is_dtls);
        if clean && !foreign {
            let Datagram {
                stride, ecn, data, ..
            } = datagram;
            self.send(ctx, index, direction, ecn, stride, data);
            return;
        }
        let id = self.entries.id(index);
        let stride = usize::from(datagram.stride).max(1);
        for n in 0..datagram.count() {
            let start = n * stride;
            let end = (start + stride).min(datagram.data.len());
            let one = datagram.data.slice(start..end);
            if foreign && !is_dtls(&one) {
                self.counters().dropped_not_dtls.add(1);
                continue;
            }
            if clean {
                self.send(ctx, index, direction, datagram.ecn, datagram.stride, one);
                continue;
            }
            let entry = (&mut self.entries, id);
            let datagram = (one, datagram.ecn);
            self.path
                .offer(now, entry, direction, datagram, &mut self.ready);
            self.send_ready(ctx);
        }
    }

    /// Sends what has left the path.
    fn send_ready(&mut self, ctx: &mut Context<'_, Message>) {
        let mut ready = std::mem::take(&mut self.ready);
        for next in ready.drain(..) {
            if self.entries.by_id(next.entry).is_none() {
                self.counters().dropped_entry_ended.add(1);
                continue;
            }
            let stride = next.data.len() as u16;
            let index = next.entry.index;
            self.send(ctx, index, next.direction, next.ecn, stride, next.data);
        }
        self.ready = ready;
    }

    fn send(
        &mut self,
        ctx: &mut Context<'_, Message>,
        index: u32,
        direction: Direction,
        ecn: Ecn,
        stride: u16,
        data: Buffer,
    ) {
        let (shard, now) = (self.shard, ctx.now());
        let counters = &self.shared.shards[usize::from(shard)].counters;
        let Some(entry) = self.entries.get(index) else {
            return;
        };
        let (datagrams, bytes) = (segments(data.len(), stride), data.len());
        let (socket, peer, source) = match direction {
            Direction::Forward => (entry.socket, entry.target(), None),
            Direction::Backward => (entry.listener, entry.client, entry.asked),
        };
        if let Some(tap) = &self.shared.tap {
            let local = ctx.local_address(socket);
            for payload in pieces(&data, stride) {
                tap.take(Seen {
                    at: now,
                    source: with_ip(local, source, peer),
                    destination: peer,
                    ecn,
                    payload,
                });
            }
        }
        let transmit = Transmit {
            peer: Some(peer),
            source,
            ecn,
            stride,
            data: Payload::Buffer(data),
        };
        if !ctx.send_datagrams(socket, transmit).is_queued() {
            counters.dropped_queue_full.add(datagrams as u64);
            return;
        }
        let traffic = entry.destination.traffic(shard);
        match direction {
            Direction::Forward => {
                entry.fresh = false;
                counters.forward_sent_datagrams.add(datagrams as u64);
                counters.forward_sent_bytes.add(bytes as u64);
                traffic.forwarded(now, datagrams, bytes);
            }
            Direction::Backward => {
                counters.backward_sent_datagrams.add(datagrams as u64);
                counters.backward_sent_bytes.add(bytes as u64);
                traffic.returned(datagrams, bytes);
            }
        }
    }

    /// Gives the tap what came in.
    #[cold]
    fn tap_received(&self, ctx: &mut Context<'_, Message>, socket: SocketId, datagram: &Datagram) {
        let Some(tap) = &self.shared.tap else { return };
        let local = ctx.local_address(socket);
        for payload in datagram.iter() {
            tap.take(Seen {
                at: ctx.now(),
                source: datagram.peer,
                destination: with_ip(local, datagram.local, datagram.peer),
                ecn: datagram.ecn,
                payload,
            });
        }
    }

    // ---- the end of entries --------------------------------------------------------------

    fn end(&mut self, ctx: &mut Context<'_, Message>, index: u32) -> Option<Entry> {
        let entry = self.entries.remove(index)?;
        self.close(ctx, entry.socket, entry.outlet);
        release(&entry.destination, self.shard);
        self.shared.entries.fetch_sub(1, Relaxed);
        let counters = self.counters();
        counters.entries.set(self.entries.len() as u64);
        let waiting = entry.links.as_ref().map_or(0, |links| links.waiting());
        counters.dropped_entry_ended.add(waiting as u64);
        Some(entry)
    }

    fn end_idle(&mut self, ctx: &mut Context<'_, Message>) {
        let Some(timeout) = self.settings().entry_timeout else {
            return;
        };
        for _ in 0..STEP {
            let Some(oldest) = self.entries.oldest() else {
                return;
            };
            let used = self.entries.get(oldest).map_or(0, |entry| entry.used);
            if used + timeout > ctx.now() {
                break;
            }
            let socket = self.entries.get(oldest).map(|entry| entry.socket);
            let local = socket.and_then(|socket| ctx.local_address(socket));
            if let Some(entry) = self.end(ctx, oldest) {
                self.counters().entries_timed_out.add(1);
                self.shared.say(Event::TimedOut {
                    client: entry.client,
                    port: local.map_or(0, |local| local.port()),
                });
            }
        }
        self.arm_idle(ctx);
    }

    /// Sees to it that the oldest entry is looked at when it may have timed out.
    fn arm_idle(&mut self, ctx: &mut Context<'_, Message>) {
        let (Some(timeout), false) = (self.settings().entry_timeout, self.idle_armed) else {
            return;
        };
        let oldest = self.entries.oldest();
        let Some(entry) = oldest.and_then(|oldest| self.entries.get(oldest)) else {
            return;
        };
        ctx.set_timer(entry.used + timeout, token::IDLE);
        self.idle_armed = true;
    }

    // ---- the path's own time -------------------------------------------------------------

    /// Sees to it that the shard wakes when something held back may go, and shows the counters.
    fn settle(&mut self, ctx: &mut Context<'_, Message>) {
        if self.path.is_unused() {
            return;
        }
        if let Some(phase) = self.path.take_entered()
            && self.shard == HEALTH_SHARD
        {
            self.shared.say(Event::Phase { phase });
        }
        let counters = self.counters();
        counters.held_datagrams.set(self.path.held_datagrams());
        counters.held_bytes.set(self.path.held_bytes());
        let next = self.path.next();
        match (self.path_armed, next) {
            (Some((at, _)), Some(next)) if at <= next => {}
            (armed, next) => {
                if let Some((_, timer)) = armed {
                    ctx.cancel_timer(timer);
                }
                self.path_armed = next.map(|next| (next, ctx.set_timer(next, token::PATH)));
            }
        }
    }

    fn release_due(&mut self, ctx: &mut Context<'_, Message>) {
        self.path.enter(ctx.now());
        let entries = &mut self.entries;
        self.path.expire(ctx.now(), entries, &mut self.ready);
        self.send_ready(ctx);
    }

    // ---- commands ------------------------------------------------------------------------

    /// Goes on with the first command for one step.
    fn step(&mut self, ctx: &mut Context<'_, Message>) {
        let Some(mut job) = self.jobs.pop_front() else {
            return;
        };
        let finished = match job.command {
            Command::Clear(count) => self.step_clear(ctx, count, &mut job.done),
            Command::Reassign | Command::Rebalance => self.step_assign(ctx, &mut job),
        };
        if finished {
            // Who asked may have given up.
            let _ = job.answer.send(job.done);
        } else {
            self.jobs.push_front(job);
        }
        if !self.jobs.is_empty() {
            ctx.set_timer(ctx.now(), token::JOB);
        }
    }

    fn step_clear(
        &mut self,
        ctx: &mut Context<'_, Message>,
        count: usize,
        done: &mut Done,
    ) -> bool {
        for _ in 0..STEP {
            let Some(oldest) = self.entries.oldest().filter(|_| done.changed < count) else {
                return true;
            };
            self.end(ctx, oldest);
            self.counters().entries_cleared.add(1);
            done.changed += 1;
            done.entries += 1;
        }
        false
    }

    fn step_assign(&mut self, ctx: &mut Context<'_, Message>, job: &mut Job) -> bool {
        for _ in 0..STEP {
            if job.place >= self.entries.places() {
                return true;
            }
            let index = job.place;
            job.place += 1;
            if self.entries.get(index).is_none() {
                continue;
            }
            job.done.entries += 1;
            let changed = self.assign(ctx, index) == Some(true);
            let moved = job.command == Command::Reassign && self.move_socket(ctx, index, false);
            job.done.changed += usize::from(changed || moved);
        }
        false
    }
}

/// One of our addresses with the IP address that is known of it; unspecified, of the version of the
/// other end, when nothing is.
fn with_ip(local: Option<SocketAddr>, ip: Option<IpAddr>, other: SocketAddr) -> SocketAddr {
    let unspecified = match other.is_ipv6() {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let local = local.unwrap_or(SocketAddr::new(unspecified, 0));
    SocketAddr::new(ip.unwrap_or(local.ip()), local.port())
}

/// The datagrams in coalesced bytes; one when there are none.
fn pieces(data: &[u8], stride: u16) -> impl Iterator<Item = &[u8]> {
    let stride = usize::from(stride).max(1);
    (0..segments(data.len(), stride as u16))
        .map(move |n| &data[n * stride..((n + 1) * stride).min(data.len())])
}

fn release(destination: &Destination, shard: ShardId) {
    let entries = &destination.traffic(shard).entries;
    entries.set(entries.get().saturating_sub(1));
}

fn replace_destination(entry: &mut Entry, with: Arc<Destination>, shard: ShardId) {
    with.traffic(shard).entries.add(1);
    let before = std::mem::replace(&mut entry.destination, with);
    release(&before, shard);
}

impl Protocol for Forwarder {
    type Message = Message;

    fn start(&mut self, ctx: &mut Context<'_, Message>) {
        let began = *self.shared.began.get_or_init(|| ctx.now());
        self.path.begin(began);
        for (endpoint, socket) in ctx.bound_sockets() {
            ctx.set_socket_tag(socket, LISTENS | u64::from(endpoint));
        }
        if self.shard == HEALTH_SHARD {
            self.look_at_health(ctx);
        }
        self.settle(ctx);
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, Message>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let tag = ctx.socket_tag(socket);
        for datagram in batch.drain(..) {
            if tag & LISTENS != 0 {
                self.forward(ctx, socket, tag as u16, datagram);
            } else {
                self.backward(ctx, tag as u32, socket, datagram);
            }
        }
        self.settle(ctx);
    }

    fn socket_error(&mut self, _ctx: &mut Context<'_, Message>, _socket: SocketId, _errno: i32) {
        self.counters().socket_errors.add(1);
    }

    fn timer(&mut self, ctx: &mut Context<'_, Message>, token: u64) {
        match token {
            token::IDLE => {
                self.idle_armed = false;
                self.end_idle(ctx);
            }
            token::HEALTH => self.look_at_health(ctx),
            token::JOB => self.step(ctx),
            token::CLOSE => {
                self.close_before(ctx, ctx.now());
                if !self.closing.is_empty() {
                    ctx.set_timer(ctx.now() + 1, token::CLOSE);
                }
            }
            _ => {
                self.path_armed = None;
                self.release_due(ctx);
            }
        }
        self.settle(ctx);
    }

    fn message(&mut self, ctx: &mut Context<'_, Message>, _from: ShardId, message: Message) {
        match message {
            Message::Added(destination, answer) => {
                self.destinations.push(destination);
                // Nobody may wait for it any more.
                let _ = answer.send(Done::default());
            }
            Message::Command(command, answer) => {
                self.jobs.push_back(Job {
                    command,
                    place: 0,
                    done: Done::default(),
                    answer,
                });
                if self.jobs.len() == 1 {
                    self.step(ctx);
                }
            }
        }
        self.settle(ctx);
    }
}
