//! Flags that several commands share. Those of a server are also the keys of a configuration file,
//! with the same names (`-` becomes `_`), values and defaults.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ringmill_engine::topology::CpuList;
use ringmill_engine::{DriverChoice, uring};
use ringmill_protocols::guard::{GuardSettings, PER_SOURCE_RATE_DEFAULT};
use serde::{Deserialize, Serialize};

use crate::{as_text, units};

/// Which driver to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverArg {
    /// io_uring where the host allows it, else epoll, with one line that says why.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// epoll with recvmmsg and sendmmsg.
    Epoll,
}

impl DriverArg {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

impl From<DriverArg> for DriverChoice {
    fn from(driver: DriverArg) -> Self {
        match driver {
            DriverArg::Auto => Self::Auto,
            DriverArg::Uring => Self::Uring,
            DriverArg::Epoll => Self::Epoll,
        }
    }
}

/// `auto` or a number of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShardsArg {
    /// One for each core that the plan chooses.
    #[default]
    Auto,
    /// So many.
    Count(u16),
}

impl std::str::FromStr for ShardsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(count) if count > 0 => Ok(Self::Count(count)),
            _ => Err(format!(
                "'{text}' is neither 'auto' nor a number from 1 to 65535"
            )),
        }
    }
}

impl std::fmt::Display for ShardsArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// Where the shards run: for every command that plans them.
#[derive(Debug, Clone, PartialEq, Args, Default)]
pub struct PlacementArgs {
    /// Number of shards (threads): a number, or one for each core.
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub shards: ShardsArg,

    /// Run only on these CPUs, such as 0-3,8. Otherwise the plan of `ringmill topology` decides.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Run near this network card; may be repeated: one group of shards for each.
    #[arg(long, value_name = "NAME")]
    pub interface: Vec<String>,
}

/// How the engine runs: for every command that starts one.
#[derive(Debug, Clone, PartialEq, Args, Default, Serialize, Deserialize)]
#[command(next_help_heading = "Engine")]
#[serde(from = "EngineKeys", into = "EngineKeys")]
pub struct EngineArgs {
    /// Where its shards run.
    #[command(flatten)]
    pub placement: PlacementArgs,

    /// How to talk to the kernel.
    #[arg(long, value_enum, default_value_t)]
    pub driver: DriverArg,

    /// Spin this long for work before sleeping: lower latency for a whole CPU.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "0")]
    pub busy_poll: Duration,

    /// Serve metrics for Prometheus at http://ADDR/metrics; a bare :PORT means 127.0.0.1.
    #[arg(long, value_name = "ADDR", value_parser = parse_loopback_address)]
    pub metrics: Option<SocketAddr>,

    /// Refuse an optional io_uring feature, as an older kernel would (see `ringmill doctor`).
    #[arg(long, value_name = "FEATURE", hide = true)]
    pub uring_without: Vec<uring::Feature>,
}

// A user sees one flat list of flags and keys; so does the code that reads them.
impl Deref for EngineArgs {
    type Target = PlacementArgs;

    fn deref(&self) -> &PlacementArgs {
        &self.placement
    }
}

impl DerefMut for EngineArgs {
    fn deref_mut(&mut self) -> &mut PlacementArgs {
        &mut self.placement
    }
}

/// The table `[engine]` of a configuration file. One flat struct, because serde's `flatten` forgets
/// where in the file a value stands, and errors name the line.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EngineKeys {
    #[serde(with = "as_text::shards")]
    shards: ShardsArg,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<CpuList>,
    #[serde(with = "as_text::one_or_more")]
    interface: Vec<String>,
    driver: DriverArg,
    #[serde(with = "as_text::duration")]
    busy_poll: Duration,
    #[serde(with = "as_text::address", skip_serializing_if = "Option::is_none")]
    metrics: Option<SocketAddr>,
}

impl From<EngineKeys> for EngineArgs {
    fn from(keys: EngineKeys) -> Self {
        Self {
            placement: PlacementArgs {
                shards: keys.shards,
                cpus: keys.cpus,
                interface: keys.interface,
            },
            driver: keys.driver,
            busy_poll: keys.busy_poll,
            metrics: keys.metrics,
            uring_without: Vec::new(),
        }
    }
}

impl From<EngineArgs> for EngineKeys {
    fn from(args: EngineArgs) -> Self {
        // Named one by one, so that a new flag cannot be forgotten here unseen.
        let EngineArgs {
            placement:
                PlacementArgs {
                    shards,
                    cpus,
                    interface,
                },
            driver,
            busy_poll,
            metrics,
            uring_without: _,
        } = args;
        Self {
            shards,
            cpus,
            interface,
            driver,
            busy_poll,
            metrics,
        }
    }
}

