//! The capacity server in the simulated network: a client's double over bad paths, and everything
//! that a stranger may try with it, in virtual time; and once over real sockets.
//!
//! A failing seed is printed; `RINGMILL_SEED=n cargo test -p ringmill-protocols --test
//! capacity_server` runs that one alone.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig};
use ringmill_engine::{Context, Datagram, Limits, Nanos, Protocol, Service, SocketId};
use ringmill_protocols::capacity::admission::Admission;
use ringmill_protocols::capacity::auth::{Keys, Signed};
use ringmill_protocols::capacity::keys::{KeyRing, SharedKey};
use ringmill_protocols::capacity::pdu::{Authentication, Setup, Version};
use ringmill_protocols::capacity::server::{
    CapacityServer, Listener, Outlets, ServerEvent, Settings, WallClock,
};
use ringmill_protocols::capacity::setup::ServerSettings;

mod abuse;
mod client;
mod seeds;
mod sockets;

const MS: Nanos = 1_000_000;
/// When the world begins, Unix time in s.
const BEGIN_S: u32 = 1_800_000_000;
const KEY: &str = "a key that both ends know";
const SERVER: &str = "192.0.2.1";
const CONTROL: u16 = 24_601;

/// A world with a server in it.
struct Scene {
    world: World,
    server: CapacityServer,
    events: Receiver<ServerEvent>,
    control: SocketAddr,
}

impl Scene {
    fn new(
        seed: u64,
        config: WorldConfig,
        shards: u16,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Self::within(Limits::default(), seed, config, shards, change)
    }

    /// The same with limits of the engine.
    fn within(
        limits: Limits,
        seed: u64,
        config: WorldConfig,
        shards: u16,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut world = World::new(seed, config);
        let (outlet, events) = sync_channel(1 << 16);
        let clock = WallClock::new(world.now(), u64::from(BEGIN_S) * 1_000_000_000);
        let outlets = Outlets {
            events: outlet,
            records: None,
        };
        let listener = Listener {
            setup: ServerSettings::default(),
        };
        let mut settings = Settings::new(vec![listener], Arc::new(clock), outlets);
        settings.seed = seed;
        change(&mut settings);
        let server = CapacityServer::new(settings, shards);
        let control: SocketAddr = format!("{SERVER}:{CONTROL}").parse().expect("an address");
        let engine = EngineSpec::new(shards)
            .host(SERVER)
            .limits(CapacityServer::limits(limits))
            .service(server.service("capacity").bind(control));
        world.engine(engine).expect("the server starts");
        Self {
            world,
            server,
            events,
            control,
        }
    }

    fn run(&mut self, ms: u64) {
        self.world.run_for(Duration::from_millis(ms));
    }

    fn events(&self) -> Vec<ServerEvent> {
        self.events.try_iter().collect()
    }

    /// Ends everything: nothing may be left of any test.
    fn end(mut self) {
        self.world.stop_all().expect("all engines stop");
        self.world.leaks().assert_none();
    }
}

/// A key ring with the key that both ends know.
fn key_ring() -> KeyRing {
    KeyRing {
        command_line: Some(shared_key()),
        file: None,
    }
}

fn shared_key() -> SharedKey {
    SharedKey::new(KEY).expect("a legal key")
}

fn with_key(settings: &mut Settings) {
    settings.listeners[0].setup.keys = key_ring();
}

fn with_bandwidth(settings: &mut Settings, mbps: u32) {
    settings.listeners[0].setup.admission = Admission::limited(mbps);
}

/// A setup request as a client makes it.
fn request(ident: u16) -> Setup {
    Setup {
        protocol_ver: 20,
        mc_count: 1,
        mc_ident: ident,
        cmd_request: Setup::REQUEST,
        modifier_bitmap: Setup::JUMBO,
        ..Setup::default()
    }
}

fn encoded(setup: &Setup) -> [u8; Setup::LEN] {
    let mut bytes = [0; Setup::LEN];
    setup.encode(&mut bytes);
    bytes
}

/// The same, signed at a time.
fn signed(setup: Setup, unix_time: u32) -> [u8; Setup::LEN] {
    let mut setup = setup;
    setup.auth = Authentication {
        auth_mode: Authentication::MODE_CONTROL,
        auth_unix_time: unix_time,
        ..Authentication::default()
    };
    let mut bytes = encoded(&setup);
    if setup.protocol_ver < Version::WIRE_MAX {
        // Version 11 signs with the key itself.
        Signed::Setup.sign(shared_key().bytes(), &mut bytes);
    } else {
        let keys = Keys::derive(&shared_key(), unix_time);
        Signed::Setup.sign(keys.client(), &mut bytes);
    }
    bytes
}

/// What came to a listening host: at which of its addresses, from whom, the bytes.
type Heard = Arc<Mutex<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>>;

/// A host that only listens: what the server answers to its address is seen.
struct Ear(Heard);

impl Protocol for Ear {
    type Message = ();

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        let local = ctx.local_address(socket).expect("it is open");
        let mut heard = self.0.lock().expect("no test panics in between");
        for datagram in batch.drain(..) {
            for bytes in datagram.iter() {
                heard.push((local, datagram.peer, bytes.to_vec()));
            }
        }
    }
}

/// Adds a host that listens at an address.
fn ear(world: &mut World, address: SocketAddr) -> Heard {
    let heard = Heard::default();
    let ears = Arc::clone(&heard);
    let service = Service::new("ear", move |_| Ear(Arc::clone(&ears))).bind(address);
    let engine = EngineSpec::new(1)
        .host(&address.ip().to_string())
        .service(service);
    world.engine(engine).expect("the ear starts");
    heard
}

fn take(heard: &Heard) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
    std::mem::take(&mut heard.lock().expect("no test panics in between"))
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}
