//! What the two readers see, and that they see the same.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::fake::{FakeTree, list};
use crate::topology::{LimitKind, Source, Topology, TopologyError};

fn ids(topology: &Topology, core: usize) -> Vec<usize> {
    topology
        .cpus
        .iter()
        .filter(|cpu| cpu.core == core)
        .map(|cpu| cpu.id)
        .collect()
}

#[test]
fn a_server_with_two_packages() {
    let machine = FakeTree::two_packages(64).read();
    assert_eq!(machine.source, Source::Sysfs);
    let counts = (
        machine.packages(),
        machine.nodes.len(),
        machine.cores(),
        machine.cpus.len(),
    );
    assert_eq!(counts, (2, 2, 128, 256));
    assert_eq!(ids(&machine, 64), [64, 192]);
    let cpu = machine.cpu(192).expect("CPU 192");
    assert_eq!(
        (cpu.package, cpu.node, cpu.smt, cpu.allowed),
        (1, Some(1), 1, true)
    );
    assert_eq!(machine.nodes[1].memory_bytes, 1 << 30);
    assert_eq!(machine.nodes[1].distances, [21, 10]);
    assert_eq!(machine.nodes[0].cpus, list("0-63,128-191"));
    let third: Vec<_> = machine
        .caches
        .iter()
        .filter(|cache| cache.level == 3)
        .collect();
    assert_eq!(third.len(), 2);
    assert_eq!(third[0].size_bytes, 32 << 20);
    // 128 data caches and 2 third-level ones: instruction caches are left out.
    assert_eq!(machine.caches.len(), 130);
    assert_eq!(machine.interface("eth1").expect("eth1").node, Some(1));
}

#[test]
fn the_least_that_a_container_shows_is_one_package_and_one_node() {
    let tree = FakeTree::new();
    tree.online("0,2")
        .file("proc/meminfo", "MemTotal:  2048 kB\n");
    let machine = tree.read();
    assert_eq!(
        (machine.packages(), machine.cores(), machine.cpus.len()),
        (1, 2, 2)
    );
    assert_eq!(
        (machine.nodes.len(), machine.nodes[0].memory_bytes),
        (1, 2 << 20)
    );
    assert_eq!(machine.cpus[1].node, Some(0));
    assert!(machine.interfaces.is_empty() && machine.caches.is_empty());
}

#[test]
fn an_uneven_machine() {
    // Package 0: two cores with two threads and one whose sibling is offline; package 1: one
    // core without threads; node 2 is memory alone.
    let tree = FakeTree::new();
    tree.online("0-4,7")
        .cpu(0, 0, 0, "0-1")
        .cpu(1, 0, 0, "0-1")
        .cpu(2, 0, 1, "2-3");
    tree.cpu(3, 0, 1, "2-3")
        .cpu(4, 0, 9, "4-5")
        .cpu(7, 1, 0, "7");
    tree.node(0, "0-5", 1024, "10 20 30")
        .node(1, "7", 1024, "20 10 30");
    tree.node(2, "", 4096, "30 30 10");
    let machine = tree.read();
    assert_eq!(
        (machine.packages(), machine.cores(), machine.cpus.len()),
        (2, 4, 6)
    );
    assert_eq!(ids(&machine, 2), [4]);
    assert_eq!(ids(&machine, 3), [7]);
    assert_eq!(
        machine.nodes[0].cpus,
        list("0-4"),
        "offline CPUs are no part of a node"
    );
    assert!(machine.nodes[2].cpus.is_empty());
}

