//! Whether io_uring may be used here, asked of the kernel itself, and if not, who forbids it.
//!
//! Which opcodes the kernel knows comes from its own probe. What is not an opcode (multishot,
//! bundles, incremental buffers) is for the driver to find out.

use std::io;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use serde::Serialize;

use super::kernel::KernelVersion;
use super::privileges::{Privileges, Seccomp};
use super::read::{Reading, Root};

/// Entries of the probe's ring: the smallest that serves.
const PROBE_ENTRIES: u32 = 2;

/// Why no ring can be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// `kernel.io_uring_disabled` forbids it to everyone, or to all but one group.
    Sysctl,
    /// A seccomp filter refuses the system call: container runtimes and systemd do this.
    Seccomp,
    /// A security module such as SELinux refuses it.
    SecurityModule,
    /// The kernel was built without it or is older than 5.1.
    Kernel,
    /// Memory that may be locked, or memory at all, does not suffice.
    Memory,
    /// The process has no file descriptor left.
    Files,
    /// None of the known reasons fits the kernel's answer.
    Unexplained,
}

/// The kernel's answer to io_uring_setup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RingAccess {
    /// A ring was set up.
    Allowed,
    /// No ring.
    Refused {
        /// The kernel's error number.
        errno: i32,
        /// The same in words.
        error: String,
        /// Who refuses, judged by what else is known of this host.
        by: Blocked,
    },
}

/// An operation of the ring that ringmill uses where it can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Name as in the io_uring headers, without `IORING_OP_`.
    pub name: &'static str,
    /// Whether this kernel knows it.
    pub supported: bool,
}

/// What io_uring offers here.
#[derive(Debug, Clone, Serialize)]
pub struct Rings {
    /// `kernel.io_uring_disabled`: 0 allows, 1 allows to the group and to CAP_SYS_ADMIN, 2 forbids.
    pub disabled: Reading<u32>,
    /// `kernel.io_uring_group`: the group that level 1 allows, -1 for none.
    pub group: Reading<i64>,
    /// Whether a ring can be set up.
    pub access: RingAccess,
    /// Whether SINGLE_ISSUER with DEFER_TASKRUN is accepted (Linux 6.1 and newer).
    pub defer_taskrun: Reading<bool>,
    /// Operations, each supported or not.
    pub operations: Reading<Vec<Operation>>,
}

impl Rings {
    pub(super) fn read(
        root: &Root,
        kernel: Option<&KernelVersion>,
        privileges: &Privileges,
    ) -> Self {
        Self::judge(
            root,
            kernel,
            privileges,
            IoUring::new(PROBE_ENTRIES),
            || {
                IoUring::<squeue::Entry, cqueue::Entry>::builder()
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .build(PROBE_ENTRIES)
                    .map(drop)
            },
        )
    }

    /// The same with the kernel's answers given, so that tests can refuse.
    fn judge(
        root: &Root,
        kernel: Option<&KernelVersion>,
        privileges: &Privileges,
        ring: io::Result<IoUring>,
        defer_taskrun: impl FnOnce() -> io::Result<()>,
    ) -> Self {
        let disabled = root.sysctl("kernel.io_uring_disabled");
        let group = root.sysctl("kernel.io_uring_group");
        match ring {
            Ok(ring) => Self {
                disabled,
                group,
                access: RingAccess::Allowed,
                defer_taskrun: match defer_taskrun() {
                    Ok(()) => Reading::known(true),
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        Reading::known(false)
                    }
                    Err(error) => Reading::unknown(format!("a second ring was refused: {error}")),
                },
                operations: operations(&ring),
            },
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                let by = blocked_by(errno, disabled.value, kernel, privileges);
                let reason = "no ring to ask";
                Self {
                    disabled,
                    group,
                    access: RingAccess::Refused {
                        errno,
                        error: error.to_string(),
                        by,
                    },
                    defer_taskrun: Reading::unknown(reason),
                    operations: Reading::unknown(reason),
                }
            }
        }
    }
}

/// Who gave this error. The sysctl exists since Linux 6.6, io_uring itself since 5.1.
fn blocked_by(
    errno: i32,
    disabled: Option<u32>,
    kernel: Option<&KernelVersion>,
    privileges: &Privileges,
) -> Blocked {
    let filtered = privileges.seccomp.value == Some(Seccomp::Filter);
    // Before the sysctl existed nothing but a filter or a security module could answer EPERM.
    let by_sysctl = match disabled {
        Some(2) => true,
        Some(1) => !privileges.has("SYS_ADMIN"),
        _ => false,
    };
    match errno {
        libc::EPERM if by_sysctl => Blocked::Sysctl,
        libc::EPERM if filtered => Blocked::Seccomp,
        libc::EPERM => Blocked::SecurityModule,
        libc::EACCES => Blocked::SecurityModule,
        // Podman's filter answers ENOSYS. Where the sysctl exists, io_uring is built in.
        libc::ENOSYS
            if filtered && (disabled.is_some() || kernel.is_none_or(|k| k.at_least(5, 1))) =>
        {
            Blocked::Seccomp
        }
        libc::ENOSYS => Blocked::Kernel,
        libc::ENOMEM => Blocked::Memory,
        libc::EMFILE | libc::ENFILE => Blocked::Files,
        _ => Blocked::Unexplained,
    }
}

