//! A coalesced receive buffer of load PDUs, in one call.
//!
//! Its datagrams mostly differ in their sequence number only: a run of such costs a comparison each,
//! and its counts are added once. The outcome says what the connection must know; what the datagrams
//! measured goes to the [`Receiver`]. No allocation, and no clock is read: the datagrams of a buffer
//! arrived at one time.

use super::pdu::{DecodeError, Load, TestAction};
use super::receiver::{Receiver, counted_bytes};
use super::time::{Instants, WallTime};

/// Datagrams that were no load PDUs, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Refused {
    /// Of a size that cannot be.
    pub size: u32,
    /// Of another kind, or a field has a value that it cannot have.
    pub format: u32,
    /// The checksum is used and wrong.
    pub checksum: u32,
}

impl Refused {
    /// Counts one.
    pub fn count(&mut self, error: DecodeError) {
        *match error {
            DecodeError::Size { .. } => &mut self.size,
            DecodeError::Format { .. } => &mut self.format,
            DecodeError::Checksum { .. } => &mut self.checksum,
        } += 1;
    }

    /// All of them.
    #[must_use]
    pub const fn sum(self) -> u32 {
        self.size + self.format + self.checksum
    }
}

/// What a batch of datagrams was, for the connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// Valid load PDUs, those of a stop included.
    pub valid: u32,
    /// Among them those of a peer that stops: nothing else was taken from them.
    pub stops: u32,
    /// Whether the last valid one said that the peer hears nothing.
    pub peer_rx_stopped: bool,
    /// Status PDUs that the peer says it lost, or [`Load::STATUS_LATE`]; 0 for none.
    pub status_errors: u16,
    /// What was no load PDU.
    pub refused: Refused,
}

impl Batch {
    /// Adds what one more load PDU says. A number tells more than that one was late.
    #[inline]
    fn add_status_errors(&mut self, errors: u16) {
        const LATE: u16 = Load::STATUS_LATE;
        self.status_errors = match (self.status_errors, errors) {
            (sum, 0) => sum,
            (0 | LATE, errors) => errors,
            (sum, LATE) => sum,
            (sum, errors) => sum.saturating_add(errors).min(LATE - 1),
        };
    }
}

/// One load PDU for a record of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadRecord {
    /// The header.
    pub load: Load,
    /// ECN bits of its packet.
    pub ecn: u8,
    /// When it arrived.
    pub received: WallTime,
    /// Arrival less sending time in ms, by two clocks.
    pub one_way_ms: i64,
    /// The round-trip time in ms, where this PDU gave a sample.
    pub rtt_ms: Option<u32>,
    /// It was late or came again.
    pub out_of_order: bool,
}

/// The last datagram that was taken apart: what follows it and differs only in the number is not.
#[derive(Clone, Copy)]
struct Pattern {
    header: [u8; Load::HEADER_LEN],
    counted_bytes: u16,
    one_way_ms: i64,
}

impl Pattern {
    /// Whether a header differs from this one only in its sequence number.
    #[inline]
    fn fits(&self, header: &[u8; Load::HEADER_LEN]) -> bool {
        header[..4] == self.header[..4] && header[8..] == self.header[8..]
    }
}

impl Receiver {
    /// Takes a receive buffer: datagrams of `stride` bytes end to end, the last one may be shorter.
    #[inline]
    pub fn batch(&mut self, buffer: &[u8], stride: u16, ecn: u8, at: Instants) -> Batch {
        self.take::<false>(buffer, stride, ecn, at, &mut |_| {})
    }

    /// The same, and every load PDU of a test is shown to `record`. Slower: each is taken apart.
    pub fn batch_recorded(
        &mut self,
        buffer: &[u8],
        stride: u16,
        ecn: u8,
        at: Instants,
        record: &mut impl FnMut(&LoadRecord),
    ) -> Batch {
        self.take::<true>(buffer, stride, ecn, at, record)
    }

