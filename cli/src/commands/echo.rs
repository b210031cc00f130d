//! `ringmill echo`: a person at the other end of an echo server, or of any server of lines.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ringmill_engine::{Address, Controller, Engine, Limits, Service};
use ringmill_protocols::backlog::Backlog;
use ringmill_protocols::interactive::{Command, Event, Interactive, Report};

use crate::args::DriverArg;
use crate::console::{self, Line};
use crate::endpoint::{Addresses, Endpoint, Transport};
use crate::exit::Exit;
use crate::signals::EndRequests;

/// Receive memory of one connection at which a person looks.
const POOL_BYTES: usize = 1 << 20;
/// How soon a mailbox that is full is tried again.
const POST_INTERVAL: Duration = Duration::from_millis(1);
/// How soon the end of the engine itself is seen; everything else is seen at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Flags of `ringmill echo`.
#[derive(Debug, Args)]
#[command(after_help = WORDS)]
pub struct EchoArgs {
    /// The server: tcp://HOST:PORT, udp://HOST:PORT or unix:/path.
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: Endpoint,

    /// How to talk to the kernel.
    #[arg(long, value_enum, default_value_t)]
    pub driver: DriverArg,
}

const WORDS: &str = "\
Each line is sent without its line end; what comes back is printed, one line for each receive.
  !             disconnects; as after any disconnect, it connects again one second later
  empty line    ends; so does the end of input

Example:
  echo hello | ringmill echo udp://:7000";

/// Talks until an empty line, the end of input or a signal.
///
/// # Errors
/// When the endpoint cannot be resolved or no engine can be started.
pub fn run(args: &EchoArgs) -> Result<Exit> {
    talk("echo", &args.endpoint, args.driver, Ends::Unsent)
}

/// What becomes of the ends of typed lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// They are not sent; what comes is printed as one line for each receive.
    Unsent,
    /// They are sent, and what comes is printed as it is.
    Sent,
}

/// Lets a person talk to a server.
pub(super) fn talk(
    name: &'static str,
    endpoint: &Endpoint,
    driver: DriverArg,
    ends: Ends,
) -> Result<Exit> {
    let control = std::thread::current();
    let signals = EndRequests::watch(control.clone())?;
    let targets = match endpoint.connect_addresses()? {
        Addresses::Path(path) => vec![Address::Unix(path)],
        Addresses::Sockets(addresses) => addresses.into_iter().map(Address::Ip).collect(),
    };
    let datagrams = matches!(
        endpoint,
        Endpoint::Inet {
            transport: Transport::Udp,
            ..
        }
    );
    let (sender, events) = mpsc::channel();
    let woken = control.clone();
    let report: Report = std::sync::Arc::new(move |event| {
        // The control thread outlives the engine.
        let _ = sender.send(event);
        woken.unpark();
    });
    let backlog = Backlog::new();
    let of_client = backlog.clone();
    let service = Service::new(name, move |_| {
        Interactive::new(
            targets.clone(),
            datagrams,
            report.clone(),
            of_client.clone(),
        )
    });
    let controller = service.controller();
    let engine = Engine::builder()
        .driver(driver.into())
        .limits(Limits {
            max_connections: 1,
            stream_pool_bytes: POOL_BYTES,
            datagram_buffers: 4,
            fill_buffers: 4,
            ..Limits::default()
        })
        .service(service)
        .start()?;
    if std::io::stdin().is_terminal() {
        eprintln!("Each line is sent. '!' disconnects and connects again, an empty line ends.");
    }
    let talk = Talk {
        endpoint,
        ends,
        engine,
        controller,
        signals,
        lines: console::lines(control)?,
        events,
        backlog,
        screen: Screen::new(ends),
    };
    talk.go()
}

struct Talk<'a> {
    endpoint: &'a Endpoint,
    ends: Ends,
    engine: Engine,
    controller: Controller<Command>,
    signals: EndRequests,
    lines: Receiver<Line>,
    events: Receiver<Event>,
    backlog: std::sync::Arc<Backlog>,
    screen: Screen,
}

