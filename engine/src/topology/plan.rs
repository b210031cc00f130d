//! Decides which CPU each shard runs on.
//!
//! A pure function from a [`Topology`] and a wish to a [`Plan`]; it asks the system nothing.
//! Every decision that a user could wonder about is a sentence in [`Plan::notes`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Serialize;

use super::share::{self, Wish};
use super::{Cpu, CpuList, Interface, LimitKind, Topology};

/// Most shards in one plan: their numbers, and the end of a range of them, must fit 16 bits.
pub const SHARDS_MAX: usize = u16::MAX as usize;

/// How many shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShardCount {
    /// As many as there are good CPUs for them (see [`plan`]).
    #[default]
    Auto,
    /// Exactly this many, over all groups together.
    Count(usize),
}

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanRequest {
    /// How many shards.
    pub shards: ShardCount,
    /// Network interfaces to be near to; each entry, also a repeated one, makes a group of
    /// shards of its own. None: one group that belongs to no interface.
    pub interfaces: Vec<String>,
    /// Use these CPUs and no others. All of them are used, SMT siblings and interrupt CPUs too:
    /// whoever names CPUs knows why.
    pub cpus: Option<CpuList>,
    /// At least this many shards, even if several must share a CPU and whatever
    /// [`shards`](Self::shards) says: a ring's table of files is limited, so the number of
    /// connections may ask for more rings than there are CPUs.
    pub min_shards: usize,
    /// Use every hardware thread of a core, not just one.
    pub use_smt: bool,
}

/// Where every shard goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// One group for each interface of the request, in its order; one group without interface
    /// if the request names none.
    pub groups: Vec<PlanGroup>,
    /// The shards by number.
    pub shards: Vec<ShardPlacement>,
    /// What was honoured and what could not be, in words for the user.
    pub notes: Vec<String>,
}

/// The shards that belong to one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanGroup {
    /// The interface, if one was named.
    pub interface: Option<String>,
    /// The node that its shards are on, if they are on one node by choice.
    pub node: Option<u32>,
    /// Numbers of its shards.
    pub shards: Range<u16>,
}

/// One shard's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardPlacement {
    /// Number of the shard.
    pub shard: u16,
    /// The CPU to pin it to.
    pub cpu: usize,
    /// Physical core of the CPU ([`Cpu::core`]).
    pub core: usize,
    /// Package of the CPU.
    pub package: u32,
    /// NUMA node of the CPU, where its memory should be.
    pub node: Option<u32>,
    /// Index of its group in [`Plan::groups`].
    pub group: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No interface of that name.
    #[error(
        "there is no network interface {name:?}; this machine has {}",
        or_none(known)
    )]
    UnknownInterface {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The user's list of CPUs is empty.
    #[error("the list of CPUs to use is empty; name at least one of {allowed}")]
    EmptyCpuList {
        /// The CPUs that this process may use.
        allowed: CpuList,
    },
    /// The user's list names CPUs that are absent or offline.
    #[error("CPUs {missing} do not exist or are offline; this machine has CPUs {online}")]
    CpuMissing {
        /// Those that are not there.
        missing: CpuList,
        /// Those that are.
        online: CpuList,
    },
    /// The user's list names CPUs that this process may not use.
    #[error(
        "this process may not use CPUs {refused}: {limits}. It may use CPUs {}; name some of \
         these or start it with a wider limit",
        or_none(&allowed.to_string())
    )]
    CpuNotAllowed {
        /// Those it may not use.
        refused: CpuList,
        /// Those it may.
        allowed: CpuList,
        /// What forbids it, in words.
        limits: String,
    },
    /// Affinity and cgroup together leave nothing.
    #[error("this process may use no online CPU: {limits}")]
    NoCpu {
        /// What forbids it, in words.
        limits: String,
    },
    /// Zero shards asked for.
    #[error("a plan needs at least one shard; ask for 1 or more, or leave the number open")]
    NoShards,
    /// More shards than there are numbers for.
    #[error("{asked} shards are too many; at most {SHARDS_MAX} are possible")]
    TooManyShards {
        /// How many were asked for.
        asked: usize,
    },
    /// Every interface needs at least one shard.
    #[error(
        "{interfaces} interfaces need at least {interfaces} shards, one each; {shards} asked for"
    )]
    FewerShardsThanInterfaces {
        /// How many shards were asked for.
        shards: usize,
        /// How many interfaces.
        interfaces: usize,
    },
}

fn or_none(list: &str) -> &str {
    if list.is_empty() { "none" } else { list }
}