#[test]
fn trees_that_say_too_little_are_errors_in_words() {
    let cases = [
        (None, "online"),
        (Some(""), "no online CPU"),
        (Some("zero"), "\"zero\""),
    ];
    for (online, words) in cases {
        let tree = FakeTree::new();
        if let Some(online) = online {
            tree.online(online);
        }
        let error = Topology::from_sysfs(tree.root(), None).expect_err(words);
        assert!(matches!(
            error,
            TopologyError::File { .. } | TopologyError::NoCpu { .. }
        ));
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn cards_their_nodes_and_interrupts() {
    let tree = FakeTree::two_packages(2);
    let interrupts = "           CPU0       CPU1\n\
         30:   1  0  PCI-MSIX-0000:00:03.0   0-edge      virtio2-config\n\
         31:   1  0  PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n\
         32:   1  0  PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0\n\
         40:   1  0  IO-APIC   5-edge      virtio9-input.0\n\
         41:   1  0  IO-APIC   6-fasteoi   ehci_hcd, old0\n\
         50:   0  0  PCI-MSIX   0-edge      wide0-TxRx-0\n\
        NMI:   0  0  Non-maskable interrupts\n";
    // A virtio card: node and interrupts are those of the PCI device above it.
    tree.file("proc/interrupts", interrupts)
        .file("sys/devices/pci/03.0/numa_node", "1\n");
    for (irq, cpus) in [("30", "0"), ("31", "1"), ("32", "2-3"), ("33", "5")] {
        tree.file(format!("sys/devices/pci/03.0/msi_irqs/{irq}"), "msix\n")
            .file(format!("proc/irq/{irq}/effective_affinity_list"), cpus)
            .file(format!("proc/irq/{irq}/smp_affinity_list"), "0-7");
    }
    tree.file("sys/devices/pci/03.0/virtio2/vendor", "0x1af4\n");
    tree.link("sys/class/net/virt0/device", "sys/devices/pci/03.0/virtio2");
    // No MSI: found by the driver's name for it; by the interface's own name.
    tree.file("sys/devices/mmio/virtio9/numa_node", "-1\n")
        .file("proc/irq/40/smp_affinity_list", "6");
    tree.link("sys/class/net/mmio0/device", "sys/devices/mmio/virtio9");
    tree.file("sys/devices/isa/old/uevent", "")
        .file("proc/irq/41/smp_affinity_list", "7");
    tree.link("sys/class/net/old0/device", "sys/devices/isa/old");
    // An interrupt that may go anywhere says nothing.
    tree.file("sys/devices/pci/05.0/msi_irqs/50", "")
        .file("proc/irq/50/smp_affinity_list", "0-7");
    tree.link("sys/class/net/wide0/device", "sys/devices/pci/05.0");
    // Stacked upon cards, upon nothing, and upon itself.
    tree.file("sys/class/net/vlan0/lower_virt0", "")
        .file("sys/class/net/lo/mtu", "65536\n");
    tree.file("sys/class/net/bond0/lower_vlan0", "")
        .file("sys/class/net/bond0/lower_eth0", "");
    tree.file("sys/class/net/loop0/lower_loop0", "");
    tree.file("sys/class/net/bonding_masters", "bond0\n");

    let machine = tree.read();
    let names: Vec<_> = machine.interfaces.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "bond0", "eth0", "eth1", "lo", "loop0", "mmio0", "old0", "virt0", "vlan0", "wide0"
        ]
    );
    for (name, node, irq_cpus, device) in [
        ("virt0", Some(1), "1-3", true),
        ("mmio0", None, "6", true),
        ("old0", None, "7", true),
        ("wide0", None, "", true),
        ("vlan0", Some(1), "1-3", true),
        ("bond0", None, "1-3", true),
        ("eth0", Some(0), "", true),
        ("lo", None, "", false),
        ("loop0", None, "", false),
    ] {
        let found = machine.interface(name).expect(name);
        assert_eq!(
            (found.node, &found.irq_cpus, found.device),
            (node, &list(irq_cpus), device),
            "{name}"
        );
    }
}

