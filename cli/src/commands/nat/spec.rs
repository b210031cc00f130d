//! Impairments as people type them: `loss=1%,delay=20ms,jitter=5ms`. Turns text into the model that
//! the engine and scenario files use; decides nothing itself.

use std::time::Duration;

use ringmill_engine::impairment::{
    Blackout, Changes, Corruption, Distribution, Impairment, Loss, Queue, Rate, Rebinding,
    codel_interval_us, codel_target_us, red_probability_max, red_weight,
};

use crate::units::{parse_byte_rate, parse_count, parse_duration, parse_percent, parse_size};

/// What `--help` says of a specification.
pub const HELP: &str = "\
Impairments (--impair, --forward, --backward): KEY=VALUE, separated by commas
  loss=1%                    each datagram for itself
  burst=1%/30%[/100%[/0%]]   Gilbert-Elliott: good to bad, bad to good, loss when bad, when good
  delay=20ms  jitter=5ms     each datagram's time and its spread; 'normal' for a normal spread,
                             'keep-order' so that none overtakes
  duplicate=1%
  reorder=1%[/3]             held back behind so many later ones; hold=50ms at most
  late=5ms[/10ms]            reordered ones are late by this time, plus up to the second, instead
  corrupt=1%[/3]             flips so many bits
  rate=10Mbit  queue=125k    all flows together, or each with 'per-flow'; codel[=5ms/100ms] or
                             red=MIN/MAX[/10%] manage the queue, with 'ecn' by marking
  overhead=28                bytes that each datagram takes in rate and queue besides its payload:
                             28 makes it a rate of IPv4 packets, 48 of IPv6
  bleach=100%                clears the ECN field
  size=1200[/100%]           longer ones are dropped
  blackout=10s-12s[/60s]     nothing passes; again after so long";

/// Applies a specification to a model.
///
/// # Errors
/// What is wrong, in words.
pub fn apply(model: &mut Impairment, text: &str) -> Result<(), String> {
    for part in text.split(',').map(str::trim) {
        if part.is_empty() {
            return Err("empty: write loss=1%,delay=20ms".into());
        }
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (part, None),
        };
        apply_one(model, key, value).map_err(|error| format!("{key}: {error}"))?;
    }
    model.validate().map_err(|error| error.to_string())
}

fn apply_one(model: &mut Impairment, key: &str, value: Option<&str>) -> Result<(), String> {
    let flag = || match value {
        None => Ok(()),
        Some(value) => Err(format!("takes no value, but '{value}' came")),
    };
    let value_of = || value.ok_or_else(|| format!("needs a value: {key}=…"));
    match key {
        "loss" => {
            let probability = percent(value_of()?)?;
            model.loss = Loss::Uniform { probability };
        }
        "burst" => {
            let [good_to_bad, bad_to_good, loss_bad, loss_good] =
                parts(value_of()?, [None, None, Some("100%"), Some("0%")], percent)?;
            model.loss = Loss::GilbertElliott {
                good_to_bad,
                bad_to_good,
                loss_good,
                loss_bad,
            };
        }
        "delay" => model.delay_us = micros(value_of()?)?,
        "jitter" => model.jitter_us = micros(value_of()?)?,
        "normal" => {
            flag()?;
            model.jitter_distribution = Distribution::Normal;
        }
        "keep-order" => {
            flag()?;
            model.keep_order = true;
        }
        "duplicate" => model.duplication = percent(value_of()?)?,
        "reorder" => {
            let (probability, gap) = pair(value_of()?);
            model.reordering.probability = percent(probability)?;
            if let Some(gap) = gap {
                model.reordering.gap = count(gap)?;
            }
        }
        "hold" => model.reordering.hold_us_max = micros(value_of()?)?,
        "late" => {
            let (late, random) = pair(value_of()?);
            model.reordering.late_us = Some(micros(late)?);
            model.reordering.late_random_us = random.map_or(Ok(0), micros)?;
        }
        "corrupt" => {
            let (probability, bits) = pair(value_of()?);
            model.corruption = Corruption {
                probability: percent(probability)?,
                bits: bits.map_or(Ok(1), count)?,
            };
        }
        "bleach" => model.ecn_bleaching = percent(value_of()?)?,
        "size" => {
            let (bytes, probability) = pair(value_of()?);
            model.datagram_bytes_max = Some(size(bytes)? as usize);
            model.oversize_loss = probability.map_or(Ok(1.0), percent)?;
        }
        "blackout" => model.blackouts.push(blackout(value_of()?)?),
        "rate" => {
            let text = value_of()?;
            if !text.contains("bit") {
                return Err(format!(
                    "'{text}' has no unit of bits: write 10Mbit or 1Gbit/s"
                ));
            }
            let bytes = parse_byte_rate(text).map_err(|error| error.to_string())?;
            let before = model.rate.unwrap_or_default();
            model.rate = Some(Rate {
                bits_per_second: (bytes * 8.0).round() as u64,
                ..before
            });
        }
        "queue" => rate(model)?.queue_bytes_max = size(value_of()?)?,
        "overhead" => rate(model)?.overhead_bytes = size(value_of()?)?,
        "per-flow" => {
            flag()?;
            rate(model)?.per_flow = true;
        }
        "codel" => {
            let [target_us, interval_us] = match value {
                None => [codel_target_us(), codel_interval_us()],
                Some(value) => parts(value, [None, Some("100ms")], micros)?,
            };
            rate(model)?.queue = Queue::Codel {
                target_us,
                interval_us,
                ecn: false,
            };
        }
        "red" => {
            let text = value_of()?;
            let mut split = text.split('/');
            let (Some(min), Some(max)) = (split.next(), split.next()) else {
                return Err("needs two sizes: red=MIN/MAX[/10%]".into());
            };
            let probability_max = split.next().map_or(Ok(red_probability_max()), percent)?;
            if split.next().is_some() {
                return Err("has too many parts: red=MIN/MAX[/10%]".into());
            }
            rate(model)?.queue = Queue::Red {
                bytes_min: size(min)?,
                bytes_max: size(max)?,
                probability_max,
                weight: red_weight(),
                ecn: false,
            };
        }
        "ecn" => {
            flag()?;
            match &mut rate(model)?.queue {
                Queue::TailDrop => {
                    return Err(
                        "needs 'codel' or 'red' before it: a full queue marks nothing".into(),
                    );
                }
                Queue::Codel { ecn, .. } | Queue::Red { ecn, .. } => *ecn = true,
            }
        }
        _ => return Err("no such impairment; --help lists all".into()),
    }
    Ok(())
}

