//! The three forms of JSON with the keys of TR-181, in the order and number formats of OB-UDPST.
//! Pure: results in, text out.
//!
//! The structs are the schema: a field's place is the key's place.

use std::io;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ringmill_protocols::capacity::intervals::{Delivery, Interval, Spread};
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::rates::{
    HEADERS_BYTES_V4, HEADERS_BYTES_V6, RANDOM_BYTES_MIN_V4, Variant,
};
use ringmill_protocols::capacity::summary::{Results, Summary};
use ringmill_protocols::capacity::time::WallTime;
use ringmill_protocols::capacity::{CONNECTIONS_MAX, NO_TRAFFIC_TIMEOUT, NO_TRAFFIC_WARNING};
use serde::Serialize;
use serde::ser::{Error as _, Serializer};
use serde_json::ser::Formatter;
use serde_json::value::RawValue;

use super::console::{
    PROTOCOL_VERSION, SOFTWARE_VERSION, algorithm_name, host, payload_name, payload_sizes,
};
use super::options::{JsonForm, Options, SUB_INTERVALS_MAX};
use crate::capacity::Server;

/// Silence that is warned of, in ms.
const WARNING_MS: u64 = NO_TRAFFIC_WARNING / 1_000_000;
/// Silence that ends a connection, in ms.
const TIMEOUT_MS: u64 = NO_TRAFFIC_TIMEOUT / 1_000_000;
/// Rate of the row from which on the table counts no longer by Mbit/s, in bit/s.
const HIGH_SPEED_BPS: u64 = 1_000_000_000;
/// What is measured: losses, sampled round-trip times, delay variation, reordering, replication.
const METRICS: &str = "IPLR,Sampled_RTT,IPDV,IPRR,RIPR";

/// A number printed with so many decimals; zero is always `0.0`.
struct Fixed<const DECIMALS: usize>(f64);

impl<const DECIMALS: usize> Serialize for Fixed<DECIMALS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let decimals = if self.0 == 0.0 { 1 } else { DECIMALS };
        raw(format!("{:.decimals$}", self.0), serializer)
    }
}

/// Milliseconds printed as seconds, in up to nine significant digits and always with a decimal
/// point.
struct Seconds(i64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        raw(seconds(self.0), serializer)
    }
}

fn raw<S: Serializer>(text: String, serializer: S) -> Result<S::Ok, S::Error> {
    RawValue::from_string(text)
        .map_err(S::Error::custom)?
        .serialize(serializer)
}

/// As `%.9g` of C, or `%.1f` where that has no decimal point.
fn seconds(ms: i64) -> String {
    /// Significant digits.
    const DIGITS: i32 = 9;
    let value = ms as f64 / 1000.0;
    let exact = format!("{value:.*e}", DIGITS as usize - 1);
    let exponent: i32 = match exact.split_once('e') {
        Some((_, exponent)) => exponent.parse().unwrap_or(0),
        None => 0,
    };
    let shortened = if (-4..DIGITS).contains(&exponent) {
        trimmed(format!("{value:.*}", (DIGITS - 1 - exponent) as usize))
    } else {
        let (digits, _) = exact.split_once('e').unwrap_or((&exact, ""));
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trimmed(digits.to_owned()), exponent.abs())
    };
    if shortened.contains('.') {
        shortened
    } else {
        format!("{value:.1}")
    }
}

