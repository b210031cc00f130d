//! From configuration to running shards, and back: bind, start, watch, stop, join.
//!
//! Everything slow or fallible happens here, on the caller's thread, before a shard runs: a port
//! in use or a missing right is an error of [`Builder::start`], never a surprise later.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::control::{ControlState, Notice, Stop};
use crate::driver::{
    Address, BoundDatagramSocket, BoundListener, BoundSocket, Driver, DriverKind, Open, epoll,
    uring,
};
use crate::holder;
use crate::ids::{ListenerId, ServiceId, ShardId};
use crate::mailbox::{ControlSender, ShardBell, mailboxes, shard_bells};
use crate::metrics::{ServiceSnapshot, ShardMetrics, ShardSnapshot};
use crate::shard::{Guest, Parts, Shard};
use crate::sys::socket::{self, Share};
use crate::{Limits, Protocol};

/// How long to wait for a port that is in use, but by no process that can be seen: the kernel takes
/// the rings of a killed process, and the sockets in them, apart after the process has gone.
const DEAD_HOLDER_PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts.
const DEAD_HOLDER_LOOK: Duration = Duration::from_millis(20);

/// Which driver to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverChoice {
    /// io_uring where the host allows it, else epoll; [`Engine::driver_note`] says why.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An endpoint could not be bound.
    #[error("cannot listen on {address}: {error}{}", holder.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
    Bind {
        /// Which one.
        address: String,
        /// Why.
        error: io::Error,
        /// Who holds the port, where that can be found out.
        holder: Option<String>,
    },
    /// The chosen driver cannot run here.
    #[error("the {driver} driver cannot run here: {reason}")]
    Driver {
        /// Which one.
        driver: DriverKind,
        /// Why, and what would help.
        reason: String,
    },
    /// A shard could not be set up.
    #[error("shard {shard} did not start: {error}")]
    Shard {
        /// Which one.
        shard: ShardId,
        /// Why.
        error: io::Error,
    },
    /// The configuration asks for nothing or too much.
    #[error("{0}")]
    Configuration(String),
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Stream { address: Address, wants_peer: bool },
    Datagram(SocketAddr),
}

/// A protocol with the endpoints that it serves, the same on every shard.
pub struct Service<P: Protocol> {
    name: String,
    make: Box<dyn Fn(ShardId) -> P + Send + Sync>,
    endpoints: Vec<Endpoint>,
    wants_peer: bool,
    control: Arc<OnceLock<ControlSender<P::Message>>>,
}

impl<P: Protocol> Service<P> {
    /// A service whose instance on each shard is made by `make`, on the shard's own thread.
    pub fn new(
        name: impl Into<String>,
        make: impl Fn(ShardId) -> P + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            make: Box::new(make),
            endpoints: Vec::new(),
            wants_peer: false,
            control: Arc::default(),
        }
    }

    /// Accepts streams at an address; port 0 lets the kernel choose.
    #[must_use]
    pub fn listen(mut self, address: impl Into<Address>) -> Self {
        self.endpoints.push(Endpoint::Stream {
            address: address.into(),
            wants_peer: self.wants_peer,
        });
        self
    }

    /// Receives datagrams at an address; port 0 lets the kernel choose.
    #[must_use]
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.endpoints.push(Endpoint::Datagram(address));
        self
    }

    /// Asks for the peer's address of every accepted stream. Costs a system call and a file
    /// descriptor of the process each, so such streams obey its file limit.
    #[must_use]
    pub fn with_peer_addresses(mut self) -> Self {
        self.wants_peer = true;
        for endpoint in &mut self.endpoints {
            if let Endpoint::Stream { wants_peer, .. } = endpoint {
                *wants_peer = true;
            }
        }
        self
    }

    /// Where it listens or is bound, in the order in which endpoints were added: that of
    /// [`ListenerId::endpoint`].
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.endpoints.iter().map(|endpoint| match endpoint {
            Endpoint::Stream { address, .. } => address.clone(),
            Endpoint::Datagram(address) => Address::Ip(*address),
        })
    }

    /// A handle with which the control thread can post messages once the engine runs.
    #[must_use]
    pub fn controller(&self) -> Controller<P::Message> {
        Controller(Arc::clone(&self.control))
    }

    /// The service without its type, as an engine keeps it.
    pub(crate) fn erased(mut self) -> Box<dyn AnyService> {
        let make = std::mem::replace(&mut self.make, Box::new(|_| unreachable!("moved")));
        Box::new(Typed {
            service: self,
            make: Arc::from(make),
        })
    }
}

