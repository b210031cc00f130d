//! The three forms of JSON with the keys of TR-181, in the order and number formats of OB-UDPST.
//! Pure: results in, text out.
//!
//! The structs of `schema` and `results` are the schema; here they are filled in.

use ringmill_protocols::capacity::intervals::Interval;
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::rates::{
    HEADERS_BYTES_V4, HEADERS_BYTES_V6, RANDOM_BYTES_MIN_V4, Variant,
};
use ringmill_protocols::capacity::summary::{Results, Summary};
use ringmill_protocols::capacity::time::WallTime;
use ringmill_protocols::capacity::{CONNECTIONS_MAX, NO_TRAFFIC_TIMEOUT, NO_TRAFFIC_WARNING};
use serde::Serialize as _;
use serde::ser::Error as _;

use super::console::{
    PROTOCOL_VERSION, SOFTWARE_VERSION, algorithm_name, host, payload_name, payload_sizes,
};
use super::options::{JsonForm, Options, SUB_INTERVALS_MAX};
use crate::capacity::Server;

mod numbers;
mod results;
mod schema;
mod tabs;

pub use numbers::timestamp;
use results::{AtMax, IncrementalResult, ModeSummary};
use schema::{HostEntry, Input, Output, Supported, Top};
use tabs::Tabs;

/// Silence that is warned of, in ms.
const WARNING_MS: u64 = NO_TRAFFIC_WARNING / 1_000_000;
/// Silence that ends a connection, in ms.
const TIMEOUT_MS: u64 = NO_TRAFFIC_TIMEOUT / 1_000_000;
/// Rate of the row from which on the table counts no longer by Mbit/s, in bit/s.
const HIGH_SPEED_BPS: u64 = 1_000_000_000;
/// What is measured: losses, sampled round-trip times, delay variation, reordering, replication.
const METRICS: &str = "IPLR,Sampled_RTT,IPDV,IPRR,RIPR";

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

#[cfg(test)]
mod tests;
