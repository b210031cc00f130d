//! The metadata CSV of `-O`: its columns, its rows and the names of its files. Pure.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use ringmill_protocols::capacity::batch::LoadRecord;
use ringmill_protocols::capacity::intervals::InterfaceRate;
use ringmill_protocols::capacity::time::WallTime;

use super::console::host;
use super::local_time;

/// The first line.
pub const HEADER: &str = "SeqNo,PayLoad,ECNValue,SrcTxTime,DstRxTime,OWD,IntfMbps,IntfMbpsAlt,\
                          RTTTxTime,RTTRxTime,RTTRespDelay,RTT,StatusLoss\n";

/// Appends the line of a load PDU. Without `all`, only those that gave a sample of the round-trip
/// time have one.
pub fn row(text: &mut String, record: &LoadRecord, interface: InterfaceRate, all: bool) {
    if record.rtt_ms.is_none() && !all {
        return;
    }
    let load = &record.load;
    let _ = write!(
        text,
        "{},{},{},{},{},{},{:.2},{:.2}",
        load.lpdu_seq_no,
        load.udp_payload,
        record.ecn,
        Micros(load.lpdu_time),
        Micros(record.received),
        record.one_way_ms,
        interface.test_mbps,
        interface.other_mbps,
    );
    let _ = match record.rtt_ms {
        Some(rtt) => writeln!(
            text,
            ",{},{},{},{rtt},{}",
            Micros(load.spdu_time),
            Micros(record.received),
            load.rtt_resp_delay,
            load.spdu_seq_err,
        ),
        None => writeln!(text, ",,,,,"),
    };
}

/// Seconds and microseconds.
struct Micros(WallTime);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0.sec, self.0.nsec / 1000)
    }
}

/// What the name of a file is made of.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Index of the connection in its test.
    pub connection: u8,
    /// Connections of the test.
    pub connections: u8,
    /// The test.
    pub ident: u16,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// This is a server.
    pub server: bool,
    /// The server as it was named; `None` for a server without a name.
    pub host: Option<&'a str>,
    /// Its control port.
    pub control_port: u16,
    /// The interface that is watched.
    pub interface: &'a str,
    /// Now.
    pub at: WallTime,
}

/// The name of a connection's file: `#` and a letter for what is known of the connection, then
/// the conversions of `strftime`. Other letters stay as they are.
#[must_use]
pub fn file_name(pattern: &OsStr, named: &Named<'_>) -> OsString {
    let mut name = Vec::with_capacity(pattern.len());
    let mut bytes = pattern.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'#' {
            name.push(byte);
            continue;
        }
        let text = match bytes.peek() {
            Some(b'i') => named.connection.to_string(),
            Some(b'c') => named.connections.to_string(),
            Some(b'I') => named.ident.to_string(),
            Some(b'l') => host(named.local),
            Some(b'r') => host(named.remote),
            Some(b's') => named.remote.port().to_string(),
            Some(b'd') => named.local.port().to_string(),
            Some(b'M') => if named.server { "S" } else { "C" }.into(),
            // What is recorded is what came: at a server it went up, at a client it came down.
            Some(b'D') => if named.server { "U" } else { "D" }.into(),
            Some(b'H') => named.host.unwrap_or("InAddrAny").into(),
            Some(b'p') => named.control_port.to_string(),
            Some(b'E') => named.interface.into(),
            _ => {
                name.push(byte);
                continue;
            }
        };
        bytes.next();
        name.extend_from_slice(text.as_bytes());
    }
    OsString::from_vec(local_time::expand(&name, named.at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmill_protocols::capacity::pdu::Load;

    fn at(sec: u32, micros: u32) -> WallTime {
        WallTime {
            sec,
            nsec: micros * 1000,
        }
    }

    fn record(number: u32, rtt_ms: Option<u32>) -> LoadRecord {
        LoadRecord {
            load: Load {
                lpdu_seq_no: number,
                udp_payload: 222,
                lpdu_time: at(1_795_211_038, 115_157),
                spdu_time: at(1_795_211_038, 81_068),
                rtt_resp_delay: 34,
                ..Load::default()
            },
            ecn: 0,
            received: at(1_795_211_038, 115_228),
            one_way_ms: 0,
            rtt_ms,
            out_of_order: false,
        }
    }

    #[test]
    fn rows_as_the_original_writes_them() {
        let sampled = "2,222,0,1795211038.115157,1795211038.115228,0,0.00,0.00,1795211038.081068,\
                       1795211038.115228,34,0,0\n";
        let other = "3,222,0,1795211038.115157,1795211038.115228,0,0.00,0.00,,,,,\n";
        for (all, expected) in [(true, format!("{sampled}{other}")), (false, sampled.into())] {
            let mut text = String::new();
            for record in [record(2, Some(0)), record(3, None)] {
                row(&mut text, &record, InterfaceRate::default(), all);
            }
            assert_eq!(text, expected);
        }
        let columns = HEADER.matches(',').count();
        assert_eq!(
            (
                columns,
                sampled.matches(',').count(),
                other.matches(',').count()
            ),
            (12, 12, 12)
        );
    }

    #[test]
    fn names_of_files() {
        let named = Named {
            connection: 1,
            connections: 3,
            ident: 777,
            local: "127.0.0.1:5000".parse().unwrap(),
            remote: "[::1]:6000".parse().unwrap(),
            server: false,
            host: Some("localhost"),
            control_port: 24601,
            interface: "lo",
            at: at(1_795_211_038, 0),
        };
        let server = Named {
            server: true,
            host: None,
            ..named
        };
        for (pattern, client_name, server_name) in [
            ("x.csv", "x.csv", "x.csv"),
            ("#i/#c #I", "1/3 777", "1/3 777"),
            (
                "#l #d #r #s",
                "127.0.0.1 5000 ::1 6000",
                "127.0.0.1 5000 ::1 6000",
            ),
            ("#M#D#H#p#E", "CDlocalhost24601lo", "SUInAddrAny24601lo"),
            ("#x##i#", "#x#1#", "#x#1#"),
            ("#I-%%%s", "777-%1795211038", "777-%1795211038"),
        ] {
            assert_eq!(
                file_name(pattern.as_ref(), &named),
                client_name,
                "{pattern}"
            );
            assert_eq!(
                file_name(pattern.as_ref(), &server),
                server_name,
                "{pattern}"
            );
        }
    }
}
