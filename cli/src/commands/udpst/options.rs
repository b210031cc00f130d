//! The options of OB-UDPST 9.0.0: its letters, ranges and interactions, in its order, so that what
//! it accepts is accepted and what it refuses is refused. Beside them words of two dashes, for what
//! it decides when it is compiled and for where ringmill's shards run.
//!
//! Nothing is opened or resolved here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use ringmill_engine::topology::CpuList;
use ringmill_protocols::capacity::pacing::Pacing;
use ringmill_protocols::capacity::parameters::{
    Algorithm, Direction, HIGH_SPEED_DELTA_DEFAULT, LOW_THRESH_MS_DEFAULT, Rate,
    SEQ_ERR_THRESH_DEFAULT, SLOW_ADJ_THRESH_DEFAULT, SUB_INTERVAL_MS_DEFAULT, TEST_TIME_S_DEFAULT,
    TRIAL_INTERVAL_MS_DEFAULT, TestParameters, UPPER_THRESH_MS_DEFAULT,
};
use ringmill_protocols::capacity::rates::{ROW_LAST, Variant};
use ringmill_protocols::capacity::{CONNECTIONS_MAX, CONTROL_PORT};

use super::getopt::{self, Item, atoi, strtol};
use crate::args::{DriverArg, ShardsArg};

/// The letters, as `getopt` wants them.
const LETTERS: &str = "ud46C:x1evsf:jTDXSO:B:ri:oRa:y:K:m:G:nI:t:P:p:A:b:L:U:F:c:h:q:E:Ml:k:Z:?";
/// The words that take a value.
const WORDS_WITH_VALUE: [&str; 7] = [
    "pacing",
    "stats-record",
    "stats-file",
    "test-ports",
    "shards",
    "cpus",
    "driver",
];

/// Longest key.
const KEY_BYTES_MAX: usize = 64;
/// Longest name of an interface; what is longer is cut.
const INTERFACE_BYTES_MAX: usize = 16;
/// Most bandwidth that a client can ask for, in Mbit/s: the wire has 15 bits.
const CLIENT_BANDWIDTH_MBPS_MAX: i32 = 32_767;
/// Most bandwidth that a server can offer, in Mbit/s.
const SERVER_BANDWIDTH_MBPS_MAX: i32 = 100_000;
/// Longest test, in s.
const TEST_TIME_S_MAX: i32 = 3600;
/// Shortest sub-interval, in ms.
const SUB_INTERVAL_MS_MIN: i32 = 100;
/// Most sub-intervals of a test.
pub const SUB_INTERVALS_MAX: i32 = TEST_TIME_S_MAX * 1000 / SUB_INTERVAL_MS_MIN;
/// Size of the log at which it is started anew, in bytes.
const LOG_BYTES_DEFAULT: u64 = 1_000_000;
/// How often a server's statistics are summed up.
pub const STATS_RECORD_DEFAULT: Duration = Duration::from_secs(10);
/// How often they are written.
pub const STATS_FILE_DEFAULT: Duration = Duration::from_secs(300);

/// What the program is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A client that tests in this direction.
    Client(Direction),
    /// A server.
    Server,
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A server to test with, or the local address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address, as given; may be empty for any address.
    pub name: String,
    /// Control port.
    pub port: u16,
}

/// The form of JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JsonForm {
    /// Results and errors only.
    pub brief: bool,
    /// Indented; else on one line.
    pub formatted: bool,
}

/// The row of `-I`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowChoice {
    /// The row.
    pub row: u16,
    /// It is only where the search starts.
    pub start: bool,
}

