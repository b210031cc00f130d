//! Which CPUs, NUMA nodes, caches and network cards this machine has, and which of its CPUs a
//! shard should run on.
//!
//! [`Topology::read`] reads the machine (by hwloc with the feature `hwloc`, else from `/sys`),
//! [`plan`] decides one CPU for each shard, [`render`] draws the result, and
//! [`pin_current_thread`] with [`bind_memory_current_thread`] carry it out inside each thread.
//!
//! What is read is plain data: a plan for a machine that nobody here owns is made, drawn and
//! tested like one for this host. Nothing here starts a thread, and nothing but the two binding
//! functions changes the state of the process. Nothing here belongs on the data path.
//!
//! ```
//! use ringmill_engine::topology::{PlanRequest, Topology, plan, render};
//!
//! let machine = Topology::read()?;
//! let plan = plan(&machine, &PlanRequest::default())?;
//! print!("{}", render(&machine, &plan));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bind;
mod cpu_list;
#[cfg(feature = "hwloc")]
mod hwloc;
mod kernel;
mod limits;
mod network;
mod plan;
mod render;
mod share;
mod sysfs;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use bind::{BindError, MemoryBinding, bind_memory_current_thread, pin_current_thread};
pub use cpu_list::{CPU_NUMBER_MAX, CpuList, CpuListError};
pub use limits::{Limit, LimitKind};
pub use network::{Interface, packet_interrupts};
pub use plan::{
    Plan, PlanError, PlanGroup, PlanRequest, SHARDS_MAX, ShardCount, ShardPlacement, plan,
};
pub use render::render;

/// Where the shape of the machine was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// libhwloc (feature `hwloc`).
    Hwloc,
    /// The kernel's files below `/sys`.
    Sysfs,
}

/// One CPU as the scheduler sees it: a hardware thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// The kernel's number, as in `taskset` and `/proc/cpuinfo`.
    pub id: usize,
    /// Physical core, counted over the whole machine in the order package, node, lowest CPU.
    /// (The kernel's own `core_id` repeats in each package and has holes.)
    pub core: usize,
    /// The kernel's package (socket) number; 0 where the machine does not say.
    pub package: u32,
    /// The NUMA node whose memory is local to this CPU.
    pub node: Option<u32>,
    /// Place among the hardware threads of its core: 0 for the first.
    pub smt: usize,
    /// True when affinity and cgroup of this process allow it to run here.
    pub allowed: bool,
}

/// One NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NumaNode {
    /// The kernel's node number.
    pub id: u32,
    /// Memory of the node in bytes; 0 for a node without memory, or where it is unknown.
    pub memory_bytes: u64,
    /// The online CPUs of this node; none for memory on a node of its own.
    pub cpus: CpuList,
    /// Relative distance to each node, in the order of [`Topology::nodes`] (10 is the node
    /// itself, as in ACPI's SLIT). Empty where unknown or where there is one node.
    pub distances: Vec<u32>,
}

/// One data or unified cache and the CPUs that share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cache {
    /// 1 is the nearest to the core.
    pub level: u32,
    /// Size in bytes; 0 where unknown.
    pub size_bytes: u64,
    /// The online CPUs that share it.
    pub cpus: CpuList,
}

/// The machine as far as placement is concerned. The same whichever way it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// How it was read.
    pub source: Source,
    /// Online CPUs by number.
    pub cpus: Vec<Cpu>,
    /// NUMA nodes by number; at least one.
    pub nodes: Vec<NumaNode>,
    /// Data and unified caches by level, then lowest CPU.
    pub caches: Vec<Cache>,
    /// Network interfaces by name.
    pub interfaces: Vec<Interface>,
    /// What this process is held to, one entry for each thing that limits it.
    pub limits: Vec<Limit>,
    /// What was odd while reading, in words for the user.
    pub notes: Vec<String>,
}

/// Why the machine could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file below `/sys` or `/proc` that placement cannot do without.
    #[error("cannot read {path}: {source}; is /sys mounted in this container?")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The kernel's list of online CPUs holds none, or hwloc shows none.
    #[error("{origin} shows no online CPU")]
    NoCpu {
        /// What was read.
        origin: String,
    },
    /// libhwloc refused.
    #[error("hwloc cannot {action}: {reason}")]
    Hwloc {
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        reason: String,
    },
    /// `sched_getaffinity` failed.
    #[error("cannot ask the kernel for this thread's CPU affinity: {0}")]
    Affinity(std::io::Error),
}

impl Topology {
    /// Reads this machine: by hwloc with the feature `hwloc` (and from `/sys` with a note in
    /// [`Topology::notes`] should hwloc fail), else from `/sys`.
    ///
    /// [`Cpu::allowed`] honours the affinity of the calling thread and the cgroup's cpuset, so
    /// call it before any pinning.
    pub fn read() -> Result<Self, TopologyError> {
        #[cfg(feature = "hwloc")]
        {
            match Self::read_hwloc() {
                Err(error @ TopologyError::Hwloc { .. }) => {
                    let mut topology = Self::read_sysfs()?;
                    topology
                        .notes
                        .push(format!("read from /sys, because {error}"));
                    Ok(topology)
                }
                other => other,
            }
        }
        #[cfg(not(feature = "hwloc"))]
        Self::read_sysfs()
    }

    /// Reads this machine from `/sys` and `/proc`, whatever features are on.
    pub fn read_sysfs() -> Result<Self, TopologyError> {
        let affinity = kernel::affinity().map_err(TopologyError::Affinity)?;
        Self::from_sysfs(Path::new("/"), Some(affinity))
    }

