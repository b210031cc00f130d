//! Where an entry's socket is bound: which source address, and which port when the user gave a range.
//!
//! Without a range the kernel chooses the port. With one, each shard hands out its own part of it, and
//! a port that was given back is reused as the user wants: the one that was idle longest first, as a
//! careful NAT does, or the latest first, as a careless one does, so that what is still on its way to
//! the old client reaches a new one. No socket is opened here.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Which of the ports that were given back is used next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortReuse {
    /// The one that was given back first.
    #[default]
    Oldest,
    /// The one that was given back last.
    Newest,
}

/// A port of the range in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outlet {
    source: u16,
    port: u16,
}

/// The source addresses of one shard, with their free ports.
pub(crate) struct Outlets {
    sources: Vec<IpAddr>,
    /// Free ports of each source; none without a range.
    free: Option<Vec<VecDeque<u16>>>,
    reuse: PortReuse,
    next: usize,
}

/// Ports tried for one socket before the entry is refused: others of the range may be in use by other
/// programs, but a range that is in use altogether must not cost a system call per port and datagram.
pub(crate) const ATTEMPTS_MAX: usize = 32;

impl Outlets {
    /// The outlets of one of so many shards.
    pub(crate) fn new(
        sources: &[IpAddr],
        ports: Option<&RangeInclusive<u16>>,
        reuse: PortReuse,
        shard: u16,
        shards: u16,
    ) -> Self {
        let sources = if sources.is_empty() {
            vec![
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ]
        } else {
            sources.to_vec()
        };
        let free = ports.map(|ports| {
            let mine = |port: &u16| port % shards == shard;
            let one: VecDeque<u16> = ports.clone().filter(mine).collect();
            vec![one; sources.len()]
        });
        Self {
            next: usize::from(shard) % sources.len(),
            sources,
            free,
            reuse,
        }
    }

    /// How often an opening may be tried.
    pub(crate) fn attempts(&self) -> usize {
        if self.free.is_some() {
            ATTEMPTS_MAX
        } else {
            self.sources.len()
        }
    }

    /// A local address of the IP version of the destination. `avoid` is left out if there is
    /// another one: a client that moves should come from elsewhere.
    pub(crate) fn take(
        &mut self,
        ipv6: bool,
        avoid: Option<IpAddr>,
    ) -> Option<(SocketAddr, Option<Outlet>)> {
        let count = self.sources.len();
        let order = (0..count).map(|n| (self.next + n) % count);
        let usable: Vec<usize> = order
            .filter(|&source| self.sources[source].is_ipv6() == ipv6)
            .collect();
        let elsewhere = usable
            .iter()
            .filter(|&&source| Some(self.sources[source]) != avoid);
        for &source in elsewhere.chain(&usable) {
            let address = self.sources[source];
            self.next = (source + 1) % count;
            let Some(free) = &mut self.free else {
                return Some((SocketAddr::new(address, 0), None));
            };
            let taken = match self.reuse {
                PortReuse::Oldest => free[source].pop_front(),
                PortReuse::Newest => free[source].pop_back(),
            };
            if let Some(port) = taken {
                let outlet = Outlet {
                    source: source as u16,
                    port,
                };
                return Some((SocketAddr::new(address, port), Some(outlet)));
            }
        }
        None
    }

    /// Takes a port back.
    pub(crate) fn give_back(&mut self, outlet: Option<Outlet>) {
        if let (Some(outlet), Some(free)) = (outlet, &mut self.free) {
            free[usize::from(outlet.source)].push_back(outlet.port);
        }
    }

    /// Takes a port back that another program uses: it is the last to be tried again.
    pub(crate) fn put_off(&mut self, outlet: Option<Outlet>) {
        if let (Some(outlet), Some(free)) = (outlet, &mut self.free) {
            let free = &mut free[usize::from(outlet.source)];
            match self.reuse {
                PortReuse::Oldest => free.push_back(outlet.port),
                PortReuse::Newest => free.push_front(outlet.port),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn ports(outlets: &mut Outlets, count: usize) -> Vec<u16> {
        (0..count)
            .filter_map(|_| outlets.take(false, None))
            .map(|(address, _)| address.port())
            .collect()
    }

    #[test]
    fn without_a_range_the_kernel_chooses() {
        let mut outlets = Outlets::new(&[], None, PortReuse::Oldest, 0, 1);
        for (ipv6, want) in [(false, "0.0.0.0:0"), (true, "[::]:0"), (false, "0.0.0.0:0")] {
            let (address, outlet) = outlets.take(ipv6, None).expect("an address");
            assert_eq!(address, want.parse().expect("an address"));
            assert_eq!(outlet, None);
        }
    }

    #[test]
    fn sources_take_turns_and_match_the_ip_version() {
        let sources = [ip("127.0.0.1"), ip("::1"), ip("127.0.0.2")];
        let mut outlets = Outlets::new(&sources, None, PortReuse::Oldest, 0, 1);
        let mut next = |ipv6, avoid| outlets.take(ipv6, avoid).map(|(address, _)| address.ip());
        assert_eq!(next(false, None), Some(ip("127.0.0.1")));
        assert_eq!(next(false, None), Some(ip("127.0.0.2")));
        assert_eq!(next(true, None), Some(ip("::1")));
        assert_eq!(
            next(true, Some(ip("::1"))),
            Some(ip("::1")),
            "there is no other"
        );
        assert_eq!(next(false, Some(ip("127.0.0.2"))), Some(ip("127.0.0.1")));
        let mut only_v4 = Outlets::new(&sources[..1], None, PortReuse::Oldest, 0, 1);
        assert_eq!(only_v4.take(true, None), None);
    }

    #[test]
    fn ports_of_a_range_are_divided_and_reused() {
        let source = [ip("127.0.0.1")];
        let new = |reuse, shard| Outlets::new(&source, Some(&(10..=15)), reuse, shard, 2);
        assert_eq!(ports(&mut new(PortReuse::Oldest, 0), 9), [10, 12, 14]);
        assert_eq!(ports(&mut new(PortReuse::Oldest, 1), 9), [11, 13, 15]);
        for (reuse, want) in [(PortReuse::Oldest, [14, 10]), (PortReuse::Newest, [10, 12])] {
            let mut outlets = new(reuse, 0);
            let (_, first) = outlets.take(false, None).expect("a port");
            let (_, second) = outlets.take(false, None).expect("a port");
            if reuse == PortReuse::Newest {
                // The top of the range goes first there.
                outlets.give_back(second);
                let (address, _) = outlets.take(false, None).expect("a port");
                assert_eq!(address.port(), 12, "the latest again");
                outlets.give_back(first);
                assert_eq!(ports(&mut outlets, 2), [14, 10]);
                continue;
            }
            outlets.give_back(first);
            assert_eq!(ports(&mut outlets, 2), want);
        }
    }
}
