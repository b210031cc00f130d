//! Where the queues of a network card are served, so that it fits where the shards run.
//!
//! A pure function of the machine and the card's queues. The plan of the shards is that of
//! `ringmill topology`: it keeps shards off the CPUs that serve the card where there is room, and the
//! placement here leaves the interrupts on just those, so that applying it twice changes nothing.

use ringmill_engine::topology::{CpuList, PlanError, PlanRequest, Topology, plan};

/// A card's queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardQueues {
    /// The interrupts of its packet queues.
    pub interrupts: Vec<u32>,
    /// Transmit queues.
    pub transmit: usize,
    /// Receive queues.
    pub receive: usize,
}

/// Which CPUs serve what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The CPUs of the shards.
    pub shards: CpuList,
    /// For each interrupt its CPU.
    pub interrupts: Vec<(u32, CpuList)>,
    /// For each transmit queue the CPUs that use it; empty where there is one queue only.
    pub transmit: Vec<CpuList>,
    /// For each receive queue the CPUs that process what it received; empty where there are enough
    /// queues for the shards.
    pub receive: Vec<CpuList>,
}

/// The CPUs that shards run on by default, near `interface` if one is named; in the order of the
/// shards.
///
/// # Errors
/// When the interface or the CPUs are not there.
pub fn shard_cpus(machine: &Topology, interface: Option<&str>) -> Result<Vec<usize>, PlanError> {
    let request = PlanRequest {
        interfaces: interface.map(str::to_owned).into_iter().collect(),
        ..PlanRequest::default()
    };
    Ok(plan(machine, &request)?
        .shards
        .iter()
        .map(|shard| shard.cpu)
        .collect())
}

/// Shards avoid interrupts and interrupts avoid shards, which settles after a round or two: rounds, at
/// most.
const ROUNDS_MAX: usize = 4;

/// Places the queues of a card.
///
/// # Errors
/// When the interface is not there.
pub fn place(
    machine: &Topology,
    interface: &str,
    queues: &CardQueues,
) -> Result<Placement, PlanError> {
    let mut machine = machine.clone();
    let mut placed = place_once(&machine, interface, queues)?;
    for _ in 1..ROUNDS_MAX {
        let serving = placed.interrupts.iter().flat_map(|(_, cpus)| cpus.iter());
        let serving: CpuList = serving.collect();
        let cards = machine.interfaces.iter_mut();
        for card in cards.filter(|card| card.name == interface && !serving.is_empty()) {
            card.irq_cpus = serving.clone();
        }
        let again = place_once(&machine, interface, queues)?;
        if again == placed {
            break;
        }
        placed = again;
    }
    Ok(placed)
}

fn place_once(
    machine: &Topology,
    interface: &str,
    queues: &CardQueues,
) -> Result<Placement, PlanError> {
    let in_order = shard_cpus(machine, Some(interface))?;
    let shards: CpuList = in_order.iter().copied().collect();
    let near = machine
        .interface(interface)
        .and_then(|card| machine.node(card.node?))
        .map(|node| node.cpus.clone())
        .filter(|cpus| !cpus.is_empty())
        .unwrap_or_else(|| machine.online());
    let free = near.difference(&shards);
    let servers: Vec<usize> = if free.is_empty() {
        in_order.clone()
    } else {
        free.iter().collect()
    };
    let one = |cpu: usize| CpuList::from(vec![cpu]);
    let interrupts = queues.interrupts.iter().zip(servers.iter().cycle());
    // Shards first, so that they spread evenly over the queues; then whoever else sends.
    let others = machine.online().difference(&shards);
    let senders: Vec<usize> = if queues.transmit < machine.cpus.len() {
        in_order.iter().copied().chain(others.iter()).collect()
    } else {
        machine.online().iter().collect()
    };
    let transmit = if queues.transmit > 1 {
        let of = |queue: usize| {
            senders
                .iter()
                .copied()
                .skip(queue)
                .step_by(queues.transmit)
                .collect()
        };
        (0..queues.transmit).map(of).collect()
    } else {
        Vec::new()
    };
    // Loopback processes a packet where it was sent; to move it elsewhere only costs.
    let receive = if interface != "lo" && queues.receive < in_order.len() {
        vec![shards.clone(); queues.receive]
    } else {
        Vec::new()
    };
    Ok(Placement {
        interrupts: interrupts.map(|(irq, cpu)| (*irq, one(*cpu))).collect(),
        shards,
        transmit,
        receive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::FakeHost;

    fn lists(lists: &[CpuList]) -> Vec<String> {
        lists.iter().map(CpuList::to_string).collect()
    }

    #[test]
    fn queues_follow_the_shards() {
        for (name, cpus, serving, queues, shards, interrupts, transmit, receive) in [
            (
                "interrupts stay on the CPU that the shards leave free",
                4,
                &["0", "0"][..],
                (2, 2),
                "1-3",
                "30:0 31:0",
                "1,3 0,2",
                "1-3 1-3",
            ),
            (
                "no room: each on the CPU of a shard",
                2,
                &["0", "1"],
                (2, 2),
                "0-1",
                "30:0 31:1",
                "0 1",
                "",
            ),
            (
                "four queues, as the reference has it",
                4,
                &["0", "1", "2", "3"],
                (4, 4),
                "0-3",
                "30:0 31:1 32:2 33:3",
                "0 1 2 3",
                "",
            ),
            (
                "one queue that is served anywhere is given a CPU of its own",
                2,
                &["0-1"],
                (1, 1),
                "1",
                "30:0",
                "",
                "",
            ),
            (
                "four transmit queues of a small device, served by CPU 0",
                4,
                &["0"],
                (4, 1),
                "1-3",
                "30:0",
                "0 1 2 3",
                "1-3",
            ),
        ] {
            let host = FakeHost::with_cpus(cpus).card("eth0", queues.0, queues.1, serving);
            let machine = host.host().topology().unwrap();
            let queues = CardQueues {
                interrupts: host.host().interrupts("eth0"),
                transmit: queues.0,
                receive: queues.1,
            };
            assert_eq!(queues.interrupts.len(), serving.len(), "{name}");
            let placed = place(&machine, "eth0", &queues).unwrap();
            assert_eq!(placed.shards.to_string(), shards, "{name}");
            let of: Vec<_> = placed
                .interrupts
                .iter()
                .map(|(irq, cpus)| format!("{irq}:{cpus}"))
                .collect();
            assert_eq!(of.join(" "), interrupts, "{name}");
            assert_eq!(lists(&placed.transmit).join(" "), transmit, "{name}");
            assert_eq!(lists(&placed.receive).join(" "), receive, "{name}");
            // Applied, the same plan comes out again.
            let serving: Vec<_> = placed
                .interrupts
                .iter()
                .map(|(_, cpus)| cpus.to_string())
                .collect();
            let serving: Vec<&str> = serving.iter().map(String::as_str).collect();
            let after =
                FakeHost::with_cpus(cpus).card("eth0", queues.transmit, queues.receive, &serving);
            let again = place(&after.host().topology().unwrap(), "eth0", &queues).unwrap();
            assert_eq!(again, placed, "{name}: twice");
        }
    }

    #[test]
    fn an_unknown_card_is_refused() {
        let host = FakeHost::with_cpus(2);
        let machine = host.host().topology().unwrap();
        assert!(place(&machine, "eth9", &CardQueues::default()).is_err());
    }
}
