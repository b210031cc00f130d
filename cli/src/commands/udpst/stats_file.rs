//! The statistics file of a server: a record every few seconds, a file every few minutes, each
//! written beside its name and renamed, so that whoever collects them never sees half of one.
//!
//! Times, counters and peaks come in from outside; only the file is touched here. A file that
//! cannot be written loses its records, as new ones come.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use ringmill_engine::time::Nanos;
use ringmill_protocols::capacity::server::{PeaksSnapshot, ServerSnapshot};
use ringmill_protocols::capacity::time::{Instants, WallTime, nanos_to_ms};

use super::console::{PROTOCOL_VERSION, SOFTWARE_VERSION};
use super::local_time;

/// How often connections and bandwidth are looked at for their maxima.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// The version of the file's structure.
const SCHEMA_VERSION: &str = "1.0";

/// What a file begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// The local address as it was named, or empty.
    pub host_name: String,
    /// Where that is, or empty for any address.
    pub host_address: String,
    /// The control port.
    pub control_port: u16,
    /// Jumbo datagrams are allowed.
    pub jumbo: bool,
    /// Packets fill an MTU of 1500.
    pub traditional: bool,
    /// Bursts leave as segmented sends.
    pub gso: bool,
    /// Tests at once.
    pub tests_max: u32,
    /// Bandwidth in Mbit/s, 0 for no limit.
    pub bandwidth_mbps: u32,
}

/// When records and files are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// Between two records.
    pub record: Duration,
    /// Between two files.
    pub file: Duration,
    /// The first file comes so much earlier, so that many servers do not write at once.
    pub first_earlier: Duration,
}

/// See the [module's page](self).
#[derive(Debug)]
pub struct StatsFile {
    pattern: OsString,
    about: About,
    periods: Periods,
    started: Nanos,
    record_start: Instants,
    file_due: Nanos,
    before: ServerSnapshot,
    most: Maxima,
    text: String,
    records: u32,
}

/// Maxima that are sampled.
#[derive(Debug, Default)]
struct Maxima {
    connections: u64,
    downstream_mbps: u64,
    upstream_mbps: u64,
}

impl StatsFile {
    /// Statistics from now on. The file can be made, or it would be told now.
    ///
    /// # Errors
    /// When the file cannot be made, with its name.
    pub fn open(
        pattern: &OsStr,
        about: About,
        periods: Periods,
        now: Instants,
    ) -> Result<Self, (PathBuf, io::Error)> {
        let stats = Self {
            pattern: pattern.to_owned(),
            about,
            periods,
            started: now.now,
            record_start: now,
            file_due: now.now + nanos(periods.file.saturating_sub(periods.first_earlier)),
            before: ServerSnapshot::default(),
            most: Maxima::default(),
            text: String::new(),
            records: 0,
        };
        let (_, temporary) = stats.names(now.wall);
        let tried = std::fs::write(&temporary, "").and_then(|()| std::fs::remove_file(&temporary));
        match tried {
            Ok(()) => Ok(stats),
            Err(error) => Err((temporary, error)),
        }
    }

    /// Looks at connections and bandwidth.
    pub fn sample(&mut self, counters: &ServerSnapshot) {
        let connections = counters.pending + counters.running;
        let most = &mut self.most;
        most.connections = most.connections.max(connections);
        most.downstream_mbps = most.downstream_mbps.max(counters.booked_downstream_mbps);
        most.upstream_mbps = most.upstream_mbps.max(counters.booked_upstream_mbps);
    }

    /// When the next record is due.
    #[must_use]
    pub fn record_due(&self) -> Nanos {
        self.record_start.now + nanos(self.periods.record)
    }

    /// Ends a record, and the file when that is due.
    ///
    /// # Errors
    /// When the file cannot be written, with its name.
    pub fn record(
        &mut self,
        counters: &ServerSnapshot,
        peaks: &PeaksSnapshot,
        now: Instants,
    ) -> Result<(), (PathBuf, io::Error)> {
        if self.records == 0 {
            self.begin();
        } else {
            self.text.push_str(", ");
        }
        self.add(counters, peaks, now);
        self.records += 1;
        self.before = *counters;
        self.most = Maxima::default();
        self.record_start = now;
        if now.now < self.file_due {
            return Ok(());
        }
        self.end(counters, now);
        self.file_due = now.now + nanos(self.periods.file);
        self.records = 0;
        let text = std::mem::take(&mut self.text);
        let (name, temporary) = self.names(now.wall);
        let written = std::fs::write(&temporary, text);
        match written.and_then(|()| std::fs::rename(&temporary, &name)) {
            Ok(()) => Ok(()),
            Err(error) => Err((temporary, error)),
        }
    }

