//! The kernel and the machine below it: version, virtualisation, stolen time, clocks, CPUs.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::read::{Limit, Reading, Root, parse_ranges, ranges_len};

/// A kernel's release, compared by its numbers only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelVersion {
    /// First number of the release.
    pub major: u32,
    /// Second number of the release.
    pub minor: u32,
    /// Third number, 0 where there is none.
    pub patch: u32,
    /// The release as the kernel writes it.
    pub release: String,
}

impl KernelVersion {
    /// Whether this is `major.minor` or newer.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl FromStr for KernelVersion {
    type Err = String;

    fn from_str(release: &str) -> Result<Self, String> {
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self {
                major,
                minor,
                patch: numbers.next().and_then(Result::ok).unwrap_or(0),
                release: release.to_owned(),
            }),
            _ => Err(format!("'{release}' is not a kernel release")),
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)
    }
}

/// The machine as this process sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Version of the running kernel.
    pub kernel: Reading<KernelVersion>,
    /// Model of the first CPU.
    pub cpu_model: Reading<String>,
    /// CPUs that are switched on.
    pub cpus_online: Reading<u32>,
    /// CPUs that this process may use: its affinity and the control group's set together.
    pub cpus_allowed: Reading<u32>,
    /// Frequency governors of the CPUs, each named once.
    pub governors: Reading<Vec<String>>,
    /// Main memory in bytes.
    pub memory_bytes: Reading<u64>,
    /// What the machine runs on, where it is not bare metal.
    pub virtualisation: Reading<String>,
    /// Share of CPU time that the hypervisor gave to others since boot, in percent.
    pub steal_percent: Reading<f64>,
    /// Slack that the kernel adds to timers of this thread, in nanoseconds.
    pub timer_slack_ns: Reading<u64>,
}

impl Machine {
    pub(super) fn read(root: &Root) -> Self {
        Self {
            kernel: root.sysctl("kernel.osrelease"),
            cpu_model: cpu_info(root, &["model name", "Model", "cpu model"]),
            cpus_online: root
                .text("/sys/devices/system/cpu/online")
                .and_then(|text| count("/sys/devices/system/cpu/online", &text)),
            cpus_allowed: root
                .labelled("/proc/self/status", "Cpus_allowed_list:")
                .and_then(|text| count("/proc/self/status", &text)),
            governors: governors(root),
            memory_bytes: root
                .labelled("/proc/meminfo", "MemTotal:")
                .and_then(|text| {
                    super::read::parse::<u64>("/proc/meminfo", text.trim_end_matches(" kB"))
                })
                .map(|kib| kib * 1024),
            virtualisation: virtualisation(root),
            steal_percent: steal_percent(root),
            timer_slack_ns: root.value("/proc/self/timerslack_ns"),
        }
    }
}

fn count(file: &str, list: &str) -> Reading<u32> {
    parse_ranges(list).map_or_else(
        || Reading::unknown(format!("{file} holds '{list}', which is no list of CPUs")),
        |ranges| Reading::known(ranges_len(&ranges)),
    )
}

fn cpu_info(root: &Root, keys: &[&str]) -> Reading<String> {
    root.text("/proc/cpuinfo").and_then(|text| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| keys.contains(&key.trim()))
            .map_or_else(
                || Reading::unknown("/proc/cpuinfo names no model"),
                |(_, value)| Reading::known(value.trim().to_owned()),
            )
    })
}

fn governors(root: &Root) -> Reading<Vec<String>> {
    root.text("/sys/devices/system/cpu/online")
        .and_then(|online| {
            let mut names: Vec<String> = parse_ranges(&online)
                .unwrap_or_default()
                .into_iter()
                .flat_map(|(first, last)| first..=last)
                .filter_map(|cpu| {
                    let file = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
                    root.text(&file).value
                })
                .collect();
            names.sort();
            names.dedup();
            if names.is_empty() {
                Reading::unknown("this machine does not show its frequency governors")
            } else {
                Reading::known(names)
            }
        })
}

fn virtualisation(root: &Root) -> Reading<String> {
    let vendor = ["sys_vendor", "product_name"]
        .iter()
        .filter_map(|name| root.text(&format!("/sys/class/dmi/id/{name}")).value)
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    if let Some(kind) = root.text("/sys/hypervisor/type").value {
        return Reading::known(format!("{kind} {vendor}").trim_end().to_owned());
    }
    root.text("/proc/cpuinfo").and_then(|text| {
        let flagged = text
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"));
        match (flagged, vendor.is_empty()) {
            (true, false) => Reading::known(format!("virtual machine ({vendor})")),
            (true, true) => Reading::known("virtual machine".to_owned()),
            (false, _) => Reading::unknown("no sign of a hypervisor"),
        }
    })
}

