//! `ringmill multicast send|receive`: people at a multicast group.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use ringmill_engine::{Controller, Engine, Limits, Service};
use ringmill_protocols::multicast::{Talk, TalkCommand, TalkEvent, TalkReport, TalkRole};

use super::echo::printable;
use crate::args::DriverArg;
use crate::console::{self, Input, Line};
use crate::endpoint::{Endpoint, EndpointError, Scheme};
use crate::exit::Exit;
use crate::multicast::{group, try_group};
use crate::signals::EndRequests;

/// How soon the end of the engine itself is seen; everything else is seen at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How soon a mailbox that is full is tried again.
const POST_INTERVAL: Duration = Duration::from_millis(1);

/// Flags of `ringmill multicast`.
#[derive(Debug, Args)]
pub struct MulticastArgs {
    /// Which end.
    #[command(subcommand)]
    pub end: End,
}

/// The two ends.
#[derive(Debug, Subcommand)]
pub enum End {
    /// Each typed line goes to the group.
    #[command(after_help = SEND_WORDS)]
    Send(SendArgs),
    /// Print what is sent to the group.
    #[command(after_help = RECEIVE_WORDS)]
    Receive(EndArgs),
}

const SEND_WORDS: &str = "\
Each line is sent without its line end, as one datagram.
  !             restarts the sender (a new socket)
  empty line    ends; so does the end of input";

const RECEIVE_WORDS: &str = "\
Each datagram is printed as one line.
  !             leaves the group and joins it again
  empty line    ends; so does the end of input, if it is a terminal or a pipe";

/// Flags of both ends.
#[derive(Debug, Args)]
pub struct EndArgs {
    /// The group: 239.255.0.1:3334, [ff05::1]:3334, with udp:// before it or not.
    #[arg(value_name = "GROUP:PORT", default_value = "239.255.0.1:3334", value_parser = parse_group)]
    pub group: Endpoint,

    /// The interface to use, such as lo or eth0; else the kernel chooses by its routes.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// How to talk to the kernel.
    #[arg(long, value_enum, default_value_t)]
    pub driver: DriverArg,
}

/// Flags of the sending end.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// Where.
    #[command(flatten)]
    pub end: EndArgs,

    /// Routers that a datagram may pass, plus one (TTL, hop limit): 1 stays on the link.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..))]
    pub ttl: u8,

    /// Also send to groups that leave the site or belong to someone.
    #[arg(long)]
    pub any_group: bool,
}

fn parse_group(text: &str) -> Result<Endpoint, EndpointError> {
    Endpoint::parse_with(text, Some(Scheme::Udp))
}

/// Talks until an empty line, the end of input or a signal.
///
/// # Errors
/// When the group cannot be sent to or joined.
pub fn run(args: &MulticastArgs) -> Result<Exit> {
    // Who only listens does no harm by listening to any group.
    let (role, end, ttl, any_group) = match &args.end {
        End::Send(send) => (TalkRole::Send, &send.end, send.ttl, send.any_group),
        End::Receive(end) => (TalkRole::Receive, end, 1, true),
    };
    let group = group(&end.group, end.interface.as_deref(), ttl, any_group)?;
    try_group(role, &end.group, &group, end.interface.as_deref())?;
    let control = std::thread::current();
    let signals = EndRequests::watch(control.clone())?;
    let (sender, events) = mpsc::channel();
    let woken = control.clone();
    let report: TalkReport = std::sync::Arc::new(move |event| {
        // The control thread outlives the engine.
        let _ = sender.send(event);
        woken.unpark();
    });
    let service = Service::new("multicast", move |_| Talk::new(role, group, report.clone()));
    let controller = service.controller();
    let engine = Engine::builder()
        .driver(end.driver.into())
        .limits(Limits {
            max_connections: 1,
            datagram_buffers: 16,
            fill_buffers: 4,
            ..Limits::default()
        })
        .service(service)
        .start()?;
    // A receiver with nobody at its input stays up until a signal.
    let listens = role == TalkRole::Send || console::input() != Input::Nobody;
    if std::io::stdin().is_terminal() {
        eprintln!(
            "{}",
            match role {
                TalkRole::Send => "Each line is sent. '!' restarts the sender, an empty line ends.",
                TalkRole::Receive => "'!' joins again, an empty line ends.",
            }
        );
    }
    Talker {
        endpoint: &end.group,
        role,
        engine,
        controller,
        signals,
        lines: listens.then(|| console::lines(control)).transpose()?,
        events,
    }
    .go()
}

struct Talker<'a> {
    endpoint: &'a Endpoint,
    role: TalkRole,
    engine: Engine,
    controller: Controller<TalkCommand>,
    signals: EndRequests,
    lines: Option<Receiver<Line>>,
    events: Receiver<TalkEvent>,
}

impl Talker<'_> {
    fn go(mut self) -> Result<Exit> {
        let mut ending = false;
        let mut opened = false;
        loop {
            while let Ok(event) = self.events.try_recv() {
                match event {
                    TalkEvent::Open => {
                        if !std::mem::replace(&mut opened, true) {
                            eprintln!("ringmill: {} {}", self.verb(), self.endpoint);
                        }
                    }
                    TalkEvent::Failed(why) => {
                        bail!("cannot use {}: {why}", self.endpoint);
                    }
                    TalkEvent::Received(from, bytes) => show(from, &bytes),
                    TalkEvent::NotSent(why) => eprintln!("ringmill: not sent: {why}"),
                    TalkEvent::Ended => {
                        // What is queued goes out before a graceful stop is over.
                        self.engine.stop();
                        self.engine.join()?;
                        return Ok(Exit::Ok);
                    }
                }
            }
            if self.engine.has_ended() || self.signals.count() > 0 {
                self.engine.stop_now();
                self.engine.join()?;
                return Ok(Exit::Ok);
            }
            let line = match &self.lines {
                Some(lines) if !ending => lines.try_recv().ok(),
                _ => None,
            };
            let Some(line) = line else {
                std::thread::park_timeout(LOOK_INTERVAL);
                continue;
            };
            let command = match line {
                Line::End => TalkCommand::End,
                Line::Text(text) if text.is_empty() => TalkCommand::End,
                Line::Text(text) if text == b"!" => TalkCommand::Restart,
                Line::Text(text) if self.role == TalkRole::Send => TalkCommand::Send(text),
                Line::Text(_) => continue,
            };
            ending = command == TalkCommand::End;
            if command == TalkCommand::Restart {
                eprintln!("ringmill: restarting... done");
            }
            self.post(command);
        }
    }

    fn verb(&self) -> &'static str {
        match self.role {
            TalkRole::Send => "sending to",
            TalkRole::Receive => "joined",
        }
    }

    fn post(&self, mut command: TalkCommand) {
        while let Err(back) = self.controller.post(0, command) {
            if self.engine.has_ended() || self.signals.count() > 0 {
                return;
            }
            command = back;
            std::thread::sleep(POST_INTERVAL);
        }
    }
}

/// A datagram as a line: with its sender for a person, alone for a program.
fn show(from: SocketAddr, bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    // Who no longer reads ends this program by ending its input, not by an error here.
    let _ = if out.is_terminal() {
        writeln!(out, "{from}: {}", printable(bytes))
    } else {
        out.write_all(bytes).and_then(|()| out.write_all(b"\n"))
    }
    .and_then(|()| out.flush());
}
