//! A server's run: from options to an engine with the capacity server on it, what is printed, the
//! recordings and the statistics file. All of it on the control thread, which the tests never wait
//! for: what it cannot take in time is dropped and counted.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ringmill_engine::{Address, Engine, Limits, SocketBufferSizes};
use ringmill_protocols::capacity::admission::Admission;
use ringmill_protocols::capacity::event::{End, Warning};
use ringmill_protocols::capacity::intervals::{InterfaceRate, Interval};
use ringmill_protocols::capacity::keys::KeyRing;
use ringmill_protocols::capacity::parameters::{Direction, ServerLimits, TestParameters};
use ringmill_protocols::capacity::pdu::{Setup, SetupCode, Version};
use ringmill_protocols::capacity::server::{
    About, CapacityServer, Listener, Outlets, RecordBatch, ServerEvent, Settings, TestId, WallClock,
};
use ringmill_protocols::capacity::setup::ServerSettings;
use ringmill_protocols::capacity::time::Instants;

use super::console::{self, DebugEnd, Prefix, Show, address};
use super::json::is_ipv6;
use super::log::Output;
use super::metadata::{self, Named};
use super::options::{Family, Host, Options, RowChoice};
use super::stats_file::{self, Periods, SAMPLE_INTERVAL, StatsFile};
use super::status::{self, Status};
use super::{daemon, engine_args};
use crate::capacity::recording;
use crate::capacity::session::{self, instants_now};
use crate::launch;

/// Events that wait for the control thread: those of a second with some thousand tests.
const EVENTS_MAX: usize = 65_536;
/// Batches of records that wait for the disk.
const RECORD_BATCHES_MAX: usize = 1024;
/// Batches that are written before events are looked at again.
const RECORD_BATCHES_AT_ONCE: usize = 64;
/// How often the control thread looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The same while there is no test.
const IDLE_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The first number of a test's connection: console and control socket come before.
const FIRST_CONNECTION: usize = 2;
/// The number of the control socket.
const CONTROL: usize = 1;

/// Serves until a signal, or one test with `-1`. Gives the exit status.
pub(super) fn run(mut options: Options, keys: KeyRing, ended: &Arc<AtomicBool>) -> u8 {
    let output = if options.daemon_child {
        daemon::settle(&mut options)
    } else {
        Ok(Output::Standard)
    };
    let mut output = match output {
        Ok(output) => output,
        // There is nobody to tell.
        Err(_) => return status::INITIALISATION,
    };
    output.write(&console::banner(&options), instants_now().wall);
    match serve(&options, keys, ended, &mut output) {
        Ok(status) => status,
        Err(error) => {
            output.write(&format!("ERROR: {error:#}\n"), instants_now().wall);
            status::INITIALISATION
        }
    }
}

fn serve(
    options: &Options,
    keys: KeyRing,
    ended: &Arc<AtomicBool>,
    output: &mut Output,
) -> Result<u8> {
    let (addresses, host_address) = addresses(options)?;
    let start = instants_now();
    let clock = Arc::new(WallClock::new(start.now, start.wall.unix_nanos()));
    let (events, events_out) = sync_channel(EVENTS_MAX);
    let (records, records_out) = sync_channel(RECORD_BATCHES_MAX);
    let outlets = Outlets {
        events,
        records: options.record.is_some().then_some(records),
    };
    let settings = settings(options, keys, addresses.len(), Arc::clone(&clock), outlets);
    let args = engine_args(options);
    let placement = launch::place(&args, None, false)?;
    let shards = placement.plan.shards.len() as u16;
    let server = CapacityServer::new(settings, shards);
    let mut limits = CapacityServer::limits(Limits {
        max_connections: placement.connections_max,
        ..Limits::default()
    });
    if let Some(bytes) = options.socket_buffer_bytes {
        limits.datagram_socket_buffers = SocketBufferSizes::both(bytes as usize);
    }
    let bound = addresses
        .iter()
        .fold(server.service("capacity"), |service, address| {
            service.bind(*address)
        });
    let mut engine = launch::builder(&args, limits, &placement)
        .service(bound)
        .start()?;
    let stats = options
        .stats_file
        .as_ref()
        .map(|_| stats(options, &server, &host_address, start));
    let mut running = Running {
        options,
        output,
        stats: stats.transpose()?,
        server,
        control: addresses,
        now: start,
        status: Status::default(),
        tests: HashMap::new(),
        numbers: BTreeMap::new(),
        upstream_mbps: 0,
        downstream_mbps: 0,
        files: HashMap::new(),
        over: false,
    };
    running.announce(&engine);
    let mut sample_due = start.now;
    while !ended.load(Ordering::Relaxed) && !running.over {
        let now = instants_now();
        running.now = now;
        clock.set(now.now, now.wall.unix_nanos());
        running.take(&events_out, &records_out);
        if now.now >= sample_due {
            sample_due = now.now + SAMPLE_INTERVAL.as_nanos() as u64;
            running.look(now);
        }
        if engine.has_ended() {
            engine.join()?;
            bail!("a shard has ended");
        }
        std::thread::park_timeout(if running.tests.is_empty() {
            IDLE_LOOK_INTERVAL
        } else {
            LOOK_INTERVAL
        });
    }
    let status = running.status.value();
    let over = running.over;
    engine.stop_now();
    engine.join()?;
    running.take(&events_out, &records_out);
    running.close_files();
    Ok(if over { status } else { status::UNSPECIFIED })
}

