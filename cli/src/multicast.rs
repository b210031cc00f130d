//! What the multicast commands share: how a person names a group and an interface, which groups and
//! rates need a second word, and the name of this host's clock.
//!
//! Groups are looked up and tried here, before any engine starts, so that a wrong one is told in
//! words. Nothing here sends.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use anyhow::Result;
use clap::{Args, ValueEnum};
use ringmill_engine::sys::socket::interface_index;
use ringmill_engine::topology::Topology;
use ringmill_engine::{Multicast, error_name};
use ringmill_protocols::multicast::group::{Reach, needs_interface, reach};
use ringmill_protocols::multicast::{Group, Rate, SlowReaders, Talk, TalkRole, wire};
use serde::{Deserialize, Serialize};

use crate::args::PlacementArgs;
use crate::as_text;
use crate::endpoint::{Addresses, Endpoint, Scheme};
use crate::exit::UsageError;
use crate::units;

/// Messages per second that a group is sent without `--no-rate-cap`: ten times the default rate.
/// Every host on the link gets them, wanted or not, where switches do not snoop.
pub const GROUP_RATE_MAX: f64 = 10_000.0;
/// Payload bytes per second that a group is sent without `--no-rate-cap`: 100 Mbit/s, which the
/// slowest port of a switch may have.
pub const GROUP_BYTE_RATE_MAX: f64 = 12_500_000.0;

/// A rate of messages, or as fast as possible.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateArg(pub Rate);

impl std::str::FromStr for RateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self(Rate::Max));
        }
        let rate = units::parse_rate(text).map_err(|error| error.to_string())?;
        // The pacer knows its own bounds.
        match ringmill_engine::pacer::Pacer::constant(rate, 0) {
            Ok(_) => Ok(Self(Rate::PerSecond(rate))),
            Err(error) => Err(format!("{error}, or 'max'")),
        }
    }
}

impl Serialize for RateArg {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Rate::Max => to.serialize_str("max"),
            Rate::PerSecond(rate) => to.serialize_f64(rate),
        }
    }
}

impl<'de> Deserialize<'de> for RateArg {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a rate such as 1000, \"10k\" or \"max\"")]
        enum Key {
            Number(f64),
            Text(String),
        }
        let text = match Key::deserialize(from)? {
            Key::Number(rate) => rate.to_string(),
            Key::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for RateArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Rate::Max => f.write_str("max"),
            Rate::PerSecond(rate) => rate.fmt(f),
        }
    }
}

/// What happens to a session that reads too slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlowReadersArg {
    /// It misses the messages that do not fit into its queue.
    #[default]
    DropNewest,
    /// It is disconnected.
    Disconnect,
}

impl From<SlowReadersArg> for SlowReaders {
    fn from(policy: SlowReadersArg) -> Self {
        match policy {
            SlowReadersArg::DropNewest => Self::DropNewest,
            SlowReadersArg::Disconnect => Self::Disconnect,
        }
    }
}

/// What a multicast server sends, and where to: its flags, and the keys of `multicast` in a file.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Messages")]
#[serde(default, deny_unknown_fields)]
pub struct MulticastSettings {
    /// Messages per second to every receiver, evenly spaced; or 'max': as fast as possible.
    #[arg(long, value_name = "RATE|max", default_value = "1000")]
    pub rate: RateArg,

    /// Bytes in each message, at least the 32 of its header.
    #[arg(long, short = 's', value_name = "SIZE", value_parser = units::parse_size, default_value = "32")]
    #[serde(with = "as_text::size")]
    pub size: u64,

    /// What happens to a session whose queue (--queue-per-connection) is full.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub slow_readers: SlowReadersArg,

    /// Routers that a datagram to a group may pass, plus one (TTL, hop limit): 1 stays on the link.
    #[arg(long, value_name = "N", default_value = "1")]
    pub ttl: u8,

    /// Also send to groups that leave the site or belong to someone: all but 239.0.0.0/8 and the
    /// IPv6 scopes up to site-local.
    #[arg(long)]
    pub any_group: bool,

