//! The program under test as a child process: `serve` until it is stopped, `load` until its report.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A hang guard for whatever a child should do promptly.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at something that has no event.
pub const LOOK: Duration = Duration::from_millis(10);

/// The program under test: beside the tests in the target directory, or `RINGMILL_BIN`.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn ringmill() -> PathBuf {
    if let Some(path) = std::env::var_os("RINGMILL_BIN") {
        return path.into();
    }
    // target/debug/deps/test-0123 → target/debug/ringmill
    let test = std::env::current_exe().expect("a test knows where it is");
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("ringmill"))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no ringmill beside {}: run `make test`, or `cargo build --workspace --bins` first",
            test.display()
        )
    })
}

/// A command that runs the program and dies with the test.
#[must_use]
pub fn command() -> Command {
    tethered(Command::new(ringmill()))
}

/// Makes the child of a command die with the thread that started it, however that ends.
#[must_use]
pub fn tethered(mut command: Command) -> Command {
    // SAFETY: prctl is async-signal-safe and changes only the child.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        )
    };
    command
}

/// Whether a driver works here; else why not.
///
/// # Errors
/// What the program says.
pub fn probe(driver: &str) -> Result<(), String> {
    let mut child = Running::start(
        command().args(["serve", "echo", "tcp://127.0.0.1:0", "--shards", "1"]),
        &["--json", "--driver", driver],
    );
    match child.line(PATIENCE) {
        Some(_) => Ok(()),
        None => {
            child.wait(PATIENCE);
            Err(child.stderr().trim().to_owned())
        }
    }
}

/// Calls `look` until it gives something.
///
/// # Panics
/// When it does not in [`PATIENCE`]; `what` says what was waited for.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(LOOK);
    }
}

/// How long that thread of a process which waited longest has waited for a CPU so far. What grows by
/// seconds in a test says that the machine was too busy, and nothing of the process.
#[must_use]
pub fn waited_for_cpu(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let waited = tasks.into_iter().flatten().flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    });
    Duration::from_nanos(waited.max().unwrap_or(0))
}

/// Sends a signal to a process that the caller started and has not waited for.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes two numbers; the child is not reaped, so the number is still its own.
    let result = unsafe { libc::kill(pid as libc::pid_t, signal) };
    assert_eq!(
        result,
        0,
        "process {pid}: {}",
        std::io::Error::last_os_error()
    );
}

/// A child whose standard output is NDJSON, read as it comes. Killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<Value>,
    errors: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Running {
    /// Starts it. A line that is no JSON fails the test.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command, more: &[&str]) -> Self {
        command
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let out = child.stdout.take().expect("piped");
        let err = child.stderr.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        let errors = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            std::thread::spawn(move || read_lines(out, &sender)),
            std::thread::spawn({
                let errors = Arc::clone(&errors);
                move || read_errors(err, &errors)
            }),
        ];
        Self {
            child,
            lines,
            errors,
            readers,
            status: None,
        }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The next line; `None` when its output has ended.
    ///
    /// # Panics
    /// When none comes in time, or it is no JSON.
    pub fn line(&mut self, patience: Duration) -> Option<Value> {
        match self.lines.recv_timeout(patience) {
            Ok(Value::String(text)) => panic!("not JSON: {text}"),
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("no line in {patience:?}; standard error: {}", self.stderr())
            }
        }
    }

    /// The next line that `wanted` accepts.
    ///
    /// # Panics
    /// When none comes in [`PATIENCE`].
    pub fn line_where(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let line = self.line(PATIENCE);
            let line = line.unwrap_or_else(|| panic!("ended before {what}: {}", self.stderr()));
            if wanted(&line) {
                return line;
            }
        }
        panic!("waited in vain for {what}: {}", self.stderr());
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        signal(self.pid(), number);
    }

    /// Waits for its end; returns its exit code and the lines that were not read yet.
    ///
    /// # Panics
    /// When it does not end in time, or is killed by a signal.
    pub fn wait(&mut self, patience: Duration) -> (i32, Vec<Value>) {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                panic!("still running after {patience:?}: {}", self.stderr());
            }
            std::thread::sleep(LOOK);
        };
        self.status = Some(status);
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not fail");
        }
        let lines = std::iter::from_fn(|| self.line(PATIENCE)).collect();
        let code = status.code();
        let code = code.unwrap_or_else(|| panic!("ended by {status}: {}", self.stderr()));
        (code, lines)
    }

    /// Open files of the process.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the process runs")
            .count()
    }

    /// Memory of the process that is resident, bytes.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the process runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("the kernel says so");
        let kib: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number");
        kib * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read_lines(out: ChildStdout, lines: &mpsc::Sender<Value>) {
    for line in BufReader::new(out).lines() {
        let Ok(line) = line else { return };
        // Text that is no JSON is sent as itself: every line of ours is an object.
        let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
        if lines.send(line).is_err() {
            return;
        }
    }
}

