//! Lines from standard input, read on a thread of their own: the words of a server's console and
//! what the interactive client sends.
//!
//! A program in the background of a terminal must never be stopped because it tried to read: such a
//! read is put off until the program is in the foreground.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal as _, Read as _, Stdin};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{getpgrp, tcgetpgrp};

/// A longer line is taken as several; nobody types one.
const LINE_BYTES_MAX: usize = 60_000;
/// Of a piece that is not the last of its line so much goes with the next one, so that no piece
/// looks like a word, or like the empty line: '!' with CR LF is 3.
const REST_BYTES_MIN: usize = 4;
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
        let next = match next(&mut input, &mut line) {
            Ok(next) => next,
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

/// The next line, or piece of one; `line` has what was read of it before.
fn next(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    let room = LINE_BYTES_MAX.saturating_sub(line.len()) as u64;
    let count = input.by_ref().take(room).read_until(b'\n', line)?;
    if count == 0 && line.is_empty() {
        return Ok(Line::End);
    }
    let mut rest = Vec::new();
    if line.ends_with(b"\n") {
        line.pop();
        if line.ends_with(b"\r") {
            line.pop();
        }
    } else if line.len() >= LINE_BYTES_MAX {
        let mut cut = line.len() - REST_BYTES_MIN;
        // Not within a character: of those there are at most three more bytes.
        let within = |byte: u8| byte & 0xc0 == 0x80;
        for _ in 0..3 {
            cut -= usize::from(within(line[cut]));
        }
        rest = line.split_off(cut);
    }
    Ok(Line::Text(std::mem::replace(line, rest)))
}

fn in_background() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However long a line is, no part of it is taken for a word or for the empty line.
    #[test]
    fn a_long_line_comes_in_pieces_that_are_no_words() {
        for (text, end) in [
            ("", "\n"),
            ("!", "\n"),
            ("!", "\r\n"),
            ("", "\r\n"),
            ("!", ""),
        ] {
            for len in (LINE_BYTES_MAX - 5..LINE_BYTES_MAX + 3).chain([3 * LINE_BYTES_MAX - 9]) {
                let whole = "ü".repeat(len / 2) + &"x".repeat(len % 2) + text;
                let typed = whole.clone() + end;
                let mut input = typed.as_bytes();
                let mut line = Vec::new();
                let mut got = String::new();
                while let Line::Text(piece) = next(&mut input, &mut line).unwrap() {
                    let piece = String::from_utf8(piece).expect("no character is cut");
                    assert!(piece.len() > 1, "{piece:?} of {len} and {text:?}");
                    assert!(piece.len() <= LINE_BYTES_MAX);
                    // The end of a line belongs to none of its pieces.
                    got += piece.trim_end();
                }
                assert_eq!(got, whole, "{len} and {text:?}");
            }
        }
    }
}
