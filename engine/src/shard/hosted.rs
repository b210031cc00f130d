//! Protocols behind one vtable: a shard does not know their message types.

use std::net::SocketAddr;

use super::Core;
use crate::ids::{ListenerId, ServiceId, SocketId, StreamId};
use crate::mailbox::Mailbox;
use crate::protocol::Closed;
use crate::{Buffer, Context, Datagram, Protocol};

/// Messages taken from one mailbox in one turn, so that a busy neighbour cannot starve sockets.
pub(super) const MESSAGES_PER_TURN_MAX: usize = 1024;

/// A protocol with its mailbox, behind one vtable: the shard does not know its message type.
pub(super) trait Hosted {
    fn start(&mut self, core: &mut Core);
    fn accepted(
        &mut self,
        core: &mut Core,
        stream: StreamId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
    );
    fn connected(&mut self, core: &mut Core, stream: StreamId);
    fn received(&mut self, core: &mut Core, stream: StreamId, data: Buffer);
    fn ended(&mut self, core: &mut Core, stream: StreamId);
    fn drained(&mut self, core: &mut Core, stream: StreamId);
    fn closed(&mut self, core: &mut Core, stream: StreamId, reason: Closed);
    fn datagrams(&mut self, core: &mut Core, socket: SocketId, batch: &mut Vec<Datagram>);
    fn socket_drained(&mut self, core: &mut Core, socket: SocketId);
    fn socket_error(&mut self, core: &mut Core, socket: SocketId, errno: i32);
    fn timer(&mut self, core: &mut Core, token: u64);
    /// Takes waiting messages; returns how many.
    fn messages(&mut self, core: &mut Core) -> usize;
    fn has_messages(&self) -> bool;
    fn stopping(&mut self, core: &mut Core);
    fn stopped(&mut self);
    /// Wakes the shards that were posted to; how many were woken so far.
    fn ring(&self) -> u64;
}

struct Host<P: Protocol> {
    protocol: P,
    service: ServiceId,
    mailbox: Mailbox<P::Message>,
}

impl<P: Protocol> Host<P> {
    #[inline]
    fn call<R>(
        &mut self,
        core: &mut Core,
        handler: impl FnOnce(&mut P, &mut Context<'_, P::Message>) -> R,
    ) -> R {
        let mut ctx = Context {
            core,
            mailbox: &mut self.mailbox,
            service: self.service,
        };
        handler(&mut self.protocol, &mut ctx)
    }
}

impl<P: Protocol> Hosted for Host<P> {
    fn start(&mut self, core: &mut Core) {
        self.call(core, |p, ctx| p.start(ctx));
    }
    fn accepted(
        &mut self,
        core: &mut Core,
        stream: StreamId,
        listener: ListenerId,
        peer: Option<SocketAddr>,
    ) {
        self.call(core, |p, ctx| p.accepted(ctx, stream, listener, peer));
    }
    fn connected(&mut self, core: &mut Core, stream: StreamId) {
        self.call(core, |p, ctx| p.connected(ctx, stream));
    }
    fn received(&mut self, core: &mut Core, stream: StreamId, data: Buffer) {
        self.call(core, |p, ctx| p.received(ctx, stream, data));
    }
    fn ended(&mut self, core: &mut Core, stream: StreamId) {
        self.call(core, |p, ctx| p.ended(ctx, stream));
    }
    fn drained(&mut self, core: &mut Core, stream: StreamId) {
        self.call(core, |p, ctx| p.drained(ctx, stream));
    }
    fn closed(&mut self, core: &mut Core, stream: StreamId, reason: Closed) {
        self.call(core, |p, ctx| p.closed(ctx, stream, reason));
    }
    fn datagrams(&mut self, core: &mut Core, socket: SocketId, batch: &mut Vec<Datagram>) {
        self.call(core, |p, ctx| p.datagrams(ctx, socket, batch));
    }
    fn socket_drained(&mut self, core: &mut Core, socket: SocketId) {
        self.call(core, |p, ctx| p.socket_drained(ctx, socket));
    }
    fn socket_error(&mut self, core: &mut Core, socket: SocketId, errno: i32) {
        self.call(core, |p, ctx| p.socket_error(ctx, socket, errno));
    }
    fn timer(&mut self, core: &mut Core, token: u64) {
        self.call(core, |p, ctx| p.timer(ctx, token));
    }
    fn messages(&mut self, core: &mut Core) -> usize {
        let mut taken = 0;
        while taken < MESSAGES_PER_TURN_MAX {
            let Some((from, message)) = self.mailbox.try_receive() else {
                break;
            };
            taken += 1;
            self.call(core, |p, ctx| p.message(ctx, from, message));
        }
        if taken > 0 {
            core.tables.metrics.services[usize::from(self.service)]
                .messages
                .add(taken as u64);
        }
        taken
    }
    fn has_messages(&self) -> bool {
        !self.mailbox.is_empty()
    }
    fn stopping(&mut self, core: &mut Core) {
        self.call(core, |p, ctx| p.stopping(ctx));
    }
    fn stopped(&mut self) {
        self.protocol.stopped();
    }
    fn ring(&self) -> u64 {
        self.mailbox.ring();
        self.mailbox.counters().doorbells_rung
    }
}

/// A service on its way into a shard: made on the control thread, opened on the shard's own.
pub(crate) struct Guest(pub(super) Box<dyn FnOnce() -> Box<dyn Hosted> + Send>);

impl Guest {
    pub(crate) fn new<P: Protocol>(
        service: ServiceId,
        mailbox: Mailbox<P::Message>,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Self {
        Self(Box::new(move || {
            Box::new(Host {
                protocol: make(),
                service,
                mailbox,
            })
        }))
    }
}
