//! `ringmill cf-nat`: the NAT with the command line of Californium's, for scripts that have it.
//!
//! Same letters, same defaults, same lines. What it did wrong is not copied: `-s` limits, long
//! datagrams are not cut, and a wrong option is an error instead of a line that nobody reads, except
//! an unknown one, which is reported and ignored as there.

use std::net::SocketAddr;

use anyhow::Result;
use clap::Args;
use ringmill_engine::impairment::{Impairment, Loss, Phase, Scenario};
use ringmill_protocols::nat::Settings;

use super::{Listen, Nating, steer};
use crate::args::EngineArgs;
use crate::exit::{Exit, UsageError};
use crate::server::ConsoleArgs;

/// Flags of `ringmill cf-nat`: those of the original, whatever their order.
#[derive(Debug, Args)]
#[command(after_help = LETTERS, disable_help_flag = true)]
pub struct CfNatArgs {
    /// `:PORT DESTINATION… OPTIONS`, or `LOCAL… -- DESTINATION… OPTIONS`.
    #[arg(value_name = "ARGUMENT", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

const LETTERS: &str = "\
  -r             reverse destination update
  -x             DTLS filter
  -tnat=MS       timeout of NAT entries, default 30000; 0 never
  -tlb=MS        timeout of destinations, default 15000; 0 never
  -n=COUNT       most NAT entries, default 10000
  -d=%           drop both ways; or -f=% forward and -b=% backward
  -s=BYTES[:%]   drop longer ones forward

':PORT' is every address here, as in the original. `ringmill nat` has more, with safer defaults.";

/// The command line, understood.
#[derive(Debug, Default, PartialEq)]
struct Letters {
    listen: Vec<String>,
    destinations: Vec<String>,
    reverse_update: bool,
    dtls_only: bool,
    entry_timeout_ms: Option<i64>,
    destination_timeout_ms: Option<i64>,
    entries_max: Option<usize>,
    drop: Option<u8>,
    drop_forward: Option<u8>,
    drop_backward: Option<u8>,
    size: Option<(usize, u8)>,
    /// What the original prints at each option, in the order of the options.
    lines: Vec<String>,
}

impl Letters {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut letters = Self::default();
        let first_option = |list: &[String]| {
            let option = list
                .iter()
                .position(|next| next.starts_with('-') && next != "--");
            option.unwrap_or(list.len())
        };
        let mut rest = arguments;
        match arguments.iter().position(|next| next == "--") {
            Some(end) if end <= first_option(arguments) => {
                letters.listen = arguments[..end].to_vec();
                rest = &arguments[end + 1..];
            }
            _ => {
                if let Some((listen, others)) = arguments.split_first() {
                    letters.listen = vec![listen.clone()];
                    rest = others;
                }
            }
        }
        for argument in rest {
            if argument.starts_with('-') {
                letters.option(argument)?;
            } else {
                letters.destinations.push(argument.clone());
            }
        }
        if letters.listen.is_empty() || letters.destinations.is_empty() {
            return Err(
                "needs :PORT and at least one destination: ringmill cf-nat :5784 HOST:5684".into(),
            );
        }
        Ok(letters)
    }

