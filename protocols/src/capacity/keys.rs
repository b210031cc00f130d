//! Shared keys: from the command line and from a key file, and which of them a test uses.
//!
//! The file is read by the caller; here are its bytes. A key is wiped when dropped and never shown,
//! not even in an error.

use zeroize::Zeroizing;

/// Most bytes in a shared key.
pub const SHARED_KEY_BYTES_MAX: usize = 64;

/// A key that client and server share: text, used as its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey(Zeroizing<Vec<u8>>);

impl SharedKey {
    /// A key of these bytes.
    ///
    /// # Errors
    /// It is empty or longer than [`SHARED_KEY_BYTES_MAX`].
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            Err(KeyError::Empty)
        } else if bytes.len() > SHARED_KEY_BYTES_MAX {
            Err(KeyError::TooLong { len: bytes.len() })
        } else {
            Ok(Self(Zeroizing::new(bytes.to_vec())))
        }
    }

    /// The bytes, for HMAC.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No bytes at all.
    #[error("a key must not be empty")]
    Empty,
    /// Too many bytes.
    #[error("a key of {len} bytes is too long; at most {SHARED_KEY_BYTES_MAX} are possible")]
    TooLong {
        /// How many.
        len: usize,
    },
}

/// The entries of a key file: one `id,key` a line.
///
/// Commas, blanks and tabs separate, in runs of any length; `#` starts a comment anywhere; what
/// follows the key is ignored, and so are lines with nothing on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile(Vec<(u8, SharedKey)>);

impl KeyFile {
    /// Reads the bytes of a file. As ids are 0 to 255 and none may come twice, it has at most 256
    /// entries.
    ///
    /// # Errors
    /// The first line that is wrong, or that there is no entry at all.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyFileError> {
        let mut entries: Vec<(u8, SharedKey)> = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line_number = index + 1;
            let text = line.split(|byte| *byte == b'#').next().unwrap_or_default();
            let mut fields = text
                .split(|byte| matches!(byte, b',' | b' ' | b'\t' | b'\r'))
                .filter(|field| !field.is_empty());
            let Some(id) = fields.next() else {
                continue;
            };
            let Some(key) = fields.next() else {
                return Err(KeyFileError::Fields { line: line_number });
            };
            let id = key_id(id).ok_or(KeyFileError::Id {
                line: line_number,
                // Were the fields swapped, this would be the key: it is not shown.
                len: id.len(),
            })?;
            if entries.iter().any(|(other, _)| *other == id) {
                return Err(KeyFileError::Repeated {
                    line: line_number,
                    id,
                });
            }
            let key = SharedKey::new(key).map_err(|source| KeyFileError::Key {
                line: line_number,
                source,
            })?;
            entries.push((id, key));
        }
        if entries.is_empty() {
            return Err(KeyFileError::NoEntry);
        }
        Ok(Self(entries))
    }

    /// The key with that id.
    #[must_use]
    pub fn get(&self, id: u8) -> Option<&SharedKey> {
        let entry = self.0.iter().find(|(other, _)| *other == id);
        entry.map(|(_, key)| key)
    }

    /// How many entries.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.0.len()
    }
}

/// A key id in the notation of C: decimal, `0x` and hexadecimal, `0` and octal.
fn key_id(text: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X"))
    {
        (digits, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (&text[1..], 8)
    } else {
        (text, 10)
    };
    // A second sign is none of C's numbers, though Rust would take it.
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, radix).ok()
}

/// What is wrong with a key file. Lines count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// An id and nothing more.
    #[error("line {line}: wants an id and a key, as in 1,secret")]
    Fields {
        /// The line.
        line: usize,
    },
    /// The id is no number from 0 to 255.
    #[error("line {line}: the first field ({len} bytes) is no key id, a number from 0 to 255")]
    Id {
        /// The line.
        line: usize,
        /// Length of the field, which is not shown as it might be a key.
        len: usize,
    },
    /// The id came before.
    #[error("line {line}: key id {id} comes a second time")]
    Repeated {
        /// The line.
        line: usize,
        /// The id.
        id: u8,
    },
    /// The key cannot be used.
    #[error("line {line}: {source}")]
    Key {
        /// The line.
        line: usize,
        /// Why.
        source: KeyError,
    },
    /// Nothing but blank lines and comments.
    #[error("no entry at all; one line is an id and a key, as in 1,secret")]
    NoEntry,
}

