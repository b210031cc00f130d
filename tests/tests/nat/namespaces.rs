//! A NAT where NATs are: in a network of its own between those of the client and of the server, over
//! links with the MTU of Ethernet.

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use ringmill_tests::net::{DATAGRAM_LEN_MAX, random_bytes};
use ringmill_tests::peer::has;
use ringmill_tests::program::{ringmill, tethered};
use ringmill_tests::{drivers, skipped};

use crate::process::{Nat, at, exchange, roomy_socket};

/// Client, NAT, server.
const NAMES: [&str; 3] = ["client", "nat", "server"];
/// The links between neighbours: number of the namespace, name of the link, its addresses (RFC 5737 and
/// RFC 3849: reserved for such uses).
const ENDS: [(usize, &str, &str, &str); 4] = [
    (0, "out", "192.0.2.1", "2001:db8:1::1"),
    (1, "in", "192.0.2.2", "2001:db8:1::2"),
    (1, "out", "198.51.100.1", "2001:db8:2::1"),
    (2, "in", "198.51.100.2", "2001:db8:2::2"),
];

/// Three namespaces in a row; gone when dropped.
struct Row([String; 3]);

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(|error| format!("ip {arguments}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {arguments}: {}", said.trim()))
}

impl Row {
    fn new() -> Result<Self, String> {
        let id = std::process::id();
        let row = Self(NAMES.map(|name| format!("ringmill-{id}-{name}")));
        let [client, nat, server] = &row.0;
        for name in &row.0 {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        for (from, to) in [(client, nat), (nat, server)] {
            ip(&format!(
                "-n {from} link add out type veth peer name in netns {to}"
            ))?;
        }
        for (number, link, v4, v6) in ENDS {
            let name = &row.0[number];
            ip(&format!("-n {name} addr add {v4}/24 dev {link}"))?;
            ip(&format!("-n {name} addr add {v6}/64 dev {link} nodad"))?;
            ip(&format!("-n {name} link set {link} mtu 1500 up"))?;
        }
        Ok(row)
    }

    /// A command that runs ringmill in one of the namespaces. `ip` becomes the program by exec, so
    /// signals and the end reach the right process.
    fn ringmill(&self, number: usize) -> Command {
        let mut command = tethered(Command::new("ip"));
        command
            .args(["netns", "exec", &self.0[number]])
            .arg(ringmill());
        command
    }

    /// A socket in one of the namespaces: it stays where the thread was that made it.
    fn socket(&self, number: usize, local: &str) -> UdpSocket {
        let path = format!("/run/netns/{}", self.0[number]);
        let namespace = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).expect("who made it may enter");
                roomy_socket(local)
            });
            made.join().expect("a socket")
        })
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

#[test]
fn between_two_networks() {
    if !has("ip") {
        return;
    }
    let row = match Row::new() {
        Ok(row) => row,
        Err(reason) => return skipped(&format!("network namespaces: {reason}")),
    };
    let [client_end, nat_end, _, server_end] = ENDS;
    for driver in drivers() {
        for (to, server_v6) in [(server_end.2, false), (server_end.3, true)] {
            let bracketed = |host: &str, v6| {
                if v6 {
                    format!("[{host}]")
                } else {
                    host.to_owned()
                }
            };
            let server = row.socket(2, &format!("{}:0", bracketed(to, server_v6)));
            let flags = ["--driver", driver];
            let nat = Nat::start_as(row.ringmill(1), "*:0", &[at(&server).to_string()], &flags);
            let listens = nat.address().port();
            let mut count = 0;
            for (from, asked, v6) in [
                (client_end.2, nat_end.2, false),
                (client_end.3, nat_end.3, true),
            ] {
                let client = row.socket(0, &format!("{}:0", bracketed(from, v6)));
                let asked = format!("{}:{listens}", bracketed(asked, v6));
                let asked: SocketAddr = asked.parse().expect("an address");
                // 1472 bytes are the last that need no fragments over IPv4.
                for len in [0, 1, 1222, 1452, 1453, 1472, 1473, 8972, DATAGRAM_LEN_MAX] {
                    let source = exchange(&client, asked, &server, &random_bytes(len));
                    let own = if server_v6 { ENDS[2].3 } else { ENDS[2].2 };
                    assert_eq!(source.ip().to_string(), own, "{driver}: {from} to {to}");
                    count += 1;
                }
            }
            let stopped = nat.stop();
            for way in ["forward_sent", "backward_sent"] {
                let sent = stopped.count(&format!("counters.{way}_datagrams"));
                assert_eq!(sent, count, "{driver}: {way} to {to}");
            }
            assert_eq!(
                stopped.count("counters.entries_created"),
                2,
                "{driver}, {to}"
            );
            assert_eq!(stopped.count("counters.socket_errors"), 0, "{driver}, {to}");
        }
    }
}