/// Where to serve, and the text of the address that was chosen.
fn addresses(options: &Options) -> Result<(Vec<SocketAddr>, String)> {
    let any = Host {
        name: String::new(),
        port: options.control_port,
    };
    let host = options.hosts.first().unwrap_or(&any);
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    );
    let fits = |address: &IpAddr| match options.family {
        Some(Family::V4) => address.is_ipv4(),
        Some(Family::V6) => address.is_ipv6(),
        None => true,
    };
    if host.name.is_empty() {
        let here = |address: &IpAddr| UdpSocket::bind((*address, 0)).is_ok();
        let both = [v4, v6].into_iter().filter(fits).filter(here);
        let both: Vec<_> = both
            .map(|address| SocketAddr::new(address, host.port))
            .collect();
        if both.is_empty() {
            bail!("this host has no address of the family that was asked for");
        }
        return Ok((both, String::new()));
    }
    let found = (host.name.as_str(), host.port).to_socket_addrs();
    let mut found = found.with_context(|| format!("cannot resolve '{}'", host.name))?;
    let address = found.find(|address| fits(&address.ip()));
    let address =
        address.with_context(|| format!("'{}' has no address of the family", host.name))?;
    Ok((vec![address], console::host(address)))
}

fn settings(
    options: &Options,
    keys: KeyRing,
    listeners: usize,
    clock: Arc<WallClock>,
    outlets: Outlets,
) -> Settings {
    let setup = ServerSettings {
        keys,
        auth_optional: options.auth_optional,
        jumbo: options.jumbo,
        traditional: options.traditional,
        admission: Admission::limited(options.bandwidth_mbps),
        fill_check_sum: options.checksum,
        ..ServerSettings::default()
    };
    Settings {
        limits: ServerLimits {
            test_time_max_s: options.test_time_s,
            dscp_ecn_max: options.dscp_ecn,
            row_max: options.row.map_or(u16::MAX, |RowChoice { row, .. }| row),
            random_payload: options.random_payload,
            extended_rows: false,
        },
        test_ports: options.test_ports.map(|(low, high)| low..=high),
        rate_limit: options.rate_limit,
        keep_numbers: options.keep_numbers,
        without_gso: options.no_gso,
        pacing: options.pacing,
        trial_events: options.debug,
        seed: session::random(),
        ..Settings::new(vec![Listener { setup }; listeners], clock, outlets)
    }
}

fn stats(
    options: &Options,
    server: &CapacityServer,
    host_address: &str,
    now: Instants,
) -> Result<StatsFile> {
    let host = options.hosts.first();
    let about = stats_file::About {
        host_name: host.map_or_else(String::new, |host| host.name.clone()),
        host_address: host_address.to_owned(),
        control_port: host.map_or(options.control_port, |host| host.port),
        jumbo: options.jumbo,
        traditional: options.traditional,
        gso: !options.no_gso,
        tests_max: server.settings().tests_max,
        bandwidth_mbps: options.bandwidth_mbps,
    };
    let spread = options
        .stats_period
        .saturating_sub(options.stats_record)
        .as_secs();
    let periods = Periods {
        record: options.stats_record,
        file: options.stats_period,
        first_earlier: Duration::from_secs(session::random() % (spread + 1)),
    };
    let pattern = options.stats_file.clone().unwrap_or_default();
    StatsFile::open(&pattern, about, periods, now)
        .map_err(|(path, error)| anyhow::anyhow!("cannot write {}: {error}", path.display()))
}

/// What is known of one test.
struct Test {
    number: usize,
    booked: Option<(Direction, u16)>,
    parameters: Option<TestParameters>,
    warned_limit: bool,
}

