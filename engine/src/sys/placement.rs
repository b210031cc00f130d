//! Where the kernel runs the calling thread and takes its memory from: CPU affinity and memory
//! policy, as plain bit masks.
//!
//! The standard library has neither. A mask is a slice of words, bit `n` of which stands for CPU or
//! node number `n`; what the numbers mean is for [`crate::topology`] to know.

use std::io;

/// Bits in a word of a mask.
pub(crate) const WORD_BITS: usize = u64::BITS as usize;

/// Asks for the CPUs that the calling thread may run on (sched_getaffinity(2)).
///
/// # Errors
/// When `mask` is shorter than what the kernel could have to say (EINVAL).
pub(crate) fn affinity(mask: &mut [u64]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `mask`, which outlives the call; the kernel
    // writes at most that many bytes, and any bit pattern is a valid u64.
    let answer = unsafe {
        libc::sched_getaffinity(
            0,
            size_of_val(mask),
            mask.as_mut_ptr().cast::<libc::cpu_set_t>(),
        )
    };
    done(answer.into())
}

/// Holds the calling thread to the CPUs of `mask` (sched_setaffinity(2)).
///
/// # Errors
/// When none of them exists or is allowed.
pub(crate) fn set_affinity(mask: &[u64]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `mask`, which outlives the call; the kernel
    // only reads it.
    let answer = unsafe {
        libc::sched_setaffinity(
            0,
            size_of_val(mask),
            mask.as_ptr().cast::<libc::cpu_set_t>(),
        )
    };
    done(answer.into())
}

/// Makes the calling thread's new pages come from the nodes of `mask` while they have memory free
/// (`MPOL_PREFERRED`, set_mempolicy(2)).
///
/// # Errors
/// When there is no such node, or a sandbox forbids the call.
pub(crate) fn prefer_nodes(mask: &[u64]) -> io::Result<()> {
    // The kernel reads one bit less than it is told (get_nodes() in mm/mempolicy.c).
    let bits = mask.len() * WORD_BITS + 1;
    // SAFETY: the kernel reads `bits - 1` bits from `mask`, exactly its size, during the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            bits,
        )
    };
    done(answer)
}

/// The mode of the calling thread's memory policy; its nodes go to `mask` (get_mempolicy(2)).
#[cfg(test)]
pub(crate) fn memory_policy(mask: &mut [u64]) -> io::Result<i32> {
    let mut mode: libc::c_int = -1;
    // SAFETY: `mode` and `mask` outlive the call; the kernel writes one int and at most as many
    // bits as it is told, the size of `mask`.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            mask.len() * WORD_BITS,
            std::ptr::null::<u8>(),
            0,
        )
    };
    done(answer).map(|()| mode)
}

fn done(answer: libc::c_long) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_too_short_for_the_kernel_is_refused() {
        let error = affinity(&mut []).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_thread_on_no_cpu_is_refused() {
        let error = set_affinity(&[0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
