//! A crowd: thousands of capacity clients on one engine, real or simulated, each with a socket and a
//! test of its own, and no more to them than a test needs. They come one after another.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringmill_engine::timer::TimerId;
use ringmill_engine::{
    Context, Datagram, Nanos, Open, Payload, Protocol, Service, SocketId, Transmit,
};
use ringmill_protocols::capacity::burst::Burst;
use ringmill_protocols::capacity::connection::{Connection, ConnectionSettings, Role};
use ringmill_protocols::capacity::event::{End, Event, Sink};
use ringmill_protocols::capacity::parameters::{Direction, TestParameters};
use ringmill_protocols::capacity::pdu::{
    Activation, Authentication, Pdu, Setup, StatusChecksum, Version,
};
use ringmill_protocols::capacity::sender::SenderSettings;
use ringmill_protocols::capacity::server::WallClock;
use ringmill_protocols::capacity::time::Instants;
use ringmill_protocols::capacity::transmit::{Filler, Route};

/// Between two equal requests of one client: a crowd on a busy machine is no hurry.
const REPEAT: Nanos = 500_000_000;
/// Requests of both kinds, after which a client gives up: 20 s of them.
const ASKED_MAX: u32 = 40;

/// What a crowd asks for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The server's control address.
    pub server: SocketAddr,
    /// From where: dealt to the clients in rotation, as one address may have few that wait.
    pub locals: Vec<IpAddr>,
    /// How many.
    pub clients: u32,
    /// Time between two of them.
    pub spacing: Nanos,
    /// What each of them wants; every second one wants the other direction.
    pub parameters: TestParameters,
    /// The clocks.
    pub clock: Arc<WallClock>,
}

/// How one of them fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Which way its load went.
    pub direction: Direction,
    /// How its test ended.
    pub end: End,
    /// Load datagrams sent or received.
    pub datagrams: u64,
    /// Load datagrams that did not come.
    pub lost: u32,
}

/// What a crowd has come to.
#[derive(Debug, Default)]
pub struct Fared {
    /// Clients whose test has begun.
    pub begun: AtomicU32,
    /// Clients that the server turned away, or did not answer in time.
    pub refused: AtomicU32,
    /// Clients that got no socket.
    pub stranded: AtomicU32,
    outcomes: Mutex<Vec<Outcome>>,
}

impl Fared {
    /// Those that are over.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Outcome> {
        let outcomes = self.outcomes.lock();
        outcomes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The numbers, in a line.
    #[must_use]
    pub fn numbers(&self) -> String {
        let [begun, refused, stranded] =
            [&self.begun, &self.refused, &self.stranded].map(|count| count.load(Ordering::Relaxed));
        let over = self.over();
        format!("{begun} begun, {refused} refused, {stranded} without a socket, {over} over")
    }

    /// How many are over, in whatever way.
    #[must_use]
    pub fn over(&self) -> u32 {
        let ended = self.outcomes.lock();
        let ended = ended.unwrap_or_else(PoisonError::into_inner).len() as u32;
        ended + self.refused.load(Ordering::Relaxed) + self.stranded.load(Ordering::Relaxed)
    }
}

/// The crowd as a service of an engine with so many shards.
#[must_use]
pub fn service(plan: &Plan, shards: u16) -> (Service<Crowd>, Arc<Fared>) {
    let fared = Arc::new(Fared::default());
    let (plan, shared) = (plan.clone(), Arc::clone(&fared));
    let service = Service::new("crowd", move |shard| Crowd {
        clients: (0..plan.clients)
            .filter(|number| number % u32::from(shards) == u32::from(shard))
            .map(Client::new)
            .collect(),
        plan: plan.clone(),
        fared: Arc::clone(&shared),
        filler: Filler::default(),
    });
    (service, fared)
}

/// The part of a crowd on one shard.
pub struct Crowd {
    plan: Plan,
    clients: Vec<Client>,
    fared: Arc<Fared>,
    filler: Filler,
}

struct Client {
    number: u32,
    socket: Option<SocketId>,
    state: State,
    timer: Option<(Nanos, TimerId)>,
    asked: u32,
    lost: u32,
}

enum State {
    Asking(SocketAddr, Vec<u8>),
    Running(Box<Connection>, SocketAddr),
    Over,
}

impl Client {
    fn new(number: u32) -> Self {
        Self {
            number,
            socket: None,
            state: State::Over,
            timer: None,
            asked: 0,
            lost: 0,
        }
    }
}

