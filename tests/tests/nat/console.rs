//! The console at a real terminal: every command, with the words that its users know.

use std::net::UdpSocket;

use ringmill_tests::net::datagram_socket;
use ringmill_tests::program::{PATIENCE, command};

use crate::process::{at, exchange};
use crate::terminal::Terminal;

/// Clients of each test.
const CLIENTS: usize = 3;

const HELP: &str = "\
help, ?               print this help
info, <empty line>    print entries and destinations
exit, quit            stop and end
clear [n]             drop n NAT entries, or all
reassign              give every entry a new local socket and a new destination
rebalance             take stale destinations back and give every entry a new destination
add <host:port>       add a destination
remove <host:port>    remove a destination
reverse (on|off)      turn the reverse destination update on or off";

/// A NAT at a terminal, two servers of which it knows the first, and clients.
struct Bench {
    terminal: Terminal,
    nat: std::net::SocketAddr,
    servers: [UdpSocket; 2],
    clients: Vec<UdpSocket>,
}

impl Bench {
    fn start(program: &str, flags: &[&str]) -> Self {
        let servers = [(); 2].map(|()| datagram_socket("127.0.0.1:0"));
        // A port that was free a moment ago, as the lines at the start are to be known in full.
        let nat = at(&datagram_socket("127.0.0.1:0"));
        let mut line = command();
        line.args([program, &nat.to_string(), &at(&servers[0]).to_string()]);
        line.args(flags);
        Self {
            terminal: Terminal::start(line),
            nat,
            servers,
            clients: (0..CLIENTS)
                .map(|_| datagram_socket("127.0.0.1:0"))
                .collect(),
        }
    }

    /// Reads the line that says where it serves; other lines may come before it.
    fn serves(&self) {
        let want = format!("nat at udp://{}, ", self.nat);
        loop {
            let line = self.terminal.line().expect("a NAT");
            if line.starts_with(&want) {
                return;
            }
            assert!(line.starts_with("ringmill: "), "{line}");
        }
    }

    /// Every client asks, and the server with this number answers; gives the ports that it saw.
    fn all_ask(&self, server: usize) -> Vec<u16> {
        let ask = |client| exchange(client, self.nat, &self.servers[server], b"hello").port();
        self.clients.iter().map(ask).collect()
    }
}

#[test]
fn every_word_at_a_terminal() {
    for (program, last) in [("nat", "exit"), ("cf-nat", "quit")] {
        let mut bench = Bench::start(program, &[]);
        let [one, two] = [0, 1].map(|n| at(&bench.servers[n]).to_string());
        if program == "cf-nat" {
            bench.terminal.shows(&format!(
                "in : {nat} => {nat}\nout: {one} => {one}",
                nat = bench.nat
            ));
        }
        bench.serves();
        bench.all_ask(0);
        let disabled = "3 NAT entries, reverse address update disabled.\n1 destinations.\n";
        let info = format!("{disabled}Destination: {one}, usage: 3");
        let terminal = &mut bench.terminal;
        for word in ["help", "?", "  help "] {
            terminal.says(word, HELP);
        }
        for word in ["info", "", "  "] {
            terminal.says(word, &info);
        }
        let enabled = info.replace("disabled", "enabled");
        terminal.says("reverse on", &enabled);
        terminal.says("info", &enabled);
        terminal.says("reverse off", &info);
        terminal.says(
            &format!("add {two}"),
            &format!("out: {two} => {two}\n/{two} added"),
        );
        terminal.says(&format!("add {two}"), &format!("out: {two} => {two}"));
        terminal.says(
            "info",
            &format!(
                "3 NAT entries, reverse address update disabled.\n2 destinations.\n\
                 Destination: {one}, usage: 3\nDestination: {two}, usage: 0"
            ),
        );
        terminal.says(
            &format!("remove {one}"),
            &format!("out: {one} => {one}\n/{one} removed"),
        );
        terminal.says(&format!("remove {one}"), &format!("out: {one} => {one}"));
        terminal.says("rebalance", "reassigned 3 destinations of 3.");
        terminal.says("rebalance", "reassigned 0 destinations of 3.");
        let before = bench.all_ask(1);
        // It says nothing, so what the next word says must come next.
        let terminal = &mut bench.terminal;
        terminal.enter("reassign");
        terminal.says("info", &info.replace(&one, &two));
        let after = bench.all_ask(1);
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(before, after, "{program}: a new local socket");
        }
        let terminal = &mut bench.terminal;
        terminal.says("clear 1", "1 - NAT entries dropped.");
        terminal.says("clear 0", "0 - NAT entries dropped.");
        terminal.says("clear", "2 - NAT entries dropped.");
        terminal.says("clear 5", "0 - NAT entries dropped.");
        for (word, answer) in [
            ("hepl", "unknown command 'hepl': 'help' lists all"),
            ("reverse", "'reverse' needs 'on' or 'off'"),
            ("add", "'add' needs a destination: add HOST:PORT"),
            (
                "clear some",
                "'clear' takes a number of entries, or nothing for all",
            ),
        ] {
            terminal.says(word, answer);
        }
        bench.all_ask(1);
        bench.terminal.enter(last);
        let (code, lines) = bench.terminal.wait(PATIENCE);
        assert_eq!(
            lines,
            [
                ">> exit".to_owned(),
                format!(
                    "NAT {} stopped. 12 forwarded messages, 12 backwarded",
                    bench.nat
                )
            ],
            "{program}"
        );
        assert_eq!(code, Some(0), "{program}");
    }
}

