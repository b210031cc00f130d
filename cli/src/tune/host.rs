//! The one door through which tuning reads and changes a host.
//!
//! Either this machine, or a folder that describes one: `proc`, `sys` and `etc` as on a machine,
//! `ethtool/INTERFACE/FIELD` (and `FIELD.max`) for a card's settings, `nft/TABLE` for tables,
//! `addresses/INTERFACE/ADDRESS` for addresses. So every test but those that are about the kernel itself runs without root and changes nothing.
//! Nothing here decides what is changed, and nothing keeps a record of it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringmill_engine::host::{Reading, Root};
use ringmill_engine::topology::{self, Topology, TopologyError};

use super::nic::{self, Nic, NicError};
use super::setting::{NicField, Setting, address_words, is_interface_name};
use super::sources::THERE;

/// A host to look at and to tune.
#[derive(Debug)]
pub struct Host {
    folder: PathBuf,
    root: Root,
    /// True for this machine: cards by netlink, tables by nft(8).
    is_here: bool,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

/// Why something of the host could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file refused.
    #[error("{setting} cannot be set to '{value}': {}", in_words(source))]
    Refused {
        /// What was to be changed.
        setting: String,
        /// To which value.
        value: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A card refused.
    #[error("{setting} cannot be set to '{value}': {source}")]
    Nic {
        /// What was to be changed.
        setting: String,
        /// To which value.
        value: String,
        /// The card's answer.
        source: NicError,
    },
    /// A program that is needed is missing or failed.
    #[error("{program} {what}: {said}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it was to do.
        what: String,
        /// What it said, or why it could not be started.
        said: String,
    },
    /// There is no such interface, or it is another one's.
    #[error("{0}")]
    Interface(String),
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{error}; run it as root, on the host itself")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("{error}; containers show it read-only: run it on the host")
        }
        io::ErrorKind::InvalidInput => format!("{error}: the kernel does not take this value"),
        _ => error.to_string(),
    }
}

impl Host {
    /// This machine, as this process sees it.
    #[must_use]
    pub fn this() -> Self {
        Self::new(PathBuf::from("/"), true)
    }

