//! Who is answered, how often, and what is counted.

use super::sources::NANOS_PER_SECOND;
use super::*;

const SECOND: Nanos = NANOS_PER_SECOND;
const START: Nanos = 1_000 * SECOND;

fn guard(settings: GuardSettings) -> Guard {
    let own = OwnPorts::new([
        "192.0.2.10".parse().unwrap(),
        "2001:db8::10".parse().unwrap(),
    ]);
    own.add(7000);
    Guard::new(settings, Arc::new(own), Arc::default(), 1)
}

fn limited(rate: u32) -> Guard {
    guard(GuardSettings {
        per_source_rate: Some(rate),
        limit_loopback: true,
    })
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn who_is_answered() {
    type Reason = fn(&GuardSnapshot) -> u64;
    let none: Reason = |_| 0;
    let own: Reason = |c| c.own_port;
    let responder: Reason = |c| c.known_responder;
    let source: Reason = |c| c.source_address;
    let group: Reason = |c| c.group_destination;
    let zero: Reason = |c| c.zero_port;
    let cases: &[(&str, Option<&str>, bool, Reason, &str)] = &[
        (
            "127.0.0.1:40000",
            Some("127.0.0.1"),
            true,
            none,
            "a client on this host",
        ),
        ("[::1]:40000", Some("::1"), true, none, "the same over IPv6"),
        (
            "198.51.100.1:40000",
            Some("192.0.2.10"),
            true,
            none,
            "a client elsewhere",
        ),
        (
            "198.51.100.1:40000",
            None,
            true,
            none,
            "unknown local address",
        ),
        (
            "198.51.100.1:7000",
            Some("192.0.2.10"),
            true,
            none,
            "our port, another host",
        ),
        (
            "[2001:db8:1::1]:7000",
            Some("2001:db8::10"),
            true,
            none,
            "the same over IPv6",
        ),
        (
            "127.0.0.1:7000",
            Some("127.0.0.1"),
            false,
            own,
            "our own port",
        ),
        (
            "127.9.9.9:7000",
            Some("127.0.0.1"),
            false,
            own,
            "any loopback address is this host",
        ),
        ("[::1]:7000", None, false, own, "our own port, IPv6"),
        (
            "192.0.2.10:7000",
            Some("127.0.0.1"),
            false,
            own,
            "an address of this host",
        ),
        (
            "[::ffff:192.0.2.10]:7000",
            None,
            false,
            own,
            "the same, mapped",
        ),
        (
            "[2001:db8::10]:7000",
            None,
            false,
            own,
            "an IPv6 address of this host",
        ),
        (
            "203.0.113.5:7000",
            Some("203.0.113.5"),
            false,
            own,
            "an address that is ours as it was sent to",
        ),
        (
            "127.0.0.1:7001",
            Some("127.0.0.1"),
            true,
            none,
            "a port next to ours",
        ),
        ("198.51.100.1:7", None, false, responder, "echo"),
        ("198.51.100.1:19", None, false, responder, "chargen"),
        ("127.0.0.1:53", None, false, responder, "DNS on this host"),
        ("[2001:db8:1::1]:123", None, false, responder, "NTP"),
        ("198.51.100.1:1900", None, false, responder, "SSDP"),
        ("198.51.100.1:11211", None, false, responder, "memcached"),
        (
            "198.51.100.1:8",
            None,
            true,
            none,
            "a port next to a responder",
        ),
        ("198.51.100.1:65535", None, true, none, "the last port"),
        ("198.51.100.1:0", None, false, zero, "no port"),
        ("0.0.0.0:40000", None, false, source, "unspecified"),
        ("0.1.2.3:40000", None, false, source, "this network"),
        ("[::]:40000", None, false, source, "unspecified, IPv6"),
        ("255.255.255.255:40000", None, false, source, "broadcast"),
        ("224.0.0.1:40000", None, false, source, "multicast"),
        (
            "239.255.255.250:40000",
            None,
            false,
            source,
            "the last multicast block",
        ),
        ("240.0.0.1:40000", None, false, source, "reserved"),
        ("[ff02::1]:40000", None, false, source, "multicast, IPv6"),
        (
            "[::ffff:224.0.0.1]:40000",
            None,
            false,
            source,
            "mapped multicast",
        ),
        (
            "223.255.255.255:40000",
            None,
            true,
            none,
            "the last unicast address",
        ),
        (
            "198.51.100.1:40000",
            Some("224.0.0.251"),
            false,
            group,
            "sent to a group",
        ),
        (
            "198.51.100.1:40000",
            Some("255.255.255.255"),
            false,
            group,
            "sent to everyone",
        ),
        (
            "198.51.100.1:40000",
            Some("ff02::fb"),
            false,
            group,
            "sent to a group, IPv6",
        ),
    ];
    for (peer, local, answered, reason, what) in cases {
        let mut guard = guard(GuardSettings::default());
        let local = local.map(|local| local.parse().unwrap());
        let admitted = guard.admit(START, address(peer), local, 3);
        assert_eq!(
            admitted,
            if *answered { 3 } else { 0 },
            "{what}: {peer} → {local:?}"
        );
        let counted = guard.counters().snapshot();
        let total: u64 = counted.values().iter().sum();
        let want = if *answered { (0, 0) } else { (3, 3) };
        assert_eq!(
            (reason(&counted), total),
            want,
            "{what}: counted by its reason"
        );
    }
}

#[test]
fn every_known_responder_is_refused() {
    for (port, why) in KNOWN_RESPONDERS {
        let mut guard = guard(GuardSettings::default());
        assert_eq!(
            guard.admit(START, SocketAddr::from(([198, 51, 100, 1], *port)), None, 1),
            0,
            "{why}"
        );
    }
    assert!(
        KNOWN_RESPONDERS.is_sorted_by_key(|(port, _)| *port),
        "readable: in order"
    );
}

#[test]
fn a_bucket_gives_its_burst_and_then_the_rate() {
    // (rate, what a full bucket holds)
    for (rate, burst) in [
        (1, 1),
        (10, 10),
        (64, 64),
        (100, 64),
        (640, 64),
        (10_000, 1_000),
        (1_000_000, 100_000),
    ] {
        let mut guard = limited(rate);
        let peer = address("198.51.100.1:40000");
        let far_more = 10_000_000;
        assert_eq!(
            guard.admit(START, peer, None, far_more),
            burst,
            "burst at {rate}/s"
        );
        assert_eq!(guard.admit(START, peer, None, 1), 0, "empty at {rate}/s");
        let tick = SECOND / u64::from(rate);
        assert_eq!(
            guard.admit(START + tick - 1, peer, None, 1),
            0,
            "too early at {rate}/s"
        );
        assert_eq!(
            guard.admit(START + tick, peer, None, 1),
            1,
            "one later at {rate}/s"
        );
        assert_eq!(
            guard.admit(START + 100 * SECOND, peer, None, far_more),
            burst,
            "full again at {rate}/s"
        );
    }
}

#[test]
fn a_loop_falls_to_the_rate_within_a_second() {
    let rate = 10_000;
    for speed in [11_000_u64, 20_000, 100_000, 1_000_000] {
        let mut guard = limited(rate);
        let peer = address("198.51.100.1:40000");
        let mut answered_in = [0_u64; 3];
        for n in 0..3 * speed {
            let admitted = guard.admit(START + n * SECOND / speed, peer, None, 1);
            answered_in[(n / speed) as usize] += admitted as u64;
        }
        assert!(answered_in[0] <= 11_000, "{speed}/s: {answered_in:?}");
        for second in &answered_in[1..] {
            assert!(
                (9_999..=10_001).contains(second),
                "{speed}/s: {answered_in:?}"
            );
        }
    }
}

#[test]
fn loopback_is_exempt_unless_asked() {
    for (peer, limit_loopback, exempt) in [
        ("127.0.0.1:40000", false, true),
        ("[::1]:40000", false, true),
        ("127.0.0.1:40000", true, false),
        ("[::1]:40000", true, false),
        ("198.51.100.1:40000", false, false),
    ] {
        let mut guard = guard(GuardSettings {
            per_source_rate: Some(100),
            limit_loopback,
        });
        let admitted = guard.admit(START, address(peer), None, 1_000);
        assert_eq!(
            admitted == 1_000,
            exempt,
            "{peer}, limit loopback: {limit_loopback}"
        );
    }
    let mut unlimited = guard(GuardSettings {
        per_source_rate: None,
        limit_loopback: true,
    });
    assert_eq!(
        unlimited.admit(START, address("198.51.100.1:1000"), None, 1 << 20),
        1 << 20
    );
}

#[test]
fn a_flood_of_forged_sources_lifts_no_limit_and_stops_nobody() {
    let mut guard = limited(10_000);
    let limited_source = address("192.0.2.1:40000");
    let honest = address("192.0.2.2:40000");
    assert_eq!(guard.admit(START, limited_source, None, 5_000), 1_000);
    // A million forged sources within one millisecond: a thousand million per second.
    let mut over = 0;
    for n in 0..1_000_000_u32 {
        let forged = SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 40000));
        let now = START + u64::from(n);
        assert_eq!(
            guard.admit(now, forged, None, 1),
            1,
            "a new source is answered"
        );
        if n % 1_000 == 0 {
            assert_eq!(
                guard.admit(now, honest, None, 1),
                1,
                "the honest source is answered"
            );
            over += guard.admit(now, limited_source, None, 1);
        }
    }
    // One millisecond at 10,000 per second is ten.
    assert!(over <= 10, "the limited source was answered {over} times");
    assert_eq!(
        guard.sources.as_ref().unwrap().places(),
        SOURCES_MAX,
        "memory does not grow"
    );
    assert!(guard.counters().snapshot().sources_evicted > 0);
    // A slow flood evicts nobody: buckets are full again, and entries free, in time.
    let evicted = guard.counters().snapshot().sources_evicted;
    for n in 0..100_000_u32 {
        let forged = SocketAddr::from((std::net::Ipv4Addr::from(0x0b00_0000 + n), 40000));
        let now = START + SECOND + u64::from(n) * 1_000;
        assert_eq!(guard.admit(now, forged, None, 1), 1);
    }
    assert_eq!(
        guard.counters().snapshot().sources_evicted,
        evicted,
        "at a million per second"
    );
}

#[test]
fn guards_add_up_over_shards() {
    let guards = Guards::new(GuardSettings::default(), Arc::default(), 2);
    for shard in 0..2 {
        assert_eq!(
            guards
                .guard(shard)
                .admit(START, address("198.51.100.1:19"), None, 4),
            0
        );
    }
    assert_eq!(
        guards.totals(),
        GuardSnapshot {
            known_responder: 8,
            ..GuardSnapshot::default()
        }
    );
    assert_eq!(GuardSnapshot::FIELDS.len(), guards.totals().values().len());
}
