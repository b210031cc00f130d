//! Results as a page for people and a file for programs.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;
use serde_json::{Value, json};

use crate::rounds::{OTHERS_SHARE_MAX, STEAL_SHARE_MAX, Series};
use crate::setup::Setup;

/// One column of a scenario's tables.
pub(crate) struct Column {
    /// The figure's name in the runs.
    pub(crate) key: &'static str,
    /// Its heading, with the unit.
    pub(crate) title: &'static str,
    /// Figures are divided by this to come to that unit.
    pub(crate) divisor: f64,
    /// Digits after the point.
    pub(crate) digits: usize,
    /// Also show the lowest and the highest run; the JSON always has them.
    pub(crate) spread: bool,
    /// Also show the ratio to the best peer.
    pub(crate) ratio: bool,
}

/// A column without ratio.
pub(crate) const fn column(
    key: &'static str,
    title: &'static str,
    divisor: f64,
    digits: usize,
) -> Column {
    Column {
        key,
        title,
        divisor,
        digits,
        spread: false,
        ratio: false,
    }
}

impl Column {
    /// The same with lowest and highest run.
    pub(crate) const fn with_spread(self) -> Column {
        Column {
            spread: true,
            ..self
        }
    }

    /// The same with lowest and highest run and the ratio to the best peer.
    pub(crate) const fn with_ratio(self) -> Column {
        Column {
            spread: true,
            ratio: true,
            ..self
        }
    }
}

/// A claim and what was measured.
pub(crate) struct Goal {
    text: String,
    /// None: not measured.
    value: Option<f64>,
    limit: f64,
    at_least: bool,
}

impl Goal {
    /// The value must not be below the limit.
    pub(crate) fn at_least(text: impl Into<String>, value: Option<f64>, limit: f64) -> Goal {
        Goal {
            text: text.into(),
            value,
            limit,
            at_least: true,
        }
    }

    /// The value must not be above the limit.
    pub(crate) fn at_most(text: impl Into<String>, value: Option<f64>, limit: f64) -> Goal {
        Goal {
            text: text.into(),
            value,
            limit,
            at_least: false,
        }
    }

    fn verdict(&self) -> &'static str {
        match self.value {
            None => "not measured",
            Some(value) if self.at_least && value >= self.limit => "pass",
            Some(value) if !self.at_least && value <= self.limit => "pass",
            Some(_) => "SHORT",
        }
    }

    /// One line: claim, limit, value, verdict.
    pub(crate) fn line(&self) -> String {
        let sign = if self.at_least { '≥' } else { '≤' };
        let value = self.value.map_or("–".into(), |value| format!("{value:.3}"));
        format!(
            "{}: {value} (goal {sign} {}): {}",
            self.text,
            self.limit,
            self.verdict()
        )
    }

    fn to_json(&self) -> Value {
        json!({
            "text": self.text, "value": self.value, "limit": self.limit,
            "sense": if self.at_least { "at least" } else { "at most" },
            "verdict": self.verdict(),
        })
    }
}

/// One table: candidates under the same conditions.
pub(crate) struct Cell {
    /// The conditions.
    pub(crate) title: String,
    /// What was measured.
    pub(crate) series: Vec<Series>,
    /// What was claimed.
    pub(crate) goals: Vec<Goal>,
}

/// A whole scenario.
pub(crate) struct Outcome {
    /// Its name on the command line, and of its files.
    pub(crate) scenario: &'static str,
    /// What it measures, a few sentences.
    pub(crate) about: &'static str,
    /// The columns of its tables.
    pub(crate) columns: Vec<Column>,
    /// The figure by which the best peer is chosen, and whether more is better.
    pub(crate) best_by: (&'static str, bool),
    /// Its tables.
    pub(crate) cells: Vec<Cell>,
    /// What a reader must know to judge the figures.
    pub(crate) notes: Vec<String>,
}

/// The best of the peers by one figure.
pub(crate) fn best_peer<'a>(
    series: &'a [Series],
    key: &str,
    more_is_better: bool,
) -> Option<&'a Series> {
    let measured = series
        .iter()
        .filter(|series| series.peer)
        .filter_map(|series| Some((series, series.median(key)?)));
    let by_value = |a: &(&Series, f64), b: &(&Series, f64)| a.1.total_cmp(&b.1);
    let best = if more_is_better {
        measured.max_by(by_value)
    } else {
        measured.min_by(by_value)
    };
    best.map(|(series, _)| series)
}

