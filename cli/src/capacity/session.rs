//! A run of one test or of several at once: engine, shards, gathering, the decision to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use ringmill_engine::time::monotonic_now;
use ringmill_engine::{Controller, Limits, Service, SocketBufferSizes};
use ringmill_protocols::capacity::client::{
    Activated, Client, ClientEvent, ClientSettings, Command, Ended, Failure, Happened, Outlet,
};
use ringmill_protocols::capacity::intervals::{InterfaceRate, Interval, Rates, SubInterval};
use ringmill_protocols::capacity::starved::{Starved, starved};
use ringmill_protocols::capacity::summary::{Gatherer, Results};
use ringmill_protocols::capacity::time::{Instants, WallTime};
use ringmill_protocols::capacity::transmit::engine_limits;

use super::interface::Interface;
use super::network::{NetworkLosses, NetworkWatch};
use super::recording::Recorder;
use crate::args::{EngineArgs, ShardsArg};
use crate::launch;

/// Events that wait for the control thread, which takes all of them every 10 ms: 24 connections at
/// the shortest trial interval make some 50 in that time.
const EVENTS_MAX: usize = 4096;
/// How often the control thread looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Readings of both clocks, of which the quickest counts.
const CLOCK_READINGS: u32 = 8;
/// How long connections may take to say that they have ended after they were told to.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A server as it was named, and where that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// As it was named, without its port.
    pub name: String,
    /// Its control address.
    pub address: std::net::SocketAddr,
}

/// What the name of a recording is made of.
pub struct RecordingName<'a> {
    /// The connection's index in its test.
    pub connection: u8,
    /// The test.
    pub plan: &'a TestPlan,
    /// The connection: both addresses.
    pub activated: &'a Activated,
}

/// Where the load PDUs that come to a client are recorded; which of them is in
/// [`ClientSettings::recording`].
pub struct RecordingPlan {
    /// The file of a connection, made when that is activated.
    pub name: Box<dyn Fn(&RecordingName<'_>) -> PathBuf + Send>,
}

/// One test of a run.
pub struct TestPlan {
    /// The servers, in the order of [`ClientSettings::servers`].
    pub servers: Vec<Server>,
    /// What the shards do.
    pub settings: ClientSettings,
    /// With fewer connections than this the test ends.
    pub connections_min: u8,
    /// Sub-intervals of the first mode of a bimodal test, 0 for a test with one mode.
    pub first_mode: u32,
    /// The network interface whose rate is shown beside.
    pub interface: Option<String>,
    /// That rate decides the maximum.
    pub by_interface: bool,
    /// Record what comes.
    pub recording: Option<RecordingPlan>,
    /// Socket buffers to ask for, in bytes, if not those of [`engine_limits`]. Tests that run at once
    /// share the largest.
    pub socket_buffer_bytes: Option<usize>,
}

/// What a front end is told while tests run.
#[derive(Debug)]
pub enum Said<'a> {
    /// Something that the user should know.
    Note(&'a str),
    /// Something happened to a connection of a test (an index into the plans).
    Event {
        /// Which test.
        test: usize,
        /// What.
        event: &'a ClientEvent,
    },
    /// A sub-interval is over, gathered over all connections.
    Interval {
        /// Which test.
        test: usize,
        /// Its figures.
        interval: &'a Interval,
        /// When it was closed.
        at: WallTime,
        /// What this host lost meanwhile, if that is known.
        network: Option<NetworkLosses>,
    },
    /// This host begins to lose datagrams that the path carried. Told once for each test; the sum is
    /// in [`TestOutcome::network`].
    HostLoses {
        /// Which test.
        test: usize,
        /// In the last sub-interval.
        losses: NetworkLosses,
    },
    /// Fewer connections are left than the test wants: it ends.
    TooFew {
        /// Which test.
        test: usize,
        /// Connections left.
        active: u8,
    },
}

/// Who prints.
pub trait FrontEnd {
    /// Takes note, on the control thread; tests go on meanwhile.
    fn said(&mut self, said: &Said<'_>);
}

/// How a test came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It took its time, with connections enough.
    Complete,
    /// The user ended it; the results are of what was measured until then.
    Interrupted,
    /// Too few connections were left.
    TooFewConnections,
}

/// What became of one connection.
#[derive(Debug, Clone)]
pub struct ConnectionOutcome {
    /// Its server, an index into [`TestPlan::servers`].
    pub server: usize,
    /// If it came to run.
    pub activated: Option<Activated>,
    /// If it did not.
    pub failure: Option<Failure>,
    /// How its test ended, if it ran.
    pub ended: Option<Ended>,
}

/// What became of a test.
#[derive(Debug, Clone)]
pub struct TestOutcome {
    /// How it came out.
    pub verdict: Verdict,
    /// Summary and maximum, by mode.
    pub results: Results,
    /// Every sub-interval and when it was closed.
    pub intervals: Vec<(Interval, WallTime)>,
    /// Every connection.
    pub connections: Vec<ConnectionOutcome>,
    /// When the first connection was activated, if one was.
    pub began: Option<WallTime>,
    /// When the last one ended.
    pub ended: WallTime,
    /// Records that were not written because the disk was too slow.
    pub records_dropped: u64,
    /// Connections that got far less than their siblings.
    pub starved: Vec<Starved>,
    /// What this host lost from the activation to the end, if that is known.
    pub network: Option<NetworkLosses>,
}

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of every test, in the order of the plans.
    pub tests: Vec<TestOutcome>,
}

