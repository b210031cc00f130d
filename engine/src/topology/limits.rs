//! The CPUs that this process is held to from outside: its inherited affinity and the cpuset of
//! its cgroup (version 1 or 2).
//!
//! The kernel folds a cpuset into the affinity mask by itself; the cgroup is read as well, so
//! that a user learns which of the two it was, and because a mask set before a move into another
//! cgroup can differ. Every file here may be absent: that is no limit, not an error.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::CpuList;

/// What limits the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// `sched_getaffinity`: set by taskset, systemd's `CPUAffinity=`, or a parent.
    Affinity,
    /// The cpuset of a cgroup: containers, systemd's `AllowedCPUs=`.
    Cgroup {
        /// The cgroup's path as in `/proc/self/cgroup`.
        path: String,
    },
    /// A limit that hwloc recorded in the description that was read.
    Recorded,
}

/// One limit and the CPUs that it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What limits.
    pub kind: LimitKind,
    /// Online CPUs that it leaves.
    pub cpus: CpuList,
}

/// The cpuset limits of the cgroups that `proc/self/cgroup` below `root` names.
pub(super) fn cgroup_cpusets(root: &Path) -> Vec<Limit> {
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    cgroups
        .lines()
        .filter_map(|line| cpuset_of(root, line, &mounts))
        .collect()
}

/// The limit behind one line of `proc/self/cgroup`: `hierarchy:controllers:path`.
fn cpuset_of(root: &Path, line: &str, mounts: &[Mount]) -> Option<Limit> {
    let mut fields = line.splitn(3, ':');
    let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let has_cpuset = |list: &str| list.split(',').any(|name| name == "cpuset");
    let (mount, files): (&Mount, &[&str]) = if hierarchy == "0" && controllers.is_empty() {
        (
            mounts.iter().find(|mount| mount.kind == "cgroup2")?,
            &["cpuset.cpus.effective"],
        )
    } else if has_cpuset(controllers) {
        let is_cpuset = |mount: &&Mount| mount.kind == "cgroup" && has_cpuset(&mount.options);
        (
            mounts.iter().find(is_cpuset)?,
            &["cpuset.effective_cpus", "cpuset.cpus"],
        )
    } else {
        return None;
    };
    // Without the controller in this cgroup, the nearest ancestor that has it decides.
    let top = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
    let mut folder = top.join(below(&mount.root, path));
    loop {
        let found = files
            .iter()
            .find_map(|file| fs::read_to_string(folder.join(file)).ok());
        if let Some(text) = found {
            let cpus: CpuList = text.parse().ok()?;
            let kind = LimitKind::Cgroup { path: path.into() };
            return (!cpus.is_empty()).then_some(Limit { kind, cpus });
        }
        if folder == top || !folder.pop() || !folder.starts_with(&top) {
            return None;
        }
    }
}

/// Where the cgroup `path` lies below a mount that shows the hierarchy from `mount_root` on.
/// A path outside of it (another cgroup namespace) is the mount's own root as far as we can see.
fn below(mount_root: &Path, path: &str) -> PathBuf {
    let path = Path::new(path);
    let inside = path
        .strip_prefix(mount_root)
        .or_else(|_| path.strip_prefix("/"));
    match inside {
        Ok(inside)
            if inside
                .components()
                .all(|part| matches!(part, Component::Normal(_))) =>
        {
            inside.into()
        }
        _ => PathBuf::new(),
    }
}

/// One line of `proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Mount {
    /// The directory of the file system that is mounted.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
    /// Type of the file system.
    kind: String,
    /// Options of the file system: the controllers, for cgroup version 1.
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
        let mut filesystem = filesystem.split(' ');
        let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
        Some(Self {
            root: root.into(),
            point: point.into(),
            kind: kind.into(),
            options: options.into(),
        })
    }
}

/// Undoes the kernel's octal escapes of blank, tab, newline and backslash.
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}
