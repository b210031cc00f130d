//! Draws a machine and the plan for it as a tree of text: packages, nodes, third-level caches,
//! cores, hardware threads, with shards and cards beside them.
//!
//! Neighbouring cores that look alike share a line, so that 256 CPUs fit one screen. It must
//! only show what [`Topology`] and [`Plan`] hold, never decide or look anything up.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Cache, Cpu, CpuList, Interface, Plan, Source, Topology};

/// Columns that notes, and what is said about a hardware thread, are wrapped to.
const WIDTH_COLUMNS: usize = 88;

/// Interfaces named in one line; a container host has hundreds.
const INTERFACES_SHOWN: usize = 4;

/// The cache level whose sharing is drawn: the last one on most machines.
const CACHE_LEVEL_DRAWN: u32 = 3;

/// Draws `plan` on `topology`. Ends with a newline; needs a font with box-drawing characters.
pub fn render(topology: &Topology, plan: &Plan) -> String {
    let mut out = String::new();
    head(&mut out, topology, plan);
    let packages: BTreeSet<u32> = topology.cpus.iter().map(|cpu| cpu.package).collect();
    let trees: Vec<Branch> = packages
        .into_iter()
        .map(|package| package_branch(topology, plan, package))
        .collect();
    let mut widths = Widths::default();
    trees.iter().for_each(|tree| tree.measure(0, &mut widths));
    for tree in &trees {
        out.push('\n');
        tree.draw("", None, &widths, &mut out);
    }
    tail(&mut out, topology, plan);
    out
}

fn head(out: &mut String, topology: &Topology, plan: &Plan) {
    let source = match topology.source {
        Source::Hwloc => "hwloc",
        Source::Sysfs => "/sys",
    };
    let _ = writeln!(
        out,
        "machine  {}, {}, {}, {} (read from {source})",
        count(topology.packages(), "package"),
        count(topology.nodes.len(), "NUMA node"),
        count(topology.cores(), "core"),
        count(topology.cpus.len(), "CPU"),
    );
    let cpus: BTreeSet<usize> = plan.shards.iter().map(|shard| shard.cpu).collect();
    let _ = writeln!(
        out,
        "plan     {} on {}",
        count(plan.shards.len(), "shard"),
        count(cpus.len(), "CPU")
    );
    for group in &plan.groups {
        if let Some(interface) = &group.interface {
            let node = group
                .node
                .map_or("any node".into(), |node| format!("node {node}"));
            let shards: CpuList = group.shards.clone().map(usize::from).collect();
            let _ = writeln!(
                out,
                "         {interface}, {node}: {}",
                shards.named("shard")
            );
        }
    }
}

fn tail(out: &mut String, topology: &Topology, plan: &Plan) {
    let bare: BTreeSet<u32> = topology
        .nodes
        .iter()
        .filter(|node| topology.cpus.iter().all(|cpu| cpu.node != Some(node.id)))
        .map(|node| node.id)
        .collect();
    if !bare.is_empty() {
        out.push('\n');
    }
    for node in bare {
        let _ = writeln!(
            out,
            "{}",
            node_label(topology, Some(node)) + ", no CPU of its own"
        );
    }
    let homeless = interfaces_on(topology, None);
    if !homeless.is_empty() {
        out.push('\n');
        wrap(out, "without a node:", &homeless);
    }
    if !topology.notes.is_empty() || !plan.notes.is_empty() {
        out.push_str("\nnotes\n");
    }
    topology
        .notes
        .iter()
        .chain(&plan.notes)
        .for_each(|note| wrap(out, "  -", note));
}

