//! Connections opened at a rate of their own, with as many connects in flight as that takes, and
//! opened again when they are lost, if that is wanted.
//!
//! The rate is a schedule like that of the queries: a slow connect does not delay the next one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ringmill_engine::pacer::Pacer;
use ringmill_engine::{Address, Closed, Connect, Context, Nanos, Open, StreamId, error_name};

use super::client::{DnsLoad, Handle, OPEN_MORE, State};
use crate::load::{CONNECTS_IN_FLIGHT_MAX, Command, Phase};

/// Connects in flight on one shard when the user has said how fast to open: at 10,000 a second,
/// answers may take more than a second and a half.
const PACED_IN_FLIGHT_MAX: usize = 16_384;
/// Sockets opened in one turn, so that opening many does not stop the shard.
const OPENS_PER_TURN: usize = 256;
/// After a connect failed for want of a local resource, or before a refused one is tried again, the
/// next ones wait this long.
const PAUSE: Nanos = 100_000_000;
/// Such pauses without one connection opened between them. What is still missing after two seconds
/// (files, ports) will be missing: the rest fails at once and the run begins with what there is.
const PAUSES_MAX: u32 = 20;

impl DnsLoad {
    pub(super) fn begin_opening(&mut self, ctx: &mut Context<'_, Command>) {
        let part = self.connections.len() as f64 / self.config.connections.max(1) as f64;
        self.open_pacer = self
            .config
            .open_rate
            .and_then(|rate| Pacer::constant(rate * part, ctx.now()).ok());
        self.open_more(ctx);
    }

    /// Opens what is due, and sets the time to go on.
    pub(super) fn open_more(&mut self, ctx: &mut Context<'_, Command>) {
        let now = ctx.now();
        let in_flight_max = match self.open_pacer {
            Some(_) => PACED_IN_FLIGHT_MAX,
            None => CONNECTS_IN_FLIGHT_MAX,
        };
        for _ in 0..OPENS_PER_TURN {
            if self.to_open.is_empty() || self.ended || self.in_flight >= in_flight_max {
                break;
            }
            if now < self.open_paused_until {
                break;
            }
            if let Some(pacer) = &mut self.open_pacer
                && pacer.pop_due(now).is_none()
            {
                break;
            }
            let Some(at) = self.to_open.pop() else { break };
            self.open_one(ctx, at);
        }
        // A free place in flight is told by the connect that leaves it.
        let goes_on = !self.to_open.is_empty() && !self.ended && self.in_flight < in_flight_max;
        if goes_on && !self.open_timer_set {
            self.open_timer_set = true;
            let next = self.open_pacer.as_ref().map_or(now, Pacer::next_intended);
            ctx.set_timer(next.max(self.open_paused_until), OPEN_MORE);
        }
        self.check_ready();
    }

    fn open_one(&mut self, ctx: &mut Context<'_, Command>, at: u32) {
        let from = self.config.source(self.first + at as usize);
        let opened = if self.config.datagrams {
            self.open_socket(ctx, at, from)
        } else {
            let connect = Connect {
                to: self.config.target.clone(),
                from,
            };
            ctx.connect(&connect).map(|stream| {
                if self.of_stream.len() <= stream.index() {
                    self.of_stream.resize(stream.index() + 1, 0);
                }
                self.of_stream[stream.index()] = at;
                let connection = &mut self.connections[at as usize];
                connection.handle = Some(Handle::Stream(stream));
                connection.state = State::Opening;
                self.in_flight += 1;
            })
        };
        if let Err(error) = opened {
            self.failed_to_open(at, error.raw_os_error().unwrap_or(0), ctx.now());
        }
    }

    fn open_socket(
        &mut self,
        ctx: &mut Context<'_, Command>,
        at: u32,
        from: Option<SocketAddr>,
    ) -> std::io::Result<()> {
        let Address::Ip(peer) = self.config.target else {
            return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
        };
        let any: IpAddr = if peer.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = ctx.open(&Open {
            local: from.unwrap_or(SocketAddr::new(any, 0)),
            peer: Some(peer),
        })?;
        ctx.set_socket_tag(socket, u64::from(at));
        self.connections[at as usize].handle = Some(Handle::Socket(socket));
        self.now_open(at);
        Ok(())
    }

    /// A connection may be used.
    fn now_open(&mut self, at: u32) {
        self.recorder.tally.opened += 1;
        self.open_pauses = 0;
        self.connections[at as usize].state = State::Open(self.open.len() as u32);
        self.open.push(at);
        self.settle();
    }

    /// A connect came to an end for the first time, one way or the other.
    fn settle(&mut self) {
        self.settled = (self.settled + 1).min(self.connections.len());
    }

    fn failed_to_open(&mut self, at: u32, errno: i32, now: Nanos) {
        self.recorder.tally.open_failed += 1;
        self.recorder.failed(("connect", error_name(errno)));
        let is_local = matches!(
            errno,
            libc::EADDRNOTAVAIL | libc::EAGAIN | libc::ENOBUFS | libc::EMFILE | libc::ENFILE
        );
        let again = self.config.reopen && self.running;
        if again {
            self.open_paused_until = now + PAUSE;
        } else if is_local && now >= self.open_paused_until && self.open_pauses < PAUSES_MAX {
            self.open_pauses += 1;
            self.open_paused_until = now + PAUSE;
        }
        if again {
            self.to_open.push(at);
        }
        self.settle();
    }

    fn check_ready(&mut self) {
        self.recorder.set_settled(self.settled);
        if self.settled == self.connections.len() && !self.running && !self.ended {
            self.publish();
            self.recorder.set_phase(Phase::Ready);
        }
    }

    pub(super) fn is_open(&mut self, ctx: &mut Context<'_, Command>, stream: StreamId) {
        self.in_flight -= 1;
        if self.ended {
            // The run ended while it was being connected.
            ctx.close(stream);
            return;
        }
        self.now_open(self.of_stream[stream.index()]);
        self.open_more(ctx);
    }

    pub(super) fn is_closed(
        &mut self,
        ctx: &mut Context<'_, Command>,
        stream: StreamId,
        reason: Closed,
    ) {
        let at = self.of_stream[stream.index()];
        let connection = &self.connections[at as usize];
        if connection.handle != Some(Handle::Stream(stream)) {
            return;
        }
        match connection.state {
            State::Opening => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.take_out(at);
                if !self.ended {
                    let errno = match reason {
                        Closed::Error(errno) => errno,
                        _ => libc::ECANCELED,
                    };
                    self.failed_to_open(at, errno, ctx.now());
                    self.open_more(ctx);
                }
            }
            State::Open(_) => {
                self.take_out(at);
                if self.done {
                    return;
                }
                self.recorder.tally.closed_early += 1;
                let words = match reason {
                    Closed::Error(errno) => error_name(errno),
                    Closed::Normally => "closed by peer",
                    Closed::Idle | Closed::Stalled => "timed out",
                    Closed::Stopping => "interrupted",
                };
                self.recorder.failed(("connection", words));
                if self.config.reopen && !self.ended {
                    self.to_open.push(at);
                    self.open_more(ctx);
                }
            }
            State::Closed => {}
        }
    }
}
