//! Hosts made of files, and a way to be killed in the middle of changing one.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Host;
use super::formula::Goal;
use super::plan::{Ports, Request, Scope};
use super::profile::Profile;

/// When to be killed, counted in writes from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Crash {
    /// Recorded and not yet written.
    Before(usize),
    /// Written and not yet noted.
    After(usize),
}

/// Where a [`Host`] stops as if it were killed: by a panic, which no code of ours catches.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    crash: Cell<Option<Crash>>,
    writes: Cell<usize>,
}

impl Faults {
    pub(crate) fn arm(&self, crash: Crash) {
        self.crash.set(Some(crash));
    }

    pub(crate) fn before_write(&self) {
        if matches!(self.crash.get(), Some(Crash::Before(number)) if number == self.writes.get()) {
            panic!("killed before write {}", self.writes.get());
        }
    }

    pub(crate) fn after_write(&self) {
        let number = self.writes.replace(self.writes.get() + 1);
        if matches!(self.crash.get(), Some(Crash::After(wanted)) if wanted == number) {
            panic!("killed after write {number}");
        }
    }
}

/// A folder that describes a host.
pub(crate) struct FakeHost {
    folder: tempfile::TempDir,
}

impl FakeHost {
    /// A machine with so many CPUs and nothing else.
    pub(crate) fn with_cpus(cpus: usize) -> Self {
        // In memory where there is such a place: every change is synced to the disk twice.
        let memory = Path::new("/dev/shm");
        let folder = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
        let fake = Self {
            folder: folder.unwrap(),
        };
        let all = if cpus == 1 {
            "0".into()
        } else {
            format!("0-{}", cpus - 1)
        };
        fake.set("sys/devices/system/cpu/online", &all);
        fake.set("sys/devices/system/node/online", "0");
        fake.set("sys/devices/system/node/node0/cpulist", &all);
        for cpu in 0..cpus {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            fake.set(&format!("{topology}/physical_package_id"), "0");
            fake.set(&format!("{topology}/core_id"), &cpu.to_string());
            fake.set(
                &format!("{topology}/thread_siblings_list"),
                &cpu.to_string(),
            );
            fake.set(&format!("{topology}/core_cpus_list"), &cpu.to_string());
        }
        fake
    }

    /// Adds a card with queues; `serving` are the CPUs of its interrupts, from number 30 on.
    pub(crate) fn card(
        self,
        name: &str,
        transmit: usize,
        receive: usize,
        serving: &[&str],
    ) -> Self {
        let device = "sys/devices/pci0000:00/0000:00:01.0";
        let net = format!("{device}/net/{name}");
        self.set(&format!("{device}/numa_node"), "0");
        self.set(&format!("{net}/ifindex"), "2");
        self.set(&format!("{net}/speed"), "10000");
        self.set(&format!("{net}/mtu"), "1500");
        for queue in 0..transmit {
            self.set(&format!("{net}/queues/tx-{queue}/xps_cpus"), "0");
        }
        for queue in 0..receive {
            self.set(&format!("{net}/queues/rx-{queue}/rps_cpus"), "0");
        }
        self.link(&format!("{net}/device"), "../..");
        self.link(&format!("sys/class/net/{name}"), &format!("../../../{net}"));
        let mut interrupts = String::from("           CPU0\n");
        for (number, cpus) in serving.iter().enumerate() {
            let irq = 30 + number;
            interrupts += &format!(" {irq}:   0   PCI-MSI {irq}-edge   {name}-TxRx-{number}\n");
            self.set(&format!("{device}/msi_irqs/{irq}"), "msix");
            self.set(&format!("proc/irq/{irq}/smp_affinity_list"), cpus);
        }
        self.set("proc/interrupts", &interrupts);
        self
    }

