//! Carries a plan out inside a shard's own thread: CPU first, memory second.
//!
//! Both act on the calling thread alone; call them before the shard allocates anything, because
//! the kernel places a page when it is first touched.

use std::io;

use super::{CpuList, ShardPlacement, Topology, kernel};

/// CPU numbers below this fit the fixed set of libc, and so of `core_affinity`, which panics
/// above it.
const FIXED_CPU_SET_SIZE: usize = libc::CPU_SETSIZE as usize;

/// What [`bind_memory_current_thread`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBinding {
    /// The machine has one node: all memory is local, nothing was changed.
    OneNode,
    /// The node has no memory of its own: the kernel's default (the nearest) was left in place.
    NoLocalMemory,
    /// New pages come from this node while it has any free, then from the nearest.
    Preferred(u32),
}

/// Why a thread could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The kernel refused the CPU.
    #[error("cannot pin shard {shard} to CPU {cpu}: {source}{hint}")]
    Pin {
        /// Shard of the thread.
        shard: u16,
        /// CPU of the plan.
        cpu: usize,
        /// The kernel's answer.
        source: io::Error,
        /// What to do about it, where that is known.
        hint: &'static str,
    },
    /// The call succeeded, but the thread may still run elsewhere.
    #[error("pinned shard {shard} to CPU {cpu}, but the kernel lets it run on CPUs {found}")]
    NotPinned {
        /// Shard of the thread.
        shard: u16,
        /// CPU of the plan.
        cpu: usize,
        /// What the kernel says instead.
        found: CpuList,
    },
    /// The plan names a node that the machine lacks.
    #[error("cannot bind memory to node {node}: this machine has no such node")]
    NoSuchNode {
        /// The node asked for.
        node: u32,
    },
    /// The kernel refused the memory policy.
    #[error("cannot prefer memory of node {node}: {source}{hint}")]
    Memory {
        /// The node asked for.
        node: u32,
        /// The kernel's answer.
        source: io::Error,
        /// What to do about it, where that is known.
        hint: &'static str,
    },
}

/// Pins the calling thread to the CPU of `placement` and checks that the kernel agrees.
pub fn pin_current_thread(placement: &ShardPlacement) -> Result<(), BindError> {
    let (shard, cpu) = (placement.shard, placement.cpu);
    let wanted: CpuList = [cpu].into_iter().collect();
    let pinned = cpu < FIXED_CPU_SET_SIZE
        && core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
    if !pinned {
        // `core_affinity` does not say why: ask again for the reason (or for a big machine).
        kernel::set_affinity(&wanted).map_err(|source| {
            let hint = match source.raw_os_error() {
                Some(libc::EINVAL) => {
                    "; it is offline, or outside the cpuset of this process's cgroup \
                     (`taskset -cp $$` shows what is allowed)"
                }
                Some(libc::EPERM) => "; a seccomp or security policy forbids sched_setaffinity",
                _ => "",
            };
            BindError::Pin {
                shard,
                cpu,
                source,
                hint,
            }
        })?;
    }
    match kernel::affinity() {
        Ok(found) if found != wanted => Err(BindError::NotPinned { shard, cpu, found }),
        // A kernel that pins and will not say so is still pinned.
        _ => Ok(()),
    }
}

/// Makes the calling thread's new memory local to `node` (set_mempolicy(2), `MPOL_PREFERRED`),
/// with spill to other nodes rather than failure when the node is full.
///
/// With one node there is nothing to do and nothing is done. **Untested on real hardware with
/// several nodes**: that the kernel takes the call and keeps the policy is tested, that pages
/// then lie where they should is not.
pub fn bind_memory_current_thread(
    topology: &Topology,
    node: u32,
) -> Result<MemoryBinding, BindError> {
    let found = topology.node(node).ok_or(BindError::NoSuchNode { node })?;
    if topology.nodes.len() == 1 {
        return Ok(MemoryBinding::OneNode);
    }
    if found.memory_bytes == 0 {
        return Ok(MemoryBinding::NoLocalMemory);
    }
    kernel::prefer_node(node).map_err(|source| {
        let hint = match source.raw_os_error() {
            Some(libc::EPERM) => {
                "; a seccomp policy forbids set_mempolicy (Docker's default does unless \
                 CAP_SYS_NICE is added); memory stays where the kernel puts it"
            }
            Some(libc::EINVAL) => "; the cgroup's cpuset.mems leaves this node out",
            Some(libc::ENOSYS) => "; this kernel is built without NUMA",
            _ => "",
        };
        BindError::Memory { node, source, hint }
    })?;
    Ok(MemoryBinding::Preferred(node))
}
