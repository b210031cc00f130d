//! One shard per CPU, each with its own io_uring, sockets, buffers, timers and protocol state.
//!
//! A protocol is a struct with handlers. The engine runs an instance of it on every shard and
//! carries bytes between its handlers and the kernel, in batches and without copying. This is a
//! whole server, here with a client to show that it serves:
//!
//! ```
//! use ringmill_engine::{Buffer, Context, Engine, Protocol, Service, StreamId};
//! use std::io::{Read, Write};
//!
//! /// Answers every message with the same bytes in capitals.
//! struct Shout;
//!
//! impl Protocol for Shout {
//!     type Message = ();
//!
//!     fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
//!         let answer = data.to_ascii_uppercase();
//!         if !ctx.send(stream, answer).is_queued() {
//!             ctx.close(stream); // the peer does not read: our policy is to close
//!         }
//!     }
//! }
//!
//! let service = Service::new("shout", |_shard| Shout).listen("127.0.0.1:0".parse::<std::net::SocketAddr>()?);
//! let mut engine = Engine::builder().shards(2).service(service).start()?;
//!
//! let address = engine.addresses()[0].address.to_string();
//! let mut client = std::net::TcpStream::connect(address)?;
//! client.write_all(b"hello")?;
//! let mut answer = [0; 5];
//! client.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"HELLO");
//!
//! drop(client);
//! engine.stop();
//! engine.join()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To send back what arrived without a copy, give the [`Buffer`] itself to
//! [`send`](Context::send): it returns to the kernel's receive ring when the send is done.
//!
//! # What is where
//!
//! | to … | see |
//! |---|---|
//! | write a protocol | [`Protocol`] and its [`Context`] |
//! | run it | [`Engine::builder`], [`Service`], [`Limits`] |
//! | choose CPUs | [`topology`] |
//! | handle datagrams in batches | [`Datagram`], [`Transmit`] |
//! | talk between shards | [`Context::post`], [`Controller`] |
//! | pace sends | [`pacer`], [`Context::set_timer`] |
//! | read counters | [`Engine::metrics`], [`metrics`] |
//! | test without a kernel | [`driver::sim`] |
//!
//! Two more whole programs are in `engine/examples/`: `broadcast` (shards that talk) and `beacon`
//! (timers, pacing, datagrams).
//!
//! # Coming from NetCoreServer
//!
//! There a class is derived for each server, session and client, and callbacks run on pool threads.
//! Here one [`Protocol`] serves all streams of its shard, on that shard's thread only.
//!
//! | NetCoreServer | here |
//! |---|---|
//! | `TcpServer(address, port)`, endpoint | [`Service::listen`] with an [`Address`]; any number, IPv4, IPv6, Unix |
//! | `UdpServer(address, port)` | [`Service::bind`] |
//! | `TcpClient`, `UdpClient` constructors | [`Context::connect`] with a [`Connect`]; [`Context::open`] with an [`Open`] |
//! | `Start`, `Stop`, `Restart` | [`Builder::start`]; [`Engine::stop`] and [`Engine::join`]; start a new engine |
//! | `Connect`, `Disconnect`, `Reconnect` (asynchronous) | [`Context::connect`]; [`Context::close`] or [`Context::reset`]; connect again in [`Protocol::closed`] |
//! | `Send(bytes)` on a session or client | [`Context::send`], answered by [`Sent`]: queued, full or closed |
//! | `Send(endpoint, bytes)` of UDP | [`Context::send_datagrams`] with a [`Transmit`]: one or many datagrams |
//! | `Receive` of UDP | nothing to call: [`Protocol::datagrams`] gets batches; [`Context::set_socket_reading`] pauses |
//! | `Multicast(bytes)` to all sessions | one `Arc` to each shard by [`Context::post`], then [`Context::send`] of a [`Fanned`] to each stream (example `broadcast`); for slow readers [`Context::send_within`] and [`Context::drop_oldest`] |
//! | `DisconnectAll` | [`Context::close`] for each stream of the shard; [`Engine::stop`] for all |
//! | `FindSession(id)` | a [`StreamId`] is the handle itself; ids that outlived their stream are answered "closed" |
//! | session id (random UUID) | [`StreamId`]: shard-local, never confused with a later stream |
//! | handlers `OnStarted`, `OnStopped` | [`Protocol::start`], [`Protocol::stopping`], [`Protocol::stopped`] |
//! | `OnConnected` of a session, of a client | [`Protocol::accepted`], [`Protocol::connected`] |
//! | `OnDisconnected`, `OnError(socket error)` | [`Protocol::closed`] with a [`Closed`] reason; nothing is swallowed. [`Protocol::socket_error`] for datagrams |
//! | `OnReceived(buffer)` | [`Protocol::received`]; give the [`Buffer`] back to `send` to answer without a copy |
//! | `OnSent(sent, pending)` | [`Context::queued_bytes`], [`Context::queued_messages`] |
//! | `OnEmpty` | [`Protocol::drained`], when half of a full queue is free |
//! | counters (connected sessions, bytes pending, sent, received) | [`Engine::service_totals`], [`Engine::metrics`] |
//! | option no-delay | always on; options keep-alive, reuse address: `listen` reuses addresses, keep-alive is not offered: idle timeouts are ([`Limits::idle_timeout`]) |
//! | option reuse port | each shard has its own socket; [`Builder::share_port`] lets other processes in |
//! | receive and send buffer size | [`Limits::stream_pool_bytes`] for a whole shard; [`Limits::datagram_socket_buffers`] |
//! | send buffer limit (later releases) | [`Limits::stream_queue_bytes_max`], [`Limits::shard_queue_bytes_max`], in messages [`QueueBounds`] and [`Limits::shard_queue_messages_max`] |
//! | setup, join and leave multicast group | [`Context::open_multicast`] with a [`Multicast`]; [`Context::close_socket`] leaves |
//!
//! The engine knows no protocol, and a protocol knows no system call.

mod context;
mod control;
mod datagram;
pub mod driver;
mod engine;
mod holder;
pub mod host;
mod ids;
pub mod impairment;
mod limits;
pub mod mailbox;
pub mod metrics;
pub mod pacer;
mod payload;
mod protocol;
mod shard;
mod stream;
pub mod sys;
pub mod time;
pub mod timer;
pub mod topology;

pub use context::Context;
pub use control::Notice;
pub use datagram::{Datagram, Ecn, Transmit, segments};
pub use driver::{Address, Close, Connect, DriverKind, Multicast, Open, uring};
pub use engine::{
    BoundAddress, Builder, Controller, DriverChoice, Engine, Service, StartError, Stopper,
};
pub use holder::port_holder;
pub use ids::{ListenerId, ServiceId, ShardId, SocketId, StreamId};
pub use limits::{Dropped, Limits, QueueBounds, SocketBufferSizes};
pub use metrics::{ServiceSnapshot, ShardMetrics, ShardSnapshot};
pub use payload::{Fanned, Payload};
pub use protocol::{CONTROL, Closed, Protocol, Sent, error_name};
pub use sys::buffer::{Buffer, BufferMut};
pub use time::Nanos;
