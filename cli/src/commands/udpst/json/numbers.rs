//! Numbers and times as OB-UDPST prints them: so many decimals, milliseconds as seconds, UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ringmill_protocols::capacity::time::WallTime;
use serde::Serialize;
use serde::ser::{Error as _, Serializer};
use serde_json::value::RawValue;

/// A number printed with so many decimals; zero is always `0.0`.
pub(super) struct Fixed<const DECIMALS: usize>(pub(super) f64);

impl<const DECIMALS: usize> Serialize for Fixed<DECIMALS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let decimals = if self.0 == 0.0 { 1 } else { DECIMALS };
        raw(format!("{:.decimals$}", self.0), serializer)
    }
}

/// Milliseconds printed as seconds, in up to nine significant digits and always with a decimal
/// point.
pub(super) struct Seconds(pub(super) i64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        raw(seconds(self.0), serializer)
    }
}

fn raw<S: Serializer>(text: String, serializer: S) -> Result<S::Ok, S::Error> {
    RawValue::from_string(text)
        .map_err(S::Error::custom)?
        .serialize(serializer)
}

/// As `%.9g` of C, or `%.1f` where that has no decimal point.
pub(super) fn seconds(ms: i64) -> String {
    /// Significant digits.
    const DIGITS: i32 = 9;
    let value = ms as f64 / 1000.0;
    let exact = format!("{value:.*e}", DIGITS as usize - 1);
    let exponent: i32 = match exact.split_once('e') {
        Some((_, exponent)) => exponent.parse().unwrap_or(0),
        None => 0,
    };
    let shortened = if (-4..DIGITS).contains(&exponent) {
        trimmed(format!("{value:.*}", (DIGITS - 1 - exponent) as usize))
    } else {
        let (digits, _) = exact.split_once('e').unwrap_or((&exact, ""));
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trimmed(digits.to_owned()), exponent.abs())
    };
    if shortened.contains('.') {
        shortened
    } else {
        format!("{value:.1}")
    }
}

/// Without zeros at the end of decimals, nor the point if none are left.
fn trimmed(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A time as `2026-11-20T21:56:26.066618Z`.
#[must_use]
pub fn timestamp(time: WallTime) -> String {
    let Ok(second) = Timestamp::from_second(time.sec.into()) else {
        return String::new();
    };
    let second = second.to_zoned(TimeZone::UTC);
    let micros = time.nsec / 1000;
    format!("{}.{micros:06}Z", second.strftime("%Y-%m-%dT%H:%M:%S"))
}
