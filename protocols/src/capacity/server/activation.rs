//! Activation requests: who may start a test that waits, by which parameters, and what it is told.

use std::net::SocketAddr;
use std::sync::Arc;

use super::control::{Ctx, Server, answer, send};
use super::event::ServerEvent;
use super::tally::{count_auth, count_control};
use super::test::{Activated, State, Test, window_s};
use crate::capacity::parameters::{Direction, TestParameters};
use crate::capacity::pdu::Activation;
use crate::capacity::setup::ActivationError;
use crate::capacity::time::Instants;

impl Server {
    /// Takes one datagram that came to a test which waits. `true` when it runs now.
    pub(super) fn activate(
        &mut self,
        ctx: &mut Ctx<'_>,
        test: &mut Test,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let listener = test.about.listener;
        let refused = |error| ServerEvent::ActivationRefused {
            about: Arc::clone(&test.about),
            peer: from,
            error,
        };
        // Its port may be another behind a symmetric NAT.
        if from.ip() != test.about.peer.ip() {
            self.counters().activation_wrong_source.add(1);
            self.say(refused(None));
            return false;
        }
        let wall = self.wall(ctx);
        let version = test.accepted.version;
        let window_s = window_s(self.settings(), listener, version);
        let request = match test.accepted.activation(bytes, wall, window_s) {
            Ok(request) => request,
            Err(error) => {
                match error {
                    ActivationError::Decode(error) => count_control(self.counters(), error),
                    ActivationError::Auth(error) => count_auth(self.counters(), error),
                }
                self.say(refused(Some(error)));
                return false;
            }
        };
        self.counters().activation_requests_received.add(1);
        let settings = &self.shared.settings;
        let (parameters, mut response) =
            TestParameters::corrected(&request, version, &settings.limits);
        let rows = Arc::clone(self.tables.of(listener, from, parameters.extended_rows));
        let agreed = self.book_again(test, parameters.direction);
        let settings = &self.shared.settings;
        if agreed {
            test.complete(&mut response, &parameters, settings, &rows);
        } else {
            response.cmd_response = Activation::REJECTED;
        }
        let mut encoded = [0; Activation::LEN_MAX];
        let len = test
            .accepted
            .activation_response(&response, wall, &mut encoded);
        test.peer = from;
        if !agreed {
            self.counters().activation_rejects_sent.add(1);
            self.counters().activation_bad_parameter.add(1);
            answer(ctx, test.socket, from, None, &encoded[..len]);
            return false;
        }
        self.counters().activation_accepts_sent.add(1);
        test.ecn = parameters.dscp_ecn & 3;
        ctx.connect_socket(test.socket, from);
        ctx.set_socket_dscp(test.socket, parameters.dscp_ecn >> 2);
        send(ctx, test.socket, from, None, test.ecn, &encoded[..len]);
        let at = Instants {
            now: ctx.now(),
            wall,
        };
        let connection =
            test.connection(parameters, &self.shared.settings, &rows, &mut self.rng, at);
        test.state = State::Running {
            connection: Box::new(connection),
            parameters,
            activated: Activated::new(bytes, &encoded[..len]),
        };
        self.pending -= 1;
        self.running += 1;
        self.counters().pending.set(self.pending.into());
        self.counters().running.set(self.running.into());
        self.say(ServerEvent::Activated {
            about: Arc::clone(&test.about),
            peer: from,
            parameters,
        });
        true
    }
    /// Has the booking of a test follow the direction in which it is activated. `false` when what
    /// was booked does not fit there: OB-UDPST takes such a test all the same, past its limit, and
    /// keeps what was booked for ever.
    fn book_again(&mut self, test: &mut Test, direction: Direction) -> bool {
        if test.accepted.booking.direction() == direction {
            return true;
        }
        let listener = &self.settings().listeners[usize::from(test.about.listener)];
        let mbps = test.accepted.max_bandwidth_mbps;
        let Some(booking) = listener.setup.admission.book(direction, mbps) else {
            return false;
        };
        self.book(test, false);
        test.accepted.booking = booking;
        self.book(test, true);
        true
    }
}
