//! The double of a client: asks, repeats until answered, then runs the test's other end.
//!
//! It is only as clever as a test needs: one connection, one server, no words.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ringmill_engine::driver::sim::{EngineSpec, World};
use ringmill_engine::{
    Context, Datagram, Nanos, Open, Payload, Protocol, Service, SocketId, Transmit,
};
use ringmill_protocols::capacity::auth::{Keys, Signed};
use ringmill_protocols::capacity::burst::Burst;
use ringmill_protocols::capacity::connection::{Connection, ConnectionSettings, Role};
use ringmill_protocols::capacity::event::{End, Event, Sink};
use ringmill_protocols::capacity::parameters::TestParameters;
use ringmill_protocols::capacity::pdu::{
    Activation, Authentication, Pdu, Setup, SetupCode, StatusChecksum, Version,
};
use ringmill_protocols::capacity::sender::SenderSettings;
use ringmill_protocols::capacity::server::WallClock;
use ringmill_protocols::capacity::time::Instants;

use super::{BEGIN_S, MS, encoded, shared_key, signed};

/// Between two equal requests.
const REPEAT: Nanos = 300 * MS;

/// What a client did, for the test to look at.
#[derive(Debug, Default, Clone)]
pub(super) struct Result {
    pub(super) code: Option<u8>,
    pub(super) activated_at: Option<Nanos>,
    pub(super) end: Option<End>,
    pub(super) sub_intervals: u32,
    /// Load datagrams sent or received.
    pub(super) datagrams: u64,
    pub(super) lost: u32,
    pub(super) random_bytes: bool,
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) setup: Setup,
    pub(super) version: Version,
    pub(super) key: bool,
    pub(super) parameters: TestParameters,
    /// When it asks first.
    pub(super) begin: Nanos,
    /// It activates from another port than it set up from.
    pub(super) moves: bool,
}

enum State {
    Asking,
    Activating { test: SocketAddr },
    Running(Box<Connection>),
    Over,
}

pub(super) struct Client {
    wish: Wish,
    server: SocketAddr,
    socket: Option<SocketId>,
    request: Vec<u8>,
    activation: Vec<u8>,
    peer: SocketAddr,
    state: State,
    clock: WallClock,
    result: Arc<Mutex<Result>>,
}

/// Adds a client to a world.
pub(super) fn add(
    world: &mut World,
    host: &str,
    server: SocketAddr,
    wish: Wish,
) -> Arc<Mutex<Result>> {
    let (service, result) = service(server, wish);
    let engine = EngineSpec::new(1).host(host).service(service);
    world.engine(engine).expect("the client starts");
    result
}

/// A client for an engine: it acts on shard 0.
pub(super) fn service(server: SocketAddr, wish: Wish) -> (Service<Client>, Arc<Mutex<Result>>) {
    let result = Arc::new(Mutex::new(Result::default()));
    let shared = Arc::clone(&result);
    let begin = u64::from(BEGIN_S) * 1_000_000_000;
    let service = Service::new("client", move |_| Client {
        wish: wish.clone(),
        server,
        socket: None,
        request: Vec::new(),
        activation: Vec::new(),
        peer: server,
        state: State::Asking,
        clock: WallClock::new(0, begin),
        result: Arc::clone(&shared),
    });
    (service, result)
}

impl Client {
    fn ask(&mut self, ctx: &mut Context<'_, ()>) {
        let (to, bytes) = match &self.state {
            State::Asking => (self.server, self.request.clone()),
            State::Activating { test } => (*test, self.activation.clone()),
            State::Running(_) | State::Over => return,
        };
        send(ctx, self.socket, to, bytes);
        ctx.set_timer(ctx.now() + REPEAT, 0);
    }

