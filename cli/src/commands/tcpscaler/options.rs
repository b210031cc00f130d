//! The command line of tcpclient and udpclient, as `getopt_long` takes it apart.

use std::ffi::{OsStr, OsString};

use clap::ValueEnum as _;

use crate::args::{DriverArg, ShardsArg};
use crate::commands::udpst::getopt::{Item, split};

use super::Program;

/// Letters of both, as for `getopt`.
const LETTERS: &str = "p:r:c:n:vRs:t:h";
/// Our own words that take a value.
const WORDS_WITH_VALUE: &[&str] = &["shards", "driver"];

/// What is wrong with a command line, or that help was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// `-h`.
    #[error("help")]
    Help,
    /// Port, rate, connections or host are not there.
    #[error("missing mandatory arguments")]
    Missing,
    /// Two that exclude each other.
    #[error("{0} is not compatible with {1}")]
    Contradiction(&'static str, &'static str),
    /// A letter or word that is none.
    #[error("there is no option {0}")]
    Unknown(String),
    /// One without its value.
    #[error("option -{0} needs a value")]
    ValueMissing(char),
    /// A value that is none.
    #[error("option {0}: {1:?} is not {2}")]
    Value(&'static str, String, &'static str),
    /// What is not there yet.
    #[error("--tls is not yet in this version; leave it away for TCP without TLS")]
    Tls,
}

/// Where the rates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateSource {
    /// `-r`, all the time.
    Constant,
    /// `--stdin`: steps.
    Steps,
    /// `--stdin-rateslope`: slopes from `-r` on.
    Slopes,
}

/// A command line that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Which program it is for.
    pub program: Program,
    /// Name or address.
    pub host: String,
    /// Number or name of the port.
    pub port: String,
    /// Queries per second.
    pub rate: u32,
    /// Where the rates come from.
    pub rate_source: RateSource,
    /// How many.
    pub connections: u32,
    /// Opened per second.
    pub open_rate: u32,
    /// Length of the sending, s; 0 is for ever.
    pub duration_s: u32,
    /// Of the random numbers.
    pub seed: u64,
    /// Whether every query and answer is printed.
    pub print_rtt: bool,
    /// How much is told on standard error.
    pub verbose: u8,
    /// Ours: how many shards.
    pub shards: ShardsArg,
    /// Ours: which driver.
    pub driver: DriverArg,
}