/// Without zeros at the end of decimals, nor the point if none are left.
fn trimmed(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A time as `2026-11-20T21:56:26.066618Z`.
#[must_use]
pub fn timestamp(time: WallTime) -> String {
    let Ok(second) = Timestamp::from_second(time.sec.into()) else {
        return String::new();
    };
    let second = second.to_zoned(TimeZone::UTC);
    let micros = time.nsec / 1000;
    format!("{}.{micros:06}Z", second.strftime("%Y-%m-%dT%H:%M:%S"))
}

#[derive(Serialize)]
struct Top<'a> {
    #[serde(
        rename = "IPLayerMaxConnections",
        skip_serializing_if = "Option::is_none"
    )]
    max_connections: Option<u8>,
    #[serde(
        rename = "IPLayerMaxIncrementalResult",
        skip_serializing_if = "Option::is_none"
    )]
    max_incremental_result: Option<i32>,
    #[serde(
        rename = "IPLayerCapSupported",
        skip_serializing_if = "Option::is_none"
    )]
    supported: Option<Supported>,
    #[serde(rename = "Input", skip_serializing_if = "Option::is_none")]
    input: Option<Input<'a>>,
    #[serde(rename = "Output", skip_serializing_if = "Option::is_none")]
    output: Option<Output>,
    #[serde(rename = "ErrorStatus")]
    error_status: u8,
    #[serde(rename = "ErrorMessage")]
    error_message: &'a str,
    #[serde(rename = "ErrorMessage2")]
    error_message2: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Supported {
    software_version: &'static str,
    control_protocol_version: u8,
    metrics: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostEntry<'a> {
    host: &'a str,
    #[serde(rename = "HostIPAddress")]
    host_ip_address: String,
    control_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Input<'a> {
    interface: &'a str,
    role: &'static str,
    #[serde(rename = "ID")]
    id: u16,
    host: &'a str,
    #[serde(rename = "HostIPAddress")]
    host_ip_address: String,
    port: u16,
    number_of_hosts: usize,
    host_list: Vec<HostEntry<'a>>,
    #[serde(rename = "ClientIPAddress")]
    client_ip_address: String,
    client_port: u16,
    jumbo_frames_permitted: u8,
    number_of_connections: u8,
    min_num_of_connections: u8,
    #[serde(rename = "DSCP")]
    dscp: u8,
    #[serde(rename = "ECN")]
    ecn: u8,
    #[serde(rename = "CEThreshold")]
    ce_threshold: u8,
    protocol_version: &'static str,
    #[serde(rename = "UDPPayloadMin")]
    udp_payload_min: u32,
    #[serde(rename = "UDPPayloadMax")]
    udp_payload_max: u32,
    #[serde(rename = "UDPPayloadDefault")]
    udp_payload_default: u32,
    #[serde(rename = "UDPPayloadContent")]
    udp_payload_content: &'static str,
    test_type: &'static str,
    #[serde(rename = "IPDVEnable")]
    ipdv_enable: u8,
    #[serde(rename = "IPRREnable")]
    iprr_enable: u8,
    #[serde(rename = "RIPREnable")]
    ripr_enable: u8,
    preamble_duration: u8,
    max_required_bandwidth: u32,
    start_sending_rate_index: u16,
    sending_rate_index: i32,
    number_test_sub_intervals: u32,
    number_first_mode_test_sub_intervals: u32,
    number_first_mode_supp_sub_intervals: u16,
    test_sub_interval: u16,
    status_feedback_interval: u16,
    timeout_no_test_traffic: u64,
    timeout_no_status_message: u64,
    tmax: u64,
    #[serde(rename = "TmaxRTT")]
    tmax_rtt: u64,
    timestamp_resolution: u8,
    seq_err_thresh: u16,
    reord_dup_ignore_enable: u8,
    lower_thresh: u16,
    upper_thresh: u16,
    high_speed_delta: u8,
    slow_adj_thresh: u16,
    #[serde(rename = "HSpeedThresh")]
    h_speed_thresh: u64,
    rate_adj_algorithm: &'static str,
    interface_determines_max: u8,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    #[serde(rename = "BOMTime")]
    bom_time: String,
    tmax_used: u64,
    test_interval: u16,
    #[serde(rename = "TmaxRTTUsed")]
    tmax_rtt_used: u64,
    timestamp_resolution_used: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incremental_result: Vec<IncrementalResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<ModeSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modal_summary: Option<Vec<ModeSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_max: Option<AtMax>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modal_result: Option<Vec<AtMax>>,
    #[serde(
        rename = "ECNBleachingDetected",
        skip_serializing_if = "Option::is_none"
    )]
    ecn_bleaching_detected: Option<u8>,
    #[serde(rename = "EOMTime")]
    eom_time: String,
    status: &'static str,
}

