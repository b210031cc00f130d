//! One shard of the server: setup requests in, tests run, timers followed.
//!
//! The shard where a setup request arrives examines it and answers; the shard that takes the test
//! has everything else of it. In between there are two messages.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use ringmill_engine::impairment::mix;
use ringmill_engine::time::NANOS_PER_SECOND;
use ringmill_engine::{
    Context, Datagram, Nanos, Open, Payload, Protocol, ShardId, SocketId, Transmit,
};

use super::answers::{AnswerId, Answers, Known};
use super::counters::ServerCounters;
use super::event::{About, ServerEvent, TestId};
use super::output::{Output, say};
use super::ports::{ATTEMPTS, Ports};
use super::settings::Settings;
use super::shared::{ShardShared, Shared};
use super::slab::{Place, Slab};
use super::sources::Hold;
use super::test::{Activated, State, TICK, Tables, Test, half, totals, window_s};
use crate::capacity::NO_TRAFFIC_TIMEOUT;
use crate::capacity::auth::AuthError;
use crate::capacity::batch::Refused;
use crate::capacity::connection::{Connection, Half, StatusLost, Taken};
use crate::capacity::event::End;
use crate::capacity::parameters::{Direction, TestParameters};
use crate::capacity::pdu::{Activation, DecodeError, Null, Setup, SetupCode, Version};
use crate::capacity::setup::{ActivationError, Examined, examine};
use crate::capacity::time::{Instants, WallTime};

/// Tags of control sockets have this bit, and the listener below it; others are places of tests.
const CONTROL: u64 = 1 << 63;
/// The timer of the shard itself; no test has this word.
const HOUSEKEEPING: u64 = u64::MAX;
/// Between two looks at what the shard does, while it has tests.
const HOUSEKEEPING_INTERVAL: Nanos = 250_000_000;

type Ctx<'a> = Context<'a, Message>;

/// What the shards of a server tell each other.
#[derive(Debug)]
pub struct Message(Kind);

#[derive(Debug)]
enum Kind {
    Open(Box<Opening>),
    Opened(Box<Opened>),
}

/// A test to be opened on the shard that takes it.
#[derive(Debug)]
struct Opening {
    examined: Examined,
    peer: SocketAddr,
    /// The address that was asked.
    local: IpAddr,
    listener: u16,
    hold: Hold,
    waiting: Waiting,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    shard: ShardId,
    socket: SocketId,
    answer: AnswerId,
    peer: SocketAddr,
    /// From where to answer, on a socket of all addresses.
    source: Option<IpAddr>,
    request: [u8; Setup::LEN],
}

/// The answer to it.
#[derive(Debug)]
struct Opened {
    waiting: Waiting,
    response: [u8; Setup::LEN],
}

