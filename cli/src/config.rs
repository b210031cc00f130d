//! The configuration file of `ringmill run`: TOML in, checked services and settings out, and back.
//!
//! Reading looks at the text alone and never asks the host, so the same file reads the same
//! everywhere. An error names the file, the line and what to write instead. What
//! [`Configuration::to_toml`] prints reads as the same configuration.
//!
//! ```
//! use ringmill_cli::config;
//!
//! let text = r#"
//!     [[service]]
//!     name = "echo"
//!     module = "echo"
//!     endpoints = ["tcp://:7000", "udp://:7000"]
//! "#;
//! let configuration = config::parse(text, "server.toml").unwrap();
//! assert_eq!(configuration.services[0].endpoints.len(), 2);
//!
//! let error = config::parse("[engine]\nshard = 2\n", "server.toml").unwrap_err();
//! assert!(error.to_string().starts_with("server.toml:2:1: unknown field `shard`"), "{error}");
//! ```

use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::args::{EngineArgs, GuardArgs, LimitArgs};
use crate::as_text;
use crate::chat::{ChatArgs, EventsArg, FrameArg, SlowReaderArg};
use crate::dns::AnswerArgs;
use crate::endpoint::{Endpoint, Host};
use crate::multicast::MulticastSettings;
use crate::service::{Definition, Module};

/// A larger file is a mistake: a service takes about 100 bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Each service has counters and a mailbox on every shard.
pub const SERVICES_MAX: usize = 256;
/// A name is a label of every metric of the service.
pub const NAME_BYTES_MAX: usize = 64;
/// The service that `stats` adds.
pub const STATS_SERVICE: &str = "stats";

/// Everything that `ringmill run` needs to know.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Configuration {
    /// Print events as NDJSON.
    pub json: bool,
    /// Where to answer the control query of load clients.
    pub stats: Option<SocketAddr>,
    /// How the engine runs.
    pub engine: EngineArgs,
    /// Bounds.
    pub limits: LimitArgs,
    /// The services, in the order of the file.
    pub services: Vec<Definition>,
}

/// What is wrong with a configuration file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as the user named it.
    pub file: String,
    /// Line and column, from 1; none when the whole file is meant.
    pub position: Option<(usize, usize)>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    json: bool,
    #[serde(default, with = "as_text::address")]
    stats: Option<SocketAddr>,
    #[serde(default)]
    engine: EngineArgs,
    #[serde(default)]
    limits: LimitArgs,
    #[serde(default)]
    service: Vec<FileService>,
}

/// A `[[service]]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileService {
    name: Spanned<String>,
    module: ModuleName,
    endpoints: Spanned<Vec<Spanned<Endpoint>>>,
    per_source_rate: Option<Spanned<SourceRate>>,
    limit_loopback: Option<Spanned<bool>>,
    frame: Option<Spanned<FrameArg>>,
    line_max: Option<Spanned<Size>>,
    slow_reader: Option<Spanned<SlowReaderArg>>,
    queue_messages: Option<Spanned<NonZeroU32>>,
    events: Option<Spanned<EventsArg>>,
    multicast: Option<Spanned<MulticastSettings>>,
    dns: Option<Spanned<AnswerArgs>>,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
struct Size(#[serde(with = "as_text::size")] u64);

#[derive(Deserialize)]
struct SourceRate(#[serde(with = "as_text::source_rate")] Option<u32>);

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ModuleName {
    Echo,
    Multicast,
    Dns,
    Discard,
    Chat,
}

impl fmt::Debug for ModuleName {
    /// As it is written in a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Echo => "\"echo\"",
            Self::Multicast => "\"multicast\"",
            Self::Dns => "\"dns\"",
            Self::Discard => "\"discard\"",
            Self::Chat => "\"chat\"",
        })
    }
}