/// Posts messages from outside the shards.
pub struct Controller<M>(Arc<OnceLock<ControlSender<M>>>);

impl<M> Clone for Controller<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Controller<M> {
    /// Posts to one shard.
    ///
    /// # Errors
    /// Gives the message back when the engine does not run yet or the mailbox is full.
    pub fn post(&self, to: ShardId, message: M) -> Result<(), M> {
        match self.0.get() {
            Some(sender) => sender.post(to, message).map_err(|full| full.message),
            None => Err(message),
        }
    }
}

/// A service without its type.
pub(crate) trait AnyService: Send {
    fn name(&self) -> &str;
    fn endpoints(&self) -> &[Endpoint];
    fn guests(
        &self,
        service: ServiceId,
        bells: &Arc<[ShardBell]>,
        messages_max: usize,
    ) -> Vec<Guest>;
}

struct Typed<P: Protocol> {
    service: Service<P>,
    make: Arc<dyn Fn(ShardId) -> P + Send + Sync>,
}

impl<P: Protocol> AnyService for Typed<P> {
    fn name(&self) -> &str {
        &self.service.name
    }

    fn endpoints(&self) -> &[Endpoint] {
        &self.service.endpoints
    }

    fn guests(
        &self,
        service: ServiceId,
        bells: &Arc<[ShardBell]>,
        messages_max: usize,
    ) -> Vec<Guest> {
        let (ends, control) = mailboxes::<P::Message>(bells, messages_max);
        // Set once: a service is started once.
        let _ = self.service.control.set(control);
        ends.into_iter()
            .enumerate()
            .map(|(shard, mailbox)| {
                let make = Arc::clone(&self.make);
                Guest::new(service, mailbox, move || make(shard as ShardId))
            })
            .collect()
    }
}

/// Called on each shard's own thread before anything is allocated there: pins it, binds memory.
type Settle = Arc<dyn Fn(ShardId) -> io::Result<()> + Send + Sync>;

/// What an engine is to be.
pub struct Builder {
    driver: DriverChoice,
    uring: uring::Options,
    shards: u16,
    limits: Limits,
    share_port: bool,
    settle: Option<Settle>,
    /// The CPU of each shard, where each has one of its own: TCP connections then go to the shard
    /// of the CPU that received them.
    steering_cpus: Option<Vec<usize>>,
    services: Vec<Box<dyn AnyService>>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto,
            uring: uring::Options::default(),
            shards: 1,
            limits: Limits::default(),
            share_port: false,
            settle: None,
            steering_cpus: None,
            services: Vec::new(),
        }
    }
}

impl Builder {
    /// Chooses the driver.
    #[must_use]
    pub fn driver(mut self, driver: DriverChoice) -> Self {
        self.driver = driver;
        self
    }

    /// Refuses optional io_uring features, as an older kernel would.
    #[must_use]
    pub fn uring_options(mut self, options: uring::Options) -> Self {
        self.uring = options;
        self
    }

    /// How many shards. One by default; [`crate::topology`] plans one for each core.
    #[must_use]
    pub fn shards(mut self, shards: u16) -> Self {
        self.shards = shards;
        self
    }

    /// Bounds and timeouts.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Lets another process of the same user serve the same ports (SO_REUSEPORT). Off by default,
    /// because such a process would silently take a share of the traffic.
    #[must_use]
    pub fn share_port(mut self, share: bool) -> Self {
        self.share_port = share;
        self
    }

