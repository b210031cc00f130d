//! The server's answer to a setup request: the order of checks, the code, the signature.
//!
//! [`examine`] decides by the request alone. What then may still fail, the socket of the test, is
//! the caller's: it ends with [`Examined::accept`] or with [`Examined::reject`]. Repeats and floods
//! are the caller's too, who knows where the request came from. Nothing is answered that is not
//! exactly a request; an answer is never longer than it.

use super::admission::{Admission, Booking};
use super::auth::{AuthError, Keys, Signed, check_time};
use super::keys::KeyRing;
use super::parameters::Direction;
use super::pdu::{Activation, Authentication, DecodeError, Null, Setup, SetupCode, Version};
use super::time::WallTime;
use super::{AUTH_WINDOW_S, AUTH_WINDOW_V11_S, CONNECTIONS_MAX};

/// What a server goes by.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The keys; none for a server without authentication.
    pub keys: KeyRing,
    /// With keys, also serve those that do not authenticate.
    pub auth_optional: bool,
    /// How far the time of a signature may be away, in s.
    pub auth_window_s: u32,
    /// The same for version 11.
    pub auth_window_v11_s: u32,
    /// Jumbo datagrams are allowed.
    pub jumbo: bool,
    /// Packets fill an MTU of 1500.
    pub traditional: bool,
    /// The bandwidth that can be booked.
    pub admission: Admission,
    /// Control PDUs are sent with the header checksum.
    pub fill_check_sum: bool,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            keys: KeyRing::default(),
            auth_optional: false,
            auth_window_s: AUTH_WINDOW_S,
            auth_window_v11_s: AUTH_WINDOW_V11_S,
            jumbo: true,
            traditional: false,
            admission: Admission::unlimited(),
            fill_check_sum: false,
        }
    }
}

/// How the authentication fields of an answer are made.
#[derive(Debug, Clone)]
enum Signing {
    /// All zero.
    Zeros,
    /// Version 11: as in the request, with a digest of zeros.
    Repeat,
    /// Version 20: signed now.
    Keys(Keys),
    /// Version 20, when no key is known: signed with a key of zeros.
    NoKey,
}

/// A setup request that was looked at.
#[derive(Debug)]
#[must_use = "the sender waits for an answer"]
pub struct Examined {
    /// The request.
    pub request: Setup,
    /// Whether it can be accepted, or which code it gets.
    pub verdict: Result<(), SetupCode>,
    /// What was wrong with its authentication, for the log.
    pub auth_error: Option<AuthError>,
    version: Version,
    signing: Signing,
    authenticated: bool,
    booking: Option<Booking>,
    fill_check_sum: bool,
}

/// Decides about a setup request. The first check that fails gives the code. When it can be
/// accepted, its bandwidth is booked until the result, or what comes of it, is dropped.
///
/// # Errors
/// The datagram is no setup request and gets no answer.
pub fn examine(
    bytes: &[u8],
    settings: &ServerSettings,
    wall: WallTime,
) -> Result<Examined, DecodeError> {
    let request = Setup::decode_request(bytes)?;
    // Also a version that is refused is answered in the manner of the nearer one.
    let version = match request.protocol_ver {
        ..Version::WIRE_MAX => Version::V11,
        _ => Version::V20,
    };
    let (signing, authentication) = authenticate(bytes, &request, version, settings, wall);
    let mut examined = Examined {
        request,
        verdict: Ok(()),
        auth_error: None,
        version,
        signing,
        authenticated: authentication == Some(Ok(())),
        booking: None,
        fill_check_sum: settings.fill_check_sum,
    };
    if let Some(Err(error)) = authentication {
        examined.auth_error = Some(error);
        examined.verdict = Err(match error {
            AuthError::Digest => SetupCode::AuthenticationFailed,
            AuthError::Time { .. } => SetupCode::AuthenticationTime,
        });
        return Ok(examined);
    }
    match admit(&request, settings) {
        Ok(booking) => examined.booking = Some(booking),
        Err(code) => examined.verdict = Err(code),
    }
    Ok(examined)
}

