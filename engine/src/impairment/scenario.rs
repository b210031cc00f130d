//! How a network changes over time: phases, each with its impairments, as a file tells them.

use serde::{Deserialize, Serialize};

use super::decider::mix;
use super::model::{Impairment, InvalidImpairment};
use crate::Nanos;

const NANOS_PER_MILLI: Nanos = 1_000_000;

/// What a client's mapping moves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changes {
    /// Another port of the same or any address.
    #[default]
    Port,
    /// Another address, where there are several, and another port.
    Address,
}

/// Clients appear under another port or address again and again, as behind a NAT that forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebinding {
    /// How often each flow does, milliseconds. Flows take turns: each has its own moment.
    pub every_ms: u64,
    /// To what.
    #[serde(default)]
    pub changes: Changes,
}

impl Rebinding {
    /// How often a flow has rebound within `elapsed` of the phase.
    fn count(&self, seed: u64, flow: u64, elapsed: Nanos) -> u64 {
        let every = self.every_ms.max(1).saturating_mul(NANOS_PER_MILLI);
        let offset = mix(mix(seed) ^ flow.rotate_left(29)) % every;
        (elapsed.saturating_add(offset)) / every
    }
}

/// A part of a scenario.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Phase {
    /// For people and events.
    pub name: String,
    /// When it begins, milliseconds from the start of the run.
    pub from_ms: u64,
    /// From clients to destinations.
    pub forward: Impairment,
    /// From destinations to clients.
    pub backward: Impairment,
    /// Whether mappings move.
    pub rebinding: Option<Rebinding>,
}

/// Phases in order. The default is one phase in which everything passes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Where all decisions come from, unless the user gives another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Begin again after this time, milliseconds; without it the last phase lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_ms: Option<u64>,
    /// At least one; the first from 0.
    #[serde(rename = "phase")]
    pub phases: Vec<Phase>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self::of(Phase::default())
    }
}

/// A scenario that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidScenario {
    /// No phase.
    #[error("a scenario needs at least one [[phase]]")]
    Empty,
    /// The first phase does not begin at the beginning.
    #[error("the first phase begins at {from_ms} ms: it must have from_ms = 0, or none")]
    Late {
        /// When it begins.
        from_ms: u64,
    },
    /// A phase before its predecessor.
    #[error("phase {phase} begins at {from_ms} ms, not after the one before it at {before_ms} ms")]
    Order {
        /// Which.
        phase: String,
        /// When it begins.
        from_ms: u64,
        /// When the one before it does.
        before_ms: u64,
    },
    /// A repetition before the end.
    #[error("repeat_ms is {repeat_ms}, but the last phase begins at {from_ms} ms")]
    Repeat {
        /// When it would begin again.
        repeat_ms: u64,
        /// When the last phase begins.
        from_ms: u64,
    },
    /// No time between rebindings.
    #[error("phase {phase}: rebinding.every_ms is 0")]
    NoInterval {
        /// Which.
        phase: String,
    },
    /// An impairment that makes no sense.
    #[error("phase {phase}, {direction}: {error}")]
    Impairment {
        /// Which.
        phase: String,
        /// `forward` or `backward`.
        direction: &'static str,
        /// What is wrong with it.
        error: InvalidImpairment,
    },
}

impl Scenario {
    /// A scenario of one phase.
    #[must_use]
    pub fn of(phase: Phase) -> Self {
        Self {
            seed: None,
            repeat_ms: None,
            phases: vec![phase],
        }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn validate(&self) -> Result<(), InvalidScenario> {
        let first = self.phases.first().ok_or(InvalidScenario::Empty)?;
        if first.from_ms > 0 {
            return Err(InvalidScenario::Late {
                from_ms: first.from_ms,
            });
        }
        for (n, phase) in self.phases.iter().enumerate() {
            let name = || label(phase, n);
            if let Some(before) = n.checked_sub(1).and_then(|n| self.phases.get(n))
                && phase.from_ms <= before.from_ms
            {
                return Err(InvalidScenario::Order {
                    phase: name(),
                    from_ms: phase.from_ms,
                    before_ms: before.from_ms,
                });
            }
            if phase
                .rebinding
                .is_some_and(|rebinding| rebinding.every_ms == 0)
            {
                return Err(InvalidScenario::NoInterval { phase: name() });
            }
            for (direction, model) in [("forward", &phase.forward), ("backward", &phase.backward)] {
                model
                    .validate()
                    .map_err(|error| InvalidScenario::Impairment {
                        phase: name(),
                        direction,
                        error,
                    })?;
            }
        }
        let last = self.phases.last().map_or(0, |last| last.from_ms);
        match self.repeat_ms {
            Some(repeat_ms) if repeat_ms <= last => Err(InvalidScenario::Repeat {
                repeat_ms,
                from_ms: last,
            }),
            _ => Ok(()),
        }
    }

    /// Whether everything passes unchanged at all times.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.phases
            .iter()
            .all(|phase| phase.forward.is_clean() && phase.backward.is_clean())
    }

    /// Whether mappings move at any time.
    #[must_use]
    pub fn rebinds(&self) -> bool {
        self.phases.iter().any(|phase| phase.rebinding.is_some())
    }