    /// What each shard's thread does first, such as pinning itself to its CPU.
    #[must_use]
    pub fn settle(
        mut self,
        settle: impl Fn(ShardId) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.settle = Some(Arc::new(settle));
        self
    }

    /// Sends an accepted TCP connection to the shard of the CPU that received it. `cpus` gives
    /// the CPU of each shard; a connection from any other CPU goes by hash. Not on loopback, where
    /// that is the CPU of whoever connects.
    #[must_use]
    pub fn steer_by_cpu(mut self, cpus: Vec<usize>) -> Self {
        self.steering_cpus = Some(cpus);
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service<P: Protocol>(mut self, service: Service<P>) -> Self {
        self.services.push(service.erased());
        self
    }

    /// Binds every endpoint, starts every shard and returns when all of them serve.
    ///
    /// # Errors
    /// When an endpoint is in use, the driver cannot run, or a shard cannot be set up. Nothing is
    /// left running then.
    pub fn start(self) -> Result<Engine, StartError> {
        if self.services.is_empty() || self.shards == 0 {
            return Err(StartError::Configuration(
                "an engine needs a service and a shard".into(),
            ));
        }
        let files = socket::raise_file_limit();
        let (driver, driver_note) = self.choose_driver()?;
        let shards = usize::from(self.shards);
        let bells = shard_bells(self.shards);
        let loads: Arc<[AtomicUsize]> = (0..shards).map(|_| AtomicUsize::new(0)).collect();
        let metrics: Vec<_> = (0..shards)
            .map(|_| Arc::new(ShardMetrics::new(self.services.len())))
            .collect();
        let directory = uring::Directory::new(self.shards);

        let mut plots: Vec<Plot> = (0..shards).map(|_| Plot::default()).collect();
        let mut addresses = Vec::new();
        let mut listening = Vec::new();
        for (service, definition) in self.services.iter().enumerate() {
            for (endpoint, spec) in definition.endpoints().iter().enumerate() {
                let id = ListenerId {
                    service: service as ServiceId,
                    endpoint: endpoint as u16,
                };
                let address = self.bind_patiently(id, spec, &mut plots, &mut listening)?;
                let datagrams = matches!(spec, Endpoint::Datagram(_));
                let service = definition.name().to_owned();
                addresses.push(BoundAddress {
                    service,
                    id,
                    address,
                    datagrams,
                });
            }
            let guests = definition.guests(
                service as ServiceId,
                &bells,
                self.limits.mailbox_messages_max,
            );
            for (plot, guest) in plots.iter_mut().zip(guests) {
                plot.guests.push(guest);
            }
        }

        let control = Arc::new(ControlState::new(Arc::clone(&bells), listening));
        let mut engine = Engine {
            driver,
            driver_note,
            services: self
                .services
                .iter()
                .map(|service| service.name().to_owned())
                .collect(),
            addresses,
            metrics: metrics.clone(),
            stopper: Stopper(Arc::clone(&control)),
            threads: Vec::new(),
        };
        let (ready, started) = mpsc::channel();
        for (shard, plot) in plots.into_iter().enumerate() {
            let id = shard as ShardId;
            let parts = Parts {
                id,
                shards: self.shards,
                limits: self.limits.clone(),
                metrics: Arc::clone(&metrics[shard]),
                control: Arc::clone(&control),
                bells: Arc::clone(&bells),
                guests: plot.guests,
                listeners: plot.listeners,
                sockets: plot.sockets,
                loads: Arc::clone(&loads),
            };
            let settle = self.settle.clone();
            let options = uring::Settings {
                options: self.uring.clone(),
                files,
                streams: self.limits.max_connections.div_ceil(shards),
                listens: !parts.listeners.is_empty(),
                directory: Arc::clone(&directory),
            };
            let ready = ready.clone();
            let thread = std::thread::Builder::new()
                .name(format!("shard-{id}"))
                .spawn(move || run_shard(driver, parts, settle, options, &ready));
            match thread {
                Ok(thread) => engine.threads.push(thread),
                Err(error) => {
                    engine.stop_now();
                    let _ = engine.join();
                    return Err(StartError::Shard { shard: id, error });
                }
            }
        }
        drop(ready);
        for (shard, result) in started.iter().take(shards) {
            if let Err(error) = result {
                engine.stop_now();
                let _ = engine.join();
                return Err(StartError::Shard { shard, error });
            }
        }
        Ok(engine)
    }

    fn choose_driver(&self) -> Result<(DriverKind, Option<String>), StartError> {
        if self.driver == DriverChoice::Epoll {
            return Ok((DriverKind::Epoll, None));
        }
        match uring::probe(&self.uring) {
            Ok(_) => Ok((DriverKind::Uring, None)),
            Err(unavailable) if self.driver == DriverChoice::Auto => Ok((
                DriverKind::Epoll,
                Some(format!("using epoll: {unavailable}")),
            )),
            Err(unavailable) => Err(StartError::Driver {
                driver: DriverKind::Uring,
                reason: unavailable.to_string(),
            }),
        }
    }

    /// [`Self::bind`], waiting a little for a port that no process holds any more.
    fn bind_patiently(
        &self,
        id: ListenerId,
        endpoint: &Endpoint,
        plots: &mut [Plot],
        listening: &mut Vec<OwnedFd>,
    ) -> Result<Address, StartError> {
        let deadline = Instant::now() + DEAD_HOLDER_PATIENCE;
        loop {
            match self.bind(id, endpoint, plots, listening) {
                Err(StartError::Bind {
                    error,
                    holder: None,
                    ..
                }) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(DEAD_HOLDER_LOOK);
                }
                result => return result,
            }
        }
    }

