//! Plans and profiles as shell scripts that a careful admin can read and run without ringmill.
//!
//! A plan is exact commands for one host, each with what undoes it. A profile (`tuning/*.sh`) knows no
//! host: it raises what is lower than wanted, asks the card for its maxima, and says what it left out.

use std::fmt::Write as _;

use super::formula::Goal;
use super::plan::{Plan, Step};
use super::profile::{Knob, Profile, Queues, Target, Want};
use super::setting::NicField;

/// Columns of a comment.
const COLUMNS: usize = 100;

/// The shell of one step.
#[must_use]
pub fn command(step: &Step) -> String {
    step.setting.command(&step.wanted)
}

/// The script of a plan.
#[must_use]
pub fn of_plan(plan: &Plan) -> String {
    let mut text = String::from("#!/bin/sh\n");
    comment(
        &mut text,
        &format!("Profile {}: {}.", plan.profile, plan.title),
    );
    comment(
        &mut text,
        &format!("{}, on this host as it is now.", goal_in_words(&plan.goal)),
    );
    comment(
        &mut text,
        "Run it as root. Nothing is recorded: `ringmill tune apply` does the same and can take it back.",
    );
    text += "set -eu\n";
    if plan.steps.is_empty() && plan.files.is_none() {
        text += "\n# Nothing to do: everything that can be set here is as wanted.\n";
    }
    if let Some(files) = plan.files {
        text.push('\n');
        comment(
            &mut text,
            "Open files: for what is started from the shell that reads this script (. ./FILE); for a service set \
             LimitNOFILE= in its unit.",
        );
        let _ = writeln!(
            text,
            "ulimit -n {files} || echo 'open files: the hard limit is lower' >&2"
        );
    }
    for step in &plan.steps {
        text.push('\n');
        let now = match step.now.as_deref() {
            None => "not there now".into(),
            Some("") => "no CPU now".into(),
            Some(now) if now.contains('\n') => "it is there now".into(),
            Some(now) => format!("{now} now"),
        };
        comment(&mut text, &format!("{}: {now}.", step.setting));
        why(&mut text, &step.reason, &step.source, step.risk.as_deref());
        let undo = step.setting.undo(step.now.as_deref());
        if !undo.contains('\n') {
            let _ = writeln!(text, "# undo: {undo}");
        }
        let _ = writeln!(text, "{}", command(step));
    }
    if !plan.left.is_empty() {
        text += "\n# Left alone:\n";
        for left in &plan.left {
            item(&mut text, &format!("{}: {}", left.what, left.why));
        }
    }
    if !plan.advice.is_empty() {
        text += "\n# To know:\n";
        for advice in &plan.advice {
            item(&mut text, advice);
        }
    }
    text
}

/// For how much something was made.
#[must_use]
pub fn goal_in_words(goal: &Goal) -> String {
    let mut text = format!(
        "For {} connections",
        crate::units::format_count(goal.connections)
    );
    if let Some(rate) = goal.bits_per_s {
        text += &format!(" and {}", crate::units::format_bit_rate(rate));
    }
    if let Some(rate) = goal.opens_per_s {
        text += &format!(
            ", {} opened per second",
            crate::units::format_count(rate as u64)
        );
    }
    text
}

fn comment(text: &mut String, words: &str) {
    wrapped(text, "# ", "# ", words);
}

fn item(text: &mut String, words: &str) {
    wrapped(text, "# - ", "#   ", words);
}

fn wrapped(text: &mut String, first: &str, next: &str, words: &str) {
    let mut line = first.to_owned();
    let mut is_fresh = true;
    for word in words.split_whitespace() {
        if !is_fresh && line.len() + 1 + word.len() > COLUMNS {
            let _ = writeln!(text, "{line}");
            line = next.to_owned();
            is_fresh = true;
        }
        if !is_fresh {
            line.push(' ');
        }
        line += word;
        is_fresh = false;
    }
    let _ = writeln!(text, "{line}");
}