fn read_errors(mut err: ChildStderr, errors: &Mutex<String>) {
    let mut chunk = [0; 4096];
    while let Ok(len @ 1..) = err.read(&mut chunk) {
        let text = String::from_utf8_lossy(&chunk[..len]);
        errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_str(&text);
    }
}

/// A `ringmill serve` that serves.
pub struct Server {
    /// The process.
    pub running: Running,
    /// Its `listening` lines, one for each address.
    pub listening: Vec<Value>,
}

/// How a server ended.
#[derive(Debug)]
pub struct Stopped {
    /// Exit code.
    pub code: i32,
    /// The counters of its last line.
    pub counters: Value,
    /// Its services with all their counters.
    pub services: Value,
    /// All of its standard error.
    pub stderr: String,
}

impl Server {
    /// Starts one at `endpoints` with flags; returns when it serves.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(endpoints: &[&str], flags: &[&str]) -> Self {
        Self::start_as(command(), endpoints, flags)
    }

    /// The same with a prepared command: `ringmill` itself, or something that runs it.
    ///
    /// # Panics
    /// When it does not serve.
    #[must_use]
    pub fn start_as(command: Command, endpoints: &[&str], flags: &[&str]) -> Self {
        Self::serve(command, "echo", endpoints, flags)
    }

    /// A server of a chat.
    ///
    /// # Panics
    /// When it does not serve.
    #[must_use]
    pub fn chat(endpoints: &[&str], flags: &[&str]) -> Self {
        Self::serve(command(), "chat", endpoints, flags)
    }

    /// A DNS server with a fixed answer.
    ///
    /// # Panics
    /// When it does not serve.
    #[must_use]
    pub fn dns(endpoints: &[&str], flags: &[&str]) -> Self {
        Self::serve(command(), "dns", endpoints, flags)
    }

    fn serve(mut command: Command, protocol: &str, endpoints: &[&str], flags: &[&str]) -> Self {
        command.args(["serve", protocol, "--json"]).args(endpoints);
        let mut running = Running::start(&mut command, flags);
        let wanted: usize = endpoints.iter().map(|endpoint| addresses(endpoint)).sum();
        let listening = (0..wanted)
            .map(|_| {
                let line = running.line(PATIENCE);
                let line = line.unwrap_or_else(|| panic!("no server: {}", running.stderr()));
                assert_eq!(line["type"], "listening", "{line}");
                line
            })
            .collect();
        Self { running, listening }
    }

    /// Where it serves: `tcp://127.0.0.1:40001`, in the order of its lines.
    #[must_use]
    pub fn endpoint(&self, number: usize) -> &str {
        self.listening[number]["endpoint"].as_str().unwrap_or("")
    }

    /// The first address served with this scheme (`tcp` or `udp`).
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn address(&self, scheme: &str) -> SocketAddr {
        let found = self.listening.iter().find_map(|line| {
            let rest = line["endpoint"].as_str()?.strip_prefix(scheme)?;
            rest.strip_prefix("://")?.parse().ok()
        });
        found.unwrap_or_else(|| panic!("no {scheme} address in {:?}", self.listening))
    }

    /// Number of shards.
    ///
    /// # Panics
    /// When the line has none.
    #[must_use]
    pub fn shards(&self) -> u64 {
        self.listening[0]["shards"].as_u64().expect("a count")
    }

    /// Waits until so many streams have been closed and none is open; returns the counters of that
    /// moment.
    pub fn counters_when_closed(&mut self, streams: u64) -> Value {
        let line = self.running.line_where("an idle server", |line| {
            let counters = &line["counters"];
            counters["closed"].as_u64() >= Some(streams) && counters["open"] == 0
        });
        line["counters"].clone()
    }

    /// SIGTERM, then the end.
    #[must_use]
    pub fn stop(self) -> Stopped {
        self.running.signal(libc::SIGTERM);
        self.wait(PATIENCE)
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When the last line is not `stopped`.
    #[must_use]
    pub fn wait(mut self, patience: Duration) -> Stopped {
        let (code, lines) = self.running.wait(patience);
        let stderr = self.running.stderr();
        let last = lines.last().unwrap_or_else(|| panic!("no line; {stderr}"));
        assert_eq!(last["type"], "stopped", "{last}; {stderr}");
        Stopped {
            code,
            counters: last["counters"].clone(),
            services: last["services"].clone(),
            stderr,
        }
    }
}

