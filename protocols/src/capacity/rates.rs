//! The sending rate table: 1153 rows, of which row n stands for n Mbit/s at the IP layer up to 1000.
//!
//! A row is a [`RateStructure`] with the sizes of IPv4, as it goes over the wire; what a sender on
//! IPv6 makes of it has the same rate. An extension for peers of our own adds rows past the end.

use super::pdu::RateStructure;

/// The last row of the table.
pub const ROW_LAST: u16 = 1152;
/// Rows of the table.
pub const ROWS: u16 = ROW_LAST + 1;
/// The last row whose number is its rate in Mbit/s; above it only transmitter 1 sends.
pub const HIGH_SPEED_ROW: u16 = 1000;
/// Rows that the extension adds: transmitter 2 comes in beside transmitter 1, one datagram more in
/// each row, up to [`BURST_MAX`].
pub const EXTENSION_ROWS: u16 = BURST_MAX as u16;
/// The last row with the extension.
pub const EXTENDED_ROW_LAST: u16 = ROW_LAST + EXTENSION_ROWS;

/// Most datagrams in a burst of any row.
pub const BURST_MAX: u32 = 100;
/// Largest UDP payload of any row, in bytes: 9000 bytes of IPv4 packet.
pub const PAYLOAD_BYTES_MAX: u32 = 8972;
/// Shortest interval of any row, in µs.
pub const INTERVAL_MIN_US: u32 = 100;

/// UDP payload of the default rows in bytes: 1250 bytes of IPv4 packet.
pub const PAYLOAD_BYTES_DEFAULT: u32 = 1222;
/// The same with traditional MTU: 1500 bytes of packet.
pub const PAYLOAD_BYTES_TRADITIONAL: u32 = 1472;
/// Headers of IPv4 and UDP in bytes.
pub const HEADERS_BYTES_V4: u32 = 28;
/// Headers of IPv6 and UDP in bytes.
pub const HEADERS_BYTES_V6: u32 = 48;
/// How much more the header of IPv6 takes than that of IPv4, in bytes.
const HEADER_MORE_V6: u32 = HEADERS_BYTES_V6 - HEADERS_BYTES_V4;
/// Least size of a random payload in bytes, on IPv4; on IPv6 it is 20 less, a bare load header.
pub const RANDOM_BYTES_MIN_V4: u32 = 52;

/// Interval of transmitter 1 in µs.
const INTERVAL1_US: u32 = 100;
/// Interval of transmitter 2 in µs.
const INTERVAL2_US: u32 = 1000;
/// Interval of row 0 in µs.
const INTERVAL_ROW_0_US: u32 = 50_000;
/// Step of the packet size in the jumbo rows, in bytes.
const JUMBO_STEP_BYTES: u32 = 125;
/// Packet size of the first jumbo row less one step, in bytes.
const JUMBO_BASE_BYTES: u32 = 1250;
/// The last row that grows the packet; from there on the burst grows.
const JUMBO_SIZE_ROW_LAST: u32 = 1062;

/// Which of the tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Sizes are shown for IPv6. The rows that go over the wire are the same.
    pub ipv6: bool,
    /// Datagrams above the default size are allowed past row 1000.
    pub jumbo: bool,
    /// Packets fill an MTU of 1500.
    pub traditional: bool,
}

/// A size of datagrams in bytes: one, or drawn evenly between two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Size {
    /// The least.
    pub min: u32,
    /// The largest; as `min` when it is not random.
    pub max: u32,
}

impl Size {
    /// The UDP payload that a size of a row means on an address family.
    #[must_use]
    pub const fn of(wire: u32, ipv6: bool) -> Self {
        let on_v4 = wire & !RateStructure::RANDOM;
        let less = if ipv6 { HEADER_MORE_V6 } else { 0 };
        // Below the least size of a random one, nothing is taken off.
        let max = if on_v4 >= RANDOM_BYTES_MIN_V4 {
            on_v4 - less
        } else {
            on_v4
        };
        if wire & RateStructure::RANDOM == 0 {
            return Self { min: max, max };
        }
        let least = RANDOM_BYTES_MIN_V4 - less;
        let min = if max < least { max } else { least };
        Self { min, max }
    }

