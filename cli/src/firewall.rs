//! The firewall rules that a capacity server needs, as `ringmill doctor --capacity` shows them.
//!
//! Nothing here changes a firewall, and nothing looks at one: the rules are text for who may do that.
//! Whether the kernel gives the test ports to others is read from `/proc/sys`.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::Serialize;

/// The ports of a capacity server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// Where setup requests are taken; at least one.
    pub control: Vec<u16>,
    /// Those of the tests' own sockets; `None` for those that the kernel gives.
    pub tests: Option<RangeInclusive<u16>>,
}

/// The rules, and what speaks against the ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Where setup requests are taken.
    pub control_ports: Vec<u16>,
    /// First and last port of the tests; `None` where they are not known.
    pub test_ports: Option<(u16, u16)>,
    /// The test ports are those that the kernel gives, for no others were asked for.
    pub given_by_kernel: bool,
    /// First and last test port that the kernel may give to other programs, if it may.
    pub overlap: Option<(u16, u16)>,
    /// What to mind, and what to do.
    pub notes: Vec<String>,
    /// Commands that accept what comes to the server.
    pub accept: Vec<String>,
    /// Commands that take its ports out of connection tracking.
    pub notrack: Vec<String>,
}

impl Firewall {
    /// The rules for these ports on this host.
    #[must_use]
    pub fn new(ports: &Ports) -> Self {
        Self::below(Path::new("/"), ports)
    }

    /// The same with the kernel's settings below another root.
    #[must_use]
    pub fn below(root: &Path, ports: &Ports) -> Self {
        let setting = |name: &str| {
            let path = root.join("proc/sys/net/ipv4").join(name);
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let given = local_range(&setting("ip_local_port_range"));
        let reserved = ranges(&setting("ip_local_reserved_ports"));
        let test_ports = match &ports.tests {
            Some(tests) => Some((*tests.start(), *tests.end())),
            None => given,
        };
        let mut firewall = Self {
            control_ports: ports.control.clone(),
            test_ports,
            given_by_kernel: ports.tests.is_none(),
            overlap: None,
            notes: Vec::new(),
            accept: Vec::new(),
            notrack: Vec::new(),
        };
        firewall.judge(given, &reserved);
        firewall.write_rules();
        firewall
    }

    fn judge(&mut self, given: Option<(u16, u16)>, reserved: &[(u16, u16)]) {
        let Some((first, last)) = self.test_ports else {
            self.notes.push(
                "net.ipv4.ip_local_port_range cannot be read: name the test ports by --test-ports, \
                 here and at the server"
                    .into(),
            );
            return;
        };
        if self.given_by_kernel {
            self.notes.push(format!(
                "without --test-ports the kernel picks from net.ipv4.ip_local_port_range, \
                 {first}-{last}: `ringmill capacity server --test-ports LO-HI` keeps tests within \
                 fewer"
            ));
            return;
        }
        let inside = self.control_ports.iter();
        for port in inside.filter(|port| (first..=last).contains(port)) {
            self.notes.push(format!(
                "the control port {port} is one of the test ports: take others"
            ));
        }
        let Some((given_first, given_last)) = given else {
            return;
        };
        let free = |port: &u16| {
            !reserved
                .iter()
                .any(|(from, to)| (from..=to).contains(&port))
        };
        let mut shared = (first.max(given_first)..=last.min(given_last)).filter(free);
        if let Some(from) = shared.next() {
            let to = shared.next_back().unwrap_or(from);
            self.overlap = Some((from, to));
            self.notes.push(format!(
                "net.ipv4.ip_local_port_range is {given_first}-{given_last}: the kernel may give \
                 ports {from}-{to} to other programs, and a test that finds its port taken needs \
                 another. Take test ports outside, or keep these free: add {first}-{last} to \
                 net.ipv4.ip_local_reserved_ports"
            ));
        }
    }

    fn write_rules(&mut self) {
        let mut ports: Vec<_> = self.control_ports.iter().map(u16::to_string).collect();
        ports.extend(self.test_ports.map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        }));
        let ports = ports.join(", ");
        self.accept = vec![format!(
            "nft add rule inet filter input udp dport '{{ {ports} }}' accept"
        )];
        self.notrack = vec![
            "nft add table inet capacity".into(),
            "nft add chain inet capacity pre '{ type filter hook prerouting priority raw; }'"
                .into(),
            "nft add chain inet capacity out '{ type filter hook output priority raw; }'".into(),
            format!("nft add rule inet capacity pre udp dport '{{ {ports} }}' notrack"),
            format!("nft add rule inet capacity out udp sport '{{ {ports} }}' notrack"),
        ];
    }
}

