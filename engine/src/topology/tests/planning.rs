//! Plans for many machines: which CPU each shard gets, and what the user is told.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::fake::{FakeTree, list};
use crate::topology::{
    CpuList, Plan, PlanError, PlanRequest, SHARDS_MAX, ShardCount, Topology, plan,
};

/// Sixteen CPUs on two nodes: cores 0-3 are CPUs 0-3 and 8-11 on node 0 with `eth0`, cores 4-7
/// are CPUs 4-7 and 12-15 on node 1 with `eth1`; `lo` and `tun0` hang on no node.
fn two_nodes() -> FakeTree {
    let tree = FakeTree::two_packages(4);
    tree.file("sys/class/net/lo/mtu", "65536\n")
        .file("sys/class/net/tun0/mtu", "1500\n");
    tree
}

/// That machine, read once: writing a tree costs more than any test of planning.
static MACHINE: LazyLock<Topology> = LazyLock::new(|| two_nodes().read());

/// The same machine with the packet interrupts of `eth0` on these CPUs.
fn with_interrupts_on(cpus: &str) -> Topology {
    let mut machine = MACHINE.clone();
    let eth0 = machine
        .interfaces
        .iter_mut()
        .find(|i| i.name == "eth0")
        .expect("eth0");
    eth0.irq_cpus = list(cpus);
    machine
}

fn request(interfaces: &[&str]) -> PlanRequest {
    let interfaces = interfaces.iter().map(|name| name.to_string()).collect();
    PlanRequest {
        interfaces,
        ..PlanRequest::default()
    }
}

fn of(shards: usize) -> ShardCount {
    ShardCount::Count(shards)
}

/// The CPUs of each group's shards, in shard order.
fn cpus(plan: &Plan) -> Vec<Vec<usize>> {
    let group = |at: usize| {
        plan.shards
            .iter()
            .filter(|shard| shard.group == at)
            .map(|shard| shard.cpu)
            .collect()
    };
    (0..plan.groups.len()).map(group).collect()
}

fn says(plan: &Plan, words: &str) -> bool {
    plan.notes.iter().any(|note| note.contains(words))
}

/// What must hold for every plan.
fn check(machine: &Topology, request: &PlanRequest, plan: &Plan) {
    let allowed = machine.allowed();
    let wanted = request.cpus.as_ref().unwrap_or(&allowed);
    for (number, shard) in plan.shards.iter().enumerate() {
        assert_eq!(usize::from(shard.shard), number);
        assert!(
            allowed.contains(shard.cpu) && wanted.contains(shard.cpu),
            "{shard:?}"
        );
        let cpu = machine.cpu(shard.cpu).expect("a CPU of the machine");
        assert_eq!(
            (cpu.core, cpu.package, cpu.node),
            (shard.core, shard.package, shard.node)
        );
        assert!(plan.groups[shard.group].shards.contains(&shard.shard));
    }
    assert_eq!(plan.groups.len(), request.interfaces.len().max(1));
    let ranges: usize = plan.groups.iter().map(|group| group.shards.len()).sum();
    assert_eq!(ranges, plan.shards.len());
    assert!(plan.groups.iter().all(|group| !group.shards.is_empty()));
    assert!(plan.shards.len() >= request.min_shards);
    if let ShardCount::Count(count) = request.shards {
        assert_eq!(plan.shards.len(), count.max(request.min_shards));
    }
}