struct Running<'a> {
    options: &'a Options,
    output: &'a mut Output,
    stats: Option<StatsFile>,
    server: CapacityServer,
    /// The control addresses, in the order of the listeners.
    control: Vec<SocketAddr>,
    now: Instants,
    status: Status,
    tests: HashMap<TestId, Test>,
    /// Numbers in use: the lowest free one is next, as in the original's table.
    numbers: BTreeMap<usize, TestId>,
    upstream_mbps: u32,
    downstream_mbps: u32,
    files: HashMap<TestId, BufWriter<File>>,
    /// One test has ended, and no more are wanted.
    over: bool,
}

impl Running<'_> {
    fn print(&mut self, text: &str) {
        self.output.write(text, self.now.wall);
    }

    fn verbose(&mut self, text: impl FnOnce() -> String) {
        if self.options.verbose {
            let text = text();
            self.print(&text);
        }
    }

    fn announce(&mut self, engine: &Engine) {
        let note = engine.driver_note().map(str::to_owned);
        for bound in engine.addresses() {
            if let Address::Ip(bound) = bound.address {
                self.verbose(|| {
                    format!("[{CONTROL}]Awaiting setup requests on {}\n", address(bound))
                });
            }
        }
        if let Some(note) = note {
            self.verbose(|| format!("[0]{note}\n"));
        }
    }

    fn take(&mut self, events: &Receiver<ServerEvent>, records: &Receiver<RecordBatch>) {
        loop {
            while let Ok(event) = events.try_recv() {
                self.event(event);
            }
            let mut batches = 0;
            while batches < RECORD_BATCHES_AT_ONCE
                && let Ok(batch) = records.try_recv()
            {
                self.record(&batch);
                batches += 1;
            }
            if batches < RECORD_BATCHES_AT_ONCE {
                return;
            }
        }
    }

    /// Statistics.
    fn look(&mut self, now: Instants) {
        let Some(stats) = &mut self.stats else {
            return;
        };
        let counters = self.server.counters();
        stats.sample(&counters);
        if now.now < stats.record_due() {
            return;
        }
        let peaks = self.server.take_peaks();
        if let Err((path, error)) = stats.record(&counters, &peaks, now) {
            self.print(&format!("FOPEN ERROR: <{}> {error}\n", path.display()));
        }
    }

    /// The number of a test, and a new one for a test that is not known.
    fn number(&mut self, about: &About) -> usize {
        if let Some(test) = self.tests.get(&about.test) {
            return test.number;
        }
        let mut number = FIRST_CONNECTION;
        for used in self.numbers.keys() {
            if *used != number {
                break;
            }
            number += 1;
        }
        self.numbers.insert(number, about.test);
        let test = Test {
            number,
            booked: None,
            parameters: None,
            warned_limit: false,
        };
        self.tests.insert(about.test, test);
        number
    }

    fn event(&mut self, event: ServerEvent) {
        match event {
            ServerEvent::Rejected {
                peer,
                request,
                code,
                ..
            } => {
                let text = rejection(&request, code, self.options);
                self.print(&format!("ERROR: {text} {}\n", address(peer)));
            }
            ServerEvent::Accepted(about) => self.accepted(&about),
            ServerEvent::ActivationRefused { about, peer, error } => {
                let number = self.number(&about);
                let text = match error {
                    Some(error) => error.to_string(),
                    None => "it comes from another host than the setup request".into(),
                };
                if !self.options.quiet_control {
                    self.print(&format!(
                        "[{number}]ERROR: Test activation request refused: {text}: from {}\n",
                        address(peer)
                    ));
                }
            }
            ServerEvent::Activated {
                about,
                peer,
                parameters,
            } => {
                let number = self.number(&about);
                if let Some(test) = self.tests.get_mut(&about.test) {
                    test.parameters = Some(parameters);
                }
                let (named, local) = (named(&about), address(about.local));
                let peer = address(peer);
                self.verbose(|| {
                    format!(
                        "[{number}]Test activation request {named} received from {peer}\n[{number}]\
                         Test activation response {named} sent from {local} to {peer}\n"
                    )
                });
            }
            ServerEvent::NotActivated { about, evicted } => {
                let why = if evicted {
                    ": it made room for another"
                } else {
                    ""
                };
                self.gone(&about, why);
            }
            ServerEvent::Warning { about, warning } => self.warning(&about, warning),
            ServerEvent::NotSegmented { about } => {
                let number = self.number(&about);
                let peer = address(about.peer);
                self.print(&format!(
                    "[{number}]WARNING: Datagrams larger than the path's MTU take no segmented \
                     sends: one by one from now on, slower; use -j on both ends or raise the MTU \
                     [Client {peer}]\n"
                ));
            }
            ServerEvent::BusyPacing { shard, late } if self.options.verbose => {
                self.print(&format!(
                    "Timers of shard {shard} fire {} us late: it does not sleep while a test sends\n",
                    late / 1000
                ));
            }
            ServerEvent::BusyPacing { .. } => {}
            ServerEvent::Trial { about, report } => {
                let number = self.number(&about);
                let Some(row) = report.row else {
                    return;
                };
                let show = self.show(about.test);
                let prefix = Prefix(Some(number));
                self.limit(&about);
                self.print(&console::trial(prefix, &report, show, DebugEnd::Row(row)));
            }
            ServerEvent::SubInterval {
                about,
                sub_interval,
            } => {
                if self.options.verbose && !self.options.summary_only {
                    let number = self.number(&about);
                    let mut interval = Interval::default();
                    interval.add(&sub_interval, is_ipv6(about.peer));
                    let show = self.show(about.test);
                    let prefix = Prefix(Some(number));
                    self.print(&console::sub_interval(prefix, &interval, show));
                }
            }
            ServerEvent::Ended { about, end, .. } => {
                let number = self.number(&about);
                if end.is_complete() {
                    self.status.stopped();
                    self.verbose(|| format!("[{number}]Sending test stop\n"));
                }
                let why = match end {
                    End::Complete => String::new(),
                    _ => format!(": {end}"),
                };
                self.gone(&about, &why);
            }
        }
    }

    fn show(&self, test: TestId) -> Show {
        let parameters = self.tests.get(&test).and_then(|test| test.parameters);
        Show {
            loss_ratio: self.options.loss_ratio,
            ce: parameters.is_some_and(|parameters| parameters.ecn_ce_thresh > 0),
        }
    }

    fn accepted(&mut self, about: &About) {
        let number = self.number(about);
        let (request, named, peer) = (&about.request, named(about), address(about.peer));
        let local = address(about.local);
        let control = self.control.get(usize::from(about.listener));
        let control = control.copied().map_or_else(String::new, address);
        let mbps = request.bandwidth_mbps();
        if self.options.bandwidth_mbps > 0 && mbps > 0 {
            let direction = if request.max_bandwidth & Setup::UPSTREAM != 0 {
                self.upstream_mbps += u32::from(mbps);
                Direction::Upstream
            } else {
                self.downstream_mbps += u32::from(mbps);
                Direction::Downstream
            };
            if let Some(test) = self.tests.get_mut(&about.test) {
                test.booked = Some((direction, mbps));
            }
        }
        let (upstream, downstream) = (self.upstream_mbps, self.downstream_mbps);
        let booked = self
            .tests
            .get(&about.test)
            .is_some_and(|test| test.booked.is_some());
        self.verbose(|| {
            let (version, key) = (request.protocol_ver, request.auth.key_id);
            let booked = if booked {
                format!(
                    "[{number}]Bandwidth of {mbps} allocated (New USBW: {upstream}, DSBW: \
                     {downstream})\n"
                )
            } else {
                String::new()
            };
            let null = match request.protocol_ver {
                ..Version::WIRE_MAX => String::new(),
                _ => format!("[{number}]Null request {named} sent from {local} to {peer}\n"),
            };
            format!(
                "[{CONTROL}]Setup request {}, Ver: {version}, MaxBW: {mbps}, KeyID: {key}) received \
                 from {peer}\n[{number}]Connection created and assigned {local}\n{booked}[{CONTROL}]\
                 Setup response {named} sent from {control} to {peer}\n{null}",
                named.trim_end_matches(')')
            )
        });
    }

    fn warning(&mut self, about: &About, warning: Warning) {
        // As there: a server speaks of its clients' troubles only when asked to.
        if !self.options.verbose
            || (matches!(warning, Warning::BadData(_)) && self.options.quiet_data)
        {
            return;
        }
        self.status.set(warning.code());
        let number = self.number(about);
        self.print(&console::warning(Prefix(Some(number)), warning, None));
    }

    /// Says once that a test is held to its bandwidth.
    fn limit(&mut self, about: &About) {
        let Some(test) = self.tests.get_mut(&about.test) else {
            return;
        };
        let mbps = about.request.bandwidth_mbps();
        if !self.options.rate_limit || mbps == 0 || std::mem::replace(&mut test.warned_limit, true)
        {
            return;
        }
        let number = test.number;
        self.print(&format!("[{number}]RATE_LIMITING: at most {mbps} Mbps\n"));
    }

    /// A test is over, or never was.
    fn gone(&mut self, about: &About, why: &str) {
        let number = self.number(about);
        let test = self.tests.remove(&about.test);
        self.numbers.remove(&number);
        match test.and_then(|test| test.booked) {
            Some((Direction::Upstream, mbps)) => self.upstream_mbps -= u32::from(mbps),
            Some((Direction::Downstream, mbps)) => self.downstream_mbps -= u32::from(mbps),
            None => {}
        }
        let totals = if self.options.bandwidth_mbps > 0 {
            let (upstream, downstream) = (self.upstream_mbps, self.downstream_mbps);
            format!(" (New USBW: {upstream}, DSBW: {downstream})")
        } else {
            String::new()
        };
        self.verbose(|| format!("[{number}]End time reached{totals}{why}\n"));
        if let Some(mut file) = self.files.remove(&about.test)
            && let Err(error) = file.flush()
        {
            self.print(&format!("WRITE ERROR: {error}\n"));
        }
        if self.options.one_test {
            self.over = true;
        }
    }

    fn record(&mut self, batch: &RecordBatch) {
        let about = &batch.about;
        let ce = self.show(about.test).ce;
        let mut text = String::new();
        for row in &batch.rows {
            if row.rtt_ms.is_some() || self.options.record_all {
                recording::row(&mut text, row, InterfaceRate::default(), ce);
            }
        }
        if !self.files.contains_key(&about.test) {
            // What comes of a test that is over was late for its file.
            if !self.tests.contains_key(&about.test) {
                return;
            }
            match self.open(about) {
                Ok(file) => {
                    self.files.insert(about.test, file);
                }
                Err((name, error)) => {
                    self.print(&format!("FOPEN ERROR: <{name}> {error}\n"));
                    return;
                }
            }
        }
        if let Some(file) = self.files.get_mut(&about.test)
            && let Err(error) = file.write_all(text.as_bytes())
        {
            self.print(&format!("WRITE ERROR: {error}\n"));
        }
    }

    fn open(&self, about: &About) -> Result<BufWriter<File>, (String, io::Error)> {
        let pattern = self.options.record.clone().unwrap_or_default();
        let host = self.options.hosts.first();
        let name = metadata::file_name(
            &pattern,
            &Named {
                connection: about.request.mc_index,
                connections: about.request.mc_count,
                ident: about.request.mc_ident,
                local: about.local,
                remote: about.peer,
                server: true,
                host: host.map(|host| host.name.as_str()),
                control_port: host.map_or(self.options.control_port, |host| host.port),
                interface: "",
                at: self.now.wall,
            },
        );
        let opened = File::create(&name).and_then(|mut file| {
            writeln!(file, "{}", recording::HEADER)?;
            Ok(BufWriter::new(file))
        });
        opened.map_err(|error| (name.to_string_lossy().into_owned(), error))
    }

    fn close_files(&mut self) {
        for (_, mut file) in std::mem::take(&mut self.files) {
            if let Err(error) = file.flush() {
                self.print(&format!("WRITE ERROR: {error}\n"));
            }
        }
    }
}

