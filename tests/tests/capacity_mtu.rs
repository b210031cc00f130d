//! Capacity tests with datagrams larger than the MTU of the path: the kernel refuses their segmented
//! sends, so each goes by itself and in fragments, and whoever sends them says so.

use std::time::Duration;

use ringmill_tests::link::{Link, V4, V6};
use ringmill_tests::peer::has;
use ringmill_tests::program::{PATIENCE, Running};
use ringmill_tests::{drivers, skipped};
use serde_json::Value;

/// The first row whose packets are larger than 1500 bytes where they may be: 1597 and headers.
const ROW: &str = "1003";

/// What a run of both directions at once came to: lines of the server and of the client.
struct Run {
    server: Vec<Value>,
    client: Vec<Value>,
}

/// Both directions at once over the link, at a fixed row, with the same flags at both ends.
fn run(link: &Link, driver: &str, host: &str, flags: &[&str]) -> Run {
    let mut server = link.ringmill(0);
    server.args(["capacity", "server", "--json", "--driver", driver]);
    server.arg("--allow-unauthenticated-start").args(flags);
    let mut server = Running::start(&mut server, &[]);
    server.line(PATIENCE).expect("it listens");
    let mut client = link.ringmill(1);
    client.args(["capacity", "both", host, "--json", "--driver", driver]);
    client.args(["--row", ROW, "-t", "5s"]).args(flags);
    let mut client = Running::start(&mut client, &[]);
    let (code, lines) = client.wait(PATIENCE + Duration::from_secs(10));
    let context = format!("{driver}, {host}, {flags:?}");
    assert_eq!(code, 0, "{context}: {lines:#?} {}", client.stderr());
    server.signal(libc::SIGTERM);
    let (code, told) = server.wait(PATIENCE);
    assert_eq!(code, 0, "{context}: {}", server.stderr());
    Run {
        server: told,
        client: lines,
    }
}

/// The words that suggest smaller datagrams, in lines of a direction.
fn suggestions<'a>(lines: &'a [Value], kind: &str, key: &str) -> Vec<&'a str> {
    let lines = lines.iter().filter(|line| line["type"] == kind);
    lines
        .filter_map(|line| line[key].as_str())
        .filter(|words| words.contains("--no-jumbo"))
        .collect()
}

#[test]
fn datagrams_beyond_the_mtu_go_one_by_one_and_both_ends_say_so() {
    if !has("ip") {
        return;
    }
    let link = match Link::new() {
        Ok(link) => link,
        Err(reason) => return skipped(&format!("network namespaces: {reason}")),
    };
    let drivers = drivers();
    for driver in &drivers {
        for host in [V4[0], V6[0]] {
            let run = run(&link, driver, host, &[]);
            let context = format!("{driver}, {host}");
            // The server sends downstream, the client upstream: each says it of itself, once.
            let by_server = suggestions(&run.server, "not_segmented", "text");
            let by_client = suggestions(&run.client, "warning", "words");
            assert_eq!(by_server.len(), 1, "{context}: {:#?}", run.server);
            assert_eq!(by_client.len(), 1, "{context}: {:#?}", run.client);
            let ended: Vec<_> = (run.server.iter())
                .filter(|line| line["type"] == "ended")
                .collect();
            assert_eq!(ended.len(), 2, "{context}");
            let report = run.client.last().expect("a report");
            for test in report["tests"].as_array().expect("two tests") {
                let mbps = test["capacity_mbps"].as_f64();
                assert!(mbps > Some(0.0), "{context}: nothing arrived: {test:#}");
            }
        }
    }
    // And with datagrams that fit there is nothing to say.
    if let Some(driver) = drivers.first() {
        let run = run(&link, driver, V4[0], &["--no-jumbo"]);
        assert!(suggestions(&run.server, "not_segmented", "text").is_empty());
        assert!(suggestions(&run.client, "warning", "words").is_empty());
    }
}
