//! `ringmill run`: any number of services from a file, on one set of shards.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::commands::tune::{LoadOnHost, TuneFlag};
use crate::config::{self, Configuration};
use crate::exit::Exit;
use crate::launch::Placement;
use crate::server::{self, ConsoleArgs};
use crate::service::Module;

/// Flags of `ringmill run`.
#[derive(Debug, Args)]
#[command(after_long_help = FILE_HELP)]
pub struct RunArgs {
    /// The configuration file (TOML). It is read once: a change while the services run is not
    /// applied. SIGHUP reads it again and says whether it is valid.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Only check the file and whether it fits this machine; start nothing.
    #[arg(long)]
    pub check: bool,

    /// Print the effective configuration, every default written out, and start nothing.
    #[arg(long)]
    pub print_config: bool,

    /// Print events as NDJSON, as `json = true` in the file does.
    #[arg(long)]
    pub json: bool,

    /// What standard input means.
    #[command(flatten)]
    pub console: ConsoleArgs,

    /// The host.
    #[command(flatten)]
    pub tune: TuneFlag,
}

impl RunArgs {
    /// What the host is asked to carry; nothing where nothing is started.
    pub(super) fn load_on_host(&self) -> LoadOnHost {
        match config::load(&self.file) {
            Ok(file) if !self.check && !self.print_config => {
                LoadOnHost::of_server(file.limits.max_connections, &file.engine)
            }
            // What is wrong with the file is said when it is read to be run.
            _ => LoadOnHost::nothing(),
        }
    }
}

const FILE_HELP: &str = "\
The file, with everything but the services optional:

  json = false               # events as NDJSON
  stats = \":9101\"            # CPU time for load clients
  [engine]                   # the flags of `ringmill serve`, with _ for -
  shards = \"auto\"
  interface = [\"eth0\", \"eth1\"]
  metrics = \":9100\"
  [limits]
  idle_timeout = \"5min\"
  [[service]]                # as many as you like
  name = \"front\"             # labels its counters
  module = \"echo\"            # or \"multicast\", \"dns\", \"discard\", \"chat\"
  endpoints = [\"tcp://:7000\", \"udp://:7000\"]
  per_source_rate = 10000    # modules echo, dns: datagrams per second and source
  [[service]]
  name = \"talk\"
  module = \"chat\"
  endpoints = [\"tcp://:1111\", \"unix:/run/chat.sock\"]
  frame = \"line\"             # or \"read\"; also line_max, queue_messages, events
  slow_reader = \"drop-oldest\"  # or \"drop-newest\", \"disconnect\"
  [[service]]
  name = \"feed\"
  module = \"multicast\"
  endpoints = [\"tcp://:3334\", \"udp://239.255.0.1:3334\"]
  multicast = { rate = \"10k\", size = 64, interface = \"eth0\" }  # its flags
  [[service]]
  name = \"names\"
  module = \"dns\"
  endpoints = [\"tcp://:5353\", \"udp://:5353\"]
  dns = { answer = [\"192.0.2.1\"], ttl = 60 }  # its flags";

/// Runs the services of a file.
///
/// # Errors
/// When the file is wrong, an endpoint cannot be bound, or a shard fails.
pub fn run(args: &RunArgs) -> Result<Exit> {
    let mut configuration = config::load(&args.file)?;
    configuration.json |= args.json;
    // Everything is checked before anything starts: the text above, the machine here.
    if args.check || args.print_config {
        let placement = check(&configuration)?;
        if args.print_config {
            print!("{}{}", summary(&placement), configuration.to_toml());
        } else {
            println!("{}: valid", args.file.display());
        }
        return Ok(Exit::Ok);
    }
    let reload = || -> Result<String> {
        let mut found = config::load(&args.file)?;
        found.json |= args.json;
        check(&found)?;
        let file = args.file.display();
        Ok(if found == configuration {
            format!("{file} is valid and unchanged")
        } else {
            format!("{file} is valid; its changes take effect at the next start")
        })
    };
    server::run(&configuration, args.console, Some(&reload))
}

/// Checks what the text cannot tell: that names resolve, that CPUs and cards are there.
fn check(configuration: &Configuration) -> Result<Placement> {
    for service in &configuration.services {
        for endpoint in &service.endpoints {
            endpoint.listen_addresses()?;
        }
        if let Module::Multicast(settings) = &service.module {
            settings.groups(&service.endpoints)?;
        }
    }
    server::place(configuration)
}

/// What the plan makes of the settings, as comments.
fn summary(placement: &Placement) -> String {
    let shards = placement.plan.shards.iter();
    let cpus: Vec<_> = shards.map(|shard| shard.cpu.to_string()).collect();
    let note = placement.note.as_ref();
    format!(
        "# On this machine: {} shards on CPUs {}; up to {} connections.\n{}",
        placement.plan.shards.len(),
        cpus.join(", "),
        placement.connections_max,
        note.map_or_else(String::new, |note| format!("# {note}\n")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_the_help_is_valid() {
        let (_, file) = FILE_HELP.split_once("\n\n").unwrap();
        let read = config::parse(file, "help").unwrap();
        assert_eq!(read.engine.interface.len(), 2);
        assert_eq!(read.services.len(), 4);
    }
}
