use super::*;
use ringmill_engine::time::NANOS_PER_SECOND;

const SAMPLE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/udpst/server_stats.json"
));

fn at(seconds: u64) -> Instants {
    Instants {
        now: seconds * NANOS_PER_SECOND,
        wall: WallTime {
            sec: 1_795_210_800 + seconds as u32,
            nsec: 308_899_000,
        },
    }
}

fn about() -> About {
    About {
        host_name: "127.0.0.1".into(),
        host_address: "127.0.0.1".into(),
        control_port: 24650,
        jumbo: true,
        traditional: false,
        gso: true,
        tests_max: 254,
        bandwidth_mbps: 500,
    }
}

fn periods(record: u64, file: u64, first_earlier: u64) -> Periods {
    let [record, file, first_earlier] = [record, file, first_earlier].map(Duration::from_secs);
    Periods {
        record,
        file,
        first_earlier,
    }
}

/// What a text is beside its numbers and zones.
fn skeleton(text: &str) -> String {
    let mut skeleton = String::new();
    for character in text.chars() {
        let character = if character.is_ascii_digit() {
            '#'
        } else {
            character
        };
        if character != '#' || !skeleton.ends_with('#') {
            skeleton.push(character);
        }
    }
    skeleton.replace("+#:#\"", "Z\"").replace("-#:#\"", "Z\"")
}

#[test]
fn a_file_has_the_structure_of_the_originals() {
    let directory = tempfile::tempdir().unwrap();
    let pattern = directory.path().join("stats-%s.json");
    let mut stats =
        StatsFile::open(pattern.as_os_str(), about(), periods(10, 300, 290), at(0)).unwrap();
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "the trial is removed"
    );
    assert_eq!(stats.record_due(), 10 * NANOS_PER_SECOND);

    let mut counters = ServerSnapshot {
        tx_datagrams: 126_655,
        tx_ip_bytes: 161_412_500,
        tx_bursts: 24_901,
        setup_requests_received: 3,
        ..ServerSnapshot::default()
    };
    counters.running = 1;
    counters.booked_downstream_mbps = 100;
    stats.sample(&counters);
    counters.running = 0;
    stats.sample(&counters);
    let peaks = PeaksSnapshot {
        tx_burst_size: 10,
        ..PeaksSnapshot::default()
    };
    stats.record(&counters, &peaks, at(10)).unwrap();

    let files: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(files.len(), 1);
    assert_eq!(
        files[0].file_name(),
        "stats-1795210800.json",
        "whole periods"
    );
    let text = std::fs::read_to_string(files[0].path()).unwrap();
    assert_eq!(skeleton(&text), skeleton(SAMPLE));
    for line in [
        "\"connection_count\": 1,",
        "\"downstream_bandwidth\": 100,",
        "\"tx_burst_size\": 10,",
        "\"tx_ip_rate_mbps\": 129.13,",
        "\"tx_datagram_rate\": 12665.50\n",
        "\"tx_burst_rate\": 2490.10,",
        "\"tx_burst_size\": 5.09,",
        "\"requests_received\": 3,",
        "\"process_uptime\": 10,",
    ] {
        assert!(text.contains(line), "{line}");
    }
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(parsed["data_records"].as_array().map(Vec::len), Some(1));
}

#[test]
fn records_count_for_themselves_and_files_follow_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let pattern = directory.path().join("%s");
    let mut stats =
        StatsFile::open(pattern.as_os_str(), about(), periods(10, 20, 0), at(0)).unwrap();
    let mut counters = ServerSnapshot::default();
    for second in [10, 20, 30, 40] {
        counters.status_rx_messages += 100 * second;
        stats
            .record(&counters, &PeaksSnapshot::default(), at(second))
            .unwrap();
    }
    let mut rates = Vec::new();
    for name in ["1795210820", "1795210840"] {
        let text = std::fs::read_to_string(directory.path().join(name)).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["data_record_count"], 2);
        for record in parsed["data_records"].as_array().unwrap() {
            rates.push(
                record["average"]["status"]["rx_message_rate"]
                    .as_f64()
                    .unwrap(),
            );
        }
    }
    assert_eq!(rates, [100.0, 200.0, 300.0, 400.0]);
}

#[test]
fn a_place_that_is_not_there_is_told_at_once_and_later() {
    let directory = tempfile::tempdir().unwrap();
    let gone = directory.path().join("gone");
    let pattern = gone.join("stats");
    let open = || StatsFile::open(pattern.as_os_str(), about(), periods(1, 1, 0), at(0));
    let (name, _) = open().unwrap_err();
    assert_eq!(name, gone.join("stats.tmp"));
    std::fs::create_dir(&gone).unwrap();
    let mut stats = open().unwrap();
    std::fs::remove_dir(&gone).unwrap();
    let counters = ServerSnapshot::default();
    assert!(
        stats
            .record(&counters, &PeaksSnapshot::default(), at(1))
            .is_err()
    );
    // What could not be written is given up, and the next file can come.
    std::fs::create_dir(&gone).unwrap();
    stats
        .record(&counters, &PeaksSnapshot::default(), at(2))
        .unwrap();
    let text = std::fs::read_to_string(gone.join("stats")).unwrap();
    assert!(text.contains("\"data_record_count\": 1,"));
}
