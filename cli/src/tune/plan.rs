//! From a profile and a host to the list of changes: what is, what should be, and why.
//!
//! Making a plan reads the host and changes nothing. What the plan leaves alone is in it too, with the
//! reason, so that nobody believes it was done.

use std::cell::OnceCell;
use std::net::IpAddr;

use ringmill_engine::host::Host as Facts;
use ringmill_engine::topology::{CpuList, Topology};
use serde::Serialize;

use super::formula::Goal;
use super::host::{Host, HostError};
use super::nic::Nic;
use super::persist;
use super::placement::{self, CardQueues, Placement};
use super::profile::{Knob, Profile, Queues, Target, Want};
use super::setting::{NicField, Setting};
use super::sources;

/// The table of nftables that is ours.
pub const TABLE: &str = "ringmill_tune";

/// How much of the host may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Everything.
    Host,
    /// Only what belongs to this network namespace: its sysctls, cards and tables.
    Network,
}

/// A port or a range of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err(format!(
                "'{text}' is neither a port nor a range such as 9000-9010"
            )),
        }
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// What is to be planned.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which profile.
    pub profile: Profile,
    /// For how much.
    pub goal: Goal,
    /// The card; without one nothing of a card is planned.
    pub interface: Option<String>,
    /// The ports in use, for the bypass of connection tracking.
    pub ports: Vec<Ports>,
    /// Source addresses that the card should have.
    pub sources: Vec<IpAddr>,
    /// How much may be changed.
    pub scope: Scope,
    /// Whether files are written that make it last.
    pub persist: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is changed.
    pub setting: Setting,
    /// Its value before; none where it is not there.
    pub now: Option<String>,
    /// Its value after.
    pub wanted: String,
    /// Why.
    pub reason: String,
    /// Who says so.
    pub source: String,
    /// What may go wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk: Option<String>,
}

/// Something that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// All changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Name of the profile.
    pub profile: String,
    /// What it is for.
    pub title: String,
    /// For how much it was made.
    pub goal: Goal,
    /// The changes in their order.
    pub steps: Vec<Step>,
    /// Open files that a process should be allowed, where its limit is lower; no command changes the
    /// limit of a process that runs already.
    pub files: Option<u64>,
    /// What is not done.
    pub left: Vec<Left>,
    /// What no setting can do.
    pub advice: Vec<String>,
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The interface is not there.
    #[error(transparent)]
    Interface(#[from] HostError),
}

/// What a knob comes to on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as wanted; what it is now.
    Right(String),
    /// These changes are needed.
    Steps(Vec<Step>),
    /// It cannot be read or changed here.
    Unavailable(String),
}

/// A host as far as plans and checks need it, read once.
#[derive(Debug)]
pub struct View<'a> {
    host: &'a Host,
    request: &'a Request,
    /// Values to plan from instead of those of now: what was there before an earlier apply.
    before: &'a dyn Before,
    machine: Option<Topology>,
    nic: Option<Result<Nic, String>>,
    placed: Option<Result<Placement, String>>,
    /// Read when first asked for: it tries rings and sockets out.
    facts: OnceCell<Facts>,
}

/// The values from before an earlier apply.
pub trait Before: std::fmt::Debug {
    /// The old value where the setting is recorded; `Some(None)`: it was not there.
    fn old(&self, setting: &Setting) -> Option<Option<String>>;
}

/// Nothing was applied before.
#[derive(Debug)]
pub struct Untouched;

impl Before for Untouched {
    fn old(&self, _: &Setting) -> Option<Option<String>> {
        None
    }
}

impl<'a> View<'a> {
    /// Reads the host.
    ///
    /// # Errors
    /// When the interface is not there.
    pub fn read(
        host: &'a Host,
        request: &'a Request,
        before: &'a dyn Before,
    ) -> Result<Self, MakeError> {
        let machine = host.topology().ok();
        let mut view = Self {
            host,
            request,
            before,
            machine,
            nic: None,
            placed: None,
            facts: OnceCell::new(),
        };
        if let Some(interface) = &request.interface {
            host.check_interface(interface)?;
            view.nic = Some(host.nic(interface).map_err(|error| error.to_string()));
            view.placed = Some(view.place(interface));
        }
        Ok(view)
    }