/// The series of this name.
pub(crate) fn named<'a>(series: &'a [Series], name: &str) -> Option<&'a Series> {
    series.iter().find(|series| series.name == name)
}

/// Ratio of the medians of one figure; none: one of them is missing.
pub(crate) fn ratio(of: Option<&Series>, to: Option<&Series>, key: &str) -> Option<f64> {
    let (of, to) = (of?.median(key)?, to?.median(key)?);
    (to != 0.0).then(|| of / to)
}

/// Writes `<scenario>.md` and `<scenario>.json`; prints the goals.
///
/// # Errors
/// The folder or the files cannot be written.
pub(crate) fn write(setup: &Setup, machine: &Value, outcome: &Outcome) -> anyhow::Result<()> {
    let folder = setup.results();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (ending, text) in [
        ("md", markdown(setup, machine, outcome)),
        ("json", format!("{:#}\n", to_json(setup, machine, outcome))),
    ] {
        let path = folder.join(format!("{}.{ending}", outcome.scenario));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for cell in &outcome.cells {
        for goal in &cell.goals {
            println!("{}: {}: {}", outcome.scenario, cell.title, goal.line());
        }
    }
    Ok(())
}

fn markdown(setup: &Setup, machine: &Value, outcome: &Outcome) -> String {
    let mut page = format!("# {}\n\n{}\n\n", outcome.scenario, outcome.about);
    if setup.quick {
        page += "**A quick run on a machine that may be busy: it tests the mechanics, its figures mean nothing.**\n\n";
    }
    page += "## Machine\n\n";
    for (key, value) in machine.as_object().into_iter().flatten() {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(page, "- {}: {value}", key.replace('_', " "));
    }
    let _ = writeln!(
        page,
        "- servers on CPU {}, load on CPU {}; a run counts only with steal ≤ {} % and other processes ≤ {} % of the two",
        setup.server_cpu,
        setup.load_cpu,
        STEAL_SHARE_MAX * 100.0,
        OTHERS_SHARE_MAX * 100.0,
    );
    let _ = writeln!(
        page,
        "- repeated by `benches/run.sh {}`",
        invocation(setup, outcome)
    );
    for note in &outcome.notes {
        let _ = writeln!(page, "- {note}");
    }
    for cell in &outcome.cells {
        let _ = write!(page, "\n## {}\n\n", cell.title);
        page += &table(outcome, cell);
        for goal in &cell.goals {
            let _ = write!(page, "\n- {}", goal.line());
        }
        page += "\n\nCommands:\n\n```\n";
        for series in &cell.series {
            for command in &series.commands {
                let _ = writeln!(page, "{:<20} {command}", series.name);
            }
        }
        page += "```\n";
    }
    page
}

/// What to type for the same again.
fn invocation(setup: &Setup, outcome: &Outcome) -> String {
    let mut flags = format!(
        "{}{}",
        outcome.scenario,
        if setup.quick { " --quick" } else { "" }
    );
    let _ = write!(
        flags,
        " --server-cpu {} --load-cpu {}",
        setup.server_cpu, setup.load_cpu
    );
    for (flag, value) in [
        ("rounds", setup.rounds.map(|rounds| rounds.to_string())),
        ("seconds", setup.seconds.map(|seconds| seconds.to_string())),
    ] {
        if let Some(value) = value {
            let _ = write!(flags, " --{flag} {value}");
        }
    }
    for (flag, value) in [
        ("connections", setup.connections),
        ("open-rate", setup.open_rate),
        ("rate", setup.rate),
    ] {
        if let Some(value) = value {
            let _ = write!(flags, " --{flag} {value}");
        }
    }
    if let Some(hold) = setup.hold {
        let _ = write!(flags, " --hold {hold}");
    }
    for (flag, values) in [("cell", &setup.cell), ("candidate", &setup.candidate)] {
        for value in values {
            let _ = write!(flags, " --{flag} '{value}'");
        }
    }
    flags
}

fn table(outcome: &Outcome, cell: &Cell) -> String {
    let (key, more) = outcome.best_by;
    let best = best_peer(&cell.series, key, more);
    let mut heads = vec!["candidate".to_owned(), "runs".to_owned()];
    for column in &outcome.columns {
        let spread = if column.spread { " (min–max)" } else { "" };
        heads.push(format!("{}{spread}", column.title));
        if column.ratio {
            heads.push(best.map_or("ratio".into(), |best| format!("× {}", best.name)));
        }
    }
    let mut text = format!(
        "| {} |\n|{}\n",
        heads.join(" | "),
        " --- |".repeat(heads.len())
    );
    for series in &cell.series {
        let mut fields = vec![series.name.clone(), series.runs.len().to_string()];
        if series.runs.is_empty() {
            let reason = series
                .failure
                .as_deref()
                .unwrap_or(if series.rejected.is_empty() {
                    "left out"
                } else {
                    "no valid run: the machine was busy"
                });
            fields.push(format!("not measured: {}", reason.replace('|', "/")));
            fields.resize(heads.len(), String::new());
        } else {
            for column in &outcome.columns {
                fields.push(series.spread(column.key).map_or("–".into(), |spread| {
                    let [median, min, max] = [spread.median, spread.min, spread.max]
                        .map(|value| grouped(value / column.divisor, column.digits));
                    if column.spread {
                        format!("**{median}** ({min}–{max})")
                    } else {
                        median
                    }
                }));
                if column.ratio {
                    let ratio = ratio(Some(series), best, column.key);
                    fields.push(ratio.map_or("–".into(), |ratio| format!("{ratio:.3}")));
                }
            }
        }
        let rejected = series.rejected.len();
        if rejected > 0 {
            let _ = write!(fields[1], " (+{rejected} rejected)");
        }
        let _ = writeln!(text, "| {} |", fields.join(" | "));
    }
    text
}

/// A number with a comma at every thousand.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(w, r)| (w, Some(r)));
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(rest) = rest {
        out.push('.');
        out += rest;
    }
    out
}