    fn open(&mut self, ctx: &mut Context<'_, ()>) {
        let any = if self.server.is_ipv6() {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let local = any.parse().expect("an address");
        // The simulated host may be short of sockets for a moment.
        for _ in 0..100 {
            if let Ok(socket) = ctx.open(&Open { local, peer: None }) {
                self.socket = Some(socket);
                return;
            }
        }
    }

    fn set_up(&mut self, ctx: &mut Context<'_, ()>, from: SocketAddr, bytes: &[u8]) {
        let Ok(response) = Setup::decode_response(bytes) else {
            return;
        };
        assert_eq!(response.mc_ident, self.wish.setup.mc_ident);
        self.result.lock().expect("not poisoned").code = Some(response.cmd_response);
        if response.cmd_response != SetupCode::Accepted.wire() {
            self.state = State::Over;
            return;
        }
        if self.wish.key && self.wish.version == Version::V20 {
            assert!(Signed::Setup.verify(self.keys().server(), bytes));
        }
        let test = SocketAddr::new(from.ip(), response.test_port);
        let version = self.wish.version;
        let mut activation = self.wish.parameters.request(version, response.protocol_ver);
        let now = self.clock.at(ctx.now());
        if self.wish.key && version == Version::V20 {
            activation.auth = Authentication {
                auth_mode: Authentication::MODE_CONTROL,
                auth_unix_time: now.sec,
                ..Authentication::default()
            };
        }
        let mut encoded = [0; Activation::LEN_MAX];
        let len = activation.encode(version, &mut encoded);
        if self.wish.key && version == Version::V20 {
            Signed::Activation.sign(self.keys().client(), &mut encoded);
        }
        self.activation = encoded[..len].to_vec();
        self.state = State::Activating { test };
        if self.wish.moves {
            self.open(ctx);
        }
        self.ask(ctx);
    }

    fn keys(&self) -> Keys {
        let request = Setup::decode_request(&self.request).expect("our own");
        Keys::derive(&shared_key(), request.auth.auth_unix_time)
    }

    fn activated(&mut self, ctx: &mut Context<'_, ()>, from: SocketAddr, bytes: &[u8]) {
        let State::Activating { test } = self.state else {
            return;
        };
        if from != test {
            return;
        }
        let version = self.wish.version;
        let Ok(response) = Activation::decode_response(bytes, version) else {
            return;
        };
        if self.wish.key && version == Version::V20 {
            assert!(Signed::Activation.verify(self.keys().server(), bytes));
        }
        assert_eq!(response.cmd_response, Activation::ACCEPTED);
        let parameters = TestParameters::accepted(&response, version, &self.wish.parameters)
            .expect("nothing that was not asked for");
        let now = ctx.now();
        let settings = ConnectionSettings {
            role: Role::Client {
                first_row: response.rate,
            },
            parameters,
            version,
            auth_mode: u8::from(self.wish.key),
            status_checksum: StatusChecksum::Lenient,
            sender: SenderSettings {
                ipv6: self.server.is_ipv6(),
                keep_numbers: false,
                check_sum: false,
                tick: 0,
                seed: 1,
            },
        };
        let at = Instants {
            now,
            wall: self.clock.at(now),
        };
        self.peer = test;
        self.state = State::Running(Box::new(Connection::new(settings, at)));
        self.result.lock().expect("not poisoned").activated_at = Some(now);
        self.arm(ctx);
    }

    fn arm(&mut self, ctx: &mut Context<'_, ()>) {
        if let State::Running(connection) = &self.state
            && let Some(deadline) = connection.next_deadline()
        {
            ctx.set_timer(deadline.max(ctx.now() + 1), 1);
        }
    }

    fn totals(&self) {
        let State::Running(connection) = &self.state else {
            return;
        };
        let mut result = self.result.lock().expect("not poisoned");
        if let Some(receiver) = connection.receiver() {
            result.datagrams = receiver.totals().0;
            result.lost = receiver.total_errors().loss;
        }
        if let Some(sender) = connection.sender() {
            result.datagrams = sender.totals().0;
        }
    }
}

struct Out<'a, 'c> {
    ctx: &'a mut Context<'c, ()>,
    socket: Option<SocketId>,
    peer: SocketAddr,
    result: &'a Mutex<Result>,
}

impl Sink for Out<'_, '_> {
    fn burst(&mut self, burst: &Burst) -> u32 {
        for index in 0..burst.count() {
            let mut bytes = vec![0; usize::from(burst.stride(index))];
            burst.fill(&mut bytes, index, 1);
            send(self.ctx, self.socket, self.peer, bytes);
        }
        burst.count()
    }

    fn pdu(&mut self, bytes: &[u8]) {
        send(self.ctx, self.socket, self.peer, bytes.to_vec());
    }

    fn event(&mut self, event: Event) {
        let mut result = self.result.lock().expect("not poisoned");
        match event {
            Event::SubInterval(sub_interval) => result.sub_intervals = sub_interval.number,
            Event::Ended(end) => result.end = Some(end),
            Event::Warning(_) | Event::Trial(_) => {}
        }
    }
}

impl Protocol for Client {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        if ctx.shard() == 0 {
            self.open(ctx);
            ctx.set_timer(self.wish.begin.max(1), 2);
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, token: u64) {
        match token {
            0 => self.ask(ctx),
            2 => {
                let now = self.clock.at(ctx.now());
                self.request = match self.wish.key {
                    true => signed(self.wish.setup, now.sec).to_vec(),
                    false => encoded(&self.wish.setup).to_vec(),
                };
                self.ask(ctx);
            }
            _ => {
                let now = ctx.now();
                if let State::Running(connection) = &mut self.state {
                    let mut out = Out {
                        ctx,
                        socket: self.socket,
                        peer: self.peer,
                        result: &self.result,
                    };
                    connection.timer(now, &mut out);
                }
                self.totals();
                self.arm(ctx);
            }
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        _socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let now = ctx.now();
        for datagram in batch.drain(..) {
            match Pdu::of(&datagram.data) {
                Some(Pdu::Setup) if matches!(self.state, State::Asking) => {
                    for bytes in datagram.iter() {
                        if matches!(self.state, State::Asking) {
                            self.set_up(ctx, datagram.peer, bytes);
                        }
                    }
                }
                Some(Pdu::Activation) => {
                    for bytes in datagram.iter() {
                        self.activated(ctx, datagram.peer, bytes);
                    }
                }
                Some(Pdu::Load | Pdu::Status) => {
                    if let State::Running(connection) = &mut self.state {
                        let mut out = Out {
                            ctx,
                            socket: self.socket,
                            peer: self.peer,
                            result: &self.result,
                        };
                        let (stride, ecn) = (datagram.stride, datagram.ecn);
                        connection.datagram(&datagram.data, stride, ecn, now, &mut out);
                        let random = datagram
                            .iter()
                            .any(|one| one.len() > 32 && one[32..].iter().any(|byte| *byte != 0));
                        if Pdu::of(&datagram.data) == Some(Pdu::Load) && random {
                            self.result.lock().expect("not poisoned").random_bytes = true;
                        }
                    }
                }
                _ => {}
            }
        }
        self.totals();
        self.arm(ctx);
    }
}

fn send(ctx: &mut Context<'_, ()>, socket: Option<SocketId>, to: SocketAddr, bytes: Vec<u8>) {
    if let Some(socket) = socket {
        let _ = ctx.send_datagrams(socket, Transmit::one(Some(to), Payload::from(bytes)));
    }
}
