//! `ringmill nat` and `ringmill cf-nat` as their users have them: real processes, real sockets, a real
//! terminal.

#[path = "nat/terminal.rs"]
mod terminal;

#[path = "nat/balancing.rs"]
mod balancing;
#[path = "nat/console.rs"]
mod console;
#[path = "nat/control.rs"]
mod control;
#[path = "nat/forwarding.rs"]
mod forwarding;
#[path = "nat/impairments.rs"]
mod impairments;
#[path = "nat/namespaces.rs"]
mod namespaces;
#[path = "nat/process.rs"]
mod process;
#[path = "nat/properties.rs"]
mod properties;
#[path = "nat/rebinding.rs"]
mod rebinding;
