//! The sending rate tables against those that OB-UDPST 9.0.0 prints, cell by cell.

use ringmill_protocols::capacity::rates::{ROWS, RateTable, Variant};

#[test]
fn all_eight_tables() {
    let header = "index\ttxInterval1\tudpPayload1\tburstSize1\ttxInterval2\tudpPayload2\tburstSize2\tudpAddon2\tmbps_l3";
    for (name, ipv6, jumbo, traditional) in [
        ("v4", false, true, false),
        ("v4_T", false, true, true),
        ("v4_j", false, false, false),
        ("v4_jT", false, false, true),
        ("v6", true, true, false),
        ("v6_T", true, true, true),
        ("v6_j", true, false, false),
        ("v6_jT", true, false, true),
    ] {
        let path = crate::vectors(&format!("sending_rates/{name}.tsv"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(lines.next(), Some(header), "{name}");
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), usize::from(ROWS), "{name}");
        let table = RateTable::new(Variant {
            ipv6,
            jumbo,
            traditional,
        });
        for (line, row) in lines.into_iter().zip(table.rows()) {
            let rate = row.rate;
            let cells = [
                row.index.to_string(),
                rate.tx_interval1.to_string(),
                row.payload1().to_string(),
                rate.burst_size1.to_string(),
                rate.tx_interval2.to_string(),
                row.payload2().to_string(),
                rate.burst_size2.to_string(),
                row.addon2().to_string(),
                format!("{:.2}", row.mbps()),
            ];
            assert_eq!(cells.join("\t"), line, "{name}");
            assert_eq!(row.is_random(), row.index == 0);
        }
    }
}
