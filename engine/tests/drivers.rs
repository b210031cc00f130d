//! What every driver must do, over real sockets of this host: the same cases on each of them.
//!
//! The simulator has its own tests. A driver that this host does not allow is printed as skipped.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ringmill_engine::uring::{self, Feature};
use ringmill_engine::{
    Address, Buffer, Builder, CONTROL, Closed, Connect, Context, Controller, Datagram,
    DriverChoice, Engine, Limits, ListenerId, Multicast, Notice, Open, Payload, Protocol, Service,
    ServiceSnapshot, ShardId, SocketBufferSizes, SocketId, StartError, StreamId, Transmit,
};

/// Nothing here takes long; a test that waits for so long hangs.
const HANG: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// Runs each case on each driver.
macro_rules! on_each_driver {
    ($($case:ident),+ $(,)?) => {
        mod on_uring {
            $(#[test] fn $case() {
                match super::uring::probe(&super::uring::Options::default()) {
                    Ok(_) => super::$case(&super::Setting::of(super::DriverChoice::Uring)),
                    Err(reason) => println!("skipped: {reason}"),
                }
            })+
        }
        mod on_epoll {
            $(#[test] fn $case() { super::$case(&super::Setting::of(super::DriverChoice::Epoll)); })+
        }
    };
}

on_each_driver! {
    streams_are_echoed,
    large_transfers_survive_a_slow_reader,
    a_half_closed_stream_gets_all_its_echoes,
    a_finished_stream_ends_only_itself,
    the_end_of_a_queue_needs_no_other_event,
    a_reset_is_reported_once,
    a_refused_connect_is_reported,
    a_connect_carries_bytes_both_ways,
    many_connections_leave_nothing_behind,
    a_closed_stream_keeps_its_tag_until_the_protocol_knows,
    a_paused_stream_is_not_read,
    the_end_waits_for_a_paused_stream,
    kept_buffers_do_not_stop_the_others,
    large_transfers_share_few_buffers,
    a_graceful_stop_sends_what_is_queued,
    a_second_stop_ends_at_once,
    a_paused_stream_does_not_hold_up_the_stop,
    idle_streams_are_closed,
    stalled_streams_are_closed,
    past_the_connection_limit_is_refused,
    a_protocol_can_stop_the_engine,
    a_shard_that_panics_stops_the_engine,
    a_shard_that_cannot_start_is_an_error,
    datagrams_are_echoed,
    a_burst_is_counted_by_datagrams,
    odd_sizes_of_datagrams,
    more_datagrams_than_buffers,
    a_connected_socket_has_one_peer,
    datagrams_wait_for_room,
    a_group_reaches_all_its_members,
    a_group_that_cannot_be_joined_is_an_error,
    a_refused_datagram_is_reported,
    datagrams_of_a_closed_socket_are_counted,
    peers_are_known_when_asked_for,
    timers_are_never_early,
    a_shard_stays_awake_as_long_as_it_is_asked_to,
    messages_cross_shards,
    a_port_in_use_is_an_error_with_its_holder,
    a_stale_unix_socket_is_replaced,
    no_descriptor_is_leaked,
    accepting_pauses_while_files_are_short,
    a_shard_without_streams_sleeps,
}

// ---- the driver, and refused features --------------------------------------------------------

/// Which driver a case runs on, and without which features.
struct Setting {
    driver: DriverChoice,
    refuse: Vec<Feature>,
}

impl Setting {
    fn of(driver: DriverChoice) -> Self {
        Self {
            driver,
            refuse: Vec::new(),
        }
    }

    fn builder(&self) -> Builder {
        let options = uring::Options {
            refuse: self.refuse.clone(),
        };
        Engine::builder().driver(self.driver).uring_options(options)
    }
}

#[test]
fn uring_does_without_any_feature() {
    if let Err(reason) = uring::probe(&uring::Options::default()) {
        println!("skipped: {reason}");
        return;
    }
    let one_by_one = Feature::ALL.into_iter().map(|feature| vec![feature]);
    for refuse in one_by_one.chain([Feature::ALL.to_vec()]) {
        println!("without {refuse:?}");
        let setting = Setting {
            driver: DriverChoice::Uring,
            refuse,
        };
        streams_are_echoed(&setting);
        large_transfers_survive_a_slow_reader(&setting);
        a_connect_carries_bytes_both_ways(&setting);
        many_connections_leave_nothing_behind(&setting);
        datagrams_are_echoed(&setting);
        a_burst_is_counted_by_datagrams(&setting);
        messages_cross_shards(&setting);
        a_graceful_stop_sends_what_is_queued(&setting);
    }
}

// ---- two protocols ---------------------------------------------------------------------------

/// Sends back what it gets; reads no more while the peer does not.
#[derive(Default)]
struct Echo {
    kept: HashMap<StreamId, (VecDeque<Buffer>, bool)>,
}

impl Protocol for Echo {
    type Message = ();

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        if let Some((waiting, _)) = self.kept.get_mut(&stream) {
            waiting.push_back(data);
        } else if ctx.send(stream, data.clone()).is_full() {
            ctx.pause(stream);
            self.kept.insert(stream, (VecDeque::from([data]), false));
        }
    }

    fn drained(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        let Some((waiting, ended)) = self.kept.get_mut(&stream) else {
            return;
        };
        while let Some(data) = waiting.front() {
            if ctx.send(stream, data.clone()).is_full() {
                return;
            }
            waiting.pop_front();
        }
        let ended = *ended;
        self.kept.remove(&stream);
        if ended {
            ctx.close(stream);
        } else {
            ctx.resume(stream);
        }
    }

    fn ended(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        match self.kept.get_mut(&stream) {
            Some((_, ended)) => *ended = true,
            None => ctx.close(stream),
        }
    }

    fn closed(&mut self, _: &mut Context<'_, ()>, stream: StreamId, _: Closed) {
        self.kept.remove(&stream);
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for datagram in batch.drain(..) {
            let transmit = Transmit {
                peer: Some(datagram.peer),
                source: datagram.local,
                ecn: datagram.ecn,
                stride: datagram.stride,
                data: datagram.data.into(),
            };
            assert!(ctx.send_datagrams(socket, transmit).is_queued());
        }
    }
}

/// What the test tells its protocol to do.
#[derive(Debug)]
enum Do {
    Connect(Connect),
    Open(Open),
    /// Connect the datagram socket.
    Fix(SocketAddr),
    OpenMulticast(Open, Multicast),
    Send(Vec<u8>),
    /// So many pieces of one byte each.
    SendPieces(usize),
    /// Pieces of so many bytes until the queue is full.
    Fill(usize),
    SendAndClose(Vec<u8>),
    /// To the connected peer, or to this one.
    SendDatagrams(Option<SocketAddr>, u16, Vec<u8>),
    /// The same, and then close the socket in the same breath.
    SendDatagramsAndClose(SocketAddr, u16, Vec<u8>),
    Pause,
    Resume,
    Close,
    /// Keep every buffer that arrives, or drop them all.
    Keep(bool),
    Timer(Duration),
    /// A timer, and no sleep until it fires.
    TimerAwake(Duration),
    /// Post a number to another shard.
    Forward(ShardId, u64),
    Number(u64),
    Ping,
    StopEngine,
    Panic,
}

/// What the protocol tells the test.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Accepted(Option<SocketAddr>),
    Connected,
    Received(Vec<u8>),
    Drained,
    Ended,
    /// With the stream's tag.
    Closed(Closed, u64),
    Datagrams(Vec<Vec<u8>>),
    SocketError(i32),
    Bound(SocketAddr),
    /// How late.
    Timer(Option<Duration>),
    Number {
        on: ShardId,
        from: ShardId,
        number: u64,
    },
    Pong,
    Stopped,
}

const TAG: u64 = 0xfeed_face;

