//! tcpserver: an echo server on every address.
//!
//! The original prints a line for each connection, on its only thread, and raises the kernel's limit
//! of files for good. Neither is done here; where it listens is told as by `ringmill serve`.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::args::{EngineArgs, GuardArgs, LimitArgs};
use crate::config::Configuration;
use crate::endpoint::{Endpoint, Host, Transport};
use crate::exit::{Exit, UsageError};
use crate::server::{self, ConsoleArgs};
use crate::service::{Definition, Module};

use super::Program;

/// Where it listens unless told.
const PORT_DEFAULT: u16 = 4242;

/// Serves until a signal ends it.
///
/// # Errors
/// When the port is none, or cannot be listened on.
pub(super) fn run(called: &str, mut arguments: impl Iterator<Item = OsString>) -> Result<Exit> {
    let port = match arguments.next() {
        None => PORT_DEFAULT,
        Some(text) if text == "-h" || text == "--help" => {
            eprintln!("usage: {called} [PORT]\nEchoes what TCP clients send ({PORT_DEFAULT}).");
            return Ok(Exit::Ok);
        }
        Some(text) => match text.to_string_lossy().parse() {
            Ok(port) if port > 0 => port,
            _ => bail!(UsageError(format!("{text:?} is no port from 1 to 65535"))),
        },
    };
    let configuration = Configuration {
        json: false,
        stats: None,
        engine: EngineArgs::default(),
        limits: LimitArgs::default(),
        services: vec![Definition {
            name: Program::TcpServer.name().to_owned(),
            module: Module::Echo(GuardArgs::default()),
            endpoints: vec![Endpoint::Inet {
                transport: Transport::Tcp,
                host: Host::Any,
                port,
            }],
        }],
    };
    let console = ConsoleArgs {
        console: false,
        no_console: true,
    };
    server::run(&configuration, console, None)
}