/// The keys that one end was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRing {
    /// From the command line; a server tries it with any key id.
    pub command_line: Option<SharedKey>,
    /// From a key file.
    pub file: Option<KeyFile>,
}

impl KeyRing {
    /// Whether there is any key.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.command_line.is_some() || self.file.is_some()
    }

    /// The keys that a server tries for a request, in their order: the entry of the file with the
    /// request's id, then the key of the command line.
    pub fn candidates(&self, key_id: u8) -> impl Iterator<Item = &SharedKey> {
        let entry = self.file.as_ref().and_then(|file| file.get(key_id));
        entry.into_iter().chain(&self.command_line)
    }

    /// The key that a client signs with, and the id that it names; `None` when it has no key.
    ///
    /// A file with one entry gives that one when no id was asked for, or id 0.
    ///
    /// # Errors
    /// The file has no entry with the id.
    pub fn for_client(
        &self,
        key_id: Option<u8>,
    ) -> Result<Option<(u8, &SharedKey)>, KeyIdNotFound> {
        let id = key_id.unwrap_or(0);
        if let Some(key) = &self.command_line {
            return Ok(Some((id, key)));
        }
        let Some(file) = &self.file else {
            return Ok(None);
        };
        match (&file.0[..], file.get(id)) {
            (_, Some(key)) => Ok(Some((id, key))),
            ([(only, key)], None) if id == 0 => Ok(Some((*only, key))),
            _ => Err(KeyIdNotFound { id }),
        }
    }
}

/// The key id that a client asked for is not in its key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key file has no entry with id {id}")]
pub struct KeyIdNotFound {
    /// The id.
    pub id: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> SharedKey {
        SharedKey::new(text).unwrap()
    }

    #[test]
    fn files_that_are_read() {
        for (text, entries) in [
            ("1,secret", vec![(1, "secret")]),
            ("1,secret\n", vec![(1, "secret")]),
            ("1,secret\r\n2 other\r\n", vec![(1, "secret"), (2, "other")]),
            ("\t 7 ,\t, key here,is more", vec![(7, "key")]),
            (",,3,a", vec![(3, "a")]),
            (
                "# keys\n\n  \n0,zero # the first\n255,last#one",
                vec![(0, "zero"), (255, "last")],
            ),
            (
                "0x10,hex\n0XfF,upper\n010,octal\n00,zero\n+5,plus",
                vec![
                    (16, "hex"),
                    (255, "upper"),
                    (8, "octal"),
                    (0, "zero"),
                    (5, "plus"),
                ],
            ),
            (
                "1,0123456789012345678901234567890123456789012345678901234567890123",
                vec![(
                    1,
                    "0123456789012345678901234567890123456789012345678901234567890123",
                )],
            ),
        ] {
            let file = KeyFile::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
            assert_eq!(file.entries(), entries.len(), "{text:?}");
            for (id, secret) in entries {
                assert_eq!(file.get(id), Some(&key(secret)), "{text:?}: {id}");
            }
        }
        let bytes = KeyFile::parse(b"1,\xFF\xFE").unwrap();
        assert_eq!(bytes.get(1).unwrap().bytes(), b"\xFF\xFE", "any bytes");
        let all: String = (0..256).map(|id| format!("{id},key{id}\n")).collect();
        assert_eq!(KeyFile::parse(all.as_bytes()).unwrap().entries(), 256);
    }

