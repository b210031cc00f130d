//! A running connection of a client on its shard: what [`Connection`] wants done is done here, and
//! what it says goes to the control thread.

use rand::rngs::SmallRng;
use ringmill_engine::{Context, Datagram, Payload, Transmit};

use super::Command;
use super::events::{ClientEvent, Ended, Happened, Outlet, RECORDS_PER_BATCH, RecordBatch};
use super::settings::{ClientSettings, Recording};
use super::setup::Agreed;
use crate::capacity::batch::LoadRecord;
use crate::capacity::burst::Burst;
use crate::capacity::connection::{Connection, ConnectionSettings, Role};
use crate::capacity::event::{End, Event, Sink};
use crate::capacity::pdu::Authentication;
use crate::capacity::sender::SenderSettings;
use crate::capacity::time::Instants;
use crate::capacity::transmit::{Filler, Route};

/// A running test connection.
pub(super) struct Running {
    connection: Connection,
    route: Route,
    recording: Option<Recording>,
    records: Vec<LoadRecord>,
    trials: u32,
    gso: bool,
    gso_refused: bool,
    random_payload: bool,
    told_end: bool,
}

/// What is around a running connection.
pub(super) struct Around<'a, 'b> {
    pub(super) ctx: &'a mut Context<'b, Command>,
    pub(super) filler: &'a mut Filler,
    pub(super) random: &'a mut SmallRng,
    pub(super) outlet: &'a Outlet,
    pub(super) index: u8,
    pub(super) at: Instants,
}

impl Running {
    pub(super) fn new(
        settings: &ClientSettings,
        index: u8,
        agreed: &Agreed,
        route: Route,
        at: Instants,
    ) -> Self {
        let auth_mode = match settings.key {
            Some(_) => Authentication::MODE_CONTROL,
            None => Authentication::MODE_NONE,
        };
        let connection = Connection::new(
            ConnectionSettings {
                role: Role::Client {
                    first_row: agreed.first_row,
                },
                parameters: agreed.parameters,
                version: agreed.version,
                auth_mode,
                status_checksum: settings.status_checksum,
                sender: SenderSettings {
                    ipv6: agreed.peer.is_ipv6(),
                    keep_numbers: settings.keep_numbers,
                    check_sum: settings.check_sum,
                    tick: settings.tick,
                    seed: settings.seed ^ u64::from(index) << 32,
                },
            },
            at,
        );
        Self {
            recording: settings
                .recording
                .filter(|_| connection.receiver().is_some()),
            connection,
            route,
            records: Vec::new(),
            trials: 0,
            gso: settings.gso,
            gso_refused: false,
            random_payload: agreed.parameters.random_payload,
            told_end: false,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<ringmill_engine::Nanos> {
        self.connection.next_deadline()
    }

    /// Whether this end sends load.
    pub(super) fn sends(&self) -> bool {
        self.connection.sender().is_some()
    }

    pub(super) fn timer(&mut self, around: Around<'_, '_>) {
        self.act(around, |connection, now, sink| connection.timer(now, sink));
    }

    pub(super) fn datagram(&mut self, datagram: &Datagram, around: Around<'_, '_>) {
        let (peer, from) = (self.route.peer, datagram.peer);
        if (peer.ip(), peer.port()) != (from.ip(), from.port()) {
            return;
        }
        self.act(around, |connection, now, sink| {
            connection.datagram(&datagram.data, datagram.stride, datagram.ecn, now, sink);
        });
    }

    pub(super) fn stop(&mut self, around: Around<'_, '_>) {
        self.act(around, |connection, now, sink| connection.stop(now, sink));
    }

    fn act(
        &mut self,
        around: Around<'_, '_>,
        act: impl FnOnce(&mut Connection, ringmill_engine::Nanos, &mut Out<'_, '_, '_>),
    ) {
        let now = around.at.now;
        let mut out = Out {
            around,
            route: self.route,
            recording: self.recording,
            random_payload: self.random_payload,
            records: &mut self.records,
            trials: &mut self.trials,
            ended: None,
        };
        act(&mut self.connection, now, &mut out);
        let (ended, around) = (out.ended, out.around);
        if !self.gso_refused && self.gso && !around.ctx.is_segmented(self.route.socket) {
            self.gso_refused = true;
            around.tell(Happened::GsoRefused);
        }
        if let Some(end) = ended
            && !std::mem::replace(&mut self.told_end, true)
        {
            let (datagrams, bytes) = match (self.connection.sender(), self.connection.receiver()) {
                (Some(sender), _) => sender.totals(),
                (_, Some(receiver)) => receiver.totals(),
                (None, None) => (0, 0),
            };
            flush(&mut self.records, around.outlet, around.index);
            around.tell(Happened::Ended(Box::new(Ended {
                end,
                datagrams,
                bytes,
                missed: self.connection.missed(),
                limited_trials: self.connection.limited_trials(),
                trials: self.trials,
            })));
        }
    }

    /// The socket reported an error.
    pub(super) fn socket_error(&self, errno: i32, around: &Around<'_, '_>) {
        if !self.told_end {
            around.tell(Happened::SocketError { errno });
        }
    }
}

impl Around<'_, '_> {
    pub(super) fn tell(&self, happened: Happened) {
        self.outlet.tell(ClientEvent {
            connection: self.index,
            at: self.at,
            happened,
        });
    }
}

fn flush(records: &mut Vec<LoadRecord>, outlet: &Outlet, connection: u8) {
    if !records.is_empty() {
        let next = Vec::with_capacity(RECORDS_PER_BATCH);
        let records = std::mem::replace(records, next);
        outlet.record(RecordBatch {
            connection,
            records,
        });
    }
}

struct Out<'s, 'a, 'b> {
    around: Around<'a, 'b>,
    route: Route,
    recording: Option<Recording>,
    random_payload: bool,
    records: &'s mut Vec<LoadRecord>,
    trials: &'s mut u32,
    ended: Option<End>,
}

impl Sink for Out<'_, '_, '_> {
    fn burst(&mut self, burst: &Burst) -> u32 {
        let Around {
            ctx,
            filler,
            random,
            ..
        } = &mut self.around;
        let random = self.random_payload.then_some(&mut **random);
        filler.send(ctx, &self.route, burst, random).datagrams
    }

    fn pdu(&mut self, bytes: &[u8]) {
        let transmit = Transmit {
            ecn: self.route.ecn,
            ..Transmit::one(Some(self.route.peer), Payload::from(bytes.to_vec()))
        };
        // A full socket loses it, as the network might.
        let _ = self.around.ctx.send_datagrams(self.route.socket, transmit);
    }

    fn event(&mut self, event: Event) {
        let happened = match event {
            Event::Warning(warning) => Happened::Warning(warning),
            Event::Trial(trial) => {
                *self.trials += 1;
                flush(self.records, self.around.outlet, self.around.index);
                Happened::Trial(trial)
            }
            Event::SubInterval(sub_interval) => Happened::SubInterval(sub_interval),
            Event::Ended(end) => {
                self.ended = Some(end);
                return;
            }
        };
        self.around.tell(happened);
    }

    fn records(&self) -> bool {
        self.recording.is_some()
    }

    fn record(&mut self, load: &LoadRecord) {
        let wanted = match self.recording {
            Some(Recording::All) => true,
            Some(Recording::RoundTrips) => load.rtt_ms.is_some() && !load.out_of_order,
            None => false,
        };
        if wanted {
            self.records.push(*load);
            if self.records.len() >= RECORDS_PER_BATCH {
                flush(self.records, self.around.outlet, self.around.index);
            }
        }
    }
}
