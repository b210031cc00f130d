//! `ringmill report`: works on reports that were written before.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::exit::{Exit, UsageError};
use crate::report::merge::{self, Input, Merged, MergedInterval, human};

/// The largest file that is read: the intervals of a day are some hundred megabytes. A larger one is
/// something else.
const FILE_BYTES_MAX: u64 = 1 << 30;

const EXAMPLES: &str = "\
Examples:
  ringmill report merge host-*.ndjson host-*.hlog      one report of many hosts
  ringmill report merge results/*.ndjson --json > all.ndjson
  cat host-*.ndjson | ringmill report merge -

See docs/many-hosts.md for how to start them together.";

/// Flags of `ringmill report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ReportCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ReportCommand {
    /// Join what many hosts wrote in one load or soak into one report.
    Merge(MergeArgs),
}

/// Flags of `ringmill report merge`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct MergeArgs {
    /// What the hosts wrote with --json and with --histogram, in any order; - is standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Print NDJSON: one object for each second, then the merged report.
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
///
/// # Errors
/// When a file cannot be read or is of another kind.
pub fn run(args: &ReportArgs) -> Result<Exit> {
    match &args.command {
        ReportCommand::Merge(args) => run_merge(args),
    }
}

fn run_merge(args: &MergeArgs) -> Result<Exit> {
    let inputs = args.files.iter().map(|file| read(file));
    let merged = merge::merge(inputs.collect::<Result<_>>()?)
        .map_err(|error| UsageError(error.to_string()))?;
    let mut out = std::io::stdout().lock();
    if args.json {
        out.write_all(&lines(&merged)?)?;
    } else {
        out.write_all(human::render(&merged).as_bytes())?;
    }
    out.flush()?;
    Ok(Exit::Ok)
}

fn read(file: &Path) -> Result<Input> {
    let name = file.display().to_string();
    let mut bytes = Vec::new();
    let read = if name == "-" {
        std::io::stdin()
            .lock()
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
    } else {
        let opened = std::fs::File::open(file)
            .with_context(|| format!("cannot read {name}; give the files that the hosts wrote"))?;
        opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)
    };
    read.with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!(UsageError(format!(
            "{name}: more than {FILE_BYTES_MAX} bytes; this is no output of a run"
        )));
    }
    let input = merge::read(&name, &bytes).map_err(|error| UsageError(error.to_string()))?;
    Ok(input)
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Interval(&'a MergedInterval),
    Merged(&'a Merged),
}

fn lines(merged: &Merged) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let intervals = merged.intervals.iter().map(Line::Interval);
    for line in intervals.chain([Line::Merged(merged)]) {
        serde_json::to_writer(&mut text, &line).context("cannot write JSON")?;
        text.push(b'\n');
    }
    Ok(text)
}
