//! What connections cost in memory: of a process, and of the kernel.
//!
//! A process is charged what is its alone (RssAnon). The kernel does not say what one socket costs,
//! so its share is the growth of all slab of the host while the connections were opened: other
//! programs are in it, and both ends are when both are here. It never guesses: what cannot be read
//! is left out.

use std::fs;
use std::time::Duration;

use serde::Serialize;

/// What the figures of the kernel are, for people and in the report.
pub(super) const KERNEL_SOURCE: &str =
    "growth of Slab in /proc/meminfo and of TCP's pages in /proc/net/sockstat, whole host";

/// A slope over fewer connections than this drowns in what else a process does.
const SLOPE_CONNECTIONS_MIN: u64 = 2_000;
/// Growth per hour of a shorter half of the hold would be noise times a large number.
const GROWTH_TIME_MIN: Duration = Duration::from_secs(30);
/// Kernel pages are so large on every Linux that ringmill runs on here; TCP counts in them.
const PAGE_BYTES: i64 = 4096;

/// Memory at one moment, bytes. Signed, as a growth may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reading {
    pub(super) client: Option<i64>,
    pub(super) server: Option<i64>,
    pub(super) kernel: Option<i64>,
}

impl Reading {
    /// Of this process, of a server's if it is on this host, and of the kernel.
    pub(super) fn take(server: Option<u32>) -> Self {
        let status = |pid: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            keyed_kb(&text, "RssAnon:")
        };
        let kernel = || {
            let slab = keyed_kb(&fs::read_to_string("/proc/meminfo").ok()?, "Slab:")?;
            let sockstat = fs::read_to_string("/proc/net/sockstat").ok()?;
            Some(slab + tcp_pages(&sockstat)? * PAGE_BYTES)
        };
        Self {
            client: status("self"),
            server: server.and_then(|pid| status(&pid.to_string())),
            kernel: kernel(),
        }
    }
}

impl Reading {
    /// With the kernel's growth since an earlier reading in the place of its total. It is negative when
    /// others gave back more than was taken.
    pub(super) fn kernel_since(self, before: Option<i64>) -> Self {
        let kernel = self.kernel.zip(before);
        Self {
            kernel: kernel.map(|(now, before)| now - before),
            ..self
        }
    }
}

/// The value of a line `Name:   123 kB`, in bytes.
fn keyed_kb(text: &str, name: &str) -> Option<i64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kb: i64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kb * 1024)
}

/// The pages that TCP buffers hold: the number after `mem` in the line of TCP.
fn tcp_pages(sockstat: &str) -> Option<i64> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

/// Memory of one end, or of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(super) struct Cost {
    /// With all connections open, before traffic.
    pub(super) full_bytes: i64,
    /// At the end of the hold.
    pub(super) end_bytes: i64,
    /// Between half and all of the connections; none when they are too few to tell.
    pub(super) per_connection_bytes: Option<f64>,
    /// What is there without a connection: rings, buffers, the program. From the slope.
    pub(super) fixed_bytes: Option<f64>,
    /// In the second half of the hold; none when that was too short to tell. In the first, receive
    /// buffers are touched for the first time.
    pub(super) growth_bytes_per_hour: Option<f64>,
}

/// The readings of one soak.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// With at least half of the connections, and how many those were.
    half: Option<(u64, Reading)>,
    full: Option<(u64, Reading)>,
    /// Seconds since the begin of the hold.
    held: Vec<(f64, Reading)>,
}

impl Readings {
    /// While connections are opened: the first reading with half of them counts.
    pub(super) fn opening(&mut self, live: u64, wanted: u64, take: impl FnOnce() -> Reading) {
        if self.half.is_none() && live >= wanted.div_ceil(2) {
            self.half = Some((live, take()));
        }
    }

    /// All that can be opened are.
    pub(super) fn full(&mut self, live: u64, reading: Reading) {
        self.full = Some((live, reading));
    }

    pub(super) fn held(&mut self, since: Duration, reading: Reading) {
        self.held.push((since.as_secs_f64(), reading));
    }