    /// Whether it is drawn anew for each datagram.
    #[must_use]
    pub const fn is_random(self) -> bool {
        self.min != self.max
    }

    /// The mean, rounded down.
    #[must_use]
    pub const fn mean(self) -> u32 {
        self.min + (self.max - self.min) / 2
    }
}

impl std::fmt::Display for Size {
    /// As in `972`, or `52-1222` where it is random.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_random() {
            write!(f, "{}-{}", self.min, self.max)
        } else {
            self.max.fmt(f)
        }
    }
}

/// One row of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its index.
    pub index: u16,
    /// What it says, with the sizes of IPv4, as on the wire.
    pub rate: RateStructure,
    ipv6: bool,
}

impl Row {
    /// UDP payload of transmitter 1 on the table's address family.
    #[must_use]
    pub const fn payload1(&self) -> Size {
        Size::of(self.rate.udp_payload1, self.ipv6)
    }

    /// UDP payload of transmitter 2 on the table's address family.
    #[must_use]
    pub const fn payload2(&self) -> Size {
        Size::of(self.rate.udp_payload2, self.ipv6)
    }

    /// UDP payload of the add-on on the table's address family.
    #[must_use]
    pub const fn addon2(&self) -> Size {
        Size::of(self.rate.udp_addon2, self.ipv6)
    }

    /// Whether a size is random, and the rate therefore a mean.
    #[must_use]
    pub const fn is_random(&self) -> bool {
        self.payload1().is_random() || self.payload2().is_random() || self.addon2().is_random()
    }

    /// The rate at the IP layer in Mbit/s: whole intervals in a second, as the table of OB-UDPST
    /// shows it.
    #[must_use]
    pub fn mbps(&self) -> f64 {
        let headers = if self.ipv6 {
            HEADERS_BYTES_V6
        } else {
            HEADERS_BYTES_V4
        };
        let packets = |size: Size, count: u32| {
            if size.max == 0 {
                0
            } else {
                u64::from(count) * u64::from(size.mean() + headers)
            }
        };
        let rate = &self.rate;
        let bytes1 = per_second(rate.tx_interval1) * packets(self.payload1(), rate.burst_size1);
        let bytes2 = per_second(rate.tx_interval2)
            * (packets(self.payload2(), rate.burst_size2) + packets(self.addon2(), 1));
        ((bytes1 + bytes2) * 8) as f64 / 1e6
    }

    /// The rate of a high-speed row in Mbit/s, in the integers by which a bandwidth limit is met.
    const fn whole_mbps(&self) -> u32 {
        const fn transmitter(payload: u32, burst: u32, interval_us: u32) -> u32 {
            match interval_us {
                0 => 0,
                _ => (payload + HEADERS_BYTES_V4) * burst * 8 / interval_us,
            }
        }
        let rate = &self.rate;
        transmitter(rate.udp_payload1, rate.burst_size1, rate.tx_interval1)
            + transmitter(rate.udp_payload2, rate.burst_size2, rate.tx_interval2)
    }
}

/// Whole intervals in a second.
const fn per_second(interval_us: u32) -> u64 {
    match interval_us {
        0 => 0,
        _ => (1_000_000 / interval_us) as u64,
    }
}

/// A sending rate table. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateTable {
    variant: Variant,
    rows: Box<[RateStructure]>,
}

impl RateTable {
    /// The table as OB-UDPST has it.
    #[must_use]
    pub fn new(variant: Variant) -> Self {
        Self::with_rows(variant, ROWS)
    }

    /// The table with the rows of the extension. No other program knows them: only for tests in
    /// which this end sends by its own table, or both are ours.
    #[must_use]
    pub fn extended(variant: Variant) -> Self {
        Self::with_rows(variant, ROWS + EXTENSION_ROWS)
    }

    fn with_rows(variant: Variant, rows: u16) -> Self {
        let rows = (0..u32::from(rows)).map(|index| match index {
            0..=1000 => low_row(index, variant),
            _ => high_row(index, variant),
        });
        Self {
            variant,
            rows: rows.collect(),
        }
    }

