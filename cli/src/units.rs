//! Numbers with units, as people type them and as people read them.
//!
//! Reading is exact: the decimal digits are scaled as whole numbers, so `0.1s` is 100,000,000 ns
//! and never one less. Writing rounds to three or four figures and is for people only; what a
//! program reads is in plain base units (see `docs/report.md`).
//!
//! Time and counts scale by 1000. Sizes follow iperf3 and fio: a lone `k`, `M`, `G` and the
//! `KiB` forms are powers of 1024, the `kB` forms powers of 1000.

use std::time::Duration;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It does not start with a number.
    #[error("'{text}' is not {what}: {hint}")]
    NotANumber {
        /// What was given.
        text: String,
        /// What it should be.
        what: &'static str,
        /// How it is written.
        hint: &'static str,
    },
    /// The number is followed by a unit that does not belong here.
    #[error("'{unit}' in '{text}' is not a unit of {what}: {hint}")]
    UnknownUnit {
        /// What was given.
        text: String,
        /// The part after the number.
        unit: String,
        /// What it should be.
        what: &'static str,
        /// How it is written.
        hint: &'static str,
    },
    /// Finer than the smallest unit.
    #[error("'{text}' is not a whole number of {base}")]
    TooFine {
        /// What was given.
        text: String,
        /// The smallest unit.
        base: &'static str,
    },
    /// More than can be counted.
    #[error("'{text}' is too large: at most {max} {base} can be counted")]
    TooLarge {
        /// What was given.
        text: String,
        /// The largest value.
        max: u64,
        /// The smallest unit.
        base: &'static str,
    },
}

/// A kind of quantity: its words and its units, as multiples of the base unit.
struct Kind {
    what: &'static str,
    base: &'static str,
    hint: &'static str,
    /// Unit and factor; an empty unit is the plain number.
    units: &'static [(&'static str, u64)],
}

const DURATION: Kind = Kind {
    what: "a duration",
    base: "nanoseconds",
    hint: "write 10s, 500ms, 100us, 2m or 1h; a plain number is seconds",
    units: &[
        ("", 1_000_000_000),
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("min", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ],
};

const SIZE: Kind = Kind {
    what: "a size",
    base: "bytes",
    hint: "write 32, 4k, 1MiB (powers of 1024) or 1MB (a million)",
    units: &[
        ("", 1),
        ("B", 1),
        ("k", 1 << 10),
        ("K", 1 << 10),
        ("KiB", 1 << 10),
        ("kB", 1_000),
        ("KB", 1_000),
        ("m", 1 << 20),
        ("M", 1 << 20),
        ("MiB", 1 << 20),
        ("MB", 1_000_000),
        ("g", 1 << 30),
        ("G", 1 << 30),
        ("GiB", 1 << 30),
        ("GB", 1_000_000_000),
        ("T", 1 << 40),
        ("TiB", 1 << 40),
        ("TB", 1_000_000_000_000),
    ],
};

const COUNT: Kind = Kind {
    what: "a count",
    base: "items",
    hint: "write 1000, 100k, 1.5M or 2G (powers of 1000)",
    units: COUNT_UNITS,
};

const COUNT_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("k", 1_000),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

const RATE_HINT: &str = "write 100k, 1.5M, 100/s or 30/m; a plain number is per second";

/// A number as it was typed: `digits` / 10^`decimals`.
struct Decimal {
    digits: u128,
    decimals: u32,
}

/// Splits `1.5M` into its number and its unit; blanks around either are allowed.
fn split(text: &str) -> Option<(Decimal, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !whole.starts_with(|c: char| c.is_ascii_digit()) || fraction.contains(['.', '_']) {
        return None;
    }
    let mut digits: u128 = 0;
    // Trailing zeros behind the dot say nothing and would only overflow.
    let fraction = fraction.trim_end_matches('0');
    for byte in whole
        .bytes()
        .filter(|&byte| byte != b'_')
        .chain(fraction.bytes())
    {
        digits = digits
            .checked_mul(10)?
            .checked_add(u128::from(byte - b'0'))?;
    }
    let decimals = u32::try_from(fraction.len()).ok()?;
    Some((Decimal { digits, decimals }, unit.trim_start()))
}

impl Kind {
    fn split<'a>(&self, text: &'a str) -> Result<(Decimal, &'a str), UnitError> {
        split(text).ok_or_else(|| UnitError::NotANumber {
            text: text.to_owned(),
            what: self.what,
            hint: self.hint,
        })
    }

    fn factor(&self, text: &str, unit: &str) -> Result<u64, UnitError> {
        let known = self.units.iter().find(|(name, _)| *name == unit);
        known
            .map(|(_, factor)| *factor)
            .ok_or_else(|| UnitError::UnknownUnit {
                text: text.to_owned(),
                unit: unit.to_owned(),
                what: self.what,
                hint: self.hint,
            })
    }

    /// The quantity in base units.
    fn parse(&self, text: &str) -> Result<u64, UnitError> {
        let (number, unit) = self.split(text)?;
        let factor = self.factor(text, unit)?;
        let too_large = || UnitError::TooLarge {
            text: text.to_owned(),
            max: u64::MAX,
            base: self.base,
        };
        let too_fine = || UnitError::TooFine {
            text: text.to_owned(),
            base: self.base,
        };
        let scaled = number
            .digits
            .checked_mul(u128::from(factor))
            .ok_or_else(too_large)?;
        // 10^39 overflows u128, and a remainder that needs it is finer than anything here.
        let divisor = 10_u128.checked_pow(number.decimals).ok_or_else(too_fine)?;
        if !scaled.is_multiple_of(divisor) {
            return Err(too_fine());
        }
        u64::try_from(scaled / divisor).map_err(|_| too_large())
    }
}

