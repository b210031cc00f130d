//! The control socket: the console's words, answered in JSON, whoever asks and however.

use std::os::unix::fs::PermissionsExt as _;

use ringmill_tests::net::datagram_socket;
use ringmill_tests::program::{PATIENCE, Running, command, until};
use serde_json::{Value, json};

use crate::process::{Client, Nat, at, exchange};

/// Clients that a control socket serves at a time.
const CLIENTS_MAX: usize = 16;
/// Bytes of a line that it takes.
const LINE_BYTES_MAX: usize = 4096;

#[test]
fn every_word_is_answered_in_json() {
    let servers = [(); 2].map(|()| datagram_socket("127.0.0.1:0"));
    let [one, two] = [0, 1].map(|n| at(&servers[n]));
    let nat = Nat::start(&[one], &["--seed", "1"]);
    let clients: Vec<_> = (0..3).map(|_| datagram_socket("127.0.0.1:0")).collect();
    for client in &clients {
        exchange(client, nat.address(), &servers[0], b"hello");
    }
    let mut client = Client::connect(nat.control());
    for word in ["help", "?"] {
        let answer = client.ask(word);
        let help = answer["help"].as_str().expect("a text");
        assert_eq!(help.lines().count(), 9, "{help}");
        assert_eq!(
            answer,
            json!({ "command": "help", "ok": true, "help": help })
        );
    }
    for word in ["info", "", "   "] {
        let mut info = client.ask(word);
        assert_eq!(info["counters"]["forward_received_datagrams"], 3, "{info}");
        assert_eq!(info["counters"]["forward_received_bytes"], 15, "{info}");
        assert_eq!(info["counters"]["backward_sent_datagrams"], 3, "{info}");
        assert_eq!(info["forward"]["offered"], 0, "{info}");
        assert_eq!(info["backward"]["offered"], 0, "{info}");
        let fields = info.as_object_mut().expect("an object");
        for field in ["counters", "forward", "backward"] {
            fields.remove(field);
        }
        let idle = info["destinations"][0]["idle_s"].take();
        assert!(idle.as_f64().is_some_and(|idle| idle < 20.0), "{idle}");
        assert_eq!(
            info,
            json!({
                "command": "info",
                "ok": true,
                "entries": 3,
                "reverse_update": false,
                "events_lost": 0,
                "destinations": [{
                    "name": one.to_string(),
                    "address": one,
                    "state": "active",
                    "idle_s": null,
                    "entries": 3,
                    "forward_datagrams": 3,
                    "forward_bytes": 15,
                    "backward_datagrams": 3,
                    "backward_bytes": 15,
                }],
            })
        );
    }
    let add = |command: &str, destination, changed| {
        json!({
            "command": command,
            "ok": true,
            "destination": format!("{destination}"),
            "address": destination,
            "changed": changed,
        })
    };
    let failed = |command: Option<&str>, error: &str| json!({ "command": command, "ok": false, "error": error });
    for (word, want) in [
        (
            "reverse on".to_owned(),
            json!({ "command": "reverse", "ok": true, "reverse_update": true }),
        ),
        (
            "reverse off".to_owned(),
            json!({ "command": "reverse", "ok": true, "reverse_update": false }),
        ),
        (format!("add {two}"), add("add", two, true)),
        (format!("add {two}"), add("add", two, false)),
        (format!("remove {one}"), add("remove", one, true)),
        (format!("remove {one}"), add("remove", one, false)),
        (
            "rebalance".to_owned(),
            json!({ "command": "rebalance", "ok": true, "entries": 3, "changed": 3 }),
        ),
        (
            "reassign".to_owned(),
            json!({ "command": "reassign", "ok": true, "entries": 3, "changed": 3 }),
        ),
        (
            "clear 2".to_owned(),
            json!({ "command": "clear", "ok": true, "dropped": 2 }),
        ),
        (
            "clear".to_owned(),
            json!({ "command": "clear", "ok": true, "dropped": 1 }),
        ),
        (
            "hepl".to_owned(),
            failed(None, "unknown command 'hepl': 'help' lists all"),
        ),
        (
            "help me".to_owned(),
            failed(None, "'help' takes no argument, but 'me' came"),
        ),
        (
            "add a:1 b:2".to_owned(),
            failed(None, "'b:2' is too much: one argument at most"),
        ),
        (
            "reverse maybe".to_owned(),
            failed(None, "'reverse' needs 'on' or 'off'"),
        ),
    ] {
        assert_eq!(client.ask(&word), want, "{word}");
    }
    for word in [
        "add nonsense",
        "add *:99",
        "add tcp://127.0.0.1:1",
        "remove no-such-host.invalid:1",
    ] {
        let answer = client.ask(word);
        assert_eq!(answer["ok"], false, "{word}: {answer}");
        let command = word.split(' ').next();
        assert_eq!(answer["command"], json!(command), "{word}: {answer}");
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(!error.is_empty(), "{word}: {answer}");
    }
    // A client that hangs up in the middle, and one that is in a hurry.
    Client::connect(nat.control()).write(b"inf");
    let mut hasty = Client::connect(nat.control());
    hasty.write(b"clear\nreverse on\r\ninfo\n");
    let answers: Vec<Value> = (0..3).filter_map(|_| hasty.answer()).collect();
    assert_eq!(answers[0]["dropped"], 0, "{answers:?}");
    assert_eq!(answers[2]["reverse_update"], true, "{answers:?}");
    assert_eq!(client.ask("exit"), json!({ "command": "exit", "ok": true }));
    assert_eq!(client.answer(), None, "it hangs up");
    let stopped = nat.ended();
    assert_eq!(stopped.count("counters.entries_cleared"), 3);
    assert_eq!(stopped.count("counters.reassigned"), 3);
    assert_eq!(stopped.count("counters.rebound"), 3);
}