/// Each option of the original prints its line, in the order of the command line.
#[test]
fn the_lines_of_the_original_at_its_start() {
    let flags = [
        "-r",
        "-tnat=5000",
        "-tlb2000",
        "-n=7",
        "-f=0",
        "-b0",
        "-s=1200:50",
        "-x",
        "-zz",
    ];
    let mut bench = Bench::start("cf-nat", &flags);
    let (nat, server) = (bench.nat, at(&bench.servers[0]));
    bench.terminal.shows(&format!(
        "in : {nat} => {nat}\n\
         out: {server} => {server}\n\
         enable NAT reverse update.\n\
         NAT timeout 5000[ms].\n\
         LoadBalancer timeout 2000[ms].\n\
         NAT max. entires 7\n\
         dropping 0% of forward messages.\n\
         dropping 0% of backwards messages.\n\
         size limit 1200 bytes, 50 %.\n\
         enable DTLS filter.\n\
         option '-zz' unknown!"
    ));
    bench.serves();
    let seed = bench.terminal.line().expect("a seed");
    assert!(seed.starts_with("seed "), "{seed}");
    bench.terminal.says(
        "",
        &format!(
            "0 NAT entries, reverse address update enabled.\n1 destinations.\n\
             Destination: {server}, usage: 0"
        ),
    );
    // The end of the input ends nothing; Ctrl-C does.
    bench.terminal.press(&[4]);
    bench.clients.truncate(0);
    bench.terminal.press(&[3]);
    let (code, lines) = bench.terminal.wait(PATIENCE);
    let stopped = format!("NAT {nat} stopped. 0 forwarded messages, 0 backwarded");
    assert_eq!(lines, [stopped]);
    assert_eq!(code, Some(0));
}

/// `:PORT` is every address there, and several local addresses stand before `--`.
#[test]
fn where_the_original_listens() {
    let server = datagram_socket("127.0.0.1:0");
    let to = at(&server).to_string();
    let free = || at(&datagram_socket("127.0.0.1:0")).port();
    let port = free();
    let mut line = command();
    line.args(["cf-nat", &format!(":{port}"), &to]);
    let mut terminal = Terminal::start(line);
    terminal.shows(&format!("in : :{port} => <any>:{port}\nout: {to} => {to}"));
    let listening = terminal.line().expect("a NAT");
    assert!(listening.starts_with("nat at udp://"), "{listening}");
    let client = datagram_socket("0.0.0.0:0");
    exchange(
        &client,
        ([127, 0, 0, 9], port).into(),
        &server,
        b"any address",
    );
    terminal.enter("exit");
    let (code, _) = terminal.wait(PATIENCE);
    assert_eq!(code, Some(0));

    let locals = [(); 2].map(|()| format!("127.0.0.1:{}", free()));
    let mut line = command();
    line.args(["cf-nat", &locals[0], &locals[1], "--", &to]);
    let mut terminal = Terminal::start(line);
    let [one, two] = &locals;
    terminal.shows(&format!(
        "in : {one} => {one}\nin : {two} => {two}\nout: {to} => {to}"
    ));
    for local in &locals {
        let line = terminal.line().expect("a NAT");
        assert!(
            line.starts_with(&format!("nat at udp://{local}, ")),
            "{line}"
        );
    }
    for local in &locals {
        let local = local.parse().expect("an address");
        exchange(&client, local, &server, b"each of them");
    }
    terminal.says(
        "info",
        &format!(
            "2 NAT entries, reverse address update disabled.\n1 destinations.\n\
             Destination: {to}, usage: 2"
        ),
    );
    terminal.enter("quit");
    assert_eq!(terminal.wait(PATIENCE).0, Some(0));
}

/// What is wrong with the command line is said in one line, and nothing is left running.
#[test]
fn a_wrong_command_line_of_the_original() {
    for (arguments, want) in [
        (
            &["127.0.0.1:0"][..],
            "needs :PORT and at least one destination",
        ),
        (
            &["127.0.0.1:0", "127.0.0.1:9", "-d=5", "-f=5"],
            "dropping already provided!",
        ),
        (
            &["127.0.0.1:0", "127.0.0.1:9", "-d=500"],
            "no percentage from 0 to 100",
        ),
    ] {
        let mut line = command();
        line.arg("cf-nat").args(arguments);
        let output = line.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(want), "{arguments:?}: {said}");
    }
}
