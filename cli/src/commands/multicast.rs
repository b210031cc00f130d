//! `ringmill multicast send|receive`: people at a multicast group.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use ringmill_engine::{Controller, Engine, Limits, Service};
use ringmill_protocols::backlog::Backlog;
use ringmill_protocols::multicast::{Talk, TalkCommand, TalkEvent, TalkReport, TalkRole};

use super::echo::printable;
use crate::args::DriverArg;
use crate::console::{self, Input, Line};
use crate::endpoint::{Endpoint, EndpointError, Scheme};
use crate::exit::Exit;
use crate::multicast::{GROUP_BYTE_RATE_MAX, GROUP_RATE_MAX, group, try_group};
use crate::signals::EndRequests;

/// How soon the end of the engine itself is seen; everything else is seen at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How soon a mailbox that is full is tried again.
const POST_INTERVAL: Duration = Duration::from_millis(1);
/// How far what is sent may be ahead of the capped rate: a sleep is not exact, and some lines that
/// come together do no harm.
const THROTTLE_AHEAD: Duration = Duration::from_millis(10);

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

    /// Send what is piped in as fast as it comes, not at 10,000 lines or 12.5 MB a second.
    #[arg(long)]
    pub no_rate_cap: bool,
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
    let capped = matches!(&args.end, End::Send(send) if !send.no_rate_cap);
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
    let backlog = Backlog::new();
    let of_end = backlog.clone();
    let service = Service::new("multicast", move |_| {
        Talk::new(role, group, report.clone(), of_end.clone())
    });
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
        backlog,
        throttle: capped.then(|| Throttle::new(Instant::now())),
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
    backlog: std::sync::Arc<Backlog>,
    /// Without it lines go as fast as they come.
    throttle: Option<Throttle>,
}

/// Holds what is piped in to the rate that a group may be sent without `--no-rate-cap`.
struct Throttle {
    /// When all that was sent would have gone at that rate.
    free_at: Instant,
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self { free_at: now }
    }

    /// How long the next datagram has to wait.
    fn wait(&self, now: Instant) -> Duration {
        self.free_at.saturating_duration_since(now + THROTTLE_AHEAD)
    }

    /// A datagram of so many bytes has gone.
    fn sent(&mut self, now: Instant, bytes: usize) {
        let cost = (1.0 / GROUP_RATE_MAX).max(bytes as f64 / GROUP_BYTE_RATE_MAX);
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(cost);
    }
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
                    TalkEvent::Received(from, bytes) => {
                        show(from, &bytes);
                        self.backlog.shown(bytes.len());
                    }
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
            let throttle = self.throttle.as_ref();
            let wait = throttle.map_or(Duration::ZERO, |throttle| throttle.wait(Instant::now()));
            if !wait.is_zero() {
                std::thread::park_timeout(wait.min(LOOK_INTERVAL));
                continue;
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
            if let (Some(throttle), TalkCommand::Send(bytes)) = (&mut self.throttle, &command) {
                throttle.sent(Instant::now(), bytes.len());
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a group gets in a second from who sends as often as the throttle lets them.
    #[test]
    fn what_is_piped_in_keeps_to_the_cap() {
        for (bytes, sent) in [(1, 10_100), (1250, 10_100), (12_500, 1010), (60_000, 211)] {
            let start = Instant::now();
            let mut now = start;
            let mut throttle = Throttle::new(start);
            let mut count = 0;
            while now < start + Duration::from_secs(1) {
                match throttle.wait(now) {
                    Duration::ZERO => {
                        throttle.sent(now, bytes);
                        count += 1;
                    }
                    wait => now += wait,
                }
            }
            assert!((sent - 1..=sent + 1).contains(&count), "{bytes}: {count}");
        }
    }
}
