use super::*;

/// Command lines and the exit status that OB-UDPST 9.0.0 gave them; `scripts/udpst-options.sh` asks
/// it again.
const ACCEPTED: &str = include_str!("accepted.tsv");

fn parse(line: &str) -> Result<Options, OptionsError> {
    Options::parse(line.split_whitespace().map(OsString::from))
}

fn client(line: &str) -> Options {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn what_the_original_accepts_is_accepted() {
    let mut lines = 0;
    for line in ACCEPTED.lines().filter(|line| !line.starts_with('#')) {
        let (status, line) = line.split_once('\t').expect("status, tab, command line");
        let found = match parse(line) {
            Ok(options) if options.key_file.is_some() => "51",
            Ok(_) => "0",
            Err(_) => "50",
        };
        assert_eq!(found, status, "udpst {line}");
        lines += 1;
    }
    assert!(lines > 200, "{lines} lines");
}

#[test]
fn counts_of_connections() {
    for (line, least, most) in [
        ("-d h", 1, 1),
        ("-d h1 h2 h3", 3, 3),
        ("-d -C 1-1 h", 1, 1),
        ("-d -C 1 h1 h2 h3", 1, 3),
        ("-d -C 5 h1 h2", 5, 5),
        ("-d -C 2-8 h1 h2", 2, 8),
        ("-d -C 5-9 -C 2 h", 2, 2),
    ] {
        let options = client(line);
        assert_eq!(
            (options.connections_min, options.connections_max),
            (least, most),
            "{line}"
        );
    }
}

#[test]
fn servers_and_their_ports() {
    for (line, name, port) in [
        ("-d h", "h", 24601),
        ("-d h -p 5", "h", 5),
        ("-d h:7 -p 5", "h", 7),
        ("-d h:07x", "h", 7),
        ("-d [fe80::1%lo]:7", "fe80::1%lo", 7),
        ("-d fe80::1", "fe80::1", 24601),
        ("-d :7", "", 7),
        ("127.0.0.1:7", "127.0.0.1", 7),
    ] {
        let host = client(line).hosts.remove(0);
        assert_eq!((host.name.as_str(), host.port), (name, port), "{line}");
    }
}

#[test]
fn values_in_all_their_forms() {
    let rate = |line: &str| client(line).parameters(Direction::Downstream).rate;
    assert_eq!(rate("-d h"), Rate::Search { start: 0 });
    assert_eq!(rate("-d h -I 10"), Rate::Fixed(10));
    assert_eq!(rate("-d h -I@10"), Rate::Search { start: 10 });
    assert_eq!(
        rate("-d h -I @10 -I 7"),
        Rate::Search { start: 7 },
        "as there"
    );

    let modes = |line: &str| (client(line).first_mode, client(line).suppressed);
    assert_eq!(modes("-d h -i 3"), (3, 0));
    assert_eq!(modes("-d h -i -3"), (3, 3));
    assert_eq!(modes("-d h -i -3 -i 4"), (4, 3), "as there");

    let record = |line: &str| (client(line).record.unwrap(), client(line).record_all);
    assert_eq!(record("-d h -O f"), ("f".into(), false));
    assert_eq!(record("-d h -O +f"), ("f".into(), true));

    assert_eq!(client("-d h -m 0x22 -Z 3").dscp_ecn, 0x22);
    assert_eq!(client("-d h -m 010").dscp_ecn, 8);
    let form = |line: &str| client(line).json.map(|form| (form.brief, form.formatted));
    assert_eq!(form("-d h"), None);
    assert_eq!(form("-d h -f JSON"), Some((false, false)));
    assert_eq!(
        form("-d h -f jsonb -f jsonf"),
        Some((true, true)),
        "as there"
    );
    let family = client("-d h -64");
    assert_eq!((family.family, family.ipv6_only), (Some(Family::V4), true));
}

#[test]
fn a_server_has_limits_where_a_client_has_wishes() {
    let server = client("");
    assert_eq!((server.dscp_ecn, server.test_time_s), (255, 3600));
    assert_eq!(server.row.map(|row| row.row), Some(1152));
    let server = client("-B 100000 -I 500 -t 60 -m 3 -k 10");
    assert_eq!(
        (server.bandwidth_mbps, server.dscp_ecn, server.test_time_s),
        (100_000, 3, 60)
    );
    assert_eq!(
        (server.row.map(|row| row.row), server.log_bytes_max),
        (Some(500), 10_000)
    );
}

#[test]
fn words_are_ours() {
    let server =
        client("--stats-record 1 --stats-file=5 --test-ports 5-9 --rate-limit --auth-optional");
    assert_eq!(server.stats_record, Duration::from_secs(1));
    assert_eq!(server.stats_period, Duration::from_secs(5));
    assert_eq!(server.test_ports, Some((5, 9)));
    assert!(server.rate_limit && server.auth_optional);
    let ours =
        client("-d h --pacing busy --checksum --no-gso --shards 2 --cpus 0-1 --driver epoll");
    assert_eq!(ours.pacing, Pacing::Busy);
    assert!(ours.checksum && ours.no_gso);
    for line in [
        "-d h --pacing",
        "-d h --pacing fast",
        "-d h --checksum=1",
        "-d h --rate-limit",
        "--test-ports 9-5",
        "--stats-record 0",
        "--stats-record 10 --stats-file 5",
        "--shards 0",
        "--nothing",
        "--help",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn errors_say_what_to_mend() {
    for (line, says) in [
        ("-d -t 4 h", "ERROR: -t 4 is out of range (5-3600)"),
        ("-d h -k 10", "ERROR: -k is for a server only"),
        ("-C 2", "ERROR: -C is for a client only (-u or -d)"),
        ("-d h -t", "-t needs a value"),
        ("-w", "-w is no option"),
    ] {
        assert_eq!(parse(line).unwrap_err().to_string(), says, "{line}");
    }
}
