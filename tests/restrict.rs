//! What a child is forbidden: files by rlimit, system calls by a real seccomp filter.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// The soft and the hard limit of files of this process.
///
/// # Panics
/// When the kernel does not say.
#[must_use]
pub fn file_limits() -> (u64, u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the right type.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    assert_eq!(result, 0, "getrlimit: {}", io::Error::last_os_error());
    (limit.rlim_cur, limit.rlim_max)
}

fn set_file_limits(soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the pointer is to a live value of the right type.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises this process's own soft limit of files to the hard one, which it returns.
///
/// # Panics
/// When that is refused.
pub fn raise_file_limit() -> u64 {
    let (_, hard) = file_limits();
    set_file_limits(hard, hard).expect("up to the hard limit is allowed");
    hard
}

/// Gives the child this soft and hard limit of files.
#[must_use]
pub fn with_files(mut command: Command, files: u64) -> Command {
    // SAFETY: setrlimit is async-signal-safe and changes only the child.
    unsafe { command.pre_exec(move || set_file_limits(files, files)) };
    command
}

/// Makes the kernel answer every io_uring call of the child with `errno`.
///
/// # Errors
/// Why this host has no such filter.
pub fn without_io_uring(mut command: Command, errno: i32) -> Result<Command, String> {
    let calls = [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ];
    let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|error| format!("seccomp filter for {}: {error}", std::env::consts::ARCH))?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        arch,
    );
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .map_err(|error| format!("seccomp filter: {error}"))?;
    // SAFETY: two system calls on a program made before the fork; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program)
                .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
        })
    };
    Ok(command)
}
