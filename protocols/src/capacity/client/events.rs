//! What a client's shards tell the control thread: events of each connection, and records of what
//! arrived. Both queues are bounded; what finds one full is dropped and counted, never waited for.
//! Only the last event of a connection is never dropped, as the control thread waits for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use crossbeam_queue::ArrayQueue;
use ringmill_engine::{Nanos, error_name};

use crate::capacity::CONNECTIONS_MAX;
use crate::capacity::auth::AuthError;
use crate::capacity::batch::LoadRecord;
use crate::capacity::event::{End, TrialReport, Warning};
use crate::capacity::intervals::SubInterval;
use crate::capacity::parameters::{ParameterError, TestParameters};
use crate::capacity::pdu::{Activation, SetupCode, Version};
use crate::capacity::time::Instants;

/// Records that travel together: few enough to hold back little, enough to make queueing cheap.
pub const RECORDS_PER_BATCH: usize = 1024;

/// Something happened to a connection.
#[derive(Debug, Clone)]
pub struct ClientEvent {
    /// Index of the connection in its test (`mcIndex`).
    pub connection: u8,
    /// When.
    pub at: Instants,
    /// What.
    pub happened: Happened,
}

/// What happened to a connection.
#[derive(Debug, Clone)]
pub enum Happened {
    /// A setup request was sent; more than once when no answer came.
    SetupSent {
        /// How often before.
        repeats: u32,
    },
    /// The server does not speak version 20: set up again in version 11.
    FellBack {
        /// The version that the server named.
        server: u16,
    },
    /// An activation request was sent; more than once when no answer came.
    ActivationSent {
        /// How often before.
        repeats: u32,
    },
    /// The server has set the connection up.
    SetUp {
        /// The server's address and port for the test.
        test: SocketAddr,
    },
    /// The test runs.
    Activated(Box<Activated>),
    /// A trial ended.
    Trial(TrialReport),
    /// A sub-interval ended.
    SubInterval(SubInterval),
    /// Something is not as it should be.
    Warning(Warning),
    /// The timers of this shard, which is that of the connection, fire late: while it sends, it does
    /// not sleep.
    BusyPacing {
        /// Median lateness in ns.
        late: Nanos,
    },
    /// The path does not take this connection's segmented sends: it goes on with single ones.
    GsoRefused,
    /// The socket reported an error; the connection goes on.
    SocketError {
        /// The kernel's error number.
        errno: i32,
    },
    /// The test did not come to run. Nothing follows.
    Failed(Failure),
    /// The test that ran has ended. Nothing follows.
    Ended(Box<Ended>),
}

impl Happened {
    /// Whether nothing follows on the connection.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Ended(_))
    }
}

/// A test that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activated {
    /// This end.
    pub local: SocketAddr,
    /// The server's address and port for the test.
    pub peer: SocketAddr,
    /// What was agreed.
    pub parameters: TestParameters,
    /// The version spoken.
    pub version: Version,
    /// The version as it is on the wire.
    pub wire_version: u16,
    /// The server's clock less ours in seconds, as far as signed responses say.
    pub clock_offset_s: Option<i64>,
}

/// What a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Why it ended.
    pub end: End,
    /// Load PDUs sent or received here.
    pub datagrams: u64,
    /// Their UDP payload in bytes.
    pub bytes: u64,
    /// Load PDUs that the sender was to send and gave up; of a server's only where that is ours.
    pub missed: u64,
    /// Trials in which the sender was the limit; of a server's only where that is ours.
    pub limited_trials: u32,
    /// All trials.
    pub trials: u32,
}

/// Why a connection did not come to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No socket.
    #[error("cannot open a socket: {}; see `ringmill doctor`", error_name(*errno))]
    Socket {
        /// The kernel's error number.
        errno: i32,
    },
    /// No answer to the setup request.
    #[error(
        "no answer to the setup request in 3 s: is a server running there, and does a firewall let \
         UDP through to its control port?"
    )]
    SetupTimeout,
    /// No answer to the activation request.
    #[error(
        "no answer to the test activation in 3 s: does a firewall let UDP through to the server's \
         test ports, which are others than its control port?"
    )]
    ActivationTimeout,
    /// The server rejected the setup.
    #[error("{}", rejected_words(*code, *server_version, *believed, *clock_offset_s))]
    Rejected {
        /// Its code as it is on the wire, see [`SetupCode`].
        code: u8,
        /// The version that its response names.
        server_version: u16,
        /// The response was signed by the right key, or the test needs no signatures.
        believed: bool,
        /// The server's clock less ours in seconds, where the response says.
        clock_offset_s: Option<i64>,
    },
    /// The signature of the setup response is not right.
    #[error("the server's answer to the setup is not believed: {0}")]
    SetupAuthentication(AuthError),
    /// The signature of the activation response is not right.
    #[error("the server's answer to the test activation is not believed: {0}")]
    ActivationAuthentication(AuthError),
    /// The server rejected the parameters.
    #[error("the server rejects the parameters of the test (code {code})")]
    ActivationRejected {
        /// Its code as it is on the wire.
        code: u8,
    },
    /// The server agreed to something that was not asked for.
    #[error("{0}")]
    Parameters(ParameterError),
    /// Too many datagrams that are no activation response.
    #[error("ten datagrams came from the server that are no answer to the test activation")]
    Nonsense,
    /// It was ended before it ran.
    #[error("ended before it began")]
    Ended,
}

