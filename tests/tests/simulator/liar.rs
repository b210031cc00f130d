//! Load clients against an echo that lies once: each lie must be counted as what it is.

use std::collections::VecDeque;
use std::sync::Arc;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig};
use ringmill_engine::{
    Buffer, Context, Datagram, Nanos, Payload, Protocol, Service, SocketId, StreamId, Transmit,
};
use ringmill_protocols::load::{Arrivals, Config, Tally};

use super::bench::{Clients, ECHO, Load, MILLI, SECOND, address, plan, run, small_limits, stop};

const MESSAGE_LEN: usize = 64;
const TIMEOUT: Nanos = 100 * MILLI;
/// Which message is the lie.
const LIE: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    None,
    /// One bit of one byte at this position of the message is another.
    Flip(usize),
    /// The message goes after the next one.
    Swap,
    Double,
    Drop,
    /// The last byte is missing.
    Cut,
    /// The message comes after the client has given it up.
    Delay,
}

struct Liar {
    lie: Lie,
    count: u64,
    /// Bytes of a stream that are not a whole message yet.
    partial: VecDeque<u8>,
    held: Option<Vec<u8>>,
    later: Option<(SocketId, Transmit)>,
}

impl Liar {
    fn new(lie: Lie) -> Self {
        Self {
            lie,
            count: 0,
            partial: VecDeque::new(),
            held: None,
            later: None,
        }
    }

    /// What goes back for the next message: nothing, one or two.
    fn answers(&mut self, mut message: Vec<u8>) -> Vec<Vec<u8>> {
        self.count += 1;
        if let Some(held) = self.held.take() {
            return vec![message, held];
        }
        if self.count != LIE {
            return vec![message];
        }
        match self.lie {
            Lie::None | Lie::Delay => {}
            Lie::Flip(at) => message[at] ^= 0x10,
            Lie::Swap => {
                self.held = Some(message);
                return Vec::new();
            }
            Lie::Double => return vec![message.clone(), message],
            Lie::Drop => return Vec::new(),
            Lie::Cut => message.truncate(MESSAGE_LEN - 1),
        }
        vec![message]
    }
}

impl Protocol for Liar {
    type Message = ();

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        self.partial.extend(data.iter());
        while self.partial.len() >= MESSAGE_LEN {
            let message = self.partial.drain(..MESSAGE_LEN).collect();
            for answer in self.answers(message) {
                assert!(ctx.send(stream, answer).is_queued());
            }
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        for datagram in batch.drain(..) {
            for bytes in datagram.iter() {
                for answer in self.answers(bytes.to_vec()) {
                    let transmit = Transmit::one(Some(datagram.peer), Payload::from(answer));
                    if self.lie == Lie::Delay && self.count == LIE {
                        self.later = Some((socket, transmit));
                        ctx.set_timer(ctx.now() + 2 * TIMEOUT, 0);
                    } else {
                        assert!(ctx.send_datagrams(socket, transmit).is_queued());
                    }
                }
            }
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        if let Some((socket, transmit)) = self.later.take() {
            assert!(ctx.send_datagrams(socket, transmit).is_queued());
        }
    }
}

/// What a load of one connection with four messages out makes of a lie.
fn lied_to(lie: Lie, load: fn(Config) -> Load) -> Tally {
    let mut world = World::new(2, WorldConfig::default());
    let liar = Service::new("liar", move |_| Liar::new(lie))
        .listen(address(ECHO))
        .bind(address(ECHO));
    let spec = EngineSpec::new(1)
        .limits(small_limits())
        .host("10.0.0.1")
        .service(liar);
    world.engine(spec).expect("the liar starts");
    let config = Config {
        message_len: MESSAGE_LEN,
        datagram_timeout: TIMEOUT,
        ..plan(ECHO, 1, 4, Arrivals::Closed)
    };
    let clients = Clients::start(
        &mut world,
        "10.0.0.2",
        1,
        small_limits(),
        load(config),
        &Arc::default(),
    );
    let tally = run(&mut world, &clients, SECOND).tally;
    stop(&mut world);
    assert!(tally.answered > LIE / 2, "{lie:?}: {tally:?}");
    tally
}

#[test]
fn every_lie_about_a_datagram_is_counted_as_what_it_is() {
    let honest = Tally::default();
    for (lie, expected) in [
        (Lie::None, honest.clone()),
        (
            Lie::Flip(63),
            Tally {
                wrong_bytes: 1,
                ..honest.clone()
            },
        ),
        (
            Lie::Flip(8),
            Tally {
                wrong_bytes: 1,
                ..honest.clone()
            },
        ),
        // The place or the turn is another: it answers nothing that was sent.
        (
            Lie::Flip(1),
            Tally {
                unknown: 1,
                lost: 1,
                ..honest.clone()
            },
        ),
        (
            Lie::Flip(7),
            Tally {
                unknown: 1,
                lost: 1,
                ..honest.clone()
            },
        ),
        (
            Lie::Swap,
            Tally {
                reordered: 1,
                ..honest.clone()
            },
        ),
        (
            Lie::Double,
            Tally {
                duplicated: 1,
                ..honest.clone()
            },
        ),
        (
            Lie::Drop,
            Tally {
                lost: 1,
                ..honest.clone()
            },
        ),
        (
            Lie::Cut,
            Tally {
                unknown: 1,
                lost: 1,
                ..honest.clone()
            },
        ),
        (
            Lie::Delay,
            Tally {
                late: 1,
                lost: 1,
                ..honest.clone()
            },
        ),
    ] {
        let tally = lied_to(lie, Load::Datagrams);
        let seen = Tally {
            wrong_bytes: tally.wrong_bytes,
            lost: tally.lost,
            late: tally.late,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            unknown: tally.unknown,
            ..Tally::default()
        };
        assert_eq!(seen, expected, "{lie:?}");
    }
}

#[test]
fn no_lie_about_a_stream_passes() {
    for (lie, what) in [
        (Lie::None, "nothing"),
        (Lie::Flip(0), "one byte"),
        (Lie::Flip(63), "one byte"),
        (Lie::Swap, "two messages"),
        (Lie::Double, "all that follows, and more than was sent"),
        (Lie::Drop, "all that follows, and less than was sent"),
        (Lie::Cut, "all that follows, and less than was sent"),
    ] {
        let tally = lied_to(lie, Load::Streams);
        let seen = match tally.wrong_bytes {
            0 => "nothing",
            1 => "one byte",
            // Two different messages agree in one byte of 256 by chance.
            100..=128 => "two messages",
            _ if tally.unknown > 0 => "all that follows, and more than was sent",
            _ if tally.lost > 0 => "all that follows, and less than was sent",
            _ => "all that follows",
        };
        assert_eq!(seen, what, "{lie:?}: {tally:?}");
    }
}
