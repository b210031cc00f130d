//! Thousands of capacity tests of a low rate on one server process: every one of them keeps its rate,
//! loses nothing and ends well, and what each costs is said.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringmill_engine::time::monotonic_now;
use ringmill_engine::{DriverChoice, Engine, Limits};
use ringmill_protocols::capacity::event::End;
use ringmill_protocols::capacity::parameters::{Direction, Rate, TestParameters};
use ringmill_protocols::capacity::server::{CapacityServer, WallClock};
use ringmill_tests::crowd::{self, Plan};
use ringmill_tests::program::{PATIENCE, Running, command, waited_for_cpu};
use ringmill_tests::restrict::raise_file_limit;
use ringmill_tests::{drivers, long, skipped};

const SHARDS: u16 = 2;
/// A server that is kept off its CPU for longer cannot keep a rate.
const STALL_MAX: Duration = Duration::from_secs(1);
/// From where they come.
const ADDRESSES: u8 = 100;

/// How many, and the time of each in s.
fn size() -> (u32, u16) {
    if long() { (10_000, 40) } else { (1_000, 5) }
}

/// What the process has used of the CPUs so far, in seconds.
fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(") ").expect("a line of the kernel");
    let ticks = |field: usize| -> f64 {
        let field = rest.split(' ').nth(field).expect("it has this field");
        field.parse().expect("a number")
    };
    // SAFETY: sysconf takes a number and returns one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    (ticks(11) + ticks(12)) / per_second
}

#[test]
fn thousands_of_slow_tests_on_one_server() {
    raise_file_limit();
    for driver in drivers() {
        let (tests, seconds) = size();
        let mut server = command();
        server.args(["capacity", "server", "--listen", ":0", "--json"]);
        let mut server = Running::start(&mut server, &["--driver", driver]);
        let line = server.line(PATIENCE).expect("it listens");
        let address = line["address"].as_str().expect("an address");
        let address: SocketAddr = address.parse().expect("an address");
        let memory = server.memory_bytes();

        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_nanos = since.expect("after 1970").as_nanos() as u64;
        // All begin within the first half of a test's time, so that all are live at once.
        let spacing = Duration::from_secs(seconds.into()) / 2 / tests;
        let plan = Plan {
            server: address,
            locals: (1..=ADDRESSES)
                .map(|last| Ipv4Addr::new(127, 0, 1, last).into())
                .collect(),
            clients: tests,
            spacing: spacing.as_nanos() as u64,
            parameters: TestParameters {
                // What two CPUs carry at both ends: 24 datagrams a second for each test, not 40.
                trial_int_ms: 250,
                test_time_s: seconds,
                rate: Rate::Fixed(0),
                ..TestParameters::new(Direction::Downstream)
            },
            clock: Arc::new(WallClock::new(monotonic_now(), unix_nanos)),
        };
        let (crowd, fared) = crowd::service(&plan, SHARDS);
        let mut engine = Engine::builder()
            .driver(match driver {
                "uring" => DriverChoice::Uring,
                _ => DriverChoice::Epoll,
            })
            .shards(SHARDS)
            .limits(CapacityServer::limits(Limits::default()))
            .service(crowd)
            .start()
            .expect("the crowd gathers");

        let begin = Instant::now();
        let mut waited = waited_for_cpu(server.pid());
        let mut stalled = Duration::ZERO;
        let (mut live, mut memory_most, mut busy, mut looked) = (0, 0, 0.0_f64, None);
        while fared.over() < tests {
            assert!(
                begin.elapsed() < PATIENCE * 6,
                "{driver}: {}",
                fared.numbers()
            );
            std::thread::sleep(Duration::from_millis(250));
            let so_far = waited_for_cpu(server.pid());
            stalled = stalled.max(so_far.saturating_sub(waited));
            waited = so_far;
            let now = fared.begun.load(Ordering::Relaxed) - fared.outcomes().len() as u32;
            live = live.max(now);
            memory_most = memory_most.max(server.memory_bytes());
            // The CPU while all of them are there.
            let used = (cpu_s(server.pid()), Instant::now());
            if now == tests
                && let Some((before, at)) = looked
            {
                busy = busy.max((used.0 - before) / used.1.duration_since(at).as_secs_f64());
            }
            looked = Some(used);
        }
        engine.stop();
        engine.join().expect("every shard ends well");
        server.signal(libc::SIGTERM);
        let (code, lines) = server.wait(PATIENCE);
        assert_eq!(code, 0, "{driver}: {}", server.stderr());
        let stopped = lines.last().expect("its last line");

        if stalled > STALL_MAX {
            skipped(&format!(
                "{driver}: the machine kept the server off its CPU for {stalled:.0?}; {}",
                fared.numbers()
            ));
            continue;
        }
        let outcomes = fared.outcomes();
        let each = memory_most.saturating_sub(memory) / u64::from(tests);
        println!(
            "{driver}: {live} of {tests} tests live at once, {each} bytes each, {:.0} % of a CPU",
            busy * 100.0
        );
        assert_eq!(outcomes.len() as u32, tests, "{driver}: some were refused");
        assert_eq!(live, tests, "{driver}: at once");
        // Row 0 is a datagram each 50 ms, and the stop takes up to half a second.
        let rate = u64::from(seconds) * 20;
        let most = rate + 10 + 5;
        let wrong: Vec<_> = outcomes
            .iter()
            .filter(|one| {
                let kept = (rate / 2..=most).contains(&one.datagrams);
                one.end != End::Complete || one.lost > 0 || !kept
            })
            .collect();
        let some = &wrong[..wrong.len().min(5)];
        assert!(wrong.is_empty(), "{driver}: {}: {some:?}", wrong.len());
        // A machine that is busy with others may stall a shard past what a sender catches up.
        let sent: u64 = outcomes.iter().map(|one| one.datagrams).sum();
        let share = sent as f64 / (u64::from(tests) * rate) as f64;
        let exact = (outcomes.iter()).filter(|one| one.datagrams >= rate);
        println!(
            "{driver}: {:.1} % of the rate, {} tests at it",
            share * 100.0,
            exact.count()
        );
        assert!(share > 0.9, "{driver}: {share}");
        assert_eq!(stopped["tests_complete"], tests, "{driver}: {stopped}");
        assert_eq!(stopped["events_dropped"], 0, "{driver}: {stopped}");
    }
}
