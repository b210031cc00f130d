//! The files that make a tuning last over a reboot: `sysctl.d`, a unit that runs the rest at boot and
//! when the card appears, and drop-ins for limits and irqbalance.
//!
//! They are steps like all others: recorded before they are written, and removed by a revert.

use ringmill_engine::topology::CpuList;

use super::plan::{Plan, Step};
use super::script;
use super::setting::Setting;

/// Sysctls, read by systemd-sysctl(8) and `sysctl --system`.
const SYSCTL: &str = "/etc/sysctl.d/80-ringmill.conf";
/// What is no sysctl, as a script.
const SCRIPT: &str = "/etc/ringmill/tune.sh";
/// The unit that runs the script.
const UNIT: &str = "/etc/systemd/system/ringmill-tune.service";
/// Switches the unit on.
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/ringmill-tune.service";
/// Runs the unit again when the card appears.
const UDEV: &str = "/etc/udev/rules.d/90-ringmill.rules";
/// The limit of open files of the service.
const LIMITS: &str = "/etc/systemd/system/ringmill.service.d/50-tune.conf";
/// The unit of irqbalance.
pub(super) const IRQBALANCE: &str = "irqbalance.service";

/// First line of each.
const HEAD: &str =
    "# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.\n";

/// What tells irqbalance to keep its hands off the shards' CPUs (irqbalance(1)).
#[must_use]
pub(super) fn irqbalance_drop_in(shards: &CpuList) -> String {
    format!("{HEAD}[Service]\nEnvironment=IRQBALANCE_BANNED_CPULIST={shards}\n")
}

/// The files that make the steps of a plan last.
#[must_use]
pub(super) fn steps(plan: &Plan, interface: Option<&str>) -> Vec<Step> {
    let step = |setting: Setting, wanted: String, reason: &str| Step {
        setting,
        now: None,
        wanted,
        reason: reason.into(),
        source: "systemd's manual".into(),
        risk: None,
    };
    let written = |path: &str| Setting::Written { path: path.into() };
    // The keys of connection tracking are there only once its module is loaded, after systemd-sysctl.
    let (sysctls, others): (Vec<&Step>, Vec<&Step>) = plan
        .steps
        .iter()
        .filter(|step| !matches!(step.setting, Setting::Written { .. } | Setting::Link { .. }))
        .partition(|step| match &step.setting {
            Setting::Sysctl { name } => !name.starts_with("net.netfilter."),
            _ => false,
        });
    let mut lasting = Vec::new();
    if !sysctls.is_empty() {
        let mut text = HEAD.to_owned();
        for step in sysctls {
            text += &format!("# {}\n-{} = {}\n", step.reason, step.setting, step.wanted);
        }
        lasting.push(step(
            written(SYSCTL),
            text,
            "the sysctls again after each boot",
        ));
    }
    if !others.is_empty() {
        let mut text = format!("#!/bin/sh\n{HEAD}");
        for step in others {
            text += &format!("\n# {}\n{}\n", step.reason, script::command(step));
        }
        lasting.push(step(
            written(SCRIPT),
            text,
            "the rest again after each boot, as a script",
        ));
        let unit = format!(
            "{HEAD}[Unit]\nDescription=Host tuning of ringmill\nAfter=network.target nftables.service\n\n\
             [Service]\nType=oneshot\nRemainAfterExit=no\nExecStart=/bin/sh {SCRIPT}\n\n\
             [Install]\nWantedBy=multi-user.target\n"
        );
        lasting.push(step(written(UNIT), unit, "runs that script"));
        lasting.push(step(
            Setting::Link { path: WANTS.into() },
            UNIT.into(),
            "switches that unit on (systemctl enable)",
        ));
        if let Some(interface) = interface {
            let rule = |key: &str| {
                format!(
                    "ACTION==\"add|move\", SUBSYSTEM==\"net\", {key}==\"{interface}\", TAG+=\"systemd\", \
                     ENV{{SYSTEMD_WANTS}}+=\"ringmill-tune.service\"\n"
                )
            };
            // A card that was renamed has its new name in NAME, any other in KERNEL.
            let rules = format!("{HEAD}{}{}", rule("KERNEL"), rule("NAME"));
            lasting.push(step(
                written(UDEV),
                rules,
                "runs it again when the card appears",
            ));
        }
    }
    if let Some(files) = plan.files {
        let text = format!("{HEAD}[Service]\nLimitNOFILE={files}\n");
        lasting.push(step(
            written(LIMITS),
            text,
            "open files of the service ringmill.service",
        ));
    }
    lasting
}
