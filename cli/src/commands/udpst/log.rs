//! Where the lines go: standard output, or the log file of a daemon, whose lines have a time and
//! which is started anew when it grows too large. A line that cannot be written is lost: there is
//! nobody left to tell.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ringmill_protocols::capacity::time::WallTime;

use super::local_time;

/// Where the lines go.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Standard,
    /// A file.
    Log(Log),
    /// Nowhere: a daemon without a log file.
    Nowhere,
}

impl Output {
    /// Writes one line or several, each with its newline.
    pub fn write(&mut self, text: &str, now: WallTime) {
        match self {
            Self::Standard => {
                let mut out = io::stdout().lock();
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
            Self::Log(log) => log.write(text, now),
            Self::Nowhere => {}
        }
    }
}

/// A log file.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    bytes_max: u64,
    file: Option<File>,
    bytes: u64,
}

impl Log {
    /// Opens a log file, at its end.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        // A daemon leaves the directory that a relative path speaks of.
        let path = std::path::absolute(path)?;
        let file = append(&path)?;
        Ok(Self {
            bytes: file.metadata()?.len(),
            bytes_max,
            file: Some(file),
            path,
        })
    }

    fn write(&mut self, text: &str, now: WallTime) {
        let Some(file) = &mut self.file else {
            return;
        };
        let time = local_time::local(now).strftime("%Y-%m-%d %H:%M:%S");
        let lines: String = text
            .lines()
            .map(|line| format!("{time} {line}\n"))
            .collect();
        if file.write_all(lines.as_bytes()).is_err() {
            return;
        }
        self.bytes += lines.len() as u64;
        if self.bytes > self.bytes_max {
            let mut old = self.path.clone().into_os_string();
            old.push(".old");
            let _ = std::fs::rename(&self.path, old);
            self.file = append(&self.path).ok();
            self.bytes = 0;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_grows_too_large_is_started_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let old = directory.path().join("log.old");
        let now = WallTime {
            sec: 1_795_210_876,
            nsec: 0,
        };
        let line = |path: &Path| std::fs::read_to_string(path).unwrap();
        let mut output = Output::Log(Log::open(&path, 59).unwrap());
        output.write("[0]first\n", now);
        let first = line(&path);
        assert!(
            first.ends_with(":16 [0]first\n") && first.starts_with("2026-11-"),
            "{first}"
        );
        assert_eq!(first.len(), "YYYY-MM-DD HH:MM:SS [0]first\n".len());
        output.write("[0]second\n", now);
        assert!(!old.exists(), "59 bytes are not above 59");
        output.write("[0]third\n", now);
        assert_eq!(line(&old).lines().count(), 3);
        assert_eq!(line(&path), "");
        output.write("[0]fourth\n[0]5\n", now);
        drop(output);
        assert!(
            line(&path).contains(" [0]fourth\n2026"),
            "each line has its time"
        );
        // What a log has from before counts.
        let mut output = Output::Log(Log::open(&path, 59).unwrap());
        output.write(&format!("{}\n", "x".repeat(40)), now);
        assert!(line(&old).contains("fourth"));
    }
}
