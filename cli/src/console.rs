//! Lines from standard input, read on a thread of their own: the words of a server's console and
//! what the interactive client sends.
//!
//! A program in the background of a terminal must never be stopped because it tried to read: such a
//! read is put off until the program is in the foreground.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Stdin};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{getpgrp, tcgetpgrp};

/// A longer line is taken as several; nobody types one.
const LINE_BYTES_MAX: u64 = 60_000;
/// Lines that wait for the control thread; then the reader waits, and so does who writes.
const LINES_MAX: usize = 64;
/// How soon a program that came to the foreground listens to its terminal.
const BACKGROUND_INTERVAL: Duration = Duration::from_millis(500);

/// What standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Someone types.
    Terminal,
    /// Another program writes.
    Pipe,
    /// `/dev/null`, a file, a socket, or a pipe that had already ended: nobody is there.
    Nobody,
}

/// Finds out what standard input is.
#[must_use]
pub fn input() -> Input {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Input::Terminal;
    }
    let kind = stdin
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| File::from(fd).metadata());
    match kind {
        Ok(kind) if kind.file_type().is_fifo() && !has_ended(&stdin) => Input::Pipe,
        _ => Input::Nobody,
    }
}

/// Whether a pipe has no writer and nothing left to read.
fn has_ended(pipe: &Stdin) -> bool {
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    // A failure to ask is no end.
    let _ = poll(&mut polled, PollTimeout::ZERO);
    let found = polled[0].revents().unwrap_or(PollFlags::empty());
    found.contains(PollFlags::POLLHUP) && !found.contains(PollFlags::POLLIN)
}

/// One line, or the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Without its line end.
    Text(Vec<u8>),
    /// There will be no more.
    End,
}

/// Reads lines from now on. `control` is unparked at each.
///
/// # Errors
/// When no thread can be started.
pub fn lines(control: Thread) -> io::Result<Receiver<Line>> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    std::thread::Builder::new()
        .name("console".into())
        .spawn(move || read(&sender, &control))?;
    Ok(receiver)
}

fn read(sender: &SyncSender<Line>, control: &Thread) {
    // With this signal blocked a read from the background fails with EIO (termios(3p), terminal
    // access control) instead of stopping the whole program.
    let mut stop_on_read = SigSet::empty();
    stop_on_read.add(Signal::SIGTTIN);
    let _ = stop_on_read.thread_block();
    let stdin = io::stdin();
    let mut input = stdin.lock();
    let mut line = Vec::new();
    loop {
        let read = input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        let next = match read {
            Ok(0) if line.is_empty() => Line::End,
            Ok(_) => {
                if line.ends_with(b"\n") {
                    line.pop();
                    if line.ends_with(b"\r") {
                        line.pop();
                    }
                }
                Line::Text(std::mem::take(&mut line))
            }
            Err(_) if in_background() => {
                std::thread::sleep(BACKGROUND_INTERVAL);
                continue;
            }
            Err(_) => Line::End,
        };
        let last = next == Line::End;
        if sender.send(next).is_err() {
            return;
        }
        control.unpark();
        if last {
            return;
        }
    }
}

fn in_background() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
}
