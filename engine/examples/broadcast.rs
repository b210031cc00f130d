//! A message on any connection goes to every connection on every shard.
//!
//! ```sh
//! cargo run --release -p ringmill-engine --example broadcast -- 127.0.0.1:7000
//! ```
//!
//! Shows how shards talk: the message is stored once, crosses to each shard once as a shared
//! pointer, and every send queue there holds only that pointer. Connect twice with `ncat` to try.

use std::sync::Arc;

use ringmill_engine::{
    Buffer, Closed, Context, Engine, Fanned, ListenerId, Protocol, Service, ShardId, StreamId,
};

#[derive(Default)]
struct Broadcast {
    members: Vec<StreamId>,
}

impl Broadcast {
    fn deliver(&mut self, ctx: &mut Context<'_, Arc<[u8]>>, message: Arc<[u8]>) {
        let message = Fanned::new(message);
        for member in &self.members {
            // Policy: a member whose queue is full misses this message and delays nobody.
            let _ = ctx.send(*member, message.clone());
        }
    }
}

impl Protocol for Broadcast {
    type Message = Arc<[u8]>;

    fn accepted(
        &mut self,
        _ctx: &mut Context<'_, Arc<[u8]>>,
        stream: StreamId,
        _listener: ListenerId,
        _peer: Option<std::net::SocketAddr>,
    ) {
        self.members.push(stream);
    }

    fn received(&mut self, ctx: &mut Context<'_, Arc<[u8]>>, _from: StreamId, data: Buffer) {
        let message: Arc<[u8]> = Arc::from(&data[..]);
        let own = ctx.shard();
        for shard in (0..ctx.shards()).filter(|shard| *shard != own) {
            // Policy: a shard whose mailbox is full misses this message; the counter tells.
            let _ = ctx.post(shard, Arc::clone(&message));
        }
        self.deliver(ctx, message);
    }

    fn message(&mut self, ctx: &mut Context<'_, Arc<[u8]>>, _from: ShardId, message: Arc<[u8]>) {
        self.deliver(ctx, message);
    }

    fn closed(&mut self, _ctx: &mut Context<'_, Arc<[u8]>>, stream: StreamId, _reason: Closed) {
        self.members.retain(|member| *member != stream);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: std::net::SocketAddr = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7000".into())
        .parse()?;
    let service = Service::new("broadcast", |_shard| Broadcast::default()).listen(address);
    let mut engine = Engine::builder().shards(2).service(service).start()?;
    println!(
        "broadcast at {} on {}",
        engine.addresses()[0],
        engine.driver()
    );
    engine.join()?;
    Ok(())
}