/// Two numbers, the smaller one first.
fn local_range(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) if first <= last => Some((first, last)),
        _ => None,
    }
}

/// Ports and ranges of them, by commas.
fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |text: &str| {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
    };
    text.trim().split(',').filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firewall(
        range: &str,
        reserved: &str,
        control: &[u16],
        tests: Option<(u16, u16)>,
    ) -> Firewall {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("proc/sys/net/ipv4");
        std::fs::create_dir_all(&folder).expect("a folder");
        if !range.is_empty() {
            std::fs::write(folder.join("ip_local_port_range"), range).expect("a file");
        }
        std::fs::write(folder.join("ip_local_reserved_ports"), reserved).expect("a file");
        let ports = Ports {
            control: control.to_vec(),
            tests: tests.map(|(first, last)| first..=last),
        };
        Firewall::below(root.path(), &ports)
    }

    #[test]
    fn rules_name_all_ports() {
        let found = firewall(
            "32768\t60999\n",
            "\n",
            &[24601, 25000],
            Some((20_000, 20_999)),
        );
        assert_eq!(
            found.accept,
            ["nft add rule inet filter input udp dport '{ 24601, 25000, 20000-20999 }' accept"]
        );
        let rules = found
            .notrack
            .iter()
            .filter(|rule| rule.contains("add rule"));
        let rules: Vec<_> = rules.map(String::as_str).collect();
        assert_eq!(
            rules,
            [
                "nft add rule inet capacity pre udp dport '{ 24601, 25000, 20000-20999 }' notrack",
                "nft add rule inet capacity out udp sport '{ 24601, 25000, 20000-20999 }' notrack",
            ]
        );
        assert_eq!((found.overlap, found.notes.len()), (None, 0));
        let one = firewall("32768 60999", "", &[24601], Some((20_000, 20_000)));
        assert!(
            one.accept[0].contains("'{ 24601, 20000 }'"),
            "{:?}",
            one.accept
        );
    }

    #[test]
    fn ports_that_the_kernel_gives_to_others() {
        for (range, reserved, tests, overlap) in [
            ("32768 60999", "", (40_000, 40_999), Some((40_000, 40_999))),
            ("32768 60999", "", (32_000, 33_000), Some((32_768, 33_000))),
            ("32768 60999", "", (60_999, 61_999), Some((60_999, 60_999))),
            ("32768 60999", "", (61_000, 61_999), None),
            ("32768 60999", "40000-40999", (40_000, 40_999), None),
            (
                "32768 60999",
                "8080,40000-40499\n",
                (40_000, 40_999),
                Some((40_500, 40_999)),
            ),
            ("", "", (40_000, 40_999), None),
        ] {
            let found = firewall(range, reserved, &[24601], Some(tests));
            assert_eq!(found.overlap, overlap, "{range} {reserved} {tests:?}");
            assert_eq!(found.notes.len(), usize::from(overlap.is_some()));
        }
    }

    #[test]
    fn what_to_mind() {
        for (range, tests, note, rule) in [
            (
                "32768 60999",
                None,
                "--test-ports LO-HI",
                "24601, 32768-60999 }",
            ),
            ("", None, "cannot be read", "{ 24601 }"),
            (
                "1 2",
                Some((24_000, 24_999)),
                "24601 is one of the test ports",
                "24000-24999",
            ),
        ] {
            let found = firewall(range, "", &[24601], tests);
            assert!(found.notes[0].contains(note), "{found:?}");
            assert!(found.accept[0].contains(rule), "{found:?}");
        }
    }
}
