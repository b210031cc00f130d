//! The ringmill engine.

pub mod mailbox;
pub mod pacer;
pub mod sys;
pub mod time;
pub mod timer;