    fn option(&mut self, argument: &str) -> Result<(), String> {
        // "-tnat" and "-tlb" before "-t…"; "-d=10" and "-d10" are equal.
        let value_of = |name: &str| {
            let value = argument.strip_prefix(name)?;
            Some(value.strip_prefix('=').unwrap_or(value))
        };
        let number = |value: &str| -> Result<i64, String> {
            value
                .parse()
                .map_err(|_| format!("{argument}: '{value}' is no number"))
        };
        let percent = |value: &str| -> Result<u8, String> {
            match value.parse() {
                Ok(percent @ 0..=100) => Ok(percent),
                _ => Err(format!(
                    "{argument}: '{value}' is no percentage from 0 to 100"
                )),
            }
        };
        let line = if argument == "-r" {
            self.reverse_update = true;
            "enable NAT reverse update.".to_owned()
        } else if argument == "-x" {
            self.dtls_only = true;
            "enable DTLS filter.".to_owned()
        } else if let Some(value) = value_of("-tnat") {
            let timeout = number(value)?;
            self.entry_timeout_ms = Some(timeout);
            format!("NAT timeout {timeout}[ms].")
        } else if let Some(value) = value_of("-tlb") {
            let timeout = number(value)?;
            self.destination_timeout_ms = Some(timeout);
            format!("LoadBalancer timeout {timeout}[ms].")
        } else if let Some(value) = value_of("-n") {
            let count = number(value)?;
            let entries = usize::try_from(count).ok().filter(|count| *count > 0);
            self.entries_max =
                Some(entries.ok_or_else(|| format!("{argument}: at least 1 entry is needed"))?);
            format!("NAT max. entires {count}")
        } else if let Some(value) = value_of("-d") {
            let drop = percent(value)?;
            if self.drop_forward.is_some() || self.drop_backward.is_some() {
                return Err(format!("{argument}: dropping already provided!"));
            }
            self.drop = Some(drop);
            format!("dropping {drop}% of messages.")
        } else if let Some(value) = value_of("-f") {
            let drop = self.one_way(argument, percent(value)?)?;
            self.drop_forward = Some(drop);
            format!("dropping {drop}% of forward messages.")
        } else if let Some(value) = value_of("-b") {
            let drop = self.one_way(argument, percent(value)?)?;
            self.drop_backward = Some(drop);
            format!("dropping {drop}% of backwards messages.")
        } else if let Some(value) = value_of("-s") {
            let (bytes, share) = value.split_once(':').unwrap_or((value, "100"));
            let bytes = usize::try_from(number(bytes)?)
                .map_err(|_| format!("{argument}: '{bytes}' is no size"))?;
            let share = percent(share)?;
            self.size = Some((bytes, share));
            format!("size limit {bytes} bytes, {share} %.")
        } else {
            format!("option '{argument}' unknown!")
        };
        self.lines.push(line);
        Ok(())
    }

    fn one_way(&self, argument: &str, drop: u8) -> Result<u8, String> {
        match self.drop {
            Some(_) => Err(format!("{argument}: dropping already provided!")),
            None => Ok(drop),
        }
    }

    fn scenario(&self) -> Scenario {
        let loss = |percent: Option<u8>| match percent.or(self.drop) {
            None | Some(0) => Loss::None,
            Some(percent) => Loss::Uniform {
                probability: f64::from(percent) / 100.0,
            },
        };
        let (datagram_bytes_max, share) = match self.size {
            Some((bytes, share)) => (Some(bytes), share),
            None => (None, 100),
        };
        Scenario::of(Phase {
            forward: Impairment {
                loss: loss(self.drop_forward),
                datagram_bytes_max,
                oversize_loss: f64::from(share) / 100.0,
                ..Impairment::default()
            },
            backward: Impairment {
                loss: loss(self.drop_backward),
                ..Impairment::default()
            },
            ..Phase::default()
        })
    }
}

/// A time in milliseconds as the original has it: not above 0 is never.
fn timeout(given_ms: Option<i64>, default_ms: u64) -> Option<u64> {
    let ms = match given_ms {
        None => default_ms,
        Some(given) => u64::try_from(given).ok().filter(|ms| *ms > 0)?,
    };
    Some(ms.saturating_mul(1_000_000))
}

/// `:PORT` is every address.
fn listen(text: &str) -> Result<Listen, String> {
    let any = text.strip_prefix(':').map(|port| format!("*:{port}"));
    let shown = match text.strip_prefix(':') {
        Some(port) => format!("<any>:{port}"),
        None => text.to_owned(),
    };
    Listen::parse(any.as_deref().unwrap_or(text)).map(|listen| Listen { shown, ..listen })
}

