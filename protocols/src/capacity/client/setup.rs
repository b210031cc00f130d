//! The control phase of one connection: setup and activation, their repeats, and what the answers
//! mean (RFC 9946 sections 6 and 7). Bytes and time in, bytes and a verdict out.
//!
//! A repeat is the same request byte for byte: a server that knows it answers it again and opens
//! nothing new. Who answers, must be who was asked.

use std::net::SocketAddr;

use ringmill_engine::time::Nanos;

use super::events::Failure;
use super::settings::ClientSettings;
use crate::capacity::auth::{AuthError, Keys, Signed};
use crate::capacity::parameters::{Direction, TestParameters};
use crate::capacity::pdu::{
    Activation, Authentication, Pdu, RateStructure, Setup, SetupCode, Version,
};
use crate::capacity::time::Instants;
use crate::capacity::{ALERTS_MAX, AUTH_WINDOW_S, NO_TRAFFIC_TIMEOUT};

/// Between a request and its repeat: five repeats before the time is up, each still inside the
/// server's window for signatures.
pub const REPEAT_INTERVAL: Nanos = 500_000_000;
/// The first repeat of an activation request: two round trips, as the setup took, but not before
/// this. Every moment until it is answered is lost for the test, whose time runs at the server.
const ACTIVATION_REPEAT_MIN: Nanos = 200_000_000;
/// Load that comes although the activation was not answered means that the answer was lost. A server
/// of ours answers the repeat that goes out at once; after so long no answer will come.
const ANSWER_LOST: Nanos = 400_000_000;

/// A connection in its control phase.
pub(super) struct Control {
    connection: u8,
    version: Version,
    wire_version: u16,
    keys: Option<Keys>,
    server: SocketAddr,
    stage: Stage,
    /// Where the last request goes.
    to: SocketAddr,
    request: [u8; Activation::LEN_MAX],
    request_len: usize,
    repeats: u32,
    sent_at: Nanos,
    repeat_at: Nanos,
    give_up_at: Nanos,
    clock_offset_s: Option<i64>,
}

enum Stage {
    Setup,
    Activation {
        /// Load came first at this time.
        load_came: Option<Nanos>,
        alerts: u32,
    },
}

/// What an arrived datagram means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing.
    None,
    /// The server speaks an older version only: there is a new request to be sent.
    FellBack {
        /// What it speaks.
        server: u16,
    },
    /// It is set up: there is an activation request to be sent.
    SetUp {
        /// The server's address and port for the test.
        test: SocketAddr,
    },
    /// The test runs.
    Activated(Box<Agreed>),
    /// There will be no test.
    Failed(Failure),
}

/// What was agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The server's address and port for the test.
    pub(super) peer: SocketAddr,
    /// The parameters.
    pub(super) parameters: TestParameters,
    /// In an upstream test, what to send first.
    pub(super) first_row: RateStructure,
    /// The version.
    pub(super) version: Version,
    /// The same as on the wire.
    pub(super) wire_version: u16,
    /// The server's clock less ours in seconds, if it is known.
    pub(super) clock_offset_s: Option<i64>,
}

impl Control {
    /// Begins the setup of a connection. The first request is there to be sent.
    #[must_use]
    pub(super) fn new(settings: &ClientSettings, connection: u8, at: Instants) -> Self {
        let server = settings.server(connection);
        let mut control = Self {
            connection,
            version: settings.version,
            wire_version: settings.version.wire(),
            keys: None,
            server,
            stage: Stage::Setup,
            to: server,
            request: [0; Activation::LEN_MAX],
            request_len: 0,
            repeats: 0,
            sent_at: 0,
            repeat_at: 0,
            give_up_at: 0,
            clock_offset_s: None,
        };
        control.set_up(settings, at);
        control
    }

    /// The request that is to be sent, and where.
    #[must_use]
    pub(super) fn request(&self) -> (&[u8], SocketAddr) {
        (&self.request[..self.request_len], self.to)
    }

    /// How often the request was repeated.
    #[must_use]
    pub(super) fn repeats(&self) -> u32 {
        self.repeats
    }

    /// Whether the server has set the connection up.
    #[must_use]
    pub(super) fn is_set_up(&self) -> bool {
        matches!(self.stage, Stage::Activation { .. })
    }

    /// When [`timer`](Self::timer) wants to be called.
    #[must_use]
    pub(super) fn next_deadline(&self) -> Nanos {
        self.repeat_at.min(self.give_up_at)
    }