/// Places shards on CPUs.
///
/// - Only CPUs that affinity, cgroup and [`PlanRequest::cpus`] all allow.
/// - Auto: one shard per physical core (per hardware thread with [`PlanRequest::use_smt`]) of
///   the NUMA node of the group's interface, or of all nodes without one. If no allowed CPU is
///   on that node, of the nearest node that has some.
/// - Not on cores that serve the interrupts of the named cards, while half of the cores remain.
/// - Groups on the same node divide its cores; with fewer cores than groups, they share them.
/// - A count spreads evenly over the groups and takes the best CPUs first: free of interrupts,
///   then the others, then SMT siblings. Shards beyond the CPUs go round once more.
pub fn plan(topology: &Topology, request: &PlanRequest) -> Result<Plan, PlanError> {
    let interfaces = named_interfaces(topology, request)?;
    let groups = interfaces.len().max(1);
    check_counts(request, groups)?;
    let usable = usable_cpus(topology, request)?;

    let mut notes = limit_notes(topology, request);
    let targets = target_nodes(topology, &usable, &interfaces, &mut notes);
    let wish = Wish {
        topology,
        request,
        interfaces: &interfaces,
        targets: &targets,
    };
    let mut pools = share::pools(&wish, &usable, &mut notes);
    let counts = share::counts(&wish, &mut pools, &mut notes);

    let mut plan = Plan {
        groups: Vec::new(),
        shards: Vec::new(),
        notes,
    };
    for (group, (pool, count)) in pools.iter().zip(counts).enumerate() {
        let first = plan.shards.len() as u16;
        let seats = pool.seats().cycle().take(count);
        for cpu in seats.filter_map(|cpu| topology.cpu(cpu)) {
            plan.shards.push(ShardPlacement {
                shard: plan.shards.len() as u16,
                cpu: cpu.id,
                core: cpu.core,
                package: cpu.package,
                node: cpu.node,
                group,
            });
        }
        plan.groups.push(PlanGroup {
            interface: interfaces
                .get(group)
                .map(|interface| interface.name.clone()),
            node: targets[group],
            shards: first..plan.shards.len() as u16,
        });
    }
    sharing_notes(topology, request, &mut plan);
    // Two groups of one interface can say the same thing.
    let mut said = BTreeSet::new();
    plan.notes.retain(|note| said.insert(note.clone()));
    Ok(plan)
}

fn named_interfaces<'t>(
    topology: &'t Topology,
    request: &PlanRequest,
) -> Result<Vec<&'t Interface>, PlanError> {
    let find = |name: &String| {
        topology.interface(name).ok_or_else(|| {
            let known: Vec<_> = topology
                .interfaces
                .iter()
                .map(|i| i.name.as_str())
                .collect();
            PlanError::UnknownInterface {
                name: name.clone(),
                known: known.join(", "),
            }
        })
    };
    request.interfaces.iter().map(find).collect()
}

fn check_counts(request: &PlanRequest, groups: usize) -> Result<(), PlanError> {
    let asked = match request.shards {
        ShardCount::Count(0) => return Err(PlanError::NoShards),
        ShardCount::Count(shards) if shards < groups => {
            return Err(PlanError::FewerShardsThanInterfaces {
                shards,
                interfaces: groups,
            });
        }
        ShardCount::Count(shards) => shards.max(request.min_shards),
        ShardCount::Auto => request.min_shards.max(groups),
    };
    if asked > SHARDS_MAX {
        Err(PlanError::TooManyShards { asked })
    } else {
        Ok(())
    }
}

fn usable_cpus<'t>(
    topology: &'t Topology,
    request: &PlanRequest,
) -> Result<Vec<&'t Cpu>, PlanError> {
    let allowed = topology.allowed();
    if let Some(list) = &request.cpus {
        let online = topology.online();
        if list.is_empty() {
            return Err(PlanError::EmptyCpuList { allowed });
        }
        let missing = list.difference(&online);
        if !missing.is_empty() {
            return Err(PlanError::CpuMissing { missing, online });
        }
        let refused = list.difference(&allowed);
        if !refused.is_empty() {
            let limits = limits_in_words(topology);
            return Err(PlanError::CpuNotAllowed {
                refused,
                allowed,
                limits,
            });
        }
    }
    if allowed.is_empty() {
        return Err(PlanError::NoCpu {
            limits: limits_in_words(topology),
        });
    }
    let wanted = request.cpus.as_ref().unwrap_or(&allowed);
    Ok(topology
        .cpus
        .iter()
        .filter(|cpu| wanted.contains(cpu.id))
        .collect())
}

fn limits_in_words(topology: &Topology) -> String {
    let sentences: Vec<String> = topology
        .limits
        .iter()
        .map(|limit| {
            let what = match &limit.kind {
                LimitKind::Affinity => "its CPU affinity".to_owned(),
                LimitKind::Cgroup { path } => format!("the cpuset of its cgroup {path}"),
                LimitKind::Recorded => "the description of this machine".to_owned(),
            };
            format!(
                "{what} limits it to CPUs {}",
                or_none(&limit.cpus.to_string())
            )
        })
        .collect();
    if sentences.is_empty() {
        "no limit is known".into()
    } else {
        sentences.join(", ")
    }
}