#[test]
fn affinity_and_cgroup_cpusets_of_both_versions_limit() {
    let v2 = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    let v1 = "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
              35 31 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    let inside = "30 1 0:26 /pod /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
    let blank = "30 1 0:26 / /sys/fs/c\\040group rw - cgroup2 cgroup rw\n";
    for (what, mounts, cgroup, file, text, allowed) in [
        (
            "v2",
            v2,
            "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpuset.cpus.effective",
            "1-2\n",
            "1-2",
        ),
        (
            "v2, controller in an ancestor",
            v2,
            "0::/a/b\n",
            "sys/fs/cgroup/a/cpuset.cpus.effective",
            "3\n",
            "3",
        ),
        (
            "v2, namespace",
            inside,
            "0::/pod/x\n",
            "sys/fs/cgroup/x/cpuset.cpus.effective",
            "0\n",
            "0",
        ),
        (
            "v2, path outside",
            v2,
            "0::/../x\n",
            "sys/fs/cgroup/cpuset.cpus.effective",
            "0,2\n",
            "0,2",
        ),
        (
            "blank in the mount",
            blank,
            "0::/\n",
            "sys/fs/c group/cpuset.cpus.effective",
            "1\n",
            "1",
        ),
        (
            "v1",
            v1,
            "9:cpu:/\n3:cpuset:/d\n",
            "sys/fs/cgroup/cpuset/d/cpuset.effective_cpus",
            "0-1\n",
            "0-1",
        ),
        (
            "v1, old kernel",
            v1,
            "3:cpu,cpuset:/d\n",
            "sys/fs/cgroup/cpuset/d/cpuset.cpus",
            "2-3\n",
            "2-3",
        ),
        (
            "no cpuset file",
            v2,
            "0::/a\n",
            "sys/fs/cgroup/a/memory.max",
            "max\n",
            "0-3",
        ),
        (
            "empty cpuset",
            v2,
            "0::/a\n",
            "sys/fs/cgroup/a/cpuset.cpus.effective",
            "\n",
            "0-3",
        ),
        (
            "nonsense",
            "x\n - \n",
            "0::\nfoo\n:::::\n",
            "sys/x",
            "",
            "0-3",
        ),
    ] {
        let tree = FakeTree::new();
        tree.online("0-3")
            .file("proc/self/mountinfo", mounts)
            .file("proc/self/cgroup", cgroup);
        tree.file(file, text);
        let machine = tree.read();
        assert_eq!(machine.allowed(), list(allowed), "{what}");
        let limits = if allowed == "0-3" { 0 } else { 1 };
        assert_eq!(machine.limits.len(), limits, "{what}");

        let both = tree.read_with_affinity("0-2,64");
        assert_eq!(
            both.allowed(),
            list(allowed).intersection(&list("0-2")),
            "{what} and affinity"
        );
        assert_eq!(both.limits[0].kind, LimitKind::Affinity);
        assert_eq!(both.limits[0].cpus, list("0-2"));
    }
}

#[test]
fn this_host_reads_from_sys() {
    let machine = match Topology::read_sysfs() {
        Ok(machine) => machine,
        Err(error) => return println!("skipped: {error}"),
    };
    assert!(!machine.allowed().is_empty());
    let json = serde_json::to_value(&machine).expect("JSON");
    assert_eq!(json["source"], "sysfs");
    assert_eq!(
        json["cpus"].as_array().map(Vec::len),
        Some(machine.cpus.len())
    );
    assert!(json["nodes"][0]["cpus"].is_string());
}

