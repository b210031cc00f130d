//! What `ringmill tune check` finds: every setting with what it is and should be, which limit binds
//! first, and what the kernel counted.
//!
//! Reads only. The report says everything once; how it is printed is the command's business.

use ringmill_engine::host::RingAccess;
use serde::Serialize;

use super::Host;
use super::formula::Goal;
use super::limits::{self, Limit, Unit, Usage};
use super::nic::Nic;
use super::plan::{
    Before, MakeError, Outcome, Request, SOURCES_REASON, SOURCES_SOURCE, Scope, View,
};
use super::profile::Target;
use super::setting::NicField;
use super::sources;
use super::watch::{Counters, Finding};

/// How a setting stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// As wanted.
    Right,
    /// Not as wanted, and `tune apply` would change it.
    Differs,
    /// Not readable or not changeable here, or left to somebody.
    Left,
}

/// One setting of the profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which.
    pub name: String,
    /// How it stands.
    pub standing: Standing,
    /// What it is, or why that is not known.
    pub now: String,
    /// What it should be.
    pub wanted: String,
    /// Why.
    pub reason: String,
    /// Who says so.
    pub source: String,
    /// What may go wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk: Option<String>,
}

/// Something to see that the profile does not set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// What.
    pub name: String,
    /// How it is.
    pub value: String,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the profile.
    pub profile: String,
    /// What it is for.
    pub title: String,
    /// Connections that were asked for.
    pub connections: u64,
    /// Bits per second that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_s: Option<f64>,
    /// Connections opened per second that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opens_per_s: Option<f64>,
    /// The settings.
    pub settings: Vec<Row>,
    /// What else is to be seen.
    pub facts: Vec<Fact>,
    /// Every limit, the lowest of its unit first.
    pub limits: Vec<Limit>,
    /// The limit of each unit that binds first.
    pub binds_first: Vec<Limit>,
    /// Limits that are reached before what was asked for.
    pub falls_short: Vec<Limit>,
    /// Connections in TIME_WAIT and tracked now.
    pub now: Counters,
    /// What the kernel counted since the network namespace was made.
    pub counted: Vec<Finding>,
}

impl Report {
    /// Whether every setting is as wanted and no limit binds below what was asked for.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.falls_short.is_empty() && self.differing() == 0
    }

    /// Settings that are not as wanted.
    #[must_use]
    pub fn differing(&self) -> usize {
        let differing = self
            .settings
            .iter()
            .filter(|row| row.standing == Standing::Differs);
        differing.count()
    }
}

/// Looks at a host.
///
/// # Errors
/// When the interface is not there.
pub fn check(
    host: &Host,
    request: &Request,
    usage: &Usage,
    before: &dyn Before,
) -> Result<Report, MakeError> {
    let view = View::read(host, request, before)?;
    let facts = view.facts();
    let goal = &request.goal;
    let nic = view.nic().and_then(|nic| nic.as_ref().ok());
    let interface = request.interface.as_deref();
    let mut found = limits::limits(host, facts, nic, interface, usage);
    found.sort_by(|a, b| a.unit.cmp(&b.unit).then(a.capacity.total_cmp(&b.capacity)));
    let units = [Unit::Connections, Unit::OpensPerS, Unit::BitsPerS];
    let counters = Counters::read(host.root());
    Ok(Report {
        profile: request.profile.name.clone(),
        title: request.profile.title.clone(),
        connections: goal.connections,
        bits_per_s: goal.bits_per_s,
        opens_per_s: goal.opens_per_s,
        settings: request
            .profile
            .knobs
            .iter()
            .map(|knob| row(&view, request, knob))
            .chain(sources_row(&view, request))
            .collect(),
        facts: seen(host, &view, facts, nic, interface),
        binds_first: units
            .into_iter()
            .filter_map(|unit| limits::first(&found, unit).cloned())
            .collect(),
        falls_short: limits::below(&found, goal).cloned().collect(),
        limits: found,
        counted: counters.findings(None),
        now: counters,
    })
}

