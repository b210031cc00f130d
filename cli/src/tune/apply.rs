//! Makes the changes of a plan and takes them back.
//!
//! Every old value is on the disk before its setting is touched, so a process that is killed anywhere
//! leaves a record from which the next apply goes on and a revert restores. A value that somebody else
//! changed in the meantime is never overwritten: apply refuses before it begins, revert leaves that one
//! as it is and says so.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::host::{Host, HostError};
use super::persist;
use super::plan::{Before, Left, MakeError, Plan, Request, Step, Untouched};
use super::setting::{NicField, Setting};
use super::state::{Entry, Record, Stage, StateError, Store};

/// Plans in one apply: other queues exist after the number of channels changed.
const ROUNDS_MAX: usize = 2;

/// Why nothing was applied or reverted.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// No plan can be made.
    #[error(transparent)]
    Plan(#[from] MakeError),
    /// The record cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another profile is applied.
    #[error("profile {applied} is applied; take it back first: ringmill tune revert")]
    OtherProfile {
        /// Which.
        applied: String,
    },
    /// A running process applied it for itself.
    #[error(
        "profile {profile} was applied by process {owner}, which runs and takes it back when it ends; wait \
         for that, or apply with another --state"
    )]
    Owned {
        /// Which profile.
        profile: String,
        /// The process.
        owner: u32,
    },
    /// It was applied in another network namespace.
    #[error(
        "the record is of another network namespace ({theirs}; this is {ours}): go there to change or revert it, \
         or use a record of its own with --state FILE"
    )]
    OtherNamespace {
        /// The recorded one.
        theirs: String,
        /// This one.
        ours: String,
    },
    /// Somebody changed values that were applied.
    #[error(
        "somebody changed what was applied, so nothing was touched:\n{}\nset them back, or go on without them: \
         --keep-changed",
        .0.iter().map(|conflict| format!("  {conflict}")).collect::<Vec<_>>().join("\n")
    )]
    Changed(Vec<Conflict>),
}

/// A value that is neither what it was nor what it was set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Which setting.
    pub setting: String,
    /// What it was before.
    pub old: Option<String>,
    /// What it was set to.
    pub set_to: String,
    /// What it is.
    pub now: Option<String>,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let brief = |value: &Option<String>| match value {
            None => "not there".to_owned(),
            Some(text) if text.contains('\n') => "another text".to_owned(),
            Some(text) => text.clone(),
        };
        let set_to = brief(&Some(self.set_to.clone()));
        write!(
            f,
            "{} is {}; it was set to {set_to} and was {} before",
            self.setting,
            brief(&self.now),
            brief(&self.old)
        )
    }
}

/// What became of an apply or a revert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The profile.
    pub profile: String,
    /// Settings that were changed.
    pub changed: Vec<Change>,
    /// Settings that already were as wanted.
    pub unchanged: usize,
    /// What could not be done, and why. The record keeps what was not taken back.
    pub failed: Vec<Left>,
    /// What was left alone, and why.
    pub left: Vec<Left>,
    /// Warnings about what was done.
    pub warnings: Vec<String>,
}

/// One setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which.
    pub setting: String,
    /// Its value before; none: it was not there.
    pub from: Option<String>,
    /// Its value now; none: it is not there any more.
    pub to: Option<String>,
}

/// How to apply.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Leave alone what somebody changed, and forget it.
    pub keep_changed: bool,
    /// The process that takes it back when it ends.
    pub owner: Option<u32>,
}

