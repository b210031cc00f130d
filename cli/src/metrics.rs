//! `--metrics ADDR`: the counters of every service and shard, and of the process, as OpenMetrics
//! text at `/metrics`, which Prometheus and its relatives read.
//!
//! Served by hyper on a thread of its own, one connection one scrape. It reads counters that the
//! shards write anyway, so the data path never waits for it, and a client of it can hold at most a
//! few connections for a few seconds. It must never change anything.
//!
//! Why hyper with a one-threaded tokio runtime: a parser of HTTP from strangers is not a thing to
//! write again, and hyper's own is the one that is looked at most; it wants a runtime, and tokio's
//! smallest (no macros, no threads) is the one it is tested with.

use std::convert::Infallible;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use ringmill_engine::impairment::ImpairmentSnapshot;
use ringmill_engine::time::monotonic_now;
use ringmill_engine::{ServiceSnapshot, ShardMetrics, ShardSnapshot};
use ringmill_protocols::capacity::server::{CapacityServer, ServerSnapshot};
use ringmill_protocols::chat::{ChatSnapshot, Room};
use ringmill_protocols::guard::{GuardSnapshot, Guards};
use ringmill_protocols::load::{Published, Shared};
use ringmill_protocols::multicast::{SenderSnapshot, Senders};
use ringmill_protocols::nat::{DestinationInfo, Nat, NatSnapshot};
use tokio::sync::{Semaphore, oneshot};

use crate::exit::UsageError;
use crate::report::steal::ProcessTimes;

/// Scrapes at a time; a further one waits. One server is scraped by two or three.
const CONNECTIONS_MAX: usize = 16;
/// A client that does not finish its request line and headers by then is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that one connection may last, the answer taken.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Request line and headers; hyper's own least.
const REQUEST_BYTES_MAX: usize = 8192;
/// After a failed accept, such as for want of files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// prometheus-client writes this format.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What is shown.
#[derive(Clone, Default)]
pub struct Watched {
    /// Names of the services, in the order of their counters.
    pub services: Vec<String>,
    /// Counters of each shard.
    pub shards: Vec<Arc<ShardMetrics>>,
    /// The driver that runs.
    pub driver: String,
    /// Guards of the services that have one; shorter than `services` is fine.
    pub guards: Vec<Option<Arc<Guards>>>,
    /// Services that are chats; shorter than `services` is fine.
    pub chats: Vec<Option<Arc<Room>>>,
    /// Services that send multicast messages; shorter than `services` is fine.
    pub senders: Vec<Option<Arc<Senders>>>,
    /// What a load run has measured so far.
    pub load: Option<Arc<[Arc<Shared>]>>,
    /// A NAT.
    pub nat: Option<Arc<Nat>>,
    /// A capacity server.
    pub capacity: Option<CapacityServer>,
}

type Current = Arc<RwLock<Option<Watched>>>;

