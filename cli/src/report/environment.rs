//! The machine and the build that a report was made with, so that figures can be compared.
//!
//! Reads `/proc`, `/sys` and `/etc/os-release` and tolerates each of them missing. It must never
//! tell who or where the machine is: no host name, address, serial number or user.

use std::collections::BTreeSet;
use std::fs;

use serde::Serialize;

/// The machine, as far as it told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Environment {
    /// The processor's name (`/proc/cpuinfo`).
    pub cpu_model: Option<String>,
    /// Physical cores.
    pub cores: Option<u32>,
    /// Hardware threads that the kernel runs.
    pub threads: Option<u32>,
    /// Threads that this process may use (affinity and cgroup quota).
    pub threads_usable: Option<u32>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Kernel release, for example `6.1.0-18-amd64`.
    pub kernel: Option<String>,
    /// Distribution (`PRETTY_NAME` of os-release(5)).
    pub distribution: Option<String>,
    /// Instruction set that ringmill was built for.
    pub architecture: String,
    /// The hypervisor where one shows itself: its name, or `yes`.
    pub virtualisation: Option<String>,
    /// The container manager where one shows itself.
    pub container: Option<String>,
    /// This program.
    pub build: Build,
}

/// How this program was built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Build {
    /// Version of ringmill.
    pub version: String,
    /// `release` or `debug`; figures of a debug build mean nothing.
    pub profile: String,
    /// Compiler, for example `rustc 1.88.0 (…)`.
    pub rustc: Option<String>,
    /// Target triple.
    pub target: Option<String>,
}

impl Build {
    /// This build.
    pub fn current() -> Self {
        let by_assertions = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        Build {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: option_env!("RINGMILL_BUILD_PROFILE")
                .unwrap_or(by_assertions)
                .to_owned(),
            rustc: option_env!("RINGMILL_BUILD_RUSTC").map(str::to_owned),
            target: option_env!("RINGMILL_BUILD_TARGET").map(str::to_owned),
        }
    }
}

impl Environment {
    /// Looks at this machine.
    pub fn collect() -> Self {
        let usable = std::thread::available_parallelism().ok();
        Environment {
            threads_usable: usable.and_then(|count| u32::try_from(count.get()).ok()),
            ..Environment::from_files(|path| fs::read_to_string(path).ok())
        }
    }

    /// The same from any source of files; `read` gives `None` for what it cannot read.
    fn from_files(read: impl Fn(&str) -> Option<String>) -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        Environment {
            cpu_model: cpu_model(&cpuinfo),
            cores: physical_cores(&cpuinfo),
            threads: fields(&cpuinfo, "processor")
                .count()
                .try_into()
                .ok()
                .filter(|&n: &u32| n > 0),
            threads_usable: None,
            memory_bytes: read("/proc/meminfo").as_deref().and_then(memory_bytes),
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            distribution: ["/etc/os-release", "/usr/lib/os-release"]
                .into_iter()
                .find_map(&read)
                .as_deref()
                .and_then(pretty_name),
            architecture: std::env::consts::ARCH.to_owned(),
            virtualisation: virtualisation(&cpuinfo, &read),
            container: container(&read),
            build: Build::current(),
        }
    }
}

