//! Reads CPUs, NUMA nodes and caches from the kernel's files below a root directory, so that a
//! copied or made-up tree reads like the real one.
//!
//! Only the list of online CPUs must be there. What else is missing (a kernel without NUMA, a
//! container that hides caches) becomes the plainest machine that fits: one package, one node,
//! one hardware thread a core. Format: Documentation/ABI/stable/sysfs-devices-system-cpu and
//! sysfs-devices-node in the kernel's sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Cache, CpuList, NumaNode, RawCpu, Source, Topology, TopologyError, assemble};

/// Reads the tree below `root`. All its CPUs are allowed; limits are read elsewhere.
pub(super) fn read(root: &Path) -> Result<Topology, TopologyError> {
    let cpu_folder = root.join("sys/devices/system/cpu");
    let online = online(&cpu_folder)?;
    let mut nodes = nodes(root, &online);
    if nodes.is_empty() {
        nodes.push(NumaNode {
            id: 0,
            memory_bytes: memory_bytes(&root.join("proc/meminfo")),
            cpus: online.clone(),
            distances: Vec::new(),
        });
    }

    let mut caches = Vec::new();
    let mut raw = Vec::new();
    for id in online.iter() {
        let folder = cpu_folder.join(format!("cpu{id}"));
        let topology = folder.join("topology");
        // The first name is the kernel's since 5.3, the second older.
        let core_cpus = list(&topology.join("core_cpus_list"))
            .or_else(|| list(&topology.join("thread_siblings_list")))
            .map(|cpus| cpus.intersection(&online))
            .filter(|cpus| cpus.contains(id))
            .unwrap_or_else(|| [id].into_iter().collect());
        raw.push(RawCpu {
            id,
            // -1 where the firmware does not say.
            package: number(&topology.join("physical_package_id")).unwrap_or(0),
            node: nodes
                .iter()
                .find(|node| node.cpus.contains(id))
                .map(|node| node.id),
            core_cpus,
            allowed: true,
        });
        caches.extend(caches_of(&folder.join("cache"), &online));
    }
    Ok(assemble(Source::Sysfs, raw, nodes, caches))
}

fn online(cpu_folder: &Path) -> Result<CpuList, TopologyError> {
    let path = cpu_folder.join("online");
    let text = fs::read_to_string(&path).map_err(|source| TopologyError::File {
        path: path.clone(),
        source,
    })?;
    let cpus: CpuList = text.parse().map_err(|error| TopologyError::File {
        path: path.clone(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
    })?;
    if cpus.is_empty() {
        return Err(TopologyError::NoCpu {
            origin: path.display().to_string(),
        });
    }
    Ok(cpus)
}

fn nodes(root: &Path, online: &CpuList) -> Vec<NumaNode> {
    let folder = root.join("sys/devices/system/node");
    let mut nodes = BTreeMap::new();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("node"));
        let Some(id) = digits.and_then(|digits| digits.parse::<u32>().ok()) else {
            continue;
        };
        let cpus = list(&entry.path().join("cpulist"))
            .unwrap_or_default()
            .intersection(online);
        let distances = text(&entry.path().join("distance"))
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let memory_bytes = memory_bytes(&entry.path().join("meminfo"));
        nodes.insert(
            id,
            NumaNode {
                id,
                memory_bytes,
                cpus,
                distances,
            },
        );
    }
    let count = nodes.len();
    nodes
        .into_values()
        .map(|mut node| {
            // A row that does not match the nodes found would be read against the wrong ones.
            if node.distances.len() != count {
                node.distances.clear();
            }
            node
        })
        .collect()
}

/// The data and unified caches that one CPU uses.
fn caches_of(folder: &Path, online: &CpuList) -> Vec<Cache> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("index"))
        .filter(|entry| text(&entry.path().join("type")).trim() != "Instruction")
        .filter_map(|entry| {
            let cpus = list(&entry.path().join("shared_cpu_list"))?.intersection(online);
            Some(Cache {
                level: number(&entry.path().join("level"))?,
                size_bytes: size_bytes(text(&entry.path().join("size")).trim()),
                cpus,
            })
        })
        .filter(|cache| !cache.cpus.is_empty())
        .collect()
}

/// `48K` or `12M`, as the kernel writes cache sizes; 0 for anything else.
fn size_bytes(size: &str) -> u64 {
    let digits = size.trim_end_matches(|unit: char| !unit.is_ascii_digit());
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => 0,
    };
    digits.parse::<u64>().unwrap_or(0).saturating_mul(unit)
}

/// `MemTotal` of `/proc/meminfo` or of a node's `meminfo`, in bytes; 0 where it is missing.
fn memory_bytes(path: &Path) -> u64 {
    let text = text(path);
    let total = text.lines().find_map(|line| line.split_once("MemTotal:"));
    let kibibytes = total.and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

fn list(path: &Path) -> Option<CpuList> {
    fs::read_to_string(path).ok()?.parse().ok()
}

fn number(path: &Path) -> Option<u32> {
    text(path).trim().parse().ok()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
