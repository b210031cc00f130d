//! Source addresses of clients: which of them the host has, and which a card should be given.
//!
//! One address gives a client at most 64,511 connections to one destination, so a million of them needs
//! several. Only what is missing is added, so only what was added is ever removed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use ringmill_protocols::soak::{AddressError, Sources};

/// Addresses that a card is given at most: 256 make sixteen million connections to one destination, and
/// each is a setting with a record of its own.
pub const ADDRESSES_MAX: usize = 256;
/// The value of an address that a card has.
pub const THERE: &str = "there";
/// Addresses that a line names.
const NAMED_MAX: usize = 8;

/// What `--sources` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourcesArg {
    /// How many there are, to compute with.
    Count(u64),
    /// Which.
    Addresses(Vec<IpAddr>),
}

impl Default for SourcesArg {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl FromStr for SourcesArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains(['.', ':']) {
            return crate::units::parse_count(text).map(Self::Count).map_err(|_| {
                format!("'{text}' is neither a number nor addresses such as 10.0.1.0/28 or 10.0.1.7,10.0.1.8")
            });
        }
        let mut addresses = Vec::new();
        for part in text.split(',') {
            for address in range(part.trim())? {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        if addresses.len() > ADDRESSES_MAX {
            return Err(format!(
                "'{text}' are {} addresses; a card is given at most {ADDRESSES_MAX}, enough for \
                 millions of connections",
                addresses.len()
            ));
        }
        Ok(Self::Addresses(addresses))
    }
}

impl SourcesArg {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Count(count) => *count,
            Self::Addresses(addresses) => addresses.len() as u64,
        }
    }

    /// Which, where that is said.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Count(_) => &[],
            Self::Addresses(addresses) => addresses,
        }
    }
}

/// The addresses of a range as `ringmill soak` understands it, if a card may be given so many.
fn range(text: &str) -> Result<impl Iterator<Item = IpAddr>, String> {
    let range: Sources = text
        .parse()
        .map_err(|error: AddressError| error.to_string())?;
    if range.count() > ADDRESSES_MAX as u64 {
        return Err(format!(
            "'{text}' has too many addresses; a card is given at most {ADDRESSES_MAX}"
        ));
    }
    Ok((0..range.count()).map(move |number| range.address(number)))
}

/// How wanted addresses stand on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// On the card.
    pub there: Vec<IpAddr>,
    /// On another card: they serve as well.
    pub elsewhere: BTreeMap<IpAddr, String>,
    /// Nowhere.
    pub missing: Vec<IpAddr>,
}

/// Compares the wanted addresses with those of a host, each with its card.
#[must_use]
pub fn standing(wanted: &[IpAddr], interface: &str, has: &[(String, IpAddr)]) -> Standing {
    let mut standing = Standing::default();
    for address in wanted {
        let cards: Vec<&str> = has
            .iter()
            .filter(|(_, other)| other == address)
            .map(|(card, _)| card.as_str())
            .collect();
        // Every address of 127.0.0.0/8 is this host's without being on a card.
        let is_loopback = matches!(address, IpAddr::V4(address) if address.is_loopback());
        if cards.contains(&interface) {
            standing.there.push(*address);
        } else if let Some(card) = cards.first().copied().or(is_loopback.then_some("lo")) {
            standing.elsewhere.insert(*address, card.to_owned());
        } else {
            standing.missing.push(*address);
        }
    }
    standing
}

/// Some addresses in words; of many only the first.
#[must_use]
pub fn listed(addresses: &[IpAddr]) -> String {
    let shown = addresses.iter().take(NAMED_MAX).map(IpAddr::to_string);
    let mut words = shown.collect::<Vec<_>>().join(", ");
    if addresses.len() > NAMED_MAX {
        words += &format!(" and {} more", addresses.len() - NAMED_MAX);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_addresses_and_networks() {
        let addresses = |list: &[&str]| {
            SourcesArg::Addresses(list.iter().map(|text| text.parse().unwrap()).collect())
        };
        for (text, expected) in [
            ("64", SourcesArg::Count(64)),
            ("1k", SourcesArg::Count(1000)),
            ("10.0.1.7", addresses(&["10.0.1.7"])),
            ("10.0.1.8/31,10.0.1.8", addresses(&["10.0.1.8", "10.0.1.9"])),
            ("10.0.1.4/30", addresses(&["10.0.1.5", "10.0.1.6"])),
            ("fd00::/126", addresses(&["fd00::1", "fd00::2"])),
            ("10.0.1.7/32, fd00::7", addresses(&["10.0.1.7", "fd00::7"])),
        ] {
            assert_eq!(text.parse::<SourcesArg>().unwrap(), expected, "{text}");
        }
        let network: SourcesArg = "10.0.1.0/24".parse().unwrap();
        assert_eq!(network.count(), 254);
        for (text, words) in [
            ("many", "neither a number nor addresses"),
            ("10.0.1.300", "neither an address nor a network"),
            ("10.0.1.0/33", "a prefix of 0 to 32 bits"),
            ("10.0.1.7/24", "for the whole network write 10.0.1.0/24"),
            ("10.0.0.0/16", "too many addresses"),
            ("::/0", "too many addresses"),
            ("10.0.1.0/24,10.0.2.0/24", "are 508 addresses"),
        ] {
            let error = text.parse::<SourcesArg>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_stand_on_the_card_elsewhere_or_nowhere() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let wanted = ["10.0.1.1", "10.0.1.2", "10.0.1.3", "127.1.0.1"].map(ip);
        let has = [
            ("eth0".to_owned(), ip("10.0.1.1")),
            ("eth1".to_owned(), ip("10.0.1.2")),
        ];
        let standing = standing(&wanted, "eth0", &has);
        assert_eq!(standing.there, [ip("10.0.1.1")]);
        assert_eq!(standing.missing, [ip("10.0.1.3")]);
        let elsewhere: Vec<&str> = standing.elsewhere.values().map(String::as_str).collect();
        assert_eq!(elsewhere, ["eth1", "lo"]);
    }
}