/// Reads a duration: `10s`, `500ms`, `2m`, `100us`, `1.5h`; a plain number is seconds.
///
/// # Errors
/// [`UnitError`] for anything else, for fractions of a nanosecond and for more than 584 years.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    DURATION.parse(text).map(Duration::from_nanos)
}

/// Reads a size in bytes: `32`, `4k`, `1MiB`, `9kB`.
///
/// # Errors
/// [`UnitError`] for anything else and for fractions of a byte.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    SIZE.parse(text)
}

/// Reads a count: `1000`, `100k`, `1.5M`; also `1_000_000`.
///
/// # Errors
/// [`UnitError`] for anything else and for fractions of one.
pub fn parse_count(text: &str) -> Result<u64, UnitError> {
    COUNT.parse(text)
}

/// Reads a rate per second: `100k`, `1.5M/s`, `0.5/s`, `30/m`, `10/h`.
///
/// # Errors
/// [`UnitError`] for anything else.
pub fn parse_rate(text: &str) -> Result<f64, UnitError> {
    const RATE: Kind = Kind {
        what: "a rate",
        base: "per second",
        hint: RATE_HINT,
        units: COUNT_UNITS,
    };
    parse_per_time(&RATE, text)
}

/// Reads bytes per second: `10MiB/s`, `1GB/s`, or bits with `Mbit/s`, `Gbit/s`.
///
/// # Errors
/// [`UnitError`] for anything else.
pub fn parse_byte_rate(text: &str) -> Result<f64, UnitError> {
    const BYTE_RATE: Kind = Kind {
        what: "a data rate",
        base: "bytes per second",
        hint: "write 10MiB/s, 1GB/s or 1Gbit/s",
        units: SIZE.units,
    };
    const BITS_PER_BYTE: f64 = 8.0;
    if text.contains("bit") {
        return parse_bit_rate(text).map(|bits| bits / BITS_PER_BYTE);
    }
    parse_per_time(&BYTE_RATE, text)
}

/// Reads bits per second: `900Mbit`, `1.5Gbit/s`. A bare number is refused: it could be megabits as
/// well.
///
/// # Errors
/// [`UnitError`] for anything else.
pub fn parse_bit_rate(text: &str) -> Result<f64, UnitError> {
    const BIT_RATE: Kind = Kind {
        what: "a bit rate",
        base: "bits per second",
        hint: "write 900Mbit or 1.5Gbit/s",
        units: &[
            ("bit", 1),
            ("kbit", 1_000),
            ("Mbit", 1_000_000),
            ("Gbit", 1_000_000_000),
            ("Tbit", 1_000_000_000_000),
        ],
    };
    parse_per_time(&BIT_RATE, text)
}

/// A quantity with an optional `/s`, `/m` or `/h` behind it.
fn parse_per_time(kind: &Kind, text: &str) -> Result<f64, UnitError> {
    let (number, unit) = kind.split(text)?;
    let (unit, per_s) = match unit.split_once('/') {
        Some((unit, "s")) => (unit, 1.0),
        Some((unit, "m" | "min")) => (unit, 60.0),
        Some((unit, "h")) => (unit, 3600.0),
        // Any other slash stays in the unit, which `factor` then refuses by name.
        Some(_) | None => (unit, 1.0),
    };
    let factor = kind.factor(text, unit.trim_end())?;
    Ok(number.to_f64() * factor as f64 / per_s)
}

impl Decimal {
    fn to_f64(&self) -> f64 {
        self.digits as f64 / 10_f64.powf(f64::from(self.decimals))
    }
}