impl Options {
    /// Reads it.
    ///
    /// # Errors
    /// When it does not make sense, or help is wanted.
    pub fn parse(
        program: Program,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, OptionsError> {
        let (items, operands) = split(arguments, LETTERS, WORDS_WITH_VALUE);
        let mut options = Self {
            program,
            host: String::new(),
            port: String::new(),
            rate: 0,
            rate_source: RateSource::Constant,
            connections: 0,
            open_rate: 1000,
            duration_s: 0,
            seed: 42,
            print_rtt: false,
            verbose: 0,
            shards: ShardsArg::Auto,
            driver: DriverArg::Auto,
        };
        let (mut steps, mut slopes) = (false, false);
        for item in items {
            match item {
                Item::Letter(letter, value) => {
                    let value = value.unwrap_or_default();
                    match letter {
                        b'p' => options.port = value.to_string_lossy().into_owned(),
                        b'r' => options.rate = number("-r", &value)?,
                        b'c' => options.connections = number("-c", &value)?,
                        b'n' => options.open_rate = number("-n", &value)?,
                        b's' => options.seed = number("-s", &value)?,
                        b't' => options.duration_s = number("-t", &value)?,
                        b'v' => options.verbose = options.verbose.saturating_add(1),
                        b'R' => options.print_rtt = true,
                        _ => return Err(OptionsError::Help),
                    }
                }
                Item::Word(word, value) => match (word.as_str(), value) {
                    ("stdin", None) => steps = true,
                    ("stdin-rateslope", None) => slopes = true,
                    ("tls", None) if program == Program::TcpClient => {
                        return Err(OptionsError::Tls);
                    }
                    ("shards", Some(value)) => {
                        let text = value.to_string_lossy().into_owned();
                        let shards = text.parse();
                        options.shards = shards.map_err(|_| {
                            OptionsError::Value("--shards", text, "a number of shards or 'auto'")
                        })?;
                    }
                    ("driver", Some(value)) => {
                        let text = value.to_string_lossy().into_owned();
                        options.driver = DriverArg::from_str(&text, true).map_err(|_| {
                            OptionsError::Value("--driver", text, "'auto', 'uring' or 'epoll'")
                        })?;
                    }
                    ("help", None) => return Err(OptionsError::Help),
                    _ => return Err(OptionsError::Unknown(format!("--{word}"))),
                },
                Item::Unknown(letter) => {
                    return Err(OptionsError::Unknown(format!("-{}", char::from(letter))));
                }
                Item::ValueMissing(letter) => {
                    return Err(OptionsError::ValueMissing(char::from(letter)));
                }
            }
        }
        let host = operands
            .first()
            .map(|host| host.to_string_lossy().into_owned());
        options.host = host.unwrap_or_default();
        let no_rate = options.rate == 0 && !steps;
        if options.host.is_empty() || options.port.is_empty() || no_rate || options.connections == 0
        {
            return Err(OptionsError::Missing);
        }
        for (first, second, both) in [
            ("--stdin", "-t", steps && options.duration_s != 0),
            ("--stdin", "-r", steps && options.rate != 0),
            ("--stdin", "--stdin-rateslope", steps && slopes),
            ("--stdin-rateslope", "-t", slopes && options.duration_s != 0),
        ] {
            if both {
                return Err(OptionsError::Contradiction(first, second));
            }
        }
        options.rate_source = match (steps, slopes) {
            (true, _) => RateSource::Steps,
            (_, true) => RateSource::Slopes,
            _ => RateSource::Constant,
        };
        if options.open_rate == 0 {
            let zero = "0".to_owned();
            return Err(OptionsError::Value("-n", zero, "a number of at least 1"));
        }
        Ok(options)
    }
}

fn number<T: std::str::FromStr>(option: &'static str, value: &OsStr) -> Result<T, OptionsError> {
    let text = value.to_string_lossy();
    let number = text.trim().parse();
    number.map_err(|_| OptionsError::Value(option, text.into_owned(), "a whole number"))
}

/// What `-h` shows.
#[must_use]
pub fn usage(program: Program, called: &str) -> String {
    let (transport, open_rate) = match program {
        Program::UdpClient => ("UDP", "      ignored: UDP has nothing to open"),
        _ => ("TCP", "new connections per second while opening (1000)"),
    };
    format!(
        "\
usage: {called} [-h] [-v] [-R] [-s SEED] [-t SECONDS] [--stdin | --stdin-rateslope] [-n RATE]
       [--shards N] [--driver auto|uring|epoll] -p PORT -r RATE -c CONNECTIONS HOST
Sends DNS queries for example.com over {transport} connections to an echo or DNS server, at random instants.
  -p PORT            number or name of the port
  -r RATE            queries per second over all connections
  -c CONNECTIONS     how many
  -n RATE            {open_rate}
  -t SECONDS         how long to send (0: until a signal ends it)
  -s SEED            of the random instants (42)
  -R                 print every query and answer as CSV
  -v                 tell more on standard error
  --stdin            read the number of lines and lines of '<duration_ms> <rate>'
  --stdin-rateslope  read the number of lines and lines of '<duration_ms> <slope>' from -r on
  --shards, --driver as for `ringmill load dns`
A summary is printed on standard error at the end.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, OptionsError> {
        let words = line.split_whitespace().map(OsString::from);
        Options::parse(Program::TcpClient, words)
    }

    #[test]
    fn scripts_are_understood() {
        let all = parse("-v -vR -p 4242 -r 1000 -c5 -n 200 -t 10 -s 7 server.example").unwrap();
        let expected = Options {
            program: Program::TcpClient,
            host: "server.example".into(),
            port: "4242".into(),
            rate: 1000,
            rate_source: RateSource::Constant,
            connections: 5,
            open_rate: 200,
            duration_s: 10,
            seed: 7,
            print_rtt: true,
            verbose: 2,
            shards: ShardsArg::Auto,
            driver: DriverArg::Auto,
        };
        assert_eq!(all, expected);
        let least = parse("host -c 1 -r 1 -p domain --shards 2 --driver=epoll").unwrap();
        assert_eq!(
            (least.seed, least.open_rate, least.duration_s),
            (42, 1000, 0)
        );
        assert_eq!(
            (least.shards, least.driver),
            (ShardsArg::Count(2), DriverArg::Epoll)
        );
        let steps = parse("--stdin -p 1 -c 1 host").unwrap();
        assert_eq!(steps.rate_source, RateSource::Steps);
        let slopes = parse("--stdin-rateslope -r 9 -p 1 -c 1 host").unwrap();
        assert_eq!(slopes.rate_source, RateSource::Slopes);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, words) in [
            ("-p 1 -r 1 -c 1", "missing mandatory"),
            ("-p 1 -r 1 host", "missing mandatory"),
            ("-p 1 -c 1 host", "missing mandatory"),
            ("-c 1 -r 1 host", "missing mandatory"),
            ("--stdin-rateslope -p 1 -c 1 host", "missing mandatory"),
            (
                "--stdin -t 5 -p 1 -c 1 host",
                "--stdin is not compatible with -t",
            ),
            (
                "--stdin -r 5 -p 1 -c 1 host",
                "--stdin is not compatible with -r",
            ),
            (
                "--stdin --stdin-rateslope -p 1 -c 1 host",
                "with --stdin-rateslope",
            ),
            ("--stdin-rateslope -t 1 -r 1 -p 1 -c 1 host", "with -t"),
            ("--tls -p 1 -r 1 -c 1 host", "not yet in this version"),
            ("-x", "no option -x"),
            ("--stdout", "no option --stdout"),
            (
                "-p 1 -r 10k -c 1 host",
                "option -r: \"10k\" is not a whole number",
            ),
            ("-p 1 -r -1 -c 1 host", "is not a whole number"),
            ("-p 1 -r 1 -n 0 -c 1 host", "at least 1"),
            ("-r", "option -r needs a value"),
            ("-h", "help"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
