//! `ringmill tune`: what a host should be like for one kind of work, which limit binds first, and how to
//! change it and take it back.

mod check;
mod flag;
mod report;

pub use flag::{LoadOnHost, TuneFlag, TuneWish};

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use ringmill_engine::uring;

use crate::args::parse_connections;
use crate::exit::{Exit, UsageError};
use crate::tune::Host;
use crate::tune::apply::{self, How, TuneError};
use crate::tune::formula::Goal;
use crate::tune::plan::{Ports, Request, Scope};
use crate::tune::profile::{self, Profile};
use crate::tune::sources::SourcesArg;
use crate::tune::{script, state};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  ringmill tune check --profile tcp-server --connections 200k     what binds first, and at how many
  ringmill tune plan --profile udp-capacity --interface eth0      the commands, as a script to read
  ringmill tune apply --profile udp-capacity --interface eth0     do it; every old value is recorded
  ringmill tune revert                                            take it back

Exit codes of check: 0 everything is as wanted and no limit binds below what was asked for, 3 something is
not, 2 wrong flags. See docs/tuning.md.";

/// Flags of `ringmill tune`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TuneArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TuneCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum TuneCommand {
    /// Show each setting as it is and should be, and which limit binds first. Changes nothing.
    Check(check::CheckArgs),
    /// Print the commands that would be run, as a shell script. Changes nothing.
    Plan(PlanArgs),
    /// Make the changes; every old value is recorded first.
    Apply(ApplyArgs),
    /// Restore what was recorded.
    Revert(RevertArgs),
    /// List the profiles.
    Profiles,
    /// Write every profile as a script for any host.
    Scripts(ScriptsArgs),
}

/// What a host is tuned for: flags of check, plan and apply.
#[derive(Debug, Clone, Args)]
pub struct GoalArgs {
    /// A profile by name (see `ringmill tune profiles`), or a file of one's own (*.toml).
    #[arg(long, value_name = "NAME|FILE")]
    pub profile: String,

    /// Connections, sessions or flows at once [default: the profile's].
    #[arg(long, short = 'c', value_name = "N", value_parser = parse_connections)]
    pub connections: Option<usize>,

    /// Rate over the card (10Gbit), or connections opened per second (30k).
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<Rate>,

    /// The network card; without it nothing of a card is looked at.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// Ports in use, such as 7000,9000-9010: only they bypass connection tracking (profile lab).
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub ports: Vec<Ports>,

    /// Source addresses that clients connect from: those that the card should have, as 10.0.1.0/28 or
    /// 10.0.1.7,10.0.1.8; or, for check, only how many there are.
    #[arg(long, value_name = "N|LIST", default_value = "1")]
    pub sources: SourcesArg,

    /// Change the whole host, or only this network namespace [default: the host, or the namespace where
    /// it is not the host's].
    #[arg(long, value_enum)]
    pub scope: Option<Scope>,

    /// Which host, and where the record is.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Which host, and where the record is.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    /// The record of old values.
    #[arg(long, value_name = "FILE", default_value = state::PATH)]
    pub state: PathBuf,

    /// Read and write below this folder, which looks like a host (proc, sys, etc), instead of the host.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Flags of `ringmill tune plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// For what.
    #[command(flatten)]
    pub goal: GoalArgs,

    /// Also write the files that make it last over a reboot.
    #[arg(long)]
    pub persist: bool,
}

/// Flags of `ringmill tune apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// For what.
    #[command(flatten)]
    pub goal: GoalArgs,

    /// Also write the files that make it last over a reboot: sysctl.d, a unit, a udev rule, drop-ins.
    #[arg(long)]
    pub persist: bool,

    /// Leave alone what somebody changed after an earlier apply, and forget it, instead of refusing.
    #[arg(long)]
    pub keep_changed: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `ringmill tune revert`.
#[derive(Debug, Args)]
pub struct RevertArgs {
    /// Which host, and where the record is.
    #[command(flatten)]
    pub place: PlaceArgs,

    /// Leave alone what somebody changed after the apply, and forget it.
    #[arg(long)]
    pub keep_changed: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `ringmill tune scripts`.
#[derive(Debug, Args)]
pub struct ScriptsArgs {
    /// Into this folder, as PROFILE.sh.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What `--rate` can mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Over the card.
    Bits(f64),
    /// Connections opened per second.
    Opens(f64),
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    if text.to_ascii_lowercase().contains("bit") {
        let bits = units::parse_bit_rate(text);
        return bits.map(Rate::Bits).map_err(|error| error.to_string());
    }
    let opens = units::parse_rate(text);
    opens.map(Rate::Opens).map_err(|error| error.to_string())
}

/// Runs it.
///
/// # Errors
/// When the flags are wrong, or something stands against all of it.
pub fn run(args: &TuneArgs) -> Result<Exit> {
    match &args.command {
        TuneCommand::Check(args) => check::run(args),
        TuneCommand::Plan(args) => plan(args),
        TuneCommand::Apply(args) => apply(args),
        TuneCommand::Revert(args) => revert(args),
        TuneCommand::Profiles => {
            profiles();
            Ok(Exit::Ok)
        }
        TuneCommand::Scripts(args) => scripts(args),
    }
}

impl PlaceArgs {
    fn host(&self) -> Host {
        self.root.as_deref().map_or_else(Host::this, Host::at)
    }