/// Ratios and counts: the keys of the ratios end in what they are of.
struct Ratios {
    delivered_percent: Fixed<2>,
    loss: Fixed<9>,
    reordered: Fixed<9>,
    replicated: Fixed<9>,
    ce_percent: Fixed<2>,
    loss_count: u64,
    reordered_count: u64,
    replicated_count: u64,
    ce_count: u64,
}

impl Ratios {
    fn of(delivery: &Delivery) -> Self {
        Self {
            delivered_percent: Fixed(delivery.delivered_percent()),
            loss: Fixed(delivery.loss_ratio()),
            reordered: Fixed(delivery.reordered_ratio()),
            replicated: Fixed(delivery.replicated_ratio()),
            ce_percent: Fixed(delivery.ce_percent()),
            loss_count: delivery.lost,
            reordered_count: delivery.reordered,
            replicated_count: delivery.replicated,
            ce_count: delivery.ce,
        }
    }
}

/// Least, average, largest and range of a time.
struct Range([Seconds; 4]);

impl Range {
    fn of(spread: Spread) -> Self {
        let range = spread.range_ms();
        Self([spread.min_ms, spread.avg_ms, spread.max_ms, range].map(|ms| Seconds(ms.into())))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct IncrementalResult {
    interval: u32,
    seconds: Fixed<1>,
    time_of_sub_interval: String,
    active_connections: u32,
    delivered_percent: Fixed<2>,
    loss_ratio: Fixed<9>,
    reordered_ratio: Fixed<9>,
    replicated_ratio: Fixed<9>,
    #[serde(rename = "CEPercentOfDelivered")]
    ce_percent: Fixed<2>,
    loss_count: u64,
    reordered_count: u64,
    replicated_count: u64,
    #[serde(rename = "CECountOfDelivered")]
    ce_count: u64,
    #[serde(rename = "PDVMin")]
    pdv_min: Seconds,
    #[serde(rename = "PDVAvg")]
    pdv_avg: Seconds,
    #[serde(rename = "PDVMax")]
    pdv_max: Seconds,
    #[serde(rename = "PDVRange")]
    pdv_range: Seconds,
    #[serde(rename = "RTTMin")]
    rtt_min: Seconds,
    #[serde(rename = "RTTAvg")]
    rtt_avg: Seconds,
    #[serde(rename = "RTTMax")]
    rtt_max: Seconds,
    #[serde(rename = "RTTRange")]
    rtt_range: Seconds,
    #[serde(rename = "IPLayerCapacity")]
    ip_layer_capacity: Fixed<2>,
    interface_eth_mbps: Fixed<2>,
    min_oneway_delay: Seconds,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ModeSummary {
    mode: usize,
    intervals: u32,
    active_connections: u32,
    delivered_percent: Fixed<2>,
    loss_ratio_summary: Fixed<9>,
    reordered_ratio_summary: Fixed<9>,
    replicated_ratio_summary: Fixed<9>,
    #[serde(rename = "CEPercentOfDelivered")]
    ce_percent: Fixed<2>,
    loss_count: u64,
    reordered_count: u64,
    replicated_count: u64,
    #[serde(rename = "CECountOfDelivered")]
    ce_count: u64,
    #[serde(rename = "PDVMin")]
    pdv_min: Seconds,
    #[serde(rename = "PDVAvg")]
    pdv_avg: Seconds,
    #[serde(rename = "PDVMax")]
    pdv_max: Seconds,
    #[serde(rename = "PDVRangeSummary")]
    pdv_range: Seconds,
    #[serde(rename = "RTTMin")]
    rtt_min: Seconds,
    #[serde(rename = "RTTAvg")]
    rtt_avg: Seconds,
    #[serde(rename = "RTTMax")]
    rtt_max: Seconds,
    #[serde(rename = "RTTRangeSummary")]
    rtt_range: Seconds,
    #[serde(rename = "IPLayerCapacitySummary")]
    ip_layer_capacity: Fixed<2>,
    interface_eth_mbps: Fixed<2>,
    min_oneway_delay_summary: Seconds,
    #[serde(rename = "MinRTTSummary")]
    min_rtt_summary: Seconds,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AtMax {
    mode: usize,
    intervals: u32,
    time_of_max: String,
    active_connections: u32,
    delivered_percent: Fixed<2>,
    loss_ratio_at_max: Fixed<9>,
    reordered_ratio_at_max: Fixed<9>,
    replicated_ratio_at_max: Fixed<9>,
    #[serde(rename = "CEPercentOfDelivered")]
    ce_percent: Fixed<2>,
    loss_count: u64,
    reordered_count: u64,
    replicated_count: u64,
    #[serde(rename = "CECountOfDelivered")]
    ce_count: u64,
    #[serde(rename = "PDVMin")]
    pdv_min: Seconds,
    #[serde(rename = "PDVAvg")]
    pdv_avg: Seconds,
    #[serde(rename = "PDVMax")]
    pdv_max: Seconds,
    #[serde(rename = "PDVRangeAtMax")]
    pdv_range: Seconds,
    #[serde(rename = "RTTMin")]
    rtt_min: Seconds,
    #[serde(rename = "RTTAvg")]
    rtt_avg: Seconds,
    #[serde(rename = "RTTMax")]
    rtt_max: Seconds,
    #[serde(rename = "RTTRangeAtMax")]
    rtt_range: Seconds,
    #[serde(rename = "MaxIPLayerCapacity")]
    max_ip_layer_capacity: Fixed<2>,
    interface_eth_mbps: Fixed<2>,
    #[serde(rename = "MaxETHCapacityNoFCS")]
    max_eth_capacity_no_fcs: Fixed<2>,
    #[serde(rename = "MaxETHCapacityWithFCS")]
    max_eth_capacity_with_fcs: Fixed<2>,
    #[serde(rename = "MaxETHCapacityWithFCSVLAN")]
    max_eth_capacity_with_fcs_vlan: Fixed<2>,
    min_oneway_delay_at_max: Seconds,
}

impl IncrementalResult {
    fn of(interval: &Interval, at: WallTime) -> Self {
        let ratios = Ratios::of(&interval.delivery);
        let Range([pdv_min, pdv_avg, pdv_max, pdv_range]) = Range::of(interval.delay_var.spread());
        let Range([rtt_min, rtt_avg, rtt_max, rtt_range]) = Range::of(interval.rtt_var.spread());
        Self {
            interval: interval.number,
            seconds: Fixed(f64::from(interval.accumulated_ms) / 1000.0),
            time_of_sub_interval: timestamp(at),
            active_connections: interval.active_connections,
            delivered_percent: ratios.delivered_percent,
            loss_ratio: ratios.loss,
            reordered_ratio: ratios.reordered,
            replicated_ratio: ratios.replicated,
            ce_percent: ratios.ce_percent,
            loss_count: ratios.loss_count,
            reordered_count: ratios.reordered_count,
            replicated_count: ratios.replicated_count,
            ce_count: ratios.ce_count,
            pdv_min,
            pdv_avg,
            pdv_max,
            pdv_range,
            rtt_min,
            rtt_avg,
            rtt_max,
            rtt_range,
            ip_layer_capacity: Fixed(interval.rates.ip),
            interface_eth_mbps: Fixed(interval.interface.map_or(0.0, |rate| rate.test_mbps)),
            min_oneway_delay: Seconds(interval.one_way_min_ms()),
        }
    }
}

impl ModeSummary {
    /// `whole` has what holds for all modes.
    fn of(mode: usize, summary: &Summary, whole: &Summary) -> Self {
        let ratios = Ratios::of(&summary.delivery);
        let Range([pdv_min, pdv_avg, pdv_max, pdv_range]) = Range::of(summary.delay_var);
        let Range([rtt_min, rtt_avg, rtt_max, rtt_range]) = Range::of(summary.rtt_var);
        Self {
            mode,
            intervals: summary.intervals,
            active_connections: whole.active_connections,
            delivered_percent: ratios.delivered_percent,
            loss_ratio_summary: ratios.loss,
            reordered_ratio_summary: ratios.reordered,
            replicated_ratio_summary: ratios.replicated,
            ce_percent: ratios.ce_percent,
            loss_count: ratios.loss_count,
            reordered_count: ratios.reordered_count,
            replicated_count: ratios.replicated_count,
            ce_count: ratios.ce_count,
            pdv_min,
            pdv_avg,
            pdv_max,
            pdv_range,
            rtt_min,
            rtt_avg,
            rtt_max,
            rtt_range,
            ip_layer_capacity: Fixed(summary.rates.ip),
            interface_eth_mbps: Fixed(summary.interface.map_or(0.0, |rate| rate.test_mbps)),
            min_oneway_delay_summary: Seconds(whole.one_way_min_ms),
            min_rtt_summary: Seconds(whole.rtt_min_ms.into()),
        }
    }
}

impl AtMax {
    fn of(mode: usize, summary: &Summary, whole: &Summary, time: WallTime) -> Self {
        let best = &summary.maximum;
        let delay_var = best.delay_var.spread();
        let ratios = Ratios::of(&best.delivery);
        let Range([pdv_min, pdv_avg, pdv_max, pdv_range]) = Range::of(delay_var);
        let Range([rtt_min, rtt_avg, rtt_max, rtt_range]) = Range::of(best.rtt_var.spread());
        Self {
            mode,
            intervals: summary.intervals,
            time_of_max: timestamp(time),
            active_connections: best.active_connections,
            delivered_percent: ratios.delivered_percent,
            loss_ratio_at_max: ratios.loss,
            reordered_ratio_at_max: ratios.reordered,
            replicated_ratio_at_max: ratios.replicated,
            ce_percent: ratios.ce_percent,
            loss_count: ratios.loss_count,
            reordered_count: ratios.reordered_count,
            replicated_count: ratios.replicated_count,
            ce_count: ratios.ce_count,
            pdv_min,
            pdv_avg,
            pdv_max,
            pdv_range,
            rtt_min,
            rtt_avg,
            rtt_max,
            rtt_range,
            max_ip_layer_capacity: Fixed(best.rates.ip),
            interface_eth_mbps: Fixed(best.interface.map_or(0.0, |rate| rate.test_mbps)),
            max_eth_capacity_no_fcs: Fixed(best.rates.ethernet),
            max_eth_capacity_with_fcs: Fixed(best.rates.ethernet_fcs),
            max_eth_capacity_with_fcs_vlan: Fixed(best.rates.ethernet_fcs_vlan),
            min_oneway_delay_at_max: Seconds(whole.one_way_min_ms + i64::from(delay_var.min_ms)),
        }
    }
}

/// The first connection that was activated: the test is described by it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct First {
    /// This end.
    pub local: std::net::SocketAddr,
    /// The server's test address.
    pub peer: std::net::SocketAddr,
    /// What was agreed.
    pub parameters: TestParameters,
    /// When.
    pub at: WallTime,
}

/// All that a run has come to.
pub struct Run<'a> {
    /// What was asked for.
    pub options: &'a Options,
    /// The servers, resolved.
    pub servers: &'a [Server],
    /// The test's identity (`mcIdent`).
    pub ident: u16,
    /// `None` when no connection was ever activated.
    pub first: Option<First>,
    /// Every sub-interval and when it was closed.
    pub intervals: &'a [(Interval, WallTime)],
    /// Summary and maximum, when the test came to its end.
    pub results: Option<&'a Results>,
    /// Load came without its ECN marking.
    pub bleached: bool,
    /// The end.
    pub ended: WallTime,
    /// Exit status.
    pub status: u8,
    /// The last message and the one before.
    pub messages: [&'a str; 2],
}

impl Run<'_> {
    /// The text, with a newline at its end.
    ///
    /// # Errors
    /// None that is known: the numbers are all finite.
    pub fn text(&self, form: JsonForm) -> serde_json::Result<String> {
        let top = Top {
            max_connections: (!form.brief).then_some(CONNECTIONS_MAX),
            max_incremental_result: (!form.brief).then_some(SUB_INTERVALS_MAX),
            supported: (!form.brief).then_some(Supported {
                software_version: SOFTWARE_VERSION,
                control_protocol_version: PROTOCOL_VERSION,
                metrics: METRICS,
            }),
            input: self
                .first
                .filter(|_| !form.brief)
                .map(|first| self.input(&first)),
            output: self.first.map(|first| self.output(&first)),
            error_status: self.status,
            error_message: self.messages[0],
            error_message2: self.messages[1],
        };
        let mut bytes = Vec::new();
        if form.formatted {
            let formatter = Tabs::default();
            top.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, formatter,
            ))?;
        } else {
            serde_json::to_writer(&mut bytes, &top)?;
        }
        bytes.push(b'\n');
        String::from_utf8(bytes).map_err(serde_json::Error::custom)
    }

