//! A `ringmill nat` that runs, its control socket, and what must be true of its counters at the end.
//!
//! Every NAT that ends through [`Nat::stop`] is checked: no datagram vanishes uncounted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringmill_tests::program::{PATIENCE, Running, command};
use serde_json::Value;
use tempfile::TempDir;

/// What a socket of the tests may have waiting: bursts never overflow it, the kernel permitting.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// A datagram that is there already, or none.
const AT_ONCE: Duration = Duration::from_millis(1);

/// A burst on its way through a NAT takes less.
const BETWEEN_LOOKS: Duration = Duration::from_micros(200);

/// Each reason for which the NAT itself drops a datagram.
const DROPS: [&str; 9] = [
    "dropped_table_full",
    "dropped_no_socket",
    "dropped_no_destination",
    "dropped_wrong_routed",
    "dropped_not_dtls",
    "dropped_old_binding",
    "dropped_queue_full",
    "dropped_held_full",
    "dropped_entry_ended",
];
/// Each reason for which an impairment does.
const IMPAIRED: [&str; 6] = ["lost", "blackout", "oversize", "queue_full", "codel", "red"];

/// A NAT that serves.
pub(crate) struct Nat {
    pub(crate) running: Running,
    /// Its `listening` lines.
    pub(crate) listening: Vec<Value>,
    control: PathBuf,
    _folder: TempDir,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// Its last line.
    pub(crate) last: Value,
    /// The lines before it that nobody had read.
    pub(crate) lines: Vec<Value>,
    pub(crate) stderr: String,
}

impl Nat {
    /// Starts one at `127.0.0.1` on one shard.
    pub(crate) fn start(destinations: &[SocketAddr], flags: &[&str]) -> Self {
        let destinations: Vec<String> = destinations.iter().map(ToString::to_string).collect();
        Self::start_at("127.0.0.1:0", &destinations, flags)
    }

    /// Starts one on one shard, unless flags say otherwise.
    pub(crate) fn start_at(listen: &str, destinations: &[String], flags: &[&str]) -> Self {
        Self::start_as(command(), listen, destinations, flags)
    }

    /// The same with a prepared command: `ringmill` itself, or something that runs it.
    pub(crate) fn start_as(
        mut command: Command,
        listen: &str,
        destinations: &[String],
        flags: &[&str],
    ) -> Self {
        let folder = TempDir::new().expect("a folder");
        let control = folder.path().join("nat.sock");
        command.args(["nat", listen]).args(destinations);
        command.args(["--json", "--control"]);
        command.arg(format!("unix:{}", control.display()));
        if !flags.contains(&"--shards") {
            command.args(["--shards", "1"]);
        }
        let mut running = Running::start(&mut command, flags);
        let mut listening = Vec::new();
        loop {
            let line = running.line(PATIENCE);
            let line = line.unwrap_or_else(|| panic!("no NAT: {}", running.stderr()));
            match line["type"].as_str() {
                Some("listening") => listening.push(line),
                Some("control") => break,
                _ => {}
            }
        }
        Self {
            running,
            listening,
            control,
            _folder: folder,
        }
    }

    /// Where clients send to: the first address.
    pub(crate) fn address(&self) -> SocketAddr {
        let endpoint = self.listening[0]["endpoint"].as_str();
        let address = endpoint.and_then(|endpoint| endpoint.strip_prefix("udp://"));
        let address = address.and_then(|address| address.parse().ok());
        address.unwrap_or_else(|| panic!("no address in {:?}", self.listening))
    }

    /// Its control socket.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }

    /// What a word at the control socket is answered.
    pub(crate) fn ask(&self, word: &str) -> Value {
        Client::connect(&self.control).ask(word)
    }

    /// The answer to a word that succeeds.
    pub(crate) fn order(&self, word: &str) -> Value {
        let answer = self.ask(word);
        assert_eq!(answer["ok"], true, "{word}: {answer}");
        answer
    }

    /// Its state.
    pub(crate) fn info(&self) -> Value {
        self.order("info")
    }

    /// A counter of its state.
    pub(crate) fn count(&self, path: &str) -> u64 {
        count(&self.info(), path)
    }

