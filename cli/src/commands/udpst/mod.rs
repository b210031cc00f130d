//! `ringmill udpst`, also started under the name `udpst`: the command line, the text, the JSON, the
//! files and the exit statuses of OB-UDPST 9.0.0 on ringmill's capacity test, so that scripts made
//! for it run unchanged.
//!
//! | file | idea |
//! |---|---|
//! | `getopt`, `options` | the command line |
//! | `help` | what `-?` shows |
//! | `console` | lines of text |
//! | `json` | the three forms of JSON |
//! | `metadata` | names of recordings |
//! | `stats_file` | the statistics of a server |
//! | `status` | the exit status |
//! | `log`, `local_time` | where lines go, and when they say they were written |
//! | `daemon` | a server in the background |
//! | `client`, `server` | a run of either |

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use ringmill_protocols::capacity::keys::{KeyFile, KeyRing, SharedKey};
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

use crate::args::{EngineArgs, PlacementArgs};

mod client;
pub mod console;
mod daemon;
pub mod getopt;
mod help;
pub mod json;
pub mod local_time;
pub mod log;
pub mod metadata;
pub mod options;
mod server;
pub mod stats_file;
pub mod status;

use options::{Mode, Options, OptionsError};

/// The name under which the program is this command alone.
pub const PROGRAM_NAME: &str = "udpst";

/// Arguments of `ringmill udpst`: those of the original, whatever they look like.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct UdpstArgs {
    /// Options and servers; `ringmill udpst -?` lists them.
    #[arg(value_name = "ARGUMENT", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Runs if the program was started as `udpst`, or as `ringmill udpst`: that command line has rules
/// of its own, and nobody else may look at it first.
#[must_use]
pub fn run_if_named(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let program = arguments.next()?;
    if Path::new(&program)
        .file_name()
        .is_some_and(|name| name == PROGRAM_NAME)
    {
        return Some(run(PROGRAM_NAME, arguments).into());
    }
    let command = arguments.next()?;
    (command == PROGRAM_NAME).then(|| run("ringmill udpst", arguments).into())
}

/// Runs, and gives the exit status.
#[must_use]
pub fn run(program: &str, arguments: impl Iterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.collect();
    let options = match Options::parse(arguments.iter().cloned()) {
        Ok(options) => options,
        Err(error) => {
            if let OptionsError::Help(wrong) = &error {
                if let Some(wrong) = wrong {
                    eprintln!("{program}: {wrong}");
                }
                say(&help::text(program));
            } else {
                say(&format!("{error}\n"));
            }
            return status::OPTIONS;
        }
    };
    let keys = match keys(&options) {
        Ok(keys) => keys,
        Err(error) => {
            say(&format!("ERROR: {error}\n"));
            return status::KEY_FILE;
        }
    };
    if options.show_rates {
        let banner = match options.json {
            Some(_) => String::new(),
            None => console::banner(&options),
        };
        say(&(banner + &console::rate_table(options.table())));
        return status::SUCCESS;
    }
    let ended = match watch_signals() {
        Ok(ended) => ended,
        Err(error) => {
            say(&format!("ERROR: cannot catch signals: {error}\n"));
            return status::INITIALISATION;
        }
    };
    match options.mode {
        Mode::Client(direction) => {
            let id = Some(options.key_id);
            let key = keys.for_client(id);
            match key {
                Ok(key) => {
                    let key = key.map(|(id, key)| (id, key.clone()));
                    client::run(&options, direction, key, &ended)
                }
                Err(error) => {
                    say(&format!("ERROR: {error}\n"));
                    status::KEY_FILE
                }
            }
        }
        Mode::Server if options.daemon && !options.daemon_child => {
            daemon::start(&options, &arguments)
        }
        Mode::Server => server::run(options, keys, &ended),
    }
}

/// The keys of the command line and of the file.
fn keys(options: &Options) -> Result<KeyRing, String> {
    let command_line = options.key.as_ref().map(SharedKey::new);
    let file = options.key_file.as_ref().map(|path| {
        let named = |error: &dyn std::fmt::Display| format!("key file {}: {error}", path.display());
        let bytes = std::fs::read(path).map_err(|error| named(&error))?;
        let bytes = zeroize::Zeroizing::new(bytes);
        KeyFile::parse(&bytes).map_err(|error| named(&error))
    });
    let keys = KeyRing {
        command_line: command_line
            .transpose()
            .map_err(|error| format!("-a: {error}"))?,
        file: file.transpose()?,
    };
    if let Mode::Client(_) = options.mode {
        keys.for_client(Some(options.key_id))
            .map_err(|error| error.to_string())?;
    }
    Ok(keys)
}

/// Everything goes to standard output, errors too. Who no longer reads it does not end a test.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Set by any of the signals that end the program.
fn watch_signals() -> std::io::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGQUIT, SIGTSTP] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    Ok(ended)
}

/// How the engine runs.
fn engine_args(options: &Options) -> EngineArgs {
    EngineArgs {
        placement: PlacementArgs {
            shards: options.shards,
            cpus: options.cpus.clone(),
            interface: Vec::new(),
        },
        driver: options.driver,
        ..EngineArgs::default()
    }
}
