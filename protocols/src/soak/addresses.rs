//! Which addresses a connection goes from and to: sources and destinations are dealt evenly, so that
//! no pair of them runs out of ports before the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;

use ringmill_engine::{Address, Connect};

/// Addresses of one range that are used: a source beyond brings nothing, as each has thousands of
/// ports.
const RANGE_ADDRESSES_MAX: u128 = 1 << 24;

/// A range of local addresses: one address, or a network as in `127.1.0.0/16`, of which the first
/// and the last address are left out where there are more than two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sources {
    first: IpAddr,
    count: u64,
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither an address nor a network.
    #[error("'{0}' is neither an address nor a network: use 10.0.0.7 or 127.1.0.0/16")]
    NotAnAddress(String),
    /// The number after the slash is too large.
    #[error("'{text}': a network of this IP version has a prefix of 0 to {max} bits")]
    Prefix {
        /// What was given.
        text: String,
        /// The longest.
        max: u8,
    },
    /// The address has bits beyond the prefix.
    #[error("'{text}' is an address in a network: for the whole network write {network}")]
    HostBits {
        /// What was given.
        text: String,
        /// The network.
        network: String,
    },
}

impl Sources {
    /// How many addresses.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The address of a number below [`Sources::count`].
    #[must_use]
    pub fn address(&self, number: u64) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(
                first.to_bits().wrapping_add(number as u32),
            )),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(
                first.to_bits().wrapping_add(u128::from(number)),
            )),
        }
    }
}

impl Sources {
    /// The addresses of these numbers alone, all below [`Sources::count`].
    #[must_use]
    pub fn part(&self, numbers: Range<u64>) -> Self {
        Self {
            first: self.address(numbers.start),
            count: numbers.end.min(self.count).saturating_sub(numbers.start),
        }
    }
}

impl From<IpAddr> for Sources {
    fn from(first: IpAddr) -> Self {
        Self { first, count: 1 }
    }
}

impl FromStr for Sources {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let not = || AddressError::NotAnAddress(text.to_owned());
        let Some((address, prefix)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Self::from).map_err(|_| not());
        };
        let address: IpAddr = address.parse().map_err(|_| not())?;
        let (bits, max) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let prefix: u8 = prefix.parse().map_err(|_| not())?;
        if prefix > max {
            let text = text.to_owned();
            return Err(AddressError::Prefix { text, max });
        }
        let host_bits = u32::from(max - prefix);
        let mask = 1_u128
            .checked_shl(host_bits)
            .map_or(u128::MAX, |size| size - 1);
        let of = |bits: u128| match address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        if bits & mask != 0 {
            return Err(AddressError::HostBits {
                text: text.to_owned(),
                network: format!("{}/{prefix}", of(bits & !mask)),
            });
        }
        // The network's own address and its broadcast address are nobody's.
        let (skipped, count) = match mask {
            0 | 1 => (0, mask + 1),
            _ => (1, mask - 1),
        };
        Ok(Self {
            first: of(bits + skipped),
            count: count.min(RANGE_ADDRESSES_MAX) as u64,
        })
    }
}

/// Where the connections of a soak come from and go to.
#[derive(Debug, Clone)]
pub struct Addresses {
    sources: Vec<Sources>,
    sources_count: u64,
    source_ports: Option<RangeInclusive<u16>>,
    targets: Vec<Address>,
}

impl Addresses {
    /// Connections to `targets`, at least one. Without `sources` the kernel chooses the local
    /// address, without `source_ports` the port, late: one port can then serve several destinations.
    ///
    /// # Panics
    /// Without a target.
    #[must_use]
    pub fn new(
        targets: Vec<Address>,
        sources: Vec<Sources>,
        source_ports: Option<RangeInclusive<u16>>,
    ) -> Self {
        assert!(!targets.is_empty(), "a soak has a destination");
        Self {
            sources_count: sources.iter().map(Sources::count).sum(),
            sources,
            source_ports,
            targets,
        }
    }

