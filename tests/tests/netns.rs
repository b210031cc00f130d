//! Echo across two network namespaces, over a link with the MTU of Ethernet: fragments, both IPs.

use std::process::Command;

use ringmill_tests::net::random_bytes;
use ringmill_tests::peer::{Peer, has};
use ringmill_tests::program::{Load, Server, ringmill, tethered};
use ringmill_tests::{drivers, skipped};

/// Two namespaces joined by a veth pair; gone when dropped.
struct Link {
    names: [String; 2],
}

/// The addresses of the two ends (RFC 5737 and RFC 3849: reserved for such uses).
const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

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

impl Link {
    fn new() -> Result<Self, String> {
        let id = std::process::id();
        let link = Self {
            names: [format!("ringmill-{id}-a"), format!("ringmill-{id}-b")],
        };
        let [a, b] = &link.names;
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        ip(&format!(
            "-n {a} link add end type veth peer name end netns {b}"
        ))?;
        for (number, name) in link.names.iter().enumerate() {
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} addr add {}/24 dev end", V4[number]))?;
            ip(&format!(
                "-n {name} addr add {}/64 dev end nodad",
                V6[number]
            ))?;
            ip(&format!("-n {name} link set end mtu 1500 up"))?;
        }
        Ok(link)
    }

    /// A command that runs ringmill in one of the namespaces. `ip` becomes the program by exec, so
    /// signals and the end reach the right process.
    fn ringmill(&self, number: usize) -> Command {
        let mut command = tethered(Command::new("ip"));
        command
            .args(["netns", "exec", &self.names[number]])
            .arg(ringmill());
        command
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

#[test]
fn echo_across_two_namespaces() {
    if !has("ip") {
        return;
    }
    let link = match Link::new() {
        Ok(link) => link,
        Err(reason) => return skipped(&format!("network namespaces: {reason}")),
    };
    for driver in drivers() {
        let server = Server::start_as(
            link.ringmill(0),
            &["tcp://*:0", "udp://*:0"],
            &["--driver", driver],
        );
        let (tcp, udp) = (server.address("tcp").port(), server.address("udp").port());
        for host in [V4[0].to_owned(), format!("[{}]", V6[0])] {
            // 8972 bytes travel in seven fragments; 1472 (IPv4) is the last that needs none.
            for (endpoint, size) in [
                (format!("tcp://{host}:{tcp}"), "32"),
                (format!("tcp://{host}:{tcp}"), "100k"),
                (format!("udp://{host}:{udp}"), "32"),
                (format!("udp://{host}:{udp}"), "1472"),
                (format!("udp://{host}:{udp}"), "8972"),
                (format!("udp://{host}:{udp}"), "65000"),
            ] {
                // Few at once: the reassembly queue is bounded (net.ipv4.ipfrag_high_thresh).
                let flags = ["-c", "4", "-s", size, "-d", "500ms", "--driver", driver];
                let load = Load::run_as(link.ringmill(1), &endpoint, &flags);
                let context = format!("{driver}, {endpoint}, {size} bytes: {load:#?}");
                assert_eq!(load.code, 0, "{context}");
                assert_eq!(load.count("wrong_bytes"), 0, "{context}");
                assert!(load.count("messages") > 4, "{context}");
                assert_eq!(load.report["errors"], serde_json::json!({}), "{context}");
            }
        }
        // A client that is not ours, through the same link.
        if has("socat") {
            let to = format!("UDP4:{}:{udp}", V4[0]);
            let name = &link.names[1];
            let line = [
                "ip", "netns", "exec", name, "socat", "-b", "65507", "-", &to,
            ];
            let mut peer = Peer::start(&line);
            for size in [1, 1473, 8972] {
                let data = random_bytes(size);
                assert!(peer.ask(&data) == data, "{driver}: socat, {size} bytes");
            }
        }
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
    }
}