/// Index and identity of a connection.
fn named(about: &About) -> String {
    format!("({}.{})", about.request.mc_index, about.request.mc_ident)
}

/// Why a setup request was refused.
fn rejection(request: &Setup, code: SetupCode, options: &Options) -> String {
    let (index, count, ident) = (request.mc_index, request.mc_count, request.mc_ident);
    let text = match code {
        SetupCode::Version => format!("Version {} is not spoken", request.protocol_ver),
        SetupCode::Connections => format!("Connection {index} of {count} cannot be"),
        SetupCode::Jumbo => "Jumbo setting (-j) differs".into(),
        SetupCode::Traditional => "Traditional MTU setting (-T) differs".into(),
        SetupCode::BandwidthMissing => "Required bandwidth is not given".into(),
        SetupCode::BandwidthUnavailable => format!(
            "Required bandwidth ({}) of ({index}.{ident}) exceeds what is left of {}",
            request.bandwidth_mbps(),
            options.bandwidth_mbps
        ),
        SetupCode::AuthenticationNotConfigured => "Authentication is not configured".into(),
        SetupCode::AuthenticationRequired => "Authentication is missing".into(),
        SetupCode::AuthenticationMode => {
            format!(
                "Authentication mode {} is not known",
                request.auth.auth_mode
            )
        }
        SetupCode::AuthenticationFailed => "Authentication fails".into(),
        SetupCode::AuthenticationTime => "Authentication time is outside the window".into(),
        SetupCode::NoConnection => "No connection can be opened".into(),
        SetupCode::Accepted => "Nothing is wrong".into(),
    };
    format!("{text}: setup request from")
}
