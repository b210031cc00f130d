//! What this host allows, as data: read once at start, shown by `ringmill doctor`.
//!
//! Readings come from `/proc` and `/sys` and from a few harmless trials in this process: a ring set
//! up and dropped, two UDP sockets on loopback, a socket buffer asked for. Nothing is changed, nothing
//! is printed, and nothing fails: what cannot be read is a [`Reading`] without a value and with the
//! reason. [`advice`] says which of it limits ringmill and what to type about it.

mod advice;
mod datagrams;
mod kernel;
mod limits;
mod privileges;
mod read;
mod rings;

use serde::Serialize;

pub use advice::{Advice, Severity, Topic, advice};
pub use datagrams::Datagrams;
pub use kernel::{ControlGroup, KernelVersion, Machine};
pub use limits::{FileLimits, NetworkLimits, PortRange, SOCKET_BUFFER_ASKED_BYTES, SocketBuffers};
pub use privileges::{Container, Privileges, Seccomp};
pub use read::{Limit, Reading, Root};
pub use rings::{Blocked, Operation, RingAccess, Rings};

/// Everything that is known about this host.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Kernel, CPUs, memory, virtualisation.
    pub machine: Machine,
    /// Capabilities, seccomp, container.
    pub privileges: Privileges,
    /// Limits of the control group.
    pub control_group: ControlGroup,
    /// io_uring.
    pub rings: Rings,
    /// Segmentation of UDP.
    pub datagrams: Datagrams,
    /// Open files and locked memory.
    pub files: FileLimits,
    /// Socket buffers.
    pub socket_buffers: SocketBuffers,
    /// Ports, listen queues, connection tracking.
    pub network: NetworkLimits,
}

impl Host {
    /// Reads this host. Takes a few milliseconds; opens and closes a few descriptors.
    pub fn read() -> Self {
        Self::read_below(&Root::default())
    }

    /// The same with the files below another root; rings and sockets are still this host's.
    pub fn read_below(root: &Root) -> Self {
        let machine = Machine::read(root);
        let privileges = Privileges::read(root);
        Self {
            control_group: ControlGroup::read(root),
            rings: Rings::read(root, machine.kernel.value.as_ref(), &privileges),
            datagrams: Datagrams::probe(),
            files: FileLimits::read(root),
            socket_buffers: SocketBuffers::read(root),
            network: NetworkLimits::read(root),
            machine,
            privileges,
        }
    }

    /// Whether the `uring` driver can work here; the `epoll` driver always can.
    pub fn allows_rings(&self) -> bool {
        self.rings.access == RingAccess::Allowed
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A folder that looks like a host as far as its files go; removed when dropped.
    #[derive(Debug)]
    pub(super) struct FakeHost(PathBuf);

    impl FakeHost {
        pub(super) fn new() -> Self {
            static COUNTER: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "ringmill-host-{}-{}",
                std::process::id(),
                COUNTER.fetch_add(1, Ordering::Relaxed)
            );
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        pub(super) fn file(self, path: &str, text: &str) -> Self {
            let path = self.0.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            self
        }

        pub(super) fn root(&self) -> Root {
            Root::at(&self.0)
        }
    }

    impl Drop for FakeHost {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn this_host_is_read_and_serialised() {
        let host = Host::read();
        assert!(
            host.machine.kernel.value.is_some(),
            "{}",
            host.machine.kernel
        );
        let json = serde_json::to_value(&host).unwrap();
        assert!(json["rings"]["access"]["state"].is_string());
        assert!(json["machine"]["kernel"]["value"]["major"].is_number());
    }

    #[test]
    fn an_empty_host_has_a_reason_for_everything() {
        let folder = FakeHost::new();
        let json = serde_json::to_value(Host::read_below(&folder.root())).unwrap();
        let mut unexplained = Vec::new();
        walk("host", &json, &mut unexplained);
        assert_eq!(unexplained, Vec::<String>::new());

        fn walk(path: &str, json: &serde_json::Value, unexplained: &mut Vec<String>) {
            let Some(object) = json.as_object() else {
                return;
            };
            if object.get("value").is_some_and(serde_json::Value::is_null)
                && !object.contains_key("reason")
            {
                unexplained.push(path.to_owned());
            }
            for (key, value) in object {
                walk(&format!("{path}.{key}"), value, unexplained);
            }
        }
    }
}