fn to_json(setup: &Setup, machine: &Value, outcome: &Outcome) -> Value {
    let cells: Vec<Value> = outcome.cells.iter().map(|cell| {
        let series: Vec<Value> = cell.series.iter().map(|series| {
            let medians: serde_json::Map<String, Value> = outcome.columns.iter().filter_map(|column| {
                let spread = series.spread(column.key)?;
                let found = json!({"median": spread.median, "min": spread.min, "max": spread.max});
                Some((column.key.to_owned(), found))
            }).collect();
            let runs: Vec<Value> = series.runs.iter().map(|run| json!({
                "values": run.values,
                "steal": run.noise.steal,
                "others": run.noise.others,
                "detail": run.detail,
            })).collect();
            json!({
                "candidate": series.name, "peer": series.peer, "commands": series.commands,
                "figures": medians, "runs": runs, "rejected": series.rejected,
                "failure": series.failure,
            })
        }).collect();
        let goals: Vec<Value> = cell.goals.iter().map(Goal::to_json).collect();
        json!({"title": cell.title, "series": series, "goals": goals})
    }).collect();
    json!({
        "scenario": outcome.scenario, "quick": setup.quick, "machine": machine,
        "server_cpu": setup.server_cpu, "load_cpu": setup.load_cpu,
        "steal_share_max": STEAL_SHARE_MAX, "others_share_max": OTHERS_SHARE_MAX,
        "notes": outcome.notes, "cells": cells,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (value, digits, expected) in [
            (0.0, 0, "0"),
            (999.0, 0, "999"),
            (1000.0, 0, "1,000"),
            (1234567.891, 2, "1,234,567.89"),
            (-45678.0, 0, "-45,678"),
        ] {
            assert_eq!(grouped(value, digits), expected);
        }
    }

    #[test]
    fn goals_judge_at_their_limit() {
        for (goal, verdict) in [
            (Goal::at_least("x", Some(1.05), 1.05), "pass"),
            (Goal::at_least("x", Some(1.04), 1.05), "SHORT"),
            (Goal::at_most("x", Some(0.94), 0.94), "pass"),
            (Goal::at_most("x", Some(0.95), 0.94), "SHORT"),
            (Goal::at_most("x", None, 0.94), "not measured"),
        ] {
            assert_eq!(goal.verdict(), verdict, "{}", goal.line());
        }
    }
}