    /// The card's settings, where one was named.
    #[must_use]
    pub fn nic(&self) -> Option<&Result<Nic, String>> {
        self.nic.as_ref()
    }

    /// Where the card's queues should be served.
    #[must_use]
    pub fn placed(&self) -> Option<&Result<Placement, String>> {
        self.placed.as_ref()
    }

    /// What `ringmill doctor` knows of the host.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| self.host.facts())
    }

    /// The machine's CPUs and cards.
    #[must_use]
    pub fn machine(&self) -> Option<&Topology> {
        self.machine.as_ref()
    }

    fn place(&self, interface: &str) -> Result<Placement, String> {
        let machine = self
            .machine
            .as_ref()
            .ok_or("the machine's CPUs cannot be read")?;
        let folder = format!("/sys/class/net/{interface}/queues");
        let names = self.host.names(&folder);
        let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
        let queues = CardQueues {
            interrupts: self.host.interrupts(interface),
            transmit: count("tx-"),
            receive: count("rx-"),
        };
        placement::place(machine, interface, &queues).map_err(|error| error.to_string())
    }

    /// The CPUs of the shards.
    fn shards(&self) -> Result<CpuList, String> {
        match &self.placed {
            Some(Ok(placed)) => Ok(placed.shards.clone()),
            _ => {
                let machine = self
                    .machine
                    .as_ref()
                    .ok_or("the machine's CPUs cannot be read")?;
                let cpus =
                    placement::shard_cpus(machine, None).map_err(|error| error.to_string())?;
                Ok(cpus.into_iter().collect())
            }
        }
    }

    /// A setting's value before anything of ours changed it.
    fn value(&self, setting: &Setting) -> Result<String, String> {
        if let Some(Some(old)) = self.before.old(setting) {
            return Ok(old);
        }
        let reading = self.host.read(setting);
        reading
            .value
            .ok_or_else(|| reading.reason.unwrap_or_default())
    }

    /// The same for what need not be there.
    fn old_or_now(&self, setting: &Setting) -> Option<String> {
        let recorded = self.before.old(setting);
        recorded.unwrap_or_else(|| self.host.read(setting).value)
    }

    /// What a knob comes to.
    #[must_use]
    pub fn outcome(&self, knob: &Knob) -> Outcome {
        self.try_outcome(knob).unwrap_or_else(Outcome::Unavailable)
    }

    fn try_outcome(&self, knob: &Knob) -> Result<Outcome, String> {
        let goal = &self.request.goal;
        let step = |setting: Setting, now: Option<String>, wanted: String| Step {
            setting,
            now,
            wanted,
            reason: knob.reason.clone(),
            source: knob.source.clone(),
            risk: knob.risk.clone(),
        };
        if let Some(setting) = knob.target.single() {
            let now = self.value(&setting)?;
            return Ok(match knob.want.change(&now, None, 0, goal) {
                Some(_) if self.host.is_read_only(&setting) => {
                    return Err(format!(
                        "it is {now}, not {}, and read-only here: it belongs to the whole host",
                        knob.want.in_words(goal)
                    ));
                }
                Some(wanted) => Outcome::Steps(vec![step(setting, Some(now), wanted)]),
                None => Outcome::Right(now),
            });
        }
        match &knob.target {
            Target::Nic(field) => self.nic_outcome(knob, field, step),
            Target::Queues(queues) => self.queues_outcome(*queues, step),
            Target::Governor => self.governor_outcome(knob, step),
            Target::ConntrackBypass => self.bypass_outcome(step),
            Target::Irqbalance => self.irqbalance_outcome(step),
            Target::Files => self.files_outcome(knob),
            Target::Sysctl(_) | Target::Parameter(..) => Err("it is no single file".into()),
        }
    }

    fn nic_outcome(
        &self,
        knob: &Knob,
        field: &NicField,
        step: impl Fn(Setting, Option<String>, String) -> Step,
    ) -> Result<Outcome, String> {
        let interface = self.interface()?;
        let nic = match &self.nic {
            Some(Ok(nic)) => nic,
            Some(Err(why)) => return Err(why.clone()),
            None => return Err(NO_INTERFACE.into()),
        };
        let setting = Setting::Nic {
            interface: interface.into(),
            field: field.clone(),
        };
        let now = match self.before.old(&setting) {
            Some(Some(old)) => old,
            _ => nic
                .value(field)
                .ok_or("this card does not have it")?
                .to_owned(),
        };
        let shards = self.shards()?.len() as u64;
        match knob
            .want
            .change(&now, nic.maximum(field), shards, &self.request.goal)
        {
            Some(_) if !nic.can_change(field) => {
                Err(format!("it is {now}, and this card cannot change it"))
            }
            Some(wanted) => Ok(Outcome::Steps(vec![step(setting, Some(now), wanted)])),
            None => Ok(Outcome::Right(now)),
        }
    }

    fn interface(&self) -> Result<&str, String> {
        self.request
            .interface
            .as_deref()
            .ok_or_else(|| NO_INTERFACE.to_owned())
    }

    fn queues_outcome(
        &self,
        queues: Queues,
        step: impl Fn(Setting, Option<String>, String) -> Step,
    ) -> Result<Outcome, String> {
        let interface = self.interface()?;
        let placed = match &self.placed {
            Some(Ok(placed)) => placed,
            Some(Err(why)) => return Err(why.clone()),
            None => return Err(NO_INTERFACE.into()),
        };
        let queue = |kind: &str, number: usize, file: &str| {
            format!("/sys/class/net/{interface}/queues/{kind}-{number}/{file}")
        };
        let wanted: Vec<(String, &CpuList)> = match queues {
            Queues::Interrupts => {
                let file = |irq: &u32| format!("/proc/irq/{irq}/smp_affinity_list");
                placed
                    .interrupts
                    .iter()
                    .map(|(irq, cpus)| (file(irq), cpus))
                    .collect()
            }
            Queues::Transmit => {
                let lists = placed.transmit.iter().enumerate();
                lists
                    .map(|(n, cpus)| (queue("tx", n, "xps_cpus"), cpus))
                    .collect()
            }
            Queues::Receive => {
                let lists = placed.receive.iter().enumerate();
                lists
                    .map(|(n, cpus)| (queue("rx", n, "rps_cpus"), cpus))
                    .collect()
            }
        };
        if wanted.is_empty() {
            return match queues {
                Queues::Interrupts => {
                    Err(format!("{interface} shows no interrupts of packet queues"))
                }
                Queues::Transmit => Ok(Outcome::Right("one transmit queue".into())),
                Queues::Receive => Ok(Outcome::Right("a receive queue for each shard".into())),
            };
        }
        let (mut steps, mut unavailable, mut right) = (Vec::new(), None, Vec::new());
        for (path, cpus) in wanted {
            let setting = Setting::Cpus { path };
            match self.value(&setting) {
                Ok(now) if now == cpus.to_string() => right.push(now),
                Ok(now) => steps.push(step(setting, Some(now), cpus.to_string())),
                Err(why) => unavailable = Some(why),
            }
        }
        match unavailable {
            Some(why) if steps.is_empty() && right.is_empty() => Err(why),
            _ if steps.is_empty() => Ok(Outcome::Right(format!("CPUs {}", right.join(" ")))),
            _ => Ok(Outcome::Steps(steps)),
        }
    }

    fn governor_outcome(
        &self,
        knob: &Knob,
        step: impl Fn(Setting, Option<String>, String) -> Step,
    ) -> Result<Outcome, String> {
        let Want::Exactly(wanted) = &knob.want else {
            return Err("a governor has a name".into());
        };
        let folder = "/sys/devices/system/cpu";
        let mut steps = Vec::new();
        let mut known = false;
        for cpu in self.host.names(folder) {
            let files = format!("{folder}/{cpu}/cpufreq");
            let setting = Setting::File {
                path: format!("{files}/scaling_governor"),
            };
            let Ok(now) = self.value(&setting) else {
                continue;
            };
            known = true;
            if now == *wanted {
                continue;
            }
            let offered = self
                .host
                .root()
                .text(&format!("{files}/scaling_available_governors"))
                .value;
            if offered.is_some_and(|names| !names.split(' ').any(|name| name == wanted)) {
                return Err(format!("{cpu} has no governor '{wanted}'"));
            }
            steps.push(step(setting, Some(now), wanted.clone()));
        }
        if !known {
            return Err("this machine does not show its frequency governors".into());
        }
        Ok(if steps.is_empty() {
            Outcome::Right(wanted.clone())
        } else {
            Outcome::Steps(steps)
        })
    }

    fn bypass_outcome(
        &self,
        step: impl Fn(Setting, Option<String>, String) -> Step,
    ) -> Result<Outcome, String> {
        if !self
            .host
            .root()
            .exists("/proc/sys/net/netfilter/nf_conntrack_max")
        {
            return Ok(Outcome::Right("connections are not tracked here".into()));
        }
        if self.request.ports.is_empty() {
            return Err(
                "name the ports in use with --ports: packets of all others stay tracked".into(),
            );
        }
        self.host.can_filter()?;
        let wanted = bypass(&self.request.ports);
        let setting = Setting::Table { name: TABLE.into() };
        let now = self.old_or_now(&setting);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        if now
            .as_deref()
            .is_some_and(|now| words(now) == words(&wanted))
        {
            return Ok(Outcome::Right("bypassed for these ports".into()));
        }
        Ok(Outcome::Steps(vec![step(setting, now, wanted)]))
    }

    fn irqbalance_outcome(
        &self,
        step: impl Fn(Setting, Option<String>, String) -> Step,
    ) -> Result<Outcome, String> {
        let folder = if self.request.persist { "/etc" } else { "/run" };
        let setting = Setting::Written {
            path: format!(
                "{folder}/systemd/system/{}.d/50-ringmill.conf",
                persist::IRQBALANCE
            ),
        };
        if !self.host.runs("irqbalance") {
            return Ok(Outcome::Right("does not run".into()));
        }
        let shards = self.shards()?;
        let online = self
            .machine
            .as_ref()
            .map(Topology::online)
            .unwrap_or_default();
        if online.difference(&shards).is_empty() {
            return Err(format!(
                "it runs, and so do shards on every CPU ({shards}): stop it (systemctl stop irqbalance), or \
                 keep some CPUs for interrupts with --cpus"
            ));
        }
        if !self.host.has_systemd() {
            return Err(format!(
                "it runs without systemd: start it with IRQBALANCE_BANNED_CPULIST={shards} in its environment"
            ));
        }
        let wanted = persist::irqbalance_drop_in(&shards);
        let now = self.old_or_now(&setting);
        if now.as_deref() == Some(wanted.as_str()) {
            return Ok(Outcome::Right(format!("keeps off CPUs {shards}")));
        }
        Ok(Outcome::Steps(vec![step(setting, now, wanted)]))
    }

    /// How the source addresses stand; none where none were named.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn sources(&self) -> Option<Result<sources::Standing, String>> {
        if self.request.sources.is_empty() {
            return None;
        }
        let found = self.interface().and_then(|interface| {
            let mut has = self.host.addresses()?;
            // What an earlier apply added is planned again, as every other change is.
            has.retain(|(card, address)| {
                let setting = address_setting(card, *address);
                self.before.old(&setting) != Some(None)
            });
            Ok(sources::standing(&self.request.sources, interface, &has))
        });
        Some(found)
    }

    fn source_steps(&self, plan: &mut Plan) {
        let left = |what: String, why: String| Left { what, why };
        let standing = match self.sources() {
            None => return,
            Some(Ok(standing)) => standing,
            Some(Err(why)) => return plan.left.push(left("source addresses".into(), why)),
        };
        for (address, card) in standing.elsewhere {
            plan.left.push(left(
                format!("source address {address}"),
                format!("it is on {card} already, and serves as well from there"),
            ));
        }
        let Ok(interface) = self.interface() else {
            return;
        };
        plan.steps
            .extend(standing.missing.into_iter().map(|address| Step {
                setting: address_setting(interface, address),
                now: None,
                wanted: sources::THERE.into(),
                reason: SOURCES_REASON.into(),
                source: SOURCES_SOURCE.into(),
                risk: None,
            }));
    }

    /// The limit is a process's own: what is wanted is said, and written down by --persist.
    fn files_outcome(&self, knob: &Knob) -> Result<Outcome, String> {
        let limits = &self.facts().files;
        let hard = limits.hard.value;
        let hard = hard.ok_or_else(|| limits.hard.reason.clone().unwrap_or_default())?;
        let goal = &self.request.goal;
        let wanted = files_wanted(knob, goal);
        if hard.is_below(wanted) {
            Err(format!(
                "{hard} for this process; a limit is inherited: set LimitNOFILE={wanted} in the unit, \
                 or `ulimit -n {wanted}` before the start"
            ))
        } else {
            Ok(Outcome::Right(hard.to_string()))
        }
    }
}

