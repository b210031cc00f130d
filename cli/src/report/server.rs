//! The CPU time of the server under load: from /proc when it runs here, else by asking it.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringmill_engine::Address;
use serde::Deserialize;

use super::steal::ProcessTimes;
use crate::endpoint::{Endpoint, Transport};

/// The answer of a server's `--stats` endpoint is short; more is not read.
const ANSWER_LEN_MAX: u64 = 4096;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A server whose CPU time can be read.
#[derive(Debug)]
pub enum Server {
    /// A process of this host.
    Local(u32),
    /// A ringmill server that answers the control query at this address.
    Asked(SocketAddr),
}

#[derive(Deserialize)]
struct Answer {
    user_s: f64,
    system_s: f64,
}

impl Server {
    /// The server behind an endpoint, when it can be found out.
    #[must_use]
    pub fn find(endpoint: &Endpoint, stats: Option<SocketAddr>) -> Option<Self> {
        if let Some(address) = stats {
            return Some(Self::Asked(address));
        }
        let Ok(Address::Ip(address)) = crate::launch::target(endpoint) else {
            return None;
        };
        let datagrams = matches!(
            endpoint,
            Endpoint::Inet {
                transport: Transport::Udp,
                ..
            }
        );
        let (pid, _) = ringmill_engine::port_holder(address, datagrams)?;
        (pid != std::process::id()).then_some(Self::Local(pid))
    }

    /// Its CPU time so far; `None` when it does not answer.
    #[must_use]
    pub fn times(&self) -> Option<ProcessTimes> {
        match self {
            Self::Local(pid) => ProcessTimes::of_pid(*pid).ok(),
            Self::Asked(address) => {
                let stream = TcpStream::connect_timeout(address, ANSWER_TIMEOUT).ok()?;
                stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
                let mut text = String::new();
                stream.take(ANSWER_LEN_MAX).read_to_string(&mut text).ok()?;
                let answer: Answer = serde_json::from_str(&text).ok()?;
                Some(ProcessTimes {
                    user: Duration::try_from_secs_f64(answer.user_s).ok()?,
                    system: Duration::try_from_secs_f64(answer.system_s).ok()?,
                })
            }
        }
    }
}
