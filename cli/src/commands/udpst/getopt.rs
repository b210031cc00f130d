//! A command line taken apart as the C library's `getopt` does it, and numbers read as `atoi` and
//! `strtol` read them: scripts rely on what those let pass.
//!
//! Letters may be combined (`-ds`), a value may follow its letter at once or as the next argument,
//! whatever it looks like (`-i -3`), options and operands may come in any order, and `--` ends the
//! options. A word of two dashes was never an option of OB-UDPST, so those are ours.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One option of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A letter, and its value where it takes one.
    Letter(u8, Option<OsString>),
    /// A word of two dashes, and what stands behind its `=`.
    Word(String, Option<OsString>),
    /// A letter that is none of the known ones.
    Unknown(u8),
    /// A letter without the value that it takes.
    ValueMissing(u8),
}

/// Takes arguments apart: options in their order, then operands in theirs. `letters` is written as
/// for `getopt`; `words_with_value` are those words whose value may be the next argument.
pub fn split(
    arguments: impl IntoIterator<Item = OsString>,
    letters: &str,
    words_with_value: &[&str],
) -> (Vec<Item>, Vec<OsString>) {
    let (mut items, mut operands) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            operands.extend(arguments);
            break;
        }
        if let Some(word) = bytes.strip_prefix(b"--") {
            let (name, mut value) = match word.iter().position(|byte| *byte == b'=') {
                Some(at) => (&word[..at], Some(os(&word[at + 1..]))),
                None => (word, None),
            };
            let name = String::from_utf8_lossy(name).into_owned();
            if value.is_none() && words_with_value.contains(&name.as_str()) {
                value = arguments.next();
            }
            items.push(Item::Word(name, value));
            continue;
        }
        let Some(cluster) = bytes.strip_prefix(b"-").filter(|rest| !rest.is_empty()) else {
            operands.push(argument);
            continue;
        };
        for (at, &letter) in cluster.iter().enumerate() {
            let rest = &cluster[at + 1..];
            match takes_value(letters, letter) {
                None => items.push(Item::Unknown(letter)),
                Some(false) => items.push(Item::Letter(letter, None)),
                Some(true) => {
                    let value = if rest.is_empty() {
                        arguments.next()
                    } else {
                        Some(os(rest))
                    };
                    items.push(match value {
                        Some(value) => Item::Letter(letter, Some(value)),
                        None => Item::ValueMissing(letter),
                    });
                    break;
                }
            }
        }
    }
    (items, operands)
}

/// Whether a letter takes a value; `None` for one that is unknown.
fn takes_value(letters: &str, letter: u8) -> Option<bool> {
    if letter == b':' {
        return None;
    }
    let at = letters.bytes().position(|known| known == letter)?;
    Some(letters.as_bytes().get(at + 1) == Some(&b':'))
}

fn os(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// A number as `atoi` reads it: blanks, a sign, digits, and nothing else counts; 0 where there are
/// none. What is too large is cut to 32 bits, as there.
#[must_use]
pub fn atoi(text: &OsStr) -> i32 {
    whole(text, 10) as i32
}

/// A number as `strtol` with base 0 reads it, cut to 32 bits: also `0x` and hexadecimal, `0` and
/// octal.
#[must_use]
pub fn strtol(text: &OsStr) -> i32 {
    whole(text, 0) as i32
}

fn whole(text: &OsStr, base: u32) -> i64 {
    let text = text.as_bytes();
    let blanks = |byte: &&u8| matches!(**byte, b' ' | b'\t'..=b'\r');
    let mut digits = &text[text.iter().take_while(blanks).count()..];
    let negative = digits.first() == Some(&b'-');
    if let Some((b'-' | b'+', rest)) = digits.split_first() {
        digits = rest;
    }
    let hexadecimal = matches!(digits, [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit());
    let base = match base {
        0 if hexadecimal => 16,
        0 if digits.first() == Some(&b'0') => 8,
        0 => 10,
        base => base,
    };
    if base == 16 {
        digits = &digits[2..];
    }
    let mut value: i64 = 0;
    for digit in digits {
        let Some(digit) = char::from(*digit).to_digit(base) else {
            break;
        };
        let digit = if negative {
            -i64::from(digit)
        } else {
            i64::from(digit)
        };
        value = value.saturating_mul(base.into()).saturating_add(digit);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> (Vec<Item>, Vec<OsString>) {
        split(line.split(' ').map(OsString::from), "ab:c?", &["time"])
    }

    fn letter(letter: char, value: Option<&str>) -> Item {
        Item::Letter(letter as u8, value.map(OsString::from))
    }

    #[test]
    fn options_and_operands_in_any_order() {
        for (line, items, operands) in [
            (
                "-a -b x h",
                vec![letter('a', None), letter('b', Some("x"))],
                vec!["h"],
            ),
            (
                "h -acbx",
                vec![letter('a', None), letter('c', None), letter('b', Some("x"))],
                vec!["h"],
            ),
            (
                "-b -a h -- -c",
                vec![letter('b', Some("-a"))],
                vec!["h", "-c"],
            ),
            ("-b -- h", vec![letter('b', Some("--"))], vec!["h"]),
            (
                "-azb",
                vec![
                    letter('a', None),
                    Item::Unknown(b'z'),
                    Item::ValueMissing(b'b'),
                ],
                vec![],
            ),
            (
                "- -a:",
                vec![letter('a', None), Item::Unknown(b':')],
                vec!["-"],
            ),
            (
                "--time 5 --time=6 --x y",
                vec![
                    Item::Word("time".into(), Some("5".into())),
                    Item::Word("time".into(), Some("6".into())),
                    Item::Word("x".into(), None),
                ],
                vec!["y"],
            ),
        ] {
            let operands: Vec<_> = operands.into_iter().map(OsString::from).collect();
            assert_eq!(taken(line), (items, operands), "{line}");
        }
    }

    #[test]
    fn numbers_as_the_c_library_reads_them() {
        for (text, decimal, any) in [
            ("", 0, 0),
            ("x", 0, 0),
            ("12x", 12, 12),
            (" \t+7", 7, 7),
            ("-3", -3, -3),
            ("--3", 0, 0),
            ("0x1f", 0, 31),
            ("0x", 0, 0),
            ("-0X10", 0, -16),
            ("010", 10, 8),
            ("4294967301", 5, 5),
            ("99999999999999999999", -1, -1),
            ("-99999999999999999999", 0, 0),
            ("2147483648", i32::MIN, i32::MIN),
        ] {
            assert_eq!(
                (atoi(text.as_ref()), strtol(text.as_ref())),
                (decimal, any),
                "{text:?}"
            );
        }
    }
}
