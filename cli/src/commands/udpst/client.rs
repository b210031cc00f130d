//! A client's run: from options to a test plan, and what is printed while it runs.

use std::cell::RefCell;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use ringmill_protocols::capacity::CONTROL_PORT;
use ringmill_protocols::capacity::auth::AuthError;
use ringmill_protocols::capacity::client::{
    Activated, ClientEvent, ClientSettings, DatagramSizes, Failure, Happened, Recording,
};
use ringmill_protocols::capacity::event::{End, TrialReport, Warning};
use ringmill_protocols::capacity::intervals::Interval;
use ringmill_protocols::capacity::keys::SharedKey;
use ringmill_protocols::capacity::parameters::Direction;
use ringmill_protocols::capacity::pdu::SetupCode;
use ringmill_protocols::capacity::rates::{HEADERS_BYTES_V4, HEADERS_BYTES_V6};
use ringmill_protocols::capacity::time::WallTime;

use super::console::{self, DebugEnd, Prefix, Show, address};
use super::engine_args;
use super::json::{First, Run, is_ipv6};
use super::log::Output;
use super::metadata::{self, Named};
use super::options::{Family, Host, Options};
use super::status::{self, Status};
use crate::capacity::servers;
use crate::capacity::session::{self, RecordingName, instants_now};
use crate::capacity::{FrontEnd, RecordingPlan, Said, Server, TestPlan, Verdict};

/// Runs a test and gives the exit status.
pub(super) fn run(
    options: &Options,
    direction: Direction,
    key: Option<(u8, SharedKey)>,
    ended: &Arc<AtomicBool>,
) -> u8 {
    let mut front = Front::new(options);
    if options.json.is_none() {
        front.print(&console::banner(options));
    }
    match run_test(options, direction, key, ended, &mut front) {
        Ok(status) => status,
        Err(error) => {
            front.message(&format!("ERROR: {error:#}\n"));
            match options.json {
                // Nothing was measured, so there is no better status than that of a bad end.
                Some(_) => {
                    let status = status::UNSPECIFIED;
                    front.print_json(&[], None, instants_now().wall, status);
                    status
                }
                None => status::INITIALISATION,
            }
        }
    }
}

fn run_test(
    options: &Options,
    direction: Direction,
    key: Option<(u8, SharedKey)>,
    ended: &Arc<AtomicBool>,
    front: &mut Front<'_>,
) -> Result<u8> {
    front.servers = resolve(&options.hosts, options.family)?;
    let plan = plan(options, direction, key, &front.servers);
    front.ident = plan.settings.ident;
    let interrupted = || ended.load(Ordering::Relaxed);
    let engine = engine_args(options);
    let outcome = session::run(&[plan], &engine, &interrupted, front)?;
    let test = outcome.tests.first().context("a test has no outcome")?;
    if test.records_dropped > 0 {
        let dropped = test.records_dropped;
        eprintln!("udpst: {dropped} rows of the recording came faster than they could be written");
    }
    let complete = match test.verdict {
        // As there: who ends it by a signal sees nothing of it.
        Verdict::Interrupted => return Ok(status::UNSPECIFIED),
        Verdict::Complete => !test.intervals.is_empty(),
        Verdict::TooFewConnections => false,
    };
    let status = front.status.value();
    if options.json.is_some() {
        let results = complete.then_some(&test.results);
        front.print_json(&test.intervals, results, test.ended, status);
    } else if complete {
        let bimodal = options.first_mode > 0;
        let prefix = front.prefix(0);
        let text = console::results(prefix, direction, &test.results, bimodal, front.show);
        front.print(&text);
    }
    Ok(status)
}

/// The addresses of servers.
fn resolve(hosts: &[Host], family: Option<Family>) -> Result<Vec<Server>> {
    let texts: Vec<String> = hosts
        .iter()
        .map(|host| match host.name.contains(':') {
            true => format!("[{}]:{}", host.name, host.port),
            false => format!("{}:{}", host.name, host.port),
        })
        .collect();
    let family = family.map(|family| match family {
        Family::V4 => servers::Family::V4,
        Family::V6 => servers::Family::V6,
    });
    let texts = texts.iter().map(String::as_str);
    Ok(servers::resolve(texts, Some(CONTROL_PORT), family)?)
}