/// Writes `text` behind `bullet`, broken at blanks to the width, further lines indented.
fn wrap(out: &mut String, bullet: &str, text: &str) {
    let mut line = bullet.to_owned();
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH_COLUMNS {
            let _ = writeln!(out, "{line}");
            line = "   ".into();
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

fn package_branch(topology: &Topology, plan: &Plan, package: u32) -> Branch {
    let cpus: Vec<&Cpu> = topology
        .cpus
        .iter()
        .filter(|cpu| cpu.package == package)
        .collect();
    let nodes: BTreeSet<Option<u32>> = cpus.iter().map(|cpu| cpu.node).collect();
    let node_branch = |node: Option<u32>| {
        let here: Vec<&Cpu> = cpus
            .iter()
            .copied()
            .filter(|cpu| cpu.node == node)
            .collect();
        Branch {
            label: node_label(topology, node),
            below: cache_branches(topology, plan, &here),
            core: None,
        }
    };
    Branch {
        label: format!("package {package}"),
        below: nodes.into_iter().map(node_branch).collect(),
        core: None,
    }
}

fn node_label(topology: &Topology, node: Option<u32>) -> String {
    let Some(id) = node else {
        return "no NUMA node".into();
    };
    let mut label = format!("node {id}");
    if let Some(bytes) = topology
        .node(id)
        .map(|node| node.memory_bytes)
        .filter(|&bytes| bytes > 0)
    {
        let _ = write!(label, ", {} memory", bytes_text(bytes));
    }
    let cards = interfaces_on(topology, node);
    if !cards.is_empty() {
        let _ = write!(label, ", cards: {cards}");
    }
    label
}

/// The interfaces of one node, or those of none, as far as there is room.
fn interfaces_on(topology: &Topology, node: Option<u32>) -> String {
    let here = topology
        .interfaces
        .iter()
        .filter(|interface| interface.node == node);
    // What stands for a device first: it is what a user can name with profit.
    let (cards, others): (Vec<&Interface>, Vec<&Interface>) =
        here.partition(|interface| interface.device);
    let mut names: Vec<String> = cards
        .iter()
        .map(|interface| interface.name.clone())
        .collect();
    names.extend(
        others
            .iter()
            .map(|interface| format!("{} (virtual)", interface.name)),
    );
    let more = names.len().saturating_sub(INTERFACES_SHOWN);
    names.truncate(INTERFACES_SHOWN);
    let mut text = names.join(", ");
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// The caches of one node with their cores, or the cores alone where no cache is known.
fn cache_branches(topology: &Topology, plan: &Plan, cpus: &[&Cpu]) -> Vec<Branch> {
    let cache_of = |cpu: &Cpu| -> Option<&Cache> {
        topology
            .caches
            .iter()
            .find(|cache| cache.level == CACHE_LEVEL_DRAWN && cache.cpus.contains(cpu.id))
    };
    let mut domains: Vec<(Option<&Cache>, Vec<&Cpu>)> = Vec::new();
    for cpu in cpus {
        let cache = cache_of(cpu);
        match domains.iter_mut().find(|(known, _)| *known == cache) {
            Some((_, members)) => members.push(cpu),
            None => domains.push((cache, vec![cpu])),
        }
    }
    let mut branches = Vec::new();
    for (cache, members) in domains {
        let cores = core_branches(topology, plan, &members);
        let Some(cache) = cache else {
            branches.extend(cores);
            continue;
        };
        let size = if cache.size_bytes > 0 {
            bytes_text(cache.size_bytes)
        } else {
            String::new()
        };
        let mut label = format!("L{} {size}", cache.level).trim_end().to_owned();
        if cache
            .cpus
            .iter()
            .any(|cpu| !cpus.iter().any(|here| here.id == cpu))
        {
            label.push_str(", shared with other nodes");
        }
        branches.push(Branch {
            label,
            below: cores,
            core: None,
        });
    }
    branches
}

/// What there is to say about one hardware thread. Cores whose threads are equal in this are
/// drawn on one line.
#[derive(Clone, PartialEq, Eq)]
struct ThreadState {
    allowed: bool,
    shards: usize,
    group: Option<usize>,
    interrupts_of: Vec<String>,
}

/// A run of neighbouring cores that look alike.
struct CoreRun {
    cores: Vec<usize>,
    states: Vec<ThreadState>,
    /// For each hardware thread of a core: its CPUs and shards over the run.
    threads: Vec<(Vec<usize>, Vec<usize>)>,
}

fn core_branches(topology: &Topology, plan: &Plan, cpus: &[&Cpu]) -> Vec<Branch> {
    let cores: BTreeSet<usize> = cpus.iter().map(|cpu| cpu.core).collect();
    let mut runs: Vec<CoreRun> = Vec::new();
    for core in cores {
        let mut states = Vec::new();
        let mut threads = Vec::new();
        for cpu in cpus.iter().filter(|cpu| cpu.core == core) {
            let here: Vec<_> = plan
                .shards
                .iter()
                .filter(|shard| shard.cpu == cpu.id)
                .collect();
            let interrupts_of = topology
                .interfaces
                .iter()
                .filter(|interface| interface.irq_cpus.contains(cpu.id))
                .map(|interface| interface.name.clone())
                .collect();
            states.push(ThreadState {
                allowed: cpu.allowed,
                shards: here.len(),
                group: here.first().map(|shard| shard.group),
                interrupts_of,
            });
            threads.push((
                vec![cpu.id],
                here.iter().map(|s| usize::from(s.shard)).collect(),
            ));
        }
        match runs.last_mut() {
            Some(run) if run.states == states && run.cores.last() == Some(&(core - 1)) => {
                run.cores.push(core);
                for (known, new) in run.threads.iter_mut().zip(threads) {
                    known.0.extend(new.0);
                    known.1.extend(new.1);
                }
            }
            _ => runs.push(CoreRun {
                cores: vec![core],
                states,
                threads,
            }),
        }
    }
    runs.iter().map(|run| core_branch(plan, run)).collect()
}

fn core_branch(plan: &Plan, run: &CoreRun) -> Branch {
    let cores: CpuList = run.cores.iter().copied().collect();
    let lines = run
        .states
        .iter()
        .zip(&run.threads)
        .map(|(state, (cpus, shards))| {
            let cpus: CpuList = cpus.iter().copied().collect();
            let shards: CpuList = shards.iter().copied().collect();
            let mut what = match (state.allowed, state.shards) {
                (false, _) => "not allowed".to_owned(),
                (true, 0) => "-".to_owned(),
                (true, _) => shards.named("shard"),
            };
            let group = state.group.filter(|_| plan.groups.len() > 1);
            if let Some(name) = group.and_then(|group| plan.groups.get(group)?.interface.as_ref()) {
                let _ = write!(what, " for {name}");
            }
            let mut remarks = vec![what];
            if !state.interrupts_of.is_empty() {
                let mut names = state.interrupts_of.clone();
                let more = names.len().saturating_sub(INTERFACES_SHOWN);
                names.truncate(INTERFACES_SHOWN);
                let more = if more > 0 { " and more" } else { "" };
                remarks.push(format!("({} interrupts{more})", names.join(", ")));
            }
            (cpus.named("CPU"), remarks)
        });
    Branch {
        label: cores.named("core"),
        below: Vec::new(),
        core: Some(lines.collect()),
    }
}

/// One line of the tree and what hangs on it.
struct Branch {
    label: String,
    below: Vec<Branch>,
    /// For cores: a CPU column and remarks for each hardware thread.
    core: Option<Vec<(String, Vec<String>)>>,
}

#[derive(Default)]
struct Widths {
    /// From the left edge to the end of the longest core label.
    core: usize,
    cpu: usize,
}

/// Columns that one level of the tree takes.
const INDENT_COLUMNS: usize = 3;

impl Branch {
    fn measure(&self, depth: usize, widths: &mut Widths) {
        if let Some(threads) = &self.core {
            widths.core = widths
                .core
                .max(depth * INDENT_COLUMNS + self.label.chars().count());
            let cpus = threads.iter().map(|(cpus, _)| cpus.chars().count()).max();
            widths.cpu = widths.cpu.max(cpus.unwrap_or(0));
        }
        self.below
            .iter()
            .for_each(|branch| branch.measure(depth + 1, widths));
    }

    /// `last` says whether this is the last of its siblings; none for a root.
    fn draw(&self, indent: &str, last: Option<bool>, widths: &Widths, out: &mut String) {
        let (corner, below) = match last {
            None => ("", ""),
            Some(false) => ("├─ ", "│  "),
            Some(true) => ("└─ ", "   "),
        };
        let head = format!("{indent}{corner}{}", self.label);
        let indent = format!("{indent}{below}");
        match &self.core {
            None => {
                let _ = writeln!(out, "{head}");
            }
            Some(threads) => {
                for (thread, (cpus, remarks)) in threads.iter().enumerate() {
                    let left = if thread == 0 { &head } else { &indent };
                    let (core, cpu) = (widths.core, widths.cpu);
                    let start = core + cpu + 6;
                    let mut rows = fold(remarks, WIDTH_COLUMNS.saturating_sub(start)).into_iter();
                    let first = rows.next().unwrap_or_default();
                    let _ = writeln!(out, "{left:core$}   {cpus:cpu$}   {first}");
                    for row in rows {
                        let _ = writeln!(out, "{indent:start$}{row}");
                    }
                }
            }
        }
        for (at, branch) in self.below.iter().enumerate() {
            branch.draw(&indent, Some(at + 1 == self.below.len()), widths, out);
        }
    }
}

/// Puts remarks side by side in rows of at most so many columns, where each alone is narrower.
fn fold(remarks: &[String], columns: usize) -> Vec<String> {
    const GAP: &str = "   ";
    let mut rows: Vec<String> = Vec::new();
    for remark in remarks {
        match rows.last_mut() {
            Some(row) if (row.chars().count() + GAP.len() + remark.chars().count()) <= columns => {
                row.push_str(GAP);
                row.push_str(remark);
            }
            _ => rows.push(remark.clone()),
        }
    }
    rows
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A size in the largest unit that leaves at least 1, with one decimal if that says more.
fn bytes_text(bytes: u64) -> String {
    let mut unit = "B";
    let mut scale = 1u64;
    for (larger, size) in [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ] {
        if bytes >= size {
            (unit, scale) = (larger, size);
        }
    }
    let tenths = (bytes as f64 / scale as f64 * 10.0).round() / 10.0;
    if tenths.fract() == 0.0 {
        format!("{tenths:.0} {unit}")
    } else {
        format!("{tenths:.1} {unit}")
    }
}