fn operations(ring: &IoUring) -> Reading<Vec<Operation>> {
    let mut probe = Probe::new();
    if let Err(error) = ring.submitter().register_probe(&mut probe) {
        return Reading::unknown(format!("the kernel does not answer the probe: {error}"));
    }
    let operation = |name, code| Operation {
        name,
        supported: probe.is_supported(code),
    };
    Reading::known(vec![
        operation("ACCEPT", opcode::Accept::CODE),
        operation("CONNECT", opcode::Connect::CODE),
        operation("SOCKET", opcode::Socket::CODE),
        operation("BIND", opcode::Bind::CODE),
        operation("LISTEN", opcode::Listen::CODE),
        operation("RECV", opcode::Recv::CODE),
        operation("SEND", opcode::Send::CODE),
        operation("RECVMSG", opcode::RecvMsg::CODE),
        operation("SENDMSG", opcode::SendMsg::CODE),
        operation("SEND_ZC", opcode::SendZc::CODE),
        operation("SENDMSG_ZC", opcode::SendMsgZc::CODE),
        operation("SHUTDOWN", opcode::Shutdown::CODE),
        operation("CLOSE", opcode::Close::CODE),
        operation("TIMEOUT", opcode::Timeout::CODE),
        operation("POLL_ADD", opcode::PollAdd::CODE),
        operation("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
        operation("MSG_RING", opcode::MsgRingData::CODE),
        operation("FILES_UPDATE", opcode::FilesUpdate::CODE),
        operation("FIXED_FD_INSTALL", opcode::FixedFdInstall::CODE),
        operation("URING_CMD", opcode::UringCmd16::CODE),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::FakeHost;

    #[test]
    fn who_refuses_is_told_by_errno_and_surroundings() {
        use Blocked::*;
        let plain = "Seccomp:\t0\nCapEff:\t0000000000000000\n";
        let filtered = "Seccomp:\t2\nCapEff:\t0000000000000000\n";
        let admin = "Seccomp:\t2\nCapEff:\t0000000000200000\n";
        for (name, errno, disabled, release, status, expected) in [
            ("Docker", libc::EPERM, Some("0"), "6.8.0", filtered, Seccomp),
            (
                "Docker, kernel without the sysctl",
                libc::EPERM,
                None,
                "6.1.0",
                filtered,
                Seccomp,
            ),
            (
                "Podman",
                libc::ENOSYS,
                Some("0"),
                "6.8.0",
                filtered,
                Seccomp,
            ),
            (
                "Podman, kernel without the sysctl",
                libc::ENOSYS,
                None,
                "6.1.0",
                filtered,
                Seccomp,
            ),
            (
                "sysctl for all",
                libc::EPERM,
                Some("2"),
                "6.8.0",
                plain,
                Sysctl,
            ),
            (
                "sysctl for all, in a container",
                libc::EPERM,
                Some("2"),
                "6.8.0",
                admin,
                Sysctl,
            ),
            (
                "sysctl for others",
                libc::EPERM,
                Some("1"),
                "6.8.0",
                plain,
                Sysctl,
            ),
            (
                "sysctl does not bind root, the filter does",
                libc::EPERM,
                Some("1"),
                "6.8.0",
                admin,
                Seccomp,
            ),
            (
                "SELinux",
                libc::EACCES,
                Some("0"),
                "6.8.0",
                plain,
                SecurityModule,
            ),
            (
                "some other module",
                libc::EPERM,
                Some("0"),
                "6.8.0",
                plain,
                SecurityModule,
            ),
            ("built without", libc::ENOSYS, None, "6.8.0", plain, Kernel),
            (
                "too old, in a container",
                libc::ENOSYS,
                None,
                "4.19.0",
                filtered,
                Kernel,
            ),
            ("memlock", libc::ENOMEM, None, "5.10.0", plain, Memory),
            ("file limit", libc::EMFILE, Some("0"), "6.8.0", plain, Files),
            ("no idea", libc::EIO, Some("0"), "6.8.0", plain, Unexplained),
        ] {
            let mut host = FakeHost::new().file("/proc/self/status", status);
            if let Some(disabled) = disabled {
                host = host.file("/proc/sys/kernel/io_uring_disabled", disabled);
            }
            let root = host.root();
            let kernel = release.parse().unwrap();
            let rings = Rings::judge(
                &root,
                Some(&kernel),
                &Privileges::read(&root),
                Err(io::Error::from_raw_os_error(errno)),
                || panic!("nothing more is asked once the ring is refused"),
            );
            match rings.access {
                RingAccess::Refused { errno: got, by, .. } => {
                    assert_eq!((got, by), (errno, expected), "{name}");
                }
                RingAccess::Allowed => panic!("{name}: allowed"),
            }
            assert!(rings.operations.reason.is_some(), "{name}");
        }
    }

    #[test]
    fn a_ring_answers_which_operations_it_knows() {
        let root = Root::default();
        let rings = Rings::read(&root, None, &Privileges::read(&root));
        if let RingAccess::Refused { error, by, .. } = &rings.access {
            println!("skipped: io_uring is refused here by {by:?}: {error}");
            return;
        }
        let operations = rings.operations.value.unwrap();
        assert!(operations.iter().any(|o| o.name == "RECV" && o.supported));
        assert!(rings.defer_taskrun.value.is_some());
    }

    #[test]
    fn a_kernel_without_the_flags_is_not_an_error() {
        let Ok(ring) = IoUring::new(PROBE_ENTRIES) else {
            println!("skipped: io_uring is refused here");
            return;
        };
        let root = Root::default();
        let rings = Rings::judge(&root, None, &Privileges::read(&root), Ok(ring), || {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        });
        assert_eq!(rings.access, RingAccess::Allowed);
        assert_eq!(rings.defer_taskrun.value, Some(false));
    }
}
