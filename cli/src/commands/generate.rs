//! `ringmill completions` and `ringmill man`: made from the flags, so they cannot lag behind them.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell as Known;

use super::Cli;
use crate::exit::Exit;

/// Shells that can complete our flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// Flags of `ringmill completions`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct CompletionsArgs {
    /// For which shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

const COMPLETIONS_HELP: &str = "\
Where to put it:
  ringmill completions bash > ~/.local/share/bash-completion/completions/ringmill
  ringmill completions zsh > \"${fpath[1]}/_ringmill\"
  ringmill completions fish > ~/.config/fish/completions/ringmill.fish";

/// Flags of `ringmill man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for each command into this folder, which is made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Prints the completions.
///
/// # Errors
/// When they cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<Exit> {
    let shell = match args.shell {
        Shell::Bash => Known::Bash,
        Shell::Zsh => Known::Zsh,
        Shell::Fish => Known::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringmill", &mut script);
    std::io::stdout()
        .write_all(&script)
        .context("cannot write the completions")?;
    Ok(Exit::Ok)
}

/// Writes the man pages.
///
/// # Errors
/// When the folder cannot be written.
pub fn man(args: &ManArgs) -> Result<Exit> {
    let folder = args.out.display();
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {folder}"))?;
    clap_mangen::generate_to(Cli::command(), &args.out)
        .with_context(|| format!("cannot write man pages to {folder}"))?;
    println!("man pages in {folder}; read one with: man {folder}/ringmill.1");
    Ok(Exit::Ok)
}