/// Reads a percentage as a ratio: `0.1%` is 0.001. A bare `0` is allowed, any other bare number
/// is not: `1` could mean one percent or all.
///
/// # Errors
/// [`UnitError`] for anything else.
pub fn parse_percent(text: &str) -> Result<f64, UnitError> {
    const PERCENT: Kind = Kind {
        what: "a percentage",
        base: "percent",
        hint: "write 0.1% or 5%",
        units: &[("%", 1)],
    };
    let (number, unit) = PERCENT.split(text)?;
    if number.digits == 0 && unit.is_empty() {
        return Ok(0.0);
    }
    PERCENT.factor(text, unit)?;
    Ok(number.to_f64() / 100.0)
}

/// Scales `value` by `step` until it fits, minding that 999.96 would print as 1000.0.
fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    let limit = step - 0.05;
    while value.abs() >= limit && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let decimals = if value.abs() < 9.995 { 2 } else { 1 };
    format!("{value:.decimals$} {}", units[unit])
}

/// Bits per second for people: `9.41 Gbit/s`, `12.0 Mbit/s`.
pub fn format_bit_rate(bits_per_s: f64) -> String {
    scaled(
        bits_per_s,
        1000.0,
        &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"],
    )
}

/// A rate for people: `341.2 k/s`, `9.41 M/s`, `12.0 /s`.
pub fn format_rate(per_s: f64) -> String {
    scaled(per_s, 1000.0, &["/s", "k/s", "M/s", "G/s"])
}

/// Bytes for people, in powers of 1024: `512 B`, `34.9 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    scaled(
        bytes as f64,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB"],
    )
}

/// Bytes per second for people, in powers of 1024: `10.4 MiB/s`.
pub fn format_byte_rate(bytes_per_s: f64) -> String {
    scaled(
        bytes_per_s,
        1024.0,
        &["B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s"],
    )
}

/// A latency for people: `512 ns`, `12.3 µs`, `1.20 ms`, `2.50 s`.
pub fn format_latency_ns(latency_ns: f64) -> String {
    if latency_ns.abs() < 999.5 {
        return format!("{latency_ns:.0} ns");
    }
    scaled(latency_ns / 1000.0, 1000.0, &["µs", "ms", "s"])
}

/// A duration for people: `512 ns` … `10.0 s`, from a minute on `2m 05s`, `1h 00m 00s`.
pub fn format_duration(duration: Duration) -> String {
    const MINUTE_S: u64 = 60;
    const HOUR_S: u64 = 3600;
    let s = duration.as_secs_f64().round() as u64;
    if duration.as_secs() >= HOUR_S {
        return format!(
            "{}h {:02}m {:02}s",
            s / HOUR_S,
            s % HOUR_S / MINUTE_S,
            s % MINUTE_S
        );
    }
    if duration.as_secs() >= MINUTE_S {
        return format!("{}m {:02}s", s / MINUTE_S, s % MINUTE_S);
    }
    format_latency_ns(duration.as_nanos() as f64)
}

