//! The summary in the terms of the classic echo and multicast benchmarks.

use std::time::Duration;

use ringmill_protocols::load::Published;

use crate::report::seed_style::{Labels, SeedRun, TotalMessages};
use crate::report::{Report, seed_style};

use super::control::Run;
use super::echo::ClassicLabels;

/// That a run is also reported so.
pub(super) struct Classic {
    pub(super) labels: ClassicLabels,
    /// Messages in flight or in all; none for multicast, which has no such line.
    pub(super) messages: Option<u64>,
    /// Of a message, where it is known; else that of what came.
    pub(super) size: Option<u64>,
}

impl Classic {
    /// The parameters and results of a run.
    pub(super) fn summary(
        &self,
        run: &Run<'_>,
        report: &Report,
        published: &Published,
        total: Duration,
    ) -> String {
        let seed_run = SeedRun {
            labels: match self.labels {
                ClassicLabels::Seed => Labels::Seed,
                ClassicLabels::Newest => Labels::Newest,
            },
            address: run
                .endpoint
                .host()
                .map_or_else(|| run.endpoint.to_string(), ToString::to_string),
            port: run.endpoint.port().unwrap_or(0),
            clients: run.connections,
            multicast: self.messages.is_none(),
            messages: self.messages.unwrap_or(0),
            size_bytes: self.size.unwrap_or_else(|| {
                let tally = &published.tally;
                tally.bytes.checked_div(tally.answered).unwrap_or(0)
            }),
            seconds: run.args.duration.as_secs(),
            errors: report.errors_total(),
            total_time: total,
            total_bytes: published.tally.bytes,
            total_messages: if run.datagrams {
                TotalMessages::Counted(published.tally.answered)
            } else {
                TotalMessages::FromBytes
            },
        };
        format!(
            "{}\n{}",
            seed_style::parameters(&seed_run),
            seed_style::results(&seed_run)
        )
    }
}
