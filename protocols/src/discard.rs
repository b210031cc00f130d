//! Discard: takes everything and answers nothing (RFC 863).
//!
//! What arrived is counted by the engine, as for any service. Discard keeps nothing.

use ringmill_engine::Protocol;

/// The discard service on one shard: every handler's default is what it does.
#[derive(Debug, Default)]
pub struct Discard;

impl Protocol for Discard {
    type Message = ();
}
