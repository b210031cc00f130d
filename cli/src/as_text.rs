//! How flags are written in a configuration file: as the text that the flag takes, or as a plain
//! number where that says it all. What is written reads as the same value.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserializer, Serializer};

/// Reads a text or a whole number by the parser of the flag.
struct TextOrNumber<T, F> {
    parse: F,
    expecting: &'static str,
    value: PhantomData<T>,
}

impl<T, E: Display, F: Fn(&str) -> Result<T, E>> Visitor<'_> for TextOrNumber<T, F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<X: de::Error>(self, text: &str) -> Result<T, X> {
        (self.parse)(text).map_err(X::custom)
    }

    fn visit_i64<X: de::Error>(self, number: i64) -> Result<T, X> {
        (self.parse)(&number.to_string()).map_err(X::custom)
    }

    fn visit_u64<X: de::Error>(self, number: u64) -> Result<T, X> {
        (self.parse)(&number.to_string()).map_err(X::custom)
    }
}

fn read<'de, D: Deserializer<'de>, T, E: Display>(
    from: D,
    expecting: &'static str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    from.deserialize_any(TextOrNumber {
        parse,
        expecting,
        value: PhantomData,
    })
}

/// A number as a number where the file can hold it (TOML has 63 bits), else as text.
fn write_number<S: Serializer>(number: u64, to: S) -> Result<S::Ok, S::Error> {
    match i64::try_from(number) {
        Ok(number) => to.serialize_i64(number),
        Err(_) => to.collect_str(&number),
    }
}

/// Times such as `"60s"`.
pub mod duration {
    use super::{Deserializer, Duration, Serializer, read};
    use crate::units;

    /// Exactly, in the largest unit that leaves no fraction.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        let nanos = time.as_nanos();
        let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
        let unit = units.iter().find(|(size, _)| nanos.is_multiple_of(*size));
        let (size, name) = unit.copied().unwrap_or((1, "ns"));
        to.collect_str(&format_args!("{}{name}", nanos / size))
    }

    /// # Errors
    /// When it is no time.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        read(from, "a time such as \"60s\"", units::parse_duration)
    }
}

/// Sizes in bytes such as `"1MiB"`.
pub mod size {
    use super::{Deserializer, Serializer, read, write_number};
    use crate::units;

    /// Exactly, in the largest binary unit that leaves no fraction.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &u64, to: S) -> Result<S::Ok, S::Error> {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let unit = units.iter().find(|(size, _)| bytes.is_multiple_of(*size));
        match unit {
            Some((size, name)) if *bytes > 0 => {
                to.collect_str(&format_args!("{}{name}", bytes / size))
            }
            _ => write_number(*bytes, to),
        }
    }

    /// # Errors
    /// When it is no size.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        read(from, "a size such as \"1MiB\"", units::parse_size)
    }
}

/// A number of connections such as `100000` or `"100k"`; without it, the default.
pub mod connections {
    use super::{Deserializer, Serializer, read, write_number};
    use crate::args::parse_connections;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(count: &Option<usize>, to: S) -> Result<S::Ok, S::Error> {
        match count {
            Some(count) => write_number(*count as u64, to),
            None => to.serialize_none(),
        }
    }

    /// # Errors
    /// When it is no count.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
        read(
            from,
            "a number such as 100000 or \"100k\"",
            parse_connections,
        )
        .map(Some)
    }
}

/// A number such as `100000` or `"100k"`.
pub mod count {
    use super::{Deserializer, Serializer, read, write_number};
    use crate::units;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(count: &u64, to: S) -> Result<S::Ok, S::Error> {
        write_number(*count, to)
    }

    /// # Errors
    /// When it is no count.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        read(
            from,
            "a number such as 100000 or \"100k\"",
            units::parse_count,
        )
    }
}

/// Datagrams per second such as `10000` or `"10k"`; without it, the default.
pub mod source_rate {
    use super::{Deserializer, Serializer, read};
    use crate::args::parse_source_rate;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(rate: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
        match rate {
            Some(rate) => to.serialize_u32(*rate),
            None => to.serialize_none(),
        }
    }

    /// # Errors
    /// When it is no rate.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        read(from, "a number such as 10000 or \"10k\"", parse_source_rate).map(Some)
    }
}

/// `"auto"` or a number of shards.
pub mod shards {
    use super::{Deserializer, Serializer, read};
    use crate::args::ShardsArg;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(shards: &ShardsArg, to: S) -> Result<S::Ok, S::Error> {
        match shards {
            ShardsArg::Auto => to.serialize_str("auto"),
            ShardsArg::Count(count) => to.serialize_u16(*count),
        }
    }

    /// # Errors
    /// When it is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ShardsArg, D::Error> {
        read(from, "\"auto\" or a number of shards", str::parse)
    }
}

/// An address to serve something local at, such as `":9100"`.
pub mod address {
    use std::net::SocketAddr;

    use super::{Deserializer, Serializer, read};
    use crate::args::parse_loopback_address;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        address: &Option<SocketAddr>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => to.collect_str(address),
            None => to.serialize_none(),
        }
    }

    /// # Errors
    /// When it is no address.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        read(from, "an address such as \":9100\"", parse_loopback_address).map(Some)
    }
}

/// One name or a list of them.
pub mod one_or_more {
    use std::fmt;

    use serde::de::{self, SeqAccess, Visitor};
    use serde::{Deserializer, Serialize as _, Serializer};

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(names: &[String], to: S) -> Result<S::Ok, S::Error> {
        names.serialize(to)
    }

    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name or a list of names")
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<Vec<String>, E> {
            Ok(vec![name.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = list.next_element()? {
                names.push(name);
            }
            Ok(names)
        }
    }

    /// # Errors
    /// When it is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        from.deserialize_any(Names)
    }
}
