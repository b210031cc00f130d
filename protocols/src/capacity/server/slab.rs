//! The tests of one shard by place: a place is used again, a number of its use never for long.

use super::test::Test;

/// Words with the highest bit are no test's: control sockets and the shard's own timer have it.
const GENERATION_MASK: u32 = u32::MAX >> 1;

/// A test of this shard. One that ended is not found any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Place {
    /// As the word of a timer or a socket.
    pub(super) fn word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// From such a word.
    pub(super) fn of(word: u64) -> Self {
        Self {
            index: word as u32,
            generation: (word >> 32) as u32,
        }
    }
}

#[derive(Default)]
struct Entry {
    generation: u32,
    test: Option<Box<Test>>,
}

/// See the [module's page](self).
#[derive(Default)]
pub(super) struct Slab {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Slab {
    /// The place that the next test gets.
    pub(super) fn next(&mut self) -> Place {
        let index = match self.free.last() {
            Some(index) => *index,
            None => {
                self.entries.push(Entry {
                    generation: 1,
                    test: None,
                });
                let index = self.entries.len() as u32 - 1;
                self.free.push(index);
                index
            }
        };
        Place {
            index,
            generation: self.entries[index as usize].generation,
        }
    }

    /// Puts a test into the next place.
    pub(super) fn insert(&mut self, test: Box<Test>) -> Place {
        let place = self.next();
        self.free.pop();
        self.entries[place.index as usize].test = Some(test);
        place
    }

    /// Takes a test out for the length of a call; [`put`](Self::put) or [`end`](Self::end) follows.
    #[inline]
    pub(super) fn take(&mut self, place: Place) -> Option<Box<Test>> {
        let entry = self.entries.get_mut(place.index as usize)?;
        if entry.generation != place.generation {
            return None;
        }
        entry.test.take()
    }

    /// Puts it back.
    #[inline]
    pub(super) fn put(&mut self, place: Place, test: Box<Test>) {
        self.entries[place.index as usize].test = Some(test);
    }

    /// The place is free for another.
    pub(super) fn end(&mut self, place: Place) {
        let entry = &mut self.entries[place.index as usize];
        entry.generation = entry.generation.wrapping_add(1) & GENERATION_MASK;
        entry.test = None;
        self.free.push(place.index);
    }

    /// All places with a test.
    pub(super) fn places(&self) -> Vec<Place> {
        let entries = (0..).zip(&self.entries);
        entries
            .filter(|(_, entry)| entry.test.is_some())
            .map(|(index, entry)| Place {
                index,
                generation: entry.generation,
            })
            .collect()
    }

    /// What is in a place.
    pub(super) fn get(&self, place: Place) -> Option<&Test> {
        let entry = self.entries.get(place.index as usize)?;
        let test = entry.test.as_deref()?;
        (entry.generation == place.generation).then_some(test)
    }
}