    fn take<const RECORD: bool>(
        &mut self,
        buffer: &[u8],
        stride: u16,
        ecn: u8,
        at: Instants,
        record: &mut impl FnMut(&LoadRecord),
    ) -> Batch {
        let mut batch = Batch::default();
        if buffer.is_empty() {
            batch.refused.size = 1;
            return batch;
        }
        let mut pattern: Option<Pattern> = None;
        let mut run = 0_u32;
        let stride = usize::from(stride).max(1);
        for datagram in buffer.chunks(stride) {
            if let (Some(pattern), Some(header)) = (&pattern, datagram.first_chunk())
                && datagram.len() == stride
                && pattern.fits(header)
                && self.last_sequence().checked_add(run + 1) == Some(sequence_of(header))
            {
                run += 1;
                continue;
            }
            batch.valid += self.flush(pattern.take(), run, ecn);
            run = 0;
            let load = match Load::decode(datagram, datagram.len()) {
                Ok(load) => load,
                Err(error) => {
                    batch.refused.count(error);
                    continue;
                }
            };
            batch.valid += 1;
            batch.peer_rx_stopped = load.rx_stopped;
            if load.test_action != TestAction::Test {
                batch.stops += 1;
                continue;
            }
            let sample = self.load(&load, ecn, datagram.len(), at);
            batch.add_status_errors(sample.status_errors);
            if RECORD {
                record(&LoadRecord {
                    load,
                    ecn,
                    received: at.wall,
                    one_way_ms: at.wall.ms_since(load.lpdu_time),
                    rtt_ms: sample.rtt_ms,
                    out_of_order: sample.one_way_ms.is_none(),
                });
            } else if load.check_sum == 0
                && datagram.len() == stride
                && let (Some(one_way_ms), Some(header)) =
                    (sample.one_way_ms, datagram.first_chunk())
            {
                pattern = Some(Pattern {
                    header: *header,
                    counted_bytes: counted_bytes(&load, datagram.len()),
                    one_way_ms,
                });
            }
        }
        batch.valid += self.flush(pattern, run, ecn);
        batch
    }

    #[inline]
    fn flush(&mut self, pattern: Option<Pattern>, run: u32, ecn: u8) -> u32 {
        if let Some(pattern) = pattern
            && run > 0
        {
            self.add_run(run, pattern.counted_bytes, pattern.one_way_ms, ecn);
        }
        run
    }
}

