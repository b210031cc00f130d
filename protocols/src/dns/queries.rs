//! The queries of a load run, encoded once: a table with one query for each id, end to end.
//!
//! A connection's next queries stand next to each other in the table, so that any number of them is
//! one slice of constant bytes: sending costs no copy, no count and no allocation.

use super::message::{self, HEADER_LEN, Name};

/// Ids that there are: 16 bits.
const IDS: usize = 1 << 16;
/// Names that a run may ask for: with queries of 40 bytes the table then takes 40 MiB.
pub const NAMES_MAX: usize = 1 << 20;

/// See the [module's page](self). Query number `n` has the id `n` mod 65,536.
#[derive(Debug)]
pub struct Queries {
    bytes: &'static [u8],
    /// Where each query begins, and one more for the end; none when all have one length.
    begins: Option<Vec<u32>>,
    len: usize,
    count: usize,
    /// Bytes of the length before each query: 2 on streams, 0 in datagrams.
    prefix: usize,
    names: usize,
}

impl Queries {
    /// Encodes the queries for names and record types in turn. `framed` ones have their length before them
    /// (RFC 1035 §4.2.2), for streams.
    ///
    /// The table is never freed: a run has one, and its sends refer to it until the process ends.
    ///
    /// # Panics
    /// Without a name, or with more than [`NAMES_MAX`].
    #[must_use]
    pub fn new(names: &[(Name, u16)], framed: bool) -> Self {
        assert!(
            (1..=NAMES_MAX).contains(&names.len()),
            "1 to {NAMES_MAX} names"
        );
        let prefix = if framed { 2 } else { 0 };
        // Whole rounds of the ids, so that a number gives its id also after the end of the table.
        let count = names.len().div_ceil(IDS) * IDS;
        let mut bytes = Vec::new();
        let mut begins = Vec::with_capacity(count + 1);
        for number in 0..count {
            let begin = bytes.len();
            begins.push(begin as u32);
            bytes.extend_from_slice(&[0; 2][..prefix]);
            let (name, kind) = &names[number % names.len()];
            message::write_query(&mut bytes, name, *kind);
            let query = begin + prefix;
            bytes[query..query + 2].copy_from_slice(&(number as u16).to_be_bytes());
            let len = (bytes.len() - query) as u16;
            bytes[begin..query].copy_from_slice(&len.to_be_bytes()[..prefix]);
        }
        begins.push(bytes.len() as u32);
        let len = bytes.len() / count;
        let is_regular = begins
            .iter()
            .enumerate()
            .all(|(at, begin)| *begin as usize == at * len);
        Self {
            bytes: Box::leak(bytes.into_boxed_slice()),
            begins: (!is_regular).then_some(begins),
            len,
            count,
            prefix,
            names: names.len(),
        }
    }

    /// Bytes of the longest query, its length before it included.
    #[must_use]
    pub fn len_max(&self) -> usize {
        let lens = self.begins.iter().flat_map(|begins| begins.windows(2));
        lens.map(|pair| (pair[1] - pair[0]) as usize)
            .max()
            .unwrap_or(self.len)
    }

    /// Where a connection may begin: with one name at 0, else so that connections ask for
    /// different names first.
    #[must_use]
    pub fn first_of(&self, connection: usize) -> u64 {
        if self.names == 1 {
            return 0;
        }
        // A large odd step: neighbours begin far from each other.
        (connection as u64).wrapping_mul(0x9e37_79b1) % self.count as u64
    }

    /// The bytes of as many queries from `number` on as stand together, at most `count`, and how
    /// many they are.
    #[inline]
    #[must_use]
    pub fn run(&self, number: u64, count: usize) -> (&'static [u8], usize) {
        let at = (number % self.count as u64) as usize;
        let count = count.min(self.count - at);
        (&self.bytes[self.begin(at)..self.begin(at + count)], count)
    }