proptest! {
    // Each case writes 17 files; 64 cases take about half a second.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the files hold, reading answers and what it answers is consistent.
    #[test]
    fn odd_files_are_read_without_panic(
        online in "[0-9]{1,2}(-[0-9]{1,2})?",
        texts in proptest::collection::vec("[0-9a-z:, /\\-\n]{0,24}|-?[0-9]{1,20}", 16),
    ) {
        let tree = FakeTree::new();
        tree.online(&online);
        let files = [
            "sys/devices/system/cpu/cpu0/topology/core_cpus_list",
            "sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
            "sys/devices/system/cpu/cpu1/topology/physical_package_id",
            "sys/devices/system/cpu/cpu1/cache/index0/level",
            "sys/devices/system/cpu/cpu1/cache/index0/size",
            "sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_list",
            "sys/devices/system/node/node0/cpulist",
            "sys/devices/system/node/node3/distance",
            "sys/devices/system/node/node3/meminfo",
            "sys/devices/system/nodes",
            "proc/self/cgroup",
            "proc/self/mountinfo",
            "proc/interrupts",
            "proc/irq/1/smp_affinity_list",
            "sys/class/net/e/device/numa_node",
            "sys/class/net/e/device/msi_irqs/1",
        ];
        for (file, text) in files.iter().zip(&texts) {
            tree.file(file, text);
        }
        if let Ok(machine) = Topology::from_sysfs(tree.root(), None) {
            let cores: BTreeSet<usize> = machine.cpus.iter().map(|cpu| cpu.core).collect();
            prop_assert_eq!(cores, (0..machine.cores()).collect());
            let plan = crate::topology::plan(&machine, &Default::default());
            if let Ok(plan) = plan {
                crate::topology::render(&machine, &plan);
            }
        }
    }
}

#[cfg(feature = "hwloc")]
mod by_hwloc {
    use hwlocality::cpu::cpuset::CpuSet;
    use hwlocality::topology::builder::TopologyBuilder;
    use hwlocality::topology::editor::RestrictFlags;

    use super::*;
    use crate::topology::{CpuList, hwloc};

    #[test]
    fn synthetic_machines() {
        for (description, packages, nodes, cores, cpus) in [
            ("core:1 pu:1", 1, 1, 1, 1),
            ("pu:4", 1, 1, 4, 4),
            ("pack:2 [numa] l3:1 core:64 pu:2", 2, 2, 128, 256),
            ("pack:1 l3:2 core:4 pu:1", 1, 1, 8, 8),
            ("pack:2 numa:2 core:3 pu:4", 2, 4, 12, 48),
        ] {
            let machine = Topology::from_hwloc_synthetic(description).expect(description);
            let found = (
                machine.packages(),
                machine.nodes.len(),
                machine.cores(),
                machine.cpus.len(),
            );
            assert_eq!(found, (packages, nodes, cores, cpus), "{description}");
            assert_eq!(machine.allowed().len(), cpus, "{description}");
            for cpu in &machine.cpus {
                assert!(
                    cpu.smt < cpus / cores && cpu.core < cores,
                    "{description}: {cpu:?}"
                );
            }
        }
    }

    #[test]
    fn descriptions_that_hwloc_refuses_are_errors() {
        for odd in ["", "core:0", "potato:3", "pu:\0"] {
            let error = Topology::from_hwloc_synthetic(odd).expect_err(odd);
            assert!(
                error.to_string().starts_with("hwloc cannot understand"),
                "{error}"
            );
        }
        let error = Topology::from_hwloc_xml("<topology").expect_err("half an XML");
        assert!(error.to_string().contains("XML"), "{error}");
    }

    #[test]
    fn an_uneven_machine_by_restriction() {
        let mut machine = TopologyBuilder::new()
            .from_synthetic("pack:2 [numa] core:4 pu:2")
            .and_then(|builder| builder.build().map_err(|_| panic!("it builds")))
            .expect("a description");
        // Package 0 keeps three cores, the last with one thread; package 1 keeps one thread.
        let left: CpuSet = [0usize, 1, 2, 3, 4, 8]
            .map(|cpu| hwlocality::bitmap::BitmapIndex::try_from(cpu).expect("a small number"))
            .into_iter()
            .collect();
        machine
            .edit(|editor| editor.restrict(&left, RestrictFlags::empty()))
            .expect("a restriction");
        let machine = hwloc::convert(&machine).expect("a machine");
        assert_eq!(
            (machine.packages(), machine.cores(), machine.cpus.len()),
            (2, 4, 6)
        );
        assert_eq!(machine.online(), list("0-4,8"));
        assert_eq!((ids(&machine, 2), ids(&machine, 3)), (vec![4], vec![8]));
    }