    /// Also send to groups faster than 10,000 messages or 12.5 MB a second.
    #[arg(long)]
    pub no_rate_cap: bool,

    /// The interface for groups: the --interface of placement on the command line.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

impl Default for MulticastSettings {
    fn default() -> Self {
        Self {
            rate: RateArg(Rate::PerSecond(1000.0)),
            size: wire::HEADER_LEN as u64,
            slow_readers: SlowReadersArg::default(),
            ttl: 1,
            any_group: false,
            no_rate_cap: false,
            interface: None,
        }
    }
}

impl MulticastSettings {
    /// Checks what the flags say of themselves and finds the groups among the endpoints.
    ///
    /// # Errors
    /// [`UsageError`] when they contradict each other, or a group cannot be sent to.
    pub fn groups(&self, endpoints: &[Endpoint]) -> Result<Vec<Group>> {
        let udp: Vec<_> = endpoints
            .iter()
            .filter(|endpoint| endpoint.scheme() == Scheme::Udp)
            .collect();
        let len_max = if udp.is_empty() {
            wire::MESSAGE_LEN_MAX
        } else {
            wire::DATAGRAM_LEN_MAX
        };
        let least = wire::HEADER_LEN;
        if !(least as u64..=len_max as u64).contains(&self.size) {
            return usage(format!(
                "--size {}: from {least} to {len_max} bytes",
                self.size
            ));
        }
        if self.ttl == 0 {
            return usage("--ttl 0 reaches nobody: 1 stays on the link".into());
        }
        if !udp.is_empty() && !self.no_rate_cap {
            self.check_rate(udp.len())?;
        }
        let interface = self.interface.as_deref();
        udp.into_iter()
            .map(|endpoint| {
                let group = group(endpoint, interface, self.ttl, self.any_group)?;
                try_group(TalkRole::Send, endpoint, &group, interface)?;
                Ok(group)
            })
            .collect()
    }

