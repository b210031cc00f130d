//! Setup requests: what arrives at a control socket is examined, answered, or handed to the shard
//! that takes the test.
//!
//! Who is refused without a good signature costs an answer and is not remembered.

use std::net::{IpAddr, SocketAddr};

use ringmill_engine::{Datagram, SocketId};

use super::answers::Known;
use super::control::{Ctx, Server, answer};
use super::event::ServerEvent;
use super::handover::{Kind, Message, Opened, Opening, Waiting};
use super::tally::{count_auth, count_control};
use super::test::window_s;
use crate::capacity::pdu::{Setup, SetupCode, Version};
use crate::capacity::setup::{Examined, examine};
use crate::capacity::time::WallTime;

/// A request and where it came from.
struct Asked {
    peer: SocketAddr,
    source: Option<IpAddr>,
    socket: SocketId,
    request: [u8; Setup::LEN],
}

impl Server {
    /// Takes one datagram that came to a control socket.
    pub(super) fn setup(
        &mut self,
        ctx: &mut Ctx<'_>,
        socket: SocketId,
        listener: u16,
        datagram: &Datagram,
        bytes: &[u8],
    ) {
        let (peer, source) = (datagram.peer, datagram.local);
        let now = ctx.now();
        if let Ok(request) = <&[u8; Setup::LEN]>::try_from(bytes) {
            match self.answers.find(peer, request, now) {
                Known::New => {}
                Known::Awaited => return,
                Known::Answered(response) => {
                    self.counters().setup_repeats_answered.add(1);
                    answer(ctx, socket, peer, source, &response);
                    return;
                }
            }
        }
        let wall = self.wall(ctx);
        let setup = &self.settings().listeners[usize::from(listener)].setup;
        let examined = match examine(bytes, setup, wall) {
            Ok(examined) => examined,
            Err(error) => return count_control(self.counters(), error),
        };
        let request: [u8; Setup::LEN] = bytes.try_into().expect("a setup request has this size");
        let counters = self.counters();
        counters.setup_requests_received.add(1);
        if examined.request.protocol_ver < Version::WIRE_MAX {
            counters.setup_legacy_protocol_ver.add(1);
        }
        if let Some(error) = examined.auth_error {
            count_auth(counters, error);
        }
        if examined.is_authenticated() {
            let version = Version::of(examined.request.protocol_ver);
            let window_s = window_s(self.settings(), listener, version.unwrap_or(Version::V20));
            let auth = &examined.request.auth;
            let until = auth.auth_unix_time.saturating_add(window_s);
            let replays = &self.shared.replays;
            if !replays.insert(&auth.auth_digest, wall.sec, until) {
                self.counters().setup_replays_ignored.add(1);
                return;
            }
        }
        let address = source.or_else(|| ctx.local_address(socket).map(|local| local.ip()));
        let asked = Asked {
            peer,
            source,
            socket,
            request,
        };
        if examined.verdict.is_err() {
            return self.reject(ctx, &asked, examined, wall);
        }
        let Some(hold) = self.shared.sources.take(peer.ip()) else {
            self.counters().setup_source_bound.add(1);
            return self.reject(ctx, &asked, examined, wall);
        };
        let (Some(shard), Some(local)) = (self.shared.board.place(self.shard), address) else {
            return self.reject(ctx, &asked, examined, wall);
        };
        let waiting = Waiting {
            shard: self.shard,
            answer: self.answers.insert(peer, &request, None, now),
            socket,
            peer,
            source,
            request,
        };
        let opening = Box::new(Opening {
            examined,
            peer,
            local,
            listener,
            hold,
            waiting,
        });
        if shard == self.shard {
            return self.open(ctx, *opening);
        }
        if let Err(Message(Kind::Open(opening))) = ctx.post(shard, Message(Kind::Open(opening))) {
            // That shard is behind. A flood must not turn away who could be served.
            self.shared.board.moved(shard, self.shard);
            self.open(ctx, *opening);
        }
    }

    /// Answers a request that is rejected where it arrived.
    fn reject(&mut self, ctx: &mut Ctx<'_>, asked: &Asked, examined: Examined, wall: WallTime) {
        // Only who has signed may ask again and be remembered: the others cost nothing to answer.
        let remembered = examined.is_authenticated();
        let response = self.refuse(examined, asked.peer, wall);
        if remembered {
            let (peer, request) = (asked.peer, &asked.request);
            self.answers
                .insert(peer, request, Some(response), ctx.now());
        }
        answer(ctx, asked.socket, asked.peer, asked.source, &response);
    }

    /// The rejection of a request, counted and told.
    pub(super) fn refuse(
        &self,
        examined: Examined,
        peer: SocketAddr,
        wall: WallTime,
    ) -> [u8; Setup::LEN] {
        let code = examined.verdict.err().unwrap_or(SetupCode::NoConnection);
        let counters = self.counters();
        counters.setup_rejects_sent.add(1);
        match code {
            SetupCode::Version => counters.setup_invalid_protocol_ver.add(1),
            SetupCode::BandwidthUnavailable => counters.setup_bandwidth_exceeded.add(1),
            SetupCode::NoConnection => counters.setup_connection_create_fail.add(1),
            SetupCode::AuthenticationFailed
            | SetupCode::AuthenticationTime
            | SetupCode::Accepted => {}
            _ => counters.setup_invalid_setup_option.add(1),
        }
        self.say(ServerEvent::Rejected {
            peer,
            request: examined.request,
            code,
            auth_error: examined.auth_error,
        });
        let mut response = [0; Setup::LEN];
        examined.reject(wall, &mut response);
        response
    }

    /// The answer to a setup request that came to this shard.
    pub(super) fn opened(&mut self, ctx: &mut Ctx<'_>, opened: Opened) {
        let Opened { waiting, response } = opened;
        self.answers
            .set(waiting.peer, &waiting.request, waiting.answer, &response);
        answer(ctx, waiting.socket, waiting.peer, waiting.source, &response);
    }
}
