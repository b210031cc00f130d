//! What a DNS server with a fixed answer is told: its flags, and the keys of `dns` in a file.

use std::net::IpAddr;

use clap::Args;
use ringmill_protocols::dns::AnswerTemplate;
use serde::{Deserialize, Serialize};

/// TTLs are at most 31 bits (RFC 2181 §8).
const TTL_S_MAX: u32 = i32::MAX as u32;

/// The answer that everybody gets.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Answer")]
#[serde(default, deny_unknown_fields)]
pub struct AnswerArgs {
    /// Address for every name: an IPv4 one for questions of type A, an IPv6 one for AAAA; what has
    /// none is answered without a record.
    #[arg(long, value_name = "IP", value_delimiter = ',', default_values = ["192.0.2.1", "2001:db8::1"])]
    pub answer: Vec<IpAddr>,

    /// Seconds that the answer may be kept by who asked.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(0..=i64::from(TTL_S_MAX)))]
    pub ttl: u32,
}

impl Default for AnswerArgs {
    /// Addresses for documentation (RFC 5737, RFC 3849): nobody is sent anywhere by mistake.
    fn default() -> Self {
        Self {
            answer: vec![
                IpAddr::from([192, 0, 2, 1]),
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            ],
            ttl: 60,
        }
    }
}

impl AnswerArgs {
    /// The records, encoded.
    #[must_use]
    pub fn template(&self) -> AnswerTemplate {
        AnswerTemplate::of(&self.answer, self.ttl.min(TTL_S_MAX))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        answer: AnswerArgs,
    }

    #[test]
    fn flags_and_keys_have_the_same_defaults() {
        let flags = Flags::try_parse_from(["serve"]).unwrap().answer;
        let keys: AnswerArgs = toml::from_str("").unwrap();
        assert_eq!(flags, keys);
        let flags = Flags::try_parse_from(["serve", "--answer", "10.0.0.1,::1", "--ttl", "5"]);
        let keys = toml::from_str("answer = [\"10.0.0.1\", \"::1\"]\nttl = 5").unwrap();
        assert_eq!(flags.unwrap().answer, keys);
    }
}
