//! What is behind the headers of a client's load: zeros, unless random bytes were agreed on, and
//! what was agreed is what the server's answer says.

use std::net::SocketAddr;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig};
use ringmill_engine::{Context, Datagram, Payload, Protocol, Service, SocketId, Transmit};
use ringmill_protocols::capacity::client::{Client, ClientSettings, Outlet};
use ringmill_protocols::capacity::parameters::{Direction, Rate, ServerLimits, TestParameters};
use ringmill_protocols::capacity::pdu::{Activation, Load, Pdu, Setup};
use ringmill_protocols::capacity::rates::{RateTable, Variant};
use ringmill_protocols::capacity::setup::{Accepted, ServerSettings, examine};
use ringmill_protocols::capacity::time::{Instants, WallTime};

const SERVER: &str = "192.0.2.1";
const CONTROL: u16 = 24601;
const WALL: WallTime = WallTime {
    sec: 1_800_000_000,
    nsec: 0,
};

/// What came to a server.
#[derive(Debug, Default, PartialEq, Eq)]
struct Came {
    load: bool,
    random: bool,
}

/// Sets up and activates whoever asks, on its one socket, and looks at the load.
struct Server {
    grants_random: bool,
    accepted: Option<Accepted>,
    came: Arc<Mutex<Came>>,
}

impl Server {
    fn answer(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        match Pdu::of(bytes)? {
            Pdu::Setup => {
                let examined = examine(bytes, &ServerSettings::default(), WALL).expect("a request");
                let mut response = vec![0; Setup::LEN];
                let (_, accepted) = examined.accept(CONTROL, WALL, &mut response);
                self.accepted = Some(accepted);
                Some(response)
            }
            Pdu::Activation => {
                let accepted = self.accepted.as_ref().expect("it was set up");
                let request = accepted.activation(bytes, WALL, 5).expect("a request");
                let limits = ServerLimits {
                    random_payload: self.grants_random,
                    ..ServerLimits::default()
                };
                let (parameters, mut response) =
                    TestParameters::corrected(&request, accepted.version, &limits);
                let table = RateTable::new(Variant::default());
                response.rate = table.row(parameters.first_row()).rate;
                let mut bytes = vec![0; Activation::len(accepted.version)];
                accepted.activation_response(&response, WALL, &mut bytes);
                Some(bytes)
            }
            Pdu::Load => {
                let mut came = self.came.lock().expect("not poisoned");
                came.load = true;
                came.random |= bytes[Load::HEADER_LEN..].iter().any(|byte| *byte != 0);
                None
            }
            _ => None,
        }
    }
}

impl Protocol for Server {
    type Message = ();

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for datagram in batch.drain(..) {
            for bytes in datagram.iter() {
                if let Some(answer) = self.answer(bytes) {
                    let transmit = Transmit::one(Some(datagram.peer), Payload::from(answer));
                    let _ = ctx.send_datagrams(socket, transmit);
                }
            }
        }
    }
}

#[test]
fn load_carries_random_bytes_only_where_both_want_it() {
    for (asked, granted) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = World::new(1, WorldConfig::default());
        let control: SocketAddr = format!("{SERVER}:{CONTROL}").parse().expect("an address");
        let came = Arc::new(Mutex::new(Came::default()));
        let seen = Arc::clone(&came);
        let server = Service::new("server", move |_| Server {
            grants_random: granted,
            accepted: None,
            came: Arc::clone(&seen),
        });
        let server = EngineSpec::new(1)
            .host(SERVER)
            .service(server.bind(control));
        world.engine(server).expect("the server starts");
        let parameters = TestParameters {
            rate: Rate::Fixed(5),
            random_payload: asked,
            ..TestParameters::new(Direction::Upstream)
        };
        let clock = Instants {
            now: world.now(),
            wall: WALL,
        };
        let settings = Arc::new(ClientSettings::new(vec![control], parameters, clock));
        let (events, _events) = sync_channel(1 << 12);
        let outlet = Arc::new(Outlet::new(events, None));
        let client = Service::new("client", move |_| {
            Client::new(Arc::clone(&settings), [0], Arc::clone(&outlet))
        });
        let client = EngineSpec::new(1).host("198.51.100.1").service(client);
        world.engine(client).expect("the client starts");
        world.run_for(Duration::from_secs(1));
        let want = Came {
            load: true,
            random: asked && granted,
        };
        let found = std::mem::take(&mut *came.lock().expect("not poisoned"));
        assert_eq!(found, want, "asked {asked}, granted {granted}");
        world.stop_all().expect("all engines stop");
    }
}
