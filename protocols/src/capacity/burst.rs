//! One burst of load PDUs, described so that its datagrams need no copy: equal segments of a send
//! buffer in which only the 32-byte headers are written, and the add-on as a last one.
//!
//! It owns no payload and sends nothing. Whoever sends fills headers in place, part by part as they
//! fit into one segmented send (GSO), and says how many datagrams were accepted.

use super::pdu::Load;

/// Datagrams that leave together: [`datagrams`](Self::datagrams) of equal size, then the add-on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// Sequence number of the first; the others follow.
    pub first_seq: u32,
    /// How many are of equal size.
    pub datagrams: u32,
    /// UDP payload of each of these in bytes, header included.
    pub payload_bytes: u16,
    /// UDP payload in bytes of one more datagram after them, 0 for none.
    pub addon_bytes: u16,
    header: [u8; Load::HEADER_LEN],
    check_sum: bool,
}

impl Burst {
    /// A burst whose datagrams have the header `load`, but for number, length and checksum.
    /// `check_sum` has the checksum of each header filled.
    #[must_use]
    pub fn new(
        load: &Load,
        datagrams: u32,
        payload_bytes: u16,
        addon_bytes: u16,
        check_sum: bool,
    ) -> Self {
        let mut header = [0; Load::HEADER_LEN];
        let load = Load {
            udp_payload: payload_bytes,
            check_sum: 0,
            ..*load
        };
        load.encode(&mut header);
        Self {
            first_seq: load.lpdu_seq_no,
            datagrams,
            payload_bytes,
            addon_bytes,
            header,
            check_sum,
        }
    }

    /// All datagrams, the add-on included.
    #[inline]
    #[must_use]
    pub fn count(&self) -> u32 {
        self.datagrams + u32::from(self.addon_bytes > 0)
    }

    /// How many datagrams from `from` on go into one segmented send of at most `bytes_max` bytes and
    /// `segments_max` segments: all but the last of equal size, the last not longer. At least one
    /// if there is one left.
    #[must_use]
    pub fn segments(&self, from: u32, bytes_max: usize, segments_max: u32) -> u32 {
        let left = self.count().saturating_sub(from);
        let equal = self.datagrams.saturating_sub(from);
        if left == 0 {
            return 0;
        }
        let payload = usize::from(self.payload_bytes).max(1);
        let fit = u32::try_from(bytes_max / payload)
            .unwrap_or(u32::MAX)
            .min(segments_max)
            .max(1);
        if equal == 0 || fit < equal {
            return fit.min(left);
        }
        let addon = usize::from(self.addon_bytes);
        let joins = left > equal
            && equal < segments_max
            && addon <= payload
            && equal as usize * payload + addon <= bytes_max;
        equal + u32::from(joins)
    }

    /// Size of the datagrams from `from` on in bytes: what a segmented send is cut at.
    #[inline]
    #[must_use]
    pub fn stride(&self, from: u32) -> u16 {
        if from < self.datagrams {
            self.payload_bytes
        } else {
            self.addon_bytes
        }
    }

    /// Writes the headers of `count` datagrams from `from` on, end to end at the front of `buffer`,
    /// and returns how many bytes these datagrams take. The payload stays as it is.
    ///
    /// # Panics
    /// The buffer is shorter than that.
    #[inline]
    pub fn fill(&self, buffer: &mut [u8], from: u32, count: u32) -> usize {
        let mut at = 0;
        for index in from..from + count {
            let len = usize::from(self.stride(index));
            let datagram = &mut buffer[at..at + len];
            let header = &mut datagram[..Load::HEADER_LEN];
            header.copy_from_slice(&self.header);
            let number = self.first_seq.wrapping_add(index);
            header[4..8].copy_from_slice(&number.to_be_bytes());
            if index >= self.datagrams {
                header[8..10].copy_from_slice(&self.addon_bytes.to_be_bytes());
            }
            if self.check_sum {
                Load::fill_check_sum(header);
            }
            at += len;
        }
        at
    }
}

/// Zeroes headers written into a buffer at a stride, before it is used with another: the rest of a
/// load PDU is to be zeros.
pub fn erase_headers(buffer: &mut [u8], stride: u16) {
    for datagram in buffer.chunks_mut(usize::from(stride).max(1)) {
        let len = datagram.len().min(Load::HEADER_LEN);
        datagram[..len].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::time::WallTime;

    fn load() -> Load {
        Load {
            lpdu_seq_no: 1_000,
            spdu_time: WallTime { sec: 7, nsec: 8 },
            lpdu_time: WallTime { sec: 9, nsec: 10 },
            rtt_resp_delay: 11,
            ..Load::default()
        }
    }

    #[test]
    fn headers_are_those_of_single_pdus() {
        for check_sum in [false, true] {
            let burst = Burst::new(&load(), 3, 100, 60, check_sum);
            let mut buffer = vec![0xAA; 400];
            assert_eq!(burst.fill(&mut buffer, 0, 4), 360);
            for (index, (start, len)) in [(0, 100), (100, 100), (200, 100), (300, 60)]
                .into_iter()
                .enumerate()
            {
                let datagram = &buffer[start..start + len];
                let read = Load::decode(datagram, len).expect("a load PDU");
                let want = Load {
                    lpdu_seq_no: 1_000 + index as u32,
                    udp_payload: len as u16,
                    check_sum: read.check_sum,
                    ..load()
                };
                assert_eq!(read, want);
                assert_eq!(read.check_sum != 0, check_sum);
                assert!(datagram[32..].iter().all(|byte| *byte == 0xAA));
            }
            // In parts, it is the same.
            let mut parts = vec![0xAA; 400];
            let len = burst.fill(&mut parts, 0, 2);
            assert_eq!(burst.fill(&mut parts[len..], 2, 2) + len, 360);
            assert_eq!(parts, buffer);
        }
    }

    #[test]
    fn erased_headers_leave_zeros() {
        let burst = Burst::new(&load(), 3, 100, 60, false);
        let mut buffer = vec![0; 400];
        let len = burst.fill(&mut buffer, 0, 4);
        erase_headers(&mut buffer[..len], 100);
        assert!(buffer.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn bursts_are_cut_into_segmented_sends() {
        for (name, (datagrams, payload, addon), (from, bytes, segments), want) in [
            ("all", (10, 100, 0), (0, 65_507, 64), 10),
            ("the rest", (10, 100, 0), (4, 65_507, 64), 6),
            ("nothing left", (10, 100, 0), (10, 65_507, 64), 0),
            ("the bytes bound it", (10, 100, 0), (0, 450, 64), 4),
            ("the segments bound it", (10, 100, 0), (0, 65_507, 4), 4),
            ("a shorter add-on joins", (10, 100, 60), (0, 65_507, 64), 11),
            ("an equal one too", (10, 100, 100), (0, 65_507, 64), 11),
            ("a longer one does not", (10, 100, 160), (0, 65_507, 64), 10),
            ("no room for it", (10, 100, 60), (0, 1_059, 64), 10),
            ("no segment for it", (10, 100, 60), (0, 65_507, 10), 10),
            ("the add-on alone", (10, 100, 160), (10, 65_507, 64), 1),
            ("nothing but an add-on", (0, 0, 160), (0, 65_507, 64), 1),
            (
                "one that is too long still goes",
                (1, 9_000, 0),
                (0, 1_000, 64),
                1,
            ),
        ] {
            let burst = Burst::new(&load(), datagrams, payload, addon, false);
            assert_eq!(burst.segments(from, bytes, segments), want, "{name}");
        }
    }
}
