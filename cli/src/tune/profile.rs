//! Profiles: what a host should be like for one kind of work, as data with a reason and a source for
//! every value (`tuning/profiles/*.toml`).
//!
//! They are compiled in, so the program and its data cannot disagree; a file of one's own in the same
//! format works too. Reading a profile looks at no host.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::formula::{Formula, Goal};
use super::setting::{NicField, NicFieldError, Setting};

/// The profiles that come with ringmill, by name.
const BUILT_IN: [(&str, &str); 8] = [
    (
        "tcp-server",
        include_str!("../../../tuning/profiles/tcp-server.toml"),
    ),
    (
        "tcp-client",
        include_str!("../../../tuning/profiles/tcp-client.toml"),
    ),
    (
        "udp-capacity",
        include_str!("../../../tuning/profiles/udp-capacity.toml"),
    ),
    (
        "udp-capacity-no-jumbo",
        include_str!("../../../tuning/profiles/udp-capacity-no-jumbo.toml"),
    ),
    (
        "udp-capacity-fragmented",
        include_str!("../../../tuning/profiles/udp-capacity-fragmented.toml"),
    ),
    (
        "udp-capacity-low-end",
        include_str!("../../../tuning/profiles/udp-capacity-low-end.toml"),
    ),
    (
        "dtls-cluster",
        include_str!("../../../tuning/profiles/dtls-cluster.toml"),
    ),
    ("lab", include_str!("../../../tuning/profiles/lab.toml")),
];

/// Profiles that build upon others, at most: one that builds upon itself is found out.
const DEPTH_MAX: usize = 4;

/// Which end of the connections the host is: decides which limits bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Accepts connections.
    Server,
    /// Opens them.
    Client,
    /// Both ends of each connection are on this host.
    Both,
    /// Sends and receives datagrams.
    Datagrams,
}

impl Role {
    /// Whether connections are opened here.
    #[must_use]
    pub fn opens(self) -> bool {
        matches!(self, Self::Client | Self::Both)
    }

    /// Whether connections are accepted here.
    #[must_use]
    pub fn accepts(self) -> bool {
        matches!(self, Self::Server | Self::Both)
    }

    /// Whether it is about connections at all.
    #[must_use]
    pub fn is_stream(self) -> bool {
        self != Self::Datagrams
    }
}

/// What a host should be like for one kind of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What it is for, in one line.
    pub title: String,
    /// Which end the host is.
    pub role: Role,
    /// Connections that are planned for when nobody says how many.
    pub connections: u64,
    /// The settings, in the order in which they are made.
    pub knobs: Vec<Knob>,
    /// What no setting of a host can do.
    pub advice: Vec<Advice>,
}

/// Something to know rather than to set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advice {
    /// What to do.
    pub text: String,
    /// Where it is from.
    pub source: String,
}

/// One thing that should have a certain value.
#[derive(Debug, Clone, PartialEq)]
pub struct Knob {
    /// Which thing.
    pub target: Target,
    /// The value.
    pub want: Want,
    /// Why.
    pub reason: String,
    /// Who says so.
    pub source: String,
    /// What may go wrong with it: such a knob warns.
    pub risk: Option<String>,
    /// It is shown and never changed.
    pub check_only: bool,
}

/// What a knob is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A sysctl.
    Sysctl(String),
    /// Open files of a process (RLIMIT_NOFILE).
    Files,
    /// A parameter of a kernel module: module and name.
    Parameter(String, String),
    /// A setting of the card.
    Nic(NicField),
    /// Where the card's queues are served.
    Queues(Queues),
    /// The frequency governor of every CPU.
    Governor,
    /// Connection tracking, bypassed for the ports in use.
    ConntrackBypass,
    /// A running irqbalance.
    Irqbalance,
}

