//! From text to an [`Endpoint`]. Looks at the text alone; must never ask the host.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use super::{Endpoint, EndpointError, Host, Scheme, Transport};

/// Longest path of a Unix socket: `sun_path` holds 108 bytes with its closing NUL (unix(7)).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// Longest name of a network interface: `IFNAMSIZ` is 16 with its closing NUL (netdevice(7)).
pub const ZONE_BYTES_MAX: usize = 15;

/// Longest host name in text form (RFC 1035 §2.3.4: 255 octets on the wire).
pub const NAME_BYTES_MAX: usize = 253;

/// Longest label of a host name (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;

impl Endpoint {
    /// Reads an endpoint whose scheme may be left out: `:7000` with [`Scheme::Tcp`] is
    /// `tcp://:7000`. A bare path is never taken for a Unix socket; `unix:` says so.
    ///
    /// # Errors
    /// [`EndpointError`] says what is wrong with the text and what to write.
    pub fn parse_with(text: &str, default: Option<Scheme>) -> Result<Self, EndpointError> {
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        if let Some(path) = strip_prefix_ignore_case(text, "unix:") {
            return parse_unix(path);
        }
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (parse_scheme(scheme)?, rest),
            None => match default {
                Some(Scheme::Tcp) => (Transport::Tcp, text),
                Some(Scheme::Udp) => (Transport::Udp, text),
                Some(Scheme::Unix) => return parse_unix(text),
                None => {
                    return Err(EndpointError::NoScheme {
                        text: text.to_owned(),
                    });
                }
            },
        };
        if let Some(slash) = rest.find('/') {
            return Err(EndpointError::TrailingPath {
                text: text.to_owned(),
                rest: rest[slash..].to_owned(),
            });
        }
        let (host, port) = parse_host_port(rest, text)?;
        Ok(Endpoint::Inet {
            transport,
            host,
            port,
        })
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        Endpoint::parse_with(text, None)
    }
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix)
        .then(|| &text[prefix.len()..])
}

fn parse_scheme(scheme: &str) -> Result<Transport, EndpointError> {
    match scheme.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        "tls" => Err(EndpointError::NotYet {
            scheme: "tls",
            instead: "tcp",
        }),
        "dtls" => Err(EndpointError::NotYet {
            scheme: "dtls",
            instead: "udp",
        }),
        _ => Err(EndpointError::UnknownScheme {
            scheme: scheme.to_owned(),
        }),
    }
}

fn parse_unix(text: &str) -> Result<Endpoint, EndpointError> {
    let fail = |reason| EndpointError::BadPath {
        path: text.to_owned(),
        reason,
    };
    // `unix:///path` has an empty host between the second and the third slash (RFC 8089 §2).
    let path = match text.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(_) => {
            return Err(fail(
                "a host has no place here; write unix:/path or unix:///path",
            ));
        }
        None => text,
    };
    if path.is_empty() {
        return Err(fail("it is empty; write unix:/path"));
    }
    if path.starts_with('@') || path.contains('\0') {
        return Err(fail(
            "abstract sockets and NUL are not supported; give a path in a folder",
        ));
    }
    // `//x` printed after `unix:` would read as a host, so several leading slashes become one.
    let path = match path.trim_start_matches('/') {
        relative if relative.len() == path.len() => relative.to_owned(),
        rest => format!("/{rest}"),
    };
    if path.ends_with('/') {
        return Err(fail("it is a folder; add the name of the socket"));
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(fail(
            "it is longer than the 107 bytes of the kernel; use a shorter folder",
        ));
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

fn parse_host_port(text: &str, whole: &str) -> Result<(Host, u16), EndpointError> {
    if let Some(inner) = text.strip_prefix('[') {
        let Some((address, port)) = inner.split_once(']') else {
            return Err(EndpointError::BadAddress {
                address: text.to_owned(),
            });
        };
        let host = parse_ipv6(address)?;
        let Some(port) = port.strip_prefix(':') else {
            return Err(if port.is_empty() {
                EndpointError::NoPort {
                    text: whole.to_owned(),
                }
            } else {
                EndpointError::BadPort {
                    port: port.to_owned(),
                }
            });
        };
        return Ok((host, parse_port(port)?));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        // A lone number was meant as a port, all else as a host.
        return Err(EndpointError::NoPort {
            text: whole.to_owned(),
        });
    };
    let host = match host {
        "" => Host::Loopback,
        "*" => Host::Any,
        _ if host.contains(':') => {
            return Err(EndpointError::NeedsBrackets {
                host: host.to_owned(),
            });
        }
        _ => parse_ipv4_or_name(host)?,
    };
    Ok((host, parse_port(port)?))
}

fn parse_port(text: &str) -> Result<u16, EndpointError> {
    let bad = || EndpointError::BadPort {
        port: text.to_owned(),
    };
    // u16's own parser would also take "+7".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

fn parse_ipv6(text: &str) -> Result<Host, EndpointError> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().map_err(|_| EndpointError::BadAddress {
        address: text.to_owned(),
    })?;
    let Some(zone) = zone else {
        return Ok(Host::Addr(address.into(), None));
    };
    let fail = |reason| EndpointError::BadZone {
        address,
        zone: zone.to_owned(),
        reason,
    };
    // RFC 4291 §2.7: the low four bits of the second byte are a multicast address's scope.
    let link_local_group = address.is_multicast() && address.octets()[1] & 0x0f == 2;
    if !address.is_unicast_link_local() && !link_local_group {
        return Err(fail(
            "only a link-local address (fe80::…, ff02::…) has one; leave it out",
        ));
    }
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'[' | b']' | b'/');
    if zone.is_empty() || zone.len() > ZONE_BYTES_MAX || !zone.bytes().all(allowed) {
        return Err(fail(
            "give an interface's name or index, as in [fe80::1%eth0]",
        ));
    }
    Ok(Host::Addr(address.into(), Some(zone.to_owned())))
}

