//! The capacity test: the UDP speed test of TR-471 with the protocol of RFC 9946 (version 20) and
//! its predecessor (version 11), as OB-UDPST 9.0.0 and 8.2.0 speak them.
//!
//! Everything here is bytes and time in, bytes and time out: no system call, no clock is read, no
//! socket is seen. Two clocks come in from outside, see [`time::Instants`]: the monotonic one rules
//! every timer, the wall clock goes only where the wire wants it.

pub mod adjust;
pub mod admission;
pub mod auth;
pub mod batch;
pub mod burst;
pub mod client;
pub mod connection;
pub mod event;
pub mod intervals;
pub mod keys;
pub mod limited;
pub mod pacing;
pub mod parameters;
pub mod pdu;
pub mod rates;
pub mod receiver;
pub mod sender;
pub mod sequence;
pub mod server;
pub mod setup;
pub mod starved;
pub mod summary;
pub mod time;
pub mod transmit;

use ringmill_engine::time::Nanos;

/// UDP port on which a server takes setup requests.
pub const CONTROL_PORT: u16 = 24601;
/// The control port of OB-UDPST 8.2.0 and older.
pub const CONTROL_PORT_V11: u16 = 25000;
/// Silence of the peer after which the user is warned and the peer is told (`rxStopped`).
pub const NO_TRAFFIC_WARNING: Nanos = 1_000_000_000;
/// Silence of the peer after which a connection ends; also the limit of setup with activation on
/// the client, and how long a server waits for the activation request.
pub const NO_TRAFFIC_TIMEOUT: Nanos = 3_000_000_000;
/// What a server adds to the duration of a test before it begins the stop.
pub const STOP_GRACE: Nanos = 500_000_000;
/// What a client adds to the duration of a test before it stops by itself: the server's grace and
/// its whole wait for traffic must have passed.
pub const FORCED_STOP_GRACE: Nanos = NO_TRAFFIC_TIMEOUT + STOP_GRACE;
/// Least delay before a transmitter first fires; it is drawn evenly, in whole microseconds.
pub const START_DELAY_MIN: Nanos = 5_000_000;
/// Largest delay before a transmitter first fires.
pub const START_DELAY_MAX: Nanos = 50_000_000;
/// How far a signature's time may be from now, in seconds, with version 20.
pub const AUTH_WINDOW_S: u32 = 5;
/// The same with OB-UDPST 8.2.0 and older, which a server may grant to such clients.
pub const AUTH_WINDOW_V11_S: u32 = 150;
/// Most connections in one test (`mcCount`).
pub const CONNECTIONS_MAX: u8 = 24;
/// How often a client with several connections counts those that live.
pub const CONNECTION_CHECK_INTERVAL: Nanos = 10_000_000;
/// Most warnings shown for one connection, counting those about bad data PDUs.
pub const WARNINGS_PER_CONNECTION_MAX: u32 = 10;
/// Most messages of information shown for one connection.
pub const INFOS_PER_CONNECTION_MAX: u32 = 10;
/// Most alerts shown; a client gives up a connection after so many bad activation responses.
pub const ALERTS_MAX: u32 = 10;