    #[test]
    fn both_readers_see_the_same_host() {
        let (by_hwloc, from_sys) = match (Topology::read_hwloc(), Topology::read_sysfs()) {
            (Ok(by_hwloc), Ok(from_sys)) => (by_hwloc, from_sys),
            (Err(error), _) | (_, Err(error)) => return println!("skipped: {error}"),
        };
        assert_eq!(by_hwloc.source, Source::Hwloc);
        assert_eq!(
            Topology {
                source: Source::Sysfs,
                ..by_hwloc
            },
            from_sys
        );
    }

    /// Set in the child of [`both_readers_see_the_same_tree`].
    const CHILD_ROOT: &str = "RINGMILL_TEST_TREE";

    /// hwloc reads a made-up tree too, if the environment says so when the process starts.
    #[test]
    fn both_readers_see_the_same_tree() {
        if let Some(root) = std::env::var_os(CHILD_ROOT) {
            let by_hwloc = hwloc::read_this_machine().expect("hwloc reads the tree");
            let from_sys = crate::topology::sysfs::read(root.as_ref()).expect("so do we");
            assert_eq!(
                Topology {
                    source: Source::Sysfs,
                    ..by_hwloc
                },
                from_sys
            );
            return;
        }
        let test = "topology::tests::readers::by_hwloc::both_readers_see_the_same_tree";
        let uneven = FakeTree::new();
        uneven
            .online("0-4,7")
            .node(0, "0-5", 1024, "10 20")
            .node(1, "7", 2048, "20 10");
        for (cpu, package, core, siblings) in [
            (0, 0, 0, "0-1"),
            (1, 0, 0, "0-1"),
            (2, 0, 1, "2-3"),
            (3, 0, 1, "2-3"),
            (4, 0, 9, "4"),
            (7, 1, 0, "7"),
        ] {
            uneven.cpu(cpu, package, core, siblings);
        }
        for (what, tree) in [
            ("two packages", FakeTree::two_packages(20)),
            ("uneven", uneven),
        ] {
            tree.for_hwloc();
            let child = std::process::Command::new(std::env::current_exe().expect("this test"))
                .args(["--exact", test])
                .env(CHILD_ROOT, tree.root())
                .env("HWLOC_FSROOT", tree.root())
                .env("HWLOC_THISSYSTEM", "1")
                .env("HWLOC_COMPONENTS", "linux,stop")
                .output()
                .expect("this test starts again");
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(
                child.status.success() && said.contains("1 passed"),
                "{what}: {said}"
            );
        }
    }

    #[test]
    fn both_readers_see_the_same_made_up_server() {
        let from_sys = FakeTree::two_packages(64).read();
        let by_hwloc = Topology::from_hwloc_synthetic(
            "pack:2 [numa] l3:1(size=33554432) core:64 pu:2(indexes=2*128:1*2)",
        )
        .expect("a description");
        let shape = |machine: &Topology| -> Vec<_> {
            let cpus = machine.cpus.iter();
            cpus.map(|cpu| (cpu.id, cpu.core, cpu.package, cpu.node, cpu.smt))
                .collect()
        };
        assert_eq!(shape(&by_hwloc), shape(&from_sys));
        let nodes = |machine: &Topology| -> Vec<(u32, CpuList)> {
            machine
                .nodes
                .iter()
                .map(|node| (node.id, node.cpus.clone()))
                .collect()
        };
        assert_eq!(nodes(&by_hwloc), nodes(&from_sys));
        let thirds = |machine: &Topology| -> Vec<_> {
            machine
                .caches
                .iter()
                .filter(|cache| cache.level == 3)
                .cloned()
                .collect()
        };
        assert_eq!(thirds(&by_hwloc), thirds(&from_sys));
    }
}