    /// A folder that describes a host.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self::new(folder.to_owned(), false)
    }

    fn new(folder: PathBuf, is_here: bool) -> Self {
        Self {
            root: Root::at(&folder),
            folder,
            is_here,
            #[cfg(test)]
            faults: Default::default(),
        }
    }

    /// Whether it is this machine rather than a folder.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.is_here
    }

    /// Its files, for the readers of the engine.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Where a file of the host is for us.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file.trim_start_matches('/'))
    }

    /// What `ringmill doctor` knows of it.
    #[must_use]
    pub fn facts(&self) -> ringmill_engine::host::Host {
        ringmill_engine::host::Host::read_below(&self.root)
    }

    /// Its CPUs and cards.
    ///
    /// # Errors
    /// When `/sys` does not show them.
    pub fn topology(&self) -> Result<Topology, TopologyError> {
        if self.is_here {
            Topology::read()
        } else {
            Topology::from_sysfs(&self.folder, None)
        }
    }

    /// The interrupts of an interface's packet queues.
    #[must_use]
    pub fn interrupts(&self, interface: &str) -> Vec<u32> {
        topology::packet_interrupts(&self.folder, interface)
    }

    /// Names in a folder, sorted so that numbers come in their order; none where there is no folder.
    #[must_use]
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_by_key(|name| {
            let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
            let letters = name.len() - digits.len();
            (
                name[..letters].to_owned(),
                digits.parse::<u64>().ok(),
                name.clone(),
            )
        });
        names
    }

    /// Whether a program of this name runs.
    #[must_use]
    pub fn runs(&self, program: &str) -> bool {
        self.names("/proc").iter().any(|name| {
            name.bytes().all(|byte| byte.is_ascii_digit())
                && self
                    .root
                    .text(&format!("/proc/{name}/comm"))
                    .value
                    .as_deref()
                    == Some(program)
        })
    }

    /// Whether this process is in a network namespace other than the host's own. Told by a setting of
    /// the whole host that the kernel shows in no other one: `/proc/1/ns/net`, which one might compare
    /// instead, may be unreadable even for root. What is not shown counts as "in a namespace", where
    /// less is changed.
    #[must_use]
    pub fn is_in_a_namespace(&self) -> bool {
        !self.root.exists("/proc/sys/net/core/netdev_max_backlog")
    }

    /// The network namespace and the boot, so that records of another one are not taken for this one's.
    #[must_use]
    pub fn identity(&self) -> (String, String) {
        let namespace = fs::read_link(self.path("/proc/self/ns/net"))
            .map(|link| link.to_string_lossy().into_owned());
        let boot = self.root.text("/proc/sys/kernel/random/boot_id").value;
        (namespace.unwrap_or_default(), boot.unwrap_or_default())
    }

    /// Checks that an interface is there and can be named safely.
    ///
    /// # Errors
    /// When it is not; or when `/sys` shows another network namespace than the one that this process
    /// is in, so that a change would hit the wrong card.
    pub fn check_interface(&self, name: &str) -> Result<(), HostError> {
        if !is_interface_name(name) {
            return Err(HostError::Interface(format!(
                "'{name}' is no name of a network interface"
            )));
        }
        let shown: Reading<u32> = self.root.value(&format!("/sys/class/net/{name}/ifindex"));
        if !self.is_here {
            return if self.path(&format!("/sys/class/net/{name}")).exists() {
                Ok(())
            } else {
                Err(HostError::Interface(format!(
                    "there is no network interface {name}"
                )))
            };
        }
        let Ok(own) = nix::net::if_::if_nametoindex(name) else {
            let mut names = self.names("/sys/class/net");
            names.retain(|name| name != "bonding_masters");
            return Err(HostError::Interface(format!(
                "there is no network interface {name}; this host has {}",
                names.join(", ")
            )));
        };
        if shown.value == Some(own) {
            return Ok(());
        }
        Err(HostError::Interface(format!(
            "/sys shows another network namespace than the one of interface {name}; enter it with \
             `ip netns exec`, which mounts the right one"
        )))
    }

    /// Everything that a card tells about itself.
    ///
    /// # Errors
    /// When the card is not there, or tells nothing.
    pub fn nic(&self, interface: &str) -> Result<Nic, NicError> {
        if self.is_here {
            return nic::read(interface);
        }
        let folder = format!("/ethtool/{interface}");
        let mut nic = Nic::default();
        for name in self.names(&folder) {
            let Ok(field) = name.parse::<NicField>() else {
                continue;
            };
            let file = format!("{folder}/{name}");
            if let Some(value) = self.root.text(&file).value {
                let maximum = self.root.value(&format!("{file}.max")).value;
                nic.describe(field, value, maximum);
            }
        }
        Ok(nic)
    }

    /// A setting's value in its normal form, or why there is none.
    #[must_use]
    pub fn read(&self, setting: &Setting) -> Reading<String> {
        let raw = match setting {
            Setting::Sysctl { name } => self.root.sysctl(name),
            Setting::File { path } | Setting::Cpus { path } => self.root.text(path),
            Setting::Written { path } => {
                // Not by `text`: it drops the white space at the end.
                fs::read_to_string(self.path(path))
                    .map_or_else(|error| Reading::unknown(error.to_string()), Reading::known)
            }
            Setting::Link { path } => fs::read_link(self.path(path)).map_or_else(
                |error| Reading::unknown(error.to_string()),
                |target| Reading::known(target.to_string_lossy().into_owned()),
            ),
            Setting::Nic { interface, field } => match self.nic(interface) {
                Ok(nic) => nic.value(field).map_or_else(
                    || Reading::unknown(NicError::Absent.to_string()),
                    |value| Reading::known(value.to_owned()),
                ),
                Err(error) => Reading::unknown(error.to_string()),
            },
            Setting::Table { name } => self.table(name),
            Setting::Address { interface, address } => match self.addresses() {
                Ok(all) if all.contains(&(interface.clone(), *address)) => {
                    Reading::known(THERE.to_owned())
                }
                Ok(_) => Reading::unknown(format!("{interface} does not have it")),
                Err(why) => Reading::unknown(why),
            },
        };
        raw.map(|raw| setting.normal(&raw))
    }

    /// Every address of this host, with its card.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn addresses(&self) -> Result<Vec<(String, IpAddr)>, String> {
        if !self.is_here {
            let cards = self.names("/addresses");
            let of_card = |card: String| {
                let addresses = self.names(&format!("/addresses/{card}"));
                addresses
                    .into_iter()
                    .filter_map(move |address| Some((card.clone(), address.parse().ok()?)))
            };
            return Ok(cards.into_iter().flat_map(of_card).collect());
        }
        let found = if_addrs::get_if_addrs()
            .map_err(|error| format!("the addresses of this host cannot be read: {error}"))?;
        let pair = |interface: if_addrs::Interface| (interface.name.clone(), interface.ip());
        Ok(found.into_iter().map(pair).collect())
    }

    /// Gives a card an address, or takes it away.
    fn write_address(&self, interface: &str, address: IpAddr, add: bool) -> Result<(), HostError> {
        let failed = |said: String| HostError::Program {
            program: "ip",
            what: format!("address {address} of {interface}"),
            said,
        };
        if !self.is_here {
            let file = self.path(&format!("/addresses/{interface}/{address}"));
            let result = if add {
                replace_file(&file, THERE.as_bytes())
            } else {
                remove_file(&file)
            };
            return result.map_err(|error| failed(error.to_string()));
        }
        let verb = if add { "add" } else { "del" };
        let output = Command::new("ip")
            .args(address_words(verb, interface, address))
            .output()
            .map_err(|error| failed(format!("{error}; install the package iproute2")))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }

    fn table(&self, name: &str) -> Reading<String> {
        if !self.is_here {
            return self.root.text(&format!("/nft/{name}"));
        }
        match Command::new("nft")
            .args(["list", "table", "inet", name])
            .output()
        {
            Ok(output) if output.status.success() => {
                Reading::known(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            Ok(output) => {
                Reading::unknown(String::from_utf8_lossy(&output.stderr).trim().to_owned())
            }
            Err(error) => Reading::unknown(format!("nft cannot be started: {error}")),
        }
    }

    /// Whether a setting is shown and not to be changed: in a network namespace that is not the
    /// host's the kernel takes away the right to write what is not the namespace's own.
    #[must_use]
    pub fn is_read_only(&self, setting: &Setting) -> bool {
        use std::os::unix::fs::PermissionsExt as _;
        let file = match setting {
            Setting::Sysctl { name } => format!("/proc/sys/{}", name.replace('.', "/")),
            Setting::File { path } | Setting::Cpus { path } => path.clone(),
            _ => return false,
        };
        let about = fs::metadata(self.path(&file));
        about.is_ok_and(|about| about.permissions().mode() & 0o222 == 0)
    }

    /// Whether tables can be made here.
    ///
    /// # Errors
    /// Why not.
    pub fn can_filter(&self) -> Result<(), String> {
        if !self.is_here {
            return Ok(());
        }
        match Command::new("nft").arg("--version").output() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!(
                "nft cannot be started ({error}); install the package nftables"
            )),
        }
    }

    /// Sets a value; `None` removes what can be removed.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn write(&self, setting: &Setting, value: Option<&str>) -> Result<(), HostError> {
        #[cfg(test)]
        self.faults.before_write();
        let refused = |source| HostError::Refused {
            setting: setting.to_string(),
            value: value
                .unwrap_or("nothing")
                .lines()
                .next()
                .unwrap_or("")
                .to_owned(),
            source,
        };
        let result = match (setting, value) {
            (Setting::Sysctl { name }, Some(value)) => {
                let file = format!("/proc/sys/{}", name.replace('.', "/"));
                self.write_file(&file, value).map_err(refused)
            }
            (Setting::File { path } | Setting::Cpus { path }, Some(value)) => {
                self.write_file(path, &setting.raw(value)).map_err(refused)
            }
            (Setting::Nic { interface, field }, Some(value)) => self
                .write_nic(interface, field, value)
                .map_err(|source| HostError::Nic {
                    setting: setting.to_string(),
                    value: value.to_owned(),
                    source,
                }),
            (Setting::Table { name }, value) => self.write_table(name, value),
            (Setting::Address { interface, address }, value) => {
                self.write_address(interface, *address, value.is_some())
            }
            (Setting::Written { path }, Some(value)) => {
                replace_file(&self.path(path), value.as_bytes()).map_err(refused)
            }
            (Setting::Link { path }, Some(value)) => self.write_link(path, value).map_err(refused),
            (Setting::Written { path } | Setting::Link { path }, None) => {
                remove_file(&self.path(path)).map_err(refused)
            }
            // What the kernel shows cannot be removed, and was there when it was recorded.
            (_, None) => Ok(()),
        };
        #[cfg(test)]
        self.faults.after_write();
        result
    }

    /// One write call, as the kernel's files want it. The file is never made.
    fn write_file(&self, file: &str, value: &str) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(self.path(file))?;
        file.write_all(format!("{value}\n").as_bytes())
    }

    fn write_link(&self, path: &str, target: &str) -> io::Result<()> {
        let path = self.path(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        remove_file(&path)?;
        std::os::unix::fs::symlink(target, path)
    }

    fn write_nic(&self, interface: &str, field: &NicField, value: &str) -> Result<(), NicError> {
        if self.is_here {
            return nic::set(interface, field, value);
        }
        let refused = |error: io::Error| NicError::Refused(error.to_string());
        self.write_file(&format!("/ethtool/{interface}/{field}"), value)
            .map_err(refused)
    }

    fn write_table(&self, name: &str, value: Option<&str>) -> Result<(), HostError> {
        let failed = |said: String| HostError::Program {
            program: "nft",
            what: format!("table inet {name}"),
            said,
        };
        if !self.is_here {
            let file = self.path(&format!("/nft/{name}"));
            let result = match value {
                Some(text) => replace_file(&file, text.as_bytes()),
                None => remove_file(&file),
            };
            return result.map_err(|error| failed(error.to_string()));
        }
        // To declare the table first makes the deletion work whether or not it is there, and the
        // whole text is one transaction.
        let text = format!(
            "table inet {name}\ndelete table inet {name}\n{}\n",
            value.unwrap_or_default()
        );
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{error}; install the package nftables")))?;
        if let Some(mut input) = child.stdin.take() {
            // A program that does not listen says why on standard error.
            let _ = input.write_all(text.as_bytes());
        }
        let output = child
            .wait_with_output()
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }

    /// Tells systemd to read its units again, and restarts a service if it runs. Only on a machine that
    /// systemd started.
    ///
    /// # Errors
    /// When systemctl fails.
    pub fn reload_units(&self, restart: Option<&str>) -> Result<(), HostError> {
        if !self.is_here || !self.has_systemd() {
            return Ok(());
        }
        let mut calls = vec![vec!["daemon-reload"]];
        calls.extend(restart.map(|unit| vec!["try-restart", unit]));
        for arguments in calls {
            let failed = |said: String| HostError::Program {
                program: "systemctl",
                what: arguments.join(" "),
                said,
            };
            let output = Command::new("systemctl").args(&arguments).output();
            let output = output.map_err(|error| failed(error.to_string()))?;
            if !output.status.success() {
                return Err(failed(
                    String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// Whether systemd runs the host (sd_booted(3)).
    #[must_use]
    pub fn has_systemd(&self) -> bool {
        self.path("/run/systemd/system").is_dir()
    }
}

/// Puts a file in the place of another so that a reader sees the old one or the new one, also after
/// the power failed.
///
/// # Errors
/// When the folder cannot be made or the file not be written.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut file = fs::File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder(folder)
}

/// Removes a file if it is there.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