    /// The name at a time, which counts in whole periods, and the name until it is complete.
    fn names(&self, at: WallTime) -> (PathBuf, PathBuf) {
        let period = u32::try_from(self.periods.file.as_secs())
            .unwrap_or(u32::MAX)
            .max(1);
        let at = WallTime {
            sec: at.sec / period * period,
            nsec: 0,
        };
        let name = OsString::from_vec(local_time::expand(self.pattern.as_bytes(), at));
        let mut temporary = name.clone();
        temporary.push(".tmp");
        (name.into(), temporary.into())
    }

    fn begin(&mut self) {
        let about = &self.about;
        let start = self.record_start.wall;
        let _ = writeln!(
            self.text,
            "{{\n\"host_name\": {},\n\"host_ip_address\": {},\n\"control_port\": {},\n\
             \"process_id\": {},\n\"software_version\": \"{SOFTWARE_VERSION}\",\n\
             \"protocol_version\": {PROTOCOL_VERSION},\n\"schema_version\": {SCHEMA_VERSION},\n\
             \"jumbo_datagrams\": {},\n\"traditional_mtu\": {},\n\"gso_enabled\": {},\n\
             \"max_connections\": {},\n\"max_bandwidth\": {},\n\"start_timestamp\": {},\n\
             \"start_datetime\": \"{}\",",
            serde_json::Value::from(about.host_name.as_str()),
            serde_json::Value::from(about.host_address.as_str()),
            about.control_port,
            std::process::id(),
            about.jumbo,
            about.traditional,
            about.gso,
            about.tests_max,
            about.bandwidth_mbps,
            Micros(start),
            local_time::datetime(start),
        );
        self.text.push_str("\"data_records\": [");
    }

    fn add(&mut self, now_counters: &ServerSnapshot, peaks: &PeaksSnapshot, now: Instants) {
        let (before, after, most) = (&self.before, now_counters, &self.most);
        let start = self.record_start;
        // Milliseconds, as the original counts them.
        let ms = nanos_to_ms(now.now.saturating_sub(start.now)).max(1) as f64;
        let more =
            |count: fn(&ServerSnapshot) -> u64| count(after).saturating_sub(count(before)) as f64;
        let rate = |count| Hundredths(more(count) * 1000.0 / ms);
        let mbps = |count| Hundredths(more(count) * 8.0 / ms / 1000.0);
        let size = |all, events| {
            let events: f64 = more(events);
            Hundredths(if events > 0.0 {
                more(all) / events
            } else {
                0.0
            })
        };
        let text = &mut self.text;
        let _ = write!(
            text,
            "{{\n\t\"start_timestamp\": {},\n\t\"start_datetime\": \"{}\",\n\t\"maximum\": {{\n",
            Micros(start.wall),
            local_time::datetime(start.wall)
        );
        let maxima: [Section<'_, u64>; 2] = [
            (
                "allocated",
                &[
                    ("connection_count", most.connections),
                    ("downstream_bandwidth", most.downstream_mbps),
                    ("upstream_bandwidth", most.upstream_mbps),
                ],
            ),
            (
                "system",
                &[
                    ("tx_overrun_size", peaks.tx_overrun_size),
                    ("tx_burst_size", peaks.tx_burst_size),
                    ("rx_burst_size", peaks.rx_burst_size),
                    ("fd_ready_size", peaks.ready_sockets),
                    ("timer_coalesce_size", peaks.coalesced_ticks),
                ],
            ),
        ];
        sections(text, 2, &maxima);
        text.push_str("\n\t},\n\t\"average\": {\n");
        let averages: [Section<'_, Hundredths>; 4] = [
            (
                "queued",
                &[
                    ("tx_ip_rate_mbps", mbps(|c| c.tx_ip_bytes)),
                    ("tx_datagram_rate", rate(|c| c.tx_datagrams)),
                ],
            ),
            (
                "delivered",
                &[
                    ("tx_ip_rate_mbps", mbps(|c| c.delivered_tx_ip_bytes)),
                    ("tx_datagram_rate", rate(|c| c.delivered_tx_datagrams)),
                    ("tx_loss_rate", rate(|c| c.delivered_tx_lost)),
                    ("tx_ooo_dup_rate", rate(|c| c.delivered_tx_ooo_dup)),
                    ("rx_ip_rate_mbps", mbps(|c| c.delivered_rx_ip_bytes)),
                    ("rx_datagram_rate", rate(|c| c.delivered_rx_datagrams)),
                    ("rx_loss_rate", rate(|c| c.delivered_rx_lost)),
                    ("rx_ooo_dup_rate", rate(|c| c.delivered_rx_ooo_dup)),
                ],
            ),
            (
                "system",
                &[
                    ("tx_overrun_rate", rate(|c| c.tx_overruns)),
                    (
                        "tx_overrun_size",
                        size(|c| c.tx_overrun_datagrams, |c| c.tx_overruns),
                    ),
                    ("tx_burst_rate", rate(|c| c.tx_bursts)),
                    ("tx_burst_size", size(|c| c.tx_datagrams, |c| c.tx_bursts)),
                    ("rx_burst_rate", rate(|c| c.rx_bursts)),
                    ("rx_burst_size", size(|c| c.rx_datagrams, |c| c.rx_bursts)),
                    ("fd_ready_rate", rate(|c| c.ready_turns)),
                    (
                        "fd_ready_size",
                        size(|c| c.ready_sockets, |c| c.ready_turns),
                    ),
                    ("timer_coalesce_rate", rate(|c| c.coalesced_bursts)),
                    (
                        "timer_coalesce_size",
                        size(|c| c.coalesced_ticks, |c| c.coalesced_bursts),
                    ),
                ],
            ),
            (
                "status",
                &[
                    ("tx_message_rate", rate(|c| c.status_tx_messages)),
                    ("rx_message_rate", rate(|c| c.status_rx_messages)),
                    ("loc_message_loss_rate", rate(|c| c.status_lost_here)),
                    ("rem_message_loss_rate", rate(|c| c.status_lost_at_peer)),
                    ("loc_traffic_stop_rate", rate(|c| c.traffic_stopped_here)),
                    ("rem_traffic_stop_rate", rate(|c| c.traffic_stopped_at_peer)),
                ],
            ),
        ];
        sections(text, 2, &averages);
        let _ = write!(
            text,
            "\n\t}},\n\t\"end_timestamp\": {},\n\t\"end_datetime\": \"{}\"\n}}",
            Micros(now.wall),
            local_time::datetime(now.wall)
        );
    }