/// A part of the placement of a card's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Queues {
    /// Which CPUs serve its interrupts.
    Interrupts,
    /// Which transmit queue a CPU uses (XPS).
    Transmit,
    /// Which CPUs process what it received (RPS).
    Receive,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(name) => f.write_str(name),
            Self::Files => f.write_str("open files of a process"),
            Self::Parameter(module, name) => write!(f, "{module} {name}"),
            Self::Nic(field) => write!(f, "NIC {field}"),
            Self::Queues(Queues::Interrupts) => f.write_str("NIC interrupts"),
            Self::Queues(Queues::Transmit) => f.write_str("NIC transmit queues (XPS)"),
            Self::Queues(Queues::Receive) => f.write_str("NIC receive queues (RPS)"),
            Self::Governor => f.write_str("frequency governor"),
            Self::ConntrackBypass => f.write_str("connection tracking"),
            Self::Irqbalance => f.write_str("irqbalance"),
        }
    }
}

impl Target {
    /// The setting of a target that is one file.
    #[must_use]
    pub fn single(&self) -> Option<Setting> {
        match self {
            Self::Sysctl(name) => Some(Setting::sysctl(name)),
            Self::Parameter(module, name) => Some(Setting::File {
                path: format!("/sys/module/{module}/parameters/{name}"),
            }),
            _ => None,
        }
    }
}

/// Which values are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Every number at least so high; a higher one stays.
    AtLeast(Amount),
    /// A number not above this.
    AtMost(u64),
    /// Exactly this.
    Exactly(String),
    /// As high as the card can.
    Maximum,
    /// One for each shard.
    Shards,
    /// By the plan of the shards.
    Placement,
}

/// A number or how to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Amount {
    /// This number.
    Number(u64),
    /// What the formula gives.
    Formula(Formula),
}

impl Amount {
    /// The numbers.
    #[must_use]
    pub fn values(&self, goal: &Goal) -> Vec<u64> {
        match self {
            Self::Number(number) => vec![*number],
            Self::Formula(formula) => formula.values(goal),
        }
    }
}

impl Want {
    /// What a value should become; `None`: it is right. Not for placements, which have no one value.
    #[must_use]
    pub fn change(
        &self,
        now: &str,
        maximum: Option<u64>,
        shards: u64,
        goal: &Goal,
    ) -> Option<String> {
        let numbers = || {
            now.split(' ')
                .map(|word| word.parse().ok())
                .collect::<Option<Vec<u64>>>()
        };
        let changed = |wanted: String| (wanted != now).then_some(wanted);
        let words = |numbers: Vec<u64>| {
            numbers
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        match self {
            Self::AtLeast(amount) => {
                let wanted = amount.values(goal);
                match numbers() {
                    Some(now) if now.len() == wanted.len() => changed(words(
                        now.into_iter().zip(wanted).map(|(a, b)| a.max(b)).collect(),
                    )),
                    _ => changed(words(wanted)),
                }
            }
            Self::AtMost(most) => match numbers().as_deref() {
                Some([now]) if now <= most => None,
                _ => Some(most.to_string()),
            },
            Self::Exactly(value) => changed(value.clone()),
            Self::Maximum => maximum.and_then(|most| changed(most.to_string())),
            Self::Shards => match (numbers().as_deref(), maximum) {
                (Some([now]), most) => {
                    let wanted = shards.min(most.unwrap_or(shards));
                    (*now < wanted).then(|| wanted.to_string())
                }
                _ => None,
            },
            Self::Placement => None,
        }
    }

    /// The wish in a few words, for a table.
    #[must_use]
    pub fn in_words(&self, goal: &Goal) -> String {
        match self {
            Self::AtLeast(amount) => {
                let values = amount
                    .values(goal)
                    .iter()
                    .map(u64::to_string)
                    .collect::<Vec<_>>();
                format!("at least {}", values.join(" "))
            }
            Self::AtMost(most) => format!("at most {most}"),
            Self::Exactly(value) => value.clone(),
            Self::Maximum => "as many as the card has".into(),
            Self::Shards => "one for each shard".into(),
            Self::Placement => "as the shards are placed".into(),
        }
    }
}

/// What is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// No such profile.
    #[error("there is no profile '{name}'; there are {}", names().join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The file is not in the format.
    #[error("profile {name}: {problem}")]
    Format {
        /// Which profile.
        name: String,
        /// What is wrong, and where.
        problem: String,
    },
}

