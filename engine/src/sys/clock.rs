//! Reads the kernel's monotonic clock. Use it through [`crate::time::monotonic_now`].

/// CLOCK_MONOTONIC: seconds and nanoseconds since an arbitrary point, usually the boot.
#[inline]
pub(crate) fn monotonic() -> libc::timespec {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid, writable timespec for the length of the call.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    // The call can fail for a bad pointer or an unknown clock only; neither is possible.
    assert_eq!(answer, 0, "the kernel has no CLOCK_MONOTONIC");
    time
}
