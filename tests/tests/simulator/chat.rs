//! The chat on simulated networks of every kind: joins and leaves in a storm, slow readers, resets,
//! full queues and mailboxes. Nobody receives a message twice, out of a sender's order, or after its
//! own leave; and nothing leaks.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmill_engine::driver::sim::{EngineSpec, World, WorldConfig, seeds};
use ringmill_engine::impairment::mix;
use ringmill_engine::{
    Address, Buffer, Closed, Connect, Context, Limits, Nanos, Protocol, QueueBounds, Service,
    StreamId,
};
use ringmill_protocols::chat::{Event, Framing, Reason, Report, Room, Settings, SlowReader};

use super::bench::{self, MILLI, address};
use super::{Dice, without_failures};

const CHAT: &str = "10.0.0.1:1111";
const CHAT_UNIX: &str = "/run/ringmill/chat.sock";
const LINE_MAX: usize = 300;
/// Seeds of an ordinary test run.
const SEEDS: u64 = 600;
/// Connections of one client shard at a time.
const OPEN_MAX: usize = 8;

/// What one connection of a client saw.
#[derive(Debug, Default, Clone)]
struct Log {
    bytes: Vec<u8>,
    /// Lines sent that everyone should get.
    said: u64,
    /// It has sent '!'.
    left: bool,
    /// The server's end of the stream came.
    ended: bool,
    over: bool,
}

type Logs = Arc<Mutex<Vec<Log>>>;

/// Joins, talks, stops reading, leaves, all at random.
struct Crowd {
    to: Vec<Address>,
    logs: Logs,
    dice: Dice,
    /// Connections with their logs; `true` once they stand.
    open: Vec<(StreamId, usize, bool)>,
    until: Nanos,
    tick: Nanos,
    /// They only talk and never go.
    is_steady: bool,
}

impl Crowd {
    fn join(&mut self, ctx: &mut Context<'_, ()>) {
        let to = self.to[self.dice.below(self.to.len() as u64) as usize].clone();
        if let Ok(stream) = ctx.connect(&Connect { to, from: None }) {
            let mut logs = self.logs.lock().unwrap();
            logs.push(Log::default());
            self.open.push((stream, logs.len() - 1, false));
        }
    }

    fn say(&mut self, ctx: &mut Context<'_, ()>, (stream, log, _): (StreamId, usize, bool)) {
        let mut logs = self.logs.lock().unwrap();
        let log_of = &mut logs[log];
        if log_of.left {
            return;
        }
        let mut text = String::new();
        let mut said = log_of.said;
        for _ in 0..1 + self.dice.below(3) {
            if self.dice.one_in(20) {
                // Nobody may get this one.
                text += &format!("s{log}:{said} {};\n", "x".repeat(LINE_MAX));
                continue;
            }
            text += &format!(
                "s{log}:{said} {};\n",
                ".".repeat(self.dice.below(200) as usize)
            );
            said += 1;
        }
        if ctx.send(stream, text.into_bytes()).is_queued() {
            log_of.said = said;
        }
    }

    fn act(&mut self, ctx: &mut Context<'_, ()>) {
        if self.open.len() < OPEN_MAX && !self.is_steady && self.dice.one_in(3) {
            self.join(ctx);
        }
        if self.open.is_empty() {
            return;
        }
        let one = self.open[self.dice.below(self.open.len() as u64) as usize];
        let (stream, log, stands) = one;
        if !stands {
            return;
        }
        let deed = if self.is_steady {
            0
        } else {
            self.dice.below(24)
        };
        match deed {
            0..=11 => self.say(ctx, one),
            12..=14 => ctx.pause(stream),
            15..=18 => ctx.resume(stream),
            19 => {
                let mut logs = self.logs.lock().unwrap();
                if !logs[log].left && ctx.send(stream, b"!\n" as &'static [u8]).is_queued() {
                    logs[log].left = true;
                    ctx.resume(stream);
                }
            }
            20 => ctx.finish(stream),
            21 => ctx.close(stream),
            22 => ctx.reset(stream),
            _ => {}
        }
    }
}