/// The signature of a request that has one, where there is a key to check it, and how to answer.
fn authenticate(
    bytes: &[u8],
    request: &Setup,
    version: Version,
    settings: &ServerSettings,
    wall: WallTime,
) -> (Signing, Option<Result<(), AuthError>>) {
    let auth = &request.auth;
    if auth.auth_mode != Authentication::MODE_CONTROL {
        return (Signing::Zeros, None);
    }
    let (mut signing, window_s) = match version {
        Version::V11 => (Signing::Repeat, settings.auth_window_v11_s),
        Version::V20 => (Signing::NoKey, settings.auth_window_s),
    };
    if !settings.keys.is_configured() {
        return (signing, None);
    }
    for key in settings.keys.candidates(auth.key_id) {
        let right = match version {
            Version::V11 => Signed::Setup.verify(key.bytes(), bytes),
            Version::V20 => {
                let keys = Keys::derive(key, auth.auth_unix_time);
                let right = Signed::Setup.verify(keys.client(), bytes);
                // When none is right, the last key tried signs the rejection.
                signing = Signing::Keys(keys);
                right
            }
        };
        if right {
            return (
                signing,
                Some(check_time(auth.auth_unix_time, wall, window_s)),
            );
        }
    }
    (signing, Some(Err(AuthError::Digest)))
}

/// The checks behind authentication, in the order in which OB-UDPST makes them.
fn admit(request: &Setup, settings: &ServerSettings) -> Result<Booking, SetupCode> {
    let has = |bit: u8| request.modifier_bitmap & bit != 0;
    if Version::of(request.protocol_ver).is_none() {
        return Err(SetupCode::Version);
    }
    if !(1..=CONNECTIONS_MAX).contains(&request.mc_count) || request.mc_index >= request.mc_count {
        return Err(SetupCode::Connections);
    }
    if has(Setup::JUMBO) != settings.jumbo {
        return Err(SetupCode::Jumbo);
    }
    if has(Setup::TRADITIONAL) != settings.traditional {
        return Err(SetupCode::Traditional);
    }
    if settings.admission.is_limited() && request.bandwidth_mbps() == 0 {
        return Err(SetupCode::BandwidthMissing);
    }
    let booking = settings
        .admission
        .book(direction(request), request.bandwidth_mbps())
        .ok_or(SetupCode::BandwidthUnavailable)?;
    match (request.auth.auth_mode, settings.keys.is_configured()) {
        (Authentication::MODE_NONE, true) if !settings.auth_optional => {
            Err(SetupCode::AuthenticationRequired)
        }
        (Authentication::MODE_NONE, _) => Ok(booking),
        (_, false) => Err(SetupCode::AuthenticationNotConfigured),
        (Authentication::MODE_CONTROL, true) => Ok(booking),
        (_, true) => Err(SetupCode::AuthenticationMode),
    }
}

const fn direction(request: &Setup) -> Direction {
    if request.upstream() {
        Direction::Upstream
    } else {
        Direction::Downstream
    }
}

impl Examined {
    /// Whether the request is signed with a key of this server, at the right time.
    #[must_use]
    pub const fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// Accepts: writes the response, which names the port of the test, and returns its length and
    /// what is known of the connection.
    ///
    /// # Panics
    /// The verdict was not to accept, or the buffer is shorter than [`Setup::LEN`].
    pub fn accept(
        mut self,
        test_port: u16,
        wall: WallTime,
        response: &mut [u8],
    ) -> (usize, Accepted) {
        let booking = self.booking.take().expect("only what can be accepted is");
        let len = self.answer(SetupCode::Accepted, test_port, wall, response);
        let keys = match self.signing {
            Signing::Keys(keys) if self.authenticated => Some(keys),
            _ => None,
        };
        let accepted = Accepted {
            version: self.version,
            protocol_ver: self.request.protocol_ver,
            mc_index: self.request.mc_index,
            mc_count: self.request.mc_count,
            mc_ident: self.request.mc_ident,
            max_bandwidth_mbps: self.request.bandwidth_mbps(),
            authenticated: self.authenticated,
            auth_mode: self.request.auth.auth_mode,
            key_id: self.request.auth.key_id,
            keys,
            booking,
            fill_check_sum: self.fill_check_sum,
        };
        (len, accepted)
    }

    /// Rejects: writes the response with the code of the verdict, or with
    /// [`SetupCode::NoConnection`] when it was to accept, and returns its length. What was booked
    /// is free again.
    ///
    /// # Panics
    /// The buffer is shorter than [`Setup::LEN`].
    pub fn reject(self, wall: WallTime, response: &mut [u8]) -> usize {
        let code = self.verdict.err().unwrap_or(SetupCode::NoConnection);
        self.answer(code, self.request.test_port, wall, response)
    }

