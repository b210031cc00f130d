//! Flows that starve: connections of a test that get far less than their siblings for as long as no
//! accident lasts. Where several flows share a host or a link fairly, there are none; where a card's
//! transmit queues are dealt by a hash of addresses and ports, some flows may share a queue and the
//! others not.
//!
//! Rates in, names out: nothing here knows a card, and what to do about it is said by who prints it.

/// A flow below this share of the median is far below its siblings. Two flows whose hash puts them
/// onto one queue get half of what a flow with a queue of its own gets: that is an uneven deal and no
/// starvation, so only less than half counts.
pub const STARVED_SHARE: f64 = 0.5;

/// Sub-intervals in a row for which it must be so. With the usual second each: a search that a burst
/// of loss threw back by thirty rows is back within two.
pub const STARVED_INTERVALS: u32 = 3;

/// A connection that starved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Starved {
    /// Its index in the test.
    pub connection: u8,
    /// Sub-intervals in which it did.
    pub intervals: u32,
    /// Its mean rate in these, in Mbit/s at the IP layer.
    pub mbps: f64,
    /// The mean of the medians of all connections in these, in Mbit/s.
    pub median_mbps: f64,
}

/// The connections that starved, in order. `rates` has a row for each sub-interval, and in it the rate
/// of each connection in Mbit/s, `None` where it was not there.
#[must_use]
pub fn starved(rates: &[Vec<Option<f64>>]) -> Vec<Starved> {
    let connections = rates.iter().map(Vec::len).max().unwrap_or(0);
    let medians: Vec<_> = rates.iter().map(|row| median(row)).collect();
    let of = |connection: usize| {
        let low = rates.iter().zip(&medians).map(|(row, median)| {
            let mbps = (*row.get(connection)?)?;
            let median = (*median)?;
            (mbps < median * STARVED_SHARE).then_some((mbps, median))
        });
        let mut all = Sums::default();
        let mut run = Sums::default();
        for low in low.chain([None]) {
            if let Some((mbps, median)) = low {
                run.add(&Sums {
                    intervals: 1,
                    mbps,
                    median,
                });
                continue;
            }
            if run.intervals >= STARVED_INTERVALS {
                all.add(&run);
            }
            run = Sums::default();
        }
        let count = f64::from(all.intervals);
        (all.intervals > 0).then(|| Starved {
            connection: u8::try_from(connection).unwrap_or(u8::MAX),
            intervals: all.intervals,
            mbps: all.mbps / count,
            median_mbps: all.median / count,
        })
    };
    (0..connections).filter_map(of).collect()
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    intervals: u32,
    mbps: f64,
    median: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.intervals += other.intervals;
        self.mbps += other.mbps;
        self.median += other.median;
    }
}

/// The median of those that are there; `None` unless there are siblings to compare with.
fn median(row: &[Option<f64>]) -> Option<f64> {
    let mut there: Vec<_> = row.iter().flatten().copied().collect();
    there.sort_by(f64::total_cmp);
    let middle = there.len() / 2;
    match there.len() {
        0 | 1 => None,
        odd if odd % 2 == 1 => Some(there[middle]),
        _ => Some(f64::midpoint(there[middle - 1], there[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates of one connection, sub-interval by sub-interval; `-` where it was not there.
    fn flow(text: &str) -> Vec<Option<f64>> {
        let rate = |word: &str| (word != "-").then(|| word.parse().expect("a rate"));
        text.split_whitespace().map(rate).collect()
    }

    fn starved_of(flows: &[&str]) -> Vec<Starved> {
        let flows: Vec<_> = flows.iter().map(|text| flow(text)).collect();
        let intervals = flows.iter().map(Vec::len).max().unwrap_or(0);
        let row = |at: usize| {
            flows
                .iter()
                .map(move |flow| flow.get(at).copied().flatten())
        };
        let rates: Vec<Vec<_>> = (0..intervals).map(|at| row(at).collect()).collect();
        starved(&rates)
    }

    #[test]
    fn who_starves() {
        let even = "100 100 100 100 100";
        for (name, flows, found) in [
            ("nobody", &[even, even, even][..], &[][..]),
            ("no test", &[], &[]),
            ("one flow has no siblings", &["100 1 1 1 1"], &[]),
            ("one of three", &[even, "20 20 20 20 20", even], &[1]),
            ("a flow that gets nothing", &[even, even, "0 0 0 0 0"], &[2]),
            ("just half", &[even, "50 50 50 50 50", even], &[]),
            ("less than half", &[even, "49 49 49 49 49", even], &[1]),
            (
                "two in a row are an accident",
                &[even, "1 1 100 1 1", even],
                &[],
            ),
            ("three are none", &[even, "100 1 1 1 100", even], &[1]),
            ("one that had not begun", &[even, "- - 1 1 1", even], &[1]),
            ("one that ended early", &[even, "1 1 - - -", even], &[]),
            ("a gap breaks the row", &[even, "1 1 - 1 1", even], &[]),
            ("the other of two", &[even, "32 32 32 32 32"], &[1]),
            ("two at 1 to 3", &[even, "34 34 34 34 34"], &[]),
            (
                "the half that gets less",
                &[even, even, "9 9 9 9", "9 9 9 9", even],
                &[2, 3],
            ),
            (
                "one that gets more",
                &[even, "900 900 900 900 900", even],
                &[],
            ),
            (
                "all alike while a search climbs",
                &["1 50 900", "2 60 800", "1 55 850"],
                &[],
            ),
            ("nothing arrives at all", &["0 0 0", "0 0 0", "0 0 0"], &[]),
        ] {
            let came: Vec<_> = starved_of(flows).iter().map(|one| one.connection).collect();
            assert_eq!(came, found, "{name}");
        }
    }

    #[test]
    fn its_rates_are_those_of_the_time_when_it_starved() {
        let found = starved_of(&[
            "100 200 300 400 500 100 100",
            "100 10 20 30 500 1 1",
            "100 200 300 400 500 100 100",
        ]);
        let want = Starved {
            connection: 1,
            intervals: 3,
            mbps: 20.0,
            median_mbps: 300.0,
        };
        assert_eq!(found, [want]);
    }
}
