//! Multicast: one sender, every receiver. Over streams each session is given every message; over UDP
//! a group is, and the kernel does the rest.
//!
//! [`Sender`] is the server, [`Receivers`] the load client that counts what came by the numbers that
//! messages carry ([`wire`]), [`Talk`] the interactive pair. Which groups may be sent to without
//! asking twice is decided in [`group`].

pub mod group;
mod receive;
mod sender;
mod sequence;
mod talk;
pub mod wire;

pub use self::receive::{ReceiveConfig, Receivers};
pub use self::sender::{
    Group, PATIENCE, Rate, Sender, SenderConfig, SenderCounters, SenderSnapshot, Senders,
    SlowReaders,
};
pub use self::sequence::{AHEAD_MAX, Counts, Sequence, WINDOW};
pub use self::talk::{Talk, TalkCommand, TalkEvent, TalkReport, TalkRole};
