//! Where one message ends and the next begins: each receive is one, or lines are kept whole.
//!
//! Lines that arrive together stay together: what one receive completes is one message of whole
//! lines, so that a fast sender costs one fan-out for each receive and not for each line. A line
//! past the bound is thrown away to its end and counted; the session goes on. Nothing of it is
//! passed on, because half a line would look like a whole one.

use std::borrow::Cow;
use std::sync::Arc;

/// How the bytes of a session become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// What one receive returns.
    #[default]
    Read,
    /// Whole lines, each ended by a newline, of at most so many bytes with it.
    Line {
        /// The longest.
        bytes_max: usize,
    },
}

impl Framing {
    /// A text of the server's own as a message.
    #[must_use]
    pub fn frame(self, text: &[u8]) -> Arc<[u8]> {
        match self {
            Self::Read => text.into(),
            Self::Line { .. } => [text, b"\n"].concat().into(),
        }
    }
}

/// The word that ends a session.
pub(super) const LEAVE: &[u8] = b"!";

/// What a receive came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cut<'a> {
    /// To be passed on; borrowed when it is all that arrived.
    pub(super) message: Option<Cow<'a, [u8]>>,
    /// Lines thrown away.
    pub(super) too_long: u64,
    /// The sender wants to leave; what follows its word is not looked at.
    pub(super) leaves: bool,
}

/// The unfinished line of one session. Takes memory only while there is one.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// The line was too long: its rest is skipped.
    skipping: bool,
}

fn is_leave(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line) == LEAVE
}

impl Lines {
    /// Takes what arrived.
    pub(super) fn take<'a>(&mut self, data: &'a [u8], bytes_max: usize) -> Cut<'a> {
        let lines = || data.split_inclusive(|byte| *byte == b'\n');
        let is_plain = self.partial.is_empty()
            && !self.skipping
            && data.ends_with(b"\n")
            && lines().all(|line| line.len() <= bytes_max && !is_leave(line));
        if is_plain {
            return Cut {
                message: Some(data.into()),
                ..Cut::default()
            };
        }
        let mut cut = Cut::default();
        let mut whole = Vec::new();
        for piece in lines() {
            let ends = piece.ends_with(b"\n");
            if self.skipping {
                self.skipping = !ends;
            } else if self.partial.len() + piece.len() + usize::from(!ends) > bytes_max {
                self.partial = Vec::new();
                self.skipping = !ends;
                cut.too_long += 1;
            } else if !ends {
                self.partial.extend_from_slice(piece);
            } else {
                let mut line = std::mem::take(&mut self.partial);
                line.extend_from_slice(piece);
                whole.extend_from_slice(&line);
                if is_leave(&line) {
                    cut.leaves = true;
                    break;
                }
            }
        }
        cut.message = (!whole.is_empty()).then(|| whole.into());
        cut
    }

    /// The peer sends no more: what it began is its last line.
    pub(super) fn end(&mut self) -> Option<Vec<u8>> {
        let mut line = std::mem::take(&mut self.partial);
        if line.is_empty() {
            return None;
        }
        line.push(b'\n');
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_whole_or_not_there() {
        // What arrives; messages; lines too long; leaves; the last line at the end.
        type Case<'a> = (&'a [&'a str], &'a [&'a str], u64, bool, &'a str);
        let cases: &[Case<'_>] = &[
            (&["a\n"], &["a\n"], 0, false, ""),
            (&["a\nb\n"], &["a\nb\n"], 0, false, ""),
            (&["a\nb"], &["a\n"], 0, false, "b\n"),
            (&["a", "b", "\n"], &["ab\n"], 0, false, ""),
            (&["a\nb", "c\nd"], &["a\n", "bc\n"], 0, false, "d\n"),
            (&["\n\r\n"], &["\n\r\n"], 0, false, ""),
            (&["1234567\n"], &["1234567\n"], 0, false, ""),
            (&["12345678\nx\n"], &["x\n"], 1, false, ""),
            (&["1234", "5678", "90\nx\n"], &["x\n"], 1, false, ""),
            (&["123456789", "\n", "x"], &[], 1, false, "x\n"),
            (&["1234567"], &[], 0, false, "1234567\n"),
            // With the end that it gets it would be past the bound.
            (&["12345678"], &[], 1, false, ""),
            (&["a\n!\nb\n"], &["a\n!\n"], 0, true, ""),
            (&["!", "\r\n"], &["!\r\n"], 0, true, ""),
            (&["!!\n! \n"], &["!!\n! \n"], 0, false, ""),
            (&["a!\n"], &["a!\n"], 0, false, ""),
        ];
        for (arrives, messages, too_long, leaves, rest) in cases {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            let mut sum = (0, false);
            for data in *arrives {
                let cut = lines.take(data.as_bytes(), 8);
                got.extend(cut.message);
                sum = (sum.0 + cut.too_long, sum.1 | cut.leaves);
            }
            let got: Vec<_> = got.iter().map(|m| str::from_utf8(m).unwrap()).collect();
            assert_eq!(got, *messages, "{arrives:?}");
            assert_eq!(sum, (*too_long, *leaves), "{arrives:?}");
            let end = lines.end().unwrap_or_default();
            assert_eq!(str::from_utf8(&end).unwrap(), *rest, "{arrives:?}");
            assert_eq!(lines.partial.capacity(), 0, "an idle session has no buffer");
        }
    }

    proptest! {
        /// However the bytes are cut into receives, the same lines come out.
        #[test]
        fn cuts_do_not_matter(
            lines in prop::collection::vec("[ab]{0,12}", 0..20),
            cuts in prop::collection::vec(1_usize..9, 1..200),
        ) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let kept = |line: &&String| line.len() < 8;
            let expected: String =
                lines.iter().filter(kept).map(|line| format!("{line}\n")).collect();
            let mut state = Lines::default();
            let (mut got, mut too_long) = (Vec::new(), 0);
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                let cut = state.take(now, 8);
                got.extend(cut.message.iter().flat_map(|message| message.iter().copied()));
                too_long += cut.too_long as usize;
            }
            prop_assert_eq!(String::from_utf8(got).unwrap(), expected);
            prop_assert_eq!(too_long, lines.len() - lines.iter().filter(kept).count());
        }
    }
}
