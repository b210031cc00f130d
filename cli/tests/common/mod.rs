//! The program as a child process: started with any standard input, read line by line, ended by
//! signal. Every wait has a bound, which only a hang reaches.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part of it"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Nothing here takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program, to be given arguments.
pub fn ringmill() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringmill"))
}

/// Runs the program to its end with no input: exit code, output, errors.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = ringmill()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Held while files are made that a child must not inherit, and while a child is made.
pub static FORK: Mutex<()> = Mutex::new(());

/// A running program.
pub struct Running {
    process: Child,
    pub input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    /// Starts it with this standard input.
    pub fn start(arguments: &[&str], input: impl Into<Stdio>) -> Self {
        let lock = FORK.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = ringmill()
            .args(arguments)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(lock);
        let lines = reader(process.stdout.take().unwrap());
        let errors = reader(process.stderr.take().unwrap());
        Self {
            input: process.stdin.take(),
            process,
            lines,
            errors,
            seen: Vec::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next line of output that has this in it.
    pub fn line(&mut self, part: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("no line with {part:?}: {error}; seen: {:#?}", self.seen),
            }
        }
    }

    /// Has a line count among those that were not waited for.
    pub fn put_back(&mut self, line: String) {
        self.seen.push(line);
    }

    /// The next line of errors that has this in it.
    pub fn error(&self, part: &str) -> String {
        loop {
            let line = self.errors.recv_timeout(PATIENCE).unwrap();
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The next event of a kind.
    pub fn event(&mut self, kind: &str) -> Value {
        let line = self.line(&format!("\"type\":\"{kind}\""));
        serde_json::from_str(&line).unwrap()
    }

    /// The address behind the next line such as `echo at tcp://127.0.0.1:7000, …`.
    pub fn address(&mut self, scheme: &str) -> SocketAddr {
        let line = self.line(&format!("{scheme}://127.0.0.1:"));
        let (_, rest) = line.split_once(&format!("{scheme}://")).unwrap();
        let end = rest.find([',', '"', '/']).unwrap_or(rest.len());
        rest[..end].parse().unwrap()
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// All that it printed beside what was waited for, once it has ended.
    pub fn output(&mut self) -> Vec<String> {
        self.seen.extend(self.lines.iter());
        std::mem::take(&mut self.seen)
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < patience,
                "it does not end: {:#?}",
                self.seen
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end with success.
    pub fn ended_well(&mut self) {
        let status = self.ended();
        let errors: Vec<_> = self.errors.iter().collect();
        assert!(status.success(), "{status}: {errors:#?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Lines of a stream, read on a thread of their own.
pub fn reader(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        // A terminal whose other side has closed gives an error instead of an end.
        while matches!(stream.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Makes the kernel count datagrams that find a full socket buffer in this network namespace.
pub fn overrun_a_socket() {
    /// More than any default buffer holds.
    const DATAGRAMS: usize = 20_000;
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..DATAGRAMS {
        let _ = sender.send_to(&[0; 1000], deaf.local_addr().unwrap());
    }
}

/// Sends bytes and expects them back.
pub fn echoes(address: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// One HTTP request: status line and body.
pub fn http(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// A metric's value in a text of OpenMetrics.
pub fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let mut sum = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let same = series.split('{').next() == Some(name);
        if same && labels.iter().all(|label| series.contains(label)) {
            *sum.get_or_insert(0.0) += value.parse::<f64>().unwrap();
        }
    }
    sum.unwrap_or_else(|| panic!("no {name} with {labels:?} in\n{text}"))
}
