//! Sends a numbered datagram to an address at an exact rate, and counts what comes back.
//!
//! ```sh
//! cargo run --release -p ringmill-engine --example beacon -- 127.0.0.1:7000 1000
//! ```
//!
//! Shows timers, pacing and datagrams: deadlines advance by the interval and not from "now", so the
//! long-run rate is exact although single wake-ups are late.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ringmill_engine::pacer::Pacer;
use ringmill_engine::time::from_duration;
use ringmill_engine::{Context, Datagram, Engine, Open, Protocol, Service, SocketId, Transmit};

const TICK: u64 = 0;
const REPORT: u64 = 1;

struct Beacon {
    to: SocketAddr,
    rate: f64,
    pacer: Option<Pacer>,
    socket: Option<SocketId>,
    number: u64,
    answers: u64,
}

impl Protocol for Beacon {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let local = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.socket = ctx
            .open(&Open {
                local,
                peer: Some(self.to),
            })
            .ok();
        self.pacer = Pacer::constant(self.rate, ctx.now()).ok();
        ctx.set_timer(ctx.now(), TICK);
        ctx.set_timer(ctx.now() + from_duration(Duration::from_secs(1)), REPORT);
    }

    fn timer(&mut self, ctx: &mut Context<'_, ()>, token: u64) {
        if token == REPORT {
            println!("{} sent, {} answered", self.number, self.answers);
            ctx.set_timer(ctx.now() + from_duration(Duration::from_secs(1)), REPORT);
            return;
        }
        let (Some(socket), Some(pacer)) = (self.socket, &mut self.pacer) else {
            return;
        };
        for _ in 0..pacer.due(ctx.now()) {
            self.number += 1;
            let bytes = self.number.to_be_bytes().to_vec();
            // Policy: what does not fit into the queue is dropped, as the network would.
            let _ = ctx.send_datagrams(socket, Transmit::one(None, bytes.into()));
        }
        ctx.set_timer(pacer.next_intended(), TICK);
    }

    fn datagrams(
        &mut self,
        _ctx: &mut Context<'_, ()>,
        _socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        self.answers += batch
            .drain(..)
            .map(|datagram| datagram.count() as u64)
            .sum::<u64>();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let to: SocketAddr = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7000".into())
        .parse()?;
    let rate: f64 = std::env::args()
        .nth(2)
        .unwrap_or_else(|| "1000".into())
        .parse()?;
    let service = Service::new("beacon", move |_shard| Beacon {
        to,
        rate,
        pacer: None,
        socket: None,
        number: 0,
        answers: 0,
    });
    let mut engine = Engine::builder().service(service).start()?;
    engine.join()?;
    Ok(())
}