fn why(text: &mut String, reason: &str, source: &str, risk: Option<&str>) {
    comment(text, &format!("{}. Source: {source}.", capitalised(reason)));
    if let Some(risk) = risk {
        comment(text, &format!("RISK: {risk}."));
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// Memory that the scripts of profiles are computed for.
const SCRIPT_MEMORY_BYTES: u64 = 16 << 30;

const FUNCTIONS: &str = r#"
# Raises each number of a sysctl to the wanted one; what is higher stays.
at_least() {
    name=$1; shift
    now=$(sysctl -n "$name" 2>/dev/null) || { echo "left alone: $name (not on this host)" >&2; return 0; }
    wanted=
    for number in $now; do
        [ $# -eq 0 ] || { [ "$number" -ge "$1" ] || number=$1; shift; }
        wanted="$wanted${wanted:+ }$number"
    done
    sysctl -w "$name=$wanted"
}
# Lowers a sysctl to the wanted number; what is lower stays.
at_most() {
    now=$(sysctl -n "$1" 2>/dev/null) || { echo "left alone: $1 (not on this host)" >&2; return 0; }
    [ "$now" -le "$2" ] || sysctl -w "$1=$2"
}
"#;

/// The script of a profile, for any host.
#[must_use]
pub fn of_profile(profile: &Profile) -> String {
    let goal = Goal {
        connections: profile.connections,
        bits_per_s: None,
        opens_per_s: None,
        memory_bytes: SCRIPT_MEMORY_BYTES,
    };
    let file = format!("tuning/{}.sh", profile.name);
    let mut text = String::from("#!/bin/sh\n");
    comment(&mut text, &format!("{file} [INTERFACE]"));
    text += "#\n";
    comment(
        &mut text,
        &format!("Profile {}: {}.", profile.name, profile.title),
    );
    comment(
        &mut text,
        &format!(
            "{} and 16 GiB of memory. `ringmill tune plan --profile {}` computes it for your host and prints only \
             what is to be changed there; `ringmill tune apply` also records the old values and can take it back.",
            goal_in_words(&goal),
            profile.name
        ),
    );
    comment(
        &mut text,
        &format!(
            "Made from tuning/profiles/{}.toml by `make tuning`; edit that instead.",
            profile.name
        ),
    );
    text += "set -eu\nIF=${1:-}\n";
    text += FUNCTIONS;
    let (cards, others): (Vec<&Knob>, Vec<&Knob>) = profile
        .knobs
        .iter()
        .partition(|knob| matches!(knob.target, Target::Nic(_) | Target::Queues(_)));
    for knob in others {
        text.push('\n');
        why(&mut text, &knob.reason, &knob.source, knob.risk.as_deref());
        text += &generic(knob, &goal);
    }
    if !cards.is_empty() {
        text += "\n[ -n \"$IF\" ] || { echo 'no INTERFACE named: the card is left alone' >&2; exit 0; }\n";
    }
    for knob in cards {
        text.push('\n');
        why(&mut text, &knob.reason, &knob.source, knob.risk.as_deref());
        text += &generic(knob, &goal);
    }
    if !profile.advice.is_empty() {
        text += "\n# To know:\n";
        for advice in &profile.advice {
            item(
                &mut text,
                &format!("{}. Source: {}.", advice.text, advice.source),
            );
        }
    }
    text
}

fn generic(knob: &Knob, goal: &Goal) -> String {
    let numbers = |want: &Want| match want {
        Want::AtLeast(amount) => amount
            .values(goal)
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(" "),
        Want::AtMost(most) => most.to_string(),
        Want::Exactly(value) => value.clone(),
        Want::Maximum | Want::Shards | Want::Placement => String::new(),
    };
    let value = numbers(&knob.want);
    match &knob.target {
        Target::Sysctl(name) if knob.check_only => format!(
            "sysctl {name} 2>/dev/null || true  # should be {}; never changed\n",
            knob.want.in_words(goal)
        ),
        Target::Sysctl(name) => match &knob.want {
            Want::AtLeast(_) => format!("at_least {name} {value}\n"),
            Want::AtMost(_) => format!("at_most {name} {value}\n"),
            _ => format!("sysctl -w {name}='{value}'\n"),
        },
        Target::Files => format!(
            "# For what this shell starts; for a service set LimitNOFILE={value} in its unit.\n\
             ulimit -n {value} || echo 'open files: the hard limit is lower' >&2\n"
        ),
        Target::Parameter(module, name) => format!(
            "file=/sys/module/{module}/parameters/{name}\n\
             if [ -w $file ] && [ \"$(cat $file)\" -lt {value} ]; then echo {value} > $file; fi\n"
        ),
        Target::Governor => format!(
            "for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do\n    \
             [ ! -w \"$file\" ] || echo {value} > \"$file\"\ndone\n"
        ),
        Target::ConntrackBypass => "\
# Name the ports: PORTS='7000, 9000-9010'. To undo: nft delete table inet ringmill_tune
if [ -n \"${PORTS:-}\" ]; then
    nft -f - <<END
table inet ringmill_tune
delete table inet ringmill_tune
table inet ringmill_tune {
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        meta l4proto { tcp, udp } th sport { $PORTS } notrack
        meta l4proto { tcp, udp } th dport { $PORTS } notrack
    }
    chain output {
        type filter hook output priority raw; policy accept;
        meta l4proto { tcp, udp } th sport { $PORTS } notrack
        meta l4proto { tcp, udp } th dport { $PORTS } notrack
    }
}
END
fi
"
        .into(),
        Target::Irqbalance => "\
# `ringmill topology` shows the CPUs of the shards.
if pgrep -x irqbalance >/dev/null; then
    echo 'irqbalance runs: set IRQBALANCE_BANNED_CPULIST to the CPUs of the shards, or stop it' >&2
fi
"
        .into(),
        Target::Nic(field) => generic_nic(field, &knob.want, &value),
        Target::Queues(Queues::Interrupts) => "\
# `ringmill tune plan` names the CPU of each interrupt; here they stay where they are.
grep \"$IF\" /proc/interrupts || true
"
        .into(),
        Target::Queues(Queues::Transmit) => "\
# CPU n uses transmit queue n modulo the number of queues (up to 32 CPUs).
queues=$(ls -d /sys/class/net/\"$IF\"/queues/tx-* | wc -l)
queue=0
while [ \"$queues\" -gt 1 ] && [ $queue -lt \"$queues\" ]; do
    mask=0
    cpu=$queue
    while [ $cpu -lt \"$(nproc --all)\" ] && [ $cpu -lt 32 ]; do
        mask=$((mask | 1 << cpu))
        cpu=$((cpu + queues))
    done
    printf '%x\\n' $mask > /sys/class/net/\"$IF\"/queues/tx-$queue/xps_cpus
    queue=$((queue + 1))
done
"
        .into(),
        Target::Queues(Queues::Receive) => "\
# Where there are fewer receive queues than CPUs, all CPUs process what arrives (up to 32).
cpus=$(nproc --all)
queues=$(ls -d /sys/class/net/\"$IF\"/queues/rx-* | wc -l)
if [ \"$queues\" -lt \"$cpus\" ] && [ \"$cpus\" -le 32 ]; then
    for file in /sys/class/net/\"$IF\"/queues/rx-*/rps_cpus; do
        printf '%x\\n' $(((1 << cpus) - 1)) > \"$file\"
    done
fi
"
        .into(),
    }
}

fn generic_nic(field: &NicField, want: &Want, value: &str) -> String {
    let from_table = |show: &str, name: &str, set: &str, word: &str| {
        format!(
            "most=$(ethtool {show} \"$IF\" 2>/dev/null | awk '$1 == \"{name}:\" {{ print $2; exit }}')\n\
             case $most in\n    '' | *[!0-9]*) echo \"left alone: {word} of $IF\" >&2 ;;\n    \
             *) ethtool {set} \"$IF\" {word} \"$most\" || true ;;  # ethtool says so when it is that already\nesac\n"
        )
    };
    match (field, want) {
        (NicField::RxRing, Want::Maximum) => from_table("-g", "RX", "-G", "rx"),
        (NicField::TxRing, Want::Maximum) => from_table("-g", "TX", "-G", "tx"),
        (NicField::Channels, Want::Shards) => "\
# `ringmill tune plan` compares the queues with the shards.
ethtool -l \"$IF\" || true
"
        .into(),
        (NicField::Feature(name), _) => format!("ethtool -K \"$IF\" {name} {value}\n"),
        (NicField::RxRing, _) => format!("ethtool -G \"$IF\" rx {value}\n"),
        (NicField::TxRing, _) => format!("ethtool -G \"$IF\" tx {value}\n"),
        (NicField::Channels, _) => format!("ethtool -L \"$IF\" combined {value}\n"),
        (NicField::RxUsecs, _) => format!("ethtool -C \"$IF\" rx-usecs {value}\n"),
        (NicField::TxUsecs, _) => format!("ethtool -C \"$IF\" tx-usecs {value}\n"),
        (NicField::AdaptiveRx, _) => format!("ethtool -C \"$IF\" adaptive-rx {value}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::plan::Untouched;
    use crate::tune::profile;
    use crate::tune::tests::{FakeHost, request};

    /// Every profile's plan for the same host, as text: `cli/src/tune/plans/PROFILE.sh`. After a change
    /// that is meant, `RINGMILL_WRITE_PLANS=1 cargo test -p ringmill plans` writes them again.
    #[test]
    fn plans_are_those_that_were_read_and_approved() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tune/plans");
        let write = std::env::var_os("RINGMILL_WRITE_PLANS").is_some();
        for name in profile::names() {
            for persist in [false, true] {
                let fake = FakeHost::large();
                let mut request = request(name);
                request.persist = persist;
                let plan = Plan::make(&fake.host(), &request, &Untouched).unwrap();
                let script = of_plan(&plan);
                let file = folder.join(format!(
                    "{name}{}.sh",
                    if persist { "-persist" } else { "" }
                ));
                if write {
                    std::fs::create_dir_all(&folder).unwrap();
                    std::fs::write(&file, &script).unwrap();
                }
                let approved = std::fs::read_to_string(&file).unwrap_or_default();
                assert!(script == approved, "{} differs:\n{script}", file.display());
            }
        }
    }

    /// `sh -n`: the shell can read every script, and none has a line that is too long to read.
    #[test]
    fn scripts_are_shell() {
        for name in profile::names() {
            let profile = profile::Profile::named(name).unwrap();
            let fake = FakeHost::large();
            let mut request = request(name);
            request.persist = true;
            let plan = of_plan(&Plan::make(&fake.host(), &request, &Untouched).unwrap());
            for script in [of_profile(&profile), plan] {
                let mut child = std::process::Command::new("sh")
                    .arg("-n")
                    .stdin(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                use std::io::Write as _;
                child
                    .stdin
                    .take()
                    .unwrap()
                    .write_all(script.as_bytes())
                    .unwrap();
                assert!(child.wait().unwrap().success(), "{name}:\n{script}");
            }
        }
    }
}
