//! All that a soak keeps of one connection: 64 bits, which the engine stores with the stream.
//!
//! While it connects, that is when it began. While it is open: its place in the list of live
//! connections and two positions in the pattern, of the next byte to send and the next to arrive.
//! Their distance is what is on its way, so no counter is needed beside them.

use ringmill_engine::Nanos;

use crate::load::pattern::PERIOD;

/// Two bits at the top tell what the others are.
const KIND_SHIFT: u32 = 62;
const OPEN: u64 = 1;
const CLOSING: u64 = 2;
/// Places in the list of live connections have 30 bits.
const PLACE_SHIFT: u32 = 32;
const SENT_SHIFT: u32 = 16;
const POSITION_MASK: u64 = 0xffff;

/// Live connections that one shard can tell apart.
pub(super) const PLACES_MAX: usize = 1 << 30;
// Positions have 16 bits.
const _: () = assert!(PERIOD <= 1 << 16);

/// Why this end closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cause {
    /// Churn.
    Churn,
    /// The soak is over.
    Over,
    /// The server has closed its side.
    Peer,
    /// Other bytes came back than were sent.
    Wrong,
    /// A message had no answer in time.
    Unanswered,
    /// The connect had no answer in time.
    ConnectTimeout,
    /// It was connecting when the soak was over.
    Cancelled,
}

const CAUSES: [Cause; 7] = [
    Cause::Churn,
    Cause::Over,
    Cause::Peer,
    Cause::Wrong,
    Cause::Unanswered,
    Cause::ConnectTimeout,
    Cause::Cancelled,
];

/// An open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Open {
    /// Its place in the list of live connections.
    pub(super) place: u32,
    /// Where in the pattern the next byte to send is.
    pub(super) sent: u16,
    /// Where the next byte to arrive is.
    pub(super) received: u16,
}

impl Open {
    /// One that has just been opened, whose stream of bytes begins at this position.
    pub(super) fn new(place: usize, base: u64) -> Self {
        let position = (base % PERIOD as u64) as u16;
        Self {
            place: place as u32,
            sent: position,
            received: position,
        }
    }

    /// Bytes sent that have not come back.
    pub(super) fn on_the_way(self) -> usize {
        (usize::from(self.sent) + PERIOD - usize::from(self.received)) % PERIOD
    }

    /// So many bytes were sent.
    pub(super) fn advance_sent(&mut self, bytes: usize) {
        self.sent = ((usize::from(self.sent) + bytes) % PERIOD) as u16;
    }

    /// So many bytes have come back.
    pub(super) fn advance_received(&mut self, bytes: usize) {
        self.received = ((usize::from(self.received) + bytes) % PERIOD) as u16;
    }
}

/// What the word of a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It connects since then.
    Connecting(Nanos),
    /// It is open.
    Open(Open),
    /// This end closes it.
    Closing(Cause),
}

impl Word {
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Connecting(since) => since & ((1 << KIND_SHIFT) - 1),
            Self::Open(open) => {
                OPEN << KIND_SHIFT
                    | u64::from(open.place) << PLACE_SHIFT
                    | u64::from(open.sent) << SENT_SHIFT
                    | u64::from(open.received)
            }
            Self::Closing(cause) => CLOSING << KIND_SHIFT | cause as u64,
        }
    }

    pub(super) fn unpack(word: u64) -> Self {
        match word >> KIND_SHIFT {
            OPEN => Self::Open(Open {
                place: (word >> PLACE_SHIFT) as u32 & (PLACES_MAX as u32 - 1),
                sent: (word >> SENT_SHIFT & POSITION_MASK) as u16,
                received: (word & POSITION_MASK) as u16,
            }),
            CLOSING => Self::Closing(CAUSES[(word & POSITION_MASK) as usize % CAUSES.len()]),
            _ => Self::Connecting(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_was_packed() {
        let mut words = vec![
            Word::Connecting(0),
            Word::Connecting(1 << 61),
            Word::Open(Open::new(0, 0)),
            Word::Open(Open {
                place: PLACES_MAX as u32 - 1,
                sent: PERIOD as u16 - 1,
                received: 0,
            }),
        ];
        words.extend(CAUSES.map(Word::Closing));
        for word in words {
            assert_eq!(Word::unpack(word.pack()), word);
        }
    }

    #[test]
    fn what_is_on_its_way_is_known_across_the_end_of_the_pattern() {
        let mut open = Open::new(7, PERIOD as u64 - 3);
        assert_eq!(open.on_the_way(), 0);
        open.advance_sent(10);
        assert_eq!(open.on_the_way(), 10);
        open.advance_received(4);
        assert_eq!((open.on_the_way(), open.received), (6, 1));
        open.advance_received(6);
        assert_eq!(open.on_the_way(), 0);
    }
}