    /// Binds one endpoint once for each shard and returns its address with the real port. A handle
    /// of each listener goes to `listening`.
    fn bind(
        &self,
        id: ListenerId,
        endpoint: &Endpoint,
        plots: &mut [Plot],
        listening: &mut Vec<OwnedFd>,
    ) -> Result<Address, StartError> {
        let fail = |address: &Address, datagram: bool, error: io::Error| StartError::Bind {
            address: address.to_string(),
            holder: (error.kind() == io::ErrorKind::AddrInUse)
                .then(|| holder::of(address, datagram))
                .flatten(),
            error,
        };
        match endpoint {
            Endpoint::Stream {
                address,
                wants_peer,
            } => {
                let failed = |error| fail(address, false, error);
                let (fds, address) = self.bind_streams(address, plots.len()).map_err(failed)?;
                let handles: io::Result<Vec<_>> = fds.iter().map(OwnedFd::try_clone).collect();
                listening.extend(handles.map_err(failed)?);
                for (plot, fd) in plots.iter_mut().zip(fds) {
                    plot.listeners.push(BoundListener {
                        id,
                        address: address.clone(),
                        socket: BoundSocket::Os(fd),
                        wants_peer: *wants_peer,
                    });
                }
                Ok(address)
            }
            Endpoint::Datagram(address) => {
                let failed = |error| fail(&Address::Ip(*address), true, error);
                let (fds, local) = self.bind_datagrams(*address, plots.len()).map_err(failed)?;
                for (plot, fd) in plots.iter_mut().zip(fds) {
                    plot.sockets.push(BoundDatagramSocket {
                        service: id.service,
                        endpoint: Some(id.endpoint),
                        local,
                        socket: BoundSocket::Os(fd),
                    });
                }
                Ok(Address::Ip(local))
            }
        }
    }

