//! `ringmill tcpclient`, `ringmill udpclient` and `ringmill tcpserver`, also started under these names:
//! the command lines of tcpscaler's programs and the lines of their `-R`, so that scripts made for
//! them run unchanged, on the load and the servers of ringmill.
//!
//! | file | idea |
//! |---|---|
//! | `options` | the command line of the clients |
//! | `client` | a run of either client |
//! | `server` | the server |
//!
//! Standard output carries what the originals print there and nothing else; the summary that they
//! lack goes to standard error. What differs is in `docs/dns.md`.

mod client;
pub mod options;
mod server;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::exit;

/// Which of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// DNS queries over TCP.
    TcpClient,
    /// DNS queries over UDP.
    UdpClient,
    /// An echo server.
    TcpServer,
}

impl Program {
    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::TcpClient, Self::UdpClient, Self::TcpServer];
        all.into_iter().find(|program| program.name() == name)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpClient => "tcpclient",
            Self::UdpClient => "udpclient",
            Self::TcpServer => "tcpserver",
        }
    }
}

/// Arguments of one of the programs, whatever they look like.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct TcpscalerArgs {
    /// Those of the original; `-h` lists them.
    #[arg(value_name = "ARGUMENT", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Runs if the program was started under one of the names, or as `ringmill NAME`: these command
/// lines have rules of their own, and nobody else may look at them first.
#[must_use]
pub fn run_if_named(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let path = arguments.next()?;
    let own_name = Path::new(&path).file_name().and_then(|name| name.to_str());
    if let Some(program) = own_name.and_then(Program::named) {
        return Some(run(program, program.name(), arguments));
    }
    let command = arguments.next()?;
    let program = command.to_str().and_then(Program::named)?;
    Some(run(
        program,
        &format!("ringmill {}", program.name()),
        arguments,
    ))
}

/// Runs a program. `called` is how it was started.
pub fn run(program: Program, called: &str, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let result = match program {
        Program::TcpServer => server::run(called, arguments),
        Program::TcpClient | Program::UdpClient => {
            match options::Options::parse(program, arguments) {
                Ok(options) => client::run(&options),
                Err(options::OptionsError::Help) => {
                    eprint!("{}", options::usage(program, called));
                    return ExitCode::SUCCESS;
                }
                Err(error) => {
                    eprintln!("Error: {error}");
                    eprint!("{}", options::usage(program, called));
                    return ExitCode::FAILURE;
                }
            }
        }
    };
    crate::printer::finish();
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("{called}: {error:#}");
            exit::of(&error).into()
        }
    }
}