/// Applies a profile, or goes on with an apply that was interrupted.
///
/// # Errors
/// When something stands against all of it. What fails for a single setting is in the outcome.
pub fn apply(host: &Host, state: &Path, request: &Request, how: How) -> Result<Outcome, TuneError> {
    let store = Store::open(state)?;
    let mut record = match store.load()? {
        Some(mut record) => {
            check_record(host, &record)?;
            if record.profile != request.profile.name {
                return Err(TuneError::OtherProfile {
                    applied: record.profile,
                });
            }
            if let Some(owner) = record.owner
                && how.owner != Some(owner)
                && host.root().exists(&format!("/proc/{owner}"))
            {
                return Err(TuneError::Owned {
                    profile: record.profile,
                    owner,
                });
            }
            record.owner = how.owner;
            forget_what_a_reboot_undid(host, &mut record);
            record
        }
        None => Record::new(&request.profile.name, host.identity(), how.owner),
    };
    let mut outcome = Outcome {
        profile: request.profile.name.clone(),
        ..Outcome::default()
    };
    let mut kept = BTreeMap::new();
    for round in 1..=ROUNDS_MAX {
        let plan = Plan::make(host, request, &record)?;
        let conflicts = changed_by_others(host, &record);
        if !conflicts.is_empty() && !how.keep_changed {
            return Err(TuneError::Changed(conflicts.into_values().collect()));
        }
        if !conflicts.is_empty() {
            let is_ours = |entry: &Entry| !conflicts.contains_key(&entry.setting);
            record.entries.retain(is_ours);
            store.save(&record)?;
        }
        kept.extend(conflicts);
        let before = outcome.changed.len();
        for step in &plan.steps {
            // What is kept as somebody changed it has no entry any more, and is not ours to set again.
            if kept.contains_key(&step.setting) {
                continue;
            }
            take(host, &store, &mut record, step, &mut outcome)?;
        }
        outcome.left = plan.left;
        let channels_changed = outcome.changed[before..]
            .iter()
            .any(|change| change.setting.ends_with(&NicField::Channels.to_string()));
        if !channels_changed || round == ROUNDS_MAX {
            break;
        }
    }
    outcome.left.extend(kept.into_values().map(|conflict| Left {
        why: format!("somebody changed it: {conflict}"),
        what: conflict.setting,
    }));
    if !outcome.changed.is_empty() {
        reload(host, &mut outcome);
    }
    Ok(outcome)
}

/// Does one step, unless it is done already.
fn take(
    host: &Host,
    store: &Store,
    record: &mut Record,
    step: &Step,
    outcome: &mut Outcome,
) -> Result<(), TuneError> {
    let setting = &step.setting;
    let now = host.read(setting).value;
    let index = record
        .entries
        .iter()
        .position(|entry| entry.setting == *setting);
    let index = match index {
        Some(index) => {
            let entry = &mut record.entries[index];
            let is_done = entry.stage == Stage::Done && entry.wanted == step.wanted;
            if is_done && now == entry.applied {
                outcome.unchanged += 1;
                return Ok(());
            }
            entry.wanted.clone_from(&step.wanted);
            entry.stage = Stage::Begun;
            entry.applied = None;
            index
        }
        None => {
            if now != step.now {
                outcome.failed.push(Left {
                    what: setting.to_string(),
                    why: "it changed between the plan and the apply; apply again".into(),
                });
                return Ok(());
            }
            record.entries.push(Entry {
                setting: setting.clone(),
                old: now.clone(),
                wanted: step.wanted.clone(),
                applied: None,
                stage: Stage::Begun,
            });
            record.entries.len() - 1
        }
    };
    store.save(record)?;
    let result = host.write(setting, Some(&step.wanted));
    let after = host.read(setting).value;
    if let Err(error) = result {
        outcome.failed.push(Left {
            what: setting.to_string(),
            why: error.to_string(),
        });
        if after == record.entries[index].old {
            record.entries.remove(index);
            store.save(record)?;
        }
        return Ok(());
    }
    let entry = &mut record.entries[index];
    entry.applied.clone_from(&after);
    entry.stage = Stage::Done;
    store.save(record)?;
    let is_as_wanted =
        after.as_deref() == Some(step.wanted.as_str()) || matches!(setting, Setting::Table { .. });
    if !is_as_wanted {
        outcome.warnings.push(format!(
            "{setting} took {} instead of {}",
            after.as_deref().unwrap_or("nothing"),
            step.wanted
        ));
    }
    if let Some(risk) = &step.risk {
        outcome.warnings.push(format!("{setting}: {risk}"));
    }
    outcome.changed.push(Change {
        setting: setting.to_string(),
        from: now,
        to: after,
    });
    Ok(())
}

/// Whether a value is one that we know: what was before, or what we made of it.
fn is_known(entry: &Entry, now: Option<&String>) -> bool {
    now == entry.old.as_ref()
        || match entry.stage {
            Stage::Done => now == entry.applied.as_ref(),
            // Killed between the change and the note of it.
            Stage::Begun => now == Some(&entry.wanted) || entry.setting.may_round(),
        }
}

fn conflict(entry: &Entry, now: Option<String>) -> Conflict {
    Conflict {
        setting: entry.setting.to_string(),
        old: entry.old.clone(),
        set_to: entry
            .applied
            .clone()
            .unwrap_or_else(|| entry.wanted.clone()),
        now,
    }
}

