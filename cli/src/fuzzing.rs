//! Bodies of the fuzz targets, shared by `fuzz/` (nightly, libFuzzer) and `tests/fuzz_corpus.rs`
//! (stable, replays the corpus).
//!
//! Each takes any bytes and panics when the parser breaks its promise; a refusal is fine. Not
//! part of the interface.

pub mod capacity;
pub mod connection;
pub mod dns;

use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::os::unix::ffi::OsStringExt as _;
use std::str::FromStr;

use clap::Parser as _;

use ringmill_engine::impairment::{
    Decider, Direction, Impairment, ImpairmentCounters, Link, Scenario,
};

use crate::commands::Cli;
use crate::commands::nat::spec;
use crate::commands::nat::steer::Word;
use crate::config;
use crate::endpoint::{Endpoint, Scheme};
use crate::fail_if::FailIf;
use crate::report::{Report, hlog};
use crate::units;

/// A target: any bytes in, a panic for a broken promise.
pub type Target = fn(&[u8]);

/// Every target by name, as its folder in `fuzz/corpus` is called.
pub const TARGETS: &[(&str, Target)] = &[
    ("capacity_activation", capacity::activation),
    ("capacity_connection", connection::connection),
    ("capacity_keys", capacity::keys),
    ("capacity_load", capacity::load),
    ("capacity_null", capacity::null),
    ("capacity_setup", capacity::setup),
    ("capacity_status", capacity::status),
    ("config", configuration),
    ("dns", dns::dns),
    ("endpoint", endpoint),
    ("fail_if", fail_if),
    ("flags", flags),
    ("hlog", histogram_log),
    ("impairment", impairment),
    ("rate_plan", dns::rate_plan),
    ("scenario", scenario),
    ("units", numbers),
];

/// What is read prints as text that reads as the same.
fn round_trip<T>(value: &T)
where
    T: FromStr + Display + Debug + PartialEq,
    T::Err: Debug,
{
    let text = value.to_string();
    let again: T = text.parse().expect("what was printed must be readable");
    assert_eq!(
        &again, value,
        "{text:?} reads as something else than what printed it"
    );
}

/// A message for a person: something.
fn explains(error: &impl Display) {
    assert!(!error.to_string().is_empty());
}

/// Endpoints, with every default scheme.
pub fn endpoint(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for default in [
        None,
        Some(Scheme::Tcp),
        Some(Scheme::Udp),
        Some(Scheme::Unix),
    ] {
        match Endpoint::parse_with(text, default) {
            Ok(endpoint) => round_trip(&endpoint),
            Err(error) => explains(&error),
        }
    }
}

/// The command line: each line of the data is one argument, of any bytes.
pub fn flags(data: &[u8]) {
    let arguments = data.split(|byte| *byte == b'\n');
    let arguments = arguments.map(|bytes| OsString::from_vec(bytes.to_vec()));
    if let Err(error) = Cli::try_parse_from(std::iter::once("ringmill".into()).chain(arguments)) {
        explains(&error.render());
    }
}

/// Configuration files: what is read prints as a file that reads as the same.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match config::parse(text, "fuzz") {
        Ok(read) => {
            let printed = read.to_toml();
            let again = config::parse(&printed, "printed").expect("what was printed is readable");
            assert_eq!(again, read, "printed as\n{printed}");
        }
        Err(error) => explains(&error),
    }
}

/// Durations, sizes, counts, rates and percentages.
pub fn numbers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match units::parse_duration(text) {
        Ok(duration) => {
            let exact = format!("{}ns", duration.as_nanos());
            assert_eq!(units::parse_duration(&exact), Ok(duration));
            assert!(!units::format_duration(duration).is_empty());
        }
        Err(error) => explains(&error),
    }
    for parse in [units::parse_size, units::parse_count] {
        match parse(text) {
            Ok(value) => {
                assert_eq!(parse(&value.to_string()), Ok(value));
                let _ = (units::format_bytes(value), units::format_count(value));
            }
            Err(error) => explains(&error),
        }
    }
    for parse in [
        units::parse_rate,
        units::parse_byte_rate,
        units::parse_percent,
    ] {
        match parse(text) {
            Ok(value) => {
                assert!(value.is_finite() && value >= 0.0, "{text:?} gave {value}");
                let _ = (units::format_rate(value), units::format_percent(value));
            }
            Err(error) => explains(&error),
        }
    }
}

/// Conditions, evaluated on a report in which nothing was measured.
pub fn fail_if(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<FailIf>() {
        Ok(condition) => {
            round_trip(&condition);
            assert!(!condition.evaluate(&Report::new()).words().is_empty());
        }
        Err(error) => explains(&error),
    }
}

/// Impairments as flags: what is understood makes sense.
pub fn impairment(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut model = Impairment::default();
    match spec::apply(&mut model, text) {
        Ok(()) => {
            model.validate().expect("what was taken makes sense");
            pass(&model);
        }
        Err(error) => explains(&error),
    }
    if let Err(error) = spec::parse_rebinding(text) {
        explains(&error);
    }
    if let Err(error) = Word::parse(text) {
        explains(&error);
    }
}

/// Scenario files: what makes sense prints as a file that reads as the same, and runs.
pub fn scenario(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let read: Scenario = match toml::from_str(text) {
        Ok(read) => read,
        Err(error) => return explains(&error),
    };
    if let Err(error) = read.validate() {
        return explains(&error);
    }
    // TOML has no numbers past 63 bits.
    if let Ok(printed) = toml::to_string(&read) {
        let again: Scenario = toml::from_str(&printed).expect("what was printed is readable");
        assert_eq!(again, read, "printed as\n{printed}");
    }
    let mut before = 0;
    for elapsed in [0, 1, 1_000_000, 999_999_999_999, u64::MAX / 2, u64::MAX] {
        let (phase, next) = read.at(elapsed);
        assert!(next.is_none_or(|next| next > elapsed || next == u64::MAX));
        let rebindings = read.rebindings(1, 2, elapsed);
        assert!(rebindings >= before, "mappings never move back");
        before = rebindings;
        pass(&read.phases[phase].forward);
        pass(&read.phases[phase].backward);
    }
}

/// A few datagrams through an impairment: each is passed, dropped or waits.
fn pass(model: &Impairment) {
    let counters = ImpairmentCounters::default();
    let mut link = Link::new(Decider::new(1, 2, Direction::Forward));
    let mut out = Vec::new();
    for n in 0..20_u64 {
        let (now, bytes) = (n * 1_000_003, (n * 331 % 1_500) as usize);
        let _ = link.offer(now, (bytes, (n % 4) as u8), n, model, &mut out, &counters);
        link.expire(now, &mut out, &counters);
    }
    let counts = counters.snapshot();
    assert_eq!(counts.offered, 20);
    assert_eq!(counts.passed, out.len() as u64);
    assert!(counts.passed + counts.dropped() <= counts.offered + counts.duplicated);
}

/// Histogram logs of any origin.
pub fn histogram_log(data: &[u8]) {
    match hlog::read(data) {
        Ok(log) => {
            let _ = log.total("response");
        }
        Err(error) => explains(&error),
    }
}
