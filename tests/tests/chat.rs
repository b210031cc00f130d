//! The chat over real sockets, on each driver: a conversation with programs that nobody here wrote,
//! many members on several shards, and members who do not read.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use ringmill_tests::drivers;
use ringmill_tests::net::connect;
use ringmill_tests::peer::{Peer, has};
use ringmill_tests::program::{PATIENCE, Server, Stopped};

const GREETING: &str = "Hello from TCP chat! Send a message, or '!' to disconnect.\n";

/// A member who has been greeted, and what it reads.
fn join(to: SocketAddr) -> BufReader<TcpStream> {
    let mut reader = BufReader::new(connect(to));
    assert_eq!(next_line(&mut reader), GREETING);
    reader
}

fn next_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line comes");
    line
}

fn counter(stopped: &Stopped, name: &str) -> u64 {
    let value = stopped.services[0]["chat"][name].as_u64();
    value.unwrap_or_else(|| panic!("no {name} in {}", stopped.services))
}

#[test]
fn a_conversation_of_socat_ncat_and_others() {
    let (socat, ncat) = (has("socat"), has("ncat"));
    for driver in drivers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("chat");
        let path = path.to_str().expect("a plain path");
        let unix = format!("unix:{path}");
        let flags = ["--driver", driver, "--shards", "2", "--frame", "line"];
        let server = Server::chat(&["tcp://127.0.0.1:0", &unix], &flags);
        let to = server.address("tcp");
        let mut listener = join(to);
        let mut peers = Vec::new();
        if socat {
            // -t: how long socat waits for the rest after its own end of input.
            peers.push(format!("socat -t 20 - TCP4:{to}"));
            peers.push(format!("socat -t 20 - UNIX-CONNECT:{path}"));
        }
        if ncat {
            peers.push(format!("ncat -4 {} {}", to.ip(), to.port()));
            peers.push(format!("ncat -U {path}"));
        }
        for (number, peer) in peers.iter().enumerate() {
            let arguments: Vec<&str> = peer.split(' ').collect();
            for (said, heard) in [
                (
                    format!("hello from {number}\n"),
                    format!("hello from {number}\n"),
                ),
                // The last line needs no end.
                (format!("bye from {number}"), format!("bye from {number}\n")),
                ("!\n".to_owned(), "!\n".to_owned()),
            ] {
                let back = Peer::start(&arguments).exchange(said.as_bytes());
                let back = String::from_utf8(back).expect("text");
                let (greeting, rest) = back.split_once('\n').expect("a greeting");
                assert!(
                    greeting.starts_with("Hello from "),
                    "{driver}: {peer}: {back}"
                );
                assert_eq!(rest, heard, "{driver}: {peer}");
                assert_eq!(next_line(&mut listener), heard, "{driver}: {peer}");
            }
        }
        drop(listener);
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        assert_eq!(counter(&stopped, "left"), peers.len() as u64, "{driver}");
        assert_eq!(counter(&stopped, "sessions"), 0, "{driver}");
    }
}

/// Everyone gets everything of everyone, each sender's in order.
#[test]
fn many_members_on_several_shards() {
    const SENDERS: usize = 4;
    const LINES: usize = 2000;
    for driver in drivers() {
        let flags = ["--driver", driver, "--shards", "3", "--frame", "line"];
        let more = ["--queue-messages", "1000000"];
        let server = Server::chat(&["tcp://127.0.0.1:0"], &[&flags[..], &more].concat());
        let to = server.address("tcp");
        let members: Vec<_> = (0..24).map(|_| join(to)).collect();
        std::thread::scope(|scope| {
            for (sender, member) in members.iter().take(SENDERS).enumerate() {
                let mut stream = member.get_ref().try_clone().expect("a copy");
                scope.spawn(move || {
                    for number in 0..LINES {
                        let line = format!("{sender} {number}\n");
                        stream.write_all(line.as_bytes()).expect("it takes a line");
                    }
                });
            }
            for mut member in members {
                scope.spawn(move || {
                    let mut next = [0; SENDERS];
                    while next != [LINES; SENDERS] {
                        let line = next_line(&mut member);
                        let (sender, number) = line.trim().split_once(' ').expect("two numbers");
                        let sender: usize = sender.parse().expect("a number");
                        assert_eq!(number, next[sender].to_string(), "{driver}: {sender}");
                        next[sender] += 1;
                    }
                });
            }
        });
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        let messages = counter(&stopped, "messages");
        assert_eq!(counter(&stopped, "crossed"), 2 * messages, "{driver}");
        assert_eq!(counter(&stopped, "deliveries"), 24 * messages, "{driver}");
        assert_eq!(stopped.counter("send_full"), 0, "{driver}");
    }
}