/// Eighth column of the line `cpu` of /proc/stat; man 5 proc_stat gives the order.
fn steal_percent(root: &Root) -> Reading<f64> {
    root.labelled("/proc/stat", "cpu ").and_then(|line| {
        let ticks: Vec<u64> = line
            .split_whitespace()
            .map_while(|tick| tick.parse().ok())
            .collect();
        // guest and guest_nice, columns nine and ten, are already part of user and nice.
        let total: u64 = ticks.iter().take(8).sum();
        match ticks.get(7) {
            Some(steal) if total > 0 => Reading::known(*steal as f64 * 100.0 / total as f64),
            _ => Reading::unknown("/proc/stat does not count stolen time"),
        }
    })
}

/// What the control groups of this process allow it.
#[derive(Debug, Clone, Serialize)]
pub struct ControlGroup {
    /// Lowest memory limit on the way up from this process's group, in bytes.
    pub memory_bytes: Reading<Limit>,
    /// Lowest CPU quota on the way up, in thousandths of a CPU.
    pub cpu_milli: Reading<Limit>,
}

/// Version 1 writes "no limit" as the largest multiple of the page size; anything above is none.
const V1_UNLIMITED_FROM_BYTES: u64 = 1 << 60;

impl ControlGroup {
    pub(super) fn read(root: &Root) -> Self {
        let membership = root.text("/proc/self/cgroup");
        let Some(text) = &membership.value else {
            let reason = membership.reason.unwrap_or_default();
            return Self {
                memory_bytes: Reading::unknown(reason.clone()),
                cpu_milli: Reading::unknown(reason),
            };
        };
        // Lines are "id:controllers:path"; version 2 has no controllers.
        let path_of = |wanted: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let controllers = fields.next()?;
                controllers
                    .split(',')
                    .any(|name| name == wanted)
                    .then(|| fields.next().unwrap_or("/").to_owned())
            })
        };
        let memory_v1 = |group: &str| {
            root.value::<u64>(&format!("{group}/memory.limit_in_bytes"))
                .map(|bytes| match bytes {
                    V1_UNLIMITED_FROM_BYTES.. => Limit::Unlimited,
                    _ => Limit::At(bytes),
                })
        };
        let cpu_v1 = |group: &str| {
            let quota_us = root.value::<i64>(&format!("{group}/cpu.cfs_quota_us"));
            let period_us = root.value::<u64>(&format!("{group}/cpu.cfs_period_us"));
            quota_us.and_then(|quota_us| {
                period_us.map(|period_us| match u64::try_from(quota_us) {
                    Ok(quota_us) if period_us > 0 => Limit::At(quota_us * 1000 / period_us),
                    _ => Limit::Unlimited,
                })
            })
        };
        let memory_v2 = |group: &str| root.value::<Limit>(&format!("{group}/memory.max"));
        let cpu_v2 = |group: &str| {
            let file = format!("{group}/cpu.max");
            root.text(&file).and_then(|text| cpu_max(&file, &text))
        };
        let unified = root.exists("/sys/fs/cgroup/cgroup.controllers");
        if unified {
            let path = path_of("").unwrap_or_else(|| "/".to_owned());
            Self {
                memory_bytes: lowest("/sys/fs/cgroup", &path, memory_v2),
                cpu_milli: lowest("/sys/fs/cgroup", &path, cpu_v2),
            }
        } else {
            let of = |controller: &str, limit: &dyn Fn(&str) -> Reading<Limit>| match path_of(
                controller,
            ) {
                Some(path) => lowest(&format!("/sys/fs/cgroup/{controller}"), &path, limit),
                None => Reading::unknown(format!("no control group for {controller}")),
            };
            Self {
                memory_bytes: of("memory", &memory_v1),
                cpu_milli: of("cpu", &cpu_v1),
            }
        }
    }
}

/// `cpu.max` of version 2: quota (or `max`) and period in microseconds.
fn cpu_max(file: &str, text: &str) -> Reading<Limit> {
    let mut fields = text.split_whitespace();
    let quota = fields.next().and_then(|quota| quota.parse().ok());
    let period_us = fields.next().and_then(|period| period.parse::<u64>().ok());
    match (quota, period_us) {
        (Some(Limit::Unlimited), _) => Reading::known(Limit::Unlimited),
        (Some(Limit::At(quota_us)), Some(period_us)) if period_us > 0 => {
            Reading::known(Limit::At(quota_us * 1000 / period_us))
        }
        _ => Reading::unknown(format!("{file} holds '{text}', which is no CPU quota")),
    }
}