    /// The phase at `elapsed` since the start of the run, by number, and when the next one begins.
    #[must_use]
    pub fn at(&self, elapsed: Nanos) -> (usize, Option<Nanos>) {
        let cycle = self.cycle();
        let (begun, within) = match cycle {
            Some(cycle) => (elapsed - elapsed % cycle, elapsed % cycle),
            None => (0, elapsed),
        };
        let after = self.phases.partition_point(|phase| phase.from() <= within);
        let next = match self.phases.get(after) {
            Some(next) => Some(begun.saturating_add(next.from())),
            None => cycle.map(|cycle| begun.saturating_add(cycle)),
        };
        (after.saturating_sub(1), next)
    }

    /// How often a flow has rebound by `elapsed` since the start of the run.
    #[must_use]
    pub fn rebindings(&self, seed: u64, flow: u64, elapsed: Nanos) -> u64 {
        let within = |elapsed: Nanos| -> u64 {
            let phases = self.phases.iter().enumerate();
            phases
                .map(|(n, phase)| {
                    let end = self.phases.get(n + 1).map_or(Nanos::MAX, Phase::from);
                    let spent = elapsed.min(end).saturating_sub(phase.from());
                    match phase.rebinding {
                        Some(rebinding) if spent > 0 => rebinding.count(seed, flow, spent),
                        _ => 0,
                    }
                })
                .sum()
        };
        match self.cycle() {
            Some(cycle) => (elapsed / cycle)
                .saturating_mul(within(cycle))
                .saturating_add(within(elapsed % cycle)),
            None => within(elapsed),
        }
    }

    fn cycle(&self) -> Option<Nanos> {
        self.repeat_ms
            .map(|repeat| repeat.max(1).saturating_mul(NANOS_PER_MILLI))
    }
}

impl Phase {
    fn from(&self) -> Nanos {
        self.from_ms.saturating_mul(NANOS_PER_MILLI)
    }
}

fn label(phase: &Phase, n: usize) -> String {
    if phase.name.is_empty() {
        format!("{}", n + 1)
    } else {
        format!("{} ({})", n + 1, phase.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(starts: &[u64], repeat_ms: Option<u64>) -> Scenario {
        let phase = |from_ms: &u64| Phase {
            from_ms: *from_ms,
            ..Phase::default()
        };
        Scenario {
            seed: None,
            repeat_ms,
            phases: starts.iter().map(phase).collect(),
        }
    }

    #[test]
    fn phases_follow_each_other() {
        let ms = |ms: u64| ms * NANOS_PER_MILLI;
        let once = phases(&[0, 10, 30], None);
        let again = phases(&[0, 10, 30], Some(50));
        for (scenario, at, want) in [
            (&once, 0, (0, Some(10))),
            (&once, 9, (0, Some(10))),
            (&once, 10, (1, Some(30))),
            (&once, 29, (1, Some(30))),
            (&once, 30, (2, None)),
            (&once, 1000, (2, None)),
            (&again, 49, (2, Some(50))),
            (&again, 50, (0, Some(60))),
            (&again, 85, (2, Some(100))),
        ] {
            let (phase, next) = scenario.at(ms(at));
            assert_eq!((phase, next), (want.0, want.1.map(ms)), "at {at} ms");
        }
    }

    #[test]
    fn each_flow_rebinds_in_its_own_time_and_never_back() {
        let mut scenario = phases(&[0, 1_000, 5_000], Some(8_000));
        scenario.phases[1].rebinding = Some(Rebinding {
            every_ms: 1_000,
            changes: Changes::Port,
        });
        let mut firsts = std::collections::BTreeSet::new();
        for flow in 0..100 {
            let mut last = 0;
            let mut first = None;
            for at in (0..30_000).step_by(50) {
                let count = scenario.rebindings(7, flow, at * NANOS_PER_MILLI);
                assert!(count >= last && count <= last + 1, "flow {flow} at {at} ms");
                if count > last && first.is_none() {
                    first = Some(at);
                }
                last = count;
            }
            // Four seconds of rebinding each second in each of three whole cycles, and five
            // seconds of the fourth.
            assert_eq!(last, 16, "flow {flow}");
            firsts.extend(first);
        }
        assert!(firsts.len() > 15, "not all at once: {firsts:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        let mut bad_model = phases(&[0], None);
        bad_model.phases[0].backward.duplication = 2.0;
        let mut no_interval = phases(&[0], None);
        no_interval.phases[0].name = "mobile".into();
        no_interval.phases[0].rebinding = Some(Rebinding {
            every_ms: 0,
            changes: Changes::Address,
        });
        for (scenario, want) in [
            (phases(&[], None), "a scenario needs at least one [[phase]]"),
            (
                phases(&[5], None),
                "the first phase begins at 5 ms: it must have from_ms = 0, or none",
            ),
            (
                phases(&[0, 7, 7], None),
                "phase 3 begins at 7 ms, not after the one before it at 7 ms",
            ),
            (
                phases(&[0, 7], Some(7)),
                "repeat_ms is 7, but the last phase begins at 7 ms",
            ),
            (no_interval, "phase 1 (mobile): rebinding.every_ms is 0"),
            (
                bad_model,
                "phase 1, backward: duplication is 2, but a probability lies between 0 and 1",
            ),
        ] {
            let error = scenario.validate().expect_err(want);
            assert_eq!(error.to_string(), want);
        }
        assert_eq!(phases(&[0, 7], Some(8)).validate(), Ok(()));
    }
}
