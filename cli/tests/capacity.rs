//! `ringmill capacity` as a user and a program see it: server and clients as processes on loopback.

use std::process::Stdio;

use serde_json::Value;

mod common;
use common::{Running, overrun_a_socket, run};

/// A server on a port of its own, and where that is.
fn serve(arguments: &[&str]) -> (Running, String) {
    let fixed = [
        "capacity",
        "server",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--shards",
        "1",
    ];
    let mut server = Running::start(&[&fixed, arguments].concat(), Stdio::null());
    let listening = server.event("listening");
    let address = listening["address"].as_str().unwrap().to_owned();
    (server, address)
}

/// Runs a client of so many words to its end: exit code, its events, errors.
fn measure(line: &str, address: &str) -> (i32, Vec<Value>, String) {
    let words: Vec<_> = line.split_whitespace().collect();
    let arguments = [&["capacity"], words.as_slice(), &[address, "--json"]].concat();
    let (code, output, errors) = run(&arguments);
    let events = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    (code, events.collect(), errors)
}

fn of_type<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    let found = events.iter().find(|event| event["type"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {events:#?}"))
}

#[test]
fn help_names_the_versions_that_take_part() {
    for command in [
        vec!["capacity", "--help"],
        vec!["capacity", "server", "--help"],
    ] {
        let (code, text, _) = run(&command);
        assert_eq!(code, 0);
        assert!(text.contains("from 8.2 on"), "{text}");
        assert!(!text.contains("8.0"), "{text}");
    }
}

#[test]
fn a_test_comes_from_the_source_that_was_named() {
    let (_server, address) = serve(&[]);
    for word in ["--source", "--from"] {
        let (code, events, errors) =
            measure(&format!("up --monitor -t 5s {word} 127.0.0.2"), &address);
        assert_eq!(code, 0, "{errors}");
        let local = of_type(&events, "activated")["local"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(local.starts_with("127.0.0.2:"), "{local}");
    }
}

#[test]
fn a_fixed_rate_says_what_it_needs_and_a_search_must_be_told() {
    let (mut server, address) = serve(&["--bandwidth", "20"]);
    // A search could need anything.
    let (code, events, _) = measure("down -t 5s", &address);
    assert_eq!(code, 1);
    let failed = of_type(&events, "failed");
    assert_eq!(failed["code"], 109);
    assert!(
        failed["words"].as_str().unwrap().contains("--bandwidth"),
        "{failed}"
    );
    let rejected = server.event("rejected");
    assert_eq!(rejected["code"], 9);
    // More than there is.
    let (code, events, _) = measure("down -t 5s --verify 100Mbit", &address);
    assert_eq!(code, 1);
    assert_eq!(of_type(&events, "failed")["code"], 110);
    for (line, mbps) in [
        ("up -t 5s --monitor", 1),
        ("down -t 5s --verify 10Mbit", 9),
        ("up -t 5s --row 3 --bandwidth 7Mbit", 7),
    ] {
        let (code, _, errors) = measure(line, &address);
        assert_eq!(code, 0, "{line}: {errors}");
        assert_eq!(server.event("accepted")["bandwidth_mbps"], mbps, "{line}");
    }
}

#[test]
fn doctor_shows_the_rules_for_a_firewall() {
    let line = "doctor --capacity --port 24601 --port 25000 --test-ports 20000-20999";
    let words: Vec<_> = line.split(' ').collect();
    let (code, text, _) = run(&words);
    assert_eq!(code, 0);
    for part in [
        "Firewall of a capacity server",
        "> nft add rule inet filter input udp dport '{ 24601, 25000, 20000-20999 }' accept",
        "> nft add rule inet capacity out udp sport '{ 24601, 25000, 20000-20999 }' notrack",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let (code, text, _) = run(&["doctor", "--capacity", "--json"]);
    assert_eq!(code, 0);
    let firewall = &serde_json::from_str::<Value>(&text).unwrap()["firewall"];
    assert_eq!(firewall["control_ports"], serde_json::json!([24601]));
    assert_eq!(firewall["given_by_kernel"], true);
    // Nobody who did not ask sees any of it.
    let (_, text, _) = run(&["doctor", "--json"]);
    let host: Value = serde_json::from_str(&text).unwrap();
    assert!(host.get("firewall").is_none());
    for wrong in [
        vec!["doctor", "--test-ports", "1-2"],
        vec!["doctor", "--capacity", "--test-ports", "2-1"],
        vec!["doctor", "--capacity", "--port", "0"],
    ] {
        assert_eq!(run(&wrong).0, 2, "{wrong:?}");
    }
}

#[test]
fn both_ends_say_what_the_host_loses() {
    let (mut server, address) = serve(&[]);
    let arguments = [
        "capacity",
        "up",
        "--monitor",
        "-t",
        "5s",
        "--json",
        &address,
    ];
    let mut client = Running::start(&arguments, Stdio::null());
    client.event("activated");
    client.event("interval");
    overrun_a_socket();
    let told = client.event("host_losses");
    let lost = told["network"]["receive_buffer_errors"].as_u64().unwrap();
    assert!(lost > 0, "{told}");
    let words = told["words"].as_str().unwrap();
    assert!(words.contains("UdpRcvbufErrors"), "{words}");
    let report = client.event("report");
    let sum = report["tests"][0]["network"]["receive_buffer_errors"]
        .as_u64()
        .unwrap();
    assert!(sum >= lost, "{report}");
    client.ended_well();
    let told = server.event("host_losses");
    assert!(
        told["network"]["receive_buffer_errors"].as_u64().unwrap() > 0,
        "{told}"
    );
}