    /// A server as it comes: four CPUs, a card of 10 Gbit/s, Linux' defaults, irqbalance and systemd.
    pub(crate) fn large() -> Self {
        let fake = Self::with_cpus(4).card("eth0", 2, 2, &["0", "0"]);
        for (name, value) in [
            ("fs.file-max", "100000"),
            ("fs.file-nr", "1000\t0\t100000"),
            ("fs.nr_open", "1024"),
            ("kernel.io_uring_disabled", "0"),
            ("kernel.osrelease", "6.12.9"),
            (
                "kernel.random.boot_id",
                "11111111-2222-3333-4444-555555555555",
            ),
            ("net.core.busy_poll", "0"),
            ("net.core.netdev_budget", "300"),
            ("net.core.netdev_max_backlog", "1000"),
            ("net.core.rmem_max", "212992"),
            ("net.core.somaxconn", "4096"),
            ("net.core.wmem_max", "212992"),
            ("net.ipv4.ip_local_port_range", "32768\t60999"),
            ("net.ipv4.ipfrag_high_thresh", "4194304"),
            ("net.ipv4.ipfrag_time", "30"),
            ("net.ipv4.tcp_max_syn_backlog", "4096"),
            ("net.ipv4.tcp_max_tw_buckets", "65536"),
            ("net.ipv4.tcp_mem", "95000\t126000\t190000"),
            ("net.ipv4.tcp_rmem", "4096\t131072\t6291456"),
            ("net.ipv4.tcp_syncookies", "1"),
            ("net.ipv4.tcp_tw_reuse", "2"),
            ("net.ipv4.tcp_wmem", "4096\t16384\t4194304"),
            ("net.ipv6.ip6frag_high_thresh", "4194304"),
            ("net.ipv6.ip6frag_time", "60"),
            ("net.netfilter.nf_conntrack_count", "10"),
            ("net.netfilter.nf_conntrack_max", "65536"),
        ] {
            fake.set(&format!("proc/sys/{}", name.replace('.', "/")), value);
        }
        for (field, value, maximum) in [
            ("rx-ring", "256", Some("4096")),
            ("tx-ring", "256", Some("4096")),
            ("channels", "2", Some("8")),
            ("rx-usecs", "3", None),
            ("adaptive-rx", "off", None),
            ("feature:rx-gro", "on", None),
            ("feature:tx-udp-segmentation", "off", None),
        ] {
            fake.set(&format!("ethtool/eth0/{field}"), value);
            if let Some(maximum) = maximum {
                fake.set(&format!("ethtool/eth0/{field}.max"), maximum);
            }
        }
        for cpu in 0..4 {
            let folder = format!("sys/devices/system/cpu/cpu{cpu}/cpufreq");
            fake.set(&format!("{folder}/scaling_governor"), "powersave");
            fake.set(
                &format!("{folder}/scaling_available_governors"),
                "performance powersave",
            );
        }
        fake.set("sys/module/nf_conntrack/parameters/hashsize", "16384");
        fake.set(
            "proc/meminfo",
            "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   15728640 kB",
        );
        fake.set(
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            1024                 20000                files\n\
             Max locked memory         8388608              8388608              bytes",
        );
        fake.set("proc/77/comm", "irqbalance");
        fake.link("proc/self/ns/net", "net:[1]");
        fs::create_dir_all(fake.path("run/systemd/system")).unwrap();
        fake
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub(crate) fn host(&self) -> Host {
        Host::at(self.folder.path())
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("var/tune.json")
    }

    pub(crate) fn set(&self, file: &str, value: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    pub(crate) fn get(&self, file: &str) -> String {
        fs::read_to_string(self.path(file))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    pub(crate) fn link(&self, file: &str, target: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    /// Every file and link but our record, with white space and masks in one form.
    pub(crate) fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        self.collect(self.folder.path(), &mut files);
        files
    }

    fn collect(&self, folder: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(self.folder.path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if path.is_symlink() {
                files.insert(
                    name,
                    fs::read_link(&path).unwrap().to_str().unwrap().to_owned(),
                );
            } else if path.is_dir() {
                self.collect(&path, files);
            } else if !name.starts_with("var/") {
                let text = fs::read_to_string(&path).unwrap();
                files.insert(name, text.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
    }

    /// Restores the files below a folder.
    pub(crate) fn put_back(&self, files: &BTreeMap<String, String>, folder: &str) {
        for (name, value) in files {
            if name.starts_with(folder) && !self.path(name).is_symlink() {
                self.set(name, value);
            }
        }
    }
}

/// A request for the card of [`FakeHost::large`].
pub(crate) fn request(profile: &str) -> Request {
    let profile = Profile::named(profile).unwrap();
    Request {
        goal: Goal {
            connections: profile.connections,
            bits_per_s: None,
            opens_per_s: None,
            memory_bytes: 16 << 30,
        },
        profile,
        interface: Some("eth0".into()),
        ports: vec![
            Ports {
                first: 7000,
                last: 7000,
            },
            Ports {
                first: 9000,
                last: 9010,
            },
        ],
        sources: Vec::new(),
        scope: Scope::Host,
        persist: false,
    }
}
