//! Rounds: every candidate once per round, in the same order, so that a slow
//! minute of the machine hits all of them; runs on a noisy machine are thrown
//! away and repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::host::Noise;
use crate::setup::Setup;
use crate::stats::{Spread, spread};

/// More time stolen by the hypervisor makes a run worthless.
pub(crate) const STEAL_SHARE_MAX: f64 = 0.02;
/// More CPU used by other processes does, too.
pub(crate) const OTHERS_SHARE_MAX: f64 = 0.08;
/// Tries for one run before its place in the round stays empty.
const ATTEMPTS_MAX: u32 = 6;
/// Failures in a row after which a candidate is left out of a cell.
const FAILURES_MAX: u32 = 2;
/// What makes noise often lasts for seconds.
const PAUSE_AFTER_NOISE: Duration = Duration::from_secs(3);

/// The figures of one run.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Figures by name; units are last in the names.
    pub(crate) values: BTreeMap<&'static str, f64>,
    /// How quiet the machine was.
    pub(crate) noise: Noise,
    /// What the programs reported, kept whole in the JSON results.
    pub(crate) detail: Value,
}

/// One thing to measure in a cell.
pub(crate) struct Candidate<'a> {
    /// Its name in the table.
    pub(crate) name: String,
    /// Not ours: ratios are taken against the best of these.
    pub(crate) peer: bool,
    /// The commands, for the reader.
    pub(crate) commands: Vec<String>,
    /// One run.
    pub(crate) run: Box<dyn Fn() -> anyhow::Result<Run> + 'a>,
}

/// What came out for one candidate.
pub(crate) struct Series {
    /// As in [`Candidate`].
    pub(crate) name: String,
    /// As in [`Candidate`].
    pub(crate) peer: bool,
    /// As in [`Candidate`].
    pub(crate) commands: Vec<String>,
    /// The valid runs, in order.
    pub(crate) runs: Vec<Run>,
    /// Why runs were thrown away.
    pub(crate) rejected: Vec<String>,
    /// The last failure, if any.
    pub(crate) failure: Option<String>,
}

impl Series {
    /// Median and bounds of one figure; none: it was never measured.
    pub(crate) fn spread(&self, key: &str) -> Option<Spread> {
        spread(
            self.runs
                .iter()
                .filter_map(|run| run.values.get(key).copied()),
        )
    }

    /// Median of one figure.
    pub(crate) fn median(&self, key: &str) -> Option<f64> {
        self.spread(key).map(|spread| spread.median)
    }

    /// Sum of one figure over all runs; none: it was never measured.
    pub(crate) fn sum(&self, key: &str) -> Option<f64> {
        let values = || self.runs.iter().filter_map(|run| run.values.get(key));
        values().next()?;
        Some(values().sum())
    }
}

/// Runs all candidates `rounds` times: A B C A B C …
pub(crate) fn interleave(setup: &Setup, rounds: u32, candidates: &[Candidate<'_>]) -> Vec<Series> {
    let mut all: Vec<Series> = candidates
        .iter()
        .map(|candidate| Series {
            name: candidate.name.clone(),
            peer: candidate.peer,
            commands: candidate.commands.clone(),
            runs: Vec::new(),
            rejected: Vec::new(),
            failure: None,
        })
        .collect();
    let mut failures = vec![0; candidates.len()];
    for round in 1..=rounds {
        for ((candidate, series), failures) in candidates.iter().zip(&mut all).zip(&mut failures) {
            if *failures >= FAILURES_MAX || !setup.wants_candidate(&candidate.name) {
                continue;
            }
            eprint!("  round {round}/{rounds}  {:<24}", candidate.name);
            match one_run(setup, candidate, series) {
                Ok(()) => *failures = 0,
                Err(error) => {
                    eprintln!(" failed: {error:#}");
                    series.failure = Some(format!("{error:#}"));
                    *failures += 1;
                }
            }
        }
    }
    all
}

/// Repeats until a run is valid or the attempts are used up.
fn one_run(setup: &Setup, candidate: &Candidate<'_>, series: &mut Series) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        let run = (candidate.run)()?;
        let Noise { steal, others } = run.noise;
        let noise = format!(
            "steal {:.1} %, others {:.1} %",
            steal * 100.0,
            others * 100.0
        );
        if setup.quick || (steal <= STEAL_SHARE_MAX && others <= OTHERS_SHARE_MAX) {
            let figures: Vec<String> = ["messages_per_s", "cpu_ns", "gbit_per_s", "p50_ns"]
                .iter()
                .filter_map(|key| Some(format!("{key} {:.1}", run.values.get(key)?)))
                .collect();
            eprintln!(" {}  ({noise})", figures.join("  "));
            series.runs.push(run);
            return Ok(());
        }
        eprint!(" rejected ({noise})");
        series.rejected.push(noise);
        std::thread::sleep(PAUSE_AFTER_NOISE);
    }
    eprintln!(" no valid run in {ATTEMPTS_MAX} attempts");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use clap::Parser;

    use super::*;

    #[test]
    fn rounds_interleave_and_a_failing_candidate_leaves() {
        let order = RefCell::new(String::new());
        let candidate = |name: &'static str, fails: bool| {
            let order = &order;
            Candidate {
                name: name.into(),
                peer: false,
                commands: Vec::new(),
                run: Box::new(move || {
                    order.borrow_mut().push_str(name);
                    anyhow::ensure!(!fails, "refused");
                    Ok(Run {
                        values: BTreeMap::from([("messages_per_s", 5.0)]),
                        ..Run::default()
                    })
                }),
            }
        };
        let candidates = [
            candidate("a", false),
            candidate("b", true),
            candidate("c", false),
        ];
        let setup = Setup::parse_from(["bench"]);
        let series = interleave(&setup, 4, &candidates);
        assert_eq!(*order.borrow(), "abcabcacac");
        assert_eq!(series[0].median("messages_per_s"), Some(5.0));
        assert_eq!(series[0].sum("messages_per_s"), Some(20.0));
        assert_eq!(series[1].failure.as_deref(), Some("refused"));
        assert_eq!(series[1].median("messages_per_s"), None);
    }
}
