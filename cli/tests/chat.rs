//! A chat as its users meet it: the server's console at a pipe and at a terminal, the client, the
//! events, the configuration file.

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::PoisonError;

use common::{FORK, PATIENCE, Running, http, metric, reader, run};
use nix::pty::openpty;
use nix::sys::signal::Signal;

const GREETING: &str = "Hello from TCP chat! Send a message, or '!' to disconnect.";
const WORDS: &str = "An empty line or the end of input stops the server, '!' restarts it, any other \
                     line goes to everyone.";

/// A terminal: the side where one types, and the side for the program.
fn terminal() -> (File, Stdio) {
    let _lock = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    let pair = openpty(None, None).unwrap();
    // The first ones would be inherited: the program would hold its own keyboard.
    let keyboard = pair.master.try_clone().unwrap();
    let input = pair.slave.try_clone().unwrap();
    (File::from(keyboard), Stdio::from(input))
}

/// Someone in the chat who has been greeted.
fn member(address: SocketAddr, framed: bool) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    hears(&mut stream, GREETING);
    if framed {
        hears(&mut stream, "\n");
    }
    stream
}

fn hears(stream: &mut TcpStream, text: &str) {
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), text);
}

fn hears_the_end(mut stream: TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(String::from_utf8_lossy(&rest), "");
}

#[test]
fn words_at_the_console() {
    for (on_terminal, frame) in [(false, "read"), (true, "line"), (true, "read")] {
        let arguments = ["serve", "chat", "tcp://127.0.0.1:0", "--shards", "2"];
        let arguments = [&arguments[..], &["--frame", frame]].concat();
        let (mut keyboard, mut server) = if on_terminal {
            let (keyboard, input) = terminal();
            (Some(keyboard), Running::start(&arguments, input))
        } else {
            (None, Running::start(&arguments, Stdio::piped()))
        };
        let mut type_in = |server: &mut Running, text: &str| match &mut keyboard {
            Some(keyboard) => keyboard.write_all(text.as_bytes()).unwrap(),
            None => server.write(text),
        };
        let address = server.address("tcp");
        server.line(WORDS);
        let framed = frame == "line";
        let end = if framed { "\n" } else { "" };
        let mut members: Vec<_> = (0..6).map(|_| member(address, framed)).collect();
        type_in(&mut server, "hello all\n");
        for one in &mut members {
            hears(one, &format!("(admin) hello all{end}"));
        }
        type_in(&mut server, "!\n");
        for one in members {
            hears_the_end(one);
        }
        server.line("Server restarting...Done!");
        let mut one = member(address, framed);
        type_in(&mut server, "back\n");
        hears(&mut one, &format!("(admin) back{end}"));
        type_in(&mut server, "\n");
        hears_the_end(one);
        server.line("Server stopping...Done!");
        server.ended_well();
    }
}

/// Services must stay up when nobody is at their input.
#[test]
fn the_end_of_no_input_stops_nothing() {
    let serve = ["serve", "chat", "tcp://127.0.0.1:0", "--shards", "1"];
    let told = [&serve[..], &["--no-console"]].concat();
    for (arguments, input) in [(&serve[..], Stdio::null()), (&told[..], Stdio::piped())] {
        let mut server = Running::start(arguments, input);
        let address = server.address("tcp");
        drop(server.input.take());
        let mut one = member(address, false);
        one.write_all(b"still there").unwrap();
        hears(&mut one, "still there");
        drop(one);
        server.signal(Signal::SIGTERM);
        server.ended_well();
    }
}

#[test]
fn people_talk_leave_and_come_back() {
    let mut server = Running::start(
        &["serve", "chat", "tcp://127.0.0.1:0", "--shards", "2"],
        Stdio::null(),
    );
    let address = server.address("tcp");
    let endpoint = format!("tcp://{address}");
    let mut people: Vec<_> = (0..3)
        .map(|_| Running::start(&["chat", &endpoint], Stdio::piped()))
        .collect();
    for one in &mut people {
        assert_eq!(one.line(""), GREETING);
    }
    people[0].write("hello\n");
    for one in &mut people {
        assert_eq!(one.line(""), "hello");
    }
    // Disconnects, and is back by itself.
    people[1].write("!\n");
    assert_eq!(people[1].line(""), GREETING);
    people[1].write("again\n");
    for one in &mut people {
        assert_eq!(one.line(""), "again");
    }
    people[2].write("\n");
    people[2].ended_well();
    for mut one in people.drain(..2) {
        drop(one.input.take());
        one.ended_well();
    }
    server.signal(Signal::SIGTERM);
    server.ended_well();
}

