//! Tuning of the host: what it should be like for one kind of work, what limits it, and how to change it
//! so that it can be taken back.
//!
//! Data (`tuning/profiles`) says what is wanted and why; [`plan`] compares it with the host; [`script`]
//! prints it, [`apply`] does it and takes it back, with a record ([`state`]) of every old value;
//! [`limits`] says which limit binds first. Everything that touches the host goes through [`Host`].
//! Nothing here is on the data path, and nothing is changed without being asked for.

pub mod apply;
pub mod check;
pub mod formula;
mod host;
pub mod limits;
mod nic;
mod persist;
pub mod placement;
pub mod plan;
pub mod profile;
pub mod script;
mod setting;
pub mod sources;
pub mod state;
#[cfg(test)]
mod tests;
pub mod watch;

pub use host::{Host, HostError};
pub use nic::{Nic, NicError};
pub use setting::{NicField, NicFieldError, Setting, is_interface_name};
