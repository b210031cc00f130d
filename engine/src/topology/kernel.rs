//! What placement asks of the kernel, in its own terms: lists of CPUs and numbers of nodes instead
//! of the bit masks of [`crate::sys::placement`].

use std::io;

use super::cpu_list::{CPU_NUMBER_MAX, CpuList};
use crate::sys::placement::{self, WORD_BITS};

/// Words in a mask that holds every CPU number a [`CpuList`] may hold. The kernel wants room
/// for all the CPUs it could have (`nr_cpu_ids`), more than libc's fixed 1,024 on big machines.
const CPU_MASK_WORDS: usize = (CPU_NUMBER_MAX + 1) / WORD_BITS;

/// Highest NUMA node number + 1 on any Linux (`CONFIG_NODES_SHIFT` is at most 10).
const NODES_MAX: usize = 1024;

/// The CPUs that the calling thread may run on.
pub(super) fn affinity() -> io::Result<CpuList> {
    let mut mask = [0; CPU_MASK_WORDS];
    placement::affinity(&mut mask)?;
    Ok(numbers(&mask).collect())
}

/// Holds the calling thread to `cpus`.
pub(super) fn set_affinity(cpus: &CpuList) -> io::Result<()> {
    let mut mask = [0; CPU_MASK_WORDS];
    for cpu in cpus.iter() {
        set(&mut mask, cpu)?;
    }
    placement::set_affinity(&mask)
}

/// Makes the calling thread's new pages come from `node` while it has memory free.
pub(super) fn prefer_node(node: u32) -> io::Result<()> {
    let mut mask = [0; NODES_MAX / WORD_BITS];
    set(&mut mask, node as usize)?;
    placement::prefer_nodes(&mask)
}

/// The policy and the nodes that [`prefer_node`] set, asked back from the kernel.
#[cfg(test)]
pub(super) fn memory_policy() -> io::Result<(i32, Vec<u32>)> {
    let mut mask = [0; NODES_MAX / WORD_BITS];
    let mode = placement::memory_policy(&mut mask)?;
    Ok((mode, numbers(&mask).map(|node| node as u32).collect()))
}

fn set(mask: &mut [u64], number: usize) -> io::Result<()> {
    let word = mask.get_mut(number / WORD_BITS);
    *word.ok_or(io::ErrorKind::InvalidInput)? |= 1 << (number % WORD_BITS);
    Ok(())
}

fn numbers(mask: &[u64]) -> impl Iterator<Item = usize> + '_ {
    mask.iter().enumerate().flat_map(|(word, bits)| {
        let set = (0..WORD_BITS).filter(move |bit| bits >> bit & 1 == 1);
        set.map(move |bit| word * WORD_BITS + bit)
    })
}