impl Crowd {
    fn parameters(&self, number: u32) -> TestParameters {
        let first = self.plan.parameters.direction;
        let other = match first {
            Direction::Upstream => Direction::Downstream,
            Direction::Downstream => Direction::Upstream,
        };
        TestParameters {
            direction: if number.is_multiple_of(2) {
                first
            } else {
                other
            },
            ..self.plan.parameters
        }
    }

    fn begin(&mut self, ctx: &mut Context<'_, ()>, place: usize) {
        let number = self.clients[place].number;
        let open = Open {
            local: SocketAddr::new(
                self.plan.locals[number as usize % self.plan.locals.len()],
                0,
            ),
            peer: None,
        };
        let Ok(socket) = ctx.open(&open) else {
            self.fared.stranded.fetch_add(1, Ordering::Relaxed);
            return;
        };
        ctx.set_socket_tag(socket, place as u64);
        let upstream = self.parameters(number).direction == Direction::Upstream;
        let setup = Setup {
            protocol_ver: Version::WIRE_MAX,
            mc_count: 1,
            mc_ident: (number % u32::from(u16::MAX)) as u16 + 1,
            cmd_request: Setup::REQUEST,
            max_bandwidth: if upstream { Setup::UPSTREAM } else { 0 },
            modifier_bitmap: Setup::JUMBO,
            ..Setup::default()
        };
        let mut request = vec![0; Setup::LEN];
        setup.encode(&mut request);
        let client = &mut self.clients[place];
        client.socket = Some(socket);
        client.state = State::Asking(self.plan.server, request);
        self.ask(ctx, place);
    }

    fn ask(&mut self, ctx: &mut Context<'_, ()>, place: usize) {
        let client = &mut self.clients[place];
        if let (State::Asking(to, request), Some(socket)) = (&client.state, client.socket) {
            let transmit = Transmit::one(Some(*to), Payload::from(request.clone()));
            // One that is not taken is repeated like one that is lost.
            let _ = ctx.send_datagrams(socket, transmit);
            client.asked += 1;
            self.arm(ctx, place, Some(ctx.now() + REPEAT));
        }
    }

    fn arm(&mut self, ctx: &mut Context<'_, ()>, place: usize, deadline: Option<Nanos>) {
        let client = &mut self.clients[place];
        if deadline == client.timer.map(|(armed, _)| armed) {
            return;
        }
        if let Some((_, timer)) = client.timer.take() {
            ctx.cancel_timer(timer);
        }
        client.timer = deadline.map(|at| (at, ctx.set_timer(at, place as u64)));
    }

    fn set_up(&mut self, ctx: &mut Context<'_, ()>, place: usize, from: SocketAddr, bytes: &[u8]) {
        let Ok(response) = Setup::decode_response(bytes) else {
            return;
        };
        if response.test_port == 0 {
            self.fared.refused.fetch_add(1, Ordering::Relaxed);
            self.clients[place].state = State::Over;
            return self.arm(ctx, place, None);
        }
        let parameters = self.parameters(self.clients[place].number);
        let activation = parameters.request(Version::V20, response.protocol_ver);
        let mut encoded = [0; Activation::LEN_MAX];
        let len = activation.encode(Version::V20, &mut encoded);
        let test = SocketAddr::new(from.ip(), response.test_port);
        self.clients[place].state = State::Asking(test, encoded[..len].to_vec());
        self.ask(ctx, place);
    }

    fn activated(
        &mut self,
        ctx: &mut Context<'_, ()>,
        place: usize,
        from: SocketAddr,
        bytes: &[u8],
    ) {
        let number = self.clients[place].number;
        let asked = self.parameters(number);
        let Ok(response) = Activation::decode_response(bytes, Version::V20) else {
            return;
        };
        let Ok(parameters) = TestParameters::accepted(&response, Version::V20, &asked) else {
            return;
        };
        let now = ctx.now();
        let settings = ConnectionSettings {
            role: Role::Client {
                first_row: response.rate,
            },
            parameters,
            version: Version::V20,
            auth_mode: Authentication::MODE_NONE,
            status_checksum: StatusChecksum::Lenient,
            sender: SenderSettings {
                ipv6: from.is_ipv6(),
                keep_numbers: false,
                check_sum: false,
                tick: 0,
                seed: number.into(),
            },
        };
        let at = Instants {
            now,
            wall: self.plan.clock.at(now),
        };
        let connection = Connection::new(settings, at);
        let deadline = connection.next_deadline();
        self.clients[place].state = State::Running(Box::new(connection), from);
        self.fared.begun.fetch_add(1, Ordering::Relaxed);
        self.arm(ctx, place, deadline);
    }

