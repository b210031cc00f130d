//! The ringmill engine.

pub mod mailbox;
pub mod sys;
pub mod time;
pub mod timer;