/// The source addresses, where some were named.
fn sources_row(view: &View<'_>, request: &Request) -> Option<Row> {
    let found = view.sources()?;
    let wanted = request.sources.len();
    let (standing, now) = match found {
        Err(why) => (Standing::Left, why),
        Ok(found) if found.missing.is_empty() => {
            let elsewhere: Vec<&str> = found.elsewhere.values().map(String::as_str).collect();
            let now = match elsewhere.first() {
                None => format!("all {wanted} there"),
                Some(card) => format!(
                    "all there, {} on another card ({card})",
                    found.elsewhere.len()
                ),
            };
            (Standing::Right, now)
        }
        Ok(found) => {
            let missing = sources::listed(&found.missing);
            let has = found.there.len() + found.elsewhere.len();
            (Standing::Differs, format!("{has} there, missing {missing}"))
        }
    };
    Some(Row {
        name: format!(
            "{} source addresses",
            request.interface.as_deref().unwrap_or("card's")
        ),
        standing,
        now,
        wanted: wanted.to_string(),
        reason: SOURCES_REASON.into(),
        source: SOURCES_SOURCE.into(),
        risk: None,
    })
}

fn row(view: &View<'_>, request: &Request, knob: &super::profile::Knob) -> Row {
    let outcome = view.outcome(knob);
    let (standing, now, wanted) = match outcome {
        Outcome::Right(now) => (Standing::Right, now, None),
        Outcome::Unavailable(why) => (Standing::Left, why, None),
        Outcome::Steps(steps) => {
            let shown = |value: &str| {
                if value.contains('\n') {
                    "set up".to_owned()
                } else {
                    value.to_owned()
                }
            };
            let mut now: Vec<String> = steps
                .iter()
                .map(|step| {
                    step.now
                        .as_deref()
                        .map_or_else(|| "not there".into(), shown)
                })
                .map(|now| if now.is_empty() { "none".into() } else { now })
                .collect();
            let mut wanted: Vec<String> = steps.iter().map(|step| shown(&step.wanted)).collect();
            // Sixty-four CPUs with the same governor are one word.
            now.dedup();
            wanted.dedup();
            let is_left = knob.check_only
                || request.scope == Scope::Network
                    && steps.iter().any(|step| !step.setting.is_of_namespace());
            let standing = if is_left {
                Standing::Left
            } else {
                Standing::Differs
            };
            (standing, now.join(", "), Some(wanted.join(", ")))
        }
    };
    let in_words = match knob.target {
        Target::ConntrackBypass => "bypassed for --ports".into(),
        Target::Irqbalance => "off the shards' CPUs".into(),
        _ => knob.want.in_words(&request.goal),
    };
    Row {
        name: knob.target.to_string(),
        standing,
        now,
        wanted: match (&knob.want, wanted) {
            // What the words do not say, the values do.
            (
                super::profile::Want::Maximum
                | super::profile::Want::Shards
                | super::profile::Want::Placement,
                Some(wanted),
            ) => wanted,
            _ => in_words,
        },
        reason: knob.reason.clone(),
        source: knob.source.clone(),
        risk: knob.risk.clone(),
    }
}

/// Offloads that matter for datagrams and streams, by the kernel's names.
const OFFLOADS: [&str; 6] = [
    "rx-gro",
    "rx-gro-list",
    "rx-udp-gro-forwarding",
    "tx-udp-segmentation",
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
];

