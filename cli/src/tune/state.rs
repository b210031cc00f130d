//! The record of what was changed, so that it can be taken back: written and synced before each change.
//!
//! One JSON file, replaced as a whole, so that a reader finds the record before or after a change and
//! never half of it. A lock beside it keeps two applies apart.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::host::{remove_file, replace_file};
use super::plan::Before;
use super::setting::Setting;

/// Where it is unless `--state` says otherwise.
pub const PATH: &str = "/var/lib/ringmill/tune.json";
/// The version of the format; another one is not touched.
const VERSION: u32 = 1;
/// A larger file is none of ours: an entry takes some hundred bytes, a plan has some hundred entries.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How far a change got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Recorded; the change itself may or may not have happened.
    Begun,
    /// Made.
    Done,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What was changed.
    pub setting: Setting,
    /// Its value before; none: it was not there.
    pub old: Option<String>,
    /// The value that was written.
    pub wanted: String,
    /// The value that was read back.
    pub applied: Option<String>,
    /// How far it got.
    pub stage: Stage,
}

/// Everything that was changed and not yet taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The profile.
    pub profile: String,
    /// The network namespace in which it was applied.
    pub namespace: String,
    /// The boot in which it was applied.
    pub boot: String,
    /// The process that takes it back when it ends; none where a person does.
    pub owner: Option<u32>,
    /// The changes, in the order in which they were made.
    pub entries: Vec<Entry>,
}

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read or written.
    #[error("the record of old values {file}: {source}; name another one with --state FILE", file = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not in the format.
    #[error(
        "the record of old values {file} cannot be understood: {problem}; nothing was changed",
        file = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Somebody else has it.
    #[error("another `ringmill tune` works with {file} just now; try again when it is done", file = path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

impl Record {
    /// An empty record.
    #[must_use]
    pub fn new(profile: &str, identity: (String, String), owner: Option<u32>) -> Self {
        Self {
            version: VERSION,
            profile: profile.into(),
            namespace: identity.0,
            boot: identity.1,
            owner,
            entries: Vec::new(),
        }
    }

    /// The entry of a setting.
    #[must_use]
    pub fn entry(&self, setting: &Setting) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.setting == *setting)
    }
}

impl Before for Record {
    fn old(&self, setting: &Setting) -> Option<Option<String>> {
        self.entry(setting).map(|entry| entry.old.clone())
    }
}

/// The file of the record, locked against others until it is dropped.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Takes the file for oneself. Its folder is made where it is not there.
    ///
    /// # Errors
    /// When somebody else has it, or it cannot be locked.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::File {
            path: path.into(),
            source,
        };
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut beside = path.file_name().unwrap_or_default().to_owned();
        beside.push(".lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.with_file_name(beside))
            .map_err(failed)?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                path: path.into(),
                _lock: lock,
            }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(StateError::Busy { path: path.into() }),
            Err((_, error)) => Err(failed(error.into())),
        }
    }

    /// What is recorded; none where nothing is.
    ///
    /// # Errors
    /// When the file is there and cannot be understood.
    pub fn load(&self) -> Result<Option<Record>, StateError> {
        read(&self.path)
    }

    /// Replaces the record; returns when it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, record: &Record) -> Result<(), StateError> {
        let failed = |source| StateError::File {
            path: self.path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        replace_file(&self.path, &text).map_err(failed)
    }

    /// Forgets everything: it was taken back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn clear(&self) -> Result<(), StateError> {
        remove_file(&self.path).map_err(|source| StateError::File {
            path: self.path.clone(),
            source,
        })
    }
}

/// Reads a record without taking the file for oneself.
///
/// # Errors
/// When the file is there and cannot be understood.
pub fn read(path: &Path) -> Result<Option<Record>, StateError> {
    let format = |problem: String| StateError::Format {
        path: path.into(),
        problem,
    };
    let text = match std::fs::metadata(path) {
        Ok(about) if about.len() > FILE_BYTES_MAX => return Err(format("it is too large".into())),
        _ => match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::File {
                    path: path.into(),
                    source,
                });
            }
        },
    };
    let record: Record =
        serde_json::from_slice(&text).map_err(|error| format(error.to_string()))?;
    if record.version != VERSION {
        return Err(format(format!(
            "it is of version {}, and this ringmill writes {VERSION}",
            record.version
        )));
    }
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record::new("lab", ("net:[1]".into(), "boot".into()), None);
        record.entries.push(Entry {
            setting: Setting::sysctl("net.core.somaxconn"),
            old: Some("4096".into()),
            wanted: "8192".into(),
            applied: None,
            stage: Stage::Begun,
        });
        record
    }

    #[test]
    fn a_record_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/tune.json");
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.save(&record()).unwrap();
        assert_eq!(store.load().unwrap(), Some(record()));
        store.clear().unwrap();
        store.clear().unwrap();
        assert_eq!(store.load().unwrap(), None);
    }

    #[test]
    fn two_do_not_work_with_it_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tune.json");
        let first = Store::open(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(StateError::Busy { .. })));
        drop(first);
        assert!(Store::open(&path).is_ok());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tune.json");
        let newer = serde_json::to_string(&record())
            .unwrap()
            .replace("\"version\":1", "\"version\":2");
        for (text, words) in [
            ("{", "EOF"),
            ("{}", "missing field"),
            (newer.as_str(), "version 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
