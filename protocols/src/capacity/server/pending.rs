//! Tests that wait for their activation: opened with a socket of their own, bounded in number, and
//! gone after the timeout.
//!
//! Where there is no room the oldest one without authentication gives way; a signed one never does.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringmill_engine::{Open, SocketId};

use super::control::{Ctx, HOUSEKEEPING, HOUSEKEEPING_INTERVAL, Server, answer};
use super::event::{About, ServerEvent, TestId};
use super::handover::{Kind, Message, Opened, Opening};
use super::ports::ATTEMPTS;
use super::slab::Place;
use super::test::{State, Test};
use crate::capacity::NO_TRAFFIC_TIMEOUT;
use crate::capacity::pdu::{Null, Setup};

impl Server {
    /// Opens a test that this shard was chosen for.
    pub(super) fn open(&mut self, ctx: &mut Ctx<'_>, opening: Opening) {
        let wall = self.wall(ctx);
        let Opening {
            examined,
            peer,
            local,
            listener,
            hold,
            waiting,
        } = opening;
        let socket = if self.make_room(ctx) {
            let socket = self.open_socket(ctx, local, peer);
            if socket.is_none() {
                self.shared.tests.fetch_sub(1, Ordering::Relaxed);
            }
            socket
        } else {
            None
        };
        let response = match socket {
            None => {
                self.shared.board.left(self.shard);
                self.refuse(examined, peer, wall)
            }
            Some((socket, local)) => {
                let mut response = [0; Setup::LEN];
                let authenticated = examined.is_authenticated();
                let request = examined.request;
                let (_, accepted) = examined.accept(local.port(), wall, &mut response);
                let about = Arc::new(About {
                    test: TestId(self.shared.next_test()),
                    shard: self.shard,
                    peer,
                    local,
                    listener,
                    request,
                    authenticated,
                });
                self.counters().setup_accepts_sent.add(1);
                self.say(ServerEvent::Accepted(Arc::clone(&about)));
                let mut null = [0; Null::LEN];
                if let Some(len) = accepted.null_request(wall, &mut null) {
                    answer(ctx, socket, peer, None, &null[..len]);
                }
                let test = Box::new(Test {
                    about,
                    socket,
                    peer,
                    accepted,
                    ecn: 0,
                    state: State::Pending { _hold: hold },
                    timer: None,
                    segmented: !self.settings().without_gso,
                    records: Vec::new(),
                });
                self.wait_for_activation(ctx, test, authenticated);
                response
            }
        };
        let opened = Opened { waiting, response };
        if waiting.shard == self.shard {
            return self.opened(ctx, opened);
        }
        let message = Message(Kind::Opened(Box::new(opened)));
        if ctx.post(waiting.shard, message).is_err()
            && let Some(control) = self.controls.get(usize::from(listener)).copied()
        {
            // Whoever asked is behind: the answer leaves from this shard's socket of that address.
            answer(ctx, control, peer, waiting.source, &response);
        }
    }

    pub(super) fn wait_for_activation(
        &mut self,
        ctx: &mut Ctx<'_>,
        mut test: Box<Test>,
        authenticated: bool,
    ) {
        let deadline = ctx.now() + NO_TRAFFIC_TIMEOUT;
        let place = self.tests.next();
        ctx.set_socket_tag(test.socket, place.word());
        test.timer = Some((deadline, ctx.set_timer(deadline, place.word())));
        self.book(&test, true);
        self.tests.insert(test);
        self.pending += 1;
        if !authenticated {
            while let Some(first) = self.oldest.front()
                && !self.is_pending(*first)
            {
                self.oldest.pop_front();
            }
            self.oldest.push_back(place);
        }
        self.counters().pending.set(self.pending.into());
        if !self.housekeeping {
            self.housekeeping = true;
            self.seen = (self.bytes(), ctx.now());
            ctx.set_timer(ctx.now() + HOUSEKEEPING_INTERVAL, HOUSEKEEPING);
        }
    }

    pub(super) fn is_pending(&self, place: Place) -> bool {
        let test = self.tests.get(place);
        test.is_some_and(|test| matches!(test.state, State::Pending { .. }))
    }

    /// Makes room for one more test: where there is none, the oldest pending one without
    /// authentication gives way.
    fn make_room(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let max = self.settings().tests_max;
        let take = |tests: u32| (tests < max).then_some(tests + 1);
        let tests = Arc::clone(&self.shared);
        let taken = || {
            let relaxed = Ordering::Relaxed;
            tests.tests.fetch_update(relaxed, relaxed, take).is_ok()
        };
        if self.pending >= self.pending_max && !self.evict(ctx) {
            return false;
        }
        taken() || self.evict(ctx) && taken()
    }

    fn evict(&mut self, ctx: &mut Ctx<'_>) -> bool {
        while let Some(place) = self.oldest.pop_front() {
            if self.is_pending(place)
                && let Some(test) = self.tests.take(place)
            {
                self.counters().setup_evicted.add(1);
                self.say(ServerEvent::NotActivated {
                    about: Arc::clone(&test.about),
                    evicted: true,
                });
                self.end(ctx, place, *test);
                return true;
            }
        }
        false
    }

    /// A socket for a test, at the address that was asked.
    fn open_socket(
        &mut self,
        ctx: &mut Ctx<'_>,
        local: IpAddr,
        peer: SocketAddr,
    ) -> Option<(SocketId, SocketAddr)> {
        let attempts = if self.ports.are_limited() {
            ATTEMPTS
        } else {
            1
        };
        for _ in 0..attempts {
            let port = self.ports.take()?;
            let local = match (local, peer) {
                (IpAddr::V6(local), SocketAddr::V6(peer)) => {
                    // A link-local address means nothing without its link.
                    SocketAddrV6::new(local, port, 0, peer.scope_id()).into()
                }
                (local, _) => SocketAddr::new(local, port),
            };
            match ctx.open(&Open { local, peer: None }) {
                Ok(socket) => {
                    let local = ctx.local_address(socket).unwrap_or(local);
                    if self.settings().without_gso {
                        ctx.set_segmented(socket, false);
                    }
                    return Some((socket, local));
                }
                Err(_) => self.ports.give_back(port),
            }
        }
        None
    }
}
