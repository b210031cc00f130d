//! Network namespaces of our own, for what must not touch the host's network settings or counters.
//!
//! Only those made here are ever changed or removed.

use std::process::Command;

use anyhow::{Context, ensure};

use crate::process::{Line, Running};

/// A network namespace, gone when dropped.
pub(crate) struct Namespace(String);

impl Namespace {
    /// Makes one of this name, without a link that is up.
    ///
    /// # Errors
    /// This process may not (it takes root).
    pub(crate) fn add(name: &str) -> anyhow::Result<Namespace> {
        ip(&format!("netns add {name}")).context("cannot make a network namespace (as root?)")?;
        Ok(Namespace(name.into()))
    }

    /// One with its loopback up, for both ends of a benchmark.
    ///
    /// # Errors
    /// As [`Namespace::add`].
    pub(crate) fn with_loopback(role: &str) -> anyhow::Result<Namespace> {
        let namespace = Namespace::add(&format!("ringmill-{role}-{}", std::process::id()))?;
        ip(&format!("-n {} link set lo up", namespace.0))?;
        Ok(namespace)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// The same command, inside.
    pub(crate) fn inside(&self, line: &Line) -> Line {
        Line::new("ip")
            .args(&format!("netns exec {}", self.0))
            .joined(line)
    }

    /// Starts a command inside.
    ///
    /// # Errors
    /// As [`Running::start`].
    pub(crate) fn start(&self, line: &Line, cpu: usize) -> anyhow::Result<Running> {
        Running::start(&self.inside(line), cpu)
    }

    /// Runs a command inside to its end.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn run(&self, command: &str) -> anyhow::Result<()> {
        ip(&format!("netns exec {} {command}", self.0))
    }

    /// Sets a sysctl that each namespace has of its own; one that it has not is not there to be set.
    ///
    /// # Errors
    /// There is no such sysctl inside, or it takes another value.
    pub(crate) fn set(&self, sysctl: &str, value: &str) -> anyhow::Result<()> {
        run_command(
            Command::new("ip")
                .args(["netns", "exec", &self.0, "sysctl", "-qw"])
                .arg(format!("{sysctl}={value}")),
        )
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("netns delete {}", self.0)) {
            eprintln!("{error:#}");
        }
    }
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// It is missing, or fails.
pub(crate) fn ip(arguments: &str) -> anyhow::Result<()> {
    run_command(Command::new("ip").args(arguments.split_whitespace()))
}

fn run_command(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .context("cannot start ip (Debian: apt install iproute2)")?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