/// Why source addresses are given to a card.
pub const SOURCES_REASON: &str = "each source address is as many more connections to one destination as there are local ports; nobody \
     else on the network may have it, and the way back must lead here";
/// Who says so.
pub const SOURCES_SOURCE: &str = "ip-address(8); bind(2): a local address must be the host's";

fn address_setting(interface: &str, address: IpAddr) -> Setting {
    Setting::Address {
        interface: interface.into(),
        address,
    }
}

const NO_INTERFACE: &str = "no card was named (--interface)";

fn files_wanted(knob: &Knob, goal: &Goal) -> u64 {
    match &knob.want {
        Want::AtLeast(amount) => amount.values(goal).first().copied().unwrap_or(0),
        _ => 0,
    }
}

/// The rules that keep connection tracking away from some ports, both ways.
fn bypass(ports: &[Ports]) -> String {
    let list = ports
        .iter()
        .map(Ports::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let chain = |name: &str| {
        let rule = |direction: &str| {
            format!("\t\tmeta l4proto {{ tcp, udp }} th {direction} {{ {list} }} notrack\n")
        };
        format!(
            "\tchain {name} {{\n\t\ttype filter hook {name} priority raw; policy accept;\n{}{}\t}}\n",
            rule("sport"),
            rule("dport")
        )
    };
    format!(
        "table inet {TABLE} {{\n{}{}}}\n",
        chain("prerouting"),
        chain("output")
    )
}

impl Plan {
    /// Makes the plan. `before` knows the values from before an earlier apply of the same profile, so
    /// that a plan made again is the same plan.
    ///
    /// # Errors
    /// When the interface is not there.
    pub fn make(host: &Host, request: &Request, before: &dyn Before) -> Result<Self, MakeError> {
        let view = View::read(host, request, before)?;
        let mut plan = Self {
            profile: request.profile.name.clone(),
            title: request.profile.title.clone(),
            goal: request.goal,
            steps: Vec::new(),
            files: None,
            left: Vec::new(),
            advice: request
                .profile
                .advice
                .iter()
                .map(|advice| advice.text.clone())
                .collect(),
        };
        for knob in &request.profile.knobs {
            let leave = |why: String| Left {
                what: knob.target.to_string(),
                why,
            };
            match view.outcome(knob) {
                Outcome::Right(_) => {}
                Outcome::Unavailable(why) => {
                    if knob.target == Target::Files {
                        plan.files = Some(files_wanted(knob, &request.goal));
                    }
                    plan.left.push(leave(why));
                }
                Outcome::Steps(steps) if knob.check_only => {
                    for step in steps {
                        plan.left.push(leave(format!(
                            "it is {}, not {}; never changed by ringmill: {}",
                            step.now.unwrap_or_default(),
                            knob.want.in_words(&request.goal),
                            knob.reason
                        )));
                    }
                }
                Outcome::Steps(steps) => {
                    for step in steps {
                        if request.scope == Scope::Network && !step.setting.is_of_namespace() {
                            plan.left.push(leave(
                                "it belongs to the whole host, and only this network namespace is tuned \
                                 (--scope)"
                                    .into(),
                            ));
                            break;
                        }
                        plan.steps.push(step);
                    }
                }
            }
        }
        view.source_steps(&mut plan);
        if request.persist {
            let mut lasting = persist::steps(&plan, request.interface.as_deref());
            for step in &mut lasting {
                step.now = view.old_or_now(&step.setting);
            }
            plan.steps.extend(lasting);
        }
        Ok(plan)
    }

    /// Changes that warn.
    pub fn risks(&self) -> impl Iterator<Item = (&Setting, &str)> {
        self.steps
            .iter()
            .filter_map(|step| Some((&step.setting, step.risk.as_deref()?)))
    }
}
