//! The ports that one shard may give to tests, where they are limited: the one that was free longest
//! comes first, so that late datagrams of an old test seldom reach a new one.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use ringmill_engine::ShardId;

use super::board::ports_of;

/// How many ports are tried for one test where others use them too.
pub(super) const ATTEMPTS: usize = 16;

/// See the [module's page](self).
#[derive(Debug)]
pub(super) struct Ports(Option<VecDeque<u16>>);

impl Ports {
    pub(super) fn new(range: Option<&RangeInclusive<u16>>, shard: ShardId, shards: u16) -> Self {
        Self(range.map(|range| ports_of(range, shard, shards).collect()))
    }

    /// A port to try: 0 is the kernel's choice. `None` when all are taken.
    pub(super) fn take(&mut self) -> Option<u16> {
        match &mut self.0 {
            None => Some(0),
            Some(free) => free.pop_front(),
        }
    }

    /// A port that is free again, or that another program uses now.
    pub(super) fn give_back(&mut self, port: u16) {
        if let Some(free) = &mut self.0 {
            free.push_back(port);
        }
    }

    /// Whether there is a choice at all.
    pub(super) fn are_limited(&self) -> bool {
        self.0.is_some()
    }
}
