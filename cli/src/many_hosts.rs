//! What is different on each of many hosts that run the same command line: its seed, and its part of
//! the source addresses.
//!
//! Everything else is the same everywhere: `--connections` and `--rate` are each host's own.

use std::ops::Range;

use clap::Args;
use serde_json::{Value, json};

use crate::exit::UsageError;

/// Which of many hosts this is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Many hosts")]
pub struct HostArgs {
    /// Which of many hosts this is, counted from 0: each has random numbers of its own. A Kubernetes
    /// indexed Job says it by itself.
    #[arg(long, value_name = "N", env = "JOB_COMPLETION_INDEX")]
    pub host_index: Option<u32>,

    /// How many hosts there are: each takes its part of --sources.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub hosts: Option<u32>,
}

impl HostArgs {
    /// Refuses an index beyond the number of hosts.
    ///
    /// # Errors
    /// That, or a number of hosts without an index.
    pub fn check(&self) -> Result<(), UsageError> {
        match (self.host_index, self.hosts) {
            (None, Some(hosts)) => Err(UsageError(format!(
                "--hosts {hosts}: which of them is this? Say it by --host-index, from 0"
            ))),
            (Some(index), Some(hosts)) if index >= hosts => Err(UsageError(format!(
                "--host-index {index}: {hosts} hosts are counted from 0 to {}",
                hosts - 1
            ))),
            _ => Ok(()),
        }
    }

    /// The seed of this host: that of the user without an index, else one that no other index has, so
    /// that hosts draw independent numbers and each run can be repeated.
    #[must_use]
    pub fn seed(&self, seed: u64) -> u64 {
        let Some(index) = self.host_index else {
            return seed;
        };
        // The output function of SplitMix64 (Steele, Lea, Flood 2014): a permutation, so two indices
        // never meet.
        let step = (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut mixed = seed.wrapping_add(step);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Which of so many source addresses are this host's: all without `--hosts`, else its part; parts
    /// differ by one at most.
    ///
    /// # Errors
    /// What [`HostArgs::check`] says, or fewer addresses than hosts.
    pub fn part(&self, addresses: u64) -> Result<Range<u64>, UsageError> {
        self.check()?;
        let (Some(index), Some(hosts)) = (self.host_index, self.hosts) else {
            return Ok(0..addresses);
        };
        if addresses == 0 {
            return Ok(0..0);
        }
        if addresses < u64::from(hosts) {
            return Err(UsageError(format!(
                "--sources: {addresses} addresses for {hosts} hosts; each needs at least one"
            )));
        }
        let edge = |index: u32| {
            let edge = u128::from(addresses) * u128::from(index) / u128::from(hosts);
            // No more than `addresses`, for the index is no more than the number of hosts.
            edge as u64
        };
        Ok(edge(index)..edge(index + 1))
    }

    /// What the settings of a report say beside: the seed that was really used.
    #[must_use]
    pub fn seed_setting(&self, seed: u64) -> Option<(String, Value)> {
        self.host_index?;
        Some((SEED_OF_HOST.to_owned(), json!(self.seed(seed))))
    }
}

/// The setting that says which seed a host had; different on each.
pub const SEED_OF_HOST: &str = "seed_of_host";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn host(host_index: Option<u32>, hosts: Option<u32>) -> HostArgs {
        HostArgs { host_index, hosts }
    }

    #[test]
    fn each_host_has_a_seed_of_its_own() {
        assert_eq!(host(None, None).seed(42), 42);
        let mut seeds: BTreeSet<u64> = (0..1000).map(|n| host(Some(n), None).seed(42)).collect();
        assert_eq!(seeds.len(), 1000);
        seeds.insert(42);
        assert_eq!(seeds.len(), 1001, "nor is any of them the user's");
        // The same on every host and in every version: a run must be repeatable.
        assert_eq!(host(Some(0), None).seed(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(host(Some(1), Some(2)).seed(0), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn parts_cover_all_addresses_once() {
        for (addresses, hosts) in [(4, 4), (10, 3), (254, 16), (1_u64 << 63, 7)] {
            let parts: Vec<_> = (0..hosts)
                .map(|n| host(Some(n), Some(hosts)).part(addresses).unwrap())
                .collect();
            assert_eq!(parts[0].start, 0);
            assert_eq!(parts[parts.len() - 1].end, addresses);
            for pair in parts.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
            }
            let lengths = parts.iter().map(|part| part.end - part.start);
            assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }
        assert_eq!(host(Some(3), None).part(8).unwrap(), 0..8);
        assert_eq!(
            host(Some(3), Some(4)).part(0).unwrap(),
            0..0,
            "none were named"
        );
    }

    #[test]
    fn numbers_that_contradict_each_other_are_refused() {
        for (index, hosts, addresses, words) in [
            (None, Some(4), 8, "which of them is this"),
            (Some(4), Some(4), 8, "counted from 0 to 3"),
            (Some(1), Some(4), 3, "3 addresses for 4 hosts"),
        ] {
            let error = host(index, hosts).part(addresses).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