/// Values that are neither what they were nor what we made of them.
fn changed_by_others(host: &Host, record: &Record) -> BTreeMap<Setting, Conflict> {
    let entries = record.entries.iter();
    entries
        .filter_map(|entry| {
            let now = host.read(&entry.setting).value;
            let is_known = is_known(entry, now.as_ref());
            (!is_known).then(|| (entry.setting.clone(), conflict(entry, now)))
        })
        .collect()
}

fn check_record(host: &Host, record: &Record) -> Result<(), TuneError> {
    let (namespace, boot) = host.identity();
    if record.boot == boot && record.namespace != namespace {
        return Err(TuneError::OtherNamespace {
            theirs: record.namespace.clone(),
            ours: namespace,
        });
    }
    Ok(())
}

/// After a reboot the kernel has its own values again, which need not be the old ones; what is left are
/// the files, and what they set.
fn forget_what_a_reboot_undid(host: &Host, record: &mut Record) {
    let (namespace, boot) = host.identity();
    if record.boot == boot {
        return;
    }
    record.entries.retain(|entry| {
        matches!(
            entry.setting,
            Setting::Written { .. } | Setting::Link { .. }
        ) || host.read(&entry.setting).value == entry.applied
    });
    (record.namespace, record.boot) = (namespace, boot);
}

/// Takes everything back that is recorded. `None`: nothing is.
///
/// # Errors
/// When something stands against all of it. A value that somebody changed is left as it is, stays in the
/// record, and is in the outcome as failed; with `keep_changed` it is forgotten.
pub fn revert(host: &Host, state: &Path, keep_changed: bool) -> Result<Option<Outcome>, TuneError> {
    // Nothing to revert needs no folder to be made, nor the right to make it.
    if super::state::read(state)?.is_none() {
        return Ok(None);
    }
    let store = Store::open(state)?;
    let Some(mut record) = store.load()? else {
        return Ok(None);
    };
    check_record(host, &record)?;
    let mut outcome = Outcome {
        profile: record.profile.clone(),
        ..Outcome::default()
    };
    let total = record.entries.len();
    forget_what_a_reboot_undid(host, &mut record);
    outcome.unchanged = total - record.entries.len();
    for index in (0..record.entries.len()).rev() {
        let entry = record.entries[index].clone();
        let setting = &entry.setting;
        let mut fail = |why: String| {
            outcome.failed.push(Left {
                what: setting.to_string(),
                why,
            })
        };
        let now = host.read(setting).value;
        if now == entry.old {
            outcome.unchanged += 1;
        } else if now.is_none()
            && !matches!(
                setting,
                Setting::Written { .. } | Setting::Link { .. } | Setting::Table { .. }
            )
        {
            outcome.left.push(Left {
                what: setting.to_string(),
                why: "it is not there any more".into(),
            });
        } else if !is_known(&entry, now.as_ref()) {
            let conflict = conflict(&entry, now);
            if !keep_changed {
                fail(format!(
                    "somebody changed it: {conflict}; set it back, or forget it with --keep-changed"
                ));
                continue;
            }
            outcome.left.push(Left {
                what: setting.to_string(),
                why: format!("somebody changed it: {conflict}"),
            });
        } else {
            if let Err(error) = host.write(setting, entry.old.as_deref()) {
                fail(error.to_string());
                continue;
            }
            let after = host.read(setting).value;
            if after != entry.old && !setting.may_round() {
                fail(format!(
                    "it is {} after it was set back",
                    after.as_deref().unwrap_or("not there")
                ));
                continue;
            }
            outcome.changed.push(Change {
                setting: setting.to_string(),
                from: now,
                to: after,
            });
        }
        record.entries.remove(index);
        store.save(&record)?;
    }
    if record.entries.is_empty() {
        store.clear()?;
    }
    if !outcome.changed.is_empty() {
        reload(host, &mut outcome);
    }
    Ok(Some(outcome))
}

/// systemd reads its files again where some of them changed.
fn reload(host: &Host, outcome: &mut Outcome) {
    let of_systemd = |change: &&Change| change.setting.contains("/systemd/system/");
    let changed: Vec<&Change> = outcome.changed.iter().filter(of_systemd).collect();
    if changed.is_empty() {
        return;
    }
    let irqbalance = changed
        .iter()
        .any(|change| change.setting.contains(persist::IRQBALANCE));
    let reload = host.reload_units(irqbalance.then_some(persist::IRQBALANCE));
    if let Err(error) = reload {
        let error: HostError = error;
        outcome.warnings.push(format!("{error}; do it by hand"));
    }
}

