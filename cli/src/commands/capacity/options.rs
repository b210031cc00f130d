//! The flags of a capacity test, and the test that they ask for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use ringmill_engine::Nanos;
use ringmill_protocols::capacity::client::{ClientSettings, DatagramSizes, Recording};
use ringmill_protocols::capacity::keys::{KeyFile, KeyRing, SharedKey};
use ringmill_protocols::capacity::pacing::Pacing;
use ringmill_protocols::capacity::parameters::{
    Algorithm, Direction, HIGH_SPEED_DELTA_DEFAULT, Rate, SEQ_ERR_THRESH_DEFAULT,
    SLOW_ADJ_THRESH_DEFAULT, SUB_INTERVAL_MS, TEST_TIME_S, THRESHOLD_MS, TRIAL_INTERVAL_MS,
    TestParameters,
};
use ringmill_protocols::capacity::pdu::Version;
use ringmill_protocols::capacity::rates::{EXTENDED_ROW_LAST, ROW_LAST, RateTable, Variant};
use ringmill_protocols::capacity::{CONNECTIONS_MAX, CONTROL_PORT};

use crate::capacity::servers::{self, Family};
use crate::capacity::session::{instants_now, random};
use crate::capacity::{RecordingPlan, TestPlan};
use crate::exit::UsageError;
use crate::units;

/// The share of a rate that a verification sends by: the rest is left to headers below the IP layer
/// and to what else uses the path.
const VERIFY_SHARE: f64 = 0.9;

/// Which algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AlgorithmArg {
    /// Type B: linear steps.
    B,
    /// Type C: multiplies, faster on fast paths.
    C,
}

/// Which protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolArg {
    /// 20, and 11 with a server that knows nothing newer.
    Auto,
    /// RFC 9946, OB-UDPST 9.
    #[value(name = "20")]
    V20,
    /// OB-UDPST 8.2.
    #[value(name = "11")]
    V11,
}

/// How senders are woken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PacingArg {
    /// By timers, and where these fire late by not sleeping.
    #[default]
    Auto,
    /// By timers.
    Timer,
    /// By not sleeping while a test sends: a CPU for each shard that does.
    Busy,
}

impl From<PacingArg> for Pacing {
    fn from(arg: PacingArg) -> Self {
        match arg {
            PacingArg::Auto => Self::Auto,
            PacingArg::Timer => Self::Timer,
            PacingArg::Busy => Self::Busy,
        }
    }
}

/// What is said where timers fire late.
pub(super) fn late_timers(late: Nanos) -> String {
    format!(
        "timers fire {} us late on this host, so it does not sleep while a test sends; --pacing timer \
         saves the CPU for less even load",
        late / 1000
    )
}

/// Flags of a test: what is measured.
#[derive(Debug, Args)]
pub struct OptionArgs {
    /// Length of the test, 5s to 1h.
    #[arg(long, short = 't', value_name = "TIME", value_parser = units::parse_duration, default_value = "10s")]
    pub time: Duration,

    /// Connections, dealt to the servers in rotation [default: one to each server].
    #[arg(long, short = 'c', value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(CONNECTIONS_MAX)))]
    pub connections: Option<u8>,

    /// Go on while at least so many connections work [default: all of them].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(CONNECTIONS_MAX)))]
    pub min_connections: Option<u8>,

    /// The control port of servers named without one.
    #[arg(long, short = 'p', value_name = "PORT", default_value_t = CONTROL_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Only IPv4.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,

    /// Only IPv6.
    #[arg(short = '6', long)]
    pub ipv6: bool,

    /// The local address to test from [default: as the route has it].
    #[arg(long, alias = "from", value_name = "IP")]
    pub source: Option<std::net::IpAddr>,

    /// The protocol's version.
    #[arg(long, value_enum, default_value = "auto")]
    pub protocol: ProtocolArg,

    /// The rate and how it is found.
    #[command(flatten)]
    pub rate: RateArgs,

    /// What the packets are.
    #[command(flatten)]
    pub packets: PacketArgs,

    /// Who may test.
    #[command(flatten)]
    pub keys: KeyArgs,

    /// What is recorded and shown beside.
    #[command(flatten)]
    pub record: RecordArgs,
}

