//! How this run of the harness was asked for, and where the programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Parser;

use crate::process::Line;

/// Runs ringmill and its peers side by side and writes what came out.
#[derive(Debug, Parser)]
pub(crate) struct Setup {
    /// Scenarios to run; none: all of them.
    pub(crate) scenarios: Vec<String>,
    /// Seconds instead of minutes, and noise accepted: tests the mechanics.
    /// Results go to a folder `quick` beside the real ones.
    #[arg(long)]
    pub(crate) quick: bool,
    /// CPU of the servers.
    #[arg(long, default_value_t = 0)]
    pub(crate) server_cpu: usize,
    /// CPU of the load.
    #[arg(long, default_value_t = 1)]
    pub(crate) load_cpu: usize,
    /// Rounds per cell instead of the scenario's own number.
    #[arg(long)]
    pub(crate) rounds: Option<u32>,
    /// Measured seconds per run instead of the scenario's own.
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
    /// Only candidates whose name contains this; may repeat.
    #[arg(long)]
    pub(crate) candidate: Vec<String>,
    /// Only cells whose title contains this; may repeat.
    #[arg(long)]
    pub(crate) cell: Vec<String>,
    /// The ringmill to measure; default: beside this program, or in
    /// target/release of this or the upper folder.
    #[arg(long)]
    ringmill: Option<PathBuf>,
    /// The OB-UDPST program to compare the capacity test with; without it, ringmill alone.
    #[arg(long)]
    pub(crate) udpst: Option<PathBuf>,
    /// The folder with tcpscaler's programs (tcpclient, udpclient, tcpserver) to compare the DNS load
    /// with; without it, ringmill alone. What lies in its `root/usr/lib` is found as a library.
    #[arg(long)]
    pub(crate) tcpscaler: Option<PathBuf>,
    /// The unbound to put under load; without it, that scenario is left out.
    #[arg(long)]
    pub(crate) unbound: Option<PathBuf>,
    /// Which echo server `dns-load` asks: ringmill's or tcpscaler's.
    #[arg(long, default_value = "ringmill", value_parser = ["ringmill", "tcpscaler"])]
    pub(crate) echo_server: String,
    /// Connections of `million` (1M) and `dns-unbound` (1k), and how many `churn` opens and closes (10M).
    #[arg(long, value_parser = count)]
    pub(crate) connections: Option<u64>,
    /// Seconds for which `million` holds its connections (600).
    #[arg(long)]
    pub(crate) hold: Option<f64>,
    /// Connections opened per second by `million` (max), or closed and opened by `churn` (20k).
    #[arg(long, value_parser = count)]
    pub(crate) open_rate: Option<u64>,
    /// Queries per second of `dns-unbound`.
    #[arg(long, value_parser = count)]
    pub(crate) rate: Option<u64>,
    /// Folder for the results; default: `results` of the benches.
    #[arg(long)]
    results: Option<PathBuf>,
}

impl Setup {
    /// Both CPUs: the servers' and the load's.
    pub(crate) fn cpus(&self) -> [usize; 2] {
        [self.server_cpu, self.load_cpu]
    }

    /// Rounds of a cell.
    pub(crate) fn rounds(&self, regular: u32) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { regular })
    }

    /// Measured seconds of a run.
    pub(crate) fn seconds(&self, regular: f64) -> f64 {
        self.seconds
            .unwrap_or(if self.quick { 1.0 } else { regular })
    }

    /// Seconds before the measured ones.
    pub(crate) fn warmup_seconds(&self) -> f64 {
        if self.quick { 0.3 } else { 1.0 }
    }

    /// Whether the flags leave this candidate in.
    pub(crate) fn wants_candidate(&self, name: &str) -> bool {
        self.candidate.is_empty()
            || self
                .candidate
                .iter()
                .any(|part| name.contains(part.as_str()))
    }

    /// Whether the flags leave this cell in.
    pub(crate) fn wants_cell(&self, title: &str) -> bool {
        self.cell.is_empty() || self.cell.iter().any(|part| title.contains(part.as_str()))
    }

    /// The ringmill binary.
    ///
    /// # Errors
    /// It is not built.
    pub(crate) fn ringmill(&self) -> anyhow::Result<Line> {
        let path = match &self.ringmill {
            Some(path) if path.is_file() => path.clone(),
            Some(path) => bail!("no ringmill at {}", path.display()),
            None => [
                beside("ringmill"),
                PathBuf::from("../target/release/ringmill"),
                PathBuf::from("target/release/ringmill"),
            ]
            .into_iter()
            .find(|path| path.is_file())
            .context("ringmill is not built: `cargo build --release -p ringmill` in its root")?,
        };
        Ok(Line::new(path))
    }

    /// One of the programs of this workspace.
    ///
    /// # Errors
    /// It is not built.
    pub(crate) fn peer(&self, name: &str) -> anyhow::Result<Line> {
        let path = beside(name);
        if !path.is_file() {
            bail!("{name} is not built: `cargo build --release` in benches/");
        }
        Ok(Line::new(path))
    }

    /// Where the results go.
    pub(crate) fn results(&self) -> PathBuf {
        let folder = self.results.clone().unwrap_or_else(|| {
            let inside = Path::new("harness").is_dir();
            PathBuf::from(if inside { "results" } else { "benches/results" })
        });
        if self.quick {
            folder.join("quick")
        } else {
            folder
        }
    }
}

/// A count such as 5000, 10k or 1M.
fn count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        _ => (text, 1),
    };
    let wrong = || format!("{text:?} is no count such as 5000, 10k or 1M");
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(unit)
        .filter(|count| *count > 0)
        .ok_or_else(wrong)
}

/// A program that was built with this one.
fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        for (text, expected) in [
            ("5000", Some(5_000)),
            ("10k", Some(10_000)),
            ("1M", Some(1_000_000)),
            ("0", None),
            ("k", None),
            ("1.5k", None),
        ] {
            assert_eq!(count(text).ok(), expected, "{text}");
        }
    }
}
