//! A UDP NAT, load balancer and impairment simulator.
//!
//! Clients send to the listening address; each gets an entry with a socket of its own, from which its
//! datagrams go on to one of the destinations, and the answers come back the same way. On the way
//! they may be lost, delayed, doubled, damaged or marked, as an
//! [`Scenario`](ringmill_engine::impairment::Scenario) says. [`Nat`] is the NAT seen from outside its
//! shards.

mod control;
mod counters;
mod destination;
mod entries;
mod filter;
mod forwarder;
mod health;
mod outlets;
mod path;
mod settings;
mod tap;

pub use control::{Command, ControlError, DestinationInfo, Done, Event, Info, Message, Nat};
pub use counters::{NatCounters, NatSnapshot};
pub use destination::{Destination, DestinationTotals, State};
pub use filter::is_dtls;
pub use forwarder::Forwarder;
pub use outlets::PortReuse;
pub use settings::{Balancing, DESTINATIONS_MAX, FlowNumbers, Settings, WhenFull, flow_number};
pub use tap::{Seen, Tap};
