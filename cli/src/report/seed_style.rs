//! The summary in the terms of the benchmark programs that many people know (NetCoreServer and
//! CppServer): the same lines, formulas and number formats, oddities included.
//!
//! Its figures are comparable with published ones and otherwise poor: "latency" is the inverse of
//! the throughput, and the time includes connecting. The honest figures are in
//! [`super::human`]; this module must never feed them.

use std::fmt::Write as _;
use std::time::Duration;

/// Whose labels to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Labels {
    /// The first release, January 2019.
    Seed,
    /// The releases of today.
    #[default]
    Newest,
}

/// How messages are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TotalMessages {
    /// Streams: received bytes / message size, the rest cut off.
    FromBytes,
    /// Datagrams: as many as came.
    Counted(u64),
}

/// A run as that benchmark sees it: the whole of it, with no warm-up taken off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedRun {
    /// Whose labels.
    pub labels: Labels,
    /// A multicast benchmark: there is no number of messages to print.
    pub multicast: bool,
    /// `-a`.
    pub address: String,
    /// `-p`.
    pub port: u16,
    /// `-c`.
    pub clients: u64,
    /// `-m`: in all (seed), or outstanding per client (newest).
    pub messages: u64,
    /// `-s`, in bytes.
    pub size_bytes: u64,
    /// `-z`; printed with the newest labels only.
    pub seconds: u64,
    /// Socket errors that clients saw.
    pub errors: u64,
    /// From before the first connect to the last received data.
    pub total_time: Duration,
    /// Bytes received by all clients.
    pub total_bytes: u64,
    /// How messages are counted.
    pub total_messages: TotalMessages,
}

/// Progress lines, in the order in which those programs print them.
pub mod progress {
    use super::Labels;

    /// All connects were started.
    pub const CONNECTING: &str = "Clients connecting...Done!";
    /// All connections are there.
    pub const CONNECTED: &str = "All clients connected!";
    /// Disconnects were started.
    pub const DISCONNECTING: &str = "Clients disconnecting...Done!";
    /// All connections are gone.
    pub const DISCONNECTED: &str = "All clients disconnected!";

    /// The run is over.
    pub fn benchmarking(labels: Labels) -> &'static str {
        match labels {
            Labels::Seed => "Processing...Done!",
            Labels::Newest => "Benchmarking...Done!",
        }
    }
}

/// The lines before the run, with the blank line that ends them.
pub fn parameters(run: &SeedRun) -> String {
    let mut text = String::new();
    let messages = match run.labels {
        Labels::Seed => "Messages to send",
        Labels::Newest => "Working messages",
    };
    let _ = writeln!(text, "Server address: {}", run.address);
    let _ = writeln!(text, "Server port: {}", run.port);
    let _ = writeln!(text, "Working clients: {}", run.clients);
    if !run.multicast {
        let _ = writeln!(text, "{messages}: {}", run.messages);
    }
    let _ = writeln!(text, "Message size: {}", run.size_bytes);
    if run.labels == Labels::Newest {
        let _ = writeln!(text, "Seconds to benchmarking: {}", run.seconds);
    }
    text.push('\n');
    text
}

/// The lines after the run.
pub fn results(run: &SeedRun) -> String {
    let mut text = String::new();
    let time = match run.labels {
        Labels::Seed if run.multicast => "Multicast time",
        Labels::Seed => "Round-trip time",
        Labels::Newest => "Total time",
    };
    let ns = run.total_time.as_nanos();
    let messages = run.total_messages();
    let _ = writeln!(text, "Errors: {}\n", run.errors);
    let _ = writeln!(text, "{time}: {}", format_time(ns));
    let _ = writeln!(text, "Total data: {}", format_size(run.total_bytes));
    let _ = writeln!(text, "Total messages: {messages}");
    let bytes_per_s = per_second(run.total_bytes, ns);
    let _ = writeln!(text, "Data throughput: {}/s", format_size(bytes_per_s));
    if messages > 0 {
        let _ = writeln!(
            text,
            "Message latency: {}",
            format_time(ns / u128::from(messages))
        );
        let _ = writeln!(
            text,
            "Message throughput: {} msg/s",
            per_second(messages, ns)
        );
    }
    text
}

impl SeedRun {
    /// Messages by the rule of the transport.
    pub fn total_messages(&self) -> u64 {
        match self.total_messages {
            // A size of 0 has no messages to count.
            TotalMessages::FromBytes => self.total_bytes.checked_div(self.size_bytes).unwrap_or(0),
            TotalMessages::Counted(messages) => messages,
        }
    }
}

