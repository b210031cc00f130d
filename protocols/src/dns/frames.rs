//! DNS messages on a stream: two bytes of length before each (RFC 1035 §4.2.2), and messages that
//! come in pieces.
//!
//! Whole messages are read where they arrived; only one that is cut is copied, and kept until the
//! rest has come.

/// A message of a stream that has come in part; at most 65,537 bytes, by its length.
#[derive(Debug, Default)]
pub struct Frames {
    begun: Vec<u8>,
}

/// The length of the first message, if both its bytes are there.
#[inline]
fn length(bytes: &[u8]) -> Option<usize> {
    let prefix = bytes.first_chunk::<2>()?;
    Some(usize::from(u16::from_be_bytes(*prefix)))
}

impl Frames {
    /// Takes what arrived and hands out the whole messages in it, as long as `message` says so.
    pub fn read(&mut self, mut bytes: &[u8], mut message: impl FnMut(&[u8]) -> bool) {
        while !self.begun.is_empty() {
            let wanted = length(&self.begun).map_or(2, |len| 2 + len);
            if self.begun.len() == wanted {
                let whole = std::mem::take(&mut self.begun);
                if !message(&whole[2..]) {
                    return;
                }
                break;
            }
            let part = bytes.len().min(wanted - self.begun.len());
            if part == 0 {
                return;
            }
            self.begun.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
        }
        while let Some(len) = length(bytes) {
            let Some(whole) = bytes.get(2..2 + len) else {
                break;
            };
            bytes = &bytes[2 + len..];
            if !message(whole) {
                return;
            }
        }
        self.begun.extend_from_slice(bytes);
    }

    /// Bytes of the message that has come in part, when it is whole; 0 as long as nobody knows.
    #[must_use]
    pub fn wanted(&self) -> usize {
        length(&self.begun).unwrap_or(0)
    }

    /// Whether a message has come in part.
    #[must_use]
    pub fn is_within(&self) -> bool {
        !self.begun.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let frame = |message: &Vec<u8>| {
            let len = (message.len() as u16).to_be_bytes();
            [&len[..], message].concat()
        };
        messages.iter().flat_map(frame).collect()
    }

    #[test]
    fn a_reader_that_has_enough_gets_no_more() {
        let bytes = framed(&[vec![1], vec![2], vec![3]]);
        for cut in [0, 1, 2, 3] {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                frames.read(part, |message| {
                    seen.push(message.to_vec());
                    seen.len() < 2
                });
            }
            assert_eq!(seen, [[1], [2]], "cut at {cut}");
        }
    }

    #[test]
    fn the_length_of_what_has_begun_is_known_from_its_second_byte() {
        let mut frames = Frames::default();
        for (byte, wanted) in [(0x12, 0), (0x34, 0x1234), (7, 0x1234)] {
            frames.read(&[byte], |_| true);
            assert_eq!(frames.wanted(), wanted);
        }
    }

    proptest! {
        /// However a stream is cut, the messages are the same.
        #[test]
        fn cuts_do_not_matter(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            cuts in prop::collection::vec(0..60_usize, 0..40),
        ) {
            let bytes = framed(&messages);
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            let mut rest = &bytes[..];
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                rest = after;
                frames.read(part, |message| { seen.push(message.to_vec()); true });
            }
            frames.read(rest, |message| { seen.push(message.to_vec()); true });
            prop_assert_eq!(seen, messages);
            prop_assert!(!frames.is_within());
        }
    }
}