    fn end(&mut self, c: &ServerSnapshot, now: Instants) {
        let text = &mut self.text;
        let _ = write!(
            text,
            "],\n\"data_record_count\": {},\n\"counters\": {{\n",
            self.records
        );
        let counters: [Section<'_, u64>; 4] = [
            (
                "setup",
                &[
                    ("requests_received", c.setup_requests_received),
                    ("accepts_sent", c.setup_accepts_sent),
                    ("rejects_sent", c.setup_rejects_sent),
                    ("invalid_protocol_ver", c.setup_invalid_protocol_ver),
                    ("invalid_setup_option", c.setup_invalid_setup_option),
                    ("bandwidth_exceeded", c.setup_bandwidth_exceeded),
                    ("connection_create_fail", c.setup_connection_create_fail),
                    ("legacy_protocol_ver", c.setup_legacy_protocol_ver),
                ],
            ),
            (
                "activation",
                &[
                    ("timeout_waiting", c.activation_timeout_waiting),
                    ("requests_received", c.activation_requests_received),
                    ("accepts_sent", c.activation_accepts_sent),
                    ("rejects_sent", c.activation_rejects_sent),
                    ("bad_parameter", c.activation_bad_parameter),
                ],
            ),
            (
                "control",
                &[
                    ("invalid_size", c.control_invalid_size),
                    ("invalid_format", c.control_invalid_format),
                    ("invalid_checksum", c.control_invalid_checksum),
                    ("auth_failure", c.control_auth_failure),
                    ("bad_auth_time", c.control_bad_auth_time),
                ],
            ),
            (
                "data",
                &[
                    ("load_invalid_size", c.data_load_invalid_size),
                    ("load_invalid_format", c.data_load_invalid_format),
                    ("load_invalid_checksum", c.data_load_invalid_checksum),
                    ("status_invalid_size", c.data_status_invalid_size),
                    ("status_invalid_format", c.data_status_invalid_format),
                    ("status_invalid_checksum", c.data_status_invalid_checksum),
                ],
            ),
        ];
        sections(text, 1, &counters);
        let uptime_s = now.now.saturating_sub(self.started) / 1_000_000_000;
        let _ = writeln!(
            text,
            "\n}},\n\"process_uptime\": {uptime_s},\n\"end_timestamp\": {},\n\"end_datetime\": \
             \"{}\"\n}}",
            Micros(now.wall),
            local_time::datetime(now.wall)
        );
    }
}

/// The name of an object, and the numbers in it by their keys.
type Section<'a, V> = (&'static str, &'a [(&'static str, V)]);

/// Objects of numbers, on `depth` tabs, without a newline behind the last.
fn sections<V: std::fmt::Display>(text: &mut String, depth: usize, sections: &[Section<'_, V>]) {
    let tabs = "\t".repeat(depth);
    for (at, (name, values)) in sections.iter().enumerate() {
        let between = if at == 0 { "" } else { ",\n" };
        let _ = write!(text, "{between}{tabs}\"{name}\": {{");
        for (at, (key, value)) in values.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(text, "{comma}\n{tabs}\t\"{key}\": {value}");
        }
        let _ = write!(text, "\n{tabs}}}");
    }
}

/// A number with two decimals.
struct Hundredths(f64);

impl std::fmt::Display for Hundredths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2}", self.0)
    }
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

struct Micros(WallTime);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0.sec, self.0.nsec / 1000)
    }
}

#[cfg(test)]
mod tests;
