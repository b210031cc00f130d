//! The ends at which people sit, on a simulated network: what nobody looks at does not fill the
//! memory, and comes once it is looked at.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::{Address, Limits, Multicast, Service};
use ringmill_protocols::backlog::{BACKLOG_BYTES_MAX, Backlog};
use ringmill_protocols::interactive::{Event, Interactive, Report};
use ringmill_protocols::multicast::{
    Group, Rate, Sender, SenderConfig, Senders, SlowReaders, Talk, TalkEvent, TalkReport, TalkRole,
};

const SERVER: &str = "10.0.0.1:7";
const GROUP: &str = "239.255.0.1:3334";
/// What one turn may bring beside.
const SLACK: usize = 1 << 20;

/// Messages that wait to be shown.
#[derive(Default)]
struct Screen {
    lens: Mutex<Vec<usize>>,
    bytes: AtomicUsize,
}

impl Screen {
    fn take(&self, len: usize) {
        self.lens.lock().unwrap().push(len);
        self.bytes.fetch_add(len, Ordering::Relaxed);
    }

    fn show_all(&self, backlog: &Backlog) {
        for len in self.lens.lock().unwrap().drain(..) {
            backlog.shown(len);
        }
    }
}

/// A server of 20 MB a second, by a stream or to a group.
fn server(world: &mut World) {
    let senders = Arc::new(Senders::new(1));
    let config = Arc::new(SenderConfig {
        message_len: 1000,
        rate: Rate::PerSecond(20_000.0),
        slow_readers: SlowReaders::DropNewest,
        groups: vec![Group {
            to: GROUP.parse().unwrap(),
            multicast: Multicast::default(),
        }],
        clock: 1,
        source: 1,
    });
    let service = Service::new("multicast", move |shard| {
        Sender::new(Arc::clone(&config), senders.of_shard(shard))
    });
    let service = service.listen(SERVER.parse::<SocketAddr>().unwrap());
    let spec = EngineSpec::new(1).host("10.0.0.1").service(service);
    world.engine(spec).unwrap();
}

#[test]
fn what_nobody_looks_at_does_not_fill_the_memory() {
    for seed in seeds(3) {
        for by_stream in [true, false] {
            let mut world = World::new(seed, WorldConfig::default());
            server(&mut world);
            let (screen, backlog) = (Arc::new(Screen::default()), Backlog::new());
            let (shown, of_client) = (Arc::clone(&screen), Arc::clone(&backlog));
            let spec = EngineSpec::new(1)
                .host("10.0.0.2")
                .limits(Limits::default());
            let spec = if by_stream {
                let report: Report = Arc::new(move |event| {
                    if let Event::Received(bytes) = event {
                        shown.take(bytes.len());
                    }
                });
                spec.service(Service::new("client", move |_| {
                    let to = Address::Ip(SERVER.parse().unwrap());
                    Interactive::new(vec![to], false, report.clone(), of_client.clone())
                }))
            } else {
                let report: TalkReport = Arc::new(move |event| {
                    if let TalkEvent::Received(_, bytes) = event {
                        shown.take(bytes.len());
                    }
                });
                let group = Group {
                    to: GROUP.parse().unwrap(),
                    multicast: Multicast::default(),
                };
                spec.service(Service::new("client", move |_| {
                    Talk::new(TalkRole::Receive, group, report.clone(), of_client.clone())
                }))
            };
            world.engine(spec).unwrap();
            world.run_for(Duration::from_secs(1));
            let context = format!("seed {seed}, by a stream: {by_stream}");
            let unseen = screen.bytes.load(Ordering::Relaxed);
            // Each message costs a little beside its bytes.
            let bounds = BACKLOG_BYTES_MAX - SLACK..BACKLOG_BYTES_MAX + SLACK;
            assert!(bounds.contains(&unseen), "{context}: {unseen}");
            screen.show_all(&backlog);
            world.run_for(Duration::from_millis(500));
            let more = screen.bytes.load(Ordering::Relaxed) - unseen;
            assert!(more > SLACK, "{context}: {more} more");
            world.stop_all().unwrap();
            world.leaks().assert_none();
        }
    }
}
