//! `ringmill tune check`: the settings, the limits and the counters of a host, for people and for CI.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{GoalArgs, has_direct_descriptors, judged};
use crate::exit::Exit;
use crate::tune::apply::TuneError;
use crate::tune::check::{self, Report, Row, Standing};
use crate::tune::formula::Goal;
use crate::tune::limits::Usage;
use crate::tune::plan::Untouched;
use crate::tune::script::goal_in_words;
use crate::tune::state;
use crate::units::{self, format_count};

/// Flags of `ringmill tune check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// For what.
    #[command(flatten)]
    pub goal: GoalArgs,

    /// Destinations that clients connect to: addresses times ports.
    #[arg(long, value_name = "N", value_parser = units::parse_count, default_value = "1")]
    pub destinations: u64,

    /// Round-trip time of the path: how much one connection can carry.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub rtt: Option<Duration>,

    /// Also say why each setting that is right should be so.
    #[arg(long, short = 'v')]
    pub verbose: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Looks at the host.
///
/// # Errors
/// When the flags are wrong.
pub(super) fn run(args: &CheckArgs) -> Result<Exit> {
    let place = &args.goal.place;
    let host = place.host();
    let request = args.goal.request(&host, false)?;
    let usage = Usage {
        role: request.profile.role,
        sources: args.goal.sources.count().max(1),
        destinations: args.destinations.max(1),
        rtt_s: args
            .rtt
            .map(|rtt| rtt.as_secs_f64())
            .filter(|rtt| *rtt > 0.0),
        direct_descriptors: has_direct_descriptors(),
        fragments: request.profile.expects_fragments(),
    };
    let report = check::check(&host, &request, &usage, &Untouched)
        .map_err(|error| judged(TuneError::Plan(error)))?;
    if args.json {
        let text = serde_json::to_string(&report).context("cannot write JSON")?;
        println!("{text}");
    } else {
        let applied = state::read(&place.state())
            .ok()
            .flatten()
            .map(|record| record.profile);
        print!(
            "{}",
            rendered(&report, &request.goal, applied.as_deref(), args.verbose)
        );
    }
    Ok(if report.is_good() {
        Exit::Ok
    } else {
        Exit::Condition
    })
}

/// Columns of names and of values.
const NAME_COLUMNS: usize = 36;
const VALUE_COLUMNS: usize = 26;

fn rendered(report: &Report, goal: &Goal, applied: Option<&str>, verbose: bool) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{line}");
    };
    line(format_args!("Profile {}: {}", report.profile, report.title));
    line(format_args!("{}", goal_in_words(goal)));
    if let Some(applied) = applied {
        line(format_args!(
            "Profile {applied} is applied; `ringmill tune revert` takes it back"
        ));
    }
    line(format_args!(
        "\n    {:<NAME_COLUMNS$}{:<VALUE_COLUMNS$}wanted",
        "Settings", "now"
    ));
    for row in &report.settings {
        settings_row(row, verbose, &mut line);
    }
    line(format_args!("\n    To see"));
    for fact in &report.facts {
        line(format_args!(
            "    {:<NAME_COLUMNS$}{}",
            fact.name, fact.value
        ));
    }
    if !report.limits.is_empty() {
        line(format_args!("\n    Limits, the lowest of its kind first"));
    }
    for limit in &report.limits {
        let mark = if report.falls_short.contains(limit) {
            '!'
        } else {
            '+'
        };
        line(format_args!(
            "  {mark} {:<NAME_COLUMNS$}{}",
            limit.name,
            limit.in_words()
        ));
        line(format_args!("      {}", limit.rule));
    }
    if !report.counted.is_empty() || report.now.time_wait.is_some() {
        line(format_args!(
            "\n    Counted since this network namespace was made"
        ));
    }
    let gauges = [
        ("in TIME_WAIT now", report.now.time_wait),
        ("tracked now", report.now.conntrack),
    ];
    for (name, value) in gauges {
        if let Some(value) = value {
            line(format_args!(
                "    {name:<NAME_COLUMNS$}{}",
                format_count(value)
            ));
        }
    }
    for finding in &report.counted {
        let name = finding.name;
        line(format_args!(
            "  ! {name:<NAME_COLUMNS$}{}: {} (see {})",
            format_count(finding.count),
            finding.cause,
            finding.helps
        ));
    }
    line(format_args!(""));
    for limit in &report.binds_first {
        let short = if report.falls_short.contains(limit) {
            ", below what is wanted"
        } else {
            ""
        };
        line(format_args!(
            "Binds first: {} at {}{short}",
            limit.name,
            limit.in_words()
        ));
    }
    match report.differing() {
        0 if report.is_good() => line(format_args!("Everything is as wanted")),
        0 => line(format_args!(
            "Every setting that can be changed here is as wanted"
        )),
        count => line(format_args!(
            "{count} of {} settings differ: `ringmill tune plan --profile {}` prints what to do",
            report.settings.len(),
            report.profile
        )),
    }
    text
}

fn settings_row(row: &Row, verbose: bool, line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
    let name = &row.name;
    match row.standing {
        Standing::Right => {
            line(format_args!(
                "  + {name:<NAME_COLUMNS$}{:<VALUE_COLUMNS$}{}",
                row.now, row.wanted
            ));
            if !verbose {
                return;
            }
        }
        Standing::Differs => {
            line(format_args!(
                "  ! {name:<NAME_COLUMNS$}{:<VALUE_COLUMNS$}{}",
                row.now, row.wanted
            ));
        }
        Standing::Left => line(format_args!("  - {name:<NAME_COLUMNS$}{}", row.now)),
    }
    line(format_args!("      {}. Source: {}", row.reason, row.source));
    if let Some(risk) = &row.risk {
        line(format_args!("      RISK: {risk}"));
    }
}
