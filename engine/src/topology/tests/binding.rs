//! Pinning, memory policy and inherited affinity, against this host's kernel.
//!
//! Each test works in threads or children of its own, so that no other test runs pinned.

use std::process::Command;
use std::thread;

use super::fake::{FakeTree, list};
use crate::topology::{
    BindError, CPU_NUMBER_MAX, CpuList, LimitKind, MemoryBinding, PlanRequest, ShardPlacement,
    Topology, bind_memory_current_thread, kernel, pin_current_thread, plan,
};

/// Set in the child of [`affinity_is_inherited_by_a_child`].
const CHILD_EXPECTS: &str = "RINGMILL_TEST_AFFINITY";

fn placement(cpu: usize) -> ShardPlacement {
    ShardPlacement {
        shard: 3,
        cpu,
        core: 0,
        package: 0,
        node: None,
        group: 0,
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().expect("the thread ends well"))
}

#[test]
fn a_thread_is_pinned_where_the_plan_says() {
    for cpu in kernel::affinity().expect("affinity").iter() {
        in_thread(|| {
            pin_current_thread(&placement(cpu)).expect("an allowed CPU");
            assert_eq!(
                kernel::affinity().expect("affinity"),
                [cpu].into_iter().collect()
            );
        });
    }
}

#[test]
fn a_cpu_that_is_not_there_is_an_error_in_words() {
    for cpu in [
        1023,
        1024,
        8191,
        CPU_NUMBER_MAX,
        CPU_NUMBER_MAX + 1,
        usize::MAX,
    ] {
        let error = in_thread(|| pin_current_thread(&placement(cpu)).expect_err("no such CPU"));
        assert!(matches!(error, BindError::Pin { .. }), "{error:?}");
        assert!(
            error
                .to_string()
                .starts_with(&format!("cannot pin shard 3 to CPU {cpu}: "))
        );
    }
}

#[test]
fn the_affinity_of_the_calling_thread_is_honoured() {
    let all = kernel::affinity().expect("affinity");
    let Some(last) = all.iter().last().filter(|_| all.len() > 1) else {
        return println!("skipped: this process may use one CPU only");
    };
    in_thread(|| {
        let only: CpuList = [last].into_iter().collect();
        kernel::set_affinity(&only).expect("one of our own CPUs");
        for machine in [Topology::read(), Topology::read_sysfs()] {
            let machine = machine.expect("this host");
            assert_eq!(machine.allowed(), only);
            assert!(
                machine
                    .limits
                    .iter()
                    .any(|limit| limit.kind == LimitKind::Affinity)
            );
            let plan = plan(&machine, &PlanRequest::default()).expect("a plan");
            assert_eq!(
                plan.shards
                    .iter()
                    .map(|shard| shard.cpu)
                    .collect::<Vec<_>>(),
                [last]
            );
            let words = format!("affinity of this process limits it to CPU {last}");
            assert!(
                plan.notes.iter().any(|note| note.contains(&words)),
                "{:?}",
                plan.notes
            );
        }
        assert_eq!(
            kernel::affinity().expect("affinity"),
            only,
            "reading left the thread alone"
        );
    });
}

#[test]
fn affinity_is_inherited_by_a_child() {
    if let Ok(expected) = std::env::var(CHILD_EXPECTS) {
        let machine = Topology::read().expect("this host");
        assert_eq!(machine.allowed(), list(&expected));
        return;
    }
    let Some(cpu) = kernel::affinity().expect("affinity").iter().last() else {
        return;
    };
    let test = "topology::tests::binding::affinity_is_inherited_by_a_child";
    let child = Command::new("taskset")
        .args(["-c", &cpu.to_string()])
        .arg(std::env::current_exe().expect("this test's path"))
        .args(["--exact", test])
        .env(CHILD_EXPECTS, cpu.to_string())
        .output();
    match child {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && said.contains("1 passed"),
                "{said}"
            );
        }
        Err(error) => println!("skipped: taskset does not start: {error}"),
    }
}

#[test]
fn memory_is_left_alone_where_there_is_nothing_to_choose() {
    let tree = FakeTree::new();
    let one = tree.online("0").read();
    let bound = bind_memory_current_thread(&one, 0).expect("one node");
    assert_eq!(bound, MemoryBinding::OneNode);
    let error = bind_memory_current_thread(&one, 5).expect_err("no node 5");
    assert!(error.to_string().contains("no such node"), "{error}");

    let tree = FakeTree::new();
    tree.online("0-1")
        .node(0, "0", 0, "10 20")
        .node(1, "1", 64, "20 10");
    let bound = bind_memory_current_thread(&tree.read(), 0).expect("no memory there");
    assert_eq!(bound, MemoryBinding::NoLocalMemory);
}

#[test]
fn the_kernel_keeps_the_memory_policy() {
    // Two nodes on paper, the first of them real: the call goes to the kernel.
    let tree = FakeTree::new();
    tree.online("0-1")
        .node(0, "0", 64, "10 20")
        .node(1, "1", 64, "20 10");
    let machine = tree.read();
    in_thread(|| match bind_memory_current_thread(&machine, 0) {
        Ok(bound) => {
            assert_eq!(bound, MemoryBinding::Preferred(0));
            let policy = kernel::memory_policy().expect("the policy");
            assert_eq!(policy, (libc::MPOL_PREFERRED, vec![0]));
        }
        Err(error) => println!("skipped: {error}"),
    });
}

#[test]
fn a_node_that_the_kernel_lacks_is_an_error_in_words() {
    let tree = FakeTree::new();
    for node in [1023, 4096] {
        tree.online("0-1")
            .node(0, "0", 64, "10 20")
            .node(node, "1", 64, "20 10");
        let error = in_thread(|| bind_memory_current_thread(&tree.read(), node));
        let error = error.expect_err("no machine has this node").to_string();
        assert!(
            error.starts_with(&format!("cannot prefer memory of node {node}: ")),
            "{error}"
        );
    }
}
