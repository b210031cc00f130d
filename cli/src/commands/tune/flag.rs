//! `--tune` of the commands that put load on a host: a warning when a limit binds below what they ask
//! for, or a profile that is applied before and taken back after.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{MEMORY_UNKNOWN_BYTES, find_profile, has_direct_descriptors, judged};
use crate::args::{DriverArg, EngineArgs};
use crate::endpoint::{Endpoint, Transport};
use crate::exit::Exit;
use crate::tune::Host;
use crate::tune::apply::{self, How};
use crate::tune::check;
use crate::tune::formula::Goal;
use crate::tune::limits::Usage;
use crate::tune::plan::{Request, Scope};
use crate::tune::profile::Role;
use crate::tune::state;

/// A capacity test that goes beyond this needs the buffers of the reference.
const CAPACITY_BITS_PER_S: f64 = 1e9;

/// What `--tune` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TuneWish {
    /// Do not look at the host.
    Off,
    /// Warn when a limit binds below what is asked for.
    Check,
    /// Apply a profile, and take it back at the end.
    Apply(String),
}

impl FromStr for TuneWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "check" => Ok(Self::Check),
            None if text == "off" => Ok(Self::Off),
            Some(("apply", profile)) if !profile.is_empty() => Ok(Self::Apply(profile.into())),
            _ => Err(format!("'{text}' is not check, off or apply:PROFILE")),
        }
    }
}

/// The flag.
#[derive(Debug, Clone, Args)]
pub struct TuneFlag {
    /// Look at the host: 'check' warns when a limit binds, 'apply:PROFILE' tunes it for this run and
    /// takes it back at the end (needs root; see `ringmill tune`), 'off' does neither.
    #[arg(
        long,
        global = true,
        value_name = "check|apply:PROFILE|off",
        default_value = "check",
        help_heading = "Host"
    )]
    pub tune: TuneWish,

    /// The record of old values, for tests that must not share the host's.
    #[arg(long, global = true, value_name = "FILE", default_value = state::PATH, hide = true)]
    pub tune_state: PathBuf,
}

/// What a command asks of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOnHost {
    /// Which end it is; none where nothing is asked.
    role: Option<Role>,
    connections: u64,
    sources: u64,
    destinations: u64,
    bits_per_s: Option<f64>,
    interface: Option<String>,
    /// Whether it may use rings.
    rings: bool,
}

impl LoadOnHost {
    /// Nothing at all: nothing is checked, and nothing applied.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            role: None,
            connections: 0,
            sources: 1,
            destinations: 1,
            bits_per_s: None,
            interface: None,
            rings: true,
        }
    }

    fn of(role: Role, engine: &EngineArgs) -> Self {
        Self {
            role: Some(role),
            interface: engine.interface.first().cloned(),
            rings: engine.driver != DriverArg::Epoll,
            ..Self::nothing()
        }
    }

    /// A server; with no bound on its connections it asks for none in particular.
    #[must_use]
    pub fn of_server(connections: Option<usize>, engine: &EngineArgs) -> Self {
        Self {
            connections: connections.unwrap_or(0) as u64,
            ..Self::of(Role::Server, engine)
        }
    }

    /// A client.
    #[must_use]
    pub fn of_client(
        endpoint: &Endpoint,
        connections: usize,
        sources: usize,
        engine: &EngineArgs,
    ) -> Self {
        let role = match endpoint {
            Endpoint::Inet {
                transport: Transport::Udp,
                ..
            } => Role::Datagrams,
            _ => Role::Client,
        };
        Self {
            connections: connections as u64,
            sources: sources.max(1) as u64,
            ..Self::of(role, engine)
        }
    }

    /// Both ends of its connections, or with a server elsewhere the client's.
    #[must_use]
    pub fn of_soak(
        connections: usize,
        sources: u64,
        destinations: usize,
        has_server: bool,
        engine: &EngineArgs,
    ) -> Self {
        let role = match has_server {
            true => Role::Both,
            false => Role::Client,
        };
        Self {
            connections: connections as u64,
            sources: sources.max(1),
            destinations: destinations.max(1) as u64,
            ..Self::of(role, engine)
        }
    }

    /// A capacity test.
    #[must_use]
    pub fn of_datagrams(engine: &EngineArgs) -> Self {
        Self {
            bits_per_s: Some(CAPACITY_BITS_PER_S),
            ..Self::of(Role::Datagrams, engine)
        }
    }
}

impl TuneFlag {
    /// Runs `work` with the host checked or tuned as the flag says.
    ///
    /// # Errors
    /// Those of the work, and what stands against tuning.
    pub(crate) fn around(
        &self,
        load: LoadOnHost,
        work: impl FnOnce() -> Result<Exit>,
    ) -> Result<Exit> {
        let Some(role) = load.role else {
            return work();
        };
        match &self.tune {
            TuneWish::Off => work(),
            TuneWish::Check => {
                if let Some(line) = warning(&load, role) {
                    eprintln!("ringmill: warning: {line}; see `ringmill tune check`");
                }
                work()
            }
            TuneWish::Apply(profile) => {
                let ended = Arc::new(AtomicBool::new(false));
                // From here on a signal ends the run by the way that takes the tuning back. The command
                // itself counts them as soon as it runs.
                for signal in [SIGINT, SIGTERM] {
                    signal_hook::flag::register(signal, Arc::clone(&ended))
                        .context("cannot catch signals")?;
                }
                let tuned = Tuned::apply(profile, &self.tune_state, &load)?;
                if ended.load(Ordering::SeqCst) {
                    return Ok(Exit::Interrupted);
                }
                let result = work();
                drop(tuned);
                result
            }
        }
    }
}