impl Protocol for Crowd {
    type Message = ();
    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        let at_once = if self.is_steady { 4 } else { 2 };
        for _ in 0..at_once {
            self.join(ctx);
        }
        ctx.set_timer(ctx.now() + self.tick, 0);
    }
    fn connected(&mut self, _: &mut Context<'_, ()>, stream: StreamId) {
        for open in &mut self.open {
            open.2 |= open.0 == stream;
        }
    }
    fn received(&mut self, _: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        let open = self.open.iter().find(|open| open.0 == stream);
        let log = open.expect("only open streams receive").1;
        self.logs.lock().unwrap()[log]
            .bytes
            .extend_from_slice(&data);
    }
    fn ended(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        if let Some(open) = self.open.iter().find(|open| open.0 == stream) {
            self.logs.lock().unwrap()[open.1].ended = true;
        }
        ctx.close(stream);
    }
    fn closed(&mut self, _: &mut Context<'_, ()>, stream: StreamId, _: Closed) {
        if let Some(open) = self.open.iter().find(|open| open.0 == stream) {
            self.logs.lock().unwrap()[open.1].over = true;
        }
        self.open.retain(|open| open.0 != stream);
    }
    fn timer(&mut self, ctx: &mut Context<'_, ()>, _: u64) {
        if ctx.now() < self.until {
            // A session takes part once it is greeted.
            let logs = self.logs.lock().unwrap();
            let everyone_is_in = self.open.iter().all(|open| !logs[open.1].bytes.is_empty());
            drop(logs);
            if !self.is_steady || everyone_is_in {
                for _ in 0..1 + self.dice.below(4) {
                    self.act(ctx);
                }
            }
            ctx.set_timer(ctx.now() + 1 + self.dice.below(2 * self.tick), 0);
        } else {
            for (stream, ..) in &self.open {
                ctx.resume(*stream);
            }
        }
    }
}

/// One line as someone got it.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
enum Said {
    Greeting,
    Leave,
    Admin(u64),
    /// Which connection, and which of its lines.
    By(usize, u64),
    /// A connection's last line, which its end cut.
    Cut,
}

fn read_line(line: &str) -> Said {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("line {line:?}"));
    assert!(line.len() < LINE_MAX, "a line past the bound: {line:?}");
    if line.starts_with("Hello from ") && line.ends_with("disconnect.") {
        Said::Greeting
    } else if line == "!" {
        Said::Leave
    } else if let Some(rest) = line.strip_prefix("(admin) a") {
        Said::Admin(number(rest))
    } else {
        let rest = line.strip_prefix('s').unwrap_or_else(|| panic!("{line:?}"));
        let Some(rest) = rest.strip_suffix(';') else {
            return Said::Cut;
        };
        let (who, rest) = rest.split_once(':').unwrap_or_else(|| panic!("{line:?}"));
        let (which, dots) = rest.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        assert!(dots.bytes().all(|byte| byte == b'.'), "{line:?}");
        Said::By(number(who) as usize, number(which))
    }
}

/// The whole lines of a log.
fn lines_of(log: &Log) -> Vec<Said> {
    let end = log.bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = &log.bytes[..end.map_or(0, |end| end + 1)];
    let text = str::from_utf8(whole).expect("what was sent is text");
    text.lines().map(read_line).collect()
}

/// What must hold for each connection whatever happened.
fn check(lines: &[Said], logs: &[Log], what: &str) {
    let mut next: HashMap<usize, u64> = HashMap::new();
    let mut next_admin = 0;
    let mut cut = 0;
    for (at, line) in lines.iter().enumerate() {
        match *line {
            Said::Greeting => assert_eq!(at, 0, "{what}: greeted first, and once"),
            Said::Leave => {}
            Said::Cut => cut += 1,
            Said::Admin(number) => {
                assert!(number >= next_admin, "{what}: admin {number} again or late");
                next_admin = number + 1;
            }
            Said::By(who, number) => {
                let next = next.entry(who).or_default();
                assert!(
                    number >= *next,
                    "{what}: {number} of {who} is twice or late"
                );
                assert!(number < logs[who].said, "{what}: never said");
                *next = number + 1;
            }
        }
    }
    assert!(cut <= logs.len(), "{what}: {cut} lines cut");
}

/// How a seed's chat is set up.
struct Plan {
    settings: Settings,
    limits: Limits,
    shards: u16,
    client_shards: u16,
    world: WorldConfig,
    stop: u64,
    is_steady: bool,
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(mix(seed ^ 0xc4a7) >> 1);
        let dice = &mut dice;
        let is_steady = dice.one_in(5);
        let mut world = WorldConfig::random(seed);
        if is_steady || dice.one_in(3) {
            without_failures(&mut world.faults);
        }
        let slow = [
            SlowReader::DropOldest,
            SlowReader::DropNewest,
            SlowReader::Disconnect,
        ][dice.below(3) as usize];
        let framing = if !is_steady && dice.one_in(8) {
            Framing::Read
        } else {
            Framing::Line {
                bytes_max: LINE_MAX,
            }
        };
        let messages_max = if is_steady {
            usize::MAX
        } else {
            1 << dice.below(9)
        };
        let mut limits = Limits {
            mailbox_messages_max: 1 << dice.below(8),
            ..bench::small_limits()
        };
        if !is_steady {
            limits.stream_queue_bytes_max = 200 << dice.below(9);
            limits.shard_queue_bytes_max = 2000 << dice.below(12);
            limits.max_connections = if dice.one_in(6) { 3 } else { 1000 };
            if dice.one_in(6) {
                limits.shard_queue_messages_max = 5 + dice.below(50) as usize;
            }
            if dice.one_in(6) {
                limits.idle_timeout = Some(Duration::from_millis(20 + dice.below(300)));
            }
        }
        Self {
            settings: Settings {
                framing,
                slow,
                queue: QueueBounds {
                    bytes_max: usize::MAX,
                    messages_max,
                },
            },
            limits,
            shards: 1 + dice.below(3) as u16,
            client_shards: 1 + dice.below(2) as u16,
            world,
            stop: if is_steady { 3 } else { dice.below(6) },
            is_steady,
        }
    }
}

