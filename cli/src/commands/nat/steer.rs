//! The words by which a running NAT is steered, the same at the console and at the control socket:
//! text for people, JSON for programs. Nothing here reads or prints.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ringmill_engine::time::monotonic_now;
use ringmill_protocols::nat::{DestinationInfo, Info, Nat, State};
use serde_json::{Value, json};

use crate::endpoint::{Addresses, Endpoint, Scheme};

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// `help`, `?`.
    Help,
    /// `info` or nothing.
    Info,
    /// `exit`, `quit`.
    Exit,
    /// `clear`, `clear N`.
    Clear(Option<usize>),
    /// `reassign`.
    Reassign,
    /// `rebalance`.
    Rebalance,
    /// `add HOST:PORT`.
    Add(String),
    /// `remove HOST:PORT`.
    Remove(String),
    /// `reverse on`, `reverse off`.
    Reverse(bool),
}

impl Word {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut parts = line.split_whitespace();
        let word = parts.next().unwrap_or("");
        let argument = parts.next();
        if let Some(more) = parts.next() {
            return Err(format!("'{more}' is too much: one argument at most"));
        }
        let none = |command| match argument {
            None => Ok(command),
            Some(argument) => Err(format!("'{word}' takes no argument, but '{argument}' came")),
        };
        let host = || {
            argument
                .map(str::to_owned)
                .ok_or_else(|| format!("'{word}' needs a destination: {word} HOST:PORT"))
        };
        match word {
            "" | "info" => none(Self::Info),
            "help" | "?" => none(Self::Help),
            "exit" | "quit" => none(Self::Exit),
            "reassign" => none(Self::Reassign),
            "rebalance" => none(Self::Rebalance),
            "clear" => match argument.map(str::parse).transpose() {
                Ok(count) => Ok(Self::Clear(count)),
                Err(_) => Err("'clear' takes a number of entries, or nothing for all".into()),
            },
            "add" => host().map(Self::Add),
            "remove" => host().map(Self::Remove),
            "reverse" => match argument {
                Some("on") => Ok(Self::Reverse(true)),
                Some("off") => Ok(Self::Reverse(false)),
                _ => Err("'reverse' needs 'on' or 'off'".into()),
            },
            _ => Err(format!("unknown command '{word}': 'help' lists all")),
        }
    }

    /// The first word of the command, as answers name it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Help => "help",
            Self::Info => "info",
            Self::Exit => "exit",
            Self::Clear(_) => "clear",
            Self::Reassign => "reassign",
            Self::Rebalance => "rebalance",
            Self::Add(_) => "add",
            Self::Remove(_) => "remove",
            Self::Reverse(_) => "reverse",
        }
    }
}

/// What `help` prints.
pub const HELP: &str = "\
help, ?               print this help
info, <empty line>    print entries and destinations
exit, quit            stop and end
clear [n]             drop n NAT entries, or all
reassign              give every entry a new local socket and a new destination
rebalance             take stale destinations back and give every entry a new destination
add <host:port>       add a destination
remove <host:port>    remove a destination
reverse (on|off)      turn the reverse destination update on or off";

/// The answer to a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// For people: lines without the last line end; nothing when empty.
    pub text: String,
    /// For programs: an object with `command`, `ok` and what the command gives.
    pub json: Value,
    /// The NAT is to end.
    pub exit: bool,
}

impl Answer {
    fn new(word: &Word, text: impl Into<String>, fields: Value) -> Self {
        let mut json = json!({ "command": word.name(), "ok": true });
        if let (Value::Object(json), Value::Object(fields)) = (&mut json, fields) {
            json.extend(fields);
        }
        Self {
            text: text.into(),
            json,
            exit: *word == Word::Exit,
        }
    }

    /// A command that failed, or none at all.
    #[must_use]
    pub fn failed(command: Option<&str>, error: &str) -> Self {
        Self {
            text: error.to_owned(),
            json: json!({ "command": command, "ok": false, "error": error }),
            exit: false,
        }
    }
}

/// Does what a line says to a NAT that listens at `own`. May take a while: names are resolved and
/// shards answer.
#[must_use]
pub fn obey(nat: &Nat, own: &[SocketAddr], line: &str) -> Answer {
    match Word::parse(line) {
        Ok(word) => obey_word(nat, own, &word)
            .unwrap_or_else(|error| Answer::failed(Some(word.name()), &error)),
        Err(error) => Answer::failed(None, &error),
    }
}

