//! Who holds a port: the process behind a socket in use, for an error that helps.
//!
//! Reads /proc only; finds what this user may see and says nothing else.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::driver::Address;

/// The holder of an address in words, such as `held by nginx, process 4711`.
pub(crate) fn of(address: &Address, datagram: bool) -> Option<String> {
    let Address::Ip(ip) = address else {
        return None;
    };
    let (pid, name) = port_holder(*ip, datagram)?;
    let ours = if pid == std::process::id() {
        " (this process)"
    } else {
        ""
    };
    Some(format!("held by {name}, process {pid}{ours}"))
}

/// The process (its number and name) that has a port bound here, when this user may see it.
#[must_use]
pub fn port_holder(ip: SocketAddr, datagram: bool) -> Option<(u32, String)> {
    let tables: &[&str] = match datagram {
        true => &["/proc/net/udp", "/proc/net/udp6"],
        false => &["/proc/net/tcp", "/proc/net/tcp6"],
    };
    let inode = tables.iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines()
            .skip(1)
            .find_map(|line| inode_of(line, ip.ip(), ip.port(), datagram))
    })?;
    process_of(inode)
}

/// The inode of a line of /proc/net/{tcp,udp}, when it is a bound or listening socket there.
fn inode_of(line: &str, ip: IpAddr, port: u16, datagram: bool) -> Option<u64> {
    /// TCP_LISTEN in the kernel's table of states.
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (host, number) = address.split_once(':')?;
    let bound = parse_host(host)?;
    let overlaps = bound == ip || bound.is_unspecified() || ip.is_unspecified();
    let matches =
        u16::from_str_radix(number, 16).ok()? == port && overlaps && (datagram || *state == LISTEN);
    matches.then(|| inode.parse().ok()).flatten()
}

/// Addresses are printed as native-endian 32-bit words in hexadecimal.
fn parse_host(host: &str) -> Option<IpAddr> {
    let words: Vec<[u8; 4]> = (0..host.len() / 8)
        .map(|i| {
            Some(
                u32::from_str_radix(host.get(i * 8..i * 8 + 8)?, 16)
                    .ok()?
                    .to_ne_bytes(),
            )
        })
        .collect::<Option<_>>()?;
    match words.len() {
        1 => Some(IpAddr::V4(Ipv4Addr::from(words[0]))),
        4 => {
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        }
        _ => None,
    }
}

fn process_of(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let all = fs::read_dir("/proc").ok()?.flatten();
    let others = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // Ourselves first: the others may have a million files open.
    for pid in std::iter::once(std::process::id()).chain(others) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Ok(files) = fs::read_dir(process.join("fd")) else {
            continue;
        };
        let holds = files.flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        });
        if holds {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    // A direct descriptor of a ring is in no process's list of files.
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_this_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(socket.local_addr().unwrap());
        let words = of(&address, false).unwrap();
        assert!(
            words.contains(&format!("process {}", std::process::id())),
            "{words}"
        );
        assert_eq!(of(&address, true), None);
    }

    #[test]
    fn odd_lines_are_passed_over() {
        for line in ["", "0:", "0: zz:1 a b c d e f g h", "0: 0100007F 0 0A"] {
            assert_eq!(
                inode_of(line, "127.0.0.1".parse().unwrap(), 1, false),
                None,
                "{line}"
            );
        }
    }
}