/// What a run came to, to be sure that the runs together saw everything.
#[derive(Default, Debug)]
struct Sum {
    lines: u64,
    leaves: u64,
    dropped_oldest: u64,
    dropped_newest: u64,
    disconnected_slow: u64,
    crossings_delayed: u64,
    lines_too_long: u64,
    complete: u64,
}

fn play(seed: u64, sum: &mut Sum) {
    let plan = Plan::new(seed);
    let mut dice = Dice(mix(seed ^ 0x70a1) >> 1);
    let mut world = World::new(seed, plan.world.clone());
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let heard = Arc::clone(&events);
    let report: Report = Arc::new(move |event| heard.lock().unwrap().push(event));
    let room = Room::new(plan.settings, plan.shards, Some(report));
    let for_shards = Arc::clone(&room);
    let service = Service::new("chat", move |shard| for_shards.shard(shard))
        .listen(address(CHAT))
        .listen(Address::Unix(CHAT_UNIX.into()));
    let console = service.controller();
    let spec = EngineSpec::new(plan.shards)
        .limits(plan.limits.clone())
        .host("10.0.0.1")
        .service(service);
    let servers = world.engine(spec).expect("the chat starts");
    let logs = Logs::default();
    let same_host = dice.one_in(4);
    let mut to = vec![Address::Ip(address(CHAT))];
    if same_host {
        to.push(Address::Unix(CHAT_UNIX.into()));
    }
    let (until, tick) = (200 * MILLI, MILLI + dice.below(4 * MILLI));
    let (is_steady, theirs) = (plan.is_steady, Arc::clone(&logs));
    let crowd = Service::new("crowd", move |shard| Crowd {
        to: to.clone(),
        logs: Arc::clone(&theirs),
        dice: Dice(mix(seed ^ u64::from(shard) << 32) >> 1),
        open: Vec::new(),
        until,
        tick,
        is_steady,
    });
    let host = if same_host { "10.0.0.1" } else { "10.0.0.2" };
    let spec = EngineSpec::new(plan.client_shards)
        .limits(bench::small_limits())
        .host(host)
        .service(crowd);
    let clients = world.engine(spec).expect("the crowd starts");
    for number in 0..10 {
        world.run_for(Duration::from_millis(1 + dice.below(30)));
        let text = format!("a{number}");
        // A full mailbox gives it back, as it does to the console of a server.
        let _ = console.post(0, room.admin_message(text.as_bytes()));
        if number == 5 {
            match plan.stop {
                0 => world.stop(servers),
                1 => world.stop(clients),
                2 => world.kill(clients),
                _ => {}
            }
        }
    }
    world.run_for(Duration::from_secs(if is_steady { 60 } else { 8 }));
    // Whose end came by the chat alone, and not by a stop.
    let ended: Vec<bool> = logs.lock().unwrap().iter().map(|log| log.ended).collect();
    bench::stop(&mut world);

    let totals = room.totals();
    let logs = logs.lock().unwrap().clone();
    check_events(&events.lock().unwrap(), totals.joined, seed);
    assert_eq!(totals.sessions, 0, "seed {seed}: {totals:?}");
    assert_eq!(totals.crossings_waiting, 0, "seed {seed}: {totals:?}");
    if plan.stop != 0 {
        assert_eq!(totals.crossings_lost, 0, "seed {seed}: {totals:?}");
    }
    sum.dropped_oldest += totals.dropped_oldest;
    sum.dropped_newest += totals.dropped_newest;
    sum.disconnected_slow += totals.disconnected_slow;
    sum.crossings_delayed += totals.crossings_delayed;
    sum.lines_too_long += totals.lines_too_long;
    if plan.settings.framing == Framing::Read {
        // Receives may cut lines and mix them.
        return;
    }
    let all: Vec<Vec<Said>> = logs.iter().map(lines_of).collect();
    for (number, (lines, log)) in all.iter().zip(&logs).enumerate() {
        let what = format!("seed {seed}, connection {number}");
        check(lines, &logs, &what);
        sum.lines += lines.len() as u64;
        let got_own_last = lines.contains(&Said::By(number, log.said.wrapping_sub(1)));
        let keeps_newest =
            plan.settings.slow == SlowReader::DropOldest && totals.dropped_newest == 0;
        let left = log.left && ended[number] && plan.stop != 0;
        if left && log.said > 0 && got_own_last && keeps_newest {
            assert_eq!(lines.last(), Some(&Said::Leave), "{what}: after its leave");
            sum.leaves += 1;
        }
    }
    if plan.shards == 1 {
        one_order(&all, seed);
    }
    let nothing_lost = totals.dropped_oldest + totals.dropped_newest + totals.disconnected_slow;
    if is_steady && nothing_lost == 0 {
        let everyone = logs.iter().all(|log| !log.bytes.is_empty());
        let lost_connections = world_lost(&events.lock().unwrap());
        if everyone && !lost_connections {
            sum.complete += u64::from(totals.messages > 0);
            assert_eq!(
                totals.crossed,
                (totals.messages + totals.admin_messages) * u64::from(plan.shards - 1),
                "seed {seed}: each message crosses to each shard once"
            );
            complete(&all, &logs, plan.client_shards, seed);
        }
    }
}