    /// Which table.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The index of the last row.
    #[must_use]
    pub fn last(&self) -> u16 {
        self.rows.len() as u16 - 1
    }

    /// A row.
    #[must_use]
    pub fn get(&self, index: u16) -> Option<Row> {
        let rate = *self.rows.get(usize::from(index))?;
        Some(Row {
            index,
            rate,
            ipv6: self.variant.ipv6,
        })
    }

    /// A row; past the end the last one.
    #[must_use]
    pub fn row(&self, index: u16) -> Row {
        let index = index.min(self.last());
        Row {
            index,
            rate: self.rows[usize::from(index)],
            ipv6: self.variant.ipv6,
        }
    }

    /// All rows in order.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        (0..=self.last()).map(|index| self.row(index))
    }

    /// The rate of a row at the IP layer in Mbit/s; past the end that of the last one.
    #[must_use]
    pub fn mbps(&self, index: u16) -> f64 {
        self.row(index).mbps()
    }

    /// The highest row that a bandwidth limit allows: up to 1000 the row of that number, above it
    /// the first that reaches the limit.
    #[must_use]
    pub fn cap_row(&self, bandwidth_mbps: u16) -> u16 {
        if bandwidth_mbps <= HIGH_SPEED_ROW {
            return bandwidth_mbps;
        }
        let reaches = |index: &u16| self.row(*index).whole_mbps() >= u32::from(bandwidth_mbps);
        (HIGH_SPEED_ROW + 1..=self.last())
            .find(reaches)
            .unwrap_or(self.last())
    }
}

/// Rows 0 to 1000: transmitter 1 brings 100 Mbit/s with each datagram of its burst, transmitter 2
/// ten (twelve with traditional MTU), and its add-on the rest.
fn low_row(index: u32, variant: Variant) -> RateStructure {
    // A packet a millisecond is as many Mbit/s as it has bytes, by 125.
    let (payload, step) = if variant.traditional {
        (PAYLOAD_BYTES_TRADITIONAL, 12)
    } else {
        (PAYLOAD_BYTES_DEFAULT, 10)
    };
    if index == 0 {
        return RateStructure {
            tx_interval2: INTERVAL_ROW_0_US,
            udp_addon2: payload | RateStructure::RANDOM,
            ..RateStructure::default()
        };
    }
    let (group, rest) = (index / step, index % step);
    let (burst1, burst2) = (group / 10, group % 10);
    let mut row = RateStructure::default();
    if burst1 > 0 {
        row.tx_interval1 = INTERVAL1_US;
        row.udp_payload1 = payload;
        row.burst_size1 = burst1;
    }
    if burst2 > 0 {
        row.udp_payload2 = payload;
        row.burst_size2 = burst2;
    }
    if rest > 0 {
        row.udp_addon2 = rest * 1000 / 8 - HEADERS_BYTES_V4;
    }
    if burst2 > 0 || rest > 0 {
        row.tx_interval2 = INTERVAL2_US;
    }
    row
}

