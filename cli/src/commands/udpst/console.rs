//! The lines of text: what OB-UDPST prints, field by field, as scripts take it apart. Pure: figures
//! in, text out.

use std::fmt::{self, Write};
use std::net::SocketAddr;

use ringmill_protocols::capacity::event::{TrialReport, Warning};
use ringmill_protocols::capacity::intervals::{Delivery, Interval, Spread};
use ringmill_protocols::capacity::parameters::{Algorithm, Direction, Rate, TestParameters};
use ringmill_protocols::capacity::rates::{
    HEADERS_BYTES_V4, HEADERS_BYTES_V6, PAYLOAD_BYTES_DEFAULT, PAYLOAD_BYTES_MAX,
    PAYLOAD_BYTES_TRADITIONAL, RateTable, Variant,
};
use ringmill_protocols::capacity::summary::{Results, Summary};

use super::options::{Options, RowChoice};

/// The version of OB-UDPST whose place this takes.
pub const SOFTWARE_VERSION: &str = "9.0.0";
/// The newest version of the protocol.
pub const PROTOCOL_VERSION: u8 = 20;
/// The oldest one that a server takes.
const PROTOCOL_VERSION_MIN: u8 = 11;
/// What built this: in the place of a date, which would make no two builds alike.
pub const BUILT: &str = concat!("ringmill ", env!("CARGO_PKG_VERSION"));

/// The name of a direction.
#[must_use]
pub const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Upstream => "Upstream",
        Direction::Downstream => "Downstream",
    }
}

/// The letter of an algorithm.
#[must_use]
pub const fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::B => "B",
        Algorithm::C => "C",
    }
}

/// What the payload of load is.
#[must_use]
pub const fn payload_name(random: bool) -> &'static str {
    if random { "random" } else { "zeroes" }
}

/// Default and largest UDP payload in bytes, as shown.
#[must_use]
pub const fn payload_sizes(variant: Variant) -> (u32, u32) {
    let less = if variant.ipv6 {
        HEADERS_BYTES_V6 - HEADERS_BYTES_V4
    } else {
        0
    };
    let default = if variant.traditional {
        PAYLOAD_BYTES_TRADITIONAL
    } else {
        PAYLOAD_BYTES_DEFAULT
    };
    let largest = if variant.jumbo {
        PAYLOAD_BYTES_MAX
    } else {
        default
    };
    (default - less, largest - less)
}

/// The connection in front of a line of the verbose kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prefix(pub Option<usize>);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .map_or(Ok(()), |connection| write!(f, "[{connection}]"))
    }
}

/// Title, versions and what is built in.
#[must_use]
pub fn banner(options: &Options) -> String {
    let (default, largest) = payload_sizes(options.table());
    let (mode, versions) = if options.is_server() {
        (
            "Server",
            format!("{PROTOCOL_VERSION_MIN}-{PROTOCOL_VERSION}"),
        )
    } else {
        ("Client", PROTOCOL_VERSION.to_string())
    };
    let limiting = if options.rate_limit {
        ", Rate Limiting via '-B mbps'"
    } else {
        ""
    };
    let checksum = if options.checksum { "On" } else { "Off" };
    let gso = if options.no_gso { "" } else { "+GSO" };
    format!(
        "UDP Speed Test\nSoftware Ver: {SOFTWARE_VERSION}, Protocol Ver: {versions}, Built: \
         {BUILT}{limiting}\nMode: {mode}, Payload Default[Max]: {default}[{largest}], Auth: \
         Available, Checksum: {checksum}, Optimizations: SendMMsg(){gso} RecvMMsg()+Trunc\n"
    )
}

/// The row as it was chosen: `<Auto>`, a row, or `@` and the row to start at.
fn row_name(rate: Rate, chosen: Option<RowChoice>) -> String {
    match rate {
        // Row 0 is where a search starts anyway; whether it was named is the client's own knowledge.
        Rate::Search { start: 0 } if !chosen.is_some_and(|row| row.start) => "<Auto>".into(),
        Rate::Search { start } => format!("@{start}"),
        Rate::Fixed(row) => row.to_string(),
    }
}

/// The two lines that begin a client's test.
#[must_use]
pub fn test_header(
    prefix: Prefix,
    test: &TestParameters,
    ident: u16,
    connections: u8,
    options: &Options,
) -> String {
    let interface = match options.interface.as_str() {
        "" => String::new(),
        name => format!(", [{name}]"),
    };
    format!(
        "{prefix}{} Test Int(sec): {}, DelayVar Th(ms): {}-{} [{}], Trial Int(ms): {}, Ignore \
         OoO/Dup: {}, Payload: {},\n  ID: {ident}, SR Index: {}, Cong. Th: {}, HS Delta: {}, \
         SeqErr Th: {}, Algo: {}, Conn: {connections}, DSCP+ECN: {}, CE Th: {}{interface}\n",
        direction_name(test.direction),
        test.test_time_s,
        test.low_thresh_ms,
        test.upper_thresh_ms,
        if test.use_ow_del_var { "OWD" } else { "RTT" },
        test.trial_int_ms,
        if test.ignore_ooo_dup {
            "Enabled"
        } else {
            "Disabled"
        },
        payload_name(test.random_payload),
        row_name(test.rate, options.row),
        test.slow_adj_thresh,
        test.high_speed_delta,
        test.seq_err_thresh,
        algorithm_name(test.algorithm),
        test.dscp_ecn,
        test.ecn_ce_thresh,
    )
}