fn limit_notes(topology: &Topology, request: &PlanRequest) -> Vec<String> {
    let mut notes: Vec<String> = topology
        .limits
        .iter()
        .map(|limit| {
            let cpus = limit.cpus.named("CPU");
            match &limit.kind {
                LimitKind::Affinity => {
                    format!("the CPU affinity of this process limits it to {cpus}")
                }
                LimitKind::Cgroup { path } => {
                    format!("the cpuset of cgroup {path} limits this process to {cpus}")
                }
                LimitKind::Recorded => format!("this description allows {cpus} only"),
            }
        })
        .collect();
    if let Some(cpus) = &request.cpus {
        notes.push(format!("{} as asked", cpus.named("CPU")));
    }
    if topology.nodes.len() == 1 {
        notes.push("one NUMA node: all memory is local".into());
    }
    notes
}

/// The node for each group; none for "any node".
fn target_nodes(
    topology: &Topology,
    usable: &[&Cpu],
    interfaces: &[&Interface],
    notes: &mut Vec<String>,
) -> Vec<Option<u32>> {
    let with_cpus: BTreeSet<u32> = usable.iter().filter_map(|cpu| cpu.node).collect();
    let target = |interface: &&Interface, notes: &mut Vec<String>| {
        let name = &interface.name;
        let Some(node) = interface.node else {
            let why = if interface.device {
                "has"
            } else {
                "is virtual and has"
            };
            notes.push(format!(
                "{name} {why} no NUMA node: its shards may use every node"
            ));
            return None;
        };
        if with_cpus.contains(&node) {
            return Some(node);
        }
        let nearest = nearest_node(topology, node, &with_cpus);
        let instead = match nearest {
            Some(nearest) => format!("its shards use node {nearest}, the nearest with some"),
            None => "its shards may use every node".into(),
        };
        notes.push(format!("no usable CPU on node {node} of {name}: {instead}"));
        nearest
    };
    if interfaces.is_empty() {
        return vec![None];
    }
    interfaces
        .iter()
        .map(|interface| target(interface, notes))
        .collect()
}

/// The candidate with the smallest distance from `node`; without distances one of the same
/// package, then the lowest number.
fn nearest_node(topology: &Topology, node: u32, candidates: &BTreeSet<u32>) -> Option<u32> {
    let from = topology.node(node);
    let package = |node: u32| {
        topology
            .cpus
            .iter()
            .find(|cpu| cpu.node == Some(node))
            .map(|cpu| cpu.package)
    };
    candidates.iter().copied().min_by_key(|&candidate| {
        let column = topology.nodes.iter().position(|node| node.id == candidate);
        let distance = column
            .and_then(|column| from?.distances.get(column).copied())
            .unwrap_or(u32::MAX);
        (distance, package(candidate) != package(node), candidate)
    })
}

/// Says where shards share a CPU or a core, and which siblings stay idle.
fn sharing_notes(topology: &Topology, request: &PlanRequest, plan: &mut Plan) {
    let mut per_cpu: BTreeMap<usize, usize> = BTreeMap::new();
    for shard in &plan.shards {
        *per_cpu.entry(shard.cpu).or_default() += 1;
    }
    let used: CpuList = per_cpu.keys().copied().collect();
    let most = per_cpu.values().copied().max().unwrap_or(0);
    if most > 1 {
        plan.notes.push(format!(
            "{} shards on {} CPU{}: up to {most} on one",
            plan.shards.len(),
            used.len(),
            if used.len() == 1 { "" } else { "s" },
        ));
    }
    let mut threads: BTreeMap<usize, usize> = BTreeMap::new();
    for cpu in used.iter().filter_map(|cpu| topology.cpu(cpu)) {
        *threads.entry(cpu.core).or_default() += 1;
    }
    let doubled = threads.values().filter(|&&threads| threads > 1).count();
    if doubled > 0 {
        plan.notes.push(format!(
            "{doubled} core{} run{} shards on more than one SMT thread",
            if doubled == 1 { "" } else { "s" },
            if doubled == 1 { "s" } else { "" },
        ));
    } else if request.cpus.is_none() {
        let idle: CpuList = topology
            .cpus
            .iter()
            .filter(|cpu| cpu.allowed && threads.contains_key(&cpu.core) && !used.contains(cpu.id))
            .map(|cpu| cpu.id)
            .collect();
        if !idle.is_empty() {
            plan.notes.push(format!(
                "one shard per core: the SMT siblings stay idle ({})",
                idle.named("CPU")
            ));
        }
    }
}
