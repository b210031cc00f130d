//! Who holds a port: the process behind a socket in use, for an error that helps.
//!
//! Reads /proc only; finds what this user may see and says nothing else. It must never hold up the
//! error that it is for: on a host with millions of sockets or files it gives up and finds nobody.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

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

/// How far a search goes.
struct Bounds {
    /// Bytes of each table of sockets that are read.
    table_bytes_max: u64,
    /// Processes and open files that are looked at.
    looks_max: usize,
    /// Open files of one process.
    files_per_process_max: usize,
}

const BOUNDS: Bounds = Bounds {
    // About 100,000 lines of 128 (UDP) or 150 bytes, a few tenths of a second. Listening TCP sockets
    // are the first lines.
    table_bytes_max: 16 << 20,
    // 1 to 2 µs each.
    looks_max: 100_000,
    // The lowest, where what is opened at start is: one server of a million connections must not
    // hide the others.
    files_per_process_max: 10_000,
};

/// The process (its number and name) that has a port bound here, when this user may see it and the
/// search for it is not too long.
#[must_use]
pub fn port_holder(ip: SocketAddr, datagram: bool) -> Option<(u32, String)> {
    search(Path::new("/proc"), &BOUNDS, ip, datagram)
}

/// The search in a directory that looks like /proc.
fn search(proc: &Path, bounds: &Bounds, ip: SocketAddr, datagram: bool) -> Option<(u32, String)> {
    let tables = match datagram {
        true => ["net/udp", "net/udp6"],
        false => ["net/tcp", "net/tcp6"],
    };
    let inode = tables.iter().find_map(|table| {
        let table = fs::File::open(proc.join(table)).ok()?;
        inode_in(table, bounds.table_bytes_max, ip, datagram)
    })?;
    process_of(proc, bounds, inode)
}

/// The inode of the first socket of a table that is bound there.
fn inode_in(table: impl Read, bytes_max: u64, ip: SocketAddr, datagram: bool) -> Option<u64> {
    let mut table = BufReader::new(table.take(bytes_max));
    let mut line = String::new();
    loop {
        line.clear();
        table.read_line(&mut line).ok()?;
        // A line that was cut off could name another socket.
        let whole = line.strip_suffix('\n')?;
        let found = inode_of(whole, ip.ip(), ip.port(), datagram);
        if found.is_some() {
            return found;
        }
    }
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

fn process_of(proc: &Path, bounds: &Bounds, inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let all = fs::read_dir(proc).ok()?.flatten();
    let others = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut looks_left = bounds.looks_max;
    // Ourselves first: the port is ours more often than anyone else's.
    for pid in std::iter::once(std::process::id()).chain(others) {
        looks_left = looks_left.checked_sub(1)?;
        let process = proc.join(pid.to_string());
        let Ok(files) = fs::read_dir(process.join("fd")) else {
            continue;
        };
        for file in files.flatten().take(bounds.files_per_process_max) {
            looks_left = looks_left.checked_sub(1)?;
            if fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
                let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                return Some((pid, name.trim().to_owned()));
            }
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

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when …\n";

    /// A listening socket of 127.0.0.1, as /proc/net/tcp has it on a little-endian machine.
    fn listening(port: u16, inode: u64) -> String {
        let host = u32::from_ne_bytes([127, 0, 0, 1]);
        format!(
            "   0: {host:08X}:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     \
             0        0 {inode} 1 0 100 0 0 10 0\n"
        )
    }

    fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// A tree like /proc: one listening socket, and processes by number, how many other files they
    /// have open, and whether they hold it.
    fn fake_proc(processes: &[(u32, usize, bool)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let path = |name: String| proc.path().join(name);
        fs::create_dir(path("net".into())).unwrap();
        fs::write(
            path("net/tcp".into()),
            format!("{HEAD}{}", listening(7000, 42)),
        )
        .unwrap();
        for &(pid, others, holds) in processes {
            let files = path(format!("{pid}/fd"));
            fs::create_dir_all(&files).unwrap();
            fs::write(path(format!("{pid}/comm")), format!("server{pid}\n")).unwrap();
            let link =
                |to: &str, fd: usize| std::os::unix::fs::symlink(to, files.join(fd.to_string()));
            for fd in 0..others {
                link("socket:[7]", fd).unwrap();
            }
            if holds {
                link("socket:[42]", others).unwrap();
            }
        }
        proc
    }

    #[test]
    fn the_holder_among_other_processes() {
        let proc = fake_proc(&[(10, 3, false), (11, 5, true), (12, 0, false)]);
        let found = search(proc.path(), &BOUNDS, local(7000), false);
        assert_eq!(found, Some((11, "server11".into())));
        assert_eq!(
            search(proc.path(), &BOUNDS, local(7001), false),
            None,
            "nobody"
        );
        assert_eq!(
            search(proc.path(), &BOUNDS, local(7000), true),
            None,
            "no table"
        );
    }

    #[test]
    fn a_search_is_bounded() {
        // Each process costs a look beside its files; this one, which is not there, one too.
        let one = &[(10, 3, true)][..];
        let crowd = &[
            (10, 20, false),
            (11, 20, false),
            (12, 20, false),
            (13, 2, true),
        ];
        for (processes, looks_max, files_per_process_max, found, what) in [
            (one, 6, 10, true, "just enough looks"),
            (one, 2, 10, false, "none left for a file"),
            (one, 0, 10, false, "none at all"),
            (crowd, 17, 3, true, "many files do not hide another's"),
            (&crowd[..3], 100, 3, false, "nobody holds it"),
        ] {
            let bounds = Bounds {
                looks_max,
                files_per_process_max,
                ..BOUNDS
            };
            let proc = fake_proc(processes);
            let holder = search(proc.path(), &bounds, local(7000), false);
            assert_eq!(holder.is_some(), found, "{what}: {holder:?}");
        }
    }

    #[test]
    fn a_table_that_is_too_long_is_read_in_part() {
        let others: String = (0..1000).map(|n| listening(1, n)).collect();
        let table = format!("{HEAD}{others}{}", listening(7000, 42));
        let whole = table.len() as u64;
        for (bytes_max, found) in [
            (whole, Some(42)),
            // One byte less, and the last line is not a line.
            (whole - 1, None),
            (whole / 2, None),
            (0, None),
        ] {
            let inode = inode_in(table.as_bytes(), bytes_max, local(7000), false);
            assert_eq!(inode, found, "{bytes_max} of {whole} bytes");
        }
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
