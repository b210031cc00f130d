//! What a bad network does to datagrams: one plain description per direction, and the engine that
//! turns it into decisions.
//!
//! The simulator and every tool that impairs real traffic use this same description. Whether a
//! datagram is lost, doubled, corrupted, held back or by how much it is delayed is a function of
//! (seed, flow number, direction, index within the flow) and of nothing else: neither the number
//! of shards nor the order in which flows are served can change it. Only what depends on time by
//! its nature (rate limit, blackout, scenario) looks at the clock that the caller gives. Nothing here
//! reads a clock, a socket or a random source.
//!
//! A datagram takes this way: size limit, blackout and loss when it arrives; the bottleneck; then
//! duplication, delay and reordering ([`Link`]). Its ECN field may be marked by the bottleneck and is
//! bleached behind it, as by a careless router on the path.

mod bottleneck;
mod counters;
mod decider;
mod link;
mod model;
mod scenario;

pub use bottleneck::{Bottleneck, ECN_CE, ECN_NOT_CAPABLE, Refused, Served};
pub use counters::{ImpairmentCounters, ImpairmentSnapshot};
pub use decider::{Decider, Decision, Direction, mix, unit};
pub use link::{Admitted, Departure, Dropped, Link, Outcome};
pub use model::{
    Blackout, Corruption, Distribution, Impairment, InvalidImpairment, Loss, Queue, Rate,
    Reordering, codel_interval_us, codel_target_us, red_probability_max, red_weight,
};
pub use scenario::{Changes, InvalidScenario, Phase, Rebinding, Scenario};

const NANOS_PER_MICRO: crate::Nanos = 1_000;

#[cfg(test)]
mod tests;