impl Failure {
    /// The exit status that OB-UDPST gives it.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Socket { .. } => 75,
            Self::SetupTimeout | Self::ActivationTimeout | Self::Nonsense => 1,
            Self::Rejected {
                believed: false, ..
            } => 107,
            Self::Rejected { code, .. } => match SetupCode::of(*code) {
                Some(_) => 100 + *code,
                None => 100,
            },
            Self::SetupAuthentication(AuthError::Digest) => 107,
            Self::SetupAuthentication(AuthError::Time { .. }) => 108,
            Self::ActivationRejected {
                code: Activation::REJECTED,
            } => 152,
            Self::ActivationRejected { .. } => 150,
            Self::Parameters(_) => 152,
            Self::ActivationAuthentication(AuthError::Digest) => 157,
            Self::ActivationAuthentication(AuthError::Time { .. }) => 158,
            Self::Ended => 255,
        }
    }
}

fn rejected_words(
    code: u8,
    server_version: u16,
    believed: bool,
    clock_offset_s: Option<i64>,
) -> String {
    let mut words = match SetupCode::of(code) {
        Some(SetupCode::Version) => format!(
            "the server does not speak this version of the protocol, only up to {server_version} \
             (code {code})"
        ),
        Some(known) => format!("the server refuses the setup: {known} (code {code})"),
        None => {
            format!("the server refuses the setup with code {code}, which has no known meaning")
        }
    };
    if let Some(offset) = clock_offset_s
        && code == SetupCode::AuthenticationTime.wire()
    {
        words += &format!("; the server's clock is {offset:+} s from ours: set both by NTP");
    }
    if !believed {
        words += "; its answer is not signed with our key, so the keys may differ";
    }
    words
}

/// Records of one connection, in order of arrival.
#[derive(Debug)]
pub struct RecordBatch {
    /// Index of the connection.
    pub connection: u8,
    /// The records.
    pub records: Vec<LoadRecord>,
}

/// Where a client's shards put what they tell; shared by all of them.
#[derive(Debug)]
pub struct Outlet {
    events: SyncSender<ClientEvent>,
    /// The last events of connections that found the queue full: each connection has one.
    last: ArrayQueue<ClientEvent>,
    records: Option<SyncSender<RecordBatch>>,
    events_dropped: AtomicU64,
    records_dropped: AtomicU64,
}

impl Outlet {
    /// An outlet into these queues.
    #[must_use]
    pub fn new(events: SyncSender<ClientEvent>, records: Option<SyncSender<RecordBatch>>) -> Self {
        Self {
            events,
            last: ArrayQueue::new(CONNECTIONS_MAX.into()),
            records,
            events_dropped: AtomicU64::new(0),
            records_dropped: AtomicU64::new(0),
        }
    }

    /// Tells the control thread, if its queue has room. A last event is kept for
    /// [`take_last`](Self::take_last) where it has none.
    pub fn tell(&self, event: ClientEvent) {
        let Err(TrySendError::Full(event)) = self.events.try_send(event) else {
            return;
        };
        if !event.happened.is_last() || self.last.push(event).is_err() {
            self.events_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The last events that found the queue full. What came before them is in the queue by now: to
    /// keep the order, take them first, then empty the queue, and only then look at them.
    #[must_use]
    pub fn take_last(&self) -> Vec<ClientEvent> {
        std::iter::from_fn(|| self.last.pop()).collect()
    }

    /// Hands records to the recorder, if its queue has room.
    pub fn record(&self, batch: RecordBatch) {
        let Some(records) = &self.records else {
            return;
        };
        if let Err(TrySendError::Full(batch)) = records.try_send(batch) {
            let dropped = batch.records.len() as u64;
            self.records_dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Events that found the queue full.
    #[must_use]
    pub fn events_dropped(&self) -> u64 {
        self.events_dropped.load(Ordering::Relaxed)
    }

    /// Records that found the queue full.
    #[must_use]
    pub fn records_dropped(&self) -> u64 {
        self.records_dropped.load(Ordering::Relaxed)
    }
}