impl Talk<'_> {
    fn go(mut self) -> Result<Exit> {
        let mut ending = false;
        loop {
            while let Ok(event) = self.events.try_recv() {
                if let Event::Ended { unsent } = event {
                    return self.finish(unsent);
                }
                let bytes = match &event {
                    Event::Received(bytes) => Some(bytes.len()),
                    _ => None,
                };
                self.screen.show(self.endpoint, event);
                if let Some(bytes) = bytes {
                    self.backlog.shown(bytes);
                }
            }
            if self.engine.has_ended() {
                return self.finish(0);
            }
            if self.signals.count() > 0 {
                return self.finish(0);
            }
            let line = if ending {
                None
            } else {
                self.lines.try_recv().ok()
            };
            let Some(line) = line else {
                std::thread::park_timeout(LOOK_INTERVAL);
                continue;
            };
            let command = match line {
                Line::End => Command::End,
                Line::Text(text) if text.is_empty() => Command::End,
                Line::Text(text) if text == b"!" => Command::Disconnect,
                Line::Text(mut text) => {
                    if self.ends == Ends::Sent {
                        text.push(b'\n');
                    }
                    Command::Send(text)
                }
            };
            ending = command == Command::End;
            self.post(command);
        }
    }

    fn post(&self, mut command: Command) {
        while let Err(back) = self.controller.post(0, command) {
            if self.engine.has_ended() || self.signals.count() > 0 {
                return;
            }
            command = back;
            std::thread::sleep(POST_INTERVAL);
        }
    }

    fn finish(mut self, unsent: usize) -> Result<Exit> {
        self.engine.stop_now();
        self.engine.join()?;
        if unsent > 0 {
            let plural = if unsent == 1 { "" } else { "s" };
            eprintln!(
                "ringmill: {unsent} line{plural} not sent: no connection to {}; is the server \
                 running there?",
                self.endpoint
            );
            return Ok(Exit::Failed);
        }
        Ok(Exit::Ok)
    }
}

/// What the person sees: answers on standard output, everything else on standard error.
struct Screen {
    terminal: bool,
    ends: Ends,
    /// The last words about the connection: the same failure each second is said once.
    said: Option<&'static str>,
}

impl Screen {
    fn new(ends: Ends) -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            ends,
            said: None,
        }
    }

    fn show(&mut self, endpoint: &Endpoint, event: Event) {
        match event {
            Event::Connected(address) => {
                self.said = None;
                if self.terminal {
                    eprintln!("ringmill: connected to {address}");
                }
            }
            Event::Received(bytes) => self.print(&bytes),
            Event::Disconnected(why) => {
                if self.said != Some(why) && self.terminal {
                    eprintln!("ringmill: {endpoint}: {why}; connecting again each second");
                }
                self.said = Some(why);
            }
            Event::Refused(why) => eprintln!("ringmill: {endpoint}: {why}"),
            Event::Dropped => eprintln!("ringmill: not sent: too much waits for {endpoint}"),
            Event::Ended { .. } => {}
        }
    }

    fn print(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        // Who no longer reads ends this program by ending its input, not by an error here.
        let end = match self.ends {
            Ends::Unsent => "\n",
            Ends::Sent => "",
        };
        let _ = if self.terminal {
            write!(out, "{}", printable(bytes))
        } else {
            out.write_all(bytes)
        }
        .and_then(|()| out.write_all(end.as_bytes()))
        .and_then(|()| out.flush());
    }
}

/// Text for a terminal: what a server sends must not steer it.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn a_server_cannot_steer_the_terminal() {
        let cases: [(&[u8], &str); 4] = [
            (b"hello", "hello"),
            ("größer\t1".as_bytes(), "größer\t1"),
            (b"\x1b[2J", "\\u{1b}[2J"),
            (b"\xff!", "\u{fffd}!"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(printable(bytes), shown);
        }
    }
}