/// Does what it is told and tells what it sees.
struct Remote {
    seen: Sender<Seen>,
    stream: Option<StreamId>,
    socket: Option<SocketId>,
    keep: bool,
    kept: Vec<Buffer>,
}

impl Remote {
    fn tell(&self, seen: Seen) {
        // The test may have ended.
        let _ = self.seen.send(seen);
    }
}

impl Protocol for Remote {
    type Message = Do;

    fn accepted(
        &mut self,
        ctx: &mut Context<'_, Do>,
        stream: StreamId,
        _: ListenerId,
        peer: Option<SocketAddr>,
    ) {
        self.stream = Some(stream);
        ctx.set_tag(stream, TAG);
        self.tell(Seen::Accepted(peer));
    }

    fn connected(&mut self, ctx: &mut Context<'_, Do>, stream: StreamId) {
        ctx.set_tag(stream, TAG);
        self.tell(Seen::Connected);
    }

    fn received(&mut self, _: &mut Context<'_, Do>, _: StreamId, data: Buffer) {
        self.tell(Seen::Received(data.to_vec()));
        if self.keep {
            self.kept.push(data);
        }
    }

    fn drained(&mut self, _: &mut Context<'_, Do>, _: StreamId) {
        self.tell(Seen::Drained);
    }

    fn ended(&mut self, ctx: &mut Context<'_, Do>, stream: StreamId) {
        self.tell(Seen::Ended);
        ctx.close(stream);
    }

    fn closed(&mut self, ctx: &mut Context<'_, Do>, stream: StreamId, reason: Closed) {
        self.tell(Seen::Closed(reason, ctx.tag(stream)));
    }

    fn datagrams(&mut self, _: &mut Context<'_, Do>, _: SocketId, batch: &mut Vec<Datagram>) {
        for datagram in batch.drain(..) {
            self.tell(Seen::Datagrams(
                datagram.iter().map(<[u8]>::to_vec).collect(),
            ));
            if self.keep {
                self.kept.push(datagram.data);
            }
        }
    }

    fn socket_error(&mut self, _: &mut Context<'_, Do>, _: SocketId, errno: i32) {
        self.tell(Seen::SocketError(errno));
    }

    fn timer(&mut self, ctx: &mut Context<'_, Do>, deadline: u64) {
        self.tell(Seen::Timer(
            ctx.clock().checked_sub(deadline).map(Duration::from_nanos),
        ));
    }

    fn message(&mut self, ctx: &mut Context<'_, Do>, from: ShardId, message: Do) {
        match message {
            Do::Connect(connect) => {
                self.stream = Some(ctx.connect(&connect).expect("a socket can be opened"));
            }
            Do::Open(open) => {
                let socket = ctx.open(&open).expect("a socket can be opened");
                self.socket = Some(socket);
                self.tell(Seen::Bound(ctx.local_address(socket).expect("it is open")));
            }
            Do::OpenMulticast(open, multicast) => match ctx.open_multicast(&open, &multicast) {
                Ok(socket) => {
                    self.socket = Some(socket);
                    self.tell(Seen::Bound(ctx.local_address(socket).expect("it is open")));
                }
                Err(error) => {
                    self.tell(Seen::SocketError(error.raw_os_error().unwrap_or(0)));
                }
            },
            Do::Send(bytes) => assert!(ctx.send(self.stream.unwrap(), bytes).is_queued()),
            Do::SendPieces(count) => {
                for piece in pattern(count, 0) {
                    assert!(ctx.send(self.stream.unwrap(), vec![piece]).is_queued());
                }
            }
            Do::Fill(len) => while ctx.send(self.stream.unwrap(), vec![0; len]).is_queued() {},
            Do::SendAndClose(bytes) => {
                assert!(ctx.send(self.stream.unwrap(), bytes).is_queued());
                ctx.close(self.stream.unwrap());
            }
            Do::Fix(peer) => ctx.connect_socket(self.socket.unwrap(), peer),
            Do::SendDatagrams(peer, stride, bytes) => {
                let data = Payload::from(bytes);
                let transmit = Transmit {
                    peer,
                    source: None,
                    ecn: 0,
                    stride,
                    data,
                };
                assert!(
                    ctx.send_datagrams(self.socket.unwrap(), transmit)
                        .is_queued()
                );
            }
            Do::SendDatagramsAndClose(peer, stride, bytes) => {
                let socket = self.socket.take().unwrap();
                for data in [bytes.clone(), bytes] {
                    let transmit = Transmit {
                        stride,
                        ..Transmit::one(Some(peer), data.into())
                    };
                    assert!(ctx.send_datagrams(socket, transmit).is_queued());
                }
                ctx.close_socket(socket);
            }
            Do::Pause => ctx.pause(self.stream.unwrap()),
            Do::Resume => ctx.resume(self.stream.unwrap()),
            Do::Close => ctx.close(self.stream.unwrap()),
            Do::Keep(keep) => {
                self.keep = keep;
                self.kept.clear();
            }
            Do::Timer(after) => {
                let deadline = ctx.clock() + after.as_nanos() as u64;
                ctx.set_timer(deadline, deadline);
            }
            Do::TimerAwake(after) => {
                let deadline = ctx.clock() + after.as_nanos() as u64;
                ctx.set_timer(deadline, deadline);
                ctx.stay_awake_until(deadline);
            }
            Do::Forward(to, number) => ctx.post(to, Do::Number(number)).expect("there is room"),
            Do::Number(number) => self.tell(Seen::Number {
                on: ctx.shard(),
                from,
                number,
            }),
            Do::Ping => self.tell(Seen::Pong),
            Do::StopEngine => ctx.stop_engine(),
            Do::Panic => panic!("as it was told"),
        }
    }

    fn stopped(&mut self) {
        self.tell(Seen::Stopped);
    }
}

// ---- the rig ---------------------------------------------------------------------------------

fn any_port(v6: bool) -> SocketAddr {
    match v6 {
        true => (Ipv6Addr::LOCALHOST, 0).into(),
        false => (Ipv4Addr::LOCALHOST, 0).into(),
    }
}

fn ip_of(engine: &Engine, at: usize) -> SocketAddr {
    match &engine.addresses()[at].address {
        Address::Ip(address) => *address,
        Address::Unix(path) => panic!("{} is not an internet address", path.display()),
    }
}

fn echo(setting: &Setting, limits: Limits, service: Service<Echo>, shards: u16) -> Engine {
    setting
        .builder()
        .limits(limits)
        .shards(shards)
        .service(service)
        .start()
        .unwrap()
}

fn echo_service() -> Service<Echo> {
    Service::new("echo", |_| Echo::default())
}

/// An engine with a remote-controlled protocol.
struct Rig {
    engine: Engine,
    controller: Controller<Do>,
    seen: Receiver<Seen>,
}

impl Rig {
    fn new(
        setting: &Setting,
        limits: Limits,
        shards: u16,
        endpoints: impl FnOnce(Service<Remote>) -> Service<Remote>,
    ) -> Self {
        let (tell, seen) = channel();
        let service = Service::new("remote", move |_| Remote {
            seen: tell.clone(),
            stream: None,
            socket: None,
            keep: false,
            kept: Vec::new(),
        });
        let service = endpoints(service);
        let controller = service.controller();
        let engine = setting
            .builder()
            .limits(limits)
            .shards(shards)
            .service(service)
            .start()
            .unwrap();
        Self {
            engine,
            controller,
            seen,
        }
    }

    fn listening(setting: &Setting, limits: Limits) -> Self {
        Self::new(setting, limits, 1, |service| {
            service.listen(any_port(false))
        })
    }

    fn tell(&self, what: Do) {
        self.controller
            .post(0, what)
            .expect("there is room in the mailbox");
    }

    fn next(&self) -> Seen {
        self.seen
            .recv_timeout(HANG)
            .expect("the protocol sees something in time")
    }

