//! Whether the addresses that a soak connects from are on this host, found out before it begins: each
//! connect from one that is not would fail.

use std::io;
use std::net::{IpAddr, UdpSocket};

use ringmill_protocols::soak::Sources;

use crate::exit::UsageError;

/// Addresses tried of one range: three system calls each, so all of them take a fraction of a second.
/// Of a larger range so many are tried, evenly spread.
const TRIED_MAX: u64 = 65_536;
/// Missing addresses that are named.
const NAMED_MAX: usize = 3;

/// Refuses addresses that are not on this host.
///
/// # Errors
/// Which, and what adds them.
pub(super) fn check(
    sources: &[Sources],
    is_here: impl Fn(IpAddr) -> bool,
) -> Result<(), UsageError> {
    let mut missing: Vec<IpAddr> = Vec::new();
    let (mut missing_count, mut tried_count) = (0_u64, 0_u64);
    for range in sources {
        let (count, first) = (range.count(), range.address(0));
        if is_loopback(first) && is_loopback(range.address(count - 1)) {
            continue;
        }
        let tried = count.min(TRIED_MAX);
        tried_count += tried;
        for number in 0..tried {
            // The first and the last are always among them.
            let at = match tried {
                1 => 0,
                _ => number * (count - 1) / (tried - 1),
            };
            let address = range.address(at);
            if !is_here(address) {
                missing_count += 1;
                if missing.len() < NAMED_MAX {
                    missing.push(address);
                }
            }
        }
    }
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let mut names: Vec<_> = missing.iter().map(ToString::to_string).collect();
    let more = missing_count - missing.len() as u64;
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    let bits = if first.is_ipv4() { 32 } else { 128 };
    let each = if missing_count > 1 {
        " (and so on)"
    } else {
        ""
    };
    Err(UsageError(format!(
        "--sources: {missing_count} of {tried_count} addresses are not on this host: {}; add them to \
         its network card: `ip address add {first}/{bits} dev INTERFACE`{each}",
        names.join(", ")
    )))
}

/// Every address of 127.0.0.0/8 is this host's without being listed anywhere.
fn is_loopback(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_loopback())
}

/// Whether a socket can have this address, which also knows of addresses that only a route makes local.
pub(super) fn is_here(address: IpAddr) -> bool {
    // Any other error is not about the address; connecting will tell.
    UdpSocket::bind((address, 0)).map_or_else(
        |error| error.kind() != io::ErrorKind::AddrNotAvailable,
        |_| true,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(texts: &[&str], here: &[&str]) -> String {
        let sources: Vec<Sources> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let here: Vec<IpAddr> = here.iter().map(|text| text.parse().unwrap()).collect();
        let checked = check(&sources, |address| here.contains(&address));
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn missing_addresses_are_named_with_the_command_that_adds_them() {
        for (texts, here, parts) in [
            (&["127.1.0.0/16"][..], &[][..], &[][..]),
            (&["10.0.0.1"], &["10.0.0.1"], &[]),
            (
                &["10.0.0.1", "10.0.0.7"],
                &["10.0.0.1"],
                &[
                    "1 of 2 addresses",
                    ": 10.0.0.7;",
                    "`ip address add 10.0.0.7/32 dev INTERFACE`",
                ],
            ),
            (
                &["127.0.0.0/8", "10.0.0.8/29"],
                &["10.0.0.9"],
                &[
                    "5 of 6 addresses",
                    "10.0.0.10, 10.0.0.11, 10.0.0.12, and 2 more;",
                    "(and so on)",
                ],
            ),
            (&["fd00::7"], &[], &["add fd00::7/128 dev"]),
            // Too many to try each: the ends are.
            (
                &["10.0.0.0/8"],
                &[],
                &["65536 of 65536 addresses", "10.0.0.1, "],
            ),
        ] {
            let words = refusal(texts, here);
            assert_eq!(words.is_empty(), parts.is_empty(), "{texts:?}: {words}");
            for part in parts {
                assert!(words.contains(part), "{texts:?}: {words}");
            }
        }
    }

    #[test]
    fn this_host_has_its_own_addresses_only() {
        assert!(is_here([127, 0, 0, 1].into()));
        // TEST-NET-3 (RFC 5737) is nobody's.
        assert!(!is_here([203, 0, 113, 7].into()));
    }
}