/// Per second, the fraction cut off; 0 when no time passed.
fn per_second(count: u64, ns: u128) -> u64 {
    const NS_PER_S: u128 = 1_000_000_000;
    let rate = (u128::from(count) * NS_PER_S).checked_div(ns).unwrap_or(0);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// A size as those programs print it: what follows the dot is **the remainder in the next
/// smaller unit** (0 to 1023, at least three digits), not a fraction: 34 MiB + 898 KiB is
/// `34.898 MiB`, and 30 MiB + 1022 KiB is `30.1022 MiB`.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            let rest = (bytes >> (shift - 10)) & 1023;
            return format!("{}.{rest:03} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// A time as those programs print it: three decimals, the rest cut off, microseconds as `mcs`;
/// `M:SS.mmm m` from a minute and `H:MM:SS.mmm h` from an hour on.
pub fn format_time(ns: u128) -> String {
    const US: u128 = 1_000;
    const MS: u128 = 1_000 * US;
    const S: u128 = 1_000 * MS;
    const M: u128 = 60 * S;
    const H: u128 = 60 * M;
    match ns {
        _ if ns < US => format!("{ns} ns"),
        _ if ns < MS => format!("{}.{:03} mcs", ns / US, ns % US),
        _ if ns < S => format!("{}.{:03} ms", ns / MS, ns % MS / US),
        _ if ns < M => format!("{}.{:03} s", ns / S, ns % S / MS),
        _ if ns < H => format!("{}:{:02}.{:03} m", ns / M, ns % M / S, ns % S / MS),
        _ => {
            format!(
                "{}:{:02}:{:02}.{:03} h",
                ns / H,
                ns % H / M,
                ns % M / S,
                ns % S / MS
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_the_remainder_behind_the_dot() {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.000 KiB"),
            (KIB + 7, "1.007 KiB"),
            (34 * MIB + 898 * KIB, "34.898 MiB"),
            (30 * MIB + 1022 * KIB + 1023, "30.1022 MiB"),
            (MIB - 1, "1023.1023 KiB"),
            (1 << 30, "1.000 GiB"),
            (5 << 40, "5.000 TiB"),
            (u64::MAX, "16777215.1023 TiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn times_cut_to_three_decimals() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.000 mcs"),
            (999_999, "999.999 mcs"),
            (1_000_999, "1.000 ms"),
            (10_001_999_999, "10.001 s"),
            (59_999_999_999, "59.999 s"),
            (60_000_000_000, "1:00.000 m"),
            (125_006_000_000, "2:05.006 m"),
            (3_600_000_000_000, "1:00:00.000 h"),
            (90_061_001_000_000, "25:01:01.001 h"),
        ] {
            assert_eq!(format_time(ns), text);
        }
    }

    fn run(labels: Labels) -> SeedRun {
        SeedRun {
            labels,
            multicast: false,
            address: "127.0.0.1".into(),
            port: 1111,
            clients: 100,
            messages: 1000,
            size_bytes: 32,
            seconds: 10,
            errors: 0,
            total_time: Duration::from_nanos(10_014_000_000),
            total_bytes: 109_195_055,
            total_messages: TotalMessages::FromBytes,
        }
    }

    #[test]
    fn newest_labels() {
        assert_eq!(
            parameters(&run(Labels::Newest)),
            "Server address: 127.0.0.1\nServer port: 1111\nWorking clients: 100\n\
             Working messages: 1000\nMessage size: 32\nSeconds to benchmarking: 10\n\n"
        );
        // 109,195,055 B = 104 MiB + 139 KiB; / 10.014 s = 10,904,239 B/s = 10 MiB + 408 KiB;
        // / 32 = 3,412,345 messages, 340,757 a second, 2,934 ns each.
        assert_eq!(
            results(&run(Labels::Newest)),
            "Errors: 0\n\nTotal time: 10.014 s\nTotal data: 104.139 MiB\nTotal messages: 3412345\n\
             Data throughput: 10.408 MiB/s\nMessage latency: 2.934 mcs\n\
             Message throughput: 340757 msg/s\n"
        );
    }

    #[test]
    fn seed_labels() {
        let text = parameters(&run(Labels::Seed));
        assert!(text.contains("Messages to send: 1000\n") && !text.contains("Seconds"));
        assert!(results(&run(Labels::Seed)).contains("\nRound-trip time: 10.014 s\n"));
        assert_eq!(progress::benchmarking(Labels::Seed), "Processing...Done!");
    }

    #[test]
    fn multicast_labels() {
        for (labels, time) in [
            (Labels::Seed, "\nMulticast time: 10.014 s\n"),
            (Labels::Newest, "\nTotal time: 10.014 s\n"),
        ] {
            let run = SeedRun {
                multicast: true,
                ..run(labels)
            };
            assert!(results(&run).contains(time), "{labels:?}");
            assert!(!parameters(&run).contains("essages"), "{labels:?}");
        }
    }

    #[test]
    fn datagrams_are_counted_and_nothing_has_no_latency() {
        let counted = SeedRun {
            total_messages: TotalMessages::Counted(7),
            ..run(Labels::Newest)
        };
        assert!(results(&counted).contains("Total messages: 7\n"));
        let nothing = SeedRun {
            total_bytes: 0,
            size_bytes: 0,
            total_time: Duration::ZERO,
            ..run(Labels::Newest)
        };
        assert_eq!(
            results(&nothing),
            "Errors: 0\n\nTotal time: 0 ns\nTotal data: 0 bytes\nTotal messages: 0\n\
             Data throughput: 0 bytes/s\n"
        );
    }
}
