//! Which shard takes the next test: the one with the least load, among those that have a port left.
//!
//! A shard writes its own line; whoever places a test reads them all. A line a moment old costs a
//! less even placement, nothing else.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};

use ringmill_engine::ShardId;

/// What a test counts before its rate is known, in Mbit/s: so that tests set up at once spread.
const TEST_WEIGHT_MBPS: u64 = 100;

#[derive(Debug, Default)]
struct Line {
    tests: AtomicU32,
    /// What the tests of the shard sent and received lately.
    mbps: AtomicU32,
    /// Ports that are left, where they are limited.
    ports: AtomicU32,
}

/// The loads of all shards.
#[derive(Debug)]
pub(super) struct Board {
    lines: Box<[Line]>,
    limited_ports: bool,
}

impl Board {
    pub(super) fn new(shards: u16, ports: Option<&RangeInclusive<u16>>) -> Self {
        let lines = (0..shards).map(|shard| Line {
            ports: AtomicU32::new(ports.map_or(0, |ports| {
                u32::try_from(ports_of(ports, shard, shards).count()).unwrap_or(u32::MAX)
            })),
            ..Line::default()
        });
        Self {
            lines: lines.collect(),
            limited_ports: ports.is_some(),
        }
    }

    /// Chooses a shard and counts a test there, which ends with [`left`](Self::left). `None` when no
    /// shard has a port left. Among equals it is the one that asks.
    pub(super) fn place(&self, asking: ShardId) -> Option<ShardId> {
        let relaxed = Ordering::Relaxed;
        let load = |line: &Line| {
            u64::from(line.mbps.load(relaxed))
                + u64::from(line.tests.load(relaxed)) * TEST_WEIGHT_MBPS
        };
        let places = (0..).zip(&self.lines);
        let (shard, line) = places
            .filter(|(_, line)| {
                !self.limited_ports || line.ports.load(relaxed) > line.tests.load(relaxed)
            })
            .min_by_key(|(shard, line)| (load(line), *shard != asking))?;
        line.tests.fetch_add(1, relaxed);
        Some(shard)
    }

    /// A test of a shard has ended.
    pub(super) fn left(&self, shard: ShardId) {
        self.lines[usize::from(shard)]
            .tests
            .fetch_sub(1, Ordering::Relaxed);
    }

    /// A test that was placed on one shard is another's.
    pub(super) fn moved(&self, from: ShardId, to: ShardId) {
        self.left(from);
        let line = &self.lines[usize::from(to)];
        line.tests.fetch_add(1, Ordering::Relaxed);
    }

    /// What a shard's tests do now.
    pub(super) fn set_mbps(&self, shard: ShardId, mbps: u32) {
        self.lines[usize::from(shard)]
            .mbps
            .store(mbps, Ordering::Relaxed);
    }
}

/// The ports of a range that belong to one shard.
pub(super) fn ports_of(
    ports: &RangeInclusive<u16>,
    shard: ShardId,
    shards: u16,
) -> impl Iterator<Item = u16> + use<> {
    let ports = ports.clone();
    ports
        .skip(usize::from(shard))
        .step_by(usize::from(shards.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_go_where_the_least_load_is() {
        let board = Board::new(3, None);
        assert_eq!(board.place(1), Some(1));
        assert_eq!(board.place(1), Some(0));
        board.set_mbps(2, 150);
        assert_eq!(board.place(2), Some(0));
        board.left(0);
        assert_eq!(board.place(2), Some(0));
        board.set_mbps(2, 0);
        assert_eq!(board.place(0), Some(2));
    }

    #[test]
    fn ports_are_dealt_and_bound_the_tests() {
        assert_eq!(ports_of(&(10..=14), 1, 2).collect::<Vec<_>>(), [11, 13]);
        let board = Board::new(2, Some(&(10..=12)));
        let mut placed: Vec<_> = (0..4).map(|_| board.place(1)).collect();
        placed.sort_unstable();
        assert_eq!(placed, [None, Some(0), Some(0), Some(1)]);
    }
}