fn obey_word(nat: &Nat, own: &[SocketAddr], word: &Word) -> Result<Answer, String> {
    let fail = |error: ringmill_protocols::nat::ControlError| error.to_string();
    Ok(match word {
        Word::Help => Answer::new(word, HELP, json!({ "help": HELP })),
        Word::Info => {
            let info = nat.info(monotonic_now());
            Answer::new(word, info_text(&info), json!(info))
        }
        Word::Exit => Answer::new(word, ">> exit", json!({})),
        Word::Clear(count) => {
            let dropped = nat.clear(*count).map_err(fail)?;
            let text = format!("{dropped} - NAT entries dropped.");
            Answer::new(word, text, json!({ "dropped": dropped }))
        }
        Word::Reassign => Answer::new(word, "", json!(nat.reassign().map_err(fail)?)),
        Word::Rebalance => {
            let done = nat.rebalance().map_err(fail)?;
            let text = format!(
                "reassigned {} destinations of {}.",
                done.changed, done.entries
            );
            Answer::new(word, text, json!(done))
        }
        Word::Add(text) => {
            let (name, address) = destination(text)?;
            refuse_loop(own, &name, address, nat.keeps_port())?;
            let added = nat.add(&name, address).map_err(fail)?;
            changed(word, text, (&name, address), added, "added")
        }
        Word::Remove(text) => {
            let (name, address) = destination(text)?;
            let removed = nat.remove(address);
            changed(word, text, (&name, address), removed, "removed")
        }
        Word::Reverse(on) => {
            nat.set_reverse_update(*on);
            let info = nat.info(monotonic_now());
            Answer::new(word, info_text(&info), json!({ "reverse_update": on }))
        }
    })
}

fn changed(
    word: &Word,
    text: &str,
    (name, address): (&str, SocketAddr),
    changed: bool,
    what: &str,
) -> Answer {
    let mut lines = format!("out: {text} => {name}");
    if changed {
        let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
        let literal = host.trim_matches(['[', ']']) == address.ip().to_string();
        let host = if literal { "" } else { host };
        let _ = write!(lines, "\n{host}/{address} {what}");
    }
    let fields = json!({ "destination": name, "address": address, "changed": changed });
    Answer::new(word, lines, fields)
}

/// Name (`host:port`) and address of a destination as the user wrote it.
///
/// # Errors
/// Why there is no address for it.
pub fn destination(text: &str) -> Result<(String, SocketAddr), String> {
    let endpoint =
        Endpoint::parse_with(text, Some(Scheme::Udp)).map_err(|error| error.to_string())?;
    if endpoint.scheme() != Scheme::Udp {
        return Err(format!("'{text}' is no UDP destination: write HOST:PORT"));
    }
    let found = endpoint
        .connect_addresses()
        .map_err(|error| error.to_string())?;
    let Addresses::Sockets(addresses) = found else {
        return Err(format!("'{text}' is no UDP destination: write HOST:PORT"));
    };
    let address = addresses
        .first()
        .ok_or_else(|| format!("'{text}' has no address"))?;
    let name = text.strip_prefix("udp://").unwrap_or(text);
    let name = match name.strip_prefix(':') {
        Some(_) => address.to_string(),
        None => name.to_owned(),
    };
    Ok((name, *address))
}

/// Refuses a destination that is the NAT itself, which listens at `own`: it would send each datagram
/// round until the table is full. Where ports are kept, any port of the NAT's own address is the NAT.
///
/// # Errors
/// That it is.
pub fn refuse_loop(
    own: &[SocketAddr],
    name: &str,
    address: SocketAddr,
    keeps_port: bool,
) -> Result<(), String> {
    let reached_at = |local: &SocketAddr| {
        (keeps_port || local.port() == address.port())
            && (local.ip() == address.ip()
                || (local.ip().is_unspecified()
                    && local.is_ipv6() == address.is_ipv6()
                    && is_of_this_host(address.ip())))
    };
    if own.iter().any(reached_at) {
        return Err(format!(
            "{name} is where this NAT listens itself: datagrams would go round for ever"
        ));
    }
    Ok(())
}

fn is_of_this_host(address: IpAddr) -> bool {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    address.is_loopback() || interfaces.iter().any(|next| next.ip() == address)
}