/// The rate and how it is found.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rate")]
pub struct RateArgs {
    /// Send by this row of the rate table for the whole test, see `ringmill capacity rates`.
    #[arg(long, value_name = "ROW", value_parser = row(), conflicts_with_all = ["start_row", "verify", "monitor"])]
    pub row: Option<u16>,

    /// Search from this row on.
    #[arg(long, value_name = "ROW", value_parser = row(), conflicts_with_all = ["verify", "monitor"])]
    pub start_row: Option<u16>,

    /// Use rows past the table's end (1152) too, as far as the server has the same flag.
    #[arg(long)]
    pub extended_rows: bool,

    /// Verify that the path has this rate, such as 500Mbit: send 90 % of it for the whole test.
    #[arg(long, value_name = "RATE", value_parser = units::parse_bit_rate, conflicts_with = "monitor")]
    pub verify: Option<f64>,

    /// Watch loss and delay with hardly any load (row 0, about 0.1 Mbit/s).
    #[arg(long)]
    pub monitor: bool,

    /// How the rate is searched for (TR-471).
    #[arg(long, value_enum, ignore_case = true, default_value = "b")]
    pub algorithm: AlgorithmArg,

    /// Trials whose delay varies less than this are good.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "30ms")]
    pub low_delay: Duration,

    /// Trials whose delay varies more than this are bad.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "90ms")]
    pub high_delay: Duration,

    /// Judge by the one-way delay variation instead of the round-trip one.
    #[arg(long)]
    pub one_way: bool,

    /// Lost datagrams that a good trial may have.
    #[arg(long, value_name = "N", default_value_t = SEQ_ERR_THRESH_DEFAULT)]
    pub loss_threshold: u16,

    /// Count reordered and duplicate datagrams like lost ones.
    #[arg(long)]
    pub count_reordering: bool,

    /// Bad trials in a row that end the fast steps.
    #[arg(long, value_name = "N", default_value_t = SLOW_ADJ_THRESH_DEFAULT, value_parser = clap::value_parser!(u16).range(1..))]
    pub slow_threshold: u16,

    /// Rows of a fast step.
    #[arg(long, value_name = "ROWS", default_value_t = HIGH_SPEED_DELTA_DEFAULT, value_parser = clap::value_parser!(u8).range(1..))]
    pub fast_step: u8,

    /// Between two status messages.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "50ms")]
    pub trial_interval: Duration,

    /// What one line of the result covers.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "1s")]
    pub sub_interval: Duration,

    /// Sum up the first N sub-intervals and the rest apart.
    #[arg(long, value_name = "N")]
    pub bimodal: Option<u16>,

    /// With --bimodal: do not adjust the rate in the first N sub-intervals.
    #[arg(long, requires = "bimodal")]
    pub hold_first_mode: bool,

    /// Tell servers that the test may need this rate; some want to know [default: that of a fixed
    /// row].
    #[arg(long, value_name = "RATE", value_parser = units::parse_bit_rate)]
    pub bandwidth: Option<f64>,
}

/// What the packets are.
#[derive(Debug, Args)]
#[command(next_help_heading = "Packets")]
pub struct PacketArgs {
    /// No datagrams above the default size; the server must have the same setting.
    #[arg(long, short = 'j')]
    pub no_jumbo: bool,

    /// Packets of 1500 bytes instead of 1250; the server must have the same setting.
    #[arg(long, short = 'T')]
    pub traditional: bool,

    /// Random payload instead of zeros, if the server grants that.
    #[arg(long)]
    pub random_payload: bool,

    /// The whole TOS or traffic class octet (DSCP and ECN) of test packets: 0 to 255 or 0x00 to 0xff.
    #[arg(long, value_name = "OCTET", value_parser = octet, default_value = "0")]
    pub tos: u8,

    /// Take more congestion marks (ECN CE) than (N-1)/255 of the datagrams as a bad trial; needs ECN
    /// bits 01 or 10 in --tos.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub ecn_threshold: Option<u8>,

    /// Fill the checksums of the protocol's headers.
    #[arg(long)]
    pub checksums: bool,

    /// Give datagrams that the socket refused no second chance: they count as lost.
    #[arg(long)]
    pub count_refused: bool,

    /// Send each datagram by itself, without segmentation offload.
    #[arg(long)]
    pub no_gso: bool,

