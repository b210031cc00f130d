//! What an apply or a revert did, for people or as JSON.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::tune::apply::{Change, Outcome};
use crate::tune::plan::Left;

/// Says what was applied.
pub(super) fn applied(outcome: &Outcome, state: &Path, json: bool) -> Result<()> {
    if json {
        return print_json(outcome);
    }
    changes(&outcome.changed);
    list("left alone", &outcome.left);
    rest(outcome);
    println!(
        "profile {}: {} changed, {} already as wanted, {} failed; the old values are in {}",
        outcome.profile,
        outcome.changed.len(),
        outcome.unchanged,
        outcome.failed.len(),
        state.display()
    );
    Ok(())
}

/// Says what was taken back.
pub(super) fn reverted(outcome: Option<&Outcome>, state: &Path, json: bool) -> Result<()> {
    let Some(outcome) = outcome else {
        if json {
            println!("null");
        } else {
            println!("nothing is applied: there is no record {}", state.display());
        }
        return Ok(());
    };
    if json {
        return print_json(outcome);
    }
    changes(&outcome.changed);
    list("left alone", &outcome.left);
    rest(outcome);
    println!(
        "profile {}: {} restored, {} were as before, {} failed",
        outcome.profile,
        outcome.changed.len(),
        outcome.unchanged,
        outcome.failed.len()
    );
    if !outcome.failed.is_empty() {
        println!("what failed stays in the record {}", state.display());
    }
    Ok(())
}

fn print_json(outcome: &Outcome) -> Result<()> {
    println!(
        "{}",
        serde_json::to_string(outcome).context("cannot write JSON")?
    );
    Ok(())
}

fn changes(changes: &[Change]) {
    let brief = |value: &Option<String>| match value {
        None => "nothing".to_owned(),
        Some(text) if text.contains('\n') => "a text".to_owned(),
        Some(text) if text.is_empty() => "no CPU".to_owned(),
        Some(text) => text.clone(),
    };
    for change in changes {
        println!(
            "  {}: {} -> {}",
            change.setting,
            brief(&change.from),
            brief(&change.to)
        );
    }
}

fn list(title: &str, items: &[Left]) {
    for item in items {
        println!("  {title}: {}: {}", item.what, item.why);
    }
}

fn rest(outcome: &Outcome) {
    for item in &outcome.failed {
        eprintln!("ringmill: {}: {}", item.what, item.why);
    }
    for warning in &outcome.warnings {
        eprintln!("ringmill: warning: {warning}");
    }
}