    /// The record; that of a folder is below it.
    fn state(&self) -> PathBuf {
        match &self.root {
            Some(root) if self.state == Path::new(state::PATH) => {
                root.join(state::PATH.trim_start_matches('/'))
            }
            _ => self.state.clone(),
        }
    }
}

/// A profile by name or file.
///
/// # Errors
/// When there is none, or it is not in the format.
pub fn find_profile(name: &str) -> Result<Profile> {
    let found = if Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        let text = std::fs::read_to_string(name)
            .map_err(|error| UsageError(format!("profile {name} cannot be read: {error}")))?;
        Profile::parse(name, &text)
    } else {
        Profile::named(name)
    };
    Ok(found.map_err(|error| UsageError(error.to_string()))?)
}

/// A plan wants a size to compute with; where the host does not say, the smallest that is sold.
const MEMORY_UNKNOWN_BYTES: u64 = 1 << 30;

impl GoalArgs {
    /// What is asked for on a host.
    fn request(&self, host: &Host, persist: bool) -> Result<Request> {
        let profile = find_profile(&self.profile)?;
        let memory = host.facts().machine.memory_bytes.value;
        let goal = Goal {
            connections: self
                .connections
                .map_or(profile.connections, |count| count as u64),
            bits_per_s: self.rate.and_then(|rate| match rate {
                Rate::Bits(bits) => Some(bits),
                Rate::Opens(_) => None,
            }),
            opens_per_s: self.rate.and_then(|rate| match rate {
                Rate::Opens(opens) => Some(opens),
                Rate::Bits(_) => None,
            }),
            memory_bytes: memory.unwrap_or(MEMORY_UNKNOWN_BYTES),
        };
        if !self.sources.addresses().is_empty() && self.interface.is_none() {
            return Err(UsageError(
                "--sources names addresses: say by --interface which card should have them".into(),
            )
            .into());
        }
        let scope = self.scope.unwrap_or_else(|| {
            if host.is_in_a_namespace() {
                Scope::Network
            } else {
                Scope::Host
            }
        });
        if scope == Scope::Network && persist {
            return Err(UsageError(
                "--persist writes files of the whole host, and only a network namespace is tuned (--scope)".into(),
            )
            .into());
        }
        Ok(Request {
            profile,
            goal,
            interface: self.interface.clone(),
            ports: self.ports.clone(),
            sources: self.sources.addresses().to_vec(),
            scope,
            persist,
        })
    }
}

/// An error of tuning with the exit code that it deserves.
fn judged(error: TuneError) -> anyhow::Error {
    match error {
        TuneError::Plan(_) | TuneError::OtherProfile { .. } | TuneError::OtherNamespace { .. } => {
            UsageError(error.to_string()).into()
        }
        other => other.into(),
    }
}

fn plan(args: &PlanArgs) -> Result<Exit> {
    let host = args.goal.place.host();
    let request = args.goal.request(&host, args.persist)?;
    let plan = apply::plan(&host, &args.goal.place.state(), &request).map_err(judged)?;
    print!("{}", script::of_plan(&plan));
    Ok(Exit::Ok)
}

fn apply(args: &ApplyArgs) -> Result<Exit> {
    let place = &args.goal.place;
    let host = place.host();
    let request = args.goal.request(&host, args.persist)?;
    let how = How {
        keep_changed: args.keep_changed,
        owner: None,
    };
    let outcome = apply::apply(&host, &place.state(), &request, how).map_err(judged)?;
    report::applied(&outcome, &place.state(), args.json)?;
    Ok(if outcome.failed.is_empty() {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

fn revert(args: &RevertArgs) -> Result<Exit> {
    let state = args.place.state();
    let outcome = apply::revert(&args.place.host(), &state, args.keep_changed).map_err(judged)?;
    report::reverted(outcome.as_ref(), &state, args.json)?;
    let is_whole = outcome.is_none_or(|outcome| outcome.failed.is_empty());
    Ok(if is_whole { Exit::Ok } else { Exit::Failed })
}

fn profiles() {
    for name in profile::names() {
        if let Ok(profile) = Profile::named(name) {
            println!("{name:<24} {}", profile.title);
        }
    }
}

fn scripts(args: &ScriptsArgs) -> Result<Exit> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = args.out.display();
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {folder}"))?;
    for name in profile::names() {
        let profile = Profile::named(name)?;
        let file = args.out.join(format!("{name}.sh"));
        std::fs::write(&file, script::of_profile(&profile))
            .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{} scripts in {folder}", profile::names().len());
    Ok(Exit::Ok)
}

/// Whether rings hold connections that are no files of the process.
#[must_use]
pub fn has_direct_descriptors() -> bool {
    let features = uring::probe(&uring::Options::default());
    features.is_ok_and(|features| features.has(uring::Feature::DirectDescriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_bits_or_of_connections() {
        assert_eq!(parse_rate("10Gbit"), Ok(Rate::Bits(1e10)));
        assert_eq!(parse_rate("30k"), Ok(Rate::Opens(30_000.0)));
        assert!(parse_rate("fast").is_err());
    }

    /// `tuning/*.sh` are made from the profiles; `make tuning` makes them again.
    #[test]
    fn the_scripts_in_the_project_are_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tuning");
        for name in profile::names() {
            let file = folder.join(format!("{name}.sh"));
            let found = std::fs::read_to_string(&file).unwrap_or_default();
            let made = script::of_profile(&Profile::named(name).unwrap());
            assert!(
                found == made,
                "{} is not current: run `make tuning`",
                file.display()
            );
        }
    }
}
