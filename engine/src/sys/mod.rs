//! The kernel boundary: safe functions over the few system calls that no crate wraps for us.
//! Together with the drivers this is the only place for `unsafe`.

pub mod clock;
pub mod eventfd;