    /// Reads a machine from a copy of its `sys` and `proc` directories below `root`.
    /// `affinity` is the CPU affinity to honour; `None` for no limit.
    pub fn from_sysfs(root: &Path, affinity: Option<CpuList>) -> Result<Self, TopologyError> {
        let mut topology = sysfs::read(root)?;
        topology.see_surroundings(root, affinity);
        Ok(topology)
    }

    /// Reads this machine by hwloc.
    #[cfg(feature = "hwloc")]
    pub fn read_hwloc() -> Result<Self, TopologyError> {
        let affinity = kernel::affinity().map_err(TopologyError::Affinity)?;
        let mut topology = hwloc::read_this_machine()?;
        topology.see_surroundings(Path::new("/"), Some(affinity));
        Ok(topology)
    }

    /// An imagined machine in hwloc's synthetic notation, such as
    /// `pack:2 [numa] l3:1 core:64 pu:2` (see "Synthetic topologies" in hwloc's manual).
    /// It has no network interfaces and no limits.
    #[cfg(feature = "hwloc")]
    pub fn from_hwloc_synthetic(description: &str) -> Result<Self, TopologyError> {
        hwloc::read_synthetic(description)
    }

    /// A machine that `lstopo FILE.xml` wrote down. It has no network interfaces; limits are
    /// those that hwloc recorded.
    #[cfg(feature = "hwloc")]
    pub fn from_hwloc_xml(xml: &str) -> Result<Self, TopologyError> {
        hwloc::read_xml(xml)
    }

    /// The CPU with this number, if it is online.
    pub fn cpu(&self, id: usize) -> Option<&Cpu> {
        let at = self.cpus.binary_search_by_key(&id, |cpu| cpu.id).ok()?;
        self.cpus.get(at)
    }

    /// The node with this number.
    pub fn node(&self, id: u32) -> Option<&NumaNode> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The interface of this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.name == name)
    }

    /// Every online CPU.
    pub fn online(&self) -> CpuList {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    /// Every CPU that this process may use.
    pub fn allowed(&self) -> CpuList {
        self.cpus
            .iter()
            .filter(|cpu| cpu.allowed)
            .map(|cpu| cpu.id)
            .collect()
    }

    /// Number of physical cores that are online.
    pub fn cores(&self) -> usize {
        self.cpus
            .iter()
            .map(|cpu| cpu.core)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Number of packages that have an online CPU.
    pub fn packages(&self) -> usize {
        self.cpus
            .iter()
            .map(|cpu| cpu.package)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Adds what neither reader knows by itself: cards, and what this process is held to.
    fn see_surroundings(&mut self, root: &Path, affinity: Option<CpuList>) {
        let online = self.online();
        self.interfaces = network::read(root, &online);
        if let Some(cpus) = affinity {
            self.limits.push(Limit {
                kind: LimitKind::Affinity,
                cpus,
            });
        }
        self.limits.extend(limits::cgroup_cpusets(root));
        for limit in &mut self.limits {
            limit.cpus = limit.cpus.intersection(&online);
        }
        for cpu in &mut self.cpus {
            cpu.allowed &= self.limits.iter().all(|limit| limit.cpus.contains(cpu.id));
        }
        // A limit that holds nothing back is not worth a word to the user.
        self.limits.retain(|limit| limit.cpus != online);
    }
}

/// One CPU before cores are numbered.
struct RawCpu {
    id: usize,
    package: u32,
    node: Option<u32>,
    /// Online CPUs of its core, itself included.
    core_cpus: CpuList,
    allowed: bool,
}

/// Numbers cores and hardware threads the same way for every reader.
fn assemble(
    source: Source,
    raw: Vec<RawCpu>,
    mut nodes: Vec<NumaNode>,
    mut caches: Vec<Cache>,
) -> Topology {
    let key = |cpu: &RawCpu| {
        (
            cpu.package,
            cpu.node,
            cpu.core_cpus.first().unwrap_or(cpu.id).min(cpu.id),
        )
    };
    let cores: Vec<_> = raw
        .iter()
        .map(key)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let mut cpus: Vec<Cpu> = raw
        .iter()
        .map(|cpu| Cpu {
            id: cpu.id,
            core: cores.binary_search(&key(cpu)).unwrap_or(0),
            package: cpu.package,
            node: cpu.node,
            smt: 0,
            allowed: cpu.allowed,
        })
        .collect();
    cpus.sort_by_key(|cpu| cpu.id);
    cpus.dedup_by_key(|cpu| cpu.id);
    let mut threads_seen = vec![0; cores.len()];
    for cpu in &mut cpus {
        cpu.smt = threads_seen[cpu.core];
        threads_seen[cpu.core] += 1;
    }
    nodes.sort_by_key(|node| node.id);
    // Readers differ on memory without CPUs (CXL, HBM): hwloc lends it the CPUs nearest to it.
    for node in &mut nodes {
        let here = cpus.iter().filter(|cpu| cpu.node == Some(node.id));
        node.cpus = here.map(|cpu| cpu.id).collect();
    }
    if let [only] = nodes.as_mut_slice() {
        only.distances.clear();
    }
    caches.sort();
    caches.dedup();
    Topology {
        source,
        cpus,
        nodes,
        caches,
        interfaces: Vec::new(),
        limits: Vec::new(),
        notes: Vec::new(),
    }
}
