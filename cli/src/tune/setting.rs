//! One thing of the host that tuning changes, under a name that stays the same in plans, state
//! files, messages and tests.
//!
//! A setting knows how its value is written and compared, what to type to change it by hand, and
//! whether it belongs to one network namespace or to the whole machine. It touches nothing itself:
//! that is [`super::Host`]'s.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ringmill_engine::topology::CpuList;
use serde::{Deserialize, Serialize};

/// Something that can be read, and set to another value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Setting {
    /// A sysctl, such as `net.core.somaxconn`.
    Sysctl {
        /// Its name with dots.
        name: String,
    },
    /// A file of one value below `/sys`, such as a module's parameter.
    File {
        /// Its path.
        path: String,
    },
    /// A set of CPUs in a kernel file: a mask (`rps_cpus`, `xps_cpus`) or a list
    /// (`smp_affinity_list`). The value is a list either way.
    Cpus {
        /// The file.
        path: String,
    },
    /// What `ethtool` shows of a network card.
    Nic {
        /// The interface.
        interface: String,
        /// Which setting of it.
        field: NicField,
    },
    /// A table of nftables (family inet) that belongs to us alone. The value is its text.
    Table {
        /// Its name.
        name: String,
    },
    /// An address of a network card; its value is [`super::sources::THERE`].
    Address {
        /// The interface.
        interface: String,
        /// Which address.
        address: IpAddr,
    },
    /// A file that makes other settings last. The value is its content.
    Written {
        /// Its path.
        path: String,
    },
    /// A symbolic link that switches a unit on. The value is its target.
    Link {
        /// Its path.
        path: String,
    },
}

/// A setting of a network card.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum NicField {
    /// Descriptors of each receive ring.
    RxRing,
    /// Descriptors of each transmit ring.
    TxRing,
    /// Queues that receive and transmit.
    Channels,
    /// Microseconds that a receive interrupt waits for more packets.
    RxUsecs,
    /// Microseconds that a transmit interrupt waits.
    TxUsecs,
    /// Whether the card chooses the receive delay itself.
    AdaptiveRx,
    /// An offload by the kernel's name, such as `rx-gro`.
    Feature(String),
}

/// What is wrong with the name of a card's setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no setting of a network card; there are rx-ring, tx-ring, channels, rx-usecs, tx-usecs, \
     adaptive-rx and feature:NAME"
)]
pub struct NicFieldError(String);

impl FromStr for NicField {
    type Err = NicFieldError;

    fn from_str(text: &str) -> Result<Self, NicFieldError> {
        Ok(match text {
            "rx-ring" => Self::RxRing,
            "tx-ring" => Self::TxRing,
            "channels" => Self::Channels,
            "rx-usecs" => Self::RxUsecs,
            "tx-usecs" => Self::TxUsecs,
            "adaptive-rx" => Self::AdaptiveRx,
            other => match other.strip_prefix("feature:") {
                Some(name) if is_plain(name) => Self::Feature(name.to_owned()),
                _ => return Err(NicFieldError(text.to_owned())),
            },
        })
    }
}

impl TryFrom<String> for NicField {
    type Error = NicFieldError;

    fn try_from(text: String) -> Result<Self, NicFieldError> {
        text.parse()
    }
}

impl From<NicField> for String {
    fn from(field: NicField) -> Self {
        field.to_string()
    }
}

impl fmt::Display for NicField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RxRing => "rx-ring",
            Self::TxRing => "tx-ring",
            Self::Channels => "channels",
            Self::RxUsecs => "rx-usecs",
            Self::TxUsecs => "tx-usecs",
            Self::AdaptiveRx => "adaptive-rx",
            Self::Feature(name) => return write!(f, "feature:{name}"),
        })
    }
}

impl NicField {
    /// The arguments of ethtool(8) before the value, the interface left out: option and name.
    fn option(&self) -> (&'static str, &str) {
        match self {
            Self::RxRing => ("-G", "rx"),
            Self::TxRing => ("-G", "tx"),
            Self::Channels => ("-L", "combined"),
            Self::RxUsecs => ("-C", "rx-usecs"),
            Self::TxUsecs => ("-C", "tx-usecs"),
            Self::AdaptiveRx => ("-C", "adaptive-rx"),
            Self::Feature(name) => ("-K", name),
        }
    }
}

/// Letters that need no care in a shell, a path or a message.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Whether an interface's name can be put into a path and a shell line: what the kernel takes, less
/// what a shell would take for something else.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    const IFNAMSIZ: usize = 16;
    let first = name.bytes().next();
    name.len() < IFNAMSIZ
        && name != "."
        && name != ".."
        && first.is_some_and(|byte| byte != b'-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.@:".contains(&byte))
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { name } => f.write_str(name),
            Self::File { path } | Self::Cpus { path } => {
                f.write_str(path.strip_prefix("/sys/").unwrap_or(path))
            }
            Self::Written { path } | Self::Link { path } => f.write_str(path),
            Self::Nic { interface, field } => write!(f, "{interface} {field}"),
            Self::Table { name } => write!(f, "nftables table inet {name}"),
            Self::Address { interface, address } => write!(f, "{interface} address {address}"),
        }
    }
}