    /// How this end is woken while it sends.
    #[arg(long, value_enum, default_value_t)]
    pub pacing: PacingArg,
}

/// Who may test.
#[derive(Debug, Args)]
#[command(next_help_heading = "Authentication")]
pub struct KeyArgs {
    /// The key shared with the server. Other users of this host can see it: a file is safer.
    #[arg(long, value_name = "KEY", conflicts_with = "key_file")]
    pub key: Option<String>,

    /// A file of keys, one `id,key` a line.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Which key.
    #[arg(long, value_name = "ID")]
    pub key_id: Option<u8>,
}

/// What is recorded and shown beside.
#[derive(Debug, Args)]
#[command(next_help_heading = "Beside")]
pub struct RecordArgs {
    /// Record datagrams with a round-trip sample to this CSV file; with several connections the
    /// index of each goes before the name's end.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Record all datagrams.
    #[arg(long, requires = "record")]
    pub record_all: bool,

    /// Show the rate of this network interface beside.
    #[arg(long, value_name = "NAME")]
    pub watch: Option<String>,

    /// Take the sub-interval with the interface's highest rate as the maximum.
    #[arg(long, requires = "watch")]
    pub maximum_by_interface: bool,
}

fn row() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(0..=i64::from(EXTENDED_ROW_LAST))
}

fn octet(text: &str) -> Result<u8, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    read.map_err(|_| format!("'{text}' is no octet: write 0 to 255 or 0x00 to 0xff"))
}

fn usage(words: impl Into<String>) -> anyhow::Error {
    UsageError(words.into()).into()
}

/// A time in whole units of `unit` that lies in a range.
fn whole(
    flag: &str,
    time: Duration,
    unit: Duration,
    range: &std::ops::RangeInclusive<u16>,
) -> Result<u16> {
    let count = time.as_nanos() / unit.as_nanos();
    let exact = time.as_nanos().is_multiple_of(unit.as_nanos());
    match u16::try_from(count) {
        Ok(count) if exact && range.contains(&count) => Ok(count),
        _ => {
            let text = |count: u16| units::format_duration(unit * u32::from(count));
            Err(usage(format!(
                "{flag} {}: from {} to {}, in steps of {}",
                units::format_duration(time),
                text(*range.start()),
                text(*range.end()),
                units::format_duration(unit)
            )))
        }
    }
}

const BITS_PER_MBIT: f64 = 1e6;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

impl OptionArgs {
    /// The test in one direction against `texts`.
    ///
    /// # Errors
    /// Flags that contradict each other, unknown servers, a key file that cannot be read.
    pub fn plan(&self, texts: &[String], direction: Direction) -> Result<TestPlan> {
        let family = match (self.ipv4, self.ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        };
        let servers = servers::resolve(texts.iter().map(String::as_str), Some(self.port), family)
            .map_err(|error| usage(error.to_string()))?;
        let connections = self
            .connections
            .unwrap_or_else(|| u8::try_from(servers.len()).unwrap_or(u8::MAX));
        if usize::from(connections) < servers.len() || connections > CONNECTIONS_MAX {
            bail!(usage(format!(
                "{} servers need as many connections, and a test has {CONNECTIONS_MAX} at most",
                servers.len()
            )));
        }
        let connections_min = self.min_connections.unwrap_or(connections);
        if connections_min > connections {
            bail!(usage(format!(
                "--min-connections {connections_min}: there are only {connections} connections"
            )));
        }
        let ipv6 = servers.iter().any(|server| server.address.is_ipv6());
        if let Some(source) = self.source
            && source.is_ipv6() != ipv6
        {
            bail!(usage(format!(
                "--source {source}: the server's address is of the other family"
            )));
        }
        let mut parameters = self.parameters(direction)?;
        if let Some(rate) = self.rate.verify {
            let share = rate / BITS_PER_MBIT * VERIFY_SHARE / f64::from(connections);
            parameters.rate = Rate::Fixed(verifying_row(&self.table(ipv6), share)?);
        }
        let addresses = servers.iter().map(|server| server.address).collect();
        let ring = self.keys.ring()?;
        let key = ring
            .for_client(self.keys.key_id)
            .map_err(|error| usage(error.to_string()))?;
        let (version, fall_back) = match self.protocol {
            ProtocolArg::Auto => (Version::V20, true),
            ProtocolArg::V20 => (Version::V20, false),
            ProtocolArg::V11 => (Version::V11, false),
        };
        let recorded = self.record.record.as_ref();
        if recorded.is_some() && direction == Direction::Upstream {
            bail!(usage(
                "--record: the server receives in an upstream test, so only it can record"
            ));
        }
        let settings = ClientSettings {
            connections,
            ident: (random() % u64::from(u16::MAX)) as u16 + 1,
            bandwidth_mbps: self.bandwidth(&parameters, ipv6, connections)?,
            sizes: DatagramSizes {
                jumbo: !self.packets.no_jumbo,
                traditional: self.packets.traditional,
            },
            key: key.map(|(id, key)| (id, key.clone())),
            version,
            fall_back,
            check_sum: self.packets.checksums,
            keep_numbers: self.packets.count_refused,
            local: self.source,
            gso: !self.packets.no_gso,
            pacing: self.packets.pacing.into(),
            recording: recorded.map(|_| match self.record.record_all {
                true => Recording::All,
                false => Recording::RoundTrips,
            }),
            seed: random(),
            ..ClientSettings::new(addresses, parameters, instants_now())
        };
        Ok(TestPlan {
            servers,
            settings,
            connections_min,
            first_mode: self.rate.bimodal.map_or(0, u32::from),
            interface: self.record.watch.clone(),
            by_interface: self.record.maximum_by_interface,
            recording: recorded.map(|path| recording(path.clone(), connections)),
            socket_buffer_bytes: None,
        })
    }

