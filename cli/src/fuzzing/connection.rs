//! Body for a running connection of the capacity test: whatever a peer sends and however late the
//! timers are, it keeps its bounds and it ends.
//!
//! The first bytes of the data choose the connection, the others are steps: time that passes, load
//! and status PDUs with fields of the data, and datagrams of any bytes.

use std::sync::Arc;

use ringmill_protocols::capacity::WARNINGS_PER_CONNECTION_MAX;
use ringmill_protocols::capacity::burst::Burst;
use ringmill_protocols::capacity::connection::{
    CONFIRMATIONS_MAX, Connection, ConnectionSettings, Role,
};
use ringmill_protocols::capacity::event::{Event, Sink};
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::pdu::{
    Load, RateStructure, Status, StatusChecksum, SubIntervalStats, TestAction, Version,
};
use ringmill_protocols::capacity::rates::{PAYLOAD_BYTES_MAX, ROW_LAST, RateTable, Variant};
use ringmill_protocols::capacity::sender::SenderSettings;
use ringmill_protocols::capacity::time::{Instants, WallTime};

const MS: u64 = 1_000_000;
const TEST_S: u16 = 5;
/// Steps that are taken of the data.
const STEPS_MAX: usize = 300;
/// Calls of the timer until nothing is due at a time: stop, status, load and what follows of them.
const TIMER_CALLS_MAX: usize = 8;
const START: Instants = Instants {
    now: 50_000 * MS,
    wall: WallTime {
        sec: 1_800_000_000,
        nsec: 0,
    },
};

/// The data, eaten from the front; zeros behind its end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn action(&mut self) -> TestAction {
        match self.byte() {
            255 => TestAction::Stop,
            254 => TestAction::StopPending,
            _ => TestAction::Test,
        }
    }

    fn wall(&mut self) -> WallTime {
        WallTime {
            sec: START.wall.sec.wrapping_add(self.u16().into()),
            nsec: self.u32(),
        }
    }
}

/// Holds a connection to what its documentation says.
#[derive(Default)]
struct Watch {
    ended: bool,
    warnings: u32,
    sub_interval: u32,
    pdus_after_end: u32,
    takes: u32,
}

impl Sink for Watch {
    fn burst(&mut self, burst: &Burst) -> u32 {
        assert!(!self.ended, "load after the end");
        assert!(burst.count() > 0);
        for index in [0, burst.count() - 1] {
            let bytes = u32::from(burst.stride(index));
            assert!((Load::HEADER_LEN as u32..=PAYLOAD_BYTES_MAX).contains(&bytes));
        }
        burst.count().min(self.takes)
    }

    fn pdu(&mut self, _bytes: &[u8]) {
        self.pdus_after_end += u32::from(self.ended);
        assert!(self.pdus_after_end <= CONFIRMATIONS_MAX);
    }

    fn event(&mut self, event: Event) {
        assert!(!self.ended, "nothing follows the end: {event:?}");
        match event {
            Event::Warning(warning) => {
                assert!(!warning.to_string().is_empty());
                self.warnings += 1;
                assert!(self.warnings <= WARNINGS_PER_CONNECTION_MAX);
            }
            Event::SubInterval(part) => {
                assert!(part.number > self.sub_interval, "in rising order");
                assert!(part.number <= u32::from(TEST_S));
                self.sub_interval = part.number;
            }
            Event::Ended(_) => self.ended = true,
            Event::Trial(_) => {}
        }
    }
}

fn rate(bytes: &mut Bytes<'_>) -> RateStructure {
    RateStructure {
        tx_interval1: bytes.u32(),
        udp_payload1: bytes.u32(),
        burst_size1: bytes.u32(),
        tx_interval2: bytes.u32(),
        udp_payload2: bytes.u32(),
        burst_size2: bytes.u32(),
        udp_addon2: bytes.u32(),
    }
}

fn settings(bytes: &mut Bytes<'_>) -> ConnectionSettings {
    let flags = bytes.byte();
    let is = |bit: u8| flags & 1 << bit != 0;
    let row = bytes.u16() % (ROW_LAST + 1);
    let parameters = TestParameters {
        test_time_s: TEST_S,
        rate: if is(2) {
            Rate::Fixed(row)
        } else {
            Rate::Search { start: row }
        },
        ecn_ce_thresh: u8::from(is(3)),
        ..TestParameters::new(if is(1) {
            Direction::Upstream
        } else {
            Direction::Downstream
        })
    };
    let role = if is(0) {
        Role::Server {
            rows: Arc::new(RateTable::new(Variant::default())),
            row_max: None,
            hold_until_answered: is(4),
            infer_peer_limit: is(5),
        }
    } else {
        Role::Client {
            first_row: rate(bytes),
        }
    };
    ConnectionSettings {
        role,
        parameters,
        version: if is(6) { Version::V11 } else { Version::V20 },
        auth_mode: 0,
        status_checksum: StatusChecksum::Lenient,
        sender: SenderSettings {
            ipv6: is(7),
            keep_numbers: is(4),
            check_sum: is(5),
            tick: 0,
            seed: 1,
        },
    }
}