/// Values of `key : value` lines.
fn fields<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    // x86 says "model name", some ARM kernels "Model" or "Hardware".
    let name = ["model name", "Model", "Hardware", "cpu model"]
        .into_iter()
        .find_map(|key| fields(cpuinfo, key).find(|value| !value.is_empty()))?;
    Some(name.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Distinct pairs of package and core; `None` where the kernel does not list them (ARM).
fn physical_cores(cpuinfo: &str) -> Option<u32> {
    let packages = fields(cpuinfo, "physical id");
    let cores: BTreeSet<_> = packages.zip(fields(cpuinfo, "core id")).collect();
    u32::try_from(cores.len()).ok().filter(|&count| count > 0)
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let total = fields(meminfo, "MemTotal").next()?;
    total
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name = value.trim().trim_matches(['"', '\'']);
    (!name.is_empty()).then(|| name.to_owned())
}

fn virtualisation(cpuinfo: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    /// Words in the firmware's vendor and product, and the hypervisor they stand for.
    const FIRMWARE: &[(&str, &str)] = &[
        ("kvm", "kvm"),
        ("qemu", "qemu/kvm"),
        ("vmware", "vmware"),
        ("virtualbox", "virtualbox"),
        ("innotek", "virtualbox"),
        ("xen", "xen"),
        ("microsoft corporation virtual machine", "hyper-v"),
        ("amazon ec2", "amazon ec2"),
        ("google compute engine", "google compute engine"),
        ("openstack", "openstack"),
        ("bochs", "bochs"),
    ];
    if let Some(kind) = read("/sys/hypervisor/type").filter(|kind| !kind.trim().is_empty()) {
        return Some(kind.trim().to_owned());
    }
    let firmware = [
        "/sys/class/dmi/id/sys_vendor",
        "/sys/class/dmi/id/product_name",
    ]
    .map(|path| read(path).unwrap_or_default().trim().to_lowercase())
    .join(" ");
    if let Some((_, name)) = FIRMWARE.iter().find(|(word, _)| firmware.contains(word)) {
        return Some((*name).to_owned());
    }
    let flagged = fields(cpuinfo, "flags")
        .next()
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
    flagged.then(|| "yes".to_owned())
}

fn container(read: impl Fn(&str) -> Option<String>) -> Option<String> {
    for (path, name) in [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")] {
        if read(path).is_some() {
            return Some(name.to_owned());
        }
    }
    // systemd-nspawn and others leave their name here for systemd inside to find.
    read("/run/systemd/container")
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(number: u32, package: u32, core: u32, flags: &str) -> String {
        format!(
            "processor\t: {number}\nmodel name\t: Example   CPU 9000\nphysical id\t: {package}\n\
             core id\t\t: {core}\nflags\t\t: fpu {flags}\n\n"
        )
    }

    #[test]
    fn files_of_a_virtual_server() {
        let cpuinfo = [
            cpu(0, 0, 0, "hypervisor"),
            cpu(1, 0, 0, "hypervisor"),
            cpu(2, 1, 0, "hypervisor"),
            cpu(3, 1, 0, "hypervisor"),
        ]
        .concat();
        let environment = Environment::from_files(|path| {
            Some(match path {
                "/proc/cpuinfo" => cpuinfo.clone(),
                "/proc/meminfo" => "MemTotal:       24684084 kB\nMemFree: 1 kB\n".into(),
                "/proc/sys/kernel/osrelease" => "6.1.0-18-amd64\n".into(),
                "/etc/os-release" => "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n".into(),
                "/sys/class/dmi/id/sys_vendor" => "QEMU\n".into(),
                "/.dockerenv" => String::new(),
                _ => return None,
            })
        });
        assert_eq!(environment.cpu_model.as_deref(), Some("Example CPU 9000"));
        assert_eq!((environment.cores, environment.threads), (Some(2), Some(4)));
        assert_eq!(environment.memory_bytes, Some(24_684_084 * 1024));
        assert_eq!(environment.kernel.as_deref(), Some("6.1.0-18-amd64"));
        assert_eq!(
            environment.distribution.as_deref(),
            Some("Debian GNU/Linux 12")
        );
        assert_eq!(environment.virtualisation.as_deref(), Some("qemu/kvm"));
        assert_eq!(environment.container.as_deref(), Some("docker"));
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let environment = Environment::from_files(|_| None);
        let expected = Environment {
            architecture: std::env::consts::ARCH.into(),
            build: Build::current(),
            ..Environment::default()
        };
        assert_eq!(environment, expected);
    }

    #[test]
    fn hypervisors_by_what_they_show() {
        let flags = cpu(0, 0, 0, "hypervisor");
        for (path, content, cpuinfo, expected) in [
            ("/sys/hypervisor/type", "xen\n", "", Some("xen")),
            (
                "/sys/class/dmi/id/sys_vendor",
                "Amazon EC2\n",
                "",
                Some("amazon ec2"),
            ),
            (
                "/sys/class/dmi/id/product_name",
                "VMware Virtual Platform\n",
                "",
                Some("vmware"),
            ),
            ("/sys/class/dmi/id/sys_vendor", "A Laptop Maker\n", "", None),
            ("", "", flags.as_str(), Some("yes")),
            ("", "", "", None),
        ] {
            let read = |asked: &str| (asked == path).then(|| content.to_owned());
            assert_eq!(
                virtualisation(cpuinfo, read).as_deref(),
                expected,
                "{path} {content}"
            );
        }
    }

    #[test]
    fn this_machine_answers_without_a_name_of_its_own() {
        let environment = Environment::collect();
        assert!(environment.threads_usable.is_some());
        assert!(!environment.build.version.is_empty());
        if let Ok(host) = fs::read_to_string("/proc/sys/kernel/hostname") {
            let host = host.trim();
            // A host called "x86" or "debian" would be found by chance.
            let json = serde_json::to_string(&environment).unwrap();
            assert!(
                host.len() < 8 || !json.contains(host),
                "the report tells the host name"
            );
        }
    }
}
