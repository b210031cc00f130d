//! Flags that several commands share.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ringmill_engine::topology::CpuList;
use ringmill_engine::{DriverChoice, uring};

use crate::units;

/// Which driver to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum DriverArg {
    /// io_uring where the host allows it, else epoll, with one line that says why.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// epoll with recvmmsg and sendmmsg.
    Epoll,
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

/// How the engine runs: for every command that starts one.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Number of shards (threads): a number, or one for each core.
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub shards: ShardsArg,

    /// Run only on these CPUs, such as 0-3,8. Otherwise the plan of `ringmill topology` decides.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Run near this network card; may be repeated: one group of shards for each.
    #[arg(long, value_name = "NAME")]
    pub interface: Vec<String>,

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

/// Bounds of a server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Refuse connections past this number. Rings are added until they hold as many; by default
    /// it is what one ring on each shard holds.
    #[arg(long, value_name = "N", value_parser = parse_connections)]
    pub max_connections: Option<usize>,

    /// Close a connection on which nothing came or went for this long; 0 never does.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "0")]
    pub idle_timeout: Duration,

    /// Close a connection whose peer took nothing from a full queue for this long; 0 never does.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "60s")]
    pub write_stall_timeout: Duration,

    /// Unsent bytes that one connection may hold before it is paused.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, default_value = "1MiB")]
    pub queue_per_connection: u64,

    /// Unsent bytes that all connections of one shard may hold.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, default_value = "256MiB")]
    pub queue_per_shard: u64,

    /// How long a stop (SIGTERM) waits for queues to empty and peers to close.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "5s")]
    pub drain_timeout: Duration,

    /// Share the ports with other processes of the same user (SO_REUSEPORT).
    #[arg(long)]
    pub share_port: bool,
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
