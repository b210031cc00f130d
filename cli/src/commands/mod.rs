//! The commands: one file each. This one knows their names and turns errors into exit codes.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ringmill_protocols::capacity::CONTROL_PORT;

use crate::exit::{self, Exit};
use crate::firewall::{Firewall, Ports};
use crate::printer;

pub mod capacity;
pub mod chat;
pub mod demo;
pub mod echo;
pub mod generate;
pub mod load;
pub mod multicast;
pub mod nat;
pub mod report;
pub mod run;
pub mod serve;
pub mod soak;
pub mod tcpscaler;
pub mod topology;
pub mod tune;
pub mod udpst;

/// High-rate servers and network tests on every core.
#[derive(Debug, Parser)]
#[command(
    name = "ringmill",
    version,
    about,
    after_help = EXAMPLES,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ringmill demo                                  server and client on this machine, with a report
  ringmill serve echo tcp://:7000 udp://:7000    serve on every core, for this machine only
  ringmill load echo tcp://:7000 -c 1000         load it from 1000 connections
  ringmill soak --self -c 100k                   hold very many connections, both ends here

Endpoints: ':7000' is this machine only (127.0.0.1 and ::1), '*:7000' every address, or an address
or name; 'unix:/path' is a Unix socket.

Exit codes: 0 done, 1 failed, 2 wrong flags, file or endpoint, 3 a --fail-if condition, 4 wrong or
lost bytes, 130 ended by a second signal.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load an echo server on this machine for some seconds and report.
    Demo(demo::DemoArgs),
    /// Serve a protocol on every core.
    Serve(serve::ServeArgs),
    /// Run any number of services from a file on one set of shards.
    Run(run::RunArgs),
    /// Load a server and report what it did.
    Load(load::LoadArgs),
    /// Hold very many connections for a long time, with traffic that is checked.
    Soak(soak::SoakArgs),
    /// Measure the capacity of a path as TR-471 says, or be the server for that.
    Capacity(capacity::CapacityArgs),
    /// Forward datagrams through a NAT that balances, loses, delays and rebinds as told.
    Nat(nat::NatArgs),
    /// The same with the command line of Californium's NAT.
    CfNat(nat::cf::CfNatArgs),
    /// The capacity test with the command line of OB-UDPST.
    Udpst(udpst::UdpstArgs),
    // `ringmill load dns --help` names these three: the first page has no room for them.
    /// DNS queries over TCP with the command line of tcpscaler's tcpclient.
    #[command(hide = true)]
    Tcpclient(tcpscaler::TcpscalerArgs),
    /// DNS queries over UDP with the command line of tcpscaler's udpclient.
    #[command(hide = true)]
    Udpclient(tcpscaler::TcpscalerArgs),
    /// A TCP echo server with the command line of tcpscaler's tcpserver.
    #[command(hide = true)]
    Tcpserver(tcpscaler::TcpscalerArgs),
    /// Talk to a server by hand: typed lines go out, answers are printed.
    Echo(echo::EchoArgs),
    /// Take part in a chat: typed lines go to everyone, what everyone says is printed.
    Chat(chat::ChatArgs),
    /// Send typed lines to a multicast group, or print what is sent to it.
    Multicast(multicast::MulticastArgs),
    /// Show the machine and where shards would run.
    Topology(topology::TopologyArgs),
    /// Tune the host: check what limits it, plan, apply and revert changes.
    Tune(tune::TuneArgs),
    /// Show what this host allows, what ringmill will use, and what to change.
    Doctor(DoctorArgs),
    /// Join the reports of many hosts into one.
    Report(report::ReportArgs),
    /// Print shell completions.
    Completions(generate::CompletionsArgs),
    /// Write man pages.
    Man(generate::ManArgs),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(exit) = udpst::run_if_named(std::env::args_os()) {
        return exit;
    }
    if let Some(exit) = tcpscaler::run_if_named(std::env::args_os()) {
        return exit;
    }
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
        Command::Serve(args) => args.tune.around(args.load_on_host(), || serve::run(&args)),
        Command::Run(args) => args.tune.around(args.load_on_host(), || run::run(&args)),
        Command::Load(args) => args.tune.around(args.load_on_host(), || load::run(&args)),
        Command::Soak(args) => args.tune.around(args.load_on_host(), || soak::run(&args)),
        Command::Capacity(args) => args
            .tune
            .around(args.load_on_host(), || capacity::run(&args)),
        Command::Nat(args) => nat::run(&args),
        Command::CfNat(args) => nat::cf::run(&args),
        Command::Echo(args) => echo::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Multicast(args) => multicast::run(&args),
        Command::Udpst(args) => {
            return udpst::run("ringmill udpst", args.arguments.into_iter()).into();
        }
        Command::Tcpclient(args) => return by_name(tcpscaler::Program::TcpClient, args),
        Command::Udpclient(args) => return by_name(tcpscaler::Program::UdpClient, args),
        Command::Tcpserver(args) => return by_name(tcpscaler::Program::TcpServer, args),
        Command::Topology(args) => topology::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Doctor(args) => return doctor(&args),
    };
    printer::finish();
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("ringmill: {error:#}");
            exit::of(&error).into()
        }
    }
}

fn by_name(program: tcpscaler::Program, args: tcpscaler::TcpscalerArgs) -> ExitCode {
    let called = format!("ringmill {}", program.name());
    tcpscaler::run(program, &called, args.arguments.into_iter())
}

/// Flags of `ringmill doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    /// Show the firewall rules of a capacity server, too.
    #[arg(long)]
    capacity: bool,

    /// Its control port; may be repeated.
    #[arg(long, value_name = "PORT", requires = "capacity", default_values_t = [CONTROL_PORT], value_parser = clap::value_parser!(u16).range(1..))]
    port: Vec<u16>,

    /// The test ports that it was or will be given [default: those that the kernel gives].
    #[arg(long, value_name = "LO-HI", requires = "capacity", value_parser = capacity::server::parse_ports)]
    test_ports: Option<std::ops::RangeInclusive<u16>>,
}

fn doctor(args: &DoctorArgs) -> ExitCode {
    use ringmill_engine::uring::{self, Feature};
    let found = uring::probe(&uring::Options::default()).ok();
    let features: Vec<_> = Feature::ALL
        .into_iter()
        .map(|feature| {
            let (since, otherwise) = feature.about();
            crate::doctor::Feature {
                name: format!("{feature} (Linux {since})"),
                available: found.is_some_and(|found| found.has(feature)),
                otherwise: otherwise.into(),
            }
        })
        .collect();
    let firewall = args.capacity.then(|| {
        Firewall::new(&Ports {
            control: args.port.clone(),
            tests: args.test_ports.clone(),
        })
    });
    match crate::doctor::run(args.json, &features, firewall.as_ref()) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("ringmill: {error:#}");
            Exit::Failed.into()
        }
    }
}