/// A plan from the values before anything of ours changed them, whether or not it is applied.
///
/// # Errors
/// When the record cannot be read or the interface is not there.
pub fn plan(host: &Host, state: &Path, request: &Request) -> Result<Plan, TuneError> {
    let record = super::state::read(state).ok().flatten();
    let record = record.filter(|record| record.profile == request.profile.name);
    let before: &dyn Before = match &record {
        Some(record) => record,
        None => &Untouched,
    };
    Ok(Plan::make(host, request, before)?)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::tune::tests::{Crash, FakeHost, request};

    fn applied(fake: &FakeHost, request: &Request) -> Outcome {
        apply(&fake.host(), &fake.state(), request, How::default()).unwrap()
    }

    #[test]
    fn apply_is_idempotent_and_revert_restores_exactly() {
        for name in crate::tune::profile::names() {
            for persist in [false, true] {
                let fake = FakeHost::large();
                let before = fake.files();
                let mut request = request(name);
                request.persist = persist;
                let first = applied(&fake, &request);
                assert_eq!(first.failed, [], "{name}");
                assert!(!first.changed.is_empty(), "{name}");
                let after = fake.files();
                assert_ne!(before, after, "{name}");
                let second = applied(&fake, &request);
                assert_eq!(second.changed, [], "{name}");
                assert_eq!(second.unchanged, first.changed.len(), "{name}");
                assert_eq!(fake.files(), after, "{name}");
                let reverted = revert(&fake.host(), &fake.state(), false).unwrap().unwrap();
                assert_eq!(reverted.failed, [], "{name}");
                assert_eq!(reverted.changed.len(), first.changed.len(), "{name}");
                assert_eq!(fake.files(), before, "{name}");
                assert_eq!(
                    revert(&fake.host(), &fake.state(), false).unwrap(),
                    None,
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn source_addresses_that_were_there_stay() {
        let fake = FakeHost::large();
        fake.set("addresses/eth0/10.0.1.1", "there");
        fake.set("addresses/eth1/10.0.1.2", "there");
        let before = fake.files();
        let mut request = request("tcp-client");
        request.profile.knobs.clear();
        request.sources = ["10.0.1.1", "10.0.1.2", "10.0.1.3", "fd00::4"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let plan = plan(&fake.host(), &fake.state(), &request).unwrap();
        let script = crate::tune::script::of_plan(&plan);
        for (line, expected) in [
            ("\nip address add 10.0.1.3/32 dev eth0\n", true),
            ("\nip address add fd00::4/128 dev eth0 nodad\n", true),
            ("# undo: ip address del 10.0.1.3/32 dev eth0\n", true),
            ("it is on eth1 already", true),
            ("add 10.0.1.1", false),
            ("add 10.0.1.2", false),
        ] {
            assert_eq!(script.contains(line), expected, "{line:?} in\n{script}");
        }
        let first = applied(&fake, &request);
        let changed: Vec<_> = first.changed.iter().map(|it| it.setting.as_str()).collect();
        assert_eq!(changed, ["eth0 address 10.0.1.3", "eth0 address fd00::4"]);
        assert_eq!((first.failed, first.warnings), (vec![], vec![]));
        let second = applied(&fake, &request);
        assert_eq!((second.changed.len(), second.unchanged), (0, 2));
        // One that somebody took away meanwhile is no failure.
        fake.remove("addresses/eth0/fd00::4");
        let reverted = revert(&fake.host(), &fake.state(), false).unwrap().unwrap();
        assert_eq!((reverted.failed, reverted.changed.len()), (vec![], 1));
        assert_eq!(fake.files(), before);
    }

    /// Killed before and after every single write, then reverted or applied again.
    #[test]
    fn a_process_killed_anywhere_leaves_a_record_that_restores() {
        let mut request = request("lab");
        request.persist = true;
        let whole = FakeHost::large();
        let before = whole.files();
        let writes = applied(&whole, &request).changed.len();
        let after = whole.files();
        for number in 0..writes {
            for crash in [Crash::Before(number), Crash::After(number)] {
                for goes_on in [false, true] {
                    let fake = FakeHost::large();
                    let host = fake.host();
                    host.faults.arm(crash);
                    let killed = catch_unwind(AssertUnwindSafe(|| {
                        apply(&host, &fake.state(), &request, How::default())
                    }));
                    assert!(killed.is_err(), "{crash:?}");
                    if goes_on {
                        let outcome = applied(&fake, &request);
                        assert_eq!(outcome.failed, [], "{crash:?}");
                        assert_eq!(fake.files(), after, "{crash:?}");
                    }
                    let reverted = revert(&fake.host(), &fake.state(), false).unwrap().unwrap();
                    assert_eq!(reverted.failed, [], "{crash:?}");
                    assert_eq!(fake.files(), before, "{crash:?}");
                }
            }
        }
    }

    /// And a revert that is killed goes on, too.
    #[test]
    fn a_revert_killed_anywhere_goes_on() {
        let request = request("tcp-server");
        let whole = FakeHost::large();
        let before = whole.files();
        let writes = applied(&whole, &request).changed.len();
        for number in 0..writes {
            for crash in [Crash::Before(number), Crash::After(number)] {
                let fake = FakeHost::large();
                applied(&fake, &request);
                let host = fake.host();
                host.faults.arm(crash);
                let killed = catch_unwind(AssertUnwindSafe(|| revert(&host, &fake.state(), false)));
                assert!(killed.is_err(), "{crash:?}");
                let reverted = revert(&fake.host(), &fake.state(), false).unwrap().unwrap();
                assert_eq!(reverted.failed, [], "{crash:?}");
                assert_eq!(fake.files(), before, "{crash:?}");
            }
        }
    }

    #[test]
    fn what_somebody_changed_is_refused_by_apply_and_left_by_revert() {
        let fake = FakeHost::large();
        let request = request("tcp-server");
        applied(&fake, &request);
        let file = "proc/sys/net/core/somaxconn";
        fake.set(file, "5000");
        let error = apply(&fake.host(), &fake.state(), &request, How::default()).unwrap_err();
        let words = "net.core.somaxconn is 5000; it was set to 8192 and was 4096 before";
        assert!(error.to_string().contains(words), "{error}");
        // Revert takes all else back and keeps this one on record.
        let outcome = revert(&fake.host(), &fake.state(), false).unwrap().unwrap();
        assert_eq!(outcome.failed.len(), 1, "{outcome:?}");
        assert!(outcome.failed[0].why.contains(words), "{outcome:?}");
        assert_eq!(fake.get(file), "5000");
        assert_eq!(fake.get("proc/sys/fs/nr_open"), "1024");
        // Set back by hand, or forgotten: either ends it.
        fake.set(file, "4096");
        let outcome = revert(&fake.host(), &fake.state(), false).unwrap().unwrap();
        assert_eq!(outcome.failed, []);
        assert_eq!(revert(&fake.host(), &fake.state(), false).unwrap(), None);
    }

    #[test]
    fn what_somebody_changed_can_be_kept() {
        let file = "proc/sys/net/core/somaxconn";
        for goes_on in [false, true] {
            let fake = FakeHost::large();
            let request = request("tcp-server");
            applied(&fake, &request);
            fake.set(file, "5000");
            if goes_on {
                let how = How {
                    keep_changed: true,
                    ..How::default()
                };
                let outcome = apply(&fake.host(), &fake.state(), &request, how).unwrap();
                assert_eq!(outcome.changed, []);
                assert!(
                    outcome
                        .left
                        .iter()
                        .any(|left| left.what == "net.core.somaxconn")
                );
            }
            let outcome = revert(&fake.host(), &fake.state(), !goes_on)
                .unwrap()
                .unwrap();
            assert_eq!(outcome.failed, []);
            assert_eq!(fake.get(file), "5000");
            assert_eq!(revert(&fake.host(), &fake.state(), false).unwrap(), None);
        }
    }

    #[test]
    fn another_profile_or_namespace_is_refused() {
        let fake = FakeHost::large();
        applied(&fake, &request("tcp-server"));
        let error =
            apply(&fake.host(), &fake.state(), &request("lab"), How::default()).unwrap_err();
        assert!(
            matches!(&error, TuneError::OtherProfile { applied } if applied == "tcp-server"),
            "{error}"
        );
        fake.link("proc/self/ns/net", "net:[2]");
        for error in [
            apply(
                &fake.host(),
                &fake.state(),
                &request("tcp-server"),
                How::default(),
            )
            .unwrap_err(),
            revert(&fake.host(), &fake.state(), false).unwrap_err(),
        ] {
            assert!(matches!(error, TuneError::OtherNamespace { .. }), "{error}");
        }
    }

    #[test]
    fn after_a_reboot_only_the_files_are_left_to_revert() {
        let fake = FakeHost::large();
        let before = fake.files();
        let mut request = request("tcp-server");
        request.persist = true;
        applied(&fake, &request);
        // The kernel starts with its own values, one of them another than before.
        fake.put_back(&before, "proc");
        fake.put_back(&before, "sys");
        fake.put_back(&before, "ethtool");
        fake.set("proc/sys/net/core/somaxconn", "4097");
        fake.set("proc/sys/kernel/random/boot_id", "another");
        let outcome = revert(&fake.host(), &fake.state(), false).unwrap().unwrap();
        assert_eq!(outcome.failed, []);
        assert!(
            outcome
                .changed
                .iter()
                .all(|change| change.setting.starts_with("/etc/")),
            "{outcome:?}"
        );
        assert_eq!(fake.get("proc/sys/net/core/somaxconn"), "4097");
        assert!(
            fake.files().keys().all(|path| !path.starts_with("etc/s")),
            "{:?}",
            fake.files().keys()
        );
    }

    #[test]
    fn what_is_missing_or_read_only_does_not_stop_the_rest() {
        use std::os::unix::fs::PermissionsExt as _;
        let fake = FakeHost::large();
        fake.remove("proc/sys/net/core/somaxconn");
        let file = fake.path("proc/sys/net/netfilter/nf_conntrack_max");
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o444)).unwrap();
        let outcome = applied(&fake, &request("tcp-server"));
        assert_eq!(outcome.failed, []);
        for (name, words) in [
            ("net.core.somaxconn", "not visible"),
            ("net.netfilter.nf_conntrack_max", "read-only here"),
        ] {
            let left = outcome.left.iter().find(|left| left.what == name);
            assert!(
                left.is_some_and(|left| left.why.contains(words)),
                "{outcome:?}"
            );
        }
        assert!(!outcome.changed.is_empty());
    }

    #[test]
    fn what_the_host_refuses_is_named_and_the_rest_is_done() {
        let fake = FakeHost::large();
        // A folder in the place of a file: no one writes to it, root neither.
        fake.remove("ethtool/eth0/rx-ring");
        std::fs::create_dir(fake.path("ethtool/eth0/rx-ring")).unwrap();
        let outcome = applied(&fake, &request("tcp-server"));
        assert!(
            outcome.left.iter().any(|left| left.what == "NIC rx-ring"),
            "{outcome:?}"
        );
        assert!(!outcome.changed.is_empty());
    }

    #[test]
    fn a_larger_goal_keeps_the_oldest_values() {
        let fake = FakeHost::large();
        let before = fake.files();
        let mut request = request("tcp-server");
        applied(&fake, &request);
        request.goal.connections = 3_000_000;
        let outcome = applied(&fake, &request);
        assert_eq!(outcome.failed, []);
        assert!(
            outcome
                .changed
                .iter()
                .any(|change| change.setting == "fs.nr_open")
        );
        assert_eq!(fake.get("proc/sys/fs/nr_open"), "3004416");
        revert(&fake.host(), &fake.state(), false).unwrap();
        assert_eq!(fake.files(), before);
    }

    #[test]
    fn a_namespace_is_tuned_without_touching_the_host() {
        let fake = FakeHost::large();
        assert!(!fake.host().is_in_a_namespace());
        fake.remove("proc/sys/net/core/netdev_max_backlog");
        assert!(fake.host().is_in_a_namespace());
        let mut request = request("lab");
        request.scope = crate::tune::plan::Scope::Network;
        let outcome = applied(&fake, &request);
        let host_wide = ["fs.", "kernel.", "devices/", "module/", "/proc/irq"];
        for change in &outcome.changed {
            assert!(
                !host_wide
                    .iter()
                    .any(|start| change.setting.starts_with(start)),
                "{}",
                change.setting
            );
        }
        assert!(
            outcome
                .left
                .iter()
                .any(|left| left.what == "fs.nr_open" && left.why.contains("--scope"))
        );
    }
}