impl Stopped {
    /// A counter.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        let value = self.counters[name].as_u64();
        value.unwrap_or_else(|| panic!("no counter {name} in {}", self.counters))
    }
}

/// How many addresses an endpoint stands for on this host: `:0` and `*:0` one for each IP version.
fn addresses(endpoint: &str) -> usize {
    let host = endpoint.split_once("://").map_or("", |(_, rest)| rest);
    let several = host.starts_with(':') || host.starts_with('*');
    if several && crate::net::has_ipv6() {
        2
    } else {
        1
    }
}

/// A finished `ringmill load`.
#[derive(Debug)]
pub struct Load {
    /// Exit code.
    pub code: i32,
    /// Its last line, when that is a report; else null.
    pub report: Value,
    /// Its lines before the report.
    pub lines: Vec<Value>,
    /// All of its standard error.
    pub stderr: String,
}

impl Load {
    /// Runs `ringmill load echo ENDPOINT --json FLAGS` to its end. Without a `--warmup` of its own
    /// the run counts from the first message.
    #[must_use]
    pub fn run(endpoint: &str, flags: &[&str]) -> Self {
        Self::run_as(command(), endpoint, flags)
    }

    /// The same with a prepared command.
    #[must_use]
    pub fn run_as(command: Command, endpoint: &str, flags: &[&str]) -> Self {
        Self::finish(Self::begin_as(command, endpoint, flags))
    }

    /// Runs `ringmill load dns` the same way.
    #[must_use]
    pub fn dns(endpoint: &str, flags: &[&str]) -> Self {
        Self::finish(Self::begin_dns(endpoint, flags))
    }

    /// Starts that only.
    #[must_use]
    pub fn begin_dns(endpoint: &str, flags: &[&str]) -> Running {
        let mut command = command();
        command.args(["load", "dns", endpoint, "--json"]);
        if !flags.contains(&"--warmup") {
            command.args(["--warmup", "0"]);
        }
        Running::start(&mut command, flags)
    }

    /// Starts it only.
    #[must_use]
    pub fn begin(endpoint: &str, flags: &[&str]) -> Running {
        Self::begin_as(command(), endpoint, flags)
    }

    fn begin_as(mut command: Command, endpoint: &str, flags: &[&str]) -> Running {
        command.args(["load", "echo", endpoint, "--json"]);
        if !flags.contains(&"--warmup") {
            command.args(["--warmup", "0"]);
        }
        Running::start(&mut command, flags)
    }

    /// Waits for the report.
    #[must_use]
    pub fn finish(mut running: Running) -> Self {
        // The longest run that a test asks for, and time to connect and end.
        let patience = if crate::long() { 150 } else { 90 };
        let (code, mut lines) = running.wait(Duration::from_secs(patience));
        let report = match lines.last() {
            Some(last) if last["type"] == "report" => lines.pop().expect("there is one"),
            _ => Value::Null,
        };
        Self {
            code,
            report,
            lines,
            stderr: running.stderr(),
        }
    }

    /// A count of the report, by a path such as `datagrams.lost`.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn count(&self, path: &str) -> u64 {
        let value = path.split('.').fold(&self.report, |value, key| &value[key]);
        let value = value.as_u64();
        value.unwrap_or_else(|| panic!("no {path} in {self:#?}"))
    }

    /// Asserts a clean run: exit 0, no byte wrong, no connection failed or closed early, no error.
    ///
    /// # Panics
    /// When it was not.
    pub fn assert_clean(&self) {
        assert_eq!(self.code, 0, "{self:#?}");
        assert_eq!(self.count("wrong_bytes"), 0, "{self:#?}");
        assert_eq!(self.count("connections.failed"), 0, "{self:#?}");
        assert_eq!(self.report["errors"], serde_json::json!({}), "{self:#?}");
        assert!(self.count("messages") > 0, "{self:#?}");
    }
}
