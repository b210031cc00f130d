//! The picture of a plan, as a user sees it.

use super::fake::{FakeTree, list};
use crate::topology::{PlanRequest, Topology, plan, render};

/// Columns that every terminal has, as far as these machines go.
const COLUMNS: usize = 88;

fn picture(machine: &Topology, request: &PlanRequest) -> String {
    let picture = render(machine, &plan(machine, request).expect("a plan"));
    for line in picture.lines() {
        assert!(line.chars().count() <= COLUMNS, "too wide: {line}");
        assert_eq!(line, line.trim_end(), "blanks at the end");
    }
    picture
}

fn request(interfaces: &[&str]) -> PlanRequest {
    let interfaces = interfaces.iter().map(|name| name.to_string()).collect();
    PlanRequest {
        interfaces,
        ..PlanRequest::default()
    }
}

#[test]
fn two_packages_two_cards_and_interrupts() {
    let tree = FakeTree::two_packages(64);
    tree.file("sys/class/net/lo/mtu", "65536\n");
    let mut machine = tree.read();
    machine.interfaces[0].irq_cpus = list("0-3");
    let request = PlanRequest {
        min_shards: 200,
        ..request(&["eth1", "eth0"])
    };
    let expected = "\
machine  2 packages, 2 NUMA nodes, 128 cores, 256 CPUs (read from /sys)
plan     200 shards on 124 CPUs
         eth1, node 1: shards 0-102
         eth0, node 0: shards 103-199

package 0
└─ node 0, 1 GiB memory, cards: eth0
   └─ L3 32 MiB
      ├─ cores 0-3       CPUs 0-3       -   (eth0 interrupts)
      │                  CPUs 128-131   -
      ├─ cores 4-40      CPUs 4-40      shards 103-139,163-199 for eth0
      │                  CPUs 132-168   -
      └─ cores 41-63     CPUs 41-63     shards 140-162 for eth0
                         CPUs 169-191   -

package 1
└─ node 1, 1 GiB memory, cards: eth1
   └─ L3 32 MiB
      ├─ cores 64-102    CPUs 64-102    shards 0-38,64-102 for eth1
      │                  CPUs 192-230   -
      └─ cores 103-127   CPUs 103-127   shards 39-63 for eth1
                         CPUs 231-255   -

without a node: lo (virtual)

notes
  - left to the interrupts of eth0: CPUs 0-3
  - 200 shards instead of 124, for the number of connections
  - 200 shards on 124 CPUs: up to 2 on one
  - one shard per core: the SMT siblings stay idle (CPUs 132-255)
";
    assert_eq!(picture(&machine, &request), expected);
}

#[test]
fn one_cpu() {
    let tree = FakeTree::new();
    tree.online("0");
    let expected = "\
machine  1 package, 1 NUMA node, 1 core, 1 CPU (read from /sys)
plan     1 shard on 1 CPU

package 0
└─ node 0
   └─ core 0   CPU 0   shard 0

notes
  - one NUMA node: all memory is local
";
    assert_eq!(picture(&tree.read(), &PlanRequest::default()), expected);
}

#[test]
fn what_is_not_allowed_is_drawn_too() {
    let tree = FakeTree::two_packages(4);
    let machine = tree.read_with_affinity("1-2,5,9-14");
    let expected = "\
machine  2 packages, 2 NUMA nodes, 8 cores, 16 CPUs (read from /sys)
plan     6 shards on 6 CPUs

package 0
└─ node 0, 1 GiB memory, cards: eth0
   └─ L3 32 MiB
      ├─ core 0      CPU 0       not allowed
      │              CPU 8       not allowed
      ├─ cores 1-2   CPUs 1-2    shards 0-1
      │              CPUs 9-10   -
      └─ core 3      CPU 3       not allowed
                     CPU 11      shard 2

package 1
└─ node 1, 1 GiB memory, cards: eth1
   └─ L3 32 MiB
      ├─ core 4      CPU 4       not allowed
      │              CPU 12      shard 3
      ├─ core 5      CPU 5       shard 4
      │              CPU 13      -
      ├─ core 6      CPU 6       not allowed
      │              CPU 14      shard 5
      └─ core 7      CPU 7       not allowed
                     CPU 15      not allowed

notes
  - the CPU affinity of this process limits it to CPUs 1-2,5,9-14
  - one shard per core: the SMT siblings stay idle (CPUs 9-10,13)
";
    assert_eq!(picture(&machine, &PlanRequest::default()), expected);
}

#[test]
fn memory_without_cpus_and_a_crowd_of_interfaces() {
    let tree = FakeTree::new();
    tree.online("0-1")
        .node(0, "0-1", 3 << 19, "10 20")
        .node(1, "", 4 << 30, "20 10");
    for veth in 0..200 {
        tree.file(format!("sys/class/net/veth{veth:03}/mtu"), "1500\n");
    }
    let picture = picture(&tree.read(), &PlanRequest::default());
    for line in [
        "└─ node 0, 1.5 GiB memory",
        "   └─ cores 0-1   CPUs 0-1   shards 0-1",
        "node 1, 4 TiB memory, no CPU of its own",
        "    (virtual) and 196 more",
    ] {
        assert!(
            picture.lines().any(|drawn| drawn == line),
            "{line}\n{picture}"
        );
    }
}

#[cfg(feature = "hwloc")]
#[test]
fn many_caches_and_scattered_numbers_fit_the_screen() {
    let description = "pack:2 [numa(memory=64GB)] l3:8(size=33554432) core:8 pu:2";
    let machine = Topology::from_hwloc_synthetic(description).expect("a machine");
    let picture = picture(&machine, &PlanRequest::default());
    assert!(
        picture.contains("cores 0-7       CPUs 0-14 step 2      shards 0-7"),
        "{picture}"
    );
    assert!(picture.lines().count() < 64, "{picture}");
}

#[test]
fn this_host_can_be_drawn() {
    match Topology::read() {
        Ok(machine) => println!(
            "{}",
            render(&machine, &plan(&machine, &request(&[])).expect("a plan"))
        ),
        Err(error) => println!("skipped: {error}"),
    }
}