fn plan(
    options: &Options,
    direction: Direction,
    key: Option<(u8, SharedKey)>,
    servers: &[Server],
) -> TestPlan {
    let addresses = servers.iter().map(|server| server.address).collect();
    let clock = instants_now();
    let recording = options.record.as_ref().map(|_| match options.record_all {
        true => Recording::All,
        false => Recording::RoundTrips,
    });
    let settings = ClientSettings {
        connections: options.connections_max,
        // 1 to 65535.
        ident: (session::random() % u64::from(u16::MAX)) as u16 + 1,
        bandwidth_mbps: (options.bandwidth_mbps > 0).then_some(options.bandwidth_mbps),
        sizes: DatagramSizes {
            jumbo: options.jumbo,
            traditional: options.traditional,
        },
        key,
        check_sum: options.checksum,
        keep_numbers: options.keep_numbers,
        gso: !options.no_gso,
        pacing: options.pacing,
        recording,
        seed: session::random(),
        ..ClientSettings::new(addresses, options.parameters(direction), clock)
    };
    TestPlan {
        servers: servers.to_vec(),
        settings,
        connections_min: options.connections_min,
        first_mode: options.first_mode,
        interface: (!options.interface.is_empty()).then(|| options.interface.clone()),
        by_interface: options.by_interface,
        recording: options.record.clone().map(|pattern| {
            let interface = options.interface.clone();
            RecordingPlan {
                name: Box::new(move |of| file_name(&pattern, &interface, of).into()),
            }
        }),
        socket_buffer_bytes: options.socket_buffer_bytes.map(|bytes| bytes as usize),
    }
}

fn file_name(pattern: &OsString, interface: &str, of: &RecordingName<'_>) -> OsString {
    let settings = &of.plan.settings;
    let server = usize::from(of.connection) % of.plan.servers.len();
    let server = &of.plan.servers[server];
    metadata::file_name(
        pattern,
        &Named {
            connection: of.connection,
            connections: settings.connections,
            ident: settings.ident,
            local: of.activated.local,
            remote: of.activated.peer,
            server: false,
            host: Some(&server.name),
            control_port: server.address.port(),
            interface,
            at: instants_now().wall,
        },
    )
}

/// Prints what a test says of itself.
struct Front<'a> {
    options: &'a Options,
    output: RefCell<Output>,
    servers: Vec<Server>,
    ident: u16,
    status: Status,
    show: Show,
    first: Option<First>,
    bleached: bool,
    /// The test address of each connection, as it becomes known.
    peers: Vec<Option<SocketAddr>>,
    /// Least one-way delay and round-trip time that were told, of each connection.
    minima: Vec<Option<(i64, u32)>>,
    /// The last message and the one before, for JSON.
    messages: [String; 2],
}

impl<'a> Front<'a> {
    fn new(options: &'a Options) -> Self {
        let connections = usize::from(options.connections_max);
        Self {
            options,
            output: RefCell::new(Output::Standard),
            servers: Vec::new(),
            ident: 0,
            status: Status::default(),
            show: Show {
                loss_ratio: options.loss_ratio,
                ce: false,
            },
            first: None,
            bleached: false,
            peers: vec![None; connections],
            minima: vec![None; connections],
            messages: Default::default(),
        }
    }

    fn print(&self, text: &str) {
        self.output.borrow_mut().write(text, WallTime::NONE);
    }

    fn verbose(&self, text: impl FnOnce() -> String) {
        if self.options.verbose {
            self.print(&text());
        }
    }

    /// A line that JSON tells of, too: it keeps the last two, in one line each.
    fn message(&mut self, text: &str) {
        if self.options.json.is_none() {
            self.print(text);
            return;
        }
        let line = text.trim_end_matches('\n').replace('"', "'");
        let [last, before] = &mut self.messages;
        if !last.is_empty() {
            *before = std::mem::take(last);
        }
        *last = line;
    }

    fn print_json(
        &self,
        intervals: &[(Interval, WallTime)],
        results: Option<&ringmill_protocols::capacity::summary::Results>,
        ended: WallTime,
        status: u8,
    ) {
        let run = Run {
            options: self.options,
            servers: &self.servers,
            ident: self.ident,
            first: self.first,
            intervals,
            results,
            bleached: self.bleached,
            ended,
            status,
            messages: [&self.messages[0], &self.messages[1]],
        };
        match run.text(self.options.json.unwrap_or_default()) {
            Ok(text) => self.print(&text),
            Err(error) => eprintln!("udpst: {error}"),
        }
    }

    /// In front of a line of the verbose kind; 0 is all connections together.
    fn prefix(&self, number: usize) -> Prefix {
        Prefix(self.options.verbose.then_some(number))
    }

    fn server(&self, connection: u8) -> Option<SocketAddr> {
        let count = self.servers.len().max(1);
        let server = self.servers.get(usize::from(connection) % count);
        server.map(|server| server.address)
    }

    fn server_text(&self, connection: u8) -> String {
        self.server(connection).map_or_else(String::new, address)
    }