fn warning(load: &LoadOnHost, role: Role) -> Option<String> {
    // What every host can do is not worth the look at this one.
    if load.connections < CONNECTIONS_ANYWHERE && load.bits_per_s.is_none() {
        return None;
    }
    let goal = Goal {
        connections: load.connections,
        bits_per_s: load.bits_per_s,
        opens_per_s: None,
        memory_bytes: 0,
    };
    let usage = Usage {
        role,
        sources: load.sources,
        destinations: load.destinations,
        rtt_s: None,
        direct_descriptors: load.rings && has_direct_descriptors(),
        fragments: false,
    };
    check::warning(&Host::this(), &goal, &usage)
}

/// The soft limit of open files that Linux has always had, less some.
const CONNECTIONS_ANYWHERE: u64 = 900;

/// A tuned host; taken back when dropped.
struct Tuned {
    host: Host,
    state: PathBuf,
}

impl Tuned {
    /// Applies a profile for this process. `None` where a person applied it already: then it stays.
    fn apply(profile: &str, state: &Path, load: &LoadOnHost) -> Result<Option<Self>> {
        let host = Host::this();
        let profile = find_profile(profile)?;
        let record = state::read(state)?;
        if record.is_some_and(|record| record.owner.is_none() && record.profile == profile.name) {
            eprintln!(
                "ringmill: profile {} is applied already, and stays so",
                profile.name
            );
            return Ok(None);
        }
        let memory = host.facts().machine.memory_bytes.value;
        let request = Request {
            goal: Goal {
                connections: load.connections.max(profile.connections),
                bits_per_s: None,
                opens_per_s: None,
                memory_bytes: memory.unwrap_or(MEMORY_UNKNOWN_BYTES),
            },
            profile,
            interface: load.interface.clone(),
            ports: Vec::new(),
            sources: Vec::new(),
            scope: if host.is_in_a_namespace() {
                Scope::Network
            } else {
                Scope::Host
            },
            persist: false,
        };
        let tuned = Self {
            host,
            state: state.to_owned(),
        };
        let how = How {
            keep_changed: false,
            owner: Some(std::process::id()),
        };
        let outcome = apply::apply(&tuned.host, &tuned.state, &request, how).map_err(judged)?;
        for failed in &outcome.failed {
            eprintln!(
                "ringmill: warning: not tuned: {}: {}",
                failed.what, failed.why
            );
        }
        for warning in &outcome.warnings {
            eprintln!("ringmill: warning: {warning}");
        }
        eprintln!(
            "ringmill: profile {}: {} settings changed for this run",
            outcome.profile,
            outcome.changed.len()
        );
        Ok(Some(tuned))
    }
}

impl Drop for Tuned {
    fn drop(&mut self) {
        // A record that is another's stays: it is what an apply is refused for.
        let record = state::read(&self.state).ok().flatten();
        if record.is_none_or(|record| record.owner != Some(std::process::id())) {
            return;
        }
        match apply::revert(&self.host, &self.state, false) {
            Ok(outcome) => {
                for failed in outcome.into_iter().flat_map(|outcome| outcome.failed) {
                    eprintln!(
                        "ringmill: warning: not taken back: {}: {}",
                        failed.what, failed.why
                    );
                }
            }
            Err(error) => eprintln!("ringmill: the tuning was not taken back: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_three() {
        for (text, wish) in [
            ("check", Some(TuneWish::Check)),
            ("off", Some(TuneWish::Off)),
            ("apply:lab", Some(TuneWish::Apply("lab".into()))),
            (
                "apply:./mine.toml",
                Some(TuneWish::Apply("./mine.toml".into())),
            ),
            ("apply:", None),
            ("apply", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), wish, "{text}");
        }
    }

    #[test]
    fn what_every_host_can_do_warns_of_nothing() {
        let engine = EngineArgs::default();
        assert_eq!(
            warning(&LoadOnHost::of_server(None, &engine), Role::Server),
            None
        );
        assert_eq!(
            warning(&LoadOnHost::of_server(Some(100), &engine), Role::Server),
            None
        );
    }

    #[test]
    fn a_soak_is_warned_of_ports_by_its_sources_and_endpoints() {
        let engine = EngineArgs::default();
        // More than one pair of addresses has ports, less than files and memory of any host allow.
        let of = |sources, destinations| {
            let load = LoadOnHost::of_soak(66_000, sources, destinations, false, &engine);
            warning(&load, Role::Client).unwrap_or_default()
        };
        assert!(of(1, 1).contains("1 source addresses × 1 destinations"));
        for (sources, destinations) in [(66, 1), (1, 66), (8, 9)] {
            let line = of(sources, destinations);
            assert!(!line.contains("ip_local_port_range"), "{line}");
        }
        let both = LoadOnHost::of_soak(1 << 40, 1, 1, true, &engine);
        assert_eq!(both.role, Some(Role::Both));
    }

    #[test]
    fn what_no_host_can_do_is_warned_of() {
        let load = LoadOnHost::of_server(Some(1 << 40), &EngineArgs::default());
        let line = warning(&load, Role::Server).expect("memory binds at the latest");
        assert!(line.contains("binds at") && !line.contains('\n'), "{line}");
    }
}
