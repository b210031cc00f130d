//! Divides the CPUs of a machine among the groups of a plan, and decides how many shards each
//! group gets.
//!
//! The CPUs of a group come in the order in which shards fill them: whole cores before second
//! threads, and cores that serve interrupts last or not at all. Nothing here knows shard numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{PlanRequest, SHARDS_MAX, ShardCount};
use super::{Cpu, CpuList, Interface, Topology};

/// A group keeps clear of the CPUs that serve its card when at least one in this many of its
/// CPUs remains. With less left, idle CPUs would cost more than sharing with the interrupts.
const ROOM_FRACTION: usize = 2;

/// What a plan is made from.
pub(super) struct Wish<'t> {
    pub(super) topology: &'t Topology,
    pub(super) request: &'t PlanRequest,
    /// The interfaces named, in the order of the groups; none for one group without.
    pub(super) interfaces: &'t [&'t Interface],
    /// For each group the node it should be on; none for any.
    pub(super) targets: &'t [Option<u32>],
}

impl Wish<'_> {
    /// Whoever names CPUs gets all of them.
    fn explicit(&self) -> bool {
        self.request.cpus.is_some()
    }

    /// Whether each hardware thread may have a shard, or one of each core.
    fn every_thread(&self) -> bool {
        self.explicit() || self.request.use_smt
    }

    /// Whether a shard here would meet the interrupts of a named card.
    fn serves_interrupts(&self, interface: &Interface, cpu: &Cpu) -> bool {
        if self.every_thread() {
            return interface.irq_cpus.contains(cpu.id);
        }
        let served = interface
            .irq_cpus
            .iter()
            .filter_map(|id| self.topology.cpu(id));
        served.into_iter().any(|served| served.core == cpu.core)
    }

    /// The groups that want CPUs of this node.
    fn groups_for(&self, node: Option<u32>) -> Vec<usize> {
        let all = 0..self.targets.len();
        let wants = |group: &usize| self.targets[*group].is_none_or(|target| Some(target) == node);
        let groups: Vec<usize> = all.clone().filter(wants).collect();
        if groups.is_empty() && self.explicit() {
            all.collect()
        } else {
            groups
        }
    }
}

/// A hardware thread in the order of filling: all cores' first usable threads come first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seat {
    /// Place among the usable threads of its core.
    rank: usize,
    core: usize,
    cpu: usize,
}

/// A place for a shard.
struct Slot {
    seat: Seat,
    /// Usable hardware threads of the same core that get no place of their own.
    siblings: Vec<Seat>,
}

/// The CPUs of one group.
#[derive(Default)]
pub(super) struct Pool {
    /// Good CPUs; in the end, those that are used.
    free: Vec<Seat>,
    /// CPUs that serve interrupts of the named cards.
    busy: Vec<Seat>,
    /// Other threads of the same cores, for when the user wants more shards than cores.
    siblings: Vec<Seat>,
}

impl Pool {
    /// CPU numbers of the places, in the order of filling.
    pub(super) fn seats(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.free.iter().map(|seat| seat.cpu)
    }

    fn len(&self) -> usize {
        self.free.len() + self.busy.len()
    }

    fn add(&mut self, slot: &Slot, busy: bool) {
        let list = if busy { &mut self.busy } else { &mut self.free };
        list.push(slot.seat);
        self.siblings.extend(&slot.siblings);
    }
}

/// The places of one node and the groups that want them.
struct NodeSlots {
    node: Option<u32>,
    groups: Vec<usize>,
    free: Vec<Slot>,
    busy: Vec<Slot>,
}

/// Divides the usable CPUs among the groups.
pub(super) fn pools(wish: &Wish<'_>, usable: &[&Cpu], notes: &mut Vec<String>) -> Vec<Pool> {
    let nodes = slots(wish, usable);
    let mut pools: Vec<Pool> = wish.targets.iter().map(|_| Pool::default()).collect();
    for node in &nodes {
        let off_target = |&group: &usize| wish.targets[group].is_some_and(|t| Some(t) != node.node);
        if node.groups.iter().all(off_target) && !node.groups.is_empty() {
            let cpus: CpuList = node.free.iter().map(|slot| slot.seat.cpu).collect();
            let cpus = cpus.named("CPU");
            notes.push(format!(
                "{cpus} used as asked, though not on the interface's node"
            ));
        }
        share_out(&node.free, &node.groups, false, &mut pools);
        share_out(&node.busy, &node.groups, true, &mut pools);
    }
    lend_to_the_empty(&nodes, wish.interfaces, &mut pools, notes);
    for pool in &mut pools {
        pool.free.sort_unstable();
        pool.busy.sort_unstable();
        pool.siblings.sort_unstable();
    }
    pools
}