/// What `info` prints.
#[must_use]
pub fn info_text(info: &Info) -> String {
    let count = |state| {
        let states = info.destinations.iter().map(|next| next.state);
        states.filter(|next| *next == state).count()
    };
    let active = count(State::Active);
    let stale = info.destinations.len() - active;
    let reverse = if info.reverse_update {
        "enabled"
    } else {
        "disabled"
    };
    let mut text = format!(
        "{} NAT entries, reverse address update {reverse}.\n",
        info.entries
    );
    let _ = match stale {
        0 => write!(text, "{active} destinations."),
        _ => write!(text, "{active} destinations, {stale} stale destinations."),
    };
    for (state, label, mark) in [
        (State::Active, "Destination", ""),
        (State::Stale, "Stale      ", " STALE"),
        (State::Probing, "Probing    ", " PROBING"),
        (State::Pending, "Pending    ", " PENDING"),
    ] {
        let listed = info.destinations.iter();
        for next in listed.filter(|next| next.state == state) {
            let DestinationInfo { name, totals, .. } = next;
            let _ = write!(text, "\n{label}: {name}, usage: {}", totals.entries);
            if state != State::Active {
                let idle = next.idle_s.map_or(-1.0, f64::floor);
                let _ = write!(text, ", last usage: {idle}[s]{mark}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmill_protocols::nat::{DestinationTotals, NatSnapshot, Settings};

    #[test]
    fn words_and_what_is_no_word() {
        for (line, want) in [
            ("", Word::Info),
            ("  ", Word::Info),
            ("info", Word::Info),
            ("?", Word::Help),
            ("help", Word::Help),
            ("exit", Word::Exit),
            ("quit", Word::Exit),
            ("clear", Word::Clear(None)),
            ("clear 12", Word::Clear(Some(12))),
            ("reassign", Word::Reassign),
            ("rebalance", Word::Rebalance),
            ("add localhost:5684", Word::Add("localhost:5684".into())),
            ("remove [::1]:5684", Word::Remove("[::1]:5684".into())),
            ("reverse on", Word::Reverse(true)),
            (" reverse  off ", Word::Reverse(false)),
        ] {
            assert_eq!(Word::parse(line), Ok(want), "{line:?}");
        }
        for (line, want) in [
            ("hepl", "unknown command 'hepl': 'help' lists all"),
            (
                "clear -1",
                "'clear' takes a number of entries, or nothing for all",
            ),
            (
                "clear x",
                "'clear' takes a number of entries, or nothing for all",
            ),
            ("add", "'add' needs a destination: add HOST:PORT"),
            ("reverse", "'reverse' needs 'on' or 'off'"),
            ("reverse maybe", "'reverse' needs 'on' or 'off'"),
            ("exit now", "'exit' takes no argument, but 'now' came"),
            ("add a:1 b:2", "'b:2' is too much: one argument at most"),
        ] {
            assert_eq!(Word::parse(line), Err(want.to_owned()), "{line:?}");
        }
        assert_eq!(HELP.lines().count(), 9);
    }

    #[test]
    fn info_reads_as_users_know_it() {
        let destination = |name: &str, state, entries, idle_s| DestinationInfo {
            name: name.to_owned(),
            address: ([127, 0, 0, 1], 5684).into(),
            state,
            idle_s,
            totals: DestinationTotals {
                entries,
                ..DestinationTotals::default()
            },
        };
        let mut info = Info {
            entries: 3,
            reverse_update: false,
            destinations: vec![destination("a:5684", State::Active, 3, Some(0.1))],
            counters: NatSnapshot::default(),
            forward: Default::default(),
            backward: Default::default(),
            events_lost: 0,
        };
        assert_eq!(
            info_text(&info),
            "3 NAT entries, reverse address update disabled.\n\
             1 destinations.\n\
             Destination: a:5684, usage: 3"
        );
        info.reverse_update = true;
        info.destinations
            .push(destination("b:1", State::Stale, 0, Some(16.7)));
        info.destinations
            .push(destination("c:2", State::Pending, 1, None));
        assert_eq!(
            info_text(&info),
            "3 NAT entries, reverse address update enabled.\n\
             1 destinations, 2 stale destinations.\n\
             Destination: a:5684, usage: 3\n\
             Stale      : b:1, usage: 0, last usage: 16[s] STALE\n\
             Pending    : c:2, usage: 1, last usage: -1[s] PENDING"
        );
    }

    #[test]
    fn answers_have_text_and_json() {
        let settings = Settings {
            destinations: vec![("127.0.0.1:5684".into(), ([127, 0, 0, 1], 5684).into())],
            ..Settings::default()
        };
        let nat = Nat::new(settings, 1);
        let own = [([0, 0, 0, 0], 99).into()];
        let answer = obey(&nat, &own, "remove 127.0.0.1:5684");
        assert_eq!(
            answer.text,
            "out: 127.0.0.1:5684 => 127.0.0.1:5684\n/127.0.0.1:5684 removed"
        );
        assert_eq!(answer.json["changed"], true);
        let answer = obey(&nat, &own, "remove 127.0.0.1:5684");
        assert_eq!(answer.text, "out: 127.0.0.1:5684 => 127.0.0.1:5684");
        let answer = obey(&nat, &own, "nonsense");
        assert_eq!(answer.json["ok"], false);
        assert!(obey(&nat, &own, "quit").exit);
        assert_eq!(obey(&nat, &own, "exit").text, ">> exit");
        for text in ["add *:99", "add 127.0.0.1:99"] {
            let answer = obey(&nat, &own, text);
            assert_eq!(answer.json["ok"], false, "{answer:?}");
        }
    }
}
