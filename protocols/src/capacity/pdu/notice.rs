//! What a sender of ours adds to its stop PDU: whether the path was the limit of the test, or itself.
//!
//! A stop PDU is a load PDU of which a peer takes nothing but the stop, and the payload of load is
//! looked at by nobody (RFC 9946): so any peer may get this, nothing needs to be agreed, and what is
//! lost comes with the next repeat of the stop. It must never be needed: a peer of another make sends
//! none.

use super::{Load, Pdu, TestAction, put, u32_at, u64_at};

/// What follows the header of a stop PDU. The zeros or random bytes that another sender has there are
/// never taken for it.
const MARK: [u8; 8] = *b"rm-limit";
const MARK_AT: usize = Load::HEADER_LEN;

/// What a test was for its sender.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SenderNotice {
    /// Trials that it knows of.
    pub trials: u32,
    /// Trials in which it could not keep the rate of the row.
    pub limited_trials: u32,
    /// Datagrams that the rows wanted and that it gave up.
    pub missed: u64,
}

impl SenderNotice {
    /// Bytes of a stop PDU that carries it.
    pub const PDU_LEN: usize = MARK_AT + MARK.len() + 16;

    /// Reads it from a stop PDU; `None` for any other datagram. What cannot be is bounded: there are
    /// no more limited trials than trials.
    #[must_use]
    pub fn read(datagram: &[u8]) -> Option<Self> {
        let whole = datagram.len() == Self::PDU_LEN
            && Pdu::of(datagram) == Some(Pdu::Load)
            && datagram[2] != TestAction::Test.wire()
            && datagram[MARK_AT..].starts_with(&MARK);
        let at = MARK_AT + MARK.len();
        whole.then(|| {
            let trials = u32_at(datagram, at);
            Self {
                trials,
                limited_trials: u32_at(datagram, at + 4).min(trials),
                missed: u64_at(datagram, at + 8),
            }
        })
    }

    /// Writes it behind the header of a stop PDU.
    ///
    /// # Panics
    /// The datagram is shorter than [`Self::PDU_LEN`].
    pub fn write(&self, datagram: &mut [u8]) {
        let at = MARK_AT + MARK.len();
        put(datagram, MARK_AT, MARK);
        put(datagram, at, self.trials.to_be_bytes());
        put(datagram, at + 4, self.limited_trials.to_be_bytes());
        put(datagram, at + 8, self.missed.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTICE: SenderNotice = SenderNotice {
        trials: 200,
        limited_trials: 70,
        missed: 5_000_000_000,
    };

    fn stop() -> Vec<u8> {
        let mut bytes = vec![0; SenderNotice::PDU_LEN];
        let load = Load {
            test_action: TestAction::Stop,
            ..Load::default()
        };
        load.encode(&mut bytes);
        NOTICE.write(&mut bytes);
        bytes
    }

    #[test]
    fn it_is_read_from_a_stop_of_ours_alone() {
        type Change = fn(&mut Vec<u8>);
        let cases: [(&str, Change, Option<SenderNotice>); 7] = [
            ("as written", |_| {}, Some(NOTICE)),
            ("load", |bytes| bytes[2] = 0, None),
            ("a status PDU", |bytes| bytes[0] = 0xFE, None),
            ("zeros", |bytes| bytes[32..].fill(0), None),
            ("cut", |bytes| bytes.truncate(55), None),
            ("a datagram of the row", |bytes| bytes.resize(1222, 0), None),
            (
                "more than all",
                |bytes| bytes[44..48].fill(0xFF),
                Some(SenderNotice {
                    limited_trials: 200,
                    ..NOTICE
                }),
            ),
        ];
        for (name, change, read) in cases {
            let mut bytes = stop();
            change(&mut bytes);
            assert_eq!(SenderNotice::read(&bytes), read, "{name}");
        }
        assert_eq!(SenderNotice::read(&[]), None);
        // To any peer it is a load PDU that stops.
        let load = Load::decode(&stop(), SenderNotice::PDU_LEN).expect("valid");
        assert_eq!(load.test_action, TestAction::Stop);
    }
}