    fn expect(&self, want: &Seen) {
        assert_eq!(&self.next(), want);
    }

    /// Bytes received until there are so many.
    fn received(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            match self.next() {
                Seen::Received(more) => bytes.extend(more),
                other => panic!("{other:?} instead of bytes"),
            }
        }
        bytes
    }

    /// A connected client; the protocol has seen it.
    fn client(&self) -> TcpStream {
        let client = connect(ip_of(&self.engine, 0));
        self.expect(&Seen::Accepted(None));
        client
    }

    fn totals(&self) -> ServiceSnapshot {
        self.engine.service_totals(0)
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, HANG).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

/// A client whose receive window is small.
fn connect_narrow(to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(to),
        socket2::Type::STREAM,
        None,
    )
    .unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

fn udp_client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(any_port(to.is_ipv6())).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    socket
}

/// Waits for a condition that another thread brings about.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < HANG, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Stops the engine and checks that nothing is left open.
fn stop(mut engine: Engine) -> ServiceSnapshot {
    engine.stop();
    until("every shard has ended", || engine.has_ended());
    engine.join().unwrap();
    let totals = engine.service_totals(0);
    assert_eq!(totals.open, 0);
    assert_eq!(engine.connections(), 0);
    assert_eq!(
        totals.accepted + totals.connected,
        totals.closed,
        "every open has its close"
    );
    assert_eq!(engine.shard_totals().driver_errors, 0);
    totals
}

/// Bytes of which no two neighbourhoods are alike.
fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i ^ i >> 8 ^ i >> 16) as u8 ^ salt)
        .collect()
}

fn unix_path(name: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("ringmill-{name}-{}-{number}", std::process::id()))
}

/// A stream of either family.
trait Peer: Read + Write + Send {
    fn another(&self) -> Box<dyn Peer>;
    fn end(&self);
}

impl Peer for TcpStream {
    fn another(&self) -> Box<dyn Peer> {
        Box::new(self.try_clone().unwrap())
    }
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Peer for UnixStream {
    fn another(&self) -> Box<dyn Peer> {
        Box::new(self.try_clone().unwrap())
    }
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

fn peer_of(address: &Address) -> Box<dyn Peer> {
    match address {
        Address::Ip(ip) => Box::new(connect(*ip)),
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(HANG)).unwrap();
            Box::new(stream)
        }
    }
}

// ---- streams ---------------------------------------------------------------------------------

fn streams_are_echoed(setting: &Setting) {
    for shards in [1, 2] {
        let path = unix_path("echo");
        let service = echo_service()
            .listen(any_port(false))
            .listen(any_port(true))
            .listen(Address::Unix(path.clone()));
        let engine = echo(setting, Limits::default(), service, shards);
        let mut bytes = 0;
        for bound in engine.addresses() {
            let mut peers: Vec<_> = (0..8).map(|_| peer_of(&bound.address)).collect();
            for round in 0..3_u8 {
                for (at, peer) in peers.iter_mut().enumerate() {
                    peer.write_all(&pattern(100 * at + 1, round)).unwrap();
                }
                for (at, peer) in peers.iter_mut().enumerate() {
                    let want = pattern(100 * at + 1, round);
                    let mut got = vec![0; want.len()];
                    peer.read_exact(&mut got).unwrap();
                    assert_eq!(got, want, "{} on {shards} shards", bound.address);
                    bytes += want.len() as u64;
                }
            }
        }
        let totals = stop(engine);
        assert_eq!(totals.accepted, 24);
        assert_eq!((totals.received_bytes, totals.sent_bytes), (bytes, bytes));
        let _ = std::fs::remove_file(path);
    }
}

fn large_transfers_survive_a_slow_reader(setting: &Setting) {
    const LEN: usize = 8 * MIB;
    let path = unix_path("large");
    let service = echo_service()
        .listen(any_port(false))
        .listen(Address::Unix(path.clone()));
    let limits = Limits {
        stream_queue_bytes_max: 256 << 10,
        ..Limits::default()
    };
    let engine = echo(setting, limits, service, 1);
    for bound in engine.addresses() {
        let mut reader: Box<dyn Peer> = match &bound.address {
            Address::Ip(ip) => Box::new(connect_narrow(*ip)),
            unix => peer_of(unix),
        };
        let mut writer = reader.another();
        let before = engine.service_totals(0).send_full;
        let data = pattern(LEN, 0x5a);
        let sent = data.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.end();
        });
        until("the echo is held up", || {
            engine.service_totals(0).send_full > before
        });
        let mut got = vec![0; 64 << 10];
        for piece in got.chunks_mut(1000) {
            reader.read_exact(piece).unwrap();
        }
        reader.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        assert_eq!(got.len(), LEN, "{}", bound.address);
        assert!(got == data, "{}: some byte is wrong", bound.address);
    }
    let totals = stop(engine);
    assert_eq!(
        (totals.received_bytes, totals.sent_bytes),
        (2 * LEN as u64, 2 * LEN as u64)
    );
    let _ = std::fs::remove_file(path);
}

fn a_half_closed_stream_gets_all_its_echoes(setting: &Setting) {
    let engine = echo(
        setting,
        Limits::default(),
        echo_service().listen(any_port(false)),
        1,
    );
    for len in [0, 1, 4096, 64 << 10, 200_000] {
        let mut client = connect(ip_of(&engine, 0));
        let data = pattern(len, 1);
        client.write_all(&data).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == data, "{len} bytes: {} came back", got.len());
    }
    stop(engine);
}

/// Finishes and closes the streams that say `x` and echoes to the others.
struct FinishAndClose;

impl Protocol for FinishAndClose {
    type Message = ();

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        if data[..] == *b"x" {
            ctx.finish(stream);
            ctx.close(stream);
        } else {
            assert!(ctx.send(stream, data).is_queued());
        }
    }

    fn ended(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        ctx.close(stream);
    }
}

/// The slot of a stream that was finished and closed is at once that of another.
fn a_finished_stream_ends_only_itself(setting: &Setting) {
    let service = Service::new("finish", |_| FinishAndClose).listen(any_port(false));
    let engine = setting.builder().service(service).start().unwrap();
    let address = ip_of(&engine, 0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..1000 {
                    let mut other = connect(address);
                    other.write_all(b"echo").unwrap();
                    let result = other.read_exact(&mut [0; 4]);
                    assert!(result.is_ok(), "round {round}: {result:?}");
                }
            });
        }
        for _ in 0..100 {
            let mut short: Vec<_> = (0..16).map(|_| connect(address)).collect();
            short
                .iter_mut()
                .for_each(|short| short.write_all(b"x").unwrap());
            for short in &mut short {
                assert_eq!(short.read(&mut [0]).unwrap(), 0);
            }
        }
    });
    stop(engine);
}

fn the_end_of_a_queue_needs_no_other_event(setting: &Setting) {
    // Without these there is no timer that would wake the shard.
    let limits = Limits {
        idle_timeout: None,
        write_stall_timeout: None,
        stream_queue_bytes_max: 32 << 10,
        ..Limits::default()
    };
    let rig = Rig::listening(setting, limits);
    let mut client = rig.client();
    let mut got = Vec::new();
    // More pieces than one send takes.
    rig.tell(Do::SendPieces(3000));
    got.resize(3000, 0);
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, pattern(3000, 0));
    // Full, and at once drained.
    rig.tell(Do::Fill(1 << 10));
    rig.expect(&Seen::Drained);
    client.read_exact(&mut vec![0; 32 << 10]).unwrap();
    rig.tell(Do::SendAndClose(b"bye".to_vec()));
    got.clear();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye");
    rig.expect(&Seen::Closed(Closed::Normally, TAG));
    stop(rig.engine);
}