#[test]
fn shards_go_where_the_request_says() {
    let machine = MACHINE.clone();
    let listed = |cpus: &str| Some(list(cpus));
    let any = PlanRequest::default;
    for (what, request, expected) in [
        (
            "one per core of all nodes",
            any(),
            vec![vec![0, 1, 2, 3, 4, 5, 6, 7]],
        ),
        (
            "the node of the card",
            request(&["eth1"]),
            vec![vec![4, 5, 6, 7]],
        ),
        (
            "a virtual interface",
            request(&["lo"]),
            vec![vec![0, 1, 2, 3, 4, 5, 6, 7]],
        ),
        (
            "a group per card",
            request(&["eth1", "eth0"]),
            vec![vec![4, 5, 6, 7], vec![0, 1, 2, 3]],
        ),
        (
            "one card twice",
            request(&["eth0", "eth0"]),
            vec![vec![0, 1], vec![2, 3]],
        ),
        (
            "who may go anywhere leaves node 0 to the card",
            request(&["tun0", "eth0"]),
            vec![vec![4, 5, 6, 7], vec![0, 1, 2, 3]],
        ),
        (
            "two groups on one node share no core",
            PlanRequest {
                use_smt: true,
                ..request(&["eth0", "eth0"])
            },
            vec![vec![0, 1, 8, 9], vec![2, 3, 10, 11]],
        ),
        (
            "more groups than cores of the node",
            request(&["eth0", "eth0", "eth0", "eth0", "eth0"]),
            vec![vec![0], vec![1], vec![2], vec![3], vec![0, 1, 2, 3]],
        ),
        (
            "every thread",
            PlanRequest {
                use_smt: true,
                ..request(&["eth0"])
            },
            vec![vec![0, 1, 2, 3, 8, 9, 10, 11]],
        ),
        (
            "a count",
            PlanRequest {
                shards: of(3),
                ..any()
            },
            vec![vec![0, 1, 2]],
        ),
        (
            "a count over cores takes siblings",
            PlanRequest {
                shards: of(6),
                ..request(&["eth0"])
            },
            vec![vec![0, 1, 2, 3, 8, 9]],
        ),
        (
            "a count over threads goes round",
            PlanRequest {
                shards: of(10),
                ..request(&["eth0"])
            },
            vec![vec![0, 1, 2, 3, 8, 9, 10, 11, 0, 1]],
        ),
        (
            "a count over two groups",
            PlanRequest {
                shards: of(5),
                ..request(&["eth0", "eth1"])
            },
            vec![vec![0, 1, 2], vec![4, 5]],
        ),
        (
            "a minimum goes round the cores",
            PlanRequest {
                min_shards: 6,
                ..request(&["eth0"])
            },
            vec![vec![0, 1, 2, 3, 0, 1]],
        ),
        (
            "a minimum raises a count on its CPUs",
            PlanRequest {
                min_shards: 5,
                shards: of(2),
                ..any()
            },
            vec![vec![0, 1, 0, 1, 0]],
        ),
        (
            "a minimum is shared out by CPUs",
            PlanRequest {
                min_shards: 12,
                ..request(&["eth0", "eth1"])
            },
            vec![vec![0, 1, 2, 3, 0, 1], vec![4, 5, 6, 7, 4, 5]],
        ),
        (
            "listed CPUs are all used, siblings too",
            PlanRequest {
                cpus: listed("9,1,3"),
                ..any()
            },
            vec![vec![1, 3, 9]],
        ),
        (
            "listed CPUs off the card's node",
            PlanRequest {
                cpus: listed("2-5"),
                ..request(&["eth0"])
            },
            vec![vec![2, 3, 4, 5]],
        ),
        (
            "listed CPUs on the other node only",
            PlanRequest {
                cpus: listed("12-13"),
                ..request(&["eth0"])
            },
            vec![vec![12, 13]],
        ),
        (
            "a count of listed CPUs prefers whole cores",
            PlanRequest {
                cpus: listed("0-1,8-9"),
                shards: of(2),
                ..any()
            },
            vec![vec![0, 1]],
        ),
    ] {
        let plan = plan(&machine, &request).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(cpus(&plan), expected, "{what}");
        check(&machine, &request, &plan);
    }
}

