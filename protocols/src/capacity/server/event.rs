//! What the control thread is told: by a bounded queue that the data path never waits for.

use std::net::SocketAddr;
use std::sync::Arc;

use ringmill_engine::{Nanos, ShardId};

use crate::capacity::auth::AuthError;
use crate::capacity::batch::{LoadRecord, Refused};
use crate::capacity::event::{End, TrialReport, Warning};
use crate::capacity::intervals::SubInterval;
use crate::capacity::parameters::{Direction, TestParameters};
use crate::capacity::pdu::{Setup, SetupCode};
use crate::capacity::sequence::SequenceErrors;
use crate::capacity::setup::ActivationError;

/// One test connection of this server. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TestId(pub u64);

impl std::fmt::Display for TestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Who a test connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub test: TestId,
    /// The shard that runs it.
    pub shard: ShardId,
    /// Where the setup request came from.
    pub peer: SocketAddr,
    /// Address and port of the test's socket.
    pub local: SocketAddr,
    /// The listener that took the request, an index of [`Settings::listeners`](super::Settings).
    pub listener: u16,
    /// The request.
    pub request: Setup,
    /// It was signed, and rightly.
    pub authenticated: bool,
}

/// What a test came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Load PDUs sent or received.
    pub datagrams: u64,
    /// UDP payload of these in bytes.
    pub bytes: u64,
    /// Of load received: what was missing, late or came again.
    pub errors: SequenceErrors,
    /// Of load to be sent: what this host could not send in time.
    pub missed: u64,
    /// Trials in which a sender was the limit and not the path.
    pub limited_trials: u32,
    /// Datagrams that were no data PDUs.
    pub refused: Refused,
}

/// What happened on a server.
#[derive(Debug, Clone)]
pub enum ServerEvent {
    /// A setup request was rejected.
    Rejected {
        /// Where it came from.
        peer: SocketAddr,
        /// The request.
        request: Setup,
        /// The code of the answer.
        code: SetupCode,
        /// What was wrong with its authentication.
        auth_error: Option<AuthError>,
    },
    /// A setup request was accepted; the test waits for its activation.
    Accepted(Arc<About>),
    /// An activation request was not believed; the client may try again.
    ActivationRefused {
        /// The test.
        about: Arc<About>,
        /// Where it came from.
        peer: SocketAddr,
        /// Why; `None` when it came from another host than the setup request.
        error: Option<ActivationError>,
    },
    /// A test runs.
    Activated {
        /// The test.
        about: Arc<About>,
        /// The client's address from now on: its port may differ from that of the setup request.
        peer: SocketAddr,
        /// What was agreed.
        parameters: TestParameters,
    },
    /// No activation request came in time, or the slot was given to another.
    NotActivated {
        /// The test.
        about: Arc<About>,
        /// It had to make room for a newer request.
        evicted: bool,
    },
    /// Something is not as it should be; the test goes on.
    Warning {
        /// The test.
        about: Arc<About>,
        /// What.
        warning: Warning,
    },
    /// The path refused segmented sends, as when a datagram is larger than its MTU: each datagram
    /// of this test is now sent by itself, and may be fragmented.
    NotSegmented {
        /// The test.
        about: Arc<About>,
    },
    /// A trial ended. Only with [`Settings::trial_events`](super::Settings).
    Trial {
        /// The test.
        about: Arc<About>,
        /// What it showed.
        report: TrialReport,
    },
    /// A sub-interval ended.
    SubInterval {
        /// The test.
        about: Arc<About>,
        /// What it was.
        sub_interval: SubInterval,
    },
    /// The timers of a shard fire late: while a test of it sends, it does not sleep.
    BusyPacing {
        /// Which.
        shard: ShardId,
        /// Median lateness in ns.
        late: Nanos,
    },
    /// A test ended; nothing follows of it.
    Ended {
        /// The test.
        about: Arc<About>,
        /// Which way load went.
        direction: Direction,
        /// Why.
        end: End,
        /// What it came to.
        totals: Totals,
    },
}

/// Load PDUs that arrived, for a file.
#[derive(Debug)]
pub struct RecordBatch {
    /// The test.
    pub about: Arc<About>,
    /// In the order of their arrival.
    pub rows: Vec<LoadRecord>,
}