    /// The cap is on what a link gets, so on all groups together.
    fn check_rate(&self, groups: usize) -> Result<()> {
        let over = match self.rate.0 {
            Rate::Max => Some("as fast as possible may be".to_owned()),
            Rate::PerSecond(rate) => {
                let rate = rate * groups as f64;
                let bytes = rate * self.size as f64;
                if rate > GROUP_RATE_MAX {
                    Some(format!("{} is", units::format_rate(rate)))
                } else if bytes > GROUP_BYTE_RATE_MAX {
                    Some(format!("{} is", units::format_byte_rate(bytes)))
                } else {
                    None
                }
            }
        };
        match over {
            None => Ok(()),
            Some(words) => usage(format!(
                "--rate {}: {words} more than {} messages or {} bytes a second, which every host of \
                 a link may get; add --no-rate-cap if this one can take it",
                self.rate,
                units::format_count(GROUP_RATE_MAX as u64),
                units::format_count(GROUP_BYTE_RATE_MAX as u64),
            )),
        }
    }
}

fn usage<T>(words: String) -> Result<T> {
    Err(UsageError(words).into())
}

/// The group of a `udp://` endpoint, with the interface that was named.
///
/// # Errors
/// [`UsageError`] when it is no group, leaves the site without `any_group`, or the interface is not
/// there or is needed.
pub fn group(
    endpoint: &Endpoint,
    interface: Option<&str>,
    ttl: u8,
    any_group: bool,
) -> Result<Group> {
    let Addresses::Sockets(addresses) = endpoint.connect_addresses()? else {
        return usage(format!("{endpoint}: a group has a udp:// endpoint"));
    };
    let Some(mut to) = addresses.first().copied() else {
        return usage(format!("{endpoint} has no address"));
    };
    match reach(to.ip()) {
        Reach::NoGroup => {
            return usage(format!(
                "{endpoint} is no multicast group: take one of 239.0.0.0/8, such as \
                 udp://239.255.0.1:3334, or of ff05::/16"
            ));
        }
        Reach::Beyond if !any_group => {
            return usage(format!(
                "{endpoint} may leave this site, or belongs to someone: take a group of \
                 239.0.0.0/8 or ff05::/16, or add --any-group"
            ));
        }
        Reach::Beyond | Reach::Site => {}
    }
    let mut index = match interface {
        None => 0,
        Some(name) => interface_index(name).or_else(|_| {
            usage(format!(
                "--interface {name}: there is no such interface here; `ip link` lists them"
            ))
        })?,
    };
    if let SocketAddr::V6(v6) = &mut to {
        match (v6.scope_id(), index) {
            (0, 0) if needs_interface(IpAddr::V6(*v6.ip())) => {
                return usage(format!(
                    "{endpoint} is another group on each interface: say which with --interface"
                ));
            }
            (0, chosen) if needs_interface(IpAddr::V6(*v6.ip())) => {
                *v6 = SocketAddrV6::new(*v6.ip(), v6.port(), v6.flowinfo(), chosen);
            }
            (0, _) => {}
            (zone, 0) => index = zone,
            (zone, chosen) if zone != chosen => {
                return usage(format!(
                    "{endpoint} names another interface than --interface; leave one out"
                ));
            }
            _ => {}
        }
    }
    Ok(Group {
        to,
        multicast: Multicast {
            interface: index,
            hops: ttl,
            ..Multicast::default()
        },
    })
}

/// Opens the socket of one end of a group and closes it: why it cannot be, in words.
///
/// # Errors
/// [`UsageError`] with what to do.
pub fn try_group(
    role: TalkRole,
    endpoint: &Endpoint,
    group: &Group,
    interface: Option<&str>,
) -> Result<()> {
    let (open, multicast) = Talk::open(role, group);
    let Err(error) = multicast.probe(&open) else {
        return Ok(());
    };
    let place = interface.map_or(String::new(), |name| format!(" on {name}"));
    let verb = match role {
        TalkRole::Send => "send to",
        TalkRole::Receive => "join",
    };
    let remedy = match error.raw_os_error() {
        Some(libc::ENETUNREACH) if group.to.is_ipv6() && interface == Some("lo") => {
            "loopback carries no IPv6 groups: take an IPv4 group, or another interface (a veth pair will do)"
        }
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV | libc::EADDRNOTAVAIL)
            if interface.is_none() =>
        {
            "no route leads to it: name the interface with --interface, such as lo or eth0"
        }
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV | libc::EADDRNOTAVAIL) => {
            "the interface has no route to it, is down, or lacks an address of this IP version"
        }
        Some(libc::EADDRINUSE) => "a program that does not share the port holds it",
        Some(libc::ENOBUFS) => "this socket is in too many groups (net.ipv4.igmp_max_memberships)",
        Some(libc::EACCES | libc::EPERM) => "a firewall or a port below 1024 forbids it",
        _ => "see `ip maddr` and `ip route`",
    };
    usage(format!(
        "cannot {verb} {endpoint}{place}: {} ({}); {remedy}",
        words(&error),
        error
    ))
}

fn words(error: &io::Error) -> &'static str {
    error_name(error.raw_os_error().unwrap_or(0))
}

/// Takes the interface for groups out of the flags of placement. It stays there too where the
/// machine knows it as a card to run near to; loopback, say, is none.
///
/// # Errors
/// [`UsageError`] for more than one.
pub fn take_interface(placement: &mut PlacementArgs) -> Result<Option<String>> {
    if placement.interface.len() > 1 {
        return usage("--interface: a group has one; give it once".into());
    }
    let name = placement.interface.first().cloned();
    if let Some(name) = &name {
        let known = Topology::read()
            .is_ok_and(|machine| machine.interfaces.iter().any(|card| card.name == *name));
        if !known {
            placement.interface.clear();
        }
    }
    Ok(name)
}

/// The same where there are groups among the endpoints; else the flag is about placement alone.
///
/// # Errors
/// As [`take_interface`].
pub fn take_interface_for(
    placement: &mut PlacementArgs,
    endpoints: &[Endpoint],
) -> Result<Option<String>> {
    if endpoints
        .iter()
        .any(|endpoint| endpoint.scheme() == Scheme::Udp)
    {
        take_interface(placement)
    } else {
        Ok(None)
    }
}