    fn table(&self, ipv6: bool) -> RateTable {
        let variant = Variant {
            ipv6,
            jumbo: !self.packets.no_jumbo,
            traditional: self.packets.traditional,
        };
        match self.rate.extended_rows {
            true => RateTable::extended(variant),
            false => RateTable::new(variant),
        }
    }

    /// What servers are told that the test may need, in Mbit/s over all connections: what the user
    /// says, or what a fixed row sends. How far a search will go nobody knows before.
    fn bandwidth(
        &self,
        parameters: &TestParameters,
        ipv6: bool,
        connections: u8,
    ) -> Result<Option<u32>> {
        match (self.rate.bandwidth, parameters.rate) {
            (Some(said), _) => Ok(Some(mbps_up(said)?.into())),
            (None, Rate::Fixed(row)) => {
                let each = self.table(ipv6).row(row).mbps().ceil();
                // Row 0 sends less than 1 Mbit/s, and no row as much as 100 Gbit/s.
                Ok(Some(each as u32 * u32::from(connections)))
            }
            (None, Rate::Search { .. }) => Ok(None),
        }
    }

    fn parameters(&self, direction: Direction) -> Result<TestParameters> {
        let rate = &self.rate;
        let low_thresh_ms = whole("--low-delay", rate.low_delay, MS, &THRESHOLD_MS)?;
        let upper_thresh_ms = whole("--high-delay", rate.high_delay, MS, &THRESHOLD_MS)?;
        if low_thresh_ms > upper_thresh_ms {
            bail!(usage("--low-delay is above --high-delay"));
        }
        if let Some(row) = rate.row.or(rate.start_row)
            && row > ROW_LAST
            && !rate.extended_rows
        {
            bail!(usage(format!(
                "row {row}: the table ends with row {ROW_LAST}; --extended-rows here and at the \
                 server has more"
            )));
        }
        if rate.extended_rows && self.protocol == ProtocolArg::V11 {
            bail!(usage(
                "--extended-rows: version 11 of the protocol has no room for it"
            ));
        }
        let test_time_s = whole("--time", self.time, SECOND, &TEST_TIME_S)?;
        let trial_int_ms = whole(
            "--trial-interval",
            rate.trial_interval,
            MS,
            &TRIAL_INTERVAL_MS,
        )?;
        let sub_int_ms = whole("--sub-interval", rate.sub_interval, MS, &SUB_INTERVAL_MS)?;
        if u32::from(sub_int_ms) > u32::from(test_time_s) * 1000 {
            bail!(usage("--sub-interval is longer than the test"));
        }
        if sub_int_ms < 2 * trial_int_ms || !sub_int_ms.is_multiple_of(trial_int_ms) {
            bail!(usage(
                "--sub-interval must be at least twice --trial-interval, and a multiple of it"
            ));
        }
        let tos = self.packets.tos;
        if self.packets.ecn_threshold.is_some() && !matches!(tos & 3, 1 | 2) {
            bail!(usage(
                "--ecn-threshold needs packets marked for ECN: --tos with 01 or 10 in its last bits, \
                 such as 2"
            ));
        }
        let parameters = TestParameters {
            low_thresh_ms,
            upper_thresh_ms,
            trial_int_ms,
            test_time_s,
            sub_int_ms,
            dscp_ecn: tos,
            rate: match (rate.row, rate.start_row, rate.monitor) {
                (Some(row), ..) => Rate::Fixed(row),
                (_, Some(start), _) => Rate::Search { start },
                (_, _, true) => Rate::Fixed(0),
                _ => Rate::Search { start: 0 },
            },
            use_ow_del_var: rate.one_way,
            high_speed_delta: rate.fast_step,
            slow_adj_thresh: rate.slow_threshold,
            seq_err_thresh: rate.loss_threshold,
            ignore_ooo_dup: !rate.count_reordering,
            random_payload: self.packets.random_payload,
            algorithm: match rate.algorithm {
                AlgorithmArg::B => Algorithm::B,
                AlgorithmArg::C => Algorithm::C,
            },
            ecn_ce_thresh: self.packets.ecn_threshold.unwrap_or(0),
            sr_adj_supp_count: match rate.hold_first_mode {
                true => rate.bimodal.unwrap_or(0),
                false => 0,
            },
            extended_rows: rate.extended_rows,
            ..TestParameters::new(direction)
        };
        if let Some(first) = rate.bimodal
            && (first == 0 || u32::from(first) >= parameters.sub_intervals())
        {
            bail!(usage(format!(
                "--bimodal {first}: the test has {} sub-intervals, and both modes need one",
                parameters.sub_intervals()
            )));
        }
        Ok(parameters)
    }
}