fn a_reset_is_reported_once(setting: &Setting) {
    let rig = Rig::listening(setting, Limits::default());
    let reset = |client: TcpStream| {
        socket2::SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    };
    let mut client = rig.client();
    client.write_all(b"x").unwrap();
    rig.expect(&Seen::Received(b"x".to_vec()));
    reset(client);
    rig.expect(&Seen::Closed(Closed::Error(libc::ECONNRESET), TAG));
    // With a queue that the peer did not take.
    let client = rig.client();
    rig.tell(Do::Send(pattern(8 * MIB, 2)));
    until("some was sent", || rig.totals().sent_bytes > 0);
    reset(client);
    match rig.next() {
        Seen::Closed(Closed::Error(libc::ECONNRESET | libc::EPIPE), TAG) => {}
        other => panic!("{other:?}"),
    }
    rig.tell(Do::Ping);
    rig.expect(&Seen::Pong);
    assert_eq!(rig.totals().failed, 2);
    stop(rig.engine);
}

fn a_refused_connect_is_reported(setting: &Setting) {
    let rig = Rig::new(setting, Limits::default(), 1, |service| service);
    let unused = TcpListener::bind(any_port(false))
        .unwrap()
        .local_addr()
        .unwrap();
    for (to, errno) in [
        (Address::Ip(unused), libc::ECONNREFUSED),
        (Address::Unix(unix_path("nobody")), libc::ENOENT),
    ] {
        rig.tell(Do::Connect(Connect { to, from: None }));
        rig.expect(&Seen::Closed(Closed::Error(errno), 0));
    }
    let totals = stop(rig.engine);
    assert_eq!((totals.connected, totals.connect_failed), (0, 2));
}

fn a_connect_carries_bytes_both_ways(setting: &Setting) {
    let rig = Rig::new(setting, Limits::default(), 1, |service| service);
    let path = unix_path("server");
    let tcp = TcpListener::bind(any_port(false)).unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let source: SocketAddr = (Ipv4Addr::new(127, 0, 0, 9), 0).into();
    let cases = [
        (Address::Ip(tcp.local_addr().unwrap()), None),
        (Address::Ip(tcp.local_addr().unwrap()), Some(source)),
        (Address::Unix(path.clone()), None),
    ];
    for (to, from) in cases {
        rig.tell(Do::Connect(Connect {
            to: to.clone(),
            from,
        }));
        let mut server: Box<dyn Peer> = match &to {
            Address::Ip(_) => {
                let (server, peer) = tcp.accept().unwrap();
                assert!(from.is_none_or(|from| from.ip() == peer.ip()), "{peer}");
                Box::new(server)
            }
            Address::Unix(_) => Box::new(unix.accept().unwrap().0),
        };
        server.write_all(b"from the server").unwrap();
        rig.expect(&Seen::Connected);
        assert_eq!(rig.received(15), b"from the server");
        rig.tell(Do::Send(b"from the client".to_vec()));
        let mut got = [0; 15];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"from the client");
        drop(server);
        rig.expect(&Seen::Ended);
        rig.expect(&Seen::Closed(Closed::Normally, TAG));
    }
    let _ = std::fs::remove_file(path);
    assert_eq!(stop(rig.engine).connected, 3);
}

fn many_connections_leave_nothing_behind(setting: &Setting) {
    let engine = echo(
        setting,
        Limits::default(),
        echo_service().listen(any_port(false)),
        2,
    );
    let to = ip_of(&engine, 0);
    for round in 1..=2_u64 {
        let mut clients: Vec<_> = (0..250).map(|_| connect(to)).collect();
        for client in &mut clients {
            client.write_all(b"hello").unwrap();
        }
        for client in &mut clients {
            let mut got = [0; 5];
            client.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"hello");
        }
        assert_eq!(engine.service_totals(0).open, 250);
        drop(clients);
        until("all are closed", || engine.service_totals(0).open == 0);
        assert_eq!(engine.service_totals(0).closed, 250 * round);
    }
    assert_eq!(stop(engine).accepted, 500);
}

fn a_closed_stream_keeps_its_tag_until_the_protocol_knows(setting: &Setting) {
    let rig = Rig::listening(setting, Limits::default());
    let mut client = rig.client();
    rig.tell(Do::Close);
    rig.expect(&Seen::Closed(Closed::Normally, TAG));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    stop(rig.engine);
}

fn a_paused_stream_is_not_read(setting: &Setting) {
    let rig = Rig::listening(setting, Limits::default());
    let mut client = rig.client();
    for round in 0..3 {
        rig.tell(Do::Pause);
        rig.tell(Do::Ping);
        rig.expect(&Seen::Pong);
        let data = pattern(3 * MIB, round);
        let sent = data.clone();
        let mut writer = client.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        // Whatever arrived by now would have been told before the answer.
        for _ in 0..20 {
            rig.tell(Do::Ping);
            rig.expect(&Seen::Pong);
        }
        rig.tell(Do::Resume);
        assert!(rig.received(data.len()) == data, "round {round}");
        writing.join().unwrap();
    }
    client.write_all(b"last").unwrap();
    assert_eq!(rig.received(4), b"last");
    drop(client);
    rig.expect(&Seen::Ended);
    rig.expect(&Seen::Closed(Closed::Normally, TAG));
    stop(rig.engine);
}

fn the_end_waits_for_a_paused_stream(setting: &Setting) {
    let rig = Rig::listening(setting, Limits::default());
    let mut client = rig.client();
    rig.tell(Do::Pause);
    rig.tell(Do::Ping);
    rig.expect(&Seen::Pong);
    client.write_all(b"bye").unwrap();
    drop(client);
    rig.tell(Do::Ping);
    rig.expect(&Seen::Pong);
    rig.tell(Do::Resume);
    assert_eq!(rig.received(3), b"bye");
    rig.expect(&Seen::Ended);
    rig.expect(&Seen::Closed(Closed::Normally, TAG));
    stop(rig.engine);
}

fn kept_buffers_do_not_stop_the_others(setting: &Setting) {
    if setting.driver == DriverChoice::Uring {
        println!("skipped: there a receive waits until a buffer comes back");
        return;
    }
    let limits = Limits {
        stream_pool_bytes: 256 << 10,
        ..Limits::default()
    };
    let rig = Rig::listening(setting, limits);
    let mut client = rig.client();
    rig.tell(Do::Keep(true));
    let data = pattern(4 * MIB, 3);
    let sent = data.clone();
    let writing = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client
    });
    assert!(rig.received(data.len()) == data);
    assert!(rig.engine.shard_totals().buffers_exhausted > 0);
    let _client = writing.join().unwrap();
    rig.tell(Do::Keep(false));
    drop(_client);
    rig.expect(&Seen::Ended);
    rig.expect(&Seen::Closed(Closed::Normally, TAG));
    stop(rig.engine);
}