/// Whether a connection ended otherwise than by the end of the run.
fn world_lost(events: &[Event]) -> bool {
    events.iter().any(|event| {
        matches!(
            event,
            Event::Disconnected {
                reason: Reason::Engine(Closed::Error(_) | Closed::Idle | Closed::Stalled),
                ..
            }
        )
    })
}

/// Of connections that were there all the time, each got everything of those who began to talk
/// once they all stood: the ones of its own client shard.
fn complete(all: &[Vec<Said>], logs: &[Log], client_shards: u16, seed: u64) {
    if client_shards > 1 {
        return;
    }
    for (number, lines) in all.iter().enumerate() {
        let got: HashSet<Said> = lines.iter().copied().collect();
        for (who, log) in logs.iter().enumerate() {
            for which in 0..log.said {
                assert!(
                    got.contains(&Said::By(who, which)),
                    "seed {seed}: {number} has not got line {which} of {who}"
                );
            }
        }
    }
}

/// On one shard everyone sees one and the same order.
fn one_order(all: &[Vec<Said>], seed: u64) {
    let Some(longest) = all.iter().max_by_key(|lines| lines.len()) else {
        return;
    };
    let place: HashMap<Said, usize> = longest
        .iter()
        .enumerate()
        .filter(|(_, line)| matches!(line, Said::By(..) | Said::Admin(_)))
        .map(|(place, line)| (*line, place))
        .collect();
    for (number, lines) in all.iter().enumerate() {
        let mut last = None;
        for place in lines.iter().filter_map(|line| place.get(line)) {
            assert!(last < Some(place), "seed {seed}: order of {number}");
            last = Some(place);
        }
    }
}

/// Each session is told once when it comes and once when it goes.
fn check_events(events: &[Event], joined: u64, seed: u64) {
    let mut open = HashSet::new();
    let mut known = HashSet::new();
    for event in events {
        match event {
            Event::Connected { session, .. } => {
                assert!(known.insert(*session), "seed {seed}: {session} twice");
                open.insert(*session);
            }
            Event::Disconnected { session, .. } => {
                assert!(open.remove(session), "seed {seed}: {session} is not open");
            }
        }
    }
    assert!(open.is_empty(), "seed {seed}: {open:?} never ended");
    assert_eq!(known.len() as u64, joined, "seed {seed}");
}

#[test]
fn nobody_gets_a_message_twice_or_late_or_after_its_leave() {
    let mut sum = Sum::default();
    for seed in seeds(SEEDS) {
        play(seed, &mut sum);
    }
    println!("{sum:?}");
    if std::env::var_os("RINGMILL_SEED").is_some() {
        return;
    }
    for (count, what) in [
        (sum.lines, "lines"),
        (sum.leaves, "leaves"),
        (sum.dropped_oldest, "dropped oldest"),
        (sum.dropped_newest, "dropped newest"),
        (sum.disconnected_slow, "disconnected"),
        (sum.crossings_delayed, "delayed crossings"),
        (sum.lines_too_long, "lines too long"),
        (sum.complete, "complete runs"),
    ] {
        assert!(count > 0, "no run had any {what}: {sum:?}");
    }
}
