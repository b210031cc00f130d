//! `ringmill capacity rates`: the sending rate table, for people and for programs.

use std::io::{self, BufWriter, Write};

use anyhow::Result;
use clap::{Args, ValueEnum};
use ringmill_protocols::capacity::rates::{RateTable, Row, Variant};
use serde_json::json;

use crate::exit::Exit;

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// Tab-separated, with a line of names.
    Tsv,
}

/// Flags of `ringmill capacity rates`.
#[derive(Debug, Args)]
pub struct RatesArgs {
    /// Sizes as they are over IPv6.
    #[arg(short = '6', long)]
    pub ipv6: bool,

    /// No datagrams above the default size.
    #[arg(long, short = 'j')]
    pub no_jumbo: bool,

    /// Packets of 1500 bytes instead of 1250.
    #[arg(long, short = 'T')]
    pub traditional: bool,

    /// The rows past its end too, which `--extended-rows` of a test has.
    #[arg(long)]
    pub extended: bool,

    /// How it is printed.
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,

    /// Print NDJSON: one object for each row.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// Prints it.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn run(args: &RatesArgs) -> Result<Exit> {
    let variant = Variant {
        ipv6: args.ipv6,
        jumbo: !args.no_jumbo,
        traditional: args.traditional,
    };
    let table = match args.extended {
        true => RateTable::extended(variant),
        false => RateTable::new(variant),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match (args.json, args.format) {
        (true, _) => write_json(&table, &mut out),
        (_, Format::Tsv) => write_tsv(&table, &mut out),
        (_, Format::Table) => write_table(&table, &mut out),
    };
    match written.and_then(|()| out.flush()) {
        // Who reads only the first rows has had them.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Ok),
    }
}

const NAMES: [&str; 9] = [
    "index",
    "txInterval1",
    "udpPayload1",
    "burstSize1",
    "txInterval2",
    "udpPayload2",
    "burstSize2",
    "udpAddon2",
    "mbps_l3",
];

fn cells(row: &Row) -> [String; 9] {
    let rate = &row.rate;
    [
        row.index.to_string(),
        rate.tx_interval1.to_string(),
        row.payload1().to_string(),
        rate.burst_size1.to_string(),
        rate.tx_interval2.to_string(),
        row.payload2().to_string(),
        rate.burst_size2.to_string(),
        row.addon2().to_string(),
        format!("{:.2}", row.mbps()),
    ]
}

fn write_tsv(table: &RateTable, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", NAMES.join("\t"))?;
    table
        .rows()
        .try_for_each(|row| writeln!(out, "{}", cells(&row).join("\t")))
}

fn write_json(table: &RateTable, out: &mut impl Write) -> io::Result<()> {
    table.rows().try_for_each(|row| {
        let rate = &row.rate;
        let size = |size: ringmill_protocols::capacity::rates::Size| json!([size.min, size.max]);
        let value = json!({
            "row": row.index,
            "ip_mbps": row.mbps(),
            "random": row.is_random(),
            "transmitters": [
                {
                    "interval_us": rate.tx_interval1,
                    "payload_bytes": size(row.payload1()),
                    "datagrams": rate.burst_size1,
                },
                {
                    "interval_us": rate.tx_interval2,
                    "payload_bytes": size(row.payload2()),
                    "datagrams": rate.burst_size2,
                    "addon_bytes": size(row.addon2()),
                },
            ],
        });
        writeln!(out, "{value}")
    })
}

fn write_table(table: &RateTable, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:>5}  {:>12}  {:>26}  {:>26}  {:>9}",
        "row", "IP Mbit/s", "every ... us: datagrams", "every ... us: datagrams", "and one of"
    )?;
    let sends = |interval: u32, count: u32, bytes: String| match (interval, count) {
        (0, _) => "-".to_owned(),
        (_, 0) => format!("{interval}: none"),
        _ => format!("{interval}: {count} of {bytes} B"),
    };
    for row in table.rows() {
        let rate = &row.rate;
        let about = if row.is_random() { "~" } else { "" };
        let addon = match row.addon2().to_string() {
            none if none == "0" => "-".to_owned(),
            bytes => format!("{bytes} B"),
        };
        writeln!(
            out,
            "{:>5}  {:>12}  {:>26}  {:>26}  {:>9}",
            row.index,
            format!("{about}{:.2}", row.mbps()),
            sends(
                rate.tx_interval1,
                rate.burst_size1,
                row.payload1().to_string()
            ),
            sends(
                rate.tx_interval2,
                rate.burst_size2,
                row.payload2().to_string()
            ),
            addon,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_every_row() {
        let variant = Variant::default();
        for (table, rows) in [
            (RateTable::new(variant), 1153),
            (RateTable::extended(variant), 1253),
        ] {
            for (write, lines) in [
                (write_tsv as fn(&RateTable, &mut Vec<u8>) -> _, rows + 1),
                (write_json, rows),
                (write_table, rows + 1),
            ] {
                let mut out = Vec::new();
                write(&table, &mut out).expect("memory");
                let text = String::from_utf8(out).expect("text");
                assert_eq!(text.lines().count(), lines);
            }
        }
    }
}