fn status(bytes: &mut Bytes<'_>, version: Version) -> Vec<u8> {
    let status = Status {
        test_action: bytes.action(),
        rx_stopped: bytes.byte() == 255,
        spdu_seq_no: bytes.u32(),
        spdu_time: bytes.wall(),
        rate: rate(bytes),
        sub_int_seq_no: bytes.byte().into(),
        sub_interval: SubIntervalStats {
            rx_datagrams: bytes.u32(),
            rx_bytes: bytes.u32().into(),
            delta_time: bytes.u32(),
            accum_time: bytes.u32(),
            ..SubIntervalStats::default()
        },
        seq_err_loss: bytes.u32(),
        seq_err_ooo: bytes.u32(),
        seq_err_dup: bytes.u32(),
        rtt_minimum: bytes.u32(),
        rtt_var_sample: bytes.u32(),
        delay_var_sum: bytes.u32(),
        delay_var_cnt: bytes.u32(),
        ..Status::default()
    };
    let mut encoded = vec![0; Status::len(version)];
    status.encode(version, &mut encoded);
    encoded
}

/// Some load PDUs in one receive buffer, and their stride.
fn loads(bytes: &mut Bytes<'_>) -> (Vec<u8>, u16) {
    let (count, first) = (usize::from(bytes.byte() % 16) + 1, bytes.u32());
    let load = Load {
        test_action: bytes.action(),
        rx_stopped: bytes.byte() == 255,
        udp_payload: bytes.u16(),
        spdu_seq_err: bytes.u16(),
        spdu_time: bytes.wall(),
        lpdu_time: bytes.wall(),
        rtt_resp_delay: bytes.u16(),
        ..Load::default()
    };
    let stride = Load::HEADER_LEN + usize::from(bytes.byte());
    let mut buffer = vec![0; count * stride];
    for (number, datagram) in buffer.chunks_mut(stride).enumerate() {
        let load = Load {
            lpdu_seq_no: first.wrapping_add(number as u32),
            ..load
        };
        load.encode(datagram);
    }
    (buffer, stride as u16)
}

/// Nothing that is due at a time stays due.
fn timers(connection: &mut Connection, now: u64, watch: &mut Watch) {
    for _ in 0..TIMER_CALLS_MAX {
        match connection.next_deadline() {
            Some(deadline) if deadline <= now => connection.timer(now, watch),
            _ => return,
        }
    }
    let due = connection.next_deadline();
    assert!(due.is_none_or(|due| due > now), "a timer that never ends");
}

/// A running connection and a peer that sends anything.
pub fn connection(data: &[u8]) {
    let mut bytes = Bytes(data);
    let settings = settings(&mut bytes);
    let version = settings.version;
    let mut connection = Connection::new(settings, START);
    let mut watch = Watch {
        takes: u32::MAX,
        ..Watch::default()
    };
    let mut now = START.now;
    for _ in 0..STEPS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        let (buffer, stride) = match bytes.byte() % 5 {
            0 => {
                now += u64::from(bytes.u16()) * 10_000;
                timers(&mut connection, now, &mut watch);
                continue;
            }
            1 => {
                watch.takes = u32::from(bytes.byte()) * 2;
                continue;
            }
            2 => {
                let pdu = status(&mut bytes, version);
                let stride = pdu.len() as u16;
                (pdu, stride)
            }
            3 => loads(&mut bytes),
            _ => {
                let len = usize::from(bytes.byte()).min(bytes.0.len());
                let (any, rest) = bytes.0.split_at(len);
                bytes.0 = rest;
                (any.to_vec(), bytes.u16())
            }
        };
        connection.datagram(&buffer, stride, bytes.byte(), now, &mut watch);
    }
    // Then it is silent for good.
    for _ in 0..150 {
        now += 100 * MS;
        timers(&mut connection, now, &mut watch);
    }
    assert!(connection.end().is_some() && watch.ended, "it never ends");
    assert_eq!(connection.next_deadline(), None);
}
