//! A chat on a simulated network, with most members not reading: who does read gets everything,
//! whatever the policy. Storms of joins, leaves and resets are tried by the program's own tests.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::{Buffer, Connect, Context, Limits, Protocol, QueueBounds, Service, StreamId};
use ringmill_protocols::chat::{ChatSnapshot, Framing, Room, Settings, SlowReader};

const SERVER: &str = "10.0.0.1:1111";
const MEMBERS: usize = 24;
const READERS: usize = 4;
/// Bytes of each line, its end included.
const LINE: usize = 100;
const LINES: usize = 5000;

/// What the readers got, and all the others together.
type Heard = Arc<Mutex<Vec<usize>>>;

/// Members of whom few read and one speaks, once everyone is there.
struct Members {
    heard: Heard,
    streams: Vec<StreamId>,
    joined: usize,
    said: usize,
}

impl Members {
    fn place(&self, stream: StreamId) -> usize {
        let place = self.streams.iter().position(|one| *one == stream);
        place.expect("a stream of ours")
    }
}

impl Protocol for Members {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for _ in 0..MEMBERS {
            let connect = Connect {
                to: SERVER.parse::<SocketAddr>().unwrap().into(),
                from: None,
            };
            self.streams.push(ctx.connect(&connect).unwrap());
        }
    }

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        let place = self.place(stream);
        let heard = &mut self.heard.lock().unwrap()[place];
        if *heard == 0 {
            self.joined += 1;
            if self.joined == MEMBERS {
                ctx.set_timer(ctx.now(), 0);
            }
        }
        *heard += data.iter().filter(|byte| **byte == b'\n').count();
        if place >= READERS {
            ctx.pause(stream);
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        let mut line = vec![b'.'; LINE];
        line[LINE - 1] = b'\n';
        assert!(ctx.send(self.streams[0], line).is_queued());
        self.said += 1;
        if self.said < LINES {
            ctx.set_timer(ctx.now() + 200_000, 0);
        }
    }
}

fn play(seed: u64, slow: SlowReader) -> (Vec<usize>, ChatSnapshot) {
    let settings = Settings {
        framing: Framing::Line { bytes_max: LINE },
        slow,
        queue: QueueBounds {
            bytes_max: usize::MAX,
            messages_max: usize::MAX,
        },
    };
    let mut world = World::new(seed, WorldConfig::default());
    let room = Room::new(settings, 2, None);
    let for_shards = Arc::clone(&room);
    let server: SocketAddr = SERVER.parse().unwrap();
    let chat = Service::new("chat", move |shard| for_shards.shard(shard)).listen(server);
    let limits = Limits {
        stream_queue_bytes_max: 20_000,
        shard_queue_bytes_max: 60_000,
        ..Limits::default()
    };
    let spec = EngineSpec::new(2).limits(limits).host("10.0.0.1");
    world.engine(spec.service(chat)).unwrap();
    let heard = Arc::new(Mutex::new(vec![0; MEMBERS]));
    let of_members = Arc::clone(&heard);
    let members = Service::new("members", move |_| Members {
        heard: Arc::clone(&of_members),
        streams: Vec::new(),
        joined: 0,
        said: 0,
    });
    let spec = EngineSpec::new(1).host("10.0.0.2").service(members);
    world.engine(spec).unwrap();
    world.run_for(Duration::from_secs(3));
    let heard = heard.lock().unwrap().clone();
    world.stop_all().unwrap();
    world.leaks().assert_none();
    (heard, room.totals())
}

#[test]
fn many_who_do_not_read_take_nothing_from_who_does() {
    for seed in seeds(10) {
        for (policy, dropped) in [
            (
                SlowReader::DropOldest,
                (|all| all.dropped_oldest) as fn(&ChatSnapshot) -> u64,
            ),
            (SlowReader::DropNewest, |all| all.withdrawn),
            (SlowReader::Disconnect, |all| all.disconnected_slow),
        ] {
            let (heard, totals) = play(seed, policy);
            let context = format!("seed {seed}, {policy:?}: {heard:?}, {totals:?}");
            for readers in &heard[..READERS] {
                // And the greeting.
                assert_eq!(*readers, LINES + 1, "{context}");
            }
            assert!(dropped(&totals) > 0, "{context}");
        }
    }
}