    fn input(&self, first: &First) -> Input<'_> {
        let (options, test) = (self.options, &first.parameters);
        let ipv6 = is_ipv6(first.peer);
        let variant = Variant {
            ipv6,
            ..options.table()
        };
        let (payload_default, payload_max) = payload_sizes(variant);
        let less = if ipv6 {
            HEADERS_BYTES_V6 - HEADERS_BYTES_V4
        } else {
            0
        };
        let (start, fixed) = match test.rate {
            Rate::Search { start } => (start, -1),
            Rate::Fixed(row) => (row, row.into()),
        };
        let entry = |server: &'_ Server| (host(server.address), server.address.port());
        let hosts = self.servers.iter().map(|server| {
            let (host_ip_address, control_port) = entry(server);
            HostEntry {
                host: &server.name,
                host_ip_address,
                control_port,
            }
        });
        let named = self.servers.first();
        Input {
            interface: &options.interface,
            role: match test.direction {
                Direction::Upstream => "Sender",
                Direction::Downstream => "Receiver",
            },
            id: self.ident,
            host: named.map_or("", |server| &server.name),
            host_ip_address: named.map_or_else(String::new, |server| host(server.address)),
            port: first.peer.port(),
            number_of_hosts: self.servers.len(),
            host_list: hosts.collect(),
            client_ip_address: host(first.local),
            client_port: first.local.port(),
            jumbo_frames_permitted: options.jumbo.into(),
            number_of_connections: options.connections_max,
            min_num_of_connections: options.connections_min,
            dscp: test.dscp_ecn >> 2,
            ecn: test.dscp_ecn & 0b11,
            ce_threshold: test.ecn_ce_thresh,
            protocol_version: match (options.ipv4_only, options.ipv6_only) {
                (true, _) => "IPv4",
                (false, true) => "IPv6",
                (false, false) => "Any",
            },
            udp_payload_min: RANDOM_BYTES_MIN_V4 - less,
            udp_payload_max: payload_max,
            udp_payload_default: payload_default,
            udp_payload_content: payload_name(test.random_payload),
            test_type: if fixed < 0 { "Search" } else { "Fixed" },
            ipdv_enable: test.use_ow_del_var.into(),
            iprr_enable: 1,
            ripr_enable: 1,
            preamble_duration: 0,
            max_required_bandwidth: options.bandwidth_mbps,
            start_sending_rate_index: start,
            sending_rate_index: fixed,
            number_test_sub_intervals: test.sub_intervals(),
            number_first_mode_test_sub_intervals: options.first_mode,
            number_first_mode_supp_sub_intervals: options.suppressed,
            test_sub_interval: test.sub_int_ms,
            status_feedback_interval: test.trial_int_ms,
            timeout_no_test_traffic: WARNING_MS,
            timeout_no_status_message: WARNING_MS,
            tmax: WARNING_MS,
            tmax_rtt: TIMEOUT_MS,
            timestamp_resolution: 1,
            seq_err_thresh: test.seq_err_thresh,
            reord_dup_ignore_enable: test.ignore_ooo_dup.into(),
            lower_thresh: test.low_thresh_ms,
            upper_thresh: test.upper_thresh_ms,
            high_speed_delta: test.high_speed_delta,
            slow_adj_thresh: test.slow_adj_thresh,
            h_speed_thresh: HIGH_SPEED_BPS,
            rate_adj_algorithm: algorithm_name(test.algorithm),
            interface_determines_max: options.by_interface.into(),
        }
    }

    fn output(&self, first: &First) -> Output {
        let whole = self.results.map(Results::whole).unwrap_or_default();
        let modes: Vec<Summary> = self.results.into_iter().flat_map(Results::modes).collect();
        let summaries = modes.iter().enumerate();
        let mut summaries = summaries.map(|(at, mode)| ModeSummary::of(at + 1, mode, &whole));
        let time = |mode: &Summary| {
            let number = mode.maximum.number;
            let found = self
                .intervals
                .iter()
                .find(|(interval, _)| interval.number == number);
            found.map_or(self.ended, |(_, at)| *at)
        };
        let best = modes.iter().enumerate();
        let mut best = best.map(|(at, mode)| AtMax::of(at + 1, mode, &whole, time(mode)));
        // A bimodal test that ended within its first mode has no second one to show.
        let all = !modes.is_empty() && (self.options.first_mode == 0 || modes.len() > 1);
        let shown = if self.options.summary_only {
            &[]
        } else {
            self.intervals
        };
        Output {
            bom_time: timestamp(first.at),
            tmax_used: WARNING_MS,
            test_interval: first.parameters.test_time_s,
            tmax_rtt_used: TIMEOUT_MS,
            timestamp_resolution_used: 1,
            incremental_result: match self.results {
                Some(_) => shown
                    .iter()
                    .map(|(interval, at)| IncrementalResult::of(interval, *at))
                    .collect(),
                None => Vec::new(),
            },
            summary: summaries.next(),
            modal_summary: all.then(|| summaries.collect()),
            at_max: best.next(),
            modal_result: all.then(|| best.collect()),
            ecn_bleaching_detected: all.then_some(self.bleached.into()),
            eom_time: timestamp(self.ended),
            status: if self.status == 0 {
                "Complete"
            } else {
                "Error_Other"
            },
        }
    }
}

/// Whether the headers are those of IPv6: an address of IPv4 mapped into IPv6 travels as IPv4.
#[must_use]
pub fn is_ipv6(address: std::net::SocketAddr) -> bool {
    match address {
        std::net::SocketAddr::V4(_) => false,
        std::net::SocketAddr::V6(address) => address.ip().to_ipv4_mapped().is_none(),
    }
}

/// Tabs for each level, objects in arrays side by side.
#[derive(Default)]
struct Tabs {
    depth: usize,
}

impl Tabs {
    fn line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(b"\t"))
    }
}

impl Formatter for Tabs {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        writer.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        self.line(writer)?;
        writer.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b"," })?;
        self.line(writer)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b":\t")
    }
}

#[cfg(test)]
mod tests;