/// The lowest limit from the group at `path` up to the mount itself. Inside a container the path
/// is often the host's and not visible; then only the mount's own files count.
fn lowest(mount: &str, path: &str, limit: impl Fn(&str) -> Reading<Limit>) -> Reading<Limit> {
    let mut lowest: Option<Limit> = None;
    let mut path = path.trim_end_matches('/');
    loop {
        if let Some(found) = limit(&format!("{mount}{path}")).value {
            lowest = Some(lowest.map_or(found, |known| known.min(found)));
        }
        match path.rfind('/') {
            Some(parent) => path = &path[..parent],
            None => break,
        }
    }
    // The root group of version 2 has no limit files at all: there is none.
    lowest.map_or_else(
        || Reading::unknown(format!("{mount} sets no limit")),
        Reading::known,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::FakeHost;

    #[test]
    fn kernel_releases_are_compared_by_number() {
        for (release, numbers) in [
            ("6.18.44-fc-v669", Some((6, 18, 44))),
            ("6.1.0-28-amd64", Some((6, 1, 0))),
            ("5.15", Some((5, 15, 0))),
            ("6.12-rc1", Some((6, 12, 0))),
            ("linux", None),
            ("", None),
        ] {
            let version = release.parse::<KernelVersion>().ok();
            assert_eq!(
                version.map(|v| (v.major, v.minor, v.patch)),
                numbers,
                "{release}"
            );
        }
        let version: KernelVersion = "6.10.3".parse().unwrap();
        assert!(version.at_least(6, 10) && version.at_least(5, 19) && version.at_least(6, 9));
        assert!(!version.at_least(6, 11) && !version.at_least(7, 0));
    }

    #[test]
    fn a_release_candidate_has_no_patch_level() {
        // "-rc1" must not be taken for patch level 1.
        let version: KernelVersion = "6.12.0-rc1".parse().unwrap();
        assert_eq!(version.patch, 0);
    }

    #[test]
    fn stolen_time_is_a_share_of_all_time() {
        let host = FakeHost::new().file("/proc/stat", "cpu  50 0 25 15 0 0 0 10 7 0\ncpu0 1\n");
        assert_eq!(steal_percent(&host.root()).value, Some(10.0));
        let old = FakeHost::new().file("/proc/stat", "cpu  50 0 25 15\n");
        assert!(steal_percent(&old.root()).reason.is_some());
    }

    #[test]
    fn cpus_memory_and_governors_are_read() {
        let host = FakeHost::new()
            .file("/sys/devices/system/cpu/online", "0-2\n")
            .file("/proc/self/status", "Name:\tx\nCpus_allowed_list:\t1-2\n")
            .file("/proc/meminfo", "MemTotal:       1024 kB\nMemFree: 1 kB\n")
            .file(
                "/proc/cpuinfo",
                "model name\t: Fast One\nflags\t\t: fpu hypervisor\n",
            )
            .file(
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
                "powersave\n",
            )
            .file(
                "/sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
                "performance\n",
            );
        let machine = Machine::read(&host.root());
        assert_eq!(machine.cpus_online.value, Some(3));
        assert_eq!(machine.cpus_allowed.value, Some(2));
        assert_eq!(machine.memory_bytes.value, Some(1 << 20));
        assert_eq!(machine.cpu_model.value.as_deref(), Some("Fast One"));
        assert_eq!(
            machine.virtualisation.value.as_deref(),
            Some("virtual machine")
        );
        assert_eq!(
            machine.governors.value,
            Some(vec!["performance".to_owned(), "powersave".to_owned()])
        );
        assert!(machine.steal_percent.reason.is_some());
    }

    #[test]
    fn control_group_limits_are_the_lowest_on_the_way_up() {
        let v2 = |files: FakeHost| files.file("/sys/fs/cgroup/cgroup.controllers", "cpu memory");
        for (name, host, memory, cpu_milli) in [
            (
                "version 2, the parent is tighter",
                v2(FakeHost::new())
                    .file("/proc/self/cgroup", "0::/a/b\n")
                    .file("/sys/fs/cgroup/a/b/memory.max", "max\n")
                    .file("/sys/fs/cgroup/a/memory.max", "1048576\n")
                    .file("/sys/fs/cgroup/a/b/cpu.max", "150000 100000\n")
                    .file("/sys/fs/cgroup/a/cpu.max", "max 100000\n"),
                Some(Limit::At(1 << 20)),
                Some(Limit::At(1500)),
            ),
            (
                "version 2, a container's own view",
                v2(FakeHost::new())
                    .file("/proc/self/cgroup", "0::/\n")
                    .file("/sys/fs/cgroup/memory.max", "2097152\n")
                    .file("/sys/fs/cgroup/cpu.max", "max 100000\n"),
                Some(Limit::At(2 << 20)),
                Some(Limit::Unlimited),
            ),
            (
                "version 1",
                FakeHost::new()
                    .file("/proc/self/cgroup", "4:memory:/x\n1:cpu,cpuacct:/\n0::/\n")
                    .file(
                        "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
                        "9223372036854771712",
                    )
                    .file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4096")
                    .file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
                    .file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
                Some(Limit::At(4096)),
                Some(Limit::Unlimited),
            ),
            ("no control groups", FakeHost::new(), None, None),
        ] {
            let group = ControlGroup::read(&host.root());
            assert_eq!(group.memory_bytes.value, memory, "{name}");
            assert_eq!(group.cpu_milli.value, cpu_milli, "{name}");
            assert_eq!(
                group.memory_bytes.reason.is_some(),
                memory.is_none(),
                "{name}"
            );
        }
    }
}
