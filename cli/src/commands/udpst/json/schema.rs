//! The objects around the results: a field's place is the key's place.

use serde::Serialize;

use super::results::{AtMax, IncrementalResult, ModeSummary};

#[derive(Serialize)]
pub(super) struct Top<'a> {
    #[serde(
        rename = "IPLayerMaxConnections",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) max_connections: Option<u8>,
    #[serde(
        rename = "IPLayerMaxIncrementalResult",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) max_incremental_result: Option<i32>,
    #[serde(
        rename = "IPLayerCapSupported",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) supported: Option<Supported>,
    #[serde(rename = "Input", skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<Input<'a>>,
    #[serde(rename = "Output", skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<Output>,
    #[serde(rename = "ErrorStatus")]
    pub(super) error_status: u8,
    #[serde(rename = "ErrorMessage")]
    pub(super) error_message: &'a str,
    #[serde(rename = "ErrorMessage2")]
    pub(super) error_message2: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Supported {
    pub(super) software_version: &'static str,
    pub(super) control_protocol_version: u8,
    pub(super) metrics: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostEntry<'a> {
    pub(super) host: &'a str,
    #[serde(rename = "HostIPAddress")]
    pub(super) host_ip_address: String,
    pub(super) control_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Input<'a> {
    pub(super) interface: &'a str,
    pub(super) role: &'static str,
    #[serde(rename = "ID")]
    pub(super) id: u16,
    pub(super) host: &'a str,
    #[serde(rename = "HostIPAddress")]
    pub(super) host_ip_address: String,
    pub(super) port: u16,
    pub(super) number_of_hosts: usize,
    pub(super) host_list: Vec<HostEntry<'a>>,
    #[serde(rename = "ClientIPAddress")]
    pub(super) client_ip_address: String,
    pub(super) client_port: u16,
    pub(super) jumbo_frames_permitted: u8,
    pub(super) number_of_connections: u8,
    pub(super) min_num_of_connections: u8,
    #[serde(rename = "DSCP")]
    pub(super) dscp: u8,
    #[serde(rename = "ECN")]
    pub(super) ecn: u8,
    #[serde(rename = "CEThreshold")]
    pub(super) ce_threshold: u8,
    pub(super) protocol_version: &'static str,
    #[serde(rename = "UDPPayloadMin")]
    pub(super) udp_payload_min: u32,
    #[serde(rename = "UDPPayloadMax")]
    pub(super) udp_payload_max: u32,
    #[serde(rename = "UDPPayloadDefault")]
    pub(super) udp_payload_default: u32,
    #[serde(rename = "UDPPayloadContent")]
    pub(super) udp_payload_content: &'static str,
    pub(super) test_type: &'static str,
    #[serde(rename = "IPDVEnable")]
    pub(super) ipdv_enable: u8,
    #[serde(rename = "IPRREnable")]
    pub(super) iprr_enable: u8,
    #[serde(rename = "RIPREnable")]
    pub(super) ripr_enable: u8,
    pub(super) preamble_duration: u8,
    pub(super) max_required_bandwidth: u32,
    pub(super) start_sending_rate_index: u16,
    pub(super) sending_rate_index: i32,
    pub(super) number_test_sub_intervals: u32,
    pub(super) number_first_mode_test_sub_intervals: u32,
    pub(super) number_first_mode_supp_sub_intervals: u16,
    pub(super) test_sub_interval: u16,
    pub(super) status_feedback_interval: u16,
    pub(super) timeout_no_test_traffic: u64,
    pub(super) timeout_no_status_message: u64,
    pub(super) tmax: u64,
    #[serde(rename = "TmaxRTT")]
    pub(super) tmax_rtt: u64,
    pub(super) timestamp_resolution: u8,
    pub(super) seq_err_thresh: u16,
    pub(super) reord_dup_ignore_enable: u8,
    pub(super) lower_thresh: u16,
    pub(super) upper_thresh: u16,
    pub(super) high_speed_delta: u8,
    pub(super) slow_adj_thresh: u16,
    #[serde(rename = "HSpeedThresh")]
    pub(super) h_speed_thresh: u64,
    pub(super) rate_adj_algorithm: &'static str,
    pub(super) interface_determines_max: u8,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Output {
    #[serde(rename = "BOMTime")]
    pub(super) bom_time: String,
    pub(super) tmax_used: u64,
    pub(super) test_interval: u16,
    #[serde(rename = "TmaxRTTUsed")]
    pub(super) tmax_rtt_used: u64,
    pub(super) timestamp_resolution_used: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) incremental_result: Vec<IncrementalResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) summary: Option<ModeSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) modal_summary: Option<Vec<ModeSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) at_max: Option<AtMax>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) modal_result: Option<Vec<AtMax>>,
    #[serde(
        rename = "ECNBleachingDetected",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) ecn_bleaching_detected: Option<u8>,
    #[serde(rename = "EOMTime")]
    pub(super) eom_time: String,
    pub(super) status: &'static str,
}