/// The command line, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Client or server.
    pub mode: Mode,
    /// Servers of a client, or the local address of a server.
    pub hosts: Vec<Host>,
    /// `-p`: control port.
    pub control_port: u16,
    /// The last of `-4` and `-6`.
    pub family: Option<Family>,
    /// `-4` was given.
    pub ipv4_only: bool,
    /// `-6` was given.
    pub ipv6_only: bool,
    /// `-C`: connections that a test needs.
    pub connections_min: u8,
    /// `-C`: connections that are attempted.
    pub connections_max: u8,
    /// `-x`: daemon.
    pub daemon: bool,
    /// `-1`: end after one test.
    pub one_test: bool,
    /// `-e`: socket errors are shown.
    pub socket_errors: bool,
    /// `-v`.
    pub verbose: bool,
    /// `-s`.
    pub summary_only: bool,
    /// `-f`.
    pub json: Option<JsonForm>,
    /// Not `-j`: jumbo datagrams allowed.
    pub jumbo: bool,
    /// `-T`: packets of 1500 bytes.
    pub traditional: bool,
    /// `-D`.
    pub debug: bool,
    /// `-X`: random payload.
    pub random_payload: bool,
    /// `-S`: show the rate table only.
    pub show_rates: bool,
    /// `-O`: where load PDUs are recorded.
    pub record: Option<OsString>,
    /// `-O +`: all of them.
    pub record_all: bool,
    /// `-B`: bandwidth in Mbit/s, 0 for not given.
    pub bandwidth_mbps: u32,
    /// `-r`: ratio of loss instead of percentage delivered.
    pub loss_ratio: bool,
    /// `-i`: sub-intervals of the first mode, 0 for one mode.
    pub first_mode: u32,
    /// `-i -`: sub-intervals without rate adjustment.
    pub suppressed: u16,
    /// `-o`: one-way delay variation adjusts.
    pub one_way: bool,
    /// Not `-R`: reordering and duplicates are no errors.
    pub ignore_ooo_dup: bool,
    /// `-a`: key.
    pub key: Option<Vec<u8>>,
    /// `-y`: key id.
    pub key_id: u8,
    /// `-K`: key file.
    pub key_file: Option<PathBuf>,
    /// `-m`: octet of TOS or traffic class; of a server the largest.
    pub dscp_ecn: u8,
    /// `-G`: statistics file of a server.
    pub stats_file: Option<OsString>,
    /// `-n`: numbers of datagrams that were not sent are not used again.
    pub keep_numbers: bool,
    /// `-I`: row of a client, or the highest of a server.
    pub row: Option<RowChoice>,
    /// `-t`: seconds; of a server the most.
    pub test_time_s: u16,
    /// `-P`: sub-interval in ms.
    pub sub_interval_ms: u16,
    /// `-A`.
    pub algorithm: Algorithm,
    /// `-b`: socket buffers in bytes; without it, or with 0, the choice of this program.
    pub socket_buffer_bytes: Option<u32>,
    /// `-L`: low threshold in ms.
    pub low_thresh_ms: u16,
    /// `-U`: upper threshold in ms.
    pub upper_thresh_ms: u16,
    /// `-F`: trial interval in ms.
    pub trial_interval_ms: u16,
    /// `-c`: congestion that ends fast steps.
    pub slow_adj_thresh: u16,
    /// `-h`: rows of a fast step.
    pub high_speed_delta: u8,
    /// `-q`: sequence errors tolerated.
    pub seq_err_thresh: u16,
    /// `-E`: interface; empty for none.
    pub interface: String,
    /// `-M`: its rate decides the maximum.
    pub by_interface: bool,
    /// `-l`: log file.
    pub log_file: Option<PathBuf>,
    /// `-k`: its largest size in bytes.
    pub log_bytes_max: u64,
    /// `-Z`: threshold of ECN CE, 0 for off.
    pub ecn_ce_thresh: u8,

    /// `--checksum`: fill the checksums of headers.
    pub checksum: bool,
    /// `--auth-optional`: a server with keys takes tests without.
    pub auth_optional: bool,
    /// `--rate-limit`: a server holds tests to their bandwidth.
    pub rate_limit: bool,
    /// `--no-gso`: one datagram each.
    pub no_gso: bool,
    /// `--quiet-control`: nothing is said of invalid control PDUs.
    pub quiet_control: bool,
    /// `--quiet-data`: nor of invalid data PDUs.
    pub quiet_data: bool,
    /// `--stats-record`.
    pub stats_record: Duration,
    /// `--stats-file`.
    pub stats_period: Duration,
    /// `--pacing`.
    pub pacing: Pacing,
    /// `--test-ports`: where a server's test sockets are bound, both ends included.
    pub test_ports: Option<(u16, u16)>,
    /// `--shards`.
    pub shards: ShardsArg,
    /// `--cpus`.
    pub cpus: Option<CpuList>,
    /// `--driver`.
    pub driver: DriverArg,
    /// This is the child of a daemon's start.
    pub daemon_child: bool,
}

