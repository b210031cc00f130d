//! `ringmill serve`: one protocol on any number of endpoints.

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::args::{EngineArgs, GuardArgs, LimitArgs, parse_loopback_address};
use crate::chat::ChatArgs;
use crate::commands::tune::{LoadOnHost, TuneFlag};
use crate::config::Configuration;
use crate::dns::AnswerArgs;
use crate::endpoint::Endpoint;
use crate::exit::{Exit, UsageError};
use crate::multicast::{MulticastSettings, take_interface_for};
use crate::server::{self, ConsoleArgs};
use crate::service::{Definition, Module};

/// Flags of `ringmill serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The protocol.
    #[command(subcommand)]
    pub protocol: ServeProtocol,

    /// The host.
    #[command(flatten)]
    pub tune: TuneFlag,
}

impl ServeArgs {
    /// What the host is asked to carry.
    pub(super) fn load_on_host(&self) -> LoadOnHost {
        let (ServeProtocol::Echo { server, .. }
        | ServeProtocol::Multicast { server, .. }
        | ServeProtocol::Dns { server, .. }
        | ServeProtocol::Discard(server)
        | ServeProtocol::Chat { server, .. }) = &self.protocol;
        LoadOnHost::of_server(server.limits.max_connections, &server.engine)
    }
}

/// What can be served.
#[derive(Debug, Subcommand)]
pub enum ServeProtocol {
    /// Send back everything that arrives.
    #[command(after_help = ECHO_EXAMPLES)]
    Echo {
        /// Which datagrams are answered.
        #[command(flatten)]
        guard: GuardArgs,

        /// Those of every server.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Send numbered messages, evenly paced, to every session and to multicast groups.
    #[command(after_help = MULTICAST_EXAMPLES)]
    Multicast {
        /// What is sent.
        #[command(flatten)]
        settings: MulticastSettings,

        /// Those of every server.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Give every question for an address the same answer: to measure clients and networks.
    #[command(after_help = DNS_EXAMPLES)]
    Dns {
        /// What everybody gets.
        #[command(flatten)]
        answer: AnswerArgs,

        /// Which datagrams are answered.
        #[command(flatten)]
        guard: GuardArgs,

        /// Those of every server.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Take everything and answer nothing.
    Discard(ServerArgs),
    /// Send every message to everyone: all sessions on all shards, the sender too.
    ///
    /// A session that sends exactly '!' is disconnected. On the console a line goes to everyone with
    /// the prefix '(admin) ', '!' restarts the server and an empty line stops it.
    #[command(after_help = CHAT_EXAMPLES)]
    Chat {
        /// How it behaves.
        #[command(flatten)]
        chat: ChatArgs,

        /// Those of every server.
        #[command(flatten)]
        server: ServerArgs,
    },
}

const CHAT_EXAMPLES: &str = "\
Examples:
  ringmill serve chat tcp://:1111 unix:/tmp/chat.sock
  ringmill serve chat 'tcp://*:1111' --frame line --slow-reader disconnect --events json
  ringmill chat tcp://:1111                      take part";

const DNS_EXAMPLES: &str = "\
What is no query gets no answer: silence over UDP, a close over TCP. See docs/dns.md.

Examples:
  ringmill serve dns udp://:5353 tcp://:5353      this machine only
  ringmill serve dns 'udp://*:53' --answer 10.0.0.1,2001:db8::7 --ttl 5
  ringmill load dns udp://:5353 --rate 100k -c 5";

const ECHO_EXAMPLES: &str = "\
Examples:
  ringmill serve echo tcp://:7000 udp://:7000    this machine only
  ringmill serve echo 'tcp://*:7000'             every address
  ringmill serve echo unix:/run/echo.sock --shards 2 --json";

const MULTICAST_EXAMPLES: &str = "\
A tcp:// or unix: endpoint is listened on, and every session gets every message of its shard. A
udp:// endpoint is a group to send to: 239.0.0.0/8 or IPv6 up to site scope. --interface is then also
the interface that groups are sent on. See docs/multicast.md.

Examples:
  ringmill serve multicast tcp://:7000 unix:/run/feed.sock --rate 10k
  ringmill serve multicast tcp://:7000 --rate max --slow-readers disconnect
  ringmill serve multicast udp://239.255.0.1:3334 --interface lo
  ringmill load multicast udp://239.255.0.1:3334 --interface lo -c 10";

/// Flags of every server.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Where to serve: tcp://:7000, udp://*:7000, unix:/path. ':PORT' is loopback only,
    /// '*:PORT' every address.
    #[arg(required = true, value_name = "ENDPOINT")]
    pub endpoints: Vec<Endpoint>,

    /// Print events as NDJSON: listening, interval (each second), stopped. No console then.
    #[arg(long)]
    pub json: bool,

    /// Tell load clients the CPU time of this server at ADDR (their --server-stats); a bare :PORT
    /// means 127.0.0.1.
    #[arg(long, value_name = "ADDR", value_parser = parse_loopback_address)]
    pub stats: Option<SocketAddr>,

    /// What standard input means.
    #[command(flatten)]
    pub console: ConsoleArgs,

    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,

    /// Bounds.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Serves until a signal or a word ends it.
///
/// # Errors
/// When an endpoint cannot be bound or a shard fails.
pub fn run(args: &ServeArgs) -> Result<Exit> {
    let (module, args) = match &args.protocol {
        ServeProtocol::Echo { guard, server } => (Module::Echo(*guard), server),
        ServeProtocol::Multicast { settings, server } => {
            (Module::Multicast(settings.clone()), server)
        }
        ServeProtocol::Dns {
            answer,
            guard,
            server,
        } => (Module::Dns(answer.clone(), *guard), server),
        ServeProtocol::Discard(server) => (Module::Discard, server),
        ServeProtocol::Chat { chat, server } => (Module::Chat(*chat), server),
    };
    for endpoint in &args.endpoints {
        if let Some(why) = module.refuses(endpoint) {
            return Err(UsageError(format!("{endpoint}: {why}")).into());
        }
    }
    let mut engine = args.engine.clone();
    let module = match module {
        Module::Multicast(settings) => Module::Multicast(MulticastSettings {
            interface: take_interface_for(&mut engine, &args.endpoints)?,
            ..settings
        }),
        other => other,
    };
    let configuration = Configuration {
        json: args.json,
        stats: args.stats,
        engine,
        limits: args.limits.clone(),
        services: vec![Definition {
            name: module.name().to_owned(),
            module,
            endpoints: args.endpoints.clone(),
        }],
    };
    server::run(&configuration, args.console, None)
}