/// Reads and checks a file.
///
/// # Errors
/// When it cannot be read, or [`parse`] finds it wrong.
pub fn load(path: &Path) -> Result<Configuration, ConfigError> {
    let file = path.display().to_string();
    let fail = |message: String| ConfigError {
        file: file.clone(),
        position: None,
        message,
    };
    let mut text = String::new();
    let opened =
        std::fs::File::open(path).map_err(|error| fail(format!("cannot open: {error}")))?;
    opened
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| fail(format!("cannot read: {error}")))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(fail(format!(
            "larger than {FILE_BYTES_MAX} bytes: is this the right file?"
        )));
    }
    parse(&text, &file)
}

/// Reads and checks the text of a file.
///
/// # Errors
/// The first thing that is wrong: syntax, an unknown key or module, a value that is none, a name or
/// an endpoint used twice, a setting that the module does not have.
pub fn parse(text: &str, file: &str) -> Result<Configuration, ConfigError> {
    let source = Source { text, file };
    let parsed: File = toml::from_str(text).map_err(|error| source.syntax(&error))?;
    let services = source.services(parsed.service, parsed.stats.is_some())?;
    Ok(Configuration {
        json: parsed.json,
        stats: parsed.stats,
        engine: parsed.engine,
        limits: parsed.limits,
        services,
    })
}

/// The text in which errors are placed.
struct Source<'a> {
    text: &'a str,
    file: &'a str,
}

impl Source<'_> {
    fn error(&self, span: Option<Range<usize>>, message: String) -> ConfigError {
        let position = span.map(|span| {
            let before = self.text.get(..span.start).unwrap_or(self.text);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            (line, column)
        });
        ConfigError {
            file: self.file.to_owned(),
            position,
            message,
        }
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let mut message = error.message().replace('\n', ", ");
        if message.starts_with("missing field") {
            message += "; every [[service]] needs name, module and endpoints";
        }
        self.error(error.span(), message)
    }

    fn services(
        &self,
        services: Vec<FileService>,
        stats: bool,
    ) -> Result<Vec<Definition>, ConfigError> {
        if services.is_empty() {
            return Err(self.error(
                None,
                "there is no service; add [[service]] with name, module and endpoints".into(),
            ));
        }
        if services.len() > SERVICES_MAX {
            let message = format!("more than {SERVICES_MAX} services; use a second process");
            return Err(self.error(None, message));
        }
        let mut checked: Vec<Definition> = Vec::with_capacity(services.len());
        for service in services {
            self.name(&service.name, stats, &checked)?;
            let module = self.module(&service)?;
            let all = service.endpoints.span();
            let mut endpoints: Vec<Endpoint> = Vec::new();
            for endpoint in service.endpoints.into_inner() {
                let span = endpoint.span();
                let endpoint = endpoint.into_inner();
                if let Some(why) = module.refuses(&endpoint) {
                    return Err(self.error(Some(span), format!("{endpoint}: {why}")));
                }
                let earlier = checked.iter().flat_map(|other| {
                    let name = other.name.as_str();
                    other.endpoints.iter().map(move |endpoint| (name, endpoint))
                });
                let name = service.name.get_ref().as_str();
                let own = endpoints.iter().map(|endpoint| (name, endpoint));
                let taken = earlier
                    .chain(own)
                    .find(|(_, other)| overlap(&endpoint, other));
                if let Some((name, other)) = taken {
                    let message = format!(
                        "{endpoint} is already taken by {other} of service {name:?}; \
                         choose another port or address"
                    );
                    return Err(self.error(Some(span), message));
                }
                endpoints.push(endpoint);
            }
            if endpoints.is_empty() {
                let message = "no endpoint; add one such as \"tcp://:7000\"".into();
                return Err(self.error(Some(all), message));
            }
            checked.push(Definition {
                name: service.name.into_inner(),
                module,
                endpoints,
            });
        }
        Ok(checked)
    }

    fn name(
        &self,
        name: &Spanned<String>,
        stats: bool,
        earlier: &[Definition],
    ) -> Result<(), ConfigError> {
        let text = name.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let message = if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.chars().all(plain)
        {
            format!(
                "a name has 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.', because it \
                 labels metrics"
            )
        } else if earlier.iter().any(|other| other.name == *text) {
            format!("there are two services called {text:?}; each needs a name of its own")
        } else if stats && text == STATS_SERVICE {
            format!("{STATS_SERVICE:?} is the service that `stats` adds; choose another name")
        } else {
            return Ok(());
        };
        Err(self.error(Some(name.span()), message))
    }

    fn module(&self, service: &FileService) -> Result<Module, ConfigError> {
        let own = service.module;
        for (key, of, span) in service.module_keys() {
            if !of.contains(&own) {
                let message = format!("{key:?} is no key of module {own:?}; remove it");
                return Err(self.error(Some(span), message));
            }
        }
        Ok(match own {
            ModuleName::Echo => Module::Echo(service.guard()),
            ModuleName::Dns => {
                let answer = service.dns.as_ref();
                let answer = answer.map_or_else(AnswerArgs::default, |keys| keys.get_ref().clone());
                Module::Dns(answer, service.guard())
            }
            ModuleName::Multicast => Module::Multicast(
                service
                    .multicast
                    .as_ref()
                    .map_or_else(MulticastSettings::default, |keys| keys.get_ref().clone()),
            ),
            ModuleName::Discard => Module::Discard,
            ModuleName::Chat => {
                let default = ChatArgs::default();
                let line_max = service.line_max.as_ref();
                let messages = service.queue_messages.as_ref();
                Module::Chat(ChatArgs {
                    frame: given(&service.frame, default.frame),
                    line_max: line_max.map_or(default.line_max, |size| size.get_ref().0),
                    slow_reader: given(&service.slow_reader, default.slow_reader),
                    queue_messages: messages
                        .map_or(default.queue_messages, |count| count.get_ref().get()),
                    events: given(&service.events, default.events),
                })
            }
        })
    }
}

