//! Made-up `sys` and `proc` trees in a temporary directory, written the way the kernel writes
//! them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

#[cfg(feature = "hwloc")]
use crate::topology::Cpu;
use crate::topology::{CpuList, Topology};

/// A tree that grows line by line and is deleted at the end of the test.
pub(super) struct FakeTree {
    root: TempDir,
}

impl FakeTree {
    pub(super) fn new() -> Self {
        // A big machine is thousands of small files: memory holds them ten times faster than a
        // disk, where there is such a place.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self {
            root: root.expect("a temporary directory"),
        }
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(super) fn file(&self, path: impl AsRef<Path>, text: impl AsRef<str>) -> &Self {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a directory");
        fs::write(path, text.as_ref()).expect("a file");
        self
    }

    pub(super) fn link(&self, path: &str, to: &str) -> &Self {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a link has a directory")).expect("a directory");
        symlink(self.root().join(to), path).expect("a link");
        self
    }

    /// One CPU with the topology files of the kernel.
    pub(super) fn cpu(&self, id: usize, package: i32, core_id: usize, siblings: &str) -> &Self {
        let folder = format!("sys/devices/system/cpu/cpu{id}");
        self.file(
            format!("{folder}/topology/physical_package_id"),
            format!("{package}\n"),
        )
        .file(format!("{folder}/topology/core_id"), format!("{core_id}\n"))
        .file(
            format!("{folder}/topology/core_cpus_list"),
            format!("{siblings}\n"),
        )
    }

    pub(super) fn cache(&self, cpu: usize, index: usize, what: [&str; 4]) -> &Self {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}");
        for (name, text) in ["level", "type", "size", "shared_cpu_list"]
            .iter()
            .zip(what)
        {
            self.file(format!("{folder}/{name}"), format!("{text}\n"));
        }
        self
    }

    pub(super) fn node(&self, id: u32, cpus: &str, memory_kib: u64, distance: &str) -> &Self {
        let folder = format!("sys/devices/system/node/node{id}");
        self.file(format!("{folder}/cpulist"), format!("{cpus}\n"))
            .file(format!("{folder}/distance"), format!("{distance}\n"))
            .file(
                format!("{folder}/meminfo"),
                format!("Node {id} MemTotal:       {memory_kib} kB\nNode {id} MemFree: 1 kB\n"),
            )
    }

    /// Adds the bit masks that hwloc reads where we read lists.
    #[cfg(feature = "hwloc")]
    pub(super) fn for_hwloc(&self) {
        let machine = self.read();
        let online = machine.online();
        let cpus = "sys/devices/system/cpu";
        self.file(format!("{cpus}/possible"), online.to_string())
            .file(format!("{cpus}/present"), online.to_string());
        for cpu in &machine.cpus {
            let of = |same: &dyn Fn(&Cpu) -> bool| {
                mask(
                    machine
                        .cpus
                        .iter()
                        .filter(|cpu| same(cpu))
                        .map(|cpu| cpu.id)
                        .collect(),
                )
            };
            let folder = format!("{cpus}/cpu{}/topology", cpu.id);
            let core = of(&|other| other.core == cpu.core);
            let package = of(&|other| other.package == cpu.package);
            self.file(format!("{folder}/thread_siblings"), &core)
                .file(format!("{folder}/core_cpus"), &core)
                .file(format!("{folder}/core_siblings"), &package)
                .file(format!("{folder}/package_cpus"), &package);
            for index in 0..4 {
                let folder = format!("{cpus}/cpu{}/cache/index{index}", cpu.id);
                let list =
                    fs::read_to_string(self.root().join(format!("{folder}/shared_cpu_list")));
                if let Ok(list) = list {
                    let list = list.parse().expect("a list of ours");
                    self.file(format!("{folder}/shared_cpu_map"), mask(list));
                }
            }
        }
        for node in &machine.nodes {
            let folder = format!("sys/devices/system/node/node{}", node.id);
            self.file(format!("{folder}/cpumap"), mask(node.cpus.clone()));
        }
        let nodes: CpuList = machine.nodes.iter().map(|node| node.id as usize).collect();
        self.file("sys/devices/system/node/online", nodes.to_string());
        self.file("proc/cpuinfo", "");
    }

    pub(super) fn online(&self, cpus: &str) -> &Self {
        self.file("sys/devices/system/cpu/online", format!("{cpus}\n"))
    }

    /// Two packages of one node each, `cores` cores a package, two threads a core; the second
    /// threads are numbered after all first ones, as x86 servers do. One third-level cache a
    /// package, and a card `eth0` on node 0, `eth1` on node 1.
    pub(super) fn two_packages(cores: usize) -> Self {
        let tree = Self::new();
        tree.online(&format!("0-{}", 4 * cores - 1));
        for package in 0..2 {
            let first = package * cores;
            let (last, second) = (first + cores - 1, first + 2 * cores);
            let all = format!("{first}-{last},{second}-{}", second + cores - 1);
            let distance = ["10 21", "21 10"][package];
            tree.node(package as u32, &all, 1 << 20, distance);
            for core in 0..cores {
                let threads = [first + core, second + core];
                for cpu in threads {
                    let siblings = format!("{},{}", threads[0], threads[1]);
                    tree.cpu(cpu, package as i32, core, &siblings)
                        .cache(cpu, 0, ["1", "Data", "48K", &siblings])
                        .cache(cpu, 1, ["1", "Instruction", "32K", &siblings])
                        .cache(cpu, 3, ["3", "Unified", "32768K", &all]);
                }
            }
            tree.pci_card(&format!("eth{package}"), package, &[], "");
        }
        tree
    }

    /// A card on `node` with its packet interrupts, each `(number, CPUs)`.
    pub(super) fn pci_card(
        &self,
        name: &str,
        node: usize,
        irqs: &[(u32, &str)],
        interrupts: &str,
    ) -> &Self {
        let folder = format!("sys/devices/pci0000:00/0000:00:0{node}.0-{name}");
        self.file(format!("{folder}/numa_node"), format!("{node}\n"))
            .link(&format!("sys/class/net/{name}/device"), &folder);
        for (irq, cpus) in irqs {
            self.file(format!("{folder}/msi_irqs/{irq}"), "msix\n")
                .file(
                    format!("proc/irq/{irq}/effective_affinity_list"),
                    format!("{cpus}\n"),
                );
        }
        if interrupts.is_empty() {
            self
        } else {
            self.file("proc/interrupts", interrupts)
        }
    }

    pub(super) fn read(&self) -> Topology {
        Topology::from_sysfs(self.root(), None).expect("the tree can be read")
    }

    pub(super) fn read_with_affinity(&self, cpus: &str) -> Topology {
        Topology::from_sysfs(self.root(), Some(list(cpus))).expect("the tree can be read")
    }
}

/// A CPU set as the kernel writes masks: 32 bits a word, the highest first.
#[cfg(feature = "hwloc")]
fn mask(cpus: CpuList) -> String {
    let words = cpus.iter().last().map_or(1, |highest| highest / 32 + 1);
    let word = |at: usize| {
        let bits = (0..32).filter(|bit| cpus.contains(at * 32 + bit));
        format!("{:08x}", bits.fold(0u32, |word, bit| word | 1 << bit))
    };
    (0..words).rev().map(word).collect::<Vec<_>>().join(",") + "\n"
}

pub(super) fn list(cpus: &str) -> CpuList {
    cpus.parse()
        .unwrap_or_else(|error| panic!("{cpus:?}: {error}"))
}