/// Runs the NAT until `exit` or a signal.
///
/// # Errors
/// When an argument makes no sense, a name has no address or a port is in use.
pub fn run(args: &CfNatArgs) -> Result<Exit> {
    let letters = Letters::parse(&args.arguments).map_err(UsageError)?;
    let mut listens = Vec::new();
    for text in &letters.listen {
        let listen = listen(text).map_err(UsageError)?;
        println!("in : {text} => {}", listen.shown);
        listens.push(listen);
    }
    let mut destinations: Vec<(String, SocketAddr)> = Vec::new();
    for text in &letters.destinations {
        let (name, address) = steer::destination(text).map_err(UsageError)?;
        println!("out: {text} => {name}");
        destinations.push((name, address));
    }
    for line in &letters.lines {
        println!("{line}");
    }
    let settings = Settings {
        destinations,
        entries_max: letters.entries_max.unwrap_or(10_000),
        entry_timeout: timeout(letters.entry_timeout_ms, 30_000),
        destination_timeout: timeout(letters.destination_timeout_ms, 15_000),
        reverse_update: letters.reverse_update,
        dtls_only: letters.dtls_only,
        seed: super::any_seed(),
        scenario: letters.scenario(),
        ..Settings::default()
    };
    Nating {
        listens,
        settings,
        json: false,
        console: ConsoleArgs {
            console: true,
            no_console: false,
        },
        control: None,
        pcap: None,
        engine: EngineArgs::default(),
    }
    .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(line: &str) -> Result<Letters, String> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Letters::parse(&arguments)
    }

    #[test]
    fn the_letters_of_the_original() {
        let parsed = letters(":5784 -r a:5684 -d=10 b:5684 -tnat=1000 -tlb0 -n5 -s=1200:50 -x -z");
        let parsed = parsed.expect("an understood line");
        assert_eq!(parsed.listen, [":5784"]);
        assert_eq!(parsed.destinations, ["a:5684", "b:5684"]);
        assert_eq!(
            parsed.lines,
            [
                "enable NAT reverse update.",
                "dropping 10% of messages.",
                "NAT timeout 1000[ms].",
                "LoadBalancer timeout 0[ms].",
                "NAT max. entires 5",
                "size limit 1200 bytes, 50 %.",
                "enable DTLS filter.",
                "option '-z' unknown!",
            ]
        );
        let phase = &parsed.scenario().phases[0];
        assert_eq!(phase.forward.loss, Loss::Uniform { probability: 0.1 });
        assert_eq!(phase.backward.loss, Loss::Uniform { probability: 0.1 });
        assert_eq!(phase.forward.datagram_bytes_max, Some(1200));
        assert_eq!(phase.backward.datagram_bytes_max, None);
        assert_eq!(
            timeout(parsed.entry_timeout_ms, 30_000),
            Some(1_000_000_000)
        );
        assert_eq!(timeout(parsed.destination_timeout_ms, 15_000), None);
        assert_eq!(timeout(None, 15_000), Some(15_000_000_000));
    }

    #[test]
    fn several_local_addresses_and_one_way() {
        let parsed = letters("a:1 b:2 -- c:3 d:4 -f5 -b=7").expect("an understood line");
        assert_eq!(parsed.listen, ["a:1", "b:2"]);
        assert_eq!(parsed.destinations, ["c:3", "d:4"]);
        let phase = &parsed.scenario().phases[0];
        assert_eq!(phase.forward.loss, Loss::Uniform { probability: 0.05 });
        assert_eq!(phase.backward.loss, Loss::Uniform { probability: 0.07 });
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        for (line, want) in [
            (":1", "needs :PORT and at least one destination"),
            ("", "needs :PORT and at least one destination"),
            (
                ":1 a:2 -d=101",
                "-d=101: '101' is no percentage from 0 to 100",
            ),
            (":1 a:2 -d=1 -f=2", "-f=2: dropping already provided!"),
            (":1 a:2 -b=1 -d=2", "-d=2: dropping already provided!"),
            (":1 a:2 -n=0", "-n=0: at least 1 entry is needed"),
            (":1 a:2 -tnat=x", "-tnat=x: 'x' is no number"),
            (
                ":1 a:2 -s=1:x",
                "-s=1:x: 'x' is no percentage from 0 to 100",
            ),
        ] {
            let error = letters(line).expect_err(line);
            assert!(error.starts_with(want), "{line}: {error}");
        }
    }
}