fn large_transfers_share_few_buffers(setting: &Setting) {
    const CLIENTS: u8 = 24;
    let limits = Limits {
        stream_pool_bytes: 256 << 10,
        stream_queue_bytes_max: 128 << 10,
        ..Limits::default()
    };
    let engine = echo(setting, limits, echo_service().listen(any_port(false)), 1);
    let to = ip_of(&engine, 0);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|salt| {
            std::thread::spawn(move || {
                let mut reader = connect(to);
                let mut writer = reader.try_clone().unwrap();
                let data = pattern(MIB, salt);
                let sent = data.clone();
                let writing = std::thread::spawn(move || {
                    writer.write_all(&sent).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut got = Vec::new();
                reader.read_to_end(&mut got).unwrap();
                writing.join().unwrap();
                assert!(
                    got == data,
                    "client {salt}: {} of {} bytes",
                    got.len(),
                    data.len()
                );
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let bytes = u64::from(CLIENTS) * MIB as u64;
    let totals = stop(engine);
    assert_eq!((totals.received_bytes, totals.sent_bytes), (bytes, bytes));
}

// ---- stopping and limits ---------------------------------------------------------------------

fn a_graceful_stop_sends_what_is_queued(setting: &Setting) {
    let limits = Limits {
        drain_timeout: HANG,
        ..Limits::default()
    };
    let rig = Rig::listening(setting, limits);
    let mut client = connect_narrow(ip_of(&rig.engine, 0));
    rig.expect(&Seen::Accepted(None));
    let data = pattern(8 * MIB, 4);
    rig.tell(Do::Send(data.clone()));
    until("some was sent", || rig.totals().sent_bytes > 0);
    rig.engine.stop();
    let mut got = vec![0; 100_000];
    for piece in got.chunks_mut(500) {
        client.read_exact(piece).unwrap();
    }
    client.read_to_end(&mut got).unwrap();
    assert!(got == data, "{} of {} bytes came", got.len(), data.len());
    drop(client);
    stop(rig.engine);
}

fn a_second_stop_ends_at_once(setting: &Setting) {
    let limits = Limits {
        drain_timeout: 10 * HANG,
        ..Limits::default()
    };
    let mut rig = Rig::listening(setting, limits);
    let mut client = rig.client();
    rig.tell(Do::Send(pattern(16 * MIB, 5)));
    until("some was sent", || rig.totals().sent_bytes > 0);
    rig.engine.stop();
    rig.tell(Do::Ping);
    rig.expect(&Seen::Pong);
    assert!(!rig.engine.has_ended(), "the client has not read");
    rig.engine.stop_now();
    rig.expect(&Seen::Closed(Closed::Stopping, TAG));
    rig.expect(&Seen::Stopped);
    rig.engine.join().unwrap();
    assert_eq!(rig.totals().open, 0);
    let mut rest = Vec::new();
    // Cut off: by a reset, or by the end before all has come.
    let _ = client.read_to_end(&mut rest);
    assert!(rest.len() < 16 * MIB);
}

fn a_paused_stream_does_not_hold_up_the_stop(setting: &Setting) {
    let limits = Limits {
        drain_timeout: 10 * HANG,
        ..Limits::default()
    };
    let rig = Rig::listening(setting, limits);
    let mut client = rig.client();
    rig.tell(Do::Pause);
    rig.tell(Do::Ping);
    rig.expect(&Seen::Pong);
    // More than both kernels hold: the client comes to its end only when somebody reads.
    let mut sender = client.try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.write_all(&pattern(32 * MIB, 6)));
    rig.engine.stop();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the server ends first");
    sending.join().unwrap().unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    rig.expect(&Seen::Closed(Closed::Stopping, TAG));
    stop(rig.engine);
}

fn idle_streams_are_closed(setting: &Setting) {
    let idle_timeout = Some(Duration::from_millis(300));
    let rig = Rig::listening(
        setting,
        Limits {
            idle_timeout,
            ..Limits::default()
        },
    );
    let begin = Instant::now();
    let mut client = rig.client();
    rig.expect(&Seen::Closed(Closed::Idle, TAG));
    // In steps of a tenth of a second, of which the first may have been nearly over.
    assert!(
        begin.elapsed() >= Duration::from_millis(200),
        "{:?}",
        begin.elapsed()
    );
    let end = client.read(&mut [0]);
    assert!(matches!(&end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    assert_eq!(stop(rig.engine).idle_closed, 1);
}

fn stalled_streams_are_closed(setting: &Setting) {
    let write_stall_timeout = Some(Duration::from_millis(300));
    let rig = Rig::listening(
        setting,
        Limits {
            write_stall_timeout,
            ..Limits::default()
        },
    );
    let client = rig.client();
    rig.tell(Do::Send(pattern(16 * MIB, 6)));
    rig.expect(&Seen::Closed(Closed::Stalled, TAG));
    drop(client);
    assert_eq!(stop(rig.engine).stalled_closed, 1);
}

fn past_the_connection_limit_is_refused(setting: &Setting) {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let rig = Rig::listening(setting, limits);
    let (first, _second) = (rig.client(), rig.client());
    // The reset may come as early as that.
    let end = TcpStream::connect(ip_of(&rig.engine, 0)).and_then(|mut third| {
        third.set_read_timeout(Some(HANG))?;
        third.read(&mut [0])
    });
    assert!(matches!(&end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    until("it is counted", || rig.totals().refused == 1);
    // Room again.
    drop(first);
    rig.expect(&Seen::Ended);
    rig.expect(&Seen::Closed(Closed::Normally, TAG));
    drop(rig.client());
    rig.expect(&Seen::Ended);
    rig.expect(&Seen::Closed(Closed::Normally, TAG));
    drop(_second);
    assert_eq!(stop(rig.engine).accepted, 3);
}

// ---- datagrams -------------------------------------------------------------------------------

fn datagrams_are_echoed(setting: &Setting) {
    for shards in [1, 2] {
        let service = echo_service().bind(any_port(false)).bind(any_port(true));
        let engine = echo(setting, Limits::default(), service, shards);
        let mut count = 0;
        for at in 0..2 {
            let clients: Vec<_> = (0..8).map(|_| udp_client(ip_of(&engine, at))).collect();
            for round in 0..5 {
                for (at, client) in clients.iter().enumerate() {
                    client.send(&pattern(at * 150 + 1, round)).unwrap();
                }
                for (at, client) in clients.iter().enumerate() {
                    let want = pattern(at * 150 + 1, round);
                    let mut got = [0; 2048];
                    let len = client.recv(&mut got).unwrap();
                    assert_eq!(&got[..len], &want[..]);
                    count += 1;
                }
            }
        }
        let totals = stop(engine);
        assert_eq!(
            (totals.received_datagrams, totals.sent_datagrams),
            (count, count)
        );
        assert_eq!(totals.dropped_datagrams, 0);
    }
}

/// Asks the kernel to cut what a socket sends into datagrams of so many bytes.
fn cut_sends(socket: &UdpSocket, size: i32) -> std::io::Result<()> {
    // SAFETY: the option value is an int that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn a_burst_is_counted_by_datagrams(setting: &Setting) {
    const COUNT: usize = 40;
    const SIZE: usize = 1222;
    let service = echo_service().bind(any_port(false)).bind(any_port(true));
    let engine = echo(setting, Limits::default(), service, 1);
    for at in 0..2 {
        let client = udp_client(ip_of(&engine, at));
        if let Err(reason) = cut_sends(&client, SIZE as i32) {
            println!("skipped: no segmentation offload (UDP_SEGMENT): {reason}");
            return;
        }
        // The last one is shorter.
        let data = pattern(COUNT * SIZE - 22, 7);
        assert_eq!(client.send(&data).unwrap(), data.len());
        for want in data.chunks(SIZE) {
            let mut got = [0; 2048];
            let len = client.recv(&mut got).unwrap();
            assert!(&got[..len] == want);
        }
    }
    let totals = stop(engine);
    let (datagrams, bytes) = (2 * COUNT as u64, 2 * (COUNT * SIZE - 22) as u64);
    assert_eq!(
        (totals.received_datagrams, totals.received_datagram_bytes),
        (datagrams, bytes)
    );
    assert_eq!(
        (totals.sent_datagrams, totals.sent_datagram_bytes),
        (datagrams, bytes)
    );
}

fn odd_sizes_of_datagrams(setting: &Setting) {
    let service = echo_service().bind(any_port(false)).bind(any_port(true));
    let engine = echo(setting, Limits::default(), service, 1);
    for at in 0..2 {
        let client = udp_client(ip_of(&engine, at));
        for len in [0, 1, 1472, 1473, 9000, 65_507] {
            let data = pattern(len, 8);
            client.send(&data).unwrap();
            let mut got = vec![0xee; 70_000];
            let came = client.recv(&mut got).unwrap();
            assert!(got[..came] == data, "{len} bytes: {came} came back");
        }
    }
    let totals = stop(engine);
    assert_eq!((totals.received_datagrams, totals.sent_datagrams), (12, 12));
}

fn more_datagrams_than_buffers(setting: &Setting) {
    let limits = Limits {
        datagram_buffers: 8,
        ..Limits::default()
    };
    let engine = echo(setting, limits, echo_service().bind(any_port(false)), 1);
    let client = udp_client(ip_of(&engine, 0));
    // Fits the receive buffer of the client: each is charged with its overhead.
    const COUNT: u8 = 100;
    for round in 0..10 {
        for at in 0..COUNT {
            client.send(&[round, at]).unwrap();
        }
        let mut arrived: Vec<_> = (0..COUNT)
            .map(|_| {
                let mut got = [0; 16];
                assert_eq!(client.recv(&mut got).unwrap(), 2);
                (got[0], got[1])
            })
            .collect();
        arrived.sort_unstable();
        assert_eq!(
            arrived,
            (0..COUNT).map(|at| (round, at)).collect::<Vec<_>>()
        );
    }
    stop(engine);
}

/// Two shards with some connections on each, one of which is told something.
fn tell_one_of_two(setting: &Setting, what: Do) -> (Rig, Vec<TcpStream>) {
    let limits = Limits {
        drain_timeout: 10 * HANG,
        ..Limits::default()
    };
    let rig = Rig::new(setting, limits, 2, |service| {
        service.listen(any_port(false))
    });
    let clients: Vec<_> = (0..16).map(|_| rig.client()).collect();
    rig.controller.post(1, what).expect("there is room");
    (rig, clients)
}

/// Nobody is left waiting: what is connected ends, and what connects is refused.
fn assert_stops_whole(rig: &Rig, clients: Vec<TcpStream>) {
    for mut client in clients {
        match client.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?} instead of an end"),
        }
    }
    until("every shard has ended", || rig.engine.has_ended());
    let late = TcpStream::connect_timeout(&ip_of(&rig.engine, 0), HANG);
    assert_eq!(late.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

fn a_protocol_can_stop_the_engine(setting: &Setting) {
    let (mut rig, clients) = tell_one_of_two(setting, Do::StopEngine);
    assert_stops_whole(&rig, clients);
    assert_eq!(rig.engine.take_notice(), None);
    rig.engine.join().unwrap();
}

fn a_shard_that_panics_stops_the_engine(setting: &Setting) {
    let (mut rig, clients) = tell_one_of_two(setting, Do::Panic);
    assert_stops_whole(&rig, clients);
    let failed = Notice::ShardFailed {
        shard: 1,
        error: "it panicked: as it was told".into(),
    };
    assert_eq!(rig.engine.take_notice(), Some(failed));
    let error = rig.engine.join().unwrap_err().to_string();
    assert_eq!(error, "shard 1 failed: it panicked: as it was told");
}

fn a_shard_that_cannot_start_is_an_error(setting: &Setting) {
    let service = Service::new("broken", |shard| {
        assert_ne!(shard, 1, "this shard is not wanted");
        Echo::default()
    });
    let service = service.listen(any_port(false));
    match setting.builder().shards(2).service(service).start() {
        Err(StartError::Shard { shard: 1, error }) => {
            let said = error.to_string();
            assert!(said.contains("this shard is not wanted"), "{said}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
}

/// Named or not, what is sent goes to the peer; others are not heard, but can still be sent to.
fn a_connected_socket_has_one_peer(setting: &Setting) {
    for ipv6 in [false, true] {
        let rig = Rig::new(setting, Limits::default(), 1, |service| service);
        let [peer, other] = [(); 2].map(|()| {
            let socket = UdpSocket::bind(any_port(ipv6)).unwrap();
            socket.set_read_timeout(Some(HANG)).unwrap();
            socket
        });
        let [peer_at, other_at] = [&peer, &other].map(|socket| socket.local_addr().unwrap());
        rig.tell(Do::Open(Open {
            local: any_port(ipv6),
            peer: None,
        }));
        let Seen::Bound(bound) = rig.next() else {
            panic!("no socket");
        };
        // A family that cannot be connected to leaves the socket as it is.
        rig.tell(Do::Fix(any_port(!ipv6)));
        rig.tell(Do::Fix(peer_at));
        for (to, heard_by) in [
            (Some(peer_at), &peer),
            (None, &peer),
            (Some(other_at), &other),
        ] {
            rig.tell(Do::SendDatagrams(to, 3, b"abcdef".to_vec()));
            for expected in [b"abc", b"def"] {
                let mut heard = [0; 8];
                let (len, from) = heard_by.recv_from(&mut heard).unwrap();
                assert_eq!((&heard[..len], from), (&expected[..], bound));
            }
        }
        other.send_to(b"no", bound).unwrap();
        peer.send_to(b"yes", bound).unwrap();
        rig.expect(&Seen::Datagrams(vec![b"yes".to_vec()]));
    }
}

/// On a path that delays the socket's send buffer fills (in a network namespace with
/// `tc qdisc add dev lo root tbf rate 80mbit burst 200kb limit 20mb`); on a plain loopback it
/// hardly does. Either way all arrive, also when the engine stops meanwhile.
fn datagrams_wait_for_room(setting: &Setting) {
    const COUNT: u32 = 500;
    for stop_early in [false, true] {
        let limits = Limits {
            datagram_socket_buffers: SocketBufferSizes::both(32 << 10),
            drain_timeout: 10 * HANG,
            ..Limits::default()
        };
        let rig = Rig::new(setting, limits, 1, |service| service);
        let receiver = UdpSocket::bind(any_port(false)).unwrap();
        socket2::SockRef::from(&receiver)
            .set_recv_buffer_size(4 * MIB)
            .unwrap();
        receiver.set_read_timeout(Some(HANG)).unwrap();
        let peer = receiver.local_addr().unwrap();
        rig.tell(Do::Open(Open {
            local: any_port(false),
            peer: None,
        }));
        assert!(matches!(rig.next(), Seen::Bound(_)));
        let mut expected = Vec::new();
        for number in 0..COUNT {
            // One by one, and some of them several at once.
            let count = if number % 10 == 0 { 5 } else { 1 };
            let data: Vec<u8> = (0..count * 250)
                .flat_map(|_| number.to_ne_bytes())
                .collect();
            rig.tell(Do::SendDatagrams(Some(peer), 1000, data));
            expected.extend(std::iter::repeat_n(number, count));
        }
        rig.tell(Do::Ping);
        rig.expect(&Seen::Pong);
        if stop_early {
            rig.engine.stop();
        }
        let mut arrived = Vec::new();
        while arrived.len() < expected.len() {
            let mut got = [0; 1500];
            assert_eq!(receiver.recv(&mut got).unwrap(), 1000);
            arrived.push(u32::from_ne_bytes([got[0], got[1], got[2], got[3]]));
        }
        // UDP promises no order.
        arrived.sort_unstable();
        assert_eq!(arrived, expected);
        assert_eq!(stop(rig.engine).dropped_datagrams, 0);
    }
}

fn loopback_group(group: &str) -> (SocketAddr, Multicast) {
    let multicast = Multicast {
        interface: ringmill_engine::sys::socket::interface_index("lo").unwrap(),
        ..Multicast::default()
    };
    (group.parse().unwrap(), multicast)
}

fn a_group_reaches_all_its_members(setting: &Setting) {
    for group in ["239.255.70.1:33340", "[ff15::70:1]:33340"] {
        let (group, multicast) = loopback_group(group);
        let rig = Rig::new(setting, Limits::default(), 1, |service| service);
        let joined = Multicast {
            join: Some(group.ip()),
            ..multicast
        };
        let member = Open {
            local: group,
            peer: None,
        };
        for _ in 0..3 {
            rig.tell(Do::OpenMulticast(member, joined));
            rig.expect(&Seen::Bound(group));
        }
        let any = any_port(group.is_ipv6());
        // Loopback has no IPv6 multicast route unless somebody adds one.
        let sender = Open {
            local: match group {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, any.port())),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, any.port())),
            },
            peer: Some(group),
        };
        if let Err(error) = multicast.probe(&sender) {
            assert!(group.is_ipv6(), "{group}: {error}");
            println!("skipped: {group} on lo: {error}");
            stop(rig.engine);
            continue;
        }
        rig.tell(Do::OpenMulticast(sender, multicast));
        assert!(matches!(rig.next(), Seen::Bound(_)));
        // Several at once, and one alone.
        rig.tell(Do::SendDatagrams(None, 4, b"one.two.three".to_vec()));
        rig.tell(Do::SendDatagrams(None, 6, b"single".to_vec()));
        let mut arrived = Vec::new();
        while arrived.len() < 3 * 5 {
            match rig.next() {
                Seen::Datagrams(datagrams) => arrived.extend(datagrams),
                other => panic!("{group}: {other:?}"),
            }
        }
        arrived.sort();
        let mut expected = Vec::new();
        for word in [&b"e"[..], b"one.", b"single", b"thre", b"two."] {
            expected.extend([word; 3]);
        }
        assert_eq!(arrived, expected, "{group}");
        stop(rig.engine);
    }
}

fn a_group_that_cannot_be_joined_is_an_error(setting: &Setting) {
    let rig = Rig::new(setting, Limits::default(), 1, |service| service);
    let (group, multicast) = loopback_group("239.255.70.2:33340");
    let member = Open {
        local: group,
        peer: None,
    };
    for (multicast, errno) in [
        (
            Multicast {
                interface: 0x7fff_ffff,
                join: Some(group.ip()),
                ..multicast
            },
            &[libc::ENODEV, libc::EADDRNOTAVAIL][..],
        ),
        (
            Multicast {
                join: Some(Ipv4Addr::LOCALHOST.into()),
                ..multicast
            },
            &[libc::EINVAL],
        ),
    ] {
        let told = multicast.probe(&member).unwrap_err().raw_os_error();
        assert!(errno.contains(&told.unwrap()), "{multicast:?}: {told:?}");
        rig.tell(Do::OpenMulticast(member, multicast));
        rig.expect(&Seen::SocketError(told.unwrap()));
    }
    stop(rig.engine);
}

fn a_refused_datagram_is_reported(setting: &Setting) {
    let rig = Rig::new(setting, Limits::default(), 1, |service| service);
    let unused = UdpSocket::bind(any_port(false))
        .unwrap()
        .local_addr()
        .unwrap();
    rig.tell(Do::Open(Open {
        local: any_port(false),
        peer: Some(unused),
    }));
    let Seen::Bound(local) = rig.next() else {
        panic!("the socket is bound")
    };
    rig.tell(Do::SendDatagrams(None, 5, b"hello".to_vec()));
    rig.expect(&Seen::SocketError(libc::ECONNREFUSED));
    // It goes on: now somebody is there.
    let server = UdpSocket::bind(unused).unwrap();
    server.set_read_timeout(Some(HANG)).unwrap();
    rig.tell(Do::SendDatagrams(None, 4, b"helloagain".to_vec()));
    let mut got = [0; 16];
    for want in [&b"hell"[..], b"oaga", b"in"] {
        let (len, from) = server.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from), (want, local));
    }
    server.send_to(b"answer", local).unwrap();
    rig.expect(&Seen::Datagrams(vec![b"answer".to_vec()]));
    stop(rig.engine);
}

fn datagrams_of_a_closed_socket_are_counted(setting: &Setting) {
    let rig = Rig::new(setting, Limits::default(), 1, |service| service);
    let receiver = UdpSocket::bind(any_port(false)).unwrap();
    let peer = receiver.local_addr().unwrap();
    for _ in 0..2 {
        rig.tell(Do::Open(Open {
            local: any_port(false),
            peer: None,
        }));
        assert!(matches!(rig.next(), Seen::Bound(_)));
        // Two sends of three datagrams, the last of them shorter.
        rig.tell(Do::SendDatagramsAndClose(peer, 100, vec![7; 250]));
    }
    rig.tell(Do::Ping);
    rig.expect(&Seen::Pong);
    let metrics = rig.engine.metrics().to_vec();
    let totals = stop(rig.engine);
    assert_eq!((totals.sent_datagrams, totals.dropped_datagrams), (0, 12));
    assert_eq!(metrics[0].shard.queued_bytes.get(), 0);
}

// ---- the rest of the context -----------------------------------------------------------------

fn peers_are_known_when_asked_for(setting: &Setting) {
    for v6 in [false, true] {
        let rig = Rig::new(setting, Limits::default(), 1, |service| {
            service.with_peer_addresses().listen(any_port(v6))
        });
        let client = connect(ip_of(&rig.engine, 0));
        rig.expect(&Seen::Accepted(Some(client.local_addr().unwrap())));
        drop(client);
        stop(rig.engine);
    }
}

fn timers_are_never_early(setting: &Setting) {
    let rig = Rig::new(setting, Limits::default(), 1, |service| service);
    let afters = [
        0, 1, 999, 1_000, 50_000, 100_001, 999_999, 1_000_001, 7_654_321, 30_000_000,
    ];
    for after in afters.map(Duration::from_nanos) {
        rig.tell(Do::Timer(after));
        match rig.next() {
            Seen::Timer(late) => assert!(late.is_some(), "{after:?} was too short"),
            other => panic!("{other:?}"),
        }
    }
    for after in afters.map(Duration::from_nanos) {
        rig.tell(Do::Timer(after));
    }
    for _ in afters {
        assert!(matches!(rig.next(), Seen::Timer(Some(_))));
    }
    assert_eq!(stop(rig.engine).timers, 2 * afters.len() as u64);
}

fn a_shard_stays_awake_as_long_as_it_is_asked_to(setting: &Setting) {
    /// Far more turns than a shard that sleeps takes for one timer, far fewer than a spinning one.
    const MANY: u64 = 100;
    let rig = Rig::new(setting, Limits::default(), 1, |service| service);
    let wait = Duration::from_millis(50);
    let turns = |doing| {
        let before = rig.engine.shard_totals().turns;
        rig.tell(doing);
        assert!(matches!(rig.next(), Seen::Timer(Some(_))));
        rig.engine.shard_totals().turns - before
    };
    for (doing, awake) in [
        (Do::Timer(wait), false),
        (Do::TimerAwake(wait), true),
        // It is over when the time is.
        (Do::Timer(wait), false),
    ] {
        let turns = turns(doing);
        assert_eq!(turns > MANY, awake, "{turns} turns");
    }
    stop(rig.engine);
}

fn messages_cross_shards(setting: &Setting) {
    const COUNT: u64 = 200;
    let rig = Rig::new(setting, Limits::default(), 2, |service| service);
    for number in 0..COUNT {
        // The sleeping shard must wake up each time.
        rig.tell(Do::Forward(1, number));
        rig.expect(&Seen::Number {
            on: 1,
            from: 0,
            number,
        });
    }
    for number in 0..COUNT {
        rig.tell(Do::Forward(1, number));
    }
    for number in 0..COUNT {
        rig.expect(&Seen::Number {
            on: 1,
            from: 0,
            number,
        });
    }
    rig.tell(Do::Number(7));
    rig.expect(&Seen::Number {
        on: 0,
        from: CONTROL,
        number: 7,
    });
    assert_eq!(stop(rig.engine).messages, 4 * COUNT + 1);
}

fn a_port_in_use_is_an_error_with_its_holder(setting: &Setting) {
    let tcp = TcpListener::bind(any_port(false)).unwrap();
    let udp = UdpSocket::bind(any_port(false)).unwrap();
    let ours = echo(
        setting,
        Limits::default(),
        echo_service().listen(any_port(false)).bind(any_port(false)),
        2,
    );
    let cases = [
        echo_service().listen(tcp.local_addr().unwrap()),
        echo_service().bind(udp.local_addr().unwrap()),
        echo_service().listen(ip_of(&ours, 0)),
        echo_service().bind(ip_of(&ours, 1)),
    ];
    for (case, service) in cases.into_iter().enumerate() {
        match setting.builder().shards(2).service(service).start() {
            Err(StartError::Bind {
                address,
                error,
                holder,
            }) => {
                assert_eq!(error.kind(), ErrorKind::AddrInUse, "case {case}, {address}");
                let holder = holder.unwrap_or_default();
                let pid = format!("process {}", std::process::id());
                assert!(holder.contains(&pid), "case {case}, {address}: {holder:?}");
            }
            Err(other) => panic!("case {case}: {other}"),
            Ok(_) => panic!("case {case}: it started"),
        }
    }
    stop(ours);
}

fn a_stale_unix_socket_is_replaced(setting: &Setting) {
    let path = unix_path("stale");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let service = echo_service().listen(Address::Unix(path.clone()));
    let engine = echo(setting, Limits::default(), service, 1);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    // A live one is not.
    let service = echo_service().listen(Address::Unix(path.clone()));
    let second = setting.builder().service(service).start();
    assert!(matches!(second, Err(StartError::Bind { .. })));
    drop(client);
    stop(engine);
    let _ = std::fs::remove_file(path);
}

// ---- what needs a process of its own ---------------------------------------------------------

/// Names the driver on which [`the_case_of_a_child`] runs its case.
const CHILD_DRIVER: &str = "RINGMILL_TEST_DRIVER";
/// Names that case.
const CHILD_CASE: &str = "RINGMILL_TEST_CASE";

/// Runs a case in a child process: its open files and limits are then its own.
fn in_a_child(setting: &Setting, case: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "the_case_of_a_child"])
        .env(CHILD_CASE, case)
        .env(CHILD_DRIVER, format!("{:?}", setting.driver))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{failed}");
    assert!(said.contains("1 passed"), "the child ran its case: {said}");
}

#[test]
#[ignore = "other tests run it in a process of its own; alone: RINGMILL_TEST_CASE=descriptors \
            cargo test -p ringmill-engine --test drivers -- --exact --ignored the_case_of_a_child"]
fn the_case_of_a_child() {
    let Ok(case) = std::env::var(CHILD_CASE) else {
        println!("skipped: no case is named by {CHILD_CASE}");
        return;
    };
    let driver = match std::env::var(CHILD_DRIVER).as_deref() {
        Ok("Uring") => DriverChoice::Uring,
        _ => DriverChoice::Epoll,
    };
    let setting = Setting::of(driver);
    match case.as_str() {
        "descriptors" => count_descriptors(&setting),
        "few files" => run_out_of_files(&setting),
        "files for slots" => serve_from_few_files(&Setting {
            refuse: vec![Feature::DirectDescriptors],
            ..setting
        }),
        other => panic!("there is no case '{other}'"),
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn no_descriptor_is_leaked(setting: &Setting) {
    in_a_child(setting, "descriptors");
}

fn count_descriptors(setting: &Setting) {
    let mut before = None;
    for _ in 0..3 {
        streams_are_echoed(setting);
        a_connect_carries_bytes_both_ways(setting);
        a_refused_connect_is_reported(setting);
        a_refused_datagram_is_reported(setting);
        past_the_connection_limit_is_refused(setting);
        a_second_stop_ends_at_once(setting);
        datagrams_are_echoed(setting);
        // The first round opens what stays open, such as the random source.
        let now = open_files();
        assert_eq!(*before.get_or_insert(now), now);
    }
}

fn a_shard_without_streams_sleeps(setting: &Setting) {
    let limits = Limits {
        idle_timeout: Some(Duration::from_secs(60)),
        ..Limits::default()
    };
    let engine = echo(setting, limits, echo_service().listen(any_port(false)), 1);
    let turns_in_a_second = || {
        let before = engine.shard_totals().turns;
        std::thread::sleep(Duration::from_secs(1));
        engine.shard_totals().turns - before
    };
    let alone = turns_in_a_second();
    assert!(alone <= 2, "{alone} turns before any stream");
    let client = TcpStream::connect(ip_of(&engine, 0)).unwrap();
    until("it is there", || engine.service_totals(0).accepted == 1);
    // Now there is something to look at ten times a second.
    let swept = turns_in_a_second();
    assert!(swept >= 5, "{swept} turns with a stream");
    drop(client);
    until("it is gone", || engine.service_totals(0).closed == 1);
    std::thread::sleep(Duration::from_millis(300));
    let alone = turns_in_a_second();
    assert!(alone <= 2, "{alone} turns after the last stream");
    stop(engine);
}

fn accepting_pauses_while_files_are_short(setting: &Setting) {
    if setting.driver == DriverChoice::Uring {
        println!("skipped: what a ring accepts is no file of the process");
        return;
    }
    in_a_child(setting, "few files");
}

/// Where a ring has no table of its own, its streams are files of the process: a low limit of files
/// leaves room for most of them.
#[test]
fn uring_without_direct_descriptors_serves_from_few_files() {
    let setting = Setting::of(DriverChoice::Uring);
    match uring::probe(&uring::Options::default()) {
        Ok(_) => in_a_child(&setting, "files for slots"),
        Err(reason) => println!("skipped: {reason}"),
    }
}

fn serve_from_few_files(setting: &Setting) {
    // Both ends of each connection are files of this process.
    const CLIENTS: usize = 150;
    for (files, shards) in [(512, 1), (400, 2)] {
        limit_files(files);
        let service = echo_service().listen(any_port(false));
        let engine = echo(setting, Limits::default(), service, shards);
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(ip_of(&engine, 0))).collect();
        for client in &mut clients {
            client.write_all(b"served").unwrap();
        }
        for client in &mut clients {
            let mut got = [0; 6];
            client.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"served");
        }
        assert_eq!(engine.shard_totals().accept_pauses, 0);
        drop(clients);
        let totals = stop(engine);
        assert_eq!((totals.accepted, totals.refused), (CLIENTS as u64, 0));
    }
}

fn limit_files(files: u64) {
    let limit = libc::rlimit {
        rlim_cur: files,
        rlim_max: files,
    };
    // SAFETY: setrlimit reads the struct that it is given.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
}

fn run_out_of_files(setting: &Setting) {
    // Fewer than the connections that a shard holds however low the limit is, so that files and
    // not the table run out.
    limit_files(60);
    let engine = echo(
        setting,
        Limits::default(),
        echo_service().listen(any_port(false)),
        1,
    );
    let mut spare: Vec<_> = (0..8)
        .map(|_| std::fs::File::open("/dev/null").unwrap())
        .collect();
    let mut clients = Vec::new();
    while let Ok(client) = TcpStream::connect(ip_of(&engine, 0)) {
        clients.push(client);
    }
    // The very last file: nothing is left for the other end. That may take some before, for
    // connections that were still in its queue.
    let mut last = loop {
        assert!(spare.pop().is_some(), "the other end takes all");
        if let Ok(client) = TcpStream::connect(ip_of(&engine, 0)) {
            break client;
        }
    };
    until("accepting has failed", || {
        engine.shard_totals().accept_pauses > 0
    });
    match engine.take_notice() {
        Some(Notice::AcceptFailed {
            errno: libc::EMFILE,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    clients.truncate(10);
    last.set_read_timeout(Some(HANG)).unwrap();
    last.write_all(b"still there?").unwrap();
    let mut got = [0; 12];
    last.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still there?");
    drop((clients, last));
    stop(engine);
}