/// A count for people: `1,234,567`.
pub fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A percentage (0 to 100) for people, with more figures where it is small: `0.0012 %`, `3.20 %`.
pub fn format_percent(percent: f64) -> String {
    let decimals = match percent.abs() {
        0.0 => 0,
        p if p < 0.01 => 4,
        p if p < 1.0 => 3,
        p if p < 9.95 => 2,
        _ => 1,
    };
    format!("{percent:.decimals$} %")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, ns) in [
            ("10s", 10_000_000_000),
            ("500ms", 500_000_000),
            ("2m", 120_000_000_000),
            ("2min", 120_000_000_000),
            ("100us", 100_000),
            ("100µs", 100_000),
            ("7ns", 7),
            ("1.5h", 5_400_000_000_000),
            ("0.1s", 100_000_000),
            ("0.1", 100_000_000),
            ("10", 10_000_000_000),
            (" 10 s ", 10_000_000_000),
            (
                "1.50000000000000000000000000000000000000000000ms",
                1_500_000,
            ),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
        for (text, words) in [
            ("", "not a duration: write 10s"),
            ("s", "not a duration"),
            ("-1s", "not a duration"),
            ("1.2.3s", "not a duration"),
            (".5s", "not a duration"),
            ("1e3", "'e3' in '1e3' is not a unit of a duration"),
            ("5 years", "'years'"),
            ("0.5ns", "not a whole number of nanoseconds"),
            (
                "0.00000000000000000000000000000000000000001s",
                "whole number of nanoseconds",
            ),
            ("6000000h", "too large"),
            ("340282366920938463463374607431768211455h", "too large"),
        ] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("32", 32),
            ("32B", 32),
            ("4k", 4096),
            ("4K", 4096),
            ("4KiB", 4096),
            ("4kB", 4000),
            ("1MiB", 1 << 20),
            ("1M", 1 << 20),
            ("1.5M", 3 << 19),
            ("1MB", 1_000_000),
            ("2GiB", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, words) in [
            ("1.5", "not a whole number of bytes"),
            ("4 kilo", "'kilo'"),
            ("x", "write 32, 4k"),
            ("99999999T", "too large"),
        ] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn counts_and_rates() {
        for (text, count) in [
            ("100k", 100_000),
            ("1.5M", 1_500_000),
            ("1_000_000", 1_000_000),
            ("2G", 2_000_000_000),
        ] {
            assert_eq!(parse_count(text), Ok(count), "{text}");
        }
        assert!(parse_count("1.5").is_err());
        assert!(parse_count("1/s").is_err());
        for (text, per_s) in [
            ("100k", 100_000.0),
            ("1.5M/s", 1_500_000.0),
            ("100/s", 100.0),
            ("100 /s", 100.0),
            ("0.5", 0.5),
            ("30/m", 0.5),
            ("36/h", 0.01),
        ] {
            assert_eq!(parse_rate(text), Ok(per_s), "{text}");
        }
        for text in ["100/d", "k", "100 per second", "1/s/s", "-5"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        for (text, bytes_per_s) in [
            ("10MiB/s", 10_485_760.0),
            ("1GB/s", 1e9),
            ("1Gbit/s", 1.25e8),
            ("8bit/s", 1.0),
            ("100", 100.0),
        ] {
            assert_eq!(parse_byte_rate(text), Ok(bytes_per_s), "{text}");
        }
        assert!(parse_byte_rate("1Gbits/s").is_err());
    }

    #[test]
    fn percentages() {
        for (text, ratio) in [("0.1%", 0.001), ("5%", 0.05), ("100 %", 1.0), ("0", 0.0)] {
            assert_eq!(parse_percent(text), Ok(ratio), "{text}");
        }
        for text in ["1", "0.1", "%", "5%%", "5 percent"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_for_people() {
        for (per_s, text) in [
            (0.0, "0.00 /s"),
            (12.0, "12.0 /s"),
            (341_234.0, "341.2 k/s"),
            (9_413_997.0, "9.41 M/s"),
            (999_960.0, "1.00 M/s"),
            (9_996.0, "10.0 k/s"),
        ] {
            assert_eq!(format_rate(per_s), text);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (36_571_136, "34.9 MiB"),
            (1_048_575, "1.00 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
        assert_eq!(format_byte_rate(10_905_190.4), "10.4 MiB/s");
        for (ns, text) in [
            (0.0, "0 ns"),
            (512.0, "512 ns"),
            (999.7, "1.00 µs"),
            (12_345.0, "12.3 µs"),
            (999_999.0, "1.00 ms"),
            (1_200_000.0, "1.20 ms"),
            (2_500_000_000.0, "2.50 s"),
            (4_000_000_000_000.0, "4000.0 s"),
        ] {
            assert_eq!(format_latency_ns(ns), text);
        }
        for (ms, text) in [
            (10_000, "10.0 s"),
            (59_999, "60.0 s"),
            (60_000, "1m 00s"),
            (125_000, "2m 05s"),
            (3_600_000, "1h 00m 00s"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(ms)), text);
        }
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(format_count(count), text);
        }
        for (percent, text) in [
            (0.0, "0 %"),
            (0.0012, "0.0012 %"),
            (0.12, "0.120 %"),
            (3.2, "3.20 %"),
            (99.5, "99.5 %"),
        ] {
            assert_eq!(format_percent(percent), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,50}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
            let _ = parse_count(&text);
            let _ = parse_rate(&text);
            let _ = parse_byte_rate(&text);
            let _ = parse_percent(&text);
        }

        #[test]
        fn whole_numbers_are_exact(value in 0_u64..18_000_000_000) {
            prop_assert_eq!(parse_duration(&format!("{value}ns")), Ok(Duration::from_nanos(value)));
            prop_assert_eq!(parse_duration(&format!("{value}s")), Ok(Duration::from_secs(value)));
            prop_assert_eq!(parse_size(&value.to_string()), Ok(value));
            prop_assert_eq!(parse_count(&value.to_string()), Ok(value));
            let decimals = format!("{}.{:09}s", value / 1_000_000_000, value % 1_000_000_000);
            prop_assert_eq!(parse_duration(&decimals), Ok(Duration::from_nanos(value)));
        }

        #[test]
        fn rates_are_finite_and_not_negative(text in "[0-9]{1,40}(\\.[0-9]{0,40})?[kMG]?(/[smh])?") {
            if let Ok(rate) = parse_rate(&text) {
                prop_assert!(rate.is_finite() && rate >= 0.0);
            }
        }
    }
}