    /// Has a running client do something.
    fn act(
        &mut self,
        ctx: &mut Context<'_, ()>,
        place: usize,
        act: impl FnOnce(&mut Connection, Nanos, &mut Out<'_, '_>),
    ) {
        let client = &mut self.clients[place];
        let (State::Running(connection, peer), Some(socket)) = (&mut client.state, client.socket)
        else {
            return;
        };
        let now = ctx.now();
        let mut out = Out {
            ctx,
            route: Route {
                socket,
                peer: *peer,
                ecn: 0,
            },
            ended: None,
            lost: &mut client.lost,
            filler: &mut self.filler,
        };
        act(connection, now, &mut out);
        let ended = out.ended;
        let mut deadline = connection.next_deadline();
        if let Some(end) = ended {
            let counts = (connection.sender().map(|sender| sender.totals().0))
                .or_else(|| connection.receiver().map(|receiver| receiver.totals().0));
            let direction = match connection.sender() {
                Some(_) => Direction::Upstream,
                None => Direction::Downstream,
            };
            let outcome = Outcome {
                direction,
                end,
                datagrams: counts.unwrap_or(0),
                lost: client.lost,
            };
            let outcomes = self.fared.outcomes.lock();
            outcomes
                .unwrap_or_else(PoisonError::into_inner)
                .push(outcome);
            client.state = State::Over;
            deadline = None;
        }
        self.arm(ctx, place, deadline);
    }
}

struct Out<'a, 'c> {
    ctx: &'a mut Context<'c, ()>,
    filler: &'a mut Filler,
    route: Route,
    ended: Option<End>,
    lost: &'a mut u32,
}

impl Sink for Out<'_, '_> {
    fn burst(&mut self, burst: &Burst) -> u32 {
        self.filler
            .send(self.ctx, &self.route, burst, None)
            .datagrams
    }

    fn pdu(&mut self, bytes: &[u8]) {
        let transmit = Transmit::one(Some(self.route.peer), Payload::from(bytes.to_vec()));
        let _ = self.ctx.send_datagrams(self.route.socket, transmit);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Ended(end) => self.ended = Some(end),
            Event::SubInterval(sub_interval) => *self.lost += sub_interval.stats.seq_err_loss,
            Event::Warning(_) | Event::Trial(_) => {}
        }
    }
}

impl Protocol for Crowd {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for place in 0..self.clients.len() {
            let number = Nanos::from(self.clients[place].number);
            let at = ctx.now() + self.plan.spacing * number + 1;
            self.clients[place].timer = Some((at, ctx.set_timer(at, place as u64)));
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, token: u64) {
        let place = token as usize;
        let client = &mut self.clients[place];
        client.timer = None;
        match client.state {
            State::Over if client.socket.is_none() => self.begin(ctx, place),
            State::Over => {}
            State::Asking(..) if client.asked >= ASKED_MAX => {
                client.state = State::Over;
                self.fared.refused.fetch_add(1, Ordering::Relaxed);
            }
            State::Asking(..) => self.ask(ctx, place),
            State::Running(..) => self.act(ctx, place, |connection, now, out| {
                connection.timer(now, out);
            }),
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let place = ctx.socket_tag(socket) as usize;
        for datagram in batch.drain(..) {
            let peer = datagram.peer;
            match (&self.clients[place].state, Pdu::of(&datagram.data)) {
                (State::Asking(to, _), Some(Pdu::Setup)) if *to == peer => {
                    self.set_up(ctx, place, peer, &datagram.data);
                }
                (State::Asking(to, _), Some(Pdu::Activation)) if *to == peer => {
                    self.activated(ctx, place, peer, &datagram.data);
                }
                (State::Running(..), Some(Pdu::Load | Pdu::Status)) => {
                    self.act(ctx, place, |connection, now, out| {
                        let (stride, ecn) = (datagram.stride, datagram.ecn);
                        connection.datagram(&datagram.data, stride, ecn, now, out);
                    });
                }
                _ => {}
            }
        }
    }
}