/// The capacity server on one shard.
pub struct Server {
    shared: Arc<Shared>,
    shard: ShardId,
    tables: Tables,
    answers: Answers,
    ports: Ports,
    tests: Slab,
    /// Pending tests, of whom those without authentication in the order of their coming.
    pending: u32,
    pending_max: u32,
    oldest: VecDeque<Place>,
    running: u32,
    booked_mbps: [u64; 2],
    rng: SmallRng,
    housekeeping: bool,
    /// Bytes sent and received when they were last looked at, and when that was.
    seen: (u64, Nanos),
    /// Sockets that had something in this turn, and which turn that is.
    ready: (u64, Nanos),
    /// The last turn that came late.
    late_turn: Nanos,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, shard: ShardId) -> Self {
        let settings = &shared.settings;
        let shards = shared.shards.len() as u16;
        Self {
            tables: Tables::new(settings),
            answers: Answers::default(),
            ports: Ports::new(settings.test_ports.as_ref(), shard, shards),
            tests: Slab::default(),
            pending: 0,
            pending_max: (settings.pending_max / u32::from(shards.max(1))).max(1),
            oldest: VecDeque::new(),
            running: 0,
            booked_mbps: [0; 2],
            rng: SmallRng::seed_from_u64(mix(settings.seed ^ u64::from(shard))),
            housekeeping: false,
            seen: (0, 0),
            ready: (0, 0),
            late_turn: 0,
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

    fn counters(&self) -> &ServerCounters {
        &self.shown().counters
    }

    fn say(&self, event: ServerEvent) {
        say(self.settings(), self.shown(), event);
    }

    fn wall(&self, ctx: &Ctx<'_>) -> WallTime {
        self.settings().clock.at(ctx.now())
    }

    // ---- setup ---------------------------------------------------------------------------

    /// Takes one datagram that came to a control socket.
    fn setup(
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
            self.shared.board.left(shard);
            let response = self.refuse(opening.examined, opening.peer, wall);
            self.opened(ctx, Opened { waiting, response });
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
    fn refuse(&self, examined: Examined, peer: SocketAddr, wall: WallTime) -> [u8; Setup::LEN] {
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

    /// Opens a test that this shard was chosen for.
    fn open(&mut self, ctx: &mut Ctx<'_>, opening: Opening) {
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
        // A full mailbox loses the answer: the client asks again, or gives up.
        let _ = ctx.post(waiting.shard, Message(Kind::Opened(Box::new(opened))));
    }

    fn wait_for_activation(&mut self, ctx: &mut Ctx<'_>, mut test: Box<Test>, authenticated: bool) {
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

    fn is_pending(&self, place: Place) -> bool {
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

    /// The answer to a setup request that came to this shard.
    fn opened(&mut self, ctx: &mut Ctx<'_>, opened: Opened) {
        let Opened { waiting, response } = opened;
        self.answers
            .set(waiting.peer, &waiting.request, waiting.answer, &response);
        answer(ctx, waiting.socket, waiting.peer, waiting.source, &response);
    }

    // ---- activation ----------------------------------------------------------------------

    /// Takes one datagram that came to a test which waits. `true` when it runs now.
    fn activate(
        &mut self,
        ctx: &mut Ctx<'_>,
        test: &mut Test,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let listener = test.about.listener;
        let refused = |error| ServerEvent::ActivationRefused {
            about: Arc::clone(&test.about),
            peer: from,
            error,
        };
        // Its port may be another behind a symmetric NAT.
        if from.ip() != test.about.peer.ip() {
            self.counters().activation_wrong_source.add(1);
            self.say(refused(None));
            return false;
        }
        let wall = self.wall(ctx);
        let version = test.accepted.version;
        let window_s = window_s(self.settings(), listener, version);
        let request = match test.accepted.activation(bytes, wall, window_s) {
            Ok(request) => request,
            Err(error) => {
                match error {
                    ActivationError::Decode(error) => count_control(self.counters(), error),
                    ActivationError::Auth(error) => count_auth(self.counters(), error),
                }
                self.say(refused(Some(error)));
                return false;
            }
        };
        self.counters().activation_requests_received.add(1);
        let settings = &self.shared.settings;
        let (parameters, mut response) =
            TestParameters::corrected(&request, version, &settings.limits);
        let rows = Arc::clone(self.tables.of(listener, from));
        // What was admitted in one direction is not to be used in the other.
        let admission = &settings.listeners[usize::from(listener)].setup.admission;
        let agreed = !admission.is_limited() || parameters.direction == test.booked();
        if agreed {
            test.complete(&mut response, &parameters, settings, &rows);
        } else {
            response.cmd_response = Activation::REJECTED;
        }
        let mut encoded = [0; Activation::LEN_MAX];
        let len = test
            .accepted
            .activation_response(&response, wall, &mut encoded);
        test.peer = from;
        if !agreed {
            self.counters().activation_rejects_sent.add(1);
            self.counters().activation_bad_parameter.add(1);
            answer(ctx, test.socket, from, None, &encoded[..len]);
            return false;
        }
        self.counters().activation_accepts_sent.add(1);
        test.ecn = parameters.dscp_ecn & 3;
        ctx.set_socket_dscp(test.socket, parameters.dscp_ecn >> 2);
        send(ctx, test.socket, from, None, test.ecn, &encoded[..len]);
        let at = Instants {
            now: ctx.now(),
            wall,
        };
        let connection =
            test.connection(parameters, &self.shared.settings, &rows, &mut self.rng, at);
        test.state = State::Running {
            connection: Box::new(connection),
            parameters,
            activated: Activated::new(bytes, &encoded[..len]),
        };
        self.pending -= 1;
        self.running += 1;
        self.counters().pending.set(self.pending.into());
        self.counters().running.set(self.running.into());
        self.say(ServerEvent::Activated {
            about: Arc::clone(&test.about),
            peer: from,
            parameters,
        });
        true
    }

    // ---- tests ---------------------------------------------------------------------------

    /// Takes what came to a test's socket.
    fn arrived(&mut self, ctx: &mut Ctx<'_>, place: Place, batch: &mut Vec<Datagram>) {
        let Some(mut test) = self.tests.take(place) else {
            return;
        };
        let mut ended = None;
        for datagram in batch.drain(..) {
            if let State::Pending { .. } = test.state {
                for bytes in datagram.iter() {
                    if self.activate(ctx, &mut test, datagram.peer, bytes) {
                        break;
                    }
                }
                continue;
            }
            if datagram.peer != test.peer {
                let count = datagram.count() as u64;
                self.counters().data_wrong_source.add(count);
                continue;
            }
            ended = self.data(ctx, &mut test, &datagram);
            if ended.is_some() {
                break;
            }
        }
        self.settle(ctx, place, test, ended);
    }

    /// Takes what came from the client of a running test.
    fn data(&mut self, ctx: &mut Ctx<'_>, test: &mut Test, datagram: &Datagram) -> Option<End> {
        let now = ctx.now();
        let (stride, ecn) = (datagram.stride, datagram.ecn);
        let (before, lost_before) = (refused(test), status_lost(test));
        let (taken, ended) = self.with(ctx, test, |connection, output| {
            connection.datagram(&datagram.data, stride, ecn, now, output)
        })?;
        let State::Running {
            parameters,
            activated,
            ..
        } = &mut test.state
        else {
            return ended;
        };
        let counters = &self.shared.shards[usize::from(self.shard)].counters;
        match taken {
            Taken::Control => {
                // The answer to the activation was lost, or this is nothing of ours.
                if activated.is_repeated_by(&datagram.data) {
                    counters.activation_accepts_sent.add(1);
                    answer(ctx, test.socket, test.peer, None, &activated.response);
                }
            }
            Taken::Data => {
                let direction = parameters.direction;
                if half(direction) == Half::Receiver {
                    let count = datagram.count() as u64;
                    let headers = count * if test.peer.is_ipv6() { 48 } else { 28 };
                    counters.rx_bursts.add(1);
                    counters.rx_datagrams.add(count);
                    counters
                        .rx_ip_bytes
                        .add(datagram.data.len() as u64 + headers);
                    self.shown().peaks.rx_burst_size.raise(count);
                }
                let counters = self.counters();
                count_data(counters, direction, before, refused(test));
                let lost = status_lost(test);
                counters.status_lost_here.add(lost.here - lost_before.here);
                counters
                    .status_lost_at_peer
                    .add(lost.at_peer - lost_before.at_peer);
            }
        }
        ended
    }

    /// Has a running test do something; `None` for one that waits.
    fn with<R>(
        &mut self,
        ctx: &mut Ctx<'_>,
        test: &mut Test,
        act: impl FnOnce(&mut Connection, &mut Output<'_, '_>) -> R,
    ) -> Option<(R, Option<End>)> {
        let State::Running {
            connection,
            parameters,
            ..
        } = &mut test.state
        else {
            return None;
        };
        let mut output = Output {
            ctx,
            settings: &self.shared.settings,
            shown: &self.shared.shards[usize::from(self.shard)],
            rng: &mut self.rng,
            about: &test.about,
            records: &mut test.records,
            socket: test.socket,
            peer: test.peer,
            ecn: test.ecn,
            random_payload: parameters.random_payload,
            half: half(parameters.direction),
            ended: None,
            trial_ended: false,
        };
        let result = act(connection, &mut output);
        let ended = output.ended;
        if output.trial_ended || ended.is_some() {
            output.flush_records();
            if test.segmented && !output.ctx.is_segmented(test.socket) {
                test.segmented = false;
                self.counters().not_segmented.add(1);
                self.say(ServerEvent::NotSegmented {
                    about: Arc::clone(&test.about),
                });
            }
        }
        Some((result, ended))
    }

    /// Puts a test back with its timer set, or ends it.
    fn settle(&mut self, ctx: &mut Ctx<'_>, place: Place, mut test: Box<Test>, ended: Option<End>) {
        let State::Running {
            connection,
            parameters,
            ..
        } = &test.state
        else {
            return self.tests.put(place, test);
        };
        if let Some(end) = ended {
            self.say(ServerEvent::Ended {
                about: Arc::clone(&test.about),
                direction: parameters.direction,
                end,
                totals: totals(connection),
            });
            let counters = self.counters();
            counters.tests_ended.add(1);
            counters.tests_complete.add(u64::from(end.is_complete()));
            return self.end(ctx, place, *test);
        }
        if let Some(deadline) = connection.next_deadline() {
            // A timer that fires too early costs less than setting it anew with every datagram.
            let earlier = test.timer.as_ref().is_none_or(|(set, _)| deadline < *set);
            if earlier {
                if let Some((_, timer)) = test.timer.take() {
                    ctx.cancel_timer(timer);
                }
                test.timer = Some((deadline, ctx.set_timer(deadline, place.word())));
            }
        }
        self.tests.put(place, test);
    }

    /// Nothing of a test is left but what was counted.
    fn end(&mut self, ctx: &mut Ctx<'_>, place: Place, test: Test) {
        self.book(&test, false);
        match test.state {
            State::Pending { .. } => self.pending -= 1,
            State::Running { .. } => self.running -= 1,
        }
        self.counters().pending.set(self.pending.into());
        self.counters().running.set(self.running.into());
        if let Some((_, timer)) = test.timer {
            ctx.cancel_timer(timer);
        }
        ctx.close_socket(test.socket);
        self.ports.give_back(test.about.local.port());
        self.shared.tests.fetch_sub(1, Ordering::Relaxed);
        self.shared.board.left(self.shard);
        self.tests.end(place);
    }

    fn book(&mut self, test: &Test, more: bool) {
        let mbps = u64::from(test.accepted.max_bandwidth_mbps);
        let upstream = test.about.request.upstream();
        let booked = &mut self.booked_mbps[usize::from(upstream)];
        *booked = if more { *booked + mbps } else { *booked - mbps };
        let [downstream, upstream] = self.booked_mbps;
        let counters = self.counters();
        counters.booked_upstream_mbps.set(upstream);
        counters.booked_downstream_mbps.set(downstream);
    }

    fn bytes(&self) -> u64 {
        let counters = self.counters();
        counters.tx_ip_bytes.get() + counters.rx_ip_bytes.get()
    }

    /// Tells the others what this shard does.
    fn keep_house(&mut self, ctx: &mut Ctx<'_>) {
        let (bytes, at) = self.seen;
        let elapsed = (ctx.now() - at).max(1);
        self.seen = (self.bytes(), ctx.now());
        let bits = u128::from(self.seen.0 - bytes) * 8;
        let mbps = bits * u128::from(NANOS_PER_SECOND) / u128::from(elapsed) / 1_000_000;
        let board = &self.shared.board;
        board.set_mbps(self.shard, u32::try_from(mbps).unwrap_or(u32::MAX));
        self.housekeeping = self.pending + self.running > 0;
        if self.housekeeping {
            ctx.set_timer(ctx.now() + HOUSEKEEPING_INTERVAL, HOUSEKEEPING);
        } else {
            board.set_mbps(self.shard, 0);
        }
    }

    /// Counts a turn that comes so late that several ticks are done as one.
    fn count_late(&mut self, deadline: Nanos, now: Nanos) {
        let ticks = 1 + now.saturating_sub(deadline) / TICK;
        // The timers of a turn were all late by as much.
        if ticks > 1 && std::mem::replace(&mut self.late_turn, now) != now {
            self.counters().coalesced_bursts.add(1);
            self.counters().coalesced_ticks.add(ticks);
            self.shown().peaks.coalesced_ticks.raise(ticks);
        }
    }

    /// Counts the sockets that had something in one turn.
    fn count_ready(&mut self, now: Nanos) {
        if self.ready.1 != now {
            self.counters().ready_turns.add(1);
            self.ready = (0, now);
        }
        self.ready.0 += 1;
        self.counters().ready_sockets.add(1);
        self.shown().peaks.ready_sockets.raise(self.ready.0);
    }
}

/// A request and where it came from.
struct Asked {
    peer: SocketAddr,
    source: Option<IpAddr>,
    socket: SocketId,
    request: [u8; Setup::LEN],
}

impl Protocol for Server {
    type Message = Message;

    fn start(&mut self, ctx: &mut Ctx<'_>) {
        for (endpoint, socket) in ctx.bound_sockets() {
            ctx.set_socket_tag(socket, CONTROL | u64::from(endpoint));
        }
    }

    fn datagrams(&mut self, ctx: &mut Ctx<'_>, socket: SocketId, batch: &mut Vec<Datagram>) {
        self.count_ready(ctx.now());
        let tag = ctx.socket_tag(socket);
        if tag & CONTROL == 0 {
            return self.arrived(ctx, Place::of(tag), batch);
        }
        if ctx.is_stopping() {
            return;
        }
        let listener = (tag & !CONTROL) as u16;
        for datagram in batch.drain(..) {
            for bytes in datagram.iter() {
                self.setup(ctx, socket, listener, &datagram, bytes);
            }
        }
    }

    fn timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        if token == HOUSEKEEPING {
            return self.keep_house(ctx);
        }
        let place = Place::of(token);
        let Some(mut test) = self.tests.take(place) else {
            return;
        };
        let deadline = test
            .timer
            .take()
            .map_or(ctx.now(), |(deadline, _)| deadline);
        if let State::Pending { .. } = test.state {
            self.counters().activation_timeout_waiting.add(1);
            self.say(ServerEvent::NotActivated {
                about: Arc::clone(&test.about),
                evicted: false,
            });
            return self.end(ctx, place, *test);
        }
        let now = ctx.now();
        self.count_late(deadline, now);
        let acted = self.with(ctx, &mut test, |connection, output| {
            connection.timer(now, output);
        });
        let ended = acted.and_then(|((), ended)| ended);
        self.settle(ctx, place, test, ended);
    }

    fn message(&mut self, ctx: &mut Ctx<'_>, _from: ShardId, message: Message) {
        match message.0 {
            Kind::Open(opening) => self.open(ctx, *opening),
            Kind::Opened(opened) => self.opened(ctx, *opened),
        }
    }

    fn stopping(&mut self, ctx: &mut Ctx<'_>) {
        // The engine sends what is queued and closes: the clients are told once.
        let now = ctx.now();
        for place in self.tests.places() {
            let Some(mut test) = self.tests.take(place) else {
                continue;
            };
            let acted = self.with(ctx, &mut test, |connection, output| {
                connection.stop(now, output);
                connection.timer(now, output);
            });
            let ended = acted.and_then(|((), ended)| ended);
            self.settle(ctx, place, test, ended);
        }
    }
}

/// Sends one control PDU. A full queue loses it, as the network may.
fn answer(
    ctx: &mut Ctx<'_>,
    socket: SocketId,
    peer: SocketAddr,
    source: Option<IpAddr>,
    bytes: &[u8],
) {
    send(ctx, socket, peer, source, 0, bytes);
}

fn send(
    ctx: &mut Ctx<'_>,
    socket: SocketId,
    peer: SocketAddr,
    source: Option<IpAddr>,
    ecn: u8,
    bytes: &[u8],
) {
    let transmit = Transmit {
        source,
        ecn,
        ..Transmit::one(Some(peer), Payload::from(bytes.to_vec()))
    };
    let _ = ctx.send_datagrams(socket, transmit);
}

fn refused(test: &Test) -> Refused {
    match &test.state {
        State::Running { connection, .. } => connection.refused(),
        State::Pending { .. } => Refused::default(),
    }
}

fn status_lost(test: &Test) -> StatusLost {
    match &test.state {
        State::Running { connection, .. } => connection.status_lost(),
        State::Pending { .. } => StatusLost::default(),
    }
}

fn count_control(counters: &ServerCounters, error: DecodeError) {
    match error {
        DecodeError::Size { .. } => counters.control_invalid_size.add(1),
        DecodeError::Format { .. } => counters.control_invalid_format.add(1),
        DecodeError::Checksum { .. } => counters.control_invalid_checksum.add(1),
    }
}

fn count_auth(counters: &ServerCounters, error: AuthError) {
    match error {
        AuthError::Digest => counters.control_auth_failure.add(1),
        AuthError::Time { .. } => counters.control_bad_auth_time.add(1),
    }
}

fn count_data(counters: &ServerCounters, direction: Direction, before: Refused, after: Refused) {
    if before == after {
        return;
    }
    let (size, format, checksum) = match direction {
        Direction::Upstream => (
            &counters.data_load_invalid_size,
            &counters.data_load_invalid_format,
            &counters.data_load_invalid_checksum,
        ),
        Direction::Downstream => (
            &counters.data_status_invalid_size,
            &counters.data_status_invalid_format,
            &counters.data_status_invalid_checksum,
        ),
    };
    size.add(u64::from(after.size - before.size));
    format.add(u64::from(after.format - before.format));
    checksum.add(u64::from(after.checksum - before.checksum));
}