/// Bounds of a server.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Limits")]
#[serde(default, deny_unknown_fields)]
pub struct LimitArgs {
    /// Refuse connections past this number; more rings are made when it needs them [default: what
    /// the shards' rings hold under the limit of open files].
    #[arg(long, value_name = "N", value_parser = parse_connections)]
    #[serde(with = "as_text::connections", skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,

    /// Close a connection on which nothing came or went for this long; 0 never does.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "0")]
    #[serde(with = "as_text::duration")]
    pub idle_timeout: Duration,

    /// Close a connection whose peer took nothing from a full queue for this long; 0 never does.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "60s")]
    #[serde(with = "as_text::duration")]
    pub write_stall_timeout: Duration,

    /// Unsent bytes that one connection may hold before it is paused.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, default_value = "1MiB")]
    #[serde(with = "as_text::size")]
    pub queue_per_connection: u64,

    /// Unsent bytes that all connections of one shard may hold.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, default_value = "256MiB")]
    #[serde(with = "as_text::size")]
    pub queue_per_shard: u64,

    /// Unsent messages that all connections of one shard may hold, however small they are.
    #[arg(long, value_name = "N", value_parser = units::parse_count, default_value = "8388608")]
    #[serde(with = "as_text::count")]
    pub queue_messages_per_shard: u64,

    /// How long a stop (SIGTERM) waits for queues to empty and peers to close.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "5s")]
    #[serde(with = "as_text::duration")]
    pub drain_timeout: Duration,

    /// Share the ports with other processes of the same user (SO_REUSEPORT).
    #[arg(long)]
    pub share_port: bool,

    /// Give a TCP connection to the shard of the CPU that received it, instead of by hash: for
    /// cards that spread their interrupts over the shards' CPUs. A card with one queue would load
    /// one shard only.
    #[arg(long)]
    pub steer_by_cpu: bool,
}

impl Default for LimitArgs {
    fn default() -> Self {
        Self {
            max_connections: None,
            idle_timeout: Duration::ZERO,
            write_stall_timeout: Duration::from_secs(60),
            queue_per_connection: 1 << 20,
            queue_per_shard: 256 << 20,
            queue_messages_per_shard: 8 << 20,
            drain_timeout: Duration::from_secs(5),
            share_port: false,
            steer_by_cpu: false,
        }
    }
}

/// Which datagrams a service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Datagrams")]
pub struct GuardArgs {
    /// Datagrams per second that each shard answers to one source address, so that forged sources
    /// cannot make a flood or a loop of it; 0 sets no limit.
    ///
    /// Shards share nothing, so each counts for itself: a source whose flows (source ports) fall to
    /// N shards may have N times as much answered. A loop is one flow and so stays on one shard.
    /// Where the sum matters, divide the rate by --shards.
    #[arg(
        long,
        value_name = "N",
        value_parser = parse_source_rate,
        default_value_t = PER_SOURCE_RATE_DEFAULT
    )]
    pub per_source_rate: u32,

    /// Hold loopback sources to the rate too.
    #[arg(long)]
    pub limit_loopback: bool,
}

impl Default for GuardArgs {
    fn default() -> Self {
        Self {
            per_source_rate: PER_SOURCE_RATE_DEFAULT,
            limit_loopback: false,
        }
    }
}

impl From<GuardArgs> for GuardSettings {
    fn from(args: GuardArgs) -> Self {
        Self {
            per_source_rate: (args.per_source_rate > 0).then_some(args.per_source_rate),
            limit_loopback: args.limit_loopback,
        }
    }
}

/// Datagrams per second of one source; 0 is no limit.
///
/// # Errors
/// When it is no count, or more than 32 bits hold.
pub fn parse_source_rate(text: &str) -> Result<u32, String> {
    let count = units::parse_count(text).map_err(|error| error.to_string())?;
    u32::try_from(count).map_err(|_| format!("{count} is too many; 0 sets no limit"))
}

/// A count of connections.
///
/// # Errors
/// When it is no count, or none at all.
pub fn parse_connections(text: &str) -> Result<usize, String> {
    let count = units::parse_count(text).map_err(|error| error.to_string())?;
    match usize::try_from(count) {
        Ok(0) => Err("at least 1 is needed".into()),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("{count} is too many")),
    }
}

/// An address to serve something local at: `:9100` is 127.0.0.1.
///
/// # Errors
/// When it is no address.
pub fn parse_loopback_address(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    full.parse()
        .map_err(|_| format!("'{text}' is no address; use :9100 or 10.0.0.1:9100"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        engine: EngineArgs,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        guard: GuardArgs,
    }

    #[test]
    fn no_flag_and_no_key_mean_the_same() {
        let flags = Flags::parse_from(["test"]);
        assert_eq!(flags.engine, EngineArgs::default());
        assert_eq!(flags.limits, LimitArgs::default());
        assert_eq!(flags.guard, GuardArgs::default());
    }
}
