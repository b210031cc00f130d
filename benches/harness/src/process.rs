//! The programs under test: started pinned, watched line by line, always
//! stopped. Only processes started here are ever signalled.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A server drains for as long at most before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Lines of standard error that an error message repeats.
const ERROR_LINES_KEPT: usize = 5;

/// A program and its arguments, to run or to show.
#[derive(Debug, Clone)]
pub(crate) struct Line(Vec<String>);

impl Line {
    /// The program alone.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Line {
        Line(vec![program.as_ref().to_string_lossy().into_owned()])
    }

    /// The program, as it is started.
    pub(crate) fn program(&self) -> &str {
        &self.0[0]
    }

    /// Adds arguments, split at blanks.
    pub(crate) fn args(mut self, arguments: &str) -> Line {
        self.0
            .extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds another command, to be run by this one.
    pub(crate) fn joined(mut self, command: &Line) -> Line {
        self.0.extend(command.0.iter().cloned());
        self
    }

    /// The command as a reader would type it: programs, also those run by another, without their folder.
    pub(crate) fn shown(&self) -> String {
        let without_folder = |(place, part): (usize, &String)| match part.rsplit_once('/') {
            Some((folder, name)) if place == 0 || folder.starts_with(['/', '.']) => name.to_owned(),
            _ => part.clone(),
        };
        self.0
            .iter()
            .enumerate()
            .map(without_folder)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A started program.
pub(crate) struct Running {
    child: Child,
    name: String,
    lines: Receiver<String>,
    errors: Arc<Mutex<VecDeque<String>>>,
}

impl Running {
    /// Starts a program on one CPU.
    ///
    /// # Errors
    /// The program is missing, or `taskset` is.
    pub(crate) fn start(line: &Line, cpu: usize) -> anyhow::Result<Running> {
        let mut child = Command::new("taskset")
            .args(["-c", &cpu.to_string()])
            .args(&line.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start taskset (Debian: apt install util-linux)")?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().context("standard output was piped")?;
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens any more: keep reading, so that it never blocks.
                let _ = sender.send(line);
            }
        });
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = child.stderr.take().context("standard error was piped")?;
        let kept = Arc::clone(&errors);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if kept.len() == ERROR_LINES_KEPT {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        });
        Ok(Running {
            child,
            name: line.shown(),
            lines,
            errors,
        })
    }

    /// Its command, as a reader would type it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id: taskset becomes the program, so it is the program's.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output; none: it ended.
    ///
    /// # Errors
    /// Nothing came before the deadline.
    pub(crate) fn next_line(&self, deadline: Instant) -> anyhow::Result<Option<String>> {
        match self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("`{}` said nothing in time{}", self.name, self.complaint())
            }
        }
    }

    /// Lines that have come so far and were not read yet.
    pub(crate) fn pending_lines(&self) -> impl Iterator<Item = String> + '_ {
        self.lines.try_iter()
    }

    /// What it said on standard error, for an error message.
    pub(crate) fn complaint(&self) -> String {
        let kept = self
            .errors
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if kept.is_empty() {
            String::new()
        } else {
            format!(
                ": {}",
                kept.iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(" | ")
            )
        }
    }

    /// Waits for its end by itself; all of its unread output.
    ///
    /// # Errors
    /// It did not end before the deadline, or ended with a failure.
    pub(crate) fn finish(mut self, deadline: Instant) -> anyhow::Result<Vec<String>> {
        let mut output = Vec::new();
        while let Some(line) = self.next_line(deadline)? {
            output.push(line);
        }
        let status = self.wait(deadline)?;
        if !status.success() {
            bail!("`{}` failed ({status}){}", self.name, self.complaint());
        }
        Ok(output)
    }

    /// Asks it to stop, waits, kills it if it does not; its unread output.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.end();
        // The reader thread ends with the pipe; what it sent is all there is.
        self.lines.iter().collect()
    }

    fn wait(&mut self, deadline: Instant) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("`{}` did not end in time{}", self.name, self.complaint());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // SAFETY: no pointer; the child is not reaped yet, so the id is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        if self.wait(Instant::now() + STOP_TIMEOUT).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a program prints when it is asked for its version, first line.
pub(crate) fn version(program: &str) -> String {
    let Ok(mut child) = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
    else {
        return "not installed".into();
    };
    let mut text = String::new();
    let _ = child
        .stdout
        .take()
        .map(|mut stdout| stdout.read_to_string(&mut text));
    let _ = child.wait();
    text.lines().next().unwrap_or("unknown").trim().into()
}
