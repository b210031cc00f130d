//! Protocol modules of ringmill: bytes and time in, bytes and timers out.
//!
//! Each module is a [`Protocol`](ringmill_engine::Protocol) or a part of one. Nothing here makes a
//! system call or reads a clock, so every module runs on io_uring, on epoll and in the simulator.

#![forbid(unsafe_code)]

pub mod backlog;
pub mod capacity;
pub mod chat;
pub mod control;
pub mod discard;
pub mod dns;
pub mod echo;
pub mod guard;
pub mod interactive;
pub mod load;
pub mod multicast;
pub mod nat;
pub mod soak;