#[test]
fn a_person_at_a_terminal_disconnects_and_ends() {
    let mut server = Running::start(
        &["serve", "chat", "tcp://127.0.0.1:0", "--frame", "line"],
        Stdio::null(),
    );
    let endpoint = format!("tcp://{}", server.address("tcp"));
    let (mut keyboard, input) = terminal();
    let mut one = Running::start(&["chat", &endpoint, "--frame", "line"], input);
    assert_eq!(one.line(""), GREETING);
    keyboard.write_all(b"typed\n").unwrap();
    assert_eq!(one.line(""), "typed");
    keyboard.write_all(b"!\n").unwrap();
    assert_eq!(one.line(""), GREETING);
    keyboard.write_all(b"\n").unwrap();
    one.ended_well();
    server.signal(Signal::SIGTERM);
    server.ended_well();
}

#[test]
fn connects_disconnects_and_refusals_are_told() {
    for (flags, is_json) in [
        (&["--events", "json"][..], true),
        (&["--events", "text", "--json"][..], true),
        (&["--events", "text"][..], false),
    ] {
        let serve = ["serve", "chat", "tcp://127.0.0.1:0", "--shards", "1"];
        let arguments = [&serve[..], &["--max-connections", "1"], flags].concat();
        let mut server = Running::start(&arguments, Stdio::null());
        let address = server.address("tcp");
        let mut one = member(address, false);
        let peer = one.local_addr().unwrap().to_string();
        if is_json {
            let event = server.event("connected");
            assert_eq!(event["session"], 1);
            assert_eq!(event["transport"], "tcp");
            assert_eq!(event["peer"], peer.as_str());
        } else {
            server.line(&format!("chat: session 1 connected by TCP from {peer}"));
        }
        // The reset may come before the connect has been seen to succeed.
        if let Ok(mut refused) = TcpStream::connect_timeout(&address, PATIENCE) {
            let _ = refused.read_to_end(&mut Vec::new());
        }
        if is_json {
            assert_eq!(server.event("refused")["count"], 1);
        } else {
            server.line("chat: 1 connections refused: too many are open");
        }
        one.write_all(b"!").unwrap();
        hears(&mut one, "!");
        hears_the_end(one);
        if is_json {
            let event = server.event("disconnected");
            assert_eq!(event["session"], 1);
            assert_eq!(event["reason"], "left");
        } else {
            server.line("chat: session 1 disconnected: left");
        }
        server.signal(Signal::SIGTERM);
        server.ended_well();
    }
}

#[test]
fn a_chat_beside_an_echo_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services.toml");
    let socket = folder.path().join("chat.sock");
    let text = format!(
        "[engine]\nshards = 2\nmetrics = \"127.0.0.1:0\"\n\
         [[service]]\nname = \"echo\"\nmodule = \"echo\"\nendpoints = [\"tcp://127.0.0.1:0\"]\n\
         [[service]]\nname = \"talk\"\nmodule = \"chat\"\nendpoints = [\"unix:{}\"]\n\
         frame = \"line\"\nqueue_messages = 100\n",
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut server = Running::start(&["run", file.to_str().unwrap()], Stdio::null());
    server.line("talk at unix:");
    let url = server.line("metrics at http://");
    let mut one = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let lines = reader(one.try_clone().unwrap());
    assert_eq!(
        lines.recv_timeout(PATIENCE).unwrap(),
        GREETING.replace("TCP", "Unix")
    );
    one.write_all(b"one\ntwo\n").unwrap();
    assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), "one");
    assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), "two");
    let address = url.trim_start_matches("metrics at http://");
    let address = address.trim_end_matches("/metrics").parse().unwrap();
    let (_, text) = http(address, "GET /metrics");
    let talk = ["service=\"talk\""];
    assert_eq!(metric(&text, "ringmill_chat_sessions", &talk), 1.0);
    assert!(metric(&text, "ringmill_chat_deliveries_total", &talk) >= 1.0);
    one.write_all(b"!\n").unwrap();
    assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), "!");
    drop(one);
    server.signal(Signal::SIGTERM);
    server.ended_well();
}

#[test]
fn a_chat_is_of_streams() {
    for arguments in [
        &["serve", "chat", "udp://:1111"][..],
        &["chat", "udp://:1111"],
    ] {
        let (code, _, errors) = run(arguments);
        assert_eq!(code, 2, "{errors}");
        assert!(errors.contains("use tcp:// or unix:"), "{errors}");
    }
}