/// Names this host's monotonic clock: equal numbers mean that times can be compared. 0 where the
/// kernel does not say.
#[must_use]
pub fn clock() -> u32 {
    let Ok(boot) = std::fs::read("/proc/sys/kernel/random/boot_id") else {
        return 0;
    };
    // A time namespace moves CLOCK_MONOTONIC (time_namespaces(7)).
    let namespace = std::fs::read_link("/proc/self/ns/time").unwrap_or_default();
    let bytes = boot.iter().chain(namespace.as_os_str().as_encoded_bytes());
    // FNV-1a: any hash that is the same in every build will do.
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    hash.max(1)
}

/// A number for a sender's sources that another start does not have: the key of a fresh standard
/// hasher, from the system.
#[must_use]
pub fn source() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        settings: MulticastSettings,
        #[arg(long)]
        interface: Option<String>,
    }

    fn groups(flags: &str, endpoint: &str) -> Result<Vec<Group>, String> {
        let flags = Flags::parse_from(std::iter::once("test").chain(flags.split_whitespace()));
        let settings = MulticastSettings {
            interface: flags.interface,
            ..flags.settings
        };
        let endpoints = endpoint.split_whitespace().map(|one| one.parse().unwrap());
        settings
            .groups(&endpoints.collect::<Vec<_>>())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_refused_and_what_to_do() {
        let lo = "--interface lo";
        for (flags, endpoint, remedy) in [
            (lo, "udp://192.0.2.1:1", "is no multicast group"),
            (lo, "udp://224.0.0.251:5353", "add --any-group"),
            (lo, "udp://[ff0e::1]:1", "add --any-group"),
            ("", "udp://[ff02::1:2]:1", "say which with --interface"),
            (
                "--interface nonesuch0",
                "udp://239.1.2.3:1",
                "`ip link` lists",
            ),
            (
                "--interface lo --rate 10001",
                "udp://239.1.2.3:1",
                "--no-rate-cap",
            ),
            (
                "--interface lo --rate 6k",
                "udp://239.1.2.3:1 udp://239.1.2.4:1",
                "--no-rate-cap",
            ),
            (
                "--interface lo --rate max",
                "udp://239.1.2.3:1",
                "--no-rate-cap",
            ),
            (
                "--interface lo --size 60k --rate 1000",
                "udp://239.1.2.3:1",
                "--no-rate-cap",
            ),
            ("--size 31", "tcp://:1", "from 32 to 1048576"),
            (
                "--size 65508 --rate 1",
                "udp://239.1.2.3:1",
                "from 32 to 65507",
            ),
            ("--ttl 0", "tcp://:1", "1 stays on the link"),
        ] {
            let error = groups(flags, endpoint).expect_err(endpoint);
            assert!(error.contains(remedy), "{flags} {endpoint}: {error}");
        }
    }

    #[test]
    fn what_is_sent_to() {
        let found = groups("--interface lo", "udp://239.255.0.1:3334").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].multicast.hops, 1);
        assert_ne!(found[0].multicast.interface, 0);
        for (flags, endpoint) in [
            (
                "--interface lo --rate 1M --no-rate-cap",
                "udp://239.1.2.3:1",
            ),
            ("--interface lo --any-group --ttl 4", "udp://224.1.2.3:1"),
        ] {
            assert_eq!(groups(flags, endpoint).unwrap().len(), 1, "{flags}");
        }
        assert_eq!(groups("--rate max --size 1M", "tcp://:1").unwrap(), []);
    }

    #[test]
    fn rates_as_people_write_them() {
        for (text, rate) in [
            ("max", Some(Rate::Max)),
            ("1k", Some(Rate::PerSecond(1000.0))),
            ("0", None),
            ("1e10", None),
            ("fast", None),
        ] {
            let read: Result<RateArg, _> = text.parse();
            assert_eq!(read.ok().map(|rate| rate.0), rate, "{text}");
        }
    }
}
