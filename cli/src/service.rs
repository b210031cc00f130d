//! A service as a user defines it, by flags or in a file, and how it is added to an engine.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use ringmill_engine::{Address, BoundAddress, Builder, Protocol, Service};
use ringmill_protocols::chat::Transport as ChatTransport;
use ringmill_protocols::discard::Discard;
use ringmill_protocols::echo::Echo;
use ringmill_protocols::guard::{Guards, OwnPorts};

use crate::args::GuardArgs;
use crate::chat::{ChatArgs, RunningChat};
use crate::endpoint::{Endpoint, Transport};
use crate::launch;

/// What a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Sends back everything that arrives.
    Echo(GuardArgs),
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

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// An engine with one more service, and what the control thread holds of it.
pub struct Added {
    /// The engine to be.
    pub builder: Builder,
    /// The guards whose counters belong to the service.
    pub guards: Option<Arc<Guards>>,
    /// The chat that it is.
    pub chat: Option<RunningChat>,
}

impl Added {
    fn plain(builder: Builder) -> Self {
        Self {
            builder,
            guards: None,
            chat: None,
        }
    }
}

impl Definition {
    /// Adds the service to an engine of so many shards. `before` are the addresses that the engine
    /// had before a restart.
    ///
    /// # Errors
    /// When the name of an endpoint cannot be resolved or no port can be found.
    pub fn add_to(
        &self,
        builder: Builder,
        shards: u16,
        own_ports: &Arc<OwnPorts>,
        before: Option<&[BoundAddress]>,
    ) -> Result<Added> {
        let places = match before {
            None => Places::Endpoints(&self.endpoints),
            Some(addresses) => {
                let mine = addresses.iter().filter(|bound| bound.service == self.name);
                Places::Bound(mine.collect())
            }
        };
        match self.module {
            Module::Echo(settings) => {
                let guards = Guards::new(settings.into(), Arc::clone(own_ports), shards);
                let guards = Arc::new(guards);
                let for_shards = Arc::clone(&guards);
                let service = Service::new(self.name.clone(), move |shard| {
                    Echo::new(for_shards.guard(shard))
                });
                Ok(Added {
                    guards: Some(guards),
                    ..Added::plain(builder.service(places.open(service)?))
                })
            }
            Module::Discard => {
                let service = Service::new(self.name.clone(), |_| Discard);
                Ok(Added::plain(builder.service(places.open(service)?)))
            }
            Module::Chat(args) => {
                let (chat, service) = RunningChat::new(&self.name, args, shards);
                let service = places.open(service)?;
                let transports = service.addresses().map(|address| match address {
                    Address::Unix(_) => ChatTransport::Unix,
                    Address::Ip(_) => ChatTransport::Tcp,
                });
                chat.room.set_transports(transports.collect());
                Ok(Added {
                    chat: Some(chat),
                    ..Added::plain(builder.service(service))
                })
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
