//! The files of `-O`: their names. What is in them is `capacity::recording`.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use ringmill_protocols::capacity::time::WallTime;

use super::console::host;
use super::local_time;

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

    fn at(sec: u32, micros: u32) -> WallTime {
        WallTime {
            sec,
            nsec: micros * 1000,
        }
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