    /// The request with what a response changes.
    fn answer(&self, code: SetupCode, test_port: u16, wall: WallTime, bytes: &mut [u8]) -> usize {
        let mut response = Setup {
            cmd_request: Setup::RESPONSE,
            cmd_response: code.wire(),
            test_port,
            check_sum: 0,
            ..self.request
        };
        if code == SetupCode::Version {
            response.protocol_ver = Version::WIRE_MAX;
        }
        response.auth.auth_digest = [0; Authentication::DIGEST_LEN];
        match &self.signing {
            Signing::Zeros => {
                // The mode is repeated, the rest is not.
                response.auth = Authentication {
                    auth_mode: response.auth.auth_mode,
                    ..Authentication::default()
                };
            }
            Signing::Repeat => {}
            Signing::Keys(_) | Signing::NoKey => response.auth.auth_unix_time = wall.sec,
        }
        let len = response.encode(bytes);
        match &self.signing {
            Signing::Keys(keys) => Signed::Setup.sign(keys.server(), bytes),
            Signing::NoKey => Signed::Setup.sign(&[0; super::auth::KEY_LEN], bytes),
            Signing::Zeros | Signing::Repeat => {}
        }
        if self.fill_check_sum {
            Setup::fill_check_sum(bytes);
        }
        len
    }
}

/// What a server knows of a connection between setup and activation.
#[derive(Debug)]
pub struct Accepted {
    /// How its PDUs are laid out.
    pub version: Version,
    /// The version as the client put it.
    pub protocol_ver: u16,
    /// Index of the connection in its test.
    pub mc_index: u8,
    /// Connections of the test.
    pub mc_count: u8,
    /// Identity of the test.
    pub mc_ident: u16,
    /// What the client said it may need, in Mbit/s; 0 for nothing.
    pub max_bandwidth_mbps: u16,
    /// The request was signed, and rightly.
    pub authenticated: bool,
    /// The authentication mode, which status PDUs repeat.
    pub auth_mode: u8,
    /// Which key, which every PDU repeats.
    pub key_id: u8,
    /// What control PDUs are signed with, in version 20 with authentication.
    pub keys: Option<Keys>,
    /// The bandwidth, booked until this is dropped.
    pub booking: Booking,
    fill_check_sum: bool,
}

impl Accepted {
    /// Writes the null request to be sent from the test's port and returns its length; `None` in
    /// version 11, which has none.
    ///
    /// # Panics
    /// The buffer is shorter than [`Null::LEN`].
    #[must_use]
    pub fn null_request(&self, wall: WallTime, bytes: &mut [u8]) -> Option<usize> {
        if self.version == Version::V11 {
            return None;
        }
        let null = Null {
            protocol_ver: self.protocol_ver,
            cmd_request: Null::REQUEST,
            auth: self.authentication(wall),
            ..Null::default()
        };
        let len = null.encode(bytes);
        if let Some(keys) = &self.keys {
            Signed::Null.sign(keys.server(), bytes);
        }
        if self.fill_check_sum {
            Null::fill_check_sum(bytes);
        }
        Some(len)
    }

    /// Reads the activation request of this connection. In version 20 it must be signed when the
    /// setup was.
    ///
    /// # Errors
    /// It is none, or not believed: it gets no answer, and the client may try again.
    pub fn activation(
        &self,
        bytes: &[u8],
        wall: WallTime,
        window_s: u32,
    ) -> Result<Activation, ActivationError> {
        let request = Activation::decode_request(bytes, self.version)?;
        if let Some(keys) = &self.keys {
            Signed::Activation.check(keys.client(), bytes, wall, window_s)?;
        }
        Ok(request)
    }

    /// Writes the response to activation, signed when the setup was, and returns its length.
    ///
    /// # Panics
    /// The buffer is shorter than the PDU.
    pub fn activation_response(
        &self,
        response: &Activation,
        wall: WallTime,
        bytes: &mut [u8],
    ) -> usize {
        let response = Activation {
            auth: self.authentication(wall),
            check_sum: 0,
            ..*response
        };
        let len = response.encode(self.version, bytes);
        if let Some(keys) = &self.keys {
            Signed::Activation.sign(keys.server(), bytes);
        }
        if self.fill_check_sum {
            Activation::fill_check_sum(self.version, bytes);
        }
        len
    }

    fn authentication(&self, wall: WallTime) -> Authentication {
        match self.keys {
            None => Authentication::default(),
            Some(_) => Authentication {
                auth_mode: self.auth_mode,
                auth_unix_time: wall.sec,
                key_id: self.key_id,
                ..Authentication::default()
            },
        }
    }
}

/// Why an activation request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ActivationError {
    /// It is none.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its signature is not believed.
    #[error(transparent)]
    Auth(#[from] AuthError),
}