/// Both clocks, read as much at the same time as can be: what lies between the readings shifts every
/// one-way delay of a test.
#[must_use]
pub fn instants_now() -> Instants {
    let read = |_| {
        let before = monotonic_now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let after = monotonic_now();
        let wall = wall.unwrap_or_default().as_nanos();
        (after - before, before.midpoint(after), wall)
    };
    // A reading that was interrupted took longer than another.
    let (_, now, wall) = (0..CLOCK_READINGS)
        .map(read)
        .min_by_key(|(took, ..)| *took)
        .unwrap_or_else(|| read(0));
    Instants {
        now,
        wall: WallTime::from_unix_nanos(u64::try_from(wall).unwrap_or(u64::MAX)),
    }
}

/// A random number for [`ClientSettings::ident`] and [`ClientSettings::seed`].
#[must_use]
pub fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(monotonic_now())
}

/// Runs tests, all at once, until all have ended, or `interrupted` says that the user wants that.
///
/// # Errors
/// The engine does not start or fails, an interface is not there, a recording cannot be written.
pub fn run(
    plans: &[TestPlan],
    engine: &EngineArgs,
    interrupted: &dyn Fn() -> bool,
    front: &mut dyn FrontEnd,
) -> Result<Outcome> {
    let widest = plans.iter().map(|plan| plan.settings.connections).max();
    let connections = usize::from(widest.unwrap_or(1)).max(1);
    let mut engine_args = engine.clone();
    let mut placement = launch::place(engine, None, false)?;
    if engine.shards == ShardsArg::Auto && placement.plan.shards.len() > connections {
        engine_args.placement.shards = ShardsArg::Count(connections as u16);
        placement = launch::place(&engine_args, None, false)?;
    }
    let shards = placement.plan.shards.len() as u16;
    let mut builder = launch::builder(&engine_args, limits(plans), &placement);
    let mut tests = Vec::new();
    for plan in plans {
        let (test, service) = Test::new(plan, shards)?;
        builder = builder.service(service);
        tests.push(test);
    }
    let mut engine = builder.start()?;
    if let Some(note) = engine.driver_note() {
        front.said(&Said::Note(note));
    }
    if let Some(note) = &placement.note {
        front.said(&Said::Note(note));
    }
    let mut end_told: Option<Instant> = None;
    loop {
        for (index, test) in tests.iter_mut().enumerate() {
            test.look(index, front)?;
        }
        if interrupted() && end_told.is_none() {
            end_told = Some(Instant::now());
            for test in &mut tests {
                test.interrupted = true;
                test.end(shards);
            }
        }
        for test in &mut tests {
            if test.too_few && !std::mem::replace(&mut test.told_to_end, true) {
                test.end(shards);
            }
        }
        if tests.iter().all(Test::is_over) {
            break;
        }
        if end_told.is_some_and(|told| told.elapsed() > END_PATIENCE) {
            break;
        }
        if engine.has_ended() {
            engine.join()?;
            bail!("the engine ended before the test did");
        }
        std::thread::park_timeout(LOOK_INTERVAL);
    }
    engine.stop();
    engine.join()?;
    drop(engine);
    let mut outcomes = Vec::new();
    for (index, mut test) in tests.into_iter().enumerate() {
        test.look(index, front)?;
        outcomes.push(test.finish(index, front)?);
    }
    Ok(Outcome { tests: outcomes })
}

