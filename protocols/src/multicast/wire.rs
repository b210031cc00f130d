//! What a multicast message looks like: a header of 32 bytes, then filler up to the message's size.
//!
//! | bytes | field (integers are big-endian) |
//! |---|---|
//! | 0–3 | magic `RMm1`: the layout of this table |
//! | 4–7 | length of the whole message, bytes: streams are cut by it, a datagram holds one message |
//! | 8–15 | sequence number: consecutive within one source, also past messages that were dropped |
//! | 16–23 | when the sender meant to send it: CLOCK_MONOTONIC of its host, ns |
//! | 24–27 | clock: the same number means the same clock; 0 means that nobody shares it |
//! | 28–31 | source: chosen at random for each sending shard (UDP: group) at each start |
//! | 32–… | filler: zeros; never looked at |
//!
//! Nothing here allocates or trusts a length that it has not checked.

use ringmill_engine::Nanos;

/// Bytes of the header, and so the smallest message.
pub const HEADER_LEN: usize = 32;
/// The largest message on a stream: what one may make a receiver wait for.
pub const MESSAGE_LEN_MAX: usize = 1 << 20;
/// The largest message in a datagram (UDP over IPv4).
pub const DATAGRAM_LEN_MAX: usize = 65_507;

const MAGIC: [u8; 4] = *b"RMm1";

/// The header of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the message, header included.
    pub len: u32,
    /// Its number.
    pub sequence: u64,
    /// When it was meant to be sent, by the clock `clock`.
    pub intended: Nanos,
    /// Names the clock; 0 is one that nobody shares.
    pub clock: u32,
    /// Who numbers: numbers of different sources have nothing to do with each other.
    pub source: u32,
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Something else talks here.
    #[error("not a multicast message of ringmill")]
    Magic,
    /// A length that no message has.
    #[error("a multicast message of impossible length")]
    Length,
}

impl Header {
    /// Writes the header into the front of a message.
    #[inline]
    pub fn write(&self, message: &mut [u8; HEADER_LEN]) {
        message[..4].copy_from_slice(&MAGIC);
        message[4..8].copy_from_slice(&self.len.to_be_bytes());
        message[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        message[16..24].copy_from_slice(&self.intended.to_be_bytes());
        message[24..28].copy_from_slice(&self.clock.to_be_bytes());
        message[28..32].copy_from_slice(&self.source.to_be_bytes());
    }

    /// Reads the header at the front of a message.
    ///
    /// # Errors
    /// When it cannot be one.
    #[inline]
    pub fn read(message: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let word = |at: usize| {
            u32::from_be_bytes([
                message[at],
                message[at + 1],
                message[at + 2],
                message[at + 3],
            ])
        };
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        if message[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        let header = Self {
            len: word(4),
            sequence: long(8),
            intended: long(16),
            clock: word(24),
            source: word(28),
        };
        if !(HEADER_LEN..=MESSAGE_LEN_MAX).contains(&(header.len as usize)) {
            return Err(WireError::Length);
        }
        Ok(header)
    }
}

/// Cuts a stream into messages, whatever pieces it arrives in. Keeps a part of a header at most.
#[derive(Debug, Default)]
pub struct Cutter {
    head: [u8; HEADER_LEN],
    head_len: usize,
    /// Filler of the message before that is still to come.
    filler: usize,
    header: Option<Header>,
}

impl Cutter {
    /// Takes the next piece and calls `message` for each message that is now complete.
    ///
    /// # Errors
    /// When the stream holds no messages. What comes after that makes no sense either.
    #[inline]
    pub fn push(
        &mut self,
        mut data: &[u8],
        mut message: impl FnMut(&Header),
    ) -> Result<(), WireError> {
        loop {
            if let Some(header) = self.header {
                let take = self.filler.min(data.len());
                self.filler -= take;
                data = &data[take..];
                if self.filler > 0 {
                    return Ok(());
                }
                self.header = None;
                message(&header);
            }
            let header = if self.head_len == 0 {
                match data.split_first_chunk() {
                    Some((head, rest)) => {
                        data = rest;
                        Header::read(head)?
                    }
                    None => {
                        self.head[..data.len()].copy_from_slice(data);
                        self.head_len = data.len();
                        return Ok(());
                    }
                }
            } else {
                let take = (HEADER_LEN - self.head_len).min(data.len());
                self.head[self.head_len..self.head_len + take].copy_from_slice(&data[..take]);
                self.head_len += take;
                data = &data[take..];
                if self.head_len < HEADER_LEN {
                    return Ok(());
                }
                self.head_len = 0;
                Header::read(&self.head)?
            };
            self.filler = header.len as usize - HEADER_LEN;
            self.header = Some(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(len: usize, sequence: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let header = Header {
            len: len as u32,
            sequence,
            intended: sequence * 1_000,
            clock: 7,
            source: 0xdead_beef,
        };
        header.write(bytes.first_chunk_mut().unwrap());
        bytes
    }

    #[test]
    fn the_layout_is_that_of_the_table() {
        let header = Header {
            len: 34,
            sequence: 0x0102_0304_0506_0708,
            intended: 0x1112_1314_1516_1718,
            clock: 0x2122_2324,
            source: 0x3132_3334,
        };
        let mut bytes = [0; HEADER_LEN];
        header.write(&mut bytes);
        let expected = b"RMm1\x00\x00\x00\x22\x01\x02\x03\x04\x05\x06\x07\x08\
            \x11\x12\x13\x14\x15\x16\x17\x18\x21\x22\x23\x24\x31\x32\x33\x34";
        assert_eq!(&bytes, expected);
        assert_eq!(Header::read(&bytes), Ok(header));
    }

    #[test]
    fn what_is_no_message_is_told() {
        let good = message(32, 1);
        for (at, byte, error) in [
            (0, b'X', WireError::Magic),
            (3, b'2', WireError::Magic),
            (7, 31, WireError::Length),
            (4, 1, WireError::Length),
        ] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Cutter::default().push(&bad, |_| ()), Err(error), "{at}");
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_messages(
            lens in prop::collection::vec(HEADER_LEN..200, 1..20),
            pieces in prop::collection::vec(1_usize..100, 1..50),
        ) {
            let mut stream = Vec::new();
            for (number, len) in lens.iter().enumerate() {
                stream.extend(message(*len, number as u64));
            }
            let mut cutter = Cutter::default();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            for piece in pieces.iter().cycle() {
                let (now, later) = rest.split_at((*piece).min(rest.len()));
                cutter.push(now, |header| got.push((header.len as usize, header.sequence))).unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let expected: Vec<_> = lens.iter().copied().zip(0..).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