    /// Whether the request is to be sent again, or why not any more.
    ///
    /// # Errors
    /// Nobody has answered in time.
    pub(super) fn timer(&mut self, now: Nanos) -> Result<bool, Failure> {
        if now >= self.give_up_at {
            return Err(match self.stage {
                Stage::Setup => Failure::SetupTimeout,
                Stage::Activation { .. } => Failure::ActivationTimeout,
            });
        }
        if now < self.repeat_at {
            return Ok(false);
        }
        self.repeat_at = now + REPEAT_INTERVAL;
        self.repeats += 1;
        self.sent_at = now;
        Ok(true)
    }

    /// Takes a datagram.
    pub(super) fn datagram(
        &mut self,
        settings: &ClientSettings,
        bytes: &[u8],
        from: SocketAddr,
        at: Instants,
    ) -> Progress {
        // A scope or flow label of IPv6 is no part of who it is.
        let asked = from.ip() == self.to.ip() && from.port() == self.to.port();
        match (Pdu::of(bytes), &mut self.stage) {
            (Some(Pdu::Setup), Stage::Setup) if asked => self.setup_answer(settings, bytes, at),
            // Sent to open the server's firewall; repeated answers to the setup.
            (Some(Pdu::Null | Pdu::Setup), _) => Progress::None,
            (Some(Pdu::Load | Pdu::Status), Stage::Activation { load_came, .. }) if asked => {
                match load_came {
                    Some(since) if at.now >= *since + ANSWER_LOST => self.assume(settings),
                    Some(_) => Progress::None,
                    None => {
                        *load_came = Some(at.now);
                        self.repeat_at = at.now;
                        Progress::None
                    }
                }
            }
            (_, Stage::Activation { .. }) if asked => self.activation_answer(settings, bytes, at),
            _ => Progress::None,
        }
    }

    fn set_up(&mut self, settings: &ClientSettings, at: Instants) {
        let upstream = match settings.parameters.direction {
            Direction::Upstream => Setup::UPSTREAM,
            Direction::Downstream => 0,
        };
        let mut modifier_bitmap = 0;
        if settings.sizes.jumbo {
            modifier_bitmap |= Setup::JUMBO;
        }
        if settings.sizes.traditional {
            modifier_bitmap |= Setup::TRADITIONAL;
        }
        let setup = Setup {
            protocol_ver: self.wire_version,
            mc_index: self.connection,
            mc_count: settings.connections,
            mc_ident: settings.ident,
            cmd_request: Setup::REQUEST,
            max_bandwidth: settings.bandwidth_of_connection() | upstream,
            modifier_bitmap,
            auth: self.authentication(settings, at),
            ..Setup::default()
        };
        self.request_len = setup.encode(&mut self.request);
        let request = &mut self.request[..self.request_len];
        self.keys = None;
        if let Some((_, key)) = &settings.key {
            match self.version {
                Version::V20 => {
                    let keys = Keys::derive(key, setup.auth.auth_unix_time);
                    Signed::Setup.sign(keys.client(), request);
                    self.keys = Some(keys);
                }
                Version::V11 => Signed::Setup.sign(key.bytes(), request),
            }
        }
        if settings.check_sum {
            Setup::fill_check_sum(request);
        }
        self.sent(at.now);
        self.give_up_at = at.now + NO_TRAFFIC_TIMEOUT;
    }

    fn authentication(&self, settings: &ClientSettings, at: Instants) -> Authentication {
        match &settings.key {
            Some((key_id, _)) => Authentication {
                auth_mode: Authentication::MODE_CONTROL,
                auth_unix_time: at.wall.sec,
                key_id: *key_id,
                ..Authentication::default()
            },
            None => Authentication::default(),
        }
    }

    /// A new request goes out now.
    fn sent(&mut self, now: Nanos) {
        self.repeats = 0;
        self.sent_at = now;
        self.repeat_at = now + REPEAT_INTERVAL;
    }