impl KeyArgs {
    /// The keys that were given.
    ///
    /// # Errors
    /// The key cannot be used, or the file cannot be read.
    pub fn ring(&self) -> Result<KeyRing> {
        let command_line = match &self.key {
            Some(key) => {
                Some(SharedKey::new(key).map_err(|error| usage(format!("--key: {error}")))?)
            }
            None => None,
        };
        let file = match &self.key_file {
            Some(path) => {
                let bytes = std::fs::read(path)
                    .with_context(|| format!("cannot read the keys in {}", path.display()))?;
                let file = KeyFile::parse(&bytes)
                    .map_err(|error| usage(format!("{}: {error}", path.display())))?;
                Some(file)
            }
            None => None,
        };
        Ok(KeyRing { command_line, file })
    }
}

/// The highest row that sends no more than `mbps`.
fn verifying_row(table: &RateTable, mbps: f64) -> Result<u16> {
    let fits = table
        .rows()
        .filter(|row| row.index > 0 && row.mbps() <= mbps);
    // Where a table repeats its last rate, the first row that has it.
    let best = fits.max_by(|one, other| {
        let rates = one.mbps().total_cmp(&other.mbps());
        rates.then(other.index.cmp(&one.index))
    });
    match best {
        Some(row) => Ok(row.index),
        None => Err(usage(format!(
            "--verify: {mbps:.2} Mbit/s for each connection is below the lowest row"
        ))),
    }
}

fn mbps_up(bits_per_s: f64) -> Result<u16> {
    let mbps = (bits_per_s / BITS_PER_MBIT).ceil();
    if (1.0..=32_767.0).contains(&mbps) {
        Ok(mbps as u16)
    } else {
        Err(usage("--bandwidth: from 1 to 32767 Mbit/s"))
    }
}