    fn bind_streams(
        &self,
        address: &Address,
        shards: usize,
    ) -> io::Result<(Vec<OwnedFd>, Address)> {
        let ip = match address {
            Address::Ip(ip) => *ip,
            Address::Unix(_) => {
                // A Unix socket has no group: the shards share one queue of connections.
                let first = socket::listen_stream(address, Share::Alone)?;
                let mut fds = vec![first];
                while fds.len() < shards {
                    fds.push(fds[0].try_clone()?);
                }
                return Ok((fds, address.clone()));
            }
        };
        if ip.port() != 0 && !self.share_port {
            // Without SO_REUSEPORT this fails when anyone, also ourselves, holds the port.
            drop(socket::listen_stream(address, Share::Alone)?);
        }
        let share = if shards > 1 || self.share_port {
            Share::Group
        } else {
            Share::Alone
        };
        let first = socket::listen_stream(address, share)?;
        let local = Address::Ip(socket::local_address(&first)?);
        let mut fds = vec![first];
        while fds.len() < shards {
            fds.push(socket::listen_stream(&local, share)?);
        }
        if let Some(cpus) = self
            .steering_cpus
            .as_ref()
            .filter(|cpus| cpus.len() == shards && shards > 1 && !ip.ip().is_loopback())
        {
            socket::steer_by_cpu(&fds[0], cpus)?;
        }
        Ok((fds, local))
    }

    fn bind_datagrams(
        &self,
        address: SocketAddr,
        shards: usize,
    ) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
        let buffers = self.limits.datagram_socket_buffers;
        let open =
            |local, share| socket::open_datagram(&Open { local, peer: None }, None, share, buffers);
        if address.port() != 0 && !self.share_port {
            drop(open(address, Share::Alone)?);
        }
        let share = if shards > 1 || self.share_port {
            Share::Group
        } else {
            Share::Alone
        };
        let first = open(address, share)?;
        let local = socket::local_address(&first)?;
        let mut fds = vec![first];
        while fds.len() < shards {
            fds.push(open(local, share)?);
        }
        Ok((fds, local))
    }
}

/// What one shard is given.
#[derive(Default)]
struct Plot {
    guests: Vec<Guest>,
    listeners: Vec<BoundListener>,
    sockets: Vec<BoundDatagramSocket>,
}

type Ready = mpsc::Sender<(ShardId, io::Result<()>)>;

/// The life of a shard's thread. A shard that fails, or panics (a protocol may), stops the whole
/// engine: its share of the connections would be lost unseen.
fn run_shard(
    driver: DriverKind,
    parts: Parts,
    settle: Option<Settle>,
    settings: uring::Settings,
    ready: &Ready,
) -> io::Result<()> {
    let shard = parts.id;
    let control = Arc::clone(&parts.control);
    // Nothing that the shard leaves behind when it unwinds is looked at again.
    let serve = AssertUnwindSafe(|| serve(driver, parts, settle, settings, ready));
    let result = panic::catch_unwind(serve).unwrap_or_else(|panic| {
        let message = format!("it panicked: {}", panic_message(&*panic));
        // Who starts the engine waits for each shard; heard only when the panic came before that.
        let _ = ready.send((shard, Err(io::Error::other(message.clone()))));
        Err(io::Error::other(message))
    });
    result.map_err(|error| {
        control.notify(Notice::ShardFailed {
            shard,
            error: error.to_string(),
        });
        control.request(Stop::Drain);
        io::Error::new(error.kind(), format!("shard {shard} failed: {error}"))
    })
}

/// Opens a shard, says on `ready` whether it serves, and runs it to its end.
fn serve(
    driver: DriverKind,
    parts: Parts,
    settle: Option<Settle>,
    settings: uring::Settings,
    ready: &Ready,
) -> io::Result<()> {
    let id = parts.id;
    let opened = (|| {
        if let Some(settle) = settle {
            settle(id)?;
        }
        socket::set_timer_slack();
        let driver: Box<dyn Driver> = match driver {
            DriverKind::Uring => Box::new(uring::Uring::new(id, &parts.limits, &settings)?),
            DriverKind::Epoll => Box::new(epoll::Epoll::new(&parts.limits)?),
            // It has no sockets of the kernel: `driver::sim` makes its shards itself.
            DriverKind::Sim => return Err(io::Error::from(io::ErrorKind::Unsupported)),
        };
        Shard::open(driver, parts)
    })();
    let mut shard = match opened {
        Ok(shard) => shard,
        Err(error) => {
            let _ = ready.send((id, Err(error)));
            return Ok(());
        }
    };
    let _ = ready.send((id, Ok(())));
    shard.run()
}

