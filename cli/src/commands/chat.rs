//! `ringmill chat`: a person in a chat.

use anyhow::Result;
use clap::Args;

use super::echo::{self, Ends};
use crate::args::DriverArg;
use crate::chat::FrameArg;
use crate::endpoint::{Endpoint, Transport};
use crate::exit::{Exit, UsageError};

/// Flags of `ringmill chat`.
#[derive(Debug, Args)]
#[command(after_help = WORDS)]
pub struct ChatArgs {
    /// The server: tcp://HOST:PORT or unix:/path.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// Where messages end, as at the server: with 'line' each line is sent with its line end, and
    /// what comes is printed as it is; otherwise as one line for each receive.
    #[arg(long, value_enum, default_value_t)]
    pub frame: FrameArg,

    /// How to talk to the kernel.
    #[arg(long, value_enum, default_value_t)]
    pub driver: DriverArg,
}

const WORDS: &str = "\
Each line goes to everyone in the chat; what everyone says is printed.
  !             disconnects; as after any disconnect, it connects again one second later
  empty line    ends; so does the end of input

Examples:
  ringmill chat tcp://:1111
  ringmill chat unix:/tmp/chat.sock --frame line";

/// Talks until an empty line, the end of input or a signal.
///
/// # Errors
/// When the endpoint is none of a chat or cannot be resolved, or no engine can be started.
pub fn run(args: &ChatArgs) -> Result<Exit> {
    if let Endpoint::Inet {
        transport: Transport::Udp,
        ..
    } = args.endpoint
    {
        let words = format!(
            "{}: a chat needs streams; use tcp:// or unix:",
            args.endpoint
        );
        return Err(UsageError(words).into());
    }
    let ends = match args.frame {
        FrameArg::Read => Ends::Unsent,
        FrameArg::Line => Ends::Sent,
    };
    echo::talk("chat", &args.endpoint, args.driver, ends)
}