impl Setting {
    /// A sysctl.
    #[must_use]
    pub fn sysctl(name: &str) -> Self {
        Self::Sysctl { name: name.into() }
    }

    /// Whether it is part of one network namespace. Everything else changes the whole machine.
    /// (What is left of `net.*` that is not a namespace's own cannot be written from within one.)
    #[must_use]
    pub fn is_of_namespace(&self) -> bool {
        match self {
            Self::Sysctl { name } => name.starts_with("net."),
            Self::Cpus { path } | Self::File { path } => path.starts_with("/sys/class/net/"),
            Self::Nic { .. } | Self::Table { .. } | Self::Address { .. } => true,
            Self::Written { .. } | Self::Link { .. } => false,
        }
    }

    /// Whether what is read back may differ from what was written: cards round rings, the kernel
    /// rounds hash tables, and nft(8) writes tables its own way.
    #[must_use]
    pub fn may_round(&self) -> bool {
        match self {
            Self::Nic { field, .. } => !matches!(field, NicField::Feature(_)),
            Self::Table { .. } => true,
            Self::File { path } => path.ends_with("/hashsize") || path.ends_with("_flow_cnt"),
            _ => false,
        }
    }

    /// What is read from the kernel in the form that is compared, recorded and shown.
    #[must_use]
    pub fn normal(&self, raw: &str) -> String {
        match self {
            Self::Written { .. } | Self::Link { .. } | Self::Table { .. } => raw.to_owned(),
            Self::Cpus { path } if is_mask(path) => {
                cpus_of_mask(raw.trim()).map_or_else(|| raw.trim().to_owned(), |c| c.to_string())
            }
            Self::Cpus { .. } => raw
                .trim()
                .parse::<CpuList>()
                .map_or_else(|_| raw.trim().to_owned(), |cpus| cpus.to_string()),
            _ => raw.split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }

    /// A value in the form that the kernel's file takes.
    #[must_use]
    pub fn raw(&self, value: &str) -> String {
        match self {
            Self::Cpus { path } if is_mask(path) => value
                .parse::<CpuList>()
                .map_or_else(|_| value.to_owned(), |cpus| mask_of_cpus(&cpus)),
            _ => value.to_owned(),
        }
    }

    /// The line of shell that sets it.
    #[must_use]
    pub fn command(&self, value: &str) -> String {
        match self {
            Self::Sysctl { name } => format!("sysctl -w {name}={}", quoted(value)),
            Self::File { path } | Self::Cpus { path } => {
                format!("echo {} > {}", quoted(&self.raw(value)), quoted(path))
            }
            Self::Nic { interface, field } => {
                let (option, name) = field.option();
                format!("ethtool {option} {interface} {name} {value}")
            }
            Self::Table { name } => format!(
                "nft -f - <<'END'\ntable inet {name}\ndelete table inet {name}\n{}\nEND",
                value.trim_end()
            ),
            Self::Address { interface, address } => {
                format!("ip {}", address_words("add", interface, *address).join(" "))
            }
            // A delimiter of its own: the content may be a script with documents inside.
            Self::Written { path } => format!(
                "{}cat > {} <<'END_OF_FILE'\n{}\nEND_OF_FILE",
                folder_of(path),
                quoted(path),
                value.trim_end()
            ),
            Self::Link { path } => {
                format!(
                    "{}ln -sf {} {}",
                    folder_of(path),
                    quoted(value),
                    quoted(path)
                )
            }
        }
    }

    /// The line of shell that restores an old value; `None`: it was not there.
    #[must_use]
    pub fn undo(&self, old: Option<&str>) -> String {
        match (self, old) {
            (Self::Table { name }, None) => format!("nft delete table inet {name}"),
            (Self::Address { interface, address }, None) => {
                format!("ip {}", address_words("del", interface, *address).join(" "))
            }
            (Self::Written { path } | Self::Link { path }, None) => {
                format!("rm {}", quoted(path))
            }
            (_, Some(old)) => self.command(old),
            (_, None) => "nothing: it was not there".into(),
        }
    }
}

/// The arguments of ip(8) that add or delete an address. With all its bits it brings no route of its
/// own; that of IPv6 is usable at once.
pub(super) fn address_words(verb: &str, interface: &str, address: IpAddr) -> Vec<String> {
    let bits = if address.is_ipv6() { 128 } else { 32 };
    let mut words = [
        "address",
        verb,
        &format!("{address}/{bits}"),
        "dev",
        interface,
    ]
    .map(str::to_owned)
    .to_vec();
    if address.is_ipv6() && verb == "add" {
        words.push("nodad".into());
    }
    words
}

fn is_mask(path: &str) -> bool {
    path.ends_with("_cpus")
}

/// Single quotes where the shell needs them.
fn quoted(text: &str) -> String {
    if !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.,:/".contains(&b))
    {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The line that makes the folder of a file.
fn folder_of(path: &str) -> String {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("mkdir -p {}\n", quoted(folder))
}

/// The kernel's mask: words of 32 bits, highest first, with commas between.
fn cpus_of_mask(mask: &str) -> Option<CpuList> {
    let mut cpus = Vec::new();
    for (index, word) in mask.split(',').rev().enumerate() {
        let bits = u32::from_str_radix(word, 16).ok()?;
        cpus.extend(
            (0..32)
                .filter(|bit| bits >> bit & 1 == 1)
                .map(|bit| index * 32 + bit),
        );
    }
    Some(cpus.into())
}

fn mask_of_cpus(cpus: &CpuList) -> String {
    let words = cpus.as_slice().last().map_or(1, |highest| highest / 32 + 1);
    let mut mask = vec![0_u32; words];
    for cpu in cpus.iter() {
        mask[cpu / 32] |= 1 << (cpu % 32);
    }
    let mut text = format!("{:x}", mask[words - 1]);
    for word in mask.iter().rev().skip(1) {
        text += &format!(",{word:08x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_lists_of_cpus_are_the_same_value() {
        for (mask, list) in [
            ("0", ""),
            ("00000000,00000003", "0-1"),
            ("f", "0-3"),
            ("1,00000000", "32"),
            ("80000001,00000000,00000001", "0,64,95"),
        ] {
            let setting = Setting::Cpus {
                path: "/sys/class/net/e/queues/rx-0/rps_cpus".into(),
            };
            assert_eq!(setting.normal(mask), list, "{mask}");
            assert_eq!(setting.normal(&setting.raw(list)), list, "{list}");
        }
    }

    #[test]
    fn values_are_compared_without_the_kernels_tabs() {
        let ports = Setting::sysctl("net.ipv4.ip_local_port_range");
        assert_eq!(ports.normal("1024\t65535\n"), "1024 65535");
        let irq = Setting::Cpus {
            path: "/proc/irq/24/smp_affinity_list".into(),
        };
        assert_eq!(irq.normal("0,1\n"), "0-1");
    }

    #[test]
    fn commands_are_what_an_admin_would_type() {
        let nic = |field: &str| Setting::Nic {
            interface: "eth0".into(),
            field: field.parse().unwrap(),
        };
        for (setting, value, command, undo) in [
            (
                Setting::sysctl("net.ipv4.ip_local_port_range"),
                "1024 65535",
                "sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
                "sysctl -w net.ipv4.ip_local_port_range=8",
            ),
            (
                nic("rx-ring"),
                "4096",
                "ethtool -G eth0 rx 4096",
                "ethtool -G eth0 rx 8",
            ),
            (
                nic("feature:rx-gro"),
                "on",
                "ethtool -K eth0 rx-gro on",
                "ethtool -K eth0 rx-gro 8",
            ),
            (
                Setting::Cpus {
                    path: "/sys/class/net/e/queues/tx-0/xps_cpus".into(),
                },
                "0,33",
                "echo 2,00000001 > /sys/class/net/e/queues/tx-0/xps_cpus",
                "echo 100 > /sys/class/net/e/queues/tx-0/xps_cpus",
            ),
        ] {
            assert_eq!(setting.command(value), command);
            assert_eq!(setting.undo(Some("8")), undo);
        }
        for (address, command, undo) in [
            (
                "10.0.1.7",
                "ip address add 10.0.1.7/32 dev eth0",
                "ip address del 10.0.1.7/32 dev eth0",
            ),
            (
                "fd00::7",
                "ip address add fd00::7/128 dev eth0 nodad",
                "ip address del fd00::7/128 dev eth0",
            ),
        ] {
            let setting = Setting::Address {
                interface: "eth0".into(),
                address: address.parse().unwrap(),
            };
            assert_eq!(setting.command("there"), command);
            assert_eq!(setting.undo(None), undo);
        }
        let table = Setting::Table { name: "t".into() };
        assert_eq!(table.undo(None), "nft delete table inet t");
    }

    #[test]
    fn names_of_card_settings_read_back() {
        for name in [
            "rx-ring",
            "tx-ring",
            "channels",
            "rx-usecs",
            "tx-usecs",
            "adaptive-rx",
            "feature:tso",
        ] {
            assert_eq!(name.parse::<NicField>().unwrap().to_string(), name);
        }
        for name in ["", "feature:", "feature:a b", "feature:$(x)", "rings"] {
            assert!(name.parse::<NicField>().is_err(), "{name}");
        }
    }

    #[test]
    fn interface_names_that_a_shell_would_misread_are_refused() {
        for (name, good) in [
            ("eth0", true),
            ("enp1s0f0.100", true),
            ("-x", false),
            ("a b", false),
            ("$(reboot)", false),
            ("../x", false),
            ("..", false),
            ("a23456789012345678", false),
        ] {
            assert_eq!(is_interface_name(name), good, "{name}");
        }
    }
}
