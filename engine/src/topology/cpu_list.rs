//! A set of CPU numbers as Linux writes it (`0-3,8,10-11`), read from users and from the kernel.
//!
//! It must never allocate by what a range claims before the range is checked: `0-4294967295`
//! is one short line of text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Highest CPU number accepted. Linux builds for at most 8,192 CPUs (`NR_CPUS` on x86), so this
/// leaves room and still keeps the longest list at half a megabyte.
pub const CPU_NUMBER_MAX: usize = 65_535;

/// Ranges that [`CpuList::brief`] writes out: what fits a column of a picture.
const BRIEF_RUNS_MAX: usize = 4;

/// A sorted set of CPU numbers, written `0-3,8,10-11` (the kernel's list format).
///
/// Order and repeats in the text carry no meaning: `3,1,1-2` is the same list as `1-3`.
/// The empty text is the empty list, as in the kernel's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CpuList {
    sorted: Vec<usize>,
}

/// Why a text is not a CPU list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// A piece between commas is empty, as in `1,,2`.
    #[error("the CPU list {list:?} has an empty part; write it like 0-3,8,10-11")]
    EmptyPart {
        /// The whole text.
        list: String,
    },
    /// A piece is neither a number nor a range.
    #[error(
        "{part:?} in the CPU list {list:?} is neither a CPU number nor a range like 0-3 \
         (the highest CPU number is {CPU_NUMBER_MAX})"
    )]
    NotANumber {
        /// The piece that was not understood.
        part: String,
        /// The whole text.
        list: String,
    },
    /// A range runs downwards, as in `3-1`.
    #[error(
        "the range {part:?} in the CPU list {list:?} runs downwards; did you mean {last}-{first}?"
    )]
    Downwards {
        /// The range as written.
        part: String,
        /// Its first number.
        first: usize,
        /// Its last number.
        last: usize,
        /// The whole text.
        list: String,
    },
}

impl CpuList {
    /// The empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when no CPU is in the list.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// How many CPUs are in the list.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// True when `cpu` is in the list.
    pub fn contains(&self, cpu: usize) -> bool {
        self.sorted.binary_search(&cpu).is_ok()
    }

    /// The lowest CPU number.
    pub fn first(&self) -> Option<usize> {
        self.sorted.first().copied()
    }

    /// The CPU numbers, lowest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.sorted.iter().copied()
    }

    /// The CPU numbers as a sorted slice without repeats.
    pub fn as_slice(&self) -> &[usize] {
        &self.sorted
    }

    /// The list for a person's eye, never longer than a few pieces: `0-63`, `0-126 step 2`,
    /// `0,2-3,7,9,… (31 in all)`. Not for reading back.
    pub fn brief(&self) -> String {
        let runs = self.sorted.chunk_by(|a, b| a + 1 == *b).count();
        if runs <= BRIEF_RUNS_MAX {
            return self.to_string();
        }
        if let [first, second, .., last] = self.sorted[..] {
            let step = second - first;
            if self.sorted.windows(2).all(|pair| pair[1] - pair[0] == step) {
                return format!("{first}-{last} step {step}");
            }
        }
        let runs = self
            .sorted
            .chunk_by(|a, b| a + 1 == *b)
            .take(BRIEF_RUNS_MAX);
        let start = Self {
            sorted: runs.flatten().copied().collect(),
        };
        format!("{start},… ({} in all)", self.len())
    }

    /// The brief list after what it counts: `CPU 3`, `CPUs 0-63`, `no CPU`.
    pub(super) fn named(&self, what: &str) -> String {
        match self.len() {
            0 => format!("no {what}"),
            1 => format!("{what} {}", self.brief()),
            _ => format!("{what}s {}", self.brief()),
        }
    }

    /// The CPUs that are in both lists.
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|&cpu| other.contains(cpu)).collect()
    }

    /// The CPUs that are in this list and not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        self.iter().filter(|&cpu| !other.contains(cpu)).collect()
    }

    /// The CPUs that are in either list.
    pub fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }
}

impl FromIterator<usize> for CpuList {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut sorted: Vec<usize> = cpus.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        Self { sorted }
    }
}

impl From<Vec<usize>> for CpuList {
    fn from(cpus: Vec<usize>) -> Self {
        cpus.into_iter().collect()
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

impl TryFrom<String> for CpuList {
    type Error = CpuListError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let list = text.trim();
        if list.is_empty() {
            return Ok(Self::default());
        }
        let mut ranges = Vec::new();
        for part in list.split(',').map(str::trim) {
            if part.is_empty() {
                return Err(CpuListError::EmptyPart { list: list.into() });
            }
            let not_a_number = || CpuListError::NotANumber {
                part: part.into(),
                list: list.into(),
            };
            let number = |digits: &str| number(digits.trim()).ok_or_else(not_a_number);
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(CpuListError::Downwards {
                    part: part.into(),
                    first,
                    last,
                    list: list.into(),
                });
            }
            ranges.push((first, last));
        }
        // Overlaps are merged before they are expanded: `0-65535` written a thousand times is
        // still 65,536 numbers.
        ranges.sort_unstable();
        let mut sorted: Vec<usize> = Vec::new();
        for (first, last) in ranges {
            let unseen = sorted
                .last()
                .map_or(first, |&highest| first.max(highest + 1));
            sorted.extend(unseen..=last);
        }
        Ok(Self { sorted })
    }
}

