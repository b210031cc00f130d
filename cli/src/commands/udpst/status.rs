//! The exit status, which is also `ErrorStatus` in JSON: which of several things that went wrong it
//! tells.

/// Done.
pub const SUCCESS: u8 = 0;
/// A command line that is not taken.
pub const OPTIONS: u8 = 50;
/// A key file that is not taken.
pub const KEY_FILE: u8 = 51;
/// Nothing could begin: names, sockets, files.
pub const INITIALISATION: u8 = 75;
/// Fewer connections than the test needs.
pub const CONNECTIONS: u8 = 200;
/// Nothing else fits; also ended by a signal.
pub const UNSPECIFIED: u8 = 255;
/// The largest that is a warning.
const WARNING_MAX: u8 = 49;

/// What the status is so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u8);

impl Default for Status {
    fn default() -> Self {
        Self(UNSPECIFIED)
    }
}

impl Status {
    /// The status.
    #[must_use]
    pub fn value(self) -> u8 {
        self.0
    }

    /// A warning, or the failure of one connection: the last one counts.
    pub fn set(&mut self, status: u8) {
        self.0 = status;
    }

    /// A test comes to its end as it should: what one connection failed by is forgotten, what was
    /// warned of is not.
    pub fn stopped(&mut self) {
        if self.0 > WARNING_MAX {
            self.0 = SUCCESS;
        }
    }

    /// Too few connections are left: why one failed says more than that.
    pub fn too_few(&mut self) {
        if self.0 <= WARNING_MAX {
            self.0 = CONNECTIONS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_several_things() {
        enum Step {
            Set(u8),
            Stopped,
            TooFew,
        }
        use Step::{Set, Stopped, TooFew};
        for (name, steps, status) in [
            ("nothing ever happened", &[][..], 255),
            ("a good test", &[Stopped], 0),
            ("warnings stay", &[Set(2), Stopped], 2),
            ("the last warning", &[Set(2), Set(5), Set(3), Stopped], 3),
            ("one of several was rejected", &[Set(105), Stopped], 0),
            ("one of several timed out", &[Set(1), Stopped], 1),
            ("nobody answered", &[Set(1), TooFew], 200),
            ("rejected", &[Set(105), TooFew], 105),
            ("the server went away", &[Set(4), TooFew], 200),
            ("all at once", &[TooFew], 255),
        ] {
            let mut found = Status::default();
            for step in steps {
                match step {
                    Set(code) => found.set(*code),
                    Stopped => found.stopped(),
                    TooFew => found.too_few(),
                }
            }
            assert_eq!(found.value(), status, "{name}");
        }
    }
}