#[inline]
fn sequence_of(header: &[u8; Load::HEADER_LEN]) -> u32 {
    u32::from_be_bytes([header[4], header[5], header[6], header[7]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capacity::receiver::ReceiverSettings;

    fn receiver() -> Receiver {
        let settings = ReceiverSettings {
            trial_interval_ms: 50,
            sub_interval_ms: 1000,
            ecn_expected: true,
        };
        Receiver::new(settings, 0)
    }

    fn at(now: u64) -> Instants {
        Instants {
            now,
            wall: WallTime::from_unix_nanos(1_800_000_000_000_000_000 + now),
        }
    }

    /// One datagram: where its number jumps to, what is odd about it.
    fn datagram() -> impl Strategy<Value = (i64, u8)> {
        (
            prop_oneof![12 => Just(1), 1 => -3_i64..5, 1 => any::<u32>().prop_map(i64::from)],
            prop_oneof![12 => Just(0), 1 => 1_u8..12],
        )
    }

    proptest! {
        /// A run that is counted at once comes to the same as each datagram taken apart.
        #[test]
        fn a_batch_is_as_good_as_one_by_one(
            buffers in prop::collection::vec(
                (prop::collection::vec(datagram(), 1..50), 0_u8..4, 32_u16..60, 0_usize..40),
                1..8,
            ),
        ) {
            let (mut fast, mut slow) = (receiver(), receiver());
            let (mut number, mut now) = (0_u32, 0);
            for (datagrams, ecn, stride, cut) in buffers {
                now += 7_300_000;
                let mut buffer = Vec::new();
                for (jump, odd) in datagrams {
                    number = (i64::from(number) + jump).clamp(0, u32::MAX.into()) as u32;
                    let load = Load {
                        test_action: if odd == 1 { TestAction::Stop } else { TestAction::Test },
                        rx_stopped: odd == 2,
                        lpdu_seq_no: number,
                        udp_payload: if odd == 3 { 1 } else { stride },
                        spdu_seq_err: u16::from(odd == 4),
                        spdu_time: at(u64::from(odd == 5) * 1_000_000).wall,
                        lpdu_time: at(now - u64::from(odd == 6) * 3_000_000).wall,
                        rtt_resp_delay: u16::from(odd == 7),
                        check_sum: 0,
                    };
                    let mut bytes = vec![0; usize::from(stride)];
                    load.encode(&mut bytes);
                    match odd {
                        8 => Load::fill_check_sum(&mut bytes),
                        9 => bytes[31] = 1,
                        10 => bytes[0] = 0,
                        _ => {}
                    }
                    buffer.extend(bytes);
                }
                buffer.truncate(buffer.len().saturating_sub(cut).max(1));
                let one = fast.batch(&buffer, stride, ecn, at(now));
                let mut seen = 0;
                let two = slow.batch_recorded(&buffer, stride, ecn, at(now), &mut |_| seen += 1);
                prop_assert_eq!(one, two);
                prop_assert_eq!(seen, one.valid - one.stops);
                prop_assert_eq!(fast.totals(), slow.totals());
                prop_assert_eq!(fast.total_errors(), slow.total_errors());
                prop_assert_eq!(fast.trial(), slow.trial());
                prop_assert_eq!(fast.status(now), slow.status(now));
                prop_assert_eq!(fast.status_sent(now), slow.status_sent(now));
            }
        }

        #[test]
        fn any_bytes_are_no_panic(buffer in prop::collection::vec(any::<u8>(), 0..300), stride: u16) {
            let mut receiver = receiver();
            let batch = receiver.batch(&buffer, stride, 0, at(1));
            let count = buffer.len().div_ceil(usize::from(stride).max(1)).max(1);
            prop_assert_eq!(batch.valid as usize + batch.refused.sum() as usize, count);
        }
    }

    #[test]
    fn what_a_buffer_says_of_lost_status_pdus_is_added_up() {
        const LATE: u16 = Load::STATUS_LATE;
        for (said, want) in [
            (&[0, 0][..], 0),
            (&[3, 0], 3),
            (&[1, 2], 3),
            (&[LATE], LATE),
            (&[LATE, 2], 2),
            (&[2, LATE, 0], 2),
            (&[LATE - 1, 2], LATE - 1),
        ] {
            let mut buffer = Vec::new();
            for (number, lost) in (1..).zip(said) {
                let mut bytes = [0; 40];
                let load = Load {
                    lpdu_seq_no: number,
                    spdu_seq_err: *lost,
                    spdu_time: at(u64::from(number) * 1_000_000).wall,
                    ..Load::default()
                };
                load.encode(&mut bytes);
                buffer.extend(bytes);
            }
            let batch = receiver().batch(&buffer, 40, 1, at(50_000_000));
            assert_eq!(batch.status_errors, want, "{said:?}");
        }
    }

    #[test]
    fn a_run_ends_with_the_last_number_there_is() {
        let mut buffer = Vec::new();
        for number in [u32::MAX - 1, u32::MAX, 0, 1] {
            let mut bytes = [0; 40];
            let load = Load {
                lpdu_seq_no: number,
                udp_payload: 40,
                ..Load::default()
            };
            load.encode(&mut bytes);
            buffer.extend(bytes);
        }
        let (mut fast, mut slow) = (receiver(), receiver());
        fast.batch(&buffer, 40, 1, at(0));
        slow.batch_recorded(&buffer, 40, 1, at(0), &mut |_| {});
        assert_eq!(fast.total_errors(), slow.total_errors());
        assert_eq!(fast.trial(), slow.trial());
    }

    #[test]
    fn more_than_came_is_not_counted() {
        let mut receiver = receiver();
        let mut bytes = [0; 100];
        let load = Load {
            lpdu_seq_no: 1,
            udp_payload: 65_535,
            ..Load::default()
        };
        load.encode(&mut bytes);
        receiver.batch(&bytes, 100, 1, at(0));
        assert_eq!(receiver.totals(), (1, 100));
    }
}
