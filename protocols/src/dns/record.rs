//! Every query and answer as a line of CSV, in the columns of tcpscaler's `-R`, without holding up
//! the load.
//!
//! A shard only drops a small record into its own bounded queue ([`Records`]). Whoever writes takes
//! them out elsewhere and makes lines of them. When the writer is behind, records are dropped and
//! counted; the load goes on.

use std::io::{self, Write};
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use ringmill_engine::Nanos;

/// The first line.
pub const HEADER: &str =
    "type,timestamp,connection_id,query_id,poisson_id,poisson_interval_us,rtt_us";

/// Records that wait for the writer on one shard (32 bytes each): a quarter of a second at half a
/// million queries a second.
const WAITING_MAX: usize = 1 << 18;

const NANOS_PER_S: u64 = 1_000_000_000;
const NANOS_PER_US: u64 = 1_000;

/// A query or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When it was sent or read, monotonic.
    pub at: Nanos,
    /// Number of its connection over all shards, from 0.
    pub connection: u32,
    /// Its id.
    pub id: u16,
    /// Which of the two.
    pub kind: RecordKind,
}

/// What a [`Record`] is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A query, from the process of arrivals of this shard.
    Query {
        /// The shard.
        process: u16,
    },
    /// An answer, so long after its query was sent; none when it belongs to no query in flight.
    Answer {
        /// Round-trip time.
        rtt: Option<Nanos>,
    },
}

impl Record {
    /// Writes it as a line. `wall_clock_offset` is what the wall clock shows (ns since 1970) at
    /// monotonic time 0.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_line(&self, wall_clock_offset: i128, out: &mut impl Write) -> io::Result<()> {
        let wall = (i128::from(self.at) + wall_clock_offset).max(0) as u64;
        let (seconds, nanos) = (wall / NANOS_PER_S, wall % NANOS_PER_S);
        let (connection, id) = (self.connection, self.id);
        match self.kind {
            RecordKind::Query { process } => {
                writeln!(out, "Q,{seconds}.{nanos:09},{connection},{id},{process},,")
            }
            RecordKind::Answer { rtt: Some(rtt) } => {
                let rtt_us = rtt / NANOS_PER_US;
                writeln!(out, "A,{seconds}.{nanos:09},{connection},{id},,,{rtt_us}")
            }
            RecordKind::Answer { rtt: None } => {
                writeln!(out, "A,{seconds}.{nanos:09},{connection},{id},,,")
            }
        }
    }
}

/// The records of one shard that wait for the writer.
#[derive(Debug, Clone)]
pub struct Records(Arc<ArrayQueue<Record>>);

impl Records {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(ArrayQueue::new(WAITING_MAX)))
    }

    /// Leaves a record; `false` when the queue is full.
    #[inline]
    pub(super) fn push(&self, record: Record) -> bool {
        self.0.push(record).is_ok()
    }

    /// Takes the oldest record.
    #[must_use]
    pub fn pop(&self) -> Option<Record> {
        self.0.pop()
    }
}

impl Default for Records {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two lines recorded from tcpscaler's `tcpclient -R`, and one that it cannot tell: an answer to
    /// no query in flight.
    #[test]
    fn lines_are_those_of_tcpscaler() {
        let offset = 1_795_270_000_i128 * 1_000_000_000;
        for (record, line) in [
            (
                Record {
                    at: 790_842_402_830,
                    connection: 1,
                    id: 0,
                    kind: RecordKind::Query { process: 654 },
                },
                "Q,1795270790.842402830,1,0,654,,",
            ),
            (
                Record {
                    at: 790_842_967_884,
                    connection: 1,
                    id: 0,
                    kind: RecordKind::Answer { rtt: Some(563_999) },
                },
                "A,1795270790.842967884,1,0,,,563",
            ),
            (
                Record {
                    at: 5,
                    connection: 0,
                    id: 65_535,
                    kind: RecordKind::Answer { rtt: None },
                },
                "A,1795270000.000000005,0,65535,,,",
            ),
        ] {
            let mut out = Vec::new();
            record.write_line(offset, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), format!("{line}\n"));
            assert_eq!(line.matches(',').count(), HEADER.matches(',').count());
        }
    }

    #[test]
    fn a_full_queue_says_so_and_keeps_what_it_has() {
        let records = Records::new();
        let record = |id| Record {
            at: 0,
            connection: 0,
            id,
            kind: RecordKind::Query { process: 0 },
        };
        for _ in 0..WAITING_MAX {
            assert!(records.push(record(1)));
        }
        assert!(!records.push(record(2)));
        assert_eq!(records.pop(), Some(record(1)));
        assert!(records.push(record(3)));
    }
}