/// Why a command line is not taken: exit status 50.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// `-?`, or an option that is none: the help is shown, after what was wrong.
    #[error("{}", .0.as_deref().unwrap_or_default())]
    Help(Option<String>),
    /// An option cannot be used so.
    #[error("ERROR: {0}")]
    Wrong(String),
}

fn wrong<T>(message: impl Into<String>) -> Result<T, OptionsError> {
    Err(OptionsError::Wrong(message.into()))
}

/// Refuses a number that is not in its range.
fn in_range(letter: u8, value: i32, least: i32, most: i32) -> Result<i32, OptionsError> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        wrong(format!(
            "-{} {value} is out of range ({least}-{most})",
            char::from(letter)
        ))
    }
}

impl Options {
    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order in which OB-UDPST looks: the control port, the
    /// servers, client or server, every other option, and what does not fit together.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, OptionsError> {
        let (items, operands) = getopt::split(arguments, LETTERS, &WORDS_WITH_VALUE);
        let (mut upstream, mut downstream, mut control_port) = (false, false, CONTROL_PORT);
        for item in &items {
            match item {
                Item::Letter(b'u', _) => upstream = true,
                Item::Letter(b'd', _) => downstream = true,
                Item::Letter(b'p', Some(value)) => control_port = port(value)?,
                _ => {}
            }
        }
        let hosts = hosts(&operands, control_port)?;
        let mode = match (upstream, downstream) {
            (true, true) => return wrong("-u and -d exclude each other: one direction at a time"),
            (false, false) if hosts.len() > 1 => {
                return wrong("a server has one local address; -u or -d makes a client");
            }
            (false, false) => Mode::Server,
            _ if hosts.is_empty() => return wrong("a client needs a server to test with"),
            (true, false) => Mode::Client(Direction::Upstream),
            (false, true) => Mode::Client(Direction::Downstream),
        };
        let mut options = Self::new(mode, hosts, control_port);
        for item in &items {
            match item {
                Item::Letter(b'?', _) => return Err(OptionsError::Help(None)),
                Item::Letter(letter, value) => {
                    let value = value.as_deref().unwrap_or_default();
                    options.letter(*letter, value)?;
                }
                Item::Word(word, value) => options.word(word, value.as_deref())?,
                Item::Unknown(letter) => {
                    let letter = char::from(*letter).escape_default();
                    return Err(OptionsError::Help(Some(format!("-{letter} is no option"))));
                }
                Item::ValueMissing(letter) => {
                    let letter = char::from(*letter);
                    return Err(OptionsError::Help(Some(format!("-{letter} needs a value"))));
                }
            }
        }
        options.check()?;
        if options.connections_min == 1 && options.connections_max == 1 {
            // One connection for each server, unless a count was given.
            let servers = options.hosts.len().max(1) as u8;
            options.connections_min = servers;
            options.connections_max = servers;
        }
        Ok(options)
    }

    fn new(mode: Mode, hosts: Vec<Host>, control_port: u16) -> Self {
        let server = mode == Mode::Server;
        Self {
            mode,
            hosts,
            control_port,
            family: None,
            ipv4_only: false,
            ipv6_only: false,
            connections_min: 1,
            connections_max: 1,
            daemon: false,
            one_test: false,
            socket_errors: false,
            verbose: false,
            summary_only: false,
            json: None,
            jumbo: true,
            traditional: false,
            debug: false,
            random_payload: false,
            show_rates: false,
            record: None,
            record_all: false,
            bandwidth_mbps: 0,
            loss_ratio: false,
            first_mode: 0,
            suppressed: 0,
            one_way: false,
            ignore_ooo_dup: true,
            key: None,
            key_id: 0,
            key_file: None,
            dscp_ecn: if server { u8::MAX } else { 0 },
            stats_file: None,
            keep_numbers: false,
            row: server.then_some(RowChoice {
                row: ROW_LAST,
                start: false,
            }),
            test_time_s: if server {
                TEST_TIME_S_MAX as u16
            } else {
                TEST_TIME_S_DEFAULT
            },
            sub_interval_ms: SUB_INTERVAL_MS_DEFAULT,
            algorithm: Algorithm::B,
            socket_buffer_bytes: None,
            low_thresh_ms: LOW_THRESH_MS_DEFAULT,
            upper_thresh_ms: UPPER_THRESH_MS_DEFAULT,
            trial_interval_ms: TRIAL_INTERVAL_MS_DEFAULT,
            slow_adj_thresh: SLOW_ADJ_THRESH_DEFAULT,
            high_speed_delta: HIGH_SPEED_DELTA_DEFAULT,
            seq_err_thresh: SEQ_ERR_THRESH_DEFAULT,
            interface: String::new(),
            by_interface: false,
            log_file: None,
            log_bytes_max: LOG_BYTES_DEFAULT,
            ecn_ce_thresh: 0,
            checksum: false,
            auth_optional: false,
            rate_limit: false,
            no_gso: false,
            quiet_control: false,
            quiet_data: false,
            stats_record: STATS_RECORD_DEFAULT,
            stats_period: STATS_FILE_DEFAULT,
            pacing: Pacing::Auto,
            test_ports: None,
            shards: ShardsArg::Auto,
            cpus: None,
            driver: DriverArg::Auto,
            daemon_child: false,
        }
    }

    fn letter(&mut self, letter: u8, value: &OsStr) -> Result<(), OptionsError> {
        let server = self.mode == Mode::Server;
        let shown = char::from(letter);
        if server && b"CfioRyPALUFchqEMZ".contains(&letter) {
            return wrong(format!("-{shown} is for a client only (-u or -d)"));
        }
        if !server && b"x1Glk".contains(&letter) {
            return wrong(format!("-{shown} is for a server only"));
        }
        let number = |least, most| in_range(letter, atoi(value), least, most);
        match letter {
            b'4' => (self.family, self.ipv4_only) = (Some(Family::V4), true),
            b'6' => (self.family, self.ipv6_only) = (Some(Family::V6), true),
            b'C' => self.connections(value)?,
            b'x' => self.daemon = true,
            b'1' => self.one_test = true,
            b'e' => self.socket_errors = true,
            b'v' => self.verbose = true,
            b's' => self.summary_only = true,
            b'f' => {
                let form = self.json.get_or_insert_default();
                match value.to_ascii_lowercase().as_bytes() {
                    b"json" => {}
                    b"jsonb" => form.brief = true,
                    b"jsonf" => form.formatted = true,
                    _ => {
                        let value = value.to_string_lossy();
                        return wrong(format!("-f {value}: use json, jsonb or jsonf"));
                    }
                }
            }
            b'j' => self.jumbo = false,
            b'T' => self.traditional = true,
            b'D' => self.debug = true,
            b'X' => self.random_payload = true,
            b'S' => self.show_rates = true,
            b'O' => {
                if self.mode == Mode::Client(Direction::Upstream) {
                    return wrong("-O records what is received: for a client only with -d");
                }
                let name = match value.as_bytes().strip_prefix(b"+") {
                    Some(name) => {
                        self.record_all = true;
                        OsStr::from_bytes(name)
                    }
                    None => value,
                };
                self.record = Some(name.to_owned());
            }
            b'B' if server => self.bandwidth_mbps = number(0, SERVER_BANDWIDTH_MBPS_MAX)? as u32,
            b'B' => self.bandwidth_mbps = number(0, CLIENT_BANDWIDTH_MBPS_MAX)? as u32,
            b'r' => self.loss_ratio = true,
            b'i' => {
                let suppress = value.as_bytes().strip_prefix(b"-");
                let count = OsStr::from_bytes(suppress.unwrap_or(value.as_bytes()));
                let count = in_range(letter, atoi(count), 1, SUB_INTERVALS_MAX)?;
                if suppress.is_some() {
                    self.suppressed = count as u16;
                }
                self.first_mode = count as u32;
            }
            b'o' => self.one_way = true,
            b'R' => self.ignore_ooo_dup = false,
            b'a' => {
                if value.len() > KEY_BYTES_MAX {
                    return wrong(format!("-a: a key has {KEY_BYTES_MAX} characters at most"));
                }
                self.key = (!value.is_empty()).then(|| value.as_bytes().to_vec());
            }
            b'y' => self.key_id = number(0, u8::MAX.into())? as u8,
            b'K' => self.key_file = Some(value.into()),
            b'm' => self.dscp_ecn = in_range(letter, strtol(value), 0, u8::MAX.into())? as u8,
            b'G' => self.stats_file = Some(value.to_owned()),
            b'n' => self.keep_numbers = true,
            b'I' => {
                let start = value.as_bytes().strip_prefix(b"@");
                let row = OsStr::from_bytes(start.unwrap_or(value.as_bytes()));
                let row = in_range(letter, atoi(row), 0, ROW_LAST.into())? as u16;
                let started = self.row.is_some_and(|row| row.start);
                let start = started || start.is_some();
                self.row = Some(RowChoice { row, start });
            }
            b't' => self.test_time_s = number(5, TEST_TIME_S_MAX)? as u16,
            b'P' => self.sub_interval_ms = number(SUB_INTERVAL_MS_MIN, 10_000)? as u16,
            b'A' => {
                self.algorithm = match value.as_bytes() {
                    b"B" | b"b" => Algorithm::B,
                    b"C" | b"c" => Algorithm::C,
                    _ => {
                        let value = value.to_string_lossy();
                        return wrong(format!("-A {value}: use B or C"));
                    }
                };
            }
            b'b' => {
                // Zero is the system's default there; here the choice is left to this program.
                let bytes = number(0, 16_777_216)? as u32;
                self.socket_buffer_bytes = (bytes > 0).then_some(bytes);
            }
            b'L' => self.low_thresh_ms = number(1, 10_000)? as u16,
            b'U' => self.upper_thresh_ms = number(1, 10_000)? as u16,
            b'F' => self.trial_interval_ms = number(5, 250)? as u16,
            b'c' => self.slow_adj_thresh = number(1, u16::MAX.into())? as u16,
            b'h' => self.high_speed_delta = number(1, u8::MAX.into())? as u8,
            b'q' => self.seq_err_thresh = number(0, u16::MAX.into())? as u16,
            b'E' => {
                let name = value.as_bytes();
                let name = &name[..name.len().min(INTERFACE_BYTES_MAX)];
                self.interface = String::from_utf8_lossy(name).into_owned();
            }
            b'M' => self.by_interface = true,
            b'l' => self.log_file = Some(value.into()),
            b'k' => self.log_bytes_max = number(10, 1_000_000)? as u64 * 1000,
            b'Z' => self.ecn_ce_thresh = number(1, u8::MAX.into())? as u8,
            // Read before: direction and port.
            _ => {}
        }
        Ok(())
    }

    fn connections(&mut self, value: &OsStr) -> Result<(), OptionsError> {
        let value = value.as_bytes();
        let (least, most) = match value.iter().position(|byte| *byte == b'-') {
            Some(at) => (&value[..at], Some(&value[at + 1..])),
            None => (value, None),
        };
        let count = |text| {
            in_range(
                b'C',
                atoi(OsStr::from_bytes(text)),
                1,
                CONNECTIONS_MAX.into(),
            )
        };
        let servers = self.hosts.len() as i32;
        let least = count(least)?;
        let most = match most {
            Some(most) => count(most)?,
            None => least.max(servers),
        };
        if most < servers {
            return wrong(format!(
                "-C: {most} connections cannot reach {servers} servers; give as many at least"
            ));
        }
        self.connections_min = least as u8;
        self.connections_max = most as u8;
        Ok(())
    }

    fn word(&mut self, word: &str, value: Option<&OsStr>) -> Result<(), OptionsError> {
        let server = self.mode == Mode::Server;
        let text = value.map(OsStr::to_string_lossy);
        let text = text.as_deref();
        let takes_value = WORDS_WITH_VALUE.contains(&word);
        if takes_value && text.is_none() {
            return Err(OptionsError::Help(Some(format!("--{word} needs a value"))));
        }
        if !takes_value && text.is_some() {
            return Err(OptionsError::Help(Some(format!("--{word} takes no value"))));
        }
        let text = text.unwrap_or_default();
        let of_server = [
            "auth-optional",
            "rate-limit",
            "stats-record",
            "stats-file",
            "test-ports",
        ];
        if !server && of_server.contains(&word) {
            return wrong(format!("--{word} is for a server only"));
        }
        match word {
            "checksum" => self.checksum = true,
            "auth-optional" => self.auth_optional = true,
            "rate-limit" => self.rate_limit = true,
            "no-gso" => self.no_gso = true,
            "quiet-control" => self.quiet_control = true,
            "quiet-data" => self.quiet_data = true,
            "stats-record" => self.stats_record = seconds(word, text)?,
            "stats-file" => self.stats_period = seconds(word, text)?,
            "pacing" => {
                self.pacing = match text {
                    "auto" => Pacing::Auto,
                    "timer" => Pacing::Timer,
                    "busy" => Pacing::Busy,
                    _ => return wrong(format!("--pacing {text}: use auto, timer or busy")),
                };
            }
            "test-ports" => {
                let ports = text.split_once('-').and_then(|(low, high)| {
                    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
                    (low > 0 && low <= high).then_some((low, high))
                });
                if ports.is_none() {
                    return wrong(format!(
                        "--test-ports {text}: use LOW-HIGH, as in 30000-30999"
                    ));
                }
                self.test_ports = ports;
            }
            "shards" => self.shards = text.parse().map_err(OptionsError::Wrong)?,
            "cpus" => {
                let cpus = text.parse();
                self.cpus = Some(
                    cpus.map_err(|error| OptionsError::Wrong(format!("--cpus {text}: {error}")))?,
                );
            }
            "driver" => {
                self.driver = match text {
                    "auto" => DriverArg::Auto,
                    "uring" => DriverArg::Uring,
                    "epoll" => DriverArg::Epoll,
                    _ => return wrong(format!("--driver {text}: use auto, uring or epoll")),
                };
            }
            DAEMON_CHILD => self.daemon_child = true,
            "help" => return Err(OptionsError::Help(None)),
            _ => return Err(OptionsError::Help(Some(format!("--{word} is no option")))),
        }
        Ok(())
    }

    /// What does not fit together.
    fn check(&self) -> Result<(), OptionsError> {
        if self.log_file.is_some() && !self.daemon {
            return wrong("-l is for a daemon only: add -x");
        }
        if self.debug && !self.verbose {
            return wrong("-D needs -v");
        }
        if self.verbose && self.json.is_some() {
            return wrong("-v and -f exclude each other");
        }
        let test_ms = u32::from(self.test_time_s) * 1000;
        let (sub_ms, trial_ms) = (
            u32::from(self.sub_interval_ms),
            u32::from(self.trial_interval_ms),
        );
        if sub_ms > test_ms {
            return wrong("-P: the sub-interval is longer than the test (-t)");
        }
        if sub_ms < trial_ms * 2 {
            return wrong("-P: a sub-interval needs two trial intervals (-F) at least");
        }
        if !sub_ms.is_multiple_of(trial_ms) {
            return wrong("-P: a sub-interval must be a multiple of the trial interval (-F)");
        }
        if self.low_thresh_ms > self.upper_thresh_ms {
            return wrong("-L is above -U");
        }
        if self.first_mode >= test_ms / sub_ms {
            return wrong("-i leaves no sub-interval for the second mode");
        }
        if self.by_interface && self.interface.is_empty() {
            return wrong("-M needs -E");
        }
        if self.connections_min > self.connections_max {
            return wrong("-C: more connections needed than attempted");
        }
        if self.mode != Mode::Server && self.key.is_some() && self.key_file.is_some() {
            return wrong("-a and -K exclude each other at a client");
        }
        if self.key_id != 0 && self.key.is_none() && self.key_file.is_none() {
            return wrong("-y needs -a or -K");
        }
        if self.ecn_ce_thresh > 0 && !matches!(self.dscp_ecn & 0b11, 0b01 | 0b10) {
            return wrong("-Z needs -m with ECN bits 10 (classic) or 01 (L4S), as in -m 2 or -m 1");
        }
        if self.stats_period < self.stats_record {
            return wrong("--stats-file is shorter than --stats-record");
        }
        Ok(())
    }

    /// Whether this is a server.
    #[must_use]
    pub fn is_server(&self) -> bool {
        self.mode == Mode::Server
    }

    /// The direction of a client's test.
    #[must_use]
    pub fn direction(&self) -> Option<Direction> {
        match self.mode {
            Mode::Client(direction) => Some(direction),
            Mode::Server => None,
        }
    }

    /// The rate table that `-S` shows and the banner speaks of.
    #[must_use]
    pub fn table(&self) -> Variant {
        Variant {
            ipv6: self.ipv6_only,
            jumbo: self.jumbo,
            traditional: self.traditional,
        }
    }

    /// What a client asks for.
    #[must_use]
    pub fn parameters(&self, direction: Direction) -> TestParameters {
        TestParameters {
            low_thresh_ms: self.low_thresh_ms,
            upper_thresh_ms: self.upper_thresh_ms,
            trial_int_ms: self.trial_interval_ms,
            test_time_s: self.test_time_s,
            sub_int_ms: self.sub_interval_ms,
            dscp_ecn: self.dscp_ecn,
            rate: match self.row {
                None => Rate::Search { start: 0 },
                Some(RowChoice { row, start: true }) => Rate::Search { start: row },
                Some(RowChoice { row, start: false }) => Rate::Fixed(row),
            },
            use_ow_del_var: self.one_way,
            high_speed_delta: self.high_speed_delta,
            slow_adj_thresh: self.slow_adj_thresh,
            seq_err_thresh: self.seq_err_thresh,
            ignore_ooo_dup: self.ignore_ooo_dup,
            random_payload: self.random_payload,
            algorithm: self.algorithm,
            ecn_ce_thresh: self.ecn_ce_thresh,
            sr_adj_supp_count: self.suppressed,
            ..TestParameters::new(direction)
        }
    }
}