/// The places for shards by node. Nodes that few groups want come first, so that a group that
/// may go anywhere leaves the contested nodes to those that may not.
fn slots(wish: &Wish<'_>, usable: &[&Cpu]) -> Vec<NodeSlots> {
    let mut by_core: BTreeMap<usize, Vec<&Cpu>> = BTreeMap::new();
    for cpu in usable {
        by_core.entry(cpu.core).or_default().push(cpu);
    }
    let mut by_node: BTreeMap<Option<u32>, NodeSlots> = BTreeMap::new();
    for threads in by_core.values() {
        let seat = |(rank, cpu): (usize, &&Cpu)| Seat {
            rank,
            core: cpu.core,
            cpu: cpu.id,
        };
        let seats: Vec<Seat> = threads.iter().enumerate().map(seat).collect();
        let places = if wish.every_thread() { seats.len() } else { 1 };
        for (cpu, &seat) in threads.iter().zip(&seats).take(places) {
            let entry = by_node.entry(cpu.node).or_insert_with(|| NodeSlots {
                node: cpu.node,
                groups: wish.groups_for(cpu.node),
                free: Vec::new(),
                busy: Vec::new(),
            });
            let busy = !wish.explicit()
                && wish
                    .interfaces
                    .iter()
                    .any(|interface| wish.serves_interrupts(interface, cpu));
            let list = if busy {
                &mut entry.busy
            } else {
                &mut entry.free
            };
            list.push(Slot {
                seat,
                siblings: seats[places..].to_vec(),
            });
        }
    }
    let mut nodes: Vec<NodeSlots> = by_node.into_values().collect();
    nodes.sort_by_key(|node| (node.groups.len(), node.node));
    nodes
}

/// Gives each slot to one of the groups, so that the groups end up as equal as can be, and each
/// with neighbouring cores (which share caches).
fn share_out(slots: &[Slot], groups: &[usize], busy: bool, pools: &mut [Pool]) {
    let mut shares: BTreeMap<usize, usize> = groups.iter().map(|&group| (group, 0)).collect();
    for _ in slots {
        let poorest = groups
            .iter()
            .min_by_key(|&&group| (pools[group].len() + shares[&group], group));
        if let Some(share) = poorest.and_then(|group| shares.get_mut(group)) {
            *share += 1;
        }
    }
    let mut slots = slots.iter();
    for (group, share) in shares {
        for slot in slots.by_ref().take(share) {
            pools[group].add(slot, busy);
        }
    }
}

/// With fewer cores than groups some pool is empty: its group shares CPUs with the others.
fn lend_to_the_empty(
    nodes: &[NodeSlots],
    interfaces: &[&Interface],
    pools: &mut [Pool],
    notes: &mut Vec<String>,
) {
    for (group, pool) in pools
        .iter_mut()
        .enumerate()
        .filter(|(_, pool)| pool.len() == 0)
    {
        for node in nodes.iter().filter(|node| node.groups.contains(&group)) {
            node.free.iter().for_each(|slot| pool.add(slot, false));
            node.busy.iter().for_each(|slot| pool.add(slot, true));
        }
        if let Some(interface) = interfaces.get(group) {
            let name = &interface.name;
            notes.push(format!(
                "fewer cores than groups of shards: {name} shares CPUs with another group"
            ));
        }
    }
}

/// Leaves in each pool the CPUs that will be used and returns how many shards each group gets.
pub(super) fn counts(wish: &Wish<'_>, pools: &mut [Pool], notes: &mut Vec<String>) -> Vec<usize> {
    let groups = pools.len();
    let mut counts = Vec::new();
    for (group, pool) in pools.iter_mut().enumerate() {
        let (free, all) = (pool.free.len(), pool.len());
        let (wanted, clear) = match wish.request.shards {
            ShardCount::Auto => {
                let clear = free > 0 && free * ROOM_FRACTION >= all;
                (if clear { free } else { all }, clear)
            }
            ShardCount::Count(total) => {
                let wanted = total / groups + usize::from(group < total % groups);
                (wanted, wanted <= free)
            }
        };
        if !pool.busy.is_empty() {
            notes.push(interrupt_note(wish, pool, clear));
        }
        if !clear {
            pool.free.append(&mut pool.busy);
            if wanted > all {
                pool.free.append(&mut pool.siblings);
            } else if wish.request.shards == ShardCount::Auto {
                pool.free.sort_unstable();
            }
        }
        pool.free.truncate(wanted);
        counts.push(wanted);
    }
    raise(wish.request.min_shards, pools, &mut counts, notes);
    if counts.iter().sum::<usize>() > SHARDS_MAX {
        // More CPUs than shard numbers: no machine yet, but a description may say anything.
        let even = SHARDS_MAX / groups;
        counts
            .iter_mut()
            .for_each(|count| *count = (*count).min(even));
    }
    counts
}

fn interrupt_note(wish: &Wish<'_>, pool: &Pool, clear: bool) -> String {
    let cpus: CpuList = pool.busy.iter().map(|seat| seat.cpu).collect();
    let serves = |interface: &&&Interface| {
        let mut cpus = cpus.iter().filter_map(|cpu| wish.topology.cpu(cpu));
        cpus.any(|cpu| wish.serves_interrupts(interface, cpu))
    };
    let cards = wish
        .interfaces
        .iter()
        .filter(serves)
        .map(|interface| interface.name.as_str());
    let cards = cards
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
        .join(", ");
    let cpus = cpus.named("CPU");
    if clear {
        format!("left to the interrupts of {cards}: {cpus}")
    } else {
        format!("no room to keep shards off the interrupts of {cards} ({cpus})")
    }
}

/// Adds shards until there are `min_shards`, each time where they are fewest per CPU.
fn raise(min_shards: usize, pools: &[Pool], counts: &mut [usize], notes: &mut Vec<String>) {
    let planned: usize = counts.iter().sum();
    for _ in planned..min_shards {
        // Compared as fractions of the most there can be, so that whole numbers suffice.
        let load = |group: &usize| {
            (
                counts[*group] * SHARDS_MAX / pools[*group].free.len(),
                *group,
            )
        };
        if let Some(group) = (0..pools.len()).min_by_key(load) {
            counts[group] += 1;
        }
    }
    if min_shards > planned {
        notes.push(format!(
            "{min_shards} shards instead of {planned}, for the number of connections"
        ));
    }
}