/// A key's value, or its default.
fn given<T: Copy>(key: &Option<Spanned<T>>, default: T) -> T {
    key.as_ref().map_or(default, |value| *value.get_ref())
}

impl FileService {
    fn guard(&self) -> GuardArgs {
        let default = GuardArgs::default();
        let rate = self.per_source_rate.as_ref();
        let rate = rate.and_then(|rate| rate.get_ref().0);
        GuardArgs {
            per_source_rate: rate.unwrap_or(default.per_source_rate),
            limit_loopback: given(&self.limit_loopback, default.limit_loopback),
        }
    }

    /// Keys that are there and belong to some modules only: name, modules, place.
    fn module_keys(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static [ModuleName], Range<usize>)> {
        const ANSWERING: &[ModuleName] = &[ModuleName::Echo, ModuleName::Dns];
        const CHAT: &[ModuleName] = &[ModuleName::Chat];
        fn span<T>(key: &Option<Spanned<T>>) -> Option<Range<usize>> {
            key.as_ref().map(Spanned::span)
        }
        let keys = [
            ("per_source_rate", ANSWERING, span(&self.per_source_rate)),
            ("limit_loopback", ANSWERING, span(&self.limit_loopback)),
            (
                "multicast",
                &[ModuleName::Multicast][..],
                span(&self.multicast),
            ),
            ("dns", &[ModuleName::Dns][..], span(&self.dns)),
            ("frame", CHAT, span(&self.frame)),
            ("line_max", CHAT, span(&self.line_max)),
            ("slow_reader", CHAT, span(&self.slow_reader)),
            ("queue_messages", CHAT, span(&self.queue_messages)),
            ("events", CHAT, span(&self.events)),
        ];
        keys.into_iter()
            .filter_map(|(name, of, span)| Some((name, of, span?)))
    }
}

/// Whether two endpoints cannot both be listened on, as far as the text tells.
fn overlap(one: &Endpoint, other: &Endpoint) -> bool {
    let (
        Endpoint::Inet {
            transport,
            host,
            port,
        },
        Endpoint::Inet {
            transport: other_transport,
            host: other_host,
            port: other_port,
        },
    ) = (one, other)
    else {
        return one == other;
    };
    if transport != other_transport || port != other_port || *port == 0 {
        return false;
    }
    let covers = |wide: &Host, narrow: &Host| match (wide, narrow) {
        (Host::Any, _) => true,
        (Host::Loopback, Host::Addr(address, _)) => address.is_loopback(),
        (Host::Addr(wide, _), Host::Addr(narrow, _)) if wide.is_unspecified() => {
            wide.is_ipv4() == narrow.is_ipv4()
        }
        (Host::Addr(wide, _), Host::Loopback) => wide.is_unspecified(),
        _ => wide == narrow,
    };
    covers(host, other_host) || covers(other_host, host)
}

