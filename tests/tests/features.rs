//! Every optional io_uring feature refused, one by one and all at once, on both sides: the fallback
//! echoes byte-exact, too.

use ringmill_tests::drivers;
use ringmill_tests::net::{assert_stream_echo, connect, random_bytes};
use ringmill_tests::program::{Load, Server};

const FEATURES: [&str; 8] = [
    "defer_taskrun",
    "coop_taskrun",
    "registered_ring",
    "direct_descriptors",
    "incremental_buffers",
    "bundles",
    "ring_messages",
    "socket_commands",
];

fn assert_works(options: &[&str]) {
    let flags = [&["--driver", "uring", "--shards", "2"], options].concat();
    let server = Server::start(&["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], &flags);
    assert_stream_echo(connect(server.address("tcp")), &random_bytes(1_000_003));
    for (number, size) in [(0, "32"), (1, "1222")] {
        let run = [
            "-c", "20", "--depth", "4", "-s", size, "-d", "200ms", "--reset",
        ];
        let load = Load::run(server.endpoint(number), &[&run[..], &flags].concat());
        assert_eq!(load.code, 0, "{options:?}: {load:#?}");
        assert_eq!(load.count("wrong_bytes"), 0, "{options:?}: {load:#?}");
        assert!(load.count("messages") > 0, "{options:?}: {load:#?}");
    }
    let stopped = server.stop();
    assert_eq!(
        (stopped.code, stopped.counter("open")),
        (0, 0),
        "{options:?}: {}",
        stopped.stderr
    );
    assert_eq!(stopped.stderr, "", "{options:?}");
}

#[test]
fn each_feature_has_a_fallback_that_works() {
    if !drivers().contains(&"uring") {
        return;
    }
    for feature in FEATURES {
        assert_works(&["--uring-without", feature]);
    }
}

#[test]
fn without_any_of_them() {
    if !drivers().contains(&"uring") {
        return;
    }
    let all: Vec<&str> = FEATURES
        .into_iter()
        .flat_map(|feature| ["--uring-without", feature])
        .collect();
    assert_works(&all);
}

/// The list above is the program's: an unknown name is refused with all that there are.
#[test]
fn the_list_of_features_is_complete() {
    let output = ringmill_tests::program::command()
        .args([
            "serve",
            "echo",
            "tcp://127.0.0.1:0",
            "--uring-without",
            "nonsense",
        ])
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let (_, list) = said.split_once("one of ").expect("the names");
    let list = list.lines().next().unwrap_or("");
    let names: Vec<&str> = list.split(", ").map(str::trim).collect();
    assert_eq!(names, FEATURES, "{said}");
}