    fn event(&mut self, event: &ClientEvent) {
        let connection = event.connection;
        let number = usize::from(connection) + 1;
        let named = format!("({connection}.{})", self.ident);
        match &event.happened {
            Happened::SetupSent { repeats } => self.verbose(|| {
                let server = self.server_text(connection);
                format!(
                    "[{number}]Setup request {named} sent to {server}{}\n",
                    again(*repeats)
                )
            }),
            Happened::SetUp { test } => {
                self.peers[usize::from(connection)] = Some(*test);
                self.verbose(|| {
                    let server = self.server_text(connection);
                    format!("[{number}]Setup response {named} received from {server}\n")
                });
            }
            Happened::ActivationSent { repeats } => self.verbose(|| {
                let peer = self.peers[usize::from(connection)].map_or_else(String::new, address);
                let again = again(*repeats);
                format!("[{number}]Test activation request {named} sent to {peer}{again}\n")
            }),
            Happened::Activated(activated) => self.activated(event, activated, &named),
            Happened::FellBack { server } => self.verbose(|| {
                format!("[{number}]The server speaks version {server} only: going on in that\n")
            }),
            Happened::Trial(report) => self.trial(number, report),
            Happened::SubInterval(part) => {
                if self.options.verbose {
                    let ipv6 = self.first.is_some_and(|first| is_ipv6(first.peer));
                    let mut interval = Interval::default();
                    interval.add(part, ipv6);
                    self.minimum(number, part.clock_delta_min_ms, part.rtt_min_ms);
                    if !self.options.summary_only {
                        let line = console::sub_interval(self.prefix(number), &interval, self.show);
                        self.print(&line);
                    }
                }
            }
            Happened::Warning(warning) => self.warning(connection, *warning),
            Happened::BusyPacing { late } => self.verbose(|| {
                format!(
                    "Timers fire {} us late: this host does not sleep while a test sends\n",
                    late / 1000
                )
            }),
            Happened::GsoRefused => {
                let server = self.server_text(connection);
                self.message(&format!(
                    "{}WARNING: Datagrams larger than the path's MTU take no segmented sends: one \
                     by one from now on, slower; use -j on both ends or raise the MTU [Server \
                     {server}]\n",
                    self.prefix(number)
                ));
            }
            Happened::SocketError { errno } => {
                if self.options.socket_errors {
                    let error = std::io::Error::from_raw_os_error(*errno);
                    self.message(&format!("[{number}]SEND/RECV ERROR: {error}\n"));
                }
            }
            Happened::Failed(failure) => {
                if *failure != Failure::Ended {
                    self.status.set(failure.status());
                    let server = self.server_text(connection);
                    self.message(&failure_line(failure, &server, self.options));
                }
            }
            Happened::Ended(ended) => {
                if ended.end.is_complete() {
                    self.status.stopped();
                    self.verbose(|| format!("[{number}]Test stop received\n"));
                }
                self.verbose(|| {
                    let limited = match ended.limited_trials {
                        0 => String::new(),
                        trials => format!(
                            "; this host's sender was the limit in {trials} of {} trials",
                            ended.trials
                        ),
                    };
                    let why = match ended.end {
                        End::Complete => String::new(),
                        end => format!(": {end}"),
                    };
                    format!("[{number}]End time reached{why}{limited}\n")
                });
            }
        }
    }

    fn activated(&mut self, event: &ClientEvent, activated: &Activated, named: &str) {
        let number = usize::from(event.connection) + 1;
        let (local, peer) = (address(activated.local), address(activated.peer));
        self.verbose(|| {
            format!("[{number}]Test activation response {named} received from {peer} at {local}\n")
        });
        if self.first.is_some() {
            return;
        }
        let parameters = activated.parameters;
        self.show.ce = parameters.ecn_ce_thresh > 0;
        self.first = Some(First {
            local: activated.local,
            peer: activated.peer,
            parameters,
            at: event.at.wall,
        });
        if self.options.json.is_none() {
            let connections = self.options.connections_max;
            let prefix = self.prefix(number);
            let options = self.options;
            let text = console::test_header(prefix, &parameters, self.ident, connections, options);
            self.print(&text);
        }
    }

    fn trial(&self, number: usize, report: &TrialReport) {
        if !self.options.debug {
            return;
        }
        let ipv6 = self.first.is_some_and(|first| is_ipv6(first.peer));
        let headers = if ipv6 {
            HEADERS_BYTES_V6
        } else {
            HEADERS_BYTES_V4
        };
        let bytes =
            u64::from(report.trial.datagrams) * u64::from(headers) + u64::from(report.bytes);
        let mbps = match report.delta_us {
            0 => 0.0,
            delta_us => bytes as f64 * 8.0 / f64::from(delta_us),
        };
        let prefix = self.prefix(number);
        self.print(&console::trial(
            prefix,
            report,
            self.show,
            DebugEnd::Mbps(mbps),
        ));
    }

