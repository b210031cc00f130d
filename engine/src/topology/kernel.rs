//! The three system calls of placement that the standard library lacks, behind safe functions.
//!
//! Nothing else below `topology` may be `unsafe`.

use std::io;

use super::cpu_list::{CPU_NUMBER_MAX, CpuList};

/// Words in a mask that holds every CPU number a [`CpuList`] may hold. The kernel wants room
/// for all the CPUs it could have (`nr_cpu_ids`), more than libc's fixed 1,024 on big machines.
const CPU_MASK_WORDS: usize = (CPU_NUMBER_MAX + 1) / 64;

/// Highest NUMA node number + 1 on any Linux (`CONFIG_NODES_SHIFT` is at most 10).
const NODES_MAX: usize = 1024;

/// The CPUs that the calling thread may run on.
pub(super) fn affinity() -> io::Result<CpuList> {
    let mut mask = [0u64; CPU_MASK_WORDS];
    // SAFETY: the pointer and the length describe `mask`, which outlives the call; the kernel
    // writes at most that many bytes, and any bit pattern is a valid u64.
    let answer = unsafe {
        libc::sched_getaffinity(
            0,
            size_of_val(&mask),
            mask.as_mut_ptr().cast::<libc::cpu_set_t>(),
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    let bits = mask.iter().enumerate().flat_map(|(word, bits)| {
        (0..64)
            .filter(move |bit| bits >> bit & 1 == 1)
            .map(move |bit| word * 64 + bit)
    });
    Ok(bits.collect())
}

/// Holds the calling thread to `cpus`.
pub(super) fn set_affinity(cpus: &CpuList) -> io::Result<()> {
    let mut mask = [0u64; CPU_MASK_WORDS];
    for cpu in cpus.iter() {
        let word = mask.get_mut(cpu / 64).ok_or(io::ErrorKind::InvalidInput)?;
        *word |= 1 << (cpu % 64);
    }
    // SAFETY: the pointer and the length describe `mask`, which outlives the call; the kernel
    // only reads it.
    let answer = unsafe {
        libc::sched_setaffinity(
            0,
            size_of_val(&mask),
            mask.as_ptr().cast::<libc::cpu_set_t>(),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the calling thread's new pages come from `node` while it has memory free
/// (`MPOL_PREFERRED`, set_mempolicy(2)).
pub(super) fn prefer_node(node: u32) -> io::Result<()> {
    let node = node as usize;
    let mut mask = [0u64; NODES_MAX / 64];
    *mask.get_mut(node / 64).ok_or(io::ErrorKind::InvalidInput)? |= 1 << (node % 64);
    // The kernel reads one bit less than it is told (get_nodes() in mm/mempolicy.c).
    let bits = NODES_MAX + 1;
    // SAFETY: the kernel reads `bits - 1` bits from `mask`, exactly its size, during the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            bits,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The policy and the nodes that [`prefer_node`] set, asked back from the kernel.
#[cfg(test)]
pub(super) fn memory_policy() -> io::Result<(i32, Vec<u32>)> {
    let mut mode: libc::c_int = -1;
    let mut mask = [0u64; NODES_MAX / 64];
    // SAFETY: `mode` and `mask` outlive the call; the kernel writes one int and at most
    // NODES_MAX bits, the size of `mask`.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            NODES_MAX,
            std::ptr::null::<u8>(),
            0,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    let set = |node: &u32| mask[*node as usize / 64] >> (node % 64) & 1 == 1;
    Ok((mode, (0..NODES_MAX as u32).filter(set).collect()))
}
