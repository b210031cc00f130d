//! Words typed at a server and at the interactive client, over pipes and terminals.

mod common;

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::PoisonError;

use common::{FORK, PATIENCE, Running, echoes, reader};
use nix::pty::openpty;
use nix::sys::signal::Signal;

const SERVE: [&str; 5] = ["serve", "echo", "tcp://127.0.0.1:0", "--shards", "1"];

const WORDS: &str = "An empty line or the end of input stops the server, '!' restarts it.";

/// A terminal: the side where one types and reads, and the side for the program.
fn terminal() -> (File, Stdio) {
    let _lock = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    let pair = openpty(None, None).unwrap();
    // The first ones would be inherited: the program would hold its own keyboard.
    let keyboard = pair.master.try_clone().unwrap();
    let input = pair.slave.try_clone().unwrap();
    (File::from(keyboard), Stdio::from(input))
}

#[test]
fn which_inputs_are_listened_to() {
    let ended_pipe = || {
        let (read, _) = std::io::pipe().unwrap();
        Stdio::from(read)
    };
    let plain_file = || Stdio::from(File::open(env!("CARGO_BIN_EXE_ringmill")).unwrap());
    type Input = Box<dyn Fn() -> Stdio>;
    let cases: [(&str, Input, &[&str], bool); 8] = [
        ("a pipe", Box::new(Stdio::piped), &[], true),
        ("a pipe, JSON", Box::new(Stdio::piped), &["--json"], false),
        (
            "a pipe, JSON, forced",
            Box::new(Stdio::piped),
            &["--json", "--console"],
            true,
        ),
        (
            "a pipe, told not to",
            Box::new(Stdio::piped),
            &["--no-console"],
            false,
        ),
        ("a pipe that has ended", Box::new(ended_pipe), &[], false),
        ("/dev/null", Box::new(Stdio::null), &[], false),
        ("a file", Box::new(plain_file), &[], false),
        (
            "the last of both counts",
            Box::new(Stdio::piped),
            &["--console", "--no-console"],
            false,
        ),
    ];
    for (what, input, more, listens) in cases {
        let arguments: Vec<_> = SERVE.iter().chain(more).copied().collect();
        let mut server = Running::start(&arguments, input());
        let address = server.address("tcp");
        // The end of its input.
        drop(server.input.take());
        if !listens {
            echoes(address);
            server.signal(Signal::SIGTERM);
        }
        server.ended_well();
        let said = server.output();
        let console = |line: &String| line.contains(WORDS) || line.contains(r#""console""#);
        assert_eq!(said.iter().any(console), listens, "{what}: {said:#?}");
    }
    let (keyboard, input) = terminal();
    let mut server = Running::start(&SERVE, input);
    server.line(WORDS);
    drop(keyboard);
    server.ended_well();
}

#[test]
fn words_at_a_server() {
    for on_terminal in [false, true] {
        let (mut keyboard, mut server) = if on_terminal {
            let (keyboard, input) = terminal();
            (Some(keyboard), Running::start(&SERVE, input))
        } else {
            (None, Running::start(&SERVE, Stdio::piped()))
        };
        let mut type_in = |server: &mut Running, text: &str| match &mut keyboard {
            Some(keyboard) => keyboard.write_all(text.as_bytes()).unwrap(),
            None => server.write(text),
        };
        let address = server.address("tcp");
        server.line(WORDS);
        echoes(address);
        type_in(&mut server, "any other line is ignored\n!\n");
        server.line("Server restarting...Done!");
        // The port that the kernel chose is kept.
        echoes(address);
        type_in(&mut server, "!\n!\n\n");
        server.line("Server restarting...Done!");
        server.line("Server restarting...Done!");
        server.line("Server stopping...Done!");
        server.ended_well();
    }
}

#[test]
fn a_line_is_sent_and_its_answer_printed() {
    let mut server = Running::start(
        &["serve", "echo", "tcp://127.0.0.1:0", "udp://127.0.0.1:0"],
        Stdio::null(),
    );
    let streams = format!("tcp://{}", server.address("tcp"));
    let datagrams = format!("udp://{}", server.address("udp"));
    for endpoint in [&streams, &datagrams] {
        // Answers come although the input has ended.
        let mut client = Running::start(&["echo", endpoint], Stdio::piped());
        client.write("hello");
        drop(client.input.take());
        assert_eq!(client.line(""), "hello", "{endpoint}");
        client.ended_well();
        // What follows an empty line is not sent.
        let mut client = Running::start(&["echo", endpoint], Stdio::piped());
        client.write("one\n");
        assert_eq!(client.line(""), "one", "{endpoint}");
        client.write("two\n\nthree\n");
        assert_eq!(client.line(""), "two", "{endpoint}");
        client.ended_well();
    }
    server.signal(Signal::SIGTERM);
    server.ended_well();
}

#[test]
fn the_client_comes_back_after_a_disconnect() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", server.local_addr().unwrap());
    let (mut keyboard, input) = terminal();
    let mut client = Running::start(&["echo", &endpoint], input);
    let (first, _) = server.accept().unwrap();
    keyboard.write_all(b"typed\n").unwrap();
    let mut lines = reader(first.try_clone().unwrap());
    // Neither of the two ends a line on the wire.
    keyboard.write_all(b"more\n!\n").unwrap();
    assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), "typedmore");
    let (second, _) = server.accept().unwrap();
    // The server ends it this time.
    drop(second);
    let (third, _) = server.accept().unwrap();
    lines = reader(third.try_clone().unwrap());
    keyboard.write_all(b"here\n\n").unwrap();
    assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), "here");
    third.shutdown(std::net::Shutdown::Write).unwrap();
    client.ended_well();
}

#[test]
fn lines_that_cannot_be_sent_are_reported() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut client = Running::start(&["echo", &format!("tcp://{closed}")], Stdio::piped());
    client.write("lost\n");
    drop(client.input.take());
    client.error("1 line not sent");
    assert_eq!(client.ended().code(), Some(1));
}
