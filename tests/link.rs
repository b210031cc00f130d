//! Two network namespaces joined by a veth pair with the MTU of Ethernet: a path that loopback is not.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use crate::program::{ringmill, tethered};

/// Two namespaces joined by a veth pair; gone when dropped.
pub struct Link {
    names: [String; 2],
}

/// The addresses of the two ends (RFC 5737 and RFC 3849: reserved for such uses).
pub const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// The same for IPv6.
pub const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(|error| format!("ip {arguments}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {arguments}: {}", said.trim()))
}

impl Link {
    /// A link of its own for this process.
    ///
    /// # Errors
    /// Why this host, or this user, has none.
    pub fn new() -> Result<Self, String> {
        let id = std::process::id();
        let link = Self {
            names: [format!("ringmill-{id}-a"), format!("ringmill-{id}-b")],
        };
        let [a, b] = &link.names;
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        ip(&format!(
            "-n {a} link add end type veth peer name end netns {b}"
        ))?;
        for (number, name) in link.names.iter().enumerate() {
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} addr add {}/24 dev end", V4[number]))?;
            ip(&format!(
                "-n {name} addr add {}/64 dev end nodad",
                V6[number]
            ))?;
            ip(&format!("-n {name} link set end mtu 1500 up"))?;
        }
        Ok(link)
    }

    /// A command that runs ringmill in one of the namespaces. `ip` becomes the program by exec, so
    /// signals and the end reach the right process.
    #[must_use]
    pub fn ringmill(&self, number: usize) -> Command {
        let mut command = tethered(Command::new("ip"));
        command
            .args(["netns", "exec", &self.names[number]])
            .arg(ringmill());
        command
    }

    /// Does something in one of the namespaces, on a thread that ends with it.
    ///
    /// # Panics
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, number: usize, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/var/run/netns/{}", self.names[number]);
        let namespace = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let in_there = || {
            // SAFETY: setns takes an open descriptor and a flag, and moves this thread alone.
            let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{path}: {}", std::io::Error::last_os_error());
            work()
        };
        std::thread::scope(|scope| scope.spawn(in_there).join().expect("the work is done"))
    }
}

impl Link {
    /// The name of one of the namespaces.
    #[must_use]
    pub fn name(&self, number: usize) -> &str {
        &self.names[number]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}
