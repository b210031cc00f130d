//! A server in the background: the parent looks whether the log can be written, starts itself again
//! as a child and ends. The child leaves terminal and directory behind.
//!
//! A process with threads cannot be forked and go on; one that is started anew can.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use super::log::{Log, Output};
use super::options::{DAEMON_CHILD, Options};
use super::{PROGRAM_NAME, say, status};

/// Starts the child. Gives the parent's exit status.
pub(super) fn start(options: &Options, arguments: &[OsString]) -> u8 {
    if let Some(path) = &options.log_file
        && let Err(error) = Log::open(path, options.log_bytes_max)
    {
        say(&format!("OPEN ERROR: <{}> {error}\n", path.display()));
        return status::INITIALISATION;
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            say(&format!(
                "ERROR: cannot find this program to start it again: {error}\n"
            ));
            return status::INITIALISATION;
        }
    };
    let child = Command::new(program)
        .arg0(PROGRAM_NAME)
        .arg(format!("--{DAEMON_CHILD}"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(_) => status::SUCCESS,
        Err(error) => {
            say(&format!("ERROR: cannot start the daemon: {error}\n"));
            status::INITIALISATION
        }
    }
}

/// Leaves terminal and directory. Relative names of files keep their meaning. Gives where lines go
/// from now on.
pub(super) fn settle(options: &mut Options) -> std::io::Result<Output> {
    let output = match &options.log_file {
        Some(path) => Output::Log(Log::open(path, options.log_bytes_max)?),
        None => Output::Nowhere,
    };
    for name in [&mut options.record, &mut options.stats_file]
        .into_iter()
        .flatten()
    {
        if !name.is_empty() {
            *name = std::path::absolute(&*name)?.into_os_string();
        }
    }
    nix::unistd::setsid()?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    Ok(output)
}