/// The word by which the parent of a daemon tells the child what it is.
pub const DAEMON_CHILD: &str = "daemon-child";

fn seconds(word: &str, text: &str) -> Result<Duration, OptionsError> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => wrong(format!("--{word} {text}: use seconds from 1 to 86400")),
    }
}

fn port(value: &OsStr) -> Result<u16, OptionsError> {
    Ok(in_range(b'p', atoi(value), 1, u16::MAX.into())? as u16)
}

/// Servers: an address or name, with a port behind a colon; IPv6 with a port in brackets.
fn hosts(operands: &[OsString], control_port: u16) -> Result<Vec<Host>, OptionsError> {
    let mut hosts = Vec::new();
    for operand in operands {
        if hosts.len() == usize::from(CONNECTIONS_MAX) {
            return wrong(format!("more than {CONNECTIONS_MAX} servers"));
        }
        let text = operand.to_string_lossy();
        let (name, port_text) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once("]:") {
                // The first bracket ends the address.
                Some((name, port)) if !name.contains(']') => (name, Some(port)),
                _ => {
                    return wrong(format!(
                        "{text}: IPv6 with a port is written [ADDRESS]:PORT"
                    ));
                }
            },
            None => match text.split_once(':') {
                Some((name, port)) if !port.contains(':') => (name, Some(port)),
                _ => (text.as_ref(), None),
            },
        };
        hosts.push(Host {
            name: name.to_owned(),
            port: match port_text {
                Some(text) => port(OsStr::new(text))?,
                None => control_port,
            },
        });
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests;