    /// Pairs of a local and a remote address: each has as many connections as there are ports.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        self.sources_count.max(1) * self.targets.len() as u64
    }

    /// From where to where the connection with this number goes. Any `pairs()` numbers in a row are
    /// all pairs, once each.
    #[must_use]
    pub fn connect(&self, number: u64) -> Connect {
        let sources = self.sources_count.max(1);
        let (row, column) = (number / sources, number % sources);
        let target = (row + column) % self.targets.len() as u64;
        let from = self.source(column).map(|source| {
            let port = self.source_ports.as_ref().map_or(0, |ports| {
                let count = u64::from(*ports.end()) - u64::from(*ports.start()) + 1;
                ports.start() + (number / self.pairs() % count) as u16
            });
            SocketAddr::new(source, port)
        });
        Connect {
            to: self.targets[target as usize].clone(),
            from,
        }
    }

    fn source(&self, number: u64) -> Option<IpAddr> {
        let mut left = number;
        for sources in &self.sources {
            if left < sources.count {
                return Some(sources.address(left));
            }
            left -= sources.count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_part_has_the_addresses_of_its_numbers() {
        let all: Sources = "10.0.0.0/28".parse().unwrap();
        assert_eq!(all.count(), 14);
        let parts = [0..5, 5..10, 10..14].map(|numbers| all.part(numbers));
        let of_parts = parts
            .iter()
            .flat_map(|part| (0..part.count()).map(|number| part.address(number)));
        let of_all = (0..14).map(|number| all.address(number));
        assert!(of_parts.eq(of_all));
    }

    #[test]
    fn ranges_of_addresses() {
        for (text, count, first, last) in [
            ("10.0.0.7", 1, "10.0.0.7", "10.0.0.7"),
            ("127.1.0.0/16", 65_534, "127.1.0.1", "127.1.255.254"),
            ("10.0.0.8/31", 2, "10.0.0.8", "10.0.0.9"),
            ("10.0.0.8/32", 1, "10.0.0.8", "10.0.0.8"),
            ("::1", 1, "::1", "::1"),
            ("fd00::/126", 2, "fd00::1", "fd00::2"),
            ("fd00::/64", 1 << 24, "fd00::1", "fd00::100:0"),
        ] {
            let sources: Sources = text.parse().unwrap();
            assert_eq!(sources.count(), count, "{text}");
            assert_eq!(sources.address(0).to_string(), first, "{text}");
            assert_eq!(sources.address(count - 1).to_string(), last, "{text}");
        }
        for (text, words) in [
            ("localhost", "neither"),
            ("10.0.0.0/x", "neither"),
            ("10.0.0.0/33", "0 to 32 bits"),
            ("10.0.0.7/24", "write 10.0.0.0/24"),
        ] {
            let error = text.parse::<Sources>().unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn pairs_are_dealt_evenly() {
        let target = |port| Address::Ip(SocketAddr::from(([127, 0, 0, 1], port)));
        for (sources, targets) in [(1, 1), (1, 3), (4, 2), (3, 3), (2, 4)] {
            let ranges = (0..sources)
                .map(|last| Sources::from(IpAddr::from([127, 1, 0, last])))
                .collect();
            let addresses = Addresses::new((1..=targets).map(target).collect(), ranges, None);
            let pairs = u64::from(sources) * u64::from(targets);
            assert_eq!(addresses.pairs(), pairs);
            for first in [0, 5, 1_000_003] {
                let seen: HashSet<_> = (first..first + pairs)
                    .map(|number| {
                        let connect = addresses.connect(number);
                        (connect.from, connect.to)
                    })
                    .collect();
                assert_eq!(
                    seen.len() as u64,
                    pairs,
                    "{sources} × {targets} from {first}"
                );
            }
        }
    }

    #[test]
    fn chosen_ports_differ_for_each_pair_until_all_are_used() {
        let target = Address::Ip(SocketAddr::from(([127, 0, 0, 1], 7)));
        let sources = vec!["127.1.0.0/30".parse().unwrap()];
        let addresses = Addresses::new(vec![target.clone()], sources, Some(1000..=1002));
        let seen: HashSet<_> = (0..6)
            .map(|number| addresses.connect(number).from)
            .collect();
        assert_eq!(seen.len(), 6);
        assert_eq!(addresses.connect(6), addresses.connect(0));
        let anywhere = Addresses::new(vec![target], Vec::new(), None);
        assert_eq!(anywhere.connect(9).from, None);
    }
}
