//! A service as a user defines it, by flags or in a file, and how it is added to an engine.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use ringmill_engine::{Address, BoundAddress, Builder, Protocol, Service};
use ringmill_protocols::chat::Transport as ChatTransport;
use ringmill_protocols::discard::Discard;
use ringmill_protocols::dns::FixedAnswer;
use ringmill_protocols::echo::Echo;
use ringmill_protocols::guard::{Guards, OwnPorts};
use ringmill_protocols::multicast::{Sender, SenderConfig, Senders};

use crate::args::GuardArgs;
use crate::chat::{ChatArgs, RunningChat};
use crate::dns::AnswerArgs;
use crate::endpoint::{Endpoint, Scheme, Transport};
use crate::launch;
use crate::multicast::{self, MulticastSettings};

/// What a service does.
#[derive(Debug, Clone, PartialEq)]
pub enum Module {
    /// Sends back everything that arrives.
    Echo(GuardArgs),
    /// Sends numbered messages to every session and to groups.
    Multicast(MulticastSettings),
    /// Gives every question for an address the same answer.
    Dns(AnswerArgs, GuardArgs),
    /// Takes everything and answers nothing.
    Discard,
    /// Sends every message to every session.
    Chat(ChatArgs),
}

impl Module {
    /// Its name in a configuration file and on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Echo(_) => "echo",
            Self::Multicast(_) => "multicast",
            Self::Dns(..) => "dns",
            Self::Discard => "discard",
            Self::Chat(_) => "chat",
        }
    }

    /// Why it cannot be served at an endpoint, if so.
    #[must_use]
    pub fn refuses(&self, endpoint: &Endpoint) -> Option<&'static str> {
        let datagrams = matches!(
            endpoint,
            Endpoint::Inet {
                transport: Transport::Udp,
                ..
            }
        );
        let needs_streams = matches!(self, Self::Chat(_));
        (datagrams && needs_streams).then_some("a chat needs streams; use tcp:// or unix:")
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a service counts beside the engine's counters, as the control thread holds it.
#[derive(Default)]
pub struct Counts {
    /// Of echo and DNS: which datagrams were not answered, and why.
    pub guards: Option<Arc<Guards>>,
    /// The chat that it is.
    pub chat: Option<RunningChat>,
    /// Of multicast: messages queued and dropped.
    pub senders: Option<Arc<Senders>>,
}

/// One service.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Names its counters.
    pub name: String,
    /// What it does.
    pub module: Module,
    /// Where.
    pub endpoints: Vec<Endpoint>,
}

/// Where a service listens.
enum Places<'a> {
    /// As its definition says.
    Endpoints(&'a [Endpoint]),
    /// Where it has listened before a restart: the kernel's choice of a port stays the same.
    Bound(Vec<&'a BoundAddress>),
}

impl Places<'_> {
    fn open<P: Protocol>(&self, mut service: Service<P>) -> Result<Service<P>> {
        match self {
            Self::Endpoints(endpoints) => {
                for endpoint in *endpoints {
                    service = launch::listen(service, endpoint)?;
                }
            }
            Self::Bound(addresses) => {
                for bound in addresses {
                    service = match &bound.address {
                        Address::Ip(address) if bound.datagrams => service.bind(*address),
                        address => service.listen(address.clone()),
                    };
                }
            }
        }
        Ok(service)
    }
}

impl Definition {
    /// Adds the service to an engine of so many shards. `before` are the addresses that the engine
    /// had before a restart. Gives back what belongs to the service alone.
    ///
    /// # Errors
    /// When the name of an endpoint cannot be resolved or no port can be found.
    pub fn add_to(
        &self,
        builder: Builder,
        shards: u16,
        own_ports: &Arc<OwnPorts>,
        before: Option<&[BoundAddress]>,
    ) -> Result<(Builder, Counts)> {
        let listened: Vec<Endpoint>;
        let places = match before {
            None => Places::Endpoints(match self.module {
                // A group is sent to, not listened on.
                Module::Multicast(_) => {
                    let streams = self.endpoints.iter();
                    let streams = streams.filter(|endpoint| endpoint.scheme() != Scheme::Udp);
                    listened = streams.cloned().collect();
                    &listened
                }
                _ => &self.endpoints,
            }),
            Some(addresses) => {
                let mine = addresses.iter().filter(|bound| bound.service == self.name);
                Places::Bound(mine.collect())
            }
        };
        match &self.module {
            Module::Echo(settings) => {
                let guards = Guards::new((*settings).into(), Arc::clone(own_ports), shards);
                let guards = Arc::new(guards);
                let for_shards = Arc::clone(&guards);
                let service = Service::new(self.name.clone(), move |shard| {
                    Echo::new(for_shards.guard(shard))
                });
                let counts = Counts {
                    guards: Some(guards),
                    ..Counts::default()
                };
                Ok((builder.service(places.open(service)?), counts))
            }
            Module::Multicast(settings) => {
                let config = Arc::new(SenderConfig {
                    message_len: settings.size as usize,
                    rate: settings.rate.0,
                    slow_readers: settings.slow_readers.into(),
                    groups: settings.groups(&self.endpoints)?,
                    clock: multicast::clock(),
                    source: multicast::source(),
                });
                let senders = Arc::new(Senders::new(shards));
                let for_shards = Arc::clone(&senders);
                let service = Service::new(self.name.clone(), move |shard| {
                    Sender::new(Arc::clone(&config), for_shards.of_shard(shard))
                });
                let counts = Counts {
                    senders: Some(senders),
                    ..Counts::default()
                };
                Ok((builder.service(places.open(service)?), counts))
            }
            Module::Chat(args) => {
                let (chat, service) = RunningChat::new(&self.name, *args, shards);
                let service = places.open(service)?;
                let transports = service.addresses().map(|address| match address {
                    Address::Unix(_) => ChatTransport::Unix,
                    Address::Ip(_) => ChatTransport::Tcp,
                });
                chat.room.set_transports(transports.collect());
                let counts = Counts {
                    chat: Some(chat),
                    ..Counts::default()
                };
                Ok((builder.service(service), counts))
            }
            Module::Dns(answer, guard) => {
                let guards = Guards::new((*guard).into(), Arc::clone(own_ports), shards);
                let guards = Arc::new(guards);
                let for_shards = Arc::clone(&guards);
                let template = answer.template();
                let service = Service::new(self.name.clone(), move |shard| {
                    FixedAnswer::new(template.clone(), for_shards.guard(shard))
                });
                let counts = Counts {
                    guards: Some(guards),
                    ..Counts::default()
                };
                Ok((builder.service(places.open(service)?), counts))
            }
            Module::Discard => {
                let service = Service::new(self.name.clone(), |_| Discard);
                Ok((builder.service(places.open(service)?), Counts::default()))
            }
        }
    }
}

/// The registry of ports from which this process answers, with the addresses of this host.
#[must_use]
pub fn own_ports() -> Arc<OwnPorts> {
    // Without the list, loopback and the address that a datagram was sent to still count as ours.
    let addresses: Vec<IpAddr> = if_addrs::get_if_addrs()
        .map(|interfaces| interfaces.iter().map(if_addrs::Interface::ip).collect())
        .unwrap_or_default();
    Arc::new(OwnPorts::new(addresses))
}
