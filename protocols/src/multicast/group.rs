//! Which multicast groups may be sent to without being asked twice: those that routers keep within
//! the site, by administration (RFC 2365) or by scope (RFC 4291 §2.7). Looks at the address alone.

use std::net::IpAddr;

/// How far a group's datagrams may travel at the most, whatever their hop limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// No multicast address.
    NoGroup,
    /// Within this site, and for anyone's use: IPv4 239.0.0.0/8, IPv6 scopes 1 to 5.
    Site,
    /// Beyond, or meant for someone else.
    Beyond,
}

/// How far a group reaches.
#[must_use]
pub fn reach(group: IpAddr) -> Reach {
    let for_anyone = match group {
        _ if !group.is_multicast() => return Reach::NoGroup,
        // 224.0.0.0/24 stays on the link too, but routing protocols and mDNS live there.
        IpAddr::V4(group) => group.octets()[0] == 239,
        IpAddr::V6(group) => {
            let segments = group.segments();
            let scope = segments[0] & 0x000f;
            // ff02::1 is every node of the link, ff02::2 every router, and so on: IANA gave the
            // low numbers to them (RFC 4291 §2.7.1).
            let link_control =
                segments[0] == 0xff02 && segments[1..7] == [0; 6] && segments[7] < 256;
            (1..=5).contains(&scope) && !link_control
        }
    };
    if for_anyone {
        Reach::Site
    } else {
        Reach::Beyond
    }
}

/// Whether a group's address means nothing without an interface: the same group is another one on
/// each of them (RFC 4007 §6).
#[must_use]
pub fn needs_interface(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(_) => false,
        IpAddr::V6(group) => {
            group.is_multicast() && (1..=2).contains(&(group.segments()[0] & 0x0f))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_groups_stay_in_the_site() {
        for (group, expected, zoned) in [
            ("239.255.0.1", Reach::Site, false),
            ("239.0.0.0", Reach::Site, false),
            ("ff01::1", Reach::Site, true),
            ("ff02::1", Reach::Beyond, true),
            ("ff02::fb", Reach::Beyond, true),
            ("ff02::1:2", Reach::Site, true),
            ("ff12::4242", Reach::Site, true),
            ("ff05::1", Reach::Site, false),
            ("ff15::1:2:3", Reach::Site, false),
            ("ff08::1", Reach::Beyond, false),
            ("ff0e::101", Reach::Beyond, false),
            ("224.0.0.1", Reach::Beyond, false),
            ("224.0.1.1", Reach::Beyond, false),
            ("232.1.2.3", Reach::Beyond, false),
            ("192.0.2.1", Reach::NoGroup, false),
            ("255.255.255.255", Reach::NoGroup, false),
            ("::1", Reach::NoGroup, false),
            ("fe80::1", Reach::NoGroup, false),
        ] {
            let address = group.parse().unwrap();
            assert_eq!(reach(address), expected, "{group}");
            assert_eq!(needs_interface(address), zoned, "{group}");
        }
    }
}
