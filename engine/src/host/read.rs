//! Readings from `/proc` and `/sys`: a value, or the reason why there is none.
//!
//! Nothing here fails and nothing here prints. The files are found below a root folder, so that
//! tests can describe a host as a handful of small files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A value of this host, or the reason why it is not known. Exactly one of the two is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reading<T> {
    /// What was read.
    pub value: Option<T>,
    /// Why nothing was read, in words for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl<T> Reading<T> {
    /// A value that was read.
    pub fn known(value: T) -> Self {
        Self {
            value: Some(value),
            reason: None,
        }
    }

    /// No value, and why.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self {
            value: None,
            reason: Some(reason.into()),
        }
    }

    /// The same reading of something else; the reason stays.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reading<U> {
        Reading {
            value: self.value.map(f),
            reason: self.reason,
        }
    }

    /// A further step that may itself find no value.
    pub fn and_then<U>(self, f: impl FnOnce(T) -> Reading<U>) -> Reading<U> {
        match self.value {
            Some(value) => f(value),
            None => Reading {
                value: None,
                reason: self.reason,
            },
        }
    }
}

impl<T: fmt::Display> fmt::Display for Reading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.value, &self.reason) {
            (Some(value), _) => value.fmt(f),
            (None, Some(reason)) => write!(f, "unknown ({reason})"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// A limit of the kernel or of a control group; serialised as a number or as `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// At most this many, in the unit of the field that holds it.
    At(u64),
    /// No limit.
    Unlimited,
}

impl Limit {
    /// Whether the limit is below `wanted`.
    pub fn is_below(self, wanted: u64) -> bool {
        matches!(self, Self::At(limit) if limit < wanted)
    }
}

impl FromStr for Limit {
    type Err = String;

    /// `unlimited` as in `/proc/self/limits`, `max` as in control groups, or a number.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "unlimited" | "max" => Ok(Self::Unlimited),
            number => number
                .parse()
                .map(Self::At)
                .map_err(|_| format!("'{number}' is not a limit")),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(limit) => limit.fmt(f),
            Self::Unlimited => f.pad("unlimited"),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::At(limit) => serializer.serialize_u64(*limit),
            Self::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

/// The folder below which `/proc`, `/sys` and a few marker files are looked for.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Default for Root {
    /// The host itself.
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// Another folder that looks like a host.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file.trim_start_matches('/'))
    }

    /// Whether the file or folder exists.
    pub fn exists(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// The whole file without the white space at its end.
    pub fn text(&self, file: &str) -> Reading<String> {
        match std::fs::read(self.path(file)) {
            Ok(bytes) => Reading::known(String::from_utf8_lossy(&bytes).trim_end().to_owned()),
            Err(error) => Reading::unknown(match error.kind() {
                io::ErrorKind::NotFound => format!("{} does not exist here", display(file)),
                io::ErrorKind::PermissionDenied => format!("{} may not be read", display(file)),
                _ => format!("{}: {error}", display(file)),
            }),
        }
    }

    /// The file's only value.
    pub fn value<T: FromStr>(&self, file: &str) -> Reading<T> {
        self.text(file).and_then(|text| parse(file, text.trim()))
    }

    /// The value after `label` in a file of labelled lines, up to the end of the line.
    pub fn labelled(&self, file: &str, label: &str) -> Reading<String> {
        self.text(file).and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix(label))
                .map_or_else(
                    || {
                        Reading::unknown(format!(
                            "{} has no line '{}'",
                            display(file),
                            label.trim_end()
                        ))
                    },
                    |rest| Reading::known(rest.trim().to_owned()),
                )
        })
    }

    /// A kernel setting by its sysctl name, for example `net.core.somaxconn`.
    pub fn sysctl<T: FromStr>(&self, name: &str) -> Reading<T> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let reading = self.value(&file);
        if reading.value.is_none() && !self.exists(&file) {
            // A network namespace other than the host's shows only part of net.*.
            return Reading::unknown(if name.starts_with("net.") {
                format!("{name} is not visible in this network namespace or kernel")
            } else {
                format!("this kernel has no {name}")
            });
        }
        reading
    }
}

/// Turns text of `file` into a value, or says what was found instead.
pub(super) fn parse<T: FromStr>(file: &str, text: &str) -> Reading<T> {
    text.parse().map_or_else(
        |_| {
            Reading::unknown(format!(
                "{} holds '{text}', which is no such value",
                display(file)
            ))
        },
        Reading::known,
    )
}

fn display(file: &str) -> impl fmt::Display + '_ {
    Path::new(file).display()
}

/// The numbers in a list of CPUs or ports such as `0-3,8,10-11`; `None` where it is not one.
pub(super) fn parse_ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (range.0 <= range.1).then_some(range)
        })
        .collect()
}

/// How many numbers the ranges hold.
pub(super) fn ranges_len(ranges: &[(u32, u32)]) -> u32 {
    ranges.iter().map(|(first, last)| last - first + 1).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_counted() {
        for (text, expected) in [
            ("", Some(0)),
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("0-3,8,10-11", Some(7)),
            ("3-0", None),
            ("a", None),
            ("1,,2", None),
        ] {
            assert_eq!(
                parse_ranges(text).map(|ranges| ranges_len(&ranges)),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_a_reason_and_not_an_error() {
        let root = Root::at("/proc/self/no-such-folder");
        let reading = root.sysctl::<u64>("net.core.somaxconn");
        assert_eq!(reading.value, None);
        assert!(reading.reason.unwrap().contains("network namespace"));
        assert!(root.text("/a").reason.unwrap().contains("does not exist"));
    }

    #[test]
    fn limits_are_numbers_or_words() {
        for (text, limit, json) in [
            ("unlimited", Limit::Unlimited, "\"unlimited\""),
            ("max", Limit::Unlimited, "\"unlimited\""),
            ("20000", Limit::At(20_000), "20000"),
        ] {
            assert_eq!(text.parse(), Ok(limit));
            assert_eq!(serde_json::to_string(&limit).unwrap(), json);
        }
        assert!("-1".parse::<Limit>().is_err());
        assert!(Limit::At(1) < Limit::Unlimited);
    }
}
