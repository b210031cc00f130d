//! What this kernel's io_uring can do, found out by trying it, and what is done without it.
//!
//! Required: provided-buffer rings and multishot receive (Linux 6.0). Everything else is optional,
//! probed when the driver starts, and can be refused for tests, as an older kernel would.

use std::fmt;
use std::io;
use std::sync::OnceLock;

use io_uring::{IoUring, opcode};
use serde::Serialize;

use super::ring::{self, Ring};

/// An optional feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// SINGLE_ISSUER and DEFER_TASKRUN (6.1): completions run when we ask. Without: COOP_TASKRUN.
    DeferTaskrun,
    /// COOP_TASKRUN (5.19). Without: a plain ring, which costs a third of the rate.
    CoopTaskrun,
    /// The ring's descriptor registered with itself (5.18): no look-up in each call.
    RegisteredRing,
    /// Direct descriptors with kernel-chosen slots (5.19). Without: files of the process.
    DirectDescriptors,
    /// A receive takes only the bytes it fills of a buffer (6.12). Without: a buffer each.
    IncrementalBuffers,
    /// One receive fills several buffers (6.10). Without: one buffer each.
    Bundles,
    /// Another thread wakes the ring by a message (6.13). Without: an eventfd.
    RingMessages,
    /// Options set through the ring (6.7). Without: a reset becomes a plain close.
    SocketCommands,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::DeferTaskrun,
        Self::CoopTaskrun,
        Self::RegisteredRing,
        Self::DirectDescriptors,
        Self::IncrementalBuffers,
        Self::Bundles,
        Self::RingMessages,
        Self::SocketCommands,
    ];

    /// Its name, as in JSON and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DeferTaskrun => "defer_taskrun",
            Self::CoopTaskrun => "coop_taskrun",
            Self::RegisteredRing => "registered_ring",
            Self::DirectDescriptors => "direct_descriptors",
            Self::IncrementalBuffers => "incremental_buffers",
            Self::Bundles => "bundles",
            Self::RingMessages => "ring_messages",
            Self::SocketCommands => "socket_commands",
        }
    }

    /// The Linux version that brought it, and what is done without it.
    #[must_use]
    pub fn about(self) -> (&'static str, &'static str) {
        match self {
            Self::DeferTaskrun => ("6.1", "completions interrupt the shard (COOP_TASKRUN)"),
            Self::CoopTaskrun => (
                "5.19",
                "plain ring: about a third fewer messages per second",
            ),
            Self::RegisteredRing => ("5.18", "one descriptor look-up more in each system call"),
            Self::DirectDescriptors => ("5.19", "every connection needs a file of the process"),
            Self::IncrementalBuffers => ("6.12", "every receive takes a whole buffer"),
            Self::Bundles => ("6.10", "large transfers need a completion for each buffer"),
            Self::RingMessages => ("6.13", "shards wake each other by eventfd"),
            Self::SocketCommands => ("6.7", "a reset becomes a plain close"),
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|feature| feature.name() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|feature| feature.name()).collect();
                format!(
                    "unknown io_uring feature '{text}': one of {}",
                    names.join(", ")
                )
            })
    }
}

/// A set of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u16);

impl Features {
    /// Whether a feature is in the set.
    #[must_use]
    pub fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// The set with one more.
    #[must_use]
    pub fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.bit())
    }

    /// The set without those of another.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        features.into_iter().fold(Self::default(), Self::with)
    }
}

/// Why io_uring cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The system call is forbidden.
    #[error(
        "io_uring is forbidden here (EPERM): a seccomp filter (the default of Docker, containerd and Podman) \
         or kernel.io_uring_disabled={}; allow io_uring_setup, io_uring_enter and io_uring_register, \
         or set kernel.io_uring_disabled=0",
        sysctl()
    )]
    Forbidden,
    /// The kernel has none.
    #[error(
        "this kernel has no io_uring (ENOSYS), or a filter hides it; ringmill wants Linux 6.0 or newer"
    )]
    Missing,
    /// The ring could not be made for another reason.
    #[error("io_uring_setup failed: {0}")]
    Setup(String),
    /// The kernel is too old.
    #[error("this kernel's io_uring has no {0}; ringmill's uring driver wants Linux 6.0 or newer")]
    TooOld(&'static str),
}

fn sysctl() -> String {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .map_or_else(|_| "?".into(), |text| text.trim().to_owned())
}

/// Finds out what the kernel has, once for each process.
///
/// # Errors
/// Why io_uring cannot be used.
pub(super) fn find() -> Result<Features, Unavailable> {
    static FOUND: OnceLock<Result<Features, Unavailable>> = OnceLock::new();
    // On a thread of its own: taking a ring down interrupts (EINTR) whatever the thread that used
    // it is waiting for next, and our caller's sockets are none of our business.
    FOUND
        .get_or_init(|| match std::thread::spawn(try_all).join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        })
        .clone()
}

fn try_all() -> Result<Features, Unavailable> {
    let plain: IoUring =
        IoUring::builder()
            .build(8)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Unavailable::Forbidden,
                Some(libc::ENOSYS) => Unavailable::Missing,
                _ => Unavailable::Setup(error.to_string()),
            })?;
    let mut probe = io_uring::Probe::new();
    plain
        .submitter()
        .register_probe(&mut probe)
        .map_err(|_| Unavailable::TooOld("probe"))?;
    if !plain.params().is_feature_ext_arg() || !plain.params().is_feature_skip_cqe_on_success() {
        return Err(Unavailable::TooOld("completion skipping"));
    }
    // SEND_ZC came with 6.0, as did multishot recv and recvmsg, which no flag announces.
    if !probe.is_supported(opcode::SendZc::CODE) {
        return Err(Unavailable::TooOld("multishot receive"));
    }
    let mut found = Features::default();
    let mut note = |feature, works: bool| {
        if works {
            found = found.with(feature);
        }
    };
    let params = plain.params();
    note(Feature::Bundles, params.is_feature_recvsend_bundle());
    let build = |set: fn(&mut io_uring::Builder)| -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        set(&mut builder);
        builder.build(8)
    };
    let deferred = build(|builder| {
        builder.setup_single_issuer().setup_defer_taskrun();
    });
    note(Feature::DeferTaskrun, deferred.is_ok());
    let cooperative = build(|builder| {
        builder.setup_coop_taskrun();
    });
    note(Feature::CoopTaskrun, cooperative.is_ok());
    note(
        Feature::RegisteredRing,
        cooperative.is_ok_and(|ring| ring.submitter().register_ring_fd().is_ok()),
    );
    note(
        Feature::DirectDescriptors,
        plain.submitter().register_files_sparse(16).is_ok(),
    );
    let incremental = ring::BufferRing::try_incremental(&plain);
    note(Feature::IncrementalBuffers, incremental);
    note(Feature::RingMessages, ring::message_works(&plain));
    note(Feature::SocketCommands, socket_command_works());
    Ok(found)
}

/// Sets an option of a socket through a ring of its own.
fn socket_command_works() -> bool {
    let attempt = || -> io::Result<bool> {
        let mut ring = Ring::plain(8)?;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        ring.set_linger_reset(std::os::fd::AsRawFd::as_raw_fd(&socket))
    };
    attempt().unwrap_or(false)
}
