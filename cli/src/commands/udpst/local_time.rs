//! Times in the local zone, and names of files made of them: the conversions of `strftime`.

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use ringmill_protocols::capacity::time::WallTime;

/// The conversions that glibc has; jiff has others beside.
const CONVERSIONS: &[u8] = b"aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%";

/// A time in the local zone.
#[must_use]
pub fn local(time: WallTime) -> Zoned {
    in_zone(time, TimeZone::system())
}

fn in_zone(time: WallTime, zone: TimeZone) -> Zoned {
    // Unsigned 32-bit seconds are all within what a timestamp holds.
    let second = Timestamp::from_second(time.sec.into()).unwrap_or(Timestamp::UNIX_EPOCH);
    second.to_zoned(zone)
}

/// As `2026-11-20T21:41:16.308899Z`, or `+01:00` at its end where the zone is not that of
/// Greenwich.
#[must_use]
pub fn datetime(time: WallTime) -> String {
    let zoned = local(time);
    let offset = zoned.offset().seconds() / 60;
    let seconds = zoned.strftime("%Y-%m-%dT%H:%M:%S");
    let micros = time.nsec / 1000;
    let zone = match offset {
        0 => "Z".to_owned(),
        _ => {
            let sign = if offset < 0 { '-' } else { '+' };
            let minutes = offset.unsigned_abs();
            format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
        }
    };
    format!("{seconds}.{micros:06}{zone}")
}

/// Replaces the conversions of `strftime` in a name. What is none stays as it is, as in glibc.
#[must_use]
pub fn expand(name: &[u8], time: WallTime) -> Vec<u8> {
    expand_at(name, &local(time))
}

fn expand_at(name: &[u8], time: &Zoned) -> Vec<u8> {
    let mut expanded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        expanded.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        // A conversion may have flags, a width and a modifier before its letter.
        let flags = rest[1..]
            .iter()
            .take_while(|byte| b"_-0^#123456789EO".contains(byte))
            .count();
        let len = (flags + 2).min(rest.len());
        let (conversion, after) = rest.split_at(len);
        let known = conversion.len() > 1 && CONVERSIONS.contains(&conversion[conversion.len() - 1]);
        match std::str::from_utf8(conversion).map(|text| strtime::format(text, time)) {
            Ok(Ok(text)) if known => expanded.extend_from_slice(text.as_bytes()),
            _ => expanded.extend_from_slice(conversion),
        }
        rest = after;
    }
    expanded.extend_from_slice(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_times() {
        let time = WallTime {
            sec: 1_795_210_876,
            nsec: 308_899_123,
        };
        let zoned = in_zone(time, TimeZone::fixed(jiff::tz::offset(1)));
        for (name, expanded) in [
            ("plain.csv", "plain.csv"),
            ("%Y%m%d-%H%M%S.csv", "20261120-224116.csv"),
            ("%F_%T", "2026-11-20_22:41:16"),
            ("100%%", "100%"),
            ("100%", "100%"),
            ("%q%", "%q%"),
            ("%s", "1795210876"),
            ("%-d.%y", "20.26"),
        ] {
            let found = expand_at(name.as_bytes(), &zoned);
            assert_eq!(String::from_utf8_lossy(&found), expanded, "{name}");
        }
        assert_eq!(expand_at(b"\xff%", &zoned), b"\xff%");
    }

    #[test]
    fn a_local_time_says_its_zone() {
        let time = WallTime {
            sec: 1_795_210_876,
            nsec: 308_899_123,
        };
        let text = datetime(time);
        assert!(text.contains(".308899"), "{text}");
        assert!(
            text.ends_with('Z') || text.as_bytes()[text.len() - 6..][3] == b':',
            "{text}"
        );
    }
}
