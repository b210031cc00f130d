//! A flood of setup requests from addresses that nobody has, over real sockets: clients of good faith
//! still start at once, and the server does not grow. `RINGMILL_LONG=1` floods for a minute;
//! `RINGMILL_UDPST=PATH` names an OB-UDPST program, which is then a client too.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmill_protocols::capacity::pdu::{Setup, Version};
use ringmill_tests::program::{LOOK, PATIENCE, Running, command, tethered, waited_for_cpu};
use ringmill_tests::{drivers, long, skipped};

/// Requests a second.
const RATE: u64 = 10_000;
/// A client has to have started within this, its own start included.
const STARTED_WITHIN: Duration = Duration::from_secs(1);
/// Pending tests of the two shards, each with a socket, and remembered answers: what the server may
/// have grown by. Ten times as many requests have come by then in the short run.
const GROWTH_BYTES_MAX: u64 = 200 << 20;
/// Between two clients.
const BETWEEN: Duration = Duration::from_millis(250);
const KEY: &str = "a key that both ends know";

fn duration() -> Duration {
    Duration::from_secs(if long() { 60 } else { 5 })
}

/// Requests from ever new addresses of 127/8, until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn on(server: SocketAddr) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || {
                let begin = Instant::now();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let due = begin.elapsed().as_micros() as u64 * RATE / 1_000_000;
                    while number < due {
                        number += 1;
                        request(server, number);
                    }
                    sent.store(number, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request from an address of its own. What this host does not take is not sent.
fn request(server: SocketAddr, number: u64) {
    // 127.16.0.0 and up: 0.0.1 is where the others are.
    let from = Ipv4Addr::from(0x7F10_0000 + (number % 0x00E0_0000) as u32);
    let Ok(socket) = UdpSocket::bind((from, 0)) else {
        return;
    };
    let setup = Setup {
        protocol_ver: Version::WIRE_MAX,
        mc_count: 1,
        mc_ident: (number % 60_000) as u16 + 1,
        cmd_request: Setup::REQUEST,
        modifier_bitmap: Setup::JUMBO,
        ..Setup::default()
    };
    let mut bytes = [0; Setup::LEN];
    setup.encode(&mut bytes);
    let _ = socket.send_to(&bytes, server);
}

/// A server whose output nobody needs.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(driver: &str, flags: &[&str]) -> Self {
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let address = free.expect("a free port");
        let mut server = command();
        server.args(["capacity", "server", "--listen", &address.to_string()]);
        server.args(["--key", KEY, "--driver", driver]).args(flags);
        server.stdout(Stdio::null()).stderr(Stdio::null());
        let child = server.spawn().expect("it starts");
        Self { child, address }
    }

    fn memory_bytes(&self) -> u64 {
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()));
        let pages = pages.expect("it runs");
        let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        let resident: u64 = resident.expect("a number");
        resident * 4096
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A real client with the key; how long it took from its start to its activation.
fn client(server: &Server, whole: bool) -> Duration {
    let begin = Instant::now();
    let mut client = command();
    client.args([
        "capacity",
        "down",
        &server.address.to_string(),
        "--key",
        KEY,
    ]);
    client.args(["--row", "1", "-t", "5s", "--json"]);
    let mut client = Running::start(&mut client, &[]);
    let waited = waited_for_cpu(server.child.id());
    let first = client.line(PATIENCE);
    let started = begin.elapsed();
    let stalled = waited_for_cpu(server.child.id()).saturating_sub(waited);
    if stalled > STARTED_WITHIN / 2 {
        skipped(&format!(
            "a client: the machine kept the server off its CPU for {stalled:.0?}"
        ));
        return Duration::ZERO;
    }
    let activated = first.as_ref().map(|line| &line["type"] == "activated");
    assert_eq!(activated, Some(true), "{first:?} {}", client.stderr());
    if !whole {
        client.signal(libc::SIGTERM);
    }
    let (code, lines) = client.wait(PATIENCE);
    assert!(code == 0 || !whole, "{lines:#?} {}", client.stderr());
    started
}

/// An OB-UDPST client, if there is one; how much longer it took than its test.
fn original(server: SocketAddr) -> Option<Duration> {
    let program = std::env::var_os("RINGMILL_UDPST")?;
    let begin = Instant::now();
    let mut client = tethered(Command::new(program));
    let port = server.port().to_string();
    client.args(["-d", "-t", "5", "-I", "1", "-a", KEY, "-p", &port]);
    client.arg(server.ip().to_string()).stdout(Stdio::null());
    let status = client.status().expect("it starts");
    assert!(status.success(), "{status}");
    // A server ends a test half a second late.
    Some(begin.elapsed().saturating_sub(Duration::from_millis(5_500)))
}

#[test]
fn a_flood_of_requests_keeps_no_client_out() {
    for driver in drivers() {
        // Accepted without a signature, so that each of them has a test that waits; and refused.
        // The minute has the harder of the two alone.
        let kinds: [&[&str]; 2] = [&["--auth-optional"], &[]];
        for flags in &kinds[..if long() { 1 } else { 2 }] {
            let server = Server::start(driver, flags);
            let calm = client(&server, false);
            let before = server.memory_bytes();
            let flood = Flood::on(server.address);
            let begin = Instant::now();
            while flood.sent() < RATE / 2 {
                std::thread::sleep(LOOK);
            }
            let (mut slowest, mut starts, mut most) = (Duration::ZERO, 1, 0);
            // One client ends its test in the flood, and the others come and go.
            let (whole, original) = std::thread::scope(|scope| {
                let whole = scope.spawn(|| client(&server, true));
                let original = scope.spawn(|| original(server.address));
                while begin.elapsed() < duration() {
                    slowest = slowest.max(client(&server, false));
                    starts += 1;
                    most = most.max(server.memory_bytes());
                    std::thread::sleep(BETWEEN);
                }
                let joined = (whole.join(), original.join());
                let (Ok(whole), Ok(original)) = joined else {
                    panic!("a client failed");
                };
                (whole, original)
            });
            slowest = slowest.max(whole).max(original.unwrap_or_default());
            let rate = flood.sent() as f64 / begin.elapsed().as_secs_f64();
            let growth = most.saturating_sub(before);
            println!(
                "{driver}, {flags:?}: {rate:.0} requests/s, {starts} clients started within \
                 {slowest:.0?} ({calm:.0?} without), OB-UDPST {original:.0?}, memory {} + {} MB",
                before >> 20,
                growth >> 20
            );
            assert!(slowest < STARTED_WITHIN, "{driver}, {flags:?}: {slowest:?}");
            assert!(
                growth < GROWTH_BYTES_MAX,
                "{driver}, {flags:?}: {growth} bytes"
            );
        }
    }
}