    /// The same, of equal length only: datagrams of one send.
    #[inline]
    #[must_use]
    pub fn equal_run(&self, number: u64, count: usize) -> (&'static [u8], usize) {
        let (bytes, mut count) = self.run(number, count);
        let at = (number % self.count as u64) as usize;
        let Some(begins) = &self.begins else {
            return (bytes, count);
        };
        let len = begins[at + 1] - begins[at];
        let equal = begins[at..=at + count]
            .windows(2)
            .take_while(|pair| pair[1] - pair[0] == len);
        count = equal.count();
        (&bytes[..count * len as usize], count)
    }

    /// The question of a query: what an answer to it must be about.
    #[inline]
    #[must_use]
    pub fn question(&self, number: u64) -> &'static [u8] {
        let at = (number % self.count as u64) as usize;
        &self.bytes[self.begin(at) + self.prefix + HEADER_LEN..self.begin(at + 1)]
    }

    #[inline]
    fn begin(&self, at: usize) -> usize {
        self.begins
            .as_ref()
            .map_or(at * self.len, |begins| begins[at] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::{Header, TYPE_A, question};

    fn names(texts: &[&str]) -> Vec<(Name, u16)> {
        texts
            .iter()
            .map(|text| (Name::parse(text).unwrap(), TYPE_A))
            .collect()
    }

    #[test]
    fn every_number_has_its_id_and_its_name() {
        for texts in [
            &["example.com"][..],
            &["a.org", "b.org"],
            &["a", "bbb.cc", "d.e.f"],
        ] {
            let names = names(texts);
            for framed in [true, false] {
                let queries = Queries::new(&names, framed);
                for number in [0_u64, 1, 2, 3, 65_535, 65_536, 65_537, 1 << 40] {
                    let (bytes, count) = queries.run(number, 1);
                    assert_eq!(count, 1);
                    let query = if framed {
                        let (len, query) = bytes.split_at(2);
                        assert_eq!(
                            usize::from(u16::from_be_bytes([len[0], len[1]])),
                            query.len()
                        );
                        query
                    } else {
                        bytes
                    };
                    assert_eq!(Header::read(query).unwrap().id, number as u16);
                    let (name, _) = &names[(number as usize % IDS) % names.len()];
                    let asked = question(query).unwrap();
                    assert!(asked.bytes.starts_with(name.wire()), "{number}");
                    assert_eq!(queries.question(number), asked.bytes);
                    assert!(bytes.len() <= queries.len_max());
                }
            }
        }
    }

    #[test]
    fn a_run_is_its_queries_one_after_the_other() {
        let queries = Queries::new(&names(&["a", "b", "ccc"]), true);
        for (number, wanted, expected) in [(0, 10, 10), (65_530, 10, 6), (65_536, 1, 1)] {
            let (bytes, count) = queries.run(number, wanted);
            assert_eq!(count, expected);
            let single = (0..count as u64).map(|n| queries.run(number + n, 1).0);
            assert_eq!(single.collect::<Vec<_>>().concat(), bytes);
        }
        // a, b are of one length; ccc is not.
        for (number, expected) in [(0, 2), (1, 1), (2, 1), (3, 2), (65_535, 1)] {
            let (bytes, count) = queries.equal_run(number, 10);
            assert_eq!(count, expected, "from {number}");
            assert_eq!(bytes.len(), count * queries.run(number, 1).0.len());
        }
        let one = Queries::new(&names(&["example.com"]), false);
        assert_eq!(one.equal_run(5, 1000), (one.run(5, 1000).0, 1000));
    }

    #[test]
    fn connections_begin_at_different_names_if_there_are_several() {
        let one = Queries::new(&names(&["example.com"]), true);
        let many = Queries::new(&names(&["a", "b", "c"]), true);
        assert!((0..100).all(|connection| one.first_of(connection) == 0));
        let mut begins: Vec<_> = (0..100)
            .map(|connection| many.first_of(connection))
            .collect();
        begins.sort_unstable();
        begins.dedup();
        assert_eq!(begins.len(), 100);
    }
}