    #[test]
    fn files_that_are_wrong() {
        let long = "k".repeat(65);
        for (text, message) in [
            (
                "",
                "no entry at all; one line is an id and a key, as in 1,secret",
            ),
            (
                "#1,a\n\n",
                "no entry at all; one line is an id and a key, as in 1,secret",
            ),
            ("1,a\n2", "line 2: wants an id and a key, as in 1,secret"),
            ("1,#a", "line 1: wants an id and a key, as in 1,secret"),
            (
                "\n\nsecret,1",
                "line 3: the first field (6 bytes) is no key id, a number from 0 to 255",
            ),
            (
                "256,a",
                "line 1: the first field (3 bytes) is no key id, a number from 0 to 255",
            ),
            (
                "-1,a",
                "line 1: the first field (2 bytes) is no key id, a number from 0 to 255",
            ),
            (
                "08,a",
                "line 1: the first field (2 bytes) is no key id, a number from 0 to 255",
            ),
            (
                "0x,a",
                "line 1: the first field (2 bytes) is no key id, a number from 0 to 255",
            ),
            (
                "0x+1,a",
                "line 1: the first field (4 bytes) is no key id, a number from 0 to 255",
            ),
            (
                "++1,a",
                "line 1: the first field (3 bytes) is no key id, a number from 0 to 255",
            ),
            ("1,a\n0x1,b", "line 2: key id 1 comes a second time"),
            (
                &format!("# long\n9,{long}"),
                "line 2: a key of 65 bytes is too long; at most 64 are possible",
            ),
        ] {
            let error = KeyFile::parse(text.as_bytes()).expect_err(text);
            assert_eq!(error.to_string(), message, "{text:?}");
        }
    }

    #[test]
    fn keys_are_bounded_and_never_shown() {
        assert_eq!(SharedKey::new(""), Err(KeyError::Empty));
        assert_eq!(
            SharedKey::new([b'a'; 65]),
            Err(KeyError::TooLong { len: 65 })
        );
        let ring = KeyRing {
            command_line: Some(key("topsecret")),
            file: Some(KeyFile::parse(b"1,topsecret").unwrap()),
        };
        assert!(!format!("{ring:?}").contains("topsecret"));
    }

    #[test]
    fn a_server_tries_the_file_and_then_the_command_line() {
        let file = Some(KeyFile::parse(b"1,first\n2,second").unwrap());
        let both = KeyRing {
            command_line: Some(key("backup")),
            file,
        };
        let file_only = KeyRing {
            command_line: None,
            ..both.clone()
        };
        let line_only = KeyRing {
            file: None,
            ..both.clone()
        };
        for (ring, id, expected) in [
            (&both, 1, vec!["first", "backup"]),
            (&both, 9, vec!["backup"]),
            (&file_only, 2, vec!["second"]),
            (&file_only, 9, vec![]),
            (&line_only, 2, vec!["backup"]),
            (&KeyRing::default(), 0, vec![]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(key).collect();
            let tried: Vec<_> = ring.candidates(id).cloned().collect();
            assert_eq!(tried, expected, "id {id}");
        }
    }

    #[test]
    fn a_client_uses_the_command_line_or_the_entry_asked_for() {
        let many = |text: &[u8]| KeyRing {
            command_line: None,
            file: Some(KeyFile::parse(text).unwrap()),
        };
        let line = KeyRing {
            command_line: Some(key("a")),
            file: None,
        };
        for (ring, id, expected) in [
            (KeyRing::default(), Some(1), Ok(None)),
            (line.clone(), None, Ok(Some((0, "a")))),
            (line, Some(7), Ok(Some((7, "a")))),
            (many(b"0,z\n3,b"), None, Ok(Some((0, "z")))),
            (many(b"0,z\n3,b"), Some(3), Ok(Some((3, "b")))),
            (many(b"2,y\n3,b"), None, Err(KeyIdNotFound { id: 0 })),
            (many(b"5,only"), None, Ok(Some((5, "only")))),
            (many(b"5,only"), Some(0), Ok(Some((5, "only")))),
            (many(b"5,only"), Some(4), Err(KeyIdNotFound { id: 4 })),
        ] {
            let expected = expected.map(|found| found.map(|(id, text)| (id, key(text))));
            let found = ring.for_client(id);
            let found = found.map(|found| found.map(|(id, key)| (id, key.clone())));
            assert_eq!(found, expected, "{ring:?} {id:?}");
        }
    }
}
