//! Joins figures of the same name from several hosts, by what their names and shapes say.
//!
//! The names of a report end in their unit (`docs/report.md`), and that decides: counts are summed,
//! rates are summed where the hosts ran together, times, shares and ratios show the worst host. So
//! the report of a new workload is merged without a word here. Percentiles are never averaged: what
//! cannot be joined is null.

use serde_json::{Map, Number, Value, json};

/// Percentiles of a latency object.
const PERCENTILES: [&str; 5] = ["p50_ns", "p90_ns", "p99_ns", "p99.9_ns", "p99.99_ns"];

/// One host's value.
pub(super) type Of<'a> = (&'a str, &'a Value);

/// Joins the values of all hosts.
pub(super) struct Joiner {
    /// Whether the hosts ran at the same time, so that rates add up.
    pub(super) together: bool,
    /// Fields that some hosts measured and others did not.
    pub(super) partial: Vec<String>,
}

impl Joiner {
    /// The fields of all objects, each joined. A field that is null on some hosts is noted; one that
    /// is not there is none of that host: a map of counts by kind has only the kinds that there were.
    pub(super) fn objects(&mut self, path: &str, hosts: &[(&str, &Map<String, Value>)]) -> Value {
        let mut names: Vec<&String> = Vec::new();
        for (_, object) in hosts {
            for name in object.keys() {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let mut joined = Map::new();
        for name in names {
            let values: Vec<Of<'_>> = hosts
                .iter()
                .filter_map(|(host, object)| Some((*host, object.get(name)?)))
                .collect();
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            joined.insert(name.clone(), self.values(&path, name, &values));
        }
        Value::Object(joined)
    }

    fn values(&mut self, path: &str, name: &str, hosts: &[Of<'_>]) -> Value {
        let known: Vec<Of<'_>> = hosts
            .iter()
            .filter(|(_, value)| !value.is_null())
            .copied()
            .collect();
        let Some((_, first)) = known.first() else {
            return Value::Null;
        };
        match first {
            Value::Object(_) => {
                let objects: Vec<_> = known
                    .iter()
                    .filter_map(|(host, value)| Some((*host, value.as_object()?)))
                    .collect();
                if objects.iter().all(|(_, object)| is_latency(object)) {
                    return latency(&objects);
                }
                self.objects(path, &objects)
            }
            Value::Array(_) => {
                let mut all = Vec::new();
                for (host, value) in &known {
                    for entry in value.as_array().into_iter().flatten() {
                        all.push(match entry {
                            Value::String(words) => json!(format!("{host}: {words}")),
                            other => json!({ "host": host, "entry": other }),
                        });
                    }
                }
                Value::Array(all)
            }
            Value::String(_) => {
                if known.len() == hosts.len() && known.iter().all(|(_, value)| value == first) {
                    return (*first).clone();
                }
                let words = known.iter().map(|(host, value)| match value {
                    Value::String(words) => format!("{host}: {words}"),
                    other => format!("{host}: {other}"),
                });
                json!(words.collect::<Vec<_>>().join("; "))
            }
            Value::Bool(_) => json!(known.iter().any(|(_, value)| **value == Value::Bool(true))),
            Value::Number(_) => {
                if known.len() < hosts.len() {
                    self.partial.push(format!(
                        "{path} (of {} of {} hosts)",
                        known.len(),
                        hosts.len()
                    ));
                }
                let numbers: Vec<&Number> = known
                    .iter()
                    .filter_map(|(_, value)| match value {
                        Value::Number(number) => Some(number),
                        _ => None,
                    })
                    .collect();
                match rule(path, name) {
                    Rule::SumIfTogether if !self.together => Value::Null,
                    Rule::Sum | Rule::SumIfTogether => sum(&numbers),
                    Rule::Worst => largest(&numbers),
                }
            }
            Value::Null => Value::Null,
        }
    }
}

/// How numbers are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Sum,
    /// A rate: the sum means something only for what happened at the same time.
    SumIfTogether,
    /// The largest.
    Worst,
}

fn rule(path: &str, name: &str) -> Rule {
    // Every client that asks tells of the same server.
    if path.starts_with("cpu.server.") {
        return Rule::Worst;
    }
    // CPU time adds up, unlike time.
    if ["user_s", "system_s"].contains(&name) {
        return Rule::Sum;
    }
    if name.ends_with("_per_s") || name == "per_s" || name == "cpus_busy" {
        return Rule::SumIfTogether;
    }
    let is_worst = ["_s", "_ns", "_percent", "_ratio"]
        .iter()
        .any(|unit| name.ends_with(unit));
    if is_worst || name.contains("per_") || name.contains("_per_hour") {
        Rule::Worst
    } else {
        Rule::Sum
    }
}

fn sum(numbers: &[&Number]) -> Value {
    let whole: Option<Vec<u64>> = numbers.iter().map(|number| number.as_u64()).collect();
    match whole {
        Some(whole) => json!(whole.into_iter().fold(0, u64::saturating_add)),
        None => json!(
            numbers
                .iter()
                .filter_map(|number| number.as_f64())
                .sum::<f64>()
        ),
    }
}

fn largest(numbers: &[&Number]) -> Value {
    let largest = numbers.iter().max_by(|a, b| {
        a.as_f64()
            .unwrap_or(0.0)
            .total_cmp(&b.as_f64().unwrap_or(0.0))
    });
    largest.map_or(Value::Null, |number| Value::Number((*number).clone()))
}

fn is_latency(object: &Map<String, Value>) -> bool {
    object.contains_key("count") && object.contains_key("p50_ns")
}

/// What is known of latencies without their histograms: how many, the mean, and the largest.
pub(super) fn latency(hosts: &[(&str, &Map<String, Value>)]) -> Value {
    let number = |object: &Map<String, Value>, name: &str| {
        object.get(name).and_then(Value::as_f64).unwrap_or(0.0)
    };
    let counts = hosts
        .iter()
        .map(|(_, object)| object.get("count").and_then(Value::as_u64));
    let count = counts.flatten().fold(0, u64::saturating_add);
    let total: f64 = hosts
        .iter()
        .map(|(_, object)| number(object, "mean_ns") * number(object, "count"))
        .sum();
    let max = hosts
        .iter()
        .filter_map(|(_, object)| object.get("max_ns")?.as_u64())
        .max();
    let mut joined = Map::new();
    joined.insert("count".into(), json!(count));
    let mean = (count > 0).then(|| total / count as f64);
    joined.insert("mean_ns".into(), json!(mean));
    for name in PERCENTILES {
        joined.insert(name.into(), Value::Null);
    }
    joined.insert("max_ns".into(), json!(max));
    Value::Object(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(together: bool, hosts: &[Value]) -> (Value, Vec<String>) {
        let mut joiner = Joiner {
            together,
            partial: Vec::new(),
        };
        let names = ["a", "b", "c"];
        let objects: Vec<_> = names
            .iter()
            .zip(hosts)
            .map(|(name, host)| (*name, host.as_object().unwrap()))
            .collect();
        (joiner.objects("", &objects), joiner.partial)
    }

    #[test]
    fn names_say_how_figures_are_joined() {
        for (name, one, other, joined) in [
            ("messages", json!(3), json!(4), json!(7)),
            ("messages_per_s", json!(1.5), json!(2.0), json!(3.5)),
            ("opening_s", json!(1.5), json!(2.0), json!(2.0)),
            ("lateness_max_ns", json!(7), json!(5), json!(7)),
            ("steal_percent", json!(0.5), json!(0.0), json!(0.5)),
            ("loss_ratio", json!(0.25), json!(0.5), json!(0.5)),
            ("user_s", json!(1.5), json!(2.0), json!(3.5)),
            (
                "per_connection_bytes",
                json!(90.0),
                json!(80.0),
                json!(90.0),
            ),
            ("growth_bytes_per_hour", json!(-5.0), json!(3.0), json!(3.0)),
            (
                "errors",
                json!({"reset": 1}),
                json!({"refused": 2, "reset": 3}),
                json!({"reset": 4, "refused": 2}),
            ),
            ("wrong_bytes", json!(null), json!(2), json!(2)),
            ("wrong_bytes", json!(null), json!(null), json!(null)),
            (
                "client_limited",
                json!(null),
                json!("busy"),
                json!("b: busy"),
            ),
            (
                "client_limited",
                json!("x"),
                json!("y"),
                json!("a: x; b: y"),
            ),
            ("kernel_source", json!("x"), json!("x"), json!("x")),
            ("failures", json!(["x"]), json!([]), json!(["a: x"])),
            ("is_cut", json!(false), json!(true), json!(true)),
            ("count", json!(u64::MAX), json!(1), json!(u64::MAX)),
        ] {
            let (result, _) = join(true, &[json!({name: one}), json!({name: other})]);
            assert_eq!(result[name], joined, "{name}");
        }
    }

    #[test]
    fn rates_of_other_times_are_not_summed() {
        let hosts = [
            json!({"messages_per_s": 1.5, "messages": 1}),
            json!({"messages_per_s": 2.0, "messages": 2}),
        ];
        let (joined, _) = join(false, &hosts);
        assert_eq!(joined, json!({"messages_per_s": null, "messages": 3}));
    }

    #[test]
    fn one_server_is_not_counted_for_every_client() {
        let host = |user: f64| json!({"cpu": {"client": {"user_s": user, "cpus": 2}, "server": {"user_s": 4.0, "cpus": 8}}});
        let (joined, _) = join(true, &[host(1.0), host(2.0)]);
        assert_eq!(joined["cpu"]["client"], json!({"user_s": 3.0, "cpus": 4}));
        assert_eq!(joined["cpu"]["server"], json!({"user_s": 4.0, "cpus": 8}));
    }

    #[test]
    fn percentiles_are_never_averaged() {
        let latency = |count: u64, ns: u64| {
            json!({"count": count, "mean_ns": ns, "p50_ns": ns, "p90_ns": ns, "p99_ns": ns,
                   "p99.9_ns": ns, "p99.99_ns": ns, "max_ns": ns * 2})
        };
        let (joined, partial) = join(
            true,
            &[
                json!({"t": latency(30, 100)}),
                json!({"t": latency(10, 300)}),
                json!({"t": null}),
            ],
        );
        assert_eq!(
            joined["t"],
            json!({"count": 40, "mean_ns": 150.0, "p50_ns": null, "p90_ns": null, "p99_ns": null,
                   "p99.9_ns": null, "p99.99_ns": null, "max_ns": 600})
        );
        assert_eq!(partial, Vec::<String>::new());
    }

    #[test]
    fn what_only_some_hosts_measured_is_named() {
        let hosts = [json!({"wrong_bytes": 0}), json!({"wrong_bytes": null})];
        let (_, partial) = join(true, &hosts);
        assert_eq!(partial, ["wrong_bytes (of 1 of 2 hosts)"]);
    }
}