fn parse_ipv4_or_name(text: &str) -> Result<Host, EndpointError> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Addr(address.into(), None));
    }
    let labels = text.strip_suffix('.').unwrap_or(text);
    let last = labels.rsplit('.').next().unwrap_or_default();
    // No top-level domain is a number (RFC 3696 §2): `1.2.3` is a mistyped address, not a name.
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EndpointError::BadAddress {
            address: text.to_owned(),
        });
    }
    let good_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if labels.len() > NAME_BYTES_MAX || !labels.split('.').all(good_label) {
        return Err(EndpointError::BadName {
            name: text.to_owned(),
        });
    }
    Ok(Host::Name(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn inet(transport: Transport, host: Host, port: u16) -> Endpoint {
        Endpoint::Inet {
            transport,
            host,
            port,
        }
    }

    fn v6(text: &str, zone: Option<&str>) -> Host {
        Host::Addr(IpAddr::V6(text.parse().unwrap()), zone.map(str::to_owned))
    }

    #[test]
    fn texts_and_what_they_mean() {
        use Transport::{Tcp, Udp};
        let v4 = |text: &str| Host::Addr(IpAddr::V4(text.parse().unwrap()), None);
        for (text, expected) in [
            ("tcp://:7000", inet(Tcp, Host::Loopback, 7000)),
            ("udp://:7000", inet(Udp, Host::Loopback, 7000)),
            ("udp://*:7000", inet(Udp, Host::Any, 7000)),
            ("tcp://*:0", inet(Tcp, Host::Any, 0)),
            ("tcp://1.2.3.4:7", inet(Tcp, v4("1.2.3.4"), 7)),
            ("tcp://0.0.0.0:65535", inet(Tcp, v4("0.0.0.0"), 65535)),
            ("tcp://[::1]:7", inet(Tcp, v6("::1", None), 7)),
            (
                "tcp://[fe80::1%eth0]:7",
                inet(Tcp, v6("fe80::1", Some("eth0")), 7),
            ),
            (
                "udp://[ff02::1%2]:7",
                inet(Udp, v6("ff02::1", Some("2")), 7),
            ),
            (
                "tcp://localhost:80",
                inet(Tcp, Host::Name("localhost".into()), 80),
            ),
            (
                "tcp://a-b.example.:80",
                inet(Tcp, Host::Name("a-b.example.".into()), 80),
            ),
            ("TCP://:1", inet(Tcp, Host::Loopback, 1)),
            (
                "unix:/run/echo.sock",
                Endpoint::Unix("/run/echo.sock".into()),
            ),
            (
                "unix:///run/echo.sock",
                Endpoint::Unix("/run/echo.sock".into()),
            ),
            ("unix:echo.sock", Endpoint::Unix("echo.sock".into())),
            ("unix:////run//x", Endpoint::Unix("/run//x".into())),
        ] {
            assert_eq!(text.parse::<Endpoint>().as_ref(), Ok(&expected), "{text}");
            assert_eq!(
                expected.to_string().parse(),
                Ok(expected),
                "{text} printed and read again"
            );
        }
    }

    #[test]
    fn a_default_scheme_fills_the_gap() {
        for (text, default, expected) in [
            (":7000", Scheme::Tcp, "tcp://:7000"),
            ("*:7000", Scheme::Udp, "udp://*:7000"),
            ("[::1]:5", Scheme::Udp, "udp://[::1]:5"),
            ("host:5", Scheme::Tcp, "tcp://host:5"),
            ("udp://:1", Scheme::Tcp, "udp://:1"),
            ("/run/x", Scheme::Unix, "unix:/run/x"),
        ] {
            let endpoint = Endpoint::parse_with(text, Some(default)).unwrap();
            assert_eq!(endpoint.to_string(), expected);
        }
    }

    #[test]
    fn errors_name_the_cause_and_the_remedy() {
        for (text, words) in [
            ("", "tcp://:7000"),
            (":7000", "write tcp://:7000 or udp://:7000"),
            ("http://x:1", "'http' is not a transport"),
            ("tls://:1", "not yet in this version: use tcp://"),
            ("dtls://:1", "not yet in this version: use udp://"),
            ("tcp://host", "has no port"),
            ("tcp://[::1]", "has no port"),
            ("tcp://:", "port ''"),
            ("tcp://:65536", "port '65536'"),
            ("tcp://:+7", "port '+7'"),
            ("tcp://::1:7", "brackets"),
            ("tcp://[::1", "not an IP address"),
            ("tcp://[1.2.3.4]:7", "not an IP address"),
            ("tcp://1.2.3:7", "not an IP address"),
            ("tcp://1.2.3.256:7", "not an IP address"),
            ("tcp://[::1%lo]:7", "only a link-local address"),
            ("tcp://[fe80::1%]:7", "interface's name"),
            ("tcp://[fe80::1%sixteen-letters!]:7", "interface's name"),
            ("tcp://a b:7", "not a host name"),
            ("tcp://-a:7", "not a host name"),
            ("tcp://a..b:7", "not a host name"),
            ("tcp://:7/x", "leave out what follows the port, from '/x'"),
            ("unix:", "empty"),
            ("unix://host/path", "unix:///path"),
            ("unix:@name", "abstract"),
            ("unix:/run/", "folder"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(
                error.contains(words),
                "{text:?} gave {error:?}, which lacks {words:?}"
            );
        }
        let long = format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX));
        assert!(
            long.parse::<Endpoint>()
                .unwrap_err()
                .to_string()
                .contains("shorter")
        );
        assert!(long[..long.len() - 1].parse::<Endpoint>().is_ok());
    }

    #[test]
    fn files_carry_endpoints_as_text() {
        let endpoint: Endpoint = serde_json::from_str("\"udp://*:7\"").unwrap();
        assert_eq!(serde_json::to_string(&endpoint).unwrap(), "\"udp://*:7\"");
        let error = serde_json::from_str::<Endpoint>("\"tls://:7\"").unwrap_err();
        assert!(error.to_string().contains("not yet in this version"));
    }

    fn any_host() -> impl Strategy<Value = Host> {
        let link_local = |last: u64| {
            let bits = (0xfe80_u128 << 112) | u128::from(last);
            IpAddr::V6(Ipv6Addr::from(bits))
        };
        prop_oneof![
            Just(Host::Loopback),
            Just(Host::Any),
            any::<Ipv4Addr>().prop_map(|a| Host::Addr(a.into(), None)),
            any::<Ipv6Addr>().prop_map(|a| Host::Addr(a.into(), None)),
            (any::<u64>(), "[a-z][a-z0-9.@_-]{0,14}")
                .prop_map(move |(last, zone)| Host::Addr(link_local(last), Some(zone))),
            "[a-z][a-z0-9_]{0,9}(\\.[a-z][a-z0-9]{0,9}){0,3}".prop_map(Host::Name),
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(host in any_host(), port: u16, udp: bool) {
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            let endpoint = inet(transport, host, port);
            prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
        }

        #[test]
        fn no_text_panics_and_what_is_read_is_stable(text in "\\PC{0,40}") {
            for default in [None, Some(Scheme::Tcp), Some(Scheme::Unix)] {
                if let Ok(endpoint) = Endpoint::parse_with(&text, default) {
                    prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
                }
            }
        }

        #[test]
        fn near_misses_do_not_panic(
            text in "(tcp|udp|unix|tls):(//)?(\\*|\\[[0-9a-f:%]{0,12}\\]?|[a-z0-9.:-]{0,12}):?[0-9]{0,6}"
        ) {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
            }
        }
    }
}