/// How figures are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Show {
    /// The ratio of loss instead of the percentage delivered.
    pub loss_ratio: bool,
    /// Counts of CE marks: the test has a threshold for them.
    pub ce: bool,
}

/// What the line of a sub-interval and that of a summary have in common.
struct Figures<'a> {
    delivery: &'a Delivery,
    delay_var: Spread,
    rtt_var: Spread,
    mbps: f64,
    interface_mbps: Option<f64>,
    show: Show,
}

impl fmt::Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delivery = self.delivery;
        if self.show.loss_ratio {
            write!(f, "LossRatio: {}, ", scientific(delivery.loss_ratio()))?;
        } else {
            write!(f, "Delivered(%): {:6.2}, ", delivery.delivered_percent())?;
        }
        let (label, ce) = ce(self.show.ce, delivery.ce);
        let (lost, reordered) = (delivery.lost, delivery.reordered);
        write!(
            f,
            "Loss/OoO/Dup{label}: {lost}/{reordered}/{}{ce}, ",
            delivery.replicated
        )?;
        for (name, spread) in [("OWDVar", self.delay_var), ("RTTVar", self.rtt_var)] {
            let Spread {
                min_ms,
                avg_ms,
                max_ms,
            } = spread;
            write!(f, "{name}(ms): {min_ms}/{avg_ms}/{max_ms}, ")?;
        }
        write!(
            f,
            "Mbps(L3/IP): {:.2}{}",
            self.mbps,
            interface(self.interface_mbps)
        )
    }
}

fn ce(shown: bool, count: u64) -> (&'static str, String) {
    if shown {
        ("/CE", format!("/{count}"))
    } else {
        ("", String::new())
    }
}

fn interface(mbps: Option<f64>) -> String {
    mbps.map_or_else(String::new, |mbps| format!(" [{mbps:.2}]"))
}

/// As `%.2E` of C: two digits of exponent at least.
fn scientific(value: f64) -> String {
    let text = format!("{value:.2E}");
    let (digits, exponent) = text.split_once('E').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}E{sign}{exponent:0>2}")
}

/// The line of a sub-interval.
#[must_use]
pub fn sub_interval(prefix: Prefix, interval: &Interval, show: Show) -> String {
    // The column stays in place as the number grows.
    let width = if interval.number < 10 { 5 } else { 4 };
    let seconds = f64::from(interval.accumulated_ms) / 1000.0;
    let figures = Figures {
        delivery: &interval.delivery,
        delay_var: interval.delay_var.spread(),
        rtt_var: interval.rtt_var.spread(),
        mbps: interval.rates.ip,
        interface_mbps: interval.interface.map(|rate| rate.test_mbps),
        show,
    };
    let number = interval.number;
    format!("{prefix}Sub-Interval[{number}](sec): {seconds:width$.1}, {figures}\n")
}

/// The lines at the end of a test: summary, minimum and maximum. `bimodal` names the modes by their
/// sub-intervals.
#[must_use]
pub fn results(
    prefix: Prefix,
    direction: Direction,
    results: &Results,
    bimodal: bool,
    show: Show,
) -> String {
    let direction = direction_name(direction);
    let label = |name: &str, short: &str, mode: &Summary| {
        if bimodal {
            format!("{short}[{}-{}]", mode.first, mode.last)
        } else {
            name.to_owned()
        }
    };
    let mut text = String::new();
    for mode in results.modes() {
        let figures = Figures {
            delivery: &mode.delivery,
            delay_var: mode.delay_var,
            rtt_var: mode.rtt_var,
            mbps: mode.rates.ip,
            interface_mbps: mode.interface.map(|rate| rate.test_mbps),
            show,
        };
        let label = label("Summary", "Sum", &mode);
        let _ = writeln!(text, "{prefix}{direction} {label} {figures}");
    }
    let whole = results.whole();
    let (one_way, round_trip) = (whole.one_way_min_ms, whole.rtt_min_ms);
    let minimum = minimum(one_way, round_trip);
    let active = whole.active_connections;
    let _ = writeln!(
        text,
        "{prefix}{direction} {minimum}, Active Connections: {active}"
    );
    for mode in results.modes() {
        let label = label("Maximum", "Max", &mode);
        let rates = &mode.maximum.rates;
        let interface = interface(mode.maximum.interface.map(|rate| rate.test_mbps));
        let _ = writeln!(
            text,
            "{prefix}{direction} {label} Mbps(L3/IP): {:.2}{interface}, Mbps(L2/Eth): {:.2}, \
             Mbps(L1/Eth): {:.2}, Mbps(L1/Eth+VLAN): {:.2}",
            rates.ip, rates.ethernet, rates.ethernet_fcs, rates.ethernet_fcs_vlan
        );
    }
    text
}