#[test]
fn shards_keep_clear_of_interrupts_while_there_is_room() {
    let eth0 = || request(&["eth0"]);
    for (what, irqs, request, expected, words) in [
        (
            "room",
            "1",
            eth0(),
            vec![0, 2, 3],
            "left to the interrupts of eth0: CPU 1",
        ),
        (
            "a sibling serves",
            "9",
            eth0(),
            vec![0, 2, 3],
            "left to the interrupts",
        ),
        (
            "half",
            "0-1",
            eth0(),
            vec![2, 3],
            "left to the interrupts of eth0: CPUs 0-1",
        ),
        (
            "no room",
            "0-2",
            eth0(),
            vec![0, 1, 2, 3],
            "no room to keep shards off the interrupts of eth0 (CPUs 0-2)",
        ),
        ("all", "0-3", eth0(), vec![0, 1, 2, 3], "no room"),
        (
            "every thread: the sibling stays in use",
            "1",
            PlanRequest {
                use_smt: true,
                ..eth0()
            },
            vec![0, 2, 3, 8, 9, 10, 11],
            "left to the interrupts",
        ),
        (
            "a count with room",
            "0",
            PlanRequest {
                shards: of(2),
                ..eth0()
            },
            vec![1, 2],
            "left",
        ),
        (
            "a count without takes them last",
            "0",
            PlanRequest {
                shards: of(4),
                ..eth0()
            },
            vec![1, 2, 3, 0],
            "no room",
        ),
        (
            "siblings only after them",
            "0",
            PlanRequest {
                shards: of(5),
                ..eth0()
            },
            vec![1, 2, 3, 0, 8],
            "no room",
        ),
        (
            "listed CPUs are used whatever they serve",
            "0",
            PlanRequest {
                cpus: Some(list("0-1")),
                ..eth0()
            },
            vec![0, 1],
            "CPUs 0-1 as asked",
        ),
    ] {
        let machine = with_interrupts_on(irqs);
        let plan = plan(&machine, &request).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(cpus(&plan), [expected], "{what}");
        assert!(says(&plan, words), "{what}: {:?}", plan.notes);
        check(&machine, &request, &plan);
    }
    let unnamed = plan(&with_interrupts_on("0-1"), &PlanRequest::default()).expect("a plan");
    assert_eq!(
        unnamed.shards.len(),
        8,
        "an interface that nobody named keeps no CPU"
    );
}

#[test]
fn one_core_and_two_cores() {
    let tree = FakeTree::new();
    tree.online("0").pci_card("eth0", 0, &[(9, "0")], "");
    let one = tree.read();
    for (request, count) in [
        (PlanRequest::default(), 1),
        (request(&["eth0"]), 1),
        (request(&["eth0", "eth0"]), 2),
        (
            PlanRequest {
                shards: of(4),
                ..PlanRequest::default()
            },
            4,
        ),
        (
            PlanRequest {
                min_shards: 51,
                ..PlanRequest::default()
            },
            51,
        ),
    ] {
        let plan = plan(&one, &request).expect("a plan");
        assert_eq!(plan.shards.len(), count, "{request:?}");
        assert!(plan.shards.iter().all(|shard| shard.cpu == 0));
        assert_eq!(
            says(&plan, &format!("{count} shards on 1 CPU: up to {count}")),
            count > 1
        );
        check(&one, &request, &plan);
    }
    let tree = FakeTree::new();
    tree.online("0-1");
    let request = PlanRequest {
        min_shards: 51,
        ..PlanRequest::default()
    };
    let plan = plan(&tree.read(), &request).expect("a plan");
    let on_first = plan.shards.iter().filter(|shard| shard.cpu == 0).count();
    assert_eq!((plan.shards.len(), on_first), (51, 26));
    assert!(says(
        &plan,
        "51 shards instead of 2, for the number of connections"
    ));
}

