//! From flags to an engine: placement, limits, driver, endpoints.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ringmill_engine::topology::{self, Plan, PlanRequest, ShardCount, Topology};
use ringmill_engine::{Address, Builder, Engine, Limits, Protocol, Service, uring};
use socket2::{Domain, Socket, Type};

use crate::args::{DriverArg, EngineArgs, LimitArgs, ShardsArg};
use crate::endpoint::{Addresses, Endpoint, Transport, bind_all};
use crate::exit::UsageError;

/// Files that a server needs beside its connections where each connection is one: sockets to
/// listen on, metrics, logs.
const FILES_RESERVED: usize = 256;

/// Receive buffers of a shard that shares its CPU with many: 16 of the largest that a driver uses.
const STREAM_POOL_BYTES_MIN: usize = 1 << 20;

/// Where the shards of an engine run.
pub struct Placement {
    /// The machine.
    pub topology: Arc<Topology>,
    /// Which shard is where.
    pub plan: Plan,
    /// Connections that the engine may hold: as many as asked for, else what its shards can.
    pub connections_max: usize,
    /// What the user should know about the plan.
    pub note: Option<String>,
}

/// Plans the shards of an engine for so many connections, or for as many as its shards hold.
///
/// # Errors
/// When the CPUs or cards that were asked for are not there.
pub fn place(args: &EngineArgs, connections: Option<usize>, listens: bool) -> Result<Placement> {
    let topology = Topology::read().context("cannot read the machine's CPUs")?;
    let files = ringmill_engine::sys::socket::raise_file_limit();
    let options = uring_options(args);
    let features = match args.driver {
        DriverArg::Epoll => None,
        DriverArg::Auto | DriverArg::Uring => uring::probe(&options).ok(),
    };
    // Only rings hold more connections than the process may have files.
    let rings_needed = match (features, connections) {
        (Some(features), Some(connections)) => features.rings_for(connections, files, listens),
        _ => 1,
    };
    let request = PlanRequest {
        shards: match args.shards {
            ShardsArg::Auto => ShardCount::Auto,
            ShardsArg::Count(count) => ShardCount::Count(usize::from(count)),
        },
        interfaces: args.interface.clone(),
        cpus: args.cpus.clone(),
        min_shards: rings_needed,
        ..PlanRequest::default()
    };
    let plan =
        topology::plan(&topology, &request).map_err(|error| UsageError(error.to_string()))?;
    let shards = plan.shards.len();
    let note = match (args.shards, connections) {
        (ShardsArg::Count(asked), Some(connections)) if usize::from(asked) < shards => {
            Some(format!(
                "{shards} shards instead of {asked}: one ring holds {} connections under the \
                 limit of {files} open files, and {connections} are to be held",
                uring::streams_per_ring(files, listens)
            ))
        }
        _ => None,
    };
    let connections_max = connections.unwrap_or_else(|| match features {
        Some(features) => features.streams_held(shards, files, listens),
        None => files.saturating_sub(FILES_RESERVED).max(1),
    });
    Ok(Placement {
        topology: Arc::new(topology),
        plan,
        connections_max,
        note,
    })
}

fn uring_options(args: &EngineArgs) -> uring::Options {
    uring::Options {
        refuse: args.uring_without.clone(),
    }
}

/// An engine's builder with its placement and driver; services are still to be added.
#[must_use]
pub fn builder(args: &EngineArgs, limits: Limits, placement: &Placement) -> Builder {
    let shards: Arc<[topology::ShardPlacement]> = placement.plan.shards.clone().into();
    let machine = Arc::clone(&placement.topology);
    Engine::builder()
        .driver(args.driver.into())
        .uring_options(uring_options(args))
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

/// Bytes of memory for stream receive buffers in each shard. Where several share a CPU, because their
/// rings hold no more connections, they share what one would have: only one of them runs at a time.
#[must_use]
pub fn stream_pool_bytes(placement: &Placement) -> usize {
    let shards = &placement.plan.shards;
    let mut cpus: Vec<usize> = shards.iter().map(|shard| shard.cpu).collect();
    cpus.sort_unstable();
    cpus.dedup();
    let per_cpu = shards.len().div_ceil(cpus.len().max(1)).max(1);
    (Limits::default().stream_pool_bytes / per_cpu).max(STREAM_POOL_BYTES_MIN)
}

/// The engine's limits from flags and the plan.
#[must_use]
pub fn limits(args: &LimitArgs, placement: &Placement) -> Limits {
    let optional = |time: Duration| (!time.is_zero()).then_some(time);
    Limits {
        max_connections: placement.connections_max,
        idle_timeout: optional(args.idle_timeout),
        write_stall_timeout: optional(args.write_stall_timeout),
        stream_queue_bytes_max: usize::try_from(args.queue_per_connection).unwrap_or(usize::MAX),
        shard_queue_bytes_max: usize::try_from(args.queue_per_shard).unwrap_or(usize::MAX),
        shard_queue_messages_max: usize::try_from(args.queue_messages_per_shard)
            .unwrap_or(usize::MAX),
        drain_timeout: args.drain_timeout,
        stream_pool_bytes: stream_pool_bytes(placement),
        ..Limits::default()
    }
}

/// Adds an endpoint to a service: every address that it stands for, all with the same port.
///
/// # Errors
/// When a name cannot be resolved or no port can be found.
pub fn listen<P: Protocol>(service: Service<P>, endpoint: &Endpoint) -> Result<Service<P>> {
    let (usable, datagrams) = match endpoint.listen_addresses()? {
        Addresses::Path(path) => return Ok(service.listen(Address::Unix(path))),
        Addresses::Sockets(addresses) => {
            let datagrams = is_udp(endpoint);
            (with_one_port(&addresses, datagrams)?, datagrams)
        }
    };
    Ok(usable.into_iter().fold(service, |service, address| {
        if datagrams {
            service.bind(address)
        } else {
            service.listen(address)
        }
    }))
}

/// The addresses that a UDP endpoint stands for, all with the same port: for a service that must know
/// them before it is made.
///
/// # Errors
/// When a name cannot be resolved or no port can be found.
pub fn listen_addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>> {
    match endpoint.listen_addresses()? {
        Addresses::Path(_) => Ok(Vec::new()),
        Addresses::Sockets(addresses) => with_one_port(&addresses, true),
    }
}

fn is_udp(endpoint: &Endpoint) -> bool {
    matches!(
        endpoint,
        Endpoint::Inet {
            transport: Transport::Udp,
            ..
        }
    )
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
    let bound = bind_all(addresses, |address| hold(address, datagrams))?;
    Ok(bound.into_iter().map(|(_, local)| local).collect())
}

/// Holds an address for a moment, IPv6 alone as the engine does it: a `[::]` of both IP versions
/// would want the port that 0.0.0.0 already has.
fn hold(address: SocketAddr, datagrams: bool) -> io::Result<(Socket, SocketAddr)> {
    let kind = if datagrams { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    let local = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, local))
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