#[test]
fn lines_that_are_none() {
    let nat = Nat::start(&[([127, 0, 0, 1], 9).into()], &[]);
    let mut client = Client::connect(nat.control());
    client.write(b"\xff\xfe info\n");
    assert_eq!(
        client.answer().expect("an answer"),
        json!({ "command": null, "ok": false, "error": "the line is not UTF-8" })
    );
    assert_eq!(client.ask("clear")["dropped"], 0, "and it goes on");
    // As long as allowed, with its end.
    let mut word = "x".repeat(LINE_BYTES_MAX - 1);
    assert_eq!(client.ask(&word)["ok"], false);
    assert_eq!(client.ask("clear")["dropped"], 0, "and it goes on");
    word.push('x');
    client.write(word.as_bytes());
    assert_eq!(
        client.answer().expect("an answer"),
        json!({ "command": null, "ok": false, "error": "the line is longer than 4096 bytes" })
    );
    assert_eq!(client.answer(), None, "it is cut off");
    assert_eq!(nat.ask("clear")["ok"], true, "others are not");
    nat.stop();
}

#[test]
fn clients_are_bounded() {
    let nat = Nat::start(&[([127, 0, 0, 1], 9).into()], &[]);
    let mut clients: Vec<Client> = (0..CLIENTS_MAX)
        .map(|_| Client::connect(nat.control()))
        .collect();
    for client in &mut clients {
        assert_eq!(client.ask("clear")["ok"], true);
    }
    let mut late = Client::connect(nat.control());
    assert_eq!(
        late.answer().expect("an answer"),
        json!({ "command": null, "ok": false, "error": "too many clients: close one first" })
    );
    assert_eq!(late.answer(), None);
    clients.pop();
    until("room for another client", || {
        let mut client = Client::connect(nat.control());
        // One that is refused may be closed by now.
        (client.try_write(b"clear\n") && client.answer()?["ok"] == true).then_some(())
    });
    for client in &mut clients {
        assert_eq!(client.ask("clear")["ok"], true);
    }
    nat.stop();
}

/// Runs a NAT that is not to start; gives its exit code and what it says.
fn refused(control: &std::path::Path) -> (i32, String) {
    let mut line = command();
    line.args(["nat", "127.0.0.1:0", "127.0.0.1:9", "--json", "--control"]);
    line.arg(format!("unix:{}", control.display()));
    let mut running = Running::start(&mut line, &[]);
    let (code, _) = running.wait(PATIENCE);
    (code, running.stderr())
}

#[test]
fn the_file_of_the_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nat.sock");
    let start = || {
        let mut line = command();
        line.args(["nat", "127.0.0.1:0", "127.0.0.1:9", "--json", "--control"]);
        line.arg(format!("unix:{}", path.display()));
        let mut running = Running::start(&mut line, &[]);
        running.line_where("its control socket", |line| line["type"] == "control");
        running
    };
    let killed = start();
    let mode = std::fs::metadata(&path)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "only its user may connect");
    // Another one must not take it away from one that lives.
    let (code, said) = refused(&path);
    assert!([1, 2].contains(&code), "{code}: {said}");
    assert!(said.contains("cannot take commands at"), "{said}");
    assert_eq!(Client::connect(&path).ask("clear")["ok"], true);
    // A process that is killed leaves its file behind, which the next one replaces.
    killed.signal(libc::SIGKILL);
    drop(killed);
    assert!(path.exists());
    let mut next = start();
    assert_eq!(Client::connect(&path).ask("clear")["ok"], true);
    next.signal(libc::SIGTERM);
    assert_eq!(next.wait(PATIENCE).0, 0);
    assert!(!path.exists(), "it goes with the process");
    // A file that is no socket is nobody's to remove.
    std::fs::write(&path, "precious").expect("a file");
    let (code, said) = refused(&path);
    assert!([1, 2].contains(&code), "{code}: {said}");
    assert_eq!(std::fs::read_to_string(&path).expect("a file"), "precious");
    let (code, said) = refused(&folder.path().join("no/such/folder"));
    assert!([1, 2].contains(&code), "{code}: {said}");
    assert!(said.contains("cannot take commands at"), "{said}");
}