#[test]
fn limits_are_honoured_and_named() {
    let tree = two_nodes();
    tree.file(
        "proc/self/mountinfo",
        "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    )
    .file("proc/self/cgroup", "0::/box\n")
    .file("sys/fs/cgroup/box/cpuset.cpus.effective", "5-9\n");
    let machine = tree.read_with_affinity("4-8");
    let plan_of = |request| plan(&machine, &request).expect("a plan");

    let plan = plan_of(PlanRequest::default());
    // CPU 8 is the second thread of a core whose first is not allowed.
    assert_eq!(cpus(&plan), [vec![8, 5, 6, 7]]);
    assert!(says(
        &plan,
        "the CPU affinity of this process limits it to CPUs 4-8"
    ));
    assert!(says(
        &plan,
        "the cpuset of cgroup /box limits this process to CPUs 5-9"
    ));

    assert_eq!(cpus(&plan_of(request(&["eth0"]))), [vec![8]]);

    let error = super::super::plan(
        &machine,
        &PlanRequest {
            cpus: Some(list("3-5")),
            ..PlanRequest::default()
        },
    )
    .expect_err("3 and 4 are not allowed");
    assert_eq!(
        error.to_string(),
        "this process may not use CPUs 3-4: its CPU affinity limits it to CPUs 4-8, the cpuset \
         of its cgroup /box limits it to CPUs 5-9. It may use CPUs 5-8; name some of these or \
         start it with a wider limit"
    );
}

#[test]
fn a_card_on_a_node_without_usable_cpus_gets_the_nearest() {
    let tree = FakeTree::new();
    tree.online("0-3")
        .node(0, "0", 1, "10 30 20 40")
        .node(1, "1", 1, "30 10 40 20");
    tree.node(2, "2", 1, "20 40 10 30")
        .node(3, "3", 1, "40 20 30 10")
        .pci_card("eth0", 0, &[], "");
    for (affinity, cpu, words) in [
        ("0-3", 0, "one shard"),
        (
            "1-3",
            2,
            "no usable CPU on node 0 of eth0: its shards use node 2, the nearest",
        ),
        ("1,3", 1, "node 1, the nearest"),
    ] {
        let machine = tree.read_with_affinity(affinity);
        let plan = plan(&machine, &request(&["eth0"])).expect("a plan");
        assert_eq!(cpus(&plan), [vec![cpu]], "affinity {affinity}");
        assert_eq!(says(&plan, words), affinity != "0-3", "{:?}", plan.notes);
        assert_eq!(plan.groups[0].node, Some(cpu as u32));
    }
}

#[test]
fn what_the_machine_does_not_say_is_noted() {
    let machine = MACHINE.clone();
    for (name, words) in [
        (
            "lo",
            "lo is virtual and has no NUMA node: its shards may use every node",
        ),
        (
            "eth0",
            "one shard per core: the SMT siblings stay idle (CPUs 8-11)",
        ),
    ] {
        let plan = plan(&machine, &request(&[name])).expect("a plan");
        assert!(says(&plan, words), "{:?}", plan.notes);
    }
}

#[test]
fn requests_that_cannot_be_met_are_errors_in_words() {
    let machine = MACHINE.clone();
    let cpus = |cpus: &str| PlanRequest {
        cpus: Some(list(cpus)),
        ..PlanRequest::default()
    };
    let shards = |count| PlanRequest {
        shards: of(count),
        ..PlanRequest::default()
    };
    for (request, words) in [
        (
            request(&["eth7"]),
            "no network interface \"eth7\"; this machine has eth0, eth1, lo, tun0",
        ),
        (cpus(""), "list of CPUs to use is empty"),
        (
            cpus("3,16-17"),
            "CPUs 16-17 do not exist or are offline; this machine has CPUs 0-15",
        ),
        (shards(0), "at least one shard"),
        (
            shards(SHARDS_MAX + 1),
            "65536 shards are too many; at most 65535",
        ),
        (
            PlanRequest {
                min_shards: usize::MAX,
                ..shards(1)
            },
            "too many",
        ),
        (
            PlanRequest {
                shards: of(1),
                ..request(&["eth0", "eth1"])
            },
            "2 interfaces need at least 2 shards, one each; 1 asked for",
        ),
    ] {
        let error = plan(&machine, &request).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    let nothing = two_nodes().read_with_affinity("99");
    let error = plan(&nothing, &PlanRequest::default()).expect_err("no CPU");
    assert!(matches!(error, PlanError::NoCpu { .. }));
    assert!(
        error
            .to_string()
            .contains("its CPU affinity limits it to CPUs none"),
        "{error}"
    );
}

#[test]
fn the_most_shards_there_can_be() {
    let machine = MACHINE.clone();
    let request = PlanRequest {
        min_shards: SHARDS_MAX,
        ..PlanRequest::default()
    };
    let plan = plan(&machine, &request).expect("a plan");
    check(&machine, &request, &plan);
    assert_eq!(plan.groups[0].shards, 0..u16::MAX);
}

/// Found by [`every_plan_keeps_its_promises`]: several shards on each CPU, and interrupts there too,
/// made a line of the picture too long.
#[test]
fn many_shards_on_few_cpus_keep_the_picture_narrow() {
    let mut machine = with_interrupts_on("10,11");
    let allowed = list("4,6,8,10,11");
    let cpus = machine.cpus.iter_mut();
    cpus.for_each(|cpu| cpu.allowed = allowed.contains(cpu.id));
    let request = PlanRequest {
        min_shards: 25,
        ..request(&["eth0", "eth1"])
    };
    let plan = plan(&machine, &request).expect("a plan");
    check(&machine, &request, &plan);
    let picture = crate::topology::render(&machine, &plan);
    let expected = "
      └─ cores 2-3   CPUs 2-3     not allowed
                     CPUs 10-11   shards 1-2,4-5,7-8,10-11,… (10 in all) for eth0
                                  (eth0 interrupts)
";
    assert!(picture.contains(expected), "{picture}");
}

#[test]
fn a_plan_is_json() {
    let machine = MACHINE.clone();
    let json = serde_json::to_value(plan(&machine, &request(&["eth1"])).expect("a plan"));
    let json = json.expect("JSON");
    assert_eq!(json["groups"][0]["interface"], "eth1");
    assert_eq!(json["groups"][0]["node"], 1);
    assert_eq!(json["groups"][0]["shards"]["end"], 4);
    assert_eq!(json["shards"][3]["cpu"], 7);
}

proptest! {
    /// Any request on any small machine: an error, or a plan that keeps every promise.
    #[test]
    fn every_plan_keeps_its_promises(
        allowed in proptest::collection::vec(0usize..16, 0..16),
        irqs in proptest::collection::vec(0usize..18, 0..6),
        names in proptest::collection::vec(proptest::sample::select(vec!["eth0", "eth1", "lo"]), 0..6),
        listed in proptest::option::of(proptest::collection::vec(0usize..17, 0..6)),
        shards in proptest::option::of(0usize..40),
        min_shards in 0usize..60,
        use_smt: bool,
    ) {
        let mut machine = MACHINE.clone();
        let allowed: CpuList = allowed.into();
        machine.cpus.iter_mut().for_each(|cpu| cpu.allowed = allowed.contains(cpu.id));
        machine.interfaces[0].irq_cpus = irqs.into();
        let request = PlanRequest {
            shards: shards.map_or(ShardCount::Auto, of),
            cpus: listed.map(CpuList::from),
            min_shards,
            use_smt,
            ..request(&names)
        };
        if let Ok(plan) = plan(&machine, &request) {
            check(&machine, &request, &plan);
            // Up to the number of cores, Auto shares no CPU between shards.
            let cores: std::collections::BTreeSet<_> = plan.shards.iter().map(|s| s.cpu).collect();
            if shards.is_none() && min_shards == 0 && names.len() < 2 {
                prop_assert_eq!(cores.len(), plan.shards.len());
            }
            let picture = crate::topology::render(&machine, &plan);
            prop_assert!(picture.lines().all(|line| line.chars().count() <= 88), "{}", picture);
        }
    }
}

#[cfg(feature = "hwloc")]
mod on_synthetic_machines {
    use super::*;

    #[test]
    fn each_gets_one_shard_a_core() {
        for (description, expected) in [
            ("core:1 pu:1", 1),
            ("core:1 pu:2", 1),
            ("pack:2 [numa] l3:1 core:64 pu:2", 128),
            ("pack:2 numa:4 core:24 pu:1", 192),
        ] {
            let machine = Topology::from_hwloc_synthetic(description).expect(description);
            let request = PlanRequest::default();
            let plan = plan(&machine, &request).expect(description);
            assert_eq!(plan.shards.len(), expected, "{description}");
            let cores: Vec<_> = plan.shards.iter().map(|shard| shard.core).collect();
            assert_eq!(cores, (0..expected).collect::<Vec<_>>(), "{description}");
            assert!(
                plan.shards
                    .iter()
                    .all(|s| machine.cpu(s.cpu).is_some_and(|c| c.smt == 0))
            );
            check(&machine, &request, &plan);
        }
    }
}