/// The endpoint. It ends when this is dropped.
pub struct MetricsServer {
    address: SocketAddr,
    current: Current,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Listens at an address and answers from now on, with the process alone until
    /// [`watch`](Self::watch) is called.
    ///
    /// # Errors
    /// When the address is in use or not ours.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).map_err(|error| {
            let holder = (error.kind() == std::io::ErrorKind::AddrInUse)
                .then(|| ringmill_engine::port_holder(address, false))
                .flatten()
                .map_or_else(String::new, |(pid, name)| {
                    format!(" (held by {name}, pid {pid})")
                });
            UsageError(format!("--metrics {address}: {error}{holder}"))
        })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let current = Current::default();
        let (stop, stopped) = oneshot::channel();
        let shown = Arc::clone(&current);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot set up the metrics endpoint")?;
        let thread = std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || {
                runtime.block_on(async {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                        return;
                    };
                    tokio::spawn(accept(listener, shown));
                    // Either way it is over; the tasks end with the runtime.
                    let _ = stopped.await;
                });
            })?;
        Ok(Self {
            address,
            current,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What to show from now on.
    pub fn watch(&self, watched: Watched) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(watched);
    }

    /// Where it can be read.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed and ends nothing else.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, current: Current) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let current = Arc::clone(&current);
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let answer = answer(request.method(), request.uri().path(), &current);
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A client that is late or speaks no HTTP is its own problem.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

fn answer(method: &Method, path: &str, current: &Current) -> Response<String> {
    let (status, format, body) = if path != "/metrics" {
        let words = "Only /metrics is here.\n".to_owned();
        (StatusCode::NOT_FOUND, PLAIN, words)
    } else if method != Method::GET {
        let words = "Only GET is understood.\n".to_owned();
        (StatusCode::METHOD_NOT_ALLOWED, PLAIN, words)
    } else {
        let watched = current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match render(watched) {
            Ok(text) => (StatusCode::OK, FORMAT, text),
            Err(error) => {
                let words = format!("Cannot write the metrics: {error}\n");
                (StatusCode::INTERNAL_SERVER_ERROR, PLAIN, words)
            }
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

/// The text of one scrape.
fn render(watched: Option<Watched>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Shown(watched)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

struct Shown(Option<Watched>);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

/// One value with its labels.
type Sample<'a> = (Vec<(&'static str, &'a str)>, u64);

fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, kind, help): (&str, &str, &str),
    samples: impl IntoIterator<Item = Sample<'a>>,
) -> fmt::Result {
    let gauge = kind == "gauge";
    let kind = if gauge {
        MetricType::Gauge
    } else {
        MetricType::Counter
    };
    let mut family = encoder.encode_descriptor(name, help.trim(), None, kind)?;
    for (labels, value) in samples {
        let labels = labels.as_slice();
        let mut metric = family.encode_family(&labels)?;
        if gauge {
            metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        } else {
            metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
    }
    Ok(())
}

/// A value of the whole process.
fn single(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
    kind: MetricType,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    match kind {
        MetricType::Gauge => metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
        _ => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        process(encoder)?;
        let driver = self.0.as_ref().map_or("none", |watched| &watched.driver);
        encoder
            .encode_descriptor(
                "ringmill_build",
                "Version of the program and the driver that runs.",
                None,
                MetricType::Info,
            )?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("driver", driver)])?;
        let Some(watched) = &self.0 else {
            return Ok(());
        };
        services(encoder, watched)?;
        shards(encoder, watched)?;
        modules(encoder, watched)?;
        if let Some(watched) = &watched.capacity {
            capacity(encoder, watched)?;
        }
        if let Some(watched) = &watched.nat {
            nat(encoder, watched)?;
        }
        match &watched.load {
            Some(shared) => load(encoder, shared),
            None => Ok(()),
        }
    }
}

/// The process, by the names that every client library gives these figures.
fn process(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    encoder
        .encode_descriptor(
            "process_cpu_seconds",
            "CPU time spent in user and kernel mode, seconds.",
            None,
            MetricType::Counter,
        )?
        .encode_counter::<NoLabelSet, _, f64>(&ProcessTimes::own().total().as_secs_f64(), None)?;
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory, bytes.";
        let name = "process_resident_memory_bytes";
        single(encoder, name, help, bytes, MetricType::Gauge)?;
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        let open = files.count().saturating_sub(1) as u64;
        let help = "Open files, without those that only a ring holds.";
        single(encoder, "process_open_fds", help, open, MetricType::Gauge)?;
    }
    Ok(())
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn services(encoder: &mut DescriptorEncoder<'_>, watched: &Watched) -> fmt::Result {
    let numbers = shard_numbers(watched);
    let mut values = Vec::new();
    for (shard, metrics) in numbers.iter().zip(&watched.shards) {
        for (service, counters) in watched.services.iter().zip(&metrics.services) {
            let labels = vec![("service", service.as_str()), ("shard", shard.as_str())];
            values.push((labels, counters.snapshot().values()));
        }
    }
    for (index, (name, kind, help)) in ServiceSnapshot::FIELDS.iter().enumerate() {
        let samples = values
            .iter()
            .map(|(labels, values)| (labels.clone(), values[index]));
        let name = format!("ringmill_service_{name}");
        family(encoder, (&name, kind, help), samples)?;
    }
    Ok(())
}

fn shards(encoder: &mut DescriptorEncoder<'_>, watched: &Watched) -> fmt::Result {
    let numbers = shard_numbers(watched);
    let snapshots = watched.shards.iter().map(|m| m.shard.snapshot().values());
    let values: Vec<_> = numbers.iter().zip(snapshots).collect();
    for (index, (name, kind, help)) in ShardSnapshot::FIELDS.iter().enumerate() {
        let samples = values
            .iter()
            .map(|(shard, values)| (vec![("shard", shard.as_str())], values[index]));
        let name = format!("ringmill_shard_{name}");
        family(encoder, (&name, kind, help), samples)?;
    }
    Ok(())
}

/// The figures that a module keeps on each shard of each service that is of it.
fn modules(encoder: &mut DescriptorEncoder<'_>, watched: &Watched) -> fmt::Result {
    let guards = &watched.guards;
    module(
        encoder,
        watched,
        "guard",
        GuardSnapshot::FIELDS,
        guards,
        |guards| {
            let counters = guards.counters().iter();
            counters
                .map(|counters| counters.snapshot().values())
                .collect()
        },
    )?;
    let chats = &watched.chats;
    module(
        encoder,
        watched,
        "chat",
        ChatSnapshot::FIELDS,
        chats,
        |room| {
            let counters = room.counters();
            counters
                .map(|counters| counters.snapshot().values())
                .collect()
        },
    )?;
    let senders = &watched.senders;
    module(
        encoder,
        watched,
        "multicast",
        SenderSnapshot::FIELDS,
        senders,
        |senders| {
            let counters = senders.counters();
            counters
                .map(|counters| counters.snapshot().values())
                .collect()
        },
    )
}

/// Those of one module; `values_of` gives, for each shard, the values in the order of `fields`.
fn module<T>(
    encoder: &mut DescriptorEncoder<'_>,
    watched: &Watched,
    prefix: &str,
    fields: &[(&str, &str, &str)],
    of_services: &[Option<Arc<T>>],
    values_of: impl Fn(&T) -> Vec<Vec<u64>>,
) -> fmt::Result {
    let numbers = shard_numbers(watched);
    let mut values = Vec::new();
    for (service, counted) in watched.services.iter().zip(of_services) {
        let of_shards = counted.iter().flat_map(|counted| values_of(counted));
        for (shard, of_shard) in numbers.iter().zip(of_shards) {
            let labels = vec![("service", service.as_str()), ("shard", shard.as_str())];
            values.push((labels, of_shard));
        }
    }
    if values.is_empty() {
        return Ok(());
    }
    for (index, (name, kind, help)) in fields.iter().enumerate() {
        let samples = values
            .iter()
            .map(|(labels, values)| (labels.clone(), values[index]));
        let name = format!("ringmill_{prefix}_{name}");
        family(encoder, (&name, kind, help), samples)?;
    }
    Ok(())
}

/// A capacity server.
fn capacity(encoder: &mut DescriptorEncoder<'_>, server: &CapacityServer) -> fmt::Result {
    for (&figure, value) in ServerSnapshot::FIELDS
        .iter()
        .zip(server.counters().values())
    {
        let (name, kind, help) = figure;
        let name = format!("ringmill_capacity_{name}");
        family(encoder, (&name, kind, help), [(Vec::new(), value)])?;
    }
    Ok(())
}

/// A NAT: its own counters, what the impairment of each direction did, and each destination.
fn nat(encoder: &mut DescriptorEncoder<'_>, nat: &Nat) -> fmt::Result {
    let info = nat.info(monotonic_now());
    for (&figure, value) in NatSnapshot::FIELDS.iter().zip(info.counters.values()) {
        let (name, kind, help) = figure;
        let name = format!("ringmill_nat_{name}");
        family(encoder, (&name, kind, help), [(Vec::new(), value)])?;
    }
    let directions = [("forward", &info.forward), ("backward", &info.backward)];
    let values = directions.map(|(direction, impaired)| (direction, impaired.values()));
    for (index, (name, kind, help)) in ImpairmentSnapshot::FIELDS.iter().enumerate() {
        let samples = values
            .iter()
            .map(|(direction, values)| (vec![("direction", *direction)], values[index]));
        let name = format!("ringmill_nat_impairment_{name}");
        family(encoder, (&name, kind, help), samples)?;
    }
    type Figure = (
        &'static str,
        &'static str,
        &'static str,
        fn(&DestinationInfo) -> u64,
    );
    const FIGURES: [Figure; 6] = [
        (
            "entries",
            "gauge",
            "Entries that use the destination.",
            |next| next.totals.entries,
        ),
        (
            "usable",
            "gauge",
            "1 while it is in use, 0 while it is silent.",
            |next| u64::from(next.state.is_usable()),
        ),
        (
            "forward_datagrams",
            "counter",
            "Datagrams sent to it.",
            |next| next.totals.forward_datagrams,
        ),
        ("forward_bytes", "counter", "Bytes sent to it.", |next| {
            next.totals.forward_bytes
        }),
        (
            "backward_datagrams",
            "counter",
            "Datagrams passed back.",
            |next| next.totals.backward_datagrams,
        ),
        ("backward_bytes", "counter", "Bytes passed back.", |next| {
            next.totals.backward_bytes
        }),
    ];
    for (name, kind, help, value) in FIGURES {
        let listed = info.destinations.iter();
        let samples = listed.map(|next| (vec![("destination", next.name.as_str())], value(next)));
        let name = format!("ringmill_nat_destination_{name}");
        family(encoder, (&name, kind, help), samples)?;
    }
    Ok(())
}

fn load(encoder: &mut DescriptorEncoder<'_>, shared: &[Arc<Shared>]) -> fmt::Result {
    let mut sum = Published::new();
    for shard in shared {
        sum.add(&shard.read());
    }
    let tally = &sum.tally;
    let figures = [
        ("sent", tally.sent, "Messages sent in the measured time."),
        (
            "answered",
            tally.answered,
            "Messages answered in the measured time.",
        ),
        ("lost", tally.lost, "Messages without an answer in time."),
        (
            "wrong_bytes",
            tally.wrong_bytes,
            "Bytes that came back different.",
        ),
        ("errors", sum.failures.values().sum(), "Errors of any kind."),
    ];
    for (name, value, help) in figures {
        let name = format!("ringmill_load_{name}");
        single(encoder, &name, help, value, MetricType::Counter)?;
    }
    Ok(())
}

fn shard_numbers(watched: &Watched) -> Vec<String> {
    let numbers = 0..watched.shards.len();
    numbers.map(|shard| shard.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown_once_for_each_service_and_shard() {
        let guards = Guards::new(Default::default(), Arc::default(), 1);
        let watched = Watched {
            services: vec!["front".into()],
            shards: Vec::new(),
            driver: "uring".into(),
            guards: vec![Some(Arc::new(guards))],
            load: Some(Arc::new([Shared::new()])),
            ..Watched::default()
        };
        let text = render(Some(watched)).unwrap();
        assert!(text.ends_with("# EOF\n"), "{text}");
        for expected in [
            "ringmill_build_info{version=",
            "process_cpu_seconds_total ",
            "gauge\nprocess_resident_memory_bytes ",
            "# TYPE ringmill_service_received_bytes counter",
            "# TYPE ringmill_service_open gauge",
            "# TYPE ringmill_shard_turns counter",
            "ringmill_load_answered_total 0",
        ] {
            assert_eq!(text.matches(expected).count(), 1, "{expected} in\n{text}");
        }
        // Without a shard there is no guard to show.
        assert!(!text.contains("ringmill_guard_over_rate_total{"), "{text}");
    }

    #[test]
    fn only_get_and_only_metrics() {
        let current = Current::default();
        for (method, path, status) in [
            (Method::GET, "/metrics", 200),
            (Method::HEAD, "/metrics", 405),
            (Method::POST, "/metrics", 405),
            (Method::GET, "/", 404),
            (Method::GET, "/metrics/", 404),
            (Method::POST, "/x", 404),
        ] {
            let answer = answer(&method, path, &current);
            assert_eq!(answer.status(), status, "{method} {path}");
        }
    }
}
