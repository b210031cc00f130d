//! The ports whose usual services answer what they did not ask for.

/// Source ports that are never answered, and why. A port is here when a service that usually lives
/// there answers datagrams that nobody there asked for, so that an answer of ours could be answered.
///
/// Honest clients that this costs: programs that use one port both ways (ntpd on 123, an IKE or
/// SIP agent on 500 or 5060, a name server with a fixed query port), which have no business with a
/// test service; and, where the range of ephemeral ports was widened below 32,768, or a translating
/// gateway picks any port, the few flows in 64,000 that are given one of the ports above 1,023.
/// Such a flow is seen in [`known_responder`](super::GuardSnapshot::known_responder).
pub const KNOWN_RESPONDERS: &[(u16, &str)] = &[
    (0, "not a port: cannot be answered"),
    (7, "echo answers everything (RFC 862)"),
    (11, "active users answers everything (RFC 866)"),
    (13, "daytime answers everything (RFC 867)"),
    (17, "quote of the day answers everything (RFC 865)"),
    (
        19,
        "character generator answers everything, with more (RFC 864)",
    ),
    (37, "time answers everything (RFC 868)"),
    (
        53,
        "DNS: some servers answer errors with errors (CVE-2024-2169)",
    ),
    (
        69,
        "TFTP: some servers answer errors with errors (CVE-2024-2169)",
    ),
    (111, "port mapper: answers a small call with a list"),
    (
        123,
        "NTP: old servers answer errors with errors (CVE-2009-3563)",
    ),
    (
        137,
        "NetBIOS name service: answers a node status query with a list",
    ),
    (138, "NetBIOS datagram service: answers with errors"),
    (161, "SNMP: answers a bulk request with much more"),
    (
        389,
        "connectionless LDAP: answers a small search with much more",
    ),
    (
        427,
        "service location: answers with registered lists (CVE-2023-29552)",
    ),
    (
        500,
        "IKE: answers what it cannot parse with a notification, and repeats itself",
    ),
    (520, "RIPv1: answers a request with the whole table"),
    (623, "IPMI: answers a ping"),
    (1434, "SQL Server browser: answers one byte with a list"),
    (1900, "SSDP: answers one search with many datagrams"),
    (
        3702,
        "WS-Discovery: answers what it cannot parse with much more",
    ),
    (5060, "SIP: answers and repeats"),
    (5353, "multicast DNS: answers unicast queries too"),
    (
        11211,
        "memcached: answers a small request with up to a megabyte",
    ),
];