fn seen(
    host: &Host,
    view: &View<'_>,
    facts: &ringmill_engine::host::Host,
    nic: Option<&Nic>,
    interface: Option<&str>,
) -> Vec<Fact> {
    let mut seen = Vec::new();
    let mut add = |name: &str, value: String| {
        seen.push(Fact {
            name: name.into(),
            value,
        })
    };
    add(
        "io_uring",
        match &facts.rings.access {
            RingAccess::Allowed => "allowed".into(),
            _ => "not allowed here; the epoll driver is used (see `ringmill doctor`)".into(),
        },
    );
    for name in ["net.core.busy_poll", "net.core.busy_read"] {
        if let Some(value) = host.root().sysctl::<u64>(name).value {
            add(name, format!("{value} µs"));
        }
    }
    add(
        "frequency governors",
        match &facts.machine.governors.value {
            Some(names) => names.join(", "),
            None => "not shown".into(),
        },
    );
    add(
        "irqbalance",
        if host.runs("irqbalance") {
            "runs"
        } else {
            "does not run"
        }
        .into(),
    );
    let Some(interface) = interface else {
        return seen;
    };
    let text = |file: &str| {
        host.root()
            .text(&format!("/sys/class/net/{interface}/{file}"))
            .value
    };
    if let Some(mtu) = text("mtu") {
        add("MTU", mtu);
    }
    if let Some(card) = view
        .machine()
        .and_then(|machine| machine.interface(interface))
    {
        add(
            "NUMA node",
            card.node
                .map_or_else(|| "unknown".into(), |node| node.to_string()),
        );
        let serving = if card.irq_cpus.is_empty() {
            "unknown".into()
        } else {
            card.irq_cpus.to_string()
        };
        add("CPUs of its interrupts", serving);
    }
    if let Some(Ok(placed)) = view.placed() {
        add("CPUs of the shards", placed.shards.to_string());
    }
    let Some(nic) = nic else {
        return seen;
    };
    for field in [NicField::RxRing, NicField::TxRing, NicField::Channels] {
        if let Some(value) = nic.value(&field) {
            let most = nic
                .maximum(&field)
                .map_or_else(String::new, |most| format!(" of {most}"));
            add(&field.to_string(), format!("{value}{most}"));
        }
    }
    let coalescing: Vec<String> = [NicField::RxUsecs, NicField::TxUsecs, NicField::AdaptiveRx]
        .into_iter()
        .filter_map(|field| Some(format!("{field} {}", nic.value(&field)?)))
        .collect();
    if !coalescing.is_empty() {
        add("coalescing", coalescing.join(", "));
    }
    let offloads: Vec<String> = OFFLOADS
        .into_iter()
        .filter_map(|name| {
            Some(format!(
                "{name} {}",
                nic.value(&NicField::Feature(name.into()))?
            ))
        })
        .collect();
    if !offloads.is_empty() {
        add("offloads", offloads.join(", "));
    }
    seen
}

/// One line when a limit binds below what is asked of the host: for commands that run something else.
#[must_use]
pub fn warning(host: &Host, goal: &Goal, usage: &Usage) -> Option<String> {
    let found = limits::limits(host, &host.facts(), None, None, usage);
    let lowest = limits::below(&found, goal).min_by(|a, b| a.capacity.total_cmp(&b.capacity))?;
    Some(format!(
        "{} binds at {} ({})",
        lowest.name,
        lowest.in_words(),
        lowest.rule
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::apply::{How, apply};
    use crate::tune::plan::Untouched;
    use crate::tune::tests::{FakeHost, request};

    fn usage(request: &Request) -> Usage {
        Usage {
            role: request.profile.role,
            sources: 64,
            destinations: 1,
            rtt_s: None,
            direct_descriptors: true,
            fragments: true,
        }
    }

    #[test]
    fn what_was_applied_is_right_and_the_next_limit_shows() {
        for name in crate::tune::profile::names() {
            let fake = FakeHost::large();
            let request = request(name);
            let report = |fake: &FakeHost| {
                check(&fake.host(), &request, &usage(&request), &Untouched).unwrap()
            };
            let before = report(&fake);
            assert!(!before.is_good() && before.differing() > 0, "{name}");
            apply(&fake.host(), &fake.state(), &request, How::default()).unwrap();
            let after = report(&fake);
            let wrong: Vec<_> = after
                .settings
                .iter()
                .filter(|row| row.standing == Standing::Differs)
                .collect();
            assert!(wrong.is_empty(), "{name}: {wrong:#?}");
            if name != "lab" {
                assert_eq!(after.falls_short, [], "{name}");
            }
        }
    }

    #[test]
    fn a_warning_is_one_line_about_the_lowest_limit() {
        let fake = FakeHost::large();
        let mut request = request("tcp-client");
        let usage = Usage {
            sources: 1,
            direct_descriptors: true,
            ..usage(&request)
        };
        request.goal.connections = 10_000;
        assert_eq!(warning(&fake.host(), &request.goal, &usage), None);
        request.goal.connections = 70_000;
        let line = warning(&fake.host(), &request.goal, &usage).unwrap();
        assert!(
            line.starts_with("net.ipv4.ip_local_port_range binds at 28,232 connections"),
            "{line}"
        );
    }
}
