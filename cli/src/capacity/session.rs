//! A run of one test or of several at once: engine, shards, gathering, the decision to end.

use std::path::PathBuf;

use ringmill_protocols::capacity::client::{
    Activated, ClientEvent, ClientSettings, Ended, Failure,
};
use ringmill_protocols::capacity::intervals::Interval;
use ringmill_protocols::capacity::summary::Results;
use ringmill_protocols::capacity::time::WallTime;

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
}

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of every test, in the order of the plans.
    pub tests: Vec<TestOutcome>,
}
