//! From flags to an engine: placement, limits, driver, endpoints.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ringmill_engine::topology::{self, Plan, PlanRequest, ShardCount, Topology};
use ringmill_engine::{Address, Builder, Engine, Limits, Protocol, Service, uring};

use crate::args::{EngineArgs, LimitArgs, ShardsArg};
use crate::endpoint::{Addresses, Endpoint, Transport, bind_all};
use crate::exit::UsageError;

/// Where the shards of an engine run.
pub struct Placement {
    /// The machine.
    pub topology: Arc<Topology>,
    /// Which shard is where.
    pub plan: Plan,
}

/// Plans the shards of an engine.
///
/// # Errors
/// When the CPUs or cards that were asked for are not there.
pub fn place(args: &EngineArgs, connections: usize, listens: bool) -> Result<Placement> {
    let topology = Topology::read().context("cannot read the machine's CPUs")?;
    let files = ringmill_engine::sys::socket::raise_file_limit();
    // Only rings hold more connections than the process may have files.
    let rings = match args.driver {
        crate::args::DriverArg::Epoll => 1,
        _ => uring::rings_for(connections, files, listens),
    };
    let request = PlanRequest {
        shards: match args.shards {
            ShardsArg::Auto => ShardCount::Auto,
            ShardsArg::Count(count) => ShardCount::Count(usize::from(count)),
        },
        interfaces: args.interface.clone(),
        cpus: args.cpus.clone(),
        min_shards: rings,
        ..PlanRequest::default()
    };
    let plan =
        topology::plan(&topology, &request).map_err(|error| UsageError(error.to_string()))?;
    Ok(Placement {
        topology: Arc::new(topology),
        plan,
    })
}

/// An engine's builder with its placement and driver; services are still to be added.
#[must_use]
pub fn builder(args: &EngineArgs, limits: Limits, placement: &Placement) -> Builder {
    let shards: Arc<[topology::ShardPlacement]> = placement.plan.shards.clone().into();
    let machine = Arc::clone(&placement.topology);
    Engine::builder()
        .driver(args.driver.into())
        .uring_options(uring::Options {
            refuse: args.uring_without.clone(),
        })
        .limits(Limits {
            busy_poll: args.busy_poll,
            ..limits
        })
        .shards(placement.plan.shards.len() as u16)
        .settle(move |shard| {
            let place = &shards[usize::from(shard)];
            topology::pin_current_thread(place).map_err(std::io::Error::other)?;
            if let Some(node) = place.node {
                topology::bind_memory_current_thread(&machine, node)
                    .map_err(std::io::Error::other)?;
            }
            Ok(())
        })
}

/// The engine's limits from flags.
#[must_use]
pub fn limits(args: &LimitArgs, placement: &Placement) -> Limits {
    let optional = |time: Duration| (!time.is_zero()).then_some(time);
    Limits {
        max_connections: args.max_connections.unwrap_or_else(|| {
            let files = ringmill_engine::sys::socket::raise_file_limit();
            placement.plan.shards.len() * uring::streams_per_ring(files, true)
        }),
        idle_timeout: optional(args.idle_timeout),
        write_stall_timeout: optional(args.write_stall_timeout),
        stream_queue_bytes_max: usize::try_from(args.queue_per_connection).unwrap_or(usize::MAX),
        shard_queue_bytes_max: usize::try_from(args.queue_per_shard).unwrap_or(usize::MAX),
        drain_timeout: args.drain_timeout,
        ..Limits::default()
    }
}

/// Adds an endpoint to a service: every address that it stands for, all with the same port.
///
/// # Errors
/// When a name cannot be resolved or no port can be found.
pub fn listen<P: Protocol>(service: Service<P>, endpoint: &Endpoint) -> Result<Service<P>> {
    let addresses = match endpoint.listen_addresses()? {
        Addresses::Path(path) => return Ok(service.listen(Address::Unix(path))),
        Addresses::Sockets(addresses) => addresses,
    };
    let datagrams = matches!(
        endpoint,
        Endpoint::Inet {
            transport: Transport::Udp,
            ..
        }
    );
    let usable = with_one_port(&addresses, datagrams)?;
    Ok(usable.into_iter().fold(service, |service, address| {
        if datagrams {
            service.bind(address)
        } else {
            service.listen(address)
        }
    }))
}

/// The addresses that this host has, with a port that is free on all of them when 0 was asked for.
fn with_one_port(addresses: &[SocketAddr], datagrams: bool) -> Result<Vec<SocketAddr>> {
    if let [only] = addresses {
        return Ok(vec![*only]);
    }
    let chosen = addresses.iter().any(|address| address.port() != 0);
    if chosen {
        // Leave out an address family that this host does not have; the engine reports the rest.
        let here = |address: &&SocketAddr| {
            let probe = SocketAddr::new(address.ip(), 0);
            UdpSocket::bind(probe).is_ok()
        };
        return Ok(addresses.iter().filter(here).copied().collect());
    }
    let bound = if datagrams {
        let bind =
            |address| UdpSocket::bind(address).and_then(|s| s.local_addr().map(|local| (s, local)));
        bind_all(addresses, bind)?
            .into_iter()
            .map(|(_, local)| local)
            .collect()
    } else {
        let bind = |address| {
            TcpListener::bind(address).and_then(|s| s.local_addr().map(|local| (s, local)))
        };
        bind_all(addresses, bind)?
            .into_iter()
            .map(|(_, local)| local)
            .collect()
    };
    Ok(bound)
}

/// The first address to connect to.
///
/// # Errors
/// When the name cannot be resolved.
pub fn target(endpoint: &Endpoint) -> Result<Address> {
    match endpoint.connect_addresses()? {
        Addresses::Path(path) => Ok(Address::Unix(path)),
        Addresses::Sockets(addresses) => {
            let first = addresses.first().copied();
            first
                .map(Address::Ip)
                .context("the endpoint has no address")
        }
    }
}
