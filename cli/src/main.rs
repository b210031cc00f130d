//! The ringmill program.
fn main() {}
