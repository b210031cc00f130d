//! Every byte verified at full load: none wrong, none lost, and nothing left behind in the server.

use ringmill_tests::program::{Load, Server};
use ringmill_tests::{drivers, long};

/// What a server's memory may have grown by after a load, over what it was when warm: the
/// allocator keeps some of what was freed. A leak of one buffer in a thousand would be far past it.
const MEMORY_GROWTH_BYTES_MAX: u64 = 32 << 20;

fn duration() -> &'static str {
    if long() { "60s" } else { "5s" }
}

#[test]
fn streams_verified_at_full_load_leave_nothing_behind() {
    for driver in drivers() {
        let mut server = Server::start(&["tcp://127.0.0.1:0"], &["--driver", driver]);
        let endpoint = server.endpoint(0).to_owned();
        let load = |time: &str, more: &[&str]| {
            let flags = ["--driver", driver, "-d", time];
            Load::run(&endpoint, &[&flags[..], more].concat())
        };
        // Warm: pools and tables have their size, files of the first use are open.
        load("500ms", &["-c", "100", "--depth", "16"]).assert_clean();
        server.counters_when_closed(100);
        let files = server.running.files();
        let memory = server.running.memory_bytes();

        // Small messages, many outstanding; then messages larger than a receive buffer.
        load(duration(), &["-c", "100", "--depth", "16"]).assert_clean();
        load("1s", &["-c", "10", "--depth", "2", "-s", "100k"]).assert_clean();

        let counters = server.counters_when_closed(210);
        assert_eq!(
            counters["received_bytes"], counters["sent_bytes"],
            "{driver}"
        );
        assert_eq!(counters["accepted"], 210, "{driver}: {counters}");
        assert_eq!(counters["closed"], 210, "{driver}: {counters}");
        assert_eq!(counters["failed"], 0, "{driver}: {counters}");
        assert_eq!(server.running.files(), files, "{driver}: files leaked");
        let after = server.running.memory_bytes();
        assert!(
            after <= memory + MEMORY_GROWTH_BYTES_MAX,
            "{driver}: memory went from {memory} to {after} bytes"
        );
        let stopped = server.stop();
        assert_eq!((stopped.code, stopped.counter("open")), (0, 0), "{driver}");
        assert_eq!(stopped.stderr, "", "{driver}");
    }
}

#[test]
fn datagrams_verified_at_full_load() {
    for driver in drivers() {
        let mut server = Server::start(&["udp://127.0.0.1:0"], &["--driver", driver]);
        let endpoint = server.endpoint(0).to_owned();
        for (size, time) in [("32", duration()), ("1222", "2s")] {
            let files = server.running.files();
            let flags = ["-c", "20", "--depth", "16", "-s", size, "-d", time];
            let load = Load::run(&endpoint, &[&flags[..], &["--driver", driver]].concat());
            // A full queue may lose datagrams; none may be wrong, doubled or strange.
            assert_eq!(load.code, 0, "{load:#?}");
            assert_eq!(load.count("wrong_bytes"), 0, "{load:#?}");
            assert_eq!(load.count("datagrams.duplicated"), 0, "{load:#?}");
            assert_eq!(load.report["errors"], serde_json::json!({}), "{load:#?}");
            assert!(load.count("messages") > 1000, "{load:#?}");
            assert_eq!(server.running.files(), files, "{driver}: files leaked");
        }
        let line = server.running.line_where("the last second", |line| {
            line["counters"]["received_datagrams"].as_u64() > Some(0)
                && line["datagrams_per_s"] == 0.0
        });
        let counters = &line["counters"];
        let gone = counters["send_full"].as_u64().unwrap_or(0)
            + counters["dropped_datagrams"].as_u64().unwrap_or(0);
        let received = counters["received_datagrams"].as_u64();
        let sent = counters["sent_datagrams"].as_u64().map(|sent| sent + gone);
        assert_eq!(received, sent, "{driver}: {counters}");
        assert_eq!(server.stop().code, 0, "{driver}");
    }
}