    fn setup_answer(&mut self, settings: &ClientSettings, bytes: &[u8], at: Instants) -> Progress {
        let Ok(setup) = Setup::decode_response(bytes) else {
            return Progress::None;
        };
        if setup.mc_index != self.connection || setup.mc_ident != settings.ident {
            return Progress::None;
        }
        let older = SetupCode::of(setup.cmd_response) == Some(SetupCode::Version)
            && self.version == Version::V20
            && Version::of(setup.protocol_ver) == Some(Version::V11);
        if older && settings.fall_back {
            self.version = Version::V11;
            self.wire_version = Version::V11.wire();
            self.set_up(settings, at);
            return Progress::FellBack {
                server: setup.protocol_ver,
            };
        }
        let mut believed = Ok(());
        if let Some(keys) = &self.keys {
            believed = Signed::Setup.check(keys.server(), bytes, at.wall, AUTH_WINDOW_S);
            if setup.auth.auth_unix_time != 0 {
                let offset = i64::from(setup.auth.auth_unix_time) - i64::from(at.wall.sec);
                self.clock_offset_s = Some(offset);
            }
        }
        if setup.cmd_response != SetupCode::Accepted.wire() {
            return Progress::Failed(Failure::Rejected {
                code: setup.cmd_response,
                server_version: setup.protocol_ver,
                // That the clocks differ is what the code says too.
                believed: believed != Err(AuthError::Digest),
                clock_offset_s: self.clock_offset_s,
            });
        }
        if let Err(error) = believed {
            return Progress::Failed(Failure::SetupAuthentication(error));
        }
        if setup.test_port == 0 {
            return Progress::None;
        }
        let mut test = self.server;
        test.set_port(setup.test_port);
        let round_trip = at.now.saturating_sub(self.sent_at);
        self.activate(settings, test, at);
        self.repeat_at = at.now + (2 * round_trip).clamp(ACTIVATION_REPEAT_MIN, REPEAT_INTERVAL);
        Progress::SetUp { test }
    }

    fn activate(&mut self, settings: &ClientSettings, test: SocketAddr, at: Instants) {
        let mut activation = settings.parameters.request(self.version, self.wire_version);
        if self.version == Version::V20 {
            activation.auth = self.authentication(settings, at);
        }
        self.request_len = activation.encode(self.version, &mut self.request);
        let request = &mut self.request[..self.request_len];
        if let Some(keys) = &self.keys {
            Signed::Activation.sign(keys.client(), request);
        }
        if settings.check_sum {
            Activation::fill_check_sum(self.version, request);
        }
        self.to = test;
        self.stage = Stage::Activation {
            load_came: None,
            alerts: 0,
        };
        self.sent(at.now);
    }

    fn activation_answer(
        &mut self,
        settings: &ClientSettings,
        bytes: &[u8],
        at: Instants,
    ) -> Progress {
        let answer = match Activation::decode_response(bytes, self.version) {
            Ok(answer) => answer,
            Err(_) => {
                if let Stage::Activation { alerts, .. } = &mut self.stage {
                    *alerts += 1;
                    if *alerts >= ALERTS_MAX {
                        return Progress::Failed(Failure::Nonsense);
                    }
                }
                return Progress::None;
            }
        };
        if let Some(keys) = &self.keys
            && let Err(error) =
                Signed::Activation.check(keys.server(), bytes, at.wall, AUTH_WINDOW_S)
        {
            return Progress::Failed(Failure::ActivationAuthentication(error));
        }
        if answer.cmd_response != Activation::ACCEPTED {
            return Progress::Failed(Failure::ActivationRejected {
                code: answer.cmd_response,
            });
        }
        match TestParameters::accepted(&answer, self.version, &settings.parameters) {
            Ok(parameters) => self.agreed(parameters, answer.rate),
            Err(error) => Progress::Failed(Failure::Parameters(error)),
        }
    }

    /// Load comes, so the server has activated; its answer is lost. Servers seldom change what is
    /// legal, and load begins by the server's own row.
    fn assume(&mut self, settings: &ClientSettings) -> Progress {
        if settings.parameters.direction != Direction::Downstream {
            return Progress::None;
        }
        let mut parameters = settings.parameters;
        // Whether rows past the table were granted is not known, and matters to the server alone.
        parameters.extended_rows = false;
        if self.version == Version::V11 {
            let request = parameters.request(self.version, self.wire_version);
            parameters.sub_int_ms = u16::from(request.sub_int_sec_v11) * 1000;
            parameters.ecn_ce_thresh = 0;
            parameters.sr_adj_supp_count = 0;
        }
        self.agreed(parameters, RateStructure::default())
    }

    fn agreed(&self, parameters: TestParameters, first_row: RateStructure) -> Progress {
        Progress::Activated(Box::new(Agreed {
            peer: self.to,
            parameters,
            first_row,
            version: self.version,
            wire_version: self.wire_version,
            clock_offset_s: self.clock_offset_s,
        }))
    }
}