/// A plain decimal CPU number within the bound; signs are refused (`usize` would take `+1`).
fn number(digits: &str) -> Option<usize> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|&cpu| cpu <= CPU_NUMBER_MAX)
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for run in self.sorted.chunk_by(|a, b| a + 1 == *b) {
            f.write_str(separator)?;
            separator = ",";
            match run {
                [single] => write!(f, "{single}")?,
                [first, .., last] => write!(f, "{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_that_are_understood() {
        for (text, cpus, written) in [
            ("", &[][..], ""),
            ("  \n", &[], ""),
            ("0", &[0], "0"),
            ("0-3,8,10-11", &[0, 1, 2, 3, 8, 10, 11], "0-3,8,10-11"),
            ("0-1\n", &[0, 1], "0-1"),
            (" 2 , 0 - 1 ", &[0, 1, 2], "0-2"),
            ("5,3,4,3-5", &[3, 4, 5], "3-5"),
            ("007", &[7], "7"),
            ("65535", &[65_535], "65535"),
        ] {
            let list: CpuList = text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"));
            assert_eq!(list.as_slice(), cpus, "{text:?}");
            assert_eq!(list.to_string(), written, "{text:?}");
        }
    }

    #[test]
    fn lists_that_are_refused_say_which_part() {
        for (text, words) in [
            (",", "empty part"),
            ("1,,2", "empty part"),
            ("a", "\"a\""),
            ("1-", "\"1-\""),
            ("-1", "\"-1\""),
            ("+1", "\"+1\""),
            ("1-2-3", "\"1-2-3\""),
            ("0x3", "\"0x3\""),
            ("1 2", "\"1 2\""),
            ("0-65536", "65535"),
            ("0-99999999999999999999999", "\"0-99999999999999999999999\""),
            ("7-3", "did you mean 3-7?"),
        ] {
            let error = text.parse::<CpuList>().expect_err(text).to_string();
            assert!(error.contains(words), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn brief_lists_stay_brief() {
        for (list, brief) in [
            ("", ""),
            ("0-63,128-191", "0-63,128-191"),
            ("0,2,4,6", "0,2,4,6"),
            ("0,2,4,6,8,10", "0-10 step 2"),
            ("0,2,4,7,8,9,11", "0,2,4,7-9,… (7 in all)"),
        ] {
            assert_eq!(list.parse::<CpuList>().unwrap().brief(), brief);
        }
    }

    #[test]
    fn repeated_huge_ranges_stay_bounded() {
        let text = vec!["0-65535"; 5_000].join(",");
        assert_eq!(text.parse::<CpuList>().unwrap().len(), CPU_NUMBER_MAX + 1);
    }

    proptest! {
        #[test]
        fn written_lists_read_back(cpus in btree_set(0..=CPU_NUMBER_MAX, 0..200)) {
            let list: CpuList = cpus.iter().copied().collect();
            let read: CpuList = list.to_string().parse().unwrap();
            prop_assert_eq!(&read, &list);
            let json = serde_json::to_string(&list).unwrap();
            prop_assert_eq!(serde_json::from_str::<CpuList>(&json).unwrap(), list);
        }

        #[test]
        fn dense_lists_read_back(cpus in btree_set(0usize..64, 0..64)) {
            let list: CpuList = cpus.iter().copied().collect();
            prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
        }

        #[test]
        fn any_text_is_answered_without_panic(text in "[0-9,\\- +a-c\u{e9}\n]{0,40}|\\PC{0,40}") {
            if let Ok(list) = text.parse::<CpuList>() {
                prop_assert!(list.as_slice().windows(2).all(|pair| pair[0] < pair[1]));
            }
        }

        #[test]
        fn set_operations_agree_with_membership(
            a in btree_set(0usize..32, 0..32),
            b in btree_set(0usize..32, 0..32),
        ) {
            let (left, right): (CpuList, CpuList) =
                (a.iter().copied().collect(), b.iter().copied().collect());
            for cpu in 0..32 {
                let (in_a, in_b) = (a.contains(&cpu), b.contains(&cpu));
                prop_assert_eq!(left.intersection(&right).contains(cpu), in_a && in_b);
                prop_assert_eq!(left.union(&right).contains(cpu), in_a || in_b);
                prop_assert_eq!(left.difference(&right).contains(cpu), in_a && !in_b);
            }
        }
    }
}