/// A `[[service]]` as it is printed.
#[derive(Serialize)]
struct PrintedService<'a> {
    name: &'a str,
    module: &'static str,
    endpoints: &'a [Endpoint],
    #[serde(skip_serializing_if = "Option::is_none")]
    per_source_rate: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_loopback: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frame: Option<FrameArg>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line_max: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_reader: Option<SlowReaderArg>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_messages: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<EventsArg>,
    multicast: Option<&'a MulticastSettings>,
    dns: Option<&'a AnswerArgs>,
}

/// The file as it is printed.
#[derive(Serialize)]
struct Printed<'a> {
    json: bool,
    #[serde(with = "as_text::address", skip_serializing_if = "Option::is_none")]
    stats: Option<SocketAddr>,
    engine: &'a EngineArgs,
    limits: &'a LimitArgs,
    service: Vec<PrintedService<'a>>,
}

impl Configuration {
    /// The same configuration with every default written out.
    ///
    /// # Panics
    /// Never: everything in it has a form in TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let service = self.services.iter().map(|service| {
            let (guard, chat) = match &service.module {
                Module::Echo(guard) | Module::Dns(_, guard) => (Some(guard), None),
                Module::Multicast(_) | Module::Discard => (None, None),
                Module::Chat(chat) => (None, Some(chat)),
            };
            PrintedService {
                name: &service.name,
                module: service.module.name(),
                endpoints: &service.endpoints,
                per_source_rate: guard.map(|guard| guard.per_source_rate),
                limit_loopback: guard.map(|guard| guard.limit_loopback),
                frame: chat.map(|chat| chat.frame),
                line_max: chat.map(|chat| Size(chat.line_max)),
                slow_reader: chat.map(|chat| chat.slow_reader),
                queue_messages: chat.map(|chat| chat.queue_messages),
                events: chat.map(|chat| chat.events),
                multicast: match &service.module {
                    Module::Multicast(settings) => Some(settings),
                    _ => None,
                },
                dns: match &service.module {
                    Module::Dns(answer, _) => Some(answer),
                    _ => None,
                },
            }
        });
        let printed = Printed {
            json: self.json,
            stats: self.stats,
            engine: &self.engine,
            limits: &self.limits,
            service: service.collect(),
        };
        toml::to_string(&printed).expect("numbers, texts, lists and tables only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
json = true
stats = ":9101"

[engine]
shards = 2
cpus = "0-1,4"
interface = "eth0"
driver = "epoll"
busy_poll = "20us"
metrics = ":9100"

[limits]
max_connections = "100k"
idle_timeout = "5m"
write_stall_timeout = "0s"
queue_per_connection = 70000
queue_per_shard = "1GiB"
queue_messages_per_shard = "1M"
drain_timeout = "1500ms"
share_port = true
steer_by_cpu = true

[[service]]
name = "echo"
module = "echo"
endpoints = ["tcp://:7000", "udp://*:7000", "unix:/run/echo"]
per_source_rate = "20k"
limit_loopback = true

[[service]]
name = "feed"
module = "multicast"
endpoints = ["tcp://:7001", "udp://239.1.2.3:7001"]
multicast = { rate = "10k", size = 64, slow_readers = "disconnect", interface = "lo" }

[[service]]
name = "sink"
module = "discard"
endpoints = ["tcp://[::1]:9"]

[[service]]
name = "names"
module = "dns"
endpoints = ["tcp://:5353", "udp://:5353"]
per_source_rate = 5
dns = { answer = ["192.0.2.9"], ttl = 5 }

[[service]]
name = "talk"
module = "chat"
endpoints = ["tcp://:1111"]
frame = "line"
line_max = "4KiB"
slow_reader = "drop-newest"
queue_messages = 100
events = "json"
"#;

    fn service(name: &str, module: &str, endpoints: &str) -> String {
        format!("[[service]]\nname = {name:?}\nmodule = {module:?}\nendpoints = [{endpoints}]\n")
    }

    #[test]
    fn every_key_is_read() {
        let read = parse(FULL, "f").unwrap();
        assert!(read.json);
        assert_eq!(read.stats, Some("127.0.0.1:9101".parse().unwrap()));
        assert_eq!(read.engine.shards.to_string(), "2");
        assert_eq!(read.engine.cpus.as_ref().unwrap().to_string(), "0-1,4");
        assert_eq!(read.engine.interface, ["eth0"]);
        assert_eq!(read.engine.busy_poll.as_micros(), 20);
        assert_eq!(read.limits.max_connections, Some(100_000));
        assert_eq!(read.limits.drain_timeout.as_millis(), 1500);
        assert_eq!(read.limits.queue_per_shard, 1 << 30);
        assert_eq!(read.limits.queue_messages_per_shard, 1_000_000);
        assert!(read.limits.share_port && read.limits.steer_by_cpu);
        let guard = GuardArgs {
            per_source_rate: 20_000,
            limit_loopback: true,
        };
        assert_eq!(read.services[0].module, Module::Echo(guard));
        let feed = MulticastSettings {
            rate: "10k".parse().unwrap(),
            size: 64,
            slow_readers: crate::multicast::SlowReadersArg::Disconnect,
            interface: Some("lo".into()),
            ..MulticastSettings::default()
        };
        assert_eq!(read.services[1].module, Module::Multicast(feed));
        assert_eq!(read.services[2].module, Module::Discard);
        let chat = ChatArgs {
            frame: FrameArg::Line,
            line_max: 4096,
            slow_reader: SlowReaderArg::DropNewest,
            queue_messages: 100,
            events: EventsArg::Json,
        };
        assert_eq!(read.services[4].module, Module::Chat(chat));
        let answer = AnswerArgs {
            answer: vec!["192.0.2.9".parse().unwrap()],
            ttl: 5,
        };
        let guard = GuardArgs {
            per_source_rate: 5,
            limit_loopback: false,
        };
        assert_eq!(read.services[3].module, Module::Dns(answer, guard));
    }

    #[test]
    fn what_is_printed_reads_as_the_same() {
        let least = service("a", "echo", "\"tcp://:1\"");
        let chat = service("a", "chat", "\"tcp://:1\"");
        for text in [FULL, &least, &chat] {
            let read = parse(text, "f").unwrap();
            let printed = read.to_toml();
            assert_eq!(parse(&printed, "printed").unwrap(), read, "{printed}");
        }
    }

    #[test]
    fn errors_name_line_and_remedy() {
        let echo = service("a", "echo", "\"tcp://:7000\"");
        let cases: &[(String, &str, &str)] = &[
            (String::new(), "f: ", "add [[service]]"),
            ("json = 1\n".into(), "f:1:8: ", "expected a boolean"),
            ("[engine\n".into(), "f:1:", "]"),
            (
                format!("{echo}port = 1\n"),
                "f:5:1: ",
                "unknown field `port`, expected one of",
            ),
            (
                "[limits]\nidle_timeout = \"5x\"\n".into(),
                "f:2:16: ",
                "unit",
            ),
            (
                "[limits]\nidle_timeout = []\n".into(),
                "f:2:16: ",
                "a time such as",
            ),
            (
                "[limits]\nmax_connections = 0\n".into(),
                "f:2:19: ",
                "at least 1",
            ),
            ("[engine]\nshards = \"all\"\n".into(), "f:2:10: ", "'auto'"),
            (
                "[engine]\nmetrics = \"9100\"\n".into(),
                "f:2:11: ",
                "use :9100",
            ),
            (
                "[engine]\ndriver = \"kqueue\"\n".into(),
                "f:2:10: ",
                "`auto`, `uring`",
            ),
            (
                service("a", "ecko", "\"tcp://:1\""),
                "f:3:10: ",
                "expected one of `echo`, `multicast`, `dns`, `discard`, `chat`",
            ),
            (service("a", "echo", ""), "f:4:13: ", "add one such as"),
            (service("a", "echo", "\"7000\""), "f:4:13: ", "tcp://"),
            (
                service("a b", "echo", "\"tcp://:1\""),
                "f:2:8: ",
                "labels metrics",
            ),
            (
                "[[service]]\nname = \"a\"\nmodule = \"echo\"\n".into(),
                "f:1:1: ",
                "endpoints",
            ),
            (
                format!("{echo}{}", service("a", "echo", "\"tcp://:1\"")),
                "f:6:8: ",
                "name of its own",
            ),
            (
                format!("{echo}{}", service("b", "echo", "\"tcp://:7000\"")),
                "f:8:14: ",
                "service \"a\"",
            ),
            (
                format!(
                    "stats = \":1\"\n{}",
                    service("stats", "echo", "\"tcp://:1\"")
                ),
                "f:3:8: ",
                "another name",
            ),
            (
                format!(
                    "{}per_source_rate = 5\n",
                    service("d", "discard", "\"udp://:9\"")
                ),
                "f:5:19: ",
                "is no key of module \"discard\"; remove it",
            ),
            (
                format!(
                    "{}events = \"json\"\n",
                    service("e", "echo", "\"udp://:9\"")
                ),
                "f:5:10: ",
                "is no key of module \"echo\"; remove it",
            ),
            (
                service("c", "chat", "\"udp://:9\""),
                "f:4:14: ",
                "a chat needs streams",
            ),
            (
                format!("{echo}dns = {{ ttl = 5 }}\n"),
                "f:5:7: ",
                "is no key of module \"echo\"; remove it",
            ),
            (
                format!("{echo}multicast = {{ rate = 5 }}\n"),
                "f:5:13: ",
                "is no key of module \"echo\"; remove it",
            ),
            (
                format!(
                    "{}multicast = {{ rate = \"fast\" }}\n",
                    service("m", "multicast", "\"tcp://:1\"")
                ),
                "f:5:",
                "fast",
            ),
        ];
        for (text, place, remedy) in cases {
            let error = parse(text, "f").expect_err(text).to_string();
            assert!(error.starts_with(place), "{error}\nin\n{text}");
            assert!(error.contains(remedy), "{error}\nlacks {remedy:?}");
        }
    }

    #[test]
    fn which_endpoints_collide() {
        let cases = [
            ("tcp://:7000", "tcp://:7000", true),
            ("tcp://:7000", "udp://:7000", false),
            ("tcp://:7000", "tcp://:7001", false),
            ("tcp://:0", "tcp://:0", false),
            ("tcp://*:7000", "tcp://10.0.0.1:7000", true),
            ("tcp://:7000", "tcp://*:7000", true),
            ("tcp://:7000", "tcp://127.0.0.1:7000", true),
            ("tcp://:7000", "tcp://10.0.0.1:7000", false),
            ("tcp://0.0.0.0:7000", "tcp://10.0.0.1:7000", true),
            ("tcp://0.0.0.0:7000", "tcp://[::1]:7000", false),
            ("tcp://0.0.0.0:7000", "tcp://:7000", true),
            ("tcp://a:7000", "tcp://b:7000", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
        ];
        for (one, other, collide) in cases {
            let [a, b] = [one, other].map(|text| text.parse::<Endpoint>().unwrap());
            assert_eq!(overlap(&a, &b), collide, "{one} and {other}");
            assert_eq!(overlap(&b, &a), collide, "{other} and {one}");
        }
    }

    #[test]
    fn the_number_of_services_is_bounded() {
        let many = |count: usize| -> String {
            (0..count)
                .map(|n| service(&format!("s{n}"), "echo", "\"tcp://:0\""))
                .collect()
        };
        assert_eq!(
            parse(&many(SERVICES_MAX), "f").unwrap().services.len(),
            SERVICES_MAX
        );
        let error = parse(&many(SERVICES_MAX + 1), "f").unwrap_err();
        assert!(error.to_string().contains("more than 256"), "{error}");
    }
}
