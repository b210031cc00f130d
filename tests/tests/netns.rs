//! Echo across two network namespaces, over a link with the MTU of Ethernet: fragments, both IPs,
//! and connections steered to the CPU that received them, which loopback does not do.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::Command;

use ringmill_tests::link::{Link, V4, V6};
use ringmill_tests::net::{connect, random_bytes};
use ringmill_tests::peer::{Peer, has};
use ringmill_tests::program::{Load, PATIENCE, Running, Server, command};
use ringmill_tests::{drivers, skipped};

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
            let name = link.name(1);
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

/// Groups of both IP versions: found by the interface, lossless at a low rate, and timed, because both
/// ends have one kernel's clock.
#[test]
fn multicast_across_two_namespaces() {
    if !has("ip") {
        return;
    }
    let link = match Link::new() {
        Ok(link) => link,
        Err(reason) => return skipped(&format!("network namespaces: {reason}")),
    };
    let endpoints = ["udp://239.255.72.1:3334", "udp://[ff02::72:1]:3334"];
    for driver in drivers() {
        let mut sender = link.ringmill(0);
        sender.args([
            "serve",
            "multicast",
            "--json",
            "--rate",
            "500",
            "tcp://*:7400",
        ]);
        sender.args(endpoints);
        let mut sender = Running::start(&mut sender, &["--interface", "end", "--driver", driver]);
        sender.line_where("the last group", |line| line["endpoint"] == endpoints[1]);
        let streams = [
            format!("tcp://{}:7400", V4[0]),
            format!("tcp://[{}]:7400", V6[0]),
        ];
        let all = endpoints
            .iter()
            .copied()
            .chain(streams.iter().map(String::as_str));
        for endpoint in all {
            let mut load = link.ringmill(1);
            load.args([
                "load",
                "multicast",
                endpoint,
                "--json",
                "-c",
                "3",
                "-d",
                "1s",
            ]);
            if endpoint.starts_with("udp") {
                load.args(["--interface", "end"]);
            }
            let mut load = Running::start(&mut load, &["--warmup", "200ms", "--driver", driver]);
            let (code, lines) = load.wait(PATIENCE);
            let context = format!("{driver}, {endpoint}: {}", load.stderr());
            assert_eq!(code, 0, "{context}");
            let report = lines.last().expect("a report");
            let fates = &report["datagrams"];
            for fate in ["lost", "duplicated", "reordered"] {
                assert_eq!(fates[fate], 0, "{context}: {report}");
            }
            let messages = report["messages"].as_u64().expect("a count");
            assert!((750..3000).contains(&messages), "{context}: {report}");
            assert_eq!(
                report["response_time"]["count"], messages,
                "{context}: {report}"
            );
        }
        sender.signal(libc::SIGTERM);
        let (code, _) = sender.wait(PATIENCE);
        assert_eq!(code, 0, "{driver}: {}", sender.stderr());
    }
}

/// The CPUs of the two shards that ringmill plans here, when they are two.
fn cpus_of_two_shards() -> Result<[String; 2], String> {
    let output = command()
        .args(["topology", "--shards", "2", "--json"])
        .output()
        .expect("it can be started");
    let said: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("no plan: {error}"))?;
    let cpu = |shard: usize| said["plan"]["shards"][shard]["cpu"].to_string();
    match [cpu(0), cpu(1)] {
        [one, other] if one == other => Err(format!("CPU {one} is the only one")),
        two => Ok(two),
    }
}

/// How many connections each of two shards has accepted, by the server's metrics.
fn accepted(metrics: SocketAddr) -> [u64; 2] {
    let mut stream = connect(metrics);
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
        .expect("the server takes a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    ["shard=\"0\"", "shard=\"1\""].map(|shard| {
        let line = text.lines().find(|line| {
            line.starts_with("ringmill_service_accepted_total{service=\"echo\"")
                && line.contains(shard)
        });
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {shard} in\n{text}"))
    })
}

/// A server of two shards with `--steer-by-cpu`, and the address of its metrics.
fn steering_server(program: Command, host: &str, driver: &str) -> (Server, SocketAddr) {
    let endpoints = [format!("tcp://{host}:0"), format!("udp://{host}:0")];
    let flags = "--shards 2 --steer-by-cpu --per-source-rate 0 --metrics :0 --driver";
    let flags: Vec<&str> = flags.split(' ').chain([driver]).collect();
    let mut server = Server::start_as(program, &[&endpoints[0], &endpoints[1]], &flags);
    let line = server
        .running
        .line_where("its metrics", |line| line["type"] == "metrics");
    let url = line["url"].as_str().expect("a URL");
    let address = url
        .trim_start_matches("http://")
        .trim_end_matches("/metrics");
    (server, address.parse().expect("an address"))
}

#[test]
fn connections_go_to_the_shard_of_the_cpu_that_received_them() {
    const CONNECTIONS: u64 = 16;
    if !has("ip") {
        return;
    }
    let link = match Link::new() {
        Ok(link) => link,
        Err(reason) => return skipped(&format!("network namespaces: {reason}")),
    };
    let cpus = match cpus_of_two_shards() {
        Ok(cpus) => cpus,
        Err(reason) => return skipped(&reason),
    };
    for driver in drivers() {
        let (server, metrics) = steering_server(link.ringmill(0), V4[0], driver);
        let mut expected = [0; 2];
        for (shard, cpu) in cpus.iter().enumerate() {
            let connections = CONNECTIONS.to_string();
            let flags = ["-c", &connections, "-d", "300ms", "--cpus", cpu];
            let flags = [&flags[..], &["--driver", driver]].concat();
            for number in 0..2 {
                let load = Load::run_as(link.ringmill(1), server.endpoint(number), &flags);
                load.assert_clean();
            }
            // A packet over this link is received on the CPU that sent it.
            expected[shard] += CONNECTIONS;
            let landed = link.inside(0, || accepted(metrics));
            assert_eq!(landed, expected, "{driver}: loaded from CPU {cpu}");
        }
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        assert_eq!(stopped.counter("dropped_datagrams"), 0, "{driver}");
    }
}

/// On loopback the CPU that receives is that of whoever connects: one shard would get everything.
#[test]
fn loopback_connections_are_not_steered() {
    // So many on one of two shards by chance: once in 2^63.
    const CONNECTIONS: &str = "64";
    let cpus = match cpus_of_two_shards() {
        Ok(cpus) => cpus,
        Err(reason) => return skipped(&reason),
    };
    for driver in drivers() {
        let (server, metrics) = steering_server(command(), "127.0.0.1", driver);
        for number in 0..2 {
            let flags = ["-c", CONNECTIONS, "-d", "300ms", "--cpus", &cpus[0]];
            let flags = [&flags[..], &["--driver", driver]].concat();
            Load::run(server.endpoint(number), &flags).assert_clean();
        }
        let landed = accepted(metrics);
        assert!(
            landed.iter().all(|count| *count > 0),
            "{driver}: {landed:?}"
        );
        assert_eq!(landed.iter().sum::<u64>(), 64, "{driver}: {landed:?}");
        assert_eq!(server.stop().code, 0, "{driver}");
    }
}
