//! Reads CPUs, NUMA nodes and caches by libhwloc: this machine, an imagined one in its synthetic
//! notation, or one that `lstopo` wrote down as XML.
//!
//! It must hand out plain data only; no hwloc object outlives a call. Cards and limits of this
//! process are read elsewhere, for both readers alike.

use std::ops::Deref;

use hwlocality::cpu::cpuset::CpuSet;
use hwlocality::object::TopologyObject;
use hwlocality::object::attributes::ObjectAttributes;
use hwlocality::object::types::ObjectType;
use hwlocality::topology::Topology as Hwloc;
use hwlocality::topology::builder::{BuildFlags, TopologyBuilder};

use super::{
    CPU_NUMBER_MAX, Cache, CpuList, Limit, LimitKind, NumaNode, RawCpu, Source, Topology,
    TopologyError, assemble,
};

/// The name that hwloc gives to the distances of ACPI's SLIT.
const DISTANCES_NAME: &str = "NUMALatency";

/// Reads the machine that runs this process. All its CPUs are allowed.
pub(super) fn read_this_machine() -> Result<Topology, TopologyError> {
    // Disallowed CPUs are wanted, to draw them; and without the second flag hwloc would move
    // this thread over every CPU to ask each about itself.
    let flags = BuildFlags::INCLUDE_DISALLOWED | BuildFlags::DONT_CHANGE_BINDING;
    let hwloc = build(TopologyBuilder::new(), flags, "read this machine")?;
    if !hwloc.is_this_system() {
        return Err(TopologyError::Hwloc {
            action: "read this machine",
            reason: "HWLOC_SYNTHETIC, HWLOC_XMLFILE or HWLOC_FSROOT in the environment makes it \
                     describe another one"
                .into(),
        });
    }
    let mut topology = convert(&hwloc)?;
    for cpu in &mut topology.cpus {
        cpu.allowed = true;
    }
    topology.limits.clear();
    Ok(topology)
}

/// Builds the machine that a synthetic description names.
pub(super) fn read_synthetic(description: &str) -> Result<Topology, TopologyError> {
    let action = "understand the synthetic description";
    let builder = TopologyBuilder::new().from_synthetic(description);
    let builder = builder.map_err(refused(action))?;
    convert(&build(builder, BuildFlags::INCLUDE_DISALLOWED, action)?)
}

/// Reads what `lstopo` wrote as XML.
pub(super) fn read_xml(xml: &str) -> Result<Topology, TopologyError> {
    let action = "understand the XML";
    let builder = TopologyBuilder::new()
        .from_xml(xml)
        .map_err(refused(action))?;
    convert(&build(builder, BuildFlags::INCLUDE_DISALLOWED, action)?)
}

fn build(
    builder: TopologyBuilder,
    flags: BuildFlags,
    action: &'static str,
) -> Result<Hwloc, TopologyError> {
    builder
        .with_flags(flags)
        .map_err(refused(action))?
        .build()
        .map_err(refused(action))
}

fn refused<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> TopologyError {
    move |error| TopologyError::Hwloc {
        action,
        reason: error.to_string(),
    }
}

/// Plain data out of hwloc's tree.
pub(super) fn convert(hwloc: &Hwloc) -> Result<Topology, TopologyError> {
    let nodes = nodes(hwloc);
    let allowed = list(hwloc.allowed_cpuset());
    let raw: Vec<RawCpu> = hwloc
        .objects_with_type(ObjectType::PU)
        .filter_map(|pu| {
            let id = pu.os_index()?;
            let core = pu.first_ancestor_with_type(ObjectType::Core);
            let package = pu.first_ancestor_with_type(ObjectType::Package);
            Some(RawCpu {
                id,
                package: package.and_then(os_index).unwrap_or(0),
                // Memory without CPUs of its own (HBM, CXL) is attached to the CPUs nearest to
                // it: the first of the tightest nodes is the ordinary memory.
                node: nodes
                    .iter()
                    .filter(|node| node.cpus.contains(id))
                    .min_by_key(|node| (node.cpus.len(), node.id))
                    .map(|node| node.id),
                core_cpus: core.map_or_else(|| [id].into_iter().collect(), cpus_of),
                allowed: allowed.contains(id),
            })
        })
        .collect();
    if raw.is_empty() {
        return Err(TopologyError::NoCpu {
            origin: "hwloc".into(),
        });
    }
    let mut topology = assemble(Source::Hwloc, raw, nodes, caches(hwloc));
    if topology.allowed().len() < topology.cpus.len() {
        topology.limits.push(Limit {
            kind: LimitKind::Recorded,
            cpus: topology.allowed(),
        });
    }
    Ok(topology)
}

fn nodes(hwloc: &Hwloc) -> Vec<NumaNode> {
    let mut nodes: Vec<NumaNode> = hwloc
        .objects_with_type(ObjectType::NUMANode)
        .filter_map(|node| {
            let memory_bytes = match node.attributes() {
                Some(ObjectAttributes::NUMANode(memory)) => memory.local_memory(),
                _ => None,
            };
            Some(NumaNode {
                id: os_index(node)?,
                memory_bytes: memory_bytes.map_or(0, |bytes| bytes.get()),
                cpus: cpus_of(node),
                distances: Vec::new(),
            })
        })
        .collect();
    nodes.sort_by_key(|node| node.id);
    let ids: Vec<u32> = nodes.iter().map(|node| node.id).collect();
    let matrix = hwloc
        .distances_with_name(DISTANCES_NAME)
        .ok()
        .and_then(|all| all.into_iter().next());
    if let Some(matrix) = matrix.filter(|matrix| matrix.num_objects() == nodes.len()) {
        for ((from, to), distance) in matrix.object_distances() {
            let place = |object: Option<&TopologyObject>| {
                ids.iter()
                    .position(|&id| Some(id) == object.and_then(os_index))
            };
            if let (Some(from), Some(to)) = (place(from), place(to)) {
                let row = &mut nodes[from].distances;
                row.resize(ids.len(), 0);
                row[to] = u32::try_from(distance).unwrap_or(u32::MAX);
            }
        }
    }
    nodes
}

fn caches(hwloc: &Hwloc) -> Vec<Cache> {
    [
        ObjectType::L1Cache,
        ObjectType::L2Cache,
        ObjectType::L3Cache,
        ObjectType::L4Cache,
        ObjectType::L5Cache,
    ]
    .into_iter()
    .zip(1..)
    .flat_map(|(kind, level)| {
        hwloc
            .objects_with_type(kind)
            .map(move |cache| (cache, level))
    })
    .map(|(cache, level)| Cache {
        level,
        size_bytes: match cache.attributes() {
            Some(ObjectAttributes::Cache(cache)) => cache.size().map_or(0, |bytes| bytes.get()),
            _ => 0,
        },
        cpus: cpus_of(cache),
    })
    .collect()
}

fn os_index(object: &TopologyObject) -> Option<u32> {
    object.os_index()?.try_into().ok()
}

fn cpus_of(object: &TopologyObject) -> CpuList {
    object.cpuset().map(list).unwrap_or_default()
}

/// hwloc's sets may be endless; CPU numbers are not.
fn list(set: impl Deref<Target = CpuSet>) -> CpuList {
    set.iter_set()
        .map(usize::from)
        .take_while(|&cpu| cpu <= CPU_NUMBER_MAX)
        .collect()
}
