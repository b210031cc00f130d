//! What this process may do: capabilities, seccomp filters, and signs of a container around it.

use serde::Serialize;

use super::read::{Reading, Root};

/// Capability names by bit, from linux/capability.h, without the `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// How system calls of this process are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// Not at all.
    Off,
    /// Only read, write and exit are allowed.
    Strict,
    /// By one or more filter programs, as container runtimes and systemd install them.
    Filter,
}

/// What put this process into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Container {
    /// A pod of Kubernetes, whatever its runtime.
    Kubernetes,
    /// Docker or another user of its marker file.
    Docker,
    /// Podman, or CRI-O outside Kubernetes.
    Podman,
    /// Anything else that says it is one.
    Other,
}

/// What this process may do.
#[derive(Debug, Clone, Serialize)]
pub struct Privileges {
    /// Effective capabilities without `CAP_`, in the kernel's order.
    pub capabilities: Reading<Vec<String>>,
    /// Seccomp mode.
    pub seccomp: Reading<Seccomp>,
    /// The container around this process, by the marks that runtimes leave; no mark is no proof.
    pub container: Option<Container>,
}

impl Privileges {
    pub(super) fn read(root: &Root) -> Self {
        Self {
            capabilities: root
                .labelled("/proc/self/status", "CapEff:")
                .and_then(|text| match u64::from_str_radix(&text, 16) {
                    Ok(bits) => Reading::known(decode(bits)),
                    Err(_) => Reading::unknown(format!("'{text}' is no set of capabilities")),
                }),
            seccomp: root
                .labelled("/proc/self/status", "Seccomp:")
                .and_then(|text| match text.as_str() {
                    "0" => Reading::known(Seccomp::Off),
                    "1" => Reading::known(Seccomp::Strict),
                    "2" => Reading::known(Seccomp::Filter),
                    other => Reading::unknown(format!("'{other}' is no seccomp mode")),
                }),
            container: container(root),
        }
    }

    /// Whether the effective capabilities are known to contain `name`.
    pub fn has(&self, name: &str) -> bool {
        self.capabilities
            .value
            .as_ref()
            .is_some_and(|names| names.iter().any(|known| known == name))
    }
}

fn decode(bits: u64) -> Vec<String> {
    (0..u64::BITS as usize)
        .filter(|bit| bits >> bit & 1 == 1)
        .map(|bit| {
            CAPABILITIES
                .get(bit)
                .map_or_else(|| format!("{bit}"), |name| (*name).to_owned())
        })
        .collect()
}

fn container(root: &Root) -> Option<Container> {
    // The service account folder is mounted into pods; the cgroup path is the host's where visible.
    let groups = root.text("/proc/self/cgroup").value.unwrap_or_default();
    if root.exists("/var/run/secrets/kubernetes.io") || groups.contains("kubepods") {
        Some(Container::Kubernetes)
    } else if root.exists("/run/.containerenv") || groups.contains("libpod") {
        Some(Container::Podman)
    } else if root.exists("/.dockerenv") || groups.contains("docker") {
        Some(Container::Docker)
    } else if root.exists("/run/systemd/container") {
        Some(Container::Other)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::FakeHost;

    #[test]
    fn capabilities_are_decoded() {
        for (bits, names) in [
            ("0000000000000000", vec![]),
            ("0000000000000400", vec!["NET_BIND_SERVICE"]),
            (
                "0000000001003000",
                vec!["NET_ADMIN", "NET_RAW", "SYS_RESOURCE"],
            ),
            ("8000010000000000", vec!["CHECKPOINT_RESTORE", "63"]),
        ] {
            let host = FakeHost::new().file("/proc/self/status", &format!("CapEff:\t{bits}\n"));
            let privileges = Privileges::read(&host.root());
            assert_eq!(privileges.capabilities.value.unwrap(), names, "{bits}");
            assert!(privileges.seccomp.reason.is_some());
        }
    }

    #[test]
    fn containers_are_told_apart() {
        for (file, text, expected) in [
            ("/.dockerenv", "", Some(Container::Docker)),
            ("/run/.containerenv", "", Some(Container::Podman)),
            ("/run/systemd/container", "lxc", Some(Container::Other)),
            (
                "/proc/self/cgroup",
                "0::/kubepods.slice/x",
                Some(Container::Kubernetes),
            ),
            ("/proc/self/cgroup", "0::/user.slice", None),
        ] {
            let host = FakeHost::new().file(file, text);
            assert_eq!(
                Privileges::read(&host.root()).container,
                expected,
                "{file} {text}"
            );
        }
    }

    #[test]
    fn seccomp_modes_are_named() {
        for (mode, expected) in [
            ("0", Some(Seccomp::Off)),
            ("1", Some(Seccomp::Strict)),
            ("2", Some(Seccomp::Filter)),
            ("9", None),
        ] {
            let host = FakeHost::new().file(
                "/proc/self/status",
                &format!("Seccomp:\t{mode}\nSeccomp_filters:\t1\n"),
            );
            assert_eq!(Privileges::read(&host.root()).seccomp.value, expected);
        }
    }
}
