//! The entries of one shard: found by client, ordered by last use.
//!
//! Looking up, touching and removing take constant time, so that a datagram costs the same with ten
//! entries and with ten thousand. No clock and no socket here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringmill_engine::{Nanos, SocketId};

use super::destination::Destination;
use super::outlets::Outlet;
use super::path::Links;

/// No entry.
const NONE: u32 = u32::MAX;

/// One client's way through.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Who sends.
    pub(crate) client: SocketAddr,
    /// The listening socket at which it does, by number of the endpoint and by id.
    pub(crate) endpoint: u16,
    pub(crate) listener: SocketId,
    /// The address that it sends to, to answer from.
    pub(crate) asked: Option<IpAddr>,
    /// Its own socket towards the destination.
    pub(crate) socket: SocketId,
    /// The port that the socket was given from a range, to be given back.
    pub(crate) outlet: Option<Outlet>,
    /// Number of the flow: what decisions depend on.
    pub(crate) flow: u64,
    /// Where its datagrams go.
    pub(crate) destination: Arc<Destination>,
    /// To which port there; none: the destination's own.
    port: Option<u16>,
    /// Assignments of a destination so far.
    pub(crate) assignments: u32,
    /// Nothing was sent to the present destination yet.
    pub(crate) fresh: bool,
    /// Rebindings that its socket has seen.
    pub(crate) rebindings: u64,
    /// Last datagram of either direction.
    pub(crate) used: Nanos,
    /// What the impairment must remember; none while there is no impairment.
    pub(crate) links: Option<Box<Links>>,
    newer: u32,
    older: u32,
}

impl Entry {
    /// The address that a destination has for this entry.
    pub(crate) fn address_of(&self, destination: &Destination) -> SocketAddr {
        let mut address = destination.address;
        if let Some(port) = self.port {
            address.set_port(port);
        }
        address
    }

    /// Where its datagrams go.
    pub(crate) fn target(&self) -> SocketAddr {
        self.address_of(&self.destination)
    }
}

/// What an entry begins with.
pub(crate) struct Opening {
    pub(crate) client: SocketAddr,
    pub(crate) endpoint: u16,
    pub(crate) listener: SocketId,
    pub(crate) asked: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) flow: u64,
    pub(crate) rebindings: u64,
    pub(crate) links: Option<Box<Links>>,
}

/// Client and endpoint in few bytes: an IPv4 address is kept as the IPv6 address that maps it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key([u8; 20]);

impl Key {
    fn new(client: SocketAddr, endpoint: u16) -> Self {
        let mut key = [0; 20];
        let address = match client.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        key[..16].copy_from_slice(&address.octets());
        key[16..18].copy_from_slice(&client.port().to_be_bytes());
        key[18..].copy_from_slice(&endpoint.to_be_bytes());
        Self(key)
    }
}

enum Place {
    Used(Entry),
    Free,
}

/// Names an entry: an id that outlived its entry finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryId {
    pub(crate) index: u32,
    generation: u32,
}

/// All entries of one shard.
#[derive(Default)]
pub(crate) struct Entries {
    places: Vec<(u32, Place)>,
    free: Vec<u32>,
    by_client: HashMap<Key, u32>,
    newest: Option<u32>,
    oldest: Option<u32>,
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.by_client.len()
    }

    /// Places, used and free: what a walk over all entries counts to.
    pub(crate) fn places(&self) -> u32 {
        self.places.len() as u32
    }

    pub(crate) fn find(&self, client: SocketAddr, endpoint: u16) -> Option<u32> {
        self.by_client.get(&Key::new(client, endpoint)).copied()
    }

    pub(crate) fn get(&mut self, index: u32) -> Option<&mut Entry> {
        match self.places.get_mut(index as usize) {
            Some((_, Place::Used(entry))) => Some(entry),
            _ => None,
        }
    }

    pub(crate) fn id(&self, index: u32) -> EntryId {
        EntryId {
            index,
            generation: self.places[index as usize].0,
        }
    }

    pub(crate) fn by_id(&mut self, id: EntryId) -> Option<&mut Entry> {
        match self.places.get_mut(id.index as usize) {
            Some((generation, Place::Used(entry))) if *generation == id.generation => Some(entry),
            _ => None,
        }
    }

    /// The entry that was used longest ago.
    pub(crate) fn oldest(&self) -> Option<u32> {
        self.oldest
    }

    /// The place that the next entry will have.
    pub(crate) fn next_place(&self) -> u32 {
        self.free
            .last()
            .copied()
            .unwrap_or(self.places.len() as u32)
    }

    /// Adds an entry for a client that has none.
    pub(crate) fn insert(
        &mut self,
        opening: Opening,
        destination: Arc<Destination>,
        (socket, outlet): (SocketId, Option<Outlet>),
        now: Nanos,
    ) -> u32 {
        let key = Key::new(opening.client, opening.endpoint);
        let entry = Entry {
            client: opening.client,
            endpoint: opening.endpoint,
            listener: opening.listener,
            asked: opening.asked,
            socket,
            outlet,
            flow: opening.flow,
            destination,
            port: opening.port,
            assignments: 1,
            fresh: true,
            rebindings: opening.rebindings,
            used: now,
            links: opening.links,
            newer: NONE,
            older: NONE,
        };
        let index = if let Some(index) = self.free.pop() {
            self.places[index as usize].1 = Place::Used(entry);
            index
        } else {
            self.places.push((0, Place::Used(entry)));
            self.places.len() as u32 - 1
        };
        self.by_client.insert(key, index);
        self.link_newest(index);
        index
    }

    /// Notes a use: the entry is the newest.
    pub(crate) fn touch(&mut self, index: u32, now: Nanos) {
        if self.newest != Some(index) {
            self.unlink(index);
            self.link_newest(index);
        }
        if let Some(entry) = self.get(index) {
            entry.used = now;
        }
    }

    /// Removes an entry.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Entry> {
        self.get(index)?;
        self.unlink(index);
        let place = &mut self.places[index as usize];
        place.0 = place.0.wrapping_add(1);
        let Place::Used(entry) = std::mem::replace(&mut place.1, Place::Free) else {
            return None;
        };
        self.by_client
            .remove(&Key::new(entry.client, entry.endpoint));
        self.free.push(index);
        Some(entry)
    }

    fn link_newest(&mut self, index: u32) {
        let before = self.newest.replace(index);
        match before {
            Some(before) => self.used(before).newer = index,
            None => self.oldest = Some(index),
        }
        let entry = self.used(index);
        entry.newer = NONE;
        entry.older = before.unwrap_or(NONE);
    }

    fn unlink(&mut self, index: u32) {
        let entry = self.used(index);
        let (newer, older) = (entry.newer, entry.older);
        let some = |index| (index != NONE).then_some(index);
        match some(newer) {
            Some(newer) => self.used(newer).older = older,
            None => self.newest = some(older),
        }
        match some(older) {
            Some(older) => self.used(older).newer = newer,
            None => self.oldest = some(newer),
        }
    }

    fn used(&mut self, index: u32) -> &mut Entry {
        match &mut self.places[index as usize].1 {
            Place::Used(entry) => entry,
            Place::Free => unreachable!("only entries in use are linked"),
        }
    }
}