    /// New minima, told once in a sub-interval.
    fn minimum(&mut self, number: usize, one_way_ms: i64, round_trip_ms: Option<u32>) {
        let found = Some((one_way_ms, round_trip_ms.unwrap_or(0)));
        let known = &mut self.minima[number - 1];
        if *known != found {
            *known = found;
            let line = console::minimum(one_way_ms, round_trip_ms.unwrap_or(0));
            self.print(&format!("[{number}]{line}\n"));
        }
    }

    fn warning(&mut self, connection: u8, warning: Warning) {
        if matches!(warning, Warning::EcnBleached | Warning::EcnBleachedAtPeer) {
            self.bleached = true;
        }
        if matches!(warning, Warning::BadData(_)) && self.options.quiet_data {
            return;
        }
        self.status.set(warning.code());
        let prefix = self.prefix(usize::from(connection) + 1);
        let line = console::warning(prefix, warning, self.server(connection));
        self.message(&line);
    }
}

impl FrontEnd for Front<'_> {
    fn said(&mut self, said: &Said<'_>) {
        match said {
            Said::Note(note) => self.verbose(|| format!("[0]{note}\n")),
            Said::Event { event, .. } => self.event(event),
            Said::Interval { interval, .. } => {
                if self.options.json.is_none() && !self.options.summary_only {
                    let line = console::sub_interval(self.prefix(0), interval, self.show);
                    self.print(&line);
                }
            }
            // The original does not look.
            Said::HostLoses { .. } => {}
            Said::TooFew { .. } => {
                self.status.too_few();
                let least = self.options.connections_min;
                self.message(&format!(
                    "ERROR: Minimum required connections ({least}) unavailable\n"
                ));
            }
        }
    }
}

fn again(repeats: u32) -> String {
    match repeats {
        0 => String::new(),
        repeats => format!(" (repeat {repeats})"),
    }
}

/// Why a connection failed, with the server and what to do.
fn failure_line(failure: &Failure, server: &str, options: &Options) -> String {
    let offset = |offset: Option<i64>| {
        offset.map_or_else(String::new, |seconds| {
            format!(" (its clock is {seconds:+} s from ours)")
        })
    };
    let text = match failure {
        Failure::SetupTimeout | Failure::ActivationTimeout | Failure::Nonsense => {
            return format!("WARNING: Timeout awaiting response from server {server}\n");
        }
        Failure::Rejected {
            believed: false,
            code,
            ..
        } => {
            format!(
                "Answer not signed with our key, and it is a rejection (code {code}), from server"
            )
        }
        Failure::Rejected {
            code,
            server_version,
            clock_offset_s,
            ..
        } => match SetupCode::of(*code) {
            Some(SetupCode::Version) => {
                format!("Protocol version not accepted, {server_version} is spoken by server")
            }
            Some(SetupCode::Jumbo) => "Jumbo setting (-j) differs from that of server".into(),
            Some(SetupCode::Traditional) => {
                "Traditional MTU setting (-T) differs from that of server".into()
            }
            Some(SetupCode::AuthenticationNotConfigured) => {
                "Authentication (-a, -K) is not configured on server".into()
            }
            Some(SetupCode::AuthenticationRequired) => {
                "Authentication (-a, -K) is required by server".into()
            }
            Some(SetupCode::AuthenticationMode) => {
                "Authentication mode is not known to server".into()
            }
            Some(SetupCode::AuthenticationFailed) => {
                "Authentication key (-a, -K, -y) is not that of server".into()
            }
            Some(SetupCode::AuthenticationTime) => format!(
                "Authentication time is outside the window{} of server",
                offset(*clock_offset_s)
            ),
            Some(SetupCode::BandwidthMissing) => "Bandwidth (-B) is required by server".into(),
            Some(SetupCode::BandwidthUnavailable) => format!(
                "Bandwidth (-B {}) is more than is now available at server",
                options.bandwidth_mbps
            ),
            Some(SetupCode::Connections) => {
                "Number of connections (-C) is not accepted by server".into()
            }
            Some(SetupCode::NoConnection) => "No connection could be opened by server".into(),
            Some(SetupCode::Accepted) | None => {
                format!("Unknown code {code} in the setup response of server")
            }
        },
        Failure::SetupAuthentication(error) => authentication_line("setup", error),
        Failure::ActivationAuthentication(error) => authentication_line("test activation", error),
        Failure::ActivationRejected { code } => {
            format!("Test parameters are rejected (code {code}) by server")
        }
        Failure::Parameters(error) => format!("Test parameters are not as asked: {error}: server"),
        Failure::Socket { .. } | Failure::Ended => return format!("ERROR: {failure}\n"),
    };
    format!("ERROR: {text} {server}\n")
}

fn authentication_line(what: &str, error: &AuthError) -> String {
    match error {
        AuthError::Digest => format!("Authentication of the {what} response fails, from server"),
        AuthError::Time { offset_s } => format!(
            "Authentication time of the {what} response is outside the window ({offset_s:+} s), \
             from server"
        ),
    }
}