/// One member reads nothing while another one gets all of 40 MB in time; then it looks at what is
/// left for it.
#[test]
fn a_slow_reader_delays_nobody() {
    const LINES: usize = 10_000;
    const WINDOW: usize = 50;
    for driver in drivers() {
        for policy in ["drop-oldest", "drop-newest", "disconnect"] {
            let what = format!("{driver}, {policy}");
            let flags = ["--driver", driver, "--shards", "2", "--frame", "line"];
            let more = ["--slow-reader", policy, "--queue-per-connection", "1MiB"];
            let server = Server::chat(&["tcp://127.0.0.1:0"], &[&flags[..], &more].concat());
            let to = server.address("tcp");
            let mut slow = join(to);
            let mut fast = join(to);
            let before = server.running.memory_bytes();
            let dots = ".".repeat(4000);
            for first in (0..LINES).step_by(WINDOW) {
                let lines: String = (first..first + WINDOW)
                    .map(|number| format!("{number} {dots}\n"))
                    .collect();
                fast.get_mut()
                    .write_all(lines.as_bytes())
                    .expect("it takes lines");
                for number in first..first + WINDOW {
                    let line = next_line(&mut fast);
                    assert_eq!(line.split(' ').next(), Some(&*number.to_string()), "{what}");
                }
            }
            let grown = server.running.memory_bytes().saturating_sub(before);
            assert!(grown < 48 << 20, "{what}: {grown} bytes more");
            if policy != "disconnect" {
                slow.get_mut().write_all(b"!\n").expect("it takes a line");
            }
            let mut rest = Vec::new();
            let end = slow.read_to_end(&mut rest);
            let text = String::from_utf8(rest).expect("text");
            let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
            let numbers: Vec<usize> = whole
                .lines()
                .filter(|line| *line != "!")
                .map(|line| {
                    let (number, rest) = line.split_once(' ').expect("a number and dots");
                    assert_eq!(rest, dots, "{what}");
                    number.parse().expect("a number")
                })
                .collect();
            assert!(numbers.is_sorted_by(|one, next| one < next), "{what}");
            drop((slow, fast));
            let stopped = server.stop();
            let lost = LINES - numbers.len();
            assert!(lost > 0, "{what}");
            match policy {
                "drop-oldest" => {
                    assert!(end.is_ok() && text.ends_with("!\n"), "{what}");
                    // Its `!` may overtake what is on its way to its shard: 8 MiB of the 40 at most.
                    assert!(numbers.last() >= Some(&(LINES * 3 / 4)), "{what}");
                    assert!(counter(&stopped, "dropped_oldest") > 0, "{what}");
                }
                "drop-newest" => {
                    assert!(end.is_ok(), "{what}");
                    assert_eq!(numbers.first(), Some(&0), "{what}");
                    assert!(counter(&stopped, "dropped_newest") > 0, "{what}");
                }
                _ => assert_eq!(counter(&stopped, "disconnected_slow"), 1, "{what}"),
            }
            assert_eq!(stopped.code, 0, "{what}: {}", stopped.stderr);
        }
    }
}

/// Whoever leaves gets its own word back, the end, and nothing after it.
#[test]
fn nothing_comes_after_a_leave() {
    for driver in drivers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("chat");
        let unix = format!("unix:{}", path.display());
        let server = Server::chat(&["tcp://127.0.0.1:0", &unix], &["--driver", driver]);
        let mut leaver = UnixStream::connect(&path).expect("it serves");
        leaver
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes timeouts");
        let mut other = connect(server.address("tcp"));
        let mut greeting = vec![0; GREETING.len() - 1];
        other.read_exact(&mut greeting).expect("a greeting");
        leaver.write_all(b"!").expect("it takes a word");
        let mut heard = [0];
        other.read_exact(&mut heard).expect("everyone hears it");
        assert_eq!(heard, *b"!", "{driver}");
        other.write_all(b"too late").expect("it takes more");
        let mut echo = [0; 8];
        other
            .read_exact(&mut echo)
            .expect("the sender hears it too");
        let mut all = String::new();
        leaver.read_to_string(&mut all).expect("and an end");
        assert_eq!(
            all,
            format!("{}!", GREETING.trim().replace("TCP", "Unix")),
            "{driver}"
        );
        drop((leaver, other));
        assert_eq!(server.stop().code, 0, "{driver}");
    }
}