fn limits(plans: &[TestPlan]) -> Limits {
    let mut limits = engine_limits(Limits::default());
    let wanted = plans.iter().filter_map(|plan| plan.socket_buffer_bytes);
    if let Some(bytes) = wanted.max() {
        limits.datagram_socket_buffers = SocketBufferSizes::both(bytes);
    }
    limits
}

/// A test that runs, on the control thread.
struct Test<'a> {
    plan: &'a TestPlan,
    ipv6: bool,
    events: Receiver<ClientEvent>,
    controller: Controller<Command>,
    outlet: Arc<Outlet>,
    recorder: Option<Recorder>,
    interface: Option<Interface>,
    interface_rate: Option<InterfaceRate>,
    network: NetworkWatch,
    losses: Option<NetworkLosses>,
    host_loses: bool,
    gathering: u32,
    gatherer: Gatherer,
    results: Results,
    intervals: Vec<(Interval, WallTime)>,
    /// By sub-interval and connection, in Mbit/s.
    flow_rates: Vec<Vec<Option<f64>>>,
    connections: Vec<ConnectionOutcome>,
    began: Option<WallTime>,
    too_few: bool,
    told_to_end: bool,
    interrupted: bool,
}

impl<'a> Test<'a> {
    fn new(plan: &'a TestPlan, shards: u16) -> Result<(Self, Service<Client>)> {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let (recorder, records) = match plan.recording {
            Some(_) => {
                let ecn = plan.settings.parameters.ecn_ce_thresh > 0;
                let (recorder, records) =
                    Recorder::start(ecn).context("cannot start the recording")?;
                (Some(recorder), Some(records))
            }
            None => (None, None),
        };
        let outlet = Arc::new(Outlet::new(sender, records));
        let settings = Arc::new(plan.settings.clone());
        let (of_shards, connections) = (Arc::clone(&outlet), plan.settings.connections);
        let service = Service::new("capacity", move |shard| {
            Client::new(
                Arc::clone(&settings),
                Client::dealt(connections, shard, shards),
                Arc::clone(&of_shards),
            )
        });
        let interface = match &plan.interface {
            Some(name) => {
                let direction = plan.settings.parameters.direction;
                let watched = Interface::watch(name, direction, monotonic_now());
                let watched = watched
                    .with_context(|| format!("cannot read the counters of interface '{name}'"))?;
                Some(watched)
            }
            None => None,
        };
        let test = Self {
            ipv6: plan.settings.server(0).is_ipv6(),
            events,
            controller: service.controller(),
            outlet,
            recorder,
            interface,
            interface_rate: None,
            network: NetworkWatch::default(),
            losses: None,
            host_loses: false,
            gathering: 0,
            gatherer: Gatherer::default(),
            results: Results::new(plan.first_mode, plan.by_interface),
            intervals: Vec::new(),
            flow_rates: Vec::new(),
            connections: (0..connections)
                .map(|index| ConnectionOutcome {
                    server: usize::from(index) % plan.servers.len().max(1),
                    activated: None,
                    failure: None,
                    ended: None,
                })
                .collect(),
            began: None,
            too_few: false,
            told_to_end: false,
            interrupted: false,
            plan,
        };
        Ok((test, service))
    }

    /// Takes what has happened.
    fn look(&mut self, index: usize, front: &mut dyn FrontEnd) -> Result<()> {
        let last = self.outlet.take_last();
        while let Ok(event) = self.events.try_recv() {
            self.take(index, &event, front)?;
        }
        for event in last {
            self.take(index, &event, front)?;
        }
        if let Some(interval) = self.gatherer.check(u32::from(self.active())) {
            self.closed(index, interval, front);
        }
        if self.active() < self.plan.connections_min && !self.too_few && !self.interrupted {
            self.too_few = true;
            let active = self.active();
            front.said(&Said::TooFew {
                test: index,
                active,
            });
        }
        Ok(())
    }

    fn take(&mut self, index: usize, event: &ClientEvent, front: &mut dyn FrontEnd) -> Result<()> {
        let ipv6 = self.ipv6;
        let place = usize::from(event.connection);
        match &event.happened {
            Happened::Activated(activated) => self.activated(event, activated)?,
            Happened::Failed(failure) => self.connections[place].failure = Some(*failure),
            Happened::Ended(ended) => self.connections[place].ended = Some(**ended),
            _ => {}
        }
        front.said(&Said::Event { test: index, event });
        if let Happened::SubInterval(part) = &event.happened {
            self.flow_rate(place, part);
            let active = u32::from(self.active());
            let closed = self.gatherer.add(part, ipv6, active);
            if let Some(interval) = closed {
                self.closed(index, interval, front);
            }
            if part.number > self.gathering {
                self.gathering = part.number;
                self.interface_rate = self
                    .interface
                    .as_mut()
                    .map(|interface| interface.rate(event.at.now));
                if let (Some(recorder), Some(rate)) = (&self.recorder, self.interface_rate) {
                    recorder.interface(rate);
                }
            }
            if let Some(interval) = self.gatherer.check(active) {
                self.closed(index, interval, front);
            }
        }
        Ok(())
    }

    /// Takes note of what one of several connections had.
    fn flow_rate(&mut self, connection: usize, part: &SubInterval) {
        let connections = self.connections.len();
        if connections == 1 || part.number == 0 {
            return;
        }
        // Connections hand out no number beyond those that the test has.
        let index = part.number as usize - 1;
        if self.flow_rates.len() <= index {
            self.flow_rates.resize(index + 1, vec![None; connections]);
        }
        self.flow_rates[index][connection] = Some(Rates::of(&part.stats, self.ipv6).ip);
    }

    fn activated(&mut self, event: &ClientEvent, activated: &Activated) -> Result<()> {
        if self.began.is_none() {
            self.began = Some(event.at.wall);
            // What was before is no business of the test.
            let before = self.network.losses();
            self.losses = before.map(|_| NetworkLosses::default());
            if let Some(interface) = &mut self.interface {
                let _ = interface.rate(event.at.now);
            }
        }
        self.connections[usize::from(event.connection)].activated = Some(activated.clone());
        if let (Some(recorder), Some(recording)) = (&self.recorder, &self.plan.recording) {
            let path = (recording.name)(&RecordingName {
                connection: event.connection,
                plan: self.plan,
                activated,
            });
            recorder
                .open(event.connection, &path)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn closed(&mut self, index: usize, mut interval: Interval, front: &mut dyn FrontEnd) {
        interval.interface = self.interface_rate;
        let at = instants_now().wall;
        self.results.add(&interval);
        self.intervals.push((interval, at));
        let network = self.host_losses();
        front.said(&Said::Interval {
            test: index,
            interval: &interval,
            at,
            network,
        });
        if let Some(losses) = network.filter(|losses| !losses.is_none())
            && !std::mem::replace(&mut self.host_loses, true)
        {
            front.said(&Said::HostLoses {
                test: index,
                losses,
            });
        }
    }

    /// What the host lost since this was last asked, which is added to the sum.
    fn host_losses(&mut self) -> Option<NetworkLosses> {
        let losses = self.network.losses();
        self.losses = self.losses.zip(losses).map(|(sum, losses)| sum.and(losses));
        losses
    }

    /// Connections that have not failed.
    fn active(&self) -> u8 {
        let active = self.connections.iter().filter(|connection| {
            let ended = connection.ended.as_ref();
            connection.failure.is_none() && ended.is_none_or(|ended| ended.end.is_complete())
        });
        active.count() as u8
    }

    fn is_over(&self) -> bool {
        self.connections
            .iter()
            .all(|connection| connection.failure.is_some() || connection.ended.is_some())
    }

    fn end(&self, shards: u16) {
        for shard in 0..shards {
            // A full mailbox is not possible: nothing else is ever sent to it.
            let _ = self.controller.post(shard, Command::End);
        }
    }

    fn finish(mut self, index: usize, front: &mut dyn FrontEnd) -> Result<TestOutcome> {
        if let Some(interval) = self.gatherer.close(u32::from(self.active())) {
            self.closed(index, interval, front);
        }
        self.host_losses();
        let events_dropped = self.outlet.events_dropped();
        if events_dropped > 0 {
            front.said(&Said::Note(&format!(
                "{events_dropped} events were dropped: what takes the output was too slow, so \
                 sub-intervals or warnings may be missing"
            )));
        }
        let mut records_dropped = self.outlet.records_dropped();
        // The last sender: now the recorder ends.
        drop(self.outlet);
        if let Some(recorder) = self.recorder {
            let dropped = recorder.finish().context("cannot write the recording")?;
            records_dropped += dropped;
        }
        let verdict = if self.interrupted {
            Verdict::Interrupted
        } else if self.too_few {
            Verdict::TooFewConnections
        } else {
            Verdict::Complete
        };
        Ok(TestOutcome {
            verdict,
            results: self.results,
            intervals: self.intervals,
            connections: self.connections,
            began: self.began,
            ended: instants_now().wall,
            records_dropped,
            starved: starved(&self.flow_rates),
            network: self.losses,
        })
    }
}

#[cfg(test)]
mod tests {
    use ringmill_protocols::capacity::event::End;
    use ringmill_protocols::capacity::parameters::{Direction, TestParameters};
    use ringmill_protocols::capacity::pdu::SubIntervalStats;

    use super::*;

    fn plan(connections: u8, connections_min: u8) -> TestPlan {
        let address = "127.0.0.1:24601".parse().expect("an address");
        let parameters = TestParameters::new(Direction::Downstream);
        let clock = Instants::default();
        TestPlan {
            servers: vec![Server {
                name: "here".into(),
                address,
            }],
            settings: ClientSettings {
                connections,
                ..ClientSettings::new(vec![address], parameters, clock)
            },
            connections_min,
            first_mode: 0,
            interface: None,
            by_interface: false,
            recording: None,
            socket_buffer_bytes: None,
        }
    }

    /// A sub-interval of one second in which so many Mbit/s came in packets of 1250 bytes.
    fn part(number: u32, mbps: u32) -> Happened {
        let datagrams = mbps * 100;
        Happened::SubInterval(SubInterval {
            number,
            stats: SubIntervalStats {
                rx_datagrams: datagrams,
                rx_bytes: u64::from(datagrams) * 1222,
                delta_time: 1_000_000,
                accum_time: number * 1000,
                ..SubIntervalStats::default()
            },
            ..SubInterval::default()
        })
    }

    fn activated() -> Happened {
        let address = "127.0.0.1:24601".parse().expect("an address");
        Happened::Activated(Box::new(Activated {
            local: address,
            peer: address,
            parameters: TestParameters::new(Direction::Downstream),
            version: ringmill_protocols::capacity::pdu::Version::V20,
            wire_version: 20,
            clock_offset_s: None,
        }))
    }

    fn ended(end: End) -> Happened {
        Happened::Ended(Box::new(Ended {
            end,
            datagrams: 0,
            bytes: 0,
            missed: 0,
            limited_trials: 0,
            trials: 0,
        }))
    }

    const NONE: Happened = Happened::Failed(Failure::SetupTimeout);

    /// What was said, in short: the rate of each interval with its connections, and a dash for too
    /// few of these.
    #[derive(Default)]
    struct Heard(Vec<String>);

    impl FrontEnd for Heard {
        fn said(&mut self, said: &Said<'_>) {
            match said {
                Said::Interval { interval, .. } => self.0.push(format!(
                    "{}: {:.0} of {}/{}",
                    interval.number,
                    interval.rates.ip,
                    interval.reported,
                    interval.active_connections
                )),
                Said::TooFew { active, .. } => self.0.push(format!("only {active}")),
                Said::HostLoses { losses, .. } => {
                    self.0
                        .push(format!("host loses {}", losses.reassembly_failures));
                }
                Said::Note(words) => {
                    let (short, _) = words.split_once(':').expect("what, then why");
                    self.0.push(short.to_owned());
                }
                _ => {}
            }
        }
    }

    /// Its name, connections wanted, what happens to which, what is said, how it comes out.
    type Case = (
        &'static str,
        u8,
        Vec<(u8, Happened)>,
        Vec<&'static str>,
        Verdict,
    );

    #[test]
    fn intervals_of_several_connections_are_gathered() {
        let cases: Vec<Case> = vec![
            (
                "all report",
                1,
                vec![
                    (0, part(1, 100)),
                    (1, part(1, 200)),
                    (1, part(2, 10)),
                    (0, part(2, 20)),
                    (0, ended(End::Complete)),
                    (1, ended(End::Complete)),
                ],
                vec!["1: 300 of 2/2", "2: 30 of 2/2"],
                Verdict::Complete,
            ),
            (
                "one is ahead",
                1,
                vec![
                    (0, part(1, 100)),
                    (0, part(2, 100)),
                    (1, part(1, 200)),
                    (1, part(2, 200)),
                    (0, ended(End::Complete)),
                    (1, ended(End::StopMissing)),
                ],
                vec!["1: 100 of 1/2", "2: 300 of 2/2"],
                Verdict::Complete,
            ),
            (
                "one never comes to run",
                1,
                vec![
                    (0, part(1, 100)),
                    (1, NONE),
                    (0, part(2, 100)),
                    (0, ended(End::Complete)),
                ],
                vec!["1: 100 of 1/1", "2: 100 of 1/1"],
                Verdict::Complete,
            ),
            (
                "one is lost on the way and both are wanted",
                2,
                vec![
                    (0, part(1, 100)),
                    (1, part(1, 100)),
                    (1, ended(End::NoTraffic)),
                    (0, ended(End::Stopped)),
                ],
                vec!["1: 200 of 2/2", "only 1"],
                Verdict::TooFewConnections,
            ),
            (
                "the last sub-interval of one is missing",
                1,
                vec![
                    (0, part(1, 100)),
                    (0, ended(End::Complete)),
                    (1, ended(End::Complete)),
                ],
                vec!["1: 100 of 1/2"],
                Verdict::Complete,
            ),
        ];
        for (name, connections_min, events, want, verdict) in cases {
            let plan = plan(2, connections_min);
            let (mut test, _service) = Test::new(&plan, 1).expect(name);
            let mut heard = Heard::default();
            for (connection, happened) in events {
                test.outlet.tell(ClientEvent {
                    connection,
                    at: Instants::default(),
                    happened,
                });
                test.look(0, &mut heard).expect(name);
            }
            assert!(test.is_over(), "{name}");
            let outcome = test.finish(0, &mut heard).expect(name);
            assert_eq!(outcome.verdict, verdict, "{name}");
            assert_eq!(heard.0, want, "{name}");
            let intervals = want.iter().filter(|line| line.contains(" of ")).count();
            assert_eq!(outcome.intervals.len(), intervals, "{name}");
        }
    }

    /// Who prints was held up for a while, by a pipe that nobody read.
    #[test]
    fn an_end_that_finds_the_queue_full_is_heard_all_the_same() {
        for last in [ended(End::Complete), NONE] {
            let plan = plan(1, 1);
            let (mut test, _service) = Test::new(&plan, 1).expect("a test");
            let mut heard = Heard::default();
            let tell = |test: &Test<'_>, happened| {
                test.outlet.tell(ClientEvent {
                    connection: 0,
                    at: Instants::default(),
                    happened,
                });
            };
            for number in 1..=EVENTS_MAX as u32 + 3 {
                tell(&test, part(number, 100));
            }
            tell(&test, last);
            test.look(0, &mut heard).expect("it goes on");
            assert!(test.is_over());
            test.finish(0, &mut heard).expect("results");
            assert!(heard.0.contains(&"4096: 100 of 1/1".into()));
            assert_eq!(heard.0.last().expect("a note"), "3 events were dropped");
        }
    }

    #[test]
    fn flows_that_starve_are_found() {
        let plan = plan(3, 1);
        let (mut test, _service) = Test::new(&plan, 1).expect("a test");
        let mut heard = Heard::default();
        for number in 1..=3 {
            for (connection, mbps) in [(0, 100), (1, 100), (2, 10)] {
                test.outlet.tell(ClientEvent {
                    connection,
                    at: Instants::default(),
                    happened: part(number, mbps),
                });
                test.look(0, &mut heard).expect("no files");
            }
        }
        let outcome = test.finish(0, &mut heard).expect("no files");
        let want = Starved {
            connection: 2,
            intervals: 3,
            mbps: 10.0,
            median_mbps: 100.0,
        };
        assert_eq!(outcome.starved, [want]);
    }

    #[test]
    fn what_the_host_loses_is_told_once_and_summed_up() {
        use super::super::network::tests::write;
        let root = tempfile::tempdir().expect("a folder");
        write(root.path(), (1, 0), None);
        let plan = plan(1, 1);
        let (mut test, _service) = Test::new(&plan, 1).expect("a test");
        test.network = NetworkWatch::below(root.path());
        let mut heard = Heard::default();
        let mut say = |test: &mut Test<'_>, failures, happened| {
            write(root.path(), (failures, 2 * failures), None);
            test.outlet.tell(ClientEvent {
                connection: 0,
                at: Instants::default(),
                happened,
            });
            test.look(0, &mut heard).expect("nothing fails");
        };
        // What came before the activation is not of the test.
        say(&mut test, 10, activated());
        say(&mut test, 10, part(1, 100));
        say(&mut test, 13, part(2, 100));
        say(&mut test, 17, part(3, 100));
        say(&mut test, 18, ended(End::Complete));
        let outcome = test.finish(0, &mut heard).expect("nothing fails");
        let told = heard.0.iter().filter(|line| line.contains("host"));
        assert_eq!(told.collect::<Vec<_>>(), ["host loses 3"]);
        let network = outcome.network.expect("it can be read");
        assert_eq!(
            (network.reassembly_failures, network.receive_buffer_errors),
            (8, 16)
        );
    }

    #[test]
    fn the_largest_wanted_socket_buffer_counts() {
        let ours = engine_limits(Limits::default()).datagram_socket_buffers;
        for (wanted, bytes) in [
            (vec![None], ours),
            (vec![Some(32_768)], SocketBufferSizes::both(32_768)),
            (
                vec![None, Some(1), Some(5_000_000)],
                SocketBufferSizes::both(5_000_000),
            ),
        ] {
            let plans: Vec<_> = wanted
                .iter()
                .map(|bytes| TestPlan {
                    socket_buffer_bytes: *bytes,
                    ..plan(1, 1)
                })
                .collect();
            assert_eq!(limits(&plans).datagram_socket_buffers, bytes);
        }
    }

    #[test]
    fn both_clocks_are_of_one_moment() {
        let (before, between, after) = (monotonic_now(), instants_now(), monotonic_now());
        assert!((before..=after).contains(&between.now));
        // Not before this was written, and before the wire format wraps.
        assert!(between.wall.sec > 1_700_000_000);
    }
}