    /// What one of the three came to.
    pub(super) fn cost(&self, of: fn(&Reading) -> Option<i64>) -> Option<Cost> {
        let (live, full) = self.full.as_ref()?;
        let full_bytes = of(full)?;
        let slope = self.half.as_ref().and_then(|(before, half)| {
            let more = live.checked_sub(*before)?;
            let bytes = full_bytes as f64 - of(half)? as f64;
            (more >= SLOPE_CONNECTIONS_MIN).then(|| bytes / more as f64)
        });
        let held: Vec<(f64, f64)> = self
            .held
            .iter()
            .filter_map(|(at, reading)| Some((*at, of(reading)? as f64)))
            .collect();
        Some(Cost {
            full_bytes,
            end_bytes: held.last().map_or(full_bytes, |(_, bytes)| *bytes as i64),
            per_connection_bytes: slope,
            fixed_bytes: slope.map(|slope| full_bytes as f64 - slope * *live as f64),
            growth_bytes_per_hour: growth_per_s(&held[held.len() / 2..])
                .map(|growth| growth * 3600.0),
        })
    }
}

/// The slope of the straight line nearest to the points.
fn growth_per_s(points: &[(f64, f64)]) -> Option<f64> {
    let time = points.last()?.0 - points.first()?.0;
    if time < GROWTH_TIME_MIN.as_secs_f64() {
        return None;
    }
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let both: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let square: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    (square > 0.0).then(|| both / square)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(bytes: i64) -> Reading {
        Reading {
            client: Some(bytes),
            ..Reading::default()
        }
    }

    #[test]
    fn the_cost_of_a_connection_is_the_slope_between_half_and_all() {
        let mut readings = Readings::default();
        readings.opening(10, 10_000, || panic!("too early"));
        readings.opening(5_100, 10_000, || client(1_000_000 + 5_100 * 80));
        readings.opening(9_000, 10_000, || panic!("too late"));
        readings.full(10_000, client(1_000_000 + 10_000 * 80));
        for second in 0..=70 {
            // It grows quickly at first.
            let early = (35 - second).max(0) * 1000;
            readings.held(
                Duration::from_secs(second as u64),
                client(2_000_000 + second * 100 - early),
            );
        }
        let cost = readings.cost(|reading| reading.client).expect("read");
        assert_eq!(cost.per_connection_bytes, Some(80.0));
        assert_eq!(cost.fixed_bytes, Some(1_000_000.0));
        let growth = cost.growth_bytes_per_hour.expect("half a minute is enough");
        assert!((growth - 360_000.0).abs() < 1.0, "{growth}");
        assert_eq!(cost.end_bytes, 2_007_000);
        assert_eq!(readings.cost(|reading| reading.server), None);
    }

    #[test]
    fn what_is_too_little_to_tell_is_not_told() {
        let mut readings = Readings::default();
        readings.opening(500, 1_000, || client(1));
        readings.full(1_000, client(2));
        readings.held(Duration::ZERO, client(3));
        readings.held(Duration::from_secs(20), client(3));
        readings.held(Duration::from_secs(40), client(4));
        let cost = readings.cost(|reading| reading.client).expect("read");
        assert_eq!(
            (cost.per_connection_bytes, cost.growth_bytes_per_hour),
            (None, None)
        );
        assert_eq!((cost.full_bytes, cost.end_bytes), (2, 4));
    }

    #[test]
    fn what_others_give_back_does_not_hide_the_cost() {
        let kernel = |bytes| Reading {
            kernel: Some(bytes),
            ..Reading::default()
        };
        let before = Some(900_000_000);
        let mut readings = Readings::default();
        readings.opening(5_000, 10_000, || kernel(100_000_000).kernel_since(before));
        readings.full(10_000, kernel(140_000_000).kernel_since(before));
        let cost = readings.cost(|reading| reading.kernel).expect("read");
        assert_eq!(cost.per_connection_bytes, Some(8_000.0));
        assert_eq!(cost.full_bytes, -760_000_000);
    }

    #[test]
    fn files_of_the_kernel_are_read() {
        let status = "Name:\tx\nRssAnon:\t     120 kB\nRssFile:\t 3 kB\n";
        assert_eq!(keyed_kb(status, "RssAnon:"), Some(120 * 1024));
        let sockstat = "sockets: used 9\nTCP: inuse 5 orphan 0 tw 2 alloc 6 mem 17\nUDP: mem 3\n";
        assert_eq!(tcp_pages(sockstat), Some(17));
        let here = Reading::take(Some(std::process::id()));
        assert!(here.client.is_some() && here.server.is_some(), "{here:?}");
        assert!(here.kernel.is_some(), "{here:?}");
    }
}