/// Least one-way delay and round-trip time.
#[must_use]
pub fn minimum(one_way_ms: i64, round_trip_ms: u32) -> String {
    format!(
        "Minimum One-Way Delay(ms): {one_way_ms} [w/clock diff], Round-Trip Time(ms): \
         {round_trip_ms}"
    )
}

/// What a debugging line ends with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DebugEnd {
    /// A client: the rate of the trial.
    Mbps(f64),
    /// A server: the row from now on.
    Row(u16),
}

/// The line of one trial.
#[must_use]
pub fn trial(prefix: Prefix, report: &TrialReport, show: Show, end: DebugEnd) -> String {
    let trial = &report.trial;
    let (label, ce) = ce(show.ce, trial.ce.into());
    let rtt = trial.rtt_var_ms.map_or(-1, i64::from);
    let (title, end) = match end {
        DebugEnd::Mbps(mbps) => ("Status Feedback", format!("Mbps(L3/IP): {mbps:.2}")),
        DebugEnd::Row(row) => ("Rate Adjustment", format!("SRIndex: {row}")),
    };
    let Spread {
        min_ms,
        avg_ms,
        max_ms,
    } = report.delay_var;
    format!(
        "{prefix}DEBUG {title} [Loss/OoO/Dup{label}: {}/{}/{}{ce}, OWDVar(ms): \
         {min_ms}/{avg_ms}/{max_ms}, RTTVar(ms): {rtt}] {end}\n",
        trial.loss, trial.out_of_order, trial.duplicates
    )
}

/// The line of a warning; a client names the server.
#[must_use]
pub fn warning(prefix: Prefix, warning: Warning, server: Option<SocketAddr>) -> String {
    let lost = |count| match count {
        u16::MAX => "OoO/Dup".to_owned(),
        count => count.to_string(),
    };
    let (place, text) = match warning {
        Warning::StatusLost(count) => (
            "LOCAL ",
            format!("Incoming status feedback messages lost ({})", lost(count)),
        ),
        Warning::StatusLostAtPeer(count) => (
            "REMOTE ",
            format!("Incoming status feedback messages lost ({})", lost(count)),
        ),
        Warning::TrafficStopped => ("LOCAL ", "Incoming traffic has completely stopped".into()),
        Warning::TrafficStoppedAtPeer => {
            ("REMOTE ", "Incoming traffic has completely stopped".into())
        }
        Warning::EcnBleached => ("LOCAL ", "Incoming ECN bleaching detected".into()),
        Warning::EcnBleachedAtPeer => ("REMOTE ", "Incoming ECN bleaching detected".into()),
        Warning::BadData(refused) => (
            "",
            format!(
                "Received invalid data PDUs (size: {}, format: {}, checksum: {})",
                refused.size, refused.format, refused.checksum
            ),
        ),
    };
    let server = server.map_or_else(String::new, |server| {
        format!(" [Server {}]", address(server))
    });
    format!("{prefix}{place}WARNING: {text}{server}\n")
}

/// An address and port, with no brackets around IPv6, as everywhere in these lines.
#[must_use]
pub fn address(address: SocketAddr) -> String {
    format!("{}:{}", host(address), address.port())
}

/// An address without its port. An IPv4 address mapped into IPv6 is shown as the socket has it.
#[must_use]
pub fn host(address: SocketAddr) -> String {
    address.ip().to_string()
}

/// The rate table of `-S`.
#[must_use]
pub fn rate_table(variant: Variant) -> String {
    let family = if variant.ipv6 { "IPv6" } else { "IPv4" };
    let mut text = format!(
        "Sending Rate Table for {family} (Dual Transmitters, Referenced by Index)...\nIndex) \
         TxInt(us) Payload Burst  + TxInt(us) Payload Burst   Add-On  = Mbps(L3/IP)\n"
    );
    for row in RateTable::new(variant).rows() {
        let rate = &row.rate;
        let _ = writeln!(
            text,
            "{:5}) {:8}  {:>7} {:5}  + {:8}  {:>7} {:5}  {:>7} {}= {:10.2}",
            row.index,
            rate.tx_interval1,
            row.payload1().to_string(),
            rate.burst_size1,
            rate.tx_interval2,
            row.payload2().to_string(),
            rate.burst_size2,
            row.addon2().to_string(),
            if row.is_random() { '~' } else { ' ' },
            row.mbps(),
        );
    }
    if !variant.jumbo {
        text.push_str("NOTE: Disabling jumbo datagram sizes may impede rates above 1 Gbps\n");
    }
    text
}

#[cfg(test)]
mod tests;