/// The names of the profiles that come with ringmill.
#[must_use]
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).collect()
}

impl Profile {
    /// Whether it is for datagrams that travel in fragments.
    #[must_use]
    pub fn expects_fragments(&self) -> bool {
        let memory = Target::Sysctl("net.ipv4.ipfrag_high_thresh".into());
        self.knobs.iter().any(|knob| knob.target == memory)
    }

    /// A profile that comes with ringmill.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        let text = built_in(name).ok_or_else(|| ProfileError::Unknown { name: name.into() })?;
        Self::parse(name, text)
    }

    /// A profile from the text of a file.
    ///
    /// # Errors
    /// When the text is not in the format.
    pub fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        parse(name, text, DEPTH_MAX)
    }
}

fn built_in(name: &str) -> Option<&'static str> {
    let found = BUILT_IN.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    role: Role,
    connections: u64,
    #[serde(default)]
    extends: Vec<String>,
    #[serde(default)]
    knob: Vec<FileKnob>,
    #[serde(default)]
    advice: Vec<Advice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKnob {
    sysctl: Option<String>,
    limit: Option<Limit>,
    parameter: Option<String>,
    nic: Option<String>,
    queues: Option<Queues>,
    cpus: Option<Cpus>,
    conntrack: Option<Conntrack>,
    irqbalance: Option<Irqbalance>,
    at_least: Option<FileAmount>,
    at_most: Option<u64>,
    value: Option<FileValue>,
    reason: String,
    source: String,
    risk: Option<String>,
    #[serde(default)]
    check_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Limit {
    Files,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Cpus {
    Governor,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Conntrack {
    Bypass,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Irqbalance {
    KeepOff,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FileAmount {
    Number(u64),
    Formula(Formula),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FileValue {
    Number(u64),
    Text(String),
}

fn parse(name: &str, text: &str, depth: usize) -> Result<Profile, ProfileError> {
    let wrong = |problem: String| ProfileError::Format {
        name: name.into(),
        problem,
    };
    let file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let mut profile = Profile {
        name: name.into(),
        title: file.title,
        role: file.role,
        connections: file.connections,
        knobs: Vec::new(),
        advice: Vec::new(),
    };
    if depth == 0 && !file.extends.is_empty() {
        return Err(wrong(
            "it builds upon too many others, or upon itself".into(),
        ));
    }
    for base in &file.extends {
        let text = built_in(base)
            .ok_or_else(|| wrong(format!("it extends '{base}', which there is not")))?;
        let base = parse(base, text, depth - 1)?;
        for knob in base.knobs {
            profile.put(knob);
        }
        for advice in base.advice {
            if !profile.advice.contains(&advice) {
                profile.advice.push(advice);
            }
        }
    }
    for knob in file.knob {
        profile.put(knob.understood().map_err(wrong)?);
    }
    profile.advice.extend(file.advice);
    Ok(profile)
}

impl Profile {
    /// Adds a knob, in the place of an earlier one for the same thing.
    fn put(&mut self, knob: Knob) {
        match self
            .knobs
            .iter_mut()
            .find(|earlier| earlier.target == knob.target)
        {
            Some(earlier) => *earlier = knob,
            None => self.knobs.push(knob),
        }
    }
}

impl FileKnob {
    fn understood(self) -> Result<Knob, String> {
        let nic = self.nic.as_deref().map(str::parse::<NicField>).transpose();
        let parameter = self.parameter.as_deref().map(|text| {
            let parts = text
                .split_once('/')
                .ok_or(format!("parameter '{text}' is not MODULE/NAME"))?;
            Ok::<_, String>(Target::Parameter(parts.0.into(), parts.1.into()))
        });
        let targets = [
            self.sysctl.clone().map(Target::Sysctl),
            self.limit.as_ref().map(|Limit::Files| Target::Files),
            parameter.transpose()?,
            nic.map_err(|error: NicFieldError| error.to_string())?
                .map(Target::Nic),
            self.queues.map(Target::Queues),
            self.cpus.as_ref().map(|Cpus::Governor| Target::Governor),
            self.conntrack
                .as_ref()
                .map(|Conntrack::Bypass| Target::ConntrackBypass),
            self.irqbalance
                .as_ref()
                .map(|Irqbalance::KeepOff| Target::Irqbalance),
        ];
        let mut targets = targets.into_iter().flatten();
        let (Some(target), None) = (targets.next(), targets.next()) else {
            return Err(format!(
                "the knob with the reason '{}' must name exactly one thing: sysctl, limit, parameter, nic, \
                 queues, cpus, conntrack or irqbalance",
                self.reason
            ));
        };
        if let Target::Sysctl(name) = &target
            && !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        {
            return Err(format!("'{name}' is no name of a sysctl"));
        }
        let placed = matches!(
            target,
            Target::Queues(_) | Target::ConntrackBypass | Target::Irqbalance
        );
        let want = match (self.at_least, self.at_most, self.value) {
            (None, None, None) if placed => Want::Placement,
            (Some(FileAmount::Number(number)), None, None) => Want::AtLeast(Amount::Number(number)),
            (Some(FileAmount::Formula(formula)), None, None) => {
                Want::AtLeast(Amount::Formula(formula))
            }
            (None, Some(most), None) => Want::AtMost(most),
            (None, None, Some(FileValue::Number(number))) => Want::Exactly(number.to_string()),
            (None, None, Some(FileValue::Text(text))) => match (&target, text.as_str()) {
                (Target::Nic(_), "max") => Want::Maximum,
                (Target::Nic(NicField::Channels), "shards") => Want::Shards,
                _ => Want::Exactly(text),
            },
            _ => {
                return Err(format!(
                    "the knob '{target}' needs exactly one of at_least, at_most and value"
                ));
            }
        };
        if placed && want != Want::Placement {
            return Err(format!("the knob '{target}' takes no value"));
        }
        Ok(Knob {
            target,
            want,
            reason: self.reason,
            source: self.source,
            risk: self.risk,
            check_only: self.check_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_complete() {
        for name in names() {
            let profile = Profile::named(name).unwrap_or_else(|error| panic!("{error}"));
            assert!(
                !profile.title.is_empty() && profile.connections > 0,
                "{name}"
            );
            assert!(!profile.knobs.is_empty(), "{name}");
            for knob in &profile.knobs {
                assert!(knob.reason.len() > 10, "{name}: {}", knob.target);
                assert!(knob.source.len() > 3, "{name}: {}", knob.target);
                assert!(
                    !knob.reason.contains('\n') && !knob.source.contains('\n'),
                    "{}",
                    knob.target
                );
            }
        }
    }

    #[test]
    fn what_is_risky_lives_in_the_lab() {
        for name in names() {
            let profile = Profile::named(name).unwrap();
            let risky = profile
                .knobs
                .iter()
                .filter(|knob| knob.risk.is_some())
                .count();
            assert_eq!(risky > 0, name == "lab", "{name}");
            let bypass = profile
                .knobs
                .iter()
                .any(|knob| knob.target == Target::ConntrackBypass);
            assert_eq!(bypass, name == "lab", "{name}");
        }
    }

    /// The table of the reference, `net.ipv4.tcp_syncookies` and so on: none is forgotten.
    #[test]
    fn every_recommended_value_is_in_its_profile() {
        let goal = Goal {
            connections: 10_000,
            bits_per_s: None,
            opens_per_s: None,
            memory_bytes: 1 << 35,
        };
        for (profile, sysctl, now, wanted) in [
            ("udp-capacity", "net.core.rmem_max", "212992", "16777216"),
            ("udp-capacity", "net.core.wmem_max", "212992", "16777216"),
            (
                "udp-capacity-fragmented",
                "net.ipv4.ipfrag_high_thresh",
                "4194304",
                "104857600",
            ),
            (
                "udp-capacity-fragmented",
                "net.ipv6.ip6frag_high_thresh",
                "4194304",
                "104857600",
            ),
            ("udp-capacity-fragmented", "net.ipv4.ipfrag_time", "30", "3"),
            (
                "udp-capacity-fragmented",
                "net.ipv6.ip6frag_time",
                "60",
                "3",
            ),
            ("lab", "net.ipv4.tcp_syncookies", "1", "0"),
            ("tcp-server", "net.core.somaxconn", "4096", "8192"),
            ("tcp-server", "net.ipv4.tcp_max_syn_backlog", "4096", "8192"),
            ("tcp-server", "fs.file-max", "100000", "12582912"),
            ("tcp-server", "fs.nr_open", "1024", "1048576"),
            (
                "tcp-client",
                "net.ipv4.ip_local_port_range",
                "32768 60999",
                "1024 65535",
            ),
            ("tcp-client", "net.ipv4.tcp_tw_reuse", "2", "1"),
            (
                "tcp-client",
                "net.netfilter.nf_conntrack_max",
                "65536",
                "1000000",
            ),
            ("lab", "kernel.io_uring_disabled", "2", "1"),
        ] {
            let read = Profile::named(profile).unwrap();
            let target = Target::Sysctl(sysctl.into());
            let knob = read.knobs.iter().find(|knob| knob.target == target);
            let knob = knob.unwrap_or_else(|| panic!("{profile} has no {sysctl}"));
            let change = knob.want.change(now, None, 1, &goal);
            assert_eq!(change.as_deref(), Some(wanted), "{profile}: {sysctl}");
        }
    }

    #[test]
    fn wishes_never_lower_what_is_higher() {
        let goal = Goal {
            connections: 1,
            bits_per_s: None,
            opens_per_s: None,
            memory_bytes: 1 << 30,
        };
        let least = |n| Want::AtLeast(Amount::Number(n));
        for (want, now, maximum, change) in [
            (least(8), "7", None, Some("8")),
            (least(8), "8", None, None),
            (least(8), "9223372036854775807", None, None),
            (Want::AtMost(1), "0", None, None),
            (Want::AtMost(1), "2", None, Some("1")),
            (Want::Exactly("1024 65535".into()), "1024 65535", None, None),
            (Want::Maximum, "256", Some(4096), Some("4096")),
            (Want::Maximum, "4096", Some(4096), None),
            (Want::Maximum, "256", None, None),
            (Want::Shards, "2", Some(8), Some("4")),
            (Want::Shards, "2", Some(3), Some("3")),
            (Want::Shards, "6", Some(8), None),
        ] {
            assert_eq!(
                want.change(now, maximum, 4, &goal).as_deref(),
                change,
                "{want:?} {now}"
            );
        }
        let several = Want::AtLeast(Amount::Formula(Formula::TcpMem));
        assert_eq!(several.change("5 6 7", None, 1, &goal), None);
        assert_eq!(
            several.change("0 0 7", None, 1, &goal).as_deref(),
            Some("1 1 7")
        );
    }

    #[test]
    fn mistakes_in_a_profile_are_named() {
        let head = "title = 't'\nrole = 'server'\nconnections = 1\n";
        let knob = "[[knob]]\nreason = 'r'\nsource = 's'\n";
        for (text, words) in [
            (format!("{head}x = 1"), "unknown field"),
            (format!("{head}extends = ['none']"), "extends 'none'"),
            (format!("{head}{knob}value = 1"), "exactly one thing"),
            (
                format!("{head}{knob}sysctl = 'a'"),
                "exactly one of at_least",
            ),
            (
                format!("{head}{knob}sysctl = 'a; b'\nvalue = 1"),
                "no name of a sysctl",
            ),
            (
                format!("{head}{knob}sysctl = 'a'\nat_least = 'much'"),
                "at_least",
            ),
            (
                format!("{head}{knob}nic = 'speed'\nvalue = 1"),
                "no setting of a network card",
            ),
            (
                format!("{head}{knob}queues = 'receive'\nvalue = 1"),
                "takes no value",
            ),
        ] {
            let error = Profile::parse("p", &text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
