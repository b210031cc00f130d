//! Sub-intervals, summaries and maxima: what the three have in common, and what each has more.

use ringmill_protocols::capacity::intervals::{Delivery, InterfaceRate, Interval, Spread};
use ringmill_protocols::capacity::summary::Summary;
use ringmill_protocols::capacity::time::WallTime;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::numbers::{Fixed, Seconds, timestamp};

/// What all three have, in the same order: ratios, counts, delays. The keys of ratios and ranges end
/// in what they are of.
struct Figures {
    of: &'static str,
    delivery: Delivery,
    delay_var: Spread,
    rtt_var: Spread,
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { of, delivery, .. } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(
            "DeliveredPercent",
            &Fixed::<2>(delivery.delivered_percent()),
        )?;
        for (name, ratio) in [
            ("Loss", delivery.loss_ratio()),
            ("Reordered", delivery.reordered_ratio()),
            ("Replicated", delivery.replicated_ratio()),
        ] {
            map.serialize_entry(&format!("{name}Ratio{of}"), &Fixed::<9>(ratio))?;
        }
        map.serialize_entry("CEPercentOfDelivered", &Fixed::<2>(delivery.ce_percent()))?;
        for (key, count) in [
            ("LossCount", delivery.lost),
            ("ReorderedCount", delivery.reordered),
            ("ReplicatedCount", delivery.replicated),
            ("CECountOfDelivered", delivery.ce),
        ] {
            map.serialize_entry(key, &count)?;
        }
        for (name, times) in [("PDV", self.delay_var), ("RTT", self.rtt_var)] {
            for (which, of, ms) in [
                ("Min", "", times.min_ms),
                ("Avg", "", times.avg_ms),
                ("Max", "", times.max_ms),
                ("Range", *of, times.range_ms()),
            ] {
                map.serialize_entry(&format!("{name}{which}{of}"), &Seconds(ms.into()))?;
            }
        }
        map.end()
    }
}

/// What the interface moved in the direction of the test.
fn mbps(interface: Option<InterfaceRate>) -> Fixed<2> {
    Fixed(interface.map_or(0.0, |rate| rate.test_mbps))
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct IncrementalResult {
    interval: u32,
    seconds: Fixed<1>,
    time_of_sub_interval: String,
    active_connections: u32,
    #[serde(flatten)]
    figures: Figures,
    #[serde(rename = "IPLayerCapacity")]
    ip_layer_capacity: Fixed<2>,
    interface_eth_mbps: Fixed<2>,
    min_oneway_delay: Seconds,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ModeSummary {
    mode: usize,
    intervals: u32,
    active_connections: u32,
    #[serde(flatten)]
    figures: Figures,
    #[serde(rename = "IPLayerCapacitySummary")]
    ip_layer_capacity: Fixed<2>,
    interface_eth_mbps: Fixed<2>,
    min_oneway_delay_summary: Seconds,
    #[serde(rename = "MinRTTSummary")]
    min_rtt_summary: Seconds,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AtMax {
    mode: usize,
    intervals: u32,
    time_of_max: String,
    active_connections: u32,
    #[serde(flatten)]
    figures: Figures,
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
    pub(super) fn of(interval: &Interval, at: WallTime) -> Self {
        Self {
            interval: interval.number,
            seconds: Fixed(f64::from(interval.accumulated_ms) / 1000.0),
            time_of_sub_interval: timestamp(at),
            active_connections: interval.active_connections,
            figures: Figures {
                of: "",
                delivery: interval.delivery,
                delay_var: interval.delay_var.spread(),
                rtt_var: interval.rtt_var.spread(),
            },
            ip_layer_capacity: Fixed(interval.rates.ip),
            interface_eth_mbps: mbps(interval.interface),
            min_oneway_delay: Seconds(interval.one_way_min_ms()),
        }
    }
}

impl ModeSummary {
    /// `whole` has what holds for all modes.
    pub(super) fn of(mode: usize, summary: &Summary, whole: &Summary) -> Self {
        Self {
            mode,
            intervals: summary.intervals,
            active_connections: whole.active_connections,
            figures: Figures {
                of: "Summary",
                delivery: summary.delivery,
                delay_var: summary.delay_var,
                rtt_var: summary.rtt_var,
            },
            ip_layer_capacity: Fixed(summary.rates.ip),
            interface_eth_mbps: mbps(summary.interface),
            min_oneway_delay_summary: Seconds(whole.one_way_min_ms),
            min_rtt_summary: Seconds(whole.rtt_min_ms.into()),
        }
    }
}

impl AtMax {
    /// `whole` has what holds for all modes; `time` is that of the best sub-interval.
    pub(super) fn of(mode: usize, summary: &Summary, whole: &Summary, time: WallTime) -> Self {
        let best = &summary.maximum;
        let delay_var = best.delay_var.spread();
        Self {
            mode,
            intervals: summary.intervals,
            time_of_max: timestamp(time),
            active_connections: best.active_connections,
            figures: Figures {
                of: "AtMax",
                delivery: best.delivery,
                delay_var,
                rtt_var: best.rtt_var.spread(),
            },
            max_ip_layer_capacity: Fixed(best.rates.ip),
            interface_eth_mbps: mbps(best.interface),
            max_eth_capacity_no_fcs: Fixed(best.rates.ethernet),
            max_eth_capacity_with_fcs: Fixed(best.rates.ethernet_fcs),
            max_eth_capacity_with_fcs_vlan: Fixed(best.rates.ethernet_fcs_vlan),
            min_oneway_delay_at_max: Seconds(whole.one_way_min_ms + i64::from(delay_var.min_ms)),
        }
    }
}
