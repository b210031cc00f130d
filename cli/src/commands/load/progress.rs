//! What a person sees while a load run lasts.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::Interval;
use crate::units;

/// What a person sees while it runs; nothing when the output is not a terminal or is JSON.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Shown on a terminal only.
    pub(super) fn new(json: bool) -> Self {
        if json || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}").expect("a constant template"),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Some(bar))
    }

    /// A line that stays.
    pub(super) fn note(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// So many connections are settled.
    pub(super) fn connecting(&self, settled: u64, wanted: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("connecting {settled} of {wanted}"));
        }
    }

    /// Connected, and the moment to begin is so far away.
    pub(super) fn waiting(&self, left: Duration) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("begins in {}", units::format_duration(left)));
        }
    }

    /// One interval is over.
    pub(super) fn interval(&self, interval: &Interval, datagrams: bool) {
        let Some(bar) = &self.0 else { return };
        let p99 = interval
            .response_time
            .as_ref()
            .map_or_else(String::new, |latency| {
                format!(
                    ", p50 {}, p99 {}",
                    units::format_latency_ns(latency.p50_ns as f64),
                    units::format_latency_ns(latency.p99_ns as f64)
                )
            });
        let lost = match interval.lost {
            Some(lost) if datagrams || lost > 0 => format!(", {lost} lost"),
            _ => String::new(),
        };
        bar.println(format!(
            "{:>5.0} s  {}, {}{p99}{lost}, {} errors",
            interval.start_s + interval.duration_s,
            units::format_rate(interval.messages_per_s),
            units::format_byte_rate(interval.bytes_per_s),
            interval.errors
        ));
        bar.set_message(format!("{} connections", interval.connections));
    }

    /// The run is over.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