fn recording(path: PathBuf, connections: u8) -> RecordingPlan {
    RecordingPlan {
        name: Box::new(move |name| {
            if connections == 1 {
                return path.clone();
            }
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let end = path
                .extension()
                .map_or_else(String::new, |end| format!(".{}", end.to_string_lossy()));
            path.with_file_name(format!("{stem}-{}{end}", name.connection))
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: OptionArgs,
    }

    fn plan(line: &str) -> Result<TestPlan> {
        let words = std::iter::once("test").chain(line.split_whitespace());
        let line = Line::try_parse_from(words)?;
        line.options
            .plan(&["127.0.0.1".into()], Direction::Downstream)
    }

    #[test]
    fn lines_and_the_tests_that_they_ask_for() {
        for (line, rate) in [
            ("", Rate::Search { start: 0 }),
            ("--row 500", Rate::Fixed(500)),
            ("--start-row 100", Rate::Search { start: 100 }),
            ("--monitor", Rate::Fixed(0)),
            ("--verify 500Mbit", Rate::Fixed(450)),
            ("--verify 1Gbit/s -c 2", Rate::Fixed(450)),
            ("--verify 10Gbit", Rate::Fixed(1064)),
            ("--verify 1000Gbit -j", Rate::Fixed(1090)),
            ("--extended-rows --row 1252", Rate::Fixed(1252)),
            ("--extended-rows --verify 1000Gbit", Rate::Fixed(1252)),
            (
                "--extended-rows --start-row 1153",
                Rate::Search { start: 1153 },
            ),
        ] {
            let plan = plan(line).expect(line);
            let parameters = plan.settings.parameters;
            assert_eq!(parameters.rate, rate, "{line}");
            assert_eq!(
                parameters.extended_rows,
                line.contains("extended"),
                "{line}"
            );
        }
    }

    #[test]
    fn pacing_is_chosen() {
        for (line, pacing) in [
            ("", Pacing::Auto),
            ("--pacing auto", Pacing::Auto),
            ("--pacing timer", Pacing::Timer),
            ("--pacing busy", Pacing::Busy),
        ] {
            assert_eq!(plan(line).expect(line).settings.pacing, pacing, "{line}");
        }
    }

    #[test]
    fn servers_are_told_what_a_fixed_rate_needs() {
        for (line, total, each) in [
            ("", None, 0),
            ("--start-row 100", None, 0),
            ("--bandwidth 500Mbit", Some(500), 500),
            ("--verify 500Mbit", Some(450), 450),
            ("--verify 500Mbit --bandwidth 2Gbit", Some(2000), 2000),
            ("--verify 1Gbit -c 2", Some(900), 450),
            ("--monitor", Some(1), 1),
            ("--monitor -c 3", Some(3), 1),
            ("--row 1", Some(1), 1),
            ("--row 999", Some(999), 999),
            ("--row 1001", Some(1100), 1100),
            // More than a request can say.
            ("--row 1152 -c 2", Some(144_000), 32_767),
        ] {
            let settings = plan(line).expect(line).settings;
            assert_eq!(settings.bandwidth_mbps, total, "{line}");
            assert_eq!(settings.bandwidth_of_connection(), each, "{line}");
        }
    }

    #[test]
    fn low_rows_need_their_number_in_mbps() {
        for line in ["", "-6", "-j", "-T"] {
            let words = ["test"].into_iter().chain(line.split_whitespace());
            let options = Line::try_parse_from(words).expect(line).options;
            let table = options.table(options.ipv6);
            for row in 1..=1000 {
                let need = table.row(row).mbps().ceil();
                assert_eq!(need, f64::from(row), "row {row} of {line}");
            }
        }
    }

    #[test]
    fn lines_that_are_refused() {
        for line in [
            "-t 4s",
            "-t 5500ms",
            "--row 1153",
            "--start-row 1153",
            "--row 1253 --extended-rows",
            "--extended-rows --protocol 11",
            "--pacing fast",
            "--row 1 --start-row 2",
            "--monitor --verify 1Gbit",
            "--verify 500kbit",
            "--verify 500",
            "--bandwidth 1G",
            "--low-delay 100ms",
            "--sub-interval 80ms",
            "--sub-interval 11s",
            "--trial-interval 40ms --sub-interval 110ms",
            "--ecn-threshold 1",
            "--ecn-threshold 1 --tos 3",
            "--tos 256",
            "--bimodal 10",
            "--hold-first-mode",
            "-c 25",
            "-c 2 --min-connections 3",
            "--key a --key-file b",
            "--source ::1",
            "--from ::1",
            "--source here",
            "--bandwidth 40Gbit",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
    }
}