    /// Waits until a counter has reached a value.
    pub(crate) fn until_count(&self, path: &str, value: u64) {
        let mut client = Client::connect(&self.control);
        let deadline = Instant::now() + PATIENCE;
        while count(&client.ask("info"), path) < value {
            assert!(Instant::now() < deadline, "{path} does not reach {value}");
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Its next event of this kind.
    pub(crate) fn event(&mut self, event: &str) -> Value {
        self.running.line_where(event, |line| {
            line["type"] == "nat" && line["event"] == event
        })
    }

    /// SIGINT, then the end; asserts that it is clean and that the counters add up.
    pub(crate) fn stop(self) -> Stopped {
        self.running.signal(libc::SIGINT);
        self.ended()
    }

    /// Waits for the end that something else brings about.
    pub(crate) fn ended(mut self) -> Stopped {
        let (code, mut lines) = self.running.wait(PATIENCE);
        let stderr = self.running.stderr();
        let last = lines.pop().unwrap_or_else(|| panic!("no line; {stderr}"));
        assert_eq!(last["type"], "stopped", "{last}; {stderr}");
        assert_eq!(code, 0, "{last}; {stderr}");
        assert!(!self.control.exists(), "the control socket is still there");
        assert_conserved(&last);
        Stopped {
            last,
            lines,
            stderr,
        }
    }
}

impl Stopped {
    /// A counter by its path, such as `counters.rebound` or `forward.lost`.
    pub(crate) fn count(&self, path: &str) -> u64 {
        count(&self.last, path)
    }
}

/// A count in a JSON object, by its path.
pub(crate) fn count(value: &Value, path: &str) -> u64 {
    let found = path.split('.').fold(value, |value, key| match key.parse() {
        Ok::<usize, _>(index) => &value[index],
        Err(_) => &value[key],
    });
    found
        .as_u64()
        .unwrap_or_else(|| panic!("no {path} in {value}"))
}

/// Every datagram that came in, and every duplicate made, was sent, is still held, or is in exactly
/// one counter that says why not. What the impairment of each direction was offered is what passed it,
/// what it dropped, and what still waits in it.
pub(crate) fn assert_conserved(info: &Value) {
    let counter = |name: &str| count(&info["counters"], name);
    let impaired = |direction: &str, name: &str| count(&info[direction], name);
    let dropped =
        |direction| -> u64 { IMPAIRED.iter().map(|name| impaired(direction, name)).sum() };
    let ways = ["forward", "backward"];
    let came: u64 = ways
        .map(|way| counter(&format!("{way}_received_datagrams")) + impaired(way, "duplicated"))
        .iter()
        .sum();
    let left: u64 = ways
        .map(|way| counter(&format!("{way}_sent_datagrams")) + dropped(way))
        .iter()
        .sum();
    let refused: u64 = DROPS.iter().map(|name| counter(name)).sum();
    let held = counter("held_datagrams");
    assert_eq!(came, left + refused + held, "{info:#}");
    for way in ways {
        let came = impaired(way, "offered") + impaired(way, "duplicated");
        let left = impaired(way, "passed") + dropped(way);
        assert!(came >= left, "{way}: {info:#}");
        assert!(
            came - left <= held + counter("dropped_entry_ended"),
            "{way}: {info:#}"
        );
    }
    let entries = counter("entries_created")
        - counter("entries_timed_out")
        - counter("entries_cleared")
        - counter("entries_evicted")
        - counter("entries_lost");
    assert_eq!(counter("entries"), entries, "{info:#}");
    assert_eq!(info["entries"], counter("entries"), "{info:#}");
    let used: u64 = destinations(info).map(|next| count(next, "entries")).sum();
    assert!(used <= entries, "{info:#}");
    assert_eq!(info["events_lost"], 0, "{info:#}");
}

/// The destinations of a state.
pub(crate) fn destinations(info: &Value) -> impl Iterator<Item = &Value> {
    info["destinations"].as_array().into_iter().flatten()
}

/// A client of a control socket.
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream =
            UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes timeouts");
        Self(BufReader::new(stream))
    }

    /// Sends bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        assert!(self.try_write(bytes), "it listens");
    }

    /// The same to one that may have closed: whether the bytes went out.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.0.get_mut().write_all(bytes).is_ok()
    }

    /// The next answer; `None` when it has closed.
    pub(crate) fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).expect("an answer or an end");
        (read > 0).then(|| serde_json::from_str(&line).expect("JSON"))
    }

    /// Says a word and waits for the answer.
    pub(crate) fn ask(&mut self, word: &str) -> Value {
        self.write(format!("{word}\n").as_bytes());
        self.answer().expect("an answer")
    }
}

/// A datagram socket with room for bursts, and a hang guard.
pub(crate) fn roomy_socket(local: &str) -> UdpSocket {
    let socket = ringmill_tests::net::datagram_socket(local);
    // What the kernel gives beyond its limit is its own business.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    socket
}

/// The local address of a socket.
pub(crate) fn at(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("it is bound")
}

/// The next datagram, and whence it came.
pub(crate) fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let (len, from) = socket
        .recv_from(&mut buffer)
        .unwrap_or_else(|error| panic!("nothing came: {error}"));
    buffer.truncate(len);
    (buffer, from)
}

/// Asserts that no datagram is there.
pub(crate) fn assert_silent(socket: &UdpSocket) {
    let before = socket.read_timeout().expect("a timeout");
    socket.set_read_timeout(Some(AT_ONCE)).expect("a timeout");
    let got = socket.recv_from(&mut [0; 64]);
    socket.set_read_timeout(before).expect("a timeout");
    assert!(got.is_err(), "{got:?}");
}

/// One datagram there and its answer back; gives whence it came to the server.
pub(crate) fn exchange(
    client: &UdpSocket,
    nat: SocketAddr,
    server: &UdpSocket,
    data: &[u8],
) -> SocketAddr {
    client.send_to(data, nat).expect("send");
    let (there, from) = receive(server);
    assert!(
        there == data,
        "{} of {} bytes, or others",
        there.len(),
        data.len()
    );
    server.send_to(&there, from).expect("send");
    let (back, whence) = receive(client);
    assert!(
        back == data,
        "{} of {} bytes, or others",
        back.len(),
        data.len()
    );
    assert_eq!(
        whence, nat,
        "the answer comes from where the client sent to"
    );
    from
}