/// Rows from 1001 on: transmitter 1 alone; past the table's end transmitter 2 beside it.
fn high_row(index: u32, variant: Variant) -> RateStructure {
    let above = index.min(u32::from(ROW_LAST)) - u32::from(HIGH_SPEED_ROW);
    let (payload, burst) = if variant.jumbo {
        let sizes = JUMBO_SIZE_ROW_LAST - u32::from(HIGH_SPEED_ROW);
        let packet = JUMBO_BASE_BYTES + above.min(sizes) * JUMBO_STEP_BYTES;
        (packet - HEADERS_BYTES_V4, 10 + above.saturating_sub(sizes))
    } else if variant.traditional {
        (PAYLOAD_BYTES_TRADITIONAL, 8 + above)
    } else {
        (PAYLOAD_BYTES_DEFAULT, 10 + above)
    };
    let mut row = RateStructure {
        tx_interval1: INTERVAL1_US,
        udp_payload1: payload,
        burst_size1: burst.min(BURST_MAX),
        ..RateStructure::default()
    };
    if let extension @ 1.. = index.saturating_sub(u32::from(ROW_LAST)) {
        row.tx_interval2 = INTERVAL1_US;
        row.udp_payload2 = payload;
        row.burst_size2 = extension;
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIANTS: [Variant; 3] = [
        Variant {
            ipv6: false,
            jumbo: true,
            traditional: false,
        },
        Variant {
            ipv6: false,
            jumbo: false,
            traditional: false,
        },
        Variant {
            ipv6: true,
            jumbo: false,
            traditional: true,
        },
    ];

    #[test]
    fn the_extension_goes_on_where_the_table_ends() {
        for variant in VARIANTS {
            let (table, extended) = (RateTable::new(variant), RateTable::extended(variant));
            assert_eq!(table.last(), ROW_LAST);
            assert_eq!(extended.last(), EXTENDED_ROW_LAST);
            for row in table.rows() {
                assert_eq!(extended.row(row.index), row);
            }
            let step = f64::from(extended.row(ROW_LAST).rate.udp_payload1 + 28) * 8.0 / 100.0;
            for index in ROW_LAST..EXTENDED_ROW_LAST {
                let gained = extended.mbps(index + 1) - extended.mbps(index);
                assert!(
                    (gained - step).abs() < 1e-6,
                    "{variant:?} row {index}: {gained}"
                );
            }
            let twice = 2.0 * table.mbps(ROW_LAST);
            assert!((extended.mbps(EXTENDED_ROW_LAST) - twice).abs() < 1e-6);
        }
    }

    #[test]
    fn every_row_keeps_the_bounds_that_a_sender_sets_a_peer() {
        for row in VARIANTS.into_iter().flat_map(|variant| {
            let table = RateTable::extended(variant);
            table.rows().collect::<Vec<_>>()
        }) {
            let rate = row.rate;
            for interval in [rate.tx_interval1, rate.tx_interval2] {
                assert!(interval == 0 || interval >= INTERVAL_MIN_US, "{row:?}");
            }
            for burst in [rate.burst_size1, rate.burst_size2] {
                assert!(burst <= BURST_MAX, "{row:?}");
            }
            for size in [rate.udp_payload1, rate.udp_payload2, rate.udp_addon2] {
                assert!(Size::of(size, false).max <= PAYLOAD_BYTES_MAX, "{row:?}");
            }
        }
    }

    #[test]
    fn past_the_end_is_the_last_row() {
        let table = RateTable::new(Variant::default());
        assert_eq!(table.get(ROW_LAST + 1), None);
        assert_eq!(table.row(u16::MAX), table.row(ROW_LAST));
    }

    #[test]
    fn sizes_on_either_address_family() {
        for (wire, ipv6, text, mean) in [
            (0, false, "0", 0),
            (0, true, "0", 0),
            (1222, false, "1222", 1222),
            (1222, true, "1202", 1202),
            (51, true, "51", 51),
            (52, true, "32", 32),
            (1222 | RateStructure::RANDOM, false, "52-1222", 637),
            (1222 | RateStructure::RANDOM, true, "32-1202", 617),
            (u32::MAX, true, "32-2147483627", 1_073_741_829),
            (40 | RateStructure::RANDOM, false, "40", 40),
        ] {
            let size = Size::of(wire, ipv6);
            assert_eq!((size.to_string().as_str(), size.mean()), (text, mean));
        }
    }

    #[test]
    fn a_bandwidth_limit_caps_the_row() {
        let [jumbo, small, traditional] = VARIANTS.map(RateTable::new);
        for (table, mbps, row) in [
            (&jumbo, 0, 0),
            (&jumbo, 1, 1),
            (&jumbo, 1000, 1000),
            (&jumbo, 1001, 1001),
            (&jumbo, 1100, 1001),
            (&jumbo, 1101, 1002),
            (&jumbo, 7200, 1062),
            (&jumbo, 7201, 1063),
            (&jumbo, 32767, 1098),
            (&small, 1101, 1002),
            (&small, 10000, 1090),
            (&small, 10001, ROW_LAST),
            (&small, 32767, ROW_LAST),
            (&traditional, 1001, 1001),
            (&traditional, 1081, 1002),
            (&traditional, 12000, 1092),
        ] {
            assert_eq!(table.cap_row(mbps), row, "{mbps} of {:?}", table.variant());
        }
    }
}
