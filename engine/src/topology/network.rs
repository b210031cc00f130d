//! Network interfaces: the NUMA node of each and the CPUs that serve its interrupts.
//!
//! Read from `/sys/class/net`, `/proc/interrupts` and `/proc/irq`, which is where hwloc looks
//! too. Everything may be absent (virtual interfaces, containers, hidden /proc): then the answer
//! is "no node" or "no interrupt CPUs", never an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::CpuList;

/// Words in the names of interrupts that carry no packets: virtio's configuration change,
/// mlx5's and ENA's management queues. A CPU that serves only these is free for a shard.
const CONTROL_INTERRUPT_NAMES: [&str; 3] = ["config", "async", "mgmnt"];

/// How deep VLANs, bonds and bridges are followed down to cards. The kernel stops at 8 itself
/// (`MAX_NEST_DEV`).
const STACKING_MAX: usize = 8;

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name, as in `ip link`.
    pub name: String,
    /// The NUMA node that its card hangs on; none for virtual interfaces, for machines that do
    /// not say, and for a bond over cards of different nodes.
    pub node: Option<u32>,
    /// CPUs that serve the interrupts of its packet queues.
    pub irq_cpus: CpuList,
    /// True when a device stands behind it, here or below a VLAN, bond or bridge.
    pub device: bool,
}

/// All interfaces below `root`, by name. `online` tells an interrupt that may go anywhere.
pub(super) fn read(root: &Path, online: &CpuList) -> Vec<Interface> {
    let folder = root.join("sys/class/net");
    let interrupts = interrupts(root);
    let names: BTreeSet<String> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names
        .into_iter()
        .map(|name| {
            let cards = cards(&folder, &name, STACKING_MAX);
            let nodes: BTreeSet<Option<u32>> = cards.iter().map(|card| card.node(root)).collect();
            let irq_cpus = cards
                .iter()
                .flat_map(|card| card.interrupts(root, interrupts.as_ref()))
                .flat_map(|irq| serving(root, irq, online).as_slice().to_vec())
                .collect();
            Interface {
                node: if nodes.len() == 1 {
                    nodes.into_iter().next().flatten()
                } else {
                    None
                },
                irq_cpus,
                device: !cards.is_empty(),
                name,
            }
        })
        .collect()
}

/// The numbers of the interrupts that the packet queues of an interface raise, lowest first, below
/// `root` (`/` for this machine). None for virtual interfaces and where `/proc` does not say.
#[must_use]
pub fn packet_interrupts(root: &Path, interface: &str) -> Vec<u32> {
    let known = interrupts(root);
    let numbers: BTreeSet<u32> = cards(&root.join("sys/class/net"), interface, STACKING_MAX)
        .iter()
        .flat_map(|card| card.interrupts(root, known.as_ref()))
        .collect();
    numbers.into_iter().collect()
}

/// A device behind an interface.
struct Card {
    interface: String,
    /// Its directory below `/sys/devices`, links resolved.
    folder: PathBuf,
}

/// The devices behind an interface: its own, or those of the interfaces it is stacked upon.
fn cards(net: &Path, name: &str, depth: usize) -> Vec<Card> {
    if let Ok(folder) = net.join(name).join("device").canonicalize() {
        return vec![Card {
            interface: name.into(),
            folder,
        }];
    }
    if depth == 0 {
        return Vec::new();
    }
    let entries = fs::read_dir(net.join(name)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("lower_")
                .map(str::to_owned)
        })
        .flat_map(|lower| cards(net, &lower, depth - 1))
        .collect()
}

impl Card {
    /// The device and what it hangs on, nearest first: a virtio card has node and interrupts in
    /// the PCI device above it.
    fn lineage(&self, root: &Path) -> impl Iterator<Item = &Path> {
        let top = root
            .join("sys")
            .canonicalize()
            .unwrap_or_else(|_| root.join("sys"));
        self.folder
            .ancestors()
            .take_while(move |folder| **folder != *top && folder.parent().is_some())
    }

    fn node(&self, root: &Path) -> Option<u32> {
        let file = |folder: &Path| fs::read_to_string(folder.join("numa_node")).ok();
        // -1 (the firmware does not say) fails to parse as unsigned: no node.
        self.lineage(root).find_map(file)?.trim().parse().ok()
    }

    /// Numbers of the interrupts that its packet queues raise.
    fn interrupts(&self, root: &Path, known: Option<&BTreeMap<u32, String>>) -> BTreeSet<u32> {
        let mut numbers: BTreeSet<u32> = self
            .lineage(root)
            .find_map(|folder| fs::read_dir(folder.join("msi_irqs")).ok())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        let Some(known) = known else { return numbers };
        if numbers.is_empty() {
            // No MSI (virtio-mmio, old cards): by the name that the driver gave.
            let device = self
                .folder
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            let names = [self.interface.as_str(), device];
            numbers.extend(
                known
                    .iter()
                    .filter(|(_, actions)| names.iter().any(|name| is_named(actions, name)))
                    .map(|(number, _)| *number),
            );
        }
        // An interrupt that is not listed was reserved and never asked for.
        let carries_packets = |number: &u32| {
            known.get(number).is_some_and(|actions| {
                !CONTROL_INTERRUPT_NAMES
                    .iter()
                    .any(|word| actions.contains(word))
            })
        };
        numbers.retain(carries_packets);
        numbers
    }
}

/// True when one of the actions is `name`, or `name` and a queue (`eth0-rx-1`, `virtio2-input.0`).
fn is_named(actions: &str, name: &str) -> bool {
    let words = actions.split([' ', ',']);
    !name.is_empty()
        && words.into_iter().any(|word| {
            word.strip_prefix(name)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        })
}

/// Interrupt numbers and what `/proc/interrupts` says after the counts: chip and actions.
fn interrupts(root: &Path) -> Option<BTreeMap<u32, String>> {
    let text = fs::read_to_string(root.join("proc/interrupts")).ok()?;
    let line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let words = rest
            .split_whitespace()
            .skip_while(|word| word.parse::<u64>().is_ok());
        Some((
            number.trim().parse().ok()?,
            words.collect::<Vec<_>>().join(" "),
        ))
    };
    Some(text.lines().filter_map(line).collect())
}

/// The CPUs that serve an interrupt: where the kernel really sends it if it says, else where it
/// may. "Anywhere" says nothing about any CPU and counts as none.
fn serving(root: &Path, irq: u32, online: &CpuList) -> CpuList {
    let folder = root.join(format!("proc/irq/{irq}"));
    let list = |file: &str| -> Option<CpuList> {
        let cpus: CpuList = fs::read_to_string(folder.join(file)).ok()?.parse().ok()?;
        (!cpus.is_empty()).then(|| cpus.intersection(online))
    };
    if let Some(cpus) = list("effective_affinity_list") {
        return cpus;
    }
    list("smp_affinity_list")
        .filter(|cpus| cpus != online || online.len() == 1)
        .unwrap_or_default()
}