/// What a panic says; it is also on standard error, with its place.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// A bound endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundAddress {
    /// The name of the service.
    pub service: String,
    /// Which of its endpoints.
    pub id: ListenerId,
    /// The address, with the port that the kernel chose.
    pub address: Address,
    /// Whether it receives datagrams rather than accepts streams.
    pub datagrams: bool,
}

impl std::fmt::Display for BoundAddress {
    /// As users write endpoints: `tcp://127.0.0.1:7000`, `udp://[::1]:7000`, `unix:/run/echo`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.address, self.datagrams) {
            (Address::Unix(path), _) => write!(f, "unix:{}", path.display()),
            (Address::Ip(address), false) => write!(f, "tcp://{address}"),
            (Address::Ip(address), true) => write!(f, "udp://{address}"),
        }
    }
}

/// A running engine.
pub struct Engine {
    driver: DriverKind,
    driver_note: Option<String>,
    services: Vec<String>,
    addresses: Vec<BoundAddress>,
    metrics: Vec<Arc<ShardMetrics>>,
    stopper: Stopper,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Engine {
    /// Describes a new engine.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The driver that runs.
    #[must_use]
    pub fn driver(&self) -> DriverKind {
        self.driver
    }

    /// Why the driver is not the first choice, in one line; `None` when it is.
    #[must_use]
    pub fn driver_note(&self) -> Option<&str> {
        self.driver_note.as_deref()
    }

    /// Every bound endpoint, in the order of services and endpoints.
    #[must_use]
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.metrics.len()
    }

    /// Names of the services.
    #[must_use]
    pub fn services(&self) -> &[String] {
        &self.services
    }

    /// The counters of every shard. They stay readable after the engine has stopped.
    #[must_use]
    pub fn metrics(&self) -> &[Arc<ShardMetrics>] {
        &self.metrics
    }

    /// Counters of one service, summed over the shards.
    #[must_use]
    pub fn service_totals(&self, service: usize) -> ServiceSnapshot {
        let snapshots = self
            .metrics
            .iter()
            .map(|metrics| metrics.services[service].snapshot());
        snapshots.fold(ServiceSnapshot::default(), |sum, next| sum.plus(&next))
    }

    /// Counters of the shards themselves, summed.
    #[must_use]
    pub fn shard_totals(&self) -> ShardSnapshot {
        let snapshots = self.metrics.iter().map(|metrics| metrics.shard.snapshot());
        snapshots.fold(ShardSnapshot::default(), |sum, next| sum.plus(&next))
    }

    /// Accepted streams that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.stopper.0.connections.load(Ordering::Relaxed)
    }

    /// The next thing that an operator should hear of.
    #[must_use]
    pub fn take_notice(&self) -> Option<Notice> {
        self.stopper.0.take_notice()
    }

    /// Asks all shards to stop: accept nothing more, send what is queued, close. Returns at once.
    pub fn stop(&self) {
        self.stopper.stop();
    }

    /// Asks all shards to end now: what is queued is lost.
    pub fn stop_now(&self) {
        self.stopper.stop_now();
    }

    /// A handle that can stop the engine from another thread, such as that of the signals.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Whether every shard has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits until every shard has ended.
    ///
    /// # Errors
    /// The first failure of a shard, by its name; a panic is one.
    pub fn join(&mut self) -> io::Result<()> {
        let mut first = Ok(());
        for thread in self.threads.drain(..) {
            let result = thread
                .join()
                .unwrap_or_else(|panic| Err(io::Error::other(panic_message(&*panic))));
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop_now();
        for thread in self.threads.drain(..) {
            // What failed has been told by a notice.
            let _ = thread.join();
        }
    }
}

/// Stops an engine from anywhere.
#[derive(Clone)]
pub struct Stopper(Arc<ControlState>);

impl Stopper {
    /// See [`Engine::stop`].
    pub fn stop(&self) {
        self.0.request(Stop::Drain);
    }

    /// See [`Engine::stop_now`].
    pub fn stop_now(&self) {
        self.0.request(Stop::Now);
    }
}