/// The rate, which must have been given before what belongs to it.
fn rate(model: &mut Impairment) -> Result<&mut Rate, String> {
    model
        .rate
        .as_mut()
        .ok_or_else(|| "needs 'rate=…' before it".to_owned())
}

fn pair(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((first, second)) => (first, Some(second)),
        None => (text, None),
    }
}

/// Parts between slashes, those left out from `defaults`.
fn parts<T, const N: usize>(
    text: &str,
    defaults: [Option<&str>; N],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<[T; N], String> {
    let mut given = text.split('/');
    let mut values = Vec::with_capacity(N);
    for default in defaults {
        let part = given.next().or(default);
        let part = part.ok_or_else(|| format!("'{text}' has too few parts"))?;
        values.push(parse(part)?);
    }
    match (given.next(), <[T; N]>::try_from(values)) {
        (None, Ok(values)) => Ok(values),
        _ => Err(format!("'{text}' has too many parts")),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    parse_percent(text).map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

fn count(text: &str) -> Result<u32, String> {
    let count = parse_count(text).map_err(|error| error.to_string())?;
    u32::try_from(count).map_err(|_| format!("{count} is too many"))
}

fn micros(text: &str) -> Result<u64, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    if !time.subsec_nanos().is_multiple_of(1_000) {
        return Err(format!("'{text}' is not a whole number of microseconds"));
    }
    u64::try_from(time.as_micros()).map_err(|_| format!("'{text}' is too long"))
}

fn blackout(text: &str) -> Result<Blackout, String> {
    let (span, every) = pair(text);
    let Some((from, until)) = span.split_once('-') else {
        return Err(format!(
            "'{text}' is no time span: write 10s-12s or 10s-12s/60s"
        ));
    };
    Ok(Blackout {
        from_us: micros(from)?,
        until_us: micros(until)?,
        every_us: every.map(micros).transpose()?,
    })
}

/// `30s` or `30s/address`.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_rebinding(text: &str) -> Result<Rebinding, String> {
    let (every, changes) = pair(text);
    let every = parse_duration(every).map_err(|error| error.to_string())?;
    let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
    if every_ms == 0 || every != Duration::from_millis(every_ms) {
        return Err(format!("'{text}': at least 1ms, in whole milliseconds"));
    }
    let changes = match changes {
        None | Some("port") => Changes::Port,
        Some("address") => Changes::Address,
        Some(other) => return Err(format!("'{other}' cannot change: 'port' or 'address'")),
    };
    Ok(Rebinding { every_ms, changes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmill_engine::impairment::Reordering;

    fn spec(text: &str) -> Result<Impairment, String> {
        let mut model = Impairment::default();
        apply(&mut model, text).map(|()| model)
    }

    #[test]
    fn every_key_sets_its_field() {
        let base = Impairment::default;
        for (text, want) in [
            (
                "loss=1%",
                Impairment {
                    loss: Loss::Uniform { probability: 0.01 },
                    ..base()
                },
            ),
            (
                "burst=1%/25%",
                Impairment {
                    loss: Loss::GilbertElliott {
                        good_to_bad: 0.01,
                        bad_to_good: 0.25,
                        loss_good: 0.0,
                        loss_bad: 1.0,
                    },
                    ..base()
                },
            ),
            (
                "delay=20ms, jitter=500us,normal,keep-order",
                Impairment {
                    delay_us: 20_000,
                    jitter_us: 500,
                    jitter_distribution: Distribution::Normal,
                    keep_order: true,
                    ..base()
                },
            ),
            (
                "reorder=2%/3,hold=10ms",
                Impairment {
                    reordering: Reordering {
                        probability: 0.02,
                        gap: 3,
                        hold_us_max: 10_000,
                        ..Reordering::default()
                    },
                    ..base()
                },
            ),
            (
                "reorder=2%,late=5ms/10ms",
                Impairment {
                    reordering: Reordering {
                        probability: 0.02,
                        late_us: Some(5_000),
                        late_random_us: 10_000,
                        ..Reordering::default()
                    },
                    ..base()
                },
            ),
            (
                "duplicate=3%,corrupt=4%/2,bleach=100%,size=1200/50%",
                Impairment {
                    duplication: 0.03,
                    corruption: Corruption {
                        probability: 0.04,
                        bits: 2,
                    },
                    ecn_bleaching: 1.0,
                    datagram_bytes_max: Some(1200),
                    oversize_loss: 0.5,
                    ..base()
                },
            ),
            (
                "rate=10Mbit/s,queue=64kB,overhead=28,codel=5ms,ecn",
                Impairment {
                    rate: Some(Rate {
                        bits_per_second: 10_000_000,
                        queue_bytes_max: 64_000,
                        overhead_bytes: 28,
                        queue: Queue::Codel {
                            target_us: 5_000,
                            interval_us: 100_000,
                            ecn: true,
                        },
                        per_flow: false,
                    }),
                    ..base()
                },
            ),
            (
                "rate=1Gbit,red=10kB/30kB/5%,per-flow",
                Impairment {
                    rate: Some(Rate {
                        bits_per_second: 1_000_000_000,
                        queue: Queue::Red {
                            bytes_min: 10_000,
                            bytes_max: 30_000,
                            probability_max: 0.05,
                            weight: red_weight(),
                            ecn: false,
                        },
                        per_flow: true,
                        ..Rate::default()
                    }),
                    ..base()
                },
            ),
            (
                "blackout=10s-12s/60s",
                Impairment {
                    blackouts: vec![Blackout {
                        from_us: 10_000_000,
                        until_us: 12_000_000,
                        every_us: Some(60_000_000),
                    }],
                    ..base()
                },
            ),
        ] {
            assert_eq!(spec(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (text, want) in [
            ("", "empty: write loss=1%,delay=20ms"),
            ("los=1%", "los: no such impairment; --help lists all"),
            ("loss", "loss: needs a value: loss=…"),
            (
                "loss=150%",
                "loss.probability is 1.5, but a probability lies between 0 and 1",
            ),
            ("normal=1", "normal: takes no value, but '1' came"),
            ("queue=1k", "queue: needs 'rate=…' before it"),
            ("overhead=28", "overhead: needs 'rate=…' before it"),
            (
                "rate=10M",
                "rate: '10M' has no unit of bits: write 10Mbit or 1Gbit/s",
            ),
            (
                "rate=1Mbit,ecn",
                "ecn: needs 'codel' or 'red' before it: a full queue marks nothing",
            ),
            ("burst=1%", "burst: '1%' has too few parts"),
            (
                "burst=1%/1%/1%/1%/1%",
                "burst: '1%/1%/1%/1%/1%' has too many parts",
            ),
            (
                "delay=1ns",
                "delay: '1ns' is not a whole number of microseconds",
            ),
            (
                "blackout=5s",
                "blackout: '5s' is no time span: write 10s-12s or 10s-12s/60s",
            ),
            (
                "reorder=1%/0",
                "reordering.gap is 0: a datagram is held back behind at least one other",
            ),
        ] {
            assert_eq!(spec(text), Err(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn rebindings() {
        let rebinding = |every_ms, changes| Ok(Rebinding { every_ms, changes });
        assert_eq!(parse_rebinding("30s"), rebinding(30_000, Changes::Port));
        assert_eq!(
            parse_rebinding("500ms/address"),
            rebinding(500, Changes::Address)
        );
        assert!(parse_rebinding("0s").is_err());
        assert!(parse_rebinding("1us").is_err());
        assert!(parse_rebinding("1s/name").is_err());
    }
}
